"""The frame of a script: how it begins and ends, its errors, log lines, words for people, workers and locks.

Nothing here knows a setting, a cloud, Jenkins or vm.db.
"""

from __future__ import annotations

import _thread
import argparse
import contextlib
import errno
import fcntl
import gc
import logging
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

if TYPE_CHECKING:
    from concurrent.futures import Future

VERSION = "1.0.0"  # of the project; the bash scripts read it here

T = TypeVar("T")

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143

STOPPING: dict[int, int] = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
STOP_SECONDS = 4  # the limit for tidying up after one of these, so that a script ends within 5 s
RECORDED = "what is under way is recorded and the next run goes on with it"
NAMES_SHOWN = 10  # in a message
TEXT_LENGTH = 1000  # of foreign text, in a message or in vm.db
CALL_LENGTH = 160  # of what the libraries say about a call before the reason of its failure
LINE_LENGTH = 10_000  # of our own messages
HELP_COLUMNS = 120  # as wide as the docstrings; to ask the terminal, argparse would import shutil at each start
COLLECT_AFTER = 100_000  # objects between two collections of garbage; lists of thousands of servers and rows are none

_stopped_by: list[int] = []  # the signals of STOPPING that came
_at_stop: list[Callable[[], str]] = []  # called if one comes: each tidies up and says what is left; innermost last
_ending = _thread.allocate_lock()  # held by the thread that ends the process

TIMED_OUT = (124, 137)  # exit status of timeout(1), the second when it had to kill


# What reading a malformed answer raises: wrong types, cut short, infinite numbers.
NONSENSE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
MOST_VALUES = 500_000  # in an answer in JSON; each takes some 100 bytes. A list of 1,000 servers has some 100,000

# The login in a URL: all before the last @ ahead of the first /; or a password that contains a / and is no port.
LOGIN = re.compile(r"://(?:[^/\s]*@|[^/\s?#@:\[\]]{0,200}:(?![0-9]{1,5}(?:[/?#,\s]|$))\S{0,500}@)")

# System errors that an operator can mend, with hints.
EXHAUSTED = {
    errno.EMFILE: "; see ulimit -n", errno.ENFILE: "; see fs.file-max", errno.ENOSPC: "", errno.EDQUOT: "",
    errno.EIO: "; is the disk broken?", errno.EROFS: "", errno.ENOMEM: "", errno.EAGAIN: "",
}


class GateError(Exception):
    """Something failed that the next run may mend; the message is one line for the operator."""

    exit_code = EXIT_FAILED


class ConfigError(GateError):
    """Wrong use or configuration; the message names the option, file, key or variable. Nothing was changed."""

    exit_code = EXIT_CONFIG


def make_private(path: Path) -> None:
    """Remove the rights of everybody but the owner on a file or folder of ours, if they have any."""
    with contextlib.suppress(OSError):  # somebody else's, or gone
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO) and not path.is_symlink():
            path.chmod(mode & stat.S_IRWXU)


def give_to_owner(path: Path) -> None:
    """Give what root made in somebody's folder to the folder's owner, so that a run as root locks nobody out."""
    if os.geteuid() != 0:
        return
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            owner, seen = path.parent.stat(), os.fstat(descriptor)
            linked = stat.S_ISREG(seen.st_mode) and seen.st_nlink > 1  # perhaps to a file of root elsewhere
            if seen.st_uid == 0 != owner.st_uid and not linked:
                os.fchown(descriptor, owner.st_uid, owner.st_gid)
        finally:
            os.close(descriptor)


def nearest(word: str, known: Collection[str]) -> str:
    """Return '; did you mean X?' for the nearest known word, or the list of known words if none is near."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


# --- logging --------------------------------------------------------------------------------------------------------


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger that puts provider, image, machine id and node name before each message."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add the subject to the log record."""
        kwargs["extra"] = {"subject": "".join(f"{key}={value} " for key, value in (self.extra or {}).items())}
        return msg, kwargs

    def bind(self, **subject: object) -> Log:
        """Return a logger that names this subject too."""
        return Log(self.logger, {**(self.extra or {}), **subject})


def get_log(**subject: object) -> Log:
    """Return a logger for a subject: provider=, image=, machine=, node=."""
    return Log(logging.getLogger("devstack-gate"), subject)


class _Lines(logging.Formatter):
    """Writes time, level and subject before each line of a message: several builds may share a console."""

    def __init__(self) -> None:
        super().__init__()
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        head = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}Z {record.levelname} {getattr(record, 'subject', '')}"
        text = record.getMessage()
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return "\n".join(f"{head}{line}" for line in shown(text).splitlines() or [""])


def setup_logging(verbosity: int) -> None:
    """Send log lines to stderr in UTC; verbosity -1 warnings only, 0 changes, 1 everything."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("devstack-gate").setLevel({-1: logging.WARNING, 0: logging.INFO}.get(verbosity, logging.DEBUG))
    # These repeat, in tracebacks and warnings, what the scripts report in their own words.
    for name in ("paramiko", "urllib3", "keystoneauth", "openstack", "novaclient"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


# --- a script's frame -----------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CONFIG, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints the docstring as help, reports an error in one line, and knows -v and -q."""
    parser = _Parser(description=docstring, formatter_class=partial(
        argparse.RawDescriptionHelpFormatter, width=HELP_COLUMNS))
    parser.add_argument("--version", action="version", version=f"%(prog)s {VERSION}")
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", dest="verbosity", action="store_const", const=1, default=0, help="log more")
    volume.add_argument("-q", "--quiet", dest="verbosity", action="store_const", const=-1, help="log warnings only")
    return parser


def run(body: Callable[[], int]) -> NoReturn:
    """Run a script's body and end the process with its exit code; errors become one line on stderr.

    The process ends at once, threads included, also on SIGINT (130) and SIGTERM (143): every step is recorded in vm.db
    before it is taken, so the next run goes on from there. On a stop, what was given to `telling` has STOP_SECONDS.
    """
    os.umask(0o077)  # vm.db, locks, logs and copies are for the owner only
    gc.set_threshold(COLLECT_AFTER)
    _obey_stops()
    code = _run_to_end(body)
    if _stopped_by:
        _wait_for_end()
    _end(code)


def _run_to_end(body: Callable[[], int]) -> int:
    """Run a script's body and return its exit code; every error is reported in one line."""
    try:
        code = _code_of(body)
        if sys.stdout:
            sys.stdout.flush()
        return code
    except GateError as err:
        return _told(str(err), err.exit_code)
    except BrokenPipeError:
        return EXIT_FAILED  # the reader of our output is gone
    except ModuleNotFoundError as err:
        return _told(without_package(err), EXIT_CONFIG)
    except Exception as err:  # noqa: BLE001 - the last resort: one line, and where it was with -v
        get_log().debug("unforeseen", exc_info=True)
        if isinstance(err, FileNotFoundError) and err.filename is None and _has_no_folder():
            return _told("the working folder does not exist any more; change to one that does", EXIT_CONFIG)
        return _told(reason_of(err), EXIT_FAILED)


def _has_no_folder() -> bool:
    """Return whether somebody removed the working folder, of which the cloud's libraries ask the name."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _code_of(body: Callable[[], int]) -> int:
    try:
        return body()
    except SystemExit as err:
        return err.code if isinstance(err.code, int) else EXIT_FAILED  # argparse has said why


def _told(message: str, code: int) -> int:
    """Say why a run failed, and return its exit code; if it was stopped, the stop has the last words."""
    if not _stopped_by:
        say(message)
    return code


def clock_ahead(date: str | None) -> float | None:
    """Return how many seconds our clock is ahead of a server's Date header; None if that holds no time."""
    import email.utils

    try:
        return time.time() - email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def has_too_many_values(body: bytes) -> bool:
    """Return whether a JSON answer would need many times its size in memory: each value has a comma or bracket."""
    return body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_VALUES


def one_line(err: BaseException) -> str:
    """Return an error's message without line breaks."""
    return plain(str(err))


def plain(text: str, length: int = TEXT_LENGTH) -> str:
    """Return foreign text as one line of at most `length` characters that can be shown and stored anywhere."""
    return printable(" ".join(text[:10 * length].split()))[:length].strip()


def printable(line: str) -> str:
    """Return a line without terminal control characters and without the logins in URLs."""
    if "://" in line:
        line = LOGIN.sub("://", line)
    return line if line.isprintable() else "".join(char if char.isprintable() else "?" for char in line.expandtabs())


def innermost(text: str) -> str:
    """Return a connection error's text without the layer that repeats the call and hides the reason at its end."""
    before, found, cause = text.partition("(Caused by ")
    layer = max(before.find("HTTPConnectionPool("), before.find("HTTPSConnectionPool("))
    if not found or layer < 0:
        return text
    call = before[:layer] if layer <= CALL_LENGTH else f"{before[:CALL_LENGTH]}...: "  # it holds the address
    return call + cause.removesuffix(")")


def shown(text: str) -> str:
    """Return a message with every line printable and cut to a readable length."""
    lines = [printable(line[:LINE_LENGTH]) + "..." * (len(line) > LINE_LENGTH) for line in text.splitlines()]
    return "\n".join(lines)


def say(message: str) -> None:
    """Write a script's last words in one call, since scripts of several providers share a console."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {shown(message)}\n")


def _obey_stops() -> None:
    """Have SIGTERM and SIGINT end the process, whatever it is doing; nothing is raised into the running code.

    The interpreter writes a signal's number into a pipe at once, whichever thread the kernel gives the signal to, and
    whatever the main thread waits for, such as SQLite for a lock. A separate thread reads the pipe.
    """
    import threading

    awake, note = os.pipe()
    os.set_blocking(note, False)
    signal.set_wakeup_fd(note, warn_on_full_buffer=False)
    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: _stopped_by.append(number))
    threading.Thread(target=_stop_when_told, args=(awake,), name="stopping", daemon=True).start()


def _stop_when_told(awake: int) -> None:
    """Wait for one of the signals, say what the run leaves to the next one, and end the process."""
    import threading

    number = os.read(awake, 1)[0]
    while number not in STOPPING:
        number = os.read(awake, 1)[0]
    code = STOPPING[number]
    limit = threading.Timer(STOP_SECONDS, _end, (
        code, f"stopped without tidying up, which took more than {STOP_SECONDS} s; {RECORDED}"))
    limit.daemon = True
    with contextlib.suppress(RuntimeError):  # no more threads can be started: then without a limit
        limit.start()
    left = [_left(tell) for tell in reversed(_at_stop)]
    _end(code, f"stopped; {'; '.join(filter(None, left)) or RECORDED}")


def _left(tell: Callable[[], str]) -> str:
    try:
        return tell()
    except Exception as err:  # noqa: BLE001 - the process ends in any case, and the next run goes on
        get_log().warning("%s", reason_of(err))
        return ""


def _end(code: int, words: str = "") -> NoReturn:
    """Log the last words and end the process, once; a second caller waits for that end."""
    if not _ending.acquire(blocking=False):
        _wait_for_end()
    if words:
        get_log().warning("%s", words)
    logging.shutdown()
    os._exit(code)


def _wait_for_end() -> NoReturn:
    """Wait for another thread to end the process."""
    while True:
        time.sleep(STOP_SECONDS)


@contextlib.contextmanager
def telling(left: Callable[[], str]) -> Iterator[None]:
    """Call `left` if SIGTERM or SIGINT comes meanwhile: it returns what the run leaves to the next one, or empty.

    `left` may tidy up first. It is called in another thread, while the run still goes on.
    """
    _at_stop.append(left)
    try:
        yield
    finally:
        _at_stop.remove(left)


def some(names: Sequence[str]) -> str:
    """Return names for a message, at most NAMES_SHOWN of them."""
    return ", ".join(names[:NAMES_SHOWN]) + f" and {len(names) - NAMES_SHOWN} more" * (len(names) > NAMES_SHOWN)


def run_each(providers: Sequence[str], argv: Sequence[str] | None) -> int:
    """Run this script once for each provider, side by side, and return one exit code for all.

    Each provider has its own process, so that one that hangs or fails never stops the others. argv is the command line
    (None: the process's); its first word `all` stands for a provider. Returns 0 if all returned 0, 2 if all returned 2
    (wrong use or configuration), else 1.
    """
    import subprocess

    if not providers:
        raise ConfigError("all: vm.db has no providers yet; run: vmdatabase.py load FILE")
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("all")
    children = [
        subprocess.Popen([sys.executable, sys.argv[0], *words[:place], name, *words[place + 1:]]) for name in providers
    ]

    def stop() -> str:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()  # each ends soon and says what it leaves
        return ""

    with telling(stop):
        codes = [child.wait() for child in children]
    if len(set(codes)) == 1:
        return codes[0] if codes[0] in (EXIT_OK, EXIT_CONFIG) else EXIT_FAILED
    return EXIT_FAILED


class Workers:
    """Threads for calls to the outside, at most `count` at once; any error in one becomes a GateError."""

    def __init__(self, count: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._executor = ThreadPoolExecutor(count)

    def submit(self, call: Callable[..., T], *arguments: Any, **keywords: Any) -> Future[T]:
        """Have a worker make a call."""
        return self._executor.submit(guarded, call, *arguments, **keywords)


def guarded(call: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Make a call for one item of many; an unforeseen error becomes a GateError, so that only this item fails."""
    try:
        return call(*arguments, **keywords)
    except GateError:
        raise
    except Exception as err:  # the boundary of one item
        get_log().debug("unforeseen", exc_info=True)
        raise GateError(reason_of(err)) from err


def without_package(err: ModuleNotFoundError) -> str:
    """Return in one line what to do if a Python package is missing."""
    return f"there is no Python package {err.name} here; activate the virtual environment of the set-up, or make it: " \
           "pip install -r requirements.txt"


def reason_of(err: Exception) -> str:
    """Return in one line why something unforeseen failed; if the host has run out of something, say of what."""
    if isinstance(err, MemoryError):
        return "this host, or the limit of this process, has no more memory"
    if isinstance(err, RuntimeError) and "start new thread" in str(err):
        return "can't start a new thread: this host, or the limit of this account's processes, allows no more"
    if isinstance(err, OSError) and err.errno in EXHAUSTED:
        return f"{err.filename or 'standard output, or a file'}: {err.strerror}{EXHAUSTED[err.errno]}"
    return f"unforeseen {type(err).__name__}: {one_line(err)} (-v shows where)"


@contextlib.contextmanager
def file_lock(path: Path, wait_seconds: float, name: str = "") -> Iterator[bool]:
    """Hold an exclusive lock on a file, and yield whether it was obtained within wait_seconds.

    With a name, only that name is locked; one file serves any number of names. The kernel releases the lock when the
    process ends, however that happens; the file stays. File and folder are private to their owner: whoever can open the
    file can hold the lock.
    """
    deadline = time.monotonic() + wait_seconds
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(path.parent)
        give_to_owner(path.parent)
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except OSError as err:
        raise GateError(f"{path}: cannot be opened as a lock ({err.strerror})") from err
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise GateError(f"{path}: cannot be opened as a lock (it is no file)")
        make_private(path)
        give_to_owner(path)
        while not (mine := _try_lock(stream.fileno(), name)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield mine


class Holder(NamedTuple):
    """The process that holds a lock, and since when it runs (Unix seconds); host: where, if that may be elsewhere."""

    pid: int
    since: float
    host: str = ""

    def __str__(self) -> str:
        where = f" on {self.host}" if self.host else ""
        return f"process {self.pid}{where}, since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.since))}"


def lock_holder(path: Path) -> Holder | None:
    """Return who holds the lock of a whole file, according to the kernel; None if no holder is visible from here."""
    try:
        inode = str(path.stat().st_ino)
        locks = [line.split() for line in Path("/proc/locks").read_text(encoding="ascii").splitlines()]
    except OSError:
        return None
    for _, kind, _, _, pid, place, *_ in locks:
        if kind == "FLOCK" and place.rpartition(":")[2] == inode:
            with contextlib.suppress(OSError):
                if any(descriptor.exists() and descriptor.samefile(path)
                       for descriptor in Path("/proc", pid, "fd").iterdir()):
                    return Holder(int(pid), _started(pid))
    return None


def _started(pid: str) -> float:
    """Return when a process was started, in Unix seconds; OSError if it is gone."""
    fields = Path("/proc", pid, "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # see proc_pid_stat(5): field 22, with 2 cut off before
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot)


def _try_lock(descriptor: int, name: str) -> bool:
    import struct
    import zlib

    try:
        if name:  # lock the byte whose offset is the name's hash; the file need not be that long
            wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, zlib.crc32(name.encode()), 1, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # POSIX allows both for locks
        return False
    return True


@contextlib.contextmanager
def phase(log: Log, name: str) -> Iterator[None]:
    """Log how long a named step took, and that it failed if it did."""
    start = time.monotonic()
    log.debug("%s ...", name)
    try:
        yield
    except Exception as err:
        log.info("%s: failed after %.1f s", name, time.monotonic() - start)
        if not hasattr(err, "phase"):
            err.phase = name  # type: ignore[attr-defined]
        raise
    log.info("%s: %.1f s", name, time.monotonic() - start)


def phase_of(err: BaseException) -> str:
    """Return "name: " of the innermost phase that an error ended; empty if there was none or the message names it."""
    name = getattr(err, "phase", "")
    return f"{name}: " if name and name not in str(err) else ""
