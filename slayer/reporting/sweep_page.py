"""The page of a sweep: its points ranked with intervals, what each learnt and forgot, what seeds do, what failed, and what to type next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from slayer.data.cache import write_file
from slayer.reporting.document import Block, Bullets, Cell, Code, Document, Link, Noted, Paragraph, Section, Table, Tag, Tone, to_html, to_markdown
from slayer.reporting.figures import FrontierPoint, frontier_figure
from slayer.reporting.numbers import MISSING, duration, fixed, interval, percent, short
from slayer.reporting.picture import picture
from slayer.reporting.scores import RoleChange
from slayer.reporting.sweep_figures import course_figure
from slayer.reporting.sweep_points import Sweep, SweepPoint, read_sweep
from slayer.reporting.sweep_words import counts_sentence, front_sentence, front_word, next_commands, sentences, verdict

MOST_LABELS = 8
"""With more points the frontier shows their numbers instead of their values."""

RANKING_NOTE = (
    "Objective: lower is better. Small print: 95 % intervals, by a bootstrap over the held-out documents. Behind: the objective minus the best's on "
    "the same documents; p from a permutation test, adjusted for the number of runs (Holm). Learnt, forgotten: change of bits per byte on held-out "
    "domain and replay text against the base, mean over the sources; negative is better. All this is about the documents: what another seed would "
    "do, only other seeds can tell. Trained: parameters, and the time of the run. A point's number opens its report."
)
TONES: dict[str, Tone] = {"best": "good", "worse": "bad"}


def write_sweep_page(sweep_dir: Path) -> Path:
    """Write report.html, report.md and figures/ of a sweep folder; returns the path of report.html."""
    document = sweep_document(read_sweep(sweep_dir))
    write_file(sweep_dir / "report.md", to_markdown(document).encode())
    page = sweep_dir / "report.html"
    write_file(page, to_html(document).encode())
    return page


def sweep_document(sweep: Sweep) -> Document:
    """The page as data. Figures are saved on the way."""
    parts = (
        ("Ranking", _ranking_blocks(sweep)),
        ("Learnt against forgotten", _frontier_blocks(sweep)),
        ("The course of the search", _course_blocks(sweep)),
        ("Over seeds", _seed_blocks(sweep)),
        ("Without a score", _unfinished_blocks(sweep)),
        ("What to type next", _command_blocks(sweep)),
    )
    said = sentences(sweep)
    lead: list[Block] = [Paragraph(text=counts_sentence(sweep)), *([Bullets(items=tuple(said))] if said else [])]
    shown = tuple(Section(title=title, blocks=tuple(blocks)) for title, blocks in parts if blocks)
    return Document(kicker="slayer · sweep", title=sweep.folder.resolve().name, lead=tuple(lead), sections=shown)


def _ranking_blocks(sweep: Sweep) -> list[Block]:
    if not sweep.ranked:
        return []
    head = ("point", *_names(sweep), "objective#", "behind#", "beside the best", "learnt#", "forgotten#", "Pareto", "trained#")
    rows = tuple(_ranked_row(sweep, place) for place in range(len(sweep.ranked)))
    return [Table(head=head, rows=rows, strong=frozenset({0})), Paragraph(text=RANKING_NOTE, quiet=True)]


def _ranked_row(sweep: Sweep, place: int) -> tuple[Cell, ...]:
    point, standing, dominator = sweep.ranked[place], sweep.standings[place], sweep.dominators[place]
    word, front = verdict(standing, place), front_word(sweep, place)
    objective = Noted(text=fixed(point.objective, 4), note=interval(standing.interval, digits=4) if standing.interval else "")
    behind: Cell = MISSING
    if standing.behind is not None:
        behind = Noted(text=f"+{fixed(standing.behind, 4)}", note=interval(standing.behind_interval, digits=4, signed=True))
    beside = Noted(text=word, note=f"p {_p(standing.p)}" if standing.p is not None else "", tone=TONES.get(word, "plain"))
    return (
        _number(point, sweep), *_values(point, sweep), objective, behind, beside, _change(point.learnt), _change(point.forgotten),
        Tag(text=front, tone="good") if dominator is None and front != MISSING else front,
        Noted(text=short(point.trained_parameters), note=duration(point.seconds)),
    )  # fmt: skip


def _p(value: float | None) -> str:
    return MISSING if value is None else "< 0.001" if value < 0.001 else fixed(value, 3)


def _number(point: SweepPoint, sweep: Sweep) -> Cell:
    report = point.run_dir / "report.html"
    return Link(text=str(point.number), href=Path(os.path.relpath(report, sweep.folder)).as_posix()) if report.exists() else str(point.number)


def _names(sweep: Sweep) -> list[str]:
    return [key.rpartition(".")[2] for key in sweep.keys]


def _values(point: SweepPoint, sweep: Sweep) -> list[str]:
    return [point.overrides.get(key, MISSING) for key in sweep.keys]


def _change(change: RoleChange | None) -> Cell:
    if change is None:
        return MISSING
    return Noted(text=percent(change.percent), note=interval(change.interval_percent, signed=True) if change.interval_percent else "")


def _frontier_blocks(sweep: Sweep) -> list[Block]:
    few = len(sweep.ranked) <= MOST_LABELS
    shown = [
        FrontierPoint(
            label=sweep.label(point) if few else str(point.number), replay_percent=point.forgotten.percent, domain_percent=point.learnt.percent,
            replay_interval=point.forgotten.interval_percent, domain_interval=point.learnt.interval_percent, best=point is sweep.best,
        )
        for point in sweep.ranked
        if point.learnt is not None and point.forgotten is not None
    ]  # fmt: skip
    if not shown:
        return []
    numbers = "" if few else "Numbers are those of the points in the table. "
    note = f"{numbers}Bars are 95 % intervals. The dashed line joins the runs that no other run beats on both counts."
    blocks: list[Block] = [picture(frontier_figure(shown), sweep.folder, "frontier", "What each run learnt against what it forgot")]
    front = front_sentence(sweep)
    return [*blocks, *([Paragraph(text=front)] if front else []), Paragraph(text=note, quiet=True)]


def _course_blocks(sweep: Sweep) -> list[Block]:
    if not sweep.search or len(sweep.ranked) < 2:
        return []
    trials = sorted((point.number, point.objective) for point in sweep.ranked if point.objective is not None)
    figure = course_figure([number for number, _ in trials], [objective for _, objective in trials], sweep.ranked[0].objective_name)
    return [picture(figure, sweep.folder, "course", "The objective of each trial and the best so far")]


def _seed_blocks(sweep: Sweep) -> list[Block]:
    if not sweep.settings:
        return []
    rows: list[tuple[Cell, ...]] = []
    for setting in sweep.settings:
        values, spread = [point.objective for point in setting.points if point.objective is not None], setting.spread
        mean: Cell = fixed(sum(values) / len(values), 4)
        if spread is not None:
            mean = Noted(text=fixed(spread.mean, 4), note=interval(spread.interval, digits=4))
        points = ", ".join(str(point.number) for point in setting.points)
        rows.append((setting.label, str(len(values)), mean, fixed(spread.deviation, 4) if spread else MISSING, _range(values), points))
    note = "Runs that differ in nothing but the seed. Small print: 95 % interval of the mean over seeds (Student's t)."
    head = ("setting", "seeds#", "mean objective#", "standard deviation#", "lowest to highest#", "points, best first")
    return [Table(head=head, rows=tuple(rows), strong=frozenset({0})), Paragraph(text=note, quiet=True)]


def _range(values: Sequence[float]) -> str:
    return interval((min(values), max(values)), digits=4)


def _unfinished_blocks(sweep: Sweep) -> list[Block]:
    if not sweep.others:
        return []
    with_jobs = any(point.job for point in sweep.others)
    head = ("point", *_names(sweep), "status", *(("job",) if with_jobs else ()), "what it said", "time#")
    tones: dict[str, Tone] = {"failed": "bad", "running": "good", "finished": "good"}
    rows = tuple(
        (
            _number(point, sweep), *_values(point, sweep), Tag(text=point.status, tone=tones.get(point.status, "plain")),
            *((point.job or MISSING,) if with_jobs else ()), point.error or MISSING, duration(point.seconds),
        )
        for point in sweep.others
    )  # fmt: skip
    note = "The same command again tries what failed once more and goes on with the rest; finished runs are not made again."
    return [Table(head=head, rows=rows), Paragraph(text=note, quiet=True)]


def _command_blocks(sweep: Sweep) -> list[Block]:
    commands = next_commands(sweep)
    return [Code(text="\n\n".join(f"# {purpose}\n{command}" for command, purpose in commands))] if commands else []
