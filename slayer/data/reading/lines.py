"""Lines of a text-like file, unpacked while they are read, each of bounded length; damage ends them with its reason instead of an exception."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeVar, cast

from slayer.data.reading.files import Slice, TextFile
from slayer.errors import DataError

T = TypeVar("T")

BLOCK_BYTES = 1 << 16
UNPACKED_BYTES = 1 << 12
BOM = b"\xef\xbb\xbf"
HEAD_CHARACTERS = 80
HEAD_BYTES = 4 * HEAD_CHARACTERS


@dataclass(frozen=True, slots=True)
class Damage:
    """Why nothing more can be read: a truncated or broken file."""

    reason: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line with its end. One that is too long is only its head; `size_bytes` is what it takes in the file."""

    offset_bytes: int
    content: bytes
    size_bytes: int
    too_long: bool


def open_stream(file: TextFile) -> BinaryIO:
    """A text-like file, unpacked while it is read; DataError when it cannot be opened.

    What a damaged file holds before the damage can still be read, of a .zst but for its last UNPACKED_BYTES.
    """
    try:
        if file.compression == "gz":
            return cast(BinaryIO, gzip.open(file.path))
        if file.compression == "zst":
            import pyarrow as pa

            packed = pa.CompressedInputStream(pa.OSFile(str(file.path)), "zstd")
            return cast(BinaryIO, io.BufferedReader(packed, UNPACKED_BYTES))
        return file.path.open("rb", buffering=BLOCK_BYTES)
    except OSError as error:
        raise _trouble(error) from error


def blocks(stream: BinaryIO) -> Iterator[bytes]:
    """The stream in blocks of at most BLOCK_BYTES."""
    while block := stream.read1(BLOCK_BYTES):  # type: ignore[attr-defined]
        yield block


def bounded_lines(stream: BinaryIO, offset_bytes: int, limit_bytes: int) -> Iterator[Line]:
    """Every line from here on; of those with more than `limit_bytes` before their end only the head is kept in memory."""
    while content := stream.readline(limit_bytes + 2):
        size_bytes = len(content)
        too_long = size_bytes > limit_bytes and len(content.rstrip(b"\r\n")) > limit_bytes
        if too_long:
            ended, content = content.endswith(b"\n"), content[:HEAD_BYTES]
            while not ended and (rest := stream.readline(BLOCK_BYTES)):
                size_bytes += len(rest)
                ended = rest.endswith(b"\n")
        yield Line(offset_bytes, content, size_bytes, too_long)
        offset_bytes += size_bytes


def slice_lines(stream: BinaryIO, part: Slice, limit_bytes: int) -> Iterator[Line]:
    """The lines that start in a byte range; the one that the range before it began is passed over."""
    offset_bytes = 0
    if part.start:
        stream.seek(part.start - 1)
        begun = next(bounded_lines(stream, part.start - 1, BLOCK_BYTES), None)
        offset_bytes = part.start if begun is None else begun.offset_bytes + begun.size_bytes
    if part.end and offset_bytes >= part.end:
        return
    for line in bounded_lines(stream, offset_bytes, limit_bytes):
        yield line
        if part.end and line.offset_bytes + line.size_bytes >= part.end:
            return


def line_count(part: Slice) -> int:
    """Lines that start in a byte range, blank ones too."""
    with open_stream(part.file) as stream:
        return sum(1 for _ in slice_lines(stream, part, BLOCK_BYTES))


def head_of(raw: bytes | str) -> str:
    """How a record begins, printable, on one line."""
    text = raw[:HEAD_BYTES].decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    return "".join(one if one.isprintable() else " " for one in text[:HEAD_CHARACTERS]).strip()


def guarded(items: Iterable[T]) -> Iterator[T | Damage]:
    """The items, and a Damage where reading the next one shows that the file is truncated or broken.

    Trouble of the machine (a disk error, no permission) is a DataError: text must not get lost because of that.
    """
    rest = iter(items)
    while True:
        found = attempt(lambda: next(rest, None))
        if found is None:
            return
        yield found
        if isinstance(found, Damage):
            return


def attempt(read: Callable[[], T]) -> T | Damage:
    """What `read` gives, or the Damage it met; DataError for trouble of the machine."""
    import pyarrow as pa

    try:
        return read()
    except (EOFError, zlib.error, pa.ArrowException, OSError) as error:
        if isinstance(error, MemoryError):  # also one of pyarrow's
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise _trouble(error) from error
        first = (str(error) or type(error).__name__).splitlines()[0]
        return Damage(f"cannot be read from here on: {first}")


def _trouble(error: OSError) -> DataError:
    return DataError(f"{error.filename or 'a file of a source'} cannot be read: {error.strerror or error}")
