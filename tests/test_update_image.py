"""devstack-vm-update-image.py on real machines: what is in the image, and what a failed build leaves."""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import vmdatabase
from tests.pocketcloud.client import Pocket
from tests.support.pool import NO_APT, Pool, await_that, host, image, load_script, make_key, provider

UPDATE, LAUNCH, REAP = "devstack-vm-update-image.py", "devstack-vm-launch.py", "devstack-vm-reap.py"
SCRIPT = """#!/bin/bash
set -eu
echo "made by $(id -un)" > /etc/made-by-the-custom-script
touch /tmp/not-for-long
"""
update_image = load_script(UPDATE)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pocket]:
    """Run clouds with real machines for all tests here."""
    names = ",".join(["pocket-a", "pocket-b", *(f"fails-{number}" for number in range(len(FAILURES)))])
    with Pocket(tmp_path_factory.mktemp("cloud"), "--machines", "namespace", "--clouds", names) as pocket:
        yield pocket


@dataclass
class Built:
    """A pool whose machines come from an image that was built."""

    pool: Pool
    output: str
    log: str
    host_before: dict[str, Any]

    @property
    def addresses(self) -> list[str]:
        return [address for (address,) in self.pool.sql("SELECT ip FROM machine ORDER BY id")]


@pytest.fixture(scope="module")
def built(cloud: Pocket, tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("built")
    pool = Pool(folder, cloud)
    secure = pool.secure_config.read_text().replace("packages = git", "packages = git rsync")
    pool.secure_config.write_text(secure)
    keys: dict[str, Any] = {"username": None, "user_data": "user-data.sh"}
    (folder / "user-data.sh").write_text("#!/bin/sh\necho from user data > /etc/user-data-was-here\n")
    (folder / "custom.sh").write_text(SCRIPT)
    pool.load(provider(images=[image(min_ready=2, **keys)]))
    before = host()
    result = pool.run(UPDATE, "one", expect=0, DEVSTACK_GATE_CUSTOM_SCRIPT=str(folder / "custom.sh"))
    pool.run(LAUNCH, "one", expect=0)
    return Built(pool, result.stdout, result.stderr, before)


def test_the_new_snapshot_is_ready_and_named_after_image_and_version(built: Built) -> None:
    ((name, version, state, external_id),) = built.pool.sql(
        "SELECT name, version, state, external_id FROM snapshot_image")

    assert (name, state) == (f"devstack-noble-{version}.template.openstack.org", "READY")
    assert built.output == f"one noble: {name}\n"
    (made,) = [one for one in built.pool.pocket_look()["images"] if one["name"] != "Debian 12"]
    assert (made["id"], made["name"], made["status"]) == (external_id, name, "active")
    assert made["properties"].items() >= built.pool.marks(snapshot=1).items()


def test_nothing_of_the_build_is_left_at_the_cloud(built: Built) -> None:
    truth = built.pool.pocket_look()

    assert sorted(one["name"] for one in truth["servers"]) == ["devstack-noble-one-1", "devstack-noble-one-2"]
    assert truth["keypairs"] == []


def test_each_phase_is_logged_with_its_time(built: Built) -> None:
    for phase in ("boot template", "first login", "wait for first boot", "make hostname resolve", "upgrade",
                  "install packages", "install kernel headers", "make account", "run custom script", "remove cron jobs",
                  "write /etc/devstack-gate/image", "forget this machine", "snapshot", "boot test machine", "ssh test"):
        assert_found(rf"provider=one image=noble {phase}: \d+\.\d s\n", built.log)


def test_the_node_account_logs_in_with_the_configured_key_and_has_sudo(built: Built) -> None:
    result = built.pool.ssh(built.addresses[0], "id -un; echo $HOME; sudo -n id -un")

    assert (result.stdout, result.returncode) == ("jenkins\n/home/jenkins\nroot\n", 0), result.stderr


def test_the_packages_are_installed(built: Built) -> None:
    result = built.pool.ssh(built.addresses[0], "git --version && rsync --version")

    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("git version ")


def test_the_custom_script_ran_as_root_and_last(built: Built) -> None:
    result = built.pool.ssh(built.addresses[0], "cat /etc/made-by-the-custom-script")

    assert result.stdout == "made by root\n"


def test_the_host_is_as_it_was(built: Built) -> None:
    assert host() == built.host_before


def test_each_machine_has_a_host_key_of_its_own_and_not_the_templates(built: Built) -> None:
    keys = {built.pool.ssh(address, "cat /etc/ssh/ssh_host_ed25519_key.pub").stdout.split()[1]
            for address in built.addresses}

    stored = {key.split()[1] for (key,) in built.pool.sql("SELECT host_key FROM machine")}
    assert len(keys) == 2
    assert keys == stored


def test_each_machine_knows_its_own_name(built: Built) -> None:
    result = built.pool.ssh(built.addresses[1], "hostname; getent ahostsv4 $(hostname) | head -n 1 | cut -d' ' -f1")

    assert result.stdout.splitlines() == ["devstack-noble-one-2", built.addresses[1]]


def test_each_machine_is_told_what_it_is(built: Built) -> None:
    ((snapshot,),) = built.pool.sql("SELECT name FROM snapshot_image")

    result = built.pool.ssh(built.addresses[0], "cat /etc/devstack-gate/node; stat -c '%U %a' /etc/devstack-gate/node")

    assert result.stdout == (f"NODE_PROVIDER=one\nNODE_IMAGE=noble\nNODE_NAME=devstack-noble-one-1\n"
                             f"NODE_SNAPSHOT={snapshot}\nroot 644\n")


def test_the_key_of_the_build_opens_no_machine(built: Built) -> None:
    result = built.pool.ssh(built.addresses[0], "sudo sh -c 'cat /root/.ssh/authorized_keys /home/debian/.ssh/"
                 "authorized_keys 2>/dev/null | grep -c ecdsa; ls /root/devstack-gate-custom-script 2>/dev/null'")

    assert result.stdout.splitlines()[0] == "0"


def test_user_data_reaches_the_machines(built: Built) -> None:
    await_that("user data to run", lambda: built.pool.ssh(
        built.addresses[0], "cat /etc/user-data-was-here").stdout == "from user data\n", 10)


def test_a_root_login_that_only_says_who_to_log_in_as_is_not_taken_for_a_shell(built: Built) -> None:
    """The fixture names no username, so root is tried first; its forced command ends with 142."""
    assert update_image.FIRST_LOGINS[0] == "root"
    assert "BUILDING -> READY" in built.log


# --- builds that fail ---


@dataclass
class Failed:
    """A build that failed beside an older snapshot."""

    pool: Pool
    cloud: str
    code: int
    log: str


@dataclass(frozen=True)
class Failure:
    """A build that will fail, and its message."""

    message: str
    knobs: dict[str, Any] = field(default_factory=dict)
    script: str = ""
    packages: str = "git"
    arguments: tuple[str, ...] = ()
    boot_timeout: int = 30


NO_SSH = {"boot_failure": "no-ssh", "boot_failure_rate": 1}
FAILURES = {
    "snapshot killed": Failure("the snapshot became killed", {"snapshot_failure": "killed"}),
    "snapshot gone": Failure("No image found with ID|404|Not Found", {"snapshot_failure": "error"}),
    "snapshot never active": Failure("the snapshot is not active after 28 s; last: saving",
                                     {"snapshot_failure": "stuck"}, boot_timeout=7),
    "snapshot without ssh": Failure("jenkins@[0-9.]+: no ssh ", {"snapshot_seconds": 8}, boot_timeout=12),
    "snapshot without the account": Failure("jenkins@[0-9.]+: login refused", script="userdel jenkins",
                                            boot_timeout=12),
    "snapshot without sudo": Failure("jenkins@[0-9.]+: let in, but cannot run commands",
                                     script="rm /etc/sudoers.d/devstack-gate", boot_timeout=12),
    "snapshot without marks": Failure("does not carry its marks in /etc/devstack-gate/image",
                                      script="mkdir /etc/devstack-gate; ln -s /run/gone /etc/devstack-gate/image"),
    "boot error": Failure("server went to ERROR: fire",
                          {"boot_failure": "error", "boot_failure_rate": 1, "boot_fault": "fire"}),
    "no ssh": Failure("debian@[0-9.]+: no ssh ", NO_SSH, boot_timeout=3),
    "custom script": Failure(r"run custom script: exit status 3( \||\n.*  ) *no such tree",
                             script="echo no such tree; exit 3"),
    "step that hangs": Failure(r"run custom script: not done after 12 s( \||\n.*  ) *here it stays",
                               script="echo here it stays; sleep 600", arguments=("--step-timeout", "12")),
    "no package": Failure("there is no( package)? no-such-package", packages="no-such-package"),
}


@pytest.fixture(scope="module")
def failures(cloud: Pocket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Failed]:
    """Run all failures of the table side by side, each at its own cloud; return how they ended."""
    runs = {}
    for number, (what, failure) in enumerate(FAILURES.items()):
        pool = Pool(tmp_path_factory.mktemp(f"fails-{number}"), cloud)
        name = f"fails-{number}"
        (pool.folder / "user-data.sh").write_text(NO_APT if failure.packages == "git" else "")
        (pool.folder / "custom.sh").write_text(f"#!/bin/sh\n{failure.script}\n")
        pool.load(provider(cloud=name, boot_timeout=failure.boot_timeout, images=[image(user_data="user-data.sh")]))
        pool.seed_snapshots()
        pool.knobs(name, **failure.knobs)
        pool.secure_config.write_text(pool.secure_config.read_text().replace(
            "packages = git", f"packages = {failure.packages}"))
        runs[what] = pool, name, pool.start(
            UPDATE, "one", "--script", str(pool.folder / "custom.sh"), *failure.arguments)
    pool, name, run = runs["snapshot without ssh"]
    await_that("the snapshot to be under way", lambda: run.poll() is not None or pool.sql(
        "SELECT * FROM snapshot_image WHERE state = 'BUILDING' AND external_id IS NOT NULL"), 90)
    pool.knobs(name, **NO_SSH)
    done = {}
    for what, (pool, name, run) in runs.items():
        log = run.communicate(timeout=120)[1]
        done[what] = Failed(pool, name, run.returncode, log)
    return done


@pytest.mark.parametrize("what", FAILURES)
def test_a_build_that_fails_is_an_error_with_its_reason(failures: dict[str, Failed], what: str) -> None:
    failed, message = failures[what], FAILURES[what].message

    assert failed.code == 1, failed.log
    ((state, error),) = failed.pool.sql("SELECT state, error FROM snapshot_image WHERE name <> 'seeded'")
    assert state == "ERROR"
    assert_found(message, error)
    assert_found(f"no new snapshot: (.*\n)*?.*({message})", failed.log)


def assert_found(pattern: str, text: str) -> None:
    assert re.search(pattern, text), text


@pytest.mark.parametrize("what", FAILURES)
def test_a_build_that_fails_leaves_no_server_and_no_keypair_and_the_old_snapshot_in_use(
        failures: dict[str, Failed], what: str) -> None:
    failed = failures[what]
    await_that("the template server to be gone", lambda: not failed.pool.servers(failed.cloud))

    assert failed.pool.pocket_look(failed.cloud)["keypairs"] == []
    assert failed.pool.sql("SELECT name FROM snapshot_image WHERE state = 'READY'") == [("seeded",)]
    failed.pool.run(REAP, "one", expect=0)
    assert failed.pool.sql("SELECT name, state FROM snapshot_image") == [("seeded", "READY")]
    assert [one["name"] for one in failed.pool.pocket_look(failed.cloud)["images"]] == ["Debian 12"]


def test_a_package_that_is_missing_ends_the_build_only_when_all_else_is_done(failures: dict[str, Failed]) -> None:
    log = failures["no package"].log

    assert "the required package no-such-package ([image] packages) does not exist\n" in log
    assert_found(r"image=noble write /etc/devstack-gate/image: [0-9.]+ s\n.* BUILDING -> ERROR", log)


@pytest.mark.parametrize("what", FAILURES)
def test_each_line_of_a_failure_names_its_image(failures: dict[str, Failed], what: str) -> None:
    lines = failures[what].log.splitlines()

    assert [line for line in lines if " provider=one image=noble " not in line and "no devstack checkout" not in line
            ] == []


# --- more than one build ---


@pytest.fixture
def quick(cloud: Pocket, tmp_path: Path) -> Pool:
    """Make a new pool on the second cloud, which has no machines yet."""
    make_key(tmp_path)
    return Pool(tmp_path, cloud)


def test_a_second_build_of_a_provider_steps_aside(quick: Pool) -> None:
    """It waits 10 s for the lock, which reap may hold for a moment."""
    quick.load(provider("one", "pocket-b"))
    quick.knobs("pocket-b", snapshot_seconds=11)
    first = quick.start(UPDATE, "one")
    await_that("the first build", lambda: quick.sql("SELECT * FROM snapshot_image"))

    second = quick.run(UPDATE, "one", expect=0)

    quick.knobs("pocket-b", snapshot_seconds=0)
    assert " is at work on this provider; leaving it to that one" in second.stderr
    assert first.communicate(timeout=180)[1].count("BUILDING -> READY") == 1
    assert quick.sql("SELECT state FROM snapshot_image") == [("READY",)]


def test_one_image_that_cannot_be_built_does_not_stop_the_others_and_the_next_build_is_current(quick: Pool) -> None:
    (quick.folder / "user-data.sh").write_text(NO_APT)
    quick.load(provider("one", "pocket-b", images=[
        image("ancient", image="Debian 3"), image("noble", min_ready=1, user_data="user-data.sh")]))

    result = quick.run(UPDATE, "one", expect=1)

    assert "image=ancient no new snapshot: provider one: no active image 'Debian 3'" in result.stderr
    assert quick.sql("SELECT base_image.name FROM snapshot_image JOIN base_image ON base_image_id = base_image.id "
                     "WHERE state = 'READY'") == [("noble",)]
    quick.run(UPDATE, "one", "--image", "noble", expect=0)
    quick.run(LAUNCH, "one", expect=1)  # ancient has no snapshot
    assert quick.sql("SELECT snapshot_image_id = (SELECT max(id) FROM snapshot_image) FROM machine") == [(1,)]


def test_a_vm_db_that_fails_under_a_build_is_told_as_that(quick: Pool) -> None:
    quick.load(provider("one", "pocket-b"))
    quick.sql("CREATE TRIGGER broken BEFORE UPDATE OF server_external_id ON snapshot_image "
              "BEGIN SELECT RAISE(FAIL, 'the disk is broken'); END")

    result = quick.run(UPDATE, "one", expect=1)

    assert f"image=noble no new snapshot: {quick.database}: the disk is broken" in result.stderr


def test_a_build_that_is_stopped_cleans_up_behind_itself(quick: Pool) -> None:
    quick.load(provider("one", "pocket-b"))
    quick.knobs("pocket-b", snapshot_seconds=30)
    run = quick.start(UPDATE, "one")
    await_that("the snapshot to be under way", lambda: quick.sql(
        "SELECT * FROM snapshot_image WHERE external_id IS NOT NULL"), 90)

    run.terminate()

    run.communicate(timeout=30)
    quick.knobs("pocket-b", snapshot_seconds=0)
    assert run.returncode == 143
    assert quick.sql("SELECT state FROM snapshot_image") == [("ERROR",)]
    own = [one for one in quick.servers("pocket-b") if one["metadata"].get("devstack-gate-pool") == quick.uuid]
    assert [one for one in own if one["task_state"] != "deleting"] == []


@pytest.mark.parametrize(("arguments", "message"), [
    (["one", "--image", "nobel"], "--image: provider one has no image nobel; did you mean noble?"),
    (["one", "--script", "/no/such/file"], ": /no/such/file cannot be read"),
    (["oen"], "unknown provider oen; did you mean one?"),
], ids=["image", "script", "provider"])
def test_wrong_use_is_named_and_nothing_is_begun(quick: Pool, arguments: list[str], message: str) -> None:
    quick.load(provider("one", "pocket-b"))

    result = quick.run(UPDATE, *arguments, expect=2)

    assert message in result.stderr
    assert quick.sql("SELECT * FROM snapshot_image") == []


@pytest.mark.parametrize("ahead", [0, 1], ids=["alone", "behind one that waits"])
def test_the_clock_of_a_build_is_not_fooled_by_a_cloud_that_is_full(quick: Pool, ahead: int) -> None:
    quick.load(provider("one", "pocket-b", max_servers=1, boot_timeout=2))
    quick.add_machine("READY", server=False, node=False)
    quick.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
              "SELECT id, 'waits', 1, 'BUILDING', 1 FROM base_image LIMIT ?", ahead)
    began = time.monotonic()

    result = quick.run(UPDATE, "one", expect=1)

    assert "no room for a template server within max-servers (1) after 2 s" in result.stderr
    assert time.monotonic() - began >= 2
    assert quick.sql("SELECT state FROM snapshot_image WHERE name <> 'waits'") == [("ERROR",)]


@pytest.mark.parametrize(("seen", "age", "gone"), [(False, 0, False), (False, 31, True), (True, 0, True)])
def test_what_was_just_made_may_not_be_known_everywhere(seen: bool, age: float, gone: bool) -> None:
    err = update_image.nova.GoneError("404")
    with pytest.raises(update_image.nova.GoneError) if gone else contextlib.nullcontext():
        update_image.refuse_gone(err, seen, time.monotonic() - age)
    update_image.refuse_gone(update_image.nova.CloudError("500"), seen, time.monotonic() - age)


def test_a_snapshot_is_newer_than_all_before_it_whatever_the_clock_was(tmp_path: Path) -> None:
    with vmdatabase.opened(tmp_path / "vm.db"):
        one = vmdatabase.Provider.create(
            name="one", cloud="a", max_servers=1, boot_timeout=1, max_concurrency=1, networks="[]", floating_ips="auto",
            address="public-v4", ssh_port=22, security_groups="[]", availability_zones="[]")
        noble = vmdatabase.BaseImage.create(provider=one, name="noble", external_id="x", min_ready=0, min_ram=0)
        assert vmdatabase.next_version(noble) <= time.time()
        vmdatabase.SnapshotImage.create(
            base_image=noble, name="s", version=2**31, state="READY", state_time=1)
        assert vmdatabase.next_version(noble) == 2**31 + 1
