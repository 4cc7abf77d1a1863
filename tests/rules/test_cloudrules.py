"""The rules about what a cloud shows: flavors, shortages, places for floating IPs, texts from outside."""

from typing import Any

import pytest

from cloud.rules import (
    ALL,
    FLAVOR,
    HOST,
    VOLUME,
    Flavor,
    Place,
    Source,
    choose_flavor,
    out_of_room,
    places_of,
    shortage,
    volume_gigabytes,
    wanted_flavor,
)
from gateprocess import plain
from vmdatabase import BaseImage

FLAVORS = [
    Flavor("a", "diskless.512", 512, 0, 1), Flavor("b", "m1.tiny", 512, 1, 1), Flavor("c", "m1.wide", 512, 20, 2),
    Flavor("d", "m1.small", 2048, 20, 1), Flavor("e", "diskless.2048", 2048, 0, 1), Flavor("f", "b", 4096, 40, 2),
]


@pytest.mark.parametrize(
    ("settings", "source", "expected"),
    [
        ({}, {}, "m1.tiny"),
        ({"min_ram": 512}, {}, "m1.tiny"),
        ({"min_ram": 513}, {}, "m1.small"),
        ({"min_ram": 512}, {"min_disk": 1}, "m1.tiny"),
        ({"min_ram": 512}, {"min_disk": 2}, "m1.wide"),
        ({"min_ram": 512}, {"min_ram": 1024}, "m1.small"),
        ({"min_ram": 512}, {"min_disk": 30}, "b"),
        ({"min_ram": 512}, {"min_disk": 41}, None),
        ({"min_ram": 8192}, {}, None),
        ({"min_ram": 512, "boot_from_volume": True}, {"min_disk": 30}, "diskless.512"),
        ({"min_ram": 1024, "boot_from_volume": True}, {}, "diskless.2048"),
        ({"flavor": "m1.wide", "min_ram": 4096}, {"min_disk": 99}, "m1.wide"),
        ({"flavor": "diskless.512"}, {}, "diskless.512"),
        ({"flavor": "f"}, {}, "b"),
        ({"flavor": "b"}, {}, "b"),  # a name goes before an id
        ({"flavor": "huge"}, {}, None),
    ],
)
def test_the_smallest_flavor_from_which_the_image_boots(
    settings: dict[str, Any], source: dict[str, Any], expected: str | None
) -> None:
    image = BaseImage(**{"min_ram": 0, **settings})
    for flavors in (FLAVORS, FLAVORS[::-1]):
        found = choose_flavor(flavors, image, Source("x", **source))
        assert (found and found.name) == expected


@pytest.mark.parametrize(
    ("settings", "source", "words"),
    [
        ({"flavor": "huge"}, {}, "named huge"),
        ({"min_ram": 9999}, {}, "with 9999 MB or more (min-ram)"),
        ({"min_ram": 1}, {"min_ram": 9999}, "with 9999 MB or more (min_ram of its image)"),
        ({"min_ram": 512}, {"min_disk": 99},
         "with 512 MB or more (min-ram) and a disk of 99 GB or more for its image (or see boot-from-volume)"),
    ],
)
def test_what_is_missing_is_named(settings: dict[str, Any], source: dict[str, Any], words: str) -> None:
    assert wanted_flavor(FLAVORS, BaseImage(**{"min_ram": 0, **settings}), Source("x", **source)) == words


@pytest.mark.parametrize(
    ("size", "source", "expected"),
    [(None, {}, 1), (20, {}, 20), (20, {"min_disk": 30}, 30), (None, {"snapshot_size": 50, "min_disk": 10}, 50)],
)
def test_a_volume_is_as_large_as_what_goes_onto_it(size: int | None, source: dict[str, Any], expected: int) -> None:
    assert volume_gigabytes(BaseImage(min_ram=0, volume_size=size), Source("x", **source)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No valid host was found. There are not enough hosts available.", HOST),
        ("Insufficient compute resources: Requested instance NUMA topology cannot fit", HOST),
        ("Quota exceeded for cores: Requested 8, but already used 16 of 20 cores", FLAVOR),
        ("Quota exceeded for cores, ram: Requested 8, 16384, but already used 16, 32768 of 20, 40000", FLAVOR),
        ("Quota exceeded for instances, cores: Requested 1, 8, but already used 10, 16 of 10, 20", ALL),
        ("Quota exceeded for instances: Requested 1, but already used 2 of 2 instances (HTTP 403)", ALL),
        ("Quota exceeded for resources: ['floatingip'].", ALL),
        ("Quota exceeded for resources: ['port'].", ALL),
        ("Maximum number of ports exceeded", ALL),
        ("No more IP addresses available on network 0f7a.", ALL),
        ("VolumeLimitExceeded: Maximum number of volumes allowed (10) exceeded for quota 'volumes'.", VOLUME),
        ("Build of instance x aborted: VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed "
         "gigabytes quota.", VOLUME),
        ("Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures.", None),
        ("No valid host was found. Exceeded max scheduling attempts 3 for instance x. Last exception: libvirt", None),
        ("Build of instance x aborted: Failed to allocate the network(s), not rescheduling.", None),
        ("", None),
    ],
)
def test_what_there_is_no_more_of(text: str, expected: str | None) -> None:
    assert shortage(text) == expected


F, T, N = False, True, None


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([], False),
        ([F], False),
        ([F, F], False),
        ([F, F, F], True),
        ([F, F, F, N], False),
        ([T, F, F, F, F], False),
        ([T, F, F, F, F, F], True),
        ([F, F, N, F, F, F], False),
        ([T, T, F] * 20, False),
        ([N, N, F] * 20, False),
        ([N] * 20 + [F] * 5, True),
    ],
)
def test_one_unlucky_server_is_no_lack_of_room(outcomes: list[bool | None], expected: bool) -> None:
    assert out_of_room(outcomes) is expected


def port(ident: str, network: str, *addresses: str) -> dict[str, Any]:
    return {"id": ident, "network_id": network, "fixed_ips": [{"ip_address": address} for address in addresses]}


def test_floating_ips_are_bound_in_the_order_of_the_networks_and_to_ipv4_only() -> None:
    ports = [port("p4", "other", "10.9.0.4"), port("p3", "storage", "10.8.0.4"), port("p0", "v6", "2001:db8::4"),
             port("p2", "private", "2001:db8::5", "10.7.0.5"), port("p1", "private", "10.7.0.4")]
    assert [(place.port_id, place.address) for place in places_of(ports, ["private", "storage"])] == [
        ("p1", "10.7.0.4"), ("p2", "10.7.0.5"), ("p3", "10.8.0.4"), ("p4", "10.9.0.4")]
    assert places_of(ports[:1], []) == [Place("p4", "10.9.0.4", "other")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\n\tb  c", "a b c"),
        ("\x1b[31mred\x1b[0m\x07", "?[31mred?[0m?"),
        ("\udce9chec", "?chec"),
        ("Fehler № 7 三行目", "Fehler № 7 三行目"),
        ("x" * 200_000, "x" * 1000),
        ("", ""),
    ],
)
def test_texts_from_outside_are_one_short_line_that_can_be_printed(text: str, expected: str) -> None:
    assert plain(text) == expected
    plain(text).encode()
