"""What packing keeps of the text: python benchmarks/packing.py [--documents 1000000] [--seed 0] [KEY=VALUE …]

Rows are made of the training documents of data=demo (or any data=… given) with the tokens of its model, and of made-up documents as long as
web pages are (log-normal, a mean of about 1,000 tokens), by four arms:

  best_fit          slayer's default
  concat            documents end to end, cut wherever a row ends (most pretraining code)
  pad               a document a row
  padded batches    what the Hugging Face Trainer does by itself: shuffled batches of eight documents, each truncated at the row length and
                    padded to the longest of its batch

Printed for each: useful tokens (places with a label) that a row's worth of places holds, the share of places that hold a token, documents
cut and those cut although they would have fitted, tokens of the text that are never seen, and documents packed per second of one core.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slayer.data.order.packing import Strategy, pack

BATCH_DOCUMENTS = 8
LEAST_FILL, LEAST_DOCUMENTS_PER_SECOND = 0.999, 1_000_000
WEB_LENGTHS = (2_048, 4_096)
MEAN_TOKENS, SPREAD = 1_000, 1.1
"""Mean and standard deviation (of the logarithm) of the lengths of web pages; FineWeb's mean is about 1,000 GPT-2 tokens (arXiv 2406.17557)."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one arm made of the documents."""

    arm: str
    useful_tokens_per_row: float
    fill: float
    cut_documents: int
    needless_cuts: int
    lost_tokens: int
    documents_per_second: float | None


def packed(lengths: NDArray[np.int64], sequence_length: int, strategy: Strategy) -> Result:
    """One of slayer's strategies; the time is the best of three."""
    seconds = []
    for _ in range(3):
        started = time.process_time()
        packing = pack(lengths, sequence_length, strategy)
        seconds.append(time.process_time() - started)
    useful = int(lengths.sum()) - int((lengths > 0).sum())  # nobody's label is a document's first token
    return Result(
        arm=strategy, useful_tokens_per_row=useful / packing.n_rows, fill=packing.fill, cut_documents=packing.cut_documents,
        needless_cuts=packing.needless_cuts, lost_tokens=int(lengths.sum() - packing.lengths.sum()), documents_per_second=len(lengths) / min(seconds),
    )  # fmt: skip


def padded_batches(lengths: NDArray[np.int64], sequence_length: int, seed: int) -> Result:
    """Shuffled batches of BATCH_DOCUMENTS, truncated and padded to the longest; a row here is as many places as a packed row has."""
    kept = np.minimum(lengths[np.random.default_rng(seed).permutation(len(lengths))], sequence_length)
    batches = np.pad(kept, (0, -len(kept) % BATCH_DOCUMENTS)).reshape(-1, BATCH_DOCUMENTS)
    places = int((batches.max(axis=1) * (batches > 0).sum(axis=1)).sum())
    return Result(
        arm="padded batches", useful_tokens_per_row=float((kept - 1).sum() / places * sequence_length), fill=float(kept.sum() / places),
        cut_documents=int((lengths > sequence_length).sum()), needless_cuts=0, lost_tokens=int(lengths.sum() - kept.sum()), documents_per_second=None,
    )  # fmt: skip


def compare(title: str, lengths: NDArray[np.int64], sequence_length: int, seed: int) -> list[Result]:
    """All arms over the same documents, printed side by side."""
    results = [packed(lengths, sequence_length, strategy) for strategy in ("best_fit", "concat", "pad")]
    results.append(padded_batches(lengths, sequence_length, seed))
    print(f"\n{title}: {len(lengths):,} documents, {lengths.mean():,.0f} tokens on average, rows of {sequence_length:,}")
    print(f"{'':16}{'useful/row':>12}{'of row':>9}{'filled':>10}{'cut':>10}{'needlessly':>12}{'tokens lost':>19}{'documents/s':>14}")
    for one in results:
        speed = f"{one.documents_per_second:,.0f}" if one.documents_per_second else "–"
        useful = f"{one.useful_tokens_per_row:>12,.1f}{one.useful_tokens_per_row / sequence_length:>9.2%}{one.fill:>10.3%}"
        lost = f"{one.lost_tokens:>14,} {one.lost_tokens / lengths.sum():>4.0%}"
        print(f"{one.arm:16}{useful}{one.cut_documents:>10,}{one.needless_cuts:>12,}{lost}{speed:>14}")
    return results


def demo_lengths(overrides: list[str]) -> tuple[str, dict[str, NDArray[np.int64]], int]:
    """Lengths of the training documents of each source of a configuration."""
    from transformers import AutoTokenizer

    from slayer.data.preparation import open_loader, prepare_text
    from slayer.data.storing.parts import Workers
    from slayer.launching.compose import compose
    from slayer.models import resolve_model

    config = compose(overrides)
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.model))
    with Workers(config.data.processes) as workers:
        loader = open_loader(prepare_text(config.data, workers), tokenizer, workers, seed=config.seed, batch_rows=config.train.batch_rows)
    indexed = [report.name for report in loader.report(0) if not report.streamed]
    return config.data.name, {name: loader.document_lengths(name) for name in indexed}, config.data.sequence_length


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000, help="made-up documents")
    parser.add_argument("--seed", type=int, default=0)
    arguments, overrides = parser.parse_known_args()
    name, sources, sequence_length = demo_lengths(overrides)
    for source, lengths in sources.items():
        compare(f"data={name}, {source}", lengths, sequence_length, arguments.seed)
    drawn = np.random.default_rng(arguments.seed).lognormal(np.log(MEAN_TOKENS) - SPREAD**2 / 2, SPREAD, arguments.documents)
    web = np.clip(drawn, 16, None).astype(np.int64)
    passed = True
    for length in WEB_LENGTHS:
        ours = compare("web-like", web, length, arguments.seed)[0]
        assert ours.documents_per_second is not None
        passed &= ours.fill >= LEAST_FILL and ours.needless_cuts == 0 and ours.documents_per_second >= LEAST_DOCUMENTS_PER_SECOND
    print(f"\nbest_fit on web-like lengths: fill ≥ {LEAST_FILL:.1%}, no needless cut, ≥ {LEAST_DOCUMENTS_PER_SECOND:,} documents/s/core: ", end="")
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
