"""DoLa: what the last layer says, against what an earlier one said already (arXiv 2309.03883).

Layers are named in the base model's numbering, so that a model and its expansion are contrasted at the same places.

Shape suffixes: B rows of a batch, L tokens of a row, N positions, V vocabulary, D width of the residual stream.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from slayer.config import DecodingConfig
from slayer.errors import ConfigError, Problem
from slayer.surgery.plan import LayerPlan

if TYPE_CHECKING:
    from torch import Tensor

MASKED_SCORE = -1000.0
"""Score of a token that is too unlikely, where answers are scored: low, but finite, as in the released code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dola:
    """Which states are contrasted and how. `base_layers` are the candidates as 0-based layers of the base model (−1: the embeddings);
    `hidden_layers` the same as indices into transformers' hidden_states of the model at hand (0: the embeddings)."""

    base_layers: tuple[int, ...]
    hidden_layers: tuple[int, ...]
    alpha: float
    divergence: Literal["jensen_shannon", "released"]

    def scores_NV(
        self, hidden_states: Sequence[Tensor], keep_N: Tensor | None, head: Callable[[Tensor], Tensor], *, masked: float = MASKED_SCORE
    ) -> Tensor:
        """Contrasted log-scores [N, V], fp32.

        `hidden_states` are transformers' ([..., D] each, the last one after the final norm); `keep_N` numbers the positions wanted,
        counted over all leading dimensions (None: all); `head` is the output layer, [N, D] → [N, V].

        At each position the candidate layer whose distribution is farthest from the last layer's is subtracted:
        log_softmax(log p_last − log p_early), over the whole vocabulary as the released scoring does. Then tokens with
        p_last < alpha · max p_last get `masked`. As in the released code, an early state goes through the head as it is, without
        the final norm. Of layers that are equally far the lowest is taken.
        """
        import torch

        def log_probabilities(hidden: Tensor) -> Tensor:
            flat = hidden.reshape(-1, hidden.shape[-1])
            return torch.log_softmax(head(flat if keep_N is None else flat[keep_N]).float(), dim=-1)

        last_NV = log_probabilities(hidden_states[-1])
        early_NV, farthest_N = last_NV, None
        for layer in self.hidden_layers:  # one at a time: never more than three [N, V] are kept
            candidate_NV = log_probabilities(hidden_states[layer])
            distance_N = divergence_N(last_NV, candidate_NV, self.divergence)
            if farthest_N is None:
                early_NV, farthest_N = candidate_NV, distance_N
            else:
                early_NV = torch.where((distance_N > farthest_N)[:, None], candidate_NV, early_NV)
                farthest_N = torch.maximum(distance_N, farthest_N)
        contrast_NV = torch.log_softmax(last_NV - early_NV, dim=-1)
        floor_N1 = last_NV.amax(dim=-1, keepdim=True) + math.log(self.alpha)
        return contrast_NV.masked_fill(last_NV < floor_N1, masked)


def divergence_N(last_NV: Tensor, early_NV: Tensor, kind: Literal["jensen_shannon", "released"]) -> Tensor:
    """How far two distributions, given as log-probabilities in fp32, are from one another at each position [N].

    jensen_shannon: (KL(P‖M) + KL(Q‖M)) / 2 in nats, M = (P + Q) / 2, as the paper writes it. released: what the paper's code
    computes instead, (KL(M‖P) + KL(M‖Q)) / 2 averaged over the vocabulary, because its call of kl_div has the arguments the other way round.
    """
    import torch

    middle_NV = torch.logaddexp(last_NV, early_NV) - math.log(2)
    if kind == "released":
        return (middle_NV.exp() * (2 * middle_NV - last_NV - early_NV)).mean(dim=-1) / 2
    return (last_NV.exp() * (last_NV - middle_NV) + early_NV.exp() * (early_NV - middle_NV)).sum(dim=-1) / 2


def dola_of(decoding: DecodingConfig, n_base_layers: int, plan: LayerPlan | None) -> Dola:
    """DoLa for a model: the one that `plan` made of a base of `n_base_layers` layers, or that base itself without a plan.

    A candidate is the state behind a layer of the base, before any block that was inserted there. Without `decoding.layers` they are
    the even layers of one half (the paper's buckets count the embeddings as layer 0: layers=[-1,1,3,…] is exactly those), less
    pruned ones. Raises ConfigError for candidates that the model does not have.
    """
    at = plan.index_of_base if plan is not None else {layer: layer for layer in range(n_base_layers)}
    n_layers = plan.n_layers if plan is not None else n_base_layers
    # hidden_states[0] is what goes into layer 0; the last one has been through the final norm and is the one contrasted with.
    hidden = {-1: 0} | {layer: index + 1 for layer, index in at.items() if index + 1 < n_layers}
    middle = n_base_layers // 2
    half = range(0, middle) if decoding.half == "shallow" else range(middle, n_base_layers)
    usable = [layer for layer in half if layer % 2 == 0 and layer in hidden]
    layers = sorted(set(decoding.layers)) if decoding.layers is not None else usable
    pruned = set(plan.pruned) if plan is not None else set()
    wrong = [layer for layer in layers if layer not in hidden]
    if wrong or not layers:
        others = [layer for layer in layers if layer in hidden] or usable or [layer for layer in hidden if layer >= 0][:1]
        fix = f"decoding.layers={others}".replace(" ", "") if others else "decoding=greedy"
        why = _why_not(wrong, pruned, n_base_layers, decoding.half)
        raise ConfigError([Problem(key="decoding.layers", value=decoding.layers, why=why, fix=fix)])
    return Dola(
        base_layers=tuple(layers), hidden_layers=tuple(hidden[layer] for layer in layers), alpha=decoding.alpha, divergence=decoding.divergence,
    )  # fmt: skip


def _why_not(wrong: Sequence[int], pruned: set[int], n_base_layers: int, half: str) -> str:
    gone = [layer for layer in wrong if layer in pruned]
    outside = [layer for layer in wrong if not -1 <= layer < n_base_layers]
    last = [layer for layer in wrong if layer not in gone and layer not in outside]
    reasons = [f"{gone} were pruned from this model"] if gone else []
    reasons += [f"{outside} are no layers of the base, which has 0 to {n_base_layers - 1} (-1: the embeddings)"] if outside else []
    reasons += [f"{last} is the model's last layer, with which the others are contrasted"] if last else []
    return "; ".join(reasons) or f"no even layer of the {half} half can be contrasted with the last layer"


@contextmanager
def decoded(model: Any, dola: Dola) -> Iterator[Any]:
    """While this is open, the logits of `model(…)` are DoLa's scores, so model.generate decodes with them, greedy or sampling.

    `model` is a causal LM of transformers. Tokens that are too unlikely get −inf. Only the positions that `logits_to_keep` asks for
    are computed: generate asks for the last one. No loss is made of labels.
    """
    import torch
    from transformers.modeling_outputs import CausalLMOutputWithPast

    forward = model.forward

    @functools.wraps(forward)  # generate reads the signature
    def contrasted(*arguments: Any, logits_to_keep: int | Tensor = 0, labels: Any = None, **options: Any) -> Any:
        if labels is not None:
            raise TypeError("a model whose logits are DoLa's scores makes no loss of labels")
        output = model.base_model(*arguments, **{**options, "output_hidden_states": True, "return_dict": True})
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
        keep = slice(None) if isinstance(keep, int) else keep
        states = [state[:, keep] for state in output.hidden_states]
        scores_NV = dola.scores_NV(states, None, model.get_output_embeddings(), masked=-torch.inf)
        return CausalLMOutputWithPast(
            logits=scores_NV.view(*states[-1].shape[:2], -1), past_key_values=output.past_key_values,
            hidden_states=output.hidden_states if options.get("output_hidden_states") else None, attentions=output.attentions,
        )  # fmt: skip

    model.forward = contrasted
    try:
        yield model
    finally:
        del model.forward  # the class has its own; a forward that somebody else had put in place comes back
        if model.forward != forward:
            model.forward = forward
