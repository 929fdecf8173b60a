"""Runs Python that a model wrote where it can do no harm, and says how it ended.

Isolation is Linux's own: `confined.py` runs each program in a fresh process without network, without the machine's files, users,
processes and rights, within limits of memory, time and disk. Where the kernel does not give that, nothing is run at all.
"""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from slayer.errors import ConfigError, Problem

Status = Literal["passed", "failed", "timed out", "out of memory", "killed"]

CONFINED = Path(__file__).with_name("confined.py")
SETUP_SECONDS = 60.0
BURIAL_SECONDS = 10.0
OUTPUT_CHARACTERS = 2_000
REPORT_BYTES = 4_096

TRIAL = """
import os
assert (os.getuid(), os.getpid(), os.listdir()) == (65534, 2, [])
assert not os.path.exists('/etc/passwd') and not os.path.exists('/proc/self')
for escape in (os.fork, lambda: __import__('socket').socket(), lambda: open(os.__file__, 'r+'), lambda: os.setuid(0)):
    try:
        escape()
    except OSError:
        continue
    os._exit(3)
"""
"""Passes where the most important walls stand."""

HELP = (
    "it takes Linux 5.14 or newer on x86_64 or aarch64 with user namespaces for this user: sysctl user.max_user_namespaces above 0, on Ubuntu "
    "kernel.apparmor_restrict_unprivileged_userns=0, in Docker --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one program ended. `seconds` is the wall-clock time of the program alone, `output` the end of what it printed."""

    status: Status
    detail: str
    seconds: float
    output: str = ""


class IsolationError(Exception):
    """The confinement could not be set up; the text says which step and why."""


def isolation_problem() -> str | None:
    """Why model-written code cannot be run here, in one sentence with what would help; None where it can. Tried once, for real."""
    return _isolation_problem()


@lru_cache(maxsize=1)
def _isolation_problem() -> str | None:
    if sys.platform != "linux":
        return f"no isolation for model-written code on {sys.platform}: {HELP}"
    try:
        outcome = _run(TRIAL, seconds=30.0, memory_bytes=1 << 30)
    except IsolationError as error:
        return f"this machine isolates no model-written code ({error}): {HELP}"
    return None if outcome.status == "passed" else f"the trial of the sandbox ended with '{outcome.status}' ({outcome.detail}): {HELP}"


def require_isolation() -> None:
    """ConfigError, with what to type, where `isolation_problem` finds one."""
    why = isolation_problem()
    if why is not None:
        fix = "leave out confirm_run_unsafe_code and the tasks that run code, or suite=quick"
        raise ConfigError([Problem(key="confirm_run_unsafe_code", value=True, why=why, fix=fix)])


def run_isolated(program: str, *, seconds: float, memory_bytes: int) -> Outcome:
    """Run a program, as `exec` in an empty namespace would, in a new process without the machine around it.

    `seconds` is wall-clock time, `memory_bytes` bounds its address space (the program can start threads, but no process, and
    64 MiB of files in its own temporary folder come on top). It has passed when its last line was reached: an exit before, whatever its code,
    is a failure. Standard output and error are kept to their last 2,000 characters.

    Raises ConfigError where no isolation can be had.
    """
    require_isolation()
    try:
        return _run(program, seconds=seconds, memory_bytes=memory_bytes)
    except IsolationError as error:
        why = f"a sandbox could not be set up, although it could before ({error})"
        fix = "the same command again: finished tasks are kept"
        raise ConfigError([Problem(key="confirm_run_unsafe_code", value=True, why=why, fix=fix)]) from error


def python_folders() -> tuple[list[str], list[str]]:
    """Folders that a Python program needs to see (libraries of the interpreter and of the system), and those of installed packages."""
    roots = [sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix, "/usr", "/usr/local", "/"]
    paths = [os.path.join(root, name) for root in roots for name in ("lib", "lib64")]
    packages = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    folders = [*paths, *packages, "/usr/share/zoneinfo"]
    return [path for path in dict.fromkeys(folders) if os.path.isdir(path)], list(dict.fromkeys(packages))


def _run(program: str, *, seconds: float, memory_bytes: int) -> Outcome:
    word = secrets.token_hex(16)
    folders, packages = python_folders()
    request = {
        "program": program, "seconds": seconds, "memory_bytes": memory_bytes, "word": word, "folders": folders, "site_packages": packages,
    }  # fmt: skip
    report, report_end = os.pipe()
    try:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", "-u", str(CONFINED), str(report_end)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=(report_end,), start_new_session=True, cwd="/",
                env={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            )  # fmt: skip
        except OSError as error:
            raise IsolationError(f"starting {sys.executable}: {error}") from error
        finally:
            os.close(report_end)
        return _watch(process, report, request, word, seconds)
    finally:
        os.close(report)


def _watch(process: subprocess.Popen[bytes], report: int, request: dict[str, object], word: str, seconds: float) -> Outcome:
    """Hand over the request, read what comes until everybody in there is gone or time is up, and make sure that nobody is left.

    Both pipes end only when the last process that could write to them has ended.
    """
    assert process.stdin is not None and process.stdout is not None
    told, printed = b"", b""
    began: float | None = None
    deadline = time.monotonic() + SETUP_SECONDS
    late = False
    try:
        _send(process, json.dumps(request).encode())
        with selectors.DefaultSelector() as selector:
            selector.register(report, selectors.EVENT_READ)
            selector.register(process.stdout, selectors.EVENT_READ)
            while selector.get_map():
                left = deadline - time.monotonic()
                if left <= 0 and late:
                    raise IsolationError("a process of the sandbox could not be killed")
                if left <= 0:
                    late, deadline = True, time.monotonic() + BURIAL_SECONDS
                    process.terminate()  # it kills the first process in there, and so everything, and buries it
                for key, _ in selector.select(max(left, 0.01)):
                    part = os.read(key.fd, 65_536)
                    if not part:
                        selector.unregister(key.fileobj)
                    elif key.fd == report:
                        told = (told + part)[:REPORT_BYTES]
                        if began is None and told.startswith(b"begin\n"):
                            began = time.monotonic()
                            deadline = began + seconds
                    else:
                        printed = (printed + part)[-4 * OUTPUT_CHARACTERS :]
        code = process.wait()
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    if began is None:
        raise IsolationError(_setup_problem(told, printed, late))
    status, detail = _verdict(told.removeprefix(b"begin\n"), word, code, late, seconds)
    output = printed.decode(errors="replace")[-OUTPUT_CHARACTERS:]
    return Outcome(status=status, detail=detail, seconds=time.monotonic() - began, output=output)


def _send(process: subprocess.Popen[bytes], request: bytes) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(request)
        process.stdin.close()
    except BrokenPipeError:
        pass  # it ended before it read; what it reported says why


def _setup_problem(told: bytes, printed: bytes, late: bool) -> str:
    if told.startswith(b"problem "):
        return told.removeprefix(b"problem ").decode(errors="replace").strip()
    if late:
        return f"nothing began within {SETUP_SECONDS:.0f} seconds"
    lines = printed.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it ended before it began"


def _verdict(told: bytes, word: str, code: int, late: bool, seconds: float) -> tuple[Status, str]:
    """What a program reported, its exit code and the clock come to. The code is 128 plus a signal's number where one ended it."""
    if told == b"passed " + word.encode() and code == 0:
        return "passed", ""
    if late:
        return "timed out", f"not done after {seconds:g} seconds"
    if told == b"memory":
        return "out of memory", "MemoryError"
    if told.startswith(b"failed "):
        return "failed", told.removeprefix(b"failed ").decode(errors="replace")
    if code > 128 and code - 128 in signal.valid_signals():
        return "killed", f"ended by {signal.Signals(code - 128).name}"
    return "failed", f"ended before its last line (exit code {code})"
