"""The scripts against a real OpenStack: image, pool, builds over ssh, deletion, and what Nova refuses or loses."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pocketjenkins.client import StandIn
from tests.realcloud.client import RealCloud
from tests.realcloud.configuration import MEMBER, SMALL
from tests.realcloud.regions import Region
from tests.realcloud.seed import connect
from tests.support.contract import waited
from tests.support.gatejob import add_gate_job, build
from tests.support.gatenode import ACCOUNT
from tests.support.pool import Pool, client, image, make_key, provider

UPDATE, LAUNCH, REAP = "devstack-vm-update-image.py", "devstack-vm-launch.py", "devstack-vm-reap.py"
BOOT_SECONDS = 90  # boot-timeout: Nova is slow on a busy machine


def at(name: str, cloud: str = MEMBER, **keys: Any) -> dict[str, Any]:
    return provider(name, cloud, boot_timeout=BOOT_SECONDS, **keys)


def servers(real: RealCloud, cloud: str = MEMBER) -> list[str]:
    """Return the names of the servers that Nova has, sorted."""
    return sorted(server.name for server in client(real.clouds_yaml, cloud).compute.servers())


def reap_until_gone(pool: Pool, node: str, real: RealCloud) -> None:
    """Reap as the hourly job does, until the machine is gone: its row goes once a later look shows no server."""

    def gone() -> bool:
        pool.run(REAP, "one", expect=0)
        return node not in pool.machines()

    waited("the machine to be gone", gone)
    assert node not in servers(real)
    assert node not in pool.nodes()


@pytest.fixture(scope="module")
def pool(real: RealCloud, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """A pool of two machines of a built image, with a Jenkins that reaches them by ssh."""
    folder = tmp_path_factory.mktemp("life")
    with StandIn(folder / "jenkins", credentials={"nodes": ("jenkins", make_key(folder))}) as jenkins:
        pool = Pool(folder, real, jenkins)
        pool.load(at("one", floating_ips="always"))
        pool.run(UPDATE, "one", expect=0)
        yield pool
        for server in client(real.clouds_yaml, MEMBER).compute.servers():
            client(real.clouds_yaml, MEMBER).compute.delete_server(server)


def test_an_image_build_leaves_a_snapshot_that_is_marked_and_no_server(pool: Pool, real: RealCloud) -> None:
    api = client(real.clouds_yaml, MEMBER)
    ((name, snapshot),) = pool.sql("SELECT name, external_id FROM snapshot_image WHERE state = 'READY'")

    found = api.image.get_image(snapshot)

    assert (found.name, found.status, found.properties["devstack-gate-pool"]) == (name, "active", pool.uuid)
    waited("no template", lambda: not [one for one in servers(real) if "template" in one])
    assert list(api.compute.keypairs()) == []


def test_a_build_runs_on_a_machine_of_its_own_which_goes_after_it(pool: Pool, real: RealCloud) -> None:
    pool.fill()
    assert sorted(pool.machines()) == servers(real)
    add_gate_job(pool, "gate-good")

    result, node, console = build(pool, "gate-good", GERRIT_CHANGE_NUMBER="12", GERRIT_PATCHSET_NUMBER="3")

    assert result == "SUCCESS", console
    assert f"NODE_PROVIDER=one\nNODE_IMAGE=noble\nNODE_NAME={node}\nNODE_SNAPSHOT=devstack-noble-" in console
    assert (pool.machines()[node], pool.in_service(node)) == ("DELETE", False)
    reap_until_gone(pool, node, real)


def test_a_failed_builds_machine_stays_for_a_look(pool: Pool, real: RealCloud) -> None:
    pool.fill()
    add_gate_job(pool, "gate-bad", "echo no luck; exit 1")

    result, node, console = build(pool, "gate-bad")

    assert result == "FAILURE", console
    pool.run(REAP, "one", expect=0)
    assert (pool.machines()[node], node in servers(real)) == ("USED", True)
    assert pool.ssh(pool.column(node, "ip"), "hostname").stdout == f"{node}\n"
    pool.sql("UPDATE machine SET state_time = state_time - 86400 WHERE name = ?", node)
    reap_until_gone(pool, node, real)


def test_floating_ips_go_with_their_machines(pool: Pool, real: RealCloud) -> None:
    pool.fill()
    network = client(real.clouds_yaml, MEMBER).network
    addresses = {pool.column(node, "ip") for node in pool.machines()}
    assert {one.floating_ip_address for one in network.ips()} == addresses

    for node in pool.machines():
        pool.run("devstack-vm-delete.py", node, expect=0)
    for node in list(pool.machines()):
        reap_until_gone(pool, node, real)

    assert list(network.ips()) == []


def test_a_launch_that_is_killed_while_servers_boot_loses_none_and_doubles_none(pool: Pool, real: RealCloud) -> None:
    for node in pool.machines():
        pool.run("devstack-vm-delete.py", node, expect=0)
    for node in list(pool.machines()):
        reap_until_gone(pool, node, real)
    real.knobs(boot_seconds=4)
    try:
        killed = pool.start(LAUNCH, "one")
        waited("two servers", lambda: len(servers(real)) == 2)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    finally:
        real.knobs()

    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 2 of 2 ready\n"

    assert servers(real) == sorted(pool.machines())
    assert set(pool.machines().values()) == {"READY"}


def test_a_server_that_was_deleted_behind_our_back_is_replaced(pool: Pool, real: RealCloud) -> None:
    pool.fill()
    node = next(iter(pool.machines()))
    api = client(real.clouds_yaml, MEMBER).compute
    api.delete_server(pool.column(node, "external_id"))
    waited("404", lambda: node not in servers(real))

    reap_until_gone(pool, node, real)
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 2 of 2 ready\n"


@pytest.fixture
def north(real: RealCloud) -> Iterator[Region]:
    """A region that can go down without the others."""
    with Region(real, "north") as region:
        yield region


@pytest.fixture
def other(real: RealCloud, tmp_path: Path) -> Iterator[Pool]:
    """A separate pool without Jenkins, whose machines need no image build and are deleted at the end."""
    yield Pool(tmp_path, real)
    real.knobs()
    for cloud in (MEMBER, SMALL, "north"):
        api = connect(real.clouds_yaml, cloud).compute
        ours = [server for server in api.servers() if server.name.startswith("devstack-plain")]
        for server in ours:
            api.delete_server(server)
        for server in ours:
            api.wait_for_delete(server, interval=0.2, wait=BOOT_SECONDS)


def load_plain(pool: Pool, real: RealCloud, clouds: dict[str, str], min_ready: int) -> None:
    """Load providers with an image type that needs no build: the base image, in which user data makes the account."""
    script = pool.folder / "account.sh"
    script.write_text(ACCOUNT.format(key=pool.key.with_suffix(".pub").read_text().strip(), name="plain"))
    images = [image("plain", user_data=str(script), min_ready=min_ready)]
    pool.load(*(at(name, cloud, images=images, max_concurrency=1) for name, cloud in clouds.items()))
    found = client(real.clouds_yaml, MEMBER).image.find_image("Debian 12").id
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, external_id, state, state_time) "
             "SELECT id, 'seeded', 1, ?, 'READY', 1 FROM base_image", found)


def test_novas_quota_is_asked_for_and_no_create_is_refused(other: Pool, real: RealCloud) -> None:
    load_plain(other, real, {"small": SMALL}, min_ready=5)

    result = other.run(LAUNCH, "small", expect=1)

    assert result.stdout == "small plain: 2 of 5 ready, there was room for 2 more: instances\n", result.stderr
    assert "Quota exceeded" not in result.stderr
    assert list(other.machines().values()) == ["READY"] * 2


@pytest.mark.parametrize(("failure", "fault"), [
    ("no-host", "No valid host was found. There are not enough hosts available."),
    ("abort", "aborted: as told"),
])
def test_novas_fault_is_in_the_row_and_the_next_run_does_better(
        other: Pool, real: RealCloud, failure: str, fault: str) -> None:
    load_plain(other, real, {"one": MEMBER}, min_ready=1)
    real.knobs(boot_failure=failure)

    other.run(LAUNCH, "one", expect=1)
    ((state, error),) = other.sql("SELECT state, error FROM machine")
    real.knobs()

    assert (state, error.startswith("the server went to ERROR: "), fault in error) == ("ERROR", True, True)
    assert other.run(LAUNCH, "one", expect=0).stdout == "one plain: 1 of 1 ready\n"
    other.run(REAP, "one", expect=0)


def test_a_region_that_is_down_stops_no_other_and_costs_no_machine(
        north: Region, other: Pool, real: RealCloud) -> None:
    load_plain(other, real, {"north": "north", "one": MEMBER}, min_ready=1)
    full = ["north plain: 1 of 1 ready", "one plain: 1 of 1 ready"]
    assert sorted(other.run(LAUNCH, "all", expect=0).stdout.splitlines()) == full
    for node in other.machines():
        other.run("devstack-vm-delete.py", node, expect=0)

    north.turn(down=True)
    other.run(REAP, "all", expect=1)
    other.run(LAUNCH, "all", expect=1)

    assert [state for node, state in other.machines().items() if "north" in node] == ["DELETE"]
    assert [state for node, state in other.machines().items() if "one" in node] == ["READY"]
    north.turn(down=False)
    waited("the end of the north's machine",
               lambda: other.run(REAP, "all", expect=0) and "DELETE" not in other.machines().values())
    assert sorted(other.run(LAUNCH, "all", expect=0).stdout.splitlines()) == full
