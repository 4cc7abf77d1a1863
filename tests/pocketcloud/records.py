"""The things a cloud keeps: servers, images, volumes, ports and so on; and what a kind of machine must do."""

import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol


@dataclass(frozen=True)
class Flavor:
    """A size of server; ram in MB, disk in GB."""

    id: str
    name: str
    ram: int
    disk: int
    vcpus: int


FLAVORS = (
    Flavor("1", "m1.tiny", 512, 1, 1),
    Flavor("2", "m1.small", 2048, 20, 1),
    Flavor("3", "m1.medium", 4096, 40, 2),
    Flavor("4", "m1.large", 8192, 80, 4),
    Flavor("5", "m1.xlarge", 16384, 160, 8),
)
VM_STATES = {"BUILD": "building", "SHUTOFF": "stopped", "ERROR": "error", "PAUSED": "paused", "SUSPENDED": "suspended"}
BASE_LAYER = "base"


@dataclass
class Server:
    """One server; times are Unix times."""

    id: str
    name: str
    project: str
    image: str
    flavor: Flavor
    kind: str
    layers: tuple[str, ...]  # of its image, topmost first
    key_name: str | None = None
    public_key: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    user_data: bytes = b""
    groups: tuple[str, ...] = ("default",)
    description: str | None = None
    config_drive: bool = False
    volume: str | None = None  # that it boots from
    network: str = "private"  # the name of the one it is on first
    others: list["Port"] = field(default_factory=list)  # on further networks; nobody answers there
    port: str | None = None
    address: str | None = None  # fixed; None when booted without a network
    mac: str = ""
    status: str = "BUILD"
    task_state: str | None = "scheduling"
    fault: dict[str, Any] | None = None
    failure: str | None = None  # how this boot is going to fail
    boot_fault: str | None = None  # why it is going to fail whatever the knobs say
    hosted: bool = False  # a host has taken it
    addresses_shown: bool = False
    floating: list[str] = field(default_factory=list)  # as far as the server knows them
    ssh: str = "none"  # none, up, refused, silent, reset
    booting: bool = True  # a delete waits for the end of that
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    launched: float | None = None

    @property
    def vm_state(self) -> str:
        """Nova's inner state that belongs to the status."""
        return VM_STATES.get(self.status, "active")


@dataclass
class Image:
    """One image; `layers` make its file system, topmost first."""

    id: str
    name: str
    owner: str
    status: str = "queued"
    visibility: str = "private"
    size: int | None = None
    checksum: str | None = None
    disk_format: str | None = None  # a snapshot gets its formats with its data
    container_format: str | None = None
    min_disk: int = 0
    min_ram: int = 0
    protected: bool = False
    hidden: bool = False
    tags: list[str] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)
    layers: tuple[str, ...] = (BASE_LAYER,)
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)


@dataclass
class Keypair:
    """A public key under a name."""

    name: str
    project: str
    public_key: str
    fingerprint: str
    type: str = "ssh"
    created: float = field(default_factory=time.time)


@dataclass
class Port:
    """A place on the fixed network; Nova's own ports go with their server."""

    id: str
    project: str
    address: str
    mac: str
    name: str = ""
    network: str = "private"
    device: str = ""
    made_by_nova: bool = False
    created: float = field(default_factory=time.time)


@dataclass
class FloatingIP:
    """An address of the public network, bound to a port or not."""

    id: str
    project: str
    address: str
    port: str | None = None
    description: str = ""
    revision: int = 1
    tags: list[str] = field(default_factory=list)
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)


@dataclass
class Volume:
    """A disk of its own; `layers` make what is on it, topmost first."""

    id: str
    project: str
    size: int  # GB
    name: str
    layers: tuple[str, ...]
    status: str = "creating"
    metadata: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    snapshot: str | None = None
    zone: str | None = None  # that was asked for
    server: str | None = None  # that it is attached to
    goes_with_server: bool = False
    created: float = field(default_factory=time.time)


@dataclass
class VolumeSnapshot:
    """A snapshot of a volume, which an image of a server on a volume stands for."""

    id: str
    project: str
    volume: str
    size: int  # GB
    name: str
    image: str
    layers: tuple[str, ...] = ()
    created: float = field(default_factory=time.time)


class Guest(Protocol):
    """What a machine must be told of the server that it is."""

    id: str
    name: str
    layers: tuple[str, ...]  # of its image, topmost first
    public_key: str
    user_data: bytes
    address: str | None  # fixed
    floating: list[str]
    ssh: str  # none, up, refused, silent, reset


class KindError(Exception):
    """Servers of this kind cannot be had on this host."""


class BootError(Exception):
    """A machine could not be started; the text becomes the server's fault."""


class SnapshotError(Exception):
    """The disk of a machine could not be copied."""


class Kind(Protocol):
    """What stands behind servers of one kind. All calls may be slow and none is made twice at a time for a server."""

    def boot(self, server: Server) -> None:
        """Start the machine, without ssh; raises BootError."""

    def apply_ssh(self, server: Server) -> None:
        """Make ssh on all addresses of the server behave as `server.ssh` says."""

    def halt(self, server: Server) -> None:
        """Stop the machine and keep its disk."""

    def remove(self, server: Server) -> None:
        """Stop the machine and remove its disk."""

    def snapshot(self, server: Server, layer: str) -> bool:
        """Keep what the machine has changed on its disk as a new layer; False: no disk. Raises SnapshotError."""

    def drop_layers(self, unused: set[str]) -> None:
        """Remove the layers that no image and no server uses any more."""

    def console(self, server: Server) -> str | None:
        """Return the console log, or None when the machine has none of its own."""


class NoMachine:
    """Servers with nothing behind them."""

    def boot(self, server: Server) -> None:
        """Nothing to start."""

    def apply_ssh(self, server: Server) -> None:
        """There is no ssh."""

    def halt(self, server: Server) -> None:
        """Nothing to stop."""

    def remove(self, server: Server) -> None:
        """Nothing to remove."""

    def snapshot(self, server: Server, layer: str) -> bool:
        """There is no disk."""
        return False

    def drop_layers(self, unused: set[str]) -> None:
        """There are no layers."""

    def console(self, server: Server) -> str | None:
        """No console of its own."""
        return None


def new_id() -> str:
    """Return a random UUID as text."""
    return str(uuid.uuid4())


def stamp(moment: float, *, micro: bool = False) -> str:
    """Write a Unix time as OpenStack does, e.g. 2026-11-20T10:22:56Z; with `micro` as in OS-SRV-USG:launched_at."""
    when = datetime.fromtimestamp(moment, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.000000" if micro else "%Y-%m-%dT%H:%M:%SZ")
