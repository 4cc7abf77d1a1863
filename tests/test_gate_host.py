"""HOST mode: the same run on another machine, driven from this one over ssh."""

import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pocketcloud.client import Pocket
from tests.support.gateclient import RUN_SECONDS, Client, client_of
from tests.support.gatenode import Node, boot_node
from tests.support.pool import Pool, await_line, await_that
from tests.support.sampleprojects import add_change, make_projects

ODD = "with  blanks, 'single' and \"double\" quotes, $HOME, `date`, $(date), \\ and *\n\nand lines\n# end"
SHOW = """pre_test_hook() {
    printf '%s' "$DEVSTACK_GATE_TEMPEST_REGEX" > "$WORKSPACE/logs/value"
    env > "$WORKSPACE/logs/env"
}
export -f pre_test_hook
"""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """Yield one machine for all tests here."""
    folder = tmp_path_factory.mktemp("host")
    make_projects(folder / "git")
    add_change(folder / "git/sample/adder", "refs/zuul/master/Zbreaking", "A better name", "adder.py", "def total",
               "def whole")
    with Pocket(folder, "--machines", "namespace") as pocket:
        made = boot_node(Pool(folder, pocket), "host")
        made.put(folder, ["git"], "/home/jenkins")
        yield made


@pytest.fixture
def client(node: Node, tmp_path: Path) -> Iterator[Client]:
    with client_of(node, tmp_path) as made:
        yield made


def test_it_runs_there_with_the_documented_settings_to_the_letter(client: Client) -> None:
    (client.workspace / "a file").write_text("for hooks")
    (client.workspace / "logs").mkdir()
    (client.workspace / "logs/old").touch()
    hooks = SHOW + 'gate_hook() { cat "$WORKSPACE/a file" "$TEST_ENVIRONMENT_FILE"; }; export -f gate_hook'
    client.node.check("cd /etc/devstack-gate; echo rack-9 | sudo tee test-environment test-environment.json")

    code, output = client.run(hooks, DEVSTACK_GATE_TEMPEST="1", DEVSTACK_GATE_TEMPEST_REGEX=ODD, MY_SECRET="private")

    assert code == 0, output
    assert "for hooksrack-9" in output
    assert {"NODE_NAME=host", "TEST_ENVIRONMENT=rack-9"} <= set(output.splitlines()[:5])
    client.node.check("sudo rm /etc/devstack-gate/test-environment*")
    assert output.splitlines()[-1].startswith("PASS (tempest ran no test). Minutes: ")
    assert client.log("value") == ODD
    assert "private" not in client.log("env")
    assert "PASS" not in client.log("setup-workspace.txt")
    assert not (client.workspace / "logs/old").exists()
    assert (client.workspace / "logs/value").stat().st_uid == os.getuid()


def test_its_status_comes_back_and_its_logs_after_a_failure(client: Client) -> None:
    client.workspace = client.workspace.rename(client.folder / "ws")
    client.environment["WORKSPACE"] = str(client.workspace)
    (client.workspace / "settings").write_text("echo settings of $1")
    known = client.folder / "known.ini"
    known.write_text("[no sum]\npattern = cannot add\nfiles = *.txt\ntext = known here\n")

    code, output = client.run(ZUUL_URL="file:///home/jenkins/git", ZUUL_PROJECT="sample/adder", ZUUL_BRANCH="master",
                              ZUUL_REF="refs/zuul/master/Zbreaking", DEVSTACK_GATE_KNOWN_FAILURES=str(known),
                              DEVSTACK_GATE_SETTINGS=f"{client.workspace}/settings mine")

    assert code == 1, output
    assert ("settings of mine" in output, "Known failure no sum (infrastructure): known" in output) == (True, True)
    assert output.splitlines()[-1].startswith("FAIL (1) in devstack-vm-gate.sh: exercise.sh. ")
    assert "cannot add" in client.log("screen-adderd.txt")
    code, output = client.run("gate_hook() { return 42; }; export -f gate_hook")
    assert code == 42, output


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_a_signal_here_ends_the_run_there(client: Client, name: str, status: int) -> None:
    process = client.start("gate_hook() { echo started; (setsid sleep 9001 &); sleep 9002; }; export -f gate_hook")
    await_line(process, "started$")

    process.send_signal(signal.Signals[f"SIG{name}"])
    output = process.communicate(timeout=RUN_SECONDS)[0]

    assert process.returncode == status, output
    assert output.splitlines()[-1].startswith(f"FAIL ({status}) in gate_hook. ")
    assert client.node.run("pgrep -a sleep | grep 900").stdout == ""
    assert "started" in client.log("gate_hook.txt")


def test_a_lost_connection_comes_back_without_losing_a_line(client: Client) -> None:
    process = client.start("gate_hook() { for i in {1..60}; do echo tick-$i-; sleep 0.1; done; return 9; }; "
                           "export -f gate_hook")
    seen = await_line(process, "tick-5-")
    subprocess.run(["pkill", "-KILL", "-P", str(process.pid), "-x", "ssh"], check=True)
    output = seen + process.communicate(timeout=RUN_SECONDS)[0]

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
    (client.workspace / "logs").mkdir()
    (client.workspace / "logs/verdict.json").write_text("an earlier run's")
    try:
        code, output = client.run()
        left = [file.name for file in client.workspace.rglob("*")]
    finally:
        shutil.rmtree(client.workspace)

    assert (code, left) == (1, [])
    assert ": the workspace could not be copied there: ssh: connect to host 127." in output.splitlines()[-1]


# What a change that was root on the node can do to the logs after the run.
PLANT = r"""
if [[ -e ~/devstack-gate/status ]]; then
    cd ~/devstack-gate/workspace/logs
    mkdir deep; echo deep > "$(printf 'deep/a  name:\033[2J\nodd')"
    ln -s /etc/shadow shadow; ln -s / root; mkfifo fifo; sudo mknod device c 1 5; ln gate_hook.txt second
    cp /bin/true suid; sudo chown root suid; sudo chmod 6755 suid; truncate -s 1500M huge; chmod 777 . deep
    echo raw > "$(printf 'raw\xff')"
fi
"""


def test_logs_are_plain_files_of_ours_whatever_the_node_sends(client: Client) -> None:
    client.node.check("sudo tee /usr/local/bin/find > /dev/null; sudo chmod 755 /usr/local/bin/find",
                      f'#!/bin/bash\n({PLANT}) > /dev/null 2>&1\nexec /usr/bin/find "$@"\n'.encode())
    try:
        code, output = client.run("gate_hook() { :; }; export -f gate_hook")
    finally:
        client.node.check("sudo rm /usr/local/bin/find")

    assert code == 0, output
    logs = client.workspace / "logs"
    found = {str(path.relative_to(logs)): path.lstat() for path in logs.rglob("*")}
    odd = {"deep/a__name__[2J_odd", "raw_"}
    assert {"deep", "suid", "gate_hook.txt", "second"} | odd <= set(found)
    assert not {"shadow", "root", "fifo", "device", "huge"} & set(found)
    assert {stat.filemode(one.st_mode) for one in found.values()} == {"drwxr-xr-x", "-rw-r--r--"}
    assert {(one.st_uid, one.st_nlink) for one in found.values() if stat.S_ISREG(one.st_mode)} == {(os.getuid(), 1)}
    assert stat.filemode(logs.lstat().st_mode) == "drwxr-xr-x"
    assert "its logs: more than 1024 MB: the rest is left out" in output


def test_a_console_obeys_no_terminal_and_ends_as_the_status_says(client: Client) -> None:
    hooks = r"""gate_hook() {
        printf '\033]0;owned\007\033[2J\033[31mred\033[0m\n'
        head -c 20000 /dev/zero | tr '\0' x; echo
        return 5; }; export -f gate_hook"""
    tail = b"#!/bin/bash\n/usr/bin/tail \"$@\"\nif [[ ${!#} == console ]]; then echo 'PASS. Minutes: forged'; fi\n"
    client.node.check("sudo tee /usr/local/bin/tail > /dev/null; sudo chmod 755 /usr/local/bin/tail", tail)
    try:
        code, output = client.run(hooks)
    finally:
        client.node.check("sudo rm /usr/local/bin/tail")

    assert code == 5, output
    assert "\x1b" not in output
    assert "Z red\n" in output
    assert "PASS. Minutes: forged\nFAIL (5) at jenkins@" in output
    assert max(map(len, output.splitlines())) < 8300


def test_a_shell_there_that_prints_breaks_nothing(client: Client) -> None:
    client.node.check("cp .bashrc before; (echo 'echo welcome; echo to you >&2'; cat before) > .bashrc")
    try:
        code, output = client.run("gate_hook() { echo tested; }; export -f gate_hook")
        hook_log = client.log("gate_hook.txt")
        client.node.check("sudo mount --bind /mnt devstack-gate/workspace")
        again, reason = client.run()
    finally:
        client.node.check("mv before .bashrc; sudo umount devstack-gate/workspace")

    assert code == 0, output
    assert "Z tested" in output
    assert "welcome" not in output
    assert "to you" not in output
    assert hook_log.endswith("tested\n")
    assert again == 1
    assert re.search(": the workspace could not be copied there: rm: cannot remove 'workspace", reason)
    assert len(reason.splitlines()) == 1


def test_any_shell_there_and_any_folder_here_will_do(client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "of%2Fmine and yours"
    folder.mkdir()
    client.node.check("sudo usermod -s /bin/sh jenkins; test \"$(readlink /bin/sh)\" = dash")
    try:
        status, console = client.run(TMPDIR=str(folder))
    finally:
        client.node.check("sudo usermod -s /bin/bash jenkins")

    assert (status, console.splitlines()[-1][:4]) == (0, "PASS"), console
    assert "PASS" in client.log("verdict.json")
    assert (list(folder.iterdir()), client.left()) == ([], "")


def test_nothing_of_the_caller_is_lent_to_the_node(client: Client, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    settings = ["ForwardAgent yes", "PermitLocalCommand yes", f"LocalCommand touch {tmp_path}/local", "SendEnv LC_*",
                "ControlMaster auto", f"ControlPath {tmp_path}/control", "ControlPersist 60", "RemoteCommand true",
                "RemoteForward 127.0.0.1:4321 127.0.0.1:22", "RequestTTY force"]
    (tools / "config").write_text("".join(f"{one}\n" for one in settings))
    (tools / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {tools}/config "$@"\n')
    (tools / "ssh").chmod(0o755)
    hooks = "gate_hook() { env; ss -tln; [[ ! -t 0 ]]; }; export -f gate_hook"

    code, output = client.run(hooks, PATH=f"{tools}:{os.environ['PATH']}", LC_SECRET="canary")

    assert code == 0, output
    assert "Z HOME=/home/jenkins" in output
    assert "SSH_AUTH_SOCK" not in output
    assert "canary" not in output
    assert ":4321" not in output
    assert not (tmp_path / "local").exists()
    assert not (tmp_path / "control").exists()


def test_a_signal_before_the_run_has_begun_there_leaves_nothing_here(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexec sleep 9100\n")
    (tmp_path / "bin/ssh").chmod(0o755)
    process = client.start(PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    await_that("the call", (tmp_path / "called").exists)
    assert client.left().count("\n") > 1

    process.terminate()
    output = process.communicate(timeout=RUN_SECONDS)[0]

    assert (process.returncode, output) == (143, "")
    assert client.left() == ""


@pytest.mark.parametrize("status", ["256", "0\n0", "a[$(touch ~/evil)]"])
def test_a_status_that_is_none_is_a_failure(client: Client, status: str) -> None:
    hooks = f"""gate_hook() {{
        kill -KILL $(ps -o ppid= -p $PPID)
        printf %s {shlex.quote(status)} > ~/devstack-gate/status; }}; export -f gate_hook"""

    code, output = client.run(hooks)

    assert code == 1, output
    assert "the run there ended without a status" in output
    assert output.splitlines()[-1].startswith("FAIL (1) at jenkins@")


# A change that stops the clock and the script: the session stays open, but nothing comes.
STAND_STILL = """gate_hook() {
    echo standing still
    sudo pkill -KILL -f processes.py; sudo kill -STOP $PPID; sleep 9003; }; export -f gate_hook"""
# And one that also prints more and more, at last without a pause.
FLOOD = r"""gate_hook() {
    echo flooding; sudo pkill -KILL -f processes.py
    for (( second = 0; second < 54; second++ )); do printf 'y\n%.0s' {1..8000}; sleep 1; done
    yes; }; export -f gate_hook"""


@pytest.fixture
def cleared(client: Client) -> Iterator[Client]:
    """Yield the client; afterwards kill what a test left running on its node."""
    yield client
    client.node.run("sudo pkill -KILL -f 'devstack-vm-gate-wrap|gate_hook|^sleep 9|^yes'")


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_a_node_that_stands_still_is_given_up_after_a_signal(cleared: Client, tmp_path: Path, name: str,
                                                             status: int) -> None:
    cleared.change(tmp_path / "scripts", {f"gate/remote.sh: {one}_SECONDS=": value
                                          for one, value in (("SIGNAL", "16"), ("FETCH", "6"))})
    process = cleared.start(STAND_STILL)
    await_line(process, "standing still$")

    process.send_signal(signal.Signals[f"SIG{name}"])
    started = time.monotonic()
    output = process.communicate(timeout=RUN_SECONDS)[0]

    assert process.returncode == status, output
    assert time.monotonic() - started < 26
    assert f": given up, its run did not end within 10 s after SIG{name}; its run may still be going on\n" in output
    assert output.splitlines()[-1].startswith(f"FAIL ({status}) at jenkins@")
    assert cleared.left() == ""


def test_a_node_that_floods_us_is_given_up_after_the_time_limit(cleared: Client, tmp_path: Path) -> None:
    cleared.change(tmp_path / "scripts", {"gate/remote.sh: LOST_SECONDS=": "16", "gate/remote.sh: FETCH_SECONDS=": "6",
                                          "gate/received.py: CONSOLE_BYTES = ": "1 << 20"})

    code, output = cleared.run(FLOOD, DEVSTACK_GATE_TIMEOUT="1")

    assert code == 124
    assert len(output) < 40 << 20  # each "y" follows a time stamp
    assert ": its console is too long; the rest is not shown\n" in output
    assert ": given up, its run did not end within 10 s after the time limit (1 minutes); its run may still" in output
    assert output.splitlines()[-1].startswith("FAIL (124) at jenkins@")
    assert cleared.left() == ""
