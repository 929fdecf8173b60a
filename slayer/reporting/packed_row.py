"""A packed row as people read it: the pieces of documents that lie in it, and where each begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

BEGINS, ENDS, COMES_FROM, GOES_ON = "▏", "■", "… ", " …"
"""Signs of a piece's borders: of a whole document, and of one that was cut."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Part of a row: the text of one document, or of the part of it that this row holds."""

    document: str
    text: str
    starts: bool
    ends: bool
    tokens: int

    @property
    def note(self) -> str:
        """What a reader has to know about its borders; empty for a whole document."""
        if self.starts and self.ends:
            return ""
        if self.starts:
            return "goes on in another row"
        return "the end of a document begun in another row" if self.ends else "the middle of a document, which goes on in other rows"


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedRow:
    """One row of `length_tokens` places, pieces in order; what they leave is padding."""

    source: str
    number: int
    length_tokens: int
    pieces: Sequence[Piece]

    @property
    def padding_tokens(self) -> int:
        """Places at the end that hold nothing."""
        return max(0, self.length_tokens - sum(piece.tokens for piece in self.pieces))

    @property
    def title(self) -> str:
        """Which row it is and what it holds."""
        documents = "1 document" if len(self.pieces) == 1 else f"{len(self.pieces)} documents"
        padding = f", {self.padding_tokens:,} places of padding" if self.padding_tokens else ", full"
        return f"{self.source}, row {self.number:,}: {documents}, {self.length_tokens - self.padding_tokens:,} tokens{padding}"


def sample_row(sample: Mapping[str, Any], facts: Mapping[str, Any]) -> PackedRow:
    """One of the samples in the facts of a text: a packed row, cut into its pieces."""
    pieces = tuple(
        Piece(
            document=str(piece.get("document", "")), text=str(piece.get("text", "")), starts=bool(piece.get("starts", True)),
            ends=bool(piece.get("ends", True)), tokens=int(piece.get("tokens") or 0),
        )
        for piece in sample.get("pieces") or ()
    )  # fmt: skip
    length = int(facts.get("sequence_length") or sum(piece.tokens for piece in pieces))
    return PackedRow(source=str(sample.get("source", "")), number=int(sample.get("row") or 0), length_tokens=length, pieces=pieces)


def row_html(row: PackedRow) -> str:
    """A strip of the row's places, each piece as wide as its tokens, and below it the text of each piece beside its document."""
    tints = [f'<i class="{"even" if place % 2 else "odd"}" style="flex-grow:{piece.tokens:d}"></i>' for place, piece in enumerate(row.pieces)]
    if row.padding_tokens:
        tints.append(f'<i class="padding" style="flex-grow:{row.padding_tokens:d}"></i>')
    boxes = "".join(_piece_html(piece, "even" if place % 2 else "odd") for place, piece in enumerate(row.pieces))
    padding = f'<li class="padding"><small>{row.padding_tokens:,} places of padding</small></li>' if row.padding_tokens else ""
    return f'<div class="row"><h4>{escape(row.title)}</h4><div class="strip">{"".join(tints)}</div><ol>{boxes}{padding}</ol></div>'


def _piece_html(piece: Piece, tint: str) -> str:
    note = f"<em>{escape(piece.note)}</em>" if piece.note else ""
    borders = f"{'' if piece.starts else ' cut-before'}{'' if piece.ends else ' cut-after'}"
    return (
        f'<li class="{tint}{borders}"><small><b>{escape(piece.document)}</b> {piece.tokens:,} tokens {note}</small>'
        f"<div>{escape(piece.text.strip())}{f' {ENDS}' if piece.ends else ''}</div></li>"
    )


def row_text(row: PackedRow) -> str:
    """The row as plain text: a line that names each document, then its text between signs of where it begins and ends."""
    return "\n".join(_lines(row))


def _lines(row: PackedRow) -> Iterator[str]:
    for piece in row.pieces:
        note = f", {piece.note}" if piece.note else ""
        yield f"── {piece.document} ({piece.tokens:,} tokens{note}) ──"
        yield f"{BEGINS if piece.starts else COMES_FROM}{piece.text.strip()}{f' {ENDS}' if piece.ends else GOES_ON}"
    if row.padding_tokens:
        yield f"── padding ({row.padding_tokens:,} places) ──"
