from __future__ import annotations

import os
import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from slayer.launching.commandline import groups
from slayer.launching.naming import LONGEST, run_name
from slayer.validation import RUN_NAME

GROUPS = list(groups())
"""Other tests may be using the machine."""

KEYS = st.sampled_from(
    ["prune", "seed", "tail", "expansion", "freeze", "data.path", "train.learning_rate", "prune_layers", "data.sources.a.path", "model.random.seed"]
)
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats(allow_nan=False).map(repr),
    st.lists(st.integers(-1, 40)).map(lambda layers: str(layers).replace(" ", "")),
)
COMMANDS = st.dictionaries(KEYS, VALUES, max_size=6)


def name(*overrides: str) -> str:
    return run_name(overrides, GROUPS)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", "default"),
        ("expansion=shallow_half prune=2", "shallow_half-prune_2"),
        ("prune=2 expansion=shallow_half", "shallow_half-prune_2"),
        ("++prune=2 +experiment=full", "full-prune_2"),
        ("freeze=none expansion=none", "expansion_none-freeze_none"),
        ("train.learning_rate=1e-3", "learning_rate_1e-3"),
        ("expansion.after=[-1,2]", "after_-1_2"),
        ("seed=1 model.random.seed=2", "random_seed_2-seed_1"),
        ("prune=1 prune=2", "prune_2"),
        ("run=x runs_dir=y dry_run=true tracker=wandb launcher.processes=2 objective=mean_bits_per_byte hydra.sweeper.max_batch_size=1", "default"),
        ("expansion=even,solar prune=0,2", "even_solar-prune_0_2"),
    ],
)
def test_names_read_as_what_was_typed(overrides: str, expected: str) -> None:
    assert name(*overrides.split()) == expected


@given(COMMANDS, st.randoms(use_true_random=False))
def test_any_order_gives_the_same_name(command: dict[str, str], random: object) -> None:
    words = [f"{key}={value}" for key, value in command.items()]
    shuffled = list(words)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert name(*words) == name(*shuffled)


@given(COMMANDS)
def test_names_need_no_quotes_anywhere(command: dict[str, str]) -> None:
    made = name(*(f"{key}={value}" for key, value in command.items()))
    assert RUN_NAME.fullmatch(made) and len(made) <= LONGEST
    assert shlex.quote(made) == made
    assert OverridesParser.create().parse_override(f"checkpoint=runs/{made}").value() == f"runs/{made}"


TOLD_APART = st.one_of(st.from_regex(r"[A-Za-z0-9]{1,8}", fullmatch=True), st.text(max_size=8).map(lambda text: text + "/é"))
"""Words and numbers, and texts that a name cannot spell."""


@given(st.lists(st.dictionaries(KEYS, TOLD_APART, max_size=4), min_size=2, max_size=2, unique_by=lambda command: tuple(sorted(command.items()))))
def test_different_overrides_give_different_names(commands: list[dict[str, str]]) -> None:
    one, other = (name(*(f"{key}={value}" for key, value in command.items())) for command in commands)
    assert one != other


def test_a_long_command_ends_in_a_hash_of_all_of_it() -> None:
    long = [f"data.sources.source{number}.weight=0.{number}" for number in range(1, 20)]
    made, other = name(*long), name(*long[:-1], "data.sources.source19.weight=0.20")
    assert len(made) == len(other) == LONGEST and made != other and made[:60] == other[:60]


def test_paths_give_their_last_part_and_a_hash_of_the_rest() -> None:
    one, other = name("data=local", "data.path=/a/law texts.jsonl"), name("data=local", "data.path=/b/law texts.jsonl")
    assert one != other and one.startswith("data_local-data_path_law_texts.jsonl-")


def test_every_process_makes_the_same_name() -> None:
    words = ["prune=2", "expansion=even", "data.path=/x/y z.txt", "train.schedule=wsd"]
    code = f"from slayer.launching.naming import run_name; print(run_name({words!r}, {GROUPS!r}))"
    made = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed, "RANK": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("0", "1")
    }
    assert made == {name(*words) + "\n"}
