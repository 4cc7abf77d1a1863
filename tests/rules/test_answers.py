"""What clouds and Jenkins send can be data of any type: a reader takes a value, or says that it makes no sense."""

import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import gateprocess
import jenkinsnodes
import nodessh
from cloud import nova
from cloud.errors import CloudError, RateLimitedError, explained
from cloud.quota import of_details, of_limits
from cloud.rules import choose_address, places_of
from cloud.volumes import Volume

NASTY: tuple[Any, ...] = (
    None, [], {}, "", 5, -1, float("inf"), float("-inf"), float("nan"), 10**400, True, "x\0\u202e\ud800", "\u00b2",
    [None], {"a": None}, "http://[x", "9" * 5000)
SERVER = {"id": "s", "name": "n", "status": "ACTIVE", "fault": {"message": "m"}, "created": "2026-01-01T00:00:00Z",
          "metadata": {nova.MACHINE_KEY: "7", nova.LEAD_KEY: "7", nova.HOLD_KEY: "r", nova.HOLD_UNTIL_KEY: "5"},
          "addresses": {"private": [{"addr": "10.0.0.1", "version": 4, "OS-EXT-IPS:type": "fixed"}]}}
NODE = {"displayName": "n", "description": "d", "offline": True, "temporarilyOffline": True, "idle": True,
        "offlineCause": {"_class": "a.B$C"}, "offlineCauseReason": "r", "assignedLabels": [{"name": "l"}]}
BUILD = {"builtOn": "n", "building": False, "result": "SUCCESS",
         "actions": [{"causes": [{"upstreamProject": "p", "upstreamBuild": 7}]}]}
RUNNING = {"executors": [{"currentExecutable": {"url": "http://j/job/gate/7/"}}], "oneOffExecutors": []}
QUEUE = {"items": [{"buildable": True, "pending": False, "inQueueSince": 1, "why": "Waiting for next available "
                    "executor on \u2018noble\u2019"}]}


def served(server: nova.Server) -> object:
    return (server.machine_id, server.lead_id, server.hold, server.snapshot_id,
            choose_address(server.addresses, "public-v4", set()))


READERS: dict[str, tuple[Any, Callable[[Any], object]]] = {
    "page": ({"servers": [{"id": "s"}], "servers_links": [{"rel": "next", "href": "http://x/?marker=s"}]},
             lambda raw: nova._page(raw, "servers")),
    "server": (SERVER, lambda raw: served(nova._server(raw))),
    "flavor": ({"id": "f", "name": "n", "ram": 1, "disk": 1, "vcpus": 1}, nova._flavor),
    "limits": ({"limits": {"absolute": {"maxTotalCores": 5, "totalCoresUsed": 1}}},
               lambda raw: of_limits(raw, {"cores": ("maxTotalCores", "totalCoresUsed")})),
    "details": ({"quota": {"floatingip": {"used": 1, "reserved": 0, "limit": 5}}}, of_details),
    "ports": ([{"id": "p", "network_id": "n", "fixed_ips": [{"ip_address": "10.0.0.1"}]}],
              lambda raw: places_of(raw, ["n"])),
    "node": (NODE, jenkinsnodes._node),
    "build": (BUILD, jenkinsnodes._build),
    "running": (RUNNING, jenkinsnodes._running),
    "queue": (QUEUE, lambda raw: [jenkinsnodes.awaited_label(item) for item in raw["items"]]),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path to each value in a value, and to the value itself."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*path, key))


def with_other(value: Any, path: tuple[Any, ...], other: Any) -> Any:
    """Return a value with something else in one place."""
    if not path:
        return other
    whole = copy.deepcopy(value)
    inner = whole
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = other
    return whole


@pytest.mark.parametrize("what", READERS)
def test_an_answer_of_whatever_types_is_read_or_makes_no_sense(what: str) -> None:
    honest, read = READERS[what]
    with explained("show it", "x"):
        read(honest)
    for path in places(honest):
        for other in NASTY:
            try:
                with explained("show it", "x"):
                    read(with_other(honest, path, other))
            except CloudError as err:
                assert str(err).startswith("show it: the answer makes no sense"), (path, other)


def test_what_a_server_says_of_itself_is_printable() -> None:
    server = nova._server(with_other(SERVER, ("metadata", nova.HOLD_KEY), "\x1b[2J\u202ea\nb"))
    assert server.hold == ("?[2J?a b", 5)


@pytest.mark.parametrize("date", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT",
                                  "Mon, 01 Jan 2026 00:00:00 +99999999999999999999", "x", "", None])
def test_a_time_that_is_none_is_not_known(date: str | None) -> None:
    assert gateprocess.clock_ahead(date) is None


@pytest.mark.parametrize(("said", "seconds"), [("-5", 0), ("\u00b2", 0), ("9" * 400, 0), ("7", 7), ("", 0), (None, 0)])
def test_a_pause_that_a_cloud_asks_for_is_a_number_of_seconds(said: str | None, seconds: float) -> None:
    from cloud.errors import _seconds

    assert RateLimitedError("x", _seconds(said)).retry_after == seconds
    assert RateLimitedError("x", -5.0).retry_after == 0


@pytest.mark.parametrize("text", ["\u00b2", "9" * 5000, "-1", "", "soon", "1e9"])
def test_a_machine_that_tells_no_time_is_taken_as_settled(text: str) -> None:
    session: Any = SimpleNamespace(login=SimpleNamespace(user="u", address="a"), began=0.0)
    nodessh._refuse_unsettled(session, text, float("inf"))
    for other in ("busy", "0"):
        with pytest.raises(nodessh.NotYetError):
            nodessh._refuse_unsettled(session, other, float("inf"))


def test_a_volume_is_known_byplain_metadata() -> None:
    from cloud.rules import plain_metadata

    assert Volume("v", "n", "s", plain_metadata({"a": 5, 7: None})).metadata == {"a": "5", "7": "None"}
