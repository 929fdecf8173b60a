"""Training and export, on all ranks: segments between which the engine is built anew, each from the newest checkpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from slayer.cost.devices import peak_flops
from slayer.cost.flops import train_flops_per_token
from slayer.data.order.loader import Batch
from slayer.forward import hollow_model, load_model, logits_of
from slayer.models import model_hash_cached
from slayer.phases.benchmarks import RunBenchmarks
from slayer.phases.run import Run
from slayer.phases.session import Session
from slayer.reporting.progress import TrainingProgress
from slayer.surgery.build import write_trained
from slayer.surgery.families import HEAD
from slayer.surgery.freeze import stage_factors
from slayer.surgery.shape import read_shape
from slayer.surgery.weights import Weights
from slayer.training.checkpoint.load import load_checkpoint
from slayer.training.checkpoint.random_state import seed_generators
from slayer.training.checkpoint.saver import Saver
from slayer.training.engine import TrainingEngine
from slayer.training.frozen import FrozenAudit
from slayer.training.loop import Callbacks, Course, Ending, Pace, to_device, train
from slayer.training.metrics import device_name
from slayer.training.optim import trained_groups
from slayer.training.signals import StopRequest
from slayer.training.state import RunState
from slayer.training.watchdog import Watchdog

if TYPE_CHECKING:
    import torch

RETRY_SECONDS = 10.0
"""Between two tries to save at the end of a freeze stage, where going on needs the checkpoint."""


class _EvaluationCutError(Exception):
    """A stop was asked for in the middle of an evaluation."""


def fit(run: Run, stop: StopRequest, watchdog: Watchdog, benchmarks: RunBenchmarks) -> tuple[RunState, Ending]:
    """Train from the newest valid checkpoint until the end, and export, or until a stop. All ranks."""
    if run.total_steps == 0:
        run.ranks.together(lambda: _export_as_built(run))
        return RunState(), "finished"
    with TrainingProgress(run.console) as progress:
        session = Session(run, stop, watchdog, benchmarks, progress)
        try:
            ended: Ending = "rewind"
            while ended in ("stage", "rewind"):
                state, ended = _segment(session)
        finally:
            session.close()
    return state, ended


def _segment(session: Session) -> tuple[RunState, Ending]:
    """Train from the newest checkpoint until the run or its freeze stage is over, a stop, or a rewind; at the end of the run, export."""
    with session.stop.deferred():
        with session.watchdog.paused("build"):
            engine, audit, state = _opened(session)
        try:
            saver = Saver(
                session.checkpoints, engine, session.binding, session.run.config.train, session.facts,
                check_frozen=lambda: audit.check_resident(engine), on_saved=session.tell_saved,
            )  # fmt: skip
            try:
                state, ended = _train(session, engine, saver, state)
                if ended == "rewind":
                    saver.wait()
                    session.rewind(state, engine.guard.in_a_row)
                state, ended = _settled(session, saver, state, ended)
            except BaseException:
                saver.abandon()
                raise
        except BaseException:
            engine.close()
            raise
    try:
        if ended == "finished":
            with session.watchdog.paused("export"):
                _export(session.run, engine, audit, state)
    finally:
        engine.close()
    return state, ended


def _opened(session: Session) -> tuple[TrainingEngine, FrozenAudit, RunState]:
    """The engine of the freeze stage in hand, with the newest checkpoint in it, and its frozen weights checked."""
    run, config = session.run, session.run.config
    folder, state = session.newest()
    model, weights = _opened_model(run)
    names, dtype = [name for name, _ in model.named_parameters()], model.dtype
    factors = [stage_factors(run.plan, names, stage) for stage in range(run.plan.n_stages)]
    engine = TrainingEngine(model, trained_groups(factors, state.stage_steps), config, run.ranks, weights)
    try:
        audit = FrozenAudit(run.expanded, session.built_hashes, dtype, run.ranks)
        seed_generators(config.seed, run.ranks.rank)
        if folder is not None:
            state = replace(load_checkpoint(folder, engine, session.binding), rewinds=state.rewinds)
            run.loader.restore(state.position)
        audit.check(engine, "after loading" if folder is not None else "at the start")
        _tell_start(session, state)
    except BaseException:
        engine.close()
        raise
    return engine, audit, state


def _opened_model(run: Run) -> tuple[Any, Weights | None]:
    """The expanded model, and where its values are read from if it is without: under ZeRO-3 no rank ever holds it whole."""
    precision = run.config.engine.precision
    if run.config.engine.zero_stage == 3:
        weights = Weights(run.expanded)
        return hollow_model(run.expanded, precision, own_head=HEAD in weights), weights
    return load_model(run.expanded, precision, run.ranks.device), None


def _tell_start(session: Session, state: RunState) -> None:
    """The first line of a log, or where an earlier start left off."""
    run, total = session.run, session.run.total_steps
    if session.trackers is not None:
        # A run that was killed before its first checkpoint writes the line of step 0 again, too.
        session.trackers.truncate_after(state.step if state.step > 0 or state.rewinds else -1)
    if state.step > 0 and not session.is_under_way:
        run.console.print(f"going on from step {state.step} of {total} ({state.tokens:,} tokens trained)")
        session.record("resumed", state.step, stage=state.stage + 1, ranks=run.ranks.world, zero_stage=run.config.engine.zero_stage)
    if run.plan.n_stages > 1:
        run.console.print(f"freeze stage {state.stage + 1} of {run.plan.n_stages} from step {state.step}")
    session.is_under_way = True


def _train(session: Session, engine: TrainingEngine, saver: Saver, state: RunState) -> tuple[RunState, Ending]:
    run, config = session.run, session.run.config
    now: tuple[str, int] = ("build", state.step)

    def beat(phase: str, step: int) -> None:
        nonlocal now
        now = (phase, step)
        session.watchdog.beat(phase, step)

    course = Course(
        total_steps=run.total_steps,
        stage_ends_at_tokens=tuple(stage.until_tokens for stage in run.plan.stages[state.stage :] if stage.until_tokens is not None),
        mixture_steps=frozenset(stage.from_step for stage in run.loader.schedule.stages[1:]), stage_warmup_steps=config.freeze.warmup_steps,
    )  # fmt: skip
    callbacks = _callbacks(session, engine, saver, state)
    with engine.around_forward(before=lambda: session.watchdog.beat(*now), after=lambda: session.watchdog.beat(*now)):
        if state.step == 0 and not state.rewinds:
            _log_start(session, engine)
        return train(engine, run.loader, state, course, config.train, replace(callbacks, beat=beat), _pace(run, state.stage), session.stop)


def _log_start(session: Session, engine: TrainingEngine) -> None:
    run = session.run
    tasks = session.benchmarks.score_in_training(engine) if run.config.train.evaluate_every is not None else {}
    session.log({"step": 0, **{f"heldout/{source}": value for source, value in run.results["before"]["start"].items()}, **tasks})


def _callbacks(session: Session, engine: TrainingEngine, saver: Saver, start: RunState) -> Callbacks:
    run = session.run
    staged = {"stage": start.stage + 1} if run.plan.n_stages > 1 else {}

    def evaluate(now: RunState) -> bool:
        try:
            with _cut_by_stop(engine, session.stop):
                scores = run.scorer.score_in_loop(engine.logits, micro_batch_rows=run.micro_batch_rows, device=run.ranks.device)
                tasks = session.benchmarks.score_in_training(engine)
        except _EvaluationCutError:
            return False
        session.log({"step": now.step, **{f"heldout/{source}": value for source, value in scores.items()}, **tasks})
        return True

    def save(now: RunState) -> None:
        with session.watchdog.paused("save"):
            saver.save(now)

    def skip(step: int, why: str) -> None:
        session.record("skipped", step + 1, steps=[step + 1], why=why)
        session.warn(f"step {step + 1} was skipped: {why}; the weights are as they were")

    return Callbacks(
        on_log=lambda record: session.log({**record, **staged}), on_evaluate=evaluate, on_save=save, on_skip=skip, must_halt=lambda: saver.is_fatal
    )  # fmt: skip


@contextmanager
def _cut_by_stop(engine: TrainingEngine, stop: StopRequest) -> Iterator[None]:
    """Every rank leaves the body before the same forward pass when one of them has heard of a stop: they make the same passes."""

    def cut() -> None:
        if stop.agreed(engine.ranks):
            raise _EvaluationCutError

    with engine.around_forward(before=cut):
        yield


def _settled(session: Session, saver: Saver, state: RunState, ended: Ending) -> tuple[RunState, Ending]:
    """Wait for the last save. The next freeze stage begins from it, so there it is tried again until the disk takes it. A stop whose save
    failed leaves the run at its last good checkpoint."""
    with session.watchdog.paused("save"):
        saved = saver.wait()
        while ended == "stage" and saved is not None and saved.problem is not None and not saved.fatal:
            time.sleep(RETRY_SECONDS)
            if session.stop.agreed(session.run.ranks):
                ended = "stopped"
                break
            saver.save(replace(state, position=session.run.loader.position(state.data_step)))
            saved = saver.wait()
    session.run.ranks.together(saver.require_good)
    if ended == "finished" and session.stop.agreed(session.run.ranks):
        ended = "stopped"  # started again, the run goes on with the export
    if ended == "stopped":
        state = session.newest()[1] if saved is not None and saved.problem is not None else state
        session.record("stopped", state.step)
    return state, ended


def _pace(run: Run, stage: int) -> Pace:
    flops = train_flops_per_token(read_shape(run.base), run.plan.at_stage(stage), run.config.data.sequence_length)
    peak = peak_flops(device_name(), run.config.engine.peak_teraflops)
    return Pace(flops_per_token=flops, peak_flops=peak * run.ranks.world if peak is not None else None)


def _export_as_built(run: Run) -> None:
    if run.ranks.is_first:
        write_trained(run.expanded, {}, run.exported)
        _tell_exported(run)


def _export(run: Run, engine: TrainingEngine, audit: FrozenAudit, state: RunState) -> None:
    """Write model/ from the expanded folder and the masters of what trained; its logits must be the engine's. Collective."""
    audit.check(engine, "at export")
    trained: dict[str, torch.Tensor] = {}
    for name in engine.changed:
        master = engine.state_of(name, "master")  # of all ranks together, one tensor at a time
        if run.ranks.is_first:
            trained[name] = master.cpu()
    batch = run.loader.batch(0)
    rows = Batch(**{name: getattr(batch, name)[:1].to(run.ranks.device) for name in Batch.__dataclass_fields__})
    engine_logits = engine.logits(rows)

    def write() -> None:
        hashes = write_trained(run.expanded, trained, run.exported)
        n_frozen = audit.check_exported(hashes, engine.changed)
        run.results.update(
            training={
                "steps": state.step, "tokens": state.tokens, "seconds": state.seconds, "tokens_per_second": state.tokens / max(state.seconds, 1e-9),
                "trained_parameters": sum(tensor.numel() for tensor in trained.values()),
                "total_parameters": read_shape(run.exported).parameters,
                "frozen_tensors_checked": n_frozen, "device": device_name(), "ranks": run.ranks.world,
                "export_max_difference": _largest_difference(run, engine_logits, rows),
            }
        )  # fmt: skip
        _tell_exported(run)

    run.ranks.together(lambda: write() if run.ranks.is_first else None)


def _largest_difference(run: Run, engine_logits_BLV: torch.Tensor, rows: Batch) -> float:
    """Of any logit of the exported model, loaded anew, from the engine's."""
    import torch

    device = run.scoring_device(run.exported, beside_engine=True)
    with torch.inference_mode():
        exported_BLV = logits_of(load_model(run.exported, run.config.engine.precision, device), to_device(rows, device))
    return float((exported_BLV.float() - engine_logits_BLV.to(device).float()).abs().max())


def _tell_exported(run: Run) -> None:
    """Hashes of what was begun from and what was made of it, for runs that start from this one (warm_start)."""
    run.results.update(base_hash=model_hash_cached(run.base), model_hash=model_hash_cached(run.exported))
