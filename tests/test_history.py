"""The history of the pool: triggers write events as rows move, vmdatabase.py history shows them, reap prunes them."""

import json
import re
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import vmdatabase
from pool import history
from pool.migrations import MIGRATIONS
from tests.support.pool import Pool, image, provider
from tests.test_vmdatabase import at_once

BEFORE_EVENTS = MIGRATIONS[:4]
PROJECT = Path(vmdatabase.__file__).parent


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Return a pool with neither cloud nor Jenkins; vm.db has one provider with one image."""
    pool = Pool(tmp_path)
    pool.load(provider())
    return pool


def events(pool: Pool, columns: str = "node_name, provider, image, from_state, to_state, reason") -> list[Any]:
    return pool.sql(f"SELECT {columns} FROM event ORDER BY id")


def test_each_move_of_a_machine_from_its_row_to_its_end_is_an_event_with_names_and_reason(pool: Pool) -> None:
    with vmdatabase.opened(pool.place):
        machine = vmdatabase.Machine.create(base_image=1, state="BUILDING", state_time=vmdatabase.now())
        vmdatabase.set_columns(machine, name="devstack-noble-one-1")
        assert vmdatabase.move(machine, "BUILDING", "READY")
        assert vmdatabase.move(machine, "READY", "USED", "gate #17")
        assert vmdatabase.move(machine, "USED", "HOLD", hold_reason="bug 1")
        assert vmdatabase.move(machine, "HOLD", "DELETE", "unhold")
        machine.delete_instance()

    names = ("devstack-noble-one-1", "one", "noble")
    assert events(pool) == [
        (*names, None, "BUILDING", None), (*names, "BUILDING", "READY", None), (*names, "READY", "USED", "gate #17"),
        (*names, "USED", "HOLD", "bug 1"), (*names, "HOLD", "DELETE", "unhold"), (*names, "DELETE", None, None)]


def test_the_moves_of_a_snapshot_are_events_too(pool: Pool) -> None:
    with vmdatabase.opened(pool.place):
        row = vmdatabase.SnapshotImage.create(base_image=1, name="snap", version=5, state="BUILDING", state_time=5)
        assert vmdatabase.move(row, "BUILDING", "ERROR", error="apt-get failed")
        row.delete_instance()

    assert events(pool, "snapshot_id, machine_id, node_name, from_state, to_state, reason") == [
        (1, None, "snap", None, "BUILDING", None), (1, None, "snap", "BUILDING", "ERROR", "apt-get failed"),
        (1, None, "snap", "ERROR", None, None)]


def test_a_person_with_sqlite3_cannot_forget_it(pool: Pool) -> None:
    name = pool.add_machine("READY", server=False, node=False)
    pool.sql("UPDATE machine SET state = 'ERROR', error = 'by hand' WHERE name = ?", name)

    assert events(pool)[-1] == (name, "one", "noble", "READY", "ERROR", "by hand")


def test_the_reason_of_an_earlier_move_is_not_told_of_a_later_one(pool: Pool) -> None:
    name = pool.add_machine("READY", server=False, node=False)
    with vmdatabase.opened(pool.place):
        assert vmdatabase.move(vmdatabase.machine_named(name), "READY", "USED", "gate #1")
    pool.sql("UPDATE machine SET state = 'DELETE' WHERE name = ?", name)

    assert events(pool, "to_state, reason") == [("READY", None), ("USED", "gate #1"), ("DELETE", None)]


def test_a_transaction_that_is_undone_leaves_no_event(pool: Pool) -> None:
    name = pool.add_machine("READY", server=False, node=False)
    before = events(pool)
    with vmdatabase.opened(pool.place), vmdatabase.database.atomic() as transaction:
        assert vmdatabase.move(vmdatabase.machine_named(name), "READY", "USED")
        transaction.rollback()

    assert events(pool) == before


RACER = """
import sys
sys.path.insert(0, {project!r})
from pathlib import Path
import gateconfig
import vmdatabase

with vmdatabase.opened(gateconfig.place_of_database(sys.argv[1], "")):
    machine = vmdatabase.Machine.get_by_id(1)
    print("here", flush=True)
    sys.stdin.readline()
    print(vmdatabase.move(machine, "READY", sys.argv[2], sys.argv[2].lower()))
"""


def test_of_many_that_move_one_machine_only_the_one_that_wins_makes_an_event(pool: Pool) -> None:
    pool.add_machine("READY", server=False, node=False)
    at_once(RACER.format(project=str(PROJECT)), *([str(pool.place), target]
                                                  for target in ["USED", "HOLD", "DELETE", "ERROR"] * 2))

    (_, moved) = events(pool, "from_state, to_state")
    assert moved == ("READY", pool.sql("SELECT state FROM machine")[0][0])


def test_a_file_of_before_with_machines_that_live_begins_their_history_and_knows_the_names_of_its_builds(
        tmp_path: Path) -> None:
    path = tmp_path / "vm.db"
    with vmdatabase.opened(path, BEFORE_EVENTS), closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript("""
            INSERT INTO provider (name, cloud, max_servers, boot_timeout, max_concurrency, networks, floating_ips,
                address, ssh_port, security_groups, availability_zones)
                VALUES ('one', 'a', 9, 900, 8, '[]', 'auto', 'public-v4', 22, '[]', '[]');
            INSERT INTO base_image (provider_id, name, external_id, min_ready, min_ram) VALUES (1, 'noble', 'x', 1, 1);
            INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) VALUES (1, 's', 1, 'READY', 3);
            INSERT INTO machine (base_image_id, name, state, state_time, hold_reason)
                VALUES (1, 'n-1', 'USED', 11, NULL), (1, 'n-2', 'HOLD', 12, 'bug 5'), (1, 'n-3', 'BUILDING', 13, NULL);
            INSERT INTO result (base_image_id, machine_id, node_name, jenkins_job_name, jenkins_build_number,
                start_time) VALUES (1, 1, 'n-1', 'gate', 5, 11), (NULL, 9, 'n-0', 'gate', 4, 2);""")
    old = path.read_bytes()
    with vmdatabase.opened(path):
        machine = vmdatabase.machine_named("n-3")
        assert vmdatabase.move(machine, "BUILDING", "READY")

    (copy,) = tmp_path.glob("vm.db.schema-4.*")
    assert len(copy.read_bytes()) == len(old)
    since = "when vm.db began to keep its history"
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT time, node_name, from_state, to_state, reason FROM event "
                                  "ORDER BY id").fetchall()[:4] == [
            (11, "n-1", None, "USED", since), (12, "n-2", None, "HOLD", "bug 5"), (13, "n-3", None, "BUILDING", since),
            (3, "s", None, "READY", since)]
        assert connection.execute("SELECT node_name, from_state, to_state FROM event ORDER BY id DESC LIMIT 1"
                                  ).fetchall() == [("n-3", "BUILDING", "READY")]
        assert connection.execute("SELECT node_name, provider, image, kind FROM result ORDER BY id").fetchall() == [
            ("n-1", "one", "noble", None), ("n-0", None, None, None)]


def test_what_is_counted_stays_when_events_are_pruned(pool: Pool) -> None:
    pool.add_machine("BUILDING", server=False, node=False, age=75)
    pool.sql("UPDATE machine SET state = 'READY'")
    pool.sql("INSERT INTO result (machine_id, provider, image, start_time) VALUES (1, 'one', 'noble', 100)")
    pool.sql("UPDATE result SET end_time = 1300, result = 'SUCCESS'")
    pool.sql("UPDATE result SET result = 'FAILURE'")  # this is no second end
    pool.sql("UPDATE event SET time = 1")
    with vmdatabase.opened(pool.place):
        assert history.prune(time.time()) == 2

    tally = pool.sql("SELECT what, provider, image, key, count, total FROM tally ORDER BY what, key")
    assert (events(pool), tally) == (
        [], [("build", "one", "noble", "SUCCESS", 1, 0), ("minutes", "one", "noble", "20", 1, 1200),
             ("move", "one", "noble", ">BUILDING", 1, 0), ("move", "one", "noble", "BUILDING>READY", 1, 0),
             ("ready", "one", "noble", "90", 1, pool.sql("SELECT total FROM tally WHERE what = 'ready'")[0][0])])


def test_pruning_keeps_what_is_younger_than_history_days_of_the_providers_file(pool: Pool) -> None:
    file = pool.folder / "providers.yaml"
    file.write_text("history-days: 3\n" + file.read_text())
    assert pool.run("vmdatabase.py", "load", str(file), expect=0).stdout == "change history-days: 90 -> 3\n"
    now = int(time.time())
    pool.sql("WITH RECURSIVE day (n) AS (VALUES (0) UNION ALL SELECT n + 1 FROM day WHERE n < 11999) INSERT INTO event "
             "(time, provider, image) SELECT ? - n * 60, 'one', 'noble' FROM day", now)
    with vmdatabase.opened(pool.place):
        pruned = history.prune(now)

    assert (pruned, pool.sql("SELECT min(time) >= ? - 3 * 86400, count(*) FROM event", now)) == (
        12000 - 3 * 1440 - 1, [(1, 3 * 1440 + 1)])
    pool.load(provider())
    assert pool.sql("SELECT count(*) FROM setting WHERE name = 'history-days' AND value = '90'") == [(1,)]


@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "[1]"])
def test_a_wrong_history_days_is_named_with_its_line(pool: Pool, value: str) -> None:
    file = pool.folder / "providers.yaml"
    file.write_text(f"{file.read_text()}history-days: {value}\n")
    lines = len(file.read_text().splitlines())

    done = pool.run("vmdatabase.py", "load", str(file), expect=2)

    assert f"providers.yaml:{lines}: history-days: expected days, a whole number, 1 or more, got" in done.stderr


def life(pool: Pool) -> str:
    """Let a machine be used, its build fail and the machine go; return its name."""
    name = pool.add_machine("READY", server=False, node=False)
    pool.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="gate", BUILD_NUMBER="17", ZUUL_CHANGE="1234",
             ZUUL_PATCHSET="5")
    pool.run("devstack-vm-delete.py", name, "--result", "FAILURE", expect=0, JOB_NAME="gate", BUILD_NUMBER="17")
    pool.sql("UPDATE machine SET state = 'DELETE', state_reason = 'kept for 24 h'")
    pool.sql("DELETE FROM machine")
    pool.sql("UPDATE event SET time = 1000000000 + 60 * id")
    pool.sql("UPDATE result SET start_time = 1000000120, end_time = 1000000180")
    return name


def test_a_node_that_is_long_gone_has_a_history_that_reads_like_a_story(pool: Pool) -> None:
    name = life(pool)

    told = pool.run("vmdatabase.py", "history", name, expect=0).stdout

    told = re.sub(r"\d+ (s|min)\b", "# s", told)
    assert re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ  (.*)$", told, re.MULTILINE) == [
        "in vm.db as READY", "READY -> USED after # s: gate #17", "taken by gate #17, change 1234,5",
        "gate #17 ended FAILURE after # s", "USED -> DELETE after # s: kept for 24 h", "gone, # s after DELETE"]


def test_the_history_of_a_provider_or_an_image_tells_of_all_nodes_and_as_json(pool: Pool) -> None:
    pool.load(provider(images=[image(), image("jammy")]))
    name = life(pool)
    other = pool.add_machine("READY", server=False, node=False, image="jammy")

    def nodes(*arguments: str) -> list[str]:
        found = json.loads(pool.run("vmdatabase.py", "history", *arguments, "--json", expect=0).stdout)
        assert [row["time"] for row in found] == sorted(row["time"] for row in found)
        return [row["node"] for row in found]

    assert nodes("--provider", "one") == [name] * 6 + [other]
    assert nodes("--image", "jammy") == [other]
    assert nodes(name) == [name] * 6
    assert nodes("--provider", "one", "--since", "1h") == [other]
    assert nodes("--provider", "one", "--since", "2999-12-31T00:00Z") == []
    words = pool.run("vmdatabase.py", "history", "--provider", "one", expect=0).stdout
    assert f"Z  {other}  in vm.db as READY\n" in words


@pytest.mark.parametrize(("arguments", "message"), [
    (["nobody"], "NODE: vm.db knows nothing, past or present, of nobody"),
    (["\x1b[31m"], r"NODE: vm.db knows nothing, past or present, of '\x1b[31m'"),
    (["--provider", "two"], "--provider: vm.db knows nothing, past or present, of two"),
    (["--image", "two"], "--image: vm.db knows nothing, past or present, of two"),
    (["x", "--since", "yesterday"], "argument --since: expected a time as 2026-12-31, 2026-12-31T23:59Z or Unix"),
    ([], "one of the arguments NODE --provider --image is required"),
    (["x", "--provider", "one"], "not allowed with argument"),
], ids=str)
def test_wrong_use_is_one_line(pool: Pool, arguments: list[str], message: str) -> None:
    done = pool.run("vmdatabase.py", "history", *arguments, expect=2)

    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_names_that_steer_a_terminal_are_shown_as_text(pool: Pool) -> None:
    pool.sql("INSERT INTO event (time, node_name, provider, image, to_state, reason) "
             "VALUES (1, 'n', 'one', 'noble', 'ERROR', ?)", "a\x1b[31mred\nline two")
    assert pool.run("vmdatabase.py", "history", "n", expect=0).stdout == (
        "1970-01-01 00:00:01Z  in vm.db as ERROR: a?[31mred line two\n")
