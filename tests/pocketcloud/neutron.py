"""Neutron v2: networks, ports, floating IPs, one security group."""

import time
from collections.abc import Callable
from typing import Any

from tests.pocketcloud.httpd import Answer, Call, RefusalError, Routes, not_found
from tests.pocketcloud.records import FloatingIP, Port, new_id, stamp

EXTENSIONS = (
    "external-net",
    "router",
    "security-group",
    "standard-attr-tag",
    "standard-attr-description",
    "quotas",
    "quota_details",
    "project-id",
    "revision-if-match",
)
LIST_WORDS = {
    "limit", "marker", "page_reverse", "fields", "sort_key", "sort_dir", "tags", "tags-any", "not-tags", "not-tags-any",
}  # fmt: skip
OWNED = {
    "id", "name", "tenant_id", "project_id", "status", "description", "revision_number", "created_at", "updated_at",
}  # fmt: skip
KNOWN_FIELDS = {  # fields to filter by; others are refused
    "networks": OWNED | {
        "admin_state_up", "shared", "router:external", "is_default", "mtu", "provider:network_type",
        "provider:physical_network", "provider:segmentation_id", "ipv4_address_scope", "ipv6_address_scope",
        "port_security_enabled", "subnets", "availability_zone_hints",
    },
    "ports": OWNED | {
        "admin_state_up", "binding:host_id", "device_id", "device_owner", "fixed_ips", "ip_allocation", "mac_address",
        "network_id", "port_security_enabled", "security_groups", "binding:vnic_type",
    },
    "floatingips": OWNED | {
        "floating_ip_address", "floating_network_id", "router_id", "port_id", "fixed_ip_address",
    },
}  # fmt: skip


def _versions(call: Call) -> Answer:
    version = {"id": "v2.0", "status": "CURRENT", "links": [{"rel": "self", "href": f"{call.base}/network/v2.0/"}]}
    return Answer(200, {"versions": [version]} if call.unversioned else {"resources": []})


def _filtered(call: Call, name: str, found: list[dict[str, Any]]) -> Answer:
    fields = KNOWN_FIELDS.get(name)
    strange = sorted(set(call.query) - LIST_WORDS - fields) if fields else []
    if strange:
        raise RefusalError(400, f"{strange} is invalid attribute for filtering")
    kept = [one for one in found if all(_fits(one, key, values) for key, values in call.query.items())]
    return Answer(200, {name: kept})


def _fits(one: dict[str, Any], key: str, values: list[str]) -> bool:
    if key in LIST_WORDS or key not in one:
        return True
    if key == "fixed_ips":
        known = {f"ip_address={i['ip_address']}" for i in one[key]} | {f"subnet_id={i['subnet_id']}" for i in one[key]}
        return set(values) <= known
    if isinstance(one[key], bool):
        return values[0].lower() in (("true", "1") if one[key] else ("false", "0"))
    return ("" if one[key] is None else str(one[key])) in values


# Networks and subnets


def _networks(call: Call) -> list[dict[str, Any]]:
    cloud = call.cloud
    subnets = {cloud.private_network: cloud.private_subnet, cloud.second_network: cloud.second_subnet}
    inner = [_network(call, ident, name, subnets[ident], external=False) for ident, name in cloud.networks().items()]
    return [*inner, _network(call, cloud.public_network, "public", cloud.public_subnet, external=True)]


def _network(call: Call, network: str, name: str, subnet: str, *, external: bool) -> dict[str, Any]:
    return {
        "id": network,
        "name": name,
        "tenant_id": call.cloud.other_project,
        "project_id": call.cloud.other_project,
        "admin_state_up": True,
        "mtu": 1500,
        "status": "ACTIVE",
        "subnets": [subnet],
        "shared": not external,
        "router:external": external,
        "is_default": external,
        "availability_zones": ["nova"],
        "availability_zone_hints": [],
        "ipv4_address_scope": None,
        "ipv6_address_scope": None,
        "description": "",
        "port_security_enabled": True,
        "tags": [],
        "revision_number": 1,
    }


def _subnets(call: Call) -> list[dict[str, Any]]:
    cloud = call.cloud
    names = cloud.networks()
    places = [
        (cloud.private_subnet, cloud.private_network, "private-subnet", cloud.fixed),
        (cloud.public_subnet, cloud.public_network, "public-subnet", cloud.public),
    ]
    if cloud.second_network in names:
        places.append((cloud.second_subnet, cloud.second_network, f"{names[cloud.second_network]}-subnet", cloud.fixed))
    return [
        {
            "id": subnet,
            "name": name,
            "network_id": network,
            "tenant_id": cloud.other_project,
            "project_id": cloud.other_project,
            "ip_version": 4,
            "cidr": place.cidr,
            "gateway_ip": place.gateway,
            "enable_dhcp": False,
            "allocation_pools": [],
            "dns_nameservers": [],
            "host_routes": [],
            "description": "",
            "tags": [],
        }
        for subnet, network, name, place in places
    ]


def _group(call: Call) -> dict[str, Any]:
    owner = {"tenant_id": call.project, "project_id": call.project}
    rules = [
        {"id": new_id(), "direction": direction, "ethertype": "IPv4", "protocol": None, "port_range_min": None,
         "port_range_max": None, "remote_ip_prefix": None, "remote_group_id": None,
         "security_group_id": call.cloud.group, **owner}
        for direction in ("egress", "ingress")
    ]  # fmt: skip
    return {
        "id": call.cloud.group,
        "name": "default",
        "description": "Default security group",
        "stateful": True,
        "security_group_rules": rules,
        "tags": [],
        **owner,
    }


# Ports


def describe_port(call: Call, port: Port) -> dict[str, Any]:
    """Return the port as Neutron shows it."""
    cloud, private = call.cloud, port.network == "private"
    subnet = cloud.private_subnet if private else cloud.second_subnet
    return {
        "id": port.id,
        "name": port.name,
        "network_id": cloud.private_network if private else cloud.second_network,
        "tenant_id": port.project,
        "project_id": port.project,
        "mac_address": port.mac,
        "admin_state_up": True,
        "status": "ACTIVE" if port.device else "DOWN",
        "device_id": port.device,
        "device_owner": "compute:nova" if port.device else "",
        "fixed_ips": [{"subnet_id": subnet, "ip_address": port.address}],
        "allowed_address_pairs": [],
        "extra_dhcp_opts": [],
        "security_groups": [call.cloud.group],
        "description": "",
        "binding:vnic_type": "normal",
        "port_security_enabled": True,
        "tags": [],
        "created_at": stamp(port.created),
        "updated_at": stamp(port.created),
        "revision_number": 1,
    }


def _ports(call: Call) -> list[dict[str, Any]]:
    return [describe_port(call, port) for port in call.cloud.ports.values() if port.project == call.project]


def _create_port(call: Call) -> Answer:
    wish = call.json("port")
    network = call.cloud.networks().get(wish.get("network_id"))
    if network is None:
        raise not_found(f"Network {wish.get('network_id')} could not be found.", "NetworkNotFound")
    with call.cloud.lock:
        port = call.cloud.add_port(call.project, wish.get("name", ""), network=network)
        return Answer(201, {"port": describe_port(call, port)})


def _delete_port(call: Call) -> Answer:
    with call.cloud.lock:
        port = call.cloud.ports.get(call.args["id"])
        if port is None or port.project != call.project:
            raise not_found(f"Port {call.args['id']} could not be found.", "PortNotFound")
        call.cloud.drop_port(port)
    return Answer(204)


# Floating IPs


def describe_floating(call: Call, floating: FloatingIP) -> dict[str, Any]:
    """Return the floating IP as Neutron shows it."""
    port = call.cloud.ports.get(floating.port or "")
    return {
        "id": floating.id,
        "tenant_id": floating.project,
        "project_id": floating.project,
        "floating_ip_address": floating.address,
        "floating_network_id": call.cloud.public_network,
        "router_id": call.cloud.public_subnet if port else None,
        "port_id": floating.port,
        "fixed_ip_address": port.address if port else None,
        "status": "ACTIVE" if port else "DOWN",
        "description": floating.description,
        "port_details": describe_port(call, port) if port else None,
        "dns_domain": "",
        "dns_name": "",
        "qos_policy_id": None,
        "tags": floating.tags,
        "port_forwardings": [],
        "created_at": stamp(floating.created),
        "updated_at": stamp(floating.updated),
        "revision_number": floating.revision,
    }


def _floating_ips(call: Call) -> list[dict[str, Any]]:
    mine = [f for f in call.cloud.floating_ips.values() if f.project == call.project]
    return [describe_floating(call, floating) for floating in mine]


def _find_floating(call: Call) -> FloatingIP:
    floating = call.cloud.floating_ips.get(call.args["id"])
    if floating is None or floating.project != call.project:
        raise not_found(f"Floating IP {call.args['id']} could not be found", "FloatingIPNotFound")
    return floating


def _checked_port(call: Call, wish: dict[str, Any], own: FloatingIP) -> str | None:
    wanted: str | None = wish.get("port_id")
    if wanted is None:
        return None
    port = call.cloud.ports.get(wanted)
    if port is None or port.project != call.project:
        raise not_found(f"Port {wanted} could not be found.", "PortNotFound")
    if wish.get("fixed_ip_address") not in (None, port.address):
        message = f"Port {wanted} does not have fixed ip {wish['fixed_ip_address']}."
        raise RefusalError(400, f"Bad floatingip request: {message}", "BadRequest")
    for floating in call.cloud.floating_ips.values():
        if floating.port == wanted and floating is not own:
            message = (
                f"Cannot associate floating IP {own.address} ({own.id}) with port {wanted} using fixed IP "
                f"{port.address}, as that fixed IP already has a floating IP on external network "
                f"{call.cloud.public_network}."
            )
            raise RefusalError(409, message, "FloatingIPPortAlreadyAssociated")
    return wanted


def _create_floating(call: Call) -> Answer:
    wish, cloud = call.json("floatingip"), call.cloud
    network = wish.get("floating_network_id")
    if network in cloud.networks():
        message = f"Bad floatingip request: Network {network} is not a valid external network."
        raise RefusalError(400, message, "BadRequest")
    if network != cloud.public_network:
        raise not_found(f"Network {network} could not be found.", "NetworkNotFound")
    with cloud.lock:
        mine = sum(f.project == call.project for f in cloud.floating_ips.values())
        if cloud.knobs.floating_quota is not None and mine >= cloud.knobs.floating_quota:
            raise RefusalError(409, "Quota exceeded for resources: ['floatingip'].", "OverQuota")
        floating = FloatingIP(new_id(), call.project, cloud.public.take(), description=wish.get("description") or "")
        try:
            port = _checked_port(call, wish, floating)
        except RefusalError:
            cloud.public.give_back(floating.address)
            raise
        cloud.floating_ips[floating.id] = floating
        if port:
            cloud.bind(floating, port)
        return Answer(201, {"floatingip": describe_floating(call, floating)})


def _update_floating(call: Call) -> Answer:
    wish = call.json("floatingip")
    with call.cloud.lock:
        floating = _find_floating(call)
        wanted = call.headers.get("if-match")
        if wanted not in (None, f"revision_number={floating.revision}"):
            raise RefusalError(412, f"Constrained to {wanted}, but current revision is {floating.revision}",
                               "RevisionNumberConstraintFailed")
        if "port_id" in wish:
            call.cloud.bind(floating, _checked_port(call, wish, floating))
        floating.description = wish.get("description", floating.description)
        floating.revision += 1
        return Answer(200, {"floatingip": describe_floating(call, floating)})


def _delete_floating(call: Call) -> Answer:
    with call.cloud.lock:
        floating = _find_floating(call)
        if floating.port:
            call.cloud.bind(floating, None)
        del call.cloud.floating_ips[floating.id]
        call.cloud.public.give_back(floating.address)
    return Answer(204)


def _set_tags(call: Call) -> Answer:
    tags = call.json("tags")
    with call.cloud.lock:
        floating = _find_floating(call)
        floating.tags, floating.updated = tags, time.time()
    return Answer(200, {"tags": tags})


# The rest


def _extensions(_call: Call) -> list[dict[str, Any]]:
    return [
        {
            "alias": alias,
            "name": alias,
            "description": "",
            "updated": "2016-01-01T00:00:00-00:00",
            "links": [],
            "id": alias,
        }
        for alias in EXTENSIONS
    ]


def _quota(call: Call) -> Answer:
    return Answer(200, {"quota": {name: limit for name, (limit, _) in _quotas(call).items()}})


def _quota_details(call: Call) -> Answer:
    if call.args["id"] != call.project:
        raise RefusalError(403, "User does not have admin privileges: Only admin is authorized to access quotas for "
                                "another project.", "AdminRequired")
    return Answer(200, {"quota": {name: {"limit": limit, "used": used, "reserved": 0}
                                  for name, (limit, used) in _quotas(call).items()}})


def _quotas(call: Call) -> dict[str, tuple[int, int]]:
    """Return limit (-1 for none) and use of each quota."""
    cloud = call.cloud
    with cloud.lock:
        floating = sum(one.project == call.project for one in cloud.floating_ips.values())
        ports = sum(one.project == call.project for one in cloud.ports.values())
    limit = -1 if cloud.knobs.floating_quota is None else cloud.knobs.floating_quota
    return {"floatingip": (limit, floating), "network": (-1, 0), "port": (-1, ports), "router": (-1, 0),
            "security_group": (-1, 1)}


def _lister(name: str, get: Callable[[Call], list[dict[str, Any]]]) -> Callable[[Call], Answer]:
    def handle(call: Call) -> Answer:
        with call.cloud.lock:
            return _filtered(call, name, get(call))

    return handle


def _shower(name: str, get: Callable[[Call], list[dict[str, Any]]], kind: str, text: str) -> Callable[[Call], Answer]:
    def handle(call: Call) -> Answer:
        with call.cloud.lock:
            for one in get(call):
                if one["id"] == call.args["id"]:
                    return Answer(200, {name: one})
        raise not_found(text.format(call.args["id"]), kind)

    return handle


def _groups(call: Call) -> list[dict[str, Any]]:
    return [_group(call)]


ROUTES = Routes(
    [
        ("GET", "/", _versions),
        ("GET", "/networks", _lister("networks", _networks)),
        ("GET", "/networks/{id}", _shower("network", _networks, "NetworkNotFound", "Network {} could not be found.")),
        ("GET", "/subnets", _lister("subnets", _subnets)),
        ("GET", "/subnets/{id}", _shower("subnet", _subnets, "SubnetNotFound", "Subnet {} could not be found.")),
        ("GET", "/security-groups", _lister("security_groups", _groups)),
        ("GET", "/security-groups/{id}",
         _shower("security_group", _groups, "SecurityGroupNotFound", "Security group {} does not exist")),
        ("GET", "/ports", _lister("ports", _ports)),
        ("POST", "/ports", _create_port),
        ("GET", "/ports/{id}", _shower("port", _ports, "PortNotFound", "Port {} could not be found.")),
        ("DELETE", "/ports/{id}", _delete_port),
        ("GET", "/floatingips", _lister("floatingips", _floating_ips)),
        ("POST", "/floatingips", _create_floating),
        ("GET", "/floatingips/{id}",
         _shower("floatingip", _floating_ips, "FloatingIPNotFound", "Floating IP {} could not be found")),
        ("PUT", "/floatingips/{id}", _update_floating),
        ("DELETE", "/floatingips/{id}", _delete_floating),
        ("PUT", "/floatingips/{id}/tags", _set_tags),
        ("GET", "/extensions", _lister("extensions", _extensions)),
        ("GET", "/extensions/{id}", _shower("extension", _extensions, "ExtensionNotFound", "Extension {} not found.")),
        ("GET", "/quotas/{id}", _quota),
        ("GET", "/quotas/{id}/details", _quota_details),
    ],
    public=("/",),
)  # fmt: skip
