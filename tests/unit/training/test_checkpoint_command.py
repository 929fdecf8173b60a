"""python -m slayer.training.checkpoint: what it says of whole, damaged and strange folders, and its exit codes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_training import names_in_layer, open_engine, run_config, save_now, small_model, train_steps

from slayer.training.checkpoint.__main__ import main
from slayer.training.checkpoint.compare import compare
from slayer.training.checkpoint.folder import checkpoint_folder
from slayer.training.ranks import Ranks
from slayer.training.state import RunState

NAMES = names_in_layer(small_model())
KINDS = ("master", "exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module")
def trained(ranks: Ranks, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with checkpoints of steps 2 and 4."""
    run, config = tmp_path_factory.mktemp("runs") / "law", run_config(2, save_every=2)
    engine = open_engine(ranks, config)
    try:
        train_steps(engine, config, 4, checkpoints=run / "checkpoints")
    finally:
        engine.close()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(trained, tmp_path / "law")


@pytest.fixture(autouse=True)
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def said(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str]:
    """Exit code and all that was printed; nobody may see a traceback."""
    capsys.readouterr()
    code = main([str(word) for word in words])
    printed = capsys.readouterr()
    text = printed.out + printed.err
    assert "Traceback" not in text
    return code, text


def step(run: Path, number: int) -> Path:
    return checkpoint_folder(run / "checkpoints", number)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


# --- verify


@pytest.mark.parametrize("inner", ["", "checkpoints", "checkpoints/step-00000004"])
def test_verify_whole_ones(trained: Path, capsys: pytest.CaptureFixture[str], inner: str) -> None:
    code, text = said(capsys, "verify", trained / inner)
    steps = (4,) if inner.endswith("4") else (2, 4)
    assert code == 0 and [line.split() for line in text.splitlines()] == [["whole", str(step(trained, number))] for number in steps]


def test_verify_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(step(run, 4) / "model.safetensors")
    (run / "checkpoints" / "step-00000006").write_text("a file")
    code, text = said(capsys, "verify", run)
    lines = text.splitlines()
    assert code == 1 and [line.split()[0] for line in lines] == ["whole", "damaged", "damaged", "2"]
    assert "model.safetensors is not what was written" in lines[1] and "step-00000006: it is a file" in lines[2]
    assert lines[3] == "2 of 3 damaged; a run goes on from its newest whole one"
    assert said(capsys, "verify", step(run, 2))[0] == 0 and said(capsys, "verify", step(run, 4))[0] == 1
    assert said(capsys, "verify", run / "checkpoints" / "step-00000006")[0] == 2  # nothing of it can be a checkpoint


def test_verify_one_that_was_moved_away(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A copy under a name of its owner is as whole as the original."""
    kept = run / "the good one"
    step(run, 4).rename(kept)
    assert said(capsys, "verify", kept) == (0, f"whole    {kept}\n")
    flip(kept / "state.json")
    assert said(capsys, "verify", kept)[0] == 1


def test_verify_leaves_everything_as_it_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for words in (["verify", run], ["list", run], ["diff", run]):
        said(capsys, *words)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


# --- list


def cells(text: str) -> list[list[str]]:
    return [re.split(r" {2,}", line.strip()) for line in text.splitlines()]


def test_list(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, "list", trained)
    head, *rows = cells(text)
    assert code == 0 and head == ["step", "tokens", "stage", "tensors", "size", "written by", "rewinds"]
    for number, row in zip((2, 4), rows, strict=True):
        state = json.loads((step(trained, number) / "state.json").read_text(encoding="utf-8"))
        n_bytes = sum(path.stat().st_size for path in step(trained, number).iterdir())
        assert row == [str(number), str(state["run"]["tokens"]), "1", "9", f"{n_bytes / 1000:.1f} kB", "1 rank, ZeRO-2", "0"]
    assert all(len(line) <= 80 for line in text.splitlines())


def test_list_goes_on_over_damaged_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its state a checkpoint has a size; a file in its place not even that."""
    (step(run, 2) / "state.json").write_text("[]")
    (run / "checkpoints" / "step-00000006").write_text("a file")
    code, text = said(capsys, "list", run)
    _, first, second, third = cells(text)
    assert code == 0 and first[:2] == ["2", "damaged"] and second[0] == "4" and third[:2] == ["6", "damaged"]


# --- diff


def test_diff_of_two_steps_in_plain_numbers(trained: Path) -> None:
    """Against the tensors as safetensors alone reads them."""
    found = compare(step(trained, 2), step(trained, 4))
    one, two = (load_file(step(trained, number) / "model.safetensors") for number in (2, 4))
    assert [tensor.name for tensor in found.tensors] == sorted(NAMES) and found.n_same == 0 and not found.same
    for tensor in found.tensors:
        changes = [two[f"{kind}/{tensor.name}"] - one[f"{kind}/{tensor.name}"] for kind in KINDS]
        ratios = [float(change.norm() / one[f"{kind}/{tensor.name}"].norm()) for kind, change in zip(KINDS, changes, strict=True)]
        assert [tensor.relative, tensor.exp_avg, tensor.exp_avg_sq] == pytest.approx(ratios, rel=1e-6)
        assert tensor.largest == float(changes[0].abs().max()) > 0
    states = [json.loads((step(trained, number) / "state.json").read_text(encoding="utf-8"))["run"] for number in (2, 4)]
    assert {key for key, *_ in found.state} == {"run.step", "run.tokens", "run.seconds", "run.position.step"}
    assert ("run.tokens", states[0]["tokens"], states[1]["tokens"]) in found.state


def test_diff_as_it_is_printed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run: its newest two. Names whole, no line wider than the terminal but the folders'."""
    code, text = said(capsys, "diff", trained)
    head, *lines = text.splitlines()
    assert code == 0 and head == f"{step(trained, 2)} → {step(trained, 4)}"
    assert "  run.step: 2 → 4" in lines and lines[-1] == "0 of 9 tensors are the same; change: ‖second − first‖ / ‖first‖"
    for name in NAMES:
        assert any(line.startswith(name.removeprefix("model.").removesuffix(".weight") + " ") for line in lines)
    assert all(len(line) <= 80 for line in lines)
    assert said(capsys, "diff", step(trained, 2), step(trained, 4)) == said(capsys, "diff", step(trained, 2), trained) == (0, text)


def test_diff_of_the_same(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(step(run, 4), run / "copy")
    code, text = said(capsys, "diff", step(run, 4), copy)
    assert code == 0 and text.splitlines()[1:] == ["all 9 tensors are the same, bit for bit"]


def test_diff_of_different_stages(ranks: Ranks, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What trains in one of them only, what no longer does, and a change from zero; behind zeroed outputs a query does not move in a first step."""
    config = run_config(2)
    engine = open_engine(ranks, config, trainable=["model.norm.weight", NAMES[0]])
    try:
        engine.load_state({f"master/{NAMES[1]}": torch.ones(engine.shape(NAMES[1]))}, {})
        first = save_now(run / "a", engine, RunState(step=5)).folder
        train_steps(engine, config, 1)
        second = save_now(run / "b", engine, RunState(step=5, tokens=7)).folder
    finally:
        engine.close()
    assert first is not None and second is not None
    by_name = {one.name: one for one in compare(step(run, 4), first).tensors}
    assert by_name["model.norm.weight"].note == "only in second" and by_name[NAMES[-1]].note == "only in first"
    assert by_name[NAMES[1]].exp_avg is None and by_name[NAMES[1]].relative > 0
    code, text = said(capsys, "diff", first, second)
    assert code == 0 and re.search(r"^norm +\S+ % +\S+ +from zero +from zero$", text, re.MULTILINE)
    assert text.splitlines()[-1].startswith("2 of 3 tensors are the same")
    assert "  run.tokens: 0 → 7" in text.splitlines()


def test_diff_of_models_of_another_size(ranks: Ranks, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = run_config(2)
    engine = open_engine(ranks, config, small_model(hidden_size=32))
    try:
        other = save_now(run / "other", engine, RunState(step=4)).folder
    finally:
        engine.close()
    assert other is not None
    code, text = said(capsys, "diff", step(run, 4), other)
    assert code == 0 and text.count("another shape") == 9


def test_diff_refuses_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(step(run, 2) / "model.safetensors")
    code, text = said(capsys, "diff", run)
    assert code == 2 and "step-00000002 is damaged: model.safetensors is not what was written" in " ".join(text.split())


# --- what cannot be answered


def test_strange_folders(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(step(run, 2))
    (tmp_path / "empty").mkdir()
    for words, answer in {
        ("verify", tmp_path / "missing"): "there is no folder",
        ("list", tmp_path / "empty"): "holds no checkpoint yet",
        ("diff", run): "holds one checkpoint only",
        ("diff", step(run, 4)): "holds one checkpoint only",
        ("diff", run, tmp_path / "missing"): "there is no folder",
        ("verify", step(run, 4) / "state.json"): "there is no folder",
    }.items():
        code, text = said(capsys, *words)
        assert code == 2 and answer in " ".join(text.split())


@pytest.mark.parametrize("words", [["check", "x"], ["verify"], ["verify", "a", "b"], ["diff", "a", "b", "c"], ["--verbose"]])
def test_words_that_cannot_be_read(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, *words)
    assert code == 2 and f"cannot read {' '.join(words)!r}" in text and "verify DIR" in text


@pytest.mark.parametrize("words", [[], ["--help"], ["verify", "-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(capsys, *words)
    assert code == 0 and text.startswith("python -m slayer.training.checkpoint COMMAND DIR")


def test_from_a_shell(run: Path) -> None:
    """The real command."""
    flip(step(run, 2) / "state.json")
    words = [sys.executable, "-m", "slayer.training.checkpoint", "verify", str(run)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[3])
    assert (done.returncode, done.stderr) == (1, "") and done.stdout.startswith("damaged")
