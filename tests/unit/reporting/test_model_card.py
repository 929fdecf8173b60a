"""The model card: a valid head, honest numbers, nothing about the machine it was made on."""

from __future__ import annotations

import ast
import re

import yaml
from sample_run import sample_config, sample_results, write_run, write_staged_run

from slayer.config import ModelConfig, save_config
from slayer.reporting.model_card import model_card


def head_of(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_has_plan_shares_tokens_and_scores(tmp_path):
    card = model_card(write_run(tmp_path / "run"))
    head = head_of(card)
    assert head["library_name"] == "transformers" and head["base_model"] == "smollm2_135m" and "slayer" in head["tags"]
    for piece in (
        "| pruned base layers | 16, 17 |",
        "2 (after base layer 1)",
        "81,920 tokens in 40 steps",
        "| 75.0 % |",
        "−22.2 to −20.5 %",
        "## Limits",
    ):
        assert piece in card, piece
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert ast.parse(code)


def test_a_hub_model_is_named_in_full_and_a_local_one_without_its_path(tmp_path):
    run_dir = write_run(tmp_path / "run")
    for model, name in (
        (ModelConfig(name="x", hub="HuggingFaceTB/SmolLM2-135M"), "HuggingFaceTB/SmolLM2-135M"),
        (ModelConfig(name="x", path="/home/somebody/secret/my-model"), "my-model"),
    ):
        save_config(sample_config(run="run").model_copy(update={"model": model}), run_dir / "config.yaml")
        card = model_card(run_dir)
        assert head_of(card)["base_model"] == name and "somebody" not in card


def test_a_card_without_results_claims_nothing(tmp_path):
    card = model_card(write_run(tmp_path / "run", results={"format": 1, "run": "run"}))
    assert "## Scores" not in card and "scored on nothing yet" in card
    assert head_of(model_card(tmp_path / "nothing"))["library_name"] == "transformers"


def test_a_result_that_forgot_says_so(tmp_path):
    card = model_card(write_run(tmp_path / "run", results=sample_results(replay=5.0)))
    assert "wikipedia_en text worse than its base: it needs 5.0 % more bits per byte" in card


def test_a_staged_run_lists_its_stages(tmp_path):
    card = model_card(write_staged_run(tmp_path / "run"))
    assert "what was trained changed in 3 stages" in card
    assert "| stage 2, until 45,056 tokens | new, tail × 0.5, norms × 0.5 (8 of 35 layers and the norms of 27) |" in card
    assert "| trained layers | 2, 5, 8, 11, 14, 17, 20, 33, 34 |" in card
