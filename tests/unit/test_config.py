from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import ValidationError

from slayer.config import (
    NOT_PART_OF_A_RUN,
    DataConfig,
    EngineConfig,
    ExpansionConfig,
    FreezeConfig,
    ModelConfig,
    RandomModelConfig,
    RunConfig,
    SourceConfig,
    TrainConfig,
    config_differences,
    load_config,
    save_config,
)
from slayer.errors import CheckpointError
from slayer.schema import accepts, field_at, schema_keys

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config() -> RunConfig:
    return RunConfig(
        run="trial",
        model=ModelConfig(name="tiny", random=RandomModelConfig()),
        prune=2,
        expansion=ExpansionConfig(strategy="explicit", after=[-1, 3]),
        freeze=FreezeConfig(schedule="originals"),
        data=DataConfig(
            name="mine",
            sources={"law": SourceConfig(role="domain", path="a: b #c.txt"), "general": SourceConfig(role="replay", builtin="wikipedia_en")},
        ),
        engine=EngineConfig(zero_stage=2),
        train=TrainConfig(learning_rate=1e-05, max_steps=0),
    )


def test_saving_and_loading_gives_an_equal_configuration(config: RunConfig, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run" / "config.yaml"
    save_config(config, path)
    assert load_config(path) == config
    assert [file.name for file in path.parent.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("value", ["yes", "1e3", "null", "0x10", "1_000", "${seed}", "???", " padded ", "é\n", "'quoted'", "12:30", "[a]"])
def test_texts_that_look_like_something_else_survive(config: RunConfig, tmp_path: Path, value: str) -> None:
    changed = config.model_copy(update={"data": config.data.model_copy(update={"name": value})})
    save_config(changed, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml").data.name == value


@pytest.mark.parametrize("text", ["", "run: [", "run: other\nprunee: 2\n", "- 1\n- 2\n", "just text", "\x00"])
def test_anything_else_is_refused_with_its_path(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.yaml .*run=NAME"):
        load_config(path)
    with pytest.raises(CheckpointError):
        load_config(tmp_path / "absent.yaml")


def test_differences_name_key_and_both_values(config: RunConfig) -> None:
    other = config.model_copy(update={"prune": 3, "train": config.train.model_copy(update={"beta2": 0.99})})
    assert config_differences(config, other) == [("prune", 2, 3), ("train.beta2", 0.95, 0.99)]
    assert config_differences(config, config) == []


def test_where_and_how_a_run_runs_is_no_difference(config: RunConfig) -> None:
    values = config.model_dump()
    values |= {"dry_run": True, "runs_dir": "elsewhere", "launcher": {"processes": 4}, "tracker": {"name": "wandb"}}
    assert config_differences(config, RunConfig.model_validate(values)) == []
    assert set(NOT_PART_OF_A_RUN) < set(RunConfig.model_fields)


def test_sections_are_frozen_and_strict(config: RunConfig) -> None:
    with pytest.raises(ValidationError):
        config.prune = 3  # type: ignore[misc]
    for wrong in ({"prune": "2"}, {"prune": 2.0}, {"prune": True}, {"nope": 1}, {"train": {"learning_rate": "fast"}}):
        with pytest.raises(ValidationError):
            RunConfig.model_validate({**config.model_dump(), **wrong})


def test_config_yaml_holds_keys_of_the_schema_and_whole_sections() -> None:
    values: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / "config.yaml"))
    shown = {key: value for key, value in values.items() if key not in ("defaults", "hydra", "run")}
    flat = {f"{key}.{name}": inner for key, value in shown.items() if isinstance(value, dict) for name, inner in value.items()}
    flat |= {key: value for key, value in shown.items() if not isinstance(value, dict)}
    for key, value in flat.items():
        field = field_at(key)
        assert field is not None and accepts(field, value), key
    for section in ("train", "heldout"):
        assert set(shown[section]) == {key.partition(".")[2] for key in schema_keys() if key.startswith(f"{section}.")}


def test_every_key_has_a_line_of_help() -> None:
    for key in schema_keys():
        field = field_at(key)
        assert field is not None and field.description and not field.description.endswith("."), key
