"""Servers of kind namespace: each has its root file system, mount, PID, UTS and IPC namespaces, and sshd.

The network is the host's: each machine's sshd listens on its own loopback address. Root inside is kept from changing
the host by accident, not on purpose.
"""

import contextlib
import logging
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.pocketcloud.doors import Doors, Greet
from tests.pocketcloud.records import BASE_LAYER, BootError, Guest, KindError, SnapshotError

log = logging.getLogger(__name__)
HERE = Path(__file__).parent
BOOT_SECONDS = 30.0  # far longer than any boot takes
NAMESPACES = ["--mount", "--propagation", "private", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]  # that is, with the starting thread, one of the pool's
SEARCH_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONSOLE_TAIL = 500
# For sshd: the post-quantum key exchange costs a client 60 ms of CPU time at each login.
QUICK_KEYS = "KexAlgorithms -sntrup761*\n"


@dataclass
class Machine:
    """The machine that runs, or ran, for one server."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None
    pid: int = 0  # of its init, as the host numbers it
    listening: bool = False  # whether its own sshd listens
    lock: threading.RLock = field(default_factory=threading.RLock)

    def inside(self, *command: str) -> list[str]:
        """Return the command that runs a command inside, with the same limits as everything else there."""
        enter = ["env", "-i", SEARCH_PATH, "nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc"]
        return [*DIE_WITH_US, *enter, "setpriv", "--bounding-set", dropped_capabilities(), *command]


def dropped_capabilities() -> str:
    """Return the capabilities that machine.sh takes from every machine, read from its text."""
    found = re.search(r"^DROPPED=(\S+)$", (HERE / "machine.sh").read_text(), re.MULTILINE)
    assert found
    return found[1]


class Namespaces:
    """The kind of real machines; one instance per cloud, with everything under `folder`."""

    def __init__(self, folder: Path, base: Path, doors: Doors) -> None:
        self._folder, self._layers, self._doors = folder, folder / "layers", doors
        self._machines: dict[str, Machine] = {}
        self._layers.mkdir(parents=True)
        (self._layers / BASE_LAYER).symlink_to(base)
        self._resolver = Path("/etc/resolv.conf").read_text()
        self._probe()

    def boot(self, server: Guest) -> None:
        """Start the machine, for the first time or again; raises BootError with the end of its console."""
        machine = self._machines.setdefault(server.id, Machine(self._folder / server.id))
        with machine.lock:
            self._write_seed(machine, server)
            machine.process, ready = _start(machine, self._layers, ":".join(server.layers))
            with os.fdopen(ready, "rb") as pipe:
                if not select.select([pipe], [], [], BOOT_SECONDS)[0] or pipe.readline() != b"ready\n":
                    _kill(machine)
                    raise BootError(f"the machine did not come up: {_console(machine)[-CONSOLE_TAIL:]}")
            machine.pid = int((machine.folder / "pid").read_text())

    def apply_ssh(self, server: Guest) -> None:
        """Start or stop the machine's own sshd, and answer in its place when ssh must be silent or reset."""
        machine = self._machines.get(server.id)
        if machine is None or server.address is None:
            return
        greet = {"silent": self._doors.hold, "reset": self._doors.reset}.get(server.ssh)
        with machine.lock:
            if server.ssh == "up":
                self._doors.close(server.address)
                self._listen(machine)
            else:
                self._stop_listening(machine)
                self._set_door(server.address, greet)
            for address in server.floating:
                self._set_door(address, (lambda _, link: _serve(machine, link)) if server.ssh == "up" else greet)

    def halt(self, server: Guest) -> None:
        """Kill everything in the machine; its disk stays."""
        machine = self._machines.get(server.id)
        if machine is None:
            return
        with machine.lock:
            _kill(machine)
            for address in [server.address, *server.floating]:
                if address:
                    self._doors.close(address)

    def remove(self, server: Guest) -> None:
        """Kill everything in the machine and remove its disk."""
        self.halt(server)
        machine = self._machines.pop(server.id, None)
        if machine:
            shutil.rmtree(machine.folder, ignore_errors=True)

    def snapshot(self, server: Guest, layer: str) -> bool:
        """Copy what the machine has changed, while it stands still. Raises SnapshotError."""
        with self.standing_still(server) as folder:
            command = ["cp", "-a", "--reflink=auto", str(folder / "upper"), str(self._layers / layer)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            shutil.rmtree(self._layers / layer, ignore_errors=True)
            raise SnapshotError(done.stderr[-CONSOLE_TAIL:])
        return True

    @contextlib.contextmanager
    def standing_still(self, server: Guest) -> Iterator[Path]:
        """Freeze everything in the machine; yields its folder, whose upper/ has what the machine has changed."""
        machine = self._machines.get(server.id)
        if machine is None:
            raise SnapshotError("the machine is gone")
        with machine.lock, _frozen(machine):
            yield machine.folder

    def drop_layers(self, unused: set[str]) -> None:
        """Remove the layers that no image and no server uses any more."""
        for layer in unused:
            shutil.rmtree(self._layers / layer)

    def console(self, server: Guest) -> str | None:
        """Return the machine's console log."""
        machine = self._machines.get(server.id)
        return _console(machine) if machine else ""

    def stop(self) -> None:
        """Kill every machine."""
        for machine in self._machines.values():
            _kill(machine)

    def _probe(self) -> None:
        """Raise KindError if namespaces or overlays cannot be made on this host."""
        probe = self._folder / "probe"
        for name in ("upper", "work", "root"):
            (probe / name).mkdir(parents=True)
        options = f"lowerdir={self._layers / BASE_LAYER},upperdir={probe / 'upper'},workdir={probe / 'work'}"
        command = ["unshare", *NAMESPACES, "mount", "-t", "overlay", "overlay", "-o", options, str(probe / "root")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        shutil.rmtree(probe)
        if done.returncode:
            raise KindError(
                "machines of kind namespace cannot run here, they need root, mount and PID namespaces, and overlay on "
                f"{self._folder} (else: --machines shared-ssh or none): {done.stderr.strip()}"
            )

    def _write_seed(self, machine: Machine, server: Guest) -> None:
        for name in ("upper", "work", "root", "seed"):
            (machine.folder / name).mkdir(parents=True, exist_ok=True)
        listen = f"Port {self._doors.port}\nListenAddress {server.address or '127.0.0.1'}\nUseDNS no\n{QUICK_KEYS}"
        seed = {
            "instance-id": server.id,
            "hostname": host_name(server.name),
            "address": server.address or "",
            "public-key": server.public_key.strip(),
            "resolv.conf": self._resolver,
            "sshd.conf": listen,
            "init.sh": (HERE / "init.sh").read_text(),
        }
        for name, text in seed.items():
            (machine.folder / "seed" / name).write_text(text)
        (machine.folder / "seed/user-data").write_bytes(server.user_data)

    def _listen(self, machine: Machine) -> None:
        if machine.pid and not machine.listening:
            done = subprocess.run(machine.inside("/usr/sbin/sshd"), capture_output=True, text=True, check=False)
            machine.listening = done.returncode == 0
            if done.returncode:
                log.error("sshd of %s: %s", machine.folder.name, done.stderr.strip())

    def _stop_listening(self, machine: Machine) -> None:
        if machine.pid and machine.listening:
            end = "pid=$(cat /run/sshd.pid); kill -9 $pid; while kill -0 $pid 2> /dev/null; do sleep 0.01; done"
            subprocess.run(machine.inside("/bin/sh", "-c", end), capture_output=True, check=False)
            machine.listening = False

    def _set_door(self, address: str, greet: Greet | None) -> None:
        if greet:
            self._doors.open(address, greet)
        else:
            self._doors.close(address)


def host_name(name: str) -> str:
    """Return the host name that Nova makes from a server's name."""
    return re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")[:63] or "server"


def _start(machine: Machine, layers: Path, lower: str) -> tuple[subprocess.Popen[bytes], int]:
    ready, tell = os.pipe()
    script = ["bash", str(HERE / "machine.sh"), str(machine.folder), str(layers), lower, str(tell)]
    try:
        with (machine.folder / "console.log").open("ab") as console:
            process = subprocess.Popen(
                [*DIE_WITH_US, "unshare", *NAMESPACES, *script],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                pass_fds=(tell,),
                start_new_session=True,
            )
    finally:
        os.close(tell)
    return process, ready


def _kill(machine: Machine) -> None:
    """Kill the machine's init; the kernel then kills everything in its PID namespace."""
    if machine.process:
        if machine.pid and machine.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(machine.pid, signal.SIGKILL)
        else:
            machine.process.kill()
        machine.process.wait()
    machine.process, machine.pid, machine.listening = None, 0, False


def _serve(machine: Machine, connection: socket.socket) -> None:
    """Answer on a floating address as the machine's sshd does on its fixed one."""
    with connection, contextlib.suppress(OSError):
        subprocess.Popen(
            machine.inside("/usr/sbin/sshd", "-i"),
            stdin=connection.fileno(),
            stdout=connection.fileno(),
            stderr=subprocess.DEVNULL,
        )


@contextlib.contextmanager
def _frozen(machine: Machine) -> Iterator[None]:
    pids = _processes(machine)
    try:
        for pid in pids:
            _signal(pid, signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _processes(machine: Machine) -> list[int]:
    if not machine.pid:
        return []
    space = Path(f"/proc/{machine.pid}/ns/pid").readlink()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # the process has ended
            if (folder / "ns/pid").readlink() == space:
                found.append(int(folder.name))
    return found


def _console(machine: Machine) -> str:
    return (machine.folder / "console.log").read_text(errors="replace")
