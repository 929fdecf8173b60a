"""Tokens: the truth is what each tokenizer says by itself."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

from slayer.data.assets import asset_model, cache_dir
from slayer.data.cache import written_aside
from slayer.data.document import Document
from slayer.data.random_model import byte_tokenizer
from slayer.data.storing import chunks, ingest, parts, tokens
from slayer.data.storing.corpus import Corpus, content_hash, corpus_of
from slayer.data.storing.parts import Workers, part_path
from slayer.data.storing.tokens import Encoder, TokenStore, heldout_documents, start_token, token_store, tokenizer_hash
from slayer.errors import AssetError, DataError

TEXTS = ["hello", "", "naïve 日本 🎉", "a </s> <eos> <bos> <s> <|endoftext|> <mask> b", "x" * 3_000, " \n\n\tÀ  É ", "ﬁne Ⅳ é"]


def documents(texts: Sequence[str] = TEXTS) -> list[Document]:
    return [Document(id=str(number), text=text, group=str(number)) for number, text in enumerate(texts)]


def corpus(texts: Sequence[str] = TEXTS) -> Corpus:
    made = documents(texts)
    return corpus_of(made, content_hash(made))


def store_of(tokenizer: Any, texts: Sequence[str] = TEXTS, **options: Any) -> TokenStore:
    return token_store(corpus(texts), tokenizer, label="test", workers=Workers(1), **options)


def with_template(single: str) -> Any:
    tokenizer = byte_tokenizer()
    specials = [("<bos>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=specials)
    return tokenizer


def without_bos() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    return tokenizer


def normalising() -> Any:
    """Lower case, NFKC, word marks instead of blanks, bytes for what it does not know, and added tokens special and not: like Llama 2's."""
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.ByteFallback()
    trainer = BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))])
    made.train_from_iterator(["hello naive mask fine a b x", "the bos eos of text"] * 3, trainer)
    made.add_tokens([AddedToken("<mask>", special=False, lstrip=True), AddedToken("fine", normalized=True)])
    made.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", model_max_length=64)


def truncating() -> Any:
    """One that was last called with truncation and padding."""
    tokenizer = byte_tokenizer()
    tokenizer(["a", "bcd"], truncation=True, max_length=2, padding=True)
    assert tokenizer.backend_tokenizer.truncation is not None
    return tokenizer


def slow() -> Any:
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


def smollm2() -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(asset_model("smollm2_135m"))
    except AssetError:
        pytest.skip("the asset smollm2_135m is not here")


TOKENIZERS: dict[str, Callable[[], Any]] = {
    "adds nothing": byte_tokenizer,
    "adds BOS": lambda: with_template("<bos> $A"),
    "adds BOS and EOS": lambda: with_template("<bos> $A <eos>"),
    "has no BOS": without_bos,
    "normalises": normalising,
    "truncated before": truncating,
    "slow": slow,
    "SmolLM2": smollm2,
}
every_tokenizer = pytest.mark.parametrize("tokenizer", list(TOKENIZERS), indirect=True)


@pytest.fixture(scope="module")
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return TOKENIZERS[getattr(request, "param", "adds nothing")]()


@pytest.fixture(scope="module")
def encoders(tokenizer: Any) -> list[Encoder]:
    """An encoder, and what another process gets of it."""
    encoder = Encoder.of(tokenizer)
    return [encoder, pickle.loads(pickle.dumps(encoder))]


def own_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@every_tokenizer
def test_ids_are_the_tokenizers_own_and_bos_and_eos_stand_once(own_cache: Path, tokenizer: Any) -> None:
    store = store_of(tokenizer)
    before = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    assert start_token(tokenizer) == tokenizer.bos_token_id
    for index, text in enumerate(TEXTS):
        ids = own_ids(tokenizer, text)
        assert store.document_tokens(index).tolist() == [*before, *ids, tokenizer.eos_token_id]
        assert not {*before, tokenizer.eos_token_id} & set(ids)


@every_tokenizer
@settings(deadline=None, max_examples=20)
@given(texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=6))
def test_an_encoder_gives_the_tokenizers_own_ids_in_any_process(tokenizer: Any, encoders: list[Encoder], texts: list[str]) -> None:
    expected = [own_ids(tokenizer, text) for text in texts]
    for encoder in encoders:
        assert encoder.encode(texts) == expected
        assert (encoder.bos, encoder.eos) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
        assert encoder.encode([]) == []


def test_a_fast_encoder_needs_no_transformers(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "encoder").write_bytes(pickle.dumps(Encoder.of(tokenizer)))
    program = "import pickle, sys; print(pickle.load(open(sys.argv[1], 'rb')).encode(['ab']), {'transformers', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "encoder"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"{[own_ids(tokenizer, 'ab')]} set()"


def test_counts_and_lengths(own_cache: Path, tokenizer: Any) -> None:
    store = store_of(tokenizer)
    sizes_bytes = [len(text.encode()) for text in TEXTS]
    assert store.n_documents == len(TEXTS) and store.lengths.dtype == np.int64
    assert store.lengths.tolist() == [size + 2 for size in sizes_bytes] and store.sizes_bytes.tolist() == sizes_bytes
    assert store.n_tokens == sum(store.lengths) and store.n_bytes == sum(sizes_bytes)


def test_no_documents_at_all(own_cache: Path, tokenizer: Any) -> None:
    store = store_of(tokenizer, [])
    assert (store.n_documents, store.n_tokens, store.n_bytes, store.lengths.tolist()) == (0, 0, 0, [])


def test_tokens_are_views_of_the_file_and_hold_no_descriptor(own_cache: Path, tokenizer: Any) -> None:
    store = store_of(tokenizer)
    view = store.document_tokens(4)
    assert not view.flags.owndata and not view.flags.writeable and view.dtype == np.int32
    opened = [str(path.resolve()) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [path for path in opened if store.fingerprint in path]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a kilobyte, so that a small text is cut as a large one is."""
    for module, constant, value in (
        (chunks, "SMALLEST_PART_BYTES", 1_000), (chunks, "PART_BYTES", 1_000), (ingest, "BATCH_DOCUMENTS", 10), (tokens, "BATCH_TOKENS", 200)
    ):  # fmt: skip
        monkeypatch.setattr(module, constant, value)


MANY = [f"document {number} " + "é" * (number % 90) for number in range(700)]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("processes", [1, 2])
def test_many_parts_keep_their_order(own_cache: Path, tokenizer: Any, processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = corpus(MANY)
    monkeypatch.setattr(parts, "SMALL_JOB_BYTES", 0)
    seen: list[tuple[str, int, int]] = []
    with Workers(processes) as workers:
        store = token_store(text, tokenizer, label="many", workers=workers, on_progress=lambda *report: seen.append(report))
        assert [tokenizer.decode(store.document_tokens(index)[1:-1]) for index in range(len(MANY))] == MANY
        assert len(seen) > 20 and seen[-1] == ("many", 700, 700) and seen == sorted(seen)
        seen.clear()
        token_store(text, tokenizer, label="many", workers=workers, on_progress=lambda *report: seen.append(report))
    assert seen == [("many", 700, 700)]


@pytest.mark.usefixtures("small_parts")
def test_datasets_reads_a_part(own_cache: Path, tokenizer: Any) -> None:
    import datasets

    store = store_of(tokenizer, MANY)
    read = datasets.Dataset.from_file(str(part_path(own_cache / "tokens" / store.fingerprint, 0)))
    assert len(read) > 1 and read[:]["tokens"] == [store.document_tokens(index).tolist() for index in range(len(read))]


def test_is_made_once_per_text_and_tokenizer(own_cache: Path, tokenizer: Any) -> None:
    one = store_of(tokenizer)
    made = {path: path.stat().st_ino for path in (own_cache / "tokens").rglob("*")}
    assert store_of(tokenizer).fingerprint == one.fingerprint
    assert {path: path.stat().st_ino for path in (own_cache / "tokens").rglob("*")} == made
    assert store_of(with_template("<bos> $A")).fingerprint != one.fingerprint
    assert store_of(tokenizer, [*TEXTS, "more"]).fingerprint != one.fingerprint


def test_tokenizer_hash_ignores_how_it_was_called_last() -> None:
    tokenizer = byte_tokenizer()
    before = tokenizer_hash(tokenizer)
    assert tokenizer_hash(truncating()) == before != tokenizer_hash(with_template("<bos> $A <eos>"))


def test_two_folders_written_aside_at_once_leave_one_whole_folder(own_cache: Path) -> None:
    target = cache_dir() / "models" / "key"
    with written_aside(target) as one, written_aside(target) as two:
        (one / "file").write_text("whole")
        (two / "file").write_text("whole")
    assert [path.name for path in target.parent.iterdir()] == ["key"] and (target / "file").read_text() == "whole"


def test_a_folder_that_fails_leaves_nothing(own_cache: Path) -> None:
    target = cache_dir() / "models" / "key"
    with pytest.raises(KeyboardInterrupt), written_aside(target) as scratch:
        (scratch / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("damage", ["rubbish", "rubbish of its size", "cut", "of another text"])
def test_a_damaged_store_says_what_to_remove(own_cache: Path, tokenizer: Any, damage: str) -> None:
    folder = own_cache / "tokens" / store_of(tokenizer).fingerprint
    part = part_path(folder, 0)
    match damage:
        case "rubbish":
            part.write_bytes(b"rubbish")
        case "rubbish of its size":
            part.write_bytes(b"\xff" * part.stat().st_size)
        case "cut":
            part.write_bytes(part.read_bytes()[:-8])
        case "of another text":
            other = own_cache / "tokens" / store_of(tokenizer, TEXTS[:3]).fingerprint
            index = (folder / "index.json").read_text().replace(str(part.stat().st_size), str(part_path(other, 0).stat().st_size))
            (folder / "index.json").write_text(index)
            part.write_bytes(part_path(other, 0).read_bytes())
    with pytest.raises(DataError, match=f"type: rm -r {folder} "):
        TokenStore(folder)


def test_a_tokenizer_without_eos_is_refused(own_cache: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    for call in (lambda: store_of(tokenizer), lambda: Encoder.of(tokenizer)):
        with pytest.raises(DataError, match="no EOS token"):
            call()


def test_heldout_documents_hold_their_text_alone(tokenizer: Any) -> None:
    made = heldout_documents("law", documents(), with_template("<bos> $A <eos>"))
    assert [document.text for document in made] == [text for text in TEXTS if text]
    for document in made:
        assert document.source == "law" and document.n_bytes == len(document.text.encode()) == len(document.tokens)
        assert tokenizer.decode(document.tokens) == document.text
