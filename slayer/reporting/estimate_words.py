"""What an estimate says, in words and numbers for people: the terminal and the report share them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from slayer.reporting.numbers import MISSING, count, duration, short, size

Costs = Mapping[str, Any]

PARTS = {
    "weights": "weights", "gradients": "gradients", "optimizer": "master and moments", "buffers": "buffers", "gathered": "gathered shards",
    "activations": "activations", "logits": "logits", "recomputed": "a recomputed layer",
}  # fmt: skip
"""Parts of a GPU's memory that are held at once, in the order they are told."""
DAYS = 48 * 3600
"""Seconds from which a time is told in days."""


def layout_sentence(cost: Costs) -> str:
    """zero2 in bf16 on 1 GPU, 4 × 512 tokens a micro-batch."""
    where = f"{count(cost['gpus'])} GPU{'s' if cost['gpus'] > 1 else ''}"
    rows = f"{cost['micro_batch_rows']} × {count(cost['sequence_length'])} tokens a micro-batch"
    checkpointing = ", activations recomputed" if cost["activation_checkpointing"] else ""
    return f"zero{cost['zero_stage']} in {cost['precision']} on {where}, {rows}{checkpointing}"


def held(cost: Costs) -> Costs:
    """The memory of a layout as it asks: with or without activation checkpointing."""
    memory: Costs = cost["checkpointed" if cost["activation_checkpointing"] else "memory"]
    return memory


def memory_sentence(memory: Costs) -> str:
    """weights 18.7, gradients 3.5, … in the unit and about the figures of their sum; parts that are nothing are left out, and of logits and a
    recomputed layer, which do not meet, the smaller."""
    unit = 1e9 if memory["total"] >= 999.5e6 else 1e6
    smaller = min(("logits", "recomputed"), key=lambda key: memory[key])
    digits = 0 if unit == 1e6 else 1 if memory["total"] >= 9.995e9 else 2
    return ", ".join(f"{name} {memory[key] / unit:.{digits}f}" for key, name in PARTS.items() if memory[key] and key != smaller)


def arithmetic_sentence(flops: Costs) -> str:
    """41.6 GFLOP a token: forward 18.9, to inputs 19.2, to weights 3.49."""
    forward, inputs, weights = (sum(flops[name].values()) / 1e9 for name in ("forward", "input_gradients", "weight_gradients"))
    return f"{short_flops(flops['total'])} a token: forward {forward:.3g}, to inputs {inputs:.3g}, to weights {weights:.3g}"


def short_flops(value: float) -> str:
    """41.6 GFLOP, 265 MFLOP; a dash for none."""
    return f"{short(value).replace(' B', ' G')}FLOP" if value else MISSING


def time(seconds: float) -> str:
    """12 min 30 s, 5 h 12 min, 3.4 days; < 1 s."""
    return f"{seconds / 86_400:.1f} days" if seconds >= DAYS else duration(seconds) if seconds >= 1 else "< 1 s"


def gpu_hours(hours: float) -> str:
    """2,222 GPU h, 0.4 GPU h; < 0.01 GPU h."""
    return f"{count(hours) if hours >= 9.95 else format(hours, '.2g') if hours >= 0.01 else '< 0.01'} GPU h"


def length_words(costs: Costs) -> str:
    """1.05 M tokens; where the length is not known a round number, and that it is one."""
    return f"{short(costs['tokens'])} tokens" if costs["tokens_known"] else f"each {short(costs['tokens'])} tokens"


def here_sentence(here: Costs) -> str:
    """CPU: 2 ranks × 3.1 GB of memory needed, 20.1 GB free."""
    ranks = f"{here['ranks']} ranks × " if here["ranks"] > 1 else ""
    has = "free" if here["device"] == "CPU" else "there"
    return f"{here['device']}: {ranks}{size(here['needed_bytes'])} of memory needed, {size(here['memory_bytes'])} {has}"


def lacks_memory(here: Costs) -> bool:
    """True where this machine has less than the run needs: ranks on a CPU share it, each GPU has its own."""
    return bool(here["needed_bytes"] * (here["ranks"] if here["device"] == "CPU" else 1) > here["memory_bytes"])


def layout_words(recommended: Costs | None) -> str:
    """zero2, micro-batch 4; with the number of GPUs where those of the run do not do."""
    if recommended is None:
        return "fits on no number of them"
    more = f"{recommended['gpus']} of them: " if recommended["fewer_gpus"] else ""
    checkpointing = ", recompute" if recommended["activation_checkpointing"] else ""
    return f"{more}zero{recommended['zero_stage']}, micro-batch {recommended['micro_batch_rows']}{checkpointing}"


def advice(costs: Costs) -> tuple[str, str] | None:
    """The recommendation for the first GPU that can do it, and what is typed for it (nothing where the run asks for it already)."""
    device = next((one for one in costs["devices"] if one["recommended"]), None)
    if device is None:
        return None
    return f"{device['name']}: {device['recommended']['sentence']}", device["recommended"]["override"]
