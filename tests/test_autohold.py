"""vmdatabase.py autohold holds the machines of a job's next failed builds, exactly as many as wanted."""

import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.pool import PROJECT, Pool
from tests.test_verdict import archive, content

DELETE = "devstack-vm-delete.py"


@pytest.fixture
def pool(busy: Pool) -> Iterator[Pool]:
    """Yield the pool without autoholds; end Jenkins' faults after the test."""
    busy.sql("DELETE FROM autohold")
    yield busy
    assert busy.jenkins
    busy.jenkins.knobs(answers=[])


def autohold(pool: Pool, *arguments: str) -> str:
    """Make an autohold of the job gate; return its id."""
    done = pool.run("vmdatabase.py", "autohold", "--job", "gate", "--reason", "bug 5", *arguments, expect=0)
    return done.stdout.removeprefix("autohold ").strip()


def fails(pool: Pool, result: str = "FAILURE", job: str = "gate", change: int = 1) -> str:
    """Let a build end with a result on a new machine; return the machine's name."""
    name = pool.add_machine(server=False)
    build = {"JOB_NAME": job, "BUILD_NUMBER": "17", "ZUUL_CHANGE": str(change)}
    pool.run("devstack-vm-inprogress.py", name, expect=0, **build)
    pool.run(DELETE, name, "--result", result, expect=0, **build)
    return name


def left(pool: Pool) -> list[Any]:
    return [row[0] for row in pool.sql("SELECT remaining FROM autohold ORDER BY id")]


@pytest.mark.parametrize(("result", "state"), [
    ("FAILURE", "HOLD"), ("UNSTABLE", "HOLD"), ("TIMEOUT", "HOLD"), ("SUCCESS", "DELETE"), ("ABORTED", "DELETE")])
def test_the_machine_of_a_build_that_fails_is_held_and_says_for_which_autohold(
        pool: Pool, result: str, state: str) -> None:
    number = autohold(pool, "--hours", "5")
    name = fails(pool, result)

    assert pool.machines()[name] == state
    assert left(pool) == [int(state != "HOLD")]
    if state == "HOLD":
        assert pool.column(name, "hold_reason") == f"autohold {number}: bug 5"
        assert abs(pool.column(name, "hold_until") - time.time() - 5 * 3600) < 300
        assert not pool.in_service(name)


def test_without_hours_the_hold_has_no_end_and_a_used_up_autohold_holds_nothing_more(pool: Pool) -> None:
    autohold(pool, "--count", "2")
    names = [fails(pool) for _ in range(3)]

    assert [(pool.machines()[name], pool.column(name, "hold_until")) for name in names] == [
        ("HOLD", None), ("HOLD", None), ("USED", None)]
    assert left(pool) == [0]


def test_an_autohold_is_for_its_job_and_its_change_and_the_one_for_the_change_goes_first(pool: Pool) -> None:
    of_all, of_change = autohold(pool, "--count", "9"), autohold(pool, "--change", "1234")
    names = [fails(pool, job="other", change=1234), fails(pool, change=1234), fails(pool, change=5),
             fails(pool, change=1234)]

    assert [pool.column(name, "hold_reason") for name in names] == [
        None, f"autohold {of_change}: bug 5", f"autohold {of_all}: bug 5", f"autohold {of_all}: bug 5"]


def test_an_infrastructure_failure_is_held_if_an_autohold_says_so(pool: Pool) -> None:
    autohold(pool)
    archive(pool, content(kind="infrastructure"))
    held = fails(pool)
    gone = fails(pool)

    assert (pool.machines()[held], pool.machines()[gone]) == ("HOLD", "DELETE")


def test_a_machine_that_a_person_holds_already_uses_no_autohold(pool: Pool) -> None:
    autohold(pool)
    name = pool.add_machine(server=False)
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="gate", BUILD_NUMBER="1")
    pool.run("vmdatabase.py", "hold", name, "--reason", "mine", expect=0)
    pool.run(DELETE, name, "--result", "FAILURE", expect=0)

    assert (pool.column(name, "hold_reason"), left(pool)) == ("mine", [1])


def test_a_persons_own_machine_uses_no_autohold(pool: Pool) -> None:
    autohold(pool)
    name = pool.add_machine(server=False)
    pool.run("devstack-vm-inprogress.py", name, expect=0)
    pool.run(DELETE, name, "--result", "FAILURE", expect=0)

    assert left(pool) == [1]


def test_of_many_builds_that_fail_at_once_exactly_as_many_are_held(pool: Pool) -> None:
    autohold(pool, "--count", "3")
    names = [pool.add_machine(server=False) for _ in range(8)]
    for number, name in enumerate(names):
        pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="gate", BUILD_NUMBER=str(number))
    running = [pool.start(DELETE, name, "--result", "FAILURE") for name in names for _ in range(2)]  # each twice
    for process in running:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err

    assert sorted(pool.machines()[name] for name in names) == ["HOLD"] * 3 + ["USED"] * 5
    assert left(pool) == [0]


def test_a_machine_that_cannot_be_reached_stays_held_and_the_operator_is_told_how_to_let_the_person_in(
        pool: Pool) -> None:
    autohold(pool, "--ssh-key", f"{pool.key}.pub")
    name = pool.add_machine(server=False, ip="127.0.0.1")
    pool.sql("UPDATE provider SET ssh_port = 1, boot_timeout = 1")
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="gate", BUILD_NUMBER="1")
    done = pool.run(DELETE, name, "--result", "FAILURE", expect=1)
    pool.sql("UPDATE provider SET ssh_port = 22, boot_timeout = 30")

    assert pool.machines()[name] == "HOLD"
    assert f"{name}: is held, but the key of autohold" in done.stderr.splitlines()[-1]
    assert f"vmdatabase.py hold {name} --reason TEXT --ssh-key KEY" in done.stderr.splitlines()[-1]


def test_autoholds_are_listed_and_deleted_and_what_they_hold_stays_held(pool: Pool) -> None:
    first, second = autohold(pool, "--count", "2"), autohold(pool, "--change", "7", "--ssh-key", f"{pool.key}.pub")
    name = fails(pool)
    listed = pool.run("vmdatabase.py", "autohold", "list", expect=0).stdout.splitlines()

    assert [line.split() for line in listed] == [
        ["id", "job", "change", "count", "remaining", "hours", "reason", "ssh", "key"],
        [first, "gate", "2", "1", "bug", "5"], [second, "gate", "7", "1", "1", "bug", "5", "yes"]]
    pool.run("vmdatabase.py", "autohold", "delete", first, expect=0)
    assert pool.machines()[name] == "HOLD"
    assert fails(pool) and left(pool) == [1]
    assert autohold(pool) not in (first, second)


def test_a_job_whose_name_was_copied_with_spaces_around_it_is_that_job(pool: Pool) -> None:
    pool.run("vmdatabase.py", "autohold", "--job", " gate ", "--reason", "bug 5 ", expect=0)
    name = fails(pool)
    assert (pool.machines()[name], left(pool)) == ("HOLD", [0])


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "--job is missing"), (["--job", "gate"], "--reason is missing"),
    (["--job", "gate", "--reason", " "], "--reason: expected one line of text, got ' '"),
    (["--job", "a\nb", "--reason", "x"], r"--job: expected one line of text, got 'a\nb'"),
    (["--job", "gate", "--reason", "x", "--count", "0"], "--count: expected a whole number, 1 or more, got '0'"),
    (["--job", "gate", "--reason", "x", "--count", "9999999"], "--count: expected at most 1000000"),
    (["--job", "gate", "--reason", "x", "--change", "I12"], "--change: expected a whole number, 1 or more, got 'I12'"),
    (["--job", "gate", "--reason", "x", "--hours", "0"], "--hours: expected hours, above 0 and below 8784, got '0'"),
    (["--job", "gate", "--reason", "x", "--ssh-key", "nothing"], "--ssh-key: 'nothing' is neither a public key nor"),
    (["list", "--job", "gate"], "--job does not go with list"), (["show"], "expected list, delete ID, or --job"),
    (["delete"], "expected list, delete ID, or --job"), (["delete", "99"], "ID: there is no autohold '99'; see: "),
    (["delete", "x"], "ID: there is no autohold 'x'"),
], ids=str)
def test_wrong_use_is_one_line_and_makes_nothing(pool: Pool, arguments: list[str], message: str) -> None:
    done = pool.run("vmdatabase.py", "autohold", *arguments, expect=2)

    assert message in done.stderr
    assert (len(done.stderr.splitlines()), left(pool)) == (1, [])


def test_delete_loads_nothing_for_ssh_unless_a_person_is_to_be_let_in(pool: Pool) -> None:
    autohold(pool)
    name = pool.add_machine(server=False)
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="gate", BUILD_NUMBER="1")
    command = [sys.executable, "-X", "importtime", str(PROJECT / DELETE), name, "--result", "FAILURE"]
    done = subprocess.run(command, env=pool.environment, capture_output=True, text=True, timeout=60, check=True)

    assert pool.machines()[name] == "HOLD"
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert loaded & {"paramiko", "nodessh", "openstack"} == set()
