"""Servers of kind shared-ssh: one real OpenSSH answers for all of them and does nothing, whatever it is told.

Image builds get the answers that they need from a template, so that images can be built without disks.

The sshd runs in its own mount namespace with its own /etc, so that it has users that the host does not have, and
changes to the host's users do not matter. A forced command reads what the client sends and exits with 0.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

from tests.pocketcloud.doors import Doors
from tests.pocketcloud.knobs import Knobs
from tests.pocketcloud.machines import QUICK_KEYS
from tests.pocketcloud.records import KindError, Server

SSHD = "/usr/sbin/sshd"
# Reads stdin to its end, or until 0.2 s of silence, because many clients leave it open. Then prints what an image build
# asks for: the user, a distribution, or the marks that all builds have written. {{ is { for str.format.
DRAIN = (
    "exec perl -e 'vec($r, 0, 1) = 1; "
    "1 while select($x = $r, undef, undef, 0.2) > 0 && sysread(STDIN, $in, 65536, length $in); "
    '$_ = $ENV{{SSH_ORIGINAL_COMMAND}}; $marks = "/etc/devstack-gate/image"; '
    'print "$ENV{{USER}}\\n" if $_ eq "id -un"; print "bookworm\\n" if /print_distribution/; '
    'if (/ $marks 0644$/) {{ open F, ">>/run/marks"; print F $in }} '
    'if ($_ eq "cat $marks") {{ open F, "/run/marks"; print <F> }}\'')
CONFIG = f"""{QUICK_KEYS}HostKey {{folder}}/host_key
AuthorizedKeysFile none
AuthorizedKeysCommandUser root
ForceCommand {DRAIN}
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin {{root}}
StrictModes no
DisableForwarding yes
PermitUserRC no
PrintMotd no
PrintLastLog no
UseDNS no
MaxAuthTries 100
LogLevel ERROR
"""
ANY_KEY = "AuthorizedKeysCommand /bin/echo %t %k\n"
CERTAIN_KEYS = "AuthorizedKeysCommand /bin/cat {folder}/keys\n"
OF_HOST = ("ld.so.cache", "localtime")  # files of the host's /etc that are copied to the namespace's
# Mounts over all of /etc: a mount over one file ends when the host replaces that file, as useradd does.
ENTER = """mount --bind "$0/etc" /etc && mount -t tmpfs tmpfs /run && mkdir /run/sshd &&
: > /run/marks && chmod 666 /run/marks && echo ready && exec cat"""
DIE_WITH_US = ["setpriv", "--pdeathsig", "KILL"]


class SharedSsh:
    """The kind for thousands of servers; one instance per cloud."""

    def __init__(self, folder: Path, doors: Doors, knobs: Knobs) -> None:
        self._folder, self._doors, self._knobs = folder, doors, knobs
        self._written: tuple[list[str], list[str] | None] | None = None
        self._sessions: dict[str, list[subprocess.Popen[bytes]]] = {}
        (folder / "etc").mkdir(parents=True)
        for name in OF_HOST:
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(Path("/etc") / name, folder / "etc")
        for name in ("host_key", "stranger_key"):
            key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "pocketcloud", "-f", str(folder / name)]
            subprocess.run(key, check=True)
        self._refresh()
        self._holder = self._hold_namespace()

    def boot(self, server: Server) -> None:
        """Do nothing: the sshd is ready."""

    def apply_ssh(self, server: Server) -> None:
        """Open, change or close the doors at the server's addresses."""
        for address in [server.address, *server.floating]:
            if address is None:
                continue
            if server.ssh == "up":
                self._doors.open(address, self._serve)
            elif server.ssh == "stranger":
                self._doors.open(address, self._serve_stranger)
            elif server.ssh in ("silent", "reset"):
                self._doors.open(address, self._doors.hold if server.ssh == "silent" else self._doors.reset)
            else:
                self._close(address)

    def halt(self, server: Server) -> None:
        """Refuse ssh and end the server's sessions."""
        for address in [server.address, *server.floating]:
            if address is not None:
                self._close(address)

    def remove(self, server: Server) -> None:
        """Refuse ssh and end the server's sessions; there is no disk."""
        self.halt(server)

    def snapshot(self, server: Server, layer: str) -> bool:
        """Return False: there is no disk."""
        return False

    def drop_layers(self, unused: set[str]) -> None:
        """Do nothing: there are no layers."""

    def console(self, server: Server) -> str | None:
        """Return None: there is no console."""
        return None

    def stop(self) -> None:
        """End every session and the namespace."""
        for address in list(self._sessions):
            self._end_sessions(address)
        self._holder.kill()
        self._holder.wait()

    def _close(self, address: str) -> None:
        self._doors.close(address)
        self._end_sessions(address)

    def _end_sessions(self, address: str) -> None:
        for session in self._sessions.pop(address, []):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(session.pid, signal.SIGKILL)
            session.wait()

    def _serve_stranger(self, address: str, connection: socket.socket) -> None:
        self._serve(address, connection, "stranger_config")

    def _serve(self, address: str, connection: socket.socket, config: str = "sshd_config") -> None:
        self._refresh()
        command = [*DIE_WITH_US, "nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt"]
        command += [SSHD, "-i", "-f", str(self._folder / config)]
        with connection:
            session = subprocess.Popen(
                command,
                stdin=connection.fileno(),
                stdout=connection.fileno(),
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        running = [one for one in self._sessions.get(address, []) if one.poll() is None]
        self._sessions[address] = [*running, session]

    def _refresh(self) -> None:
        users, keys = list(self._knobs.shared_ssh_users), self._knobs.shared_ssh_keys
        if self._written == (users, keys):
            return
        others = [user for user in users if user != "root"]
        nobody = "sshd:x:102:65534::/run/sshd:/usr/sbin/nologin\n"
        accounts = [f"{user}:x:65534:65534::/:/bin/sh\n" for user in others]
        self._write("etc/passwd", "root:x:0:0:root:/:/bin/sh\n" + nobody + "".join(accounts))
        self._write("etc/shadow", "".join(f"{user}:*:19000:0:99999:7:::\n" for user in ("root", "sshd", *others)))
        self._write("etc/group", "root:x:0:\nnogroup:x:65534:\n")
        self._write("etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\n")
        self._write("keys", "".join(f"{key}\n" for key in keys or []))
        config = (CONFIG + (ANY_KEY if keys is None else CERTAIN_KEYS)).format(
            folder=self._folder, root="yes" if "root" in users else "no")
        self._write("sshd_config", config)
        self._write("stranger_config", config.replace("/host_key", "/stranger_key"))
        self._written = (users, keys)

    def _write(self, name: str, text: str) -> None:
        path = self._folder / name
        path.write_text(text)
        path.chmod(0o644)

    def _hold_namespace(self) -> subprocess.Popen[bytes]:
        """Start the process that keeps the namespace; it ends with its standard input, so with this process."""
        command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", ENTER, str(self._folder)]
        pipe = subprocess.PIPE
        holder = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != b"ready\n":
            text = holder.stderr.read().decode().strip()
            raise KindError(f"no mount namespace for the shared sshd: {text}")
        return holder
