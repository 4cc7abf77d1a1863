"""A cloud's record of the calls it got, and its rate limit."""

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
        """Count one request; the caller sets the status in the returned entry once it is known."""
        entry = {"time": time.monotonic(), "service": service, "method": method, "path": path, "status": None}
        with self.lock:
            self.counts.setdefault(service, Counter())[f"{method} {template}"] += 1
            self.requests.append(entry)
        return entry

    def reset(self) -> None:
        """Reset all counts."""
        with self.lock:
            self.counts.clear()
            self.requests.clear()

    def refill(self) -> None:
        """Fill the allowance again."""
        with self.lock:
            self._filled = 0.0

    def refusal_seconds(self, rate: float) -> int:
        """Use one call of the allowance of `rate` calls a second; returns 0, or the seconds to wait if it is empty."""
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
