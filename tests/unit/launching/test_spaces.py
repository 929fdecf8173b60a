"""What a search may try, from the words of a command line."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.config import RunConfig
from slayer.errors import ConfigError
from slayer.launching.commandline import tolerant
from slayer.launching.spaces import Space, read_words

SEARCH = ("-m", "hydra/sweeper=optuna")


def space(*words: str) -> dict[str, Space]:
    kept, problems = tolerant([*SEARCH, *words], RunConfig)
    assert problems == []
    return read_words(kept[len(SEARCH) :])[1]


def test_numbers_are_whole_where_the_key_holds_whole_ones() -> None:
    found = space("train.learning_rate=interval(1e-4,1e-2)", "data.replay=interval(0,1)", "prune=interval(0.5,3.9)")
    assert found["train.learning_rate"] == Space(element="++train.learning_rate", low=1e-4, high=1e-2)
    assert found["data.replay"] == Space(element="++data.replay", low=0.0, high=1.0)
    assert found["prune"] == Space(element="++prune", low=1, high=3, step=1)


def test_other_forms_of_hydra() -> None:
    found = space("train.learning_rate=tag(log,interval(1e-4,1e-2))", "prune=range(0,5,2)", "expansion=even,deep_half", "expansion.after=[1,2],[3]")
    assert found["train.learning_rate"].log and found["prune"] == Space(element="++prune", low=0, high=4, step=2)
    assert found["expansion"].choices == ("even", "deep_half") and found["expansion"].word("even") == "expansion=even"
    assert found["expansion.after"].choices == ("[1,2]", "[3]")


def test_what_is_the_same_everywhere_is_passed_on_as_it_was() -> None:
    kept, _ = tolerant([*SEARCH, "prune=interval(0,2)", "model=tiny", "data.path='a b,c.txt'"], RunConfig)
    assert read_words(kept[2:])[0] == ["model=tiny", "++data.path='a b,c.txt'"]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_a_typed_number_is_short_and_within_its_range(one: float, other: float, share: float) -> None:
    low, high = sorted((one, other))
    value = min(low + share * (high - low), high)
    typed = float(Space(element="x", low=low, high=high).word(value).removeprefix("x="))
    assert low <= typed <= high and math.isclose(typed, value, rel_tol=1e-4)


@pytest.mark.parametrize("word", ["prune=interval(3,1)", "prune=interval(1.2,1.8)", "train.learning_rate=tag(log,interval(0,1))"])
def test_a_range_of_nothing_is_refused(word: str) -> None:
    with pytest.raises(ConfigError) as refused:
        space(word)
    assert refused.value.problems[0].key == word.partition("=")[0]


@pytest.mark.parametrize(
    ("words", "key", "fix"),
    [
        (["-m", "prune=interval(0,2)"], "prune", "hydra/sweeper=optuna 'prune=interval(0,2)'   (python train.py -m …)"),
        (["prune=interval(0,2)"], "prune", "hydra/sweeper=optuna 'prune=interval(0,2)'   (python train.py -m …)"),
        ([*SEARCH, "run=interval(0,2)"], "run", "run=NAME"),
        ([*SEARCH, "expansion=interval(0,2)"], "expansion", "expansion=deep_half"),
    ],
)
def test_ranges_belong_to_searches_and_to_numbers(words: list[str], key: str, fix: str) -> None:
    kept, (problem,) = tolerant(words, RunConfig)
    assert (problem.key, problem.fix) == (key, fix) and not any(key in word for word in kept)
