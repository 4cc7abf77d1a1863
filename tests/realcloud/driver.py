"""Nova's side of the machines: a hypervisor driver whose servers are pocketcloud's, and a scheduler filter for tests.

Runs inside Nova, in the state's folder. An image is a tar with a folder for each layer above the base tree, named 1, 2,
3 from the lowest; so the base image is empty. Tests set knobs for all servers in knobs.json, and for one server in its
metadata.
"""

import base64
import json
import logging
import os
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from nova import exception
from nova.compute import task_states
from nova.image import glance
from nova.objects.build_request import BuildRequest
from nova.scheduler.filters import BaseHostFilter
from nova.scheduler.filters.compute_filter import ComputeFilter
from nova.virt import fake

from tests.pocketcloud.doors import Doors
from tests.pocketcloud.machines import Namespaces
from tests.pocketcloud.records import BASE_LAYER, BootError, SnapshotError
from tests.realcloud.binding import FLOATING, NEW

log = logging.getLogger(__name__)
HANDS = 8  # threads that start machines and outlive them: a machine dies with the thread that started it
LOOK_SECONDS = 0.1
KNOBS = Path("knobs.json")
PREFIX = "real."  # of knobs in a server's metadata
TAR = ["tar", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--sparse"]


@dataclass(frozen=True)
class Knobs:
    """What tests can make servers do."""

    boot_seconds: float = 0.0
    boot_failure: str = ""  # no-host: the scheduler finds none; abort: the host gives up; retry: it asks for another
    delete_seconds: float = 0.0
    snapshot_seconds: float = 0.0
    snapshot_failure: str = ""  # any text: it fails

    @classmethod
    def of(cls, metadata: Mapping[str, str] | None) -> "Knobs":
        """Return the knobs that hold for a server."""
        values = json.loads(KNOBS.read_text()) if KNOBS.exists() else {}
        values |= {name.removeprefix(PREFIX): value for name, value in (metadata or {}).items()
                   if name.startswith(PREFIX)}
        kinds = get_type_hints(cls)
        return cls(**{name: kinds[name](value) for name, value in values.items() if name in kinds})


@dataclass
class Instance:
    """What a machine must know about its server."""

    id: str
    name: str
    layers: tuple[str, ...]
    public_key: str
    user_data: bytes
    address: str | None
    floating: list[str] = field(default_factory=list)
    ssh: str = "none"


class KnobFilter(BaseHostFilter):  # type: ignore[misc]  # Nova has no types
    """Finds no host for servers whose boot_failure is no-host."""

    def host_passes(self, _host: Any, spec: Any) -> bool:
        try:
            request = BuildRequest.get_by_instance_uuid(spec._context, spec.instance_uuid)
        except exception.BuildRequestNotFound:  # the server has been booted before
            return True
        return Knobs.of(request.instance.metadata).boot_failure != "no-host"


def filters() -> list[type]:
    """Return the scheduler's filters."""
    return [ComputeFilter, KnobFilter]


def image_of_volume(block_device_info: Any) -> str:
    """Return the id of the image that the boot volume was made from, as volumes.py passes it."""
    (root,) = block_device_info["block_device_mapping"]
    image: str = root["connection_info"]["data"]["image"]
    return image


class NamespaceDriver(fake.FakeDriverWithoutFakeNodes):  # type: ignore[misc]  # Nova has no types
    """Nova's in-memory driver, with a machine behind each server."""

    vcpus = 1_000_000
    memory_mb = 2_000_000_000
    local_gb = 2_000_000_000

    def init_host(self, host: str) -> None:
        super().init_host(host)
        self._folder = Path.cwd() / "machines"
        self._layers = self._folder / "layers"
        self._doors = Doors(int(os.environ["REALCLOUD_SSH_PORT"]))
        self._machines = Namespaces(self._folder, Path(os.environ["REALCLOUD_BASE"]), self._doors)
        self._hands = ThreadPoolExecutor(HANDS)
        self._guests: dict[str, Instance] = {}
        self._fetching = threading.Lock()
        threading.Thread(target=self._follow_floating_ips, daemon=True).start()

    def spawn(self, context: Any, instance: Any, image_meta: Any, injected_files: Any, admin_password: Any,
              allocations: Any, network_info: Any = None, block_device_info: Any = None, **more: Any) -> None:
        knobs = Knobs.of(instance.metadata)
        time.sleep(knobs.boot_seconds)
        if knobs.boot_failure == "abort":
            raise exception.BuildAbortException(instance_uuid=instance.uuid, reason="as told")
        if knobs.boot_failure == "retry":
            raise exception.ComputeResourcesUnavailable(reason="as told")
        super().spawn(context, instance, image_meta, injected_files, admin_password, allocations, network_info,
                      block_device_info, **more)
        addresses = [fixed["address"] for vif in network_info or [] for fixed in vif.fixed_ips()]
        try:
            guest = Instance(
                id=instance.uuid,
                name=instance.display_name,
                layers=self._fetch_layers(context, instance.image_ref or image_of_volume(block_device_info)),
                public_key=instance.key_data or "",
                user_data=base64.b64decode(instance.user_data or ""),
                address=next(iter(addresses), None),
            )
            self._guests[guest.id] = guest
            self._boot(guest)
        except BootError as err:
            raise exception.BuildAbortException(instance_uuid=instance.uuid, reason=str(err)) from err

    def destroy(self, context: Any, instance: Any, network_info: Any, *args: Any, **more: Any) -> None:
        time.sleep(Knobs.of(instance.metadata).delete_seconds)
        guest = self._guests.pop(instance.uuid, None)
        if guest:
            self._machines.remove(guest)
        if instance.uuid in self.instances:
            super().destroy(context, instance, network_info, *args, **more)

    def power_off(self, instance: Any, *args: Any, **more: Any) -> None:
        super().power_off(instance, *args, **more)
        guest = self._guests[instance.uuid]
        guest.ssh = "none"
        self._machines.halt(guest)

    def power_on(self, context: Any, instance: Any, network_info: Any, *args: Any, **more: Any) -> None:
        super().power_on(context, instance, network_info, *args, **more)
        guest = self._guests[instance.uuid]
        self._machines.halt(guest)  # a reboot calls this, too
        self._boot(guest)

    def snapshot(self, context: Any, instance: Any, image_id: str, update_task_state: Any) -> None:
        guest = self._guests.get(instance.uuid)
        if guest is None:
            raise exception.InstanceNotRunning(instance_id=instance.uuid)
        update_task_state(task_state=task_states.IMAGE_PENDING_UPLOAD)
        knobs = Knobs.of(instance.metadata)
        time.sleep(knobs.snapshot_seconds)
        if knobs.snapshot_failure:
            raise exception.NovaException("the snapshot fails as told")
        with tempfile.TemporaryFile(dir=self._folder) as data:
            try:
                self._pack(guest, data)
            except SnapshotError as err:
                raise exception.InstanceNotRunning(instance_id=instance.uuid) from err
            data.seek(0)
            update_task_state(task_state=task_states.IMAGE_UPLOADING, expected_state=task_states.IMAGE_PENDING_UPLOAD)
            images = glance.API()
            image = images.get(context, image_id)
            properties = {"image_location": "snapshot", "image_state": "available", "owner_id": instance.project_id}
            change = {"name": image["name"], "status": "active", "disk_format": "raw", "container_format": "bare",
                      "properties": properties}
            images.update(context, image_id, change, data=data)

    def get_console_output(self, _context: Any, instance: Any) -> str:
        guest = self._guests.get(instance.uuid)
        return (self._machines.console(guest) if guest else "") or ""

    def _boot(self, guest: Instance) -> None:
        self._hands.submit(self._machines.boot, guest).result()
        guest.ssh = "up"
        self._machines.apply_ssh(guest)

    def _fetch_layers(self, context: Any, image: str) -> tuple[str, ...]:
        """Return the layers of an image, topmost first; they are fetched from Glance at first use."""
        folder = self._layers / image
        with self._fetching:
            if not folder.exists():
                new = folder.with_name(f"{image}{NEW}")
                new.mkdir()
                self._unpack(context, image, new)
                new.rename(folder)
        numbers = sorted((int(layer.name) for layer in folder.iterdir()), reverse=True)
        return (*(f"{image}/{number}" for number in numbers), BASE_LAYER)

    @staticmethod
    def _unpack(context: Any, image: str, folder: Path) -> None:
        command = [*TAR, "-xpf", "-", "-C", str(folder)]
        with tempfile.TemporaryFile(dir=folder.parent) as data:
            for chunk in glance.API().download(context, image):
                data.write(chunk)
            data.seek(0)
            done = subprocess.run(command, stdin=data, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            shutil.rmtree(folder)
            raise exception.ImageUnacceptable(image_id=image, reason=f"it is not a machine's: {done.stderr.strip()}")

    def _pack(self, guest: Instance, data: Any) -> None:
        """Write a machine's image: the layers below it, and above these its own changes."""
        *below, _base = guest.layers
        own = str(len(below) + 1)
        words = [f"--directory={self._layers}", *below] if below else []
        with self._machines.standing_still(guest) as folder:
            # Names in the archive: IMAGE/2 becomes 2, and upper the next number. Targets of hard links change, too.
            rename = [f"--transform=flags=rh;s,^upper,{own},"]
            rename += [f"--transform=flags=rh;s,^{Path(layer).parent}/,," for layer in below[:1]]
            command = [*TAR, *rename, "-cf", "-", f"--directory={folder}", "upper", *words]
            done = subprocess.run(command, stdout=data, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise SnapshotError(done.stderr)

    def _follow_floating_ips(self) -> None:
        """Answer at floating IPs for the machines that they lead to, according to the notes of Neutron's side."""
        while True:
            time.sleep(LOOK_SECONDS)
            try:
                bound = {path.name: path.read_text() for path in FLOATING.iterdir() if path.suffix != NEW}
                for guest in list(self._guests.values()):
                    self._lead(guest, [floating for floating, fixed in bound.items() if fixed == guest.address])
            except Exception:
                log.exception("floating IPs")

    def _lead(self, guest: Instance, floating: list[str]) -> None:
        if sorted(floating) != sorted(guest.floating):
            gone = set(guest.floating) - set(floating)
            guest.floating = floating
            for address in gone:
                self._doors.close(address)
            self._machines.apply_ssh(guest)
