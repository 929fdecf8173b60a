"""The trackers of other people, each as a place that has so many lines of metrics.jsonl and takes the next ones.

They live in a process of their own (feed.py), so they may block, raise and leave hooks behind as they like.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Protocol

from slayer.data.cache import write_file
from slayer.errors import SlayerError
from slayer.reporting.json_lines import json_value, parse_line

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be handed to which tracker.

    `values` is the configuration shown there. `evaluation` is a record of scores to be handed over instead of the lines of metrics.jsonl.
    `live`: the run is at work, and waits some seconds at most for the end; otherwise a person waits.
    """

    tracker: str
    project: str
    name: str
    folder: str
    values: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None
    live: bool = True

    @property
    def home(self) -> Path:
        """The tracker's own folder in the run folder."""
        return Path(self.folder) / self.tracker

    def to_json(self) -> str:
        """As one line."""
        return json.dumps(json_value(asdict(self)))


class RefusedError(SlayerError):
    """What trying again cannot mend: a missing package, a missing or wrong key."""


class Destination(Protocol):
    """Holds the first `lines` lines of metrics.jsonl; `where` says how a person looks at them."""

    lines: int
    where: str

    def begin(self, lines: Sequence[bytes]) -> None:
        """Find out how many of these first lines are here: `lines` says it afterwards."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Take the next lines."""

    def cut(self, lines: int) -> None:
        """Of the lines here only so many still stand in the file, which goes on with others: `lines` says afterwards which come next."""

    def evaluate(self, record: Record) -> None:
        """Take the scores of an evaluation, in the place of those of the one before."""

    def finish(self) -> None:
        """Return when everything has arrived; raise when it has not."""


def record_of(line: bytes) -> Record:
    """The record on a line; empty where a line is damaged, so that the count stays right."""
    return parse_line(line) or {}


def numbers(record: Record) -> dict[str, float]:
    """The metrics of a record."""
    return {key: value for key, value in record.items() if isinstance(value, (int, float)) and key not in ("step", "steps", "time")}


class WandbRun:
    """Weights & Biases. Sends metrics and the configuration, never code, git, packages or console.

    Its rows are numbered by us, so a run that is taken up again knows from the server how many have arrived; which line each row held
    stands in RUN/wandb/rows.txt. The axis of its charts is our step, for rows cannot go back: lines that are written anew after a cut
    become further rows, later ones of the same step.
    """

    def __init__(self, job: Job) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # wandb reports its own failures too, and waits for that at its end
        self._job, self._home, self.lines = job, job.home, 0
        asked = os.environ.get("WANDB_MODE", "online") if job.live else "online"
        self._mode = {"dryrun": "offline", "run": "online", "": "online"}.get(asked, asked)
        if self._mode == "online":
            _require_server()
        self._id = self._identity()
        if self._mode == "offline":  # a file that is written anew has every line, so the ones before are not needed
            for left in self._home.glob(f"offline-run-*-{self._id}"):
                shutil.rmtree(left, ignore_errors=True)
        self._open()
        self.where = self._run.url or f"wandb sync {self._home}/offline-run-*"

    def begin(self, lines: Sequence[bytes]) -> None:
        """Play back which line each row that arrived held; as far as these are the file's, they are here."""
        rows = self._home / "rows.txt"
        found = [row.split() for row in rows.read_text(encoding="utf-8").splitlines()] if rows.exists() else []
        # Rows without a note of ours (a lost file) are taken for the lines of their numbers.
        noted = {row: words for row, words in enumerate(found) if len(words) == 2 and words[0].isdigit()}
        notes = [noted.get(row, [str(row), "?"]) for row in range(self._rows)]
        held: list[str] = []
        for number, digest in notes:
            held[int(number) :] = [digest]
        differ = (number for number, (digest, line) in enumerate(zip(held, lines, strict=False)) if digest not in ("?", _digest(line)))
        self.lines = next(differ, min(len(held), len(lines)))
        write_file(rows, "".join(f"{number} {digest}\n" for number, digest in notes).encode(), durable=True)
        self._notes = rows.open("a", encoding="utf-8")

    def send(self, lines: Sequence[bytes]) -> None:
        """Hand rows to wandb's own service, which sends them as it can."""
        self._notes.write("".join(f"{self.lines + index} {_digest(line)}\n" for index, line in enumerate(lines)))
        self._notes.flush()
        for record in map(record_of, lines):
            self._run.log({**numbers(record), "step": record.get("step")}, step=self._rows)
            self._rows += 1
        self.lines += len(lines)

    def cut(self, lines: int) -> None:
        """The next rows hold the lines from here on."""
        self.lines = lines

    def evaluate(self, record: Record) -> None:
        """Scores belong to no step: they are values of the run as a whole."""
        self._run.summary.update(numbers(record))

    def finish(self) -> None:
        """Upload what is pending and ask the server what it has: wandb itself says nothing of rows that were refused."""
        self._run.finish()
        if self._mode == "online" and self._job.evaluation is None:
            handed = self._rows
            self._open()
            self._run.finish()
            if self._rows < handed:
                raise ConnectionError(f"the server has {self._rows:,} of {handed:,} rows")

    def _open(self) -> None:
        import wandb

        live = self._job.live
        settings = wandb.Settings(
            init_timeout=8 if live else 20, finish_timeout=5 if live else 300, finish_timeout_raises=True, disable_git=True, disable_code=True,
            save_code=False, disable_job_creation=True, console="off", x_disable_meta=True, x_disable_machine_info=True, x_disable_stats=True,
            x_save_requirements=False, silent=True,
        )  # fmt: skip
        # The scores of an evaluation come with another configuration, which must not take the place of the run's.
        values = dict(self._job.values) if self._job.evaluation is None else {"evaluation": dict(self._job.values)}
        mode: Any = self._mode
        try:
            self._run = wandb.init(
                project=self._job.project, name=self._job.name, dir=self._job.folder, config=values, settings=settings, id=self._id, resume="allow",
                mode=mode,
            )  # fmt: skip
        except (wandb.errors.AuthenticationError, wandb.errors.CommError) as error:
            if isinstance(error, wandb.errors.AuthenticationError) or "error 401" in str(error):
                raise RefusedError(f"is refused: the server does not take the key ({in_one_line(error)}); type: wandb login --relogin") from error
            raise
        self._run.define_metric("step", hidden=True)
        self._run.define_metric("*", step_metric="step")
        self._rows = self._run.starting_step

    def _identity(self) -> str:
        # A run that is taken up again goes on in the same wandb run.
        path = self._home / "run_id.txt"
        if not path.exists():
            write_file(path, f"{os.urandom(4).hex()}\n".encode(), durable=True)
        return path.read_text(encoding="utf-8").strip()


def _digest(line: bytes) -> str:
    return f"{zlib.crc32(line):08x}"


def _require_server() -> None:
    """A key, and a server that listens; asking wandb itself may open a prompt, or take a minute."""
    from urllib.parse import urlsplit

    import wandb

    address = urlsplit(wandb.setup().settings.base_url)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    if not _has_wandb_key(host):
        raise RefusedError(f"has no key for {host}; type: wandb login, or set WANDB_MODE=offline for files that wandb sync sends")
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError as error:
        raise ConnectionError(f"{host}:{port} cannot be reached: {error}") from error


def _has_wandb_key(host: str) -> bool:
    # Where `wandb login` and wandb's own variables put it.
    import netrc

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class TensorboardFolder:
    """TensorBoard files in RUN/tensorboard, written anew from the first line whenever they are opened: no point stands there twice."""

    def __init__(self, job: Job) -> None:
        import tensorboard.summary.writer.record_writer  # noqa: F401  # a missing package is told before anything is removed

        # Scores of an evaluation stand in a folder of their own.
        self._folder = job.home if job.evaluation is None else job.home / "evaluation"
        self.where = f"tensorboard --logdir {job.home}"
        self._start()

    def begin(self, lines: Sequence[bytes]) -> None:
        """Nothing is here yet."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Write each number as a scalar at its record's step."""
        if not self._path.exists():  # somebody cleared the folder
            return self._start()
        for line in lines:
            self.evaluate(record_of(line))
        self.lines += len(lines)
        self._writer.flush()

    def cut(self, lines: int) -> None:
        """Write all of it anew."""
        self._start()

    def evaluate(self, record: Record) -> None:
        """One event for all numbers of a record."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=key, simple_value=value) for key, value in numbers(record).items()]
        when, step = record.get("time", time.time()), record.get("step", 0)
        self._writer.write(Event(wall_time=when, step=step, summary=Summary(value=values)).SerializeToString())

    def finish(self) -> None:
        """Close the file."""
        self._writer.close()
        if not self._path.exists():
            raise FileNotFoundError(f"{self._path} was removed")

    def _start(self) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        for left in self._folder.glob("events.out.tfevents.*"):
            left.unlink()
        self._path = self._folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._writer = RecordWriter(self._path.open("wb"))
        # A session that starts at step 0 makes a TensorBoard that is open already forget what it has read.
        for event in (Event(file_version="brain.Event:2"), Event(step=0, session_log=SessionLog(status=SessionLog.START))):
            event.wall_time = time.time()
            self._writer.write(event.SerializeToString())
        self._writer.flush()
        self.lines = 0


class TrackioDatabase:
    """trackio in a local SQLite file in RUN/trackio, written anew from the first line whenever it is opened.

    Rows go straight into its storage: its own `log` keeps them in a thread that passes over what the database refuses.
    """

    def __init__(self, job: Job) -> None:
        # trackio reads its folder once, at import.
        os.environ["TRACKIO_DIR"] = str(job.home.resolve())
        from trackio.sqlite_storage import SQLiteStorage

        self._job, self._storage = job, SQLiteStorage
        self._path = Path(SQLiteStorage.get_project_db_path(job.project))
        self.where = f"TRACKIO_DIR={job.home} trackio show --project {job.project}"
        # Scores of an evaluation are a run of their own beside the training's.
        self._name = job.name if job.evaluation is None else f"{job.name}-evaluation"
        self._start()

    def begin(self, lines: Sequence[bytes]) -> None:
        """Nothing is here yet."""

    def send(self, lines: Sequence[bytes]) -> None:
        """Store each record at its step."""
        if not self._path.exists():  # somebody cleared the folder
            return self._start()
        self._store([record_of(line) for line in lines])
        self.lines += len(lines)

    def _store(self, records: Sequence[Record]) -> None:
        self._storage.bulk_log(
            self._job.project, self._name, [numbers(record) for record in records], steps=[record.get("step", 0) for record in records],
            timestamps=[_timestamp(record.get("time")) for record in records], config=dict(self._job.values),
        )  # fmt: skip

    def cut(self, lines: int) -> None:
        """Write all of it anew."""
        self._start()

    def evaluate(self, record: Record) -> None:
        """The only record of its run."""
        self._store([record])

    def finish(self) -> None:
        """Nothing is pending: each `send` is a transaction."""
        if not self._path.exists():
            raise FileNotFoundError(f"{self._path} was removed")

    def _start(self) -> None:
        self.lines = 0
        self._storage.init_db(self._job.project)
        self._storage.delete_run(self._job.project, self._name)


def _timestamp(seconds: Any) -> str:
    return datetime.fromtimestamp(seconds if isinstance(seconds, (int, float)) else time.time(), timezone.utc).isoformat()


def in_one_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


DESTINATIONS: dict[str, Callable[[Job], Destination]] = {"wandb": WandbRun, "tensorboard": TensorboardFolder, "trackio": TrackioDatabase}
