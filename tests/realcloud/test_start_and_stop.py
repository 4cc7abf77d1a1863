"""However a control plane ends, nothing of it is left; conftest.py checks a normal stop."""

import os
import signal
from pathlib import Path

import pytest

from tests.pocketcloud.client import PocketError
from tests.realcloud.client import RealCloud
from tests.realcloud.configuration import MEMBER
from tests.realcloud.processes import family, left
from tests.realcloud.seed import connect
from tests.support.pool import await_that

SECONDS = 90


def boot(real: RealCloud) -> None:
    """Boot a server, and wait until it is ACTIVE."""
    api = connect(real.clouds_yaml, MEMBER)
    server = api.compute.create_server(
        name="one", image_id=api.image.find_image("Debian 12").id, flavor_id="1",
        networks=[{"uuid": api.network.find_network("private").id}])
    api.compute.wait_for_server(server, interval=0.2, wait=SECONDS)


def test_a_killed_one_leaves_nothing_and_the_next_ends_with_a_service_whose_log_it_tells(tmp_path: Path) -> None:
    killed = RealCloud(tmp_path)
    boot(killed)
    pids = family(killed.process.pid)
    assert len(pids) >= 8, "the starter, five services, a machine's setpriv and init"

    killed.kill()

    await_that("the end of all processes", lambda: left(killed, pids) == (set(), []), SECONDS)
    with RealCloud(tmp_path) as again:
        assert list(connect(again.clouds_yaml, MEMBER).compute.servers()) == []
        boot(again)
        pids = family(again.process.pid)
        (glance,) = [pid for pid in pids if b"\0glance\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]

        os.kill(glance, signal.SIGKILL)

        assert again.process.wait(SECONDS) == 1
        assert f"glance ended with -9: {again.root}/state/log/glance.log\n" in again.log.read_text()
        await_that("the end of all processes", lambda: left(again, pids) == (set(), []), SECONDS)
        assert (tmp_path / "realcloud-logs/glance.log").exists()
        assert not again.root.exists()


def test_services_that_cannot_be_installed_are_1_and_in_pips_words(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))

    with pytest.raises(PocketError, match=r"ended with 1:\n(?s:.*)pip failed with 1: (?s:.*)No matching distribution"):
        RealCloud(tmp_path, "--cache", str(tmp_path / "cache"))


def test_a_folder_of_somebody_elses_is_2_and_stays(tmp_path: Path) -> None:
    (tmp_path / "realcloud").mkdir()
    (tmp_path / "realcloud/thesis").touch()

    with pytest.raises(PocketError, match=r"ended with 2:\n.*expected an empty or a missing folder"):
        RealCloud(tmp_path)
    assert (tmp_path / "realcloud/thesis").exists()
