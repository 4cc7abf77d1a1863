"""One thread that calls functions at set times, so that a thousand servers under way do not need a thread each."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Schedule:
    """Calls functions later, one at a time; they must be quick."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = itertools.count()  # keeps the order of what is due at the same time
        self._wake = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="schedule", daemon=True)
        self._thread.start()

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` after `seconds`, never before this returns to a caller that holds the lock it needs."""
        with self._wake:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._number), call))
            self._wake.notify()

    def stop(self) -> None:
        """Stop the thread; what is still due is not called."""
        with self._wake:
            self._stopped = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call()
            except Exception:
                log.exception("a scheduled step failed")

    def _next(self) -> Callable[[], None] | None:
        with self._wake:
            while not self._stopped:
                if not self._due:
                    self._wake.wait()
                elif (pause := self._due[0][0] - time.monotonic()) > 0:
                    self._wake.wait(pause)
                else:
                    return heapq.heappop(self._due)[2]
        return None
