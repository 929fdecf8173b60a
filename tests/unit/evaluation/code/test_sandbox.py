"""Programs that a model might write, harmless and not, in the sandbox of this very machine."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from escape_corpus import ENDLESS, ESCAPES, GREEDY, PRETENDERS

from slayer.errors import ConfigError
from slayer.evaluation.code.confined import CALLS, FIRST_UNIFIED_CALL, REFUSED_CALLS
from slayer.evaluation.code.sandbox import Outcome, isolation_problem, run_isolated

NO_ISOLATION = isolation_problem()
isolated = pytest.mark.skipif(NO_ISOLATION is not None, reason=str(NO_ISOLATION))

MEMORY_BYTES = 512 << 20


def run(program: str, seconds: float = 10.0, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    return run_isolated(program, seconds=seconds, memory_bytes=memory_bytes)


def confined_processes() -> set[int]:
    """Processes of this machine that live in a pid namespace below this one."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                line = next(line for line in (folder / "status").read_text().splitlines() if line.startswith("NSpid:"))
            except (OSError, StopIteration):
                continue
            if len(line.split()) > 2:
                found.add(int(folder.name))
    return found


def assert_gone(suspects: set[int], seconds: float = 10.0) -> None:
    """Those processes end (other tests that run beside this one have theirs, which end as well)."""
    deadline = time.monotonic() + seconds
    while suspects & confined_processes():
        assert time.monotonic() < deadline, f"still there: {suspects & confined_processes()}"
        time.sleep(0.02)


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder, an environment and descriptors that a program should not reach; afterwards all is as it was and nobody is left."""
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    (tmp_path / "precious").write_text("keep me")
    tmp_path.chmod(0o777)
    (tmp_path / "precious").chmod(0o666)
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    library = Path(os.__file__).parent
    before = everything_in(tmp_path), confined_processes(), sorted(os.listdir(library)), library.stat().st_mode, sorted(os.listdir("/"))
    yield tmp_path
    assert_gone(confined_processes() - before[1])
    os.close(write_end)
    assert os.read(read_end, 100) == b""  # nothing was written, and no process holds the other end open
    os.close(read_end)
    after = everything_in(tmp_path), before[1], sorted(os.listdir(library)), library.stat().st_mode, sorted(os.listdir("/"))
    assert after == before


@isolated
@pytest.mark.parametrize("name", ESCAPES)
def test_escape_fails(name: str, outside: Path) -> None:
    program = ESCAPES[name].replace("OUTSIDE", str(outside)).replace("HOME", str(Path.home())).replace("PARENT", str(os.getpid()))
    outcome = run(program)
    assert outcome.status in ("failed", "killed"), outcome
    assert "SyntaxError" not in outcome.detail and "NameError" not in outcome.detail, outcome  # it was really tried
    assert outcome.seconds < 9


@isolated
def test_endless_programs_are_stopped(outside: Path) -> None:
    with ThreadPoolExecutor(len(ENDLESS)) as workers:
        outcomes = dict(zip(ENDLESS, workers.map(lambda program: run(program, seconds=0.4), ENDLESS.values()), strict=True))
    for name, outcome in outcomes.items():
        assert outcome.status == "timed out", (name, outcome)
        assert 0.4 <= outcome.seconds < 9
        assert len(outcome.output) <= 2_000


@isolated
@pytest.mark.parametrize("name", GREEDY)
def test_memory_is_bounded(name: str, outside: Path) -> None:
    assert run(GREEDY[name]).status == "out of memory"


@isolated
@pytest.mark.parametrize("name", PRETENDERS)
def test_only_the_last_line_counts(name: str, outside: Path) -> None:
    outcome = run(PRETENDERS[name])
    assert outcome.status == "failed", outcome


@isolated
def test_crash_names_its_signal() -> None:
    outcome = run("import ctypes; ctypes.string_at(0)")
    assert (outcome.status, outcome.detail) == ("killed", "ended by SIGSEGV")


@isolated
@pytest.mark.parametrize(
    "program",
    [
        "",
        "assert 1 + 1 == 2",
        "import numpy; assert numpy.arange(4).sum() == 6",
        "import threading\nseen = []\nt = threading.Thread(target=seen.append, args=(1,)); t.start(); t.join(); assert seen == [1]",
        "open('notes', 'w').write('x'); import tempfile; assert open(tempfile.gettempdir() + '/notes').read() == 'x'",
        "import tempfile, os\nwith tempfile.TemporaryFile() as f: f.write(b'x')\nassert (os.getcwd(), os.listdir()) == (tempfile.gettempdir(), [])",
        "import random, secrets, uuid, datetime, decimal, re, json, hashlib; assert uuid.uuid4() != uuid.uuid4() and secrets.token_hex()",
        "assert __name__ == 'builtins'",  # the namespace is empty, as in code_eval: the main part of a script does not run
        "import sys; assert 'ctypes' not in dir() and not any('slayer' in path for path in sys.path)",
        "import os; assert dict(os.environ).keys() <= {'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'PYTHONHASHSEED', 'LC_CTYPE'}",
        "# " + "long " * 50_000,
        "assert 'é' == '\\u00e9' and '😀'",
    ],
)
def test_ordinary_program_passes(program: str, outside: Path) -> None:
    outcome = run(program)
    assert outcome.status == "passed", outcome


@isolated
def test_failure_says_why() -> None:
    assert run("assert 1 == 2, 'one is not two'").detail == "AssertionError: one is not two"
    assert run("def f(:").detail.startswith("SyntaxError")
    assert run("int('x')").detail == "ValueError: invalid literal for int() with base 10: 'x'"
    assert len(run("raise ValueError('x' * 100_000)").detail) <= 500


@isolated
def test_end_of_the_output_is_kept() -> None:
    outcome = run("import sys\nfor n in range(100_000): print(n)\nprint('to stderr', file=sys.stderr)\nassert False")
    assert outcome.status == "failed"
    assert outcome.output.endswith("99999\nto stderr\n")
    assert len(outcome.output) <= 2_000


@isolated
def test_each_program_starts_anew(outside: Path) -> None:
    assert run("import builtins; builtins.left = 1; open('left', 'w').close()").status == "passed"
    assert run("import builtins, os; assert not hasattr(builtins, 'left') and os.listdir() == []").status == "passed"


@isolated
def test_many_at_once(outside: Path) -> None:
    programs = [f"assert {number} % 3" for number in range(24)]
    with ThreadPoolExecutor(8) as workers:
        statuses = [outcome.status for outcome in workers.map(run, programs)]
    assert statuses == ["passed" if number % 3 else "failed" for number in range(24)]


@isolated
def test_nobody_outlives_a_killed_parent() -> None:
    code = (
        "from slayer.evaluation.code.sandbox import run_isolated\n"
        "print(1, flush=True)\n"
        "run_isolated('import time; time.sleep(1000)', seconds=1000, memory_bytes=1 << 29)"
    )
    before = confined_processes()
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"1\n"
        deadline = time.monotonic() + 20
        while len(suspects := confined_processes() - before) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3)  # past the trial, into the program
        suspects |= confined_processes() - before
        process.send_signal(signal.SIGKILL)
    assert_gone(suspects)


def test_refusal_says_why_and_what_helps(tmp_path: Path) -> None:
    """In a user namespace that allows no further ones, nothing is run, and the message says so."""
    proof = tmp_path / "ran"
    code = f"""
import sys
from slayer.errors import ConfigError
from slayer.evaluation.code.sandbox import isolation_problem, run_isolated
print(isolation_problem())
try:
    run_isolated("open({str(proof)!r}, 'w')", seconds=5, memory_bytes=1 << 29)
except ConfigError as error:
    print(error)
    sys.exit(7)
"""
    no_more = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", no_more, "sh", sys.executable, "-c", code]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except OSError:
        pytest.skip("no unshare command here")
    if done.returncode != 7 and ("max_user_namespaces" in done.stderr or done.stderr.startswith("unshare:")):
        pytest.skip("user namespaces cannot be forbidden here")
    assert done.returncode == 7, done.stderr
    assert "this machine isolates no model-written code (new namespaces (unshare): No space left on device)" in done.stdout
    assert "user.max_user_namespaces" in done.stdout
    assert "confirm_run_unsafe_code = true" in done.stdout and "type: leave out confirm_run_unsafe_code" in done.stdout
    assert not proof.exists()


@pytest.mark.skipif(NO_ISOLATION is None, reason="isolation can be had here")
def test_nothing_runs_without_isolation() -> None:
    with pytest.raises(ConfigError, match="confirm_run_unsafe_code"):
        run("pass")


@pytest.mark.parametrize(("column", "header"), [(0, "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"), (1, "/usr/include/asm-generic/unistd.h")])
def test_numbers_of_calls_are_the_kernels(column: int, header: str) -> None:
    if not Path(header).exists():
        pytest.skip("no kernel headers here")
    numbers = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", Path(header).read_text())}
    for name, ours in {**CALLS, **REFUSED_CALLS}.items():
        assert ours[column] == numbers.get(name), name
    assert numbers["pidfd_send_signal"] == FIRST_UNIFIED_CALL
