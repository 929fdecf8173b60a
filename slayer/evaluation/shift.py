"""How far a model's predictions moved from its base's, token by token on held-out text: KL divergence and the rank of its favourite token.

Shape suffixes: B rows, L tokens of a row, N tokens that are scored, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slayer.data.order.packing import pack
from slayer.errors import ModelError
from slayer.evaluation.heldout import IGNORED, HeldoutSet
from slayer.evaluation.items import MetricItems
from slayer.evaluation.statistics import metric_estimate
from slayer.forward import RowSlice, logits_of, split_rows

if TYPE_CHECKING:
    from torch import Tensor

LOGITS_AT_ONCE = 1 << 24  # of each model in fp32: 64 MiB
MARGINAL_RANK = 3

Progress = Callable[[str, int, int], None]
Floats = NDArray[np.float64]


def shift_problem(base_model: Any, model: Any) -> str | None:
    """Why two models' predictions cannot be compared token by token, as a sentence; None when they can."""
    sizes = [int(one.config.vocab_size) for one in (base_model, model)]
    if sizes[0] == sizes[1]:
        return None
    return f"the base predicts {sizes[0]:,} different tokens and the checkpoint {sizes[1]:,}, so they cannot be compared token by token"


def token_shift(
    base_model: Any,
    model: Any,
    sets: Mapping[str, HeldoutSet],
    *,
    tokens_per_source: int,
    micro_batch_rows: int,
    device: Any = "cpu",
    on_progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """KL(base ‖ model) in nats per token and the rank of the model's greedy token under the base, by source.

    Both read the same held-out text (teacher-forced), the first whole documents up to `tokens_per_source`; probabilities are
    computed in fp32. Rank 1 is unshifted, 2 and 3 marginal, above that shifted (LLaMA Pro, arXiv 2401.02415; Lin et al.,
    arXiv 2312.01552). The KL's 95 % interval is a bootstrap over documents, None for one document. A model beside itself gives
    0 and 100 % exactly. ModelError with `shift_problem`'s sentence when the vocabularies differ.
    """
    problem = shift_problem(base_model, model)
    if problem is not None:
        raise ModelError(f"{problem}; type shift_tokens=0 to leave this out")
    parts = {source: _first_documents(heldout, tokens_per_source) for source, heldout in sets.items()}
    n_rows, done, table = sum(len(part.owners_BL) for part in parts.values()), 0, {}
    for source, part in parts.items():
        totals = _Totals(part.n_documents)
        for rows, owners_BL in _batches(part, micro_batch_rows, device):
            totals.add(base_model, model, rows, owners_BL)
            done += len(owners_BL)
            if on_progress is not None:
                on_progress(f"predictions on {source}", done, n_rows)
        table[source] = totals.entry(part)
    return table


class _Totals:
    """Sums over the tokens seen so far."""

    def __init__(self, n_documents: int) -> None:
        self.kl_nats = np.zeros(n_documents)
        self.ranks = np.zeros(3, np.int64)  # unshifted, marginal, shifted

    def add(self, base_model: Any, model: Any, rows: RowSlice, owners_BL: NDArray[np.int64]) -> None:
        """Score one batch."""
        import torch

        with torch.inference_mode():
            kept_BL = rows.labels_BL != IGNORED
            before_NV, after_NV = (logits_of(one, rows)[kept_BL] for one in (base_model, model))
            found = [kl_and_rank(*chunk) for chunk in _chunks(before_NV, after_NV)]
        kl_N = torch.cat([kl for kl, _ in found]).double().cpu().numpy()
        rank_N = torch.cat([rank for _, rank in found]).cpu().numpy()
        np.add.at(self.kl_nats, owners_BL[kept_BL.cpu().numpy()], kl_N)
        self.ranks += [(rank_N == 1).sum(), ((rank_N > 1) & (rank_N <= MARGINAL_RANK)).sum(), (rank_N > MARGINAL_RANK).sum()]

    def entry(self, part: HeldoutSet) -> dict[str, Any]:
        """What results.json says of one source."""
        n_tokens = int(self.ranks.sum())
        kl = MetricItems(
            name="kl_nats", value=float(self.kl_nats.sum() / n_tokens), higher_is_better=False, aggregation="ratio",
            values_N=self.kl_nats, weights_N=part.n_tokens.astype(np.float64),
        )  # fmt: skip
        interval = metric_estimate(kl)
        shares = (100 * self.ranks / n_tokens).tolist()
        return {
            "tokens": n_tokens, "documents": part.n_documents, "kl_nats": kl.value,
            "kl_interval": [interval.low, interval.high] if interval is not None else None,
            "unshifted_percent": shares[0], "marginal_percent": shares[1], "shifted_percent": shares[2],
        }  # fmt: skip


def kl_and_rank(before_NV: Tensor, after_NV: Tensor) -> tuple[Tensor, Tensor]:
    """KL(before ‖ after) in nats [N] and the rank [N], from 1, of after's likeliest token under before; from logits, in fp32.

    Tokens that tie with it do not push it down.
    """
    before_NV, after_NV = before_NV.float(), after_NV.float()
    greedy_N1 = after_NV.argmax(-1, keepdim=True)
    rank_N = 1 + (before_NV > before_NV.gather(-1, greedy_N1)).sum(-1)
    logp_NV, logq_NV = before_NV.log_softmax(-1), after_NV.log_softmax(-1)
    kl_N = (logp_NV.exp() * (logp_NV - logq_NV)).sum(-1)
    return kl_N.clamp_min(0), rank_N  # rounding may bring it just below 0


def _chunks(before_NV: Tensor, after_NV: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, LOGITS_AT_ONCE // before_NV.shape[-1])
    for start in range(0, len(before_NV), size):
        yield before_NV[start : start + size], after_NV[start : start + size]


def _batches(part: HeldoutSet, micro_batch_rows: int, device: Any) -> Iterator[tuple[RowSlice, NDArray[np.int64]]]:
    done = 0
    for rows in split_rows(part, micro_batch_rows):
        for name in ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL"):
            setattr(rows, name, getattr(rows, name).to(device))
        owners_BL = part.owners_BL[done : done + len(rows.labels_BL)]
        done += len(owners_BL)
        yield rows, owners_BL


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    owner: int
    row: int
    start: int
    stop: int


def _first_documents(heldout: HeldoutSet, tokens_budget: int) -> HeldoutSet:
    """The first whole documents until the budget is reached, packed anew: in the rows of all documents they lie scattered."""
    import torch

    n_documents = min(int(np.searchsorted(np.cumsum(heldout.n_tokens), tokens_budget)) + 1, heldout.n_documents)
    if n_documents == heldout.n_documents:
        return heldout
    windows = [window for window in _windows(heldout) if window.owner < n_documents]
    row_tokens = heldout.owners_BL.shape[1]
    packing = pack(np.array([window.stop - window.start for window in windows], np.int64), row_tokens)
    shape = (packing.n_rows, row_tokens)
    inputs_BL, labels_BL = torch.full(shape, int(heldout.input_ids_BL[0, 0])), torch.full(shape, IGNORED)
    positions_BL, documents_BL = torch.arange(row_tokens).repeat(packing.n_rows, 1), torch.full(shape, row_tokens)
    owners_BL = np.full(shape, -1, np.int64)
    for row in range(packing.n_rows):
        at = 0
        for number, index in enumerate(packing.documents[packing.row_offsets[row] : packing.row_offsets[row + 1]].tolist()):
            window = windows[index]
            source, place = slice(window.start, window.stop), slice(at, at + window.stop - window.start)
            inputs_BL[row, place], labels_BL[row, place] = heldout.input_ids_BL[window.row, source], heldout.labels_BL[window.row, source]
            positions_BL[row, place], documents_BL[row, place] = heldout.positions_BL[window.row, source], number
            owners_BL[row, place] = window.owner
            at = place.stop
    return HeldoutSet(
        source=heldout.source, input_ids_BL=inputs_BL, labels_BL=labels_BL, positions_BL=positions_BL, documents_BL=documents_BL,
        owners_BL=owners_BL, n_bytes=heldout.n_bytes[:n_documents], n_tokens=heldout.n_tokens[:n_documents],
        fingerprint=f"{heldout.fingerprint} first {n_documents}",
    )  # fmt: skip


def _windows(heldout: HeldoutSet) -> Iterator[_Window]:
    """The stretches of each row that see one another and no others."""
    documents_BL = heldout.documents_BL.cpu().numpy()
    for row, owners_L in enumerate(heldout.owners_BL):
        edges = np.flatnonzero(np.diff(documents_BL[row])) + 1
        for start, stop in zip([0, *edges.tolist()], [*edges.tolist(), len(owners_L)], strict=True):
            if owners_L[start] >= 0:
                yield _Window(owner=int(owners_L[start]), row=row, start=start, stop=stop)
