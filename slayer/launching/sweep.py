"""A sweep: one run per point, one page that compares them and is written anew after each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slayer.config import RunConfig
from slayer.launching.local import Launched, launch


def run_point(sweep_dir: Path, number: int, overrides: Sequence[str], config: RunConfig, command: str) -> Launched:
    """Run one point in a process of its own and put it on the page, finished or failed. The others go on either way."""
    from slayer.reporting.sweep_page import write_sweep_page

    point: dict[str, Any] = {
        "number": number, "run": config.run, "run_dir": str(config.folder), "overrides": list(overrides), "status": "running",
        "error": None, "seconds": None, "objective": None,
    }  # fmt: skip
    record(sweep_dir, point)
    started = time.monotonic()
    launched = launch(config, command, own_process=True)
    status = "finished" if launched.exit_code == 0 else "failed"
    record(sweep_dir, {**point, "status": status, "error": launched.error, "seconds": time.monotonic() - started, "objective": launched.objective})
    write_sweep_page(sweep_dir)
    return launched


def record(sweep_dir: Path, point: dict[str, Any]) -> None:
    """Write a point's file."""
    path = sweep_dir / "points" / f"{point['number']:04d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(point, indent=1) + "\n", encoding="utf-8")


def record_refused(sweep_dir: Path, number: int, overrides: Sequence[str], run: str, error: str) -> None:
    """A point whose configuration is wrong: on the page with its reason."""
    from slayer.reporting.sweep_page import write_sweep_page

    refused = {
        "number": number,
        "run": run,
        "run_dir": "",
        "overrides": list(overrides),
        "status": "failed",
        "error": error,
        "seconds": 0,
        "objective": None,
    }
    record(sweep_dir, refused)
    write_sweep_page(sweep_dir)


def objective_for_sweeper(launched: Launched) -> float:
    """What a Hydra sweeper minimises; infinite for a point that failed."""
    return launched.objective if launched.objective is not None else math.inf
