"""train.py as one of several ranks that torchrun, deepspeed or srun has started: all of them compose, one of them speaks.

The ranks meet before anything else, and go on only with one and the same configuration. What one of them finds wrong is told once, by the
first; the others wait for it, since a launcher ends all ranks with the first that ends.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from slayer.config import LauncherConfig, RunConfig, differing_keys
from slayer.errors import EngineError, Problem, SlayerError
from slayer.launching.processes import threads_per_rank
from slayer.schema import as_override

LOCAL_WORDS = ("--local_rank", "--local-rank")
"""deepspeed adds one to the words of each rank; the environment says the same."""


def is_joined() -> bool:
    """True when a launcher has already made this process one of the ranks of a run."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def speaks() -> bool:
    """False on the ranks that leave it to the first one to talk to people."""
    return os.environ.get("RANK", "0") == "0"


def own_words(arguments: Sequence[str]) -> list[str]:
    """The words of a command line that a person has typed."""
    return [word for word in arguments if not (is_joined() and word.partition("=")[0] in LOCAL_WORDS)]


def share_cores() -> None:
    """Threads for this rank where its launcher says how many there are on this host, and not how many threads (deepspeed). Before torch is there."""
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE", "")
    if is_joined() and here.isdigit() and int(here) > 0:
        os.environ["OMP_NUM_THREADS"] = threads_per_rank(int(here))


def met() -> AbstractContextManager[Any]:
    """All ranks of the launcher, met for the whole of a command. EngineError when they cannot meet."""
    if not is_joined():
        return nullcontext()
    from slayer.training.ranks import open_ranks

    return open_ranks()


def agreed(make: Callable[[], RunConfig]) -> RunConfig:
    """The configuration that `make` gives, once every rank has come to the same one; what any of them finds wrong is raised on all."""
    if not is_joined():
        return make()
    from slayer.training.ranks import open_ranks

    with open_ranks() as ranks:
        config = ranks.together(make)

        told = ranks.gather((socket.gethostname(), config))
        ranks.agree_on(_not_the_same(told))
    return config


def _not_the_same(told: Sequence[tuple[str, RunConfig]]) -> SlayerError | None:
    """What the ranks have composed differently."""
    first_host, first = told[0]
    for rank, (host, config) in enumerate(told):
        differences = differing_keys(first, config)
        if differences:
            lines = "".join(
                f"\n    {key}: rank 0 on {first_host} has {one!r}, rank {rank} on {host} has {other!r}" for key, one, other in differences
            )
            return EngineError(
                f"the ranks were not started for the same run:{lines}\n    type the same words on every host; a value that each rank works out "
                "anew (a time, a random number) must be typed out, like run=NAME"
            )
    return None


def tell_once(tell: Callable[[], None]) -> None:
    """Let the first rank speak; the others stay until it has."""
    if not is_joined():
        tell()
        return
    from slayer.training.ranks import open_ranks

    with open_ranks() as ranks:
        if ranks.is_first:
            tell()
        ranks.wait()


def join_problems(values: MutableMapping[str, Any]) -> list[Problem]:
    """Keys of `launcher` that ask for ranks where there are some already. `launcher.processes` becomes their number."""
    launcher = values.get("launcher")
    if not is_joined() or not isinstance(launcher, Mapping):
        return []
    world = int(os.environ["WORLD_SIZE"])
    defaults = LauncherConfig().model_dump()
    problems = []
    for name, value in launcher.items():
        if name in defaults and value != defaults[name] and not (name == "processes" and value == world):
            why = f"cannot be read here: {world} {'rank was' if world == 1 else 'ranks were'} already started, by torchrun, deepspeed or srun"
            fix = f"leave out launcher.{name}, or start python train.py itself"
            problems.append(Problem(key=f"launcher.{name}", value=value, why=why, fix=fix))
    values["launcher"] = {**launcher, "processes": world}
    return problems


def sweep_problem(typed: Sequence[str]) -> Problem | None:
    """A sweep starts the ranks of each point itself."""
    option = next((word for word in typed if word in ("-m", "--multirun")), None)
    if option is None or not is_joined():
        return None
    why = "starts the ranks of each point itself, and here some were already started"
    fix = f"python train.py -m … {as_override('launcher.processes', int(os.environ['WORLD_SIZE']))}"
    return Problem(key=option, value=None, why=why, fix=fix)
