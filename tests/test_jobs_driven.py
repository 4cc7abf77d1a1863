"""The jobs of jobs/, loaded by jenkins-jobs, on a Jenkins with a pool of real machines behind it."""

import hashlib
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.pocketjenkins.plugins import RECORDED
from tests.support.jobsite import FULL, GATE, forking_scripts, load, make_site, sample_settings
from tests.support.pool import PROJECT, Pool, await_that, image, make_key, provider
from tests.support.sampleprojects import served

GOOD, BREAKING = "refs/zuul/master/Zgood", "refs/zuul/master/Zbreaking"
BUILD_SECONDS = 90
NODE_TOKEN = "a0b1c2d3-what-nodes-may"
USERS = {"admin": ("admin-password", "admin-token"), "scripts": ("scripts-password", "scripts-token"),
         "node": ("node-password", NODE_TOKEN)}
# The fewest rights that work, as docs/jenkins.md says.
RIGHTS = {
    "scripts": ["Overall.Read", "Computer.Create", "Computer.Configure", "Computer.Disconnect", "Computer.Delete",
                f"Item.Read/{GATE}", "Item.Read/devstack-vm-delete"],
    "node": ["Overall.Read", "Item.Read/devstack-vm-inprogress", "Item.Build/devstack-vm-inprogress"],
}
SLEEP = """if [[ $ZUUL_PIPELINE == sleep ]]; then
    gate_hook() {{ echo asleep; sleep 300; }}
    export -f gate_hook
fi"""
HOSTILE = ["x; touch /tmp/owned-by-a-parameter", "$(touch /tmp/owned-by-a-parameter)", "a\nGATE_NODE_NAME=other"]


@pytest.fixture(scope="module", params=["full", "core"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Run a pool of one machine, and a Jenkins with its jobs and the plugins that they need."""
    folder = tmp_path_factory.mktemp(f"driven-{request.param}")
    plugins = RECORDED | (FULL if request.param == "full" else {})
    knobs = {"plugins": plugins, "master_label": "devstack-gate-host", "master_executors": 8, "rights": RIGHTS,
             "master_environment": {name: str(folder / file) for name, file in {
                 "DEVSTACK_GATE_DB": "vm.db", "DEVSTACK_GATE_SECURE_CONFIG": "secure.conf", "HOME": ".",
                 "OS_CLIENT_CONFIG_FILE": "clouds.yaml"}.items()}}
    with Pocket(folder, "--machines", "namespace") as pocket, served(folder / "git", GOOD, BREAKING) as git_base, \
            StandIn(folder / "jenkins", USERS, {"nodes": ("jenkins", make_key(folder))}, knobs) as jenkins:
        (folder / "clouds.yaml").write_bytes(pocket.clouds_yaml.read_bytes())
        pool = Pool(folder, pocket, jenkins)
        pool.write_secure_config("git python3", user="scripts", apikey="scripts-token", **(
            {"node_user": "node", "node_apikey": NODE_TOKEN} if request.param == "core" else {}))
        pool.load(provider(images=[image(min_ready=1)]))
        load_jobs(pool, folder, request.param, git_base, "by-the-clock", forking_scripts(folder))
        pool.environment["GIT_BASE"] = git_base
        pool.run("devstack-vm-update-image.py", "one", expect=0)
        yield pool


def load_jobs(pool: Pool, folder: Path, plugins: str, git_base: str, replacement: str, scripts: Path = PROJECT) -> None:
    """Load the jobs of a site whose gate runs on the sample projects; they run the scripts in a folder."""
    assert pool.jenkins
    settings = sample_settings(git_base)
    settings["gate_settings"] += SLEEP
    jobs = make_site(folder, plugins=plugins, providers=["one"], scripts=str(scripts), replacement=replacement,
                     **settings)
    load(jobs, pool.jenkins.url, "admin", "admin-token")


@pytest.fixture
def pool(site: Pool) -> Pool:
    """Return the pool with one machine ready and its agent online; the timed jobs are run by hand."""
    run_job(site, "devstack-reap-vms")
    run_job(site, "devstack-launch-vms")
    assert site.jenkins
    (ready,) = [name for name, state in site.machines().items() if state == "READY"]
    site.jenkins.wait_node(ready, "online")
    return site


def run_job(pool: Pool, name: str, expect: str = "SUCCESS", **parameters: str) -> dict[str, Any]:
    """Run a job to its end, check its result, and return the build."""
    build = end(pool, name, start(pool, name, **parameters))
    assert build["result"] == expect, build["console"]
    return build


def start(pool: Pool, name: str, **parameters: str) -> int:
    """Ask for a build; return the number of its queue item."""
    assert pool.jenkins
    return pool.jenkins.build(name, **parameters)


def end(pool: Pool, name: str, item: int) -> dict[str, Any]:
    """Wait for the end of a build; return it."""
    assert pool.jenkins
    started = pool.jenkins.wait_started(item, BUILD_SECONDS)
    return pool.jenkins.wait_build(name, started["number"], BUILD_SECONDS)


def change(pool: Pool, ref: str) -> dict[str, str]:
    """Return what Zuul sends for a change to the sample projects."""
    return {"ZUUL_URL": pool.environment["GIT_BASE"], "ZUUL_PROJECT": "sample/adder", "ZUUL_BRANCH": "master",
            "ZUUL_REF": ref, "ZUUL_CHANGE": "12", "ZUUL_PATCHSET": "3"}


def builds_of(pool: Pool, name: str) -> list[dict[str, Any]]:
    """Return all builds of a job."""
    assert pool.jenkins
    return [build for build in pool.jenkins.look()["builds"] if build["job"] == name]


def await_given_back(pool: Pool, build: dict[str, Any]) -> None:
    """Wait until devstack-vm-delete has recorded how a gate build ended."""
    await_that("the build's end in vm.db", lambda: pool.sql(
        "SELECT 1 FROM result WHERE jenkins_job_name = ? AND jenkins_build_number = ? AND end_time IS NOT NULL",
        build["job"], build["number"]), 30)


def test_two_queued_builds_run_on_two_machines_and_the_failed_ones_stays(pool: Pool) -> None:
    first, second = (start(pool, GATE, **change(pool, ref)) for ref in (GOOD, BREAKING))

    good = end(pool, GATE, first)
    assert (good["result"], "sample/adder master" in good["console"]) == ("SUCCESS", True), good["console"]
    await_given_back(pool, good)
    assert pool.machines()[good["node"]] == "DELETE"
    run_job(pool, "devstack-reap-vms")  # max-servers has room, but so the good one's machine goes before the next comes
    assert good["node"] not in pool.machines()
    run_job(pool, "devstack-launch-vms")
    bad = end(pool, GATE, second)
    await_given_back(pool, bad)

    assert pool.jenkins
    assert pool.jenkins.look()["warnings"] == []
    assert (bad["result"], "FAIL (1)" in bad["console"]) == ("FAILURE", True), bad["console"]
    assert bad["node"] != good["node"]
    run_job(pool, "devstack-reap-vms")
    assert (pool.machines()[bad["node"]], pool.in_service(bad["node"])) == ("USED", False)
    rows = pool.sql("SELECT node_name, jenkins_job_name, jenkins_build_number, gerrit_change_number, "
                    "gerrit_patchset_number, result FROM result WHERE node_name IN (?, ?) ORDER BY id",
                    good["node"], bad["node"])
    assert rows == [(build["node"], GATE, build["number"], 12, 3, build["result"]) for build in (good, bad)]


def test_the_node_is_out_of_service_before_the_build_does_anything_else(pool: Pool) -> None:
    build = run_job(pool, GATE, **change(pool, GOOD))

    console = build["console"]
    assert console.index("devstack-vm-inprogress") < console.index("NODE_PROVIDER=")
    (claim,) = [one for one in builds_of(pool, "devstack-vm-inprogress")
                if one["parameters"]["GATE_NODE_NAME"] == build["node"]]
    assert (claim["result"], claim["parameters"]["GATE_JOB_NAME"]) == ("SUCCESS", GATE)
    assert build["started"] < claim["started"] < claim["ended"] < build["ended"]
    assert "~/.devstack-gate-jenkins" not in console
    await_given_back(pool, build)


def test_a_machine_that_is_taken_is_replaced_at_once_and_one_that_is_done_goes(pool: Pool, tmp_path: Path) -> None:
    """Nobody runs launch or reap here: the jobs that a build calls make Jenkins start them. No script is forked."""
    plugins, git_base = "core" if is_core(pool) else "full", pool.environment["GIT_BASE"]
    load_jobs(pool, tmp_path, plugins, git_base, "at-once")
    try:
        build = run_job(pool, GATE, **change(pool, GOOD))
        await_that("another machine", lambda: [name for name, state in pool.machines().items()
                                               if state == "READY" and name != build["node"]], 30)
        await_that("the end of the first", lambda: build["node"] not in pool.machines())
        assert build["node"] not in pool.server_names()
    finally:
        load_jobs(pool, tmp_path / "again", plugins, git_base, "by-the-clock", pool.folder / "scripts")
    await_that("the end of what was started", lambda: all(
        one["ended"] for job in ("devstack-launch-vms", "devstack-reap-vms") for one in builds_of(pool, job)), 60)


def test_a_build_whose_node_cannot_be_taken_fails_and_runs_nothing_of_the_change(pool: Pool) -> None:
    (node,) = [name for name, state in pool.machines().items() if state == "READY"]
    pool.sql("UPDATE machine SET state = 'HOLD', hold_reason = 'a look' WHERE name = ?", node)

    build = run_job(pool, GATE, "FAILURE", **change(pool, GOOD))

    assert build["node"] == node
    assert "NODE_PROVIDER=" not in build["console"]
    (claim,) = [one for one in builds_of(pool, "devstack-vm-inprogress")
                if one["parameters"]["GATE_NODE_NAME"] == node]
    assert (claim["result"], "is HOLD (a look)" in claim["console"]) == ("FAILURE", True)
    await_that("the node to be out of service", lambda: not pool.in_service(node))
    assert pool.machines()[node] == "HOLD"
    pool.run("vmdatabase.py", "unhold", node, expect=0)


def test_a_build_that_gets_no_test_environment_never_begins_and_leaves_no_machine(pool: Pool) -> None:
    (node,) = [name for name, state in pool.machines().items() if state == "READY"]
    pool.sql("UPDATE base_image SET test_environment = 1")
    pool.sql("INSERT OR REPLACE INTO setting VALUES ('environment-wait', '0')")
    try:
        build = run_job(pool, GATE, "FAILURE", **change(pool, GOOD))
    finally:
        pool.sql("UPDATE base_image SET test_environment = 0")
        pool.sql("DELETE FROM setting WHERE name = 'environment-wait'")

    (claim,) = [one for one in builds_of(pool, "devstack-vm-inprogress")
                if one["parameters"]["GATE_NODE_NAME"] == node]
    why = f"{node}: no test environment within 0 min (environment-wait): there is none for image noble of provider one"
    assert (claim["result"], why in claim["console"]) == ("FAILURE", True)
    assert (build["node"], "NODE_PROVIDER=" in build["console"]) == (node, False)
    await_given_back(pool, build)
    assert (pool.machines()[node], pool.in_service(node)) == ("DELETE", False)
    assert pool.sql("SELECT result, kind FROM result WHERE node_name = ?", node) == [("FAILURE", "infrastructure")]


def test_an_aborted_build_gives_its_machine_up(pool: Pool) -> None:
    assert pool.jenkins
    item = start(pool, GATE, **change(pool, GOOD) | {"ZUUL_PIPELINE": "sleep"})
    started = pool.jenkins.wait_started(item, BUILD_SECONDS)
    node = started["node"]
    await_that("the tests", lambda: "asleep" in builds_of(pool, GATE)[-1]["console"])

    requests.post(f"{pool.jenkins.url}job/{GATE}/{started['number']}/stop", auth=("admin", "admin-token"), timeout=30)

    build = pool.jenkins.wait_build(GATE, started["number"], BUILD_SECONDS)
    assert build["result"] == "ABORTED", build["console"]
    await_given_back(pool, build)
    assert pool.machines()[node] == "DELETE"


def test_hostile_values_in_every_parameter_do_nothing(pool: Pool) -> None:
    assert pool.jenkins
    owned = Path("/tmp/owned-by-a-parameter")
    answer = requests.get(f"{pool.jenkins.url}job/{GATE}/api/json", auth=("admin", "admin-token"), timeout=30,
                          params={"tree": "property[parameterDefinitions[name]]"})
    names = [one["name"] for part in answer.json()["property"] for one in part.get("parameterDefinitions", [])]
    assert "ZUUL_REF" in names

    build = run_job(pool, GATE, "FAILURE", **dict(zip(names, cycle(HOSTILE), strict=False)))
    await_given_back(pool, build)
    for value in HOSTILE:
        for job in ("devstack-vm-inprogress", "devstack-vm-delete"):
            run_job(pool, job, "FAILURE", GATE_NODE_NAME=value, GATE_RESULT=value, GATE_JOB_NAME=value,
                    GATE_BUILD_NUMBER="1")

    assert not owned.exists()
    assert not pool.ssh(pool.column(build["node"], "ip"), f"ls {owned}").stdout
    assert "expected" in build["console"], "the gate refuses such settings"
    (claim,) = [one for one in builds_of(pool, "devstack-vm-inprogress")
                if one["parameters"]["GATE_JOB_NAME"] == GATE
                and one["parameters"]["GATE_BUILD_NUMBER"] == str(build["number"])]
    assert claim["parameters"]["GATE_NODE_NAME"] == build["node"]


def test_the_login_of_the_node_is_gone_before_the_change_runs(pool: Pool) -> None:
    build = run_job(pool, GATE, "FAILURE", **change(pool, BREAKING))

    left = pool.ssh(pool.column(build["node"], "ip"),
                    f"ls -a ~; sudo grep -rl {NODE_TOKEN} /home /opt /etc /tmp /var")

    assert ".devstack-gate-jenkins" not in left.stdout.split()
    assert "/" not in left.stdout
    assert NODE_TOKEN not in build["console"]
    await_given_back(pool, build)


def test_each_machine_has_a_secret_of_its_own_only_where_builds_call_jenkins(pool: Pool) -> None:
    (node,) = [name for name, state in pool.machines().items() if state == "READY"]
    seen = pool.ssh(pool.column(node, "ip"), "stat -c %a .devstack-gate-jenkins && cat .devstack-gate-jenkins")

    if is_core(pool):
        mode, login, secret = seen.stdout.split()
        assert (mode, login, len(secret) > 40) == ("600", f"node:{NODE_TOKEN}", True)
        assert pool.column(node, "take_hash") == hashlib.sha256(secret.encode()).hexdigest()
        assert not any(secret in line for line in pool.dump())
    else:
        assert (seen.returncode, pool.column(node, "take_hash")) == (1, None)


@pytest.mark.parametrize("given", [
    {}, {"GATE_TAKE_SECRET": "guessed"}, {"GATE_JOB_NAME": GATE, "GATE_BUILD_NUMBER": "1"},
    {"GATE_JOB_NAME": "devstack-launch-vms", "GATE_BUILD_NUMBER": "1"}], ids=["nothing", "guess", "old", "another job"])
def test_who_may_start_the_job_takes_no_machine_with_that(pool: Pool, given: dict[str, str]) -> None:
    (node,) = [name for name, state in pool.machines().items() if state == "READY"]

    build = run_job(pool, "devstack-vm-inprogress", "FAILURE", GATE_NODE_NAME=node, **given)

    assert (pool.machines()[node], pool.in_service(node)) == ("READY", True), build["console"]


@pytest.mark.parametrize("who", ["hold", "take"])
def test_a_person_finds_no_login_of_jenkins(pool: Pool, tmp_path: Path, who: str) -> None:
    (node,) = [name for name, state in pool.machines().items() if state == "READY"]
    address = pool.column(node, "ip")
    pool.ssh(address, "ln .devstack-gate-jenkins kept-by-another-name")

    if who == "hold":
        public = Path(f"{make_key(tmp_path / 'person')}.pub")
        pool.run("vmdatabase.py", "hold", node, "--reason", "a look", "--ssh-key", str(public), expect=0)
    else:
        taken = pool.run("devstack-vm-inprogress.py", "--image", "noble", expect=0)
        assert taken.stdout == f"{node} jenkins@{address}\n"

    assert pool.ssh(address, "ls -a").stdout.split().count(".devstack-gate-jenkins") == 0
    assert not pool.ssh(address, "tr -d '\\0' < kept-by-another-name").stdout
    pool.sql("UPDATE machine SET state = 'DELETE' WHERE name = ?", node)


def is_core(pool: Pool) -> bool:
    """Return whether builds at this site call Jenkins from their nodes."""
    return "node_user" in pool.secure_config.read_text()


def test_logs_are_archived(pool: Pool) -> None:
    assert pool.jenkins
    build = run_job(pool, GATE, **change(pool, GOOD))
    answer = requests.get(f"{pool.jenkins.url}job/{GATE}/{build['number']}/api/json", auth=("admin", "admin-token"),
                          params={"tree": "artifacts[relativePath]"}, timeout=30)
    paths = {one["relativePath"] for one in answer.json()["artifacts"]}
    assert {"logs/devstacklog.txt", "logs/reproduce.sh", "logs/setup-workspace.txt"} <= paths
    await_given_back(pool, build)


def test_a_second_update_changes_nothing(pool: Pool, tmp_path: Path) -> None:
    assert pool.jenkins

    def configs() -> dict[str, str]:
        assert pool.jenkins
        return {name: requests.get(f"{pool.jenkins.url}job/{name}/config.xml", auth=("admin", "admin-token"),
                                   timeout=30).text for name in pool.jenkins.look()["jobs"]}

    before = configs()
    said = load(pool.folder / "jobs", pool.jenkins.url, "admin", "admin-token")
    assert configs() == before
    assert "Number of jobs updated: 0" in said, said
