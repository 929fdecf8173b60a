"""A checkpoint on disk, and how it is known to be whole.

    checkpoints/step-00000100/
      model.safetensors     fp32 master, exp_avg and exp_avg_sq of each trained tensor by name, random state of each rank, the guard's
                            window; with several ranks shards and an index, as Hugging Face names them
      state.json            where the run stands, AdamW steps of each tensor, the plan, and what the checkpoint belongs to
      manifest.json         size and SHA-256 of every other file, written last

It is written under another name, synced and renamed: a folder of the right name was whole once, and its hashes say whether it still is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from slayer.data.cache import fsync
from slayer.errors import CheckpointError
from slayer.surgery.weights import INDEX_NAME

FORMAT = 3
STATE_NAME, MANIFEST_NAME = "state.json", "manifest.json"
PARTIAL = ".partial"
_NAME = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,})")
_OLD = ".old"


def checkpoint_folder(checkpoints: Path, step: int) -> Path:
    """Folder of a step's checkpoint."""
    return checkpoints / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step that a checkpoint's name claims; ValueError when it is no such name."""
    match = _NAME.fullmatch(folder.name)
    if match is None:
        raise ValueError(f"{folder.name} is not a checkpoint's name")
    return int(match[1])


def list_checkpoints(checkpoints: Path) -> list[Path]:
    """All that has a checkpoint's name, oldest first, whole or not; unfinished ones are left out.

    CheckpointError when the folder is there and cannot be read: that is not the same as no checkpoint.
    """
    try:
        names = os.listdir(checkpoints)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(f"{checkpoints} cannot be read ({error.strerror}); mend that, or type run=NAME for a new run") from error
    return sorted((checkpoints / name for name in names if _NAME.fullmatch(name)), key=step_of)


def remove_unfinished(checkpoints: Path) -> None:
    """Clear what a killed run was writing. Only while nobody writes there."""
    for path in checkpoints.glob(f"step-*{PARTIAL}*"):
        _delete(path)


def remove(path: Path) -> None:
    """Take away a checkpoint, or whatever has its name; of a link only the link. It loses its name first: a kill leaves no half of one.

    What the disk does not let go stays.
    """
    aside = path.with_name(f"{path.name}{PARTIAL}{_OLD}")
    try:
        path.rename(aside)
    except OSError:
        aside = path
    _delete(aside)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def superseded(found: Collection[Path], newest: Path, *, keep: int, keep_every: int | None) -> list[Path]:
    """Checkpoints that may go once `newest` is whole: all but the last `keep` up to it and those of every `keep_every` steps.

    Later ones go as well: training went on from the newest good one, so they are damaged or of a course that was left.
    """
    until = [path for path in found if step_of(path) <= step_of(newest)]
    kept = {*until[-keep:], *(path for path in until if keep_every is not None and step_of(path) % keep_every == 0)}
    return [path for path in found if path not in kept]


def write_manifest(folder: Path, files: Mapping[str, tuple[str, int]]) -> None:
    """Name what makes the folder whole: SHA-256 and size by file name. On the disk, like all that is named, when this returns."""
    write_json(folder / MANIFEST_NAME, _manifest(files))
    fsync(folder)


def _manifest(files: Mapping[str, tuple[str, int]]) -> dict[str, Any]:
    body = {"format": FORMAT, "files": {name: {"sha256": digest, "bytes": size} for name, (digest, size) in sorted(files.items())}}
    return {**body, "sha256": hashlib.sha256(_as_json(body)).hexdigest()}


def find_problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be trusted, or None when every byte is as written and nothing lies there that would be read with it."""
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            return "it is a file and no folder"
        return next(_problems(folder), None)
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"


def _problems(folder: Path) -> Iterator[str]:
    try:
        written = (folder / MANIFEST_NAME).read_bytes()
    except FileNotFoundError:
        yield f"{MANIFEST_NAME} is missing"
        return
    except OSError as error:
        yield f"{MANIFEST_NAME} cannot be read ({error.strerror})"
        return
    try:
        values = json.loads(written)
        if values["format"] != FORMAT:
            yield f"{MANIFEST_NAME} is of format {values['format']}, and this version reads {FORMAT}"
        files = {name: (entry["sha256"], entry["bytes"]) for name, entry in values["files"].items()}
        if _as_json(_manifest(files)) != written:
            yield f"{MANIFEST_NAME} is not what was written"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield f"{MANIFEST_NAME} is not what was written"
        return
    for name, (digest, size) in files.items():
        problem = _file_problem(folder / name, digest, size)
        if problem is not None:
            yield problem
    yield from _unfit(folder, set(files))


def _file_problem(path: Path, digest: str, size: int) -> str | None:
    try:
        found = path.stat().st_size
        if found != size:
            return f"{path.name} has {found:,} bytes, and {size:,} were written"
        return None if file_sha256(path) == digest else f"{path.name} is not what was written"
    except FileNotFoundError:
        return f"{path.name} is missing"
    except (OSError, ValueError) as error:
        return f"{path.name} cannot be read ({error})"


def _unfit(folder: Path, named: set[str]) -> Iterator[str]:
    """What does not belong together although every file is as its manifest says."""
    beside = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    yield from (f"{name} is not of this checkpoint" for name in beside if name not in {*named, MANIFEST_NAME})
    name = INDEX_NAME
    try:
        shards = set(json.loads((folder / name).read_bytes())["weight_map"].values()) if name in named else {"model.safetensors"}
        yield from (f"{MANIFEST_NAME} does not name {missing}" for missing in sorted({STATE_NAME, *shards} - named))
        name = STATE_NAME
        step = json.loads((folder / name).read_bytes())["run"]["step"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        yield f"{name} is no part of a checkpoint ({type(error).__name__}: {error})"
        return
    if _NAME.fullmatch(folder.name) and step != step_of(folder):
        yield f"{STATE_NAME} is of step {step}, and the folder's name says {step_of(folder)}"


def newest_valid(checkpoints: Path, on_damage: Callable[[Path, str], None], *, before_step: int | None = None) -> Path | None:
    """The newest checkpoint that verifies, of those up to `before_step`; `on_damage` hears of each one passed over. None when there is none
    to look at.

    CheckpointError when there are checkpoints and none is good: a run never silently starts over.
    """
    found = [path for path in list_checkpoints(checkpoints) if before_step is None or step_of(path) <= before_step]
    for folder in reversed(found):
        problem = find_problem(folder)
        if problem is None:
            return folder
        on_damage(folder, problem)
    if found:
        raise CheckpointError(f"no checkpoint in {checkpoints} is intact; remove that folder to start the run over, or type run=NAME for a new run")
    return None


def write_json(path: Path, value: Any) -> tuple[str, int]:
    """Write and sync; SHA-256 and size of the file."""
    content = _as_json(value)
    with path.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    return hashlib.sha256(content).hexdigest(), len(content)


def _as_json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()
