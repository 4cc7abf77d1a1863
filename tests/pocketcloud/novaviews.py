"""How Nova shows servers and images, by microversion."""

import hashlib
from typing import Any

from tests.pocketcloud.httpd import Call
from tests.pocketcloud.records import Image, Server, stamp
from tests.pocketcloud.state import Cloud

PROGRESS_STATUSES = ("ACTIVE", "BUILD")
POWER_STATES = {"ACTIVE": 1, "REBOOT": 1, "HARD_REBOOT": 1, "PAUSED": 3, "SHUTOFF": 4}
IMAGE_STATUSES = {"queued": "SAVING", "saving": "SAVING", "active": "ACTIVE", "killed": "ERROR"}
CONSOLE = """[    0.000000] Linux version 6.1.0-pocketcloud (debian@pocketcloud)
[    1.000000] Booting {name} from image {image}
[    2.000000] cloud-init[1]: Cloud-init finished, datasource {id}

Debian GNU/Linux 12 {name} ttyS0

{name} login: """


def nova_links(call: Call, kind: str, ident: str) -> list[dict[str, str]]:
    """Return the self and bookmark links of one of Nova's resources."""
    return [
        {"rel": "self", "href": f"{call.base}/compute/v2.1/{kind}/{ident}"},
        {"rel": "bookmark", "href": f"{call.base}/compute/{kind}/{ident}"},
    ]


def describe_server(call: Call, server: Server) -> dict[str, Any]:
    """Return the server as the caller's microversion shows it."""
    launched = stamp(server.launched, micro=True) if server.launched else None
    hosted = server.hosted or launched
    shown: dict[str, Any] = {
        "id": server.id,
        "name": server.name,
        "status": server.status,
        "tenant_id": server.project,
        "user_id": call.user,
        "metadata": dict(server.metadata),
        "hostId": hashlib.sha224(server.project.encode()).hexdigest() if hosted else "",
        "image": {"id": server.image, "links": nova_links(call, "images", server.image)[1:]} if server.image else "",
        "flavor": _flavor_of(call, server),
        "created": stamp(server.created),
        "updated": stamp(server.updated),
        "addresses": _addresses(server),
        "accessIPv4": "",
        "accessIPv6": "",
        "links": nova_links(call, "servers", server.id),
        "OS-DCF:diskConfig": "MANUAL",
        "OS-EXT-AZ:availability_zone": "nova" if hosted else "",
        "config_drive": "True" if server.config_drive else "",
        "key_name": server.key_name,
        "OS-SRV-USG:launched_at": launched,
        "OS-SRV-USG:terminated_at": None,
        "OS-EXT-STS:task_state": server.task_state,
        "OS-EXT-STS:vm_state": server.vm_state,
        "OS-EXT-STS:power_state": POWER_STATES.get(server.status, 0),
        "os-extended-volumes:volumes_attached": [{"id": server.volume}] if server.volume else [],
    }
    if hosted:
        shown["security_groups"] = [{"name": name} for name in server.groups]
    if server.status in PROGRESS_STATUSES:
        shown["progress"] = 0
    if server.fault and server.status in ("ERROR", "DELETED"):
        shown["fault"] = server.fault | {"created": stamp(server.fault["created"])}
    return shown | _newer_fields(call, server)


def _newer_fields(call: Call, server: Server) -> dict[str, Any]:
    fields: tuple[tuple[tuple[int, int], str, Any], ...] = (
        ((2, 9), "locked", False),
        ((2, 19), "description", server.description),
        ((2, 26), "tags", []),
        ((2, 63), "trusted_image_certificates", None),
        ((2, 71), "server_groups", []),
        ((2, 73), "locked_reason", None),
        ((2, 90), "OS-EXT-SRV-ATTR:hostname", server.name),
        ((2, 96), "pinned_availability_zone", None),
    )
    return {name: value for since, name, value in fields if call.microversion >= since}


def _flavor_of(call: Call, server: Server) -> dict[str, Any]:
    flavor = server.flavor
    if call.microversion < (2, 47):
        return {"id": flavor.id, "links": nova_links(call, "flavors", flavor.id)[1:]}
    sizes = {"vcpus": flavor.vcpus, "ram": flavor.ram, "disk": flavor.disk, "ephemeral": 0, "swap": 0}
    return {**sizes, "original_name": flavor.name, "extra_specs": {}}


def _addresses(server: Server) -> dict[str, Any]:
    if not server.addresses_shown:
        return {}
    known = [(server.network, "fixed", server.address, server.mac)]
    known += [(server.network, "floating", address, server.mac) for address in server.floating]
    known += [(port.network, "fixed", port.address, port.mac) for port in server.others]
    shown: dict[str, Any] = {}
    for network, kind, address, mac in known:
        one = {"version": 4, "addr": address, "OS-EXT-IPS:type": kind, "OS-EXT-IPS-MAC:mac_addr": mac}
        shown.setdefault(network, []).append(one)
    return shown


def nova_image(call: Call, image: Image) -> dict[str, Any]:
    """Return the image as Nova's old proxy shows it."""
    links: list[dict[str, str]] = nova_links(call, "images", image.id)
    alternate = {
        "rel": "alternate",
        "type": "application/vnd.openstack.image",
        "href": f"{call.base}/image//images/{image.id}",
    }
    shown = {
        "id": image.id,
        "name": image.name,
        "minRam": image.min_ram,
        "minDisk": image.min_disk,
        "metadata": image.properties,
        "created": stamp(image.created),
        "updated": stamp(image.updated),
        "status": IMAGE_STATUSES.get(image.status, "UNKNOWN"),
        "progress": 100 if image.status == "active" else 25,
        "OS-EXT-IMG-SIZE:size": image.size,
        "links": [*links, alternate],
    }
    source = image.properties.get("instance_uuid")
    return shown | ({"server": {"id": source, "links": nova_links(call, "servers", source)}} if source else {})


def console_text(cloud: Cloud, server: Server) -> str:
    """Return the machine's console log, or an invented one if it has none."""
    own = cloud.workshop.kind(server.kind).console(server)
    if own is not None:
        return own
    return CONSOLE.format(name=server.name, image=server.image, id=server.id)
