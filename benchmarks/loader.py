"""How fast batches come and what memory they take: python benchmarks/loader.py [--tokens N] [--rows N] [--synthetic-documents N]

1. Tokens per second of one core from a token store on disk (made-up documents of bytes, log-normal lengths, about 1,000 tokens on
   average), in training order: all that valid_tokens and micro_batches do for a step.
2. Time of batch(step) at sample 10⁹ of a synthetic index: opened afresh, the first call.
3. Anonymous memory (RssAnon of /proc/self/status; mapped files do not count) before, during and after so many rows.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig, SourceConfig
from slayer.data.document import Document
from slayer.data.order.loader import IndexedSource, Loader, build_loader
from slayer.data.random_model import byte_tokenizer
from slayer.data.storing.corpus import corpus_of
from slayer.data.storing.parts import Workers
from slayer.data.storing.tokens import TokenStore, token_store

LEAST_TOKENS_PER_SECOND, MOST_SEEK_SECONDS, MOST_GROWTH_BYTES = 10_000_000, 1.0, 16 << 20
FAR_ROW = 10**9
BATCH_ROWS = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class SyntheticStore:
    """Documents of which only the lengths exist."""

    lengths: NDArray[np.int64]
    fingerprint: str

    def document_tokens(self, index: int) -> NDArray[np.int32]:
        """Any tokens of the right number."""
        return np.full(int(self.lengths[index]), 7, dtype=np.int32)


def lengths_of(documents: int, seed: int) -> NDArray[np.int64]:
    """Lengths like those of web pages."""
    return np.clip(np.random.default_rng(seed).lognormal(6.3, 1.1, documents), 16, None).astype(np.int64)


def stored(n_tokens: int, seed: int) -> TokenStore:
    """A token store of about so many bytes of text, as documents."""
    letters = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz     ", dtype=np.uint8)
    chance = np.random.default_rng(seed)

    def documents() -> Iterator[Document]:
        for number, length in enumerate(lengths_of(n_tokens // 1_000, seed).tolist()):
            yield Document(id=str(number), text=chance.choice(letters, length).tobytes().decode())

    with Workers(1) as workers:
        return token_store(corpus_of(documents(), f"{n_tokens}-{seed}"), byte_tokenizer(), label="tokenising", workers=workers)


def loader_of(stores: dict[str, TokenStore | SyntheticStore], sequence_length: int) -> Loader:
    """Three quarters of the tokens from the domain, a quarter replay."""
    roles = dict(zip(stores, ("domain", "replay"), strict=True))
    sources = {name: SourceConfig(role=role, path="synthetic") for name, role in roles.items()}  # type: ignore[arg-type]
    data = DataConfig(name="benchmark", sources=sources, replay=0.25, sequence_length=sequence_length)
    indexed = [
        IndexedSource(name=name, role=sources[name].role, store=store, documents=np.arange(len(store.lengths))) for name, store in stores.items()
    ]
    return build_loader(indexed, data, seed=0, batch_rows=BATCH_ROWS, pad_id=0)


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def tokens_per_second(loader: Loader, steps: int) -> float:
    """Places of rows per second of process time."""
    for step in range(5):
        loader.micro_batches(step, rank=0, world=1, micro_batch_rows=BATCH_ROWS)
    started = time.process_time()
    for step in range(5, 5 + steps):
        loader.valid_tokens(step)
        loader.micro_batches(step, rank=0, world=1, micro_batch_rows=BATCH_ROWS)
    return steps * BATCH_ROWS * loader.sequence_length / (time.process_time() - started)


def seek_seconds(opened: Callable[[], Loader]) -> float:
    """The first batch that a loader is asked for holds row FAR_ROW."""
    loader = opened()
    started = time.perf_counter()
    batch = loader.batch(FAR_ROW // BATCH_ROWS)
    seconds = time.perf_counter() - started
    assert batch.input_ids_BL.shape == (BATCH_ROWS, loader.sequence_length)
    return seconds


def memory_course(loader: Loader, rows: int) -> list[int]:
    """Anonymous memory at ten moments while so many rows are made."""
    steps = rows // BATCH_ROWS
    course = []
    for step in range(steps):
        loader.micro_batches(step, rank=0, world=1, micro_batch_rows=BATCH_ROWS)
        if step % max(steps // 10, 1) == 0 or step == steps - 1:
            course.append(anonymous_bytes())
    return course


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=20_000_000, help="tokens in the store of each source")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows over which memory is watched")
    parser.add_argument("--synthetic-documents", type=int, default=20_000_000, help="documents of the synthetic index")
    arguments = parser.parse_args()
    passed = True
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLAYER_CACHE"] = str(Path(folder) / "cache")
        stores: dict[str, TokenStore | SyntheticStore] = {name: stored(arguments.tokens, seed) for seed, name in enumerate(("domain", "general"))}
        for sequence_length in (512, 2_048, 4_096):
            loader = loader_of(stores, sequence_length)
            speeds = [tokens_per_second(loader, 4_000_000 // (BATCH_ROWS * sequence_length)) for _ in range(3)]
            best = max(speeds)
            print(f"rows of {sequence_length:>5,}: {sorted(speeds)[1] / 1e6:6.1f} M tokens/s/core (median of 3; best {best / 1e6:.1f})")
            passed &= sequence_length < 2_048 or best >= LEAST_TOKENS_PER_SECOND

        synthetic: dict[str, TokenStore | SyntheticStore] = {
            name: SyntheticStore(
                lengths=lengths_of(arguments.synthetic_documents, 7 + seed), fingerprint=f"synthetic-{arguments.synthetic_documents}-{seed}"
            )
            for seed, name in enumerate(("domain", "general"))
        }
        loader_of(synthetic, 2_048)  # packs; what is timed opens the cached packing
        seconds = seek_seconds(lambda: loader_of(synthetic, 2_048))
        print(f"batch(step) at row {FAR_ROW:,} of an index of 2 × {arguments.synthetic_documents:,} documents: {seconds * 1000:.1f} ms")
        passed &= seconds <= MOST_SEEK_SECONDS

        course = memory_course(loader_of(stores, 512), arguments.rows)
        growth = max(course[1:]) - course[1]
        shown = " ".join(f"{one / 2**20:.0f}" for one in course)
        print(f"RssAnon over {arguments.rows:,} rows of 512, in MiB: {shown} (growth {growth / 2**20:.1f})")
        passed &= growth <= MOST_GROWTH_BYTES
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
