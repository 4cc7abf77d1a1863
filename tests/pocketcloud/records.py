"""The things a cloud keeps: servers, images, volumes, ports and so on; and the interface of a kind of machine."""

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
    volume: str | None = None  # the one it boots from
    network: str = "private"  # name of its first network
    others: list["Port"] = field(default_factory=list)  # on further networks, where nothing answers
    port: str | None = None
    address: str | None = None  # fixed; None if booted without a network
    mac: str = ""
    status: str = "BUILD"
    task_state: str | None = "scheduling"
    fault: dict[str, Any] | None = None
    failure: str | None = None  # how this boot will fail
    boot_fault: str | None = None  # why this boot will fail, whatever the knobs say
    hosted: bool = False  # a host has taken it
    addresses_shown: bool = False
    floating: list[str] = field(default_factory=list)  # those that the server knows of
    ssh: str = "none"  # none, up, refused, silent, reset, stranger
    booting: bool = True  # a delete waits until the boot has ended
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    launched: float | None = None

    @property
    def vm_state(self) -> str:
        """Nova's internal state for the status."""
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
    """A fixed address on a network; ports made by Nova go with their server."""

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
    """A volume; `layers` make its content, topmost first."""

    id: str
    project: str
    size: int  # GB
    name: str
    layers: tuple[str, ...]
    status: str = "creating"
    metadata: dict[str, str] = field(default_factory=dict)
    image: str | None = None
    snapshot: str | None = None
    zone: str | None = None  # the one asked for
    server: str | None = None  # the one it is attached to
    goes_with_server: bool = False
    created: float = field(default_factory=time.time)


@dataclass
class VolumeSnapshot:
    """A snapshot of a volume; the image of a server on a volume stands for one."""

    id: str
    project: str
    volume: str
    size: int  # GB
    name: str
    image: str
    layers: tuple[str, ...] = ()
    created: float = field(default_factory=time.time)


class Guest(Protocol):
    """What a machine must know about its server."""

    id: str
    name: str
    layers: tuple[str, ...]  # of its image, topmost first
    public_key: str
    user_data: bytes
    address: str | None  # fixed
    floating: list[str]
    ssh: str  # none, up, refused, silent, reset, stranger


class KindError(Exception):
    """This host cannot run servers of this kind."""


class BootError(Exception):
    """A machine could not be started; the text becomes the server's fault."""


class SnapshotError(Exception):
    """The disk of a machine could not be copied."""


class Kind(Protocol):
    """What is behind servers of one kind. Calls can be slow; for one server, no call is made twice at once."""

    def boot(self, server: Server) -> None:
        """Start the machine, without ssh; raises BootError."""

    def apply_ssh(self, server: Server) -> None:
        """Make ssh on all addresses of the server behave as `server.ssh` says."""

    def halt(self, server: Server) -> None:
        """Stop the machine and keep its disk."""

    def remove(self, server: Server) -> None:
        """Stop the machine and remove its disk."""

    def snapshot(self, server: Server, layer: str) -> bool:
        """Keep the machine's changes to its disk as a new layer; False: there is no disk. Raises SnapshotError."""

    def drop_layers(self, unused: set[str]) -> None:
        """Remove the layers that no image and no server uses any more."""

    def console(self, server: Server) -> str | None:
        """Return the console log, or None if the machine has none."""


class NoMachine:
    """Servers with nothing behind them."""

    def boot(self, server: Server) -> None:
        """Do nothing: there is no machine."""

    def apply_ssh(self, server: Server) -> None:
        """Do nothing: there is no ssh."""

    def halt(self, server: Server) -> None:
        """Do nothing: no machine runs."""

    def remove(self, server: Server) -> None:
        """Do nothing: there is no machine and no disk."""

    def snapshot(self, server: Server, layer: str) -> bool:
        """Return False: there is no disk."""
        return False

    def drop_layers(self, unused: set[str]) -> None:
        """Do nothing: there are no layers."""

    def console(self, server: Server) -> str | None:
        """Return None: there is no console."""
        return None


def new_id() -> str:
    """Return a random UUID as text."""
    return str(uuid.uuid4())


def stamp(moment: float, *, micro: bool = False) -> str:
    """Return a Unix time as OpenStack writes it, e.g. 2026-11-20T10:22:56Z; `micro`: as in OS-SRV-USG:launched_at."""
    when = datetime.fromtimestamp(moment, UTC)
    return when.strftime("%Y-%m-%dT%H:%M:%S.000000" if micro else "%Y-%m-%dT%H:%M:%SZ")
