"""The gate's time limit, which takes a minute to reach, and what ends a run if its script cannot."""

from collections.abc import Iterator

import pytest

from tests.pocketcloud.client import Pocket
from tests.support.gatenode import Node, boot_node, gate_script
from tests.support.pool import Pool, await_that

# All ways to outlive a parent: a separate session, a clean environment, other users, deafness to TERM.
DAEMONS = """
gate_hook() {
    setsid sleep 7001 &
    (env -i setsid bash -c 'trap "" TERM; while :; do sleep 7002; done' &)
    sudo setsid -f sleep 7003
    sudo -u stack setsid -f sleep 7004
    sudo unshare --pid --fork --mount-proc bash -c 'setsid -f sleep 7007; sleep 7008' &
    trap "" TERM
    %s
    echo daemons are out
    sleep 7005
    sleep 7006
}
export -f gate_hook
"""
ONE = {"DEVSTACK_GATE_PROJECTS": "sample/one"}
LOGS = "/home/jenkins/workspace/logs"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Yield a pool whose cloud has real machines."""
    folder = tmp_path_factory.mktemp("limit")
    with Pocket(folder, "--machines", "namespace") as pocket:
        yield Pool(folder, pocket)


@pytest.fixture
def node(pool: Pool, request: pytest.FixtureRequest) -> Node:
    """Boot a fresh machine with one small project."""
    made = boot_node(pool, request.node.name.replace("_", "-")[:50])
    made.check("git init -q git/sample/one && cd git/sample/one && git checkout -q -b master && git -c user.name=a "
               "-c user.email=a@localhost commit -q --allow-empty -m one")
    return made


def left_on(node: Node) -> str:
    """Return the processes of the test, and ours, that still run."""
    return node.check("pgrep -fa '^(sleep [78]|python3 -I)'; pgrep -a tail; true")


def await_nothing_left(node: Node) -> None:
    """Wait until all of a run has ended; check that it left no zombie, folder or cgroup."""
    left = [left_on(node)]

    def nothing() -> bool:
        left.append(left_on(node))
        return left[-1] == ""

    try:
        await_that("the end of all of the run", nothing)
    except AssertionError as err:
        raise AssertionError(f"{err}: at first {left[0]}, at last {left[-1]}") from None
    found = "ls -d /tmp/tmp.* /sys/fs/cgroup/devstack* 2> /dev/null; ps -e -o stat= | grep Z; true"
    await_that("the end of the run's folder", lambda: node.check(found) == "")


def start(node: Node, hooks: str, sign: str, **settings: str) -> int:
    """Start a run in its own session, wait for a sign on its console, and return the wrap script's pid."""
    node.check("cat > job.sh", gate_script(hooks=hooks, **ONE, **settings).encode())
    pid = node.check("setsid -f bash -c 'echo $$ > job.pid; exec bash job.sh > console 2>&1' < /dev/null &> /dev/null\n"
                     f"until grep -qs '{sign}' console; do sleep 0.1; done; cat job.pid")
    return int(pid)


def test_nothing_of_a_test_survives_the_time_limit_and_its_logs_are_kept(node: Node) -> None:
    run = node.gate(hooks=DAEMONS % ":", DEVSTACK_GATE_TIMEOUT="1", **ONE)

    assert run.returncode == 124, run.stdout
    lines = run.stdout.splitlines()
    assert "The time limit (1 minutes) was reached during gate_hook; everything was stopped." in lines
    assert lines[-1].startswith("FAIL (124) in gate_hook. Minutes: setup-workspace 0.")
    assert left_on(node) == ""
    assert '"kind": "timeout"' in node.file(f"{LOGS}/verdict.json")
    assert "daemons are out" in node.file(f"{LOGS}/gate_hook.txt")


def test_a_script_that_the_test_stopped_hears_the_time_limit_all_the_same(node: Node) -> None:
    stop_all = "sudo kill -STOP $PPID $(pgrep -f devstack-vm-gate-wrap)"

    run = node.gate(hooks=DAEMONS % stop_all, DEVSTACK_GATE_TIMEOUT="1", **ONE)

    assert run.returncode == 124, run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (124) in gate_hook. ")
    assert left_on(node) == ""


@pytest.mark.parametrize(("whom", "cgroups"), [("{pid}", False), ("-- -{pid}", True), ("-1", False), ("-1", True)])
def test_a_killed_script_leaves_no_test_running(node: Node, whom: str, cgroups: bool) -> None:
    if cgroups:
        node.check("sudo mount -t cgroup2 none /sys/fs/cgroup")
    node.check("sudo useradd keeper && sudo -u keeper setsid -f sleep 6001 > /dev/null 2>&1")
    settle = ":" if cgroups else "sleep 5"  # without cgroups, a parent that ends soon may stay unseen: ten looks
    pid = start(node, DAEMONS % settle, "Z daemons are out")
    for name in ("7001", "7002", "7003", "7004", "7005", "7007", "7008", "processes.py watch"):
        assert name in left_on(node)
    assert ("devstack-gate-" in node.check(f"cat /proc/{pid}/cgroup")) == cgroups

    node.run(f"kill -KILL {whom.format(pid=pid)}")

    await_nothing_left(node)
    assert "the wrap script was killed; everything was stopped" in node.file(f"{LOGS}/cleanup-host.txt")
    assert "sleep 6001" in node.run("pgrep -fa '^sleep 6'").stdout, "what is not the run's was ended, too"
    assert node.check(f"ls -A {LOGS}") == "cleanup-host.txt\n", "Jenkins keeps logs that nobody has cleaned"
    aside = f"{LOGS}-uncollected-*/logs"
    assert "daemons are out" in node.check(f"cat {aside}/gate_hook.txt")
    assert "room" not in node.check(f"ls -A {aside}")


def test_what_was_started_a_moment_before_the_kill_is_found_by_its_environment(node: Node) -> None:
    hooks = """gate_hook() {
        sleep 2
        (setsid bash -c 'sleep 7013 & sleep 7014 & echo out > ~/out' &)
        until [[ -s ~/out ]]; do :; done
        kill -KILL $PPID
        setsid -f sleep 7015
        sleep 7016
    }; export -f gate_hook"""

    run = node.gate(hooks=hooks, **ONE)

    assert run.returncode == 255, run.stdout  # ssh's status for a command that a signal ended
    await_nothing_left(node)


def test_a_killed_script_lets_a_test_clean_up_first(node: Node) -> None:
    pid = start(node, "gate_hook() { trap 'sleep 2; echo given back > ~/given; exit' TERM; echo locked; "
                      "sleep 7009 & wait; }; export -f gate_hook", "Z locked")

    node.run(f"kill -KILL {pid}")

    await_nothing_left(node)
    seen = node.run("cat given; cat console workspace/logs/*; ps -ef").stdout
    assert seen.startswith("given back\n"), seen


@pytest.mark.parametrize("cgroups", [False, True])
def test_the_watcher_ends_with_the_run_and_services_stay(node: Node, cgroups: bool) -> None:
    if cgroups:
        node.check("sudo mount -t cgroup2 none /sys/fs/cgroup")
    seen = "gate_hook() { setsid -f sleep 7010; pgrep -fa '^python3 -I'; }; export -f gate_hook"

    run = node.gate(hooks=seen, **ONE)

    assert run.returncode == 0, run.stdout
    assert "processes.py watch" in run.stdout
    assert node.run("pgrep -fa '^(sleep 7|python3 -I)'").stdout.endswith(" sleep 7010\n")
    node.check("sudo pkill -f '^sleep 7010'")
    await_nothing_left(node)


def test_what_a_job_exports_of_our_own_variables_changes_nothing(node: Node) -> None:
    node.check(f"mkdir -p {LOGS} && touch {LOGS}/old")

    hooks = "gate_hook() { (setsid sleep 7011 &); kill -TERM $PPID; sleep 7012; }; export -f gate_hook"

    run = node.gate(hooks=hooks, RE_EXEC="true", GATE_STARTED="1", GATE_ADOPTS="1", GATE_RUN="1 1 1", **ONE)

    assert run.returncode == 143, run.stdout
    assert left_on(node) == ""
    assert node.run(f"ls {LOGS}/old").returncode
