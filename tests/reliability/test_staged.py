"""A freeze schedule through the real pipeline: new blocks, then tail and norms too, then the last two originals. Wherever such a run is cut, it
ends as the run that nobody cut, and what a stage freezes does not move in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from dying_ranks import KILLED, train
from safetensors.torch import load_file
from small_text import run_overrides, write_text

from slayer.config import load_config
from slayer.models import resolve_model
from slayer.reporting.events import read_events
from slayer.reporting.json_lines import read_json_lines
from slayer.stages import as_hydra_reads_it
from slayer.surgery.plan import load_plan
from slayer.training.checkpoint.compare import compare
from slayer.training.checkpoint.folder import list_checkpoints, step_of
from slayer.training.checkpoint.load import read_run_state
from slayer.training.signals import REQUEUE_EXIT_CODE

TOTAL_STEPS = 12
BOUNDARIES = (4, 8)
PARTS = ("{new:1}", "{new:1,tail:0.5,norms:0.5}", "{new:1,tail:0.5,norms:0.5,originals[1:3]:0.1}")
CLOCKED = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds")
ENGINE, UPDATE, MANIFEST = (
    "slayer.phases.fit:TrainingEngine",
    "slayer.training.engine:TrainingEngine.update",
    "slayer.training.checkpoint.saver:write_manifest",
)


def stages(tokens: Sequence[int]) -> str:
    typed = ",".join(f"{{until_tokens:{until},parts:{parts}}}" for until, parts in zip(tokens, PARTS, strict=False))
    return as_hydra_reads_it(f"freeze.stages=[{typed},{{parts:{PARTS[-1]}}}]")


class Staged:
    """Staged runs on one text, in one folder. Layers 0, 1, new, 2 (the tail, averaged with the pruned 3)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = [
            *run_overrides(write_text(folder / "text"), folder / "runs"), "prune=1", "freeze=staged", "freeze.warmup_steps=2",
            f"train.max_steps={TOTAL_STEPS}", "train.save_every=3", "train.keep_checkpoints=99", "train.batch_rows=4", "engine.micro_batch_rows=2",
        ]  # fmt: skip
        self.stages = stages((1, 2))

    def train(self, name: str, *words: str, expect: int = 0, ranks: int = 1, stop_at: int | None = None, die_at: str | None = None) -> Path:
        """Start a run, or start it again. `stop_at`: a SIGTERM in that step; `die_at`: a moment of dying_ranks."""
        environment = {"SLAYER_CACHE": str(self.folder / "cache")}
        if stop_at is not None:
            ledger = self.folder / f"ledger-{name}"
            ledger.mkdir(exist_ok=True)
            environment |= {"DRILL_LEDGER": str(ledger), "DRILL_STOP_AT": f"{ranks - 1}:{stop_at}"}
        if die_at is not None:
            environment["DIE_AT"] = die_at
        expect = REQUEUE_EXIT_CODE if stop_at is not None else KILLED if die_at is not None else expect
        train([*self.settings, self.stages, *words, f"run={name}"], self.folder / f"{name}.log", expect=expect, ranks=ranks, **environment)
        return self.folder / "runs" / name


def timeless(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in read_json_lines(run / "metrics.jsonl")]


def trained_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in timeless(run) if "lr" in line]


def model_bytes(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def assert_same_end(one: Path, other: Path) -> None:
    """Log lines, the last checkpoint and the exported model, bit for bit."""
    assert timeless(one) == timeless(other)
    found = compare(*(list_checkpoints(run / "checkpoints")[-1] for run in (one, other)))
    assert found.same and [key for key, *_ in found.state if key != "run.seconds"] == []
    assert model_bytes(one) == model_bytes(other)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> Staged:
    """The boundaries lie behind steps 4 and 8, in tokens that a run without stages tells."""
    runs = Staged(tmp_path_factory.mktemp("staged"))
    plain = runs.train("measure", "freeze=originals", f"train.max_steps={BOUNDARIES[-1]}", "freeze.stages=[]", "freeze.warmup_steps=10")
    tokens = {line["step"]: line["tokens"] for line in trained_lines(plain)}
    runs.stages = stages([tokens[step] for step in BOUNDARIES])
    return runs


@pytest.fixture(scope="module")
def whole(staged: Staged) -> Path:
    """The run that nobody cuts."""
    return staged.train("whole")


def members(run: Path) -> list[set[str]]:
    """The tensors that each stage trains, from the plan's picture of the layers and plain words."""
    plan, names = load_plan(run / "plan.json"), list(load_file(run / "model" / "model.safetensors"))
    assert [type(entry).__name__ for entry in plan.entries] == ["Keep", "Keep", "New", "Keep"]
    first = {name for name in names if name.startswith("model.layers.2.")}
    second = first | {name for name in names if name.startswith("model.layers.3.") or name.endswith("norm.weight")}
    return [first, second, second | {name for name in names if name.startswith("model.layers.1.")}]


def test_stages_are_told(staged: Staged, whole: Path) -> None:
    lines = trained_lines(whole)
    assert [(line["step"], line["stage"]) for line in lines] == [(step, 1 + (step > 4) + (step > 8)) for step in range(1, TOTAL_STEPS + 1)]
    assert read_run_state(list_checkpoints(whole / "checkpoints")[-1]).stage_steps == (0, *BOUNDARIES)
    said = (staged.folder / "whole.log").read_text(encoding="utf-8")
    assert [f"freeze stage {number} of 3 from step {step}" in said for number, step in ((1, 0), (2, 4), (3, 8))] == [True] * 3
    assert read_events(whole / "events.jsonl") == []


def test_what_a_stage_freezes_does_not_move_in_it(whole: Path) -> None:
    """Between any two checkpoints in a row; what no stage trains is the base's in the exported model, what one trains is not."""
    parts, folders = members(whole), list_checkpoints(whole / "checkpoints")
    assert [step_of(folder) for folder in folders] == [3, 4, 6, 8, 9, 12]
    held = [load_file(folder / "model.safetensors") for folder in folders]
    for (older, old), (newer, new) in pairwise(zip(folders, held, strict=True)):
        trains = parts[sum(step_of(older) >= boundary for boundary in BOUNDARIES)]
        masters = {name.removeprefix("master/") for name in new if name.startswith("master/")}
        assert trains <= masters, newer
        for name in masters & {name.removeprefix("master/") for name in old}:
            assert torch.equal(new[f"master/{name}"], old[f"master/{name}"]) == (name not in trains), (newer, name)
    base = load_file(resolve_model(load_config(whole / "config.yaml").model) / "model.safetensors")
    model = load_file(whole / "model" / "model.safetensors")
    base_layers = {"0": "0", "1": "1"}
    compared = 0
    for name, tensor in model.items():
        layer = name.split(".")[2] if name.startswith("model.layers.") else None
        if layer in (None, *base_layers):
            compared += 1
            assert torch.equal(tensor, base[name]) == (name not in parts[-1]), name
    assert compared == 2 * 9 + 2  # two kept layers, the embedding and the last norm


CUTS: dict[str, list[dict[str, Any]]] = {
    "a kill in the first stage, a stop at its boundary, a kill in the second, a kill at its boundary, a stop in the third": [
        {"die_at": f"{UPDATE}:2"}, {"stop_at": 4}, {"die_at": f"{UPDATE}:3"}, {"die_at": f"{ENGINE}:2"}, {"stop_at": 10},
    ],
    "a stop in the first stage, a kill while its boundary is saved, a stop in the second, a stop at its boundary, a kill in the third": [
        {"stop_at": 2}, {"die_at": f"{MANIFEST}:2"}, {"stop_at": 5}, {"stop_at": 8}, {"die_at": f"{UPDATE}:3"},
    ],
}  # fmt: skip


@pytest.mark.parametrize("cuts", CUTS.values(), ids=("kill first", "stop first"))
def test_a_run_that_is_cut_everywhere_ends_the_same(staged: Staged, whole: Path, cuts: list[dict[str, Any]], request: pytest.FixtureRequest) -> None:
    name = request.node.callspec.id.replace(" ", "-")
    for cut in cuts:
        run = staged.train(name, **cut)
        assert not (run / "model").exists()
    staged.train(name)
    assert_same_end(run, whole)
    stopped = [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "stopped"]
    assert stopped == [cut["stop_at"] for cut in cuts if "stop_at" in cut]


@pytest.mark.slow
def test_ranks_and_zero_stages_change_on_the_way(staged: Staged) -> None:
    """fp32: one rank at ZeRO-2 in the first stage, two at ZeRO-3 over the boundary, one at ZeRO-0, two at ZeRO-1: the losses of one rank."""
    precision = "engine.precision=fp32"
    whole = staged.train("fp32", precision, "engine.zero_stage=1")
    staged.train("mixed", precision, stop_at=3)
    staged.train("mixed", precision, "engine.zero_stage=3", "engine.micro_batch_rows=1", ranks=2, stop_at=6)
    staged.train("mixed", precision, "engine.zero_stage=0", stop_at=8)
    run = staged.train("mixed", precision, "engine.zero_stage=1", ranks=2)
    for one, other in zip(trained_lines(run), trained_lines(whole), strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)
    ranks = [event["ranks"] for event in read_events(run / "events.jsonl") if event["event"] == "resumed"]
    assert ranks == [2, 1, 2]
    models = [load_file(one / "model" / "model.safetensors") for one in (run, whole)]
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero_stage", "precision", "ranks"),
    [(3, "bf16", 2), (0, "fp32", 1), *(pytest.param(*case, marks=pytest.mark.matrix) for case in ((0, "bf16", 2), (1, "bf16", 1), (2, "fp32", 2)))],
)
def test_every_engine_goes_on_bit_identically(staged: Staged, zero_stage: int, precision: str, ranks: int) -> None:
    """Killed in the second stage, on as many ranks as before."""
    words = [f"engine.zero_stage={zero_stage}", f"engine.precision={precision}"]
    name = f"zero{zero_stage}-{precision}-{ranks}"
    whole = staged.train(f"{name}-whole", *words, ranks=ranks)
    staged.train(name, *words, ranks=ranks, die_at=f"{UPDATE}:{6}")
    run = staged.train(name, *words, ranks=ranks)
    assert timeless(run) == timeless(whole) and model_bytes(run) == model_bytes(whole)
    state = json.loads((list_checkpoints(run / "checkpoints")[-1] / "state.json").read_text(encoding="utf-8"))
    assert (state["world"], state["zero_stage"]) == (ranks, zero_stage)


def test_a_stage_that_no_step_is_left_for_does_not_hold_the_run_up(staged: Staged) -> None:
    """Two boundaries within one step."""
    tokens = trained_lines(staged.folder / "runs" / "measure")[3]["tokens"]
    run = staged.train("narrow", stages((tokens, tokens + 1)), "train.max_steps=6")
    assert [line["stage"] for line in trained_lines(run)] == [1, 1, 1, 1, 2, 3]
    run = staged.train("skipped-over", stages((tokens - 1, tokens)), "train.max_steps=6")
    assert [line["stage"] for line in trained_lines(run)] == [1, 1, 1, 1, 3, 3]
