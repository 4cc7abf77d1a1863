"""A short storm, the points of one script, some restores; and a check that the audit sees what it must see."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos import audit
from tests.chaos.__main__ import PROVIDERS
from tests.chaos.events import Events
from tests.chaos.runs import Run, Starter
from tests.chaos.world import World, open_site
from tests.support.pool import PROJECT

STORM_SECONDS = 600  # to find a hang


@pytest.mark.parametrize("arguments", [
    ["--rounds", "6", "--seed", "4", "--peace-every", "3"],
    ["--points", "--script", "inprogress", "--side-by-side", "2"],
    ["--restores", "3", "--seed", "2"],
    ["--database", "postgresql", "--rounds", "2", "--seed", "4"],
], ids=lambda arguments: arguments[0])
def test_nothing_is_lost(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, "-m", "tests.chaos", "--folder", str(tmp_path / "chaos"), *arguments]

    result = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=STORM_SECONDS, check=False)

    assert result.returncode == 0, result.stdout[-20000:] + result.stderr[-5000:]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Yield a world as it is when a storm begins."""
    folder = tmp_path_factory.mktemp("world")
    with ExitStack() as stack:
        events = Events(folder / "events.jsonl")
        site = open_site(stack, folder, PROVIDERS.values())
        starter = stack.enter_context(Starter(events))
        yield stack.enter_context(World(folder / "one", *site, starter, events, PROVIDERS, own_disk=False))


def test_what_came_after_a_restore_did_so_too_when_all_is_older(world: World) -> None:
    world.say_moved()
    world.pool.sql("UPDATE machine SET state_time = ? WHERE id = 1", int(time.time()) + 1)

    world.age(1200)

    ((came, moved),) = world.pool.sql("SELECT state_time, CAST(value AS BIGINT) FROM machine, setting "
                                      "WHERE machine.id = 1 AND setting.name = 'moved'")
    assert came > moved


def test_the_audit_finds_nothing_in_a_world_at_peace_and_every_damage_in_another(world: World) -> None:
    before = audit.after_peace(world, world.peace())
    planted = plant_damage(world)

    found = {(violation.rule, word) for violation in audit.after_peace(world, [traceback(world)])
             for word in planted if re.search(rf"{re.escape(word)}(?![0-9])", violation.text)}

    assert before == []
    assert found == {(rule, word) for word, rules in planted.items() for rule in rules}


def plant_damage(world: World) -> dict[str, set[str]]:
    """Do everything that the scripts must never do; returns {a word of the violations: the rules that are broken}."""
    pool, cloud = world.pool, "pocket-a"
    client = pool.client(cloud)
    held, gone, taken, *_ = (name for name, in pool.sql(
        "SELECT name FROM machine WHERE name LIKE '%noble-one-%' AND id > 1"))  # a stranger has the first name
    gone_id, held_id = pool.column(gone, "external_id"), pool.column(held, "external_id")
    world.held[held] = held_id
    world.pocket.server(cloud, gone_id, vanish=True)
    world.let_in.write_text(f"{taken} a build\n{taken} another build\n")
    pool.sql("UPDATE machine SET state = 'USED' WHERE name = ?", taken)
    world.given[taken] = "rack-1"
    pool.sql("UPDATE test_environment SET state = 'BROKEN' WHERE name = 'rack-2'")
    pool.sql("INSERT INTO environment_waiter (machine_id, since) VALUES (783, 1)")
    leaked = pool.boot("devstack-noble-one-777", pool.marks(machine=777))
    stranger = next(one for one in pool.servers() if one["name"] == "somebody-elses")
    world.pocket.server(cloud, stranger["id"], vanish=True)
    client.compute.create_keypair(name=f"devstack-gate-{pool.uuid}-778",
                                  public_key=Path(f"{pool.key}.pub").read_text().strip())
    client.image.create_image(name="devstack-noble-779.template.openstack.org", disk_format="qcow2",
                              container_format="bare", **pool.marks(snapshot=779))
    client.network.create_ip(floating_network_id=client.network.find_network("public").id,
                             description=f"devstack-gate-pool={pool.uuid} server=no-such-780")
    pool.add_node("devstack-noble-one-781", "devstack-noble", "127.0.0.1")
    pool.sql("INSERT INTO result (base_image_id, machine_id) VALUES (782, 1)")
    ((lead, subnode),) = pool.sql("SELECT lead.name, machine.name FROM machine JOIN machine AS lead "
                                  "ON lead.id = machine.lead_id WHERE machine.name LIKE '%-one-%' LIMIT 1")
    pool.sql("UPDATE machine SET state = 'HOLD' WHERE name = ?", subnode)
    return {held: {"hold"}, gone: {"rows"}, taken: {"single use", "nodes", "environments"},
            "rack-2 is": {"environments"}, "machine 783": {"environments"}, leaked: {"leak"},
            stranger["id"]: {"strangers"}, "-778": {"leak"}, "-779.": {"leak"}, "no-such-780": {"leak"},
            "-781": {"nodes"}, "foreign_key_check": {"vm.db"}, "label noble:": {"pool"}, "Traceback": {"output"},
            lead: {"groups"}, subnode: {"groups"}}


def traceback(world: World) -> Run:
    """Return a run that ended with a traceback."""
    run = Run(0, ["script"], world.events)
    run.lines, run.status = ["Traceback (most recent call last):"], 1
    return run
