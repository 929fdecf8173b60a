"""The script of a job: what it asks for, that nothing typed breaks out of it, and which keys are refused before it is written."""

from __future__ import annotations

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import LauncherConfig, RunConfig, load_config, save_config
from slayer.errors import ConfigError
from slayer.launching.compose import compose
from slayer.launching.sbatch import launcher_problems, script, time_seconds

ROOT = Path(__file__).parents[3]
OF_SLURM = {
    "nodes": 2, "partition": "gpu", "account": "me", "qos": "high", "time": "12:00:00", "gres": "gpu:8", "cpus_per_task": 4, "memory": "480G",
    "constraint": "h100", "exclusive": True, "signal_seconds": 60, "requeue": False, "modules": ["cuda"], "setup": ["true"],
    "container": "apptainer exec x.sif", "environment": ["HOME"], "options": ["--nice"], "wait": True,
}  # fmt: skip


@pytest.fixture
def config(small: list[str], tmp_path: Path) -> RunConfig:
    return compose([*small, f"runs_dir={tmp_path}", "run=x", "launcher=slurm"])


@cache
def plain_config() -> RunConfig:
    return compose(["model=tiny", "data.cleaning.decontaminate=[]", "run=x", "runs_dir=/runs", "launcher=slurm"])


def asked(text: str) -> dict[str, str]:
    """The options of a script, as a shell would read them."""
    words = [word for line in text.splitlines() if line.startswith("#SBATCH ") for word in shlex.split(line.removeprefix("#SBATCH "))]
    return {name: value for name, _, value in (word.partition("=") for word in words)}


def is_shell(text: str) -> bool:
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True, check=False).returncode == 0


def test_the_keys_of_slurm_are_all_known_here() -> None:
    assert {"name", "processes", "restarts", "port"} | OF_SLURM.keys() == LauncherConfig.model_fields.keys()


@pytest.mark.parametrize("key", OF_SLURM)
def test_a_key_that_the_local_launcher_does_not_read_is_refused(key: str) -> None:
    (problem,) = launcher_problems(LauncherConfig(**{key: OF_SLURM[key]}))
    assert problem.key == f"launcher.{key}" and "launcher=slurm" in problem.fix


def test_a_port_is_refused_with_slurm() -> None:
    (problem,) = launcher_problems(LauncherConfig(name="slurm", port=29500))
    assert problem.key == "launcher.port" and "launcher=local" in problem.fix


def test_everything_asked_for_is_in_the_script(config: RunConfig, tmp_path: Path) -> None:
    launcher = LauncherConfig(name="slurm", processes=8, **OF_SLURM)
    text = script(config.model_copy(update={"launcher": launcher}), "python train.py prune=2", Path("/home/me"))
    options = asked(text)
    expected = {
        "--nodes": "2", "--ntasks-per-node": "8", "--partition": "gpu", "--account": "me", "--qos": "high", "--time": "12:00:00", "--gres": "gpu:8",
        "--cpus-per-task": "4", "--mem": "480G", "--constraint": "h100", "--exclusive": "", "--signal": "USR1@60", "--no-requeue": "",
        "--export": "HOME", "--nice": "", "--job-name": "slayer-x", "--open-mode": "append", "--output": f"{tmp_path}/x/slurm/job-%j.log",
    }  # fmt: skip
    assert options == expected
    assert "\nmodule load cuda\n" in text and "\ntrue\n" in text and "\ncd /home/me || exit 2\n" in text and text.startswith("#!/bin/bash -l\n")
    (srun,) = [line for line in text.splitlines() if line.startswith("srun ")]
    inside = "apptainer exec x.sif python -m slayer.launching.task python -m slayer.launching.worker"
    assert f"--cpus-per-task=4 {inside} {tmp_path}/x 'python train.py prune=2'" in srun
    assert "scontrol requeue" not in text and is_shell(text)


def test_what_is_not_asked_for_is_left_to_the_cluster(config: RunConfig) -> None:
    text = script(config, "python train.py", Path("/home/me"))
    assert asked(text).keys() == {
        "--job-name", "--nodes", "--ntasks-per-node", "--output", "--open-mode", "--signal", "--export", "--requeue",
    }  # fmt: skip
    assert 'then scontrol requeue "$SLURM_JOB_ID"' in text and asked(text)["--export"] == "ALL"


@settings(deadline=None, max_examples=60)
@given(st.text(st.characters(exclude_categories=("Cs", "Cc", "Zl", "Zp")), min_size=1).filter(lambda text: text.isprintable() and text.strip()))
def test_no_value_breaks_out_of_its_line(value: str) -> None:
    launcher = LauncherConfig(name="slurm", partition=value, account=value, constraint=value, gres=value, options=[f"--comment={value}"])
    assert launcher_problems(launcher) == []
    base = plain_config()
    text = script(base.model_copy(update={"launcher": launcher}), f"python train.py {value}", Path("/") / value.replace("\0", ""))
    options = asked(text)
    assert [options[name] for name in ("--partition", "--account", "--constraint", "--gres", "--comment")] == [value] * 5
    assert len(text.splitlines()) == len(script(base, "python train.py", Path("/home")).splitlines()) + 5 and is_shell(text)


@pytest.mark.parametrize("sign", ["\n", "\r", "\0", "\x1b", "\u2028"])
@pytest.mark.parametrize("key", ["partition", "account", "memory", "container"])
def test_line_breaks_are_refused(key: str, sign: str) -> None:
    problems = launcher_problems(LauncherConfig(name="slurm", **{key: f"a{sign}#SBATCH --uid=0"}))
    assert [problem.key for problem in problems] == [f"launcher.{key}"] and "line break" in problems[0].why
    assert sign not in problems[0].fix


@pytest.mark.parametrize("key", ["modules", "setup", "options", "environment"])
def test_line_breaks_in_lists_are_refused(key: str) -> None:
    problems = launcher_problems(LauncherConfig(name="slurm", **{key: ["--a\nb"]}))
    assert [problem.key for problem in problems] == [f"launcher.{key}"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400), ("1:30", 90), ("01:02:03", 3723), ("2-3", 2 * 86400 + 3 * 3600), ("2-3:4", 2 * 86400 + 3 * 3600 + 240),
        ("1-00:00:01", 86401), ("", None), ("abc", None), ("1-", None), ("1:2:3:4", None), ("-5", None), ("1.5", None),
    ],
)  # fmt: skip
def test_times_are_read_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    """The table of sbatch's manual, --time."""
    assert time_seconds(text) == seconds


def test_a_limit_that_leaves_no_time_to_train_is_refused() -> None:
    (problem,) = launcher_problems(LauncherConfig(name="slurm", time="2"))
    assert problem.key == "launcher.time" and "launcher.signal_seconds=20" in problem.fix
    assert launcher_problems(LauncherConfig(name="slurm", time="2", signal_seconds=20)) == []
    assert launcher_problems(LauncherConfig(name="slurm", time="soon"))[0].fix == "launcher.time=12:00:00"


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--partition=x", "launcher.partition"), ("--signal=B:TERM@3", "launcher.signal_seconds"), ("--array=0-3", "not free"),
        ("--output=x", "not free"), ("--wait", "not free"), ("reservation=x", "form"), ("--Res=x", "form"), ("-N3", "form"), ("--x=", "form"),
    ],
)  # fmt: skip
def test_options_that_the_script_sets_itself_are_refused(option: str, told: str) -> None:
    (problem,) = launcher_problems(LauncherConfig(name="slurm", options=[option]))
    assert problem.key == "launcher.options" and told in f"{problem.why} {problem.fix}"


def test_names_of_variables_only() -> None:
    (problem,) = launcher_problems(LauncherConfig(name="slurm", environment=["HOME", "A=1"]))
    assert problem.value == "A=1" and "names only" in problem.why


def test_what_is_typed_arrives(small: list[str], tmp_path: Path) -> None:
    """Through the command line, the schema, config.yaml and back."""
    typed = [
        'launcher.options=["--reservation=R 1",--nice]',
        "launcher.setup=['source env/bin/activate','export A=\"b c\"']",
        "launcher.time=1-12:00:00",
    ]
    config = compose([*small, "run=x", "launcher=slurm", *typed])
    assert config.launcher.options == ["--reservation=R 1", "--nice"] and config.launcher.restarts == 3
    assert config.launcher.setup == ["source env/bin/activate", 'export A="b c"']
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config and config.launcher.time == "1-12:00:00"


def test_ranks_of_all_nodes_share_the_batch(small: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"4 rows × 4 processes = 16 does not divide train.batch_rows=4"):
        compose([*small, "run=x", "launcher=slurm", "launcher.nodes=2", "launcher.processes=2"])


def test_the_manual_scripts_do_what_the_written_one_does(config: RunConfig) -> None:
    """The same lines in the same order, but for what is trained and where."""
    written = _skeleton(script(config, "python train.py", Path("/home/me")))
    for name in ("one_node", "many_nodes"):
        text = (ROOT / "launch" / f"{name}.sbatch").read_text(encoding="utf-8")
        assert _skeleton(text) == written, name
        options = asked("\n".join(line.partition(" # ")[0] for line in text.splitlines()))
        same = ("--open-mode", "--signal", "--requeue")
        assert {key: options[key] for key in same} == {key: asked(script(config, "", Path("/")))[key] for key in same}
        assert is_shell(text)


def _skeleton(text: str) -> list[str]:
    """The lines that decide about signals, ranks and the end, without the names of runs and of Python."""
    lines = [line for line in text.replace(" \\\n ", "").splitlines() if line and not line.startswith(("#", "cd ", "RUN=", "WORDS="))]
    plain = [re.sub(r'"\$RUN"|/\S*/x\b', "RUN", re.sub(r"\S*/python\b", "python", line.partition(" # ")[0].rstrip())) for line in lines]
    return [re.sub(r"(slayer\.launching\.task) .*", r"\1", line) for line in plain]
