"""Which documents of a mixture are trained on, which are held out and which are removed, with the reason for each.

The order of reasons: signs of rubbish, benchmark questions, equal to a document before, similar to one before; "before" is in the order of
the configuration's sources, then of their documents. What stays is split by a hash of each document's group, so a document never changes
sides because others come or go.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.config import DataConfig, SourceConfig
from slayer.data.cache import cache_dir, write_file
from slayer.data.cleaning.screening import KEPT, REASONS, Measures, Screen
from slayer.data.document import SourceError
from slayer.data.duplicates import Signatures, exact_duplicates, near_duplicates
from slayer.data.storing.corpus import Corpus
from slayer.data.storing.parts import Progress
from slayer.errors import Problem

FORMAT = 1

DUPLICATE, NEAR_DUPLICATE = REASONS.index("duplicate"), REASONS.index("near_duplicate")

KEEPING = {
    "too_short": "data.cleaning.min_characters=0",
    "not_text": "data.cleaning.max_control_share=1",
    "repetitive": "data.cleaning.min_compressed_share=0",
    "contaminated": "data.cleaning.decontaminate=[]",
    "near_duplicate": "data.cleaning.near_duplicates=null",
}
"""What to type to keep what was removed for a reason."""

EXAMPLES = 5
EXCERPT_CHARACTERS = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A removed document, how it begins and what spoke against it."""

    id: str
    excerpt: str
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """All documents of a source that were removed for one reason; `n_bytes` of UTF-8."""

    reason: str
    documents: int
    n_bytes: int
    examples: list[Example]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """What becomes of each document of a corpus. `reasons` uint8[N]: codes of REASONS, 0 for kept; `is_heldout` bool[N]."""

    fingerprint: str
    reasons: NDArray[np.uint8]
    is_heldout: NDArray[np.bool_]
    removed: list[Removal]
    train_bytes: int

    @property
    def train(self) -> NDArray[np.int64]:
        """Indices of the documents to train on, in order."""
        return np.flatnonzero((self.reasons == KEPT) & ~self.is_heldout).astype(np.int64)

    @property
    def heldout(self) -> NDArray[np.int64]:
        """Indices of the documents that are only ever evaluated, in order."""
        return np.flatnonzero(self.is_heldout).astype(np.int64)


def select(
    data: DataConfig, corpora: Mapping[str, Corpus], screens: Mapping[str, Screen], on_progress: Progress | None = None
) -> dict[str, Selection]:
    """Clean and split the sources that have a corpus; the outcome is kept in the cache.

    Raises SourceError when a source has nothing left to train on or to hold out.
    """
    names = [name for name in data.sources if name in corpora]
    key = selection_key(data, {name: screens[name].fingerprint for name in names})
    folder = cache_dir() / "selections"
    stored = _load(folder, key, names)
    if stored is None:
        stored = _select(data, names, corpora, screens, key, on_progress)
        _save(folder, key, stored)
    return stored


def selection_key(data: DataConfig, screens: Mapping[str, str]) -> str:
    """Hash of everything that decides a selection: `screens` are the fingerprints by source."""
    cleaning = data.cleaning.model_dump(exclude={"max_bad_share", "max_record_bytes"})
    sources = [[name, fingerprint, data.sources[name].heldout_share] for name, fingerprint in screens.items()]
    return hashlib.sha256(json.dumps([FORMAT, cleaning, sources], sort_keys=True).encode()).hexdigest()[:32]


def split(measures: Measures, kept: NDArray[np.bool_], heldout_share: float) -> NDArray[np.bool_]:
    """Which of the kept documents are held out: all of a group, by its place. Where the share leaves a side empty, the group nearest to
    the border moves there. ValueError when all kept documents are of one group."""
    places = measures.places[kept]
    if len(places) == 0 or (places == places[0]).all():
        raise ValueError("one group cannot be split")
    heldout = measures.heldout(heldout_share) & kept
    if not heldout.any():
        heldout = kept & (measures.places == places.min())
    elif heldout[kept].all():
        heldout = heldout & (measures.places != places.max())
    return heldout


def _select(
    data: DataConfig, names: Sequence[str], corpora: Mapping[str, Corpus], screens: Mapping[str, Screen], key: str, on_progress: Progress | None
) -> dict[str, Selection]:
    mixture = _Mixture(names, corpora, screens)
    reasons = np.concatenate([np.empty(0, np.uint8), *(screens[name].measures.reasons(data.cleaning) for name in names)])
    originals, similarities = _remove_repeats(data, mixture, reasons, on_progress)
    selections = {}
    for number, name in enumerate(names):
        measures, part = screens[name].measures, mixture.part(number)
        kept = reasons[part] == KEPT
        try:
            heldout = split(measures, kept, data.sources[name].heldout_share)
        except ValueError:
            raise SourceError(_cannot_split(name, data.sources[name], reasons[part])) from None
        removed = _removals(mixture, number, reasons, originals, similarities)
        selections[name] = Selection(
            fingerprint=f"{key}-{number}", reasons=reasons[part], is_heldout=heldout, removed=removed,
            train_bytes=int(measures.n_bytes[kept & ~heldout].sum()),
        )  # fmt: skip
    return selections


class _Mixture:
    """All documents of all sources under one numbering."""

    def __init__(self, names: Sequence[str], corpora: Mapping[str, Corpus], screens: Mapping[str, Screen]) -> None:
        self.names = names
        self.corpora = [corpora[name] for name in names]
        self.screens = [screens[name] for name in names]
        self.first = np.cumsum([0, *(screen.n_documents for screen in self.screens)])

    def part(self, source: int) -> slice:
        """Where the documents of a source stand."""
        return slice(int(self.first[source]), int(self.first[source + 1]))

    def place(self, number: int) -> tuple[int, int]:
        """(source, index in its corpus)"""
        source = int(np.searchsorted(self.first, number, side="right")) - 1
        return source, number - int(self.first[source])

    def text(self, number: int) -> str:
        """Text of a document."""
        source, index = self.place(number)
        text: str = self.corpora[source].document(index).text
        return text

    def name(self, number: int) -> str:
        """How reports call a document."""
        source, index = self.place(number)
        return f"{self.names[source]}: {self.corpora[source].document(index).id}"


def _remove_repeats(
    data: DataConfig, mixture: _Mixture, reasons: NDArray[np.uint8], on_progress: Progress | None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Mark duplicates in `reasons`; gives for each document the one it repeats (−1: none) and how similar it is."""
    originals = np.full(len(reasons), -1, dtype=np.int64)
    similarities = np.ones(len(reasons), dtype=np.float32)
    cleaning = data.cleaning
    if not cleaning.exact_duplicates and cleaning.near_duplicates is None:
        return originals, similarities
    digests = np.concatenate([np.empty((0, 2), np.uint64), *(screen.measures.digests for screen in mixture.screens)])
    originals = exact_duplicates(digests, reasons == KEPT)
    reasons[originals >= 0] = DUPLICATE if cleaning.exact_duplicates else NEAR_DUPLICATE
    if cleaning.near_duplicates is not None:
        signatures = Signatures([block for screen in mixture.screens for block in screen.signature_blocks()])

        def report(done: int, total: int) -> None:
            if on_progress is not None:
                on_progress("near-duplicates", len(reasons) * done // total, len(reasons))

        similar = near_duplicates(signatures, reasons == KEPT, cleaning.near_duplicates, mixture.text, report)
        found = similar.originals >= 0
        reasons[found], originals[found], similarities[found] = NEAR_DUPLICATE, similar.originals[found], similar.similarities[found]
    return originals, similarities


def _removals(
    mixture: _Mixture, source: int, reasons: NDArray[np.uint8], originals: NDArray[np.int64], similarities: NDArray[np.float32]
) -> list[Removal]:
    """What was removed of one source, by reason, with the first few of each."""
    measures, start = mixture.screens[source].measures, int(mixture.first[source])
    removals = []
    for code, reason in enumerate(REASONS):
        indices = np.flatnonzero(reasons[mixture.part(source)] == code)
        if code == KEPT or not len(indices):
            continue
        examples = []
        for index in indices[:EXAMPLES].tolist():
            document = mixture.corpora[source].document(index)
            if code in (DUPLICATE, NEAR_DUPLICATE):
                because = _repeats(mixture.name(int(originals[start + index])), float(similarities[start + index]))
            else:
                because = _because(reason, measures, index, mixture.screens[source])
            examples.append(Example(id=document.id, excerpt=_excerpt(document.text), because=because))
        removals.append(Removal(reason=reason, documents=len(indices), n_bytes=int(measures.n_bytes[indices].sum()), examples=examples))
    return removals


def _repeats(name: str, similarity: float) -> str:
    return f"repeats {name}" if similarity == 1 else f"{np.floor(1_000 * similarity) / 10:g} % like {name}"


def _because(reason: str, measures: Measures, index: int, screen: Screen) -> str:
    if reason == "too_short":
        return f"{measures.characters[index]} characters"
    if reason == "not_text":
        return f"{100 * measures.control_shares[index]:.1f} % of its characters are no text"
    if reason == "repetitive":
        return f"zlib shrinks it to {100 * measures.compressed_shares[index]:.1f} %"
    return f"{100 * measures.overlaps[index]:.0f} % of {screen.question(index)}"


def _excerpt(text: str) -> str:
    line = " ".join(text[: 4 * EXCERPT_CHARACTERS].split())
    line = "".join(character if character.isprintable() else "\ufffd" for character in line)
    return line if len(line) <= EXCERPT_CHARACTERS else f"{line[:EXCERPT_CHARACTERS]}…"


def _cannot_split(name: str, source: SourceConfig, reasons: NDArray[np.uint8]) -> Problem:
    """Why nothing could be held out, and what to type."""
    key = f"data.sources.{name}"
    removed = {REASONS[code]: int((reasons == code).sum()) for code in range(1, len(REASONS)) if (reasons == code).any()}
    left = int((reasons == KEPT).sum())
    if removed:
        counts = ", ".join(f"{count} {reason.replace('_', ' ')}" for reason, count in removed.items())
        texts = "no document is left" if left == 0 else "only one document is left" if left == 1 else f"the {left} documents left are one group"
        why = f"of {len(reasons)} documents {sum(removed.values())} were removed ({counts}) and {texts}"
    else:
        why = (
            "there is no document" if left == 0 else "there is only one document" if left == 1 else f"all {left} documents are the same text or group"
        )
    where = "hub" if source.hub is not None else "builtin" if source.builtin is not None else "path"
    fix = f"{key}.{where}=TEXT   (at least two different documents: files, or lines of a .jsonl)"
    kinder = [KEEPING[reason] for reason in removed if reason in KEEPING]
    return Problem(
        key=key, value=source.builtin or source.path or source.hub, why=f"{why}; nothing could be held out to measure what was learnt",
        fix=", or ".join([*kinder, fix]),
    )  # fmt: skip


def _save(folder: Path, key: str, selections: Mapping[str, Selection]) -> None:
    """The arrays first, then the facts: a selection is there if its facts are."""
    content = io.BytesIO()
    arrays: dict[str, Any] = {}
    for number, one in enumerate(selections.values()):
        arrays |= {f"reasons-{number}": one.reasons, f"heldout-{number}": one.is_heldout}
    np.savez_compressed(content, **arrays)
    write_file(folder / f"{key}.npz", content.getvalue())
    facts = [{"removed": [asdict(removal) for removal in one.removed], "train_bytes": one.train_bytes} for one in selections.values()]
    write_file(folder / f"{key}.json", json.dumps(facts).encode())


def _load(folder: Path, key: str, names: Sequence[str]) -> dict[str, Selection] | None:
    """The selection kept under `key`; None when there is none, or what is there cannot be read."""
    selections = {}
    try:
        facts = json.loads((folder / f"{key}.json").read_bytes())
        with np.load(folder / f"{key}.npz") as arrays:
            for number, name in enumerate(names):
                removed = [
                    Removal(**{**removal, "examples": [Example(**example) for example in removal["examples"]]})
                    for removal in facts[number]["removed"]
                ]
                selections[name] = Selection(
                    fingerprint=f"{key}-{number}", reasons=arrays[f"reasons-{number}"], is_heldout=arrays[f"heldout-{number}"], removed=removed,
                    train_bytes=facts[number]["train_bytes"],
                )  # fmt: skip
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None
    return selections
