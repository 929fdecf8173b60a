"""One row of a prefix tree through a model: what every scored token gets, and what the next row needs of this one.

The decoder runs without its head; the head runs only where a token is scored, in parts, so that the logits of a row never exist together.

Shape suffixes: T tokens of a row, K tokens carried over to it, S = K + T, M scored tokens, N places where tokens are scored (several may be
at one place), V vocabulary, D model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slayer.evaluation.harness.prefix_rows import PrefixTree, Row, sees_TS
from slayer.surgery.families import FAMILIES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from slayer.evaluation.dola import Dola

    Carried = list[tuple[Tensor, Tensor]]

HEAD_LOGITS = 1 << 24
"""Logits in memory at a time: 64 MiB in fp32."""


def run_row(
    model: Any, tree: PrefixTree, row: Row, carried: Carried, nodes_M: NDArray[np.int64], targets_M: NDArray[np.int64], dola: Dola | None = None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], Any]:
    """One forward pass. Log-score in nats of each token of `targets_M` behind its node, whether it is the likeliest there, and the cache.

    `nodes_M` are nodes of the row, rising; `carried` are keys and values of the nodes it sees of earlier rows.
    """
    import torch
    from transformers import DynamicCache

    places_N, place_M = np.unique(nodes_M - row.start, return_inverse=True)
    keep_N, target_M = _to(model, places_N), _to(model, targets_M)
    cache = DynamicCache(carried) if carried else DynamicCache()
    inputs = {
        "input_ids": _to(model, tree.tokens_N[row.start : row.stop])[None],
        "position_ids": _to(model, tree.depths_N[row.start : row.stop])[None],
        "attention_mask": attention_masks(model, tree, row),
        "past_key_values": cache,
        "use_cache": True,
    }
    with torch.no_grad():
        scores, greedy = token_scores(_decode(model, inputs, keep_N, dola), place_M, target_M, model.config.get_text_config().vocab_size)
    return scores, greedy, cache


def token_scores(
    log_scores_of: Callable[[int, int], Tensor], place_M: NDArray[np.int64], target_M: Tensor, vocabulary: int
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Log-score in nats of each token of `target_M` at its place (numbers from 0, rising, none left out), and whether it is the likeliest there.

    `log_scores_of(start, stop)` gives log-scores [stop - start, V] of some places; it is asked for at most HEAD_LOGITS numbers at a time.
    """
    import torch

    scores, greedy = [np.empty(0)], [np.empty(0, bool)]
    part = max(1, HEAD_LOGITS // vocabulary)
    n_places = int(place_M[-1]) + 1 if len(place_M) else 0
    for at in range(0, n_places, part):
        begin, end = np.searchsorted(place_M, [at, at + part])
        log_scores_NV, wanted_M = log_scores_of(at, at + part), target_M[begin:end]
        index_M = torch.from_numpy(place_M[begin:end] - at).to(wanted_M.device)
        scores.append(log_scores_NV[index_M, wanted_M].double().cpu().numpy())
        greedy.append((log_scores_NV.argmax(dim=-1)[index_M] == wanted_M).cpu().numpy())
    return np.concatenate(scores), np.concatenate(greedy)


def carry(cache: Any, places_K: NDArray[np.int64]) -> Carried:
    """Keys and values of the path to the next row, [1, heads, K, width] each, out of a row's cache [1, heads, S, width]."""
    import torch

    if not len(places_K):
        return []
    index_K = torch.from_numpy(places_K).to(cache.layers[0].keys.device)
    return [(layer.keys.index_select(2, index_K), layer.values.index_select(2, index_K)) for layer in cache.layers]


def attention_masks(model: Any, tree: PrefixTree, row: Row) -> Any:
    """Additive masks [1, 1, T, S] in the model's dtype, in the form its forward pass takes (see slayer.forward.attention_masks).

    Of the model only `config`, `device` and `dtype` are used.
    """
    config, nodes_S, n_carried = model.config, row.nodes_S, len(row.carried_K)
    index_S, depth_S = _to(model, nodes_S), _to(model, tree.depths_N[nodes_S])
    full_TS = sees_TS(index_S[n_carried:], index_S, _to(model, tree.ends_N[nodes_S]))
    window = getattr(config, "sliding_window", None)
    sliding_TS = full_TS if window is None else full_TS & (depth_S[n_carried:, None] - depth_S[None, :] < window)
    if getattr(config, "layer_types", None) is None:  # every layer alike: Llama sees all, Mistral slides
        return _additive(sliding_TS, model.dtype)
    return {"full_attention": _additive(full_TS, model.dtype), "sliding_attention": _additive(sliding_TS, model.dtype)}


def log_softmax(logits_NV: Tensor) -> Tensor:
    """Log-probabilities [N, V] of logits, in fp32 at least."""
    import torch

    return torch.log_softmax(logits_NV, dim=-1, dtype=torch.promote_types(logits_NV.dtype, torch.float32))


def _decode(model: Any, inputs: dict[str, Any], keep_N: Tensor, dola: Dola | None) -> Callable[[int, int], Tensor]:
    """Runs the decoder; what comes back gives log-scores [stop - start, V] of a part of the kept places."""
    if dola is not None:
        hidden_states = model.base_model(**inputs, output_hidden_states=True).hidden_states
        return lambda start, stop: dola.scores_NV(hidden_states, keep_N[start:stop], model.get_output_embeddings())
    if model.config.model_type in FAMILIES:
        kept_ND = model.base_model(**inputs).last_hidden_state[0, keep_N]
        return lambda start, stop: log_softmax(model.get_output_embeddings()(kept_ND[start:stop]))
    # An unknown family may scale or cap its logits, so its own forward pass makes them.
    logits_NV = model(**inputs, logits_to_keep=keep_N).logits[0]
    return lambda start, stop: log_softmax(logits_NV[start:stop])


def _additive(sees_TS: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a key may be seen. Every attention of transformers takes this form; SDPA would make it of a boolean mask again in each layer."""
    import torch

    return torch.zeros(sees_TS.shape, dtype=dtype, device=sees_TS.device).masked_fill_(~sees_TS, torch.finfo(dtype).min)[None, None]


def _to(model: Any, array: NDArray[Any]) -> Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(array)).to(model.device)
