"""What is read off the states of a forward pass as they come by: one observer per score, or for scores that look at the same.

State 0 enters layer 0, state i + 1 leaves layer i.

Shape suffixes: B rows of a batch, L tokens of a row, D width of the residual stream, N tokens or positions, S states (layers + 1),
U units over which errors are estimated (rows, documents or positions), V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slayer.errors import DataError
from slayer.evaluation.dola import divergence_N
from slayer.evaluation.harness.row_pass import HEAD_LOGITS
from slayer.forward import PackedRows
from slayer.importance.decoder import Decoder
from slayer.importance.table import Measurement
from slayer.importance.values import Array, mean_and_error

if TYPE_CHECKING:
    from torch import Tensor

MIN_DOCUMENTS = 8
NOT_FINITE = "its output is not finite"
_STATE_NUMBERS = 1 << 24
"""Numbers of the states whose angles are taken at a time."""


class Observer(Protocol):
    """Looks at the states as they come by, layer by layer and in each layer part by part."""

    def see(self, number: int, place: int, before_BLD: Tensor | None, hidden_BLD: Tensor) -> None:
        """State `number` of part `place`, and the state of the same part before it, which state 0 has not."""

    def measurements(self, source: str, n_layers: int, n_finite: int) -> list[Measurement]:
        """What was found of `n_layers` layers; only the first `n_finite` gave finite states."""


def block_influence_N(before_ND: Tensor, after_ND: Tensor) -> Tensor:
    """1 − cosine of the states before and after a layer (Block Influence of ShortGPT, arXiv 2403.03853); 0 where nothing changes."""
    return 1 - _cosine(before_ND, after_ND)


def relative_magnitude_N(before_ND: Tensor, after_ND: Tensor) -> Tensor:
    """|f(x)| / |x + f(x)| where f(x) is all that the layer adds (a rival in ShortGPT)."""
    return _length(after_ND - before_ND) / _length(after_ND)


def norm_N(before_ND: Tensor, after_ND: Tensor) -> Tensor:
    """L2 norm of the state that leaves the layer (a rival in ShortGPT, whose rule removes layers with long states first)."""
    return _length(after_ND)


TOKEN_SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "block_influence": block_influence_N,
    "relative_magnitude": relative_magnitude_N,
    "norm": norm_N,
}
"""A number per token and layer, of which the mean over all counted tokens is the score."""


class TokenMeans:
    """block_influence, relative_magnitude and norm: means over all counted tokens, in fp64, with standard errors over rows."""

    def __init__(self, scores: Sequence[str], counted: Sequence[Tensor]) -> None:
        self._counted = counted
        self._rows = [one.nonzero()[:, 0].cpu().numpy() for one in counted]
        self._sums: dict[str, list[list[Array]]] = {name: [] for name in scores}  # by layer, then part: sums over the tokens of each row

    def see(self, number: int, place: int, before_BLD: Tensor | None, hidden_BLD: Tensor) -> None:
        """Add up what the layer did to the tokens of each row."""
        if before_BLD is None:
            return
        counted_BL = self._counted[place]
        before_ND, after_ND = before_BLD[counted_BL].double(), hidden_BLD[counted_BL].double()
        for name, sums in self._sums.items():
            values_N = TOKEN_SCORES[name](before_ND, after_ND).cpu().numpy()
            if len(sums) < number:
                sums.append([])
            sums[-1].append(np.bincount(self._rows[place], weights=values_N, minlength=len(counted_BL)).astype(np.float64))

    def measurements(self, source: str, n_layers: int, n_finite: int) -> list[Measurement]:
        """One per score."""
        tokens_U = np.concatenate([one.sum(dim=1).cpu().numpy() for one in self._counted]).astype(np.float64)
        used_U = tokens_U > 0
        found = []
        for name, sums in self._sums.items():
            pairs = [mean_and_error(np.concatenate(parts)[used_U], tokens_U[used_U]) for parts in sums[:n_finite]]
            found.append(measurement(name, source, pairs, n_layers, n_units=int(used_U.sum())))
        return found


class Angles:
    """angular_distance: how far the last token's state turns over every block of layers (arXiv 2403.17887).

    d(l, l + n) = arccos(cosine of state l and state l + n) / π, the mean over documents: 0 where nothing turns, 1/2 at a right angle. A
    document is one piece of text in a row; its last token is the last that has a label. Errors are over documents.
    """

    def __init__(self, rows: PackedRows, counted: Sequence[Tensor], source: str, decoder: Decoder) -> None:
        documents_BL = rows.documents_BL.cpu().numpy()
        self._device = decoder.device
        ends = np.cumsum([len(one) for one in counted])
        self._places = [_last_tokens(documents_BL[end - len(one) : end], one) for one, end in zip(counted, ends, strict=True)]
        self._states: list[list[Tensor]] = []
        n_documents = sum(len(rows_U) for rows_U, _ in self._places)
        if n_documents < MIN_DOCUMENTS:
            n_tokens = sum(int(one.sum()) for one in counted)
            enough = -(-n_tokens * MIN_DOCUMENTS // n_documents)
            raise DataError(
                f"angular_distance looks at the last token of each document, and the {n_tokens} tokens of {source} hold {n_documents} "
                f"where at least {MIN_DOCUMENTS} are needed; with documents of this length type about analysis.sample_tokens={enough} (of train.py: "
                f"score_tokens={enough}), or leave angular_distance out"
            )

    def see(self, number: int, place: int, before_BLD: Tensor | None, hidden_BLD: Tensor) -> None:
        """Keep the states of the last tokens."""
        if len(self._states) == number:
            self._states.append([])
        rows_U, at_U = self._places[place]
        self._states[number].append(hidden_BLD[rows_U, at_U].cpu())

    def measurements(self, source: str, n_layers: int, n_finite: int) -> list[Measurement]:
        """`values` are of single layers; details.blocks has d(l, l + n) by n and l, details.best the block of n layers that turns least."""
        import torch

        states_SUD = torch.stack([torch.cat(parts) for parts in self._states[: n_finite + 1]])
        n_documents, width = states_SUD.shape[1:]
        at_a_time = max(1, _STATE_NUMBERS // (len(states_SUD) * width))
        angles: dict[int, list[Array]] = {n: [] for n in range(1, n_finite + 1)}
        for start in range(0, n_documents, at_a_time):
            some_SUD = states_SUD[:, start : start + at_a_time].to(self._device).double()
            for n, found in angles.items():
                found.append((_cosine(some_SUD[:-n], some_SUD[n:]).clamp(-1, 1).arccos() / math.pi).cpu().numpy())
        blocks: dict[str, list[float | None]] = {str(n): [None] * (n_layers - n + 1) for n in range(1, n_layers)}
        single: list[tuple[float, float]] = []
        best = {}
        for n, found in angles.items():
            pairs = [mean_and_error(angle_U, np.ones(n_documents)) for angle_U in np.concatenate(found, axis=1)]
            single = pairs if n == 1 else single
            if n < n_layers:
                blocks[str(n)][: len(pairs)] = [mean for mean, _ in pairs]
                start = int(np.argmin([mean for mean, _ in pairs]))
                best[str(n)] = {"start": start, "distance": pairs[start][0]}
        details = {"blocks": blocks, "best": best, "documents": n_documents}
        return [measurement("angular_distance", source, single, n_layers, n_units=n_documents, details=details)]


class Divergence:
    """dola_divergence: Jensen-Shannon divergence in nats between what the model says in the end and what its head makes of the state that
    leaves each layer, the mean over drawn positions (DoLa, arXiv 2309.03883).

    Early states go through the head as they are, without the final norm, as in the released code; that holds for the last layer too, so
    its value is what the final norm alone changes, and not 0. details.embedding is the same for the state that enters layer 0.
    """

    def __init__(self, counted: Sequence[Tensor], n_positions: int, seed: int, decoder: Decoder) -> None:
        self._decoder = decoder
        sizes = [int(one.sum()) for one in counted]
        total = sum(sizes)
        drawn_N = np.sort(np.random.default_rng(seed).choice(total, size=min(n_positions, total), replace=False))
        ends = np.cumsum(sizes)
        self._places = [
            one.nonzero()[(drawn_N[(drawn_N >= end - size) & (drawn_N < end)] - (end - size)).tolist()].unbind(dim=-1)
            for one, size, end in zip(counted, sizes, ends, strict=True)
        ]
        self._states: list[list[Tensor]] = []

    def see(self, number: int, place: int, before_BLD: Tensor | None, hidden_BLD: Tensor) -> None:
        """Keep the states at the drawn positions."""
        if len(self._states) == number:
            self._states.append([])
        self._states[number].append(hidden_BLD[self._places[place]])

    def measurements(self, source: str, n_layers: int, n_finite: int) -> list[Measurement]:
        """The profile, with errors over positions; without finite states at the end there is nothing to compare with, and all fail."""
        import torch

        n_positions = sum(len(rows_N) for rows_N, _ in self._places)
        if n_finite < n_layers:
            reason = f"the output of layer {n_finite} is not finite, so neither is what the model says"
            nan = (math.nan,) * n_layers
            failed = dict.fromkeys(range(n_layers), reason)
            details: dict[str, Any] = {"positions": n_positions, "embedding": None}
            return [Measurement(score="dola_divergence", source=source, values=nan, failed=failed, details=details)]
        states_SND = torch.stack([torch.cat(parts) for parts in self._states])
        divergences: list[Array] = []
        at_a_time = max(1, HEAD_LOGITS // self._decoder.config.vocab_size)
        for start in range(0, n_positions, at_a_time):
            some_SND = states_SND[:, start : start + at_a_time]
            final_NV = self._log_probabilities(self._decoder.normed(some_SND[-1]))
            distances = [divergence_N(final_NV, self._log_probabilities(state_ND), "jensen_shannon") for state_ND in some_SND]
            divergences.append(torch.stack(distances).double().cpu().numpy())
        pairs = [mean_and_error(divergence_U, np.ones(n_positions)) for divergence_U in np.concatenate(divergences, axis=1)]
        details = {"positions": n_positions, "embedding": pairs[0][0] if math.isfinite(pairs[0][0]) else None}
        return [measurement("dola_divergence", source, pairs[1:], n_layers, n_units=n_positions, details=details)]

    def _log_probabilities(self, states_ND: Tensor) -> Tensor:
        return self._decoder.head(states_ND).float().log_softmax(dim=-1)


def _cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine over the last dimension, of fp64 vectors. Exactly 1 between equal ones: √(s · s) is s. 0 where one has no direction."""
    import torch

    squares = (first * first).sum(dim=-1) * (second * second).sum(dim=-1)
    return (first * second).sum(dim=-1) / squares.sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def _length(vectors: Tensor) -> Tensor:
    """L2 norm over the last dimension."""
    return (vectors * vectors).sum(dim=-1).sqrt()


def _last_tokens(documents_BL: NDArray[np.int64], counted_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Row and place in it of every document's last counted token, row by row, where `counted_BL` is."""
    import torch

    found = []
    for row, (documents_L, counted_L) in enumerate(zip(documents_BL, counted_BL.cpu().numpy(), strict=True)):
        at = np.flatnonzero(counted_L)[::-1]
        last = at[np.unique(documents_L[at], return_index=True)[1]]
        found += [(row, place) for place in np.sort(last).tolist()]
    rows_U, at_U = torch.tensor(found, dtype=torch.int64, device=counted_BL.device).view(-1, 2).unbind(dim=-1)
    return rows_U, at_U


def measurement(
    score: str, source: str, pairs: Sequence[tuple[float, float]], n_layers: int, *, n_units: int, details: dict[str, Any] | None = None
) -> Measurement:
    """From value and error of the first layers; the others gave no finite output. Errors come from `n_units` units; there are none of one."""
    failed = {layer: "its value is not finite" for layer, (value, _) in enumerate(pairs) if not math.isfinite(value)}
    failed |= dict.fromkeys(range(len(pairs), n_layers), NOT_FINITE)
    whole = [(math.nan, math.nan) if layer in failed else pairs[layer] for layer in range(n_layers)]
    values, errors = zip(*whole, strict=True)
    return Measurement(
        score=score, source=source, values=values, errors=errors if n_units > 1 else None, freedom=n_units - 1 if n_units > 1 else None,
        failed=failed, details=details or {},
    )  # fmt: skip
