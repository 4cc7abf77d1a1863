"""Whose turn it is: which of the machines that wait gets which test environment, and which kept machine gives one up.

Pure functions of rows as they are at one moment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Waiter:
    """A machine that waits for a test environment."""

    machine_id: int
    image: str
    provider: str


@dataclass(frozen=True)
class Place:
    """A test environment as far as turns go; since is when it came into its state, Unix seconds."""

    id: int
    images: frozenset[str]
    providers: frozenset[str]  # none: all
    since: int

    def fits(self, waiter: Waiter) -> bool:
        """Whether it is for machines of that image type and provider."""
        return waiter.image in self.images and (not self.providers or waiter.provider in self.providers)


@dataclass(frozen=True)
class Kept:
    """A machine whose build has ended, that is kept for a look and has a test environment."""

    machine_id: int
    ended: int  # Unix seconds
    place: Place


def grants(waiters: Sequence[Waiter], places: Iterable[Place]) -> dict[int, int]:
    """Return {machine id: id of the test environment} for those whose turn it is; waiters stand in their order.

    Each in turn gets, of those that fit, the one that fits the fewest of all who wait, so that the others find one,
    too; of these, the one that has been free for longest.
    """
    left = list(places)
    given: dict[int, int] = {}
    for waiter in waiters:
        fitting = [place for place in left if place.fits(waiter)]
        if fitting:
            chosen = min(fitting, key=lambda place: (sum(map(place.fits, waiters)), place.since, place.id))
            left.remove(chosen)
            given[waiter.machine_id] = chosen.id
    return given


def gives_way(waiter: Waiter, kept: Iterable[Kept]) -> Kept | None:
    """Return the kept machine that goes, so that a waiter gets its test environment: the one that ended first."""
    fitting = [one for one in kept if one.place.fits(waiter)]
    return min(fitting, key=lambda one: (one.ended, one.machine_id), default=None)
