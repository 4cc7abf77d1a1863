"""One provider as the scripts use it, with the real clients against a cloud on loopback."""

import email.utils
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud import nova
from cloud.nova import (
    MACHINE_KEY,
    POOL_KEY,
    PROVIDER_KEY,
    SNAPSHOT_KEY,
    CapacityError,
    Cloud,
    CloudConfigError,
    CloudError,
    GoneError,
    Recipe,
    RefusedError,
    choose_address,
)
from gateprocess import ConfigError
from tests.pocketcloud.client import Pocket
from tests.support.pool import await_that, clear_cloud, client
from vmdatabase import BaseImage, Provider

POOL, OTHER_POOL = "11111111-2222-3333-4444-555555555555", "99999999-2222-3333-4444-555555555555"
NOBODY = "00000000-0000-0000-0000-000000000001"
CLOUD = "pocket-a"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN/jT0PYldlQIIIkUMeA3uOdqjqF3vGDD4A3l8SPPuPT nobody"
MakeCloud = Callable[..., Cloud]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pocket]:
    """Run a cloud whose servers have no machine behind them."""
    with Pocket(tmp_path_factory.mktemp("cloud"), "--machines", "none", "--clouds", CLOUD) as pocket:
        yield pocket


@pytest.fixture
def pocket(running: Pocket, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pocket]:
    """Yield that cloud, as new for each test."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(running.clouds_yaml))
    running.reset_calls(CLOUD)
    yield running
    clear_cloud(running, CLOUD)


@pytest.fixture
def make_cloud(pocket: Pocket) -> MakeCloud:
    """Return a function that makes a provider of the cloud; keys are columns of the table provider, lists are lists."""
    def make(pool: str = POOL, **columns: Any) -> Cloud:
        values = {"name": "one", "cloud": CLOUD, "boot_timeout": 30, "floating_ips": "auto", "address": "public-v4",
                  "networks": [], "security_groups": [], **columns}
        return Cloud(Provider(**{key: json.dumps(value) if isinstance(value, list) else value
                                 for key, value in values.items()}), pool)

    return make


@pytest.fixture
def cloud(make_cloud: MakeCloud) -> Cloud:
    """Return the provider that most tests use."""
    return make_cloud()


def base(pocket: Pocket) -> str:
    """Return the id of the cloud's base image."""
    return next(str(image["id"]) for image in pocket.look(CLOUD)["images"] if image["visibility"] == "public")


def boot(cloud: Cloud, pocket: Pocket, name: str = "n1", metadata: Mapping[str, str] | None = None) -> str:
    return cloud.create_server(name, Recipe(base(pocket), "1"), metadata or {MACHINE_KEY: "1"})


def active(cloud: Cloud, server_id: str) -> nova.Server:
    """Return the server, once it is ACTIVE."""
    def look() -> nova.Server | None:
        server = cloud.get_server(server_id)
        return server if server.status == "ACTIVE" and server.addresses else None

    return await_that("an ACTIVE server", look) or cloud.get_server(server_id)


def answer(pocket: Pocket, match: str, service: str = "compute", **script: Any) -> None:
    pocket.knobs(CLOUD, answers=[{"service": service, "match": match, **script}])


def calls(pocket: Pocket, service: str = "compute") -> dict[str, int]:
    counted: dict[str, int] = pocket.look(CLOUD)["calls"].get(service, {})
    return counted


# Which address


def v4(address: str, kind: str = "fixed") -> dict[str, Any]:
    return {"addr": address, "version": 4, "OS-EXT-IPS:type": kind}


def v6(address: str) -> dict[str, Any]:
    return {"addr": address, "version": 6, "OS-EXT-IPS:type": "fixed"}


PRIVATE, CARRIER, PUBLIC, FLOATING = "10.0.0.5", "100.64.0.5", "8.8.4.4", "9.9.9.9"


@pytest.mark.parametrize(
    ("addresses", "public_v4", "private_v4", "public_v6"),
    [
        ({}, None, None, None),
        ({"a": []}, None, None, None),
        ({"a": [v4(PRIVATE)]}, None, PRIVATE, None),
        ({"a": [v4("172.16.3.4")]}, None, "172.16.3.4", None),
        ({"a": [v4("192.168.3.4")]}, None, "192.168.3.4", None),
        ({"a": [v4(CARRIER)]}, None, CARRIER, None),
        ({"a": [v4("169.254.1.1")]}, None, "169.254.1.1", None),
        ({"a": [v4(PUBLIC)]}, PUBLIC, PUBLIC, None),
        ({"a": [v4(PRIVATE), v4(PUBLIC)]}, PUBLIC, PRIVATE, None),
        ({"a": [v4(PUBLIC)], "b": [v4(PRIVATE)]}, PUBLIC, PRIVATE, None),
        ({"a": [v4(PRIVATE), v4(FLOATING, "floating")]}, FLOATING, PRIVATE, None),
        ({"a": [v4(PRIVATE), v4("10.9.9.9", "floating")]}, "10.9.9.9", PRIVATE, None),
        ({"a": [v4(PUBLIC)], "b": [v4(PRIVATE), v4(FLOATING, "floating")]}, FLOATING, PRIVATE, None),
        ({"outside": [v4("10.1.1.1")], "b": [v4(PRIVATE)]}, "10.1.1.1", PRIVATE, None),
        ({"a": [v4("127.3.0.10")]}, "127.3.0.10", "127.3.0.10", None),
        ({"a": [v4(PRIVATE), v6("2001:4860:4860::8844")]}, None, PRIVATE, "2001:4860:4860::8844"),
        ({"a": [v6("fe80::1"), v6("fd00::1"), v6("2001:4860::1")]}, None, None, "2001:4860::1"),
        ({"a": [v6("fe80::1"), v6("fd00::1")]}, None, None, None),
        ({"a": [{"addr": PUBLIC, "version": 4}]}, PUBLIC, PUBLIC, None),
    ],
    ids=["none", "empty", "rfc1918", "172.16", "192.168", "rfc6598", "link-local", "public", "both", "two networks",
         "floating", "private floating", "floating last", "external network", "loopback", "v6", "v6 kinds",
         "v6 private", "no type"],
)
def test_the_address_is_chosen_by_kind(
    addresses: dict[str, list[dict[str, Any]]], public_v4: str | None, private_v4: str | None, public_v6: str | None
) -> None:
    wanted = {"public-v4": public_v4, "private-v4": private_v4, "public-v6": public_v6}
    assert {kind: choose_address(addresses, kind, {"outside"}) for kind in wanted} == wanted


def with_addresses(server: nova.Server, *addresses: dict[str, Any]) -> nova.Server:
    """Return the server as a cloud with other networks would show it."""
    return replace(server, addresses={"private": list(addresses)} if addresses else {})


@pytest.mark.parametrize(
    ("mode", "address", "shown", "expected"),
    [
        ("auto", "public-v4", [v4(PUBLIC)], PUBLIC),
        ("auto", "private-v4", [v4(PRIVATE)], PRIVATE),
        ("auto", "public-v4", [v4(PRIVATE)], "a new one"),
        ("auto", "public-v4", [v4(PRIVATE), v4(FLOATING, "floating")], FLOATING),
        ("auto", "public-v4", [], None),
        ("auto", "public-v6", [v4(PRIVATE)], None),
        ("never", "public-v4", [v4(PRIVATE)], PRIVATE),
        ("never", "public-v4", [v4(PRIVATE), v4(PUBLIC)], PUBLIC),
        ("always", "public-v4", [v4(PUBLIC)], "a new one"),
        ("always", "public-v4", [v4(PUBLIC), v4(FLOATING, "floating")], FLOATING),
        ("always", "public-v4", [], None),
    ],
)
def test_a_floating_ip_is_made_when_the_setting_says_so(
    pocket: Pocket, make_cloud: MakeCloud, mode: str, address: str, shown: list[dict[str, Any]], expected: str | None
) -> None:
    cloud = make_cloud(floating_ips=mode, address=address)
    server = active(cloud, boot(cloud, pocket))
    found = cloud.network.reachable_address(with_addresses(server, *shown))
    made = [one["address"] for one in pocket.look(CLOUD)["floating_ips"]]
    assert found == (made[0] if expected == "a new one" and made else expected)
    assert len(made) == (expected == "a new one")


def test_a_floating_ip_is_not_made_twice_and_carries_our_mark(pocket: Pocket, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(floating_ips="always")
    server = active(cloud, boot(cloud, pocket))
    address = cloud.network.reachable_address(server)
    assert cloud.network.reachable_address(server) == address
    (made,) = pocket.look(CLOUD)["floating_ips"]
    assert (made["address"], made["description"]) == (address, f"{POOL_KEY}={POOL} server={server.id}")
    assert cloud.network.list_ours() == [nova.FloatingIP(made["id"], str(address), server.id)]


def test_floating_ips_of_others_are_not_ours(pocket: Pocket, cloud: Cloud, make_cloud: MakeCloud) -> None:
    network = client(pocket.clouds_yaml, CLOUD).network
    public = network.find_network("public").id
    network.create_ip(floating_network_id=public)
    network.create_ip(floating_network_id=public, description=f"{POOL_KEY}={OTHER_POOL} server={NOBODY}")
    assert cloud.network.list_ours() == []
    assert [ip.server_id for ip in make_cloud(OTHER_POOL).network.list_ours()] == [NOBODY]


def test_a_floating_ip_that_is_gone_can_be_deleted(pocket: Pocket, cloud: Cloud) -> None:
    network = client(pocket.clouds_yaml, CLOUD).network
    made = network.create_ip(floating_network_id=network.find_network("public").id)
    for _ in range(2):
        cloud.network.release(nova.FloatingIP(made.id, "", ""))
    assert pocket.look(CLOUD)["floating_ips"] == []


def test_an_unknown_floating_ip_network_is_named(pocket: Pocket, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(floating_ips="always", floating_ip_network="inside")
    server = active(cloud, boot(cloud, pocket))
    with pytest.raises(CloudConfigError) as caught:
        cloud.network.reachable_address(server)
    assert str(caught.value) == "provider one: floating-ip-network: no external network inside"


def test_a_used_up_quota_of_floating_ips_is_no_room(pocket: Pocket, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(floating_ips="always")
    server = active(cloud, boot(cloud, pocket))
    pocket.knobs(CLOUD, floating_quota=0)
    with pytest.raises(CapacityError, match=r"provider one: create floating IP: .*Quota exceeded"):
        cloud.network.reachable_address(server)


# Base images and flavors


def upload(pocket: Pocket, name: str, **properties: Any) -> str:
    """Upload an image of our project in another second than all others; return its id."""
    newest = max(image["created"] for image in pocket.look(CLOUD)["images"])
    await_that("the next second", lambda: int(time.time()) > int(newest))
    image = client(pocket.clouds_yaml, CLOUD).image.create_image(
        name, data=b"x", disk_format="raw", container_format="bare", wait=True, allow_duplicates=True,
        **properties)
    return str(image.id)


def test_the_newest_active_base_image_of_a_name_wins(pocket: Pocket, cloud: Cloud) -> None:
    assert cloud.find_base_image("Debian 12") == base(pocket)
    newer = upload(pocket, "Debian 12")
    upload(pocket, "Debian 12 daily")
    client(pocket.clouds_yaml, CLOUD).image.create_image(
        "Debian 12", disk_format="raw", container_format="bare", allow_duplicates=True)
    assert cloud.find_base_image("Debian 12") == newer


def test_a_base_image_is_found_by_id(pocket: Pocket, cloud: Cloud) -> None:
    assert cloud.find_base_image(base(pocket)) == base(pocket)


@pytest.mark.parametrize(
    ("name", "message"),
    [("Debian 13", "no active image 'Debian 13'"), (NOBODY, f"no active image '{NOBODY}'"),
     ("new", "no active image 'new', only queued ones")],
)
def test_a_base_image_that_is_not_there_is_named(pocket: Pocket, cloud: Cloud, name: str, message: str) -> None:
    client(pocket.clouds_yaml, CLOUD).image.create_image("new", disk_format="raw", container_format="bare")
    with pytest.raises(CloudConfigError) as caught:
        cloud.find_base_image(name)
    assert str(caught.value) == f"provider one: {message}"


@pytest.mark.parametrize(
    ("min_ram", "flavor", "expected"),
    [(0, None, "1"), (512, None, "1"), (513, None, "2"), (8192, None, "4"), (0, "m1.large", "4"), (0, "5", "5"),
     (16384, "m1.tiny", "1")],
)
def test_the_smallest_flavor_that_is_enough_or_the_named_one(
    pocket: Pocket, cloud: Cloud, min_ram: int, flavor: str | None, expected: str
) -> None:
    assert cloud.recipe(BaseImage(min_ram=min_ram, flavor=flavor), base(pocket)).flavor_id == expected


@pytest.mark.parametrize(
    ("min_ram", "flavor", "wanted"),
    [(16385, None, "with 16385 MB or more (min-ram)"), (0, "m2.tiny", "named m2.tiny")],
)
def test_a_flavor_that_is_not_there_is_named_with_those_that_are(
    pocket: Pocket, cloud: Cloud, min_ram: int, flavor: str | None, wanted: str
) -> None:
    with pytest.raises(CloudConfigError) as caught:
        cloud.recipe(BaseImage(min_ram=min_ram, flavor=flavor), base(pocket))
    there = "m1.large, m1.medium, m1.small, m1.tiny, m1.xlarge"
    assert str(caught.value) == f"provider one: no flavor {wanted}; there are {there}"


# Errors


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ({"status": 400}, RefusedError),
        ({"status": 401}, CloudConfigError),
        ({"status": 403}, RefusedError),
        ({"status": 403, "body": {"forbidden": {"code": 403, "message": "Quota exceeded for cores: Requested 1"}}},
         CapacityError),
        ({"status": 404}, GoneError),
        ({"status": 406}, RefusedError),
        ({"status": 409}, RefusedError),
        ({"status": 413}, CapacityError),
        ({"status": 500}, CloudError),
        ({"status": 502}, CloudError),
        ({"status": 503}, CloudError),
        ({"status": 200, "body": "hello"}, CloudError),
        ({"status": 200, "body": []}, CloudError),
        ({"status": 200, "body": {}}, CloudError),
        ({"status": 200, "body": None, "kind": "html"}, CloudError),
        ({"kind": "html", "status": 502}, CloudError),
        ({"kind": "truncate"}, CloudError),
        ({"kind": "reset"}, CloudError),
        ({"kind": "close"}, CloudError),
    ],
    ids=lambda value: " ".join(map(str, value.values()))[:40] if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("what", ["show server", "create server", "list servers"])
def test_what_goes_wrong_is_sorted(
    pocket: Pocket, cloud: Cloud, what: str, script: dict[str, Any], error: type[Exception]
) -> None:
    image = base(pocket)
    answer(pocket, "(GET|POST) /servers.*", **script)
    actions: dict[str, Callable[[], object]] = {
        "show server": lambda: cloud.get_server(NOBODY),
        "create server": lambda: cloud.create_server("n1", Recipe(image, "1"), {}),
        "list servers": cloud.list_servers,
    }
    with pytest.raises(error) as caught:
        actions[what]()
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"provider one: {what}: ")
    assert "\n" not in str(caught.value)
    assert "<" not in str(caught.value)


@pytest.mark.parametrize("status", [401, 403, 500, 503, 200])
def test_only_a_404_means_gone(pocket: Pocket, cloud: Cloud, status: int) -> None:
    server_id = boot(cloud, pocket)
    answer(pocket, "(GET|DELETE) /servers/.*", status=status, body={} if status == 200 else None)
    with pytest.raises((CloudError, CloudConfigError)) as caught:
        cloud.get_server(server_id)
    assert not isinstance(caught.value, GoneError)


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, CloudConfigError), (403, RefusedError), (409, RefusedError), (500, CloudError), (502, CloudError)])
def test_what_goes_wrong_with_images_is_sorted(
    pocket: Pocket, cloud: Cloud, status: int, error: type[Exception]
) -> None:
    answer(pocket, "GET /images.*", "image", status=status)
    for call in (cloud.list_snapshots, lambda: cloud.image_status(NOBODY), lambda: cloud.find_base_image("Debian 12")):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert "\n" not in str(caught.value)


def test_an_image_that_is_not_there_is_gone(cloud: Cloud) -> None:
    with pytest.raises(GoneError):
        cloud.image_status(NOBODY)


def test_a_delete_says_whether_there_was_anything(pocket: Pocket, cloud: Cloud) -> None:
    server_id = boot(cloud, pocket)
    assert cloud.delete_server(server_id) is True
    await_that("the server's end", lambda: pocket.look(CLOUD)["servers"] == [])
    assert cloud.delete_server(server_id) is False


def test_a_delete_that_fails_is_not_taken_for_done(pocket: Pocket, cloud: Cloud) -> None:
    server_id = boot(cloud, pocket)
    answer(pocket, "DELETE /servers/.*", status=500)
    with pytest.raises(CloudError) as caught:
        cloud.delete_server(server_id)
    assert type(caught.value) is CloudError


def test_a_create_whose_answer_is_lost_is_not_known_and_found_by_its_marks(pocket: Pocket, cloud: Cloud) -> None:
    image = base(pocket)
    answer(pocket, "POST /servers", kind="after", then="close", times=1)
    with pytest.raises(CloudError) as caught:
        cloud.create_server("n1", Recipe(image, "1"), {MACHINE_KEY: "7"})
    assert type(caught.value) is CloudError
    assert [(server.name, server.machine_id) for server in cloud.list_servers()] == [("n1", 7)]


def test_the_quota_of_the_cloud_is_no_room(pocket: Pocket, cloud: Cloud) -> None:
    pocket.knobs(CLOUD, quota_instances=0)
    with pytest.raises(CapacityError, match="provider one: create server: Quota exceeded for instances"):
        boot(cloud, pocket)
    assert pocket.look(CLOUD)["servers"] == []


# The provider's pace


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [(429, {"Retry-After": "1"}, 1.0), (413, {"Retry-After": "1"}, 1.0),
     (429, {}, 1.0), (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 1.0)],
    ids=["429", "413", "no hint", "a date"],
)
def test_a_rate_limit_is_waited_for_and_the_call_made_again(
    pocket: Pocket, cloud: Cloud, status: int, headers: dict[str, str], seconds: float
) -> None:
    answer(pocket, "GET /servers/detail", status=status, headers=headers, times=1)
    began = time.monotonic()
    assert cloud.list_servers() == []
    assert time.monotonic() - began >= seconds
    assert calls(pocket)["GET /servers/detail"] == 2


@pytest.mark.parametrize("status", [413, 429])
def test_a_rate_limit_that_ends_at_a_moment_is_obeyed(cloud: Cloud, pocket: Pocket, status: int) -> None:
    headers = {"Retry-After": email.utils.formatdate(time.time() + 1.5, usegmt=True)}
    answer(pocket, "GET /servers/detail", status=status, times=1, headers=headers)

    assert cloud.list_servers() == []
    assert calls(pocket)["GET /servers/detail"] == 2


def test_rate_limits_of_other_services_are_obeyed(cloud: Cloud, pocket: Pocket) -> None:
    limits = [{"service": service, "match": match, "status": 429, "times": 1, "headers": {"Retry-After": "0"}}
              for service, match in (("image", "GET /images"), ("network", "GET /floatingips"))]
    pocket.knobs(CLOUD, answers=limits)

    assert cloud.find_base_image("Debian 12")
    assert cloud.network.list_ours() == []
    assert (calls(pocket, "image")["GET /images"], calls(pocket, "network")["GET /floatingips"]) == (2, 2)


GATEWAY = {"text": '{"error": "no such luck"}', "list": '["no such luck"]', "plain": "no such luck",
           "number first": '{"code": 7, "error": "no such luck"}', "null": '{"error": null, "why": "no such luck"}',
           "other words": '{"fault": {"reason": "no such luck"}}'}


@pytest.mark.parametrize(("status", "kind"), [
    (404, GoneError), (401, CloudConfigError), (403, RefusedError), (409, RefusedError), (413, CapacityError),
    (503, CloudError), (300, CloudError)])
@pytest.mark.parametrize("body", GATEWAY.values(), ids=GATEWAY)
def test_the_status_of_an_answer_decides_whatever_its_body_is(
    pocket: Pocket, cloud: Cloud, status: int, kind: type[Exception], body: str
) -> None:
    looks = {"compute": ("GET /servers/.*", cloud.get_server), "image": ("GET /images/.*", cloud.image_status)}
    for service, (match, look) in looks.items():
        answer(pocket, match, service, status=status, body=body)
        with pytest.raises((CloudError, CloudConfigError)) as caught:
            look(NOBODY)
        assert (type(caught.value), str(status) in str(caught.value)) == (kind, True), caught.value
        assert "no such luck" in str(caught.value)


def test_a_rate_limit_or_a_lack_of_room_told_by_a_gateway_is_one(pocket: Pocket, cloud: Cloud) -> None:
    answer(pocket, "GET /servers/detail", status=429, times=1, headers={"Retry-After": "1"}, body=GATEWAY["text"])
    assert cloud.list_servers() == []
    assert calls(pocket)["GET /servers/detail"] == 2

    answer(pocket, "POST /servers", status=403, body='{"error": "quota of the day exceeded"}')
    with pytest.raises(CapacityError, match="quota of the day exceeded"):
        boot(cloud, pocket)


def test_a_service_that_says_when_it_is_back_is_asked_then(cloud: Cloud, pocket: Pocket) -> None:
    answer(pocket, "GET /servers/detail", status=503, times=1, headers={"Retry-After": "1"})

    assert cloud.list_servers() == []
    answer(pocket, "GET /servers/detail", status=503, headers={"Retry-After": "0"})
    with pytest.raises(CloudError, match="503"):
        cloud.list_servers()


def test_a_rate_limit_holds_back_the_other_threads_too(pocket: Pocket, cloud: Cloud) -> None:
    answer(pocket, "GET /servers/detail", status=429, headers={"Retry-After": "1"}, times=1)
    with ThreadPoolExecutor(1) as other:
        listed = other.submit(cloud.list_servers)
        await_that("the refusal", lambda: calls(pocket).get("GET /servers/detail"))
        threading.Event().wait(0.2)
        cloud.recipe(BaseImage(min_ram=0), base(pocket))
        listed.result(10)
    times = {entry["path"]: entry["time"] for entry in reversed(pocket.look(CLOUD)["requests"])}
    assert times["/flavors/detail"] - times["/servers/detail"] >= 1


def test_a_cloud_with_a_limit_of_its_own_gets_all_calls_through(pocket: Pocket, cloud: Cloud) -> None:
    pocket.knobs(CLOUD, rate_limit=5)
    with ThreadPoolExecutor(4) as workers:
        done = [workers.submit(cloud.list_servers) for _ in range(12)]
        assert [one.result(30) for one in done] == [[]] * 12


@pytest.mark.parametrize("threads", [1, 4])
def test_calls_per_second_is_kept(pocket: Pocket, make_cloud: MakeCloud, threads: int) -> None:
    cloud = make_cloud(calls_per_second=20)
    pocket.reset_calls(CLOUD)
    with ThreadPoolExecutor(threads) as workers:
        for done in [workers.submit(cloud.list_servers) for _ in range(21)]:
            done.result(30)
    times = [one["time"] for one in pocket.look(CLOUD)["requests"] if one["path"] == "/servers/detail"]
    assert len(times) == 21
    assert times[-1] - times[0] >= 0.95  # 20 gaps of 1/20 s, less what the first call took longer
    # Ten gaps of 1/20 s, less what calls are late on a busy machine.
    assert all(later - earlier >= 0.2 for earlier, later in zip(times, times[10:], strict=False))


# Servers


def test_a_server_is_made_with_our_marks_and_what_the_provider_says(pocket: Pocket, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(networks=["private"], security_groups=["default"])
    cloud.create_keypair("key", KEY)
    server_id = cloud.create_server("n1", Recipe(base(pocket), "2", "#!/bin/sh\n"), {MACHINE_KEY: "7"},
                                    key_name="key", zone="nova")
    shown = client(pocket.clouds_yaml, CLOUD).compute.get_server(server_id)
    marks = {POOL_KEY: POOL, PROVIDER_KEY: "one", MACHINE_KEY: "7"}
    assert (shown.name, shown.metadata, shown.key_name) == ("n1", marks, "key")
    server = active(cloud, server_id)
    assert (server.name, server.machine_id, server.snapshot_id, server.fault) == ("n1", 7, None, "")
    assert list(server.addresses) == ["private"]
    assert abs(server.created - time.time()) < 30


def test_an_unknown_network_is_named_and_nothing_is_made(pocket: Pocket, make_cloud: MakeCloud) -> None:
    cloud = make_cloud(networks=["private", "lost"])
    with pytest.raises(CloudConfigError) as caught:
        boot(cloud, pocket)
    assert str(caught.value) == "provider one: networks: there is no network lost"
    assert pocket.look(CLOUD)["servers"] == []


def test_two_networks_of_one_name_are_both_attached_by_their_ids(pocket: Pocket, make_cloud: MakeCloud) -> None:
    pocket.knobs(CLOUD, second_network="private")
    networks = client(pocket.clouds_yaml, CLOUD).network.networks()
    found = [network.id for network in networks if network.name == "private"]
    assert len(found) == 2
    assert make_cloud(networks=found).network.attached() == found


def test_only_what_carries_our_pool_and_provider_is_listed(
    pocket: Pocket, cloud: Cloud, make_cloud: MakeCloud
) -> None:
    ours = boot(cloud, pocket, "n1", {MACHINE_KEY: "1"})
    template = boot(cloud, pocket, "t1", {SNAPSHOT_KEY: "3"})
    boot(make_cloud(OTHER_POOL), pocket, "n1", {MACHINE_KEY: "1"})
    boot(make_cloud(name="two"), pocket, "n1", {MACHINE_KEY: "1"})
    connection = client(pocket.clouds_yaml, CLOUD)
    for metadata in ({}, {PROVIDER_KEY: "one", MACHINE_KEY: "1"}, {POOL_KEY: POOL}):
        connection.compute.create_server(name="n1", image_id=base(pocket), flavor_id="1", networks="auto",
                                         metadata=metadata)
    listed = [(server.id, server.machine_id, server.snapshot_id) for server in cloud.list_servers()]
    assert sorted(listed) == sorted([(ours, 1, None), (template, None, 3)])


@pytest.mark.parametrize("text", ["x", "", "-1", "\N{SUPERSCRIPT TWO}"])
def test_a_row_number_that_is_none_is_no_row(pocket: Pocket, cloud: Cloud, text: str) -> None:
    boot(cloud, pocket, "n1", {MACHINE_KEY: text, SNAPSHOT_KEY: text})
    assert [(server.machine_id, server.snapshot_id) for server in cloud.list_servers()] == [(None, None)]


def test_more_than_a_thousand_servers_are_listed_completely(pocket: Pocket, cloud: Cloud) -> None:
    image, count = base(pocket), 1030
    with ThreadPoolExecutor(4) as workers:
        tasks = [workers.submit(cloud.create_server, f"n{number}", Recipe(image, "1"), {MACHINE_KEY: str(number)})
                 for number in range(count)]
        made = {task.result(): number for number, task in enumerate(tasks)}
    pocket.reset_calls(CLOUD)
    assert {server.id: server.machine_id for server in cloud.list_servers()} == made
    assert calls(pocket) == {"GET /servers/detail": 2}


def test_a_fault_is_shown_with_its_text(pocket: Pocket, cloud: Cloud) -> None:
    pocket.knobs(CLOUD, boot_failure_next=1, boot_fault="No valid host was found. ")
    server_id = boot(cloud, pocket)
    await_that("ERROR", lambda: cloud.get_server(server_id).status == "ERROR")
    assert cloud.get_server(server_id).fault == "No valid host was found."


# Snapshots and keypairs


def test_a_snapshot_carries_our_marks_and_becomes_active(pocket: Pocket, cloud: Cloud) -> None:
    server_id = boot(cloud, pocket)
    active(cloud, server_id)
    name = "devstack-noble-7.template.openstack.org"
    image_id = cloud.create_image(server_id, name, 7)
    await_that("an active image", lambda: cloud.image_status(image_id) == "active")
    (image,) = cloud.list_snapshots()
    assert (image.id, image.name, image.status, image.snapshot_id) == (image_id, name, "active", 7)
    assert abs(image.created - time.time()) < 30
    for _ in range(2):
        cloud.delete_image(image_id, name)
    assert cloud.list_snapshots() == []


def test_images_of_others_and_of_users_are_not_ours(pocket: Pocket, cloud: Cloud) -> None:
    ours = {POOL_KEY: POOL, PROVIDER_KEY: "one", SNAPSHOT_KEY: "7"}
    names = ("mine-of-a-node", "devstack-noble-7.template.openstack.org")
    image = client(pocket.clouds_yaml, CLOUD).image
    for name, properties in [(names[0], ours), (names[1], {}), (names[1], ours | {POOL_KEY: OTHER_POOL}),
                             (names[1], ours | {PROVIDER_KEY: "two"})]:
        image.create_image(name, data=b"x", disk_format="raw", container_format="bare", allow_duplicates=True,
                           visibility="private", **properties)
    assert cloud.list_snapshots() == []


def test_an_image_that_a_user_makes_of_one_of_our_machines_is_not_ours(pocket: Pocket, cloud: Cloud) -> None:
    server_id = boot(cloud, pocket)
    active(cloud, server_id)
    compute = client(pocket.clouds_yaml, CLOUD).compute
    made = compute.create_server_image(server_id, "for-a-look", metadata={POOL_KEY: POOL, PROVIDER_KEY: "one"})
    await_that("an active image", lambda: cloud.image_status(made.id) == "active")
    assert cloud.list_snapshots() == []


def test_only_our_keypairs_are_listed(pocket: Pocket, cloud: Cloud, make_cloud: MakeCloud) -> None:
    for name in (cloud.keypair_name(7), make_cloud(OTHER_POOL).keypair_name(8), "somebody", f"devstack-gate-{POOL}-x"):
        cloud.create_keypair(name, KEY)
    assert cloud.list_keypairs() == {f"devstack-gate-{POOL}-7": 7}


def test_a_keypair_is_replaced_and_may_be_gone(pocket: Pocket, cloud: Cloud) -> None:
    for _ in range(2):
        cloud.create_keypair("key", KEY)
    for _ in range(2):
        cloud.delete_keypair("key")
    assert pocket.look(CLOUD)["keypairs"] == []


def test_user_data_is_read_and_a_missing_file_named(tmp_path: Path) -> None:
    file = tmp_path / "data.sh"
    file.write_text("#!/bin/sh\n")
    assert nova.read_user_data(BaseImage(user_data=str(file))) == "#!/bin/sh\n"
    assert nova.read_user_data(BaseImage(user_data=None)) is None
    file.unlink()
    with pytest.raises(ConfigError, match=f"user-data: {file} cannot be read"):
        nova.read_user_data(BaseImage(user_data=str(file)))


# Pages


SERVER = {"id": "a", "name": "n", "status": "ACTIVE", "metadata": {POOL_KEY: POOL, PROVIDER_KEY: "one"}}


def page(*ids: str, following: str = "", key: str = "servers") -> dict[str, Any]:
    """Return a page of a list of Nova's, with a link to the next page, if any."""
    links = [{"rel": "next", "href": f"http://cloud.example.org/{key}/detail?{following}"}] if following else []
    return {key: [{**SERVER, "id": one} for one in ids], f"{key}_links": links}


@pytest.mark.parametrize("pages", [
    [page("a", following="limit=1000")],
    [page("a", following="marker=a"), page("b", following="marker=a")],
    [page("a", following="marker=a"), page("a", following="marker=b")],
    [page(following="limit=1000")],
], ids=["the same link", "a link again", "the same servers", "empty"])
def test_a_page_that_comes_again_ends_the_list_with_an_error(
    pocket: Pocket, cloud: Cloud, pages: list[dict[str, Any]]
) -> None:
    scripts = [{"match": "GET /servers/detail", "status": 200, "body": body, "times": 1} for body in pages[:-1]]
    pocket.knobs(CLOUD, answers=[*scripts, {"match": "GET /servers/detail", "status": 200, "body": pages[-1]}])
    with pytest.raises(CloudError, match="list servers: the cloud sends the same page again"):
        cloud.list_servers()
    assert calls(pocket)["GET /servers/detail"] <= 3


def test_a_list_is_made_anew_when_the_last_server_of_a_page_is_deleted_meanwhile(pocket: Pocket, cloud: Cloud) -> None:
    server_id = boot(cloud, pocket)
    for first in (page("a", following="marker=gone"), page(following="marker=gone")):
        answer(pocket, "GET /servers/detail", status=200, body=first, times=1)
        assert [server.id for server in cloud.list_servers()] == [server_id]


def test_a_list_that_never_gets_beyond_its_first_page_is_an_error(pocket: Pocket, cloud: Cloud) -> None:
    pages = [{"match": "GET /servers/detail", "status": status, "body": body, "times": 1}
             for _ in range(4) for status, body in ((200, page("a", following="marker=gone")), (400, None))]
    pocket.knobs(CLOUD, answers=pages)
    with pytest.raises(CloudError, match="times in a row"):
        cloud.list_servers()


def test_flavors_beyond_the_first_page_are_seen(pocket: Pocket, cloud: Cloud) -> None:
    first = {"flavors": [{"id": "1", "name": "m1.tiny", "ram": 512, "disk": 1, "vcpus": 1}],
             "flavors_links": [{"rel": "next", "href": "http://cloud.example.org/flavors/detail?limit=1&marker=1"}]}
    answer(pocket, "GET /flavors/detail", status=200, body=first, times=1)
    assert cloud.recipe(BaseImage(min_ram=8192), base(pocket)).flavor_id == "4"


def test_images_that_come_again_and_again_end_the_list(pocket: Pocket, cloud: Cloud) -> None:
    image = {"id": NOBODY, "name": "x", "status": "active", "created_at": "2026-01-01T00:00:00Z"}
    answer(pocket, "GET /images", service="image", status=200, body={"images": [image], "next": "/v2/images?marker=x"})
    with pytest.raises(CloudError, match="list images: the cloud sends the same page again"):
        cloud.list_snapshots()


# What is gone, and names


@pytest.mark.parametrize("status", ["DELETED", "SOFT_DELETED"])
def test_a_server_that_is_shown_as_deleted_is_gone(pocket: Pocket, cloud: Cloud, status: str) -> None:
    answer(pocket, "GET /servers/.*", status=200, body={"server": {**SERVER, "status": status}}, times=1)
    with pytest.raises(GoneError, match=f"a is {status}"):
        cloud.get_server("a")
    body = {"servers": [{**SERVER, "status": status}]}
    answer(pocket, "GET /servers/detail", status=200, body=body, times=1)
    assert cloud.list_servers() == []


@pytest.mark.parametrize("name", ["Debian 12: minimal", "a,b", 'the "best": one', "eq:x", "in:x"])
def test_a_base_image_is_found_whatever_its_name(pocket: Pocket, cloud: Cloud, name: str) -> None:
    image = client(pocket.clouds_yaml, CLOUD).image.create_image(
        name, data=b"x", disk_format="raw", container_format="bare", wait=True, allow_duplicates=True)
    assert cloud.find_base_image(name) == image.id
    with pytest.raises(CloudConfigError, match="no active image"):
        cloud.find_base_image(f"{name}:")


def test_a_fault_text_is_one_short_line(pocket: Pocket, cloud: Cloud) -> None:
    fault = {"message": "line one\r\n\x1b[31m\udce9chec " + "x" * 20_000}
    answer(pocket, "GET /servers/.*", status=200, body={"server": {**SERVER, "status": "ERROR", "fault": fault}})
    text = cloud.get_server("a").fault
    assert text.startswith("line one ?[31m?chec xxx")
    assert len(text.encode()) == 1000


def test_the_clock_of_the_cloud_is_known(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cloud.clock_ahead is not None
    assert abs(cloud.clock_ahead) < 5
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    cloud.list_servers()
    assert abs(cloud.clock_ahead - 86_400) < 5


# clouds.yaml


def entry_with(pocket: Pocket, folder: Path, monkeypatch: pytest.MonkeyPatch, **keys: Any) -> None:
    """Give the cloud's entry of clouds.yaml these keys, and take away those that are None."""
    clouds = yaml.safe_load(pocket.clouds_yaml.read_text())
    entry = {**clouds["clouds"][CLOUD], **keys}
    clouds["clouds"][CLOUD] = {key: value for key, value in entry.items() if value is not None}
    file = folder / "clouds.yaml"
    file.write_text(yaml.safe_dump(clouds))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))


def test_the_endpoint_that_clouds_yaml_sets_for_compute_is_used(
    pocket: Pocket, make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as override:
        port = override.getsockname()[1]
        entry_with(pocket, tmp_path, monkeypatch, compute_endpoint_override=f"http://127.0.0.1:{port}/v2.1")
        with ThreadPoolExecutor(1) as workers:
            listing = workers.submit(make_cloud().list_servers)
            connection, _ = override.accept()
            with connection:
                asked = connection.recv(65536).split(b"\r\n")[0]
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"servers": []}')
            assert listing.result() == []
    assert asked == b"GET /v2.1/servers/detail?limit=1000 HTTP/1.1"
    assert "GET /servers/detail" not in calls(pocket)


@pytest.mark.parametrize(("keys", "seconds"), [({}, 60), ({"api_timeout": 180}, 180), ({"api_timeout": "2.5"}, 2.5)])
def test_api_timeout_of_clouds_yaml_is_obeyed(
    pocket: Pocket, make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any],
    seconds: float,
) -> None:
    entry_with(pocket, tmp_path, monkeypatch, **keys)
    assert make_cloud().connection.session.timeout == seconds


def test_a_call_ends_at_the_api_timeout(
    pocket: Pocket, make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_with(pocket, tmp_path, monkeypatch, api_timeout=1)
    cloud = make_cloud()
    answer(pocket, "GET /servers/detail", kind="hang")
    began = time.monotonic()
    with pytest.raises(CloudError, match="timed out"):
        cloud.list_servers()
    assert time.monotonic() - began < 20


URL = "http://127.0.0.1:1/v3"
AUTH = {"auth_url": "http://127.0.0.1:1/v3", "username": "u", "password": "p", "project_name": "q"}


@pytest.mark.parametrize(
    ("entry", "error", "message"),
    [
        ({}, CloudConfigError, "entry x is empty; expected auth with auth_url, user, password and project"),
        (None, CloudConfigError, "entry x is empty; expected auth with auth_url, user, password and project"),
        ("text", CloudConfigError, "entry x: expected a mapping with auth, itself a mapping"),
        ({"auth": None}, CloudConfigError, "entry x: auth is empty; expected auth_url, user, password and project"),
        ({"auth": {"auth_url": URL, "application_credential_id": "a", "application_credential_secret": "b"}},
         CloudConfigError, "entry x: auth: application_credential_id does not go with the auth_type, which is password "
                           "by default; set auth_type: v3applicationcredential"),
        ({"auth": {"auth_url": URL, "token": "a"}}, CloudConfigError,
         "entry x: auth: token does not go with the auth_type, which is password by default; set auth_type: v3token"),
        ({"profile": "nobody", "auth": {"username": "u", "password": "p", "project_name": "q"}}, CloudConfigError,
         "entry x: Auth plugin requires parameters which were not given: auth_url; the client knows no profile nobody"),
        ({"profile": "http://127.0.0.1:1", "auth": AUTH}, CloudError,
         "entry x: profile http://127.0.0.1:1 cannot be fetched now: "),
        ({"auth": AUTH, "api_timeout": "long"}, CloudConfigError, "entry x: api_timeout: expected seconds, got 'long'"),
        ({"auth": AUTH, "api_timeout": 0}, CloudConfigError, "entry x: api_timeout: expected seconds above 0, got 0"),
        ({"auth": AUTH, "cacert": "/nowhere/ca.pem"}, CloudConfigError,
         "entry x: cacert: there is no file /nowhere/ca.pem"),
        ({"auth": AUTH, "cert": "~/nowhere.pem", "verify": False}, CloudConfigError,
         "entry x: cert: there is no file ~/nowhere.pem"),
        ({"auth": {**AUTH, "password": None}}, CloudConfigError,
         "entry x: auth: password is missing, in secure.yaml, too"),
        ({"auth": {**AUTH, "auth_url": 5}}, CloudConfigError,
         "entry x: auth: auth_url: expected an http(s) URL, got 5"),
        ({"auth": {**AUTH, "auth_url": "cloud.example.org"}}, CloudConfigError,
         "entry x: auth: auth_url: expected an http(s) URL, got 'cloud.example.org'"),
    ],
)
def test_what_is_wrong_with_an_entry_is_told(
    make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Any, error: type[Exception],
    message: str,
) -> None:
    file = tmp_path / "clouds.yaml"
    file.write_text(yaml.safe_dump({"clouds": {"x": entry}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
    with pytest.raises(error) as caught:
        make_cloud(cloud="x")
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"provider one: clouds.yaml: {message}")


def test_where_an_entry_was_looked_for_is_told_if_it_is_nowhere(
    make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yml"))
    with pytest.raises(CloudConfigError, match=rf"OS_CLIENT_CONFIG_FILE names {tmp_path}/clouds.yml, and there is no "):
        make_cloud()
    monkeypatch.delenv("OS_CLIENT_CONFIG_FILE")
    with pytest.raises(CloudConfigError, match="there is no clouds"):
        make_cloud()


def test_a_login_for_no_project_is_told(pocket: Pocket, make_cloud: MakeCloud) -> None:
    """Keystone gives such a login to a user without a default project if the entry names no project."""
    token = {"methods": ["password"], "user": {"id": "1", "name": "u", "domain": {"id": "default", "name": "Default"}},
             "issued_at": "2026-11-29T10:00:00.000000Z", "expires_at": "2099-11-29T10:00:00.000000Z"}
    answer(pocket, "POST /auth/tokens", "identity", status=201, body={"token": token},
           headers={"X-Subject-Token": "unscoped"})
    with pytest.raises(CloudConfigError, match="auth: expected project_name or project_id; the login is for no proj"):
        make_cloud()


def test_certificates_that_the_environment_names_and_that_are_not_there_are_told(
    make_cloud: MakeCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/nowhere/ca.pem")
    with pytest.raises(ConfigError, match="REQUESTS_CA_BUNDLE: there is no file /nowhere"):
        make_cloud()


@pytest.mark.parametrize("name", ["#1", "..", "a?b", "50%net", "team/net"])
def test_a_network_is_found_whatever_its_name(pocket: Pocket, make_cloud: MakeCloud, name: str) -> None:
    pocket.knobs(CLOUD, second_network=name)
    cloud = make_cloud(networks=[name])
    (wanted,) = [network.id for network in cloud.connection.network.networks() if network.name == name]

    assert cloud.network.attached() == [wanted]
    assert make_cloud(networks=[wanted]).network.attached() == [wanted]


@pytest.mark.parametrize(("text", "message"), [
    ("clouds:\n\tx: {}\n", ":2: not YAML: found character '\\t' that cannot start any token"),
    ("\0", ": not YAML: "),
    ("", ": expected clouds: with an entry for each cloud"),
    ("clouds:\n", ": expected clouds: with an entry for each cloud"),
    ("clouds: [x]\n", ": expected clouds: with an entry for each cloud"),
    ("clouds: \udcff\n", ": cannot be read (not UTF-8 text)"),
])
def test_a_file_that_the_client_would_pass_over_is_told(
    make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "clouds.yaml").write_text(text, errors="surrogateescape")
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(tmp_path / "clouds.yaml"))
    with pytest.raises(CloudConfigError) as caught:
        make_cloud()
    assert str(caught.value).startswith(f"provider one: clouds.yaml: {tmp_path}/clouds.yaml{message}")


def test_a_region_that_has_no_compute_is_named_though_clouds_yaml_names_it(
    pocket: Pocket, make_cloud: MakeCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry_with(pocket, tmp_path, monkeypatch, region_name="Nowhere")
    with pytest.raises(CloudConfigError, match="has no compute service in region Nowhere"):
        make_cloud()
