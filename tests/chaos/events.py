"""The event log: what the driver did, what the scripts printed, what clouds and Jenkins were asked for."""

import json
import threading
import time
from collections import deque
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

KEPT_EVENTS = 50_000
SHOWN_EVENTS = 30
Event = dict[str, Any]


class Events:
    """A log of JSON lines in a file, the last ones also in memory; times are monotonic, like the stand-ins'."""

    def __init__(self, file: Path) -> None:
        self._kept: deque[tuple[float, str]] = deque(maxlen=KEPT_EVENTS)
        self._stream = file.open("w", encoding="utf-8")
        self._lock = threading.Lock()
        self.round = 0

    def add(self, what: str, time_of: float | None = None, **facts: object) -> None:
        """Record one event, which happened now or at a known time."""
        moment = time.monotonic() if time_of is None else time_of
        line = json.dumps({"t": round(moment, 3), "round": self.round, "what": what, **facts}, default=str)
        with self._lock:
            self._kept.append((moment, line))
            self._stream.write(line + "\n")
            self._stream.flush()

    def add_requests(self, whose: str, requests: Collection[Mapping[str, Any]]) -> None:
        """Record the requests to a cloud (with a "time") or to Jenkins (with an "at")."""
        for entry in requests:
            facts = {key: entry.get(key) for key in ("service", "method", "path", "status") if entry.get(key)}
            self.add(whose, entry.get("time", entry.get("at")), **facts)

    def concerning(self, words: Collection[str]) -> list[str]:
        """Return the last events whose text has one of the words, or all if there are no words; ordered by time."""
        with self._lock:
            found = [one for one in self._kept if any(word in one[1] for word in words)] if words else list(self._kept)
        return [line for _, line in sorted(found)[-SHOWN_EVENTS:]]
