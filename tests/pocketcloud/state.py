"""One cloud: what it has, and how servers, snapshots and floating IPs change over time."""

import copy
import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.pocketcloud.addresses import Range
from tests.pocketcloud.calls import CallLog
from tests.pocketcloud.knobs import KINDS, Knobs
from tests.pocketcloud.records import (
    FLAVORS,
    BootError,
    Flavor,
    FloatingIP,
    Image,
    Keypair,
    Kind,
    Port,
    Server,
    SnapshotError,
    Volume,
    VolumeSnapshot,
    new_id,
)
from tests.support.schedule import Schedule

log = logging.getLogger(__name__)
BOOT_LOOK_SECONDS = 0.05  # how often a delete checks whether the boot has ended
SNAPSHOT_FAILED_STATUS = {"queued": "queued", "stuck": "saving", "killed": "killed"}


class QuotaError(Exception):
    """The project's quota is used up; the text is Nova's."""


@dataclass
class Token:
    """Who can call with the token, and until when (Unix time)."""

    user: str
    project: str
    expires: float


@dataclass
class Workshop:
    """What a cloud works with: a schedule, threads, and the kinds of machines."""

    schedule: Schedule
    pool: ThreadPoolExecutor
    kind: Callable[[str], Kind]  # raises KindError if the host cannot have that kind
    close_door: Callable[[str], None]  # nothing answers at this address any more


@dataclass
class Cloud:
    """One cloud. Hold `lock` to read or change it."""

    name: str
    workshop: Workshop
    knobs: Knobs
    fixed: Range = field(default_factory=Range)
    public: Range = field(default_factory=Range)
    lock: threading.RLock = field(default_factory=threading.RLock)
    calls: CallLog = field(default_factory=CallLog)
    servers: dict[str, Server] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    keypairs: dict[tuple[str, str], Keypair] = field(default_factory=dict)  # by project and name
    ports: dict[str, Port] = field(default_factory=dict)
    floating_ips: dict[str, FloatingIP] = field(default_factory=dict)
    volumes: dict[str, Volume] = field(default_factory=dict)
    volume_snapshots: dict[str, VolumeSnapshot] = field(default_factory=dict)
    tokens: dict[str, Token] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(self.knobs.random_seed)
        self.project, self.other_project = new_id().replace("-", ""), new_id().replace("-", "")
        self.user, self.other_user = new_id().replace("-", ""), new_id().replace("-", "")
        self.private_network, self.public_network = new_id(), new_id()
        self.private_subnet, self.public_subnet, self.group = new_id(), new_id(), new_id()
        self.second_network, self.second_subnet = new_id(), new_id()
        self._boots = 0
        self._stale: tuple[float, list[Server]] | None = None
        self._layers: set[str] = set()  # made by snapshots and not yet dropped
        self._add_base_image()

    # Knobs

    def turn(self, name: str, value: object) -> None:
        """Set a knob; raises KnobError, or KindError for machines that this host cannot run."""
        with self.lock:
            if name == "machines" and value in KINDS:
                self.workshop.kind(str(value))
            self.knobs.turn(name, value)
            if name == "rate_limit":
                self.calls.refill()
            if name == "boot_failure_every":
                self._boots = 0
            if name == "random_seed":
                self.random = random.Random(self.knobs.random_seed)
            if name == "list_stale_seconds":
                self._stale = (time.monotonic(), self._copies())

    def flavors(self) -> list[Flavor]:
        """Return the flavors of servers."""
        return [dataclasses.replace(one, disk=0) if self.knobs.no_disks else one for one in FLAVORS]

    # Servers

    def quotas(self, project: str) -> dict[str, tuple[int, int]]:
        """Return limit (-1 for none) and use of each of Nova's quotas."""
        mine = [server.flavor for server in self.servers.values() if server.project == project]
        used = {"cores": sum(flavor.vcpus for flavor in mine), "instances": len(mine),
                "ram": sum(flavor.ram for flavor in mine)}
        limits = {name: getattr(self.knobs, f"quota_{name}") for name in used}
        return {name: (-1 if limits[name] is None else limits[name], used[name]) for name in used}

    def check_quota(self, project: str, flavor: Flavor) -> None:
        """Raise QuotaError if the project has no room for one more server of a flavor."""
        wanted = {"cores": flavor.vcpus, "instances": 1, "ram": flavor.ram}
        quotas = self.quotas(project)
        overs = [name for name, (limit, used) in quotas.items() if 0 <= limit < used + wanted[name]]
        if overs:
            words = [", ".join(map(str, column)) for column in zip(
                *((name, wanted[name], quotas[name][1], quotas[name][0]) for name in overs), strict=True)]
            raise QuotaError(f"Quota exceeded for {words[0]}: Requested {words[1]}, but already used {words[2]} of "
                             f"{words[3]} {words[0]}")

    def add_server(self, server: Server, ports: list[Port]) -> None:
        """Add a new server and boot it on these ports."""
        knobs = self.knobs
        server.failure = "error" if server.boot_fault else self._draw_failure()
        server.hosted = True
        for port in ports:
            port.device = server.id
        if ports:
            first, *server.others = ports
            server.network, server.port, server.address, server.mac = first.network, first.id, first.address, first.mac
        seconds = knobs.boot_seconds + self.random.uniform(0, knobs.boot_jitter)
        server.task_state = "spawning"
        self.servers[server.id] = server
        log.info("%s: server %s %s boots (%s)", self.name, server.id, server.name, server.failure or server.kind)
        if server.failure == "stuck":
            server.booting = False
        else:
            self.workshop.schedule.later(seconds, lambda: self._spawn(server))

    def delete_server(self, server: Server) -> None:
        """Delete a server after delete_seconds, but not before its boot has ended."""
        if self.knobs.delete_ignored or server.task_state == "deleting":
            return
        server.task_state, server.updated = "deleting", time.time()
        self.workshop.schedule.later(self.knobs.delete_seconds, lambda: self._remove(server))

    def vanish_server(self, server: Server) -> None:
        """Make a server vanish at once; if it is still booting, its machine is removed when the boot ends."""
        if self.servers.pop(server.id, None) and not server.booting:
            self._hand(server, lambda kind: kind.remove(server), then=lambda: self._release(server))

    def stop_server(self, server: Server) -> None:
        """Switch a server off."""
        server.task_state = "powering-off"
        self._hand(server, lambda kind: kind.halt(server), then=lambda: self._settle(server, "SHUTOFF", "none"))

    def start_server(self, server: Server) -> None:
        """Switch a server on."""
        server.task_state = "powering-on"
        self._hand(server, lambda kind: kind.boot(server), then=lambda: self._settle(server, "ACTIVE", "up"))

    def reboot_server(self, server: Server, *, hard: bool) -> None:
        """Switch a server off and on; it is REBOOT or HARD_REBOOT meanwhile."""
        server.status, server.task_state = ("HARD_REBOOT", "rebooting_hard") if hard else ("REBOOT", "rebooting")

        def restart(kind: Kind) -> None:
            kind.halt(server)
            kind.boot(server)

        self._hand(server, restart, then=lambda: self._settle(server, "ACTIVE", "up"))

    def set_ssh(self, server: Server, mode: str) -> None:
        """Make a server's ssh up, refused, silent, reset or stranger from now on."""
        server.ssh = mode
        self._hand(server, lambda kind: kind.apply_ssh(server))

    def list_servers(self, project: str) -> list[Server]:
        """Return the project's servers, newest first, as far as the knobs show them."""
        if self.knobs.list_empty:
            self.knobs.list_empty -= 1
            return []
        seen = self._seen_servers()
        return sorted((s for s in seen if s.project == project), key=lambda s: (s.created, s.id), reverse=True)

    def _seen_servers(self) -> list[Server]:
        if not self.knobs.list_stale_seconds:
            return list(self.servers.values())
        now = time.monotonic()
        if self._stale is None or now - self._stale[0] >= self.knobs.list_stale_seconds:
            self._stale = (now, self._copies())
        return self._stale[1]

    def _copies(self) -> list[Server]:
        return [copy.deepcopy(server) for server in self.servers.values()]

    def _draw_failure(self) -> str | None:
        fails = self.random.random() < self.knobs.boot_failure_rate
        if self.knobs.boot_failure_next:
            self.knobs.boot_failure_next -= 1
            fails = True
        self._boots += 1
        if self.knobs.boot_failure_every and self._boots % self.knobs.boot_failure_every == 0:
            fails = True
        return self.knobs.boot_failure if fails else None

    def _spawn(self, server: Server) -> None:
        if server.failure == "error":
            fault, code = (server.boot_fault, 500) if server.boot_fault else (
                self.knobs.boot_fault, self.knobs.boot_fault_code)
            self._fail(server, fault.replace("{id}", server.id), code)
            return
        self._hand(server, lambda kind: kind.boot(server), then=lambda: self._booted(server))

    def _fail(self, server: Server, message: str, code: int) -> None:
        with self.lock:
            server.status, server.task_state, server.booting, server.hosted = "ERROR", None, False, False
            self.set_fault(server, message, code)
            self._drop_port(server)

    def set_fault(self, server: Server, message: str, code: int = 500) -> None:
        """Give a server the fault that clients see with ERROR."""
        server.updated = time.time()
        server.fault = {"code": code, "created": server.updated, "message": message}

    def _booted(self, server: Server) -> None:
        with self.lock:
            server.booting, server.launched = False, time.time()
            if server.id not in self.servers:  # it vanished meanwhile
                self._hand(server, lambda kind: kind.remove(server), then=lambda: self._release(server))
                return
            if server.status != "BUILD":
                return
            server.addresses_shown = server.address is not None and server.failure != "no-address"
            status = "UNKNOWN" if server.failure == "unknown" else "ACTIVE"
            self._settle(server, status, {"no-ssh": "refused", "silent-ssh": "silent"}.get(server.failure or "", "up"))

    def _settle(self, server: Server, status: str, ssh: str) -> None:
        with self.lock:
            server.status, server.updated = status, time.time()
            server.task_state = "deleting" if server.task_state == "deleting" else None
            log.info("%s: server %s %s is %s", self.name, server.id, server.name, status)
            server.ssh = "none"
            self.workshop.schedule.later(self.knobs.ssh_delay_seconds, lambda: self._open_ssh(server, ssh))

    def _open_ssh(self, server: Server, mode: str) -> None:
        with self.lock:
            if server.id in self.servers and server.ssh == "none" and mode != "none":
                self.set_ssh(server, mode)

    def _remove(self, server: Server) -> None:
        if server.booting:
            self.workshop.schedule.later(BOOT_LOOK_SECONDS, lambda: self._remove(server))
        else:
            self._hand(server, lambda kind: kind.remove(server), then=lambda: self._forget(server))

    def _forget(self, server: Server) -> None:
        with self.lock:
            if self.servers.pop(server.id, None):
                self._release(server)

    def _release(self, server: Server) -> None:
        with self.lock:
            log.info("%s: server %s %s is gone", self.name, server.id, server.name)
            self._drop_port(server)
            self._detach(server)
            unfinished = [i.id for i in self.images.values() if i.properties.get("instance_uuid") == server.id]
            for image in unfinished:
                if self.images[image].status in ("queued", "saving") and not self.knobs.snapshot_failure:
                    self._drop_image(self.images[image])
            self._drop_layers()

    def _hand(self, server: Server, work: Callable[[Kind], None], then: Callable[[], None] | None = None) -> None:
        kind = self.workshop.kind(server.kind)

        def run() -> None:
            try:
                work(kind)
                if then:
                    then()
            except BootError as err:
                log.error("%s: server %s: %s", self.name, server.id, err)
                self._fail(server, f"Build of instance {server.id} aborted: {err}", 500)
            except Exception:
                log.exception("%s: server %s: a step failed", self.name, server.id)

        if server.kind == "namespace":
            self.workshop.pool.submit(run)
        else:
            run()

    # Volumes

    def add_volume(self, volume: Volume) -> None:
        """Add a new volume; after volume_seconds it is available, or error if the knobs say so."""
        self.volumes[volume.id] = volume
        fails = self.knobs.volume_failures > 0
        self.knobs.volume_failures -= fails
        self.workshop.schedule.later(
            self.knobs.volume_seconds, lambda: self._settle_volume(volume, "error" if fails else "available"))

    def _settle_volume(self, volume: Volume, status: str) -> None:
        with self.lock:
            volume.status = status

    def attach(self, volume: Volume, server: Server, *, goes_with_server: bool) -> None:
        """Attach a volume to the server that boots from it."""
        volume.status, volume.server, volume.goes_with_server = "in-use", server.id, goes_with_server

    def _detach(self, server: Server) -> None:
        for volume in [volume for volume in self.volumes.values() if volume.server == server.id]:
            volume.status, volume.server = "available", None
            has_snapshots = any(one.volume == volume.id for one in self.volume_snapshots.values())
            if volume.goes_with_server and not has_snapshots and not self.knobs.volumes_stay:
                self.delete_volume(volume)

    def delete_volume(self, volume: Volume) -> None:
        """Remove a volume; its layers stay as long as others need them."""
        del self.volumes[volume.id]
        self._drop_layers()

    def delete_volume_snapshot(self, snapshot: VolumeSnapshot) -> None:
        """Remove a snapshot of a volume."""
        del self.volume_snapshots[snapshot.id]
        self._drop_layers()

    # Images

    def snapshot_server(self, server: Server, image: Image) -> None:
        """Make an image of a server: queued, saving, active, or as snapshot_failure says."""
        self.images[image.id] = image
        server.task_state = "image_snapshot_pending"
        end = time.monotonic() + self.knobs.snapshot_seconds
        self.workshop.schedule.later(self.knobs.snapshot_seconds / 3, lambda: self._save(server, image, end))

    def _save(self, server: Server, image: Image, end: float) -> None:
        if self.knobs.snapshot_failure != "queued":
            image.status = "saving"
        if server.task_state == "image_snapshot_pending":
            server.task_state = "image_uploading"

        def copy_disk(kind: Kind) -> None:
            try:
                kept = kind.snapshot(server, image.id)
            except SnapshotError as err:
                log.error("%s: image %s: %s", self.name, image.id, err)
                self._lose_image(server, image)
                return
            image.layers = (image.id, *server.layers) if kept else server.layers
            self._layers |= {image.id} if kept else set()
            self.workshop.schedule.later(end - time.monotonic(), lambda: self._finish_image(server, image))

        self._hand(server, copy_disk)

    def _lose_image(self, server: Server, image: Image) -> None:
        """Remove the image of a failed snapshot, as Nova does."""
        with self.lock:
            server.task_state = None
            self._drop_image(image)

    def _finish_image(self, server: Server, image: Image) -> None:
        with self.lock:
            if server.task_state == "image_uploading":
                server.task_state = None
            failure = self.knobs.snapshot_failure
            image.updated = time.time()
            if failure == "error":
                self._drop_image(image)
            else:
                image.status = SNAPSHOT_FAILED_STATUS.get(failure or "", "active")
            for snapshot in self.volume_snapshots.values():
                if snapshot.image == image.id:
                    snapshot.layers = image.layers
            if image.status == "active":
                image.disk_format, image.container_format = "qcow2", "bare"
                image.size, image.checksum = 1 << 30, new_id().replace("-", "")
                image.properties["image_state"] = "available"
            self._drop_layers()
            log.info("%s: image %s %s is %s", self.name, image.id, image.name, image.status)

    def _drop_image(self, image: Image) -> None:
        self.images.pop(image.id, None)
        for snapshot in [one for one in self.volume_snapshots.values() if one.image == image.id]:
            del self.volume_snapshots[snapshot.id]

    def delete_image(self, image: Image) -> None:
        """Remove an image; its layers stay as long as servers and other images need them."""
        del self.images[image.id]
        self._drop_layers()

    def _drop_layers(self) -> None:
        used = {layer for server in self.servers.values() for layer in server.layers}
        used |= {layer for image in self.images.values() for layer in image.layers}
        used |= {layer for volume in self.volumes.values() for layer in volume.layers}
        used |= {layer for snapshot in self.volume_snapshots.values() for layer in snapshot.layers}
        unused = self._layers - used
        if unused:
            self._layers -= unused
            self.workshop.pool.submit(self.workshop.kind("namespace").drop_layers, unused)

    def _add_base_image(self) -> None:
        properties = {
            "os_distro": "debian",
            "os_version": "12",
            "os_type": "linux",
            "architecture": "x86_64",
            "hw_disk_bus": "virtio",
            "default_username": "debian",
        }
        image = Image(new_id(), "Debian 12", self.other_project, "active", "public", properties=properties)
        image.disk_format, image.container_format = "qcow2", "bare"
        image.size, image.checksum, image.min_disk = 400 << 20, new_id().replace("-", ""), 1
        self.images[image.id] = image

    # Network

    def networks(self) -> dict[str, str]:
        """Return the networks for servers, {id: name}."""
        second = {self.second_network: self.knobs.second_network} if self.knobs.second_network else {}
        return {self.private_network: "private", **second}

    def add_port(self, project: str, name: str = "", *, network: str = "private", made_by_nova: bool = False) -> Port:
        """Add a port with a free fixed address."""
        mac = "fa:16:3e:" + ":".join(f"{self.random.randrange(256):02x}" for _ in range(3))
        port = Port(new_id(), project, self.fixed.take(), mac, name, network, made_by_nova=made_by_nova)
        self.ports[port.id] = port
        return port

    def drop_port(self, port: Port) -> None:
        """Give the port's address back and unbind its floating IPs."""
        for floating in self.floating_ips.values():
            if floating.port == port.id:
                self.bind(floating, None)
        del self.ports[port.id]
        self.fixed.give_back(port.address)

    def _drop_port(self, server: Server) -> None:
        for port in [p for p in self.ports.values() if p.device == server.id]:
            if port.made_by_nova:
                self.drop_port(port)
            else:
                port.device = ""
        server.addresses_shown = False

    def bind(self, floating: FloatingIP, port: str | None) -> None:
        """Bind a floating IP to another port or to none; servers notice after floating_seconds."""
        old = self.server_of(floating.port)
        floating.port, floating.updated = port, time.time()
        if old:
            self.workshop.close_door(floating.address)
        for server in (old, self.server_of(port)):
            if server:
                self.workshop.schedule.later(self.knobs.floating_seconds, partial(self._refresh_floating, server))

    def server_of(self, port: str | None) -> Server | None:
        """Return the server behind a port."""
        return self.servers.get(self.ports[port].device) if port in self.ports else None

    def _refresh_floating(self, server: Server) -> None:
        with self.lock:
            server.floating = [f.address for f in self.floating_ips.values() if f.port and f.port == server.port]
            if server.ssh != "none":
                self.set_ssh(server, server.ssh)

    def age(self, seconds: float) -> None:
        """Make everything in the cloud older by some seconds."""
        with self.lock:
            kept: list[dict[str, Any]] = [
                self.servers, self.images, self.keypairs, self.ports, self.floating_ips,  # type: ignore[list-item]
                self.volumes, self.volume_snapshots]
            for things in kept:
                for thing in things.values():
                    thing.created -= seconds

    def truth(self) -> dict[str, Any]:
        """Return everything in the cloud, for the control interface."""
        with self.lock:
            return {
                "knobs": self.knobs.as_dict(),
                "servers": [_server_truth(server) for server in self.servers.values()],
                "images": [dict(vars(image)) for image in self.images.values()],
                "keypairs": [dict(vars(keypair)) for keypair in self.keypairs.values()],
                "floating_ips": [dict(vars(floating)) for floating in self.floating_ips.values()],
                "ports": [dict(vars(port)) for port in self.ports.values()],
                "volumes": [dict(vars(volume)) for volume in self.volumes.values()],
                "volume_snapshots": [dict(vars(snapshot)) for snapshot in self.volume_snapshots.values()],
                **self.calls.as_dict(),
            }


def _server_truth(server: Server) -> dict[str, Any]:
    hidden = {"user_data", "flavor", "booting", "addresses_shown", "others"}
    return {name: value for name, value in vars(server).items() if name not in hidden} | {"flavor": server.flavor.name}
