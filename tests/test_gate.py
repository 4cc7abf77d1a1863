"""The whole gate with the sample projects, on fresh machines that it may change as it likes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.support.gatenode import Node, boot_node, gate_script
from tests.support.jobsite import tripleo_settings
from tests.support.pool import PROJECT, Pool, await_that
from tests.support.sampleprojects import GATE_FILES, add_change, commit_files, make_projects_with_changes

ZUUL = {"ZUUL_URL": "file:///home/jenkins/git", "ZUUL_BRANCH": "master", "ZUUL_PROJECT": "sample/adder"}
GOOD = {**ZUUL, "ZUUL_REF": "refs/zuul/master/Zgood"}
BREAKING = {**ZUUL, "ZUUL_REF": "refs/zuul/master/Zbreaking"}
LOGS = "/home/jenkins/workspace/logs"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Yield a pool whose cloud has real machines."""
    folder = tmp_path_factory.mktemp("gate")
    with Pocket(folder, "--machines", "namespace") as pocket:
        yield Pool(folder, pocket)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the sample projects, with two changes to the library: one is right, one breaks the service."""
    folder = tmp_path_factory.mktemp("repositories")
    make_projects_with_changes(folder / "git", "refs/zuul/master/Zgood", "refs/zuul/master/Zbreaking")
    return folder


@pytest.fixture
def node(pool: Pool, repositories: Path, request: pytest.FixtureRequest) -> Node:
    """Boot a fresh machine that has the repositories."""
    made = boot_node(pool, request.node.name.replace("_", "-")[:50])
    made.put(repositories, ["git"], "/home/jenkins")
    return made


def verdict(node: Node) -> dict[str, Any]:
    """Return the verdict.json that the run left."""
    content = json.loads(node.file(f"{LOGS}/verdict.json"))
    assert isinstance(content, dict)
    return content


def plain(line: str) -> str:
    """Return a line of the console without what differs from run to run: times, hashes, minutes."""
    return re.sub(r"\d{4}-\d\d-\d\dT[\d:]+Z|\b[0-9a-f]{10}\b|\b\d+\.\d", "*", line).rstrip()


def test_a_good_change_passes_on_a_machine_prepared_for_devstack(node: Node) -> None:
    node.check("mkdir -p ~/cache/files ~/cache/pip && touch ~/cache/files/test.img ~/cache/pip/a.whl")
    adder = node.check("git -C ~/git/sample/adder rev-parse --short refs/zuul/master/Zgood").strip()

    run = node.gate(HTTPS_PROXY="http://127.0.0.1:1", **GOOD, DEVSTACK_LOCAL_CONFIG=(
        'echo "stack: $HTTPS_PROXY, root: $(sudo -n env | grep ^HTTPS_PROXY)"'))

    assert run.returncode == 0, run.stdout
    assert "stack: http://127.0.0.1:1, root: HTTPS_PROXY=http://127.0.0.1:1" in run.stdout
    lines = run.stdout.splitlines()
    assert lines[:2] == ["NODE_PROVIDER=one", "NODE_IMAGE=noble"]
    assert f"sample/adder master {adder} Say it better" in lines
    assert "1 + 2 + 39 = 42" in run.stdout
    assert lines[-1].startswith("PASS. Minutes: setup-workspace 0.")
    password = node.check("sudo sed -n s/^ADMIN_PASSWORD=//p /opt/stack/new/devstack/local.conf").strip()
    assert len(password) == 24
    assert password not in run.stdout
    assert password not in node.check(f"cat {LOGS}/*")
    assert node.check(f"ls {LOGS}").split() == [
        "cleanup-host.txt", "devstack-vm-gate.txt", "devstacklog.txt", "local_conf.txt", "reproduce.sh",
        "screen-adderd.txt", "setup-host.txt", "setup-workspace.txt", "verdict.json"]
    assert "asked for [1, 2, 39]" in node.file(f"{LOGS}/screen-adderd.txt")
    assert f"# sample/adder master {adder} Say it better" in node.file(f"{LOGS}/reproduce.sh")
    told = verdict(node)
    assert (told["kind"], told["status"], told["phase"], told["reason"]) == ("passed", 0, "", "PASS")
    assert (told["change"]["ref"], told["node"]["provider"]) == ("refs/zuul/master/Zgood", "one")
    assert list(told["minutes"]) == ["setup-workspace", "setup-host", "devstack-vm-gate.sh", "cleanup-host"]
    assert node.check("sudo ls /etc/sudoers.d | grep -c 50_stack || true").strip() == "0", "sudo was not taken away"
    assert node.check("sudo stat -c %U /opt/stack/new/adder/adder.py").strip() == "stack"
    assert node.check("[[ ~/cache/files/test.img -ef /opt/stack/new/devstack/files/test.img ]] "
                      "&& [[ ~/cache/pip/a.whl -ef /opt/stack/cache/pip/a.whl ]] && echo linked").strip() == "linked"


def test_a_change_that_breaks_another_project_fails_and_the_console_ends_as_the_page_shows(node: Node) -> None:
    run = node.gate(**BREAKING)

    assert run.returncode == 1, run.stdout
    shown = re.findall(r"^    (.*)$", (PROJECT / "docs/gate.md").read_text(), re.MULTILINE)
    end = next(number for number, line in enumerate(shown) if line.startswith("FAIL (1)")) + 1
    console = run.stdout.splitlines()[-7:]
    assert [plain(line) for line in console] == [plain(line) for line in shown[end - 7:end]]
    assert "cannot add" in node.file(f"{LOGS}/screen-adderd.txt")
    assert (verdict(node)["kind"], verdict(node)["step"]) == ("test", "exercise.sh")


def test_stack_failing_with_42_is_42_even_when_no_log_can_be_kept(node: Node) -> None:
    hooks = "pre_test_hook() { rm -rf $WORKSPACE/logs; touch $WORKSPACE/logs; }; export -f pre_test_hook"

    run = node.gate(hooks=hooks, DEVSTACK_LOCAL_CONFIG="FAIL_WITH=42", **GOOD)

    assert run.returncode == 42, run.stdout
    assert "failing, as told" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (42) in devstack-vm-gate.sh: stack.sh. Minutes: ")


def test_a_second_run_on_the_machine_touches_nothing_of_the_first(node: Node) -> None:
    """Otherwise it would set up its trees, with its change, under the test of the first run."""
    waiting = "gate_hook() { touch ~/began; until [[ -e ~/go ]]; do sleep 0.1; done; }; export -f gate_hook"
    first, second = gate_script(hooks=waiting, **GOOD), gate_script(**BREAKING, WORKSPACE="/home/jenkins/second")

    run = node.run(f"mkdir ~/second; ({first}) > ~/first 2>&1 & until [[ -e ~/began ]]; do sleep 0.1; done\n"
                   f"({second})\necho \"status $?: $(ls ~/second)\"; touch ~/go; wait; tail -n 1 ~/first")

    refused, status, passed = run.stdout.splitlines()[-3:]
    assert refused.startswith("devstack-vm-gate-wrap.sh: another run is under way on this machine, process ")
    assert status == "status 1: "
    assert passed.startswith("PASS. Minutes: ")


def test_a_machine_without_a_mark_is_left_alone(node: Node) -> None:
    node.check("sudo rm /etc/devstack-gate/node")

    run = node.gate(**GOOD)

    assert run.returncode == 2
    assert run.stdout.startswith("devstack-vm-gate-wrap.sh: DEVSTACK_GATE_THIS_HOST: expected 1")
    assert node.check("ls -d /opt/stack ~/workspace/logs 2> /dev/null; id -u stack 2> /dev/null; true") == ""
    assert node.gate(DEVSTACK_GATE_THIS_HOST="1", **GOOD).returncode == 0


def test_a_source_that_cannot_be_had_is_3_and_no_test_runs(node: Node) -> None:
    hooks = "gate_hook() { echo tested; }; export -f gate_hook"
    run = node.gate(**ZUUL, ZUUL_REF="refs/zuul/master/Znone", hooks=hooks)

    assert run.returncode == 3
    assert "sample/adder: the change under test is missing: there is no refs/zuul/master/Znone" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (3) in setup-workspace. ")
    assert "tested" not in run.stdout
    assert "Znone" in node.file(f"{LOGS}/setup-workspace.txt")
    assert (verdict(node)["kind"], verdict(node)["status"]) == ("source", 3)


HOOKS = """
pre_test_hook() { echo "pre $PWD"; return ${PRE:-0}; }
gate_hook() { echo gating; ls /opt/stack/new/devstack-gate; return ${GATE:-0}; }
post_test_hook() { echo post; return ${POST:-0}; }
export -f pre_test_hook gate_hook post_test_hook
"""


def test_hooks_run_in_their_order_and_their_statuses_count(node: Node) -> None:
    def ran(**statuses: str) -> tuple[int, list[str]]:
        exports = "".join(f"export {name}={value}\n" for name, value in statuses.items())
        run = node.gate(hooks=HOOKS + exports)
        words = [line.split()[-1] for line in run.stdout.splitlines() if "Z " in line]
        return run.returncode, [word for word in words if word in ("/home/jenkins/workspace", "gating", "post")]

    assert ran() == (0, ["/home/jenkins/workspace", "gating", "post"])
    assert ran(PRE="5") == (5, ["/home/jenkins/workspace"])
    assert ran(GATE="6") == (6, ["/home/jenkins/workspace", "gating"])
    assert ran(POST="7") == (7, ["/home/jenkins/workspace", "gating", "post"])
    assert "post" in node.file(f"{LOGS}/post_test_hook.txt")
    assert "devstack-vm-gate.sh" in node.file(f"{LOGS}/gate_hook.txt")


ENVIRONMENT = {"env-num": 1, "power_manager": {"password": "Gw5-tz8Qx"}}
DEVTEST = """python3 -c 'import json, os; print("boxes of", json.load(open(os.environ["TE_DATAFILE"]))["env-num"])'
echo "power $(grep -o Gw5.* "$TE_DATAFILE")"; test ! -e ~/break
"""


def test_the_sample_job_reads_its_test_environment_and_nobody_else_is_told(node: Node, tmp_path: Path) -> None:
    hooks = tripleo_settings().format()
    (tmp_path / "toci_devtest.sh").write_text(DEVTEST)
    (tmp_path / "get_host_info.sh").write_text("#!/bin/sh\necho cleaning up $TEST_ENVIRONMENT after $GATE_STATUS\n")
    (tmp_path / "get_host_info.sh").chmod(0o755)
    commit_files(tmp_path / "git/openstack/tripleo-ci", tmp_path, ["toci_devtest.sh", "get_host_info.sh"])
    commit_files(tmp_path / "git/openstack/tripleo-heat-templates", tmp_path, ["toci_devtest.sh"])
    node.put(tmp_path, ["git"], "/home/jenkins")
    node.check("cd /etc/devstack-gate; echo rack-1 | sudo tee test-environment; sudo install -o jenkins -m 600 "
               "/dev/stdin test-environment.json", json.dumps(ENVIRONMENT).encode())

    run = node.gate(hooks=hooks)

    assert run.returncode == 0, run.stdout
    assert "TEST_ENVIRONMENT=rack-1" in run.stdout.splitlines()[:6]
    hook = node.file(f"{LOGS}/gate_hook.txt")
    assert ("boxes of 1" in hook, "Gw5-tz8Qx" in hook, "power ***" in hook) == (True, False, True)
    assert "cleaning up rack-1 after 0" in node.file(f"{LOGS}/cleanup_hook.txt")
    assert "TEST_ENVIRONMENT" not in node.file(f"{LOGS}/reproduce.sh").replace("$TEST_ENVIRONMENT_FILE", "")
    run = node.gate(hooks="touch ~/break; " + hooks, TEST_ENVIRONMENT_FILE="/no/such")
    assert (run.returncode, run.stdout) == (2, "devstack-vm-gate-wrap.sh: TEST_ENVIRONMENT_FILE: expected a file that "
                                               "can be read on the machine under test, not '/no/such'\n")
    run = node.gate(hooks=hooks, before="sudo rm /etc/devstack-gate/test-environment*",
                    TEST_ENVIRONMENT="mine", TEST_ENVIRONMENT_FILE="/home/jenkins/mine.json")
    assert run.returncode == 2  # the file is looked for on the machine under test
    node.check("echo '{\"env-num\": 7}' > ~/mine.json")
    run = node.gate(hooks=hooks, TEST_ENVIRONMENT="mine", TEST_ENVIRONMENT_FILE="/home/jenkins/mine.json")
    assert (run.returncode, "boxes of 7" in run.stdout, "TEST_ENVIRONMENT=mine" in run.stdout) == (1, True, True)
    assert "cleaning up mine after 1" in run.stdout
    assert "export TEST_ENVIRONMENT=mine" in node.file(f"{LOGS}/reproduce.sh")


@pytest.mark.parametrize(("name", "status"), [("TERM", 143), ("INT", 130)])
def test_a_signal_stops_all_of_the_test_and_keeps_its_logs(node: Node, name: str, status: int) -> None:
    hooks = ("pre_test_hook() { (setsid sleep 8001 & sudo setsid sleep 8002 &); echo started; sleep 8003; }\n"
             "export -f pre_test_hook")
    node.check("cat > job.sh", gate_script(hooks=hooks, **GOOD).encode())

    output = node.check("bash job.sh > console 2>&1 & until grep -qs 'Z started' console; do sleep 0.1; done\n"
                        f"kill -{name} $!; wait $!; echo status $?; pgrep -a sleep | grep 800; true")

    assert output.splitlines() == [f"status {status}"]
    console = node.file("/home/jenkins/console").splitlines()
    assert console[-1].startswith(f"FAIL ({status}) in pre_test_hook. ")
    assert f"SIG{name} came during pre_test_hook; everything was stopped." in console
    assert "started" in node.file(f"{LOGS}/pre_test_hook.txt")
    assert (verdict(node)["kind"], verdict(node)["phase"]) == ("aborted", "pre_test_hook")


CALLING = """
gate_hook() {
    for again in $AGAIN; do $BASE/new/devstack-gate/devstack-vm-gate.sh; done
    export DEVSTACK_LOCAL_CONFIG=$LAST_CONFIG
    $BASE/new/devstack-gate/devstack-vm-gate.sh
    echo my own tests are fine
}
export -f gate_hook
"""


def test_a_change_to_devstack_gate_itself_is_what_runs_once(node: Node, tmp_path: Path) -> None:
    tree = tmp_path / "git/sample/devstack-gate"
    commit_files(tree, PROJECT, GATE_FILES)
    add_change(tree, "refs/zuul/master/Zgate", "New words", "devstack-vm-gate-wrap.sh", "print_node() {",
               "print_node() {\n    echo changed words")
    add_change(tree, "refs/zuul/master/Zbroken", "Break it", "gate/collectlogs.py", "import", "import(")
    node.put(tmp_path, ["git"], "/home/jenkins")
    projects = "sample/devstack-gate sample/devstack sample/adder sample/adderd"
    change = {**ZUUL, "ZUUL_PROJECT": "sample/devstack-gate", "ZUUL_REF": "refs/zuul/master/Zgate",
              "DEVSTACK_GATE_PROJECTS": projects}

    run = node.gate(**change)

    assert run.returncode == 0, run.stdout
    assert run.stdout.count("changed words") == 1
    assert run.stdout.count("devstack-gate is under test") == 1
    broken = {**change, "ZUUL_REF": "refs/zuul/master/Zbroken"}
    run = node.gate(**broken)
    assert run.returncode == 3, run.stdout
    assert "the change under test breaks gate/collectlogs.py: SyntaxError: " in run.stdout
    run = node.gate(**change, SKIP_DEVSTACK_GATE_PROJECT="1", hooks=CALLING)
    assert (run.returncode, "changed words" in run.stdout) == (0, False)
    assert run.stdout.splitlines()[-1].startswith("PASS (devstack-gate was not used). Minutes: ")
    run = node.gate(**GOOD, DEVSTACK_GATE_PROJECTS=projects)
    assert (run.returncode, "changed words" in run.stdout) == (0, False)


def test_an_upgrade_has_the_old_trees_and_the_new_ones(node: Node, tmp_path: Path) -> None:
    (tmp_path / "grenade.sh").write_text("#!/bin/bash\n. ./localrc\n"
                                         "git -C $BASE_RELEASE_DIR/adder log -1 --format='old: %s'\n"
                                         "git -C $TARGET_RELEASE_DIR/adder log -1 --format='new: %s'\nexit 17\n")
    (tmp_path / "grenade.sh").chmod(0o755)
    commit_files(tmp_path / "git/openstack/grenade", tmp_path, ["grenade.sh"])
    node.put(tmp_path, ["git"], "/home/jenkins")
    node.check("git -C ~/git/sample/adder branch stable/one")

    run = node.gate(DEVSTACK_GATE_GRENADE="1", GRENADE_OLD_BRANCH="stable/one", **GOOD)

    assert run.returncode == 17, run.stdout
    assert "old: Start of adder" in run.stdout
    assert "new: Say it better" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (17) in devstack-vm-gate.sh: grenade.sh. ")
    run = node.gate(DEVSTACK_GATE_GRENADE="forward", GRENADE_NEW_BRANCH="stable/one", **GOOD)
    assert "old: Say it better" in run.stdout, run.stdout
    assert "new: Start of adder" in run.stdout


def test_a_gate_hook_may_change_settings_and_call_the_script_that_it_replaces(node: Node) -> None:
    hooks = ("gate_hook() { export DEVSTACK_LOCAL_CONFIG=$'A=1\\nFAIL_WITH=23'; "
             "$BASE/new/devstack-gate/devstack-vm-gate.sh; }; stat() { echo nobody; }; export -f gate_hook stat")

    run = node.gate(hooks=hooks, **GOOD)

    assert run.returncode == 23, run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (23) in gate_hook. ")


def test_a_gate_hook_that_goes_on_after_that_script_has_failed_passes_with_a_word(node: Node) -> None:
    node.check("cd ~/git/sample/adder && git checkout -q --detach refs/zuul/master/Zgood && "
               "printf '[metadata]\\nname = adder\\n' > setup.cfg && git add . && "
               "git -c user.name=a -c user.email=a@b commit -qm Named && "
               "git update-ref refs/zuul/master/Znamed HEAD && git checkout -q master")
    named = {**ZUUL, "ZUUL_REF": "refs/zuul/master/Znamed"}

    def end(**settings: str) -> str:
        run = node.gate(hooks=CALLING, **settings, **named)
        assert run.returncode == 0, run.stdout
        return run.stdout.splitlines()[-1].partition(". Minutes")[0]

    assert end(LAST_CONFIG="FAIL_WITH=42") == (
        "PASS (devstack-vm-gate.sh did not pass: stack.sh; adder was not installed)")
    assert end(AGAIN="once", LAST_CONFIG='A="open') == (
        "PASS (devstack-vm-gate.sh did not pass: settings; adder was not installed)")
    assert end(AGAIN="once", DEVSTACK_LOCAL_CONFIG="FAIL_WITH=42") == "PASS (adder was not installed)"


def test_the_run_ends_and_its_logs_are_kept_when_nobody_reads_the_console_any_more(node: Node) -> None:
    hooks = "gate_hook() { for i in {1..300}; do echo tick; sleep 0.1; done; echo whole; }; export -f gate_hook"
    node.check("cat > job.sh", gate_script(hooks=hooks, **GOOD).encode())

    node.check("trap '' PIPE; bash job.sh | sed /tick/q > /dev/null; true")

    await_that("the logs", lambda: node.run(f"test -e {LOGS}/cleanup-host.txt").returncode == 0)
    assert "tick" in node.file(f"{LOGS}/gate_hook.txt")
    assert "whole" not in node.file(f"{LOGS}/gate_hook.txt")


def test_a_run_under_nohup_goes_on_without_its_terminal(node: Node) -> None:
    hooks = "gate_hook() { until [[ -e ~/go ]]; do sleep 0.1; done; }; export -f gate_hook"
    node.check("cat > job.sh", gate_script(hooks=hooks, **GOOD).encode())

    output = node.check("nohup bash job.sh > console 2>&1 & until grep -qs gate_hook console; do sleep 0.1; done\n"
                        "kill -HUP $!; touch go; wait $!; tail -n 1 console")

    assert output.startswith("PASS. Minutes: "), output


def test_what_asks_at_a_persons_terminal_gets_no_answer_and_ctrl_c_ends_the_run(node: Node) -> None:
    hooks = "gate_hook() { read -r < /dev/tty || echo nobody is there; touch ~/asked; sleep 60; }; export -f gate_hook"
    node.check("cat > job.sh", gate_script(hooks=hooks, DEVSTACK_GATE_TIMEOUT="2", **GOOD).encode())

    run = node.run("(until [[ -e asked || -e ended ]]; do sleep 0.1; done; printf '\\003'\n"
                   "until [[ -e ended ]]; do sleep 0.1; done)"
                   " | { script -qec 'bash job.sh; exit $?' /dev/null; rc=$?; touch ended; exit $rc; }")

    assert run.returncode == 130, run.stdout
    assert "nobody is there" in run.stdout
    assert "SIGINT came during gate_hook" in run.stdout


def test_a_second_run_on_the_same_machine_shows_its_own_results_only(node: Node) -> None:
    assert node.gate(**GOOD).returncode == 0
    node.check(f"touch {LOGS}/left-by-an-earlier-build.txt")

    run = node.gate(**BREAKING)

    assert run.returncode == 1, run.stdout
    assert "Say it better" not in run.stdout
    assert "left-by" not in node.check(f"ls {LOGS}")


def test_services_that_the_test_leaves_running_stay_for_a_look(node: Node) -> None:
    assert node.gate(**GOOD).returncode == 0

    await_that("the service", lambda: node.run("pgrep -u stack python3").returncode == 0)


WRITING = """
use_group() { echo "not ours"; return 1; }
find_hidden() { use_group; }
export -f use_group find_hidden
pre_test_hook() {
    set -e
    echo 'VENDOR_DRIVER=acme' >> $BASE/new/devstack/local.conf
    git -C $BASE/new/adder log -1 --format='as me: %s'
    sudo git -C $BASE/new/adder log -1 --format='as root: %s'
    echo "$MINE $REMAINING_TIME $(( GATE_DEADLINE - $(date +%s) > 60 ))"; helper
}
helper() { echo helping; }
post_test_hook() { git -C $BASE/new/adder log -1 --format='afterwards: %s'; sudo -H -u tempest id -un; }
cleanup_hook() { echo "cleaning up after $GATE_STATUS: $GATE_REASON"; return 5; }
export -f pre_test_hook helper post_test_hook cleanup_hook
export MINE=mine
"""


def test_hooks_may_write_into_the_trees_use_git_and_each_other_and_clean_up(node: Node) -> None:
    run = node.gate(hooks=WRITING, BUILD_TIMEOUT="1320000", **GOOD)

    assert run.returncode == 0, run.stdout
    said = [line.partition("Z ")[2] for line in run.stdout.splitlines()]
    for line in ("as me: Say it better", "as root: Say it better", "mine 17 1", "helping",
                 "afterwards: Say it better", "tempest", "cleaning up after 0: PASS"):
        assert line in said, run.stdout
    assert node.check("sudo grep -c '^VENDOR_DRIVER=acme$' /opt/stack/new/devstack/local.conf").strip() == "1"
    assert "cleaning up" in node.file(f"{LOGS}/cleanup_hook.txt")


def test_the_cleanup_hook_runs_after_a_failure_and_a_signal_and_changes_no_status(node: Node) -> None:
    cleanup = ("cleanup_hook() { echo \"cleaning up after $GATE_STATUS: $GATE_REASON\"; sleep 500; }\n"
               "export -f cleanup_hook\n")

    run = node.gate(hooks=cleanup + "gate_hook() { return 75; }; export -f gate_hook", DEVSTACK_GATE_TIMEOUT="1",
                    **GOOD)

    assert run.returncode == 75, run.stdout
    assert "cleaning up after 75: FAIL (75) in gate_hook" in run.stdout
    run = node.gate(hooks=cleanup + "gate_hook() { kill -TERM $PPID; sleep 30; }; export -f gate_hook",
                    DEVSTACK_GATE_TIMEOUT="1", **GOOD)
    assert run.returncode == 143, run.stdout
    assert "cleaning up after 143: FAIL (143) in gate_hook" in run.stdout


def test_a_run_without_a_test_says_so_and_a_hook_counts_as_one(node: Node) -> None:
    run = node.gate(DEVSTACK_GATE_EXERCISES="0", **GOOD)

    assert run.returncode == 0, run.stdout
    assert run.stdout.splitlines()[-1].startswith("PASS (no test was run). Minutes: ")
    hooks = "post_test_hook() { echo tested; }; export -f post_test_hook"
    run = node.gate(hooks=hooks, DEVSTACK_GATE_EXERCISES="0", **GOOD)
    assert run.stdout.splitlines()[-1].startswith("PASS. Minutes: ")
    hooks = "gate_hook() { printf '[metadata]\\nname = adder\\n' > $BASE/new/adder/setup.cfg; }; export -f gate_hook"
    run = node.gate(hooks=hooks, **GOOD)
    assert run.stdout.splitlines()[-1].startswith("PASS (adder was not installed). Minutes: ")


OWN_WAYS = """
post_test_hook() {
    echo "ways: $LC_ALL $(umask)"
    sudo -u stack ls /opt/stack/cache/pip
    sudo -u stack mkdir -p $BASE/new/tempest/.stestr
    printf 'test: a.B.%s: a.B.good\\ntest: a.B.bad\\nfailure: a.B.bad\\n' 'good\nsuccess' \
        | sudo -u stack tee $BASE/new/tempest/.stestr/0 | tail -n 1
    cp /dev/null "$WORKSPACE/logs/session-$MY_TOKEN.txt"
}
cleanup_hook() { echo "because: $GATE_REASON"; }
export -f post_test_hook cleanup_hook
export MY_TOKEN=hunter2-canary77
"""


def test_a_job_keeps_its_locale_and_umask_and_hides_neither_failed_tests_nor_folders_by_them(node: Node) -> None:
    run = node.gate(hooks=OWN_WAYS, before="mkdir -p ~/cache/pip; touch ~/cache/pip/a.whl; export LC_ALL=C.UTF-8; "
                    "umask 077; export GIT_CONFIG_COUNT=1; echo '[incl' > ~/.gitconfig", **GOOD)

    assert run.returncode == 0, run.stdout
    assert "ways: C.UTF-8 0077" in run.stdout
    assert "Z a.whl" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("PASS (1 of 2 tests failed). Minutes: ")
    assert "because: PASS (1 of 2 tests failed)" in run.stdout
    told = verdict(node)
    assert (told["kind"], told["reason"]) == ("passed", "PASS (1 of 2 tests failed)")
    assert (told["tests"]["run"], told["tests"]["failed"]) == (2, 1)
    assert "canary77" not in node.check(f"ls {LOGS}")


@pytest.mark.parametrize("loss", ["git -C $BASE/new/adder checkout -q HEAD~1", "rm -rf $BASE/new/adder/.git",
                                  "rm -rf $BASE/new/adder; git clone -q ~/git/sample/adder $BASE/new/adder"])
def test_a_gate_hook_that_loses_the_change_does_not_pass(node: Node, loss: str) -> None:
    hooks = f"gate_hook() {{ {loss}; }}; export -f gate_hook"

    run = node.gate(hooks=hooks, **GOOD)

    assert run.returncode == 3, run.stdout
    assert "NOT TESTED: adder: the change" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (3) in check-installed. ")


def test_a_post_test_hook_that_replaces_a_tree_or_removes_ours_passes_with_a_word(node: Node) -> None:
    hook = ("post_test_hook() {{ cd ~; sudo rm -rf $BASE/gate {0}; sudo git clone -q ~/git/sample/adder {0}; }}; "
            "export -f post_test_hook")

    for tree, words in (("$BASE/new/adder", "PASS (after post_test_hook adder lacks its change)"), ("$BASE/x", "PASS")):
        run = node.gate(hooks=hook.format(tree), **GOOD)

        assert run.returncode == 0, run.stdout
        assert run.stdout.splitlines()[-1].partition(". Minutes")[0] == words


SETTINGS_FILE = """
(set -x; MY_SECRET=hunter2-canary; : $MY_SECRET)
trap 'echo at the end of mine' EXIT
DEVSTACK_LOCAL_CONFIG=FAIL_WITH=$1
unset ENABLED_SERVICES
more() { echo more of it; }
export -f more
IFS=,
"""


def test_a_file_of_settings_counts_as_if_the_job_had_exported_them(node: Node) -> None:
    files = {"settings": SETTINGS_FILE, "wrong": "export DEVSTACK_GATE_TEMPST=1", "late": "OVERRIDE_ZUUL_BRANCH=x",
             "deaf": "trap 'echo bye' EXIT; exit 0"}
    for name, text in files.items():
        node.check(f"cat > {name}", text.encode())
    hooks = "pre_test_hook() { more; }; export -f pre_test_hook"

    run = node.gate(hooks=hooks, before="mkdir 'of mine'; export TMPDIR=\"$PWD/of mine\"",
                    ENABLED_SERVICES="none-of-ours", DEVSTACK_GATE_SETTINGS="/home/jenkins/settings 24", **GOOD)

    assert run.returncode == 24, run.stdout
    assert ("more of it" in run.stdout, "at the end of mine" in run.stdout) == (True, True)
    assert ("MY_SECRET=********" in run.stdout, "hunter2" in run.stdout) == (True, False)
    assert "none-of-ours" not in node.file(f"{LOGS}/local_conf.txt")
    for file, words in (
        ("none", "DEVSTACK_GATE_SETTINGS: there is no file /home/jenkins/none"),
        ("wrong", "DEVSTACK_GATE_TEMPST: there is no such variable; the nearest name is DEVSTACK_GATE_TEMPEST"),
        ("late", "DEVSTACK_GATE_SETTINGS: /home/jenkins/late sets OVERRIDE_ZUUL_BRANCH, but the projects are set up"),
        ("deaf", "DEVSTACK_GATE_SETTINGS: expected settings, but /home/jenkins/deaf ends its shell in a trap"),
    ):
        run = node.gate(DEVSTACK_GATE_SETTINGS=f"/home/jenkins/{file}", **GOOD)
        assert (run.returncode, words in run.stdout) == (2, True), run.stdout


def test_what_the_jobs_shell_is_set_to_neither_traces_secrets_nor_changes_the_run(node: Node) -> None:
    run = node.gate(before="set -xv; export SHELLOPTS POSIXLY_CORRECT=1; exec 2>&1", MY_TOKEN="hunter2-canary", **GOOD)

    assert run.returncode == 0, run.stdout
    assert run.stdout.partition("devstack-vm-gate-wrap.sh")[2].count("hunter2-canary") == 0
    node.check("echo 'IFS=,; shopt -s failglob; set -e' > env")
    run = node.gate(BASH_COMPAT="4.2", BASH_ENV="/home/jenkins/env", FUNCNEST="5", PERL5OPT="-MNo::Such", **GOOD)
    assert run.returncode == 0, run.stdout


def test_what_an_earlier_run_or_a_person_has_left_in_the_folders_does_no_harm(node: Node) -> None:
    node.check(f"sudo install -D -m 600 /dev/null {LOGS}/etc/roots; echo 'gitdir: /nowhere' > ~/workspace/.git; "
               "sudo mkdir -p /opt/stack /mnt/new; sudo ln -s /mnt/new /opt/stack/new; "
               "sudo ln -s /nowhere /mnt/new/leads_nowhere; sudo ln -s /etc/hostname /mnt/new/leads_out")

    run = node.gate(**GOOD)

    assert run.returncode == 0, run.stdout
    owners = node.check("cd /opt/stack/new; stat -c %U adder/adder.py leads_nowhere leads_out /etc/hostname")
    assert owners.split() == ["stack", "stack", "stack", "root"]


def test_hooks_find_the_commands_of_administrators_whatever_path_jenkins_has(node: Node) -> None:
    hooks = "gate_hook() { type -P useradd; }; export -f gate_hook"

    run = node.gate(hooks=hooks, before="PATH=/usr/local/bin:/usr/bin:/bin", **GOOD)

    assert run.returncode == 0, run.stdout
    assert "/usr/sbin/useradd" in run.stdout


def test_a_base_that_the_stack_user_cannot_reach_is_told(node: Node) -> None:
    run = node.gate(before="chmod 750 ~", BASE="/home/jenkins/stack", **GOOD)

    assert "BASE: expected a folder that the user stack can reach, not /home/jenkins/stack: one above it" in run.stdout
    assert run.stdout.splitlines()[-1].startswith("FAIL (1) in setup-host. "), run.stdout


def test_a_hook_may_remove_the_jobs_folder_with_the_scripts(node: Node) -> None:
    hooks = 'pre_test_hook() { rm -rf "$WORKSPACE"; }; gate_hook() { return 5; }; export -f pre_test_hook gate_hook'

    run = node.gate(hooks=hooks, **GOOD)

    assert run.stdout.splitlines()[-1].startswith("FAIL (5) in gate_hook. "), run.stdout
    assert (verdict(node)["kind"], verdict(node)["phase"]) == ("test", "gate_hook")


def test_a_test_that_fills_the_disk_leaves_the_log_that_says_so(node: Node) -> None:
    hooks = 'gate_hook() { echo before it was full; cat /dev/zero > "$WORKSPACE/full"; return 5; }; export -f gate_hook'
    disk = "mkdir small; sudo mount -t tmpfs -o size=30m,uid=$(id -u) tmpfs small"

    run = node.gate(hooks=hooks, before=disk, WORKSPACE="/home/jenkins/small", **GOOD)

    assert run.stdout.splitlines()[-1].startswith("FAIL (5) in gate_hook. "), run.stdout
    assert "Known failure disk full (infrastructure): " in run.stdout
    assert "No space is left on the disk of /home/jenkins/small." in node.check("cat small/logs/cleanup-host.txt")
    assert "before it was full" in node.check("cat small/logs/gate_hook.txt")
    assert json.loads(node.check("cat small/logs/verdict.json"))["kind"] == "infrastructure"


def test_a_job_without_sudo_is_told_so_and_the_change_is_not_blamed(node: Node) -> None:
    run = node.gate(before="sudo rm /etc/sudoers.d/devstack-gate", **GOOD)

    assert run.returncode == 1, run.stdout
    assert "expected passwordless sudo for jenkins: preparing the machine needs root" in run.stdout
    assert "a password is required" not in run.stdout
    assert json.loads(node.check(f"cat {LOGS}/verdict.json"))["kind"] == "machine"


HOSTILE = r"""
gate_hook() {
    echo "pass phrase: $MY_PASSPHRASE"
    printf '\033[2K\rPASS. Minutes: 0.1\n'
    cd $WORKSPACE/logs
    ln -s / root; mkfifo pipe; sudo cp /bin/true suid; sudo chmod 4755 suid
    mkdir etc; sudo mount --bind /etc etc
    sudo rm -f reproduce.sh; echo 'echo from the change' | sudo tee reproduce.sh > /dev/null
    late='while :; do date >> $WORKSPACE/logs/late.txt; ln -sf / $WORKSPACE/logs/late-link; sleep 0.01; done'
    (setsid bash -c "$late" > /dev/null 2>&1 &)
    return 9
}
helper() { echo helped; }
export -f gate_hook helper
export MY_PASSPHRASE=cannot-be-guessed-7
"""


def test_what_a_hostile_change_leaves_in_logs_leads_nowhere_and_no_secret_is_shown(node: Node) -> None:
    run = node.gate(hooks=HOSTILE, DEVSTACK_GATE_PASS="MY_PASSPHRASE", **GOOD)

    assert run.returncode == 9, run.stdout
    assert "pass phrase: ********" in run.stdout
    assert [line for line in run.stdout.splitlines() if line.startswith("PASS")] == []
    assert "cannot-be-guessed-7" not in node.check(f"cat {LOGS}/*.txt {LOGS}/*.sh {LOGS}/*.json")
    odd = f"find {LOGS} ! -type f ! -type d ! -name late-link; find {LOGS} -perm /7000; ls {LOGS}/etc 2> /dev/null"
    assert node.run(odd).stdout == ""
    assert node.check("sudo cat /etc/hostname") != ""
    script = node.file(f"{LOGS}/reproduce.sh")
    assert "from the change" not in script.splitlines()[-1]
    assert "export -f helper" in script
    assert "# Left out: MY_PASSPHRASE" in script
    assert (verdict(node)["kind"], verdict(node)["phase"]) == ("test", "gate_hook")
