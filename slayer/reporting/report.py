"""The report of a run: report.html, one self-contained file, and report.md with the same content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slayer.reporting.benchmark_report import benchmark_blocks, benchmark_headlines, shift_blocks
from slayer.reporting.benchmark_scores import task_rows
from slayer.reporting.document import (
    RESULT_LABEL,
    Block,
    Bullets,
    Card,
    Cards,
    Cell,
    Code,
    Details,
    Document,
    Heading,
    Link,
    Noted,
    Paragraph,
    Sample,
    Section,
    Stack,
    Table,
    Tag,
    Tone,
    to_html,
    to_markdown,
)
from slayer.reporting.estimate_report import estimate_blocks
from slayer.reporting.event_words import event_sentences
from slayer.reporting.figures import change_figure, heldout_figure, loss_figure, plan_figure
from slayer.reporting.layer_report import choice_blocks, layer_blocks
from slayer.reporting.layer_scores import read_layers
from slayer.reporting.numbers import MISSING, count, duration, fixed, interval, percent, share, short, size
from slayer.reporting.picture import picture, save_figure
from slayer.reporting.plan_rows import new_blocks_sentence, outside_sentence, plan_rows, stage_rows
from slayer.reporting.run_folder import HELDOUT, SOURCE_TOKENS, Record, RunFolder, read_run, source_names, stage_starts
from slayer.reporting.scores import SourceScore, proof_sentences, source_scores, verdict_sentence
from slayer.surgery.plan import LayerPlan

BITS_PER_BYTE = (
    "Bits per byte: how many bits the model needs to encode one byte of text that it has never seen. Lower is better, and models with "
    "different vocabularies can be compared. Base, start and result were scored on the same documents. Small print: 95 % intervals."
)
NO_SCORES = "This run has no scores of a result yet; what is known about it stands below."
SHARES_NOTE = (
    "Shares are of trained tokens: asked for in the configuration (of its first stage), planned over the whole run, and measured, which is the sum "
    "over metrics.jsonl."
)


def write_report(run_dir: Path) -> Path:
    """Write report.html, report.md and figures/ of a run folder from whatever it holds; returns the path of report.html."""
    document = report_document(read_run(run_dir))
    (run_dir / "report.md").write_text(to_markdown(document), encoding="utf-8")
    page = run_dir / "report.html"
    page.write_text(to_html(document), encoding="utf-8")
    return page


def report_document(run: RunFolder) -> Document:
    """The report as data. Figures are saved on the way."""
    scores, layers = source_scores(run.results), read_layers(run.path)
    sections = [
        ("What the model is made of", _plan_blocks(run)),
        ("Which layers matter", layer_blocks(layers, run.path) if layers else []),
        ("Learnt and forgotten", _score_blocks(run, scores)), ("Benchmarks", benchmark_blocks(run)),
        ("What moved in its predictions", shift_blocks(run)), ("Samples, before and after", _sample_blocks(run)),
        ("Training", _training_blocks(run, scores)), ("What happened on the way", _event_blocks(run)),
        ("What it costs", estimate_blocks(run.section("estimate"))), ("Text", _data_blocks(run)), ("Reproduce it", _reproduce_blocks(run)),
    ]  # fmt: skip
    lead = _headline(run, scores)
    if layers is not None and lead == [Paragraph(text=NO_SCORES)]:
        lead = []  # a folder of layer scores says what it found in their section
    return Document(
        kicker=f"slayer · {layers.model if layers else run.model_name}", title=run.name, lead=tuple(lead),
        sections=tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in sections if blocks),
    )  # fmt: skip


def _headline(run: RunFolder, scores: list[SourceScore]) -> list[Block]:
    blocks: list[Block] = []
    sentences = tuple(verdict_sentence(score) for score in scores if score.change_percent is not None) + benchmark_headlines(run)
    if not sentences:
        alone = any(score.result is not None for score in scores) or bool(task_rows(run.results))
        known = "One model was scored, beside no base: nothing is compared." if alone else NO_SCORES
        blocks.append(Paragraph(text=known))
    cards = [_score_card(score) for score in scores[:4] if score.change_percent is not None]
    training = run.section("training")
    trained, total = training.get("trained_parameters"), training.get("total_parameters")
    if trained is not None:
        cards.append(Card(name="trained", value=share(trained, total), note=f"{short(trained)} of {short(total)} parameters"))
    if training.get("tokens"):
        seconds = training.get("seconds")
        where = f" on {training['ranks']} × {training['device']}" if training.get("device") and training.get("ranks") else ""
        note = f"tokens in {count(training.get('steps'))} steps, {duration(seconds)}{where}"
        cards.append(Card(name="training", value=short(training["tokens"]), note=note))
    if cards:
        blocks.append(Cards(cards=tuple(cards)))
    return [*blocks, Bullets(items=sentences)] if sentences else blocks


def _score_card(score: SourceScore) -> Card:
    change = score.change_percent or 0.0
    tone: Tone = {"learnt": "good", "forgotten": "bad"}.get(score.verdict, "plain")  # type: ignore[assignment]
    purpose = "to learn" if score.role == "domain" else "to keep"
    span = f" 95 % interval {interval(score.change_interval_percent, unit=' %', signed=True)}." if score.change_interval_percent else ""
    verdict = f"{score.verdict[:1].upper()}{score.verdict[1:]}. " if score.verdict else ""
    note = f"{verdict}Bits per byte against the base.{span}"
    return Card(name=f"{score.source}, {purpose}", value=percent(change), note=note, tone=tone)


def _plan_blocks(run: RunFolder) -> list[Block]:
    plan, blocks = run.plan, list[Block]()
    if plan is not None:
        save_figure(plan_figure(plan), run.path / "figures", "plan")
        new, pruned = len(plan.new_indices), len(plan.pruned)
        warm_start = run.config.warm_start if run.config is not None else None
        start = f", which {new_blocks_sentence(plan, warm_start)}" if new else ""
        blocks.append(Paragraph(text=f"{plan.n_base} base layers − {pruned} pruned + {new} new blocks{start} = {plan.n_layers} layers."))
        trained = "Everything trains." if plan.trains_everything else f"{len(plan.trainable)} layers train, everything else stays as it was."
        if plan.stages:
            trained = f"What trains changes on the way, in {plan.n_stages} stages; what no stage names stays as it was."
        checked = run.section("training").get("frozen_tensors_checked")
        origin = "the base's" if warm_start is None else f"those of {warm_start}"
        hashes = f" The {count(checked)} frozen tensors were compared with {origin} by hash: equal." if checked else ""
        blocks += [Paragraph(text=trained + hashes), Stack(rows=tuple(plan_rows(plan)), png="figures/plan.png")]
        blocks += _stage_blocks(run, plan)
        blocks += choice_blocks(run.section("choice"))
    sentences = proof_sentences(run.section("proof"))
    return [*blocks, Heading(text="Before training"), Bullets(items=tuple(sentences))] if sentences else blocks


def _stage_blocks(run: RunFolder, plan: LayerPlan) -> list[Block]:
    """When which parts train, none where that never changes."""
    if not plan.stages:
        return []
    starts = {1: 1, **{stage: step for step, stage in stage_starts(run.training)}}
    parameters = [row.get("trained_parameters") for row in run.rows("stages")]
    rows = tuple(
        (str(row.number), row.until, row.parts, row.layers, short(row.trained_parameters), count(starts.get(row.number)) if run.training else MISSING)
        for row in stage_rows(plan, parameters)
    )
    head = ("stage", "lasts", "what trains, × its share of the learning rate", "layers", "parameters#", "first step#")
    return [
        Heading(text="What trains when"),
        Table(head=head, rows=rows),
        Paragraph(text=f"Outside the layers: {outside_sentence(plan)}.", quiet=True),
    ]


def _score_blocks(run: RunFolder, scores: list[SourceScore]) -> list[Block]:
    blocks: list[Block] = []
    if any(score.change_percent is not None for score in scores):
        figure = change_figure(scores)
        blocks.append(picture(figure, run.path, "learnt_and_forgotten", "Change of bits per byte per source against the base, with intervals"))
    if sum(bool(source_names((record,), HELDOUT)) for record in run.heldout) > 1:
        blocks.append(picture(heldout_figure(run.heldout, scores), run.path, "heldout", "Held-out bits per byte over the steps"))
    if scores:
        head = ("source", "role", "documents#", "base#", "start#", "result#", "change#", "verdict")
        blocks += [Table(head=head, rows=tuple(map(_score_row, scores))), Paragraph(text=BITS_PER_BYTE, quiet=True)]
    return blocks


def _score_row(score: SourceScore) -> tuple[Cell, ...]:
    tone: Tone = {"learnt": "good", "forgotten": "bad"}.get(score.verdict, "plain")  # type: ignore[assignment]
    return (
        score.source, Tag(text=score.role, tone=score.role), count(score.documents), Noted(text=fixed(score.base), note=_span(score.base_interval)),
        fixed(score.start), Noted(text=fixed(score.result), note=_span(score.result_interval)),
        Noted(text=percent(score.change_percent), note=_span(score.change_interval_percent, digits=1, unit=" %", signed=True)),
        Tag(text=score.verdict, tone=tone) if score.verdict else "–",
    )  # fmt: skip


def _span(bounds: Sequence[float] | None, *, digits: int = 3, unit: str = "", signed: bool = False) -> str:
    return interval(bounds, digits=digits, unit=unit, signed=signed) if bounds else ""


def _training_blocks(run: RunFolder, scores: list[SourceScore]) -> list[Block]:
    blocks: list[Block] = []
    if len(run.training) > 1:
        roles = {score.source: score.role for score in scores} or {row.get("name", ""): row.get("role", "") for row in run.rows("data")}
        blocks.append(picture(loss_figure(run.training, roles, run.events), run.path, "loss", "Training loss per source and learning rate"))
    training = run.section("training")
    if training:
        ranks = f"{training.get('ranks', 1)} × {training.get('device', '?')}"
        rows = (
            ("steps", count(training.get("steps"))), ("tokens", count(training.get("tokens"))), ("time", duration(training.get("seconds"))),
            ("tokens per second", count(training.get("tokens_per_second"))), ("devices", ranks),
        )  # fmt: skip
        blocks.append(Table(head=("", "#"), rows=rows))
    return blocks


def _event_blocks(run: RunFolder) -> list[Block]:
    sentences = event_sentences(run.events)
    return [Bullets(items=tuple(sentences))] if sentences else []


def _data_blocks(run: RunFolder) -> list[Block]:
    rows = run.rows("data")
    if not rows:
        return []
    measured = measured_shares(run.training, [str(row.get("name", "")) for row in rows])
    head = (
        "source", "role", "documents#", "held out#", "tokens#", "text#", "rows full#", "epochs#", "asked#", "planned#", "measured#",
    )  # fmt: skip
    blocks: list[Block] = [Table(head=head, rows=tuple(_data_row(row, measured) for row in rows)), Paragraph(text=SHARES_NOTE, quiet=True)]
    off = shares_off_plan(run)
    if off:
        text = f"The measured share of {' and of '.join(off)} is not the planned one: more than 0.1 % and one row apart."
        blocks.append(Bullets(items=(text,), warn=True))
    if (run.path / "data_report.html").is_file():
        text = "What was read and removed, how long the documents are, and rows as text:"
        blocks.append(Paragraph(text=text, link=Link(text="data_report.html", href="data_report.html")))
    return blocks


def _data_row(row: dict[str, Any], measured: dict[str, float]) -> tuple[str | Tag, ...]:
    role: Tone = "replay" if row.get("role") == "replay" else "domain"
    return (
        str(row.get("name", MISSING)), Tag(text=role, tone=role),
        "streamed" if row.get("streamed") else count(row.get("train_documents")), count(row.get("heldout_documents")),
        count(row.get("train_tokens")), size(row.get("train_bytes")),
        _share_2(row.get("fill")), fixed(row.get("epochs"), 2),
        _share_2(row.get("share")), _share_2(row.get("planned_share")), _share_2(measured.get(str(row.get("name")))),
    )  # fmt: skip


def _share_2(value: float | None) -> str:
    return percent(None if value is None else 100 * value, signed=False, digits=2)


def measured_shares(training: Sequence[Record], names: Sequence[str]) -> dict[str, float]:
    """Share of each source in the tokens that the training lines count; empty when they count none."""
    tokens = {name: sum(float(line.get(f"{SOURCE_TOKENS}{name}") or 0) for line in training) for name in names}
    total = sum(tokens.values())
    return {name: number / total for name, number in tokens.items()} if total else {}


def shares_off_plan(run: RunFolder) -> list[str]:
    """Sources of which a finished run served another share than was planned, by more than 0.1 % and one row; none before it is finished."""
    planned = {str(row.get("name", "")): row.get("planned_share") for row in run.rows("data")}
    measured = measured_shares(run.training, list(planned))
    if not measured or run.config is None or run.training[-1]["step"] != run.training[-1].get("steps"):
        return []
    tokens = sum(float(line.get(f"{SOURCE_TOKENS}{name}") or 0) for line in run.training for name in planned)
    allowed = 0.001 + run.config.data.sequence_length / tokens
    return [name for name, its_share in planned.items() if its_share is not None and abs(measured[name] - its_share) > allowed]


def _sample_blocks(run: RunFolder) -> list[Block]:
    blocks: list[Block] = []
    labels = (("the real text", "truth"), ("base model", "base"), ("after surgery, before training", "start"), (RESULT_LABEL, "result"))
    for row in run.rows("samples"):
        texts = tuple((label, str(row[key])) for label, key in labels if row.get(key))
        blocks.append(Sample(source=str(row.get("source", "")), prompt=str(row.get("prompt", "")), texts=texts))
    if blocks:
        blocks.insert(0, Paragraph(text="How each model goes on from the opening of a held-out document.", quiet=True))
    return blocks


def _reproduce_blocks(run: RunFolder) -> list[Block]:
    blocks: list[Block] = []
    command, versions = run.results.get("command"), run.section("versions")
    if command:
        blocks.append(Code(text=str(command)))
    if versions:
        blocks.append(Paragraph(text="Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".", quiet=True))
    if run.config is not None:
        blocks.append(Details(title="Configuration", text=(run.path / "config.yaml").read_text(encoding="utf-8")))
    return blocks
