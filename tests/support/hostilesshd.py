"""An ssh server that lets everybody in and then behaves badly, in ways that a real sshd cannot."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import paramiko
from paramiko.common import AUTH_SUCCESSFUL, OPEN_SUCCEEDED

CHUNK = b"x" * 65536

Serve = Callable[[paramiko.Channel, threading.Event], object]


def say_nothing(_: paramiko.Channel, stopped: threading.Event) -> None:
    stopped.wait()


def drip(channel: paramiko.Channel, stopped: threading.Event) -> None:
    while not stopped.wait(0.2):
        channel.sendall(b".")


def flood(channel: paramiko.Channel, stopped: threading.Event) -> None:
    while not stopped.is_set():
        channel.sendall(CHUNK)


def flood_past_the_window(channel: paramiko.Channel, stopped: threading.Event) -> None:
    """Send more than the window that the other side has announced."""
    while not stopped.is_set():
        channel.out_window_size = 1 << 30
        channel.sendall(CHUNK)


def close_without_status(channel: paramiko.Channel, _: threading.Event) -> None:
    channel.close()


def end_but_stay_open(channel: paramiko.Channel, stopped: threading.Event) -> None:
    channel.shutdown_write()
    stopped.wait()


class _Server(paramiko.ServerInterface):
    def __init__(self, serve: Serve | None, stopped: threading.Event, stall_at: str) -> None:
        self.serve, self.stopped, self.stall_at = serve, stopped, stall_at

    def _stall(self, where: str) -> None:
        if where == self.stall_at:
            self.stopped.wait()

    def check_auth_publickey(self, _username: str, _key: Any) -> int:
        self._stall("auth")
        return AUTH_SUCCESSFUL

    def get_allowed_auths(self, _username: str) -> str:
        return "publickey"

    def check_channel_request(self, _kind: str, _number: int) -> int:
        self._stall("open")
        return OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, _command: bytes) -> bool:
        self._stall("exec")
        if self.serve:
            threading.Thread(target=self._work, args=(channel, self.serve), daemon=True).start()
        return True

    def _work(self, channel: paramiko.Channel, serve: Serve) -> None:
        with contextlib.suppress(OSError, EOFError):
            serve(channel, self.stopped)


@contextlib.contextmanager
def hostile_sshd(
    serve: Serve | None = None, stall_at: str = "", address: tuple[str, int] = ("127.0.0.1", 0)
) -> Iterator[tuple[str, int]]:
    """Serve at an address and yield it; serve: what a command does; stall_at: auth, open or exec is never answered."""
    stopped, host_key = threading.Event(), paramiko.ECDSAKey.generate()
    transports: list[paramiko.Transport] = []

    def accept(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                transport = paramiko.Transport(listener.accept()[0])
                transports.append(transport)
                transport.add_server_key(host_key)
                with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                    transport.start_server(threading.Event(), _Server(serve, stopped, stall_at))

    with socket.create_server(address) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        try:
            yield listener.getsockname()
        finally:
            stopped.set()
            listener.shutdown(socket.SHUT_RDWR)
            for transport in transports:
                transport.close()
