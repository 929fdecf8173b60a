"""The report of a run: report.html, one self-contained file, and report.md with the same content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slayer.reporting.document import (
    RESULT_LABEL,
    Block,
    Bullets,
    Card,
    Cards,
    Code,
    Details,
    Document,
    Heading,
    Paragraph,
    Picture,
    Sample,
    Section,
    Stack,
    Table,
    Tag,
    Tone,
    to_html,
    to_markdown,
)
from slayer.reporting.figures import Figure, change_figure, heldout_figure, inline_svg, loss_figure, plan_figure, save_figure
from slayer.reporting.numbers import count, duration, fixed, interval, percent, share, short
from slayer.reporting.plan_rows import new_blocks_sentence, plan_rows
from slayer.reporting.run_folder import RunFolder, read_run
from slayer.reporting.scores import SourceScore, proof_sentences, source_scores, verdict_sentence

BITS_PER_BYTE = (
    "Bits per byte: how many bits the model needs to encode one byte of text that it has never seen. Lower is better, and models with "
    "different vocabularies can be compared. Base, start and result were scored on the same documents."
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
    scores = source_scores(run.results)
    sections = [
        ("What the model is made of", _plan_blocks(run)), ("Learnt and forgotten", _score_blocks(run, scores)),
        ("Samples, before and after", _sample_blocks(run)), ("Training", _training_blocks(run, scores)),
        ("Text", _data_blocks(run)), ("Reproduce it", _reproduce_blocks(run)),
    ]  # fmt: skip
    return Document(
        kicker=f"slayer · {run.model_name}", title=run.name, lead=tuple(_headline(run, scores)),
        sections=tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in sections if blocks),
    )  # fmt: skip


def _headline(run: RunFolder, scores: list[SourceScore]) -> list[Block]:
    blocks: list[Block] = []
    sentences = tuple(verdict_sentence(score) for score in scores if score.change_percent is not None)
    if not sentences:
        blocks.append(Paragraph(text="This run has no scores of a result yet; what is known about it stands below."))
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


def _picture(run: RunFolder, figure: Figure, name: str, description: str) -> Picture:
    save_figure(figure, run.path / "figures", name)
    return Picture(svg=inline_svg(figure, name, description), png=f"figures/{name}.png", description=description)


def _plan_blocks(run: RunFolder) -> list[Block]:
    plan, blocks = run.plan, list[Block]()
    if plan is not None:
        save_figure(plan_figure(plan), run.path / "figures", "plan")
        new, pruned = len(plan.new_indices), len(plan.pruned)
        start = f", which {new_blocks_sentence(plan)}" if new else ""
        blocks.append(Paragraph(text=f"{plan.n_base} base layers − {pruned} pruned + {new} new blocks{start} = {plan.n_layers} layers."))
        trained = "Everything trains." if plan.trains_everything else f"{len(plan.trainable)} layers train, everything else stays as it was."
        checked = run.section("training").get("frozen_tensors_checked")
        hashes = f" The {count(checked)} frozen tensors were compared with the base's by hash: equal." if checked else ""
        blocks += [Paragraph(text=trained + hashes), Stack(rows=tuple(plan_rows(plan)), png="figures/plan.png")]
    sentences = proof_sentences(run.section("proof"))
    return [*blocks, Heading(text="Before training"), Bullets(items=tuple(sentences))] if sentences else blocks


def _score_blocks(run: RunFolder, scores: list[SourceScore]) -> list[Block]:
    blocks: list[Block] = []
    if any(score.change_percent is not None for score in scores):
        figure = change_figure(scores)
        blocks.append(_picture(run, figure, "learnt_and_forgotten", "Change of bits per byte per source against the base, with intervals"))
    if len(run.heldout) > 1:
        blocks.append(_picture(run, heldout_figure(run.heldout, scores), "heldout", "Held-out bits per byte over the steps"))
    if scores:
        head = ("source", "role", "documents#", "base#", "start#", "result#", "95 % interval#", "change#", "95 % interval#", "verdict")
        blocks += [Table(head=head, rows=tuple(map(_score_row, scores))), Paragraph(text=BITS_PER_BYTE, quiet=True)]
    return blocks


def _score_row(score: SourceScore) -> tuple[str | Tag, ...]:
    tone: Tone = {"learnt": "good", "forgotten": "bad"}.get(score.verdict, "plain")  # type: ignore[assignment]
    return (
        score.source, Tag(text=score.role, tone=score.role), count(score.documents), fixed(score.base), fixed(score.start), fixed(score.result),
        interval(score.result_interval, digits=3), percent(score.change_percent), interval(score.change_interval_percent, unit=" %", signed=True),
        Tag(text=score.verdict, tone=tone) if score.verdict else "–",
    )  # fmt: skip


def _training_blocks(run: RunFolder, scores: list[SourceScore]) -> list[Block]:
    blocks: list[Block] = []
    if len(run.training) > 1:
        roles = {score.source: score.role for score in scores} or {row.get("name", ""): row.get("role", "") for row in run.rows("data")}
        blocks.append(_picture(run, loss_figure(run.training, roles), "loss", "Training loss per source and learning rate"))
    training = run.section("training")
    if training:
        ranks = f"{training.get('ranks', 1)} × {training.get('device', '?')}"
        rows = (
            ("steps", count(training.get("steps"))), ("tokens", count(training.get("tokens"))), ("time", duration(training.get("seconds"))),
            ("tokens per second", count(training.get("tokens_per_second"))), ("devices", ranks),
        )  # fmt: skip
        blocks.append(Table(head=("", "#"), rows=rows))
    return blocks


def _data_blocks(run: RunFolder) -> list[Block]:
    rows = run.rows("data")
    if not rows:
        return []
    head = ("source", "role", "documents#", "held out#", "tokens#", "bytes#", "rows#", "rows full#", "share of training#", "epochs#")
    return [Table(head=head, rows=tuple(map(_data_row, rows)))]


def _data_row(row: dict[str, Any]) -> tuple[str | Tag, ...]:
    role: Tone = "replay" if row.get("role") == "replay" else "domain"
    return (
        str(row.get("name", "–")), Tag(text=role, tone=role), count(row.get("train_documents")), count(row.get("heldout_documents")),
        count(row.get("train_tokens")), count(row.get("train_bytes")), count(row.get("rows")), share(row.get("fill"), 1),
        share(row.get("share"), 1), fixed(row.get("epochs"), 2),
    )  # fmt: skip


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
