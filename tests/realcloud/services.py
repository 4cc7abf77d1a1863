"""The processes of the control plane: started on free ports of 127.0.0.1, waited for, and killed."""

import http.client
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tests.pocketcloud.basetree import PRIVATE
from tests.pocketcloud.client import REPOSITORY
from tests.pocketcloud.machines import DIE_WITH_US

NAMES = ("keystone", "glance", "placement", "neutron", "nova")
VOLUMES = "cinder"  # starts only with --volumes
READY_SECONDS = 240.0  # many times what it takes, for a busy machine
LOOK_SECONDS = 0.2
LAST_LINES = 15
DROPPED = ("OS_", "PYTHON", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


class ServiceError(Exception):
    """A part of the control plane could not be installed, set up or started."""


class Services:
    """The services whose state is in a folder; each one's output is in log/NAME.log there."""

    def __init__(self, state: Path, venv: Path, **settings: str) -> None:
        self._state = state
        self._programs = venv / "bin"
        self.environment = _environment(state) | settings
        self._sockets = {name: socket.create_server(("127.0.0.1", 0), backlog=1024) for name in (*NAMES, VOLUMES)}
        self.ports: dict[str, int] = {name: sock.getsockname()[1] for name, sock in self._sockets.items()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        """Start services; each dies with the thread that calls this, however the thread ends."""
        for name in names:
            with self._sockets.pop(name) as listening, (self._state / f"log/{name}.log").open("ab") as log:
                handle = listening.fileno()
                serve = [str(self._programs / "python"), "-B", "-P", "-m", "tests.realcloud.serve", name, str(handle)]
                self._processes[name] = subprocess.Popen(
                    [*DIE_WITH_US, *serve],
                    cwd=self._state,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(handle,),
                    start_new_session=True,  # Ctrl-C must reach this process only
                )

    def wait(self, *names: str) -> None:
        """Wait until these services answer; raises ServiceError."""
        for name in names:
            self.wait_until(f"an answer of {name}", partial(_answers, self.ports[name]))

    def wait_until(self, what: str, look: Callable[[], bool]) -> None:
        """Wait until `look` is true while all services live; raises ServiceError with the last lines of logs."""
        deadline = time.monotonic() + READY_SECONDS
        while not look():
            self.check()
            if time.monotonic() > deadline:
                logs = "".join(f"\n{name}: {self._last_lines(name)}" for name in self._processes)
                raise ServiceError(f"waited {READY_SECONDS:.0f} s in vain for {what}{logs}")
            time.sleep(LOOK_SECONDS)

    def check(self) -> None:
        """Raise ServiceError if a service has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise ServiceError(f"{name} ended with {process.returncode}: {self._last_lines(name)}")

    def stop(self) -> None:
        """Kill all services: their state will be thrown away, or is safe in files."""
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.wait()
        for sock in self._sockets.values():
            sock.close()

    def run_side_by_side(self, chains: Mapping[str, Sequence[Sequence[str]]]) -> None:
        """Run chains of the services' commands, all chains at once; raises ServiceError."""
        running = {}
        try:
            for name, chain in chains.items():
                script = " && ".join(shlex.join([str(self._programs / word), *words]) for word, *words in chain)
                with (self._state / f"log/setup-{name}.log").open("wb") as log:
                    command = [*PRIVATE, "sh", "-c", script]
                    running[name] = subprocess.Popen(
                        command, cwd=self._state, env=self.environment, stdout=log, stderr=log, start_new_session=True
                    )
            for name, process in running.items():
                if process.wait():
                    raise ServiceError(f"set-up of {name} failed: {self._last_lines(f'setup-{name}')}")
        finally:
            for process in running.values():
                process.kill()
                process.wait()

    def _last_lines(self, name: str) -> str:
        path = self._state / f"log/{name}.log"
        return "\n".join([str(path), *path.read_text(errors="replace").splitlines()[-LAST_LINES:]])


def _environment(state: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
    folders = {f"OS_{name.upper()}_CONFIG_DIR": str(state / "etc" / name) for name in (*NAMES, VOLUMES)}
    return kept | folders | {
        "OS_CINDER_DISABLE_EVENTLET_PATCHING": "1",
        "OS_NEUTRON_CONFIG_FILES": "neutron.conf;ml2.ini",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "ignore",
        "MALLOC_ARENA_MAX": "2",
    }


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status < 500
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
