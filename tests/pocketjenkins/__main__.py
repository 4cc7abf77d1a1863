"""A stand-in for Jenkins 2.263 on loopback: nodes, queue, builds over ssh, and the JSON API that python-jenkins uses.

Its answers follow recordings of a real one (tests/data/jenkins). Under /control, which Jenkins does not have, tests
turn knobs, look at the truth and cause accidents. It writes ROOT/ready when it accepts connections: {"url", "pid"}.

Exit codes: 0 stopped by SIGTERM, SIGINT or the end of its standard input (--until-eof); 2 wrong usage.
"""

import argparse
import base64
import binascii
import gc
import json
import logging
import os
import re
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from tests.pocketjenkins import pages
from tests.pocketjenkins.agent import Credential, KeyStore
from tests.pocketjenkins.control import Control, set_knobs
from tests.pocketjenkins.model import Model
from tests.pocketjenkins.pages import Reply
from tests.pocketjenkins.routes import answer, find_route
from tests.pocketjenkins.site import Account, Refusal, Request, Site, first_values
from tests.support.knobs import KnobError

KEPT_REQUESTS = 2000
HANG_SECONDS = 3600.0
IDLE_SECONDS = 300.0  # after which a kept-alive connection without a request is closed


def main(argv: Sequence[str] | None = None) -> int:
    options = parse(argv)
    gc.set_threshold(100_000)  # lists of thousands are no garbage
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    options.root.mkdir(parents=True, exist_ok=True)
    server = Server((options.host, options.port), options.root, options.users, dict(options.credentials))
    try:
        set_knobs(server.model, dict(options.set))
    except KnobError as err:
        sys.stderr.write(f"--set: {err}\n")
        return 2
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    if options.until_eof:
        threading.Thread(target=wait_for_eof, args=(stopped,), daemon=True).start()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    write_ready(options.root, server.model.url)
    stopped.wait()
    server.stop()
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.pocketjenkins", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="directory for ready and what it writes itself")
    parser.add_argument("--host", type=loopback, default="127.0.0.1", help="address on loopback")
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--users", type=user_list, default="admin:admin:admin-token", help="user:password:token,...")
    parser.add_argument(
        "--credentials", type=credential, nargs="*", action="extend", default=[], help="ID=USER:PRIVATE_KEY_FILE"
    )
    parser.add_argument("--set", type=knob, action="append", default=[], metavar="KNOB=VALUE", help="VALUE is JSON")
    parser.add_argument("--until-eof", action="store_true", help="stop when standard input ends")
    return parser.parse_args(argv)


def loopback(text: str) -> str:
    if not text.startswith("127."):
        raise argparse.ArgumentTypeError(f"{text!r}: an address in 127.0.0.0/8 expected")
    return text


def user_list(text: str) -> dict[str, Account]:
    users = {}
    for entry in text.split(","):
        name, password, token = entry.split(":")
        users[name] = Account(password, token)
    return users


def credential(text: str) -> tuple[str, Credential]:
    name, _, rest = text.partition("=")
    user, _, key_file = rest.partition(":")
    if not (name and user and key_file):
        raise argparse.ArgumentTypeError(f"{text!r}: ID=USER:PRIVATE_KEY_FILE expected")
    return name, Credential(user, Path(key_file).absolute())


def knob(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def wait_for_eof(stopped: threading.Event) -> None:
    while os.read(0, 4096):  # unbuffered: a thread inside sys.stdin would delay the end of the process
        pass
    stopped.set()


def write_ready(root: Path, url: str) -> None:
    unfinished = root / "ready.new"
    unfinished.write_text(json.dumps({"url": url, "pid": os.getpid()}) + "\n")
    unfinished.replace(root / "ready")


class Server(ThreadingHTTPServer):
    """Accepts connections; holds the model, the site and the record of calls."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(
        self, address: tuple[str, int], root: Path, users: dict[str, Account], credentials: dict[str, Credential]
    ) -> None:
        super().__init__(address, Handler)
        url = f"http://{address[0]}:{self.server_address[1]}/"
        keys = KeyStore(credentials, root / ".ssh" / "known_hosts")
        self.model = Model(root.absolute(), keys, url)
        self.site = Site(self.model, users)
        self.control = Control(self.model, self.look, self.forget, self.restart)
        self.calls: Counter[str] = Counter()
        self.requests: deque[dict[str, Any]] = deque(maxlen=KEPT_REQUESTS)
        self.stopping = threading.Event()
        self._record_lock = threading.Lock()

    def look(self) -> dict[str, Any]:
        with self._record_lock:
            return {"calls": dict(self.calls), "requests": list(self.requests)}

    def forget(self) -> None:
        with self._record_lock:
            self.calls.clear()
            self.requests.clear()

    def restart(self) -> None:
        self.site.forget_sessions()
        self.model.restart()

    def stop(self) -> None:
        self.stopping.set()
        self.model.close()
        self.shutdown()
        self.server_close()

    def record(self, request: Request, began: float, status: int | str) -> None:
        found = find_route(request.segments)
        with self._record_lock:
            self.calls[f"{request.method} {found[0] if found else request.path}"] += 1
            self.requests.append(
                {
                    "at": began,
                    "seconds": time.monotonic() - began,
                    "method": request.method,
                    "path": request.path,
                    "query": dict(request.query),
                    "user": request.user,
                    "status": status,
                }
            )

    def ordered_answer(self, line: str) -> dict[str, Any] | None:
        """Return a copy of the scripted answer for this request, and count it down; None if there is none."""
        with self.model.lock:
            for answer in self.model.knobs.answers:
                left = answer.get("times")
                if left != 0 and re.match(answer["match"], line):
                    if left is not None:
                        answer["times"] = left - 1
                    return dict(answer)
        return None


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_HEAD = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Log nothing: requests are kept for GET /control."""

    def _answer(self) -> None:
        began = time.monotonic()
        request = self._read()
        if request.segments[:1] == ("control",):
            self._send(self.server.control.answer(request.method, request.segments, request.body))
            return
        time.sleep(self.server.model.knobs.latency_seconds)
        ordered = self.server.ordered_answer(f"{self.command} {self.path}")
        served = ordered is None or ordered.get("when") == "after"
        reply = self._ask_jenkins(request) if served else None
        if ordered is not None:
            reply = self._misbehave(request, ordered)
        self.server.record(request, began, reply.status if reply else (ordered or {}).get("kind", "status"))
        if reply:
            self._send(reply)

    def _read(self) -> Request:
        address = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return Request(
            method="GET" if self.command == "HEAD" else self.command,
            path=unquote(address.path),
            segments=tuple(unquote(part) for part in address.path.split("/") if part),
            query=first_values(address.query),
            headers=self.headers,
            body=body,
            url=f"http://{self.headers.get('Host') or self.server.model.url.split('/')[2]}/",
        )

    def _ask_jenkins(self, request: Request) -> Reply:
        site = self.server.site
        if site.model.starting():
            return pages.starting_up()
        try:
            self._log_in(request)
        except Refusal as refusal:
            return refusal.reply
        return answer(site, request)

    def _log_in(self, request: Request) -> None:
        kind, _, data = self.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "basic":
            return
        try:
            name, _, secret = base64.b64decode(data).decode("utf-8", "replace").partition(":")
        except binascii.Error:
            name, secret = "", ""
        self.server.site.log_in(request, name, secret)

    def _misbehave(self, request: Request, ordered: dict[str, Any]) -> Reply | None:
        """Return the scripted answer, or None if the connection ends without one."""
        kind = ordered.get("kind", "status")
        if "body" in ordered:
            return Reply(int(ordered.get("status", 200)), ordered["body"].encode("latin-1"), "application/octet-stream")
        if kind == "status":
            return pages.canned(int(ordered.get("status", 500)), request.path)
        if kind == "hang":
            self.server.stopping.wait(float(ordered.get("seconds", HANG_SECONDS)))
        if kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = True
        return None

    def _send(self, reply: Reply) -> None:
        try:
            self.wfile.write(reply.wire(send_body=self.command != "HEAD"))
        except ConnectionError:
            self.close_connection = True  # the client has not waited for the reply


if __name__ == "__main__":
    sys.exit(main())
