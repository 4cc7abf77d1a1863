"""devstack-vm-delete.py, after any end of a build."""

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.support.pool import PROJECT, Pool

DELETE = "devstack-vm-delete.py"
BUILD = {"JOB_NAME": "gate-tempest", "BUILD_NUMBER": "17"}
Take = Callable[..., str]


@pytest.fixture
def machine(busy: Pool) -> Iterator[Take]:
    """Yield a function that adds machines without servers; end Jenkins' faults after the test."""
    yield lambda *arguments, **columns: busy.add_machine(*arguments, **{"server": False, **columns})
    assert busy.jenkins
    busy.jenkins.knobs(answers=[])


def used(pool: Pool, machine: Take) -> str:
    """Add a machine whose build has begun; return its name."""
    name = machine()
    pool.run("devstack-vm-inprogress.py", name, expect=0, **BUILD)
    return name


@pytest.mark.parametrize(("result", "state"), [
    ("SUCCESS", "DELETE"), ("ABORTED", "DELETE"), (None, "DELETE"),
    ("FAILURE", "USED"), ("UNSTABLE", "USED"), ("TIMEOUT", "USED"),
])
def test_the_result_says_whether_the_machine_goes_or_stays_for_a_look(
        busy: Pool, machine: Take, result: str | None, state: str) -> None:
    name = used(busy, machine)

    busy.run(DELETE, name, *(["--result", result] if result else []), expect=0)

    assert busy.machines()[name] == state
    assert busy.sql("SELECT jenkins_job_name, jenkins_build_number, result, end_time >= start_time FROM result "
                    "WHERE node_name = ?", name) == [("gate-tempest", 17, result, 1)]
    assert not busy.in_service(name)


@pytest.mark.parametrize(("number", "code"), [("17", 0), ("18", 2), ("x", 2)])
def test_a_machine_that_reap_has_deleted_after_the_end_of_this_build_is_no_failure(
        busy: Pool, machine: Take, number: str, code: int) -> None:
    name = used(busy, machine)
    busy.run(DELETE, name, "--result", "SUCCESS", expect=0)
    busy.sql("DELETE FROM machine WHERE name = ?", name)

    told = busy.run(DELETE, name, "--result", "SUCCESS", expect=code, GATE_JOB_NAME="gate-tempest",
                    GATE_BUILD_NUMBER=number)

    assert ("devstack-vm-reap has recorded the end of its build" in told.stderr) == (code == 0)


def test_the_24_hours_of_a_failed_build_are_offered_to_be_longer(busy: Pool, machine: Take) -> None:
    name = used(busy, machine)

    result = busy.run(DELETE, name, "--result", "FAILURE", expect=0)

    assert f"FAILURE: kept for 24 hours; longer with: vmdatabase.py hold {name} --reason TEXT" in result.stderr


@pytest.mark.parametrize("result", ["SUCCESS", "FAILURE"])
def test_a_held_machine_stays_held_and_its_build_is_recorded(busy: Pool, machine: Take, result: str) -> None:
    name = used(busy, machine)
    busy.run("vmdatabase.py", "hold", name, "--reason", "bug 1", expect=0)

    busy.run(DELETE, name, "--result", result, expect=0)

    assert (busy.machines()[name], busy.column(name, "hold_reason")) == ("HOLD", "bug 1")
    assert busy.sql("SELECT result FROM result WHERE node_name = ?", name) == [(result,)]


@pytest.mark.parametrize("state", ["ERROR", "DELETE"])
def test_a_machine_that_goes_already_keeps_its_state(busy: Pool, machine: Take, state: str) -> None:
    name = machine(state)

    busy.run(DELETE, name, "--result", "SUCCESS", expect=0)

    assert busy.machines()[name] == state


def test_a_node_that_skipped_inprogress_is_taken_out_of_service_first(busy: Pool, machine: Take) -> None:
    name = machine()

    busy.run(DELETE, name, "--result", "SUCCESS", expect=0, **BUILD)

    assert busy.machines()[name] == "DELETE"
    node = busy.nodes()[name]
    assert (node["label"], node["temporarilyOffline"], node["offlineCauseReason"]) == (
        "devstack-used", True, "its build has ended")
    assert busy.sql("SELECT jenkins_job_name, start_time, result FROM result WHERE node_name = ?", name) == [
        ("gate-tempest", None, "SUCCESS")]


@pytest.mark.parametrize(("taken", "owner"), [(BUILD, "gate-tempest #17"), ({}, "a person")])
def test_a_machine_that_belongs_to_another_build_or_a_person_by_now_is_left_alone(
        busy: Pool, machine: Take, taken: dict[str, str], owner: str) -> None:
    name = machine()
    busy.run("devstack-vm-inprogress.py", name, expect=0, **taken)

    result = busy.run(DELETE, name, "--result", "ABORTED", expect=0, GATE_JOB_NAME="gate-tempest",
                      GATE_BUILD_NUMBER="16")

    assert f"belongs to {owner}; left alone" in result.stderr
    assert busy.machines()[name] == "USED"
    assert busy.sql("SELECT result, end_time FROM result WHERE node_name = ?", name) == [(None, None)]


def ran(pool: Pool, job: str, label: str) -> str:
    """Run a build of a job to its end; return its number."""
    assert pool.jenkins
    pool.jenkins.add_job(job, label)
    number = pool.jenkins.wait_started(pool.jenkins.build(job))["number"]
    pool.jenkins.wait_build(job, number)
    return str(number)


def test_the_build_of_a_job_that_was_renamed_meanwhile_is_recorded_under_its_new_name(
        busy: Pool, machine: Take) -> None:
    name = machine()
    number = ran(busy, "new-name", name)
    busy.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="old-name", BUILD_NUMBER=number)
    busy.run("vmdatabase.py", "autohold", "--job", "new-name", "--reason", "bug 7", expect=0)

    told = busy.run(DELETE, name, "--result", "FAILURE", expect=0, GATE_JOB_NAME="new-name", GATE_BUILD_NUMBER=number)

    assert "Jenkins has renamed the job old-name to new-name" in told.stderr
    assert busy.sql("SELECT jenkins_job_name, result FROM result WHERE node_name = ?", name) == [
        ("new-name", "FAILURE")]
    assert (busy.machines()[name], "bug 7" in busy.column(name, "hold_reason")) == ("HOLD", True)


@pytest.mark.parametrize(("old_is_known", "there"), [(True, True), (False, False)])
def test_a_build_of_another_job_with_the_same_number_owns_no_machine(
        busy: Pool, machine: Take, old_is_known: bool, there: bool) -> None:
    name, elsewhere = machine(), machine()
    old, new = f"old-{there}", f"new-{there}"
    number = ran(busy, new, name if there else elsewhere)
    if old_is_known:
        assert ran(busy, old, name) == number
    busy.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME=old, BUILD_NUMBER=number)

    told = busy.run(DELETE, name, "--result", "SUCCESS", expect=0, GATE_JOB_NAME=new, GATE_BUILD_NUMBER=number)

    assert f"belongs to {old} #{number}; left alone" in told.stderr
    assert (busy.machines()[name], busy.sql("SELECT jenkins_job_name, result FROM result WHERE node_name = ?", name)) \
        == ("USED", [(old, None)])


def test_without_jenkins_nobody_knows_whether_a_job_was_renamed(busy: Pool, machine: Take) -> None:
    name = used(busy, machine)
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": "GET /job/", "status": 500}])

    told = busy.run(DELETE, name, "--result", "SUCCESS", expect=1, GATE_JOB_NAME="new", GATE_BUILD_NUMBER="17")

    assert "look at gate-tempest #17: 500" in told.stderr
    assert busy.machines()[name] == "USED"


def test_a_machine_that_the_build_never_had_is_left_to_the_next(busy: Pool, machine: Take) -> None:
    name = machine()

    result = busy.run(DELETE, name, "--result", "ABORTED", expect=0, GATE_JOB_NAME="gate-tempest",
                      GATE_BUILD_NUMBER="16")

    assert "no build has had it yet; left alone" in result.stderr
    assert (busy.machines()[name], busy.in_service(name)) == ("READY", True)


def test_a_build_that_is_named_gives_up_its_own_machine(busy: Pool, machine: Take) -> None:
    name = used(busy, machine)

    busy.run(DELETE, name, "--result", "SUCCESS", expect=0, GATE_JOB_NAME="gate-tempest", GATE_BUILD_NUMBER="17")

    assert busy.machines()[name] == "DELETE"


def test_a_machine_that_still_boots_is_left_alone(busy: Pool, machine: Take) -> None:
    name = machine("BUILDING", node=False)

    result = busy.run(DELETE, name, "--result", "SUCCESS", expect=1)

    assert f"{name}: is BUILDING, no build can have run on it; left alone" in result.stderr
    assert busy.machines()[name] == "BUILDING"


@pytest.mark.parametrize("answer", [{"status": 401}, {"status": 403}, {"status": 500}, {"status": 503},
                                    {"kind": "reset"}], ids=str)
def test_without_jenkins_the_machine_is_marked_and_the_next_run_takes_the_node_out(
        busy: Pool, machine: Take, answer: dict[str, object]) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": ".*", **answer}])

    result = busy.run(DELETE, name, "--result", "SUCCESS", expect=1)

    assert "; the next reap tries again" in result.stderr
    assert (busy.machines()[name], busy.in_service(name)) == ("DELETE", True)
    busy.jenkins.knobs(answers=[])
    busy.run(DELETE, name, "--result", "SUCCESS", expect=0)
    assert not busy.in_service(name)


def test_with_a_jenkins_that_is_down_the_machine_is_marked_all_the_same(busy: Pool, machine: Take) -> None:
    name = used(busy, machine)
    busy.write_secure_config(server="http://127.0.0.1:1/")

    try:
        busy.run(DELETE, name, "--result", "SUCCESS", expect=1)
    finally:
        busy.write_secure_config()

    assert busy.machines()[name] == "DELETE"


def test_run_twice_it_keeps_the_first_result(busy: Pool, machine: Take) -> None:
    name = used(busy, machine)
    busy.run(DELETE, name, "--result", "FAILURE", expect=0)
    before = busy.sql("SELECT * FROM result WHERE node_name = ?", name)

    busy.run(DELETE, name, "--result", "SUCCESS", expect=0)

    assert busy.sql("SELECT * FROM result WHERE node_name = ?", name) == before


def test_a_node_that_jenkins_has_lost_is_no_trouble(busy: Pool, machine: Take) -> None:
    name = machine("USED", node=False, jenkins_name="gone")

    busy.run(DELETE, name, expect=0)

    assert busy.machines()[name] == "DELETE"


@pytest.mark.parametrize(("arguments", "message"), [
    (["devstack-noble-one-99999"], "unknown node devstack-noble-one-99999; `select name from node` lists those"),
    (["node", "--result", "GREEN"], "--result: invalid choice: 'GREEN'"),
    ([], "the following arguments are required: NODE_NAME"),
], ids=["node", "result", "nothing"])
def test_wrong_use_is_named(busy: Pool, arguments: list[str], message: str) -> None:
    assert message in busy.run(DELETE, *arguments, expect=2).stderr


def test_neither_cloud_nor_jenkins_libraries_are_loaded_while_a_build_waits(busy: Pool, machine: Take) -> None:
    name = used(busy, machine)

    command = [sys.executable, "-X", "importtime", str(PROJECT / DELETE), name]
    result = subprocess.run(command, env=busy.environment, capture_output=True, text=True, timeout=60, check=True)

    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "peewee" in loaded
    assert loaded & {"openstack", "novaclient", "keystoneauth1", "jenkins", "requests", "paramiko"} == set()
