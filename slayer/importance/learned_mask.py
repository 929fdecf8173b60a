"""Which layers' changes in training mattered: one learned mask per layer on what training added to it. High means it mattered.

After ILA (Understanding Layer Significance in LLM Alignment, arXiv 2410.17875), which learns a mask on the change of each layer and ranks
layers by it. How the paper optimises could not be read; what is done here is our own choice and is said at `measure_mask`.

Shape suffixes: N changed layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from slayer.errors import ConfigError, Problem
from slayer.forward import PackedRows
from slayer.importance.gradients import gradients_of, labelled_slices, token_loss
from slayer.importance.table import Measurement
from slayer.surgery.families import layer_of
from slayer.surgery.weights import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor

START_MASK = 0.9
"""Near the trained model, but where the sigmoid still moves."""

EQUAL_SHARE = 0.5
"""A change is kept when it is worth more than this part of an equal share of what all changes together gained."""

LEAST_GAIN_NATS = 1e-3
"""The penalty does not vanish where training neither helped nor hurt on this text."""


class MaskedUpdate:
    """A trained model whose layers can be set anywhere between their start and their trained values.

    Memory beyond the model: a copy of the changed tensors. The start stays in its files and is read a tensor at a time.
    """

    def __init__(self, model: Any, start: Weights) -> None:
        """Find the tensors of layers that training changed. ConfigError when the start is of another shape, or nothing changed."""
        self.model, self._start = model, start
        inside = {name: (at[0], one) for name, one in model.named_parameters() if (at := layer_of(name)) is not None}
        self._require_same_shape({name: tuple(one.shape) for name, (_, one) in inside.items()})
        self._places = {name: (layer, one) for name, (layer, one) in inside.items() if not self._equal(name, one)}
        self.layers = sorted({layer for layer, _ in self._places.values()})
        if not self.layers:
            why = f"it asks which layers' changes mattered, and no layer of this model differs from {start.folder}"
            fix = "checkpoint=runs/NAME   (a trained run), or base=DIR   (what the model was trained from)"
            raise ConfigError([Problem(key="scores", value="learned_mask", why=why, fix=fix)])
        self._trained = {name: one.detach().clone() for name, (_, one) in self._places.items()}

    def set(self, masks_N: Sequence[float]) -> None:
        """Weights of the changed layers become start + mask · (trained − start); 0 and 1 give the very bits of start and trained."""
        import torch

        masks = dict(zip(self.layers, masks_N, strict=True))
        with torch.no_grad():
            for name, (layer, parameter) in self._places.items():
                trained, mask = self._trained[name], masks[layer]
                start = trained if mask == 1 else self._start_of(name, trained)
                parameter.copy_(torch.lerp(_wide(start), _wide(trained), mask) if 0 < mask < 1 else start)

    def slopes(self, rows: PackedRows) -> tuple[float, list[float]]:
        """Loss in nats per token, and its derivative by each mask, [N], where the masks are now."""
        import torch

        found = {layer: torch.zeros((), dtype=torch.float64, device=self.model.device) for layer in self.layers}

        def take(name: str, parameter: Any, gradient: Tensor) -> None:
            trained = self._trained[name]
            change = _wide(trained) - _wide(self._start_of(name, trained))
            found[self._places[name][0]] += (_wide(gradient) * change).sum(dtype=torch.float64)

        with gradients_of(self.model, {name: one for name, (_, one) in self._places.items()}, take) as loss_of:
            loss = loss_of(rows)
        return loss, [float(found[layer]) for layer in self.layers]

    def _start_of(self, name: str, like: Tensor) -> Tensor:
        return self._start[name].to(like.device, like.dtype)

    def _equal(self, name: str, parameter: Tensor) -> bool:
        import torch

        return torch.equal(self._start_of(name, parameter), parameter.detach())

    def _require_same_shape(self, shapes: dict[str, tuple[int, ...]]) -> None:
        stored = {name: info.shape for name, info in self._start.infos.items() if layer_of(name) is not None}
        if stored != shapes:
            name = min(name for name in stored.keys() | shapes.keys() if stored.get(name) != shapes.get(name))
            seen, wanted = (f"of shape {one[name]}" if name in one else "missing" for one in (stored, shapes))
            why = f"it is not what the model was trained from: {name} is {seen} here and {wanted} there"
            fix = "base=DIR   (with the same layers: an expanded model before training)"
            raise ConfigError([Problem(key="base", value=str(self._start.folder), why=why, fix=fix)])


def measure_mask(
    model: Any,
    start: Weights,
    rows: PackedRows,
    *,
    source: str,
    steps: int,
    seed: int,
    micro_batch_rows: int,
    learning_rate: float = 0.1,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """The mask of each layer in (0, 1) after `steps` steps; NaN, and in `failed`, where training changed nothing.

    Layer l has the weights start_l + m_l · (trained_l − start_l), everything outside layers its trained values. m = sigmoid(logit) begins
    at 0.9, and Adam minimises loss + λ · mean(m) over the logits, one micro-batch a step, in an order drawn anew from the seed each time
    the text has been gone through. λ is half of |loss with all masks 0 − loss with all masks 1| (of 0.001 nats at least): a change ends
    high when it is worth more than half an equal share of what all of them gained, low when it is worth less or harms.

    The model comes back bit for bit. One extra copy of the changed tensors is held, and the gradient of one tensor at a time.
    ConfigError when nothing changed or the start is another model; DataError when the text has no token to predict. A loss or
    gradient that is not finite ends the search: no layer has a number then.
    """
    slices = labelled_slices(rows, micro_batch_rows, model.device)
    update = MaskedUpdate(model, start)
    try:
        losses = {"trained": _mean_loss(model, slices)}
        update.set([0.0] * len(update.layers))
        losses["start"] = _mean_loss(model, slices)
        penalty = EQUAL_SHARE * max(abs(losses["start"] - losses["trained"]), LEAST_GAIN_NATS)
        masks_N, broken = _search(update, slices, penalty, steps, seed, learning_rate, _told(on_progress, source, steps))
        update.set(masks_N)
        losses["masked"] = _mean_loss(model, slices)
    finally:
        update.set([1.0] * len(update.layers))
    n_layers = len(model.model.layers)
    known = {} if broken else dict(zip(update.layers, masks_N, strict=True))
    failed = {layer: broken if layer in update.layers else "unchanged in training" for layer in range(n_layers) if layer not in known}
    ordered = {name: losses[name] if math.isfinite(losses[name]) else None for name in ("start", "trained", "masked")}
    return Measurement(
        score="learned_mask", source=source, values=tuple(known.get(layer, math.nan) for layer in range(n_layers)), failed=failed,
        details={"steps": steps, "losses": ordered, "penalty": penalty if math.isfinite(penalty) else None,
                 "changed": [layer in update.layers for layer in range(n_layers)]},
    )  # fmt: skip


def _search(
    update: MaskedUpdate,
    slices: Sequence[PackedRows],
    penalty: float,
    steps: int,
    seed: int,
    learning_rate: float,
    tell: Callable[[int], None],
) -> tuple[list[float], str]:
    """Masks after the search, and why it was broken off ("" when it was not)."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    logits_N = torch.full((len(update.layers),), math.log(START_MASK / (1 - START_MASK)), dtype=torch.float64)
    optimizer = torch.optim.Adam([logits_N], lr=learning_rate)
    order: list[int] = []
    for step in range(steps):
        masks_N = torch.sigmoid(logits_N)
        update.set(masks_N.tolist())
        order = order or torch.randperm(len(slices), generator=generator).tolist()
        loss, slopes_N = update.slopes(slices[order.pop()])
        if not all(map(math.isfinite, [penalty, loss, *slopes_N])):
            return masks_N.tolist(), f"the loss or its gradient is not finite at step {step + 1}"
        logits_N.grad = (torch.tensor(slopes_N, dtype=torch.float64) + penalty / len(slopes_N)) * masks_N * (1 - masks_N)
        optimizer.step()
        tell(step + 1)
    return torch.sigmoid(logits_N).tolist(), ""


def _mean_loss(model: Any, slices: Sequence[PackedRows]) -> float:
    """Nats per token over all slices."""
    import torch

    with torch.inference_mode():
        counts = [int((one.labels_BL != -100).sum()) for one in slices]
        return math.fsum(float(token_loss(model, one)) * count for one, count in zip(slices, counts, strict=True)) / sum(counts)


def _told(on_progress: Callable[[str, int, int], None] | None, source: str, steps: int) -> Callable[[int], None]:
    return lambda step: on_progress(f"masks, {source}", step, steps) if on_progress is not None else None


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    """At least fp32."""
    import torch

    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
