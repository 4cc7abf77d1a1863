"""One provider: an OpenStack cloud, region and project, as the scripts use it.

Compute goes through python-novaclient; clouds.yaml, images, networks and floating IPs through openstacksdk; both over
one keystoneauth session; they are imported where they are used, since that takes long and a script must be able to say
that it was stopped. Every call has a time limit and keeps the provider's pace. Whatever goes wrong comes out as
one of the classes below, and only a 404 is ever taken to mean that something is gone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from gateconfig import ConfigError, GateError, get_log

CALL_SECONDS = 60  # time limit of a call, for each wait on the socket
RATE_LIMIT_SECONDS = 300  # how long one call may be kept waiting by rate limits
MICROVERSION = "2.1"

POOL_KEY = "devstack-gate-pool"
PROVIDER_KEY = "devstack-gate-provider"
MACHINE_KEY = "devstack-gate-machine"
SNAPSHOT_KEY = "devstack-gate-snapshot"
PROVED_KEY = "devstack-gate-proved"  # of an image: a machine booted from it has passed the ssh test
HOLD_KEY = "devstack-gate-hold"  # why a person holds the machine; reap believes it where vm.db has forgotten
HOLD_UNTIL_KEY = "devstack-gate-hold-until"  # Unix seconds, 0 for no end
METADATA_LENGTH = 255
TEMPLATE_SUFFIX = ".template.openstack.org"
TEMPLATE_NAME = re.compile(rf"devstack-[a-z0-9-]+-[0-9]+{re.escape(TEMPLATE_SUFFIX)}$")

ACTIVE, SERVER_ERROR = "ACTIVE", "ERROR"
DEAD_STATUSES = ("ERROR", "DELETED", "SOFT_DELETED", "SHUTOFF", "SUSPENDED", "PAUSED", "SHELVED", "SHELVED_OFFLOADED")
CAPACITY_FAULTS = re.compile(r"no valid host|quota|exceeded maximum number of retries|insufficient", re.IGNORECASE)

T = TypeVar("T")


class CloudError(GateError):
    """A call failed; what it was about is in an unknown state, and trying again may help."""


class GoneError(CloudError):
    """404: the thing asked for is not there."""


class CapacityError(CloudError):
    """The provider refuses more: quota or no room. Nothing was made."""


class RefusedError(CloudError):
    """The provider understood the request and refused it for good. Nothing was made."""


class CloudConfigError(ConfigError):
    """Wrong credentials, cloud, region, image, flavor or network name."""


class ProviderSettings(Protocol):
    """The columns of a provider that matter here."""

    name: Any
    cloud: Any
    region: Any
    boot_timeout: Any
    calls_per_second: Any
    floating_ips: Any
    floating_ip_network: Any
    address: Any

    def listed(self, column: str) -> list[str]:
        """Return a column that holds a list."""


class ImageSettings(Protocol):
    """The columns of an image type that matter here."""

    min_ram: Any
    flavor: Any
    user_data: Any


@dataclass(frozen=True)
class Server:
    """A server of ours as the cloud last showed it."""

    id: str
    name: str
    status: str
    fault: str
    metadata: Mapping[str, str]
    addresses: Mapping[str, list[Mapping[str, Any]]] = field(repr=False)
    created: float  # Unix seconds, by the cloud's clock

    @property
    def machine_id(self) -> int | None:
        """The row that the server was made for, None for template servers."""
        return _row_id(self.metadata.get(MACHINE_KEY, ""))

    @property
    def hold(self) -> tuple[str, int | None] | None:
        """Why a person holds it and until when (Unix seconds), as it was last marked; None if nobody does."""
        reason, until = self.metadata.get(HOLD_KEY), _row_id(self.metadata.get(HOLD_UNTIL_KEY, ""))
        return None if reason is None else (reason, until or None)

    @property
    def snapshot_id(self) -> int | None:
        """The snapshot row that the template server was made for."""
        return _row_id(self.metadata.get(SNAPSHOT_KEY, ""))


@dataclass(frozen=True)
class Image:
    """A snapshot of ours as the cloud last showed it; status in lower case."""

    id: str
    name: str
    status: str
    snapshot_id: int | None
    created: float
    proved: bool = False  # whether a machine booted from it has passed the ssh test


@dataclass(frozen=True)
class FloatingIP:
    """A floating IP of ours; server_id is what it was made for."""

    id: str
    address: str
    server_id: str


class Pace:
    """Spaces calls evenly over time, and holds all of them back while the cloud says Retry-After."""

    def __init__(self, calls_per_second: float | None) -> None:
        self._gap = 1 / calls_per_second if calls_per_second else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when the next call may go out."""
        with self._lock:
            start = max(self._next, time.monotonic())
            self._next = start + self._gap
        time.sleep(max(0.0, start - time.monotonic()))

    def hold_back(self, seconds: float) -> None:
        """Let no call out for so many seconds."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class Cloud:
    """The calls that the scripts make to one provider; safe to use from several threads."""

    def __init__(self, provider: ProviderSettings, pool: str) -> None:
        """Read clouds.yaml and log in; CloudConfigError or CloudError if that cannot be done."""
        import novaclient.client

        self.provider = provider
        self.pool = pool
        self.log = get_log(provider=provider.name)
        self._pace = Pace(provider.calls_per_second)
        self._connection = _connect(provider)
        self._nova = novaclient.client.Client(
            MICROVERSION,
            session=self._connection.session,
            region_name=self._connection.config.get_region_name("compute"),
            endpoint_type=self._connection.config.get_interface("compute"),
            service_type="compute",
        )
        self._network_ids: list[str] | None = None
        self._external_networks: dict[str, str] | None = None  # name: id, asked for when first needed
        self._lock = threading.Lock()
        self._ask("log in", self._log_in)

    def _log_in(self) -> None:
        self._connection.session.get_token()
        if self._connection.config.get_session_endpoint("compute") is None:
            raise CloudConfigError(f"provider {self.provider.name}: entry {self.provider.cloud} of clouds.yaml has no "
                                   f"compute service in region {self.provider.region or 'of its own'}")

    # --- calls ---

    def _compute(self, what: str, call: Callable[[], T]) -> T:
        """Make a compute call at the provider's pace; a rate limit is obeyed, and the call made again."""
        deadline = time.monotonic() + RATE_LIMIT_SECONDS
        pause = 1.0
        while True:
            self._pace.wait()
            try:
                return self._ask(what, call)
            except _RateLimitedError as err:
                pause = err.retry_after or min(pause * 2, 60.0)
                if time.monotonic() + pause > deadline:
                    raise CloudError(f"{err}, for more than {RATE_LIMIT_SECONDS} s") from err
                self.log.info("%s: rate limit, pausing %.0f s as the cloud asks", what, pause)
                self._pace.hold_back(pause)

    def _ask(self, what: str, call: Callable[[], T]) -> T:
        with _explained(f"provider {self.provider.name}: {what}", self.provider.cloud):
            return call()

    # --- servers ---

    def list_servers(self) -> list[Server]:
        """Return every server that carries our pool's UUID and this provider's name, in one call per 1,000 servers.

        The metadata is looked at here: real clouds ignore such a filter for members.
        """
        found: list[Server] = []
        url: str | None = "/servers/detail?limit=1000"
        while url:
            page, url = self._compute("list servers", partial(self._list_page, url))
            found += [server for server in page if self._is_ours(server.metadata)]
        return found

    def _list_page(self, url: str) -> tuple[list[Server], str | None]:
        body = self._nova.client.get(url)[1]
        following = [link["href"] for link in body.get("servers_links", []) if link["rel"] == "next"]
        return list(map(_server, body["servers"])), (
            f"/servers/detail?{following[0].partition('?')[2]}" if following else None)

    def _is_ours(self, metadata: Mapping[str, str]) -> bool:
        return metadata.get(POOL_KEY) == self.pool and metadata.get(PROVIDER_KEY) == self.provider.name

    def get_server(self, server_id: str) -> Server:
        """Return a server; GoneError only if the cloud says that it is not there."""
        return self._compute("show server", lambda: _server(self._nova.servers.get(server_id).to_dict()))

    def create_server(
        self,
        name: str,
        image_id: str,
        flavor_id: str,
        metadata: Mapping[str, str],
        *,
        key_name: str | None = None,
        user_data: str | None = None,
        zone: str | None = None,
    ) -> str:
        """Ask for a server and return its id; the metadata is completed with our marks.

        CapacityError, RefusedError and CloudConfigError mean that nothing was made; after any other CloudError the
        server may exist and is to be looked for by its metadata.
        """
        server = self._compute("create server", lambda: self._nova.servers.create(
            name, image_id, flavor_id,
            meta={POOL_KEY: self.pool, PROVIDER_KEY: self.provider.name, **metadata},
            key_name=key_name, userdata=user_data, availability_zone=zone,
            security_groups=self.provider.listed("security_groups") or None,
            nics=[{"net-id": network} for network in self.network_ids()] or None,
        ))
        return str(server.id)

    def delete_server(self, server_id: str) -> bool:
        """Ask for a server's end; returns False if it was gone already."""
        try:
            self._compute("delete server", lambda: self._nova.servers.delete(server_id))
        except GoneError:
            return False
        return True

    def mark_held(self, server_id: str, reason: str, until: int | None) -> None:
        """Mark a server as held by a person, so that it is known to be even if vm.db is lost; see Server.hold."""
        marks = held_marks(reason, until)
        self._compute("mark server", lambda: self._nova.servers.set_meta(server_id, marks))

    def console_log(self, server_id: str) -> str:
        """Return the end of a server's console output."""
        text: str = self._compute("show console", lambda: self._nova.servers.get_console_output(server_id, length=500))
        return text

    def flavor_id(self, image: ImageSettings) -> str:
        """Return the id of the named flavor, or of the smallest one with at least min_ram MB."""
        flavors = self._compute("list flavors", self._nova.flavors.list)
        if image.flavor:
            found = [flavor for flavor in flavors if image.flavor in (flavor.name, flavor.id)]
        else:
            enough = [flavor for flavor in flavors if flavor.ram >= image.min_ram]
            found = sorted(enough, key=lambda flavor: (flavor.ram, flavor.vcpus, flavor.disk, flavor.name))
        if not found:
            wanted = f"named {image.flavor}" if image.flavor else f"with {image.min_ram} MB or more (min-ram)"
            raise CloudConfigError(f"provider {self.provider.name}: no flavor {wanted}; "
                                   f"there are {', '.join(sorted(flavor.name for flavor in flavors))}")
        return str(found[0].id)

    # --- keypairs ---

    def create_keypair(self, name: str, public_key: str) -> None:
        """Make a keypair; one of that name that exists already is replaced."""
        self.delete_keypair(name)
        self._compute("create keypair", lambda: self._nova.keypairs.create(name, public_key))

    def delete_keypair(self, name: str) -> None:
        """Delete a keypair; one that is gone already is fine."""
        with contextlib.suppress(GoneError):
            self._compute("delete keypair", lambda: self._nova.keypairs.delete(name))

    def keypair_name(self, snapshot_id: int) -> str:
        """Return the name of the keypair of one image build, which says whose it is: keypairs have no metadata."""
        return f"devstack-gate-{self.pool}-{snapshot_id}"

    def list_keypairs(self) -> dict[str, int]:
        """Return our keypairs, {name: snapshot row id}."""
        mark = f"devstack-gate-{self.pool}-"
        names = [str(pair.name) for pair in self._compute("list keypairs", self._nova.keypairs.list)]
        found = {name: _row_id(name.removeprefix(mark)) for name in names if name.startswith(mark)}
        return {name: row_id for name, row_id in found.items() if row_id is not None}

    # --- images ---

    def find_base_image(self, name_or_id: str) -> str:
        """Return the id of the newest active image of that name, or with that id."""
        proxy = self._connection.image
        images = self._ask("list images", lambda: list(proxy.images(name=name_or_id)))
        if not images:
            with contextlib.suppress(GoneError):
                images = [self._ask("show image", lambda: proxy.get_image(name_or_id))]
        active = [image for image in images if image.status == "active"]
        if not active:
            states = f", only {', '.join(sorted({image.status for image in images}))} ones" if images else ""
            raise CloudConfigError(f"provider {self.provider.name}: no active image {name_or_id!r}{states}")
        return str(max(active, key=lambda image: image.created_at or "").id)

    def create_image(self, server_id: str, name: str, snapshot_id: int) -> str:
        """Ask for a snapshot of a server's disk and return the image's id; the image is not active yet."""
        marks = {POOL_KEY: self.pool, PROVIDER_KEY: self.provider.name, SNAPSHOT_KEY: str(snapshot_id)}
        image: str = self._compute("create image", lambda: self._nova.servers.create_image(server_id, name, marks))
        return image

    def image_status(self, image_id: str) -> str:
        """Return an image's status in lower case; GoneError if the cloud has no such image."""
        return str(self._ask("show image", lambda: self._connection.image.get_image(image_id)).status).lower()

    def list_snapshots(self) -> list[Image]:
        """Return the images that carry our marks and are named as we name templates.

        The name is looked at too, because an image that a user makes of one of our machines inherits the marks.
        """
        images = self._ask("list images", lambda: list(self._connection.image.images(visibility="private")))
        return [_image(image) for image in images
                if self._is_ours(image.properties or {}) and TEMPLATE_NAME.search(str(image.name))]

    def mark_proved(self, image_id: str) -> None:
        """Mark an image as one that machines boot well from, so that it is known to be even if vm.db is lost."""
        self._ask("mark image", lambda: self._connection.image.update_image(image_id, **{PROVED_KEY: "1"}))

    def delete_image(self, image_id: str) -> None:
        """Delete an image; one that is gone already is fine."""
        with contextlib.suppress(GoneError):
            self._ask("delete image", lambda: self._connection.image.delete_image(image_id, ignore_missing=True))

    # --- addresses ---

    def reachable_address(self, server: Server) -> str | None:
        """Return the address of an active server by the provider's settings, or None if it has none yet.

        May ask for a floating IP first, which shows among the server's addresses a little later.
        """
        mode = self.provider.floating_ips
        found = self._first(server, "floating") if mode == "always" else self._chosen(server)
        if found or not server.addresses or self.provider.address == "public-v6":
            return found
        if mode == "always" or (mode == "auto" and self.external_networks()):
            return self._bind_floating_ip(server)
        return self._first(server, "fixed")

    def shown_address(self, server: Server) -> str | None:
        """Return the address that a server shows by the provider's settings; nothing is made for it."""
        try:
            return self._chosen(server)
        except CloudError as err:
            self.log.warning("%s", err)
            return None

    def _chosen(self, server: Server) -> str | None:
        """Choose without knowing the external networks first: most clouds need not be asked for them."""
        found = choose_address(server.addresses, self.provider.address, set())
        if found is None and server.addresses:
            found = choose_address(server.addresses, self.provider.address, set(self.external_networks()))
        return found

    @staticmethod
    def _first(server: Server, kind: str) -> str | None:
        """Return a server's first IPv4 address of kind fixed or floating."""
        return next((str(address["addr"]) for group in server.addresses.values() for address in group
                     if address["version"] == 4 and address.get("OS-EXT-IPS:type", "fixed") == kind), None)  # noqa: PLR2004

    def external_networks(self) -> dict[str, str]:
        """Return the networks that floating IPs come from, {name: id}; none where there is no network service."""
        with self._lock:
            if self._external_networks is None:
                self._external_networks = self._ask("list networks", self._find_external_networks)
            return self._external_networks

    def _find_external_networks(self) -> dict[str, str]:
        wanted = self.provider.floating_ip_network
        if not self._has_network_service():
            return {}
        found = {network.name: network.id for network in self._connection.network.networks(is_router_external=True)
                 if wanted in (None, network.name, network.id)}
        if wanted and not found:
            raise CloudConfigError(f"provider {self.provider.name}: floating-ip-network: no external network {wanted}")
        return found

    def _has_network_service(self) -> bool:
        return self._connection.config.get_session_endpoint("network") is not None

    def _bind_floating_ip(self, server: Server) -> str:
        """Make a floating IP on the server's port in one call and return its address; made before, it is found."""
        for existing in self.list_floating_ips():
            if existing.server_id == server.id:
                return existing.address
        networks = self.external_networks()
        if not networks:
            raise CloudConfigError(f"provider {self.provider.name}: floating-ips is {self.provider.floating_ips}, "
                                   "but there is no external network")
        network = self._connection.network
        ports = self._ask("list ports", lambda: list(network.ports(device_id=server.id)))
        if not ports:
            raise CloudError(f"provider {self.provider.name}: server {server.name} has no port for a floating IP yet")
        made = self._ask("create floating IP", lambda: network.create_ip(
            floating_network_id=next(iter(networks.values())), port_id=ports[0].id,
            description=f"{POOL_KEY}={self.pool} server={server.id}"))
        self.log.info("server %s gets floating IP %s", server.name, made.floating_ip_address)
        return str(made.floating_ip_address)

    def list_floating_ips(self) -> list[FloatingIP]:
        """Return the floating IPs that we made, by the mark in their description."""
        if not self._has_network_service():
            return []
        mark = f"{POOL_KEY}={self.pool} server="
        addresses = self._ask("list floating IPs", lambda: list(self._connection.network.ips()))
        return [FloatingIP(str(ip.id), str(ip.floating_ip_address), ip.description.removeprefix(mark))
                for ip in addresses if (ip.description or "").startswith(mark)]

    def delete_floating_ip(self, floating_ip_id: str) -> None:
        """Release a floating IP; one that is gone already is fine."""
        with contextlib.suppress(GoneError):
            self._ask("delete floating IP",
                      lambda: self._connection.network.delete_ip(floating_ip_id, ignore_missing=True))

    def network_ids(self) -> list[str]:
        """Return the ids of the networks that servers are attached to, empty for the provider's default."""
        names = self.provider.listed("networks")
        with self._lock:
            if self._network_ids is None:
                self._network_ids = self._ask("list networks", lambda: [self._network_id(name) for name in names])
            return self._network_ids

    def _network_id(self, name: str) -> str:
        import openstack.exceptions

        try:
            return str(self._connection.network.find_network(name, ignore_missing=False).id)
        except openstack.exceptions.NotFoundException as err:
            raise CloudConfigError(f"provider {self.provider.name}: networks: there is no network {name}") from err


# --- login ----------------------------------------------------------------------------------------------------------


def _connect(provider: ProviderSettings) -> Any:
    import keystoneauth1.exceptions
    import openstack
    import openstack.exceptions
    import yaml

    where = f"provider {provider.name}"
    try:
        config = openstack.config.OpenStackConfig().get_one(
            provider.cloud, region_name=provider.region, api_timeout=CALL_SECONDS,
            image_status_code_retries=1, network_status_code_retries=1)
        return openstack.connection.Connection(config=config)
    except (openstack.exceptions.ConfigException, keystoneauth1.exceptions.ClientException) as err:
        raise CloudConfigError(f"{where}: clouds.yaml: entry {provider.cloud}: {_one_line(err)}") from err
    except (OSError, yaml.YAMLError, AttributeError, TypeError, ValueError, KeyError) as err:
        raise CloudConfigError(f"{where}: clouds.yaml cannot be read: {_one_line(err)}") from err


# --- what went wrong ------------------------------------------------------------------------------------------------


class _RateLimitedError(CloudError):
    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@contextlib.contextmanager
def _explained(what: str, cloud: str) -> Iterator[None]:
    """Turn the exceptions of the client libraries into ours."""
    import keystoneauth1.exceptions
    import novaclient.exceptions
    import openstack.exceptions

    try:
        yield
    except novaclient.exceptions.ClientException as err:
        raise _by_status(what, cloud, err.code, err, getattr(err, "retry_after", 0)) from err
    except openstack.exceptions.HttpException as err:
        headers = err.response.headers if err.response is not None else {}
        raise _by_status(what, cloud, err.status_code or 0, err, _seconds(headers.get("Retry-After"))) from err
    except keystoneauth1.exceptions.HttpError as err:
        raise _by_status(what, cloud, err.http_status, err, 0) from err
    except keystoneauth1.exceptions.DiscoveryFailure as err:
        answer = re.search(r"[A-Z][A-Za-z ]+ \(HTTP [0-9]+\)", str(err))
        text = f"{what}: no identity service answers there: {answer[0] if answer else _one_line(err)}" \
               f"; see auth_url in entry {cloud} of clouds.yaml"
        raise (CloudConfigError(text) if "HTTP 4" in text else CloudError(text)) from err
    except (keystoneauth1.exceptions.CatalogException, keystoneauth1.exceptions.MissingRequiredOptions,
            keystoneauth1.exceptions.MissingAuthPlugin) as err:
        raise CloudConfigError(f"{what}: {_one_line(err)}; see entry {cloud} of clouds.yaml") from err
    except (keystoneauth1.exceptions.ClientException, openstack.exceptions.SDKException) as err:
        raise CloudError(f"{what}: {_one_line(err)}") from err
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        # The clients raise these for answers that are cut short or are not what the API promises.
        raise CloudError(f"{what}: the answer makes no sense ({type(err).__name__}: {_one_line(err)})") from err


def _by_status(what: str, cloud: str, status: int, err: Exception, retry_after: float) -> GateError:
    text = f"{what}: {_one_line(err)}"
    if status == 404:  # noqa: PLR2004
        return GoneError(text)
    if status == 401:  # noqa: PLR2004
        return CloudConfigError(f"{text}; see entry {cloud} of clouds.yaml")
    if status == 429 or (status == 413 and retry_after):  # noqa: PLR2004
        return _RateLimitedError(text, retry_after)
    if status == 413 or (status in (403, 409) and CAPACITY_FAULTS.search(text)):  # noqa: PLR2004
        return CapacityError(text)
    if status in (400, 403, 406, 409):
        return RefusedError(text)
    return CloudError(text)


def _one_line(err: BaseException) -> str:
    text = re.sub(r"<[^>]*>", " ", str(err))
    return " ".join(text.split())[:300] or type(err).__name__


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdigit() else 0.0


# --- what the cloud shows -------------------------------------------------------------------------------------------


def _server(raw: Mapping[str, Any]) -> Server:
    return Server(
        id=str(raw["id"]),
        name=str(raw.get("name")),
        status=str(raw.get("status", "UNKNOWN")).upper(),
        fault=str((raw.get("fault") or {}).get("message", "")).strip(),
        metadata=raw.get("metadata") or {},
        addresses=raw.get("addresses") or {},
        created=_unix_time(raw.get("created")),
    )


def _image(image: Any) -> Image:
    snapshot_id = _row_id(str((image.properties or {}).get(SNAPSHOT_KEY, "")))
    return Image(str(image.id), str(image.name), str(image.status).lower(), snapshot_id, _unix_time(image.created_at),
                 PROVED_KEY in (image.properties or {}))


def _row_id(text: str) -> int | None:
    """Return the row id of a mark, None if somebody wrote something else there."""
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def _unix_time(text: str | None) -> float:
    """Return OpenStack's UTC time stamp as Unix seconds; a missing one counts as just now."""
    if not text:
        return time.time()
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC).timestamp()


def choose_address(
    addresses: Mapping[str, Sequence[Mapping[str, Any]]], wanted: str, external_networks: set[str]
) -> str | None:
    """Return the address to use by the setting `address`, or None if the server has none of that kind.

    public-v4: a floating address, else a fixed one that is not private (RFC 1918, RFC 6598, link-local) or lies on an
    external network; loopback addresses are reachable by their nature. private-v4: a fixed private one, else any
    fixed one. public-v6: an IPv6 address that is not link-local or unique-local.
    """
    version = 6 if wanted == "public-v6" else 4
    found: dict[bool, list[str]] = {True: [], False: []}
    for network, group in addresses.items():
        for address in group:
            if address.get("version") != version:
                continue
            ip = ipaddress.ip_address(address["addr"])
            floating = address.get("OS-EXT-IPS:type") == "floating"
            public = floating or network in external_networks or ip.is_loopback or ip.is_global
            if floating and wanted == "public-v4":
                return str(address["addr"])
            if not floating or wanted != "private-v4":
                found[public].append(str(address["addr"]))
    if wanted == "private-v4":
        return next(iter(found[False] + found[True]), None)
    return next(iter(found[True]), None)


def last_snapshot_id(servers: Iterable[Server], images: Iterable[Image], of_keypairs: Iterable[int]) -> int:
    """Return the highest id of a snapshot row that anything of ours bears, 0 if nothing does."""
    marks = [*(server.snapshot_id for server in servers), *(image.snapshot_id for image in images), *of_keypairs]
    return max([0, *(number or 0 for number in marks)])


def held_marks(reason: str, until: int | None) -> dict[str, str]:
    """Return the metadata of a held server; clouds limit its length, and some its letters."""
    return {HOLD_KEY: reason.encode("ascii", "replace").decode()[:METADATA_LENGTH], HOLD_UNTIL_KEY: str(until or 0)}


def read_user_data(image: ImageSettings) -> str | None:
    """Return the text of an image type's user data; ConfigError if the file is not there any more."""
    if not image.user_data:
        return None
    try:
        return Path(image.user_data).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"user-data: {image.user_data} cannot be read") from err
