"""A PostgreSQL connection pooler for tests: all clients share one session of the server and take turns by transaction.

It knows as much of the protocol as psycopg needs for a login without a password and for queries.
"""

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

READY, QUERY, SYNC, TERMINATE = b"Z", b"Q", b"S", b"X"
OTHER_PROCESS = b"K" + struct.pack("!iii", 12, 77, 77)  # poolers give clients their own key for cancel requests


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        part = connection.recv(count - len(found))
        if not part:
            raise ConnectionError
        found += part
    return found


def _message(connection: socket.socket) -> bytes:
    head = _exactly(connection, 5)
    return head + _exactly(connection, struct.unpack("!i", head[1:])[0] - 4)


def _answer(server: socket.socket) -> Iterator[bytes]:
    """Yield the server's messages up to the one that says that it is ready."""
    while True:
        message = _message(server)
        yield message
        if message[:1] == READY:
            return


class _Pool:
    def __init__(self, path: str) -> None:
        self.path = path
        self.turn = threading.Lock()
        self.server: socket.socket | None = None
        self.welcome: list[bytes] = []

    def serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            self.greet(client)
            while True:
                self.transaction(client, _message(client))

    def greet(self, client: socket.socket) -> None:
        length = struct.unpack("!i", _exactly(client, 4))[0]
        start = _exactly(client, length - 4)
        if length == 8:  # a request for encryption
            client.sendall(b"N")
            self.greet(client)
            return
        with self.turn:
            if self.server is None:
                self.server = socket.socket(socket.AF_UNIX)
                self.server.connect(self.path)
                self.server.sendall(struct.pack("!i", length) + start)
                self.welcome = [OTHER_PROCESS if one[:1] == b"K" else one for one in _answer(self.server)]
        client.sendall(b"".join(self.welcome))

    def transaction(self, client: socket.socket, message: bytes) -> None:
        """Give one client the server until its transaction ends."""
        if message[:1] == TERMINATE:
            raise ConnectionError
        with self.turn:
            assert self.server
            state = b""
            while state != b"I":
                self.server.sendall(message)
                if message[:1] in (QUERY, SYNC):
                    answer = list(_answer(self.server))
                    client.sendall(b"".join(answer))
                    state = answer[-1][-1:]
                if state != b"I":
                    message = _message(client)


@contextlib.contextmanager
def pooling(path: str) -> Iterator[int]:
    """Run a pooler for the server at a socket; yields the local port for clients."""
    pool, listener = _Pool(path), socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=pool.serve, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
    if pool.server:
        pool.server.close()
