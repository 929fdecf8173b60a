"""Everything README.md tells a person to type works, and every file it names is there."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from run_folders import ROOT
from small_text import run_overrides
from test_evaluate import composed

from slayer.launching.__main__ import main as status
from slayer.launching.commandline import groups
from slayer.launching.compose import compose
from slayer.models import resolve_model
from slayer.schema import field_at
from slayer.training.checkpoint.__main__ import REFUSED_EXIT_CODE, main

pytestmark = pytest.mark.usefixtures("own_cache")

README = (ROOT / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", README, flags=re.S)
COMMANDS = [line.strip() for line in PROSE.splitlines() if re.match(r" {4}(make|python) ", line)]
INLINE = [code for code in re.findall(r"`([^`\n]+)`", PROSE)]
Start = Callable[..., "subprocess.Popen[str]"]


def test_the_lines_that_this_test_knows_of() -> None:
    """A new kind of command in the README needs a check of its own here."""
    assert [command for command in COMMANDS if command.startswith("make ")] == ["make demo", "make test"]
    known = (
        "python train.py ",
        "python -m slayer.data ",
        "python -m slayer.training.checkpoint ",
        "python -m slayer.launching ",
        "python evaluate.py ",
        "make ",
    )
    assert len(COMMANDS) >= 6 and all(command.startswith(known) for command in COMMANDS)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    "target", sorted(set(re.findall(r"\bmake ([a-z]+)\b", " ".join([*COMMANDS, *(code for code in INLINE if code.startswith("make"))]))))
)
def test_make_knows_its_targets(target: str) -> None:
    """Printed, not run: make test would start itself."""
    printed = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert printed.returncode == 0 and "python" in printed.stdout, printed.stderr


@pytest.mark.parametrize("command", [command for command in COMMANDS if "training.checkpoint" in command])
def test_checkpoint_lines_are_understood(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that has saved nothing yet there is nothing to show, and nothing else is wrong with the line."""
    words = command.replace("runs/NAME", str(tmp_path)).split()[3:]
    assert main(words) == REFUSED_EXIT_CODE
    assert "holds no checkpoint yet" in capsys.readouterr().err


def words_of(command: str, names: dict[str, str]) -> list[str]:
    """The overrides of a command, with its capital placeholders replaced."""
    for placeholder, value in names.items():
        command = re.sub(rf"\b{placeholder}\b", value, command)
    return [word for word in shlex.split(command)[2:] if "=" in word and not word.endswith("=")]


@pytest.fixture(scope="module")
def names(workspace: Path) -> dict[str, str]:
    """A real folder, text and folder of task files for DIR, TEXT and TASKS."""
    from slayer.config import ModelConfig, RandomModelConfig

    folder = resolve_model(ModelConfig(name="tiny", random=RandomModelConfig(layers=8)))
    return {"DIR": str(folder), "TEXT": str(workspace / "text" / "domain.jsonl"), "N": "1", "NAME": "demo", "TASKS": str(_harness_tasks() / "arc")}


def _harness_tasks() -> Path:
    found = importlib.util.find_spec("lm_eval")
    assert found is not None and found.submodule_search_locations is not None
    return Path(found.submodule_search_locations[0]) / "tasks"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith(("python train.py", "python -m slayer.data"))])
def test_train_lines_are_sound(command: str, names: dict[str, str], workspace: Path) -> None:
    """Each value of a sweep by itself; `python -m slayer.data` takes the words of train.py. What needs the fetched model or text gets the
    small ones, unless the line names its own."""
    words = [re.sub(r"=interval\(([^,]+),.*\)$", r"=\1", word) for word in words_of(command, names) if not word.startswith("hydra")]
    typed = {word.partition("=")[0] for word in words}
    small = [word for word in run_overrides(workspace / "text", workspace / "runs") if word.partition("=")[0] not in typed]
    several = [word for word in words if "," in word and "[" not in word]
    single = [word for word in words if word not in several]
    for word in several or [""]:
        key, _, values = word.partition("=")
        for value in values.split(","):
            compose([*small, *single, *([f"{key}={value}"] if key else [])])


@pytest.mark.parametrize("command", [command for command in COMMANDS if "slayer.launching status" in command])
def test_status_lines_are_understood(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nothing has run yet that is said, and nothing else is wrong with the line."""
    assert status(command.replace("runs", str(tmp_path)).split()[3:]) == REFUSED_EXIT_CODE
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("python evaluate.py")])
def test_evaluation_lines_are_sound(command: str, names: dict[str, str], questions: None) -> None:
    assert composed(words_of(command, names))


@pytest.mark.parametrize("code", sorted({code for code in INLINE if re.match(r"[a-z_.]+=\S", code)}))
def test_overrides_in_the_text_are_sound(code: str, names: dict[str, str], workspace: Path, questions: None) -> None:
    """`key=value` between backticks, alone on top of a small run, or of a small evaluation where only that has such a key."""
    words = words_of(f"python train.py {code}", {**names, "OWNER": "someone"})
    if any(field_at(word.partition("=")[0]) is None for word in words):
        composed(["checkpoint=tiny", "suite=quick", *words])
        return
    small = run_overrides(workspace / "text", workspace / "runs")
    if any(word.startswith("model=") for word in words):
        small = [word for word in small if not word.startswith("model=")]
    compose([*small, *words])


def test_the_table_of_choices_is_complete() -> None:
    rows = {
        group: {choice.split(" ")[0] for choice in choices.split(", ")} for group, choices in re.findall(r"^\| `(\w+)=` \| ([^|]+) \|$", PROSE, re.M)
    }
    assert set(rows) == {"expansion", "freeze", "engine", "suite", "decoding", "analysis", "launcher", "tracker", "experiment"}
    for group, choices in rows.items():
        assert choices == set(groups()[group]), group


def test_links_and_files_are_there() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


@pytest.mark.matrix
def test_the_three_lines_are_typed(start: Start, workspace: Path, overrides: list[str], questions: None) -> None:
    """For real, one after another; overrides that make them small are put behind what the README says."""
    train, sweep, evaluate = [command for command in COMMANDS if "=DIR" not in command and not command.startswith("make")][:3]
    assert "-m" in shlex.split(sweep) and evaluate == "python evaluate.py checkpoint=runs/NAME suite=quick"
    runs = {"train": workspace / "readme", "sweep": workspace / "readme-sweep"}
    small = [*overrides, "train.max_steps=1", "heldout.samples=0"]
    # Both at once: neither needs the other, and each has a folder of its own.
    processes = [start([*shlex.split(line)[1:], *small, f"runs_dir={folder}"]) for line, folder in zip((train, sweep), runs.values(), strict=True)]
    for process, command in zip(processes, (train, sweep), strict=True):
        output = process.communicate(timeout=400)[0]
        assert process.returncode == 0, f"{command}\n{output[-3000:]}"
    finished = {name: sorted(path.parent for path in folder.glob("*/results.json")) for name, folder in runs.items()}
    assert (len(finished["train"]), len(finished["sweep"])) == (1, 6)
    for folder in [*finished["train"], *finished["sweep"]]:
        assert json.loads((folder / "results.json").read_text(encoding="utf-8"))["objective"]["value"] > 0
    (page,) = (runs["sweep"] / "sweeps").rglob("*.html")
    assert all(placement in page.read_text(encoding="utf-8") for placement in ("shallow_half", "even", "deep_half"))
    (result,) = finished["train"]
    for promised in re.findall(r"^ {6}(\S+)", PROSE.split("    runs/NAME/")[1], re.M):
        assert (result / promised).exists(), promised
    scored = start([*shlex.split(evaluate.replace("runs/NAME", shlex.quote(str(result))))[1:], "limit=2"])
    output = scored.communicate(timeout=200)[0]
    assert scored.returncode == 0 and "report.html" in output, output[-3000:]
