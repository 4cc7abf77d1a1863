"""Measure how fast the scripts are, beside the limit, and print a table and JSON.

    bench/run fill             fill 10, 100 and 500 machines
    bench/run fill --help      what a benchmark measures, and its options

Each figure is the median of --runs runs; a limit, and its ratio, is measured in turn with it. Needs root, as tests do.
Exit codes: 0 measured, 1 something did not do its work, 2 wrong use.
"""

from __future__ import annotations

import argparse
import importlib
import re
import signal
import sys
from pathlib import Path

from bench import measure

BENCHMARKS = ("fill", "groups", "refill", "steady", "reap", "idle", "latency", "workspace", "image", "status",
              "turnover", "hosts")


def main(argv: list[str] | None = None) -> int:
    """Run one benchmark and return the exit code."""
    parser = argparse.ArgumentParser(prog="bench/run", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(title="benchmarks", metavar="NAME", required=True, dest="name")
    for name in BENCHMARKS:
        module = importlib.import_module(f"bench.{name}")
        about = str(module.__doc__)
        command = commands.add_parser(name, help=about.splitlines()[0], description=about,
                                      formatter_class=argparse.RawDescriptionHelpFormatter)
        command.add_argument("--runs", type=_runs, default=5, metavar="N", help="the median is of so many (5)")
        command.add_argument("--json", type=Path, metavar="FILE",
                             help="where to write the figures, too; from the folder of the project on")
        command.set_defaults(run=module.run)
        module.add_arguments(command)
    options = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clouds and folders are cleaned up
    try:
        rows = options.run(options)
    except measure.BenchError as err:
        print(err, file=sys.stderr)
        return 1
    measure.show(options.name, rows, options.json)
    return 0


def _runs(text: str) -> int:
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!a}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
