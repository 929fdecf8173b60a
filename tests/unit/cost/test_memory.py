"""Memory of a GPU by part: the published numbers for Llama-3-8B, and what live tensors of real engines add up to."""

from __future__ import annotations

from dataclasses import replace

import pytest
from published_shapes import plan_of, shape_in_conf

from slayer.cost.communication import traffic_bytes
from slayer.cost.estimate import checkpoint_bytes
from slayer.cost.layout import Layout
from slayer.cost.memory import memory_per_gpu
from slayer.cost.tensors import TrainedTensors, trained_tensors

LLAMA3_8B = shape_in_conf("llama3_8b")
SLAYER = trained_tensors(LLAMA3_8B, plan_of(32, "shallow_half", prune=2, tail="frozen"))
FULL = trained_tensors(LLAMA3_8B, plan_of(32, "none", "none"))
LAYOUT = Layout(zero_stage=2, gpus=1, precision="bf16", micro_batch_rows=1, accumulation=1, sequence_length=4096)
MANY = 1 << 20
"""GPUs, so many that (N − 1)/N is 1 in every digit that is printed."""


def gigabytes(tensors: TrainedTensors, gpus: int, stage: int) -> float:
    return memory_per_gpu(tensors, replace(LAYOUT, gpus=gpus, zero_stage=stage)).state / 1e9


def test_parameters_of_the_published_table() -> None:
    assert round(SLAYER.parameters / 1e9, 3) == 9.339 and round(SLAYER.trained / 1e9, 3) == 1.745
    assert round((SLAYER.parameters - SLAYER.trained) / 1e9, 3) == 7.594
    with_tail = trained_tensors(LLAMA3_8B, plan_of(32, "shallow_half", prune=2))
    assert with_tail.parameters == SLAYER.parameters and with_tail.trained - SLAYER.trained == LLAMA3_8B.block_parameters


@pytest.mark.parametrize(
    ("gpus", "zero1", "zero2", "zero3"),
    [(1, 43.1, 43.1, 43.1), (4, 27.4, 24.8, 10.8), (8, 24.8, 21.7, 5.4), (16, 23.5, 20.2, 2.7), (64, 22.5, 19.1, 0.7)],
)
def test_the_published_table_of_state_bytes(gpus: int, zero1: float, zero2: float, zero3: float) -> None:
    assert [gigabytes(SLAYER, gpus, stage) for stage in (1, 2, 3)] == [pytest.approx(value, abs=0.0501) for value in (zero1, zero2, zero3)]


@pytest.mark.parametrize(("gpus", "zero2", "zero3"), [(1, 128.5, 128.5), (4, 44.2, 32.1), (8, 30.1, 16.1), (16, 23.1, 8.0), (64, 17.8, 2.0)])
def test_the_published_table_of_full_fine_tuning(gpus: int, zero2: float, zero3: float) -> None:
    assert [gigabytes(FULL, gpus, stage) for stage in (2, 3)] == [pytest.approx(value, abs=0.0501) for value in (zero2, zero3)]


def test_the_published_traffic() -> None:
    """ZeRO-3 of one micro-step, ZeRO-2 of one step, and ZeRO-3 of full fine-tuning."""
    many = replace(LAYOUT, gpus=MANY)
    assert traffic_bytes(SLAYER, replace(many, zero_stage=3)) / 1e9 == pytest.approx(40.8, abs=0.0501)
    assert traffic_bytes(SLAYER, replace(many, zero_stage=2)) / 1e9 == pytest.approx(7.0, abs=0.0501)
    assert traffic_bytes(FULL, replace(many, zero_stage=3)) / 1e9 == pytest.approx(48.2, abs=0.0501)


def test_accumulation_is_free_of_traffic_where_gradients_stay_whole() -> None:
    once, four = (replace(LAYOUT, gpus=8, accumulation=number) for number in (1, 4))
    grown = [traffic_bytes(SLAYER, replace(four, zero_stage=stage)) / traffic_bytes(SLAYER, replace(once, zero_stage=stage)) for stage in range(4)]
    assert grown == [1, 1, 2.5, 4] and traffic_bytes(SLAYER, LAYOUT) == 0


def test_a_checkpoint_is_smaller_than_the_published_one_by_the_copy_of_the_weights() -> None:
    """There 24.4 GB are 14 bytes per trained weight; ours holds no bf16 copy beside the fp32 master: 12 bytes."""
    assert 14 / 12 * checkpoint_bytes([SLAYER]) / 1e9 == pytest.approx(24.4, abs=0.0501)


def test_zero3_gathers_the_head_and_one_or_two_blocks() -> None:
    """And all of a model that is smaller than DeepSpeed's thresholds; one GPU gathers nothing."""
    head, block = 2 * LLAMA3_8B.head_parameters, 2 * LLAMA3_8B.block_parameters
    assert head < memory_per_gpu(SLAYER, replace(LAYOUT, gpus=8, zero_stage=3)).gathered < head + 2 * block
    assert memory_per_gpu(SLAYER, replace(LAYOUT, zero_stage=3)).gathered == 0
    small = trained_tensors(shape_in_conf("smollm2_135m"), plan_of(30, "none", "none"))
    assert memory_per_gpu(small, replace(LAYOUT, gpus=8, zero_stage=3)).gathered == 2 * small.parameters


def test_cut_tensors_stay_whole_in_the_gradients_of_zero2() -> None:
    """With 64 GPUs a part is 27 million weights, and a matrix has up to 59 million: a GPU may hold the ends of two or three of them."""
    matrix = 2 * 4096 * 14336
    held = memory_per_gpu(SLAYER, replace(LAYOUT, gpus=64))
    assert matrix < held.gradients + held.buffers - 2 * 50_000_000 < 3 * matrix
    assert memory_per_gpu(SLAYER, LAYOUT).buffers == 2 * 50_000_000
