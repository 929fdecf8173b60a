"""The files of a source: which ones a path means, what is in them by their names, their content hash, and how they are cut into parts."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from slayer.config import SourceConfig
from slayer.data.cache import cache_dir, write_file
from slayer.data.document import SourceError
from slayer.errors import DataError, Problem

Kind = Literal["text", "lines", "csv", "parquet", "arrow"]
Compression = Literal["gz", "zst"]

KINDS: dict[str, Kind] = {
    ".txt": "text", ".text": "text", ".md": "text",
    ".jsonl": "lines", ".ndjson": "lines",
    ".csv": "csv", ".tsv": "csv",
    ".parquet": "parquet", ".arrow": "arrow",
}  # fmt: skip
COMPRESSIBLE = ("text", "lines", "csv")

ARROW_MAGIC = b"ARROW1"
"""How an Arrow IPC file begins; an IPC stream (what `datasets` writes) has no mark."""

REMEMBERED_BYTES = 1 << 20
"""Hashes of smaller files are not remembered: hashing them again is as quick as looking them up."""

SETTLED_SECONDS = 2.0
"""A file changed just now may change again within one tick of its modification time; its hash is not remembered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A file that holds documents; `shown` is its name relative to the folder that all files of the source share."""

    path: Path
    shown: str
    kind: Kind
    compression: Compression | None
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A stretch of a file: bytes (plain lines), row groups (Parquet) or record batches (Arrow files); 0, 0 is the whole file.

    `first_row` counts the rows of the file that come before it (Parquet and Arrow).
    """

    file: TextFile
    start: int = 0
    end: int = 0
    first_row: int = 0


def matched_files(name: str, source: SourceConfig) -> list[TextFile]:
    """Files behind `path` by name; hidden ones and other formats are left out.

    Raises SourceError when nothing is left, a file may not be read, or a `datasets` folder has no such split.
    """
    assert source.path is not None
    pattern, key = os.path.expanduser(source.path), f"data.sources.{name}.path"
    path = Path(pattern)
    saved = _saved_files(name, source, path)
    if saved is not None:
        found = saved
    elif path.is_dir():
        found = [file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path))]
    elif path.is_file():
        found = [path]
    else:
        found = [Path(match) for match in set(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
    known = [file for file in found if kind_of(file.name) is not None]
    if not known:
        raise SourceError(
            Problem(key=key, value=source.path, why=_nothing(pattern, sorted(found)), fix=f"{key}=TEXT   (a file, a folder, or a glob in quotes)")
        )
    for file in known:
        if not os.access(file, os.R_OK):
            raise SourceError(Problem(key=key, value=source.path, why=f"{file} may not be read by this user", fix=f"chmod u+r {file}"))
    root = Path(os.path.commonpath([file.parent for file in known]))
    files = [text_file(file, well_formed(file.relative_to(root).as_posix())) for file in known]
    return sorted(files, key=lambda file: file.shown)


def text_file(path: Path, shown: str) -> TextFile:
    """The description of one file whose name says what it holds; ValueError when it does not."""
    kind = kind_of(path.name)
    if kind is None:
        raise ValueError(f"{path} is of no known format")
    return TextFile(path=path, shown=shown, kind=kind, compression=_compression(path.name), size_bytes=path.stat().st_size)


def kind_of(file_name: str) -> Kind | None:
    """The format that a file's name promises, None for others."""
    lower = file_name.lower()
    compression = _compression(lower)
    kind = KINDS.get(Path(lower.removesuffix(f".{compression}")).suffix)
    return kind if compression is None or kind in COMPRESSIBLE else None


def formats() -> str:
    """The suffixes there are, for messages."""
    return f"{', '.join(KINDS)} (text, lines and tables of text also with .gz or .zst)"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, remembered in the cache as long as path, size, time of change and inode stay.

    DataError when the file cannot be read or changes meanwhile.
    """
    path = path.resolve()
    try:
        before = path.stat()
        identity = f"{path}/{before.st_size}/{before.st_mtime_ns}/{before.st_ino}"
        memory = cache_dir() / "hashes" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
        if before.st_size >= REMEMBERED_BYTES and memory.is_file():
            return memory.read_text()
        digest = hashlib.sha256()
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
        after = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DataError(f"{path} changed while it was read\n    start again when nothing writes to it")
    if before.st_size >= REMEMBERED_BYTES and time.time() - before.st_mtime > SETTLED_SECONDS:
        write_file(memory, digest.hexdigest().encode())
    return digest.hexdigest()


def plan_slices(files: Sequence[TextFile], part_bytes: int) -> list[tuple[Slice, ...]]:
    """Parts of about `part_bytes` bytes on disk, in order: small files together, big ones cut where their format allows it.

    Plain .jsonl is cut in byte ranges (a line belongs to the range it starts in), Parquet between row groups, Arrow files between
    batches. The cut depends on names, sizes and footers alone, and what is read does not depend on the cut.
    """
    parts: list[tuple[Slice, ...]] = []
    part: list[Slice] = []
    filled_bytes = 0
    for piece, size_bytes in (cut for file in files for cut in _cuts(file, part_bytes)):
        if part and filled_bytes + size_bytes > part_bytes:
            parts.append(tuple(part))
            part, filled_bytes = [], 0
        part.append(piece)
        filled_bytes += size_bytes
    return [*parts, tuple(part)] if part else parts


def _cuts(file: TextFile, part_bytes: int) -> Iterator[tuple[Slice, int]]:
    """(slice, bytes) of one file."""
    rows = _group_rows(file) if file.size_bytes > part_bytes else None
    if rows is not None and len(rows) > 1:
        per_slice = max(1, len(rows) * part_bytes // file.size_bytes)
        for start in range(0, len(rows), per_slice):
            end = min(start + per_slice, len(rows))
            yield Slice(file=file, start=start, end=end, first_row=sum(rows[:start])), file.size_bytes * (end - start) // len(rows)
    elif file.kind == "lines" and file.compression is None and file.size_bytes > part_bytes:
        count = -(-file.size_bytes // part_bytes)
        edges = [file.size_bytes * number // count for number in range(count + 1)]
        for start, end in pairwise(edges):
            yield Slice(file=file, start=start, end=end), end - start
    else:
        yield Slice(file=file), file.size_bytes


def _group_rows(file: TextFile) -> list[int] | None:
    """Rows of each row group or record batch, None where a file has none that can be reached directly or is damaged."""
    import pyarrow as pa

    try:
        if file.kind == "parquet":
            import pyarrow.parquet as pq

            with pq.ParquetFile(file.path) as table:
                return [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        if file.kind == "arrow":
            with pa.memory_map(str(file.path)) as mapped:
                if mapped.read(len(ARROW_MAGIC)) == ARROW_MAGIC:
                    batches = pa.ipc.open_file(mapped)
                    return [batches.get_batch(number).num_rows for number in range(batches.num_record_batches)]
    except (pa.ArrowException, OSError):
        return None  # read whole, it becomes a bad record with the reason
    return None


def _saved_files(name: str, source: SourceConfig, folder: Path) -> list[Path] | None:
    """The Arrow files of a folder that `datasets.save_to_disk` wrote, None for anything else."""
    splits = _json_object(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        if source.split not in splits:
            key = f"data.sources.{name}.split"
            why = f"{source.path} has no such split; there are {', '.join(map(str, splits)) or 'none'}"
            raise SourceError(Problem(key=key, value=source.split, why=why, fix=f"{key}={splits[0] if splits else 'NAME'}"))
        folder = folder / source.split
    listed = _json_object(folder / "state.json").get("_data_files")
    return [folder / one["filename"] for one in listed] if isinstance(listed, list) else None


def _json_object(path: Path) -> dict[str, object]:
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _nothing(pattern: str, found: Sequence[Path]) -> str:
    """Why a path gives no text."""
    if found:
        return f"holds {len(found)} file{'s' if len(found) > 1 else ''} ({found[0].name} …), but none ends in {formats()}"
    if Path(pattern).is_dir():
        return "is a folder without any file"
    return "matches no file" if glob.has_magic(pattern) else f"does not exist (seen from {Path.cwd()})"


def well_formed(name: str) -> str:
    """A name that is Unicode text whatever bytes it was made of: half surrogates written out."""
    return name.encode("utf-8", "backslashreplace").decode()


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _compression(file_name: str) -> Compression | None:
    lower = file_name.lower()
    return "gz" if lower.endswith(".gz") else "zst" if lower.endswith(".zst") else None
