"""The driver's side of starter.py: runs of scripts, their output in the event log, signals to them."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from tests.chaos.events import Events
from tests.chaos.points import KILLED_AT
from tests.chaos.starter import MESSAGE_BYTES, PROJECT

FORK_SECONDS = 30.0
Order = dict[str, Any]


class Run:
    """One run of a script; ends when the process has ended and nothing holds its output any more."""

    def __init__(self, number: int, words: list[str], events: Events) -> None:
        self.number = number
        self.name = f"{' '.join(words)} [{number}]"
        self.events = events
        self.lines: list[str] = []
        self.status: int | None = None
        self.started = time.monotonic()
        self.ended = threading.Event()
        self.signalled: tuple[int, float] | None = None  # which signal, and when
        self.ended_at = 0.0
        self.pidfd = -1
        self.forked = threading.Event()
        self.at_end: Callable[[], None] | None = None  # done before the run counts as ended
        self.own_signal = int(signal.SIGKILL)  # what it sends itself at a point
        self._exited = threading.Event()
        self._pid_lock = threading.Lock()

    def read(self, output: int) -> None:
        """Read what it says to its end."""
        with open(output, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))
                if line.startswith(KILLED_AT):
                    self.signalled = self.own_signal, time.monotonic()
                self.events.add("said", run=self.name, line=line.rstrip("\n"))
        self._exited.wait()
        if self.at_end:
            self.at_end()
        self.ended.set()

    def exited(self, status: int) -> None:
        """Take note of the end of the process."""
        self.status, self.ended_at = status, time.monotonic()
        self.events.add("ended", run=self.name, status=status)
        with self._pid_lock:
            os.close(self.pidfd)
            self.pidfd = -1
        self._exited.set()

    def send(self, number: int) -> bool:
        """Send it a signal; returns whether it was still there."""
        self.forked.wait(FORK_SECONDS)
        with self._pid_lock:
            if self.pidfd < 0:
                return False
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return False
        self.signalled = (number, time.monotonic())
        self.events.add("signal", run=self.name, signal=signal.Signals(number).name)
        return True

    def text(self) -> str:
        """All that it said."""
        return "\n".join(self.lines)


class Starter:
    """Starts runs."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.chaos.starter", str(theirs.fileno())]
        self._process = subprocess.Popen(command, cwd=PROJECT, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self._runs: dict[int, Run] = {}
        self._count = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._listen, daemon=True).start()

    def start(self, script: str, *arguments: str, environment: Mapping[str, str], folder: str, **order: Any) -> Run:
        """Start a script; order as in starter.py: limits, clock, point, signal."""
        with self._lock:
            self._count += 1
            run = Run(self._count, [script, *arguments], self.events)
            run.own_signal = order.get("signal", run.own_signal)
            self._runs[run.number] = run
            self.events.add("start", run=run.name, **{key: order[key] for key in order if key != "limits"})
            output, theirs = os.pipe()
            message = json.dumps({"order": run.number, "script": script, "arguments": arguments, "folder": folder,
                                  "environment": dict(environment), **order})
            socket.send_fds(self._channel, [message.encode()], [theirs])
            os.close(theirs)
        threading.Thread(target=run.read, args=(output,), daemon=True).start()
        return run

    def _listen(self) -> None:
        while True:
            message, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES, 1)
            if not message:
                return
            fact = json.loads(message)
            with self._lock:
                run = self._runs[fact["order"]]
            if "pid" in fact:
                run.pidfd = descriptors[0]
                run.forked.set()
            else:
                run.exited(fact["status"])
                with self._lock:
                    del self._runs[run.number]

    def stop(self) -> None:
        """End it and what it has running."""
        for run in list(self._runs.values()):
            run.send(signal.SIGKILL)
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
