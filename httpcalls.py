"""HTTP calls with a time limit for the whole call and a limit in bytes; no call leaves its server.

The libraries apply their time limits to each wait on the socket, so a server that sends a byte now and then holds a
script for ever. And they send a login to wherever a redirect leads.
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
ANSWER_BYTES = 16 << 20  # a list of 1,000 servers or 3,000 nodes takes about 3 MB
CHUNK_BYTES = 16 << 10  # small: each may be compressed a thousandfold
REDIRECTS = 5
REDIRECT_STATUSES = (301, 302, 303, 305, 307, 308)

T = TypeVar("T")


class AnswerError(requests.RequestException):
    """The answer cannot be used: it does not end, or leads to another server."""


class LateError(requests.exceptions.ReadTimeout):
    """No complete answer came in time."""


def limit(session: requests.Session, *, forms: bool = False) -> None:
    """Limit all calls of a session; forms: a redirect after a change leads to a page for people and means success.

    Raises ConfigError if the environment names certificates that do not exist.
    """
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # no call would reach its server
        if (path := os.environ.get(variable)) and not Path(path).exists():
            raise ConfigError(f"{variable}: there is no file {path}")
    for prefix, adapter in tuple(session.adapters.items()):
        session.mount(prefix, LimitedAdapter(adapter, forms))


def in_time(call: Callable[[], T], seconds: float) -> T:
    """Return the result of a call; raises LateError if it takes longer, and the call then goes on unwatched.

    The call runs in another thread: no other limit covers all that it can hang in, from the resolver to the last byte.
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
    """Sends with another adapter, reads the whole answer, and itself follows redirects within the same server."""

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
        """Send a request and return its answer, read to the end; timeout is the limit for the whole call in seconds.

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
                    response.headers.pop("Location", None)  # there Jenkins draws all nodes, which is slow
                    return response
                request = _led_on(request, response)
                continue
            pause = seconds_of(response.headers.get("Retry-After"), response.headers.get("Date"))
            if pause is not None:
                response.headers["Retry-After"] = str(math.ceil(pause))  # only some clients accept a date
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
            if time.monotonic() > deadline:  # nobody waits for it now
                response.close()
                break
        response._content = bytes(body)
        if has_too_many_values(response._content):
            raise AnswerError(f"more than {MOST_VALUES} values came as an answer")
        if response.ok and not self._forms:  # of Jenkins no list is followed
            _keep_next_page_here(response, str(request.url))
        response.encoding = response.encoding or "utf-8"  # else it is guessed from the whole text
        return response


def _keep_next_page_here(response: requests.Response, url: str) -> None:
    """Change the link of a list to its next page so that it leads to the server of this page.

    The libraries follow the link with the login wherever it leads, even to http if a proxy speaks https for a service.
    """
    try:
        told = json.loads(response.content)
    except NONSENSE:
        return  # whoever reads it reports that
    if move_next_page(told, url):
        response._content = json.dumps(told).encode()
    vars(response)["json"] = lambda **_: told  # pages of a thousand servers are parsed once


def move_next_page(told: Any, url: str) -> bool:
    """Change the link of a parsed list to its next page so that it leads to the server of a URL; return if it did not.

    Links that make no sense are left to whoever follows them.
    """
    try:
        links = [link for key, value in told.items() if key == "links" or key.endswith("_links") for link in value]
        places = [(told, "next"), *((link, "href") for link in links if link.get("rel") == "next")]
        moved = [(holder, key, address) for holder, key in places if isinstance(holder.get(key), str)
                 and (address := _moved(holder[key], url)) != holder[key]]
    except (*NONSENSE, requests.RequestException):
        return False
    for holder, key, address in moved:
        holder[key] = address
    return bool(moved)


def _moved(target: str, url: str) -> str:
    """Return an address on the server of a URL, with the path and query of a target."""
    there = requests.PreparedRequest()
    there.prepare_url(urljoin(url, target), None)
    if not requests.Session().should_strip_auth(url, str(there.url)):
        return target
    own, parts = urlsplit(url), urlsplit(str(there.url))
    return urlunsplit((own.scheme, own.netloc, parts.path, parts.query, ""))


def seconds_of(retry_after: str | None, date: str | None) -> float | None:
    """Return how many seconds an answer's Retry-After, a number or a date, asks to wait; None if it does not say.

    A date counts from `date`, the answer's Date header: our own clock may differ.
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
    """Return whether the redirect after a change leads to another page, not to the same path at another address."""
    return urlsplit(_target(request, response)).path != urlsplit(str(request.url)).path \
        or "Location" not in response.headers


def _led_on(request: requests.PreparedRequest, response: requests.Response) -> requests.PreparedRequest:
    """Return the request that follows a redirect; raises AnswerError if it leads to another server."""
    if "Location" not in response.headers:
        raise AnswerError(f"{response.status_code} {response.reason}, a redirect without an address")
    target = _target(request, response)
    following = request.copy()
    following.prepare_url(target, None)
    # Compare the address as it will be used: for http://a\@b/ one parser says b, and another goes to a.
    if requests.Session().should_strip_auth(str(request.url), str(following.url)):
        raise AnswerError(f"leads to another server, {target}, to which no login is carried")
    if response.status_code == 303:  # noqa: PLR2004
        following.method, following.body = "GET", None
        for name in ("Content-Length", "Content-Type"):
            following.headers.pop(name, None)
    return following
