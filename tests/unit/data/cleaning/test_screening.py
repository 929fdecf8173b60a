from __future__ import annotations

import hashlib
import random
from pathlib import Path

import numpy as np
import pytest

from slayer.config import CleaningConfig
from slayer.data.benchmarks import Item
from slayer.data.cleaning.contamination import ContaminationIndex
from slayer.data.cleaning.screening import REASONS, Screen, build_screen, control_share, screen_texts
from slayer.data.document import Document
from slayer.data.duplicates import PERMUTATIONS
from slayer.data.storing import chunks, parts
from slayer.data.storing.corpus import Corpus, corpus_of
from slayer.data.storing.parts import Workers

QUESTION = "Which gas do plants take in from the air when they make sugar out of sunlight and water?"
ITEMS = [Item(benchmark="quiz", id="#0", text=QUESTION)]


def reasons(texts: list[str], **settings: object) -> list[str]:
    """What screening says of texts under these settings of data.cleaning."""
    screening = screen_texts(texts, ContaminationIndex.of(ITEMS))
    return [REASONS[code] for code in screening.measures.reasons(CleaningConfig(**settings))]  # type: ignore[arg-type]


def prose(seed: int, n_words: int) -> str:
    generator = random.Random(seed)
    return " ".join("".join(generator.choices("abcdefghijklmnop", k=generator.randint(2, 9))) for _ in range(n_words))


def document(number: int) -> Document:
    return Document(id=f"d{number}", text=f"{prose(number, 40)} é{number}", group="pair" if number in (3, 4) else "")


def build(corpus: Corpus, workers: Workers, cleaning: CleaningConfig | None = None, items: list[Item] = ITEMS) -> Screen:
    return build_screen(corpus, cleaning or CleaningConfig(), items, label="test", workers=workers)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("   short  \n", "too_short"),
        ("ten chars!", "kept"),
        ("\x00\x01binary\x02" * 5, "not_text"),
        ("mojibake \ufffd\ufffd\ufffd here and there", "not_text"),
        ("private \ue000\ue001 unassigned \u0378 use", "not_text"),
        ("tabs\tand\nlines\r\nand\fpages are text", "kept"),
        ("Größe, naïve, 我喜歡學習, हिन्दी, العربية, 🙂👩‍💻", "kept"),
        ("buy now! " * 400, "repetitive"),
        ("buy now! " * 100, "kept"),  # shorter than what zlib can judge
        (prose(1, 400), "kept"),
        (f"{prose(2, 50)}\n{QUESTION}\n{prose(3, 50)}", "contaminated"),
        (f"{prose(2, 50)}\n{QUESTION[:40]}\n{prose(3, 50)}", "kept"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    assert reasons([text, prose(9, 50)]) == [reason, "kept"]


def test_settings_move_the_limits_without_another_look() -> None:
    texts = ["short", "a\x01b" * 10, "buy now! " * 400, QUESTION]
    assert reasons(texts) == ["too_short", "not_text", "repetitive", "contaminated"]
    assert reasons(texts, min_characters=0, max_control_share=0.5, min_compressed_share=0.0, decontaminate=[]) == ["kept"] * 4
    assert reasons([QUESTION[:60]], max_overlap=0.2) == ["contaminated"] and reasons([QUESTION[:60]]) == ["kept"]


def test_shares_of_control_characters() -> None:
    assert control_share("") == 0 and control_share("abc\n") == 0 and control_share("ab\x7f\x85") == 0.5
    assert control_share("x" * 99 + "\ufffd") == 0.01


def test_places_are_those_of_the_group_or_the_text() -> None:
    """The rule by which version 0 split, so nobody's held-out documents change."""
    measures = screen_texts(["one text", "another"], None, groups=["", "title"]).measures
    own = hashlib.sha256(b"one text").hexdigest()
    expected = [int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64 for group in (own, "title")]
    assert (measures.places / 2**64).tolist() == expected
    assert measures.digests[0].astype(">u8").tobytes() == hashlib.sha256(b"one text").digest()[:16]


def test_a_screen_holds_what_the_texts_give_by_themselves(own_cache: Path) -> None:
    documents = [document(number) for number in range(1_500)] + [Document(id="q", text=f"{prose(5, 30)} {QUESTION}")]
    corpus = corpus_of(documents, "screened")
    with Workers(1) as workers:
        screen = build(corpus, workers)
        again = build(corpus, workers)
    alone = screen_texts([one.text for one in documents], ContaminationIndex.of(ITEMS), groups=[one.group for one in documents], signatures=True)
    for name in ("digests", "places", "n_bytes", "characters", "control_shares", "compressed_shares", "overlaps"):
        assert np.array_equal(getattr(screen.measures, name), getattr(alone.measures, name)), name
    assert alone.signatures is not None and np.array_equal(np.concatenate(screen.signature_blocks()), alone.signatures)
    assert alone.signatures.shape == (1_501, PERMUTATIONS)
    assert screen.measures.places[3] == screen.measures.places[4] != screen.measures.places[5]
    assert screen.question(1_500).startswith("quiz #0: Which gas") and screen.question(0) == ""
    assert again.fingerprint == screen.fingerprint


def test_only_what_is_measured_decides_the_screen(own_cache: Path) -> None:
    corpus = corpus_of([document(number) for number in range(5)], "small")
    with Workers(1) as workers:
        plain = build(corpus, workers).fingerprint
        assert build(corpus, workers, CleaningConfig(min_characters=3, near_duplicates=0.5, max_overlap=0.9)).fingerprint == plain
        assert build(corpus, workers, items=[]).fingerprint != plain
        assert build(corpus, workers, CleaningConfig(near_duplicates=None)).fingerprint != plain


def test_processes_give_the_same_screen(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "SMALLEST_PART_BYTES", 50_000)
    monkeypatch.setattr(parts, "SMALL_JOB_BYTES", 0)
    documents = [document(number) for number in range(3_000)]
    corpus = corpus_of(documents, "several")
    assert len(corpus.batches()) > 1
    with Workers(2) as workers:
        screen = build(corpus, workers)
    alone = screen_texts([one.text for one in documents], None, signatures=True)
    assert alone.signatures is not None and np.array_equal(np.concatenate(screen.signature_blocks()), alone.signatures)
    assert not [one for one in Path("/proc/self/fd").iterdir() if "screens" in str(one.resolve())]  # mapped, not held open
    assert np.array_equal(screen.measures.digests, alone.measures.digests)
