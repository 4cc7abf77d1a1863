"""Runs of scripts as processes, rows of figures, and how they are printed."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
# Runs between the command and this process, which is big: a process's peak memory counts from before its exec.
MEASURE = """
import json, os, pathlib, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, used = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
pathlib.Path(sys.argv[1]).write_text(json.dumps([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
os._exit(os.waitstatus_to_exitcode(status) & 255)
"""


class BenchError(Exception):
    """A measured script did not do its work, so there is no figure."""


@dataclass(frozen=True)
class Usage:
    """The time and memory that one process needed."""

    seconds: float  # from its start to its end
    cpu_seconds: float  # user and system, its children included
    peak_mb: float  # of its resident memory
    output: str  # what it printed on stdout
    status: int = 0


def run_process(command: Sequence[str | Path], environment: Mapping[str, str], folder: Path, *,
                stdin: str | None = None, check: bool = True) -> Usage:
    """Run a command to its end and return what it needed; with check, BenchError with its stderr unless it exits 0.

    Python may keep what it compiles, as on a Jenkins host: otherwise each run would compile the project again.
    """
    variables = {name: value for name, value in environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    words = [sys.executable, "-I", "-c", MEASURE, str(folder / "usage"), *map(str, command)]
    done = subprocess.run(words, env=variables, cwd=folder, input=stdin or "", capture_output=True, text=True,
                          check=False)
    if check and done.returncode:
        raise BenchError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    seconds, cpu_seconds, peak_mb = json.loads((folder / "usage").read_text())
    return Usage(seconds, cpu_seconds, peak_mb, done.stdout, done.returncode)


def run_script(script: str, *arguments: str, environment: Mapping[str, str], folder: Path) -> Usage:
    """Run a script of the project to its end; see run_process."""
    return run_process([sys.executable, PROJECT / script, *arguments], environment, folder)


@dataclass
class Row:
    """The figures of one case; ours and limit hold one value for each run, taken side by side."""

    case: str
    ours: list[float] = field(default_factory=list)  # seconds
    limit: list[float] = field(default_factory=list)  # seconds; empty if there is no limit to compare with
    peak_mb: list[float] = field(default_factory=list)
    calls: list[float] = field(default_factory=list)  # compute calls for each machine
    more: dict[str, Any] = field(default_factory=dict)  # further figures, in seconds unless their name says otherwise

    @property
    def ratio(self) -> float | None:
        """Return the median of ours / limit over the runs, None without a limit or if that is 0."""
        return _median([a / b for a, b in zip(self.ours, self.limit, strict=True) if b]) if self.limit else None

    def as_dict(self) -> dict[str, Any]:
        """Return everything, with the medians, for JSON."""
        return {
            "case": self.case, "seconds": _median(self.ours), "limit_seconds": _median(self.limit), "ratio": self.ratio,
            "peak_mb": _median(self.peak_mb), "compute_calls_per_machine": _median(self.calls),
            "runs": {"ours": self.ours, "limit": self.limit}, **self.more}


def pairs(row: Row, runs: int, ours: Callable[[], float], limit: Callable[[], float] | None = None) -> None:
    """Measure `runs` times, ours and the limit in turn, and report each on stderr."""
    for _ in range(runs):
        row.ours.append(ours())
        if limit:
            row.limit.append(limit())
        told = f", limit {row.limit[-1]:.2f} s" if limit else ""
        print(f"{row.case}, run {len(row.ours)}: {row.ours[-1]:.2f} s{told}", file=sys.stderr, flush=True)


def show(name: str, rows: Sequence[Row], file: Path | None) -> None:
    """Print rows as a table and as JSON, and write the JSON to a file if one is named."""
    columns = ["case", "seconds", "from - to", "limit", "ratio", "peak MB", "calls per machine"]
    cells = [[row.case, _number(_median(row.ours)), f"{min(row.ours):.2f} - {max(row.ours):.2f}",
              _number(_median(row.limit)), _number(row.ratio), _number(_median(row.peak_mb), 0),
              _number(_median(row.calls))] for row in rows]
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for line in [columns, *cells]:
        first, *others = [cell.ljust(width) if index == 0 else cell.rjust(width)
                          for index, (cell, width) in enumerate(zip(line, widths, strict=True))]
        print("  ".join([first, *others]).rstrip())
    for row in rows:
        for key, value in row.more.items():
            print(f"{row.case}: {key}: {_number(value, 3) if isinstance(value, float) else value}")
    document = {"benchmark": name, "runs": len(rows[0].ours), "rows": [row.as_dict() for row in rows]}
    text = json.dumps(document, indent=1)
    print(f"\n{text}")
    if file:
        file.write_text(f"{text}\n")


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
