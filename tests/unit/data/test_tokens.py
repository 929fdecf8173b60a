from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from slayer.data.assets import cache_dir
from slayer.data.cache import written_aside
from slayer.data.document import Document
from slayer.data.random_model import byte_tokenizer
from slayer.data.tokens import TokenStore, content_hash, heldout_documents, start_token, token_store, tokenizer_hash
from slayer.errors import DataError

TEXTS = ["hello", "", "naïve 日本 🎉", "a </s> <eos> <bos> b", "x" * 3_000]


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [Document(id=str(number), text=text, group=str(number)) for number, text in enumerate(texts)]


def bos_tokenizer() -> Any:
    tokenizer = byte_tokenizer()
    template = TemplateProcessing(single="<bos> $A <eos>", special_tokens=[("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)])
    tokenizer.backend_tokenizer.post_processor = template
    return tokenizer


@pytest.mark.parametrize("kind", ["adds BOS and EOS by itself", "adds nothing", "has no BOS"])
def test_bos_and_eos_stand_exactly_once(own_cache: Path, kind: str) -> None:
    tokenizer = bos_tokenizer() if kind.startswith("adds BOS") else byte_tokenizer()
    if kind == "has no BOS":
        tokenizer.bos_token = None
    assert start_token(tokenizer) == tokenizer.bos_token_id
    store = token_store(documents(), tokenizer, label="test")
    for index, text in enumerate(TEXTS):
        tokens = store.document_tokens(index).tolist()
        before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        assert tokens[: len(before)] == before and tokens[-1] == tokenizer.eos_token_id
        inner = tokens[len(before) : -1]
        assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(inner)
        assert len(inner) == len(text.encode()) and tokenizer.decode(inner) == text


def test_counts_and_lengths(own_cache: Path, tokenizer: Any) -> None:
    store = token_store(documents(), tokenizer, label="test")
    assert store.n_documents == len(TEXTS)
    assert store.lengths.tolist() == [len(text.encode()) + 2 for text in TEXTS]
    assert store.n_tokens == sum(store.lengths) and store.n_bytes == sum(len(text.encode()) for text in TEXTS)


def test_tokens_are_views_of_the_file(own_cache: Path, tokenizer: Any) -> None:
    store = token_store(documents(), tokenizer, label="test")
    tokens = store.document_tokens(4)
    assert not tokens.flags.owndata and not tokens.flags.writeable and tokens.dtype == np.int32


def test_many_documents_keep_their_order(own_cache: Path, tokenizer: Any) -> None:
    texts = [f"document {number}" for number in range(2_345)]
    seen: list[tuple[str, int, int]] = []
    store = token_store(documents(texts), tokenizer, label="many", on_progress=lambda *report: seen.append(report))
    assert [tokenizer.decode(store.document_tokens(index)[1:-1]) for index in range(len(texts))] == texts
    assert seen == [("many", 1_000, 2_345), ("many", 2_000, 2_345), ("many", 2_345, 2_345)]


def test_is_made_once_per_text_and_tokenizer(own_cache: Path, tokenizer: Any) -> None:
    one = token_store(documents(), tokenizer, label="test")
    made = {path.name: path.stat().st_mtime_ns for path in (own_cache / "tokens").iterdir()}
    assert token_store(documents(), tokenizer, label="test").fingerprint == one.fingerprint
    assert {path.name: path.stat().st_mtime_ns for path in (own_cache / "tokens").iterdir()} == made
    assert token_store(documents(), bos_tokenizer(), label="test").fingerprint != one.fingerprint
    assert token_store(documents([*TEXTS, "more"]), tokenizer, label="test").fingerprint != one.fingerprint
    assert content_hash(documents(["hel", "lo"])) != content_hash(documents(["hell", "o"]))


def test_tokenizer_hash_ignores_how_it_was_called_last() -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "bcd"], truncation=True, max_length=2, padding=True)
    assert tokenizer_hash(tokenizer) == before != tokenizer_hash(bos_tokenizer())


def test_two_builders_at_once_leave_one_whole_folder(own_cache: Path) -> None:
    target = cache_dir() / "tokens" / "key"
    with written_aside(target) as one, written_aside(target) as two:
        (one / "file").write_text("whole")
        (two / "file").write_text("whole")
    assert [path.name for path in target.parent.iterdir()] == ["key"] and (target / "file").read_text() == "whole"


def test_a_builder_that_fails_leaves_nothing(own_cache: Path) -> None:
    target = cache_dir() / "tokens" / "key"
    with pytest.raises(KeyboardInterrupt), written_aside(target) as scratch:
        (scratch / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []


def test_a_damaged_store_says_what_to_remove(own_cache: Path, tokenizer: Any) -> None:
    store = token_store(documents(), tokenizer, label="test")
    folder = own_cache / "tokens" / store.fingerprint
    next(folder.glob("*.arrow")).write_bytes(b"rubbish")
    with pytest.raises(DataError, match=f"rm -r {folder}"):
        TokenStore(folder)


def test_a_tokenizer_without_eos_is_refused(own_cache: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="no EOS token"):
        token_store(documents(), tokenizer, label="test")


def test_heldout_documents_hold_their_text_alone(tokenizer: Any) -> None:
    made = heldout_documents("law", documents(), bos_tokenizer())
    assert [document.text for document in made] == [text for text in TEXTS if text]
    for document in made:
        assert document.source == "law" and document.n_bytes == len(document.text.encode()) == len(document.tokens)
        assert tokenizer.decode(document.tokens) == document.text
