"""HTTP servers that behave badly, in ways that web server libraries do not offer."""

import contextlib
import gzip
import re
import socket
import threading
from collections.abc import Callable, Iterator

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
TLS_HANDSHAKE = b"\x16"
Serve = Callable[[socket.socket, threading.Event], object]


def say_nothing(_: socket.socket, stopped: threading.Event) -> None:
    stopped.wait()


def _drip(connection: socket.socket, stopped: threading.Event, bit: bytes) -> None:
    while not stopped.wait(0.1):
        connection.sendall(bit)


def drip_a_status(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 200 ")
    _drip(connection, stopped, b"O")


def drip_headers(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD)
    _drip(connection, stopped, b"X")


def drip_a_body(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
    _drip(connection, stopped, b" ")


def drip_chunks(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    _drip(connection, stopped, b"1\r\n \r\n")


def drip_early_answers(connection: socket.socket, stopped: threading.Event) -> None:
    _drip(connection, stopped, b"HTTP/1.1 100 Continue\r\n\r\n")


def flood(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"\r\n")
    while not stopped.is_set():
        connection.sendall(b" " * 65536)


def flood_a_header(connection: socket.socket, stopped: threading.Event) -> None:
    connection.sendall(HEAD + b"X-More: ")
    while not stopped.is_set():
        connection.sendall(b"x" * 65536)


def send_a_bomb(connection: socket.socket, _: threading.Event) -> None:
    body = gzip.compress(bytes(1 << 30), 9)  # 1 GB of zeros
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def nest(connection: socket.socket, _: threading.Event) -> None:
    body = b"[" * 100_000
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)


def flood_values(connection: socket.socket, _: threading.Event) -> None:
    """Send 15 MB of JSON that take 500 MB of memory."""
    body = gzip.compress(b"[" + b"{}," * 5_000_000 + b"{}]", 1)
    connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body)


def date_from_nowhere(connection: socket.socket, _: threading.Event) -> None:
    date = b"Date: Mon, 01 Jan 99999999999999999999 00:00:00 GMT\r\n"
    connection.sendall(HEAD + date + b"Content-Length: 1\r\n\r\n?")


def lead_in_circles(connection: socket.socket, _: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")


def lead_nowhere(connection: socket.socket, _: threading.Event) -> None:
    connection.sendall(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")


def leading_to(url: str, status: int = 302) -> Serve:
    answer = f"HTTP/1.1 {status} Moved\r\nLocation: {url}\r\nContent-Length: 0\r\n\r\n".encode()
    return lambda connection, _: connection.sendall(answer)


SLOW = (say_nothing, drip_a_status, drip_headers, drip_a_body, drip_chunks, drip_early_answers)
ENDLESS = (flood, flood_a_header, send_a_bomb, flood_values)
SENSELESS = (nest, date_from_nowhere, lead_in_circles, lead_nowhere)


def next_request(connection: socket.socket) -> bytes:
    """Return a request with its body, which can arrive later; empty at the end of the connection."""
    request = b""
    while not is_whole(request) and (part := connection.recv(65536)):
        request += part
    return request


def is_whole(request: bytes) -> bool:
    """Return whether all of a request has arrived; a client that begins with TLS gets its answer at once."""
    if request.startswith(TLS_HANDSHAKE):
        return True
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\ncontent-length: *([0-9]+)", head)
    return bool(end) and len(body) >= (int(length[1]) if length else 0)


@contextlib.contextmanager
def hostile_http(serve: Serve, asked: list[bytes] | None = None) -> Iterator[tuple[str, list[bytes]]]:
    """Answer each request with `serve`; yields the server's URL and the list of requests seen (`asked`, if given)."""
    stopped = threading.Event()
    seen: list[bytes] = [] if asked is None else asked
    connections: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while request := next_request(connection):
                seen.append(request)
                serve(connection, stopped)

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connections.append(listener.accept()[0])
                threading.Thread(target=one, args=(connections[-1],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/", seen
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
            for connection in connections:
                connection.close()
