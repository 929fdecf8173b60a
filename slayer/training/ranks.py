"""The processes of one run: who I am, on which device, and how we wait for each other."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, TypeVar, cast

from slayer.errors import EngineError, SlayerError, ToldError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

# A collective may wait for one that evaluates alone; who hangs is the watchdog's to notice.
TIMEOUT = timedelta(hours=6)

FAREWELL_SECONDS = 5.0
"""The first rank, through which the others meet, stays so long for those that have not left yet."""

WAIT_SHARE, SHORTEST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.03, 0.0005, 0.05
"""Whoever waits asks again after this share of the time it has waited, within these bounds."""

NCCL_LOSSES = ("ncclRemoteError", "ncclSystemError", "communicator was aborted", "collective operation timeout")
"""What NCCL says of a peer or a connection that is gone; its other errors are mistakes in a call."""


class LostRankError(EngineError):
    """Another rank of this run is gone. Nothing needs mending: started again, the run goes on where it stands."""


class Meeting:
    """What several ranks meet through: a store of small values, and groups beside the one that computes."""

    def __init__(self, store: Any, world: int, backend: str) -> None:
        import torch.distributed as dist

        # A connection for each thread: a call that waits for an answer keeps the others of its connection waiting.
        self._store, self._board, self._world = store.clone(), store.clone(), world
        self.cpu = dist.group.WORLD if backend == "gloo" else dist.new_group(backend="gloo", timeout=TIMEOUT)
        self.aside = dist.new_group(backend="gloo", timeout=TIMEOUT)
        self._waits, self._boards = count(), count()

    def board(self) -> Any:
        """A store for the watchdog's thread, empty at every call. All ranks call equally often."""
        from torch._C._distributed_c10d import PrefixStore

        return PrefixStore(f"board/{next(self._boards)}", self._board)

    def wait(self) -> None:
        """Return when every rank has got here. It is Python that waits, so signals are heard meanwhile. LostRankError when rank 0 is gone."""
        key, began = f"wait/{next(self._waits)}", time.monotonic()
        try:
            here = self._store.add(key, 1)
            while here < self._world:
                waited = time.monotonic() - began
                time.sleep(min(max(WAIT_SHARE * waited, SHORTEST_WAIT_SECONDS), LONGEST_WAIT_SECONDS))
                here = self._store.add(key, 0)
        except RuntimeError as error:
            raise LostRankError("rank 0, through which the ranks meet, is gone") from error

    def leave(self, *, is_first: bool) -> None:
        """Say goodbye; the first rank stays a while for the others, since the store ends with its process."""
        until = time.monotonic() + FAREWELL_SECONDS
        try:
            gone = self._store.add("gone", 1)
            while is_first and gone < self._world and time.monotonic() < until:
                time.sleep(0.005)
                gone = self._store.add("gone", 0)
        except RuntimeError:
            return  # whoever held the store has left before us


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among `world` of them. `meeting` is None for one alone."""

    rank: int
    world: int
    device: torch.device
    meeting: Meeting | None = field(default=None, repr=False)

    @property
    def is_first(self) -> bool:
        """True on the rank that writes files and talks to people."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when every rank has got here, however long the first one takes. LostRankError when rank 0 is gone."""
        if self.meeting is not None:
            self.meeting.wait()

    def together(self, act: Callable[[], T]) -> T:
        """What `act` gives here, once it has come to its end on every rank, however long one of them takes. Collective.

        What one of them cannot do none of them goes on after: its error is raised on all, as `agree_on` does.
        """
        value, problem = None, None
        try:
            value = act()
        except (SlayerError, OSError) as error:
            problem = error
        self.wait()
        self.agree_on(problem)
        return cast(T, value)

    def agree_on(self, problem: SlayerError | OSError | None) -> None:
        """Raise what any rank has found wrong on all of them: on the first one, which tells it, and as ToldError on the others. Collective."""
        if self.meeting is None:
            if problem is not None:
                raise problem
            return
        found = [(rank, host, one) for rank, (host, one) in enumerate(self.gather((socket.gethostname(), problem))) if one is not None]
        if not found:
            return
        rank, host, first = found[0]
        if not self.is_first:
            raise ToldError(str(first))
        raise problem or EngineError(f"rank {rank} on {host} cannot go on: {first}")

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum of `tensor` over ranks, in place."""
        if self.world > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is true. Collective, on the CPU: it waits for no device."""
        if self.meeting is None:
            return flag
        import torch
        import torch.distributed as dist

        flags = torch.tensor([int(flag)], dtype=torch.int32)
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.meeting.cpu)
        return bool(flags.item())

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order, on every rank."""
        return self._gather(value, None)

    def gather_aside(self, value: Any) -> list[Any]:
        """The same for one background thread of each rank, whose calls never mix with those of the main thread."""
        return self._gather(value, None if self.meeting is None else self.meeting.aside)

    def _gather(self, value: Any, group: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=group)
        return values


def is_lost_rank(error: BaseException) -> bool:
    """Whether an error out of a collective or a store means that another rank, or the way to it, is gone."""
    if isinstance(error, SlayerError):
        return isinstance(error, LostRankError)

    import torch.distributed as dist

    if isinstance(error, (dist.DistNetworkError, dist.DistStoreError)):
        return True
    if isinstance(error, dist.DistBackendError):
        return any(word in str(error) for word in NCCL_LOSSES)
    return isinstance(error, RuntimeError) and "gloo/transport/" in str(error)  # its other errors are sizes and types that do not fit


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


def interface_towards(address: str) -> str | None:
    """The network interface of this machine from which `address` is reached; None where that is the machine itself, or nobody knows."""
    import psutil

    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(place)  # sends nothing: it only asks which way it would go
            ours = probe.getsockname()[0]
    except OSError:
        return None
    if ipaddress.ip_address(ours).is_loopback:
        return None
    found = [name for name, addresses in psutil.net_if_addrs().items() if ours in [one.address.partition("%")[0] for one in addresses]]
    return found[0] if found else None


_opened: Ranks | None = None


@contextmanager
def open_ranks() -> Iterator[Ranks]:
    """Join the process group that torchrun's environment describes, or make one of this process alone (no port needed).

    Ranks that are open already are used and left open. DeepSpeed remembers the first group of a process for life: a program that
    makes several runs opens them once, around all of them.
    """
    global _opened
    if _opened is not None:
        yield _opened
        return
    import torch
    import torch.distributed as dist

    world, local_rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.setdefault("LOCAL_RANK", "0"))
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ.setdefault("DS_ACCELERATOR", device.type)  # saves DeepSpeed its search, and the user its warning
    try:
        ranks = _meet(world, device)
    except (RuntimeError, ValueError) as error:
        if "EADDRINUSE" in str(error) and "SLURM_JOB_ID" in os.environ:
            raise LostRankError(f"port {os.environ.get('MASTER_PORT')} is taken, and the next start of the job takes another") from error
        raise EngineError(
            f"the {world} ranks could not meet ({error}); check MASTER_ADDR and MASTER_PORT, or type launcher.processes={world}"
        ) from error
    _opened = ranks
    try:
        yield ranks
        if ranks.meeting is not None:
            ranks.meeting.leave(is_first=ranks.is_first)
    finally:
        _opened = None
        dist.destroy_process_group()


def _meet(world: int, device: torch.device) -> Ranks:
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore, PrefixStore

    backend = "nccl" if device.type == "cuda" else "gloo"
    if world == 1:
        dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1, timeout=TIMEOUT)
        return Ranks(rank=0, world=1, device=device)
    # Left alone, gloo takes whatever address the host's own name stands for, which the other hosts need not reach.
    interface = interface_towards(os.environ.get("MASTER_ADDR", ""))
    if interface is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    store, rank, world = _rendezvous()
    # torchrun keeps one store for all its attempts; what an earlier one left there is not ours.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    dist.init_process_group(backend, store=PrefixStore(f"group/{attempt}", store), rank=rank, world_size=world, timeout=TIMEOUT)
    return Ranks(rank=rank, world=world, device=device, meeting=Meeting(PrefixStore(f"slayer/{attempt}", store), world, backend))


def _rendezvous() -> tuple[Any, int, int]:
    """The store, our rank and the number of ranks, when all are there. A thread waits for that, so that the main thread hears signals."""
    from torch.distributed.rendezvous import rendezvous

    met: list[tuple[Any, int, int]] = []
    failed: list[BaseException] = []

    def meet() -> None:
        try:
            met.append(next(rendezvous("env://", timeout=TIMEOUT)))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=meet, name="rendezvous", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return met[0]
