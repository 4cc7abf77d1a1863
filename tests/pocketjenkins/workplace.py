"""Where the steps of a build run: on the Jenkins host, on an agent over its ssh connection, or on no machine at all.

As in Jenkins, a shell step is a file: a first line with #! names its interpreter, any other script runs by /bin/sh -xe.
An aborted step gets SIGTERM, and SIGKILL if that is not enough. Processes that a build on the Jenkins host leaves end
with it (by process group; the real Jenkins finds them by a cookie in their environment, on agents, too).
"""

import contextlib
import io
import itertools
import os
import re
import secrets
import shlex
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import paramiko

from tests.pocketjenkins.agent import LEAK_SECONDS, copy_output, in_workspace

Print = Callable[[str], None]
TERM_GRACE_SECONDS = 5.0  # from SIGTERM to SIGKILL
FIND = r"find . \( -type f -o -xtype f \) -printf '%P\0'"
PACK = "tar -chf - --null --verbatim-files-from -T -"
WIPE = "find . -mindepth 1 -delete"


class PlaceLostError(Exception):
    """The node, or the connection to it, is gone."""


class Place(Protocol):
    """The place of a build's workspace."""

    def run(self, script: str, environment: Mapping[str, str], out: Print, stop: threading.Event) -> int | None:
        """Run a shell step; returns its exit status, or None if it was stopped or the node was lost."""

    def capture(self, command: str, environment: Mapping[str, str], given: bytes = b"") -> bytes:
        """Return what a command in the workspace prints; raises PlaceLostError if it cannot run."""

    def close(self) -> None:
        """End the processes that the build has left."""


def interpreter(script: str) -> list[str]:
    """Return the words before the script file's name."""
    if script.startswith("#!"):
        return script.splitlines()[0][2:].split()
    return ["/bin/sh", "-xe"]


def announce(environment: Mapping[str, str], script: str, file: str, out: Print) -> None:
    """Print the console line that says what runs."""
    out(f"[{Path(environment['WORKSPACE']).name}] $ {' '.join([*interpreter(script), file])}")


def workspace_files(place: Place, environment: Mapping[str, str]) -> list[str]:
    """Return the files of a workspace, sorted."""
    names = place.capture(FIND, environment).decode("utf-8", "surrogateescape").split("\0")
    return sorted(name for name in names if name)


def fetch(place: Place, environment: Mapping[str, str], names: Iterable[str]) -> dict[str, bytes]:
    """Return the contents of a workspace's files, by name."""
    wanted = "".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape")
    if not wanted:
        return {}
    with tarfile.open(fileobj=io.BytesIO(place.capture(PACK, environment, wanted))) as archive:
        members = {member.name: archive.extractfile(member) for member in archive if member.isfile()}
        return {name: file.read() for name, file in members.items() if file}


def ant_pattern(pattern: str) -> re.Pattern[str]:
    """Compile one of Ant's file patterns: ** for any folders, * and ? within a name."""
    pattern += "**" if pattern.endswith("/") else ""
    parts = []
    for part in re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?)", pattern):
        special = {"**/": "(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        parts.append(special.get(part, re.escape(part)))
    return re.compile("".join(parts) + r"\Z", re.DOTALL)


def chosen(names: Iterable[str], includes: str, excludes: Iterable[str] = ()) -> list[str]:
    """Return the names that match one of the patterns and none of the excluded ones."""
    wanted = [ant_pattern(one) for one in re.split(r"[,\s]+", includes) if one]
    unwanted = [ant_pattern(one) for one in excludes]
    return [name for name in names
            if any(one.match(name) for one in wanted) and not any(one.match(name) for one in unwanted)]


class HostPlace:
    """The Jenkins host itself. `own`: variables that every step there gets."""

    def __init__(
        self, folder: Path, own: Mapping[str, str], started: Callable[[subprocess.Popen[bytes] | None], None]
    ) -> None:
        self.folder = folder
        self.own = dict(own)
        self.started = started
        self._groups: list[int] = []

    def run(self, script: str, environment: Mapping[str, str], out: Print, stop: threading.Event) -> int | None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"jenkins{secrets.randbelow(10**18)}.sh"
        file.write_text(script)
        announce(environment, script, str(file), out)
        try:
            process = self._start([*interpreter(script), str(file)], environment)
        except OSError as err:
            out(f"FATAL: command execution failed\njava.io.IOException: {err.strerror}: {err.filename}")
            return 127
        self._groups.append(process.pid)
        self.started(process)
        reader = threading.Thread(target=_read_lines, args=(process, out), daemon=True)
        reader.start()
        try:
            while process.poll() is None and not stop.is_set():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.05)
            if process.poll() is None:
                end_group(process)
            reader.join(LEAK_SECONDS)
        finally:
            self.started(None)
            file.unlink(missing_ok=True)
        return None if stop.is_set() else process.returncode

    def _start(self, argv: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        workspace = Path(environment["WORKSPACE"])
        workspace.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            argv,
            cwd=workspace,
            env={**os.environ, **self.own, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def capture(self, command: str, environment: Mapping[str, str], given: bytes = b"") -> bytes:
        workspace = Path(environment["WORKSPACE"])
        workspace.mkdir(parents=True, exist_ok=True)
        return subprocess.run(["sh", "-c", command], cwd=workspace, input=given, stdout=subprocess.PIPE,
                              check=False).stdout

    def close(self) -> None:
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)


def _read_lines(process: subprocess.Popen[bytes], out: Print) -> None:
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            out(line.decode("utf-8", "replace").rstrip("\n"))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to a process group, and SIGKILL to what is left after a while."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(TERM_GRACE_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class AgentPlace:
    """A node, over the connection of its agent."""

    numbers = itertools.count()

    def __init__(self, link: paramiko.Transport) -> None:
        self.link = link
        self._names: list[str] = []

    def run(self, script: str, environment: Mapping[str, str], out: Print, stop: threading.Event) -> int | None:
        file = f"/tmp/jenkins{secrets.randbelow(10**18)}.sh"
        announce(environment, script, file, out)
        self._names.append(file)
        words = shlex.join([*interpreter(script), file])
        # the process group's number is kept beside the script for an abort
        command = (
            f"cut -d' ' -f5 /proc/$$/stat >{file}.group; cat >{file}; {words} </dev/null 2>&1; status=$?; "
            f"rm -f {file} {file}.group; exit $status"
        )
        try:
            channel = self._open(command, environment)
            channel.set_combine_stderr(True)
            channel.sendall(script.encode())
            channel.shutdown_write()
            channel.settimeout(0.1)
        except (paramiko.SSHException, EOFError, OSError, PlaceLostError):
            return None
        try:
            copy_output(channel, out, stop)
            if stop.is_set():
                self._end(file)
                return None
            ended = channel.exit_status_ready() and channel.recv_exit_status() >= 0
            return channel.recv_exit_status() if ended else None
        finally:
            channel.close()

    def _open(self, command: str, environment: Mapping[str, str]) -> paramiko.Channel:
        try:
            channel = self.link.open_session(timeout=30)
            channel.exec_command(shlex.join(["bash", "--norc", "-c", in_workspace(environment) + command]))
        except (paramiko.SSHException, EOFError, OSError) as err:
            raise PlaceLostError(str(err)) from err
        return channel

    def _end(self, file: str) -> None:
        """End a step as on the Jenkins host: SIGTERM, then SIGKILL."""
        tenths = round(TERM_GRACE_SECONDS * 10)
        command = (
            f"group=$(cat {file}.group) && kill -TERM -- -$group; for n in $(seq {tenths}); do kill -0 -- -$group || "
            f"break; sleep 0.1; done; kill -KILL -- -$group; rm -f {file} {file}.group"
        )
        with contextlib.suppress(PlaceLostError):
            self.capture(f"{{ {command}; }} 2>/dev/null", {"WORKSPACE": "/tmp"})

    def capture(self, command: str, environment: Mapping[str, str], given: bytes = b"") -> bytes:
        channel = self._open(command, environment)
        try:
            channel.settimeout(60)
            channel.sendall(given)
            channel.shutdown_write()
            output = b"".join(iter(lambda: channel.recv(1 << 16), b""))
        except (paramiko.SSHException, EOFError, OSError) as err:
            raise PlaceLostError(str(err)) from err
        finally:
            channel.close()
        if not self.link.is_active():
            raise PlaceLostError("the connection was lost")
        return output

    def close(self) -> None:
        """Do nothing: a node is used once, and its sshd keeps nothing for the build."""


class NowherePlace:
    """A node without a machine: every step succeeds after a while."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, script: str, environment: Mapping[str, str], out: Print, stop: threading.Event) -> int | None:
        announce(environment, script, "/tmp/jenkins0.sh", out)
        deadline = time.monotonic() + self.seconds
        stop.wait(max(0.0, deadline - time.monotonic()))
        return None if stop.is_set() else 0

    def capture(self, command: str, environment: Mapping[str, str], given: bytes = b"") -> bytes:
        return b""

    def close(self) -> None:
        """Do nothing: nothing has run."""
