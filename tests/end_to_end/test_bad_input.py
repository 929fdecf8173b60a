"""Bad input at the command line: one clear message, an exit code that is not 0, no traceback, and nothing of an earlier run damaged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_runs import folder_hash, run_here, train
from small_text import run_overrides, write_text

from slayer.training.ranks import Ranks


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A sound command."""
    folder = tmp_path_factory.mktemp("work")
    return run_overrides(write_text(folder / "text"), folder / "runs")


@pytest.fixture(scope="module")
def runs(small: list[str], ranks: Ranks) -> Path:
    """The folder of its runs, with a finished one that is called earlier."""
    run_here(*small, "run=earlier")
    return Path(small[-1].removeprefix("runs_dir="))


@pytest.fixture
def refused(small: list[str], runs: Path) -> Callable[..., str]:
    """refused(words …): what the command says when it is refused; the earlier run is as it was."""

    def run(*words: str, run: str = "later", **changes: str) -> str:
        before = folder_hash(runs / "earlier")
        done = train(*small, f"run={run}", *words, **changes)
        assert done.code == 2, done.out
        assert "Traceback" not in done.out and done.out.count("✖") == 1, done.out
        assert folder_hash(runs / "earlier") == before
        return done.out

    return run


# ── the configuration ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_everything_wrong_with_the_command_is_told_at_once(refused: Callable[..., str], runs: Path) -> None:
    said = refused("prunee=2", "expansion=shalow_half", "prune_by=[1", "tail=averag", "train.max_steps=abc", "engine.micro_batch_rows=3", run="a/b")
    assert "6 problems in the configuration" in said
    for fix in ("type: prune=2", "type: expansion=shallow_half", "type: prune_by=", "type: tail=average", "type: train.max_steps=1", "type: run=a_b"):
        assert fix in said
    assert sorted(path.name for path in runs.iterdir()) == ["earlier"]


def test_missing_assets_name_the_command_that_fetches_them(tmp_path: Path) -> None:
    done = train(f"runs_dir={tmp_path / 'runs'}", SLAYER_CACHE=str(tmp_path / "cache"))
    assert done.code == 2 and "Traceback" not in done.out
    assert "type: python -m slayer.data.assets fetch smollm2_135m" in done.out
    assert "type: python -m slayer.data.assets fetch wikipedia" in done.out
    assert not (tmp_path / "runs").exists()


# ── the text ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def latin(path: Path) -> None:
    path.write_bytes("déjà vu\n\nencore".encode("latin-1"))


def write_lines(path: Path, count: int, field: str = "text", last: str = "") -> None:
    path.write_text("".join(json.dumps({field: f"document {number}"}) + "\n" for number in range(count)) + last, encoding="utf-8")


def without_field(path: Path) -> None:
    write_lines(path, 3, field="content")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def blank(path: Path) -> None:
    path.write_text(" \n\n \n", encoding="utf-8")


def one_document(path: Path) -> None:
    write_lines(path, 1)


def torn(path: Path) -> None:
    write_lines(path, 3, last='{"text": "tor')


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        ("empty.jsonl", empty, ("matches 1 file, and it is empty", "data.path=TEXT")),
        ("blank.txt", blank, ("its only record cannot be used: blank.txt:1 is empty",)),
        ("absent.jsonl", None, ("does not exist", "data.path=TEXT")),
        ("latin.txt", latin, ("is not UTF-8: byte 1 is 0xe9", "iconv")),
        ("fields.jsonl", without_field, ("has no such field; it has content", "text_field=content")),
        ("one.jsonl", one_document, ("there is only one document",)),
        ("torn.jsonl", torn, ("torn.jsonl:4", "is not JSON")),
    ],
)  # fmt: skip
def test_text_that_cannot_be_used(
    refused: Callable[..., str], runs: Path, tmp_path: Path, name: str, make: Callable[[Path], None] | None, told: tuple[str, ...]
) -> None:
    path = tmp_path / name
    if make is not None:
        make(path)
    said = refused(f"data.path={path}")
    assert "1 problem in the configuration" in said and name in said and all(words in said for words in told), said
    assert not (runs / "later").exists()


# ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def gone(folder: Path) -> None:
    shutil.rmtree(folder)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def of_another_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}), encoding="utf-8")


def truncated(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", (folder / "model.safetensors").stat().st_size // 2)


def wordless(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (gone, "does not exist"),
        (pickled, "pytorch_model.bin, a pickle, which is never loaded"),
        (of_another_type, "model_type='gpt2'; supported are llama, mistral, qwen2, qwen3"),
        (truncated, "is not a whole safetensors file"),
        (wordless, "has no tokenizer"),
    ],
)
def test_a_model_that_cannot_be_used(refused: Callable[..., str], runs: Path, tmp_path: Path, damage: Callable[[Path], None], told: str) -> None:
    model = tmp_path / "model"
    shutil.copytree(runs / "earlier" / "model", model)
    damage(model)
    said = refused("model=local", f"model.path={model}")
    assert "model.path = " in said and told in said and "model.path=DIR" in said
    assert not (runs / "later").exists()


# ── the run folder and the machine ───────────────────────────────────────────────────────────────────────────────────────


def test_a_run_of_another_configuration_is_not_touched(refused: Callable[..., str]) -> None:
    said = refused("train.learning_rate=0.5", "expansion=even", run="earlier")
    assert "holds a run made with another configuration" in said and "run=NAME" in said
    assert "train.learning_rate: the run has 0.001, you asked for 0.5" in said
    assert "expansion.strategy: the run has 'shallow_half', you asked for 'even'" in said
    assert "heldout" not in said and "runs_dir" not in said


@pytest.mark.parametrize("damaged", ["results.json", "config.yaml"])
def test_a_damaged_file_of_a_run_is_named_and_left_alone(refused: Callable[..., str], runs: Path, damaged: str) -> None:
    path = runs / "earlier" / damaged
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\n  [")
    try:
        said = refused(run="earlier")
    finally:
        path.write_bytes(whole)
    assert damaged in said and "run=NAME" in said


def test_a_port_in_use_is_named_before_anything_starts(refused: Callable[..., str], runs: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = refused("launcher.processes=2", "engine.micro_batch_rows=2", f"launcher.port={port}")
    assert f"launcher.port={port} cannot be used" in said and "launcher.port=0" in said
    assert not (runs / "later").exists()


def test_a_file_where_the_runs_should_go(refused: Callable[..., str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine", encoding="utf-8")
    said = refused(f"runs_dir={path}")
    assert str(path) in said and "runs_dir=DIR" in said and path.read_text(encoding="utf-8") == "mine"


def grow(weights: Path, size_bytes: int) -> None:
    """Add one tensor of so many bytes to a safetensors file; the hole it makes takes no place on the disk."""
    raw = weights.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + length]), raw[8 + length :]
    header["model.huge.weight"] = {"dtype": "U8", "shape": [size_bytes], "data_offsets": [len(data), len(data) + size_bytes]}
    encoded = json.dumps(header).encode()
    weights.write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    os.truncate(weights, 8 + len(encoded) + len(data) + size_bytes)


def test_no_disk_space_at_start(refused: Callable[..., str], runs: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(runs / "earlier" / "model", model)
    grow(model / "model.safetensors", shutil.disk_usage(tmp_path).free)
    said = refused("model=local", f"model.path={model}", run="large")
    assert "not enough disk space for the expanded" in said and "GB needed" in said and "runs_dir=DIR" in said
    assert not {"expanded", "expanded.partial", "checkpoints", "model"} & {path.name for path in (runs / "large").iterdir()}


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system without a single byte left."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    with (folder / "filler").open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(b"x" * 4096)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_without_a_single_byte_left(refused: Callable[..., str], full_disk: Path) -> None:
    said = refused(f"runs_dir={full_disk}")
    assert "No space left on device" in said and "runs_dir=DIR" in said
