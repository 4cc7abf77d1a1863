"""Whose turn it is: which waiting machine gets which test environment, and which kept machine gives one up.

Pure functions of the rows at one moment.
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
    """A test environment, as the rules of turns see it; since: when it came into its state, Unix seconds."""

    id: int
    images: frozenset[str]
    providers: frozenset[str]  # none: all
    since: int

    def fits(self, waiter: Waiter) -> bool:
        """Return whether it is for machines of the waiter's image type and provider."""
        return waiter.image in self.images and (not self.providers or waiter.provider in self.providers)


@dataclass(frozen=True)
class Kept:
    """A machine whose build has ended, but that is kept for a look and has a test environment."""

    machine_id: int
    ended: int  # Unix seconds
    place: Place


def grants(waiters: Sequence[Waiter], places: Iterable[Place]) -> dict[int, int]:
    """Return {machine id: id of the test environment} for the machines whose turn it is; waiters are in their order.

    Each waiter in turn gets the fitting environment that fits the fewest of all waiters, so that the others find one,
    too; among equals, the one that has been free for longest.
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
    """Return the kept machine that goes so that a waiter gets its test environment: the one whose build ended first."""
    fitting = [one for one in kept if one.place.fits(waiter)]
    return min(fitting, key=lambda one: (one.ended, one.machine_id), default=None)
