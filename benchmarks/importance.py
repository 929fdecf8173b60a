"""What it costs to measure layers: python benchmarks/importance.py [--repeats 3] [--smollm2] [--seed 0]

Four things, on random Llama models in fp32:

  block-forwards    leave-one-out, all windows of layers, window Shapley over halves, 32 permutations (32 layers) and all subsets (12 layers):
                    naive (every coalition by itself, one that several orders pass through once for each), as run_coalitions really applied
                    attention and MLP (counted by hooks), and the ideal (every half of a layer once for each distinct way there), counted
                    here from the coalitions alone. The share of the ideal's saved block-forwards that is saved must be 0.9 or more.
  wall time         naive (transformers' own forward pass over a model without those layers, the same rows) against run_coalitions, in turns;
                    ratios of medians. First the values must be equal bit for bit.
  batched suffixes  a row of 16 tokens: run_coalitions one state at a time against its default, which batches states of one layer
  one pass          with --smollm2: all scores that one forward pass gives, on 16,384 tokens of the built-in English text on SmolLM2-135M;
                    at most 60 seconds

Exit code 1 when something is not equal, or too little is saved.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.forward import logits_of, nll_BL, split_rows
from slayer.importance.catalogue import ONE_PASS
from slayer.importance.decoder import LoadedDecoder
from slayer.importance.removal import removal_coalitions, window_removal_coalitions
from slayer.importance.shapley import permutation_coalitions, subset_coalitions, window_coalitions
from slayer.importance.text_value import TextValue
from slayer.importance.values import ATTENTION, GONE, MLP, TWICE, WHOLE
from slayer.importance.walk import run_coalitions

LEAST_SHARE = 0.9
MOST_SECONDS = 60.0
SAMPLE_TOKENS = 16_384
FEW_STATES = 24
HALVES = {WHOLE: ("attention", "mlp"), GONE: (), ATTENTION: ("attention",), MLP: ("mlp",), TWICE: ("attention", "mlp", "attention", "mlp")}


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows of one document each, int64 [B, L]."""

    input_ids_BL: Any
    labels_BL: Any
    positions_BL: Any
    documents_BL: Any


def random_rows(n_rows: int, length: int, vocabulary: int, seed: int) -> Rows:
    """Rows of tokens drawn at random."""
    import torch

    ids_BL = torch.randint(vocabulary, (n_rows, length), generator=torch.Generator().manual_seed(seed))
    labels_BL = torch.cat([ids_BL[:, 1:], torch.full((n_rows, 1), -100)], dim=1)
    positions_BL = torch.arange(length).expand(n_rows, length).contiguous()
    return Rows(input_ids_BL=ids_BL, labels_BL=labels_BL, positions_BL=positions_BL, documents_BL=torch.zeros_like(ids_BL))


def random_model(n_layers: int, hidden: int, vocabulary: int, seed: int) -> Any:
    """A Llama with heads of 32 numbers, in fp32."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    heads = max(1, hidden // 32)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=hidden * 8 // 3 // 8 * 8, num_hidden_layers=n_layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=2048, initializer_range=0.05,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa").eval()


def ideal_forwards(coalitions: Sequence[str]) -> float:
    """Block-forwards when every half of a layer is applied once for each distinct sequence of halves before it."""
    applied = set()
    for coalition in coalitions:
        path: tuple[tuple[int, str], ...] = ()
        for index, letter in enumerate(coalition):
            for half in HALVES[letter]:
                path = (*path, (index, half))
                applied.add(path)
    return len(applied) / 2


def naive_forwards(coalitions: Sequence[str]) -> float:
    """Block-forwards of every coalition by itself, as often as it is named."""
    return sum(len(HALVES[letter]) for coalition in coalitions for letter in coalition) / 2


@contextmanager
def counted(model: Any, n_rows: int) -> Iterator[list[float]]:
    """Block-forwards for each part of `n_rows` rows, by what goes into every attention and MLP."""
    total = [0.0]

    def count(_: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        hidden_BLD = options.get("hidden_states", arguments[0] if arguments else None)
        total[0] += len(hidden_BLD) / n_rows / 2

    modules = [half for layer in model.model.layers for half in (layer.self_attn, layer.mlp)]
    handles = [module.register_forward_pre_hook(count, with_kwargs=True) for module in modules]
    try:
        yield total
    finally:
        for handle in handles:
            handle.remove()


def count_forwards(seed: int) -> bool:
    """Print the table of block-forwards; True when enough is saved everywhere."""
    orders = permutation_coalitions(32, players="layers", pairs=16, seed=seed, truncation=1.0)
    permutations = [coalition for order in orders.orders for coalition in orders.path(order)]
    cases: list[tuple[str, int, Sequence[str], int | None]] = [
        ("leave one out", 32, removal_coalitions(32), None),
        ("all windows of layers", 32, window_removal_coalitions(32), None),
        ("window Shapley, halves", 32, window_coalitions(32), None),
        ("32 permutations", 32, permutations, None),
        (f"32 permutations, room for {FEW_STATES} states", 32, permutations, FEW_STATES),
        ("all subsets of 12 layers", 12, subset_coalitions(12, "layers"), None),
    ]
    print(f"block-forwards{'':28}{'coalitions':>11}{'naive':>10}{'run':>10}{'ideal':>10}{'saving':>9}{'ideal':>9}{'share':>8}")
    held = True
    rows = random_rows(1, 8, 64, seed)
    for name, n_layers, coalitions, states in cases:
        model = random_model(n_layers, 32, 64, seed)
        decoder = LoadedDecoder(model)
        value = TextValue(decoder, rows, source="random", micro_batch_rows=1)
        room = {} if states is None else {"state_bytes": states * rows.input_ids_BL.numel() * 32 * 4}
        with counted(model, 1) as total:
            _, forwards = run_coalitions(decoder, value, coalitions, **room)
        naive, ideal, run = naive_forwards(coalitions), ideal_forwards(coalitions), total[0]
        share = (naive - run) / (naive - ideal)
        right = share >= LEAST_SHARE and forwards.run == run
        held &= right
        numbers = f"{len(set(coalitions)):>11,}{naive:>10,.1f}{run:>10,.1f}{ideal:>10,.1f}{naive / run:>8.2f}×{naive / ideal:>8.2f}×{share:>8.1%}"
        print(f"{name:42}{numbers}{'' if right else f'   FAIL (reported: {forwards})'}", flush=True)
    return held


def naive_gains(model: Any, rows: Rows, coalitions: Sequence[str], micro_batch_rows: int) -> dict[str, NDArray[np.float64]]:
    """Minus the nats of every row [B] by coalition: transformers' own forward pass, over the layers that are left."""
    import torch

    layers, gains = model.model.layers, {}
    try:
        for coalition in coalitions:
            model.model.layers = torch.nn.ModuleList(layer for layer, letter in zip(layers, coalition, strict=True) if letter == WHOLE)
            with torch.inference_mode():
                nats = [nll_BL(logits_of(model, part), part.labels_BL).double().sum(dim=1) for part in split_rows(rows, micro_batch_rows)]
            gains[coalition] = -torch.cat(nats).numpy()
    finally:
        model.model.layers = layers
    return gains


def shared_gains(decoder: LoadedDecoder, value: TextValue, coalitions: Sequence[str], **options: int) -> Any:
    """The same by run_coalitions."""
    return run_coalitions(decoder, value, coalitions, **options)[0].gains


def timed(arms: Sequence[Callable[[], Any]], repeats: int) -> tuple[list[Any], list[float]]:
    """What each arm gives, and its seconds (medians), in turns."""
    results: list[Any] = [None] * len(arms)
    seconds: list[list[float]] = [[] for _ in arms]
    for _ in range(repeats):
        for number, arm in enumerate(arms):
            started = time.perf_counter()
            results[number] = arm()
            seconds[number].append(time.perf_counter() - started)
    return results, [statistics.median(one) for one in seconds]


def largest_difference(ours: Any, theirs: Any) -> float:
    """Of two sets of gains, in nats; 0 where all bits are equal."""
    return max(float(np.abs(ours[coalition] - theirs[coalition]).max()) for coalition in theirs)


def wall_times(repeats: int, seed: int) -> bool:
    """Print naive against run_coalitions; True when all bits are equal."""
    n_layers = 16
    model, rows = random_model(n_layers, 256, 512, seed), random_rows(4, 64, 512, seed)
    decoder = LoadedDecoder(model)
    value = TextValue(decoder, rows, source="random", micro_batch_rows=4)
    permutations = permutation_coalitions(n_layers, players="layers", pairs=4, seed=seed, truncation=1.0).coalitions
    print(f"\nwall time, 16 layers, 256 tokens{'':10}{'coalitions':>11}{'naive s':>10}{'run s':>10}{'ratio':>10}{'ideal':>9}{'max diff':>10}")
    held = True
    for name, coalitions in (("leave one out", removal_coalitions(n_layers)), ("8 permutations", permutations)):
        arms = [partial(naive_gains, model, rows, coalitions, 4), partial(shared_gains, decoder, value, coalitions)]
        (theirs, ours), (naive, run) = timed(arms, repeats)
        difference = largest_difference(ours, theirs)
        held &= difference == 0
        ratios = f"{naive:>10.2f}{run:>10.2f}{naive / run:>9.2f}×{naive_forwards(coalitions) / ideal_forwards(coalitions):>8.2f}×"
        print(f"{name:42}{len(set(coalitions)):>11}{ratios}{difference:>10.0e}{'' if difference == 0 else '   NOT EQUAL'}", flush=True)
    return held


def batched_suffixes(repeats: int, seed: int) -> bool:
    """Print one state at a time against many; True when the values are equal to rounding."""
    n_layers, length = 16, 16
    model = random_model(n_layers, 256, 512, seed)
    decoder = LoadedDecoder(model)
    value = TextValue(decoder, random_rows(1, length, 512, seed), source="random", micro_batch_rows=1)
    coalitions = window_removal_coalitions(n_layers)
    arms = [partial(shared_gains, decoder, value, coalitions, batch_tokens=length), partial(shared_gains, decoder, value, coalitions)]
    (alone, together), (one, many) = timed(arms, repeats)
    difference = largest_difference(together, alone)
    held = difference <= 1e-5 * max(float(np.abs(gains).max()) for gains in alone.values())
    print(f"\nbatched suffixes, a row of {length} tokens{'':10}{'coalitions':>6}{'alone s':>10}{'run s':>10}{'ratio':>10}{'':>9}{'max diff':>10}")
    print(f"{'all windows of layers':42}{len(coalitions):>11}{one:>10.2f}{many:>10.2f}{one / many:>9.2f}×{'':>9}{difference:>10.0e}", flush=True)
    return held


def one_pass(seed: int) -> bool:
    """Print the seconds of the one-pass scores on SmolLM2-135M; True when they are few enough."""
    from omegaconf import OmegaConf

    from slayer.config import DataConfig
    from slayer.data.assets import asset_model
    from slayer.data.preparation import prepare_text
    from slayer.data.storing.parts import Workers
    from slayer.importance.decoder import open_decoder
    from slayer.importance.one_pass import measure_pass
    from slayer.importance.sample import heldout_samples
    from slayer.launching.commandline import CONF
    from slayer.models import load_tokenizer

    folder = asset_model("smollm2_135m")
    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / "data" / "demo.yaml"))
    data = DataConfig.model_validate(values)
    with Workers(data.processes) as workers:
        text = prepare_text(data, workers)
    (sample,) = heldout_samples(text, ["wikipedia_en"], load_tokenizer(folder), SAMPLE_TOKENS)
    started = time.perf_counter()
    decoder = open_decoder(folder, "bf16")
    opened = time.perf_counter()
    found = measure_pass(decoder, sample.rows, list(ONE_PASS), source=sample.source, micro_batch_rows=4, seed=seed)
    seconds = time.perf_counter() - opened
    held = seconds <= MOST_SECONDS and not any(one.failed for one in found)
    print(f"\none pass, SmolLM2-135M, bf16, {sample.n_tokens:,} tokens in {sample.n_documents} documents: {', '.join(one.score for one in found)}")
    print(f"{seconds:.1f} s, and {opened - started:.1f} s to open the model (at most {MOST_SECONDS:.0f}): {'PASS' if held else 'FAIL'}")
    return held


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smollm2", action="store_true", help="measure the one-pass scores on the embedded model too")
    arguments = parser.parse_args()
    held = {
        f"at least {LEAST_SHARE:.0%} of the ideal saving": count_forwards(arguments.seed),
        "bits equal to the naive way": wall_times(arguments.repeats, arguments.seed),
        "values equal in batches": batched_suffixes(arguments.repeats, arguments.seed),
    }
    if arguments.smollm2:
        held[f"one pass in {MOST_SECONDS:.0f} s"] = one_pass(arguments.seed)
    print()
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}  {claim}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
