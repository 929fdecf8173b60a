"""Skipping that does not help ends in a rewind, through the real pipeline: a run on a text of which a stretch breaks the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from dying_ranks import KILLED, train
from poisoned_text import TOTAL_STEPS, Foretold, foretell, poisoned_overrides, poisoned_steps
from safetensors.torch import load_file

from slayer.launching.compose import compose
from slayer.reporting.events import read_events
from slayer.reporting.json_lines import read_json_lines
from slayer.training.checkpoint.compare import compare
from slayer.training.checkpoint.folder import checkpoint_folder, find_problem, list_checkpoints
from slayer.training.signals import REQUEUE_EXIT_CODE

CLOCKED = ("tokens_per_second", "mfu", "memory_bytes", "step_seconds")


class Poisoned:
    """Runs on one poisoned text, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.overrides = poisoned_overrides(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLAYER_CACHE", str(folder / "cache"))
            bad = poisoned_steps(compose(self.overrides), 2 * TOTAL_STEPS)
        self.foretold: Foretold = foretell(bad)
        self.bad = bad

    def train(self, name: str, *words: str, expect: int = 0, ranks: int = 1, **environment: str) -> Path:
        """Start a run, or start it again."""
        log = self.folder / f"{name}.log"
        environment |= {"SLAYER_CACHE": str(self.folder / "cache")}
        train([*self.overrides, *words, f"run={name}"], log, expect=expect, ranks=ranks, **environment)
        return self.folder / "runs" / name

    def said(self, name: str) -> str:
        """All that the starts of a run have printed, without line breaks."""
        return " ".join((self.folder / f"{name}.log").read_text(encoding="utf-8").split())


def timeless(run: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key not in CLOCKED} for line in read_json_lines(run / "metrics.jsonl")]


def rewinds_of(run: Path) -> list[tuple[int, int]]:
    return [(one["from_step"], one["to_step"]) for one in json.loads((run / "rewinds.json").read_text(encoding="utf-8"))]


def assert_same_end(one: Path, other: Path) -> None:
    """Log lines, rewinds, the last checkpoint and the exported model, bit for bit."""
    assert timeless(one) == timeless(other)
    assert rewinds_of(one) == rewinds_of(other)
    newest = [list_checkpoints(run / "checkpoints")[-1] for run in (one, other)]
    found = compare(*newest)
    assert found.same and [key for key, *_ in found.state if key != "run.seconds"] == []
    files = [(run / "model" / "model.safetensors").read_bytes() for run in (one, other)]
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    return Poisoned(tmp_path_factory.mktemp("poisoned"))


@pytest.fixture(scope="module")
def whole(poisoned: Poisoned) -> Path:
    """The run that nobody disturbs."""
    return poisoned.train("whole")


def test_the_text_is_what_these_tests_need(poisoned: Poisoned) -> None:
    """Two rewinds, the second to the checkpoint of the first, and bad steps behind it that skipping gets past."""
    assert len(poisoned.foretold.rewinds) == 2 and len({to_step for _, to_step in poisoned.foretold.rewinds}) == 1
    assert len(poisoned.foretold.skipped) in (7, 8) and min(poisoned.bad) > 8


def test_a_run_goes_back_past_the_bad_data_and_finishes(poisoned: Poisoned, whole: Path) -> None:
    told, events = poisoned.foretold, read_events(whole / "events.jsonl")
    assert rewinds_of(whole) == told.rewinds
    assert [step for event in events if event["event"] == "skipped" for step in event["steps"]] == told.skipped
    rewinds = [event for event in events if event["event"] == "rewind"]
    assert [(event["step"], event["to_step"], event["jump"]) for event in rewinds] == [(*one, one[0] - one[1]) for one in told.rewinds]
    said = poisoned.said("whole")
    for from_step, to_step in told.rewinds:
        assert f"back from step {from_step} to the checkpoint of step {to_step}" in said
    layers = {name: tensor for name, tensor in load_file(whole / "model" / "model.safetensors").items() if name.startswith("model.layers")}
    assert layers and not any(tensor.isnan().any() for tensor in layers.values())


def test_the_log_holds_the_course_that_counts(poisoned: Poisoned, whole: Path) -> None:
    """Each step once, in order; a step of a course that was left is gone; a skipped step says so and has no loss."""
    lines = [line for line in read_json_lines(whole / "metrics.jsonl") if "lr" in line]
    assert [line["step"] for line in lines] == list(range(1, TOTAL_STEPS + 1))
    bad = [step + 1 for step, data_step in poisoned.foretold.served.items() if data_step in poisoned.bad]
    assert [line["step"] for line in lines if line.get("skipped_steps") == 1 and line["loss"] is None] == bad
    assert all(line["loss"] is not None and line["grad_norm"] > 0 for line in lines if line["step"] not in bad)
    tokens = [line["tokens"] for line in lines]
    assert tokens == sorted(set(tokens))


def test_a_kill_before_the_rewind_is_recorded(poisoned: Poisoned, whole: Path) -> None:
    """The bad steps are met and skipped once more."""
    run = poisoned.train("unrecorded", DIE_AT="slayer.phases.session:write_file:1", expect=KILLED)
    assert not (run / "rewinds.json").exists()
    assert_same_end(poisoned.train("unrecorded"), whole)


def test_a_kill_before_what_was_left_behind_is_removed(poisoned: Poisoned, whole: Path) -> None:
    """A stop amid the bad steps leaves a checkpoint there; the kill comes between the record of the rewind and its removal."""
    from_step, to_step = poisoned.foretold.rewinds[0]
    ledger = poisoned.folder / "ledger"
    ledger.mkdir()
    stopped = {"DRILL_LEDGER": str(ledger), "DRILL_STOP_AT": f"0:{from_step - 1}"}
    run = poisoned.train("left_behind", expect=REQUEUE_EXIT_CODE, **stopped)
    poisoned.train("left_behind", DIE_AT="slayer.phases.session:remove:1", expect=KILLED)
    assert rewinds_of(run) == [(from_step, to_step)] and list_checkpoints(run / "checkpoints")[-1] == checkpoint_folder(
        run / "checkpoints", from_step - 1
    )
    poisoned.train("left_behind")
    assert f"going on from step {to_step} of" in poisoned.said("left_behind")
    assert_same_end(run, whole)


def test_a_kill_behind_a_rewind_and_a_lost_record(poisoned: Poisoned, whole: Path) -> None:
    """Killed a step behind it, before the next save. Without the record of rewinds it must not go on: the bad data would come again."""
    from_step, to_step = poisoned.foretold.rewinds[0]
    run = poisoned.train("behind", DIE_AT=f"slayer.training.engine:TrainingEngine.update:{from_step + 2}", expect=KILLED)
    record = (run / "rewinds.json").read_bytes()
    assert rewinds_of(run) == [(from_step, to_step)]
    before = [path.name for path in list_checkpoints(run / "checkpoints")]
    (run / "rewinds.json").write_bytes(record[:-9])
    poisoned.train("behind", expect=2)
    assert "rewinds.json is damaged" in poisoned.said("behind") and "Traceback" not in poisoned.said("behind")
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == before
    (run / "rewinds.json").write_bytes(record)
    assert_same_end(poisoned.train("behind"), whole)


@pytest.mark.slow
def test_two_ranks_go_back_alike_and_go_on_where_one_did(poisoned: Poisoned, whole: Path) -> None:
    """One row a rank, so that a batch may be bad on one rank only; the first rank dies before the engine is built anew."""
    run = poisoned.train("ranks", DIE_AT="slayer.phases.fit:TrainingEngine:2", expect=KILLED, ranks=2)
    assert rewinds_of(run) == poisoned.foretold.rewinds[:1]
    poisoned.train("ranks", "engine.zero_stage=3", ranks=2)
    assert rewinds_of(run) == poisoned.foretold.rewinds
    lines = [[{key: value for key, value in line.items() if value is not None} for line in timeless(one)] for one in (run, whole)]
    for one, other in zip(*lines, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-5)


def test_enough_is_enough(poisoned: Poisoned, whole: Path) -> None:
    """One return allowed where two are needed: an end with a reason and the steps, and nothing that was saved is touched. With one more
    return, which is no other configuration, the same run goes on to the same end."""
    first_bad = poisoned.foretold.rewinds[1][0] - 3
    run = poisoned.train("enough", "guard.max_rewinds=1", expect=2)
    assert [path.name for path in list_checkpoints(run / "checkpoints")] == ["step-00000004", "step-00000008"]
    assert all(find_problem(path) is None for path in list_checkpoints(run / "checkpoints"))
    said = poisoned.said("enough")
    assert f"training does not get past step {first_bad}: 3 steps in a row were skipped, and the run went back 1 times" in said
    from_step, to_step = poisoned.foretold.rewinds[0]
    assert f"step {from_step} back to {to_step}" in said and "guard.max_rewinds=N" in said and "Traceback" not in said
    assert [event["step"] for event in read_events(run / "events.jsonl") if event["event"] == "gave_up"] == [first_bad + 3]
    poisoned.train("enough", "guard.max_rewinds=2")
    assert_same_end(run, whole)


def test_without_any_checkpoint_it_goes_back_to_the_start_and_says_so(poisoned: Poisoned) -> None:
    told = foretell(poisoned.bad, save_every=100)
    run = poisoned.train("from_start", "train.save_every=100")
    assert rewinds_of(run) == told.rewinds and {to_step for _, to_step in told.rewinds} == {0}
    assert f"back from step {told.rewinds[0][0]} to the start" in poisoned.said("from_start")
    lines = [line["step"] for line in read_json_lines(run / "metrics.jsonl") if "lr" in line]
    assert lines == list(range(1, TOTAL_STEPS + 1))
