"""The processes of one run: who I am, on which device, and how we wait for each other."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slayer.errors import EngineError

if TYPE_CHECKING:
    import torch

# Other ranks wait while the first one tokenises, builds and evaluates.
TIMEOUT = timedelta(hours=6)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among `world` of them."""

    rank: int
    world: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and talks to people."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank has got here."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over ranks, in place."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values


def require_free_port(port: int) -> None:
    """EngineError when somebody else listens on `port` of this machine (0 stands for any free one)."""
    if port == 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise EngineError(f"launcher.port={port} cannot be used ({error.strerror}); type launcher.port=0 to take any free one") from error


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, or make one of this process alone (no port needed).

    A group that is open already is used and left open. DeepSpeed remembers the first group of a process for life: a program that
    makes several runs opens it once, around all of them.
    """
    import torch
    import torch.distributed as dist

    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # saves DeepSpeed its search, and the user its warning
    if dist.is_initialized():
        yield Ranks(rank=dist.get_rank(), world=dist.get_world_size(), device=device)
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        try:
            if "RANK" in os.environ:
                dist.init_process_group(backend, timeout=TIMEOUT)
            else:
                rendezvous = (Path(folder) / "rendezvous").as_uri()
                dist.init_process_group(backend, init_method=rendezvous, rank=0, world_size=1, timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise EngineError(
                f"the {world} ranks could not meet ({error}); check MASTER_ADDR and MASTER_PORT, or type launcher.processes={world}"
            ) from error
        try:
            yield Ranks(rank=rank, world=world, device=device)
        finally:
            dist.destroy_process_group()
