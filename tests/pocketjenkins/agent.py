"""The master's ssh connection to an agent: launch it with host key check and retries, and run a build's script."""

import base64
import logging
import shlex
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from tests.pocketjenkins.nodes import Launcher

logging.getLogger("paramiko").setLevel(logging.CRITICAL)

Print = Callable[[str], None]
CHUNK_BYTES = 32768
LEAK_SECONDS = 2.0
RUN_IN_WORKSPACE = """
mkdir -p "$WORKSPACE" 2>/dev/null && cd "$WORKSPACE" 2>/dev/null || {
    export WORKSPACE="$HOME/workspace/$JOB_NAME"
    mkdir -p "$WORKSPACE" && cd "$WORKSPACE"
}
"""


class LaunchError(Exception):
    """The agent could not be launched."""


class RetryError(Exception):
    """One attempt failed in a way that the plugin retries."""


@dataclass(frozen=True)
class Credential:
    """A user name and private key, which the credentials plugin keeps under an id."""

    user: str
    key_file: Path


@dataclass
class KeyStore:
    """The master's keys: its credentials, its known_hosts file, and the host keys that it has come to trust."""

    credentials: dict[str, Credential]
    known_hosts: Path
    trusted: dict[str, str] = field(default_factory=dict)


def stamp() -> str:
    return time.strftime("[%m/%d/%y %H:%M:%S] [SSH]")


def describe(launcher: Launcher) -> str:
    """Return the first line of a launch log."""
    return (
        f"SSHLauncher{{host='{launcher.host or ''}', port={launcher.port}, "
        f"credentialsId='{launcher.credentials_id or ''}', jvmOptions='{launcher.jvm_options or ''}', "
        f"javaPath='{launcher.java_path or ''}', prefixStartSlaveCmd='', suffixStartSlaveCmd='', "
        f"launchTimeoutSeconds={launcher.launch_timeout_seconds}, maxNumRetries={launcher.retries}, "
        f"retryWaitTime={launcher.retry_wait_seconds}, sshHostKeyVerificationStrategy={launcher.strategy}, "
        "tcpNoDelay=true, trackCredentials=true}"
    )


def check_settings(launcher: Launcher, keys: KeyStore) -> None:
    """Raise LaunchError for settings that the plugin refuses before it connects."""
    unknown = bool(keys.credentials) and launcher.credentials_id not in keys.credentials
    if not launcher.host or not launcher.credentials_id or unknown:
        raise LaunchError("ERROR: Launching agent process aborted.\nAlso:   java.lang.Throwable: launched here")


def connect(
    launcher: Launcher, keys: KeyStore, out: Print, called_off: threading.Event, retry_seconds: float | None
) -> paramiko.Transport:
    """Connect and log in, with the plugin's retries; raises LaunchError if that fails or is called off."""
    out(describe(launcher))
    out(f"{stamp()} Opening SSH connection to {launcher.host}:{launcher.port}.")
    for left in range(launcher.retries, -1, -1):
        try:
            return _log_in(_open(launcher, keys, out), launcher, keys, out)
        except RetryError as err:
            out(str(err))
            # The plugin waits after the last attempt, too, within its launch time limit.
            wait_seconds: float = min(launcher.retry_wait_seconds, launcher.launch_timeout_seconds)
            if left:
                out(
                    f'SSH Connection failed with IOException: "{err}", retrying in {launcher.retry_wait_seconds} '
                    f"seconds. There are {left} more retries left."
                )
        if called_off.wait(wait_seconds if retry_seconds is None else retry_seconds):
            break
    raise LaunchError(f"{stamp()} Launch failed - cleaning up connection\n{stamp()} Connection closed.")


def _open(launcher: Launcher, keys: KeyStore, out: Print) -> paramiko.Transport:
    limit_seconds = float(launcher.launch_timeout_seconds)
    try:
        plug = socket.create_connection((launcher.host or "", launcher.port), timeout=limit_seconds)
    except ConnectionRefusedError as err:
        raise RetryError("Connection refused (Connection refused)") from err
    except OSError as err:
        raise RetryError(f"{err.strerror or err} ({err.strerror or err})") from err
    transport = paramiko.Transport(plug)
    try:
        _prefer_algorithm(transport, launcher)
        transport.banner_timeout = limit_seconds
        transport.start_client(timeout=limit_seconds)
        trusted = _verify(transport.get_remote_server_key(), launcher, keys, out)
    except (paramiko.SSHException, EOFError, OSError) as err:
        transport.close()
        raise RetryError("Key exchange was not finished, connection is closed.") from err
    if not trusted:
        transport.close()
        raise RetryError("Key exchange was not finished, connection is closed.")
    return transport


def _prefer_algorithm(transport: paramiko.Transport, launcher: Launcher) -> None:
    """Ask the server for the expected kind of key, so that another kind is not taken for a wrong key."""
    expected = (launcher.key or "").partition(" ")[0]
    options = transport.get_security_options()
    first = [name for name in options.key_types if name == expected or (expected == "ssh-rsa" and "rsa" in name)]
    options.key_types = tuple(dict.fromkeys([*first, *options.key_types]))


def _verify(key: paramiko.PKey, launcher: Launcher, keys: KeyStore, out: Print) -> bool:
    offered = f"{key.get_name()} {base64.b64encode(key.asbytes()).decode()}"
    verifier = launcher.verifier()
    if verifier == "ManuallyProvided":
        return _verify_provided(offered, launcher, out)
    if verifier == "ManuallyTrusted":
        known = keys.trusted.get(f"{launcher.host}:{launcher.port}", "" if launcher.manual_trust else offered)
        if known == offered:
            keys.trusted[f"{launcher.host}:{launcher.port}"] = offered
            return True
        out(f"{stamp()} WARNING: The SSH key for this host is not currently trusted. Connections will be denied.")
        return False
    if verifier == "KnownHostsFile":
        return _verify_known_hosts(key, launcher, keys, out)
    out(
        f"{stamp()} WARNING: SSH Host Keys are not being verified. "
        "Man-in-the-middle attacks may be possible against this connection."
    )
    return True


def _verify_provided(offered: str, launcher: Launcher, out: Print) -> bool:
    if (launcher.key or "").split()[:2] == offered.split():
        out(f"{stamp()} SSH host key matched the key required for this connection. Connection will be allowed.")
        return True
    out(
        f"{stamp()} WARNING: The SSH key for this host does not match the key required in the connection "
        "configuration. Connections will be denied until the host key matches the configuration key."
    )
    return False


def _verify_known_hosts(key: paramiko.PKey, launcher: Launcher, keys: KeyStore, out: Print) -> bool:
    if not keys.known_hosts.exists():
        out(
            f"{keys.known_hosts} [SSH] No Known Hosts file was found at {keys.known_hosts}. Please ensure one is "
            "created at this path and that Jenkins can read it."
        )
        return False
    name = launcher.host or ""
    name = name if launcher.port == 22 else f"[{name}]:{launcher.port}"
    return paramiko.HostKeys(str(keys.known_hosts)).check(name, key)


def _log_in(transport: paramiko.Transport, launcher: Launcher, keys: KeyStore, out: Print) -> paramiko.Transport:
    credential = keys.credentials.get(launcher.credentials_id or "")
    if credential is None:
        raise LaunchError(f"ERROR: Launching agent process aborted.\nNo credentials {launcher.credentials_id!r}")
    try:
        transport.auth_publickey(credential.user, paramiko.PKey.from_path(credential.key_file))
        channel = transport.open_session(timeout=launcher.launch_timeout_seconds)
        channel.exec_command("true")
        channel.settimeout(launcher.launch_timeout_seconds)
        status = channel.recv_exit_status()
        channel.close()
    except paramiko.AuthenticationException as err:
        transport.close()
        raise LaunchError(
            f"ERROR: Server rejected the 1 private key(s) for {credential.user} "
            f"(credentialId:{launcher.credentials_id}/method:publickey)\n{stamp()} Authentication failed."
        ) from err
    except (paramiko.SSHException, EOFError, OSError) as err:
        transport.close()
        raise RetryError(f"Connection was lost: {err}") from err
    if status != 0:
        transport.close()
        raise LaunchError(f"{stamp()} The login shell of {credential.user} ended with status {status}.")
    out(f"{stamp()} Authentication successful.")
    out("<===[JENKINS REMOTING CAPACITY]===>channel started\nRemoting version: 4.5\nThis is a Unix agent")
    out("Agent successfully connected and online")
    return transport


def run_script(
    transport: paramiko.Transport,
    script: str,
    environment: Mapping[str, str],
    out: Print,
    stop: threading.Event,
) -> int | None:
    """Run a shell step in the agent's workspace; returns its status, or None if the connection or the build ended."""
    try:
        channel = transport.open_session(timeout=30)
        channel.set_combine_stderr(True)
        channel.exec_command(_command(script, environment))
        channel.settimeout(0.1)
    except (paramiko.SSHException, EOFError, OSError):
        return None
    try:
        copy_output(channel, out, stop)
        ended = channel.exit_status_ready() and channel.recv_exit_status() >= 0
        return channel.recv_exit_status() if ended else None
    finally:
        channel.close()


def _command(script: str, environment: Mapping[str, str]) -> str:
    # As in Jenkins, a script without #! is traced and stops at the first failure. --norc: only logins read .bashrc.
    flags = ["--norc"] if script.startswith("#!") else ["--norc", "-xe"]
    step = in_workspace(environment) + "exec " + shlex.join(["bash", *flags, "-c", script]) + " </dev/null"
    return shlex.join(["bash", "-c", step])


def in_workspace(environment: Mapping[str, str]) -> str:
    """Return the bash lines before a step, which set its environment (sshd would not accept it) and its workspace."""
    exports = "".join(
        f"export {name}={shlex.quote(value)}\n" for name, value in environment.items() if name.isidentifier()
    )
    return exports + RUN_IN_WORKSPACE


def copy_output(channel: paramiko.Channel, out: Print, stop: threading.Event) -> None:
    """Print the lines of a channel until it ends or `stop` is set."""
    rest = b""
    silent_since = time.monotonic()
    while not stop.is_set():
        try:
            data = channel.recv(CHUNK_BYTES)
            silent_since = time.monotonic()
        except TimeoutError:
            if channel.exit_status_ready() and time.monotonic() - silent_since > LEAK_SECONDS:
                break  # a background process has the output open; Jenkins does not wait for it, either
            continue
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            out(line.decode("utf-8", "replace"))
    if rest:
        out(rest.decode("utf-8", "replace"))
    if not stop.is_set():
        channel.status_event.wait(5)
