"""What the points of a sweep have in common is made once: by runs one after the other, and by two that begin at the same moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from run_folders import RunFolder

from slayer.config import HeldoutConfig
from slayer.evaluation.scorer import HeldoutScorer

POINTS = [(init, expansion) for init in ("average", "copy", "random") for expansion in ("shallow_half", "deep_half")]
SUITE = ["+suite.tasks={piqa:{limit:6}}"]

pytestmark = pytest.mark.usefixtures("questions")


@pytest.fixture(scope="module")
def counted(own_cache: None, run_here: Callable[..., RunFolder]) -> Iterator[list[Counter[str]]]:
    """Six points that prune by a measured score and are asked questions, and how often each piece of work was done for each of them."""
    from slayer.data.storing import ingest, tokens
    from slayer.evaluation.harness import scores
    from slayer.importance import analysis

    done: Counter[str] = Counter()

    def spied(owner: Any, name: str, told: Callable[..., str], patch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)

        def spy(*values: Any, **named: Any) -> Any:
            found = original(*values, **named)
            done[told(found, *values)] += 1
            return found

        patch.setattr(owner, name, spy)

    counts = []
    with pytest.MonkeyPatch.context() as patch:
        spied(ingest.ReadPart, "__call__", lambda *_: "reading", patch)
        spied(tokens._TokenisePart, "__call__", lambda *_: "tokenising", patch)
        spied(HeldoutScorer, "score", lambda _found, _self, _logits, label, **_named: label, patch)
        spied(scores, "score_task", lambda *_: "questions", patch)
        spied(analysis, "run_coalitions", lambda found, *_: "layers" if found[1].run else "layers, nothing to do", patch)
        for init, expansion in POINTS:
            done.clear()
            run_here(f"{init}-{expansion}", f"expansion={expansion}", f"expansion.init={init}", "prune=1", "prune_by=removal", *SUITE)
            counts.append(Counter(done))
    yield counts


def test_the_base_is_scored_once_for_all_points(counted: list[Counter[str]]) -> None:
    assert [one["held-out text, base model"] for one in counted] == [1, 0, 0, 0, 0, 0]
    # The one block of deep_half is the last of four: the average of it and the next is a copy, and a model of the same bytes is not scored again.
    assert [one["held-out text, result"] for one in counted] == [1, 1, 1, 0, 1, 1]
    assert [one["questions"] for one in counted] == [2, 1, 1, 0, 1, 1]


def test_text_is_read_and_tokenised_once(counted: list[Counter[str]]) -> None:
    """Two sources, each of a single part."""
    for work in ("reading", "tokenising"):
        assert [one[work] for one in counted] == [2, 0, 0, 0, 0, 0]


def test_layers_are_measured_once(counted: list[Counter[str]]) -> None:
    assert counted[0]["layers"] > 0 and [one["layers"] for one in counted[1:]] == [0] * 5
    assert all(one["layers, nothing to do"] > 0 for one in counted[1:]), "they did ask"


# ── two at the same moment ───────────────────────────────────────────────────────────────────────

fork = multiprocessing.get_context("fork")


def score_base(folder: Path, diary: Path, found: Path, begin: Any, seconds: float) -> None:
    """Score a model folder on three documents, and leave the numbers; a line of the diary for each time it is really done."""
    import numpy as np

    from slayer.data.storing.tokens import heldout_documents
    from slayer.models import load_tokenizer

    class Named:
        def __init__(self, name: str) -> None:
            self.id, self.text = name, f"a document about {name} " * 20

    tokenizer = load_tokenizer(folder)
    documents = heldout_documents("law", [Named(name) for name in ("rivers", "stones", "law")], tokenizer)
    scorer = HeldoutScorer({"law": documents}, tokenizer, HeldoutConfig(tokens_per_source=4000), 64)
    original = scorer.score

    def slow(*values: Any, **named: Any) -> Any:
        with diary.open("a", encoding="utf-8") as lines:
            lines.write(f"{os.getpid()}\n")
        time.sleep(seconds)
        return original(*values, **named)

    scorer.score = slow  # type: ignore[method-assign]
    begin.wait()
    nats = scorer.score_folder(folder, "base", precision="fp32", micro_batch_rows=2, device="cpu")
    np.save(found / f"{os.getpid()}.npy", nats["law"])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_two_that_begin_at_the_same_moment_score_the_base_once(tiny_folder: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
    folder, begin, diary = tiny_folder(), fork.Barrier(2), tmp_path / "diary"
    processes = [fork.Process(target=score_base, args=(folder, diary, tmp_path, begin, 0.5)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(90)
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(diary.read_text(encoding="utf-8").split()) == 1, "one did it, the other waited"
    first, second = ((tmp_path / f"{process.pid}.npy").read_bytes() for process in processes)
    assert first == second


def test_one_that_is_killed_leaves_the_work_to_the_other(tiny_folder: Callable[..., Path], cache: Path, tmp_path: Path) -> None:
    folder, diary = tiny_folder(), tmp_path / "diary"
    slow = fork.Process(target=score_base, args=(folder, diary, tmp_path, fork.Barrier(1), 600))
    slow.start()
    until = time.monotonic() + 60
    while not diary.exists() and time.monotonic() < until:
        time.sleep(0.05)
    other = fork.Process(target=score_base, args=(folder, diary, tmp_path, fork.Barrier(1), 0))
    other.start()
    time.sleep(2)
    assert other.is_alive() and len(diary.read_text(encoding="utf-8").split()) == 1, "it waits"
    os.kill(slow.pid or 0, signal.SIGKILL)
    slow.join(10)
    other.join(60)
    assert other.exitcode == 0 and diary.read_text(encoding="utf-8").split() == [str(slow.pid), str(other.pid)]
    assert not [json.dumps(str(path)) for path in (cache / "scores").iterdir() if path.suffix not in (".npz", ".lock")]
