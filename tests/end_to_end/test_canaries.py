"""No secret leaves a process: keys in the environment, in words, in addresses, in errors of clients. Every byte that is written is searched."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_runs import ROOT, Done, environment, train
from secret_canaries import CANARIES, HEX, canary, letters
from small_text import run_overrides, write_text

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    "HF_TOKEN": canary("hugging face"), "WANDB_API_KEY": letters(40, "mine", HEX), "OPENAI_API_KEY": canary("openai project"),
    "ANTHROPIC_API_KEY": canary("anthropic"), "GITHUB_TOKEN": canary("github"), "AWS_ACCESS_KEY_ID": canary("aws id"),
    "AWS_SECRET_ACCESS_KEY": CANARIES["aws secret"][0], "DATABASE_PASSWORD": "a plain word, and another", "MY_CREDENTIAL": "not-random-at-all",
    "MIRROR": canary("userinfo"), "SLACK_WEBHOOK": canary("slack webhook"), "PRIVATE_KEY": canary("private key"),
}  # fmt: skip
"""What a person's shell holds."""
SECRETS = [secret for secret, _ in CANARIES.values()] + ["a plain word, and another", "not-random-at-all", letters(40, "mine", HEX)]


def hits(text: str | bytes) -> list[str]:
    data = text if isinstance(text, bytes) else text.encode()
    return [secret for secret in SECRETS if secret.encode() in data]


def files_with_hits(folder: Path) -> dict[str, list[str]]:
    """Names and bytes of every file below a folder."""
    paths = sorted(folder.rglob("*"))
    found = {
        str(path.relative_to(folder)): hits(str(path.relative_to(folder))) + (hits(path.read_bytes()) if path.is_file() else []) for path in paths
    }
    return {name: secrets for name, secrets in found.items() if secrets}


def evaluate(*words: str, **changes: str) -> Done:
    done = subprocess.run(
        [sys.executable, "evaluate.py", *words], cwd=ROOT, env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip
    return Done(code=done.returncode, out=done.stdout, seconds=0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for everything that these commands write."""
    folder = tmp_path_factory.mktemp("place")
    write_text(folder / "text")
    return folder


@pytest.fixture(scope="module")
def around(place: Path) -> dict[str, str]:
    """The environment: secrets, and places of its own for what clients write at home."""
    folders = {"SLAYER_CACHE": "cache", "WANDB_CONFIG_DIR": "home/wandb", "WANDB_CACHE_DIR": "home/wandb_cache", "WANDB_DATA_DIR": "home/wandb_data"}
    return {**ENVIRONMENT, "WANDB_MODE": "offline", **{name: str(place / folder) for name, folder in folders.items()}}


@pytest.fixture(scope="module")
def finished(place: Path, around: dict[str, str]) -> Done:
    """A whole run, tracked."""
    return train(*run_overrides(place / "text", place / "runs"), "run=one", "tracker=wandb", **around)


def test_a_run_with_secrets_all_around_writes_and_prints_none(place: Path, finished: Done) -> None:
    assert finished.code == 0, finished.out
    written = {path.name for path in (place / "runs" / "one").rglob("*")}
    assert {"config.yaml", "results.json", "report.html", "metrics.jsonl", "wandb"} <= written and any(name.endswith(".wandb") for name in written)
    assert files_with_hits(place) == {} and hits(finished.out) == []


def test_an_evaluation_does_neither(place: Path, finished: Done, around: dict[str, str]) -> None:
    words = [f"checkpoint={place / 'runs' / 'one'}", "heldout.tokens_per_source=600", "tracker=wandb"]
    done = evaluate(*words, **around)
    assert done.code == 0, done.out
    assert files_with_hits(place) == {} and hits(done.out) == []


def test_what_is_typed_is_refused_and_nothing_is_written(place: Path, around: dict[str, str]) -> None:
    """Every kind in a word of its own, one call for all; and the keys of the environment by name."""
    words = [f"data.sources.s{number}.path={canary(name)}" for number, name in enumerate(CANARIES)]
    more = [f"+tracker.api_key={ENVIRONMENT['WANDB_API_KEY']}", "runs_dir=${oc.env:HF_TOKEN}", "run=not-random-at-all", f"{canary('npm')}=1"]
    folder = place / "refused"
    done = train(*run_overrides(place / "text", folder / "runs"), *words, *more, **around)
    assert done.code == 2 and f"{len(words) + len(more)} problems in the configuration" in done.out and "Traceback" not in done.out
    assert done.out.count("(redacted)") >= len(CANARIES) and hits(done.out) == [] and not folder.exists()


def test_a_sweep_and_an_evaluation_refuse_them_too(place: Path, around: dict[str, str]) -> None:
    folder = place / "swept"
    swept = train("-m", *run_overrides(place / "text", folder), f"tracker.project={canary('github')}", "prune=0,1", **around)
    asked = evaluate(f"checkpoint={canary('userinfo')}", f"output={folder}/{canary('gitlab')}", **around)
    for done in (swept, asked):
        assert done.code == 2 and "holds a secret" in done.out and hits(done.out) == []
    assert not folder.exists()


BROKEN = """
import logging, os, sys
from slayer.secrets import guard_streams
guard_streams()
import slayer.phases.run
def failing(*_, **__):
    logging.getLogger("client").warning("retrying %s", os.environ["MIRROR"])
    raise RuntimeError("401 for " + os.environ["GITHUB_TOKEN"] + " at " + os.environ["MIRROR"] + ", " + os.environ["DATABASE_PASSWORD"])
slayer.phases.run.open_text = failing
sys.path.insert(0, ".")
import train
sys.exit(train.main())
"""


def test_a_traceback_and_a_log_that_repeat_them_are_shown_without(place: Path, around: dict[str, str]) -> None:
    """A client that tells the keys it was given when it fails, as many do."""
    words = [*run_overrides(place / "text", place / "runs"), "run=failed"]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN, *words], cwd=ROOT, env=environment(**around), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        encoding="utf-8", timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "RuntimeError: 401 for (redacted) at https://(redacted)@mirror.example.com/data.jsonl, (redacted)" in done.stdout
    assert "retrying https://(redacted)@mirror" in done.stdout and hits(done.stdout) == [] and files_with_hits(place) == {}


def test_findings_that_hold_a_secret_are_written_without_it(tmp_path: Path) -> None:
    from slayer.results import Results

    findings: dict[str, Any] = {"said": [f"401 for {canary('github')}"], canary("npm"): {"hash": letters(64, "hash", HEX)}}
    results = Results(tmp_path)
    results.update(section=findings)
    written = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["section"]
    assert written == results["section"] == {"said": ["401 for (redacted)"], "(redacted)": {"hash": letters(64, "hash", HEX)}}
    assert files_with_hits(tmp_path) == {}


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.bin").write_bytes(b"\xff\x00" + CANARIES["github"][0].encode() + b"\x00")
    (tmp_path / CANARIES["gitlab"][0]).write_text("", encoding="utf-8")
    assert sorted(files_with_hits(tmp_path)) == sorted(["a/b.bin", CANARIES["gitlab"][0]])
    shutil.rmtree(tmp_path / "a")
    assert len(files_with_hits(tmp_path)) == 1 and hits("nothing") == []
