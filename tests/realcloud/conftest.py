"""The control plane that the tests of a run share."""

import signal
from collections.abc import Iterator

import pytest

from tests.realcloud.client import RealCloud
from tests.realcloud.processes import family, left
from tests.support.pool import await_that

STOP_SECONDS = 90


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """A running control plane; tests clear away what they make there. At its end nothing is left of it."""
    with RealCloud(tmp_path_factory.mktemp("realcloud"), "--clouds", "north", "--volumes") as running:
        yield running
        pids = family(running.process.pid)

        running.process.send_signal(signal.SIGINT)

        assert running.process.wait(STOP_SECONDS) == 0
        await_that("the end of all processes", lambda: left(running, pids) == (set(), []), STOP_SECONDS)
        assert not running.root.exists()
