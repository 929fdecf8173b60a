"""Does the comparison tell what it should? python benchmarks/self_check.py [--items 300] [--layer 1] [--precision bf16] [ARM …]

On the embedded model and the embedded questions, four arms beside the untouched base:

  itself    scored a second time: no task may show a change
  rows      scored once more with rows of another length, which rounds differently: no task may show a change
  labels    asked for answers drawn at random: accuracy must be that of chance
  damaged   one layer with noise as large as its weights on top of them: most tasks must show a loss

Exit code 1 when one of them does not hold.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from slayer.config import DecodingConfig, SuiteConfig, TaskConfig
from slayer.data.assets import asset_model
from slayer.evaluation.comparison import compare_tasks
from slayer.evaluation.harness.scores import Scoring, score_task
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.evaluation.items import TaskScores
from slayer.forward import load_model

TASKS = ("arc_easy", "sciq", "piqa", "hellaswag", "boolq", "lambada_openai")
OTHER_ROW_TOKENS = 384
UNCHANGED = "no change detected"
ARMS = ("itself", "rows", "labels", "damaged")


def scored(model: Any, tokenizer: Any, tasks: Sequence[LoadedTask], scoring: Scoring, batch_tokens: int | None = None) -> dict[str, TaskScores]:
    """The model on every task, now: nothing remembered is used."""
    from slayer.evaluation.harness.lm import SharedPrefixLM

    lm = SharedPrefixLM(model, tokenizer, batch_tokens=batch_tokens)
    return {one.facts.task: score_task(lm, one, scoring) for one in tasks}


def damage(model: Any, layer: int) -> None:
    """Add noise of each matrix's own standard deviation to one decoder layer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.model.layers[layer].parameters():
            if parameter.ndim == 2:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
                parameter += (noise * parameter.float().std()).to(parameter)


def shuffle_labels(task: Any) -> None:
    """From now on the right answer to a question is one drawn by a hash of the question."""
    choices = task.doc_to_choice

    def drawn(doc: Mapping[str, Any]) -> int:
        return zlib.crc32(repr(sorted((key, str(value)) for key, value in doc.items())).encode()) % len(choices(doc))

    task.doc_to_target = drawn


def table(title: str, compared: Mapping[str, Any]) -> list[str]:
    """Print a comparison; returns the verdicts."""
    print(f"\n{title}\n{'task':16} {'metric':9} {'base':>7} {'result':>7} {'change':>8} {'noise floor':>11} {'p (Holm)':>9}  verdict")
    for name, one in compared["tasks"].items():
        numbers = f"{one['base']:7.3f} {one['result']:7.3f} {one['change']:+8.4f} {one['noise_floor']:11.4f} {one['p_holm']:9.2g}"
        print(f"{name:16} {one['metric']:9} {numbers}  {one['verdict']}")
    return [one["verdict"] for one in compared["tasks"].values()]


def at_chance(model: Any, tokenizer: Any, questions: Sequence[LoadedTask], scoring: Scoring) -> bool:
    """True when accuracy with labels drawn at random is that of chance; one interval in twenty misses by itself, so one may."""
    for one in questions:
        shuffle_labels(one.task)
    guessed = compare_tasks([one.facts for one in questions], None, scored(model, tokenizer, questions, scoring))["tasks"]
    print(f"\nlabels drawn at random\n{'task':16} {'chance':>7} {'accuracy':>9}  95 % interval")
    for name, one in guessed.items():
        print(f"{name:16} {one['chance']:7.3f} {one['result']:9.3f}  {one['result_interval'][0]:.3f} to {one['result_interval'][1]:.3f}")
    inside = [one["result_interval"][0] <= one["chance"] <= one["result_interval"][1] for one in guessed.values()]
    return sum(inside) >= len(inside) - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)}")
    parser.add_argument("--items", type=int, default=300)
    parser.add_argument("--layer", type=int, default=1)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    arguments = parser.parse_args()
    from transformers import AutoTokenizer

    folder = asset_model("smollm2_135m")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_model(folder, arguments.precision)
    suite = SuiteConfig(name="self_check", tasks={name: TaskConfig(limit=arguments.items) for name in TASKS})
    common: dict[str, Any] = {"seed": 0, "questions": "local", "include_path": None, "confirm_run_unsafe_code": False}
    tasks = load_tasks(suite, **common)
    scoring = Scoring(precision=arguments.precision, device=model.device, decoding=DecodingConfig())
    facts = [one.facts for one in tasks]
    base = scored(model, tokenizer, tasks, scoring)
    held: dict[str, bool] = {}
    if "itself" in arguments.arms:
        again = table("itself, scored again", compare_tasks(facts, base, scored(model, tokenizer, tasks, scoring)))
        held["itself: no change on any task"] = all(verdict == UNCHANGED for verdict in again)
    if "rows" in arguments.arms:
        others = scored(model, tokenizer, tasks, scoring, OTHER_ROW_TOKENS)
        rows = table(f"itself, in rows of {OTHER_ROW_TOKENS} tokens", compare_tasks(facts, base, others))
        held["rows: no change on any task"] = all(verdict == UNCHANGED for verdict in rows)
    if "labels" in arguments.arms:
        questions = [one for one in load_tasks(suite, **common) if one.facts.chance is not None]
        held["labels: chance within the interval"] = at_chance(model, tokenizer, questions, scoring)
    if "damaged" in arguments.arms:
        damage(model, arguments.layer)
        hurt = table(f"layer {arguments.layer} damaged", compare_tasks(facts, base, scored(model, tokenizer, tasks, scoring)))
        held["damaged: loss on most tasks"] = sum(verdict == "forgotten" for verdict in hurt) > len(hurt) / 2
    print()
    for claim, holds in held.items():
        print(f"{'holds' if holds else 'FAILS'}  {claim}")
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
