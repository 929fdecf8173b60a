"""A model larger than memory, measured layer by layer: python benchmarks/importance_memory.py [--layers 32] [--cap-gib 4] [--tokens 256]

Writes a model of random numbers in the shape of Llama 3 8B (bf16, 16 GB with 32 layers, in shards) and measures it with
StreamedDecoder in a process of its own: block_influence and angular_distance in one pass, then removal (without each layer once).

The process may have --cap-gib of memory of its own (anonymous: what could not be given back), the interpreter and its libraries included.
The kernel holds it to that: RLIMIT_DATA is set to the cap beside the mapped files, and a trial allocation of the cap has to be refused.
Pages of the mapped files are the kernel's to drop at any time. To have them counted too, name a cgroup below which a group may be made
(--cgroup /sys/fs/cgroup/memory/MINE, version 1 or 2): the process then runs in a group of its own with the cap on everything.

Printed: bytes of the model, the cap, and for each step seconds and the peak of anonymous memory (RssAnon, looked at every 10 ms). Before that,
on a small model of the same shape, streamed values must be the bits of those of the loaded model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from slayer.importance.decoder import Decoder, StreamedDecoder, open_decoder
from slayer.importance.one_pass import measure_pass
from slayer.importance.removal import removal, removal_coalitions
from slayer.importance.table import Measurement
from slayer.importance.text_value import TextValue
from slayer.importance.walk import run_coalitions
from slayer.surgery.weights import Recipe, Weights, weight_files, write_weights

LLAMA_3_8B = {
    "vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "bos_token_id": 128_000, "eos_token_id": 128_001, "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
}  # fmt: skip
SIBLING = {
    **LLAMA_3_8B, "vocab_size": 1024, "hidden_size": 512, "intermediate_size": 1792, "num_attention_heads": 4, "num_key_value_heads": 1,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
ONE_PASS = ["block_influence", "angular_distance"]
SHARD_BYTES = 2 << 30
POOL_NUMBERS = 1 << 24
INITIAL_SCALE = 0.02
DOCUMENT_TOKENS = 16
LOOK_SECONDS = 0.01
GIB = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Packed rows, int64 [B, L]."""

    input_ids_BL: Any
    labels_BL: Any
    positions_BL: Any
    documents_BL: Any


def random_rows(n_tokens: int, vocabulary: int) -> Rows:
    """Two rows of short documents of random tokens."""
    import torch

    length = max(4, n_tokens // 2 // DOCUMENT_TOKENS) * DOCUMENT_TOKENS
    ids_BL = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(0))
    at_BL = torch.arange(length).expand(2, length)
    positions_BL, documents_BL = at_BL % DOCUMENT_TOKENS, at_BL // DOCUMENT_TOKENS
    labels_BL = ids_BL.roll(-1, dims=1).masked_fill(positions_BL == DOCUMENT_TOKENS - 1, -100)
    return Rows(input_ids_BL=ids_BL, labels_BL=labels_BL, positions_BL=positions_BL, documents_BL=documents_BL)


def model_recipes(n_layers: int, shape: dict[str, Any]) -> tuple[Any, list[Recipe]]:
    """Configuration and tensors of a Llama of random bf16 numbers. Those of a tensor are a stretch of one pool, over and over: that is cheap."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(num_hidden_layers=n_layers, dtype="bfloat16", architectures=["LlamaForCausalLM"], **shape)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    pool = torch.randn(POOL_NUMBERS, generator=torch.Generator().manual_seed(0)).mul(INITIAL_SCALE).to(torch.bfloat16)

    def make(name: str, size: tuple[int, ...]) -> torch.Tensor:
        if len(size) == 1:
            return torch.ones(size, dtype=torch.bfloat16)
        numbers = pool.roll(zlib.crc32(name.encode()) % POOL_NUMBERS)
        count = math.prod(size)
        return numbers.repeat(-(-count // POOL_NUMBERS))[:count].view(size)

    sizes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return config, [Recipe(name=name, dtype="BF16", shape=size, make=partial(make, name, size)) for name, size in sizes.items()]


def write_model(folder: Path, n_layers: int, shape: dict[str, Any]) -> None:
    """A folder as transformers would have saved it, written tensor by tensor. SystemExit when the disk is too small."""
    config, recipes = model_recipes(n_layers, shape)
    needed, free = sum(recipe.n_bytes for recipe in recipes), shutil.disk_usage(folder.parent).free
    if free < needed + GIB:
        raise SystemExit(f"{needed / 1e9:.1f} GB are needed in {folder.parent} and {free / 1e9:.1f} are free; type --folder DIR, or --layers 8")
    unfinished = folder.with_name(f"{folder.name}-{os.getpid()}")
    unfinished.mkdir()
    try:
        write_weights(unfinished, recipes, SHARD_BYTES)
        config.save_pretrained(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def one_pass(decoder: Decoder, rows: Rows) -> list[Measurement]:
    """block_influence and angular_distance."""
    return measure_pass(decoder, rows, ONE_PASS, source="random", micro_batch_rows=2)


def left_out(decoder: Decoder, rows: Rows) -> list[Measurement]:
    """removal."""
    value = TextValue(decoder, rows, source="random", micro_batch_rows=2)
    return [removal(run_coalitions(decoder, value, removal_coalitions(decoder.n_layers))[0], decoder.n_layers)]


STEPS: dict[str, Callable[[Decoder, Rows], list[Measurement]]] = {" + ".join(ONE_PASS): one_pass, "removal": left_out}


def streamed_is_loaded(scratch: Path, n_tokens: int) -> bool:
    """True when all values of a small model of the same shape are equal bit for bit, read layer by layer and held in memory."""
    folder = scratch / "sibling"
    write_model(folder, 2, SIBLING)
    rows = random_rows(n_tokens, int(SIBLING["vocab_size"]))
    found = [
        [one.values for step in STEPS.values() for one in step(open_decoder(folder, "bf16", streamed=streamed), rows)] for streamed in (True, False)
    ]
    return found[0] == found[1] and all(math.isfinite(value) for values in found[0] for value in values)


def status_bytes(name: str) -> int:
    """A field of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"/proc/self/status has no {name}: this needs Linux")


@contextmanager
def peak_of(name: str) -> Iterator[list[int]]:
    """The largest value of a field of /proc/self/status while the block runs, looked at by a thread."""
    peak, done = [status_bytes(name)], threading.Event()

    def look() -> None:
        while not done.wait(LOOK_SECONDS):
            peak[0] = max(peak[0], status_bytes(name))

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    try:
        yield peak
    finally:
        done.set()
        looking.join()


def hold_to(cap_bytes: int) -> bool:
    """Let anonymous memory grow to the cap and no further; True when the kernel does refuse more. All files must be mapped by now.

    RLIMIT_DATA counts writable private mappings, which those of safetensors files are: what is mapped and is not memory goes on top.
    """
    import torch

    limit = status_bytes("VmData") - status_bytes("RssAnon") + cap_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        torch.empty(cap_bytes, dtype=torch.uint8)
    except (RuntimeError, MemoryError):
        return True
    return False


def score(folder: Path, n_tokens: int, cap_bytes: int) -> None:
    """What the process under the cap does: one line of JSON per step."""
    decoder = StreamedDecoder(folder, "bf16")
    for index in range(decoder.n_layers):
        with decoder.layer(index):  # maps its file, reads nothing
            pass
    decoder.embed(decoder.part(random_rows(n_tokens, decoder.config.vocab_size)))
    print(json.dumps({"held": hold_to(cap_bytes), "start_bytes": status_bytes("RssAnon")}), flush=True)
    for name, step in STEPS.items():
        started = time.perf_counter()
        with peak_of("RssAnon") as peak:
            found = step(decoder, random_rows(n_tokens, decoder.config.vocab_size))
        finite = all(math.isfinite(value) for one in found for value in one.values)
        print(json.dumps({"step": name, "seconds": time.perf_counter() - started, "peak_bytes": peak[0], "finite": finite}), flush=True)


@contextmanager
def own_group(parent: Path | None, cap_bytes: int) -> Iterator[Path | None]:
    """A cgroup below `parent` with the cap on everything in it, gone afterwards; None where none is asked for."""
    if parent is None:
        yield None
        return
    group = parent / f"importance-memory-{os.getpid()}"
    try:
        group.mkdir()
        limits = [group / name for name in ("memory.max", "memory.limit_in_bytes") if (group / name).exists()]
        if not limits:
            raise OSError("groups below it have no memory limit")
        limits[0].write_text(str(cap_bytes), encoding="ascii")
    except OSError as error:
        if group.exists():
            group.rmdir()
        raise SystemExit(f"no group can be made below {parent}: {error}; leave out --cgroup") from error
    try:
        yield group
    finally:
        group.rmdir()


def scored(folder: Path, arguments: argparse.Namespace, cap_bytes: int) -> bool:
    """Run the process under the cap and print what it says; True when it finished and stayed below."""
    command = [sys.executable, __file__, "--score", str(folder), "--tokens", str(arguments.tokens), "--cap-gib", str(arguments.cap_gib)]
    with own_group(arguments.cgroup, cap_bytes) as group:
        if group is not None:
            command = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group), *command]
        held, steps = True, 0
        print(f"{'':40}{'seconds':>9}{'peak of its own':>18}")
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                one = json.loads(line)
                if "held" in one:
                    print(f"{'start':40}{'':9}{one['start_bytes'] / GIB:>14.2f} GiB")
                    kept = "the kernel refuses more" if one["held"] else "the kernel does not enforce it here: the peak is only measured"
                    print(f"    cap of {arguments.cap_gib:g} GiB: {kept}{'; files count too' if group is not None else ''}", flush=True)
                    continue
                right = one["finite"] and one["peak_bytes"] <= cap_bytes
                held, steps = held and right, steps + 1
                print(f"{one['step']:40}{one['seconds']:>9.1f}{one['peak_bytes'] / GIB:>14.2f} GiB{'' if right else '   FAIL'}", flush=True)
    if process.returncode:
        print(f"the process under the cap ended with {process.returncode}")
    return held and process.returncode == 0 and steps == len(STEPS)


def forget_files(folder: Path) -> None:
    """Drop what writing left in the page cache, so that weights are read from the disk."""
    for file in weight_files(folder):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> int:
    """Write, check, measure, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--cap-gib", type=float, default=4.0, help="memory of its own that the measuring process may have")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the model is written; 16 GB with 32 layers")
    parser.add_argument("--keep", action="store_true", help="leave the model there; a second call finds it")
    parser.add_argument("--cgroup", type=Path, default=None, help="a cgroup below which one with the cap is made; default: none")
    parser.add_argument("--score", type=Path, default=None, help=argparse.SUPPRESS)  # the process under the cap
    arguments = parser.parse_args()
    cap_bytes = int(arguments.cap_gib * GIB)
    if arguments.score is not None:
        score(arguments.score, arguments.tokens, cap_bytes)
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        same = streamed_is_loaded(Path(scratch), arguments.tokens)
    print(
        f"streamed values of a small model of the same shape: {'the bits of the loaded one' if same else 'NOT EQUAL to the loaded one'}", flush=True
    )
    folder = arguments.folder / f"llama-3-8b-shaped-{arguments.layers}"
    if not folder.exists():
        started = time.perf_counter()
        write_model(folder, arguments.layers, LLAMA_3_8B)
        print(f"written in {time.perf_counter() - started:.0f} s", flush=True)
    try:
        forget_files(folder)
        n_bytes = Weights(folder).n_bytes
        print(f"{arguments.layers} layers, {n_bytes / GIB:.2f} GiB of weights in {len(weight_files(folder))} files, {arguments.tokens} tokens")
        bounded = scored(folder, arguments, cap_bytes)
    finally:
        if not arguments.keep:
            shutil.rmtree(folder)
    larger = n_bytes > cap_bytes
    print(f"{'holds' if same else 'FAILS'}  streamed is loaded, bit for bit")
    print(f"{'holds' if bounded and larger else 'FAILS'}  a model of {n_bytes / GIB:.1f} GiB measured within {arguments.cap_gib:g} GiB")
    return 0 if same and bounded and larger else 1


if __name__ == "__main__":
    sys.exit(main())
