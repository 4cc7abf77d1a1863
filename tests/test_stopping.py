"""SIGTERM and SIGINT: scripts end soon, whatever they wait for, and say what they leave to the next run."""

import ctypes
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support.pool import PROJECT, Pool, await_that, provider

LAUNCH, REAP, UPDATE = "devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-update-image.py"
DELETE = "devstack-vm-delete.py"
STOPPED = "WARNING stopped; what is under way is recorded and the next run goes on with it"
SLOW = "stopped without tidying up, which took more than 4 s; what is under way is recorded and the next run goes on " \
       "with it"


@pytest.fixture
def pool(pool: Pool) -> Pool:
    """Return a pool with a snapshot to boot from."""
    pool.load(provider())
    pool.seed_snapshots()
    return pool


@contextmanager
def started(pool: Pool, *call: str) -> Iterator[subprocess.Popen[str]]:
    """Run a script, and kill it in the end."""
    process = pool.start(*call)
    try:
        yield process
    finally:
        process.kill()


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> str:
    """Send the signal and return the last line; the time limit catches a script that goes on for 30 s or 60 s."""
    process.send_signal(number)
    return process.communicate(timeout=20)[1].splitlines()[-1]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_launch_leaves_its_machines_to_the_next_one(pool: Pool, number: int, code: int) -> None:
    pool.knobs(boot_seconds=60)
    with started(pool, LAUNCH, "one") as process:
        await_that("both servers", lambda: pool.sql("SELECT count(external_id) FROM machine") == [(2,)])
        last = stop(process, number)

    assert process.returncode == code
    assert last.endswith("WARNING stopped; left to the next launch, on their way: devstack-noble-one-1, "
                         "devstack-noble-one-2")


def test_a_reap_leaves_what_is_not_gone_yet_to_the_next_one(pool: Pool) -> None:
    node = pool.add_machine("DELETE")
    pool.knobs(delete_seconds=60)
    with started(pool, REAP, "one") as process:
        await_that("the delete and a look", lambda: pool.calls("DELETE", "/servers/{id}") == 1
                   and pool.calls("GET", "/servers/detail") >= 2)
        last = stop(process)

    assert process.returncode == 143
    assert last.endswith(f"WARNING stopped; left to the next reap, being deleted: {node}")


def test_a_build_that_cannot_tidy_up_since_the_cloud_hangs_leaves_that_to_reap(pool: Pool) -> None:
    pool.knobs(boot_seconds=2, answers=[{"match": "DELETE /servers/.*", "kind": "hang"}])
    with started(pool, UPDATE, "one") as process:
        await_that("the template", lambda: pool.sql("SELECT count(server_external_id) FROM snapshot_image") == [(1,)])
        last = stop(process)

    assert process.returncode == 143
    assert last.endswith(SLOW)
    pool.knobs(boot_seconds=0, answers=[])
    pool.run(REAP, "one", expect=0)
    assert (pool.server_names(), pool.sql("SELECT name FROM snapshot_image")) == ([], [("seeded",)])


@pytest.mark.parametrize("thread", [0, -1], ids=["main", "worker"])
def test_a_build_that_is_stopped_says_which_image_there_is_not(pool: Pool, thread: int) -> None:
    """The kernel may give a process's signal to any of its threads."""
    pool.knobs(boot_seconds=60)
    with started(pool, UPDATE, "one") as process:
        await_that("the template", lambda: pool.sql("SELECT count(server_external_id) FROM snapshot_image") == [(1,)])
        threads = sorted(int(task.name) for task in Path(f"/proc/{process.pid}/task").iterdir())
        assert ctypes.CDLL(None).tgkill(process.pid, threads[thread], signal.SIGTERM) == 0
        last = process.communicate(timeout=20)[1].splitlines()[-1]

    (state, name), *_ = pool.sql("SELECT state, name FROM snapshot_image ORDER BY id DESC")
    assert (process.returncode, last[20:], state) == (143, f" WARNING stopped; no new {name}", "ERROR")


def test_a_script_that_waits_for_vm_db_can_be_stopped(pool: Pool) -> None:
    """SQLite waits for a lock, and Python handles no signal meanwhile."""
    node = pool.add_machine("USED", server=False)
    assert pool.jenkins
    with closing(sqlite3.connect(pool.database, isolation_level=None)) as person:
        person.execute("BEGIN IMMEDIATE")
        with started(pool, DELETE, node) as process:
            await_that("its last call before the write", made(pool, "POST", "changeOfflineCause"))
            time.sleep(1)  # it waits by then; if not, it is stopped all the same
            last = stop(process)

    assert process.returncode == 143
    assert last.endswith(STOPPED)
    assert pool.machines() == {node: "USED"}


@pytest.mark.parametrize("script", [LAUNCH, REAP])
def test_a_run_over_all_providers_ends_when_each_has_said_what_it_leaves(pool: Pool, script: str) -> None:
    pool.load(provider(), provider("two", cloud="pocket-b"))
    pool.seed_snapshots()
    for name, cloud in {"one": "pocket-a", "two": "pocket-b"}.items():
        pool.add_machine("DELETE", provider=name, cloud=cloud)
        pool.knobs(cloud, boot_seconds=60, delete_seconds=60)
    with started(pool, script, "all") as process:
        await_that("two lists of each cloud", lambda: min(
            pool.calls("GET", "/servers/detail", cloud) for cloud in ("pocket-a", "pocket-b")) >= 2, 60)
        process.terminate()
        told = process.communicate(timeout=20)[1]

    assert process.returncode == 143
    assert told.count("stopped; left to the next ") == 2


@pytest.mark.parametrize("script", [LAUNCH, REAP, UPDATE])
def test_a_script_that_still_loads_its_libraries_says_that_it_was_stopped(pool: Pool, script: str) -> None:
    pool.knobs(latency_seconds=1)
    with started(pool, script, "one") as process:
        await_that("its libraries", lambda: "charset_normalizer" in Path(f"/proc/{process.pid}/maps").read_text())
        last = stop(process, signal.SIGINT)

    assert process.returncode == 130
    assert last.endswith(STOPPED)


STOPPED_IN_A_FINALIZER = """
import os, sys, time
sys.path.insert(0, {project!r})
import gateprocess

class Connection:
    def __del__(self):
        os.kill(os.getpid(), {number})

def body():
    Connection()
    time.sleep(60)

gateprocess.run(body)
"""
STOPPED_WHILE_IT_FAILS = """
import os, sys
sys.path.insert(0, {project!r})
import gateprocess

class LastWordsError(gateprocess.GateError):
    def __str__(self):
        os.kill(os.getpid(), {number})
        return "last words"

def body():
    raise LastWordsError

gateprocess.run(body)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("program", [STOPPED_WHILE_IT_FAILS, STOPPED_IN_A_FINALIZER], ids=["failure", "finalizer"])
def test_a_signal_at_an_awkward_moment_is_no_traceback_and_not_lost(program: str, number: int, code: int) -> None:
    program = program.format(project=str(PROJECT), number=int(number))

    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=False)

    assert (result.returncode, result.stderr) == (
        code, "stopped; what is under way is recorded and the next run goes on with it\n")


def made(pool: Pool, method: str, last: str) -> Callable[[], bool]:
    """Return a function that says whether a request has come to Jenkins."""
    assert pool.jenkins
    jenkins = pool.jenkins
    return lambda: any(one["method"] == method and one["path"].rstrip("/").endswith(last)
                       for one in jenkins.look()["requests"])
