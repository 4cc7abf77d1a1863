"""Image builds side by side, stopped, killed or kept for a person, on real machines."""

import re
import shlex
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.support.pool import NO_APT, Pool, await_line, await_that, clear_cloud, image, make_key, provider
from tests.support.repos import write

UPDATE, LAUNCH, REAP = "devstack-vm-update-image.py", "devstack-vm-launch.py", "devstack-vm-reap.py"
RUN_SECONDS = 120  # to find a hang
CLOUDS = 8
MakePool = Callable[..., Pool]
BAD_ACCOUNT = NO_APT + """cat > /usr/local/sbin/useradd << 'END'
#!/bin/sh
echo the first of two lines
echo the second of two lines
exit 9
END
chmod 755 /usr/local/sbin/useradd
"""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakePool]:
    """Yield a function that makes pools, each at a cloud, whose images take no time to prepare."""
    folder = tmp_path_factory.mktemp("builds")
    names = ",".join(f"cloud-{number}" for number in range(CLOUDS))
    with Pocket(folder, "--machines", "namespace", "--clouds", names) as pocket:
        def make_one(name: str, cloud: str, **keys: Any) -> Pool:
            home = write(folder / name, {"user-data.sh": NO_APT, "bad-account.sh": BAD_ACCOUNT})
            make_key(home)
            pool = Pool(home, pocket)
            clear_cloud(pocket, cloud)
            pool.load(provider(cloud=cloud, **{"images": [image(user_data="user-data.sh")], **keys}))
            pool.seed_snapshots()
            return pool

        yield make_one


def script(pool: Pool, text: str) -> list[str]:
    """Return the arguments that have a custom script run."""
    write(pool.folder, {"custom.sh": f"#!/bin/bash\n{text}\n"})
    return ["--script", str(pool.folder / "custom.sh")]


@contextmanager
def started(pool: Pool, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a build, and kill it in the end."""
    run = pool.start(UPDATE, "one", *arguments)
    try:
        yield run
    finally:
        run.kill()
        run.communicate()


def left(pool: Pool, cloud: str) -> tuple[list[str], list[str], list[str]]:
    """Return the servers, keypairs and images at a cloud."""
    truth = pool.pocket_look(cloud)
    return (pool.server_names(cloud), [one["name"] for one in truth["keypairs"]],
            [one["name"] for one in truth["images"]])


NOTHING: tuple[list[str], list[str], list[str]] = ([], [], ["Debian 12"])


# --- room ---


def test_builds_wait_for_the_room_that_another_one_takes(make: MakePool) -> None:
    keys = {"images": [image(name, user_data="user-data.sh") for name in ("noble", "jammy")]}
    pool = make("room", "cloud-0", max_servers=2, boot_timeout=4, **keys)
    pool.add_machine("READY", node=False, cloud="cloud-0")

    log = pool.run(UPDATE, "one", *script(pool, "sleep 5"), expect=0).stderr

    assert re.search(r"image=\w+ waiting for room: 2 of max-servers \(2\) are taken\n", log), log
    assert pool.sql("SELECT state FROM snapshot_image WHERE name <> 'seeded'") == [("READY",), ("READY",)]


def test_a_build_does_not_wait_for_one_that_was_killed(make: MakePool) -> None:
    pool = make("killed", "cloud-0", max_servers=1)
    pool.sql("INSERT INTO snapshot_image (base_image_id, name, version, state, state_time) "
             "VALUES (1, 'dead', 2, 'BUILDING', 1)")

    pool.run(UPDATE, "one", expect=0)

    assert pool.sql("SELECT name, state, error FROM snapshot_image WHERE version = 2") == [
        ("dead", "ERROR", "its build ended early")]


# --- kept for a person ---


def test_a_template_that_has_forgotten_who_may_log_in_is_not_kept(make: MakePool) -> None:
    pool = make("forgot", "cloud-0")
    pool.knobs("cloud-0", snapshot_failure="killed")

    log = pool.run(UPDATE, "one", "--keep-failed", expect=1).stderr

    assert "the template accepts no login any more, so it is not kept\n" in log
    assert pool.server_names("cloud-0") == []
    assert pool.sql("SELECT keep_until FROM snapshot_image WHERE name <> 'seeded'") == [(None,)]


def test_the_node_s_key_is_tried_where_the_build_s_own_is_gone(make: MakePool) -> None:
    pool = make("account", "cloud-0")
    pool.secure_config.write_text(pool.secure_config.read_text().replace("user = jenkins", "user = debian", 1))

    log = pool.run(UPDATE, "one", "--keep-failed", *script(pool, "exit 3"), expect=1).stderr

    assert re.search(r"WARNING provider=one image=noble log in: ssh -i \S+ -p 22 .* debian@127\.\S+\n", log), log


@pytest.mark.parametrize(("what", "text"), [
    ("template", "exit 3"),
    ("test machine", "mkdir /etc/devstack-gate; ln -s /run/gone /etc/devstack-gate/image"),
])
def test_a_failed_build_keeps_its_server_until_its_time_is_over(make: MakePool, what: str, text: str) -> None:
    """One story in a pool with room for one server: the login, reap, launch, and the end."""
    pool = make(f"kept-{what[:4]}", "cloud-0", max_servers=1)
    log = pool.run(UPDATE, "one", "--keep-failed", *script(pool, text), expect=1).stderr
    assert re.search(rf"WARNING provider=one image=noble keeping the {what} \(server \S+\) for 24 hours", log), log
    ((name, state, until),) = pool.sql("SELECT name, state, keep_until FROM snapshot_image WHERE name <> 'seeded'")
    assert state == "ERROR"
    assert until
    (command,) = re.findall(r"WARNING provider=one image=noble log in: (ssh .*)\n", log)
    words = shlex.split(command)

    into = subprocess.run([*words, "sudo -n hostname"], stdin=subprocess.DEVNULL,
                          env={"PATH": pool.environment["PATH"]}, capture_output=True, text=True, timeout=60,
                          check=False)

    assert (into.stdout, into.returncode) == (f"{name.replace('.', '-')}\n", 0), into.stderr
    reaped = pool.run(REAP, "one", expect=0)
    assert pool.server_names("cloud-0") == [name], reaped.stderr
    launched = pool.run(LAUNCH, "one", expect=1)
    assert pool.server_names("cloud-0") == [name], launched.stderr
    assert pool.pocket_look("cloud-0")["keypairs"] == []

    pool.sql("UPDATE snapshot_image SET keep_until = ? WHERE name = ?", 1, name)
    pool.run(REAP, "one", expect=0)
    pool.run(REAP, "one", expect=0)

    assert left(pool, "cloud-0") == NOTHING
    assert pool.sql("SELECT name, state FROM snapshot_image") == [("seeded", "READY")]


# --- nothing done ---


def test_a_dry_run_prints_the_steps_and_asks_the_cloud_for_nothing(make: MakePool) -> None:
    pool = make("dry", "cloud-1")
    devstack = write(pool.folder / "devstack", {"files/debs/general": "tree\n"})
    pool.pocket_calls_reset("cloud-1")

    result = pool.run(UPDATE, "one", "--dry-run", "--devstack", str(devstack), *script(pool, "exit"), expect=0,
                      DEVSTACK_GATE_PROJECTS="openstack/nova openstack/cinder")

    assert result.stdout.splitlines() == [f"one noble: {step}" for step in (
        "boot template", "first login", "stop automatic upgrades", "wait for first boot", "repair packages",
        "make hostname resolve", "upgrade", "install packages", "install kernel headers", "make account",
        "cache packages of master", "clone 2 projects", "cache pip packages of master", "cache test images",
        "forget what pip kept", "run custom script", "remove cron jobs", "write /etc/devstack-gate/image",
        "forget this machine", "snapshot", "boot test machine", "ssh test")]
    assert result.stderr == ""
    assert pool.pocket_look("cloud-1")["requests"] == []
    assert pool.sql("SELECT name FROM snapshot_image") == [("seeded",)]


# --- side by side ---


def test_of_two_images_built_side_by_side_one_fails_and_each_line_says_which(make: MakePool) -> None:
    pool = make("two", "cloud-2", images=[image("fine", user_data="user-data.sh"),
                                          image("poor", user_data="bad-account.sh")])
    pool.knobs("cloud-2", boot_seconds=3)
    pool.pocket_calls_reset("cloud-2")

    result = pool.run(UPDATE, "one", "-v", *script(pool, "echo one line; echo another line"), expect=1)

    pool.knobs("cloud-2", boot_seconds=0)
    made = [entry["method"] for entry in pool.pocket_look("cloud-2")["requests"]
            if re.fullmatch(r"POST /servers|DELETE /servers/.*", f"{entry['method']} {entry['path']}")]
    assert made[:2] == ["POST", "POST"]
    assert pool.sql("SELECT base_image.name, snapshot_image.state FROM snapshot_image JOIN base_image ON "
                    "base_image_id = base_image.id WHERE snapshot_image.name <> 'seeded' ORDER BY 1") == [
        ("fine", "READY"), ("poor", "ERROR")]
    head = r"\S+Z [A-Z]+ provider=one image=(fine|poor) "
    strange = [line for line in result.stderr.splitlines() if not re.match(head, line)]
    assert [line.split(" ", 2)[2] for line in strange] == [
        "provider=one there is no devstack checkout in $WORKSPACE/devstack, so nothing is cached; "
        "devstack-vm-update-image.sh makes one"]
    assert re.search(r"DEBUG provider=one image=fine one line\n.* DEBUG provider=one image=fine another line\n",
                     result.stderr)
    assert re.search(r"ERROR provider=one image=poor no new snapshot: .*: make account: exit status 9\n"
                     r"\S+ ERROR provider=one image=poor +the first of two lines\n"
                     r"\S+ ERROR provider=one image=poor +the second of two lines\n", result.stderr)
    await_that("the servers to be gone", lambda: not pool.servers("cloud-2"))


def test_with_a_max_concurrency_of_one_images_are_built_one_after_the_other(make: MakePool) -> None:
    pool = make("row", "cloud-1", max_concurrency=1, images=[
        image(name, user_data="user-data.sh") for name in ("first", "second")])

    result = pool.run(UPDATE, "one", expect=0)

    order = re.findall(r"image=(\w+) (boot template|BUILDING -> READY)", result.stderr)
    assert order == [("first", "boot template"), ("first", "BUILDING -> READY"),
                     ("second", "boot template"), ("second", "BUILDING -> READY")]
    assert result.stdout.count("\n") == 2


# --- stopped and killed ---


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
                         ids=["SIGTERM", "Ctrl-C"])
def test_a_build_that_is_stopped_in_the_middle_of_a_step_leaves_nothing(
        make: MakePool, number: signal.Signals, code: int) -> None:
    pool = make(f"stopped-{code}", "cloud-3")
    with started(pool, *script(pool, "sleep 600")) as run:
        await_line(run, "make account")

        run.send_signal(number)

        log = run.communicate(timeout=30)[1]
    assert run.returncode == code, log
    await_that("the server to be gone", lambda: not pool.servers("cloud-3"))
    assert left(pool, "cloud-3") == NOTHING
    assert pool.sql("SELECT state, error FROM snapshot_image WHERE name <> 'seeded'") == [
        ("ERROR", "the build was stopped")]
    pool.run(REAP, "one", expect=0)
    assert pool.sql("SELECT name, state FROM snapshot_image") == [("seeded", "READY")]


MOMENTS = {  # when kill -9 hits a build: its log line, and what it is doing then
    "boot template: ": "the first login",
    "make account: ": "a custom script that runs",
    "run custom script: ": "the last steps",
    "forget this machine: ": "a snapshot that is being made",
    " snapshot: ": "the boot of the test machine",
    "boot test machine: ": "the ssh test",
}


def test_a_build_killed_at_any_step_leaves_nothing_after_a_reap_and_the_old_image_current(make: MakePool) -> None:
    def try_moment(number: int, line: str) -> str | None:
        cloud = f"cloud-{number + 1}"
        pool = make(f"killed-{number}", cloud)
        pool.knobs(cloud, snapshot_seconds=2)
        with started(pool, *script(pool, "sleep 600" if line.startswith("make") else "exit 0")) as run:
            await_line(run, f"image=noble {line.strip()}")
            run.kill()
            run.wait()
        pool.knobs(cloud, snapshot_seconds=0)
        building = pool.sql("SELECT state FROM snapshot_image WHERE name <> 'seeded'")
        reaps = [pool.run(REAP, "one") for _ in range(2)]
        rows = pool.sql("SELECT name, state FROM snapshot_image")
        if building == [("BUILDING",)] and left(pool, cloud) == NOTHING and rows == [("seeded", "READY")]:
            return None if reaps[-1].returncode == 0 else reaps[-1].stderr
        return f"{building} {left(pool, cloud)} {rows}\n{reaps[0].stderr}{reaps[1].stderr}"

    with ThreadPoolExecutor(len(MOMENTS)) as threads:
        wrong = {line: text for line, text in zip(
            MOMENTS, threads.map(try_moment, range(len(MOMENTS)), MOMENTS), strict=True) if text}

    assert not wrong, "\n".join(f"killed in {MOMENTS[line]}: {text}" for line, text in wrong.items())


def test_the_build_after_a_killed_one_is_as_good_as_any(make: MakePool, tmp_path: Path) -> None:
    pool = make("again", "cloud-6")
    with started(pool, *script(pool, "sleep 600")) as run:
        await_line(run, "make account: ")
        run.kill()
        run.wait()

    result = pool.run(UPDATE, "one", expect=0)

    assert "BUILDING -> READY" in result.stderr
    pool.run(REAP, "one", expect=0)
    pool.run(REAP, "one", expect=0)
    assert pool.server_names("cloud-6") == []
    assert [state for (state,) in pool.sql("SELECT state FROM snapshot_image ORDER BY id")] == ["READY", "READY"]


def test_an_image_of_a_server_on_a_volume_is_built_used_and_deleted_with_all_its_volumes(make: MakePool) -> None:
    on_volume = image(user_data="user-data.sh", min_ready=1, boot_from_volume=True, volume_size=3)
    pool = make("volume", "cloud-7", images=[on_volume])
    pool.sql("DELETE FROM snapshot_image")
    pool.knobs("cloud-7", no_disks=True)

    pool.run(UPDATE, "one", *script(pool, "echo made > /etc/made"), expect=0)
    pool.run(LAUNCH, "one", expect=0)

    truth = pool.pocket_look("cloud-7")
    (server,) = truth["servers"]
    assert pool.ssh(server["address"], "cat /etc/made").stdout == "made\n"
    (used,) = [volume for volume in truth["volumes"] if volume["server"] == server["id"]]
    (snapshot,) = truth["volume_snapshots"]
    assert (used["size"], used["snapshot"], used["image"]) == (3, snapshot["id"], None)
    assert [image["properties"]["devstack-gate-pool"] for image in truth["images"] if image["id"] == snapshot["image"]
            ] == [pool.uuid]
    pool.run(REAP, "one", expect=0)  # the volume of a snapshot cannot go before the snapshot
    assert len(pool.pocket_look("cloud-7")["volumes"]) == 2

    pool.load(provider(cloud="cloud-7", images=[]))

    def gone() -> bool:
        pool.run(REAP, "one", "--all-servers", "--all-images")
        truth = pool.pocket_look("cloud-7")
        return not truth["volumes"] and not truth["volume_snapshots"]

    await_that("the end of all volumes", gone, RUN_SECONDS)
