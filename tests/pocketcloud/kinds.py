"""The kinds of machines; a cloud's kind is made when the cloud first needs it."""

import errno
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from tests.pocketcloud import basetree
from tests.pocketcloud.doors import Doors
from tests.pocketcloud.knobs import Knobs
from tests.pocketcloud.machines import Namespaces
from tests.pocketcloud.records import Kind, KindError, NoMachine
from tests.pocketcloud.sharedssh import SharedSsh

TRIAL_ADDRESS = "127.255.255.250"  # belongs to no cloud


class Kinds:
    """All kinds of all clouds of this process."""

    def __init__(self, root: Path, cache: Path, doors: Doors) -> None:
        self._root, self._cache, self._doors = root, cache, doors
        self._made: dict[tuple[str, str], Kind] = {}
        self._stops: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    def of(self, cloud: str, knobs: Knobs, name: str) -> Kind:
        """Return the cloud's kind of that name; raises KindError if this host cannot have it."""
        with self._lock:
            if (cloud, name) not in self._made:
                self._made[cloud, name] = self._make(cloud, knobs, name)
            return self._made[cloud, name]

    def stop(self) -> None:
        """End everything that the kinds have running."""
        for stop in self._stops:
            stop()

    def _make(self, cloud: str, knobs: Knobs, name: str) -> Kind:
        if name == "none":
            return NoMachine()
        check_ssh_port(self._doors.port)
        if name == "shared-ssh":
            shared = SharedSsh(self._root / "shared" / cloud, self._doors, knobs)
            self._stops.append(shared.stop)
            return shared
        real = Namespaces(self._root / "machines" / cloud, basetree.ensure(self._cache), self._doors)
        self._stops.append(real.stop)
        return real


def check_ssh_port(port: int) -> None:
    """Raise KindError if servers cannot listen for ssh, for example because the host's sshd listens everywhere."""
    try:
        socket.create_server((TRIAL_ADDRESS, port)).close()
    except OSError as err:
        if err.errno == errno.EADDRINUSE:
            text = f"port {port} is taken on all addresses, by the host's own sshd? Choose another one with --ssh-port"
        else:
            text = f"cannot listen on port {port}: {err.strerror}; choose another one with --ssh-port"
        raise KindError(text) from err
