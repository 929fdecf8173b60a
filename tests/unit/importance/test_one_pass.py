"""The one-pass scores against their formulas in numpy, on states that plain transformers gives for each document alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from slayer.errors import DataError
from slayer.evaluation.heldout import build_heldout_set
from slayer.forward import PackedRows, load_model
from slayer.importance import observers
from slayer.importance.catalogue import ONE_PASS
from slayer.importance.decoder import LoadedDecoder, StreamedDecoder, open_decoder
from slayer.importance.one_pass import measure_pass
from slayer.importance.outliers import OutlierSettings
from slayer.importance.table import Measurement

Floats = NDArray[np.float64]
LENGTHS = [[7, 4], [5, 3, 2], [11], [6, 6], [2, 9]]  # documents of each row
LENGTH = 13
FAMILIES = ["llama", "mistral", "qwen2", "qwen3"]


@pytest.fixture(scope="module")
def texts(random_documents: Callable[..., list[list[int]]]) -> list[list[list[int]]]:
    return [random_documents(lengths, seed) for seed, lengths in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def rows(texts: list[list[list[int]]], pack: Callable[..., PackedRows]) -> PackedRows:
    return pack(texts, LENGTH)


@pytest.fixture(scope="module")
def folder(make_model: Callable[..., Path]) -> Path:
    return make_model("llama", layers=5)


@pytest.fixture(scope="module")
def decoder(folder: Path) -> Any:
    return open_decoder(folder, "fp32")


def plain_states(folder: Path, documents: list[list[int]]) -> list[Floats]:
    """States [S, tokens with a successor, D] of each document run alone; the last one is what enters the final norm."""
    model = load_model(folder, "fp32")
    states = []
    for document in documents:
        found: list[torch.Tensor] = []
        handle = model.model.norm.register_forward_pre_hook(lambda _, inputs, found=found: found.append(inputs[0]))
        with torch.no_grad():
            hidden = model(input_ids=torch.tensor([document]), use_cache=False, output_hidden_states=True).hidden_states
        handle.remove()
        states.append(torch.cat([*hidden[:-1], *found])[:, :-1].double().numpy())
    return states


def cosine(first: Floats, second: Floats) -> Floats:
    return (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)  # type: ignore[no-any-return]


def ratio(rows_of_tokens: list[Floats]) -> tuple[float, float]:
    """Mean over all tokens and its standard error over rows, from the definition of a ratio estimator."""
    sums, sizes = np.array([one.sum() for one in rows_of_tokens]), np.array([len(one) for one in rows_of_tokens])
    mean = sums.sum() / sizes.sum()
    deviations = sums - mean * sizes
    return mean, np.sqrt(np.var(deviations, ddof=1) / len(sizes)) / sizes.mean()


def measured(decoder: Any, rows: PackedRows, *scores: str, **options: Any) -> list[Measurement]:
    return measure_pass(decoder, rows, scores or ONE_PASS, source="general", **{"micro_batch_rows": 2, **options})


@pytest.mark.parametrize("family", FAMILIES)
def test_token_means_are_the_formulas(family: str, make_model: Callable[..., Path], texts: list[list[list[int]]], rows: PackedRows) -> None:
    folder = make_model(family, layers=5)
    states = [np.concatenate(plain_states(folder, documents), axis=1) for documents in texts]
    influence, magnitude, norm = measured(open_decoder(folder, "fp32"), rows, "block_influence", "relative_magnitude", "norm")
    for layer in range(5):
        before, after = [one[layer] for one in states], [one[layer + 1] for one in states]
        pairs = list(zip(before, after, strict=True))
        expected = [
            (influence, [1 - cosine(x, y) for x, y in pairs]),
            (magnitude, [np.linalg.norm(y - x, axis=-1) / np.linalg.norm(y, axis=-1) for x, y in pairs]),
            (norm, [np.linalg.norm(y, axis=-1) for y in after]),
        ]
        for one, tokens in expected:
            assert one.errors is not None
            np.testing.assert_allclose((one.values[layer], one.errors[layer]), ratio(tokens), rtol=1e-5, atol=1e-5)
    assert [one.score for one in (influence, magnitude, norm)] == ["block_influence", "relative_magnitude", "norm"]
    assert not influence.failed and influence.source == "general" and influence.freedom == len(LENGTHS) - 1
    assert min(influence.values) > 0.01  # these layers do something


def test_angles_of_every_block(folder: Path, decoder: Any, texts: list[list[list[int]]], rows: PackedRows) -> None:
    (one,) = measured(decoder, rows, "angular_distance")
    last = np.stack([state[:, -1] for documents in texts for state in plain_states(folder, documents)])  # [documents, S, D]
    assert one.details["documents"] == len(last) == 10 and one.freedom == 9
    assert list(one.details["blocks"]) == ["1", "2", "3", "4"]
    for n, found in one.details["blocks"].items():
        angles = np.arccos(np.clip(cosine(last[:, : -int(n)], last[:, int(n) :]), -1, 1)) / np.pi
        np.testing.assert_allclose(found, angles.mean(0), atol=1e-5)
        start = int(angles.mean(0).argmin())
        assert one.details["best"][n] == {"start": start, "distance": found[start]}
        if n == "1":
            assert one.values == tuple(found) and one.errors is not None
            np.testing.assert_allclose(one.errors, angles.std(0, ddof=1) / np.sqrt(10), atol=1e-5)


def jensen_shannon(first: Floats, second: Floats) -> Floats:
    """Of logits [..., V]."""
    p, q = (np.exp(one - one.max(-1, keepdims=True)) for one in (first, second))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    middle = (p + q) / 2
    return ((p * np.log(p / middle)).sum(-1) + (q * np.log(q / middle)).sum(-1)) / 2  # type: ignore[no-any-return]


def divergences(folder: Path, texts: list[list[list[int]]]) -> Floats:
    """[S, tokens]: head on each raw state against the model's own logits."""
    model = load_model(folder, "fp32")
    head = model.lm_head.weight.detach().double().numpy()
    states = np.concatenate([state for documents in texts for state in plain_states(folder, documents)], axis=1)
    with torch.no_grad():
        final = [model(input_ids=torch.tensor([one])).logits[0, :-1].double().numpy() for documents in texts for one in documents]
    return jensen_shannon(np.concatenate(final), states @ head.T)


def test_divergence_from_what_is_said_in_the_end(folder: Path, decoder: Any, texts: list[list[list[int]]], rows: PackedRows) -> None:
    (one,) = measured(decoder, rows, "dola_divergence")
    expected = divergences(folder, texts)
    assert one.details["positions"] == expected.shape[1] == 45 and one.errors is not None and one.freedom == 44
    np.testing.assert_allclose((one.details["embedding"], *one.values), expected.mean(1), atol=1e-5)
    np.testing.assert_allclose(one.errors, expected[1:].std(1, ddof=1) / np.sqrt(45), atol=1e-5)
    assert one.values[-1] > 1e-3  # the final norm is left out there too


def test_drawn_positions_are_a_sample(folder: Path, decoder: Any, texts: list[list[list[int]]], rows: PackedRows) -> None:
    expected = divergences(folder, texts)
    found = [measured(decoder, rows, "dola_divergence", dola_positions=1, seed=seed, micro_batch_rows=1 + seed % 5)[0] for seed in range(40)]
    which = [int(np.abs(expected[0] - one.details["embedding"]).argmin()) for one in found]
    for position, one in zip(which, found, strict=True):  # each a position of its own, the same one in all layers
        np.testing.assert_allclose(one.values, expected[1:, position], atol=1e-5)
        assert one.details["positions"] == 1 and one.errors is None and one.freedom is None
    assert len(set(which)) > 20
    again = measured(decoder, rows, "dola_divergence", dola_positions=1, seed=3, micro_batch_rows=2)[0]
    np.testing.assert_allclose(again.values, found[3].values, atol=1e-6)


def test_the_head_runs_in_pieces(decoder: Any, rows: PackedRows, monkeypatch: pytest.MonkeyPatch) -> None:
    (whole,) = measured(decoder, rows, "dola_divergence")
    monkeypatch.setattr(observers, "HEAD_LOGITS", 61 * 7)
    sizes = []
    hook = decoder.model.lm_head.register_forward_hook(lambda module, inputs, output: sizes.append(output.numel()))
    (pieces,) = measured(decoder, rows, "dola_divergence")
    hook.remove()
    assert len(sizes) == 7 * 7 and max(sizes) == 61 * 7  # 45 positions; six states and the final one
    np.testing.assert_allclose(pieces.values, whole.values, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_streamed_model_is_measured_to_the_bit(folder: Path, rows: PackedRows, precision: str) -> None:
    loaded, streamed = (measured(open_decoder(folder, precision, streamed=streamed), rows) for streamed in (False, True))
    assert [one.score for one in loaded] == list(ONE_PASS)
    assert loaded == streamed
    assert all(np.isfinite(one.values).all() for one in loaded)


class Counting(StreamedDecoder):
    """Counts how often layers are read."""

    reads: list[int]

    @contextmanager
    def layer(self, index: int) -> Iterator[Any]:
        self.reads.append(index)
        with super().layer(index) as layer:
            yield layer


def test_all_scores_take_one_pass(folder: Path, rows: PackedRows) -> None:
    decoder = Counting(folder, "fp32")
    decoder.reads = []
    steps: list[tuple[str, int, int]] = []
    measured(decoder, rows, on_progress=lambda *step: steps.append(step))
    assert decoder.reads == [0, 1, 2, 3, 4]
    assert [step[1:] for step in steps] == [(done, 15) for done in range(1, 16)]  # 3 parts through 5 layers
    decoder.reads = []
    measured(decoder, rows, outliers=OutlierSettings(check=True))
    assert decoder.reads == [0, 1, 2, 3, 4] * 2  # both pruned models together take one more reading


def test_only_what_is_asked_in_the_order_asked(decoder: Any, rows: PackedRows) -> None:
    everything = {one.score: one for one in measured(decoder, rows)}
    for scores in (["norm"], ["dola_divergence", "block_influence"], ["outlier_distribution", "angular_distance", "relative_magnitude"]):
        assert measured(decoder, rows, *scores) == [everything[name] for name in scores]
    with pytest.raises(ValueError, match="removal"):
        measured(decoder, rows, "norm", "removal")


def test_parts_and_padding_change_nothing(decoder: Any, rows: PackedRows) -> None:
    expected = measured(decoder, rows)
    for micro_batch_rows in (1, 5):
        for one, other in zip(expected, measured(decoder, rows, micro_batch_rows=micro_batch_rows), strict=True):
            np.testing.assert_allclose(one.values, other.values, atol=1e-6)
            np.testing.assert_allclose(one.errors or 0, other.errors or 0, atol=1e-6)
    ids_BL = rows.input_ids_BL.clone()
    ids_BL[rows.documents_BL == 999] = 60
    other = type(rows)(input_ids_BL=ids_BL, labels_BL=rows.labels_BL, positions_BL=rows.positions_BL, documents_BL=rows.documents_BL)  # type: ignore[call-arg]
    assert not torch.equal(ids_BL, rows.input_ids_BL)
    assert measured(decoder, other) == expected


def test_a_block_that_does_nothing_scores_zero(folder: Path, rows: PackedRows) -> None:
    model = load_model(folder, "fp32")
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[2].mlp.down_proj.weight.zero_()
    influence, magnitude, angles = measured(LoadedDecoder(model), rows, "block_influence", "relative_magnitude", "angular_distance")
    for one in (influence, magnitude, angles):
        assert one.values[2] == 0 and one.errors is not None and one.errors[2] == 0
        assert min(one.values[:2] + one.values[3:]) > 0.01
    assert angles.details["best"]["1"] == {"start": 2, "distance": 0.0}


@pytest.mark.parametrize("broken", [0, 3])
def test_a_layer_that_is_not_finite_is_marked(folder: Path, rows: PackedRows, broken: int) -> None:
    model = load_model(folder, "fp32")
    intact = {one.score: one for one in measured(LoadedDecoder(model), rows)}
    with torch.no_grad():
        model.model.layers[broken].mlp.down_proj.weight[3, 4] = torch.nan
    found = {one.score: one for one in measured(LoadedDecoder(model), rows)}
    dola = found.pop("dola_divergence")
    assert set(dola.failed) == set(range(5)) and f"layer {broken}" in dola.failed[0] and np.isnan(dola.values).all()
    for name, one in found.items():
        assert one.failed == dict.fromkeys(range(broken, 5), "its output is not finite")
        assert one.values[:broken] == intact[name].values[:broken] and np.isnan(one.values[broken:]).all()
        assert one.errors is None or one.errors[:broken] == intact[name].errors[:broken]  # type: ignore[index]
    assert found["outlier_distribution"].details["sparsities"] == [None] * 5
    assert found["outlier_distribution"].details["check"] is None
    blocks = found["angular_distance"].details["blocks"]
    kept = {
        n: [one if start + int(n) <= broken else None for start, one in enumerate(of_n)]
        for n, of_n in intact["angular_distance"].details["blocks"].items()
    }
    assert blocks == kept
    assert list(found["angular_distance"].details["best"]) == [str(n) for n in range(1, broken + 1)]


def test_too_small_a_text_is_refused(decoder: Any, texts: list[list[list[int]]], pack: Callable[..., PackedRows]) -> None:
    few = pack(texts[:3], LENGTH)  # 6 documents, 26 tokens with a label
    with pytest.raises(DataError, match=r"the 26 tokens of general hold 6 where at least 8 .* analysis\.sample_tokens=35"):
        measured(decoder, few)
    assert len(measured(decoder, few, "norm")) == 1
    with pytest.raises(DataError, match="general has no token with a label"):
        measured(decoder, pack([[[1], [2]]], LENGTH), "norm")


class Document:
    """A held-out document."""

    def __init__(self, name: int, tokens: list[int]) -> None:
        self.id, self.text, self.tokens, self.n_bytes = str(name), "", np.array(tokens), len(tokens)


def test_held_out_rows_count_every_token(folder: Path, decoder: Any, random_documents: Callable[..., list[list[int]]]) -> None:
    """There every token is predicted once, behind a BOS token, and the windows of a long document are documents of their own."""
    documents = random_documents([13, 5, 30, 4, 9, 8], seed=7)
    rows = build_heldout_set("general", [Document(*pair) for pair in enumerate(documents)], prefix_token=1, row_tokens=LENGTH)
    windows = [[1, *document][at : at + LENGTH + 1] for document in documents for at in range(0, len(document), LENGTH)]
    states = plain_states(folder, [window[: LENGTH + 1] for window in windows])
    influence, angles = measured(decoder, rows, "block_influence", "angular_distance")
    assert sum(state.shape[1] for state in states) == sum(map(len, documents))
    whole, last = np.concatenate(states, axis=1), np.stack([state[:, -1] for state in states])
    np.testing.assert_allclose(influence.values, (1 - cosine(whole[:-1], whole[1:])).mean(1), atol=1e-5)
    assert angles.details["documents"] == len(windows) == 8
    np.testing.assert_allclose(angles.values, (np.arccos(cosine(last[:, :-1], last[:, 1:])) / np.pi).mean(0), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=6, max_size=6), min_size=1, max_size=4))
def test_last_tokens(rows: list[list[tuple[int, bool]]]) -> None:
    documents = np.array([[document for document, _ in row] for row in rows])
    counted = torch.tensor([[counts for _, counts in row] for row in rows])
    expected = [
        (number, place)
        for number, row in enumerate(rows)
        for place, (document, counts) in enumerate(row)
        if counts and not any(other == document and too for other, too in row[place + 1 :])
    ]
    found = observers._last_tokens(documents, counted)
    assert list(zip(*(one.tolist() for one in found), strict=True)) == expected
