"""kill -9 at many moments: what the next runs find, finish or delete."""

import itertools
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, await_that, clear_cloud, image, make_key, provider

LAUNCH, REAP, UPDATE = "devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-update-image.py"
LANES = 6  # pools that are killed side by side: their scripts mostly wait
CLOUDS = [f"cloud-{number}" for number in range(LANES)]
Make = Callable[[str, str], Pool]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Make]:
    """Yield a function that makes pools, each at the cloud of its lane, all at one Jenkins."""
    folder = tmp_path_factory.mktemp("kill")
    numbers = itertools.count()
    with Pocket(folder, "--machines", "shared-ssh", "--clouds", ",".join(CLOUDS)) as pocket, \
            StandIn(folder / "jenkins", knobs={"connect": "instant"}) as jenkins:
        def make_one(cloud: str, name: str) -> Pool:
            home = folder / str(next(numbers))
            make_key(home)
            pool = Pool(home, pocket, jenkins)
            pool.load(provider(name, cloud, images=[image(min_ready=2)]))
            pool.seed_snapshots()
            return pool

        yield make_one


def in_lanes(test: Callable[[str, int], str | None], points: Iterable[int]) -> dict[int, str]:
    """Try all points side by side, each lane with its own cloud; return what was wrong, by point."""
    points = list(points)

    def lane(cloud: str, mine: list[int]) -> dict[int, str]:
        return {point: wrong for point in mine if (wrong := test(cloud, point))}

    with ThreadPoolExecutor(LANES) as threads:
        lanes = [threads.submit(lane, cloud, points[number::LANES]) for number, cloud in enumerate(CLOUDS)]
        return {point: wrong for done in lanes for point, wrong in done.result().items()}


def killed(pool: Pool, seconds: float, script: str, *arguments: str) -> None:
    """Start a script, and kill it with -9 after `seconds`."""
    run = pool.start(script, *arguments)
    time.sleep(seconds)
    run.kill()
    run.communicate()


@dataclass
class Left:
    """All that a pool has in vm.db, at the cloud and in Jenkins."""

    rows: dict[str, str]
    servers: list[str]
    nodes: list[str]

    @classmethod
    def of(cls, pool: Pool, provider_name: str, cloud: str) -> "Left":
        nodes = [name for name in pool.nodes() if f"-{provider_name}-" in name]
        own = [one["name"] for one in pool.servers(cloud) if one["metadata"].get("devstack-gate-pool") == pool.uuid]
        return cls(pool.machines(), sorted(own), sorted(nodes))

    def wrong(self, ready: int) -> str | None:
        """Return None if the pool is `ready` READY machines with their servers and nodes, else all that it has."""
        names = sorted(self.rows)
        fine = len(names) == ready and set(self.rows.values()) <= {"READY"} and self.servers == self.nodes == names
        return None if fine else str(self)


def test_a_launch_killed_at_any_moment_is_finished_by_the_next_launch_and_reap(make: Make) -> None:
    """There are 8 moments, 0.21 s apart, the first after 0.5 s; calls are slow, so each lands in a different step.

    Which steps those are depends on the computer; chaos/__main__.py --points kills at every step.
    """
    def try_point(cloud: str, point: int) -> str | None:
        name = f"at-{point}"
        pool = make(cloud, name)
        pool.knobs(cloud, boot_seconds=0.3, latency_seconds=0.08)
        killed(pool, 0.5 + point * 0.21, LAUNCH, name)
        pool.knobs(cloud, boot_seconds=0, latency_seconds=0)
        launched, reaped = pool.run(LAUNCH, name), pool.run(REAP, name)
        wrong = Left.of(pool, name, cloud).wrong(ready=2)
        end = f"\nlaunch {launched.returncode}:\n{launched.stderr}\nreap {reaped.returncode}:\n{reaped.stderr}"
        assert pool.pocket
        clear_cloud(pool.pocket, cloud)
        return wrong and wrong + end

    wrong = in_lanes(try_point, range(8))

    assert not wrong, f"{len(wrong)} of 8:\n" + "\n".join(f"{point}: {text}" for point, text in wrong.items())


CALLS: dict[str, dict[str, Any]] = {
    "before the first list": {"match": "GET /servers/detail", "kind": "hang"},
    "before a create": {"match": "POST /servers", "kind": "hang"},
    "after a create, before its answer": {"match": "POST /servers", "kind": "after", "then": "hang"},
    "before the flavors": {"match": "GET /flavors/detail", "kind": "hang"},
}


@pytest.mark.parametrize("call", CALLS)
def test_a_launch_killed_at_a_call_of_the_cloud_is_finished_by_the_next_launch_and_reap(
        pool: Pool, call: str) -> None:
    pool.load(provider(images=[image(min_ready=2)]))
    pool.seed_snapshots()
    pool.knobs(answers=[{"times": 1, **CALLS[call]}])
    run = pool.start(LAUNCH, "one")
    await_that("the call", lambda: any(entry["status"] == "hang" for entry in pool.pocket_look()["requests"]))
    time.sleep(0.2)  # the other machine goes on
    run.kill()
    run.communicate()

    pool.run(LAUNCH, "one")
    pool.run(REAP, "one", expect=0)

    left = Left.of(pool, "one", "pocket-a")
    assert left.wrong(ready=2) is None, left


@pytest.mark.parametrize("answer", [
    {"match": "POST /computer/doCreateItem", "kind": "hang", "when": "before"},
    {"match": "POST /computer/doCreateItem", "kind": "hang", "when": "after"},
    {"match": "GET /computer/.*/config.xml", "kind": "hang", "when": "before"},
], ids=lambda answer: f"{answer['when']} {answer['match']}")
def test_a_launch_killed_while_it_registers_is_finished_by_the_next_launch_and_reap(
        pool: Pool, answer: dict[str, Any]) -> None:
    pool.load(provider(images=[image(min_ready=2)]))
    pool.seed_snapshots()
    assert pool.jenkins
    pool.jenkins.knobs(answers=[answer])
    run = pool.start(LAUNCH, "one")
    await_that("READY machines", lambda: list(pool.machines().values()) == ["READY", "READY"])
    time.sleep(0.3)  # until the call hangs
    run.kill()
    run.communicate()
    pool.jenkins.knobs(answers=[])

    pool.run(LAUNCH, "one", expect=0)
    pool.run(REAP, "one", expect=0)

    left = Left.of(pool, "one", "pocket-a")
    assert left.wrong(ready=2) is None, left
    assert pool.created() == 2


def test_a_launch_with_floating_ips_killed_at_any_moment_leaves_none_too_many(make: Make) -> None:
    def try_point(cloud: str, point: int) -> str | None:
        name = f"floating-{point}"
        pool = make(cloud, name)
        pool.load(provider(name, cloud, floating_ips="always", images=[image(min_ready=1)]))
        pool.knobs(cloud, floating_seconds=0.2, latency_seconds=0.06)
        killed(pool, 0.8 + point * 0.45, LAUNCH, name)
        pool.knobs(cloud, latency_seconds=0)
        pool.run(LAUNCH, name)
        pool.run(REAP, name)
        wrong = Left.of(pool, name, cloud).wrong(ready=1)
        ports = {one["port"]: one["id"] for one in pool.servers(cloud)}
        bound = [ports.get(ip["port"]) for ip in pool.pocket_look(cloud)["floating_ips"]]
        if sorted(bound, key=str) != sorted(ports.values(), key=str):
            wrong = f"floating IPs of {bound}, servers {sorted(ports.values())}; {wrong}"
        pool.run(REAP, name, "--all-servers", expect=0)
        if pool.pocket_look(cloud)["floating_ips"]:
            wrong = f"{wrong}; floating IPs are left of a pool that is gone"
        return wrong

    wrong = in_lanes(try_point, range(4))

    assert not wrong, "\n".join(f"{point}: {text}" for point, text in wrong.items())


def test_a_reap_killed_at_any_moment_is_finished_by_the_next_one(make: Make) -> None:
    def try_point(cloud: str, point: int) -> str | None:
        name = f"reaped-{point}"
        pool = make(cloud, name)
        at: dict[str, Any] = {"provider": name, "cloud": cloud}
        for state in ("DELETE", "ERROR", "READY"):
            pool.add_machine(state, **at)
        pool.knobs(cloud, delete_seconds=0.2, latency_seconds=0.05)
        killed(pool, 0.4 + point * 0.24, REAP, name)
        pool.knobs(cloud, delete_seconds=0, latency_seconds=0)
        done = pool.run(REAP, name)
        wrong = Left.of(pool, name, cloud).wrong(ready=1)
        assert pool.pocket
        clear_cloud(pool.pocket, cloud)
        return wrong or (done.stderr if done.returncode else None)

    wrong = in_lanes(try_point, range(5))

    assert not wrong, "\n".join(f"{point}: {text}" for point, text in wrong.items())


def test_an_inprogress_killed_at_any_moment_leaves_no_node_in_service_whose_machine_is_used(make: Make) -> None:
    """If it was killed before READY -> USED, nothing has happened; after that, no build gets the node any more."""
    def try_point(cloud: str, point: int) -> str | None:
        pool = make(cloud, f"taken-{point}")
        name = pool.add_machine(server=False, provider=f"taken-{point}", cloud=cloud)
        killed(pool, 0.04 + point * 0.04, "devstack-vm-inprogress.py", name)
        state = pool.machines()[name]
        second = pool.run("devstack-vm-inprogress.py", name)
        fine = (second.returncode == 0) == (state == "READY") and not pool.in_service(name)
        return None if fine else f"{state}, then {second.returncode}, in service: {pool.in_service(name)}"

    wrong = in_lanes(try_point, range(6))

    assert not wrong, "\n".join(f"{point}: {text}" for point, text in wrong.items())


# --- image builds, on real machines ---


def test_an_image_build_killed_at_any_moment_leaves_nothing_after_a_reap_and_the_old_image_current(
        tmp_path: Path) -> None:
    points = 5
    clouds = [f"build-{number}" for number in range(points)]
    with Pocket(tmp_path, "--machines", "namespace", "--clouds", ",".join(clouds)) as pocket:
        def try_point(point: int) -> str | None:
            pool = Pool(tmp_path / str(point), pocket) if make_key(tmp_path / str(point)) else None
            assert pool
            pool.load(provider("one", clouds[point]))
            pool.seed_snapshots()
            cloud = clouds[point]
            pool.knobs(cloud, latency_seconds=0.1, snapshot_seconds=1)
            killed(pool, 1.0 + point * 1.6, UPDATE, "one")
            pool.knobs(cloud, latency_seconds=0, snapshot_seconds=0)
            building = pool.sql("SELECT state FROM snapshot_image WHERE name <> 'seeded'") == [("BUILDING",)]
            done = pool.run(REAP, "one")
            truth = pool.pocket_look(cloud)
            left = (pool.servers(cloud), truth["keypairs"], [one["name"] for one in truth["images"]],
                    pool.sql("SELECT name, state FROM snapshot_image"))
            if not building or (done.returncode == 0 and left == ([], [], ["Debian 12"], [("seeded", "READY")])):
                return None
            return f"{left} {done.stderr}"

        with ThreadPoolExecutor(points) as threads:
            wrong = {point: text for point, text in enumerate(threads.map(try_point, range(points))) if text}

    assert not wrong, "\n".join(f"{point}: {text}" for point, text in wrong.items())
