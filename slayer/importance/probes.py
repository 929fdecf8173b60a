"""Linear probes: at which depth a label can be read off the last token's state by a straight line.

The rule is that of Concept Depth (arXiv 2404.07066; code Luckfort/CD, main.py and utils.py). It is a profile over depth, not an order
of importance: high means the label is there.

Shape suffixes: B rows of a batch, L tokens of a row, D width of the residual stream, N texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slayer.data.benchmarks import Row, validation_rows
from slayer.data.order.packing import pack
from slayer.errors import DataError
from slayer.importance.decoder import Decoder
from slayer.importance.table import Measurement

if TYPE_CHECKING:
    from torch import Tensor

SET_KEY, PATH_KEY, ITEMS_KEY = "analysis.probe_set", "analysis.probe_path", "analysis.probe_items"
"""What a person types to choose the texts, and how many of them."""

TEST_SHARE = 0.4
LEAST_PER_CLASS = 20
ITERATIONS = 10_000
IGNORED = -100
LINES_TOLD = 5

EMBEDDING, BLOCK, NORM = "embedding", "block", "post_attention_norm"
SCORES = ("accuracy", "f1", "auc")
Reading = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeSet:
    """Texts with a label of 0 or 1 each."""

    name: str
    texts: tuple[str, ...]
    labels_N: NDArray[np.int64]
    fingerprint: str


def _boolq(row: Row) -> tuple[str, int]:
    return f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:", int(row["answer"])


def _sst2(row: Row) -> tuple[str, int]:
    return f"{row['sentence'].strip()}\nQuestion: Does this review praise the film?\nAnswer:", row["label"]


def _mrpc(row: Row) -> tuple[str, int]:
    return f"{row['sentence1']}\n{row['sentence2']}\nQuestion: Do the two sentences say the same?\nAnswer:", row["label"]


def _rte(row: Row) -> tuple[str, int]:
    return f"{row['sentence1']}\nQuestion: Does it follow that {row['sentence2']}\nAnswer:", 1 - row["label"]


SETS: dict[str, tuple[str, Callable[[Row], tuple[str, int]]]] = {
    "sst2": ("glue/sst2", _sst2),
    "boolq": ("boolq/none", _boolq),
    "mrpc": ("glue/mrpc", _mrpc),
    "rte": ("glue/rte", _rte),
}
"""Where each lies in the wheel, and text and label of a row: 872, 3,270, 408 and 277 texts. Label 1: praise, yes, the same, it follows.
Each ends in a question, as most sets of Concept Depth do: the last token has then read everything, and is the same one in all texts."""


def load_probe_set(name: str | None, path: str | None) -> ProbeSet:
    """A set by name, or a person's own JSON lines with "text" and "label" (0 or 1); `name` is then what to call it, None its file name.

    DataError for an unknown name, an unreadable file, or bad lines, by their numbers; AssetError when the question sets were not fetched.
    """
    if path is not None:
        pairs = _own_pairs(Path(path).expanduser())
        name = name or Path(path).stem
    elif name in SETS:
        dataset, pair_of = SETS[name]
        pairs = [pair_of(row) for row in validation_rows(dataset)]
    else:
        why = "no labelled texts are named" if name is None else f"there is no set of labelled texts {name!r}"
        raise DataError(
            f'{why}; there are: {", ".join(SETS)}, or JSON lines of your own, {{"text": "…", "label": 1}}\n    type: {SET_KEY}={next(iter(SETS))}'
        )
    digest = hashlib.sha256(json.dumps(pairs).encode())
    return ProbeSet(
        name=name, texts=tuple(text for text, _ in pairs), labels_N=np.array([label for _, label in pairs], np.int64), fingerprint=digest.hexdigest()
    )


def _own_pairs(path: Path) -> list[tuple[str, int]]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}\n    type: {PATH_KEY}=FILE.jsonl") from error
    pairs: list[tuple[str, int]] = []
    bad: list[str] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            pairs.append(_own_pair(line))
        except ValueError as error:
            bad.append(f"line {number}: {error}")
    if bad:
        more = f"\n    and {len(bad) - LINES_TOLD} more" if len(bad) > LINES_TOLD else ""
        raise DataError("\n    ".join([f'{path} has lines that are no {{"text": "…", "label": 0 or 1}}:', *bad[:LINES_TOLD]]) + more)
    if not pairs:
        raise DataError(f"{path} holds no labelled text\n    type: {PATH_KEY}=FILE.jsonl")
    return pairs


def _own_pair(line: bytes) -> tuple[str, int]:
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError("not UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    text, label = value.get("text"), value.get("label")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"text is {json.dumps(text, ensure_ascii=False)}")
    if isinstance(label, bool) or label not in (0, 1):
        raise ValueError(f"label is {json.dumps(label, ensure_ascii=False)}")
    return text, int(label)


def measure_probes(
    decoder: Decoder,
    tokenizer: Any,
    questions: ProbeSet,
    *,
    items: int,
    seed: int = 42,
    batch_tokens: int = 4096,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> Measurement:
    """Accuracy of a probe on each block's output; in `details` also at the post-attention norm, F1 and AUC, and on the embedding.

    Per layer and reading point, as in the code of Concept Depth: the state of each text's last token, features as they are, logistic
    regression with an L2 penalty (C = 1), trained on a random 60 %, judged on the other 40 %; F1 of label 1. Where that code reads only
    what post_attention_layernorm puts out, the block's output is read too; and the regression runs until it has converged, where the 100
    steps of that code leave it unfinished on deep layers. `errors` are binomial standard errors of the accuracy.

    At most `items` texts are drawn with the seed (all where there are fewer), cut in front to what the model can read, and packed
    `batch_tokens` to a batch without seeing each other. Each layer is asked for once. Only one layer's vectors are kept at a time.
    DataError when a class has fewer than 20 of the chosen texts.
    """
    chosen = _choose(questions, items, seed)
    labels_N = questions.labels_N[chosen]
    ids = [_token_ids(tokenizer, questions.texts[place], questions.name) for place in chosen]
    most_tokens = decoder.config.max_position_embeddings
    readings: dict[str, list[Reading]] = {EMBEDDING: [], BLOCK: [], NORM: []}
    for done, vectors in enumerate(last_states(decoder, [one[-most_tokens:] for one in ids], batch_tokens)):
        for point, vectors_ND in vectors.items():
            readings[point].append(probe(vectors_ND, labels_N, seed))
        if on_progress is not None:
            on_progress(f"probes, {questions.name}", done, decoder.n_layers)
    tested_N = _split(labels_N, labels_N, seed)[3]
    values = tuple(one["accuracy"] for one in readings[BLOCK])
    curves = {score: {point: [_plain(one[score]) for one in readings[point]] for point in (BLOCK, NORM)} for score in SCORES}
    return Measurement(
        score="probe", source=questions.name, values=values, errors=tuple(math.sqrt(value * (1 - value) / len(tested_N)) for value in values),
        failed={layer: "a state is not finite" for layer, value in enumerate(values) if math.isnan(value)},
        details={"set": questions.name, "items": len(chosen), "cut": sum(len(one) > most_tokens for one in ids),
                 "majority": float(max(tested_N.mean(), 1 - tested_N.mean())), **curves,
                 EMBEDDING: {score: _plain(value) for score, value in readings[EMBEDDING][0].items()}},
    )  # fmt: skip


def last_states(decoder: Decoder, ids: Sequence[Sequence[int]], batch_tokens: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """States of each text's last token by reading point, [N, D]: of the embedding, then of each layer, in arrays that the next one writes over."""
    import torch

    batches = _batches(ids, batch_tokens)
    block_ND, norm_ND = (np.empty((len(ids), decoder.config.hidden_size), np.float32) for _ in range(2))
    with torch.inference_mode():
        states = [decoder.embed(decoder.part(batch)) for batch in batches]
        for batch, hidden_BLD in zip(batches, states, strict=True):
            block_ND[batch.texts] = hidden_BLD[batch.rows, batch.places].float().cpu().numpy()
    yield {EMBEDDING: block_ND}
    for index in range(decoder.n_layers):
        with torch.inference_mode(), decoder.layer(index) as layer:
            for number, batch in enumerate(batches):
                part = decoder.part(batch)
                hidden_BLD = states[number] + layer.attention(states[number], part)
                last_ND = layer.module.post_attention_layernorm(hidden_BLD[batch.rows, batch.places])
                hidden_BLD = hidden_BLD + layer.mlp(hidden_BLD)
                norm_ND[batch.texts] = last_ND.float().cpu().numpy()
                block_ND[batch.texts] = hidden_BLD[batch.rows, batch.places].float().cpu().numpy()
                states[number] = hidden_BLD
        yield {BLOCK: block_ND, NORM: norm_ND}


def probe(vectors_ND: NDArray[np.float32], labels_N: NDArray[np.int64], seed: int) -> Reading:
    """Accuracy, F1 and AUC on the test part of a probe trained on the other; NaN where a vector is not finite."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

    if not np.isfinite(vectors_ND).all():
        return dict.fromkeys(SCORES, math.nan)
    train_ND, test_ND, train_N, test_N = _split(vectors_ND, labels_N, seed)
    classifier = LogisticRegression(max_iter=ITERATIONS).fit(train_ND, train_N)
    said_N = classifier.predict(test_ND)
    likely_N = classifier.predict_proba(test_ND)[:, 1]
    return {
        "accuracy": float(accuracy_score(test_N, said_N)),
        "f1": float(f1_score(test_N, said_N)),
        "auc": float(roc_auc_score(test_N, likely_N)),
    }


def _split(vectors_ND: NDArray[Any], labels_N: NDArray[np.int64], seed: int) -> Any:
    """Training vectors, test vectors, training labels, test labels."""
    from sklearn.model_selection import train_test_split

    return train_test_split(vectors_ND, labels_N, test_size=TEST_SHARE, random_state=seed)


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _choose(questions: ProbeSet, items: int, seed: int) -> NDArray[np.int64]:
    order = np.random.default_rng(seed).permutation(len(questions.texts))
    positive_N = questions.labels_N[order].cumsum()
    rarer_N = np.minimum(positive_N, np.arange(1, len(order) + 1) - positive_N)  # among the first 1, 2, 3 … drawn
    n_chosen = min(items, len(order))
    if n_chosen < 1 or rarer_N[n_chosen - 1] < LEAST_PER_CLASS:
        seen = int(rarer_N[n_chosen - 1]) if n_chosen > 0 else 0
        head = f"the {n_chosen} texts of {questions.name} hold {seen} of the rarer label, and a probe needs {LEAST_PER_CLASS} of each"
        if rarer_N[-1] < LEAST_PER_CLASS:
            raise DataError(f"{head}; there are no more than {rarer_N[-1]} in all {len(order)}\n    type: {SET_KEY}={next(iter(SETS))}, or add texts")
        enough = int(np.argmax(rarer_N >= LEAST_PER_CLASS)) + 1
        raise DataError(f"{head}\n    type: {ITEMS_KEY}={enough}   (or more)")
    return np.sort(order[:n_chosen])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Rows without labels, [B, L] each; the last token of text `texts[i]` is at row `rows[i]`, place `places[i]`."""

    input_ids_BL: Tensor
    labels_BL: Tensor
    positions_BL: Tensor
    documents_BL: Tensor
    texts: list[int]
    rows: list[int]
    places: list[int]


def _token_ids(tokenizer: Any, text: str, name: str) -> list[int]:
    """With whatever the tokenizer puts around a text by itself."""
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids:
        raise DataError(f"the tokenizer makes no token of {text!r} in {name}; leave that text out")
    return ids


def _batches(ids: Sequence[Sequence[int]], batch_tokens: int) -> list[_Batch]:
    """Texts packed into rows as long as the longest, the rows into batches."""
    row_tokens = max(map(len, ids))
    packing = pack(np.array([len(one) for one in ids], np.int64), row_tokens)
    in_rows = [packing.documents[start:stop].tolist() for start, stop in zip(packing.row_offsets, packing.row_offsets[1:], strict=False)]
    batch_rows = max(1, batch_tokens // row_tokens)
    return [_batch(ids, in_rows[start : start + batch_rows], row_tokens) for start in range(0, len(in_rows), batch_rows)]


def _batch(ids: Sequence[Sequence[int]], in_rows: Sequence[Sequence[int]], row_tokens: int) -> _Batch:
    import torch

    shape = (len(in_rows), row_tokens)
    inputs_BL, labels_BL = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
    positions_BL, documents_BL = np.zeros(shape, np.int64), np.full(shape, row_tokens, np.int64)
    texts, rows, places = [], [], []
    for row, numbers in enumerate(in_rows):
        at = 0
        for document, text in enumerate(numbers):
            stop = at + len(ids[text])
            inputs_BL[row, at:stop], positions_BL[row, at:stop], documents_BL[row, at:stop] = ids[text], np.arange(stop - at), document
            texts.append(text)
            rows.append(row)
            places.append(stop - 1)
            at = stop
        positions_BL[row, at:] = np.arange(row_tokens - at)
    return _Batch(
        input_ids_BL=torch.from_numpy(inputs_BL), labels_BL=torch.from_numpy(labels_BL), positions_BL=torch.from_numpy(positions_BL),
        documents_BL=torch.from_numpy(documents_BL), texts=texts, rows=rows, places=places,
    )  # fmt: skip
