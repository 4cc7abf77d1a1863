"""Nova: creating a server, with the checks of the real one."""

import base64
import binascii
import re
from typing import Any

from tests.pocketcloud.glance import visible
from tests.pocketcloud.httpd import Answer, Call, RefusalError
from tests.pocketcloud.novaviews import nova_links
from tests.pocketcloud.records import Flavor, Image, Keypair, Port, Server, Volume, new_id
from tests.pocketcloud.state import Cloud, QuotaError

UUID = re.compile(r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}", re.IGNORECASE)
ZONES = ("nova", "nova-2")
WISHES = {  # the fields that a create request can have
    "name", "imageRef", "flavorRef", "networks", "metadata", "key_name", "user_data", "availability_zone",
    "security_groups", "description", "adminPass", "accessIPv4", "accessIPv6", "block_device_mapping",
    "block_device_mapping_v2", "config_drive", "min_count", "max_count", "return_reservation_id", "personality",
    "OS-DCF:diskConfig", "tags", "trusted_image_certificates", "host", "hypervisor_hostname", "hostname",
}  # fmt: skip
METADATA_LENGTH = 255
METADATA_ITEMS = 128
USER_DATA_LENGTH = 65535


def create_server(call: Call) -> Answer:
    """Boot a server, or refuse it."""
    wish = call.json("server")
    _check_words(call, wish)
    with call.cloud.lock:
        flavor, volume = _wish_flavor(call.cloud, wish), _wish_volume(call, wish)
        image_id, layers = ("", volume.layers) if volume else _wish_disk(call, wish, flavor)
        server = Server(new_id(), wish["name"], call.project, image_id, flavor, call.cloud.knobs.machines, layers)
        server.metadata = checked_metadata(wish.get("metadata", {}))
        server.user_data = _wish_user_data(wish)
        server.config_drive = bool(wish.get("config_drive"))
        server.description = wish.get("description") if call.microversion >= (2, 19) else wish["name"]
        server.groups = _wish_groups(call.cloud, wish)
        key = _wish_key(call, wish)
        server.key_name, server.public_key = (key.name, key.public_key) if key else (None, "")
        _check_zone(wish)
        networks, port = _wish_network(call, wish)
        _check_quota(call, flavor)
        if call.cloud.public_network in networks:
            server.boot_fault = "Build of instance {id} aborted: Failed to allocate the network(s), not rescheduling."
            networks = []
        known = call.cloud.networks()
        made = [call.cloud.add_port(call.project, network=known[one], made_by_nova=True) for one in networks]
        if volume:
            server.volume = volume.id
            call.cloud.attach(volume, server, goes_with_server=bool(
                wish["block_device_mapping_v2"][0].get("delete_on_termination")))
        call.cloud.add_server(server, [port] if port else made)
    created = {
        "id": server.id,
        "links": nova_links(call, "servers", server.id),
        "OS-DCF:diskConfig": "MANUAL",
        "security_groups": [{"name": name} for name in server.groups],
        "adminPass": new_id()[:12],
    }
    return Answer(202, {"server": created}, {"Location": nova_links(call, "servers", server.id)[0]["href"]})


def invalid_input(name: str, value: object, reason: str) -> RefusalError:
    """Return a refusal of input that does not fit Nova's schema, to be raised."""
    return RefusalError(400, f"Invalid input for field/attribute {name}. Value: {value}. {reason}")


def _check_words(call: Call, wish: object) -> None:
    """Refuse a create that does not fit Nova's schema."""
    if not isinstance(wish, dict):
        raise invalid_input("server", wish, f"{wish} is not of type 'object'")
    needed = ["name", "flavorRef", *(["networks"] if call.microversion >= (2, 37) else [])]
    for name in needed:
        if name not in wish:
            raise invalid_input("server", wish, f"'{name}' is a required property")
    strange = sorted(set(wish) - WISHES)
    if strange:
        reason = f"Additional properties are not allowed ({', '.join(map(repr, strange))} was unexpected)"
        raise invalid_input("server", wish, reason)
    check_name(wish["name"])
    if "imageRef" not in wish and "block_device_mapping_v2" not in wish:
        raise RefusalError(400, "Missing imageRef attribute")


def check_name(name: object) -> None:
    """Refuse what cannot be the name of a server or keypair."""
    if not isinstance(name, str):
        raise invalid_input("name", name, f"{name} is not of type 'string'")
    if not name.strip():
        raise invalid_input("name", name, f"{name!r} should be non-empty")


def _check_zone(wish: dict[str, Any]) -> None:
    if wish.get("availability_zone") not in (None, *ZONES):
        raise RefusalError(400, "The requested availability zone is not available")


def _wish_flavor(cloud: Cloud, wish: dict[str, Any]) -> Flavor:
    wanted = str(wish.get("flavorRef", "")).rsplit("/", 1)[-1]
    for flavor in cloud.flavors():
        if flavor.id == wanted:
            return flavor
    raise RefusalError(400, f"Flavor {wanted} could not be found.")


def _wish_volume(call: Call, wish: dict[str, Any]) -> Volume | None:
    """Return the volume to boot from; None for an image, even if the `openstack` command names it as a device."""
    devices = wish.get("block_device_mapping_v2") or []
    if not devices:
        return None
    device = devices[0]  # only one is needed here
    if (device.get("source_type"), device.get("destination_type")) == ("image", "local"):
        wish["imageRef"] = wish.get("imageRef") or device.get("uuid")
        return None
    volume = call.cloud.volumes.get(str(device.get("uuid")))
    if device.get("source_type") != "volume" or volume is None or volume.project != call.project:
        raise RefusalError(400, f"Block Device Mapping is Invalid: failed to get volume {device.get('uuid')}.")
    if volume.status != "available":
        raise RefusalError(400, f"Invalid volume: Invalid input received: Invalid volume: Volume {volume.id} status "
                                "must be available or downloading to reserve, but the current status is "
                                f"{volume.status}. (HTTP 400) (Request-ID: req-{new_id()})")
    return volume


def _wish_disk(call: Call, wish: dict[str, Any], flavor: Flavor) -> tuple[str, tuple[str, ...]]:
    """Return the image to boot from, and its layers."""
    image = _wish_image(call, wish)
    _check_sizes(flavor, image)
    if not flavor.disk:
        raise RefusalError(403, "Only volume-backed servers are allowed for flavors with zero disk.")
    return image.id, image.layers


def _wish_image(call: Call, wish: dict[str, Any]) -> Image:
    wanted = str(wish.get("imageRef", "")).rsplit("/", 1)[-1]
    if not UUID.fullmatch(wanted):
        reason = f"{wanted!r} is not valid under any of the given schemas"
        raise invalid_input("imageRef", wanted, reason)
    for image in visible(call):
        if image.id == wanted:
            if image.status != "active":
                raise RefusalError(400, f"Image {image.id} is not active.")
            return image
    raise RefusalError(400, "Can not find requested image")


def _check_sizes(flavor: Flavor, image: Image) -> None:
    if flavor.ram < image.min_ram:
        raise RefusalError(400, "Flavor's memory is too small for requested image.")
    if flavor.disk and flavor.disk < image.min_disk:
        raise RefusalError(
            400,
            "Flavor's disk is smaller than the minimum size specified in image metadata. Flavor disk is "
            f"{flavor.disk << 30} bytes, minimum size is {image.min_disk << 30} bytes.",
        )


def checked_metadata(metadata: object) -> dict[str, str]:
    """Return a copy of server or image metadata; refuses too many or too long items, and values that are not text."""
    if not isinstance(metadata, dict):
        raise invalid_input("metadata", metadata, f"{metadata} is not of type 'object'")
    if len(metadata) > METADATA_ITEMS:
        raise RefusalError(403, f"Maximum number of metadata items exceeds {METADATA_ITEMS}")
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise invalid_input(name, value, f"{value} is not of type 'string'")
        if not 1 <= len(name) <= METADATA_LENGTH:
            raise invalid_input("metadata", metadata, f"{name!r} does not match any of the regexes")
        if len(value) > METADATA_LENGTH:
            raise invalid_input(name, value, f"{value!r} is too long")
    return dict(metadata)


def _wish_user_data(wish: dict[str, Any]) -> bytes:
    text = wish.get("user_data") or ""
    if len(text) > USER_DATA_LENGTH:
        raise invalid_input("user_data", text, f"{text!r} is too long")
    try:
        return base64.b64decode(text)
    except (binascii.Error, TypeError):
        raise invalid_input("user_data", text, f"{text!r} is not a 'base64'") from None


def _wish_groups(cloud: Cloud, wish: dict[str, Any]) -> tuple[str, ...]:
    for group in wish.get("security_groups", []):
        if group.get("name") not in ("default", cloud.group):
            raise RefusalError(400, f"Unable to find security_group with name or id '{group.get('name')}'")
    return ("default",)


def _wish_key(call: Call, wish: dict[str, Any]) -> Keypair | None:
    if not wish.get("key_name"):
        return None
    key = call.cloud.keypairs.get((call.project, wish["key_name"]))
    if key is None:
        raise RefusalError(400, "Invalid key_name provided.")
    return key


def _wish_network(call: Call, wish: dict[str, Any]) -> tuple[list[str], Port | None]:
    """Return the networks that need new ports, or the existing port that the create names."""
    networks, known = wish.get("networks"), call.cloud.networks()
    if isinstance(networks, str):
        if networks not in ("auto", "none") or call.microversion < (2, 37):
            raise invalid_input("networks", networks, f"'{networks}' is not of type 'array'")
        if networks == "none":
            return [], None
    if not networks or networks == "auto":
        if len(known) > 1:
            raise RefusalError(409, "Multiple possible networks found, use a Network ID to be more specific.")
        return list(known), None
    for network in networks:
        if "port" in network:
            return [], _wish_port(call, network["port"])
        wanted = network.get("uuid")
        if not UUID.fullmatch(str(wanted)):
            raise RefusalError(400, f"Bad networks format: network uuid is not in proper format ({wanted})")
        if wanted not in (*known, call.cloud.public_network):
            raise RefusalError(400, f"Network {wanted} could not be found.")
    return [network["uuid"] for network in networks], None


def _wish_port(call: Call, wanted: str) -> Port:
    port = call.cloud.ports.get(wanted)
    if port is None or port.project != call.project:
        raise RefusalError(400, f"Port {wanted} could not be found.")
    if port.device:
        raise RefusalError(409, f"Port {wanted} is still in use.")
    return port


def _check_quota(call: Call, flavor: Flavor) -> None:
    try:
        call.cloud.check_quota(call.project, flavor)
    except QuotaError as err:
        raise RefusalError(403, str(err)) from None
