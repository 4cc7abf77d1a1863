"""Fill an empty pool of 1 group and of 30 groups of three servers that take 20 s to boot.

Ours is one devstack-vm-launch.py, as a cold process, until every group is READY and its first machine a node of
Jenkins. The limit is the same script with machines that are no groups: one for one group, since a group boots side by
side, and as many machines as there are servers for more.
"""

from __future__ import annotations

import argparse

from bench import site
from bench.fill import LAUNCH, add_cloud_arguments, cloud_of, note
from bench.measure import Row, pairs
from tests.support.pool import image


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for sizes and cloud."""
    parser.add_argument("--groups", type=int, nargs="+", default=[1, 30], metavar="N")
    parser.add_argument("--subnodes", type=int, default=2, metavar="N", help="of each group (2)")
    add_cloud_arguments(parser)


def run(options: argparse.Namespace) -> list[Row]:
    """Return a row for each size."""
    rows = []
    for groups in options.groups:
        servers = groups * (1 + options.subnodes)
        row = Row(f"{groups} group{'s' * (groups > 1)} of {1 + options.subnodes}")

        def ours(groups: int = groups, servers: int = servers, row: Row = row) -> float:
            images = [image(min_ready=groups, subnodes=options.subnodes)]
            with site.opened(servers, images=images, **cloud_of(options)) as empty:
                used = empty.run(LAUNCH, "one")
                empty.expect(READY=servers)
                note(row, empty, used.peak_mb, servers)
                return used.seconds

        def limit(machines: int = 1 if groups == 1 else servers) -> float:
            with site.opened(machines, **cloud_of(options)) as empty:
                used = empty.run(LAUNCH, "one")
                empty.expect(READY=machines)
                return used.seconds

        pairs(row, options.runs, ours, limit)
        rows.append(row)
    return rows
