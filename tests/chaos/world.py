"""Two clouds, a Jenkins, a pool of two providers, other people's things beside ours; and how peace is made."""

import contextlib
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import psycopg
import requests
import yaml

from tests.chaos.events import Events
from tests.chaos.runs import Run, Starter
from tests.chaos.servers import Servers
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, image, make_key, provider

LAUNCH, REAP, UPDATE = "devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-update-image.py"
INPROGRESS, DELETE, VMDATABASE = "devstack-vm-inprogress.py", "devstack-vm-delete.py", "vmdatabase.py"
IMAGES = {"noble": 4, "jammy": 2}  # min-ready
GROUPS, SUBNODES = {"trio": 1}, 2  # min-ready of groups; the subnodes of each
POOL = IMAGES | GROUPS
ON_VOLUME = "jammy"  # its servers boot from volumes
OF_LABEL, MOST = "noble", 6  # its min-ready is for all providers together; MOST is max-ready per provider
HOST = "devstack-gate-host"  # where Jenkins starts launch and reap for builds
WITH_ENVIRONMENT = "noble"
ENVIRONMENTS = ("rack-1", "rack-2", "rack-3", "rack-4")
GIVEN = re.compile(r"node=(\S+) test environment (\S+): its data is on the machine")
MAX_SERVERS = 32
STORM_BOOT, PEACE_BOOT = 5, 60  # boot-timeout, seconds
PEACE_SECONDS = 1200  # by which everything ages before peace; longer than reap's grace for what has no row
RUN_SECONDS = 120.0  # to find a hang
LONG = 3600.0  # seconds of a build that will be stopped
DISK_KILOBYTES = 16384  # room for a restored vm.db beside the old one, which runs still have open
HOST_SECONDS = 240  # by which the clock of one of the two hosts is ahead
DEAD_URL = "http://127.0.0.1:1"  # nothing listens there
# Short time limits for the scripts, so that a round of outages takes seconds. Each is a constant of the product.
LIMITS = {
    "cloud.nova.CALL_SECONDS": 2, "cloud.nova.RATE_LIMIT_SECONDS": 6,
    "jenkinsnodes.CALL_SECONDS": 2, "jenkinsnodes.LOCK_SECONDS": 6,
    "nodessh.CONNECT_SECONDS": 3,
    "pool.boots.UNSEEN_SECONDS": 4, "pool.boots.UNSEEN_BEFORE_SECONDS": 2, "pool.boots.REGISTER_SECONDS": 4,
    "script.WATCH_SECONDS": 3, "pool.sight.DEAD_NODE_SECONDS": 3, "script.GONE_SECONDS": 3, "script.LOCK_SECONDS": 3,
    "pool.environments.MINUTE": 0.05, "pool.environments.POLL_SECONDS": 0.3, "pool.environments.END_LOOK_SECONDS": 1,
    "pool.environments.WRITE_SECONDS": 8,
    "pool.boots.ONLINE_SECONDS": 3, "script.BUSY_SECONDS": 3, "script.FORGOTTEN_SECONDS": 3,
}
PEACE_LIMITS = {"pool.sight.DEAD_NODE_SECONDS": 2}
BACKUP_KEPT = "backup.db"
CALM_CLOUD: dict[str, Any] = {
    "answers": [], "boot_seconds": 0.1, "boot_failure_rate": 0.0, "boot_failure": "error", "boot_failure_next": 0,
    "delete_ignored": False,
    "delete_seconds": 0.0, "latency_seconds": 0.0, "rate_limit": None, "quota_instances": None, "quota_cores": None,
    "quota_ram": None, "floating_quota": None, "list_empty": 0, "volume_gigabytes_quota": None,
    "list_stale_seconds": 0.0, "snapshot_seconds": 0.1, "snapshot_failure": None, "floating_seconds": 0.1,
    "volume_seconds": 0.1, "volume_failures": 0, "volume_quota": None, "volumes_stay": False,
}
CALM_JENKINS: dict[str, Any] = {"answers": [], "latency_seconds": 0.0, "connect": "instant", "restart_seconds": 0.5,
                                "reconnect_seconds": 0.5, "relaunch_seconds": 0.5, "master_label": HOST,
                                "master_executors": 8}


class World:
    """Everything that a storm affects. `providers` is {name: cloud}."""

    def __init__(self, folder: Path, pocket: Pocket, jenkins: StandIn, starter: Starter,  # noqa: PLR0913 - a world
                 events: Events, providers: dict[str, str], floating_ips: str | None = None, *,
                 own_disk: bool = True, servers: Servers | None = None) -> None:
        """servers: the PostgreSQL servers of the pool's database, if it is not vm.db."""
        self.folder, self.pocket, self.jenkins, self.starter, self.events = folder, pocket, jenkins, starter, events
        self.providers = providers
        self.floating_ips = floating_ips  # None: every second provider wants them
        self.disk = folder / "disk"
        self.disk.mkdir(parents=True)
        self.servers = servers
        self.own_disk = own_disk and not servers  # it can be made full or read-only; needs a new mount namespace
        if self.own_disk:
            self._mount()
        self.pool = Pool(folder, pocket, jenkins, address=servers.create() if servers else "-")
        self.pool.database = self.disk / "vm.db"
        self.pool.patience = RUN_SECONDS
        self.pool.environment |= {"DEVSTACK_GATE_DB": self.pool.address or str(self.pool.database),
                                  "WORKSPACE": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        self.hosts = 0  # runs started so far; they alternate between two hosts
        self.let_in = folder / "let-in"  # a line for each build or person let in: node, who
        self.let_in.touch()
        self.given: dict[str, str] = {}  # node in use: the test environment that it was given
        self.served: set[str] = set()  # nodes that were ever given one
        self.held: dict[str, str | None] = {}  # node: server id, if it had one when it was held
        # server ids that a fault took away: row id of the lead, empty if the server was not a subnode's
        self.vanished: dict[str, str] = {}
        self.providers_file = folder / "providers.yaml"  # written by Pool.load
        self.order: dict[str, Any] = {}  # changes by this round's faults to the orders of runs
        self.unreachable: dict[str, str] = {}  # changes by this round's faults to the environment of runs
        self.strangers: dict[str, Any] = {}
        self.uuid = ""  # of the pool; known even if faults make vm.db unreadable
        self.backup = folder / BACKUP_KEPT
        self.restored = False  # and nobody has said `moved` since
        self.outlived: set[str] = set()  # those of `held` that were held before vm.db was restored

    def __enter__(self) -> Self:
        try:
            self._settle()
        except BaseException:
            self._unmount()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._unmount()

    def _mount(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_KILOBYTES}k", "tmpfs", str(self.disk)], check=True)

    def _unmount(self) -> None:
        if self.own_disk:
            subprocess.run(["umount", "-l", str(self.disk)], check=False)

    def _settle(self) -> None:
        """Make snapshots, a full pool and other people's things."""
        self.calm()
        on_volume = {"boot_from_volume": True, "volume_size": 2}
        images = [image(name, min_ready=0 if name == OF_LABEL else ready, test_environment=name == WITH_ENVIRONMENT,
                        **(on_volume if name == ON_VOLUME else {})) for name, ready in IMAGES.items()]
        images += [image(name, min_ready=ready, subnodes=SUBNODES, template=OF_LABEL)
                   for name, ready in GROUPS.items()]
        least, most = self.wanted_of_label()
        label = {"name": OF_LABEL, "min-ready": least, "max-ready": most, "demand": "queue"}
        described = [provider(name, cloud, images=images, max_servers=MAX_SERVERS, boot_timeout=STORM_BOOT,
                              floating_ips=self.floating_ips or ("auto", "always")[number % 2])
                     for number, (name, cloud) in enumerate(self.providers.items())]
        self.pool.load(*described, labels=[label])
        self._add_environments()
        self.set_boot_timeout(PEACE_BOOT)
        self.uuid = self.pool.uuid
        self._dead_settings()
        self._add_jobs()
        self._add_strangers()
        self.expect_all(self.runs(UPDATE))
        self.expect_all(self.runs(LAUNCH))
        self.strangers = self.strangers_seen()

    def wanted_of_label(self) -> tuple[int, int]:
        """Return the label's min-ready and max-ready."""
        return IMAGES[OF_LABEL] * len(self.providers), MOST * len(self.providers)

    def _add_environments(self) -> None:
        """Add fewer test environments than builds can ask for; each is reset after use."""
        data = self.folder / "environment.json"
        data.write_text("{}")
        told = yaml.safe_load(self.providers_file.read_text())
        told["test-environments"] = [{"name": name, "images": [WITH_ENVIRONMENT], "data": str(data),
                                      "reset": "sleep 0.1"} for name in ENVIRONMENTS]
        self.providers_file.write_text(yaml.safe_dump(told))
        self.expect_all([self.wait(self.start(VMDATABASE, "load", str(self.providers_file)))])

    def note_given(self, lines: Iterable[str]) -> None:
        """Note which test environments devstack-vm-inprogress says that it gave to nodes."""
        for line in lines:
            if (found := GIVEN.search(line)) and found[1] not in self.served:
                self.served.add(found[1])
                self.given[found[1]] = found[2]

    def forget_given(self) -> None:
        """Drop the notes about machines that are not in use any more: a restored vm.db can say that they are."""
        states = self.machines()
        self.given = {node: name for node, name in self.given.items() if states.get(node) in ("USED", "HOLD")}

    def _dead_settings(self) -> None:
        """Write settings with which clouds or Jenkins refuse connections, or Jenkins has no such credential."""
        text = self.pocket.clouds_yaml.read_text()
        clouds = yaml.safe_load(text)
        for cloud in clouds["clouds"].values():
            cloud["auth"]["auth_url"] = cloud["auth"]["auth_url"].replace(self.pocket.url, DEAD_URL)
        (self.folder / "dead-clouds.yaml").write_text(yaml.safe_dump(clouds))
        dead = self.folder / "dead-jenkins.conf"
        dead.write_text(self.pool.secure_config.read_text().replace(self.jenkins.url, f"{DEAD_URL}/"))
        dead.chmod(0o600)
        wrong = self.folder / "wrong-credential.conf"
        text = self.pool.secure_config.read_text()
        wrong.write_text(text.replace("credentials_id = nodes", "credentials_id = no-such"))
        wrong.chmod(0o600)

    def _add_jobs(self) -> None:
        """Add three jobs for each image, which call inprogress and delete as the gate job does.

        One succeeds, one fails, one takes long. Taking a machine starts the launch job, giving it back the reap job.
        """
        limits = {name: seconds for name, seconds in LIMITS.items()
                  if name.startswith(("jenkinsnodes.", "pool.environments.", "script.BUSY_"))}
        starter = self.starter.command(limits=limits)
        start = f"curl --silent --output /dev/null --max-time 2 --user {self.jenkins.user}:{self.jenkins.token} " \
                f"--request POST '{self.jenkins.url}job/'{{}}\"$(cut -d- -f3 <<< \"$1\")\"/build || true"
        script = f'"${{@:4}}" "$1" && echo "$1 $2 #$3" >> {self.let_in} && {start.format("launch-")}'
        give_back = f'rc=0; "${{@:2}}" || rc=$?; {start.format("reap-")}; exit $rc'
        starter_of_all = self.starter.command(limits=LIMITS)
        for name in self.providers:
            for job, what in (("launch", LAUNCH), ("reap", REAP)):
                self.jenkins.add_job(f"{job}-{name}", HOST, seconds=0.0, concurrent=True,
                                     environment={**self.pool.environment, **self.host(0)},
                                     before=[*starter_of_all, what, name])
        for name in POOL:
            for result in ("SUCCESS", "FAILURE", "ABORTED"):
                self.jenkins.add_job(
                    f"gate-{name}-{result}", f"devstack-{name}", seconds=LONG if result == "ABORTED" else 0.2,
                    concurrent=True,
                    environment={**self.pool.environment, **self.host(1)},
                    before=["bash", "-c", script, "inprogress", "$NODE_NAME", "$JOB_NAME", "$BUILD_NUMBER", *starter,
                            INPROGRESS],
                    after=["bash", "-c", give_back, "delete", "$NODE_NAME", *starter, DELETE, "$NODE_NAME",
                           "--result", result])

    def host(self, number: int) -> dict[str, str]:
        """Return the variables of one of two hosts, which say where it keeps its notes; empty if there is one host."""
        return {"XDG_STATE_HOME": str(self.folder / f"host-{number}")} if self.servers else {}

    # --- strangers ---

    def _add_strangers(self) -> None:
        """Add other people's things, some of which look like ours."""
        uuid = "00000000-0000-4000-8000-000000000000"
        for name, cloud in self.providers.items():
            other = self.pool.marks(name, machine=1) | {"devstack-gate-pool": uuid}
            self.pool.boot("somebody-elses", cloud=cloud)
            self.pool.boot(f"devstack-noble-{name}-1", other, cloud=cloud)
            client = self.pool.client(cloud)
            for key in ("somebody-elses", f"devstack-gate-{uuid}-1"):
                client.compute.create_keypair(name=key, public_key=Path(f"{self.pool.key}.pub").read_text().strip())
            client.image.create_image(name="devstack-noble-1.template.openstack.org", disk_format="qcow2",
                                      container_format="bare", **other)
            network = client.network.find_network("public").id
            client.network.create_ip(floating_network_id=network, description="somebody else's")
            client.block_storage.create_volume(size=1, name="somebody else's")
            client.block_storage.create_volume(size=1, name="another pool's", metadata=other)
            for node in (f"somebody-elses-{name}", f"devstack-noble-{name}-999999"):
                self.pool.add_node(node, "other", "127.0.0.1", uuid)

    def strangers_seen(self) -> dict[str, Any]:
        """Return everything that is not ours, as it is now, without what changes by itself."""
        seen: dict[str, Any] = {}
        for cloud in self.providers.values():
            truth = self.pocket.look(cloud)
            ours = self.uuid
            seen[cloud] = {
                "servers": sorted((one["id"], one["name"], one["status"], one["task_state"], one["address"])
                                  for one in truth["servers"] if one["metadata"].get("devstack-gate-pool") != ours),
                "images": sorted((one["id"], one["name"], one["status"]) for one in truth["images"]
                                 if one["properties"].get("devstack-gate-pool") != ours),
                "keypairs": sorted(one["name"] for one in truth["keypairs"] if ours not in one["name"]),
                "floating IPs": sorted((one["id"], one["address"], one["port"]) for one in truth["floating_ips"]
                                       if ours not in one["description"]),
                "volumes": sorted((one["id"], one["name"], one["status"]) for one in truth["volumes"]
                                  if one["metadata"].get("devstack-gate-pool") != ours),
            }
        nodes = self.jenkins.look()["nodes"]
        names = [f"{start}-{name}{end}" for name in self.providers
                 for start, end in (("somebody-elses", ""), ("devstack-noble", "-999999"))]
        seen["Jenkins"] = {name: [nodes[name][key] for key in ("label", "temporarilyOffline", "host")]
                           for name in names if name in nodes}
        return seen

    # --- runs ---

    def start(self, script: str, *arguments: str, spared: bool = False, **order: Any) -> Run:
        """Start a script with short limits and, unless it is spared, with the changes by this round's faults."""
        wanted = {"limits": LIMITS, **({} if spared else self.order), **order}
        environment = self.pool.environment | ({} if spared else self.unreachable)
        if self.servers:  # two hosts, each with its own notes and clock
            self.hosts += 1
            environment |= self.host(self.hosts % 2)
            wanted.setdefault("clock", HOST_SECONDS * (self.hosts % 2))
        return self.starter.start(script, *arguments, environment=environment, folder=str(self.folder), **wanted)

    def machines(self) -> dict[str, str]:
        """Return {node name: state} of all machines, empty if faults make the database unreadable."""
        try:
            return self.pool.machines()
        except (sqlite3.OperationalError, psycopg.OperationalError):
            return {}

    def leads(self) -> dict[str, str]:
        """Return the same without subnodes."""
        try:
            return dict(self.pool.sql("SELECT name, state FROM machine WHERE lead_id IS NULL ORDER BY id"))
        except sqlite3.OperationalError:
            return {}

    def runs(self, script: str, *arguments: str) -> list[Run]:
        """Run a script for all providers at once, with almost no limits shortened; returns the ended runs."""
        runs = [self.start(script, name, *arguments, limits=PEACE_LIMITS) for name in self.providers]
        for run in runs:
            self.wait(run)
        return runs

    @staticmethod
    def wait(run: Run) -> Run:
        """Wait for the end of a run, and return it; a run that hangs is killed."""
        if not run.ended.wait(RUN_SECONDS):
            run.events.add("hangs", run=run.name)
            run.send(9)
            run.ended.wait(RUN_SECONDS)
            run.lines.append(f"chaos: still running after {RUN_SECONDS:.0f} s")
        return run

    def expect_all(self, runs: Iterable[Run]) -> None:
        for run in runs:
            assert run.status == 0, f"{run.name}: {run.status}\n{run.text()}"

    # --- storms and peace ---

    def turn(self, cloud: str, **knobs: Any) -> None:
        """Turn knobs of a cloud."""
        self.events.add("knobs", cloud=cloud, **knobs)
        self.pocket.knobs(cloud, **knobs)

    def calm(self) -> None:
        """Switch every fault off."""
        for cloud in self.providers.values():
            self.pocket.knobs(cloud, **CALM_CLOUD)
        self.jenkins.knobs(**CALM_JENKINS)
        if self.servers:
            self.servers.calm()
        self.order, self.unreachable = {}, {}
        self.remount("rw")
        (self.disk / "ballast").unlink(missing_ok=True)
        if self.uuid:
            self.pause("")

    def remount(self, how: str) -> bool:
        """Remount vm.db's disk rw or ro; returns False if that fails, as while somebody writes there."""
        command = ["mount", "-o", f"remount,{how}", str(self.disk)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def fill_disk(self) -> None:
        """Leave no room on the disk of vm.db."""
        with contextlib.suppress(OSError), (self.disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                ballast.write(b"\0" * 4096)

    def set_boot_timeout(self, seconds: int) -> None:
        """Set the boot-timeout of all providers."""
        self.pool.sql("UPDATE provider SET boot_timeout = ?", seconds)

    def pause(self, name: str) -> None:
        """Pause the provider of this name, and no other."""
        self.pool.sql("UPDATE provider SET paused = CASE WHEN name = ? THEN 1 ELSE 0 END", name)

    def end_builds(self) -> None:
        """Cancel queued builds, and wait for running ones and for those that they start."""
        deadline = time.monotonic() + RUN_SECONDS
        while True:
            seen = self.jenkins.look()
            for item in seen["queue"]:
                requests.post(f"{self.jenkins.url}queue/cancelItem?id={item['id']}", timeout=30,
                              auth=(self.jenkins.user, self.jenkins.token), allow_redirects=False)
            running = [one for one in seen["builds"] if one["building"]]
            if not running and not seen["queue"]:
                return
            assert time.monotonic() < deadline, f"builds do not end: {running}"
            time.sleep(0.05)

    def stop_builds(self) -> None:
        """Abort all running builds."""
        for one in self.jenkins.look()["builds"]:
            if one["building"]:
                requests.post(f"{self.jenkins.url}job/{one['job']}/{one['number']}/stop", timeout=30,
                              auth=(self.jenkins.user, self.jenkins.token), allow_redirects=False)

    def await_jenkins(self) -> None:
        """Wait until Jenkins is back from a restart."""
        deadline = time.monotonic() + RUN_SECONDS
        while (answer := requests.get(f"{self.jenkins.url}login", timeout=30)).status_code >= 500:
            assert time.monotonic() < deadline, f"Jenkins stays away: {answer.status_code}"
            time.sleep(0.05)

    def harvest(self) -> None:
        """Move the requests to clouds and Jenkins into the event log."""
        for cloud in self.providers.values():
            self.events.add_requests(cloud, self.pocket.look(cloud)["requests"])
            self.pocket.reset_calls(cloud)
        self.events.add_requests("Jenkins", self.jenkins.look()["requests"])
        self.jenkins.reset_calls()

    def peace(self) -> list[Run]:
        """Make peace: switch faults off, let time go by, run reap, launch and reap; returns these runs."""
        self.calm()
        self.await_jenkins()
        self.end_builds()
        self.set_boot_timeout(PEACE_BOOT)
        self.age(PEACE_SECONDS)
        if self.restored:
            self.say_moved()
        self.events.add("peace")
        runs = self.runs(REAP) + self.runs(LAUNCH) + self.runs(REAP)
        self.harvest()
        return runs

    def age(self, seconds: int) -> None:
        """Make everything older by some seconds."""
        for cloud in self.providers.values():
            self.pocket.age(cloud, seconds)
        for table in ("machine", "snapshot_image"):
            self.pool.sql(f"UPDATE {table} SET state_time = state_time - ?", seconds)
        self.pool.sql("UPDATE machine SET create_time = create_time - ?", seconds)
        for column in ("online_time", "absent_time"):
            self.pool.sql(f"UPDATE machine SET {column} = {column} - ?", seconds)
        self.pool.sql("UPDATE setting SET value = CAST(CAST(value AS BIGINT) - ? AS TEXT) "
                      "WHERE name IN ('made', 'moved')", seconds)

    # --- backups and restores ---

    def back_up(self) -> None:
        """Back up the database, as a nightly job does; on PostgreSQL, make a replica."""
        self.events.add("backup")
        if self.servers:
            self.servers.keep_state()
            self.backup.touch()
            return
        self.expect_all([self.wait(self.start(VMDATABASE, "backup", str(self.backup), spared=True))])

    def restore(self) -> None:
        """Replace the database by the backup, see docs/operations.md; a run that has the old vm.db open keeps it."""
        self.events.add("restore")
        for one in self.jenkins.look()["builds"]:
            self.note_given(one["console"].splitlines())
        self.forget_given()
        if self.servers:
            self.servers.fail_over()
        else:
            self._put_in_place()
        self.restored = True
        kept, leads = self.machines(), self.leads()
        held = {one["name"] for cloud in self.providers.values() for one in self.pocket.look(cloud)["servers"]
                if "devstack-gate-hold" in one["metadata"]}
        held |= {name for name, node in self.jenkins.look()["nodes"].items()
                 if node["temporarilyOffline"] and node["offlineCauseReason"].startswith("held: ")}
        for name in [name for name in self.held if kept.get(name) != "HOLD" and name not in held]:
            del self.held[name]  # faults kept clouds and Jenkins from learning of it
        there = self.servers_there()
        for name in [name for name, state in kept.items() if state == "HOLD" and name in leads]:
            if self.pool.column(name, "external_id") in there:
                self.held.setdefault(name, self.pool.column(name, "external_id"))
        self.outlived = set(self.held)

    def servers_there(self) -> set[str]:
        """Return the ids of all servers that are not being deleted."""
        return {one["id"] for cloud in self.providers.values() for one in self.pocket.look(cloud)["servers"]
                if one["task_state"] != "deleting"}

    def _put_in_place(self) -> None:
        copy = self.pool.database.with_name("restored.db")
        shutil.copyfile(self.backup, copy)
        for ending in ("-wal", "-shm"):
            Path(f"{self.pool.database}{ending}").unlink(missing_ok=True)
        copy.replace(self.pool.database)

    def say_moved(self) -> None:
        """Say for a person that the restore was on purpose."""
        self.expect_all([self.wait(self.start(VMDATABASE, "moved", spared=True))])
        self.restored = False


def open_site(stack: ExitStack, folder: Path, clouds: Iterable[str]) -> tuple[Pocket, StandIn]:
    """Start clouds and a Jenkins, which end with the stack."""
    pocket = stack.enter_context(Pocket(folder, "--machines", "shared-ssh", "--clouds", ",".join(clouds)))
    credentials = {"nodes": ("jenkins", make_key(folder))}
    return pocket, stack.enter_context(StandIn(folder / "jenkins", credentials=credentials, knobs=CALM_JENKINS))
