"""Reap 500 machines whose builds have ended, at the provider's calls-per-second.

Ours is one devstack-vm-reap.py, as a cold process, that deletes nodes, servers and rows and sees the servers gone. The
limit is a bare loop: the deletes at that rate, then one list a second until nothing is left; no Jenkins, no database.
"""

from __future__ import annotations

import argparse

from bench import fill, site
from bench.measure import Row, pairs
from bench.site import Site

REAP = "devstack-vm-reap.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for how many, and at which rate."""
    parser.add_argument("--machines", type=int, default=500, metavar="N", help="so many (500)")
    parser.add_argument("--calls-per-second", type=float, default=25.0, metavar="N", help="of the provider (25)")
    parser.add_argument("--max-concurrency", type=int, default=16, metavar="N", help="of the provider (16)")


def run(options: argparse.Namespace) -> list[Row]:
    """Return one row."""
    machines = options.machines
    row = Row(f"reap {machines} at {options.calls_per_second:g} calls a second")

    def opened() -> site.Opened:
        return site.opened(machines, max_concurrency=options.max_concurrency,
                           calls_per_second=options.calls_per_second)

    def ours() -> float:
        with opened() as pool:
            _use_up(pool, machines)
            used = pool.run(REAP, "one")
            pool.expect()
            fill.note(row, pool, used.peak_mb, machines)
            return used.seconds

    def limit() -> float:
        with opened() as pool:
            _use_up(pool, machines)
            return pool.run_bare("reap", machines).seconds

    pairs(row, options.runs, ours, limit)
    return [row]


def _use_up(pool: Site, machines: int) -> None:
    """Make machines as devstack-vm-delete leaves them: marked, their nodes out of service."""
    pool.pool.add_ready_machines(range(1, machines + 1), label="devstack-used", temporarilyOffline=True)
    pool.pool.sql("UPDATE machine SET state = 'DELETE'")
    pool.pocket.reset_calls()
