"""What cleaning removed, in words: names of the reasons, why each is one, and counts over sources."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from slayer.reporting.numbers import count, percent

REASONS: dict[str, tuple[str, str, str]] = {
    "too_short": ("too short", "too short", "Shorter than {min_characters} characters: there is nothing to learn in them."),
    "not_text": ("not text", "not text", "More than {max_control_share} of the characters are control or replacement characters: no text."),
    "repetitive": (
        "repetitive", "repetitive", "A compressor shrinks them below {min_compressed_share} of their size: the same words again and again.",
    ),
    "contaminated": (
        "contaminated", "contaminated",
        "They hold at least {max_overlap} of the word 8-grams of a benchmark question, and a model that has read the exam cannot be examined.",
    ),
    "duplicate": ("duplicate", "duplicates", "The same text came before, in this source or in another one; the first stays."),
    "near_duplicate": (
        "near-duplicate", "near-duplicates",
        "They share {near_duplicates} or more of their word 5-grams (Jaccard) with a document that came before; the first stays.",
    ),
}  # fmt: skip
"""Reason → (of one document, of several, why)."""

_SHARES = ("max_control_share", "min_compressed_share", "max_overlap", "near_duplicates")


class _Settings(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return "a set number" if key == "min_characters" else "a set share"


def reason_name(reason: str, documents: int = 1) -> str:
    """A reason in words; one that this module does not know as it is written."""
    one, several, _ = REASONS.get(reason, (reason.replace("_", " "),) * 3)
    return one if documents == 1 else several


def reason_why(reason: str, cleaning: Mapping[str, Any]) -> str:
    """One sentence about a reason, with the settings of this run; empty for an unknown one."""
    shown = _Settings({key: str(value) for key, value in cleaning.items() if value is not None})
    for key in _SHARES:
        if isinstance(cleaning.get(key), (int, float)):
            value = 100 * float(cleaning[key])
            shown[key] = f"{value:g} %"
    return REASONS[reason][2].format_map(shown) if reason in REASONS else ""


def by_reason(removed: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Documents per reason over all sources, in the order in which reasons are tried; reasons that removed nothing are left out."""
    found = dict.fromkeys([*REASONS, *(str(entry.get("reason")) for entry in removed)], 0)
    for entry in removed:
        found[str(entry.get("reason"))] += int(entry.get("documents") or 0)
    return {reason: documents for reason, documents in found.items() if documents}


def removed_documents(facts: Mapping[str, Any], source: str | None = None) -> int | None:
    """Documents that cleaning removed from a source, or from all; None when nothing is known about cleaning."""
    if "removed" not in facts:
        return None
    return sum(int(entry.get("documents") or 0) for entry in facts["removed"] if source in (None, entry.get("source")))


def read_documents(facts: Mapping[str, Any]) -> int:
    """Documents read from all sources that are read beforehand."""
    return sum(int(source.get("read_documents") or 0) for source in facts.get("sources", ()) if not source.get("streamed"))


def removed_sentence(facts: Mapping[str, Any]) -> str:
    """`removed 103 of 9,955 documents: 100 near-duplicates, 3 contaminated (arc_easy)`; empty when nothing is known about cleaning."""
    removed, read = removed_documents(facts), read_documents(facts)
    if removed is None:
        return ""
    if not removed:
        return f"removed none of {count(read)} documents"
    parts = [
        f"{count(documents)} {reason_name(reason, documents)}{_hit(facts) if reason == 'contaminated' else ''}"
        for reason, documents in sorted(by_reason(facts["removed"]).items(), key=lambda item: -item[1])
    ]
    of = f" of {count(read)} documents ({percent(100 * removed / read, signed=False, digits=2)})" if read else " documents"
    return f"removed {count(removed)}{of}: {', '.join(parts)}"


def hit_benchmarks(facts: Mapping[str, Any]) -> list[str]:
    """Benchmarks that the examples of contaminated documents name, in the order of the configuration."""
    told = [
        str(example.get("because", ""))
        for entry in facts["removed"]
        if entry.get("reason") == "contaminated"
        for example in entry.get("examples", ())
    ]
    return [str(name) for name in facts.get("benchmarks", ()) if any(re.search(rf"(?:^|of ){re.escape(str(name))}\b", because) for because in told)]


def _hit(facts: Mapping[str, Any]) -> str:
    names = hit_benchmarks(facts)
    return f" ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})" if names else ""
