"""Shared by the tests of slayer.data: a cache of their own, the byte tokenizer, and a small corpus on disk."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from slayer.config import DataConfig, SourceConfig
from slayer.data.assets import fetch
from slayer.data.random_model import byte_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder for this test alone."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SLAYER_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def texts() -> None:
    """The embedded texts, in the user's cache."""
    fetch(["wikipedia", "licences"])


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domain files and one replay file of JSONL, 40 to 120 documents each of 1 to 200 bytes."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = random.Random(1)
    for name, count in (("law", 120), ("code", 60), ("general", 40)):
        lines = [json.dumps({"text": f"{name} {number} " + "é" * int(generator.lognormvariate(3, 1))}) for number in range(count)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def data(corpus: Path) -> DataConfig:
    sources = {
        "law": SourceConfig(role="domain", path=str(corpus / "law.jsonl"), weight=2.0),
        "general": SourceConfig(role="replay", path=str(corpus / "general.jsonl")),
        "code": SourceConfig(role="domain", path=str(corpus / "code.jsonl")),
    }
    return DataConfig(name="test", sources=sources, replay=0.25, sequence_length=64)
