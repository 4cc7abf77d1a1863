"""Pure rules: which flavor, which address, and which resource a cloud has run out of."""

from __future__ import annotations

import ipaddress
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from cloud.errors import CAPACITY_FAULTS, RETRY_FAULTS
from gateprocess import plain

FAILED_IN_A_ROW = 5  # servers in a row that ran out of retries: not a flaky host, but no room
FAILED_OF_ALL = 3  # the same if not one server of the run came up

METADATA_LENGTH = 255  # of one value of a server's metadata

# What has run out, which decides for which image types no more servers are asked for.
HOST, FLAVOR, VOLUME, ALL = "host", "flavor", "volume", "all"

# Resources of which a project has a quota; RAM in MB.
INSTANCES, CORES, RAM, FLOATING_IPS = "instances", "cores", "RAM", "floating IPs"
VOLUMES, GIGABYTES = "volumes", "gigabytes of volumes"


def plain_metadata(metadata: Any) -> dict[str, str]:
    """Return the metadata of a server or volume, whose values anybody in the project may have written."""
    return {str(key): plain(str(value), METADATA_LENGTH) for key, value in dict(metadata or {}).items()}


def row_id(text: str) -> int | None:
    """Return the row id of a mark; None if somebody wrote something else there, even an id beyond LAST_ID."""
    return int(text) if re.fullmatch("[0-9]{1,15}", text) else None


def unix_time(text: str | None) -> float:
    """Return OpenStack's UTC time stamp as Unix seconds; a missing one counts as just now."""
    if not text:
        return time.time()
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=UTC).timestamp()


class ImageSettings(Protocol):
    """The columns of an image type that matter here."""

    min_ram: Any
    flavor: Any
    user_data: Any
    config_drive: Any
    boot_from_volume: Any
    volume_size: Any


@dataclass(frozen=True)
class Flavor:
    """A size of server; ram in MB, disk in GB."""

    id: str
    name: str
    ram: int
    disk: int
    vcpus: int


@dataclass(frozen=True)
class Source:
    """An image that servers boot from: the least that it needs (MB, GB), and the volume snapshot behind it."""

    image_id: str
    min_ram: int = 0
    min_disk: int = 0
    volume_snapshot: str | None = None
    snapshot_size: int = 0  # GB


def choose_flavor(flavors: Iterable[Flavor], image: ImageSettings, source: Source) -> Flavor | None:
    """Return the flavor that an image type names, or the smallest one that boots its image; None if none does.

    Without a volume the flavor needs a disk: Nova refuses to boot an image on a flavor whose disk is 0.
    """
    if image.flavor:
        named = [flavor for flavor in flavors if image.flavor in (flavor.name, flavor.id)]
        return min(named, key=lambda flavor: flavor.name != image.flavor) if named else None
    disk = 0 if image.boot_from_volume else max(source.min_disk, 1)
    ram = max(image.min_ram, source.min_ram)
    enough = [flavor for flavor in flavors if flavor.ram >= ram and flavor.disk >= disk]
    return min(enough, key=lambda flavor: (flavor.ram, flavor.vcpus, flavor.disk, flavor.name), default=None)


def wanted_flavor(flavors: Iterable[Flavor], image: ImageSettings, source: Source) -> str:
    """Return a description of the flavor that was looked for, for the message that none was found."""
    if image.flavor:
        return f"named {image.flavor}"
    ram = f"with {image.min_ram} MB or more (min-ram)"
    if source.min_ram > image.min_ram:
        ram = f"with {source.min_ram} MB or more (min_ram of its image)"
    if not any(flavor.ram >= max(image.min_ram, source.min_ram) for flavor in flavors):
        return ram
    return f"{ram} and a disk of {max(source.min_disk, 1)} GB or more for its image (or see boot-from-volume)"


def volume_gigabytes(image: ImageSettings, source: Source) -> int:
    """Return the size of a server's volume in GB: as set, but never smaller than the image needs."""
    return max(image.volume_size or 0, source.min_disk, source.snapshot_size, 1)


def takes(flavor: Flavor, volume: int | None, floating_ip: bool) -> dict[str, int]:
    """Return what a server takes of each quota; volume is the size in GB of the volume that it boots from, if any."""
    found = {INSTANCES: 1, CORES: flavor.vcpus, RAM: flavor.ram}
    found |= {VOLUMES: 1, GIGABYTES: volume} if volume else {}
    return found | ({FLOATING_IPS: 1} if floating_ip else {})


def shortage(text: str) -> str | None:
    """Return the resource that a cloud's message says it has run out of, None if the message is about something else.

    HOST: no host has room for this flavor in this zone; FLAVOR: no more cores or memory, of which a smaller flavor
    takes less; VOLUME: no more volumes; ALL: servers, addresses, ports, and any other quota.
    """
    if RETRY_FAULTS.search(text) or not CAPACITY_FAULTS.search(text):
        return None
    if re.search(r"volume|gigabytes", text, re.IGNORECASE):
        return VOLUME
    if re.search(r"no valid host|insufficient compute", text, re.IGNORECASE):
        return HOST
    quota = re.search(r"quota exceeded for ([a-z_, ]+)", text, re.IGNORECASE)
    if quota and set(re.findall(r"[a-z_]+", quota[1].lower())) <= {"cores", "ram"}:
        return FLAVOR
    return ALL


def out_of_room(outcomes: Sequence[bool | None]) -> bool:
    """Return whether the servers that ran out of retries mean that there is no room.

    outcomes: of a run's servers, in the order in which they were asked for; True is active, False ran out of retries,
    None is not yet known. One unlucky server does not mean a lack of room; several in a row do, or all.
    """
    row = 0
    for outcome in outcomes:
        row = row + 1 if outcome is False else 0
        if row >= FAILED_IN_A_ROW:
            return True
    return len(outcomes) >= FAILED_OF_ALL and not any(outcome is not False for outcome in outcomes)


def choose_address(
    addresses: Mapping[str, Sequence[Mapping[str, Any]]], wanted: str, external_networks: set[str]
) -> str | None:
    """Return the address to use by the setting `address`, or None if the server has none of that kind.

    public-v4: a floating address, else a fixed one that is not private (RFC 1918, RFC 6598, link-local) or lies on an
    external network; a loopback address counts as reachable. private-v4: a fixed private one, else any
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


@dataclass(frozen=True)
class Place:
    """Where a floating IP can be bound: an IPv4 address of a port of a server."""

    port_id: str
    address: str
    network_id: str


def places_of(ports: Iterable[Mapping[str, Any]], networks: Sequence[str]) -> list[Place]:
    """Return the IPv4 addresses of a server's ports, in the order of the provider's networks, then of their ids."""
    def rank(place: Place) -> tuple[int, str, str]:
        known = place.network_id in networks
        return networks.index(place.network_id) if known else len(networks), place.network_id, place.port_id

    found = [Place(str(port["id"]), str(fixed["ip_address"]), str(port["network_id"]))
             for port in ports for fixed in port["fixed_ips"] or [] if ":" not in str(fixed["ip_address"])]
    return sorted(found, key=rank)
