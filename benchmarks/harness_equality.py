"""Are our scores the harness' scores? python benchmarks/harness_equality.py [--items 250] [TASK …]

The embedded model in fp32 on the same items, twice:

  harness    lm_eval.simple_evaluate with lm-eval's own task manager, task definitions and Hugging Face backend; only the place of the
             questions is told (a file that includes lm-eval's and says `dataset_path: parquet`)
  slayer     what evaluate.py does: tasks of a suite, embedded questions, shared prefixes

Printed for each task: every metric of both, how many items one of them has right and the other wrong, and the largest difference between
two log-likelihoods. Exit code 1 unless all metrics are equal (accuracies exactly; perplexity to 1e-5 of its size, since fp32 rounds each
log-likelihood by about 1e-5 nats) and no item differs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from slayer.config import DecodingConfig, SuiteConfig, TaskConfig
from slayer.data.assets import asset_model
from slayer.evaluation.harness.questions import local_dataset
from slayer.evaluation.harness.scores import Scoring, score_task
from slayer.evaluation.harness.tasks import LoadedTask, load_tasks
from slayer.evaluation.items import TaskScores
from slayer.forward import load_model

DATASETS = {
    "arc_easy": ("allenai/ai2_arc", "ARC-Easy"),
    "hellaswag": ("Rowan/hellaswag", None),
    "piqa": ("baber/piqa", None),
    "boolq": ("aps/super_glue", "boolq"),
    "lambada_openai": ("EleutherAI/lambada_openai", "default"),
}
"""What lm-eval's definitions of these tasks name as their questions."""
RELATIVE_TOLERANCE = 1e-5


def harness_results(model: Any, tokenizer: Any, tasks: Sequence[LoadedTask], folder: Path) -> Mapping[str, Any]:
    """simple_evaluate on lm-eval's own definitions, with the questions of our cache handed over as plain files."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    manager, definitions = TaskManager(), []
    for one in tasks:
        name = one.facts.task
        dataset = local_dataset(*DATASETS[name])
        assert dataset is not None, f"the questions of {name} are not embedded"
        files = {split: str(folder / f"{name}-{split}.parquet") for split in dataset}
        for split, file in files.items():
            dataset[split].to_parquet(file)
        told: dict[str, Any] = {"include": str(manager.task_index[name].yaml_path), "dataset_path": "parquet", "dataset_name": None}
        told |= {} if "train" in dataset else {"training_split": None}  # no examples are asked for, but lm-eval looks for them
        definitions.append(folder / f"{name}.yaml")
        OmegaConf.save(OmegaConf.create({**told, "dataset_kwargs": {"data_files": files}}), definitions[-1])
    samples = {one.facts.task: one.indices_N.tolist() for one in tasks}
    lm = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=16)
    found = lm_eval.simple_evaluate(model=lm, tasks=[str(file) for file in definitions], task_manager=manager, samples=samples, bootstrap_iters=0)
    assert found is not None
    return found  # type: ignore[no-any-return]


def compared(name: str, theirs: Mapping[str, Any], ours: TaskScores, likelihoods: Sequence[float]) -> bool:
    """Print one task's numbers; true when all agree."""
    samples = sorted(theirs["samples"][name], key=lambda sample: sample["doc_id"])
    expected = [float(response[0][0]) for sample in samples for response in sample["resps"]]
    difference = float(np.max(np.abs(np.array(expected) - np.array(likelihoods))))
    holds = [sample["doc_id"] for sample in samples] == ours.items.tolist()
    for key, metric in ours.metrics.items():
        value = theirs["results"][name][f"{key},none"]
        items = np.array([float(sample[key]) for sample in samples])
        different = int((items != metric.values_N).sum()) if metric.is_binary else 0
        equal = metric.value == value if metric.is_binary else abs(metric.value / value - 1) < RELATIVE_TOLERANCE
        holds &= equal and different == 0
        numbers = f"{value:10.6f} {metric.value:10.6f} {different:9} {difference:12.1e}"
        print(f"{name:16} {len(samples):6} {key:11} {numbers}  {'equal' if equal else 'DIFFERENT'}")
    return holds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(DATASETS), metavar="TASK", help=f"of {', '.join(DATASETS)}")
    parser.add_argument("--items", type=int, default=250)
    arguments = parser.parse_args()
    import datasets
    from transformers import AutoTokenizer

    from slayer.evaluation.harness.lm import SharedPrefixLM

    logging.disable(logging.WARNING)
    datasets.disable_progress_bars()
    folder = asset_model("smollm2_135m")
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load_model(folder, "fp32")
    suite = SuiteConfig(name="equality", tasks={name: TaskConfig(limit=arguments.items) for name in arguments.tasks})
    tasks = load_tasks(suite, seed=0, questions="local", include_path=None, confirm_run_unsafe_code=False)
    scoring = Scoring(precision="fp32", device=model.device, decoding=DecodingConfig())
    lm, found = SharedPrefixLM(model, tokenizer), []
    for one in tasks:
        scores = score_task(lm, one, scoring)
        found.append((scores, [float(response[0]) for instance in one.task.instances for response in instance.resps]))
    with tempfile.TemporaryDirectory() as scratch:
        theirs = harness_results(model, tokenizer, tasks, Path(scratch))
    print(f"{'task':16} {'items':>6} {'metric':11} {'harness':>10} {'slayer':>10} {'differing':>9} {'nats, at most':>12}")
    held = [compared(scores.task, theirs, scores, likelihoods) for scores, likelihoods in found]
    print("PASS: the harness' scores, exactly" if all(held) else "FAIL")
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
