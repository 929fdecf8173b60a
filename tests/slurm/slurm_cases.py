"""What may happen to a job, made to happen on a real SLURM: each case says what it saw, or fails with an AssertionError.

`make test` runs two of them, `make matrix` five more, `python -m tests.slurm_drill` all.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil
from local_cluster import ROOT, wait_until
from slurm_workspace import ENDS_SECONDS, Workspace, ranks_of, results, resumed

from slayer.launching.job_record import JobRecord
from slayer.launching.restarts import newest_step
from slayer.launching.status import standings
from slayer.reporting.run_folder import read_metrics

ENDLESS = "train.max_steps=1000000"
"""For runs that somebody ends."""


def two_nodes(work: Workspace) -> str:
    """Submitted in a moment, pending, running, done; a second command submits nothing."""
    words = ("launcher.nodes=2", "launcher.processes=2", "engine.micro_batch_rows=1", "train.max_steps=4")
    job = work.submit("two_nodes", *words)
    again = work.cluster.python("train.py", *work.words, "run=two_nodes", *words)
    assert again.returncode == 0 and f"two_nodes is job {job} already" in again.stdout and "nothing is submitted" in again.stdout, again.stdout
    work.until("two_nodes", "done")
    wait_until(lambda: work.cluster.facts(job)["JobState"] == "COMPLETED", 30, "COMPLETED")
    folder = work.run("two_nodes")
    assert results(folder)["training"]["ranks"] == 4 and [line["step"] for line in read_metrics(folder / "metrics.jsonl")][-1] == 4
    assert work.seen[-2:] == ["running", "done"] and set(work.seen) <= {"pending", "running", "done"}, work.seen
    shown = work.cluster.python("-m", "slayer.launching", "status", str(folder))
    assert shown.returncode == 0 and f"job {job}" in shown.stdout and "done" in shown.stdout and "4 of 4" in shown.stdout, shown.stdout
    finished = work.cluster.python("train.py", *work.words, "run=two_nodes", *words)
    assert finished.returncode == 0 and "is finished; nothing is submitted" in finished.stdout, finished.stdout
    return f"4 ranks, objective {results(folder)['objective']['value']:.4f}"


def sweep(work: Workspace) -> str:
    """One job a point, all submitted before the first is waited for; the one that fails is on the page with its reason."""
    done = work.cluster.python("train.py", "-m", "--wait", *work.words, "data.cleaning.min_characters=10,1000000")
    (folder,) = (work.folder / "runs" / "sweeps").iterdir()
    good, bad = (json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "points").glob("*.json")))
    assert (good["status"], bad["status"]) == ("finished", "failed") and done.returncode == 2, done.stdout
    assert good["objective"] == results(Path(good["run_dir"]))["objective"]["value"] and good["job"] != bad["job"]
    first = bad["error"].splitlines()[0]
    assert first and "Traceback" not in done.stdout and first in done.stdout
    assert first in (folder / "report.md").read_text(encoding="utf-8")
    states = {one.run: one.state for one in standings([Path(good["run_dir"]), Path(bad["run_dir"])])}
    assert sorted(states.values()) == ["done", "failed"], states
    facts = work.cluster.facts(bad["job"])
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), facts
    return "exit code 2, one finished, one failed with its reason, not queued again"


def asked_to_stop(work: Workspace) -> str:
    """USR1 to every process of the step: saved, 75, queued again by the script, gone on in the same folder; then cancelled for good."""
    job = work.submit("asked", ENDLESS, "launcher.nodes=2", "engine.micro_batch_rows=2")
    work.until_step("asked", 3)
    work.cluster.run("scancel", "-s", "USR1", job)
    took = work.until("asked", "requeued")
    step = newest_step(work.run("asked"))
    work.until_gone_on("asked", step)
    went_on = resumed(work.run("asked"))
    assert [event["step"] for event in went_on] == [step] and work.cluster.facts(job)["Restarts"] == "1", (went_on, step)
    assert work.seen[-3:] == ["running", "requeued", "running"], work.seen
    work.cancel("asked", job)
    time.sleep(8)  # longer than a requeued job waits here
    assert work.cluster.facts(job)["JobState"] == "CANCELLED" and len(resumed(work.run("asked"))) == 1
    return f"queued again {took:.1f} s after the signal, went on from step {step}; cancelled and stayed so"


def refused(work: Workspace) -> str:
    """What SLURM refuses is one message with its words and the key; nothing is left behind that keeps the run from being submitted."""
    bad = work.cluster.python("train.py", *work.words, "run=refused", "launcher.partition=nowhere")
    assert bad.returncode == 2 and "nvalid partition" in bad.stdout and "launcher.partition=" in bad.stdout and "Traceback" not in bad.stdout, (
        bad.stdout
    )
    much = work.cluster.python("train.py", *work.words, "run=refused", "launcher.memory=9999G")
    assert much.returncode == 2 and "launcher." in much.stdout and "Traceback" not in much.stdout, much.stdout
    none = work.cluster.python("train.py", *work.words, "run=refused", PATH="/usr/bin/nowhere")
    assert none.returncode == 2 and "there is no sbatch on this machine" in none.stdout and "Traceback" not in none.stdout, none.stdout
    alone = work.folder / "alone.conf"
    alone.write_text("SlurmctldHost=localhost\n")  # no name, no nodes
    nobody = work.cluster.python("train.py", *work.words, "run=refused", SLURM_CONF=str(alone))
    assert nobody.returncode == 2 and "SLURM is not to be reached" in nobody.stdout and "launcher." not in nobody.stdout, nobody.stdout
    job = work.submit("refused", "launcher.partition=low", ENDLESS)
    work.cluster.run("scancel", job)
    return "partition, memory, a machine without SLURM and one without a cluster: told, exit code 2"


def script_of(work: Workspace, run: str, program: str, *words: str) -> tuple[str, Path]:
    """A job whose ranks are a small program instead of a training: its script, edited by hand, submitted by hand."""
    job = work.submit(run, "launcher.options=[--hold]", *words)
    work.cluster.run("scancel", job)
    script = JobRecord(work.run(run)).script
    text = script.read_text(encoding="utf-8").replace("#SBATCH --hold\n", "")
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    program_file = work.folder / f"{run}.py"
    program_file.write_text(program, encoding="utf-8")
    place = line.index("-m slayer.launching.worker")
    script.write_text(text.replace(line, f"{line[:place]}{program_file} {work.run(run)}"), encoding="utf-8")
    return work.cluster.run("sbatch", "--parsable", str(script)), script


def no_progress(work: Workspace) -> str:
    """Ranks that are lost before each step: queued again launcher.restarts times, then no more."""
    job, _ = script_of(work, "no_progress", "import os; os.kill(os.getpid(), 9)", "launcher.restarts=2")
    wait_until(lambda: work.cluster.facts(job)["JobState"] == "FAILED", 60, "FAILED")
    ended = [(line["state"], line["code"]) for line in JobRecord(work.run("no_progress")).lines if line["event"] == "ended"]
    assert ended == [("requeued", 75), ("requeued", 75), ("failed", 2)], ended
    standing = work.standing("no_progress")
    assert standing.state == "failed" and "queued again 2 times" in standing.why and standing.restarts == 2, standing
    return "2 times queued again, then failed with code 2"


def one_refuses(work: Workspace) -> str:
    """One rank has something for a person to mend, the other loses it: not queued again, although the larger exit code is 75."""
    program = (
        "import os, sys, time\nfrom pathlib import Path\nfrom slayer.launching.job_record import leave_code\n"
        "rank = int(os.environ['RANK'])\ncode = 2 if rank == 0 else 75\ntime.sleep(rank)\nleave_code(Path(sys.argv[1]), code)\nsys.exit(code)\n"
    )
    job, script = script_of(work, "one_refuses", program, "launcher.processes=2", "engine.micro_batch_rows=2")
    wait_until(lambda: work.cluster.facts(job)["JobState"] == "FAILED", 60, f"FAILED; {work.said('one_refuses')}")
    facts = work.cluster.facts(job)
    assert (facts["ExitCode"], facts["Restarts"]) == ("2:0", "0") and script.exists(), facts
    return "exit code 2, not queued again"


def rank_killed(work: Workspace) -> str:
    """SIGKILL of one of two ranks on different nodes: the other leaves, the job is queued again and finishes."""
    job = work.submit("killed", "train.max_steps=150", "train.save_every=5", "launcher.nodes=2", "engine.micro_batch_rows=2")
    work.until_step("killed", 10)
    ranks_of(work.run("killed"))[1].kill()
    took = work.until("killed", "requeued")
    work.until("killed", "done", 240)
    assert work.cluster.facts(job)["Restarts"] == "1" and resumed(work.run("killed"))
    return f"queued again {took:.1f} s after the kill, finished"


def time_limit(work: Workspace) -> str:
    """--time=2 and a signal 20 s before: saved, queued again before SLURM ends it."""
    job = work.submit("limit", ENDLESS, "launcher.time=2", "launcher.signal_seconds=20")
    work.until_step("limit", 1)
    began = time.monotonic()
    work.until("limit", "requeued", 150)
    step, took = newest_step(work.run("limit")), time.monotonic() - began
    work.until_gone_on("limit", step)
    assert [event["step"] for event in resumed(work.run("limit"))] == [step] and work.cluster.facts(job)["JobState"] == "RUNNING"
    work.cancel("limit", job)
    return f"the signal came within {took:.0f} s of the first step, went on from step {step}"


def _preempted(work: Workspace, run: str, *, partition: str) -> str:
    job = work.submit(run, ENDLESS, f"launcher.partition={partition}", "launcher.nodes=2", "launcher.exclusive=true", "engine.micro_batch_rows=2")
    work.until_step(run, 3)
    began = time.monotonic()
    words = ("--parsable", "--partition=high", "--nodes=2", "--exclusive", f"--output={work.folder}/high.log", "--wrap=sleep 3")
    high = work.cluster.run("sbatch", *words)
    wait_until(lambda: work.cluster.facts(high)["JobState"] in ("RUNNING", "COMPLETED"), 90, "the job of the high partition runs")
    gave_way = time.monotonic() - began
    work.until(run, "requeued")
    step = newest_step(work.run(run))
    work.until_gone_on(run, step)
    went_on = [event["step"] for event in resumed(work.run(run))]
    assert went_on and went_on[-1] == step and int(work.cluster.facts(job)["Restarts"]) >= 1, (went_on, step)
    work.cancel(run, job)
    return f"made room in {gave_way:.0f} s, went on from step {step}, the last one made"


def preempted_at_once(work: Workspace) -> str:
    """GraceTime=0: TERM to everything, KILL after KillWait; SLURM queues the job again by itself."""
    return _preempted(work, "preempted", partition="low")


def preempted_with_grace(work: Workspace) -> str:
    """GraceTime: TERM to the ranks alone; they save and end with 75, the script queues the job again."""
    return _preempted(work, "grace", partition="grace")


def preempted_by_user_signal(work: Workspace) -> str:
    """GraceTime and preempt_send_user_signal: USR1 instead of TERM."""
    with work.configured(parameters="preempt_send_user_signal"):
        return _preempted(work, "grace_usr1", partition="grace")


def node_down(work: Workspace) -> str:
    """The controller gives a node up: killed on both, queued again, gone on from the last checkpoint."""
    job = work.submit("down", ENDLESS, "train.save_every=5", "launcher.nodes=2", "engine.micro_batch_rows=2")
    work.until_step("down", 12)
    work.cluster.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    wait_until(lambda: work.cluster.facts(job)["Restarts"] == "1", 60, "queued again")
    step = newest_step(work.run("down"))
    work.until_gone_on("down", step)
    work.cancel("down", job)
    return f"queued again by SLURM, went on from step {resumed(work.run('down'))[0]['step']}"


def node_lost(work: Workspace) -> str:
    """SIGKILL of a node's daemons, ranks left behind: they leave by themselves, the next start meets none of them."""
    job = work.submit("lost", ENDLESS, "train.save_every=5", "launcher.nodes=2", "engine.micro_batch_rows=2")
    work.until_step("lost", 12)
    left = [process for process in ranks_of(work.run("lost")) if process.environ()["SLURMD_NODENAME"] == "node2"]
    daemons = [work.cluster.daemon("node2"), *work.cluster.step_daemons("node2")]
    for daemon in daemons:
        daemon.kill()
    began = time.monotonic()
    assert left and not psutil.wait_procs(left, timeout=60)[1], "a rank without its daemon leaves"
    took = time.monotonic() - began
    wait_until(lambda: int(work.cluster.facts(job)["Restarts"]) >= 1, 120, "queued again")
    work.cluster.start_node("node2")
    work.until_gone_on("lost", newest_step(work.run("lost")))
    work.cancel("lost", job)
    return f"the rank left behind was gone after {took:.1f} s; went on from step {resumed(work.run('lost'))[0]['step']}"


def lonely_rank(work: Workspace) -> str:
    """A job of one rank whose node is lost: nobody else could end it, and it must not write beside its successor."""
    job = work.submit("lonely", ENDLESS)
    work.until_step("lonely", 3)
    (rank,) = ranks_of(work.run("lonely"))
    node = rank.environ()["SLURMD_NODENAME"]
    daemons = [work.cluster.daemon(node), *work.cluster.step_daemons(node)]
    for daemon in daemons:
        daemon.kill()
    began = time.monotonic()
    rank.wait(60)
    took = time.monotonic() - began
    saved = newest_step(work.run("lonely"))
    wait_until(lambda: int(work.cluster.facts(job)["Restarts"]) >= 1, 120, "queued again")
    work.cluster.start_node(node)
    work.until_gone_on("lonely", saved)
    assert resumed(work.run("lonely"))[0]["step"] == saved
    work.cancel("lonely", job)
    return f"saved step {saved} and left {took:.1f} s after its daemon; the next start went on from there"


def requeue_exit(work: Workspace) -> str:
    """A cluster with RequeueExit=75 and a script that asks for it, too: one restart, not two."""
    with work.configured(requeue_exit=True):
        job = work.submit("exit_code", ENDLESS)
        work.until_step("exit_code", 3)
        work.cluster.run("scancel", "-s", "USR1", job)
        work.until("exit_code", "requeued")
        work.until_gone_on("exit_code", newest_step(work.run("exit_code")))
        assert work.cluster.facts(job)["Restarts"] == "1"
        work.cluster.run("scancel", job)
        wait_until(lambda: work.cluster.facts(job)["JobState"] == "CANCELLED", 60, "cancelled")
        time.sleep(8)
        assert work.cluster.facts(job)["JobState"] == "CANCELLED"
    return "one restart; cancelled and stayed so"


def odd_folder(work: Workspace) -> str:
    """Signs in the name of the folder that shells and SLURM read as their own; a job that gets three variables by name."""
    odd = work.folder / "it's 100% (odd) $HOME"
    named = ["SLAYER_CACHE", "PYTHONPATH", "HF_HUB_OFFLINE"]
    check = 'test -z "$UNNAMED" || exit 9'
    words = [f"launcher.environment=[{','.join(named)}]", f"launcher.setup=['{check}','export OF_THE_SETUP=1']"]
    work.cluster.environment |= {"UNNAMED": "1", "HF_HUB_OFFLINE": "1"}
    job = work.submit("odd", f"runs_dir={odd}", "train.max_steps=1", *words)
    wait_until(lambda: work.cluster.facts(job)["JobState"] == "COMPLETED", ENDS_SECONDS, f"COMPLETED ({work.cluster.facts(job)})")
    assert (odd / "odd" / "results.json").exists() and (odd / "odd" / "slurm" / f"job-{job}.log").exists()
    return str(odd.name)


def by_hand(work: Workspace) -> str:
    """launch/*.sbatch, edited where they say so and submitted from the folder of train.py; a signal has them queued again, too."""
    seen = []
    for name, edits in (("one_node", {}), ("many_nodes", {"--nodes=4": "--nodes=2", "--ntasks-per-node=8": "--ntasks-per-node=1"})):
        words = [word for word in work.words if not word.startswith(("launcher", "runs_dir="))] + ["engine.micro_batch_rows=2", ENDLESS]
        text = (ROOT / "launch" / f"{name}.sbatch").read_text(encoding="utf-8")
        for old, new in {
            "RUN=runs/by_hand ": f"RUN={work.run(name)} ",
            "(expansion=shallow_half prune=2)": f"({shlex.join(words)})",
            **edits,
        }.items():
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        script = work.folder / f"{name}.sbatch"
        script.write_text(text, encoding="utf-8")
        job = work.cluster.run("sbatch", "--parsable", f"--output={work.folder}/{name}.log", str(script), "train.save_every=50")
        work.until_step(name, 2)
        work.cluster.run("scancel", "-s", "USR1", job)
        work.until(name, "requeued")
        work.until_gone_on(name, newest_step(work.run(name)))
        work.cancel(name, job)
        seen.append(f"{name}: went on from step {resumed(work.run(name))[0]['step']}")
    return "; ".join(seen)


@dataclass(frozen=True, kw_only=True)
class Case:
    """Something that happens to a job. `part`: the least of these that runs it; the drill runs all."""

    run: Callable[[Workspace], str]
    part: Literal["test", "matrix", "drill"] = "drill"

    @property
    def name(self) -> str:
        """What happens."""
        return self.run.__name__

    @property
    def must(self) -> str:
        """What must come of it."""
        return " ".join((self.run.__doc__ or "").split())


CASES = (
    Case(run=two_nodes, part="test"), Case(run=sweep, part="matrix"), Case(run=asked_to_stop, part="matrix"), Case(run=refused, part="test"),
    Case(run=no_progress), Case(run=one_refuses), Case(run=rank_killed), Case(run=time_limit, part="matrix"), Case(run=preempted_at_once),
    Case(run=preempted_with_grace, part="matrix"), Case(run=preempted_by_user_signal), Case(run=node_down), Case(run=node_lost, part="matrix"),
    Case(run=lonely_rank), Case(run=requeue_exit), Case(run=odd_folder), Case(run=by_hand),
)  # fmt: skip
