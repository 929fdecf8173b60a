"""Two hosts of a run: two network namespaces with addresses of their own, torchrun on each, and one of them lost in the middle."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from drill_compare import timeless_metrics
from drill_run import DrillRun
from drill_server import ROOT, RankServers

pytestmark = [pytest.mark.slow, pytest.mark.matrix]

SECONDS = 4
"""watchdog.seconds."""
WORDS = ("train.max_steps=60", "train.save_every=10", "engine.micro_batch_rows=2", "heldout.samples=0")
LOST_BEHIND_STEP = 14


@dataclass(frozen=True, kw_only=True)
class Host:
    """One of two: its network namespace, its address, its end of the cable between them."""

    name: str
    number: int
    address: str
    cable: str

    def run(self, words: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
        """torchrun, as a person types it on this host; a host name of its own that no resolver knows, and a cache of its own."""
        torchrun = [
            sys.executable, "-m", "torch.distributed.run", "--nnodes=2", f"--node_rank={self.number}", "--nproc_per_node=1",
            "--master_addr=10.77.0.1", "--master_port=29511", "train.py", *words,
        ]  # fmt: skip
        inside = ["ip", "netns", "exec", self.name, "unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name, *torchrun]
        ours = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR", "GLOO_SOCKET_IFNAME")
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "SLAYER_CACHE": str(folder / f"cache-{self.number}"), "PYTHONUNBUFFERED": "1"}
        with log.open("ab") as stream:
            return subprocess.Popen(inside, cwd=ROOT, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True)

    def pull_the_cable(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "down")

    def plug_it_in(self) -> None:
        ip("-n", self.name, "link", "set", self.cable, "up")

    def kill_everything(self) -> None:
        """Every process of the namespace, ranks and torchrun alike."""
        for process in ip("netns", "pids", self.name).split():
            os.kill(int(process), signal.SIGKILL)


def ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, encoding="utf-8").stdout


@pytest.fixture(scope="module")
def hosts() -> Iterator[tuple[Host, Host]]:
    """Two of them, joined by a cable."""
    if shutil.which("ip") is None or shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("two hosts need network namespaces: root, and ip of the package iproute2")
    # Names of interfaces have at most 15 letters.
    mark = f"{os.getpid() % 100_000:05d}"
    pair = tuple(
        Host(name=f"slayer-{side}-{mark}", number=number, address=f"10.77.0.{number + 1}", cable=f"cable{side}{mark}")
        for number, side in enumerate("ab")
    )
    try:
        for host in pair:
            ip("netns", "add", host.name)
        ip("link", "add", pair[0].cable, "netns", pair[0].name, "type", "veth", "peer", "name", pair[1].cable, "netns", pair[1].name)
        for host in pair:
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", host.cable)
            for interface in ("lo", host.cable):
                ip("-n", host.name, "link", "set", interface, "up")
    except subprocess.CalledProcessError as error:
        for host in pair:
            subprocess.run(["ip", "netns", "delete", host.name], check=False, capture_output=True)
        pytest.skip(f"no network namespaces can be made here: {error.stderr.strip()}")
    yield pair[0], pair[1]
    for host in pair:
        host.kill_everything()
        ip("netns", "delete", host.name)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DrillRun]:
    """The run of two ranks on one host that nothing happens to."""
    with RankServers(1) as servers:
        run = DrillRun(servers, tmp_path_factory.mktemp("hosts") / "untouched", WORDS, random.Random(0))
        run.finish(run.start(ranks=2))
        yield run


def read_steps(folder: Path) -> list[int]:
    path = folder / "metrics.jsonl"
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")] if path.exists() else []


def wait_until(condition: Any, processes: list[subprocess.Popen[bytes]], log: Path, seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until or any(process.poll() is not None for process in processes):
            pytest.fail(f"waited in vain:\n{log.read_text(encoding='utf-8', errors='replace')[-4000:]}")
        time.sleep(0.02)


def test_a_host_that_is_lost_is_noticed_and_the_run_goes_on_with_it(hosts: tuple[Host, Host], untouched: DrillRun, tmp_path: Path) -> None:
    """Its power is cut: no packet says goodbye. The other host ends in time; both are started again, and nothing is different in the end."""
    words = [word for word in untouched.words if not word.startswith(("runs_dir=", "run="))]
    words += [f"runs_dir={tmp_path}", "run=tiny", f"watchdog.seconds={SECONDS}"]
    run, logs = tmp_path / "tiny", [tmp_path / f"log-{host.name}" for host in hosts]
    first = [host.run(words, tmp_path, log) for host, log in zip(hosts, logs, strict=True)]
    wait_until(lambda: max(read_steps(run), default=0) > LOST_BEHIND_STEP, first, logs[0])
    lost_at = time.monotonic()
    hosts[1].pull_the_cable()
    hosts[1].kill_everything()
    first[0].wait(SECONDS + 30)
    noticed = time.monotonic() - lost_at
    told = logs[0].read_text(encoding="utf-8")
    assert first[0].returncode == 1 and re.search(r"exitcode +: 75 ", told), told[-4000:]
    assert f"rank 1 gives no sign of life for {SECONDS} s" in told and f"on {hosts[1].name}" in told and "the same command goes on" in told
    assert noticed < 2 * SECONDS + 8
    first[1].wait(10)
    steps_before = read_steps(run)
    assert LOST_BEHIND_STEP < max(steps_before) < 60

    hosts[1].plug_it_in()
    again = [host.run(words, tmp_path, log) for host, log in zip(hosts, logs, strict=True)]
    codes = [process.wait(120) for process in again]
    told = logs[0].read_text(encoding="utf-8")
    assert codes == [0, 0], told[-4000:]
    assert "going on from step" in told and "going on" not in logs[1].read_text(encoding="utf-8")
    assert timeless_metrics(run) == timeless_metrics(untouched.path)
    print(f"noticed after {noticed:.1f} s with watchdog.seconds={SECONDS}")
