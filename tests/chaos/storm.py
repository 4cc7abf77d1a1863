"""Rounds: many scripts at once, with faults and signals, all drawn from one seed; an audit after each and in peace."""

import contextlib
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.chaos import audit, faults
from tests.chaos.audit import Violation
from tests.chaos.runs import Run
from tests.chaos.world import (
    DELETE,
    INPROGRESS,
    LAUNCH,
    POOL,
    REAP,
    RUN_SECONDS,
    STORM_BOOT,
    UPDATE,
    VMDATABASE,
    World,
)
from tests.pocketjenkins.client import StandInError

ROUND_SECONDS = 2.0  # the time over which the scripts of a round are started
SIGNALLED = 0.45  # the share of runs that get a signal
SIGNAL_SECONDS = 0.7  # from a run's start to its signal, on average
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
HELD = 3  # most machines held at once
BACKED_UP, RESTORED = 0.3, 0.15  # the shares of rounds before which vm.db is backed up or restored
DAY = 86400


@dataclass
class Tally:
    """The figures of a storm."""

    rounds: int = 0
    peaces: int = 0
    restores: int = 0
    runs: Counter[str] = field(default_factory=Counter)  # by script
    codes: Counter[str] = field(default_factory=Counter)  # by exit code
    faults: Counter[str] = field(default_factory=Counter)  # by name
    signals: Counter[str] = field(default_factory=Counter)  # by name
    builds: Counter[str] = field(default_factory=Counter)  # by result
    environments: Counter[str] = field(default_factory=Counter)  # moves of test environments
    violations: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the figures for people."""
        def counts(counter: Counter[str]) -> str:
            return f"{counter.total()} ({', '.join(f'{name} {count}' for name, count in sorted(counter.items()))})"

        return (f"rounds {self.rounds}, peace {self.peaces} times, restores {self.restores}\n"
                f"runs of scripts {counts(self.runs)}\n"
                f"exit codes {counts(self.codes)}\nfaults {counts(self.faults)}\nsignals {counts(self.signals)}\n"
                f"builds {counts(self.builds)}\nmoves of test environments {counts(self.environments)}\n"
                f"violations {len(self.violations)}")


class Storm:
    """Rounds over one world."""

    def __init__(self, world: World, seed: int, peace_every: int, side_by_side: int = 3) -> None:
        self.world = world
        self.seed = seed
        self.rng = random.Random(seed)
        self.peace_every = peace_every
        self.side_by_side = side_by_side
        self.tally = Tally()
        self.reported: set[Violation] = set()
        self.count = 0

    def run(self, rounds: int) -> Tally:
        """Run a number of rounds; the last one ends in peace."""
        for number in range(1, rounds + 1):
            self.world.events.round = number
            runs = self.round()
            found = audit.any_time(self.world, runs)
            if number % self.peace_every == 0 or number == rounds:
                found += audit.after_peace(self.world, self.world.peace())
                self.tally.peaces += 1
            for violation in found:
                self.report(violation)
            self.tally.rounds = number
        self.tally.environments.update(dict(self.world.pool.sql(
            "SELECT coalesce(from_state, '') || '>' || to_state, count(*) FROM event "
            "WHERE environment IS NOT NULL GROUP BY 1")))
        return self.tally

    def report(self, violation: Violation) -> None:
        """Print a violation with its events, once."""
        if violation in self.reported:
            return
        self.reported.add(violation)
        text = violation.report(self.seed, self.world.events)
        self.tally.violations.append(text)
        print(text, flush=True)

    # --- a round ---

    def round(self) -> list[Run]:
        """Switch faults on, run scripts at once, signal some, switch faults off; returns the ended runs."""
        world, rng = self.world, self.rng
        world.set_boot_timeout(STORM_BOOT)
        self.prepare()
        before = {(one["job"], one["number"]) for one in world.jenkins.look()["builds"]}
        for text in faults.draw(world, rng):
            world.events.add("fault", text=text)
            self.tally.faults[text.partition(":")[0]] += 1
        runs = self.play(sorted(((rng.uniform(0, ROUND_SECONDS), number, action)
                                 for number, action in enumerate(self.actions()))))
        world.calm()
        world.end_builds()
        world.harvest()
        self.count_round(runs, before)
        return runs

    def prepare(self) -> None:
        """Let machines of failed builds age, use up many READY ones, end some holds, and back up or restore vm.db."""
        world, rng = self.world, self.rng
        if rng.random() < 0.7:
            world.pool.sql("UPDATE machine SET state_time = state_time - ? WHERE state = 'USED' AND id % 2 = ? "
                           "AND lead_id IS NULL", DAY, rng.randint(0, 1))
        if rng.random() < 0.3:  # many builds at once have emptied the pool
            world.pool.sql("UPDATE machine SET state = 'DELETE' WHERE state = 'READY' AND id % 3 > 0 "
                           "AND lead_id IS NULL")
        let_go = [node for node, state in world.leads().items() if state == "HOLD" and node not in world.held]
        known = [node for node in world.held if world.machines().get(node) == "HOLD"]  # a restored vm.db can lack it
        waits = world.servers and world.restored  # reap does not find out what is held before `moved`
        if known and len(world.held) > rng.randint(1, HELD) and not waits:
            let_go.append(rng.choice(known))
        for node in let_go:  # also those that a failed `hold` has held nevertheless
            world.held.pop(node, None)
            world.expect_all([world.wait(world.start(VMDATABASE, "unhold", node))])
        self.back_up_or_restore()

    def back_up_or_restore(self) -> None:
        """Back up vm.db now and then, and sometimes restore the backup."""
        world, rng = self.world, self.rng
        if world.backup.exists() and rng.random() < RESTORED:
            world.restore()
            world.backup.unlink()
            self.tally.restores += 1
        elif rng.random() < BACKED_UP:
            world.back_up()

    def actions(self) -> list[Callable[[], list[Run]]]:
        """Draw the actions of a round; each starts something and returns the runs to wait for."""
        rng = self.rng
        providers = list(self.world.providers)
        chosen: list[Callable[[], list[Run]]] = []
        for name in providers * 2:
            chosen += [self.script(LAUNCH, name)] * (rng.random() < 0.7)
            chosen += [self.script(REAP, name)] * (rng.random() < 0.4)
        chosen += [self.script(UPDATE, rng.choice(providers))] * (rng.random() < 0.25)
        chosen += [self.script(VMDATABASE, "load", str(self.world.providers_file))] * (rng.random() < 0.15)
        chosen += [self.ask_for_build] * rng.randint(0, 5)
        chosen += [self.two_builds_at_once] * (rng.random() < 0.3)
        chosen += [self.person_takes] * rng.choice([0, 0, 1, 3])
        chosen += [self.person_holds] * (rng.random() < 0.2)
        return chosen

    def play(self, plan: list[tuple[float, int, Callable[[], list[Run]]]]) -> list[Run]:
        """Start what is due while no more than a few scripts run, send the signals, and wait for all runs."""
        runs: list[Run] = []
        signals: list[tuple[float, Run, int]] = []
        begin = time.monotonic()
        while plan or any(not run.ended.is_set() for run in runs):
            now = time.monotonic()
            running = sum(not run.ended.is_set() for run in runs)
            if plan and plan[0][0] <= now - begin and running < self.side_by_side:
                started = plan.pop(0)[2]()
                runs += started
                signals += [(now + self.rng.expovariate(1 / SIGNAL_SECONDS), run, self.rng.choice(SIGNALS))
                            for run in started if self.rng.random() < SIGNALLED]
            for one in [one for one in signals if one[0] <= now]:
                signals.remove(one)
                one[1].send(one[2])
            for run in runs:
                if not run.ended.is_set() and now - run.started > RUN_SECONDS:
                    self.world.wait(run)
            time.sleep(0.01)
        return runs

    # --- what happens in a round ---

    def script(self, script: str, *arguments: str) -> Callable[[], list[Run]]:
        """Return an action that starts a script."""
        spared = self.rng.random() < 0.4
        return lambda: [self.world.start(script, *arguments, spared=spared)]

    def ask_for_build(self) -> list[Run]:
        """Ask Jenkins for a build, which it starts where and when it can."""
        self.count += 1
        job = f"gate-{self.rng.choice(list(POOL))}-{self.rng.choice(['SUCCESS', 'FAILURE'])}"
        with contextlib.suppress(StandInError, OSError):  # Jenkins can be away
            self.world.jenkins.build(job, ZUUL_CHANGE=str(self.count))
            self.world.events.add("build asked for", job=job)
        return []

    def two_builds_at_once(self) -> list[Run]:
        """Let two builds ask for one machine, besides what Jenkins starts there; often a delete follows them."""
        node = self.a_machine("READY")
        runs = [self.world.start(INPROGRESS, node) for _ in range(2 if node else 0)]
        for run in runs:
            self.note_use(run, node, "two at once")
        if runs and self.rng.random() < 0.7:
            self.world.wait(runs[0])
            self.world.wait(runs[1])
            runs.append(self.world.start(DELETE, node, "--result", self.rng.choice(["SUCCESS", "FAILURE"])))
        return runs

    def person_takes(self) -> list[Run]:
        """Let a person take any machine of an image type."""
        run = self.world.start(INPROGRESS, "--image", self.rng.choice(list(POOL)))
        self.note_use(run, "", "a person")
        return [run]

    def person_holds(self) -> list[Run]:
        """Let a person hold a READY, USED or BUILDING machine; from then on it must stay held.

        The hold does not count if the server is gone: a restored vm.db can have the row of such a machine.
        """
        node = self.a_machine("READY", "USED", "BUILDING")
        if not node or len(self.world.held) >= HELD:
            return []
        key = ["--ssh-key", f"{self.world.pool.key}.pub"] if self.rng.random() < 0.5 else []
        is_there = self.world.pool.column(node, "external_id") in {None, *self.world.servers_there()}
        run = self.world.wait(self.world.start(VMDATABASE, "hold", node, "--reason", "chaos", *key))
        if run.status == 0 and is_there:
            self.world.held[node] = self.world.pool.column(node, "external_id")
        return [run]

    def a_machine(self, *states: str) -> str:
        """Return the name of a machine in one of the states that is not held, empty if there is none."""
        names = [name for name, state in self.world.leads().items()
                 if state in states and name and name not in self.world.held]
        return self.rng.choice(names) if names else ""

    def note_use(self, run: Run, node: str, who: str) -> None:
        """Record that a run let somebody in, if it does."""
        def note() -> None:
            if run.status == 0:
                name = node or next(line.split()[0] for line in run.lines if re.fullmatch(r"\S+ \S+@\S+", line))
                with self.world.let_in.open("a") as stream:
                    stream.write(f"{name} {who} {run.number}\n")

        run.at_end = note

    def count_round(self, runs: list[Run], before: set[tuple[str, int]]) -> None:
        """Add a round's runs and builds to the figures."""
        for run in runs:
            self.tally.runs[run.name.split()[0]] += 1
            self.tally.codes[str(run.status)] += 1
            if run.signalled:
                self.tally.signals[signal.Signals(run.signalled[0]).name] += 1
        for one in self.world.jenkins.look()["builds"]:
            if (one["job"], one["number"]) not in before:
                self.tally.builds[str(one["result"])] += 1
                self.world.events.add("build", job=one["job"], number=one["number"], node=one["node"],
                                      result=one["result"], console=one["console"][-2000:])
