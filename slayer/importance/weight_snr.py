"""Spectrum: how much of each weight matrix stands above what random numbers would give (arXiv 2406.06623).

The rule is that of github.com/cognitivecomputations/spectrum (spectrum.py). High means that the matrices hold much that is no noise:
Spectrum trains those. O output and I input features; K singular values, the larger first.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from slayer.importance.decoder import Decoder
from slayer.importance.table import Measurement

if TYPE_CHECKING:
    from torch import Tensor

IQR_OF_A_NORMAL = 1.349
"""Interquartile range of normal numbers, in standard deviations."""


def measure_snr(decoder: Decoder, *, on_progress: Callable[[str, int, int], None] | None = None) -> Measurement:
    """Mean over the linear modules of each layer of their signal-to-noise ratio. Nothing is run, so there is no source and no error.

    Spectrum itself ranks the layers separately for each kind of matrix; details.matrices has those numbers, by module name, [layers].
    A matrix without a ratio (all zero, as the output projections of a block that does nothing yet, or of so low a rank that nothing is
    left below the threshold but zeros) is None there and not in the mean. A layer with a weight that is not finite fails.
    """
    import torch

    values, failed = [math.nan] * decoder.n_layers, {}
    matrices: dict[str, list[float | None]] = {}
    with torch.inference_mode():
        for index in range(decoder.n_layers):
            with decoder.layer(index) as layer:
                weights = {name: module.weight for name, module in layer.module.named_modules() if isinstance(module, torch.nn.Linear)}
                broken = [name for name, weight_OI in weights.items() if not bool(weight_OI.isfinite().all())]
                ratios = {name: signal_to_noise(weight_OI) for name, weight_OI in weights.items() if name not in broken}
            finite = {name: ratio for name, ratio in ratios.items() if math.isfinite(ratio)}
            for name in weights:
                matrices.setdefault(name, [None] * decoder.n_layers)[index] = finite.get(name)
            if broken:
                failed[index] = f"its weights are not finite: {', '.join(broken)}"
            elif not finite:
                failed[index] = "none of its matrices has a signal-to-noise ratio"
            else:
                values[index] = sum(finite.values()) / len(finite)
            if on_progress is not None:
                on_progress("singular values of the weights", index + 1, decoder.n_layers)
    return Measurement(score="weight_snr", source=None, values=tuple(values), failed=failed, details={"matrices": matrices})


def signal_to_noise(weight_OI: Tensor) -> float:
    """(sum of the singular values above the threshold / sum of the others) / the largest, from fp32 singular values.

    The threshold is that of Marchenko and Pastur, σ (1 + √β), where β is the shorter side over the longer and σ the interquartile range
    of the singular values over 1.349. As in the released code the sum of the others is 1 where there are none, and the ratio is
    infinite where they are all zero; a matrix of zeros, infinite over zero, has none (infinite too).
    """
    import torch

    values_K = torch.linalg.svdvals(weight_OI.float())
    spread = torch.quantile(values_K, 0.75) - torch.quantile(values_K, 0.25)
    beta = min(weight_OI.shape) / max(weight_OI.shape)
    above_K = values_K > spread / IQR_OF_A_NORMAL * (1 + math.sqrt(beta))
    signal = float(values_K[above_K].sum())
    noise = 1.0 if bool(above_K.all()) else float(values_K[~above_K].sum())
    return signal / noise / float(values_K[0]) if noise > 0 else math.inf
