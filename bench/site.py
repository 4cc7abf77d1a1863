"""A cloud and a Jenkins on loopback with one provider's pool, for a benchmark."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import requests

from bench import measure
from bench.bare import Settings
from bench.measure import BenchError, Usage
from tests.pocketcloud.client import Pocket
from tests.pocketcloud.jenkins_client import StandIn
from tests.pool import ANY_HOST_KEY, PROJECT, Pool, image, provider

BOOT_TIMEOUT = 600


class Site:
    """One provider with one image type, of which min-ready machines are wanted."""

    def __init__(self, folder: Path, pocket: Pocket, jenkins: StandIn, machines: int, min_ready: int | None = None,
                 **settings: Any) -> None:
        self.pool = Pool(folder, pocket, jenkins)
        self.pocket, self.jenkins, self.folder, self.settings = pocket, jenkins, folder, settings
        images = [image(min_ready=machines if min_ready is None else min_ready)]
        self.pool.load(provider(max_servers=machines, boot_timeout=BOOT_TIMEOUT, images=images, **settings))
        self.pool.seed_snapshots()
        pocket.reset_calls()

    def run(self, script: str, *arguments: str) -> Usage:
        """Run a script of the project to its end."""
        return measure.run_script(script, *arguments, environment=self.pool.environment, folder=self.folder)

    def run_bare(self, loop: str, machines: int) -> Usage:
        """Run a loop of bench.bare over so many machines."""
        base = next(one for one in self.pocket.look()["images"] if one["name"] == "Debian 12")
        settings = Settings(str(self.pocket.clouds_yaml), "pocket-a", machines, base["id"], str(self.pool.key),
                            self.settings.get("max_concurrency", 8), self.settings.get("calls_per_second"))
        environment = self.pool.environment | {"PYTHONPATH": str(PROJECT)}
        return measure.run_process([sys.executable, "-m", "bench.bare", loop, settings.as_json()],
                                   environment, self.folder)

    def calls(self) -> int:
        """Return how many calls compute has had since they were counted from nothing."""
        calls: int = sum(self.pocket.look()["calls"].get("compute", {}).values())
        return calls

    def states(self) -> dict[str, int]:
        """Return {state: how many machines}."""
        return dict(self.pool.sql("SELECT state, count(*) FROM machine GROUP BY state"))

    def expect(self, **states: int) -> None:
        """Raise BenchError unless so many machines are in these states, and none in another."""
        if (seen := self.states()) != states:
            raise BenchError(f"expected {states}, there are {seen}")

    def add_ready(self, numbers: range, **node: Any) -> None:
        """Have READY machines of these row ids, with servers and nodes that are as told, without launching them."""
        session = self.pool.client().session
        token, url = session.get_token(), session.get_endpoint(service_type="compute")
        image_id = self.pocket.look()["images"][0]["id"]
        local = threading.local()

        def create(number: int) -> str:
            if not hasattr(local, "session"):
                local.session = requests.Session()
            server: dict[str, Any] = {"name": f"devstack-noble-one-{number}", "imageRef": image_id, "flavorRef": "1",
                                      "metadata": self.pool.marks(machine=number)}
            answer = local.session.post(f"{url}/servers", json={"server": server}, headers={"X-Auth-Token": token},
                                        timeout=60)
            return str(answer.json()["server"]["id"])

        with ThreadPoolExecutor(4) as threads:
            servers = list(threads.map(create, numbers))
        names = [f"devstack-noble-one-{number}" for number in numbers]
        rows = ",".join(f"({number}, 1, '{server}', '{name}', '{name}', '127.0.0.1', 'jenkins', '{ANY_HOST_KEY}', "
                        f"'READY', {int(time.time())})"
                        for number, server, name in zip(numbers, servers, names, strict=True))
        self.pool.sql("INSERT INTO machine (id, base_image_id, external_id, name, jenkins_name, ip, user, host_key, "
                      f"state, state_time) VALUES {rows}")
        described = {"label": "devstack-noble", "description": f"devstack-gate-pool={self.pool.uuid}", **node}
        self.jenkins.add_nodes([{"name": name, **described} for name in names])
        self.pocket.reset_calls()


Opened: TypeAlias = AbstractContextManager[Site]


@contextmanager
def opened(machines: int, *, kind: str = "shared-ssh", knobs: dict[str, Any] | None = None,
           **settings: Any) -> Iterator[Site]:
    """Yield a site of its own for one run; settings are keys of the provider, with _ for -."""
    if os.geteuid():
        raise BenchError("needs root: machines listen on port 22 of addresses of their own")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with Pocket(folder, "--machines", kind) as pocket, \
                StandIn(folder / "jenkins", knobs={"connect": "instant"}) as jenkins:
            site = Site(folder, pocket, jenkins, machines, **settings)
            if knobs:
                pocket.knobs(**knobs)
            yield site
