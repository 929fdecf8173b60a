"""The page that puts models side by side: scores, what each learnt and forgot, and what the factors between them explain."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from slayer.reporting.benchmark_report import TONES
from slayer.reporting.benchmark_scores import number, score, span
from slayer.reporting.benchmark_table import print_sentences
from slayer.reporting.console import open_console
from slayer.reporting.document import Block, Bullets, Cell, Document, Heading, Link, Noted, Paragraph, Section, Table, to_html, to_markdown
from slayer.reporting.figures import FrontierPoint, frontier_figure
from slayer.reporting.multifaceted_report import multifaceted_blocks
from slayer.reporting.numbers import MISSING, interval, percent
from slayer.reporting.picture import picture
from slayer.reporting.study_factors import METHOD, MOST_SENTENCES, factor_blocks, factor_sentences
from slayer.reporting.study_figures import matrix_figure
from slayer.reporting.study_scores import (
    Balance,
    ModelScore,
    ScoreFacts,
    Study,
    StudyModel,
    differing_factors,
    level_of,
    read_study,
    study_of,
)

MOST_COLUMNS = 6
"""Scores beside each other in one table."""
MOST_NAMES = 6
"""With more models the frontier shows their numbers instead of their names."""
TABLE_NOTE = (
    "The best of each column is in bold; green and red are scores that got better or worse than the base's by more than chance would do (p < "
    "0.05 after Holm, within each model). Small print: 95 % intervals. Learnt and forgotten: mean change of bits per byte on domain and on "
    "replay text against the base; bits per byte are better when they are lower."
)


def write_study_page(folder: Path) -> Path:
    """Write report.html, report.md and figures/ beside a study.json; returns the path of report.html."""
    document = study_document(read_study(folder), folder)
    (folder / "report.md").write_text(to_markdown(document), encoding="utf-8")
    page = folder / "report.html"
    page.write_text(to_html(document), encoding="utf-8")
    return page


def study_document(study: Study, folder: Path) -> Document:
    """The page as data. Figures are saved on the way."""
    sections = [
        ("What was learnt and what was forgotten", _frontier_blocks(study, folder)),
        ("Scores", _score_blocks(study, folder)),
        *((f"What {factor} explains", factor_blocks(study, factor, folder)) for factor in study.factors),
        ("Domains one after the other", _sequence_blocks(study, folder)),
        ("How scores and models go together", multifaceted_blocks(study, folder)),
    ]
    shown = tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in sections if blocks)
    if study.factors:
        shown = (*shown, Section(title="How this was tested", blocks=(Paragraph(text=METHOD, quiet=True),)))
    kicker = "slayer · comparison" if len(study.models) <= 2 else "slayer · study"
    return Document(kicker=kicker, title=_title(study, folder), lead=tuple(_lead(study)), sections=shown)


def _title(study: Study, folder: Path) -> str:
    return " and ".join(model.name for model in study.models) if len(study.models) == 2 else folder.resolve().name


def _lead(study: Study) -> list[Block]:
    if not study.models:
        return [Paragraph(text="There are no scored models here yet.")]
    several = f"{len(study.models)} models" if len(study.models) > 1 else "One model"
    beside = f" beside their common base, {study.base}" if study.base else ""
    differ = differing_factors(study.models)
    by = f"; they differ in {_listed(differ)}" if differ and len(study.models) > 1 else ""
    sentences = []
    for role, balances in (("domain", [model.learnt for model in study.models]), ("replay", [model.forgotten for model in study.models])):
        known = [(balance.percent, place) for place, balance in enumerate(balances) if balance is not None]
        if len(known) > 1:
            place = min(known)[1]
            sentences.append(f"Best on {role} text: {study.models[place].name}, {_balance_words(balances[place])} against the base.")
    for factor in study.factors:
        sentences += factor_sentences(study, factor)[:1]
    lead: list[Block] = [Paragraph(text=f"{several}{beside}{by}.")]
    return [*lead, Bullets(items=tuple(sentences))] if sentences else lead


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _balance_words(balance: Balance | None) -> str:
    if balance is None:
        return MISSING
    known = f" (95 % interval {interval(balance.interval_percent, unit=' %', signed=True)})" if balance.interval_percent else ""
    return f"{percent(balance.percent)} bits per byte{known}"


def _series(study: Study, model: StudyModel) -> str:
    factors = [name for name in study.factors or differing_factors(study.models) if name != "seed"]
    for factor in factors:
        if 1 < len({level_of(other, factor) for other in study.models}) <= MOST_NAMES:
            return f"{factor}={level_of(model, factor) or MISSING}"
    return ""


def _frontier_blocks(study: Study, folder: Path) -> list[Block]:
    few = len(study.models) <= MOST_NAMES
    points = [
        FrontierPoint(
            label=model.name if few else str(place), replay_percent=model.forgotten.percent, domain_percent=model.learnt.percent,
            replay_interval=model.forgotten.interval_percent, series="" if few else _series(study, model),
            domain_interval=model.learnt.interval_percent,
        )
        for place, model in enumerate(study.models, start=1)
        if model.learnt is not None and model.forgotten is not None
    ]  # fmt: skip
    if not points:
        return []
    figure = frontier_figure(points)
    numbers = "" if few else "Numbers are those of the models in the table below. "
    note = f"{numbers}Bars are 95 % intervals. The dashed line joins the models that no other model beats on both counts."
    return [picture(figure, folder, "frontier", "What each model learnt against what it forgot"), Paragraph(text=note, quiet=True)]


def _score_blocks(study: Study, folder: Path) -> list[Block]:
    blocks: list[Block] = []
    balanced = any(model.learnt or model.forgotten for model in study.models)
    for title, chosen in (("To learn", True), ("To keep", False)):
        columns = [facts for facts in study.scores if facts.is_domain == chosen]
        parts = [columns[place : place + MOST_COLUMNS] for place in range(0, len(columns), MOST_COLUMNS)]
        for number_, part in enumerate(parts):
            balance = ("learnt" if chosen else "forgotten") if balanced and number_ == 0 else ""
            blocks += [*([Heading(text=title)] if number_ == 0 else []), _score_table(study, part, balance, folder)]
    return [*blocks, Paragraph(text=TABLE_NOTE, quiet=True)] if blocks else []


def _score_table(study: Study, columns: Sequence[ScoreFacts], balance: str, folder: Path) -> Table:
    head = ("#", "model", *((f"{balance}#",) if balance else ()), *(f"{facts.label}#" for facts in columns))
    units: tuple[Cell, ...] = ("", "", *(("",) if balance else ()), *(Noted(text="", note=_unit(facts)) for facts in columns))
    rows: list[tuple[Cell, ...]] = [units]
    if study.base:
        base = (Noted(text=score(value), note="") if (value := base_value(study, facts)) is not None else MISSING for facts in columns)
        rows.append(("", study.base, *((MISSING,) if balance else ()), *base))
    best = {facts.name: study.best(facts) for facts in columns}
    for place, model in enumerate(study.models, start=1):
        total = model.learnt if balance == "learnt" else model.forgotten
        cells = (_score_cell(model.scores.get(facts.name), model.name in best[facts.name]) for facts in columns)
        rows.append((str(place), _model_cell(model, folder), *((_balance_cell(total),) if balance else ()), *cells))
    return Table(head=head, rows=tuple(rows))


def _unit(facts: ScoreFacts) -> str:
    chance = f", chance {facts.chance:.2f}" if facts.chance is not None else ""
    return f"{facts.metric}{chance}"


def _model_cell(model: StudyModel, folder: Path) -> Cell:
    report = Path(model.folder) / "report.html" if model.folder else None
    if report is not None and report.is_file():
        return Link(text=model.name, href=Path(os.path.relpath(report, folder)).as_posix())
    return model.name


def _score_cell(value: ModelScore | None, best: bool) -> Cell:
    if value is None:
        return MISSING
    return Noted(text=score(value.value), note=span(value.interval) if value.interval else "", tone=TONES.get(value.verdict, "plain"), best=best)


def _balance_cell(balance: Balance | None) -> Cell:
    if balance is None:
        return MISSING
    return Noted(text=percent(balance.percent), note=interval(balance.interval_percent, signed=True) if balance.interval_percent else "")


def base_value(study: Study, facts: ScoreFacts) -> float | None:
    """The base's score, which every model's change was taken from."""
    for model in study.models:
        value = model.scores.get(facts.name)
        if value is not None and value.change is not None:
            return value.value - value.change
    return None


def print_study(study: Mapping[str, Any], *, console: Console | None = None) -> None:
    """The same table in the terminal: a block of columns for as many scores as fit, models by number after the first."""
    console = console or open_console()
    read = study_of(study)
    if not read.models:
        return
    console.print()
    beside = f" beside {read.base}" if read.base else ""
    console.print(Text.assemble(("Study", "bold"), f"  {len(read.models)} models{beside}" if len(read.models) > 1 else f"  1 model{beside}"))
    balanced = any(model.learnt or model.forgotten for model in read.models)
    table = _plain_table(("model", 0), *((("learnt", 1), ("forgotten", 1)) if balanced else ()))
    for place, model in enumerate(read.models, start=1):
        totals = (percent(balance.percent) if balance else MISSING for balance in (model.learnt, model.forgotten))
        table.add_row(str(place), Text(model.name), *(totals if balanced else ()))
    console.print(table)
    if balanced:
        console.print(Text("learnt, forgotten: change of bits per byte on domain and replay text (negative is better)", style="dim"))
    for columns in _fitting(read.scores, console.width - 6):
        console.print(_console_scores(read, columns))
    if read.base:
        console.print(Text("+ better, − worse than the base (p < 0.05 after Holm); no sign: no change detected", style="dim"))
    for factor in read.factors:
        print_sentences(factor_sentences(read, factor)[:MOST_SENTENCES], console)
    print_sentences(sequence_sentences(read.sequence), console)
    console.print()


def _plain_table(*columns: tuple[str, int]) -> RichTable:
    table = RichTable(box=None, pad_edge=False, padding=(0, 1), header_style="dim")
    table.add_column("#", justify="right", no_wrap=True)
    for name, is_number in columns:
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    return table


def _fitting(scores: Sequence[ScoreFacts], width: int) -> list[list[ScoreFacts]]:
    blocks: list[list[ScoreFacts]] = [[]]
    used = 0
    for facts in sorted(scores, key=lambda facts: not facts.is_domain):
        needs = max(len(facts.label), 7) + 2
        if blocks[-1] and used + needs > width:
            blocks, used = [*blocks, []], 0
        blocks[-1].append(facts)
        used += needs
    return [block for block in blocks if block]


def _console_scores(study: Study, columns: Sequence[ScoreFacts]) -> RichTable:
    table = _plain_table(*((facts.label, 1) for facts in columns))
    table.add_row("", *(Text(f"{'higher' if facts.higher_is_better else 'lower'} ", style="dim") for facts in columns))
    if study.base:
        table.add_row("base", *(f"{score(base_value(study, facts))} " for facts in columns), style="dim")
    best = {facts.name: study.best(facts) for facts in columns}
    for place, model in enumerate(study.models, start=1):
        table.add_row(str(place), *(_console_score(model.scores.get(facts.name), model.name in best[facts.name]) for facts in columns))
    table.add_row("best", *(", ".join(_numbers(study, best[facts.name])) + " " for facts in columns), style="dim")
    return table


def _numbers(study: Study, names: set[str]) -> list[str]:
    return [f"#{place}" for place, model in enumerate(study.models, start=1) if model.name in names]


def _console_score(value: ModelScore | None, best: bool) -> Text:
    if value is None:
        return Text(f"{MISSING} ")
    mark, colour = {"learnt": ("+", "green"), "forgotten": ("−", "red")}.get(value.verdict, (" ", ""))
    return Text(f"{score(value.value)}{mark}", style=f"bold {colour}".strip() if best else colour)


def _sequence_blocks(study: Study, folder: Path) -> list[Block]:
    sequence = study.sequence
    matrix: list[list[float | None]] = [[number(value) for value in line] for line in sequence.get("matrix") or []]
    if not matrix:
        return []
    order, tasks = ([str(name).removeprefix("heldout/") for name in sequence.get(key) or []] for key in ("order", "tasks"))
    rows = [f"after {name}" for name in order] or [f"after {place}" for place in range(1, len(matrix) + 1)]
    figure = matrix_figure(matrix, rows, tasks, "Bits per byte on every domain after each step", signed=False)
    note = (
        "A row is the model after one more domain, a column its bits per byte on a domain's text, lower is better. OP and BWT: arXiv 1706.08840, "
        "as in TRACE, arXiv 2310.06762. FG: arXiv 2308.08747."
    )
    return [
        Bullets(items=tuple(sequence_sentences(sequence))), picture(figure, folder, "sequence", "Bits per byte on every domain after each step"),
        Paragraph(text=note, quiet=True),
    ]  # fmt: skip


def sequence_sentences(sequence: Mapping[str, Any]) -> list[str]:
    """OP, BWT and FG of a sequence of domains in words."""
    op, bwt, fg = number(sequence.get("op")), number(sequence.get("bwt")), number(sequence.get("fg_percent"))
    sentences = [] if op is None else [f"Overall performance (OP): {score(op)} bits per byte on average over all domains, after the last one."]
    if bwt is not None:
        kind = "earlier domains were partly forgotten" if bwt < 0 else "earlier domains gained from later ones" if bwt > 0 else "nothing changed"
        sentences.append(
            f"Backward transfer (BWT): {score(bwt, signed=True)} between the moment a domain was learnt and the end: {kind} (below 0: forgotten)."
        )
    if fg is not None:
        moved = "was lost" if fg >= 0 else "was gained"
        sentences.append(f"Forgetting (FG): {percent(abs(fg), signed=False)} of the base's scores {moved}, on average over the sequence.")
    return sentences
