#!/usr/bin/env python3
"""First step of a gate build, on its node, if Jenkins lacks the plugin Parameterized Trigger (plugins: core).

Has Jenkins run devstack-vm-inprogress for this node, and waits for it. It reads ~/.devstack-gate-jenkins, in which
devstack-vm-launch.py has left the login of a user that may do nothing else, and a secret that takes only this machine.
It overwrites and removes the file as soon as it has taken the node, so that the change under test, which runs later,
cannot read it. A build that cannot take its node keeps it busy until the node is out of service, but for a few minutes
at most: otherwise every queued build would start here and fail. Uses only Python's standard library.

Exit codes: 0 the node is out of service and this build may go on, 1 it may not, 2 wrong use.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import http.client
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NoReturn

JOB = "devstack-vm-inprogress"
LOGIN_FILE = Path.home() / ".devstack-gate-jenkins"  # USER:APIKEY, and on the next line the secret of this machine
FOR_RESULT = ("ZUUL_CHANGE", "ZUUL_PATCHSET", "GERRIT_CHANGE_NUMBER", "GERRIT_PATCHSET_NUMBER")
CALL_SECONDS = 30  # for a whole call
ANSWER_BYTES = 4 << 20
CONSOLE_LINES = 200  # shown of the other job's console
# What reading a malformed answer raises.
NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
WAIT_SECONDS = 4800  # for an executor, for what the script allows itself, and for a test environment (environment-wait)
POLL_SECONDS = 1
BUSY_SECONDS = 300  # if nothing works, each node fails one build in five minutes, not the whole queue


class FailedError(Exception):
    """Why this build must not go on."""


def main() -> int:
    """Take the node out of service; the reason for a failure is one line on stderr."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    jenkins, why = None, ""
    try:
        login, secret = read_login()
        jenkins = Jenkins(os.environ.get("JENKINS_URL", ""), login)
        item = start(jenkins, secret)
        print(f"asked for {JOB}, waiting for it", flush=True)
        number = wait_for_start(jenkins, item)
        result = wait_for_end(jenkins, number)
        if result != "SUCCESS":
            for line in jenkins.ask(f"job/{JOB}/{number}/consoleText").splitlines()[-CONSOLE_LINES:]:
                print(plain(line), file=sys.stderr)
            raise FailedError(f"{JOB} #{number} ended {result}")
        wipe_login()
    except (FailedError, OSError, http.client.HTTPException) as err:
        why = str(err)
    except NONSENSE as err:
        why = f"{JOB}: the answer makes no sense ({err})"
    if why:
        print(f"{plain(why)}; this build must not run on this node", file=sys.stderr, flush=True)
        if keep_busy(jenkins):  # no other build can start here and need the file
            wipe_login()
        return 1
    print(f"{JOB} #{number}: {os.environ['NODE_NAME']} is out of service, it belongs to this build")
    return 0


def read_login() -> tuple[str, str]:
    """Return USER:APIKEY and the secret of this machine, which is empty if launch made it before there were any."""
    try:
        login, _, secret = LOGIN_FILE.read_text(encoding="utf-8").strip().partition("\n")
        return login, secret
    except FileNotFoundError:
        raise FailedError(f"there is no {LOGIN_FILE}: a build has run here before, or the secure configuration had no "
                          "[jenkins] node_user and node_apikey when devstack-vm-launch.py made this node") from None


def wipe_login() -> None:
    """Overwrite and remove the login file, so that its contents cannot be found on the disk."""
    with contextlib.suppress(FileNotFoundError):
        with LOGIN_FILE.open("r+b") as stream:
            stream.write(b"\0" * os.fstat(stream.fileno()).st_size)
            stream.flush()
            os.fsync(stream.fileno())
        LOGIN_FILE.unlink()


def keep_busy(jenkins: Jenkins | None) -> bool:
    """Wait until no other build can start on this node and return True; return False after BUSY_SECONDS."""
    deadline = time.monotonic() + BUSY_SECONDS
    path = f"computer/{urllib.parse.quote(os.environ.get('NODE_NAME', ''))}/api/json?tree=temporarilyOffline"
    while time.monotonic() < deadline:
        with contextlib.suppress(FailedError, OSError, http.client.HTTPException, *NONSENSE):
            if jenkins and json.loads(jenkins.request(path)[1])["temporarilyOffline"]:
                return True
        time.sleep(POLL_SECONDS)
    return False


class StayHere(urllib.request.HTTPRedirectHandler):
    """Refuses redirects that would carry the login to another address than that of Jenkins."""

    def redirect_request(  # noqa: D102 - urllib's
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if place_of(newurl) != place_of(req.full_url):
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def place_of(url: str) -> str:
    """Return scheme, host and port of an address."""
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}:{parts.port or {'http': 80, 'https': 443}.get(parts.scheme)}"


class Jenkins:
    """The Jenkins that runs this build."""

    def __init__(self, url: str, login: str) -> None:
        if not url:
            raise FailedError("JENKINS_URL is not set: give Jenkins its address (Manage Jenkins, System)")
        self.url = url.rstrip("/") + "/"
        self.headers = {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        self.deadline = time.monotonic() + WAIT_SECONDS
        self.opener = urllib.request.build_opener(StayHere)

    def ask(self, path: str) -> str:
        """Return the answer for a path; ask again until the deadline if none comes."""
        while True:
            try:
                return self.request(path)[1].decode("utf-8", "replace")
            except (OSError, http.client.HTTPException) as err:
                if isinstance(err, urllib.error.HTTPError) and err.code < 500 and err.code != 404:  # noqa: PLR2004
                    raise FailedError(f"{self.url}{path}: {reason_of(err)}") from err
                if time.monotonic() > self.deadline:
                    raise FailedError(f"{self.url}{path}: {reason_of(err)}, for {WAIT_SECONDS} s") from err
            time.sleep(POLL_SECONDS)

    def request(self, path: str, form: dict[str, str] | None = None) -> tuple[http.client.HTTPMessage, bytes]:
        """Make one request, a POST if there is a form; return the headers and the body of the answer.

        The login goes to this Jenkins only: a redirect to another server raises an error.
        """
        data = urllib.parse.urlencode(form).encode() if form is not None else None
        request = urllib.request.Request(self.url + path, data, self.headers)
        with within(CALL_SECONDS), self.opener.open(request) as answer:
            body = answer.read(ANSWER_BYTES + 1)
            if len(body) > ANSWER_BYTES:
                raise FailedError(f"{self.url}{path}: the answer is longer than {ANSWER_BYTES >> 20} MB")
            return answer.headers, body

    def wait(self, path: str, tree: str, key: str) -> Any:
        """Return the value of a key of one of Jenkins' objects as soon as it has one."""
        while True:
            found = json.loads(self.ask(f"{path}/api/json?tree={tree}"))
            if found.get("cancelled"):
                raise FailedError(f"{JOB} was cancelled in the queue")
            if found.get(key):
                return found[key]
            if time.monotonic() > self.deadline:
                raise FailedError(f"{JOB} is not done after {WAIT_SECONDS} s: {found.get('why') or 'it still runs'}")
            time.sleep(POLL_SECONDS)


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in the main thread after a number of seconds."""
    def end(*_: object) -> NoReturn:
        raise TimeoutError(f"no whole answer within {seconds} s")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def start(jenkins: Jenkins, secret: str) -> str:
    """Ask once for a build of the job, and return the path of its item in the queue."""
    form = {"GATE_NODE_NAME": os.environ["NODE_NAME"], "GATE_JOB_NAME": os.environ["JOB_NAME"],
            "GATE_BUILD_NUMBER": os.environ["BUILD_NUMBER"], "GATE_TAKE_SECRET": secret}
    form.update({name: os.environ[name] for name in FOR_RESULT if os.environ.get(name)})
    path = f"job/{JOB}/buildWithParameters?delay=0sec"
    try:
        location = jenkins.request(path, form)[0].get("Location", "")
    except (OSError, http.client.HTTPException) as err:
        raise FailedError(f"{jenkins.url}{path}: {reason_of(err)}") from err
    found = location.partition("/queue/item/")[2].strip("/")
    if not (found.isascii() and found.isdigit()):
        raise FailedError(f"{jenkins.url}{path}: expected a place in the queue, got {location!r}")
    return f"queue/item/{found}"


def wait_for_start(jenkins: Jenkins, item: str) -> int:
    """Return the number of the build that the queued item became."""
    return int(jenkins.wait(item, "cancelled,why,executable[number]", "executable")["number"])


def wait_for_end(jenkins: Jenkins, number: int) -> Any:
    """Return the result of the build."""
    return jenkins.wait(f"job/{JOB}/{number}", "result", "result")


def reason_of(err: Exception) -> str:
    """Return in a few words why there was no answer."""
    if isinstance(err, urllib.error.HTTPError):
        right, target = err.headers.get("X-Required-Permission"), err.headers.get("Location")
        return plain(f"{err.code} {err.reason}" + (f", the user needs {right}" if right else "")
                     + (f", leads to {target}, to which no login is carried" if target else ""))
    return plain(str(getattr(err, "reason", "") or err or type(err).__name__))


def plain(text: str) -> str:
    """Return somebody else's text, cut to one line without control characters."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text[:1000].split()))[:300]


if __name__ == "__main__":
    sys.exit(main())
