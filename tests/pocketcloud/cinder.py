"""Cinder v3: volumes that servers boot from, and snapshots of volumes."""

from typing import Any

from tests.pocketcloud.glance import visible
from tests.pocketcloud.httpd import Answer, Call, RefusalError, Routes, not_found
from tests.pocketcloud.records import Volume, VolumeSnapshot, new_id, stamp
from tests.pocketcloud.state import Cloud

ZONE = "nova"
AT_REST = ("available", "error", "error_deleting", "error_restoring", "error_extending")
IN_USE = (
    "Invalid volume: Volume status must be available or error or error_restoring or error_extending or error_managing "
    "and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated "
    "from snapshots after volume transfer."
)


def _versions(call: Call) -> Answer:
    version = {
        "id": "v3.0", "status": "CURRENT", "version": "3.71", "min_version": "3.0", "updated": "2022-03-30T00:00:00Z",
        "links": [{"rel": "self", "href": f"{call.base}/block-storage/v3/"}],
    }  # fmt: skip
    return Answer(300 if call.unversioned else 200, {"versions": [version]})


def describe(call: Call, volume: Volume) -> dict[str, Any]:
    """Return the volume as Cinder shows it."""
    attachments = [{"server_id": volume.server, "volume_id": volume.id, "device": "/dev/vda"}] if volume.server else []
    image = {"image_id": volume.image} if volume.image else {}
    return {
        "id": volume.id, "name": volume.name, "size": volume.size, "status": volume.status, "attachments": attachments,
        "metadata": volume.metadata, "snapshot_id": volume.snapshot, "source_volid": None, "volume_type": "pocket",
        "bootable": "true" if image or volume.snapshot else "false", "encrypted": False, "multiattach": False,
        "availability_zone": volume.zone or ZONE, "created_at": stamp(volume.created),
        "updated_at": stamp(volume.created),
        "user_id": call.user, "os-vol-tenant-attr:tenant_id": volume.project, "description": None, "links": [],
        "consistencygroup_id": None, "replication_status": None, "volume_image_metadata": image,
    }  # fmt: skip


def _list(call: Call) -> Answer:
    with call.cloud.lock:
        found = [volume for volume in call.cloud.volumes.values() if volume.project == call.project]
        return Answer(200, {"volumes": [describe(call, volume) for volume in found]})


def _find(call: Call) -> Volume:
    volume = call.cloud.volumes.get(call.args["id"])
    if volume is None or volume.project != call.project:
        raise not_found(f"Volume {call.args['id']} could not be found.")
    return volume


def _show(call: Call) -> Answer:
    with call.cloud.lock:
        return Answer(200, {"volume": describe(call, _find(call))})


def _create(call: Call) -> Answer:
    wish, cloud = call.json("volume"), call.cloud
    if not isinstance(wish.get("size"), int) or wish["size"] < 1:
        raise RefusalError(400, f"Invalid input for field/attribute size. Value: {wish.get('size')}.")
    if wish.get("availability_zone") not in (None, ZONE):
        raise RefusalError(400, f"Availability zone '{wish['availability_zone']}' is invalid.")
    with cloud.lock:
        layers, smallest = _source(call, wish)
        if wish["size"] < smallest:
            raise RefusalError(400, f"Invalid input received: Volume size {wish['size']}GB cannot be smaller than "
                                    f"the image minDisk size {smallest}GB.")
        limit = cloud.knobs.volume_quota
        if limit is not None and sum(one.project == call.project for one in cloud.volumes.values()) >= limit:
            raise RefusalError(413, "VolumeLimitExceeded: Maximum number of volumes allowed "
                                    f"({limit}) exceeded for quota 'volumes'.")
        most, taken = _gigabytes(cloud, call.project)
        if 0 <= most < taken + wish["size"]:
            raise RefusalError(413, f"VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed "
                                    f"gigabytes quota. Requested {wish['size']}G, quota is {most}G and {taken}G has "
                                    "been consumed.")
        volume = Volume(new_id(), call.project, wish["size"], wish.get("name") or "", layers)
        volume.metadata = dict(wish.get("metadata") or {})
        volume.image, volume.snapshot = wish.get("imageRef"), wish.get("snapshot_id")
        volume.zone = wish.get("availability_zone")
        cloud.add_volume(volume)
        return Answer(202, {"volume": describe(call, volume)})


def _zones(_call: Call) -> Answer:
    return Answer(200, {"availabilityZoneInfo": [{"zoneName": ZONE, "zoneState": {"available": True}}]})


def _gigabytes(cloud: Cloud, project: str) -> tuple[int, int]:
    """Return limit (-1 for none) and use of the gigabytes quota, which counts volumes and snapshots together."""
    limit = cloud.knobs.volume_gigabytes_quota
    things: list[Volume | VolumeSnapshot] = [*cloud.volumes.values(), *cloud.volume_snapshots.values()]
    return -1 if limit is None else limit, sum(one.size for one in things if one.project == project)


def _limits(call: Call) -> Answer:
    cloud = call.cloud
    with cloud.lock:
        most, taken = _gigabytes(cloud, call.project)
        volumes = sum(one.project == call.project for one in cloud.volumes.values())
        snapshots = sum(one.project == call.project for one in cloud.volume_snapshots.values())
    limit = cloud.knobs.volume_quota
    return Answer(200, {"limits": {"rate": [], "absolute": {
        "maxTotalVolumes": -1 if limit is None else limit, "totalVolumesUsed": volumes,
        "maxTotalVolumeGigabytes": most, "totalGigabytesUsed": taken,
        "maxTotalSnapshots": -1, "totalSnapshotsUsed": snapshots,
        "maxTotalBackups": -1, "totalBackupsUsed": 0,
        "maxTotalBackupGigabytes": -1, "totalBackupGigabytesUsed": 0}}})


def _source(call: Call, wish: dict[str, Any]) -> tuple[tuple[str, ...], int]:
    """Return the layers of a volume, and its smallest allowed size in GB."""
    if wish.get("snapshot_id"):
        snapshot = _find_snapshot(call, wish["snapshot_id"])
        return snapshot.layers, snapshot.size
    for image in visible(call):
        if image.id == wish.get("imageRef"):
            if image.status != "active":
                raise RefusalError(400, f"Image {image.id} is not active.")
            return image.layers, image.min_disk
    if wish.get("imageRef"):
        raise RefusalError(400, "Invalid image identifier or unable to access requested image.")
    return (), 1


def _delete(call: Call) -> Answer:
    with call.cloud.lock:
        volume = _find(call)
        has_snapshots = any(one.volume == volume.id for one in call.cloud.volume_snapshots.values())
        if volume.status not in AT_REST or has_snapshots:
            raise RefusalError(400, IN_USE)
        call.cloud.delete_volume(volume)
    return Answer(202)


def _find_snapshot(call: Call, wanted: str) -> VolumeSnapshot:
    snapshot = call.cloud.volume_snapshots.get(wanted)
    if snapshot is None or snapshot.project != call.project:
        raise not_found(f"Snapshot {wanted} could not be found.")
    return snapshot


def _delete_snapshot(call: Call) -> Answer:
    with call.cloud.lock:
        call.cloud.delete_volume_snapshot(_find_snapshot(call, call.args["id"]))
    return Answer(202)


def _list_snapshots(call: Call) -> Answer:
    with call.cloud.lock:
        return Answer(200, {"snapshots": [
            {"id": one.id, "name": one.name, "status": "available", "size": one.size, "volume_id": one.volume,
             "metadata": {}, "created_at": stamp(one.created), "description": None}
            for one in call.cloud.volume_snapshots.values() if one.project == call.project]})


ROUTES = Routes(
    [
        ("GET", "/", _versions),
        ("GET", "/limits", _limits),
        ("GET", "/os-availability-zone", _zones),
        ("GET", "/volumes", _list),
        ("GET", "/volumes/detail", _list),
        ("POST", "/volumes", _create),
        ("GET", "/volumes/{id}", _show),
        ("DELETE", "/volumes/{id}", _delete),
        ("GET", "/snapshots", _list_snapshots),
        ("GET", "/snapshots/detail", _list_snapshots),
        ("DELETE", "/snapshots/{id}", _delete_snapshot),
    ],
    public=("/",),
)
