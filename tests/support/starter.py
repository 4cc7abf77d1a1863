"""Start scripts quickly: a process that has loaded the libraries forks for each run.

Each run is a separate process that reads the script's code from its file and has its own environment and signals.
The order says what differs from a start by hand: shorter time limits, another clock, a point at which a signal comes.
Descriptors for the output are sent with the order: one for all of it, or one each for stdout and stderr.

    python -m tests.support.starter FD FD                    serve orders from a socket, and from a listening one
    python -m tests.support.starter ORDER SCRIPT ARGUMENTS   run one script by an order (JSON) in this process
    python tests/support/forked.py NAME ORDER SCRIPT ARGUMENTS   the same, in a fork of the starter that has the name
"""

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import runpy
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
MESSAGE_BYTES = 1 << 16
# Imported by every run of a script sooner or later.
LIBRARIES = ("novaclient.client", "novaclient.v2.client", "openstack.connection", "openstack.compute.v2._proxy",
             "openstack.image.v2._proxy", "openstack.network.v2._proxy", "keystoneauth1.loading",
             "keystoneauth1.identity.v3", "jenkins", "paramiko", "peewee", "requests", "yaml", "uuid", "difflib")
PRODUCT = ("gateconfig", "gateprocess", "vmdatabase", "pool.commands", "cloud.nova", "httpcalls", "nodessh",
           "jenkinsnodes", "image.template", "image.devstackfiles", "pool.providersfile", "pool.boots", "pool.sight",
           "pool.environments")


def main() -> int:
    if sys.argv[1].isdigit():
        Service(*(socket.socket(fileno=int(handle)) for handle in sys.argv[1:])).serve()
        return 0
    order = json.loads(sys.argv[1])
    run_script({**order, "script": sys.argv[2], "arguments": sys.argv[3:]})
    return 1  # not reached


def load_entry_points() -> None:
    """Load the entry points for logins: a Jenkins host caches them in its home folder, but a test's is new."""
    from keystoneauth1.loading import get_plugin_loader

    get_plugin_loader("password")


class Service:
    """Forks for each order, and reports how each run ended, until the channel is closed.

    Each connection to the door, a listening socket, is for one order; if it closes early, the run is killed.
    """

    def __init__(self, channel: socket.socket, door: socket.socket) -> None:
        self._channel, self._door = channel, door
        self._running: dict[int, tuple[int, int, socket.socket]] = {}  # pidfd: order, pid, who ordered it
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Take orders until the channel is closed."""
        sys.path.insert(0, str(PROJECT))
        for name in (*LIBRARIES, *PRODUCT):
            importlib.import_module(name)
        load_entry_points()
        gc.collect()
        gc.freeze()  # else garbage collection in a fork would copy all this memory
        for listened in (self._channel, self._door):
            self._selector.register(listened, selectors.EVENT_READ)
        while True:
            key, _ = self._selector.select()[0]  # one at a time: it can close the socket of another event
            if key.fd in self._running:
                self._tell_end(key.fd)
            elif key.fileobj is self._door:
                self._selector.register(self._door.accept()[0], selectors.EVENT_READ)
            elif not self._take_order(key.fileobj):  # type: ignore[arg-type] # a socket
                if key.fileobj is self._channel:
                    return
                self._give_up(key.fileobj)  # type: ignore[arg-type] # a socket

    def _take_order(self, client: socket.socket) -> bool:
        try:
            message, descriptors, _, _ = socket.recv_fds(client, MESSAGE_BYTES, 2)
        except ConnectionResetError:  # the client was killed before it had read its messages
            return False
        if not message:
            return False
        order = json.loads(message)
        pidfd, pid = _fork(order, descriptors, [self._channel, self._door, client])
        self._running[pidfd] = order["order"], pid, client
        self._selector.register(pidfd, selectors.EVENT_READ)
        told = json.dumps({"order": order["order"], "pid": pid}).encode()
        with contextlib.suppress(BrokenPipeError):  # the client is gone, which is seen next
            socket.send_fds(client, [told], [pidfd])
        return True

    def _tell_end(self, pidfd: int) -> None:
        number, pid, client = self._running.pop(pidfd)
        self._selector.unregister(pidfd)
        os.close(pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(BrokenPipeError):
            client.send(json.dumps({"order": number, "status": status}).encode())

    def _give_up(self, client: socket.socket) -> None:
        """Kill the run of a client that is gone, since the run stands for the client's process, which was killed."""
        for pidfd in [fd for fd, (_, _, orderer) in self._running.items() if orderer is client]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            self._tell_end(pidfd)
        self._selector.unregister(client)
        client.close()


def _fork(order: Mapping[str, Any], outputs: Sequence[int], own: Sequence[socket.socket]) -> tuple[int, int]:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # it can be ignored in this process
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the script runs, as in a start by hand
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        with _ending_as_python_does():
            for one in own:
                one.close()
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(outputs[0], 1)
            os.dup2(outputs[-1], 2)
            os.closerange(3, 64)
            os.environ.clear()
            os.environ.update(order["environment"])
            os.chdir(order["folder"])
            sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
            run_script(order)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for output in outputs:
        os.close(output)
    return os.pidfd_open(pid), pid


@contextlib.contextmanager
def _ending_as_python_does() -> Iterator[None]:
    """End the process whatever happens; a SIGINT before the script handles it kills the process."""
    try:
        yield
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except Exception:  # noqa: BLE001 - of the driver itself; the run that follows shows it
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(99)


def run_script(order: Mapping[str, Any]) -> None:
    """Run the script of an order in this process; does not return."""
    import gateprocess

    script = PROJECT / order["script"]
    sys.argv = [str(script), *order["arguments"]]
    if sys.path[0] != str(PROJECT):
        sys.path.insert(0, str(PROJECT))
    if order.get("clock"):
        real = time.time
        time.time = lambda: real() + order["clock"]
    if order.get("point"):
        from tests.chaos import points

        points.install(order["point"], order.get("signal", signal.SIGKILL))
    limits: Mapping[str, float] = order.get("limits", {})
    _shorten(limits, PRODUCT)

    spec = importlib.util.spec_from_file_location("script", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["script"] = module
    spec.loader.exec_module(module)
    _shorten(limits, ["script"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if hasattr(module, "main"):
        gateprocess.run(module.main)
    runpy.run_path(str(script), run_name="__main__")


def _shorten(limits: Mapping[str, float], modules: Sequence[str]) -> None:
    """Set time limits, named MODULE.CONSTANT; MODULE is `script` for those of the script itself."""
    for name, seconds in limits.items():
        module, _, constant = name.rpartition(".")
        if module in modules:
            loaded = importlib.import_module(module)
            assert hasattr(loaded, constant) or module == "script", name
            if hasattr(loaded, constant):
                setattr(loaded, constant, seconds)


if __name__ == "__main__":
    sys.exit(main())
