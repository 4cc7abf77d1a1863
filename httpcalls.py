"""HTTP calls with one time limit for the whole call and a limit in bytes, which stay with their server.

The time limits of the libraries count for each wait on the socket, so that a server which sends a byte now and then
holds a script for ever. And the libraries pass a login on to wherever a redirect leads.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit, urlunsplit

import requests
import requests.adapters

from gateprocess import MOST_VALUES, NONSENSE, ConfigError, has_too_many_values

CALL_SECONDS = 60  # if the caller gives no limit
ANSWER_BYTES = 16 << 20  # a list of 1,000 servers or 3,000 nodes has some 3 MB
CHUNK_BYTES = 16 << 10  # small, since each may be packed a thousandfold
REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 305, 307, 308)

T = TypeVar("T")


class AnswerError(requests.RequestException):
    """The answer cannot be used: it does not end, or leads to another server."""


class LateError(requests.exceptions.ReadTimeout):
    """No complete answer came in time."""


def limit(session: requests.Session, *, forms: bool = False) -> None:
    """Limit all calls of a session; forms: a redirect after a change leads to a page for people, and means success.

    Raises ConfigError if the environment names certificates that are not there.
    """
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # no call would get as far as its server
        if (path := os.environ.get(variable)) and not Path(path).exists():
            raise ConfigError(f"{variable}: there is no file {path}")
    for prefix, adapter in tuple(session.adapters.items()):
        session.mount(prefix, LimitedAdapter(adapter, forms))


def in_time(call: Callable[[], T], seconds: float) -> T:
    """Return the result of a call; LateError if it takes longer, and the call then goes on unwatched.

    It runs in its own thread: nothing else ends everything that a call can hang at, from the resolver to the last byte.
    """
    done: Future[T] = Future()

    def work() -> None:
        try:
            done.set_result(call())
        except BaseException as err:  # noqa: BLE001 - it comes out in the thread that waits
            done.set_exception(err)

    threading.Thread(target=work, daemon=True).start()
    try:
        return done.result(seconds)
    except TimeoutError as err:
        if done.done():
            raise
        raise LateError(f"no whole answer within {seconds:.0f} s") from err


class LimitedAdapter(requests.adapters.BaseAdapter):
    """Sends with another adapter, reads the whole answer, and follows redirects within the same server itself."""

    def __init__(self, inner: requests.adapters.BaseAdapter, forms: bool) -> None:
        super().__init__()
        self._inner = inner
        self._forms = forms

    def close(self) -> None:
        """Close the connections."""
        self._inner.close()

    def send(
        self, request: requests.PreparedRequest, stream: bool = False, timeout: Any = None, verify: Any = True,
        cert: Any = None, proxies: Mapping[str, str] | None = None,
    ) -> requests.Response:
        """Send a request and return its answer, read to the end; timeout is the limit for the whole call, in seconds.

        Raises LateError, AnswerError, and the exceptions of requests.
        """
        seconds = timeout if isinstance(timeout, (int, float)) else CALL_SECONDS
        settings = {"verify": verify, "cert": cert, "proxies": proxies}
        return in_time(lambda: self._follow(request, time.monotonic() + seconds, settings), seconds)

    def _follow(
        self, first: requests.PreparedRequest, deadline: float, settings: Mapping[str, Any]
    ) -> requests.Response:
        request = first
        for turn in range(REDIRECTS):
            response = self._ask(request, deadline, settings)
            if response.status_code in REDIRECT_STATUSES:
                if self._forms and request.method != "GET" and _is_page(request, response):
                    response.headers.pop("Location", None)  # Jenkins draws all nodes there, which takes long
                    return response
                request = _led_on(request, response)
                continue
            pause = seconds_of(response.headers.get("Retry-After"), response.headers.get("Date"))
            if pause is not None:
                response.headers["Retry-After"] = str(math.ceil(pause))  # which of the clients only some take as a date
            if response.status_code == 503 and request.method == "GET" and pause is not None \
                    and time.monotonic() + pause < deadline and turn < REDIRECTS - 1:  # noqa: PLR2004
                time.sleep(pause)
                continue
            if response.status_code == 404 and request is not first:  # noqa: PLR2004
                raise AnswerError(f"leads to {request.url}, where there is nothing (404)")
            return response
        raise AnswerError(f"more than {REDIRECTS} redirects")

    def _ask(
        self, request: requests.PreparedRequest, deadline: float, settings: Mapping[str, Any]
    ) -> requests.Response:
        left = max(0.01, deadline - time.monotonic())
        response = self._inner.send(request, stream=True, timeout=left, **settings)
        body = bytearray()
        for chunk in response.iter_content(CHUNK_BYTES):
            body += chunk
            if len(body) > ANSWER_BYTES:
                response.close()
                raise AnswerError(f"more than {ANSWER_BYTES >> 20} MB came as an answer")
            if time.monotonic() > deadline:  # nobody waits for it any more
                response.close()
                break
        response._content = bytes(body)
        if has_too_many_values(response._content):
            raise AnswerError(f"more than {MOST_VALUES} values came as an answer")
        response._content = with_next_page_here(response._content, str(request.url))
        response.encoding = response.encoding or "utf-8"  # otherwise it is guessed, from all of the text
        return response


def with_next_page_here(body: bytes, url: str) -> bytes:
    """Return a page of a list, whose link to the next page leads to the server of this one.

    The libraries follow it with the login, wherever it leads: also to http, if a proxy speaks https for a service.
    """
    if b'"next"' not in body:
        return body
    try:
        told = json.loads(body)
        links = [link for key, value in told.items() if key == "links" or key.endswith("_links") for link in value]
        places = [(told, "next"), *((link, "href") for link in links if link.get("rel") == "next")]
        moved = [(holder, key, _moved(holder[key], url)) for holder, key in places
                 if isinstance(holder.get(key), str)]
    except (*NONSENSE, requests.RequestException):
        return body  # whoever reads it says so
    if all(holder[key] == address for holder, key, address in moved):
        return body
    for holder, key, address in moved:
        holder[key] = address
    return json.dumps(told).encode()


def _moved(target: str, url: str) -> str:
    """Return an address on the server of a URL, with the path and query of a target."""
    there = requests.PreparedRequest()
    there.prepare_url(urljoin(url, target), None)
    if not requests.Session().should_strip_auth(url, str(there.url)):
        return target
    own, parts = urlsplit(url), urlsplit(str(there.url))
    return urlunsplit((own.scheme, own.netloc, parts.path, parts.query, ""))


def seconds_of(retry_after: str | None, date: str | None) -> float | None:
    """Return how many seconds an answer says to stay away, as a number or a moment; None if it does not say.

    date is the answer's Date, by which the moment counts: our own clock may be another.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            now = email.utils.parsedate_to_datetime(date).timestamp() if date else time.time()
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - now
        except (TypeError, ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _target(request: requests.PreparedRequest, response: requests.Response) -> str:
    return urljoin(str(request.url), response.headers.get("Location", ""))


def _is_page(request: requests.PreparedRequest, response: requests.Response) -> bool:
    """Return whether an answer to a change shows another page, and not the same change at another address."""
    return urlsplit(_target(request, response)).path != urlsplit(str(request.url)).path \
        or "Location" not in response.headers


def _led_on(request: requests.PreparedRequest, response: requests.Response) -> requests.PreparedRequest:
    """Return the request that follows a redirect; AnswerError if it leads to another server."""
    if "Location" not in response.headers:
        raise AnswerError(f"{response.status_code} {response.reason}, a redirect without an address")
    target = _target(request, response)
    following = request.copy()
    following.prepare_url(target, None)
    # The address as it will be used: of http://a\@b/ one parser says that it leads to b, and another goes to a.
    if requests.Session().should_strip_auth(str(request.url), str(following.url)):
        raise AnswerError(f"leads to another server, {target}, to which no login is carried")
    if response.status_code == 303:  # noqa: PLR2004
        following.method, following.body = "GET", None
        for name in ("Content-Length", "Content-Type"):
            following.headers.pop(name, None)
    return following
