"""devstack-vm-launch.py against a cloud and a Jenkins on loopback."""

import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import SCRIPT_SECONDS, Pool, await_line, await_that, image, provider, without_notes

LAUNCH = "devstack-vm-launch.py"

# Slow runs: the first test starts all of them side by side, the last ones look at them.
LOST_ANSWERS: dict[str, dict[str, Any]] = {
    "500": {"then": "status", "status": 500},
    "reset": {"then": "reset"},
    "close": {"then": "close"},
    "cut short": {"then": "truncate"},
    "a page of the load balancer": {"then": "html", "status": 502},
    "none at all": {"then": "hang"},
}
SLOW_BOOTS = {
    "unknown": "server status UNKNOWN",
    "stuck": "server status BUILD",
    "no-address": "active, but without an address",
    "no-ssh": r"jenkins@127\.\S+: no ssh \(.*(refused|Unable to connect).*\)",
}
RATE_LIMITS = {"too many requests": 429, "over limit": 413}
TOLERATED: dict[str, dict[str, Any]] = {
    "a token that runs out": {"token_seconds": 1, "boot_seconds": 2.5},
    "an ssh that comes late": {"ssh_delay_seconds": 2},
    "a boot that takes its time": {"boot_seconds": 4},
    "an address that is shown late": {"list_stale_seconds": 2},
}
NOT_MADE, JENKINS_REFUSES = "not made", "jenkins refuses"


@dataclass
class Slow:
    """A run at its own cloud."""

    pool: Pool
    cloud: str
    process: subprocess.Popen[str]

    def end(self, code: int) -> str:
        """Wait for the run to end with a code; return what it printed."""
        out, err = self.process.communicate(timeout=120)
        assert self.process.returncode == code, err
        return out


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Slow]]:
    knobs: dict[str, dict[str, Any]] = {
        **{what: {"answers": [{"match": "POST /servers", "kind": "after", "times": 1, **answer}]}
           for what, answer in LOST_ANSWERS.items()},
        **{what: {"boot_failure": what, "boot_failure_rate": 1} for what in SLOW_BOOTS},
        **{what: {"rate_limit": 2, "rate_limit_status": status} for what, status in RATE_LIMITS.items()},
        **TOLERATED,
        NOT_MADE: {"answers": [{"match": "POST /servers", "status": 500, "times": 1}]},
        JENKINS_REFUSES: {},
    }
    clouds = {what: f"cloud-{number}" for number, what in enumerate(knobs)}
    folder = tmp_path_factory.mktemp("slow")
    refusal = {"match": "POST /computer/doCreateItem", "status": 500}
    with Pocket(folder, "--machines", "shared-ssh", "--clouds", ",".join(clouds.values())) as pocket, \
            StandIn(folder / "jenkins", knobs={"connect": "instant", "answers": [refusal]}) as jenkins:
        runs = {}
        for what, cloud in clouds.items():
            pool = Pool(folder / cloud, pocket, jenkins if what == JENKINS_REFUSES else None)
            timeout = 2 if what in SLOW_BOOTS else 100
            wanted = 4 if what in RATE_LIMITS else 1
            seeded(pool, provider("one", cloud, boot_timeout=timeout, images=[image(min_ready=wanted)]))
            pool.knobs(cloud, **knobs[what])
            runs[what] = Slow(pool, cloud, pool.start(LAUNCH, "one"))
        try:
            yield runs
        finally:
            for run in runs.values():
                run.process.kill()
                run.process.communicate()


def test_a_machine_is_waited_for(slow: dict[str, Slow]) -> None:
    assert slow[NOT_MADE].process.poll() is None


def seeded(pool: Pool, *providers: dict[str, Any]) -> Pool:
    """Load providers whose image types have a snapshot."""
    pool.load(*providers)
    pool.seed_snapshots()
    return pool


def names(*numbers: int) -> list[str]:
    return [f"devstack-noble-one-{number}" for number in numbers]


def test_launch_fills_the_pool_and_registers_each_machine_with_its_host_key(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=3)]))

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 3 of 3 ready\n"
    assert pool.machines() == dict.fromkeys(names(1, 2, 3), "READY")
    assert pool.server_names() == names(1, 2, 3)
    keys = dict(pool.sql("SELECT name, host_key FROM machine"))
    shown = {name: (node["label"], node["strategy"], node["key"], node["executors"], node["exclusive"])
             for name, node in pool.nodes().items()}
    assert shown == {name: ("devstack-noble", "ManuallyProvided", keys[name], 1, True) for name in names(1, 2, 3)}


def test_a_full_pool_is_left_as_it_is(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.add_machine("READY")

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 1 of 1 ready\n"
    assert pool.server_names() == names(1)


def test_a_snapshot_that_reap_deletes_while_its_machines_boot_costs_none_of_them(pool: Pool) -> None:
    seeded(pool, provider()).knobs(boot_seconds=4)
    pool.run(LAUNCH, "one", "--no-wait", expect=0)
    process = pool.start(LAUNCH, "one")
    await_that("the machines to be taken over", lambda: pool.calls("GET", "/servers/detail") >= 3)
    pool.sql("DELETE FROM snapshot_image")
    assert process.communicate(timeout=SCRIPT_SECONDS)[0] == "one noble: 2 of 2 ready\n"


def test_each_server_carries_the_pool_the_provider_and_its_row(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))

    pool.run(LAUNCH, "one", expect=0)

    assert {server["name"]: server["metadata"] for server in pool.servers()} == {
        name: pool.marks(machine=number) for number, name in enumerate(names(1, 2), 1)}


def test_the_smallest_flavor_with_enough_memory_is_taken(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1, min_ram=2049)]))

    pool.run(LAUNCH, "one", expect=0)

    assert [server["flavor"] for server in pool.servers()] == ["m1.medium"]


def test_prefix_stands_before_server_node_and_label(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))

    pool.run(LAUNCH, "one", expect=0, DEVSTACK_GATE_PREFIX="try-")

    assert pool.machines() == {"try-devstack-noble-one-1": "READY"}
    assert pool.server_names() == ["try-devstack-noble-one-1"]
    assert {name: node["label"] for name, node in pool.nodes().items()} == {
        "try-devstack-noble-one-1": "try-devstack-noble"}


def test_machines_of_another_prefix_are_told_since_no_build_asks_for_them(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    name = pool.add_machine("READY")

    result = pool.run(LAUNCH, "one", expect=1, DEVSTACK_GATE_PREFIX="ci-")

    assert result.stdout == "one noble: 0 of 1 ready, 1 lost to Jenkins\n"
    assert f"no build can run on {name}: builds ask for ci-devstack-noble since DEVSTACK_GATE_PREFIX was changed; " \
           "delete them with: devstack-vm-reap.py one --all-servers" in result.stderr


def test_a_pool_without_jenkins_is_ready_without_nodes(pool: Pool) -> None:
    pool.jenkins = None
    pool.write_secure_config()
    seeded(pool, provider(images=[image(min_ready=1)]))

    result = pool.run(LAUNCH, "one", expect=0)

    assert pool.sql("SELECT state, jenkins_name FROM machine") == [("READY", None)]
    assert "no [jenkins] section" in result.stderr


@pytest.mark.parametrize("status", ["ERROR", "SHUTOFF", "SHELVED_OFFLOADED"])
def test_without_jenkins_a_machine_whose_server_is_dead_does_not_count_as_ready(pool: Pool, status: str) -> None:
    pool.jenkins = None
    pool.write_secure_config()
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.add_machine()
    pool.pocket_server(pool.add_machine(), status=status)

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 1 of 2 ready, 1 with a dead server\n"


# --- what earlier runs left ---


@pytest.mark.parametrize("columns", [{}, {"external_id": None}], ids=["id saved", "id not saved"])
def test_a_machine_left_building_is_taken_over_and_not_launched_again(pool: Pool, columns: dict[str, Any]) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    name = pool.add_machine("BUILDING", node=False, **columns)
    (server,) = pool.servers()
    pool.pocket_calls_reset()

    pool.run(LAUNCH, "one", expect=0)

    assert pool.machines() == {name: "READY"}
    assert pool.column(name, "external_id") == server["id"]
    assert pool.created() == 0


def test_a_row_without_a_server_costs_the_pool_no_machine(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.add_machine("BUILDING", server=False, node=False)

    pool.run(LAUNCH, "one")
    pool.run("devstack-vm-reap.py", "one", expect=0)

    assert list(pool.machines().values()) == ["READY"]
    assert pool.server_names() == list(pool.machines()) == list(pool.nodes())


def test_a_ready_machine_that_jenkins_does_not_know_is_registered(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    name = pool.add_machine("READY", node=False)

    pool.run(LAUNCH, "one", expect=0)

    assert list(pool.nodes()) == [name]
    assert pool.in_service(name)


def test_a_machine_taken_over_that_does_not_come_up_is_given_up(pool: Pool) -> None:
    seeded(pool, provider(boot_timeout=2, images=[image(min_ready=1)]))
    name = pool.add_machine("BUILDING", node=False, age=599)
    pool.pocket_server(name, ssh="refused")

    result = pool.run(LAUNCH, "one", expect=1)

    assert pool.machines() == {name: "ERROR"}
    assert "not ready after 2 s (boot-timeout)" in result.stderr


# --- how many ---


def test_a_short_pool_is_a_failure_though_every_call_worked(pool: Pool) -> None:
    seeded(pool, provider(max_servers=1, images=[image(min_ready=2)]))

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 1 of 2 ready\n"
    assert "max-servers 1 reached: 1 ready\n" in result.stderr
    assert pool.machines() == {names(1)[0]: "READY"}


def test_without_a_snapshot_the_image_is_reported_and_the_others_are_launched(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1), image("trusty", min_ready=1)]))
    pool.sql("DELETE FROM snapshot_image WHERE base_image_id = (SELECT id FROM base_image WHERE name = 'trusty')")

    result = pool.run(LAUNCH, "one", expect=1)

    assert "image=trusty requesting no more servers in this run: there is no snapshot yet" in result.stderr
    assert result.stdout == "one noble: 1 of 1 ready\none trusty: 0 of 1 ready\n"


def test_two_images_share_too_little_room_by_their_min_ready(pool: Pool) -> None:
    seeded(pool, provider(max_servers=3, images=[image("noble", min_ready=4), image("trusty", min_ready=2)]))

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 2 of 4 ready\none trusty: 1 of 2 ready\n"


@pytest.mark.parametrize(("state", "words"), [
    ("USED", "used"), ("HOLD", "held"), ("ERROR", "failed"), ("DELETE", "to be deleted")])
def test_max_servers_counts_machines_in_every_state(pool: Pool, state: str, words: str) -> None:
    seeded(pool, provider(max_servers=1, images=[image(min_ready=1)]))
    pool.add_machine(state, node=False)
    pool.pocket_calls_reset()

    result = pool.run(LAUNCH, "one", expect=1)

    assert (result.stdout, pool.created()) == ("one noble: 0 of 1 ready\n", 0)
    assert f"max-servers 1 reached: 1 {words}\n" in result.stderr


@pytest.mark.parametrize("marks", [{"machine": 999}, {"snapshot": 999}, {}])
def test_max_servers_counts_servers_of_ours_without_a_row(pool: Pool, marks: dict[str, Any]) -> None:
    seeded(pool, provider(max_servers=1, images=[image(min_ready=1)]))
    pool.boot("leaked", pool.marks(**marks))
    pool.pocket_calls_reset()

    result = pool.run(LAUNCH, "one", expect=1)

    assert (result.stdout, pool.created()) == ("one noble: 0 of 1 ready\n", 0)
    assert "max-servers 1 reached: 1 without a row in vm.db\n" in result.stderr


def test_a_server_that_goes_with_its_row_while_jenkins_is_slow_takes_no_room(pool: Pool) -> None:
    """Servers are listed while Jenkins is asked; a reap may be at work meanwhile."""
    seeded(pool, provider(max_servers=1, images=[image(min_ready=1)]))
    assert pool.jenkins
    going = pool.add_machine("DELETE", node=False)
    pool.pocket_calls_reset()
    pool.jenkins.knobs(latency_seconds=9.0)  # longer than the login to the cloud, also on a busy machine

    launch = pool.start(LAUNCH, "one")
    await_that("the servers to be listed", lambda: pool.calls("GET", "/servers/detail"))
    pool.pocket_server(going, vanish=True)
    pool.sql("DELETE FROM machine WHERE name = ?", going)
    pool.jenkins.knobs(latency_seconds=0.0)
    out, err = launch.communicate(timeout=60)

    assert (launch.returncode, out) == (0, "one noble: 1 of 1 ready\n"), err


def test_max_servers_counts_an_image_build_once(pool: Pool) -> None:
    seeded(pool, provider(max_servers=2, images=[image(min_ready=2)]))
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
             "VALUES (1, 'today', 2, 'BUILDING', 2)")
    ((row,),) = pool.sql("SELECT id FROM snapshot_image WHERE name = 'today'")
    pool.boot("today", pool.marks(snapshot=row))

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 1 of 2 ready\n"
    assert "max-servers 2 reached: 1 ready, 1 building images\n" in result.stderr


def test_other_peoples_servers_take_no_room(pool: Pool) -> None:
    seeded(pool, provider(max_servers=1, images=[image(min_ready=1)]))
    pool.boot("devstack-noble-one-1", pool.marks() | {"devstack-gate-pool": "somebody-else"})
    pool.boot("of-another-provider", pool.marks("two"))

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 1 of 1 ready\n"


def test_dry_run_says_what_it_would_do_and_changes_nothing(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    left = pool.add_machine("BUILDING", node=False, external_id=None)
    before = without_notes(pool.dump())
    pool.pocket_calls_reset()

    result = pool.run(LAUNCH, "one", "--dry-run", expect=0)

    assert result.stdout == "would launch a machine of one noble\n"
    assert without_notes(pool.dump()) == before
    assert (pool.created(), pool.server_names(), pool.nodes()) == (0, [left], {})


def test_no_wait_leaves_the_machines_booting_and_the_next_run_finishes_them(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.knobs(boot_seconds=1.5)

    first = pool.run(LAUNCH, "one", "--no-wait", expect=0)
    assert first.stdout == "one noble: 0 of 2 ready, 2 booting\n"
    assert pool.machines() == dict.fromkeys(names(1, 2), "BUILDING")
    second = pool.run(LAUNCH, "one", expect=0)

    assert second.stdout == "one noble: 2 of 2 ready\n"
    assert pool.machines() == dict.fromkeys(names(1, 2), "READY")
    assert (pool.created(), sorted(pool.nodes())) == (2, names(1, 2))


# --- two at once ---


@pytest.mark.parametrize("other", ["devstack-vm-launch.py", "devstack-vm-reap.py"])
def test_a_launch_beside_another_run_never_makes_more_machines_nor_loses_one(pool: Pool, other: str) -> None:
    seeded(pool, provider(images=[image(min_ready=3)]))
    pool.knobs(boot_seconds=0.3, latency_seconds=0.05)

    runs = [pool.start(script, "one") for script in (LAUNCH, other, other)]
    outputs = [run.communicate(timeout=60) for run in runs]

    assert [run.returncode for run in runs] == [0, 0, 0], outputs
    assert pool.machines() == dict.fromkeys(names(1, 2, 3), "READY")
    assert (pool.created(), pool.server_names(), sorted(pool.nodes())) == (3, names(1, 2, 3), names(1, 2, 3))


def test_an_overlapping_launch_steps_aside_and_says_so(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.knobs(boot_seconds=8)
    first = pool.start(LAUNCH, "one")
    await_that("the first run's machine", pool.machines)

    second = pool.run(LAUNCH, "one", expect=0)

    assert "another launch is at work on this provider; leaving it to that one" in second.stderr
    assert (first.wait(30), pool.created()) == (0, 1)


def test_machines_that_builds_take_while_launch_runs_are_replaced(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    taken = pool.add_machine("READY")
    pool.knobs(boot_seconds=6)
    run = pool.start(LAUNCH, "one")
    await_that("the run to ask for the second machine", lambda: len(pool.machines()) == 2)

    pool.run("devstack-vm-inprogress.py", taken, expect=0)

    output = run.communicate(timeout=60)
    assert run.returncode == 0, output
    assert output[0] == "one noble: 2 of 2 ready\n"
    assert pool.machines() == dict(zip(names(1, 2, 3), ["USED", "READY", "READY"], strict=True))


def test_a_machine_that_a_person_takes_while_it_is_registered_is_out_of_service_in_the_end(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": "POST /computer/doCreateItem", "kind": "hang", "seconds": 6, "times": 1}])
    run = pool.start(LAUNCH, "one")
    await_that("a READY machine", lambda: "READY" in pool.machines().values())

    pool.run("devstack-vm-inprogress.py", "--image", "noble", expect=0)

    output = run.communicate(timeout=60)
    assert pool.machines() == dict(zip(names(1, 2), ["USED", "READY"], strict=True)), output
    assert {name: pool.in_service(name) for name in pool.nodes()} == dict(zip(names(1, 2), [False, True], strict=True))


@pytest.mark.file
def test_a_launch_whose_rows_are_not_written_leaves_no_ids_that_vm_db_does_not_have(pool: Pool) -> None:
    """Such ids would mean that vm.db was restored."""
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.sql("CREATE TRIGGER refuse BEFORE INSERT ON setting WHEN NEW.name LIKE 'last image%' "
             "BEGIN SELECT RAISE(ABORT, 'as told'); END")
    pool.run(LAUNCH, "one", expect=1)
    pool.sql("DROP TRIGGER refuse")

    result = pool.run(LAUNCH, "one", expect=0)

    assert sorted(pool.machines()) == names(1, 2), result.stderr


# --- clouds that fail ---


def test_a_quota_of_which_the_cloud_does_not_tell_stops_the_creates_and_leaves_no_rows_of_failure(pool: Pool) -> None:
    seeded(pool, provider(max_servers=30, max_concurrency=2, images=[image(min_ready=20)]))
    pool.knobs(quota_instances=1, answers=[{"match": "GET /limits", "status": 403}])

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 1 of 20 ready\n"
    assert list(pool.machines().values()) == ["READY"]
    assert "INFO provider=one no limit of instances, cores and RAM is known: " in result.stderr
    assert "requesting no more servers in this run" in result.stderr
    assert "Quota exceeded for instances" in result.stderr
    assert pool.calls("POST", "/servers") <= 2 * 2  # one for each worker after the first refusal


def test_a_server_that_fails_is_an_error_with_the_clouds_words_and_the_next_run_replaces_it(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.knobs(boot_failure="error", boot_failure_next=1, boot_fault="Build of instance aborted: the disk is on fire")

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 1 of 2 ready, 1 failed\n"
    assert pool.sql("SELECT state, error FROM machine WHERE state <> 'READY'") == [
        ("ERROR", "the server went to ERROR: Build of instance aborted: the disk is on fire")]
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 2 of 2 ready\n"


def test_a_server_without_a_host_stops_further_creates(pool: Pool) -> None:
    seeded(pool, provider(calls_per_second=4, max_concurrency=1, images=[image(min_ready=8)]))
    pool.knobs(boot_failure_rate=1, boot_fault="No valid host was found. There are not enough hosts available.")

    result = pool.run(LAUNCH, "one", expect=1)

    assert "requesting no more servers in this run: No valid host was found." in result.stderr
    assert pool.created() < 8
    assert pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout.count("would launch") >= 2


def test_a_refused_create_leaves_no_row_and_is_not_tried_again_in_this_run(pool: Pool) -> None:
    seeded(pool, provider(security_groups=["nobody-knows-it"], max_concurrency=1, images=[image(min_ready=5)]))

    result = pool.run(LAUNCH, "one", expect=1)

    assert "Unable to find security_group with name or id 'nobody-knows-it'" in result.stderr
    assert pool.machines() == {}
    assert pool.calls("POST", "/servers") <= 2


def test_a_server_that_vanishes_while_it_boots_is_an_error_and_the_next_run_replaces_it(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.knobs(boot_seconds=2)
    run = pool.start(LAUNCH, "one")
    server = await_that("a server whose id is saved", lambda: pool.sql(
        "SELECT external_id FROM machine WHERE external_id IS NOT NULL"))[0][0]
    assert pool.pocket

    pool.pocket.server("pocket-a", server, vanish=True)

    assert (run.communicate(timeout=60)[0], run.returncode) == ("one noble: 0 of 1 ready, 1 failed\n", 1)
    assert pool.sql("SELECT state, error FROM machine") == [("ERROR", "the server is gone")]
    pool.knobs(boot_seconds=0)
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 1 of 1 ready\n"


def test_a_server_of_which_parts_of_the_cloud_know_nothing_yet_costs_no_machine(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.knobs(list_stale_seconds=4, answers=[{"match": "GET /servers/[0-9a-f-]{36}", "status": 404, "times": 1}])

    result = pool.run(LAUNCH, "one", expect=0)

    assert (result.stdout, list(pool.machines().values())) == ("one noble: 1 of 1 ready\n", ["READY"])


def test_the_console_log_of_a_machine_without_ssh_is_saved_in_the_workspace(pool: Pool) -> None:
    seeded(pool, provider(boot_timeout=2, images=[image(min_ready=1)]))
    pool.knobs(boot_failure="no-ssh", boot_failure_rate=1)
    workspace = pool.folder / "workspace"
    workspace.mkdir()

    pool.run(LAUNCH, "one", expect=1, WORKSPACE=str(workspace))

    saved = workspace / "console-logs" / "devstack-noble-one-1.txt"
    assert saved.read_text().endswith("devstack-noble-one-1 login: ")


def test_no_console_log_is_written_where_others_could_have_it_written_elsewhere(pool: Pool) -> None:
    seeded(pool, provider(boot_timeout=2, images=[image(min_ready=1)]))
    pool.knobs(boot_failure="no-ssh", boot_failure_rate=1)
    workspace, elsewhere = pool.folder / "workspace", pool.folder / "elsewhere"
    workspace.mkdir()
    elsewhere.mkdir()
    (workspace / "console-logs").symlink_to(elsewhere)
    workspace.chmod(0o777)

    result = pool.run(LAUNCH, "one", expect=1, WORKSPACE=str(workspace))

    assert f"the console log could not be saved: console-logs: {workspace} can be written by others" in result.stderr
    assert list(elsewhere.iterdir()) == []


def test_a_strange_state_is_tolerated_for_a_while(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    name = pool.add_machine("BUILDING", node=False)
    pool.pocket_server(name, status="UNKNOWN")
    run = pool.start(LAUNCH, "one")
    await_that("the run to look", lambda: pool.calls("GET", "/servers/detail") >= 2)

    pool.pocket_server(name, status="ACTIVE")

    output = run.communicate(timeout=60)
    assert (run.returncode, pool.machines()) == (0, {name: "READY"}), output


@pytest.mark.parametrize("answer", [{"status": 500}, {"kind": "reset"}], ids=str)
def test_lists_that_fail_for_a_while_cost_no_machine(pool: Pool, answer: dict[str, Any]) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.knobs(boot_seconds=0.5)
    run = pool.start(LAUNCH, "one")
    await_that("a create", pool.created)

    pool.knobs(answers=[{"match": "GET /servers/detail", "times": 1, **answer}])

    output = run.communicate(timeout=60)
    assert (run.returncode, pool.machines()) == (0, dict.fromkeys(names(1), "READY")), output


def test_empty_lists_for_a_while_cost_no_machine(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.knobs(boot_seconds=0.5)
    run = pool.start(LAUNCH, "one")
    await_that("a create", pool.created)

    pool.knobs(list_empty=2)

    output = run.communicate(timeout=60)
    assert (run.returncode, pool.machines(), pool.created()) == (0, dict.fromkeys(names(1), "READY"), 1), output


def test_one_list_a_round_shows_all_machines(pool: Pool) -> None:
    seeded(pool, provider(max_servers=20, max_concurrency=16, images=[image(min_ready=12)]))

    pool.run(LAUNCH, "one", expect=0)

    assert pool.created() == 12
    assert pool.pocket
    calls = pool.pocket.look()["calls"]["compute"]
    assert calls.get("GET /servers/{id}", 0) == 0
    assert calls["GET /servers/detail"] < 12


def test_one_broken_provider_does_not_stop_the_others(pool: Pool) -> None:
    seeded(pool, provider("one"), provider("two", "pocket-b", images=[image(min_ready=1)]))
    pool.knobs(answers=[{"match": ".*", "status": 500}])

    result = pool.run(LAUNCH, "all", expect=1)

    assert result.stdout == "two noble: 1 of 1 ready\n"
    assert pool.machines() == {"devstack-noble-two-1": "READY"}
    assert "provider one: list servers: " in result.stderr


# --- Jenkins that fails ---


@pytest.mark.parametrize("status", [500, 503])
def test_a_jenkins_that_fails_for_a_moment_gets_the_node_all_the_same(pool: Pool, status: int) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": "POST /computer/doCreateItem", "status": status, "times": 2}])

    pool.run(LAUNCH, "one", expect=0)

    assert (pool.machines(), list(pool.nodes())) == (dict.fromkeys(names(1), "READY"), names(1))


@pytest.mark.parametrize("kind", ["status", "reset", "close"])
def test_a_node_made_though_the_answer_was_lost_is_taken_as_ours(pool: Pool, kind: str) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": "POST /computer/doCreateItem", "kind": kind, "when": "after", "times": 1}])

    pool.run(LAUNCH, "one", expect=0)

    assert (pool.machines(), list(pool.nodes())) == (dict.fromkeys(names(1), "READY"), names(1))


def test_a_node_of_our_name_at_another_address_is_an_error_and_stays_untouched(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.add_node(names(1)[0], "devstack-noble", "127.0.0.99", pool="somebody-else")
    assert pool.jenkins
    pool.jenkins.wait_node(names(1)[0], "online")
    before = pool.nodes()

    pool.run(LAUNCH, "one", expect=1)

    ((state, error),) = pool.sql("SELECT state, error FROM machine")
    assert state == "ERROR"
    assert re.search(r"has a node devstack-noble-one-1 that .*leads to 127\.0\.0\.99:22,", error), error
    assert pool.nodes() == before
    pool.run("devstack-vm-reap.py", "one", expect=0)
    assert (pool.nodes(), pool.machines()) == (before, {})


@pytest.mark.parametrize("answer", [{"status": 401}, {"status": 403}, {"status": 500}, {"status": 503},
                                    {"kind": "reset"}], ids=str)
def test_without_an_answer_of_jenkins_nothing_is_begun(pool: Pool, answer: dict[str, Any]) -> None:
    seeded(pool, provider())
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": ".*", **answer}])

    result = pool.run(LAUNCH, "one")

    assert result.returncode == (2 if answer.get("status") in (401, 403) else 1), result.stderr
    assert re.search(r"devstack-vm-launch\.py: Jenkins http://127\.0\.0\.1:\d+/: list nodes: ", result.stderr)
    assert (pool.machines(), pool.created()) == ({}, 0)


def test_looks_that_take_longer_than_boot_timeout_keep_no_pool_empty(pool: Pool) -> None:
    seeded(pool, provider(boot_timeout=12, images=[image(min_ready=1)]))
    assert pool.jenkins
    pool.pocket_calls_reset()
    pool.jenkins.knobs(latency_seconds=20.0)  # even without the login to the cloud, which goes on meanwhile

    launch = pool.start(LAUNCH, "one")
    await_that("the servers to be listed", lambda: pool.calls("GET", "/servers/detail"))
    pool.jenkins.knobs(latency_seconds=0.0)
    out, err = launch.communicate(timeout=60)

    assert (launch.returncode, out) == (0, "one noble: 1 of 1 ready\n"), err


def test_a_user_who_may_make_no_nodes_is_found_out_before_a_server_is_asked_for(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    assert pool.jenkins
    pool.jenkins.knobs(rights={"admin": ["Overall.Read", "Computer.Configure"]})
    pool.pocket_calls_reset()

    result = pool.run(LAUNCH, "one", expect=2)

    assert (result.stdout, pool.created(), pool.machines()) == ("one noble: 0 of 2 ready\n", 0, {})
    assert "requesting no more servers in this run" in result.stderr
    assert "create nodes: 403, user admin needs the right hudson.model.Computer.Create" in result.stderr


def test_a_pool_that_is_full_asks_for_no_right(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    pool.run(LAUNCH, "one", expect=0)
    assert pool.jenkins
    pool.jenkins.reset_calls()

    pool.run(LAUNCH, "one", expect=0)

    assert pool.jenkins.calls() == {"GET /computer/api/json": 1}


def test_the_next_run_registers_what_a_right_that_was_missing_left_over(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": "POST /computer/doCreateItem", "status": 403}])
    first = pool.run(LAUNCH, "one")
    assert first.returncode in (1, 2)
    assert "user admin needs the right" in first.stderr

    pool.jenkins.knobs(answers=[])
    pool.run("devstack-vm-reap.py", "one", expect=0)
    pool.run(LAUNCH, "one", expect=0)

    ready = [name for name, state in pool.machines().items() if state == "READY"]
    assert (len(ready), pool.server_names(), sorted(pool.nodes())) == (2, sorted(ready), sorted(ready))


# --- settings that reach the cloud ---


def test_floating_ips_always_gives_each_machine_one_and_uses_it(pool: Pool) -> None:
    seeded(pool, provider(floating_ips="always", images=[image(min_ready=2)]))
    pool.knobs(floating_seconds=0.2)

    pool.run(LAUNCH, "one", expect=0)

    assert pool.pocket
    truth = pool.pocket.look()
    servers = {server["port"]: server["id"] for server in truth["servers"]}
    made = {servers[floating["port"]]: floating["address"] for floating in truth["floating_ips"]}
    assert dict(pool.sql("SELECT external_id, ip FROM machine")) == made
    assert {floating["description"] for floating in truth["floating_ips"]} == {
        f"devstack-gate-pool={pool.uuid} server={server}" for server in made}


def test_the_networks_of_the_provider_are_attached(pool: Pool) -> None:
    seeded(pool, provider(networks=["private"], security_groups=["default"], images=[image(min_ready=1)]))

    pool.run(LAUNCH, "one", expect=0)

    assert [server["groups"] for server in pool.servers()] == [["default"]]
    assert [port["device"] for port in pool.pocket_look()["ports"]] == [pool.servers()[0]["id"]]


@pytest.mark.parametrize(("keys", "message"), [
    ({"networks": ["no-such-net"]}, "provider one: networks: there is no network no-such-net"),
    ({"images": [image(flavor="huge")]}, "provider one: no flavor named huge; there are m1.large"),
    ({"images": [image(min_ram=99999)]}, "provider one: no flavor with 99999 MB or more (min-ram)"),
    ({"cloud": "nobody"}, "provider one: clouds.yaml: entry nobody: Cloud nobody was not found"),
], ids=["network", "flavor", "min-ram", "cloud"])
def test_a_wrong_name_in_the_settings_is_wrong_configuration(pool: Pool, keys: dict[str, Any], message: str) -> None:
    pool.load(provider(**keys))
    assert pool.pocket
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, external_id, state, state_time) "
             "VALUES (1, 'seeded', 1, ?, 'READY', 1)", pool.pocket.look()["images"][0]["id"])

    result = pool.run(LAUNCH, "one", expect=2)

    assert message in result.stderr
    assert pool.machines() == {}


def test_wrong_credentials_are_wrong_configuration_and_cost_no_machine(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    name = pool.add_machine("BUILDING", node=False)
    pool.knobs(answers=[{"service": "identity", "match": "POST .*tokens", "status": 401}])

    result = pool.run(LAUNCH, "one", expect=2)

    assert "see entry pocket-a of clouds.yaml" in result.stderr
    assert pool.machines() == {name: "BUILDING"}


# --- the end of the slow runs ---


@pytest.mark.parametrize("failure", SLOW_BOOTS)
def test_a_machine_that_does_not_come_up_is_an_error_after_boot_timeout(slow: dict[str, Slow], failure: str) -> None:
    assert slow[failure].end(1) == "one noble: 0 of 1 ready, 1 failed\n"

    ((state, error),) = slow[failure].pool.sql("SELECT state, error FROM machine")
    assert state == "ERROR"
    assert re.fullmatch(rf"not ready after 2 s \(boot-timeout\); last seen: {SLOW_BOOTS[failure]}", error), error


@pytest.mark.parametrize("answer", LOST_ANSWERS)
def test_a_server_made_though_the_answer_was_lost_is_adopted_and_not_doubled(
        slow: dict[str, Slow], answer: str) -> None:
    assert slow[answer].end(0) == "one noble: 1 of 1 ready\n"

    pool = slow[answer].pool
    assert pool.machines() == {names(1)[0]: "READY"}
    assert pool.sql("SELECT name, external_id FROM machine") == [
        (server["name"], server["id"]) for server in pool.servers(slow[answer].cloud)]


@pytest.mark.parametrize("what", TOLERATED)
def test_what_takes_its_time_is_waited_for(slow: dict[str, Slow], what: str) -> None:
    assert slow[what].end(0) == "one noble: 1 of 1 ready\n"

    assert slow[what].pool.created(slow[what].cloud) == 1


@pytest.mark.parametrize("limit", RATE_LIMITS)
def test_a_rate_limit_is_obeyed(slow: dict[str, Slow], limit: str) -> None:
    assert slow[limit].end(0) == "one noble: 4 of 4 ready\n"

    pool, cloud = slow[limit].pool, slow[limit].cloud
    assert pool.created(cloud) == 4
    requests = [entry for entry in pool.pocket_look(cloud)["requests"] if entry["service"] == "compute"]
    refused = [entry["time"] for entry in requests if entry["status"] == RATE_LIMITS[limit]]
    assert refused, "the limit was never met"
    # Retry-After said one second; what was under way at that moment may still arrive.
    early = [entry for entry in requests for moment in refused if 0.2 < entry["time"] - moment < 0.9]
    assert early == []


def test_a_create_that_made_nothing_is_an_error_and_the_next_run_replaces_it(slow: dict[str, Slow]) -> None:
    assert slow[NOT_MADE].end(1) == "one noble: 0 of 1 ready, 1 failed\n"

    pool = slow[NOT_MADE].pool
    ((state, error),) = pool.sql("SELECT state, error FROM machine")
    assert (state, error.partition(":")[0]) == ("ERROR", "no server 30 s after")
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 1 of 1 ready\n"


def test_a_jenkins_that_does_not_take_the_node_makes_the_machine_an_error(slow: dict[str, Slow]) -> None:
    assert slow[JENKINS_REFUSES].end(1) == "one noble: 0 of 1 ready, 1 failed\n"

    pool = slow[JENKINS_REFUSES].pool
    ((state, error),) = pool.sql("SELECT state, error FROM machine")
    assert state == "ERROR"
    assert re.fullmatch(r"Jenkins http://\S+: create node devstack-noble-one-1: 500 .*", error)
    assert pool.jenkins
    pool.jenkins.knobs(answers=[])
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 1 of 1 ready\n"


def test_a_silent_machine_ends_at_boot_timeout_however_long_its_logins_take(pool: Pool) -> None:
    seeded(pool, provider(boot_timeout=6, images=[image(min_ready=2)]))
    pool.knobs(boot_failure="silent-ssh", boot_failure_rate=1)

    before = time.monotonic()
    pool.run(LAUNCH, "one", expect=1)

    assert list(pool.machines().values()) == ["ERROR", "ERROR"]
    assert time.monotonic() - before < 40  # it took 44 s when the end of each login began the next


@pytest.mark.file
def test_two_spellings_of_one_database_share_its_locks(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.knobs(latency_seconds=0.3)
    link = pool.database.with_name("link.db")
    link.symlink_to(pool.database)

    both = [pool.start(LAUNCH, "one"), pool.start(LAUNCH, "one", DEVSTACK_GATE_DB=str(link))]
    outputs = [process.communicate(timeout=60) for process in both]

    assert [process.returncode for process in both] == [0, 0], outputs
    assert list(pool.machines().values()) == ["READY", "READY"]
    assert len(pool.servers()) == 2


# --- ready means that Jenkins has the agent ---


def test_a_launch_waits_for_the_agents_of_what_it_registers(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    assert pool.jenkins
    pool.jenkins.knobs(connect_seconds=4)

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 2 of 2 ready\n"
    assert {node["state"] for node in pool.nodes().values()} == {"online"}
    assert pool.sql("SELECT count(*) FROM machine WHERE online_time IS NOT NULL") == [(2,)]


def test_an_agent_that_is_awaited_is_no_failure_for_a_while_and_then_it_is(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)]))
    assert pool.jenkins
    pool.jenkins.knobs(connect="never")

    first = pool.run(LAUNCH, "one", expect=0)
    assert first.stdout == "one noble: 0 of 1 ready, 1 waiting for their agents\n"
    pool.sql("UPDATE machine SET state_time = state_time - 600")
    second = pool.run(LAUNCH, "one", expect=1)

    assert second.stdout == "one noble: 0 of 1 ready, 1 lost to Jenkins\n"
    assert re.search("no build can run on devstack-noble-one-1: its agent never came: Jenkins still connects; log: "
                     "http://.*/computer/devstack-noble-one-1/log\n", second.stderr)
    reaped = pool.run("devstack-vm-reap.py", "one", expect=1)
    assert reaped.stdout == "one: deleted 1 machine; 1 ready machine lost to Jenkins\n"


def test_where_no_agent_ever_comes_one_machine_is_tried_at_a_time_until_something_changes(
        make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    seeded(pool, provider(images=[image(min_ready=3)]))
    pool.write_secure_config(credentials_id="no-such")
    first = pool.run(LAUNCH, "one", expect=1)
    assert first.stdout == "one noble: 0 of 3 ready, 3 lost to Jenkins\n"
    reaped = pool.run("devstack-vm-reap.py", "one", expect=1)
    assert "3 ready machines in a row were lost to Jenkins; launch tries one at a time" in reaped.stderr

    tried = pool.run(LAUNCH, "one", expect=1)
    again = pool.run(LAUNCH, "one", expect=1)

    assert tried.stdout == again.stdout == "one noble: 0 of 3 ready, 1 lost to Jenkins\n"
    assert ("3 ready machines in a row were lost to Jenkins (gone LaunchFailed); only one at a time is tried"
            in tried.stderr)
    pool.run("devstack-vm-reap.py", "one", expect=1)
    pool.write_secure_config()
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 3 of 3 ready\n"
    assert pool.sql("SELECT deaths, death FROM base_image") == [(0, None)]


def test_after_machines_that_jenkins_took_offline_each_next_one_waits_for_the_agent_before_it(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=3)]))
    pool.fill()
    assert pool.jenkins
    for name in pool.machines():
        pool.jenkins.node(name, barred="hudson.node_monitors.DiskSpaceMonitorDescriptor$DiskSpace")
    pool.run("devstack-vm-reap.py", "one", expect=1)

    result = pool.run(LAUNCH, "one", expect=0)

    told = re.findall("one-([456]) (asking|registered)", result.stderr)
    assert told == [(number, what) for number in "456" for what in ("asking", "registered")]
    assert pool.sql("SELECT deaths, death FROM base_image") == [(3, "barred DiskSpace")]
    pool.run("devstack-vm-inprogress.py", "devstack-noble-one-4", expect=0)
    assert pool.sql("SELECT deaths FROM base_image") == [(0,)]


def test_ready_machines_whose_nodes_scripts_took_out_of_service_do_not_count_as_ready(pool: Pool) -> None:
    """As after a moment in which vm.db did not answer; reap replaces them."""
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.fill()
    names = list(pool.machines())
    for name in names:
        pool.run("devstack-vm-inprogress.py", name, expect=2, DEVSTACK_GATE_DB=str(pool.folder / "away" / "vm.db"))

    dry = pool.run(LAUNCH, "one", expect=1)

    assert dry.stdout == "one noble: 0 of 2 ready, 2 lost to Jenkins\n"
    assert re.search(f"no build can run on {', '.join(names)}: our scripts took it out of service: "
                     r"Disconnected by \S+ : vm.db did not answer; log: \S+/log\n", dry.stderr)


def test_ready_machines_that_a_person_took_offline_are_named_and_not_counted(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.fill()
    first, second = pool.machines()
    assert pool.jenkins
    said = "2 ready machines are taken offline in Jenkins by a person, and serve no build: "

    pool.jenkins.node(first, temporarilyOffline=True, message="bug 7", user="anna")
    some = pool.run(LAUNCH, "one", expect=0)
    pool.jenkins.node(second, temporarilyOffline=True, user="bert")
    none = pool.run(LAUNCH, "one", expect=1)

    assert some.stdout == "one noble: 1 of 2 ready, 1 offline by a person\n"
    assert none.stdout == "one noble: 0 of 2 ready, 2 offline by a person\n"
    assert f"{said}{first} (Disconnected by anna : bug 7), {second} (Disconnected by bert)\n" in none.stderr
    assert list(pool.machines()) == [first, second]


def test_a_person_who_holds_a_machine_while_it_boots_is_let_in_later(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)]))
    pool.run(LAUNCH, "one", "--no-wait")
    early, late = pool.machines()
    await_that("the boots", lambda: all(one["status"] == "ACTIVE" for one in pool.servers()))
    pool.pocket_server(late, ssh="refused")
    hold = ("vmdatabase.py", "hold", "--reason", "a look", "--ssh-key", f"{pool.key}.pub")
    assert "has no address yet" in pool.run(*hold, early, expect=1).stderr
    run = pool.start(LAUNCH, "one")  # it follows the other one
    await_line(run, f"node={late} taken over")
    pool.run(*hold, late, expect=1)
    pool.pocket_server(late, ssh="up")
    _, err = run.communicate(timeout=100)
    assert f"node={late} is no longer BUILDING; left alone" in err
    shown = {one["name"]: one["address"] for one in pool.servers()}
    assert (pool.column(early, "ip"), pool.column(late, "ip")) == (None, shown[late])

    reaped = pool.run("devstack-vm-reap.py", "one", expect=0)

    assert f"node={early} is held, and has an address now: jenkins@{shown[early]}" in reaped.stderr
    for name in (early, late):
        assert pool.run(*hold, name, expect=0).stdout == f"{name} jenkins@{shown[name]}\n"
    assert {pool.machines()[name] for name in (early, late)} == {"HOLD"}


def test_a_new_snapshot_is_tried_as_if_nothing_had_been(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=3)]))
    pool.fill()
    assert pool.jenkins
    for name in pool.machines():
        pool.jenkins.node(name, barred="hudson.node_monitors.DiskSpaceMonitorDescriptor$DiskSpace")
    pool.run("devstack-vm-reap.py", "one", expect=1)
    pool.seed_snapshots()

    result = pool.run(LAUNCH, "one", expect=0)

    assert "one at a time" not in result.stderr
    assert pool.sql("SELECT deaths FROM base_image") == [(0,)]


def test_a_running_launch_asks_for_no_more_of_an_image_type_that_is_drained(pool: Pool) -> None:
    both = provider(max_concurrency=1, max_servers=30, images=[image("old", min_ready=10), image("new", min_ready=1)])
    seeded(pool, both)
    pool.knobs(latency_seconds=0.4, boot_seconds=1)
    run = pool.start(LAUNCH, "one")
    while not any("-old-" in name for name in pool.machines()):
        assert run.poll() is None
    pool.load({**both, "images": [image("new", min_ready=1)]})
    before = len([name for name in pool.machines() if "-old-" in name])

    run.communicate(timeout=100)

    assert len([name for name in pool.machines() if "-old-" in name]) <= before + 1
