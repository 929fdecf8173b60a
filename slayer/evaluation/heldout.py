"""Held-out text: how many bits a model needs per byte of documents it was not trained on.

Every token of a document is scored once. A document starts behind the model's BOS token (EOS where there is none) and is cut
into windows of the run's row length, each conditioned on the last token of the window before. That is the rule of lm-eval's
loglikelihood_rolling but for the last window of a document longer than a row, where lm-eval looks a whole row back.
Windows of several documents share a row and do not see each other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from slayer.data.order.packing import pack
from slayer.forward import PackedRows, nll_BL, split_rows

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


class HeldoutDocument(Protocol):
    """A document with its token ids (no BOS or EOS) and its length in UTF-8 bytes."""

    @property
    def id(self) -> str:
        """Stable name of the document."""

    @property
    def text(self) -> str:
        """What it says."""

    @property
    def tokens(self) -> NDArray[Any]:
        """Token ids."""

    @property
    def n_bytes(self) -> int:
        """UTF-8 bytes of the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldoutSet:
    """Packed rows [B, L] of one source's documents; `owners_BL` numbers the document of each label, −1 at padding."""

    source: str
    input_ids_BL: Tensor
    labels_BL: Tensor
    positions_BL: Tensor
    documents_BL: Tensor
    owners_BL: NDArray[np.int64]
    n_bytes: NDArray[np.int64]
    n_tokens: NDArray[np.int64]
    fingerprint: str

    @property
    def n_documents(self) -> int:
        """Documents in the set."""
        return len(self.n_bytes)


def choose_documents(documents: Iterable[HeldoutDocument], tokens_budget: int) -> list[HeldoutDocument]:
    """Whole documents in the order they come, until the budget of tokens is reached; at least one. Those after that are not asked for.

    A smaller budget gives a prefix of what a larger one gives.
    """
    chosen: list[HeldoutDocument] = []
    used = 0
    for document in documents:
        if len(document.tokens):
            chosen.append(document)
            used += len(document.tokens)
        if chosen and used >= tokens_budget:
            break
    return chosen


def build_heldout_set(source: str, documents: Sequence[HeldoutDocument], *, prefix_token: int, row_tokens: int) -> HeldoutSet:
    """Cut documents into windows and pack the windows into rows."""
    import torch

    windows: list[tuple[int, NDArray[np.int64], NDArray[np.int64]]] = []
    digest = hashlib.sha256(f"packed {prefix_token} {row_tokens}".encode())
    for owner, document in enumerate(documents):
        targets = np.asarray(document.tokens, dtype=np.int64)
        inputs = np.concatenate([[prefix_token], targets[:-1]])
        digest.update(targets.tobytes() + document.n_bytes.to_bytes(8, "little"))
        windows += [(owner, inputs[at : at + row_tokens], targets[at : at + row_tokens]) for at in range(0, len(targets), row_tokens)]
    packing = pack(np.array([len(window[1]) for window in windows], np.int64), row_tokens)
    shape = (packing.n_rows, row_tokens)
    inputs_BL, labels_BL = np.full(shape, prefix_token, np.int64), np.full(shape, IGNORED, np.int64)
    positions_BL, documents_BL, owners_BL = np.zeros(shape, np.int64), np.full(shape, row_tokens, np.int64), np.full(shape, -1, np.int64)
    for row in range(packing.n_rows):
        at = 0
        for number, window in enumerate(packing.documents[packing.row_offsets[row] : packing.row_offsets[row + 1]].tolist()):
            owner, window_inputs, window_targets = windows[window]
            place = slice(at, at + len(window_inputs))
            inputs_BL[row, place], labels_BL[row, place], owners_BL[row, place] = window_inputs, window_targets, owner
            positions_BL[row, place], documents_BL[row, place] = np.arange(len(window_inputs)), number
            at += len(window_inputs)
        positions_BL[row, at:] = np.arange(row_tokens - at)
    return HeldoutSet(
        source=source,
        input_ids_BL=torch.from_numpy(inputs_BL),
        labels_BL=torch.from_numpy(labels_BL),
        positions_BL=torch.from_numpy(positions_BL),
        documents_BL=torch.from_numpy(documents_BL),
        owners_BL=owners_BL,
        n_bytes=np.array([document.n_bytes for document in documents], np.int64),
        n_tokens=np.array([len(document.tokens) for document in documents], np.int64),
        fingerprint=digest.hexdigest(),
    )


def score_heldout(
    logits: Callable[[PackedRows], Tensor],
    heldout: HeldoutSet,
    *,
    micro_batch_rows: int,
    device: Any = "cpu",
    on_row: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Total nats of each document, [documents]. `logits` maps packed rows to [B, L, V]."""
    import torch

    nats = np.zeros(heldout.n_documents)
    done = 0
    with torch.inference_mode():
        for part in split_rows(heldout, micro_batch_rows):
            for name in ("input_ids_BL", "labels_BL", "positions_BL", "documents_BL"):
                setattr(part, name, getattr(part, name).to(device))
            values = nll_BL(logits(part), part.labels_BL).double().cpu().numpy()
            owners = heldout.owners_BL[done : done + len(values)]
            np.add.at(nats, owners[owners >= 0], values[owners >= 0])
            done += len(values)
            if on_row is not None:
                on_row(done)
    return nats
