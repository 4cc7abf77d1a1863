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
    """What the providers file wants of an image type from all providers together."""

    name: str
    min_ready: int
    max_ready: int  # how far demand may raise it
    demand: str  # NONE or QUEUE
    spread: str  # EVEN or PACK
    schedule: Sequence[Mapping[str, Any]] = ()  # days, hours, zone, min-ready


@dataclass(frozen=True)
class Wanted:
    """How many machines of a label should be ready or on their way, and why."""

    count: int
    why: str
    most: int  # how many there may be, doubtful ones included
    least: int = 0  # how many without waiting builds


@dataclass(frozen=True)
class Offer:
    """What one provider has of a label and could give."""

    provider: str
    priority: float
    present: int  # machines ready or on their way, as far as they count
    room: int  # how many more machines it may have, 0 if it can give none now
    capacity: int  # how many machines it may have in all
    doubtful: int = 0  # machines that do not count, but may come back


@dataclass(frozen=True)
class Standing:
    """The state of a label's image type at a provider, as its own launch sees it, or as vm.db tells other launches."""

    provider: str
    priority: int
    ready: int  # machines
    building: int
    taken: int  # servers that its rows account for, of all image types
    max_servers: int
    gives: bool = True  # its image type is active and has a snapshot
    paused: bool = False
    down: bool = False  # it did not answer when last asked
    down_minutes: int = 0  # for how long
    absent: int = 0  # ready machines whose agents Jenkins has lost
    full: bool = False  # it refused a machine, or has no quota for one
    on_trial: bool = False  # it was down, or its last machines failed, and none has become ready since
    failing: bool = False  # its last machines failed a moment ago, and none has become ready since
    is_last: bool = False  # the same in its own launch: it tries one if the others cannot give it
    size: int = 1  # servers per machine, subnodes included

    @property
    def serves(self) -> bool:
        """Whether it gives machines if it has room."""
        return self.gives and not (self.paused or self.down or self.failing)

    @property
    def trouble(self) -> str:
        """Why it gives no machines now, or only one at a time, in words; empty if nothing limits it."""
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
    """What a provider has of a label, and what it should add."""

    standing: Standing
    offer: Offer
    adds: int

    def __str__(self) -> str:
        """Return it in words."""
        trouble = f" ({self.standing.trouble})" if self.standing.trouble else ""
        return f"{self.offer.provider} {self.offer.present}{f' + {self.adds}' if self.adds else ''}{trouble}"


def offer_of(standing: Standing, quota: int | None = None) -> Offer:
    """Return what a provider has of a label and could give; quota: for how many its cloud has room, if known.

    If it is down or on trial, its machines on the way do not count, nor its ready machines that Jenkins has lost. One
    on trial gets one machine at a time.
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
    """Return the days of a schedule entry such as mon-fri, sat,sun or fri-mon, 0 for Monday; ValueError for others."""
    found: set[int] = set()
    for part in text.lower().replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        begin, end = DAYS.index(first), DAYS.index(last if dash else first)
        found |= {(begin + step) % len(DAYS) for step in range((end - begin) % len(DAYS) + 1)}
    return found


def hours_of(text: str) -> tuple[time, time]:
    """Return begin and end of a schedule entry, HH:MM-HH:MM; raises ValueError for any other text."""
    found = re.fullmatch(r"([0-9]{1,2}:[0-9]{2})-([0-9]{1,2}:[0-9]{2})", text)
    if not found:
        raise ValueError(text)
    begin, end = (time.fromisoformat(word.zfill(5)) if word != "24:00" else time.max for word in found.groups())
    return begin, end


def is_schedule(value: object) -> bool:
    """Return whether a value is a schedule: a list of entries with days, hours, min-ready and a zone known here."""
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
    """Return whether a schedule entry holds at a moment (with a time zone).

    Hours are local time in the entry's zone; if they pass midnight, the day is the one on which they begin.
    """
    local = moment.astimezone(ZoneInfo(entry["zone"]))
    (begin, end), days = hours_of(entry["hours"]), days_of(entry["days"])
    clock = local.time()
    if begin < end:
        return local.weekday() in days and begin <= clock < end
    return (local.weekday() in days and clock >= begin) or ((local.weekday() - 1) % len(DAYS) in days and clock < end)


def wanted(label: Label, moment: datetime, waiting: int, elsewhere: int = 0) -> Wanted:
    """Return how many machines of a label to have; waiting: how many builds in Jenkins wait for one.

    elsewhere: how many machines exist that these builds cannot get, because they belong to another Jenkins.
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
    """Return how many machines each provider should add to reach `count`, but at most `most` if doubtful ones count.

    Each machine goes to the provider of the highest priority that has room. Among equals PACK takes the first name,
    EVEN the one with the smallest part of its capacity taken by the label. So each run of each provider comes to the
    same result, whoever is first.
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
    """Return how many wanted machines nobody has or can give now; doubtful ones are not missing."""
    return max(0, wish.count - sum(part.offer.present + part.offer.doubtful + part.adds for part in parts))


def lacking(wish: Wanted, parts: Sequence[Part], spread: str, finished: Mapping[str, int]) -> dict[str, int]:
    """Return how many more machines of a label each provider should have, including those that it must make room for.

    finished: for how many each has room once the machines of ended builds that it keeps are gone.
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

    waiting: how many builds wait in Jenkins; quotas: for how many machines clouds have room, as far as known; elsewhere
    as in wanted.
    """
    wish = wanted(label, moment, waiting, elsewhere)
    offers = [offer_of(standing, (quotas or {}).get(standing.provider)) for standing in standings]
    adds = shares(wish.count, offers, label.spread, wish.most)
    return wish, [Part(standing, offer, adds[offer.provider])
                  for standing, offer in zip(standings, offers, strict=True)]
