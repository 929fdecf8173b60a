from __future__ import annotations

from pathlib import Path

import pytest

from slayer.config import EvaluationConfig, RandomModelConfig, RunConfig
from slayer.data.random_model import tiny_model
from slayer.launching.commandline import CONF, groups
from slayer.launching.compose import compose
from slayer.launching.help import (
    EVALUATE,
    TRAIN,
    Page,
    configuration_reference,
    default_choices,
    first_comment,
    keys_of,
    print_evaluation_help,
    print_help,
    set_by_choice,
)
from slayer.launching.naming import split_override
from slayer.schema import field_at, schema_keys, value_text

ROOT = Path(__file__).parents[3]


def test_the_reference_is_up_to_date() -> None:
    shown = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert shown == configuration_reference(), "type: python -m slayer.launching.help > docs/configuration.md"


def test_the_reference_holds_every_key_and_every_choice() -> None:
    reference = configuration_reference()
    for key in [*schema_keys(RunConfig), *schema_keys(EvaluationConfig)]:
        assert f"| `{key}` |" in reference
    for group, options in groups().items():
        assert f"| `{group}=` | what |" in reference
        for option in options:
            assert f"| `{option}` |" in reference or f"| `{option}` (default) |" in reference


@pytest.mark.parametrize("page", [TRAIN, EVALUATE], ids=["train", "evaluate"])
def test_every_top_level_key_stands_under_one_heading(page: Page) -> None:
    shown = [top for _, tops in page.sections for top in tops]
    assert sorted(shown) == sorted({*page.schema.model_fields, *(["experiment"] if page is TRAIN else [])})


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_page_fits_the_terminal_and_cuts_nothing(width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    print_help()
    page = capsys.readouterr().out
    examples = [f"  python train.py {words}" for words, _ in TRAIN.examples]
    lines = [line for line in page.splitlines() if line not in examples and not line.startswith("      ")]
    assert all(len(line.rstrip()) <= min(width, 110) for line in lines)
    typed = {word.partition("=")[0] for line in page.splitlines() if line.startswith("  ") for word in line.split()[:1]}
    for key in (key for top in RunConfig.model_fields for key in keys_of(top)):
        assert key.name in typed or set_by_choice(key), key.name
    assert "…" not in page.split("Usage")[1].split("\n\n", 1)[1], "nothing is cut off"
    for group, options in groups().items():
        for option in options:
            assert (f"  {group}={option}" in page) == (group in RunConfig.model_fields or group == "experiment")
    for _, purpose in TRAIN.examples:
        assert purpose in page


def test_defaults_are_marked(capsys: pytest.CaptureFixture[str]) -> None:
    print_help()
    page = capsys.readouterr().out
    assert default_choices()["model"] == "smollm2_135m" and default_choices()["experiment"] == ""
    for group, option in default_choices().items():
        if option:
            assert f"  {group}={option} *" in page
    assert page.count(" * ") == sum(bool(option) for option in default_choices().values()) + 1  # and the line that explains the sign


def test_the_defaults_shown_are_those_of_a_run(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run with a model that brings no recipe of its own."""
    print_help()
    page = capsys.readouterr().out
    config = compose(["model=local", f"model.path={tiny_model(RandomModelConfig())}", *small[1:]])
    for section in ("train", "heldout", "engine", "expansion"):
        for key, value in getattr(config, section).model_dump().items():
            shown = f"  {section}.{key}={value_text(value)}"
            assert key in ("strategy", "zero_stage") or f"{shown} " in page or f"{shown}\n" in page, shown
    for key in ("prune", "prune_by", "tail", "runs_dir", "seed", "objective"):
        shown = f"  {key}={value_text(config.model_dump()[key])}"
        assert (shown if key != "runs_dir" else "  runs_dir=runs") in page


def test_words_are_listed_once() -> None:
    explained = {key.name: key.explained for top in RunConfig.model_fields for key in keys_of(top)}
    assert explained["train.schedule"].endswith(": cosine, constant, wsd")
    assert explained["freeze.schedule"].count("existing_layers") == 1
    assert "domain, replay" not in explained["data.sources.NAME.role"]


def test_every_file_says_what_it_is() -> None:
    for file in CONF.glob("*/*.yaml"):
        comment = first_comment(file)
        assert len(comment) > 10 and comment.endswith((".", ")", "]", "DIR", "N", "*", "TEXT", "trackio show", "tensorboard", "freeze=none")), file


@pytest.mark.parametrize("page", [TRAIN, EVALUATE], ids=["train", "evaluate"])
def test_examples_use_keys_and_choices_that_exist(page: Page) -> None:
    for words, _ in page.examples:
        for key, value in (split_override(word) for word in words.split() if "=" in word):
            assert field_at(key, page.schema) is not None
            if key in groups():
                assert set(value.split(",")) <= set(groups()[key])


def test_evaluate_has_its_own_page(capsys: pytest.CaptureFixture[str]) -> None:
    print_evaluation_help()
    page = capsys.readouterr().out
    assert page.startswith("evaluate.py ") and "  checkpoint=null " in page and "expansion" not in page and "goes on" not in page
