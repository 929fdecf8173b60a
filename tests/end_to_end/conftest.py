"""Runs of the real command line on a tiny model and a small corpus."""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended. `out` is all it printed, on both streams."""

    code: int
    out: str
    seconds: float


def write_texts(path: Path, documents: int, seed: int, field: str = "text") -> Path:
    """A JSONL file of short documents of a few words each."""
    generator = random.Random(seed)
    words = ["river", "stone", "light", "house", "green", "seven", "never", "water"]
    lines = [json.dumps({field: f"{number}: " + " ".join(generator.choices(words, k=40))}) for number in range(documents)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with domain.jsonl (60 documents) and general.jsonl (40)."""
    folder = tmp_path_factory.mktemp("corpus")
    write_texts(folder / "domain.jsonl", 60, seed=1)
    write_texts(folder / "general.jsonl", 40, seed=2)
    return folder


@pytest.fixture(scope="session")
def small(corpus: Path) -> list[str]:
    """Overrides of a run that takes a few seconds: a tiny model, two steps, little text."""
    return [
        "model=tiny", "data=local", f"data.path={corpus / 'domain.jsonl'}", "data.sources.general.builtin=null",
        f"data.sources.general.path={corpus / 'general.jsonl'}", "data.sequence_length=64", "train.max_steps=2",
        "heldout.tokens_per_source=300", "heldout.in_loop_tokens_per_source=200", "heldout.samples=1", "heldout.sample_tokens=4",
    ]  # fmt: skip


def environment(**changes: str) -> dict[str, str]:
    """The environment of a command: no terminal settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "FORCE_COLOR", "RANK", "WORLD_SIZE")}
    return {**kept, "PYTHONUNBUFFERED": "1", **changes}


def command(*words: str) -> list[str]:
    """train.py of this checkout, as a person starts it."""
    return [sys.executable, str(ROOT / "train.py"), *words]


@pytest.fixture(scope="session")
def train() -> Callable[..., Done]:
    """train(words …, SLAYER_CACHE=…): run train.py to its end."""

    def run(*words: str, **changes: str) -> Done:
        started = time.monotonic()
        done = subprocess.run(
            command(*words), cwd=ROOT, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
            timeout=240, check=False,
        )  # fmt: skip
        return Done(code=done.returncode, out=done.stdout, seconds=time.monotonic() - started)

    return run


def start(*words: str) -> subprocess.Popen[str]:
    """Start train.py in a process group of its own, as a terminal does."""
    return subprocess.Popen(
        command(*words), cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", start_new_session=True
    )


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 90) -> None:
    """Return when `condition` holds; fail when the process ends or the time is over before."""
    until = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > until:
            process.kill()
            pytest.fail(f"the run ended or hung before the condition held:\n{process.communicate()[0]}")
        time.sleep(0.05)


def folder_hash(folder: Path) -> str:
    """One hash of the names and bytes of everything in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(f"{path.relative_to(folder)}\n".encode())
        if path.is_file():
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
