"""Accuracy on benchmark tasks as a value function.

lm-eval decides what is asked and what an answer is worth, as in any other evaluation: every task is played through once to note its requests,
and once more for each coalition, with the answers that were read from its states. The requests are laid out in rows that share
beginnings (evaluation/harness/prefix_rows.py); unlike there a row sees nothing of the rows before it, since keys and values of one layer
are no use to a model without that layer.

Shape suffixes: T nodes of a row, M scored tokens of it, N places in it where tokens are scored, R requests of it, D width of the residual
stream, U items of all tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from slayer.config import DecodingConfig
from slayer.data.storing.tokens import tokenizer_hash
from slayer.errors import ConfigError, ModelError, Problem
from slayer.evaluation.harness.prefix_rows import PrefixTree, Row, groups_for_rows, prefix_tree
from slayer.evaluation.harness.row_pass import attention_masks, log_softmax, token_scores
from slayer.evaluation.harness.scores import Scoring, score_task
from slayer.evaluation.harness.tasks import LoadedTask
from slayer.evaluation.items import MetricItems
from slayer.importance.decoder import Decoder, Part
from slayer.importance.values import Array

if TYPE_CHECKING:
    from torch import Tensor

    from slayer.evaluation.harness.lm import Request

FORMAT = 1
"""Raised when the same questions are scored by another rule."""

KEY, INSTEAD = "suite.tasks", "tasks=[arc_easy,piqa]"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One row of questions. Its scored tokens [M] are sorted by place; `places_N` are the nodes where they are scored."""

    tree: PrefixTree
    requests_R: NDArray[np.int64]
    """Numbers of the requests among those of all tasks."""
    places_N: NDArray[np.int64]
    place_M: NDArray[np.int64]
    targets_M: NDArray[np.int64]
    owner_M: NDArray[np.int64]
    """Which request of the row a token belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A task, what it asks, and how its items are weighed: v(S) is the mean over tasks of Σ values · scale."""

    loaded: LoadedTask
    requests: list[Request]
    scale: float
    weights_U: Array


class TaskValue:
    """v = the mean of the tasks' scores; the units are the items of all tasks, in the tasks' order, with 1 / items of the task each.

    A task's score is its main metric; `unit` is accuracy or the common metric's name, and a metric of which less is better counts negative.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Any, tasks: Sequence[LoadedTask], *, name: str, apply_chat_template: bool = False, row_tokens: int = 512
    ) -> None:
        """`name` is the suite's. Rows have at most `row_tokens` tokens, but for questions that are longer (see groups_for_rows).

        ConfigError for tasks whose items cannot be scored one by one from log-likelihoods, for tasks of different metrics and for no tasks;
        ModelError for a chat template that the tokenizer does not have; DataError for an answer without tokens.
        """
        from slayer.evaluation.harness.lm import read_tokens
        from slayer.importance.replay import ReplayLM

        self.floor: float | None = None
        self.source, self.unit = name, _unit(tasks)
        if apply_chat_template and tokenizer.chat_template is None:
            raise ModelError("the tokenizer has no chat template; leave out apply_chat_template")
        self._scoring = Scoring(
            precision=str(decoder.dtype), device=decoder.device, decoding=DecodingConfig(), apply_chat_template=apply_chat_template
        )
        self._lm = ReplayLM(_shell(decoder), tokenizer)
        self._tasks = self._asked(tasks)
        requests = [request for one in self._tasks for request in one.requests]
        sequences, continuations = read_tokens(requests, self._lm.max_length), [request[2] for request in requests]
        rows = [_row(group, sequences, continuations) for group in groups_for_rows(sequences, row_tokens)]
        self.parts: Sequence[Part] = _Parts(decoder, rows)
        self._rows, self._n_requests = rows, len(requests)
        self.weights_U = np.concatenate([one.weights_U for one in self._tasks])
        self.fingerprint = _fingerprint(tasks, tokenizer, self._scoring, row_tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens that go through the model for one coalition."""
        return sum(row.tree.n_nodes for row in self._rows)

    def read(self, decoder: Decoder, place: int, hidden_BLD: Tensor) -> Array:
        """Log-likelihood in nats and greedy flag (0 or 1) of every request of a row, [R, 2]."""
        import torch

        row = self._rows[place]
        kept_ND = decoder.normed(hidden_BLD)[0, torch.from_numpy(row.places_N).to(decoder.device)]
        targets_M = torch.from_numpy(row.targets_M).to(decoder.device)
        scores_M, greedy_M = token_scores(
            lambda start, stop: log_softmax(decoder.head(kept_ND[start:stop])), row.place_M, targets_M, decoder.config.vocab_size
        )
        n_requests = len(row.requests_R)
        nats_R = np.bincount(row.owner_M, weights=scores_M, minlength=n_requests)
        missed_R = np.bincount(row.owner_M[~greedy_M], minlength=n_requests)
        return np.stack([nats_R, missed_R == 0], axis=1).astype(np.float64)

    def gains(self, readings: Sequence[Array]) -> Array:
        """Every item's value of its task's main metric, over the items of the task: lm-eval's own verdict on these answers, [U]."""
        answers = np.empty((self._n_requests, 2))
        for row, reading in zip(self._rows, readings, strict=True):
            answers[row.requests_R] = reading
        gains, at = [], 0
        for one in self._tasks:
            told = [(float(nats), bool(greedy)) for nats, greedy in answers[at : at + len(one.requests)]]
            at += len(told)
            self._lm.replay(one.requests, told)
            gains.append(one.scale * self._metric(one.loaded).values_N)
        return np.concatenate(gains)

    def _metric(self, loaded: LoadedTask) -> MetricItems:
        return score_task(self._lm, loaded, self._scoring).metrics[loaded.facts.metric]

    def _asked(self, tasks: Sequence[LoadedTask]) -> list[_Asked]:
        """Play every task through once, to see what it asks and how its metric adds up."""
        found: list[_Asked] = []
        unfit = []
        for loaded in tasks:
            requests = self._lm.note()
            metric = self._metric(loaded)
            if metric.aggregation not in ("mean", "ratio"):
                unfit.append(loaded.facts.task)
                continue
            weights_U = metric.weights_N if metric.weights_N is not None else np.ones(len(metric.values_N))
            total = float(weights_U.sum())
            scale = (1 if metric.higher_is_better else -1) / total
            found.append(_Asked(loaded=loaded, requests=requests, scale=scale, weights_U=weights_U / total))
        if unfit:
            why = f"the score of {_listed(unfit)} is no mean over items, so what an item loses without a layer cannot be said"
            raise ConfigError([_refused(tasks, unfit, why)])
        return found


def _shell(decoder: Any) -> Any:
    """The transformers model, of a streamed one without its weights."""
    return decoder.shell if decoder.streamed else decoder.model


class _Parts(Sequence[Part]):
    """The rows as the decoder takes them, made when they are asked for: their masks grow with the square of a row, and rows may be many."""

    def __init__(self, decoder: Decoder, rows: Sequence[_Row]) -> None:
        self._decoder, self._rows = decoder, rows
        self._last: tuple[int, Part] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: Any) -> Any:
        """Row number `place`; the last one is kept, as a walk through the layers asks for it again and again."""
        if self._last is None or self._last[0] != place:
            self._last = (place, _part(self._decoder, self._rows[place].tree))
        return self._last[1]


def _part(decoder: Decoder, tree: PrefixTree) -> Part:
    import torch

    nothing_K = np.empty(0, np.int64)
    masks = attention_masks(decoder, tree, Row(start=0, stop=tree.n_nodes, carried_K=nothing_K, places_K=nothing_K))
    return decoder.tree_part(torch.from_numpy(tree.tokens_N)[None], torch.from_numpy(tree.depths_N)[None], masks)


def _row(group: Sequence[int], sequences: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> _Row:
    """A group of requests as a row: what the model reads of each, and the continuation that is scored."""
    tree = prefix_tree([sequences[number] for number in group], [len(continuations[number]) for number in group])
    nodes_M = np.concatenate(tree.tails)
    order_M = np.argsort(nodes_M, kind="stable")
    places_N, place_M = np.unique(nodes_M[order_M], return_inverse=True)
    targets_M = np.concatenate([np.asarray(continuations[number], np.int64) for number in group])
    owner_M = np.repeat(np.arange(len(group)), [len(tail) for tail in tree.tails])
    return _Row(
        tree=tree, requests_R=np.array(group, np.int64), places_N=places_N, place_M=place_M, targets_M=targets_M[order_M], owner_M=owner_M[order_M]
    )


def _unit(tasks: Sequence[LoadedTask]) -> str:
    """What v is measured in; ConfigError where the tasks have no such thing in common or write text."""
    if not tasks:
        raise ConfigError([Problem(key=KEY, value=[], why="there is no task whose accuracy could be lost", fix=f"{INSTEAD}, or suite=quick")])
    if writing := [one.facts.task for one in tasks if one.facts.generates]:
        why = f"{_listed(writing)} have the model write text, and layers are compared by answers that are only scored"
        raise ConfigError([_refused(tasks, writing, why)])
    metrics = {one.facts.task: one.facts.metric.split(",")[0] for one in tasks}
    units = {name: "accuracy" if metric.startswith("acc") else metric for name, metric in metrics.items()}
    if len(set(units.values())) > 1:
        first = units[tasks[0].facts.task]
        others = [name for name, unit in units.items() if unit != first]
        shown = ", ".join(f"{name} ({metrics[name]})" for name in metrics)
        raise ConfigError([_refused(tasks, others, f"metrics of different kinds have no mean: {shown}")])
    return next(iter(units.values()))


def _refused(tasks: Sequence[LoadedTask], unfit: Sequence[str], why: str) -> Problem:
    fit = [one.facts.task for one in tasks if one.facts.task not in unfit]
    return Problem(key=KEY, value=[one.facts.task for one in tasks], why=why, fix=f"tasks=[{','.join(fit)}]" if fit else INSTEAD)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _fingerprint(tasks: Sequence[LoadedTask], tokenizer: Any, scoring: Scoring, row_tokens: int) -> str:
    asked = [[one.facts.task, one.facts.metric, one.fingerprint, one.indices_N.tolist()] for one in tasks]
    template = tokenizer.chat_template if scoring.apply_chat_template else None
    whole = ["tasks", FORMAT, asked, tokenizer_hash(tokenizer), str(template), row_tokens]
    return hashlib.sha256(json.dumps(whole).encode()).hexdigest()
