"""What every run starts from and is made once: the services in a virtual environment, and a template of their state."""

import fcntl
import hashlib
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.pocketcloud.basetree import PRIVATE
from tests.pocketcloud.records import FLAVORS
from tests.realcloud import template
from tests.realcloud.services import ServiceError

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"
TEMPLATE_PARTS = [HERE / f"{name}.py" for name in ("configuration", "neutrontables", "seed", "serve", "template")]
# Neutron finds its mechanism drivers by entry points only.
ENTRY_POINTS = "[neutron.ml2.mechanism_drivers]\nloopback = tests.realcloud.binding:BindAtOnce\n"
METADATA = "Metadata-Version: 2.1\nName: devstack-gate-realcloud\nVersion: 1\n"
DONE = "complete"


@dataclass(frozen=True)
class Environment:
    """The folders of the services and of the state that they start from."""

    venv: Path
    template: Path


def ensure(cache: Path) -> Environment:
    """Return the environment; makes the parts that are missing or whose recipe has changed. Raises ServiceError."""
    cache.mkdir(parents=True, exist_ok=True)
    python = f"{sys.version_info.major}.{sys.version_info.minor} {ENTRY_POINTS}"
    venv = cache / f"venv-{_digest(python, [REQUIREMENTS])}"
    made = cache / f"template-{_digest(f'{python} {FLAVORS}', [REQUIREMENTS, *TEMPLATE_PARTS])}"
    with _lock(cache / "lock"):
        _make("the services", venv, _install)
        _make("their databases", made, lambda state: template.make(state, venv))
    return Environment(venv, made)


def _digest(text: str, files: Iterable[Path]) -> str:
    whole = hashlib.sha256(text.encode())
    for file in files:
        whole.update(file.read_bytes())
    return whole.hexdigest()[:12]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(what: str, folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder in its final place, since a virtual environment cannot be moved."""
    if (folder / DONE).exists():
        return
    began = time.monotonic()
    log.info("making %s in %s, this takes a minute", what, folder)
    shutil.rmtree(folder, ignore_errors=True)
    make(folder)
    (folder / DONE).touch()
    log.info("made %s in %.0f s", what, time.monotonic() - began)


def _install(venv: Path) -> None:
    _run("making the virtual environment", [sys.executable, "-m", "venv", str(venv)])
    pip = [str(venv / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    _run("pip", [*pip, "-r", str(REQUIREMENTS)])
    (site,) = venv.glob("lib/python*/site-packages")
    entry = site / "devstack_gate_realcloud-1.dist-info"
    entry.mkdir()
    (entry / "METADATA").write_text(METADATA)
    (entry / "entry_points.txt").write_text(ENTRY_POINTS)


def _run(what: str, command: list[str]) -> None:
    done = subprocess.run([*PRIVATE, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ServiceError(f"{what} failed with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")
