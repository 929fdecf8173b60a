"""The page of a sweep: every point beside the others, what it learnt, what it forgot, and which one is best."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from slayer.reporting.console import open_console
from slayer.reporting.document import Block, Cell, Document, Link, Paragraph, Section, Table, Tag, Tone, to_html, to_markdown
from slayer.reporting.figures import FrontierPoint, frontier_figure
from slayer.reporting.numbers import duration, fixed, interval, percent, short
from slayer.reporting.picture import picture
from slayer.reporting.run_folder import read_json
from slayer.reporting.scores import RoleChange, role_change, source_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepPoint:
    """One run of a sweep. `overrides` maps keys to values; objective: lower is better."""

    number: int
    run: str
    run_dir: Path
    overrides: Mapping[str, str]
    status: str
    error: str
    seconds: float | None
    objective: float | None
    learnt: RoleChange | None
    forgotten: RoleChange | None
    trained_parameters: float | None


def read_points(sweep_dir: Path) -> list[SweepPoint]:
    """The points of a sweep folder in order of their numbers; a point file that cannot be read is left out."""
    values = [read_json(path) for path in (sweep_dir / "points").glob("*.json")]
    return sorted((_point(value, sweep_dir) for value in values if value), key=lambda point: point.number)


def _point(values: Mapping[str, Any], sweep_dir: Path) -> SweepPoint:
    run_dir = Path(str(values.get("run_dir") or values.get("run") or ""))
    if not run_dir.exists() and (sweep_dir.parent / run_dir.name).exists():
        # The folder was moved or is read from elsewhere: runs lie beside their sweep.
        run_dir = sweep_dir.parent / run_dir.name
    results = read_json(run_dir / "results.json")
    scores = source_scores(results)
    training = results.get("training")
    overrides = dict(item.partition("=")[::2] for item in values.get("overrides") or [])
    return SweepPoint(
        number=int(values.get("number", 0)), run=str(values.get("run", run_dir.name)), run_dir=run_dir, overrides=overrides,
        status=str(values.get("status", "running")), error=str(values.get("error") or ""), seconds=values.get("seconds"),
        objective=values.get("objective"), learnt=role_change(scores, "domain"), forgotten=role_change(scores, "replay"),
        trained_parameters=training.get("trained_parameters") if isinstance(training, dict) else None,
    )  # fmt: skip


def swept_keys(points: Sequence[SweepPoint]) -> list[str]:
    """Override keys whose value is not the same at all points, in order of first appearance."""
    keys = dict.fromkeys(key for point in points for key in point.overrides)
    return [key for key in keys if len({point.overrides.get(key) for point in points}) > 1]


def best_point(points: Sequence[SweepPoint]) -> SweepPoint | None:
    """The finished point with the lowest objective."""
    finished = [point for point in points if point.status == "finished" and point.objective is not None]
    return min(finished, key=lambda point: (point.objective, point.number), default=None)


def _label(point: SweepPoint, keys: Sequence[str]) -> str:
    return " ".join(f"{key.rpartition('.')[2]}={point.overrides.get(key, '–')}" for key in keys) or point.run


def write_sweep_page(sweep_dir: Path) -> Path:
    """Write report.html, report.md and figures/ of a sweep folder; returns the path of report.html."""
    points = read_points(sweep_dir)
    keys, best = swept_keys(points), best_point(points)
    done = sum(point.status == "finished" for point in points)
    failed = sum(point.status == "failed" for point in points)
    running = len(points) - done - failed
    lead: list[Block] = [Paragraph(text=f"{done} of {len(points)} runs finished" + _also(failed, "failed") + _also(running, "still running") + ".")]
    if best is not None:
        lead.append(Paragraph(text=f"Best: {_label(best, keys)}, with the lowest objective, {fixed(best.objective, 4)}."))
    sections = [Section(title="Runs", blocks=tuple(_table_blocks(points, keys, best, sweep_dir)))]
    frontier = _frontier_blocks(points, keys, best, sweep_dir)
    if frontier:
        sections.insert(0, Section(title="Learnt against forgotten", blocks=tuple(frontier)))
    document = Document(kicker="slayer · sweep", title=sweep_dir.resolve().name, lead=tuple(lead), sections=tuple(sections))
    (sweep_dir / "report.md").write_text(to_markdown(document), encoding="utf-8")
    page = sweep_dir / "report.html"
    page.write_text(to_html(document), encoding="utf-8")
    return page


def _also(number: int, what: str) -> str:
    return f", {number} {what}" if number else ""


def _frontier_blocks(points: Sequence[SweepPoint], keys: Sequence[str], best: SweepPoint | None, sweep_dir: Path) -> list[Block]:
    shown = [
        FrontierPoint(
            label=_label(point, keys), replay_percent=point.forgotten.percent, domain_percent=point.learnt.percent,
            replay_interval=point.forgotten.interval_percent, domain_interval=point.learnt.interval_percent, best=point is best,
        )
        for point in points
        if point.learnt is not None and point.forgotten is not None
    ]  # fmt: skip
    if not shown:
        return []
    note = "Bars are 95 % intervals. The dashed line joins the runs that no other run beats on both counts."
    return [picture(frontier_figure(shown), sweep_dir, "frontier", "What each run learnt against what it forgot"), Paragraph(text=note, quiet=True)]


def _table_blocks(points: Sequence[SweepPoint], keys: Sequence[str], best: SweepPoint | None, sweep_dir: Path) -> list[Block]:
    head = ("point", *keys, "status", "domain text#", "95 % interval#", "replay text#", "95 % interval#", "objective#", "trained#", "time#")
    rows = tuple(_table_row(point, keys, best, sweep_dir) for point in points)
    strong = frozenset(place for place, point in enumerate(points) if point is best)
    note = (
        "Domain and replay: change of held-out bits per byte against the base, mean over the sources; negative is better. "
        "A point's number opens its report."
    )
    blocks: list[Block] = [Table(head=head, rows=rows, strong=strong), Paragraph(text=note, quiet=True)]
    broken = tuple((str(point.number), _label(point, keys), point.error or "no message") for point in points if point.status == "failed")
    return [*blocks, Table(head=("point", "failed run", "error"), rows=broken)] if broken else blocks


def _table_row(point: SweepPoint, keys: Sequence[str], best: SweepPoint | None, sweep_dir: Path) -> tuple[Cell, ...]:
    tones: dict[str, Tone] = {"finished": "good", "failed": "bad"}
    report = point.run_dir / "report.html"
    link: Cell = Link(text=str(point.number), href=Path(os.path.relpath(report, sweep_dir)).as_posix()) if report.exists() else str(point.number)
    status = "best" if point is best else point.status
    return (
        link, *(point.overrides.get(key, "–") for key in keys), Tag(text=status, tone=tones.get(point.status, "plain")),
        *_change_cells(point.learnt), *_change_cells(point.forgotten), fixed(point.objective, 4), short(point.trained_parameters),
        duration(point.seconds),
    )  # fmt: skip


def _change_cells(change: RoleChange | None) -> tuple[str, str]:
    return (percent(change.percent), interval(change.interval_percent, signed=True)) if change else ("–", "–")


def print_sweep(sweep_dir: Path, *, console: Console | None = None) -> None:
    """The same table in the terminal."""
    console = console or open_console()
    points = read_points(sweep_dir)
    keys, best = swept_keys(points), best_point(points)
    table = RichTable(box=None, pad_edge=False, padding=(0, 1), header_style="dim", title="Sweep", title_justify="left", title_style="bold")
    table.add_column("#", justify="right")
    for key in keys:
        table.add_column(key.rpartition(".")[2], overflow="fold", no_wrap=len(keys) <= 2)
    for name in ("learnt", "forgotten", "objective", "trained"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", overflow="fold", max_width=24)
    for point in points:
        is_best = point is best
        status = point.error.partition("\n")[0] or "failed" if point.status == "failed" else "best" if is_best else point.status
        style = "bold green" if is_best else "red" if point.status == "failed" else ""
        changes = (_change_cells(change)[0] for change in (point.learnt, point.forgotten))
        table.add_row(
            str(point.number), *(Text(point.overrides.get(key, "–")) for key in keys), *changes,
            fixed(point.objective, 4), short(point.trained_parameters), Text(status), style=style,
        )  # fmt: skip
    console.print(table)
