"""The estimate: times that follow from published numbers, and a recommendation that nothing cheaper could replace."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_shapes import config_of, plan_of, shape_in_conf, staged_plan

from slayer.cost.devices import DEVICES
from slayer.cost.estimate import Estimate, checkpoint_bytes, estimate, needed_bytes
from slayer.cost.flops import train_flops
from slayer.cost.layout_cost import layout_cost
from slayer.cost.recommendation import GPU_COUNTS
from slayer.cost.tensors import trained_tensors
from slayer.surgery.plan import LayerPlan

LLAMA3_8B, TINY = shape_in_conf("llama3_8b"), shape_in_conf("smollm2_135m")
SLAYER = plan_of(32, "shallow_half", prune=2, tail="frozen")


def estimated(plan: LayerPlan = SLAYER, *, gpus: int = 1, tokens: int | None = None, model: Any = LLAMA3_8B, **settings: Any) -> Estimate:
    return estimate(model, plan, config_of(**settings), gpus=gpus, tokens=tokens)


@pytest.mark.parametrize(
    ("device", "mfu", "tokens_per_second"),
    [("H100", 0.40, 9_518), ("H100", 0.42, 10_000), ("H100", 0.464, 11_040), ("A100", 0.50, 3_753), ("A100", 0.55, 4_128), ("A100", 0.65, 4_879)],
)
def test_the_published_tokens_per_second(device: str, mfu: float, tokens_per_second: float) -> None:
    found = estimated(tokens=80_000_000_000, estimate={"mfu": mfu, "devices": [device]}).devices[0]
    assert found.recommended is not None and not found.recommended.cost.layout.activation_checkpointing
    assert found.tokens_per_second == pytest.approx(tokens_per_second, rel=1e-3)
    assert found.gpu_hours == pytest.approx(80e9 / tokens_per_second / 3600, rel=1e-3)


def test_more_gpus_take_less_time_and_as_many_gpu_hours() -> None:
    one, eight = (estimated(tokens=10**9, gpus=gpus).devices[1] for gpus in (1, 8))
    assert eight.seconds == pytest.approx(one.seconds / 8) and eight.gpu_hours == pytest.approx(one.gpu_hours)


def test_llama_3_8b_fits_one_gpu_of_80_gb_and_says_so() -> None:
    found = estimated(tokens=10**9)
    assert found.parameters.total == found.parameters.trained + found.parameters.frozen
    assert (round(found.parameters.total / 1e9, 3), round(found.parameters.new_blocks / 1e9, 3), found.parameters.tail) == (9.339, 1.745, 0)
    assert round(found.asked.memory.state / 1e9, 1) == 43.1 and found.devices[1].asked_fits
    best = found.devices[1].recommended
    assert best is not None and 0 < best.spare_bytes < 5e9
    spare = f"{best.spare_bytes / 1e9:.0f}"
    assert best.sentence == f"zero2, micro-batch 1, no activation checkpointing fits 80 GB with {spare} GB to spare" and best.override == ""


def test_a_tail_that_trains_is_told_apart_from_the_new_blocks() -> None:
    found = estimated(plan_of(32, "shallow_half", prune=2)).parameters
    assert found.tail == LLAMA3_8B.block_parameters and found.trained == found.new_blocks + found.tail


def cheaper(one: Any, than: Any, asked_stage: int) -> bool:
    """The order that the recommendation promises, said once more: recompute, traffic, micro-batch, stage that was asked for, memory."""

    def rank(cost: Any) -> tuple[Any, ...]:
        layout = cost.layout
        return layout.activation_checkpointing, cost.traffic_bytes, -layout.micro_batch_rows, layout.zero_stage != asked_stage, cost.needed_bytes

    return rank(one) < rank(than)


@settings(max_examples=25, deadline=None)
@given(
    gpus=st.sampled_from(GPU_COUNTS), batch_rows=st.integers(1, 128), length=st.sampled_from([512, 4096, 16_384]), stage=st.integers(0, 3),
    freeze=st.sampled_from(["originals", "none"]),
)  # fmt: skip
def test_nothing_that_fits_is_cheaper_than_what_is_recommended(gpus: int, batch_rows: int, length: int, stage: int, freeze: str) -> None:
    plan = plan_of(32, "shallow_half", freeze, prune=2)
    found = estimated(plan, gpus=gpus, batch_rows=batch_rows, sequence_length=length, zero_stage=stage)
    stages = [trained_tensors(LLAMA3_8B, plan)]
    for device in found.devices:
        best = device.recommended
        if best is None:
            continue
        layout = best.cost.layout
        assert best.cost.needed_bytes + best.spare_bytes == device.device.memory_bytes >= best.cost.needed_bytes
        assert best.fewer_gpus == (layout.gpus > gpus)
        total = layout.micro_batch_rows * layout.accumulation * layout.gpus
        assert total == batch_rows or f"train.batch_rows={total}" in best.override
        for other_stage in range(4):
            for recompute in (False, True):
                for rows in {1, layout.micro_batch_rows, 2 * layout.micro_batch_rows}:
                    if total % (rows * layout.gpus) == 0:
                        other = replace(
                            layout, zero_stage=other_stage, activation_checkpointing=recompute, micro_batch_rows=rows,
                            accumulation=total // (rows * layout.gpus),
                        )  # fmt: skip
                        cost = layout_cost(stages, other)
                        assert cost.needed_bytes > device.device.memory_bytes or not cheaper(cost, best.cost, stage) or rows > 64


def test_zero3_is_recommended_only_where_weights_do_not_fit_whole_and_the_reason_is_told() -> None:
    settings = {"estimate": {"devices": ["RTX4090", "A100"]}, "sequence_length": 512}
    small, large = estimated(gpus=8, **settings).devices
    assert small.recommended is not None and small.recommended.cost.layout.zero_stage == 3
    assert "with weights whole on every GPU (zero2)" in small.recommended.sentence and "GB are missing" in small.recommended.sentence
    assert large.recommended is not None and large.recommended.cost.layout.zero_stage < 3
    assert "weights stay whole on every GPU" in large.recommended.sentence


def test_more_gpus_are_recommended_where_one_does_not_do() -> None:
    full = estimated(plan_of(32, "none", "none")).devices[0]
    assert not full.asked_fits and full.recommended is not None and full.recommended.fewer_gpus and full.recommended.cost.layout.gpus > 1
    assert full.recommended.sentence.startswith(f"{full.recommended.cost.layout.gpus} GPUs, zero")
    none = estimated(plan_of(32, "none", "none"), sequence_length=1 << 20).devices[0]
    assert none.recommended is None and not none.asked_fits


def test_every_stage_and_number_of_gpus_is_listed_once() -> None:
    found = estimated(gpus=3)
    listed = [(cost.layout.gpus, cost.layout.zero_stage) for cost in found.layouts]
    assert listed == sorted({(gpus, stage) for gpus in (1, 2, 3, 4, 8, 16, 64) for stage in range(4)})
    assert all(cost.checkpointed.activations < cost.memory.activations for cost in found.layouts)


def test_it_is_plain_data() -> None:
    values = json.loads(json.dumps(estimated().to_dict()))
    assert values["flops_per_token"]["total"] == pytest.approx(41.56e9, rel=1e-3) and not values["tokens_known"]
    assert [device["name"] for device in values["devices"]] == ["A100", "H100", "H200", "B200"] and set(DEVICES) > {"A100", "L40S"}
    assert values["asked"]["memory"]["state"] == pytest.approx(43.1e9, rel=2e-3)


def test_a_staged_run_costs_what_its_stages_do_over_their_tokens() -> None:
    """Stages of 5 tokens each, in a run of 8: five of the first and three of the second; a checkpoint keeps masters of what has retired."""
    plan = staged_plan(32, ("new",), ("originals[28:30]",), ("new", "tail"))
    found = estimate(LLAMA3_8B, plan, config_of(), gpus=1, tokens=8)
    costs = [train_flops(LLAMA3_8B, plan.at_stage(stage), 4096).total for stage in range(3)]
    assert found.flops.total == pytest.approx((5 * costs[0] + 3 * costs[1]) / 8)
    stages = [trained_tensors(LLAMA3_8B, plan, stage) for stage in range(3)]
    block = LLAMA3_8B.block_parameters
    assert checkpoint_bytes(stages) == 12 * 9 * block + 4 * 2 * block  # the third stage: eight blocks and the tail; two layers have retired
    assert found.parameters.trained == 11 * block


def test_what_each_rank_needs_is_the_asked_layout_on_that_many() -> None:
    config = config_of(micro_batch_rows=4)
    for ranks in (1, 3):
        assert (
            needed_bytes(TINY, plan_of(30, "shallow_half"), config, ranks)
            == estimate(TINY, plan_of(30, "shallow_half"), config, gpus=ranks, tokens=1).asked.needed_bytes
        )
