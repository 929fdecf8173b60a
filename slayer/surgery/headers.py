"""The header of a safetensors file. Nothing in it is believed: it must keep the rules of the format and fit the file to the byte.

Format: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON object, the data without holes).
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from slayer.errors import ModelError

MOST_HEADER_BYTES = 16 << 20
"""Room for about 130,000 tensors in one file; the largest models have some thousands."""
MOST_DIMENSIONS, LARGEST_SIZE = 8, 1 << 40

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}  # fmt: skip
"""Bits of one element by the format's own codes."""


def read_header(file: Path) -> dict[str, Any]:
    """The entries {dtype, shape, data_offsets} of a safetensors file by tensor name; ModelError when it is not whole or breaks a rule."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if length > MOST_HEADER_BYTES:
                raise ValueError(f"a header of {length} bytes, more than {MOST_HEADER_BYTES}")
            if not 2 <= length <= size - 8:
                raise ValueError(f"header of {length} bytes in a file of {size}")
            header = _parse(stream.read(length))
        _check(header, size - 8 - length)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{file} is not a whole safetensors file ({error}); copy it again") from error
    return header


def _parse(encoded: bytes) -> dict[str, Any]:
    header = json.loads(encoded.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_number)
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its __metadata__ holds more than texts")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r:.100} twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _check(header: dict[str, Any], data_bytes: int) -> None:
    """ValueError unless every tensor has a shape and a type that explain its bytes, and the tensors fill the data one behind another."""
    for name, entry in header.items():
        _check_entry(name, entry)
    end, before = 0, "the header"
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = entry["data_offsets"]
        if start < end:
            raise ValueError(f"{name!r:.100} overlaps {before!r:.100}")
        if start > end:
            raise ValueError(f"{start - end} bytes between {before!r:.100} and {name!r:.100} belong to no tensor")
        end, before = stop, name
    if end != data_bytes:
        raise ValueError(f"{data_bytes} bytes of data where the header asks for {end}")


def _check_entry(name: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{name!r:.100} lacks dtype, shape or data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise ValueError(f"{name!r:.100} has the unknown type {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS or not all(type(size) is int and 0 <= size <= LARGEST_SIZE for size in shape):
        raise ValueError(f"{name!r:.100} has the impossible shape {shape!r:.100}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(offset) is int for offset in offsets) or not 0 <= offsets[0] <= offsets[1]:
        raise ValueError(f"{name!r:.100} has the impossible data_offsets {offsets!r:.100}")
    needed_bits = prod(shape) * BITS[dtype]
    if needed_bits != 8 * (offsets[1] - offsets[0]):
        raise ValueError(f"{name!r:.100} of shape {shape!r:.100} and type {dtype} does not fill its {offsets[1] - offsets[0]} bytes")
