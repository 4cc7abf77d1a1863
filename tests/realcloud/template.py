"""Make the state that every run starts from: databases with their tables, users, flavors, quotas, one compute host."""

import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.realcloud import configuration, seed
from tests.realcloud.configuration import MEMBER, PASSWORD, REGION, SMALL, database
from tests.realcloud.services import Services

WORKERS = {"nova-conductor", "nova-scheduler", "nova-compute"}
CLOCK_SECONDS = 2.0  # Nova's reports are in whole seconds


def make(state: Path, venv: Path) -> None:
    """Make the state in a new folder; raises ServiceError."""
    services = Services(state, venv)
    try:
        configuration.write(state, venv, services.ports, configuration.NO_MACHINES)
        clouds = state / "clouds.yaml"
        clouds.write_text(configuration.clouds_yaml(services.ports["keystone"], ()))
        services.run_side_by_side(_chains(services.ports["keystone"]))
        _let_readers_go_on(state)
        services.start("keystone")
        services.wait("keystone")
        admin = seed.connect(clouds)
        seed.fill_catalogue(admin, services.ports)
        for name in (MEMBER, SMALL):
            seed.add_project(admin, name, "member")
        began = time.time()
        services.start("placement", "nova")
        services.wait("placement", "nova")
        admin = seed.connect(clouds)  # the catalogue has grown
        wait_for_workers(services, admin, began)
        seed.fill_compute(admin)
        services.run_side_by_side({"hosts": [_nova("cell_v2", "discover_hosts")]})
        clouds.unlink()
    finally:
        services.stop()
    _let_readers_go_on(state)


def wait_for_workers(services: Services, admin: Any, since: float) -> None:
    """Wait until all of Nova has reported since a Unix time; raises ServiceError."""

    def reported() -> bool:
        fresh = {one.binary for one in admin.compute.services() if _since(one, since)}
        return fresh >= WORKERS

    services.wait_until("reports of Nova's conductor, scheduler and compute", reported)


def _since(service: Any, moment: float) -> bool:
    if service.state != "up" or not service.updated_at:
        return False
    updated = datetime.fromisoformat(service.updated_at).replace(tzinfo=UTC)
    return updated.timestamp() > moment - CLOCK_SECONDS


def _chains(keystone_port: int) -> dict[str, Sequence[Sequence[str]]]:
    keystone = ["keystone-manage", "--config-file", "etc/keystone/keystone.conf"]
    bootstrap = ["bootstrap", "--bootstrap-password", PASSWORD, "--bootstrap-region-id", REGION]
    for interface in ("public", "internal", "admin"):
        bootstrap += [f"--bootstrap-{interface}-url", f"http://127.0.0.1:{keystone_port}/v3"]
    whose = ["--keystone-user", "root", "--keystone-group", "root"]
    return {
        "keystone": [
            [*keystone, "db_sync"],
            [*keystone, "fernet_setup", *whose],
            [*keystone, "credential_setup", *whose],
            [*keystone, *bootstrap],
        ],
        "nova": [
            _nova("api_db", "sync"),
            _nova("cell_v2", "map_cell0", "--database_connection", database("nova_cell0")),
            _nova("cell_v2", "create_cell", "--name", "cell1", "--transport-url", "fake:///",
                  "--database_connection", database("nova_cell1")),
            _nova("db", "sync"),
        ],
        "glance": [["glance-manage", "--config-file", "etc/glance/glance-api.conf", "db_sync"]],
        "placement": [["placement-manage", "--config-file", "etc/placement/placement.conf", "db", "sync"]],
        "cinder": [["cinder-manage", "--config-file", "etc/cinder/cinder.conf", "db", "sync"]],
        "neutron": [["python", "-B", "-P", "-m", "tests.realcloud.neutrontables"]],
    }


def _nova(*words: str) -> list[str]:
    return ["nova-manage", "--config-file", "etc/nova/nova.conf", *words]


def _let_readers_go_on(state: Path) -> None:
    """Switch all databases to write-ahead logging, and complete their files."""
    for path in (state / "databases").glob("*.db"):
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
