"""Scores models on the held-out documents of a run; base scores are computed once and remembered in the cache."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slayer.config import HeldoutConfig
from slayer.data.cache import cache_dir, one_at_a_time, write_file
from slayer.evaluation.heldout import HeldoutDocument, HeldoutSet, build_heldout_set, choose_documents, score_heldout
from slayer.forward import PackedRows, load_model, logits_of, require_packing
from slayer.models import model_hash_cached
from slayer.surgery.families import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, int, int], None]
Nats = dict[str, NDArray[np.float64]]


def prefix_token(tokenizer: Any) -> int:
    """The token a document is scored behind: BOS, or EOS where there is none (lm-eval's rule)."""
    token = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return int(token) if token is not None else 0


class HeldoutScorer:
    """The chosen held-out documents of every source, ready to be scored by any number of models."""

    def __init__(self, documents: Mapping[str, Iterable[HeldoutDocument]], tokenizer: Any, heldout: HeldoutConfig, row_tokens: int) -> None:
        prefix = prefix_token(tokenizer)
        self.documents = {source: choose_documents(candidates, heldout.tokens_per_source) for source, candidates in documents.items()}
        self.sets: dict[str, HeldoutSet] = {}
        self.in_loop: dict[str, HeldoutSet] = {}
        for source, chosen in self.documents.items():
            self.sets[source] = build_heldout_set(source, chosen, prefix_token=prefix, row_tokens=row_tokens)
            few = choose_documents(chosen, heldout.in_loop_tokens_per_source)
            self.in_loop[source] = build_heldout_set(source, few, prefix_token=prefix, row_tokens=row_tokens)

    def score(
        self, logits: Callable[[PackedRows], Tensor], label: str, *, micro_batch_rows: int, device: Any, on_progress: Progress | None = None
    ) -> Nats:
        """Nats of every document of every source."""
        total = sum(len(heldout.owners_BL) for heldout in self.sets.values())
        nats: Nats = {}
        done = 0
        for source, heldout in self.sets.items():

            def tell(rows: int, before: int = done) -> None:
                if on_progress is not None:
                    on_progress(label, before + rows, total)

            nats[source] = score_heldout(logits, heldout, micro_batch_rows=micro_batch_rows, device=device, on_row=tell)
            done += len(heldout.owners_BL)
        return nats

    def score_in_loop(self, logits: Callable[[PackedRows], Tensor], *, micro_batch_rows: int, device: Any) -> dict[str, float]:
        """Bits per byte of each source's first documents, cheap enough for the middle of training."""
        scores = {}
        for source, heldout in self.in_loop.items():
            nats = score_heldout(logits, heldout, micro_batch_rows=micro_batch_rows, device=device)
            scores[source] = self._bits(nats, heldout)
        return scores

    def in_loop_part(self, nats: Nats) -> dict[str, float]:
        """What `score_in_loop` would have given, from scores of the whole sets."""
        return {source: self._bits(nats[source][: heldout.n_documents], heldout) for source, heldout in self.in_loop.items()}

    @staticmethod
    def _bits(nats: NDArray[np.float64], heldout: HeldoutSet) -> float:
        return float(nats.sum() / heldout.n_bytes.sum() / np.log(2))

    def score_folder(
        self, folder: Path, label: str, *, precision: str, micro_batch_rows: int, device: Any, on_progress: Progress | None = None
    ) -> Nats:
        """Scores of a model folder, from the cache when this very model was scored on these very documents before.

        Of several processes that want the same one scores and the others wait for it.
        """
        fingerprints = "".join(heldout.fingerprint for heldout in self.sets.values())
        key = hashlib.sha256(f"{model_hash_cached(folder)} {fingerprints} {precision} {micro_batch_rows} {device}".encode()).hexdigest()
        remembered = cache_dir() / "scores" / f"{key}.npz"
        if (known := self._read(remembered)) is not None:
            return known

        def waiting() -> None:
            if on_progress is not None:
                on_progress(f"{label}: another process is at it", 0, 1)

        with one_at_a_time(remembered.with_suffix(".lock"), waiting):
            if (known := self._read(remembered)) is not None:
                return known
            model = load_model(folder, precision, device)
            if model.config.model_type not in FAMILIES:
                require_packing(model)
            nats = self.score(lambda rows: logits_of(model, rows), label, micro_batch_rows=micro_batch_rows, device=device, on_progress=on_progress)
            content = io.BytesIO()
            np.savez(content, **nats)  # type: ignore[arg-type]
            write_file(remembered, content.getvalue())
        return nats

    def _read(self, remembered: Path) -> Nats | None:
        if not remembered.exists():
            return None
        with np.load(remembered) as saved:
            return {source: saved[source] for source in self.sets}
