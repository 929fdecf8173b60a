"""OWL: how many weights of each layer stand out, how much of each layer may therefore be pruned, and what pruning so costs.

Outlier Weighed Layerwise sparsity, arXiv 2310.05175; its rules are those of github.com/luuyin/OWL (lib/prune_all.py), which builds on
Wanda (arXiv 2306.11695). High means important: a layer with many outliers is to be pruned less.

Shape suffixes: B rows of a batch, L tokens of a row, D width of the residual stream, N positions, O output and I input features of a
linear module, R some of its rows; of numbers per layer, L is layers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slayer.importance.decoder import Decoder, Layer
from slayer.importance.text_value import TextValue
from slayer.importance.values import mean_and_error

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS_AT_A_TIME = 1 << 24
_LEAST_SPARSITY = 0.01
"""What the released code makes of an allocated sparsity of 0 or less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierSettings:
    """Defaults are the example of the released code (LLaMA-7B)."""

    multiple: float = 5.0
    """M: an outlier is above M times its layer's mean."""
    lam: float = 0.08
    """λ: sparsities of the layers lie within 2 λ of one another."""
    sparsity: float = 0.7
    """Share of the weights that is pruned, on average over layers."""
    check: bool = False
    """Prune both ways and take the loss; that costs four more forward passes and two sorts of all weights."""


class InputSquares:
    """Squares of what enters each linear module of a layer, summed over the counted tokens."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._n_tokens = 0

    @contextmanager
    def over(self, layer: Layer, counted_BL: Tensor) -> Iterator[None]:
        """One forward pass of the layer inside this block adds the tokens where `counted_BL` is true."""
        import torch

        counted_N = counted_BL.flatten().float()
        seen: tuple[Any, Any] = (None, None)

        def add(name: str, inputs: tuple[Any, ...]) -> None:
            nonlocal seen
            if inputs[0] is not seen[0]:  # queries, keys and values read one tensor; so do gate and up
                seen = inputs[0], (counted_N @ inputs[0].flatten(0, -2).float().square()).double()
            self._sums[name] = self._sums[name] + seen[1] if name in self._sums else seen[1]

        handles = [
            module.register_forward_pre_hook(lambda _, inputs, name=name: add(name, inputs))
            for name, module in layer.module.named_modules()
            if isinstance(module, torch.nn.Linear)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        self._n_tokens += int(counted_BL.sum())

    def norms(self) -> dict[str, Tensor]:
        """Root mean square of every input feature [I], fp32, by module name (self_attn.q_proj …).

        The released code divides the sum of squares by the number of sequences, not of tokens: one factor for all modules and
        layers, which changes neither the outliers nor the order of weights.
        """
        return {name: (total / self._n_tokens).sqrt().float() for name, total in self._sums.items()}


def outlier_share(layer: Layer, norms: Mapping[str, Tensor], multiple: float) -> float:
    """D: 100 · share of the layer's weights with A > multiple · mean(A), where A = |W| · norm of the input feature.

    As in the released code, the mean and the share are taken over all linear modules of the layer together, not matrix by matrix.
    NaN when the mean is not finite.
    """
    weights = {name: layer.module.get_submodule(name).weight for name in norms}
    n_weights: int = sum(weight.numel() for weight in weights.values())
    total = sum(float(weight.float().abs().double().sum(dim=0) @ norms[name].double()) for name, weight in weights.items())
    threshold = multiple * total / n_weights
    if not math.isfinite(threshold):
        return math.nan
    return 100.0 * sum(int((weight.float().abs() * norms[name] > threshold).sum()) for name, weight in weights.items()) / n_weights


def allocation(shares_L: Sequence[float], lam: float, sparsity: float) -> list[float]:
    """Sparsity of each layer [L]: 1 − k, k = 2 λ (D − min D) / (max D − min D), shifted so that the mean of k is 1 − sparsity.

    `shares_L` is D. Where all layers have the same D (the released code divides by zero) the sparsity is the same everywhere.
    Nothing keeps the numbers within 0 and 1; nor does the released code.
    """
    low, spread = min(shares_L), max(shares_L) - min(shares_L)
    kept_L = [2 * lam * (share - low) / spread if spread > 0 else 0.0 for share in shares_L]
    mean = sum(kept_L) / len(kept_L)
    return [1 - (kept - mean + 1 - sparsity) for kept in kept_L]


def pruned_losses(
    decoder: Decoder,
    text: TextValue,
    counted: Sequence[Tensor],
    allocations: Mapping[str, Sequence[float]],
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, float]:
    """Loss in nats per token of the model pruned by Wanda to each allocation (sparsity per layer, [L]), on the text it is pruned with.

    `counted` says part by part which tokens [B, L] the input features are measured on. Inputs of a layer come from the already pruned
    layers before it, the layer itself still whole, as in the released code. Layers are read once, for all allocations; what is pruned is
    a copy of one layer at a time, the model stays as it is.
    """
    import torch

    with torch.inference_mode():
        states = {name: [decoder.embed(part) for part in text.parts] for name in allocations}
        for index in range(decoder.n_layers):
            with decoder.layer(index) as layer:
                for name, sparsities_L in allocations.items():
                    squares = InputSquares()
                    for place, part in enumerate(text.parts):
                        with squares.over(layer, counted[place]):
                            layer.whole(states[name][place], part)
                    pruned = prune(layer, squares.norms(), sparsities_L[index])
                    states[name] = [pruned.whole(hidden_BLD, part) for hidden_BLD, part in zip(states[name], text.parts, strict=True)]
            if on_progress is not None:
                on_progress("the pruned models", index + 1, decoder.n_layers)
        return {name: loss_of_states(decoder, text, hidden) for name, hidden in states.items()}


def prune(layer: Layer, norms: Mapping[str, Tensor], sparsity: float) -> Layer:
    """A copy of the layer without the `sparsity` of its weights that Wanda finds least important.

    In every row of every linear module the int(I · sparsity) weights with the lowest |W| · norm are set to zero, of equal ones the
    first; a sparsity of 0 or less counts as 0.01, both as in the released code.
    """
    pruned = copy.copy(layer)
    pruned.module = copy.deepcopy(layer.module)
    for name, norms_I in norms.items():
        weight_OI = pruned.module.get_submodule(name).weight.data
        n_gone = int(weight_OI.shape[1] * (sparsity if sparsity > 0 else _LEAST_SPARSITY))
        for weight_RI in weight_OI.split(max(1, _WEIGHTS_AT_A_TIME // weight_OI.shape[1])):
            order_RI = (weight_RI.float().abs() * norms_I).sort(dim=-1, stable=True).indices
            weight_RI.scatter_(1, order_RI[:, :n_gone], 0)
    return pruned


def loss_of_states(decoder: Decoder, text: TextValue, states: Sequence[Tensor]) -> float:
    """Nats per token of what leaves the last layer, [B, L, D] part by part."""
    gains_U = text.gains([text.read(decoder, place, hidden_BLD) for place, hidden_BLD in enumerate(states)])
    return -mean_and_error(gains_U, text.weights_U)[0]
