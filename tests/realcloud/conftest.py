"""The control plane that the tests of a run share; it is frozen while a worker runs other tests."""

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.realcloud.client import RealCloud
from tests.realcloud.processes import family, left
from tests.support.pool import await_that

STOP_SECONDS = 90
HERE = Path(__file__).parent
RUNNING: list[RealCloud] = []


def pytest_runtest_setup() -> None:
    """Let the control plane go on."""
    signal_all(signal.SIGCONT)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Freeze the control plane before other tests: idle services poll for messages many times a second."""
    if nextitem and HERE not in nextitem.path.parents:
        signal_all(signal.SIGSTOP)


def signal_all(number: signal.Signals) -> None:
    """Send a signal to all processes of the control plane and its machines."""
    for real in RUNNING:
        for pid in family(real.process.pid):
            with suppress(ProcessLookupError):  # the process has ended
                os.kill(pid, number)


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    """A running control plane, which tests leave as they found it. After it ends, nothing of it must be left."""
    with RealCloud(tmp_path_factory.mktemp("realcloud"), "--clouds", "north", "--volumes") as running:
        RUNNING.append(running)
        yield running
        signal_all(signal.SIGCONT)
        RUNNING.remove(running)
        pids = family(running.process.pid)

        running.process.send_signal(signal.SIGINT)

        assert running.process.wait(STOP_SECONDS) == 0
        await_that("the end of all processes", lambda: left(running, pids) == (set(), []), STOP_SECONDS)
        assert not running.root.exists()
