"""The parts of a run's report that are about benchmarks: what changed, by how much, how sure that is, and what moved in the predictions."""

from __future__ import annotations

from typing import Any

from slayer.reporting.benchmark_figures import curve_names, shift_figure, task_change_figure, task_curves_figure
from slayer.reporting.benchmark_scores import TaskRow, asked, benchmarks_of, probability, score, shift_shares, span, task_rows
from slayer.reporting.benchmark_words import (
    LLAMA_PRO,
    chance_sentence,
    forgetting_sentences,
    noise_sentence,
    sampling_sentence,
    source_sentence,
    together_sentence,
    verdict_sentences,
)
from slayer.reporting.document import Block, Bullets, Cell, Heading, Noted, Paragraph, Table, Tag, Tone
from slayer.reporting.numbers import MISSING, count, fixed, interval, percent
from slayer.reporting.picture import picture
from slayer.reporting.run_folder import Record, RunFolder

METHOD = (
    "Small print in the table: 95 % intervals; lost and gained count the items that only the base and only the result got right. How sure: "
    "both models answered the same items, so changes are compared item by item. Where an item is right or wrong, the interval of a score is "
    "Wilson's and p is from McNemar's exact test: were as many items lost as gained? Elsewhere scores have bootstrap intervals over items "
    "and p is from a permutation test that swaps the two models' answers. Intervals of changes are paired bootstraps over items. p is "
    "corrected for the number of benchmarks after Holm. “No change detected” means that it is 0.05 or more: a change smaller than the noise "
    "floor, half the width of its interval, may still be there. It does not mean that the models are equal."
)
WITHOUT_BASE = (
    "Only one model was scored, so nothing is compared: base=NAME does. Intervals: Wilson's where an item is right or wrong, elsewhere a "
    "bootstrap over items."
)
SHIFT_METHOD = (
    f"At every place of held-out text the result's most likely next token is looked up in the base's ranking. {LLAMA_PRO}. KL divergence: how "
    "far the result's distribution over next tokens lies from the base's, from 0 (the same)."
)
CURVES_NOTE = (
    "Scores at steps of the training, on fewer items than the table above, so they are to be read beside one another and not beside the table. "
    "Dotted: chance."
)
TONES: dict[str, Tone] = {"learnt": "good", "forgotten": "bad"}


def benchmark_headlines(run: RunFolder) -> tuple[str, ...]:
    """Sentences for the top of the page."""
    sentences = verdict_sentences(task_rows(run.results))
    return tuple(filter(None, [*sentences, together_sentence(run.results) if sentences else ""]))


def benchmark_blocks(run: RunFolder) -> list[Block]:
    """The section on benchmarks; empty without any."""
    rows = task_rows(run.results)
    blocks = _curve_blocks(run, rows)
    if not rows:
        return blocks
    compared = any(row.base is not None for row in rows)
    first: list[Block] = [Bullets(items=benchmark_headlines(run))] if compared else []
    if any(row.change is not None for row in rows):
        first.append(picture(task_change_figure(rows), run.path, "benchmarks", "Change of every task against the base, with 95 % intervals"))
    first.append(_table(rows, compared))
    notes = (chance_sentence(rows), sampling_sentence(run.results, rows), source_sentence(run.results), noise_sentence(rows), _engine(run.results))
    first += [Paragraph(text=" ".join(filter(None, notes)), quiet=True), Paragraph(text=METHOD if compared else WITHOUT_BASE, quiet=True)]
    return [*first, *blocks]


def _curve_blocks(run: RunFolder, rows: list[TaskRow]) -> list[Block]:
    records: tuple[Record, ...] = run.heldout
    if not curve_names(records):
        return []
    known = {**{row.name: row for row in task_rows(run.results, most_members=10_000)}, **{row.name: row for row in rows}}
    figure = task_curves_figure(records, list(known.values()))
    curves = picture(figure, run.path, "benchmark_curves", "Scores of tasks while training")
    return [Heading(text="While training"), curves, Paragraph(text=CURVES_NOTE, quiet=True)]


def _engine(results: dict[str, Any] | Any) -> str:
    benchmarks = benchmarks_of(results)
    parts = [f"lm-eval {benchmarks['harness']}" if benchmarks.get("harness") else "", str(benchmarks.get("precision") or "")]
    parts += [f"decoding {benchmarks['decoding']}" if benchmarks.get("decoding") not in (None, "task") else ""]
    known = ", ".join(filter(None, parts))
    return f"Scored with {known}." if known else ""


def _table(rows: list[TaskRow], compared: bool) -> Table:
    if not compared:
        return Table(
            head=("task", "role", "result#", "95 % interval#"), rows=tuple((*_what(row), _result(row), span(row.result_interval)) for row in rows)
        )
    head = ("task", "role", "base#", "result#", "change#", "p (Holm)#", "verdict")
    return Table(head=head, rows=tuple((*_what(row), *_compared(row)) for row in rows))


def _what(row: TaskRow) -> tuple[Cell, ...]:
    indent = "\u2003" * row.depth
    name = indent + row.name + (f" ({row.tasks} tasks)" if row.tasks else "")
    shots = f"{row.num_fewshot}-shot" if row.num_fewshot is not None else ""
    note = ", ".join(part for part in (row.metric, shots, f"{asked(row)} items" if row.items is not None else "") if part)
    return Noted(text=name, note=indent + note), Tag(text=row.role, tone="domain" if row.role == "domain" else "replay")


def _result(row: TaskRow) -> str:
    return score(row.result) + ("*" if row.at_chance else "")


def _compared(row: TaskRow) -> tuple[Cell, ...]:
    moved = f"{count(row.lost)} lost, {count(row.gained)} gained" if row.lost is not None and row.gained is not None else ""
    tone: Tone = TONES.get(row.verdict, "plain")
    return (
        Noted(text=score(row.base), note=span(row.base_interval)), Noted(text=_result(row), note=span(row.result_interval)),
        Noted(text=score(row.change, signed=True), note=span(row.change_interval, signed=True), tone=tone, best=row.verdict in TONES),
        Noted(text=probability(row.p_holm), note=moved), Tag(text=row.verdict, tone=tone) if row.verdict else MISSING,
    )  # fmt: skip


def shift_blocks(run: RunFolder) -> list[Block]:
    """The section on what moved in the predictions: FG, KL divergence and rank shift."""
    sentences = forgetting_sentences(run.results)
    if not sentences:
        return []
    forgetting = run.section("forgetting")
    shift = {name: entry for name, entry in (forgetting.get("shift") or {}).items() if isinstance(entry, dict)}
    shown = {name: entry for name, entry in shift.items() if shift_shares(entry) is not None}
    blocks: list[Block] = [Bullets(items=tuple(sentence for sentence in sentences if sentence.startswith("Forgetting") or not shown))]
    blocks = [block for block in blocks if isinstance(block, Bullets) and block.items]
    if shown:
        blocks.append(picture(shift_figure(shown), run.path, "shift", "Unshifted, marginal and shifted tokens per source"))
    if shift:
        head = ("source", "role", "tokens#", "KL divergence, nats#", "95 % interval#", "unshifted#", "marginal#", "shifted#")
        blocks += [Table(head=head, rows=tuple(_shift_row(*item) for item in shift.items())), Paragraph(text=SHIFT_METHOD, quiet=True)]
    return blocks


def _shift_row(source: str, entry: dict[str, Any]) -> tuple[Cell, ...]:
    role: Tone = "replay" if entry.get("role") == "replay" else "domain"
    shares = (percent(entry.get(f"{name}_percent"), signed=False) for name in ("unshifted", "marginal", "shifted"))
    return (
        source, Tag(text=role, tone=role), count(entry.get("tokens")), fixed(entry.get("kl_nats"), 4), interval(entry.get("kl_interval"), digits=4),
        *shares,
    )  # fmt: skip
