#!/usr/bin/env python3
"""The database of the pool (vm.db): its tables, the moves between states, and a command line for people.

    vmdatabase.py                   create vm.db if it is missing, and print the pool
    vmdatabase.py list --json       the same, machine readable
    vmdatabase.py load FILE         make providers and images equal to FILE, and print each change
    vmdatabase.py hold NODE ...     keep a machine; optionally let a person in
    vmdatabase.py unhold NODE       let it be deleted
    vmdatabase.py autohold ...      hold the machines of the next builds of a job that fail
    vmdatabase.py backup FILE       make a consistent copy, also while scripts run
    vmdatabase.py copy TARGET       take the pool to a PostgreSQL database (postgresql://...), or back to a file
    vmdatabase.py moved             say that this vm.db was moved or restored here on purpose
    vmdatabase.py forget PROVIDER   drop a provider whose cloud is gone; what it leaves behind is listed
    vmdatabase.py history NODE      tell each move of a machine and its builds, also of machines long gone
    vmdatabase.py environments      show the test environments: who has which, since when; or reset one

The file is $DEVSTACK_GATE_DB or ~/vm.db; `sqlite3 ~/vm.db 'select * from pool'` (or node) works at any time. An address
postgresql://HOST/DATABASE there names a database that several hosts work on.
Exit codes: 0 done, 1 something failed and can be tried again, 2 wrong use or configuration.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import re
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateprocess
from gateprocess import ConfigError, GateError, get_log

DRIVERS = ("psycopg", "psycopg2", "psycopg2cffi", "pymysql", "MySQLdb")  # peewee would load these if they are installed
try:
    unloaded = {name: None for name in DRIVERS if name not in sys.modules}
    sys.modules.update(unloaded)  # type: ignore[arg-type]  # a build waits for this: pool/postgres.py loads what it needs
    import peewee
except ModuleNotFoundError as err:  # the first package that any script needs
    gateprocess.say(gateprocess.without_package(err))
    sys.exit(gateprocess.EXIT_CONFIG)
finally:
    for name in unloaded:
        del sys.modules[name]

from pool.migrations import MIGRATIONS  # noqa: E402 - peewee comes first, which may be missing

if TYPE_CHECKING:
    from gateconfig import SecureConfig
    from jenkinsnodes import Node

BUILDING, READY, USED, ERROR, HOLD, DELETE = "BUILDING", "READY", "USED", "ERROR", "HOLD", "DELETE"
FREE, LOCKED, RESETTING, BROKEN = "FREE", "LOCKED", "RESETTING", "BROKEN"

# What is true of a machine's row, server and node in each state.
MACHINE_STATES = {
    BUILDING: "The server is being asked for, boots, or is tested; it may not exist yet. There is no node.",
    READY: "The server has passed the ssh test. Its node is in Jenkins, or the next launch puts it there; no build has "
           "had the machine.",
    USED: "A build or a person has the machine, or had it last. Its node takes no other build.",
    ERROR: "The machine never became ready, or died in the pool. Server and node may still be there.",
    HOLD: "A person keeps the machine, until a time or until unhold. Its node takes no build, and no script ends it.",
    DELETE: "Nobody wants the machine any more. Reap removes its node, then its server.",
}
STATES = tuple(MACHINE_STATES)
SNAPSHOT_STATES = {
    BUILDING: "A template server is being made into an image; the image may not exist yet.",
    READY: "The image has booted a test machine. Machines boot from the newest READY one of their image type.",
    ERROR: "The build failed or ended early. Its server may be kept for a person until keep_until.",
    DELETE: "Two newer ones are READY. Reap deletes the image.",
}
ENVIRONMENT_STATES = {
    FREE: "No machine has it. The first in turn of those that wait for one that fits gets it.",
    LOCKED: "One machine has it, which is USED or HOLD.",
    RESETTING: "Its machine has let it go, and its reset runs, or is due.",
    BROKEN: "Its reset failed, or its data cannot be read. A person releases it.",
}


class Move(NamedTuple):
    """One way for a row to change its state; a row begins with source None and ends with target None."""

    source: str | None
    target: str | None
    by: str  # the script or command that does it
    when: str


# Every move that exists. `move` refuses any other, whoever asks for it.
MACHINE_MOVES = (
    Move(None, BUILDING, "launch", "the pool is short; the row is there before the server is asked for"),
    Move(None, HOLD, "reap", "its node or server is in use, and a restored vm.db has no row of it"),
    Move(None, USED, "reap", "the same"),
    Move(BUILDING, BUILDING, "launch", "an earlier run ended before it could ask for the server: asked for again"),
    Move(BUILDING, READY, "launch", "the server is active and has passed the ssh test; then its node is made"),
    Move(BUILDING, ERROR, "launch, reap", "the boot failed or took longer than boot-timeout; also of a subnode, for "
                                          "which another one is asked for"),
    Move(BUILDING, None, "launch", "the cloud refused the create: there is no server"),
    Move(READY, USED, "inprogress, delete, reap", "a build started there or a person took it; delete and reap record "
                                                  "that of builds which inprogress, or a restored vm.db, missed"),
    Move(READY, ERROR, "launch, reap", "Jenkins did not take its node, its agent never came or was lost, its server "
                                       "died or, without Jenkins, does not answer by ssh"),
    Move(READY, DELETE, "reap", "it is older than max-ready-age, drained, out of service, its number of subnodes is "
                                "not that of the providers file, or --all-servers was given"),
    Move(USED, DELETE, "delete, reap, inprogress, environments",
         "its build ended well; a failed one after 24 hours, or earlier if the provider is full, or if a build waits "
         "for its test environment; it is nobody's; a login could not be removed; it got no test environment in time; "
         "of a subnode: its server is gone"),
    Move(BUILDING, USED, "reap", "a build runs on its node: vm.db was restored from before that"),
    Move(BUILDING, DELETE, "reap", "--all-servers was given; of a subnode: its machine is gone"),
    Move(BUILDING, HOLD, "hold, reap", "a person keeps it; reap: server or node say so, which a restored vm.db forgot"),
    Move(READY, HOLD, "hold, reap", "the same"),
    Move(USED, HOLD, "hold, delete, reap", "the same; or its build failed, and an autohold wants it"),
    Move(ERROR, HOLD, "hold, reap", "the same"),
    Move(HOLD, DELETE, "unhold, reap", "a person lets go, its hours are over, or its server is gone since a restore"),
    Move(DELETE, HOLD, "reap", "a person keeps it: server or node say so, and this restored vm.db never knew"),
    Move(ERROR, DELETE, "reap", "its server and node are to go"),
    Move(DELETE, None, "reap", "a later look at the cloud shows that the server is gone"),
)
SNAPSHOT_MOVES = (
    Move(None, BUILDING, "update-image", "a build begins; the row is there before the template server"),
    Move(BUILDING, READY, "update-image", "a machine booted from the image has passed the ssh test"),
    Move(BUILDING, ERROR, "update-image, reap", "the build failed, was stopped, or ended without a word"),
    Move(None, READY, "reap", "its good image was made by a newer vm.db than this restored one"),
    Move(READY, DELETE, "reap", "two newer ones are READY, its image type left the file, its image is gone, or "
                                "--all-images was given"),
    Move(ERROR, None, "reap", "its server and image are gone"),
    Move(DELETE, None, "reap", "its server and image are gone"),
)
ENVIRONMENT_MOVES = (
    Move(None, FREE, "load", "it is new in the providers file"),
    Move(FREE, LOCKED, "inprogress, reap", "a machine is USED, and next in turn; reap: one has it, which a restored "
                                           "vm.db forgot"),
    Move(LOCKED, FREE, "the machine's move", "its machine is neither USED nor HOLD any more, whoever did that; it has "
                                             "no reset"),
    Move(LOCKED, RESETTING, "the machine's move", "the same; it has a reset"),
    Move(LOCKED, LOCKED, "reap", "another machine has it, which a restored vm.db forgot"),
    Move(LOCKED, BROKEN, "inprogress", "its data cannot be read"),
    Move(RESETTING, FREE, "delete, reap, inprogress, environments", "its reset has succeeded, or it has none any more"),
    Move(RESETTING, BROKEN, "delete, reap, inprogress, environments", "its reset failed, or took too long"),
    Move(RESETTING, LOCKED, "reap", "a machine has it, which a restored vm.db forgot"),
    Move(FREE, RESETTING, "reap", "a restored vm.db does not know who had it last"),
    Move(BROKEN, RESETTING, "environments", "a person releases it"),
    Move(FREE, None, "load", "it left the providers file"),
    Move(BROKEN, None, "load", "it left the providers file"),
)
BUSY_SECONDS = 30
COUNTED = ("machine", "snapshot_image")  # tables whose ids appear in names and marks outside vm.db
LAST_ID = 10**15 - 1  # a higher one was not given by a pool; marks and node names hold up to 15 digits
SPARE_IDS = 1000  # skipped after a restore, plus one for each second since the backup
MACHINE_ID = Path("/etc/machine-id")
DEATHS_IN_A_ROW = 3  # from then on launch tries one machine of the image type at a time
LASTING_SECONDS = 1800  # an agent that has stayed this long is a usable one
ERROR_LENGTH = 4000  # of a machine or a snapshot
FILES = 4  # that SQLite opens for one database: the database, its log, the log's index, the folder
FULL_BYTES = 1 << 20  # a disk with less free space counts as full
CHUNK = 500  # ids in one statement
STUCK_SECONDS = 3600  # a delete that is not done this long after its first attempt is reported
FULL_SECONDS = 1200  # how long not to count on a provider that refused a machine for lack of room: two launches
FAILING_SECONDS = 1200  # the same for one whose last machines of an image type have failed
# Columns that do not change what a machine is made of.
OF_NO_RECIPE = ("active", "priority", "paused", "down_since", "on_trial", "full_until", "deaths", "death", "death_of",
                "min_ready", "max_ready_age", "max_servers", "max_concurrency", "calls_per_second", "boot_timeout",
                "test_environment")


class DatabaseError(GateError):
    """vm.db cannot be used now; trying again may help."""


class UnusableError(ConfigError):
    """vm.db cannot be used as it is, whoever asks and however often, as if it may not be written."""


class WrongValueError(UnusableError):
    """vm.db holds a value that no script wrote and that none can read; the message names table, row and column."""


class SqliteDatabase(peewee.SqliteDatabase):
    """vm.db, a file on this host; pool/postgres.py has the other kind of database, with the same methods."""

    errors = (peewee.DatabaseError, sqlite3.Error)
    ids_table = "sqlite_sequence"  # where the database keeps the last id of each table
    shared = False  # whether several hosts work on it

    @property
    def path(self) -> Path:
        """The path of the file."""
        return Path(str(self.database))

    def clock(self) -> float:
        """Return the time, in Unix seconds, by the clock that sets the times in the database."""
        return time.time()

    @property
    def notes(self) -> Path:
        """The folder beside vm.db for locks, and for notes that a restored vm.db would lack."""
        return Path(f"{self.database}.locks")

    def home(self) -> dict[str, str]:
        """Return what tells this database from a copy of it: the host's id and name, and the path."""
        return {"host": this_host(), "host-name": os.uname().nodename, "path": str(self.database)}

    def era(self) -> int:
        """Return how often the database may have been restored so far, at least 1."""
        return 1

    def of_another_home(self, known: Mapping[str, str | None]) -> str:
        """Return why this database may be a copy or an older state; empty if it is still the same one."""
        home = self.home()
        host = "host" if known["host"] or home["host"] else "host-name"  # a host without an id is known by its name
        if (known[host], known["path"]) == (home[host], home["path"]):
            return ""
        where = known["path"] if known[host] == home[host] else f"{known['path']} on host {known['host-name']}"
        return f"is the vm.db of {where}, and may be at work there"

    def lock(self, kind: str, seconds: float, name: str = "") -> contextlib.AbstractContextManager[bool]:
        """Hold the lock of a kind and name; yield whether it was obtained within `seconds`."""
        return gateprocess.file_lock(self.notes / kind, seconds, name)

    def holder(self, kind: str) -> gateprocess.Holder | None:
        """Return who holds a lock; None if no holder is visible from here."""
        return gateprocess.lock_holder(self.notes / kind)

    def leave_word(self, name: str) -> None:
        """Leave word for whoever holds a lock."""
        path = self.notes / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            gateprocess.give_to_owner(path)
        except OSError as err:
            raise GateError(f"{path}: cannot be written ({err.strerror})") from err

    def has_word(self, name: str) -> bool:
        """Return whether word was left."""
        return (self.notes / name).exists()

    def take_word(self, name: str) -> None:
        """Remove the word that was left, if any."""
        (self.notes / name).unlink(missing_ok=True)

    def explained(self, err: BaseException) -> tuple[str, bool]:
        """Return an error of this database in one line, and whether trying again may help."""
        path, first = self.path, _first(err)
        reason = gateprocess.one_line(first)
        if "locked" in reason or "busy" in reason:
            return f"{path}: another process has held it for more than {BUSY_SECONDS} s; try again", True
        if re.search("unable to open|readonly", reason) and (exhausted := _exhausted(path)):
            return exhausted, True
        if re.search("not a database|unable to open|malformed|readonly", reason):
            return f"{path}: cannot be opened for writing as a SQLite database ({reason})", False
        return f"{path}: {reason}{_disk(path, first)}", True


database = peewee.DatabaseProxy()
database.initialize(SqliteDatabase(None))
IntegrityError = peewee.IntegrityError  # a row with that id exists


class Model(peewee.Model):
    """All tables live in the one database; saving writes only what was set."""

    class Meta:
        """Peewee's options."""

        database = database
        only_save_dirty = True
        legacy_table_names = False


class Setting(Model):
    """A named value that belongs to the file itself, such as the pool's UUID."""

    name = peewee.TextField(primary_key=True)
    value = peewee.TextField()


class Provider(Model):
    """One account in one region of one cloud; the columns are the keys of the providers file."""

    id = peewee.AutoField()
    name = peewee.TextField()
    cloud = peewee.TextField()
    region = peewee.TextField(null=True)
    max_servers = peewee.IntegerField()
    boot_timeout = peewee.IntegerField()  # seconds
    max_concurrency = peewee.IntegerField()
    calls_per_second = peewee.FloatField(null=True)
    networks = peewee.TextField()
    floating_ips = peewee.TextField()
    floating_ip_network = peewee.TextField(null=True)
    address = peewee.TextField()
    ssh_port = peewee.IntegerField()
    security_groups = peewee.TextField()
    availability_zones = peewee.TextField()
    priority = peewee.IntegerField(default=0)  # of a label's providers, the highest launches first
    paused = peewee.BooleanField(default=False)  # true: no new machines
    down_since = peewee.IntegerField(null=True)  # since when launch gets no answer from it
    on_trial = peewee.BooleanField(default=False)  # true: it was down; one machine at a time until one is ready
    full_until = peewee.IntegerField(null=True)  # it refused a machine for lack of room: until then others are asked
    active = peewee.BooleanField(default=True)  # false: gone from the providers file, being drained

    def listed(self, column: str) -> list[str]:
        """Return the list that a column holds."""
        values: list[str] = json.loads(getattr(self, column))
        return values


class BaseImage(Model):
    """An image type of a provider; its machines carry the Jenkins label devstack-NAME."""

    id = peewee.AutoField()
    provider = peewee.ForeignKeyField(Provider)
    provider_id: int
    name = peewee.TextField()
    external_id = peewee.TextField()  # name or id of the provider's base image
    min_ready = peewee.IntegerField()
    min_ram = peewee.IntegerField()  # MB
    flavor = peewee.TextField(null=True)
    username = peewee.TextField(null=True)
    user_data = peewee.TextField(null=True)  # path
    max_ready_age = peewee.IntegerField(null=True)  # hours
    config_drive = peewee.BooleanField(default=False)
    boot_from_volume = peewee.BooleanField(default=False)
    volume_size = peewee.IntegerField(null=True)  # GB
    template = peewee.TextField(null=True)  # the image type of the same provider whose snapshot is used
    ready_script = peewee.TextField(null=True)  # path
    test_environment = peewee.BooleanField(default=False)  # true: its machines get a test environment before use
    subnodes = peewee.IntegerField(default=0)  # servers that belong to each machine, see pool/groups.py
    deaths = peewee.IntegerField(default=0)  # ready machines lost to Jenkins in a row, for one reason
    death = peewee.TextField(null=True)  # that reason
    death_of = peewee.TextField(null=True)  # what these machines were made of, see recipe
    active = peewee.BooleanField(default=True)


class LabelRow(Model):
    """What all providers together should have of an image type; see pool/demand.py."""

    name = peewee.TextField(primary_key=True)
    min_ready = peewee.IntegerField()
    max_ready = peewee.IntegerField()
    demand = peewee.TextField()
    spread = peewee.TextField()
    schedule = peewee.TextField()  # JSON

    class Meta:
        """Peewee's options."""

        table_name = "label"


class SnapshotImage(Model):
    """A template: one day's prepared image, from which machines boot."""

    id = peewee.AutoField()
    base_image = peewee.ForeignKeyField(BaseImage)
    base_image_id: int
    name = peewee.TextField()
    version = peewee.IntegerField()  # when it was made, Unix seconds
    external_id = peewee.TextField(null=True)
    server_external_id = peewee.TextField(null=True)
    state = peewee.TextField()
    state_time = peewee.IntegerField()
    error = peewee.TextField(null=True)
    state_reason = peewee.TextField(null=True)  # of its last move
    keep_until = peewee.IntegerField(null=True)

    def has_server(self, clock: float) -> bool:
        """Return whether its template server should exist: the build runs, or a person may inspect the failed one."""
        return self.state == BUILDING or (self.keep_until or 0) > clock


class Machine(Model):
    """One virtual machine, from before it is asked for until after it is seen to be gone."""

    id = peewee.AutoField()
    base_image = peewee.ForeignKeyField(BaseImage)
    base_image_id: int
    snapshot_image = peewee.ForeignKeyField(SnapshotImage, null=True)
    snapshot_image_id: int | None
    external_id = peewee.TextField(null=True)
    name = peewee.TextField(null=True)
    jenkins = peewee.TextField(default="")  # which one it belongs to: NAME of [jenkins NAME], empty for [jenkins]
    jenkins_name = peewee.TextField(null=True)  # set when the node may be in Jenkins
    ip = peewee.TextField(null=True)
    user = peewee.TextField(null=True)
    host_key = peewee.TextField(null=True)  # "type base64", seen at the first login
    take_hash = peewee.TextField(null=True)  # of the secret with which its build takes it, see secret_hash
    state = peewee.TextField()
    state_time = peewee.IntegerField()
    create_time = peewee.IntegerField(null=True)  # when the create of its server was sent
    online_time = peewee.IntegerField(null=True)  # when its agent was first seen online
    absent_time = peewee.IntegerField(null=True)  # since when its agent is seen to be away, or its ssh without Jenkins
    error = peewee.TextField(null=True)
    state_reason = peewee.TextField(null=True)  # of its last move
    hold_reason = peewee.TextField(null=True)
    hold_until = peewee.IntegerField(null=True)
    delete_time = peewee.IntegerField(null=True)  # when the cloud was first asked to delete it
    lead_id = peewee.IntegerField(null=True)  # of a subnode: the machine that it belongs to and moves with


class Result(Model):
    """One build on one machine; it outlives the machine."""

    id = peewee.AutoField()
    base_image = peewee.ForeignKeyField(BaseImage, null=True)
    machine_id = peewee.IntegerField()
    node_name = peewee.TextField(null=True)
    jenkins_job_name = peewee.TextField(null=True)
    jenkins_build_number = peewee.IntegerField(null=True)
    gerrit_change_number = peewee.IntegerField(null=True)
    gerrit_patchset_number = peewee.IntegerField(null=True)
    start_time = peewee.IntegerField(null=True)
    end_time = peewee.IntegerField(null=True)
    result = peewee.TextField(null=True)
    by_person = peewee.BooleanField(null=True)  # true: a person's, or of somebody whom vm.db had forgotten
    provider = peewee.TextField(null=True)
    image = peewee.TextField(null=True)
    kind = peewee.TextField(null=True)  # this and the next four from the build's verdict.json
    phase = peewee.TextField(null=True)
    reason = peewee.TextField(null=True)
    known_failure = peewee.TextField(null=True)
    minutes = peewee.FloatField(null=True)  # of all phases
    url = peewee.TextField(null=True)  # of the build's page in Jenkins
    environment = peewee.TextField(null=True)  # name of the test environment that it had


class Event(Model):
    """The coming, moving or going of a row; a trigger writes it."""

    id = peewee.AutoField()
    time = peewee.IntegerField()
    machine_id = peewee.IntegerField(null=True)
    snapshot_id = peewee.IntegerField(null=True)
    node_name = peewee.TextField(null=True)  # of a snapshot: its name
    provider = peewee.TextField()
    image = peewee.TextField()
    from_state = peewee.TextField(null=True)  # none: the row is new
    to_state = peewee.TextField(null=True)  # none: the row is gone
    seconds = peewee.IntegerField(null=True)  # spent in from_state
    reason = peewee.TextField(null=True)
    environment = peewee.TextField(null=True)  # name of the test environment that moved; node_name: for whom
    lead_id = peewee.IntegerField(null=True)  # of a subnode's move: the machine that it belongs to


class TestEnvironment(Model):
    """What a test needs beside its machine, such as bare-metal boxes behind a network; one machine at a time has it."""

    id = peewee.AutoField()
    name = peewee.TextField()
    images = peewee.TextField()  # JSON, names of image types
    providers = peewee.TextField()  # JSON, names of providers; none: all
    data = peewee.TextField()  # path of the JSON file that its machine gets
    reset = peewee.TextField(null=True)  # command
    state = peewee.TextField()
    state_time = peewee.IntegerField()
    state_reason = peewee.TextField(null=True)  # of its last move
    machine_id = peewee.IntegerField(null=True)  # the machine that has it
    locks = peewee.IntegerField(default=0)  # how often it was locked
    active = peewee.BooleanField(default=True)  # false: it has left the providers file, and goes when it is free


class EnvironmentWaiter(Model):
    """A machine that waits for a test environment; lower ids come before higher ones."""

    id = peewee.AutoField()
    machine_id = peewee.IntegerField()
    since = peewee.IntegerField()


# --- opening --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(place: Path | str, migrations: Sequence[str] = MIGRATIONS) -> Iterator[None]:
    """Open the database, made or migrated if need be; its errors become one line.

    A path is that of vm.db, a string the address of a PostgreSQL database. Raises ConfigError if the database can never
    be used as it is, DatabaseError if trying again may help.
    """
    if isinstance(place, str):
        from pool import postgres

        database.initialize(server := postgres.Database(place))
        with _explaining(), server.connection_context():
            server.opened(migrations, statements, _begin_pool)
            yield
        return
    path = place
    if not isinstance(database.obj, SqliteDatabase):
        database.initialize(SqliteDatabase(None))
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}")
    path = _resolved(path)  # the lock files must not depend on how the path is written
    _init(path)
    with _explaining():
        if not os.path.lexists(path):
            _make(path, migrations)
        elif not path.is_file():
            raise ConfigError(f"{path}: is no plain file; name that of vm.db")
        elif path.stat().st_size <= 1:
            raise _empty(path)
        _make_private(path)
        with database.connection_context():
            _migrate(path, migrations)
            yield


def _resolved(path: Path) -> Path:
    """Return a path without links; raises ConfigError for a link that leads to itself."""
    try:
        return path.resolve()
    except RuntimeError as err:
        raise ConfigError(f"{path}: is a link that leads to itself") from err


@contextlib.contextmanager
def _explaining() -> Iterator[None]:
    """Raise the errors of the database as ConfigError or DatabaseError, each with one line."""
    try:
        yield
    except (*database.errors, *gateprocess.NONSENSE) as err:
        if wrong := _wrong_value(err):
            raise WrongValueError(wrong) from err
        if not isinstance(err, database.errors):
            raise
        text, may_help = database.explained(err)
        raise (DatabaseError if may_help else UnusableError)(text) from err


def _wrong_value(err: BaseException) -> str:
    """Return in one line the value in the database that may have caused an error; empty if another thing has."""
    from pool import rows

    if isinstance(err, database.errors) and "decode" not in str(err):
        return ""
    with contextlib.suppress(*database.errors), database.connection_context():
        return rows.problem()
    return ""


def _make_private(path: Path) -> None:
    """Make vm.db, its copies and its locks private to their owner: whoever can read such a file can lock it."""
    copies = path.parent.glob(f"{glob.escape(path.name)}.schema-*")
    locks = _lock_folder_of(path)
    for file in (path, Path(f"{path}-wal"), Path(f"{path}-shm"), *copies, locks, *locks.glob("*")):
        gateprocess.make_private(file)


def _init(path: Path) -> None:
    database.init(str(path), timeout=BUSY_SECONDS, pragmas={"foreign_keys": 1})


def new_file(path: Path) -> SqliteDatabase:
    """Return the database of a vm.db that is made beside the open one."""
    return SqliteDatabase(str(path), timeout=BUSY_SECONDS, pragmas={"foreign_keys": 1})


def _empty(path: Path) -> ConfigError:
    return ConfigError(f"{path}: is empty, which a vm.db never is; restore a backup, or remove the file to begin a new "
                       "pool that knows nothing of the old one")


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Open the database, which `opened` has opened, for the calling thread too; its errors become one line."""
    with _explaining(), database.connection_context():
        yield


def _exhausted(path: Path) -> str:
    """Return what keeps this host or process from opening the file for writing; empty if it is the file itself."""
    with contextlib.ExitStack() as opened_files:
        try:
            for _ in range(FILES):
                opened_files.callback(os.close, os.open(path, os.O_RDWR))
        except OSError as err:
            return gateprocess.reason_of(err) if err.errno in gateprocess.EXHAUSTED else ""
    full = _full(path)
    return full and f"{path}: {full}"


def _full(path: Path) -> str:
    """Return in words that the disk with a file is full; empty if it is not."""
    with contextlib.suppress(OSError):
        left = os.statvfs(path.parent)
        if left.f_bavail * left.f_frsize < FULL_BYTES:
            return f"the disk is full: {left.f_bavail * left.f_frsize >> 10} KB are free"
        if left.f_files and not left.f_favail:
            return "the disk is full: no more files can be made"
    return ""


def _first(err: BaseException) -> BaseException:
    """Return the first of the database's errors: after a COMMIT that fails, the rollback fails as well."""
    first = seen = err
    while (before := seen.__cause__ or seen.__context__) is not None:
        seen = before
        if isinstance(seen, (peewee.DatabaseError, sqlite3.Error)):
            first = seen
    return first


def _disk(path: Path, err: BaseException) -> str:
    """Return what SQLite does not say about a failing disk; empty for any other error."""
    name = getattr(err, "sqlite_errorname", "")
    if not name.startswith(("SQLITE_IOERR", "SQLITE_FULL")):
        return ""
    full = _full(path) or "the disk is full or broken, see the kernel's log"
    return f" ({name}); {full}"


def _make(path: Path, migrations: Sequence[str]) -> None:
    """Make a new vm.db under another name and rename it when it is whole, so that nobody ever sees an empty one."""
    with _schema_lock(path):
        if os.path.lexists(path):
            return  # another process was faster
        draft = path.with_name(f"{path.name}.new")
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)
        _init(draft)
        try:
            os.close(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
            with database.connection_context():
                _run(path, migrations, 0)
            draft.rename(path)
        finally:
            _init(path)


def _migrate(path: Path, migrations: Sequence[str]) -> None:
    if _schema_version(path, migrations) == len(migrations):
        return
    with _schema_lock(path):
        version = _schema_version(path, migrations)  # another process may have been faster
        if version == len(migrations):
            return
        copy = path.with_name(f"{path.name}.schema-{version}.{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}")
        _copy(copy)
        get_log().warning("%s has an older schema (%d); kept a copy as %s and migrating it", path, version, copy.name)
        try:
            _run(path, migrations, version)
        except BaseException:
            copy.unlink()  # nothing was changed, and every further run would leave another copy
            raise


@contextlib.contextmanager
def _schema_lock(path: Path) -> Iterator[None]:
    with gateprocess.file_lock(_lock_folder_of(path) / "schema", BUSY_SECONDS) as mine:
        if not mine:
            raise DatabaseError(f"{path}: another process has been migrating it for more than {BUSY_SECONDS} s")
        yield


def _run(path: Path, migrations: Sequence[str], version: int) -> None:
    """Run the migrations that follow a version, in one transaction; a new file then belongs to this host and path."""
    database.execute_sql("PRAGMA journal_mode = WAL")
    with database.atomic("IMMEDIATE"):
        for number, script in enumerate(migrations[version:], version + 1):
            for statement in statements(script):
                database.execute_sql(statement)
            database.execute_sql(f"PRAGMA user_version = {number}")
        _begin_pool(str(path))


def _begin_pool(path: str | None = None) -> None:
    """Give a new pool its UUID and home; one that has them keeps them. path: where the file will be."""
    _make_pool_uuid()
    if setting("path") is None:
        _belong(path)
        set_setting("made", str(now()))


def statements(script: str) -> Iterator[str]:
    """Yield the statements of a script of MIGRATIONS; a trigger is one, although it contains several."""
    statement = ""
    for part in script.split(";"):
        statement += f"{part};"
        if sqlite3.complete_statement(statement):
            if statement.strip("; \n"):
                yield statement
            statement = ""


def _make_pool_uuid() -> None:
    import uuid

    Setting.insert(name="pool", value=str(uuid.uuid4())).on_conflict_ignore().execute()


def _schema_version(path: Path, migrations: Sequence[str]) -> int:
    query = "SELECT user_version, (SELECT count(*) FROM sqlite_master), " \
            "(SELECT count(*) FROM sqlite_master WHERE name = 'setting') FROM pragma_user_version"
    version, tables, ours = database.execute_sql(query).fetchone()
    if not tables:
        raise _empty(path)
    if not ours:
        raise ConfigError(f"{path}: holds tables that devstack-gate did not make; name another file")
    if not version:
        raise ConfigError(f"{path}: holds the tables of devstack-gate, but not their version, as after a .dump, which "
                          "leaves it out; set it to that of the original, which is the same release's: "
                          f"sqlite3 {path} 'PRAGMA user_version = {len(migrations)}'")
    if version > len(migrations):
        raise ConfigError(f"{path}: has schema version {version}, newer than the {len(migrations)} known here; "
                          "use the scripts that made it")
    return int(version)


def _copy(to: Path) -> None:
    """Copy the database to a new file; raises FileExistsError if somebody has put something there meanwhile."""
    os.close(os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600))
    target = sqlite3.connect(to)
    with contextlib.closing(target):
        database.connection().backup(target)


def pool_uuid() -> str:
    """Return the UUID that was made with this vm.db and marks everything that it owns."""
    return str(Setting.get_by_id("pool").value)


def notes_folder() -> Path:
    """Return this host's folder for notes that a restored database would lack; that of vm.db also holds its locks."""
    folder: Path = database.notes
    return folder


def own_folder() -> Path:
    """Return this host's folder for files of the pool: that of vm.db, or the notes folder if there is no vm.db."""
    return database.path.parent if isinstance(database.obj, SqliteDatabase) else notes_folder()


def folder_of_locks() -> Path | None:
    """Return the folder with the lock files of vm.db; None if no vm.db was opened."""
    known = isinstance(database.obj, SqliteDatabase) and database.database is not None
    return notes_folder() if known else None


def lock(kind: str, seconds: float, name: str = "") -> contextlib.AbstractContextManager[bool]:
    """Hold a lock of the pool, of a kind and perhaps a name; yields whether it was obtained within `seconds`.

    It is released when the process ends, however that happens and on whatever host.
    """
    held: contextlib.AbstractContextManager[bool] = database.lock(kind, seconds, name)
    return held


def _lock_folder_of(path: Path) -> Path:
    return Path(f"{path}.locks")


# --- whose vm.db it is, and how new -----------------------------------------------------------------------------------


def setting(name: str) -> str | None:
    """Return the setting of that name in the database; None if there is none."""
    row: Setting | None = Setting.get_or_none(Setting.name == name)
    return str(row.value) if row else None


def set_setting(name: str, value: str | None) -> None:
    """Write a setting into the database; None removes it."""
    if value is None:
        Setting.delete().where(Setting.name == name).execute()
    else:
        Setting.insert(name=name, value=value).on_conflict(
            conflict_target=[Setting.name], preserve=[Setting.value]).execute()


def settings_of(beginning: str) -> dict[str, str]:
    """Return the settings whose names have this beginning, keyed by the rest of the name."""
    rows = Setting.select().where(Setting.name.startswith(beginning))
    return {row.name.removeprefix(beginning): row.value for row in rows}


def this_host() -> str:
    """Return this host's machine-id; empty if it has none."""
    try:
        return MACHINE_ID.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _belong(path: str | None = None) -> None:
    for name, value in {**database.home(), **({"path": path} if path else {})}.items():
        set_setting(name, value)


def why_not_home() -> str:
    """Return why this database may be a copy or an older state of one that is at work; empty if it is not."""
    why: str = database.of_another_home({name: setting(name) for name in ("host", "host-name", "path")})
    return why


def require_home() -> None:
    """Raise ConfigError unless this vm.db was made here, or a person has said that it was moved here.

    Of two copies, each would delete as leaks what the other has made since.
    """
    if why := why_not_home():
        raise ConfigError(f"{database.database}: {why}; if it was moved or restored here on purpose, say so first: "
                          "vmdatabase.py moved")


def backup(file: Path) -> None:
    """Write a consistent copy of vm.db to a file, in one step.

    Raises ConfigError if that is impossible, or would replace anything but an earlier backup of this pool.
    """
    if not isinstance(database.obj, SqliteDatabase):
        raise ConfigError(f"{database.database}: is backed up by pg_dump, not by these scripts; a copy as a vm.db: "
                          f"vmdatabase.py copy {file}")
    try:
        file = _resolved(file)
        if file.is_dir():
            raise ConfigError(f"{file}: is a folder; name the file to write")
        if file.exists() and not file.is_file():
            raise ConfigError(f"{file}: is not a plain file, and a backup would replace it; name a file to write")
        if not file.parent.is_dir():
            raise ConfigError(f"{file}: there is no folder {file.parent}")
        if file.exists() and file.samefile(str(database.database)):
            raise ConfigError(f"{file}: is vm.db itself; name another file")
        if str(file) in {f"{database.database}{ending}" for ending in ("-wal", "-shm", "-journal")}:
            raise ConfigError(f"{file}: has a name that SQLite uses for its own files of vm.db; name another file")
        if file.exists() and not _is_backup(file):
            raise ConfigError(f"{file}: is there, and is no earlier backup of this pool; name another file")
        draft = file.with_name(f"{file.name}.devstack-gate-new")  # a name that nobody else gives to a file
        draft.unlink(missing_ok=True)
        _copy(draft)
        draft.replace(file)
    except OSError as err:
        raise ConfigError(f"{file}: cannot be written ({err.strerror})") from err
    except sqlite3.Error as err:
        raise GateError(f"{file}: cannot be written ({err})") from err


def _is_backup(file: Path) -> bool:
    """Return whether a file is a SQLite database with this pool's UUID."""
    try:
        with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?immutable=1", uri=True)) as copy:
            return copy.execute("SELECT value FROM setting WHERE name = 'pool'").fetchall() == [(pool_uuid(),)]
    except sqlite3.Error:
        return False


def moved() -> dict[str, int]:
    """Have vm.db belong to this host and path, and skip all ids that may have been used since it was last written.

    Returns the highest skipped id of each table; a pool makes less than one machine a second.
    """
    with database.atomic("IMMEDIATE"):
        _belong()
        spare = max(0, now() - _last_written()) + SPARE_IDS * database.era()
        noted = _noted_ids()
        last = {table: max(last_id(table), noted.get(table, 0)) + spare for table in COUNTED}
        for table, number in last.items():
            _set_last_id(table, number)
            set_setting(f"unknown {table}", None)
        set_setting("moved", str(now()))
        note_ids()
    return last


def _last_written() -> int:
    times = "SELECT state_time FROM machine UNION ALL SELECT state_time FROM snapshot_image " \
            "UNION ALL SELECT start_time FROM result UNION ALL SELECT end_time FROM result " \
            "UNION ALL SELECT CAST(value AS BIGINT) FROM setting WHERE name IN ('made', 'moved')"
    (newest,) = database.execute_sql(f"SELECT max(state_time) FROM ({times}) AS times").fetchone()
    return int(newest or 0)


def last_id(table: str) -> int:
    """Return the highest id that a table has used or skipped."""
    row = database.execute_sql(f"SELECT seq FROM {database.ids_table} WHERE name = ?", (table,)).fetchone()
    return int(row[0]) if row else 0


def _set_last_id(table: str, number: int) -> None:
    database.execute_sql(f"DELETE FROM {database.ids_table} WHERE name = ?", (table,))
    database.execute_sql(f"INSERT INTO {database.ids_table} (name, seq) VALUES (?, ?)", (table, number))


class KnownIds(NamedTuple):
    """Which ids of a table vm.db may know: those up to `last`, except the ones found to be unknown.

    A server, node or image with any other id was made by a newer vm.db, so this one was restored.
    """

    last: int
    unknown: range = range(0)

    def knows(self, number: int) -> bool:
        """Return whether a row with that id may have been in this vm.db."""
        return number <= self.last and number not in self.unknown


def known_ids(table: str) -> KnownIds:
    """Return which ids of a table this vm.db may know."""
    unknown = [int(number) for number in (setting(f"unknown {table}") or "0 0").split()]
    return KnownIds(last_id(table), range(*unknown))


def restored_since(moment: int) -> bool:
    """Return whether vm.db is known to have been restored or moved since a moment that it records (Unix seconds)."""
    return bool(known_ids("machine").unknown) or moment < int(setting("moved") or 0)


def node_of(machine: Machine) -> str | None:
    """Return the name of the node that a machine has, or may have got before vm.db was restored; None if neither."""
    may_have = machine.state == BUILDING and restored_since(machine.state_time)
    return machine.jenkins_name or (machine.name if may_have else None)


def leave_out_ids(table: str, seen: int) -> None:
    """Skip the ids up to one that was seen outside and that a restored vm.db may not know.

    Names of servers and nodes contain the id, so an id used twice would name two machines.
    """
    if seen <= last_id(table):
        return
    with database.atomic("IMMEDIATE"):
        last = last_id(table)
        if seen > last:
            first = known_ids(table).unknown.start or last + 1
            set_setting(f"unknown {table}", f"{first} {seen + 1}")
            _set_last_id(table, seen)


def note_ids() -> None:
    """Write the highest ids into a file beside vm.db, so that a restored vm.db can be compared with it."""
    noted = {"pool": pool_uuid(), **{table: last_id(table) for table in COUNTED}}
    file = notes_folder() / "ids"
    with contextlib.suppress(OSError):  # it only helps: marks in the cloud and Jenkins tell the same
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name("ids.new")
        draft.write_text(json.dumps(noted), encoding="ascii")
        gateprocess.give_to_owner(draft)
        draft.replace(file)


def leave_out_noted_ids() -> None:
    """Skip the ids that were noted beside vm.db and that a restored vm.db does not know."""
    for table, number in _noted_ids().items():
        leave_out_ids(table, number)


def _noted_ids() -> dict[str, int]:
    """Return the highest ids of this pool that were noted beside vm.db, by table; empty if none were."""
    file = notes_folder() / "ids"
    try:
        told = json.loads(file.read_text(encoding="ascii"))
        noted = {table: int(told[table]) for table in COUNTED} if told["pool"] == pool_uuid() else {}
    except (OSError, *gateprocess.NONSENSE):
        return {}
    if wrong := [number for number in noted.values() if number > LAST_ID]:
        get_log().warning("%s: %d is no id of a machine or snapshot; the file is not used", file, wrong[0])
        return {}
    return noted


# --- rows and moves -------------------------------------------------------------------------------------------------


def now() -> int:
    """Return the time as stored, integer Unix seconds; if several hosts share the pool, by the database's clock."""
    return int(database.clock())


def clock() -> float:
    """Return the same time with its fractions."""
    return float(database.clock())


def whose_clock() -> str:
    """Return in words whose clock that is."""
    return "this host" if isinstance(database.obj, SqliteDatabase) else "the database's host"


def move(
    row: Machine | SnapshotImage | TestEnvironment, source: str, target: str, reason: str | None = None, **columns: Any
) -> bool:
    """Move a row from one state to another and write other columns, in one UPDATE; reason is for the history.

    Returns whether the row was still in the source state, and so moved; the row object then shows what was written.
    Raises ValueError for a move that MACHINE_MOVES, SNAPSHOT_MOVES or ENVIRONMENT_MOVES does not have.
    """
    if not any((source, target) == (one.source, one.target) for one in moves_of(type(row))):
        raise ValueError(f"a {type(row).__name__} does not go from {source} to {target}")
    values = {"state": target, "state_time": now(), **_storable({"state_reason": reason, **columns})}
    model = type(row)
    moved = model.update(**values).where((model.id == row.id) & (model.state == source)).execute() == 1
    if moved:
        for name, value in values.items():
            setattr(row, name, value)
    return bool(moved)


def moves_of(model: type[Machine | SnapshotImage | TestEnvironment]) -> tuple[Move, ...]:
    """Return the moves that rows of a table may make."""
    return {Machine: MACHINE_MOVES, SnapshotImage: SNAPSHOT_MOVES, TestEnvironment: ENVIRONMENT_MOVES}[model]


def set_columns(row: Machine | SnapshotImage, **columns: Any) -> None:
    """Write some columns of a row, never its state."""
    columns = _storable(columns)
    type(row).update(**columns).where(type(row).id == row.id).execute()
    for name, value in columns.items():
        setattr(row, name, value)


def _storable(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return columns with their errors, which may hold foreign text, made one line that a terminal can show."""
    return {name: _error_line(value) if name in ("error", "state_reason") and isinstance(value, str) else value
            for name, value in columns.items()}


def _error_line(text: str) -> str:
    """Return an error in one line; a very long one keeps its beginning, which names the step, and its end."""
    line = gateprocess.printable(" | ".join(filter(None, map(str.strip, text.splitlines()))))
    half = ERROR_LENGTH // 2
    return line if len(line) <= ERROR_LENGTH else f"{line[:half]} ... {line[-half:]}"


def provider_named(name: str) -> Provider:
    """Return the provider of that name; if there is none, raise a ConfigError that suggests a known one."""
    provider = Provider.get_or_none(Provider.name == name) if name.isprintable() else None
    if provider is None:
        known = provider_names()
        hint = gateprocess.nearest(name, known) if known else "; vm.db has none yet, run: vmdatabase.py load FILE"
        raise ConfigError(f"{database.database}: unknown provider {printable(name)}{hint}")
    return provider


def printable(name: str) -> str:
    """Return a name from a command line in a form that a message can show."""
    return name if name.isprintable() and name == name.strip() and name else ascii(name)


def provider_names() -> list[str]:
    """Return the names of all providers, including those being drained."""
    return [row.name for row in Provider.select().order_by(Provider.name)]


def provider_names_at(project: str, region: str, known: bool = False) -> list[str]:
    """Return the names of the providers whose servers are in a project and region, or, unless known, may be."""
    places = {row.name: setting(f"place of {row.id}") for row in Provider.select()}
    return [name for name, place in places.items()
            if (not known if place is None else is_place(place, project, region))]


def machine_named(name: str) -> Machine:
    """Return the machine with a node or server name; raises ConfigError if there is none or if it is a subnode."""
    query = Machine.select(Machine, BaseImage, Provider).join(BaseImage).join(Provider)
    query = query.where((Machine.name == name) | (Machine.jenkins_name == name))
    machine: Machine | None = query.first() if name.isprintable() else None
    if machine is None:
        raise ConfigError(f"{database.database}: unknown node {printable(name)}; "
                          "`select name from node` lists those there are")
    if machine.lead_id is not None:
        lead = Machine.get_or_none(Machine.id == machine.lead_id)
        whose = f"{lead.name}; name that one" if lead else "a machine that is gone; reap deletes it"
        raise ConfigError(f"{name}: is a subnode of {whose}")
    return machine


def state_of(machine: Machine) -> str | None:
    """Return the present state of a machine; None if its row is gone."""
    row = database.execute_sql("SELECT state FROM machine WHERE id = ?", (machine.id,)).fetchone()
    return row[0] if row else None


def refreshed(machine: Machine) -> Machine:
    """Return a machine's row as it is now; raises GateError if it is gone."""
    row: Machine | None = Machine.get_or_none(Machine.id == machine.id)
    if row is None:
        raise GateError(f"{machine.name}: is gone")
    return row


def machine_log(machine: Machine) -> gateprocess.Log:
    """Return a logger that names a machine, its provider, its image type and its node."""
    image = machine.base_image
    return get_log(provider=image.provider.name, image=image.name, machine=machine.id, node=machine.name)


def machines_of(provider: Provider, states: Sequence[str] = STATES) -> list[Machine]:
    """Return the machines of a provider that are in one of these states, oldest first."""
    query = Machine.select(Machine, BaseImage).join(BaseImage).where(BaseImage.provider == provider)
    return list(query.where(Machine.state.in_(states)).order_by(Machine.id))


def count_machines(provider: Provider) -> Counter[tuple[int, str]]:
    """Return how many machines a provider has, by (image id, state); subnodes do not count."""
    return _counted(provider, Machine.lead_id.is_null())


def count_servers(provider: Provider) -> Counter[tuple[int, str]]:
    """Return how many servers the machines of a provider stand for, by (image id, state); subnodes count."""
    return _counted(provider)


def _counted(provider: Provider, *which: Any) -> Counter[tuple[int, str]]:
    query = (Machine.select(Machine.base_image, Machine.state, peewee.fn.count(Machine.id)).join(BaseImage)
             .where(BaseImage.provider == provider, *which).group_by(Machine.base_image, Machine.state))
    rows: Iterable[Any] = query.tuples()
    return Counter({(image_id, state): count for image_id, state, count in rows})


def members_of(machine: Machine) -> list[Machine]:
    """Return the subnodes that move with a machine, oldest first; one that failed in its boot no longer does."""
    query = Machine.select(Machine, BaseImage).join(BaseImage).where(
        (Machine.lead_id == machine.id) & (Machine.state == machine.state))
    return list(query.order_by(Machine.id))


def give_to_jenkins(machine: Machine, name: str) -> None:
    """Assign a machine and its subnodes to the Jenkins of that name."""
    Machine.update(jenkins=name).where((Machine.id == machine.id) | (Machine.lead_id == machine.id)).execute()
    machine.jenkins = name


def make_lead(heir: Machine, lead: Machine) -> None:
    """Make a subnode the lead of its group, and the old lead its subnode; call this inside a transaction."""
    Machine.update(lead_id=heir.id).where((Machine.lead_id == lead.id) | (Machine.id == lead.id)).execute()
    Machine.update(lead_id=None).where(Machine.id == heir.id).execute()


def count_absent(image: BaseImage) -> int:
    """Return how many ready machines of an image type have an agent that is seen to be away."""
    query = Machine.select().where((Machine.base_image == image) & (Machine.state == READY)
                                   & Machine.absent_time.is_null(False))
    return int(query.count())


def count_templates(provider: Provider) -> int:
    """Return how many templates of a provider have a server, or soon will: those being built or kept for a person."""
    return sum(snapshot.has_server(now()) for snapshot in snapshots_of(provider))


def count_rows(provider: Provider) -> int:
    """Return how many servers the rows of a provider stand for: all machines, and templates that have a server."""
    return count_servers(provider).total() + count_templates(provider)


def server_ids(provider: Provider) -> list[tuple[int, str | None]]:
    """Return (machine id, server id or None) of all machines of a provider."""
    query = Machine.select(Machine.id, Machine.external_id).join(BaseImage).where(BaseImage.provider == provider)
    rows: Iterable[Any] = query.tuples()
    return list(rows)


def machines_to_bind(since: int) -> set[int]:
    """Return the ids of the machines of all providers that may still have lacked their floating IP at a moment.

    These are BUILDING, or held perhaps since they were, or have changed their state since then (Unix seconds).
    """
    rows: Iterable[Any] = Machine.select(Machine.id).where(
        Machine.state.in_([BUILDING, HOLD]) | (Machine.state_time >= since)).tuples()
    return {machine_id for (machine_id,) in rows}


def all_server_ids() -> set[str]:
    """Return the ids of the servers of all machines, and of all snapshots that should have one, of all providers."""
    machines: Iterable[Any] = Machine.select(Machine.external_id).tuples()
    templates = [(row.server_external_id,) for row in SnapshotImage.select() if row.has_server(now())]
    return {server_id for rows in (machines, templates) for (server_id,) in rows if server_id}


def owners_of_nodes() -> dict[str, str]:
    """Return the name of the Jenkins that each machine belongs to, keyed by the machine's name."""
    rows: Iterable[Any] = Machine.select(Machine.name, Machine.jenkins).where(
        Machine.name.is_null(False) & Machine.lead_id.is_null()).tuples()
    return dict(rows)


def jenkins_of(machine_ids: Iterable[int]) -> dict[int, str]:
    """Return the name of the Jenkins that each of these machines belongs to."""
    rows: Iterable[Any] = Machine.select(Machine.id, Machine.jenkins).where(Machine.id.in_(list(machine_ids))).tuples()
    return dict(rows)


def count_by_jenkins(image: str) -> Counter[tuple[str, str]]:
    """Return how many machines of an image type there are at all providers, by Jenkins and state."""
    query = Machine.select(Machine.jenkins, Machine.state, peewee.fn.COUNT(Machine.id)).join(BaseImage).where(
        (BaseImage.name == image) & Machine.lead_id.is_null()).group_by(Machine.jenkins, Machine.state)
    rows: Iterable[Any] = query.tuples()
    return Counter({(jenkins, state): count for jenkins, state, count in rows})


def node_names() -> set[str]:
    """Return the names of the machines of all providers."""
    rows: Iterable[Any] = Machine.select(Machine.name).tuples()
    return {name for (name,) in rows}


def machines_with_ended_builds() -> set[int]:
    """Return the ids of machines whose build has ended."""
    rows: Iterable[Any] = Result.select(Result.machine_id).where(Result.end_time.is_null(False)).tuples()
    return {machine_id for (machine_id,) in rows}


def images_of(provider: Provider) -> list[BaseImage]:
    """Return the image types of a provider, including those being drained, in the order of their names."""
    return list(BaseImage.select().where(BaseImage.provider == provider).order_by(BaseImage.name))


def image_types() -> list[tuple[str, str]]:
    """Return the image types of all providers, each with the name of its provider."""
    rows: Iterable[Any] = BaseImage.select(BaseImage.name, Provider.name).join(Provider).tuples()
    return list(rows)


def names_in_history(names: Sequence[str]) -> set[str]:
    """Return which of these names machines have, or had before they were gone, as far as the history goes back."""
    found: set[str] = set()
    for start in range(0, len(names), CHUNK):
        rows: Iterable[Any] = Event.select(Event.node_name).where(
            Event.node_name.in_(names[start:start + CHUNK]) & Event.machine_id.is_null(False)).distinct().tuples()
        found.update(name for (name,) in rows)
    return found


def drop_drained(provider: Provider, provider_stays: bool) -> list[str]:
    """Delete the rows of drained images that have nothing left, then of a drained provider; returns which."""
    dropped: list[str] = []
    with database.atomic("IMMEDIATE"):
        for image in images_of(provider):
            if not image.active:
                drain_image(image, dropped)
        if not (provider_stays or Provider.get_by_id(provider.id).active or images_of(provider)):
            dropped.append(f"delete provider {provider.name}")
            provider.delete_instance()
    return [change for change in dropped if change.startswith("delete")]


def drain_image(image: BaseImage, changes: list[str]) -> None:
    """Delete the row of an image type that has nothing left, or else drain it; adds to `changes` what was done."""
    what = f"image {image.provider.name}/{image.name}"
    machines = Machine.select().where(Machine.base_image == image).count()
    snapshots = SnapshotImage.select().where(SnapshotImage.base_image == image).count()
    if not machines and not snapshots:
        changes.append(f"delete {what}")
        image.delete_instance()
    elif image.active or image.min_ready:
        changes.append(f"drain {what}: {machines} machines and {snapshots} snapshots are left to the next reaps")
        BaseImage.update(active=False, min_ready=0).where(BaseImage.id == image.id).execute()


def drain_provider(provider: Provider, changes: list[str]) -> None:
    """Drain a provider, or delete its row if no script ever was at work there; adds to `changes` what was done."""
    if setting(f"place of {provider.id}") is None and not images_of(provider):
        changes.append(f"delete provider {provider.name}")
        provider.delete_instance()
    elif provider.active:
        changes.append(f"drain provider {provider.name}: reap deletes it when nothing of it is left")
        Provider.update(active=False).where(Provider.id == provider.id).execute()


def forget(provider: Provider) -> None:
    """Delete a provider's row and all rows that belong to it; the results of its builds stay."""
    with database.atomic("IMMEDIATE"):
        images = BaseImage.select(BaseImage.id).where(BaseImage.provider == provider)
        for model in (Machine, SnapshotImage):
            model.delete().where(model.base_image.in_(images)).execute()
        BaseImage.delete().where(BaseImage.provider == provider).execute()
        provider.delete_instance()


def label_named(name: str) -> LabelRow | None:
    """Return what the providers file wants of an image type from all providers together; None if it says nothing."""
    row: LabelRow | None = LabelRow.get_or_none(LabelRow.name == name)
    return row


def images_named(name: str) -> list[BaseImage]:
    """Return the image types of that name, each with its provider, in the order of the providers' names."""
    query = BaseImage.select(BaseImage, Provider).join(Provider).where(BaseImage.name == name)
    return list(query.order_by(Provider.name))


def labels_of_nodes(prefix: str) -> dict[str, str]:
    """Return the Jenkins label of each machine of all providers, keyed by its name; prefix is that of the labels."""
    rows: Iterable[Any] = Machine.select(Machine.name, BaseImage.name).join(BaseImage).where(
        Machine.lead_id.is_null()).tuples()
    return {name: f"{prefix}devstack-{image}" for name, image in rows if name}


def note_last_image(image: BaseImage) -> None:
    """Record this image type as the one that got its provider's last machine."""
    set_setting(f"last image of {image.provider_id}", str(image.id))


def last_image(provider: Provider) -> int | None:
    """Return the id of the image type that got a provider's last machine; None if there was none."""
    found = setting(f"last image of {provider.id}")
    return int(found) if found else None


def note_answer(provider: Provider, answers: bool) -> None:
    """Record whether a provider answers; one that answers again is on trial until one of its machines is ready."""
    if answers:
        Provider.update(down_since=None, on_trial=True).where(
            (Provider.id == provider.id) & Provider.down_since.is_null(False)).execute()
    else:
        Provider.update(down_since=now()).where(
            (Provider.id == provider.id) & Provider.down_since.is_null()).execute()


def check_place(provider: Provider, project: str, region: str) -> None:
    """Raise ConfigError if a provider's machines or images were made in another project or region than this one.

    Here the cloud would answer 404 for all of them, and machines in use would count as gone.
    """
    place = setting(f"place of {provider.id}")
    if place is None or is_place(place, project, region):
        return
    machines = Machine.select().join(BaseImage).where(
        (BaseImage.provider == provider) & Machine.external_id.is_null(False)).count()
    images = SnapshotImage.select().join(BaseImage).where(
        (BaseImage.provider == provider) & SnapshotImage.external_id.is_null(False)).count()
    if machines or images:
        raise ConfigError(
            f"provider {provider.name}: cloud {provider.cloud} leads to project {project}, region {region or '-'}, but "
            f"its {machines} machines and {images} images are in project {place.partition(' ')[0]}, region "
            f"{place.partition(' ')[2] or '-'}; have it lead there again (clouds.yaml, or cloud and region in the "
            "providers file), and give the other project a provider of its own")


def is_place(place: str, project: str, region: str) -> bool:
    """Return whether project and region are the recorded ones; an unknown region matches any."""
    known_project, _, known_region = place.partition(" ")
    return project == known_project and (region == known_region or not (region and known_region))


def note_place(provider: Provider, project: str, region: str) -> None:
    """Record the project and region in which a provider's servers and images are made."""
    name, place = f"place of {provider.id}", f"{project} {region}"
    if setting(name) != place:
        set_setting(name, place)


def note_room(provider: Provider, refused: bool) -> None:
    """Record that a provider refused a machine for lack of room, or that one of its machines is ready."""
    query = Provider.update(full_until=now() + FULL_SECONDS)
    if not refused:
        query = Provider.update(full_until=None, on_trial=False).where(Provider.full_until.is_null(False)
                                                                       | (Provider.on_trial == 1))
    query.where(Provider.id == provider.id).execute()


def note_failing(image: BaseImage) -> None:
    """Record that the last machines of an image type have failed, if other providers can make up for them."""
    if label_named(str(image.name)):
        set_setting(f"failing {image.id}", str(now() + FAILING_SECONDS))


def note_well(image_id: int) -> None:
    """Record that a machine of an image type is ready."""
    if failing_until(image_id) is not None:
        set_setting(f"failing {image_id}", None)


def failing_until(image_id: int) -> int | None:
    """Return until when other providers make up for an image type; None if its last machines have not failed."""
    found = setting(f"failing {image_id}")
    return int(found) if found and found.isdecimal() else None


def snapshots_of(provider: Provider) -> list[SnapshotImage]:
    """Return all snapshots of a provider's images, newest first."""
    query = SnapshotImage.select(SnapshotImage, BaseImage).join(BaseImage).where(BaseImage.provider == provider)
    return list(query.order_by(SnapshotImage.version.desc(), SnapshotImage.id.desc()))


def end_dead_builds(provider: Provider) -> None:
    """Move the snapshots of a provider that are BUILDING to ERROR; the caller holds the lock of these builds."""
    for snapshot in snapshots_of(provider):
        if move(snapshot, BUILDING, ERROR, error="its build ended early"):
            get_log(provider=provider.name).info("snapshot %s: BUILDING -> ERROR, its build ended early", snapshot.name)


def current_snapshot(image: BaseImage) -> SnapshotImage | None:
    """Return the newest READY snapshot of an image type, or of its template; None if there is none yet."""
    query = SnapshotImage.select().join(BaseImage).where(
        (BaseImage.provider == image.provider_id) & (BaseImage.name == (image.template or image.name))
        & (SnapshotImage.state == READY) & SnapshotImage.external_id.is_null(False))
    newest: SnapshotImage | None = query.order_by(SnapshotImage.version.desc(), SnapshotImage.id.desc()).first()
    return newest


def next_version(image: BaseImage) -> int:
    """Return the version of an image type's next snapshot: the time now, but always above all existing versions."""
    newest: int | None = SnapshotImage.select(peewee.fn.MAX(SnapshotImage.version)).where(
        SnapshotImage.base_image == image).scalar()
    return max(now(), (newest or 0) + 1)


def mend_times(provider: Provider, present: float, spare: float) -> int:
    """Set times of a provider's machines that are over `spare` seconds in the future to `present`; returns how many.

    A clock that was ahead wrote them: until they came, nothing about these machines would expire.
    """
    mended: set[int] = set()
    images = BaseImage.select(BaseImage.id).where(BaseImage.provider == provider)
    for column in (Machine.state_time, Machine.create_time, Machine.online_time, Machine.absent_time,
                   Machine.delete_time):
        late = [machine.id for machine in Machine.select(Machine.id).where(
            Machine.base_image.in_(images) & (column > present + spare))]
        for start in range(0, len(late), CHUNK):
            Machine.update(**{column.name: int(present)}).where(Machine.id.in_(late[start:start + CHUNK])).execute()
        mended.update(late)
    return len(mended)


def building_snapshot_ids() -> set[int]:
    """Return the ids of the BUILDING snapshots of all providers."""
    rows: Iterable[Any] = SnapshotImage.select(SnapshotImage.id).where(SnapshotImage.state == BUILDING).tuples()
    return {snapshot_id for (snapshot_id,) in rows}


def hold(machine: Machine, reason: str, until: int | None) -> str:
    """Move a machine to HOLD from any state but DELETE; returns the state that it was in.

    Raises ConfigError if it is marked for deletion.
    """
    while machine.state not in (DELETE, HOLD):
        before = str(machine.state)
        if move(machine, before, HOLD, hold_reason=reason, hold_until=until):
            return before
        machine = refreshed(machine)
    if machine.state == DELETE:
        raise ConfigError(f"{machine.name}: is marked for deletion and cannot be held any more")
    set_columns(machine, hold_reason=reason, hold_until=until)
    return HOLD


# --- agents ---------------------------------------------------------------------------------------------------------


def ready_machines(provider: Provider) -> list[Machine]:
    """Return the READY machines of a provider, oldest first, with only the columns that a look at agents needs."""
    query = Machine.select(Machine.id, Machine.name, Machine.jenkins, Machine.jenkins_name, Machine.base_image,
                           Machine.external_id, Machine.state, Machine.state_time, Machine.online_time,
                           Machine.absent_time)
    return list(query.where(_is_ready(provider)).order_by(Machine.id))


def ready_by_image(provider: Provider) -> dict[int, int]:
    """Return the READY machines of a provider, {machine id: image id}."""
    rows: Iterable[Any] = Machine.select(Machine.id, Machine.base_image).where(_is_ready(provider)).tuples()
    return dict(rows)


def _is_ready(provider: Provider) -> Any:
    images = BaseImage.select(BaseImage.id).where(BaseImage.provider == provider)  # no join: peewee reads that slowly
    return Machine.base_image.in_(images) & (Machine.state == READY) & Machine.lead_id.is_null()


def note_agents(machines: Iterable[Machine], nodes: Mapping[str, Node]) -> None:
    """Record for ready machines when their agent was first seen, since when it is away, and that it is back.

    An agent that comes ends a row of deaths, except one of machines that Jenkins took offline; one that has stayed for
    a while ends any row.
    """
    came, back, away, lasting = [], [], [], []
    for machine in machines:
        node = nodes.get(str(machine.jenkins_name))
        if node is None or node.by_person:
            continue
        if node.offline:
            away += [machine] * (machine.absent_time is None)
            continue
        came += [machine] * (machine.online_time is None)
        back += [machine] * (machine.absent_time is not None)
        lasting += [machine] * ((machine.online_time or now()) <= now() - LASTING_SECONDS)
    _set_columns_of((came, {"online_time": now()}), (back, {"absent_time": None}), (away, {"absent_time": now()}))
    for found, of_any in ((came, False), (lasting, True)):
        forget_deaths({machine.base_image_id for machine in found}, of_any)


def note_answers(machines: Iterable[Machine], by_ssh: Mapping[int, bool]) -> None:
    """Record since when ready machines without nodes do not answer by ssh, and that they do again."""
    tried = [machine for machine in machines if machine.id in by_ssh]
    away = [machine for machine in tried if not by_ssh[machine.id] and machine.absent_time is None]
    back = [machine for machine in tried if by_ssh[machine.id] and machine.absent_time is not None]
    _set_columns_of((back, {"absent_time": None}), (away, {"absent_time": now()}))


def _set_columns_of(*written: tuple[list[Machine], dict[str, Any]]) -> None:
    for found, columns in written:
        for start in range(0, len(found), CHUNK):
            part = found[start:start + CHUNK]
            Machine.update(**columns).where(Machine.id.in_([machine.id for machine in part])).execute()
            for machine in part:
                for name, value in columns.items():
                    setattr(machine, name, value)


def forget_deaths(image_ids: Iterable[int], of_any: bool = True) -> None:
    """End the row of deaths of image types; of_any: even of machines that Jenkins took offline after they had come."""
    ended = BaseImage.update(deaths=0, death=None, death_of=None).where(
        BaseImage.id.in_(list(image_ids)) & (BaseImage.deaths > 0))
    (ended if of_any else ended.where(~BaseImage.death.startswith("barred"))).execute()


def count_death(machine: Machine, kind: str, recipe_of: str) -> None:
    """Count a ready machine that was lost to Jenkins, in a row with earlier ones of the same kind and recipe."""
    with database.atomic("IMMEDIATE"):
        image = BaseImage.get_by_id(machine.base_image_id)
        same = (image.death, image.death_of) == (kind, recipe_of)
        deaths = image.deaths + 1 if same else 1
        BaseImage.update(deaths=deaths, death=kind, death_of=recipe_of).where(BaseImage.id == image.id).execute()
        if deaths >= DEATHS_IN_A_ROW:
            note_failing(image)


def recipe(provider: Provider, image: BaseImage, snapshot_id: int | None, config: SecureConfig) -> str:
    """Return a hash of what a machine is made of: settings, snapshot, credential; the same for machines made alike."""
    import hashlib

    rows = [{name: value for name, value in row.__data__.items() if name not in OF_NO_RECIPE}
            for row in (provider, image)]
    snapshot = snapshot_id or getattr(current_snapshot(image), "id", None)
    jenkins = [(jenkins.server, jenkins.credentials_id) for jenkins in config.jenkinses]
    made_of = [rows, snapshot, str(config.node.ssh_key), config.node.user, config.node.remote_fs, jenkins]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


# --- builds ---------------------------------------------------------------------------------------------------------


def record_start(machine: Machine, environ: Mapping[str, str], **columns: Any) -> None:
    """Record which build has the machine, as far as Jenkins' environment says.

    The change is Gerrit's (GERRIT_CHANGE_NUMBER, ...) or Zuul's (ZUUL_CHANGE, ...).
    """
    def number(*names: str) -> int | None:
        return next((int(environ[name]) for name in names if re.fullmatch("[0-9]{1,18}", environ.get(name, ""))), None)

    Result.create(**{
        "base_image": machine.base_image_id, "machine_id": machine.id, "node_name": machine.name,
        "jenkins_job_name": environ.get("JOB_NAME", "").encode(errors="replace").decode() or None,  # bad UTF-8: ?
        "jenkins_build_number": number("BUILD_NUMBER"),
        "gerrit_change_number": number("GERRIT_CHANGE_NUMBER", "ZUUL_CHANGE"),
        "gerrit_patchset_number": number("GERRIT_PATCHSET_NUMBER", "ZUUL_PATCHSET"),
        "start_time": now(), "provider": machine.base_image.provider.name, "image": machine.base_image.name, **columns,
    })


def who_takes(environ: Mapping[str, str]) -> str:
    """Return JOB #NUMBER of the build whose environment this is, or "a person" outside a build."""
    job, number = environ.get("JOB_NAME", "").encode(errors="replace").decode(), environ.get("BUILD_NUMBER", "")
    return f"{job} #{number}" if job else "a person"


def secret_hash(secret: str) -> str:
    """Return the hash that vm.db keeps of a machine's secret; that is long and random, so a plain hash will do."""
    import hashlib

    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def last_result(machine: Machine) -> Result | None:
    """Return the row of the build or person that has the machine, or had it last; None if nobody ever had it."""
    found: Result | None = Result.select().where(Result.machine_id == machine.id).order_by(Result.id.desc()).first()
    return found


def open_result(machine: Machine) -> Result | None:
    """Return the row of the build or person that has the machine now; None if nobody has it."""
    found: Result | None = Result.select().where(_is_open(machine)).order_by(Result.id.desc()).first()
    return found


def _is_open(machine: Machine) -> Any:
    return (Result.machine_id == machine.id) & Result.end_time.is_null()


def note_of_build(machine: Machine, **columns: Any) -> None:
    """Write columns of the row of the build or person that has the machine now."""
    Result.update(**columns).where(_is_open(machine)).execute()


def build_of(result: Result) -> str:
    """Return JOB #NUMBER; empty for a person."""
    return f"{result.jenkins_job_name} #{result.jenkins_build_number}" if result.jenkins_job_name else ""


def record_end(machine: Machine, environ: Mapping[str, str], result: str | None, **columns: Any) -> None:
    """Record how the build on the machine ended; one whose start was not recorded gets a row all the same.

    What inprogress has said of a build that could not begin stays: such a build leaves no other verdict.
    """
    end = {"end_time": now(), "result": result}
    if Result.update(**end).where(_is_open(machine) & Result.kind.is_null(False)).execute():
        return
    if not Result.update(**end, **columns).where(_is_open(machine)).execute() \
            and not Result.select().where(Result.machine_id == machine.id).exists():
        record_start(machine, environ, start_time=None, **end, **columns)


if __name__ == "__main__":
    from pool import commands

    gateprocess.run(commands.main)
