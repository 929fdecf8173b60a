from __future__ import annotations

from pathlib import Path

import numpy as np

from slayer.data.storing.tokens import HeldoutDocument
from slayer.evaluation.document_scores import FILE_NAME, read_document_scores, write_document_scores


def document(source: str, name: str, text: str) -> HeldoutDocument:
    return HeldoutDocument(source=source, id=name, text=text, tokens=np.arange(3, dtype=np.int32), n_bytes=len(text.encode()))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    documents = {"fr": [document("fr", "Loire #1", "un fleuve"), document("fr", "Été", "l'été")], "en": [document("en", "Thames", "a river")]}
    scores = {"base": {"fr": np.array([9.5, 4.25]), "en": np.array([3.0])}, "result": {"fr": np.array([1 / 3, 4.0]), "en": np.array([3.5])}}
    write_document_scores(tmp_path, documents, {"fr": "domain", "en": "replay"}, scores)
    found = read_document_scores(tmp_path)
    assert found is not None and list(found) == ["fr", "en"]
    assert (found["fr"].role, found["fr"].ids, found["fr"].n_bytes.tolist()) == ("domain", ("Loire #1", "Été"), [9, 7])
    assert found["fr"].nats.tolist() == [1 / 3, 4.0] and found["en"].nats.tolist() == [3.5]


def test_a_torn_file_is_no_file(tmp_path: Path) -> None:
    assert read_document_scores(tmp_path) is None
    (tmp_path / FILE_NAME).parent.mkdir()
    (tmp_path / FILE_NAME).write_text(
        '{"source": "fr", "role": "domain", "document": "a", "bytes": 3, "result": 1.0}\n{"source": "fr', encoding="utf-8"
    )
    assert read_document_scores(tmp_path) is None
