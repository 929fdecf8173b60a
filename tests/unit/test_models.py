from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from slayer.config import ModelConfig, RandomModelConfig
from slayer.errors import ModelError
from slayer.models import model_hash_cached, model_problem, resolve_model


@pytest.fixture
def folder(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy of a tiny model's folder, to be damaged."""
    return Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))


def local(folder: Path) -> ModelConfig:
    return ModelConfig(name="local", path=str(folder))


def test_a_whole_folder_is_taken_as_it_is(folder: Path) -> None:
    assert resolve_model(local(folder)) == folder and model_problem(local(folder)) is None


def test_the_home_folder_may_be_written_as_a_tilde(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert resolve_model(ModelConfig(name="local", path="~/model")) == folder


def test_random_models_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path))
    model = ModelConfig(name="tiny", random=RandomModelConfig(layers=1))
    made = resolve_model(model)
    stamp = (made / "model.safetensors").stat().st_mtime_ns
    assert resolve_model(model) == made and (made / "model.safetensors").stat().st_mtime_ns == stamp


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-7])


def only_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def other_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}), encoding="utf-8")


def missing_shard(folder: Path) -> None:
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors", "model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def torn_config(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "lla', encoding="utf-8")


def empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (truncate, "model.safetensors is not a whole safetensors file"),
        (empty_weights, "model.safetensors is not a whole safetensors file"),
        (only_pickle, "pytorch_model.bin, a pickle, which is never loaded"),
        (other_type, "model_type='gpt2'; supported are llama, mistral, qwen2, qwen3"),
        (missing_shard, "lacks model-00002-of-00002.safetensors"),
        (no_tokenizer, "has no tokenizer"),
        (no_config, "no readable config.json"),
        (torn_config, "is not valid JSON"),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_what_is_wrong_with_a_folder_is_told(folder: Path, damage: Callable[[Path], None], told: str) -> None:
    damage(folder)
    with pytest.raises(ModelError) as caught:
        resolve_model(local(folder))
    assert told in str(caught.value) and str(folder) in str(caught.value)
    problem = model_problem(local(folder))
    assert problem is not None and problem.key == "model.path" and problem.value == str(folder) and told in problem.why


def test_a_missing_asset_names_the_command_that_fetches_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path))
    problem = model_problem(ModelConfig(name="smollm2_135m", asset="smollm2_135m"))
    assert problem is not None and problem.fix == "python -m slayer.data.assets fetch smollm2_135m"
    unknown = model_problem(ModelConfig(name="x", asset="gpt5"))
    assert unknown is not None and "there is no asset 'gpt5'" in unknown.why


def test_hub_models_are_not_touched_before_they_are_needed() -> None:
    assert model_problem(ModelConfig(name="hub", hub="nobody/nothing")) is None


def test_a_hub_model_without_a_network_is_one_message() -> None:
    with pytest.raises(ModelError, match=r"model\.hub=nobody/nothing could not be fetched.*model=local model\.path=DIR"):
        resolve_model(ModelConfig(name="hub", hub="nobody/nothing"))


def test_the_hash_is_of_the_weights_and_remembered(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / "cache"))
    first = model_hash_cached(folder)
    remembered = list((tmp_path / "cache" / "hashes").iterdir())
    assert len(remembered) == 1 and model_hash_cached(folder) == first and list((tmp_path / "cache" / "hashes").iterdir()) == remembered
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert model_hash_cached(folder) != first
