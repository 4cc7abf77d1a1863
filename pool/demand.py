"""How many machines of a label to have, and which provider gives them: min-ready over all providers, schedule, queue.

Pure functions of a label's settings, of what vm.db and Jenkins' queue say, and of a clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, time
from typing import Any
from zoneinfo import ZoneInfo

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
EVEN, PACK = "even", "pack"
NONE, QUEUE = "none", "queue"


@dataclass(frozen=True)
class Label:
    """What the providers file says of an image type for all providers together."""

    name: str
    min_ready: int
    max_ready: int  # how far demand may raise it
    demand: str  # NONE or QUEUE
    spread: str  # EVEN or PACK
    schedule: Sequence[Mapping[str, Any]] = ()  # days, hours, zone, min-ready


@dataclass(frozen=True)
class Wanted:
    """How many machines of a label are to be ready or on their way, and why so many."""

    count: int
    why: str
    most: int  # how many there may be, those of which nobody knows whether they are any good included
    least: int = 0  # of them, without builds that wait


@dataclass(frozen=True)
class Offer:
    """What one provider has of a label, and could give."""

    provider: str
    priority: float
    present: int  # machines ready or on their way, as far as they count
    room: int  # machines that it may have more, 0 if it can give none now
    capacity: int  # machines that it may have in all
    doubtful: int = 0  # machines that do not count, but may come back


@dataclass(frozen=True)
class Standing:
    """How a provider stands with a label's image type: by its own launch, or for the launches of others by vm.db."""

    provider: str
    priority: int
    ready: int  # machines
    building: int
    taken: int  # servers that its rows stand for, of all image types
    max_servers: int
    gives: bool = True  # its image type is active and has a snapshot
    paused: bool = False
    down: bool = False  # it did not answer when it was asked last
    down_minutes: int = 0  # for how long
    absent: int = 0  # ready machines of which Jenkins has lost the agents
    full: bool = False  # it refused a machine, or has no quota for one
    on_trial: bool = False  # it was down, or its last machines failed, and none has become ready since
    failing: bool = False  # its last machines failed a moment ago, and none has become ready since
    is_last: bool = False  # the same, as its own launch sees it: one is tried if the others cannot give it
    size: int = 1  # servers of each machine, its subnodes counted

    @property
    def serves(self) -> bool:
        """Whether it gives machines as far as it has room."""
        return self.gives and not (self.paused or self.down or self.failing)

    @property
    def trouble(self) -> str:
        """Why it gives no machines now, or one at a time, in words; empty if it gives what it has."""
        if self.paused:
            return "paused"
        if not self.gives:
            return "drained, or without a snapshot"
        if self.down:
            return f"down for {self.down_minutes} min"
        if self.failing or self.is_last:
            return "failing"
        return "full" if self.full else "on trial" if self.on_trial else ""


@dataclass(frozen=True)
class Part:
    """What a provider has of a label, and what it is to add."""

    standing: Standing
    offer: Offer
    adds: int

    def __str__(self) -> str:
        """Return it in words."""
        trouble = f" ({self.standing.trouble})" if self.standing.trouble else ""
        return f"{self.offer.provider} {self.offer.present}{f' + {self.adds}' if self.adds else ''}{trouble}"


def offer_of(standing: Standing, quota: int | None = None) -> Offer:
    """Return what a provider has of a label and could give; quota, if known, is for how many its cloud has room.

    Of one that is down, or whose last machines have failed, nothing that is on the way counts, nor a ready machine that
    Jenkins has lost. One that comes back is tried with one machine.
    """
    doubtful = standing.building + standing.absent if standing.down or standing.on_trial else 0
    room = max(0, standing.max_servers - standing.taken) // standing.size
    room = room if quota is None else min(room, quota)
    if standing.on_trial:
        room = min(room, int(not standing.building))
    priority = -math.inf if standing.is_last else standing.priority
    return Offer(standing.provider, priority, standing.ready + standing.building - doubtful,
                 room if standing.serves and not standing.full else 0,
                 max(1, standing.max_servers // standing.size), doubtful)


def days_of(text: str) -> set[int]:
    """Return the days of a schedule entry, 0 for Monday: mon-fri, sat,sun, fri-mon; ValueError for other words."""
    found: set[int] = set()
    for part in text.lower().replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        found |= {(begin + step) % len(DAYS) for step in range((end - begin) % len(DAYS) + 1)}
    return found


def hours_of(text: str) -> tuple[time, time]:
    """Return begin and end of a schedule entry, HH:MM-HH:MM; ValueError for another text."""
    found = re.fullmatch(r"([0-9]{1,2}:[0-9]{2})-([0-9]{1,2}:[0-9]{2})", text)
    if not found:
        raise ValueError(text)
    begin, end = (time.fromisoformat(word.zfill(5)) if word != "24:00" else time.max for word in found.groups())
    return begin, end


def is_schedule(value: object) -> bool:
    """Whether a value is a schedule: a list of entries with days, hours, min-ready and a zone that is known here."""
    return isinstance(value, list) and all(map(_is_entry, value))


def _is_entry(value: object) -> bool:
    if not isinstance(value, dict) or value.keys() != {"days", "hours", "zone", "min-ready"}:
        return False
    try:
        days_of(value["days"])
        begin, end = hours_of(value["hours"])
        ZoneInfo(value["zone"])
    except (ValueError, LookupError, TypeError, AttributeError, OSError):
        return False
    return begin != end and type(value["min-ready"]) is int and 0 <= value["min-ready"] < 2**31


def fits(entry: Mapping[str, Any], moment: datetime) -> bool:
    """Whether a schedule entry holds at a moment (with a time zone).

    Hours are those of clocks on the wall of the entry's zone; if they go past midnight, the day is that of their begin.
    """
    local = moment.astimezone(ZoneInfo(entry["zone"]))
    (begin, end), days = hours_of(entry["hours"]), days_of(entry["days"])
    clock = local.time()
    if begin < end:
        return local.weekday() in days and begin <= clock < end
    return (local.weekday() in days and clock >= begin) or ((local.weekday() - 1) % len(DAYS) in days and clock < end)


def wanted(label: Label, moment: datetime, waiting: int, elsewhere: int = 0) -> Wanted:
    """Return how many machines of a label to have; waiting is how many builds wait in Jenkins for one.

    elsewhere is how many machines there are beside those that these builds can get: they belong to another Jenkins.
    """
    entry = next((entry for entry in label.schedule if fits(entry, moment)), None)
    least = int(entry["min-ready"]) if entry else label.min_ready
    why = f"schedule {entry['days']} {entry['hours']} {entry['zone']}" if entry else "min-ready"
    most = max(least, label.max_ready)
    asked = max(least, elsewhere) + waiting
    if label.demand == QUEUE and waiting and (count := min(asked, label.max_ready)) > least:
        return Wanted(count, f"{why} {least} and {waiting} waiting in the queue, max-ready {label.max_ready}", most,
                      least)
    return Wanted(least, why, most, least)


def shares(count: int, offers: Sequence[Offer], spread: str, most: int | None = None) -> dict[str, int]:
    """Return how many machines each provider is to add, for so many in all, and no more than `most` with doubtful ones.

    One after the other goes to the provider of the highest priority that has room; among equals, and among all if
    spread is EVEN and they are equal, to the one of which the smallest part is taken by the label, so that each run of
    each provider comes to the same end whoever is first.
    """
    added = {offer.provider: 0 for offer in offers}
    missing = count - sum(offer.present for offer in offers)
    if most is not None:
        missing = min(missing, most - sum(offer.present + offer.doubtful for offer in offers))
    for _ in range(missing):
        open_ones = [offer for offer in offers if added[offer.provider] < offer.room]
        if not open_ones:
            break
        highest = max(offer.priority for offer in open_ones)
        best = [offer for offer in open_ones if offer.priority == highest]
        if spread == PACK:
            chosen = min(best, key=lambda offer: offer.provider)
        else:
            chosen = min(best, key=lambda offer: (
                (offer.present + added[offer.provider] + 1) / offer.capacity, offer.provider))
        added[chosen.provider] += 1
    return added


def missing_of(wish: Wanted, parts: Sequence[Part]) -> int:
    """Return how many machines nobody has or can give now, beside those that may come back."""
    return max(0, wish.count - sum(part.offer.present + part.offer.doubtful + part.adds for part in parts))


def lacking(wish: Wanted, parts: Sequence[Part], spread: str, finished: Mapping[str, int]) -> dict[str, int]:
    """Return how many machines each provider is to have more for a label, those for which it must make room included.

    finished is for how many each has room once the machines of ended builds are gone that it keeps.
    """
    offers = [Offer(part.offer.provider, part.offer.priority, part.offer.present + part.adds,
                    min(finished.get(part.offer.provider, 0), part.offer.capacity) if part.standing.serves else 0,
                    part.offer.capacity, part.offer.doubtful)
              for part in parts]
    more = shares(wish.count, offers, spread, wish.most)
    return {part.offer.provider: part.adds + more[part.offer.provider] for part in parts}


def plan(
    label: Label, moment: datetime, waiting: int, standings: Sequence[Standing],
    quotas: Mapping[str, int] | None = None, elsewhere: int = 0,
) -> tuple[Wanted, list[Part]]:
    """Return how many machines of a label are wanted at a moment, and the part of each provider.

    waiting is how many builds wait in Jenkins; quotas is for how many machines clouds have room, as far as known;
    elsewhere as in wanted.
    """
    wish = wanted(label, moment, waiting, elsewhere)
    offers = [offer_of(standing, (quotas or {}).get(standing.provider)) for standing in standings]
    adds = shares(wish.count, offers, label.spread, wish.most)
    return wish, [Part(standing, offer, adds[offer.provider])
                  for standing, offer in zip(standings, offers, strict=True)]
