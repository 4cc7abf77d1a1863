"""A real PostgreSQL server for the tests, on its own socket; all processes of a test run share it.

    python -m tests.support.postgres FOLDER PID    serve from a new folder until process PID has ended

The server runs as the account postgres, which Debian's package makes, since it refuses to run as root. It never
syncs to disk: no test cuts the power. psycopg is imported where it is used: the demo runs without it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import psycopg

START_SECONDS = 60
ACCOUNT = "postgres"
OWNER = "gate"  # the role of the scripts, which is not a superuser
SETTINGS = ("listen_addresses=", "fsync=off", "max_connections=200", "shared_buffers=32MB", "wal_level=replica",
            "max_wal_senders=4", "unix_socket_permissions=0777", "autovacuum_naptime=20s")
AS_ACCOUNT = ("setpriv", f"--reuid={ACCOUNT}", f"--regid={ACCOUNT}", "--clear-groups")


def programs() -> Path:
    """Return the folder of PostgreSQL's programs, which Debian does not put on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    assert found, "the tests need Debian's package postgresql; run-tests.sh installs it"
    return found[-1].parent


class Server:
    """A PostgreSQL server in a folder."""

    def __init__(self, folder: Path, *, made: bool = False) -> None:
        """made: whether its files exist already."""
        self.folder = folder
        self._made = made
        self.data = folder / "data"
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs as the server's account."""
        subprocess.run([*AS_ACCOUNT, str(programs() / program), *arguments], check=True, cwd="/",
                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def make(self) -> None:
        """Make the server's files, start it, and add a role for the scripts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(self.folder, ACCOUNT, ACCOUNT)
        self.run("initdb", "-D", str(self.data), "-A", "trust", "-N", "-E", "UTF8", "--locale=C")
        self.start()
        self.sql("postgres", f"CREATE ROLE {OWNER} LOGIN")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        options = [word for setting in SETTINGS for word in ("-c", setting)]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*AS_ACCOUNT, str(programs() / "postgres"), "-D", str(self.data), "-k", str(self.folder), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/")
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.02)

    def answers(self) -> bool:
        """Return whether the server accepts connections."""
        import psycopg

        with contextlib.suppress(psycopg.OperationalError), self.connect("postgres"):
            return True
        return False

    def kill(self) -> None:
        """Kill all processes of the server at once, as when its host dies."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        for pid in map(int, children):
            while Path(f"/proc/{pid}").exists() and "Z" not in _state(pid):
                time.sleep(0.01)

    def freeze(self, frozen: bool) -> None:
        """Freeze all processes of the server, or let them go on."""
        assert self._process
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        for pid in (self._process.pid, *map(int, children)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def stop(self) -> None:
        """Shut the server down without waiting for its clients."""
        if self._process:
            self._process.send_signal(signal.SIGINT)
            self._process.wait()
            self._process = None

    def connect(self, database: str, user: str = ACCOUNT) -> psycopg.Connection[Any]:
        """Return a connection to a database, as the superuser unless `user` is given."""
        import psycopg

        return psycopg.connect(host=str(self.folder), dbname=database, user=user, autocommit=True)

    def sql(self, database: str, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement as the superuser."""
        with self.connect(database) as connection:
            cursor = connection.execute(statement, values or None)
            return cursor.fetchall() if cursor.description else []

    def address(self, database: str) -> str:
        """Return a database's address, as the scripts take it."""
        return f"postgresql://{OWNER}@/{database}?host={self.folder}"

    def create(self) -> str:
        """Make a new database and return its address."""
        name = f"pool_{uuid.uuid4().hex[:12]}"
        self.sql("postgres", f"CREATE DATABASE {name} OWNER {OWNER}")
        return self.address(name)

    def standby(self, folder: Path) -> Server:
        """Make a replica of this server, which follows it once started."""
        folder.mkdir(parents=True)
        shutil.chown(folder, ACCOUNT, ACCOUNT)
        self.run("pg_basebackup", "-h", str(self.folder), "-D", str(folder / "data"), "-X", "stream", "-R", "-c",
                 "fast")
        return Server(folder, made=True)

    def promote(self) -> None:
        """Promote this replica: it accepts changes from now on."""
        self.run("pg_ctl", "-D", str(self.data), "promote", "-w")

    def __enter__(self) -> Self:
        if self._made:
            self.start()
        else:
            self.make()
        return self

    def __exit__(self, *error: object) -> None:
        self.freeze(False)
        self.stop()
        shutil.rmtree(self.folder)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return "Z"


def new_folder() -> Path:
    """Return a new folder that the server's account can reach; it cannot reach the folders of a test run as root."""
    folder = Path(tempfile.mkdtemp(prefix="devstack-gate-postgres-"))
    folder.chmod(0o755)
    return folder


@cache
def shared() -> Server:
    """Return the server of this test run. The process that needs it first starts it; a guard ends it."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = Path(tempfile.gettempdir(), f"devstack-gate-postgres-{run or os.getpid()}")
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            owner = os.getppid() if run else os.getpid()
            subprocess.Popen([sys.executable, "-m", "tests.support.postgres", str(folder), str(owner)],
                             cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, start_new_session=True)
            deadline = time.monotonic() + START_SECONDS
            while not (folder / "ready").exists():
                assert time.monotonic() < deadline, "PostgreSQL does not start"
                time.sleep(0.02)
    return Server(folder)


def guard(folder: Path, owner: int) -> None:
    """Run the server until a process has ended, then remove everything."""
    with contextlib.suppress(KeyboardInterrupt), Server(folder) as server:
        (server.folder / "ready").touch()
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(owner)
            import select

            select.select([descriptor], [], [])
    Path(f"{folder}.lock").unlink(missing_ok=True)


def statement_of(sql: str) -> str:
    """Return a test's statement, written for SQLite, in the form that psycopg takes."""
    sql = re.sub(r"(?<=[ (,])user(?=\s*[,)=])", '"user"', sql.replace("%", "%%")).replace("?", "%s")
    return sql.replace("sqlite_sequence", "last_id")


def query(address: str, statement: str, *values: Any, patience: float = 0) -> list[tuple[Any, ...]]:
    """Run one statement of a test as a person would; retries for `patience` seconds while the server is away."""
    import psycopg

    deadline = time.monotonic() + patience
    while True:
        try:
            with psycopg.connect(address) as connection:
                cursor = connection.execute(statement_of(statement), values)
                return cursor.fetchall() if cursor.description else []
        except psycopg.OperationalError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(0.1)


def dump(address: str) -> bytes:
    """Return a backup of everything in a database."""
    words = [str(programs() / "pg_dump"), "--clean", "--if-exists", "--no-owner", address]
    return subprocess.run(words, capture_output=True, check=True).stdout


def restore(address: str, backup: bytes) -> None:
    """Restore a database from a backup; all its connections are closed first."""
    import psycopg

    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
                           "AND pid != pg_backend_pid()")
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    subprocess.run(["psql", "-q", "-v", "ON_ERROR_STOP=1", "-d", address], input=backup, check=True,
                   stdout=subprocess.DEVNULL)


@contextlib.contextmanager
def writing(address: str, *statements: str) -> Iterator[Callable[[], None]]:
    """Write in a transaction that stays open for the length of the context; yields a call that rolls it back."""
    import psycopg

    with psycopg.connect(address) as connection:
        for statement in statements:
            connection.execute(statement_of(statement))
        yield connection.rollback


def at_once(calls: Sequence[Callable[[], Any]]) -> None:
    """Make calls at the same time, and wait for all of them."""
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    guard(Path(sys.argv[1]), int(sys.argv[2]))
