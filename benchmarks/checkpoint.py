"""What a checkpoint costs training: python benchmarks/checkpoint.py [--pairs 7] [--stages 0 2 3] [--ranks 1 2] [--json FILE] [--folder DIR]

A Llama of three layers of width 1024, two of which train in bf16 (25 million weights, 302 MB of masters and moments), at each ZeRO stage
on one rank and on two, in turns within one process:

  quiet        steps while nothing is saved
  background   a save, and steps until its files are on the disk. stalls: what `Saver` says the loop stood still, for the copy before the
               next update included. slows: how much longer those steps took than quiet ones, since hashing and writing share the cores
  at once      a save that training waits for

First both must have written the same bytes. Then medians, and the range of the ratios of pairs; stalls must be 5 % of a save at once or
less. Last, how fast a checkpoint is read and compared with its hashes, and its bytes for each trained weight (14 or less).
The files go to DIR, a new folder of the system's scratch space unless told. Exit code 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

MOST_STALL, MOST_BYTES_PER_WEIGHT = 0.05, 14.0
WIDTH, INNER, BATCH_ROWS = 1024, 3072, 8


class Case:
    """Training and saves of one ZeRO stage on this rank."""

    def __init__(self, ranks: Any, stage: int, folder: Path) -> None:
        from small_training import RandomRows, open_engine, open_saver, run_config, small_model

        self.ranks, self.rows = ranks, RandomRows(BATCH_ROWS)
        config = run_config(stage, "bf16", micro_batch_rows=BATCH_ROWS // ranks.world, batch_rows=BATCH_ROWS)
        model = small_model("bf16", hidden_size=WIDTH, intermediate_size=INNER, num_attention_heads=8, num_key_value_heads=4)
        trained = {name: parameter.numel() for name, parameter in model.named_parameters() if ".layers.1." in name or ".layers.2." in name}
        self.n_trained = sum(trained.values())
        self.engine = open_engine(ranks, config, model, list(trained))
        self.saver = open_saver(folder, self.engine, keep_checkpoints=1)
        self.step = 0

    def train(self, n_steps: int = 1) -> float:
        """Seconds of so many steps."""
        started = time.perf_counter()
        for _ in range(n_steps):
            for rows in self.rows.micro_batches(
                self.step, rank=self.ranks.rank, world=self.ranks.world, micro_batch_rows=BATCH_ROWS // self.ranks.world
            ):
                self.engine.forward_backward(rows, self.rows.valid_tokens(self.step))
            self.engine.update(self.step, 1e-4, 0.1)
            self.step += 1
        return time.perf_counter() - started

    def save(self) -> None:
        """Begin a save."""
        from slayer.training.state import RunState

        self.saver.save(RunState(step=self.step))

    def saved(self) -> Path:
        """The folder of the save, once it is there."""
        done = self.saver.wait()
        assert done is not None and done.folder is not None, done
        return done.folder

    def save_at_once(self) -> float:
        """Seconds of a save that is waited for."""
        self.ranks.wait()
        started = time.perf_counter()
        self.save()
        self.saved()
        return time.perf_counter() - started


def weight_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of tensors, as the manifest has them."""
    files = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def measure(ranks: Any, stage: int, pairs: int, folder: Path) -> dict[str, Any]:
    """All figures of one case; every rank makes the same steps and saves."""
    from slayer.training.checkpoint.folder import find_problem

    case = Case(ranks, stage, folder)
    case.train(3)
    seconds = case.save_at_once()
    n_steps = ranks.gather(max(2, math.ceil(2 * seconds / case.train())))[0]
    case.save_at_once()
    at_once = weight_hashes(case.saved())
    case.save()
    case.train(n_steps)
    equal = weight_hashes(case.saved()) == at_once
    rows: list[dict[str, float]] = []
    for _ in range(pairs):
        quiet = case.train(n_steps)
        case.save()
        slowed = case.train(n_steps)
        stalls = case.saver.blocked_seconds
        case.saved()
        rows.append({"quiet": quiet / n_steps, "stalls": stalls, "slows": slowed - quiet, "at_once": case.save_at_once()})
    newest = case.saved()
    n_bytes = sum(path.stat().st_size for path in newest.iterdir())
    ranks.wait()
    started = time.perf_counter()
    whole = find_problem(newest) is None
    verify = time.perf_counter() - started
    case.engine.close()
    return {
        "ranks": ranks.world, "stage": stage, "trained": case.n_trained, "bytes": n_bytes, "equal": equal, "whole": whole, "pairs": rows,
        "verify_bytes_per_second": n_bytes / verify, "steps_beside_a_save": n_steps,
    }  # fmt: skip


def rank_main(arguments: argparse.Namespace) -> None:
    """What each rank does; the first one writes down what it found."""
    from slayer.training.ranks import open_ranks

    with open_ranks() as ranks:
        found = [measure(ranks, stage, arguments.pairs, arguments.folder / f"{ranks.world}-{stage}") for stage in arguments.stages]
        if ranks.is_first:
            (arguments.folder / f"found-{ranks.world}.json").write_text(json.dumps(found), encoding="utf-8")


def median_and_range(values: list[float], shown: Callable[[float], str]) -> str:
    """Median (least–most)."""
    return f"{shown(statistics.median(values))} ({shown(min(values))}–{shown(max(values))})"


def line(case: dict[str, Any]) -> str:
    """A row of the table."""
    pairs = case["pairs"]
    columns = [
        f"{case['ranks']} × ZeRO-{case['stage']}",
        f"{1000 * statistics.median(pair['quiet'] for pair in pairs):.0f}",
        median_and_range([pair["at_once"] for pair in pairs], lambda value: f"{value:.2f}"),
        median_and_range([1000 * pair["stalls"] for pair in pairs], lambda value: f"{value:.1f}"),
        median_and_range([100 * pair["stalls"] / pair["at_once"] for pair in pairs], lambda value: f"{value:.2f}"),
        median_and_range([pair["slows"] for pair in pairs], lambda value: f"{value:.2f}"),
        f"{case['verify_bytes_per_second'] / 1e9:.2f}",
        f"{case['bytes'] / case['trained']:.3f}",
    ]
    return "".join(f"{column:>{width}}" for column, width in zip(columns, WIDTHS, strict=True))


HEADS = ("", "step ms", "at once s", "stalls ms", "stalls %", "slows s", "verify GB/s", "bytes/weight")
WIDTHS = (12, 9, 20, 20, 20, 22, 13, 14)


def launch(world: int, arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """The cases of one number of ranks, in processes of their own."""
    words = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}", __file__, "--rank", "--pairs", str(arguments.pairs)]
    stages = [str(stage) for stage in arguments.stages]
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *words, "--folder", str(folder), "--stages", *stages], check=True, env=environment, cwd=ROOT)
    found: list[dict[str, Any]] = json.loads((folder / f"found-{world}.json").read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 2, 3])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank:
        rank_main(arguments)
        return 0
    cases: list[dict[str, Any]] = []
    print("".join(f"{head:>{width}}" for head, width in zip(HEADS, WIDTHS, strict=True)), flush=True)
    for world in arguments.ranks:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            cases += launch(world, arguments, Path(folder))
        for case in cases[-len(arguments.stages) :]:
            print(line(case), flush=True)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(cases, indent=1) + "\n", encoding="utf-8")
    shares = [statistics.median(pair["stalls"] / pair["at_once"] for pair in case["pairs"]) for case in cases]
    held = {
        "in the background and at once, the same bytes are written": all(case["equal"] and case["whole"] for case in cases),
        f"the loop stands still for at most {MOST_STALL:.0%} of a save at once": max(shares) <= MOST_STALL,
        f"at most {MOST_BYTES_PER_WEIGHT:.0f} bytes for each trained weight": all(case["bytes"] <= 14 * case["trained"] for case in cases),
    }
    print()
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}  {claim}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
