"""Steady state: an hour of builds over two providers, with the time compressed.

Builds arrive at random (Poisson), take a machine with devstack-vm-inprogress, run, and end with devstack-vm-delete;
devstack-vm-launch runs every 10 minutes and devstack-vm-reap every hour, for both providers, as in jobs/; some boots
fail, some builds fail, and their machines are kept. All are cold processes, and all times are divided by --times,
but what the scripts themselves take is not: their seconds weigh as many times more, but for those of inprogress, which
are counted as they are. `seconds` is what a build waits for its machine, the mean, in simulated seconds. The limit is
the mean of the same hour, the same builds and boots, in a simulation in which every script takes no time.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import sys
import tempfile
import threading
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import measure
from bench.measure import BenchError, Row
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, image, provider

PROVIDERS = {"one": "pocket-a", "two": "pocket-b"}
SECONDS = 3600.0
LAUNCH_EVERY, REAP_EVERY, REAP_AT = 600.0, 3600.0, 1700.0  # seconds, as in jobs/
BOOT_SECONDS, BOOT_FAILURES = 60.0, 0.05
BUILD_SECONDS, BUILD_FAILURES = (900.0, 2100.0), 0.2
MIN_READY, MAX_SERVERS = 11, 60


@dataclass(frozen=True)
class Build:
    """One build of the hour."""

    arrives: float  # seconds from its beginning
    lasts: float
    result: str


@dataclass
class Hour:
    """What happened."""

    waits: list[float] = field(default_factory=list)  # of each build, in simulated seconds
    served: int = 0  # builds that got a machine
    codes: list[tuple[str, int]] = field(default_factory=list)
    peak_mb: float = 0.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for how many builds, and how fast."""
    parser.add_argument("--builds", type=int, default=120, metavar="N", help="that arrive in the hour (120)")
    parser.add_argument("--times", type=float, default=30.0, metavar="N", help="as fast (30: the hour takes 2 minutes)")


def run(options: argparse.Namespace) -> list[Row]:
    """Return one row; each run is another hour."""
    row = Row(f"{options.builds} builds in an hour")
    served: list[float] = []
    worst: list[float] = []
    codes: set[str] = set()
    for number in range(1, options.runs + 1):
        builds = draw(options.builds, number)
        with ExitStack() as stack:
            real = Real(stack, options.times, number)
            hour = real.play(builds)
            row.calls.append(real.calls_per_machine())
        row.ours.append(statistics.fmean(hour.waits))
        row.limit.append(statistics.fmean(ideal(builds, number)))
        row.peak_mb.append(hour.peak_mb)
        served.append(hour.served)
        worst.append(max(hour.waits))
        codes |= {f"{script} {code}" for script, code in hour.codes}
        print(f"{row.case}, run {number}: {served[-1]:.0f} served, waited {row.ours[-1]:.0f} s, "
              f"limit {row.limit[-1]:.0f} s", file=sys.stderr, flush=True)
    row.more = {"builds served": statistics.median(served), "longest wait, simulated seconds": statistics.median(worst),
                "exit codes": ", ".join(sorted(codes))}
    return [row]


def draw(builds: int, seed: int) -> list[Build]:
    """Return the builds of an hour, in the order of their arrival."""
    rng = random.Random(seed)
    arrivals = sorted(rng.uniform(0, SECONDS) for _ in range(builds))
    return [Build(arrival, rng.uniform(*BUILD_SECONDS), "FAILURE" if rng.random() < BUILD_FAILURES else "SUCCESS")
            for arrival in arrivals]


def ideal(builds: list[Build], seed: int) -> list[float]:
    """Return each build's wait if scripts take no time; one that gets no machine waits to the hour's end."""
    rng = random.Random(seed)
    order = itertools.count()
    events: list[tuple[float, int, str, Any]] = []

    def at(moment: float, what: str, about: Any = None) -> None:
        heapq.heappush(events, (moment, next(order), what, about))

    ready = dict.fromkeys(PROVIDERS, MIN_READY)
    booting = dict.fromkeys(PROVIDERS, 0)
    kept = dict.fromkeys(PROVIDERS, 0)  # in use, or of failed builds
    waiting: deque[Build] = deque()
    waits = []
    for build in builds:
        at(build.arrives, "arrival", build)
    for moment in range(0, int(SECONDS), int(LAUNCH_EVERY)):
        at(moment, "launch")
    while events and events[0][0] <= SECONDS:
        now, _, what, about = heapq.heappop(events)
        if what == "arrival":
            waiting.append(about)
        elif what == "launch":
            for name in PROVIDERS:
                missing = min(MIN_READY - ready[name] - booting[name],
                              MAX_SERVERS - ready[name] - booting[name] - kept[name])
                for _ in range(missing):
                    booting[name] += 1
                    at(now + BOOT_SECONDS, "failed boot" if rng.random() < BOOT_FAILURES else "boot", name)
        elif what in ("boot", "failed boot"):
            booting[about] -= 1
            ready[about] += what == "boot"
        elif what == "end":
            kept[about[0]] -= about[1].result == "SUCCESS"
        while waiting and any(ready.values()):
            name = max(ready, key=lambda one: ready[one])
            build = waiting.popleft()
            ready[name] -= 1
            kept[name] += 1
            waits.append(now - build.arrives)
            at(now + build.lasts, "end", (name, build))
    return waits + [SECONDS - build.arrives for build in waiting]


class Real:
    """The hour with the real scripts."""

    def __init__(self, stack: ExitStack, times: float, seed: int) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        self.pocket = stack.enter_context(Pocket(folder, "--machines", "shared-ssh", "--clouds",
                                                 ",".join(PROVIDERS.values())))
        jenkins = stack.enter_context(StandIn(folder / "jenkins", knobs={"connect": "instant"}))
        self.folder, self.times, self.pool = folder, times, Pool(folder, self.pocket, jenkins)
        self.pool.load(*(provider(name, cloud, images=[image(min_ready=MIN_READY)], max_servers=MAX_SERVERS,
                                  boot_timeout=60) for name, cloud in PROVIDERS.items()))
        self.pool.seed_snapshots()
        self.hour = Hour()
        self.lock = threading.Lock()
        for name, cloud in PROVIDERS.items():
            self.script("devstack-vm-launch.py", name)
            self.pocket.knobs(cloud, boot_seconds=BOOT_SECONDS / times, boot_failure_rate=BOOT_FAILURES,
                              random_seed=seed)
            self.pocket.reset_calls(cloud)
        self.began = time.monotonic()
        self.made = self.machines_made()

    def play(self, builds: list[Build]) -> Hour:
        """Let the hour go by and return what happened."""
        self.began = time.monotonic()
        threads = [threading.Thread(target=self.build, args=(build,)) for build in builds]
        threads += [threading.Thread(target=self.again, args=(*what, name)) for name in PROVIDERS for what in (
            ("devstack-vm-launch.py", 0.0, LAUNCH_EVERY), ("devstack-vm-reap.py", REAP_AT, REAP_EVERY))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if wrong := [code for code in self.hour.codes if code[1] not in (0, 1)]:
            raise BenchError(f"exit codes: {wrong}")
        return self.hour

    def now(self) -> float:
        """Return the simulated seconds since the hour began."""
        return (time.monotonic() - self.began) * self.times

    def sleep_until(self, moment: float) -> None:
        """Sleep until a simulated moment, given in seconds."""
        time.sleep(max(0.0, (moment - self.now()) / self.times))

    def again(self, script: str, first: float, every: float, name: str) -> None:
        """Run a script at a moment and then at a fixed interval, in simulated seconds."""
        for moment in range(int(first), int(SECONDS), int(every)):
            self.sleep_until(moment)
            self.script(script, name)

    def build(self, build: Build) -> None:
        """Wait for a machine, run, and give it back."""
        self.sleep_until(build.arrives)
        began = time.monotonic()
        while not (node := self.take()):
            if self.now() > SECONDS:
                self.note(SECONDS - build.arrives, 0)
                return
            time.sleep(0.05)
            began = time.monotonic()
        took = time.monotonic() - began
        self.note(self.now() - build.arrives - took * (self.times - 1), 1)
        self.sleep_until(min(build.arrives + build.lasts, SECONDS))
        self.script("devstack-vm-delete.py", node, "--result", build.result)

    def note(self, waited: float, served: int) -> None:
        """Note how long a build has waited, in simulated seconds."""
        with self.lock:
            self.hour.waits.append(waited)
            self.hour.served += served

    def take(self) -> str:
        """Take a machine for a build and return its node, or '' if there is none now."""
        if not self.pool.sql("SELECT 1 FROM machine WHERE state = 'READY' LIMIT 1"):
            return ""
        return self.script("devstack-vm-inprogress.py", "--image", "noble").partition(" ")[0]

    def script(self, script: str, *arguments: str) -> str:
        """Run a script and return what it printed."""
        with tempfile.TemporaryDirectory(dir=self.folder) as own:
            command = [sys.executable, str(measure.PROJECT / script), *arguments]
            used = measure.run_process(command, self.pool.environment, Path(own), check=False)
        with self.lock:
            self.hour.codes.append((script.removeprefix("devstack-vm-").removesuffix(".py"), used.status))
            self.hour.peak_mb = max(self.hour.peak_mb, used.peak_mb)
        return used.output

    def machines_made(self) -> int:
        """Return how many machines there have ever been."""
        ((count,),) = self.pool.sql("SELECT coalesce(max(id), 0) FROM machine")
        return int(count)

    def calls_per_machine(self) -> float:
        """Return the compute calls of the hour for each machine that was made in it."""
        calls = sum(map(self.pool.compute_calls, PROVIDERS.values()))
        return calls / max(1, self.machines_made() - self.made)
