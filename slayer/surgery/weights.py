"""Reading model folders through memory maps and writing them tensor by tensor.

The writer streams: at any moment it holds one tensor of its own, whatever the size of the file, which is why it exists
(safetensors' own save_file takes all tensors of a file at once).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.errors import EngineError, ModelError
from slayer.surgery.harmless import read_json
from slayer.surgery.headers import read_header

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "U8": "uint8",
    "BOOL": "bool",
}
_CHUNK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """Where a tensor lies and what it is; `dtype` is the safetensors code (BF16, F32 …)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    n_bytes: int


class Weights:
    """The tensors of a model folder, read lazily from memory-mapped safetensors files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.infos: dict[str, TensorInfo] = {}
        self._open: dict[Path, Any] = {}
        files = weight_files(folder)
        for file in files:
            for name, entry in read_header(file).items():
                start, end = entry["data_offsets"]
                if name in self.infos:
                    raise ModelError(f"{folder} stores {name} twice, in {self.infos[name].file.name} and {file.name}; copy the model folder again")
                if entry["dtype"] not in _DTYPES:
                    raise ModelError(
                        f"{file} stores {name} as {entry['dtype']}; supported are {', '.join(_DTYPES)}. "
                        "Save the model in bfloat16 and type model.path=DIR"
                    )
                self.infos[name] = TensorInfo(file=file, dtype=entry["dtype"], shape=tuple(entry["shape"]), n_bytes=end - start)
        if not self.infos:
            raise ModelError(f"{folder} holds weight files without a single tensor; copy the model folder again")

    def __getitem__(self, name: str) -> torch.Tensor:
        from safetensors import safe_open

        info = self.infos.get(name)
        if info is None:
            raise ModelError(f"{self.folder} has no tensor {name}; the folder is incomplete, copy it again")
        if info.file not in self._open:
            self._open[info.file] = safe_open(info.file, framework="pt")
        return self._open[info.file].get_tensor(name)  # type: ignore[no-any-return]

    def __contains__(self, name: object) -> bool:
        return name in self.infos

    @property
    def n_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.n_bytes for info in self.infos.values())


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, in name order; ModelError when there are none or one is missing."""
    index, single = folder / INDEX_NAME, folder / "model.safetensors"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (OSError, ModelError, KeyError, AttributeError, TypeError) as error:
            raise ModelError(f"{index} is damaged ({error}); copy the model folder again") from error
        for name in names:
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise ModelError(f"{index} is refused: it names {name!r:.100}, which is no safetensors file of this folder; type model.path=DIR")
        if single.exists() and single.name not in names:  # transformers would read the one, the surgery the other
            raise ModelError(f"{folder} holds model.safetensors and {INDEX_NAME}, which names other files; remove one of them")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ModelError(f"{folder} lacks {', '.join(missing)}, named in its index; copy the model folder again")
        return [folder / name for name in names]
    if single.is_file():
        return [single]
    pickles = sorted(path.name for path in folder.glob("*.bin")) + sorted(path.name for path in folder.glob("*.pt*"))
    hint = f" It holds {pickles[0]}, a pickle, which is never loaded: save the model again with save_pretrained(DIR)." if pickles else ""
    raise ModelError(f"{folder} has no safetensors weights (model.safetensors or {INDEX_NAME}).{hint} Then type model.path=DIR")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A tensor to be written: its type and how to make it. `make` is called once, just before writing."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], torch.Tensor]

    @property
    def n_bytes(self) -> int:
        """Bytes of the finished tensor."""
        return _n_bytes(self.dtype, self.shape)


def write_weights(folder: Path, recipes: list[Recipe], shard_bytes: int = 5 << 30) -> dict[str, str]:
    """Write safetensors shards (and an index when there are several) into `folder`. Returns SHA-256 of each tensor's bytes."""
    shards: list[list[Recipe]] = [[]]
    filled = 0
    for recipe in recipes:
        if shards[-1] and filled + recipe.n_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(recipe)
        filled += recipe.n_bytes
    names = ["model.safetensors"] if len(shards) == 1 else [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    hashes: dict[str, str] = {}
    for name, shard in zip(names, shards, strict=True):
        hashes |= _write_file(folder / name, shard)
    if len(shards) > 1:
        weight_map = {recipe.name: name for name, shard in zip(names, shards, strict=True) for recipe in shard}
        index = {"metadata": {"total_size": sum(recipe.n_bytes for recipe in recipes)}, "weight_map": weight_map}
        (folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return hashes


def _write_file(path: Path, recipes: list[Recipe]) -> dict[str, str]:
    hashes: dict[str, str] = {}
    with path.open("wb") as stream:
        stream.write(safetensors_header([(recipe.name, recipe.dtype, recipe.shape) for recipe in recipes]))
        for recipe in recipes:
            digest = hashlib.sha256()
            for chunk in tensor_bytes(recipe.make()):
                digest.update(chunk)
                stream.write(chunk)
            hashes[recipe.name] = digest.hexdigest()
        stream.flush()
        os.fsync(stream.fileno())
    return hashes


def safetensors_header(entries: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """What stands before the data of tensors (name, dtype code, shape) that follow one another."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, dtype, shape in entries:
        end = offset + _n_bytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # the format aligns the data to 8 bytes
    return len(encoded).to_bytes(8, "little") + encoded


def _n_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    import torch

    return math.prod(shape) * torch.empty((), dtype=getattr(torch, _DTYPES[dtype])).element_size()


def tensor_bytes(tensor: torch.Tensor) -> Iterator[memoryview]:
    """The tensor's bytes, little-endian and row-major, in pieces of at most 16 MiB, without copying a contiguous CPU tensor."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8) if tensor.numel() else torch.empty(0, dtype=torch.uint8)
    view = memoryview(flat.numpy())  # type: ignore[arg-type]
    for start in range(0, len(view), _CHUNK_BYTES):
        yield view[start : start + _CHUNK_BYTES]


def tensor_sha256(tensor: torch.Tensor) -> str:
    """SHA-256 of the tensor's bytes."""
    digest = hashlib.sha256()
    for chunk in tensor_bytes(tensor):
        digest.update(chunk)
    return digest.hexdigest()


def combined_hash(hashes: dict[str, str]) -> str:
    """One SHA-256 for a set of named tensor hashes, independent of their order and of sharding."""
    digest = hashlib.sha256()
    for name in sorted(hashes):
        digest.update(f"{name} {hashes[name]}\n".encode())
    return digest.hexdigest()


def copy_companions(source: Path, target: Path) -> None:
    """Copy tokenizer and other small files beside the weights: everything but weights, indices, hidden files, and code, which is not handed on."""
    skipped = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".pkl", ".pickle", ".py", ".so"}
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix not in skipped and not path.name.startswith(".") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


def require_space(folder: Path, needed_bytes: int, purpose: str) -> None:
    """EngineError unless the disk that `folder` will live on has `needed_bytes` free."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise EngineError(
            f"not enough disk space for {purpose}: {needed_bytes / 1e9:.2f} GB needed, {free_bytes / 1e9:.2f} GB free on the disk of {folder}; "
            "free some, or type runs_dir=DIR on another disk"
        )
