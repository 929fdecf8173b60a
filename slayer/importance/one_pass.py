"""The scores that one forward pass over a text gives, all of them together: ONE_PASS of the catalogue.

A walk over the layers, every part of the text through one layer before the next is read, with observers who look at each state as it
comes by. Only tokens with a label count, so padding does not.

Shape suffixes: B rows of a batch, L tokens of a row, D width of the residual stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np

from slayer.errors import DataError
from slayer.evaluation.heldout import IGNORED
from slayer.forward import PackedRows, split_rows
from slayer.importance.catalogue import ONE_PASS
from slayer.importance.decoder import Decoder
from slayer.importance.observers import TOKEN_SCORES, Angles, Divergence, Observer, TokenMeans, measurement
from slayer.importance.outliers import InputSquares, OutlierSettings, allocation, loss_of_states, outlier_share, pruned_losses
from slayer.importance.table import Measurement
from slayer.importance.text_value import TextValue

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, int, int], None]


def measure_pass(
    decoder: Decoder,
    rows: PackedRows,
    scores: Sequence[str],
    *,
    source: str,
    micro_batch_rows: int,
    outliers: OutlierSettings | None = None,
    dola_positions: int = 256,
    seed: int = 0,
    on_progress: Progress | None = None,
) -> list[Measurement]:
    """Measure some of ONE_PASS on packed rows, in the order asked. `source` names the text; `seed` draws the positions for DoLa.

    A layer whose output is not finite fails, and those behind it with it; what was measured before stays. DataError when no token has a
    label, or when angular_distance is asked of fewer than MIN_DOCUMENTS documents.
    """
    import torch

    unknown = [name for name in scores if name not in ONE_PASS]
    if unknown:
        raise ValueError(f"{unknown} cannot be measured in one pass; {list(ONE_PASS)} can")
    counted = [(one.labels_BL != IGNORED).to(decoder.device) for one in split_rows(rows, micro_batch_rows)]
    if not any(bool(one.any()) for one in counted):
        raise DataError(f"{source} has no token with a label, so there is nothing to measure layers on; type a larger analysis.sample_tokens")
    observers: list[Observer] = []
    token_scores = [name for name in scores if name in TOKEN_SCORES]
    if token_scores:
        observers.append(TokenMeans(token_scores, counted))
    if "angular_distance" in scores:
        observers.append(Angles(rows, counted, source, decoder))
    if "dola_divergence" in scores:
        observers.append(Divergence(counted, dola_positions, seed, decoder))
    weighing = Weighing(outliers or OutlierSettings()) if "outlier_distribution" in scores else None
    with torch.inference_mode():
        text = TextValue(decoder, rows, source=source, micro_batch_rows=micro_batch_rows)
        n_finite, states = _walk(decoder, text, counted, observers, weighing, on_progress)
        found = [one for observer in observers for one in observer.measurements(source, decoder.n_layers, n_finite)]
        if weighing is not None:
            found.append(weighing.measurement(decoder, text, counted, states, n_finite, on_progress))
    return sorted(found, key=lambda one: scores.index(one.score))


def _walk(
    decoder: Decoder,
    text: TextValue,
    counted: Sequence[Tensor],
    observers: Sequence[Observer],
    weighing: Weighing | None,
    on_progress: Progress | None,
) -> tuple[int, list[Tensor]]:
    """Number of layers whose output is finite, and what left the last of them."""
    states = [decoder.embed(part) for part in text.parts]
    for place, hidden_BLD in enumerate(states):
        for observer in observers:
            observer.see(0, place, None, hidden_BLD)
    for index in range(decoder.n_layers):
        with decoder.layer(index) as layer:
            squares = InputSquares()
            for place, part in enumerate(text.parts):
                with squares.over(layer, counted[place]) if weighing is not None else nullcontext():
                    hidden_BLD = layer.whole(states[place], part)
                if not bool(hidden_BLD.isfinite().all(dim=-1)[counted[place]].all()):
                    return index, states
                for observer in observers:
                    observer.see(index + 1, place, states[place], hidden_BLD)
                states[place] = hidden_BLD
                if on_progress is not None:
                    on_progress("one pass over the layers", index * len(text.parts) + place + 1, decoder.n_layers * len(text.parts))
            if weighing is not None:
                weighing.shares.append(outlier_share(layer, squares.norms(), weighing.settings.multiple))
    return decoder.n_layers, states


class Weighing:
    """outlier_distribution: OWL's share of outliers in percent of a layer's weights, the sparsities that follow and what they cost."""

    def __init__(self, settings: OutlierSettings) -> None:
        self.settings = settings
        self.shares: list[float] = []
        """By layer, as far as the walk has come."""

    def measurement(
        self, decoder: Decoder, text: TextValue, counted: Sequence[Tensor], states: Sequence[Tensor], n_finite: int, on_progress: Progress | None
    ) -> Measurement:
        """`states` leave the last layer. Sparsities need a share of every layer; without them there is no check either (None)."""
        settings = self.settings
        sparsities: list[float] | None = None
        check: dict[str, float | None] | None = None
        if n_finite == decoder.n_layers and np.isfinite(self.shares).all():
            sparsities = allocation(self.shares, settings.lam, settings.sparsity)
        if sparsities is not None and settings.check:
            allocations = {"uniform": [settings.sparsity] * decoder.n_layers, "owl": sparsities}
            losses = {"dense": loss_of_states(decoder, text, states)}
            losses |= pruned_losses(decoder, text, counted, allocations, on_progress=on_progress)
            check = {name: loss if math.isfinite(loss) else None for name, loss in losses.items()}
        details = {
            "multiple": settings.multiple, "lambda": settings.lam, "sparsity": settings.sparsity,
            "sparsities": sparsities if sparsities is not None else [None] * decoder.n_layers, "check": check,
        }  # fmt: skip
        pairs = [(share, math.nan) for share in self.shares]
        return measurement("outlier_distribution", text.source, pairs, decoder.n_layers, n_units=1, details=details)
