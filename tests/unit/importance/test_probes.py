"""Probes against plain transformers with hooks, one text at a time, and sklearn called by hand."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.model_selection import train_test_split

from slayer.data.assets import fetch
from slayer.data.random_model import byte_tokenizer
from slayer.errors import DataError
from slayer.importance.decoder import LoadedDecoder, StreamedDecoder, open_decoder
from slayer.importance.probes import SETS, ProbeSet, last_states, load_probe_set, measure_probes

FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


def questions(texts: list[str], labels: list[int], name: str = "toy") -> ProbeSet:
    return ProbeSet(name=name, texts=tuple(texts), labels_N=np.array(labels), fingerprint="")


def words(n_texts: int, seed: int = 0) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choice("abcdefgh ") for _ in range(generator.randint(3, 30))) + "." for _ in range(n_texts)]


@torch.no_grad()
def states_by_hand(model: Any, ids: list[list[int]]) -> dict[str, Any]:
    """Last-token states [layers, texts, D] that hooks see in transformers' own forward pass."""
    seen: dict[str, list[Any]] = {"block": [], "post_attention_norm": []}
    handles = []
    for layer in model.model.layers:
        handles.append(layer.register_forward_hook(lambda _, __, output: seen["block"].append(output[0, -1])))
        handles.append(layer.post_attention_layernorm.register_forward_hook(lambda _, __, output: seen["post_attention_norm"].append(output[0, -1])))
    embedding = []
    for one in ids:
        states = model(input_ids=torch.tensor([one]), use_cache=False, output_hidden_states=True).hidden_states
        embedding.append(states[0][0, -1].float().numpy())
        assert torch.equal(states[1][0, -1], seen["block"][-len(model.model.layers)])
    for handle in handles:
        handle.remove()
    n_layers = len(model.model.layers)
    by_layer = {
        point: np.array([[one.float().numpy() for one in found[layer::n_layers]] for layer in range(n_layers)]) for point, found in seen.items()
    }
    return {"embedding": np.array(embedding), **by_layer}


def judged_by_hand(vectors: Any, labels: list[int], seed: int = 42) -> tuple[float, float, float]:
    train, test, train_labels, test_labels = train_test_split(vectors, labels, test_size=0.4, random_state=seed)
    classifier = LogisticRegression(C=1.0, max_iter=20_000).fit(train, train_labels)
    said = classifier.predict(test)
    auc = roc_auc_score(test_labels, classifier.decision_function(test))
    return float(np.mean(said == test_labels)), float(f1_score(test_labels, said)), float(auc)


@pytest.mark.parametrize("family", FAMILIES)
def test_numbers_are_those_of_transformers_and_sklearn(family: str, make_model: Callable[..., Path]) -> None:
    folder, tokenizer = make_model(family, layers=3, vocab_size=264), byte_tokenizer()
    decoder = open_decoder(folder, "fp32")
    assert isinstance(decoder, LoadedDecoder)
    texts = words(100)
    labels = [int(text.count("a") + text.count("b") > text.count("c") + text.count("d")) for text in texts]
    told = []
    found = measure_probes(decoder, tokenizer, questions(texts, labels), items=1000, batch_tokens=100, on_progress=lambda *one: told.append(one[1:]))
    details, ids = found.details, [tokenizer(text)["input_ids"] for text in texts]
    embedding, *layers = [{point: one.copy() for point, one in vectors.items()} for vectors in last_states(decoder, ids, 100)]
    by_hand = states_by_hand(decoder.model, ids)
    for layer, vectors in enumerate(layers):
        for point in ("block", "post_attention_norm"):
            np.testing.assert_allclose(vectors[point], by_hand[point][layer], atol=2e-5, rtol=1e-4)
            expected = judged_by_hand(vectors[point], labels)
            assert tuple(details[score][point][layer] for score in ("accuracy", "f1", "auc")) == pytest.approx(expected, abs=1e-12)
    assert tuple(details["embedding"].values()) == pytest.approx(judged_by_hand(embedding["embedding"], labels), abs=1e-12)
    tested = train_test_split(labels, test_size=0.4, random_state=42)[1]
    assert details["majority"] == max(np.mean(tested), 1 - np.mean(tested)) and details["items"] == 100 and details["cut"] == 0
    assert (found.score, found.source, found.failed, details["set"]) == ("probe", "toy", {}, "toy")
    assert found.values == tuple(details["accuracy"]["block"])
    assert found.errors == tuple(math.sqrt(value * (1 - value) / 40) for value in found.values)
    assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert len({*found.values, *details["accuracy"]["post_attention_norm"]}) > 2


@pytest.mark.parametrize("family", FAMILIES)
def test_vectors_are_those_of_transformers(family: str, make_model: Callable[..., Path]) -> None:
    sliding = {"mistral": {"sliding_window": 3}, "qwen2": {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}}.get(family, {})
    folder = make_model(family, layers=3, **sliding)
    generator = random.Random(0)
    ids = [[generator.randrange(61) for _ in range(generator.randint(1, 12))] for _ in range(15)]
    decoder = open_decoder(folder, "fp32")
    assert isinstance(decoder, LoadedDecoder)
    expected = states_by_hand(decoder.model, ids)
    for chosen in (decoder, StreamedDecoder(folder, "fp32")):
        for batch_tokens in (1, 25, 10_000):
            for number, vectors in enumerate(last_states(chosen, ids, batch_tokens)):
                for point, vectors_ND in vectors.items():
                    wanted = expected[point] if point == "embedding" else expected[point][number - 1]
                    np.testing.assert_allclose(vectors_ND, wanted, atol=2e-5, rtol=1e-4)
            assert number == 3


def test_a_streamed_model_measures_the_same_and_each_layer_is_read_once(make_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tokenizer = make_model("llama", layers=3, vocab_size=264), byte_tokenizer()
    texts = words(80)
    asked: list[int] = []
    layer = StreamedDecoder.layer
    monkeypatch.setattr(StreamedDecoder, "layer", lambda self, index: (asked.append(index), layer(self, index))[1])
    loaded, streamed = (
        measure_probes(open_decoder(folder, "fp32", streamed=streamed), tokenizer, questions(texts, [0, 1] * 40), items=80, batch_tokens=64)
        for streamed in (False, True)
    )
    assert loaded == streamed and asked == [0, 1, 2]


def test_what_can_be_told_apart_is_and_what_cannot_is_not(make_model: Callable[..., Path]) -> None:
    decoder, tokenizer = open_decoder(make_model("llama", layers=3, vocab_size=264), "fp32"), byte_tokenizer()
    labels = [number % 2 for number in range(300)]
    texts = ["xy"[label] * (1 + number % 7) + ".!"[label] for number, label in enumerate(labels)]
    easy = measure_probes(decoder, tokenizer, questions(texts, labels), items=300)
    assert easy.values == (1.0, 1.0, 1.0) and easy.errors == (0.0, 0.0, 0.0)
    assert easy.details["embedding"] == {"accuracy": 1.0, "f1": 1.0, "auc": 1.0} and easy.details["f1"]["post_attention_norm"] == [1.0] * 3
    generator = random.Random(7)
    chance = measure_probes(decoder, tokenizer, questions(words(300), [generator.randrange(2) for _ in range(300)]), items=300)
    assert chance.errors is not None and all(abs(value - 0.5) < 3.5 * 0.5 / math.sqrt(120) for value in chance.values)
    assert chance.details["embedding"]["auc"] == 0.5  # all texts end alike


def test_items_are_drawn_with_the_seed(make_model: Callable[..., Path]) -> None:
    decoder, tokenizer = open_decoder(make_model("llama", layers=3, vocab_size=264), "fp32"), byte_tokenizer()
    labels = [int(text.count("a") > 1) for text in words(300)]
    first, again, other = (measure_probes(decoder, tokenizer, questions(words(300), labels), items=150, seed=seed) for seed in (42, 42, 43))
    assert first == again != other and first.details["items"] == 150


def test_a_text_longer_than_the_model_reads_is_cut_in_front(make_model: Callable[..., Path]) -> None:
    folder, tokenizer = make_model("llama", layers=3, vocab_size=264, max_position_embeddings=8), byte_tokenizer()
    decoder = open_decoder(folder, "fp32")
    texts, labels = words(100), [int(text.count("a") > 1) for text in words(100)]
    long, short = (measure_probes(decoder, tokenizer, questions(some, labels), items=100) for some in (texts, [text[-8:] for text in texts]))
    assert long.values == short.values and short.details["cut"] == 0
    assert long.details["cut"] == sum(len(text) > 8 for text in texts) > 50


def test_a_layer_whose_states_are_not_finite_is_a_failure(make_model: Callable[..., Path]) -> None:
    decoder, tokenizer = open_decoder(make_model("llama", layers=3, vocab_size=264), "fp32"), byte_tokenizer()
    assert isinstance(decoder, LoadedDecoder)
    with torch.no_grad():
        decoder.model.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    found = measure_probes(decoder, tokenizer, questions(words(80), [0, 1] * 40), items=80)
    assert math.isfinite(found.values[0]) and math.isnan(found.values[1]) and math.isnan(found.values[2])
    assert found.failed == dict.fromkeys((1, 2), "a state is not finite")
    assert found.details["accuracy"]["block"][1:] == [None, None] and found.details["accuracy"]["post_attention_norm"][1] is not None
    json.dumps(found.details, allow_nan=False)


def test_too_few_are_refused_with_the_size_that_is_enough(make_model: Callable[..., Path]) -> None:
    decoder, tokenizer = open_decoder(make_model("llama", layers=3, vocab_size=264), "fp32"), byte_tokenizer()
    chosen = questions(words(200), [int(number % 5 == 0) for number in range(200)])
    with pytest.raises(DataError, match=r"30 texts of toy hold \d+ of the rarer label, and a probe needs 20 of each\n") as refused:
        measure_probes(decoder, tokenizer, chosen, items=30)
    enough = int(re.findall(r"analysis\.probe_items=(\d+)", str(refused.value))[0])
    assert measure_probes(decoder, tokenizer, chosen, items=enough).details["items"] == enough
    with pytest.raises(DataError):
        measure_probes(decoder, tokenizer, chosen, items=enough - 1)
    with pytest.raises(DataError, match="no more than 19 in all 60"):
        measure_probes(decoder, tokenizer, questions(words(60), [1] * 19 + [0] * 41), items=60)


def test_own_texts_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('\ufeff{"text": "Schön.", "label": 1}\r\n\n{"text": "Hässlich.", "label": 0, "more": 3}', encoding="utf-8")
    found = load_probe_set(None, str(path))
    assert (found.name, found.texts, found.labels_N.tolist()) == ("mine", ("Schön.", "Hässlich."), [1, 0])
    path.write_text('{"text": "Schön.", "label": 0}\n{"text": "Hässlich.", "label": 0}', encoding="utf-8")
    assert load_probe_set(None, str(path)).fingerprint != found.fingerprint and load_probe_set("reviews", str(path)).name == "reviews"


def test_bad_lines_are_told_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    lines = ['{"text": "a", "label": 1}', "", '{"text": "a", "label": 2}', '{"text": " ", "label": 1}', '{"label": true}', "[1]", "{", "{", "{"]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe")
    with pytest.raises(DataError) as refused:
        load_probe_set(None, str(path))
    assert re.findall(r"line (\d+): (.*)", str(refused.value)) == [
        ("3", "label is 2"), ("4", 'text is " "'), ("5", "text is null"), ("6", "not a JSON object"),
        ("7", "not JSON (Expecting property name enclosed in double quotes at character 1)"),
    ]  # fmt: skip
    assert "and 3 more" in str(refused.value)
    path.write_bytes(b'{"text": "\xff", "label": 1}\n{"text": "a", "label": true}')
    with pytest.raises(DataError, match=r"line 1: not UTF-8\n +line 2: label is true"):
        load_probe_set(None, str(path))
    path.write_text("\n")
    with pytest.raises(DataError, match="holds no labelled text"):
        load_probe_set(None, str(path))
    with pytest.raises(DataError, match="No such file"):
        load_probe_set(None, str(tmp_path / "none.jsonl"))


def test_an_unknown_set_is_told_with_those_there_are() -> None:
    with pytest.raises(
        DataError, match=r"no set of labelled texts 'sst'; there are: sst2, boolq, mrpc, rte, or JSON lines .*\n +type: analysis.probe_set=sst2"
    ):
        load_probe_set("sst", None)


def test_embedded_sets_hold_what_was_published() -> None:
    fetch(["benchmarks"])
    sets = {name: load_probe_set(name, None) for name in SETS}
    assert {name: (len(one.texts), int(one.labels_N.sum())) for name, one in sets.items()} == {
        "sst2": (872, 444), "boolq": (3270, 2033), "mrpc": (408, 279), "rte": (277, 146),
    }  # fmt: skip
    assert sets["sst2"].texts[0].startswith("it 's a charming and often affecting journey .\n") and sets["sst2"].labels_N[0] == 1
    assert sets["boolq"].texts[0].startswith("All biomass goes through") and sets["boolq"].labels_N[0] == 0
    assert "does ethanol take more energy make that produces?" in sets["boolq"].texts[0]
    assert "Christopher Reeve had an accident." in sets["rte"].texts[0] and sets["rte"].labels_N[0] == 0
    assert all(text.endswith("\nAnswer:") for one in sets.values() for text in one.texts)
