"""One provider: an OpenStack cloud, region and project, as the scripts use it.

Compute goes through python-novaclient; clouds.yaml, images, networks, volumes and floating IPs through openstacksdk.
Both share one keystoneauth session. They are imported where they are used, because the import is slow and a script
must be able to report a stop meanwhile. Every call has a time limit, and calls to compute keep the provider's pace.
Every failure is raised as a class of cloud/errors.py, and only a 404 means that something is gone.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from cloud.errors import (
    CAPACITY_FAULTS,
    RETRY_FAULTS,
    CapacityError,
    CloudConfigError,
    CloudError,
    GoneError,
    RateLimitedError,
    RefusedError,
    explained,
)
from cloud.login import connect
from cloud.network import POOL_KEY, FloatingIP, Network
from cloud.quota import Quota
from cloud.rules import (
    ALL,
    FLAVOR,
    FLOATING_IPS,
    HOST,
    METADATA_LENGTH,
    VOLUME,
    Flavor,
    ImageSettings,
    Source,
    choose_address,
    choose_flavor,
    out_of_room,
    plain_metadata,
    row_id,
    shortage,
    takes,
    unix_time,
    volume_gigabytes,
    wanted_flavor,
)
from cloud.volumes import Volume, Volumes
from gateprocess import NONSENSE, ConfigError, GateError, clock_ahead, get_log, plain, some

__all__ = [
    "ALL", "CAPACITY_FAULTS", "FLAVOR", "FLOATING_IPS", "HOST", "POOL_KEY", "RETRY_FAULTS", "VOLUME", "CapacityError",
    "Cloud", "CloudConfigError", "CloudError", "Flavor", "FloatingIP", "GoneError", "RefusedError", "Source", "Volume",
    "choose_address", "out_of_room", "shortage",
]

CALL_SECONDS = 60  # time limit of a call as a whole, unless clouds.yaml has api_timeout
RATE_LIMIT_SECONDS = 300  # how long rate limits may delay one call
FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}  # of addresses, by their version
MICROVERSION = "2.1"
LISTED = 20_000  # the most items in a list; each takes some 5 KB
LIST_SECONDS = 600  # for all pages of a list
LISTS_ANEW = 3  # how often a list is started again because the last item of a page was deleted meanwhile

PROVIDER_KEY = "devstack-gate-provider"
MACHINE_KEY = "devstack-gate-machine"
LEAD_KEY = "devstack-gate-lead"  # of a subnode: the row id of the machine that it belongs to
SNAPSHOT_KEY = "devstack-gate-snapshot"
PROVED_KEY = "devstack-gate-proved"  # of an image: a machine booted from it has passed the ssh test
HOLD_KEY = "devstack-gate-hold"  # why a person holds the machine; reap believes it if vm.db has forgotten
HOLD_UNTIL_KEY = "devstack-gate-hold-until"  # Unix seconds, 0 for no end
TEMPLATE_SUFFIX = ".template.openstack.org"
TEMPLATE_NAME = re.compile(rf"devstack-[A-Za-z0-9._-]+-[0-9]+{re.escape(TEMPLATE_SUFFIX)}$")

ACTIVE, SERVER_ERROR = "ACTIVE", "ERROR"
DEAD_STATUSES = ("ERROR", "SHUTOFF", "SUSPENDED", "PAUSED", "RESCUE", "SHELVED", "SHELVED_OFFLOADED")
GONE_STATUSES = ("DELETED", "SOFT_DELETED")  # a cloud may show a server for days after its deletion

T = TypeVar("T")


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
        return row_id(self.metadata.get(MACHINE_KEY, ""))

    @property
    def lead_id(self) -> int | None:
        """The row of the machine whose subnode it is, None if it is not a subnode."""
        return row_id(self.metadata.get(LEAD_KEY, ""))

    @property
    def hold(self) -> tuple[str, int | None] | None:
        """Why a person holds it and until when (Unix seconds), as it was last marked; None if nobody does."""
        reason, until = self.metadata.get(HOLD_KEY), row_id(self.metadata.get(HOLD_UNTIL_KEY, ""))
        return None if reason is None else (reason, until or None)

    @property
    def snapshot_id(self) -> int | None:
        """The snapshot row that the template server was made for."""
        return row_id(self.metadata.get(SNAPSHOT_KEY, ""))


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
class Recipe:
    """What the servers of an image type are made of."""

    image_id: str
    flavor_id: str
    user_data: str | None = None
    config_drive: bool = False
    gigabytes: int | None = None  # of the volume to boot from, None for the flavor's own disk
    source: Source | None = None  # what the volume is made of
    flavor: Flavor | None = None


class _LostPlaceError(Exception):
    """The last item of a page was deleted before the next page was asked for."""


class Pace:
    """Spaces calls evenly over time, and holds all of them back while the cloud says Retry-After."""

    def __init__(self, calls_per_second: float | None) -> None:
        self._gap = 1 / calls_per_second if calls_per_second else 0.0
        self._next = 0.0
        self._line: list[tuple[bool, int]] = []
        self._numbers = itertools.count()
        self._turn = threading.Condition()

    def wait(self, *, first: bool = False) -> None:
        """Wait until the next call may go out; first: ahead of all others that wait, as reads go before creates."""
        with self._turn:
            ticket = (not first, next(self._numbers))
            heapq.heappush(self._line, ticket)
            try:
                while self._line[0] != ticket or time.monotonic() < self._next:
                    mine = self._line[0] == ticket
                    self._turn.wait(max(self._next - time.monotonic(), 0.0) if mine else None)
                self._next = max(self._next, time.monotonic()) + self._gap
            finally:
                self._line.remove(ticket)
                heapq.heapify(self._line)
                self._turn.notify_all()

    def hold_back(self, seconds: float) -> None:
        """Hold all calls back for this many seconds."""
        with self._turn:
            self._next = max(self._next, time.monotonic() + seconds)


class Cloud:
    """The calls that the scripts make to one provider; safe to use from several threads."""

    def __init__(self, provider: ProviderSettings, pool: str) -> None:
        """Read clouds.yaml and log in; CloudConfigError or CloudError if that fails."""
        import novaclient.client

        self.provider = provider
        self.pool = pool
        self.log = get_log(provider=provider.name)
        self._pace = Pace(provider.calls_per_second)
        self.connection = connect(provider, CALL_SECONDS)
        config = self.connection.config
        self._nova = novaclient.client.Client(
            MICROVERSION,
            session=self.connection.session,
            region_name=config.get_region_name("compute"),
            endpoint_type=config.get_interface("compute"),
            endpoint_override=config.get_endpoint("compute"),
            service_type=config.get_service_type("compute"),
            service_name=config.get_service_name("compute"),
        )
        self.network = Network(self)
        self.volumes = Volumes(self)
        self._quota = Quota(self, lambda: self.compute("show limits", lambda: self._get("/limits"), first=True))
        self._flavors: list[Flavor] | None = None
        self._lock = threading.Lock()
        self.clock_ahead: float | None = None  # seconds that our clock is ahead of the cloud's, None: unknown
        self._watch_clock()
        self.ask("log in", self._log_in)

    def _log_in(self) -> None:
        self.connection.session.get_token()
        if self.clock_ahead is None:  # a proxy on the way may drop the Date header
            issued = self.connection.session.auth.get_access(self.connection.session).issued
            self.clock_ahead = time.time() - issued.timestamp()
        config = self.connection.config
        if self.connection.session.get_project_id() is None:
            raise CloudConfigError(f"provider {self.provider.name}: entry {self.provider.cloud} of clouds.yaml: auth: "
                                   "expected project_name or project_id; the login is for no project")
        if config.get_session_endpoint("compute") is None:
            region = self.provider.region or config.get_region_name("compute")
            named = {"interface": config.get_interface("compute"), "service name": config.get_service_name("compute")}
            also = "".join(f", {what} {name}" for what, name in named.items() if name and name != "public")
            raise CloudConfigError(f"provider {self.provider.name}: entry {self.provider.cloud} of clouds.yaml has no "
                                   f"compute service in region {region or 'of its own'}{also}")

    def _watch_clock(self) -> None:
        """Learn the cloud's time from the Date header of its answers."""
        def look(answer: Any, *_: Any, **__: Any) -> None:
            self.clock_ahead = clock_ahead(answer.headers.get("Date"))

        self.connection.session.session.hooks["response"].append(look)

    @property
    def place(self) -> tuple[str, str]:
        """The id of the project, and the name of the region, empty if neither entry nor provider names one."""
        project = self.ask("log in", lambda: self.connection.current_project_id)
        return str(project or ""), str(self.connection.config.get_region_name("compute") or "")

    # --- calls ---

    def compute(self, what: str, call: Callable[[], T], *, first: bool = False,
                sent: Callable[[], None] | None = None) -> T:
        """Make a compute call at the provider's pace; obey rate limits, then call again.

        first: go ahead of other calls that wait for the pace. sent is called right before each attempt, after all
        waiting.
        """
        deadline = time.monotonic() + RATE_LIMIT_SECONDS
        pause = 1.0
        while True:
            self._pace.wait(first=first)
            if sent:
                sent()
            try:
                return self._asked(what, call)
            except RateLimitedError as err:
                pause = self._pause(what, err, pause, deadline)
                self._pace.hold_back(pause)

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Make a call to another service; obey rate limits, then call again."""
        deadline = time.monotonic() + RATE_LIMIT_SECONDS
        pause = 1.0
        while True:
            try:
                return self._asked(what, call)
            except RateLimitedError as err:
                pause = self._pause(what, err, pause, deadline)
                time.sleep(pause)

    def _asked(self, what: str, call: Callable[[], T]) -> T:
        """Make a call; raise every failure as one of our classes, with the provider and the call named."""
        with explained(f"provider {self.provider.name}: {what}", self.provider.cloud):
            return call()

    def _pause(self, what: str, err: RateLimitedError, last: float, deadline: float) -> float:
        """Return how many seconds to pause; last is the previous pause. CloudError if that would pass the deadline."""
        pause = err.retry_after or min(last * 2, 60.0)
        if time.monotonic() + pause > deadline:
            raise CloudError(f"{err}, for more than {RATE_LIMIT_SECONDS} s") from err
        self.log.info("%s: rate limit, pausing %.0f s as the cloud asks", what, pause)
        return pause

    def listed(self, what: str, call: Callable[[], Iterable[T]]) -> list[T]:
        """Make a call for a list and return all pages of it.

        CloudError if a page comes again. If the last item of a page was deleted meanwhile, the list is started again.
        """
        for turn in itertools.count(1):
            found: dict[str, T] = {}
            try:
                self.ask(what, partial(self._to_the_end, what, call, found))
            except (GoneError, RefusedError):
                if not found or turn > LISTS_ANEW:
                    raise
            else:
                break
        return list(found.values())

    def _to_the_end(self, what: str, call: Callable[[], Iterable[Any]], found: dict[str, Any]) -> None:
        deadline = time.monotonic() + LIST_SECONDS
        found.clear()  # from an earlier try
        for item in call():
            if str(item.id) in found:
                raise self._same_page(what)
            found[str(item.id)] = item
            self._refuse_endless(what, found, deadline)

    def _refuse_endless(self, what: str, found: Mapping[str, Any], deadline: float) -> None:
        """Raise CloudError if a list is too long, or its pages go on after the deadline (monotonic clock)."""
        if len(found) > LISTED or time.monotonic() > deadline:
            raise CloudError(f"provider {self.provider.name}: {what}: the list does not end after {len(found)} items")

    def _same_page(self, what: str) -> CloudError:
        return CloudError(f"provider {self.provider.name}: {what}: the cloud sends the same page again")

    def _pages(self, what: str, path: str, key: str) -> list[Mapping[str, Any]]:
        """Return a whole list from compute, read page by page."""
        last: Exception | None = None
        for _ in range(LISTS_ANEW):
            found: dict[str, Mapping[str, Any]] = {}
            try:
                self._read_pages(what, path, key, found)
            except _LostPlaceError as err:
                last = err
            else:
                return list(found.values())
        raise CloudError(f"{last}, {LISTS_ANEW} times in a row")

    def _read_pages(self, what: str, path: str, key: str, found: dict[str, Mapping[str, Any]]) -> None:
        query, deadline = "limit=1000", time.monotonic() + LIST_SECONDS
        for number in itertools.count():
            try:
                body = self.compute(what, partial(self._get, f"{path}?{query}"), first=True)
            except (GoneError, RefusedError) as err:
                if number:
                    raise _LostPlaceError(str(err)) from err
                raise
            page, following = self.ask(what, partial(_page, body, key))
            if page and page.keys() <= found.keys():
                raise self._same_page(what)
            found |= page
            if not following:
                return
            if following[0] == query:
                raise self._same_page(what)
            query = following[0]
            self._refuse_endless(what, found, deadline)

    def _get(self, url: str) -> Any:
        return self._nova.client.get(url)[1]

    # --- servers ---

    def list_servers(self) -> list[Server]:
        """Return every server that carries our pool's UUID and this provider's name; see list_pool."""
        return [server for server in self.list_pool() if self.is_own(server)]

    def list_pool(self) -> list[Server]:
        """Return every server that carries our pool's UUID, in one call per 1,000 servers.

        The metadata is filtered here: real clouds ignore such a filter from ordinary members. Deleted servers, which
        a cloud may still show, are left out.
        """
        found = self._pages("list servers", "/servers/detail", "servers")
        servers = self.ask("list servers", lambda: list(map(_server, found)))
        return [server for server in servers
                if server.metadata.get(POOL_KEY) == self.pool and server.status not in GONE_STATUSES]

    def is_own(self, server: Server) -> bool:
        """Return whether a server carries our pool's UUID and this provider's name."""
        return self._is_ours(server.metadata)

    def _is_ours(self, metadata: Mapping[str, str]) -> bool:
        return metadata.get(POOL_KEY) == self.pool and metadata.get(PROVIDER_KEY) == self.provider.name

    def changed_mark(self, metadata: Mapping[str, str]) -> str:
        """Return the key of the mark that makes a server or image not ours, as somebody removed or changed it."""
        return POOL_KEY if metadata.get(POOL_KEY) != self.pool else PROVIDER_KEY

    def get_server(self, server_id: str) -> Server:
        """Return a server; GoneError only if the cloud says that it is not there, or shows it as deleted."""
        server = self.compute("show server", lambda: _server(self._nova.servers.get(server_id).to_dict()))
        if server.status in GONE_STATUSES:
            raise GoneError(f"provider {self.provider.name}: show server: {server_id} is {server.status}")
        return server

    def shows(self, server_id: str) -> bool:
        """Return whether the cloud shows a server, even one that it keeps for a while after its deletion."""
        try:
            self.compute("show server", lambda: self._nova.servers.get(server_id))
        except GoneError:
            return False
        return True

    def create_server(
        self,
        name: str,
        recipe: Recipe,
        metadata: Mapping[str, str],
        *,
        key_name: str | None = None,
        zone: str | None = None,
        volume_id: str | None = None,
        sent: Callable[[], None] | None = None,
    ) -> str:
        """Ask for a server and return its id; our marks are added to the metadata.

        volume_id is the volume to boot from, which is later deleted with the server. sent is called when the create
        goes out. CapacityError, RefusedError and CloudConfigError mean that nothing was made; after any other
        CloudError the server may exist, so look for it by its metadata.
        """
        root = {"boot_index": 0, "uuid": volume_id, "source_type": "volume", "destination_type": "volume",
                "delete_on_termination": True}
        networks = self.network.attached()
        server = self.compute("create server", lambda: self._nova.servers.create(
            name, None if volume_id else recipe.image_id, recipe.flavor_id,
            meta=self.marks(metadata),
            block_device_mapping_v2=[root] if volume_id else None,
            config_drive=recipe.config_drive or None,
            key_name=key_name, userdata=recipe.user_data, availability_zone=zone,
            security_groups=self.provider.listed("security_groups") or None,
            nics=[{"net-id": network} for network in networks] or None,
        ), sent=sent)
        return str(server.id)

    def make_server(
        self,
        name: str,
        recipe: Recipe,
        metadata: Mapping[str, str],
        *,
        key_name: str | None = None,
        zone: str | None = None,
        sent: Callable[[], None] | None = None,
    ) -> str:
        """Do what create_server does, but first make the volume if the recipe wants one."""
        volume_id = None
        if recipe.gigabytes and recipe.source:
            volume_id = self.volumes.make(
                name, recipe.gigabytes, recipe.source, self.marks(metadata), self.provider.boot_timeout, zone)
        try:
            return self.create_server(
                name, recipe, metadata, key_name=key_name, zone=zone, volume_id=volume_id, sent=sent)
        except (CapacityError, RefusedError, ConfigError):
            if volume_id:
                with contextlib.suppress(CloudError):  # reap deletes it later
                    self.volumes.delete(volume_id)
            raise

    def marks(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return metadata with our marks added."""
        return {POOL_KEY: self.pool, PROVIDER_KEY: self.provider.name, **metadata}

    def delete_server(self, server_id: str) -> bool:
        """Ask for a server's deletion; return False if it was gone already."""
        try:
            self.compute("delete server", lambda: self._nova.servers.delete(server_id))
        except GoneError:
            return False
        return True

    def mark_held(self, server_id: str, reason: str, until: int | None) -> None:
        """Mark a server as held by a person, so that this is known even if vm.db is lost; see Server.hold."""
        marks = held_marks(reason, until)
        self.compute("mark server", lambda: self._nova.servers.set_meta(server_id, marks))

    def mark_lead(self, server_id: str, lead_id: int | None) -> None:
        """Mark a server as a subnode of the machine with this row id, or as no subnode; see Server.lead_id."""
        mark = {LEAD_KEY: str(lead_id or "")}
        self.compute("mark server", lambda: self._nova.servers.set_meta(server_id, mark))

    def console_log(self, server_id: str) -> str:
        """Return the end of a server's console output."""
        return self.compute("show console", lambda: str(
            self._nova.servers.get_console_output(server_id, length=500)))

    # --- what servers are made of ---

    def recipe(self, image: ImageSettings, image_id: str) -> Recipe:
        """Return what the servers of an image type are made of when they boot from this image.

        CloudConfigError if the provider has no flavor for it, ConfigError if the user data cannot be read.
        """
        source = Source(image_id)
        if image.boot_from_volume or not image.flavor:
            source = self._source(image_id)
        gigabytes = volume_gigabytes(image, source) if image.boot_from_volume else None
        flavor = self._flavor(image, source)
        return Recipe(image_id, flavor.id, read_user_data(image), bool(image.config_drive), gigabytes, source, flavor)

    def _source(self, image_id: str) -> Source:
        """Return what an image needs of the servers that boot from it."""
        return self.ask("show image", lambda: _source(image_id, self.connection.image.get_image(image_id)))

    def _flavor(self, image: ImageSettings, source: Source) -> Flavor:
        flavors = self._list_flavors()
        found = choose_flavor(flavors, image, source)
        if found is None:
            raise CloudConfigError(
                f"provider {self.provider.name}: no flavor {wanted_flavor(flavors, image, source)}; "
                f"there are {', '.join(sorted(flavor.name for flavor in flavors))}")
        return found

    def _list_flavors(self) -> list[Flavor]:
        """Return the flavors that the project can use; the cloud is asked once."""
        with self._lock:
            if self._flavors is None:
                found = self._pages("list flavors", "/flavors/detail", "flavors")
                self._flavors = self.ask("list flavors", lambda: [
                    _flavor(raw) for raw in found if not raw.get("OS-FLV-DISABLED:disabled")])
            return self._flavors

    # --- quotas ---

    def takes(self, recipe: Recipe) -> dict[str, int]:
        """Return how much of each of the project's quotas a server of this recipe takes."""
        return takes(recipe.flavor, recipe.gigabytes, self.network.will_need_one()) if recipe.flavor else {}

    def left(self, recipes: Iterable[Recipe]) -> dict[str, int]:
        """Return how much is left of each quota that servers of these recipes use.

        A resource that is missing has no known limit. Makes one call to compute, and others only if servers need
        volumes or floating IPs.
        """
        addresses = self.network.count_free if self.network.will_need_one() else None
        return self._quota.left(volumes=any(recipe.gigabytes for recipe in recipes), free_addresses=addresses)

    # --- keypairs ---

    def create_keypair(self, name: str, public_key: str) -> None:
        """Make a keypair; one of that name is replaced."""
        self.delete_keypair(name)
        self.compute("create keypair", lambda: self._nova.keypairs.create(name, public_key))

    def delete_keypair(self, name: str) -> None:
        """Delete a keypair; one that is gone already is fine."""
        with contextlib.suppress(GoneError):
            self.compute("delete keypair", lambda: self._nova.keypairs.delete(name))

    def keypair_name(self, snapshot_id: int) -> str:
        """Return the name of the keypair of one image build, which says whose it is: keypairs have no metadata."""
        return f"devstack-gate-{self.pool}-{snapshot_id}"

    def list_keypairs(self) -> dict[str, int]:
        """Return our keypairs, {name: snapshot row id}."""
        mark = f"devstack-gate-{self.pool}-"
        names = self.compute("list keypairs", lambda: [str(pair.name) for pair in self._nova.keypairs.list()])
        found = {name: row_id(name.removeprefix(mark)) for name in names if name.startswith(mark)}
        return {name: number for name, number in found.items() if number is not None}

    # --- images ---

    def find_base_image(self, name_or_id: str) -> str:
        """Return the id of the newest active image of that name, or with that id."""
        proxy = self.connection.image
        named = [image for image in self.listed("list images", lambda: proxy.images(**_name_filter(name_or_id)))
                 if image.name == name_or_id]
        images = named
        if not images:
            with contextlib.suppress(GoneError):
                images = [self.ask("show image", lambda: proxy.get_image(name_or_id))]
        active = [image for image in images if image.status == "active"]
        if not active:
            names = sorted({plain(str(image.status)) for image in images})
            states = f", only {', '.join(names)} ones" if images else ""
            raise CloudConfigError(f"provider {self.provider.name}: no active image {name_or_id!r}{states}")
        return str(max(active, key=lambda image: str(image.created_at or "")).id)

    def create_image(self, server_id: str, name: str, snapshot_id: int) -> str:
        """Ask for a snapshot of a server's disk and return the image's id; the image is not active yet."""
        marks = self.marks({SNAPSHOT_KEY: str(snapshot_id)})
        image: str = self.compute("create image", lambda: self._nova.servers.create_image(server_id, name, marks))
        return image

    def image_status(self, image_id: str) -> str:
        """Return an image's status in lower case; GoneError if the cloud has no such image."""
        return plain(str(self.ask("show image", lambda: self.connection.image.get_image(image_id)).status)).lower()

    def list_snapshots(self) -> list[Image]:
        """Return the images that carry our marks and are named as we name templates.

        The name is checked too, because an image that a user makes of one of our machines inherits the marks.
        """
        images = self.listed("list images", lambda: self.connection.image.images(visibility="private"))
        return self.ask("list images", lambda: [
            _image(image) for image in images
            if self._is_ours(image.properties or {}) and TEMPLATE_NAME.search(str(image.name))])

    def mark_proved(self, image_id: str) -> None:
        """Mark that a machine booted well from an image, so that this is known even if vm.db is lost."""
        self.ask("mark image", lambda: self.connection.image.update_image(image_id, **{PROVED_KEY: "1"}))

    def delete_image(self, image_id: str, name: str) -> bool:
        """Delete an image and the volume snapshots that it refers to; one that is gone already is fine.

        Returns False if nothing was deleted: it is gone, or no longer carries our marks and so is not ours. Raises
        GateError if it no longer has the name that we gave it: then it is a person's.
        """
        with contextlib.suppress(GoneError):
            image = self.ask("show image", lambda: self.connection.image.get_image(image_id))
            if not self._is_ours(image.properties or {}):
                self.log.warning("image %s %s does not carry our %s any more, so it is left", plain(str(image.name)),
                                 image_id, self.changed_mark(image.properties or {}))
                return False
            if str(image.name) != name:
                raise GateError(f"its image {image_id} was renamed to {plain(str(image.name))}, so it is left; delete "
                                f"it or take its metadata {POOL_KEY} away")
            for device in _volume_snapshots(image.properties or {}):  # first: nothing else refers to them
                self.volumes.delete_snapshot(str(device["snapshot_id"]))
            self.ask("delete image", lambda: self.connection.image.delete_image(image_id, ignore_missing=True))
            return True
        return False

    # --- volumes ---

    def list_volumes(self) -> list[Volume]:
        """Return the volumes that carry our marks."""
        return [replace(volume, machine_id=row_id(volume.metadata.get(MACHINE_KEY, "")),
                        snapshot_id=row_id(volume.metadata.get(SNAPSHOT_KEY, "")))
                for volume in self.volumes.list_all() if self._is_ours(volume.metadata)]

    def delete_volume(self, volume_id: str) -> None:
        """Delete a volume and the snapshots that Nova made of it for our templates, whose images are gone.

        Such a snapshot carries no marks: its volume and its name show whose it is. RefusedError, with nothing deleted,
        if an image still refers to one, or if somebody else made one.
        """
        snapshots = self.volumes.snapshots_of(volume_id)
        if foreign := [name for name in snapshots.values()
                       if not (name.startswith("snapshot for ") and TEMPLATE_NAME.search(name))]:
            raise RefusedError(f"somebody has made snapshots of it, so it is left: {some(foreign)}")
        if snapshots:
            proxy = self.connection.image
            for image in [*self.listed("list images", proxy.images),
                          *self.listed("list images", lambda: proxy.images(visibility="community"))]:
                if any(device["snapshot_id"] in snapshots for device in _volume_snapshots(image.properties or {})):
                    raise RefusedError(f"image {plain(str(image.name))} {image.id} refers to a snapshot of it, so it "
                                       "is left")
        for snapshot_id in snapshots:
            self.volumes.delete_snapshot(snapshot_id)
        self.volumes.delete(volume_id)


# --- what the cloud shows -------------------------------------------------------------------------------------------


def _page(body: Any, key: str) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
    """Return the items of a page by id, and a list with the query of the next page, empty on the last one."""
    return ({str(raw["id"]): raw for raw in body[key]},
            [link["href"].partition("?")[2] for link in body.get(f"{key}_links", []) if link["rel"] == "next"])


def _server(raw: Mapping[str, Any]) -> Server:
    return Server(
        id=str(raw["id"]),
        name=plain(str(raw.get("name"))),
        status=plain(str(raw.get("status", "UNKNOWN")).upper()),
        fault=plain(str((raw.get("fault") or {}).get("message", ""))),
        metadata=plain_metadata(raw.get("metadata")),
        addresses=_addresses(raw.get("addresses")),
        created=unix_time(raw.get("created")),
    )


def _addresses(raw: Any) -> dict[str, list[Mapping[str, Any]]]:
    """Return valid addresses by network; others are left out, since the server may not be ours."""
    return {str(network): [one for one in group if _is_address(one)]
            for network, group in (raw.items() if isinstance(raw, Mapping) else ()) if isinstance(group, list)}


def _is_address(raw: Any) -> bool:
    try:
        socket.inet_pton(FAMILIES[raw["version"]], raw["addr"])  # of thousands: ipaddress takes twenty times as long
    except (*NONSENSE, OSError):
        return False
    return True


def _flavor(raw: Mapping[str, Any]) -> Flavor:
    return Flavor(str(raw["id"]), plain(str(raw["name"])), int(raw["ram"]), int(raw["disk"]), int(raw["vcpus"]))


def _source(image_id: str, image: Any) -> Source:
    source = Source(image_id, int(image.min_ram or 0), int(image.min_disk or 0))
    for device in _volume_snapshots(image.properties or {}):
        size = device.get("volume_size")
        return replace(source, volume_snapshot=str(device["snapshot_id"]),
                       snapshot_size=size if isinstance(size, int) else 0)
    return source


def _image(image: Any) -> Image:
    snapshot_id = row_id(str((image.properties or {}).get(SNAPSHOT_KEY, "")))
    return Image(str(image.id), plain(str(image.name)), plain(str(image.status)).lower(), snapshot_id,
                 unix_time(image.created_at), PROVED_KEY in (image.properties or {}))


def _volume_snapshots(properties: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the devices of an image that are volume snapshots: Nova makes such an image of a server on a volume."""
    text = properties.get("block_device_mapping")
    try:
        devices = json.loads(text) if isinstance(text, str) else text
    except ValueError:
        return []
    return [device for device in devices if isinstance(device, dict) and device.get("snapshot_id")] \
        if isinstance(devices, list) else []


def _name_filter(name: str) -> dict[str, str]:
    """Return the filter for images of a name; Glance reads anything before a colon as an operator."""
    if ":" not in name and "," not in name:
        return {"name": name}
    return {} if '"' in name else {"name": f'in:"{name}"'}


def last_snapshot_id(servers: Iterable[Server], images: Iterable[Image], of_keypairs: Iterable[int]) -> int:
    """Return the highest id of a snapshot row in the marks of anything of ours, 0 if there is none."""
    marks = [*(server.snapshot_id for server in servers), *(image.snapshot_id for image in images), *of_keypairs]
    return max([0, *(number or 0 for number in marks)])


def held_marks(reason: str, until: int | None) -> dict[str, str]:
    """Return the marks of a held server; clouds limit the length of metadata, some also its characters."""
    return {HOLD_KEY: reason.encode("ascii", "replace").decode()[:METADATA_LENGTH], HOLD_UNTIL_KEY: str(until or 0)}


def read_user_data(image: ImageSettings) -> str | None:
    """Return the text of an image type's user data; ConfigError if the file cannot be read."""
    if not image.user_data:
        return None
    try:
        return Path(image.user_data).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"user-data: {image.user_data} cannot be read") from err
