"""The random generators of a rank as tensors: torch's of the CPU and of the device, numpy's and Python's."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_generators(seed: int, rank: int) -> None:
    """Begin this rank's generators anew: every process seeds its own by chance, and what a model draws (dropout) must come again."""
    import numpy as np
    import torch

    number = int.from_bytes(hashlib.sha256(f"generators of rank {rank}, seed {seed}".encode()).digest()[:7], "little")
    torch.manual_seed(number)
    np.random.seed(number % 2**32)
    random.seed(number)


def random_state(rank: int) -> dict[str, torch.Tensor]:
    """Named `random/RANK/GENERATOR`: some ten kilobytes."""
    import numpy as np
    import torch

    words = random.getstate()[1]
    state = np.random.get_state(legacy=True)
    found = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*state[1].tolist(), state[2]], dtype=torch.int64),  # type: ignore[index, union-attr]
        "python": torch.tensor(words, dtype=torch.int64),
    }
    if torch.cuda.is_available():
        found["device"] = torch.cuda.get_rng_state()
    return {f"random/{rank}/{name}": value for name, value in found.items()}


def restore_random_state(tensors: Mapping[str, torch.Tensor], rank: int) -> None:
    """Set this rank's generators; those of a rank that the checkpoint does not know stay as they are."""
    import numpy as np
    import torch

    mine = {name.rpartition("/")[2]: value for name, value in tensors.items() if name.startswith(f"random/{rank}/")}
    if not mine:
        return
    torch.set_rng_state(mine["torch"].clone())
    *words, position = mine["numpy"].tolist()
    np.random.set_state(("MT19937", np.array(words, dtype=np.uint32), position, 0, 0.0))
    random.setstate((3, tuple(mine["python"].tolist()), None))
    if "device" in mine and torch.cuda.is_available():
        torch.cuda.set_rng_state(mine["device"].clone())
