"""A real sshd on loopback, for agents that have no machine."""

import socket
import subprocess
from pathlib import Path

STOP_SECONDS = 10.0


def free_address() -> tuple[str, int]:
    """Return a free address on loopback: host and port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host, port = probe.getsockname()
        return str(host), int(port)


class Sshd:
    """A real sshd on its own port that lets root in with one key."""

    def __init__(self, root: Path, authorized: str) -> None:
        self.root = root
        self.host, self.port = free_address()
        root.mkdir()
        self._process: subprocess.Popen[bytes] | None = None
        (root / "authorized_keys").write_text(authorized)
        generate = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(root / "host_key")]
        subprocess.run(generate, check=True, timeout=20)
        settings = {
            "ListenAddress": f"{self.host}:{self.port}",
            "HostKey": root / "host_key",
            "AuthorizedKeysFile": root / "authorized_keys",
            "KexAlgorithms": "-sntrup761*",  # see pocketcloud/machines.py
            "PidFile": "none",
            "UsePAM": "no",
            "StrictModes": "no",
            "PermitRootLogin": "prohibit-password",
        }
        (root / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))

    @property
    def host_key(self) -> str:
        return " ".join((self.root / "host_key.pub").read_text().split()[:2])

    def start(self) -> None:
        Path("/run/sshd").mkdir(exist_ok=True)
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.root / "config")]
        with (self.root / "log").open("wb") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def stop(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait(STOP_SECONDS)
