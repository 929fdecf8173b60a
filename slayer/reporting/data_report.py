"""The report of a text: data_report.html and data_report.md, made of the facts that preparing it left.

It shows what was read, what was left out and why, what the mixture is made of, and rows as training sees them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slayer.reporting.data_figures import is_reached, lengths_figure, mixture_figure
from slayer.reporting.document import (
    Block,
    Bullets,
    Card,
    Cards,
    Cell,
    Details,
    Document,
    Heading,
    Paragraph,
    Section,
    Table,
    Tag,
    Tone,
    to_html,
    to_markdown,
)
from slayer.reporting.numbers import MISSING, count, fixed, percent, share, short, size
from slayer.reporting.packed_row import sample_row
from slayer.reporting.picture import picture
from slayer.reporting.removals import by_reason, read_documents, reason_name, reason_why, removed_documents, removed_sentence
from slayer.schema import as_override

Facts = Mapping[str, Any]

SOURCES_NOTE = (
    "Every document that was read is trained on, held out, or removed. A held-out document is chosen by a hash of its text and never moves to the "
    "other side. Tokens are those of the text and the marks at its beginning and end."
)
ROWS_NOTE = (
    "A row is filled with whole documents where they fit; a cut is needless when the document is no longer than a row. Asked is the share of trained "
    "tokens that the configuration asks for (in its first stage), planned what the whole run will serve, epochs how often the run reads the source."
)
SAMPLES_NOTE = (
    "Rows as training sees them. The strip shows how the row is shared out; tokens attend only to their own document. ■ ends a document; a dashed "
    "line and … mark where one was cut."
)


def write_data_report(folder: Path, facts: Facts) -> Path:
    """Write data_report.html, data_report.md and figures/ into `folder` from whatever the facts hold; returns the path of the page.

    A page of these very facts is left as it is: a run that goes on has no time for drawing.
    """
    page, mark = folder / "data_report.html", f"<!-- facts {_digest(facts)} -->\n"
    if page.exists() and page.read_text(encoding="utf-8").endswith(mark):
        return page
    folder.mkdir(parents=True, exist_ok=True)
    document = data_document(folder, facts)
    (folder / "data_report.md").write_text(to_markdown(document), encoding="utf-8")
    page.write_text(to_html(document) + mark, encoding="utf-8")
    return page


def _digest(facts: Facts) -> str:
    known = json.dumps([version("slayer"), facts], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()


def data_document(folder: Path, facts: Facts) -> Document:
    """The report as data. Figures are saved into folder/figures on the way."""
    sections = [
        ("Sources", _source_blocks(facts)), ("The mixture", _mixture_blocks(folder, facts)), ("Lengths", _length_blocks(folder, facts)),
        ("What was removed", _removal_blocks(facts)), ("What could not be read", _quarantine_blocks(facts)),
        ("What streamed sources cannot promise", _promise_blocks(facts)), ("Rows", _sample_blocks(facts)),
        ("Exactly this text", _identity_blocks(facts)),
    ]  # fmt: skip
    return Document(
        kicker="slayer · text", title=str(facts.get("name") or "text"), lead=tuple(_headline(facts)),
        sections=tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in sections if blocks),
    )  # fmt: skip


def _sources(facts: Facts) -> list[dict[str, Any]]:
    return list(facts.get("sources") or [])


def _total(facts: Facts, key: str) -> float | None:
    values = [source[key] for source in _sources(facts) if source.get(key) is not None]
    return sum(values) if values else None


def _headline(facts: Facts) -> list[Block]:
    blocks: list[Block] = []
    warnings = tuple(str(warning) for warning in facts.get("warnings") or ())
    if warnings:
        blocks.append(Bullets(items=warnings, warn=True))
    sources = _sources(facts)
    if not sources:
        return [*blocks, Paragraph(text="Nothing is known about this text yet.")]
    return [*blocks, Cards(cards=tuple(_cards(facts, sources)))]


def _cards(facts: Facts, sources: Sequence[Mapping[str, Any]]) -> list[Card]:
    documents, n_bytes = _total(facts, "train_documents"), _total(facts, "train_bytes")
    streamed = sum(bool(source.get("streamed")) for source in sources)
    many = "1 source" if len(sources) - streamed == 1 else f"{len(sources) - streamed} sources"
    rest = f", {count(_total(facts, 'heldout_documents'))} more are held out" if _total(facts, "heldout_documents") is not None else ""
    rest += f"; {streamed} more {'source is' if streamed == 1 else 'sources are'} streamed" if streamed else ""
    note = f"tokens to train on, in {count(documents)} documents of {many} ({size(n_bytes)}){rest}"
    cards = [Card(name="text", value=short(_total(facts, "train_tokens")), note=note)]
    if facts.get("tokens") is not None:
        note = f"tokens in {count(facts.get('steps'))} steps of {count(facts.get('batch_rows'))} rows of {count(facts.get('sequence_length'))}"
        cards.append(Card(name="this run", value=short(facts["tokens"]), note=note))
    removed = removed_documents(facts)
    if removed is not None:
        parts = [f"{count(documents)} {reason_name(reason, documents)}" for reason, documents in by_reason(facts["removed"]).items()]
        note = ", ".join(parts) or f"of {count(read_documents(facts))} documents read"
        cards.append(Card(name="removed documents", value=count(removed), note=note))
    packed = [source for source in sources if source.get("fill") is not None and source.get("rows")]
    if packed:
        rows = sum(source["rows"] for source in packed)
        cuts = sum(int(source.get("needless_cuts") or 0) for source in packed)
        full = sum(source["fill"] * source["rows"] for source in packed) / rows
        note = f"of the places in {count(rows)} rows, packed by {facts.get('packing', 'best_fit')}; {count(cuts) if cuts else 'no'} needless cuts"
        cards.append(Card(name="rows full", value=percent(100 * full, signed=False, digits=2), note=note))
    return cards


def _role(source: Mapping[str, Any]) -> Tag:
    role: Tone = "replay" if source.get("role") == "replay" else "domain"
    return Tag(text=role, tone=role)


def _source_blocks(facts: Facts) -> list[Block]:
    sources = _sources(facts)
    if not sources:
        return []
    head = ("source", "role", "from", "read#", "removed#", "held out#", "to train on#", "tokens#", "text#")
    rows = []
    for source in sources:
        streamed = bool(source.get("streamed"))
        removed = None if streamed else removed_documents(facts, str(source.get("name")))
        rows.append((
            str(source.get("name", MISSING)), _role(source), str(source.get("origin", MISSING)),
            Tag(text="streamed", tone="plain") if streamed else count(source.get("read_documents")), count(removed),
            count(source.get("heldout_documents")), count(source.get("train_documents")), short(source.get("train_tokens")),
            size(source.get("train_bytes")),
        ))  # fmt: skip
    return [Table(head=head, rows=tuple(rows)), Paragraph(text=SOURCES_NOTE, quiet=True)]


def _mixture_blocks(folder: Path, facts: Facts) -> list[Block]:
    sources = _sources(facts)
    if not sources:
        return []
    blocks: list[Block] = []
    stages = list(facts.get("stages") or [])
    if stages and facts.get("tokens"):
        blocks.append(picture(mixture_figure(facts), folder, "data_mixture", "Shares of the sources, of trained tokens, over the run"))
    if len(stages) > 1:
        names = [str(source["name"]) for source in sources]
        rows = [
            (
                str(number) if is_reached(stage, facts) else f"{number} (not reached by this run)",
                count(stage.get("from_tokens")),
                count(stage.get("from_step")),
                *(share(stage.get("shares", {}).get(name), 1) for name in names),
            )
            for number, stage in enumerate(stages, 1)
        ]
        blocks.append(Table(head=("stage", "from token#", "from step#", *(f"{name}#" for name in names)), rows=tuple(rows)))
    head = ("source", "asked#", "planned#", "epochs#", "at most#", "rows#", "rows full#", "cut documents#", "needless cuts#")
    warn = float(facts.get("warn_epochs") or float("inf"))
    return [
        *blocks, Table(head=head, rows=tuple(_mixture_row(source, warn) for source in sources)), Paragraph(text=ROWS_NOTE, quiet=True)
    ]  # fmt: skip


def _mixture_row(source: Mapping[str, Any], warn_epochs: float) -> tuple[Cell, ...]:
    epochs: Cell = fixed(source.get("epochs"), 2)
    if (source.get("epochs") or 0) > warn_epochs:
        epochs = Tag(text=str(epochs), tone="bad")
    return (
        str(source.get("name", MISSING)), _share_2(source.get("share")), _share_2(source.get("planned_share")), epochs,
        MISSING if source.get("max_epochs") is None else f"{source['max_epochs']:g}", count(source.get("rows")), _share_2(source.get("fill")),
        count(source.get("cut_documents")), count(source.get("needless_cuts")),
    )  # fmt: skip


def _share_2(value: float | None) -> str:
    return percent(None if value is None else 100 * value, signed=False, digits=2)


def _length_blocks(folder: Path, facts: Facts) -> list[Block]:
    if not any(sum(source.get("lengths", {}).get("documents") or ()) for source in _sources(facts)):
        return []
    return [picture(lengths_figure(facts), folder, "data_lengths", "Histograms of document lengths in tokens, per source")]


def _removal_blocks(facts: Facts) -> list[Block]:
    removed = [entry for entry in facts.get("removed") or () if entry.get("documents")]
    if "removed" not in facts:
        return []
    blocks: list[Block] = [Paragraph(text=f"Cleaning {removed_sentence(facts)}.")]
    blocks += [Paragraph(text=_checked_against(facts), quiet=True)] if _checked_against(facts) else []
    if removed:
        blocks.append(_removal_table(facts, removed))
    cleaning = facts.get("cleaning") or {}
    for reason, documents in by_reason(removed).items():
        entries = [entry for entry in removed if entry.get("reason") == reason]
        name = reason_name(reason, 2)
        blocks.append(Heading(text=f"{name[:1].upper()}{name[1:]}: {count(documents)}"))
        blocks += [Paragraph(text=reason_why(reason, cleaning))] if reason_why(reason, cleaning) else []
        rows = [
            (str(entry.get("source", MISSING)), str(example.get("id", "")), str(example.get("excerpt", "")), str(example.get("because", "")))
            for entry in entries
            for example in entry.get("examples") or ()
        ]
        blocks += [Table(head=("source", "document", "how it reads", "because"), rows=tuple(rows))] if rows else []
    if cleaning:
        blocks.append(
            Details(title="Settings of the cleaning", text="\n".join(as_override(f"data.cleaning.{key}", value) for key, value in cleaning.items()))
        )
    return blocks


def _removal_table(facts: Facts, removed: Sequence[Mapping[str, Any]]) -> Table:
    read = {str(source.get("name")): source.get("read_documents") for source in _sources(facts)}
    rows = tuple(
        (str(entry.get("source", MISSING)), reason_name(str(entry.get("reason")), 2), count(entry["documents"]),
         percent(100 * entry["documents"] / whole, signed=False, digits=2) if (whole := read.get(str(entry.get("source")))) else MISSING,
         size(entry.get("bytes")))
        for entry in removed
    )  # fmt: skip
    return Table(head=("source", "reason", "documents#", "of those read#", "text#"), rows=rows)


def _checked_against(facts: Facts) -> str:
    names = [str(name) for name in facts.get("benchmarks") or ()]
    if not names:
        return "Nothing was compared with benchmark questions (data.cleaning.decontaminate)." if "benchmarks" in facts else ""
    undecidable = facts.get("undecidable_items")
    short_ones = f" {count(undecidable)} of their questions have too few words to be recognised in a text." if undecidable else ""
    many = f"the questions of {len(names)} benchmarks" if len(names) > 1 else "the questions of one benchmark"
    return f"Compared with {many}: {', '.join(names)}.{short_ones}"


def _quarantine_blocks(facts: Facts) -> list[Block]:
    entries = list(facts.get("quarantine") or [])
    if "quarantine" not in facts:
        return []
    if not any(entry.get("bad") for entry in entries):
        records = sum(int(entry.get("records") or 0) for entry in entries)
        return [Paragraph(text=f"Nothing: {f'all {count(records)} records' if records else 'every record'} could be read.")]
    rows = tuple(
        (str(entry.get("source", MISSING)), count(entry.get("records")), count(entry.get("bad")), _share_of(entry.get("bad"), entry.get("records")),
         MISSING if entry.get("limit") is None else f"{100 * entry['limit']:g} %")
        for entry in entries
    )  # fmt: skip
    blocks: list[Block] = [
        Paragraph(text="These records were put aside, and the rest of their files was read. More than the limit would have stopped the run."),
        Table(head=("source", "records#", "put aside#", "share#", "limit#"), rows=rows),
    ]
    examples = tuple(
        (str(example.get("file", "")), count(example.get("record")), count(example.get("offset_bytes")), str(example.get("reason", "")),
         str(example.get("head", "")))
        for entry in entries
        for example in entry.get("examples") or ()
    )  # fmt: skip
    return [*blocks, Table(head=("file", "record#", "at byte#", "what is wrong", "how it begins"), rows=examples)] if examples else blocks


def _share_of(part: float | None, whole: float | None) -> str:
    return MISSING if part is None or not whole else percent(100 * part / whole, signed=False, digits=3)


def _promise_blocks(facts: Facts) -> list[Block]:
    blocks: list[Block] = []
    for source in _sources(facts):
        sentences = tuple(str(sentence) for sentence in source.get("cannot_promise") or ())
        if sentences:
            blocks += [Heading(text=str(source.get("name", ""))), Bullets(items=sentences)]
    return blocks


def _sample_blocks(facts: Facts) -> list[Block]:
    rows = [sample_row(sample, facts) for sample in facts.get("samples") or ()]
    return [Paragraph(text=SAMPLES_NOTE, quiet=True), *rows] if rows else []


def _identity_blocks(facts: Facts) -> list[Block]:
    if not facts.get("fingerprint"):
        return []
    text = "The fingerprint of the stream of rows: runs with this fingerprint see the same tokens in the same order, on any number of ranks: "
    return [Paragraph(text=f"{text}{facts['fingerprint']}", quiet=True)]
