"""A configuration that holds a secret anywhere is refused, whoever made it, and says so without the secret."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from secret_canaries import CANARIES, canary

from slayer.config import EvaluationConfig, RunConfig
from slayer.errors import ConfigError, Problem
from slayer.leaks import secret_problem, secret_problems
from slayer.secrets import REDACTED
from slayer.validation import parse_config

PLACES: list[tuple[str, Any]] = [
    ("run", "{}"), ("runs_dir", "{}"), ("model", {"path": "{}"}), ("model", {"hub": "org/{}"}), ("model", {"revision": "{}"}),
    ("data", {"path": "{}"}), ("data", {"sources": {"law": {"path": "{}"}}}), ("data", {"sources": {"law": {"template": "{body} {}"}}}),
    ("data", {"sources": {"{}": {"path": "x"}}}), ("data", {"cleaning": {"decontaminate": ["arc_easy", "{}"]}}),
    ("data", {"stages": [{"weights": {"{}": 1.0}}]}), ("tracker", {"project": "{}"}), ("suite", {"tasks": {"{}": {}}}), ("tail", "{}"),
    ("checkpoint", "{}"), ("include_path", "{}"), ("nonsense", {"deep": [{"down": "{}"}]}),
]  # fmt: skip


def filled(value: Any, text: str) -> Any:
    if isinstance(value, dict):
        return {key.replace("{}", text): filled(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [filled(inner, text) for inner in value]
    return value.replace("{}", text) if isinstance(value, str) else value


@pytest.mark.parametrize("schema", [RunConfig, EvaluationConfig])
@pytest.mark.parametrize(("key", "value"), PLACES)
def test_wherever_it_stands_the_section_is_not_taken(key: str, value: Any, schema: type[RunConfig | EvaluationConfig]) -> None:
    for name in ("github", "userinfo", "private key"):
        good, problems = parse_config({key: filled(value, canary(name))}, schema)
        mine = [problem for problem in problems if problem.key.partition(".")[0] == key and "holds a secret" in problem.why]
        assert len(mine) == 1 and mine[0].value == REDACTED and key not in good
        assert CANARIES[name][0] not in str(ConfigError(problems))


def test_several_are_told_together_each_once() -> None:
    values = {
        "run": canary("openai"),
        "data": {"path": canary("github"), "suite": "x", "cleaning": {"decontaminate": [canary("npm"), canary("slack")]}},
    }
    assert [problem.key for problem in secret_problems(values)] == ["run", "data.path", "data.cleaning.decontaminate"]


def test_what_a_configuration_usually_holds_is_no_secret() -> None:
    sha_1, sha_256 = hashlib.sha1(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest()
    values = {
        "run": f"even-prune_2-{sha_1[:8]}", "model": {"hub": "meta-llama/Llama-3.2-1B", "revision": sha_1, "path": f"/data/{sha_256}/model"},
        "data": {"path": "https://example.com/text.jsonl?part=1", "sources": {"law": {"template": "{title}\n\nkey: {body}", "revision": sha_1}}},
        "seed": 3, "dry_run": False, "nothing": None,
    }  # fmt: skip
    assert secret_problems(values) == [] and secret_problem("run", sha_1) is None


def test_errors_for_people_hold_no_secret_whoever_writes_them() -> None:
    """A problem found elsewhere that repeats what it saw."""
    told = str(ConfigError([Problem(key="model.hub", value=canary("github"), why=f"said {canary('openai')}", fix=f"model.hub={canary('npm')}")]))
    assert not [name for name in ("github", "openai", "npm") if CANARIES[name][0] in told] and told.count(REDACTED) == 3
