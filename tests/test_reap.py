"""devstack-vm-reap.py makes cloud, Jenkins and vm.db agree again."""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import MakePool
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import ANY_HOST_KEY, Pool, image, provider, without_notes

TEMPLATE = "devstack-noble-9.template.openstack.org"
REAP = "devstack-vm-reap.py"
HOUR = 3600


# --- slow runs: the first test starts them, the last ones look at them ---


@dataclass
class Slow:
    """A stuck delete and nodes whose agents died; a run of reap for each goes on beside the other tests."""

    pool: Pool
    stuck: subprocess.Popen[str]
    deaths: subprocess.Popen[str]
    names: Mapping[str, str]


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    folder = tmp_path_factory.mktemp("slow")
    with Pocket(folder, "--machines", "none") as pocket, \
            StandIn(folder / "jenkins", knobs={"connect": "instant"}) as jenkins:
        pool = Pool(folder, pocket, jenkins)
        pool.load(provider("one"), provider("two", "pocket-b"))
        at_two: dict[str, Any] = {"provider": "two", "cloud": "pocket-b"}
        names = {what: pool.add_machine("DELETE", delete_time=delete_time) for what, delete_time in
                 {"stuck": 1, "new": None}.items()}
        names |= {what: pool.add_machine("READY", **at_two) for what in ("dead", "back", "taken", "well")}
        pool.knobs(delete_ignored=True)
        jenkins.knobs(reconnect_seconds=6.0)
        jenkins.node(names["back"], die=True)
        jenkins.knobs(reconnect_seconds=900.0)
        jenkins.node(names["dead"], die=True)
        jenkins.node(names["taken"], die=True)
        jenkins.node(names["taken"], temporarilyOffline=True, message="anna looks at it")
        runs = [pool.start(REAP, name) for name in ("one", "two")]
        try:
            yield Slow(pool, runs[0], runs[1], names)
        finally:
            for run in runs:
                run.kill()
                run.communicate()


def test_a_server_that_is_asked_to_go_is_waited_for(slow: Slow) -> None:
    assert (slow.stuck.poll(), slow.deaths.poll()) == (None, None)


# --- machines ---


def loaded(pool: Pool, *providers: dict[str, Any]) -> Pool:
    pool.load(*(providers or (provider(),)))
    return pool


def gone(pool: Pool, name: str) -> bool:
    """Return whether row, server and node of a machine are gone; fail if only some are."""
    left = [name in pool.machines(), name in pool.server_names(), name in pool.nodes()]
    assert len(set(left)) == 1, f"{name}: row, server, node: {left}"
    return not any(left)


@pytest.mark.parametrize("state", ["DELETE", "ERROR"])
def test_a_machine_that_is_over_goes_with_server_and_node(pool: Pool, state: str) -> None:
    name, other = loaded(pool).add_machine(state), pool.add_machine("READY")

    result = pool.run(REAP, "one", expect=0)

    assert result.stdout == "one: deleted 1 machine\n"
    assert (gone(pool, name), gone(pool, other)) == (True, False)


def test_a_pool_without_jenkins_is_reaped_without_questions_to_it(pool: Pool) -> None:
    pool.jenkins = None
    pool.write_secure_config()
    over, abandoned, ready = (loaded(pool).add_machine(state, age=25 * HOUR) for state in ("DELETE", "USED", "READY"))

    result = pool.run(REAP, "one", expect=0)

    assert pool.machines() == {ready: "READY"}, (over, abandoned, result.stderr)
    assert "no [jenkins] section" in result.stderr


def test_without_jenkins_a_ready_machine_that_ssh_does_not_reach_is_replaced(pool: Pool) -> None:
    """Those of a provider that are silent all at once are the network's fault for a while."""
    pool.jenkins = None
    pool.write_secure_config()
    loaded(pool, *(provider(name, cloud) for name, cloud in (("one", "pocket-a"), ("two", "pocket-b"),
                                                             ("three", "pocket-b"))))
    dead, alive = pool.add_machine(), pool.add_machine(absent_time=1)
    cut_off = [pool.add_machine(provider="two", cloud="pocket-b") for _ in range(2)]
    long_cut_off = [pool.add_machine(provider="three", cloud="pocket-b", absent_time=1) for _ in range(2)]
    used = pool.add_machine("USED", provider="two", cloud="pocket-b", absent_time=1)
    for name, cloud in ((dead, "pocket-a"), *((one, "pocket-b") for one in (*cut_off, *long_cut_off, used))):
        pool.pocket_server(name, cloud, ssh="refused")

    result = pool.run(REAP, "all", expect=0)

    assert pool.machines() == {alive: "READY", cut_off[0]: "READY", cut_off[1]: "READY", used: "USED"}
    assert result.stderr.count("READY -> ERROR: it does not answer by ssh") == 3
    assert f"none of the ready machines answers by ssh; waiting for the network: {', '.join(cut_off)}" in result.stderr
    assert pool.column(alive, "absent_time") is None
    assert None not in [pool.column(name, "absent_time") for name in cut_off]


def test_a_section_of_jenkins_that_was_lost_ends_nothing_that_may_build(pool: Pool) -> None:
    name, _ = taken_by_build(loaded(pool), "goes-on")
    jenkins, pool.jenkins = pool.jenkins, None
    pool.write_secure_config()
    never = pool.add_machine("DELETE")  # never had a node
    held = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 1", expect=1)
    pool.run("vmdatabase.py", "unhold", name, expect=0)

    result = pool.run(REAP, "one", expect=1)
    launched = pool.run("devstack-vm-launch.py", "one", expect=2)

    assert "secure.conf, but 1 machines have nodes in Jenkins; put the section back" in launched.stderr
    assert (pool.machines(), never in pool.server_names()) == ({name: "DELETE"}, False)
    assert name in pool.server_names()
    assert "secure.conf, but 1 machines have nodes in Jenkins, where builds may run" in result.stderr
    assert "has its node, so the node stays in service" in held.stderr
    pool.jenkins = jenkins
    pool.write_secure_config()
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == {name: "DELETE"}


def test_a_machine_whose_server_is_gone_already_goes(pool: Pool) -> None:
    name = loaded(pool).add_machine("DELETE")
    pool.pocket_server(name, vanish=True)

    pool.run(REAP, "one", expect=0)

    assert gone(pool, name)


def test_a_machine_that_never_had_a_server_goes(pool: Pool) -> None:
    loaded(pool).add_machine("ERROR", server=False, node=False)

    pool.run(REAP, "one", expect=0)

    assert pool.machines() == {}


def test_a_row_stays_until_a_later_look_shows_the_server_gone(pool: Pool) -> None:
    name = loaded(pool).add_machine("DELETE")
    pool.knobs(delete_seconds=2)
    run = pool.start(REAP, "one")
    while not pool.calls("DELETE", "/servers/{id}"):
        assert run.poll() is None
    assert name in pool.machines()

    assert run.communicate(timeout=60)[0] == "one: deleted 1 machine\n"
    assert gone(pool, name)


def taken(pool: Pool, age: int, **columns: Any) -> str:
    """Add a machine that was taken `age` seconds ago, with the row of who has it; return its name."""
    name = pool.add_machine("USED", age=age)
    values = {"machine_id": int(name.rpartition("-")[2]), "node_name": name, "start_time": 1, **columns}
    pool.sql(f"INSERT INTO result ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})", *values.values())
    return name


def test_a_machine_that_no_build_has_is_given_up_after_15_minutes(pool: Pool) -> None:
    """Whoever took it with devstack-vm-inprogress named no build, one that never was, or one that ran elsewhere."""
    assert loaded(pool).jenkins
    assert pool.jenkins
    pool.jenkins.add_nodes([{"name": "elsewhere", "label": "elsewhere"}])
    pool.jenkins.add_job("gate-elsewhere", "elsewhere")
    number = pool.jenkins.wait_started(pool.jenkins.build("gate-elsewhere"))["number"]
    elsewhere = {"jenkins_job_name": "gate-elsewhere", "jenkins_build_number": number}
    nobodys = [taken(pool, 901), taken(pool, 901, jenkins_job_name="gate-unknown", jenkins_build_number=7),
               taken(pool, 901, **elsewhere), pool.add_machine("USED", age=901)]
    young = taken(pool, 800)

    result = pool.run(REAP, "one", expect=0)

    assert {name: gone(pool, name) for name in [*nobodys, young]} == dict.fromkeys(nobodys, True) | {young: False}
    for why in ("no build has taken it", "Jenkins knows no gate-unknown #7",
                f"gate-elsewhere #{number} did not run there"):
        assert f"USED -> DELETE: used for 15 min, but nobody has it: {why}" in result.stderr


def test_a_machine_goes_as_soon_as_its_build_has_ended_and_no_sooner(pool: Pool) -> None:
    name = loaded(pool).add_machine("HOLD", hold_until=1)
    assert pool.jenkins
    pool.jenkins.add_job("short", name, seconds=6)
    build = pool.jenkins.wait_started(pool.jenkins.build("short"))
    pool.run(REAP, "one", expect=0)
    assert (gone(pool, name), pool.machines(), pool.in_service(name)) == (False, {name: "DELETE"}, False)
    pool.jenkins.wait_build("short", build["number"])

    pool.run(REAP, "one", expect=0)

    assert gone(pool, name)


def test_a_ready_machine_that_died_is_replaced(pool: Pool) -> None:
    loaded(pool, provider(images=[image(min_ready=2)]))
    pool.seed_snapshots()
    dead, alive = pool.add_machine("READY"), pool.add_machine("READY")
    pool.pocket_server(dead, vanish=True)

    pool.run(REAP, "one", expect=0)

    assert (gone(pool, dead), gone(pool, alive)) == (True, False)
    assert pool.run("devstack-vm-launch.py", "one", expect=0).stdout == "one noble: 2 of 2 ready\n"


def test_a_cloud_that_was_really_emptied_is_found_out_and_the_pool_filled_again(pool: Pool) -> None:
    loaded(pool, provider(images=[image(min_ready=2)]))
    pool.seed_snapshots()
    before = [pool.add_machine(state) for state in ("READY", "READY", "DELETE")]
    for name in before:
        pool.pocket_server(name, vanish=True)

    pool.run(REAP, "one", expect=0)

    assert (pool.machines(), pool.nodes()) == ({}, {})
    assert pool.run("devstack-vm-launch.py", "one", expect=0).stdout == "one noble: 2 of 2 ready\n"


def test_a_node_that_still_connects_is_not_dead(pool: Pool) -> None:
    assert pool.jenkins
    pool.jenkins.knobs(connect="never")
    name = loaded(pool).add_machine("READY")

    pool.run(REAP, "one", expect=0)

    assert not gone(pool, name)


def taken_by_build(pool: Pool, job: str, seconds: float = 600) -> tuple[str, int]:
    """Add a machine and start a build on it that inprogress lets in; return machine name and build number."""
    name = pool.add_machine("READY")
    assert pool.jenkins
    pool.jenkins.add_job(job, name, seconds=seconds)
    number = int(pool.jenkins.wait_started(pool.jenkins.build(job))["number"])
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME=job, BUILD_NUMBER=str(number))
    return name, number


def recorded(pool: Pool, name: str) -> list[tuple[Any, ...]]:
    return pool.sql("SELECT jenkins_job_name, jenkins_build_number, result, end_time IS NOT NULL FROM result "
                    "WHERE node_name = ?", name)


def test_machines_of_builds_that_died_with_jenkins_make_room_and_the_pool_is_full_again(pool: Pool) -> None:
    loaded(pool, provider(max_servers=2, images=[image(min_ready=2)]))
    pool.seed_snapshots()
    builds = dict(taken_by_build(pool, f"killed-{number}") for number in (1, 2))
    assert pool.jenkins
    pool.jenkins.restart()
    for name in builds:
        pool.jenkins.wait_node(name, "online")

    pool.run(REAP, "one", expect=0)
    launched = pool.run("devstack-vm-launch.py", "one", expect=0)

    assert launched.stdout == "one noble: 2 of 2 ready\n"
    assert [recorded(pool, name) for name in builds] == [
        [(f"killed-{number}", build, "FAILURE", 1)] for number, build in enumerate(builds.values(), 1)]
    assert not set(builds) & pool.machines().keys()


def test_a_build_that_ended_well_while_vm_db_could_not_be_told_gives_its_machine_back(pool: Pool) -> None:
    name, number = taken_by_build(loaded(pool), "well", seconds=5)
    assert pool.jenkins
    pool.jenkins.wait_build("well", number)

    pool.run(REAP, "one", expect=0)

    assert gone(pool, name)
    assert recorded(pool, name) == [("well", number, "SUCCESS", 1)]


def test_a_held_machine_whose_build_has_ended_stays_and_the_end_is_recorded(pool: Pool) -> None:
    name, number = taken_by_build(loaded(pool), "held-over", seconds=5)
    pool.run("vmdatabase.py", "hold", name, "--reason", "bug 4", expect=0)
    assert pool.jenkins
    pool.jenkins.wait_build("held-over", number)

    pool.run(REAP, "one", expect=0)

    assert pool.machines() == {name: "HOLD"}
    assert recorded(pool, name) == [("held-over", number, "SUCCESS", 1)]


def test_a_build_that_runs_is_not_asked_for_and_one_whose_node_is_idle_once(pool: Pool) -> None:
    name, _ = taken_by_build(loaded(pool), "runs-on")
    person = pool.add_machine("USED")
    assert pool.jenkins
    pool.jenkins.reset_calls()

    pool.run(REAP, "one", expect=0)

    assert pool.machines() == {name: "USED", person: "USED"}
    assert pool.jenkins.calls().get("GET /job/{name}/{number}/api/json", 0) == 0
    assert recorded(pool, name) == [("runs-on", 1, None, 0)]


def test_a_build_that_jenkins_does_not_show_is_over_after_some_minutes_with_its_node_idle(pool: Pool) -> None:
    name = loaded(pool).add_machine("USED", age=400)
    pool.sql("INSERT INTO result (base_image_id, machine_id, node_name, jenkins_job_name, jenkins_build_number, "
             "start_time) SELECT base_image_id, id, name, 'forgotten', 7, 1 FROM machine")

    told = pool.run(REAP, "one", expect=0).stderr

    assert pool.machines() == {name: "USED"}
    assert recorded(pool, name) == [("forgotten", 7, None, 1)]
    assert "Jenkins knows no forgotten #7, or the user lacks the right Job/Read on it" in told


def test_a_jenkins_that_does_not_tell_of_a_build_ends_it_for_nobody(pool: Pool) -> None:
    name, number = taken_by_build(loaded(pool), "unclear", seconds=5)
    assert pool.jenkins
    pool.jenkins.wait_build("unclear", number)
    pool.jenkins.knobs(answers=[{"match": "GET /job/unclear/", "status": 500}])

    pool.run(REAP, "one", expect=1)

    assert (pool.machines(), recorded(pool, name)) == ({name: "USED"}, [("unclear", number, None, 0)])


def test_a_node_left_in_service_by_an_outage_though_its_machine_is_taken_is_taken_out(pool: Pool) -> None:
    name = loaded(pool).add_machine("USED")

    pool.run(REAP, "one", expect=0)

    assert (pool.machines(), pool.in_service(name)) == ({name: "USED"}, False)


def test_the_marks_of_nodes_that_a_restart_hides_are_made_again_and_tell_the_same(pool: Pool) -> None:
    """Jenkins before 2.483 forgets them until the agent is back; until then the label keeps builds off."""
    name, number = taken_by_build(loaded(pool), "hidden")
    held = pool.add_machine("READY")
    pool.run("vmdatabase.py", "hold", held, "--reason", "bug 5", expect=0)
    why = {one: node["offlineCauseReason"] for one, node in pool.nodes().items()}
    assert why == {name: f"in use by hidden #{number}", held: "held: bug 5"}
    assert pool.jenkins
    pool.jenkins.knobs(connect="never", restart_seconds=0.0)
    pool.jenkins.restart()
    assert {node["temporarilyOffline"] for node in pool.nodes().values()} == {False}
    # A pipeline would still be running, waiting for its node: hide from reap that this build has ended.
    pool.jenkins.knobs(answers=[{"match": "GET /job/hidden/", "status": 503}])

    pool.run(REAP, "one", expect=1)

    assert {one: node["offlineCauseReason"] for one, node in pool.nodes().items()} == why
    assert {node["temporarilyOffline"] for node in pool.nodes().values()} == {True}


# --- things that are not ours ---


def test_servers_without_our_metadata_are_never_touched(pool: Pool) -> None:
    """Each would go at once if it were ours: its row is in DELETE or ERROR, and has no server id."""
    loaded(pool, provider(images=[image(min_ready=0)]))
    over = [pool.add_machine("DELETE", server=False, node=False) for _ in range(3)]
    add_snapshot(pool, 1, "ERROR")
    foreign = {"devstack-gate-pool": "11111111-2222-3333-4444-555555555555"}
    pool.boot(over[0])
    pool.boot(over[1], pool.marks(machine=2) | foreign)
    pool.boot(over[2], pool.marks("two", machine=3))
    pool.boot("devstack-noble-1.template.openstack.org", pool.marks(snapshot=1) | foreign)
    pool.boot("devstack-noble-2.template.openstack.org", {"devstack-gate-snapshot": "1"})
    before = pool.server_names()

    result = pool.run(REAP, "one", "--all-servers", "--all-images", expect=1)

    assert (pool.server_names(), pool.machines()) == (before, {})
    assert pool.calls("DELETE", "/servers/{id}") == 0
    told = [line for line in result.stderr.splitlines() if "is left; put that right" in line]
    assert [over[2] in line for line in told] == [True], told


def test_a_server_without_a_row_is_left_its_grace_and_a_template_of_an_ended_build_is_not(pool: Pool) -> None:
    loaded(pool)
    pool.sql("INSERT INTO snapshot_image (id, base_image_id, name, version, state, state_time) "
             "VALUES (5, 1, 'failed', 1, 'ERROR', 1)")
    pool.boot("young", pool.marks(machine=99))
    pool.boot("failed", pool.marks(snapshot=5))

    pool.run(REAP, "one", expect=0)

    assert pool.server_names() == ["young"]


def test_a_users_floating_ips_keypairs_and_images_are_never_touched(pool: Pool) -> None:
    loaded(pool)
    cloud = pool.client()
    network = cloud.network.find_network("public").id
    cloud.network.create_ip(floating_network_id=network, description="mine")
    cloud.network.create_ip(floating_network_id=network, description="devstack-gate-pool=another server=x")
    for name in ("mine", "devstack-gate-another-1", f"devstack-gate-{pool.uuid}", f"devstack-gate-{pool.uuid}-x"):
        cloud.compute.create_keypair(name=name, public_key=ANY_HOST_KEY)
    name, current = pool.add_machine("USED", age=99 * HOUR), add_snapshot(pool, 1)
    inherited = pool.marks(snapshot=1)  # from the snapshot; a second image of that row would be a leak
    cloud.compute.create_server_image(pool.column(name, "external_id"), "anna's look at bug 1", inherited)
    cloud.compute.create_server_image(pool.column(name, "external_id"), "x.template.openstack.org")

    pool.run(REAP, "one", expect=0)

    truth = pool.pocket_look()
    assert sorted(ip["description"] for ip in truth["floating_ips"]) == [
        "devstack-gate-pool=another server=x", "mine"]
    assert len(truth["keypairs"]) == 4
    assert sorted(one["name"] for one in truth["images"]) == [
        "Debian 12", "anna's look at bug 1", current, "x.template.openstack.org"]


def test_keypairs_and_floating_ips_of_ours_are_swept(pool: Pool) -> None:
    loaded(pool)
    pool.sql("INSERT INTO snapshot_image (id, base_image_id, name, version, state, state_time) "
             "VALUES (5, 1, 'failed', 1, 'ERROR', 1)")
    cloud = pool.client()
    network = cloud.network.find_network("public").id
    kept = pool.add_machine("READY")
    for what in ("vanished", pool.column(kept, "external_id")):
        cloud.network.create_ip(floating_network_id=network,
                                description=f"devstack-gate-pool={pool.uuid} server={what}")
    cloud.compute.create_keypair(name=f"devstack-gate-{pool.uuid}-5", public_key=ANY_HOST_KEY)

    result = pool.run(REAP, "one", expect=0)

    truth = pool.pocket_look()
    assert [ip["description"] for ip in truth["floating_ips"]] == [
        f"devstack-gate-pool={pool.uuid} server={pool.column(kept, 'external_id')}"]
    assert truth["keypairs"] == []
    assert result.stdout == "one: deleted 1 floating IP, 1 keypair, 1 snapshot\n"


def test_the_floating_ip_of_a_template_goes_when_its_build_could_not_release_it(pool: Pool) -> None:
    """The cloud deleted the server, but answered with an error."""
    loaded(pool)
    pool.seed_snapshots()
    pool.sql("UPDATE snapshot_image SET server_external_id = 'gone'")
    cloud = pool.client()
    cloud.network.create_ip(floating_network_id=cloud.network.find_network("public").id,
                            description=f"devstack-gate-pool={pool.uuid} server=gone")
    pool.run(REAP, "one", expect=0)
    assert pool.pocket_look()["floating_ips"] == []


def test_the_floating_ip_of_a_machine_goes_with_it(pool: Pool) -> None:
    name = loaded(pool).add_machine("DELETE")
    cloud = pool.client()
    cloud.network.create_ip(floating_network_id=cloud.network.find_network("public").id,
                            description=f"devstack-gate-pool={pool.uuid} server={pool.column(name, 'external_id')}")

    pool.run(REAP, "one", expect=0)

    assert (gone(pool, name), pool.pocket_look()["floating_ips"]) == (True, [])


def test_the_server_of_a_machine_that_was_held_before_its_id_was_saved_is_its_own(pool: Pool) -> None:
    name = loaded(pool).add_machine("HOLD")
    server = pool.column(name, "external_id")
    pool.sql("UPDATE machine SET external_id = NULL")

    pool.run(REAP, "one", expect=0)

    assert (pool.column(name, "external_id"), pool.server_names()) == (server, [name])


def test_a_held_machine_whose_server_vanished_stays_but_its_floating_ip_goes(pool: Pool) -> None:
    name = loaded(pool).add_machine("HOLD")
    cloud = pool.client()
    cloud.network.create_ip(floating_network_id=cloud.network.find_network("public").id,
                            description=f"devstack-gate-pool={pool.uuid} server={pool.column(name, 'external_id')}")
    pool.pocket_server(name, vanish=True)

    result = pool.run(REAP, "one", expect=0)

    assert (pool.machines(), pool.pocket_look()["floating_ips"]) == ({name: "HOLD"}, [])
    assert f"is held, but its server is gone; release it with: vmdatabase.py unhold {name}\n" in result.stderr


@pytest.mark.parametrize(("state", "kept"), [("BUILDING", 1), ("HOLD", 1), ("USED", 0)])
def test_a_floating_ip_that_was_reserved_stays_as_long_as_it_may_be_bound(pool: Pool, state: str, kept: int) -> None:
    name = loaded(pool).add_machine(state, node=False)
    cloud = pool.client()
    cloud.network.create_ip(floating_network_id=cloud.network.find_network("public").id,
                            description=f"devstack-gate-pool={pool.uuid} machine={name.rpartition('-')[2]}")

    pool.run(REAP, "one", expect=0)

    assert len(pool.pocket_look()["floating_ips"]) == kept


def test_stray_nodes_of_ours_go_and_other_peoples_stay(pool: Pool) -> None:
    loaded(pool)
    pool.add_node("devstack-noble-one-77", "devstack-noble", "127.0.0.77")
    pool.add_node("devstack-noble-one-78", "devstack-noble", "127.0.0.78", pool="somebody-else")

    pool.run(REAP, "one", expect=0)

    assert list(pool.nodes()) == ["devstack-noble-one-78"]
    assert pool.in_service("devstack-noble-one-78")


@pytest.mark.parametrize("name", ["arm-builder", "arm-20261130101112", "devstack-noble-one-1-78",
                                  "my-devstack-noble-one-79"])
def test_a_copy_that_a_person_made_of_a_node_is_left_and_told_and_tells_nothing_of_ids(pool: Pool, name: str) -> None:
    loaded(pool, provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    pool.add_machine("DELETE")
    pool.add_node(name, "arm", "127.0.0.77")

    result = pool.run(REAP, "one", expect=1)
    pool.run("devstack-vm-launch.py", "one", expect=0)

    assert f"node {name} carries our devstack-gate-pool, but its name is not one of our image types and providers" \
        in result.stderr
    assert result.stdout == "one: deleted 1 machine; 1 left for the next run\n"
    assert (list(pool.machines()), sorted(pool.nodes())) == (
        ["devstack-noble-one-2"], sorted([name, "devstack-noble-one-2"]))


def test_nodes_of_image_types_and_providers_that_are_no_more_go_once_their_machines_are_gone(pool: Pool) -> None:
    """Such a node remains if Jenkins fails while launch takes back the node of a machine that reap has deleted."""
    at_two: dict[str, Any] = {"provider": "two", "cloud": "pocket-b"}
    loaded(pool, provider(images=[image(min_ready=0), image("old", min_ready=0)]), provider("two", "pocket-b"))
    names = [pool.add_machine("DELETE", image="old"), pool.add_machine("DELETE", **at_two)]
    pool.load(provider(images=[image(min_ready=0)]))
    pool.run(REAP, "all", expect=0)
    for name in names:
        pool.add_node(name, "devstack-noble", "127.0.0.77")

    result = pool.run(REAP, "all", expect=0)

    assert (result.stdout, pool.nodes()) == ("one: deleted 2 stray nodes\n", {})


def test_nodes_and_servers_of_no_provider_are_reported_once_for_all(pool: Pool) -> None:
    loaded(pool, *(provider(name, "pocket-b", images=[image(min_ready=0)]) for name in ("two", "three")), provider())
    pool.run(REAP, "all", expect=0)
    pool.add_node("arm-builder", "arm", "127.0.0.77")
    pool.boot("annas", pool.marks("nobody"), "pocket-b")

    result = pool.run(REAP, "all", expect=1)

    assert sorted(result.stdout.splitlines()) == [
        "one: deleted nothing; 1 left for the next run", "three: deleted nothing; 1 left for the next run",
        "two: deleted nothing"]
    assert sorted(re.findall(r"provider=(\S+) (node arm-builder|server annas)", result.stderr)) == [
        ("one", "node arm-builder"), ("three", "server annas")]


def test_ids_beyond_those_that_a_pool_gives_are_left_and_tell_nothing_of_ids(pool: Pool) -> None:
    """With a higher one, names would have more digits than a machine's, and no later one would be recognized."""
    loaded(pool, provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    number, name = 10**15, f"devstack-noble-one-{10**15 + 1}"
    pool.boot("annas", pool.marks(machine=number))
    pool.add_node(name, "devstack-noble", "127.0.0.77")

    result = pool.run(REAP, "one", expect=1)
    pool.run("devstack-vm-launch.py", "one", expect=0)

    assert result.stdout == "one: deleted nothing; 1 left for the next run\n"
    assert f"node {name} carries our devstack-gate-pool, but its name is not one of our image types" in result.stderr
    assert (list(pool.machines()), pool.server_names()) == (["devstack-noble-one-1"], ["annas", "devstack-noble-one-1"])


def test_a_drained_provider_stays_until_nothing_of_it_is_left(pool: Pool) -> None:
    """Nova leaves the volume of a deleted server behind if Cinder fails; its status tells that only a little later."""
    on_volume = image(boot_from_volume=True, volume_size=4, min_ready=1)
    loaded(pool, provider("two", "pocket-b"), provider(images=[on_volume]))
    pool.seed_snapshots()
    pool.fill()
    pool.knobs(volumes_stay=True)
    pool.load(provider("two", "pocket-b"))

    results = [pool.run(REAP, "one").stdout]
    pool.load(provider("two", "pocket-b"))
    results += [pool.run(REAP, "one").stdout for _ in range(2)]

    assert results[0].startswith("one: deleted 1 machine, 1 snapshot")
    assert results[1:] == ["one: deleted 1 volume\n", "one: deleted nothing\n"]
    assert pool.sql("SELECT name FROM provider") == [("two",)]


def test_a_drained_provider_stays_while_a_server_that_a_person_renamed_is_there(pool: Pool) -> None:
    loaded(pool, provider("two", "pocket-b"), provider())
    pool.boot("annas", pool.marks(snapshot=7))
    pool.add_machine("DELETE")
    pool.load(provider("two", "pocket-b"))
    assert pool.pocket
    pool.pocket.age("pocket-a", HOUR)

    kept = [pool.run(REAP, "one", expect=1).stdout for _ in range(2)]
    pool.pocket_server("annas", vanish=True)
    pool.run(REAP, "one", expect=0)

    assert kept == [f"one: deleted {what}; 1 left for the next run\n" for what in ("1 machine", "nothing")]
    assert pool.sql("SELECT name FROM provider") == [("two",)]


def test_a_stray_node_that_builds_is_left_for_the_next_run(pool: Pool) -> None:
    loaded(pool)
    pool.add_node("devstack-noble-one-77", "devstack-noble", "127.0.0.77")
    assert pool.jenkins
    pool.jenkins.add_job("on-stray", "devstack-noble-one-77", seconds=600)
    pool.jenkins.wait_started(pool.jenkins.build("on-stray"))

    result = pool.run(REAP, "one", expect=1)

    assert "stray node devstack-noble-one-77: a build runs there; left for the next run" in result.stderr
    assert list(pool.nodes()) == ["devstack-noble-one-77"]


# --- a vm.db that is older than the world ---


def filled(pool: Pool, ready: int) -> list[str]:
    """Back up vm.db, then have launch fill the pool; return the names of the machines."""
    pool.load(provider(images=[image(min_ready=ready)]))
    pool.seed_snapshots()
    pool.back_up()
    pool.run("devstack-vm-launch.py", "one", expect=0)
    return list(pool.machines())


def restore(pool: Pool) -> None:
    """Replace vm.db by its backup, and make everything in the cloud 1000 seconds older."""
    pool.restore()
    assert pool.pocket
    pool.pocket.age("pocket-a", 1000)


def build_on(pool: Pool, name: str, job: str) -> int:
    """Start a long build on a node and take the node as its first step does; return the build's number."""
    assert pool.jenkins
    pool.jenkins.add_job(job, name, seconds=600)
    number = int(pool.jenkins.wait_started(pool.jenkins.build(job))["number"])
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME=job, BUILD_NUMBER=str(number))
    return number


def test_after_a_restore_what_builds_is_held_or_taken_has_a_row_again_and_the_rest_waits_for_a_word(pool: Pool) -> None:
    built, held_one, taken, offline, ready = filled(pool, 5)
    number = build_on(pool, built, "gate-restored")
    pool.run("vmdatabase.py", "hold", held_one, "--reason", "bug 1", "--hours", "50", expect=0)
    until = pool.column(held_one, "hold_until")
    pool.run("devstack-vm-inprogress.py", taken, expect=0)
    assert pool.jenkins
    pool.jenkins.node(offline, temporarilyOffline=True, message="bug 2", user="anna")
    restore(pool)

    result = pool.run(REAP, "one", expect=1)

    assert pool.server_names() == [built, held_one, taken, offline, ready]
    assert pool.machines() == {built: "USED", held_one: "HOLD", taken: "USED", offline: "HOLD"}
    assert [pool.column(held_one, name) for name in ("hold_reason", "hold_until")] == ["bug 1", until]
    assert pool.column(offline, "hold_reason") == "its node is offline in Jenkins: Disconnected by anna : bug 2"
    assert pool.sql("SELECT node_name, jenkins_job_name, jenkins_build_number FROM result ORDER BY node_name") == [
        (built, "gate-restored", number), (taken, None, None)]
    assert all(f"{name}: vm.db did not know that it is" in result.stderr for name in (built, held_one, taken, offline))
    assert (f"servers without a row in vm.db: {ready}; 1 of 1 were made by a newer vm.db than this one, which looks "
            "like a restored vm.db, so all are left; if it was restored, run vmdatabase.py moved, otherwise reap with "
            "--all-servers"
            ) in result.stderr
    assert pool.in_service(ready)


def test_a_machine_in_use_that_a_restored_vm_db_has_as_being_created_has_its_server_again(pool: Pool) -> None:
    """The backup was made between the row of the machine and the id of its server."""
    (name,) = filled(pool, 1)
    build_on(pool, name, "gate-early")
    server = pool.column(name, "external_id")
    pool.sql("UPDATE machine SET state = 'BUILDING', external_id = NULL, jenkins_name = NULL, ip = NULL")

    pool.run(REAP, "one", expect=1)

    assert pool.sql("SELECT name, state, external_id FROM machine") == [(name, "USED", server)]


@pytest.mark.parametrize("word", ["moved", "--all-servers"])
def test_after_a_persons_word_the_cloud_and_vm_db_agree_again(pool: Pool, word: str) -> None:
    names = filled(pool, 6)
    pool.run("vmdatabase.py", "hold", names[0], "--reason", "bug 1", expect=0)
    restore(pool)
    pool.run(REAP, "one", expect=1)
    assert pool.server_names() == names

    if word == "moved":
        pool.run("vmdatabase.py", "moved", expect=0)
    pool.run(REAP, "one", *[word] * (word != "moved"), expect=0)
    pool.run("devstack-vm-launch.py", "one", expect=0)
    assert pool.run(REAP, "one", expect=0).stdout == "one: deleted nothing\n"

    machines = pool.machines()
    assert sorted(machines) == pool.server_names() == sorted(pool.nodes())
    assert sorted(machines.values()) == ["HOLD"] + ["READY"] * 6
    assert not set(names[1:]) & machines.keys(), "a name was given twice"


@pytest.mark.parametrize("word", [True, False])
def test_a_person_neither_takes_nor_holds_a_machine_of_which_only_the_restored_row_is_left(
        pool: Pool, word: bool) -> None:
    """word: whether a person said that vm.db was moved; if not, the ids noted beside it tell."""
    (name,) = filled(pool, 1)
    pool.back_up()
    pool.sql("UPDATE machine SET state = 'DELETE'")
    pool.run(REAP, "one", expect=0)
    assert (pool.machines(), pool.server_names()) == ({}, [])
    pool.run("devstack-vm-launch.py", "one", expect=0)
    restore(pool)
    if word:
        pool.run("vmdatabase.py", "moved", expect=0)
    assert pool.machines() == {name: "READY"}

    taken = pool.run("devstack-vm-inprogress.py", "--image", "noble", expect=1)
    held = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 1", expect=1)

    assert "no READY machine of image noble" in taken.stderr
    assert f"is gone, so there is nothing to keep; release it with: vmdatabase.py unhold {name}" in held.stderr


def test_launch_gives_up_a_restored_row_whose_server_may_have_come_and_gone_since(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    name = pool.add_machine("BUILDING", server=False, node=False)
    pool.back_up()
    pool.run("devstack-vm-launch.py", "one", expect=0)
    assert pool.machines() == {name: "READY"} and pool.server_names() == [name]
    pool.sql("UPDATE machine SET state = 'DELETE'")
    pool.run(REAP, "one", expect=0)
    restore(pool)
    pool.run("vmdatabase.py", "moved", expect=0)

    launched = pool.run("devstack-vm-launch.py", "one")

    assert f"node={name} BUILDING -> ERROR: there is no server; it may have had one before vm.db was restored" \
        in launched.stderr
    assert name not in pool.server_names()
    pool.run(REAP, "one", expect=0)
    assert list(pool.machines().values()) == ["READY"]


@pytest.mark.parametrize("answers", [[], [{"match": "POST /computer/", "status": 500}]],
                         ids=["Jenkins answers", "Jenkins does not answer"])
def test_the_node_of_a_held_machine_goes_out_of_service_though_a_restored_row_does_not_know_it(
        pool: Pool, answers: list[dict[str, Any]]) -> None:
    pool.load(provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    name = pool.add_machine("BUILDING", node=False)
    pool.back_up()
    pool.run("devstack-vm-launch.py", "one", expect=0)
    restore(pool)
    pool.run("vmdatabase.py", "moved", expect=0)
    assert pool.jenkins and pool.in_service(name)

    pool.jenkins.knobs(answers=answers)
    pool.run("vmdatabase.py", "hold", name, "--reason", "bug 1", expect=int(bool(answers)))
    pool.jenkins.knobs(answers=[])
    assert pool.in_service(name) == bool(answers)
    pool.run(REAP, "one", expect=0)

    assert pool.machines() == {name: "HOLD"}
    assert not pool.in_service(name)
    pool.run("vmdatabase.py", "unhold", name, expect=0)
    pool.run(REAP, "one", expect=0)
    assert list(pool.nodes()) == pool.server_names() == []


def test_launch_uses_no_id_again_that_a_server_or_node_bears_and_reap_still_knows_it_for_unknown(pool: Pool) -> None:
    names = filled(pool, 2)
    shutil.rmtree(pool.folder / "vm.db.locks", ignore_errors=bool(pool.address))  # ids of vm.db are noted there, too
    restore(pool)

    pool.run("devstack-vm-launch.py", "one", expect=0)
    result = pool.run(REAP, "one", expect=1)

    assert list(pool.machines()) == ["devstack-noble-one-3", "devstack-noble-one-4"]
    assert f"servers without a row in vm.db: {', '.join(names)}; 2 of 2 were made by a newer vm.db" in result.stderr
    assert len(pool.server_names()) == 4


@pytest.mark.parametrize("state", ["gone", "USED"])
def test_a_build_that_ended_unknown_to_vm_db_is_recorded(pool: Pool, state: str) -> None:
    (name,) = filled(pool, 1)
    assert pool.jenkins
    job = f"gate-ended-{state}"
    command = [sys.executable, "-c", f"raise SystemExit({int(state == 'USED')})"]
    pool.jenkins.add_job(job, name, seconds=0.1, before=command)
    number = int(pool.jenkins.wait_started(pool.jenkins.build(job))["number"])
    result = str(pool.jenkins.wait_build(job, number)["result"])
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME=job, BUILD_NUMBER=str(number))
    restore(pool)

    pool.run(REAP, "one", expect=1)

    assert pool.machines() == ({} if state == "gone" else {name: "USED"})
    assert pool.sql("SELECT jenkins_job_name, jenkins_build_number, result FROM result") == [(job, number, result)]


def test_rows_of_a_restored_vm_db_learn_what_has_become_of_their_machines(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=4)]))
    pool.seed_snapshots()
    pool.fill()
    built, held_one, deleted, _ = pool.machines()
    pool.back_up()
    build_on(pool, built, "gate-old-row")
    pool.run("vmdatabase.py", "hold", held_one, "--reason", "bug 2", expect=0)
    pool.run("vmdatabase.py", "hold", deleted, "--reason", "bug 3", expect=0)
    restore(pool)
    pool.run("devstack-vm-inprogress.py", deleted)
    pool.run("devstack-vm-delete.py", deleted, "--result", "SUCCESS", expect=0)
    assert pool.machines()[deleted] == "DELETE"

    pool.run(REAP, "one", expect=1)

    assert list(pool.machines().values()) == ["USED", "HOLD", "HOLD", "READY"]
    assert (pool.column(held_one, "hold_reason"), pool.column(deleted, "hold_reason")) == ("bug 2", "bug 3")
    pool.run("vmdatabase.py", "unhold", deleted, expect=0)
    pool.run(REAP, "one", expect=0)
    assert deleted not in pool.machines()
    assert "would take over" not in pool.run(REAP, "one", "--dry-run", expect=0).stdout


def test_a_machine_that_was_building_at_the_backup_is_not_logged_in_to_again(pool: Pool) -> None:
    (built, ready) = filled(pool, 2)
    build_on(pool, built, "gate-was-building")
    pool.sql("UPDATE machine SET state = 'BUILDING', jenkins_name = NULL, ip = NULL, host_key = NULL")

    launched = pool.run("devstack-vm-launch.py", "one")
    pool.run(REAP, "one", expect=1)

    assert launched.stderr.count("has a node already: vm.db is older than that; left to the next reap") == 2
    assert pool.machines() == {built: "USED"}
    assert (pool.server_names(), list(pool.nodes())) == ([built], [built])
    assert ready not in pool.machines()


def test_a_used_machine_of_which_only_the_server_is_left_does_not_come_back_into_service(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    pool.fill()
    (name,) = pool.machines()
    pool.back_up()
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="gate", BUILD_NUMBER="1")
    pool.run("devstack-vm-delete.py", name, "--result", "SUCCESS", expect=0)
    pool.knobs(delete_ignored=True)  # the node goes first
    reaping = pool.start(REAP, "one")
    while name in pool.nodes():
        assert reaping.poll() is None
    reaping.kill()
    reaping.communicate()
    pool.knobs(delete_ignored=False)
    restore(pool)
    pool.run("vmdatabase.py", "moved", expect=0)

    launched = pool.run("devstack-vm-launch.py", "one", expect=1)

    assert launched.stdout == "one noble: 0 of 1 ready, 1 lost to Jenkins\n"
    assert pool.nodes() == {}
    pool.run(REAP, "one")
    assert name not in pool.machines()
    pool.run("devstack-vm-launch.py", "one", expect=0)


def test_few_leaks_of_known_ids_go(pool: Pool) -> None:
    loaded(pool)
    for number in (1, 2, 3):
        pool.boot(f"devstack-noble-one-{number}", pool.marks(machine=number))
    pool.sql("INSERT INTO sqlite_sequence (name, seq) VALUES ('machine', 99)")
    assert pool.pocket
    pool.pocket.age("pocket-a", 1000)
    pool.run(REAP, "one", expect=0)

    assert pool.server_names() == []


def test_a_leak_goes_with_its_node_and_not_while_that_builds(pool: Pool) -> None:
    _, busy = (loaded(pool).add_machine("READY") for _ in range(2))
    assert pool.jenkins
    pool.jenkins.add_job("on-leak", busy, seconds=600)
    pool.jenkins.wait_started(pool.jenkins.build("on-leak"))
    pool.sql("DELETE FROM machine")
    assert pool.pocket
    pool.pocket.age("pocket-a", 1000)

    pool.run(REAP, "one", expect=1)

    assert (pool.server_names(), list(pool.nodes()), pool.machines()) == ([busy], [busy], {busy: "USED"})


@pytest.mark.parametrize("state", ["READY", "DELETE"])
def test_what_a_person_renamed_is_neither_deleted_nor_forgotten(pool: Pool, state: str) -> None:
    name = loaded(pool).add_machine(state, age=99 * HOUR)
    compute = pool.client().compute
    compute.update_server(pool.column(name, "external_id"), name="annas-machine")

    result = pool.run(REAP, "one", expect=1)
    pool.run(REAP, "one")

    assert pool.server_names() == ["annas-machine"]
    assert pool.machines() == {name: "DELETE" if state == "DELETE" else "HOLD"}
    assert "its server was renamed to annas-machine" in result.stderr


def test_the_floating_ip_of_a_server_that_the_list_leaves_out_stays_with_it(pool: Pool) -> None:
    loaded(pool).knobs(list_stale_seconds=600)
    server = pool.boot("devstack-noble-7.template.openstack.org", pool.marks(snapshot=7))
    network = pool.client().network
    address = network.create_ip(floating_network_id=network.find_network("public").id,
                                description=f"devstack-gate-pool={pool.uuid} server={server}")

    result = pool.run(REAP, "one", expect=1)

    assert f"{address.floating_ip_address} leads to server {server}, which the cloud's list leaves out" in result.stderr
    assert [ip.id for ip in network.ips()] == [address.id]


def test_what_somebody_took_from_us_by_its_marks_is_left_to_them(pool: Pool) -> None:
    names = [loaded(pool).add_machine(state) for state in ("READY", "DELETE", "HOLD")]
    ids = [pool.column(name, "external_id") for name in names]
    user = pool.client()
    network = user.network.find_network("public").id
    address = user.network.create_ip(
        floating_network_id=network, description=f"devstack-gate-pool={pool.uuid} server={ids[1]}")
    for server in ids:
        user.compute.delete_server_metadata(server, ["devstack-gate-pool"])
    marks = pool.marks(snapshot=1)
    kept = user.image.create_image(
        name="devstack-noble-1.template.openstack.org", container_format="bare", disk_format="raw", data=b"x",
        validate_checksum=False, **{**marks, "devstack-gate-pool": "somebody's"})
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, external_id, server_external_id, state, "
             "state_time) SELECT id, ?, 1, ?, ?, 'ERROR', 1 FROM base_image", kept.name, kept.id, ids[0])

    result = pool.run(REAP, "one", expect=1)

    assert result.stdout == "one: deleted 2 machines, 1 snapshot; 1 left for the next run\n"
    assert [ip.id for ip in user.network.ips()] == [address.id]
    assert f"floating IP {address.floating_ip_address} leads to server {ids[1]}, which does not carry" in result.stderr
    assert pool.server_names() == sorted(names)
    assert (pool.machines(), list(pool.nodes())) == ({names[2]: "HOLD"}, [names[2]])
    assert pool.sql("SELECT id FROM snapshot_image") == []
    assert kept.id in [one["id"] for one in pool.pocket_look()["images"]]
    assert f"server {names[0]} {ids[0]} does not carry our devstack-gate-pool any more" in result.stderr
    assert "does not carry our devstack-gate-pool any more, so it is left\n" in result.stderr


@pytest.mark.parametrize("provider_mark", ["bobs", "two"])
def test_a_server_whose_provider_mark_was_changed_is_left_and_told_by_each_run(pool: Pool, provider_mark: str) -> None:
    """Provider two works in another project, so nobody else would ever look at that server."""
    loaded(pool, provider("one"), provider("two", "pocket-b"))
    pool.run(REAP, "two", expect=0)
    name = pool.add_machine()
    server = pool.column(name, "external_id")
    pool.client().compute.set_server_metadata(server, **{"devstack-gate-provider": provider_mark})
    pool.run(REAP, "two", expect=0)

    first, second = pool.run(REAP, "one", expect=1), pool.run(REAP, "one", expect=1)

    assert f"server {name} {server} does not carry our devstack-gate-provider any more" in first.stderr
    assert "READY -> DELETE: its server does not carry our devstack-gate-provider any more" in first.stderr
    for run in (first, second):
        assert (f"server {name} {server} carries our devstack-gate-pool, but its devstack-gate-provider names no "
                "provider of vm.db") in run.stderr
    assert (pool.machines(), pool.server_names()) == ({}, [name])


def test_a_cloud_that_leads_to_another_project_now_ends_nothing(pool: Pool) -> None:
    loaded(pool, provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    names = [pool.add_machine(state) for state in ("READY", "USED", "HOLD")]
    pool.run(REAP, "one", expect=0)
    before, rows = pool.machines(), pool.server_names()
    entry = pool.folder / "clouds.yaml"
    told = yaml.safe_load(Path(pool.environment["OS_CLIENT_CONFIG_FILE"]).read_text())
    told["clouds"]["pocket-a"]["auth"] |= {"username": "other", "project_name": "other"}
    entry.write_text(yaml.safe_dump(told))
    entry.chmod(0o600)

    for script in (REAP, "devstack-vm-launch.py"):
        result = pool.run(script, "one", expect=2, OS_CLIENT_CONFIG_FILE=str(entry))
        assert re.search("provider one: cloud pocket-a leads to project [0-9a-f]+, region RegionOne, but its 3 "
                         "machines and 1 images are in project [0-9a-f]+, region RegionOne; have it lead there again ",
                         result.stderr)

    assert (pool.machines(), pool.server_names()) == (before, rows)
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == dict(zip(names, ("READY", "USED", "HOLD"), strict=True))


def test_the_server_of_a_held_machine_tells_so_at_the_cloud(pool: Pool) -> None:
    name = loaded(pool).add_machine("READY")
    later = pool.add_machine("HOLD", hold_reason="bug 2", hold_until=2**31)
    pool.run("vmdatabase.py", "hold", name, "--reason", "bug 1: żółw", expect=0)
    told = {one["name"]: one["metadata"] for one in pool.servers()}
    assert (told[name]["devstack-gate-hold"], told[name]["devstack-gate-hold-until"]) == ("bug 1: ???w", "0")

    pool.run(REAP, "one", expect=0)

    told = {one["name"]: one["metadata"] for one in pool.servers()}
    assert (told[later]["devstack-gate-hold"], told[later]["devstack-gate-hold-until"]) == ("bug 2", str(2**31))


# --- agents that are of no use ---


def test_a_node_whose_label_a_person_has_changed_is_theirs_and_the_pool_is_full_again(pool: Pool) -> None:
    loaded(pool, provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    name = pool.add_machine("READY")
    assert pool.jenkins
    pool.jenkins.node(name, label="debug")

    told = pool.run("devstack-vm-launch.py", "one", expect=1)
    pool.run(REAP, "one", expect=1)
    filled = pool.run("devstack-vm-launch.py", "one", expect=0)

    assert told.stdout == "one noble: 0 of 1 ready, 1 lost to Jenkins\n"
    assert f"no build can run on {name}: a person changed its labels in Jenkins: debug" in told.stderr
    assert (pool.machines()[name], filled.stdout) == ("HOLD", "one noble: 1 of 1 ready\n")
    assert pool.column(name, "hold_reason") == "its node's labels were changed in Jenkins: debug"


def agents_die(pool: Pool, *names: str, seconds: float = 900) -> None:
    """Let agents die; Jenkins has them back after `seconds`."""
    assert pool.jenkins
    pool.jenkins.knobs(reconnect_seconds=seconds)
    for name in names:
        pool.jenkins.node(name, die=True)


def test_a_break_between_jenkins_and_its_agents_costs_no_machine(pool: Pool) -> None:
    names = filled(pool, 3)
    agents_die(pool, *names)

    reaped = pool.run(REAP, "one", expect=0)
    launched = pool.run("devstack-vm-launch.py", "one", expect=0)

    assert (reaped.stdout, launched.stdout) == ("one: deleted nothing\n", "one noble: 3 of 3 ready\n")
    assert "are disconnected; waiting for Jenkins to reconnect them\n" in reaped.stderr
    pool.sql("UPDATE machine SET absent_time = ?", int(time.time()) - 75)
    pool.run(REAP, "one", expect=0)
    pool.sql("UPDATE machine SET absent_time = ?", int(time.time()) - 150)
    last = pool.run(REAP, "one", expect=1)
    assert last.stdout == "one: deleted 3 machines; 3 ready machines lost to Jenkins\n"
    assert "(its agent is gone: Connection was broken: java.io.EOFException; log: " in last.stderr


def test_an_agent_that_is_back_again_counts_as_never_gone(pool: Pool) -> None:
    (name,) = filled(pool, 1)
    agents_die(pool, name)
    pool.run(REAP, "one", expect=0)
    assert pool.column(name, "absent_time")
    assert pool.jenkins
    pool.jenkins.node(name, launch=True)
    pool.jenkins.wait_node(name, "online")

    pool.run("devstack-vm-launch.py", "one", expect=0)

    assert pool.column(name, "absent_time") is None


def test_machines_that_are_all_silent_at_once_are_the_networks_fault_for_a_while(pool: Pool) -> None:
    names = filled(pool, 2)
    for name in names:
        pool.pocket_server(name, ssh="refused")
    agents_die(pool, *names)

    first = pool.run(REAP, "one", expect=0)
    assert "to reconnect them, and for the network, since none answers by ssh" in first.stderr
    pool.sql("UPDATE machine SET absent_time = absent_time - 1800")
    pool.run(REAP, "one", expect=1)

    assert (pool.machines(), pool.server_names(), pool.nodes()) == ({}, [], {})


def test_of_machines_one_of_which_is_silent_that_one_goes(pool: Pool) -> None:
    alive, silent = filled(pool, 2)
    pool.pocket_server(silent, ssh="refused")
    agents_die(pool, silent)

    pool.run(REAP, "one", expect=1)

    assert pool.machines() == {alive: "READY"}


def test_what_jenkins_itself_took_offline_is_replaced_and_what_a_person_did_is_not(pool: Pool) -> None:
    full, offline = filled(pool, 2)
    assert pool.jenkins
    pool.jenkins.node(full, barred="hudson.node_monitors.DiskSpaceMonitorDescriptor$DiskSpace",
                      message="0.412GB left on /tmp.")
    pool.jenkins.node(offline, temporarilyOffline=True, message="anna looks")

    launched = pool.run("devstack-vm-launch.py", "one", expect=1)
    reaped = pool.run(REAP, "one", expect=1)

    assert launched.stdout == "one noble: 0 of 2 ready, 1 lost to Jenkins, 1 offline by a person\n"
    assert re.search(f"no build can run on {full}: Jenkins took it offline: 0.412GB left on /tmp.; log: "
                     f"http://.*/computer/{full}/log\n", launched.stderr)
    assert "READY -> ERROR: its Jenkins node died (Jenkins took it offline: 0.412GB left on /tmp.; " in reaped.stderr
    assert (gone(pool, full), pool.machines()) == (True, {offline: "READY"})


@pytest.mark.parametrize(("kept", "options", "why"), [
    ({"max_ready_age": 1}, [], "ready for more than 1 hours (max-ready-age)"),
    (None, [], "its image is no longer in the providers file"),
    ({}, ["--all-servers"], "--all-servers")])
def test_a_ready_machine_whose_node_a_person_took_offline_stays_and_is_told(
        pool: Pool, kept: dict[str, Any] | None, options: list[str], why: str) -> None:
    loaded(pool, provider(images=[image("noble", **(kept or {})), image("trusty")]))
    name = pool.add_machine("READY", age=2 * HOUR)
    assert pool.jenkins
    pool.jenkins.node(name, temporarilyOffline=True, user="anna")
    if kept is None:
        pool.load(provider(images=[image("trusty")]))

    result = pool.run(REAP, "one", *options, expect=1)

    assert f"{name}: its node is offline in Jenkins: Disconnected by anna; so it is left, although it should go: " \
        f"{why}\n" in result.stderr
    assert result.stdout == "one: deleted nothing; 1 left for the next run\n"
    assert (pool.machines(), pool.server_names(), list(pool.nodes())) == ({name: "READY"}, [name], [name])


def test_a_build_on_a_node_that_jenkins_takes_offline_goes_on(pool: Pool) -> None:
    (name,) = filled(pool, 1)
    assert pool.jenkins
    pool.jenkins.add_job("on-full", name, seconds=600)
    pool.jenkins.wait_started(pool.jenkins.build("on-full"))
    pool.jenkins.node(name, barred="hudson.node_monitors.DiskSpaceMonitorDescriptor$DiskSpace")

    pool.run(REAP, "one", expect=0)

    assert pool.machines() == {name: "READY"}


# --- snapshots ---


def add_snapshot(pool: Pool, version: int, state: str = "READY", image_type: str = "noble") -> str:
    """Add a snapshot row and, unless it is BUILDING, its image in the cloud; return its name."""
    ((base_image, provider_name, cloud),) = pool.sql(
        "SELECT base_image.id, provider.name, cloud FROM base_image JOIN provider ON provider_id = provider.id "
        "WHERE base_image.name = ?", image_type)
    name = f"devstack-{image_type}-{version}.template.openstack.org"
    ((row,),) = pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
                         "VALUES (?, ?, ?, ?, ?) RETURNING id", base_image, name, version, state, version)
    if state != "BUILDING":
        made = pool.client(cloud).image.create_image(
            name, container_format="bare", disk_format="qcow2", allow_duplicates=True, visibility="private",
            **pool.marks(provider_name, snapshot=row))
        pool.sql("UPDATE snapshot_image SET external_id = ? WHERE id = ?", made.id, row)
    return name


def images(pool: Pool) -> list[str]:
    return sorted(one["name"] for one in pool.pocket_look()["images"] if one["name"] != "Debian 12")


def test_current_and_previous_snapshot_stay_and_older_and_failed_ones_go(pool: Pool) -> None:
    loaded(pool, provider(images=[image("noble"), image("trusty")]))
    for version in (1, 2, 4, 5):
        add_snapshot(pool, version)
    add_snapshot(pool, 3, "ERROR")
    add_snapshot(pool, 1, "READY", "trusty")

    pool.run(REAP, "one", expect=0)

    kept = ["devstack-noble-4.template.openstack.org", "devstack-noble-5.template.openstack.org",
            "devstack-trusty-1.template.openstack.org"]
    assert images(pool) == kept
    assert sorted(name for (name,) in pool.sql("SELECT name FROM snapshot_image")) == kept


def test_an_image_build_that_was_killed_ends_and_leaves_nothing(pool: Pool) -> None:
    loaded(pool)
    add_snapshot(pool, 1)
    add_snapshot(pool, 2, "BUILDING")

    pool.run(REAP, "one", expect=0)

    assert pool.sql("SELECT version, state FROM snapshot_image") == [(1, "READY")]


def test_all_images_deletes_the_current_ones_too(pool: Pool) -> None:
    loaded(pool)
    add_snapshot(pool, 1)
    add_snapshot(pool, 2)

    pool.run(REAP, "one", "--all-images", expect=0)

    assert (images(pool), pool.sql("SELECT * FROM snapshot_image")) == ([], [])


@pytest.mark.parametrize(("state", "options"), [("READY", []), ("READY", ["--all-images"]), ("ERROR", [])])
def test_an_image_that_a_person_renamed_is_neither_deleted_nor_forgotten(
        pool: Pool, state: str, options: list[str]) -> None:
    loaded(pool)
    name = add_snapshot(pool, 1, state)
    kept = [add_snapshot(pool, version) for version in (2, 3)]
    ((image_id,),) = pool.sql("SELECT external_id FROM snapshot_image WHERE name = ?", name)
    cloud = pool.client().image
    cloud.update_image(image_id, name="annas-image")

    for _ in range(2):
        result = pool.run(REAP, "one", *options, expect=1)
        assert f"snapshot {name}: its image {image_id} was renamed to annas-image, so it is left; delete it or take " \
               "its metadata devstack-gate-pool away\n" in result.stderr

    assert images(pool) == ["annas-image", *([] if options else kept)]
    cloud.update_image(image_id, name=name)
    pool.run(REAP, "one", expect=0)
    assert images(pool) == ([] if options else kept)


@pytest.mark.parametrize("first", [REAP, "moved"])
def test_after_a_restore_a_good_image_has_a_row_again_and_another_waits_for_a_word(pool: Pool, first: str) -> None:
    loaded(pool)
    add_snapshot(pool, 1)
    pool.back_up()
    good, unproved = add_snapshot(pool, 2), add_snapshot(pool, 3)
    cloud = pool.client().image
    ((image_id,),) = pool.sql("SELECT external_id FROM snapshot_image WHERE version = 2")
    disk = cloud.get_image(image_id)
    disk.data = b"a disk"
    disk.upload(cloud)
    cloud.update_image(image_id, **{"devstack-gate-proved": "1"})
    restore(pool)

    if first == "moved":
        pool.run("vmdatabase.py", "moved", expect=0)
        pool.run(REAP, "one", expect=1)
        assert images(pool) == ["devstack-noble-1.template.openstack.org", good]
        assert pool.sql("SELECT name, state FROM snapshot_image WHERE version > 1") == [(good, "READY")]
        return
    result = pool.run(REAP, "one", expect=1)

    assert pool.sql("SELECT name, state FROM snapshot_image WHERE version > 1") == [(good, "READY")]
    assert f"snapshot {good}: vm.db did not know it; now it does" in result.stderr
    assert f"image {unproved} " in result.stderr
    assert len(images(pool)) == 3
    pool.run("vmdatabase.py", "moved", expect=0)
    pool.run(REAP, "one", expect=0)
    assert images(pool) == ["devstack-noble-1.template.openstack.org", good]


def test_a_snapshot_whose_image_is_gone_is_booted_from_no_more(pool: Pool) -> None:
    loaded(pool, provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    newest = add_snapshot(pool, 2)
    cloud = pool.client()
    cloud.image.delete_image(pool.sql("SELECT external_id FROM snapshot_image WHERE version = 2")[0][0])
    pool.run("devstack-vm-launch.py", "one", expect=1)

    result = pool.run(REAP, "one", expect=0)
    pool.run("devstack-vm-launch.py", "one", expect=0)

    assert f"snapshot {newest}: its image is gone" in result.stderr


def add_kept_template(pool: Pool, keep_until: float) -> None:
    """Add what a failed build with --keep-failed leaves: a row in ERROR, its server and the server's floating IP."""
    pool.sql("INSERT INTO snapshot_image (id, base_image_id, name, version, state, state_time, error, keep_until) "
             "VALUES (5, 1, 'kept', 1, 'ERROR', 1, 'no such package', ?)", int(keep_until))
    server_id = pool.boot("kept", pool.marks(snapshot=5))
    pool.sql("UPDATE snapshot_image SET server_external_id = ?", server_id)
    cloud = pool.client()
    cloud.network.create_ip(floating_network_id=cloud.network.find_network("public").id,
                            description=f"devstack-gate-pool={pool.uuid} server={server_id}")


@pytest.mark.parametrize("options", [[], ["--all-images", "--all-servers"]], ids=" ".join)
def test_a_template_kept_for_a_person_stays_with_row_server_and_address(pool: Pool, options: list[str]) -> None:
    add_kept_template(loaded(pool), time.time() + HOUR)

    result = pool.run(REAP, "one", *options, expect=0)

    assert pool.server_names() == ["kept"]
    assert pool.sql("SELECT state, error FROM snapshot_image") == [("ERROR", "no such package")]
    assert len(pool.pocket_look()["floating_ips"]) == 1
    assert result.stdout == "one: deleted nothing\n"


def test_a_kept_template_goes_when_its_hours_are_over(pool: Pool) -> None:
    add_kept_template(loaded(pool), time.time() - 1)

    pool.run(REAP, "one", expect=0)

    assert (pool.server_names(), pool.sql("SELECT * FROM snapshot_image")) == ([], [])
    assert pool.run(REAP, "one", expect=0).stdout in ("one: deleted 1 floating IP\n", "one: deleted nothing\n")
    assert pool.pocket_look()["floating_ips"] == []


def test_a_kept_template_whose_server_a_person_renamed_stays_and_is_told(pool: Pool) -> None:
    add_kept_template(loaded(pool), time.time() - 1)
    (server,) = pool.servers()
    pool.client().compute.update_server(server["id"], name="annas")

    result = pool.run(REAP, "one", expect=1)

    assert (pool.server_names(), pool.sql("SELECT id FROM snapshot_image")) == (["annas"], [(5,)])
    assert result.stderr.count(f"server annas {server['id']} has no row in vm.db and is left: it was renamed or copied "
                               "by a person; its metadata devstack-gate-pool makes it ours") == 1
    pool.run(REAP, "one", "--all-servers", expect=0)
    assert (pool.server_names(), pool.sql("SELECT id FROM snapshot_image")) == ([], [])


def test_a_kept_template_of_an_image_that_left_the_providers_file_stays_its_hours(pool: Pool) -> None:
    loaded(pool, provider(images=[image("noble"), image("trusty")]))
    add_kept_template(pool, time.time() + HOUR)
    pool.load(provider(images=[image("trusty")]))

    pool.run(REAP, "one", expect=0)

    assert pool.server_names() == ["kept"]
    assert pool.sql("SELECT name, active FROM base_image ORDER BY name") == [("noble", 0), ("trusty", 1)]


@pytest.mark.parametrize("hours", [1, -1], ids=["kept", "over, not reaped"])
def test_a_kept_template_takes_room_as_long_as_it_is_there(pool: Pool, hours: int) -> None:
    loaded(pool, provider(max_servers=1, images=[image(min_ready=1)]))
    add_kept_template(pool, time.time() + hours * HOUR)
    pool.seed_snapshots()

    pool.run("devstack-vm-launch.py", "one", expect=1)
    assert (pool.machines(), pool.server_names()) == ({}, ["kept"])
    pool.sql("UPDATE snapshot_image SET keep_until = 1 WHERE id = 5")
    pool.run(REAP, "one", expect=0)
    pool.run("devstack-vm-launch.py", "one", expect=0)

    assert pool.server_names() == ["devstack-noble-one-1"]


@pytest.mark.parametrize("hours", [1, -1], ids=["kept", "over, not reaped"])
def test_a_kept_template_takes_the_room_of_one_server(pool: Pool, hours: int) -> None:
    loaded(pool, provider(max_servers=2, images=[image(min_ready=1)]))
    add_kept_template(pool, time.time() + hours * HOUR)
    pool.seed_snapshots()

    pool.run("devstack-vm-launch.py", "one", expect=0)

    assert pool.server_names() == ["devstack-noble-one-1", "kept"]


def test_an_image_that_cannot_be_deleted_keeps_its_row_for_the_next_run(pool: Pool) -> None:
    loaded(pool)
    for version in (1, 2, 3):
        add_snapshot(pool, version)
    pool.knobs(answers=[{"service": "image", "match": "DELETE /images/.*", "status": 500}])

    pool.run(REAP, "one", expect=1)
    assert len(pool.sql("SELECT * FROM snapshot_image")) == 3
    pool.knobs(answers=[])
    pool.run(REAP, "one", expect=0)

    assert len(pool.sql("SELECT * FROM snapshot_image")) == len(images(pool)) == 2


# --- whole runs ---


def test_all_servers_spares_the_held_and_those_that_build(pool: Pool) -> None:
    loaded(pool)
    names = {state: pool.add_machine(state) for state in ("READY", "USED", "BUILDING", "HOLD")}

    pool.run(REAP, "one", "--all-servers", expect=0)

    assert pool.machines() == {names["HOLD"]: "HOLD"}


def test_all_servers_leaves_a_person_the_machine_for_24_hours_and_says_so(pool: Pool) -> None:
    loaded(pool)
    given, over, used = pool.add_machine("USED"), pool.add_machine("USED", age=25 * HOUR), pool.add_machine("USED")
    pool.sql("INSERT INTO result (base_image_id, machine_id, by_person) SELECT base_image_id, id, 1 FROM machine "
             "WHERE name != ?", used)

    result = pool.run(REAP, "one", "--all-servers", expect=1)

    assert (pool.machines(), pool.server_names()) == ({given: "USED"}, [given])
    assert re.findall(r"WARNING provider=one (.*)", result.stderr) == [
        f"{given}: a person was given it; so it is left, although it should go: --all-servers; if it may go all the "
        "same, hold it and unhold it"]
    assert over not in pool.nodes()


def test_dry_run_prints_what_would_go_and_changes_nothing(pool: Pool) -> None:
    loaded(pool)
    over, old = pool.add_machine("DELETE"), pool.add_machine("USED", age=25 * HOUR)
    add_snapshot(pool, 1, "ERROR")
    pool.add_node("devstack-noble-one-77", "devstack-noble", "127.0.0.77")
    before = without_notes(pool.dump()), pool.server_names(), images(pool), pool.nodes()

    result = pool.run(REAP, "one", "--dry-run", expect=0)

    assert result.stdout.splitlines() == [
        f"would move {old} USED -> DELETE: used, and kept for 24 hours",
        f"would take node {old} out of service",
        f"would delete machine {over} (DELETE)",
        "would delete snapshot devstack-noble-1.template.openstack.org (ERROR)",
        "would delete stray node devstack-noble-one-77",
    ]
    assert (without_notes(pool.dump()), pool.server_names(), images(pool), pool.nodes()) == before


def test_a_drained_image_ends_with_its_row(pool: Pool) -> None:
    loaded(pool, provider(images=[image("noble"), image("trusty", min_ready=0)]))
    name = pool.add_machine("READY", image="trusty")
    add_snapshot(pool, 1, "READY", "trusty")
    pool.load(provider(images=[image("noble")]))

    pool.run(REAP, "one", expect=0)

    assert (gone(pool, name), images(pool)) == (True, [])
    assert pool.sql("SELECT name FROM base_image") == [("noble",)]


def test_the_snapshots_of_an_image_that_got_a_template_go_once_nothing_boots_from_them(pool: Pool) -> None:
    loaded(pool, provider(images=[image("noble"), image("trusty")]))
    kept = add_snapshot(pool, 1)
    for version in (1, 2):
        add_snapshot(pool, version, image_type="trusty")
    boots = pool.add_machine("BUILDING", image="trusty", node=False)
    pool.sql("UPDATE machine SET snapshot_image_id = (SELECT max(id) FROM snapshot_image)")
    pool.load(provider(images=[image("noble"), image("trusty", template="noble")]))

    pool.run(REAP, "one", expect=0)
    assert images(pool) == [kept, "devstack-trusty-2.template.openstack.org"]
    pool.sql("UPDATE machine SET state = 'READY' WHERE name = ?", boots)
    pool.run(REAP, "one", expect=0)

    assert (images(pool), pool.sql("SELECT name FROM snapshot_image")) == ([kept], [(kept,)])
    assert pool.machines() == {boots: "READY"}


def test_a_drained_provider_ends_when_its_last_build_has(pool: Pool) -> None:
    loaded(pool, provider("one"), provider("two", "pocket-b"))
    ready, used = (pool.add_machine(state, provider="two", cloud="pocket-b") for state in ("READY", "USED"))
    pool.load(provider("one"))

    pool.run(REAP, "two", expect=0)
    assert pool.machines() == {used: "USED"}
    pool.run("devstack-vm-delete.py", used, "--result", "SUCCESS", expect=0)
    pool.run(REAP, "two", expect=0)

    assert (pool.machines(), pool.server_names("pocket-b"), ready in pool.nodes()) == ({}, [], False)
    assert pool.sql("SELECT name FROM provider") == [("one",)]


def test_one_broken_provider_does_not_stop_the_others(pool: Pool) -> None:
    loaded(pool, provider("one"), provider("two", "pocket-b"))
    kept = pool.add_machine("DELETE")
    pool.add_machine("DELETE", provider="two", cloud="pocket-b")
    pool.knobs(answers=[{"match": ".*", "status": 500}])

    result = pool.run(REAP, "all", expect=1)

    assert (result.stdout, pool.machines()) == ("two: deleted 1 machine\n", {kept: "DELETE"})


def test_one_server_that_cannot_be_deleted_does_not_stop_the_others(pool: Pool) -> None:
    kept, over = loaded(pool).add_machine("DELETE"), pool.add_machine("DELETE")
    pool.knobs(answers=[{"match": f"DELETE /servers/{pool.column(kept, 'external_id')}", "status": 409}])

    result = pool.run(REAP, "one", expect=1)

    assert f"{kept}: provider one: delete server: " in result.stderr
    assert result.stdout == "one: deleted 1 machine; 1 left for the next run\n"
    assert (pool.machines(), gone(pool, over)) == ({kept: "DELETE"}, True)


def test_an_overlapping_reap_steps_aside_says_so_and_is_made_up_for(pool: Pool) -> None:
    loaded(pool).add_machine("DELETE")
    pool.knobs(delete_seconds=10)
    first = pool.start(REAP, "one")
    while not pool.calls("DELETE", "/servers/{id}"):
        assert first.poll() is None

    second = pool.run(REAP, "one", expect=0)

    assert "another reap is at work on this provider" in second.stderr
    assert first.communicate(timeout=60)[0] == "one: deleted 1 machine\none: deleted nothing\n"


# --- clouds and Jenkins that give no answer, or a wrong one ---

CLOUD_TROUBLE: dict[str, dict[str, Any]] = {
    "401": {"answers": [{"match": ".*", "status": 401}]},
    "500": {"answers": [{"match": ".*", "status": 500}]},
    "load balancer": {"answers": [{"match": ".*", "kind": "html", "status": 502}]},
    "reset": {"answers": [{"match": ".*", "kind": "reset"}]},
    "cut short": {"answers": [{"match": "GET /servers/detail", "kind": "truncate"}]},
    "login refused": {"answers": [{"service": "identity", "match": "POST .*", "status": 401}]},
    "only shows fail": {"list_empty": 99, "answers": [{"match": "GET /servers/[^/]{36}", "status": 500}]},
    "deletes are not found, but nothing goes": {
        "list_empty": 99, "answers": [{"match": "GET /servers/[^/]{36}", "status": 503},
                                      {"match": "DELETE /servers/.*", "status": 503}]},
}


@pytest.mark.parametrize("trouble", CLOUD_TROUBLE)
def test_a_cloud_in_trouble_loses_no_machine_and_the_next_run_goes_on(pool: Pool, trouble: str) -> None:
    ready, over, saved = loaded(pool).add_machine("READY"), pool.add_machine("DELETE"), pool.add_machine("USED")
    pool.sql("UPDATE machine SET external_id = NULL WHERE name = ?", over)
    servers = pool.server_names()
    pool.knobs(**CLOUD_TROUBLE[trouble])

    result = pool.run(REAP, "one")

    assert result.returncode in (1, 2), result.stderr
    assert pool.machines() == {ready: "READY", over: "DELETE", saved: "USED"}
    assert (pool.server_names(), pool.in_service(ready)) == (servers, True)
    pool.knobs(list_empty=0, answers=[])
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == {ready: "READY", saved: "USED"}


@pytest.mark.parametrize("empty", [1, 99])
def test_an_empty_list_for_a_while_loses_no_machine_and_no_server(pool: Pool, empty: int) -> None:
    ready, _over, unsaved = (loaded(pool).add_machine(state) for state in ("READY", "DELETE", "ERROR"))
    pool.sql("UPDATE machine SET external_id = NULL WHERE name = ?", unsaved)
    pool.knobs(list_empty=empty)

    pool.run(REAP, "one", expect=1)

    assert (gone(pool, ready), pool.in_service(ready)) == (False, True)
    rows = {name for name in pool.machines() if name != ready}
    assert rows >= set(pool.server_names()) - {ready}, "a server has lost its row"
    pool.knobs(list_empty=0)
    pool.run(REAP, "one", expect=0)
    assert (pool.machines(), pool.server_names()) == ({ready: "READY"}, [ready])


JENKINS_TROUBLE: dict[str, dict[str, Any]] = {
    "403": {"status": 403}, "500": {"status": 500}, "reset": {"kind": "reset"},
}


@pytest.mark.parametrize("trouble", JENKINS_TROUBLE)
def test_a_jenkins_in_trouble_loses_no_machine_and_no_node(pool: Pool, trouble: str) -> None:
    ready, over, old = (loaded(pool).add_machine(state, age=age) for state, age in (
        ("READY", 0), ("DELETE", 0), ("USED", 25 * HOUR)))
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": ".*", **JENKINS_TROUBLE[trouble]}])

    result = pool.run(REAP, "one", expect=1)

    assert "machines that may have a node are left alone" in result.stderr
    assert pool.machines() == {ready: "READY", over: "DELETE", old: "USED"}
    assert sorted(pool.nodes()) == pool.server_names() == [ready, over, old]
    pool.jenkins.knobs(answers=[])
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == {ready: "READY"}


@pytest.mark.parametrize("trouble", JENKINS_TROUBLE)
def test_a_node_that_jenkins_does_not_delete_keeps_its_machine(pool: Pool, trouble: str) -> None:
    over = loaded(pool).add_machine("DELETE")
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": "POST /computer/.*/doDelete", **JENKINS_TROUBLE[trouble]}])

    pool.run(REAP, "one", expect=1)

    assert (pool.machines(), pool.server_names(), list(pool.nodes())) == ({over: "DELETE"}, [over], [over])
    pool.jenkins.knobs(answers=[])
    pool.run(REAP, "one", expect=0)
    assert gone(pool, over)


# --- the end of the slow runs ---


def test_a_machine_whose_agent_died_is_deleted_and_those_whose_agent_came_back_or_was_taken_stay(slow: Slow) -> None:
    output = slow.deaths.communicate(timeout=60)

    assert (slow.deaths.returncode, output[0]) == (
        1, "two: deleted 1 machine; 1 ready machine lost to Jenkins\n"), output
    left = [name for name in slow.pool.machines() if "-two-" in name]
    assert left == [slow.names[what] for what in ("back", "taken", "well")]
    assert f"node={slow.names['dead']} READY -> ERROR: its Jenkins node died" in output[1]


def test_a_stuck_delete_is_reported_with_its_age_from_the_first_attempt(slow: Slow) -> None:
    output = slow.stuck.communicate(timeout=90)

    assert slow.stuck.returncode == 1, output
    assert re.search(rf"{slow.names['stuck']}: the server is still there, 60 s after its deletion was asked for; "
                     r"stuck, the first attempt to delete it was \d{8} min ago", output[1])
    assert re.search(rf"{slow.names['new']}: the server is still there, 60 s after its deletion was asked for\n",
                     output[1])
    slow.pool.knobs(delete_ignored=False)
    slow.pool.run(REAP, "one", expect=0)
    assert [name for name in slow.pool.machines() if "-one-" in name] == []


# --- a clock that jumps ---


@pytest.mark.file
def test_a_clock_that_has_jumped_ahead_ends_no_hold_and_takes_no_machine_of_a_failed_build(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=0)]))
    failed = taken(pool, HOUR, end_time=1, result="FAILURE")
    held = pool.add_machine("HOLD", age=60, hold_until=int(time.time()) + 40 * HOUR)
    young = pool.boot("devstack-noble-one-99", pool.marks(machine=99))
    ahead = pool.folder / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text("import time\nreal = time.time\ntime.time = lambda: real() + 172800\n")

    result = pool.run(REAP, "one", expect=1, PYTHONPATH=str(ahead))

    assert pool.machines() == {failed: "USED", held: "HOLD"}
    assert young in [server["id"] for server in pool.servers()]
    assert "the clock of this host is 2880 min ahead of the cloud's; ages are counted without that" in result.stderr


def test_what_a_clock_that_was_ahead_has_written_counts_from_now_on(pool: Pool) -> None:
    loaded(pool)
    names = [pool.add_machine(state, age=-48 * HOUR) for state in ("READY", "USED")]
    pool.sql("UPDATE machine SET absent_time = state_time")

    result = pool.run(REAP, "one", expect=0)
    pool.run(REAP, "one", expect=0)

    assert "2 machines have times in the future, written by a clock that was ahead" in result.stderr
    times = [time for row in pool.sql("SELECT state_time, coalesce(absent_time, 0) FROM machine") for time in row]
    assert (list(pool.machines()), max(times) <= time.time()) == (names, True)


def test_a_volume_that_block_storage_never_finishes_is_told(make_pool: MakePool) -> None:
    pool = make_pool()
    pool.load(provider(images=[image(boot_from_volume=True, volume_size=10, min_ready=1)], boot_timeout=1))
    pool.seed_snapshots()
    pool.knobs(volume_seconds=9999)
    pool.run("devstack-vm-launch.py", "one", expect=1)
    young = pool.run(REAP, "one", expect=0)
    assert pool.pocket
    pool.pocket.age("pocket-a", HOUR)

    result = pool.run(REAP, "one", expect=1)

    ((name, volume_id),) = [(one["name"], one["id"]) for one in pool.pocket_look()["volumes"]]
    assert volume_id not in young.stderr
    assert f"volume {name} {volume_id} is creating, but there is no server that has it" in result.stderr


@pytest.mark.parametrize(("name", "end", "told"), [
    (TEMPLATE, "image", ""), (TEMPLATE, "marks", "image annas .* refers to a snapshot of it, so it is left"),
    ("annas", "image", "somebody has made snapshots of it, so it is left: snapshot for annas"),
], ids=["ours", "ours, of somebody's image", "somebody's"])
def test_the_volume_of_a_template_whose_image_a_person_deleted_goes_with_its_snapshot_if_nobody_has_that(
        pool: Pool, name: str, end: str, told: str) -> None:
    loaded(pool, provider(images=[image(boot_from_volume=True, min_ready=0)]))
    cloud = pool.client()
    volume = cloud.block_storage.create_volume(name="template", size=1, metadata=pool.marks(snapshot=9),
                                               image_id=pool.pocket_look()["images"][0]["id"])
    root = {"boot_index": 0, "uuid": volume.id, "source_type": "volume", "destination_type": "volume"}
    server = cloud.compute.wait_for_server(cloud.compute.create_server(
        name="template", flavor_id="1", block_device_mapping=[root],
        networks=[{"uuid": cloud.network.find_network("private").id}]))
    template = cloud.compute.create_server_image(server, name, wait=True)
    if end == "image":
        cloud.image.delete_image(template)
    else:
        cloud.image.update_image(template.id, name="annas", **{"devstack-gate-pool": "annas"})
    cloud.compute.delete_server(server)
    cloud.compute.wait_for_delete(server)

    result = pool.run(REAP, "one", expect=1 if told else 0)

    assert re.search(told, result.stderr)
    left = pool.pocket_look()
    assert (len(left["volumes"]), len(left["volume_snapshots"])) == ((1, 1) if told else (0, 0))
    if told:  # she has no use for it any more
        cloud.block_storage.delete_snapshot(left["volume_snapshots"][0]["id"])
        pool.run(REAP, "one", expect=0)
        assert pool.pocket_look()["volumes"] == []


def test_a_volume_that_is_in_use_by_no_server_is_told(pool: Pool) -> None:
    """Block storage shows this if nobody told it that the server is gone."""
    loaded(pool, provider(images=[image(boot_from_volume=True, min_ready=0)]))
    volume = {"id": "v-7", "name": "devstack-noble-one-7", "status": "in-use", "metadata": pool.marks(machine=7),
              "attachments": [{"server_id": "00000000-0000-0000-0000-000000000007"}]}
    pool.knobs(answers=[{"service": "block-storage", "match": "GET /volumes/detail", "status": 200,
                         "body": {"volumes": [volume]}}])

    result = pool.run(REAP, "one", expect=1)

    assert "volume devstack-noble-one-7 v-7 is in-use, but there is no server that has it" in result.stderr
