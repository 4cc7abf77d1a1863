"""Write the status page of a pool that has run for 90 days with 4,000 builds a day at 14 providers.

Must hold: less than 10 s and 400 MB, and files of less than 3 MB together. Further figures: the size of vm.db, the
history of one node and of a day of a provider as cold processes, and how long one day of events takes to prune.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import vmdatabase
from bench import pasthistory
from bench.measure import BenchError, Row, pairs, run_script
from pool import history
from tests.support.pool import Pool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for how much history there is."""
    parser.add_argument("--days", type=int, default=90, metavar="N", help="of history (90)")
    parser.add_argument("--builds", type=int, default=4000, metavar="N", help="a day (4,000)")
    parser.add_argument("--providers", type=int, default=14, metavar="N", help="14")


def run(options: argparse.Namespace) -> list[Row]:
    """Return one row."""
    row = Row(f"{options.days} days of {options.builds} builds")
    with tempfile.TemporaryDirectory() as name:
        pool = Pool(Path(name))
        pasthistory.write(pool.database, pasthistory.Past(options.days, options.builds, options.providers))
        page = Path(name) / "status"

        def script(command: str, *arguments: str) -> float:
            used = run_script(command, *arguments, environment=pool.environment, folder=pool.folder)
            row.peak_mb.append(used.peak_mb)
            return used.seconds

        script("devstack-vm-status.py", "--output", str(page))  # warms the disk, and matplotlib's list of fonts
        row.peak_mb.clear()
        pairs(row, options.runs, lambda: script("devstack-vm-status.py", "--output", str(page)))
        shown = page / "index.html"
        if not shown.exists():
            raise BenchError(f"{shown}: there is no page")
        ((node,),) = pool.sql("SELECT node_name FROM event WHERE to_state = 'USED' ORDER BY id DESC LIMIT 1")
        memory = list(row.peak_mb)
        row.more = {
            "files, MB": sum(file.stat().st_size for file in _shown_files(page)) / 1e6,
            "vm.db, MB": pool.database.stat().st_size / 1e6,
            "history of a node": script("vmdatabase.py", "history", node),
            "history of a provider, one day": script(
                "vmdatabase.py", "history", "--provider", "cloud-00", "--since", "1d"),
            "pruning of one day": _prune_a_day(pool, options.days),
        }
        row.peak_mb[:] = memory
    return [row]


def _shown_files(page: Path) -> list[Path]:
    """Return the files of the page as it is now, without pictures that it no longer shows."""
    text = (page / "index.html").read_text()
    return [file for file in page.iterdir() if file.suffix != ".svg" or file.name in text]


def _prune_a_day(pool: Pool, days: int) -> float:
    """Return how long it takes to delete the oldest day's events, in this process."""
    pool.sql("INSERT OR REPLACE INTO setting (name, value) VALUES ('history-days', ?)", str(max(1, days - 1)))
    with vmdatabase.opened(pool.database):
        began = time.perf_counter()
        history.prune(time.time())
        os.sync()
        return time.perf_counter() - began
