"""Stages of a freeze schedule as they are typed: whatever is wrong is told, and what is suggested instead can be typed as it stands."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import FreezeConfig, FreezeStageConfig, RunConfig
from slayer.errors import Problem
from slayer.launching.commandline import tolerant
from slayer.stages import fitted, layers_problem, mended, originals, stages_problem

PARTS = ["new", "tail", "norms", "head", "embeddings", "originals[:]", "originals[28:30]", "originals[-2:]", "originals[3:]", "originals[:-1]"]
NEARLY = [
    "nwe",
    "tails",
    "norm",
    "lm_head",
    "embed",
    "originals",
    "originals[3]",
    "originals[a:b]",
    "originals[1:2:3]",
    "original[1:2]",
    "x",
    "",
    "Ω",
]


def typed(override: str) -> Any:
    """The value that a shell, our reading of the command line and Hydra's make of an override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    (word,) = shlex.split(override)
    (accepted,), problems = tolerant([word], RunConfig)
    assert problems == []
    return OverridesParser.create().parse_override(accepted).value()


def schedule(*stages: dict[str, Any]) -> list[FreezeStageConfig]:
    return FreezeConfig.model_validate({"schedule": "staged", "stages": list(stages)}).stages


def stage(until: int | None = None, **parts: float) -> dict[str, Any]:
    return {"until_tokens": until, "parts": parts}


@pytest.mark.parametrize(
    ("part", "layers"),
    [
        ("originals[2:4]", [2, 3]), ("originals[-2:]", [4, 5]), ("originals[:2]", [0, 1]), ("originals[:]", [0, 1, 2, 3, 4, 5]),
        ("originals[:-4]", [0, 1]), ("originals[-9:1]", [0]), ("originals[4:4]", []), ("originals[-1:-3]", []),
    ],
)  # fmt: skip
def test_originals_are_sliced_as_python_slices(part: str, layers: list[int]) -> None:
    named = originals(part)
    assert named is not None and list(range(6)[named]) == layers


@pytest.mark.parametrize("part", ["new", "originals", "originals[3]", "originals[1:2:3]", "originals[a:b]", "originals[-:]", "originals[1:2] "])
def test_anything_else_names_no_layers(part: str) -> None:
    assert originals(part) is None


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_typed_as_it_is_written(part: str) -> None:
    """In a shell's single quotes and nothing more; with the escapes that Hydra's own grammar asks for it reads the same."""
    asked = f"freeze.stages=[{{until_tokens:1000,parts:{{new:1,{part}:0.5}}}},{{parts:{{ {part} : 1e-3 }}}}]"
    wanted = [{"until_tokens": 1000, "parts": {"new": 1, part: 0.5}}, {"parts": {part: 0.001}}]
    assert typed(shlex.quote(asked)) == wanted
    escaped = asked.replace(part, part.replace("[", "\\[").replace("]", "\\]").replace(":", "\\:") if "[" in part else part)
    assert typed(shlex.quote(escaped)) == wanted


def told(problem: Problem | None) -> str:
    assert problem is not None and problem.key == "freeze.stages"
    return problem.why


@pytest.mark.parametrize(
    ("stages", "why", "meant"),
    [
        ([], "none is listed", [stage(1_000_000, new=1), stage(new=1, tail=1, norms=0.5)]),
        ([stage()], "stage 1 names nothing that trains", [stage(new=1)]),
        ([stage(nwe=1)], "nwe, and the parts are new, tail, norms, originals[a:b], head, embeddings (did you mean new?)", [stage(new=1)]),
        ([stage(quux=1, tail=2)], "stage 1 names quux, and the parts are", [stage(tail=2)]),
        ([{"parts": {"originals[3]": 1}}], "like originals[28:30], originals[-2:] or originals[:]", [{"parts": {"originals[3:4]": 1}}]),
        ([{"parts": {"originals[-1]": 1}}], "stage 1 names originals[-1]", [{"parts": {"originals[-1:]": 1}}]),
        ([{"parts": {"originals(3:5)": 1}}], "stage 1 names originals(3:5)", [{"parts": {"originals[3:5]": 1}}]),
        ([{"parts": {"originals": 0.1}}], "stage 1 names originals;", [{"parts": {"originals[:]": 0.1}}]),
        ([stage(new=1, tail=0)], "stage 1 gives tail 0 times the learning rate: what is left out is frozen", [stage(new=1)]),
        ([stage(new=1, tail=-0.5)], "stage 1 gives tail -0.5 times", [stage(new=1)]),
        ([stage(None, new=1), stage(tail=1)], "stage 1 needs until_tokens, or stage 2 never begins", [stage(1_000_000, new=1), stage(tail=1)]),
        ([stage(new=1), stage(7, tail=1)], "stage 2 is the last one and has until_tokens=7", [stage(1_000_000, new=1), stage(tail=1)]),
        (
            [stage(10, new=1), stage(10, tail=1), stage(head=1)],
            "stage 2 ends at 10 tokens, not after the one before it (10)",
            [stage(10, new=1), stage(20, tail=1), stage(head=1)],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_stages_is_told_and_mended(stages: list[dict[str, Any]], why: str, meant: list[dict[str, Any]]) -> None:
    problem = stages_problem(schedule(*stages), max_tokens=None, has_new=True)
    assert why in told(problem) and problem is not None
    wanted = [{key: value for key, value in one.items() if value is not None} for one in meant]
    assert typed(problem.fix) == wanted


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = [stage(100, nwe=1, tail=0), stage(50, norms=1), stage(9_000, head=-1, quux=1), stage(5)]
    why = told(stages_problem(schedule(*wrong), max_tokens=8_000, has_new=True))
    for fault in ("nwe", "tail 0 times", "ends at 50", "never does: train.max_tokens=8000", "head -1 times", "quux", "stage 4 names nothing", "=5"):
        assert fault in why, fault


def test_a_stage_that_the_run_never_reaches_is_drawn_near_or_the_run_lengthened() -> None:
    stages = schedule(stage(500, new=1), stage(1_500, tail=1), stage(head=1))
    assert stages_problem(stages, max_tokens=1_501, has_new=True) is None
    problem = stages_problem(stages, max_tokens=1_500, has_new=True)
    assert told(problem) == "stage 3 would begin at 1500 tokens and never does: train.max_tokens=1500" and problem is not None
    near, longer = problem.fix.split(", or ")
    assert [one.get("until_tokens") for one in typed(near)] == [250, 750, None] and longer == "train.max_tokens=3000"


def test_new_blocks_that_are_not_there_are_left_out_or_put_in() -> None:
    problem = stages_problem(schedule(stage(9, new=1), stage(new=1, norms=1)), max_tokens=None, has_new=False)
    assert "new of stage 1, 2 is nothing: expansion=none" in told(problem) and problem is not None
    without, inserted = problem.fix.split(", or ")
    assert typed(without) == [{"until_tokens": 9, "parts": {"tail": 1}}, {"parts": {"norms": 1}}] and inserted == "expansion=shallow_half"


@pytest.mark.parametrize(
    ("part", "gone", "why", "meant"),
    [
        ("originals[28:40]", (), "and the model has layers 0 to 29", "originals[28:30]"),
        ("originals[30:40]", (), "and the model has layers 0 to 29", "originals[28:30]"),
        ("originals[4:4]", (), "which is no layer of 0 to 29", "originals[28:30]"),
        ("originals[-2:]", (28, 29), "and all of these are pruned", "originals[26:28]"),
        ("originals[3:5]", (3, 4), "and all of these are pruned", "originals[28:30]"),
    ],
)
def test_layers_that_the_model_lacks_are_told_and_mended(part: str, gone: tuple[int, ...], why: str, meant: str) -> None:
    problem = layers_problem(schedule(stage(5, new=1), {"parts": {"tail": 1, part: 0.1}}), 30, gone)
    assert told(problem) == f"stage 2 names {part}, {why}" and problem is not None
    assert typed(problem.fix) == [{"until_tokens": 5, "parts": {"new": 1}}, {"parts": {"tail": 1, meant: 0.1}}]


def test_layers_beyond_an_open_end_and_some_pruned_ones_are_no_fault() -> None:
    for part in ("originals[-40:]", "originals[:]", "originals[20:]", "originals[0:30]"):
        assert layers_problem(schedule({"parts": {part: 1}}), 30, (28, 29)) is None


@settings(deadline=None)
@given(boundaries=st.lists(st.integers(1, 10**12), min_size=1, max_size=6, unique=True).map(sorted), max_tokens=st.integers(0, 10**12))
def test_boundaries_fit_below_the_end_of_the_run(boundaries: list[int], max_tokens: int) -> None:
    near = fitted(boundaries, max_tokens)
    assert near == sorted(set(near)) and all(1 <= boundary < max_tokens for boundary in near)
    if boundaries[-1] < max_tokens:
        assert near == boundaries
    elif max_tokens > 2 * len(boundaries):
        assert len(near) == len(boundaries), "no stage is given up while there is room"


words = st.one_of(st.sampled_from(PARTS + NEARLY), st.text(max_size=4))
numbers = st.one_of(st.none(), st.booleans(), st.integers(-3, 10**7), st.floats(), st.text(max_size=3))
items = st.one_of(
    numbers,
    st.lists(words, max_size=3),
    st.fixed_dictionaries({}, optional={"until_tokens": numbers, "until": numbers, "parts": st.one_of(numbers, st.dictionaries(words, numbers))}),
)


@settings(deadline=None)
@given(
    value=st.one_of(items, st.lists(items, max_size=4)),
    max_tokens=st.one_of(st.none(), st.integers(1, 10**8)),
    has_new=st.booleans(),
    model=st.data(),
)
def test_whatever_was_typed_the_stages_suggested_are_sound(value: object, max_tokens: int | None, has_new: bool, model: st.DataObject) -> None:
    suggested = mended(value, max_tokens, has_new=has_new)
    stages = schedule(*suggested)
    assert stages_problem(stages, max_tokens=max_tokens, has_new=has_new) is None
    n_base = model.draw(st.integers(1, 40))
    gone = model.draw(st.sets(st.integers(0, n_base - 1), max_size=n_base - 1))
    problem = layers_problem(stages, n_base, gone)
    if problem is not None:
        better = schedule(*typed(problem.fix))
        assert layers_problem(better, n_base, gone) is None and stages_problem(better, max_tokens=max_tokens, has_new=has_new) is None
