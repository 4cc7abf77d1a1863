"""ssh to nodes: log in with the one key, pin the host key, run named steps.

Addresses in clouds are used again and again, so neither the user's known_hosts nor an ssh agent plays a part: the host
key seen at the first login is kept with the machine and required from then on.
"""

from __future__ import annotations

import functools
import shlex
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from gateconfig import TIMED_OUT, ConfigError, GateError, NodeConfig, get_log

if TYPE_CHECKING:
    import paramiko

CONNECT_SECONDS = 10  # for one try: the TCP connection, the banner, the login, each
STEP_SECONDS = 60
KILL_SECONDS = 10  # what a command that takes too long is given to end before it is killed
BACKGROUND_SECONDS = 5  # how long we listen on to what a command that has ended left running
LINE_LENGTH = 500  # of output, in the error
KEEPALIVE_SECONDS = 30  # a step may be silent for longer than firewalls remember a connection
PAUSES_SECONDS = (0.2, 0.5, 1.0, 2.0, 3.0)  # between tries; the last one again and again
OUTPUT_LINES = 20  # of a failed step, in the error

Key: TypeAlias = "paramiko.PKey | Path"


class NotYetError(GateError):
    """The machine could not be logged in to now; a machine that boots is tried again."""


class HostKeyError(GateError):
    """Another machine answers at the address: its host key is not the one that was kept."""


class StepError(GateError):
    """A step on the machine failed or took too long; the message holds its name, status and last lines of output."""


@dataclass(frozen=True)
class Login:
    """Where and as whom to log in; host_key is "type base64", None before the first contact."""

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
class Outcome:
    """What a step gave back: exit status and output, standard error included."""

    status: int
    output: str


class Session:
    """A login that stands; runs steps one after the other."""

    def __init__(self, client: paramiko.SSHClient, login: Login) -> None:
        self._client = client
        self.login = login

    def run(
        self, name: str, words: Sequence[str], seconds: float = STEP_SECONDS, stdin: str | bytes = ""
    ) -> str:
        """Run a command as a named step and return its output; StepError if it fails or takes longer."""
        return self._output(name, self.attempt(name, words, seconds, stdin))

    def run_as_root(self, name: str, words: Sequence[str], seconds: int, stdin: str | bytes = "") -> str:
        """Run a command of root's as a named step, which is ended there, with all of its own, when it takes longer."""
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
        """Run a command and return its outcome, whatever its status; StepError if it takes longer or is cut off."""
        import paramiko

        deadline = time.monotonic() + seconds
        output = bytearray()
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError("the connection is closed")
            channel = transport.open_session(timeout=min(seconds, CONNECT_SECONDS))
            with channel:
                channel.set_combine_stderr(True)
                channel.settimeout(seconds)
                channel.exec_command(shlex.join(words))
                channel.sendall(stdin.encode() if isinstance(stdin, str) else stdin)
                channel.shutdown_write()
                channel.settimeout(1.0)
                for chunk in _chunks(channel, deadline):
                    output += chunk
                status = channel.recv_exit_status()
        except TimeoutError as err:
            text = _tail(output.decode(errors="replace"))
            raise StepError(f"{self.login.address}: {name}: not done after {seconds:.0f} s{text}") from err
        except (paramiko.SSHException, EOFError, OSError) as err:
            text = _tail(output.decode(errors="replace"))
            raise StepError(f"{self.login.address}: {name}: connection lost ({_reason(err)}){text}") from err
        if status < 0:
            raise StepError(f"{self.login.address}: {name}: connection lost{_tail(output.decode(errors='replace'))}")
        return Outcome(status, output.decode(errors="replace"))

    def as_root(self, words: Sequence[str]) -> list[str]:
        """Return the command with sudo before it, unless the login is root's."""
        return list(words) if self.login.user == "root" else ["sudo", "-n", *words]

    def put(self, name: str, path: str, text: str | bytes, mode: str = "0644") -> None:
        """Write a file of root's on the machine as a named step, its folder with it."""
        script = 'umask 022; mkdir -p -- "$(dirname -- "$1")" && cat > "$1" && chmod "$2" "$1"'
        self.run(name, self.as_root(["sh", "-c", script, "sh", path, mode]), stdin=text)


def _chunks(channel: paramiko.Channel, deadline: float) -> Iterator[bytes]:
    """Yield output until the command closes it, or has ended and is silent; TimeoutError after the deadline."""
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
    return "".join(f"\n    {line if len(line) <= LINE_LENGTH else f'{line[:LINE_LENGTH]}...'}" for line in lines)


def _reason(err: BaseException) -> str:
    return str(err) or type(err).__name__


# --- login ----------------------------------------------------------------------------------------------------------


@contextmanager
def session(login: Login, seconds: float = CONNECT_SECONDS) -> Iterator[Session]:
    """Log in once and yield the session, whose login carries the host key that was seen.

    seconds is the limit for the connection, the banner and the login, each. Raises NotYetError for all that a booting
    machine does (refusal, reset, no banner, key not yet installed, an address where another machine answers),
    HostKeyError if a host key was kept and another one is shown, and ConfigError for a private key that cannot be read.
    """
    import paramiko

    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(_pinned(login.host_key))
    try:
        with _explained(login):
            client.connect(
                login.address, login.port, login.user, pkey=load_key(login.key),
                allow_agent=False, look_for_keys=False,
                timeout=seconds, banner_timeout=seconds, auth_timeout=seconds,
            )
            transport = client.get_transport()
            if transport is None:
                raise EOFError("the connection is closed")
            transport.set_keepalive(KEEPALIVE_SECONDS)
            seen = transport.get_remote_server_key()
        yield Session(client, replace(login, host_key=f"{seen.get_name()} {seen.get_base64()}"))
    finally:
        client.close()


def _pinned(host_key: str | None) -> paramiko.MissingHostKeyPolicy:
    import paramiko

    class Pinned(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, _client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
            """Accept any key at first contact, later only the one that was kept."""
            if host_key not in (None, f"{key.get_name()} {key.get_base64()}"):
                raise HostKeyError(f"{hostname}: shows another host key ({key.get_name()} {key.fingerprint}) "
                                   "than at first contact; the login is refused")

    return Pinned()


@contextmanager
def _explained(login: Login) -> Iterator[None]:
    import paramiko

    try:
        yield
    except paramiko.AuthenticationException as err:
        raise NotYetError(f"{login.user}@{login.address}: login refused ({_reason(err)})") from err
    except (paramiko.SSHException, EOFError, OSError, socket.gaierror) as err:
        raise NotYetError(f"{login.user}@{login.address}: no ssh ({_reason(err)})") from err


@functools.cache
def load_key(key: Key) -> paramiko.PKey:
    """Return the private key of a file; ConfigError if it cannot be used."""
    import paramiko

    if isinstance(key, paramiko.PKey):
        return key
    try:
        return paramiko.PKey.from_path(key)
    except (OSError, ValueError, TypeError, paramiko.SSHException) as err:
        raise ConfigError(f"[node] ssh_key: {key} is no private key without a passphrase ({_reason(err)})") from err


def check_key_pair(path: Path, public_key: str) -> None:
    """Raise ConfigError unless the private key can be used and the public key is its other half."""
    if load_key(path).get_base64() != public_key.split()[1]:
        raise ConfigError(f"[node] ssh_key: {path}.pub is not the public half of {path}")


def wait_for_session(logins: Sequence[Login], deadline: float, test: Callable[[Session], bool]) -> Login:
    """Try the logins in turn until one passes the test; returns it with its host key.

    deadline is on the monotonic clock. Raises NotYetError with the last thing seen.
    """
    tries = 0
    last = NotYetError("no time to log in")
    while True:
        for login in logins:
            left = deadline - time.monotonic()
            if left <= 0:
                raise last
            try:
                with session(login, min(CONNECT_SECONDS, left)) as connection:
                    if test(connection):
                        return connection.login
                    last = NotYetError(f"{login.user}@{login.address}: let in, but cannot run commands")
            except (NotYetError, StepError) as err:
                last = NotYetError(str(err))
        time.sleep(min(PAUSES_SECONDS[min(tries, len(PAUSES_SECONDS) - 1)], max(0.0, deadline - time.monotonic())))
        tries += 1


def write_node_marks(login: Login, marks: str, seconds: float, jenkins_login: str = "") -> Login:
    """Log in once, leave the marks in /etc/devstack-gate/node, and return the login with its host key.

    This is the ssh test of a new machine: it proves the login, sudo and a writable disk. seconds is what is left for
    it, of which no more than CONNECT_SECONDS are spent on each wait. jenkins_login, if there is one, is left in the
    account's ~/.devstack-gate-jenkins, for it alone. Raises NotYetError when it is worth another try.
    """
    try:
        with session(login, max(1.0, min(CONNECT_SECONDS, seconds))) as connection:
            connection.put("write /etc/devstack-gate/node", "/etc/devstack-gate/node", marks)
            if jenkins_login:
                script = "umask 077; rm -f ~/.devstack-gate-jenkins && cat > ~/.devstack-gate-jenkins"
                connection.run("write ~/.devstack-gate-jenkins", ["sh", "-c", script], stdin=f"{jenkins_login}\n")
            return connection.login
    except StepError as err:
        raise NotYetError(str(err)) from err


def answers(login: Login) -> bool:
    """Whether ssh answers at all, if only to refuse the login or to show another host key: the network is there."""
    import paramiko

    try:
        with session(login):
            return True
    except NotYetError as err:
        return isinstance(err.__cause__, paramiko.AuthenticationException)
    except GateError:
        return True


def authorize(login: Login, public_key: str) -> None:
    """Let a person in: add a public key to the account's authorized_keys, once."""
    script = ('umask 077; mkdir -p ~/.ssh && touch ~/.ssh/authorized_keys && '
              'grep -qxF -- "$1" ~/.ssh/authorized_keys || printf "%s\\n" "$1" >> ~/.ssh/authorized_keys')
    with session(login) as connection:
        connection.run("add the public key", ["sh", "-c", script, "sh", public_key])
    get_log(node=login.address).info("let in: %s", " ".join(public_key.split()[2:]) or public_key[:40])
