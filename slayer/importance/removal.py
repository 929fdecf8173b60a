"""What is lost when layers are left out or run twice: one layer, windows of neighbours, the top of the model.

Each score is a pair: the coalitions it needs, and what it makes of their values. "Lost" is v(all) − v(S), positive when something is lost, in
the value's unit (nats per token, or accuracy as a fraction). Leave-one-out over layers is the analysis of Llama SLayer (arXiv 2410.02330)
and of Gromov et al. (2403.17887, depth ablation).

A coalition without a finite value marks the layers that need it as failed, and no other; where the whole model has none, all are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slayer.importance.table import Measurement
from slayer.importance.values import TWICE, WHOLE, Values, mean_and_error, whole, without


def removal_coalitions(n_layers: int) -> tuple[str, ...]:
    """The whole model, and the model without each layer."""
    return (whole(n_layers), *(without(n_layers, [layer]) for layer in range(n_layers)))


def removal(values: Values, n_layers: int) -> Measurement:
    """Lost without each layer (arXiv 2410.02330, 2409.14381). High: much is lost, important. Errors are paired over the units of the sample."""
    return _lost_by_layer("removal", values, removal_coalitions(n_layers))


def expansion_probe_coalitions(n_layers: int) -> tuple[str, ...]:
    """The whole model, and the model with each layer run twice in a row."""
    twice = (WHOLE * layer + TWICE + WHOLE * (n_layers - layer - 1) for layer in range(n_layers))
    return (whole(n_layers), *twice)


def expansion_probe(values: Values, n_layers: int) -> Measurement:
    """Lost when each layer runs twice in a row: a block that is no identity, put in at that depth (arXiv 2410.02330).

    High: much is lost, the place does not bear an active block. The paper does not say how its probe block is made; a copy of the layer
    is the plainest one that changes anything.
    """
    return _lost_by_layer("expansion_probe", values, expansion_probe_coalitions(n_layers))


def layer_drop_coalitions(n_layers: int) -> tuple[str, ...]:
    """The whole model, and the model without its top k layers, by the lowest layer that goes: k = L … 1."""
    return (whole(n_layers), *(without(n_layers, range(layer, n_layers)) for layer in range(n_layers)))


def layer_drop(values: Values, n_layers: int) -> Measurement:
    """Lost when a layer and all above it are gone (Why Lift so Heavy, arXiv 2402.11700); for layer 0 embedding and head are all there is.

    A curve over depth, no order of importance. High: much is lost.
    """
    return _lost_by_layer("layer_drop", values, layer_drop_coalitions(n_layers))


def window_removal_coalitions(n_layers: int, longest: int | None = None) -> tuple[str, ...]:
    """The whole model, and the model without each window of neighbouring layers, up to `longest` of them (None: all but one)."""
    return (whole(n_layers), *(without(n_layers, window) for window in _windows(n_layers, longest)))


def window_removal(values: Values, n_layers: int, longest: int | None = None) -> Measurement:
    """Mean of lost(W) / |W| over all windows W around a layer (arXiv 2403.17887 and 2409.14381 take out windows). High: important.

    Layers near the ends lie in fewer windows. `details` has what every window loses, by length and start, and the cheapest window of each
    length. A layer of which one window failed has no mean: windows that fail are seldom the cheap ones.
    """
    windows = _windows(n_layers, longest)
    reasons = {window: _why_not_lost(values, whole(n_layers), without(n_layers, window)) for window in windows}
    lost = {window: values.difference(whole(n_layers), without(n_layers, window))[0] for window in windows if reasons[window] is None}
    means, errors = [], []
    failed: dict[int, str] = {}
    for layer in range(n_layers):
        around = [window for window in windows if layer in window]
        bad = next((window for window in around if window not in lost), None)
        if bad is not None:
            failed[layer] = f"without layers {bad.start} to {bad.stop - 1}: {reasons[bad]}" if len(bad) > 1 else str(reasons[bad])
            means.append(float("nan"))
            errors.append(float("nan"))
            continue
        # Windows share the units, so their differences are averaged unit by unit before the error is taken.
        shares = [(values.gains[whole(n_layers)] - values.gains[without(n_layers, window)]) / len(window) for window in around]
        mean, error = mean_and_error(np.mean(shares, axis=0), values.weights_U)
        means.append(mean)
        errors.append(error)
    details = {"whole": _whole_value(values, n_layers), **_window_details(windows, lost)}
    return Measurement(
        score="window_removal", source=values.source, values=tuple(means), errors=tuple(errors), failed=failed, details=details
    )  # fmt: skip


def _windows(n_layers: int, longest: int | None) -> tuple[range, ...]:
    lengths = range(1, (max(n_layers - 1, 1) if longest is None else min(longest, n_layers)) + 1)
    return tuple(range(start, start + length) for length in lengths for start in range(n_layers - length + 1))


def _window_details(windows: Sequence[range], lost: Mapping[range, float]) -> dict[str, Any]:
    by_length: dict[str, list[float | None]] = {}
    cheapest: dict[str, dict[str, Any]] = {}
    for window in windows:
        length, value = str(len(window)), lost.get(window)
        by_length.setdefault(length, []).append(value)
        if value is not None and (length not in cheapest or value < cheapest[length]["lost"]):
            cheapest[length] = {"start": window.start, "lost": value}
    return {"windows": by_length, "cheapest": cheapest}


def _lost_by_layer(score: str, values: Values, coalitions: Sequence[str]) -> Measurement:
    """What each coalition but the first, the whole model, has lost."""
    all_kept, *changed = coalitions
    reasons = [_why_not_lost(values, all_kept, coalition) for coalition in changed]
    failed = {layer: why for layer, why in enumerate(reasons) if why is not None}
    nothing = float("nan"), float("nan")
    found = [nothing if layer in failed else values.difference(all_kept, coalition) for layer, coalition in enumerate(changed)]
    return Measurement(
        score=score, source=values.source, values=tuple(lost for lost, _ in found), errors=tuple(error for _, error in found),
        failed=failed, details={"whole": _whole_value(values, len(all_kept))},
    )  # fmt: skip


def _why_not_lost(values: Values, all_kept: str, coalition: str) -> str | None:
    why = values.failure(all_kept)
    return f"the whole model: {why}" if why is not None else values.failure(coalition)


def _whole_value(values: Values, n_layers: int) -> float | None:
    return values.value(whole(n_layers)) if values.failure(whole(n_layers)) is None else None
