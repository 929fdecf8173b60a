"""A search by optuna over a function that is known: what it tries, what it remembers, what it makes of failures."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from slayer.launching.search import Settings, search, search_problems

optuna = pytest.importorskip("optuna", reason="needs the extra `sweep`: pip install 'optuna>=4'")

WORDS = ["model=tiny", "++train.learning_rate=tag(log,interval(1e-4,1e-1))", "++prune=interval(0,3)"]
SETTINGS = Settings(n_trials=14, n_startup_trials=5, seed=3)


class Course:
    """Answers points and writes down what was asked: the distance of the learning rate from 1e-2 in decades, plus what is pruned."""

    def __init__(self, fails: Callable[[int], bool] = lambda _: False, stops_at: int | None = None) -> None:
        self.asked: list[tuple[int, list[str]]] = []
        self.fails, self.stops_at = fails, stops_at

    def __call__(self, number: int, words: list[str]) -> float:
        if number == self.stops_at:
            raise KeyboardInterrupt
        self.asked.append((number, words))
        values = dict(word.lstrip("+").split("=", 1) for word in words)
        assert values["model"] == "tiny" and 0 <= int(values["prune"]) <= 3
        return math.inf if self.fails(number) else abs(math.log10(float(values["train.learning_rate"])) + 2) + int(values["prune"])


def searched(folder: Path, settings: Settings = SETTINGS, **course: object) -> Course:
    folder.mkdir(exist_ok=True)
    told = Course(**course)  # type: ignore[arg-type]
    search(WORDS, str(folder), settings, told)
    return told


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A search in one go."""
    return searched(tmp_path_factory.mktemp("search") / "whole")


def states(folder: Path) -> list[tuple[int, str]]:
    """(point, state) of every trial that optuna remembers."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    study = optuna.load_study(study_name="search", storage=JournalStorage(JournalFileBackend(str(folder / "search.log"))))
    return [(trial.user_attrs["point"], trial.state.name) for trial in study.get_trials()]


def test_every_point_is_asked_once_and_the_seed_decides(whole: Course, tmp_path: Path) -> None:
    assert [number for number, _ in whole.asked] == list(range(14))
    assert len({tuple(words) for _, words in whole.asked}) == 14
    assert searched(tmp_path / "again").asked == whole.asked
    other = searched(tmp_path / "other", Settings(n_trials=3, n_startup_trials=5, seed=4))
    assert not {tuple(words) for _, words in other.asked} & {tuple(words) for _, words in whole.asked}


def test_it_learns_from_what_came_out(whole: Course) -> None:
    """Behind the random beginning it looks where the values were good: a random search has a mean of 1.5 layers pruned."""
    pruned = [int(dict(word.lstrip("+").split("=", 1) for word in words)["prune"]) for _, words in whole.asked[5:]]
    assert sum(pruned) / len(pruned) < 1.0


def test_a_stopped_search_goes_on_as_if_it_had_not_been(whole: Course, tmp_path: Path) -> None:
    first = Course(stops_at=6)
    with pytest.raises(KeyboardInterrupt):
        search(WORDS, str(tmp_path), SETTINGS, first)
    assert states(tmp_path)[-1] == (6, "RUNNING")
    second = searched(tmp_path)
    assert second.asked == whole.asked, "finished points are shown again, the one that was stopped has the same values"
    assert states(tmp_path) == [(number, "COMPLETE") for number in range(14)]


def test_a_larger_number_goes_further(whole: Course, tmp_path: Path) -> None:
    searched(tmp_path, Settings(n_trials=4, n_startup_trials=5, seed=3))
    assert searched(tmp_path).asked == whole.asked


def test_a_failure_is_no_score_and_is_tried_again_as_the_same_point(tmp_path: Path) -> None:
    few = Settings(n_trials=8, n_startup_trials=2, seed=0)
    first = searched(tmp_path, few, fails=lambda number: number in (1, 4))
    assert states(tmp_path) == [(number, "FAIL" if number in (1, 4) else "COMPLETE") for number in range(8)]
    second = searched(tmp_path, few)
    assert second.asked == first.asked, "the same points with the same values"
    assert sorted(states(tmp_path))[1:3] == [(1, "COMPLETE"), (1, "FAIL")] and len(states(tmp_path)) == 10


def test_only_failures_are_survived_too(tmp_path: Path) -> None:
    searched(tmp_path, Settings(n_trials=4, n_startup_trials=1, seed=0), fails=lambda _: True)
    assert states(tmp_path) == [(number, "FAIL") for number in range(4)]


def test_what_is_searched_stands_in_the_folder_and_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched(tmp_path, Settings(n_trials=1, n_startup_trials=1, seed=0))
    found = json.loads((tmp_path / "search.json").read_text(encoding="utf-8"))
    assert (found["sampler"], found["n_trials"], list(found["space"])) == ("tpe", 1, ["train.learning_rate", "prune"])
    with pytest.raises(SystemExit) as ended:
        search(["++prune=interval(0,2)"], str(tmp_path), SETTINGS, Course())
    assert ended.value.code == 2 and "holds a search over other values" in capsys.readouterr().err
    assert states(tmp_path) == [(0, "COMPLETE")]


def test_nothing_to_search_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        search(["model=tiny"], str(tmp_path), SETTINGS, Course())
    assert ended.value.code == 2 and "has nothing to search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["-m", "prune=1,2"], []),
        (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=6", "hydra.sweeper.seed=0", "hydra.sweeper.n_startup_trials=0"], []),
        (["hydra/sweeper=optuna"], ["hydra/sweeper"]),
        (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=0"], ["hydra.sweeper.n_trials"]),
        (["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=many", "hydra.sweeper.n_jobs=2"], ["hydra.sweeper.n_trials", "hydra.sweeper.n_jobs"]),
    ],
)
def test_the_words_of_a_search_are_judged_before_it_begins(words: list[str], keys: list[str]) -> None:
    assert [problem.key for problem in search_problems(words)] == keys
