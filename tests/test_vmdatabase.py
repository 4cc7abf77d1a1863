"""vm.db: its schema and migrations, moves between states, views and the commands for people."""

import base64
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

import gateprocess
import vmdatabase
from gateprocess import ConfigError
from pool.migrations import MIGRATIONS
from tests.support.pool import ANY_HOST_KEY, PROJECT, Pool, image, provider
from vmdatabase import STATES, DatabaseError

INTEGRITY_ERRORS = (sqlite3.IntegrityError, psycopg.IntegrityError)
LINE = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ "


@pytest.fixture
def path(place: Path | str) -> Path | str:
    """Return where a test can make its vm.db."""
    return place


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Return a pool with neither cloud nor Jenkins; vm.db has one provider with one image."""
    pool = Pool(tmp_path)
    pool.load(provider())
    return pool


def machine(pool: Pool, state: str = "READY", **columns: Any) -> str:
    """Add a machine that is only a row; return its name."""
    return pool.add_machine(state, server=False, node=False, **columns)


def dump(path: Path) -> list[str]:
    """Return everything in a vm.db, as SQL."""
    with closing(sqlite3.connect(path)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()
        return [str(version), *connection.iterdump()]


# Schema


@pytest.mark.file
def test_a_new_file_has_the_tables_and_views_that_people_know(path: Path) -> None:
    with vmdatabase.opened(path):
        rows = vmdatabase.database.execute_sql("SELECT type, name FROM sqlite_master WHERE type IN ('table', 'view')")
        found = {(kind, name) for kind, name in rows.fetchall() if not name.startswith("sqlite_")}
    tables = ["setting", "provider", "base_image", "snapshot_image", "machine", "result", "event", "tally", "autohold",
              "label", "test_environment", "environment_waiter"]
    assert found == {*(("table", name) for name in tables), ("view", "pool"), ("view", "node")}


@pytest.mark.file
@pytest.mark.parametrize(
    ("table", "columns"),
    [
        ("provider", "name max_servers"),
        ("base_image", "provider_id name external_id min_ready min_ram"),
        ("snapshot_image", "base_image_id name version external_id server_external_id state state_time keep_until"),
        ("machine", "base_image_id external_id name jenkins_name ip user state state_time"),
        ("result", "base_image_id machine_id jenkins_job_name jenkins_build_number gerrit_change_number "
                   "gerrit_patchset_number start_time end_time result provider image kind phase reason known_failure "
                   "minutes url environment"),
        ("event", "time machine_id node_name provider image from_state to_state reason environment"),
        ("test_environment", "name images providers data reset state state_time state_reason machine_id"),
        ("pool", "provider image min_ready ready building used error hold delete max_servers subnodes"),
        ("node", "provider image name ip state age hold_reason lead"),
    ],
)
def test_tables_and_views_have_the_columns_that_people_use(path: Path, table: str, columns: str) -> None:
    with vmdatabase.opened(path):
        found = [row[1] for row in vmdatabase.database.execute_sql(f"PRAGMA table_info({table})").fetchall()]
    assert [name for name in found if name in columns.split()] == sorted(columns.split(), key=found.index)
    assert set(columns.split()) <= set(found)


@pytest.mark.parametrize("table", ["machine", "snapshot_image"])
@pytest.mark.parametrize("state", ["ready", "GONE", "", None])
def test_a_state_that_is_none_is_refused_by_the_database_itself(pool: Pool, table: str, state: str | None) -> None:
    more = {"machine": "", "snapshot_image": ", name, version"}[table]
    values = {"machine": "", "snapshot_image": ", 'n', 1"}[table]
    with pytest.raises(INTEGRITY_ERRORS, match=r"(CHECK|NOT NULL) constraint failed|(check|not-null) constraint"):
        pool.sql(f"INSERT INTO {table} (base_image_id, state_time, state{more}) VALUES (1, 1, ?{values})", state)


@pytest.mark.parametrize("state", STATES)
def test_every_state_is_a_word_that_the_database_takes(pool: Pool, state: str) -> None:
    pool.sql("INSERT INTO machine (base_image_id, state, state_time) VALUES (1, ?, 1)", state)
    assert pool.sql("SELECT state FROM machine") == [(state,)]


def test_a_machine_of_no_image_is_refused(path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"(?i)FOREIGN KEY constraint"), vmdatabase.opened(path):
        vmdatabase.Machine.create(base_image=999, state="READY", state_time=1)


def test_an_image_that_has_machines_cannot_be_deleted(pool: Pool) -> None:
    machine(pool)
    with pytest.raises(DatabaseError, match=r"(?i)FOREIGN KEY constraint"), vmdatabase.opened(pool.place):
        vmdatabase.BaseImage.delete().execute()


def test_an_id_is_never_used_again(pool: Pool) -> None:
    names = [machine(pool), machine(pool)]
    pool.sql("DELETE FROM machine")
    names.append(machine(pool))
    assert names == [f"devstack-noble-one-{number}" for number in (1, 2, 3)]


@pytest.mark.file
def test_vm_db_is_in_wal_mode_and_the_pool_has_a_uuid(path: Path) -> None:
    with vmdatabase.opened(path):
        pool = vmdatabase.pool_uuid()
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("SELECT value FROM setting WHERE name = 'pool'").fetchone() == (pool,)
    assert str(uuid.UUID(pool)) == pool


@contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Act as another client that is in the middle of writing."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("UPDATE machine SET state = 'USED'")
        yield connection
        connection.execute("ROLLBACK")


@pytest.mark.file
def test_people_can_read_while_a_script_writes(pool: Pool) -> None:
    name = machine(pool)
    with writing(pool.database):
        result = subprocess.run(["sqlite3", str(pool.database), "select name, state from node"], text=True,
                                capture_output=True, timeout=10, check=False)
        listed = pool.run("vmdatabase.py", "list", "--json", expect=0)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{name}|READY\n", "")
    assert json.loads(listed.stdout)[0]["ready"] == 1


@pytest.mark.file
def test_a_script_waits_for_a_writer_that_ends_in_time(pool: Pool) -> None:
    name = machine(pool, "HOLD")
    with writing(pool.database):
        process = pool.start("vmdatabase.py", "unhold", name)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    assert (process.wait(10), pool.machines()) == (0, {name: "DELETE"})


# Several processes that make vm.db at once

CREATOR = """
import sys
sys.path.insert(0, {project!r})
import gateconfig
import vmdatabase
from pool.migrations import MIGRATIONS

print("here", flush=True)
sys.stdin.readline()
with vmdatabase.opened(gateconfig.place_of_database(sys.argv[1], ""), {migrations}):
    print(vmdatabase.pool_uuid())
"""


def at_once(script: str, *arguments: list[str]) -> list[str]:
    """Run a Python script once for each list of arguments, all from one moment on; return their last lines."""
    processes = [subprocess.Popen([sys.executable, "-c", script, *own], text=True, stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE) for own in arguments]
    try:
        for process in processes:
            assert process.stdout
            assert process.stdout.readline() == "here\n"
        for process in processes:
            assert process.stdin
            process.stdin.write("\n")
            process.stdin.flush()
        outcomes = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(out or err).strip().rpartition("\n")[2] for out, err in outcomes]


@pytest.mark.parametrize("attempt", range(5))
def test_eight_processes_that_make_it_at_once_make_one_pool(path: Path, attempt: int) -> None:
    script = CREATOR.format(project=str(PROJECT), migrations="MIGRATIONS")
    pools = at_once(script, *([str(path)] for _ in range(8)))
    with vmdatabase.opened(path):
        assert pools == [vmdatabase.pool_uuid()] * 8, attempt


# Moves

RACER = """
import sys
sys.path.insert(0, {project!r})
import gateconfig
import vmdatabase

with vmdatabase.opened(gateconfig.place_of_database(sys.argv[1], "")):
    machine = vmdatabase.Machine.get_by_id(1)
    print("here", flush=True)
    sys.stdin.readline()
    print(vmdatabase.move(machine, "READY", sys.argv[2]), machine.state)
"""


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_that_move_one_machine_exactly_one_wins(pool: Pool, attempt: int) -> None:
    name = machine(pool)
    targets = ["USED", "HOLD", "DELETE", "ERROR"] * 2
    outcomes = at_once(RACER.format(project=str(PROJECT)), *([str(pool.place), target] for target in targets))
    won = [target for target, outcome in zip(targets, outcomes, strict=True) if outcome == f"True {target}"]
    assert len(won) == 1, (attempt, outcomes)
    assert sorted(outcomes) == sorted([f"True {won[0]}"] + ["False READY"] * 7)
    assert pool.machines() == {name: won[0]}


def test_a_move_writes_state_time_and_columns_together_or_nothing(pool: Pool) -> None:
    machine(pool, age=100)
    with vmdatabase.opened(pool.place):
        row = vmdatabase.Machine.get_by_id(1)
        before = pool.sql("SELECT state, state_time, error FROM machine")
        assert vmdatabase.move(row, "BUILDING", "ERROR", error="too slow") is False
        assert pool.sql("SELECT state, state_time, error FROM machine") == before
        assert vmdatabase.move(row, "READY", "ERROR", error="too slow") is True
    ((state, state_time, error),) = pool.sql("SELECT state, state_time, error FROM machine")
    assert (state, error, time.time() - state_time < 30) == ("ERROR", "too slow", True)


def test_writing_columns_leaves_a_state_that_somebody_else_wrote_meanwhile(pool: Pool) -> None:
    name = machine(pool)
    with vmdatabase.opened(pool.place):
        row = vmdatabase.Machine.get_by_id(1)
        pool.sql("UPDATE machine SET state = 'HOLD'")
        vmdatabase.set_columns(row, ip="192.0.2.1")
    assert (pool.machines(), pool.column(name, "ip")) == ({name: "HOLD"}, "192.0.2.1")


# Migrations

SCHEMA_1 = PROJECT / "tests/data/vm-schema-1.sql"  # as the first release made it, with some rows
LONGER = (*MIGRATIONS, "ALTER TABLE machine ADD COLUMN colour TEXT; UPDATE machine SET colour = 'red'")


@pytest.mark.file
def test_an_older_file_is_migrated_after_a_copy_beside_it(pool: Pool) -> None:
    machine(pool)
    before = dump(pool.database)
    with vmdatabase.opened(pool.place, LONGER):
        assert vmdatabase.database.execute_sql("SELECT id, colour FROM machine").fetchall() == [(1, "red")]
    (copy,) = pool.folder.glob("vm.db.schema-*")
    assert re.fullmatch(rf"vm\.db\.schema-{len(MIGRATIONS)}\.\d{{8}}T\d{{6}}Z", copy.name)
    assert dump(copy) == before
    assert pool.sql("PRAGMA user_version") == [(len(LONGER),)]


@pytest.mark.file
def test_a_file_of_schema_1_is_migrated_with_all_that_is_in_it(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(SCHEMA_1.read_text())
    before = dump(path)
    with vmdatabase.opened(path):
        assert vmdatabase.pool_uuid() == "b86473a9-a579-4d51-ae11-6514028df466"
        assert vmdatabase.machine_named("devstack-noble-one-1").hold_reason == "bug 1; a look"
        assert [(row.id, row.keep_until) for row in vmdatabase.SnapshotImage.select()] == [(1, None), (2, None)]
    (copy,) = path.parent.glob("vm.db.schema-1.*")
    assert dump(copy) == before
    with closing(sqlite3.connect(path)) as connection:
        names = {name for (name,) in connection.execute("DELETE FROM setting WHERE name != 'pool' RETURNING name")}
        connection.commit()
    assert names == {"host", "host-name", "path", "made"}
    assert rows_as_in(copy, path) == rows_as_in(copy, copy)


def rows_as_in(old: Path, file: Path) -> dict[str, list[tuple[object, ...]]]:
    """Return all rows of a file by table, in the columns that the old file has."""
    with closing(sqlite3.connect(old)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        columns = {table: ", ".join(row[1] for row in connection.execute(f"PRAGMA table_info({table})"))
                   for (table,) in tables}
    with closing(sqlite3.connect(file)) as connection:
        return {table: connection.execute(f"SELECT {names} FROM {table} ORDER BY 1").fetchall()
                for table, names in columns.items()}


@pytest.mark.file
def test_a_new_file_and_a_migrated_one_are_alike(path: Path) -> None:
    old = path.with_name("old.db")
    with closing(sqlite3.connect(old)) as connection:
        connection.executescript(SCHEMA_1.read_text())
    found = []
    for file in (old, path):
        with vmdatabase.opened(file):
            pass
        with closing(sqlite3.connect(file)) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master ORDER BY name").fetchall()
            columns = [connection.execute(f"PRAGMA table_info({name})").fetchall() for (name,) in tables]
            found.append((connection.execute("PRAGMA user_version").fetchone(), tables, columns))
    assert found[0] == found[1]
    assert found[0][0] == (len(MIGRATIONS),)


@pytest.mark.file
def test_a_migrated_file_keeps_its_uuid_and_is_not_copied_again(pool: Pool) -> None:
    before = pool.uuid
    for _ in range(2):
        with vmdatabase.opened(pool.place, LONGER):
            assert vmdatabase.pool_uuid() == before
    assert len(list(pool.folder.glob("vm.db.schema-*"))) == 1


@pytest.mark.file
def test_a_migration_that_fails_leaves_all_as_it_was(pool: Pool) -> None:
    machine(pool)
    before = dump(pool.database)
    failing = (*LONGER, "CREATE TABLE extra (id INTEGER); SELECT 1 FROM nowhere")
    with pytest.raises(DatabaseError) as caught, vmdatabase.opened(pool.place, failing):
        pass
    assert str(caught.value) == f"{pool.database}: no such table: nowhere"
    assert dump(pool.database) == before
    assert list(pool.folder.glob("vm.db.schema-*")) == []
    pool.run("vmdatabase.py", expect=0)


@pytest.mark.file
def test_what_a_dump_made_has_no_version_and_is_told_which(pool: Pool) -> None:
    statements = pool.dump()
    for file in pool.folder.glob("vm.db*"):
        if file.is_file():
            file.unlink()
    with closing(sqlite3.connect(pool.database)) as connection:
        connection.executescript("".join(statements))

    result = pool.run("vmdatabase.py", expect=2)

    assert "holds the tables of devstack-gate, but not their version, as after a .dump" in result.stderr
    assert list(pool.folder.glob("vm.db.schema-*")) == []
    with closing(sqlite3.connect(pool.database)) as connection:
        connection.execute(re.findall("'(PRAGMA .*)'", result.stderr)[0])
    pool.run("vmdatabase.py", expect=0)


@pytest.mark.file
def test_many_that_migrate_at_once_migrate_once(pool: Pool) -> None:
    script = CREATOR.format(project=str(PROJECT), migrations="(*MIGRATIONS, 'CREATE TABLE extra (id)')")
    assert at_once(script, *([str(pool.database)] for _ in range(6))) == [pool.uuid] * 6
    assert pool.sql("SELECT count(*) FROM extra") == [(0,)]


@pytest.mark.file
def test_a_newer_file_is_refused_and_left_alone(pool: Pool) -> None:
    pool.sql(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    before = dump(pool.database)
    with pytest.raises(ConfigError) as caught, vmdatabase.opened(pool.place):
        pass
    assert str(caught.value) == (f"{pool.database}: has schema version {len(MIGRATIONS) + 1}, newer than the "
                                 f"{len(MIGRATIONS)} known here; use the scripts that made it")
    assert dump(pool.database) == before


@pytest.mark.file
@pytest.mark.parametrize("version", [0, 1])
def test_tables_of_somebody_else_are_refused_and_left_alone(path: Path, version: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE machine (whose TEXT)")
        connection.execute(f"PRAGMA user_version = {version}")
    before = path.read_bytes()
    with pytest.raises(ConfigError) as caught, vmdatabase.opened(path):
        pass
    assert str(caught.value) == f"{path}: holds tables that devstack-gate did not make; name another file"
    assert path.read_bytes() == before


@pytest.mark.file
@pytest.mark.parametrize("content", [b"", b"\n"], ids=["no byte", "one byte"])
@pytest.mark.parametrize("script", ["vmdatabase.py", "devstack-vm-launch.py", "devstack-vm-reap.py"])
def test_an_empty_file_in_the_place_of_vm_db_is_no_new_pool(pool: Pool, content: bytes, script: str) -> None:
    for file in pool.folder.glob("vm.db-*"):
        file.unlink()
    pool.database.write_bytes(content)

    result = pool.run(script, *["one"] * (script != "vmdatabase.py"), expect=2)

    assert result.stderr == (f"{script}: {pool.database}: is empty, which a vm.db never is; restore a backup, or "
                             "remove the file to begin a new pool that knows nothing of the old one\n")
    assert pool.database.read_bytes() == content


@pytest.mark.file
def test_a_database_without_tables_is_no_new_pool_either(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
    with pytest.raises(ConfigError, match="is empty, which a"), vmdatabase.opened(path):
        pass


@pytest.mark.file
def test_what_a_killed_making_of_vm_db_left_is_no_obstacle(path: Path) -> None:
    for name in ("vm.db.new", "vm.db.new-wal"):
        path.with_name(name).write_text("half of it")
    with vmdatabase.opened(path):
        assert vmdatabase.provider_names() == []
    assert sorted(file.name for file in path.parent.iterdir()) == ["vm.db", "vm.db.locks"]


# Backups, moves and restores


def backup(pool: Pool, name: str = "backup.db") -> Path:
    """Back vm.db up into the pool's folder; return the copy's path."""
    pool.run("vmdatabase.py", "backup", str(pool.folder / name), expect=0)
    return pool.folder / name


def restore(pool: Pool, copy: Path) -> None:
    """Replace vm.db by a backup, as docs/operations.md says."""
    for file in pool.folder.glob("vm.db-*"):
        file.unlink()
    shutil.copy(copy, pool.database)


@pytest.mark.file
def test_a_backup_holds_all_that_is_committed_while_a_script_writes(pool: Pool) -> None:
    for _ in range(3):
        machine(pool)
    before = dump(pool.database)
    with writing(pool.database):
        copy = backup(pool)
    assert (dump(copy), sorted(file.name for file in pool.folder.glob("backup*"))) == (before, ["backup.db"])


@pytest.mark.file
def test_a_backup_replaces_an_older_one(pool: Pool) -> None:
    backup(pool)
    name = machine(pool)
    copy = backup(pool)
    assert any(name in line for line in dump(copy))


@pytest.mark.file
@pytest.mark.parametrize(("file", "message"), [
    ("vm.db", "{}: is vm.db itself; name another file"),
    ("no-such-folder/backup.db", "{}: there is no folder {.parent}"),
    (".", "{}: is a folder; name the file to write"),
])
def test_a_backup_that_cannot_be_written_is_said_in_one_line(pool: Pool, file: str, message: str) -> None:
    before = dump(pool.database)
    target = pool.folder / file
    result = pool.run("vmdatabase.py", "backup", str(target), expect=2)
    assert result.stderr == f"vmdatabase.py: {message.format(target, target)}\n"
    assert dump(pool.database) == before


@pytest.mark.file
@pytest.mark.parametrize("content", [b"[node]\nuser = jenkins\n", b"", "other pool"])
def test_a_backup_replaces_no_file_but_a_backup_of_the_same_pool(pool: Pool, content: bytes | str) -> None:
    file = pool.folder / "other"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with vmdatabase.opened(file):
            pass
    before = file.read_bytes()

    refused = pool.run("vmdatabase.py", "backup", str(file), expect=2)

    assert refused.stderr == (f"vmdatabase.py: {file}: is there, and is no earlier backup of this pool; name another "
                              "file\n")
    assert file.read_bytes() == before


@pytest.mark.file
@pytest.mark.parametrize("name", ["vm.db-wal", "vm.db-shm", "vm.db-journal"])
def test_a_backup_takes_no_name_of_sqlite_s_own_files(pool: Pool, name: str) -> None:
    with closing(sqlite3.connect(pool.database)) as user:  # as a script at work, so that there is a write-ahead log
        pool.sql("UPDATE provider SET max_servers = 77")
        user.execute("SELECT * FROM machine").fetchall()

        refused = pool.run("vmdatabase.py", "backup", str(pool.folder / name), expect=2)

        assert "has a name that SQLite uses for its own files of vm.db; name another file" in refused.stderr
        assert pool.sql("SELECT max_servers FROM provider") == [(77,)]


@pytest.mark.file
def test_a_backup_takes_nothing_away_that_lies_beside_it(pool: Pool) -> None:
    beside = pool.folder / "backup.db.new"
    beside.write_bytes(b"mine")
    backup(pool)
    assert beside.read_bytes() == b"mine"


@pytest.mark.file
def test_a_backup_replaces_nothing_but_files(pool: Pool) -> None:
    os.mkfifo(pool.folder / "pipe")
    (pool.folder / "link").symlink_to("copy.db")

    refused = pool.run("vmdatabase.py", "backup", str(pool.folder / "pipe"), expect=2)
    pool.run("vmdatabase.py", "backup", str(pool.folder / "link"), expect=0)

    assert refused.stderr == (f"vmdatabase.py: {pool.folder}/pipe: is not a plain file, and a backup would "
                              "replace it; name a file to write\n")
    assert (pool.folder / "pipe").is_fifo()
    assert dump(pool.folder / "copy.db") == dump(pool.database)


MAKERS = ["devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-update-image.py"]


@pytest.mark.file
@pytest.mark.parametrize("script", MAKERS)
@pytest.mark.parametrize("provider_name", ["one", "all"])
def test_a_copy_elsewhere_is_refused_until_it_is_said_to_be_on_purpose(
        pool: Pool, script: str, provider_name: str) -> None:
    copy = backup(pool)
    elsewhere: dict[str, Any] = {"DEVSTACK_GATE_DB": str(copy)}

    refused = pool.run(script, provider_name, expect=2, **elsewhere)
    said = pool.run("vmdatabase.py", "moved", expect=0, **elsewhere)
    again = pool.run(script, provider_name, **elsewhere)

    assert refused.stderr == (
        f"{script}: {copy}: is the vm.db of {pool.database}, and may be at work there; if it was moved or restored "
        "here on purpose, say so first: vmdatabase.py moved\n")
    assert said.stdout.startswith(f"{copy} belongs to this host and path (before: {pool.database}); new machines ")
    assert "at work there" not in again.stderr
    pool.run("vmdatabase.py", "list", expect=0, **elsewhere)


@pytest.mark.file
def test_a_vm_db_of_another_host_is_refused_though_its_path_is_the_same(pool: Pool) -> None:
    pool.sql("UPDATE setting SET value = 'another' WHERE name = 'host'")
    pool.sql("UPDATE setting SET value = 'jenkins02' WHERE name = 'host-name'")

    refused = pool.run("devstack-vm-reap.py", "one", expect=2)

    assert f"is the vm.db of {pool.database} on host jenkins02, and may be at work there" in refused.stderr
    pool.run("vmdatabase.py", "moved", expect=0)
    assert "at work there" not in pool.run("devstack-vm-reap.py", "one").stderr


@pytest.mark.file
def test_a_host_without_a_machine_id_is_told_from_another_by_its_name(pool: Pool) -> None:
    """Containers often have an empty /etc/machine-id."""
    pool.host = ["unshare", "--uts", "--mount", "sh", "-c",
                 'hostname "$0" && mount --bind /dev/null /etc/machine-id && exec "$@"', "jenkins01"]
    pool.run("vmdatabase.py", "moved", expect=0)
    assert "at work there" not in pool.run("devstack-vm-reap.py", "one").stderr
    pool.host[-1] = "jenkins02"

    refused = pool.run("devstack-vm-reap.py", "one", expect=2)

    assert f"is the vm.db of {pool.database} on host jenkins01, and may be at work there" in refused.stderr


@pytest.mark.file
def test_a_path_that_leads_to_the_same_file_is_no_other_path(pool: Pool) -> None:
    link = pool.folder / "link.db"
    link.symlink_to(pool.database)
    result = pool.run("devstack-vm-reap.py", "one", DEVSTACK_GATE_DB=str(link))
    assert "at work there" not in result.stderr


@pytest.mark.file
def test_ids_that_were_noted_beside_a_vm_db_are_not_used_again_after_a_restore(pool: Pool) -> None:
    copy = backup(pool)
    machine(pool)
    machine(pool)
    with vmdatabase.opened(pool.place):
        vmdatabase.note_ids()
    restore(pool, copy)
    assert pool.machines() == {}

    with vmdatabase.opened(pool.place):
        vmdatabase.leave_out_noted_ids()
        known = vmdatabase.known_ids("machine")

    assert machine(pool) == "devstack-noble-one-3"
    assert [known.knows(number) for number in (0, 1, 2, 3)] == [True, False, False, False]


@pytest.mark.file
@pytest.mark.parametrize("content", ["", "x", "[]", '{"pool": "another", "machine": 7, "snapshot_image": 7}',
                                     '{"pool": null}', "\xff", '{"machine": ' + "[" * 9999])
def test_a_note_of_ids_that_is_none_of_this_pool_counts_for_nothing(pool: Pool, content: str) -> None:
    (pool.folder / "vm.db.locks" / "ids").write_text(content, encoding="latin-1")
    with vmdatabase.opened(pool.place):
        vmdatabase.leave_out_noted_ids()
    assert machine(pool) == "devstack-noble-one-1"


@pytest.mark.file
@pytest.mark.parametrize("number", [10**15 + 1, 2**63 - 1, 2**63])
def test_a_note_of_ids_that_can_be_none_is_told_and_not_used(pool: Pool, number: int) -> None:
    machine(pool)
    (pool.folder / "vm.db.locks" / "ids").write_text(json.dumps(
        {"pool": pool.uuid, "machine": number, "snapshot_image": 1}))

    result = pool.run("devstack-vm-reap.py", "one", "--dry-run")

    assert f"vm.db.locks/ids: {number} is no id of a machine or snapshot; the file is not used" in result.stderr
    assert machine(pool) == "devstack-noble-one-2"


@pytest.mark.parametrize(("seen", "unknown", "first"), [
    ([], [], 3), ([2], [], 3), ([5], [3, 4, 5], 6), ([5, 4], [3, 4, 5], 6), ([5, 8], [3, 4, 5, 6, 7, 8], 9)])
def test_ids_that_are_seen_outside_are_left_out_and_known_to_be_unknown(
        pool: Pool, seen: list[int], unknown: list[int], first: int) -> None:
    machine(pool)
    machine(pool)
    with vmdatabase.opened(pool.place):
        for number in seen:
            vmdatabase.leave_out_ids("machine", number)
        known = vmdatabase.known_ids("machine")
    assert [number for number in range(known.last + 1) if not known.knows(number)] == unknown
    assert machine(pool) == f"devstack-noble-one-{first}"


@pytest.mark.file
def test_moved_goes_on_with_ids_that_nothing_made_since_the_backup_can_have(pool: Pool) -> None:
    machine(pool)
    pool.sql("UPDATE setting SET value = value - 5000 WHERE name = 'made'")
    pool.sql("UPDATE machine SET state_time = state_time - 3600")
    with vmdatabase.opened(pool.place):
        vmdatabase.leave_out_ids("machine", 7)
        last = vmdatabase.moved()["machine"]
        assert vmdatabase.known_ids("machine") == vmdatabase.KnownIds(last)
    assert 7 + 3600 < last < 7 + 3600 + 60 + 2 * vmdatabase.SPARE_IDS
    assert machine(pool) == f"devstack-noble-one-{last + 1}"


# Views and list


def test_the_pool_view_counts_the_machines_of_each_image(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=3), image("jammy", min_ready=0)]), provider("two", max_servers=5))
    counts = {"READY": 1, "BUILDING": 2, "USED": 3, "ERROR": 4, "HOLD": 5, "DELETE": 6}
    for state, count in counts.items():
        for _ in range(count):
            machine(pool, state)
    machine(pool, provider="two")
    assert pool.sql("SELECT * FROM pool") == [
        ("one", "jammy", 0, 0, 0, 0, 0, 0, 0, 10, 0),
        ("one", "noble", 3, 1, 2, 3, 4, 5, 6, 10, 0),
        ("two", "noble", 2, 1, 0, 0, 0, 0, 0, 5, 0),
    ]


def test_the_node_view_shows_each_machine(pool: Pool) -> None:
    machine(pool, ip="192.0.2.1", age=300)
    machine(pool, "HOLD", age=90_000, hold_reason="bug 7")
    assert pool.sql("SELECT * FROM node") == [
        ("one", "noble", "devstack-noble-one-1", "192.0.2.1", "READY", "5 min", None, None),
        ("one", "noble", "devstack-noble-one-2", None, "HOLD", "25 h", "bug 7", None),
    ]


@pytest.mark.parametrize(
    ("age", "words"),
    [
        (-100, {"0 s"}),
        (0, {"0 s", "1 s", "2 s"}),
        (110, {"110 s", "111 s", "112 s"}),
        (130, {"2 min"}),
        (7150, {"119 min"}),
        (7300, {"2 h"}),
        (170_000, {"47 h"}),
        (172_900, {"2 days"}),
        (10_000_000, {"115 days"}),
    ],
)
def test_an_age_is_said_in_words(pool: Pool, age: int, words: set[str]) -> None:
    machine(pool, age=age)
    ((said,),) = pool.sql("SELECT age FROM node")
    assert said in words


def test_list_prints_a_table(pool: Pool) -> None:
    machine(pool)
    table = ("provider  image  min_ready  ready  building  used  error  hold  delete  max_servers  subnodes\n"
             "one       noble          2      1         0     0      0     0       0           10         0\n")
    assert [pool.run("vmdatabase.py", *words, expect=0).stdout for words in ([], ["list"])] == [table, table]


def test_list_json_is_one_object_for_each_provider_and_image(pool: Pool) -> None:
    machine(pool, "HOLD")
    expected = {"provider": "one", "image": "noble", "min_ready": 2, "ready": 0, "building": 0, "used": 0, "error": 0,
                "hold": 1, "delete": 0, "max_servers": 10, "subnodes": 0}
    assert json.loads(pool.run("vmdatabase.py", "list", "--json", expect=0).stdout) == [expected]


@pytest.mark.file
def test_the_list_of_an_empty_pool_says_what_to_do(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    lines = pool.run("vmdatabase.py", expect=0).stdout.splitlines()
    assert lines[1:] == [f"{pool.database} has no providers yet; run: vmdatabase.py load FILE"]
    assert pool.run("vmdatabase.py", "list", "--json", expect=0).stdout == "[]\n"


# load


def load(pool: Pool, *providers: Mapping[str, Any], options: tuple[str, ...] = ()) -> list[str]:
    """Load a file with these providers; return the lines that this prints."""
    file = pool.folder / "providers.yaml"
    file.write_text(json.dumps({"providers": providers}))  # JSON is YAML
    return pool.run("vmdatabase.py", "load", *options, str(file), expect=0).stdout.splitlines()


def test_what_is_in_the_file_is_in_the_tables(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    (tmp_path / "data.sh").write_text("#!/bin/sh\n")
    keys: dict[str, Any] = {
        "region": "ORD", "calls_per_second": 2.5, "networks": ["a", "b"], "floating_ips": "never", "ssh_port": 2222,
        "floating_ip_network": "public", "address": "private-v4", "security_groups": ["s"], "max_concurrency": 3,
        "availability_zones": ["z"]}
    own = image(flavor="m1.small", user_data="data.sh", max_ready_age=7)
    assert load(pool, provider(**keys, images=[own])) == [
        "add provider one: max-servers 10", "add image one/noble: min-ready 2"]
    names = "name cloud region max_servers boot_timeout max_concurrency calls_per_second networks floating_ips " \
            "floating_ip_network address ssh_port security_groups availability_zones active"
    assert pool.sql(f"SELECT {', '.join(names.split())} FROM provider") == [
        ("one", "pocket-a", "ORD", 10, 30, 3, 2.5, '["a", "b"]', "never", "public", "private-v4", 2222, '["s"]',
         '["z"]', 1)]
    names = "name external_id min_ready min_ram flavor username user_data max_ready_age active"
    assert pool.sql(f"SELECT {', '.join(names.split())} FROM base_image") == [
        ("noble", "Debian 12", 2, 512, "m1.small", "debian", str(tmp_path / "data.sh"), 7, 1)]


def test_the_same_file_again_changes_nothing(pool: Pool) -> None:
    load(pool, provider(calls_per_second=10, networks=["a"], region=None))
    before = dump(pool.database)
    assert load(pool, provider(calls_per_second=10, networks=["a"])) == ["no changes"]
    assert dump(pool.database) == before


CHANGES = [
    (lambda: [provider(max_servers=20)], ["change provider one: max-servers 10 -> 20"]),
    (lambda: [provider(region="ORD")], ["change provider one: region None -> ORD"]),
    (lambda: [provider(networks=["a"])], ['change provider one: networks [] -> ["a"]']),
    (lambda: [provider(images=[image(min_ready=5)])], ["change image one/noble: min-ready 2 -> 5"]),
    (lambda: [provider(images=[image(image="Debian 13")])],
     ["change image one/noble: image Debian 12 -> Debian 13"]),
    (lambda: [provider(images=[image(), image("jammy")])], ["add image one/jammy: min-ready 2"]),
    (lambda: [provider(), provider("two_b", images=[])], ["add provider two_b: max-servers 10"]),
    (lambda: [provider(images=[])], ["delete image one/noble"]),
    (lambda: [], ["delete image one/noble", "delete provider one"]),
]


@pytest.mark.parametrize(("file", "lines"), CHANGES, ids=[lines[0].replace(" ", "-") for _, lines in CHANGES])
def test_each_kind_of_change_is_printed_and_made(pool: Pool, file: Any, lines: list[str]) -> None:
    before = dump(pool.database)
    assert load(pool, *file(), options=("--dry-run",)) == [f"would {line}" for line in lines]
    assert dump(pool.database) == before
    assert load(pool, *file()) == lines
    assert load(pool, *file()) == ["no changes"]


def test_an_image_with_machines_or_snapshots_is_drained(pool: Pool) -> None:
    pool.load(provider(images=[image(), image("jammy")]))
    machine(pool)
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
             "VALUES (2, 's', 1, 'READY', 1)")
    assert load(pool, provider(images=[])) == [
        "drain image one/noble: 1 machines and 0 snapshots are left to the next reaps",
        "drain image one/jammy: 0 machines and 1 snapshots are left to the next reaps"]
    assert pool.sql("SELECT name, active, min_ready FROM base_image") == [("noble", 0, 0), ("jammy", 0, 0)]
    assert load(pool, provider(images=[])) == ["no changes"]


def test_a_provider_with_machines_is_drained_and_may_come_back(pool: Pool) -> None:
    machine(pool)
    assert load(pool) == ["drain image one/noble: 1 machines and 0 snapshots are left to the next reaps",
                          "drain provider one: reap deletes it when nothing of it is left"]
    assert pool.sql("SELECT name, active FROM provider") == [("one", 0)]
    assert load(pool, provider()) == ["change provider one: back in the file",
                                      "change image one/noble: min-ready 0 -> 2",
                                      "change image one/noble: back in the file"]
    assert pool.sql("SELECT active FROM provider UNION ALL SELECT active FROM base_image") == [(1,), (1,)]


def test_a_wrong_file_changes_nothing(pool: Pool) -> None:
    before = dump(pool.database)
    file = pool.folder / "providers.yaml"
    file.write_text(json.dumps({"providers": [provider(max_servers=20), provider("two", max_servers=-1)]}))
    result = pool.run("vmdatabase.py", "load", str(file), expect=2)
    message = "provider two: max-servers: expected a whole number, 0 or more, got -1"
    assert (result.stdout, result.stderr) == ("", f"vmdatabase.py: {file}:1: {message}\n")
    assert dump(pool.database) == before


# files


def modes(pool: Pool) -> dict[str, int]:
    """Return the rights that all but the owner have on vm.db and on what lies beside it."""
    files = [*pool.folder.glob("vm.db*"), *pool.folder.glob("vm.db.locks/*"), *pool.folder.glob("copy*")]
    return {str(file.relative_to(pool.folder)): file.stat().st_mode & 0o077 for file in files}


@pytest.mark.file
@pytest.mark.parametrize("umask", ["000", "022"])
def test_whatever_the_umask_vm_db_its_copies_and_locks_are_for_the_owner_only(tmp_path: Path, umask: str) -> None:
    pool = Pool(tmp_path)
    run = ["bash", "-c", f'umask {umask}; exec "$@"', "bash", sys.executable, str(PROJECT / "vmdatabase.py")]
    for words in ([], ["backup", str(tmp_path / "copy.db")]):
        subprocess.run([*run, *words], env=pool.environment, check=True)
    with closing(sqlite3.connect(pool.database)) as reader:
        reader.execute("SELECT * FROM setting").fetchall()  # -wal and -shm exist meanwhile
        found = modes(pool)
    assert {"vm.db", "vm.db-wal", "vm.db-shm", "vm.db.locks", "vm.db.locks/schema", "copy.db"} <= found.keys()
    assert set(found.values()) == {0}


@pytest.mark.file
def test_files_of_an_earlier_release_are_made_private(tmp_path: Path) -> None:
    pool = Pool(tmp_path)
    pool.run("vmdatabase.py", expect=0)
    (tmp_path / "vm.db.schema-1.20260101T000000Z").touch()
    for file in (*tmp_path.glob("vm.db*"), *tmp_path.glob("vm.db.locks/*")):
        file.chmod(0o777 if file.is_dir() else 0o666)

    pool.run("vmdatabase.py", expect=0)

    assert set(modes(pool).values()) == {0}


@pytest.mark.file
def test_what_root_locks_in_the_folder_of_another_account_stays_open_to_that(tmp_path: Path) -> None:
    """Otherwise a person's `sudo vmdatabase.py hold` would keep all jobs out of the lock from then on."""
    os.chown(tmp_path, 12345, 12345)
    (tmp_path / "locks").mkdir()
    (tmp_path / "roots").touch()
    os.link(tmp_path / "roots", tmp_path / "locks" / "linked")
    for name in ("nodes", "linked"):
        with gateprocess.file_lock(tmp_path / "locks" / name, 0) as mine:
            assert mine
    owners = {path.name: path.stat().st_uid for path in (tmp_path / "locks", *(tmp_path / "locks").iterdir())}
    assert owners == {"locks": 12345, "nodes": 12345, "linked": 0}


@pytest.mark.file
@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo"])
def test_a_lock_that_is_no_file_is_refused_and_what_it_leads_to_stays_as_it_is(pool: Pool, kind: str) -> None:
    lock = pool.folder / "vm.db.locks/launch-one"
    precious = pool.folder / "precious"
    lock.parent.mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(lock)
    else:
        lock.symlink_to(precious)
    if kind == "link":
        precious.write_text("precious")
    pool.load(provider())

    result = pool.run("devstack-vm-launch.py", "one", expect=1)

    assert f"{lock}: cannot be opened as a lock" in result.stderr
    assert (precious.read_text() if precious.exists() else None) == ("precious" if kind == "link" else None)


# hold and unhold


@pytest.mark.parametrize("state", ["BUILDING", "READY", "USED", "ERROR"])
def test_hold_keeps_a_machine_in_any_state_but_delete(pool: Pool, state: str) -> None:
    name = machine(pool, state, ip="192.0.2.1")
    result = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", expect=0)
    assert result.stdout == f"{name} jenkins@192.0.2.1\n"
    who = f"provider=one image=noble machine=1 node={name}"
    unborn = (f"{LINE}WARNING {who} its server is still being created; if none appears, release it with: "
              f"vmdatabase.py unhold {name}\n")
    assert re.fullmatch(f"{LINE}INFO {who} {state} -> HOLD: bug 7\n" + unborn * (state == "BUILDING"), result.stderr)
    assert pool.sql("SELECT state, hold_reason, hold_until FROM machine") == [("HOLD", "bug 7", None)]


def test_a_reason_that_cannot_be_shown_as_it_is_is_kept_in_other_letters(pool: Pool) -> None:
    name = machine(pool)
    pool.run("vmdatabase.py", "hold", name, "--reason", "caf\udce9\nhere", expect=0)
    assert pool.sql("SELECT hold_reason FROM machine") == [("'caf\\udce9\\nhere'",)]


def test_hold_of_a_machine_without_an_address_prints_its_name(pool: Pool) -> None:
    name = machine(pool, "BUILDING")
    assert pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", expect=0).stdout == f"{name}\n"


def test_a_machine_that_is_marked_for_deletion_cannot_be_held(pool: Pool) -> None:
    name = machine(pool, "DELETE")
    before = dump(pool.database)
    result = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", expect=2)
    message = "is marked for deletion and cannot be held any more"
    assert (result.stdout, result.stderr) == ("", f"vmdatabase.py: {name}: {message}\n")
    assert dump(pool.database) == before


def test_hold_again_changes_reason_and_hours(pool: Pool) -> None:
    name = machine(pool, "USED")
    pool.run("vmdatabase.py", "hold", name, "--reason", "one", "--hours", "1", expect=0)
    before = pool.column(name, "state_time")
    pool.run("vmdatabase.py", "hold", name, "--reason", "two", expect=0)
    assert pool.sql("SELECT state, hold_reason, hold_until FROM machine") == [("HOLD", "two", None)]
    assert pool.column(name, "state_time") == before


@pytest.mark.parametrize(("hours", "seconds"), [("2", 7200), ("0.5", 1800), ("100", 360_000)])
def test_hold_may_end_after_hours(pool: Pool, hours: str, seconds: int) -> None:
    name = machine(pool, "USED")
    began = int(time.time())
    pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", "--hours", hours, expect=0)
    assert began + seconds <= pool.column(name, "hold_until") <= time.time() + seconds


@pytest.mark.parametrize("hours", ["0", "-1", "two", "nan", "inf", "1e9", ""])
def test_hours_that_are_none_are_refused(pool: Pool, hours: str) -> None:
    name = machine(pool, "USED")
    before = dump(pool.database)
    result = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", "--hours", hours, expect=2)
    expected = f"expected hours, above 0 and below 8784, got {hours!a}; see "
    assert result.stderr.startswith(f"vmdatabase.py hold: argument --hours: {expected}")
    assert dump(pool.database) == before


NEITHER = "--ssh-key: {key!r} is neither a public key nor a file with one"
KEY_EXPECTED = "--ssh-key: expected a public key or a file with one, such as 'ssh-ed25519 AAAA... name'"


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("{folder}/missing.pub", NEITHER),
        ("{folder}", NEITHER),
        ("{folder}/id_ed25519", KEY_EXPECTED),  # the private one
        ("ssh-ed25519", KEY_EXPECTED),
        (f"{ANY_HOST_KEY}\n{ANY_HOST_KEY}", KEY_EXPECTED),
        (ANY_HOST_KEY[:-4], KEY_EXPECTED),
        (ANY_HOST_KEY.replace("ed25519", "rsa", 1), KEY_EXPECTED),
        ("~nobody-of-that-name/key", NEITHER),
        ("", NEITHER),
        ("{folder}/binary", NEITHER),
    ],
    ids=["missing", "folder", "private", "half", "two", "cut", "other type", "nobody's", "empty", "binary"],
)
def test_a_public_key_that_is_none_is_refused_before_anything_is_done(pool: Pool, key: str, message: str) -> None:
    name = machine(pool, "USED")
    (pool.folder / "binary").write_bytes(b"\xff\xfe")
    before = dump(pool.database)
    key = key.format(folder=pool.folder)
    result = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", "--ssh-key", key, expect=2)
    assert (result.stdout, result.stderr) == ("", f"vmdatabase.py: {message.format(key=key)}\n")
    assert dump(pool.database) == before


def test_a_long_key_is_taken_for_a_key_not_for_the_name_of_a_file(pool: Pool) -> None:
    name = machine(pool, "USED", ip="127.0.0.1")
    pool.sql("UPDATE provider SET ssh_port = 1")  # nobody listens there
    parts = (b"ssh-rsa", b"\x01\x00\x01", b"\x01" * 512)
    blob = base64.b64encode(b"".join(len(part).to_bytes(4, "big") + part for part in parts)).decode()
    key = f"ssh-rsa {blob} somebody"
    result = pool.run("vmdatabase.py", "hold", name, "--reason", "bug 7", "--ssh-key", key, expect=1)
    assert result.stderr.splitlines()[-1].startswith("vmdatabase.py: jenkins@127.0.0.1: no ssh (")
    assert pool.machines() == {name: "HOLD"}


def test_unhold_lets_a_held_machine_be_deleted(pool: Pool) -> None:
    name = machine(pool, "HOLD", hold_reason="bug 7")
    result = pool.run("vmdatabase.py", "unhold", name, expect=0)
    assert re.fullmatch(f"{LINE}INFO provider=one image=noble machine=1 node={name} HOLD -> DELETE\n", result.stderr)
    assert pool.machines() == {name: "DELETE"}


@pytest.mark.parametrize("state", sorted(set(STATES) - {"HOLD"}))
def test_unhold_of_a_machine_that_is_not_held_is_refused(pool: Pool, state: str) -> None:
    name = machine(pool, state)
    result = pool.run("vmdatabase.py", "unhold", name, expect=2)
    assert result.stderr == f"vmdatabase.py: {name}: is not held, its state is {state}\n"
    assert pool.machines() == {name: state}


# Builds


@pytest.mark.parametrize(
    ("environment", "columns"),
    [
        ({}, (None, None, None, None)),
        ({"JOB_NAME": "gate", "BUILD_NUMBER": "7"}, ("gate", 7, None, None)),
        ({"GERRIT_CHANGE_NUMBER": "123", "GERRIT_PATCHSET_NUMBER": "4"}, (None, None, 123, 4)),
        ({"ZUUL_CHANGE": "123", "ZUUL_PATCHSET": "4"}, (None, None, 123, 4)),
        ({"GERRIT_CHANGE_NUMBER": "1", "ZUUL_CHANGE": "2", "GERRIT_PATCHSET_NUMBER": "3", "ZUUL_PATCHSET": "4"},
         (None, None, 1, 3)),
        ({"JOB_NAME": "", "BUILD_NUMBER": "", "ZUUL_CHANGE": "", "ZUUL_PATCHSET": "x"}, (None, None, None, None)),
        ({"BUILD_NUMBER": "\N{SUPERSCRIPT TWO}", "ZUUL_CHANGE": "9" * 30}, (None, None, None, None)),
        ({"JOB_NAME": "caf\udce9"}, ("caf?", None, None, None)),
    ],
    ids=["nothing", "jenkins", "gerrit", "zuul", "both", "empty", "strange", "not UTF-8"],
)
def test_the_build_and_its_change_are_written_down(
    pool: Pool, environment: dict[str, str], columns: tuple[Any, ...]
) -> None:
    name = machine(pool)
    began = int(time.time())
    pool.run("devstack-vm-inprogress.py", name, **environment, expect=0)
    names = "jenkins_job_name, jenkins_build_number, gerrit_change_number, gerrit_patchset_number"
    assert pool.sql(f"SELECT base_image_id, machine_id, node_name, {names}, end_time, result FROM result") == [
        (1, 1, name, *columns, None, None)]
    ((start,),) = pool.sql("SELECT start_time FROM result")
    assert began <= start <= time.time()


@pytest.mark.parametrize("result", ["SUCCESS", "FAILURE", None])
def test_the_end_of_the_build_is_written_into_its_row(pool: Pool, result: str | None) -> None:
    name = machine(pool)
    pool.run("devstack-vm-inprogress.py", name, JOB_NAME="gate", BUILD_NUMBER="7", expect=0)
    pool.run("devstack-vm-delete.py", name, *(["--result", result] if result else []), expect=0)
    ((job, start, end, said),) = pool.sql("SELECT jenkins_job_name, start_time, end_time, result FROM result")
    assert (job, said, start <= end <= time.time()) == ("gate", result, True)


def test_a_build_whose_start_nobody_wrote_down_gets_a_row_at_its_end(pool: Pool) -> None:
    name = machine(pool)
    pool.run("devstack-vm-delete.py", name, "--result", "ABORTED", JOB_NAME="gate", expect=0)
    assert pool.sql("SELECT machine_id, node_name, jenkins_job_name, start_time, result FROM result") == [
        (1, name, "gate", None, "ABORTED")]


def test_a_result_that_is_known_is_not_written_over(pool: Pool) -> None:
    name = machine(pool)
    pool.run("devstack-vm-inprogress.py", name, expect=0)
    for result in ("FAILURE", "SUCCESS"):
        pool.run("devstack-vm-delete.py", name, "--result", result, expect=0)
    assert pool.sql("SELECT result FROM result") == [("FAILURE",)]


def test_a_result_outlives_its_machine_and_its_image(pool: Pool) -> None:
    name = machine(pool)
    pool.run("devstack-vm-inprogress.py", name, expect=0)
    pool.sql("DELETE FROM machine")
    assert load(pool) == ["delete image one/noble", "delete provider one"]
    assert pool.sql("SELECT base_image_id, machine_id, node_name FROM result") == [(None, 1, name)]


@pytest.mark.parametrize(
    ("error", "stored"),
    [("127.0.0.1: stack: exit status 1\n    one\x1b[2J\r\n\n    \u202etwo\n",
      "127.0.0.1: stack: exit status 1 | one?[2J | ?two"),
     ("begins\n" + "x" * 9000 + "\nends", f"begins | {'x' * 1991} ... {'x' * 1993} | ends"), (None, None)])
def test_an_error_is_stored_as_one_line_with_its_beginning_and_its_end(
    pool: Pool, error: str | None, stored: str | None
) -> None:
    pool.load(provider())
    with vmdatabase.opened(pool.place):
        machine = vmdatabase.Machine.create(base_image=1, state="BUILDING", state_time=1, name="n1")
        vmdatabase.move(machine, "BUILDING", "ERROR", error=error)
        assert pool.column("n1", "error") == stored
        vmdatabase.set_columns(machine, error=error)
        assert pool.column("n1", "error") == stored
