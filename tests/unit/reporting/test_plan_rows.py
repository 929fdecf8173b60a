"""Rows of a plan: every layer of the result once and in order, every pruned base layer where it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sample_run import removal_scores, sample_plan

from slayer.config import ExpansionConfig
from slayer.reporting.plan_rows import collapse, plan_rows, plan_totals

plans = st.builds(
    lambda n_base, strategy, prune, prune_by: sample_plan(
        n_base=n_base, expansion=ExpansionConfig(strategy=strategy), prune=prune, prune_by=prune_by, prune_scores=removal_scores(range(n_base))
    ),
    st.integers(4, 80),
    st.sampled_from(["none", "shallow_half", "even", "deep_half", "prefix_stack", "suffix_stack"]),
    st.integers(0, 3),
    st.sampled_from(["last", "last_but_final", "removal"]),
)


@given(plans)
def test_every_layer_has_one_row_and_base_layers_stay_in_order(plan):
    rows = plan_rows(plan)
    assert [row.index for row in rows if row.kind != "pruned"] == list(range(plan.n_layers))
    assert [row.base_index for row in rows if row.kind != "new"] == list(range(plan.n_base))
    assert tuple(row.base_index for row in rows if row.kind == "pruned") == plan.pruned
    assert tuple(row.index for row in rows if row.trains) == plan.trainable
    assert tuple(row.index for row in rows if row.kind == "new") == plan.new_indices


@given(plans, st.integers(2, 5))
def test_collapsing_hides_kept_layers_only_and_loses_none(plan, shortest):
    rows, folded = plan_rows(plan), collapse(plan_rows(plan), shortest=shortest)
    assert sum(row.layers for row in folded) == len(rows)
    assert [row for row in folded if row.kind != "kept"] == [row for row in rows if row.kind != "kept"]
    assert all(row.layers == 1 or row.layers >= shortest for row in folded)


def test_totals_count_the_parameters_that_train():
    totals = plan_totals(sample_plan(), block_parameters=10, other_parameters=7)
    assert (totals.layers, totals.parameters, totals.trained_parameters, totals.removed_parameters) == (35, 357, 70, 20)


def test_an_averaged_tail_names_its_layers():
    tail = next(row for row in plan_rows(sample_plan(prune_by="last", prune_scores=None)) if row.kind == "tail")
    assert (tail.base_index, tail.trains, tail.note) == (27, True, "mean of 27, 28 and 29")
