"""jobs/after-build.py, which the job devstack-vm-delete runs: which build has ended, and how."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, await_that, provider

SCRIPT = "jobs/after-build.py"


@pytest.fixture(scope="module")
def jenkins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Run a Jenkins whose nodes are online without a machine."""
    with StandIn(tmp_path_factory.mktemp("jenkins"), knobs={"connect": "instant"}) as running:
        yield running


@pytest.fixture
def pool(tmp_path: Path, jenkins: StandIn) -> Pool:
    """Return a pool without a cloud."""
    jenkins.knobs(answers=[])
    made = Pool(tmp_path, None, jenkins)
    made.load(provider())
    return made


def add_machine(pool: Pool, number: int) -> str:
    """Add a machine that a build uses, with its node; return its name."""
    name = f"devstack-noble-one-{number}"
    pool.sql("INSERT OR REPLACE INTO machine (id, base_image_id, name, jenkins_name, user, state, state_time) "
             "VALUES (?, 1, ?, ?, 'jenkins', 'USED', 1)", number, name, name)
    assert pool.jenkins
    pool.jenkins.add_nodes([{"name": name, "label": f"label-{pool.folder.name}-{number}"}])
    return name


def run_build(pool: Pool, number: int, job: str = "gate", seconds: float = 0.0) -> int:
    """Run a build on a machine's node; return its number."""
    assert pool.jenkins
    pool.jenkins.add_job(job, f"label-{pool.folder.name}-{number}", seconds=seconds)
    build = pool.jenkins.wait_started(pool.jenkins.build(job))
    if not seconds:
        pool.jenkins.wait_build(job, build["number"])
    return int(build["number"])


def after(pool: Pool, expect: int, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the script as the job does: with all of its parameters set, most of them empty."""
    given = dict.fromkeys(("GATE_NODE_NAME", "GATE_RESULT", "GATE_JOB_NAME", "GATE_BUILD_NUMBER"), "")
    given |= {"JOB_NAME": "devstack-vm-delete", "BUILD_NUMBER": "1"}
    return pool.run(SCRIPT, expect=expect, **(given | environment))


def state(pool: Pool, name: str) -> tuple[str, str | None, int | None, str | None]:
    """Return the state of a machine, and what is recorded of its last build."""
    rows = pool.sql("SELECT jenkins_job_name, jenkins_build_number, result FROM result WHERE node_name = ?", name)
    return (pool.machines()[name], *(rows[-1] if rows else (None, None, None)))


def test_a_result_that_is_told_is_taken_without_asking(pool: Pool, jenkins: StandIn) -> None:
    node = add_machine(pool, 1)

    after(pool, 0, GATE_NODE_NAME=node, GATE_RESULT="FAILURE", GATE_JOB_NAME="gate", GATE_BUILD_NUMBER="7")

    assert state(pool, node) == ("USED", "gate", 7, "FAILURE")


def test_the_result_is_asked_for_where_it_is_not_told(pool: Pool) -> None:
    node = add_machine(pool, 2)
    number = run_build(pool, 2)

    after(pool, 0, GATE_NODE_NAME=node, GATE_JOB_NAME="gate", GATE_BUILD_NUMBER=str(number))

    assert state(pool, node) == ("DELETE", "gate", number, "SUCCESS")


def test_a_node_alone_is_marked_without_a_result(pool: Pool) -> None:
    node = add_machine(pool, 3)

    after(pool, 0, GATE_NODE_NAME=node)

    assert state(pool, node) == ("DELETE", None, None, None)


def test_a_build_that_still_ends_is_waited_for(pool: Pool, jenkins: StandIn) -> None:
    node = add_machine(pool, 4)
    number = run_build(pool, 4, seconds=300)
    process = pool.start(SCRIPT, GATE_NODE_NAME=node, GATE_JOB_NAME="gate", GATE_BUILD_NUMBER=str(number))
    jenkins.reset_calls()
    await_that("a look at the build", lambda: jenkins.calls().get("GET /job/{name}/{number}/api/json", 0) > 0)
    assert pool.machines()[node] == "USED"

    requests.post(f"{jenkins.url}job/gate/{number}/stop", auth=(jenkins.user, jenkins.token), timeout=30)

    assert process.wait(60) == 0, process.communicate()
    assert state(pool, node) == ("DELETE", "gate", number, "ABORTED")


def follow(pool: Pool, jenkins: StandIn, *builds: tuple[int, str]) -> tuple[str, list[int]]:
    """Run builds on the given machines and in the given jobs, all followed by one build of another job.

    Returns that job's name and the builds' numbers. Jenkins merges those that wait into one: they have no parameters.
    """
    follower = f"devstack-vm-delete-{builds[0][0]}"
    create(jenkins, follower, f"<assignedNode>{follower}</assignedNode>")
    numbers = []
    for number, job in builds:
        create(jenkins, job, f"""<assignedNode>label-{pool.folder.name}-{number}</assignedNode><publishers>
            <hudson.tasks.BuildTrigger><childProjects>{follower}</childProjects>
            <threshold><name>ABORTED</name><ordinal>4</ordinal></threshold></hudson.tasks.BuildTrigger></publishers>""")
        build = jenkins.wait_started(jenkins.build(job))
        jenkins.wait_build(job, build["number"])
        numbers.append(int(build["number"]))
    jenkins.add_nodes([{"name": follower, "label": follower}])
    await_that("the job that follows", lambda: [one for one in jenkins.look()["builds"] if one["job"] == follower])
    return follower, numbers


def create(jenkins: StandIn, job: str, config: str) -> None:
    """Make a freestyle job."""
    answer = requests.post(f"{jenkins.url}createItem", params={"name": job}, data=f"<project>{config}</project>",
                           auth=(jenkins.user, jenkins.token), timeout=30, headers={"Content-Type": "text/xml"})
    assert answer.status_code == 200, answer.text


def test_all_builds_that_it_follows_are_dealt_with(pool: Pool, jenkins: StandIn) -> None:
    nodes = add_machine(pool, 5), add_machine(pool, 6)
    follower, numbers = follow(pool, jenkins, (5, "gate-five"), (6, "gate-six"))

    after(pool, 0, JOB_NAME=follower)

    assert [state(pool, node) for node in nodes] == [
        ("DELETE", "gate-five", numbers[0], "SUCCESS"), ("DELETE", "gate-six", numbers[1], "SUCCESS")]


def test_a_build_that_is_unknown_does_not_keep_the_others(pool: Pool, jenkins: StandIn) -> None:
    nodes = add_machine(pool, 7), add_machine(pool, 9)
    follower, numbers = follow(pool, jenkins, (7, "gate-seven"), (9, "gate-nine"))
    requests.post(f"{jenkins.url}job/gate-seven/doDelete", auth=(jenkins.user, jenkins.token), timeout=30)

    done = after(pool, 1, JOB_NAME=follower)

    assert [state(pool, node) for node in nodes] == [
        ("USED", None, None, None), ("DELETE", "gate-nine", numbers[1], "SUCCESS")]
    assert "Jenkins knows no gate-seven #1, or the user lacks the right Job/Read on it; its" in done.stderr


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, "GATE_NODE_NAME: expected the node of a build, since this one follows no other"),
    ({"GATE_JOB_NAME": "gate"}, "expected a job and the number of a build, got 'gate' and ''"),
    ({"GATE_JOB_NAME": "gate", "GATE_BUILD_NUMBER": "x"}, "got 'gate' and 'x'"),
    ({"GATE_NODE_NAME": "n", "GATE_RESULT": "GOOD"}, "argument --result: invalid choice: 'GOOD'"),
    ({"GATE_NODE_NAME": "--help", "GATE_RESULT": "SUCCESS"}, "--help"),
])
def test_nonsense_is_one_line(pool: Pool, environment: dict[str, str], expected: str) -> None:
    done = after(pool, 2, **environment)
    assert expected in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_outage_of_jenkins_leaves_the_machine_to_reap(pool: Pool, jenkins: StandIn) -> None:
    node = add_machine(pool, 8)
    jenkins.knobs(answers=[{"match": ".*", "status": 503}])

    done = after(pool, 1, GATE_NODE_NAME=node, GATE_JOB_NAME="gate", GATE_BUILD_NUMBER="1")

    assert state(pool, node)[0] == "USED"
    assert "look at gate #1: 503" in done.stderr


def test_without_jenkins_the_result_must_be_told(pool: Pool) -> None:
    pool.jenkins = None
    pool.write_secure_config()
    done = after(pool, 2, GATE_NODE_NAME="n", GATE_JOB_NAME="gate", GATE_BUILD_NUMBER="1")
    assert "[jenkins] is missing: GATE_RESULT is empty, so Jenkins must be asked" in done.stderr
