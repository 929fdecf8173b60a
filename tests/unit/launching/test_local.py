from __future__ import annotations

import errno
import os
import shlex
import signal
import socket
from pathlib import Path

import pytest

from slayer.errors import CheckpointError, ConfigError, EngineError, Problem
from slayer.launching.compose import compose
from slayer.launching.local import as_message, ended_by, launch, next_commands, run_here
from slayer.training.ranks import LostRankError, require_free_port
from slayer.training.signals import Stopped


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_what_a_disk_refuses_is_one_message(number: int) -> None:
    told = as_message(OSError(number, os.strerror(number), "/disk/runs/x"))
    assert isinstance(told, EngineError)
    assert os.strerror(number) in str(told) and "/disk/runs/x" in str(told) and "runs_dir=DIR" in str(told)


def test_other_errors_of_the_system_keep_their_traceback() -> None:
    with pytest.raises(OSError, match="bad descriptor"):
        as_message(OSError(errno.EBADF, "bad descriptor"))
    known = CheckpointError("as it is")
    assert as_message(known) is known


def test_who_has_lost_another_rank_is_to_be_started_again(capsys: pytest.CaptureFixture[str]) -> None:
    launched = ended_by(LostRankError("rank 0, through which the ranks meet, is gone"))
    assert launched.exit_code == 75 and "the same command goes on" in capsys.readouterr().err
    assert ended_by(CheckpointError("as it is")).exit_code == 2 and "as it is" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="of ours"):
        ended_by(RuntimeError("a fault of ours"))


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(EngineError, match=rf"launcher\.port={port} .*launcher\.port=0"):
            require_free_port(port)
    require_free_port(port)
    require_free_port(0)


def test_a_port_in_use_starts_nothing(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        words = ["launcher.processes=2", "engine.micro_batch_rows=2", f"launcher.port={port}", f"runs_dir={tmp_path / 'runs'}"]
        launched = launch(compose([*small, *words]), "python train.py", own_process=False)
    assert launched.exit_code == 2 and launched.objective is None and f"launcher.port={port}" in str(launched.error)
    assert f"launcher.port={port}" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_what_to_type_next_can_be_typed(small: list[str], tmp_path: Path) -> None:
    words = [*small, f"runs_dir={tmp_path / 'my runs'}", "run=x"]
    finished = next_commands(compose(words), shlex.join(["python", "train.py", *words]))
    assert [shlex.split(command) for command, _ in finished] == [
        ["xdg-open", f"{tmp_path}/my runs/x/report.html"],
        ["python", "evaluate.py", f"checkpoint={tmp_path}/my runs/x"],
    ]
    planned = next_commands(compose([*words, "dry_run=true"]), shlex.join(["python", "train.py", "dry_run=true", *words]))
    assert [shlex.split(command) for command, _ in planned] == [["python", "train.py", *words]]


@pytest.mark.parametrize(
    ("raised", "exit_code", "stopped", "says"),
    [
        (Stopped(signal.SIGUSR1), 75, True, "stopped; the same command goes on"),
        (LostRankError("rank 0, through which the ranks meet, is gone"), 75, False, "rank 0 has lost another rank (rank 0, through"),
        (
            RuntimeError("[/src/gloo/transport/tcp/pair.cc:553] Connection closed by peer\nmore"),
            75,
            False,
            "another rank (Connection closed by peer); the same",
        ),
        (ConfigError([Problem(key="prune", value=9, why="is too many", fix="prune=2")]), 2, False, "type: prune=2"),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 2, False, "No space left on device"),
    ],
)
def test_how_a_run_ends_is_an_exit_code_and_a_message(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    raised: BaseException, exit_code: int, stopped: bool, says: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("slayer.pipeline.run_pipeline", lambda *_: (_ for _ in ()).throw(raised))
    launched = run_here(compose([*small, f"runs_dir={tmp_path}"]), "python train.py")
    shown = capsys.readouterr()
    assert (launched.exit_code, launched.stopped, launched.objective) == (exit_code, stopped, None) and launched.error
    assert says in shown.out + shown.err and "Traceback" not in shown.err


@pytest.mark.parametrize("raised", [RuntimeError("shapes cannot be multiplied"), KeyError("loss"), OSError(errno.EBADF, "bad descriptor")])
def test_a_fault_of_ours_keeps_its_traceback(small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: Exception) -> None:
    monkeypatch.setattr("slayer.pipeline.run_pipeline", lambda *_: (_ for _ in ()).throw(raised))
    with pytest.raises(type(raised)):
        run_here(compose([*small, f"runs_dir={tmp_path}"]), "python train.py")
