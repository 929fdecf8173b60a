"""The script of a SLURM job: what a run asks of the cluster, its ranks, and what becomes of it when they have ended."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from slayer.config import LauncherConfig, RunConfig
from slayer.errors import Problem
from slayer.launching.job_record import LOG_PATTERN, JobRecord
from slayer.schema import as_override
from slayer.training.signals import REQUEUE_EXIT_CODE

OF_LOCAL, OF_BOTH = ("port",), ("name", "processes", "restarts")
"""Keys of launcher that are not only about SLURM."""

TIME = re.compile(r"(?:(?P<days>\d+)-(?P<of_day>\d+(?::\d+){0,2})|(?P<clock>\d+(?::\d+){0,2}))")
"""SLURM's times: minutes, minutes:seconds, hours:minutes:seconds, days-hours, days-hours:minutes, days-hours:minutes:seconds."""

OPTION = re.compile(r"--[a-z][a-z-]*(=.+)?")
KEY_OF_OPTION = {
    "--nodes": "launcher.nodes", "--ntasks-per-node": "launcher.processes", "--partition": "launcher.partition", "--account": "launcher.account",
    "--qos": "launcher.qos", "--time": "launcher.time", "--gres": "launcher.gres", "--cpus-per-task": "launcher.cpus_per_task",
    "--mem": "launcher.memory", "--constraint": "launcher.constraint", "--exclusive": "launcher.exclusive", "--signal": "launcher.signal_seconds",
    "--requeue": "launcher.requeue", "--no-requeue": "launcher.requeue", "--export": "launcher.environment",
}  # fmt: skip
"""Options of sbatch that have a key of their own."""
TAKEN_OPTIONS = (
    "--job-name",
    "--output",
    "--error",
    "--open-mode",
    "--ntasks",
    "--array",
    "--wrap",
    "--wait",
    "--parsable",
    "--test-only",
    "--chdir",
)
"""Options of sbatch without which the run would not be found again, or not be one run."""

REPORT_SECONDS = 30
"""Ranks that the first one to end leaves behind have the watchdog's time and so much more to end by themselves and say why."""


def launcher_problems(launcher: LauncherConfig) -> list[Problem]:
    """What is wrong with the keys of launcher: those that this launcher does not read, and those that SLURM could not."""
    if launcher.name == "local":
        return _unread(launcher, [name for name in LauncherConfig.model_fields if name not in (*OF_LOCAL, *OF_BOTH)], "slurm")
    return [*_unread(launcher, OF_LOCAL, "local"), *_text_problems(launcher), *_time_problems(launcher), *_option_problems(launcher)]


def _unread(launcher: LauncherConfig, names: Sequence[str], reader: str) -> list[Problem]:
    typed = launcher.model_dump(include=set(names), exclude_defaults=True)
    why = f"is only read with launcher={reader}, not {launcher.name}"
    return [
        Problem(key=f"launcher.{name}", value=value, why=why, fix=f"launcher={reader}, or leave out launcher.{name}") for name, value in typed.items()
    ]


def _text_problems(launcher: LauncherConfig) -> list[Problem]:
    """Texts that would end their line of the script, or say nothing."""
    problems = []
    for name, value in launcher.model_dump().items():
        items = value if isinstance(value, list) else [value]
        for item in (item for item in items if isinstance(item, str)):
            if not item.strip() or not item.isprintable():
                why = "says nothing" if not item.strip() else "holds a line break or another sign that cannot be printed"
                mended = " ".join("".join(sign if sign.isprintable() else " " for sign in item).split())
                fix = as_override(f"launcher.{name}", [mended] if isinstance(value, list) else mended) if mended else f"leave out launcher.{name}"
                problems.append(Problem(key=f"launcher.{name}", value=item, why=why, fix=fix))
    for variable in launcher.environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", variable) and variable.isprintable():
            why, fix = "is no name of a variable (names only: values stay out of the script)", "launcher.environment=[PATH,HOME]"
            problems.append(Problem(key="launcher.environment", value=variable, why=why, fix=fix))
    return problems


def time_seconds(text: str) -> int | None:
    """Seconds of a time as SLURM reads it; None where it is none."""
    match = TIME.fullmatch(text)
    if match is None:
        return None
    parts = [int(part) for part in (match["of_day"] or match["clock"]).split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        return int(match["days"]) * 86_400 + hours * 3600 + minutes * 60 + seconds
    hours, minutes, seconds = {1: [0, *parts, 0], 2: [0, *parts], 3: parts}[len(parts)]
    return hours * 3600 + minutes * 60 + seconds


def _time_problems(launcher: LauncherConfig) -> list[Problem]:
    if launcher.time is None or not launcher.time.strip():
        return []
    limit = time_seconds(launcher.time)
    if not limit:
        why = "is no time of SLURM: HH:MM:SS, D-HH:MM:SS, or minutes"
        return [Problem(key="launcher.time", value=launcher.time, why=why, fix="launcher.time=12:00:00")]
    if limit <= launcher.signal_seconds:
        why = f"is not longer than launcher.signal_seconds={launcher.signal_seconds}: the run would be told to save before it has begun"
        return [Problem(key="launcher.time", value=launcher.time, why=why, fix=f"launcher.signal_seconds={max(limit // 6, 1)}, or a longer time")]
    return []


def _option_problems(launcher: LauncherConfig) -> list[Problem]:
    problems = []
    for option in launcher.options:
        name = option.partition("=")[0]
        why, fix = None, "leave out launcher.options"
        if name in KEY_OF_OPTION:
            why, fix = f"has a key of its own, {KEY_OF_OPTION[name]}", f"{KEY_OF_OPTION[name]}=… and leave it out of launcher.options"
        elif name in TAKEN_OPTIONS:
            why = "is not free: the run needs it itself"
        elif option.isprintable() and not OPTION.fullmatch(option):
            why, fix = "is not of the form --key=value or --key", as_override("launcher.options", ["--reservation=NAME"])
        if why is not None:
            problems.append(Problem(key="launcher.options", value=option, why=why, fix=fix))
    return problems


def write_script(config: RunConfig, command: str, working_directory: Path) -> Path:
    """Write RUN/slurm/job.sbatch. `command` is what a person types to go on; relative paths of the run are those of `working_directory`."""
    path = JobRecord(config.folder.absolute()).script
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(script(config, command, working_directory), encoding="utf-8")
    temporary.replace(path)
    return path


def script(config: RunConfig, command: str, working_directory: Path) -> str:
    """The text of the job. `modules`, `setup` and `container` are the owner's shell and stand as typed; all else is quoted."""
    launcher, folder = config.launcher, config.folder.absolute()
    record = JobRecord(folder)
    own = shlex.quote(sys.executable)
    ranks = ["srun", "--export=ALL", "--kill-on-bad-exit=0", f"--wait={round(config.watchdog.seconds) + REPORT_SECONDS}"]
    ranks += [f"--cpus-per-task={launcher.cpus_per_task}"] if launcher.cpus_per_task else []
    inside = [launcher.container, "python"] if launcher.container else [own]
    started = " ".join([*ranks, *inside, "-m slayer.launching.task", inside[-1], "-m slayer.launching.worker"])
    run = shlex.quote(str(folder))
    lines = [
        "#!/bin/bash -l" if launcher.modules else "#!/bin/bash",  # the command module is often only there for login shells
        f"# The run {config.run}. Written by: {_one_line(command)}",
        f"# By hand: sbatch {_one_line(shlex.quote(str(record.script)))}   (changed as you like; the next launcher=slurm writes it anew)",
        *(f"#SBATCH {option}" for option in options(config)),
        "",
        "unset RANK LOCAL_RANK WORLD_SIZE MASTER_ADDR MASTER_PORT   # whoever submitted this may have had some",
        f"cd {shlex.quote(str(working_directory))} || exit 2",
        *(f"module load {module}" for module in launcher.modules),
        *launcher.setup,
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}",
        "",
        "# TERM to this script: SLURM ends the job (scancel, its time limit, a preemption), and what becomes of it is SLURM's affair.",
        "ending=no",
        "trap 'ending=yes' TERM",
        f"{own} -m slayer.launching.job begin {run} || exit 2",
        "",
        "# One task a rank: it takes its place among the others from SLURM and becomes the rank, so that each hears each signal once.",
        "# Ranks end by themselves when one is lost; SLURM must not end them while they save. They get all that this script has set.",
        f"{started} {run} {shlex.quote(command)}",
        "code=$?",
        "",
        f"# 0: finished. {REQUEUE_EXIT_CODE}: stopped and saved, or lost: once more, into the same folder. Anything else is for a person to mend.",
        f'{own} -m slayer.launching.job end {run} "$code" "$ending"',
        "code=$?",
        *([f'if [ "$code" = {REQUEUE_EXIT_CODE} ]; then scontrol requeue "$SLURM_JOB_ID"; fi'] if launcher.requeue else []),
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def options(config: RunConfig) -> list[str]:
    """The options of sbatch, quoted."""
    launcher, log = config.launcher, str(JobRecord(config.folder.absolute()).folder).replace("%", "%%")
    asked = {
        "--job-name": f"slayer-{config.run}", "--nodes": launcher.nodes, "--ntasks-per-node": launcher.processes,
        "--cpus-per-task": launcher.cpus_per_task, "--gres": launcher.gres, "--mem": launcher.memory, "--constraint": launcher.constraint,
        "--partition": launcher.partition, "--account": launcher.account, "--qos": launcher.qos, "--time": launcher.time,
        "--output": f"{log}/{LOG_PATTERN}", "--open-mode": "append", "--signal": f"USR1@{launcher.signal_seconds}",
        "--export": ",".join(launcher.environment) or "ALL",
    }  # fmt: skip
    flags = [*(["--exclusive"] if launcher.exclusive else []), "--requeue" if launcher.requeue else "--no-requeue"]
    return [*(f"{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None), *flags, *map(_quoted, launcher.options)]


def _quoted(option: str) -> str:
    name, equals, value = option.partition("=")
    return f"{name}{equals}{shlex.quote(value)}" if equals else name


def _one_line(text: str) -> str:
    return " ".join(text.split())
