"""jobs/take-node.py: what the first step of a gate build does with what it finds on its node."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest

from tests.support.pool import PROJECT

LOGIN, SECRET = "node:token", "a-secret-of-this-machine"
TAKE = "devstack-vm-inprogress"


@dataclass
class Master:
    """An HTTP server that answers this script as Jenkins does, except for the paths that `redirects` redirects."""

    result: str = "SUCCESS"
    redirects: Callable[[str], str] = lambda _path: ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # path, login, body
    url: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], object]:
        """Return status, headers and JSON for a request."""
        if target := self.redirects(path):
            return 302, {"Location": target}, {}
        if "buildWithParameters" in path:
            return 201, {"Location": f"{self.url}queue/item/7/"}, {}
        if "/queue/item/" in path:
            return 200, {}, {"executable": {"number": 3}}
        if "/computer/" in path:
            return 200, {}, {"temporarilyOffline": True}
        return 200, {}, {"result": self.result}


@contextmanager
def serving(master: Master) -> Iterator[Master]:
    """Let it answer on loopback."""
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            master.asked.append((self.path, self.headers.get("Authorization", ""), body))
            status, headers, content = master.answer(self.path)
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        master.url = f"http://127.0.0.1:{server.server_port}/"
        yield master
        server.shutdown()


@dataclass
class Node:
    """A node with the file; `kept` is a second name of that file, which shows what became of its content."""

    home: Path
    kept: Path

    @property
    def file(self) -> Path:
        return self.home / ".devstack-gate-jenkins"

    def take(self, master: Master, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.home), "JENKINS_URL": master.url,
                       "NODE_NAME": "n1", "JOB_NAME": "gate", "BUILD_NUMBER": "5"}
        return subprocess.run([sys.executable, str(PROJECT / "jobs/take-node.py"), *arguments], env=environment,
                              timeout=60, capture_output=True, text=True, check=False)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    made = Node(tmp_path / "home", tmp_path / "kept")
    made.home.mkdir()
    made.file.write_text(f"{LOGIN}\n{SECRET}\n")
    os.link(made.file, made.kept)
    return made


@pytest.fixture
def start() -> Iterator[Callable[[Master], Master]]:
    with ExitStack() as running:
        yield lambda master: running.enter_context(serving(master))


Start = Callable[[Master], Master]


@pytest.mark.parametrize(("argument", "code"), [("--help", 0), ("now", 2)])
def test_who_asks_for_help_or_calls_it_wrongly_takes_nothing(node: Node, start: Start, argument: str, code: int
                                                             ) -> None:
    master = start(Master())
    result = node.take(master, argument)
    assert (result.returncode, "usage: take-node.py" in result.stdout + result.stderr) == (code, True)
    assert (master.asked, node.file.exists()) == ([], True)


def test_the_secret_goes_to_the_job_in_the_body_and_the_file_is_overwritten_and_gone(node: Node, start: Start) -> None:
    master = start(Master())

    done = node.take(master)

    assert done.returncode == 0, done.stderr
    (path, _, body), *others = master.asked
    assert (path.partition("?")[0], parse_qs(body)) == (f"/job/{TAKE}/buildWithParameters", {
        "GATE_NODE_NAME": ["n1"], "GATE_JOB_NAME": ["gate"], "GATE_BUILD_NUMBER": ["5"], "GATE_TAKE_SECRET": [SECRET]})
    assert SECRET not in "".join([path, done.stdout, done.stderr, *(one[0] + one[2] for one in others)])
    assert (node.file.exists(), set(node.kept.read_bytes())) == (False, {0})


def test_a_machine_from_before_there_were_secrets_is_taken_without_one(node: Node, start: Start) -> None:
    node.file.write_text(f"{LOGIN}\n")
    master = start(Master())

    assert node.take(master).returncode == 0
    assert "GATE_TAKE_SECRET" not in parse_qs(master.asked[0][2])


def test_a_build_that_does_not_get_its_node_wipes_the_file_once_the_node_is_out_of_service(
        node: Node, start: Start) -> None:
    master = start(Master("FAILURE"))

    done = node.take(master)

    assert done.returncode == 1
    assert f"{TAKE} #3 ended FAILURE; this build must not run on this node" in done.stderr
    assert (node.file.exists(), set(node.kept.read_bytes())) == (False, {0})


@pytest.mark.parametrize("what", ["buildWithParameters", "queue", "api/json?tree=result"])
def test_a_redirect_to_another_host_gets_neither_login_nor_secret(node: Node, start: Start, what: str) -> None:
    thief = start(Master())
    master = start(Master(redirects=lambda path: f"{thief.url}caught" if what in path else ""))

    done = node.take(master)

    assert done.returncode == 1
    assert re.search(r"leads to http://127\.\S+, to which no login is carried", done.stderr)
    assert thief.asked == []


def test_a_redirect_to_jenkins_itself_is_followed(node: Node, start: Start) -> None:
    master = start(Master())
    master.redirects = lambda path: f"{master.url}queue/item/7/api/json?moved" if path.startswith("/queue") \
        and "moved" not in path else ""

    assert node.take(master).returncode == 0


@pytest.mark.parametrize("kind", ["file", "link", "nothing"])
def test_what_is_left_of_it_is_wiped_before_the_gate_runs_anything(node: Node, tmp_path: Path, kind: str) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    if kind != "file":
        node.file.unlink()
    if kind == "link":
        node.file.symlink_to(precious)
    wipe = f". {PROJECT}/devstack-vm-gate-wrap.sh && wipe_jenkins_login"

    subprocess.run(["bash", "-c", wipe], env={"PATH": os.environ["PATH"], "HOME": str(node.home)}, check=True)

    assert (list(node.home.iterdir()), precious.read_text()) == ([], "precious")
    assert (set(node.kept.read_bytes()) == {0}) == (kind == "file")
