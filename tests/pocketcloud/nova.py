"""Nova 2.1 to 2.96: lists of servers, calls on one server, and the table of all routes."""

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from tests.pocketcloud.httpd import NEWEST, Answer, Call, RefusalError, Routes, not_found
from tests.pocketcloud.keystone import project_name
from tests.pocketcloud.neutron import describe_port
from tests.pocketcloud.novacreate import checked_metadata, create_server, invalid_input
from tests.pocketcloud.novarest import REST
from tests.pocketcloud.novaviews import console_text, describe_server, nova_links
from tests.pocketcloud.records import Image, Server, VolumeSnapshot, new_id

LARGEST_PAGE = 1000
MICROVERSION = ".".join(map(str, NEWEST))
SORT_KEYS: dict[str, Callable[[Server], Any]] = {
    "created_at": lambda server: server.created,
    "display_name": lambda server: server.name,
    "launched_at": lambda server: server.launched or 0,
    "updated_at": lambda server: server.updated,
    "uuid": lambda server: server.id,
    "vm_state": lambda server: server.vm_state,
    "task_state": lambda server: server.task_state or "",
    "key_name": lambda server: server.key_name or "",
}
LIST_WORDS = {  # the parameters of 2.75 and later, which refuse others; earlier versions ignore them
    "limit", "marker", "sort_key", "sort_dir", "all_tenants", "changes-since", "changes-before", "metadata", "deleted",
    "name", "status", "image", "flavor", "ip", "ip6", "tags", "tags-any", "not-tags", "not-tags-any", "locked", "host",
    "reservation_id", "project_id", "tenant_id", "user_id", "availability_zone", "key_name", "uuid", "description",
    "vm_state", "task_state", "power_state", "config_drive", "hostname", "access_ip_v4", "instance_name",
}  # fmt: skip


def _versions(call: Call) -> Answer:
    version = {
        "id": "v2.1",
        "status": "CURRENT",
        "version": MICROVERSION,
        "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": f"{call.base}/compute/v2.1/"}],
    }
    return Answer(200, {"versions": [version]} if call.unversioned else {"version": version})


def _find(call: Call) -> Server:
    server = call.cloud.servers.get(call.args["id"])
    if server is None or server.project != call.project:
        raise not_found(f"Instance {call.args['id']} could not be found.")
    return server


# Lists


def _list(call: Call, *, detailed: bool) -> Answer:
    _check_list_words(call, detailed=detailed)
    with call.cloud.lock:
        found = _sorted(call, _matching(call, call.cloud.list_servers(call.project)))
        page, more = _page(call, found)
        servers = [describe_server(call, s) if detailed else _brief(call, s) for s in page]
    answer: dict[str, Any] = {"servers": servers}
    if more:
        path = "/servers/detail" if detailed else "/servers"
        limit = f"limit={call.first('limit')}&" if call.first("limit") else ""
        href = f"{call.base}/compute/v2.1{path}?{limit}marker={page[-1].id}"
        answer["servers_links"] = [{"rel": "next", "href": href}]
    return Answer(200, answer)


def _brief(call: Call, server: Server) -> dict[str, Any]:
    return {"id": server.id, "name": server.name, "links": nova_links(call, "servers", server.id)}


def _check_list_words(call: Call, *, detailed: bool) -> None:
    strange = sorted(set(call.query) - LIST_WORDS)
    if strange and call.microversion >= (2, 75):
        raise RefusalError(400, f"{strange[0]!r} does not match any of the regexes: '^_'")
    if (call.first("all_tenants") or "0").lower() in ("1", "true"):
        policy = f"os_compute_api:servers:{'detail' if detailed else 'index'}:get_all_tenants"
        raise RefusalError(403, f"Policy doesn't allow {policy} to be performed.")
    if (call.first("status") or "").upper() == "DELETED":
        raise RefusalError(403, "Only administrators may list deleted instances")
    limit, since, name = (call.first(word) or "" for word in ("limit", "changes-since", "name"))
    if not re.fullmatch("[0-9]*", limit):
        raise _invalid_query("limit", limit, "does not match '^[0-9]*$'")
    if since and _moment(since) is None:
        raise _invalid_query("changes-since", since, "is not a 'date-time'")
    try:
        re.compile(name)
    except re.error:
        raise _invalid_query("name", name, "is not a 'regex'") from None
    for key in call.query.get("sort_key", []):
        if key not in SORT_KEYS:
            raise _invalid_query("sort_key", key, f"is not one of {sorted(SORT_KEYS)}")


def _invalid_query(name: str, value: str, reason: str) -> RefusalError:
    return RefusalError(400, f"Invalid input for query parameters {name}. Value: {value}. {value!r} {reason}")


def _moment(text: str) -> float | None:
    """Return a time as Unix seconds, in UTC if it has no zone; None if it is not a time."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _matching(call: Call, servers: list[Server]) -> list[Server]:
    """Return the servers that the query asks for."""
    tests: dict[str, Callable[[Server, str], bool]] = {
        "uuid": lambda server, value: server.id == value,
        "name": lambda server, value: re.search(value, server.name) is not None,
        "status": lambda server, value: server.status == value.upper(),
        "image": lambda server, value: server.image == value,
        "flavor": lambda server, value: server.flavor.id == value,
        "ip": lambda server, value: server.address is not None and re.search(value, server.address) is not None,
    }
    if call.microversion >= (2, 26):
        tests |= dict.fromkeys(("tags", "tags-any"), lambda _server, _value: False)  # no server here has tags
    if call.microversion >= (2, 73):
        tests["locked"] = lambda _, value: value.lower() in ("false", "0")
    if call.microversion >= (2, 83):
        tests["key_name"] = lambda server, value: server.key_name == value
    since = _moment(call.first("changes-since") or "")
    asked = [(test, call.query[name]) for name, test in tests.items() if name in call.query]
    return [server for server in servers if (since is None or server.updated >= since)
            and all(any(test(server, value) for value in values) for test, values in asked)]


def _sorted(call: Call, found: list[Server]) -> list[Server]:
    """Return the servers sorted by the keys asked for; without any, in the order they come in, newest first."""
    keys, ways = call.query.get("sort_key", []), call.query.get("sort_dir", [])
    for place, key in reversed(list(enumerate(keys))):
        way = ways[place] if place < len(ways) else "desc"
        found = sorted(found, key=SORT_KEYS[key], reverse=way == "desc")
    return found


def _page(call: Call, found: list[Server]) -> tuple[list[Server], bool]:
    marker, start = call.first("marker"), 0
    if marker:
        places = [place for place, server in enumerate(found) if server.id == marker]
        if not places:
            raise RefusalError(400, f"marker [{marker}] not found")
        start = places[0] + 1
    limit = min(int(call.first("limit") or LARGEST_PAGE), LARGEST_PAGE)
    page = found[start : start + limit]
    return page, len(page) == limit > 0


# One server


def _show(call: Call) -> Answer:
    with call.cloud.lock:
        return Answer(200, {"server": describe_server(call, _find(call))})


def _rename(call: Call) -> Answer:
    with call.cloud.lock:
        server = _find(call)
        server.name = call.json("server").get("name", server.name)
        return Answer(200, {"server": describe_server(call, server)})


def _delete(call: Call) -> Answer:
    with call.cloud.lock:
        call.cloud.delete_server(_find(call))
    return Answer(204)


def _show_metadata(call: Call) -> Answer:
    with call.cloud.lock:
        return Answer(200, {"metadata": dict(_find(call).metadata)})


def _update_metadata(call: Call) -> Answer:
    metadata = checked_metadata(call.json("metadata"))
    with call.cloud.lock:
        server = _find(call)
        server.metadata = metadata if call.method == "PUT" else checked_metadata(server.metadata | metadata)
        return Answer(200, {"metadata": dict(server.metadata)})


def _show_metadata_item(call: Call) -> Answer:
    with call.cloud.lock:
        metadata, key = _find(call).metadata, call.args["key"]
        if key not in metadata:
            raise not_found("Metadata item was not found")
        return Answer(200, {"meta": {key: metadata[key]}})


def _set_metadata_item(call: Call) -> Answer:
    meta = checked_metadata(call.json("meta"))
    with call.cloud.lock:
        _find(call).metadata.update(meta)
    return Answer(200, {"meta": meta})


def _delete_metadata_item(call: Call) -> Answer:
    with call.cloud.lock:
        if _find(call).metadata.pop(call.args["key"], None) is None:
            raise not_found("Metadata item was not found")
    return Answer(204)


def _interfaces(call: Call) -> Answer:
    with call.cloud.lock:
        server = _find(call)
        ports = [describe_port(call, port) for port in call.cloud.ports.values() if port.device == server.id]
    attachments = [
        {
            "port_id": port["id"],
            "port_state": port["status"],
            "net_id": port["network_id"],
            "mac_addr": port["mac_address"],
            "fixed_ips": port["fixed_ips"],
        }
        for port in ports
    ]
    return Answer(200, {"interfaceAttachments": attachments})


def _server_groups_of(call: Call) -> Answer:
    with call.cloud.lock:
        _find(call)
    group = {"id": call.cloud.group, "name": "default", "description": "Default security group", "rules": []}
    return Answer(200, {"security_groups": [group | {"tenant_id": call.project}]})


def _volumes_of(call: Call) -> Answer:
    with call.cloud.lock:
        _find(call)
    return Answer(200, {"volumeAttachments": []})


# Actions


def _act(call: Call) -> Answer:
    wish = call.json()
    if not isinstance(wish, dict) or len(wish) != 1:
        raise RefusalError(400, "Malformed request body")
    (action,) = wish
    if action not in ACTIONS:
        raise RefusalError(400, f"There is no such action: {action}")
    with call.cloud.lock:
        return ACTIONS[action](call, _find(call), wish[action])


def _check_host(server: Server) -> None:
    if not server.hosted:
        raise RefusalError(409, f"Instance {server.id} is not ready")


def _check_state(server: Server, action: str, *statuses: str) -> None:
    if server.status not in statuses:
        message = f"Cannot '{action}' instance {server.id} while it is in vm_state {server.vm_state}"
        raise RefusalError(409, message)
    if server.task_state:
        message = f"Cannot '{action}' instance {server.id} while it is in task_state {server.task_state}"
        raise RefusalError(409, message)


def _stop(call: Call, server: Server, _wish: Any) -> Answer:
    _check_host(server)
    _check_state(server, "stop", "ACTIVE", "ERROR")
    call.cloud.stop_server(server)
    return Answer(202)


def _start(call: Call, server: Server, _wish: Any) -> Answer:
    _check_host(server)
    _check_state(server, "start", "SHUTOFF")
    call.cloud.start_server(server)
    return Answer(202)


def _reboot(call: Call, server: Server, wish: Any) -> Answer:
    if not isinstance(wish, dict) or wish.get("type", "").upper() not in ("SOFT", "HARD"):
        raise invalid_input("reboot", wish, "'type' is a required property")
    hard = wish["type"].upper() == "HARD"
    _check_state(server, "reboot", "ACTIVE", "UNKNOWN", *(("SHUTOFF", "ERROR") if hard else ()))
    call.cloud.reboot_server(server, hard=hard)
    return Answer(202)


def _console(call: Call, server: Server, wish: Any) -> Answer:
    wanted = (wish or {}).get("length")
    if wanted is not None and not re.fullmatch("-?[0-9]+", str(wanted)):
        raise invalid_input("length", wanted, f"{wanted!r} does not match '^-?[0-9]+$'")
    _check_host(server)
    lines = console_text(call.cloud, server).split("\n")  # as in Nova, the rest after the last newline counts
    length = len(lines) if wanted is None or int(wanted) < 0 else int(wanted)
    return Answer(200, {"output": "\n".join(lines[-length:] if length else [])})


def _create_image(call: Call, server: Server, wish: Any) -> Answer:
    if not isinstance(wish, dict) or not wish.get("name"):
        raise invalid_input("createImage", wish, "'name' is a required property")
    metadata = checked_metadata(wish.get("metadata", {}))
    _check_state(server, "createImage", "ACTIVE", "SHUTOFF", "PAUSED", "SUSPENDED")
    source = call.cloud.images.get(server.image)
    image = Image(new_id(), wish["name"], server.project, min_disk=server.flavor.disk)
    inherited = {k: v for k, v in (source.properties if source else {}).items() if not k.startswith("image_")}
    image.properties = inherited | {
        "base_image_ref": inherited.get("base_image_ref", server.image),
        "boot_roles": "reader,member",
        "image_location": "snapshot",
        "image_type": "snapshot",
        "instance_uuid": server.id,
        "owner_id": server.project,
        "owner_project_name": project_name(call.cloud, server.project),
        "owner_user_name": project_name(call.cloud, server.project),
        "user_id": call.user,
        **metadata,
    }
    if server.volume in call.cloud.volumes:
        _add_volume_snapshot(call, server, image)
    call.cloud.snapshot_server(server, image)
    if call.microversion >= (2, 45):
        return Answer(202, {"image_id": image.id})
    return Answer(202, None, {"Location": f"{call.base}/image//images/{image.id}"})


def _add_volume_snapshot(call: Call, server: Server, image: Image) -> None:
    """Make a snapshot of the server's volume, and let the image stand for it."""
    volume = call.cloud.volumes[str(server.volume)]
    snapshot = VolumeSnapshot(new_id(), server.project, volume.id, volume.size, f"snapshot for {image.name}", image.id)
    call.cloud.volume_snapshots[snapshot.id] = snapshot
    device = {"source_type": "snapshot", "destination_type": "volume", "snapshot_id": snapshot.id, "boot_index": 0,
              "volume_size": volume.size, "delete_on_termination": True, "device_name": "/dev/vda"}
    image.properties |= {"block_device_mapping": json.dumps([device]), "bdm_v2": "True", "root_device_name": "/dev/vda"}


ACTIONS: dict[str, Callable[[Call, Server, Any], Answer]] = {
    "createImage": _create_image,
    "os-getConsoleOutput": _console,
    "os-start": _start,
    "os-stop": _stop,
    "reboot": _reboot,
}


ROUTES = Routes(
    [
        ("GET", "/", _versions),
        ("GET", "/servers", lambda call: _list(call, detailed=False)),
        ("POST", "/servers", create_server),
        ("GET", "/servers/detail", lambda call: _list(call, detailed=True)),
        ("GET", "/servers/{id}", _show),
        ("PUT", "/servers/{id}", _rename),
        ("DELETE", "/servers/{id}", _delete),
        ("POST", "/servers/{id}/action", _act),
        ("GET", "/servers/{id}/metadata", _show_metadata),
        ("PUT", "/servers/{id}/metadata", _update_metadata),
        ("POST", "/servers/{id}/metadata", _update_metadata),
        ("GET", "/servers/{id}/metadata/{key}", _show_metadata_item),
        ("PUT", "/servers/{id}/metadata/{key}", _set_metadata_item),
        ("DELETE", "/servers/{id}/metadata/{key}", _delete_metadata_item),
        ("GET", "/servers/{id}/os-interface", _interfaces),
        ("GET", "/servers/{id}/os-security-groups", _server_groups_of),
        ("GET", "/servers/{id}/os-volume_attachments", _volumes_of),
        *REST,
    ],
    public=("/",),
)
