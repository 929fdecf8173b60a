"""The pipeline end to end: what a run leaves, every way to train, and that no interruption changes a number."""

from __future__ import annotations

import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from run_folders import RunFolder
from safetensors.torch import load_file, save_file
from small_training import RandomRows

from slayer.config import load_config
from slayer.errors import CheckpointError
from slayer.forward import load_model, logits_of
from slayer.launching.compose import compose
from slayer.models import resolve_model
from slayer.pipeline import run_pipeline
from slayer.surgery.build import build_expanded
from slayer.surgery.freeze import trainable_names
from slayer.surgery.plan import load_plan
from slayer.training.checkpoint.folder import list_checkpoints
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.optim import TrainedGroup
from slayer.training.ranks import Ranks
from slayer.training.state import Binding

pytestmark = pytest.mark.usefixtures("ranks", "own_cache")

RunHere = Callable[..., RunFolder]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def finished(run_here: RunHere) -> RunFolder:
    """Four steps with everything on: a pruned layer, checkpoints and evaluations every second step."""
    return run_here("finished", "prune=1", "train.max_steps=4", "train.save_every=2", "train.evaluate_every=2")


def test_a_run_proves_itself(finished: RunFolder) -> None:
    results = finished.results
    assert results["proof"]["identity_max_difference"] == 0
    assert results["training"]["export_max_difference"] == 0
    tensors = load_file(finished.path / "model" / "model.safetensors")
    assert results["training"]["frozen_tensors_checked"] == len(tensors) - 2 * 9
    assert results["training"]["trained_parameters"] == sum(tensors[name].numel() for name in tensors if re.match(r"model\.layers\.[23]\.", name))
    assert results["training"]["total_parameters"] == sum(tensor.numel() for tensor in tensors.values())
    assert not (finished.path / "expanded").exists()


def test_the_plan_is_saved(finished: RunFolder) -> None:
    plan = load_plan(finished.path / "plan.json")
    assert (plan.n_base, plan.n_layers, plan.pruned, plan.new_indices, plan.trainable) == (4, 4, (3,), (2,), (2, 3))
    assert (finished.path / "model" / "plan.json").read_bytes() == (finished.path / "plan.json").read_bytes()


def test_every_step_has_a_whole_line(finished: RunFolder) -> None:
    lines = finished.metrics
    assert [line["step"] for line in lines] == [0, 1, 2, 2, 3, 4, 4]
    trained = [line for line in lines if "loss" in line]
    whole = {"step", "steps", "tokens", "loss", "grad_norm", "lr", "tokens_per_second", "mfu", "memory_bytes", "step_seconds"}
    for before, line in zip([{"tokens": 0}, *trained], trained, strict=False):
        assert whole <= line.keys() and all(math.isfinite(line[key]) for key in whole - {"mfu"})
        sources = [key.removeprefix("tokens/") for key in line if key.startswith("tokens/")]
        counts = [line[f"tokens/{source}"] for source in sources]
        assert sources and line["tokens"] - before["tokens"] == sum(counts)
        weighted = sum(line[f"loss/{source}"] * count for source, count in zip(sources, counts, strict=True))
        assert line["loss"] == pytest.approx(weighted / sum(counts))
    heldout = [line for line in lines if "heldout/domain" in line]
    assert [line["step"] for line in heldout] == [0, 2, 4] and all("heldout/general" in line for line in heldout)
    assert heldout[0]["heldout/domain"] > heldout[-1]["heldout/domain"]


PLAIN = """
import json, sys, torch
sys.modules["slayer"] = None  # any import of it fails
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, rows, out, dtype = sys.argv[1:]
model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"], info
rows = load_file(rows)
with torch.no_grad():
    logits = model.eval()(input_ids=rows["ids"], attention_mask=rows["allowed"], position_ids=rows["positions"]).logits
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.decode(model.generate(**tokenizer("slow light", return_tensors="pt"), max_new_tokens=4, do_sample=False)[0])
assert text.startswith("slow light") or "slow light" in text, text
save_file({"logits": logits.contiguous()}, out)
"""


def test_the_result_is_plain_transformers_and_computes_what_the_engine_computed(finished: RunFolder, ranks: Ranks, tmp_path: Path) -> None:
    """Another process, isolated and without this package, against an engine that holds the last checkpoint."""
    batch = RandomRows(4).batch(0)
    documents, length = batch.documents_BL, batch.documents_BL.shape[1]
    allowed = torch.zeros((len(documents), 1, length, length), dtype=torch.bool)
    for row in range(len(documents)):
        for query in range(length):
            for key in range(query + 1):
                allowed[row, 0, query, key] = documents[row, query] == documents[row, key]
    save_file({"ids": batch.input_ids_BL, "allowed": allowed, "positions": batch.positions_BL}, tmp_path / "rows.safetensors")
    subprocess.run(
        [sys.executable, "-I", "-c", PLAIN, str(finished.path / "model"), "rows.safetensors", "logits.safetensors", "bfloat16"],
        cwd=tmp_path, check=True, timeout=200,
    )  # fmt: skip
    plain = load_file(tmp_path / "logits.safetensors")["logits"]

    config, plan = load_config(finished.path / "config.yaml"), load_plan(finished.path / "plan.json")
    build_expanded(resolve_model(config.model), plan, tmp_path / "expanded", seed=config.seed)
    model = load_model(tmp_path / "expanded", "bf16")
    names = trainable_names(plan, [name for name, _ in model.named_parameters()])
    engine = TrainingEngine(model, [TrainedGroup(names=tuple(names))], config, ranks)
    try:
        newest = list_checkpoints(finished.path / "checkpoints")[-1]
        state = json.loads((newest / "state.json").read_text(encoding="utf-8"))
        assert load_checkpoint(newest, engine, Binding(model=state["model"], data=state["data"])).step == 4
        assert torch.equal(engine.logits(batch), plain)
    finally:
        engine.close()


def test_the_card_tells_shares_tokens_and_scores(finished: RunFolder) -> None:
    card, results = (finished.path / "model" / "README.md").read_text(encoding="utf-8"), finished.results
    assert f"{results['training']['tokens']:,} tokens in 4 steps" in card
    for report, share in zip(results["data"], ("75.0 %", "25.0 %"), strict=True):
        assert f"| {report['name']} | {report['role']} | {report['train_documents']} | {share} |" in card
    for source, role in (("domain", "domain"), ("general", "replay")):
        entry = results["heldout"][source]
        assert f"| {source} | {role} | {entry['base']:.3f} | {entry['result']:.3f} |" in card
    assert "shallow_half" in card and "pruned base layers | 3" in card


def test_the_report_fetches_nothing(finished: RunFolder) -> None:
    page = (finished.path / "report.html").read_text(encoding="utf-8")
    assert len(page) > 20_000 and "shallow_half" in page
    addresses = [match for match in re.finditer(r"https?://", page) if "xmlns" not in page[max(match.start() - 20, 0) : match.start()]]
    assert not [page[match.start() - 40 : match.end() + 40] for match in addresses if "<a " not in page[max(match.start() - 80, 0) : match.start()]]
    fetched = re.findall(r"<(?:link|script|iframe|object|embed)\b[^>]*(?:src|href)[^>]*>|@import|url\((?!['\"]?(?:data:|#))", page)
    assert not fetched
    assert all(source.startswith("data:") for source in re.findall(r"<img[^>]*\bsrc=['\"]([^'\"]*)", page))
    assert (finished.path / "report.md").read_text(encoding="utf-8").count("|") > 50


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_no_step_at_all_exports_the_base_with_identities(run_here: RunHere, precision: str) -> None:
    run = run_here(f"untrained-{precision}", "train.max_steps=0", f"engine.precision={precision}")
    base = resolve_model(load_config(run.path / "config.yaml").model)
    batch = RandomRows(4).batch(0)
    with torch.no_grad():
        logits = [logits_of(load_model(folder, precision), batch) for folder in (base, run.path / "model")]
    assert torch.equal(*logits)
    assert run.results["proof"]["identity_max_difference"] == 0
    assert all(entry["change_percent"] == 0 and entry["result"] == entry["base"] for entry in run.results["heldout"].values())
    assert (run.path / "report.html").exists() and load_plan(run.path / "plan.json").n_layers == 5


WAYS: dict[str, tuple[list[str], int]] = {
    "full": (["expansion=none", "freeze=none"], 38),
    "everything": (["freeze=none"], 47),
    "existing-layers": (["expansion=none", "freeze=existing_layers", "freeze.train_layers=[0,2]"], 18),
    "solar": (["expansion=solar", "freeze=none"], 56),
    "zero0": (["engine=zero0"], 9),
    "zero1": (["engine=zero1"], 9),
    "zero2": (["engine=zero2"], 9),
    "zero3": (["engine=zero3"], 9),
    "recomputed": (["engine.activation_checkpointing=true"], 9),
    "fp32": (["engine.precision=fp32"], 9),
    "accumulated": (["engine.micro_batch_rows=1"], 9),
    "tensorboard": (["tracker=tensorboard"], 9),
    "removal": (["prune=1", "prune_by=removal"], 9),
    "least-important": (["expansion=least_important", "expansion.score=block_influence", "prune=1", "prune_by=shapley_window"], 9),
    "no-replay": (["data.replay=0"], 9),
}


@pytest.fixture(scope="module")
def ways(run_here: RunHere) -> Callable[[str], RunFolder]:
    """ways(name): that run, made once."""
    made: dict[str, RunFolder] = {}

    def get(name: str) -> RunFolder:
        if name not in made:
            made[name] = run_here(f"way-{name}", *WAYS[name][0])
        return made[name]

    return get


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_train(ways: Callable[[str], RunFolder], way: str) -> None:
    run = ways(way)
    results, tensors = run.results, load_file(run.path / "model" / "model.safetensors")
    assert len(run.losses) == 2 and all(math.isfinite(loss) and loss > 0 for loss in run.losses)
    assert results["training"]["export_max_difference"] == 0
    assert results["training"]["frozen_tensors_checked"] == len(tensors) - WAYS[way][1]
    assert results["proof"]["identity_max_difference"] == (None if way in ("full", "existing-layers", "solar") else 0)
    assert math.isfinite(results["objective"]["value"]) and (run.path / "report.html").exists()
    base = load_file(resolve_model(load_config(run.path / "config.yaml").model) / "model.safetensors")
    plan = load_plan(run.path / "plan.json")
    moved = 0
    for name, tensor in tensors.items():
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
        entry = plan.entries[int(match[1])] if match else None
        if match and getattr(entry, "base_index", None) is None:
            continue  # a new block has no tensor of the base to compare with
        origin = base[f"model.layers.{entry.base_index}.{match[2]}" if match else name]  # type: ignore[union-attr]
        moved += not torch.equal(tensor, origin)
    kept_and_trained = {"full": 38, "everything": 38, "existing-layers": 18, "solar": 38}.get(way, 0)
    assert moved == kept_and_trained if way != "solar" else moved > 0


def test_stages_and_precisions_agree(ways: Callable[[str], RunFolder]) -> None:
    reference = ways("zero2").losses
    for way, tolerance in {"zero0": 2e-3, "zero1": 2e-3, "zero3": 2e-3, "recomputed": 2e-3, "accumulated": 2e-3, "fp32": 2e-2}.items():
        assert ways(way).losses == pytest.approx(reference, abs=tolerance), way


def test_tensorboard_gets_its_files(ways: Callable[[str], RunFolder]) -> None:
    assert list((ways("tensorboard").path / "tensorboard").rglob("*tfevents*"))


# ── interruptions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_kill_changes_no_number(workspace: Path, overrides: list[str], start: Start, run_here: RunHere) -> None:
    """A SIGKILL after a save, and the same command again: losses, scores and model of a run that nobody touched."""
    settings = ["train.max_steps=40", "train.save_every=4", "train.log_every=3", "prune=1"]
    whole = run_here("untouched", *settings)
    folder = RunFolder(path=workspace / "runs" / "killed")
    words = ["train.py", *overrides, *settings, "run=killed"]

    first = start(words)
    manifest = folder.path / "checkpoints" / "step-00000008" / "manifest.json"
    deadline = time.monotonic() + 120
    while not manifest.exists():
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0][-3000:]
        time.sleep(0.002)
    first.kill()
    first.communicate(timeout=60)
    assert first.returncode == -signal.SIGKILL and not (folder.path / "model").exists()

    second = start(words)
    output, _ = second.communicate(timeout=200)
    assert second.returncode == 0 and re.search(r"going on from step \d+ of 40", output), output[-3000:]
    assert folder.timeless == whole.timeless
    assert (folder.path / "model" / "model.safetensors").read_bytes() == (whole.path / "model" / "model.safetensors").read_bytes()
    assert folder.results["heldout"] == whole.results["heldout"]


@pytest.fixture
def unfinished(finished: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished run as a kill during its export would have left it, with checkpoints of steps 2 and 4."""
    folder = Path(shutil.copytree(finished.path, tmp_path / "finished"))
    shutil.rmtree(folder / "model")
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")  # the score of the export
    results = finished.results
    for section in ("training", "objective", "samples"):
        results.pop(section)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return RunFolder(path=folder)


def damage(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def go_on(run: RunFolder, overrides: list[str]) -> None:
    settings = ["prune=1", "train.max_steps=4", "train.save_every=2", "train.evaluate_every=2", "run=finished"]
    run_pipeline(compose([*overrides, *settings, f"runs_dir={run.path.parent}"]), "python train.py")


@pytest.mark.parametrize("damaged", [(), (4,)])
def test_a_run_goes_on_from_its_newest_good_checkpoint(
    finished: RunFolder, unfinished: RunFolder, overrides: list[str], capsys: pytest.CaptureFixture[str], damaged: tuple[int, ...]
) -> None:
    checkpoints = list_checkpoints(unfinished.path / "checkpoints")
    (unfinished.path / "checkpoints" / "step-00000006.partial").mkdir()
    for step in damaged:
        damage(checkpoints[step // 2 - 1])
    go_on(unfinished, overrides)
    printed = " ".join(capsys.readouterr().out.split())
    assert f"going on from step {2 if damaged else 4} of 4" in printed
    assert ("checkpoint step-00000004 is damaged" in printed) == bool(damaged)
    assert unfinished.timeless == finished.timeless
    exports = [(run.path / "model" / "model.safetensors").read_bytes() for run in (unfinished, finished)]
    assert exports[0] == exports[1] and unfinished.results["heldout"] == finished.results["heldout"]


def test_a_run_without_a_good_checkpoint_refuses(unfinished: RunFolder, overrides: list[str]) -> None:
    for checkpoint in list_checkpoints(unfinished.path / "checkpoints"):
        damage(checkpoint)
    lines = unfinished.metrics
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is intact; .*run=NAME"):
        go_on(unfinished, overrides)
    assert unfinished.metrics == lines and not (unfinished.path / "model").exists()
