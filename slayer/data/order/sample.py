"""A row of the stream taken apart, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SamplePiece:
    """A piece of a row for inspection: of document number `document` of the store (streamed: of the name `document_id`)."""

    document: int | None
    document_id: str | None
    start: int
    tokens: NDArray[np.int32]
    starts: bool
    ends: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """A global row of the stream as it is packed."""

    source: str
    row: int
    pieces: tuple[SamplePiece, ...]
