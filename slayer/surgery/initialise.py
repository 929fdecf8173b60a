"""How the tensors of a new block, or of an averaged tail, are made from tensors of the base.

Means are taken in float64 and rounded once to the stored type, in pieces, so a block never needs more than itself in memory.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PIECE = 1 << 20  # elements: 8 MiB in float64


def mean_of(tensors: Sequence[torch.Tensor], scale: float | None = None) -> torch.Tensor:
    """Element-wise mean (or sum × `scale`) of same-shaped tensors, in their dtype. Source: txchen-USTC/Llama-Slayer (average of two)."""
    import torch

    result = torch.empty(tensors[0].shape, dtype=tensors[0].dtype)
    flat = [tensor.reshape(-1) for tensor in tensors]
    target = result.view(-1)
    for start in range(0, target.numel(), _PIECE):
        piece = slice(start, start + _PIECE)
        total = flat[0][piece].to(torch.float64, copy=True)  # float64 inputs must not be added to in place
        for other in flat[1:]:
            total += other[piece]
        target[piece] = total / len(flat) if scale is None else total * scale
    return result


def slerp_midpoint(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Midpoint on the great circle between two tensors taken as vectors.

    At t = 1/2 spherical interpolation is (a + b) / (2 cos(θ/2)) with θ the angle between a and b (Shoemake 1985); nearly
    opposite vectors, where it has no direction, fall back to the mean.
    """
    dot = norm_first = norm_second = 0.0
    one, two = first.reshape(-1), second.reshape(-1)
    for start in range(0, one.numel(), _PIECE):
        a, b = one[start : start + _PIECE].double(), two[start : start + _PIECE].double()
        dot, norm_first, norm_second = dot + float(a @ b), norm_first + float(a @ a), norm_second + float(b @ b)
    scale_of_both = math.sqrt(norm_first * norm_second)
    cosine = max(-1.0, min(1.0, dot / scale_of_both)) if scale_of_both > 0 else 1.0
    half = math.cos(math.acos(cosine) / 2)
    return mean_of([first, second], scale=1 / (2 * half)) if half > 1e-4 else mean_of([first, second])


def random_like(template: torch.Tensor, name: str, seed: int, standard_deviation: float) -> torch.Tensor:
    """Fresh weights: normal matrices, ones for norms, zeros for biases; a pure function of (seed, tensor name)."""
    import torch

    if name.endswith(".bias"):
        return torch.zeros_like(template)
    if template.dim() == 1:
        return torch.ones_like(template)
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(template.shape).normal_(0.0, standard_deviation, generator=generator).to(template.dtype)
