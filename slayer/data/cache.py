"""The folder of everything that is made once and used by many runs: wheels, converted models, token stores."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

STALE_SECONDS = 24 * 3600

WAITING_SECONDS = 0.5
"""Who waits for another process says so this often: whoever is told may want to stop."""

NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What file systems without locks answer."""


def cache_dir() -> Path:
    """SLAYER_CACHE if it is set, else ~/.cache/slayer; made when missing."""
    folder = Path(os.environ.get("SLAYER_CACHE") or Path.home() / ".cache" / "slayer").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """A scratch folder beside `target` that becomes `target` when the block ends without an error.

    The rename is atomic and comes after an fsync of every file: `target` is either absent or whole, whatever is killed.
    Of two processes that build the same target the first one wins and the other's work is thrown away.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(target)
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)  # temporary files are made private; a cache may be shared
        for file in scratch.rglob("*"):
            file.chmod(0o644 if file.is_file() else 0o755)
            if file.is_file():
                fsync(file)
        try:
            scratch.rename(target)
        except OSError:
            if not target.is_dir():
                raise
        fsync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_file(target: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a small file of the cache, aside and renamed: it is absent or whole, also when two processes write it at once.

    `durable`: on the disk when this returns, so that a power cut cannot leave it empty.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        if durable:
            fsync(temporary)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        fsync(target.parent)


@contextmanager
def one_at_a_time(lock: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[bool]:
    """Hold a lock file, calling `waiting` now and then until it is free: what several processes want is made by one of them.

    The lock is the kernel's (flock; over NFS the server's): it ends with the process that holds it, however that ends, on whichever machine.
    False where the file system knows no locks: two processes may then do the same work at once, and every file comes from one of them.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, fallback_to_soft=False)  # a soft lock would outlive its dead owner on another machine
    supported = True
    while supported and not held.is_locked:
        try:
            held.acquire(timeout=WAITING_SECONDS)
        except Timeout:
            waiting()
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            supported = False
    try:
        yield supported
    finally:
        held.release()


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_stale(target: Path) -> None:
    """Clear what killed processes left, once it is too old to be somebody's work in progress."""
    for left in target.parent.glob(f".{target.name}.*"):
        try:
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        except OSError:  # another process cleared it first
            continue
