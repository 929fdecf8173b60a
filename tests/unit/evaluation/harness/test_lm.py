"""The fast model object against lm-eval's own on the same requests: the same log-likelihoods, the same greedy flags, the same text."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slayer.data.random_model import byte_tokenizer
from slayer.errors import DataError, ModelError

VOCABULARY = 264
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "mistral, every layer slides": {"family": "mistral", "sliding_window": 7},
    "qwen2": {"family": "qwen2"},
    "qwen3, half of the layers slide": {"family": "qwen3", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
}


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest, make_model: Callable[..., Path], load_plain: Callable[..., Any]) -> Any:
    return _model(make_model, load_plain, **FAMILIES[request.param])


@pytest.fixture
def llama(make_model: Callable[..., Path], load_plain: Callable[..., Any]) -> Any:
    return _model(make_model, load_plain, family="llama")


def _model(make_model: Callable[..., Path], load_plain: Callable[..., Any], family: str, **config: Any) -> Any:
    """In fp64, where a wrong mask cannot hide behind rounding."""
    folder = make_model(family, dtype="float64", layers=4, vocab_size=VOCABULARY, max_position_embeddings=96, **config)
    return load_plain(folder)


def harness(model: Any, batch_size: int = 4) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=byte_tokenizer(), batch_size=batch_size)


def fast(model: Any, **options: Any) -> Any:
    from slayer.evaluation.harness.lm import SharedPrefixLM

    return SharedPrefixLM(model, byte_tokenizer(), **options)


def asked(pairs: Sequence[tuple[str, str]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]


def told(texts: Sequence[str]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(texts)]


def words(generator: random.Random, length: int) -> str:
    return "".join(generator.choice("abc ") for _ in range(length - 1)) + "."


def questions(seed: int = 0) -> list[tuple[str, str]]:
    """Choices of one question, questions on one passage and one prompt, answers of one token, no context, too long, twice, one in another."""
    generator = random.Random(seed)
    prompt = words(generator, 30)
    pairs = [(prompt + words(generator, 12), " " + words(generator, length)) for length in (1, 5, 9)]
    for _ in range(3):
        question = prompt + words(generator, 15)
        pairs += [(question, answer) for answer in (" yes", " no", " yes, sir", "a", "b", "c")]
    pairs += [(words(generator, length), words(generator, 4)) for length in (1, 2, 40)]
    pairs += [("", words(generator, 6)), ("", "a"), (words(generator, 200), words(generator, 9)), (words(generator, 93), " end")]
    pairs += [pairs[0], pairs[5], (words(generator, 10), words(generator, 96))]
    return pairs


def assert_same(found: Sequence[tuple[float, bool]], expected: Sequence[tuple[float, bool]], tolerance: float = 1e-6) -> None:
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([nats for nats, _ in found], [nats for nats, _ in expected], rtol=0, atol=tolerance)


@contextmanager
def memory_for(model: Any, tokens: int) -> Iterator[list[int]]:
    """A model that runs out of memory over more than so many tokens; gives the sizes it was asked for."""
    import torch

    sizes: list[int] = []

    def refuse(module: Any, arguments: Any, keywords: dict[str, Any]) -> None:
        sizes.append(keywords["input_ids"].numel())
        if sizes[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = model.model.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("batch_tokens", [17, 64, 4096])
def test_log_likelihoods_are_the_harness_s(model: Any, batch_tokens: int) -> None:
    requests = asked(questions())
    assert_same(fast(model, batch_tokens=batch_tokens).loglikelihood(requests), harness(model).loglikelihood(requests))


def test_some_answers_are_greedy(llama: Any) -> None:
    """A flag that is always false would agree with the harness on random answers."""
    import torch

    context = [5, 6, 7]
    likeliest = llama.generate(torch.tensor([context]), max_new_tokens=3, do_sample=False, eos_token_id=None)[0, 3:].tolist()
    other = (likeliest[2] + 1) % VOCABULARY
    requests = [(None, context, answer) for answer in (likeliest, [*likeliest[:2], other], likeliest[:1], [other])]
    found = fast(llama)._loglikelihood_tokens(requests)
    assert_same(found, harness(llama)._loglikelihood_tokens(requests, disable_tqdm=True))
    assert [greedy for _, greedy in found] == [True, False, True, other == likeliest[0]]


@pytest.mark.parametrize("batch_tokens", [50, 4096])
def test_rolling_log_likelihoods_are_the_harness_s(model: Any, batch_tokens: int) -> None:
    generator = random.Random(1)
    requests = told([words(generator, length) for length in (1, 5, 95, 96, 97, 250)] + ["", "again", "again"])
    found = fast(model, batch_tokens=batch_tokens).loglikelihood_rolling(requests)
    np.testing.assert_allclose(found, harness(model).loglikelihood_rolling(requests), rtol=0, atol=1e-6)


def test_single_precision_agrees_to_rounding(llama: Any) -> None:
    import torch

    requests, single = asked(questions()), llama.to(torch.float32)
    expected = harness(single).loglikelihood(requests)
    assert_same(fast(single).loglikelihood(requests), expected, tolerance=1e-6 * max(abs(nats) for nats, _ in expected))


def test_the_same_bits_again_and_in_any_order(llama: Any) -> None:
    import torch

    llama = llama.to(torch.float32)
    pairs = questions()
    first = fast(llama, batch_tokens=64).loglikelihood(asked(pairs))
    assert fast(llama, batch_tokens=64).loglikelihood(asked(pairs)) == first
    order = random.Random(3).sample(range(len(pairs)), len(pairs))
    shuffled = fast(llama, batch_tokens=64).loglikelihood(asked([pairs[index] for index in order]))
    assert shuffled == [first[index] for index in order]


def test_shared_beginnings_are_computed_once(llama: Any) -> None:
    prompt = "a" * 60
    pairs = [(prompt + question, answer) for question in ("b?", "c?") for answer in (" yes", " no", "x", "y")]
    lm = fast(llama, batch_tokens=32)
    with memory_for(llama, 10_000) as sizes:
        lm.loglikelihood(asked(pairs))
    # the prompt, two questions of two tokens, and behind each " ye" with " n" (the last token of an answer is never read)
    assert sum(sizes) == 60 + 2 * (2 + 4)
    assert max(sizes) <= 32


def test_progress_ends_with_all_requests(llama: Any) -> None:
    seen: list[tuple[int, int]] = []
    pairs = questions()
    fast(llama, batch_tokens=64, on_progress=lambda done, total: seen.append((done, total))).loglikelihood(asked(pairs))
    assert len(seen) > 3 and sorted(seen) == seen and seen[-1] == (len(pairs), len(pairs))


def test_out_of_memory_halves_the_rows_and_goes_on(llama: Any) -> None:
    requests, halved = asked(questions()), []
    lm = fast(llama, batch_tokens=128, on_halved=halved.append)
    with memory_for(llama, 40):
        found = lm.loglikelihood(requests)
    assert halved == [64, 32] and lm.batch_tokens == 32
    assert_same(found, harness(llama).loglikelihood(requests))


def test_no_memory_at_all_is_said(llama: Any) -> None:
    with memory_for(llama, 8), pytest.raises(ModelError, match=r"out of memory.*precision=bf16"):
        fast(llama, batch_tokens=128).loglikelihood(asked(questions()))


def test_other_errors_of_a_model_are_not_taken_for_memory(llama: Any) -> None:
    def broken(module: Any, arguments: Any) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    handle = llama.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="mat1"):
        fast(llama).loglikelihood(asked(questions()))
    handle.remove()


def test_an_answer_without_tokens_is_refused(llama: Any) -> None:
    with pytest.raises(DataError, match="0 tokens"):
        fast(llama).loglikelihood(asked([("abc", "")]))
    with pytest.raises(DataError, match="97 tokens"):
        fast(llama).loglikelihood(asked([("abc", "d" * 97)]))


def test_no_requests_no_answers(llama: Any) -> None:
    assert fast(llama).loglikelihood([]) == [] and fast(llama).loglikelihood_rolling([]) == []


def _generating(contexts: Sequence[str], tokens: int) -> list[Any]:
    from lm_eval.api.instance import Instance

    options = {"until": ["."], "max_gen_toks": tokens, "do_sample": False}
    return [Instance("generate_until", {}, (context, options), number) for number, context in enumerate(contexts)]


def test_generated_text_is_the_harness_s_also_when_batches_are_halved(llama: Any) -> None:
    generator = random.Random(2)
    requests = _generating([words(generator, length) for length in (3, 9, 20, 20, 31)], 8)
    seen: list[tuple[int, int]] = []
    expected = harness(llama).generate_until(requests)
    assert fast(llama, batch_tokens=512, on_progress=lambda *progress: seen.append(progress)).generate_until(requests) == expected
    assert seen[-1] == (5, 5)
    halved: list[int] = []
    with memory_for(llama, 100):
        assert fast(llama, batch_tokens=512, on_halved=halved.append).generate_until(requests) == expected
    assert halved
    with memory_for(llama, 8), pytest.raises(ModelError, match="one prompt of 31 tokens"):
        fast(llama, batch_tokens=512).generate_until(requests[-1:])


def _tiny(name: str, **config: Any) -> Any:
    import torch
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        shape = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, max_position_embeddings=96, initializer_range=0.2, **config)
        return transformers.AutoModelForCausalLM.from_config(shape, dtype=torch.float64).eval()


def test_a_family_with_a_head_of_its_own_is_scored_through_its_own_forward_pass() -> None:
    gemma = _tiny(
        "Gemma2", hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=1, head_dim=8,
        sliding_window=7, final_logit_softcapping=2.0, attn_implementation="eager",
    )  # fmt: skip
    requests = asked(questions())
    assert_same(fast(gemma, batch_tokens=64).loglikelihood(requests), harness(gemma).loglikelihood(requests))


def test_a_family_that_cannot_be_run_this_way_is_refused() -> None:
    bloom = _tiny("Bloom", hidden_size=16, n_layer=2, n_head=2)
    with pytest.raises(ModelError, match=r"bloom.*type backend=harness"):
        fast(bloom)


def test_attention_that_ignores_masks_is_refused(llama: Any) -> None:
    llama.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ModelError, match="flash_attention_2"):
        fast(llama)


def _dola() -> Any:
    from slayer.evaluation.dola import Dola

    return Dola(base_layers=(0, 1), hidden_layers=(1, 2), alpha=0.1, divergence="jensen_shannon")


def test_answers_are_scored_with_dola(llama: Any) -> None:
    import torch

    expected = []
    for context, answer in [([5, 6, 7], [8, 9]), ([5, 6, 7], [8, 3, 4]), ([1], [2])]:
        with torch.no_grad():
            states = llama(torch.tensor([context + answer]), output_hidden_states=True).hidden_states
        scores_TV = _dola().scores_NV(states, None, llama.get_output_embeddings())
        places = range(len(context) - 1, len(context) + len(answer) - 1)
        expected.append(sum(float(scores_TV[place, token]) for place, token in zip(places, answer, strict=True)))
    lm = fast(llama, batch_tokens=16, dola=_dola())
    found = lm._loglikelihood_tokens([(None, [5, 6, 7], [8, 9]), (None, [5, 6, 7], [8, 3, 4]), (None, [1], [2])])
    np.testing.assert_allclose([nats for nats, _ in found], expected, rtol=1e-6)
    assert expected != pytest.approx([nats for nats, _ in fast(llama)._loglikelihood_tokens([(None, [5, 6, 7], [8, 9])] * 3)])


def test_dola_s_text_is_the_same_from_both_backends_and_only_one_scores_answers_with_it(llama: Any) -> None:
    from slayer.evaluation.harness.lm import plain_lm

    requests = _generating(["abc", "b a"], 6)
    plain = plain_lm(llama, byte_tokenizer(), batch_size=2, dola=_dola())
    assert fast(llama, dola=_dola()).generate_until(requests) == plain.generate_until(requests) != fast(llama).generate_until(requests)
    with pytest.raises(ModelError, match="type backend=shared_prefix"):
        plain.loglikelihood(asked(questions()))


def test_the_harness_backend_is_quiet_counts_and_bounds_its_probe(llama: Any, capfd: pytest.CaptureFixture[str]) -> None:
    from slayer.evaluation.harness import lm as module

    seen: list[tuple[int, int]] = []
    plain = module.plain_lm(llama, byte_tokenizer(), on_progress=lambda done, total: seen.append((done, total)))
    requests = asked(questions())
    capfd.readouterr()
    found = plain.loglikelihood(requests)
    rolling = plain.loglikelihood_rolling(told(["abc", "de"]))
    assert capfd.readouterr() == ("", "")
    assert_same(found, harness(llama).loglikelihood(requests))
    np.testing.assert_allclose(rolling, harness(llama).loglikelihood_rolling(told(["abc", "de"])), rtol=0, atol=1e-6)
    assert seen[len(requests) - 1] == (len(requests), len(requests)) and seen[-1] == (2, 2)
    assert plain.max_batch_size == 64
