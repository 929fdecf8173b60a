"""First-order Taylor importance of every matrix of every layer: |w · ∂loss/∂w|, what the loss would change by if a weight went to zero.

The rule is that of ADEPT (arXiv 2510.10071) as its training callback computes it (PuppyKnightUniversity/ADEPT, callback_deepspeed.py),
which lets matrices of low importance learn faster. High means important.

Shape suffixes: M micro-batches, N layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.forward import PackedRows
from slayer.importance.gradients import gradients_of, labelled_slices
from slayer.importance.table import Measurement
from slayer.surgery.families import LAYER_PREFIX

Array = NDArray[np.float64]


def measure_taylor(
    model: Any, rows: PackedRows, *, source: str, micro_batch_rows: int, on_progress: Callable[[str, int, int], None] | None = None
) -> Measurement:
    """Importance of each layer in [0, 1], and of each of its units in `details["units"]`, on the rows of a text.

    A unit is a module with weights of its own (self_attn.q_proj with its bias, mlp.up_proj, input_layernorm …). Its importance is
    |w · ∂loss/∂w| averaged over its elements, then over micro-batches; the loss is the mean nats per labelled token of a micro-batch.
    Units are put on [0, 1] by the smallest and largest: matrices among the matrices of all layers, norms among all units, since a norm's
    few weights each count for a whole feature. The value of a layer is the mean over its matrices; its standard error is over
    micro-batches, with the range held fixed. As in ADEPT, but: dropout is off; the norms inside Qwen3's attention are norms too.

    A layer with a gradient that is not finite is in `failed`. DataError when the text has no token to predict.
    """
    parameters = {name: one for name, one in model.named_parameters() if name.startswith(LAYER_PREFIX)}
    sums: dict[str, Any] = {}

    def take(name: str, parameter: Any, gradient: Any) -> None:
        sums[name] = (parameter.detach().float() * gradient.float()).abs().double().sum()

    readings: list[dict[str, float]] = []
    slices = labelled_slices(rows, micro_batch_rows, model.device)
    with gradients_of(model, parameters, take) as loss_of:
        for done, part in enumerate(slices):
            loss_of(part)
            readings.append({name: float(value) for name, value in sums.items()})
            if on_progress is not None:
                on_progress(f"gradients, {source}", done + 1, len(slices))
    return _measurement(_by_unit(model, parameters, readings), source)


def _by_unit(model: Any, parameters: Mapping[str, Any], readings: list[dict[str, float]]) -> tuple[dict[str, Array], set[str]]:
    """Mean importance of an element by unit, [M, N] each, and which units are matrices."""
    n_layers = len(model.model.layers)
    sums: dict[str, Array] = {}
    sizes: dict[str, Array] = {}
    matrices = set()
    for name, parameter in parameters.items():
        layer, _, inner = name[len(LAYER_PREFIX) :].partition(".")
        unit = inner.rpartition(".")[0]
        sums.setdefault(unit, np.zeros((len(readings), n_layers)))[:, int(layer)] += [reading[name] for reading in readings]
        sizes.setdefault(unit, np.zeros(n_layers))[int(layer)] += parameter.numel()
        if parameter.dim() > 1:
            matrices.add(unit)
    return {unit: total_MN / sizes[unit] for unit, total_MN in sums.items()}, matrices


def _measurement(units: tuple[dict[str, Array], set[str]], source: str) -> Measurement:
    by_unit, matrices = units
    finite_N = np.all([np.isfinite(one_MN).all(axis=0) for one_MN in by_unit.values()], axis=0)
    means = {unit: np.where(finite_N, one_MN.mean(axis=0), math.nan) for unit, one_MN in by_unit.items()}
    everything, among_matrices = _range(list(means.values())), _range([means[unit] for unit in matrices])
    scaled = {unit: _scaled(mean_N, among_matrices if unit in matrices else everything) for unit, mean_N in means.items()}
    layers_MN = np.where(finite_N, np.mean([by_unit[unit] for unit in sorted(matrices)], axis=0), math.nan)
    n_batches, width = len(layers_MN), among_matrices[1] - among_matrices[0]
    errors_N = np.full(len(finite_N), math.nan)
    if n_batches > 1 and width > 0:
        errors_N = np.where(finite_N, layers_MN.std(axis=0, ddof=1) / math.sqrt(n_batches) / width, math.nan)
    return Measurement(
        score="taylor", source=source, values=tuple(np.mean([scaled[unit] for unit in sorted(matrices)], axis=0).tolist()),
        errors=tuple(errors_N.tolist()), failed={int(layer): "a gradient is not finite" for layer in np.flatnonzero(~finite_N)},
        details={"units": {unit: [value if math.isfinite(value) else None for value in one_N.tolist()] for unit, one_N in scaled.items()}},
    )  # fmt: skip


def _range(means: list[Array]) -> tuple[float, float]:
    known = np.concatenate(means)
    known = known[np.isfinite(known)]
    return (float(known.min()), float(known.max())) if len(known) else (math.nan, math.nan)


def _scaled(mean_N: Array, ends: tuple[float, float]) -> Array:
    """Onto [0, 1]; in the middle where all are alike, as in ADEPT."""
    low, high = ends
    return np.where(np.isfinite(mean_N), (mean_N - low) / (high - low) if high > low else 0.5, math.nan)
