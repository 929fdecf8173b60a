"""Means, great circles and random starts, element by element."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slayer.surgery.initialise import mean_of, random_like, slerp_midpoint

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDTH = {torch.float32: 24, torch.bfloat16: 8, torch.float16: 11}
LOWEST = {torch.float32: -149, torch.bfloat16: -133, torch.float16: -24}


def rounded_once(value: Fraction, dtype: torch.dtype) -> float:
    """The nearest number of the type, ties to even, in exact arithmetic."""
    if value == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(value)))
    exponent += (abs(value) >= Fraction(2) ** (exponent + 1)) - (abs(value) < Fraction(2) ** exponent)
    unit = Fraction(2) ** max(exponent - WIDTH[dtype] + 1, LOWEST[dtype])
    return float(round(value / unit) * unit)  # Python rounds halves to even


@pytest.mark.parametrize("dtype", DTYPES)
@given(seed=st.integers(0, 2**31), spread=st.integers(0, 6))
def test_the_mean_of_two_is_exact_and_rounded_once(dtype: torch.dtype, seed: int, spread: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = ((torch.randn(16, generator=generator) * 10.0 ** (spread * (torch.rand(16, generator=generator) - 0.5))).to(dtype) for _ in range(2))
    seen = mean_of([a, b])
    assert seen.dtype == dtype
    for one, two, mean in zip(a.tolist(), b.tolist(), seen.tolist(), strict=True):
        assert mean == rounded_once((Fraction(one) + Fraction(two)) / 2, dtype)


def test_large_numbers_do_not_overflow_on_the_way() -> None:
    top = torch.tensor([65504.0], dtype=torch.float16)
    assert mean_of([top, top]).item() == 65504.0
    wide = torch.tensor([3e38])
    assert mean_of([wide, wide, wide]).item() == wide.item()


@pytest.mark.parametrize("dtype", DTYPES)
def test_means_of_several_and_of_tensors_longer_than_a_piece(dtype: torch.dtype) -> None:
    tensors = [torch.randn(1025, 1027, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(3)]
    wanted = ((tensors[0].double() + tensors[1].double() + tensors[2].double()) / 3).to(dtype)
    assert torch.equal(mean_of(tensors), wanted)
    assert torch.equal(mean_of(tensors[:1]), tensors[0])
    transposed = [tensor.T for tensor in tensors[:2]]
    assert torch.equal(mean_of(transposed), mean_of(tensors[:2]).T)


@pytest.mark.parametrize("dtype", [torch.float64, *DTYPES])
def test_what_goes_in_is_left_alone(dtype: torch.dtype) -> None:
    a, b = torch.tensor([1.0, 2.0], dtype=dtype), torch.tensor([3.0, 5.0], dtype=dtype)
    assert torch.equal(mean_of([a, b]), torch.tensor([2.0, 3.5], dtype=dtype))
    slerp_midpoint(a, b)
    assert a.tolist() == [1.0, 2.0] and b.tolist() == [3.0, 5.0]


def test_slerp_keeps_the_length_and_halves_the_angle() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    b = torch.randn(40, 30, generator=generator, dtype=torch.float64)
    b *= a.norm() / b.norm()
    middle = slerp_midpoint(a, b)
    assert middle.shape == a.shape
    assert middle.norm().item() == pytest.approx(a.norm().item(), rel=1e-12)
    whole = math.acos(float((a * b).sum() / a.norm() / b.norm()))
    for end in (a, b):
        assert math.acos(float((middle * end).sum() / middle.norm() / end.norm())) == pytest.approx(whole / 2, rel=1e-9)
    long = [torch.randn(1025, 1027, generator=generator) for _ in range(2)]
    assert slerp_midpoint(*long).norm() > 1.3 * mean_of(long).norm(), "near-orthogonal matrices lose a factor √2 of their length in a mean"


def test_slerp_where_it_has_no_direction() -> None:
    a = torch.tensor([1.0, -2.0, 3.0])
    assert torch.equal(slerp_midpoint(a, a), a)
    assert torch.equal(slerp_midpoint(a, -a), torch.zeros(3))
    assert torch.equal(slerp_midpoint(a, torch.zeros(3)), a / 2)
    assert torch.equal(slerp_midpoint(torch.zeros(3), torch.zeros(3)), torch.zeros(3))
    assert torch.isfinite(slerp_midpoint(a, -a * (1 + 1e-6))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_tensors_have_the_spread_asked_for_and_depend_on_seed_and_name(dtype: torch.dtype) -> None:
    template = torch.full((300, 200), 7.0, dtype=dtype)
    one = random_like(template, "model.layers.2.mlp.up_proj.weight", 0, 0.02)
    assert one.dtype == dtype and one.shape == template.shape
    assert abs(one.double().mean().item()) < 5 * 0.02 / math.sqrt(60_000)
    assert one.double().std().item() == pytest.approx(0.02, rel=0.02)
    torch.manual_seed(99)
    assert torch.equal(one, random_like(template, "model.layers.2.mlp.up_proj.weight", 0, 0.02))
    others = [
        random_like(template, "model.layers.5.mlp.up_proj.weight", 0, 0.02),
        random_like(template, "model.layers.2.mlp.up_proj.weight", 1, 0.02),
    ]
    for other in others:
        correlation = torch.corrcoef(torch.stack([one.flatten().double(), other.flatten().double()]))[0, 1]
        assert abs(correlation.item()) < 0.02
    assert torch.equal(random_like(template[0], "model.layers.2.input_layernorm.weight", 0, 0.02), torch.ones(200, dtype=dtype))
    assert torch.equal(random_like(template[0], "model.layers.2.self_attn.q_proj.bias", 0, 0.02), torch.zeros(200, dtype=dtype))
