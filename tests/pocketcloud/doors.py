"""Listening sockets on many loopback addresses, one thread for all of them."""

import contextlib
import logging
import selectors
import socket
import struct
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)
LOOK_SECONDS = 0.2  # how soon the thread notices that it must stop

Greet = Callable[[str, socket.socket], None]


class Doors:
    """Addresses whose ssh port this process answers; at a closed door, the kernel refuses connections."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._selector = selectors.DefaultSelector()
        self._doors: dict[str, tuple[socket.socket, Greet]] = {}
        self._held: dict[str, list[socket.socket]] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="doors", daemon=True)
        self._thread.start()

    def open(self, address: str, greet: Greet) -> None:
        """Pass every connection from now on to `greet(address, connection)`, which must be quick."""
        with self._lock:
            self._drop_held(address)
            if address in self._doors:
                self._doors[address] = (self._doors[address][0], greet)
                return
            listener = socket.create_server((address, self.port), backlog=128)
            listener.setblocking(False)
            self._doors[address] = (listener, greet)
            self._selector.register(listener, selectors.EVENT_READ, address)

    def close(self, address: str) -> None:
        """Refuse connections from now on; harmless if the door is closed."""
        with self._lock:
            self._drop_held(address)
            if address in self._doors:
                listener, _ = self._doors.pop(address)
                self._selector.unregister(listener)
                listener.close()

    def hold(self, address: str, connection: socket.socket) -> None:
        """Greet a connection with silence until the door changes."""
        with self._lock:
            self._held.setdefault(address, []).append(connection)

    @staticmethod
    def reset(_address: str, connection: socket.socket) -> None:
        """Greet a connection with a reset."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()

    def stop(self) -> None:
        """Close every door."""
        self._stopping.set()
        self._thread.join()
        for address in list(self._doors):
            self.close(address)

    def _drop_held(self, address: str) -> None:
        for connection in self._held.pop(address, []):
            connection.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(LOOK_SECONDS):
                with contextlib.suppress(OSError, KeyError):  # the door has been closed meanwhile
                    self._accept(key.data)

    def _accept(self, address: str) -> None:
        listener, greet = self._doors[address]
        connection, _ = listener.accept()
        connection.setblocking(True)
        try:
            greet(address, connection)
        except Exception:
            log.exception("connection to %s", address)
            connection.close()
