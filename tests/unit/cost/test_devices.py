"""GPUs by name."""

from __future__ import annotations

from typing import get_args

from slayer.config import DeviceName
from slayer.cost.devices import DEVICES, peak_flops


def test_peaks() -> None:
    assert peak_flops("NVIDIA H100 80GB HBM3", None) == 989e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", None) == 312e12
    assert peak_flops("NVIDIA B200", None) == 2250e12
    assert peak_flops("NVIDIA GeForce RTX 4090", None) == 165e12
    assert peak_flops("x86_64", None) is None
    assert peak_flops("x86_64", 1.5) == peak_flops("NVIDIA H100 80GB HBM3", 1.5) == 1.5e12


def test_the_names_that_a_configuration_may_hold_are_those_of_the_table() -> None:
    assert set(get_args(DeviceName)) == set(DEVICES)
