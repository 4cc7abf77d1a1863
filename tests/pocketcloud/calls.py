"""Counts of the calls a cloud got, and its sense of how many are too many."""

import math
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

KEPT_REQUESTS = 2000


@dataclass
class CallLog:
    """Every request that reached the services of one cloud."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    requests: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT_REQUESTS))
    lock: threading.Lock = field(default_factory=threading.Lock)
    _allowance: float = 0.0
    _filled: float = 0.0

    def add(self, service: str, template: str, method: str, path: str) -> dict[str, Any]:
        """Count one request; its status is put into the returned entry when it is known."""
        entry = {"time": time.monotonic(), "service": service, "method": method, "path": path, "status": None}
        with self.lock:
            self.counts.setdefault(service, Counter())[f"{method} {template}"] += 1
            self.requests.append(entry)
        return entry

    def reset(self) -> None:
        """Start counting from nothing."""
        with self.lock:
            self.counts.clear()
            self.requests.clear()

    def refill(self) -> None:
        """Let the allowance be full again."""
        with self.lock:
            self._filled = 0.0

    def refusal_seconds(self, rate: float) -> int:
        """Take one call from the allowance of `rate` calls a second; 0, or how long to stay away when it is used up."""
        with self.lock:
            now, most = time.monotonic(), max(1.0, rate)
            self._allowance = min(most, self._allowance + (now - self._filled) * rate)
            self._filled = now
            if self._allowance >= 1:
                self._allowance -= 1
                return 0
            return max(1, math.ceil((1 - self._allowance) / rate))

    def as_dict(self) -> dict[str, Any]:
        """Return calls, calls_total and requests, for JSON."""
        with self.lock:
            return {
                "calls": {service: dict(counts) for service, counts in self.counts.items()},
                "calls_total": {service: counts.total() for service, counts in self.counts.items()},
                "requests": [dict(entry) for entry in self.requests],
            }
