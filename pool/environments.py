"""Locked test environments: each serves one machine at a time, in turn, and is reset before the next one gets it.

The lock is the row of vm.db, which triggers release with the machine. A waiting process holds another lock (see
`standing_in_line`) as long as it lives, so that a killed one delays nobody.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import itertools
import json
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import gateprocess
import vmdatabase
from gateprocess import ConfigError, GateError, get_log
from pool import turns
from vmdatabase import (
    BROKEN,
    DELETE,
    ERROR,
    FREE,
    HOLD,
    LOCKED,
    READY,
    RESETTING,
    USED,
    BaseImage,
    EnvironmentWaiter,
    Machine,
    TestEnvironment,
)

if TYPE_CHECKING:
    import subprocess

    from gateconfig import SecureConfig
    from pool.jenkinses import Jenkinses

DEFAULT_WAIT = 60  # minutes
MINUTE = 60  # seconds
WAIT_SETTING = "environment-wait"
POLL_SECONDS = 2
CLAIM_SECONDS = 2  # for a lock that others hold only for a moment, to see whether it is held
WRITE_SECONDS = 120  # for the data to reach the machine
RESET_SECONDS = 600  # a reset that takes longer has failed; the job that runs it has 20 minutes
KILL_SECONDS = 10
OUTPUT_BYTES = 64 << 20  # of a reset, on the disk
TOLD_BYTES = 2000  # of the end of a reset's output
DATA_BYTES = 1 << 20
SECRET_KEYS = re.compile("pass|pwd|secret|token|key|credential|auth|community|pin$", re.IGNORECASE)
SECRET_LENGTH = 4  # shorter texts are not hidden: any word may contain them
HIDDEN = "***"
END_LOOK_SECONDS = 30  # between two looks at builds that have a wanted environment
END_SECONDS = 900  # for what devstack-vm-delete does, a reset included
RESULT_OF = {"NOT_BUILT": "ABORTED"}  # results in Jenkins' words -> in those of devstack-vm-delete
IN_USE = (USED, HOLD)
# Settings of hosts that share a database. By host: that it gives environments; that it has not published its notes
# since a restore. By environment: what was published.
HOST, DOUBT, PUBLISHED = "notes of ", "notes in doubt of ", "noted "
DOUBT_SECONDS = 86400  # as long as a failed build's machine is kept; no build takes so long


class WithoutError(GateError):
    """A machine got no test environment; kind is recorded with the build's result."""

    def __init__(self, message: str, kind: str = "infrastructure") -> None:
        super().__init__(message)
        self.kind = kind


# --- settings -------------------------------------------------------------------------------------------------------


def wait_minutes() -> int:
    """Return for how many minutes a machine waits: environment-wait of the providers file."""
    return int(vmdatabase.setting(WAIT_SETTING) or DEFAULT_WAIT)


def set_wait(minutes: int) -> list[str]:
    """Set that number to what a providers file says; return one line for each change."""
    before = wait_minutes()
    if minutes == before:
        return []
    vmdatabase.set_setting(WAIT_SETTING, str(minutes))
    return [f"change {WAIT_SETTING}: {before} -> {minutes}"]


def read_data(path: Path) -> bytes:
    """Return the contents of a data file; raises ValueError, which says what is wrong with it."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:  # no wait for a pipe
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise ValueError(f"{path}: is not a plain file")
            data = stream.read(DATA_BYTES + 1)
        if len(data) > DATA_BYTES:
            raise ValueError(f"{path}: has more than {DATA_BYTES >> 20} MB")
        text = data.decode("utf-8")
    except OSError as err:
        raise ValueError(f"{path}: cannot be read ({err.strerror})") from err
    except UnicodeDecodeError as err:
        raise ValueError(f"{path}: is not UTF-8 text") from err
    try:
        json.loads(text, parse_constant=_refuse_constant, parse_int=str)  # numbers of any length
    except RecursionError as err:
        raise ValueError(f"{path}: is not JSON: nested too deeply") from err
    except json.JSONDecodeError as err:
        raise ValueError(f"{path}: is not JSON: line {err.lineno}: {err.msg}") from err
    except ValueError as err:
        raise ValueError(f"{path}: is not JSON: {err}") from err
    return data


def _refuse_constant(word: str) -> None:
    """Raise ValueError for NaN and Infinity, which Python accepts and most other parsers do not."""
    raise ValueError(f"{word} is no number there")


def secrets_in(data: str) -> list[str]:
    """Return the texts in a data file's JSON that no message may show: all below a key that suggests a secret.

    The longest come first, so that replacing them leaves no part of one.
    """
    found: set[str] = set()

    def look(value: Any, is_secret: bool) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                look(inner, is_secret or bool(SECRET_KEYS.search(key)))
        elif isinstance(value, list):
            for inner in value:
                look(inner, is_secret)
        elif is_secret and value is not None and not isinstance(value, bool):
            found.update(line.strip() for line in str(value).splitlines() if len(line.strip()) >= SECRET_LENGTH)

    with contextlib.suppress(ValueError, RecursionError):
        look(json.loads(data, parse_int=str), is_secret=False)
    return sorted(found, key=len, reverse=True)


# --- waiting --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def standing_in_line(machine: Machine) -> Iterator[None]:
    """Hold a lock that shows that the process waiting for a machine lives; do nothing if the machine needs none.

    Surrounds queue_up and hand_over. If another process holds it already, that one has taken the machine, or will.
    """
    if not machine.base_image.test_environment:
        yield
        return
    publish_notes()
    with _line(machine.id, CLAIM_SECONDS):
        yield


def _line(machine_id: int, seconds: float) -> contextlib.AbstractContextManager[bool]:
    return vmdatabase.lock("environments", seconds, str(machine_id))


def queue_up(machine: Machine) -> None:
    """Put a machine that is being taken at the end of the line, and lock an environment if its turn has come.

    Part of the transaction that takes the machine.
    """
    if machine.base_image.test_environment:
        EnvironmentWaiter.create(machine_id=machine.id, since=vmdatabase.now())
        _lock_in_turn(machine)


def hand_over(machine: Machine, config: SecureConfig, jenkinses: Jenkinses | None) -> None:
    """Wait until a taken machine has its test environment, and write the environment's data on the machine.

    Raises WithoutError if there is none in time, GateError if the machine is no longer in use. In the first case, and
    if the process is stopped, the machine is marked for deletion and its build recorded as one that could not begin.
    """
    if not machine.base_image.test_environment:
        return
    log = vmdatabase.machine_log(machine)

    def stop() -> str:
        with vmdatabase.connected():
            _give_up(machine, WithoutError("stopped before its test environment was on the machine", "aborted"))
        return ""

    try:
        with gateprocess.telling(stop):
            had = _wait(machine, jenkinses, log)
            if had:
                _write(machine, config, *had)
    except WithoutError as err:
        _give_up(machine, err)
        raise
    EnvironmentWaiter.delete().where(EnvironmentWaiter.machine_id == machine.id).execute()
    if had:
        log.info("test environment %s: its data is on the machine", had[0].name)
    else:
        log.info("no longer waits for a test environment: its image type no longer needs one")


def _wait(machine: Machine, jenkinses: Jenkinses | None, log: gateprocess.Log) -> tuple[TestEnvironment, bytes] | None:
    """Wait until a machine has an environment whose data can be read; return the environment and the data.

    Returns None if the providers file, changed meanwhile, says that it needs none.
    """
    minutes = wait_minutes()
    deadline = time.monotonic() + minutes * MINUTE
    next_look = time.monotonic() + END_LOOK_SECONDS
    told = False
    with Resets() as resets:
        while True:
            environment = _of(machine) or _turn(machine)
            if environment:
                data = _data_of(environment, log)
                if data is None:
                    continue
                log.info("test environment %s: locked", environment.name)
                return environment, data
            if not BaseImage.get_by_id(machine.base_image_id).test_environment:
                return None
            if time.monotonic() >= deadline and resets.finish_some():
                continue
            if time.monotonic() >= deadline:
                raise WithoutError(f"{machine.name}: no test environment within {minutes} min (environment-wait): "
                                   f"{_why_not(machine)}; this build cannot begin")
            if not told:
                log.info("waits for a test environment, %d min at most: %s", minutes, _why_not(machine))
            told = True
            if jenkinses and time.monotonic() >= next_look:
                _end_builds(machine, jenkinses, log)
                next_look = time.monotonic() + END_LOOK_SECONDS
            resets.step(_waiter(machine))
            time.sleep(min(POLL_SECONDS, max(0.0, deadline - time.monotonic())))


def _of(machine: Machine) -> TestEnvironment | None:
    """Return the environment that a machine has; None if it has none."""
    found: TestEnvironment | None = TestEnvironment.get_or_none(TestEnvironment.machine_id == machine.id)
    return found


def _turn(machine: Machine) -> TestEnvironment | None:
    """Return the environment of a machine if its turn has come; raises GateError if it is no longer in use."""
    while True:
        if not _may_move(machine):
            return None
        with vmdatabase.database.atomic("IMMEDIATE"):
            _refuse_unused(machine)
            if environment := _lock_in_turn(machine):
                return environment
            if not _make_one_free(machine):
                return None


def _may_move(machine: Machine) -> bool:
    """Return whether there may be an environment to get; this look does not delay others."""
    _refuse_unused(machine)
    waiter = _waiter(machine)
    return any(place.fits(waiter) for place in (*_places(FREE), *(one.place for one in _kept())))


def _refuse_unused(machine: Machine) -> None:
    state = vmdatabase.state_of(machine)
    if state not in IN_USE:
        raise GateError(f"{machine.name}: is {state or 'gone'} by now; this build must not run on it")


def _lock_in_turn(machine: Machine) -> TestEnvironment | None:
    """Lock an environment for a machine if its turn has come, and for those before it; part of a transaction."""
    for machine_id, place in turns.grants(_waiters(machine), _places(FREE)).items():
        if machine_id == machine.id:
            return _lock(TestEnvironment.get_by_id(place), machine)
        _lock(TestEnvironment.get_by_id(place), Machine.get_by_id(machine_id))
    return None


def _lock(environment: TestEnvironment, machine: Machine) -> TestEnvironment:
    """Lock a free environment for a machine."""
    _note(environment, machine, environment.locks + 1)
    vmdatabase.move(environment, FREE, LOCKED, _for_whom(machine), machine_id=machine.id, locks=environment.locks + 1)
    vmdatabase.note_of_build(machine, environment=environment.name)
    return environment


def _for_whom(machine: Machine) -> str:
    taken = vmdatabase.open_result(machine)
    return (vmdatabase.build_of(taken) if taken else "") or "a person"


def _waiter(machine: Machine) -> turns.Waiter:
    return turns.Waiter(machine.id, machine.base_image.name, machine.base_image.provider.name)


def _waiters(machine: Machine) -> list[turns.Waiter]:
    """Return the line; waiters before this machine whose process has ended are removed from it."""
    rows = vmdatabase.database.execute_sql(
        "SELECT environment_waiter.machine_id, base_image.name, provider.name FROM environment_waiter "
        "JOIN machine ON machine.id = environment_waiter.machine_id JOIN base_image ON base_image.id = base_image_id "
        "JOIN provider ON provider.id = provider_id WHERE environment_waiter.machine_id NOT IN "
        "(SELECT machine_id FROM test_environment WHERE machine_id IS NOT NULL) ORDER BY environment_waiter.id"
    ).fetchall()
    found, before = [], True
    for waiter in [turns.Waiter(*row) for row in rows]:
        before = before and waiter.machine_id != machine.id
        if before and not _stands(waiter.machine_id):
            EnvironmentWaiter.delete().where(EnvironmentWaiter.machine_id == waiter.machine_id).execute()
        else:
            found.append(waiter)
    return found


def tidy_line() -> None:
    """Remove from the line the waiters whose process has ended, so that the line shows the truth."""
    for waiter in list(EnvironmentWaiter.select()):
        if not _stands(waiter.machine_id):
            waiter.delete_instance()


def _stands(machine_id: int) -> bool:
    """Return whether the process that waits for a machine lives."""
    with _line(machine_id, 0) as nobody:
        return not nobody


def _places(*states: str) -> list[turns.Place]:
    """Return the environments in these states that can be given to machines."""
    rows = TestEnvironment.select().where(TestEnvironment.state.in_(states) & (TestEnvironment.active == 1))
    return [_place(row) for row in rows if not _is_forgotten(row)]


def _place(row: TestEnvironment) -> turns.Place:
    return turns.Place(row.id, frozenset(_names(row.name, "images", row.images)),
                       frozenset(_names(row.name, "providers", row.providers)), row.state_time)


def _names(environment: str, column: str, text: str) -> list[str]:
    """Return the list of names in a column; raises ConfigError if a person wrote something else there."""
    try:
        names = json.loads(text)
    except ValueError:
        names = None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ConfigError(f"{vmdatabase.database.database}: test-environment {vmdatabase.printable(environment)}: "
                          f"{column}: expected a JSON list of names, got {gateprocess.plain(text) or 'nothing'}; load "
                          "the providers file again")
    return names


def _kept() -> list[turns.Kept]:
    """Return the machines of ended builds that are kept with an environment; a waiting build comes before them."""
    rows = vmdatabase.database.execute_sql(
        "SELECT test_environment.id, machine.id, result.end_time FROM test_environment "
        "JOIN machine ON machine.id = test_environment.machine_id AND machine.state = 'USED' "
        "JOIN result ON result.id = (SELECT max(id) FROM result WHERE machine_id = machine.id) "
        "WHERE result.end_time IS NOT NULL AND result.jenkins_job_name IS NOT NULL AND test_environment.active = 1"
    ).fetchall()
    return [turns.Kept(machine_id, ended, _place(TestEnvironment.get_by_id(number)))
            for number, machine_id, ended in rows]


def _make_one_free(machine: Machine) -> bool:
    """Mark a kept machine DELETE if this one would get no environment soon otherwise; returns whether it did."""
    if machine.id in turns.grants(_waiters(machine), _places(FREE, RESETTING)):
        return False
    gone = turns.gives_way(_waiter(machine), _kept())
    if gone is None:
        return False
    kept = Machine.get_by_id(gone.machine_id)
    why = f"its build has ended, and {machine.name} waits for its test environment"
    moved = vmdatabase.move(kept, USED, DELETE, why)
    if moved:
        vmdatabase.machine_log(kept).info("USED -> DELETE: %s", why)
    return moved


def _end_builds(machine: Machine, jenkinses: Jenkinses, log: gateprocess.Log) -> None:
    """Call devstack-vm-delete for ended builds that have an environment that the first in line can use.

    Their own call may wait for an executor of this host; builds that wait here may occupy all of them.
    """
    if _before(machine):
        return
    for holder, jenkins, job, number in _builds_in_the_way(machine):
        nodes = jenkinses.owner(jenkins)
        try:
            build = nodes.build(job, number) if nodes else None
        except GateError as err:
            log.warning("%s", err)
            return
        if build and build.result:
            log.info("%s #%d on %s has ended %s, and devstack-vm-delete has not come yet", job, number, holder,
                     build.result)
            _delete(holder, job, number, RESULT_OF.get(build.result, build.result), log)


def _builds_in_the_way(machine: Machine) -> list[tuple[str, str, str, int]]:
    """Return node, Jenkins, job and number of the builds that, by vm.db, run with what a machine waits for."""
    rows = vmdatabase.database.execute_sql(
        "SELECT machine.name, machine.jenkins, jenkins_job_name, jenkins_build_number, test_environment.id "
        "FROM test_environment JOIN machine ON machine.id = test_environment.machine_id "
        "JOIN result ON result.machine_id = machine.id "
        "WHERE end_time IS NULL AND jenkins_job_name IS NOT NULL AND jenkins_build_number IS NOT NULL "
        "ORDER BY result.id").fetchall()
    waiter = _waiter(machine)
    return [(node, jenkins, job, number) for node, jenkins, job, number, place in rows
            if _place(TestEnvironment.get_by_id(place)).fits(waiter)]


def _delete(node: str, job: str, number: int, result: str, log: gateprocess.Log) -> None:
    """Run devstack-vm-delete.py for a build, as the job does; if it fails, job and reap try again."""
    import subprocess

    script = Path(__file__).resolve().parent.parent / "devstack-vm-delete.py"
    build = {"JOB_NAME": job, "BUILD_NUMBER": str(number)}
    named = {**build, **{f"GATE_{name}": value for name, value in build.items()}}
    try:
        subprocess.run([sys.executable, script, f"--result={result}", "--", node], env={**os.environ, **named},
                       check=False, timeout=END_SECONDS)
    except subprocess.TimeoutExpired:
        log.warning("devstack-vm-delete.py %s was not done after %d s", node, END_SECONDS)


def _data_of(environment: TestEnvironment, log: gateprocess.Log) -> bytes | None:
    """Return the data of a locked environment; if it cannot be read, make the environment BROKEN and return None."""
    try:
        return read_data(Path(environment.data))
    except ValueError as err:
        vmdatabase.move(environment, LOCKED, BROKEN, f"data: {err}", machine_id=None)
        log.error("test environment %s: LOCKED -> BROKEN: data: %s", environment.name, err)
        return None


def _why_not(machine: Machine) -> str:
    """Return in words who has the environments that a machine waits for, and how many are before it."""
    waiter = _waiter(machine)
    fitting = [row for row in TestEnvironment.select().order_by(TestEnvironment.name) if _place(row).fits(waiter)]
    if not fitting:
        return f"there is none for image {waiter.image} of provider {waiter.provider}"
    names = dict(vmdatabase.database.execute_sql(
        "SELECT machine.id, machine.name FROM machine JOIN test_environment ON machine_id = machine.id").fetchall())
    has = [f"{row.name} is {row.state}" + (f" ({names.get(row.machine_id)})" if row.machine_id else "")
           for row in fitting]
    return f"{gateprocess.some(has)}; {len(_before(machine))} waiting before it"


def _before(machine: Machine) -> list[turns.Waiter]:
    """Return the waiters before a machine."""
    return list(itertools.takewhile(lambda one: one.machine_id != machine.id, _waiters(machine)))


# The node's account owns the data, and nobody else may read it.
WRITE_DATA = """folder=/etc/devstack-gate; file=$folder/test-environment.json; umask 022
mkdir -p "$folder" && printf '%s\\n' "$2" > "$folder/test-environment" && rm -f "$file.new" || exit 1
umask 077; cat > "$file.new" && chown -- "$1:" "$file.new" && chmod 0600 "$file.new" && mv -f "$file.new" "$file\""""


def _write(machine: Machine, config: SecureConfig, environment: TestEnvironment, data: bytes) -> None:
    """Write the data of a machine's environment on the machine."""
    import nodessh

    login = nodessh.Login.of_machine(machine, config.node)
    try:
        with nodessh.session(login, deadline=time.monotonic() + WRITE_SECONDS) as session:
            words = session.as_root(["sh", "-c", WRITE_DATA, "sh", login.user, environment.name])
            session.run("write /etc/devstack-gate/test-environment.json", words, WRITE_SECONDS, data)
    except ConfigError:
        raise
    except GateError as err:
        raise WithoutError(f"{machine.name}: the data of test environment {environment.name} could not be written: "
                           f"{err}; this build cannot begin", "machine") from err


def _give_up(machine: Machine, err: WithoutError) -> None:
    """Mark the machine of a build that cannot begin for deletion, and record why, so that no change is blamed."""
    with vmdatabase.database.atomic("IMMEDIATE"):
        vmdatabase.note_of_build(machine, kind=err.kind, phase="devstack-vm-inprogress",
                                 reason=gateprocess.plain(str(err), 500))
        moved = vmdatabase.move(machine, USED, DELETE, f"of kind {err.kind}: no test environment")
    if moved:
        vmdatabase.machine_log(machine).info("USED -> DELETE: no test environment, kind %s", err.kind)


# --- resets ---------------------------------------------------------------------------------------------------------


@dataclass
class _Running:
    environment: TestEnvironment
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    lock: contextlib.ExitStack
    began: float  # on the monotonic clock


class Resets:
    """Resets that are due: only one process runs each, outside any transaction and with a time limit.

    timeout(1) also holds the lock of a reset, until the reset ends, even if this process is killed. The next process
    then finds the environment RESETTING and runs its reset again.
    """

    def __init__(self) -> None:
        self._running: dict[int, _Running] = {}
        self.failed = 0

    def __enter__(self) -> Resets:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait for running resets, unless the process has to stop."""
        if kind is None or issubclass(kind, Exception):
            self.finish()

    def step(self, waiter: turns.Waiter | None = None) -> None:
        """Begin the resets that are due, only those that fit a waiter if one is given, and record those that ended."""
        for environment in TestEnvironment.select().where(TestEnvironment.state == RESETTING):
            if waiter is None or _place(environment).fits(waiter):
                self._begin(environment)
        self._note_ends()

    def begin(self, name: str) -> None:
        """Begin the reset of an environment, if it is due and no other process runs it."""
        environment = TestEnvironment.get_or_none(
            (TestEnvironment.name == name) & (TestEnvironment.state == RESETTING))
        if environment:
            self._begin(environment)

    def finish_some(self) -> bool:
        """Wait for the resets that this process runs; return whether there were any."""
        any_run = bool(self._running)
        self.finish()
        return any_run

    def finish(self) -> int:
        """Wait for the resets that this process runs; return how many of its resets failed."""
        while self._running:
            time.sleep(0.1)
            self._note_ends()
        return self.failed

    def _begin(self, environment: TestEnvironment) -> None:
        import subprocess  # most runs have no reset, and a build waits for their start
        import tempfile

        if environment.id in self._running or _is_forgotten(environment):
            return
        if not environment.reset:
            vmdatabase.move(environment, RESETTING, FREE, "it has no reset")
            return
        lock, descriptor = _reset_lock(environment)
        if descriptor is None:
            lock.close()
            return  # another process runs it
        if TestEnvironment.get_or_none(
                (TestEnvironment.id == environment.id) & (TestEnvironment.state == RESETTING)) is None:
            lock.close()
            return
        get_log().info("test environment %s: its reset begins", environment.name)
        output = tempfile.TemporaryFile()  # noqa: SIM115 - _end closes it
        # The shell closes the lock file, so that nothing that the command leaves running holds the lock.
        words = ["timeout", "-k", str(KILL_SECONDS), str(RESET_SECONDS), "bash", "-c",
                 f"exec {descriptor}>&-; exec bash -c \"$1\"", "bash", environment.reset]
        if vmdatabase.database.shared:  # if this process is gone, other hosts cannot see that the reset goes on
            words = ["setpriv", "--pdeathsig", "TERM", *words]
        try:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=(descriptor,),
                cwd=Path(environment.data).parent, env=_environment_of(environment))
        except OSError as err:  # the folder is gone, or this host has run out of something
            with lock, output:
                self._break(environment, f"reset: {err.filename or 'bash'}: {err.strerror}")
            return
        self._running[environment.id] = _Running(environment, process, output, lock, time.monotonic())

    def _note_ends(self) -> None:
        for one in list(self._running.values()):
            _keep_small(one.output)
            if one.process.poll() is not None:
                self._end(one)

    def _end(self, one: _Running) -> None:
        del self._running[one.environment.id]
        with one.lock, one.output:
            self._write_end(one)

    def _write_end(self, one: _Running) -> None:
        """Record how a reset ended."""
        status, environment = one.process.returncode, one.environment
        if status == 0:
            vmdatabase.move(environment, RESETTING, FREE, "its reset has succeeded")
            get_log().info("test environment %s: RESETTING -> FREE", environment.name)
            return
        late = status in (*gateprocess.TIMED_OUT, -signal.SIGKILL) and time.monotonic() - one.began >= RESET_SECONDS
        how = f"not done after {RESET_SECONDS} s" if late else f"exit status {status}" if status > 0 else \
            f"killed by {signal.Signals(-status).name}"
        self._break(environment, f"reset: {how}{_last_of(one.output, environment)}")

    def _break(self, environment: TestEnvironment, why: str) -> None:
        vmdatabase.move(environment, RESETTING, BROKEN, why)
        get_log().error("test environment %s: RESETTING -> BROKEN: %s; when it is well again: vmdatabase.py "
                        "environments release %s", environment.name, why, environment.name)
        self.failed += 1


def due() -> list[str]:
    """Return the names of the environments whose reset is due."""
    rows = TestEnvironment.select().where(TestEnvironment.state == RESETTING).order_by(TestEnvironment.name)
    return [row.name for row in rows if not _is_forgotten(row)]


def run_resets() -> int:
    """Run the resets that are due to their end; return how many failed."""
    resets = Resets()
    resets.step()
    return resets.finish()


def _reset_lock(environment: TestEnvironment) -> tuple[contextlib.ExitStack, int | None]:
    """Return a stack that releases the lock of a reset, and the locked file; None for the file if another has the lock.

    On this host the lock lasts as long as anyone has the file open; between hosts, as long as this process lives.
    """
    lock = contextlib.ExitStack()
    if vmdatabase.database.shared and not lock.enter_context(vmdatabase.lock("reset", 0, environment.name)):
        return lock, None
    descriptor = os.open(vmdatabase.notes_folder() / f"reset-{environment.name}",
                         os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    lock.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return lock, None
    return lock, descriptor


def _environment_of(environment: TestEnvironment) -> dict[str, str]:
    return {**os.environ, "TEST_ENVIRONMENT": environment.name, "TEST_ENVIRONMENT_FILE": environment.data}


def _keep_small(output: IO[bytes]) -> None:
    """Free the disk space of an endless output; later output is written behind a hole."""
    if os.fstat(output.fileno()).st_blocks * 512 > OUTPUT_BYTES:
        os.ftruncate(output.fileno(), 0)


def _last_of(output: IO[bytes], environment: TestEnvironment) -> str:
    """Return the end of a reset's output, as the end of a line, without the secrets of its data.

    If the data cannot be read, secrets cannot be recognised, and nothing is returned.
    """
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - 2 * TOLD_BYTES))  # a secret may begin before the part that is shown
    text = output.read().replace(b"\0", b"").decode("utf-8", "replace")
    try:
        secrets = secrets_in(read_data(Path(environment.data)).decode())
    except ValueError:
        return ""
    for secret in secrets:
        text = text.replace(secret, HIDDEN).replace(json.dumps(secret)[1:-1], HIDDEN)
    text = gateprocess.plain(text[-TOLD_BYTES:], TOLD_BYTES)
    return f": {text}" if text else ""


# --- a restored vm.db -----------------------------------------------------------------------------------------------


class _Noted(NamedTuple):
    """Who has an environment, or had it last, from a file beside vm.db, which may be newer than vm.db."""

    locks: int
    machine_id: int
    provider: str
    server: str | None  # its id
    when: float  # greater in each later note of a host


def _note(environment: TestEnvironment, machine: Machine, locks: int) -> None:
    """Write beside vm.db which machine gets an environment, and as which lock: a restored vm.db may not know."""
    noted = {"pool": vmdatabase.pool_uuid(), "locks": locks, "machine": machine.id,
             "provider": machine.base_image.provider.name, "server": machine.external_id, "when": _next_moment()}
    file = _note_of(environment)
    try:
        draft = file.with_name(f"draft-{file.name}")
        draft.write_text(json.dumps(noted), encoding="ascii")
        draft.replace(file)
    except OSError as err:
        raise GateError(f"{file}: cannot be written ({err.strerror})") from err


def _next_moment() -> float:
    """Return a Unix time after those of all notes of this host, even if its clock was set back."""
    last = max((noted.when for noted in map(_own_note, TestEnvironment.select()) if noted), default=0.0)
    return max(vmdatabase.clock(), last + 0.001)


def _note_of(environment: TestEnvironment) -> Path:
    return vmdatabase.notes_folder() / f"environment-{environment.name}"


def tidy_notes() -> None:
    """Remove the notes of environments that are gone: a new one of the same name has served nobody.

    One that was renamed while a machine has it gets a note under its new name.
    """
    names = set()
    for row in TestEnvironment.select():
        names.add(row.name)
        if row.machine_id is not None and not _note_of(row).exists() \
                and (machine := Machine.get_or_none(id=row.machine_id)):
            _note(row, machine, row.locks)
    for file in vmdatabase.notes_folder().glob("environment-*"):
        if file.name.removeprefix("environment-") not in names:
            with contextlib.suppress(OSError):
                file.unlink()


def _noted(environment: TestEnvironment) -> _Noted | None:
    """Return who had an environment if vm.db, which was restored since, does not know it; None if vm.db knows.

    A note is written before its transaction ends. If that was killed, a later note of another environment for the same
    machine shows it: a machine has one at a time.
    """
    noted = max((one for one in _told(environment) if one.locks > environment.locks), default=None)
    if noted is None:
        return None
    others = TestEnvironment.select().where(TestEnvironment.id != environment.id)
    later = any(one.machine_id == noted.machine_id and one.when > noted.when
                for other in others for one in _told(other))
    return None if later else noted


def _told(environment: TestEnvironment) -> list[_Noted]:
    """Return who had an environment last, from this host's note and from what hosts have published."""
    return [one for one in (_own_note(environment), _published(environment)) if one]


def _published(environment: TestEnvironment) -> _Noted | None:
    """Return what hosts that share the database have published about an environment; None if nothing."""
    return _parsed(vmdatabase.setting(f"{PUBLISHED}{environment.name}") or "") if vmdatabase.database.shared else None


def _parsed(text: str) -> _Noted | None:
    """Return the contents of a note; None if it is not a note of this pool."""
    try:
        noted = json.loads(text)
        found = _Noted(int(noted["locks"]), int(noted["machine"]), str(noted["provider"]), noted["server"],
                       float(noted.get("when", 0)))
        return found if noted["pool"] == vmdatabase.pool_uuid() else None
    except (ValueError, KeyError, TypeError):
        return None


def _own_note(environment: TestEnvironment) -> _Noted | None:
    """Return this host's note; None if it has none."""
    return _parsed(_own_text(environment))


def _own_text(environment: TestEnvironment) -> str:
    with contextlib.suppress(OSError, ValueError):
        return _note_of(environment).read_text(encoding="ascii")
    return ""


def _is_forgotten(environment: TestEnvironment) -> bool:
    """Return whether a machine may have got it since vm.db's backup: then nobody gets it before reap knows more."""
    return _noted(environment) is not None or _in_doubt()


# Hosts that share a database: each has its own notes, which the others learn of if the database was restored.


def _this_host() -> str:
    return f"{os.uname().nodename} {vmdatabase.notes_folder()}"


def _in_doubt() -> bool:
    """Return whether another host may have given away what a restored database takes for free."""
    if not vmdatabase.database.shared:
        return False
    if vmdatabase.why_not_home():
        return True
    since = vmdatabase.now() - DOUBT_SECONDS  # a host that has not published by then is gone
    doubts = vmdatabase.settings_of(DOUBT)
    return any(int(moment) > since for name, moment in doubts.items() if name != _this_host())


def doubt_notes() -> None:
    """Let nobody get an environment before every host that has ever given one has published its notes."""
    if vmdatabase.database.shared:
        for name in vmdatabase.settings_of(HOST):
            vmdatabase.set_setting(f"{DOUBT}{name}", str(vmdatabase.now()))
        publish_notes()


def publish_notes() -> None:
    """Publish, in a database that was restored, this host's notes that the database does not know."""
    if not vmdatabase.database.shared or vmdatabase.why_not_home():
        return
    own = _this_host()
    if vmdatabase.setting(f"{HOST}{own}") is None:
        vmdatabase.set_setting(f"{HOST}{own}", str(vmdatabase.now()))
    if not any(map(_is_news, TestEnvironment.select())) and vmdatabase.setting(f"{DOUBT}{own}") is None:
        return
    with vmdatabase.database.atomic("IMMEDIATE"):
        for environment in filter(_is_news, list(TestEnvironment.select())):
            vmdatabase.set_setting(f"{PUBLISHED}{environment.name}", _own_text(environment))
        vmdatabase.set_setting(f"{DOUBT}{own}", None)


def _is_news(environment: TestEnvironment) -> bool:
    """Return whether this host has a note that neither the database knows nor another host has published."""
    own, told = _own_note(environment), _published(environment)
    return own is not None and own.locks > max(environment.locks, told.locks if told else 0)


def remember(
    provider: str, is_gone: Callable[[str], bool], is_unused: Callable[[Machine], bool] = lambda _: False
) -> list[str]:
    """Correct what a restored vm.db does not know of environments; return the corrections in words.

    Reap calls this after giving rows to all machines of a provider that it saw in use. A list may leave out a server,
    so is_gone asks the cloud for a single one: only if that is gone is its use over. is_unused says whether builds can
    start on the node of a READY machine: then none has begun there, and the process that wanted to take it was killed.
    """
    changed = []
    for environment in list(TestEnvironment.select()):
        noted = _noted(environment)
        if noted is None:
            continue
        machine = Machine.get_or_none(Machine.id == noted.machine_id)
        if machine and machine.state in IN_USE:
            with vmdatabase.database.atomic("IMMEDIATE"):
                _take_back(environment, machine, noted)
            changed.append(f"{environment.name}: vm.db did not know that {machine.name} has it; now it does")
        elif _is_over(machine, noted, provider, is_gone, is_unused):
            _free_again(environment, noted)
            changed.append(f"{environment.name}: vm.db did not know who had it last; now it is {environment.state}")
    return changed


def _is_over(machine: Machine | None, noted: _Noted, provider: str, is_gone: Callable[[str], bool],
             is_unused: Callable[[Machine], bool]) -> bool:
    """Return whether the machine that had an environment last is known to have no more use for it."""
    if machine:
        return machine.state in (DELETE, ERROR) or (machine.state == READY and is_unused(machine))
    if noted.provider not in vmdatabase.provider_names():
        return True
    return noted.provider == provider and (noted.server is None or is_gone(noted.server))


def _take_back(environment: TestEnvironment, machine: Machine, noted: _Noted) -> None:
    """Lock an environment for the machine that has it."""
    why = "a restored vm.db did not know that"
    if environment.machine_id == machine.id:
        TestEnvironment.update(locks=noted.locks).where(TestEnvironment.id == environment.id).execute()
        return
    TestEnvironment.update(state=RESETTING, machine_id=None).where(
        (TestEnvironment.machine_id == machine.id) & (TestEnvironment.id != environment.id)).execute()
    source = str(environment.state)
    if source == BROKEN:
        vmdatabase.move(environment, BROKEN, RESETTING, why)
        source = RESETTING
    vmdatabase.move(environment, source, LOCKED, why, machine_id=machine.id, locks=noted.locks)


def _free_again(environment: TestEnvironment, noted: _Noted) -> None:
    """Have an environment reset, since its last machine is over; so is any earlier one that vm.db shows."""
    columns = {"locks": noted.locks, "machine_id": None}
    why = "a restored vm.db did not know who had it last"
    if environment.state in (FREE, LOCKED):
        vmdatabase.move(environment, str(environment.state), RESETTING, why, **columns)
    else:
        TestEnvironment.update(locks=noted.locks).where(TestEnvironment.id == environment.id).execute()


# --- for people -----------------------------------------------------------------------------------------------------


def add_parser(commands: Any) -> None:
    """Add the command environments to vmdatabase.py."""
    command = commands.add_parser(
        "environments", help="show the test environments: who has which, since when; or reset one",
        usage="vmdatabase.py environments [--json] | release NAME")
    command.add_argument("words", nargs="*", metavar="release NAME", help="have one that is broken, or kept, reset")
    command.add_argument("--json", action="store_true", help="as a JSON list of one object per environment")
    command.set_defaults(run=lambda options: run(options, command))


def run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """Run the command; return the exit code."""
    if not options.words:
        return show(options.json)
    if options.words[0] != "release" or len(options.words) != 2 or options.json:  # noqa: PLR2004
        parser.error(f"expected nothing, --json, or release NAME, got {' '.join(options.words)!a}")
    return release(named(options.words[1]))


def table() -> list[dict[str, Any]]:
    """Return the environments by name, one dict each; reason of a locked one is the build or person that has it."""
    rows = vmdatabase.database.execute_sql("""
        SELECT test_environment.name, test_environment.state, test_environment.state_time,
            test_environment.state_reason, machine.name, images, providers, test_environment.active
        FROM test_environment LEFT JOIN machine ON machine.id = machine_id ORDER BY test_environment.name""")
    return [{"name": name, "state": state, "since": since, "reason": reason, "node": node,
             "images": _names(name, "images", images), "providers": _names(name, "providers", providers),
             "active": bool(active)}
            for name, state, since, reason, node, images, providers, active in rows]


def show(as_json: bool) -> int:
    """Print the environments, with times in UTC."""
    rows = table()
    if as_json:
        print(json.dumps(rows, indent=2))
        return gateprocess.EXIT_OK
    from pool.commands import print_table

    print_table(["environment", "state", "since", "node", "images", "reason"], [
        [row["name"], row["state"], time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(row["since"])), row["node"],
         " ".join(row["images"]), gateprocess.plain(row["reason"] or "", 100)] for row in rows])
    waiting = [name for (name,) in vmdatabase.database.execute_sql(
        "SELECT machine.name FROM environment_waiter JOIN machine ON machine.id = machine_id "
        "ORDER BY environment_waiter.id").fetchall()]
    if waiting:
        print(f"waiting, in this order: {', '.join(waiting)}")
    return gateprocess.EXIT_OK


def named(name: str) -> TestEnvironment:
    """Return the environment of that name; if there is none, raise a ConfigError that suggests a known one."""
    row = TestEnvironment.get_or_none(TestEnvironment.name == name) if name.isprintable() else None
    if row is None:
        known = [one.name for one in TestEnvironment.select().order_by(TestEnvironment.name)]
        hint = gateprocess.nearest(name, known) if known else "; vm.db has none"
        raise ConfigError(f"NAME: unknown test environment {vmdatabase.printable(name)}{hint}")
    return row


def release(environment: TestEnvironment) -> int:
    """Free an environment by a reset: one that is BROKEN, or whose machine is only kept for a look."""
    if environment.state == FREE:
        raise ConfigError(f"{environment.name}: is FREE")
    if environment.state == LOCKED:
        _take_away(environment)
    elif environment.state == BROKEN:
        vmdatabase.move(environment, BROKEN, RESETTING, "released by a person")
    resets = Resets()
    resets.begin(environment.name)
    resets.finish()
    state = TestEnvironment.get_or_none(TestEnvironment.id == environment.id)
    print(f"{environment.name}: {state.state if state else 'gone, since it left the providers file'}")
    if state and state.state == RESETTING:
        why = "nobody gets it before reap knows who had it" if _is_forgotten(state) else "another process resets it"
        get_log().warning("test environment %s: %s", environment.name, why)
    return gateprocess.EXIT_FAILED if state and state.state in (BROKEN, RESETTING) else gateprocess.EXIT_OK


def _take_away(environment: TestEnvironment) -> None:
    """Mark the machine that has an environment for deletion, unless a build runs there or a person holds it."""
    with vmdatabase.database.atomic("IMMEDIATE"):
        machine = Machine.get_or_none(Machine.id == environment.machine_id)
        if machine is None:
            return
        taken = vmdatabase.open_result(machine)
        if machine.state == HOLD:
            raise ConfigError(f"{environment.name}: {machine.name} has it, which is held ({machine.hold_reason}); "
                              f"release it with: vmdatabase.py unhold {machine.name}")
        if taken and taken.jenkins_job_name:
            raise ConfigError(f"{environment.name}: {vmdatabase.build_of(taken)} runs with it on {machine.name}; it is "
                              "free when that has ended")
        vmdatabase.move(machine, USED, DELETE, f"a person released {environment.name}")
