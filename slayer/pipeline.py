"""A run, from configuration to report: plan → build → prove → train → export → compare → report.

The first rank prepares (text, plan, model, proof) while the others wait; all ranks train; the first exports and compares.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slayer.config import RunConfig, config_differences, load_config, save_config
from slayer.cost.flops import peak_flops, train_flops_per_token
from slayer.data.loader import Batch, Loader, build_loader
from slayer.errors import CheckpointError, ConfigError
from slayer.evaluation.forgetting import compare, objective
from slayer.evaluation.samples import choose_prompts, continue_prompts
from slayer.evaluation.scorer import HeldoutScorer, prefix_token
from slayer.forward import load_model, logits_of
from slayer.importance.removal import removal_losses
from slayer.models import resolve_model
from slayer.reporting.console import open_console, print_data, print_finished, print_plan, print_proof, print_results
from slayer.reporting.model_card import model_card
from slayer.reporting.progress import TrainingProgress, progress_bar
from slayer.reporting.report import write_report
from slayer.reporting.trackers import Trackers, open_trackers
from slayer.results import Results
from slayer.surgery.build import build_expanded, read_hashes, read_shape, write_trained
from slayer.surgery.families import read_model_config
from slayer.surgery.freeze import trainable_names
from slayer.surgery.plan import LayerPlan, build_plan, load_plan, plan_problems
from slayer.surgery.proof import prove
from slayer.surgery.weights import Weights, combined_hash, require_space
from slayer.training.checkpoint import Binding, RunState, load_checkpoint, newest_valid, save_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.frozen import FrozenAudit
from slayer.training.loop import Callbacks, Pace, train
from slayer.training.metrics import device_name
from slayer.training.optim import planned_steps
from slayer.training.ranks import Ranks, open_ranks
from slayer.training.signals import StopRequest, listen_for_stop

SAMPLE_ROWS = 4
"""Rows of real training text for the removal scores and the proof."""
LARGE_JUMP = 0.5
"""Nats per token from which the plan printer measures which layers would have been cheaper to prune."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended: its objective (None before the comparison), its report, and whether it was asked to stop early."""

    objective: float | None
    report: Path | None
    stopped_at: int | None = None


def run_pipeline(config: RunConfig, command: str) -> Outcome:
    """Run, or go on with, the run of this configuration. Every SlayerError leaves the run folder as it was or further on."""
    base = resolve_model(config.model)
    with open_ranks() as ranks, listen_for_stop() as stop:
        run = Run(config, base, ranks)
        if ranks.is_first:
            check_run_folder(config)
            if "objective" in Results(config.folder):
                return run.show_again()
            save_config(config, config.folder / "config.yaml")
            run.prepare(command)
        ranks.wait()
        run.read_prepared()
        if config.dry_run:
            return Outcome(objective=None, report=config.folder / "report.html")
        state = run.train(stop)
        if state.step < run.total_steps:
            return Outcome(objective=None, report=None, stopped_at=state.step)
        if not ranks.is_first:
            ranks.wait()
            return Outcome(objective=None, report=None)
        outcome = run.compare_and_report()
        ranks.wait()
        return outcome


def check_run_folder(config: RunConfig) -> None:
    """CheckpointError when the folder holds a run of another configuration; nothing in it is touched."""
    saved = config.folder / "config.yaml"
    if not saved.exists():
        return
    differences = config_differences(load_config(saved), config)
    has_work = any((config.folder / name).exists() for name in ("expanded", "checkpoints", "model"))
    if differences and not has_work:  # only planned so far: there is nothing to lose
        (config.folder / "plan.json").unlink(missing_ok=True)
        (config.folder / "results.json").unlink(missing_ok=True)
    elif differences:
        lines = "\n".join(f"    {key}: the run has {old!r}, you asked for {new!r}" for key, old, new in differences)
        raise CheckpointError(
            f"{config.folder} holds a run made with another configuration:\n{lines}\n    type: run=NAME for a new run, or remove that folder"
        )


class Run:
    """One run on one rank: what its phases share."""

    def __init__(self, config: RunConfig, base: Path, ranks: Ranks) -> None:
        from transformers import AutoTokenizer

        self.config, self.base, self.ranks = config, base, ranks
        self.folder, self.expanded, self.exported = config.folder, config.folder / "expanded", config.folder / "model"
        self.console = open_console()
        self.console.quiet = not ranks.is_first
        self.tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
        self.micro_batch_rows = config.engine.micro_batch_rows
        self.loader: Loader
        self.scorer: HeldoutScorer
        self.plan: LayerPlan
        self.results: Results
        self.total_steps = 0

    # ── prepare ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def prepare(self, command: str) -> None:
        """First rank: text, plan, expanded model, proof, scores before training. What was found before is not done again."""
        self.results = Results(self.folder)
        self._open_data()
        print_data(self.results_data(), console=self.console)
        self._make_plan()
        shape = read_shape(self.base)
        print_plan(self.plan, block_parameters=shape.block_parameters, other_parameters=shape.other_parameters, console=self.console)
        self.results.update(run=self.config.run, model=self.config.model.name, command=command, data=self.results_data(), versions=versions())
        if self.config.dry_run:
            print_finished(write_report(self.folder), console=self.console)
            return
        weights_bytes = Weights(self.base).n_bytes * self.plan.n_layers // self.plan.n_base
        if not self.expanded.exists():
            require_space(self.folder, 2 * weights_bytes, "the expanded and the exported model")
            build_expanded(self.base, self.plan, self.expanded, seed=self.config.seed)
        if "proof" not in self.results:
            self._prove()
        print_proof(self.results["proof"], console=self.console)
        if "before" not in self.results:
            self._score_before()

    def _open_data(self) -> None:
        config = self.config
        with progress_bar("tokenising", self.console) as on_progress:
            self.loader = build_loader(config.data, self.tokenizer, seed=config.seed, batch_rows=config.train.batch_rows, on_progress=on_progress)
        self.scorer = HeldoutScorer(self.loader.heldout, self.tokenizer, config.heldout, config.data.sequence_length)
        self.total_steps = planned_steps(config.train, config.data.sequence_length, self.loader.steps_per_domain_epoch)

    def results_data(self) -> list[dict[str, Any]]:
        """The `data` part of results.json."""
        return [asdict(report) for report in self.loader.report(self.total_steps)]

    def _make_plan(self) -> None:
        path = self.folder / "plan.json"
        if path.exists():
            self.plan = load_plan(path)
            return
        config = self.config
        n_base = read_model_config(self.base)["num_hidden_layers"]
        problems = plan_problems(
            n_base, config.expansion, config.freeze, prune=config.prune, prune_by=config.prune_by, prune_layers=config.prune_layers
        )
        if problems:  # found before by the composer, except for hub models, which are only here now
            raise ConfigError(problems)
        scores = self._removal_scores() if config.prune_by == "removal" and config.prune else None
        self.plan = build_plan(
            n_base, config.expansion, config.freeze, prune=config.prune, prune_by=config.prune_by, prune_layers=config.prune_layers,
            tail=config.tail, scores=scores,
        )  # fmt: skip
        trainable_names(self.plan, [f"model.layers.{index}.any" for index in range(self.plan.n_layers)])
        self.plan.save(path)

    def _removal_scores(self) -> list[float]:
        """Loss that each layer's removal adds, in nats per token, on general training text."""
        model = load_model(self.base, self.config.engine.precision, self.ranks.device)
        with progress_bar("removal", self.console) as on_progress:
            whole, without = removal_losses(model, self._sample_rows(), micro_batch_rows=self.micro_batch_rows, on_progress=on_progress)
        return [loss - whole for loss in without]

    def _sample_rows(self) -> Batch:
        """The first rows of general text that training would see (of domain text where there is no replay)."""
        import torch

        wanted = "replay" if "replay" in self.loader.roles.values() and self.config.data.replay > 0 else "domain"
        parts: list[Batch] = []
        count = step = 0
        while count < SAMPLE_ROWS:
            batch = self.loader.batch(step)
            chosen = torch.tensor([self.loader.roles[self.loader.source_names[source]] == wanted for source in batch.sources_B.tolist()])
            parts.append(Batch(**{name: getattr(batch, name)[chosen] for name in Batch.__dataclass_fields__}))
            count += int(chosen.sum())
            step += 1
        merged = {name: torch.cat([getattr(part, name) for part in parts])[:SAMPLE_ROWS].to(self.ranks.device) for name in Batch.__dataclass_fields__}
        return Batch(**merged)

    def _prove(self) -> None:
        rows = self._sample_rows()
        base = load_model(self.base, self.config.engine.precision, self.ranks.device)
        expanded = load_model(self.expanded, self.config.engine.precision, self.ranks.device)
        proof = prove(base, expanded, self.plan, rows)
        del base, expanded
        if self.plan.starts_as_base and proof.identity_max_difference != 0:
            raise CheckpointError(
                f"inserting the new blocks moved a logit by {proof.identity_max_difference:g}, which zeroed blocks never do; "
                f"{self.expanded} is damaged: remove it and start again"
            )
        cheaper: list[dict[str, Any]] = []
        if self.plan.pruned and self.plan.scores is None and proof.loss_jump > LARGE_JUMP:
            scores = self._removal_scores()
            cheapest = sorted(range(len(scores)), key=scores.__getitem__)[: max(len(self.plan.pruned) + 2, 4)]
            cheaper = [{"layer": layer, "loss_jump": scores[layer]} for layer in cheapest]
        measured = {**asdict(proof), "loss_jump": proof.loss_jump, "cheaper": cheaper}
        if not self.plan.starts_as_base or not self.plan.new_indices:
            measured["identity_max_difference"] = None
        self.results.update(proof=measured)

    def _score_before(self) -> None:
        start = self._score_folder(self.expanded, "held-out text, before training")
        base = self._score_folder(self.base, "held-out text, base model")
        in_loop = {"base": self.scorer.in_loop_part(base), "start": self.scorer.in_loop_part(start)}
        self.results.update(before=in_loop, heldout=compare(self.scorer.sets, self.loader.roles, base, start, start))

    def _score_folder(self, folder: Path, label: str) -> Any:
        with progress_bar("scoring", self.console) as on_progress:
            return self.scorer.score_folder(
                folder, label, precision=self.config.engine.precision, micro_batch_rows=self.micro_batch_rows, device=self.ranks.device,
                on_progress=on_progress,
            )  # fmt: skip

    def read_prepared(self) -> None:
        """Every other rank: open what the first one left."""
        if not self.ranks.is_first:
            self._open_data()
            self.plan = load_plan(self.folder / "plan.json")
            self.results = Results(self.folder)

    # ── train ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def train(self, stop: StopRequest) -> RunState:
        """Train from the newest valid checkpoint to the end, and export. All ranks."""
        if self.total_steps == 0:
            if self.ranks.is_first:
                write_trained(self.expanded, {}, self.exported)
            return RunState()
        config, built_hashes = self.config, read_hashes(self.expanded)
        model = load_model(self.expanded, config.engine.precision, self.ranks.device)
        names = [name for name, _ in model.named_parameters()]
        engine = TrainingEngine(model, trainable_names(self.plan, names), config, self.ranks)
        try:
            audit = FrozenAudit(self.expanded, built_hashes, engine.trainable, model.dtype)
            audit.check(engine, "at the start")
            binding = Binding(model=combined_hash(built_hashes), data=self.loader.fingerprint)
            state = self._resume(engine, binding)
            trackers = open_trackers(config, self.folder) if self.ranks.is_first else None
            with TrainingProgress(self.console) as progress:
                callbacks = self._callbacks(engine, audit, binding, trackers, progress, state)
                state = train(engine, self.loader, state, self.total_steps, config.train, callbacks, self._pace(), stop)
            if trackers is not None:
                trackers.finish()
            if state.step == self.total_steps:
                self._export(engine, audit, built_hashes, state)
        finally:
            engine.close()
        return state

    def _resume(self, engine: TrainingEngine, binding: Binding) -> RunState:
        def tell(folder: Path, problem: str) -> None:
            self.console.print(f"[yellow]checkpoint {folder.name} is damaged ({problem}) and passed over[/]")

        newest = newest_valid(self.folder / "checkpoints", tell)
        if newest is None:
            return RunState()
        state = load_checkpoint(newest, engine, binding)
        self.console.print(f"going on from step {state.step} of {self.total_steps} ({state.tokens:,} tokens trained)")
        return state

    def _callbacks(
        self, engine: TrainingEngine, audit: FrozenAudit, binding: Binding, trackers: Trackers | None, progress: TrainingProgress, state: RunState
    ) -> Callbacks:
        def log(record: dict[str, Any]) -> None:
            if trackers is not None:
                trackers.log(record)
                progress.update(record)

        def evaluate(now: RunState) -> None:
            scores = self.scorer.score_in_loop(engine.logits, micro_batch_rows=self.micro_batch_rows, device=self.ranks.device)
            log({"step": now.step, **{f"heldout/{source}": value for source, value in scores.items()}})

        def save(now: RunState) -> None:
            audit.check(engine, f"at step {now.step}")
            save_checkpoint(self.folder / "checkpoints", engine, now, binding, self.config.train.keep_checkpoints)

        if trackers is not None:
            trackers.truncate_after(state.step)
            if state.step == 0:
                log({"step": 0, **{f"heldout/{source}": value for source, value in self.results["before"]["start"].items()}})
        return Callbacks(on_log=log, on_evaluate=evaluate, on_save=save)

    def _pace(self) -> Pace:
        flops = train_flops_per_token(read_shape(self.base), self.plan, self.config.data.sequence_length)
        peak = peak_flops(device_name(), self.config.engine.peak_teraflops)
        return Pace(flops_per_token=flops, peak_flops=peak * self.ranks.world if peak is not None else None)

    def _export(self, engine: TrainingEngine, audit: FrozenAudit, built_hashes: dict[str, str], state: RunState) -> None:
        """Write model/ from the expanded folder and the masters of what trained; its logits must be the engine's."""
        import torch

        audit.check(engine, "at export")
        trained = {name: engine.state_of(name, "master") for name in engine.trainable}
        batch = self.loader.batch(0)
        rows = Batch(**{name: getattr(batch, name)[:1].to(self.ranks.device) for name in Batch.__dataclass_fields__})
        engine_logits = engine.logits(rows)
        if not self.ranks.is_first:
            return
        hashes = write_trained(self.expanded, trained, self.exported)
        n_frozen = audit.check_exported(hashes, built_hashes)
        with torch.inference_mode():
            exported = logits_of(load_model(self.exported, self.config.engine.precision, self.ranks.device), rows)
        shape = read_shape(self.exported)
        self.results.update(
            training={
                "steps": state.step, "tokens": state.tokens, "seconds": state.seconds, "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
                "trained_parameters": sum(tensor.numel() for tensor in trained.values()),
                "total_parameters": shape.block_parameters * shape.n_layers + shape.other_parameters,
                "frozen_tensors_checked": n_frozen, "device": device_name(), "ranks": self.ranks.world,
                "export_max_difference": float((exported.float() - engine_logits.float()).abs().max()),
            }
        )  # fmt: skip

    # ── compare ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def compare_and_report(self) -> Outcome:
        """First rank: score the exported model beside the base, write samples, card, report."""
        base = self._score_folder(self.base, "held-out text, base model")
        start = self._score_folder(self.expanded, "held-out text, before training")
        result = self._score_folder(self.exported, "held-out text, result")
        table = compare(self.scorer.sets, self.loader.roles, base, result, start)
        trackers = open_trackers(replace_tracker(self.config), self.folder)
        trackers.log({"step": self.total_steps, **{f"heldout/{source}": value for source, value in self.scorer.in_loop_part(result).items()}})
        trackers.finish()
        value = objective(table, self.config.objective)
        self.results.update(heldout=table, samples=self._samples())
        self.results.update(objective={"name": self.config.objective, "value": value})
        shutil.copyfile(self.folder / "plan.json", self.exported / "plan.json")
        (self.exported / "README.md").write_text(model_card(self.folder), encoding="utf-8")
        print_results(self.results.values, console=self.console)
        report = write_report(self.folder)
        print_finished(report, console=self.console)
        # The expanded model is the base plus the plan: it can be built again at any time.
        shutil.rmtree(self.expanded, ignore_errors=True)
        return Outcome(objective=value, report=report)

    def _samples(self) -> list[dict[str, str]]:
        heldout = self.config.heldout
        prompts = choose_prompts(self.scorer.documents, heldout.samples, heldout.sample_tokens)
        texts: dict[str, list[str]] = {}
        for label, folder in (("base", self.base), ("result", self.exported)):
            model = load_model(folder, self.config.engine.precision, self.ranks.device)
            texts[label] = continue_prompts(
                model, self.tokenizer, prompts, prefix_token=prefix_token(self.tokenizer), new_tokens=heldout.sample_tokens
            )
        decode = self.tokenizer.decode
        return [
            {"source": prompt["source"], "prompt": decode(prompt["prompt"]), "truth": decode(prompt["truth"]), "base": before, "result": after}
            for prompt, before, after in zip(prompts, texts["base"], texts["result"], strict=True)
        ]

    def show_again(self) -> Outcome:
        """A finished run started again: its table and report, nothing recomputed."""
        results = Results(self.folder)
        self.console.print(f"{self.folder} is finished; nothing to do (type run=NAME for another run)")
        print_results(results.values, console=self.console)
        report = write_report(self.folder)
        print_finished(report, console=self.console)
        return Outcome(objective=results["objective"]["value"], report=report)


def replace_tracker(config: RunConfig) -> RunConfig:
    """The same configuration with metrics.jsonl as its only tracker."""
    return config.model_copy(update={"tracker": config.tracker.model_copy(update={"name": "jsonl"})})


def versions() -> dict[str, str]:
    """Versions of what decides results."""
    from importlib.metadata import version

    return {name: version(name) for name in ("slayer", "torch", "transformers", "deepspeed", "datasets")}
