"""Stopped and killed ten times, with one, two and four ranks: no row is lost, none comes twice, and the stream is the uninterrupted one."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ledger_worker import BATCH_ROWS, Segment, open_text, row_hashes, run_rank, save

from slayer.config import CleaningConfig, DataConfig, SourceConfig, StageConfig

WORLDS = (1, 2, 4, 1, 2, 4, 2, 1, 4, 2, 1)
STEPS = 330
KILLED = {1, 2, 4, 5, 7, 8}
"""Segments that end by SIGKILL at some moment; the others reach their last step and save."""


def write_data(folder: Path) -> DataConfig:
    """An indexed source, a streamed one of three files, one of them packed, and a second mixture in the middle."""
    words = random.Random(4)
    for name, count in (("indexed", 300), ("streamed-a", 260), ("streamed-b", 150), ("streamed-c", 210)):
        lines = [json.dumps({"text": f"{name} {number} " + "mot " * words.randrange(30)}) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sources = {
        "indexed": SourceConfig(role="domain", path=str(folder / "indexed.jsonl")),
        "streamed": SourceConfig(role="replay", path=str(folder / "streamed-*.jsonl"), stream=True),
    }
    stages = [StageConfig(from_tokens=30_000, replay=0.8)]
    cleaning = CleaningConfig(decontaminate=[], near_duplicates=None, min_compressed_share=0)
    return DataConfig(name="ledger", sources=sources, replay=0.5, stages=stages, sequence_length=32, cleaning=cleaning)


def run_segment(segment: Segment, *, kill_from_step: int | None, chance: random.Random) -> None:
    """Start the ranks; wait for their end, or kill them all some moments after that step was saved."""
    context = multiprocessing.get_context("forkserver")
    all_ranks = context.Barrier(segment.world)
    ranks = [context.Process(target=run_rank, args=(segment, rank, all_ranks)) for rank in range(segment.world)]
    for rank in ranks:
        rank.start()
    if kill_from_step is not None:
        while saved_step(segment.folder) < kill_from_step and all(rank.is_alive() for rank in ranks):
            time.sleep(0.001)
        time.sleep(chance.random() * 0.01)
        for rank in ranks:
            rank.kill()
    for rank in ranks:
        rank.join(60)
        assert rank.exitcode == 0 or (kill_from_step is not None and rank.exitcode == -9)


def saved_step(folder: Path) -> int:
    step: int = json.loads((folder / "saved.json").read_text(encoding="utf-8"))["step"]
    return step


def ledger_of(folder: Path, number: int, world: int) -> list[dict[str, Any]]:
    """Whole lines of all ranks of a segment: the line a rank was killed in was never trained on."""
    lines = []
    for rank in range(world):
        text = (folder / f"ledger-{number}-{rank}.jsonl").read_text(encoding="utf-8")
        lines += [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return lines


@pytest.mark.slow
def test_ten_stops_and_resumes_on_one_two_and_four_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / "cache"))
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parents[1])]))  # the fork server has to find what it preloads
    multiprocessing.get_context("forkserver").set_forkserver_preload(["ledger_worker"])
    (tmp_path / "data.json").write_text(write_data(tmp_path).model_dump_json(), encoding="utf-8")
    whole = open_text(tmp_path)
    uninterrupted = row_hashes(whole, np.arange(STEPS * BATCH_ROWS, dtype=np.int64))
    stream, chance = whole._streamed[1].stream, random.Random(0)
    assert stream.epochs(int(whole.schedule.counts(STEPS * BATCH_ROWS)[1])) >= 1 and whole.schedule.stages[1].from_step in range(40, STEPS - 40)

    save(tmp_path, 0, {})
    starts, discarded = [], 0
    for number, world in enumerate(WORLDS):
        starts.append(saved_step(tmp_path))
        last = number == len(WORLDS) - 1
        goal = STEPS if last else starts[-1] + (STEPS - starts[-1]) // (len(WORLDS) - number)
        micro = BATCH_ROWS // world if number % 2 else BATCH_ROWS // world // 2
        segment = Segment(folder=tmp_path, number=number, world=world, micro_batch_rows=micro, until=STEPS if number in KILLED else goal)
        run_segment(segment, kill_from_step=goal if number in KILLED else None, chance=chance)
    assert saved_step(tmp_path) == STEPS

    seen: list[tuple[int, str]] = []
    for number, (world, start, end) in enumerate(zip(WORLDS, starts, [*starts[1:], STEPS], strict=True)):
        lines = ledger_of(tmp_path, number, world)
        kept = [line for line in lines if start <= line["step"] < end]
        discarded += len(lines) - len(kept)
        assert len(kept) == world * (end - start)
        assert all(line["valid_tokens"] == whole.valid_tokens(line["step"]) for line in kept)
        seen += [(row, digest) for line in kept for row, digest in line["rows"]]
    assert sorted(row for row, _ in seen) == list(range(STEPS * BATCH_ROWS))  # none lost, none twice
    assert stream_hash(sorted(seen)) == stream_hash(uninterrupted)
    assert discarded > 0, "no kill came between two checkpoints, so nothing was taken back"
    # Rows differ from one another: an order gone wrong could not have gone unseen.
    assert len({digest for _, digest in uninterrupted}) > len(uninterrupted) // 3


def stream_hash(rows: list[tuple[int, str]]) -> str:
    return hashlib.sha256("".join(f"{row} {digest}\n" for row, digest in rows).encode()).hexdigest()
