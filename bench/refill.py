"""Refill a pool of 100 ready machines after 50 of them were used.

Ours is one devstack-vm-launch.py, as a cold process, until the 50 are READY and nodes of Jenkins. The limit is the bare
loop of `fill` for 50 machines, beside the 100 that are there.
"""

from __future__ import annotations

import argparse

from bench import fill, site
from bench.measure import Row, pairs
from bench.site import Site

READY, USED = 100, 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the cloud."""
    fill.add_cloud_arguments(parser)


def run(options: argparse.Namespace) -> list[Row]:
    """Return one row."""
    row = Row(f"refill {USED} of {READY}")

    def ours() -> float:
        with site.opened(READY + USED, min_ready=READY, **fill.cloud_of(options)) as pool:
            _use(pool)
            used = pool.run(fill.LAUNCH, "one")
            pool.expect(READY=READY, USED=USED)
            fill.note(row, pool, used.peak_mb, USED)
            return used.seconds

    def limit() -> float:
        with site.opened(READY + USED, min_ready=READY, **fill.cloud_of(options)) as pool:
            _use(pool)
            return pool.run_bare("fill", USED).seconds

    pairs(row, options.runs, ours, limit)
    return [row]


def _use(pool: Site) -> None:
    pool.pool.add_ready_machines(range(1, READY + 1))
    pool.pool.sql("UPDATE machine SET state = 'USED' WHERE id <= ?", USED)
    pool.pocket.reset_calls()
