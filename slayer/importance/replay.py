"""lm-eval's model object without a model behind it: what a task asks is noted first, and answered later from a table.

Importing this module imports torch and lm_eval, which takes seconds: import it where it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from slayer.errors import DataError
from slayer.evaluation.harness.lm import Request, SharedPrefixLM

Answer = tuple[float, bool]
"""Log-likelihood in nats of a continuation, and whether greedy decoding would give it."""


class ReplayLM(SharedPrefixLM):
    """Prompts, tokens and metrics are the harness' own; the answers are whatever it is given.

    The model is asked for its configuration only, so one on the meta device will do.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self._noted: list[Request] = []
        self._answers: Sequence[Answer] | None = None
        self._told = 0

    def note(self) -> list[Request]:
        """From now on requests are put into this list, and answered as if every token had a probability of 1 / e."""
        self._noted, self._answers = [], None
        return self._noted

    def replay(self, noted: list[Request], answers: Sequence[Answer]) -> None:
        """From now on the same requests in the same order get these answers; DataError when something else is asked."""
        self._noted, self._answers, self._told = noted, answers, 0

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[Answer]:
        """As the harness does it, but nothing is tokenised a second time."""
        if self._answers is None:
            return super().loglikelihood(requests)
        return self._tell([request.args for request in requests])

    def _loglikelihood_tokens(self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None) -> list[Answer]:
        if self._answers is None:
            self._noted += requests
            return [(-float(len(continuation)), False) for _, _, continuation in requests]
        return self._tell([text for text, _, _ in requests])

    def _tell(self, texts: Sequence[Any]) -> list[Answer]:
        """Answers to the next requests; `texts` are their arguments, None for the windows of a rolling log-likelihood."""
        assert self._answers is not None
        start, self._told = self._told, self._told + len(texts)
        if [text for text, _, _ in self._noted[start : self._told]] != list(texts):
            raise DataError("a task does not ask the same again, so layers cannot be compared by it; type tasks=[arc_easy,piqa]")
        return list(self._answers[start : self._told])
