"""HOST given: the same run on another machine, driven from this one over ssh."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gatenode import Node, boot_node
from tests.pocketcloud.client import Pocket
from tests.pool import PROJECT, Pool, await_that
from tests.sampleprojects import add_change, make_projects

RUN_SECONDS = 120
ODD = "with  blanks, 'single' and \"double\" quotes, $HOME, `date`, $(date), \\ and *\n\nand lines\n# end"
SHOW = """pre_test_hook() {
    printf '%s' "$DEVSTACK_GATE_TEMPEST_REGEX" > "$WORKSPACE/logs/value"
    env > "$WORKSPACE/logs/env"
}
export -f pre_test_hook
"""


class Client:
    """A person, or a job, with a workspace here and an ssh agent that knows the node's key."""

    def __init__(self, node: Node, folder: Path, agent: str) -> None:
        self.node = node
        self.workspace = folder / "work space"
        self.workspace.mkdir()
        keep = ("PATH", "HOME", "LANG")
        self.environment = {name: os.environ[name] for name in keep if name in os.environ} | {
            "SSH_AUTH_SOCK": agent, "WORKSPACE": str(self.workspace), "GIT_BASE": "file:///home/jenkins/git",
            "DEVSTACK_GATE_PROJECTS": "sample/devstack sample/adder sample/adderd"}

    def start(self, hooks: str = "", **settings: str) -> "subprocess.Popen[str]":
        """Start the wrap script for the node."""
        command = f"{hooks}\nexec {PROJECT}/devstack-vm-gate-wrap.sh jenkins@{self.node.address}"
        return subprocess.Popen(["bash", "-c", command], env=self.environment | settings, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, hooks: str = "", **settings: str) -> tuple[int, str]:
        """Run it to its end."""
        process = self.start(hooks, **settings)
        try:
            output = process.communicate(timeout=RUN_SECONDS)[0]
        finally:
            process.kill()
        return process.returncode, output

    def log(self, name: str) -> str:
        """What a log that was fetched holds."""
        return (self.workspace / "logs" / name).read_text()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """One machine for all tests here, since it takes rsync, which is installed."""
    folder = tmp_path_factory.mktemp("host")
    make_projects(folder / "git")
    add_change(folder / "git/sample/adder", "refs/zuul/master/Zbreaking", "A better name", "adder.py", "def total",
               "def whole")
    with Pocket(folder, "--machines", "namespace") as pocket:
        made = boot_node(Pool(folder, pocket), "host")
        made.put(folder, ["git"], "/home/jenkins")
        made.check("sudo apt-get -qq update && sudo apt-get -qq -y install rsync > /dev/null 2>&1")
        yield made


@pytest.fixture
def client(node: Node, tmp_path: Path) -> Iterator[Client]:
    agent = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(agent)], stdout=subprocess.DEVNULL)
    try:
        await_that("the agent", agent.exists)
        subprocess.run(["ssh-add", "-q", str(node.key)], env={"SSH_AUTH_SOCK": str(agent)}, check=True)
        yield Client(node, tmp_path, str(agent))
    finally:
        process.kill()
        process.wait()


def test_it_runs_there_with_the_documented_settings_to_the_letter(client: Client) -> None:
    (client.workspace / "a file").write_text("for hooks")
    (client.workspace / "logs").mkdir()
    (client.workspace / "logs/old").touch()
    hooks = SHOW + 'gate_hook() { cat "$WORKSPACE/a file"; ls "$WORKSPACE"; }; export -f gate_hook'

    code, output = client.run(hooks, DEVSTACK_GATE_TEMPEST="1", DEVSTACK_GATE_TEMPEST_REGEX=ODD, MY_SECRET="private")

    assert code == 0, output
    assert "for hooks" in output
    assert "NODE_NAME=host" in output.splitlines()[:3]
    assert output.splitlines()[-1].startswith("PASS. Minutes: ")
    assert client.log("value") == ODD
    assert "private" not in client.log("env")
    assert "PASS" not in client.log("setup-workspace.txt")
    assert not (client.workspace / "logs/old").exists()
    assert (client.workspace / "logs/value").stat().st_uid == os.getuid()


def test_its_status_comes_back_and_its_logs_after_a_failure(client: Client) -> None:
    code, output = client.run(ZUUL_URL="file:///home/jenkins/git", ZUUL_PROJECT="sample/adder", ZUUL_BRANCH="master",
                              ZUUL_REF="refs/zuul/master/Zbreaking")

    assert code == 1, output
    assert output.splitlines()[-1].startswith("FAIL (1) in devstack-vm-gate.sh: exercise.sh. ")
    assert "cannot add" in client.log("screen-adderd.txt")
    code, output = client.run("gate_hook() { return 42; }; export -f gate_hook")
    assert code == 42, output


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_a_signal_here_ends_the_run_there(client: Client, name: str, status: int) -> None:
    process = client.start("gate_hook() { echo started; (setsid sleep 9001 &); sleep 9002; }; export -f gate_hook")
    assert process.stdout
    for line in process.stdout:
        if line.endswith("started\n"):
            break

    process.send_signal(signal.Signals[f"SIG{name}"])
    output = process.communicate(timeout=RUN_SECONDS)[0]

    assert process.returncode == status, output
    assert output.splitlines()[-1].startswith(f"FAIL ({status}) in gate_hook. ")
    assert client.node.run("pgrep -a sleep | grep 900").stdout == ""
    assert "started" in client.log("gate_hook.txt")


def test_a_lost_connection_comes_back_without_losing_a_line(client: Client) -> None:
    process = client.start("gate_hook() { for i in {1..60}; do echo tick-$i-; sleep 0.1; done; return 9; }; "
                           "export -f gate_hook")
    assert process.stdout
    seen = []
    for line in process.stdout:
        seen.append(line)
        if "tick-5-" in line:
            break
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid), "-x", "ssh"], check=True)
    output = "".join(seen) + process.communicate(timeout=RUN_SECONDS)[0]

    assert process.returncode == 9, output
    assert "the connection is lost, trying again" in output
    assert re.findall(r"tick-(\d+)-", output) == [str(number) for number in range(1, 61)]
    assert client.log("gate_hook.txt").count("tick-") == 60


def test_a_machine_without_a_mark_there_is_left_alone(client: Client) -> None:
    client.node.check("sudo mv /etc/devstack-gate/node /etc/devstack-gate/away")
    try:
        code, output = client.run("gate_hook() { echo ran; }; export -f gate_hook")
    finally:
        client.node.check("sudo mv /etc/devstack-gate/away /etc/devstack-gate/node")

    assert code == 2
    assert "DEVSTACK_GATE_THIS_HOST: expected 1" in output
    assert "ran" not in output


def test_a_host_that_cannot_be_reached_is_one_clear_line(client: Client) -> None:
    client.node = Node(client.node.address.rpartition(".")[0] + ".254", client.node.key)
    try:
        code, output = client.run()
    finally:
        shutil.rmtree(client.workspace)

    assert code == 1
    assert ": the workspace could not be copied there: ssh: connect to host 127." in output.splitlines()[-1]
