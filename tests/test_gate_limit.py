"""The gate's time limit, which takes a minute to be reached: in a file of its own, beside other tests."""

from pathlib import Path

from tests.gatenode import boot_node
from tests.pocketcloud.client import Pocket
from tests.pool import Pool

# All ways to outlive one's parent: a session of its own, a clean environment, other users, deafness to TERM.
DAEMONS = """
gate_hook() {
    setsid sleep 7001 &
    (env -i setsid bash -c 'trap "" TERM; while :; do sleep 7002; done' &)
    sudo setsid -f sleep 7003
    sudo -u stack setsid -f sleep 7004
    trap "" TERM
    echo daemons are out
    sleep 7005
    sleep 7006
}
export -f gate_hook
"""


def test_nothing_of_a_test_survives_the_time_limit_and_its_logs_are_kept(tmp_path: Path) -> None:
    with Pocket(tmp_path, "--machines", "namespace") as pocket:
        node = boot_node(Pool(tmp_path, pocket), "limit")
        node.check("git init -q git/sample/one && cd git/sample/one && git checkout -q -b master && git -c user.name=a "
                   "-c user.email=a@localhost commit -q --allow-empty -m one")

        run = node.gate(hooks=DAEMONS, DEVSTACK_GATE_TIMEOUT="1", DEVSTACK_GATE_PROJECTS="sample/one")

        assert run.returncode == 124, run.stdout
        lines = run.stdout.splitlines()
        assert "The time limit (1 minutes) was reached during gate_hook; everything was stopped." in lines
        assert lines[-1].startswith("FAIL (124) in gate_hook. Minutes: setup-workspace 0.")
        assert node.run("pgrep -a sleep | grep -v infinity").stdout == ""
        assert "daemons are out" in node.file("/home/jenkins/workspace/logs/gate_hook.txt")
