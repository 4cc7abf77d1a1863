"""Bare loops for a fill, a reap and the original's way of launching: the calls and nothing else.

    python -m bench.bare LOOP SETTINGS       run as a process of its own; SETTINGS is the JSON of Settings

fill      creates as many at once as max-concurrency, one list a second, a login as soon as the cloud says ACTIVE
serial    the original: one create a second, a GET for each server in rounds 3 s apart, one login after the other
patient   the same with the 3 s after each GET
reap      deletes as many at once as max-concurrency, at calls-per-second, then one list a second
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paramiko
import requests
import yaml

POLL_SECONDS = 1.0
SERIAL_CREATE_SECONDS, SERIAL_PAUSE_SECONDS = 1.0, 3.0  # of the original
# What the scripts' own ssh test does: /etc/devstack-gate/node is written over one login.
WRITE = "umask 022 && sudo -n mkdir -p /etc/devstack-gate && sudo -n tee /etc/devstack-gate/node"


@dataclass(frozen=True)
class Settings:
    """What a loop needs to know."""

    clouds_yaml: str
    cloud: str
    machines: int
    image: str
    key: str  # file of the private key
    concurrency: int = 8
    calls_per_second: float | None = None

    def as_json(self) -> str:
        """Return the settings as an argument."""
        return json.dumps(asdict(self))


class Compute:
    """Nova over bare HTTP: no client library, no retry, no check but the status."""

    def __init__(self, settings: Settings) -> None:
        auth = yaml.safe_load(Path(settings.clouds_yaml).read_text(encoding="utf-8"))["clouds"][settings.cloud]["auth"]
        user = {"name": auth["username"], "password": auth["password"], "domain": {"id": "default"}}
        scope = {"project": {"name": auth["project_name"], "domain": {"id": "default"}}}
        body = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
        self.session = requests.Session()
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=settings.concurrency + 1)
        self.session.mount("http://", adapter)
        answer = self.session.post(f"{auth['auth_url'].removesuffix('/v3')}/v3/auth/tokens", json=body, timeout=60)
        answer.raise_for_status()
        self.session.headers["X-Auth-Token"] = answer.headers["X-Subject-Token"]
        self.url = next(service["endpoints"][0]["url"] for service in answer.json()["token"]["catalog"]
                        if service["type"] == "compute")

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Make one call and return the JSON of its answer, None for an empty one."""
        answer = self.session.request(method, f"{self.url}{path}", json=body, timeout=60)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def create(self, number: int, image: str) -> str:
        """Ask for a server and return its id."""
        server = {"name": f"bare-{number}", "imageRef": image, "flavorRef": "1", "metadata": {"bench": "bare"}}
        return str(self.call("POST", "/servers", {"server": server})["server"]["id"])

    def list(self) -> list[Any]:
        """Return all servers, in one call for each 1,000."""
        servers: list[Any] = []
        query = "?limit=1000"
        while query:
            page = self.call("GET", f"/servers/detail{query}")
            servers += page["servers"]
            query = next(("?" + link["href"].partition("?")[2] for link in page.get("servers_links", [])
                          if link["rel"] == "next"), "")
        return servers


class Pace:
    """Lets one caller after the other go, at most so many a second."""

    def __init__(self, calls_per_second: float | None) -> None:
        self.gap = 1 / calls_per_second if calls_per_second else 0.0
        self.next = time.monotonic()

    def run(self, workers: ThreadPoolExecutor, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Have a worker make a call when its turn has come."""
        self.next = max(self.next + self.gap, time.monotonic())
        time.sleep(max(0.0, self.next - time.monotonic()))
        return workers.submit(call, *arguments)


def log_in(address: str, key: paramiko.PKey) -> None:
    """Log in once and write one file, as the ssh test of the scripts does."""
    with paramiko.SSHClient() as client:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        client.connect(address, 22, "jenkins", pkey=key, allow_agent=False, look_for_keys=False, timeout=30)
        stdin, stdout, _ = client.exec_command(WRITE)
        stdin.write("NODE_NAME=bare\n")
        stdin.channel.shutdown_write()
        stdout.read()
        stdout.channel.recv_exit_status()


def address_of(server: Any) -> str:
    """Return the first address of a server as the cloud shows it."""
    return str(next(iter(server["addresses"].values()))[0]["addr"])


def fill(settings: Settings) -> None:
    """Create all, look once a second, log in to each once it is ACTIVE."""
    compute, key, pace = Compute(settings), paramiko.PKey.from_path(settings.key), Pace(settings.calls_per_second)
    workers = ThreadPoolExecutor(settings.concurrency)
    creator = ThreadPoolExecutor(1).submit(lambda: [
        pace.run(workers, compute.create, number, settings.image) for number in range(settings.machines)])
    logins: dict[str, Future[Any]] = {}
    while len(logins) < settings.machines:
        began = time.monotonic()
        for server in compute.list():
            if server["status"] == "ACTIVE" and server["id"] not in logins and server["name"].startswith("bare-"):
                logins[server["id"]] = workers.submit(log_in, address_of(server), key)
        if len(logins) < settings.machines:
            time.sleep(max(0.0, began + POLL_SECONDS - time.monotonic()))
    for task in [*creator.result(), *logins.values()]:
        task.result()


def serial(settings: Settings, after_each: float = 0.0, after_all: float = SERIAL_PAUSE_SECONDS) -> None:
    """Launch as the original did, with pauses after each GET and after a round of them."""
    compute, key = Compute(settings), paramiko.PKey.from_path(settings.key)
    building = []
    for number in range(settings.machines):
        began = time.monotonic()
        building.append(compute.create(number, settings.image))
        time.sleep(max(0.0, began + SERIAL_CREATE_SECONDS - time.monotonic()))
    while True:
        for server_id in list(building):
            server = compute.call("GET", f"/servers/{server_id}")["server"]
            if server["status"] == "ACTIVE":
                log_in(address_of(server), key)
                building.remove(server_id)
            time.sleep(after_each)
        if not building:
            break
        time.sleep(after_all)


def patient(settings: Settings) -> None:
    """Launch serially with the pause after each GET."""
    serial(settings, SERIAL_PAUSE_SECONDS, 0.0)


def reap(settings: Settings) -> None:
    """Delete all, then look once a second until they are gone."""
    compute, pace = Compute(settings), Pace(settings.calls_per_second)
    workers = ThreadPoolExecutor(settings.concurrency)
    ids = [server["id"] for server in compute.list()]
    for task in [pace.run(workers, compute.call, "DELETE", f"/servers/{server_id}") for server_id in ids]:
        task.result()
    while compute.list():
        time.sleep(POLL_SECONDS)


LOOPS: dict[str, Callable[[Settings], None]] = {"fill": fill, "serial": serial, "patient": patient, "reap": reap}

if __name__ == "__main__":
    LOOPS[sys.argv[1]](Settings(**json.loads(sys.argv[2])))
