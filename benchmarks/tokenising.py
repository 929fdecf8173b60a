"""How tokenising scales with cores: python benchmarks/tokenising.py [--megabytes 24] [--rounds 5] [--processes N]

The same corpus (generated words, generated lengths) is tokenised with SmolLM2's tokenizer by one process and by all of them, in turns,
processes already started in both arms. Round 0 is not timed: every id it gives is compared with what the tokenizer itself says.
"Cores" of a machine need not be independent (hyper-threads, neighbours), so the same ratio of a pure spin loop is printed beside.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

os.environ.update({"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"})

from ingest import synthetic_texts
from transformers import AutoTokenizer

from slayer.data.assets import asset_model
from slayer.data.document import Document
from slayer.data.storing.corpus import Corpus, corpus_of
from slayer.data.storing.parts import Workers
from slayer.data.storing.tokens import TokenStore, encode, token_store

REQUIRED = 0.9
SPINS_PER_PROCESS, SPIN = 8, 4_000_000


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=None, help="default: one per core")
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(asset_model("smollm2_135m"))
    with tempfile.TemporaryDirectory() as cache, Workers(1) as one, Workers(options.processes) as every:
        os.environ["SLAYER_CACHE"] = cache
        documents = (Document(id=str(number), text=text) for number, text in enumerate(synthetic_texts(options.megabytes * 1_000_000)))
        corpus = corpus_of(documents, "synthetic")
        print(
            f"{corpus.n_bytes / 1e6:.1f} MB, {corpus.n_documents:,} documents, {len(corpus.batches())} parts, {every.processes} processes", flush=True
        )
        arms = {"one": one, "all": every}
        seconds: dict[str, list[float]] = {arm: [] for arm in arms}
        spins: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(options.rounds + 1):
            for arm, workers in arms.items():
                store, taken = tokenised(corpus, tokenizer, workers)
                if number == 0:
                    check(corpus, store, tokenizer)
                    n_tokens = store.n_tokens
                    spun(workers, every.processes)
                    continue
                seconds[arm].append(taken)
                spins[arm].append(spun(workers, every.processes))
            if number:
                shown = ", ".join(f"{arm} {corpus.n_bytes / 1e6 / times[-1]:.2f} MB/s" for arm, times in seconds.items())
                print(f"round {number}: {shown}", flush=True)
        medians = {arm: statistics.median(times) for arm, times in seconds.items()}
        for arm, median in medians.items():
            print(f"{arm}: {corpus.n_bytes / 1e6 / median:.2f} MB/s, {n_tokens / median:,.0f} tokens/s")
        share = medians["one"] / medians["all"] / every.processes
        spin_share = statistics.median(spins["one"]) / statistics.median(spins["all"]) / every.processes
        print(f"speed-up per process {share:.3f} (wanted {REQUIRED}); of a spin loop {spin_share:.3f}; ratio of the two {share / spin_share:.3f}")
        print("PASS" if share >= REQUIRED else "FAIL" if share < REQUIRED * spin_share else "PASS against the spin loop only")


def tokenised(corpus: Corpus, tokenizer: object, workers: Workers) -> tuple[TokenStore, float]:
    """The store, made anew, and the seconds it took."""
    shutil.rmtree(Path(os.environ["SLAYER_CACHE"]) / "tokens", ignore_errors=True)
    started = time.perf_counter()
    store = token_store(corpus, tokenizer, label="tokens", workers=workers)
    return store, time.perf_counter() - started


def spun(workers: Workers, processes: int) -> float:
    """Seconds for as much spinning as all processes share."""
    started = time.perf_counter()
    for future in [workers.submit(sum, range(SPIN)) for _ in range(SPINS_PER_PROCESS * processes)]:
        future.result()
    return time.perf_counter() - started


def check(corpus: Corpus, store: TokenStore, tokenizer: object) -> None:
    """Every id is the tokenizer's own."""
    index = 0
    for chunk in corpus.batches():
        for ids in encode(tokenizer, corpus.texts(chunk)):
            assert store.document_tokens(index).tolist() == [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], f"document {index} differs"  # type: ignore[attr-defined]
            index += 1
    assert index == store.n_documents
    print(f"ids of {index:,} documents are the tokenizer's own", flush=True)


if __name__ == "__main__":
    main()
