"""Model folders that somebody prepared: each is refused with its reason, and nothing of it ran. What honest folders hold is accepted."""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_corpus import HOSTILE, add, code_of_its_own, only_a_pickle
from safetensors.torch import load_file

from slayer.config import ModelConfig
from slayer.errors import ModelError
from slayer.forward import load_model
from slayer.launching.subjects import find_subject
from slayer.models import load_tokenizer, model_problem, resolve_model


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What hostile code would write."""
    return tmp_path / "canary"


@pytest.fixture
def folder(tiny_folder: Callable[..., Path], tmp_path: Path, canary: Path) -> Path:
    """A whole model with code beside it that writes the canary as soon as it is imported. Nothing names that code yet."""
    folder = Path(shutil.copytree(tiny_folder("llama"), tmp_path / "model"))
    (folder / "evil.py").write_text(
        "from pathlib import Path\n"
        f"Path({str(canary)!r}).write_text('ran')\n"
        "from transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"
        "Tokenizer = generate = None\n",
        encoding="utf-8",
    )
    return folder


def local(folder: Path) -> ModelConfig:
    return ModelConfig(name="local", path=str(folder))


@pytest.mark.parametrize(("make", "told"), [pytest.param(make, told, id=name) for name, make, told in HOSTILE])
def test_a_hostile_folder_is_refused_with_its_reason_and_nothing_of_it_runs(
    folder: Path, canary: Path, make: Callable[[Path], None], told: str
) -> None:
    make(folder)
    with pytest.raises(ModelError) as caught:
        resolve_model(local(folder))
    assert told in str(caught.value) and ("model.path=DIR" in str(caught.value) or "copy" in str(caught.value) or "remove" in str(caught.value))
    problem = model_problem(local(folder))
    assert problem is not None and problem.key == "model.path" and told in problem.why
    if "num_hidden_layers" not in told and "hidden_size" not in told:  # which only surgery asks about
        with pytest.raises(ModelError):
            find_subject(str(folder))
    assert not canary.exists()


def test_the_code_beside_would_have_run(folder: Path, canary: Path, tmp_path: Path) -> None:
    """The folder of the first test is truly hostile: transformers that trusts it runs it. In a process of its own, which it changes for good."""
    code_of_its_own(folder)
    trusting = "import sys, transformers; transformers.AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run([sys.executable, "-c", trusting, str(folder)], env=environment, check=True, capture_output=True, timeout=120)
    assert canary.read_text() == "ran"


def test_the_pickle_would_have_run(folder: Path, canary: Path) -> None:
    only_a_pickle(folder)
    pickle.loads((folder / "pytorch_model.bin").read_bytes())
    assert canary.read_text() == "ran"


def test_a_setting_reached_through_another_file_would_have_been_read(folder: Path) -> None:
    """Why configuration_files is refused: what is judged would not be what transformers takes."""
    from transformers import AutoConfig

    add(folder, "config.4.0.0.json", model_type="llama", vocab_size=7)
    add(folder, configuration_files=["config.4.0.0.json"])
    assert AutoConfig.from_pretrained(folder).vocab_size == 7


# ── what honest folders hold ─────────────────────────────────────────────────────────────────────────────────────────────


def in_the_cache_of_the_hub(folder: Path, shared: bool) -> Path:
    """The folder as the hub's client lays it out: links to blobs of the repository; `shared`: and from there to those of all repositories."""
    cache = folder.parent / "hub"
    snapshot, blobs = cache / "models--org--model" / "snapshots" / "0e9e39f2", cache / "models--org--model" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for path in folder.iterdir():
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        blob = blobs / digest
        if shared:
            store = cache / "blobs" / digest[:2] / digest
            store.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, store)
            blob.symlink_to(f"../../blobs/{digest[:2]}/{digest}")
        else:
            shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{digest}")
    return snapshot


@pytest.mark.parametrize("shared", [False, True])
def test_the_cache_of_the_hub_is_no_way_out(folder: Path, shared: bool) -> None:
    snapshot = in_the_cache_of_the_hub(folder, shared)
    assert resolve_model(local(snapshot)) == snapshot


def links_inside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "weights")
    (folder / "model.safetensors").symlink_to("weights")


def linked_as_a_whole(folder: Path) -> None:
    folder.rename(folder.parent / "elsewhere")
    folder.symlink_to("elsewhere")


def known_attention(folder: Path) -> None:
    add(folder, _attn_implementation="sdpa", attn_implementation="flash_attention_2", _attn_implementation_autoset=True)


def empty_settings(folder: Path) -> None:
    add(folder, auto_map={}, quantization_config=None, trust_remote_code=False)


def index_of_the_one_file(folder: Path) -> None:
    add(folder, "model.safetensors.index.json", weight_map=dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors"))


def honest(folder: Path) -> None:
    """Code that nothing names is only a file."""


@pytest.mark.parametrize("make", [honest, links_inside, linked_as_a_whole, known_attention, empty_settings, index_of_the_one_file])
def test_what_is_harmless_is_accepted_and_loads(folder: Path, canary: Path, make: Callable[[Path], None]) -> None:
    make(folder)
    assert resolve_model(local(folder)) == folder and model_problem(local(folder)) is None
    assert load_model(folder, "fp32").config._attn_implementation == "sdpa"
    assert load_tokenizer(folder).vocab_size > 0 and not canary.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', '{"version": "1.0", "model": {"type": "Evil"}}', ""])
def test_a_tokenizer_that_cannot_be_read_is_one_message(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"the tokenizer of .* cannot be read"):
        load_tokenizer(folder)
