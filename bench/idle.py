"""How long devstack-vm-launch.py takes when there is nothing to do: all machines READY, in Jenkins, in the cloud.

The limit is a bare process that makes the same calls (floor_idle.py): it logs in, lists all servers by pages of 1,000
and all nodes, reads vm.db, and does nothing with them. Must hold: 10,000 machines in less than 4 s and 250 MB, and no
worse than linear from 1,000 to 10,000. The further figures are the share of the cloud, which is the time that its
pages take a client that only reads them, and the growth from the size before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from bench.measure import PROJECT, BenchError, Row, pairs, run_process, run_script
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, image, provider

CLOUD = "pocket-a"
SIZES = (100, 1000, 10000)
AT_ONCE = 1000  # machines that are made between two writes of vm.db


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option for the sizes of the pool."""
    parser.add_argument("--machines", type=int, nargs="+", default=SIZES, metavar="N",
                        help=f"so many, each more than the one before ({' '.join(map(str, SIZES))})")


def run(options: argparse.Namespace) -> list[Row]:
    """Measure each size; the pool only grows."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name, Pocket(Path(name), "--machines", "none") as pocket, \
            StandIn(Path(name) / "jenkins", knobs={"connect": "instant"}) as stand_in:
        pool = Pool(Path(name), pocket, stand_in)
        cloud = Compute(pool)
        before = 0
        for size in sorted(options.machines):
            pool.load(provider(max_servers=size, images=[image(min_ready=size)]))
            for start in range(before + 1, size + 1, AT_ONCE):
                pool.add_ready_machines(range(start, min(start + AT_ONCE, size + 1)))
            rows.append(_measure(pool, cloud, size, options.runs))
            before = size
    for row, previous in zip(rows[1:], rows, strict=False):
        row.more[f"growth from {previous.case}, times"] = \
            statistics.median(row.ours) / statistics.median(previous.ours)
    return rows


class Compute:
    """The cloud's compute API, for a client that does only what it must."""

    def __init__(self, pool: Pool) -> None:
        session = pool.client(CLOUD).session
        self.url = session.get_endpoint(service_type="compute")
        self.headers = {"X-Auth-Token": session.get_token()}

    def seconds_of_pages(self) -> float:
        """Return how long it takes to read all pages of the list of servers, without parsing them."""
        seconds = 0.0
        url: str | None = f"{self.url}/servers/detail?limit=1000"
        while url:
            request = urllib.request.Request(url, headers=self.headers)
            began = time.perf_counter()
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
            seconds += time.perf_counter() - began
            links: list[dict[str, Any]] = json.loads(text).get("servers_links", [])
            url = next((str(link["href"]) for link in links), None)
        return seconds


def _measure(pool: Pool, cloud: Compute, size: int, runs: int) -> Row:
    """Measure a pool of one size."""
    assert pool.jenkins
    row = Row(f"{size} machines")
    pages: list[float] = []
    floor = [sys.executable, str(PROJECT / "bench" / "floor_idle.py"), CLOUD, str(pool.database), pool.jenkins.url,
             pool.jenkins.user, pool.jenkins.token]

    def launch() -> float:
        pool.pocket_calls_reset(CLOUD)
        used = run_script("devstack-vm-launch.py", "one", environment=pool.environment, folder=pool.folder)
        _expect(used.output, f"one noble: {size} of {size} ready\n")
        row.peak_mb.append(used.peak_mb)
        row.calls.append(pool.compute_calls(CLOUD) / size)
        return used.seconds

    def limit() -> float:
        used = run_process(floor, pool.environment, pool.folder)
        _expect(used.output, f"{size + 1} {size} {size}\n")  # and Jenkins' own node
        pages.append(cloud.seconds_of_pages())
        return used.seconds

    launch()  # warms the disk
    limit()
    del row.peak_mb[:], row.calls[:], pages[:]
    pairs(row, runs, launch, limit)
    row.more = {"pages of the cloud": statistics.median(pages),
                "share of the cloud": statistics.median(a / b for a, b in zip(pages, row.ours, strict=True))}
    return row


def _expect(output: str, expected: str) -> None:
    if output != expected:
        raise BenchError(f"expected {expected!r}, got {output!r}")
