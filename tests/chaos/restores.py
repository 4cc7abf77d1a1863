"""Restores: vm.db is backed up at some moment of an hour of traffic; at the end, the backup takes its place.

At that time builds run and machines are held. No script may end them or touch other people's things, whatever runs
before a person has said that the restore was on purpose. After that, reap and launch must agree with cloud and Jenkins
again within two runs.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress

from tests.chaos import audit
from tests.chaos.audit import State, Violation
from tests.chaos.runs import Run
from tests.chaos.world import IMAGES, INPROGRESS, LAUNCH, POOL, REAP, UPDATE, VMDATABASE, World
from tests.pocketjenkins.client import StandInError
from tests.support.pool import await_that

STEP_SECONDS = 300  # by which everything ages between two steps of traffic
STEPS = 12  # an hour
RUNNING, HELD = 3, 3  # most long builds and most held machines
SETTLE_SECONDS = 300  # to find a hang; on a busy machine launch waits for boots, and again for late ones


class Restores:
    """Restores of one world, one after the other."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        self.rng = random.Random(seed)
        self.named: dict[str, str] = {}  # server ids by name: a name with two ids is a violation
        self.figures: Counter[str] = Counter()

    def run(self, count: int) -> int:
        """Restore `count` times; prints violations and figures, returns the number of violations."""
        wrong = 0
        for number in range(1, count + 1):
            self.world.events.round = number
            found = self.restore()
            for violation in found:
                print(violation.report(self.seed, self.world.events), flush=True)
            wrong += len(found)
        print(", ".join(f"{value} {name}" for name, value in sorted(self.figures.items())))
        return wrong

    def restore(self) -> list[Violation]:
        """Let an hour go by, restore, and return what is wrong afterwards."""
        world, rng = self.world, self.rng
        moment = rng.randrange(STEPS)
        for step in range(STEPS):
            if step == moment:
                world.back_up()
            self.traffic()
        self.settle()
        inside = self.in_use()
        self.figures["machines in use"] += len(inside)
        self.figures["restores"] += 1
        world.restore()
        world.age(STEP_SECONDS * rng.choice([0, 4]))  # within or after reap's grace for what has no row
        runs: list[Run] = []
        for script in rng.choices([REAP, REAP, LAUNCH, UPDATE], k=rng.randint(0, 2)):
            runs += world.runs(script)
        found = [*audit.any_time(world, runs), *self.missing(inside, "before a word was said")]
        world.age(STEP_SECONDS * 4)
        world.say_moved()
        first = rng.sample([REAP, LAUNCH], 2)
        agreed = [run for script in (*first, REAP, LAUNCH) for run in world.runs(script)]
        state = State(world)
        found += [*audit.any_time(world, agreed), *self.missing(inside, "after the word"),
                  *audit.of_machines(world, state), *audit.of_pool(world, state), *audit.of_nodes(world, state),
                  *audit.of_snapshots(world, state), *self.twice()]
        for cloud in world.providers.values():
            found += audit.of_cloud(world, state, cloud)
        world.stop_builds()
        return [*found, *audit.after_peace(world, world.peace()), *self.twice()]

    def settle(self) -> None:
        """Wait until all running builds are past their first step, and those of launch and reap have ended."""
        def past() -> bool:
            let_in = self.world.let_in.read_text().splitlines()
            return all(f"{one['node']} {one['job']} #{one['number']}" in let_in for one in self.running())

        await_that("builds to be past their first step", past, SETTLE_SECONDS)

    def running(self) -> list[audit.Row]:
        """Return the running builds."""
        return [one for one in self.world.jenkins.look()["builds"] if one["building"]]

    def in_use(self) -> dict[str, str]:
        """Return {server id: who has it} of all servers that run a build or are held."""
        by_name = {one["name"]: one["id"] for one in self.servers()}
        used = {by_name[one["node"]]: f"{one['job']} #{one['number']}" for one in self.running()
                if one["node"] in by_name}
        return used | {by_name[name]: "a person" for name in self.world.held if name in by_name}

    def servers(self) -> Iterable[audit.Row]:
        """Return our servers that are not being deleted."""
        return [one for cloud in self.world.providers.values() for one in self.world.pocket.look(cloud)["servers"]
                if one["metadata"].get("devstack-gate-pool") == self.world.uuid and one["task_state"] != "deleting"]

    def missing(self, inside: dict[str, str], when: str) -> list[Violation]:
        """Return a violation for each server in use that is gone, and for each of its builds that has ended."""
        there = {one["id"] for one in self.servers()}
        running = {f"{one['job']} #{one['number']}" for one in self.running()}
        gone = [Violation("restore", f"{when}: server {server} of {who} is gone", (server,))
                for server, who in inside.items() if server not in there]
        return gone + [Violation("restore", f"{when}: {who} on server {server} has ended", (server,))
                       for server, who in inside.items() if who not in running and who != "a person"]

    def twice(self) -> list[Violation]:
        """Return a violation for each name that two servers were given."""
        found = []
        for one in self.servers():
            if re.search("-[0-9]+$", one["name"]) and self.named.setdefault(one["name"], one["id"]) != one["id"]:
                found.append(Violation("names", f"{one['name']} was given twice", (one["name"],)))
        return found

    # --- traffic ---

    def traffic(self) -> None:
        """Let five minutes go by, and do one to three things."""
        self.world.age(STEP_SECONDS)
        chosen: list[Callable[[], object]] = [
            self.launch, self.launch, self.reap, self.build, self.build, self.long_build, self.take, self.hold,
            self.unhold, self.update]
        for action in self.rng.choices(chosen, weights=[4, 4, 3, 4, 4, 3, 1, 2, 1, 1], k=self.rng.randint(1, 3)):
            action()
        self.twice()

    def launch(self) -> None:
        self.world.runs(LAUNCH)

    def reap(self) -> None:
        self.world.runs(REAP)

    def update(self) -> None:
        provider, image = self.rng.choice(list(self.world.providers)), self.rng.choice(list(IMAGES))
        self.world.wait(self.world.start(UPDATE, provider, "--image", image, spared=True, limits={}))

    def build(self) -> None:
        """Run a build that succeeds or fails, if there is a machine for it."""
        self.ask(self.rng.choice(["SUCCESS", "FAILURE"]))

    def long_build(self) -> None:
        """Start a build that runs until it is stopped."""
        if len(self.running()) < RUNNING:
            self.ask("ABORTED")

    def ask(self, result: str) -> None:
        job = f"gate-{self.rng.choice(list(POOL))}-{result}"
        with suppress(StandInError):
            item = self.world.jenkins.build(job, ZUUL_CHANGE=str(self.rng.randrange(10**9)))
            build = self.world.jenkins.wait_started(item, 3)
            if result != "ABORTED":
                self.world.jenkins.wait_build(job, build["number"])
            self.figures["builds"] += 1

    def take(self) -> None:
        self.world.wait(self.world.start(INPROGRESS, "--image", self.rng.choice(list(POOL)), spared=True))

    def hold(self) -> None:
        names = [name for name, state in self.world.leads().items()
                 if state in ("READY", "USED", "ERROR") and name not in self.world.held]
        if names and len(self.world.held) < HELD:
            name = self.rng.choice(names)
            self.world.expect_all([self.world.wait(self.world.start(
                VMDATABASE, "hold", name, "--reason", "chaos", spared=True))])
            self.world.held[name] = self.world.pool.column(name, "external_id")
            self.figures["holds"] += 1

    def unhold(self) -> None:
        if self.world.held:
            name = self.rng.choice(list(self.world.held))
            del self.world.held[name]
            self.world.expect_all([self.world.wait(self.world.start(VMDATABASE, "unhold", name, spared=True))])
