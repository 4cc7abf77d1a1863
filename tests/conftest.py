"""Fixtures: clouds, Jenkins and pools that end with the test."""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.pocketcloud.client import Pocket
from tests.pocketcloud.jenkins_client import StandIn
from tests.pool import PROJECT, Pool, clear_cloud, clear_jenkins, make_key

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have it ignored by what they start in the background

MakePool = Callable[..., Pool]
# The files that take longest, as a run's own times have it: begun first, none is waited for alone at the end.
LONGEST = ("test_launch.py", "test_reap.py", "test_image_builds.py", "test_jobs_driven.py",
           "realcloud/test_contract.py",
           "test_gate_host.py", "test_launch_room.py", "test_gate.py", "test_gate_received.py", "test_bench.py",
           "test_gate_limit.py", "test_update_image_sh.py", "test_kill.py", "test_after_build.py", "test_docs.py",
           "test_jenkinsfile.py", "test_stopping.py", "test_pip_cache.py", "test_check.py", "realcloud/test_life.py",
           "realcloud/test_room.py", "realcloud/test_start_and_stop.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the files that take longest first; xdist hands files out in this order."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.relative_to(PROJECT / "tests").as_posix(), len(places)))


@pytest.fixture
def make_pool(tmp_path: Path) -> Iterator[MakePool]:
    """Make a pool against a cloud with machines of a kind, by default with a Jenkins whose nodes are online at once."""
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
    """A cloud with quick machines that have no more than ssh, and a Jenkins whose nodes are online at once."""
    folder = tmp_path_factory.mktemp("site")
    with Pocket(folder, "--machines", "shared-ssh") as pocket, \
            StandIn(folder / "jenkins", knobs={"connect": "instant"}) as jenkins:
        yield pocket, jenkins


@pytest.fixture
def pool(site: tuple[Pocket, StandIn], tmp_path: Path) -> Iterator[Pool]:
    """A pool of its own at the module's site, which it finds as new."""
    pocket, jenkins = site
    pocket.reset_calls("pocket-a")
    jenkins.reset_calls()
    yield Pool(tmp_path, pocket, jenkins)
    for cloud in ("pocket-a", "pocket-b"):
        clear_cloud(pocket, cloud)
    clear_jenkins(jenkins)
