"""Disks that are full, read-only or refuse large files, for real: a small file system of its own, and the limit that a process has."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

PAGE_BYTES = 4096


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs of its own."""

    path: Path

    @property
    def free_bytes(self) -> int:
        """Room that is left."""
        return shutil.disk_usage(self.path).free

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    def fill(self, leaving_bytes: int = 0) -> None:
        """Put so much onto it that only `leaving_bytes` (whole pages) are free."""
        self.clear()
        with self._ballast.open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, self.free_bytes - leaving_bytes)

    def clear(self) -> None:
        """Take that away again."""
        self._ballast.unlink(missing_ok=True)

    def read_only(self, refuse: bool) -> None:
        """Refuse every write from now on, or no more."""
        _mount("-o", f"remount,{'ro' if refuse else 'rw'}", str(self.path))


@contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[SmallDisk]:
    """Mount a file system of `size` on a new folder; skips where one may not mount."""
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("file systems can be mounted by root only")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def files_up_to(n_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond `n_bytes` while the body runs: writes fail with EFBIG, much as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
