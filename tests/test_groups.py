"""Groups of machines: launch, builds, people, reap, and pools that are interrupted or restored."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.gateclient import client_of
from tests.support.gatenode import Node
from tests.support.pool import PROJECT, Pool, await_that, image, make_key, provider
from tests.support.sampleprojects import GATE_FILES, make_projects_with_changes
from tests.test_launch import seeded
from tests.test_reap import restore

UPDATE, LAUNCH, REAP, INPROGRESS, DELETE = (
    f"devstack-vm-{name}.py" for name in ("update-image", "launch", "reap", "inprogress", "delete"))
LOGS = "/home/jenkins/workspace/logs"
LEAD, *SUBNODES = GROUP = [f"devstack-noble-one-{number}" for number in (1, 2, 3)]


def group_of(pool: Pool, **keys: Any) -> Pool:
    """Load a provider whose machines have two subnodes each."""
    return seeded(pool, provider(**{"images": [image(min_ready=1, subnodes=2)], **keys}))


def addresses(pool: Pool) -> dict[str, str]:
    return dict(pool.sql("SELECT name, ip FROM machine ORDER BY id"))


# --- on real machines ---


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """Run a pool of one machine with two subnodes, whose image was built."""
    folder = tmp_path_factory.mktemp("groups")
    credentials = {"nodes": ("jenkins", make_key(folder))}
    with Pocket(folder, "--machines", "namespace") as pocket, \
            StandIn(folder / "jenkins", credentials=credentials) as jenkins:
        pool = Pool(folder, pocket, jenkins)
        pool.load(provider(images=[image(min_ready=1, subnodes=2)]))
        pool.run(UPDATE, "one", expect=0)
        yield pool


def test_the_first_machine_of_a_group_reaches_the_others_which_go_with_it_and_their_key(real: Pool) -> None:
    result = real.run(LAUNCH, "one", expect=0)
    where = addresses(real)
    lead, *subnodes = where

    def on(name: str, command: str) -> str:
        answer = real.ssh(where[name], command)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    assert result.stdout == "one noble: 1 of 1 ready\n"
    assert real.machines() == dict.fromkeys(where, "READY")
    assert list(real.nodes()) == [lead]
    told = "".join(f"{name} {'primary' if name == lead else 'subnode'} {ip} {ip}\n" for name, ip in where.items())
    assert [on(name, "cat /etc/devstack-gate/nodes") for name in where] == [told] * 3
    for name in subnodes:
        assert on(lead, f"ssh -o BatchMode=yes {name} 'id -un; cat /etc/devstack-gate/node'").splitlines()[::3] == [
            "jenkins", f"NODE_NAME={name}"]
        assert on(lead, f"ssh -o BatchMode=yes {where[name]} sudo -n id -un") == "root\n"
        assert "refused" in on(name, f"ssh -o BatchMode=yes -o StrictHostKeyChecking=no {where[lead]} true 2>&1 "
                                     "| grep -q denied && echo refused")
    assert on(lead, "stat -c '%a %U' /etc/devstack-gate/group-key") == "600 jenkins\n"
    key = on(lead, "cat /etc/devstack-gate/group-key")
    assert not any(key.splitlines()[1] in line for line in real.dump())

    real.run(INPROGRESS, lead, expect=0)
    real.run(DELETE, lead, "--result", "SUCCESS", expect=0)
    assert real.machines() == dict.fromkeys(where, "DELETE")
    real.run(REAP, "one", expect=0)
    assert (real.machines(), real.server_names(), real.nodes()) == ({}, [], {})

    real.run(LAUNCH, "one", expect=0)
    where = addresses(real)
    assert on(next(iter(where)), "cat /etc/devstack-gate/group-key") != key


def shown_hook() -> str:
    """Return the hook of docs/groups.md."""
    (text,) = re.findall(r"```bash\n(.*?)```", (PROJECT / "docs/groups.md").read_text(), re.DOTALL)
    return str(text) + "export -f pre_test_hook"


def test_a_build_runs_a_service_on_each_machine_and_brings_the_logs_of_all(real: Pool, tmp_path: Path) -> None:
    real.run(LAUNCH, "one", expect=0)
    where = addresses(real)
    lead, *subnodes = where
    node = Node(where[lead], real.key)
    make_projects_with_changes(tmp_path / "git", "refs/zuul/master/Zgood", "refs/zuul/master/Zbreaking")
    node.put(tmp_path, ["git"], "/home/jenkins")
    node.put(PROJECT, GATE_FILES, "/home/jenkins/workspace/devstack-gate")
    other = Node(where[subnodes[0]], real.key)
    other.check("sudo mkdir -p /opt/stack/logs && sudo ln -s /etc/shadow /opt/stack/logs/link && "
                "sudo mkfifo /opt/stack/logs/pipe && echo mine | sudo tee '/opt/stack/logs/a b' /var/log/syslog")

    asks = ("post_test_hook() { for node in $SUBNODES; do ssh $node sudo python3 $BASE/new/adderd/ask.py "
            "$BASE/data/adderd.socket \\'1 2 39\\'; done; echo $PRIMARY_NODE; }; export -f post_test_hook")
    run = node.gate(hooks=f"{shown_hook()}\n{asks}", ZUUL_URL="file:///home/jenkins/git", ZUUL_BRANCH="master",
                    ZUUL_PROJECT="sample/adder", ZUUL_REF="refs/zuul/master/Zgood")

    assert run.returncode == 0, run.stdout
    told = [line for line in run.stdout.splitlines()[:8] if line.startswith("SUBNODE=")]
    assert told == [f"SUBNODE={name} {where[name]}" for name in subnodes]
    assert node.file(f"{LOGS}/post_test_hook.txt").split() == ["42", "42", where[lead]]
    assert "could not be fetched" not in run.stdout
    for name in subnodes:
        assert "asked for [1, 2, 39]" in node.file(f"{LOGS}/{name}/logs/screen-adderd.log")
    assert node.file(f"{LOGS}/{subnodes[0]}/logs/a_b") == "mine\n"
    assert node.file(f"{LOGS}/{subnodes[0]}/syslog") == "mine\n"
    found = node.check(f"cd {LOGS}/{subnodes[0]} && find . ! -type d | sort").split()
    assert not [one for one in found if "link" in one or "pipe" in one]

    with client_of(node, tmp_path) as client:  # the same, driven from here
        code, output = client.run('gate_hook() { echo "they are $SUBNODES"; }; export -f gate_hook')
        assert code == 0, output
        assert [line for line in output.splitlines()[:8] if line.startswith("SUBNODE=")] == told
        assert f"they are {' '.join(where[name] for name in subnodes)}\n" in output
        assert client.log(f"{subnodes[0]}/syslog") == "mine\n"


# --- on machines that have only ssh ---


def test_a_subnode_that_fails_is_replaced_and_goes_alone(pool: Pool) -> None:
    group_of(pool, max_concurrency=1)
    pool.knobs(boot_failure_every=3, boot_fault="no such disk")

    result = pool.run(LAUNCH, "one", expect=0)

    assert pool.machines() == {**dict.fromkeys(GROUP[:2], "READY"), GROUP[2]: "ERROR", "devstack-noble-one-4": "READY"}
    assert "a subnode of devstack-noble-one-1" in pool.run("vmdatabase.py", "history", "devstack-noble-one-4").stdout
    assert f"node={GROUP[2]} BUILDING -> ERROR: the server went to ERROR: no such disk" in result.stderr
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == dict.fromkeys([*GROUP[:2], "devstack-noble-one-4"], "READY")
    assert pool.server_names() == sorted(pool.machines())


def test_a_group_of_which_one_does_not_come_up_in_time_goes_as_a_whole(pool: Pool) -> None:
    group_of(pool, max_concurrency=1, boot_timeout=4)
    pool.knobs(boot_failure_every=3, boot_failure="stuck")

    result = pool.run(LAUNCH, "one", expect=1)

    assert pool.machines() == dict.fromkeys(GROUP, "ERROR")
    assert pool.nodes() == {}
    assert (f"node={LEAD} BUILDING -> ERROR: its subnode {GROUP[2]}: not ready after 4 s (boot-timeout); last seen: "
            "server status BUILD") in result.stderr
    pool.knobs(boot_failure_every=0)
    pool.run(REAP, "one", expect=0)
    pool.run(LAUNCH, "one", expect=0)
    assert pool.machines() == dict.fromkeys((f"devstack-noble-one-{number}" for number in (4, 5, 6)), "READY")


def test_a_subnode_takes_the_place_of_a_first_machine_that_fails(pool: Pool) -> None:
    group_of(pool, max_concurrency=1)
    pool.knobs(boot_failure_next=1, boot_seconds=1, boot_fault="no such disk")

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 1 of 1 ready\n"
    assert pool.machines() == {LEAD: "ERROR", **dict.fromkeys([*SUBNODES, "devstack-noble-one-4"], "READY")}
    assert pool.sql("SELECT id, lead_id FROM machine ORDER BY id") == [(1, 2), (2, None), (3, 2), (4, 2)]
    assert {one["metadata"]["devstack-gate-machine"]: one["metadata"].get("devstack-gate-lead")
            for one in pool.servers()} == {"1": None, "2": "", "3": "2", "4": "2"}
    assert list(pool.nodes()) == [SUBNODES[0]]
    pool.run(REAP, "one", expect=0)
    assert pool.machines() == dict.fromkeys([*SUBNODES, "devstack-noble-one-4"], "READY")


def test_no_group_is_begun_that_quotas_leave_no_room_for(pool: Pool) -> None:
    group_of(pool)

    pool.knobs(quota_instances=2)
    result = pool.run(LAUNCH, "one", expect=1)
    assert pool.machines() == {}
    assert result.stdout == "one noble: 0 of 1 ready, there was room for 0 more: instances\n"


def test_launch_goes_on_with_a_group_that_a_killed_run_has_left(pool: Pool) -> None:
    group_of(pool)
    pool.knobs(boot_seconds=3)
    run = pool.start(LAUNCH, "one")
    await_that("three servers", lambda: len(pool.servers()) == 3)
    run.kill()
    run.communicate()
    assert pool.machines() == dict.fromkeys(GROUP, "BUILDING")
    pool.sql(f"DELETE FROM machine WHERE name = '{GROUP[2]}'")  # as if it had not been asked for yet

    pool.run(LAUNCH, "one", expect=0)

    assert pool.machines() == dict.fromkeys([*GROUP[:2], "devstack-noble-one-4"], "READY")


def test_max_servers_counts_servers(pool: Pool) -> None:
    group_of(pool, max_servers=5, images=[image(min_ready=2, subnodes=2)])
    result = pool.run(LAUNCH, "one", expect=1)
    assert pool.machines() == dict.fromkeys(GROUP, "READY")
    assert result.stdout == "one noble: 1 of 2 ready\n"
    assert result.stderr.endswith("max-servers 5 leaves room for 2, and a machine takes 3 servers with its subnodes: "
                                  "1 ready, 2 subnodes\n")
    dry = pool.run(LAUNCH, "one", "--dry-run", expect=0)
    assert "would launch" not in dry.stdout


def test_a_person_takes_and_holds_a_group_by_its_first_machine(pool: Pool) -> None:
    group_of(pool)
    pool.run(LAUNCH, "one", expect=0)
    where = addresses(pool)

    taken = pool.run(INPROGRESS, "--image", "noble", expect=0)
    refused = pool.run("vmdatabase.py", "hold", GROUP[1], "--reason", "look", expect=2)
    held = pool.run("vmdatabase.py", "hold", LEAD, "--reason", "look", expect=0)

    lines = "".join(f"{name} jenkins@{where[name]}\n" for name in GROUP)
    assert (taken.stdout, held.stdout) == (lines, lines)
    assert refused.stderr == f"vmdatabase.py: {GROUP[1]}: is a subnode of {LEAD}; name that one\n"
    assert pool.machines() == dict.fromkeys(GROUP, "HOLD")
    assert all(server["metadata"]["devstack-gate-hold"] == "look" for server in pool.servers())
    pool.run(REAP, "one", "--all-servers", expect=0)
    assert pool.machines() == dict.fromkeys(GROUP, "HOLD")
    pool.run("vmdatabase.py", "unhold", LEAD, expect=0)
    pool.run(REAP, "one", expect=0)
    assert (pool.machines(), pool.server_names()) == ({}, [])


def test_a_group_that_has_lost_a_server_or_is_of_another_size_than_wanted_is_replaced(pool: Pool) -> None:
    group_of(pool)
    pool.run(LAUNCH, "one", expect=0)
    pool.pocket_server(GROUP[2], vanish=True)
    pool.sql("UPDATE machine SET state_time = state_time - 60")
    result = pool.run(REAP, "one", expect=0)
    assert f"node={LEAD} READY -> ERROR: its subnode {GROUP[2]}: the server is gone" in result.stderr
    assert (pool.machines(), pool.server_names(), pool.nodes()) == ({}, [], {})

    pool.run(LAUNCH, "one", expect=0)
    pool.load(provider(images=[image(min_ready=1, subnodes=1)]))
    result = pool.run(REAP, "one", expect=0)
    assert "READY -> DELETE: it has 2 subnodes, and the providers file says 1" in result.stderr
    pool.run(LAUNCH, "one", expect=0)
    assert list(pool.machines().values()) == ["READY"] * 2


def test_a_group_with_a_dead_server_does_not_count_as_ready(pool: Pool) -> None:
    """Jenkins has no agent on a subnode that it could miss."""
    group_of(pool)
    pool.run(LAUNCH, "one", expect=0)
    pool.pocket_server(GROUP[2], status="SHUTOFF")

    launched = pool.run(LAUNCH, "one", expect=1)
    pool.run(REAP, "one", expect=0)
    again = pool.run(LAUNCH, "one", expect=0)

    assert launched.stdout == "one noble: 0 of 1 ready, 1 with a dead server\n"
    assert f"node={GROUP[2]} is READY, but its server is SHUTOFF; the next reap replaces it\n" in launched.stderr
    assert again.stdout == "one noble: 1 of 1 ready\n"


def test_what_is_left_of_a_used_group_is_kept_for_a_look(pool: Pool) -> None:
    group_of(pool)
    pool.run(LAUNCH, "one", expect=0)
    pool.run(INPROGRESS, "--image", "noble", expect=0)
    pool.pocket_server(GROUP[2], vanish=True)
    pool.sql("UPDATE machine SET state_time = state_time - 60")

    result = pool.run(REAP, "one", expect=0)

    assert f"node={GROUP[2]} USED -> DELETE: the server is gone" in result.stderr
    assert pool.machines() == dict.fromkeys(GROUP[:2], "USED")
    assert pool.run("vmdatabase.py", "hold", LEAD, "--reason", "look", expect=0).stdout.count("jenkins@") == 2
    pool.run("vmdatabase.py", "unhold", LEAD, expect=0)
    pool.run(REAP, "one", expect=0)
    assert (pool.machines(), pool.server_names()) == ({}, [])


def test_a_restored_vm_db_gets_back_the_group_that_a_build_has(pool: Pool) -> None:
    group_of(pool)
    pool.back_up()
    pool.run(LAUNCH, "one", expect=0)
    pool.run(INPROGRESS, LEAD, expect=0, JOB_NAME="gate", BUILD_NUMBER="7")
    restore(pool)

    result = pool.run(REAP, "one")

    assert pool.machines() == dict.fromkeys(GROUP, "USED"), result.stderr
    assert pool.sql("SELECT name, lead_id FROM machine ORDER BY id") == [(LEAD, None), *((one, 1) for one in SUBNODES)]
    assert pool.server_names() == GROUP
    assert pool.sql("SELECT jenkins_job_name, machine_id FROM result") == [("gate", 1)]
