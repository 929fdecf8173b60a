"""Safetensors folders read and written, against safetensors' own library."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from slayer.errors import EngineError, ModelError
from slayer.surgery.weights import (
    Recipe,
    Weights,
    combined_hash,
    copy_companions,
    require_space,
    tensor_bytes,
    tensor_sha256,
    weight_files,
    write_weights,
)

CODES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def recipes(tensors: dict[str, torch.Tensor]) -> list[Recipe]:
    codes = {dtype: code for code, dtype in CODES.items()}
    return [
        Recipe(name=name, dtype=codes[tensor.dtype], shape=tuple(tensor.shape), make=lambda tensor=tensor: tensor) for name, tensor in tensors.items()
    ]


def some_tensors() -> dict[str, torch.Tensor]:
    shapes = [(3, 5), (7,), (1, 2, 3), (), (0, 4)]
    return {
        f"{code}.{number}": (torch.randn(shape) * 3).to(dtype) for code, dtype in CODES.items() for number, shape in enumerate(shapes)
    }  # fmt: skip


@pytest.mark.parametrize("shard_bytes", [1, 100, 1 << 30])
def test_what_is_written_reads_back_through_the_library(shard_bytes: int, tmp_path: Path) -> None:
    tensors = some_tensors()
    hashes = write_weights(tmp_path, recipes(tensors), shard_bytes)
    read: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            assert handle.metadata() == {"format": "pt"}, "transformers refuses files that do not say so"
        read |= load_file(file)
    assert set(read) == set(tensors) == set(hashes)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name], tensor) and read[name].shape == tensor.shape
        raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist()) if tensor.numel() else b""
        assert hashes[name] == hashlib.sha256(raw).hexdigest() == tensor_sha256(tensor)
    weights = Weights(tmp_path)
    assert weights.n_bytes == sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert all(torch.equal(weights[name], tensor) for name, tensor in tensors.items())
    if shard_bytes == 1 << 30:
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_shards_are_no_larger_than_asked_and_the_index_is_the_common_one(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(number + 1, 10) for number in range(9)}
    write_weights(tmp_path, recipes(tensors), shard_bytes=500)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"]["total_size"] == sum(tensor.numel() * 4 for tensor in tensors.values()) and list(index["weight_map"]) == list(tensors)
    files = weight_files(tmp_path)
    assert [file.name for file in files] == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    for file in files:
        assert sum(tensor.numel() * 4 for tensor in load_file(file).values()) <= 500
        assert set(load_file(file)) == {name for name, shard in index["weight_map"].items() if shard == file.name}


def test_each_tensor_is_made_when_its_turn_comes(tmp_path: Path) -> None:
    order: list[str] = []

    def make(name: str) -> torch.Tensor:
        if order:
            assert (tmp_path / "model.safetensors").exists()
        order.append(name)
        return torch.zeros(4)

    names = ["c", "a", "b"]
    write_weights(tmp_path, [Recipe(name=name, dtype="F32", shape=(4,), make=lambda name=name: make(name)) for name in names])
    assert order == names


@given(rows=st.integers(0, 40), columns=st.integers(1, 40), code=st.sampled_from(sorted(CODES)))
def test_bytes_are_row_major_and_little_endian_whatever_the_strides(rows: int, columns: int, code: str) -> None:
    tensor = (torch.arange(rows * columns) % 100).to(CODES[code]).reshape(columns, rows).T
    pieces = b"".join(tensor_bytes(tensor))
    plain = b"".join(bytes(value.reshape(1).view(torch.uint8).tolist()) for row in tensor for value in row)
    assert pieces == plain and tensor_sha256(tensor) == hashlib.sha256(plain).hexdigest()


def test_large_tensors_come_in_pieces() -> None:
    tensor = torch.arange(5 << 20, dtype=torch.float32)
    pieces = list(tensor_bytes(tensor))
    assert [len(piece) for piece in pieces] == [16 << 20, 4 << 20]
    assert b"".join(pieces) == tensor.numpy().tobytes()


def test_one_hash_for_many_ignores_order_only() -> None:
    one = combined_hash({"a": "1", "b": "2"})
    assert one == combined_hash({"b": "2", "a": "1"})
    assert len({one, combined_hash({"a": "2", "b": "1"}), combined_hash({"a": "1"}), combined_hash({"a": "1", "c": "2"})}) == 4


def test_sharded_folders_of_transformers_read_alike(make_model: Callable[..., Path]) -> None:
    one, many = Weights(make_model("qwen3", dtype="float16")), Weights(make_model("qwen3", dtype="float16", sharded=True))
    assert len(weight_files(many.folder)) > 3 and len(weight_files(one.folder)) == 1
    assert set(one.infos) == set(many.infos) and one.n_bytes == many.n_bytes
    assert all(torch.equal(one[name], many[name]) and one.infos[name].dtype == "F16" for name in one.infos)


def test_a_folder_without_safetensors_names_the_pickle_it_holds(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no safetensors weights.*model\.path=DIR"):
        weight_files(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"holds pytorch_model\.bin, a pickle.*save_pretrained"):
        weight_files(tmp_path)


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}', "{}"])
def test_a_damaged_index_is_refused(index: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    with pytest.raises(ModelError, match="is damaged"):
        weight_files(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write_weights(tmp_path, recipes({"a": torch.ones(9), "b": torch.ones(9)}), shard_bytes=36)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ModelError, match=r"lacks model-00002-of-00002\.safetensors"):
        Weights(tmp_path)


def test_files_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(100), "b": torch.ones(3, 3)}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    for cut in (b"", whole[:5], whole[:40], whole[:-1], whole[:-200], whole + b"x", b"\xff" * 64, b"version https://git-lfs.github.com/spec/v1\n"):
        (tmp_path / "model.safetensors").write_bytes(cut)
        with pytest.raises(ModelError, match="not a whole safetensors file"):
            Weights(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(whole)
    with pytest.raises(ModelError, match="has no tensor c"):
        Weights(tmp_path)["c"]


def test_a_type_that_cannot_be_averaged_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4).to(torch.float8_e4m3fn)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"stores a as F8_E4M3; supported are .*BF16"):
        Weights(tmp_path)


def test_companions_are_small_files_without_code(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source / "custom_generate", target):
        folder.mkdir(parents=True)
    kept = ("config.json", "tokenizer.json", "tokenizer.model", "chat_template.jinja", "README.md")
    left = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "modeling_x.py", "x.so", "x.pkl", ".gitattributes")
    for name in (*kept, *left, "custom_generate/generate.py"):
        (source / name).write_text("x", encoding="utf-8")
    copy_companions(source, target)
    assert sorted(path.name for path in target.rglob("*")) == sorted(kept)


def test_room_on_the_disk_is_asked_for_where_the_folder_will_be(tmp_path: Path) -> None:
    require_space(tmp_path / "not" / "yet" / "there", 1, "a test")
    with pytest.raises(EngineError, match=r"not enough disk space for a test: 1000000\.00 GB needed.*runs_dir=DIR"):
        require_space(tmp_path / "not" / "yet" / "there", 10**15, "a test")
