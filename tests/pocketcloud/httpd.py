"""HTTP: connections, requests and answers, tables of routes, and scripted answers."""

import contextlib
import html
import json
import logging
import re
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.pocketcloud.state import Cloud, Token

log = logging.getLogger(__name__)
IDLE_SECONDS = 300  # after which a kept connection without a request is closed
HANG_SECONDS = 3600
NEWEST = (2, 96)  # the highest microversion that novaclient 18 speaks
TRUNCATED = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 4096\r\n\r\n{"servers": ['
COMPUTE_FAULTS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    429: "overLimit",
    501: "notImplemented",
    503: "serviceUnavailable",
}
UNAUTHORIZED = "The request you have made requires authentication."
UNVERIFIED = (  # Glance's text for the same
    "This server could not verify that you are authorized to access the document you requested. Either you supplied "
    "the wrong credentials (e.g., bad password), or your browser does not understand how to supply the credentials "
    "required."
)
NO_SUCH_PAGE = (  # Keystone's page
    "<!doctype html>\n<html lang=en>\n<title>404 Not Found</title>\n<h1>Not Found</h1>\n"
    "<p>The requested URL was not found on the server. "
    "If you entered the URL manually please check your spelling and try again.</p>\n"
)
UNEXPECTED = (
    "Unexpected API Error. Please report this at http://bugs.launchpad.net/nova/ and attach the Nova API log if "
    "possible.\n<class 'oslo_messaging.exceptions.MessagingTimeout'>"
)


@dataclass
class Answer:
    """What is sent back; a body that is not text is sent as JSON."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)


class RefusalError(Exception):
    """The call is refused; the answer has the shape of its service's errors."""

    def __init__(self, status: int, message: str, kind: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.detail = status, message, kind, detail


def not_found(message: str, kind: str = "") -> RefusalError:
    """Return a refusal with 404, to be raised."""
    return RefusalError(404, message, kind)


@dataclass
class Call:
    """One request to one service of one cloud."""

    cloud: Cloud
    service: str
    method: str
    path: str  # inside the service, without its version
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: bytes
    base: str  # http://127.0.0.1:PORT/CLOUD
    token: Token | None = None
    microversion: tuple[int, int] = (2, 1)
    negotiated: bool = False  # whether the microversion was read from the headers
    args: dict[str, str] = field(default_factory=dict)  # the parts of the path that the template names
    unversioned: bool = False  # whether the call is to the service's root, which lists versions

    def json(self, *path: str) -> Any:
        """Return the JSON body, or the part of it at `path`; refuses a body without it."""
        try:
            found = json.loads(self.body or b"null")
            for name in path:
                found = found[name]
        except (ValueError, KeyError, TypeError):
            raise RefusalError(400, self._malformed(path)) from None
        return found

    def _malformed(self, path: tuple[str, ...]) -> str:
        if self.service == "network":
            return "Resource body required"
        if self.service == "identity":
            return (
                f"Expecting to find {path[0] if path else 'JSON'} in request body. The server could not comply with "
                "the request since it is either malformed or otherwise incorrect. The client is assumed to be in error."
            )
        with contextlib.suppress(ValueError):
            if path and isinstance(json.loads(self.body or b"null"), dict):
                return f"'{path[0]}' is a required property"
        return "Malformed request body"

    def first(self, name: str, default: str | None = None) -> str | None:
        """Return the first value of a query parameter."""
        return self.query.get(name, [default])[0]

    @property
    def project(self) -> str:
        """The project of the caller."""
        assert self.token is not None
        return self.token.project

    @property
    def user(self) -> str:
        """The user of the caller."""
        assert self.token is not None
        return self.token.user


Handler = Callable[[Call], Answer]


class Routes:
    """A service's routes: method and path template, e.g. `/servers/{id}`, and handler."""

    def __init__(self, routes: Iterable[tuple[str, str, Handler]], public: Iterable[str] = ()) -> None:
        self.routes = [(method, template, _pattern(template), handler) for method, template, handler in routes]
        self.public = set(public)  # templates that need no token

    def find(self, call: Call) -> tuple[str, Handler | None]:
        """Return template and handler, and put the path's parts into `call.args`; (path, None) if nothing matches."""
        for method, template, pattern, handler in self.routes:
            found = pattern.fullmatch(call.path)
            if found and method == call.method:
                call.args = {name: unquote(value) for name, value in found.groupdict().items()}
                return template, handler
        return call.path, None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template) + "/?")


class Site:
    """Everything behind one port: clouds and their services, and the control interface."""

    def __init__(self, clouds: dict[str, Cloud], services: dict[str, Routes], control: Callable[..., Answer]) -> None:
        self.clouds, self.services, self.control = clouds, services, control
        self.stopping = threading.Event()

    def serve(self, method: str, target: str, headers: dict[str, str], body: bytes) -> "Answer | Trick":
        """Answer one request."""
        parts = urlsplit(target)
        words = parts.path.strip("/").split("/", 2)
        if words[0] == "control":
            return self.control(self.clouds, method, words[1:], body)
        if len(words) < 2 or words[0] not in self.clouds or words[1] not in self.services:
            return Answer(
                404, f"no such service: {parts.path}; there are CLOUD/{'|'.join(self.services)} and control/CLOUD"
            )
        cloud, service = self.clouds[words[0]], words[1]
        path = "/" + re.sub(r"^v[23](\.[01])?(/|$)", "", words[2] if len(words) > 2 else "")
        query = parse_qs(parts.query, keep_blank_values=True)
        base = f"http://{headers.get('host', '127.0.0.1')}/{cloud.name}"
        call = Call(cloud, service, method, path.rstrip("/") or "/", query, headers, body, base)
        call.unversioned = len(words) == 2
        return self._answer(call)

    def _answer(self, call: Call) -> "Answer | Trick":
        template, handler = self.services[call.service].find(call)
        entry = call.cloud.calls.add(call.service, template, call.method, call.path)
        if call.cloud.knobs.latency_seconds:
            self.stopping.wait(call.cloud.knobs.latency_seconds)
        script = _rate_limit(call) or _scripted(call)
        if script is None:
            answered: Answer | Trick = self._carry_out(call, template, handler)
        elif script.get("kind") == "after":
            self._carry_out(call, template, handler)
            answered = _perform(call, script | {"kind": script.get("then", "status")})
        else:
            answered = _perform(call, script)
        entry["status"] = answered.status if isinstance(answered, Answer) else answered.kind
        return answered

    def _carry_out(self, call: Call, template: str, handler: Handler | None) -> Answer:
        try:
            authenticate(call, needed=template not in self.services[call.service].public)
            answer = handler(call) if _is_spoken(call, handler) and handler else _no_such_page(call)
        except RefusalError as err:
            answer = refuse(call, err)
        except Exception:
            log.exception("%s %s %s", call.cloud.name, call.method, call.path)
            answer = refuse(call, RefusalError(500, UNEXPECTED))
        return _with_service_headers(call, answer)


def _is_spoken(call: Call, handler: Handler | None) -> bool:
    """Read the microversion of a call to Nova and refuse unknown ones; Nova does so only for paths that it has."""
    if call.service == "compute" and handler is not None:
        call.microversion = _microversion(call)
        call.negotiated = True
        if not (2, 1) <= call.microversion <= NEWEST:
            asked, newest = (".".join(map(str, version)) for version in (call.microversion, NEWEST))
            message = f"Version {asked} is not supported by the API. Minimum is 2.1 and maximum is {newest}."
            raise RefusalError(406, message)
    return True


def _no_such_page(call: Call) -> Answer:
    """Return the 404 for a path that a service does not have."""
    if call.service == "identity":
        return Answer(404, NO_SUCH_PAGE, {"Content-Type": "text/html; charset=utf-8"})
    if call.service == "compute":
        return Answer(404, html_error(404, "The resource could not be found."))
    return refuse(call, RefusalError(404, "The resource could not be found."))


def authenticate(call: Call, *, needed: bool = True) -> None:
    """Find out who calls; if a token is needed, refuses an unknown or expired one with 401."""
    token = call.cloud.tokens.get(call.headers.get("x-auth-token", ""))
    if token and token.expires > time.time():
        call.token = token
    elif needed:
        raise RefusalError(401, UNVERIFIED if call.service == "image" else UNAUTHORIZED)


def refuse(call: Call, err: RefusalError) -> Answer:
    """Return an error in the shape that the service gives it."""
    headers = {"WWW-Authenticate": f'Keystone uri="{call.base}/identity/v3"'} if err.status == 401 else {}
    if call.service == "image":
        return Answer(err.status, html_error(err.status, err.message, err.detail), headers)
    if err.status == 401 or call.service == "identity":
        title = HTTPStatus(err.status).phrase
        return Answer(err.status, {"error": {"code": err.status, "title": title, "message": err.message}}, headers)
    if call.service == "network":
        kind = err.kind or f"HTTP{HTTPStatus(err.status).phrase.replace(' ', '')}"
        return Answer(err.status, {"NeutronError": {"type": kind, "message": err.message, "detail": ""}})
    later = {"retryAfter": "0"} if err.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE else {}
    fault = {COMPUTE_FAULTS.get(err.status, "computeFault"): {"code": err.status, "message": err.message, **later}}
    return Answer(err.status, fault, {"Content-Type": "application/json; charset=UTF-8"})


def html_error(status: int, message: str, detail: str = "") -> str:
    """Return the page that Glance and load balancers send with an error."""
    title = f"{status} {HTTPStatus(status).phrase}"
    return (
        f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n  {html.escape(message)}"
        f"<br /><br />\n{html.escape(detail)}\n\n\n </body>\n</html>"
    )


def _microversion(call: Call) -> tuple[int, int]:
    text = call.headers.get("openstack-api-version", "").removeprefix("compute").strip()
    text = text or call.headers.get("x-openstack-nova-api-version", "2.1")
    if text == "latest":
        return NEWEST
    found = re.fullmatch(r"(\d+)\.(\d+)", text)
    if not found:
        raise RefusalError(400, f"API Version String {text} is of invalid format. Must be of format MajorNum.MinorNum.")
    return int(found[1]), int(found[2])


def _with_service_headers(call: Call, answer: Answer) -> Answer:
    request = f"req-{uuid.uuid4()}"
    answer.headers["x-openstack-request-id"] = request
    if call.negotiated:
        version = f"{call.microversion[0]}.{call.microversion[1]}"
        answer.headers |= {
            "Openstack-Api-Version": f"compute {version}",
            "X-Openstack-Nova-Api-Version": version,
            "Vary": "OpenStack-API-Version, X-OpenStack-Nova-API-Version",
        }
    if call.service == "compute":
        answer.headers["x-compute-request-id"] = request
    return answer


# Answers that the knobs request


@dataclass
class Trick:
    """Misbehaviour in place of an answer: hang, reset, close, or truncate (send only a part of a body)."""

    kind: str


def _rate_limit(call: Call) -> dict[str, Any] | None:
    knobs = call.cloud.knobs
    if call.service != "compute" or not knobs.rate_limit:
        return None
    seconds = call.cloud.calls.refusal_seconds(knobs.rate_limit)
    if not seconds:
        return None
    fault = {
        "code": knobs.rate_limit_status,
        "message": "This request was rate-limited.",
        "details": f"Only {knobs.rate_limit:g} request(s) can be made every second.",
    }
    headers = {"Retry-After": str(seconds)}
    return {"status": knobs.rate_limit_status, "body": {"overLimit": fault}, "headers": headers}


def _scripted(call: Call) -> dict[str, Any] | None:
    wanted = [f"{call.method} {call.path}"]
    if call.path.endswith("/action"):
        with contextlib.suppress(RefusalError, TypeError, StopIteration):  # not a JSON object that names an action
            wanted.append(f"{wanted[0]} {next(iter(call.json()))}")
    with call.cloud.lock:
        for script in call.cloud.knobs.answers:
            if script.get("service", "compute") != call.service or script.get("times", 1) < 1:
                continue
            if any(re.fullmatch(script["match"], one) for one in wanted):
                if "times" in script:
                    script["times"] -= 1
                return script
    return None


def _perform(call: Call, script: dict[str, Any]) -> Answer | Trick:
    kind, status = script.get("kind", "status"), script.get("status", 500)
    if kind in ("hang", "reset", "close", "truncate"):
        return Trick(kind)
    if kind == "html":
        body = script.get("body") or html_error(status, "The server is temporarily unable to service your request.")
        return Answer(status, body, dict(script.get("headers", {})))
    message = UNEXPECTED if call.service == "compute" and status == 500 else HTTPStatus(status).phrase
    answer = refuse(call, RefusalError(status, message))
    if script.get("body") is not None:
        answer.body = script["body"]
    answer.headers |= script.get("headers", {})
    return _with_service_headers(call, answer)


# Connections


class Server(ThreadingHTTPServer):
    """Serves each connection in its own thread."""

    daemon_threads = True
    request_queue_size = 4096
    block_on_close = False

    def __init__(self, port: int, site: Site) -> None:
        self.site = site
        super().__init__(("127.0.0.1", port), Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what broke a connection, at debug level: clients often go away."""
        log.debug("connection from %s", client_address, exc_info=True)


class Connection(BaseHTTPRequestHandler):
    """One persistent connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS
    server: Server

    def handle_one_request(self) -> None:
        """Read a request and answer it with a single send."""
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        answer = self.server.site.serve(self.command, self.path, headers, self._read_body(headers))
        if isinstance(answer, Trick):
            self._play(answer)
        else:
            self.wfile.write(self._encode(answer))

    def log_message(self, *_args: Any) -> None:
        """Log nothing: the cloud counts its calls."""

    def _read_body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self.rfile.read(int(headers.get("content-length", 0)))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(chunks)

    def _encode(self, answer: Answer) -> bytes:
        content, kind = _content(answer)
        lines = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}"]
        headers = {"Content-Type": kind} if content else {}
        headers |= answer.headers
        if answer.status != 204:
            headers["Content-Length"] = str(len(content))
        lines.append(f"Date: {self.date_time_string()}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        return head if self.command == "HEAD" or answer.status == 204 else head + content

    def _play(self, trick: Trick) -> None:
        self.close_connection = True
        if trick.kind == "hang":
            self._hang()
        elif trick.kind == "truncate":
            self.wfile.write(TRUNCATED)
        elif trick.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def _hang(self) -> None:
        self.connection.settimeout(0.5)
        deadline = time.monotonic() + HANG_SECONDS
        while time.monotonic() < deadline and not self.server.site.stopping.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


def _content(answer: Answer) -> tuple[bytes, str]:
    if answer.body is None:
        return b"", ""
    if isinstance(answer.body, str):
        kind = "text/html; charset=UTF-8" if answer.body.startswith("<") else "text/plain"
        return answer.body.encode(), kind
    return json.dumps(answer.body).encode(), "application/json"
