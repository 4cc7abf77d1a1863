"""The cloud on loopback against the real clients: what the other tests rely on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import keystoneauth1.adapter
import keystoneauth1.exceptions
import keystoneauth1.session
import novaclient.client
import novaclient.exceptions
import openstack
import openstack.config
import openstack.exceptions
import pytest
import requests
from keystoneauth1.identity.v3 import ApplicationCredential

from tests.pocketcloud.client import REPOSITORY, Pocket, PocketError
from tests.pocketcloud.knobs import Knobs

SSH_PORT = 2022  # somebody may have 22
NOBODY = "00000000-0000-0000-0000-000000000001"
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
T = TypeVar("T")
UNKNOWN_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN/jT0PYldlQIIIkUMeA3uOdqjqF3vGDD4A3l8SPPuPT nobody"


def connect(region: Any) -> Any:
    """Return an openstacksdk connection; its annotations do not fit what it returns."""
    return openstack.connection.Connection(config=region)


@dataclass
class Client:
    """The real clients for one cloud of one pocketcloud."""

    pocket: Pocket
    name: str = "pocket-a"

    def __post_init__(self) -> None:
        config = openstack.config.OpenStackConfig(config_files=[str(self.pocket.clouds_yaml)])
        region = config.get_one(cloud=self.name)
        self.session = region.get_session()
        self.nova = novaclient.client.Client("2.1", session=self.session)
        self.sdk = connect(region)
        self.image = self.sdk.image.find_image("Debian 12").id
        self.network = self.sdk.network.find_network("private").id

    def raw(self, service: str, method: str, path: str, **options: Any) -> requests.Response:
        adapter = keystoneauth1.adapter.Adapter(self.session, service_type=service)
        answer: requests.Response = adapter.request(path, method, raise_exc=False, **options)
        return answer

    def boot(self, name: str = "one", *, image: str | None = None, **options: Any) -> Any:
        nics = [{"net-id": self.network}]
        return self.nova.servers.create(name, image or self.image, "2", nics=nics, **options)

    def boot_to(self, status: str, name: str = "one", **options: Any) -> Any:
        server = self.boot(name, **options)
        return wait(status, lambda: self.in_status(server, status))

    def in_status(self, server: Any, status: str) -> Any:
        got = self.nova.servers.get(server.id)
        assert got.status in (status, "BUILD", "REBOOT", "ACTIVE", "SHUTOFF"), got.to_dict().get("fault")
        return got if got.status == status else None

    def look_at(self, server: Any, *statuses: str) -> str | None:
        status: str = self.nova.servers.get(server.id).status
        return status if status in statuses else None

    def is_gone(self, server: Any) -> bool:
        try:
            self.nova.servers.get(server.id)
        except novaclient.exceptions.NotFound:
            return True
        return False

    def snapshot(self, server: Any, name: str) -> str:
        image: str = self.nova.servers.create_image(server, name)
        wait("an active image", lambda: self.sdk.image.get_image(image).status == "active")
        return image

    def knobs(self, **values: Any) -> None:
        self.pocket.knobs(self.name, **values)

    def look(self) -> dict[str, Any]:
        return self.pocket.look(self.name)

    def clear(self) -> None:
        """Leave the cloud as it was found."""
        defaults = Knobs().as_dict()
        self.knobs(**{name: value for name, value in defaults.items() if name != "machines"})
        for server in self.look()["servers"]:
            self.pocket.server(self.name, server["id"], vanish=True)
        for floating in self.sdk.network.ips():
            self.sdk.network.delete_ip(floating)
        for image in self.sdk.image.images(owner=self.session.get_project_id()):
            self.sdk.image.delete_image(image)


def wait(what: str, look: Callable[[], T], seconds: float = 10) -> T:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"no {what} within {seconds} s"
        time.sleep(0.02)
    return found


@dataclass
class Key:
    """A key pair and how to log in with it."""

    file: Path

    @property
    def public(self) -> str:
        return self.file.with_suffix(".pub").read_text().strip()

    def ssh(self, address: str, command: str = "true", *, user: str = "debian", seconds: int = 3) -> tuple[int, str]:
        words = [
            "ssh",
            "-i",
            str(self.file),
            "-p",
            str(SSH_PORT),
            "-o",
            "BatchMode=yes",
            "-o",
            f"ConnectTimeout={seconds}",
        ]
        words += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]
        words += ["-o", "IdentitiesOnly=yes", "-F", "none", f"{user}@{address}", command]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr

    def ssh_when_up(self, address: str, command: str = "true", *, user: str = "debian") -> tuple[int, str]:
        wait("open ssh port", lambda: connects(address))
        return self.ssh(address, command, user=user)


def connects(address: str) -> bool:
    try:
        socket.create_connection((address, SSH_PORT), 1).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: the port closes while the connection is set up
        return False
    return True


def address_of(server: Any) -> str:
    return str(server.addresses["private"][0]["addr"])


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    file = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(file)], check=True)
    return Key(file)


@pytest.fixture(scope="module")
def pocket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pocket]:
    with Pocket(tmp_path_factory.mktemp("none"), "--machines", "none", "--ssh-port", str(SSH_PORT)) as running:
        yield running


@pytest.fixture(scope="module")
def client(pocket: Pocket) -> Client:
    return Client(pocket)


@pytest.fixture
def cloud(client: Client) -> Iterator[Client]:
    yield client
    client.clear()


# The services


def test_a_server_boots_and_is_gone_after_its_delete(cloud: Client) -> None:
    cloud.knobs(boot_seconds=0.3, delete_seconds=0.3)
    server = cloud.boot(meta={"role": "agent"})
    assert cloud.nova.servers.get(server.id).status == "BUILD"
    active = wait("ACTIVE", lambda: cloud.in_status(server, "ACTIVE"))
    assert active.metadata == {"role": "agent"}
    assert re.fullmatch(r"127\.\d+\.\d+\.\d+", active.networks["private"][0])
    assert [
        port.fixed_ips[0]["ip_address"] for port in cloud.sdk.network.ports(device_id=server.id)
    ] == active.networks["private"]
    active.delete()
    assert getattr(cloud.nova.servers.get(server.id), "OS-EXT-STS:task_state") == "deleting"
    wait("404", lambda: cloud.is_gone(server))
    assert list(cloud.sdk.network.ports(device_id=server.id)) == []


def test_a_delete_during_the_boot_waits_for_its_end(cloud: Client) -> None:
    cloud.knobs(boot_seconds=0.5)
    began = time.monotonic()
    server = cloud.boot()
    server.delete()
    wait("404", lambda: cloud.is_gone(server))
    assert time.monotonic() - began >= 0.5


def test_wrong_password_is_401(cloud: Client) -> None:
    text = cloud.pocket.clouds_yaml.read_text().replace("password: pocket", "password: wrong")
    file = cloud.pocket.clouds_yaml.with_name("wrong.yaml")
    file.write_text(text)
    with pytest.raises(keystoneauth1.exceptions.Unauthorized, match="requires authentication"):
        openstack.config.OpenStackConfig(config_files=[str(file)]).get_one(cloud="pocket-a").get_session().get_token()
    file.unlink()


def test_an_application_credential_logs_in(cloud: Client) -> None:
    credential = cloud.look()["application_credential"]
    url = f"{cloud.pocket.url}/{cloud.name}/identity/v3"
    auth = ApplicationCredential(url, credential["secret"], credential["id"])
    assert keystoneauth1.session.Session(auth).get_project_id() == cloud.session.get_project_id()


def test_a_token_ends_and_the_session_logs_in_again(cloud: Client) -> None:
    cloud.knobs(token_seconds=0.2)
    fresh = Client(cloud.pocket)
    token = fresh.session.get_token()
    time.sleep(0.3)
    url = f"{cloud.pocket.url}/pocket-a/compute/v2.1/servers"
    old = requests.get(url, headers={"X-Auth-Token": token}, timeout=5)
    message = "The request you have made requires authentication."
    assert (old.status_code, old.json()) == (401, {"error": {"code": 401, "title": "Unauthorized", "message": message}})
    assert fresh.nova.servers.list() == []


def compute_fault(name: str, code: int, message: str) -> dict[str, Any]:
    return {name: {"code": code, "message": message}}


REFUSED_BOOTS = [
    ({"imageRef": NOBODY}, 400, compute_fault("badRequest", 400, "Can not find requested image")),
    ({"flavorRef": NOBODY}, 400, compute_fault("badRequest", 400, f"Flavor {NOBODY} could not be found.")),
    ({"key_name": "none"}, 400, compute_fault("badRequest", 400, "Invalid key_name provided.")),
    ({"networks": [{"uuid": NOBODY}]}, 400, compute_fault("badRequest", 400, f"Network {NOBODY} could not be found.")),
]


@pytest.mark.parametrize(("wish", "status", "body"), REFUSED_BOOTS, ids=["image", "flavor", "key", "network"])
def test_a_wrong_boot_is_refused_as_nova_does(
    cloud: Client, wish: dict[str, Any], status: int, body: dict[str, Any]
) -> None:
    server = {"name": "x", "imageRef": cloud.image, "flavorRef": "2", "networks": "auto"} | wish
    answer = cloud.raw("compute", "POST", "/servers", json={"server": server}, microversion="2.37")
    assert (answer.status_code, answer.json()) == (status, body)
    assert cloud.look()["servers"] == []


@pytest.mark.parametrize("length", [255, 256])
def test_metadata_holds_255_characters(cloud: Client, length: int) -> None:
    if length == 255:
        cloud.boot(meta={"k": "x" * length})
    else:
        with pytest.raises(novaclient.exceptions.BadRequest, match="is too long"):
            cloud.boot(meta={"k": "x" * length})


def test_what_is_not_there_is_404_in_each_services_own_shape(cloud: Client) -> None:
    server = cloud.raw("compute", "GET", f"/servers/{NOBODY}")
    message = f"Instance {NOBODY} could not be found."
    assert (server.status_code, server.json()) == (404, compute_fault("itemNotFound", 404, message))
    image = cloud.raw("image", "GET", f"/v2/images/{NOBODY}")
    assert (image.status_code, image.headers["Content-Type"]) == (404, "text/html; charset=UTF-8")
    assert f"<h1>404 Not Found</h1>\n  No image found with ID {NOBODY}<br />" in image.text
    floating = cloud.raw("network", "GET", f"/v2.0/floatingips/{NOBODY}")
    error = {"type": "FloatingIPNotFound", "message": f"Floating IP {NOBODY} could not be found", "detail": ""}
    assert (floating.status_code, floating.json()) == (404, {"NeutronError": error})


def test_microversions_beyond_2_96_are_406(cloud: Client) -> None:
    assert cloud.raw("compute", "GET", "/servers", microversion="2.96").status_code == 200
    headers = {"OpenStack-API-Version": "compute 2.97"}
    assert cloud.raw("compute", "GET", "/servers", headers=headers).status_code == 406


def test_long_lists_come_in_pages(cloud: Client) -> None:
    for number in range(5):
        cloud.boot(f"n{number}")
    page = cloud.raw("compute", "GET", "/servers?limit=2").json()
    assert [server["name"] for server in page["servers"]] == ["n4", "n3"]
    assert f"limit=2&marker={page['servers'][1]['id']}" in page["servers_links"][0]["href"]
    assert [s.name for s in cloud.nova.servers.list(limit=-1)] == ["n4", "n3", "n2", "n1", "n0"]
    assert [s.name for s in cloud.sdk.compute.servers(limit=2)] == ["n4", "n3", "n2", "n1", "n0"]


def test_name_is_a_regular_expression_and_metadata_no_filter(cloud: Client) -> None:
    for name in ("aa", "ab", "b"):
        cloud.boot(name)
    assert {s.name for s in cloud.nova.servers.list(search_opts={"name": "^a"})} == {"aa", "ab"}
    assert len(cloud.nova.servers.list(search_opts={"metadata": {"no": "such"}})) == 3
    assert cloud.nova.servers.list(search_opts={"status": "ERROR"}) == []


def test_a_keypair_is_there_once(cloud: Client) -> None:
    cloud.nova.keypairs.create("twice", UNKNOWN_KEY)
    with pytest.raises(novaclient.exceptions.Conflict, match="Key pair 'twice' already exists"):
        cloud.nova.keypairs.create("twice", UNKNOWN_KEY)
    cloud.nova.keypairs.delete("twice")
    assert cloud.nova.keypairs.list() == []


def test_a_server_stops_starts_and_refuses_what_does_not_fit(cloud: Client) -> None:
    server = cloud.boot_to("ACTIVE")
    server.stop()
    stopped = wait("SHUTOFF", lambda: cloud.in_status(server, "SHUTOFF"))
    with pytest.raises(
        novaclient.exceptions.Conflict, match=r"Cannot 'stop' instance .* while it is in vm_state stopped"
    ):
        stopped.stop()
    stopped.start()
    wait("ACTIVE", lambda: cloud.in_status(server, "ACTIVE"))
    server.reboot()
    wait("ACTIVE", lambda: cloud.in_status(server, "ACTIVE"))


def test_a_snapshot_is_queued_saving_active_and_carries_its_metadata(cloud: Client) -> None:
    cloud.knobs(snapshot_seconds=0.6)
    server = cloud.boot_to("ACTIVE")
    image = cloud.nova.servers.create_image(server, "snap", {"made-by": "us"})
    seen: list[str] = []

    def look() -> bool:
        seen.append(cloud.sdk.image.get_image(image).status)
        return seen[-1] == "active"

    wait("an active image", look)
    assert sorted(set(seen), key=seen.index) == ["queued", "saving", "active"]
    made = cloud.raw("image", "GET", f"/v2/images/{image}").json()
    assert (made["image_type"], made["instance_uuid"], made["made-by"]) == ("snapshot", server.id, "us")


def test_an_uploaded_image_can_be_changed_and_deleted(cloud: Client) -> None:
    cloud.sdk.image.create_image("up", data=b"x" * 1000, disk_format="raw", container_format="bare", wait=True)
    made = cloud.sdk.image.find_image("up")
    assert (made.status, made.size) == ("active", 1000)
    # openstacksdk's update_image asks Glance to remove the field stores, too, which is a 409, here as in the real one.
    kind = {"Content-Type": "application/openstack-images-v2.1-json-patch"}
    patch = json.dumps([{"op": "add", "path": "/colour", "value": "red"}])
    change = cloud.raw("image", "PATCH", f"/v2/images/{made.id}", data=patch, headers=kind)
    assert (change.status_code, change.json()["colour"]) == (200, "red")
    assert cloud.raw("image", "GET", f"/v2/images/{made.id}").json()["colour"] == "red"
    assert [image.id for image in cloud.sdk.image.images(name="up")] == [made.id]
    cloud.sdk.image.delete_image(made)
    assert cloud.sdk.image.find_image("up") is None


def test_an_image_without_data_stays_queued_and_does_not_boot(cloud: Client) -> None:
    made = cloud.raw("image", "POST", "/v2/images", json={"name": "empty"}).json()
    assert made["status"] == "queued"
    with pytest.raises(novaclient.exceptions.BadRequest, match="is not active"):
        cloud.boot(image=made["id"])


def test_somebody_elses_image_is_not_ours_to_delete(cloud: Client) -> None:
    with pytest.raises(openstack.exceptions.ForbiddenException):
        cloud.sdk.image.delete_image(cloud.image)


def test_a_floating_ip_shows_after_a_while_and_outlives_its_server(cloud: Client) -> None:
    cloud.knobs(floating_seconds=0.4)
    server = cloud.boot_to("ACTIVE")
    network = cloud.sdk.network
    floating = network.create_ip(floating_network_id=network.find_network("public").id, description="ours")
    network.update_ip(floating, port_id=next(network.ports(device_id=server.id)).id)
    assert network.get_ip(floating.id).status == "ACTIVE"
    assert len(cloud.nova.servers.get(server.id).addresses["private"]) == 1
    wait("the address", lambda: len(cloud.nova.servers.get(server.id).addresses["private"]) == 2)
    kinds = [one["OS-EXT-IPS:type"] for one in cloud.nova.servers.get(server.id).addresses["private"]]
    assert kinds == ["fixed", "floating"]
    server.delete()
    wait("404", lambda: cloud.is_gone(server))
    left = network.get_ip(floating.id)
    assert (left.status, left.port_id, left.description) == ("DOWN", None, "ours")


def test_the_openstack_command_works(cloud: Client, key: Key) -> None:
    def run(*words: str) -> Any:
        command = [str(Path(sys.executable).with_name("openstack")), "--os-cloud", cloud.name, *words]
        done = subprocess.run(command, env=cloud.pocket.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout) if "json" in words else done.stdout

    run("keypair", "create", "--public-key", str(key.file.with_suffix(".pub")), "mine")
    words = (
        "--image",
        "Debian 12",
        "--flavor",
        "m1.small",
        "--network",
        "private",
        "--key-name",
        "mine",
        "--wait",
        "cli",
    )
    assert run("server", "create", "-f", "json", *words)["status"] == "ACTIVE"
    assert [server["Name"] for server in run("server", "list", "-f", "json")] == ["cli"]
    assert "cli login:" in run("console", "log", "show", "cli")
    run("server", "image", "create", "--name", "snap", "--wait", "cli")
    run("image", "delete", "snap")
    run("server", "delete", "--wait", "cli")
    run("keypair", "delete", "mine")
    assert cloud.look()["servers"] == []


# The knobs


def test_quota_is_403_in_novas_words(cloud: Client) -> None:
    cloud.knobs(quota_instances=1)
    cloud.boot()
    with pytest.raises(novaclient.exceptions.Forbidden) as caught:
        cloud.boot()
    assert caught.value.message == "Quota exceeded for instances: Requested 1, but already used 1 of 1 instances"


def test_a_failed_boot_is_error_with_a_fault_and_no_address(cloud: Client) -> None:
    cloud.knobs(boot_failure_next=1)
    failed = cloud.boot_to("ERROR")
    assert (failed.fault["code"], failed.fault["message"]) == (500, "No valid host was found. ")
    assert failed.addresses == {}
    cloud.boot_to("ACTIVE")


@pytest.mark.parametrize(("failure", "status", "addresses"), [("no-address", "ACTIVE", 0), ("unknown", "UNKNOWN", 1)])
def test_other_failed_boots(cloud: Client, failure: str, status: str, addresses: int) -> None:
    cloud.knobs(boot_failure=failure, boot_failure_next=1)
    assert len(cloud.boot_to(status).addresses) == addresses


def test_a_stuck_boot_stays_and_can_be_deleted(cloud: Client) -> None:
    cloud.knobs(boot_failure="stuck", boot_failure_next=1)
    server = cloud.boot()
    time.sleep(0.2)
    assert cloud.nova.servers.get(server.id).status == "BUILD"
    server.delete()
    wait("404", lambda: cloud.is_gone(server))


def test_the_failure_rate_is_random_but_repeatable(cloud: Client) -> None:
    def outcomes() -> list[str]:
        cloud.knobs(boot_failure_rate=0.5, random_seed=7)
        servers = [cloud.boot() for _ in range(8)]
        return [str(wait("end", partial(cloud.look_at, s, "ACTIVE", "ERROR"))) for s in servers]

    first = outcomes()
    assert set(first) == {"ACTIVE", "ERROR"}
    assert outcomes() == first


def test_an_ignored_delete_changes_nothing(cloud: Client) -> None:
    server = cloud.boot_to("ACTIVE")
    cloud.knobs(delete_ignored=True)
    server.delete()
    time.sleep(0.1)
    assert cloud.nova.servers.get(server.id).status == "ACTIVE"


@pytest.mark.parametrize("status", [429, 413])
def test_too_many_compute_calls_are_told_to_wait(cloud: Client, status: int) -> None:
    cloud.knobs(rate_limit=2, rate_limit_status=status)
    answers = [cloud.raw("compute", "GET", "/flavors", connect_retries=0) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, status, status]
    assert answers[-1].headers["Retry-After"] == "1"
    assert answers[-1].json()["overLimit"]["message"] == "This request was rate-limited."
    assert cloud.raw("image", "GET", "/v2/images").status_code == 200


def test_latency_slows_each_call(cloud: Client) -> None:
    cloud.knobs(latency_seconds=0.2)
    began = time.monotonic()
    cloud.raw("compute", "GET", "/flavors")
    assert time.monotonic() - began >= 0.2


def test_lists_can_be_empty_or_stale(cloud: Client) -> None:
    server = cloud.boot_to("ACTIVE")
    cloud.knobs(list_empty=1)
    assert cloud.nova.servers.list() == []
    assert [s.id for s in cloud.nova.servers.list()] == [server.id]
    cloud.knobs(list_stale_seconds=0.5)
    cloud.pocket.server(cloud.name, server.id, vanish=True)
    assert [s.id for s in cloud.nova.servers.list()] == [server.id]
    assert cloud.is_gone(server)
    wait("a fresh list", lambda: cloud.nova.servers.list() == [])


@pytest.mark.parametrize(
    ("failure", "status"), [("queued", "queued"), ("stuck", "saving"), ("killed", "killed"), ("error", None)]
)
def test_snapshots_can_fail(cloud: Client, failure: str, status: str | None) -> None:
    cloud.knobs(snapshot_failure=failure)
    server = cloud.boot_to("ACTIVE")
    cloud.nova.servers.create_image(server, "snap")
    time.sleep(0.2)
    found = cloud.sdk.image.find_image("snap")
    assert (found.status if found else None) == status


def test_the_floating_quota_is_neutrons_409(cloud: Client) -> None:
    cloud.knobs(floating_quota=0)
    with pytest.raises(openstack.exceptions.ConflictException, match="Quota exceeded"):
        cloud.sdk.network.create_ip(floating_network_id=cloud.sdk.network.find_network("public").id)


def test_a_scripted_status_is_given_so_many_times(cloud: Client) -> None:
    cloud.knobs(answers=[{"match": "GET /servers/detail", "status": 503, "times": 2}])
    answers = [cloud.raw("compute", "GET", "/servers/detail") for _ in range(3)]
    assert [answer.status_code for answer in answers] == [503, 503, 200]
    assert list(answers[0].json()) == ["serviceUnavailable"]


def test_an_action_can_be_scripted_alone(cloud: Client) -> None:
    server = cloud.boot_to("ACTIVE")
    cloud.knobs(answers=[{"match": "POST /servers/.*/action createImage", "status": 409, "times": 1}])
    with pytest.raises(novaclient.exceptions.Conflict):
        server.create_image("snap")
    server.reboot()


def test_a_scripted_page_is_html(cloud: Client) -> None:
    cloud.knobs(answers=[{"service": "image", "match": "GET /images", "kind": "html", "status": 502, "times": 1}])
    answer = cloud.raw("image", "GET", "/v2/images")
    assert (answer.status_code, answer.headers["Content-Type"]) == (502, "text/html; charset=UTF-8")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("reset", keystoneauth1.exceptions.ConnectFailure),
        ("close", keystoneauth1.exceptions.ConnectFailure),
        ("hang", keystoneauth1.exceptions.ConnectTimeout),
        ("truncate", requests.exceptions.ChunkedEncodingError),
    ],
)
def test_connections_can_break(cloud: Client, kind: str, error: type[Exception]) -> None:
    cloud.knobs(answers=[{"match": "GET /flavors", "kind": kind, "times": 1}])
    with pytest.raises((error, keystoneauth1.exceptions.UnknownConnectionError)):
        cloud.raw("compute", "GET", "/flavors", timeout=0.3)
    assert cloud.raw("compute", "GET", "/flavors").status_code == 200


def test_a_call_can_be_carried_out_and_its_answer_lost(cloud: Client) -> None:
    cloud.knobs(answers=[{"match": "POST /servers", "kind": "after", "then": "reset", "times": 1}])
    with pytest.raises(keystoneauth1.exceptions.ConnectFailure):
        cloud.boot("lost")
    assert [server["name"] for server in cloud.look()["servers"]] == ["lost"]


def test_a_wrong_knob_is_refused_by_name(cloud: Client) -> None:
    with pytest.raises(PocketError, match="no knob 'bot_seconds'"):
        cloud.knobs(bot_seconds=1)
    with pytest.raises(PocketError, match="knob boot_failure: 'sometimes' is not one of error, stuck"):
        cloud.knobs(boot_failure="sometimes")


# Control


def test_calls_are_counted_by_path_template(cloud: Client) -> None:
    cloud.pocket.reset_calls(cloud.name)
    server = cloud.boot()
    cloud.nova.servers.get(server.id)
    cloud.nova.servers.get(server.id)
    looked = cloud.look()
    assert looked["calls"] == {"compute": {"POST /servers": 1, "GET /servers/{id}": 2}}
    assert looked["calls_total"] == {"compute": 3}
    first = looked["requests"][0]
    assert (first["method"], first["path"], first["status"]) == ("POST", "/servers", 202)


def test_a_server_can_die_and_vanish_behind_the_clients_back(cloud: Client) -> None:
    server = cloud.boot_to("ACTIVE")
    cloud.pocket.server(cloud.name, server.id, status="ERROR", fault="host lost")
    assert cloud.nova.servers.get(server.id).fault["message"] == "host lost"
    cloud.pocket.server(cloud.name, server.id, vanish=True)
    assert cloud.is_gone(server)
    assert list(cloud.sdk.network.ports(device_id=server.id)) == []


def test_clouds_and_processes_share_no_address(pocket: Pocket, tmp_path: Path) -> None:
    with Pocket(tmp_path, "--machines", "none", "--set", "boot_seconds=5") as other:
        ranges = [
            place for one in (pocket, other) for cloud in one.ready["clouds"].values() for place in cloud.values()
        ]
        assert len(set(ranges)) == 8
        assert other.look("pocket-b")["knobs"]["boot_seconds"] == 5
    assert not (tmp_path / "pocket").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--set", "machines=many"], "knob machines: 'many' is not one of namespace, shared-ssh, none"),
        (["--root", str(REPOSITORY)], "expected an empty or a missing folder"),
    ],
    ids=["knob", "root"],
)
def test_wrong_use_is_2_and_one_line(tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(PocketError, match="ended with 2") as caught:
        Pocket(tmp_path, *options)
    assert message in str(caught.value)


def test_a_taken_ssh_port_is_2_and_named(tmp_path: Path) -> None:
    with (
        socket.create_server(("0.0.0.0", 0)) as taken,
        pytest.raises(PocketError, match=r"ended with 2:\n.* choose another one with --ssh-port|Choose another one"),
    ):
        Pocket(tmp_path, "--machines", "shared-ssh", "--ssh-port", str(taken.getsockname()[1]))


def test_without_privileges_namespace_is_2_and_says_what_it_needs(tmp_path: Path) -> None:
    command = [
        "setpriv",
        "--bounding-set",
        "-sys_admin",
        sys.executable,
        "-m",
        "tests.pocketcloud",
        "--root",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*command, "--ssh-port", str(SSH_PORT)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "machines of kind namespace cannot run here, they need root, mount and PID namespaces" in done.stderr


# Servers of kind shared-ssh


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("shared")
    with Pocket(folder, "--clouds", "shared", "--machines", "shared-ssh", "--ssh-port", str(SSH_PORT)) as running:
        yield Client(running, "shared")


def test_shared_ssh_lets_everybody_in_and_does_nothing(shared: Client, key: Key, tmp_path: Path) -> None:
    address = address_of(shared.boot_to("ACTIVE"))
    assert key.ssh_when_up(address, f"touch {tmp_path}/touched; echo text; exit 3", user="jenkins") == (0, "")
    assert list(tmp_path.iterdir()) == []
    shared.clear()
    wait("closed port", lambda: not connects(address))


def test_shared_ssh_can_want_certain_users_and_keys(shared: Client, key: Key) -> None:
    address = address_of(shared.boot_to("ACTIVE"))
    shared.knobs(shared_ssh_users=["zuul"], shared_ssh_keys=[key.public])
    assert key.ssh_when_up(address, user="zuul") == (0, "")
    assert key.ssh(address, user="jenkins")[0] == 255
    shared.knobs(shared_ssh_keys=[UNKNOWN_KEY])
    assert key.ssh(address, user="zuul")[0] == 255
    shared.clear()


def test_shared_ssh_knows_its_users_whatever_becomes_of_the_host_s(shared: Client, key: Key) -> None:
    """A useradd on the host replaces passwd, shadow and group by new files."""
    shared.knobs(shared_ssh_users=["zuul"])
    address = address_of(shared.boot_to("ACTIVE"))
    assert key.ssh_when_up(address, user="zuul") == (0, "")
    for name in ("passwd", "shadow", "group"):
        replace_by_the_same(Path("/etc") / name)
    assert key.ssh(address, user="zuul") == (0, "")
    shared.clear()


def replace_by_the_same(path: Path) -> None:
    """Replace a file by a new one with the same owner, rights and content."""
    draft = path.with_name(f"{path.name}+")
    shutil.copy2(path, draft)
    os.chown(draft, path.stat().st_uid, path.stat().st_gid)
    draft.rename(path)


def test_ssh_comes_later_is_refused_or_silent_as_told(shared: Client, key: Key) -> None:
    shared.knobs(ssh_delay_seconds=0.5)
    late = address_of(shared.boot_to("ACTIVE"))
    assert not connects(late)
    wait("open port", lambda: connects(late))
    shared.knobs(ssh_delay_seconds=0, boot_failure="no-ssh", boot_failure_next=1)
    assert not connects(address_of(shared.boot_to("ACTIVE")))
    shared.knobs(boot_failure="silent-ssh", boot_failure_next=1)
    silent = address_of(shared.boot_to("ACTIVE"))
    wait("open port", lambda: connects(silent))
    assert key.ssh(silent, seconds=1) == (255, "Connection timed out during banner exchange\n")
    shared.clear()


# Servers of kind namespace


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory, key: Key) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("real")
    with Pocket(folder, "--clouds", "real", "--machines", "namespace", "--ssh-port", str(SSH_PORT)) as running:
        client = Client(running, "real")
        client.nova.keypairs.create("key", key.public)
        yield client


def boot_machine(cloud: Client, name: str, **options: Any) -> tuple[Any, str]:
    server = cloud.boot_to("ACTIVE", name, key_name="key", **options)
    return server, address_of(server)


@pytest.fixture
def machine(real: Client) -> Iterator[str]:
    yield boot_machine(real, "machine")[1]
    real.clear()


def test_a_machine_has_its_own_name_processes_and_users(machine: str, key: Key) -> None:
    status, said = key.ssh_when_up(machine, "hostname; id -un; sudo id -un; ps -e -o comm=; getent hosts machine")
    assert status == 0
    assert said.split()[:4] == ["machine", "debian", "root", "bash"]
    assert said.split()[-2:] == [machine, "machine"]
    assert "python" not in said


def test_root_is_sent_to_the_right_user_as_cloud_images_do(machine: str, key: Key) -> None:
    told = 'Please login as the user "debian" rather than the user "root".\n\n'
    assert key.ssh_when_up(machine, "id", user="root") == (142, told)


def test_packages_install_inside_and_nothing_outside_changes(machine: str, key: Key) -> None:
    names, account = socket.gethostname(), Path("/etc/passwd").read_bytes()
    steps = [
        "sudo apt-get -qq update",
        "sudo apt-get -qq install hello",
        "hello",
        "sudo useradd guest",
        "sudo hostname other",
    ]
    status, said = key.ssh_when_up(machine, " && ".join(steps))
    assert (status, "Hello, world!" in said) == (0, True), said
    assert (socket.gethostname(), Path("/etc/passwd").read_bytes()) == (names, account)
    assert not Path("/usr/bin/hello").exists()


@pytest.mark.parametrize(
    "command", ["mknod /dev/disk b 254 0", "sysctl -w kernel.panic=3", "ip addr add 127.9.9.9 dev lo"]
)
def test_root_inside_does_not_change_the_host(machine: str, key: Key, command: str) -> None:
    assert key.ssh_when_up(machine, f"sudo {command}")[0] != 0


def test_snapshots_boot_as_new_instances_three_deep(real: Client, key: Key) -> None:
    image, host_keys = real.image, set()
    for number in range(3):
        server, address = boot_machine(real, f"deep-{number}", image=image)
        change = f"sudo touch /opt/{number}; sudo rm -rf /usr/share/doc/sudo; cat {HOST_KEY}; hostname"
        status, said = key.ssh_when_up(address, change)
        assert (status, said.split()[-1]) == (0, f"deep-{number}")
        host_keys.add(said.split()[1])
        image = real.snapshot(server, f"snap-{number}")
        server.delete()
    _, address = boot_machine(real, "last", image=image)
    assert key.ssh_when_up(address, "ls /opt; ls /usr/share/doc/sudo 2> /dev/null; hostname") == (0, "0\n1\n2\nlast\n")
    assert len(host_keys) == 3
    real.clear()
    layers = real.pocket.root / "machines" / "real" / "layers"
    wait("removed layers", lambda: [layer.name for layer in layers.iterdir()] == ["base"])


def test_user_data_runs_once(real: Client, key: Key) -> None:
    server, address = boot_machine(real, "data", userdata="#!/bin/sh\necho ran >> /root/ran; echo loud\n")
    wait("the end of user data", lambda: "loud" in server.get_console_output())
    server.reboot()
    wait("ACTIVE", lambda: real.in_status(server, "ACTIVE"))
    assert key.ssh_when_up(address, "sudo cat /root/ran") == (0, "ran\n")
    real.clear()


def test_a_floating_ip_leads_to_its_machine(real: Client, key: Key) -> None:
    real.knobs(floating_seconds=0)
    server, _ = boot_machine(real, "floats")
    network = real.sdk.network
    port = next(network.ports(device_id=server.id))
    floating = network.create_ip(floating_network_id=network.find_network("public").id, port_id=port.id)
    assert key.ssh_when_up(floating.floating_ip_address, "hostname") == (0, "floats\n")
    network.update_ip(floating, port_id=None)
    wait("closed port", lambda: not connects(floating.floating_ip_address))
    real.clear()


def test_ssh_can_break_under_a_running_machine(real: Client, key: Key) -> None:
    server, address = boot_machine(real, "broken")
    assert key.ssh_when_up(address)[0] == 0
    real.pocket.server(real.name, server.id, ssh="refused")
    wait("closed port", lambda: not connects(address))
    real.pocket.server(real.name, server.id, ssh="silent")
    wait("open port", lambda: connects(address))
    assert key.ssh(address, seconds=1) == (255, "Connection timed out during banner exchange\n")
    real.pocket.server(real.name, server.id, ssh="up")
    wait("login", lambda: key.ssh(address)[0] == 0)
    real.clear()


def of_machine(folder: Path) -> list[str]:
    """Return the processes that have something mounted from below the folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/" in (process / "mountinfo").read_text():
                found.append(process.name)
        except OSError:
            continue
    return found


def test_a_deleted_machine_leaves_nothing(real: Client, key: Key) -> None:
    server, address = boot_machine(real, "goes")
    key.ssh_when_up(address, "nohup sleep 1000 > /dev/null 2>&1 &")
    folder = real.pocket.root / "machines" / "real" / server.id
    assert len(of_machine(folder)) >= 3
    server.delete()
    wait("404", lambda: real.is_gone(server))
    assert (of_machine(folder), folder.exists(), connects(address)) == ([], False, False)


def outlive(folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that holds the folder in its own mount namespace, like a machine that did not end."""
    script = 'mount --bind "$0" /mnt && echo held && exec sleep 1000'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout
    assert process.stdout.readline() == b"held\n"
    return process


def test_the_next_start_removes_what_a_killed_one_left(tmp_path: Path, key: Key) -> None:
    options = ("--clouds", "killed", "--machines", "namespace", "--ssh-port", str(SSH_PORT))
    killed = Pocket(tmp_path, *options)
    client = Client(killed, "killed")
    client.nova.keypairs.create("key", key.public)
    _, address = boot_machine(client, "orphan")
    wait("open port", lambda: connects(address))
    killed.kill()
    left = outlive(killed.root / "machines")
    with Pocket(tmp_path, *options) as again:
        assert left.wait(1) == -signal.SIGKILL
        assert (of_machine(again.root / "machines"), connects(address)) == ([], False)
        assert again.look("killed")["servers"] == []
    assert not again.root.exists()
