"""From a model's configuration, or a name a person typed, to a folder on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from slayer.config import ModelConfig
from slayer.data.assets import asset_model
from slayer.data.cache import cache_dir, write_file
from slayer.data.random_model import tiny_model
from slayer.errors import AssetError, ModelError, Problem
from slayer.surgery.families import read_any_config, read_model_config
from slayer.surgery.weights import Weights, weight_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""A model folder holds one of these."""
HUB_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
"""What is fetched of a hub repository."""


def resolve_model(model: ModelConfig, *, any_family: bool = False) -> Path:
    """The folder of a base model: a path as it is, a hub repository downloaded, an embedded or random one from the cache.

    ModelError or AssetError says what is missing and what to type. A model that is only scored may be of any architecture (`any_family`).
    """
    if model.path is not None:
        folder = Path(model.path).expanduser()
    elif model.hub is not None:
        folder = _from_hub(model.hub, model.revision)
    elif model.asset is not None:
        folder = asset_model(model.asset)
    elif model.random is not None:
        folder = tiny_model(model.random)
    else:
        raise ModelError("no model is named; type model=local model.path=DIR")
    read_any_config(folder) if any_family else read_model_config(folder)
    Weights(folder)  # reads the headers: every file is whole
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"{folder} has no tokenizer ({', '.join(TOKENIZER_FILES)}); copy the model folder again, with all its files")
    return folder


def model_here(model: ModelConfig) -> Path | None:
    """The same folder, None while its files are not on this machine: nothing is downloaded."""
    if model.path is None and model.hub is not None:
        folder = _in_hub_cache(model.hub, model.revision)
        return resolve_model(model.model_copy(update={"path": str(folder)})) if folder is not None else None
    try:
        return resolve_model(model)
    except AssetError:
        return None


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; ModelError when its files cannot be read."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the readers of the many formats raise whatever they meet, tokenizers a bare Exception
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ModelError(f"the tokenizer of {folder} cannot be read: {reason}; copy the model folder again, with all its files") from error


def model_problem(model: ModelConfig) -> Problem | None:
    """Why a model cannot be used, without downloading anything: a hub model is judged when it is fetched."""
    if model.path is None and model.hub is not None:
        return None
    try:
        resolve_model(model)
    except AssetError as error:
        why, _, command = str(error).rpartition("\n    type: ")
        return Problem(key="model.asset", value=model.asset, why=why or str(error), fix=command if why else "model=local model.path=DIR")
    except ModelError as error:
        key, value = ("model.path", model.path) if model.path else ("model", model.name)
        return Problem(key=key, value=value, why=str(error), fix="model=local model.path=DIR")
    return None


def _in_hub_cache(repository: str, revision: str | None) -> Path | None:
    """The folder of a repository that was fetched whole before."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES, local_files_only=True))
        Weights(folder)
    except (LocalEntryNotFoundError, ModelError, OSError, ValueError):
        return None
    return folder


def _from_hub(repository: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"model.hub={repository} could not be fetched{offline}: {reason}. "
            "Log in with `hf auth login` if it is gated, or type model=local model.path=DIR with a copy of it"
        ) from error


def model_hash_cached(folder: Path) -> str:
    """`model_hash` of a folder, remembered in the cache until a weight file changes its size or time."""
    import hashlib

    from slayer.surgery.build import model_hash

    stamp = [f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in [folder / "config.json", *weight_files(folder)]]
    remembered = cache_dir() / "hashes" / hashlib.sha256("\n".join(stamp).encode()).hexdigest()
    if remembered.exists():
        return remembered.read_text(encoding="utf-8")
    value = model_hash(folder)
    write_file(remembered, value.encode())
    return value
