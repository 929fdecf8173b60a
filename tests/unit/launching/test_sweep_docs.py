"""The commands of docs/sweeps.md, as they are typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from slayer.config import EvaluationConfig, RunConfig
from slayer.launching.commandline import tolerant

PAGE = (Path(__file__).parents[3] / "docs" / "sweeps.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ {4}python (train|evaluate)\.py (.+)$", PAGE, re.M)


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize(("script", "words"), COMMANDS)
def test_every_word_is_understood(script: str, words: str) -> None:
    kept, problems = tolerant(shlex.split(words), RunConfig if script == "train" else EvaluationConfig)
    assert problems == [] and len(kept) == len(shlex.split(words))
