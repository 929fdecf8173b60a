"""Following a file that grows, is cut back and is replaced: what is believed to stand there is what stands there."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import takewhile
from pathlib import Path

import psutil
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb_server import wait_until

from slayer.reporting.destinations import Job
from slayer.reporting.feed import Follower
from slayer.reporting.json_lines import JsonLines

# Numbers append lines of that step, in halves if negative; a cut drops the lines behind a step; a look reads.
acts = st.lists(st.one_of(st.tuples(st.just("append"), st.integers(1, 5)), st.tuples(st.just("cut"), st.integers(0, 12)), st.just(("look", 0))))


@settings(max_examples=150)
@given(acts)
def test_the_lines_and_what_still_stands_of_them(script):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        lines, follower, step, written, seen = JsonLines(path), Follower(path), 0, 0, []
        for act, amount in [*script, ("look", 0)]:
            if act == "append":
                for _ in range(amount):
                    step, written = step + 1, written + 1
                    lines.append({"step": step, "written": written})  # no two lines alike, as the times in ours differ
            elif act == "cut":
                step = min(step, amount)
                lines.keep(lambda line, last=step: json.loads(line)["step"] <= last)
            else:
                standing = follower.look()
                now = path.read_bytes().splitlines() if path.exists() else []
                assert follower.lines == now
                assert standing == sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(seen, now, strict=False)))
                seen = now
        lines.close()


def test_half_a_line_is_none_until_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    assert (follower.look(), follower.lines) == (0, [])
    with path.open("ab", buffering=0) as file:
        file.write(b'{"step": 1}\n{"st')
        assert (follower.look(), follower.lines) == (0, [b'{"step": 1}'])
        file.write(b'ep": 2}')
        assert (follower.look(), follower.lines) == (1, [b'{"step": 1}'])
        file.write(b"\n")
        assert (follower.look(), follower.lines) == (1, [b'{"step": 1}', b'{"step": 2}'])


def test_a_file_that_is_gone_is_waited_for(tmp_path):
    path = tmp_path / "metrics.jsonl"
    follower = Follower(path)
    path.write_bytes(b"1\n2\n")
    follower.look()
    path.unlink()
    assert (follower.look(), follower.lines) == (2, [b"1", b"2"])
    path.write_bytes(b"1\n3\n4\n")
    assert (follower.look(), follower.lines) == (1, [b"1", b"3", b"4"])


def test_a_process_that_hangs_behind_a_run_that_is_gone_ends_by_itself(tmp_path):
    feeder = "import time; from slayer.reporting import feed; feed.LAST_SECONDS = 0.2; feed.main(); time.sleep(100)"
    run = f"""
import os, subprocess, sys
process = subprocess.Popen([sys.executable, "-c", {feeder!r}], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
process.stdin.write(sys.argv[1].encode() + b"\\n")
process.stdin.flush()
process.stdout.readline()
print(process.pid, flush=True)
os._exit(0)
"""
    job = Job(tracker="tensorboard", project="slayer", name="run", folder=str(tmp_path), values={})
    done = subprocess.run([sys.executable, "-c", run, job.to_json()], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    feeding = psutil.Process(int(done.stdout))
    assert wait_until(lambda: not feeding.is_running() or feeding.status() == psutil.STATUS_ZOMBIE, 10)
