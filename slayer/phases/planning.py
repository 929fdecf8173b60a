"""A plan and what it will cost, from the sizes of a model alone: what a run begins with, and all of a dry run whose model is not here."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from slayer.config import RunConfig
from slayer.cost.estimate import estimate, needed_bytes
from slayer.errors import ConfigError
from slayer.reporting.console import open_console, print_finished, print_plan
from slayer.reporting.estimate_table import print_estimate
from slayer.reporting.report import write_report
from slayer.results import Results
from slayer.surgery.freeze import stage_parameters, trainable_names, unmatched_parts
from slayer.surgery.plan import LayerPlan, LayerScores, build_plan, load_plan
from slayer.surgery.shape import ModelShape, shape_from_sizes
from slayer.training.metrics import device_memory, device_name


def plan_for(
    shape: ModelShape, config: RunConfig, *, prune_scores: LayerScores | None = None, expansion_scores: LayerScores | None = None
) -> LayerPlan:
    """The plan that a configuration asks for; ConfigError or PlanError where what it trains is nothing of this model."""
    plan = build_plan(
        shape.n_layers, config.expansion, config.freeze, prune=config.prune, prune_by=config.prune_by, prune_layers=config.prune_layers,
        tail=config.tail, prune_scores=prune_scores, expansion_scores=expansion_scores,
    )  # fmt: skip
    names = list(shape.tensors(plan.n_layers))
    problem = unmatched_parts(plan, names)
    if problem is not None:
        raise ConfigError([problem])
    trainable_names(plan, names)
    return plan


def tell_plan(shape: ModelShape, plan: LayerPlan, config: RunConfig, results: Results, console: Console) -> None:
    """Draw the plan, and keep what trains in each of its freeze stages."""
    trained = stage_parameters(plan, shape.tensors(plan.n_layers))
    print_plan(
        plan, block_parameters=shape.block_parameters, other_parameters=shape.other_parameters, stage_parameters=trained,
        warm_start=config.warm_start, console=console,
    )  # fmt: skip
    if plan.stages:
        results.update(stages=[{"trained_parameters": number} for number in trained])


def tell_cost(shape: ModelShape, plan: LayerPlan, config: RunConfig, results: Results, console: Console, *, ranks: int, tokens: int | None) -> None:
    """Say what the run will need and take, and keep it."""
    found = estimate(shape, plan, config, gpus=config.estimate.gpus or ranks, tokens=tokens)
    here = {"device": device_name(), "memory_bytes": device_memory(), "needed_bytes": needed_bytes(shape, plan, config, ranks), "ranks": ranks}
    results.update(estimate={**found.to_dict(), "here": here})
    print_estimate(results["estimate"], console=console)


def preview(config: RunConfig, command: str, *, ranks: int) -> None:
    """A dry run of a model that is not here: its plan and cost by the sizes in conf/model. Text is not counted: that takes its tokenizer."""
    assert config.model.shape is not None, "the composer refuses a dry run that knows nothing of its model"
    shape, results, console = shape_from_sizes(config.model.shape), Results(config.folder), open_console()
    path = config.folder / "plan.json"
    plan = load_plan(path) if path.exists() else plan_for(shape, config)
    plan.save(path)
    tell_plan(shape, plan, config, results, console)
    tell_cost(shape, plan, config, results, console, ranks=ranks, tokens=asked_tokens(config))
    if "objective" not in results:  # what is finished keeps the command that made it
        results.update(**identity(config, command))
    console.print(f"{config.model.name} is not here, and a dry run downloads nothing: the text was not counted, which takes its tokenizer\n")
    print_finished(write_report(config.folder), console=console)


def asked_tokens(config: RunConfig) -> int | None:
    """Tokens of the run as far as the configuration alone says; None where it is one pass over a text, or nothing trains."""
    train = config.train
    by_steps = train.max_steps * train.batch_rows * config.data.sequence_length if train.max_steps is not None else None
    limits = [limit for limit in (train.max_tokens, by_steps) if limit is not None]
    return min(limits, default=0) or None


def identity(config: RunConfig, command: str) -> dict[str, Any]:
    """Which run this is, and versions of what decides its results."""
    from importlib.metadata import version

    versions = {name: version(name) for name in ("slayer", "torch", "transformers", "deepspeed", "datasets")}
    return {"run": config.run, "model": config.model.name, "command": command, "versions": versions}
