"""What a node that nobody trusts can do: hang, drip, flood, never end."""

import calendar
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gateprocess
import nodessh
import vmdatabase
from nodessh import Login, NotYetError, ReadyScriptError, StepError, TooSlowError, Welcome
from pool import script
from tests.pocketcloud.client import Pocket
from tests.support.hostilesshd import (
    Serve,
    close_without_status,
    drip,
    end_but_stay_open,
    flood,
    flood_past_the_window,
    hostile_sshd,
    say_nothing,
)
from tests.support.pool import Pool, await_that, image, make_key, provider
from tests.test_memory import MEASURE, MEGABYTES
from tests.test_nodessh import listening

LAUNCH = "devstack-vm-launch.py"
HOUR = 3600
BOOT_SECONDS = 4
SLACK_SECONDS = 10


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_key(tmp_path_factory.mktemp("key"))


def step(login: Login, seconds: float, stdin: bytes = b"", most: int = nodessh.OUTPUT_BYTES) -> str:
    """Return why a step fails."""
    with pytest.raises(StepError) as caught, nodessh.session(login, most=most) as session:
        session.run("look", ["true"], seconds, stdin)
    return str(caught.value)


@pytest.mark.parametrize(
    ("serve", "stall_at"), [(None, "exec"), (say_nothing, ""), (drip, ""), (end_but_stay_open, "")],
    ids=["does not answer the request", "says nothing", "drips", "ends its output only"])
def test_a_step_ends_in_its_time_whatever_the_server_does(key: Path, serve: Serve | None, stall_at: str) -> None:
    with hostile_sshd(serve, stall_at) as (host, port):
        began = time.monotonic()
        said = step(Login(host, port, "root", key), 1)
    assert said.startswith(f"{host}: look: not done after 1 s")
    assert time.monotonic() - began < 1 + SLACK_SECONDS


def test_a_step_whose_input_nobody_reads_ends_in_its_time(key: Path) -> None:
    with hostile_sshd(say_nothing) as (host, port):
        began = time.monotonic()
        said = step(Login(host, port, "root", key), 1, b"x" * 10_000_000)
    assert said == f"{host}: look: not done after 1 s"
    assert time.monotonic() - began < 1 + SLACK_SECONDS


@pytest.mark.parametrize("stdin", [b"", b"x" * 10_000_000], ids=["without input", "while it gets its input"])
@pytest.mark.parametrize("serve", [flood, flood_past_the_window])
def test_a_step_that_prints_without_end_is_cut_off(key: Path, serve: Serve, stdin: bytes) -> None:
    with hostile_sshd(serve) as (host, port):
        said = step(Login(host, port, "root", key), 60, stdin, most=1 << 20)
    assert said.splitlines()[0] == f"{host}: look: more than 1 MB came"
    assert len(said) < 1000


def test_a_command_that_closes_without_a_status_is_a_failure(key: Path) -> None:
    with hostile_sshd(close_without_status) as (host, port):
        assert step(Login(host, port, "root", key), 5).startswith(f"{host}: look: connection lost")


@pytest.mark.parametrize("stall_at", ["auth", "open"])
def test_a_login_has_one_time_limit_as_a_whole(key: Path, stall_at: str) -> None:
    with hostile_sshd(say_nothing, stall_at) as (host, port):
        began = time.monotonic()
        with pytest.raises((NotYetError, StepError)), nodessh.session(Login(host, port, "root", key), 1) as session:
            session.run("look", ["true"])
    assert time.monotonic() - began < 1 + SLACK_SECONDS


def drip_a_banner(connection: Any) -> None:
    for _ in range(600):
        connection.sendall(b"not yet\r\n")
        time.sleep(0.1)


def flood_without_a_line(connection: Any) -> None:
    while True:
        connection.sendall(b"x" * 65536)


@pytest.mark.parametrize("greet", [drip_a_banner, flood_without_a_line])
def test_a_greeting_without_end_ends_the_login(key: Path, greet: Callable[[Any], None]) -> None:
    def quietly(connection: Any) -> None:
        with suppress(OSError):  # the client has left
            greet(connection)

    began = time.monotonic()
    with listening(quietly) as (host, port), pytest.raises(NotYetError), \
            nodessh.session(Login(host, port, "root", key), 2):
        pass
    assert time.monotonic() - began < 2 + SLACK_SECONDS


def test_no_step_of_a_session_goes_on_after_the_deadline(key: Path) -> None:
    with hostile_sshd(drip) as (host, port):
        began = time.monotonic()
        with pytest.raises(StepError, match="not done after"), \
                nodessh.session(Login(host, port, "root", key), deadline=began + 2) as session:
            session.run("look", ["true"], 600)
    assert time.monotonic() - began < 2 + SLACK_SECONDS


@pytest.mark.parametrize("script", [None, b"#!/bin/sh\n"])
def test_the_ssh_test_ends_with_the_time_of_the_machine(key: Path, script: bytes | None) -> None:
    with hostile_sshd(say_nothing) as (host, port):
        began = time.monotonic()
        with pytest.raises((NotYetError, ReadyScriptError, TooSlowError)):
            nodessh.welcome(Login(host, port, "root", key), Welcome("A=1\n", "", script), began + 2, 10, 0)
    assert time.monotonic() - began < 2 + SLACK_SECONDS


# --- launch ---


@contextmanager
def launching(folder: Path, serve: Serve | None, stall_at: str) -> Iterator[tuple[Pool, subprocess.Popen[str]]]:
    """Run a launch of two machines whose sshd is hostile, and measure it."""
    with ExitStack() as stack:
        pool = Pool(folder, stack.enter_context(Pocket(folder, "--machines", "none")))
        pool.load(provider(boot_timeout=BOOT_SECONDS, ssh_port=2222, images=[image(min_ready=2)]))
        pool.seed_snapshots()
        command = [sys.executable, "-c", MEASURE, sys.executable, str(Path(LAUNCH).resolve()), "one"]
        process = stack.enter_context(subprocess.Popen(
            command, env=pool.environment, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        stack.callback(process.kill)
        await_that("the servers", lambda: len(pool.servers()) == 2)
        for server in pool.servers():
            stack.enter_context(hostile_sshd(serve, stall_at, (server["address"], 2222)))
        yield pool, process


@pytest.mark.parametrize(
    ("serve", "stall_at"), [(None, "exec"), (drip, ""), (flood, "")], ids=["does not answer", "drips", "floods"])
def test_a_launch_ends_with_boot_timeout_whatever_the_machines_do(
    tmp_path: Path, serve: Serve | None, stall_at: str
) -> None:
    with launching(tmp_path, serve, stall_at) as (pool, process):
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1, err
        assert list(pool.machines().values()) == ["ERROR", "ERROR"]
    asked, *_, ended = [datetime.fromisoformat(line.split()[0]) for line in err.splitlines()
                        if "asking for a server" in line or "console log saved" in line]
    assert ended - asked < timedelta(seconds=BOOT_SECONDS + SLACK_SECONDS + 5), err
    assert f"not ready after {BOOT_SECONDS} s (boot-timeout); last seen: " in err
    assert int(out.splitlines()[-1]) < MEGABYTES * 1024


def test_a_machine_whose_worker_waits_for_the_cloud_is_given_up_at_boot_timeout(pool: Pool) -> None:
    pool.load(provider(boot_timeout=BOOT_SECONDS, floating_ips="always", images=[image(min_ready=1)]))
    pool.seed_snapshots()
    pool.knobs(answers=[{"service": "network", "match": "PUT /floatingips/.*", "kind": "hang"}])
    began = time.monotonic()
    result = pool.run(LAUNCH, "one", expect=1)
    assert time.monotonic() - began < 45, result.stderr  # a call may take 60 s
    assert f"not ready after {BOOT_SECONDS} s (boot-timeout)" in result.stderr
    assert list(pool.machines().values()) == ["ERROR"]


# --- runs that are in the way ---

HOLDER = """import sys
from pathlib import Path
import gateprocess
with gateprocess.file_lock(Path(sys.argv[1]), 0):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a process that holds a lock and does nothing."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("kind", ["launch", "reap"])
def test_a_run_that_steps_aside_names_the_process_that_has_the_lock(pool: Pool, kind: str) -> None:
    pool.load(provider())
    with holder(Path(f"{pool.database}.locks/{kind}-one")) as process:
        before = time.time()
        result = pool.run(f"devstack-vm-{kind}.py", "one", expect=0)
    said = f"another {kind} is at work on this provider; leaving it to that one (process {process.pid}, since "
    assert said in result.stderr
    since = result.stderr.partition(said)[2].partition(")")[0]
    assert abs(before - calendar_seconds(since)) < 30


def test_what_was_asked_for_after_the_last_look_of_a_run_is_done_by_that_run(pool: Pool) -> None:
    pool.load(provider(boot_timeout=2 * HOUR))  # this process is the run, and can be that old
    works: list[int] = []

    def work() -> int:
        works.append(len(works))
        if not works[-1]:
            aside = pool.run("devstack-vm-launch.py", "one", expect=0)
            assert "leaving it to that one" in aside.stderr
        return works[-1]

    with vmdatabase.opened(pool.place):
        assert script.run_alone("launch", vmdatabase.provider_named("one"), work, 1000, again_seconds=60) == 1
    assert works == [0, 1]


def calendar_seconds(text: str) -> float:
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


def test_a_run_that_steps_aside_for_one_that_is_too_old_fails(
    pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    pool.load(provider())
    with vmdatabase.opened(pool.place), holder(Path(f"{pool.database}.locks/launch-one")) as process:
        one = vmdatabase.provider_named("one")
        await_that("it to be older", lambda: time.time() - (found := gateprocess.lock_holder(
            Path(f"{pool.database}.locks/launch-one")) or gateprocess.Holder(0, time.time())).since > 2 and found)
        assert script.run_alone("launch", one, lambda: 7, 1) == gateprocess.EXIT_FAILED
        assert script.run_alone("launch", one, lambda: 7, 1000) == gateprocess.EXIT_OK
    error = caplog.records[0]
    assert error.levelname == "ERROR"
    assert "for longer than the 1 s that it can take: process " + str(process.pid) in error.getMessage()


def test_the_holder_of_a_lock_is_who_has_it_and_not_who_waits(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert gateprocess.lock_holder(lock) is None
    with holder(lock) as process:
        assert (found := gateprocess.lock_holder(lock))
        assert found.pid == process.pid
    process.wait()
    assert gateprocess.lock_holder(lock) is None
    with gateprocess.file_lock(lock, 0):
        assert (found := gateprocess.lock_holder(lock))
        assert found.pid == os.getpid()
