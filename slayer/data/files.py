"""Documents from the user's files: .txt .text .md (one document a file), .jsonl (one a line), each also as .gz."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from slayer.config import SourceConfig
from slayer.data.document import Document, SourceError
from slayer.errors import Problem

TEXT_SUFFIXES = (".txt", ".text", ".md")
LINE_SUFFIXES = (".jsonl",)
PARAGRAPHS_CHARACTERS = 2_000
"""A single text file becomes several documents: paragraphs are grouped until they hold this many characters."""


def matched_files(name: str, source: SourceConfig) -> list[Path]:
    """Files behind `path`, sorted by name; hidden ones and other formats are left out. SourceError when nothing is left."""
    assert source.path is not None
    pattern, key = os.path.expanduser(source.path), f"data.sources.{name}.path"
    path = Path(pattern)
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
    elif path.is_file():
        found = [path]
    else:
        found = sorted(Path(match) for match in glob.glob(pattern, recursive=True) if Path(match).is_file())
    files = [file for file in found if _kind(file) is not None]
    if files:
        return files
    formats = ", ".join((*TEXT_SUFFIXES, *LINE_SUFFIXES))
    if found:
        why = f"holds {len(found)} file{'s' if len(found) > 1 else ''} ({found[0].name} …), but none ends in {formats} (or these with .gz)"
    elif path.is_dir():
        why = "is a folder without any file"
    else:
        why = "matches no file" if glob.has_magic(pattern) else f"does not exist (seen from {Path.cwd()})"
    raise SourceError(Problem(key=key, value=source.path, why=why, fix=f"{key}=TEXT   (a file, a folder, or a glob in quotes)"))


def read_files(name: str, source: SourceConfig) -> list[Document]:
    """All documents of a source with a path, in order of file name and line; documents of nothing but blanks are left out.

    A document's group is a hash of its text, so equal texts stay together. Raises SourceError at the first bad record.
    """
    files = matched_files(name, source)
    root = Path(os.path.commonpath([file.parent for file in files]))
    documents = [document for file in files for document in _read_file(name, source, file, file.relative_to(root).as_posix())]
    if len(files) == 1 and _kind(files[0]) == "text":
        documents = [part for document in documents for part in _paragraphs(document)]
    return documents


def probe_file(name: str, source: SourceConfig, file: Path) -> None:
    """Read the first document of a file; SourceError when that already fails."""
    next(_read_file(name, source, file, file.name), None)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _kind(file: Path) -> str | None:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    last = suffixes[-2:-1] if suffixes[-1:] == [".gz"] else suffixes[-1:]
    return "text" if last and last[0] in TEXT_SUFFIXES else "lines" if last and last[0] in LINE_SUFFIXES else None


def _read_file(name: str, source: SourceConfig, file: Path, shown: str) -> Iterator[Document]:
    key = f"data.sources.{name}.path"
    try:
        with gzip.open(file) if file.suffix.lower() == ".gz" else file.open("rb") as stream:
            if _kind(file) == "text":
                text = _decode(key, file, stream.read(), 0).removeprefix("\ufeff")
                if text.strip():
                    yield _document(shown, text)
                return
            offset_bytes = 0
            for number, line in enumerate(stream, 1):
                if line.strip():
                    text = _line_text(name, source, file, number, _decode(key, file, line, offset_bytes).removeprefix("\ufeff"))
                    if text.strip():
                        yield _document(f"{shown}:{number}", text)
                offset_bytes += len(line)
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(Problem(key=key, value=str(file), why=f"cannot be read: {error}", fix=f"{key}=TEXT   (another file or folder)")) from error


def _document(shown: str, text: str) -> Document:
    return Document(id=shown, text=text, group=hashlib.sha256(text.encode()).hexdigest())


def _decode(key: str, file: Path, raw: bytes, offset_bytes: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        why = f"is not UTF-8: byte {offset_bytes + error.start} is 0x{raw[error.start]:02x} ({error.reason})"
        fix = f"iconv -f LATIN1 -t UTF-8 {file.name} > utf8.txt (if it is Latin-1), then {key}=utf8.txt"
        raise SourceError(Problem(key=key, value=str(file), why=why, fix=fix)) from error


def _line_text(name: str, source: SourceConfig, file: Path, number: int, line: str) -> str:
    key, where = f"data.sources.{name}", f"{file}:{number}"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        seen = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        fix = f"{key}.path=FILE.txt   (if it is plain text; a .jsonl file has one JSON object a line)"
        raise SourceError(Problem(key=f"{key}.path", value=where, why=f"is not JSON: {seen}", fix=fix)) from error
    if not isinstance(record, dict):
        why = f"is {_json_kind(record)}, not a JSON object"
        raise SourceError(
            Problem(key=f"{key}.path", value=where, why=why, fix=f'{key}.path=FILE.jsonl   (with lines like {{"{source.text_field}": "…"}})')
        )
    field = source.text_field
    if field not in record:
        strings = sorted((one for one, value in record.items() if isinstance(value, str)), key=lambda one: -len(record[one]))
        why = f"{where} has no such field; it has {', '.join(map(str, record)) or 'none at all'}"
        fix = f"{key}.text_field={strings[0] if strings else 'FIELD'}"
        raise SourceError(Problem(key=f"{key}.text_field", value=field, why=why, fix=fix))
    text = record[field]
    if not isinstance(text, str):
        why = f"{where} holds {_json_kind(text)} in this field, not text"
        raise SourceError(Problem(key=f"{key}.text_field", value=field, why=why, fix=f"{key}.text_field=FIELD"))
    try:
        text.encode()
    except UnicodeEncodeError as error:
        why = f"the text has half a surrogate pair at character {error.start}, which is not Unicode text"
        raise SourceError(Problem(key=f"{key}.path", value=where, why=why, fix=f"{key}.path=FILE.jsonl   (with that line mended)")) from error
    return text


def _json_kind(value: object) -> str:
    kinds = {"dict": "an object", "list": "a list", "str": "a text", "bool": "true or false", "NoneType": "null"}
    return kinds.get(type(value).__name__, "a number")


def _paragraphs(document: Document) -> list[Document]:
    """Cut a long text behind blank lines; put together again, the parts give the text back."""
    parts: list[str] = []
    part = ""
    for paragraph in re.findall(r"(?s).+?(?:\n[^\S\n]*(?:\n[^\S\n]*)+|\Z)", document.text):
        part += paragraph
        if len(part) >= PARAGRAPHS_CHARACTERS:
            parts.append(part)
            part = ""
    parts.append(part)
    return [_document(f"{document.id}#{number}", text) for number, text in enumerate(parts, 1) if text.strip()]
