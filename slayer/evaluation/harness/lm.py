"""Models as lm-eval sees them: the fast one, which computes shared beginnings once, and the harness' own.

`SharedPrefixLM` is lm-eval's Hugging Face model in everything that decides what is asked (tokens, BOS, truncation from the left, rolling
windows, chat templates, generation); only how log-likelihoods are computed is its own. All requests of a call become one tree of
beginnings (prefix_rows.py), which goes through the model in full rows without padding (row_pass.py).

Importing this module imports torch and lm_eval, which takes seconds: import it where it is used.

Shape suffixes: M scored tokens, B rows of a batch, L tokens of a row of it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from slayer.errors import DataError, ModelError
from slayer.evaluation.harness.prefix_rows import PrefixTree, Row, next_row, prefix_tree
from slayer.evaluation.harness.row_pass import carry, run_row
from slayer.surgery.families import FAMILIES

if TYPE_CHECKING:
    from slayer.evaluation.dola import Dola
    from slayer.evaluation.harness.row_pass import Carried

OnProgress = Callable[[int, int], None]
Request = tuple[Any, list[int], list[int]]

CPU_ROW_TOKENS = 320
CUDA_ROW_TOKENS = (512, 4096)
"""Attention over a row is dense, so its cost grows with the square of the row; beyond these sizes nothing is won by larger products."""
LEAST_ROW_TOKENS = 16
TOKENS_PER_GENERATED_ROW = 40
"""A batch of prompts to be continued has so many fewer rows than a row has tokens: 8 on a CPU."""
PLAIN_LOGITS_BYTES = 2 << 30
"""Logits of one batch of the harness' own backend on a CPU; its probe of a batch size would take all the memory there is."""


class SharedPrefixLM(HFLM):  # type: ignore[misc]
    """lm-eval's model object around a transformers causal LM, several times faster on log-likelihoods.

    Scores are those of `HFLM` up to rounding, whatever the order of the requests, and the same bits every time. `batch_tokens` is the
    length of a row in tokens (None: chosen for the device); it is halved, and `on_halved` told the new one, when memory runs out.
    `on_progress` is told (requests done, requests in all). With `dola` answers are scored, and text is generated, by its contrast of
    layers. The model stays on its device and is put into evaluation mode. ModelError when it cannot be run this way or not even a few
    tokens fit into memory; DataError for a request without tokens to score.
    """

    batch_size_per_gpu: int

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        batch_tokens: int | None = None,
        dola: Dola | None = None,
        on_progress: OnProgress | None = None,
        on_halved: Callable[[int], None] | None = None,
    ) -> None:
        self.batch_tokens = batch_tokens or default_batch_tokens(model)
        self.dola: Dola | None = None
        self.on_progress, self.on_halved = on_progress, on_halved
        _quieten_harness()
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=max(1, self.batch_tokens // TOKENS_PER_GENERATED_ROW))
        self._generated = self._to_generate = 0
        attention = getattr(model.config, "_attn_implementation", "sdpa")
        if attention not in ("sdpa", "eager"):
            raise ModelError(f"the model's attention is {attention}, which takes no mask; load it with sdpa attention, or type backend=harness")
        if model.config.model_type not in FAMILIES:
            self._check_unknown_model()
        self.dola = dola

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether greedy decoding would give it) of each request's continuation behind its context."""
        return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood in nats of each request's whole text, by the harness' windows; all of them are scored together."""
        windows: list[Request] = []
        owners = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(pair)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (nats, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[owner] += nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = True, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """What `HFLM` has under this name: requests are (text, context tokens, continuation tokens)."""
        if not requests:
            return []
        tree = prefix_tree(read_tokens(requests, self.max_length), [len(request[2]) for request in requests])
        counts = np.array([len(tail) for tail in tree.tails])
        nodes_M, targets_M = np.concatenate(tree.tails), np.concatenate([request[2] for request in requests]).astype(np.int64)
        last_nodes = np.sort([tail[-1] for tail in tree.tails])
        order_M = np.argsort(nodes_M, kind="stable")
        scores_M, greedy_M = np.empty(len(nodes_M)), np.empty(len(nodes_M), bool)
        for begin, end, scores, greedy, row in self._scored_rows(tree, nodes_M[order_M], targets_M[order_M]):
            scores_M[order_M[begin:end]], greedy_M[order_M[begin:end]] = scores, greedy
            if self.on_progress is not None:
                self.on_progress(int(np.searchsorted(last_nodes, row.stop)), len(requests))
        sums = np.bincount(np.repeat(np.arange(len(requests)), counts), weights=scores_M)
        all_greedy = np.logical_and.reduceat(greedy_M, np.cumsum(counts) - counts)
        answers = [(float(value), bool(is_greedy)) for value, is_greedy in zip(sums, all_greedy, strict=True)]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, answer)
        return answers

    def _scored_rows(
        self, tree: PrefixTree, nodes_M: NDArray[np.int64], targets_M: NDArray[np.int64]
    ) -> Iterator[tuple[int, int, NDArray[np.float64], NDArray[np.bool_], Row]]:
        """Row after row: which of the scored tokens (sorted by node) it held, their log-scores, and whether each is the likeliest."""
        carried: Carried = []
        row = next_row(tree, None, self.batch_tokens)
        while row is not None:
            begin, end = (int(at) for at in np.searchsorted(nodes_M, [row.start, row.stop]))
            found = self._row(tree, row, carried, nodes_M[begin:end], targets_M[begin:end])
            if found is None:
                self._halve(row)
                row = row.shortened(self.batch_tokens)
                continue
            scores, greedy, carried = found
            yield begin, end, scores, greedy, row
            row = next_row(tree, row, self.batch_tokens)

    def _row(
        self, tree: PrefixTree, row: Row, carried: Carried, nodes_M: NDArray[np.int64], targets_M: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_], Carried] | None:
        """Scores of one row and what the next one carries over; None when memory runs out, with nothing of the attempt left in it."""
        try:
            scores, greedy, cache = run_row(self.model, tree, row, carried, nodes_M, targets_M, self.dola)
            following = next_row(tree, row, self.batch_tokens)
            return scores, greedy, carry(cache, following.places_K) if following is not None else []
        except (MemoryError, RuntimeError) as error:  # torch's OutOfMemoryError is a RuntimeError
            if not _is_out_of_memory(error):
                raise
            return None

    def _halve(self, row: Row) -> None:
        tokens = min(self.batch_tokens, row.stop - row.start)
        if tokens // 2 < LEAST_ROW_TOKENS:
            raise ModelError(
                f"out of memory: not even {tokens} tokens behind {len(row.carried_K)} others fit beside the model on {self.device}; "
                "type precision=bf16, or a lower num_fewshot=N"
            )
        self.batch_tokens = tokens // 2
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self.on_halved is not None:
            self.on_halved(self.batch_tokens)

    def _check_unknown_model(self) -> None:
        """An architecture that slayer does not know may have its own idea of masks and positions: compare it with a plain pass first."""
        size = min(self.model.config.get_text_config().vocab_size, 1000)
        tokens = np.random.default_rng(0).integers(0, size, 12).tolist()
        requests: list[Request] = [(None, tokens[:cut], tokens[cut : cut + 3][::-1]) for cut in (4, 6, 9)]
        before = self.on_progress, self.batch_tokens
        self.on_progress, self.batch_tokens = None, 5  # several rows, so that keys and values are carried over
        try:
            found = [nats for nats, _ in self._loglikelihood_tokens(requests)]
        except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise ModelError(f"{self.model.config.model_type} models cannot be run over rows with shared beginnings; type backend=harness") from error
        finally:
            self.on_progress, self.batch_tokens = before
        expected = [nats for nats, _ in super()._loglikelihood_tokens(requests, disable_tqdm=True)]
        if not np.allclose(found, expected, rtol=0.05, atol=0.05):
            raise ModelError(f"{self.model.config.model_type} models score differently over rows with shared beginnings; type backend=harness")

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """Continuations as text, by the harness' own rules."""
        self._generated, self._to_generate = 0, len(requests)
        return super().generate_until(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        """One batch of the harness; halved when memory runs out."""
        try:
            with _decoding(self.model, self.dola):
                tokens_BL: Tensor | None = super()._model_generate(context, max_length, stop, **options)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            tokens_BL = None
        if tokens_BL is None:
            return self._generate_halves(context, max_length, stop, **options)
        self._generated += len(context)
        if self.on_progress is not None:
            self.on_progress(self._generated, self._to_generate)
        return tokens_BL

    def _generate_halves(self, context: Tensor, max_length: int, stop: list[str], **options: Any) -> Tensor:
        half = len(context) // 2
        if half == 0:
            raise ModelError(f"out of memory: one prompt of {context.shape[1]} tokens does not fit beside the model; type precision=bf16")
        if half < self.batch_size_per_gpu:
            self.batch_size_per_gpu = half
            if self.on_halved is not None:
                self.on_halved(half * TOKENS_PER_GENERATED_ROW)
        mask_BL = options.pop("attention_mask")
        parts = [
            self._model_generate(context[part], max_length, stop, attention_mask=mask_BL[part], **options)
            for part in (slice(0, half), slice(half, None))
        ]
        longest = max(part.shape[1] for part in parts)
        return torch.cat([F.pad(part, (0, longest - part.shape[1]), value=self.tokenizer.pad_token_id) for part in parts])


def read_tokens(requests: Sequence[Request], longest: int) -> list[list[int]]:
    """What a model of `longest` positions reads of each request: context and continuation but for the last token, cut from the left.

    The last token is never read: its log-likelihood comes from the one before. DataError for a request without tokens to score.
    """
    for text, context, continuation in requests:
        if not context or not 0 < len(continuation) <= longest:
            shown = repr(text if text is None else text[1])[:80]
            raise DataError(f"a question's answer has {len(continuation)} tokens, where 1 to {longest} can be scored: {shown}; leave out its task")
    return [(context + continuation)[-(longest + 1) : -1] for _, context, continuation in requests]


class PlainLM(HFLM):  # type: ignore[misc]
    """lm-eval's own Hugging Face backend, without its output and with a bound on the memory that its probe of a batch size may take."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int | str, dola: Dola | None, on_progress: OnProgress | None) -> None:
        _quieten_harness()
        # A softmax in bf16 would round log-likelihoods to two or three digits.
        softmax_dtype = "float32" if model.dtype.itemsize < 4 else None
        super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, softmax_dtype=softmax_dtype)
        self.dola, self.on_progress = dola, on_progress

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As the harness does it. ModelError with DoLa, whose scores its softmax would spoil."""
        self._refuse_dola()
        with self._counting(len(requests)):
            return super().loglikelihood(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> list[float]:
        """As the harness does it. ModelError with DoLa, whose scores its softmax would spoil."""
        self._refuse_dola()
        with self._counting(len(requests)):
            return super().loglikelihood_rolling(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> list[str]:
        """As the harness does it."""
        with self._counting(len(requests)):
            return super().generate_until(requests, disable_tqdm=True)  # type: ignore[no-any-return]

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        return super()._loglikelihood_tokens(requests, disable_tqdm=True, override_bs=override_bs)

    def _detect_batch_size(self, requests: Sequence[Any] | None = None, pos: int = 0) -> int:
        tokens = min(self.max_length, len(requests[pos][1]) + len(requests[pos][2])) if requests else self.max_length
        if self.device.type == "cpu":
            row_bytes = tokens * self.model.config.get_text_config().vocab_size * 4
            self.max_batch_size = max(1, min(64, PLAIN_LOGITS_BYTES // row_bytes))
        return super()._detect_batch_size(requests, pos)  # type: ignore[no-any-return]

    def _refuse_dola(self) -> None:
        if self.dola is not None:
            raise ModelError("the harness' own backend cannot score answers with decoding=dola; type backend=shared_prefix, or decoding=task")

    @contextmanager
    def _counting(self, total: int) -> Iterator[None]:
        """The harness offers each finished request to its cache: that is where they can be counted."""
        self.cache_hook = _Counter(self.on_progress, total)
        with redirect_stdout(StringIO()), _decoding(self.model, self.dola):
            yield
        self.cache_hook = CacheHook(None)


class _Counter(CacheHook):  # type: ignore[misc]
    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        super().__init__(None)
        self.on_progress, self.done, self.total = on_progress, 0, total

    def add_partial(self, attr: str, req: Any, res: Any) -> None:
        self.done += 1
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)


def plain_lm(
    model: Any, tokenizer: Any, *, batch_size: int | str = "auto", dola: Dola | None = None, on_progress: OnProgress | None = None
) -> PlainLM:
    """The harness' own backend around a model, for comparison; log-likelihoods in fp32 also where the model is in bf16.

    Text is generated with `dola` where that is given; ModelError when answers are to be scored with it.
    """
    return PlainLM(model, tokenizer, batch_size=batch_size, dola=dola, on_progress=on_progress)


def default_batch_tokens(model: Any) -> int:
    """Tokens of a row that suit the model's device; by powers of two, so that models of one size get the same rows."""
    if model.device.type != "cuda":
        return CPU_ROW_TOKENS
    config, (least, most) = model.config.get_text_config(), CUDA_ROW_TOKENS
    activations = 4 * config.intermediate_size + 16 * config.hidden_size
    keys_and_values = 4 * config.num_hidden_layers * config.hidden_size  # those of the row, and once more while the next one is made
    tokens = torch.cuda.mem_get_info(model.device)[0] // 2 // ((activations + keys_and_values) * model.dtype.itemsize)
    return int(min(most, max(least, 1 << (max(1, tokens).bit_length() - 1))))


def _decoding(model: Any, dola: Dola | None) -> Any:
    """A context in which the model's own forward pass gives DoLa's scores, where that is asked for."""
    if dola is None:
        return nullcontext()
    from slayer.evaluation.dola import decoded

    return decoded(model, dola)


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _quieten_harness() -> None:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
