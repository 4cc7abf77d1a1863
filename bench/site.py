"""A cloud and a Jenkins on loopback with one provider's pool, for a benchmark."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from bench import measure
from bench.bare import Settings
from bench.measure import BenchError, Usage
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import PROJECT, Pool, image, provider

BOOT_TIMEOUT = 600


class Site:
    """One provider with one image type, of which min-ready machines are wanted."""

    def __init__(self, folder: Path, pocket: Pocket, jenkins: StandIn, machines: int, min_ready: int | None = None,
                 **settings: Any) -> None:
        self.pool = Pool(folder, pocket, jenkins)
        self.pocket, self.folder, self.settings = pocket, folder, settings
        keys = {"images": [image(min_ready=machines if min_ready is None else min_ready)], **settings}
        self.pool.load(provider(max_servers=machines, boot_timeout=BOOT_TIMEOUT, **keys))
        self.pool.seed_snapshots()
        pocket.reset_calls()

    def run(self, script: str, *arguments: str) -> Usage:
        """Run a script of the project to its end."""
        return measure.run_script(script, *arguments, environment=self.pool.environment, folder=self.folder)

    def run_bare(self, loop: str, machines: int) -> Usage:
        """Run a loop of bench.bare over a number of machines."""
        base = next(one for one in self.pocket.look()["images"] if one["name"] == "Debian 12")
        settings = Settings(str(self.pocket.clouds_yaml), "pocket-a", machines, base["id"], str(self.pool.key),
                            self.settings.get("max_concurrency", 8), self.settings.get("calls_per_second"))
        environment = self.pool.environment | {"PYTHONPATH": str(PROJECT)}
        return measure.run_process([sys.executable, "-m", "bench.bare", loop, settings.as_json()],
                                   environment, self.folder)

    def expect(self, **states: int) -> None:
        """Raise BenchError unless these are the numbers of machines in each state, with none in any other."""
        seen = dict(self.pool.sql("SELECT state, count(*) FROM machine GROUP BY state"))
        if seen != states:
            raise BenchError(f"expected {states}, there are {seen}")


Opened: TypeAlias = AbstractContextManager[Site]


@contextmanager
def opened(machines: int, *, knobs: dict[str, Any] | None = None, **settings: Any) -> Iterator[Site]:
    """Yield a new site for one run; settings are keys of the provider, with _ for -."""
    if os.geteuid():
        raise BenchError("needs root: machines listen on port 22 of addresses of their own")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with Pocket(folder, "--machines", "shared-ssh") as pocket, \
                StandIn(folder / "jenkins", knobs={"connect": "instant"}) as jenkins:
            site = Site(folder, pocket, jenkins, machines, **settings)
            if knobs:
                pocket.knobs(**knobs)
            yield site
