"""Fill an empty pool of 10, 100 and 500 machines that take 20 s to boot.

Ours is one devstack-vm-launch.py, as a cold process, until every machine is READY and a node of Jenkins. The limit is a
bare loop in one process: creates as many at once as max-concurrency, one list a second, one login with the same command
as soon as a machine is ACTIVE; no database, no Jenkins, nothing else. The serial baseline is the original's way: one
create a second, then rounds of a GET for each machine, one login after the other, 3 s between rounds; with --patient
the 3 s come after each GET.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

from bench import site
from bench.measure import Row, pairs
from bench.site import Site

LAUNCH = "devstack-vm-launch.py"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for sizes and cloud."""
    parser.add_argument("--machines", type=int, nargs="+", default=[10, 100, 500], metavar="N")
    parser.add_argument("--serial", type=int, nargs="*", default=[100], metavar="N",
                        help="of these sizes the serial baseline, too (100)")
    parser.add_argument("--patient", action="store_true", help="the baseline waits after each GET")
    add_cloud_arguments(parser)


def add_cloud_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the cloud."""
    parser.add_argument("--boot", type=float, default=20.0, metavar="SECONDS", help="that a machine takes to boot (20)")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="of each call to the cloud (0)")
    parser.add_argument("--max-concurrency", type=int, default=16, metavar="N", help="of the provider (16)")


def cloud_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the cloud and the provider for `site.opened`."""
    return {"max_concurrency": options.max_concurrency,
            "knobs": {"boot_seconds": options.boot, "latency_seconds": options.latency}}


def run(options: argparse.Namespace) -> list[Row]:
    """Return a row for each size."""
    rows = []
    for machines in options.machines:
        row = Row(f"fill {machines}")
        serial: list[float] = []

        def ours(machines: int = machines, row: Row = row) -> float:
            with site.opened(machines, **cloud_of(options)) as empty:
                used = empty.run(LAUNCH, "one")
                empty.expect(READY=machines)
                note(row, empty, used.peak_mb, machines)
                return used.seconds

        def limit(loop: str = "fill", machines: int = machines) -> float:
            with site.opened(machines, **cloud_of(options)) as empty:
                return empty.run_bare(loop, machines).seconds

        for _ in range(options.runs):
            pairs(row, 1, ours, limit)
            if machines in options.serial:
                serial.append(limit("patient" if options.patient else "serial"))
        if serial:
            row.more["serial baseline"] = statistics.median(serial)
            row.more["times faster than the serial baseline"] = statistics.median(
                slow / fast for slow, fast in zip(serial, row.ours, strict=True))
        rows.append(row)
    return rows


def note(row: Row, at: Site, peak_mb: float, machines: int) -> None:
    """Note what a run needed besides time."""
    row.peak_mb.append(peak_mb)
    row.calls.append(at.pool.compute_calls() / machines)
