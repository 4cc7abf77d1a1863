"""The networks that a provider's servers are attached to, and the floating IPs that lead to servers.

If a server will need a floating IP, that is made first; if there are no more, no unreachable server is made. A floating
IP's description holds our mark with the machine that it is for, and later with the server that it is bound to. If no
floating IP can be made, we borrow a free one of the project that has no description, and give it back in the end.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

from cloud.errors import CapacityError, CloudConfigError, CloudError, GoneError, RefusedError
from cloud.rules import Place, choose_address, places_of, row_id
from gateprocess import Log

T = TypeVar("T")
POOL_KEY = "devstack-gate-pool"
BORROWED = " borrowed"


class AnyServer(Protocol):
    """The part of a server that matters here."""

    @property
    def id(self) -> str:
        """The cloud's id."""

    @property
    def name(self) -> str:
        """The server's name."""

    @property
    def addresses(self) -> Mapping[str, list[Mapping[str, Any]]]:
        """The addresses by the name of their network."""

    @property
    def machine_id(self) -> int | None:
        """The row that the server was made for."""


class Caller(Protocol):
    """Makes calls with a time limit, and turns their errors into our classes."""

    provider: Any
    connection: Any
    pool: str
    log: Log

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Make a call."""

    def listed(self, what: str, call: Callable[[], Iterable[T]]) -> list[T]:
        """Make a call for a list and return all of it."""


@dataclass(frozen=True)
class FloatingIP:
    """A floating IP of ours; server_id: the server it was bound to; machine_id: the row it is kept for until then."""

    id: str
    address: str
    server_id: str
    machine_id: int | None = None
    borrowed: bool = False  # the project had it before us
    network_id: str = field(default="", compare=False)


class Network:
    """The calls to a provider's network service; safe to use from several threads."""

    def __init__(self, calls: Caller) -> None:
        self._calls = calls
        self._provider = calls.provider
        self._attached: list[tuple[str, str]] | None = None  # name and id
        self._external: dict[str, str] | None = None  # {name: id}, asked for when first needed
        self._way_out: str | None = None  # the external network on which a floating IP was bound
        self._needed: bool | None = None  # whether servers here turned out to need floating IPs
        self._no_way = False  # True: no external network leads to the servers, and they need none
        self._lock = threading.Lock()

    @property
    def _api(self) -> Any:
        return self._calls.connection.network

    def is_there(self) -> bool:
        """Return whether the cloud has a network service."""
        return self._calls.connection.config.get_session_endpoint("network") is not None

    # --- networks ---

    def attached(self) -> list[str]:
        """Return the ids of the networks that servers are attached to, empty for the provider's default."""
        names = self._provider.listed("networks")
        with self._lock:
            if self._attached is None:
                self._attached = self._calls.ask("list networks", lambda: list(map(self._find, names)))
            return [network_id for _, network_id in self._attached]

    def _find(self, name: str) -> tuple[str, str]:
        """Return name and id of a network; openstacksdk's own search would put a name into the URL."""
        import openstack.exceptions

        found: list[Any] = []
        if re.fullmatch(r"[0-9A-Fa-f-]{32,36}", name):
            with contextlib.suppress(openstack.exceptions.NotFoundException):
                found = [self._api.get_network(name)]
        found = found or [network for network in self._api.networks(name=name) if network.name == name]
        if len(found) != 1:
            many = f"there are {len(found)} networks {name}; name one by its id"
            raise CloudConfigError(f"provider {self._provider.name}: networks: "
                                   + (many if found else f"there is no network {name}"))
        return str(found[0].name), str(found[0].id)

    def external(self) -> dict[str, str]:
        """Return the networks that floating IPs come from, {name: id}; empty if there is no network service.

        First comes one on which a floating IP was bound to a server, then the cloud's default.
        """
        with self._lock:
            if self._external is None:
                self._external = self._calls.ask("list networks", self._find_external)
            first = self._way_out
        return dict(sorted(self._external.items(), key=lambda item: item[1] != first))

    def _find_external(self) -> dict[str, str]:
        wanted = self._provider.floating_ip_network
        if not self.is_there():
            return {}
        networks = list(self._api.networks(is_router_external=True))
        networks.sort(key=lambda network: (not network.is_default, str(network.name), str(network.id)))
        found = {str(network.name): str(network.id) for network in networks
                 if wanted in (None, network.name, network.id)}
        if wanted and not found:
            raise CloudConfigError(f"provider {self._provider.name}: floating-ip-network: no external network {wanted}")
        return found

    # --- which address ---

    def reachable_address(self, server: AnyServer) -> str | None:
        """Return the address of an active server by the provider's settings, or None if it has none yet.

        This may bind a floating IP first, which appears among the server's addresses a little later.
        """
        mode = self._provider.floating_ips
        found = self._first(server, "floating") if mode == "always" else self._chosen(server)
        if found or not server.addresses or self._provider.address == "public-v6":
            return found
        if mode == "always" or (mode == "auto" and not self._no_way and self.external()):
            bound = self._bind(server)
            if bound:
                return bound
        return self._first(server, "fixed")

    def shown_address(self, server: AnyServer) -> str | None:
        """Return the address of a server by the provider's settings, without making anything for it."""
        with contextlib.suppress(CloudError):
            return self._chosen(server)
        return None

    def _chosen(self, server: AnyServer) -> str | None:
        """Choose an address; ask for the external networks only if none is found without them."""
        addresses = dict(self._in_order(server))
        found = choose_address(addresses, self._provider.address, set())
        if found is None and server.addresses:
            found = choose_address(addresses, self._provider.address, set(self.external()))
        return found

    def _in_order(self, server: AnyServer) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
        """Yield a server's addresses by network, in the order of the provider's networks."""
        self.attached()
        order = [name for name, _ in self._attached or []]
        names = sorted(server.addresses, key=lambda name: order.index(name) if name in order else len(order))
        return ((name, server.addresses[name]) for name in names)

    def _first(self, server: AnyServer, kind: str) -> str | None:
        """Return a server's first IPv4 address of kind fixed or floating."""
        return next((str(address["addr"]) for _, group in self._in_order(server) for address in group
                     if address["version"] == 4 and address.get("OS-EXT-IPS:type", "fixed") == kind), None)  # noqa: PLR2004

    # --- floating IPs ---

    def reserve(self, machine_id: int, *, again: bool = False) -> None:
        """Reserve a floating IP for a machine before its server is created, if it will need one.

        again: whether an earlier run may have done so already. CapacityError if there are no more.
        """
        if not self.will_need_one():
            return
        if again and any(ip.machine_id == machine_id for ip in self.list_ours()):
            return
        mark = self._mark(f"machine={machine_id}")
        refusals: list[CloudError] = []
        for network_id in self.external().values():
            try:
                self._create(network_id, mark)
            except (CapacityError, RefusedError) as err:
                refusals.append(err)
            else:
                return
        if not refusals:
            raise self._no_external()
        if not self._borrow(mark):
            raise CapacityError(str(refusals[0])) from refusals[0]

    def will_need_one(self) -> bool:
        """Return whether servers of this provider need floating IPs, as far as that is known without a server."""
        if self._provider.floating_ips != "auto":
            return bool(self._provider.floating_ips == "always")
        if self._needed is None:
            self._needed = bool(self.list_ours())
        return self._needed

    def _bind(self, server: AnyServer) -> str | None:
        """Bind a floating IP to a server, unless one is bound already, and return its address.

        Returns None if no external network leads to the server and floating-ips is auto.
        """
        self._needed = True
        ours = self.list_ours()
        for ip in ours:
            if ip.server_id == server.id:
                return ip.address
        ports, networks_of_servers = self._calls.listed(
            "list ports", lambda: self._api.ports(device_id=server.id)), self.attached()
        places = self._calls.ask("list ports", lambda: places_of(ports, networks_of_servers))
        if not places:
            raise CloudError(f"provider {self._provider.name}: server {server.name} has no port for a floating IP yet")
        networks = self.external()
        if not networks:
            raise self._no_external()
        kept = [ip for ip in ours if ip.machine_id is not None and ip.machine_id == server.machine_id]
        refusals: list[CloudError] = []
        found = self._bind_kept(kept, server, places, refusals) or self._bind_new(networks, server, places, refusals)
        if found:
            self._calls.log.info("server %s gets floating IP %s", server.name, found)
            return found
        return self._bound_in_vain(server, networks, refusals)

    def _bind_kept(
        self, kept: Sequence[FloatingIP], server: AnyServer, places: Sequence[Place], refusals: list[CloudError]
    ) -> str | None:
        """Bind the floating IP that was reserved for this server; release it if it can be bound to no port."""
        for ip in kept:
            mark = self._mark(f"server={server.id}{BORROWED * ip.borrowed}")
            for place in places:
                with self._collected(refusals):
                    self._move(ip, place, mark)
                    return ip.address
            self.release(ip)
        return None

    def _move(self, ip: FloatingIP, place: Place, mark: str) -> None:
        """Bind a floating IP of ours to a place."""
        self._calls.ask("bind floating IP", lambda: self._api.update_ip(
            ip.id, port_id=place.port_id, fixed_ip_address=place.address, description=mark))
        self._way_out = ip.network_id

    def _bind_new(
        self, networks: dict[str, str], server: AnyServer, places: Sequence[Place], refusals: list[CloudError]
    ) -> str | None:
        """Make a floating IP bound to a port of a server, in one call, or borrow one."""
        mark = self._mark(f"server={server.id}")
        for network_id in networks.values():
            for place in places:
                with self._collected(refusals):
                    made = self._create(network_id, mark, place)
                    self._way_out = network_id
                    return str(made.floating_ip_address)
        if any(isinstance(err, (CapacityError, RefusedError)) for err in refusals):
            borrowed = self._borrow(mark)
            if borrowed:
                return self._bind_kept([borrowed], server, places, refusals)
        return None

    def _bound_in_vain(
        self, server: AnyServer, networks: dict[str, str], refusals: Sequence[CloudError]
    ) -> str | None:
        """Raise the reason why no floating IP could be bound; return None if the server turned out to need none."""
        short = next((err for err in refusals if isinstance(err, CapacityError)), None)
        if short:
            raise short
        if all("not reachable" in str(err) for err in refusals):
            if self._provider.floating_ips == "auto":
                self._needed, self._no_way = False, True
                return None
            raise CloudConfigError(
                f"provider {self._provider.name}: floating-ips: no route leads from {' or '.join(networks)} to the "
                f"networks of server {server.name} ({', '.join(server.addresses)}); see networks and "
                "floating-ip-network")
        raise refusals[-1]

    @staticmethod
    @contextlib.contextmanager
    def _collected(refusals: list[CloudError]) -> Iterator[None]:
        """Collect the error of one attempt, so that another can follow."""
        try:
            yield
        except (GoneError, RefusedError, CapacityError) as err:
            refusals.append(err)

    def _create(self, network_id: str, mark: str, place: Place | None = None) -> Any:
        """Make a floating IP, bound to a place if one is given."""
        where = {"port_id": place.port_id, "fixed_ip_address": place.address} if place else {}
        return self._calls.ask("create floating IP", lambda: self._api.create_ip(
            floating_network_id=network_id, description=mark, **where))

    def _borrow(self, mark: str) -> FloatingIP | None:
        """Borrow a floating IP of the project that is bound to nothing and has no description, by marking it.

        If two runs want the same one, its revision number lets only the first have it.
        """
        for ip in self._free():
            with contextlib.suppress(RefusedError, GoneError):
                self._calls.ask("borrow floating IP", partial(
                    self._api.update_ip, ip.id, if_revision=ip.revision_number, description=f"{mark}{BORROWED}"))
                self._calls.log.info("borrowing floating IP %s, which is free in the project", ip.floating_ip_address)
                return self._ours(ip, f"{mark}{BORROWED}")
        return None

    def _free(self) -> list[Any]:
        """Return the floating IPs that can be borrowed."""
        networks = self.external().values()
        project = self._calls.connection.current_project_id
        return [ip for ip in self._calls.listed("list floating IPs", lambda: self._api.ips(project_id=project))
                if not (ip.port_id or ip.description or ip.tags) and ip.project_id == project
                and ip.floating_network_id in networks]

    def count_free(self) -> int:
        """Return how many floating IPs can be borrowed."""
        return len(self._free())

    def _mark(self, whose: str) -> str:
        return f"{POOL_KEY}={self._calls.pool} {whose}"

    def _no_external(self) -> CloudConfigError:
        return CloudConfigError(f"provider {self._provider.name}: floating-ips is {self._provider.floating_ips}, "
                                "but there is no external network")

    def list_ours(self) -> list[FloatingIP]:
        """Return the floating IPs that we made or borrowed, by the mark in their description."""
        if not self.is_there():
            return []
        mark = self._mark("")
        return [self._ours(ip, str(ip.description))
                for ip in self._calls.listed("list floating IPs", self._api.ips)
                if str(ip.description or "").startswith(mark)]

    def _ours(self, ip: Any, description: str) -> FloatingIP:
        whose = description.removeprefix(self._mark(""))
        borrowed = whose.endswith(BORROWED)
        kind, _, value = whose.removesuffix(BORROWED).partition("=")
        machine_id = row_id(value) if kind == "machine" else None
        return FloatingIP(str(ip.id), str(ip.floating_ip_address), value if kind == "server" else "", machine_id,
                          borrowed, str(ip.floating_network_id))

    def release(self, ip: FloatingIP) -> None:
        """Delete a floating IP that we made, or give back one that we borrowed; one that is gone already is fine."""
        with contextlib.suppress(GoneError):
            if ip.borrowed:
                self._calls.ask("give back floating IP", lambda: self._api.update_ip(
                    ip.id, port_id=None, description=""))
            else:
                self._calls.ask("delete floating IP", lambda: self._api.delete_ip(ip.id, ignore_missing=True))

    def release_for(self, machine_id: int) -> None:
        """Release the floating IP that was reserved for a machine if no server was made."""
        if self.will_need_one():
            for ip in self.list_ours():
                if ip.machine_id == machine_id:
                    self.release(ip)
