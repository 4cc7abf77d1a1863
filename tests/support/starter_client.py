"""The client's side of starter.py, whose process forks for each run of a script."""

import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tests.support.starter import MESSAGE_BYTES, PROJECT

FORKED = PROJECT / "tests/support/forked.py"
# Variables that Python or its libraries read before the script starts: a fork would have the starter's values.
READ_AT_START = ("PYTHON", "LC_", "LANG", "LD_", "TZ")


class Starter:
    """A running starter; its environment is this process's."""

    def __init__(self) -> None:
        self._name = f"devstack-gate-{secrets.token_hex(8)}"
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
            door.bind(f"\0{self._name}")
            door.listen(64)  # before anybody knows the name
            handles = [theirs.fileno(), door.fileno()]
            command = [sys.executable, "-m", "tests.support.starter", *map(str, handles)]
            self._process = subprocess.Popen(command, cwd=PROJECT, pass_fds=handles, start_new_session=True)
        self._told: dict[int, tuple[Callable[[int], None], Callable[[int], None]]] = {}
        self._count = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, order: Mapping[str, Any], outputs: Sequence[int], *, forked: Callable[[int], None],
              exited: Callable[[int], None]) -> None:
        """Start a script by an order, see starter.py; closes outputs.

        forked is called with the pidfd, which the caller must close; exited with the exit code, negative for a signal.
        """
        with self._lock:
            self._count += 1
            self._told[self._count] = forked, exited
            message = json.dumps({**order, "order": self._count}).encode()
            socket.send_fds(self._channel, [message], outputs)
        for output in outputs:
            os.close(output)

    def run(self, script: str, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, seconds: float
            ) -> subprocess.CompletedProcess[str]:
        """Run a script until it and its output have ended; raises subprocess.TimeoutExpired after `seconds`."""
        pidfds: list[int] = []
        codes: list[int] = []
        texts: dict[str, str] = {}

        def read(name: str, output: int) -> None:
            with open(output, encoding="utf-8", errors="replace") as stream:
                texts[name] = stream.read()

        pipes = {"out": os.pipe(), "err": os.pipe()}
        ended = threading.Event()

        def note_end(code: int) -> None:
            codes.append(code)
            ended.set()

        self.start({"script": script, "arguments": list(arguments), "environment": dict(environment),
                    "folder": str(folder)}, [write for _, write in pipes.values()], forked=pidfds.append,
                   exited=note_end)
        deadline = time.monotonic() + seconds
        readers = [threading.Thread(target=read, args=(name, output), daemon=True)
                   for name, (output, _) in pipes.items()]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(max(deadline - time.monotonic(), 0))
        if not ended.wait(max(deadline - time.monotonic(), 0)) or any(reader.is_alive() for reader in readers):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfds[0], signal.SIGKILL)
            raise subprocess.TimeoutExpired([script, *arguments], seconds)
        os.close(pidfds[0])
        return subprocess.CompletedProcess([script, *arguments], codes[0], texts["out"], texts["err"])

    def command(self, **order: Any) -> list[str]:
        """Return the words that go before a script's name to start it from another process; order: see starter.py."""
        return [sys.executable, "-I", "-S", str(FORKED), self._name, json.dumps(order)]

    def _listen(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES, 1)
            if not message:
                return
            fact = json.loads(message)
            with self._lock:
                forked, exited = self._told[fact["order"]]
            if "pid" in fact:
                forked(descriptors[0])
            else:
                exited(fact["status"])
                with self._lock:
                    del self._told[fact["order"]]

    def stop(self) -> None:
        """End the starter; the runs that it has forked go on."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def forks_well(script: str, environment: Mapping[str, str]) -> bool:
    """Return whether this script can run as a fork of the starter with the same result as in a new process."""
    names = {name for name in environment.keys() | os.environ.keys() if name.startswith(READ_AT_START)}
    own = Path(script).suffix == ".py" and Path(script).parent in (Path(), Path("jobs"))
    return own and all(environment.get(name) == os.environ.get(name) for name in names)
