"""Accuracy of a model without some of its layers: what lm-eval says of a model that really lacks them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from string import ascii_letters
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.config import DecodingConfig, SuiteConfig, TaskConfig
from slayer.data.random_model import byte_tokenizer
from slayer.errors import ConfigError, DataError, ModelError
from slayer.evaluation.harness import row_pass
from slayer.evaluation.harness.prefix_rows import groups_for_rows, prefix_tree
from slayer.evaluation.harness.scores import Scoring, score_task
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.importance.decoder import LoadedDecoder, StreamedDecoder
from slayer.importance.task_value import TaskValue
from slayer.importance.values import whole, without
from slayer.importance.walk import run_coalitions

VOCABULARY, LAYERS = 264, 4
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "mistral, every layer slides": {"family": "mistral", "sliding_window": 7},
    "qwen3, half of the layers slide": {"family": "qwen3", "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
}
SCORING = Scoring(precision="fp32", device=torch.device("cpu"), decoding=DecodingConfig())

COMMON = """
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
target_delimiter: ""
doc_to_text: "{{question}}"
"""
CHOICES = """
output_type: multiple_choice
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
"""
TASKS = {
    "choice": CHOICES + "metric_list: [{metric: acc}, {metric: acc_norm}]",
    "corpus": CHOICES + "metric_list: [{metric: mcc}]",
    "next": 'output_type: loglikelihood\ndoc_to_target: "{{likeliest}}"\nmetric_list: [{metric: acc}, {metric: perplexity}]',
    "rolling": 'output_type: loglikelihood_rolling\ndoc_to_target: "{{text}}"\nmetric_list: [{metric: bits_per_byte}]',
    "writing": 'output_type: generate_until\ndoc_to_target: "{{answer}}"\nmetric_list: [{metric: exact_match}]',
    "bits": """
output_type: loglikelihood
doc_to_target: "{{answer}}"
process_results: !function slayer.evaluation.harness.gold.gsm8k_bits
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
""",
}


def words(generator: random.Random, length: int) -> str:
    return "".join(generator.choice("abcd ") for _ in range(length - 1)) + "."


def likeliest(model: Any, question: str) -> str | None:
    """What the model itself would say next, where it is a letter or digit."""
    with torch.no_grad():
        token = int(model(torch.tensor([byte_tokenizer().encode(question)])).logits[0, -1].argmax())
    text = str(byte_tokenizer().decode([token]))
    return text if text.isalnum() and text.isascii() else None


@pytest.fixture(scope="module")
def model_of(make_model: Callable[..., Path], load_plain: Callable[..., Any]) -> Callable[..., Any]:
    """A fresh model of a family, in fp64, where a wrong mask cannot hide behind rounding."""

    def load(name: str = "llama", dtype: str = "float64") -> Any:
        return load_plain(make_model(dtype=dtype, layers=LAYERS, vocab_size=VOCABULARY, max_position_embeddings=96, **FAMILIES[name]))

    return load


@pytest.fixture(scope="module")
def task_folder(tmp_path_factory: pytest.TempPathFactory, model_of: Callable[..., Any]) -> Path:
    """A user's folder with the tasks above on twelve documents; some of them the model can answer."""
    folder, generator, model = tmp_path_factory.mktemp("tasks"), random.Random(0), model_of()
    passage = words(generator, 20)
    documents = []
    for number in range(12):
        start = passage if number % 3 else ""
        drawn = (start + "".join(generator.choices(ascii_letters, k=6 + 2 * number)) for _ in range(1000))
        question, said = next((question, said) for question in drawn if (said := likeliest(model, question)))
        choices = [words(generator, length) for length in generator.sample(range(1, 12), 3)]
        answers = {"answer": words(generator, 3 + number), "text": words(generator, 30 * (number + 1)), "likeliest": said if number % 2 else "x"}
        documents.append({"question": question, "choices": choices, "label": number % 3, **answers})
    file = folder / "documents.jsonl"
    file.write_text("\n".join(map(json.dumps, documents)), encoding="utf-8")
    for name, body in TASKS.items():
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{COMMON.replace('FILE', str(file))}{body}\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", str(folder / "datasets"))
        load(folder, *TASKS)
    return folder


def load(folder: Path, *names: str, **settings: Any) -> list[LoadedTask]:
    suite = SuiteConfig(name="trial", tasks={name: TaskConfig(**settings) for name in names})
    return load_tasks(suite, seed=0, questions="local", include_path=str(folder), confirm_run_unsafe_code=False)


@pytest.fixture
def loaded(task_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[LoadedTask]]:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(task_folder / "datasets"))
    return lambda *names, **settings: load(task_folder, *names, **settings)


def value_of(model: Any, tasks: Sequence[LoadedTask], **options: Any) -> TaskValue:
    return TaskValue(LoadedDecoder(model), byte_tokenizer(), tasks, name="trial", **options)


def smaller(model: Any, layer: int) -> Any:
    """A model that really has one layer less."""
    kept = [index for index in range(len(model.model.layers)) if index != layer]
    model.model.layers = torch.nn.ModuleList([model.model.layers[index] for index in kept])
    for index, module in enumerate(model.model.layers):
        module.self_attn.layer_idx = index
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
    model.config.num_hidden_layers = len(kept)
    return model


def by_the_harness(model: Any, tasks: Sequence[LoadedTask]) -> tuple[np.ndarray, float]:
    """Every item's main metric and the mean of the tasks' scores, by the model object of any other evaluation."""
    from slayer.evaluation.harness.lm import SharedPrefixLM

    lm = SharedPrefixLM(model, byte_tokenizer())
    metrics = [score_task(lm, one, SCORING).metrics[one.facts.metric] for one in tasks]
    signs = [1 if metric.higher_is_better else -1 for metric in metrics]
    items = np.concatenate([sign * metric.values_N for sign, metric in zip(signs, metrics, strict=True)])
    return items, float(np.mean([sign * metric.value for sign, metric in zip(signs, metrics, strict=True)]))


@pytest.mark.parametrize(("family", "row_tokens"), [*((family, 24) for family in FAMILIES), ("llama", 512)])
def test_accuracy_without_a_layer_is_that_of_a_model_that_lacks_it(model_of: Any, loaded: Any, family: str, row_tokens: int) -> None:
    tasks = loaded("choice", "next")
    value = value_of(model_of(family), tasks, row_tokens=row_tokens)
    coalitions = [whole(LAYERS), *(without(LAYERS, [layer]) for layer in range(LAYERS))]
    values, _ = run_coalitions(LoadedDecoder(model_of(family)), value, coalitions)
    assert value.unit == "accuracy" and not values.failed
    found = [values.gains[one] * 12 for one in coalitions]  # of each task's twelve items
    for layer, one in enumerate(coalitions, -1):
        items, score = by_the_harness(model_of(family) if layer < 0 else smaller(model_of(family), layer), tasks)
        np.testing.assert_allclose(found[layer + 1], items)
        assert values.value(one) == pytest.approx(score)
    assert len({tuple(items) for items in found}) > 2, "no layer matters here, so nothing was tested"


def test_some_questions_are_answered_right_and_some_are_not(model_of: Any, loaded: Any) -> None:
    """Else flags and choices that are always wrong would pass."""
    tasks = loaded("choice", "next")
    values, _ = run_coalitions(LoadedDecoder(model_of()), value_of(model_of(), tasks), [whole(LAYERS)])
    choices, flags = np.split(values.gains[whole(LAYERS)] * 12, 2)
    assert 0 < choices.sum() < 12 and 0 < flags.sum() < 12


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_of_a_question_do_not_depend_on_its_neighbours_in_a_row(model_of: Any, loaded: Any, family: str) -> None:
    """Against a forward pass of transformers over each question alone."""
    model, tasks, tokenizer = model_of(family), loaded("bits"), byte_tokenizer()
    value = value_of(model, tasks, row_tokens=200)
    assert len(value.parts) < 5 and all(part.n_tokens <= 200 for part in value.parts) and value.unit == "bits_per_byte"
    values, _ = run_coalitions(LoadedDecoder(model), value, [whole(LAYERS)])
    bits, n_bytes = [], []
    for doc in tasks[0].task.eval_docs:
        context, answer = tokenizer.encode(doc["question"]), tokenizer.encode(doc["answer"])
        with torch.no_grad():
            log_probabilities = torch.log_softmax(model(torch.tensor([context + answer])).logits[0, len(context) - 1 : -1], -1)
        bits.append(-float(log_probabilities[torch.arange(len(answer)), torch.tensor(answer)].sum()) / np.log(2))
        n_bytes.append(len((" " + doc["answer"]).encode()))
    np.testing.assert_allclose(values.gains[whole(LAYERS)], -np.array(bits) / sum(n_bytes))
    np.testing.assert_allclose(value.weights_U, np.array(n_bytes) / sum(n_bytes))
    assert values.value(whole(LAYERS)) == pytest.approx(-sum(bits) / sum(n_bytes))


def test_texts_longer_than_the_model_s_window_are_scored_as_the_harness_does(model_of: Any, loaded: Any) -> None:
    tasks = loaded("rolling", "bits")
    value = value_of(model_of(), tasks, row_tokens=120)
    values, _ = run_coalitions(LoadedDecoder(model_of()), value, [whole(LAYERS), without(LAYERS, [1])])
    for layer, one in ((None, whole(LAYERS)), (1, without(LAYERS, [1]))):
        _, score = by_the_harness(model_of() if layer is None else smaller(model_of(), layer), tasks)
        assert values.value(one) == pytest.approx(score)
    assert max(part.n_tokens for part in value.parts) <= 120


def test_choices_of_a_question_longer_than_a_row_share_it(model_of: Any, loaded: Any) -> None:
    tasks = loaded("choice", num_fewshot=1)
    value = value_of(model_of(), tasks, row_tokens=16)
    assert len(value.parts) <= 12 and min(part.n_tokens for part in value.parts) > 16
    assert value.n_tokens == sum(part.n_tokens for part in value.parts)
    values, _ = run_coalitions(LoadedDecoder(model_of()), value, [whole(LAYERS)])
    np.testing.assert_array_equal(values.gains[whole(LAYERS)] * 12, by_the_harness(model_of(), tasks)[0])


def test_a_streamed_model_has_the_bits_of_a_loaded_one(make_model: Any, model_of: Any, loaded: Any) -> None:
    model, tasks = model_of(dtype="float32"), loaded("choice", "next")
    folder = make_model(dtype="float32", layers=LAYERS, vocab_size=VOCABULARY, max_position_embeddings=96, **FAMILIES["llama"])
    streamed = StreamedDecoder(folder, "fp32")
    assert streamed.shell.device.type == "meta"
    decoders = LoadedDecoder(model), streamed
    values = [TaskValue(decoder, byte_tokenizer(), tasks, name="trial", row_tokens=64) for decoder in decoders]
    coalitions = ["kkkk", "k-kk", "a2mk"]
    (one, _), (other, _) = (run_coalitions(*both, coalitions) for both in zip(decoders, values, strict=True))
    assert values[0].fingerprint == values[1].fingerprint
    for coalition in coalitions:
        np.testing.assert_array_equal(one.gains[coalition], other.gains[coalition])


def test_readings_are_the_same_bits_when_the_head_runs_in_small_pieces(model_of: Any, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = LoadedDecoder(model_of())
    value = value_of(decoder.model, loaded("choice", "next"))
    with torch.inference_mode():
        states = decoder.embed(value.parts[0])
        expected = value.read(decoder, 0, states)
        monkeypatch.setattr(row_pass, "HEAD_LOGITS", 3 * VOCABULARY)
        np.testing.assert_allclose(value.read(decoder, 0, states), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("names", "why", "fix"),
    [
        (["choice", "writing"], "writing have the model write text", "tasks=[choice]"),
        (["writing"], "writing have the model write text", "tasks=[arc_easy,piqa]"),
        (["corpus"], "the score of corpus is no mean over items", "tasks=[arc_easy,piqa]"),
        (["next", "bits", "choice"], r"different kinds .* next \(acc\), bits \(bits_per_byte\), choice \(acc_norm\)", "tasks=[next,choice]"),
        ([], "no task whose accuracy could be lost", "tasks=[arc_easy,piqa], or suite=quick"),
    ],
)
def test_what_cannot_be_a_value_is_refused(model_of: Any, loaded: Any, names: list[str], why: str, fix: str) -> None:
    with pytest.raises(ConfigError, match=why) as refused:
        value_of(model_of(), loaded(*names) if names else [])
    (problem,) = refused.value.problems
    assert (problem.key, problem.value, problem.fix) == ("suite.tasks", names, fix)


def test_a_chat_template_is_followed_and_refused_where_there_is_none(model_of: Any, loaded: Any) -> None:
    from slayer.evaluation.harness.lm import SharedPrefixLM

    model, tasks, tokenizer = model_of(), loaded("choice"), byte_tokenizer()
    with pytest.raises(ModelError, match="leave out apply_chat_template"):
        value_of(model, tasks, apply_chat_template=True)
    tokenizer.chat_template = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
    value = TaskValue(LoadedDecoder(model), tokenizer, tasks, name="trial", apply_chat_template=True)
    assert value.fingerprint != value_of(model, tasks).fingerprint
    values, _ = run_coalitions(LoadedDecoder(model), value, [whole(LAYERS)])
    expected = score_task(SharedPrefixLM(model, tokenizer), tasks[0], replace(SCORING, apply_chat_template=True)).metrics["acc_norm"].values_N
    np.testing.assert_allclose(values.gains[whole(LAYERS)] * 12, expected)
    assert value.n_tokens > value_of(model, tasks).n_tokens


def test_a_task_that_asks_something_else_each_time_is_refused(model_of: Any, loaded: Any) -> None:
    tasks = loaded("choice")
    count = iter(range(1000))
    tasks[0].task.doc_to_text = lambda doc, *_: f"question {next(count)}"
    value = value_of(model_of(), tasks)
    with pytest.raises(DataError, match="does not ask the same again"):
        run_coalitions(LoadedDecoder(model_of()), value, [whole(LAYERS)])


def test_the_fingerprint_tells_samples_apart(model_of: Any, loaded: Any) -> None:
    model = model_of()
    prints = [
        value_of(model, tasks, row_tokens=row_tokens).fingerprint
        for tasks, row_tokens in (
            (loaded("choice"), 512), (loaded("choice"), 256), (loaded("choice", limit=5), 512), (loaded("choice", num_fewshot=1), 512),
            (loaded("next"), 512), (loaded("choice", "next"), 512), (loaded("next", "choice"), 512),
        )
    ]  # fmt: skip
    assert len(set(prints)) == len(prints) and value_of(model, loaded("choice")).fingerprint == prints[0]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=14), min_size=1, max_size=20), st.integers(1, 20))
def test_rows_hold_every_sequence_once_and_are_no_longer_than_they_may(sequences: list[list[int]], row_tokens: int) -> None:
    groups = groups_for_rows(sequences, row_tokens)
    assert sorted(number for group in groups for number in group) == list(range(len(sequences)))
    for group in groups:
        n_nodes = len({tuple(sequences[number][:end]) for number in group for end in range(1, len(sequences[number]) + 1)})
        assert prefix_tree([sequences[number] for number in group], [1] * len(group)).n_nodes == n_nodes
        assert n_nodes <= max(row_tokens, 2 * len(sequences[group[0]]))
