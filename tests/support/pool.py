"""A whole pool for tests: a cloud and a Jenkins on loopback, configuration files, and the scripts run as processes."""

import importlib.util
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import jenkins
import openstack
import requests
import yaml

from tests.pocketcloud.client import CloudProcess, Pocket
from tests.pocketcloud.knobs import Knobs
from tests.pocketjenkins.client import StandIn
from tests.pocketjenkins.knobs import Knobs as JenkinsKnobs
from tests.support import postgres
from tests.support.starter_client import Starter, forks_well
from tests.support.waiting import LEAST_SECONDS, MOST_SECONDS, pause

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT_SECONDS = 300
HANG_SECONDS = 120  # nothing that a test waits for takes this long, even on a busy machine
# User data for a template if its packages do not matter: replaces apt-get by a script that succeeds at once.
NO_APT = "#!/bin/sh\nprintf '#!/bin/sh\\nexit 0\\n' > /usr/local/sbin/apt-get\nchmod 755 /usr/local/sbin/apt-get\n"
ANY_HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN/jT0PYldlQIIIkUMeA3uOdqjqF3vGDD4A3l8SPPuPT"
SSH_TO_STRANGERS = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
T = TypeVar("T")


def image(name: str = "noble", **keys: Any) -> dict[str, Any]:
    """Return an image type of the providers file; keys are written with _ for -."""
    return {"name": name, "image": "Debian 12", "min-ready": 2, "min-ram": 512, "username": "debian", **_kebab(keys)}


def provider(name: str = "one", cloud: str = "pocket-a", **keys: Any) -> dict[str, Any]:
    """Return a provider of the providers file; keys are written with _ for -."""
    return {"name": name, "cloud": cloud, "max-servers": 10, "boot-timeout": 30, "images": [image()], **_kebab(keys)}


def _kebab(keys: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in keys.items()}


class Pool:
    """The scripts with their settings in a folder, against a cloud and, if given, a Jenkins."""

    def __init__(self, folder: Path, cloud: CloudProcess | None = None, jenkins: StandIn | None = None, *,
                 address: str = "") -> None:
        """address: of its PostgreSQL database, or - for vm.db; the default is the kind that this test run uses."""
        self.folder = folder
        self.pocket = cloud if isinstance(cloud, Pocket) else None
        self.jenkins = jenkins
        self.database = folder / "vm.db"
        if not address and on_postgresql():
            address = postgres.shared().create()
        self.address = address.removeprefix("-")  # empty: vm.db
        self.host: list[str] = []  # command prefix that runs a script as another host, see as_host
        self.patience = 0.0  # seconds for which `sql` retries if the PostgreSQL server is away
        self.place: Path | str = self.address or self.database  # as vmdatabase.opened takes it
        self.secure_config = folder / "secure.conf"
        self.key = make_key(folder)
        self.environment = {name: value for name, value in os.environ.items()
                            if not name.startswith(("OS_", "DEVSTACK_GATE_", "ZUUL_", "GERRIT_"))}
        for name in ("WORKSPACE", "JOB_NAME", "BUILD_NUMBER", "BUILD_TAG", "XDG_STATE_HOME"):
            self.environment.pop(name, None)
        self.environment |= {"DEVSTACK_GATE_DB": self.address or str(self.database), "HOME": str(folder),
                             "DEVSTACK_GATE_SECURE_CONFIG": str(self.secure_config),
                             # A host in use has the entry points of Python packages cached in a file.
                             "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")}
        if cloud:
            self.environment["OS_CLIENT_CONFIG_FILE"] = str(cloud.clouds_yaml)
        self.write_secure_config()

    def write_secure_config(self, packages: str = "git", **changes: str) -> None:
        """Write the secure configuration; changes are keys of [jenkins]."""
        text = f"[node]\nuser = jenkins\nssh_key = {self.key}\n[image]\npackages = {packages}\n"
        if self.jenkins:
            keys = {"server": self.jenkins.url, "user": self.jenkins.user, "apikey": self.jenkins.token,
                    "credentials_id": "nodes", **changes}
            text += "[jenkins]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
        self.secure_config.write_text(text)
        self.secure_config.chmod(0o600)

    def load(self, *providers: Mapping[str, Any], labels: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write a providers file with these providers and labels, and load it."""
        file = self.folder / "providers.yaml"
        told: dict[str, Any] = {"providers": list(providers)}
        file.write_text(yaml.safe_dump(told | ({"labels": list(labels)} if labels else {})))
        self.run("vmdatabase.py", "load", str(file), expect=0)

    def seed_snapshots(self) -> None:
        """Give each image type a READY snapshot without a build: the cloud's base image itself."""
        assert self.pocket
        for cloud, image_id in self.sql("SELECT cloud, base_image.id FROM base_image JOIN provider ON "
                                        "provider_id = provider.id"):
            external_id = self.pocket.look(cloud)["images"][0]["id"]
            self.sql("INSERT INTO snapshot_image (base_image_id, name, version, external_id, state, state_time) "
                     "VALUES (?, 'seeded', 1, ?, 'READY', 1)", image_id, external_id)

    def run(self, script: str, *arguments: str, expect: int | None = None, **environment: str
            ) -> subprocess.CompletedProcess[str]:
        """Run a script to its end; fails the test with its stderr if the exit code is not the expected one."""
        if not self.host and forks_well(script, self.environment | environment):
            ended = starter().run(script, arguments, self.environment | environment, self.folder, SCRIPT_SECONDS)
        else:
            process = self.start(script, *arguments, **environment)
            try:
                out, err = process.communicate(timeout=SCRIPT_SECONDS)
            finally:
                process.kill()
            ended = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        assert expect is None or ended.returncode == expect, \
            f"{script}: {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        return ended

    def as_host(self, name: str) -> None:
        """Run the scripts in new namespaces from now on: mounts, processes, and a host name."""
        self.host = ["unshare", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
                     'hostname "$0" && exec "$@"', name]

    def fill(self) -> None:
        """Fill provider one's pool, and wait until all its agents are online."""
        self.run("devstack-vm-reap.py", "one")
        self.run("devstack-vm-launch.py", "one", expect=0)
        assert self.jenkins
        for name, state in self.machines().items():
            if state == "READY":
                self.jenkins.wait_node(name, "online")

    def start(self, script: str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a script as Jenkins does."""
        command = [*self.host, "bash" if script.endswith(".sh") else sys.executable, str(PROJECT / script), *arguments]
        return subprocess.Popen(command, env=self.environment | environment, cwd=self.folder, text=True,
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def ssh(self, address: str, *command: str, user: str = "jenkins") -> subprocess.CompletedProcess[str]:
        """Log in to a machine as Jenkins does and run a command."""
        options = ["-i", str(self.key), "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
                   *SSH_TO_STRANGERS]
        return subprocess.run(["ssh", *options, f"{user}@{address}", *command], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=60, check=False)

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one statement on the database as a person would."""
        if self.address:
            return postgres.query(self.address, statement, *values, patience=self.patience)
        connection = sqlite3.connect(self.database, timeout=30)
        try:
            with connection:
                return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def columns(self, table: str) -> list[str]:
        """Return the names of a table's columns, in order."""
        query = "SELECT name FROM pragma_table_info(?)"
        if self.address:
            query = "SELECT column_name FROM information_schema.columns WHERE table_name = ? ORDER BY ordinal_position"
        return [name for (name,) in self.sql(query, table)]

    def machines(self) -> dict[str, str]:
        """Return {node name: state} of all machines."""
        return dict(self.sql("SELECT name, state FROM machine ORDER BY id"))

    def servers(self, cloud: str = "pocket-a") -> list[dict[str, Any]]:
        """Return the servers that the cloud really has."""
        assert self.pocket
        servers: list[dict[str, Any]] = self.pocket.look(cloud)["servers"]
        return servers

    def nodes(self) -> dict[str, dict[str, Any]]:
        """Return the nodes that Jenkins really has."""
        assert self.jenkins
        nodes: dict[str, dict[str, Any]] = self.jenkins.look()["nodes"]
        return nodes

    # --- what earlier runs, other people and the passing of time have done ---

    @property
    def uuid(self) -> str:
        """Return the pool's UUID, which marks what the pool owns."""
        return str(self.sql("SELECT value FROM setting WHERE name = 'pool'")[0][0])

    def marks(self, provider: str = "one", **more: object) -> dict[str, str]:
        """Return the metadata of a server or image of ours; machine=7 becomes devstack-gate-machine: "7"."""
        own = {"devstack-gate-pool": self.uuid, "devstack-gate-provider": provider}
        return own | {f"devstack-gate-{name}": str(value) for name, value in more.items()}

    def client(self, cloud: str = "pocket-a") -> Any:
        """Return the real client for a cloud, as a user of the same project has it."""
        assert self.pocket
        return client(self.pocket.clouds_yaml, cloud)

    def boot(self, name: str, metadata: Mapping[str, str] | None = None, cloud: str = "pocket-a", **more: Any) -> str:
        """Boot a server as a user of the same project would, wait until it is ACTIVE, and return its id."""
        connection = self.client(cloud)
        image_id = self.pocket_look(cloud)["images"][0]["id"]
        server = connection.compute.create_server(
            name=name, image_id=image_id, flavor_id="1", metadata=dict(metadata or {}),
            **{"networks": [{"uuid": connection.network.find_network("private").id}], **more})
        server_id = str(server.id)
        await_that(f"server {name} to be ACTIVE", lambda: any(
            one["id"] == server_id and one["status"] == "ACTIVE" for one in self.servers(cloud)))
        return server_id

    def add_machine(self, state: str = "READY", *, server: bool = True, node: bool = True, age: int = 60,
                    provider: str = "one", image: str = "noble", cloud: str = "pocket-a", **columns: Any) -> str:
        """Add a machine, `age` seconds in its state, with server and node as launch makes them; returns its name."""
        ((image_id,),) = self.sql("SELECT base_image.id FROM base_image JOIN provider ON provider_id = provider.id "
                                  "WHERE provider.name = ? AND base_image.name = ?", provider, image)
        ((machine,),) = self.sql("INSERT INTO machine (base_image_id, user, state, state_time) VALUES (?, 'jenkins', "
                                 "?, ?) RETURNING id", image_id, state, int(time.time()) - age)
        name = f"devstack-{image}-{provider}-{machine}"
        values: dict[str, Any] = {"name": name, "host_key": ANY_HOST_KEY}
        if server:
            values["external_id"] = self.boot(name, self.marks(provider, machine=machine), cloud)
            values["ip"] = next(one["address"] for one in self.servers(cloud) if one["id"] == values["external_id"])
        if node and self.jenkins:
            values["jenkins_name"] = name
            self.add_node(name, f"devstack-{image}", values.get("ip", "127.0.0.1"))
        values |= columns
        self.sql(f"UPDATE machine SET {', '.join(f'{column} = ?' for column in values)} WHERE id = ?",
                 *values.values(), machine)
        return name

    def add_ready_machines(self, numbers: Sequence[int], provider: str = "one", cloud: str = "pocket-a", **node: Any
                           ) -> None:
        """Add READY machines of a provider's image noble, with these row ids, with servers, and with nodes as given."""
        assert self.jenkins
        session = self.client(cloud).session
        url, token = session.get_endpoint(service_type="compute"), {"X-Auth-Token": session.get_token()}
        image_id = self.pocket_look(cloud)["images"][0]["id"]
        local = requests.Session()
        ((type_id,),) = self.sql("SELECT base_image.id FROM base_image JOIN provider ON provider_id = provider.id "
                                 "WHERE provider.name = ? AND base_image.name = 'noble'", provider)

        def create(number: int) -> str:
            server: dict[str, Any] = {"name": f"devstack-noble-{provider}-{number}", "imageRef": image_id,
                                      "flavorRef": "1", "metadata": self.marks(provider, machine=number)}
            answer = local.post(f"{url}/servers", json={"server": server}, headers=token, timeout=60)
            return str(answer.json()["server"]["id"])

        with ThreadPoolExecutor(4) as threads:
            servers = list(threads.map(create, numbers))
        names = [f"devstack-noble-{provider}-{number}" for number in numbers]
        rows = ",".join(f"({number}, {type_id}, '{server}', '{name}', '{name}', '127.0.0.1', 'jenkins', "
                        f"'{ANY_HOST_KEY}', 'READY', {int(time.time())})"
                        for number, server, name in zip(numbers, servers, names, strict=True))
        self.sql("INSERT INTO machine (id, base_image_id, external_id, name, jenkins_name, ip, user, host_key, state, "
                 f"state_time) VALUES {rows}")
        described = {"label": "devstack-noble", "description": f"devstack-gate-pool={self.uuid}", **node}
        self.jenkins.add_nodes([{"name": name, **described} for name in names])

    def add_node(self, name: str, label: str, host: str, pool: str | None = None) -> None:
        """Add a node to Jenkins, with the UUID of a pool in its description, this pool's by default."""
        assert self.jenkins
        server = jenkins.Jenkins(self.jenkins.url, self.jenkins.user, self.jenkins.token)
        server.create_node(name, numExecutors=1, nodeDescription=f"devstack-gate-pool={pool or self.uuid}",
                           remoteFS="/home/jenkins", labels=label, exclusive=True, launcher=jenkins.LAUNCHER_SSH,
                           launcher_params={"host": host, "port": "22", "credentialsId": "nodes"})

    def column(self, name: str, column: str) -> Any:
        """Return one column of a machine."""
        ((value,),) = self.sql(f"SELECT {column} FROM machine WHERE name = ?", name)
        return value

    def server_names(self, cloud: str = "pocket-a") -> list[str]:
        """Return the names of the servers that are not being deleted, sorted."""
        return sorted(one["name"] for one in self.servers(cloud) if one["task_state"] != "deleting")

    def created(self, cloud: str = "pocket-a") -> int:
        """Return how many requests for a server the cloud has accepted since its calls were last reset."""
        assert self.pocket
        return sum((entry["method"], entry["path"], entry["status"]) == ("POST", "/servers", 202)
                   for entry in self.pocket.look(cloud)["requests"])

    def calls(self, method: str, path: str, cloud: str = "pocket-a") -> int:
        """Return how often compute had a call since the cloud's calls were last reset, whatever the answer."""
        assert self.pocket
        return int(self.pocket.look(cloud)["calls"].get("compute", {}).get(f"{method} {path}", 0))

    def compute_calls(self, cloud: str = "pocket-a") -> int:
        """Return how many calls compute had since the cloud's calls were last reset."""
        return sum(self.pocket_look(cloud)["calls"].get("compute", {}).values())

    def pocket_look(self, cloud: str = "pocket-a") -> dict[str, Any]:
        """Return everything that the cloud really has."""
        assert self.pocket
        return self.pocket.look(cloud)

    def pocket_calls_reset(self, cloud: str = "pocket-a") -> None:
        """Reset the counts of the cloud's calls."""
        assert self.pocket
        self.pocket.reset_calls(cloud)

    def knobs(self, cloud: str = "pocket-a", /, **values: Any) -> None:
        """Turn knobs of a cloud."""
        assert self.pocket
        self.pocket.knobs(cloud, **values)

    def pocket_server(self, name: str, cloud: str = "pocket-a", /, **change: Any) -> None:
        """Change the server of that name: status (with fault), ssh, vanish."""
        assert self.pocket
        (found,) = [server["id"] for server in self.servers(cloud) if server["name"] == name]
        self.pocket.server(cloud, found, **change)

    def back_up(self) -> None:
        """Back up the database, as a nightly job does."""
        if self.address:
            (self.folder / "backup.db").write_bytes(postgres.dump(self.address))
        else:
            self.run("vmdatabase.py", "backup", str(self.folder / "backup.db"), expect=0)

    def restore(self) -> None:
        """Replace the database by the backup."""
        if self.address:
            postgres.restore(self.address, (self.folder / "backup.db").read_bytes())
            return
        for file in self.folder.glob("vm.db-*"):
            file.unlink()
        shutil.copy(self.folder / "backup.db", self.database)

    def dump(self) -> list[str]:
        """Return all of the database as SQL."""
        if self.address:
            text = postgres.dump(self.address).decode()
            return [line for line in text.splitlines() if not line.startswith(("\\", "--"))]
        connection = sqlite3.connect(self.database, timeout=30)
        try:
            return list(connection.iterdump())
        finally:
            connection.close()

    def in_service(self, name: str) -> bool:
        """Return whether Jenkins would start a build of the label on a node."""
        node = self.nodes()[name]
        return not node["temporarilyOffline"] and node["label"] != "devstack-used"


def without_notes(dump: list[str]) -> list[str]:
    """Return a dump but for where a host keeps its notes, which its first run tells PostgreSQL."""
    return [line for line in dump if not line.startswith("notes of ")]


def on_postgresql() -> bool:
    """Return whether the tests' pools are on PostgreSQL: run-tests.sh --database postgresql."""
    return os.environ.get("TEST_DATABASE") == "postgresql"


@cache
def starter() -> Starter:
    """Return the starter of this process's runs; it ends with the process."""
    return Starter()


def host() -> dict[str, Any]:
    """Return the state of this host that a build gone astray would change."""
    files = ("/etc/passwd", "/etc/group", "/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/crontab",
             "/etc/pip.conf", "/etc/os-release", "/var/lib/dpkg/status", "/root/.ssh/authorized_keys",
             "/etc/made-by-the-custom-script")
    folders = ("/etc/sudoers.d", "/etc/cron.d", "/etc/cron.daily", "/etc/ssh", "/etc/apt/sources.list.d", "/home",
               "/boot", "/var/cache/apt/archives", "/var/spool/cron", "/etc/devstack-gate", "/var/lib/devstack-gate",
               "/var/lib/rpm")
    state: dict[str, Any] = {name: Path(name).read_bytes() if Path(name).exists() else None for name in files}
    state |= {name: sorted(path.name for path in Path(name).iterdir()) if Path(name).is_dir() else None
              for name in folders}
    return state | {"name": os.uname().nodename}


def load_script(name: str) -> Any:
    """Return a script as a module; importing it has no effect."""
    spec = importlib.util.spec_from_file_location(name.removesuffix(".py").replace("-", "_"), PROJECT / name)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    spec.loader.exec_module(module)
    return module


@cache
def client(clouds_yaml: Path, cloud: str) -> Any:
    """Return the real client for a cloud."""
    config = openstack.config.OpenStackConfig(config_files=[str(clouds_yaml)])
    return openstack.connection.Connection(config=config.get_one(cloud=cloud))


def await_that(what: str, look: Callable[[], T], seconds: float = HANG_SECONDS, least: float = LEAST_SECONDS,
               most: float = MOST_SECONDS) -> T:
    """Wait until `look` returns something true, and return that; fails the test after `seconds`. See `pause`."""
    began = time.monotonic()
    while not (found := look()):
        waited = time.monotonic() - began
        assert waited < seconds, f"timed out after {seconds} s waiting for {what}"
        time.sleep(pause(waited, least, most))
    return found


def await_line(run: subprocess.Popen[str], pattern: str) -> str:
    """Read a script's console (stderr, or stdout if there is no stderr) until a line matches; returns what was read."""
    console = run.stderr or run.stdout
    assert console
    seen = ""
    timer = threading.Timer(HANG_SECONDS, run.kill)
    timer.start()
    try:
        for line in console:
            seen += line
            if re.search(pattern, line):
                return seen
    finally:
        timer.cancel()
    raise AssertionError(f"timed out waiting for {pattern!r}:\n{seen}")


def clear_cloud(pocket: Pocket, cloud: str) -> None:
    """Restore a cloud to its first state."""
    truth = pocket.look(cloud)
    defaults = Knobs().as_dict()
    changed = {name: value for name, value in defaults.items() if name != "machines" and value != truth["knobs"][name]}
    if changed:
        pocket.knobs(cloud, **changed)
    for server in truth["servers"]:
        pocket.server(cloud, server["id"], vanish=True)
    if any(truth[kind] for kind in ("floating_ips", "keypairs", "volumes")) or len(truth["images"]) > 1:
        connection = client(pocket.clouds_yaml, cloud)
        for floating in connection.network.ips():
            connection.network.delete_ip(floating)
        for keypair in connection.compute.keypairs():
            connection.compute.delete_keypair(keypair)
        for image in connection.image.images(owner=connection.current_project_id):
            connection.image.delete_image(image)
        for snapshot in connection.block_storage.snapshots():
            connection.block_storage.delete_snapshot(snapshot)
        for volume in connection.block_storage.volumes():
            connection.block_storage.delete_volume(volume)


def clear_jenkins(stand_in: StandIn) -> None:
    """Restore a Jenkins to its first state, except for its jobs."""
    defaults = {**vars(JenkinsKnobs()), **stand_in.first_knobs}
    stand_in.knobs(**{name: value for name, value in defaults.items() if value is not None})
    for name in stand_in.look()["nodes"]:
        requests.post(f"{stand_in.url}computer/{name}/doDelete", auth=(stand_in.user, stand_in.token), timeout=30)


def make_key(folder: Path) -> Path:
    """Make an ssh key pair in a folder if there is none, and return the path of the private key."""
    key = folder / "id_ed25519"
    if not key.exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key
