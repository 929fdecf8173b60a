"""python -m slayer.data: the words of train.py, the text shown, nothing trained."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from small_text import text_overrides, write_text

from slayer.config import save_config
from slayer.launching import data
from slayer.launching.compose import compose

ROOT = Path(__file__).parents[3]


def typed(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """Exit code of the command with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["slayer.data", *words])
    return data.main()


def as_module(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "slayer.data", *words], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120, check=False)


def test_help_explains_the_keys_of_the_text() -> None:
    done = as_module("--help")
    assert done.returncode == 0 and "python -m slayer.data" in done.stdout
    for key in ("data.packing", "data.cleaning.near_duplicates", "data.warn_epochs", "model.path", "train.max_tokens", "runs_dir"):
        assert f"  {key}" in done.stdout
    assert "train.py -m" not in done.stdout


def test_every_mistake_is_told_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    assert typed(monkeypatch, *small, "data.packin=pad", "prune=x") == 2
    said = capsys.readouterr()
    assert "2 problems in the configuration" in said.err and "data.packing" in said.err and "prune = 'x'" in said.err
    assert "Traceback" not in said.err + said.out


def test_a_sweep_is_refused_and_a_configuration_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch, "-m", "prune=0,1") == 2
    assert "leave out -m" in capsys.readouterr().err
    assert typed(monkeypatch, "--cfg", "job", "prune=3") == 0
    assert re.search(r"^prune: 3$", capsys.readouterr().out, re.M)
    assert typed(monkeypatch, "--cfg", "job", "prun=3") == 2


def test_ctrl_c_is_not_a_failure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "show_text", interrupted)
    assert typed(monkeypatch, *small) == 130
    assert "what was prepared stays in the cache" in capsys.readouterr().err


def test_the_text_is_shown_and_nothing_else_is_made(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = text_overrides(write_text(tmp_path / "text"))
    words = ["model=tiny", *text, "data.cleaning.decontaminate=[]", f"runs_dir={tmp_path / 'my runs'}", "run=x", "train.max_steps=3"]
    assert typed(monkeypatch, *words) == 0
    said = capsys.readouterr()
    out = said.out
    folder = tmp_path / "my runs" / "x"
    assert {path.name for path in folder.iterdir()} == {"data_report.html", "data_report.md", "figures"}
    assert re.search(r"^domain +domain +\d+", out, re.M) and re.search(r"^general +replay +\d+", out, re.M)
    assert "domain, row" in out and str(folder / "data_report.html") in out
    last = [line.strip() for line in out.splitlines() if line.strip().startswith("python train.py")][-1]
    assert shlex.split(last)[:2] == ["python", "train.py"] and set(shlex.split(last)[2:]) == set(words), "the same words"
    assert compose(shlex.split(last)[2:]).folder == folder


def test_a_trained_run_keeps_the_report_of_its_own_text(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], small: list[str], tmp_path: Path
) -> None:
    words = [*small, f"runs_dir={tmp_path}", "run=x"]
    save_config(compose(words), tmp_path / "x" / "config.yaml")
    (tmp_path / "x" / "model").mkdir()
    (tmp_path / "x" / "data_report.md").write_text("its own", encoding="utf-8")
    assert typed(monkeypatch, *words, "data.sequence_length=64") == 2
    assert "holds a run made with another configuration" in capsys.readouterr().err
    assert (tmp_path / "x" / "data_report.md").read_text(encoding="utf-8") == "its own"
