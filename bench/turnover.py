"""Turnover: hours of builds over three providers; what is taken is replaced, and what is spent goes.

`seconds` is what a build waits, the mean, with ours: Jenkins starts devstack-vm-launch when a build has taken a
machine, and devstack-vm-reap when one has ended. The limit is Nodepool's rule: a machine is
replaced the moment it is taken and deleted the moment its build ends, while boot, login, registration and the first
step of a build take what they take here. Beside it stands the clock-only way: launch every 10 minutes, reap every hour.

This is a simulation with a clock of its own. The decisions are pool/demand.py's, as launch makes them; how long the
scripts take is measured first, by real ones as cold processes against a cloud and a Jenkins on loopback: from a taken
machine to the create of the next, from an active server to a READY machine, from a build's end to the delete. Jenkins'
own part, the quiet period of jobs/, is added. All three ways get the same builds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from bench import measure, site
from bench.day import Cloud, Day, Story, Way
from bench.measure import BenchError, Row
from bench.site import Site
from pool.demand import EVEN, NONE, Label
from tests.support.pool import await_that
from tests.support.waiting import LEAST_SECONDS

PROVIDERS = ("one", "two", "three")
QUIET_SECONDS = 1.0  # as in jobs/
BUILD_SECONDS = (900.0, 2100.0)
MAX_SERVERS = 80  # of each provider: the clock alone keeps spent machines for up to an hour
BOOT_SECONDS = 2.0  # of the machines with which the scripts are measured
AWAIT_SECONDS = 60


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for how many builds, for how long, and which pools."""
    parser.add_argument("--builds", type=int, default=200, metavar="N", help="that arrive in an hour (200)")
    parser.add_argument("--hours", type=float, default=8.0, metavar="N", help="that each run lasts (8)")
    parser.add_argument("--min-ready", type=int, nargs="+", default=[20, 12, 30], metavar="N",
                        help="of the label, over all providers (20 12 30)")
    parser.add_argument("--boot", type=float, default=120.0, metavar="SECONDS", help="of a machine (120)")


def run(options: argparse.Namespace) -> list[Row]:
    """Return a row for each min-ready."""
    taken = [measured() for _ in range(min(options.runs, 3))]
    costs = {name: statistics.median(one[name] for one in taken) for name in taken[0]}
    common = {"take": costs["take"], "ready": costs["ready"]}
    ways = {"ours": Way(**common, launch=QUIET_SECONDS + costs["launch"], reap=QUIET_SECONDS + costs["reap"]),
            "limit": Way(**common), "clock": Way(**common, launch=None, reap=None)}
    rows = [case(options, min_ready, ways, costs) for min_ready in options.min_ready]
    for row in rows:
        row.peak_mb.append(costs["peak_mb"])
    return rows


def case(options: argparse.Namespace, min_ready: int, ways: Mapping[str, Way], costs: Mapping[str, float]) -> Row:
    """Return the row of one min-ready: each run has other builds, the same for all ways."""
    row = Row(f"{options.builds} builds an hour, {min_ready} ready")
    minutes: dict[str, list[float]] = {name: [] for name in ways}
    waits: list[float] = []
    for seed in range(1, options.runs + 1):
        stories = {name: play(options, min_ready, way, seed) for name, way in ways.items()}
        row.ours.append(stories["ours"].mean_wait())
        row.limit.append(stories["limit"].mean_wait())
        waits.append(stories["clock"].mean_wait())
        for name, story in stories.items():
            minutes[name].append(story.machine_seconds / story.build_seconds)
        print(f"{row.case}, run {seed}: waits {row.ours[-1]:.2f} s, limit {row.limit[-1]:.2f} s, clock only "
              f"{waits[-1]:.0f} s", file=sys.stderr, flush=True)
    ratio = statistics.median(a / b for a, b in zip(minutes["ours"], minutes["limit"], strict=True))
    row.more = {
        **{f"machine-minutes for each build-minute, {name}": statistics.median(found)
           for name, found in minutes.items()},
        "machine-minutes, ratio to the limit": ratio, "wait with the clock only, seconds": statistics.median(waits),
        **{f"measured: {name}": costs[name] for name in ("take", "launch", "ready", "reap")}}
    return row


def play(options: argparse.Namespace, min_ready: int, way: Way, seed: int) -> Story:
    """Return what happens in one run."""
    rng = random.Random(seed)
    seconds = options.hours * 3600
    builds = sorted((rng.uniform(0, seconds), rng.uniform(*BUILD_SECONDS))
                    for _ in range(round(options.builds * options.hours)))
    clouds = [Cloud(name, MAX_SERVERS, options.boot) for name in PROVIDERS]
    return Day(Label("noble", min_ready, min_ready, NONE, EVEN), clouds, way).run(builds, seconds)


# --- what the scripts take -------------------------------------------------------------------------------------------


def measured() -> dict[str, float]:
    """Return how long scripts take for one machine's turn, in seconds, and the peak memory of the largest in MB."""
    with site.opened(4, min_ready=1, knobs={"boot_seconds": BOOT_SECONDS}) as pool:
        first = start(pool, "devstack-vm-launch.py", "one")
        ready_at = seen(pool, "READY")
        (created,) = requests(pool, "POST", "/servers")
        finish(first)
        name = next(iter(pool.pool.machines()))
        took = pool.run("devstack-vm-inprogress.py", name)
        began = time.monotonic()
        launch = pool.run("devstack-vm-launch.py", "one")
        replaced = requests(pool, "POST", "/servers")[1]
        ended = time.monotonic()
        pool.run("devstack-vm-delete.py", name, "--result", "SUCCESS")
        reap = pool.run("devstack-vm-reap.py", "one")
        deleted = requests(pool, "DELETE", "/servers/")[0]
        return {"take": took.seconds, "launch": replaced - began, "ready": ready_at - created - BOOT_SECONDS,
                "reap": deleted - ended, "peak_mb": max(one.peak_mb for one in (took, launch, reap))}


def start(pool: Site, script: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a script without measuring it; Python may keep what it compiles."""
    environment = {name: value for name, value in pool.pool.environment.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, str(measure.PROJECT / script), *arguments]
    return subprocess.Popen(command, env=environment, cwd=pool.folder, stdin=subprocess.DEVNULL, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for the end of a script; BenchError if it failed."""
    _, err = process.communicate(timeout=AWAIT_SECONDS)
    if process.returncode:
        raise BenchError(f"exit code {process.returncode}\n{err}")


def seen(pool: Site, state: str) -> float:
    """Wait until a machine is in a state, and return that moment on the monotonic clock."""
    await_that(state, lambda: state in pool.pool.machines().values(), AWAIT_SECONDS, most=LEAST_SECONDS)
    return time.monotonic()


def requests(pool: Site, method: str, path: str) -> list[float]:
    """Return when the cloud was asked for something, in the order of its requests, on the monotonic clock."""
    found: list[dict[str, Any]] = [one for one in pool.pocket.look()["requests"]
                                   if one["method"] == method and one["path"].startswith(path)]
    return [float(one["time"]) for one in found]
