"""Machines on volumes of a real Cinder: the volumes come and go with them, whatever is killed in between."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.realcloud.client import RealCloud
from tests.realcloud.configuration import ADMIN, MEMBER
from tests.realcloud.pools import load
from tests.realcloud.seed import connect
from tests.support.contract import waited
from tests.support.pool import Pool, image

LAUNCH, REAP = "devstack-vm-launch.py", "devstack-vm-reap.py"


@pytest.fixture
def user(real: RealCloud) -> Any:
    return connect(real.clouds_yaml, MEMBER)


@pytest.fixture
def pool(real: RealCloud, user: Any, tmp_path: Path) -> Iterator[Pool]:
    """A pool whose machines boot from volumes of the base image; everything left of it is deleted at the end."""
    made = Pool(tmp_path, real)
    load(made, real, image("noble", min_ready=2, boot_from_volume=True, volume_size=2))
    yield made
    for server in user.compute.servers():
        user.compute.delete_server(server)
    waited("an empty cloud", lambda: not list(user.compute.servers()))
    for volume in user.block_storage.volumes():
        user.block_storage.delete_volume(volume)
    waited("no volumes", lambda: not list(user.block_storage.volumes()))


def of_volumes(user: Any) -> dict[str, tuple[str, list[str]]]:
    """Return {machine's row id: (status, servers)} of the volumes that name a machine."""
    return {volume.metadata["devstack-gate-machine"]: (volume.status, [one["server_id"] for one in volume.attachments])
            for volume in user.block_storage.volumes() if "devstack-gate-machine" in volume.metadata}


def test_machines_on_volumes_take_them_along_and_what_has_no_server_is_swept(
        pool: Pool, real: RealCloud, user: Any) -> None:
    admin = connect(real.clouds_yaml, ADMIN)
    project = admin.identity.find_project(MEMBER).id
    storage = user.block_storage
    foreign = storage.create_volume(size=1, name="somebody's")
    marks = pool.marks(machine=77)  # of a launch that was killed before it had a server
    left = storage.create_volume(size=1, name="devstack-noble-one-77", metadata=marks)
    waited("both", lambda: {volume.status for volume in storage.volumes()} == {"available"})
    admin.block_storage.update_quota_set(project, volumes=3)
    try:
        launched = pool.run(LAUNCH, "one", expect=1)
        assert launched.stdout == "one noble: 1 of 2 ready, there was room for 1 more: volumes\n", launched.stderr
    finally:
        admin.block_storage.revert_quota_set(project)
    reaped = pool.run(REAP, "one", expect=0)
    assert "one: deleted 1 volume\n" in reaped.stdout
    waited("its end", lambda: left.id not in [volume.id for volume in storage.volumes()])

    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 2 of 2 ready\n"

    rows = pool.sql("SELECT id, external_id FROM machine")
    assert of_volumes(user) == {str(number): ("in-use", [server]) for number, server in rows}
    assert pool.run(REAP, "one", expect=0).stdout == "one: deleted nothing\n"
    pool.sql("UPDATE machine SET state = 'DELETE'")
    waited("an empty pool", lambda: pool.run(REAP, "one") and not pool.machines())
    waited("only what is not ours", lambda: [volume.id for volume in storage.volumes()] == [foreign.id])
