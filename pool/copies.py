"""`vmdatabase.py copy`: takes a pool from vm.db to a PostgreSQL database, or back, and checks each row.

The copy is written in one transaction, or into a file that gets its name at the end: a copy that fails or is stopped
leaves nothing. Nobody writes into the old database meanwhile, and launch and reap refuse it afterwards.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gateconfig
import gateprocess
import vmdatabase
from gateprocess import ConfigError, GateError
from pool import script
from pool.migrations import MIGRATIONS
from vmdatabase import SqliteDatabase

if TYPE_CHECKING:
    from pool.postgres import Database as Server

ROWS_AT_ONCE = 5000
KINDS = ("launch", "reap", "update-image")
# Settings of a database itself, not of the pool.
OWN = ("host", "host-name", "path", "schema")
OF_POOL = f"name NOT IN ({', '.join(repr(name) for name in OWN)}) AND name NOT LIKE 'word %'"


class Table(NamedTuple):
    """A table: its columns and the columns of its key."""

    name: str
    columns: tuple[str, ...]
    key: tuple[str, ...]
    counts: bool  # whether an id is never used twice

    def select(self, server: bool) -> str:
        """Return the query for its rows, in the order of their keys."""
        columns = ", ".join(f'"{column}"' for column in self.columns)
        order = ", ".join(f'"{column}"' + ' COLLATE "C"' * (server and column != "id") for column in self.key)
        where = f" WHERE {OF_POOL}" if self.name == "setting" else ""
        return f"SELECT {columns} FROM {self.name}{where} ORDER BY {order}"


def add_parser(commands: Any) -> None:
    """Add the command copy to vmdatabase.py."""
    command = commands.add_parser("copy", help="take the pool to a PostgreSQL database, or back to a file")
    command.add_argument("target", metavar="TARGET", help="postgresql://HOST/DATABASE, or the path of a new vm.db")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Copy the pool to an empty place, compare it row by row, and have it belong there."""
    target = gateconfig.place_of_database(options.target, "TARGET")
    source = vmdatabase.database.obj
    if isinstance(target, str) != isinstance(source, SqliteDatabase):
        raise ConfigError(f"TARGET: a vm.db is copied to an address postgresql://..., and such a database to a path, "
                          f"not {source.database} to another of its kind; "
                          + ("see vmdatabase.py backup" if isinstance(target, Path) else "see pg_dump"))
    with _nobody_at_work(), source.atomic("IMMEDIATE"):
        tables = _to_server(source, target) if isinstance(target, str) else _to_file(source, target)
        for name, value in {**source.home(), "path": _shown(target)}.items():
            vmdatabase.set_setting(name, value)  # from now on launch and reap refuse the old one
        if not isinstance(source, SqliteDatabase):
            vmdatabase.set_setting("host", "")
    for table, count in tables.items():
        print(f"{table}: {count} rows, each compared")
    print(f"{_shown(target)} is the pool's database now; set DEVSTACK_GATE_DB on all hosts. To go on with "
          f"{source.database} all the same: vmdatabase.py moved")
    return gateprocess.EXIT_OK


def _shown(target: Path | str) -> str:
    if isinstance(target, Path):
        return str(target.resolve())
    from pool import postgres

    return postgres.shown(target)


@contextlib.contextmanager
def _nobody_at_work() -> Iterator[None]:
    """Hold the locks of all providers; raises GateError if a script is at work on one."""
    with contextlib.ExitStack() as locks:
        for provider, kind in itertools.product(vmdatabase.provider_names(), KINDS):
            if not locks.enter_context(script.provider_lock(kind, provider)):
                raise GateError(f"{provider}: a {kind} is at work there; copy when it has ended, and stop the jobs "
                                "until all hosts use the new database")
        yield


def _to_server(source: SqliteDatabase, address: str) -> dict[str, int]:
    """Copy vm.db to an empty database of a server; return how many rows each table has."""
    from pool import postgres

    server = postgres.Database(address)
    with _told(server), server.connection_context():
        if server.schema_version() is not None:
            raise ConfigError(f"{server.database}: has a pool already; name an empty database")
        tables = _tables(source)
        with server.atomic("IMMEDIATE"):
            server.opened(MIGRATIONS, vmdatabase.statements, lambda: None)
            counts = {}
            for table in tables:
                server.execute_sql(f"ALTER TABLE {table.name} DISABLE TRIGGER USER")
                with _naming(table):
                    server.fill(table.name, table.columns, source.execute_sql(table.select(False)))
                counts[table.name] = _compare(table, source, server)
                server.execute_sql(f"ALTER TABLE {table.name} ENABLE TRIGGER USER")
            _copy_ids(tables, source, server)
            server.go_on_with_ids()
            _belong(server)
        _copy_notes(source.notes, server.notes)
    return counts


def _to_file(server: Server, path: Path) -> dict[str, int]:
    """Copy the database of a server to a new vm.db; return how many rows each table has."""
    if os.path.lexists(path):
        raise ConfigError(f"{path}: is there already; name a path where nothing is")
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    path = path.resolve()
    draft = path.with_name(f"{path.name}.new")
    for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
        leftover.unlink(missing_ok=True)
    os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    target = vmdatabase.new_file(draft)
    with _told(target), target.connection_context():
        target.execute_sql("PRAGMA journal_mode = WAL")
        with target.atomic("IMMEDIATE"):
            target.execute_sql("PRAGMA defer_foreign_keys = ON")
            for statement in itertools.chain.from_iterable(map(vmdatabase.statements, MIGRATIONS)):
                target.execute_sql(statement)
            target.execute_sql(f"PRAGMA user_version = {len(MIGRATIONS)}")
            triggers = target.execute_sql("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for name, _ in triggers:
                target.execute_sql(f"DROP TRIGGER {name}")
            tables, counts = _tables(target), {}
            for table in tables:
                with _naming(table):
                    _fill(target, table, server.stream(table.select(True)))
                counts[table.name] = _compare(table, target, server)
            for _, statement in triggers:
                target.execute_sql(statement)
            _copy_ids(tables, server, target)
            _belong(target, str(path))
    draft.rename(path)
    _copy_notes(server.notes, Path(f"{path}.locks"))
    return counts


@contextlib.contextmanager
def _told(database: Any) -> Iterator[None]:
    """Raise errors of the target, which is not the open database, as GateError with one line."""
    try:
        yield
    except database.errors as err:
        raise GateError(database.explained(err)[0]) from err


@contextlib.contextmanager
def _naming(table: Table) -> Iterator[None]:
    """Raise any error as a GateError that names the table whose rows cannot be copied."""
    try:
        yield
    except Exception as err:
        raise GateError(f"{table.name}: its rows cannot be copied as they are ({gateprocess.one_line(err)}); nothing "
                        "was copied") from err


def _tables(file: SqliteDatabase) -> list[Table]:
    """Return the tables of a vm.db, each after the tables that it refers to."""
    names = [name for (name,) in file.execute_sql(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name")]
    texts = dict(file.execute_sql("SELECT name, sql FROM sqlite_master WHERE type = 'table'"))
    above = {name: {row[2] for row in file.execute_sql(f"PRAGMA foreign_key_list({name})")} - {name} for name in names}
    found: list[Table] = []
    while names:
        name = next(name for name in names if above[name] <= {table.name for table in found})
        names.remove(name)
        rows = file.execute_sql(f"PRAGMA table_info({name})").fetchall()
        keys = sorted((row[5], row[1]) for row in rows if row[5])
        found.append(Table(name, tuple(row[1] for row in rows), tuple(column for _, column in keys),
                           "AUTOINCREMENT" in texts[name]))
    return found


def _fill(file: SqliteDatabase, table: Table, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows into a table of a vm.db."""
    marks = ", ".join("?" * len(table.columns))
    columns = ", ".join(f'"{column}"' for column in table.columns)
    file.cursor().executemany(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", rows)


def _compare(table: Table, file: SqliteDatabase, server: Server) -> int:
    """Return how many rows a table has in both databases; raises GateError if any row differs."""
    count = 0
    for one, other in itertools.zip_longest(file.execute_sql(table.select(False)), server.stream(table.select(True))):
        if one is None or other is None or tuple(one) != tuple(other):
            raise GateError(f"{table.name}: row {count + 1} is not the same in both, {one} and {other}; nothing was "
                            "copied")
        count += 1
    return count


def _copy_ids(tables: Iterable[Table], source: Any, target: Any) -> None:
    """Have the target go on with the ids of the source."""
    last = dict(source.execute_sql(f"SELECT name, seq FROM {source.ids_table}").fetchall())
    target.execute_sql(f"DELETE FROM {target.ids_table}")
    for table in [table for table in tables if table.counts and table.name in last]:
        target.execute_sql(f"INSERT INTO {target.ids_table} (name, seq) VALUES (?, ?)", (table.name, last[table.name]))


def _belong(target: Any, path: str | None = None) -> None:
    """Have the target belong to its own place."""
    for name, value in {**target.home(), **({"path": path} if path else {})}.items():
        target.execute_sql("INSERT INTO setting (name, value) VALUES (?, ?)", (name, value))


def _copy_notes(source: Path, target: Path) -> None:
    """Copy the notes of this host."""
    with contextlib.suppress(OSError):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file in [source / "ids", *source.glob("environment-*")]:
        if file.is_file():
            shutil.copy(file, target)
