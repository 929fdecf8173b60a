"""Where metrics go: metrics.jsonl always, and by choice wandb, tensorboard or trackio.

A tracker may fail, hang, or be missing; the run goes on. Those of other people therefore work in their own thread behind a queue:
a log call costs the training loop one `put`, and the first failure is told once and ends that tracker, never the run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from slayer.config import TrackerConfig

logger = logging.getLogger(__name__)

QUEUE_RECORDS = 10_000
FINISH_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tracked:
    """What is tracked: its name, the project it belongs to, its configuration, and the folder for everything local."""

    project: str
    name: str
    values: Mapping[str, Any]
    folder: Path


class Tracker(Protocol):
    """Takes records, one per line of metrics.jsonl."""

    def log(self, record: Mapping[str, Any]) -> None:
        """Take one record."""

    def finish(self) -> None:
        """Write what is pending and close."""


class JsonlTracker:
    """One JSON object a line, whole on disk when `log` returns. A line torn by a kill is cut off when the file is opened."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._cut_torn_line()
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one record; numbers that JSON does not know (nan, inf) become null."""
        line = json.dumps({key: _json_value(value) for key, value in record.items()}, ensure_ascii=False, allow_nan=False)
        self._file.write(line + "\n")
        self._file.flush()

    def truncate_after(self, step: int) -> None:
        """Drop lines of later steps: a run that goes on from `step` will write them again."""
        self._file.close()
        kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        aside = self.path.with_suffix(".tmp")
        aside.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        aside.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def finish(self) -> None:
        """Close the file."""
        self._file.close()

    def _cut_torn_line(self) -> None:
        if not self.path.exists() or not self.path.stat().st_size:
            return
        with self.path.open("r+b") as file:
            content = file.read()
            if not content.endswith(b"\n"):
                file.truncate(content.rfind(b"\n") + 1)


def _json_value(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _numbers(record: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in record.items() if isinstance(value, (int, float)) and key not in ("step", "steps", "time")}


class WandbTracker:
    """Weights & Biases; offline without a key or a network. Sends metrics and the configuration, never code, git or console."""

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        folder = tracked.folder / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(
            init_timeout=10, finish_timeout=8, finish_timeout_raises=False, disable_git=True, disable_code=True, save_code=False,
            disable_job_creation=True, console="off", x_disable_meta=True, x_disable_machine_info=True, x_disable_stats=True, silent=True,
        )  # fmt: skip
        options: dict[str, Any] = {
            "project": tracked.project, "name": tracked.name, "dir": str(tracked.folder), "config": dict(tracked.values),
            "settings": settings, "id": _wandb_id(folder / "run_id.txt"), "resume": "allow",
        }  # fmt: skip
        mode = _wandb_mode()
        try:
            self._run = wandb.init(mode=mode, **options)
        except Exception:
            if mode == "offline":
                raise
            self._run = wandb.init(mode="offline", **options)

    def log(self, record: Mapping[str, Any]) -> None:
        """Send one record."""
        self._run.log(_numbers(record), step=record.get("step"))

    def finish(self) -> None:
        """Upload what is pending, for some seconds at most; `wandb sync` sends the rest later."""
        self._run.finish()


def _wandb_id(path: Path) -> str:
    # A resumed run goes on in the same wandb run.
    if not path.exists():
        path.write_text(os.urandom(4).hex() + "\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _wandb_mode() -> Any:
    import socket
    from urllib.parse import urlsplit

    import wandb

    if asked := os.environ.get("WANDB_MODE"):
        return asked
    address = urlsplit(wandb.setup().settings.base_url)
    host, port = address.hostname or "", address.port or (443 if address.scheme == "https" else 80)
    if not _has_wandb_key(host):
        return "offline"
    try:
        with socket.create_connection((host, port), timeout=3):
            return "online"
    except OSError:
        return "offline"


def _has_wandb_key(host: str) -> bool:
    # Where `wandb login` and wandb's own variables put it. Asking wandb itself may open a prompt.
    import netrc

    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class TensorboardTracker:
    """TensorBoard event files in RUN/tensorboard."""

    def __init__(self, tracked: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(tracked.folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def log(self, record: Mapping[str, Any]) -> None:
        """Write each number as a scalar at this record's step."""
        for key, value in _numbers(record).items():
            self._writer.add_scalar(key, value, global_step=record.get("step"), walltime=record.get("time"))

    def finish(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class TrackioTracker:
    """trackio in a local SQLite file in RUN/trackio; look at it with `TRACKIO_DIR=RUN/trackio trackio show`."""

    def __init__(self, tracked: Tracked) -> None:
        # trackio reads its folder once, at import.
        os.environ["TRACKIO_DIR"] = str((tracked.folder / "trackio").resolve())
        import trackio

        self._run = trackio.init(
            project=tracked.project, name=tracked.name, config=dict(tracked.values), resume="allow", embed=False,
            auto_log_gpu=False, auto_log_cpu=False,
        )  # fmt: skip

    def log(self, record: Mapping[str, Any]) -> None:
        """Store one record."""
        self._run.log(_numbers(record), step=record.get("step"))

    def finish(self) -> None:
        """Write what is pending."""
        self._run.finish()


class BackgroundTracker:
    """Opens and feeds a tracker in a thread of its own, so that nothing it does can stop or slow the run."""

    def __init__(self, name: str, open_tracker: Callable[[], Tracker]) -> None:
        self._name = name
        self._open = open_tracker
        self._records: queue.Queue[Mapping[str, Any] | None] = queue.Queue(maxsize=QUEUE_RECORDS)
        self._dropped = False
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand one record over; returns at once."""
        if self._dropped:
            return
        try:
            self._records.put_nowait(dict(record))
        except queue.Full:
            self._drop("does not keep up")

    def finish(self) -> None:
        """Give the tracker a few seconds to write what is pending."""
        if self._dropped:
            return
        try:
            self._records.put_nowait(None)
        except queue.Full:
            return self._drop("does not keep up")
        self._thread.join(timeout=FINISH_SECONDS)
        if self._thread.is_alive():
            self._drop(f"did not finish within {FINISH_SECONDS:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._open()
            while (record := self._records.get()) is not None:
                tracker.log(record)
            tracker.finish()
        except ImportError as error:
            self._drop(f"is not installed ({error}); type: pip install 'slayer[trackers]'")
        except Exception as error:
            self._drop(f"failed ({type(error).__name__}: {error})")

    def _drop(self, why: str) -> None:
        if not self._dropped:
            self._dropped = True
            logger.warning("tracker %s %s. The run goes on; metrics.jsonl has every number.", self._name, why)


class Trackers:
    """metrics.jsonl and the trackers beside it, as one."""

    def __init__(self, jsonl: JsonlTracker, others: Sequence[BackgroundTracker] = ()) -> None:
        self._jsonl = jsonl
        self._others = tuple(others)
        self._warned = False

    def log(self, record: Mapping[str, Any]) -> None:
        """Hand one record to all of them; never raises."""
        try:
            self._jsonl.log(record)
        except Exception as error:
            # A full disk may have room again: later lines are still tried.
            self._warn(error)
        for tracker in self._others:
            tracker.log(record)

    def truncate_after(self, step: int) -> None:
        """Call once when a run goes on from `step`: its later lines in metrics.jsonl will be written again."""
        try:
            self._jsonl.truncate_after(step)
        except OSError as error:
            self._warn(error)

    def finish(self) -> None:
        """Close all of them; never raises, takes some seconds at most."""
        for tracker in self._others:
            tracker.finish()
        try:
            self._jsonl.finish()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("%s could not be written (%s: %s). The run goes on.", self._jsonl.path, type(error).__name__, error)


OPENERS: dict[str, Callable[[Tracked], Tracker]] = {
    "wandb": WandbTracker,
    "tensorboard": TensorboardTracker,
    "trackio": TrackioTracker,
}


def open_trackers(tracker: TrackerConfig, folder: Path, *, name: str, values: Mapping[str, Any]) -> Trackers:
    """Open metrics.jsonl in a folder, and the tracker that `tracker=` asks for. Only rank 0 calls this."""
    jsonl = JsonlTracker(folder / "metrics.jsonl")
    opener = OPENERS.get(tracker.name)
    if opener is None:
        return Trackers(jsonl)
    tracked = Tracked(project=tracker.project, name=name, values=values, folder=folder)
    return Trackers(jsonl, [BackgroundTracker(tracker.name, lambda: opener(tracked))])


def track_once(tracker: TrackerConfig, folder: Path, *, name: str, values: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Hand one record to the tracker that `tracker=` asks for, in the run that it has for this folder. jsonl: nothing, results.json has it."""
    opener = OPENERS.get(tracker.name)
    if opener is not None:
        tracked = Tracked(project=tracker.project, name=name, values=values, folder=folder)
        background = BackgroundTracker(tracker.name, lambda: opener(tracked))
        background.log(record)
        background.finish()
