"""warm_start: a run begins from another one's result where that is asked for, and nowhere else; what does not fit is refused before anything
is built."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from command_runs import folder_hash, train
from run_folders import RunFolder
from safetensors.torch import load_file

from slayer.config import load_config
from slayer.errors import CheckpointError, ConfigError
from slayer.launching.compose import compose
from slayer.models import resolve_model
from slayer.surgery.freeze import trainable_names
from slayer.surgery.plan import load_plan
from slayer.training.checkpoint.folder import list_checkpoints

RunHere = Callable[..., RunFolder]
SETTINGS = ("prune=1", "engine.precision=fp32")


def model_of(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.path / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def first(run_here: RunHere) -> RunFolder:
    """Three steps of the new block and the tail."""
    return run_here("first", *SETTINGS, "train.max_steps=3", "train.learning_rate=0.01")


@pytest.fixture(scope="module")
def other_text(workspace: Path) -> list[str]:
    """Domain and general text change places."""
    return [f"data.path={workspace / 'text' / 'general.jsonl'}", f"data.sources.general.path={workspace / 'text' / 'domain.jsonl'}"]


@pytest.fixture(scope="module")
def second(run_here: RunHere, first: RunFolder, other_text: list[str]) -> RunFolder:
    """Two steps on other text, from the first one's result."""
    return run_here("second", *SETTINGS, *other_text, "train.save_every=1", f"warm_start={first.path}")


def test_it_starts_from_the_other_runs_weights_bit_for_bit(run_here: RunHere, first: RunFolder, other_text: list[str]) -> None:
    """A run of no step exports what it began with."""
    start = run_here("start", *SETTINGS, *other_text, "train.max_steps=0", f"warm_start={first.path}")
    assert (start.path / "model" / "model.safetensors").read_bytes() == (first.path / "model" / "model.safetensors").read_bytes()


def test_without_the_key_nothing_is_taken(run_here: RunHere, first: RunFolder) -> None:
    cold = run_here("cold", *SETTINGS, "train.max_steps=0")
    trained, begun = model_of(first), model_of(cold)
    moved = trainable_names(load_plan(first.path / "plan.json"), list(trained))
    assert len(moved) == 18 and all(torch.equal(trained[name], begun[name]) == (name not in moved) for name in trained)
    assert all(not begun[name].any() for name in begun if name.startswith("model.layers.2.") and name.endswith(("o_proj.weight", "down_proj.weight")))


def test_what_trained_goes_on_and_what_is_frozen_is_the_bases(first: RunFolder, second: RunFolder) -> None:
    plan, model = load_plan(second.path / "plan.json"), model_of(second)
    base = load_file(resolve_model(load_config(second.path / "config.yaml").model) / "model.safetensors")
    moved = set(trainable_names(plan, list(model)))
    for name, tensor in model.items():
        if name in moved:
            assert not torch.equal(tensor, model_of(first)[name]), name
        else:
            assert torch.equal(tensor, base[name]), name  # the frozen layers 0 and 1 have the same place in both
    assert second.results["training"]["frozen_tensors_checked"] == len(model) - len(moved)


def test_moments_are_clean(first: RunFolder, second: RunFolder) -> None:
    """AdamW's first step moves a weight by the learning rate at most, since its moments hold that step's gradient alone."""
    folder = list_checkpoints(second.path / "checkpoints")[0]
    state, held, begun = json.loads((folder / "state.json").read_text(encoding="utf-8")), load_file(folder / "model.safetensors"), model_of(first)
    assert state["run"]["step"] == 1 and set(state["updates"].values()) == {1}
    rate = next(line["lr"] for line in second.metrics if line["step"] == 1)
    config = load_config(second.path / "config.yaml").train
    for name in state["updates"]:
        moved = (held[f"master/{name}"] - begun[name]).abs().max()
        assert 0 < float(moved) <= rate * 1.001 + 1e-7, name
        ratio = held[f"exp_avg/{name}"] ** 2 / (1 - config.beta1) ** 2, held[f"exp_avg_sq/{name}"] / (1 - config.beta2)
        torch.testing.assert_close(*ratio, rtol=1e-4, atol=1e-30)


def test_nothing_claims_that_it_starts_as_the_base(first: RunFolder, second: RunFolder) -> None:
    assert second.results["proof"]["identity_max_difference"] is None and first.results["proof"]["identity_max_difference"] == 0
    for name in ("report.md", "report.html", "model/README.md"):
        assert "identity" not in (second.path / name).read_text(encoding="utf-8"), name
    report = (second.path / "report.md").read_text(encoding="utf-8")
    assert f"start as the run {first.path} has trained them" in report and "compared with the base's" not in report
    assert f"beginning from the result of {first.path}" in (second.path / "model" / "README.md").read_text(encoding="utf-8")
    assert "identity" in (first.path / "report.md").read_text(encoding="utf-8")


def test_a_chain_of_runs(run_here: RunHere, first: RunFolder) -> None:
    """The run between trains another layer only: what the first one trained is frozen there, and still handed on."""
    between = run_here("between", *SETTINGS, "freeze=existing_layers", "freeze.train_layers=[0]", f"warm_start={first.path}")
    third = run_here("third", *SETTINGS, "train.max_steps=0", f"warm_start={between.path}")
    assert folder_hash(third.path / "model") != folder_hash(first.path / "model")
    found = model_of(third)
    for name, tensor in model_of(first).items():
        assert torch.equal(found[name], tensor) == (not name.startswith("model.layers.0.")), name
    assert all(torch.equal(found[name], tensor) for name, tensor in model_of(between).items())


def test_a_run_that_has_begun_needs_the_other_one_no_more(run_here: RunHere, first: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    gone = shutil.copytree(first.path, first.path.with_name("gone"))
    words = [*SETTINGS, "train.max_steps=0", f"warm_start={gone}"]
    before = run_here("after", *words)
    shutil.rmtree(gone)
    run_here("after", *words)
    assert "is finished; nothing to do" in capsys.readouterr().out and before.results["model_hash"] == first.results["model_hash"]


# ── what is refused ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_folder_that_is_no_finished_run_is_refused_at_once(workspace: Path, overrides: list[str], run_here: RunHere, first: RunFolder) -> None:
    planned = run_here("planned", *SETTINGS, "dry_run=true")
    torn = shutil.copytree(first.path, first.path.with_name("torn"))
    (torn / "results.json").write_text("{", encoding="utf-8")
    empty = workspace / "empty"
    empty.mkdir()
    for folder, why in (
        (workspace / "nowhere", "there is no such folder"), (empty, "it is not a finished run (no plan.json, no model/config.json"),
        (planned.path, "it is not a finished run (no model/config.json"), (first.path / "model", "it is not a finished run"),
        (torn, "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(ConfigError) as error:
            compose([*overrides, *SETTINGS, f"warm_start={folder}", "run=refused"])
        (problem,) = error.value.problems
        assert problem.key == "warm_start" and why in problem.why and "warm_start=runs/NAME" in problem.fix
    assert not (workspace / "runs" / "refused").exists()


def flip_a_bit(path: Path) -> None:
    """Deep inside the tensors."""
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


REFUSED: dict[str, tuple[list[str], str, Callable[[Path], None] | None]] = {
    "other layers": (["expansion.every=1"], "has other layers .n_layers, entries", None),
    "other pruning": (["prune=0", "tail=train"], "has other layers", None),
    "another base": (["model.random.seed=1"], "began from another base", None),
    "another width": (["model.random.hidden_size=32"], "began from another base", None),
    "a flipped bit": ([], "is not what that run exported", flip_a_bit),
    "a file cut short": ([], "warm_start=.*model.safetensors", cut_short),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_run_that_does_not_fit_is_refused_and_nothing_is_built(run_here: RunHere, first: RunFolder, case: str) -> None:
    words, message, damage = REFUSED[case]
    other, name = first.path, f"refused-{case.replace(' ', '-')}"
    if damage is not None:
        other = shutil.copytree(first.path, first.path.with_name(f"damaged-{case.replace(' ', '-')}"))
        damage(other / "model" / "model.safetensors")
    with pytest.raises(CheckpointError, match=message) as error:
        run_here(name, *SETTINGS, *words, f"warm_start={other}")
    assert "warm_start" in str(error.value) and "\n" not in str(error.value)
    left = {path.name for path in (first.path.parent / name).iterdir()}
    assert not {"expanded", "model", "checkpoints"} & left and not [path for path in left if "warm" in path or "partial" in path]


def test_a_refusal_is_one_message_and_exit_code_2(overrides: list[str], run_here: RunHere, first: RunFolder, workspace: Path) -> None:
    """And the name is not lost: without the key the same run is begun."""
    words = [*overrides, *SETTINGS, "train.max_steps=0", "run=named"]
    done = train(*words, "model.random.seed=1", f"warm_start={first.path}", SLAYER_CACHE=str(workspace / "cache"))
    assert done.code == 2 and "began from another base" in done.out and "Traceback" not in done.out
    run = run_here("named", *SETTINGS, "train.max_steps=0")
    assert run.results["proof"]["identity_max_difference"] == 0
