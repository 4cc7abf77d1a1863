"""A pool whose database is on a PostgreSQL server, so that several hosts can work on it.

Loaded for an address postgresql://... only; nothing else needs psycopg. There is one writer at a time, as in SQLite:
see dialect.py. Named locks belong to one connection of the process and end with it, on any host; a process that holds
locks ends at once if it loses that connection.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import peewee

import gateconfig
import gateprocess
from gateprocess import ConfigError, Holder
from pool import dialect

try:
    import psycopg
    from psycopg import conninfo, pq
    from psycopg.types.numeric import FloatLoader, IntDumper
except ImportError as err:
    raise ConfigError("DEVSTACK_GATE_DB: an address postgresql://... needs the Python package psycopg "
                      f"({gateprocess.one_line(err)}): pip install -r requirements-postgresql.txt") from err

BUSY_SECONDS = 30  # for a lock: a writer is done long before
STATEMENT_SECONDS = 60
IDLE_SECONDS = 60  # in a transaction, which makes no calls to the outside
SILENT_SECONDS = STATEMENT_SECONDS + 10  # after that, a server that does not answer is given up
HEARTBEAT_SECONDS = 5  # between two looks at the connection that holds the locks
ANSWER_SECONDS = 10  # limit of such a look; so a loss is noticed after 15 s at most
LET_GO_SECONDS = 60  # until the server gives the locks of a silent host to others
POLL_SECONDS = 0.05
ROWS_AT_ONCE = 5000
REQUIRES_AUTH = 160000  # the first version of the client's library that has require_auth
NAME_LENGTH = 63  # PostgreSQL's limit for application_name
# Settings of a connection, mostly time limits; those in the address take precedence.
CONNECTION = {"connect_timeout": 10, "keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5,
              "keepalives_count": 3, "tcp_user_timeout": 20_000, "target_session_attrs": "read-write",
              "client_encoding": "UTF8"}
SESSION = {"statement_timeout": f"{STATEMENT_SECONDS}s", "lock_timeout": f"{BUSY_SECONDS}s",
           "idle_in_transaction_session_timeout": f"{IDLE_SECONDS}s", "tcp_keepalives_idle": LET_GO_SECONDS // 2,
           "tcp_keepalives_interval": LET_GO_SECONDS // 6, "tcp_keepalives_count": 3,
           "tcp_user_timeout": LET_GO_SECONDS * 1000,
           "jit": "off"}  # compiling takes longer than any of our queries
# These hold whatever a role, a database or the address sets: a transaction that has waited for the writers' lock sees
# what the one before it wrote; a connection may be idle while machines boot. SETTINGS also sees to it that what was
# committed survives a crash.
RULES = {"default_transaction_isolation": "read committed", "standard_conforming_strings": "on",
         "idle_session_timeout": "0", "transaction_timeout": "0"}
# Servers differ in the settings that they know. Those of an address, a service file or PGOPTIONS count as the client's.
SETTINGS = """SELECT set_config(name, value, false) FROM unnest(%s::text[], %s::text[], %s::bool[])
    AS ours (name, value, rules) JOIN pg_settings USING (name) WHERE rules OR source <> 'client'
    UNION ALL SELECT set_config(name, 'on', false) FROM pg_settings
        WHERE name = 'synchronous_commit' AND setting = 'off'"""
ENCODINGS = ("UTF8", "SQL_ASCII")  # of databases that can store any text
# Which server and database it is, and the server's timeline, which changes with each failover or restore.
HOME = """SELECT (pg_control_system()).system_identifier::text,
    (SELECT oid::text FROM pg_database WHERE datname = current_database()),
    substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"""
# What a person can do about an error, by its SQLSTATE.
HINTS = {
    "53300": "has no room for another connection (max_connections); try again, or see who has them: "
             "select * from pg_stat_activity",
    "55P03": f"another process has held it for more than {BUSY_SECONDS} s; try again",
    "57014": f"a statement took longer than statement_timeout ({STATEMENT_SECONDS} s unless the address has another), "
             "and was stopped",
    "25006": "takes no changes (it is a replica, or read-only); name the primary",
    "53100": "its disk is full",
}
# Errors for which trying again is useless: password, database, rights, schema, settings.
LASTING = {"28P01", "28000", "3D000", "25006", "42501", "3F000", "22023", "42704", "08P01"}
LASTING_WORDS = re.compile(
    r"password authentication failed|no password supplied|does not exist|session is read-only|no pg_hba.conf entry|"
    r"name or service not known|invalid .*(value|number)|bad value for|definition of service|service file|"
    r"servname not supported|startup parameter|configuration parameter", re.IGNORECASE)


def key_of(name: str) -> int:
    """Return the key of the advisory lock of that name."""
    return int.from_bytes(hashlib.sha256(f"devstack-gate {name}".encode()).digest()[:8], "big", signed=True)


WRITER = key_of("writer")


@lru_cache(4096)
def _parameters(sql: str) -> str:
    """Return a statement with psycopg's %s in place of each ? outside quotes, and with % doubled."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\?|%", lambda found: {"?": "%s"}.get(found[0], found[0].replace("%", "%%")), sql)


def shown(address: str) -> str:
    """Return an address in a form that may be shown, without login and parameters."""
    return gateprocess.printable(address).partition("?")[0]


class Database(peewee.PostgresqlDatabase):
    """The database at an address, with the methods of vmdatabase's SqliteDatabase."""

    param = "?"
    errors = (peewee.DatabaseError, peewee.InterfaceError, psycopg.Error)
    ids_table = "last_id"
    shared = True

    def __init__(self, address: str) -> None:
        """Take the address; this does not connect yet."""
        try:
            self.address = conninfo.conninfo_to_dict(address)
        except psycopg.ProgrammingError as err:
            raise ConfigError(f"{shown(address)}: is no address of a PostgreSQL database "
                              f"({gateprocess.one_line(err)})") from err
        super().__init__(shown(address))
        self._locks = _Locks(self._connect, shown(address))
        self._watched: dict[int, tuple[float, Any]] = {}  # by thread: deadline of its statement, and connection
        self._watcher: threading.Thread | None = None
        self._notes: Path | None = None
        self._begun = 0.0  # the server's clock when the monotonic one was 0

    # --- peewee ---

    def init(self, database: str | None, **_: Any) -> None:  # type: ignore[override]  # peewee's are of its adapters
        """Set the name that messages show."""
        peewee.Database.init(self, database)

    def _connect(self) -> Any:
        given: dict[str, Any] = {**CONNECTION, **_guarded(self.address), "application_name": _application(),
                                 **self.address}
        connection = psycopg.connect(**given, autocommit=True, prepare_threshold=None)
        ours = [(name, str(value), rules) for rules, settings in ((False, SESSION), (True, RULES))
                for name, value in settings.items()]
        connection.execute(SETTINGS, [list(column) for column in zip(*ours, strict=True)])
        connection.adapters.register_dumper(bool, _Flag)  # flags are integers, as in SQLite
        connection.adapters.register_loader("numeric", FloatLoader)
        return connection

    def _set_server_version(self, conn: Any) -> None:
        self.server_version = conn.pgconn.server_version

    def _initialize_connection(self, conn: Any) -> None:
        """Learn the server's clock, as the clocks of the hosts may differ."""
        self._refuse_shared_sessions(conn)
        before = time.monotonic()
        (seconds,) = conn.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
        self._begun = seconds - (before + time.monotonic()) / 2

    def _refuse_shared_sessions(self, first: Any) -> None:
        """Raise ConfigError if a pooler shares the server's sessions among clients, one transaction at a time.

        Then locks and time limits belong to no client. A pooler is recognised because the process id that it reports is
        not that of the server's process, and this way of pooling because two connections get the same process, or one
        connection gets two.
        """
        own = _process_of(first)
        if own == first.info.backend_pid:
            return
        with contextlib.closing(self._connect()) as second:
            second.execute("BEGIN")
            other = _process_of(second)
            second.execute("COMMIT")
        if other == own or _process_of(first) != own:
            raise ConfigError(f"{self.database}: a pooler shares the sessions of the server among its clients "
                              "(pool_mode = transaction), so that locks do not work; connect to the server itself, "
                              "or have the pooler keep a session for each client (pool_mode = session)")

    def begin(self, lock_type: str | None = None) -> None:
        """Begin a transaction: IMMEDIATE is the only writing one; any other sees the database at one moment."""
        self.execute_sql(f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT pg_advisory_xact_lock({WRITER})" if lock_type
                             else "BEGIN ISOLATION LEVEL REPEATABLE READ")

    def commit(self) -> Any:
        """End a transaction."""
        with self._limited():
            return super().commit()

    @contextlib.contextmanager
    def _as_peewee_s(self) -> Iterator[None]:
        """Raise psycopg's errors as peewee's, which callers catch."""
        try:
            yield
        except psycopg.IntegrityError as err:
            raise peewee.IntegrityError(str(err)) from err
        except psycopg.Error as err:
            raise peewee.OperationalError(str(err)) from err

    def execute_sql(self, sql: str, params: Sequence[Any] | None = None) -> Any:
        """Run a statement, with ? for parameters, and return its cursor."""
        with self._limited(), self._as_peewee_s():
            return self.cursor().execute(_parameters(sql), params) if params else self.cursor().execute(sql)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        """Cut the connection if the server does not answer at all: the server's own time limits do not work then."""
        me = threading.get_ident()
        self._watched[me] = time.monotonic() + SILENT_SECONDS, self.connection()
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="server", daemon=True)
            self._watcher.start()
        try:
            yield
        finally:
            del self._watched[me]

    def _watch(self) -> None:
        while True:
            time.sleep(1)
            for limit, connection in list(self._watched.values()):
                if time.monotonic() > limit:
                    with contextlib.suppress(OSError, psycopg.Error):
                        socket.socket(fileno=os.dup(connection.fileno())).shutdown(socket.SHUT_RDWR)

    # --- what vmdatabase needs from either database ---

    def clock(self) -> float:
        """Return the server's time in Unix seconds, which all hosts use."""
        return self._begun + time.monotonic() if self._begun else time.time()

    @property
    def notes(self) -> Path:
        """The folder of this host for notes that a restored database would lack."""
        if self._notes is None:
            own = os.environ.get("XDG_STATE_HOME", "")  # its rule: a relative path does not count
            state = gateconfig.expanded(own if own[:1] in "/~" and own else "~/.local/state", "XDG_STATE_HOME")
            (pool,) = self.execute_sql("SELECT value FROM setting WHERE name = 'pool'").fetchone()
            self._notes = state / "devstack-gate" / pool
            with contextlib.suppress(OSError):  # whoever needs the folder reports it
                self._notes.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self._notes

    def home(self) -> dict[str, str]:
        """Return what tells this database from a copy or an older state of it, with names for people."""
        system, oid, timeline = self.execute_sql(HOME).fetchone()
        return {"host": f"{system} {oid} {timeline}", "host-name": f"timeline {int(timeline, 16)}",
                "path": str(self.database)}

    def era(self) -> int:
        """Return how often the database may have been restored, at least 1: each failover begins a timeline, too."""
        return int(self.home()["host"].split()[2], 16)

    def of_another_home(self, known: dict[str, str | None]) -> str:
        """Return why this database may be a copy or an older state; empty if it is still the same one."""
        home = self.home()
        if known["host"] == home["host"]:
            return ""
        was, now = (known["host"] or "? ? ?").split(), home["host"].split()
        if was[:2] == now[:2]:
            return (f"the server has been restored or has failed over ({known['host-name']} before, now "
                    f"{home['host-name']}), and may have lost what was written last")
        return f"is the pool of another database ({known['path']}), and may be at work there"

    def lock(self, kind: str, seconds: float, name: str = "") -> contextlib.AbstractContextManager[bool]:
        """Hold the lock of a kind and name; yield whether it was obtained within `seconds`."""
        return self._locks.held(f"{kind} {name}".strip(), seconds)

    def holder(self, kind: str) -> Holder | None:
        """Return who holds a lock; None if nobody does or the holder is not visible."""
        key = key_of(kind) & 0xffff_ffff_ffff_ffff
        row = self.execute_sql(
            "SELECT application_name, extract(epoch FROM backend_start)::float8 FROM pg_locks "
            "JOIN pg_stat_activity USING (pid) WHERE locktype = 'advisory' AND granted AND objsubid = 1 "
            "AND classid = ? AND objid = ? AND database = (SELECT oid FROM pg_database "
            "WHERE datname = current_database())", (key >> 32, key & 0xffff_ffff)).fetchone()
        found = re.fullmatch(r"\S+ ([0-9]+)@(\S+)", row[0] or "") if row else None
        return Holder(int(found[1]), row[1], found[2]) if found else None

    def leave_word(self, name: str) -> None:
        """Leave word for whoever holds a lock."""
        self.execute_sql("INSERT INTO setting (name, value) VALUES (?, '') ON CONFLICT DO NOTHING", (f"word {name}",))

    def has_word(self, name: str) -> bool:
        """Return whether word was left."""
        return bool(self.execute_sql("SELECT 1 FROM setting WHERE name = ?", (f"word {name}",)).fetchone())

    def take_word(self, name: str) -> None:
        """Remove the word that was left, if any."""
        if self.has_word(name):
            self.execute_sql("DELETE FROM setting WHERE name = ?", (f"word {name}",))

    def explained(self, err: BaseException) -> tuple[str, bool]:
        """Return an error of this database in one line, and whether trying again may help."""
        cause = _first(err)
        state = getattr(cause, "sqlstate", None) or ""
        said = gateprocess.one_line(cause) or type(cause).__name__
        said = re.sub("^connection (failed|is bad): ", "", said)
        text = f"{self.database}: {HINTS.get(state, said)}"
        lasting = state in LASTING or LASTING_WORDS.search(said)
        if "session is read-only" in said:
            text = f"{self.database}: {HINTS['25006']}"
        return text, not lasting

    # --- opening ---

    def opened(self, migrations: Sequence[str], split: Callable[[str], Iterator[str]],
               begin: Callable[[], None]) -> None:
        """Make or migrate the schema of the connected database if need be; begin fills in a new pool's settings."""
        version = self.schema_version()
        if version is not None and version > len(migrations):
            raise ConfigError(f"{self.database}: has schema version {version}, newer than the {len(migrations)} known "
                              "here; use the scripts that made it")
        if version == len(migrations):
            return
        with self.atomic("IMMEDIATE"):
            self.execute_sql("SET LOCAL statement_timeout = 0")
            version = self.schema_version()  # another process may have been faster
            if version is None:
                self._make()
            elif version < len(migrations):
                gateprocess.get_log().warning("%s has an older schema (%d); migrating it", self.database, version)
            for script in migrations[version or 0:]:
                for statement in split(script):
                    for words in dialect.translated(statement):
                        self.execute_sql(words)
            self.execute_sql("INSERT INTO setting (name, value) VALUES ('schema', ?) ON CONFLICT (name) "
                             "DO UPDATE SET value = excluded.value", (str(len(migrations)),))
            begin()

    def schema_version(self) -> int | None:
        """Return the version of the schema; None if there is none yet."""
        ours, others = self.execute_sql(
            "SELECT to_regclass('setting') IS NOT NULL AND to_regclass('last_id') IS NOT NULL, "
            "EXISTS (SELECT 1 FROM pg_tables WHERE schemaname = current_schema())").fetchone()
        if not ours and others:
            raise ConfigError(f"{self.database}: holds tables that devstack-gate did not make; name another database")
        if not ours:
            return None
        row = self.execute_sql("SELECT value FROM setting WHERE name = 'schema'").fetchone()
        return int(row[0]) if row else None

    def stream(self, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of a query, of which there may be millions, part by part; call this in a transaction."""
        with self.connection().cursor(name=f"rows_{time.monotonic_ns()}") as cursor:
            cursor.itersize = ROWS_AT_ONCE
            cursor.execute(query)
            yield from cursor

    def fill(self, table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write rows into a table."""
        names = ", ".join(f'"{column}"' for column in columns)
        with self.connection().cursor().copy(f"COPY {table} ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def go_on_with_ids(self) -> None:
        """Set the server's identity counters above the ids of the copied rows."""
        for table, column in self.execute_sql("SELECT table_name, column_name FROM information_schema.columns "
                                              "WHERE is_identity = 'YES' AND table_schema = current_schema()"
                                              ).fetchall():
            self.execute_sql(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), "
                             f"coalesce(max({column}), 0) + 1, false) FROM {table}")

    def _make(self) -> None:
        (encoding,) = self.execute_sql("SELECT current_setting('server_encoding')").fetchone()
        if encoding not in ENCODINGS:
            raise ConfigError(f"{self.database}: its encoding is {encoding}, in which not every text can be kept; make "
                              "a database with: createdb --encoding UTF8 --template template0")
        for statement in dialect.PRELUDE.format(writer=WRITER).split(";\nCREATE"):
            self.execute_sql(statement if statement.startswith("\n") else f"CREATE{statement}")


def _guarded(address: Mapping[str, Any]) -> dict[str, str]:
    """Return the setting that keeps the password secret if somebody else answers in place of the server.

    If asked, the client's library would send it in clear text. That is allowed if only the server itself can listen:
    with verified TLS, or on a socket of this host.
    """
    mode = address.get("sslmode") or os.environ.get("PGSSLMODE", "")
    host = str(address.get("host") or address.get("hostaddr") or os.environ.get("PGHOST") or "/")
    if pq.version() < REQUIRES_AUTH or mode.startswith("verify") or all(one[:1] in "/@" for one in host.split(",")):
        return {}
    return {"require_auth": "!password"}


def _process_of(connection: Any) -> int:
    """Return the id of the server process that serves a connection."""
    (number,) = connection.execute("SELECT pg_backend_pid()").fetchone()
    return int(number)


def _application() -> str:
    """Return what pg_stat_activity shows of this process: script, process and host."""
    name, end = Path(sys.argv[0]).name or "python", f" {os.getpid()}@{os.uname().nodename}"
    return f"{name[:max(1, NAME_LENGTH - len(end))]}{end}"[:NAME_LENGTH].replace("\n", "?")


def _first(err: BaseException) -> BaseException:
    """Return the first of the database's errors: after a COMMIT that fails, the rollback fails as well."""
    first = seen = err
    while (before := seen.__cause__ or seen.__context__) is not None:
        seen = before
        if isinstance(seen, psycopg.Error):
            first = seen
    return first


class _Flag(IntDumper):
    """Sends True and False as integers, as flags are stored."""

    def dump(self, obj: bool) -> bytes:
        """Return 1 or 0."""
        return b"1" if obj else b"0"


class _Locks:
    """The named locks of this process: advisory locks of one connection, which a thread watches."""

    def __init__(self, connect: Callable[[], Any], where: str) -> None:
        self._connect = connect
        self._where = where
        self._mutex = threading.Lock()
        self._connection: Any = None
        self._held: set[int] = set()

    @contextlib.contextmanager
    def held(self, name: str, seconds: float) -> Iterator[bool]:
        """Hold a lock, and yield whether it was obtained within `seconds`."""
        key, deadline, pause = key_of(name), time.monotonic() + seconds, POLL_SECONDS
        while not (mine := self._try(key)) and time.monotonic() < deadline:
            time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
            pause = min(2 * pause, 0.5)
        try:
            yield mine
        finally:
            if mine:
                self._release(key)

    def _try(self, key: int) -> bool:
        with self._mutex:
            if key in self._held:
                return False
            if self._connection is None:
                self._open()
            if self._ask(f"SELECT pg_try_advisory_lock({key})") != b"t":
                return False
            self._held.add(key)
            return True

    def _release(self, key: int) -> None:
        with self._mutex:
            self._held.discard(key)
            if self._connection is not None:
                self._ask(f"SELECT pg_advisory_unlock({key})")

    def _open(self) -> None:
        self._connection = self._connect()
        threading.Thread(target=self._watch, args=(self._connection,), name="locks", daemon=True).start()

    def _ask(self, sql: str) -> bytes | None:
        """Return the single value of a query; raises psycopg.Error if the server does not send it in time."""
        connection = self._connection.pgconn
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            connection.send_query(sql.encode())
            connection.flush()
            value: bytes | None = None
            while True:
                while connection.is_busy():
                    left = deadline - time.monotonic()
                    if left <= 0 or not select.select([connection.socket], [], [], left)[0]:
                        raise psycopg.OperationalError(f"no answer for {ANSWER_SECONDS} s")
                    connection.consume_input()
                result = connection.get_result()
                if result is None:
                    return value
                if result.status != pq.ExecStatus.TUPLES_OK:
                    raise psycopg.OperationalError((result.error_message or b"no answer").decode(errors="replace"))
                value = result.get_value(0, 0)
        except psycopg.Error as err:
            self._lost(err)
            raise

    def _lost(self, err: psycopg.Error) -> None:
        """End this process if it holds locks, which others may have by now; all that it has begun is recorded."""
        self._connection = None
        if self._held:
            gateprocess.say(f"{self._where}: the connection that holds the locks of this run is lost "
                            f"({gateprocess.one_line(err)}); {gateprocess.RECORDED}")
            os._exit(gateprocess.EXIT_FAILED)

    def _watch(self, connection: Any) -> None:
        """Check the connection while it is in use: at once if the server ends it, else every HEARTBEAT_SECONDS."""
        while True:
            with contextlib.suppress(OSError, ValueError, psycopg.Error):
                select.select([connection.fileno()], [], [], HEARTBEAT_SECONDS)
            with self._mutex:
                if self._connection is not connection:
                    return
                with contextlib.suppress(psycopg.Error):
                    self._ask("SELECT 1")
