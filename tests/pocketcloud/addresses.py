"""Ranges of loopback addresses, none of which two clouds or two processes ever share."""

import fcntl
import heapq
import os
from pathlib import Path

LOCKS = Path("/run/lock/pocketcloud")
FIRST_NET, LAST_NET = 101, 250  # 127.N; lower ones are in common use: 127.0.0.1, 127.0.1.1, 127.0.0.53


class NoRangeLeftError(Exception):
    """Running pocketclouds have taken every range."""


class Range:
    """127.N.0.0/16, held by a file lock that ends with the process, however that ends."""

    def __init__(self) -> None:
        LOCKS.mkdir(parents=True, exist_ok=True)
        self.number, self._lock = _take_number()
        self.cidr = f"127.{self.number}.0.0/16"
        self.gateway = f"127.{self.number}.0.1"
        self._next = 10
        self._free: list[int] = []

    def take(self) -> str:
        """Take the lowest free address: like a real cloud, this one soon hands out used addresses again."""
        if self._free:
            place = heapq.heappop(self._free)
        else:
            place, self._next = self._next, self._next + 1
        return f"127.{self.number}.{place // 256}.{place % 256}"

    def give_back(self, address: str) -> None:
        """Free an address."""
        third, fourth = address.split(".")[2:]
        heapq.heappush(self._free, int(third) * 256 + int(fourth))

    def release(self) -> None:
        """Release the range for other processes."""
        os.close(self._lock)


def _take_number() -> tuple[int, int]:
    for number in range(FIRST_NET, LAST_NET + 1):
        lock = os.open(LOCKS / f"127.{number}", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return number, lock
    raise NoRangeLeftError(f"all of 127.{FIRST_NET} to 127.{LAST_NET} are taken, see {LOCKS}")
