"""How much faster benchmarks are than the harness alone: python benchmarks/evaluation.py [--items 100] [--repeats 3] [--batch-size auto] [TASK …]

The embedded model in fp32 answers the same requests twice, in turns and in one process:

  harness           lm-eval's own Hugging Face backend; --batch-size auto is its automatic batch size, with the probe that this takes
                    (a number leaves the probe out)
  shared prefixes   slayer's: shared beginnings once, no padding, the head only where an answer is scored

Only the harness' call of the model object is timed: tokens, forward passes and log-likelihoods. First the scores must agree: every
metric of every task to 1e-6, every greedy flag, and each log-likelihood to 1e-6 of its size (or 1e-4 nats, which is fp32's rounding in
a forward pass). Printed for each task: tokens that go through the model, seconds (medians), and the ratio; for all tasks together the
ratio of the summed medians, which has to be 2 or more.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from slayer.config import DecodingConfig, SuiteConfig, TaskConfig
from slayer.data.assets import asset_model
from slayer.evaluation.harness.scores import Scoring, score_task
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.evaluation.items import TaskScores
from slayer.forward import load_model

TASKS = {
    **{name: None for name in ("arc_easy", "hellaswag", "piqa", "boolq", "lambada_openai")},
    **{f"mmlu_{subject}": 5 for subject in ("astronomy", "world_religions", "high_school_geography")},
}
"""Tasks and the examples in their prompts (None: the task's own number)."""
LEAST_RATIO = 2.0
METRIC_TOLERANCE = 1e-6
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE_NATS = 1e-6, 1e-4
REQUEST_KINDS = ("loglikelihood", "loglikelihood_rolling")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model object on one task: `answers` as the harness got them, `tokens` all that went through the decoder, padding and probes too."""

    scores: TaskScores
    answers: list[Any]
    tokens: int
    seconds: float


def measured(lm: Any, task: LoadedTask, scoring: Scoring) -> Measured:
    """Score a task and time what the harness asks of the model object."""
    answers: list[Any] = []
    tokens, seconds = [0], [0.0]

    def timed(ask: Callable[[list[Any]], list[Any]]) -> Callable[[list[Any]], list[Any]]:
        def call(requests: list[Any]) -> list[Any]:
            started = time.perf_counter()
            found = ask(requests)
            seconds[0] += time.perf_counter() - started
            answers.extend(found)
            return found

        return call

    def count(decoder: Any, arguments: Any, options: dict[str, Any]) -> None:
        tokens[0] += options["input_ids"].numel()

    handle = lm.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    for kind in REQUEST_KINDS:
        setattr(lm, kind, timed(getattr(lm, kind)))
    try:
        scores = score_task(lm, task, scoring)
    finally:
        handle.remove()
        for kind in REQUEST_KINDS:
            delattr(lm, kind)  # the class has its own
    return Measured(scores=scores, answers=answers, tokens=tokens[0], seconds=seconds[0])


def difference(ours: Measured, theirs: Measured) -> tuple[float, list[str]]:
    """The largest difference of two log-likelihoods in nats, and what is not equal enough."""
    wrong = []
    largest = 0.0
    for one, other in zip(ours.answers, theirs.answers, strict=True):
        (nats, greedy), (expected, expected_greedy) = ((answer if isinstance(answer, tuple) else (answer, None)) for answer in (one, other))
        largest = max(largest, abs(nats - expected))
        if abs(nats - expected) > max(ABSOLUTE_TOLERANCE_NATS, RELATIVE_TOLERANCE * abs(expected)):
            wrong.append(f"log-likelihood {nats} for {expected}")
        if greedy != expected_greedy:
            wrong.append(f"greedy {greedy} for {expected_greedy}")
    for name, metric in ours.scores.metrics.items():
        expected = theirs.scores.metrics[name].value
        if abs(metric.value - expected) > METRIC_TOLERANCE * max(1.0, abs(expected)):
            wrong.append(f"{name} {metric.value} for {expected}")
    return largest, wrong


def compare(task: LoadedTask, fast: Any, plain: Any, scoring: Scoring, repeats: int) -> tuple[float, float, bool]:
    """Seconds of both (medians), and whether the scores agree; a line is printed."""
    ours, theirs = [], []
    for _ in range(repeats):
        theirs.append(measured(plain, task, scoring))
        ours.append(measured(fast, task, scoring))
    nats, wrong = difference(ours[0], theirs[0])
    metric = ours[0].scores.metrics[task.facts.metric]
    seconds, plain_seconds = (statistics.median(one.seconds for one in measurements) for measurements in (ours, theirs))
    sizes = f"{task.facts.n_items:>6}{task.facts.num_fewshot:>6}{theirs[0].tokens:>11,}{ours[0].tokens:>10,}{theirs[0].tokens / ours[0].tokens:>7.1f}"
    times = f"{plain_seconds:>10.1f}{seconds:>9.1f}{plain_seconds / seconds:>7.1f}"
    print(f"{task.facts.task:28}{sizes}{times}{nats:>10.0e}   {metric.name} {metric.value:.4f}", flush=True)
    for line in wrong[:5]:
        print(f"    NOT EQUAL: {line}")
    return seconds, plain_seconds, not wrong


def chosen_tasks(names: Sequence[str], items: int, seed: int) -> list[LoadedTask]:
    """Tasks by name with so many items each, from the embedded questions."""
    suite = SuiteConfig(name="benchmark", tasks={name: TaskConfig(limit=items, num_fewshot=TASKS.get(name)) for name in names})
    return load_tasks(suite, seed=seed, questions="local", include_path=None, confirm_run_unsafe_code=False)


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS), help="tasks of lm-eval that score log-likelihoods")
    parser.add_argument("--items", type=int, default=100, help="items of each task")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch-size", default="auto", help="of the harness: auto, or a number")
    parser.add_argument("--batch-tokens", type=int, default=None, help="of slayer: tokens in a row; default: chosen for the device")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    from slayer.evaluation.harness.lm import SharedPrefixLM, plain_lm

    folder = asset_model("smollm2_135m")
    model, tokenizer = load_model(folder, "fp32", arguments.device), AutoTokenizer.from_pretrained(folder, local_files_only=True)
    fast = SharedPrefixLM(model, tokenizer, batch_tokens=arguments.batch_tokens)
    plain = plain_lm(model, tokenizer, batch_size=arguments.batch_size)
    scoring = Scoring(precision="fp32", device=arguments.device, decoding=DecodingConfig())
    print(f"SmolLM2-135M-Instruct, fp32, {arguments.device}; rows of {fast.batch_tokens} tokens; the harness' batch size: {arguments.batch_size}")
    print(f"{'':28}{'items':>6}{'shots':>6}{'tokens':>11}{'ours':>10}{'ratio':>7}{'seconds':>10}{'ours':>9}{'ratio':>7}{'max diff':>10}")
    tasks = chosen_tasks(arguments.tasks, arguments.items, arguments.seed)
    results = [compare(task, fast, plain, scoring, arguments.repeats) for task in tasks]
    ours, theirs = sum(one[0] for one in results), sum(one[1] for one in results)
    equal = all(one[2] for one in results)
    print(
        f"all: {theirs:.1f} s, ours {ours:.1f} s, ratio {theirs / ours:.2f} (at least {LEAST_RATIO}); scores {'equal' if equal else 'NOT EQUAL'}: ",
        end="",
    )
    passed = equal and theirs / ours >= LEAST_RATIO
    print("PASS" if passed else "FAIL")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
