"""What one rank writes of a checkpoint: a copy in host memory, what other ranks add to it, and its file.

Every tensor is written whole, by the rank that holds most of it. At ZeRO stages 1 and 2 the others have next to nothing to add; at
stage 3 each tensor is cut among all ranks. What they add comes over from their copies, beside training.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.surgery.weights import safetensors_header, tensor_bytes
from slayer.training.engine import TrainingEngine

if TYPE_CHECKING:
    import torch

Files = dict[str, tuple[str, int]]
"""SHA-256 and size by file name."""

Entry = tuple[str, str]
"""Name of a tensor, and which of its kinds."""

_CODES = {"torch.uint8": "U8", "torch.int64": "I64", "torch.float64": "F64"}


class Share:
    """A rank's memory for checkpoints, written to again and again: one arena, laid out as its file will be, and what it sends to others."""

    def __init__(self, engine: TrainingEngine) -> None:
        """Agree on who writes what. Collective."""
        import torch

        self.rank, self.world = engine.ranks.rank, engine.ranks.world
        self._shapes = {(name, kind): engine.shape(name) for name in engine.changed for kind in engine.kinds(name)}
        sizes = {entry: math.prod(shape) for entry, shape in self._shapes.items()}
        self.total_bytes = 4 * sum(sizes.values())
        ours = [(start, len(values)) for start, values in (engine.held(*entry) for entry in sizes)]
        held = dict(zip(sizes, zip(*engine.ranks.gather(ours), strict=True), strict=True))
        """By entry and rank: where the part begins, and its length."""
        self._owner = _owners(sizes, held)
        cut = [entry for entry in sizes if held[entry][self._owner[entry]][1] < sizes[entry]]
        own = [entry for entry in sizes if self._owner[entry] == self.rank]
        lent = [entry for entry in cut if self._owner[entry] != self.rank]
        self._arena = _host_memory(sum(sizes[entry] for entry in own), engine.device)
        outbox = _host_memory(sum(held[entry][self.rank][1] for entry in lent), engine.device)
        places = dict(zip(own, torch.split_with_sizes(self._arena, [sizes[entry] for entry in own]), strict=True))
        lent_places = dict(zip(lent, torch.split_with_sizes(outbox, [held[entry][self.rank][1] for entry in lent]), strict=True))

        def part(entry: Entry, rank: int) -> torch.Tensor:
            start, n = held[entry][rank]
            return places[entry][start : start + n]

        self._own = own
        self._targets = {entry: part(entry, self.rank) for entry in own} | lent_places
        """Where the values go that this rank holds."""
        self._sends = [(self._owner[entry], values) for entry, values in lent_places.items()]
        self._receives = [(rank, part(entry, rank)) for entry in cut if entry in places for rank in range(self.world) if rank != self.rank]

    def copying(self, engine: TrainingEngine) -> Callable[[], None]:
        """The call that copies from the device, in any thread: what it copies is what is there now, if it returns before the next update."""
        import torch

        pairs = [(target, engine.held(*entry)[1]) for entry, target in self._targets.items()]
        on_gpu = engine.device.type == "cuda"
        ready = torch.cuda.current_stream().record_event() if on_gpu else None
        stream = torch.cuda.Stream(engine.device) if on_gpu else None  # type: ignore[no-untyped-call]

        def copy() -> None:
            with torch.cuda.stream(stream) if stream is not None else nullcontext():
                if stream is not None and ready is not None:
                    stream.wait_event(ready)
                for target, values in pairs:
                    target.copy_(values, non_blocking=True)
            if stream is not None:
                stream.synchronize()

        return copy

    def exchange(self, group: Any) -> None:
        """Bring the parts of cut tensors to whoever writes them, from copies to copies, over `group`. Collective, of one thread of each rank."""
        import torch.distributed as dist

        # Between two ranks, messages arrive in the order in which they are sent; both go through the tensors in the same one.
        calls = [dist.P2POp(dist.irecv, values, rank, group) for rank, values in self._receives if values.numel()]
        calls += [dist.P2POp(dist.isend, values, rank, group) for rank, values in self._sends if values.numel()]
        for work in dist.batch_isend_irecv(calls) if calls else ():
            work.wait()

    def file_name(self, rank: int) -> str:
        """As Hugging Face names shards."""
        return "model.safetensors" if self.world == 1 else f"model-{rank + 1:05d}-of-{self.world:05d}.safetensors"

    def write(self, folder: Path, small: Mapping[str, torch.Tensor]) -> Files:
        """Write this rank's file in one pass, hashed on the way, synced. `small`: more tensors, which the first rank writes."""
        # What is counted in eights stands before the floats, so that every tensor is aligned.
        entries = [(name, _CODES[str(value.dtype)], tuple(value.shape)) for name, value in small.items()]
        entries += [(f"{kind}/{name}", "F32", self._shapes[name, kind]) for name, kind in self._own]
        header, digest = safetensors_header(entries), hashlib.sha256()
        path = folder / self.file_name(self.rank)
        parts = (tensor_bytes(part) for part in (*small.values(), self._arena))
        with path.open("wb") as stream:
            for chunk in chain([memoryview(header)], *parts):
                digest.update(chunk)
                stream.write(chunk)
            size = stream.tell()
            stream.flush()
            os.fsync(stream.fileno())
        return {path.name: (digest.hexdigest(), size)}

    def index(self, small: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """Which file holds which tensor."""
        weight_map = {f"{kind}/{name}": self.file_name(rank) for (name, kind), rank in self._owner.items()}
        return {"metadata": {"total_size": self.total_bytes}, "weight_map": weight_map | dict.fromkeys(small, self.file_name(0))}


def _owners(sizes: Mapping[Entry, int], held: Mapping[Entry, Sequence[tuple[int, int]]]) -> dict[Entry, int]:
    """Who writes each tensor: the rank that holds most of it, of several that hold as much the one with least to write, largest tensors first."""
    owner, filled = {}, [0] * max((len(parts) for parts in held.values()), default=1)
    for entry in sorted(sizes, key=lambda one: -sizes[one]):
        owner[entry] = min(range(len(filled)), key=lambda rank: (-held[entry][rank][1], filled[rank]))
        filled[owner[entry]] += sizes[entry]
    return {entry: owner[entry] for entry in sizes}


def _host_memory(n: int, device: torch.device) -> torch.Tensor:
    """Room for n floats, pinned beside a GPU. Touched once here, since first touches are most of a copy's time."""
    import torch

    return torch.empty(n, dtype=torch.float32, pin_memory=device.type == "cuda").fill_(0)
