"""Running many coalitions together: the bits of running each alone, every shared piece once, interruptions and failures."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.importance.values import without, without_halves
from slayer.importance.walk import planned_forwards, run_coalitions

LETTERS = "k-am2"


@pytest.fixture(scope="module")
def rows(pack: Any, random_documents: Any) -> Any:
    """Four rows of several documents with padding, in two parts of two rows."""
    documents = random_documents([9, 6, 16, 5, 4, 7, 12, 3], seed=3)
    return pack([documents[:2], documents[2:3], documents[3:6], documents[6:]], 16)


def text_value(decoder: Any, rows: Any) -> Any:
    from slayer.importance.text_value import TextValue

    return TextValue(decoder, rows, source="text", micro_batch_rows=2)


def naive_nats(model: Any, rows: Any, coalition: str) -> list[float]:
    """Nats of every row, with transformers' own forward pass over a model whose layers were changed by hooks, part by part."""
    import torch

    from slayer.forward import logits_of, nll_BL, split_rows

    halves, handles = {"-": (0, 0), "a": (1, 0), "m": (0, 1)}, []
    for layer, letter in zip(model.model.layers, coalition, strict=True):
        attention, mlp = halves.get(letter, (1, 1))
        if not attention:
            handles.append(layer.self_attn.register_forward_hook(lambda _, args, out: (torch.zeros_like(out[0]), *out[1:])))
        if not mlp:
            handles.append(layer.mlp.register_forward_hook(lambda _, args, out: torch.zeros_like(out)))
        if letter == "2":

            def again(module: Any, args: Any, kwargs: Any, out: Any) -> Any:
                return module.forward(out, **kwargs)

            handles.append(layer.register_forward_hook(again, with_kwargs=True))
    try:
        with torch.inference_mode():
            return [float(nats) for part in split_rows(rows, 2) for nats in nll_BL(logits_of(model, part), part.labels_BL).double().sum(dim=1)]
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_coalition_has_the_bits_of_being_run_alone(make_model: Any, load_plain: Any, rows: Any, family: str) -> None:
    from slayer.importance.decoder import LoadedDecoder

    model = load_plain(make_model(family, layers=4))
    coalitions = ["".join(random.Random(seed).choice(LETTERS) for _ in range(4)) for seed in range(40)] + ["kkkk", "----"]
    values, _ = run_coalitions(LoadedDecoder(model), text_value(LoadedDecoder(model), rows), coalitions)
    for coalition in coalitions:
        np.testing.assert_array_equal(-values.gains[coalition], naive_nats(model, rows, coalition), err_msg=coalition)


def test_sliding_windows_are_kept(make_model: Any, load_plain: Any, pack: Any, random_documents: Any) -> None:
    from slayer.importance.decoder import LoadedDecoder

    rows = pack([random_documents([30])], 32)
    kinds = ["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    model = load_plain(make_model("qwen2", layers=4, sliding_window=4, use_sliding_window=True, layer_types=kinds), attn_implementation="sdpa")
    coalitions = ["kkkk", "k-kk", "mkak"]
    values, _ = run_coalitions(LoadedDecoder(model), text_value(LoadedDecoder(model), rows), coalitions)
    for coalition in coalitions:
        np.testing.assert_array_equal(-values.gains[coalition], naive_nats(model, rows, coalition))


def test_a_model_read_layer_by_layer_gives_the_same_bits(make_model: Any, rows: Any) -> None:
    from slayer.importance.decoder import open_decoder

    folder = make_model("qwen3", layers=4, dtype="bfloat16", sharded=True)
    coalitions = ["kkkk", "-kkk", "ka2k", "mmmm"]
    found = []
    for streamed in (False, True):
        for precision in ("bf16", "fp32"):
            decoder = open_decoder(folder, precision, streamed=streamed)
            values, _ = run_coalitions(decoder, text_value(decoder, rows), coalitions)
            found.append([values.gains[one].tolist() for one in coalitions])
    assert found[:2] == found[2:]


@pytest.mark.parametrize(("state_bytes", "batch_tokens"), [(1, 4096), (5000, 1), (1 << 30, 100)])
def test_bounds_on_memory_and_batches_change_nothing(make_model: Any, load_plain: Any, rows: Any, state_bytes: int, batch_tokens: int) -> None:
    from slayer.importance.decoder import LoadedDecoder

    decoder = LoadedDecoder(load_plain(make_model(layers=5)))
    coalitions = ["".join(letters) for letters in itertools.product("k-", repeat=5)]
    expected, plan = run_coalitions(decoder, text_value(decoder, rows), coalitions)
    found, forwards = run_coalitions(decoder, text_value(decoder, rows), coalitions, state_bytes=state_bytes, batch_tokens=batch_tokens)
    assert forwards == plan
    for one in coalitions:
        np.testing.assert_array_equal(found.gains[one], expected.gains[one])


def test_nothing_is_computed_twice(make_model: Any, load_plain: Any, rows: Any) -> None:
    """Leave-one-out over 4 layers: 4 + 3 + 2 + 1 blocks instead of 4 + 4 · 3; all subsets: 2^5 − 2 instead of 5 · 2^4."""
    from slayer.importance.decoder import LoadedDecoder

    decoder = LoadedDecoder(load_plain(make_model(layers=4)))
    value = text_value(decoder, rows)
    _, forwards = run_coalitions(decoder, value, ["kkkk", *(without(4, [layer]) for layer in range(4))])
    assert (forwards.naive, forwards.run) == (16, 10)
    everything = ["".join(letters) for letters in itertools.product("k-", repeat=4)]
    _, forwards = run_coalitions(decoder, value, everything)
    assert (forwards.naive, forwards.run) == (4 * 8, 1 + 2 + 4 + 8)
    _, forwards = run_coalitions(decoder, value, ["kkkk", "akkk", "-kkk", "2kkk"])  # both halves, and twice, once each
    assert forwards.run == 1 + 1 + 4 * 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(LETTERS, min_size=3, max_size=3), min_size=1, max_size=30))
def test_the_count_made_beforehand_is_what_is_run(make_model: Any, load_plain: Any, rows: Any, coalitions: list[str]) -> None:
    from slayer.importance.decoder import LoadedDecoder

    decoder = LoadedDecoder(load_plain(make_model(layers=3)))
    _, forwards = run_coalitions(decoder, text_value(decoder, rows), coalitions)
    assert forwards.run == planned_forwards(coalitions)


def test_an_interrupted_walk_goes_on(make_model: Any, load_plain: Any, rows: Any, tmp_path: Path) -> None:
    from slayer.importance.decoder import LoadedDecoder

    decoder = LoadedDecoder(load_plain(make_model(layers=4)))
    value, coalitions = text_value(decoder, rows), [without(4, [layer]) for layer in range(4)]
    expected, plan = run_coalitions(decoder, value, coalitions)
    seen = []

    def stop(label: str, done: int, total: int) -> None:
        seen.append((done, total))
        if done >= plan.run + 2:  # in the second of the two parts
            raise KeyboardInterrupt

    store = tmp_path / "values.jsonl"
    with pytest.raises(KeyboardInterrupt):
        run_coalitions(decoder, value, coalitions, store=store, on_progress=stop)
    with store.open("a") as file:
        file.write('{"coalition": "kk')  # torn
    found, forwards = run_coalitions(decoder, value, coalitions, store=store)
    assert 0 < forwards.run <= plan.run / 2
    again, forwards = run_coalitions(decoder, value, coalitions, store=store)
    assert forwards.run == 0
    for one in coalitions:
        np.testing.assert_array_equal(found.gains[one], expected.gains[one])
        np.testing.assert_array_equal(again.gains[one], expected.gains[one])
    assert seen[-1][0] <= seen[-1][1]


def test_what_fails_is_marked_and_the_others_go_on(make_model: Any, load_plain: Any, rows: Any, tmp_path: Path) -> None:
    import torch

    from slayer.importance.decoder import LoadedDecoder

    model = load_plain(make_model(layers=4, seed=5))
    sound, _ = run_coalitions(LoadedDecoder(model), text_value(LoadedDecoder(model), rows), [without(4, [2])])
    weight = model.model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        before = float(weight[0, 0])
        weight[0, 0] = torch.nan
    decoder = LoadedDecoder(model)
    coalitions = ["kkkk", *(without(4, [layer]) for layer in range(4))]
    values, _ = run_coalitions(decoder, text_value(decoder, rows), coalitions, store=tmp_path / "values.jsonl")
    assert set(values.gains) == {without(4, [2])}
    np.testing.assert_array_equal(values.gains["kk-k"], sound.gains["kk-k"])
    assert values.failed["kkkk"] == "what comes out is not finite" and np.isnan(values.difference("kkkk", "kk-k")[0])

    with torch.no_grad():
        weight[0, 0] = before
    values, forwards = run_coalitions(decoder, text_value(decoder, rows), coalitions, store=tmp_path / "values.jsonl")
    assert set(values.gains) == set(coalitions) and not values.failed and forwards.run > 0, "what failed is tried again"

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("out of memory\nand more")

    model.model.layers[1].self_attn.forward = broken
    values, _ = run_coalitions(decoder, text_value(decoder, rows), ["k--k", "kk-k", "km-k"])
    assert set(values.gains) == {"k--k", "km-k"} and values.failed == {"kk-k": "layer 1: out of memory"}


def test_halves_and_layers_in_letters() -> None:
    assert without(5, [1, 4]) == "k-kk-"
    assert without_halves(4, [0, 3, 4, 5]) == "ma-k"


def test_states_stay_within_their_memory(make_model: Any, load_plain: Any, rows: Any) -> None:
    """All 64 subsets of six layers: with room for 12 states never twice as many are alive (those in the making count too), else all are."""
    import gc

    import torch

    from slayer.importance.decoder import LoadedDecoder

    alive: list[int] = []

    class Watched(LoadedDecoder):
        calls = 0

        def normed(self, hidden: Any) -> Any:
            self.calls += 1
            if self.calls % 8 == 0:  # looking is slow
                states = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and one.shape == (2, 16, 16) and one.is_inference()]
                alive.append(len(states))
            return super().normed(hidden)

    decoder = Watched(load_plain(make_model(layers=6)))
    value = text_value(decoder, rows)
    coalitions = ["".join(letters) for letters in itertools.product("k-", repeat=6)]
    state_bytes = 2 * 16 * 16 * 4
    run_coalitions(decoder, value, coalitions)
    unbounded = max(alive)
    alive.clear()
    run_coalitions(decoder, value, coalitions, state_bytes=12 * state_bytes)
    assert unbounded >= 56 and max(alive) <= 2 * 12, (unbounded, max(alive))
