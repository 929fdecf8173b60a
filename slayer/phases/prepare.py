"""Before training, on the first rank: text, plan, expanded model, proof, scores. What was found before is not done again."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from rich.markup import escape

from slayer.data.cache import write_file
from slayer.errors import CheckpointError, ConfigError
from slayer.evaluation.forgetting import compare
from slayer.forward import load_model
from slayer.importance.choosing import compared_choice
from slayer.phases.choose import plan_chooser, plan_scores
from slayer.phases.planning import identity, plan_for, tell_cost, tell_plan
from slayer.phases.run import Run
from slayer.phases.text import TEXT_IDENTITY, require_same_text
from slayer.phases.warm_start import build_warm
from slayer.reporting.console import print_finished, print_proof
from slayer.reporting.data_report import write_data_report
from slayer.reporting.data_table import print_data
from slayer.reporting.layer_table import print_choice
from slayer.reporting.progress import progress_bar
from slayer.reporting.report import write_report
from slayer.results import Results
from slayer.schema import as_override
from slayer.stages import KEY, mended, typed_stages
from slayer.surgery.build import build_expanded
from slayer.surgery.plan import load_plan, plan_problems
from slayer.surgery.proof import prove
from slayer.surgery.shape import ModelShape, read_shape
from slayer.surgery.weights import Weights, require_space
from slayer.training.loop import to_device

LARGE_JUMP = 0.5
"""Nats per token from which it is measured which layers would have been cheaper to prune."""


def prepare(run: Run, command: str) -> None:
    """First rank: text, plan, expanded model, proof, scores before training. What was found before is not done again."""
    run.results = Results(run.folder)
    run.open_data()
    require_same_text(run.folder, run.loader.identity())
    write_file(run.folder / TEXT_IDENTITY, (json.dumps(run.loader.identity(), indent=1) + "\n").encode())
    facts = run.text.facts(run.tokenizer)
    print_data(facts, report=write_data_report(run.folder, facts), console=run.console)
    shape = read_shape(run.base)
    make_plan(run, shape)
    tell_plan(shape, run.plan, run.config, run.results, run.console)
    warn_of_stages(run)
    tell_cost(shape, run.plan, run.config, run.results, run.console, ranks=run.ranks.world, tokens=run.total_tokens or None)
    run.results.update(**identity(run.config, command), data=facts["sources"])
    if run.config.dry_run:
        print_finished(write_report(run.folder), console=run.console)
        return
    weights_bytes = Weights(run.base).n_bytes * run.plan.n_layers // run.plan.n_base
    if not run.expanded.exists():
        require_space(run.folder, 2 * weights_bytes, "the expanded and the exported model")
        if run.config.warm_start is not None:
            build_warm(run.base, run.plan, run.expanded, other=Path(run.config.warm_start))
        else:
            build_expanded(run.base, run.plan, run.expanded, seed=run.config.seed)
    if "proof" not in run.results:
        prove_build(run)
    print_proof(run.results["proof"], console=run.console)
    if "choice" in run.results:
        print_choice(run.results["choice"], console=run.console)
    if "before" not in run.results:
        score_before(run)


def make_plan(run: Run, shape: ModelShape) -> None:
    """The plan of the run folder, or a new one. What is impossible was found before by the composer, except for hub models, which are only here
    now."""
    path, config = run.folder / "plan.json", run.config
    if path.exists():
        run.plan = load_plan(path)
        return
    problems = plan_problems(
        shape.n_layers, config.expansion, config.freeze, prune=config.prune, prune_by=config.prune_by, prune_layers=config.prune_layers
    )
    if problems:
        raise ConfigError(problems)
    prune_scores, expansion_scores = plan_scores(run)
    run.plan = plan_for(shape, config, prune_scores=prune_scores, expansion_scores=expansion_scores)
    run.plan.save(path)


def warn_of_stages(run: Run) -> None:
    """Say it when the run is over before a freeze stage begins, and which stages would fit."""
    before_last = int(run.loader.schedule.expected_tokens(max(run.total_steps - 1, 0) * run.loader.batch_rows).sum())
    boundaries = [stage.until_tokens for stage in run.plan.stages[:-1] if stage.until_tokens is not None]
    unreached = [number for number, boundary in enumerate(boundaries, 2) if boundary > before_last]
    if unreached and run.total_steps > 0:
        fix = as_override(KEY, mended(typed_stages(run.plan.stages), before_last))
        run.console.print(
            f"[yellow]stage {unreached[0]} of the freeze schedule begins at {boundaries[unreached[0] - 2]:,} tokens, and the last step of this run "
            f"at about {before_last:,}: it never begins[/]\n  [dim]stages that fit:[/] {escape(fix)}\n", soft_wrap=True,
        )  # fmt: skip


def prove_build(run: Run) -> None:
    device = run.scoring_device(run.base, run.expanded)
    rows = to_device(run.sample_rows(), device)
    base = load_model(run.base, run.config.engine.precision, device)
    expanded = load_model(run.expanded, run.config.engine.precision, device)
    proof = prove(base, expanded, run.plan, rows)
    del base, expanded
    starts_as_base = run.plan.starts_as_base and run.config.warm_start is None
    if starts_as_base and proof.identity_max_difference != 0:
        raise CheckpointError(
            f"inserting the new blocks moved a logit by {proof.identity_max_difference:g}, which zeroed blocks never do; "
            f"{run.expanded} is damaged: remove it and start again"
        )
    measured = {**asdict(proof), "loss_jump": proof.loss_jump}
    if not starts_as_base or not run.plan.new_indices:
        measured["identity_max_difference"] = None
    scored = run.plan.prune_scores is not None or run.plan.expansion_scores is not None
    if scored or (run.plan.pruned and proof.loss_jump > LARGE_JUMP):
        with progress_bar("layers", run.console) as on_progress:
            run.results.update(choice=compared_choice(plan_chooser(run, on_progress), run.plan, proof.loss_jump))
    run.results.update(proof=measured)


def score_before(run: Run) -> None:
    start = run.score_folder(run.expanded, "held-out text, before training")
    base = run.score_folder(run.base, "held-out text, base model")
    in_loop = {"base": run.scorer.in_loop_part(base), "start": run.scorer.in_loop_part(start)}
    run.results.update(before=in_loop, heldout=compare(run.scorer.sets, run.loader.roles, base, start, start))
