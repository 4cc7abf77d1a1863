"""The job of docs/tripleo.md on real machines gives its test environment back, however a build ends."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.pocketjenkins.plugins import RECORDED
from tests.support.jobsite import FULL, GATE, load, make_site, tripleo_settings
from tests.support.pool import PROJECT, Pool, await_that, image, make_key, provider
from tests.support.sampleprojects import GATE_FILES, add_change, commit_files, git_server

CHANGE = "refs/zuul/master/Zchange"
BUILD_SECONDS = 120
# TripleO's test: the name of the pipeline says how it ends.
DEVTEST = """python3 -c 'import json, os; print("boxes:", json.load(open(os.environ["TE_DATAFILE"]))["boxes"])'
stat -c 'its data: %a %U' "$TE_DATAFILE"
case $ZUUL_PIPELINE in
    success) ;;
    failure) exit 1 ;;
    *) echo asleep; sleep 300 ;;
esac
"""
ONE_MINUTE = "if [[ $ZUUL_PIPELINE == overtime ]]; then export DEVSTACK_GATE_TIMEOUT=1; fi\n"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Run a pool with one test environment, and a Jenkins with the job of docs/tripleo.md."""
    folder = tmp_path_factory.mktemp("tripleo")
    make_repositories(folder / "git", folder / "source")
    variables = {"DEVSTACK_GATE_DB": "vm.db", "DEVSTACK_GATE_SECURE_CONFIG": "secure.conf", "HOME": ".",
                 "OS_CLIENT_CONFIG_FILE": "clouds.yaml"}
    knobs = {"plugins": RECORDED | FULL, "master_label": "devstack-gate-host", "master_executors": 8,
             "master_environment": {name: str(folder / file) for name, file in variables.items()}}
    with Pocket(folder, "--machines", "namespace") as pocket, git_server(folder / "git") as git_base, \
            StandIn(folder / "jenkins", credentials={"nodes": ("jenkins", make_key(folder))}, knobs=knobs) as jenkins:
        (folder / "clouds.yaml").write_bytes(pocket.clouds_yaml.read_bytes())
        pool = Pool(folder, pocket, jenkins)
        pool.write_secure_config("git python3")
        load_pool(pool)
        settings = f"export GIT_BASE={git_base}\n{ONE_MINUTE}{tripleo_settings()}"
        load(make_site(folder, plugins="full", providers=["one"], scripts=str(PROJECT), gate_settings=settings,
                       gate_repository=f"{git_base}/openstack/devstack-gate"),
             jenkins.url, jenkins.user, jenkins.token)
        pool.environment["GIT_BASE"] = git_base
        pool.run("devstack-vm-update-image.py", "one", expect=0)
        yield pool


def make_repositories(folder: Path, source: Path) -> None:
    """Make repositories of TripleO's two projects, one of them with a change, and of these scripts."""
    source.mkdir()
    (source / "toci_devtest.sh").write_text(DEVTEST)
    for name in ("tripleo-ci", "tripleo-heat-templates"):
        commit_files(folder / "openstack" / name, source, ["toci_devtest.sh"])
    add_change(folder / "openstack/tripleo-ci", CHANGE, "Say it better", "toci_devtest.sh", "boxes:", "boxes of it:")
    commit_files(folder / "openstack/devstack-gate", PROJECT, GATE_FILES)


def load_pool(pool: Pool) -> None:
    """Load a pool of two machines that share one test environment; a file counts its resets."""
    (pool.folder / "rack-1.json").write_text('{"boxes": 3}')
    environment = {"name": "rack-1", "images": ["noble"], "data": "rack-1.json", "reset": "echo >> resets"}
    file = pool.folder / "providers.yaml"
    file.write_text(yaml.safe_dump({"providers": [provider(images=[image(min_ready=2, test_environment=True)])],
                                    "test-environments": [environment]}))
    pool.run("vmdatabase.py", "load", str(file), expect=0)


@pytest.fixture
def pool(site: Pool) -> Pool:
    """Return the pool, full, its agents online and the environment free, whatever an earlier test left."""
    site.sql("UPDATE machine SET state = 'DELETE' WHERE state <> 'READY'")
    site.fill()
    return site


def begin(pool: Pool, how: str) -> dict[str, Any]:
    """Start a build that will end as `how` says; return it once it has begun."""
    assert pool.jenkins
    item = pool.jenkins.build(GATE, ZUUL_URL=pool.environment["GIT_BASE"], ZUUL_PROJECT="openstack/tripleo-ci",
                              ZUUL_BRANCH="master", ZUUL_REF=CHANGE, ZUUL_CHANGE="12", ZUUL_PATCHSET="3",
                              ZUUL_PIPELINE=how)
    return pool.jenkins.wait_started(item, BUILD_SECONDS)


def end(pool: Pool, build: dict[str, Any]) -> dict[str, Any]:
    """Wait until a build has ended and vm.db has its end; return it."""
    assert pool.jenkins
    ended = pool.jenkins.wait_build(GATE, build["number"], BUILD_SECONDS)
    await_that("the build's end in vm.db", lambda: pool.sql(
        "SELECT 1 FROM result WHERE jenkins_build_number = ? AND end_time IS NOT NULL", build["number"]), 30)
    return ended


def asleep(pool: Pool, how: str = "sleep") -> dict[str, Any]:
    """Start a build; return it once its test sleeps and it has the environment."""
    build = begin(pool, how)

    def sleeps() -> bool:
        assert pool.jenkins
        return any((one["job"], one["number"]) == (GATE, build["number"]) and "asleep" in one["console"]
                   for one in pool.jenkins.look()["builds"])

    await_that("the test", sleeps, BUILD_SECONDS)
    assert environment(pool) == "LOCKED"
    return build


def environment(pool: Pool) -> str:
    """Return the state of the test environment."""
    ((state,),) = pool.sql("SELECT state FROM test_environment")
    return str(state)


def resets(pool: Pool) -> int:
    """Return how often the test environment was reset."""
    counted = pool.folder / "resets"
    return len(counted.read_text().splitlines()) if counted.exists() else 0


def await_back(pool: Pool, count: int) -> None:
    """Wait until the environment is free again, and check how often it was reset."""
    await_that("the test environment", lambda: environment(pool) == "FREE", 30)
    assert resets(pool) == count


def comes_back_to_the_next(pool: Pool, build: dict[str, Any]) -> None:
    """Check that a failed build's machine is kept with the environment until the next one to take a machine gets it."""
    before = resets(pool)
    assert (environment(pool), pool.machines()[build["node"]]) == ("LOCKED", "USED")

    taken = pool.run("devstack-vm-inprogress.py", "--image", "noble", expect=0).stdout.split()[0]

    assert pool.machines().get(build["node"], "DELETE") == "DELETE"
    assert (environment(pool), resets(pool)) == ("LOCKED", before + 1)
    pool.run("devstack-vm-delete.py", taken, expect=0)
    await_back(pool, before + 2)


def result(pool: Pool, build: dict[str, Any]) -> tuple[Any, ...]:
    """Return what vm.db knows of a build: result, kind, environment."""
    (row,) = pool.sql("SELECT result, kind, environment FROM result WHERE jenkins_build_number = ?", build["number"])
    return row


def test_the_change_is_tested_with_the_environment_which_comes_back_after_a_pass(pool: Pool) -> None:
    before = resets(pool)

    build = end(pool, begin(pool, "success"))

    assert build["result"] == "SUCCESS", build["console"]
    assert [said for said in ("boxes of it: 3", "its data: 600 jenkins") if said not in build["console"]] == []
    assert result(pool, build) == ("SUCCESS", "passed", "rack-1")
    await_back(pool, before + 1)


def test_it_comes_back_after_a_failure(pool: Pool) -> None:
    build = end(pool, begin(pool, "failure"))

    assert result(pool, build) == ("FAILURE", "test", "rack-1"), build["console"]
    comes_back_to_the_next(pool, build)


def test_it_comes_back_after_the_time_limit(pool: Pool) -> None:
    build = end(pool, asleep(pool, "overtime"))

    assert result(pool, build) == ("FAILURE", "timeout", "rack-1"), build["console"]
    comes_back_to_the_next(pool, build)


def test_it_comes_back_after_an_abort(pool: Pool) -> None:
    assert pool.jenkins
    before, build = resets(pool), asleep(pool)

    requests.post(f"{pool.jenkins.url}job/{GATE}/{build['number']}/stop",
                  auth=(pool.jenkins.user, pool.jenkins.token), timeout=30)

    assert end(pool, build)["result"] == "ABORTED"
    await_back(pool, before + 1)


def test_it_comes_back_after_the_death_of_the_server(pool: Pool) -> None:
    before, build = resets(pool), asleep(pool)

    pool.pocket_server(build["node"], vanish=True)

    assert end(pool, build)["result"] == "FAILURE"
    pool.run("devstack-vm-reap.py", "one")
    assert build["node"] not in pool.machines()
    await_back(pool, before + 1)


@pytest.mark.parametrize("kill", ["-f '[d]evstack-vm-gate-wrap'", "-u jenkins sshd"], ids=["gate", "agent"])
def test_it_comes_back_after_a_kill_on_the_machine(pool: Pool, kill: str) -> None:
    """The kill hits the gate itself, or the connection over which Jenkins runs the build."""
    build = asleep(pool)

    pool.ssh(pool.column(build["node"], "ip"), f"sudo pkill -KILL {kill}")

    build = end(pool, build)
    assert result(pool, build) == ("FAILURE", "unknown", "rack-1"), build["console"]
    comes_back_to_the_next(pool, build)
