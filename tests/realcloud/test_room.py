"""What a real Nova, Neutron and Glance refuse, or still show after it is gone; the pool gets its machines anyway.

This cloud deletes softly and returns lists in pages of six.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from cloud.nova import Cloud, CloudConfigError, RefusedError
from tests.realcloud.client import RealCloud
from tests.realcloud.configuration import ADMIN, MEMBER
from tests.realcloud.pools import load
from tests.realcloud.seed import connect
from tests.support.contract import waited
from tests.support.pool import Pool, image
from vmdatabase import Provider

LAUNCH, REAP = "devstack-vm-launch.py", "devstack-vm-reap.py"
PAGE = 6


@pytest.fixture(scope="module")
def paged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealCloud]:
    settings = (f"api.max_limit={PAGE}", "DEFAULT.reclaim_instance_interval=7200")
    options = [word for setting in settings for word in ("--nova", setting)]
    with RealCloud(tmp_path_factory.mktemp("paged"), *options) as running:
        yield running


@pytest.fixture
def admin(paged: RealCloud) -> Any:
    return connect(paged.clouds_yaml, ADMIN)


@pytest.fixture
def user(paged: RealCloud) -> Any:
    return connect(paged.clouds_yaml, MEMBER)


@pytest.fixture
def pool(paged: RealCloud, user: Any, tmp_path: Path) -> Iterator[Pool]:
    """A pool whose machines need no image build; its servers and floating IPs are deleted at the end."""
    yield Pool(tmp_path, paged)
    paged.knobs()
    for server in user.compute.servers():
        user.compute.delete_server(server)
    waited("an empty cloud", lambda: not list(user.compute.servers()))
    for floating in user.network.ips():
        user.network.delete_ip(floating)


@contextmanager
def flavors(admin: Any, *sizes: tuple[str, int, int]) -> Iterator[None]:
    """Add flavors (name, MB, GB) for the length of the context."""
    made = [admin.compute.create_flavor(name=name, ram=ram, vcpus=1, disk=disk) for name, ram, disk in sizes]
    try:
        yield
    finally:
        for flavor in made:
            admin.compute.delete_flavor(flavor)


def test_a_flavor_without_a_disk_is_not_taken_nor_one_missed_on_a_later_page(
        pool: Pool, paged: RealCloud, admin: Any, user: Any) -> None:
    many = [(f"a{number}", 64, 0) for number in range(PAGE)]  # their names put them on the first page
    with flavors(admin, *many, ("diskless.512", 512, 0), ("z.768", 768, 1)):
        load(pool, paged, image("noble", min_ready=1, min_ram=512), image("large", min_ready=1, min_ram=700))

        result = pool.run(LAUNCH, "one", expect=0)

        assert result.stdout == "one large: 1 of 1 ready\none noble: 1 of 1 ready\n"
        found = {server.name.split("-")[1]: server.flavor.name for server in user.compute.servers()}
        assert found == {"noble": "m1.tiny", "large": "z.768"}


def test_of_two_network_cards_the_one_that_leads_outside_gets_the_floating_ip(
        pool: Pool, paged: RealCloud, admin: Any) -> None:
    storage = admin.network.create_network(name="storage", is_shared=True)
    admin.network.create_subnet(network_id=storage.id, ip_version=4, cidr="10.99.0.0/24", is_dhcp_enabled=False,
                                gateway_ip=None)
    outside = admin.network.create_network(name="another-outside", is_router_external=True,
                                           provider_network_type="flat", provider_physical_network="elsewhere")
    admin.network.create_subnet(network_id=outside.id, ip_version=4, cidr="10.98.0.0/24", is_dhcp_enabled=False)
    load(pool, paged, image("noble", min_ready=3), networks=["private", "storage"], floating_ips="always")

    result = pool.run(LAUNCH, "one", expect=0)

    assert result.stdout == "one noble: 3 of 3 ready\n", result.stderr
    assert "failed" not in result.stderr


def test_no_server_is_made_without_a_floating_ip_and_a_free_one_is_borrowed(
        pool: Pool, paged: RealCloud, admin: Any, user: Any) -> None:
    project = admin.identity.find_project(MEMBER)
    public = user.network.find_network("public").id
    free, named = (user.network.create_ip(floating_network_id=public, description=text) for text in ("", "mail"))
    admin.network.update_quota(project.id, floating_ips=3)
    try:
        load(pool, paged, image("noble", min_ready=4), floating_ips="always")

        result = pool.run(LAUNCH, "one", expect=1)

        said = "one noble: 2 of 4 ready, there was room for 2 more: floating IPs\n"
        assert result.stdout == said, result.stderr
        assert len(pool.machines()) == 2
        assert len(list(user.compute.servers())) == 2
        assert user.network.get_ip(free.id).description.endswith(" borrowed")
        pool.sql("UPDATE machine SET state = 'DELETE'")
        waited("an empty pool", lambda: pool.run(REAP, "one") and not pool.machines())
        assert [(ip.id, ip.description, ip.port_id) for ip in sorted(user.network.ips(), key=lambda ip: ip.description)
                ] == [(free.id, "", None), (named.id, "mail", None)]
    finally:
        admin.network.update_quota(project.id, floating_ips=-1)


@pytest.fixture
def ours(paged: RealCloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    """The provider as the scripts use it."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(paged.clouds_yaml))
    values = {"name": "one", "cloud": MEMBER, "networks": "[]", "boot_timeout": 30, "floating_ips": "always",
              "address": "public-v4"}
    return Cloud(Provider(**values), "11111111-2222-3333-4444-555555555555")


def test_a_floating_ip_that_somebody_changed_a_moment_ago_is_not_borrowed(pool: Pool, ours: Cloud, user: Any) -> None:
    made = user.network.create_ip(floating_network_id=user.network.find_network("public").id)
    before = made.revision_number
    user.network.update_ip(made, description="taken")

    with pytest.raises(RefusedError):
        ours.ask("borrow", lambda: ours.connection.network.update_ip(made.id, if_revision=before, description="mine"))

    assert user.network.get_ip(made.id).description == "taken"


def test_a_server_that_nova_deletes_softly_is_gone_and_one_that_is_locked_is_told(
        pool: Pool, paged: RealCloud, user: Any) -> None:
    load(pool, paged, image("noble", min_ready=1), max_servers=1)
    pool.run(LAUNCH, "one", expect=0)
    ((name, server),) = pool.sql("SELECT name, external_id FROM machine")
    pool.sql("UPDATE machine SET state = 'DELETE'")
    user.compute.lock_server(server)
    assert f"{name}: provider one: delete server: Instance {server} is locked" in pool.run(REAP, "one", expect=1).stderr
    user.compute.unlock_server(server)

    pool.run(REAP, "one", expect=0)

    assert pool.machines() == {}
    assert pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 1 of 1 ready\n"


def test_networks_are_found_whatever_their_names(ours: Cloud, user: Any) -> None:
    names = ["#1", "..", "a?b", "50%net", "team/net"]
    made = [user.network.create_network(name=name) for name in names]
    cast(Provider, ours.provider).networks = json.dumps(names)
    try:
        assert ours.network.attached() == [network.id for network in made]
    finally:
        for network in made:
            user.network.delete_network(network)


def test_a_login_for_no_project_is_told(
        paged: RealCloud, admin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    admin.identity.create_user(name="nobodys", password="secret", domain_id="default")
    clouds = yaml.safe_load(paged.clouds_yaml.read_text())
    auth = clouds["clouds"][MEMBER]["auth"]
    clouds["clouds"][MEMBER]["auth"] = {"auth_url": auth["auth_url"], "username": "nobodys", "password": "secret",
                                        "user_domain_name": "Default"}
    (tmp_path / "clouds.yaml").write_text(yaml.safe_dump(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))

    with pytest.raises(CloudConfigError, match="auth: expected project_name or project_id; the login is for no proj"):
        Cloud(Provider(name="one", cloud=MEMBER), "pool")


def test_a_base_image_is_found_by_a_name_with_a_colon(ours: Cloud, user: Any) -> None:
    for name in ("Debian 12: minimal", "a, b: c", 'the "best": one'):
        made = user.image.create_image(
            name, data=b"x", disk_format="raw", container_format="bare", wait=True, allow_duplicates=True)
        assert ours.find_base_image(name) == made.id
        user.image.delete_image(made)
