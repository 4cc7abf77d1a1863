"""Runs of scripts through tests/support/starter.py: their output goes to the event log, and they can be signalled."""

import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Self

from tests.chaos.events import Events
from tests.chaos.points import KILLED_AT
from tests.support.starter_client import Starter as Forks

FORK_SECONDS = 30.0


class Run:
    """One run of a script; it ends when the process has ended and nothing holds its output open any more."""

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
        self.at_end: Callable[[], None] | None = None  # called before the run counts as ended
        self.own_signal = int(signal.SIGKILL)  # the signal that it sends itself at a point
        self._exited = threading.Event()
        self._pid_lock = threading.Lock()

    def read(self, output: int) -> None:
        """Read its output to the end."""
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

    def began(self, pidfd: int) -> None:
        """Note its process."""
        self.pidfd = pidfd
        self.forked.set()

    def exited(self, status: int) -> None:
        """Note the end of its process."""
        self.status, self.ended_at = status, time.monotonic()
        self.events.add("ended", run=self.name, status=status)
        with self._pid_lock:
            os.close(self.pidfd)
            self.pidfd = -1
        self._exited.set()

    def send(self, number: int) -> bool:
        """Send it a signal; returns whether it was still running."""
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
        """Return all its output."""
        return "\n".join(self.lines)


class Starter:
    """Starts runs; build steps start theirs by `command`."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self._forks = Forks()
        self.command = self._forks.command
        self._runs: set[Run] = set()
        self._count = 0
        self._lock = threading.Lock()

    def start(self, script: str, *arguments: str, environment: Mapping[str, str], folder: str, **order: Any) -> Run:
        """Start a script; order as in starter.py: limits, clock, point, signal."""
        with self._lock:
            self._count += 1
            run = Run(self._count, [script, *arguments], self.events)
            run.own_signal = order.get("signal", run.own_signal)
            self._runs.add(run)
            self.events.add("start", run=run.name, **{key: order[key] for key in order if key != "limits"})
            output, theirs = os.pipe()
            self._forks.start({"script": script, "arguments": arguments, "folder": folder,
                               "environment": dict(environment), **order}, [theirs],
                              forked=run.began, exited=lambda status: self._exited(run, status))
        threading.Thread(target=run.read, args=(output,), daemon=True).start()
        return run

    def _exited(self, run: Run, status: int) -> None:
        run.exited(status)
        self._runs.discard(run)

    def stop(self) -> None:
        """End the starter and all its runs."""
        for run in list(self._runs):
            run.send(signal.SIGKILL)
        self._forks.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
