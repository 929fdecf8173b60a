"""RUN/events.jsonl: everything unusual that happened to a run, in the order in which it happened."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from slayer.reporting.json_lines import JsonLines, json_value, read_json_lines
from slayer.secrets import without_secrets

logger = logging.getLogger(__name__)


class Events:
    """One JSON object a line: {"time": seconds since 1970, "event", "step", and the facts}. On the disk when `record` returns, never cut back.

    It never raises: what a full disk refuses is told once and written with the next event that the disk takes. Threads may share one.
    """

    def __init__(self, path: Path) -> None:
        self._lines = JsonLines(path, durable=True)
        self._warned = False

    def record(self, event: str, step: int | None, **facts: Any) -> None:
        """Write one event; `step` is None where it belongs to no step. Facts may be anything: what is not JSON is written as its text.

        No secret in them is written: errors of other people's clients may quote an address with its key.
        """
        try:
            named = {"time": time.time(), "event": event, "step": step}
            self._lines.append(named | {key: without_secrets(json_value(value)) for key, value in facts.items() if key not in named})
        except Exception as error:
            if not self._warned:
                self._warned = True
                logger.warning("%s could not be written (%s: %s). The run goes on.", self._lines.path, type(error).__name__, error)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a file in order; torn lines, and a file that is not there, are passed over."""
    return [record for record in read_json_lines(path) if isinstance(record.get("event"), str)]
