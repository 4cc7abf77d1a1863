"""Build and prove one image, whose packages are there already, on a cloud that takes no time of its own.

Ours is one devstack-vm-update-image.py, as a cold process, until the snapshot is proven; nothing is cached, and apt-get
has nothing to do, so that what is left is the machinery round the steps. The seconds of each step are measured from the
moments at which its lines come. The limit is what the cloud takes for the same machines, and no step at all: boot the
base image until ssh lets in and runs a command, snapshot until active, boot the snapshot until ssh lets in. It looks
every 20 ms, with a client that is logged in already. A build takes some seconds, so --runs 3 will do.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.measure import PROJECT, BenchError, Row, pairs
from tests.pocketcloud.client import Pocket
from tests.support.pool import NO_APT, Pool, await_that, clear_cloud, image, provider
from tests.support.waiting import LEAST_SECONDS

UPDATE = "devstack-vm-update-image.py"
CLOUD = "pocket-a"
BEGINS, ENDS = re.compile(r" image=noble (.+) \.\.\.\n"), re.compile(r" image=noble (.+): \d+\.\d s\n")
BOOT_SECONDS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add no options: there is only --runs."""


def run(options: argparse.Namespace) -> list[Row]:
    """Return the row of a build, with the seconds of each step."""
    if os.geteuid():
        raise BenchError("needs root: machines are namespaces")
    row = Row("one image")
    steps: dict[str, list[float]] = defaultdict(list)
    limits: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        with Pocket(folder, "--machines", "namespace", "--clouds", CLOUD) as pocket:
            (folder / "user-data.sh").write_text(NO_APT)
            pool = Pool(folder, pocket)
            pool.load(provider(images=[image(user_data="user-data.sh")]))

            def ours() -> float:
                _clear(pool)
                seconds, peak_mb = _build(pool, steps)
                row.peak_mb.append(peak_mb)
                return seconds

            def limit() -> float:
                _clear(pool)
                return _boot_and_snapshot(pool, limits)

            pairs(row, options.runs, ours, limit)
    row.more = {name: statistics.median(values) for name, values in steps.items()}
    row.more |= {f"limit: {name}": statistics.median(values) for name, values in limits.items()}
    return [row]


def _clear(pool: Pool) -> None:
    """Wait until all servers are gone, then clear the cloud."""
    await_that("the servers to be gone", lambda: not pool.servers(CLOUD), BOOT_SECONDS)
    assert pool.pocket
    clear_cloud(pool.pocket, CLOUD)


def _build(pool: Pool, steps: dict[str, list[float]]) -> tuple[float, float]:
    """Build an image; return its seconds and MB, and add the seconds of each step to `steps`."""
    lines = []
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, PROJECT / UPDATE, "-v", "one"], env=pool.environment, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr
    with process.stderr:
        for line in process.stderr:
            lines.append((time.perf_counter() - began, line))
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise BenchError(f"{UPDATE}: exit code {process.returncode}\n{''.join(line for _, line in lines)}")
    parts = dict(_steps(lines))
    steps["before the first step"].append(min(at for at, line in lines if BEGINS.search(line)))
    for name, took in parts.items():
        steps[name].append(took)
    steps["between steps"].append(seconds - sum(parts.values()) - steps["before the first step"][-1])
    return seconds, used.ru_maxrss / 1024


def _steps(lines: Sequence[tuple[float, str]]) -> Iterator[tuple[str, float]]:
    """Yield name and seconds of each step whose begin and end are in the log lines."""
    begun: dict[str, float] = {}
    for at, line in lines:
        if found := BEGINS.search(line):
            begun[found[1]] = at
        elif (found := ENDS.search(line)) and found[1] in begun:
            yield found[1], at - begun[found[1]]


def _boot_and_snapshot(pool: Pool, steps: dict[str, list[float]]) -> float:
    """Boot a machine, make its snapshot and boot that; return the seconds, and add those of each part to `steps`."""
    connection = pool.client(CLOUD)
    connection.compute.create_keypair(name="bench", public_key=pool.key.with_suffix(".pub").read_text())
    base = connection.image.find_image("Debian 12").id
    began = time.perf_counter()
    template = _boot(pool, connection, base)
    booted = time.perf_counter()
    snapshot = connection.compute.create_server_image(template, "bench", wait=False).id
    await_that("the snapshot", lambda: connection.image.get_image(snapshot).status == "active", BOOT_SECONDS,
               most=LEAST_SECONDS)
    active = time.perf_counter()
    connection.compute.delete_server(template)
    machine = _boot(pool, connection, snapshot)
    proven = time.perf_counter()
    connection.compute.delete_server(machine)
    for name, took in (("boot", booted - began), ("snapshot", active - booted), ("boot of it", proven - active)):
        steps[name].append(took)
    return proven - began


def _boot(pool: Pool, connection: Any, image_id: str) -> str:
    """Boot a machine, wait until ssh runs a command there, and return its id."""
    server = connection.compute.create_server(
        name="bench", image_id=image_id, flavor_id="1", key_name="bench",
        networks=[{"uuid": connection.network.find_network("private").id}])
    address = await_that("the machine to be ACTIVE", lambda: _address(connection, server.id), BOOT_SECONDS,
                         most=LEAST_SECONDS)
    await_that("ssh", lambda: pool.ssh(address, "true", user="debian").returncode == 0, BOOT_SECONDS,
               most=LEAST_SECONDS)
    return str(server.id)


def _address(connection: Any, server_id: str) -> str:
    server = connection.compute.get_server(server_id)
    return server.addresses["private"][0]["addr"] if server.status == "ACTIVE" else ""
