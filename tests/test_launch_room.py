"""devstack-vm-launch.py if a cloud has no more of something, or is slow: addresses, zones, hosts, volumes."""

import re
import time
from typing import Any

import pytest

from tests.conftest import MakePool
from tests.support.pool import NO_APT, Pool, await_that, image, provider

LAUNCH, REAP = "devstack-vm-launch.py", "devstack-vm-reap.py"
NO_RETRIES = "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures."
NO_HOST = "No valid host was found. There are not enough hosts available."


def seeded(pool: Pool, *providers: dict[str, Any]) -> Pool:
    """Load providers whose image types have a snapshot."""
    pool.load(*providers)
    pool.seed_snapshots()
    return pool


def empty(pool: Pool) -> None:
    """Use every machine, and reap until none is left."""
    for name in pool.machines():
        pool.run("devstack-vm-inprogress.py", name, expect=0)
        pool.run("devstack-vm-delete.py", name, "--result", "SUCCESS", expect=0)
    await_that("an empty pool", lambda: pool.run(REAP, "one") and not pool.machines())


# --- floating IPs ---


def test_no_server_is_made_that_can_have_no_floating_ip(pool: Pool) -> None:
    """The cloud does not tell its quotas."""
    seeded(pool, provider(images=[image(min_ready=6)], floating_ips="always", max_servers=20, max_concurrency=2))
    pool.knobs(floating_quota=2, floating_seconds=0.2,
               answers=[{"service": "network", "match": "GET /quotas/.*", "status": 404}])

    first = pool.run(LAUNCH, "one", expect=1)
    again = pool.run(LAUNCH, "one", expect=1)

    assert (first.stdout, again.stdout) == ("one noble: 2 of 6 ready\n",) * 2
    assert "requesting no more servers in this run: provider one: create floating IP: " in again.stderr
    assert "Quota exceeded for resources: ['floatingip']" in again.stderr
    assert pool.created() == 2
    assert list(pool.machines().values()) == ["READY"] * 2


def test_the_floating_ips_of_a_launch_that_was_killed_are_used_by_the_next(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=1)], floating_ips="always"))
    pool.knobs(answers=[{"match": "POST /servers", "kind": "hang"}], floating_seconds=0.2)
    killed = pool.start(LAUNCH, "one")
    await_that("a floating IP", lambda: pool.pocket_look()["floating_ips"])
    await_that("a create", lambda: pool.calls("POST", "/servers"))
    killed.kill()
    killed.communicate()
    (kept,) = [one["id"] for one in pool.pocket_look()["floating_ips"]]
    pool.knobs(answers=[], floating_quota=1)

    pool.run(LAUNCH, "one", expect=0)

    assert [one["id"] for one in pool.pocket_look()["floating_ips"]] == [kept]


def test_a_free_floating_ip_of_the_project_is_borrowed_and_given_back(pool: Pool) -> None:
    network = pool.client().network
    public = network.find_network("public").id
    own = [network.create_ip(floating_network_id=public, description=text).id
           for text in ("for the web site", "devstack-gate-pool=other machine=1", "")]
    seeded(pool, provider(images=[image(min_ready=2)], floating_ips="always"))
    pool.knobs(floating_quota=3, floating_seconds=0.2)

    result = pool.run(LAUNCH, "one", expect=1)
    bound = {one["id"] for one in pool.pocket_look()["floating_ips"] if one["port"]}
    empty(pool)

    assert result.stdout == "one noble: 1 of 2 ready, there was room for 1 more: floating IPs\n"
    assert bound == {own[2]}
    left = [(one["id"], one["description"], one["port"]) for one in pool.pocket_look()["floating_ips"]]
    assert left == [(own[0], "for the web site", None), (own[1], "devstack-gate-pool=other machine=1", None),
                    (own[2], "", None)]


# --- quotas ---


def test_image_types_share_what_quotas_and_other_users_leave_and_no_create_is_refused(pool: Pool) -> None:
    big, small = image("big", min_ready=2, flavor="m1.large"), image("small", min_ready=4)
    seeded(pool, provider(images=[big, small], max_servers=20))
    pool.boot("somebody-elses")
    pool.knobs(quota_cores=10)  # 1 is somebody's; 4 for a big one, 1 for a small one
    pool.pocket_calls_reset()

    planned = pool.run(LAUNCH, "one", "--dry-run", expect=0).stdout
    first = pool.run(LAUNCH, "one", expect=1)
    again = pool.run(LAUNCH, "one", expect=1)
    dry, made = pool.calls("GET", "/limits"), pool.calls("POST", "/servers")
    pool.knobs(quota_cores=None)
    pool.run(LAUNCH, "one", expect=0)
    pool.run(LAUNCH, "one", expect=0)

    assert sorted(planned.splitlines()) == [
        "one big: room for 1 more: cores", "would launch a machine of one big",
        *["would launch a machine of one small"] * 4]
    assert first.stdout == "one big: 1 of 2 ready, there was room for 1 more: cores\none small: 4 of 4 ready\n"
    assert again.stdout == "one big: 1 of 2 ready, there was room for 0 more: cores\none small: 4 of 4 ready\n"
    assert "image=big room for 1 more: cores" in first.stderr
    assert (dry, made) == (3, 5)
    assert pool.calls("GET", "/limits") == 4, "not asked if there is nothing to do"


# --- zones, hosts, image types ---


def test_a_zone_that_takes_no_servers_is_left_for_the_others(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=4)], availability_zones=["closed", "nova"], max_concurrency=2))

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 4 of 4 ready\n"
    assert "continuing in zone nova, since zone closed refused: " in result.stderr


def test_a_server_that_found_no_host_in_one_zone_and_is_made_up_in_another_is_no_failure(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=2)], availability_zones=["nova", "nova-2"], max_concurrency=2))
    pool.knobs(boot_failure_next=1, boot_fault=NO_HOST)

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 2 of 2 ready\n", result.stderr
    assert "continuing in zone nova" in result.stderr


def test_without_any_zone_that_takes_servers_no_more_are_asked_for(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=9)], availability_zones=["closed", "shut"], max_concurrency=1))

    result = pool.run(LAUNCH, "one", expect=1)

    assert "requesting no more servers in this run" in result.stderr
    assert (pool.machines(), pool.calls("POST", "/servers")) == ({}, 2)


def test_one_unlucky_server_in_three_ends_no_fill(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=20)], max_servers=40))
    pool.knobs(boot_failure_every=3, boot_fault=NO_RETRIES)

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one noble: 14 of 20 ready, 6 failed\n", result.stderr
    assert "no more servers" not in result.stderr


def test_servers_that_run_out_of_retries_all_of_them_are_no_room(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=20)], max_servers=40, max_concurrency=1))
    pool.knobs(boot_failure_rate=1, boot_fault=NO_RETRIES, latency_seconds=0.3)

    result = pool.run(LAUNCH, "one", expect=1)

    assert "requesting no more servers in this run: Exceeded maximum number of retries" in result.stderr
    assert 3 <= pool.created() <= 10


def test_an_image_type_whose_flavor_finds_no_host_stops_no_other(pool: Pool) -> None:
    big, small = image("big", min_ready=5, flavor="m1.xlarge"), image("small", min_ready=3)
    seeded(pool, provider(images=[big, small], max_concurrency=1, max_servers=20))
    pool.knobs(boot_failure_next=1, boot_fault=NO_HOST, latency_seconds=0.2)

    result = pool.run(LAUNCH, "one", expect=1)

    assert "one small: 3 of 3 ready\n" in result.stdout, result.stderr
    assert "image=big requesting no more servers in this run: No valid host was found" in result.stderr


@pytest.mark.parametrize(("quota", "ready"), [("cores, ram", 2), ("instances", 0)])
def test_a_quota_of_cores_stops_one_image_type_and_one_of_servers_all(pool: Pool, quota: str, ready: int) -> None:
    big, small = image("big", min_ready=1), image("small", min_ready=2)
    seeded(pool, provider(images=[big, small], max_concurrency=1))
    text = f"Quota exceeded for {quota}: Requested 8, but already used 16 of 20 {quota}"
    pool.knobs(answers=[{"match": "POST /servers", "status": 403, "times": 1,
                         "body": {"forbidden": {"code": 403, "message": text}}}])

    result = pool.run(LAUNCH, "one", expect=1)

    assert f"one small: {ready} of 2 ready\n" in result.stdout, result.stderr


def test_an_image_type_without_a_snapshot_starves_no_other(pool: Pool) -> None:
    pool.load(provider(images=[image("small", min_ready=2)]))
    pool.seed_snapshots()
    pool.load(provider(images=[image("big", min_ready=8), image("small", min_ready=2)], max_concurrency=1))

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one big: 0 of 8 ready\none small: 2 of 2 ready\n"


def test_an_image_type_that_is_drained_while_a_launch_runs_gets_no_more_machines(pool: Pool) -> None:
    old, new = image("old", min_ready=10), image("new", min_ready=1)
    seeded(pool, provider(images=[old, new], max_concurrency=1, max_servers=30))
    pool.knobs(latency_seconds=0.4)
    run = pool.start(LAUNCH, "one")
    await_that("two machines", lambda: len(pool.machines()) >= 2)
    pool.load(provider(images=[new], max_concurrency=1, max_servers=30))
    before = sum("-old-" in name for name in pool.machines())

    run.communicate(timeout=100)

    assert sum("-old-" in name for name in pool.machines()) <= before + 1


# --- time ---


def test_boot_timeout_begins_when_the_create_is_sent(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=8)], calls_per_second=1, boot_timeout=6, max_servers=20))
    pool.knobs(boot_seconds=3)

    result = pool.run(LAUNCH, "one")

    # Late in a run it leaves machines to the next run: it may ask for fewer, but gives up none that it asks for.
    assert "failed" not in result.stdout, result.stderr
    assert set(pool.machines().values()) == {"READY"}
    assert len(pool.machines()) >= 7
    assert pool.sql("SELECT count(*) FROM machine WHERE create_time >= state_time - 10") == [(len(pool.machines()),)]


def test_what_the_cloud_itself_keeps_waiting_is_not_booting(pool: Pool) -> None:
    seeded(pool, provider(images=[image(min_ready=5)], boot_timeout=6, max_servers=20))
    pool.knobs(boot_seconds=2, rate_limit=1.0)

    assert pool.run(LAUNCH, "one").stdout == "one noble: 5 of 5 ready\n"


# --- volumes ---


def on_volume(name: str = "noble", **keys: Any) -> dict[str, Any]:
    """Return an image type whose servers boot from volumes."""
    return image(name, boot_from_volume=True, volume_size=4, **keys)


def volumes(pool: Pool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pool.pocket_look()["volumes"]
    return found


def test_while_volumes_are_stuck_one_machine_is_tried_at_a_time_until_one_is_ready(make_pool: MakePool) -> None:
    """Block storage that makes no volumes would leave as many behind in each run as machines are missing."""
    pool = seeded(make_pool(), provider(boot_timeout=2, images=[on_volume(min_ready=3)]))
    pool.knobs(volume_seconds=9999)
    pool.run(LAUNCH, "one", expect=1)
    assert pool.pocket
    pool.pocket.age("pocket-a", 3600)

    short = pool.run(LAUNCH, "one", expect=1)
    made = len(volumes(pool))
    pool.knobs(volume_seconds=0)
    pool.load(provider(images=[on_volume(min_ready=3)]))
    full = pool.run(LAUNCH, "one", expect=0)

    assert (made, short.stderr.count("asking for a server")) == (3 + 1, 1)
    assert re.search(r"there are stuck volumes of nobody, see devstack-vm-reap.py: (devstack-noble-one-[123] "
                     r"\(creating\),? ?){3}; only one machine with a volume is tried", short.stderr)
    assert re.findall(r"(asking|registered)", full.stderr)[:3] == ["asking", "registered", "asking"]
    assert list(pool.machines().values()) == ["READY"] * 3


def test_servers_boot_from_volumes_where_no_flavor_has_a_disk(pool: Pool) -> None:
    pool.knobs(no_disks=True, volume_seconds=0.5)
    seeded(pool, provider(images=[on_volume(min_ready=2)]))

    pool.run(LAUNCH, "one", expect=0)

    servers = {server["id"]: server["volume"] for server in pool.servers()}
    assert {volume["server"]: volume["id"] for volume in volumes(pool)} == servers
    assert [(one["size"], one["status"], one["metadata"]["devstack-gate-pool"]) for one in volumes(pool)] == [
        (4, "in-use", pool.uuid)] * 2
    empty(pool)
    assert volumes(pool) == []


def test_without_a_volume_a_flavor_without_a_disk_is_not_taken(pool: Pool) -> None:
    pool.knobs(no_disks=True)
    seeded(pool, provider(images=[image(min_ready=1)]))

    result = pool.run(LAUNCH, "one", expect=2)

    assert "no flavor with 512 MB or more (min-ram) and a disk of 1 GB or more for its image" in result.stderr
    assert pool.created() == 0


def test_a_volume_that_a_server_leaves_behind_is_swept_and_nobody_elses(pool: Pool) -> None:
    seeded(pool, provider(images=[on_volume(min_ready=1)], availability_zones=["nova"]))
    pool.run(LAUNCH, "one", expect=0)
    assert [volume["zone"] for volume in volumes(pool)] == ["nova"]  # its server's: many clouds attach no others
    storage = pool.client().block_storage
    others = {"devstack-gate-pool": "another", "devstack-gate-provider": "one", "devstack-gate-machine": "1"}
    kept = {storage.create_volume(size=1, name="own").id, storage.create_volume(size=1, metadata=others).id}
    storage.create_volume(size=1, metadata=pool.marks(machine=77))  # a launch was killed before it had its server
    pool.knobs(volumes_stay=True)

    empty(pool)
    await_that("two volumes", lambda: pool.run(REAP, "one") and len(volumes(pool)) == 2)

    assert {volume["id"] for volume in volumes(pool)} == kept


def test_a_quota_of_volumes_stops_what_needs_them_and_nothing_else(pool: Pool) -> None:
    seeded(pool, provider(images=[on_volume("big", min_ready=3), image("small", min_ready=2)], max_concurrency=1))
    pool.knobs(volume_quota=1, answers=[{"service": "block-storage", "match": "GET /limits", "status": 404}])

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one big: 1 of 3 ready\none small: 2 of 2 ready\n", result.stderr
    assert "image=big requesting no more servers in this run" in result.stderr
    assert "Maximum number of volumes allowed" in result.stderr
    assert len(pool.machines()) == 3


def test_what_fails_before_a_server_is_asked_for_is_waited_for_by_nobody(pool: Pool) -> None:
    seeded(pool, provider(images=[on_volume("big", min_ready=1), image("small", min_ready=1)]))
    pool.knobs(answers=[{"service": "block-storage", "match": "POST /volumes", "status": 503}])

    result = pool.run(LAUNCH, "one", expect=1)

    assert result.stdout == "one big: 0 of 1 ready\none small: 1 of 1 ready\n"
    assert "looking whether there is a server" not in result.stderr
    assert list(pool.machines().values()) == ["READY"]


def test_a_volume_that_fails_leaves_neither_row_nor_volume(pool: Pool) -> None:
    seeded(pool, provider(images=[on_volume(min_ready=1)]))
    pool.knobs(volume_failures=1)

    result = pool.run(LAUNCH, "one", expect=1)

    assert "became error" in result.stderr
    assert (pool.machines(), volumes(pool), pool.created()) == ({}, [], 0)
    pool.run(LAUNCH, "one", expect=0)


def test_a_volume_of_a_machine_that_boots_is_left_alone(pool: Pool) -> None:
    seeded(pool, provider(images=[on_volume(min_ready=1)]))
    pool.knobs(answers=[{"match": "POST /servers", "kind": "hang"}])
    killed = pool.start(LAUNCH, "one")
    await_that("a create", lambda: pool.calls("POST", "/servers"))
    killed.kill()
    killed.communicate()

    pool.run(REAP, "one")
    assert [volume["status"] for volume in volumes(pool)] == ["available"]

    pool.knobs(answers=[])
    pool.run(LAUNCH, "one", expect=0)
    pool.run(REAP, "one", expect=0)
    assert [volume["status"] for volume in volumes(pool)] == ["in-use"]


# --- how image types boot ---


def test_a_config_drive_is_asked_for(pool: Pool) -> None:
    seeded(pool, provider(images=[image("with", min_ready=1, config_drive=True), image("without", min_ready=1)]))

    pool.run(LAUNCH, "one", expect=0)

    found = {one["name"].split("-")[1]: one["config_drive"] for one in pool.servers()}
    assert found == {"with": True, "without": False}


def test_an_image_type_with_a_template_boots_from_its_snapshot_with_its_own_flavor(pool: Pool) -> None:
    pool.load(provider(images=[image("Noble_24.04", min_ready=1)]))
    pool.seed_snapshots()
    large = image("Noble_24.04-large", min_ready=1, min_ram=8192, template="Noble_24.04")
    pool.load(provider(images=[image("Noble_24.04", min_ready=1), large]))

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one Noble_24.04: 1 of 1 ready\none Noble_24.04-large: 1 of 1 ready\n"
    assert {one["name"]: one["flavor"] for one in pool.servers()} == {
        "devstack-Noble_24.04-one-1": "m1.tiny", "devstack-Noble_24.04-large-one-2": "m1.large"}
    assert sorted(node["label"] for node in pool.nodes().values()) == [
        "devstack-Noble_24.04", "devstack-Noble_24.04-large"]
    build = pool.run("devstack-vm-update-image.py", "one", "--dry-run", expect=0)
    assert {line.split(":")[0] for line in build.stdout.splitlines()} == {"one Noble_24.04"}


def with_account(pool: Pool, script: str) -> str:
    """Write user data that makes the node account, and a ready-script; return the path of the user data."""
    public = pool.key.with_name(f"{pool.key.name}.pub").read_text().strip()
    (pool.folder / "setup.sh").write_text(f"""{NO_APT}
useradd -m -s /bin/bash jenkins
mkdir -p /home/jenkins/.ssh; echo '{public}' > /home/jenkins/.ssh/authorized_keys; chown -R jenkins: /home/jenkins
echo 'jenkins ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/jenkins; chmod 440 /etc/sudoers.d/jenkins
""")
    (pool.folder / "ready.sh").write_text(script)
    return str(pool.folder / "setup.sh")


@pytest.fixture
def machines(make_pool: Any) -> Pool:
    """Make a pool whose servers are real machines."""
    pool: Pool = make_pool("namespace", jenkins=None)
    return pool


def test_a_ready_script_runs_as_root_before_the_machine_is_ready(machines: Pool) -> None:
    setup = with_account(machines, "#!/bin/bash\n. /etc/devstack-gate/node\necho $NODE_IMAGE $(id -un) > /etc/mirror\n")
    seeded(machines, provider(images=[image(min_ready=1, user_data=setup, ready_script="ready.sh")]))

    machines.run(LAUNCH, "one", expect=0)

    (address,) = [server["address"] for server in machines.servers()]
    seen = machines.ssh(address, "cat /etc/mirror; sudo ls /var/lib/devstack-gate")
    assert seen.stdout == "noble root\n", seen.stderr


def test_a_machine_whose_ready_script_fails_is_an_error_with_what_it_said(machines: Pool) -> None:
    setup = with_account(machines, "echo no mirror >&2; exit 3\n")
    seeded(machines, provider(images=[image(min_ready=1, user_data=setup, ready_script="ready.sh")], boot_timeout=60))

    before = time.monotonic()
    machines.run(LAUNCH, "one", expect=1)

    ((state, error),) = machines.sql("SELECT state, error FROM machine")
    assert (state, error.partition(": ")[2]) == ("ERROR", "ready-script: exit status 3 | no mirror")
    assert time.monotonic() - before < 50, "it was tried until boot-timeout"


# On a real machine whose sshd is up first, cloud-init replaces the host keys after the first contact.
REPLACES_HOST_KEYS = """
mkdir -p /run/cloud-init /var/lib/cloud/instance/sem
(sleep 6; rm -f /etc/ssh/ssh_host_*; ssh-keygen -q -A; kill -HUP $(cat /run/sshd.pid); sleep 1
touch /var/lib/cloud/instance/sem/config_ssh) > /dev/null 2>&1 &
"""


def test_the_host_key_that_is_kept_is_the_one_that_cloud_init_made(machines: Pool) -> None:
    setup = with_account(machines, "")
    with (machines.folder / "setup.sh").open("a") as file:
        file.write(REPLACES_HOST_KEYS)
    seeded(machines, provider(images=[image(min_ready=1, user_data=setup)], boot_timeout=100))

    machines.run(LAUNCH, "one", expect=0)

    ((address, host_key),) = machines.sql("SELECT ip, host_key FROM machine")
    shown = machines.ssh(address, "cat /etc/ssh/ssh_host_*_key.pub").stdout
    assert host_key in [" ".join(line.split()[:2]) for line in shown.splitlines()]
    assert machines.ssh(address, "ls /var/lib/cloud/instance/sem").stdout == "config_ssh\n"


def test_a_login_that_takes_longer_than_ten_seconds_is_waited_for(machines: Pool) -> None:
    setup = with_account(machines, "")
    with (machines.folder / "setup.sh").open("a") as file:
        file.write("""
printf '#!/bin/sh\\n[ "$PAM_TYPE" = open_session ] && sleep 14\\nexit 0\\n' > /usr/local/sbin/slow
chmod 755 /usr/local/sbin/slow
echo 'session optional pam_exec.so /usr/local/sbin/slow' >> /etc/pam.d/sshd
""")
    seeded(machines, provider(images=[image(min_ready=1, user_data=setup)], boot_timeout=110))

    assert machines.run(LAUNCH, "one").stdout == "one noble: 1 of 1 ready\n"
