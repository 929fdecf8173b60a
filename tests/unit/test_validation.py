from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from slayer.config import EvaluationConfig, RunConfig
from slayer.errors import ConfigError, Problem
from slayer.schema import accepts, as_override, choices, closest_key, example_for, field_at, holds_text, schema_keys
from slayer.validation import build_config, check_combinations, parse_config, unknown_key

"""Other tests may be using the machine."""

SOUND: dict[str, Any] = {
    "run": "trial", "model": {"name": "tiny", "random": {"layers": 4}}, "expansion": {"strategy": "shallow_half"},
    "freeze": {"schedule": "originals"}, "engine": {"zero_stage": 2}, "train": {},
    "data": {"name": "mine", "sources": {"law": {"role": "domain", "path": "x"}, "general": {"role": "replay", "builtin": "wikipedia_en"}}},
}  # fmt: skip
"""The least that a configuration must say."""


def test_what_is_sound_passes_unchanged() -> None:
    good, problems = parse_config(SOUND)
    assert problems == [] and check_combinations(good) == []
    assert build_config(good, []) == RunConfig.model_validate(SOUND)


def test_sections_that_are_sound_are_kept_with_their_defaults() -> None:
    good, problems = parse_config({**SOUND, "train": {"batch_rows": "x"}, "seed": -1})
    assert {problem.key for problem in problems} == {"train.batch_rows", "seed"}
    assert set(good) == set(RunConfig.model_fields) - {"train", "seed"}
    assert good["heldout"].samples == 3 and good["expansion"].strategy == "shallow_half"


def test_all_problems_are_raised_together() -> None:
    problems = [
        Problem(key="a.b", value=3, why="is odd", fix="a.b=4"),
        Problem(key="c", value=None, why="is missing", fix="c=1, or leave out d"),
        Problem(key="e", value="x", why="is text", fix="e=true"),
        Problem(key="f", value=True, why="is true", fix="f=false"),
    ]
    with pytest.raises(ConfigError) as caught:
        build_config({}, problems)
    assert caught.value.problems == tuple(problems)
    assert str(caught.value) == (
        "4 problems in the configuration\n  1. a.b = 3: is odd\n     type: a.b=4\n  2. c = null: is missing\n     type: c=1, or leave out d\n"
        "  3. e = 'x': is text\n     type: e=true\n  4. f = true: is true\n     type: f=false"
    )
    assert str(ConfigError(problems[:1])).startswith("1 problem in the configuration\n")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("prunee", "prune"),
        ("seeed", "seed"),
        ("train.lr", "train.learning_rate"),
        ("lr", "train.learning_rate"),
        ("max_steps", "train.max_steps"),
        ("train.steps", "train.max_steps"),
        ("train.batch", "train.batch_rows"),
        ("batch_size", "train.batch_rows"),
        ("layers", "model.random.layers"),
        ("data.sources.law.pat", "data.sources.law.path"),
        ("data.sources.law.weigth", "data.sources.law.weight"),
        ("run_dir", "runs_dir"),
        ("learning_rate", "train.learning_rate"),
        ("expansion.position", None),
        ("data.batch_rows", "train.batch_rows"),
        ("engine.stage", "engine.zero_stage"),
        ("prune.layers", "prune"),
        ("tokens_per_source", "heldout.tokens_per_source"),
        ("quux", None),
        ("train.quux", None),
        ("", None),
        (".", None),
    ],
)
def test_the_key_that_was_meant(typed: str, meant: str | None) -> None:
    assert closest_key(typed) == meant


def test_unknown_keys_of_evaluate_are_looked_for_among_its_own() -> None:
    assert unknown_key("checkpont", "runs/x", EvaluationConfig).fix == "checkpoint=runs/x"
    assert closest_key("prune", EvaluationConfig) is None


def test_every_key_of_the_schema_is_found_and_others_are_not() -> None:
    keys = schema_keys()
    assert len(keys) == len(set(keys)) > 60
    assert {"prune", "train.max_steps", "model.random.heads", "data.sources.NAME.path"} <= set(keys)
    for key in keys:
        assert field_at(key.replace("NAME", "law")) is not None
        for wrong in (f"{key}.x", f"x.{key}", f"{key}_"):
            assert field_at(wrong) is None
    assert field_at("data.sources.law") is not None and field_at("") is None


def test_keys_of_text_are_told_from_words_and_lists() -> None:
    text = {key for key in schema_keys() if (field := field_at(key)) is not None and holds_text(field)}
    assert {"run", "runs_dir", "model.path", "data.path", "data.sources.NAME.text_field", "model.hub"} <= text
    assert not {"tail", "prune", "prune_layers", "expansion.after", "expansion.init", "dry_run", "train.schedule"} & text


ANY_VALUE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers(), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
)


@given(st.sampled_from(schema_keys()), ANY_VALUE)
def test_every_suggested_value_is_one_that_the_key_takes(key: str, wrong: object) -> None:
    field = field_at(key)
    assert field is not None
    assert accepts(field, example_for(field, wrong)), (key, wrong, example_for(field, wrong))


@pytest.mark.parametrize(
    ("key", "wrong", "meant"),
    [
        ("train.max_steps", "1e3", 1000),
        ("train.max_steps", 1000.0, 1000),
        ("prune", "[1", 1),
        ("expansion.after", 3, [3]),
        ("prune", [2], 2),
        ("prune_layers", [1, "x", 2], [1, 2]),
        ("heldout.samples", -1, 0),
        ("engine.zero_stage", 7, 3),
        ("launcher.port", 70000, 65535),
        ("train.learning_rate", 0, 1e-3),
        ("train.warmup_share", 3, 0.06),
        ("dry_run", 1, True),
        ("tail", "averag", "average"),
        ("run", None, "NAME"),
    ],
)
def test_suggestions_are_what_was_probably_meant(key: str, wrong: object, meant: object) -> None:
    field = field_at(key)
    assert field is not None and example_for(field, wrong) == meant


@given(st.sampled_from(schema_keys()), ANY_VALUE)
def test_a_key_accepts_what_the_whole_schema_accepts(key: str, value: object) -> None:
    """`accepts` looks at one field; the schema itself is the judge."""
    field = field_at(key)
    parts = key.replace("NAME", "law").split(".")
    if field is None or field.is_required():
        return
    values: dict[str, Any] = {
        **SOUND,
        "train": {},
        "suite": {"name": "law"},
        "model": {"name": "tiny", "random": {}},
        "data": {**SOUND["data"], "sources": {"law": {"role": "domain"}}},
    }
    inner = values
    for part in parts[:-1]:
        inner[part] = dict(inner.get(part, {}))
        inner = inner[part]
    inner[parts[-1]] = value
    try:
        RunConfig.model_validate(values)
    except ValidationError:
        assert not accepts(field, value)
    else:
        assert accepts(field, value)


def test_overrides_are_written_as_they_are_typed_in_a_shell() -> None:
    assert as_override("prune_layers", [1, 2]) == "prune_layers=[1,2]"
    assert as_override("model.path", None) == "model.path=null" and as_override("dry_run", True) == "dry_run=true"
    assert as_override("data.path", "my text.txt") == "'data.path=my text.txt'"


def test_words_that_a_key_may_hold() -> None:
    tail, prune = field_at("tail"), field_at("prune")
    assert tail is not None and choices(tail) == ("auto", "average", "train", "frozen")
    assert prune is not None and choices(prune) == ()


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("a/b", "run=a_b"),
        ("..", "run=NAME"),
        (".hidden", "run=hidden"),
        ("-m", "run=m"),
        ("two words", "run=two_words"),
        ("", "run=NAME"),
        ("é", "run=NAME"),
    ],
)
def test_names_of_runs_are_plain(name: str, fix: str) -> None:
    good, _ = parse_config({**SOUND, "run": name})
    assert [(problem.key, problem.fix) for problem in check_combinations(good)] == [("run", fix)]


def test_nothing_is_judged_that_could_not_be_read() -> None:
    assert check_combinations({}) == []
    for key in RunConfig.model_fields:
        good, _ = parse_config({**SOUND, "prune": 1, "tail": "average"})
        assert check_combinations({name: value for name, value in good.items() if name != key}) == []
