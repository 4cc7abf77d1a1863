"""The points at which a run can be killed: before and after each outside call, and before each write to vm.db.

Together these are all moments that differ in what vm.db and the outside know. The hooks are in the libraries that make
the calls, not in the product.
"""

import http.client
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any

import paramiko
import peewee

READS = ("SELECT", "PRAGMA", "BEGIN ISOLATION")
KILLED_AT = "chaos: signal at point"


class Points:
    """Counts the points of this process, and sends it a signal at one of them."""

    def __init__(self, number: int, signal_number: int) -> None:
        self._left = number
        self._number = number
        self._signal = signal_number
        self._lock = threading.Lock()

    def reached(self, what: str) -> None:
        """Count a point; at the one asked for, print it and send the signal."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                sys.stderr.write(f"{KILLED_AT} {self._number}: {what}\n")
                sys.stderr.flush()
                os.kill(os.getpid(), self._signal)

    def around(self, owner: Any, name: str, describe: Callable[..., str], *, after: bool = True) -> None:
        """Make a point before each call of owner's method or function `name`, and one after it if `after` is true."""
        real = getattr(owner, name)

        def counted(*arguments: Any, **keywords: Any) -> Any:
            what = describe(*arguments)
            if what:
                self.reached(f"before {what}")
            try:
                return real(*arguments, **keywords)
            finally:
                if what and after:
                    self.reached(f"after {what}")

        setattr(owner, name, counted)


def install(number: int, signal_number: int = signal.SIGKILL) -> None:
    """Let this process get a signal at its point `number`, counted from 1."""
    points = Points(number, signal_number)
    points.around(http.client.HTTPConnection, "putrequest", lambda _self, method, url, *_: f"{method} {url}",
                  after=False)
    points.around(http.client.HTTPConnection, "getresponse", lambda *_: "answer")
    points.around(socket, "create_connection", lambda address, *_: f"connection to {address[0]}:{address[1]}")
    points.around(paramiko.SSHClient, "connect", lambda _self, address, *_: f"ssh to {address}")
    points.around(paramiko.Channel, "exec_command", lambda _self, command: f"ssh command {command[:60]}")
    database: Any = peewee.SqliteDatabase
    if "://" in os.environ["DEVSTACK_GATE_DB"]:
        from pool import postgres

        database = postgres.Database
    points.around(database, "execute_sql", lambda _self, sql, *_: "" if sql.startswith(READS) else sql[:60],
                  after=False)
