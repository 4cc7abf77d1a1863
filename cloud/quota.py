"""How much is left of a project's quotas: the limits of compute, block storage and network, less what is in use.

The cloud tells the use of everybody in the project. One that does not tell its limits sets none here, but may still
refuse a create.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from cloud.rules import CORES, FLOATING_IPS, GIGABYTES, INSTANCES, RAM, VOLUMES
from gateprocess import GateError, Log

T = TypeVar("T")
# The keys of a limit and of its use.
COMPUTE = {INSTANCES: ("maxTotalInstances", "totalInstancesUsed"), CORES: ("maxTotalCores", "totalCoresUsed"),
           RAM: ("maxTotalRAMSize", "totalRAMUsed")}
BLOCK_STORAGE = {VOLUMES: ("maxTotalVolumes", "totalVolumesUsed"),
                 GIGABYTES: ("maxTotalVolumeGigabytes", "totalGigabytesUsed")}


class Caller(Protocol):
    """Makes calls with a time limit, and turns their errors into our classes."""

    connection: Any
    log: Log

    def ask(self, what: str, call: Callable[[], T]) -> T:
        """Make a call."""


class Quota:
    """The calls that tell how much of its quotas a provider's project has left."""

    def __init__(self, calls: Caller, compute_limits: Callable[[], Any]) -> None:
        """compute_limits asks compute for its limits and returns the body of the answer."""
        self._calls = calls
        self._compute_limits = compute_limits

    def left(self, *, volumes: bool, free_addresses: Callable[[], int] | None) -> dict[str, int]:
        """Return how much is left of each resource; one that is missing has no known limit.

        volumes: whether to ask block storage, too. free_addresses: None not to ask the network service, else a function
        that counts the existing floating IPs that servers may have; it is called only if there is a limit.
        """
        connection = self._calls.connection
        found = self._told("instances, cores and RAM", lambda: of_limits(self._compute_limits(), COMPUTE))
        if volumes:
            found |= self._told("volumes", lambda: of_limits(_got(connection.block_storage, "/limits"), BLOCK_STORAGE))
        if free_addresses:
            addresses = self._told("floating IPs", lambda: of_details(
                _got(connection.network, f"/quotas/{connection.current_project_id}/details")))
            if FLOATING_IPS in addresses:
                found |= self._told("floating IPs", lambda: {
                    FLOATING_IPS: addresses[FLOATING_IPS] + free_addresses()})
        return found

    def _told(self, what: str, call: Callable[[], dict[str, int]]) -> dict[str, int]:
        """Return the limits that a call tells, or {} if it fails: the cloud may refuse or lack it."""
        try:
            return self._calls.ask(f"show limits of {what}", call)
        except GateError as err:
            self._calls.log.info("no limit of %s is known: %s", what, err)
            return {}


def _got(service: Any, path: str) -> Any:
    """Return the body of a service's answer to GET."""
    import openstack.exceptions

    answer = service.get(path)
    openstack.exceptions.raise_from_response(answer)
    return answer.json()


def of_limits(body: Any, keys: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Return what is left of each resource, by an answer to GET /limits; ValueError if it has no absolute limits."""
    absolute = body["limits"]["absolute"]
    if not isinstance(absolute, Mapping):
        raise ValueError("there are no absolute limits in it")
    return _known({name: _left(absolute.get(limit), absolute.get(used)) for name, (limit, used) in keys.items()})


def of_details(body: Any) -> dict[str, int]:
    """Return how many floating IPs are left, by an answer of the network service to quota details."""
    told = body["quota"].get("floatingip") or {}
    used, reserved = _number(told.get("used")), _number(told.get("reserved")) or 0
    return _known({FLOATING_IPS: _left(told.get("limit"), None if used is None else used + reserved)})


def _known(left: Mapping[str, int | None]) -> dict[str, int]:
    return {name: number for name, number in left.items() if number is not None}


def _left(limit: Any, used: Any) -> int | None:
    """Return how much is left, None if there is no limit (-1), or one of the two is not known."""
    most, taken = _number(limit), _number(used)
    if most is None or taken is None or most < 0:
        return None
    return max(0, most - max(0, taken))


def _number(value: Any) -> int | None:
    """Return a number from an answer, which may be text, as a whole number; None for anything else."""
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if math.isfinite(number) else None
