"""ssh to nodes: log in with the one key, pin the host key, run named steps.

Clouds reuse addresses, so neither the user's known_hosts nor an ssh agent plays a part: the host key seen at the first
login is kept with the machine and required from then on.
"""

from __future__ import annotations

import copy
import errno
import functools
import math
import re
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gateconfig import NodeConfig
from gateprocess import TIMED_OUT, ConfigError, GateError, get_log, plain, printable

if TYPE_CHECKING:
    import paramiko

CONNECT_SECONDS = 10  # for the TCP connection; in a first try also for the whole login, and for the first command
LOGIN_SECONDS = 120  # for each of these if there is one try only; sshd itself gives a login as much
SLOWER = 3  # factor for the limit of the next try after one that was too slow
SLOW_SHARE = 0.9  # share of its time that a try must have used to count as too slow
SETTLE_SECONDS = 120  # how long to wait until cloud-init is done with the host keys
STEP_SECONDS = 60
LATE_SECONDS = 2  # after a step's deadline, until its connection is cut: that ends what hangs in the library
OUTPUT_BYTES = 16 << 20  # of a step; an image's steps print some 100 KB each
WELCOME_BYTES = 4 << 20  # the same at the ssh test of a new machine
LOGIN_BYTES = 1 << 20  # of a login
KILL_SECONDS = 10  # between asking an overdue command to end and killing it
BACKGROUND_SECONDS = 5  # how long to read on from what an ended command left running
LINE_LENGTH = 500  # of output, in the error
KEEPALIVE_SECONDS = 30  # a step may be silent for longer than firewalls remember a connection
PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 3.0)  # between tries; the last one repeats
OUTPUT_LINES = 20  # of a failed step, in the error

Key: TypeAlias = "paramiko.PKey | Path"


class NotYetError(GateError):
    """No login to the machine is possible now; while it boots, another try follows."""


class HostKeyError(GateError):
    """Another machine answers at the address: its host key is not the kept one."""


class StepError(GateError):
    """A step on the machine failed or took too long; the message holds its name, status and last lines of output."""


class TooSlowError(NotYetError, StepError):
    """The machine answered, but not within the time of this try; a longer try may succeed."""


class ReadyScriptError(GateError):
    """The ready-script of an image type failed or took too long; it is not run again."""


@dataclass(frozen=True)
class Login:
    """Address and user of a login; host_key is "type base64", None before the first contact."""

    address: str
    port: int
    user: str
    key: Key
    host_key: str | None = None

    @classmethod
    def of_machine(cls, machine: Any, node: NodeConfig) -> Login:
        """Return the login of a machine's row."""
        if not machine.ip:
            raise GateError(f"{machine.name}: has no address yet")
        port = int(machine.base_image.provider.ssh_port)
        return cls(machine.ip, port, machine.user or node.user, node.ssh_key, machine.host_key)


@dataclass(frozen=True)
class Limits:
    """The limits of a session: seconds for login and start of a command, its end, and bytes of output per step."""

    patience: float = LOGIN_SECONDS  # seconds
    deadline: float = math.inf  # monotonic
    most: int = OUTPUT_BYTES


@dataclass(frozen=True)
class Outcome:
    """The result of a step: exit status and output, standard error included."""

    status: int
    output: str


class _Wire(socket.socket):
    """A connection that ends itself at a moment of the monotonic clock, or if it brings too many bytes.

    The library calls recv or send at least ten times a second, whatever it waits for, so none of its waits outlasts the
    connection.
    """

    def __init__(self, connected: socket.socket, seconds: float, most: int) -> None:
        super().__init__(fileno=connected.detach())
        self.why = ""  # it has ended
        self.limit(time.monotonic() + seconds, most)

    def limit(self, until: float, most: int) -> None:
        """Set the time when the connection ends, and how many bytes may come from now on."""
        self._until, self._left, self._most = until, most, most

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Read a little at a time: the other side may announce a packet of gigabytes."""
        self._end_in_time()
        data = super().recv(min(size, 65536), flags)
        self._left -= len(data)
        if self._left < 0:
            self._end(f"more than {self._most >> 20} MB came")
        return data

    def send(self, data: Any, flags: int = 0) -> int:
        """Send as much as possible now."""
        self._end_in_time()
        return super().send(data, flags)

    def _end_in_time(self) -> None:
        if time.monotonic() > self._until:
            self._end("its time is over")

    def _end(self, why: str) -> None:
        self.why = self.why or why
        raise ConnectionAbortedError(errno.ECONNABORTED, self.why)


class Session:
    """An open login that runs steps one after the other; no step goes on after the deadline."""

    def __init__(self, client: paramiko.SSHClient, wire: _Wire, login: Login, limits: Limits) -> None:
        self._client = client
        self._wire = wire
        self.login = login
        self._limits = limits
        self.began = time.monotonic()

    def run(
        self, name: str, words: Sequence[str], seconds: float = STEP_SECONDS, stdin: str | bytes = ""
    ) -> str:
        """Run a command as a named step and return its output; raises StepError if it fails or takes longer."""
        return self._output(name, self.attempt(name, words, seconds, stdin))

    def run_as_root(self, name: str, words: Sequence[str], seconds: int, stdin: str | bytes = "") -> str:
        """Run a command as root; on timeout it is killed on the machine together with its children."""
        limited = ["timeout", "-k", str(KILL_SECONDS), str(seconds), *words]
        outcome = self.attempt(name, self.as_root(limited), seconds + 2 * KILL_SECONDS, stdin)
        if outcome.status in TIMED_OUT:
            raise StepError(f"{self.login.address}: {name}: not done after {seconds} s{_tail(outcome.output)}")
        return self._output(name, outcome)

    def _output(self, name: str, outcome: Outcome) -> str:
        if outcome.status:
            raise StepError(f"{self.login.address}: {name}: exit status {outcome.status}{_tail(outcome.output)}")
        return outcome.output

    def attempt(
        self, name: str, words: Sequence[str], seconds: float = STEP_SECONDS, stdin: str | bytes = ""
    ) -> Outcome:
        """Run a command and return its outcome, whatever its status.

        Raises StepError if it takes longer from request to exit status, prints more than the session allows, or is cut
        off.
        """
        import paramiko

        output = bytearray()
        seconds = max(0.0, min(seconds, self._limits.deadline - time.monotonic()))
        deadline = time.monotonic() + seconds
        self._wire.limit(deadline + LATE_SECONDS, self._limits.most)
        channel = self._channel(name, seconds)
        lost = "connection lost"
        try:
            with channel:
                _start(channel, words, stdin, deadline)
                for chunk in _chunks(channel, deadline):
                    output += chunk
                status = channel.recv_exit_status()
        except TimeoutError as err:
            raise self._broken(name, f"not done after {seconds:.0f} s", output) from err
        except (paramiko.SSHException, EOFError, OSError) as err:
            late = time.monotonic() > deadline
            lost = f"not done after {seconds:.0f} s" if late else self._wire.why or f"{lost} ({_reason(err)})"
            raise self._broken(name, lost, output) from err
        if status < 0:
            raise self._broken(name, self._wire.why or lost, output)
        return Outcome(status, output.decode(errors="replace"))

    def _broken(self, name: str, why: str, output: bytearray) -> StepError:
        return StepError(f"{self.login.address}: {name}: {why}{_tail(output.decode(errors='replace'))}")

    def _channel(self, name: str, seconds: float) -> paramiko.Channel:
        """Open a channel for a command; if a login is slow, it is often slow here (PAM's session)."""
        import paramiko

        began = time.monotonic()
        patience = self._limits.patience
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError("the connection is closed")
            return transport.open_session(timeout=min(patience, seconds))
        except (paramiko.SSHException, EOFError, OSError) as err:
            if time.monotonic() - began > SLOW_SHARE * patience:
                raise TooSlowError(f"{self.login.address}: {name}: no session within {patience:.0f} s") from err
            why = self._wire.why or f"connection lost ({_reason(err)})"
            raise StepError(f"{self.login.address}: {name}: {why}") from err

    def as_root(self, words: Sequence[str]) -> list[str]:
        """Return the command with sudo before it, unless the login is that of root."""
        return list(words) if self.login.user == "root" else ["sudo", "-n", *words]

    def put(self, name: str, path: str, text: str | bytes, mode: str = "0644") -> None:
        """Write a file on the machine as root, in a named step, and make its folder."""
        script = 'umask 022; mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run(name, self.as_root(["sh", "-c", script, "sh", path, mode]), stdin=text)


def _start(channel: paramiko.Channel, words: Sequence[str], stdin: str | bytes, deadline: float) -> None:
    """Start a command and send all of its input; raises TimeoutError after the deadline."""
    channel.set_combine_stderr(True)
    channel.exec_command(shlex.join(words))
    text = stdin.encode() if isinstance(stdin, str) else stdin
    sent = 0
    while sent < len(text):
        channel.settimeout(max(0.1, deadline - time.monotonic()))
        sent += channel.send(text[sent:sent + 65536])
        if time.monotonic() > deadline:
            raise TimeoutError
    channel.shutdown_write()
    channel.settimeout(1.0)


def _chunks(channel: paramiko.Channel, deadline: float) -> Iterator[bytes]:
    """Yield output until the command closes it or has ended and is silent; raises TimeoutError after the deadline."""
    ended = None
    while True:
        if ended is None and channel.exit_status_ready():
            ended = time.monotonic()
        if ended is not None and time.monotonic() > ended + BACKGROUND_SECONDS:
            return
        if time.monotonic() > deadline:
            raise TimeoutError
        try:
            chunk = channel.recv(65536)
        except TimeoutError:
            if channel.exit_status_ready():
                return
            continue
        if not chunk:
            if not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            return
        yield chunk


def _tail(output: str) -> str:
    lines = output.rstrip().splitlines()[-OUTPUT_LINES:]
    return "".join(f"\n    {printable(line[:LINE_LENGTH])}{'...' * (len(line) > LINE_LENGTH)}" for line in lines)


def _reason(err: BaseException) -> str:
    return plain(str(err)) or type(err).__name__


# --- login ----------------------------------------------------------------------------------------------------------


@contextmanager
def session(
    login: Login, patience: float = LOGIN_SECONDS, deadline: float = math.inf, most: int = OUTPUT_BYTES
) -> Iterator[Session]:
    """Log in once and yield the session, whose login carries the host key that was seen.

    patience: the limit in seconds for the whole login, connection included, and again for the start of a command.
    Nothing goes on after the deadline, on the monotonic clock; most: how many bytes a step may print. A certificate
    beside the private key is tried first, then the key alone, as OpenSSH does. Raises NotYetError for everything that a
    booting machine does (refusal, reset, no banner, key not yet installed, an address where another machine answers),
    TooSlowError if it may only need more time, HostKeyError if a host key was kept and another one is shown, and
    ConfigError for a private key that cannot be read.
    """
    limits = Limits(patience, deadline, most)
    client, wire = _connected(login, limits)
    try:
        transport = client.get_transport()
        if transport is None:
            raise NotYetError(f"{login.user}@{login.address}: no ssh (the connection is closed)")
        transport.set_keepalive(KEEPALIVE_SECONDS)
        seen = transport.get_remote_server_key()
        wire.limit(deadline, most)
        yield Session(client, wire, replace(login, host_key=f"{seen.get_name()} {seen.get_base64()}"), limits)
    finally:
        client.close()


def _connected(login: Login, limits: Limits) -> tuple[paramiko.SSHClient, _Wire]:
    """Return a client, logged in with the first of our identities that the machine accepts, and its connection.

    Each identity has the full time of a login.
    """
    import paramiko

    identities = _identities(load_key(login.key))
    for identity in identities:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(_pinned(login.host_key))
        seconds = max(0.1, min(limits.patience, limits.deadline - time.monotonic()))
        try:
            with _explained(login, seconds):
                wire = _open_socket(login, seconds)
                client.connect(
                    login.address, login.port, login.user, pkey=identity, allow_agent=False, look_for_keys=False,
                    sock=wire, timeout=seconds, banner_timeout=seconds, auth_timeout=seconds)
        except _LoginRefusedError:
            client.close()
            if identity is identities[-1]:
                raise
        except BaseException:
            client.close()
            raise
        else:
            return client, wire
    raise NotYetError(f"{login.user}@{login.address}: no key")  # not reached: there is always one


def _open_socket(login: Login, seconds: float) -> _Wire:
    """Connect for a login that may take `seconds`."""
    until = time.monotonic() + seconds
    try:
        connected = socket.create_connection((login.address, login.port), min(seconds, CONNECT_SECONDS))
        return _Wire(connected, until - time.monotonic(), LOGIN_BYTES)
    except OSError as err:
        raise NotYetError(f"{login.user}@{login.address}: no ssh (port {login.port}: {_reason(err)})") from err


def _identities(key: paramiko.PKey) -> list[paramiko.PKey]:
    """Return the key with its certificate, if it has one, then the key alone."""
    if key.public_blob is None:
        return [key]
    alone = copy.copy(key)
    alone.public_blob = None
    return [key, alone]


class _LoginRefusedError(NotYetError):
    """The machine does not accept this key now, and perhaps never."""


def _pinned(host_key: str | None) -> paramiko.MissingHostKeyPolicy:
    import paramiko

    class Pinned(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, _client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
            """Accept any key at first contact, later only the kept one."""
            if host_key not in (None, f"{key.get_name()} {key.get_base64()}"):
                raise HostKeyError(f"{hostname}: shows another host key ({key.get_name()} {key.fingerprint}) "
                                   "than at first contact; the login is refused")

    return Pinned()


@contextmanager
def _explained(login: Login, seconds: float) -> Iterator[None]:
    import paramiko

    began = time.monotonic()
    try:
        yield
    except (paramiko.SSHException, EOFError, OSError) as err:
        refused = isinstance(err, paramiko.AuthenticationException)
        text = f"{login.user}@{login.address}: {'login refused' if refused else 'no ssh'} ({_reason(err)})"
        if seconds > CONNECT_SECONDS * SLOW_SHARE and time.monotonic() - began > SLOW_SHARE * seconds:
            raise TooSlowError(f"{login.user}@{login.address}: no login within {seconds:.0f} s "
                               f"({_reason(err)})") from err
        raise (_LoginRefusedError if refused else NotYetError)(text) from err


@functools.cache
def load_key(key: Key) -> paramiko.PKey:
    """Return the private key in a file, with a certificate beside it (KEY-cert.pub); ConfigError if there is no key."""
    import paramiko

    if isinstance(key, paramiko.PKey):
        return key
    try:
        return paramiko.PKey.from_path(key)
    except (OSError, ValueError, TypeError, paramiko.SSHException) as err:
        certificate = key.with_name(f"{key.name}-cert.pub")
        alone = _key_alone(key) if certificate.exists() else None
        if alone is None:
            raise ConfigError(f"[node] ssh_key: {key} is no private key without a passphrase ({_reason(err)})") from err
        get_log().warning("%s cannot be used as a certificate (%s); the key goes without it", certificate, _reason(err))
        return alone


def _key_alone(path: Path) -> paramiko.PKey | None:
    """Return the private key in a file, whatever is beside it; None if there is none."""
    import paramiko

    for kind in (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey):
        with suppress(OSError, ValueError, TypeError, paramiko.SSHException):
            return kind.from_private_key_file(str(path))
    return None


def check_key_pair(path: Path, public_key: str) -> None:
    """Raise ConfigError unless the private key can be used and the public key belongs to it."""
    if load_key(path).get_base64() != public_key.split()[1]:
        raise ConfigError(f"[node] ssh_key: {path}.pub is not the public half of {path}")


def next_patience(patience: float, outcome: Exception) -> float:
    """Return how many seconds the next try may take after one with a limit of `patience` ended with this error."""
    return patience * SLOWER if isinstance(outcome, TooSlowError) else patience


def wait_for_session(logins: Sequence[Login], deadline: float, test: Callable[[Session], bool]) -> Login:
    """Try the logins in turn until one passes the test; return it with its host key.

    deadline is on the monotonic clock. A login that is too slow gets more time in the next turn. Raises NotYetError
    with the last failure.
    """
    tries = 0
    last = NotYetError("no time to log in")
    patience = dict.fromkeys(logins, float(CONNECT_SECONDS))
    while True:
        for login in logins:
            left = deadline - time.monotonic()
            if left <= 0:
                raise last
            try:
                with session(login, min(patience[login], left), deadline) as connection:
                    if test(connection):
                        return connection.login
                    last = NotYetError(f"{login.user}@{login.address}: let in, but cannot run commands")
            except (NotYetError, StepError) as err:
                if not tries or left >= patience[login]:  # a try in the last moments tells less
                    last = NotYetError(str(err))
                patience[login] = next_patience(patience[login], err)
        time.sleep(min(PAUSES_SECONDS[min(tries, len(PAUSES_SECONDS) - 1)], max(0.0, deadline - time.monotonic())))
        tries += 1


WRITE_MARKS = """umask 022; mkdir -p /etc/devstack-gate && cat > /etc/devstack-gate/node || exit 1
chmod 0644 /etc/devstack-gate/node"""
# Prints how many seconds ago cloud-init finished with the host keys; "busy" before; nothing if it is not in use.
CLOUD_INIT = """[ -d /run/cloud-init ] && [ ! -e /run/cloud-init/disabled ] || exit 0
for done in /var/lib/cloud/instance/sem/config_ssh /run/cloud-init/result.json; do
    [ ! -e "$done" ] || { echo $(( $(date +%s) - $(stat -c %Y "$done") )); exit 0; }
done
echo busy"""


def settle(connection: Session, until: float) -> None:
    """Raise NotYetError if cloud-init may still replace host keys, or has done so since the session began.

    The host key that was seen is then not the one to keep. After `until`, on the monotonic clock, cloud-init no longer
    matters.
    """
    outcome = connection.attempt("look at cloud-init", connection.as_root(["sh", "-c", CLOUD_INIT]))
    _refuse_unsettled(connection, outcome.output.strip(), until)


def _refuse_unsettled(connection: Session, text: str, until: float) -> None:
    """Raise NotYetError as settle does, given the output of CLOUD_INIT."""
    if time.monotonic() > until:
        return
    where = f"{connection.login.user}@{connection.login.address}"
    if text == "busy":
        raise NotYetError(f"{where}: cloud-init is still at work, and may replace the host keys")
    if re.fullmatch("[0-9]{1,18}", text) and int(text) <= time.monotonic() - connection.began + 1:
        raise NotYetError(f"{where}: cloud-init has replaced the host keys a moment ago")


def settle_until(deadline: float) -> float:
    """Return until when to wait for cloud-init on a machine with this deadline, both on the monotonic clock."""
    now = time.monotonic()
    return now + min(SETTLE_SECONDS, (deadline - now) / 2)


@dataclass(frozen=True)
class Welcome:
    """What the ssh test leaves on a new machine.

    marks go into /etc/devstack-gate/node; jenkins_login, if any, into the account's ~/.devstack-gate-jenkins, readable
    by that account only; group_key, a public key, lets a subnode's lead log in; ready_script, if any, runs last, as
    root.
    """

    marks: str
    jenkins_login: str = ""
    ready_script: bytes | None = None
    group_key: str = ""


GROUP_KEY = "devstack-gate-group"  # the comment of a group's key; a key of an earlier run is removed
LET_GROUP_IN = f"""umask 077; mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys || exit 1
grep -v ' {GROUP_KEY}$' ~/.ssh/authorized_keys > ~/.ssh/authorized_keys.new; cat >> ~/.ssh/authorized_keys.new &&
mv -f ~/.ssh/authorized_keys.new ~/.ssh/authorized_keys"""


RUN_READY_SCRIPT = """file=/var/lib/devstack-gate/ready-script; mkdir -p /var/lib/devstack-gate
(umask 077; cat > "$file") && chmod 700 "$file" || exit 1
umask 022; "$file" < /dev/null; status=$?; rm -f "$file"; exit $status"""


def welcome(login: Login, gift: Welcome, deadline: float, patience: float, settled_by: float) -> Login:
    """Log in to a new machine once, write its marks and logins there, and return the login with its host key.

    This is the ssh test: it proves the login, sudo and a writable disk. deadline and settled_by are on the monotonic
    clock (settled_by is the `until` of settle); patience: how many seconds the login may take. Raises NotYetError if
    another try may succeed, TooSlowError if one with more patience may, ReadyScriptError if the script failed.
    """
    deadline = max(deadline, time.monotonic() + 1)
    try:
        with session(login, min(patience, deadline - time.monotonic()), deadline, WELCOME_BYTES) as connection:
            words = connection.as_root(["sh", "-c", f"{WRITE_MARKS}\n{CLOUD_INIT}"])
            seen = connection.run("write /etc/devstack-gate/node", words, stdin=gift.marks)
            _refuse_unsettled(connection, seen.strip(), settled_by)
            if gift.jenkins_login:
                script = "umask 077; rm -f ~/.devstack-gate-jenkins && cat > ~/.devstack-gate-jenkins"
                connection.run("write ~/.devstack-gate-jenkins", ["sh", "-c", script], stdin=f"{gift.jenkins_login}\n")
            if gift.group_key:
                connection.run("let the lead in", ["sh", "-c", LET_GROUP_IN], stdin=f"{gift.group_key}\n")
            if gift.ready_script is not None:
                run_ready_script(connection, gift.ready_script, deadline)
            return connection.login
    except TooSlowError:
        raise
    except StepError as err:
        raise NotYetError(str(err)) from err


def answers(login: Login, seconds: float = LOGIN_SECONDS) -> bool:
    """Return whether ssh answers at all, even if it refuses the login or shows another host key: the network works."""
    import paramiko

    try:
        with session(login, min(seconds, LOGIN_SECONDS)):
            return True
    except NotYetError as err:
        return isinstance(err.__cause__, paramiko.AuthenticationException)
    except GateError:
        return True


def run_ready_script(connection: Session, script: bytes, deadline: float) -> None:
    """Run the ready-script as root, until the deadline (monotonic clock) at most; ReadyScriptError if it fails."""
    seconds = max(1, int(deadline - time.monotonic()))
    try:
        connection.run_as_root("ready-script", ["sh", "-c", RUN_READY_SCRIPT], seconds, script)
    except StepError as err:
        raise ReadyScriptError(str(err)) from err


# Overwrites the file before removing it; anything else than a plain file at its place has never been ours.
WIPE_JENKINS_LOGIN = ("remove ~/.devstack-gate-jenkins", ["sh", "-c", """file=~/.devstack-gate-jenkins
if [ ! -f "$file" ] || [ -L "$file" ]; then exit 0; fi
dd if=/dev/zero of="$file" bs=4096 count=1 conv=notrunc,fsync 2> /dev/null; rm -f -- "$file"
"""])


def wipe_jenkins_login(login: Login) -> None:
    """Remove the login for Jenkins from a machine before a person gets it; raises GateError if that fails."""
    with session(login, deadline=time.monotonic() + LOGIN_SECONDS) as connection:
        connection.run(*WIPE_JENKINS_LOGIN)


# A key after a last line without a newline would be part of that line.
LET_PERSON_IN = """umask 077; file=~/.ssh/authorized_keys; mkdir -p ~/.ssh && touch "$file" || exit 1
if [ -n "$(tail -c 1 "$file")" ]; then echo >> "$file" || exit 1; fi
grep -qxF -- "$1" "$file" || printf '%s\\n' "$1" >> "$file"
"""


def authorize(login: Login, public_key: str, seconds: float = LOGIN_SECONDS) -> None:
    """Let a person in within the time limit: wipe the login for Jenkins, add a public key to authorized_keys once."""
    with session(login, min(seconds, LOGIN_SECONDS), time.monotonic() + seconds) as connection:
        connection.run(*WIPE_JENKINS_LOGIN)
        connection.run("add the public key", ["sh", "-c", LET_PERSON_IN, "sh", public_key])
    get_log(node=login.address).info("let in: %s", " ".join(public_key.split()[2:]) or public_key[:40])
