"""After training, on the first rank: the exported model beside its base, samples, card and report."""

from __future__ import annotations

import shutil

from slayer.evaluation.document_scores import write_document_scores
from slayer.evaluation.forgetting import compare, objective
from slayer.evaluation.samples import choose_prompts, continue_prompts
from slayer.evaluation.scorer import prefix_token
from slayer.forward import load_model
from slayer.phases.benchmarks import RunBenchmarks
from slayer.phases.outcome import Outcome
from slayer.phases.run import Run
from slayer.reporting.benchmark_table import print_benchmarks, print_forgetting
from slayer.reporting.console import print_finished, print_results
from slayer.reporting.model_card import model_card
from slayer.reporting.report import write_report
from slayer.reporting.run_folder import is_heldout, read_metrics
from slayer.reporting.trackers import open_trackers
from slayer.results import Results


def compare_and_report(run: Run, benchmarks: RunBenchmarks) -> Outcome:
    """First rank: score the exported model beside the base, write samples, card, report."""
    base = run.score_folder(run.base, "held-out text, base model")
    start = run.score_folder(run.expanded, "held-out text, before training")
    result = run.score_folder(run.exported, "held-out text, result")
    table = compare(run.scorer.sets, run.loader.roles, base, result, start)
    sections, tasks = benchmarks.compare()
    trackers = open_trackers(run.config.tracker, run.folder, name=run.config.run, values=run.config.model_dump())
    last = {"step": run.total_steps, **{f"heldout/{source}": value for source, value in run.scorer.in_loop_part(result).items()}, **tasks}
    if not any(is_heldout(record) and record.get("step") == run.total_steps for record in read_metrics(run.folder / "metrics.jsonl")):
        trackers.log(last)  # a start that was killed behind this line has left it
    trackers.finish()
    value = objective(table, run.config.objective)
    write_document_scores(run.folder, run.scorer.documents, run.loader.roles, {"base": base, "start": start, "result": result})
    run.results.update(heldout=table, samples=_samples(run), **sections)
    shutil.copyfile(run.folder / "plan.json", run.exported / "plan.json")
    (run.exported / "README.md").write_text(model_card(run.folder), encoding="utf-8")
    run.results.update(objective={"name": run.config.objective, "value": value})  # from here on the run counts as finished
    print_results(run.results.values, console=run.console)
    print_benchmarks(run.results.values, console=run.console)
    print_forgetting(run.results.values, console=run.console)
    # Last, since it is what says that a run is finished.
    run.results.update(objective={"name": run.config.objective, "value": value})
    report = write_report(run.folder)
    print_finished(report, console=run.console)
    # The expanded model is the base plus the plan: it can be built again at any time.
    shutil.rmtree(run.expanded, ignore_errors=True)
    return Outcome(objective=value, report=report, unsent=trackers.unsent)


def _samples(run: Run) -> list[dict[str, str]]:
    heldout = run.config.heldout
    prompts = choose_prompts(run.scorer.documents, heldout.samples, heldout.sample_tokens)
    texts: dict[str, list[str]] = {}
    for label, folder in (("base", run.base), ("result", run.exported)):
        model = load_model(folder, run.config.engine.precision, run.scoring_device(folder))
        texts[label] = continue_prompts(model, run.tokenizer, prompts, prefix_token=prefix_token(run.tokenizer), new_tokens=heldout.sample_tokens)
    decode = run.tokenizer.decode
    return [
        {"source": prompt["source"], "prompt": decode(prompt["prompt"]), "truth": decode(prompt["truth"]), "base": before, "result": after}
        for prompt, before, after in zip(prompts, texts["base"], texts["result"], strict=True)
    ]


def show_again(run: Run) -> Outcome:
    """A finished run started again: its table and report, nothing recomputed."""
    results = Results(run.folder)
    run.console.print(f"{run.folder} is finished; nothing to do (type run=NAME for another run)", soft_wrap=True)
    print_results(results.values, console=run.console)
    print_benchmarks(results.values, console=run.console)
    print_forgetting(results.values, console=run.console)
    report = write_report(run.folder)
    print_finished(report, console=run.console)
    shutil.rmtree(run.expanded, ignore_errors=True)  # of a start that was killed in its last moment
    return Outcome(objective=results["objective"]["value"], report=report)
