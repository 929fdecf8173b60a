"""What cleaning must know of each document, measured once and kept: digests, sizes, signs of rubbish, benchmark questions inside, MinHash
signatures. Only measures are kept; what they lead to is decided later, so other limits cost no new reading.
"""

from __future__ import annotations

import hashlib
import unicodedata
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.config import CleaningConfig
from slayer.data.benchmarks import Item
from slayer.data.cache import cache_dir
from slayer.data.cleaning.contamination import ContaminationIndex, index_file, open_index
from slayer.data.duplicates import PERMUTATIONS, SHINGLE_WORDS, signature
from slayer.data.storing.chunks import Chunk, CorpusChunks
from slayer.data.storing.corpus import Corpus
from slayer.data.storing.parts import Progress, Workers, build_parts, damaged, part_path, read_index
from slayer.data.words import ngrams_of, words_of

FORMAT = 1
"""Part of every key: raised when measures made before would be read wrongly."""

KEPT = 0
REASONS = ("kept", "too_short", "not_text", "repetitive", "contaminated", "duplicate", "near_duplicate")
"""Why a document is removed; its place in this tuple is the code that selections hold."""

COMPRESSIBLE_BYTES = 1_000
"""Shorter documents say nothing by how well they compress."""

PLAIN_CONTROLS = "\n\r\t\f"

COLUMNS = {
    "digest_head": "uint64", "digest_tail": "uint64", "place": "uint64", "n_bytes": "int64", "characters": "int64",
    "control_share": "float64", "compressed_share": "float64", "overlap": "float64",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measures:
    """One value per document. `digests` [N, 2] are the first 16 bytes of the text's SHA-256; `places` decide the held-out split
    (see `place_of`); `characters` without blanks around; `compressed_shares` are 1 for documents of less than COMPRESSIBLE_BYTES;
    `overlaps` is the largest share of a benchmark question's telling runs of words that the document holds."""

    digests: NDArray[np.uint64]
    places: NDArray[np.uint64]
    n_bytes: NDArray[np.int64]
    characters: NDArray[np.int64]
    control_shares: NDArray[np.float64]
    compressed_shares: NDArray[np.float64]
    overlaps: NDArray[np.float64]

    def reasons(self, cleaning: CleaningConfig) -> NDArray[np.uint8]:
        """Codes of REASONS as far as they can be told of each document by itself: too_short, not_text, repetitive, contaminated."""
        contaminated = (self.overlaps > 0) & (self.overlaps >= cleaning.max_overlap - 1e-9) & bool(cleaning.decontaminate)
        verdicts = [
            self.characters < cleaning.min_characters,
            self.control_shares > cleaning.max_control_share,
            self.compressed_shares < cleaning.min_compressed_share,
            contaminated,
        ]
        return np.select(verdicts, range(1, 1 + len(verdicts)), KEPT).astype(np.uint8)

    def heldout(self, share: float) -> NDArray[np.bool_]:
        """Documents whose place is on the held-out side."""
        below: NDArray[np.bool_] = self.places / 2**64 < share
        return below


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Screening:
    """Measures of some texts in memory, with the question found in each ("": none) and their signatures where asked for."""

    measures: Measures
    questions: list[str]
    signatures: NDArray[np.uint32] | None


class Screen:
    """Measures of all documents of a corpus, on disk: a few dozen bytes of each are held in memory, signatures are mapped."""

    def __init__(self, folder: Path) -> None:
        import pyarrow as pa

        self.fingerprint = folder.name
        self._batches: list[Any] = []
        try:
            for number in range(len(read_index(folder))):
                with pa.memory_map(str(part_path(folder, number))) as source:  # batches stay mapped; thousands of files would stay open
                    reader = pa.ipc.open_file(source)
                    self._batches += [reader.get_batch(one) for one in range(reader.num_record_batches)]
        except (OSError, pa.ArrowInvalid) as error:
            raise damaged(folder, error) from error
        self._first = np.cumsum([0, *(batch.num_rows for batch in self._batches)])
        self.n_documents = int(self._first[-1])

    @cached_property
    def measures(self) -> Measures:
        """One value per document, in the corpus's order."""
        digests = np.stack([self._column("digest_head"), self._column("digest_tail")], axis=1)
        return Measures(
            digests=digests, places=self._column("place"), n_bytes=self._column("n_bytes"), characters=self._column("characters"),
            control_shares=self._column("control_share"), compressed_shares=self._column("compressed_share"), overlaps=self._column("overlap"),
        )  # fmt: skip

    def question(self, index: int) -> str:
        """The benchmark question that document `index` holds most of; "" for none."""
        batch = int(np.searchsorted(self._first, index, side="right")) - 1
        return str(self._batches[batch].column("question")[index - int(self._first[batch])].as_py() or "")

    def signature_blocks(self) -> list[NDArray[np.uint32]]:
        """MinHash signatures [n, PERMUTATIONS] of all documents, in blocks, views of the files."""
        return [batch.column("signature").flatten().to_numpy(zero_copy_only=True).reshape(-1, PERMUTATIONS) for batch in self._batches]

    def _column(self, name: str) -> NDArray[Any]:
        columns = [batch.column(name).to_numpy(zero_copy_only=True) for batch in self._batches]
        return np.concatenate([np.empty(0, dtype=COLUMNS[name]), *columns])


@dataclass(frozen=True, slots=True, kw_only=True)
class _ScreenPart:
    """Measures one chunk of a corpus and writes it as an Arrow file."""

    corpus: CorpusChunks
    chunks: tuple[Chunk, ...]
    index: Path | None
    signatures: bool

    def __call__(self, number: int, target: Path) -> dict[str, Any]:
        import pyarrow as pa

        chunk = self.chunks[number]
        schema = _schema(self.signatures)
        with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for batch in self.corpus.record_batches(chunk):
                texts, groups = batch.column("text").to_pylist(), batch.column("group").to_pylist()
                index = None if self.index is None else open_index(self.index)
                writer.write_batch(_record_batch(screen_texts(texts, index, groups=groups, signatures=self.signatures), schema))
        return {"n_documents": chunk.n_documents}


def build_screen(
    corpus: Corpus, cleaning: CleaningConfig, items: Sequence[Item], *, label: str, workers: Workers, on_progress: Progress | None = None
) -> Screen:
    """Measure every document of a corpus, or open the measures made before. `items`: what `benchmark_items` gives."""
    signatures = cleaning.near_duplicates is not None
    index = index_file(items) if items else None
    settings = f"{FORMAT}/{unicodedata.unidata_version}/{index and index.stem}/{SHINGLE_WORDS * PERMUTATIONS * signatures}"
    key = hashlib.sha256(f"{corpus.fingerprint}/{settings}".encode()).hexdigest()[:32]
    folder = cache_dir() / "screens" / key
    chunks = tuple(corpus.batches())
    work = _ScreenPart(corpus=corpus.chunks, chunks=chunks, index=index, signatures=signatures)
    sizes_bytes, documents = [chunk.n_bytes for chunk in chunks], [chunk.n_documents for chunk in chunks]
    build_parts(folder, work, sizes_bytes, label=label, workers=workers, on_progress=on_progress, documents=documents)
    return Screen(folder)


def screen_texts(
    texts: Sequence[str], index: ContaminationIndex | None, *, groups: Sequence[str] | None = None, signatures: bool = False
) -> Screening:
    """Measure texts in memory. `groups`: of each document, as Document has it (none: each text is its own); `index`: the benchmark
    questions to look for, from `open_index(index_file(benchmark_items(names)))`; `signatures`: MinHash them too."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    hashes = [hashlib.sha256(one) for one in encoded]
    digests = np.frombuffer(b"".join(one.digest()[:16] for one in hashes), dtype=">u8").reshape(-1, 2).astype(np.uint64)
    named = groups or [""] * len(texts)
    places = [place_of(group or one.hexdigest()) for group, one in zip(named, hashes, strict=True)]
    overlaps, questions = np.zeros(len(texts)), [""] * len(texts)
    sketches = None
    if index is not None or signatures:
        words = words_of(texts)
        if index is not None:
            found = index.find(words)
            overlaps, questions = found.shares, [index.names[item] if item >= 0 else "" for item in found.items.tolist()]
        if signatures:
            shingles = ngrams_of(words, SHINGLE_WORDS, short=True)
            sketches = np.array([signature(shingles.of(number)) for number in range(len(texts))], dtype=np.uint32).reshape(-1, PERMUTATIONS)
    measures = Measures(
        digests=digests, places=np.array(places, dtype=np.uint64), n_bytes=np.array([len(one) for one in encoded], dtype=np.int64),
        characters=np.array([len(text.strip()) for text in texts], dtype=np.int64),
        control_shares=np.array([control_share(text) for text in texts], dtype=np.float64),
        compressed_shares=np.array([compressed_share(one) for one in encoded], dtype=np.float64), overlaps=overlaps,
    )  # fmt: skip
    return Screening(measures=measures, questions=questions, signatures=sketches)


def place_of(group: str) -> int:
    """A number below 2⁶⁴ that depends on nothing but the group (a document without one has its text's SHA-256, as hex digits, for a group)."""
    return int.from_bytes(hashlib.sha256(group.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def control_share(text: str) -> float:
    """Share of characters that no text is made of: controls but for \\n \\r \\t \\f, U+FFFD, private use, unassigned."""
    if not text:
        return 0.0
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.count_nonzero(_not_text()[codes]) / len(codes)


@lru_cache(maxsize=1)
def _not_text() -> NDArray[np.bool_]:
    """For each code point whether it counts in `control_share`."""
    categories = (unicodedata.category(chr(code)) for code in range(0x110000))
    table = np.fromiter((category in {"Cc", "Cn", "Co", "Cs"} for category in categories), bool, 0x110000)
    table[[ord(character) for character in PLAIN_CONTROLS]] = False
    table[0xFFFD] = True
    return table


def compressed_share(encoded: bytes) -> float:
    """Size after zlib at level 1 as a share of the size before; 1 for documents of less than COMPRESSIBLE_BYTES."""
    return len(zlib.compress(encoded, 1)) / len(encoded) if len(encoded) >= COMPRESSIBLE_BYTES else 1.0


def _schema(signatures: bool) -> Any:
    import pyarrow as pa

    fields = [(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()] + [("question", pa.string())]
    return pa.schema(fields + ([("signature", pa.list_(pa.uint32(), PERMUTATIONS))] if signatures else []))


def _record_batch(screening: Screening, schema: Any) -> Any:
    import pyarrow as pa

    measures = screening.measures
    columns = [
        measures.digests[:, 0], measures.digests[:, 1], measures.places, measures.n_bytes, measures.characters,
        measures.control_shares, measures.compressed_shares, measures.overlaps,
    ]  # fmt: skip
    arrays = [pa.array(np.ascontiguousarray(column)) for column in columns]
    arrays.append(pa.array([question or None for question in screening.questions], pa.string()))
    if screening.signatures is not None:
        arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(screening.signatures.reshape(-1)), PERMUTATIONS))
    return pa.record_batch(arrays, schema=schema)
