"""devstack-vm-inprogress.py: one machine, one build."""

import hashlib
import re
import shutil
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest
import requests

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import PROJECT, Pool, await_that, image, load_script, provider

INPROGRESS = "devstack-vm-inprogress.py"
BUILD = {"JOB_NAME": "gate-tempest", "BUILD_NUMBER": "17"}
Take = Callable[..., str]


@pytest.fixture(scope="module")
def busy(site: tuple[Pocket, StandIn], tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Return one pool for all tests here; each test takes its own machines."""
    pool = Pool(tmp_path_factory.mktemp("busy"), *site)
    pool.load(provider(max_servers=99), provider("two", "pocket-b"), provider("empty", images=[image("lone")]))
    return pool


@pytest.fixture
def machine(busy: Pool) -> Iterator[Take]:
    """Yield a function that adds machines; after the test they are out of the way of others."""
    yield lambda *arguments, **columns: busy.add_machine(*arguments, **{"server": False, **columns})
    busy.sql("UPDATE machine SET state = 'DELETE'")
    assert busy.jenkins
    busy.jenkins.knobs(answers=[], latency_seconds=0)


def out_of_service(pool: Pool, name: str) -> bool:
    node = pool.nodes()[name]
    return bool(node["temporarilyOffline"] and node["label"] == "devstack-used")


def test_the_node_of_a_build_is_out_of_service_and_its_machine_used(busy: Pool, machine: Take) -> None:
    name = machine()

    busy.run(INPROGRESS, name, expect=0, **BUILD)

    assert busy.machines()[name] == "USED"
    node = busy.nodes()[name]
    assert (node["label"], node["temporarilyOffline"], node["offlineCauseReason"]) == (
        "devstack-used", True, "in use by gate-tempest #17")


@pytest.mark.parametrize(("environment", "change"), [
    ({"GERRIT_CHANGE_NUMBER": "1234", "GERRIT_PATCHSET_NUMBER": "5"}, (1234, 5)),
    ({"ZUUL_CHANGE": "4321", "ZUUL_PATCHSET": "6"}, (4321, 6)),
    ({}, (None, None)),
    ({"ZUUL_CHANGE": "no number"}, (None, None)),
], ids=["gerrit", "zuul", "none", "nonsense"])
def test_the_build_and_its_change_are_written_down(
        busy: Pool, machine: Take, environment: dict[str, str], change: tuple[int | None, int | None]) -> None:
    name = machine()
    before = int(time.time())

    busy.run(INPROGRESS, name, expect=0, **BUILD, **environment)

    ((*row, start),) = busy.sql(
        "SELECT node_name, jenkins_job_name, jenkins_build_number, gerrit_change_number, gerrit_patchset_number, "
        "end_time, result, start_time FROM result WHERE node_name = ?", name)
    assert row == [name, "gate-tempest", 17, *change, None, None]
    assert before <= start <= time.time()


def test_nothing_is_asked_of_the_cloud(busy: Pool, machine: Take) -> None:
    name = machine()
    busy.pocket_calls_reset()

    busy.run(INPROGRESS, name, expect=0)

    assert busy.pocket_look()["calls_total"] == {}


@pytest.mark.parametrize("trial", range(20))
def test_of_two_at_once_exactly_one_gets_the_node_and_it_stays_out_of_service(
        busy: Pool, machine: Take, trial: int) -> None:
    name = machine()

    runs = [busy.start(INPROGRESS, name) for _ in range(2)]

    errors = [run.communicate(timeout=60)[1] for run in runs]
    assert sorted(run.returncode for run in runs) == [0, 1], errors
    assert busy.machines()[name] == "USED"
    assert out_of_service(busy, name)


@pytest.mark.parametrize("trial", range(5))
def test_a_person_and_a_build_at_once_never_share_a_machine(busy: Pool, machine: Take, trial: int) -> None:
    name = machine()

    build, person = busy.start(INPROGRESS, name), busy.start(INPROGRESS, "--image", "noble", "--provider", "one")

    errors = [run.communicate(timeout=60)[1] for run in (build, person)]
    assert sorted([build.returncode, person.returncode]) == [0, 1], errors
    assert out_of_service(busy, name)


def test_two_persons_at_once_get_two_machines(busy: Pool, machine: Take) -> None:
    names = {machine(), machine()}

    runs = [busy.start(INPROGRESS, "--image", "noble", "--provider", "one") for _ in range(2)]

    printed = [run.communicate(timeout=60)[0].split()[0] for run in runs]
    assert set(printed) == names


def test_a_node_that_somebody_brings_online_at_that_moment_serves_no_other_build(busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(latency_seconds=0.05)
    run = busy.start(INPROGRESS, name)
    while run.poll() is None and not busy.nodes()[name]["temporarilyOffline"]:
        time.sleep(0.005)
    busy.jenkins.node(name, temporarilyOffline=False)

    error = run.communicate(timeout=60)[1]
    assert run.returncode in (0, 1), error
    assert not busy.in_service(name)


@pytest.mark.parametrize(("state", "columns", "message"), [
    ("HOLD", {"hold_reason": "anna looks at bug 1"}, "is HOLD (anna looks at bug 1)"),
    ("ERROR", {}, "is ERROR"),
    ("DELETE", {}, "is DELETE"),
    ("BUILDING", {}, "is BUILDING"),
    ("USED", {}, "is USED already"),
])
def test_a_machine_that_is_not_ready_is_refused_and_left_in_its_state(
        busy: Pool, machine: Take, state: str, columns: dict[str, str], message: str) -> None:
    name = machine(state, **columns)

    result = busy.run(INPROGRESS, name, expect=1)

    assert result.stderr.endswith(f"devstack-vm-inprogress.py: {name}: {message}; this build must not run on it\n")
    assert busy.machines()[name] == state
    assert busy.sql("SELECT * FROM result WHERE node_name = ?", name) == []


@pytest.mark.parametrize("state", ["HOLD", "USED", "DELETE", "ERROR"])
def test_a_node_whose_machine_is_not_to_be_used_serves_no_further_build(busy: Pool, machine: Take, state: str) -> None:
    """A node that an outage left in service would take one queued build after the other and fail each."""
    name = machine(state)

    busy.run(INPROGRESS, name, expect=1)

    assert out_of_service(busy, name)


def test_the_second_build_is_told_which_one_has_the_node(busy: Pool, machine: Take) -> None:
    name = machine()
    busy.run(INPROGRESS, name, expect=0, **BUILD)

    result = busy.run(INPROGRESS, name, expect=1)

    assert f"{name}: is USED already, by gate-tempest #17; this build must not run on it" in result.stderr


@pytest.mark.parametrize("whose", ["ours", "ours, copied", "of a vm.db that was lost"])
def test_a_node_that_vm_db_does_not_know_fails_one_build_and_not_the_queue(busy: Pool, whose: str) -> None:
    label = f"devstack-lost-{whose[-2:]}"
    name = "annas-copy" if whose == "ours, copied" else f"{label}-one-77"
    busy.add_node(name, label, "127.0.0.1", "a-lost-uuid" if whose.endswith("lost") else None)
    assert busy.jenkins
    script = [sys.executable, str(PROJECT / INPROGRESS), "$NODE_NAME"]
    busy.jenkins.add_job(label, label, before=script, concurrent=True, environment=dict(busy.environment))
    items = [busy.jenkins.build(label, GERRIT_CHANGE_NUMBER=str(number)) for number in range(3)]

    first = busy.jenkins.wait_started(items[0])
    ended = busy.jenkins.wait_build(label, first["number"])

    assert ended["result"] == "FAILURE"
    assert "vm.db does not know it: out of service now, so that no other build fails there" in ended["console"]
    assert out_of_service(busy, name)
    assert busy.nodes()[name]["offlineCauseReason"] == "vm.db does not know it"
    assert len([one for one in busy.jenkins.look()["builds"] if one["job"] == label]) == 1


@pytest.mark.file
@pytest.mark.parametrize("change", ["empty", "of a newer version", "in no folder"])
def test_a_build_on_a_host_whose_vm_db_cannot_be_used_fails_once(busy: Pool, machine: Take, change: str) -> None:
    name = machine()
    database = busy.folder / change / "vm.db"
    if change != "in no folder":
        database.parent.mkdir()
        database.touch()
    if change == "of a newer version":
        database.unlink()
        shutil.copy(busy.database, database)
        with closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA user_version = 999")

    busy.run(INPROGRESS, name, expect=2, DEVSTACK_GATE_DB=str(database), **BUILD)

    assert (out_of_service(busy, name), busy.nodes()[name]["offlineCauseReason"]) == (True, "vm.db did not answer")
    assert sorted(file.name for file in busy.folder.iterdir() if file.name.startswith("None")) == []


@pytest.mark.file
@pytest.mark.parametrize(("mount", "why"), [
    ("mount --bind . . && mount -o remount,bind,ro .", "Read-only file system"),
    ("mount -t tmpfs -o nr_inodes=5 none full && cp vm.db secure.conf full && touch full/1 full/2; mount --bind full .",
     "the disk is full: no more files can be made"),
], ids=["read-only", "no more files"])
@pytest.mark.parametrize("read", [False, True], ids=["unread", "readable"])
def test_a_build_whose_vm_db_cannot_be_written_fails_once(pool: Pool, mount: str, why: str, read: bool) -> None:
    pool.load(provider("disk"))
    name = pool.add_machine(server=False, provider="disk")
    (pool.folder / "full").mkdir()
    pool.host = ["unshare", "--mount", "sh", "-c", f'{mount}; cd . && exec "$@"', "sh"]

    with closing(sqlite3.connect(pool.database)) as connection:
        if read:  # the files beside vm.db without which SQLite reads nothing are there
            connection.execute("SELECT count(*) FROM machine")
        result = pool.run(INPROGRESS, name, expect=1, **BUILD)

    assert result.stderr.endswith(f"{INPROGRESS}: {pool.database}: {why}\n")
    assert (out_of_service(pool, name), pool.nodes()[name]["offlineCauseReason"]) == (True, "vm.db did not answer")


@pytest.mark.file
def test_a_build_whose_vm_db_may_only_be_read_fails_once(pool: Pool) -> None:
    """As after a restore from a copy that is read-only."""
    pool.load(provider("disk"))
    name = pool.add_machine(server=False, provider="disk")
    pool.database.chmod(0o400)
    pool.host = ["setpriv", "--bounding-set", "-dac_override"]  # root may write it otherwise

    with closing(sqlite3.connect(pool.database)) as connection:
        connection.execute("SELECT count(*) FROM machine")
        result = pool.run(INPROGRESS, name, expect=2, **BUILD)

    (line,) = [line for line in result.stderr.splitlines() if line.startswith(INPROGRESS)]
    assert "attempt to write a readonly database" in line
    assert (out_of_service(pool, name), pool.nodes()[name]["offlineCauseReason"]) == (True, "vm.db did not answer")


@pytest.mark.file
@pytest.mark.parametrize(("statement", "told"), [
    ("UPDATE machine SET error = X'ff00' WHERE name = ?", r"error: expected text, got b'\xff\x00'"),
    ("INSERT INTO result (machine_id, jenkins_job_name) SELECT id, CAST(X'ff' AS TEXT) FROM machine WHERE name = ?",
     r"jenkins_job_name: expected text in UTF-8, got b'\xff'"),
], ids=["of the machine", "of its last build"])
def test_a_build_on_a_machine_with_a_value_that_cannot_be_read_fails_once(
        busy: Pool, machine: Take, statement: str, told: str) -> None:
    name, other = machine(), machine()
    busy.sql("UPDATE machine SET state = 'USED' WHERE name = ?", name)  # then its last build is told
    busy.sql(statement, name)
    try:
        result = busy.run(INPROGRESS, name, expect=2, **BUILD)
        busy.run(INPROGRESS, other, expect=0, **BUILD)
    finally:
        busy.sql("UPDATE machine SET error = NULL")
        busy.sql("DELETE FROM result WHERE typeof(jenkins_job_name) = 'text' AND jenkins_job_name GLOB '*[^ -~]*'")

    assert result.stderr.endswith(f": {told}\n")
    assert (out_of_service(busy, name), busy.nodes()[name]["offlineCauseReason"]) == (True, "vm.db did not answer")


@pytest.mark.parametrize(("name", "label", "pool", "why"), [
    ("devstack-noble-one-501", "devstack-noble", "another", "another pool's, on which nothing runs"),
    ("devstack-noble-one-502", "lab", None, "without a label of the pool"),
    ("lab-7", "devstack-noble", None, "without a name of the pool"),
])
def test_a_name_that_was_mistyped_takes_nobodys_node_out_of_service(
        busy: Pool, name: str, label: str, pool: str | None, why: str) -> None:
    busy.add_node(name, label, "127.0.0.1", pool)
    before = busy.nodes()[name]

    busy.run(INPROGRESS, name, expect=2)

    assert busy.nodes()[name] == before, why


inprogress = load_script(INPROGRESS)
Node = inprogress.jenkinsnodes.Node


@pytest.mark.parametrize(("labels", "prefix", "ours", "idle", "hole"), [
    ("devstack-noble", "", True, True, True),
    ("devstack-noble", "", True, False, True),
    ("devstack-noble", "", False, False, True),
    ("devstack-noble", "", False, True, False),
    ("devstack-used", "", True, False, False),  # no build can come any more
    ("devstack-noble-one-1", "", True, False, False),  # Jenkins gives each node its name as a label
    ("lab big", "", True, False, False),
    ("", "", True, False, False),
    ("ci-devstack-noble", "ci-", True, True, True),
    ("devstack-noble", "ci-", True, True, False),
])
def test_is_black_hole(labels: str, prefix: str, ours: bool, idle: bool, hole: bool) -> None:
    node = Node("devstack-noble-one-1", "", False, False, idle, "", "", frozenset(labels.split()))

    assert inprogress.is_black_hole(node, prefix, ours) == hole


def test_an_unknown_node_is_wrong_use(busy: Pool) -> None:
    result = busy.run(INPROGRESS, "devstack-noble-one-99999", expect=2)

    assert result.stderr.endswith(": unknown node devstack-noble-one-99999; `select name from node` lists those "
                                  "there are\n")


@pytest.mark.parametrize(("status", "reason"), [(401, "user admin or its apikey is wrong"),
                                               (403, "user admin needs the right hudson.model.Hudson.Read")])
def test_a_build_is_refused_where_jenkins_does_not_let_us_in_and_nothing_is_changed(
        busy: Pool, machine: Take, status: int, reason: str) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": ".*", "status": status}])

    result = busy.run(INPROGRESS, name, expect=2)

    assert f"{status}, {reason}\n" in result.stderr
    assert (busy.machines()[name], busy.in_service(name)) == ("READY", True)
    busy.jenkins.knobs(answers=[])
    busy.run(INPROGRESS, name, expect=0)


OUTAGES: dict[str, dict[str, object]] = {
    "500": {"status": 500}, "503": {"status": 503}, "reset": {"kind": "reset"}, "closed": {"kind": "close"}}


@pytest.mark.parametrize("outage", OUTAGES)
def test_a_build_fails_when_jenkins_does_not_take_its_node_out_and_no_other_gets_it(
        busy: Pool, machine: Take, outage: str) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": ".*", **OUTAGES[outage]}])

    result = busy.run(INPROGRESS, name, expect=1)

    assert re.search(r"devstack-vm-inprogress\.py: Jenkins http://\S+: ", result.stderr)
    busy.jenkins.knobs(answers=[])
    busy.run(INPROGRESS, name, expect=1)
    assert out_of_service(busy, name)


def test_a_build_fails_when_jenkins_is_down(busy: Pool, machine: Take) -> None:
    name = machine()
    busy.write_secure_config(server="http://127.0.0.1:1/")

    try:
        result = busy.run(INPROGRESS, name, expect=1)
    finally:
        busy.write_secure_config()

    assert "no answer (Connection refused)" in result.stderr


def test_a_mark_that_jenkins_only_pretends_to_make_fails_the_build(busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": "POST /computer/.*/changeOfflineCause", "status": 200}])

    result = busy.run(INPROGRESS, name, expect=1)

    assert f"node {name} does not stay out of service" in result.stderr


@pytest.mark.parametrize("missing", ["Configure", "Disconnect"])
def test_one_right_that_is_missing_costs_one_build(busy: Pool, machine: Take, missing: str) -> None:
    name = machine()
    assert busy.jenkins
    may = [f"Computer.{right}" for right in ("Configure", "Disconnect") if right != missing]
    busy.jenkins.knobs(rights={"admin": ["Overall.Read", *may]})
    try:
        result = busy.run(INPROGRESS, name, expect=1)
    finally:
        busy.jenkins.knobs(rights={})

    assert f"user admin needs the right hudson.model.Computer.{missing}" in result.stderr
    assert (busy.machines()[name], busy.in_service(name)) == ("USED", False)


def test_a_build_for_which_jenkins_refuses_everything_keeps_its_node_busy_until_that_is_out_of_reach(
        busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(rights={"admin": ["Overall.Read"]})
    try:
        run = busy.start(INPROGRESS, name)
        await_that("the machine to be taken", lambda: busy.machines()[name] == "USED")
        time.sleep(3)
        assert run.poll() is None
        busy.jenkins.node(name, label="devstack-used")
        _, error = run.communicate(timeout=30)
    finally:
        busy.jenkins.knobs(rights={})

    assert run.returncode == 1
    assert "needs the right hudson.model.Computer.Disconnect; this build holds the node for 5 min" in error


@pytest.mark.parametrize("silent", [[], ["GET /api/json"], ["GET /computer/.*"]], ids=["", "login", "node"])
def test_no_build_gets_a_machine_whose_node_was_used_before_vm_db_was_restored(
        busy: Pool, machine: Take, silent: list[str]) -> None:
    name = machine()
    assert busy.jenkins
    busy.run(INPROGRESS, name, expect=0)
    busy.sql("UPDATE machine SET state = 'READY' WHERE name = ?", name)
    busy.jenkins.knobs(answers=[{"match": match, "status": 503, "times": 1} for match in silent])

    result = busy.run(INPROGRESS, name, expect=1)

    assert f"{name}: vm.db says READY, but its node is out of service already (in use by " in result.stderr
    assert out_of_service(busy, name)


def test_a_mark_whose_answer_was_lost_stays(busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    answer = {"match": "POST /computer/.*/changeOfflineCause", "kind": "reset", "when": "after", "times": 1}
    busy.jenkins.knobs(answers=[answer])

    result = busy.run(INPROGRESS, name)

    assert result.returncode in (0, 1), result.stderr
    assert not busy.in_service(name)


def test_a_build_whose_node_jenkins_does_not_know_fails(busy: Pool, machine: Take) -> None:
    name = machine(node=False, jenkins_name="gone")

    result = busy.run(INPROGRESS, name, expect=1)

    assert "has no node gone" in result.stderr


def test_a_running_build_goes_on_when_its_node_goes_out_of_service(busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.add_job("long", name, seconds=2)
    build = busy.jenkins.wait_started(busy.jenkins.build("long"))

    busy.run(INPROGRESS, name, expect=0)

    assert busy.jenkins.wait_build("long", build["number"])["result"] == "SUCCESS"


def test_a_build_that_is_over_by_now_takes_nothing(busy: Pool, machine: Take) -> None:
    assert busy.jenkins
    busy.jenkins.add_job("gate-aborted", "label-of-aborted")
    busy.jenkins.add_nodes([{"name": "of-aborted", "label": "label-of-aborted"}])
    number = busy.jenkins.wait_started(busy.jenkins.build("gate-aborted"))["number"]
    busy.jenkins.wait_build("gate-aborted", number)
    name = machine()
    build = {"GATE_JOB_NAME": "gate-aborted", "GATE_BUILD_NUMBER": str(number)}

    result = busy.run(INPROGRESS, name, expect=1, **build)

    assert f"gate-aborted #{number} has ended already (SUCCESS); its node is left to the next build" in result.stderr
    assert (busy.machines()[name], busy.in_service(name)) == ("READY", True)


# --- who may take a machine through Jenkins ---

SECRET = "a-secret-of-this-machine"


def build_on(pool: Pool, node: str, job: str) -> dict[str, str]:
    """Start a long build of a job on a node; return what the gate job passes on about it."""
    assert pool.jenkins
    pool.jenkins.add_job(job, node, seconds=600)
    number = pool.jenkins.wait_started(pool.jenkins.build(job))["number"]
    return {"GATE_NODE_NAME": node, "GATE_JOB_NAME": job, "GATE_BUILD_NUMBER": str(number), "GATE_TAKE_SECRET": ""}


@pytest.mark.parametrize("given", [
    {},
    {"GATE_TAKE_SECRET": "another"},
    {"GATE_TAKE_SECRET": hashlib.sha256(SECRET.encode()).hexdigest()},
    {"GATE_JOB_NAME": "gate-unknown", "GATE_BUILD_NUMBER": "1"},
    {"GATE_JOB_NAME": "gate-unknown", "GATE_BUILD_NUMBER": "no number"},
    {"GATE_JOB_NAME": "../../computer", "GATE_BUILD_NUMBER": "1"},
], ids=["nothing", "another secret", "the hash", "no such build", "no number", "a path"])
@pytest.mark.parametrize("take_hash", [None, hashlib.sha256(SECRET.encode()).hexdigest()], ids=["before", "since"])
def test_a_stranger_who_may_start_the_job_gets_no_machine_and_disturbs_none(
        busy: Pool, machine: Take, take_hash: str | None, given: dict[str, str]) -> None:
    name = machine(take_hash=take_hash)
    empty = dict.fromkeys(("GATE_JOB_NAME", "GATE_BUILD_NUMBER", "GATE_TAKE_SECRET"), "")

    result = busy.run(INPROGRESS, name, expect=1, GATE_NODE_NAME=name, **empty | given)

    assert result.stderr.endswith(", and its secret was not given; nothing was changed\n")
    assert (busy.machines()[name], busy.in_service(name)) == ("READY", True)
    assert SECRET not in result.stderr


def test_a_build_that_runs_on_another_node_gets_no_machine(busy: Pool, machine: Take) -> None:
    own, wanted = machine(), machine()
    build = build_on(busy, own, "gate-elsewhere")

    result = busy.run(INPROGRESS, wanted, expect=1, **build | {"GATE_NODE_NAME": wanted})

    assert f"{wanted}: Jenkins does not show gate-elsewhere #1 as running there" in result.stderr
    assert (busy.machines()[wanted], busy.in_service(wanted)) == ("READY", True)
    busy.run(INPROGRESS, own, expect=0, **build)
    assert (busy.machines()[own], out_of_service(busy, own)) == ("USED", True)


def test_a_job_with_parameters_of_its_own_is_asked_for_its_proof_as_well(busy: Pool, machine: Take) -> None:
    name = machine()

    busy.run(INPROGRESS, name, expect=1, BUILD_TAG="jenkins-theirs-3", JOB_NAME="theirs", BUILD_NUMBER="3")

    assert (busy.machines()[name], busy.in_service(name)) == ("READY", True)


def test_the_secret_of_a_machine_takes_it_and_no_other(busy: Pool, machine: Take) -> None:
    own, other = (machine(take_hash=hashlib.sha256(secret.encode()).hexdigest()) for secret in (SECRET, "another"))
    given = {"GATE_NODE_NAME": own, "GATE_JOB_NAME": "", "GATE_BUILD_NUMBER": "", "GATE_TAKE_SECRET": SECRET}

    busy.run(INPROGRESS, other, expect=1, **given | {"GATE_NODE_NAME": other})
    busy.run(INPROGRESS, own, expect=0, **given)

    assert (busy.machines()[own], busy.machines()[other]) == ("USED", "READY")


def test_when_jenkins_does_not_tell_what_runs_there_nothing_is_taken(busy: Pool, machine: Take) -> None:
    name = machine()
    build = build_on(busy, name, "gate-untold")
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": "GET /computer/.*", "status": 503}])

    busy.run(INPROGRESS, name, expect=1, **build)

    busy.jenkins.knobs(answers=[])
    assert (busy.machines()[name], busy.in_service(name)) == ("READY", True)
    busy.run(INPROGRESS, name, expect=0, **build)


@pytest.mark.parametrize(("shown", "runs"), [
    ({"executors": [{"currentExecutable": {"url": "http://j/ci/job/team/job/gate%20x/7/"}}]}, True),
    ({"oneOffExecutors": [{"currentExecutable": {"url": "https://other/job/team/job/gate%20x/7/"}}]}, True),
    ({"executors": [{"currentExecutable": {"url": "http://j/job/team/job/gate%20x/77/"}}]}, False),
    ({"executors": [{"currentExecutable": None}, {}], "oneOffExecutors": []}, False),
    ({"executors": [{"currentExecutable": {"_class": "of a user without the right to see it"}}]}, False),
])
def test_what_jenkins_shows_of_executors(shown: dict[str, object], runs: bool) -> None:
    assert ("team/gate x/7" in inprogress.jenkinsnodes._running(shown)) == runs


@pytest.mark.file
def test_a_node_serves_no_build_when_vm_db_does_not_answer(busy: Pool, machine: Take) -> None:
    name = machine()
    connection = sqlite3.connect(busy.database)
    connection.execute("BEGIN IMMEDIATE")
    try:
        result = busy.run(INPROGRESS, name, expect=1, **BUILD)
    finally:
        connection.close()

    assert "another process has held it for more than 30 s" in result.stderr
    assert out_of_service(busy, name)


def test_a_killed_inprogress_fails_the_build_and_the_node_is_no_other_builds(busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": "POST /computer/.*/config.xml", "kind": "hang"}])
    run = busy.start(INPROGRESS, name)
    while busy.machines()[name] != "USED":
        time.sleep(0.01)
    run.kill()
    run.communicate()
    busy.jenkins.knobs(answers=[])

    assert busy.run(INPROGRESS, name).returncode == 1
    assert out_of_service(busy, name)


# --- for a person ---


def test_a_person_gets_the_machine_that_has_waited_longest_and_how_to_log_in(busy: Pool, machine: Take) -> None:
    machine(ip="127.0.0.51")
    oldest = machine(age=100, ip="127.0.0.52")
    machine(age=50, ip="127.0.0.53")

    result = busy.run(INPROGRESS, "--image", "noble", expect=0)

    assert result.stdout == f"{oldest} jenkins@127.0.0.52\n"
    assert (busy.machines()[oldest], out_of_service(busy, oldest)) == ("USED", True)


def test_a_person_gets_no_machine_from_which_jenkins_login_cannot_be_removed(busy: Pool, machine: Take) -> None:
    name = machine(take_hash="0" * 64, ip="127.0.0.1")

    with closing(socket.create_server(("127.0.0.1", 0))) as nobody:
        port = nobody.getsockname()[1]
    busy.sql("UPDATE provider SET ssh_port = ? WHERE name = 'one'", port)
    try:
        result = busy.run(INPROGRESS, "--image", "noble", "--provider", "one", expect=1)
    finally:
        busy.sql("UPDATE provider SET ssh_port = 22")

    assert "USED -> DELETE, since Jenkins' login could not be removed" in result.stderr
    assert (result.stdout, busy.machines()[name], out_of_service(busy, name)) == ("", "DELETE", True)


def test_a_person_does_not_get_a_machine_on_which_a_build_has_just_started(busy: Pool, machine: Take) -> None:
    building, free = machine(age=100, ip="127.0.0.56"), machine(ip="127.0.0.57")
    assert busy.jenkins
    busy.jenkins.add_job("just-started", building, seconds=600)
    busy.jenkins.wait_started(busy.jenkins.build("just-started"))

    result = busy.run(INPROGRESS, "--image", "noble", expect=0)

    assert result.stdout == f"{free} jenkins@127.0.0.57\n"


def test_a_person_gets_a_machine_whose_node_is_online_or_is_told_that_none_is(busy: Pool, machine: Take) -> None:
    dead, alive = machine(age=100, ip="127.0.0.58"), machine(ip="127.0.0.59")
    assert busy.jenkins
    busy.jenkins.node(dead, connect="never", die=True)
    busy.jenkins.wait_node(dead, "died")

    first, second = [busy.run(INPROGRESS, "--image", "noble", expect=0) for _ in range(2)]

    assert (first.stdout, second.stdout) == (f"{alive} jenkins@127.0.0.59\n", f"{dead} jenkins@127.0.0.58\n")
    assert "offline" not in first.stderr
    assert re.search(rf"node={dead} its node is offline \(.+\), and there is none that is online", second.stderr)


def test_a_person_does_not_get_a_machine_whose_node_another_person_has_disconnected(
        busy: Pool, machine: Take) -> None:
    name = machine()
    assert busy.jenkins
    requests.post(f"{busy.jenkins.url}computer/{name}/doDisconnect", data={"offlineMessage": "anna looks at it"},
                  auth=(busy.jenkins.user, busy.jenkins.token), timeout=30)

    result = busy.run(INPROGRESS, "--image", "noble", expect=1)

    assert (result.stdout, busy.machines()[name]) == ("", "READY")


def test_a_person_may_choose_the_provider(busy: Pool, machine: Take) -> None:
    machine(age=100)
    wanted = machine(provider="two", ip="127.0.0.54")

    result = busy.run(INPROGRESS, "--image", "noble", "--provider", "two", expect=0)

    assert result.stdout == f"{wanted} jenkins@127.0.0.54\n"


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (["--image", "lone"], 1, "no READY machine of image lone; see: vmdatabase.py list"),
    (["--image", "nobel"], 2, "--image: unknown image nobel; did you mean noble?"),
    (["--image", "noble", "--provider", "tow"], 2, "unknown provider tow; did you mean two?"),
    (["node", "--provider", "one"], 2, "--provider goes with --image"),
    ([], 2, "one of the arguments NODE_NAME --image is required"),
    (["node", "--image", "noble"], 2, "--image: not allowed with argument NODE_NAME"),
], ids=["none ready", "image", "provider", "provider alone", "nothing", "both"])
def test_what_a_person_cannot_have_is_said(busy: Pool, arguments: list[str], code: int, message: str) -> None:
    result = busy.run(INPROGRESS, *arguments, expect=code)

    assert message in result.stderr
    assert result.stdout == ""


def test_a_person_gets_a_machine_that_was_never_in_jenkins(busy: Pool, machine: Take) -> None:
    name = machine(provider="two", node=False, ip="127.0.0.55")

    result = busy.run(INPROGRESS, "--image", "noble", "--provider", "two", expect=0)

    assert result.stdout == f"{name} jenkins@127.0.0.55\n"


def test_without_jenkins_the_machine_is_taken_all_the_same(pool: Pool) -> None:
    pool.jenkins = None
    pool.write_secure_config()
    pool.load(provider())
    name = pool.add_machine(server=False)

    result = pool.run(INPROGRESS, name, expect=0)

    assert pool.machines() == {name: "USED"}
    assert "no [jenkins] section" in result.stderr
