from __future__ import annotations

import json
from pathlib import Path

import pytest

from slayer.errors import CheckpointError
from slayer.results import FORMAT, Results


def test_findings_are_added_and_read_back(tmp_path: Path) -> None:
    results = Results(tmp_path / "run")
    assert "proof" not in results
    results.update(proof={"loss": 2.5}, run="é")
    results.update(objective={"value": 1.0})
    again = Results(tmp_path / "run")
    assert again.values == {"format": FORMAT, "proof": {"loss": 2.5}, "run": "é", "objective": {"value": 1.0}}
    assert "proof" in again and again["proof"] == {"loss": 2.5}
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["results.json"]


def test_opening_writes_nothing(tmp_path: Path) -> None:
    Results(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_failed_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.update(run="good")
    before = results.path.read_bytes()
    with pytest.raises(TypeError):
        results.update(bad={1, 2})
    assert results.path.read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "{}", json.dumps({"format": FORMAT + 1}), '{"format": 1', "\udcff"])
def test_a_damaged_file_is_named_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"results\.json .*run=NAME"):
        Results(tmp_path)
    assert path.read_bytes() == text.encode("utf-8", "surrogateescape")
