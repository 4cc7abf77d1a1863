"""Fills a new control plane, through its own API."""

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openstack
import openstack.config

from tests.pocketcloud.records import FLAVORS
from tests.realcloud.configuration import ADMIN, PASSWORD, REGION, SERVICE_USER, SMALL

SMALL_QUOTA = 2  # servers
TYPES = {"image": "glance", "placement": "placement", "compute": "nova", "network": "neutron"}
PATHS = {"compute": "/v2.1"}
BASE_IMAGE = "Debian 12"
EMPTY_TAR = bytes(10240)  # an image has only what it adds to the base tree, see driver.py


def connect(clouds: Path, cloud: str = ADMIN) -> Any:
    """Return the client for a cloud."""
    config = openstack.config.OpenStackConfig(config_files=[str(clouds)])
    return openstack.connection.Connection(config=config.get_one(cloud=cloud))


def endpoints(ports: Mapping[str, int]) -> dict[str, str]:
    """Return {service type: URL}."""
    return {kind: f"http://127.0.0.1:{ports[name]}{PATHS.get(kind, '')}" for kind, name in TYPES.items()}


def fill_catalogue(admin: Any, ports: Mapping[str, int]) -> None:
    """Make the entries of the services that always run, except Keystone's, and the services' user."""
    for kind, url in endpoints(ports).items():
        _add_service(admin, TYPES[kind], kind, url)
    add_project(admin, SERVICE_USER, "admin", "service")


def add_block_storage(admin: Any, port: int) -> None:
    """Make Cinder's entry."""
    _add_service(admin, "cinder", "block-storage", f"http://127.0.0.1:{port}/v3/%(project_id)s")


def _add_service(admin: Any, name: str, kind: str, url: str) -> None:
    service = admin.identity.create_service(name=name, type=kind)
    for interface in ("public", "internal"):
        admin.identity.create_endpoint(service_id=service.id, interface=interface, region_id=REGION, url=url)


def move_endpoints(database: Path, ports: Mapping[str, int]) -> None:
    """Set the services' present URLs in the catalogue; Keystone must not be running."""
    urls = {**endpoints(ports), "identity": f"http://127.0.0.1:{ports['keystone']}/v3"}
    with sqlite3.connect(database) as keystone:
        for kind, url in urls.items():
            keystone.execute(
                "UPDATE endpoint SET url = ? WHERE service_id = (SELECT id FROM service WHERE type = ?)", (url, kind)
            )
    keystone.close()


def add_project(admin: Any, name: str, *roles: str) -> None:
    """Make a project, and its user of the same name."""
    identity = admin.identity
    project = identity.create_project(name=name, domain_id="default")
    user = identity.create_user(name=name, password=PASSWORD, domain_id="default", default_project_id=project.id)
    for role in roles:
        identity.assign_project_role_to_user(project, user, identity.find_role(role))


def fill_compute(admin: Any) -> None:
    """Make the flavors, and the small project's quota."""
    for flavor in FLAVORS:
        admin.compute.create_flavor(
            id=flavor.id, name=flavor.name, ram=flavor.ram, disk=flavor.disk, vcpus=flavor.vcpus
        )
    admin.compute.update_quota_set(admin.identity.find_project(SMALL), instances=SMALL_QUOTA)


def add_networks(admin: Any, fixed: str, floating: str) -> None:
    """Make the servers' network, which all projects share, that of floating IPs, and a router between them."""
    private = admin.network.create_network(name="private", is_shared=True)
    subnet = _add_subnet(admin, private, fixed)
    public = admin.network.create_network(
        name="public", is_router_external=True, provider_network_type="flat", provider_physical_network="outside"
    )
    _add_subnet(admin, public, floating)
    router = admin.network.create_router(name="router", external_gateway_info={"network_id": public.id})
    admin.network.add_interface_to_router(router, subnet_id=subnet.id)


def add_base_image(admin: Any) -> None:
    """Make the image that stands for pocketcloud's base tree."""
    admin.image.create_image(
        BASE_IMAGE, data=EMPTY_TAR, disk_format="raw", container_format="bare", visibility="public", wait=True
    )


def _add_subnet(admin: Any, network: Any, cidr: str) -> Any:
    first = cidr.removesuffix(".0.0/16")
    return admin.network.create_subnet(
        name=f"{network.name}-subnet",
        network_id=network.id,
        ip_version=4,
        cidr=cidr,
        is_dhcp_enabled=False,  # Neutron refuses loopback addresses with DHCP
        gateway_ip=f"{first}.0.1",
        allocation_pools=[{"start": f"{first}.0.10", "end": f"{first}.255.245"}],
    )
