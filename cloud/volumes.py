"""Volumes that servers boot from. We make them before the server: only then can they carry our marks.

A server deletes its volume with itself (delete_on_termination); reap deletes volumes whose server was never made.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from cloud.errors import CloudConfigError, CloudError, GoneError, RefusedError
from cloud.rules import Source, plain_metadata, unix_time
from gateprocess import Log, plain

T = TypeVar("T")
POLL_SECONDS = 1.0
UNATTACHED = ("available", "error", "error_deleting", "error_restoring", "error_extending")


class Caller(Protocol):
    """Makes calls with a time limit, and turns their errors into our classes."""

    provider: Any
    connection: Any
    log: Log

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Make a call."""

    def listed(self, what: str, call: Callable[[], Iterable[T]]) -> list[T]:
        """Make a call for a list and return all of it."""


@dataclass(frozen=True)
class Volume:
    """A volume with our marks as the cloud last showed it."""

    id: str
    name: str
    status: str
    metadata: Mapping[str, str]
    machine_id: int | None = None  # the row that it was made for
    snapshot_id: int | None = None  # or the row of the snapshot whose template it belongs to
    servers: tuple[str, ...] = ()  # ids of the servers that it is attached to, as block storage says
    changed: float = 0.0  # when its status last changed, or it was made; Unix seconds, by the cloud's clock

    @property
    def unattached(self) -> bool:
        """Return whether nothing is being done to it and it belongs to no server."""
        return self.status in UNATTACHED


class Volumes:
    """The calls to a provider's block storage; safe to use from several threads."""

    def __init__(self, calls: Caller) -> None:
        self._calls = calls
        self._zones: frozenset[str] | None = None  # asked for when first needed
        self._lock = threading.Lock()

    @property
    def _api(self) -> Any:
        return self._calls.connection.block_storage

    def is_there(self) -> bool:
        """Return whether the cloud has block storage."""
        return self._calls.connection.config.get_session_endpoint("block-storage") is not None

    def make(self, name: str, gigabytes: int, source: Source, marks: Mapping[str, str], seconds: float,
             zone: str | None = None) -> str:
        """Make a volume of an image, or of the volume snapshot behind it, and return its id once it is available.

        seconds is the time limit. zone is that of its server: many clouds attach no volume of another zone; it is used
        if block storage has a zone of that name. CapacityError if there is no more room for volumes, RefusedError if
        the volume does not become available; it is then deleted again.
        """
        provider = self._calls.provider.name
        if not self.is_there():
            raise CloudConfigError(f"provider {provider}: boot-from-volume: the cloud has no block storage")
        what = {"snapshot_id": source.volume_snapshot} if source.volume_snapshot else {"image_id": source.image_id}
        if zone and zone in self._zone_names():
            what["availability_zone"] = zone
        made = self._calls.ask("create volume", lambda: self._api.create_volume(
            name=name, size=gigabytes, metadata=dict(marks), **what))
        try:
            self._wait(str(made.id), seconds)
        except CloudError:
            with contextlib.suppress(CloudError):
                self.delete(str(made.id))
            raise
        return str(made.id)

    def _zone_names(self) -> frozenset[str]:
        """Return the zones of block storage, none if it does not tell."""
        with self._lock:
            if self._zones is None:
                self._zones = frozenset()
                with contextlib.suppress(CloudError):
                    self._zones = frozenset(self._calls.ask("list zones of volumes", lambda: [
                        str(zone.name) for zone in self._api.availability_zones()]))
            return self._zones

    def _wait(self, volume_id: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        last = "nothing yet"
        while time.monotonic() < deadline:
            with self._forgiven() as failures:
                last = str(self._calls.ask("show volume", lambda: self._api.get_volume(volume_id)).status)
            last = failures[0] if failures else last
            if last == "available":
                return
            if last.startswith("error"):
                raise RefusedError(f"provider {self._calls.provider.name}: volume {volume_id} became {last}")
            time.sleep(POLL_SECONDS)
        raise RefusedError(f"provider {self._calls.provider.name}: volume {volume_id} is not available after "
                           f"{seconds:.0f} s; last seen: {last}")

    @staticmethod
    @contextlib.contextmanager
    def _forgiven() -> Any:
        """Collect the error of a look that is soon repeated; only GoneError is raised."""
        failures: list[str] = []
        try:
            yield failures
        except GoneError:
            raise
        except CloudError as err:
            failures.append(str(err))

    def list_all(self) -> list[Volume]:
        """Return the volumes of the project that carry metadata."""
        if not self.is_there():
            return []
        found = self._calls.listed("list volumes", lambda: self._api.volumes(details=True))
        return self._calls.ask("list volumes", lambda: [
            Volume(str(one.id), plain(str(one.name)), plain(str(one.status)), plain_metadata(one.metadata),
                   servers=_servers_of(one), changed=unix_time(one.updated_at or one.created_at))
            for one in found if isinstance(one.metadata, Mapping)])

    def delete(self, volume_id: str) -> None:
        """Delete a volume; one that is gone already is fine. RefusedError if something still needs it."""
        with contextlib.suppress(GoneError):
            self._calls.ask("delete volume", lambda: self._api.delete_volume(volume_id, ignore_missing=True))

    def snapshots_of(self, volume_id: str) -> dict[str, str]:
        """Return the snapshots of a volume, {id: name}."""
        found = self._calls.listed("list volume snapshots", lambda: self._api.snapshots(volume_id=volume_id))
        return {str(one.id): plain(str(one.name)) for one in found if str(one.volume_id) == volume_id}

    def delete_snapshot(self, snapshot_id: str) -> None:
        """Delete a volume snapshot; one that is gone already is fine."""
        with contextlib.suppress(GoneError):
            self._calls.ask("delete volume snapshot",
                            lambda: self._api.delete_snapshot(snapshot_id, ignore_missing=True))


def _servers_of(volume: Any) -> tuple[str, ...]:
    """Return the ids of the servers that a volume is attached to."""
    return tuple(str(one["server_id"]) for one in volume.attachments or [] if one.get("server_id"))
