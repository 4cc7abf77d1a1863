"""What a pool on PostgreSQL costs beside the same one in vm.db, and two hosts at once on a big one.

The limit is the same script on vm.db: the pool is copied to a server on this machine (vmdatabase.py copy), and each
has machines of its own. Must hold: devstack-vm-inprogress within 1.5 times its time on vm.db, and a launch with nothing
to do over 10,000 machines in less than 4 s. The last row is two hosts that launch at the same time, each at a provider
with half of the machines; its limit is one of them alone.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path

import vmdatabase
from bench import latency
from bench.latency import BUILD, SECRET, start_build
from bench.measure import BenchError, Row, pairs, run_script
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support import postgres
from tests.support.pool import Pool, image, provider
from tests.support.postgres import Server

CLOUDS = {"one": "pocket-a", "two": "pocket-b"}
MACHINES = 10_000
AT_ONCE = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the size of the pool and the number of calls in a run."""
    latency.add_arguments(parser)
    parser.add_argument("--machines", type=int, default=MACHINES, metavar="N", help=f"in all ({MACHINES})")


def run(options: argparse.Namespace) -> list[Row]:
    """Measure each script on both databases, then two hosts."""
    with tempfile.TemporaryDirectory() as name, Server(postgres.new_folder() / "server") as server, \
            Pocket(Path(name), "--machines", "none") as pocket, \
            StandIn(Path(name) / "jenkins", knobs={"connect": "instant"}) as stand_in:
        file = Pool(Path(name), pocket, stand_in, address="-")
        start_build(stand_in)
        calls = options.pairs * options.runs + 1
        taken = _fill(file, options.machines, calls)
        address = server.create()
        file.run("vmdatabase.py", "copy", address, expect=0)
        file.run("vmdatabase.py", "moved", expect=0)
        hosts = [Pool(Path(name), pocket, stand_in, address=address) for _ in range(2)]
        for pool, others in zip((hosts[0], file), reversed(taken), strict=True):
            for machine in others:  # whose nodes are taken without this pool's knowledge
                pool.sql("UPDATE machine SET state = 'DELETE' WHERE name = ?", machine)
        rows = [_idle(hosts[0], file, options.machines, options.runs)]
        rows += [_latency(script, arguments, hosts[0], file, taken, calls - 1) for script, arguments in (
            ("devstack-vm-inprogress.py", ()), ("devstack-vm-delete.py", ("--result", "SUCCESS")))]
        rows.append(_two(hosts, options.machines, options.runs))
        return rows


def _fill(pool: Pool, machines: int, calls: int) -> list[list[str]]:
    """Add ready machines at two providers, and some more for builds; return the names of these, in two halves."""
    half = machines // 2
    pool.load(*(provider(name, cloud, max_servers=half + calls, images=[image(min_ready=half)])
                for name, cloud in CLOUDS.items()))
    for place, (name, cloud) in enumerate(CLOUDS.items()):
        for start in range(1, half + 1, AT_ONCE):
            numbers = range(place * half + start, place * half + min(start + AT_ONCE, half + 1))
            pool.add_ready_machines(numbers, provider=name, cloud=cloud)
    taken = [[pool.add_machine(server=False, provider="two") for _ in range(calls)] for _ in range(2)]
    pool.sql("UPDATE machine SET take_hash = ?", vmdatabase.secret_hash(SECRET))
    return taken


def _launch(pool: Pool, provider_name: str, machines: int, row: Row) -> float:
    used = run_script("devstack-vm-launch.py", provider_name, environment=pool.environment, folder=pool.folder)
    if f"of {machines // 2} ready" not in used.output:
        raise BenchError(f"expected {machines // 2} ready, got {used.output!r}")
    if pool.address:
        row.peak_mb.append(used.peak_mb)
    return used.seconds


def _idle(server: Pool, file: Pool, machines: int, runs: int) -> Row:
    """Measure a launch with nothing to do."""
    row = Row(f"launch, nothing to do, {machines // 2} of {machines}")
    for pool in (server, file):
        _launch(pool, "one", machines, row)  # warms the caches
    pairs(row, runs, lambda: _launch(server, "one", machines, row), lambda: _launch(file, "one", machines, row))
    return row


def _latency(script: str, arguments: tuple[str, ...], server: Pool, file: Pool, taken: list[list[str]], count: int
             ) -> Row:
    """Measure a script that a build waits for."""
    row = Row(script.removesuffix(".py"))
    names = {id(pool): iter(half) for pool, half in zip((server, file), taken, strict=True)}

    def call(pool: Pool) -> float:
        used = run_script(script, next(names[id(pool)]), *arguments, environment=pool.environment | BUILD,
                          folder=pool.folder)
        if pool is server:
            row.peak_mb.append(used.peak_mb)
        return used.seconds

    for pool in (server, file):
        call(pool)
    pairs(row, count, lambda: call(server), lambda: call(file))
    return row


def _two(hosts: list[Pool], machines: int, runs: int) -> Row:
    """Measure two hosts that launch at once, each at a provider, beside one host alone."""
    row = Row("two hosts launch at once")
    single: list[float] = []

    def both() -> float:
        began = time.perf_counter()
        threads = [threading.Thread(target=lambda pool=pool, name=name: single.append(
            _launch(pool, name, machines, row)))
                   for pool, name in zip(hosts, CLOUDS, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - began

    pairs(row, runs, both, lambda: _launch(hosts[0], "one", machines, row))
    if len(single) != 2 * runs:
        raise BenchError("a launch failed")
    row.more["the slower of two, from its start to its end"] = statistics.median(
        max(pair) for pair in zip(single[::2], single[1::2], strict=True))
    return row
