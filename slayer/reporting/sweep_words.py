"""What a sweep found, in sentences and commands: the same on its page and in the terminal."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from slayer.evaluation.ranking import Standing, least_documents
from slayer.reporting.numbers import MISSING, fixed, interval
from slayer.reporting.sweep_points import STATUSES, Sweep, SweepPoint

MOST_NAMED = 8
"""Points that a sentence names; of more it says how many."""

WAITING = {"running": "still running", "requeued": "to go on", "pending": "waiting", "failed": "failed"}

OBJECTIVES = {
    "domain_bits_per_byte": "bits per byte on held-out domain text", "replay_bits_per_byte": "bits per byte on held-out replay text",
    "mean_bits_per_byte": "bits per byte on all held-out text",
}  # fmt: skip


def counts_sentence(sweep: Sweep) -> str:
    """How far the sweep is."""
    points = sweep.points
    numbers = {status: sum(point.status == status for point in points) for status in STATUSES}
    also = "".join(f", {numbers[status]} {words}" for status, words in WAITING.items() if numbers[status])
    return f"{numbers['finished']} of {len(points)} runs finished{also}."


def best_sentence(sweep: Sweep) -> str | None:
    """Which point is best, by what, and how sure its score is."""
    if sweep.best is None:
        return None
    what, span = OBJECTIVES.get(sweep.best.objective_name, "objective"), sweep.standings[0].interval
    sure = f" (95 % interval {interval(span, digits=4)})" if span else ""
    return f"Best: {sweep.label(sweep.best)}, with the lowest {what}, {fixed(sweep.best.objective, 4)}{sure}."


def tied_sentence(sweep: Sweep) -> str | None:
    """Which points cannot be told apart from the best."""
    compared = [standing for standing in sweep.standings if standing.p is not None]
    if not compared:
        return None
    needed = least_documents(len(compared))
    if compared[0].n_documents < needed:
        few = f"On {compared[0].n_documents} documents no difference between so many runs could be told from chance"
        return f"{few}; from {needed} on one could (heldout.tokens_per_source)."
    if not sweep.tied:
        return "Every other run is worse than the best by more than chance over the same documents would do."
    return f"Not told apart from the best over the same documents: {_named(sweep, sweep.tied)}."


def front_sentence(sweep: Sweep) -> str | None:
    """Which points no other beats on what they learnt and what they forgot."""
    front = sweep.front
    if len(front) == len(sweep.ranked) or not front:
        return None
    return f"On the Pareto front (no other run both learns more and forgets less): {_named(sweep, front)}."


def seeds_sentence(sweep: Sweep) -> str | None:
    """What is best when one seed does not decide."""
    known = [(setting, setting.spread.mean) for setting in sweep.settings if setting.spread is not None]
    if len(known) < 2 or sweep.best is None:
        return None
    first, mean = known[0]
    also = "" if sweep.best in first.points else "; the best single run is of another setting, so its seed has helped it"
    return f"Over seeds {first.label} is best: {fixed(mean, 4)} on average of {len(first.points)} seeds{also}."


def search_sentence(sweep: Sweep) -> str | None:
    """What was searched, where the points were not all given beforehand."""
    space = sweep.search.get("space")
    if not isinstance(space, dict):
        return None
    tried, of = len([point for point in sweep.points if point.status in ("finished", "failed")]), sweep.search.get("n_trials")
    return f"A search by optuna ({str(sweep.search.get('sampler')).upper()}) over {', '.join(space)}: {tried} of {of} trials made."


def sentences(sweep: Sweep) -> list[str]:
    """All that can be said, the most important first."""
    said = (best_sentence, tied_sentence, seeds_sentence, front_sentence, search_sentence)
    return [sentence for say in said if (sentence := say(sweep)) is not None]


def next_commands(sweep: Sweep) -> list[tuple[str, str]]:
    """(command, what it does): what to type next."""
    if sweep.best is None:
        return []
    best, folder = _word(str(sweep.best.run_dir)), _word(f"runs=[{sweep.folder}]")
    commands = [
        (sweep.best.command, "the best run again: finds it here, makes it anew anywhere else"),
        (f"python evaluate.py checkpoint={best} suite=quick", "what the best run forgot, on benchmarks"),
    ]
    if len(sweep.ranked) > 1:
        commands.append(
            (f"python evaluate.py {folder} suite=quick", "all finished runs side by side on benchmarks, and what each swept key explains")
        )
    return commands


def verdict(standing: Standing, place: int) -> str:
    """A word on a ranked point beside the best."""
    if place == 0:
        return "best"
    return MISSING if standing.p is None else "not told apart" if standing.is_tied else "worse"


def front_word(sweep: Sweep, place: int) -> str:
    """Whether some other point beats this one on both counts, and which."""
    point, dominator = sweep.ranked[place], sweep.dominators[place]
    if not (point.learnt and point.forgotten):
        return MISSING
    return "on the front" if dominator is None else f"beaten by {dominator.number}"


def _named(sweep: Sweep, points: Sequence[SweepPoint]) -> str:
    names = [f"{point.number} ({sweep.label(point)})" for point in points[:MOST_NAMED]]
    more = f" and {len(points) - MOST_NAMED} more" if len(points) > MOST_NAMED else ""
    return f"{', '.join(names)}{more}"


def _word(text: str) -> str:
    return text if re.fullmatch(r"[\w./=\[\],-]+", text) else shlex.quote(text)
