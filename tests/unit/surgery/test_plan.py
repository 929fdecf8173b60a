"""The plan as data: what is pruned, what the tail becomes, what trains, and that both numberings agree."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.errors import PlanError
from slayer.surgery.placement import placement_problems
from slayer.surgery.plan import Keep, LayerPlan, LayerScores, New, build_plan, choose_pruned, load_plan, plan_problems, resolve_tail


def expansion(strategy: str = "shallow_half", **keys: Any) -> ExpansionConfig:
    return ExpansionConfig.model_validate({"strategy": strategy, **keys})


def freeze(schedule: str = "originals", *layers: int) -> FreezeConfig:
    return FreezeConfig.model_validate({"schedule": schedule, "train_layers": list(layers)})


def staged(*stages: tuple[dict[str, float], int | None]) -> FreezeConfig:
    listed = [{"parts": parts, "until_tokens": until} for parts, until in stages]
    return FreezeConfig.model_validate({"schedule": "staged", "stages": listed})


part_names = st.sampled_from(["new", "tail", "norms", "head", "embeddings", "originals[:]", "originals[0:1]", "originals[-2:]"])
part_lists = st.dictionaries(part_names, st.sampled_from([1.0, 0.5, 0.01]), min_size=1, max_size=4)
boundaries = st.lists(st.integers(1, 10**6), max_size=3, unique=True).map(lambda ends: [*sorted(ends), None])
stage_lists = boundaries.flatmap(lambda ends: st.tuples(*(st.tuples(part_lists, st.just(end)) for end in ends)))


def picture(plan: LayerPlan) -> str:
    """Kept layers by number, a new block as +after(sources), an averaged one as number=mean."""
    words = []
    for entry in plan.entries:
        if isinstance(entry, New):
            words.append(f"+{entry.after}({','.join(map(str, entry.sources))})")
        else:
            words.append(str(entry.base_index) + ("=" + ",".join(map(str, entry.averaged)) if entry.averaged else ""))
    return " ".join(words)


def measured(values: Sequence[float | None], score: str = "removal", high_is_important: bool = True, block: int | None = None) -> LayerScores:
    return LayerScores(
        score=score, values=tuple(values), high_is_important=high_is_important, tokens=4096, sample="abc", seed=0, cheapest_block=block
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> LayerPlan:
    n_base = draw(st.integers(2, 40))
    rules = ["none", "shallow_half", "even", "deep_half", "prefix_stack", "suffix_stack", "solar", "explicit"]
    strategy = draw(st.sampled_from([*rules, "least_important", "most_important"]))
    after = draw(st.lists(st.integers(-1, n_base - 1), min_size=1, max_size=6)) if strategy == "explicit" else None
    chosen = expansion(strategy, after=after, init=draw(st.sampled_from(["average", "copy", "slerp", "random"])), zero_outputs=draw(st.booleans()))
    assume(not placement_problems(chosen, n_base))
    prune = draw(st.integers(0, min(4, n_base - 1)))
    prune_by = draw(st.sampled_from(["last", "last_but_final", "explicit", "removal"]))
    layers = draw(st.lists(st.integers(0, n_base - 1), min_size=prune, max_size=prune, unique=True))
    numbers = st.lists(st.floats(-1, 9), min_size=n_base, max_size=n_base).map(measured)
    by_score = strategy in ("least_important", "most_important")
    scores = {"prune_scores": draw(numbers) if prune_by == "removal" else None, "expansion_scores": draw(numbers) if by_score else None}
    schedule = draw(st.sampled_from([freeze(), freeze("none"), freeze("existing_layers", 0, n_base - 1), staged(*draw(stage_lists))]))
    tail = draw(st.sampled_from(["auto", "average", "train", "frozen"]))
    return build_plan(n_base, chosen, schedule, prune=prune, prune_by=prune_by, prune_layers=layers, tail=tail, **scores)


@given(plan=plans())
def test_every_plan_is_consistent(plan: LayerPlan) -> None:
    kept = [entry.base_index for entry in plan.entries if isinstance(entry, Keep)]
    new = [entry for entry in plan.entries if isinstance(entry, New)]
    assert sorted([*kept, *plan.pruned]) == list(range(plan.n_base)), "every base layer is kept or pruned, never both"
    assert kept == sorted(kept), "kept layers stay in order"
    assert plan.n_layers == len(kept) + len(new) == len(plan.entries)
    assert plan.index_of_base == {base_index: plan.entries.index(Keep(base_index=base_index, averaged=a)) for base_index, a in averages(plan)}
    assert plan.new_indices == tuple(index for index in range(plan.n_layers) if index not in plan.index_of_base.values())
    assert set(plan.trainable) <= set(range(plan.n_layers)) and list(plan.trainable) == sorted(set(plan.trainable))
    for entry in new:
        assert -1 <= entry.after < plan.n_base and 1 <= len(entry.sources) <= 2 and all(0 <= source < plan.n_base for source in entry.sources)
        assert len(entry.sources) == 1 or entry.sources[1] == entry.sources[0] + 1
    seen = -1
    for entry in plan.entries:  # a new block stands behind its layer and before the next kept one
        assert entry.after >= seen if isinstance(entry, New) else entry.base_index > seen
        seen = entry.after if isinstance(entry, New) else entry.base_index


def averages(plan: LayerPlan) -> list[tuple[int, tuple[int, ...]]]:
    return [(entry.base_index, entry.averaged) for entry in plan.entries if isinstance(entry, Keep)]


@given(plan=plans())
def test_only_the_last_kept_layer_is_ever_averaged(plan: LayerPlan) -> None:
    last = max(plan.index_of_base)
    for base_index, averaged in averages(plan):
        wanted = tuple(sorted({last, *plan.pruned})) if plan.tail == "average" and base_index == last else ()
        assert averaged == wanted


@given(plan=plans())
def test_insertion_never_depends_on_pruning(plan: LayerPlan) -> None:
    whole = plan.without_pruning()
    assert [entry for entry in whole.entries if isinstance(entry, New)] == [entry for entry in plan.entries if isinstance(entry, New)]
    assert whole.n_layers == plan.n_layers + len(plan.pruned) and whole.pruned == () and whole.tail == "frozen"
    assert whole.trainable == whole.new_indices and whole.starts_as_base == plan.starts_as_base
    assert [entry for entry in averages(whole) if entry[1]] == []
    assert whole.without_pruning() == whole


@given(plan=plans())
def test_a_saved_plan_reads_back_equal(plan: LayerPlan, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "plans" / "plan.json"
    plan.save(path)
    assert load_plan(path) == plan
    written = json.loads(path.read_text(encoding="utf-8"))
    assert [entry["trains"] for entry in written["entries"]] == [index in plan.trainable for index in range(plan.n_layers)]
    assert {int(base_index): index for base_index, index in written["index_of_base"].items()} == plan.index_of_base


def test_the_paper_figure_for_32_layers() -> None:
    plan = build_plan(32, expansion(), freeze(), prune=2)
    assert plan.n_layers == 38 and plan.pruned == (30, 31) and plan.tail == "average"
    assert plan.new_indices == (2, 5, 8, 11, 14, 17, 20, 23)
    assert plan.trainable == (2, 5, 8, 11, 14, 17, 20, 23, 37) and plan.tail_index == 37
    assert [plan.index_of_base[base_index] for base_index in range(16, 30)] == list(range(24, 38))
    assert plan.entries[23] == New(after=15, sources=(15, 16), init="average", zero_outputs=True), "the last one crosses the half"
    assert plan.entries[37] == Keep(base_index=29, averaged=(29, 30, 31))


@pytest.mark.parametrize(
    ("keys", "prune", "wanted"),
    [
        ({}, {}, "0 1 +1(1,2) 2 3"),
        ({"init": "copy"}, {}, "0 1 +1(1) 2 3"),
        ({"strategy": "explicit", "after": [-1, 3, 3], "init": "slerp"}, {}, "+-1(0,1) 0 1 2 3 +3(3) +3(3)"),
        ({"strategy": "suffix_stack", "count": 2}, {"prune": 2}, "0 1=1,2,3 +3(2,3) +3(3)"),
        ({"strategy": "prefix_stack", "count": 2, "init": "random"}, {"prune": 1, "prune_by": "last_but_final"}, "+-1(0) +-1(1) 0 1 3"),
        ({"strategy": "solar", "init": "copy"}, {}, "0 1 2 +2(1) +2(2) 3"),
        ({}, {"prune": 2, "prune_by": "explicit", "prune_layers": [1, 3]}, "0 +1(1,2) 2"),
        ({}, {"prune": 1, "prune_by": "explicit", "prune_layers": [1], "tail": "average"}, "0 +1(1,2) 2 3=1,3"),
        ({}, {"prune": 2, "prune_by": "last", "tail": "frozen"}, "0 1 +1(1,2)"),
        ({}, {"prune": 3, "prune_by": "last"}, "0=0,1,2,3 +1(1,2)"),
    ],
)
def test_plans_read_out_loud(keys: dict[str, Any], prune: dict[str, Any], wanted: str) -> None:
    assert picture(build_plan(4, expansion(**keys), freeze(), **prune)) == wanted


def test_which_layers_go() -> None:
    assert choose_pruned(8, 0, "last", (), None) == ()
    assert choose_pruned(8, 2, "last", (), None) == (6, 7)
    assert choose_pruned(8, 2, "last_but_final", (), None) == (5, 6)
    assert choose_pruned(8, 7, "last_but_final", (), None) == (0, 1, 2, 3, 4, 5, 6)
    assert choose_pruned(8, 3, "explicit", (5, 1, 3), None) == (1, 3, 5)
    assert choose_pruned(5, 2, "removal", (), measured((9.0, 0.2, 0.1, 0.3, 4.0))) == (1, 2)
    assert choose_pruned(4, 2, "removal", (), measured((1.0, 1.0, 1.0, 1.0))) == (0, 1), "ties go to the lower layer, always the same one"
    for scores in (None, measured((1.0, 2.0))):
        with pytest.raises(PlanError, match="each of the 4 layers"):
            choose_pruned(4, 1, "removal", (), scores)
    with pytest.raises(PlanError, match="prune_by=nonsense"):
        choose_pruned(4, 1, "nonsense", (), None)


@given(scores=st.lists(st.floats(-5, 5), min_size=2, max_size=30), data=st.data())
def test_removal_prunes_the_cheapest(scores: list[float], data: st.DataObject) -> None:
    prune = data.draw(st.integers(1, len(scores) - 1))
    gone = choose_pruned(len(scores), prune, "removal", (), measured(scores))
    assert len(gone) == prune
    assert max(scores[layer] for layer in gone) <= min(score for layer, score in enumerate(scores) if layer not in gone)


def test_scores_choose_by_their_direction_and_blocks_whole() -> None:
    falling = (None, 0.1, 0.4, 0.2, 0.9)
    assert measured(falling).ranked == (1, 3, 2, 4), "a layer without a number is never chosen"
    assert measured(falling, "norm", high_is_important=False).ranked == (4, 2, 3, 1)
    assert choose_pruned(5, 2, "block_influence", (), measured(falling, "block_influence")) == (1, 3)
    assert choose_pruned(5, 3, "norm", (), measured(falling, "norm", high_is_important=False)) == (2, 3, 4)
    assert choose_pruned(5, 2, "angular_distance", (), measured(falling, "angular_distance", block=2)) == (2, 3)


def test_blocks_stand_behind_what_matters_least_or_most() -> None:
    scores = measured((5.0, 1.0, 0.1, 0.3, 0.2, 0.9, 2.0, 7.0))
    assert picture(build_plan(8, expansion("least_important", init="copy"), freeze(), expansion_scores=scores)) == "0 1 2 +2(2) 3 4 +4(4) 5 6 7"
    most = expansion("most_important", init="copy", count=3)
    assert picture(build_plan(8, most, freeze(), expansion_scores=scores)) == "0 +0(0) 1 2 3 4 5 6 +6(6) 7 +7(7)"
    both = build_plan(8, most, freeze(), prune=2, prune_by="removal", prune_scores=scores, expansion_scores=scores)
    assert both.pruned == (2, 4) and both.prune_scores == both.expansion_scores == scores


def test_what_auto_makes_of_the_tail() -> None:
    assert resolve_tail("auto", 2, "last") == "average"
    assert resolve_tail("auto", 0, "last") == resolve_tail("auto", 2, "removal") == resolve_tail("auto", 2, "last_but_final") == "frozen"
    assert [resolve_tail(tail, 2, "removal") for tail in ("average", "train", "frozen")] == ["average", "train", "frozen"]
    with pytest.raises(PlanError, match="tail=nonsense"):
        resolve_tail("nonsense", 2, "last")


def test_what_trains() -> None:
    assert build_plan(8, expansion(), freeze()).trainable == (2, 5)
    assert build_plan(8, expansion(), freeze(), tail="train").trainable == (2, 5, 9)
    assert build_plan(8, expansion(), freeze(), prune=2, tail="frozen").trainable == (2, 5)
    assert build_plan(8, expansion(), freeze(), prune=2, prune_by="removal", prune_scores=measured(range(8)), tail="train").trainable == (0, 3, 7)
    everything = build_plan(8, expansion(), freeze("none"), prune=2)
    assert everything.trainable == tuple(range(8)) and everything.trains_everything
    some = build_plan(8, expansion(), freeze("existing_layers", 1, 5), prune=1)
    assert [some.entries[index] for index in some.trainable] == [Keep(base_index=1), Keep(base_index=5)] and not some.trains_everything
    assert build_plan(8, expansion("none"), freeze("existing_layers", 3)).trainable == (3,)


THREE = staged(
    ({"new": 1.0}, 1_000), ({"new": 1.0, "tail": 0.5, "norms": 0.5}, 5_000), ({"new": 1.0, "originals[-4:]": 0.1, "embeddings": 0.01}, None)
)  # fmt: skip


def test_stages_train_their_layers_and_the_plan_those_of_any_stage() -> None:
    plan = build_plan(8, expansion(), THREE, prune=2)  # 0 1 + 2 3 + 4 5
    assert plan.n_stages == 3 and plan.new_indices == (2, 5) and plan.trainable == tuple(range(8)) and not plan.trains_everything
    stages = [plan.at_stage(stage) for stage in range(3)]
    assert [stage.trainable for stage in stages] == [(2, 5), tuple(range(8)), (2, 5, 6, 7)]
    assert [stage.whole_layers for stage in stages] == [(2, 5), (2, 5, 7), (2, 5, 6, 7)], "of base layers 4 to 7 two are pruned"
    assert [stage.parts for stage in stages] == [("new",), ("new", "tail", "norms"), ("new", "originals[-4:]", "embeddings")]
    assert [stage.n_stages for stage in stages] == [1, 1, 1] and stages[1].at_stage(0) == stages[1]
    assert all((stage.entries, stage.tail, stage.freeze) == (plan.entries, plan.tail, plan.freeze) for stage in stages)
    frozen_tail = build_plan(8, expansion(), THREE, prune=2, tail="frozen")
    assert frozen_tail.at_stage(1).whole_layers == (2, 5, 7), "a part trains the last layer whatever tail= says"


def test_a_plan_that_is_not_staged_has_one_stage_that_is_itself() -> None:
    plan = build_plan(8, expansion(), freeze(), prune=2)
    assert plan.n_stages == 1 and plan.at_stage(0) is plan and plan.stage_at(0) == plan.stage_at(10**12) == 0
    assert plan.whole_layers == plan.trainable == (2, 5, 7) and plan.parts == ()


def test_a_stage_ends_with_the_first_step_from_which_so_many_tokens_are_trained() -> None:
    plan = build_plan(8, expansion(), THREE)
    assert [plan.stage_at(tokens) for tokens in (0, 999, 1_000, 1_001, 4_999, 5_000, 10**12)] == [0, 0, 1, 1, 1, 2, 2]


@settings(deadline=None)
@given(plan=plans(), tokens=st.lists(st.integers(0, 2 * 10**6), min_size=2, max_size=5).map(sorted))
def test_stages_follow_one_another_and_together_are_the_plan(plan: LayerPlan, tokens: list[int]) -> None:
    numbers = [plan.stage_at(number) for number in tokens]
    assert numbers == sorted(numbers) and numbers[0] >= 0 and numbers[-1] < plan.n_stages
    ends = [stage.until_tokens for stage in plan.stages[:-1]]
    assert plan.stage_at(0) == 0 and [plan.stage_at(end or 0) for end in ends] == list(range(1, plan.n_stages))
    layers = {index for stage in range(plan.n_stages) for index in plan.at_stage(stage).trainable}
    assert layers == set(plan.trainable) >= set(plan.whole_layers)


def test_a_plan_of_before_there_were_stages_still_loads(tmp_path: Path) -> None:
    plan = build_plan(8, expansion(), freeze())
    plan.save(tmp_path / "plan.json")
    values = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    assert values.pop("stages") == []
    (tmp_path / "plan.json").write_text(json.dumps(values), encoding="utf-8")
    assert load_plan(tmp_path / "plan.json") == plan


def test_the_order_of_the_parts_of_a_stage_is_kept(tmp_path: Path) -> None:
    plan = build_plan(8, expansion(), staged(({"tail": 0.5, "norms": 0.25, "new": 1.0}, None)))
    plan.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json").stages[0].parts == (("tail", 0.5), ("norms", 0.25), ("new", 1.0))


def test_starting_as_the_base_needs_zeroed_outputs() -> None:
    assert build_plan(4, expansion(), freeze()).starts_as_base
    assert not build_plan(4, expansion(zero_outputs=False), freeze()).starts_as_base
    assert build_plan(4, expansion("none"), freeze()).starts_as_base


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"stages": [3]}', '{"entries": [{"kind": "keep"}]}', "null", "\xff"])
def test_what_is_no_plan_is_refused_with_its_path(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(PlanError, match=r"plan\.json is not a plan.*run=NAME"):
        load_plan(path)
    with pytest.raises(PlanError, match="is not a plan"):
        load_plan(tmp_path / "absent.json")


def problems(n_base: int, schedule: FreezeConfig | None = None, **keys: Any) -> list[tuple[str, Any, str]]:
    asked = {"prune": 0, "prune_by": "last", "prune_layers": [], **keys}
    found = plan_problems(n_base, expansion("none"), schedule or freeze(), **asked)
    assert all(problem.why for problem in found)
    return [(problem.key, problem.value, problem.fix) for problem in found]


def test_impossible_pruning_and_freezing_is_refused_with_a_fix() -> None:
    assert problems(4, prune=3) == problems(4, prune=2, prune_by="explicit", prune_layers=[0, 3]) == []
    assert problems(4, prune=4) == [("prune", 4, "prune=2")]
    assert problems(2, prune=9) == [("prune", 9, "prune=1")]
    assert problems(1, prune=1) == [("prune", 1, "prune=0")]
    assert problems(4, prune=2, prune_by="explicit", prune_layers=[1, 4]) == [("prune_layers", [1, 4], "prune=1 prune_layers=[1]")]
    assert problems(4, prune=1, prune_by="explicit", prune_layers=[-1]) == [("prune_layers", [-1], "prune=1 prune_layers=[3]")]
    assert problems(4, prune=4, prune_by="explicit", prune_layers=[3, 2, 1, 0]) == [("prune", 4, "prune=3 prune_layers=[0,1,2]")]
    train_5 = freeze("existing_layers", 5)
    assert problems(4, train_5) == [("freeze.train_layers", [5], "freeze.train_layers=[0]")]
    assert problems(8, train_5) == problems(8, train_5, prune=2) == problems(8, train_5, prune=3, prune_by="removal") == []
    assert problems(8, train_5, prune=3) == [("freeze.train_layers", [5], "freeze.train_layers=[0]")]
    deep = staged(({"originals[6:8]": 1.0}, None))
    assert problems(8, deep) == problems(8, deep, prune=1) == problems(8, deep, prune=2, prune_by="removal") == []
    typed = [{"parts": {"originals[6:8]": 1}}]
    assert problems(8, deep, prune=2) == [("freeze.stages", typed, "'freeze.stages=[{parts:{originals[4:6]:1}}]'")]
    assert problems(4, deep) == [("freeze.stages", typed, "'freeze.stages=[{parts:{originals[2:4]:1}}]'")]
    both = freeze("existing_layers", 0, 5)
    gone = {"prune": 2, "prune_by": "explicit"}
    assert problems(8, both, **gone, prune_layers=[0, 1]) == [("freeze.train_layers", [0, 5], "freeze.train_layers=[5]")]
    assert problems(8, both, **gone, prune_layers=[0, 5]) == [("freeze.train_layers", [0, 5], "freeze.train_layers=[1]")]


@given(data=st.data(), n_base=st.integers(1, 12), prune=st.integers(0, 14), prune_by=st.sampled_from(["last", "last_but_final", "explicit"]))
def test_all_problems_come_at_once_and_their_fixes_together_are_possible(data: st.DataObject, n_base: int, prune: int, prune_by: str) -> None:
    numbers = st.integers(-2, 14)
    unique = data.draw(st.lists(numbers, min_size=prune, max_size=prune, unique=True)) if prune_by == "explicit" else []
    trained = data.draw(st.lists(numbers, min_size=1, max_size=4))
    keys: dict[str, Any] = {"prune": prune, "prune_by": prune_by, "prune_layers": unique}
    for _ in range(3):  # mending the pruning may uncover that a layer to train is pruned
        found = plan_problems(n_base, expansion("none"), freeze("existing_layers", *trained), **keys)
        for problem in found:
            for override in problem.fix.split():
                key, _, text = override.partition("=")
                if key == "freeze.train_layers":
                    trained = json.loads(text)
                else:
                    keys[key] = json.loads(text)
        if prune_by == "explicit":
            assert len(set(keys["prune_layers"])) == keys["prune"]
    assert plan_problems(n_base, expansion("none"), freeze("existing_layers", *trained), **keys) == []
    plan = build_plan(n_base, expansion("none"), freeze("existing_layers", *trained), **keys)
    assert plan.trainable


def test_keys_that_are_not_known_yet_are_not_judged() -> None:
    assert plan_problems(4, None, None, prune=None, prune_by=None, prune_layers=None) == []
    bad = plan_problems(4, expansion("explicit", after=[7]), freeze("existing_layers", 9), prune=4, prune_by="last", prune_layers=[])
    assert [problem.key for problem in bad] == ["expansion.after", "prune", "freeze.train_layers"]
