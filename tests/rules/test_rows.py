"""pool/rows.py names table, row and column of wrong values that a person wrote into vm.db."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import vmdatabase
from gateprocess import ConfigError
from pool import providersfile, rows

FILE = """
providers:
  - {name: one, cloud: a, max-servers: 4, images: [{name: noble, image: Debian 12, min-ready: 1}]}
  - {name: two, cloud: b, max-servers: 4, calls-per-second: 2.5, images: []}
labels:
  - {name: noble, min-ready: 1, schedule: [{days: mon, hours: '08:00-09:00', zone: UTC, min-ready: 2}]}
test-environments:
  - {name: rack-1, images: [noble], data: rack-1.json}
"""


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Make a vm.db with two providers, a snapshot, and a machine in each state."""
    (tmp_path / "providers.yaml").write_text(FILE)
    (tmp_path / "rack-1.json").write_text("{}")
    content = providersfile.read(tmp_path / "providers.yaml")
    with vmdatabase.opened(tmp_path / "vm.db"):
        providersfile.load(content.providers, content.labels)
        providersfile.load_environments(content.environments)
        vmdatabase.SnapshotImage.create(base_image=1, name="snapshot", version=1, state="READY", state_time=1)
        vmdatabase.Result.create(machine_id=1, node_name="m1", start_time=1, reason="größer")
        for number, state in enumerate(vmdatabase.STATES, 1):
            vmdatabase.Machine.create(base_image=1, name=f"m{number}", state=state, state_time=1, hold_until=2)
    return tmp_path / "vm.db"


def write(database: Path, statement: str) -> None:
    """Do what a person does at the prompt of sqlite3, which does not check references."""
    with closing(sqlite3.connect(database)) as prompt, prompt:
        prompt.execute(statement)


def test_what_load_and_scripts_have_written_is_fine(database: Path) -> None:
    with vmdatabase.opened(database):
        rows.check()


@pytest.mark.parametrize(("statement", "message"), [
    ("UPDATE machine SET state_time = '2026-11-29 10:00' WHERE id = 2",
     "table machine, id 2: state_time: expected a whole number, got 2026-11-29 10:00"),
    ("UPDATE machine SET hold_until = 'tomorrow' WHERE id = 5",
     "table machine, id 5: hold_until: expected a whole number, got tomorrow"),
    ("UPDATE machine SET absent_time = 1.5 WHERE id = 1",
     "table machine, id 1: absent_time: expected a whole number, got 1.5"),
    ("UPDATE machine SET name = NULL WHERE id = 3",
     "table machine, id 3: name: expected that of its server and node, got nothing"),
    ("UPDATE machine SET ip = X'00ff' WHERE id = 1", "table machine, id 1: ip: expected text, got b'\\x00\\xff'"),
    ("UPDATE machine SET hold_reason = CAST(X'6772f6df6572' AS TEXT) WHERE id = 5",
     "table machine, id 5: hold_reason: expected text in UTF-8, got b'gr\\xf6\\xdfer'"),
    ("UPDATE snapshot_image SET version = 'new'",
     "table snapshot_image, id 1: version: expected a whole number, got new"),
    ("UPDATE base_image SET min_ready = 'one'", "table base_image, id 1: min_ready: expected a whole number, got one"),
    ("UPDATE provider SET max_servers = '' WHERE name = 'one'",
     "table provider, id 1: max_servers: expected a whole number, got nothing"),
    ("UPDATE provider SET calls_per_second = 'fast' WHERE name = 'two'",
     "table provider, id 2: calls_per_second: expected a number, got fast"),
    ("UPDATE label SET max_ready = 'all'", "table label, name noble: max_ready: expected a whole number, got all"),
    ("UPDATE label SET schedule = 'work'", "label noble: schedule: expected a list of entries such as"),
    ("UPDATE label SET demand = 'builds'", "label noble: demand: expected one of none, queue, got builds"),
    ("UPDATE test_environment SET images = 'noble'",
     "test-environment rack-1: images: expected a list of names of images, one or more, got noble"),
    ("UPDATE test_environment SET providers = '{}'",
     "test-environment rack-1: providers: expected a list of names of providers, got {}"),
    ("UPDATE provider SET networks = 'private' WHERE name = 'one'",
     "provider one: networks: expected a list of network names or ids, got private"),
    ("UPDATE provider SET networks = '\"private\"' WHERE name = 'one'",
     "provider one: networks: expected a list of network names or ids, got \"private\""),
    ("UPDATE provider SET max_concurrency = 0 WHERE name = 'one'",
     "provider one: max_concurrency: expected a whole number, 1 or more, got 0"),
    ("UPDATE provider SET address = 'public'",
     "provider one: address: expected one of public-v4, private-v4, public-v6, got public"),
    ("UPDATE base_image SET external_id = ''",
     "provider one: image noble: external_id: expected name or id of a base image of the provider, got nothing"),
    ("INSERT INTO setting VALUES ('moved', 'yesterday')",
     "table setting: moved: expected a whole number, got yesterday"),
    ("DELETE FROM base_image", "table machine: m1 belongs to base_image 1, whose row is gone, as after a DELETE at a "
                               "prompt of sqlite3; put that row back, or delete those that belong to it, too"),
    ("DELETE FROM provider WHERE name = 'one'", "table base_image: noble belongs to provider 1, whose row is gone"),
])
def test_what_a_person_wrote_amiss_is_named(database: Path, statement: str, message: str) -> None:
    write(database, statement)

    with pytest.raises(ConfigError) as caught, vmdatabase.opened(database):
        rows.check()

    assert str(caught.value).startswith(f"{database}: {message}")


@pytest.mark.parametrize(("statement", "message"), [
    ("UPDATE result SET start_time = 'soon'", "table result, id 1: start_time: expected a whole number, got soon"),
    ("UPDATE machine SET ip = CAST(X'ff' AS TEXT) WHERE id = 1",
     "table machine, id 1: ip: expected text in UTF-8, got b'\\xff'"),
])
def test_what_no_script_can_read_is_named_where_one_stumbles_over_it(
        database: Path, statement: str, message: str) -> None:
    write(database, statement)

    with pytest.raises(vmdatabase.WrongValueError) as caught, vmdatabase.opened(database):
        list(vmdatabase.Machine.select())
        sum(row.start_time or 0 for row in vmdatabase.Result.select())

    assert str(caught.value) == f"{database}: {message}"


def test_an_error_that_no_value_in_vm_db_has_caused_stays(database: Path) -> None:
    with pytest.raises(ValueError, match="no number"), vmdatabase.opened(database):
        raise ValueError("no number")
