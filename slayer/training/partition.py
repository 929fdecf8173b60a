"""A model that no rank holds whole: made without its weights, of which each rank reads its own part (ZeRO-3)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from slayer.training.ranks import Ranks

if TYPE_CHECKING:
    import torch


class TensorsByName(Protocol):
    """Anything that gives a tensor for a name."""

    def __getitem__(self, name: str, /) -> torch.Tensor: ...

    def __contains__(self, name: object, /) -> bool: ...


def take_parts(model: Any, weights: TensorsByName, cutter: Any, ranks: Ranks) -> None:
    """Cut a model on the meta device among the ranks. Each reads its own part of every tensor, in the model's type, and nothing else of it.

    `weights` are tensors of mapped files, read where they are looked at; `cutter` is DeepSpeed's zero.Init, which by itself would load the
    whole on every rank and send rank 0's around. The cut is DeepSpeed's: flattened, padded to a multiple of the ranks, in equal parts.
    """
    import torch

    places: dict[Any, list[tuple[Any, str]]] = {}
    for module in model.modules():
        for name, hollow in module.named_parameters(recurse=False):
            places.setdefault(hollow, []).append((module, name))  # several, of one that is tied
    for name, hollow in list(model.named_parameters()):
        # Memory that nobody writes to is never given out: what this costs is our part.
        whole: Any = torch.nn.Parameter(torch.empty(hollow.shape, dtype=hollow.dtype, device="cpu"))
        cutter._convert_to_deepspeed_param(whole)
        size = whole.aligned_size() // ranks.world
        ours = slice(ranks.rank * size, (ranks.rank + 1) * size)
        with torch.no_grad():
            whole.view(-1)[ours] = weights[name].view(-1)[ours]
        whole.partition()
        whole.data = torch.empty(0, dtype=hollow.dtype, device=ranks.device)  # where it will be gathered
        for module, own_name in places[hollow]:
            setattr(module, own_name, whole)
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(ranks.device))
