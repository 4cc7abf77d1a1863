"""Settings, logging and errors that the scripts share.

Nothing here talks to a cloud, to Jenkins or to vm.db. Settings come from the command line, then the environment,
then a file, then a default, and are checked before a script changes anything.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import errno
import fcntl
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
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")

EXIT_OK, EXIT_FAILED, EXIT_CONFIG, EXIT_INTERRUPTED, EXIT_TERMINATED = 0, 1, 2, 130, 143

STOPPING: dict[int, int] = {signal.SIGINT: EXIT_INTERRUPTED, signal.SIGTERM: EXIT_TERMINATED}
NUDGE, NUDGE_SECONDS = signal.SIGURG, 0.1  # what wakes the main thread, so that Python runs the handlers of these
STOP_SECONDS = 4  # what tidying up may take after one of these, so that a script ends within 5 s
RECORDED = "what is under way is recorded and the next run goes on with it"
NAMES_SHOWN = 10  # in a message
TEXT_LENGTH = 1000  # of what others say, in a message or in vm.db
CALL_LENGTH = 160  # of what the libraries say of a call before they tell why it failed
LINE_LENGTH = 10_000  # of a message of ours
HELP_COLUMNS = 120  # as wide as the docstrings; to ask the terminal, argparse would import shutil at each start

TIMED_OUT = (124, 137)  # exit status of timeout(1), the second when it had to kill
PACKAGE_NAME = re.compile(r"[A-Za-z0-9@/][A-Za-z0-9.+:_@/()-]*")  # also an rpm group, file or capability
PREFIX_PATTERN = re.compile(r"[A-Za-z0-9-]*")


# Errors of the system that an operator can mend, and hints.
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


class StoppedError(BaseException):
    """SIGTERM came; raised in the main thread so that whoever must tidy up can."""


# --- settings -------------------------------------------------------------------------------------------------------

# Named tuples here and in jenkinsnodes, for builds wait for these imports: a dataclass takes four times as long.


class JenkinsConfig(NamedTuple):
    """How to reach Jenkins, and the credential with which Jenkins reaches the nodes.

    node_login is USER:APIKEY for builds that call Jenkins from their node, empty where none do.
    """

    server: str
    user: str
    apikey: str
    credentials_id: str
    node_login: str = ""

    def __repr__(self) -> str:
        return f"JenkinsConfig({self.server!r}, {self.user!r}, ...)"  # the others are secrets, or lead to one


class NodeConfig(NamedTuple):
    """The account on the nodes."""

    user: str
    ssh_key: Path
    remote_fs: str


class ImageConfig(NamedTuple):
    """What every image is made of; packages are empty for the distribution's default, puppet_repo for no puppet."""

    packages: tuple[str, ...]
    branches: tuple[str, ...]  # shell patterns
    puppet_repo: str
    puppet_modulepath: str
    puppet_manifest: str


class SecureConfig(NamedTuple):
    """The secure configuration; jenkins is None where there is no [jenkins] section."""

    path: Path
    jenkins: JenkinsConfig | None
    node: NodeConfig
    image: ImageConfig


SECURE_KEYS = {
    "jenkins": ("server", "user", "apikey", "credentials_id", "node_user", "node_apikey"),
    "node": ("user", "ssh_key", "remote_fs"),
    "image": ("packages", "branches", "puppet_repo", "puppet_modulepath", "puppet_manifest"),
}
DEFAULT_SSH_KEY = "~/.ssh/id_ed25519"
# What devstack, a Jenkins agent and the gate scripts cannot do without.
DEB_PACKAGES = ("build-essential", "python3-dev", "python3-pip", "python3-venv", "git", "curl", "rsync",
                "default-jre-headless")
RPM_PACKAGES = ("gcc", "gcc-c++", "make", "python3-devel", "python3-pip", "git", "curl", "rsync", "java-headless",
                "perl-interpreter", "perl-POSIX")
DEFAULT_BRANCHES = "master stable/*"


def database_path() -> Path:
    """Return the path of vm.db: $DEVSTACK_GATE_DB, or ~/vm.db."""
    return expanded(os.environ.get("DEVSTACK_GATE_DB") or "~/vm.db", "DEVSTACK_GATE_DB")


def expanded(path: str, what: str) -> Path:
    """Return a path with ~ and ~user resolved; ConfigError names what it is the setting of."""
    try:
        return Path(path).expanduser()
    except RuntimeError as err:
        raise ConfigError(f"{what}: {path}: there is no such home folder") from err


def name_prefix() -> str:
    """Return $DEVSTACK_GATE_PREFIX, which goes before server, image, label and node names; ConfigError if it cannot."""
    prefix = os.environ.get("DEVSTACK_GATE_PREFIX", "")
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise ConfigError(f"DEVSTACK_GATE_PREFIX: {prefix!r} may hold letters, digits and - only")
    return prefix


def secure_config_path() -> Path:
    """Return the path of the secure configuration: $DEVSTACK_GATE_SECURE_CONFIG, or ~/devstack-gate-secure.conf."""
    variable = "DEVSTACK_GATE_SECURE_CONFIG"
    return expanded(os.environ.get(variable) or "~/devstack-gate-secure.conf", variable)


def load_secure_config() -> SecureConfig:
    """Read the secure configuration; ConfigError names file and key."""
    path = secure_config_path()
    parser = configparser.ConfigParser(interpolation=None)
    try:
        with path.open(encoding="utf-8-sig") as stream:  # editors of other systems put a byte order mark first
            parser.read_file(stream)
    except (OSError, UnicodeDecodeError) as err:
        reason = err.strerror if isinstance(err, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path}: secure configuration cannot be read ({reason}); "
                          "set DEVSTACK_GATE_SECURE_CONFIG or create it") from err
    except configparser.ParsingError as err:  # its own words would show the line, and so perhaps a secret
        number = err.lineno if isinstance(err, configparser.MissingSectionHeaderError) else err.errors[0][0]
        raise ConfigError(f"{path}: not an INI file: line {number}: expected key = value in a [section]") from err
    except configparser.Error as err:
        raise ConfigError(f"{path}: not an INI file: {one_line(err)}") from err
    check_private(path)
    _refuse_unknown(path, parser)
    node = _node_config(path, parser)
    check_private(node.ssh_key)
    return SecureConfig(
        path=path,
        jenkins=_jenkins_config(path, parser) if parser.has_section("jenkins") else None,
        node=node,
        image=_image_config(path, parser),
    )


def check_private(path: Path) -> None:
    """Warn if others than its owner can read a file of secrets; ConfigError if they can write it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return  # whoever needs the file says what is wrong with it
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{path}: can be written by others than its owner (mode {mode:o}); see that it is as you "
                          "wrote it, and chmod 600 it")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logging.warning("%s can be read by others than its owner (mode %o); chmod 600 it", path, mode)


def check_clouds_yaml() -> None:
    """Do that for clouds.yaml and secure.yaml, each in the first of the places where OpenStack's clients look."""
    folders = [Path(), Path("~/.config/openstack").expanduser(), Path("/etc/openstack")]
    for variable, name in (("OS_CLIENT_CONFIG_FILE", "clouds"), ("OS_CLIENT_SECURE_FILE", "secure")):
        named = [Path(os.environ[variable])] if os.environ.get(variable) else []
        places = named + [folder / f"{name}.{ending}" for folder in folders for ending in ("yaml", "yml", "json")]
        if found := next((path for path in places if path.is_file()), None):
            check_private(found)


def check_ours(folder: Path, what: str) -> None:
    """Raise ConfigError, which begins with `what`, for a folder that others than this account own or can write."""
    try:
        seen = folder.stat()
    except OSError:
        return  # whoever needs the folder says what is wrong with it
    if seen.st_uid != os.geteuid():
        raise ConfigError(f"{what}: {folder} belongs to somebody else; name a folder of your own")
    if seen.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ConfigError(f"{what}: {folder} can be written by others than you; see that nobody has put anything "
                          "there, and chmod go-w it")


def make_private(path: Path) -> None:
    """Take all rights on a file or folder of ours from others than its owner, as far as they have any."""
    with contextlib.suppress(OSError):  # another's, or gone
        mode = stat.S_IMODE(path.lstat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO) and not path.is_symlink():
            path.chmod(mode & stat.S_IRWXU)


def load_image_config() -> ImageConfig:
    """Return section [image] of the secure configuration, with all defaults where there is no such file."""
    path = secure_config_path()
    return load_secure_config().image if path.exists() else _image_config(path, configparser.ConfigParser())


def _refuse_unknown(path: Path, parser: configparser.ConfigParser) -> None:
    for section in parser.sections():
        if section not in SECURE_KEYS:
            raise ConfigError(f"{path}: unknown section [{section}]{nearest(section, SECURE_KEYS)}")
        for key in parser[section]:
            if key not in SECURE_KEYS[section]:
                raise ConfigError(f"{path}: [{section}] unknown key {key}{nearest(key, SECURE_KEYS[section])}")


def _secure_value(
    path: Path, parser: configparser.ConfigParser, section: str, key: str, default: str | None = None
) -> str:
    value = parser.get(section, key, fallback="") or default
    if not value:
        raise ConfigError(f"{path}: [{section}] {key} is missing")
    if not value.isprintable():
        raise ConfigError(f"{path}: [{section}] {key}: expected one line of text (an indented line goes on with the "
                          "one before it)")
    return value


def _jenkins_config(path: Path, parser: configparser.ConfigParser) -> JenkinsConfig:
    server, user, apikey, credentials_id = (
        _secure_value(path, parser, "jenkins", key) for key in ("server", "user", "apikey", "credentials_id"))
    if "@" in server.partition("://")[2].partition("/")[0] or "@" in server.partition("/")[0]:
        raise ConfigError(f"{path}: [jenkins] server: expected a URL without a login in it; [jenkins] user and apikey "
                          "are keys of their own")
    if not _is_url(server):
        raise ConfigError(f"{path}: [jenkins] server: expected an http(s) URL, got {server!r}")
    node_login = ""
    if parser.get("jenkins", "node_user", fallback="") or parser.get("jenkins", "node_apikey", fallback=""):
        node_login = ":".join(_secure_value(path, parser, "jenkins", key) for key in ("node_user", "node_apikey"))
    return JenkinsConfig(server, user, apikey, credentials_id, node_login)


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _node_config(path: Path, parser: configparser.ConfigParser) -> NodeConfig:
    user = _secure_value(path, parser, "node", "user", "jenkins")
    if not re.fullmatch(r"[a-z_][a-z0-9_-]*", user):
        raise ConfigError(f"{path}: [node] user: expected an account name, got {user!r}")
    home = "/root" if user == "root" else f"/home/{user}"
    remote_fs = _secure_value(path, parser, "node", "remote_fs", home)
    if not re.fullmatch(r"/[^:\n]+", remote_fs):
        raise ConfigError(f"{path}: [node] remote_fs: expected an absolute path on the nodes, got {remote_fs!r}")
    return NodeConfig(
        user=user,
        ssh_key=expanded(_secure_value(path, parser, "node", "ssh_key", DEFAULT_SSH_KEY), f"{path}: [node] ssh_key"),
        remote_fs=remote_fs,
    )


def _image_config(path: Path, parser: configparser.ConfigParser) -> ImageConfig:
    packages, branches, repo, modulepath, manifest = (
        parser.get("image", key, fallback="").strip() for key in SECURE_KEYS["image"])
    for package in packages.split():
        if not PACKAGE_NAME.fullmatch(package):
            raise ConfigError(f"{path}: [image] packages: {package!r} is no package's name")
    if (modulepath or manifest) and not repo:
        raise ConfigError(f"{path}: [image] puppet_repo is missing, which puppet_modulepath and "
                          "puppet_manifest belong to")
    return ImageConfig(
        packages=tuple(packages.split()), branches=tuple((branches or DEFAULT_BRANCHES).split()),
        puppet_repo=repo, puppet_modulepath=modulepath or "modules", puppet_manifest=manifest or "manifests/site.pp")


def require_ssh_key(config: SecureConfig) -> str:
    """Return the public key beside [node] ssh_key, one line; ConfigError when a file is missing or is no such key."""
    public = Path(f"{config.node.ssh_key}.pub")
    for path in (config.node.ssh_key, public):
        if not path.is_file():
            raise ConfigError(f"{config.path}: [node] ssh_key: there is no file {path}")
    try:
        key = public.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"{config.path}: [node] ssh_key: {public} cannot be read") from err
    if not is_public_key(key):
        raise ConfigError(f"{config.path}: [node] ssh_key: {public} holds no public key")
    return key


def is_public_key(text: str) -> bool:
    """Whether a text is one OpenSSH public key: type, base64, perhaps a comment."""
    return bool(re.fullmatch(r"(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [^\n]*)?", text))


def nearest(word: str, known: Collection[str]) -> str:
    """Return '; did you mean X?' for the nearest known word, or the list of what is known."""
    import difflib

    close = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(known)}"


# --- logging --------------------------------------------------------------------------------------------------------


class Log(logging.LoggerAdapter[logging.Logger]):
    """A logger that puts provider, image, machine id and node name before each message."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Give the record what is known of the subject."""
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
    # These repeat in tracebacks and warnings what the scripts report in their own words.
    for name in ("paramiko", "urllib3", "keystoneauth", "openstack", "novaclient"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


# --- a script's frame -----------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_CONFIG, f"{self.prog}: {message}; see {self.prog} --help\n")


def make_parser(docstring: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints the docstring as help, says what is wrong in one line, and knows -v and -q."""
    parser = _Parser(description=docstring, formatter_class=partial(
        argparse.RawDescriptionHelpFormatter, width=HELP_COLUMNS))
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("-v", "--verbose", dest="verbosity", action="store_const", const=1, default=0, help="log more")
    volume.add_argument("-q", "--quiet", dest="verbosity", action="store_const", const=-1, help="log warnings only")
    return parser


def run(body: Callable[[], int]) -> NoReturn:
    """Run a script's body and end the process with its exit code; errors become one line on stderr.

    The process ends at once, threads included, also on SIGINT (130) and SIGTERM (143): every step is recorded in vm.db
    before it is taken, so that the next run goes on from there. Tidying up after a signal has STOP_SECONDS.
    """
    try:
        code = _run_to_end(body)
    except (KeyboardInterrupt, StoppedError) as err:  # also one that comes while the end is being told
        _ignore_signals()
        code = EXIT_TERMINATED if isinstance(err, StoppedError) else EXIT_INTERRUPTED
        get_log().warning("stopped; %s", getattr(err, "left", "") or RECORDED)
    logging.shutdown()
    os._exit(code)


def _run_to_end(body: Callable[[], int]) -> int:
    """Run a script's body and return its exit code, with every error but a stop told in one line."""
    try:
        os.umask(0o077)  # vm.db, locks, logs and copies are for the owner only
        signal.signal(signal.SIGTERM, _raise_stopped)
        _limit_stopping()
        code = body()
        if sys.stdout:
            sys.stdout.flush()
    except GateError as err:
        _say(str(err))
        code = err.exit_code
    except BrokenPipeError:
        code = EXIT_FAILED  # whoever read our output has left
    except SystemExit as err:
        code = err.code if isinstance(err.code, int) else EXIT_FAILED  # argparse has said why
        sys.stdout.flush()
    except Exception as err:  # noqa: BLE001 - the last resort: one line, and where it was with -v
        get_log().debug("unforeseen", exc_info=True)
        _say(reason_of(err))
        code = EXIT_FAILED
    finally:
        _ignore_signals()
    return code


def clock_ahead(date: str | None) -> float | None:
    """Return how many seconds our clock is ahead of a server that sent this Date header, None if it tells no time."""
    import email.utils

    try:
        return time.time() - email.utils.parsedate_to_datetime(date or "").timestamp()
    except (TypeError, ValueError):
        return None


def one_line(err: BaseException) -> str:
    """Return an error's message without line breaks."""
    return plain(str(err))


def plain(text: str, length: int = TEXT_LENGTH) -> str:
    """Return a text from outside in one line of at most so many characters that can be shown and stored anywhere."""
    return printable(" ".join(text[:10 * length].split()))[:length].strip()


def printable(line: str) -> str:
    """Return a line without what steers a terminal, and without the logins of URLs."""
    if "://" in line:
        line = re.sub(r"://[^/\s]*@", "://", line)
    return line if line.isprintable() else "".join(char if char.isprintable() else "?" for char in line.expandtabs())


def innermost(text: str) -> str:
    """Return a connection error's text without the layer that names the call again and hides the reason at its end."""
    before, found, cause = text.partition("(Caused by ")
    layer = max(before.find("HTTPConnectionPool("), before.find("HTTPSConnectionPool("))
    if not found or layer < 0:
        return text
    call = before[:layer] if layer <= CALL_LENGTH else f"{before[:CALL_LENGTH]}...: "  # it holds the address
    return call + cause.removesuffix(")")


def shown(text: str) -> str:
    """Return a message of several lines, each printable and of a length that can be read."""
    lines = [printable(line[:LINE_LENGTH]) + "..." * (len(line) > LINE_LENGTH) for line in text.splitlines()]
    return "\n".join(lines)


def _ignore_signals() -> None:
    """Let nothing interrupt the last words."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _say(message: str) -> None:
    """Write a script's last words in one piece, since scripts of several providers share a console."""
    sys.stderr.write(f"{Path(sys.argv[0]).name}: {shown(message)}\n")


def _raise_stopped(_signum: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the first one is obeyed; tidying up is not to be interrupted
    raise StoppedError


def _limit_stopping() -> None:
    """See that the process ends soon after a signal, whatever the main thread waits for.

    It may wait in a library that does not let Python handle signals, such as SQLite for a lock, or for a cloud that
    does not answer while it tidies up. The interpreter writes the signal's number into a pipe at once. The kernel may
    give the signal to another thread, and then nothing wakes a main thread that waits for a lock: it is nudged. Where
    the signal came while an object was being finalized, Python drops what its handler raises; then it is sent again.
    """
    import threading

    dropped, main_thread = threading.Event(), threading.get_ident()

    def drop(unraisable: sys.UnraisableHookArgs) -> None:
        if issubclass(unraisable.exc_type, (KeyboardInterrupt, StoppedError)):
            signal.signal(signal.SIGTERM, _raise_stopped)
            dropped.set()
        else:
            sys.__unraisablehook__(unraisable)

    sys.unraisablehook = drop
    signal.signal(NUDGE, lambda _signum, _frame: None)
    awake, note = os.pipe()
    os.set_blocking(note, False)
    signal.set_wakeup_fd(note, warn_on_full_buffer=False)

    def watch() -> None:
        number = os.read(awake, 1)[0]
        while number not in STOPPING:
            number = os.read(awake, 1)[0]
        deadline = time.monotonic() + STOP_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            signal.pthread_kill(main_thread, NUDGE)
            if dropped.wait(min(left, NUDGE_SECONDS)):
                dropped.clear()
                time.sleep(0.01)
                signal.pthread_kill(main_thread, number)
        get_log().warning("stopped without tidying up, which took more than %d s; %s", STOP_SECONDS, RECORDED)
        os._exit(STOPPING[number])

    threading.Thread(target=watch, name="stopping", daemon=True).start()


@contextlib.contextmanager
def telling(left: Callable[[], str]) -> Iterator[None]:
    """Let a run that gets SIGTERM or SIGINT meanwhile say what it leaves to the next one."""
    try:
        yield
    except (KeyboardInterrupt, StoppedError) as err:
        err.left = left()  # type: ignore[union-attr]
        raise


def some(names: Sequence[str]) -> str:
    """Return names for a message, not all of very many."""
    return ", ".join(names[:NAMES_SHOWN]) + f" and {len(names) - NAMES_SHOWN} more" * (len(names) > NAMES_SHOWN)


def run_each(providers: Sequence[str], argv: Sequence[str] | None) -> int:
    """Run this script once for each provider, side by side, and return one exit code for all.

    Each provider has a process of its own, so that one which hangs or fails never stops the others. argv is the
    command line (None: the process's) whose first word `all` stands for a provider. Returns 0 if all did, 2 if all were
    wrong use or configuration, else 1.
    """
    import subprocess

    if not providers:
        raise ConfigError("all: vm.db has no providers yet; run: vmdatabase.py load FILE")
    words = list(sys.argv[1:] if argv is None else argv)
    place = words.index("all")
    children = [
        subprocess.Popen([sys.executable, sys.argv[0], *words[:place], name, *words[place + 1:]]) for name in providers
    ]
    try:
        codes = [child.wait() for child in children]
    except BaseException:
        for child in children:
            child.terminate()
        for child in children:
            child.wait()  # each ends soon, and says what it leaves
        raise
    if len(set(codes)) == 1:
        return codes[0] if codes[0] in (EXIT_OK, EXIT_CONFIG) else EXIT_FAILED
    return EXIT_FAILED


class Workers:
    """Threads for calls to the outside, so many at once; whatever goes wrong in one comes out as a GateError."""

    def __init__(self, count: int) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._executor = ThreadPoolExecutor(count)

    def submit(self, call: Callable[..., T], *arguments: Any, **keywords: Any) -> Future[T]:
        """Have a call made by a worker."""
        return self._executor.submit(guarded, call, *arguments, **keywords)


def guarded(call: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
    """Make a call for one item of many; an error that nobody foresaw is this item's failure, not that of the rest."""
    try:
        return call(*arguments, **keywords)
    except GateError:
        raise
    except Exception as err:  # the boundary of one item
        get_log().debug("unforeseen", exc_info=True)
        raise GateError(reason_of(err)) from err


def reason_of(err: Exception) -> str:
    """Return in one line why something failed that no rule foresees; what this host has no more of is no riddle."""
    if isinstance(err, MemoryError):
        return "this host, or the limit of this process, has no more memory"
    if isinstance(err, RuntimeError) and "start new thread" in str(err):
        return "can't start a new thread: this host, or the limit of this account's processes, allows no more"
    if isinstance(err, OSError) and err.errno in EXHAUSTED:
        return f"{err.filename or 'standard output, or a file'}: {err.strerror}{EXHAUSTED[err.errno]}"
    return f"unforeseen {type(err).__name__}: {one_line(err)} (-v shows where)"


@contextlib.contextmanager
def file_lock(path: Path, wait_seconds: float, name: str = "") -> Iterator[bool]:
    """Hold an exclusive lock on a file, and yield whether it was had within wait_seconds.

    With a name it is a lock of that name only, of which one file has as many as there are names. The kernel drops it
    with the process, however that ends; the file itself stays. File and folder are for their owner only: who can open
    the file can hold the lock.
    """
    deadline = time.monotonic() + wait_seconds
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(path.parent)
        stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600))
    except OSError as err:
        raise GateError(f"{path}: cannot be opened as a lock ({err.strerror})") from err
    with stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise GateError(f"{path}: cannot be opened as a lock (it is no file)")
        make_private(path)
        while not (mine := _try_lock(stream.fileno(), name)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield mine


class Holder(NamedTuple):
    """The process that holds a lock, and since when it runs (Unix seconds)."""

    pid: int
    since: float

    def __str__(self) -> str:
        return f"process {self.pid}, since {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(self.since))}"


def lock_holder(path: Path) -> Holder | None:
    """Return who holds the lock of a whole file, as the kernel has it; None if that is nobody who is seen from here."""
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
    after_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")  # see proc_pid_stat(5): the 22nd, of which 2 are cut off
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - after_boot)


def _try_lock(descriptor: int, name: str) -> bool:
    import struct
    import zlib

    try:
        if name:  # the byte whose number stands for the name, which need not be there
            wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, zlib.crc32(name.encode()), 1, 0)
            fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, wanted)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # as POSIX allows both for locks
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
    """Return "name: " of the innermost phase that an error ended, empty if there was none or the message says so."""
    name = getattr(err, "phase", "")
    return f"{name}: " if name and name not in str(err) else ""
