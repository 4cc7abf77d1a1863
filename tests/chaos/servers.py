"""A PostgreSQL server that dies, loses connections, freezes, and is replaced by an older state of itself."""

import contextlib
import shutil
import threading
import time
import urllib.parse
from collections.abc import Callable
from typing import Self

import psycopg

from tests.support import postgres
from tests.support.postgres import OWNER, Server

PLACES = ("a", "b")  # where the server is, and where its replacement will be
CUTS_SECONDS = 2.0  # the time over which connections are lost


class Servers:
    """The server of a pool; the pool's address names both places, as with a standby."""

    def __init__(self) -> None:
        self.folder = postgres.new_folder()
        self.current = Server(self.folder / PLACES[0])
        self.older: Server | None = None  # a replica that is not started and falls behind
        self.database = ""
        self._restarts: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.current.make()
        return self

    def __exit__(self, *error: object) -> None:
        self.calm()
        self.current.stop()
        shutil.rmtree(self.folder)

    def create(self) -> str:
        """Make a database and return its address."""
        self.database = urllib.parse.urlsplit(self.current.create()).path.removeprefix("/")
        places = ",".join(str(self.folder / place) for place in PLACES)
        return f"postgresql://{OWNER}@/{self.database}?host={places}"

    # --- faults ---

    def die(self, seconds: float) -> None:
        """Kill all processes of the server at once, and start it again after some seconds."""
        self.current.kill()
        self._later(seconds, self.current.start)

    def stand_still(self, seconds: float) -> None:
        """Freeze the server for some seconds."""
        self.current.freeze(True)
        self._later(seconds, lambda: self.current.freeze(False))

    def cut(self, times: int) -> None:
        """End all connections of the scripts, a number of times."""
        def end() -> None:
            for _ in range(times):
                with contextlib.suppress(psycopg.Error):
                    self.current.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                                                 "WHERE usename = %s", OWNER)
                time.sleep(CUTS_SECONDS / times)

        self._later(0.3, end)

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        def wait() -> None:
            time.sleep(seconds)
            call()

        self._restarts.append(threading.Thread(target=wait))
        self._restarts[-1].start()

    def calm(self) -> None:
        """Wait until all faults of the server are over."""
        while self._restarts:
            self._restarts.pop().join()

    # --- failover ---

    def keep_state(self) -> None:
        """Make a replica that gets no changes from now on."""
        place = next(self.folder / place for place in PLACES if self.folder / place != self.current.folder)
        shutil.rmtree(place, ignore_errors=True)
        self.older = self.current.standby(place)
        (place / "data" / "postgresql.auto.conf").write_text("")

    def fail_over(self) -> None:
        """Kill the server for good, and replace it by the replica, which lacks all later changes."""
        assert self.older
        dead, self.current, self.older = self.current, self.older, None
        dead.kill()
        self.current.start()
        self.current.promote()
        shutil.rmtree(dead.folder)
