"""Pools on PostgreSQL: locks, errors, servers that die or fail over, copies there and back, several hosts."""

import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest

import vmdatabase
from gateprocess import GateError
from pool import dialect, environments, history, providersfile
from pool.migrations import MIGRATIONS
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support import postgres
from tests.support.pool import PROJECT, Pool, await_that, make_key, provider
from tests.support.pooler import pooling
from tests.support.postgres import OWNER, Server
from tests.test_nodessh import listening


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server for this module alone, whose tests may treat it badly."""
    with Server(postgres.new_folder() / "server") as own:
        own.sql("postgres", "CREATE ROLE guarded LOGIN PASSWORD 'right'")
        own.sql("postgres", "CREATE ROLE crowded LOGIN CONNECTION LIMIT 0")
        access = own.data / "pg_hba.conf"
        access.write_text("local all guarded scram-sha-256\n" + access.read_text())
        own.sql("postgres", "SELECT pg_reload_conf()")
        yield own


@pytest.fixture
def address(server: Server) -> str:
    """Make an empty database; return its address."""
    return server.create()


def host_of(folder: Path, address: str, pocket: Pocket | None = None, jenkins: StandIn | None = None,
            key: Path | None = None) -> Pool:
    """Return the scripts as one host of a pool has them: its own home and notes, and the pool's database and key."""
    folder.mkdir(exist_ok=True)
    if key:
        for ending in ("", ".pub"):
            shutil.copy(f"{key}{ending}", folder / f"{key.name}{ending}")
    host = Pool(folder, pocket, jenkins, address=address)
    if key:
        host.as_host(folder.name)
    return host


def name_of(address: str) -> str:
    """Return the database's name."""
    return address.partition("@/")[2].partition("?")[0]


# One line says what is wrong, and how to mend it


def told(tmp_path: Path, address: str, **environment: str) -> tuple[int, str]:
    """Return the exit code of vmdatabase.py, and what it says."""
    done = host_of(tmp_path, address).run("vmdatabase.py", expect=None, **environment)
    return done.returncode, done.stderr


def test_what_is_wrong_with_the_server_is_said_in_one_line(server: Server, tmp_path: Path, address: str) -> None:
    database = name_of(address)
    plain = f"postgresql:///{database}"
    server.sql(database, f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    other = server.create()
    server.sql(name_of(other), "CREATE TABLE theirs (id int)")
    empty = server.create()
    server.sql("postgres", f"CREATE DATABASE latin OWNER {OWNER} ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'")
    newer = server.create()
    with vmdatabase.opened(newer, (*MIGRATIONS, "ALTER TABLE machine ADD COLUMN colour TEXT")):
        pass
    cases = {
        f"postgresql://{OWNER}@/{database}?host=/nowhere": (
            1, f'{plain}: connection to server on socket "/nowhere/.s.PGSQL.5432" failed: No such file or directory'),
        f"postgresql://{OWNER}@/nosuch?host={server.folder}": (
            2, 'postgresql:///nosuch: FATAL: database "nosuch" does not exist'),
        f"postgresql://crowded@/{database}?host={server.folder}": (
            1, f'{plain}: FATAL: too many connections for role "crowded"'),
        f"postgresql://guarded@/{database}?host={server.folder}": (
            2, f'{plain}: connection to server on socket "{server.folder}/.s.PGSQL.5432" failed: fe_sendauth: no '
               'password supplied'),
        address: (2, f"{plain}: takes no changes (it is a replica, or read-only); name the primary"),
        other: (2, f"postgresql:///{name_of(other)}: holds tables that devstack-gate did not make; name another"),
        newer: (2, f"postgresql:///{name_of(newer)}: has schema version {len(MIGRATIONS) + 1}, newer than"),
        f"postgresql://{OWNER}:secret@/{database}?host={server.folder}": (
            2, "DEVSTACK_GATE_DB: expected an address without a password; libpq finds it in ~/.pgpass"),
        f"postgresql://{OWNER}@/{database}?host={server.folder}&password=secret": (
            2, "DEVSTACK_GATE_DB: expected an address without a password"),
        "mysql://db/pool": (2, "DEVSTACK_GATE_DB: expected a path, or an address as postgresql://HOST/DATABASE, got "
                               "mysql://..."),
        f"postgresql://{OWNER}@localhost:99999/{database}": (
            2, f'postgresql://localhost:99999/{database}: invalid port number: "99999"'),
        f"postgresql://{OWNER}@/{database}?host={server.folder}&sslmode=maybe": (
            2, f'{plain}: invalid sslmode value: "maybe"'),
        "postgresql:///?service=nosuch": (2, 'postgresql:///: definition of service "nosuch" not found'),
        f"postgresql://{OWNER}@/{name_of(empty)}?host={server.folder}&options=-c%20search_path%3Dnosuch": (
            2, f"postgresql:///{name_of(empty)}: no schema has been selected to create in"),
        server.address("latin"): (2, "postgresql:///latin: its encoding is LATIN1, in which not every"),
        "postgresql://db/pool?nosuchoption=1": (2, "postgresql://db/pool: is no address of a PostgreSQL database"),
    }

    for one, (code, words) in cases.items():
        found = told(tmp_path, one)
        assert found[0] == code, (one, found)
        start, _, end = words.partition(": FATAL")  # libpq names the server before that
        assert found[1].startswith(f"vmdatabase.py: {start}"), found
        assert end in found[1], found
        assert found[1].count("\n") == 1, found
        assert "secret" not in found[1]


def test_a_password_comes_from_libpq_s_own_places_and_a_wrong_one_is_said(
    server: Server, tmp_path: Path, address: str
) -> None:
    guarded = address.replace(OWNER, "guarded", 1)
    server.sql(name_of(address), f"ALTER DATABASE {name_of(address)} OWNER TO guarded")
    (tmp_path / ".pgpass").write_text("*:*:*:guarded:right\n")
    (tmp_path / ".pgpass").chmod(0o600)
    assert told(tmp_path, guarded) == (0, "")

    code, said = told(tmp_path, guarded, PGPASSWORD="wrong")
    assert (code, said.count("\n")) == (2, 1)
    assert 'FATAL: password authentication failed for user "guarded"' in said


def test_who_answers_in_the_place_of_the_server_gets_no_password(tmp_path: Path) -> None:
    said = []
    (tmp_path / ".pgpass").write_text("*:*:*:*:PASSWORD-CANARY\n")
    (tmp_path / ".pgpass").chmod(0o600)

    def answer(connection: socket.socket) -> None:
        if connection.recv(1000)[4:8] == b"\x04\xd2\x16\x2f":  # asks for TLS
            connection.sendall(b"N")
            connection.recv(1000)
        connection.sendall(b"R\0\0\0\x08\0\0\0\x03")  # asks for the password in clear text
        said.append(connection.recv(1000))
        connection.close()

    with listening(answer) as (host, port):
        code, words = told(tmp_path, f"postgresql://u@{host}:{port}/db")
    assert (code, words.count("\n")) == (1, 1)
    assert "server requested a cleartext password" in words
    assert [one for one in said if b"CANARY" in one] == []


def test_without_psycopg_vm_db_works_and_an_address_gets_one_line_that_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "psycopg.py").write_text("raise ModuleNotFoundError(\"No module named 'psycopg'\")\n")
    script = "import sys; sys.path.insert(0, {!r}); sys.argv = sys.argv[1:]; import runpy; " \
             "runpy.run_path(sys.argv[0], run_name='__main__')"

    def run(place: str) -> subprocess.CompletedProcess[str]:
        words = [sys.executable, "-c", script.format(str(tmp_path / "without")), str(PROJECT / "vmdatabase.py"), "--db",
                 place]
        return subprocess.run(words, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(PROJECT)})

    assert run(str(tmp_path / "vm.db")).returncode == 0
    done = run("postgresql://db/pool")
    assert (done.returncode, done.stderr) == (
        2, "vmdatabase.py: DEVSTACK_GATE_DB: an address postgresql://... needs the Python package psycopg (No module "
           "named 'psycopg'): pip install -r requirements-postgresql.txt\n")


def test_a_pool_on_vm_db_loads_no_driver_of_a_server(tmp_path: Path) -> None:
    script = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from pathlib import Path; import vmdatabase\n" \
             "with vmdatabase.opened(Path(sys.argv[1])): print(*sorted(name for name in sys.modules if 'psycopg' in " \
             "name or 'postgres' in name))"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "vm.db"], capture_output=True, text=True,
                          check=True)
    assert done.stdout == "\n"


# One schema


def test_views_are_those_that_people_know_and_a_person_s_psql_writes_history_too(address: str, tmp_path: Path) -> None:
    host = host_of(tmp_path, address)
    host.load(provider())
    host.add_machine(server=False, node=False, age=7300)

    assert host.sql("SELECT * FROM pool") == [("one", "noble", 2, 1, 0, 0, 0, 0, 0, 10, 0)]
    assert host.sql("SELECT * FROM node") == [
        ("one", "noble", "devstack-noble-one-1", None, "READY", "2 h", None, None)]
    host.sql("UPDATE machine SET state = 'HOLD', hold_reason = 'mine'")
    assert host.sql("SELECT from_state, to_state, reason FROM event ORDER BY id") == [
        (None, "READY", None), ("READY", "HOLD", "mine")]


def test_a_later_schema_is_migrated_once_however_many_open_it_and_one_that_fails_leaves_all(address: str) -> None:
    longer = (*MIGRATIONS, "ALTER TABLE machine ADD COLUMN colour INTEGER NOT NULL DEFAULT 3")
    with vmdatabase.opened(address):
        uuid = vmdatabase.pool_uuid()
    with pytest.raises(GateError, match="syntax error"), vmdatabase.opened(address, (*longer, "NONSENSE")):
        pass
    with vmdatabase.opened(address):
        assert vmdatabase.pool_uuid() == uuid

    def migrate() -> None:
        code = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); import vmdatabase\n" \
               f"with vmdatabase.opened({address!r}, {longer!r}): print(vmdatabase.pool_uuid())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == uuid

    postgres.at_once([migrate] * 4)
    assert postgres.query(address, "SELECT count(colour) FROM machine") == [(0,)]


@pytest.mark.parametrize(("statement", "words"), [
    ("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, user TEXT, hours REAL)",
     ['CREATE TABLE t (id BIGINT PRIMARY KEY, "user" TEXT, hours DOUBLE PRECISION)',
      "CREATE TRIGGER a_one_writer BEFORE INSERT OR UPDATE OR DELETE ON t FOR EACH STATEMENT EXECUTE FUNCTION "
      "one_writer()",
      "CREATE TRIGGER a_number BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION number_row()"]),
    ("CREATE TRIGGER x AFTER UPDATE OF a, b ON t WHEN OLD.a IS NOT NEW.a BEGIN DELETE FROM u WHERE i = NEW.a; END;",
     ["CREATE FUNCTION x() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF OLD.a IS DISTINCT FROM NEW.a THEN DELETE "
      "FROM u WHERE i = NEW.a;  END IF; RETURN NEW; END $$",
      "CREATE TRIGGER x AFTER UPDATE OF a, b ON t FOR EACH ROW EXECUTE FUNCTION x()"]),
    ("CREATE TRIGGER x BEFORE DELETE ON t BEGIN SELECT RAISE(ABORT, 'no'); END;",
     ["CREATE FUNCTION x() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = "
      "'integrity_constraint_violation';  RETURN OLD; END $$",
      "CREATE TRIGGER x BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION x()"]),
    ("SELECT max(a, coalesce(b, 0)), max(c), max(max(d), 1) FROM (SELECT 1 FROM t)",
     ["SELECT greatest(a, coalesce(b, 0)), max(c), greatest(max(d), 1) FROM (SELECT 1 FROM t) AS part_64"]),
    ("DROP TRIGGER x", ["DROP FUNCTION x CASCADE"]),
    ("ALTER TABLE t ADD COLUMN a INTEGER CHECK (a IS NOT NULL)", ["ALTER TABLE t ADD COLUMN a BIGINT CHECK (a IS NOT "
                                                                   "NULL)"]),
])
def test_a_migration_is_put_in_the_server_s_words(statement: str, words: list[str]) -> None:
    assert list(dialect.translated(statement)) == words


def test_an_id_is_never_used_again_though_its_transaction_failed_or_it_was_given_by_hand(address: str) -> None:
    with vmdatabase.opened(address):
        vmdatabase.Provider.create(name="one", cloud="c", max_servers=9, boot_timeout=9, max_concurrency=1,
                                   networks="[]", floating_ips="auto", address="public-v4", ssh_port=22,
                                   security_groups="[]", availability_zones="[]")
        vmdatabase.BaseImage.create(provider=1, name="noble", external_id="x", min_ready=1, min_ram=0)

        def make(**columns: Any) -> int:
            return int(vmdatabase.Machine.create(base_image=1, state="READY", state_time=1, **columns).id)

        assert [make(), make()] == [1, 2]
        vmdatabase.Machine.delete().execute()
        with vmdatabase.database.atomic("IMMEDIATE") as transaction:
            assert make() == 3
            transaction.rollback()
        assert make() == 3
        vmdatabase.Machine.insert(id=9, base_image=1, state="USED", state_time=1).execute()
        assert (make(), vmdatabase.last_id("machine")) == (10, 10)


def test_whatever_is_asked_of_events_and_results_has_an_index(server: Server, address: str, tmp_path: Path) -> None:
    host = host_of(tmp_path, address)
    host.load(provider())
    name = host.add_machine("USED", server=False, node=False)
    with vmdatabase.opened(address):
        vmdatabase.record_start(vmdatabase.machine_named(name), {"JOB_NAME": "gate", "BUILD_NUMBER": "1"})
    database = name_of(address)
    for setting in ("enable_seqscan = off", "session_preload_libraries = auto_explain",
                    "auto_explain.log_min_duration = 0", "auto_explain.log_nested_statements = on"):
        server.sql("postgres", f"ALTER DATABASE {database} SET {setting}")
    begun = (server.folder / "log").stat().st_size

    for words in ([name], ["--provider", "one", "--since", "1d"], ["--image", "noble"]):
        host.run("vmdatabase.py", "history", *words, expect=0)
    host.run("vmdatabase.py", "hold", name, "--reason", "x", expect=0)
    host.run("vmdatabase.py", "unhold", name, expect=0)
    host.run("devstack-vm-status.py", "--output", str(tmp_path / "status"))
    with vmdatabase.opened(address):
        history.prune(vmdatabase.now())
        vmdatabase.record_end(vmdatabase.machine_named(name), {}, "SUCCESS")

    plans = (server.folder / "log").read_text()[begun:]
    assert "Index Scan using event_" in plans
    texts = re.split(r"(?m)^\d{4}-\d\d-\d\d .*? LOG:  ", plans)
    assert [text for text in texts if re.search(r"Seq Scan on (event|result)\b", text)] == []


# One writes at a time


def test_who_writes_waits_for_who_writes_and_reads_what_that_one_left(address: str, tmp_path: Path) -> None:
    host = host_of(tmp_path, address)
    host.load(provider())
    name = host.add_machine("HOLD", server=False, node=False)
    with postgres.writing(address, "UPDATE provider SET paused = 1"):  # another row, of another table
        listed = host.run("vmdatabase.py", "list", expect=0)
        process = host.start("vmdatabase.py", "unhold", name)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    assert "noble" in listed.stdout
    assert (process.wait(30), host.machines()) == (0, {name: "DELETE"})


@pytest.mark.parametrize("setting", [
    "default_transaction_isolation = 'repeatable read'", "default_transaction_isolation = serializable"])
def test_who_has_waited_for_a_writer_sees_what_it_wrote_whatever_the_role_has_set(
        server: Server, address: str, setting: str) -> None:
    with vmdatabase.opened(address):
        pass
    server.sql("postgres", f"ALTER ROLE {OWNER} IN DATABASE {name_of(address)} SET {setting}")
    waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
    with psycopg.connect(address) as other, vmdatabase.opened(address):
        other.execute("INSERT INTO setting VALUES ('written', 'first')")

        def end() -> None:
            await_that("the second writer to wait", lambda: server.sql(name_of(address), waits) == [(1,)])
            other.commit()

        ending = threading.Thread(target=end)
        ending.start()
        with vmdatabase.database.atomic("IMMEDIATE"):
            assert vmdatabase.setting("written") == "first"
        ending.join()


def test_what_is_set_for_a_role_ends_no_idle_run_and_loses_no_row(server: Server, address: str) -> None:
    for setting in ("idle_session_timeout = '2s'", "synchronous_commit = off", "statement_timeout = '5s'"):
        server.sql("postgres", f"ALTER ROLE {OWNER} IN DATABASE {name_of(address)} SET {setting}")
    names = ("idle_session_timeout", "synchronous_commit", "statement_timeout", "lock_timeout")
    with vmdatabase.opened(f"{address}&options=-c%20lock_timeout%3D7s"):
        query = f"SELECT {', '.join(f'current_setting({name!r})' for name in names)}"
        assert vmdatabase.database.execute_sql(query).fetchone() == ("0", "on", "1min", "7s")


def test_options_of_the_environment_and_of_a_service_say_in_which_schema_the_pool_is(
        server: Server, tmp_path: Path) -> None:
    service = tmp_path / "services"
    for words in ({"PGOPTIONS": "-c search_path=own"}, {"PGSERVICEFILE": str(service)}):
        address = server.create()
        server.sql(name_of(address), f"CREATE SCHEMA own AUTHORIZATION {OWNER}")
        service.write_text(f"[gate]\nhost={server.folder}\nuser={OWNER}\ndbname={name_of(address)}\n"
                           "options=-c search_path=own\n")
        place = "postgresql:///?service=gate" if "PGSERVICEFILE" in words else address
        assert told(tmp_path, place, **words) == (0, "")
        assert server.sql(name_of(address), "SELECT schemaname FROM pg_tables WHERE tablename = 'machine'") == [
            ("own",)]


def test_what_a_host_notes_lies_in_one_place_whatever_folder_a_script_is_started_in(
        address: str, tmp_path: Path) -> None:
    host_of(tmp_path, address).run("vmdatabase.py", "moved", expect=0, XDG_STATE_HOME="relative")
    assert not (tmp_path / "relative").exists()
    assert len(list((tmp_path / ".local/state/devstack-gate").glob("*/ids"))) == 1


def test_a_pooler_that_shares_sessions_is_refused(server: Server, address: str, tmp_path: Path) -> None:
    with pooling(f"{server.folder}/.s.PGSQL.5432") as port:
        code, said = told(tmp_path, f"postgresql://{OWNER}@127.0.0.1:{port}/{name_of(address)}")
    assert (code, said) == (2, f"vmdatabase.py: postgresql://127.0.0.1:{port}/{name_of(address)}: a pooler shares the "
                               "sessions of the server among its clients (pool_mode = transaction), so that locks do "
                               "not work; connect to the server itself, or have the pooler keep a session for each "
                               "client (pool_mode = session)\n")
    assert server.sql(name_of(address), "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]


def test_a_writer_that_does_not_end_is_told(address: str, tmp_path: Path) -> None:
    host = host_of(tmp_path, address)
    host.load(provider())
    name = host.add_machine("HOLD", server=False, node=False)
    quick = address + "&options=-c%20lock_timeout%3D300ms"
    with postgres.writing(address, "UPDATE provider SET paused = 1"):
        done = host.run("vmdatabase.py", "unhold", name, DEVSTACK_GATE_DB=quick)
    assert (done.returncode, done.stderr) == (
        1, f"vmdatabase.py: postgresql:///{name_of(address)}: another process has held it for more than 30 s; try "
           "again\n")


# Locks


HOLDS = """
import sys, time
sys.path.insert(0, {project!r})
import vmdatabase, gateprocess

def body():
    with vmdatabase.opened(sys.argv[1]), vmdatabase.lock("launch-one", 0) as mine:
        print(mine, flush=True)
        sys.stdin.read()
    return 0

gateprocess.run(body)
"""


class Holding:
    """A process that tries to get a lock, and holds it as long as it may."""

    def __init__(self, address: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLDS.format(project=str(PROJECT)), address], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout
        self.has = self.process.stdout.readline() == "True\n"

    def end(self) -> str:
        """Wait until it ends by itself, with 1; return what it says."""
        assert self.process.wait(60) == 1
        assert self.process.stderr
        return self.process.stderr.read()

    def __enter__(self) -> "Holding":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.communicate()


def has_lock(address: str) -> bool:
    with vmdatabase.opened(address), vmdatabase.lock("launch-one", 0) as mine:
        return mine


def test_a_lock_is_one_process_s_on_whatever_host_and_free_at_once_when_that_dies(address: str) -> None:
    with Holding(address) as first:
        assert first.has
        with vmdatabase.opened(address):
            holder = vmdatabase.database.holder("launch-one")
            assert holder
            assert re.fullmatch(rf"process {first.process.pid} on \S+, since 20\d\d-.*Z", str(holder))
        with Holding(address) as second:
            assert not second.has
        first.process.kill()
        first.process.wait()
        await_that("the lock to be free", lambda: has_lock(address))
    with vmdatabase.opened(address):
        assert vmdatabase.database.holder("launch-one") is None


def test_the_threads_of_a_process_do_not_share_a_lock_and_names_are_locks_of_their_own(address: str) -> None:
    with vmdatabase.opened(address), vmdatabase.lock("nodes", 0, "n-1") as mine, vmdatabase.lock("nodes", 0, "n-2") as \
            other, vmdatabase.lock("nodes", 0, "n-1") as again:
        assert (mine, other, again) == (True, True, False)


def test_a_run_whose_lock_is_lost_ends_at_once_and_says_so(server: Server, address: str) -> None:
    with Holding(address) as first:
        assert first.has
        server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted "
                               "AND objsubid = 1")
        said = first.end()
        assert re.fullmatch(
            rf"-c: postgresql:///{name_of(address)}: the connection that holds the locks of this run is lost \(.*\); "
            r"what is under way is recorded and the next run goes on with it\n", said), said
        assert has_lock(address)


def test_a_run_ends_when_the_server_that_has_its_lock_stands_still(server: Server, address: str) -> None:
    with Holding(address) as first:
        assert first.has
        server.freeze(True)
        try:
            said = first.end()
        finally:
            server.freeze(False)
        assert "the connection that holds the locks of this run is lost (no answer for 10 s)" in said


# Outages


def test_a_server_that_dies_is_an_outage_and_what_was_begun_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        pocket = stack.enter_context(Pocket(tmp_path, "--machines", "shared-ssh"))
        credentials = {"nodes": ("jenkins", make_key(tmp_path))}
        jenkins = stack.enter_context(StandIn(tmp_path / "jenkins", credentials=credentials,
                                              knobs={"connect": "instant"}))
        host = Pool(tmp_path, pocket, jenkins, address=server.create())
        host.load(provider(images=[{"name": "noble", "image": "Debian 12", "min-ready": 2, "min-ram": 512,
                                    "username": "debian"}]))
        host.seed_snapshots()
        host.knobs(boot_seconds=3)
        launch = host.start("devstack-vm-launch.py", "one")
        await_that("two servers", lambda: len(host.servers()) == 2)
        server.kill()
        _, said = launch.communicate(timeout=60)
        assert launch.returncode == 1
        (last,) = [line for line in said.splitlines() if line.startswith("devstack-vm-launch.py: ")]
        assert re.match(r"devstack-vm-launch.py: postgresql:///\w+: ", last)
        assert "Traceback" not in said

        down = host.run("devstack-vm-launch.py", "one")
        assert (down.returncode, down.stderr.count("\n")) == (1, 1)
        assert "devstack-vm-launch.py: postgresql:///" in down.stderr

        server.start()
        host.run("devstack-vm-launch.py", "one", expect=0)
        assert sorted(host.machines().values()) == ["READY", "READY"]
        assert sorted(host.machines()) == host.server_names() == sorted(host.nodes())
        assert host.created() == 2


def test_a_connection_that_is_lost_in_a_transaction_leaves_nothing_half_done(server: Server, address: str) -> None:
    with pytest.raises(vmdatabase.DatabaseError, match=r"terminating connection|server closed|connection is lost"), \
            vmdatabase.opened(address), vmdatabase.database.atomic("IMMEDIATE"):
        vmdatabase.set_setting("half", "done")
        server.sql("postgres", "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s "
                               "AND usename = %s", name_of(address), OWNER)
        vmdatabase.set_setting("other half", "done")
    assert postgres.query(address, "SELECT count(*) FROM setting WHERE name LIKE '%half'") == [(0,)]


# Copies


def test_a_pool_goes_to_a_server_and_back_with_each_row_and_is_used_in_one_place_only(
    server: Server, address: str, tmp_path: Path
) -> None:
    old = Pool(tmp_path, address="-")
    old.load(provider())
    name = old.add_machine("READY", server=False, node=False)
    old.sql("UPDATE machine SET state = 'USED', state_reason = 'ein Bär %s ?' WHERE name = ?", name)
    old.sql("INSERT INTO result (machine_id, minutes, start_time, end_time, reason) VALUES (1, 1.25, 1, 76, 'x\ty\\n')")
    before = {table: old.sql(f"SELECT * FROM {table}") for table in ("machine", "event", "tally", "result", "provider")}

    done = old.run("vmdatabase.py", "copy", address, expect=0)

    assert "machine: 1 rows, each compared\n" in done.stdout
    new = Pool(tmp_path, address=address)
    assert {table: new.sql(f"SELECT * FROM {table}") for table in before} == before
    assert new.uuid == old.uuid
    refused = old.run("devstack-vm-reap.py", "one", expect=2)
    assert f"vm.db: is the vm.db of postgresql:///{name_of(address)}, and may be at work there" in refused.stderr
    assert new.add_machine("READY", server=False, node=False) == "devstack-noble-one-2"
    assert new.run("vmdatabase.py", "history", name, expect=0).stdout.count("READY -> USED") == 1
    again = old.run("vmdatabase.py", "copy", address, expect=2)
    assert again.stderr == f"vmdatabase.py: postgresql:///{name_of(address)}: has a pool already; name an empty " \
                           "database\n"

    before = {table: new.sql(f"SELECT * FROM {table}") for table in before}
    new.run("vmdatabase.py", "copy", str(tmp_path / "back.db"), expect=0)
    with closing(sqlite3.connect(tmp_path / "back.db")) as connection:
        assert {table: sorted(connection.execute(f"SELECT * FROM {table}").fetchall()) for table in before} == {
            table: sorted(rows) for table, rows in before.items()}
        assert connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'machine'").fetchall() == [(2,)]
    refused = new.run("devstack-vm-reap.py", "one", expect=2)
    assert f"is the pool of another database ({tmp_path / 'back.db'}), and may be at work there" in refused.stderr


def test_a_copy_that_cannot_be_made_whole_leaves_nothing(address: str, tmp_path: Path) -> None:
    old = Pool(tmp_path, address="-")
    old.load(provider())
    old.sql("UPDATE base_image SET min_ram = 'much'")  # SQLite accepts a text for a number

    done = old.run("vmdatabase.py", "copy", address, expect=1)

    assert done.stderr.startswith("vmdatabase.py: base_image: its rows cannot be copied as they are (")
    assert postgres.query(address, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
    old.sql("UPDATE base_image SET min_ram = 512")
    old.run("vmdatabase.py", "copy", address, expect=0)


def test_backup_of_a_pool_on_a_server_is_pg_dump_s(address: str, tmp_path: Path) -> None:
    done = host_of(tmp_path, address).run("vmdatabase.py", "backup", str(tmp_path / "b"), expect=2)
    assert done.stderr == f"vmdatabase.py: postgresql:///{name_of(address)}: is backed up by pg_dump, not by these " \
                          f"scripts; a copy as a vm.db: vmdatabase.py copy {tmp_path / 'b'}\n"


# Servers that are older than the world


def test_a_pool_that_has_failed_over_or_was_restored_waits_for_a_word_and_goes_on_with_other_ids(
    server: Server, tmp_path: Path
) -> None:
    address = server.create()
    host = host_of(tmp_path / "host", address)
    host.load(provider())
    host.add_machine("READY", server=False, node=False)
    with server.standby(server.folder / "replica") as replica:
        there = host_of(tmp_path / "other", replica.address(name_of(address)))
        replicating = replica.sql("postgres", "SELECT pg_is_in_recovery()")
        await_that("the machine to be there", lambda: replica.sql(name_of(address), "SELECT 1 FROM machine"))
        refused = there.run("vmdatabase.py", expect=2)
        assert "takes no changes (it is a replica, or read-only); name the primary" in refused.stderr
        replica.promote()

        refused = there.run("devstack-vm-launch.py", "one", expect=2)
        assert replicating == [(True,)]
        assert re.search("the server has been restored or has failed over \\(timeline 1 before, now timeline 2\\), and "
                         "may have lost what was written last; if it was moved or restored here on purpose, say so "
                         "first: vmdatabase.py moved\n", refused.stderr)
        there.run("vmdatabase.py", "moved", expect=0)
        there.sql("UPDATE machine SET state = 'DELETE'")
        assert int(there.add_machine("READY", server=False, node=False).rpartition("-")[2]) > 1000


def test_a_dump_that_was_restored_elsewhere_is_another_database(server: Server, address: str, tmp_path: Path) -> None:
    host_of(tmp_path, address).load(provider())
    copy = server.create()
    dump = subprocess.run([str(postgres.programs() / "pg_dump"), "-h", str(server.folder), "-U", "postgres",
                           name_of(address)], capture_output=True, check=True).stdout
    subprocess.run(["psql", "-q", "-h", str(server.folder), "-U", "postgres", name_of(copy)], input=dump, check=True,
                   stdout=subprocess.DEVNULL)

    refused = host_of(tmp_path, copy).run("devstack-vm-reap.py", "one", expect=2)

    assert f"is the pool of another database (postgresql:///{name_of(address)}), and may be at work there" \
        in refused.stderr


def test_ids_that_a_host_has_noted_are_not_used_again_by_an_older_state(address: str, tmp_path: Path) -> None:
    with vmdatabase.opened(address):
        vmdatabase.leave_out_ids("machine", 7)
        vmdatabase.note_ids()
        vmdatabase.database.execute_sql("UPDATE last_id SET seq = 3 WHERE name = 'machine'")
        vmdatabase.leave_out_noted_ids()
        assert vmdatabase.last_id("machine") == 7
        assert not vmdatabase.known_ids("machine").knows(5)


# Several hosts


def test_times_are_the_database_s_whatever_the_clocks_of_hosts_say(address: str, tmp_path: Path) -> None:
    host = host_of(tmp_path, address)
    host.load(provider())
    name = host.add_machine("READY", server=False, node=False)
    script = f"import sys, time; sys.path.insert(0, {str(PROJECT)!r}); real = time.time; " \
             f"time.time = lambda: real() + 900\nimport vmdatabase\nwith vmdatabase.opened({address!r}): " \
             "vmdatabase.move(vmdatabase.machine_named(sys.argv[1]), 'READY', 'USED')"
    subprocess.run([sys.executable, "-c", script, name], check=True)

    ((late, event),) = host.sql("SELECT state_time - extract(epoch FROM now()), (SELECT max(time) FROM event) - "
                                "state_time FROM machine")
    assert abs(late) < 300
    assert abs(event) <= 1


def test_two_hosts_that_launch_reap_take_and_delete_at_once_are_one_pool(server: Server, tmp_path: Path) -> None:
    with ExitStack() as stack:
        pocket = stack.enter_context(Pocket(tmp_path, "--machines", "shared-ssh"))
        key = make_key(tmp_path)
        jenkins = stack.enter_context(StandIn(tmp_path / "jenkins", credentials={"nodes": ("jenkins", key)},
                                              knobs={"connect": "instant"}))
        address = server.create()
        hosts = [host_of(tmp_path / name, address, pocket, jenkins, key) for name in ("a", "b")]
        hosts[0].load(provider(max_servers=4, images=[{"name": "noble", "image": "Debian 12", "min-ready": 3,
                                                       "min-ram": 512, "username": "debian"}]))
        hosts[0].seed_snapshots()
        taken: list[str] = []

        def work(host: Pool) -> None:
            for _ in range(2):
                host.run("devstack-vm-launch.py", "one")
                assert len(host.servers()) <= 4
                done = host.run("devstack-vm-inprogress.py", "--image", "noble")
                if done.returncode == 0:
                    name = done.stdout.split()[0]
                    taken.append(name)
                    host.run("devstack-vm-delete.py", name, "--result", "SUCCESS", expect=0)
                host.run("devstack-vm-reap.py", "one")

        postgres.at_once([lambda host=host: work(host) for host in hosts])  # type: ignore[misc]

        assert len(taken) == len(set(taken)) >= 2
        for host in hosts:
            host.run("devstack-vm-reap.py", "one", expect=0)
            host.run("devstack-vm-launch.py", "one", expect=0)
        assert sorted(hosts[0].machines()) == hosts[1].server_names() == sorted(hosts[0].nodes())
        assert len(hosts[0].machines()) == 3


def test_check_tells_what_is_not_the_same_on_all_hosts(address: str, tmp_path: Path) -> None:
    hosts = [host_of(tmp_path / name, address, key=make_key(tmp_path)) for name in ("gate-1", "gate-2")]
    hosts[0].load(provider("ovh-gra"), provider("rax-ord"))
    for host in hosts:
        host.environment["OS_CLIENT_CONFIG_FILE"] = str(host.folder / "clouds.yaml")
        (host.folder / "clouds.yaml").write_text("clouds: {}\n")
        (host.folder / "clouds.yaml").chmod(0o600)
        text = host.secure_config.read_text().replace(str(host.folder), "~")
        host.secure_config.write_text(f"{text}[jenkins]\nserver = http://127.0.0.1:1/\nuser = u\napikey = s3cr3t\n"
                                      "credentials_id = c\n")

    def check(host: Pool) -> list[str]:
        done = host.run("jobs/check.py", expect=1)  # there is no Jenkins
        return [line for line in done.stdout.splitlines() if "host gate" in line or "clock" in line]

    assert [check(host) for host in hosts] == [[], ["ok       host gate-1: the same as here"]]
    (hosts[0].folder / "clouds.yaml").write_text("clouds: {another: {}}\n")
    hosts[0].secure_config.write_text(hosts[0].secure_config.read_text().replace("user = u", "user = v"))
    assert check(hosts[0]) == [
        "wrong    host gate-2: not the same there as here: [jenkins] of the secure configuration, clouds.yaml (as of 0 "
        "days ago; when it is, run this there again)"]
    assert "s3cr3t" not in str(hosts[0].sql("SELECT * FROM setting"))


# Test environments: each host has its own notes of them


def test_after_a_failover_nobody_gets_an_environment_before_each_host_has_told_who_has_one(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on(host: str) -> AbstractContextManager[None]:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / host))
        return vmdatabase.opened(address)

    def take(name: str) -> None:
        machine = vmdatabase.machine_named(name)
        with environments.standing_in_line(machine), vmdatabase.database.atomic("IMMEDIATE"):
            assert vmdatabase.move(machine, "READY", "USED")
            environments.queue_up(machine)

    def state() -> tuple[str, int | None]:
        row = vmdatabase.TestEnvironment.get()
        return row.state, row.machine_id

    host = host_of(tmp_path, address)
    host.load(provider())
    first, second = (host.add_machine("READY", server=False, node=False) for _ in range(2))
    with on("a"):
        vmdatabase.BaseImage.update(test_environment=True).execute()
        data = tmp_path / "data.json"
        data.write_text("{}")
        providersfile.load_environments([{"name": "rack-1", "images": ["noble"], "providers": [], "data": str(data),
                                          "reset": None}])
        environments.publish_notes()
        take(first)
        assert state() == ("LOCKED", 1)
    before = "UPDATE machine SET state = 'READY'"  # so the trigger lets the environment go
    host.sql(before)
    host.sql("UPDATE test_environment SET locks = 0")
    host.sql("UPDATE setting SET value = '1 2 00000009' WHERE name = 'host'")

    with on("b"):
        take(second)
        assert state() == ("FREE", None)  # nobody has said that the failover was on purpose
        vmdatabase.moved()
        environments.doubt_notes()
        assert environments._lock_in_turn(vmdatabase.machine_named(second)) is None  # host a has published no notes yet
    with on("a"):
        environments.publish_notes()
    with on("b"):
        assert environments._lock_in_turn(vmdatabase.machine_named(second)) is None  # now it is known who has it
        assert vmdatabase.move(vmdatabase.machine_named(first), "READY", "USED")  # as reap finds out
        environments.remember("one", lambda _server: False)
        assert state() == ("LOCKED", 1)
