"""Gradients of the loss on a text, taken one tensor at a time: beyond weights and activations nothing larger than one tensor is held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from slayer.errors import DataError
from slayer.forward import PackedRows, RowSlice, logits_of, nll_BL, split_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn import Parameter

Take = Callable[[str, "Parameter", "Tensor"], None]
"""Given a parameter's name, the parameter and its finished gradient, which is freed afterwards."""


def labelled_slices(rows: PackedRows, micro_batch_rows: int, device: torch.device) -> list[RowSlice]:
    """The rows on a device in slices of at most `micro_batch_rows`, without those that have nothing to predict; DataError when none has."""
    slices = [one for one in split_rows(rows, micro_batch_rows) if bool((one.labels_BL != -100).any())]
    if not slices:
        raise DataError("the text has no token to predict: every document is a single token")
    for one in slices:
        for name in ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL"):
            setattr(one, name, getattr(one, name).to(device))
    return slices


def token_loss(model: Any, rows: PackedRows) -> Tensor:
    """Mean nats per labelled token, a scalar that can be differentiated."""
    return nll_BL(logits_of(model, rows), rows.labels_BL).sum() / (rows.labels_BL != -100).sum()


@contextmanager
def gradients_of(model: Any, parameters: Mapping[str, Parameter], take: Take) -> Iterator[Callable[[PackedRows], float]]:
    """Within the block, a function that returns the loss on rows after handing the gradient of each of `parameters` to `take`.

    Nothing else gets a gradient, and dropout is off. Afterwards the model trains or not, and asks for gradients, as before; it holds none.
    """
    import torch

    asked = [(one, one.requires_grad) for one in model.parameters()]
    modes = [(one, one.training) for one in model.modules()]

    def hand_over(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Any) -> None:
            take(name, parameter, parameter.grad)
            parameter.grad = None

        return hook

    def loss_of(rows: PackedRows) -> float:
        with torch.inference_mode(False), torch.enable_grad():
            loss = token_loss(model, rows)
            loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    model.eval().requires_grad_(False).zero_grad(set_to_none=True)
    handles = []
    try:
        for name, parameter in parameters.items():
            handles.append(parameter.requires_grad_(True).register_post_accumulate_grad_hook(hand_over(name)))  # type: ignore[no-untyped-call]
        yield loss_of
    finally:
        for handle in handles:
            handle.remove()
        model.zero_grad(set_to_none=True)
        for one, wanted in asked:
            one.requires_grad_(wanted)
        for module, training in modes:
            module.training = training
