"""The services' configuration files and the clients' clouds.yaml."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

PASSWORD = "realcloud"  # of every user; everything listens on loopback only
REGION = "RegionOne"
HOST = "loopback"  # the only compute host
BACKEND = "loopback"  # the only backend for volumes
SERVICE_USER = "service"  # shared by all services
MEMBER, SMALL, ADMIN = "real", "real-small", "real-admin"  # clouds; the first two are also users and projects
DRIVER = "loopback.NamespaceDriver"  # serve.py maps this to tests.realcloud.driver
NO_MACHINES = "fake.FakeDriverWithoutFakeNodes"
FOLDERS = ("etc/nova", "etc/neutron", "etc/keystone", "etc/glance", "etc/placement", "etc/cinder", "databases",
           "images", "staging", "tasks", "nova", "neutron", "cinder", "lock", "floating", "log")

Sections = Mapping[str, Mapping[str, object]]


def write(state: Path, venv: Path, ports: Mapping[str, int], driver: str = DRIVER, nova: Iterable[str] = ()) -> None:
    """Write the files below `state`/etc that the services read at their start.

    `driver`: Nova's; `nova`: further settings of nova.conf, SECTION.OPTION=VALUE.
    """
    for folder in FOLDERS:
        (state / folder).mkdir(parents=True, exist_ok=True)
    identity = f"http://127.0.0.1:{ports['keystone']}/v3"
    for name, sections in (
        ("keystone/keystone.conf", _keystone(state)),
        ("glance/glance-api.conf", _glance(state, venv, identity)),
        ("placement/placement.conf", _placement(identity)),
        ("nova/nova.conf", _with(_nova(state, identity, driver), nova)),
        ("neutron/neutron.conf", _neutron(state, venv, identity)),
        ("neutron/ml2.ini", ML2),
        ("cinder/cinder.conf", _cinder(state, venv, identity, ports["glance"])),
    ):
        (state / "etc" / name).write_text(_ini(sections))
    shutil.copy(venv / "etc/nova/api-paste.ini", state / "etc/nova/api-paste.ini")


def clouds_yaml(port: int, names: Iterable[str]) -> str:
    """Return the clients' configuration: a cloud for each project, and the admin's."""
    lines = ["clouds:"]
    for name in (*names, ADMIN):
        user = "admin" if name == ADMIN else name
        lines += [
            f"  {name}:",
            f"    region_name: {REGION}",
            "    auth:",
            f"      auth_url: http://127.0.0.1:{port}/v3",
            f"      username: {user}",
            f"      password: {PASSWORD}",
            f"      project_name: {user}",
            "      user_domain_name: Default",
            "      project_domain_name: Default",
        ]
    return "\n".join(lines) + "\n"


def database(name: str) -> str:
    """Return a database's URL, relative to the state's folder, where the services run, so that it can be copied."""
    return f"sqlite:///databases/{name}.db?timeout=60"


def _database(name: str) -> dict[str, object]:
    return {"connection": database(name), "sqlite_synchronous": "false"}


def _keystone(state: Path) -> Sections:
    return {
        "database": _database("keystone"),
        "token": {"provider": "fernet", "expiration": 86400},
        "fernet_tokens": {"key_repository": state / "fernet"},
        "credential": {"key_repository": state / "credential"},
        "identity": {"password_hash_rounds": 4},
        "cache": {"enabled": "true", "backend": "dogpile.cache.memory"},
    }


def _glance(state: Path, venv: Path, identity: str) -> Sections:
    return {
        "DEFAULT": {"transport_url": "fake:///", "enabled_backends": "disk:file"},
        "database": _database("glance"),
        "glance_store": {"default_backend": "disk"},
        "disk": {"filesystem_store_datadir": state / "images"},
        "os_glance_staging_store": {"filesystem_store_datadir": state / "staging"},
        "os_glance_tasks_store": {"filesystem_store_datadir": state / "tasks"},
        "image_format": {"require_image_format_match": "false"},  # our images are tar files
        "keystone_authtoken": _token_check(identity),
        "paste_deploy": {"flavor": "keystone", "config_file": venv / "etc/glance/glance-api-paste.ini"},
        "oslo_messaging_notifications": {"driver": "noop"},
    }


def _placement(identity: str) -> Sections:
    return {
        "api": {"auth_strategy": "keystone"},
        "placement_database": _database("placement"),
        "keystone_authtoken": _token_check(identity),
    }


def _nova(state: Path, identity: str, driver: str) -> Sections:
    internal = {**_login(identity), "valid_interfaces": "internal"}
    return {
        "DEFAULT": {
            "host": HOST,
            "my_ip": "127.0.0.1",
            "transport_url": "fake:///",
            "state_path": state / "nova",
            "compute_driver": driver,
            "max_concurrent_builds": 50,
            "max_concurrent_snapshots": 20,
            "default_thread_pool_size": 20,
            "vif_plugging_is_fatal": "false",
            "vif_plugging_timeout": 0,
            "reserved_host_memory_mb": 0,
            "initial_cpu_allocation_ratio": 1.0,
            "initial_ram_allocation_ratio": 1.0,
            "initial_disk_allocation_ratio": 1.0,
            "sync_power_state_interval": -1,
            "heal_instance_info_cache_interval": -1,
            "report_interval": 2,
            "service_down_time": 86400,  # the services can be frozen, see conftest.py
            "rpc_response_timeout": 180,
        },
        "api_database": _database("nova_api"),
        "database": _database("nova_cell1"),
        "keystone_authtoken": _token_check(identity),
        "service_user": {**_login(identity), "send_service_user_token": "true"},
        "placement": internal,
        "neutron": internal,
        "glance": internal,
        "cinder": {"catalog_info": "block-storage::internalURL", "os_region_name": REGION},
        "scheduler": {"workers": 1, "discover_hosts_in_cells_interval": -1},
        "conductor": {"workers": 1},
        "filter_scheduler": {
            "available_filters": "tests.realcloud.driver.filters",
            "enabled_filters": "ComputeFilter,KnobFilter",
        },
        "quota": {"instances": -1, "cores": -1, "ram": -1, "key_pairs": -1},
        "vnc": {"enabled": "false"},
        "cache": {"enabled": "true", "backend": "oslo_cache.dict"},
        "oslo_concurrency": {"lock_path": state / "lock"},
        "oslo_messaging_notifications": {"driver": "noop"},
    }


def _neutron(state: Path, venv: Path, identity: str) -> Sections:
    things = ("network", "subnet", "port", "router", "floatingip", "security_group", "security_group_rule")
    return {
        "DEFAULT": {
            "transport_url": "fake:///",
            "core_plugin": "ml2",
            "service_plugins": "router",
            "state_path": state / "neutron",
            "api_paste_config": venv / "etc/neutron/api-paste.ini",
            "dhcp_agent_notification": "false",
            "send_events_interval": 1,
            "notify_nova_on_port_status_changes": "false",
            "rpc_workers": 0,
        },
        "database": _database("neutron"),
        "keystone_authtoken": _token_check(identity),
        "nova": {**_login(identity), "endpoint_type": "internal"},
        "quotas": dict.fromkeys(("default_quota", *(f"quota_{thing}" for thing in things)), -1),
        "oslo_concurrency": {"lock_path": state / "lock"},
        "oslo_messaging_notifications": {"driver": "noop"},
    }


def _cinder(state: Path, venv: Path, identity: str, glance_port: int) -> Sections:
    return {
        "DEFAULT": {
            "host": HOST,
            "my_ip": "127.0.0.1",
            "transport_url": "fake:///",
            "state_path": state / "cinder",
            "api_paste_config": venv / "etc/cinder/api-paste.ini",
            "resource_query_filters_file": venv / "etc/cinder/resource_filters.json",
            "auth_strategy": "keystone",
            "glance_api_servers": f"http://127.0.0.1:{glance_port}",
            "enabled_backends": BACKEND,
            "service_down_time": 86400,  # nothing reports for the service
            "quota_volumes": -1,
            "quota_snapshots": -1,
            "quota_gigabytes": -1,
            "rpc_response_timeout": 180,
        },
        BACKEND: {"volume_driver": "tests.realcloud.volumes.ImageVolumes", "volume_backend_name": BACKEND},
        "database": _database("cinder"),
        "keystone_authtoken": _token_check(identity),
        "service_user": {**_login(identity), "send_service_user_token": "true"},
        "coordination": {"backend_url": f"file://{state}/cinder"},
        "oslo_concurrency": {"lock_path": state / "lock"},
        "oslo_messaging_notifications": {"driver": "noop"},
    }


ML2: Sections = {
    "ml2": {
        "type_drivers": "local,flat",
        "tenant_network_types": "local",
        "mechanism_drivers": "loopback",  # by the entry point that environment.py writes
        "extension_drivers": "port_security",
    },
    "ml2_type_flat": {"flat_networks": "*"},
    "securitygroup": {"enable_security_group": "true"},
}


def _login(identity: str) -> dict[str, object]:
    return {
        "auth_type": "password",
        "auth_url": identity,
        "username": SERVICE_USER,
        "password": PASSWORD,
        "project_name": SERVICE_USER,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
        "region_name": REGION,
    }


def _token_check(identity: str) -> dict[str, object]:
    return {
        **_login(identity),
        "www_authenticate_uri": identity,
        "interface": "internal",
        "token_cache_time": 600,
        "service_token_roles": "service",
        "service_token_roles_required": "true",
    }


def _with(sections: Sections, settings: Iterable[str]) -> Sections:
    """Return the sections with further settings, SECTION.OPTION=VALUE."""
    found: dict[str, dict[str, object]] = {name: dict(options) for name, options in sections.items()}
    for setting in settings:
        place, _, value = setting.partition("=")
        section, _, option = place.partition(".")
        found.setdefault(section, {})[option] = value
    return found


def _ini(sections: Sections) -> str:
    lines = []
    for section, options in sections.items():
        lines += [f"[{section}]", *(f"{name} = {value}" for name, value in options.items()), ""]
    return "\n".join(lines)
