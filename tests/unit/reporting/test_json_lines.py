"""Files of one object a line: whole whatever is killed, and nothing is lost to a full disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slayer.reporting.json_lines import JsonLines, json_value, read_json_lines


def numbers_of(path: Path) -> list[int]:
    return [record["n"] for record in read_json_lines(path)]


def run_program(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done


def test_what_a_full_disk_refuses_is_written_when_there_is_space_again_wherever_the_line_was_cut(tmp_path):
    # The kernel's limit on file size cuts a write where it is reached, as a full disk does.
    program = """
        import json, resource, sys
        from pathlib import Path
        from slayer.reporting.json_lines import JsonLines
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        for limit in range(0, 90):
            path = Path(sys.argv[1]) / f"{limit}.jsonl"
            lines, refused = JsonLines(path, durable=limit % 2 == 0), 0
            for n in range(8):
                room = limit if 2 <= n < 6 else hard
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
                try:
                    lines.append({"n": n, "loss": 0.5})
                except OSError:
                    refused += 1
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            lines.close()
            found = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
            assert [record["n"] for record in found] == list(range(8)), (limit, found)
            assert refused == sum((n + 1) * 22 > limit for n in range(2, 6)), (limit, refused)
    """
    assert len(json.dumps({"n": 0, "loss": 0.5})) + 1 == 22
    run_program(program, tmp_path)


def test_a_cut_that_the_disk_refuses_changes_nothing(tmp_path):
    program = """
        import resource, sys
        from pathlib import Path
        from slayer.reporting.json_lines import JsonLines, read_json_lines
        path = Path(sys.argv[1]) / "lines.jsonl"
        lines = JsonLines(path)
        for n in range(50):
            lines.append({"n": n})
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (40, hard))
        try:
            lines.keep(lambda line: b"7" not in line)
            raise SystemExit("the disk took it")
        except OSError:
            pass
        assert [record["n"] for record in read_json_lines(path)] == list(range(50))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        lines.append({"n": 50})
        assert [record["n"] for record in read_json_lines(path)] == list(range(51))
        assert [file.name for file in path.parent.iterdir()] == ["lines.jsonl"]
    """
    run_program(program, tmp_path)


def test_a_kill_during_cuts_leaves_the_file_before_or_after_one(tmp_path):
    program = """
        import json, sys
        from pathlib import Path
        from slayer.reporting.json_lines import JsonLines
        lines = JsonLines(Path(sys.argv[1]))
        for last in range(2999, 0, -1):
            lines.keep(lambda line: json.loads(line)["n"] <= last)
            lines.append({"n": last + 1})
            if last == 2990:
                print("cutting", flush=True)
    """
    path, moments = tmp_path / "lines.jsonl", random.Random(0)
    for _ in range(4):
        path.write_text("".join(json.dumps({"n": n}) + "\n" for n in range(3000)), encoding="utf-8")
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(path)], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(0.2 * moments.random())
        process.send_signal(signal.SIGKILL)
        process.communicate()
        found = numbers_of(path)
        assert 1 < len(found) < 3000 and found == list(range(len(found)))
    JsonLines(path).keep(lambda line: b"1" in line)
    assert [file.name for file in tmp_path.iterdir()] == ["lines.jsonl"], "what killed processes left is cleared"


def test_a_line_torn_by_a_kill_is_cut_when_the_next_is_written(tmp_path):
    path = tmp_path / "lines.jsonl"
    for torn in (b"", b'{"n": 2', b"x" * 200_000, b"\xff\xfe"):
        path.write_bytes(b'{"n": 0}\n{"n": 1}\n' + torn)
        lines = JsonLines(path)
        lines.append({"n": 2})
        lines.close()
        assert path.read_bytes() == b'{"n": 0}\n{"n": 1}\n{"n": 2}\n'
    path.write_bytes(b'{"n": 0')
    JsonLines(path).append({"n": 0})
    assert path.read_bytes() == b'{"n": 0}\n'


def test_threads_share_a_file(tmp_path):
    lines = JsonLines(tmp_path / "lines.jsonl")
    threads = [threading.Thread(target=lambda first=first: [lines.append({"n": first + n}) for n in range(200)]) for first in range(0, 800, 200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers_of(lines.path)) == list(range(800))


def test_two_files_of_one_path_take_nothing_from_each_other(tmp_path):
    one, two = JsonLines(tmp_path / "lines.jsonl"), JsonLines(tmp_path / "lines.jsonl")
    for n in range(0, 20, 2):
        one.append({"n": n})
        two.append({"n": n + 1})
    assert numbers_of(one.path) == list(range(20))


def test_reading_passes_over_what_is_no_object(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"n": 0}\n\n[1]\n{"n": \xff\xfe}\nnull\n{"n": 1}\n{"n": 2')
    assert numbers_of(path) == [0, 1]
    assert read_json_lines(tmp_path / "missing") == [] == read_json_lines(tmp_path)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(plain)
def test_what_json_knows_stays_as_it_is(value):
    assert json.loads(json.dumps(json_value(value))) == value


def test_what_json_does_not_know_becomes_the_nearest_thing():
    seen = json_value({"nan": float("nan"), "inf": -np.inf, "half": np.float32(0.5), "whole": np.int64(2**53 + 1), "path": Path("a/b"), 3: {1}})
    assert seen == {"nan": None, "inf": None, "half": 0.5, "whole": 2**53 + 1, "path": os.path.join("a", "b"), "3": [1]}
