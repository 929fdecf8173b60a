"""What each of two ranks does for test_saving_ranks.py: saves beside training at every ZeRO stage, a disk that refuses one rank, a changed weight.

python -m torch.distributed.run --standalone --nproc_per_node=2 saving_rank.py FOLDER
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from small_disk import files_up_to
from small_training import BINDING, STAGES, names_in_layer, open_engine, run_config, small_model, state_of, train_steps

from slayer.config import TrainConfig
from slayer.errors import FrozenWeightsError
from slayer.surgery.weights import Weights
from slayer.training.checkpoint.folder import find_problem
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.checkpoint.saver import Saver
from slayer.training.checkpoint.share import Share
from slayer.training.engine import TrainingEngine
from slayer.training.ranks import Ranks, open_ranks
from slayer.training.state import RunState

CASES = [*((stage, "bf16") for stage in STAGES), (0, "fp32"), (2, "fp32")]
ODD = {"hidden_size": 15, "intermediate_size": 23, "head_dim": 8, "num_attention_heads": 1}
"""Tensors of an odd number of weights, which two ranks cannot cut in equal parts."""


def saver_of(folder: Path, engine: TrainingEngine, check_frozen: Callable[[], None] = lambda: None) -> Saver:
    return Saver(folder, engine, BINDING, TrainConfig(keep_checkpoints=9), {}, check_frozen=check_frozen)


def wrong_in(folder: Path, expected: dict[str, torch.Tensor]) -> list[str]:
    """Names whose saved values are not the expected ones, bit for bit."""
    weights = Weights(folder)
    return [name for name, value in expected.items() if name not in weights or not torch.equal(weights[name], value)]


def moment_case(ranks: Ranks, stage: int, precision: str, folder: Path) -> dict[str, Any]:
    """A save whose copy begins late while training goes on at once, and one of tensors that no longer train."""
    config = run_config(stage, precision, micro_batch_rows=1)
    names = [*names_in_layer(small_model(**ODD)), "model.norm.weight"]
    engine = open_engine(ranks, config, small_model(precision, **ODD), names)
    state, _ = train_steps(engine, config, 2, total=9)
    saver, expected = saver_of(folder, engine), state_of(engine)
    guard, updates = engine.guard.history_2W.clone(), engine.updates
    saver.save(state)
    state, _ = train_steps(engine, config, 3, state=state)
    saved = saver.wait()
    changed = not torch.equal(state_of(engine)["master/model.norm.weight"], expected["master/model.norm.weight"])
    assert saved is not None and saved.folder is not None
    engine.close()
    weights, problem = Weights(saved.folder), find_problem(saved.folder)
    found = {
        "wrong": wrong_in(saved.folder, {**expected, "guard/history": guard}), "problem": problem, "changed": changed,
        "updates": updates == json.loads((saved.folder / "state.json").read_text(encoding="utf-8"))["updates"],
        "files": {path.name: path.stat().st_size for path in saved.folder.iterdir()},
        "random": sorted(name for name in weights.infos if name.startswith("random/")),
    }  # fmt: skip
    later = open_engine(ranks, config, small_model(precision, **ODD), ["model.norm.weight"])
    load_checkpoint(saved.folder, later, BINDING)
    found["loaded"] = all(torch.equal(value, expected[name]) for name, value in state_of(later).items())
    train_steps(later, config, 1)
    again = saver_of(folder, later)
    again.save(RunState(step=5))
    kept = again.wait()
    assert kept is not None and kept.folder is not None
    masters = {name: value for name, value in expected.items() if name.startswith("master/") and "norm.weight" not in name.partition("layers")[0]}
    found |= {
        "retired_wrong": wrong_in(kept.folder, masters),
        "retired_names": sorted(name for name in Weights(kept.folder).infos if "/model." in name),
    }
    later.close()
    return found


def size_case(ranks: Ranks, stage: int, folder: Path) -> dict[str, Any]:
    """Bytes of a checkpoint of 1.8 million trained weights."""
    config, model = run_config(stage, "bf16", micro_batch_rows=1), small_model("bf16", hidden_size=384, intermediate_size=1024)
    names = names_in_layer(model)
    trained = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    engine = open_engine(ranks, config, model, names)
    train_steps(engine, config, 1)
    saver = saver_of(folder, engine)
    saver.save(RunState(step=1))
    saved = saver.wait()
    engine.close()
    assert saved is not None and saved.folder is not None
    return {"trained": trained, "bytes": [path.stat().st_size for path in sorted(saved.folder.glob("*.safetensors"))]}


def refused_case(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """The disk of the second rank refuses once, and in the end a weight of it has changed: what each rank is told, and what is there."""
    config = run_config(2, micro_batch_rows=1)
    engine = open_engine(ranks, config)
    train_steps(engine, config, 1)
    broken = False

    def check_frozen() -> None:
        if broken and ranks.rank == 1:
            raise FrozenWeightsError("a weight of rank 1 has changed")

    saver = saver_of(folder, engine, check_frozen)
    told = []
    for step in (1, 2, 3, 4):
        broken = step == 4
        with files_up_to(5000) if step == 2 and ranks.rank == 1 else nullcontext():
            saver.save(RunState(step=step))
            saved = saver.wait()
        assert saved is not None
        told.append([str(saved.problem) if saved.problem else None, saved.fatal, sorted(path.name for path in folder.iterdir())])
        ranks.wait()  # nobody looks at the folder while somebody writes the next one
    try:
        saver.require_good()
        raised = None
    except FrozenWeightsError as error:
        raised = str(error)
    engine.close()
    return {"told": told, "raised": raised}


def main(folder: Path) -> None:
    prompt = Share.copying

    def late(self: Share, engine: TrainingEngine) -> Callable[[], None]:
        copy = prompt(self, engine)
        return lambda: (time.sleep(0.2), copy())[1]

    with open_ranks() as ranks:
        Share.copying = late  # type: ignore[method-assign]
        found: dict[str, Any] = {
            "moment": {
                f"{stage} {precision}": moment_case(ranks, stage, precision, folder / f"moment-{stage}-{precision}")
                for stage, precision in CASES
            },
            "size": [size_case(ranks, stage, folder / f"size-{stage}") for stage in STAGES],
            "refused": refused_case(ranks, folder / "refused"),
        }  # fmt: skip
        (folder / f"rank-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
