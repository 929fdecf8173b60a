"""Training and export, on all ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slayer.cost.flops import peak_flops, train_flops_per_token
from slayer.data.order.loader import Batch
from slayer.forward import load_model, logits_of
from slayer.phases.benchmarks import RunBenchmarks
from slayer.phases.run import Run
from slayer.reporting.progress import TrainingProgress
from slayer.reporting.trackers import Trackers, open_trackers
from slayer.surgery.build import read_hashes, read_shape, write_trained
from slayer.surgery.freeze import trainable_names
from slayer.surgery.weights import combined_hash
from slayer.training.checkpoint import Binding, RunState, load_checkpoint, newest_valid, save_checkpoint
from slayer.training.engine import TrainingEngine
from slayer.training.frozen import FrozenAudit
from slayer.training.loop import Callbacks, Pace, train
from slayer.training.metrics import device_name
from slayer.training.signals import StopRequest


def fit(run: Run, stop: StopRequest, benchmarks: RunBenchmarks) -> RunState:
    """Train from the newest valid checkpoint to the end, and export. All ranks."""
    if run.total_steps == 0:
        if run.ranks.is_first:
            write_trained(run.expanded, {}, run.exported)
        return RunState()
    config, built_hashes = run.config, read_hashes(run.expanded)
    model = load_model(run.expanded, config.engine.precision, run.ranks.device)
    names = [name for name, _ in model.named_parameters()]
    engine = TrainingEngine(model, trainable_names(run.plan, names), config, run.ranks)
    try:
        audit = FrozenAudit(run.expanded, built_hashes, engine.trainable, model.dtype)
        audit.check(engine, "at the start")
        binding = Binding(model=combined_hash(built_hashes), data=run.loader.fingerprint)
        state = _resume(run, engine, binding)
        trackers = open_trackers(config.tracker, run.folder, name=config.run, values=config.model_dump()) if run.ranks.is_first else None
        with TrainingProgress(run.console) as progress:
            callbacks = _callbacks(run, engine, audit, binding, trackers, progress, state, benchmarks)
            state = train(engine, run.loader, state, run.total_steps, config.train, callbacks, _pace(run), stop)
        if trackers is not None:
            trackers.finish()
        if state.step == run.total_steps:
            _export(run, engine, audit, built_hashes, state)
    finally:
        engine.close()
    return state


def _resume(run: Run, engine: TrainingEngine, binding: Binding) -> RunState:
    def tell(folder: Path, problem: str) -> None:
        run.console.print(f"[yellow]checkpoint {folder.name} is damaged ({problem}) and passed over[/]")

    newest = newest_valid(run.folder / "checkpoints", tell)
    if newest is None:
        return RunState()
    state = load_checkpoint(newest, engine, binding)
    run.loader.restore(state.position)
    run.console.print(f"going on from step {state.step} of {run.total_steps} ({state.tokens:,} tokens trained)")
    return state


def _callbacks(
    run: Run, engine: TrainingEngine, audit: FrozenAudit, binding: Binding, trackers: Trackers | None, progress: TrainingProgress, state: RunState,
    benchmarks: RunBenchmarks,
) -> Callbacks:  # fmt: skip
    def log(record: dict[str, Any]) -> None:
        if trackers is not None:
            trackers.log(record)
            progress.update(record)

    def evaluate(now: RunState) -> None:
        scores = run.scorer.score_in_loop(engine.logits, micro_batch_rows=run.micro_batch_rows, device=run.ranks.device)
        log({"step": now.step, **{f"heldout/{source}": value for source, value in scores.items()}, **benchmarks.score_in_training(engine)})

    def save(now: RunState) -> None:
        audit.check(engine, f"at step {now.step}")
        save_checkpoint(run.folder / "checkpoints", engine, now, binding, run.config.train.keep_checkpoints)

    if trackers is not None:
        trackers.truncate_after(state.step)
    if state.step == 0:
        tasks = benchmarks.score_in_training(engine) if run.config.train.evaluate_every is not None else {}
        log({"step": 0, **{f"heldout/{source}": value for source, value in run.results["before"]["start"].items()}, **tasks})
    return Callbacks(on_log=log, on_evaluate=evaluate, on_save=save)


def _pace(run: Run) -> Pace:
    flops = train_flops_per_token(read_shape(run.base), run.plan, run.config.data.sequence_length)
    peak = peak_flops(device_name(), run.config.engine.peak_teraflops)
    return Pace(flops_per_token=flops, peak_flops=peak * run.ranks.world if peak is not None else None)


def _export(run: Run, engine: TrainingEngine, audit: FrozenAudit, built_hashes: dict[str, str], state: RunState) -> None:
    """Write model/ from the expanded folder and the masters of what trained; its logits must be the engine's."""
    import torch

    audit.check(engine, "at export")
    trained = {name: engine.state_of(name, "master") for name in engine.trainable}
    batch = run.loader.batch(0)
    rows = Batch(**{name: getattr(batch, name)[:1].to(run.ranks.device) for name in Batch.__dataclass_fields__})
    engine_logits = engine.logits(rows)
    if not run.ranks.is_first:
        return
    hashes = write_trained(run.expanded, trained, run.exported)
    n_frozen = audit.check_exported(hashes, built_hashes)
    with torch.inference_mode():
        exported = logits_of(load_model(run.exported, run.config.engine.precision, run.ranks.device), rows)
    shape = read_shape(run.exported)
    run.results.update(
        training={
            "steps": state.step, "tokens": state.tokens, "seconds": state.seconds, "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
            "trained_parameters": sum(tensor.numel() for tensor in trained.values()),
            "total_parameters": shape.block_parameters * shape.n_layers + shape.other_parameters,
            "frozen_tensors_checked": n_frozen, "device": device_name(), "ranks": run.ranks.world,
            "export_max_difference": float((exported.float() - engine_logits.float()).abs().max()),
        }
    )  # fmt: skip
