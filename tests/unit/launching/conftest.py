"""Shared by the tests of slayer.launching: a small corpus, and overrides of a run on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of a few documents."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"document {number}"}) + "\n" for number in range(20)), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def small(text: Path) -> list[str]:
    """Overrides of a sound configuration that needs no embedded asset."""
    general = ["data.sources.general.builtin=null", f"data.sources.general.path={text.parent}/*.jsonl"]
    return ["model=tiny", "data=local", f"data.path={text}", *general, "data.cleaning.decontaminate=[]"]


@pytest.fixture(scope="session")
def assets() -> None:
    """All embedded models and texts, in the user's cache."""
    from slayer.data.assets import ASSETS, fetch

    fetch(ASSETS)
