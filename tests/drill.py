"""python -m tests.drill: is a run still itself after anything that a machine can do to it?

    python -m tests.drill --kills 100 [--ranks 1,2] [--steps 48] [--seed 0]
    python -m tests.drill --signals
    python -m tests.drill --goodput --minutes 10 --fault-every 30 --output DIR

The first kills real runs at random moments and compares each, bit for bit, with one that nobody touched; exit code 0 only when all kills
were survived. The second sends each of four signals to each rank in each phase, and lets the run go on. The third leaves a run to its
launcher while something breaks every so many seconds, and measures what that costs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))

from drill_figure import write_goodput_figure  # noqa: E402
from drill_goodput import Goodput, run_goodput  # noqa: E402
from drill_kills import MOMENTS, Outcome, run_drill  # noqa: E402
from drill_phases import PHASES  # noqa: E402
from drill_server import RankServers  # noqa: E402
from drill_signals import all_cases, run_signals  # noqa: E402
from rich.table import Table  # noqa: E402

from slayer.reporting.console import open_console  # noqa: E402
from slayer.reporting.progress import progress_bar  # noqa: E402


def main(arguments: list[str]) -> int:
    """Exit code: 0 when nothing was lost, 1 when something was."""
    parser = argparse.ArgumentParser(prog="python -m tests.drill", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="SIGKILLs at random moments")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks of the runs that are killed")
    parser.add_argument("--steps", type=int, default=48, help="steps of each of these runs")
    parser.add_argument("--signals", action="store_true", help="SIGTERM, SIGINT, SIGUSR1, SIGUSR2 × phases × ranks")
    parser.add_argument("--goodput", action="store_true", help="faults in a run under its launcher, and what they cost")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long that run is (the run to compare with comes on top)")
    parser.add_argument("--fault-every", type=float, default=30.0, metavar="SECONDS", help="from one fault to the next")
    parser.add_argument("--output", type=Path, default=Path("drill"), metavar="DIR", help="folder of goodput.json, goodput.svg and goodput.png")
    parser.add_argument("--seed", type=int, default=0, help="what is drawn: configurations, moments, who is killed")
    asked = parser.parse_args(arguments)
    if (asked.kills is not None) + asked.goodput + asked.signals != 1:
        parser.error("type --kills N, --signals or --goodput")
    return measure(asked) if asked.goodput else send_signals() if asked.signals else kill(asked)


def kill(asked: argparse.Namespace) -> int:
    """The kill drill, with its tables."""
    console, outcomes, folder = open_console(), list[Outcome](), Path(tempfile.mkdtemp(prefix="drill-"))
    ranks = [int(world) for world in asked.ranks.split(",")]
    with progress_bar("drill", console) as show, RankServers() as servers:
        made = 0

        def on_kill() -> None:
            nonlocal made
            made += 1
            show("kills", made, asked.kills)

        show("kills", 0, asked.kills)
        for outcome in run_drill(servers, folder, kills=asked.kills, ranks=ranks, steps=asked.steps, seed=asked.seed, on_kill=on_kill):
            outcomes.append(outcome)
            if outcome.problems:
                console.print(f"[bold red]{outcome.name}[/]: {len(outcome.problems)} problems; what is left of it is in {folder}", soft_wrap=True)
                for problem in outcome.problems[:10]:
                    console.print(f"    {problem}", soft_wrap=True, markup=False)
    if not any(outcome.problems for outcome in outcomes):
        shutil.rmtree(folder)
    console.print(runs_table(outcomes))
    console.print(moments_table(outcomes))
    survived = sum(len(outcome.kills) for outcome in outcomes if not outcome.problems)
    console.print(
        f"[bold]{survived} of {asked.kills}[/] kills survived: weights, moments, data order, loss log and model are those of the untouched runs"
    )
    return 0 if survived >= asked.kills else 1


def send_signals() -> int:
    """The signal matrix, with its table."""
    console, cases, folder = open_console(), all_cases(), Path(tempfile.mkdtemp(prefix="drill-"))
    outcomes = []
    with progress_bar("drill", console) as show, RankServers() as servers:
        for outcome in run_signals(servers, folder, cases, lambda: show("signals", len(outcomes) + 1, len(cases))):
            outcomes.append(outcome)
            for problem in outcome.problems:
                console.print(f"{outcome.case.name}: {problem}", soft_wrap=True, markup=False)
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for name in ("phase", "one rank", "first of two", "second of two"):
        table.add_column(name)
    for phase in PHASES:
        cells = [
            [one for one in outcomes if one.case.phase == phase and (one.case.rank, one.case.world) == place] for place in ((0, 1), (0, 2), (1, 2))
        ]
        table.add_row(phase, *(f"{sum(not one.problems for one in cell)} of {len(cell)}" for cell in cells))
    console.print(table)
    good = sum(not outcome.problems for outcome in outcomes)
    console.print(f"[bold]{good} of {len(cases)}[/]: exit code 75 on every rank, saved, and gone on from to the same bits")
    return 0 if good == len(cases) else 1


def measure(asked: argparse.Namespace) -> int:
    """The goodput drill, with its table, numbers and picture."""
    console, folder = open_console(), Path(tempfile.mkdtemp(prefix="drill-"))
    try:
        with progress_bar("drill", console) as show:
            goodput = run_goodput(folder, seconds=round(asked.minutes * 60), fault_every=asked.fault_every, seed=asked.seed, on_progress=show)
    except RuntimeError as error:
        console.print(f"[bold red]lost[/]; what is left of it is in {folder}", soft_wrap=True)
        console.print(str(error), soft_wrap=True, markup=False)
        return 1
    asked.output.mkdir(parents=True, exist_ok=True)
    (asked.output / "goodput.json").write_text(json.dumps(goodput.to_dict(), indent=1) + "\n", encoding="utf-8")
    write_goodput_figure(goodput, asked.output)
    console.print(faults_table(goodput))
    console.print(f"[bold]{goodput.shares}[/], {goodput.wall_seconds:.0f} s in all; median recovery [bold]{goodput.median_recovery_seconds:.1f} s[/]")
    console.print(
        f"{goodput.steps:,} steps, {goodput.steps_done_again:,} done again; {goodput.restarts} restarts by the launcher, {goodput.starts - 1} by the "
        "scheduler, none by hand"
    )
    for difference in goodput.differences[:10]:
        console.print(f"[bold red]not the untouched run[/]: {difference}")
    if goodput.differences:
        return 1
    console.print("the loss log and the weights are those of a run that nothing happened to, bit for bit")
    shutil.rmtree(folder)
    return 0


def faults_table(goodput: Goodput) -> Table:
    """A row a kind of fault."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for name in ("fault", "times", "noticed after", "checkpoint loaded", "first step", "longest"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for kind, faults in goodput.by_kind.items():
        medians = [statistics.median(getattr(fault, part) or 0.0 for fault in faults) for part in ("noticed", "resumed", "recovered")]
        longest = max(fault.recovered or 0.0 for fault in faults)
        table.add_row(kind, str(len(faults)), *(f"{seconds:.1f} s" for seconds in (*medians, longest)))
    return table


def runs_table(outcomes: list[Outcome]) -> Table:
    """A row a run: where each start went on."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for name in ("run", "ranks", "made with", "kills", "went on from step", "differences"):
        table.add_column(name, overflow="fold")
    for outcome in outcomes:
        steps = " ".join(str(kill.saved_step) for kill in outcome.kills)
        verdict = str(len(outcome.problems)) if outcome.problems else "none"
        table.add_row(outcome.name, str(outcome.ranks), outcome.recipe, str(len(outcome.kills)), steps, verdict)
    return table


def moments_table(outcomes: list[Outcome]) -> Table:
    """A row a moment: how many kills hit it, and how many of them are in runs that came out the same."""
    table = Table(box=None, pad_edge=False, padding=(0, 2), header_style="dim")
    for name in ("killed", "kills", "of all ranks", "of one of two", "survived"):
        table.add_column(name, justify="left" if name == "killed" else "right")
    for moment in MOMENTS:
        hits = [(outcome, kill) for outcome in outcomes for kill in outcome.kills if kill.moment == moment]
        of_all = Counter(len(kill.killed) == outcome.ranks for outcome, kill in hits)
        survived = sum(not outcome.problems for outcome, _ in hits)
        table.add_row(moment, str(len(hits)), str(of_all[True]), str(of_all[False]), str(survived))
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
