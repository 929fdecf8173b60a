"""The audit notices a single changed bit of a frozen tensor: in the engine, in the folder, and in what is exported."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_training import STAGES, open_engine, run_config, train_steps

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.errors import FrozenWeightsError
from slayer.forward import load_model
from slayer.surgery.build import build_expanded, read_hashes, write_trained
from slayer.surgery.plan import build_plan
from slayer.surgery.weights import Weights
from slayer.training.engine import TrainingEngine
from slayer.training.frozen import FrozenAudit
from slayer.training.ranks import Ranks

FROZEN = "model.layers.1.mlp.up_proj.weight"
NEW = "model.layers.2."


@pytest.fixture(scope="module")
def built(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers and a new block at index 2."""
    folder = tmp_path_factory.mktemp("frozen") / "expanded"
    plan = build_plan(4, ExpansionConfig(strategy="shallow_half"), FreezeConfig(schedule="originals"))
    build_expanded(tiny_folder(), plan, folder, seed=0)
    return folder


def trained_names(folder: Path) -> list[str]:
    return [name for name in Weights(folder).infos if name.startswith(NEW)]


def open_on(folder: Path, ranks: Ranks, stage: int, precision: str) -> TrainingEngine:
    return open_engine(ranks, run_config(stage, precision), load_model(folder, precision), trained_names(folder))


@pytest.mark.parametrize(("stage", "precision"), [*((stage, "bf16") for stage in STAGES), (2, "fp32")])
def test_a_flipped_bit_in_the_engine(built: Path, ranks: Ranks, stage: int, precision: str) -> None:
    engine = open_on(built, ranks, stage, precision)
    try:
        audit = FrozenAudit(built, read_hashes(built), torch.bfloat16 if precision == "bf16" else torch.float32, ranks)
        n_frozen = len(Weights(built).infos) - 9
        assert audit.check(engine, "at the start") == n_frozen == len(engine.names) - 9
        train_steps(engine, run_config(stage, precision), 2)
        assert audit.check(engine, "at step 2") == n_frozen
        audit.check_resident(engine)
        with engine.whole(FROZEN, write=True) as parameter:
            parameter.data.view(torch.int16 if precision == "bf16" else torch.int32)[3, 5] ^= 1
        with pytest.raises(FrozenWeightsError, match=f"{FROZEN} .*changed on rank 0"):
            audit.check_resident(engine)
        with pytest.raises(FrozenWeightsError, match=f"{FROZEN} .*at step 3"):
            audit.check(engine, "at step 3")
    finally:
        engine.close()


def test_a_flipped_bit_in_the_folder(built: Path, ranks: Ranks, tmp_path: Path) -> None:
    """The tensor's bytes are found by their content, so this test knows nothing of the file's form."""
    folder = shutil.copytree(built, tmp_path / "expanded")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[content.index(Weights(folder)[FROZEN].numpy().tobytes()) + 17] ^= 1
    path.write_bytes(content)
    with pytest.raises(FrozenWeightsError, match=FROZEN):
        FrozenAudit(folder, read_hashes(built), torch.float32, ranks)


def test_a_changed_frozen_tensor_in_the_export(built: Path, ranks: Ranks, tmp_path: Path) -> None:
    """Trained tensors may be what they like; one that the audit holds for frozen may not."""
    names = trained_names(built)
    audit = FrozenAudit(built, read_hashes(built), torch.float32, ranks)
    trained = {name: Weights(built)[name] + 1 for name in names}
    assert audit.check_exported(write_trained(built, trained, tmp_path / "good"), names) == len(Weights(built).infos) - 9
    changed = {**trained, FROZEN: Weights(built)[FROZEN] * 1.0001}
    with pytest.raises(FrozenWeightsError, match=f"1 frozen tensors changed on export, first {FROZEN}"):
        audit.check_exported(write_trained(built, changed, tmp_path / "bad"), names)
    with pytest.raises(FrozenWeightsError, match="frozen tensors changed"):
        audit.check_exported({}, names)
