"""Headers of safetensors files, whatever is written into them: understood as the format's own library does, or refused with ModelError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from slayer.errors import ModelError
from slayer.surgery.headers import BITS, MOST_HEADER_BYTES, read_header
from slayer.surgery.weights import Weights

anything_at_all = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, encoded: bytes, data: bytes, length: int | None = None) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes((len(encoded) if length is None else length).to_bytes(8, "little") + encoded + data)
    return path


def judged(path: Path) -> dict[str, Any] | None:
    """What we read; None where it is refused. Anything but ModelError fails the test."""
    try:
        return read_header(path)
    except ModelError as error:
        assert str(path) in str(error) and "copy it again" in str(error)
        return None


def names_and_shapes(path: Path) -> dict[str, list[int]] | None:
    """What the library reads; None where it refuses."""
    try:
        with safe_open(path, framework="pt") as handle:
            names = handle.keys()  # the handle itself cannot be walked through
            return {name: handle.get_slice(name).get_shape() for name in names}
    except (SafetensorError, OSError):
        return None


NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from([1 << 31, 1 << 62, 1 << 64, 10**30]), st.booleans(), st.floats(allow_nan=True), st.none())
LEAVES = st.one_of(NUMBERS, st.text(max_size=5), st.sampled_from(sorted(BITS)))
TREES = st.recursive(
    LEAVES, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)), max_leaves=6
)
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from(sorted(BITS)), LEAVES),
        "shape": st.one_of(st.lists(st.integers(0, 3), max_size=3), st.lists(NUMBERS, max_size=10), TREES),
        "data_offsets": st.one_of(st.tuples(st.integers(0, 24), st.integers(0, 24)).map(sorted), st.lists(NUMBERS, max_size=3), TREES),
        "extra": TREES,
    },
)
HEADERS = st.dictionaries(st.one_of(st.sampled_from(["a", "b", "__metadata__"]), st.text(max_size=3)), st.one_of(ENTRIES, TREES), max_size=4)


@given(header=HEADERS, data_bytes=st.integers(0, 40), padding=st.integers(0, 9))
@anything_at_all
def test_no_header_crashes_and_what_is_accepted_the_library_reads_alike(
    header: dict[str, Any], data_bytes: int, padding: int, tmp_path: Path
) -> None:
    path = write(tmp_path, json.dumps(header).encode() + b" " * padding, bytes(data_bytes))
    mine = judged(path)
    if mine:
        assert {name: entry["shape"] for name, entry in mine.items()} == names_and_shapes(path)


@given(raw=st.binary(max_size=80), length=st.one_of(st.none(), st.integers(0, 100), st.integers(0, 2**64 - 1)))
@anything_at_all
def test_no_bytes_crash(raw: bytes, length: int | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw if length is None else length.to_bytes(8, "little") + raw)
    assert judged(path) in (None, {})


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "model.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 3)}, path)
    return path.read_bytes()


@given(data=st.data())
@anything_at_all
def test_a_sound_file_with_any_byte_changed_is_read_as_the_library_does_or_refused(sound: bytes, data: st.DataObject, tmp_path: Path) -> None:
    changed = bytearray(sound)
    changed[data.draw(st.integers(0, len(sound) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "model.safetensors"
    path.write_bytes(changed)
    mine = judged(path)
    if mine is not None:
        assert {name: entry["shape"] for name, entry in mine.items()} == names_and_shapes(path)


def test_sound_files_of_every_type_are_accepted(tmp_path: Path) -> None:
    """Every type that the library writes; its own sizes are the independent statement of ours."""
    types = [
        torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32, torch.int16,
        torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64,
    ]  # fmt: skip
    for number, dtype in enumerate(types):
        path = tmp_path / f"{number}.safetensors"
        save_file({"a": torch.zeros(3, 5, dtype=dtype), "empty": torch.zeros(0, 2, dtype=dtype), "one": torch.zeros((), dtype=dtype)}, path)
        header = read_header(path)
        assert {name: entry["shape"] for name, entry in header.items()} == {"a": [3, 5], "empty": [0, 2], "one": []}
        assert BITS[header["a"]["dtype"]] == 8 * torch.empty((), dtype=dtype).element_size()


def test_a_long_header_costs_no_memory_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        stream.write((MOST_HEADER_BYTES + 1).to_bytes(8, "little"))
        stream.truncate(8 + 2 * MOST_HEADER_BYTES)  # a hole: it takes no place on the disk
    with pytest.raises(ModelError, match=r"a header of 16777217 bytes, more than 16777216"):
        read_header(path)


def test_names_of_tensors_may_be_anything(tmp_path: Path) -> None:
    """A name that looks like a layer's and is none does not stop the reading of a folder."""
    from slayer.surgery.families import layer_of

    names = ["model.layers.x.weight", "model.layers..weight", "model.layers.٣.weight", "model.layers.-1.weight", "../../etc/passwd", ""]
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    assert set(Weights(tmp_path).infos) == set(names) and {layer_of(name) for name in names} == {None}
