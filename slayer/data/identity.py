"""What decides the stream of a run, as plain data, so that a changed text is not only noticed but named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

SHOWN = 8
"""Differences named before the rest is only counted."""


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One sentence for each thing that differs between two identities; no sentence when they are equal."""
    found = [sentence for name in sorted({*saved, *now}) for sentence in _compare(name, saved.get(name), now.get(name))]
    return [*found[:SHOWN], f"… and {len(found) - SHOWN} more"] if len(found) > SHOWN else found


def _compare(name: str, saved: Any, now: Any) -> Iterator[str]:
    if saved == now:
        return
    if name == "sources" and isinstance(saved, dict) and isinstance(now, dict):
        for source in sorted({*saved, *now}):
            yield from _source(source, saved.get(source), now.get(source))
    else:
        yield f"{name.replace('_', ' ')}: it was {_short(saved)}, now {_short(now)}"


def _source(name: str, saved: Any, now: Any) -> Iterator[str]:
    if saved is None or now is None:
        yield f"source {name} is {'new' if saved is None else 'gone'}"
        return
    files_before, files_now = saved.get("files") or {}, now.get("files") or {}
    changed = list(_files(name, files_before, files_now))
    yield from changed
    # What follows from other files (their tokens, what was removed) would only say the same again.
    consequences = {"files", "corpus", "tokens", "selection", "labels_per_row", "rows"} if changed else {"files"}
    for key in sorted({*saved, *now} - consequences):
        if saved.get(key) != now.get(key):
            yield f"source {name}: {key.replace('_', ' ')}: it was {_short(saved.get(key))}, now {_short(now.get(key))}"


def _files(source: str, saved: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for file in sorted({*saved, *now}):
        if file not in now:
            yield f"source {source}: {file} is gone"
        elif file not in saved:
            yield f"source {source}: {file} is new"
        elif saved[file] != now[file]:
            yield f"source {source}: {file} has changed (it was {_hash(saved[file])}, now {_hash(now[file])})"


def _hash(known: str) -> str:
    """What is known of a file: its SHA-256, shortened, or its size."""
    return known if known.endswith("bytes") else f"{known[:12]}…"


def _short(value: Any) -> str:
    text = str(value)
    return f"{text[:40]}…" if len(text) > 48 else text
