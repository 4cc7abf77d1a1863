"""The folder --root: one cloud at a time uses it, after ending and removing what a killed one left there."""

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

log = logging.getLogger(__name__)
OURS = ("machines", "shared", "clouds.yaml", "ready", "ready.new")
END_SECONDS = 10.0


class RootError(Exception):
    """The folder cannot be used."""


@contextlib.contextmanager
def owned(root: Path, names: Sequence[str] = OURS, what: str = "pocketcloud") -> Iterator[None]:
    """Own the folder, in which `names` are ours; remove them before and afterwards. Raises RootError."""
    lock = root / f"{what}.lock"  # also marks the folder as ours
    if root.exists() and (not root.is_dir() or (any(root.iterdir()) and not lock.exists())):
        raise RootError(f"--root {root}: expected an empty or a missing folder, or one left by a {what}")
    root.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RootError(f"--root {root}: another {what} is running there") from None
        _clean(root, names)
        try:
            yield
        finally:
            _clean(root, names)
            lock.unlink()
            with contextlib.suppress(OSError):  # somebody else's files are in it
                root.rmdir()


def _clean(root: Path, names: Sequence[str]) -> None:
    _end_processes(root)
    for name in names:
        path = root / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _end_processes(root: Path) -> None:
    deadline = time.monotonic() + END_SECONDS
    while left := _processes(root):
        if time.monotonic() > deadline:
            raise RootError(f"--root {root}: processes {left} of an earlier run do not end")
        for pid in left:
            log.info("ending process %d of an earlier run", pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _processes(root: Path) -> list[int]:
    """Return the processes in other mount namespaces that have something mounted from below `root`."""
    own, found = Path("/proc/self/ns/mnt").readlink(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended, or is a zombie
            if (folder / "ns/mnt").readlink() != own and f"{root}/" in (folder / "mountinfo").read_text():
                found.append(int(folder.name))
    return sorted(found)
