"""What a model folder that somebody else made may hold: weights and settings, and nothing that runs, fetches code or leads elsewhere.

transformers runs or fetches code for several settings of a folder, some of them even where nobody trusted remote code (CVE-2026-4372), and
reads other files than config.json where a setting says so. A folder with any of them is refused before anything of it is loaded.
"""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slayer.errors import ModelError

MOST_SETTINGS_BYTES = 32 << 20
"""A settings file is some kilobytes; tokenizers with very many added tokens have some megabytes."""

RUNS_CODE = (
    "auto_map", "custom_pipelines", "custom_generate", "trust_remote_code", "kernel_config", "use_kernels",
    "_attn_implementation_internal", "_experts_implementation_internal",
)  # fmt: skip
"""Settings that name code of the folder's own, or of a repository on the hub."""
READS_OTHER_FILES = ("configuration_files", "transformers_weights")
"""Settings that make transformers read other files than the ones that are judged here."""
CHOOSES_KERNELS = ("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation")
BUILT_IN_KERNELS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention", "grouped_mm", "batched_mm")
"""Any other name is, or may become, a repository of kernels that is fetched from the hub and run."""
QUANTISATIONS = ("bitsandbytes", "gptq", "awq", "compressed-tensors")
"""Ways of quantising that an installed package reads; the others fetch kernels, or name classes to be made."""

CODE_BESIDE = {
    "adapter_config.json": "an adapter, which may name packages to import and another model to fetch; merge it into the model (merge_and_unload)",
    "custom_generate": "code of its own for generating text; remove that folder",
}


def require_harmless(folder: Path) -> None:
    """ModelError with the reason unless a model folder holds only plain files of its own and settings that run and fetch nothing."""
    for path in sorted(folder.iterdir()):
        _require_inside(folder, path)
        for inner in sorted(path.iterdir()) if path.is_dir() else ():
            _require_inside(folder, inner)
    for name, why in CODE_BESIDE.items():
        if (folder / name).exists():
            raise ModelError(f"{folder} is refused: {name} is {why}, then type model.path=DIR")
    for path in sorted(folder.glob("*config.json")):
        for key, value in _settings(read_json(path)):
            refusal = _refusal(key, value)
            if refusal is not None:
                raise ModelError(f"{folder} is refused: {path.name} has {key}={value!r:.100}, {refusal}, then type model.path=DIR")


def read_json(path: Path) -> Any:
    """What a JSON file of a model folder holds; ModelError when it is not valid JSON, OSError when it cannot be read."""
    if path.stat().st_size > MOST_SETTINGS_BYTES:
        raise ModelError(f"{path} is refused: {path.stat().st_size} bytes are no settings of a model; type model.path=DIR with another copy of it")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ModelError(f"{path} is refused: it is nested too deeply to be settings of a model; type model.path=DIR with another copy") from error
    except ValueError as error:
        raise ModelError(f"{path} is not valid JSON ({error}); copy the model folder again") from error


def _settings(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key, at any depth, with its value."""
    waiting = [value]
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, dict):
            yield from inner.items()
            waiting += inner.values()
        elif isinstance(inner, list):
            waiting += inner


def _refusal(key: str, value: Any) -> str | None:
    """Why a setting is refused and what to do about it; None for one that is harmless."""
    if not value:
        return None
    if key in RUNS_CODE:
        return "which names code to run, and no model's own code is ever run; if the model needs none, remove that entry"
    if key in READS_OTHER_FILES:
        return "which leads to files other than its own; remove that entry"
    if key in CHOOSES_KERNELS and not _built_in(value):
        return f"which may name kernels to fetch and run; write one of {', '.join(BUILT_IN_KERNELS[:3])}"
    if key == "quantization_config" and (not isinstance(value, dict) or value.get("quant_method") not in QUANTISATIONS):
        return f"a quantisation that may fetch or name code (known to be harmless: {', '.join(QUANTISATIONS)}); save the model in bfloat16"
    return None


def _built_in(value: Any) -> bool:
    return all(_built_in(inner) for inner in value.values()) if isinstance(value, dict) else value is None or value in BUILT_IN_KERNELS


def _require_inside(folder: Path, path: Path) -> None:
    """ModelError for a link that leads out of the folder, and for what is neither a file nor a folder (a pipe would be waited for)."""
    try:
        target = path.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise ModelError(f"{folder} is refused: {path.name} is a link that leads nowhere; copy the model folder again") from error
    if path.is_symlink() and not _is_home(folder.resolve(), target):
        raise ModelError(
            f"{folder} is refused: {path.name} is a link that leads out of it, to {target}; copy the file itself, then type model.path=DIR"
        )
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ModelError(f"{folder} is refused: {path.name} is neither a file nor a folder; remove it, then type model.path=DIR")


def _is_home(folder: Path, target: Path) -> bool:
    """True where a link of `folder` may lead: into it, and in the hub's cache (models--X/snapshots/REVISION) to the blobs of the repository,
    or to those that all repositories of a cache share (blobs/XX/SHA-256)."""
    repository = folder.parents[1] if folder.parent.name == "snapshots" and folder.parents[1].name.startswith("models--") else folder
    shared = repository != folder and target.parents[1] == repository.parent / "blobs" and re.fullmatch("[0-9a-f]{64}", target.name) is not None
    return target.is_relative_to(repository) or shared
