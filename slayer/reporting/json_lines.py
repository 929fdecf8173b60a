"""A file of JSON objects, one a line, that outlives kills and full disks."""

from __future__ import annotations

import json
import math
import operator
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from slayer.data.cache import fsync, write_file


class JsonLines:
    """Appends objects to a file. What the disk refuses is kept in memory and written, in order, with the next line that it takes.

    The file is opened with the first line; a line torn by a kill is cut off then. `durable`: each line is on the disk when `append`
    returns, so that not even a power cut takes it. Threads may share one.
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self._durable = durable
        self._descriptor: int | None = None
        self._pending: list[bytes] = []
        self._written = 0
        self._lock = threading.Lock()

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one object. OSError when the disk refuses: the line is kept then, and nothing is lost."""
        line = json.dumps(json_value(record), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace") + b"\n"
        with self._lock:
            self._pending.append(line)
            self._write()

    def keep(self, wanted: Callable[[bytes], bool]) -> None:
        """Leave out the lines that are not wanted. OSError when the disk refuses: the file is as it was then, and takes lines as before."""
        with self._lock:
            self._pending = [line for line in self._pending if wanted(line)]
            if not self.path.exists():
                return
            content = self.path.read_bytes()
            lines = content.splitlines(keepends=True)
            kept = b"".join(line for line in lines if line.endswith(b"\n") and wanted(line))
            if kept != content:
                for left in self.path.parent.glob(f".{self.path.name}.*"):  # of a process that was killed right here
                    left.unlink(missing_ok=True)
                write_file(self.path, kept, durable=True)  # aside and renamed: a kill at any moment leaves the old file or the new one
                self._close_descriptor()

    def close(self) -> None:
        """Write what is pending and close. OSError when the disk refuses to the last."""
        with self._lock:
            try:
                if self._pending:
                    self._write()
                if self._descriptor is not None:
                    os.fsync(self._descriptor)
            finally:
                self._close_descriptor()

    def _write(self) -> None:
        if self._descriptor is None:
            self._open()
        assert self._descriptor is not None
        while self._pending:
            line = self._pending[0]
            while self._written < len(line):  # the disk may take half a line now and the rest later
                self._written += os.write(self._descriptor, line[self._written :])
            self._pending.pop(0)
            self._written = 0
        if self._durable:
            os.fsync(self._descriptor)

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _cut_torn_line(self._descriptor)
        self._written = 0
        if is_new and self._durable:
            fsync(self.path.parent)

    def _close_descriptor(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _cut_torn_line(descriptor: int) -> None:
    size = end = os.fstat(descriptor).st_size
    while end:  # backwards, so that a long file is not read
        start = max(0, end - (1 << 16))
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end < size:
        os.ftruncate(descriptor, end)


def json_value(value: Any) -> Any:
    """What JSON can hold of a value: numbers that it does not know (nan, inf) are null, what is no number is its text."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, Mapping):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [json_value(inner) for inner in value]
    try:
        if hasattr(value, "__index__"):  # numpy's whole numbers
            return operator.index(value)
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return str(value)
    return number if math.isfinite(number) else None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole objects of a file in file order; torn lines, and a file that is not there, are passed over."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    return [found for line in content.splitlines() if (found := parse_line(line)) is not None]


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The object on a line, None where there is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
