"""From scores to plans: who is chosen, on how much text, and what the other choices would have cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from slayer.config import AnalysisConfig, ExpansionConfig, FreezeConfig
from slayer.importance.analysis import LayerAnalysis
from slayer.importance.choosing import Chooser, chooser, compared_choice
from slayer.surgery.plan import build_plan, load_plan


class Text:
    """Random rows of one document each, 16 tokens long."""

    def __init__(self, n_rows: int, seed: int = 0, skip: int = 0) -> None:
        import torch

        ids = torch.randint(61, (skip + n_rows, 17), generator=torch.Generator().manual_seed(seed))[skip:]
        self.input_ids_BL, self.labels_BL = ids[:, :-1], ids[:, 1:]
        self.positions_BL = torch.arange(16).expand(n_rows, 16)
        self.documents_BL = torch.zeros(n_rows, 16, dtype=torch.long)


@pytest.fixture
def choose(make_model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chooser:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / "cache"))
    analysis = LayerAnalysis(
        make_model(layers=8), None, AnalysisConfig(name="layers"), precision="fp32", device="cpu", micro_batch_rows=4, seed=3
    )  # fmt: skip
    return chooser(analysis, Text(4), Text(12, skip=4), Text(16))


def loss(model: Any, rows: Any, gone: tuple[int, ...]) -> float:
    """Mean nats per token of a model from which layers were really removed."""
    import torch

    from slayer.forward import mean_loss

    layers, count = model.model.layers, model.config.num_hidden_layers
    kept = [layer for index, layer in enumerate(layers) if index not in gone]
    try:
        model.model.layers, model.config.num_hidden_layers = torch.nn.ModuleList(kept), len(kept)
        return mean_loss(model, rows)
    finally:
        model.model.layers, model.config.num_hidden_layers = layers, count


def test_candidates_are_measured_on_the_whole_sample_and_the_others_on_a_quarter(choose: Chooser, load_plain: Any) -> None:
    model, first, everything = load_plain(choose.analysis.folder), Text(4), Text(16)
    scores = choose.scores("removal", 2)
    short = [loss(model, first, (layer,)) - loss(model, first, ()) for layer in range(8)]
    long = [loss(model, everything, (layer,)) - loss(model, everything, ()) for layer in range(8)]
    candidates = sorted(range(8), key=short.__getitem__)[: 2 + 3]
    for layer in range(8):
        assert scores.values[layer] == pytest.approx((long if layer in candidates else short)[layer], abs=1e-5)
    assert (scores.tokens, scores.seed, scores.sample) == (256, 3, choose.everything.fingerprint)
    most = choose.scores("removal", 1, most=True)
    top = sorted(range(8), key=lambda layer: -short[layer])[:4]
    assert most.values[top[0]] == pytest.approx(long[top[0]], abs=1e-5) and most.ranked[-1] in top


def test_every_score_a_plan_may_ask_for(choose: Chooser) -> None:
    from typing import get_args

    from slayer.config import PlanScore

    choose.analysis.config = choose.analysis.config.model_copy(update={"permutation_pairs": 2, "players": "layers"})
    for score in get_args(PlanScore):
        scores = choose.scores(score, 2, to_prune=True)
        plan = build_plan(8, ExpansionConfig(strategy="none"), FreezeConfig(schedule="none"), prune=2, prune_by=score, prune_scores=scores)
        assert len(plan.pruned) == 2
        if score == "angular_distance":
            assert plan.pruned[1] == plan.pruned[0] + 1 and 7 not in plan.pruned
        else:
            assert set(plan.pruned) == set(scores.ranked[:2])
        assert scores.high_is_important == (score != "norm")


def test_the_plan_beside_what_the_scores_say(choose: Chooser, load_plain: Any, tmp_path: Path) -> None:
    model, first = load_plain(choose.analysis.folder), Text(4)
    expansion, freeze = ExpansionConfig(strategy="shallow_half", every=2), FreezeConfig(schedule="originals")
    plan = build_plan(8, expansion, freeze, prune=2, prune_by="last")
    found = compared_choice(choose, plan, jump=1.5)
    assert (found["pruned"], found["by"], found["jump"], found["tail"], found["expanded_after"]) == ([6, 7], "last", 1.5, "average", [1, 3])
    ranked = choose.scores("removal", 2).ranked
    assert found["least_important"] == list(ranked)
    places = {layer: 8 - place for place, layer in enumerate(ranked)}
    assert found["expanded_mean_rank"] == (places[1] + places[3]) / 2
    for other in found["alternatives"]:
        assert set(other["layers"]) != {6, 7}
        assert other["jump"] == pytest.approx(loss(model, first, tuple(other["layers"])) - loss(model, first, ()), abs=1e-5)
    scores = choose.scores("removal", 2)
    by_score = build_plan(8, expansion, freeze, prune=2, prune_by="removal", prune_scores=scores)
    by_score.save(tmp_path / "plan.json")
    assert load_plan(tmp_path / "plan.json") == by_score
    assert "removal" not in {other["by"] for other in compared_choice(choose, by_score, jump=0.2)["alternatives"]}
