"""What a process says about its machine."""

from __future__ import annotations

import pytest
import torch

from slayer.training.metrics import device_name, memory_bytes

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU its memory is meant")


def test_memory_is_the_peak_in_bytes() -> None:
    before = memory_bytes()
    block = torch.ones(64 << 20)  # 256 MiB, every page touched
    peak = memory_bytes()
    assert peak >= 4 * block.numel()
    del block
    assert before <= peak <= memory_bytes() < 64 << 30


def test_device_name() -> None:
    assert device_name() == "CPU"
