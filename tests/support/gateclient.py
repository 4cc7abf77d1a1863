"""The near side of HOST mode: a developer or a job that runs the gate on another machine."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.gatenode import Node
from tests.support.pool import PROJECT, await_that
from tests.support.sampleprojects import GATE_FILES

RUN_SECONDS = 120


class Client:
    """A person or a job with a workspace on this machine and an ssh agent that has the node's key."""

    def __init__(self, node: Node, folder: Path, agent: str) -> None:
        self.node = node
        self.folder = folder
        self.workspace = folder / "work space"
        self.workspace.mkdir()
        keep = ("PATH", "HOME", "LANG")
        self.scripts = PROJECT
        self.environment = {name: os.environ[name] for name in keep if name in os.environ} | {
            "SSH_AUTH_SOCK": agent, "TMPDIR": str(folder), "WORKSPACE": str(self.workspace), "GIT_BASE": "file:///home/jenkins/git",
            "DEVSTACK_GATE_PROJECTS": "sample/devstack sample/adder sample/adderd"}

    def start(self, hooks: str = "", **settings: str) -> "subprocess.Popen[str]":
        """Start the wrap script with the node as HOST."""
        command = f"{hooks}\nexec {self.scripts}/devstack-vm-gate-wrap.sh jenkins@{self.node.address}"
        return subprocess.Popen(["bash", "-c", command], env=self.environment | settings, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, hooks: str = "", **settings: str) -> tuple[int, str]:
        """Run the wrap script to its end; returns its exit status and output."""
        process = self.start(hooks, **settings)
        try:
            output = process.communicate(timeout=RUN_SECONDS)[0]
        finally:
            process.kill()
        return process.returncode, output

    def change(self, folder: Path, changes: dict[str, str]) -> None:
        """From now on, use a copy of the scripts with changed constants: {"file: NAME=": the new value}."""
        self.scripts = folder
        folder.mkdir()
        for name in GATE_FILES:
            copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy
            copy(PROJECT / name, folder / name)
        for place, value in changes.items():
            file, _, name = place.partition(": ")
            text, count = re.subn(rf"(?m)^{name}.*", f"{name}{value}", (folder / file).read_text())
            assert count == 1, place
            (folder / file).write_text(text)

    def left(self) -> str:
        """Return the processes that still run here for the node, and what is left of the run's folder."""
        words = f"(ssh|bash|python3) .*({re.escape(self.node.address)}|{self.folder}/tmp)"
        found = subprocess.run(["pgrep", "-fa", words], capture_output=True, text=True, check=False)
        return found.stdout + "".join(map(str, self.folder.glob("tmp.*")))

    def log(self, name: str) -> str:
        """Return the text of a log that was fetched."""
        return (self.workspace / "logs" / name).read_text()


@contextmanager
def client_of(node: Node, folder: Path) -> Iterator[Client]:
    """Yield a client of a machine, with its own ssh agent for the length of the context."""
    agent = folder / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        add = ["ssh-add", "-q", str(node.key)]
        variables = {"SSH_AUTH_SOCK": str(agent)}
        await_that("the agent", lambda: subprocess.run(add, env=variables, check=False).returncode == 0)
        yield Client(node, folder, str(agent))
    finally:
        process.kill()
        process.wait()
