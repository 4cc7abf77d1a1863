"""Nova: flavors, keypairs, limits, quotas, zones, and the proxies that older clients call."""

import base64
import binascii
import hashlib
import time
from typing import Any

from tests.pocketcloud.glance import visible
from tests.pocketcloud.httpd import Answer, Call, Handler, RefusalError, not_found
from tests.pocketcloud.novacreate import METADATA_ITEMS, check_name, invalid_input
from tests.pocketcloud.novaviews import nova_image, nova_links
from tests.pocketcloud.records import Flavor, Keypair, stamp
from tests.pocketcloud.state import Cloud


def _flavor(call: Call, flavor: Flavor) -> dict[str, Any]:
    shown = {
        "id": flavor.id,
        "name": flavor.name,
        "ram": flavor.ram,
        "disk": flavor.disk,
        "swap": 0 if call.microversion >= (2, 75) else "",
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "OS-FLV-DISABLED:disabled": False,
        "vcpus": flavor.vcpus,
        "os-flavor-access:is_public": True,
        "rxtx_factor": 1.0,
        "links": nova_links(call, "flavors", flavor.id),
    }
    if call.microversion >= (2, 55):
        shown["description"] = None
    if call.microversion >= (2, 61):
        shown["extra_specs"] = {}
    return shown


def _list_flavors(call: Call, *, detailed: bool) -> Answer:
    least = int(call.first("minRam") or 0)
    names = ("id", "name", "links") if not detailed else None
    shown = [_flavor(call, flavor) for flavor in call.cloud.flavors() if flavor.ram >= least]
    marker = call.first("marker")
    if marker:
        ids = [flavor["id"] for flavor in shown]
        shown = shown[ids.index(marker) + 1 :] if marker in ids else []
    return Answer(200, {"flavors": [{k: v for k, v in one.items() if not names or k in names} for one in shown]})


def _find_flavor(call: Call) -> Flavor:
    for flavor in call.cloud.flavors():
        if flavor.id == call.args["id"]:
            return flavor
    raise not_found(f"Flavor {call.args['id']} could not be found.")


def _show_flavor(call: Call) -> Answer:
    return Answer(200, {"flavor": _flavor(call, _find_flavor(call))})


def _flavor_specs(call: Call) -> Answer:
    _find_flavor(call)
    return Answer(200, {"extra_specs": {}})


def _keypair(call: Call, key: Keypair) -> dict[str, Any]:
    shown = {"name": key.name, "public_key": key.public_key, "fingerprint": key.fingerprint}
    return shown | ({"type": key.type} if call.microversion >= (2, 2) else {})


def _list_keypairs(call: Call) -> Answer:
    with call.cloud.lock:
        mine = sorted((k for k in call.cloud.keypairs.values() if k.project == call.project), key=lambda k: k.name)
        marker = call.first("marker") or ""
        return Answer(200, {"keypairs": [{"keypair": _keypair(call, k)} for k in mine if k.name > marker]})


def _create_keypair(call: Call) -> Answer:
    wish = call.json("keypair")
    name, public = wish.get("name"), wish.get("public_key")
    check_name(name)
    if not public:
        raise invalid_input("keypair", wish, "'public_key' is a required property")
    with call.cloud.lock:
        if (call.project, name) in call.cloud.keypairs:
            raise RefusalError(409, f"Key pair '{name}' already exists.")
        key = Keypair(name, call.project, public, _fingerprint(public))
        call.cloud.keypairs[call.project, name] = key
    shown = _keypair(call, key) | {"user_id": call.user}
    return Answer(201 if call.microversion >= (2, 2) else 200, {"keypair": shown})


def _fingerprint(public: str) -> str:
    try:
        digest = hashlib.md5(base64.b64decode(public.split()[1], validate=True)).hexdigest()
    except (IndexError, binascii.Error):
        raise RefusalError(400, "Keypair data is invalid: failed to generate fingerprint") from None
    return ":".join(digest[place : place + 2] for place in range(0, 32, 2))


def _find_keypair(call: Call) -> Keypair:
    key = call.cloud.keypairs.get((call.project, call.args["name"]))
    if key is None:
        raise not_found(f"Keypair {call.args['name']} not found for user {call.user}")
    return key


def _show_keypair(call: Call) -> Answer:
    with call.cloud.lock:
        key = _find_keypair(call)
    more = {
        "user_id": call.user,
        "created_at": stamp(key.created),
        "deleted": False,
        "deleted_at": None,
        "id": 1,
        "updated_at": None,
    }
    return Answer(200, {"keypair": _keypair(call, key) | more})


def _delete_keypair(call: Call) -> Answer:
    with call.cloud.lock:
        del call.cloud.keypairs[call.project, _find_keypair(call).name]
    return Answer(204 if call.microversion >= (2, 2) else 202)


def _limits(call: Call) -> Answer:
    with call.cloud.lock:
        quotas = call.cloud.quotas(call.project)
    absolute = {
        "maxTotalInstances": quotas["instances"][0],
        "maxTotalCores": quotas["cores"][0],
        "maxTotalRAMSize": quotas["ram"][0],
        "maxServerMeta": METADATA_ITEMS,
        "maxTotalKeypairs": 100,
        "maxServerGroups": 10,
        "maxServerGroupMembers": 10,
        "totalInstancesUsed": quotas["instances"][1],
        "totalCoresUsed": quotas["cores"][1],
        "totalRAMUsed": quotas["ram"][1],
        "totalServerGroupsUsed": 0,
    }
    if call.microversion < (2, 57):
        absolute |= {"maxPersonality": 5, "maxPersonalitySize": 10240}
    if call.microversion < (2, 39):
        absolute |= {"maxImageMeta": METADATA_ITEMS}
    if call.microversion < (2, 36):
        absolute |= {"maxTotalFloatingIps": -1, "totalFloatingIpsUsed": 0, "maxSecurityGroups": -1,
                     "totalSecurityGroupsUsed": 0, "maxSecurityGroupRules": -1}
    return Answer(200, {"limits": {"rate": [], "absolute": absolute}})


def _quota(call: Call) -> Answer:
    with call.cloud.lock:
        limits = {name: limit for name, (limit, _) in call.cloud.quotas(call.project).items()}
    quota = {
        **limits,
        "key_pairs": 100,
        "metadata_items": METADATA_ITEMS,
    }
    return Answer(
        200, {"quota_set": quota | {"id": call.args["project"], "server_groups": 10, "server_group_members": 10}}
    )


def _zones(_call: Call) -> Answer:
    zone = {"zoneName": "nova", "zoneState": {"available": True}, "hosts": None}
    return Answer(200, {"availabilityZoneInfo": [zone]})


def _zones_with_hosts(_call: Call) -> Answer:
    raise RefusalError(403, "Policy doesn't allow os_compute_api:os-availability-zone:detail to be performed.")


def _extensions(_call: Call) -> Answer:
    return Answer(200, {"extensions": []})


def _floating_ips_proxy(call: Call) -> Answer:
    if call.microversion >= (2, 36):
        raise not_found("The resource could not be found.")
    with call.cloud.lock:
        mine = [f for f in call.cloud.floating_ips.values() if f.project == call.project]
        shown = [_nova_floating(call.cloud, f.id) for f in mine]
    return Answer(200, {"floating_ips": shown})


def _nova_floating(cloud: Cloud, floating_id: str) -> dict[str, Any]:
    floating = cloud.floating_ips[floating_id]
    server = cloud.server_of(floating.port)
    fixed = server.address if server else None
    return {
        "id": floating.id,
        "ip": floating.address,
        "pool": "public",
        "fixed_ip": fixed,
        "instance_id": server and server.id,
    }


def _images_proxy(call: Call) -> Answer:
    if call.microversion >= (2, 36):
        raise not_found("The resource could not be found.")
    with call.cloud.lock:
        return Answer(200, {"images": [nova_image(call, image) for image in visible(call)]})


def _image_proxy(call: Call) -> Answer:
    if call.microversion >= (2, 36):
        raise not_found("The resource could not be found.")
    with call.cloud.lock:
        for image in visible(call):
            if image.id == call.args["id"]:
                return Answer(200, {"image": nova_image(call, image)})
    raise not_found("Image not found.")


def _usage(call: Call) -> Answer:
    return Answer(
        200, {"tenant_usage": {"tenant_id": call.args["project"], "start": stamp(time.time()), "server_usages": []}}
    )


REST: list[tuple[str, str, Handler]] = [
    ("GET", "/flavors", lambda call: _list_flavors(call, detailed=False)),
    ("GET", "/flavors/detail", lambda call: _list_flavors(call, detailed=True)),
    ("GET", "/flavors/{id}", _show_flavor),
    ("GET", "/flavors/{id}/os-extra_specs", _flavor_specs),
    ("GET", "/os-keypairs", _list_keypairs),
    ("POST", "/os-keypairs", _create_keypair),
    ("GET", "/os-keypairs/{name}", _show_keypair),
    ("DELETE", "/os-keypairs/{name}", _delete_keypair),
    ("GET", "/limits", _limits),
    ("GET", "/os-quota-sets/{project}", _quota),
    ("GET", "/os-availability-zone", _zones),
    ("GET", "/os-availability-zone/detail", _zones_with_hosts),
    ("GET", "/extensions", _extensions),
    ("GET", "/os-floating-ips", _floating_ips_proxy),
    ("GET", "/images/detail", _images_proxy),
    ("GET", "/images", _images_proxy),
    ("GET", "/images/{id}", _image_proxy),
    ("GET", "/os-simple-tenant-usage/{project}", _usage),
]
