"""Two nodes of a real SLURM on this machine, from the packages slurmctld, slurmd, slurm-client and munge, without systemd, cgroups or a database.

It has ports, a key and folders of its own, leaves those of the system alone, and takes everything down again.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
NODES = ("node1", "node2")
CPUS_OF_NODE = 4

CONFIGURATION = """ClusterName=slayer{port}
SlurmctldHost=localhost
SlurmctldPort={port}
{parameters}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=cred_expire=5,socket={folder}/munge.socket
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/log/jobcomp.txt
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
FirstJobId={first_job}
{requeue_exit}
KillWait=10
MinJobAge=3600
SlurmdTimeout=15
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=0
PartitionName=grace Nodes=ALL MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""
"""Why each line: two slurmd on one machine need ports and folders by node; cred_expire is also how long a requeued job waits, and less than 5 is
taken for 120; the scheduler's defaults would let it wait a minute more."""


def why_not() -> str | None:
    """Why no cluster can be started here; None where one can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed (apt-get install slurmctld slurmd slurm-client munge)"
    return None if os.geteuid() == 0 else "starting the daemons of SLURM takes root"


def _path() -> str:
    """Where programs are: python is ours, daemons are where only root looks."""
    return f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class Cluster:
    """The running daemons. `environment` is what a command needs to reach them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ports = _free_ports(1 + len(NODES))
        self.environment = {**os.environ, "PATH": _path(), "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            self.environment.pop(name, None)

    def start(self) -> None:
        """Start munged, slurmctld and a slurmd a node; return when the nodes are idle."""
        for name in ("state", "log", *(f"spool/{node}" for node in NODES)):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        for name in ("munge.log", "munge.seed"):
            (self.folder / name).touch(0o600)
        self.configure()
        files = {"key-file": key, "socket": self.folder / "munge.socket", "pid-file": self.folder / "munged.pid"}
        files |= {"log-file": self.folder / "munge.log", "seed-file": self.folder / "munge.seed"}
        self.run("munged", *(f"--{name}={path}" for name, path in files.items()))
        self.run("slurmctld")
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: self.run("sinfo", "-h", "-p", "low", "-N", "-o", "%T").split() == ["idle"] * len(NODES), 20, "idle nodes")

    def configure(self, *, parameters: str = "", requeue_exit: bool = False) -> None:
        """Write slurm.conf; a running controller reads it again. `requeue_exit`: whether code 75 alone has a job queued again."""
        host = socket.gethostname().partition(".")[0]
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS_OF_NODE} Sockets=1 CoresPerSocket={CPUS_OF_NODE} "
            "ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN"
            for node, port in zip(NODES, self._ports[1:], strict=True)
        ]
        text = CONFIGURATION.format(
            port=self._ports[0], first_job=1 + self._ports[0] % 1000, folder=self.folder, nodes="\n".join(nodes),
            requeue_exit="RequeueExit=75" if requeue_exit else "",
            parameters=f"SlurmctldParameters={parameters}" if parameters else "",
        )  # fmt: skip
        (self.folder / "slurm.conf").write_text(text, encoding="utf-8")
        if (self.folder / "slurmctld.pid").exists():
            self.run("scontrol", "reconfigure")

    def start_node(self, node: str) -> None:
        """Start the daemon of a node."""
        self.run("slurmd", "-N", node)

    def run(self, *words: str, check: bool = True) -> str:
        """A command of SLURM, and what it says."""
        done = subprocess.run(words, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        assert not check or done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def python(self, *words: str, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
        """A command of ours, as a person types it on the login node."""
        return subprocess.run(
            [sys.executable, *words], cwd=cwd, env={**self.environment, **changes}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=240, check=False,
        )  # fmt: skip

    def facts(self, job: str) -> dict[str, str]:
        """What scontrol says of a job."""
        words = self.run("scontrol", "show", "job", job, "-o").split()
        return dict(word.partition("=")[::2] for word in words)

    def daemon(self, node: str) -> psutil.Process:
        """The daemon of a node."""
        return psutil.Process(int((self.folder / f"slurmd.{node}.pid").read_text()))

    def step_daemons(self, node: str) -> list[psutil.Process]:
        """The slurmstepd of a node: what stands between it and the processes of jobs."""
        log = str(self.folder / "log" / f"slurmd.{node}.log")
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess):  # one may end while it is looked at
                if process.name() == "slurmstepd" and log in {file.path for file in process.open_files()}:
                    found.append(process)
        return found

    def stop(self) -> None:
        """End jobs and daemons, by their ids."""
        self.run("scancel", "--user=root", check=False)
        with_jobs = [process for node in NODES for process in self.step_daemons(node)]
        psutil.wait_procs(with_jobs, timeout=15)
        for path in self.folder.glob("*.pid"):
            try:
                daemon = psutil.Process(int(path.read_text()))
                daemon.send_signal(signal.SIGTERM)
                daemon.wait(10)
            except (psutil.Error, OSError, ValueError):
                continue


@contextmanager
def local_cluster() -> Iterator[Cluster]:
    """A cluster while the body runs. Its folder is not pytest's: paths of sockets are short."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    cluster = Cluster(folder)
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # whoever is told to end takes it down first
    try:
        cluster.start()
        yield cluster
    finally:
        signal.signal(signal.SIGTERM, before)
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def wait_until(condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> float:
    """Return when `condition` holds, with the seconds it took; AssertionError when the time is over."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"{what if isinstance(what, str) else what()}: not in {seconds:g} s"
        time.sleep(0.1)
    return time.monotonic() - began


def _free_ports(count: int) -> Sequence[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
