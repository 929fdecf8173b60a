"""Rows of a plan: every layer of the result once and in order, every pruned base layer where it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sample_run import removal_scores, sample_plan, staged_plan

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.reporting.plan_rows import collapse, outside_sentence, plan_rows, plan_totals, stage_mark, stage_rows

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


def test_a_layer_says_in_which_stages_it_trains_and_in_which_only_its_norms_do():
    rows = [row for row in plan_rows(staged_plan()) if row.kind != "pruned"]
    assert {row.stage_mark for row in rows if row.kind == "new"} == {"● 1–3"}
    assert [(row.base_index, row.stage_mark) for row in rows[-3:]] == [(25, "◐ 2–3"), (26, "◐ 2 ● 3"), (27, "● 2–3")]
    assert {row.stage_mark for row in rows[:-2] if row.kind == "kept"} == {"◐ 2–3"}
    assert [row.base_index for row in rows if row.trains_whole and row.kind != "new"] == [26, 27] and all(row.trains for row in rows)


@given(plans)
def test_a_plan_that_is_not_staged_speaks_of_no_stages(plan):
    rows = plan_rows(plan)
    assert all(row.stage_mark == "" and row.trains_whole == row.trains for row in rows) and stage_rows(plan) == []


def test_marks_tell_runs_of_stages():
    assert stage_mark([1, 2, 3, 5]) == "● 1–3, 5" and stage_mark([3]) == "● 3" and stage_mark([]) == ""
    assert stage_mark([1], [2, 3]) == "● 1 ◐ 2–3" and stage_mark([2], [1]) == "◐ 1 ● 2"


def test_collapsing_joins_only_layers_that_train_in_the_same_stages():
    rows = [(row.index_label, row.stage_mark) for row in collapse(plan_rows(staged_plan())) if row.kind == "kept"]
    assert rows[-2:] == [("21–32", "◐ 2–3"), ("33", "◐ 2 ● 3")]


def test_a_stage_is_told_in_words():
    rows = stage_rows(staged_plan(), [24_780_000, 28_350_000])
    assert [row.until for row in rows] == ["until 20,480 tokens", "until 45,056 tokens", "to the end"]
    assert rows[2].parts == "new, tail × 0.5, norms × 0.5, originals[-4:] × 0.1"
    assert [row.layers for row in rows] == ["7 of 35 layers", "8 of 35 layers and the norms of 27", "9 of 35 layers and the norms of 26"]
    assert [row.trained_parameters for row in rows] == [24_780_000, 28_350_000, None]


def test_what_trains_outside_the_layers_is_told():
    stages = [{"until_tokens": 9, "parts": {"head": 1.0}}, {"parts": {"embeddings": 0.1, "norms": 1.0, "head": 1.0}}]
    assert outside_sentence(sample_plan(freeze=FreezeConfig.model_validate({"schedule": "staged", "stages": stages}))) == (
        "embeddings ● 2, final norm ● 2, head ● 1–2; the rest ❄ frozen"
    )
    assert stage_rows(sample_plan(freeze=FreezeConfig.model_validate({"schedule": "staged", "stages": stages})))[0].layers == "no layer"
    assert outside_sentence(sample_plan()) == "embeddings, norm and head ❄ frozen"
