"""`evaluate`'s code_eval metric with every candidate in the sandbox.

lm-eval's humaneval and mbpp tasks load that metric when their files are imported, and try it at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from slayer.evaluation.code.sandbox import Outcome, require_isolation, run_isolated
from slayer.evaluation.metric_package import evaluate_package

MEMORY_BYTES = 1 << 30

Result = tuple[int, dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CodeEval:
    """Runs candidates against their tests. `on_progress` is told (done, all) after each candidate."""

    memory_bytes: int = MEMORY_BYTES
    on_progress: Callable[[int, int], None] | None = None

    def compute(
        self,
        *,
        references: Sequence[str],
        predictions: Sequence[Sequence[str]],
        k: Sequence[int] = (1, 10, 100),
        num_workers: int | None = None,
        timeout: float = 3.0,
    ) -> tuple[dict[str, float], dict[int, list[Result]]]:
        """(pass@k by name, results by problem), in the form of `evaluate`'s code_eval.

        `references` are tests, one for each problem; `predictions` its candidates; a program is a candidate, a new line and the
        test. `timeout` is in seconds per program; `num_workers` run at the same time (default: one per core). A k that some problem
        has too few candidates for is left out. The estimator is that of arXiv 2107.03374. Raises ConfigError where no isolation
        can be had, ValueError where there are not as many tests as problems.
        """
        require_isolation()
        programs = [(problem, number, f"{candidate}\n{test}") for problem, (candidates, test) in enumerate(zip(predictions, references, strict=True))
                    for number, candidate in enumerate(candidates)]  # fmt: skip

        def run(program: str) -> Outcome:
            return run_isolated(program, seconds=timeout, memory_bytes=self.memory_bytes)

        results: dict[int, list[Result]] = {}
        workers = ThreadPoolExecutor(max_workers=num_workers or _cores())
        try:
            outcomes = workers.map(run, [program for *_, program in programs])
            for done, ((problem, number, _), outcome) in enumerate(zip(programs, outcomes, strict=True), 1):
                result = {"task_id": problem, "passed": outcome.status == "passed", "result": _words(outcome), "completion_id": number}
                results.setdefault(problem, []).append((number, result))
                if self.on_progress is not None:
                    self.on_progress(done, len(programs))
        finally:
            workers.shutdown(cancel_futures=True)  # interrupted: only what runs already is waited for
        counts = [(len(found), sum(result["passed"] for _, result in found)) for found in results.values()]
        return {f"pass@{one}": _mean([pass_at(n, c, one) for n, c in counts]) for one in k if counts and all(n >= one for n, _ in counts)}, results


def pass_at(n_candidates: int, n_passed: int, k: int) -> float:
    """Chance that one of k candidates drawn from n passes, when c of them do: 1 − C(n − c, k) / C(n, k) (arXiv 2107.03374).

    k is at most n.
    """
    from math import comb

    return 1.0 - comb(n_candidates - n_passed, k) / comb(n_candidates, k)


@contextmanager
def code_eval_in_sandbox(on_progress: Callable[[int, int], None] | None = None) -> Iterator[CodeEval]:
    """While this is open, `evaluate.load("code_eval")` gives the sandboxed metric; every other metric is loaded as ever.

    Task files keep what they loaded, so the metric stays sandboxed after the context. Raises ConfigError, with what to type,
    where no isolation can be had: code of a model is run in the sandbox or not at all.
    """
    require_isolation()
    evaluate = evaluate_package()
    metric = CodeEval(on_progress=on_progress)
    load = evaluate.load

    def load_or_sandbox(path: str, *arguments: Any, **options: Any) -> Any:
        return metric if path == "code_eval" else load(path, *arguments, **options)

    evaluate.load = load_or_sandbox
    try:
        yield metric
    finally:
        evaluate.load = load


def _words(outcome: Outcome) -> str:
    """The result as `evaluate` words it: "passed", "timed out", or "failed: " and why."""
    if outcome.status in ("passed", "timed out"):
        return outcome.status
    return f"failed: {outcome.detail}" if outcome.status == "failed" else f"failed: {outcome.status} ({outcome.detail})"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _cores() -> int:
    return max(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 1)
