"""A test node for the gate: a machine with the account that images carry, and with our scripts."""

import base64
import io
import shlex
import socket
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.pool import PROJECT, Pool, await_that
from tests.support.sampleprojects import GATE_FILES

RUN_SECONDS = 120
ACCOUNT = """#!/bin/bash
useradd -m -s /bin/bash jenkins
echo 'jenkins ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/devstack-gate
mkdir -p /home/jenkins/.ssh /home/jenkins/workspace /etc/devstack-gate
echo '{key}' > /home/jenkins/.ssh/authorized_keys
chown -R jenkins:jenkins /home/jenkins
printf 'NODE_PROVIDER=one\\nNODE_IMAGE=noble\\nNODE_NAME={name}\\nNODE_SNAPSHOT=s\\n' > /etc/devstack-gate/node
touch /run/account-is-there
"""


@dataclass
class Node:
    """A machine and how to log in to it."""

    address: str
    key: Path

    def command(self, *words: str) -> list[str]:
        """Return the ssh command that runs a command there."""
        options = ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR",
                   "IdentitiesOnly=yes"]
        return ["ssh", "-i", str(self.key), "-F", "none", *[word for one in options for word in ("-o", one)],
                f"jenkins@{self.address}", *words]

    def run(self, script: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
        """Run a script there as jenkins, with stderr merged into stdout."""
        done = subprocess.run(self.command("bash", "-c", shlex.quote(script)), input=stdin, check=False,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=RUN_SECONDS)
        return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(errors="replace"), "")

    def check(self, script: str, stdin: bytes = b"") -> str:
        """Run a script there and return its output; fails the test if the script fails."""
        done = self.run(script, stdin)
        assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout}"
        return done.stdout

    def put(self, folder: Path, names: Sequence[str], to: str) -> None:
        """Copy files or folders there."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for name in names:
                tar.add(folder / name, name)
        self.check(f"mkdir -p {to} && tar -xf - -C {to} --no-same-owner", packed.getvalue())

    def gate(self, *, hooks: str = "", before: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the wrap script there with these settings, as Jenkins would."""
        return self.run(gate_script(hooks=hooks, before=before, **settings))

    def file(self, path: str) -> str:
        """Return the text of a file there."""
        return self.check(f"sudo cat {shlex.quote(path)}")


def gate_script(*, hooks: str = "", before: str = "", **settings: str) -> str:
    """Return the script of a gate job."""
    defaults = {"WORKSPACE": "/home/jenkins/workspace", "GIT_BASE": "file:///home/jenkins/git",
                "DEVSTACK_GATE_PROJECTS": "sample/devstack sample/adder sample/adderd"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in (defaults | settings).items()]
    return "\n".join([*lines, hooks, before, "exec ~/workspace/devstack-gate/devstack-vm-gate-wrap.sh"])


def boot_node(pool: Pool, name: str) -> Node:
    """Boot a machine and put the scripts there."""
    public = pool.key.with_suffix(".pub").read_text().strip()
    user_data = base64.b64encode(ACCOUNT.format(key=public, name=name).encode()).decode()
    server = pool.boot(name, user_data=user_data)
    address = next(str(one["address"]) for one in pool.servers() if one["id"] == server)
    node = Node(address, pool.key)
    await_that("the node's ssh", lambda: _connects(address))
    await_that("the node's account", lambda: node.run("test -e /run/account-is-there").returncode == 0)
    node.put(PROJECT, GATE_FILES, "/home/jenkins/workspace/devstack-gate")
    return node


def _connects(address: str) -> bool:
    try:
        socket.create_connection((address, 22), 1).close()
    except OSError:
        return False
    return True
