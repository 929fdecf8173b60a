"""The estimate in a run's report: memory of every ZeRO stage and number of GPUs by part, arithmetic by pass, GPUs by name."""

from __future__ import annotations

from typing import Any

from slayer.reporting.document import Block, Bullets, Cell, Code, Heading, Paragraph, Table
from slayer.reporting.estimate_words import (
    PARTS,
    Costs,
    advice,
    gpu_hours,
    held,
    here_sentence,
    layout_sentence,
    layout_words,
    length_words,
    short_flops,
    time,
)
from slayer.reporting.numbers import MISSING, count, short, size

MEMORY_NOTE = (
    "Peak of one GPU. Trained weights have gradients, fp32 masters and two moments; frozen ones are weights and nothing else, and whole on every GPU "
    "up to zero2. Activations and logits are those of one micro-batch; buckets include gradients that a GPU holds beyond its own share; gathered "
    "shards are the weights that zero3 fetches. Sent: what a GPU sends for one step."
)
TIME_NOTE = (
    "Times follow from the arithmetic, the peak of the data sheet and a share of it that is taken to be reached (estimate.mfu); recomputed "
    "activations count as work. A GPU's memory is its data sheet's gigabytes; the driver has some more, which is left to CUDA and NCCL."
)


COLUMNS = tuple(key for key in PARTS if key != "recomputed")
"""Parts of a GPU's memory without activation checkpointing."""


def estimate_blocks(costs: Costs) -> list[Block]:
    """The section "What it costs"; empty for a run without an estimate."""
    if not costs:
        return []
    asked = costs["asked"]
    sentences = (
        _parameters_sentence(costs["parameters"]),
        f"As asked, {layout_sentence(asked)}: {size(held(asked)['total'])} on each GPU. A checkpoint is {size(costs['checkpoint_bytes'])}.",
        f"{here_sentence(costs['here'])}.",
    )
    blocks: list[Block] = [Bullets(items=sentences)]
    told = advice(costs)
    if told is not None:
        blocks.append(Paragraph(text=f"{told[0]}."))
        blocks += [Code(text=told[1])] if told[1] else []
    blocks += [Heading(text="GPUs and time"), _devices(costs), Paragraph(text=TIME_NOTE, quiet=True)]
    blocks += [Heading(text="Arithmetic of a token"), _flops(costs["flops_per_token"])]
    return [*blocks, Heading(text="Memory of a GPU"), _layouts(costs), Paragraph(text=MEMORY_NOTE, quiet=True)]


def _parameters_sentence(parameters: Costs) -> str:
    """9.34 B parameters: 1.96 B train (1.74 B in new blocks, 218 M in the tail); 7.38 B stay as they were."""
    places = [f"{short(parameters[key])} in {words}" for key, words in (("new_blocks", "new blocks"), ("tail", "the tail")) if parameters[key]]
    of_them = f" ({', '.join(places)})" if places else ""
    return f"{short(parameters['total'])} parameters: {short(parameters['trained'])} train{of_them}; {short(parameters['frozen'])} stay as they were."


def _devices(costs: Costs) -> Table:
    head = ("GPU", "memory#", "as asked", "fits", "spare#", "tokens per second#", f"{length_words(costs)}#", "#")
    rows = []
    for device in costs["devices"]:
        best = device["recommended"]
        told = (MISSING,) * 4
        if best:
            told = (size(best["spare_bytes"]), count(device["tokens_per_second"]), time(device["seconds"]), gpu_hours(device["gpu_hours"]))
        asked = "fits" if device["asked_fits"] else "does not fit"
        rows.append((str(device["name"]), size(device["memory_bytes"]), asked, layout_words(best), *told))
    return Table(head=head, rows=tuple(rows))


def _flops(flops: Costs) -> Table:
    passes = {"forward": "forward", "input_gradients": "gradients of inputs", "weight_gradients": "gradients of trained weights"}
    parts = ("linear", "attention", "head")
    rows: list[tuple[Cell, ...]] = [
        (words, *(short_flops(flops[name][part]) for part in parts), short_flops(sum(flops[name].values()))) for name, words in passes.items()
    ]
    rows.append(("together", *(short_flops(sum(flops[name][part] for name in passes)) for part in parts), short_flops(flops["total"])))
    return Table(head=("", "matrices of the layers#", "attention#", "head#", "all#"), rows=tuple(rows), strong=frozenset({len(passes)}))


def _layouts(costs: Costs) -> Table:
    head = ("GPUs#", "stage", *(f"{PARTS[key]}#" for key in COLUMNS), "peak#", "if recomputed#", "sent#")
    asked = {key: costs["asked"][key] for key in ("gpus", "zero_stage")}
    strong = frozenset(place for place, cost in enumerate(costs["layouts"]) if {key: cost[key] for key in asked} == asked)
    return Table(head=head, rows=tuple(map(_layout_row, costs["layouts"])), strong=strong)


def _layout_row(cost: dict[str, Any]) -> tuple[Cell, ...]:
    memory = cost["memory"]
    parts = (size(memory[key]) if memory[key] else MISSING for key in COLUMNS)
    sent = size(cost["traffic_bytes"]) if cost["gpus"] > 1 else MISSING
    return count(cost["gpus"]), f"zero{cost['zero_stage']}", *parts, size(memory["total"]), size(cost["checkpointed"]["total"]), sent
