"""torchrun and deepspeed start train.py as launcher.processes does: one run folder, one voice, the same numbers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from command_runs import Done, environment, wait_for
from drill_server import RankServers, free_port
from run_folders import ROOT, RunFolder
from small_text import run_overrides, write_text

pytestmark = [pytest.mark.slow, pytest.mark.matrix]

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
DEEPSPEED = ["-m", "deepspeed.launcher.runner", "--num_gpus=2", f"--master_port={free_port()}"]
"""What the commands torchrun and deepspeed call."""
STARTS = {"processes": ["train.py", "launcher.processes=2"], "torchrun": [*TORCHRUN, "train.py"], "deepspeed": [*DEEPSPEED, "train.py"]}
STEPS = 60


@pytest.fixture(scope="module")
def words(workspace: Path, own_cache: None) -> list[str]:
    return [
        *run_overrides(write_text(workspace / "text"), workspace / "runs"),
        "engine.micro_batch_rows=2",
        "heldout.samples=0",
        f"train.max_steps={STEPS}",
    ]


def begin(command: Sequence[str], *words: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, *command, *words], cwd=ROOT, env=environment(COLUMNS="200"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", start_new_session=True,
    )  # fmt: skip


def end(process: subprocess.Popen[str]) -> Done:
    started = time.monotonic()
    out = process.communicate(timeout=170)[0]
    return Done(code=process.returncode, out=out, seconds=time.monotonic() - started)


# ── a whole run ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def stopped(workspace: Path, words: list[str]) -> tuple[Done, list[str], int]:
    """The run under torchrun, of which a Ctrl-C reaches the whole terminal: how it ended, its checkpoints, and its last step."""
    folder = workspace / "runs" / "torchrun"
    process = begin(STARTS["torchrun"], *words, f"run={folder.name}")
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len((folder / "metrics.jsonl").read_text().splitlines()) > 4, process)
    os.killpg(process.pid, signal.SIGINT)
    done = end(process)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return done, [path.name for path in (folder / "checkpoints").iterdir()], int(lines[-1]["step"])


@pytest.fixture(scope="module")
def runs(workspace: Path, words: list[str], stopped: tuple[Done, list[str], int]) -> dict[str, tuple[Done, RunFolder]]:
    """The same run under each launcher, to its end."""
    found = {}
    for name, command in STARTS.items():
        done = end(begin(command, *words, f"run={name}"))
        found[name] = done, RunFolder(path=workspace / "runs" / name)
    return found


def test_ctrl_c_saves_the_step_in_hand(stopped: tuple[Done, list[str], int]) -> None:
    done, checkpoints, step = stopped
    assert 4 <= step < STEPS and done.code == 1  # which is torchrun's
    assert checkpoints == [f"step-{step:08d}"], done.out
    assert done.out.count(f"stopped and saved at step {step}") == 1


@pytest.mark.parametrize("name", STARTS)
def test_a_run_is_one_run(runs: dict[str, tuple[Done, RunFolder]], workspace: Path, name: str) -> None:
    done, run = runs[name]
    assert done.code == 0, done.out
    assert done.out.count("Layer plan") == 1 and done.out.count("report:") == 1 and "Traceback" not in done.out
    assert done.out.count("going on from step") == (name == "torchrun")
    assert run.results["training"]["ranks"] == 2
    assert sorted(path.name for path in (workspace / "runs").iterdir()) == sorted(STARTS)


@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_its_numbers_are_those_of_our_own_ranks_bit_for_bit(runs: dict[str, tuple[Done, RunFolder]], name: str) -> None:
    ours, theirs = runs["processes"][1], runs[name][1]
    assert theirs.timeless == ours.timeless and len(ours.losses) == STEPS
    assert theirs.results["heldout"] == ours.results["heldout"]
    assert (theirs.path / "model" / "model.safetensors").read_bytes() == (ours.path / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["torchrun", "deepspeed"])
def test_the_frozen_configuration_is_the_same_file(runs: dict[str, tuple[Done, RunFolder]], name: str) -> None:
    ours, theirs = ((runs[one][1].path / "config.yaml").read_text(encoding="utf-8") for one in ("processes", name))
    assert theirs.replace(name, "processes") == ours


def test_deepspeed_hands_on_the_exit_code_of_a_refusal(words: list[str], workspace: Path) -> None:
    done = end(begin(STARTS["deepspeed"], *words, "prune=99", "launcher.restarts=2", "run=refused"))
    assert done.code == 2 and done.out.count("2 problems in the configuration") == 1, done.out
    assert "leave out launcher.restarts" in done.out and "Traceback" not in done.out
    assert not (workspace / "runs" / "refused").exists()


# ── ranks as any launcher starts them, forked ────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def servers(own_cache: None) -> Iterator[RankServers]:
    with RankServers(1) as opened:
        yield opened


def said(servers: RankServers, folder: Path, words: Sequence[str]) -> tuple[list[int], str]:
    log = folder / "log.txt"
    codes = servers.run(words, ranks=2, log=log, COLUMNS="200")
    return codes, log.read_text(encoding="utf-8")


@pytest.mark.usefixtures("runs")
def test_a_name_that_each_rank_makes_up_splits_nothing(servers: RankServers, words: list[str], workspace: Path, tmp_path: Path) -> None:
    codes, out = said(servers, tmp_path, [*words, "run=x-${oc.env:RANK}"])
    assert codes == [2, 2] and out.count("the ranks were not started for the same run") == 1, out
    assert re.search(r"run: rank 0 on \S+ has 'x-0', rank 1 on \S+ has 'x-1'", out) and "run=NAME" in out
    assert sorted(path.name for path in (workspace / "runs").iterdir()) == sorted(STARTS)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["prune=99"], "prune = 99"), (["trane.max_steps=1"], "did you mean train.max_steps"), (["launcher.processes=4"], "2 ranks were already"),
        (["-m", "prune=0,1"], "starts the ranks of each point itself"), (["engine.micro_batch_rows=4"], "4 rows × 2 processes = 8 does not divide"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_once(servers: RankServers, words: list[str], tmp_path: Path, asked: list[str], says: str) -> None:
    codes, out = said(servers, tmp_path, [*words, *asked])
    assert codes == [2, 2] and out.count(says) == 1 and out.count("1 problem in the configuration") == 1, out
    assert "Traceback" not in out


def test_another_configuration_under_the_same_name_is_told_once(
    runs: dict[str, tuple[Done, RunFolder]], servers: RankServers, words: list[str], tmp_path: Path
) -> None:
    codes, out = said(servers, tmp_path, [*words, "run=torchrun", "seed=1"])
    assert codes == [2, 2] and out.count("holds a run made with another configuration") == 1 and "lost" not in out, out


def test_a_finished_run_is_shown_once(
    runs: dict[str, tuple[Done, RunFolder]], servers: RankServers, words: list[str], tmp_path: Path
) -> None:  # fmt: skip
    codes, out = said(servers, tmp_path, [*words, "run=torchrun"])
    assert codes == [0, 0] and out.count("is finished; nothing to do") == 1, out
