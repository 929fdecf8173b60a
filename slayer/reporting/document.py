"""A page as data, written twice: as one self-contained HTML file and as Markdown with the same content.

Every text in a block is plain: it is escaped on its way into either form, so nothing that a model wrote can become markup.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import Literal

from slayer.reporting.packed_row import PackedRow, row_html, row_text
from slayer.reporting.plan_rows import PlanRow

LONGEST_WORD = 40
"""Longer words in a table may be broken anywhere."""

Tone = Literal["good", "bad", "plain", "domain", "replay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Words that lead somewhere: a table cell, or the end of a paragraph."""

    text: str
    href: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paragraph:
    """Text; quiet text is an explanation that a second reader skips. The link stands behind the text."""

    text: str
    quiet: bool = False
    link: Link | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Bullets:
    """A list of sentences; those that warn stand in a box."""

    items: tuple[str, ...]
    warn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """A heading below the section's own."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Tag:
    """A table cell with a coloured word."""

    text: str
    tone: Tone


@dataclass(frozen=True, slots=True, kw_only=True)
class Noted:
    """A table cell with a quiet line below its text; the best of a column is in bold."""

    text: str
    note: str
    tone: Tone = "plain"
    best: bool = False


Cell = str | Link | Tag | Noted


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns whose heading ends in '#' hold numbers; rows listed in `strong` stand out."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    strong: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A headline number."""

    name: str
    value: str
    note: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """Headline numbers side by side."""

    cards: tuple[Card, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A figure: its SVG element for the page, the path of its PNG for Markdown."""

    svg: str
    png: str
    description: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The layers of a plan, drawn in HTML; Markdown shows the PNG of the plan figure."""

    rows: tuple[PlanRow, ...]
    png: str

    @property
    def staged(self) -> bool:
        """True where layers begin and end to train on the way."""
        return any(row.stage_mark for row in self.rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A prompt and what stands after it, under each label."""

    source: str
    prompt: str
    texts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """Text to copy."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """Text that is folded away until asked for."""

    title: str
    text: str


Block = Paragraph | Bullets | Heading | Table | Cards | Picture | Stack | Sample | PackedRow | Code | Details


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A titled part of a page."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A page: what kind it is, its title, the blocks under the title, and its sections."""

    kicker: str
    title: str
    lead: tuple[Block, ...]
    sections: tuple[Section, ...]


def to_html(document: Document) -> str:
    """One HTML file without scripts or anything to fetch; its own policy forbids both."""
    css = files("slayer.reporting").joinpath("page.css").read_text(encoding="utf-8")
    head = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(document.title)} · slayer</title>\n<style>\n{css}</style>\n</head>\n"
    )
    header = f'<header><p class="kicker">{escape(document.kicker)}</p><h1>{escape(document.title)}</h1></header>'
    parts = [header, *map(_html, document.lead)]
    for section in document.sections:
        parts += [f"<section><h2>{escape(section.title)}</h2>", *map(_html, section.blocks), "</section>"]
    return f"{head}<body>\n<main>\n" + "\n".join(parts) + "\n</main>\n</body>\n</html>\n"


def _html(block: Block) -> str:
    match block:
        case Paragraph(text=text, quiet=quiet, link=link):
            return f"<p{_class('quiet', quiet)}>{escape(text)}{' ' + _html_cell(link) if link else ''}</p>"
        case Bullets(items=items, warn=warn):
            return f"<ul{_class('warnings', warn)}>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Heading(text=text):
            return f"<h3>{escape(text)}</h3>"
        case Table():
            return _html_table(block)
        case Cards(cards=cards):
            return '<div class="cards">' + "".join(map(_html_card, cards)) + "</div>"
        case Picture(svg=svg):
            return f"<figure>{svg}</figure>"
        case Stack(rows=rows):
            legend = _LEGEND.replace(_TRAINED, _STAGED) if block.staged else _LEGEND
            return '<ul class="stack">' + "".join(map(_html_layer, rows)) + "</ul>" + legend
        case Sample():
            return _html_sample(block)
        case PackedRow():
            return row_html(block)
        case Code(text=text):
            return f"<pre><code>{escape(text)}</code></pre>"
        case Details(title=title, text=text):
            return f"<details><summary>{escape(title)}</summary><pre><code>{escape(text)}</code></pre></details>"


def _class(name: str, wanted: bool) -> str:
    return f' class="{name}"' if wanted else ""


def _html_table(table: Table) -> str:
    numeric = [name.endswith("#") for name in table.head]

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(f"<{tag}{_class('number', is_number)}>{cell}</{tag}>" for cell, is_number in zip(cells, numeric, strict=True))

    body = "".join(
        f"<tr{_class('strong', place in table.strong)}>{row([_html_cell(cell) for cell in cells], 'td')}</tr>"
        for place, cells in enumerate(table.rows)
    )
    head = row([escape(name.removesuffix("#")) for name in table.head], "th")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _html_cell(cell: Cell) -> str:
    match cell:
        case Link(text=text, href=href):
            return f'<a href="{escape(href)}">{escape(text)}</a>'
        case Tag(text=text, tone=tone):
            return f'<span class="tag {tone}">{escape(text)}</span>'
        case Noted(text=text, note=note, tone=tone, best=best):
            shown = f"<b>{escape(text)}</b>" if best else escape(text)
            return f'<span class="noted {tone}">{shown}</span><small>{escape(note)}</small>'
    unbroken = any(len(word) > LONGEST_WORD for word in cell.split())  # would push the columns behind it off the page
    return f'<span class="unbroken">{escape(cell)}</span>' if unbroken else escape(cell)


def _html_card(card: Card) -> str:
    return (
        f'<div class="card {card.tone}"><div class="name">{escape(card.name)}</div>'
        f'<div class="value">{escape(card.value)}</div><div class="note">{escape(card.note)}</div></div>'
    )


_TRAINED = "<span>● trained</span>"
_STAGED = "<span>● trains, ◐ only its norms, in the stages numbered</span>"
_LEGEND = (
    '<div class="legend"><span><i class="kept"></i>kept from the base</span><span><i class="new"></i>new block</span>'
    '<span><i class="tail"></i>trained tail</span><span><i class="pruned"></i>pruned</span><span>❄ frozen</span>'
    f"{_TRAINED}<span>left: layer of the base, right: layer of the result</span></div>"
)


def _html_layer(row: PlanRow) -> str:
    word = {"kept": "kept", "new": "new", "pruned": "pruned", "tail": "tail"}[row.kind]
    text = f"{word} · {row.note}" if row.note else word if row.kind != "kept" else ""
    mark = "" if row.kind == "pruned" else row.stage_mark or ("● trained" if row.trains else "❄")
    return (
        f'<li class="{"trains" if row.trains_whole else "frozen"}"><span class="base">{row.base_label}</span>'
        f'<span class="layer {row.kind}" title="{escape(text or "kept")}">{escape(text)}</span>'
        f'<span class="mark">{row.index_label} {mark}</span></li>'
    )


def _html_sample(sample: Sample) -> str:
    boxes = "".join(
        f'<div class="sample{" result" if label == RESULT_LABEL else ""}"><b>{escape(label)}</b>{escape(text.strip())}</div>'
        for label, text in sample.texts
    )
    quote = f"<blockquote><small>{escape(sample.source)}</small>{escape(sample.prompt)} …</blockquote>"
    return f'{quote}<div class="samples">{boxes}</div>'


RESULT_LABEL = "after training"


def to_markdown(document: Document) -> str:
    """The same content as Markdown; figures are links to PNG files beside it."""
    parts = [f"# {_md(document.title)}", f"*{_md(document.kicker)}*", *map(_markdown, document.lead)]
    for section in document.sections:
        parts += [f"## {_md(section.title)}", *map(_markdown, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Paragraph(text=text, link=link):
            return f"{_md(text)} {_markdown_cell(link)}" if link else _md(text)
        case Bullets(items=items, warn=warn):
            return "\n".join(f"- {'⚠ ' if warn else ''}{_md(item)}" for item in items)
        case Heading(text=text):
            return f"### {_md(text)}"
        case Table():
            return markdown_table(block)
        case Cards(cards=cards):
            return "\n".join(f"- **{_md(card.name)}: {_md(card.value)}**, {_md(card.note)}" for card in cards)
        case Picture(png=png, description=description):
            return f"![{_md(description)}]({png})"
        case Stack(png=png):
            return f"![The layers of the model]({png})"
        case Sample(source=source, prompt=prompt, texts=texts):
            pairs = [(f"{source}, prompt", prompt), *texts]
            return "\n\n".join(f"**{_md(label)}**\n\n{_fenced(text)}" for label, text in pairs)
        case PackedRow(title=title):
            return f"**{_md(title)}**\n\n{_fenced(row_text(block))}"
        case Code(text=text):
            return _fenced(text)
        case Details(title=title, text=text):
            return f"<details><summary>{escape(title)}</summary>\n\n{_fenced(text)}\n\n</details>"


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""
    head = " | ".join(_md(name.removesuffix("#")) for name in table.head)
    rule = " | ".join("---:" if name.endswith("#") else "---" for name in table.head)
    rows = []
    for place, cells in enumerate(table.rows):
        words = [_markdown_cell(cell) for cell in cells]
        rows.append(" | ".join(f"**{word}**" if place in table.strong and word and "**" not in word else word for word in words))
    return "\n".join(f"| {line} |" for line in (head, rule, *rows))


def _markdown_cell(cell: Cell) -> str:
    match cell:
        case Link(text=text, href=href):
            return f"[{_md(text)}](<{href}>)"
        case Tag(text=text):
            return _md(text)
        case Noted(text=text, note=note, best=best):
            return f"**{_md(text)}** {_md(note)}".rstrip() if best else f"{_md(text)} {_md(note)}".rstrip()
    return _md(cell)


def _md(text: str) -> str:
    plain = " ".join(text.split())
    return re.sub(r"([\\`*\[\]|#])", r"\\\1", plain).replace("&", "&amp;").replace("<", "&lt;")


def _fenced(text: str) -> str:
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
