"""The tests' client for the Jenkins stand-in: starts it, turns its knobs, and reads its state."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar, Unpack
from urllib.parse import urlencode

import requests

from tests.support.waiting import pause

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
START_SECONDS = 20.0
STOP_SECONDS = 10.0
CALL_SECONDS = 30.0


class StandInError(Exception):
    """The stand-in did not start, refused a request, or did not reach an awaited state."""


class Steps(TypedDict, total=False):
    """What a job's builds do. Words can hold variables such as $NODE_NAME and $RESULT; no shell reads them."""

    before: Sequence[str]  # argv on the Jenkins host, run first; if it fails, the build fails
    script: str  # bash on the node, over ssh
    after: Sequence[str]  # argv on the Jenkins host, run after any end, with RESULT in its environment
    seconds: float  # how long the executor is busy if there is no script or no machine to run it on
    environment: Mapping[str, str]
    concurrent: bool


class StandIn:
    """A stand-in as a process with its files in `root`, stopped at the end of the `with` block.

    `users` are name -> (password, API token); `user`, `password` and `token` are those of the first one;
    `credentials` are id -> (user name on the nodes, private key file); `knobs` as in knobs.py; port 0: any free one.
    """

    def __init__(
        self,
        root: Path,
        users: Mapping[str, tuple[str, str]] | None = None,
        credentials: Mapping[str, tuple[str, Path]] | None = None,
        knobs: Mapping[str, Any] | None = None,
        port: int = 0,
    ) -> None:
        self.root = root
        self.users = dict(users or {"admin": ("admin-password", "admin-token")})
        self.credentials = dict(credentials or {})
        self.first_knobs = dict(knobs or {})
        self.port = port
        self.user = next(iter(self.users))
        self.password, self.token = self.users[self.user]
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        self._control = requests.Session()
        self._control.trust_env = False

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> Self:
        """Start it and wait until it accepts connections; if it does not, raises StandInError with its log's end."""
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "ready").unlink(missing_ok=True)
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._argv(), cwd=PROJECT, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        self.url = self._await("the stand-in to start", START_SECONDS, self._read_url)
        return self

    def _argv(self) -> list[str]:
        users = ",".join(f"{name}:{password}:{token}" for name, (password, token) in self.users.items())
        argv = [sys.executable, "-m", "tests.pocketjenkins", "--root", str(self.root.absolute())]
        argv += ["--port", str(self.port), "--users", users, "--until-eof"]
        for name, (user, key_file) in self.credentials.items():
            argv += ["--credentials", f"{name}={user}:{Path(key_file).absolute()}"]
        for name, value in self.first_knobs.items():
            argv += ["--set", f"{name}={json.dumps(value)}"]
        return argv

    def _read_url(self) -> str | None:
        if self._process is None or self._process.poll() is not None:
            raise StandInError(f"the stand-in for Jenkins did not start: {(self.root / 'log').read_text()[-2000:]}")
        ready = self.root / "ready"
        return str(json.loads(ready.read_text())["url"]) if ready.exists() else None

    def stop(self) -> None:
        """Stop it, and with it what it started on this host."""
        self._control.close()
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)
        if process.stdin:
            process.stdin.close()

    def knobs(self, **values: Any) -> dict[str, Any]:
        """Turn knobs; returns all of them."""
        return self._call("PATCH", "control", values)

    def look(self) -> dict[str, Any]:
        """Return the truth: knobs, nodes, jobs, builds, queue, calls, requests, and "now" on the same clock."""
        return self._call("GET", "control")

    def calls(self) -> dict[str, int]:
        """Return how often each kind of request came, such as "POST /computer/{name}/toggleOffline"."""
        return dict(self.look()["calls"])

    def reset_calls(self) -> None:
        self._call("POST", "control/calls/reset")

    def add_job(self, name: str, label: str, **steps: Unpack[Steps]) -> None:
        """Add a job, or change the named steps of an existing one."""
        self._call("POST", "control/jobs", {"name": name, "label": label, **steps})

    def add_nodes(self, nodes: Sequence[Mapping[str, Any]]) -> None:
        """Add many nodes in one call; for their keys see control.py."""
        self._call("POST", "control/nodes", [dict(node) for node in nodes])

    def node(self, name: str, **what: Any) -> dict[str, Any]:
        """Change a node (die, connect, label, temporarilyOffline, barred, launch); returns its true state."""
        return self._call("POST", f"control/nodes/{name}", what)

    def restart(self) -> None:
        """Restart Jenkins: builds and sessions end, nodes survive; it answers 503 for restart_seconds (a knob)."""
        self._call("POST", "control/restart")

    def build(self, name: str, **parameters: str) -> int:
        """Request a build as a client does; returns its queue item, which equal waiting ones share, as in Jenkins."""
        answer = self._post(f"job/{name}/{'buildWithParameters' if parameters else 'build'}?{urlencode(parameters)}")
        if answer.status_code == 400 and not parameters:  # a job with parameters, each of which has a default
            answer = self._post(f"job/{name}/buildWithParameters")
        if answer.status_code != 201:
            raise StandInError(f"build of {name}: {answer.status_code} {answer.text[:200]}")
        return int(answer.headers["Location"].rstrip("/").rsplit("/", 1)[1])

    def _post(self, path: str) -> requests.Response:
        return self._control.post(
            f"{self.url}{path}", auth=(self.user, self.token), timeout=CALL_SECONDS, allow_redirects=False
        )

    def wait_started(self, item: int, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until a queue item has become a build; returns the build."""

        def started() -> dict[str, Any] | None:
            builds = self.look()["builds"]
            return next((build for build in builds if build["queue_item"] == item), None)

        return self._await(f"queue item {item} to become a build", seconds, started)

    def wait_build(self, name: str, number: int, seconds: float = 30.0) -> dict[str, Any]:
        """Wait for the end of a build; returns it: node, result, started, ended, console."""

        def ended() -> dict[str, Any] | None:
            builds = self.look()["builds"]
            found = [build for build in builds if (build["job"], build["number"]) == (name, number)]
            return found[0] if found and not found[0]["building"] else None

        return self._await(f"{name} #{number} to end", seconds, ended)

    def wait_node(self, name: str, state: str, seconds: float = 30.0) -> dict[str, Any]:
        """Wait until a node is online, connecting, disconnected, launch-failed or died; returns its true state."""

        def reached() -> dict[str, Any] | None:
            node = self.look()["nodes"].get(name)
            return node if node and node["state"] == state else None

        return self._await(f"node {name} to be {state}", seconds, reached)

    def _await(self, what: str, seconds: float, attempt: Callable[[], T | None]) -> T:
        began = time.monotonic()
        while True:
            found = attempt()
            if found is not None:
                return found
            waited = time.monotonic() - began
            if waited > seconds:
                raise StandInError(f"timed out after {seconds} s waiting for {what}; {self._seen()}")
            time.sleep(pause(waited))

    def _seen(self) -> str:
        if not self.url:
            return "it is not ready"
        truth = self.look()
        return json.dumps({name: truth[name] for name in ("nodes", "queue", "builds")})[-3000:]

    def _call(self, method: str, path: str, value: Any = None) -> dict[str, Any]:
        answer = self._control.request(method, self.url + path, json=value, timeout=CALL_SECONDS)
        result: dict[str, Any] = answer.json()
        if answer.status_code != 200:
            raise StandInError(f"{method} /{path}: {result['error']}")
        return result
