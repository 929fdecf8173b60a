"""How a record becomes a text: one field of it, or a template over several."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

from slayer.config import CleaningConfig, SourceConfig
from slayer.data.reading.files import TextFile, well_formed
from slayer.errors import Problem

EMPTY = "is empty"
NOT_UTF8 = "is not UTF-8"
NO_FIELD = "has no field"
SHOWN_FIELDS = 20


class NoText(ValueError):  # noqa: N818 (the reason a record is put aside; nobody sees it as an error)
    """A record without a usable text; its message is the reason, worded to follow the record's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Everything besides the files that decides which documents come out of them."""

    text_field: str
    template: str | None
    max_record_bytes: int
    paragraphs: bool

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields the text is made of."""
        return (self.text_field,) if self.template is None else tuple(dict.fromkeys(name for _, name in _pieces(self.template) if name is not None))


def reading_of(source: SourceConfig, cleaning: CleaningConfig, files: Sequence[TextFile]) -> Reading:
    """How these files of a source are read; a single text file is cut at blank lines."""
    alone = len(files) == 1 and files[0].kind == "text"
    return Reading(text_field=source.text_field, template=source.template, max_record_bytes=cleaning.max_record_bytes, paragraphs=alone)


def text_of(fields: Mapping[str, object], reading: Reading) -> str:
    """The text of a record; NoText with the reason when it has none."""
    if reading.template is None:
        value = _value(fields, reading.text_field)
        if not isinstance(value, str):
            raise NoText(f"holds {kind_name(value)} in the field {reading.text_field}, not text")
        text, blank = value, not value.strip()
    else:
        pieces = [(literal, None if name is None else _written(name, _value(fields, name))) for literal, name in _pieces(reading.template)]
        text = "".join(literal + (value or "") for literal, value in pieces)
        blank = not any(value is not None and value.strip() for _, value in pieces)
    if blank:
        raise NoText(EMPTY)
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError as error:
        raise NoText(f"has half a surrogate pair at character {error.start}, which is not Unicode text") from None
    if size_bytes > reading.max_record_bytes:
        raise NoText(too_long(size_bytes, reading.max_record_bytes))
    return text


def too_long(size_bytes: int, max_record_bytes: int) -> str:
    """The reason a record is put aside for its length."""
    return f"holds {size_bytes:,} bytes, longer than data.cleaning.max_record_bytes={max_record_bytes}"


def not_utf8(error: UnicodeDecodeError, offset_bytes: int = 0) -> str:
    """The reason of a record that does not decode, with the place of the first bad byte."""
    return f"{NOT_UTF8}: byte {offset_bytes + error.start} is 0x{error.object[error.start]:02x} ({error.reason})"


def missing_field(fields: Mapping[str, object], reading: Reading) -> str | None:
    """The first field that the text needs and this record lacks."""
    for name in reading.fields:
        try:
            _value(fields, name)
        except NoText as reason:
            if str(reason).startswith(NO_FIELD):
                return name
    return None


def likely_field(fields: Mapping[str, object]) -> str | None:
    """The field with the longest text."""
    texts = {name: len(value) for name, value in fields.items() if isinstance(value, str)}
    return max(texts, key=lambda name: texts[name], default=None)


def template_problem(key: str, template: str) -> Problem | None:
    """What is wrong with a template: no field, braces that do not pair, anything but plain names in them."""
    fix = f"{key}='{{title}}\\n\\n{{body}}'   ({{{{ and }}}} stand for braces)"
    try:
        pieces = _pieces(template)
    except ValueError as error:
        return Problem(key=key, value=template, why=f"is no template: {error}", fix=fix)
    if all(name is None for _, name in pieces):
        return Problem(key=key, value=template, why="names no field, so every document would be the same", fix=fix)
    return None


@lru_cache(maxsize=64)
def _pieces(template: str) -> tuple[tuple[str, str | None], ...]:
    """(literal text, name of the field behind it) of a template; ValueError when it is malformed."""
    pieces = []
    for literal, name, layout, conversion in Formatter().parse(template):
        if name is not None and (not name.strip() or layout or conversion):
            raise ValueError(
                f"in {{{name}{'!' + conversion if conversion else ''}{':' + layout if layout else ''}}} there must be a field's name and nothing else"
            )
        pieces.append((literal.replace("\\n", "\n"), name))
    return tuple(pieces)


def _value(fields: Mapping[str, object], name: str) -> object:
    """A field by its name, else by the dotted way to it; bytes are decoded."""
    value: object = fields
    for step in (name,) if name in fields else name.split("."):
        if value is None:
            break
        if not isinstance(value, Mapping) or step not in value:
            raise NoText(_no_field(name, fields))
        value = value[step]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise NoText(f"{not_utf8(error)} of the field {name}") from None
    return value


def _no_field(name: str, fields: Mapping[str, object]) -> str:
    names = [well_formed(str(one)) for one in fields]
    shown = ", ".join(names[:SHOWN_FIELDS]) + (f" and {len(names) - SHOWN_FIELDS} more" if len(names) > SHOWN_FIELDS else "")
    likely = likely_field(fields)
    return f"{NO_FIELD} {name}; it has {shown or 'none at all'}" + (f" (data.sources.NAME.text_field={well_formed(likely)}?)" if likely else "")


def _written(name: str, value: object) -> str:
    """A field as a template writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int) or (isinstance(value, float) and not math.isnan(value)):
        return json.dumps(value)
    raise NoText(f"holds {kind_name(value)} in the field {name}, which a template cannot write out")


def kind_name(value: object) -> str:
    """What a value of a record is, in words."""
    kinds = {
        "dict": "an object",
        "list": "a list",
        "str": "a text",
        "bool": "true or false",
        "NoneType": "null",
        "int": "a number",
        "float": "a number",
    }
    return kinds.get(type(value).__name__, f"a {type(value).__name__}")
