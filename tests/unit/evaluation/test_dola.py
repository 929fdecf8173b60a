"""DoLa against the formula in numpy, the rule of the released code, and a loop that decodes by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from slayer.config import DecodingConfig, ExpansionConfig, FreezeConfig
from slayer.errors import ConfigError
from slayer.evaluation.dola import Dola, decoded, divergence_N, dola_of
from slayer.forward import load_model
from slayer.surgery.build import build_expanded
from slayer.surgery.plan import LayerPlan, build_plan

Floats = NDArray[np.float64]
KINDS: tuple[Literal["jensen_shannon", "released"], ...] = ("jensen_shannon", "released")


def decoding(**changes: Any) -> DecodingConfig:
    return DecodingConfig(name="dola", **changes)


def plan_of(strategy: str = "shallow_half", n_base: int = 8, expansion: dict[str, Any] | None = None, **pruning: Any) -> LayerPlan:
    chosen = ExpansionConfig.model_validate({"strategy": strategy, **(expansion or {})})
    return build_plan(n_base, chosen, FreezeConfig(schedule="originals"), **pruning)


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model(make_model: Callable[..., Path]) -> Any:
    return load_model(make_model("llama"), "fp32")


@pytest.fixture
def tokens_BL(random_documents: Callable[..., list[list[int]]]) -> torch.Tensor:
    return torch.tensor(random_documents([9, 9, 9]))


def states_of(model: Any, tokens_BL: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return model(input_ids=tokens_BL, use_cache=False, output_hidden_states=True).hidden_states  # type: ignore[no-any-return]


def log_probabilities(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def by_the_paper(last: Floats, early: list[Floats], alpha: float, masked: float) -> Floats:
    """One position, from logits [V] of the last layer and of the candidates, by the formulas of the paper."""
    p = np.exp(log_probabilities(last))
    distances = []
    for candidate in early:
        q = np.exp(log_probabilities(candidate))
        m = (p + q) / 2
        distances.append(0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m)))
    chosen = np.exp(log_probabilities(early[int(np.argmax(distances))]))
    scores = log_probabilities(np.log(p / chosen))
    return np.where(p < alpha * p.max(), masked, scores)


def by_the_released_code(last_V: torch.Tensor, early_CV: torch.Tensor, alpha: float) -> torch.Tensor:
    """The rule of the paper's repository (scoring), in its own terms: kl_div with M as the target, averaged over the vocabulary."""
    middle_CV = 0.5 * (F.softmax(last_V, -1)[None] + F.softmax(early_CV, -1))
    first = F.kl_div(F.log_softmax(last_V, -1)[None].expand_as(early_CV), middle_CV, reduction="none").mean(-1)
    second = F.kl_div(F.log_softmax(early_CV, -1), middle_CV, reduction="none").mean(-1)
    premature_V = early_CV[int((0.5 * (first + second)).argmax())]
    final_V = last_V.log_softmax(-1)
    difference_V = (final_V - premature_V.log_softmax(-1)).log_softmax(-1)
    return torch.where(final_V < final_V.max() + np.log(alpha), torch.tensor(-1000.0), difference_V)


def head_logits(model: Any, state_D: torch.Tensor) -> torch.Tensor:
    return model.lm_head(state_D).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("half", ["shallow", "deep"])
def test_textbook_scores_are_the_formula(model: Any, tokens_BL: torch.Tensor, half: Literal["shallow", "deep"]) -> None:
    dola = dola_of(decoding(half=half), 8, None)
    states = states_of(model, tokens_BL)
    scores_NV = dola.scores_NV(states, None, model.lm_head)
    assert scores_NV.dtype == torch.float32 and scores_NV.shape == (27, 61)
    chosen = set()
    for position, (row, column) in enumerate(np.ndindex(3, 9)):
        last, *early = (head_logits(model, states[layer][row, column]).double().numpy() for layer in (-1, *dola.hidden_layers))
        expected = by_the_paper(last, early, 0.1, -1000.0)
        np.testing.assert_allclose(scores_NV[position].detach().numpy(), expected, atol=1e-4)
        alone = [by_the_paper(last, [one], 0.1, -1000.0) for one in early]
        chosen.add(next(number for number, scores in enumerate(alone) if np.array_equal(scores, expected)))
    assert len(chosen) > 1  # the choice is made anew at each position


def test_released_scores_are_the_released_rule(model: Any, tokens_BL: torch.Tensor) -> None:
    states = states_of(model, tokens_BL)
    released = dola_of(decoding(divergence="released", alpha=0.3), 8, None)
    scores_NV = released.scores_NV(states, None, model.lm_head)
    for position, (row, column) in enumerate(np.ndindex(3, 9)):
        early_CV = torch.stack([head_logits(model, states[layer][row, column]) for layer in released.hidden_layers])
        expected_V = by_the_released_code(head_logits(model, states[-1][row, column]), early_CV, 0.3)
        torch.testing.assert_close(scores_NV[position], expected_V, atol=1e-4, rtol=0)


def test_the_two_divergences_can_choose_differently() -> None:
    """The textbook one weighs likely tokens, the released one also those that one side rules out."""
    generator = torch.Generator().manual_seed(0)
    last_NV, near_NV, far_NV = (torch.log_softmax(3 * torch.randn(200, 7, generator=generator), -1) for _ in range(3))
    farther = [divergence_N(last_NV, near_NV, kind) > divergence_N(last_NV, far_NV, kind) for kind in KINDS]
    assert (farther[0] != farther[1]).any()
    textbook_N = divergence_N(last_NV, near_NV, "jensen_shannon")
    assert (textbook_N > 0).all() and (textbook_N <= np.log(2) + 1e-6).all()
    torch.testing.assert_close(textbook_N, divergence_N(near_NV, last_NV, "jensen_shannon"))
    for kind in KINDS:
        torch.testing.assert_close(divergence_N(last_NV, last_NV, kind), torch.zeros(200), atol=1e-6, rtol=0)


def test_kept_positions_are_those_of_the_whole(model: Any, tokens_BL: torch.Tensor) -> None:
    dola = dola_of(decoding(), 8, None)
    states = states_of(model, tokens_BL)
    whole_NV = dola.scores_NV(states, None, model.lm_head)
    keep_N = torch.tensor([0, 5, 13, 26])
    torch.testing.assert_close(dola.scores_NV(states, keep_N, model.lm_head), whole_NV[keep_N])


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.9])
def test_unlikely_tokens_are_masked(model: Any, tokens_BL: torch.Tensor, alpha: float) -> None:
    states = states_of(model, tokens_BL)
    p_NV = torch.softmax(head_logits(model, states[-1]).flatten(0, 1).double(), -1)
    expected_NV = p_NV < alpha * p_NV.amax(-1, keepdim=True)
    dola = dola_of(decoding(alpha=alpha), 8, None)
    assert torch.equal(dola.scores_NV(states, None, model.lm_head) == -1000.0, expected_NV)
    assert torch.equal(dola.scores_NV(states, None, model.lm_head, masked=-torch.inf).isneginf(), expected_NV)
    assert not expected_NV.all(-1).any()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize("strategy", ["shallow_half", "even", "deep_half", "prefix_stack"])
def test_new_blocks_that_do_nothing_change_no_score(
    family: str, strategy: str, make_model: Callable[..., Path], tokens_BL: torch.Tensor, tmp_path: Path
) -> None:
    """Candidates are layers of the base, so an expansion that still computes the base's function scores like it, bit for bit."""
    base = make_model(family)
    plan = plan_of(strategy, expansion={"count": 2} if strategy == "prefix_stack" else None)
    build_expanded(base, plan, tmp_path / "expanded", seed=0)
    for precision in ("fp32", "bf16"):
        models = [(load_model(base, precision), None), (load_model(tmp_path / "expanded", precision), plan)]
        for half in ("shallow", "deep"):
            scores = [dola_of(decoding(half=half), 8, its).scores_NV(states_of(one, tokens_BL), None, one.lm_head) for one, its in models]
            assert torch.equal(*scores)


def test_candidates_are_layers_of_the_base() -> None:
    assert dola_of(decoding(), 8, None).hidden_layers == (1, 3)
    assert dola_of(decoding(half="deep"), 8, None).base_layers == (4, 6)
    assert dola_of(decoding(half="deep"), 9, None).base_layers == (4, 6)  # layer 8 is the last one
    assert dola_of(decoding(layers=[5, -1, 5]), 8, None) == Dola(base_layers=(-1, 5), hidden_layers=(0, 6), alpha=0.1, divergence="jensen_shannon")
    plan = plan_of()  # new blocks behind layers 1 and 3: base layer 4 is layer 6 of the expanded model
    assert [type(entry).__name__ for entry in plan.entries] == ["Keep", "Keep", "New", "Keep", "Keep", "New", "Keep", "Keep", "Keep", "Keep"]
    assert dola_of(decoding(layers=[0, 1, 2, 3, 4]), 8, plan).hidden_layers == (1, 2, 4, 5, 7)
    assert dola_of(decoding(half="deep"), 8, plan_of(prune=2)).base_layers == (4,)  # 6 and 7 are gone


def test_a_last_layer_of_the_base_with_a_block_behind_it_is_a_candidate() -> None:
    plan = plan_of("explicit", expansion={"after": [7]})
    assert dola_of(decoding(layers=[7]), 8, plan).hidden_layers == (8,)


@pytest.mark.parametrize(
    ("layers", "n_base", "pruning", "why", "fix"),
    [
        ([2, 7], 8, {"prune": 2}, r"\[7\] were pruned from this model", "decoding.layers=[2]"),
        ([5], 8, {"prune": 2}, r"\[5\] is the model's last layer", "decoding.layers=[0,2]"),
        ([7, 0], 8, {}, r"\[7\] is the model's last layer", "decoding.layers=[0]"),
        ([8, -2, 1], 8, {}, r"\[-2, 8\] are no layers of the base, which has 0 to 7", "decoding.layers=[1]"),
        ([], 8, {}, "no even layer of the shallow half", "decoding.layers=[0,2]"),
        (None, 1, {}, "no even layer of the shallow half", "decoding=greedy"),
    ],
)
def test_refused_candidates(layers: list[int] | None, n_base: int, pruning: dict[str, Any], why: str, fix: str) -> None:
    plan = plan_of("shallow_half", n_base, **pruning) if pruning else None
    with pytest.raises(ConfigError, match=why) as caught:
        dola_of(decoding(layers=layers), n_base, plan)
    (problem,) = caught.value.problems
    assert (problem.key, problem.value, problem.fix) == ("decoding.layers", layers, fix)


def next_scores(model: Any, dola: Dola, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Scores [B, V] of the next token, the whole text computed anew, position by position by the paper's formula."""
    states = states_of(model, tokens_BL)
    rows = []
    for row in range(len(tokens_BL)):
        last, *early = (head_logits(model, states[layer][row, -1]).double().numpy() for layer in (-1, *dola.hidden_layers))
        rows.append(by_the_paper(last, early, dola.alpha, -np.inf))
    return torch.tensor(np.stack(rows))


def generated(model: Any, tokens_BL: torch.Tensor, **options: Any) -> torch.Tensor:
    never = model.config.vocab_size
    return model.generate(  # type: ignore[no-any-return]
        input_ids=tokens_BL, attention_mask=torch.ones_like(tokens_BL), max_new_tokens=12, eos_token_id=never, pad_token_id=0, **options
    )


def test_greedy_generation_is_the_loop_by_hand(model: Any, tokens_BL: torch.Tensor) -> None:
    dola = dola_of(decoding(), 8, None)
    expected_BL = tokens_BL
    for _ in range(12):
        expected_BL = torch.cat([expected_BL, next_scores(model, dola, expected_BL).argmax(-1, keepdim=True)], dim=1)
    with decoded(model, dola):
        found_BL = generated(model, tokens_BL, do_sample=False)
    assert torch.equal(found_BL, expected_BL)
    assert not torch.equal(found_BL, generated(model, tokens_BL, do_sample=False))


def test_sampling_draws_from_the_scores(model: Any, tokens_BL: torch.Tensor) -> None:
    dola = dola_of(decoding(alpha=0.2), 8, None)
    torch.manual_seed(3)
    with decoded(model, dola):
        found_BL = generated(model, tokens_BL, do_sample=True, top_k=0)
    torch.manual_seed(3)
    expected_BL = tokens_BL
    for _ in range(12):
        probabilities_BV = torch.softmax(next_scores(model, dola, expected_BL).float(), -1)
        expected_BL = torch.cat([expected_BL, torch.multinomial(probabilities_BV, 1)], dim=1)
    assert torch.equal(found_BL, expected_BL)


def test_logits_of_asked_positions_only(model: Any, tokens_BL: torch.Tensor) -> None:
    dola = dola_of(decoding(), 8, None)
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, arguments, output: rows.append(output.shape[:-1].numel()))
    try:
        with decoded(model, dola):
            whole = model(input_ids=tokens_BL)
            last = model(input_ids=tokens_BL, logits_to_keep=1)
            some = model(input_ids=tokens_BL, logits_to_keep=torch.tensor([2, 4]))
    finally:
        hook.remove()
    assert rows == [27] * 3 + [3] * 3 + [6] * 3  # the last layer and two candidates, each
    assert whole.hidden_states is None and whole.past_key_values.get_seq_length() == 9
    torch.testing.assert_close(last.logits, whole.logits[:, -1:])
    torch.testing.assert_close(some.logits, whole.logits[:, [2, 4]])
    assert whole.logits.shape == (3, 9, 61)


def test_the_model_is_itself_again(model: Any, tokens_BL: torch.Tensor) -> None:
    dola = dola_of(decoding(), 8, None)
    before = model(input_ids=tokens_BL).logits
    with pytest.raises(ZeroDivisionError), decoded(model, dola):
        assert not torch.equal(model(input_ids=tokens_BL).logits, before)
        raise ZeroDivisionError
    assert torch.equal(model(input_ids=tokens_BL).logits, before)
    assert "forward" not in vars(model)
    with decoded(model, dola):
        outer = model.forward
        with decoded(model, dola_of(decoding(layers=[6]), 8, None)):
            pass
        assert model.forward is outer
    with decoded(model, dola), pytest.raises(TypeError, match="loss"):
        model(input_ids=tokens_BL, labels=tokens_BL)
