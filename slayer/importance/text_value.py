"""Loss on a text as a value function.

Shape suffixes: B rows of a batch, L tokens of a row, N labelled positions, U rows of the text, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from slayer.evaluation.harness.row_pass import HEAD_LOGITS
from slayer.forward import PackedRows, nll_BL, split_rows
from slayer.importance.decoder import Decoder, Part
from slayer.importance.values import Array

if TYPE_CHECKING:
    from torch import Tensor


class TextValue:
    """v = − nats per token over packed rows; the units are the rows, weighed by their tokens."""

    unit = "nats per token"

    def __init__(self, decoder: Decoder, rows: PackedRows, *, source: str, micro_batch_rows: int) -> None:
        """`rows` are scored `micro_batch_rows` at a time."""
        slices = split_rows(rows, micro_batch_rows)
        self.source = source
        self.floor: float | None = -math.log(decoder.config.vocab_size)
        self.parts: Sequence[Part] = [decoder.part(one) for one in slices]
        self._labels = [one.labels_BL.to(decoder.device) for one in slices]
        self.weights_U: Array = (rows.labels_BL != -100).sum(dim=1).double().cpu().numpy()
        text = b"".join(tensor.cpu().numpy().tobytes() for tensor in (rows.input_ids_BL, rows.labels_BL, rows.positions_BL, rows.documents_BL))
        self.fingerprint = hashlib.sha256(f"text {micro_batch_rows} {tuple(rows.input_ids_BL.shape)} ".encode() + text).hexdigest()

    def read(self, decoder: Decoder, place: int, hidden_BLD: Tensor) -> Array:
        """Nats of each row of a part. The head runs only where a token is to be predicted, in pieces."""
        import torch

        labels_BL = self._labels[place]
        row_N, at_N = (labels_BL != -100).nonzero(as_tuple=True)
        hidden_ND, labels_N = hidden_BLD[row_N, at_N], labels_BL[row_N, at_N]
        piece = max(1, HEAD_LOGITS // decoder.config.vocab_size)
        nats_N = [
            nll_BL(decoder.head(decoder.normed(hidden_ND[at : at + piece]))[None], labels_N[None, at : at + piece])[0]
            for at in range(0, len(labels_N), piece)
        ]
        nats_B = torch.zeros(labels_BL.shape[0], dtype=torch.float64, device=labels_BL.device)
        nats_B.index_add_(0, row_N, torch.cat(nats_N).double())
        return nats_B.cpu().numpy()  # type: ignore[no-any-return]

    def gains(self, readings: Sequence[Array]) -> Array:
        """Minus the nats of every row."""
        return -np.concatenate(readings)
