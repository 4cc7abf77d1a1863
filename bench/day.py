"""A pool of one label over several clouds, simulated by the rules that launch follows, with a clock of its own.

Nothing here sleeps or calls a service. How long scripts and clouds take is given in seconds. As in devstack-vm-launch,
pool/demand.py decides which provider gives how many machines, each time that a launch would look.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pool import demand
from pool.demand import Label, Standing
from pool.sight import CUT_OFF_SECONDS

LAUNCH_EVERY, REAP_EVERY = 600.0, 3600.0  # seconds, as in jobs/
EPOCH = 1_790_000_000


def always(_: float) -> bool:
    """Return that a cloud always answers, or always lives."""
    return True


@dataclass(frozen=True)
class Cloud:
    """A provider; times in seconds."""

    name: str
    max_servers: int
    boot: float = 120.0
    delete: float = 10.0
    creates_per_second: float = 5.0
    boot_timeout: float = 900.0
    answers: Callable[[float], bool] = always  # whether it answers a launch or reap that begins at a moment
    lives: Callable[[float], bool] = always  # whether its machines live at a moment


@dataclass(frozen=True)
class Way:
    """How the pool follows its builds; seconds, None if only the clock starts the script."""

    take: float = 0.0  # from a build's start on the machine until inprogress lets it go on
    launch: float | None = 0.0  # from there until the replacement is asked for
    ready: float = 0.0  # from an active server to a machine in Jenkins
    reap: float | None = 0.0  # from a build's end until the delete is asked for


@dataclass
class Machine:
    """A machine; state is BUILDING, READY, USED, GOING or ERROR."""

    cloud: str
    asked: float
    state: str = "BUILDING"
    absent: float | None = None  # since when Jenkins has been seen without its agent


@dataclass
class Story:
    """What happened; times in seconds."""

    waits: list[tuple[float, float]] = field(default_factory=list)  # arrival of a build, and how long it waited
    machine_seconds: float = 0.0
    build_seconds: float = 0.0
    made: Counter[str] = field(default_factory=Counter)  # machines, by provider
    most: Counter[str] = field(default_factory=Counter)  # servers at once, by provider
    most_ready: int = 0  # ready or on their way at once
    end: float = 0.0

    def mean_wait(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the mean wait of the builds that arrived between two moments."""
        found = [wait for arrival, wait in self.waits if since <= arrival < until]
        return sum(found) / len(found) if found else 0.0


class Day:
    """One simulation."""

    def __init__(self, label: Label, clouds: Sequence[Cloud], way: Way) -> None:
        self.label, self.way = label, way
        self.clouds = {cloud.name: cloud for cloud in clouds}
        self.machines: list[Machine] = []
        self.states: dict[str, Counter[str]] = {cloud.name: Counter() for cloud in clouds}  # of machines, by provider
        self.waiting: deque[tuple[float, float]] = deque()  # arrival and length of builds
        self.down: set[str] = set()
        self.on_trial: set[str] = set()
        self.requested: set[str] = set()  # providers whose next launch is scheduled
        self.free_at: dict[str, float] = dict.fromkeys(self.clouds, 0.0)  # when the next create may go out
        self.story = Story()
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, moment: float, what: Callable[[], None]) -> None:
        """Schedule something for a moment."""
        heapq.heappush(self._events, (moment, next(self._order), what))

    def run(self, builds: Iterable[tuple[float, float]], until: float) -> Story:
        """Let builds, (arrival, length), come and go until a moment; return what happened. The pool begins full."""
        for name in self.clouds:
            self._plan(name, full=True)
        for build in builds:
            self.at(build[0], lambda build=build: self._arrive(build))  # type: ignore[misc]
        for place in range(int(until // LAUNCH_EVERY) + 1):
            for name in self.clouds:
                self.at(place * LAUNCH_EVERY, lambda name=name: self._launch(name))  # type: ignore[misc]
        for place in range(int(until // REAP_EVERY) + 1):
            self.at(place * REAP_EVERY + REAP_EVERY / 2, self._reap_all)
        while self._events and self._events[0][0] <= until:
            moment, _, what = heapq.heappop(self._events)
            self._pass(moment)
            what()
            self._note()
        self._pass(until)
        self.story.waits += [(arrival, until - arrival) for arrival, _ in self.waiting]
        self.story.end = until
        return self.story

    def _pass(self, moment: float) -> None:
        self.story.machine_seconds += (moment - self.now) * len(self.machines)
        self.story.build_seconds += (moment - self.now) * self._count("USED")
        self.now = moment

    def _note(self) -> None:
        for name, states in self.states.items():
            self.story.most[name] = max(self.story.most[name], states.total())
        self.story.most_ready = max(self.story.most_ready, self._count("READY") + self._count("BUILDING"))

    def _count(self, state: str) -> int:
        return sum(states[state] for states in self.states.values())

    def _move(self, machine: Machine, state: str) -> None:
        self.states[machine.cloud][machine.state] -= 1
        self.states[machine.cloud][state] += 1
        machine.state = state

    # --- builds ---

    def _arrive(self, build: tuple[float, float]) -> None:
        self.waiting.append(build)
        self._serve()

    def _serve(self) -> None:
        """Give ready machines whose cloud lives to builds that wait, the oldest machine first."""
        if not self.waiting or not self._count("READY"):
            return
        for machine in self.machines:
            if not self.waiting:
                return
            if machine.state == "READY" and self.clouds[machine.cloud].lives(self.now):
                arrival, length = self.waiting.popleft()
                self.story.waits.append((arrival, self.now + self.way.take - arrival))
                self._move(machine, "USED")
                self.at(self.now + self.way.take + length, lambda machine=machine: self._end(machine))  # type: ignore[misc]
                self._request(self.way.take)

    def _request(self, after: float) -> None:
        """Schedule a launch for each provider, unless one is scheduled already."""
        for name in self.clouds if self.way.launch is not None else ():
            if name not in self.requested:
                self.requested.add(name)
                self.at(self.now + after + (self.way.launch or 0.0),
                        lambda name=name: self._launch(name))  # type: ignore[misc]

    def _end(self, machine: Machine) -> None:
        self._move(machine, "GOING")
        if self.way.reap is not None:
            self.at(self.now + self.way.reap, lambda: self._reap(machine.cloud))

    # --- launch ---

    def _standing(self, name: str) -> Standing:
        cloud, states, absent = self.clouds[name], self.states[name], 0
        if name in self.down:
            absent = sum(one.absent is not None and one.state == "READY" for one in self.machines if one.cloud == name)
        return Standing(name, 0, states["READY"], states["BUILDING"], states.total(), cloud.max_servers,
                        down=name in self.down, absent=absent, on_trial=name in self.on_trial)

    def _launch(self, name: str) -> None:
        self.requested.discard(name)
        self._look_at_agents(self.clouds[name])
        if not self.clouds[name].answers(self.now):
            self.down.add(name)
            return
        if name in self.down:
            self.down.discard(name)
            self.on_trial.add(name)
        self._plan(name)

    def _look_at_agents(self, cloud: Cloud) -> None:
        """Note which ready machines Jenkins has lost, and give up those that stay away."""
        lives = cloud.lives(self.now)
        for machine in [one for one in self.machines if one.cloud == cloud.name and one.state == "READY"]:
            if lives:
                machine.absent = None
            elif machine.absent is None:
                machine.absent = self.now
            elif self.now - machine.absent >= CUT_OFF_SECONDS:
                self._fail(machine)

    def _plan(self, name: str, *, full: bool = False) -> None:
        """Have a provider create its share of machines; full: they are ready at once."""
        moment = datetime.fromtimestamp(EPOCH + self.now, UTC)
        _, parts = demand.plan(self.label, moment, len(self.waiting), [self._standing(one) for one in self.clouds])
        for _ in range(next(part.adds for part in parts if part.standing.provider == name)):
            self._create(self.clouds[name], full=full)

    def _create(self, cloud: Cloud, *, full: bool) -> None:
        machine = Machine(cloud.name, self.now, "READY" if full else "BUILDING")
        self.machines.append(machine)
        self.states[cloud.name][machine.state] += 1
        if full:
            return
        self.story.made[cloud.name] += 1
        sent = max(self.now, self.free_at[cloud.name])
        self.free_at[cloud.name] = sent + 1 / cloud.creates_per_second
        self.at(sent + cloud.boot + self.way.ready, lambda: self._booted(machine))

    def _booted(self, machine: Machine) -> None:
        cloud = self.clouds[machine.cloud]
        if not cloud.lives(self.now):
            self.at(machine.asked + cloud.boot_timeout, lambda: self._fail(machine))
            return
        self._move(machine, "READY")
        self.on_trial.discard(cloud.name)
        self._serve()
        self._plan(cloud.name)  # the launch that waited for this boot goes on while it has boots under way

    def _fail(self, machine: Machine) -> None:
        self._move(machine, "ERROR")

    # --- reap ---

    def _reap_all(self) -> None:
        for name in self.clouds:
            self._reap(name)

    def _reap(self, name: str) -> None:
        """Delete the machines that are done, if the cloud answers."""
        cloud = self.clouds[name]
        if not cloud.answers(self.now):
            return
        for machine in [one for one in self.machines if one.cloud == name and one.state in ("GOING", "ERROR")]:
            self._move(machine, "DELETED")
            self.at(self.now + cloud.delete, lambda machine=machine: self._gone(machine))  # type: ignore[misc]

    def _gone(self, machine: Machine) -> None:
        self.machines.remove(machine)
        self.states[machine.cloud][machine.state] -= 1
        self._request(0.0)
