"""One rank of test_ledger.py: opens the prepared text as any rank does, and writes down which rows it was given."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet  # noqa: F401

from slayer.config import DataConfig
from slayer.data.cleaning.screening import control_share
from slayer.data.order.loader import Loader
from slayer.data.preparation import open_loader, prepare_text
from slayer.data.random_model import byte_tokenizer
from slayer.data.storing.parts import Workers

SEED, BATCH_ROWS, SAVE_EVERY = 11, 8, 3

TOKENIZER = byte_tokenizer()
control_share("what takes a second to import and to make, once for all the ranks that are forked from here")


@dataclass(frozen=True, kw_only=True)
class Segment:
    """From the saved step on with so many ranks, until `until` unless somebody kills it."""

    folder: Path
    number: int
    world: int
    micro_batch_rows: int
    until: int


def open_text(folder: Path) -> Loader:
    """The loader over the text of the test, from its cache."""
    os.environ["SLAYER_CACHE"] = str(folder / "cache")
    data = DataConfig.model_validate_json((folder / "data.json").read_text(encoding="utf-8"))
    with Workers(1) as workers:
        return open_loader(prepare_text(data, workers), TOKENIZER, workers, seed=SEED, batch_rows=BATCH_ROWS)


def row_hashes(loader: Loader, rows: np.ndarray[Any, Any]) -> list[tuple[int, str]]:
    """(global row, hash of everything a model sees of it)."""
    arrays = loader.arrays(rows)
    found = []
    for place, row in enumerate(rows.tolist()):
        digest = hashlib.sha256(arrays.sources_B[place].tobytes())
        for part in (arrays.input_ids_BL, arrays.labels_BL, arrays.positions_BL, arrays.documents_BL):
            digest.update(part[place].tobytes())
        found.append((row, digest.hexdigest()))
    return found


def save(folder: Path, step: int, position: dict[str, Any]) -> None:
    """What a checkpoint holds of the data."""
    aside = folder / "saved.tmp"
    aside.write_text(json.dumps({"step": step, "position": position}), encoding="utf-8")
    aside.replace(folder / "saved.json")


def run_rank(segment: Segment, rank: int, all_ranks: Barrier) -> None:
    """Take steps in time with the other ranks, as an optimiser's step would force them to; the first rank saves after some of them."""
    loader = open_text(segment.folder)
    saved = json.loads((segment.folder / "saved.json").read_text(encoding="utf-8"))
    loader.restore(saved["position"])
    with (segment.folder / f"ledger-{segment.number}-{rank}.jsonl").open("a", encoding="utf-8") as ledger:
        for step in range(saved["step"], segment.until):
            parts = loader.rank_rows(step, rank=rank, world=segment.world, micro_batch_rows=segment.micro_batch_rows)
            rows = [found for part in parts for found in row_hashes(loader, part)]
            ledger.write(json.dumps({"step": step, "rows": rows, "valid_tokens": loader.valid_tokens(step)}) + "\n")
            ledger.flush()
            all_ranks.wait(60)
            if rank == 0 and ((step + 1) % SAVE_EVERY == 0 or step + 1 == segment.until):
                save(segment.folder, step + 1, loader.position(step + 1))
