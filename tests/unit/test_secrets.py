"""Secrets are found and taken out, whatever stands around them; and nothing else is."""

from __future__ import annotations

import base64
import hashlib
import io
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from secret_canaries import CANARIES, canary, letters

from slayer.launching.commandline import CONF
from slayer.secrets import LEAST_LETTERS, REDACTED, RedactedStream, find_secret, redacted, redacted_stream, without_secrets

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", CANARIES)
@pytest.mark.parametrize("around", ["{}", "could not fetch '{}': 401\n", 'said {{"detail": "{}"}} twice', "a | {} | b", "é{}\u00a0"])
def test_every_kind_is_found_and_taken_out(name: str, around: str) -> None:
    secret, text = CANARIES[name][0], around.replace("{}", canary(name)).replace("{{", "{").replace("}}", "}")
    assert find_secret(text) is not None
    shown = redacted(text)
    assert secret not in shown and REDACTED in shown and find_secret(shown) is None and redacted(shown) == shown
    before, after = around.replace("{{", "{").replace("}}", "}").split("{}")
    assert shown.startswith(before) and shown.endswith(after), "what stands around a secret is told"


def test_there_are_kinds_enough() -> None:
    assert len({find_secret(canary(name)) for name in CANARIES}) >= 20


def test_a_text_may_hold_many() -> None:
    text = " ".join(canary(name) for name in CANARIES)
    assert not [name for name, (secret, _) in CANARIES.items() if secret in redacted(text)]


SHA_1, SHA_256 = hashlib.sha1(b"x").hexdigest(), hashlib.sha256(b"x").hexdigest()
PLAIN = [
    SHA_1, SHA_256, f"revision={SHA_1}", f"data.sources.law.revision={SHA_1}", f"model.safetensors: {SHA_256}", f"sha256 {SHA_256}",
    f"step-00000120 {SHA_1[:8]}", "meta-llama/Llama-2-7b-hf", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-1.7B", "mistralai/Mistral-7B-v0.3",
    "hf_models/llama", "hf-internal-testing/tiny", "sk-learn-experiments-with-llama-models", "task-key-value", "risk-abcdefghijklmnopqrstuvwxyz",
    "skip_special_tokens", "npm_package", "pypi-mirror", "runs/expansion_shallow_half-prune_2-lr_0.0002-3f2a9c1b",
    "/data/models/Llama-3.1-8B/snapshots/0e9e39f249a16976918f6564b8830bc894c89659",
    "https://huggingface.co/datasets/allenai/c4?revision=main&split=train", "https://example.com/a@b/c:d", "ssh://git@github.com/org/repo",
    "s3://bucket/key/part", "file:///data/text.jsonl", "http://localhost:8080/v1/models", "user@host:/data/text", "a: b@c",
    "mailto:someone@example.com", "python train.py expansion=shallow_half prune=2 data.path=/data/text.jsonl", "token: <|endoftext|>",
    "Password: {body}", "key: value", "tokens: 123456789012345678901234", "tokens_per_second=12345.678", "until_tokens:1000000",
    "a basic characterisation of 12 languages", "the bearer of good news in 1999 and later", "secret: of the forest",
    "login at the door, password at the gate", "0.12345678901234567890", "1e-3", "mean(27, 29)", "model.layers.0.self_attn.o_proj.weight",
    "key=/data/experiments_2024/key_value_store/part_0001", "token=runs/experiment-2024-01/model",
    "W&B run at https://wandb.ai/team/slayer/runs/3f2a9c1b", "SG. 12 and others", "${oc.env:HOME}/runs", "M4 is 12.34.56", "12345678:short",
    "eyJ is how they begin",
]  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert find_secret(text) is None and redacted(text) == text


def test_our_own_files_are_left_alone() -> None:
    """Configurations, documents and sources of this repository; only the tests about secrets hold what looks like one."""
    places = [*CONF.rglob("*.yaml"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "slayer").rglob("*.py"), ROOT / "README.md", ROOT / "pyproject.toml"]
    assert len(places) > 100
    assert not [path for path in places if redacted(path.read_text(encoding="utf-8")) != path.read_text(encoding="utf-8")]


def test_embedded_images_and_random_numbers_are_left_alone() -> None:
    generator = random.Random(0)
    image = base64.b64encode(generator.randbytes(3_000_000)).decode()
    page = f"<img src='data:image/png;base64,{image}'> <p>{canary('github')}</p>"
    assert find_secret(f"<img src='data:image/png;base64,{image}'>") is None
    assert redacted(page) == page.replace(canary("github"), REDACTED)
    hashes = " ".join(hashlib.sha256(bytes([number % 256, number // 256])).hexdigest() for number in range(5_000))
    assert redacted(hashes) == hashes and find_secret(hashes) is None


@given(st.text(max_size=200))
def test_what_was_redacted_once_holds_nothing_more(text: str) -> None:
    shown = redacted(text)
    assert redacted(shown) == shown and (find_secret(text) is None) == (shown == text)


@given(st.lists(st.sampled_from(sorted(CANARIES)), max_size=4), st.sampled_from([" ", "\n", "\t| "]))
def test_secrets_beside_one_another_are_all_taken_out(names: list[str], between: str) -> None:
    shown = redacted(between.join(canary(name) for name in names))
    assert redacted(shown) == shown and not [name for name in names if CANARIES[name][0] in shown]


# ── the environment ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["MY_API_KEY", "TOKEN", "SERVICE_TOKEN", "DB_PASSWORD", "CLIENT_SECRET", "SOME_CREDENTIAL", "APIKEY", "KEY_OF_MINE", "my_token"]
)
def test_what_a_secret_variable_holds_is_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "correct horse, battery")
    assert find_secret("said: correct horse, battery!") == f"value of the environment variable {name}"
    assert redacted("said: correct horse, battery!") == f"said: {REDACTED}!"
    monkeypatch.delenv(name)
    assert find_secret("said: correct horse, battery!") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "disabled"), ("KEYBOARD", "dvorak-programmer"), ("MAX_TOKENS", "100000000"),
        ("HF_TOKEN_PATH", "runs/even-prune_2"), ("SSH_KEY_FILE", "even-prune_2.txt"), ("AWS_ACCESS_KEY_ID", "even-prune_2"), ("HOME", "even-prune_2"),
        ("API_KEY", "x" * (LEAST_LETTERS - 1)), ("KEY", ""),
    ],
)  # fmt: skip
def test_other_variables_are_not(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    text = f"python train.py run=even-prune_2 data.path={value}"
    assert find_secret(text) is None and redacted(text) == text


def test_a_variable_that_leads_to_a_secret_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("x", encoding="utf-8")
    monkeypatch.setenv("SERVICE_CREDENTIALS", str(tmp_path / "token"))
    assert find_secret(f"reads {tmp_path / 'token'}") is None


# ── where text passes ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_values_of_json_are_redacted_names_and_all() -> None:
    token = canary("github")
    value = {"run": "x", token: [1, 2.5, None, True, {"said": (f"{token} 401",)}], "hash": SHA_256}
    assert without_secrets(value) == {"run": "x", REDACTED: [1, 2.5, None, True, {"said": (f"{REDACTED} 401",)}], "hash": SHA_256}


def test_a_stream_lets_no_secret_through_and_is_guarded_once() -> None:
    inner = io.StringIO()
    stream = redacted_stream(inner)
    assert stream.write(f"é {canary('github')}\n") == len(f"é {canary('github')}\n")
    stream.writelines([canary("openai"), "\n"])
    assert inner.getvalue() == f"é {REDACTED}\n{REDACTED}\n" and not stream.isatty()
    assert redacted_stream(stream) is stream and isinstance(stream, RedactedStream)


CRASH = """
import logging, os, sys, warnings
from slayer.secrets import guard_streams
guard_streams()
token = os.environ["MINE"]
print("printed", token)
logging.getLogger("of.another.package").warning("logged %s", token)
warnings.warn("warned " + token)
sys.stderr.write("written " + token + "\\n")
raise RuntimeError("raised " + token)
"""


def test_what_a_process_prints_warns_logs_and_dies_of_is_redacted() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH], cwd=ROOT, env={"MINE": canary("github"), "PATH": ""}, capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    assert done.returncode == 1 and CANARIES["github"][0] not in said
    for word in ("printed", "logged", "warned", "written", "RuntimeError: raised"):
        assert f"{word} {REDACTED}" in said


@pytest.mark.parametrize(
    "part",
    ["eyJ-", "://a", "password:", "key=", "a", "-----BEGIN PRIVATE KEY-----", "login ", "M-", "bearer ", "SG.", "?key=", "basic a", "sk-", "hf_a"],
)
def test_a_hostile_text_costs_no_more_than_its_length(part: str) -> None:
    def seconds(length: int) -> float:
        text = part * (length // len(part))
        started = time.perf_counter()
        redacted(text)
        return time.perf_counter() - started

    short, long = min(seconds(20_000) for _ in range(3)), seconds(160_000)
    assert long < 8 * 6 * short + 0.05, "eight times the length; a quadratic shape would take 64 times as long"


def test_a_secret_is_as_random_as_it_must_be() -> None:
    assert len(letters(40)) == 40 and letters(40) == letters(40) != letters(40, "other")
