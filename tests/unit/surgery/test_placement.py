"""Presets against the published scripts' rules, written again here from their description."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.config import ExpansionConfig
from slayer.surgery.placement import place, placement_problems

DEPTHS = range(1, 81)
STRATEGIES = ("shallow_half", "even", "deep_half", "prefix_stack", "suffix_stack", "solar")


def expansion(strategy: str, **keys: object) -> ExpansionConfig:
    return ExpansionConfig.model_validate({"strategy": strategy, **keys})


def afters(strategy: str, n_base: int, **keys: object) -> list[int]:
    return [after for after, _ in place(expansion(strategy, **keys), n_base)]


def applied(before: ExpansionConfig, fix: str) -> ExpansionConfig:
    """What the configuration becomes when a person types the fix."""
    values = before.model_dump()
    for override in fix.split():
        key, _, text = override.partition("=")
        if key == "expansion":
            values |= {"strategy": text, "after": None}
        elif text == "null":
            values[key.removeprefix("expansion.")] = None
        elif text.startswith("["):
            values[key.removeprefix("expansion.")] = [int(number) for number in text.strip("[]").split(",")]
        else:
            values[key.removeprefix("expansion.")] = int(text)
    return ExpansionConfig.model_validate(values)


def test_thirty_two_layers_as_published() -> None:
    assert afters("shallow_half", 32) == [1, 3, 5, 7, 9, 11, 13, 15]
    assert afters("even", 32, count=8) == afters("even", 32) == [3, 7, 11, 15, 19, 23, 27, 31]
    assert afters("deep_half", 32) == [17, 19, 21, 23, 25, 27, 29, 31]
    assert place(expansion("prefix_stack"), 32) == [(-1, layer) for layer in range(8)]
    assert place(expansion("suffix_stack"), 32) == [(31, layer) for layer in range(24, 32)]
    assert afters("none", 32) == []


@pytest.mark.parametrize("n_base", DEPTHS)
def test_shallow_half_is_every_odd_layer_of_the_first_half(n_base: int) -> None:
    rule, layer = [], 1
    while layer + 1 <= n_base // 2:
        rule.append(layer)
        layer += 2
    assert place(expansion("shallow_half"), n_base) == [(layer, layer) for layer in rule]


@pytest.mark.parametrize("n_base", DEPTHS)
def test_deep_half_is_as_many_odd_layers_counted_from_the_end(n_base: int) -> None:
    wanted = len(afters("shallow_half", n_base))
    rule: list[int] = []
    for layer in reversed(range(n_base)):
        if layer % 2 == 1 and len(rule) < wanted:
            rule.insert(0, layer)
    assert place(expansion("deep_half"), n_base) == [(layer, layer) for layer in rule]
    assert all(2 * layer >= n_base for layer in rule), "a layer of the first half"


@pytest.mark.parametrize("n_base", DEPTHS)
def test_even_follows_the_script_of_llama_pro(n_base: int) -> None:
    for count in [None, *range(1, n_base + 1)]:
        groups = count or max(n_base // 4, 1)
        script = [layer for layer in range(n_base) if (layer + 1) % (n_base // groups) == 0]
        seen = afters("even", n_base, count=count)
        assert seen == script[:groups] and len(seen) == groups
        if len(script) == groups:
            assert seen == script


@pytest.mark.parametrize("n_base", DEPTHS)
def test_even_with_a_stride_is_a_stride(n_base: int) -> None:
    for every in range(1, n_base + 1):
        assert afters("even", n_base, every=every) == list(range(every - 1, n_base, every))


@pytest.mark.parametrize("n_base", DEPTHS)
def test_stacks_take_their_quarter_from_either_end(n_base: int) -> None:
    quarter = n_base // 4 if n_base >= 4 else 1
    assert place(expansion("prefix_stack"), n_base) == [(-1, layer) for layer in list(range(n_base))[:quarter]]
    assert place(expansion("suffix_stack"), n_base) == [(n_base - 1, layer) for layer in list(range(n_base))[-quarter:]]


@pytest.mark.parametrize("n_base", DEPTHS)
def test_solar_is_two_overlapping_copies(n_base: int) -> None:
    for count in [None, *range(2 - n_base % 2, n_base + 1, 2)]:
        chosen = expansion("solar", count=count)
        assert placement_problems(chosen, n_base) == []
        inserted = place(chosen, n_base)
        m = (n_base - len(inserted)) // 2
        assert len(inserted) == (count or len(inserted)) and (count is not None or m == n_base // 4)
        sequence: list[int] = []
        for layer in range(n_base):
            sequence.append(layer)
            sequence += [source for after, source in inserted if after == layer]
        assert sequence == list(range(n_base))[: n_base - m] + list(range(n_base))[m:]


def test_depth_up_scaling_of_the_paper_makes_48_layers_of_32() -> None:
    assert len(place(expansion("solar"), 32)) + 32 == 48


@pytest.mark.parametrize("n_base", DEPTHS)
def test_a_stride_and_a_count_keep_the_outermost_blocks_of_a_half(n_base: int) -> None:
    for every in (1, 2, 3, 5):
        whole = [layer for layer in range(n_base // 2) if layer % every == every - 1]
        assert afters("shallow_half", n_base, every=every) == whole
        for count in range(1, len(whole) + 1):
            assert afters("shallow_half", n_base, every=every, count=count) == whole[:count]
            deep = afters("deep_half", n_base, every=every)
            assert afters("deep_half", n_base, every=every, count=count) == deep[len(deep) - count :]


def test_explicit_layers_are_ordered_may_repeat_and_may_stand_before_the_first() -> None:
    assert place(expansion("explicit", after=[3, -1, 0, 3]), 4) == [(-1, 0), (0, 0), (3, 3), (3, 3)]


@given(
    strategy=st.sampled_from(["none", "explicit", *STRATEGIES]),
    n_base=st.integers(1, 80),
    every=st.none() | st.integers(1, 90),
    count=st.none() | st.integers(1, 90),
    after=st.lists(st.integers(-4, 90), min_size=1, max_size=6),
)
def test_what_is_impossible_is_refused_and_its_fix_is_possible(
    strategy: str, n_base: int, every: int | None, count: int | None, after: list[int]
) -> None:
    keys: dict[str, object] = {"after": after} if strategy == "explicit" else {"count": count} if strategy != "none" else {}
    if strategy in ("shallow_half", "deep_half") or (strategy == "even" and count is None):
        keys["every"] = every
    asked = expansion(strategy, **keys)
    problems = placement_problems(asked, n_base)
    for problem in problems:
        key = problem.key.removeprefix("expansion.")
        assert problem.value == getattr(asked, key) and problem.why
        mended = applied(asked, problem.fix)
        assert placement_problems(mended, n_base) == [] and place(mended, n_base), problem
    if not problems:
        placed = place(asked, n_base)
        assert all(-1 <= after < n_base and 0 <= source < n_base for after, source in placed)
        assert [after for after, _ in placed] == sorted(after for after, _ in placed)
        assert bool(placed) == (strategy != "none")
        if count is not None and "count" in keys:
            assert len(placed) == count


@pytest.mark.parametrize(
    ("strategy", "keys", "n_base", "key", "seen", "fix"),
    [
        ("explicit", {"after": [1, 4, -2]}, 4, "expansion.after", [1, 4, -2], "expansion.after=[1]"),
        ("explicit", {"after": [9]}, 4, "expansion.after", [9], "expansion.after=[1]"),
        ("shallow_half", {"count": 9}, 32, "expansion.count", 9, "expansion.count=8"),
        ("shallow_half", {}, 3, "expansion.every", None, "expansion.every=1"),
        ("deep_half", {"every": 17}, 32, "expansion.every", 17, "expansion.every=2"),
        ("shallow_half", {}, 1, "expansion.every", None, "expansion=explicit expansion.after=[0] expansion.every=null"),
        ("even", {"count": 33}, 32, "expansion.count", 33, "expansion.count=32"),
        ("even", {"every": 33}, 32, "expansion.every", 33, "expansion.every=8"),
        ("prefix_stack", {"count": 33}, 32, "expansion.count", 33, "expansion.count=32"),
        ("solar", {"count": 5}, 32, "expansion.count", 5, "expansion.count=4"),
        ("solar", {"count": 1}, 32, "expansion.count", 1, "expansion.count=2"),
    ],
)
def test_problems_name_key_value_and_fix(strategy: str, keys: dict[str, object], n_base: int, key: str, seen: object, fix: str) -> None:
    (problem,) = placement_problems(expansion(strategy, **keys), n_base)
    assert (problem.key, problem.value, problem.fix) == (key, seen, fix)
    assert problem.why
