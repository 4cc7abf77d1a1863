"""A whole life on real machines: image, pool, builds over ssh, deletion; Jenkins runs the jobs."""

import subprocess
import time
from collections.abc import Iterator

import pytest
import requests

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.gatejob import LABEL, add_gate_job, build
from tests.support.pool import SSH_TO_STRANGERS, Pool, await_that, image, make_key, provider

UPDATE, LAUNCH, REAP = "devstack-vm-update-image.py", "devstack-vm-launch.py", "devstack-vm-reap.py"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Run a pool of three machines whose image was built, with a Jenkins that reaches them by ssh."""
    folder = tmp_path_factory.mktemp("life")
    credentials = {"nodes": ("jenkins", make_key(folder))}
    with Pocket(folder, "--machines", "namespace") as pocket, \
            StandIn(folder / "jenkins", credentials=credentials) as jenkins:
        pool = Pool(folder, pocket, jenkins)
        pool.load(provider(images=[image(min_ready=3)]))
        pool.run(UPDATE, "one", expect=0)
        pool.run(LAUNCH, "one", expect=0)
        yield pool


@pytest.fixture
def pool(site: Pool) -> Pool:
    """Return the pool, full and with all its agents online."""
    site.fill()
    return site


def test_a_build_runs_on_a_machine_of_its_own_which_goes_after_it(pool: Pool) -> None:
    add_gate_job(pool, "gate-good")

    result, node, console = build(pool, "gate-good", GERRIT_CHANGE_NUMBER="12", GERRIT_PATCHSET_NUMBER="3")

    assert result == "SUCCESS", console
    assert f"NODE_PROVIDER=one\nNODE_IMAGE=noble\nNODE_NAME={node}\nNODE_SNAPSHOT=devstack-noble-" in console
    assert (pool.machines()[node], pool.in_service(node)) == ("DELETE", False)
    assert pool.sql("SELECT jenkins_job_name, jenkins_build_number, gerrit_change_number, gerrit_patchset_number, "
                    "result, end_time >= start_time FROM result WHERE node_name = ?", node) == [
                        ("gate-good", 1, 12, 3, "SUCCESS", 1)]
    pool.run(REAP, "one", expect=0)
    assert [node in place for place in (pool.machines(), pool.server_names(), pool.nodes())] == [False] * 3


def test_a_failed_builds_machine_stays_for_a_look_and_takes_no_other_build(pool: Pool) -> None:
    add_gate_job(pool, "gate-bad", "echo no luck; exit 1")

    result, node, console = build(pool, "gate-bad")

    assert result == "FAILURE", console
    pool.run(REAP, "one", expect=0)
    assert (pool.machines()[node], pool.in_service(node)) == ("USED", False)
    assert node in pool.server_names()
    pool.sql("UPDATE machine SET state_time = state_time - 86400 WHERE name = ?", node)
    pool.run(REAP, "one", expect=0)
    assert [node in place for place in (pool.machines(), pool.server_names(), pool.nodes())] == [False] * 3


def test_builds_that_queue_for_too_few_machines_never_share_one(pool: Pool) -> None:
    """Seven builds want three machines; an executor that comes free takes the next build within 20 ms."""
    assert pool.jenkins
    add_gate_job(pool, "gate-busy")
    items = [pool.jenkins.build("gate-busy", ZUUL_CHANGE=str(number)) for number in range(7)]

    def all_done() -> bool:
        assert pool.jenkins
        builds = [one for one in pool.jenkins.look()["builds"] if one["queue_item"] in items]
        return len(builds) == 7 and not any(one["building"] for one in builds)

    for _ in range(4):
        pool.run(REAP, "one")
        pool.run(LAUNCH, "one")
        if all_done():
            break
    await_that("the builds to end", all_done)

    builds = [one for one in pool.jenkins.look()["builds"] if one["queue_item"] in items]
    assert [one["result"] for one in builds] == ["SUCCESS"] * 7, "\n".join(one["console"] for one in builds)
    assert len({one["node"] for one in builds}) == 7


def test_a_held_machine_outlives_its_build_and_lets_a_person_in(pool: Pool) -> None:
    assert pool.jenkins
    add_gate_job(pool, "gate-held", "until test -e /var/tmp/go-on; do sleep 0.1; done")
    started = pool.jenkins.wait_started(pool.jenkins.build("gate-held"))
    node = started["node"]
    await_that("inprogress", lambda: pool.machines()[node] == "USED")
    person = make_key(pool.folder / "anna")

    held = pool.run("vmdatabase.py", "hold", node, "--reason", "bug 1", "--ssh-key", f"{person}.pub", expect=0)
    assert pool.ssh(pool.column(node, "ip"), "touch /var/tmp/go-on").returncode == 0
    pool.jenkins.wait_build("gate-held", started["number"])
    pool.run(REAP, "one", expect=0)

    assert held.stdout == f"{node} jenkins@{pool.column(node, 'ip')}\n"
    assert pool.machines()[node] == "HOLD"
    pool.run("vmdatabase.py", "unhold", node, expect=0)
    pool.run(REAP, "one", expect=0)
    assert node not in pool.machines()


@pytest.mark.parametrize("told", [True, False], ids=["by devstack-vm-delete", "by reap"])
def test_an_autohold_keeps_the_machine_of_the_next_build_that_fails_and_lets_a_person_in(
        pool: Pool, told: bool) -> None:
    job, person = f"gate-watched-{told}", make_key(pool.folder / f"ben-{told}")
    assert pool.jenkins
    add_gate_job(pool, job, "exit 1", told=told)
    made = pool.run("vmdatabase.py", "autohold", "--job", job, "--reason", "bug 7", "--hours", "2", "--ssh-key",
                    f"{person}.pub", expect=0)
    result, node, console = build(pool, job)
    assert result == "FAILURE", console
    pool.run(REAP, "one", expect=0)

    number = made.stdout.removeprefix("autohold ").strip()
    assert (pool.machines()[node], pool.column(node, "hold_reason")) == ("HOLD", f"autohold {number}: bug 7")
    assert 7000 < pool.column(node, "hold_until") - time.time() < 7300
    address = pool.column(node, "ip")
    assert f"autohold {number}: bug 7" in pool.run("vmdatabase.py", "history", node, expect=0).stdout
    assert subprocess.run(["ssh", "-i", person, "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
                           *SSH_TO_STRANGERS, f"jenkins@{address}", "true"], check=False).returncode == 0
    pool.run("vmdatabase.py", "unhold", node, expect=0)
    pool.run(REAP, "one")


def test_a_build_whose_machine_dies_fails_and_the_pool_recovers(pool: Pool) -> None:
    assert pool.jenkins
    add_gate_job(pool, "gate-doomed", "sleep 60")
    started = pool.jenkins.wait_started(pool.jenkins.build("gate-doomed"))
    node = started["node"]
    await_that("inprogress", lambda: pool.machines()[node] == "USED")

    pool.pocket_server(node, vanish=True)

    assert pool.jenkins.wait_build("gate-doomed", started["number"])["result"] == "FAILURE"
    assert (pool.machines()[node], pool.in_service(node)) == ("USED", False)
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 3 of 3 ready\n"


def test_an_aborted_build_gives_its_machine_up(pool: Pool) -> None:
    assert pool.jenkins
    add_gate_job(pool, "gate-long", "sleep 60")
    started = pool.jenkins.wait_started(pool.jenkins.build("gate-long"))
    await_that("inprogress", lambda: pool.machines()[started["node"]] == "USED")

    requests.post(f"{pool.jenkins.url}job/gate-long/{started['number']}/stop",
                  auth=(pool.jenkins.user, pool.jenkins.token), timeout=30)

    assert pool.jenkins.wait_build("gate-long", started["number"])["result"] == "ABORTED"
    assert pool.machines()[started["node"]] == "DELETE"


def test_no_build_starts_where_vm_db_cannot_be_reached(pool: Pool) -> None:
    add_gate_job(pool, "gate-lost")
    assert pool.jenkins
    pool.jenkins.add_job("gate-lost", LABEL, environment={
        "DEVSTACK_GATE_DB": str(pool.folder / "no-such-folder" / "vm.db"), "HOME": str(pool.folder),
        "DEVSTACK_GATE_SECURE_CONFIG": str(pool.secure_config)})

    result, _, console = build(pool, "gate-lost")

    assert result == "FAILURE"
    assert "there is no folder" in console
    assert "somebody-was-here" not in console
