"""The benchmarks measure something, with small pools; how fast they are does not matter here."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.pool import PROJECT

LIMIT_SECONDS = 600  # to find a hang
BENCHMARKS = {
    "fill": ["--machines", "3", "--serial", "3", "--boot", "0.5"],
    "groups": ["--groups", "1", "--boot", "0.5"],
    "refill": ["--boot", "0.5"],
    "steady": ["--builds", "4", "--times", "720"],
    "reap": ["--machines", "3"],
    "idle": ["--machines", "2", "5"],
    "latency": ["--pairs", "1"],
    "workspace": ["--megabytes", "0.2", "--commits", "20"],
    "image": [],
    "turnover": ["--hours", "0.5", "--min-ready", "4"],
    "hosts": ["--machines", "4", "--pairs", "1"],
    "status": ["--days", "1", "--builds", "60", "--providers", "2"],
}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_prints_a_table_and_the_same_as_json(tmp_path: Path, name: str) -> None:
    file = tmp_path / "figures.json"
    command = [str(PROJECT / "bench/run"), name, "--runs", "1", "--json", str(file), *BENCHMARKS[name]]

    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    assert done.returncode == 0, done.stderr
    table, _, text = done.stdout.partition("\n{")
    assert json.loads("{" + text) == json.loads(file.read_text())
    figures = json.loads(file.read_text())
    assert figures["benchmark"] == name
    for row in figures["rows"]:
        assert (row["seconds"] > 0, row["peak_mb"] > 0, row["case"] in table) == (True, True, True)


def test_what_does_not_do_its_work_is_no_figure(tmp_path: Path) -> None:
    """A benchmark with a wrong option fails, and prints no figure."""
    command = [str(PROJECT / "bench/run"), "fill", "--runs", "1", "--machines", "1", "--max-concurrency", "0"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False)

    assert (done.returncode, done.stdout) == (1, "")
    assert "max-concurrency" in done.stderr
