"""One set of methods for two clouds: pocketcloud and the real services. They differ in how faults are provoked."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import keystoneauth1.adapter
import novaclient.client
import novaclient.exceptions
import openstack
import openstack.config
import requests
from keystoneauth1.identity.v3 import ApplicationCredential

from tests.pocketcloud.client import Pocket
from tests.pocketcloud.knobs import Knobs
from tests.support.pool import await_that

HANG_SECONDS = 120.0  # nothing takes this long
LOOK_SECONDS = 0.25  # at least this long between two looks; each takes real services some 50 ms
SECOND_RANGE = "127.95.7.0/24"
Options = dict[str, Any]
T = TypeVar("T")


class Side(Protocol):
    """How to provoke what the tests look at; the returned options go to `Clients.boot`."""

    def clients(self) -> "Clients":
        """Return the clients of a project without quotas."""

    def small(self, instances: int, cores: int = -1, ram: int = -1) -> "contextlib.AbstractContextManager[Clients]":
        """Yield the clients of a project with this quota of servers, cores and MB."""

    def few_floating(self, most: int = 0) -> "contextlib.AbstractContextManager[Clients]":
        """Yield the clients of a project with this quota of floating IPs."""

    def few_volumes(self, volumes: int, gigabytes: int = -1) -> "contextlib.AbstractContextManager[Clients]":
        """Yield the clients of a project with this quota of volumes, in number and in GB."""

    def second_network(self) -> contextlib.AbstractContextManager[tuple[str, str]]:
        """Give the project a second network for the length of the context; yields its (id, name)."""

    def slow_boot(self, seconds: float) -> Options:
        """Return the options that make a boot take this long."""

    def slow_delete(self, seconds: float) -> Options:
        """Return the options that make deleting a server take this long."""

    def slow_snapshot(self, seconds: float) -> Options:
        """Return the options that make a snapshot of a server take this long."""

    def failing_snapshot(self) -> Options:
        """Return the options that make a snapshot of a server fail after a second."""

    def failing_boot(self, how: str) -> Options:
        """Return the options that make a boot fail; `how` is no-host, abort or retry."""

    def ending_token(self, seconds: int) -> Any:
        """Return an AccessInfo with a token that expires after this many seconds."""

    def clear(self) -> None:
        """Stop provoking anything."""


@dataclass
class Clients:
    """The real OpenStack clients for one project of one cloud."""

    clouds_yaml: Path
    name: str
    base_name: str
    side: Side

    @cached_property
    def config(self) -> Any:
        return read_clouds(self.clouds_yaml).get_one(cloud=self.name)

    @cached_property
    def sdk(self) -> Any:
        connect: Callable[..., Any] = openstack.connection.Connection
        return connect(config=self.config)

    @property
    def session(self) -> Any:
        return self.sdk.session

    @cached_property
    def nova(self) -> Any:
        return novaclient.client.Client("2.1", session=self.session)

    @cached_property
    def project(self) -> str:
        return str(self.session.get_project_id())

    @cached_property
    def base(self) -> str:
        """The id of the base image."""
        return str(next(iter(self.sdk.image.images(name=self.base_name))).id)

    @cached_property
    def network(self) -> str:
        return str(self.sdk.network.find_network("private").id)

    @cached_property
    def public_network(self) -> str:
        return str(self.sdk.network.find_network("public").id)

    @cached_property
    def flavors(self) -> dict[str, str]:
        return {flavor.name: flavor.id for flavor in self.nova.flavors.list()}

    @property
    def flavor(self) -> str:
        return self.flavors["m1.tiny"]

    def raw(self, service: str, method: str, path: str, **options: Any) -> requests.Response:
        """Make one call on the session and return the answer, whatever its status."""
        adapter = keystoneauth1.adapter.Adapter(self.session, service_type=service)
        answer: requests.Response = adapter.request(path, method, raise_exc=False, **options)
        return answer

    def with_token(self, service: str, path: str, token: str) -> requests.Response:
        """Make one call with a given token; the session keeps its own."""
        return self.raw(service, "GET", path, authenticated=False, headers={"X-Auth-Token": token})

    def act(self, server_id: str, action: Mapping[str, Any], **options: Any) -> requests.Response:
        """Request an action on a server."""
        return self.raw("compute", "POST", f"/servers/{server_id}/action", json=dict(action), **options)

    def boot(self, name: str = "one", **options: Any) -> Any:
        """Request a server as cloud/nova.py does."""
        options = {"nics": [{"net-id": self.network}], "meta": {}, **options}
        flavor, image = options.pop("flavor", self.flavor), options.pop("image", self.base)
        return self.nova.servers.create(name, image, flavor, **options)

    def booted(self, name: str = "one", *, status: str = "ACTIVE", **options: Any) -> Any:
        """Request a server and wait until it has the status."""
        return self.in_status(self.boot(name, **options).id, status)

    def until(self, server_id: str, look: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until `look` is true of a server as the cloud shows it, and return that view."""
        return waited(f"a change of {server_id}", partial(self._shown_if, server_id, look))

    def _shown_if(self, server_id: str, look: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        shown = self.show(server_id)
        return shown if look(shown) else {}

    def in_status(self, server_id: str, status: str) -> Any:
        """Wait until a server has the status and no task, and return it."""
        def look() -> Any:
            server = self.nova.servers.get(server_id)
            return server if server.status == status and not self.task(server) else None

        return waited(f"{status} of {server_id}", look)

    @staticmethod
    def task(server: Any) -> Any:
        return getattr(server, "OS-EXT-STS:task_state")

    def show(self, server_id: str, **options: Any) -> dict[str, Any]:
        """Return a server as the cloud shows it."""
        shown: dict[str, Any] = self.raw("compute", "GET", f"/servers/{server_id}", **options).json()["server"]
        return shown

    def listed(self, query: str = "", **options: Any) -> list[str]:
        """Return the names of the servers in a listing, in its order."""
        answer = self.raw("compute", "GET", f"/servers/detail?{query}", **options)
        assert answer.status_code == 200, answer.text
        return [server["name"] for server in answer.json()["servers"]]

    def volume(self, volume_id: str) -> dict[str, Any]:
        """Return a volume as the cloud shows it."""
        shown: dict[str, Any] = self.raw("block-storage", "GET", f"/volumes/{volume_id}").json()["volume"]
        return shown

    def volume_in(self, volume_id: str, status: str) -> dict[str, Any]:
        """Wait until a volume has the status, and return it."""
        return waited(f"{status} of volume {volume_id}", lambda: next(
            (shown for shown in [self.volume(volume_id)] if shown["status"] == status), {}))

    def is_gone(self, server_id: str) -> bool:
        try:
            self.nova.servers.get(server_id)
        except novaclient.exceptions.NotFound:
            return True
        return False

    def clear(self) -> None:
        """Delete the project's servers, volumes and their snapshots, floating IPs, images and keypairs."""
        servers = [server.id for server in self.nova.servers.list()]
        for server_id in servers:
            with contextlib.suppress(novaclient.exceptions.NotFound):
                self.nova.servers.delete(server_id)
        for server_id in servers:
            waited(f"the end of {server_id}", partial(self.is_gone, server_id))
        storage = self.sdk.block_storage
        for listed, delete in ((storage.snapshots, storage.delete_snapshot), (storage.volumes, storage.delete_volume)):
            if things := list(listed()):  # most tests have none
                for thing in things:
                    delete(thing)
                waited("the end of all volumes", partial(_is_empty, listed))
        for floating in self.sdk.network.ips():
            self.sdk.network.delete_ip(floating)
        for image in self.sdk.image.images(owner=self.project):
            self.sdk.image.delete_image(image)
        for pair in self.nova.keypairs.list():
            self.nova.keypairs.delete(pair.name)


def _is_empty(listed: Callable[[], Any]) -> bool:
    return not list(listed())


def read_clouds(clouds_yaml: Path) -> Any:
    """Read this clouds.yaml, not the one that the environment names."""
    return openstack.config.OpenStackConfig(config_files=[str(clouds_yaml)], load_envvars=False)


def waited(what: str, look: Callable[[], T]) -> T:
    """Wait until `look` returns something true, and return that; the limit catches hangs only."""
    return await_that(what, look, HANG_SECONDS, least=LOOK_SECONDS)


class PocketSide:
    """pocketcloud: faults are provoked by its knobs."""

    def __init__(self, pocket: Pocket, cloud: str = "pocket-a") -> None:
        self._pocket, self._cloud = pocket, cloud

    def clients(self) -> Clients:
        return Clients(self._pocket.clouds_yaml, self._cloud, "Debian 12", self)

    def knobs(self, **values: Any) -> Options:
        self._pocket.knobs(self._cloud, **values)
        return {}

    @contextlib.contextmanager
    def small(self, instances: int, cores: int = -1, ram: int = -1) -> Iterator[Clients]:
        limits = {"quota_instances": instances, "quota_cores": cores, "quota_ram": ram}
        self.knobs(**{name: None if limit < 0 else limit for name, limit in limits.items()})
        yield self.clients()

    @contextlib.contextmanager
    def few_floating(self, most: int = 0) -> Iterator[Clients]:
        self.knobs(floating_quota=most)
        yield self.clients()

    @contextlib.contextmanager
    def few_volumes(self, volumes: int, gigabytes: int = -1) -> Iterator[Clients]:
        self.knobs(volume_quota=None if volumes < 0 else volumes,
                   volume_gigabytes_quota=None if gigabytes < 0 else gigabytes)
        yield self.clients()

    @contextlib.contextmanager
    def second_network(self) -> Iterator[tuple[str, str]]:
        self.knobs(second_network="second")
        yield str(self.clients().sdk.network.find_network("second").id), "second"

    def slow_boot(self, seconds: float) -> Options:
        return self.knobs(boot_seconds=seconds)

    def slow_delete(self, seconds: float) -> Options:
        return self.knobs(delete_seconds=seconds)

    def slow_snapshot(self, seconds: float) -> Options:
        return self.knobs(snapshot_seconds=seconds)

    def failing_snapshot(self) -> Options:
        return self.knobs(snapshot_seconds=1, snapshot_failure="error")

    def failing_boot(self, how: str) -> Options:
        aborted = "Build of instance {id} aborted: as told"
        retries = ("Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for "
                   "instance {id}.")
        fault = {"no-host": Knobs().boot_fault, "abort": aborted, "retry": retries}[how]
        return self.knobs(boot_failure="error", boot_failure_next=1, boot_fault=fault)

    def ending_token(self, seconds: int) -> Any:
        self.knobs(token_seconds=seconds)
        session = self.clients().session
        try:
            return session.auth.get_access(session)
        finally:
            self.knobs(token_seconds=Knobs().token_seconds)

    def clear(self) -> None:
        self.knobs(**{name: value for name, value in Knobs().as_dict().items() if name != "machines"})


class RealSide:
    """The real services: the hypervisor driver takes orders from a server's metadata; the clients do the rest."""

    def __init__(self, clouds_yaml: Path) -> None:
        self._clouds_yaml = clouds_yaml

    def clients(self, name: str = "real") -> Clients:
        return Clients(self._clouds_yaml, name, "Debian 12", self)

    @contextlib.contextmanager
    def small(self, instances: int, cores: int = -1, ram: int = -1) -> Iterator[Clients]:
        small, admin = self.clients("real-small"), self.clients("real-admin")
        before = small.nova.limits.get().to_dict()["absolute"]["maxTotalInstances"]
        admin.sdk.compute.update_quota_set(small.project, instances=instances, cores=cores, ram=ram)
        try:
            yield small
        finally:
            small.clear()
            admin.sdk.compute.update_quota_set(small.project, instances=before, cores=-1, ram=-1)

    @contextlib.contextmanager
    def few_floating(self, most: int = 0) -> Iterator[Clients]:
        small, admin = self.clients("real-small"), self.clients("real-admin")
        admin.sdk.network.update_quota(small.project, floating_ips=most)
        try:
            yield small
        finally:
            admin.sdk.network.delete_quota(small.project)

    @contextlib.contextmanager
    def few_volumes(self, volumes: int, gigabytes: int = -1) -> Iterator[Clients]:
        small, admin = self.clients("real-small"), self.clients("real-admin")
        admin.sdk.block_storage.update_quota_set(small.project, volumes=volumes, gigabytes=gigabytes)
        try:
            yield small
        finally:
            small.clear()
            admin.sdk.block_storage.revert_quota_set(small.project)

    @contextlib.contextmanager
    def second_network(self) -> Iterator[tuple[str, str]]:
        clients = self.clients()
        made = clients.sdk.network.create_network(name="second")
        try:
            clients.sdk.network.create_subnet(
                name="second-subnet", network_id=made.id, ip_version=4, cidr=SECOND_RANGE, enable_dhcp=False)
            yield str(made.id), "second"
        finally:
            clients.clear()  # a network in use cannot be deleted
            clients.sdk.network.delete_network(made)

    def slow_boot(self, seconds: float) -> Options:
        return {"meta": {"real.boot_seconds": str(seconds)}}

    def slow_delete(self, seconds: float) -> Options:
        return {"meta": {"real.delete_seconds": str(seconds)}}

    def slow_snapshot(self, seconds: float) -> Options:
        return {"meta": {"real.snapshot_seconds": str(seconds)}}

    def failing_snapshot(self) -> Options:
        return {"meta": {"real.snapshot_seconds": "1", "real.snapshot_failure": "yes"}}

    def failing_boot(self, how: str) -> Options:
        return {"meta": {"real.boot_failure": how}}

    def ending_token(self, seconds: int) -> Any:
        clients = self.clients()
        end = datetime.now(UTC) + timedelta(seconds=seconds + 2)  # Keystone drops fractions and refuses past times
        made = clients.sdk.identity.create_application_credential(
            clients.session.get_user_id(), name=f"until-{time.time()}", expires_at=end.strftime("%Y-%m-%dT%H:%M:%SZ"))
        login = ApplicationCredential(clients.config.config["auth"]["auth_url"], made.secret, made.id)
        return login.get_access(clients.session)

    def clear(self) -> None:
        """Do nothing: orders in metadata do not outlive their server."""
