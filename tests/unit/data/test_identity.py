from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from slayer.data.identity import SHOWN, differences

SAVED: dict[str, Any] = {
    "seed": 0, "packing": "best_fit",
    "sources": {
        "law": {"files": {"a.jsonl": "1" * 64, "b.jsonl": "2" * 64}, "tokens": "t1", "selection": "s1", "rows": 10, "role": "domain"},
        "general": {"files": None, "tokens": "t2", "selection": "s2", "rows": 4, "role": "replay"},
    },
}  # fmt: skip


def changed(**law: Any) -> dict[str, Any]:
    now = deepcopy(SAVED)
    now["sources"]["law"] |= law
    return now


def test_nothing_differs() -> None:
    assert differences(SAVED, deepcopy(SAVED)) == []


@pytest.mark.parametrize(
    ("now", "sentences"),
    [
        # other tokens and rows follow from the file: they are not told as well
        (
            changed(files={"a.jsonl": "3" * 64, "b.jsonl": "2" * 64}, tokens="t3", selection="s3", rows=11),
            ["source law: a.jsonl has changed (it was 111111111111…, now 333333333333…)"],
        ),
        (
            changed(files={"a.jsonl": "1" * 64, "c.jsonl": "2" * 64}, tokens="t3"),
            ["source law: b.jsonl is gone", "source law: c.jsonl is new"],
        ),
        (changed(tokens="t3"), ["source law: tokens: it was t1, now t3"]),
        (SAVED | {"seed": 1}, ["seed: it was 0, now 1"]),
        (SAVED | {"sources": {"law": SAVED["sources"]["law"]}}, ["source general is gone"]),
        (SAVED | {"sources": {**SAVED["sources"], "web": {}}}, ["source web is new"]),
    ],
)
def test_each_difference_is_named(now: dict[str, Any], sentences: list[str]) -> None:
    assert differences(SAVED, now) == sentences


def test_a_thousand_changed_files_are_counted() -> None:
    many = {f"{number:04d}.txt": "4" * 64 for number in range(1000)}
    told = differences(SAVED, changed(files={**SAVED["sources"]["law"]["files"], **many}))
    assert len(told) == SHOWN + 1 and told[-1] == "… and 992 more"
