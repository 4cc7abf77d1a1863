"""One run for each point: a script gets a signal between two outside calls; then peace is made, then the audit.

Points are counted from the start of a run (see points.py); a scenario is over when a run ends before its point.
"""

import argparse
import itertools
import signal
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from tests.chaos import audit, points
from tests.chaos.events import Events
from tests.chaos.runs import Run, Starter
from tests.chaos.servers import Servers
from tests.chaos.world import (
    DELETE,
    ENVIRONMENTS,
    GROUPS,
    INPROGRESS,
    LAUNCH,
    ON_VOLUME,
    REAP,
    UPDATE,
    VMDATABASE,
    WITH_ENVIRONMENT,
    World,
    open_site,
)
from tests.support.pool import await_that

DAY = 86400
Prepare = Callable[[World], list[str]]  # makes work for the script and returns its arguments


def run(stack: ExitStack, folder: Path, events: Events, options: argparse.Namespace) -> int:
    """Try all points of the scenarios, in parallel lanes; prints figures, returns the number of violations."""
    lanes = [f"lane-{number}" for number in range(options.side_by_side)]
    pocket, jenkins = open_site(stack, folder, lanes)
    starter = stack.enter_context(Starter(events))
    worlds = []
    for lane in lanes:
        servers = stack.enter_context(Servers()) if options.database == "postgresql" else None
        worlds.append(stack.enter_context(World(
            folder / lane, pocket, jenkins, starter, events, {lane: lane}, "always", servers=servers)))
    signal_number = signal.Signals[f"SIG{options.signal}"]
    violations = 0
    for name in options.script or SCENARIOS:
        tried, found = Scenario(name, worlds, signal_number, options.first).run()
        kinds = ", ".join(f"{count} {what}" for what, count in sorted(tried.items()))
        print(f"{name}: {tried.total()} runs with SIG{options.signal} ({kinds}); {found} violations", flush=True)
        violations += found
    return violations


class Scenario:
    """One script in one situation, killed at each of its points."""

    def __init__(self, name: str, worlds: list[World], signal_number: int, first: int) -> None:
        self.name = name
        self.worlds = worlds
        self.signal_number = signal_number
        self.script, self.prepare = SCENARIOS[name]
        self.numbers = itertools.count(first)
        self.over = threading.Event()
        self.tried: Counter[str] = Counter()  # kinds of points
        self.found = 0
        self.lock = threading.Lock()

    def run(self) -> tuple[Counter[str], int]:
        """Try one point after the other; returns the number of points by kind, and the number of violations."""
        with ThreadPoolExecutor(len(self.worlds)) as threads:
            list(threads.map(self.lane, self.worlds))
        return self.tried, self.found

    def lane(self, world: World) -> None:
        while not self.over.is_set():
            with self.lock:
                number = next(self.numbers)
            self.try_point(world, number)

    def try_point(self, world: World, number: int) -> None:
        """Signal a run at its point `number`, make peace, and audit."""
        world.pool.sql("UPDATE machine SET state_time = state_time - ? WHERE state = 'USED'", DAY)  # of earlier points
        world.pool.sql("UPDATE machine SET hold_until = 1 WHERE state = 'HOLD'")
        arguments = self.prepare(world)
        stopped = world.wait(world.start(self.script, *arguments, point=number, signal=self.signal_number))
        said = [line for line in stopped.lines if line.startswith(points.KILLED_AT)]
        where = said[0].partition(": ")[2].partition(": ")[2] if said else "its end"
        again = self.again(world, stopped, arguments)
        found = [*audit.any_time(world, [stopped, *again]), *audit.after_peace(world, world.peace())]
        with self.lock:
            for violation in found:
                print(f"{self.name}, point {number}, {where}, {world.folder.name}:\n"
                      f"{violation.report(number, world.events)}", flush=True)
            self.found += len(found)
            if said:
                self.tried[" ".join(where.split()[:2])] += 1
            else:
                self.over.set()

    def again(self, world: World, stopped: Run, arguments: list[str]) -> list[Run]:
        """Let a second build ask for the machine: it must get it only if the first one was not let in."""
        if self.script != INPROGRESS:
            return []
        second = world.wait(world.start(INPROGRESS, *arguments))
        with world.let_in.open("a") as stream:
            stream.writelines(f"{arguments[0]} {run.name}\n" for run in (stopped, second) if run.status == 0)
        return [second]


# --- situations ---


def nothing_is_ready(world: World) -> list[str]:
    world.pool.sql("UPDATE machine SET state = 'DELETE' WHERE state = 'READY'")
    return list(world.providers)


def a_launch_was_killed(world: World) -> list[str]:
    """Kill a launch where some of its machines have a server id, some have none, and some have no node."""
    arguments = nothing_is_ready(world)
    at = 30 + next(LAUNCHES) % 60
    world.wait(world.start(LAUNCH, *arguments, point=at, signal=signal.SIGKILL))
    return arguments


def much_to_reap(world: World) -> list[str]:
    """Make one of everything that reap deletes."""
    pool, ((name, cloud),) = world.pool, world.providers.items()
    pool.sql("DELETE FROM machine WHERE id IN (SELECT machine.id FROM machine JOIN base_image ON base_image.id = "
             "base_image_id WHERE machine.state = 'READY' AND subnodes = 0 LIMIT 1)")  # leaks its server
    for state in ("DELETE", "ERROR", "USED"):
        pool.add_machine(state, provider=name, cloud=cloud, age=DAY + 60)
    pool.add_machine("DELETE", provider=name, cloud=cloud, server=False, node=False)
    client = pool.client(cloud)
    client.compute.create_keypair(name=f"devstack-gate-{pool.uuid}-999999",
                                  public_key=Path(f"{pool.key}.pub").read_text().strip())
    pool.sql("DELETE FROM machine WHERE name = ?",  # a stray node; a higher id would mean a newer vm.db
             pool.add_machine("DELETE", provider=name, cloud=cloud, server=False))
    ((image,),) = pool.sql("SELECT id FROM base_image WHERE name = 'noble'")
    template = "devstack-noble-7.template.openstack.org"
    for state in ("READY", "ERROR"):
        ((row,),) = pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
                             "VALUES (?, ?, 7, ?, 7) RETURNING id", image, template, state)
        server = pool.boot(template, pool.marks(name, snapshot=row), cloud)
        made = client.compute.create_server_image(server, template, pool.marks(name, snapshot=row))
        pool.sql("UPDATE snapshot_image SET external_id = ?, server_external_id = ? WHERE id = ?", made.id, server, row)
    world.age(1200)
    return [name]


def two_snapshots(world: World) -> list[str]:
    return [*world.providers, "--image", "jammy"]


def a_ready_machine(world: World) -> list[str]:
    """Choose a machine that needs no test environment."""
    return [_one(world, ON_VOLUME)]


def a_machine_with_an_environment(world: World) -> list[str]:
    return [_one(world)]


def a_group(world: World) -> list[str]:
    return [_one(world, *GROUPS)]


def a_used_group(world: World) -> list[str]:
    return a_used_machine(world, *GROUPS)


def a_group_to_hold(world: World) -> list[str]:
    return a_machine_to_hold(world, *GROUPS)


def a_group_of_which_a_server_died(world: World) -> list[str]:
    """Take away a server of a READY group; reap must see it and end the whole group."""
    ((name, cloud),) = world.providers.items()
    (lead,) = a_group(world)
    ((server,),) = world.pool.sql("SELECT external_id FROM machine WHERE lead_id = (SELECT id FROM machine WHERE "
                                  "name = ?) LIMIT 1", lead)
    world.vanished[server] = lead.rpartition("-")[2]
    world.pocket.server(cloud, server, vanish=True)
    return [name]


def a_group_that_will_lose_its_lead(world: World) -> list[str]:
    """Let the first server of a group fail while it boots, so that a subnode must take its place."""
    ((name, cloud),) = world.providers.items()
    world.pool.sql("UPDATE machine SET state = 'DELETE' WHERE state = 'READY' AND lead_id IS NULL "
                   "AND base_image_id IN (SELECT id FROM base_image WHERE subnodes > 0)")
    world.turn(cloud, boot_failure_next=1, boot_fault="no such disk")
    return [name]


def a_used_machine(world: World, image: str = WITH_ENVIRONMENT) -> list[str]:
    node = _one(world, image)
    world.expect_all([world.wait(world.start(INPROGRESS, node))])
    return [node, "--result", "SUCCESS"]


def a_machine_to_hold(world: World, image: str = WITH_ENVIRONMENT) -> list[str]:
    """Use a machine, then hold it: holding a READY one would leave the pool short."""
    return ["hold", a_used_machine(world, image)[0], "--reason", "chaos", "--hours", "0.1",
            "--ssh-key", f"{world.pool.key}.pub"]


def a_machine_whose_environment_is_another_s(world: World) -> list[str]:
    """Leave the image one environment only, and let a machine kept after a failure have it."""
    world.pool.sql("UPDATE test_environment SET images = ? WHERE name != ?", f'["{ON_VOLUME}"]', ENVIRONMENTS[0])
    node = a_used_machine(world)[0]
    world.expect_all([world.wait(world.start(DELETE, node, "--result", "FAILURE"))])
    world.pool.sql("UPDATE result SET jenkins_job_name = 'gate' WHERE node_name = ?", node)
    return a_machine_with_an_environment(world)


def _one(world: World, image: str = WITH_ENVIRONMENT) -> str:
    return await_that(f"a READY machine of {image}", lambda: next(
        (name for name, state in world.leads().items() if state == "READY" and f"-{image}-" in name), ""))


LAUNCHES = itertools.count()
SCENARIOS: dict[str, tuple[str, Prepare]] = {
    "launch": (LAUNCH, nothing_is_ready),
    "launch after a killed one": (LAUNCH, a_launch_was_killed),
    "reap": (REAP, much_to_reap),
    "update-image": (UPDATE, two_snapshots),
    "inprogress": (INPROGRESS, a_ready_machine),
    "delete": (DELETE, a_used_machine),
    "hold": (VMDATABASE, a_machine_to_hold),
    "inprogress with a test environment": (INPROGRESS, a_machine_with_an_environment),
    "inprogress that waits": (INPROGRESS, a_machine_whose_environment_is_another_s),
    "inprogress of a group": (INPROGRESS, a_group),
    "delete of a group": (DELETE, a_used_group),
    "hold of a group": (VMDATABASE, a_group_to_hold),
    "launch of a group that loses its lead": (LAUNCH, a_group_that_will_lose_its_lead),
    "reap of a group": (REAP, a_group_of_which_a_server_died),
}
