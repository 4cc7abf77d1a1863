"""Fixtures: clouds, Jenkins and pools that end with the test."""

import os
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support import postgres
from tests.support.pool import PROJECT, Pool, clear_cloud, clear_jenkins, make_key, on_postgresql, provider

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored
# Scripts, clouds and workers start by the thousand, so Python keeps what it compiles, as on a Jenkins host.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
settings.register_profile("untimed", deadline=None)  # machines here are busy
settings.load_profile("untimed")

MakePool = Callable[..., Pool]
# The files that took longest in a run. They begin first, so that the end of a run does not wait for one of them alone.
LONGEST = ("test_reap.py", "test_launch.py", "realcloud/test_contract.py", "test_jobs_driven.py",
           "realcloud/test_life.py", "realcloud/test_machines_of_nova.py", "test_gate.py", "test_image_builds.py",
           "test_gate_limit.py", "test_launch_room.py", "test_update_image_sh.py", "test_gate_host.py",
           "test_bench.py", "test_pip_cache.py", "chaos/test_chaos.py", "test_check.py", "test_kill.py",
           "realcloud/test_room.py", "realcloud/test_start_and_stop.py", "test_contract.py", "test_jenkinsfile.py",
           "test_after_build.py", "test_gate_bats.py", "test_hostile_answers.py", "test_forget.py", "test_stopping.py")
# One worker runs both, on one control plane.
TOGETHER = {"tests/realcloud/test_machines_of_nova.py": "tests/realcloud/test_life.py"}
# The tests of these files wait longest: several workers run them, each with its own site.
PARTS = {"tests/test_reap.py": 5, "tests/test_launch.py": 4, "tests/test_gate.py": 3, "tests/test_image_builds.py": 3,
         "tests/test_gate_limit.py": 3, "tests/test_launch_room.py": 3, "tests/test_update_image_sh.py": 2,
         "tests/test_gate_host.py": 2, "tests/test_kill.py": 2}
# The tests of these files start all that they need themselves, so any worker can run any of them.
APART = {"tests/test_bench.py", "tests/test_gate_bats.py", "tests/chaos/test_chaos.py"}
# A file with a site for each value of its first parameter: each value is a part.
BY_PARAMETER = {"tests/test_jobs_driven.py"}
# The tests that use the fixture `slow` of either file: the last ones look at what it started for the first one.
ONE_PART = {
    "test_a_server_that_is_asked_to_go_is_waited_for",
    "test_a_machine_whose_agent_died_is_deleted_and_those_whose_agent_came_back_or_was_taken_stay",
    "test_a_stuck_delete_is_reported_with_its_age_from_the_first_attempt",
    "test_a_machine_is_waited_for",
    "test_a_machine_that_does_not_come_up_is_an_error_after_boot_timeout",
    "test_a_server_made_though_the_answer_was_lost_is_adopted_and_not_doubled",
    "test_what_takes_its_time_is_waited_for",
    "test_a_rate_limit_is_obeyed",
    "test_a_create_that_made_nothing_is_an_error_and_the_next_run_replaces_it",
    "test_a_jenkins_that_does_not_take_the_node_makes_the_machine_an_error",
}


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of tests about the file vm.db, which pools on PostgreSQL do not have."""
    config.addinivalue_line("markers", "file: about the file vm.db; not for pools on PostgreSQL")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the files that take longest first, as xdist keeps this order; on PostgreSQL, deselect tests about vm.db."""
    if on_postgresql():
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("file")])
        items[:] = [item for item in items if not item.get_closest_marker("file")]
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(PROJECT / "tests").as_posix(), len(places)))


class ByFile(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out files, some together, some in parts; outside APART and BY_PARAMETER a test's cases stay together."""

    def _split_scope(self, nodeid: str) -> str:
        file = str(super()._split_scope(nodeid))
        test, _, parameters = nodeid.removeprefix(f"{file}::").partition("[")
        if file in APART:
            return nodeid
        if file in BY_PARAMETER:
            return f"{file}/{parameters.rstrip(']').partition('-')[0]}"
        part = 0 if test in ONE_PART else zlib.crc32(test.encode()) % PARTS.get(file, 1)
        return f"{TOGETHER.get(file, file)}/{part}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile | None:
    """Return the scheduler for --dist loadfile; None leaves other modes to xdist."""
    return ByFile(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | str:
    """Return where a test can make its vm.db: a path, or the address of an empty database on PostgreSQL."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return postgres.shared().create() if on_postgresql() else tmp_path / "vm.db"


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[MakePool]:
    """Yield a function that makes a pool with a cloud and a Jenkins, whose nodes are online at once by default."""
    with ExitStack() as running:
        def make(kind: str = "shared-ssh", *options: str, jenkins: str | None = "instant") -> Pool:
            pocket = running.enter_context(Pocket(tmp_path, "--machines", kind, *options))
            stand_in = None
            if jenkins:
                credentials = {"nodes": ("jenkins", make_key(tmp_path))}
                stand_in = running.enter_context(
                    StandIn(tmp_path / "jenkins", credentials=credentials, knobs={"connect": jenkins}))
            return Pool(tmp_path, pocket, stand_in)

        yield make


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pocket, StandIn]]:
    """Run a cloud with quick machines that have only ssh, and a Jenkins whose nodes are online at once."""
    folder = tmp_path_factory.mktemp("site")
    with Pocket(folder, "--machines", "shared-ssh") as pocket, \
            StandIn(folder / "jenkins", knobs={"connect": "instant"}) as jenkins:
        yield pocket, jenkins


@pytest.fixture(scope="module")
def busy(site: tuple[Pocket, StandIn], tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Return one pool for all tests of a module; each test has its own machines."""
    pool = Pool(tmp_path_factory.mktemp("busy"), *site)
    pool.load(provider(max_servers=99))
    return pool


@pytest.fixture
def pool(site: tuple[Pocket, StandIn], tmp_path: Path) -> Iterator[Pool]:
    """Yield a new pool at the module's site, and clear the site afterwards."""
    pocket, jenkins = site
    pocket.reset_calls("pocket-a")
    jenkins.reset_calls()
    yield Pool(tmp_path, pocket, jenkins)
    for cloud in ("pocket-a", "pocket-b"):
        clear_cloud(pocket, cloud)
    clear_jenkins(jenkins)
