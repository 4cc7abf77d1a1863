"""Things that the stand-in for Jenkins does later."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Clock:
    """One thread that calls things at their time."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="clock", daemon=True).start()

    def call_in(self, seconds: float, what: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), what))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    wait_seconds = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(wait_seconds)
                what = heapq.heappop(self._due)[2]
            try:
                what()
            except Exception:  # the boundary of one event; the clock goes on
                log.exception("An event of the stand-in for Jenkins failed")
