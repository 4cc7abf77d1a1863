"""The sections of the page, computed from the facts alone: plain values, which also make status.json."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from jenkinsnodes import AGENT_SECONDS
from pool.demand import Label, Part, Wanted, plan
from pool.history import lasted
from pool.labels import elsewhere
from pool.verdict import FAILED_RESULTS
from status import blame
from status.blame import FalseNegative
from status.facts import PASSED, Build, Event, Facts, Image, Machine
from vmdatabase import DEATHS_IN_A_ROW, STUCK_SECONDS

HOUR = 3600  # seconds
DAY = 24 * HOUR
STATES = ("READY", "BUILDING", "USED", "HOLD", "ERROR", "DELETE")
RESULTS = ("SUCCESS", "FAILURE", "UNSTABLE", "TIMEOUT", "ABORTED", "UNKNOWN")
FAILS_SINCE = 3  # boots in a row without a success: a person should look
OLD_IMAGE_SECONDS = 2 * DAY
FORGOTTEN_SECONDS = 3 * HOUR  # a machine not yet being deleted after that long: reap does not run
HOLD_ENDS_SECONDS = 4 * HOUR
LAUNCH_SECONDS = 1800  # in that time launch, run every 10 minutes, replaces what builds have taken
POINTS = 168  # of time in a picture of states
REASON_LENGTH = 100
MOST_REASONS = 8
MOST_FALSE_NEGATIVES = 50  # in the table


def compute(facts: Facts, hours: int) -> dict[str, Any]:
    """Return all sections; hours is the shorter span, the longer one is all that the facts cover."""
    span, begin = facts.now - hours * HOUR, beginning(facts)
    return {
        "time": facts.now, "since": facts.since, "hours": hours, "long_hours": (facts.now - facts.since) // HOUR,
        "attention": attention(facts),
        "labels": labels(facts), "pool": pool(facts), "providers": [asdict(one) for one in facts.providers],
        "environments": environments(facts),
        "jenkins": facts.has_jenkins, "jenkins_error": facts.waiting_error,
        "states": states_over(facts, max(span, begin)), "states_long": states_over(facts, begin),
        "boots": boots(facts), "boot_failures": boot_failures(facts),
        "builds": builds_over(facts.builds, span, facts.now, HOUR),
        "builds_long": builds_over(facts.builds, facts.since, facts.now, 6 * HOUR),
        "waits": waits(facts),
        "blame": blame_of(facts.builds),
        "false_negatives": false_negatives(facts.builds),
    }


# --- does anything need a person? ------------------------------------------------------------------------------------


def attention(facts: Facts) -> list[dict[str, Any]]:
    """Return what a person should look at, one dict each: kind, about, text, since (Unix seconds or None)."""
    found = [*_failing(facts), *_short(facts), *_old_images(facts), *_deletes(facts), *_holds(facts), *_agents(facts),
             *_broken(facts)]
    if facts.waiting_error:
        found.append(_matter("jenkins", "Jenkins", facts.waiting_error, None))
    return found


def _matter(kind: str, about: str, text: str, since: int | None) -> dict[str, Any]:
    return {"kind": kind, "about": about, "text": text, "since": since}


def _failing(facts: Facts) -> Iterable[dict[str, Any]]:
    """Yield providers whose last boots, several in a row, have all failed."""
    in_a_row: dict[str, list[Event]] = defaultdict(list)
    for event in facts.events:
        if event.source == "BUILDING" and event.target == "READY":
            in_a_row.pop(event.provider, None)
        elif event.source == "BUILDING" and event.target == "ERROR":
            in_a_row[event.provider].append(event)
    for name, failures in sorted(in_a_row.items()):
        if len(failures) >= FAILS_SINCE:
            yield _matter("provider fails", name, f"{len(failures)} boots in a row have failed, the last one: "
                          f"{failures[-1].reason or 'no reason is known'}", failures[0].time)


def _short(facts: Facts) -> Iterable[dict[str, Any]]:
    """Yield providers with fewer machines than wanted, if launch has not replaced them in time or none is ready."""
    last: dict[tuple[str, str], int] = {}
    for event in facts.events:
        if event.target in ("BUILDING", "READY"):
            last[event.provider, event.image] = event.time
    short: dict[str, list[str]] = defaultdict(list)
    since: dict[str, int | None] = {}
    for image in facts.images:
        here, ready = image.states["READY"] + image.states["BUILDING"], image.states["READY"]
        moment = last.get((image.provider, image.name))
        late = moment is None or facts.now - moment > LAUNCH_SECONDS
        if image.active and not image.paused and here < image.min_ready and (late or not ready):
            coming = f" and {image.states['BUILDING']} on their way" if image.states["BUILDING"] else ""
            short[image.provider].append(f"{image.name} {ready} of {image.min_ready} ready{coming}")
            since[image.provider] = min(filter(None, (moment, since.get(image.provider))), default=None)
    for label, (wish, _) in _plans(facts):
        name, wanted = label.name, wish.count
        those = [image for image in facts.images if image.name == name and image.active]
        ready = sum(image.states["READY"] for image in those)
        here = ready + sum(image.states["BUILDING"] for image in those)
        moment = max((last[key] for key in last if key[1] == name), default=None)
        gives = any(not image.paused for image in those)
        if gives and here < wanted and (not ready or moment is None or facts.now - moment > LAUNCH_SECONDS):
            yield _matter("pool short", name, f"{ready} of {wanted} ready at all providers together", moment)
    for provider, lacks in short.items():
        yield _matter("pool short", provider, ", ".join(lacks), since[provider])


def _old_images(facts: Facts) -> Iterable[dict[str, Any]]:
    for image in facts.images:
        if not image.active:
            continue
        about = f"{image.provider} {image.name}"
        if image.snapshot_time is None:
            yield _matter("no image", about, "no snapshot is ready, so that no machine can boot", None)
        elif facts.now - image.snapshot_time > OLD_IMAGE_SECONDS:
            yield _matter("old image", about, f"the newest snapshot is {lasted(facts.now - image.snapshot_time)} old",
                          image.snapshot_time)


def _deletes(facts: Facts) -> Iterable[dict[str, Any]]:
    """Yield deletes that do not end, one line for each provider and reason."""
    stuck: dict[tuple[str, str], list[Machine]] = defaultdict(list)
    for machine in (*facts.machines, *facts.subnodes):
        if machine.state not in ("DELETE", "ERROR"):
            continue
        if machine.delete_time and facts.now - machine.delete_time > STUCK_SECONDS:
            stuck[machine.provider, "its cloud does not delete them"].append(machine)
        elif not machine.delete_time and facts.now - machine.state_time > FORGOTTEN_SECONDS:
            stuck[machine.provider, "devstack-vm-reap has not begun with them"].append(machine)
    for (provider, why), machines in sorted(stuck.items()):
        oldest = min(machine.delete_time or machine.state_time for machine in machines)
        yield _matter("stuck deletes", provider, f"{len(machines)} to be deleted for up to "
                      f"{lasted(facts.now - oldest)}: {why}", oldest)


def _holds(facts: Facts) -> Iterable[dict[str, Any]]:
    for machine in facts.machines:
        if machine.state == "HOLD" and machine.hold_until and machine.hold_until - facts.now < HOLD_ENDS_SECONDS:
            left = machine.hold_until - facts.now
            text = f"the hold ends in {lasted(left)}" if left > 0 else "the hold is over"
            yield _matter("hold ends", machine.name, f"{text}: {machine.hold_reason or ''}", machine.state_time)


def _agents(facts: Facts) -> Iterable[dict[str, Any]]:
    """Yield image types whose ready machines Jenkins cannot use."""
    away: Counter[tuple[str, str]] = Counter()
    for machine in facts.machines:
        since = machine.absent_time or (machine.state_time if machine.online_time is None else None)
        if machine.state == "READY" and machine.in_jenkins and since and facts.now - since > AGENT_SECONDS:
            away[machine.provider, machine.image] += 1
    for (provider, image), count in sorted(away.items()):
        yield _matter("no agent", f"{provider} {image}", f"the agents of {count} ready machines do not come up", None)
    for one in facts.images:
        if one.deaths >= DEATHS_IN_A_ROW:
            yield _matter("no agent", f"{one.provider} {one.name}", f"{one.deaths} ready machines in a row were lost "
                          f"to Jenkins ({one.death})", None)


def _broken(facts: Facts) -> Iterable[dict[str, Any]]:
    """Yield test environments that no machine gets any more."""
    for one in facts.environments:
        if one.state == "BROKEN":
            yield _matter("environment broken", one.name, one.reason or "no reason is known", one.since)


# --- what is there now -----------------------------------------------------------------------------------------------


def environments(facts: Facts) -> dict[str, Any]:
    """Return the test environments, one dict each, how many machines wait for one, and for how long (seconds)."""
    waits = facts.environment_waits
    return {"all": [asdict(one) for one in facts.environments], "waiting": len(waits),
            "longest_wait": max(0, facts.now - min(waits)) if waits else None}


def pool(facts: Facts) -> list[dict[str, Any]]:
    """Return one dict for each provider and image type; room is the provider's, for all its image types together."""
    room = {one.name: max(0, one.max_servers - one.taken) for one in facts.providers}
    return [{"provider": image.provider, "image": image.name, "label": _label(facts, image),
             "wanted": image.min_ready if image.active else 0,
             **{state.lower(): image.states[state] for state in STATES}, "room": room[image.provider],
             "subnodes": image.subnodes, "active": image.active, "snapshot_time": image.snapshot_time}
            for image in facts.images]


def labels(facts: Facts) -> list[dict[str, Any]]:
    """Return one dict for each label; waiting is None if Jenkins does not tell."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for image in facts.images:
        found[_label(facts, image)].update({"wanted": image.min_ready * image.active, **image.states})
    plans = {_label(facts, label): plan for label, plan in _plans(facts)}
    for name, (wish, _) in plans.items():
        found[name]["wanted"] = wish.count
    waiting = facts.waiting_by_label
    for label in waiting or {}:
        if label.startswith(f"{facts.prefix}devstack-"):
            found.setdefault(label, Counter())
    return [{"label": label, "wanted": counts["wanted"], **{state.lower(): counts[state] for state in STATES},
             "waiting": None if waiting is None else waiting[label].count if label in waiting else 0,
             "longest_wait": waiting[label].longest if waiting and label in waiting else None,
             "because": plans[label][0].why if label in plans else None,
             "given": [{"provider": part.offer.provider, "has": part.offer.present, "adds": part.adds,
                        "trouble": part.standing.trouble} for part in plans[label][1]] if label in plans else []}
            for label, counts in sorted(found.items())]


def _plans(facts: Facts) -> list[tuple[Label, tuple[Wanted, list[Part]]]]:
    """Return each label whose machines count for all providers, with what launch would do for it now."""
    moment = datetime.fromtimestamp(facts.now, UTC)
    found = []
    for label, standings, present in facts.labels:
        node_label = _label(facts, label)
        counts = {jenkins: told[node_label].count if told and node_label in told else 0
                  for jenkins, told in facts.waiting.items()}
        found.append((label, plan(label, moment, sum(counts.values()), standings,
                                  elsewhere=elsewhere(present.copy, counts))))
    return found


def _label(facts: Facts, image: Image | Label) -> str:
    return f"{facts.prefix}devstack-{image.name}"


# --- how it went -----------------------------------------------------------------------------------------------------


def beginning(facts: Facts) -> int:
    """Return when the first machine came, or the beginning of the facts if there were machines before."""
    came = sum(event.source is None for event in facts.events)
    went = sum(event.target is None for event in facts.events)
    return facts.events[0].time if facts.events and len(facts.machines) == came - went else facts.since


def states_over(facts: Facts, since: int) -> dict[str, Any]:
    """Return how many machines were in each state, at the end of each step from `since` on.

    Counts backwards from the machines that exist now, undoing their moves.
    """
    counts: Counter[str] = Counter(machine.state for machine in facts.machines)
    times = list(range(facts.now, since - 1, -max(1, (facts.now - since) // POINTS)))
    columns: dict[str, list[int]] = {state: [] for state in STATES}
    place = len(facts.events)
    for moment in times:
        while place and facts.events[place - 1].time > moment:
            place -= 1
            event = facts.events[place]
            if event.target:
                counts[event.target] -= 1
            if event.source:
                counts[event.source] += 1
        for state in STATES:
            columns[state].append(max(0, counts[state]))
    return {"times": times[::-1], **{state: column[::-1] for state, column in columns.items()}}


def boots(facts: Facts) -> list[dict[str, Any]]:
    """Return how the boots of each provider went: how many, and the seconds from the request to READY."""
    seconds: dict[str, list[int]] = defaultdict(list)
    failed: Counter[str] = Counter()
    for event in facts.events:
        if event.source == "BUILDING" and event.target == "READY" and event.seconds is not None:
            seconds[event.provider].append(event.seconds)
        elif event.source == "BUILDING" and event.target == "ERROR":
            failed[event.provider] += 1
    found = []
    for name in sorted(seconds.keys() | failed.keys()):
        median, high = blame.median_and_95(seconds[name]) if seconds[name] else (None, None)
        found.append({"provider": name, "ready": len(seconds[name]), "failed": failed[name], "median": median,
                      "p95": high})
    return found


def boot_failures(facts: Facts) -> list[dict[str, Any]]:
    """Return the reasons of failed boots, similar ones together, the most frequent first."""
    reasons: Counter[str] = Counter()
    providers: dict[str, Counter[str]] = defaultdict(Counter)
    for event in facts.events:
        if event.source == "BUILDING" and event.target == "ERROR":
            reason = alike(event.reason or "no reason is known")
            reasons[reason] += 1
            providers[reason][event.provider] += 1
    return [{"reason": reason, "count": count, "providers": dict(providers[reason].most_common())}
            for reason, count in reasons.most_common(MOST_REASONS)]


def alike(reason: str) -> str:
    """Return a reason without what differs between machines: ids, addresses, times."""
    words = re.sub(r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b|\b[0-9a-f]{32}\b|\d+(?:[.:]\d+)*", "#", reason)
    return words if len(words) <= REASON_LENGTH else f"{words[:REASON_LENGTH]}..."


def builds_over(builds: Sequence[Build], since: int, now: int, step: int) -> dict[str, Any]:
    """Return how many builds ended with which result, in each step; steps begin at whole multiples in UTC."""
    first = since - since % step
    times = list(range(first, now + 1, step))
    columns: dict[str, list[int]] = {result: [0] * len(times) for result in RESULTS}
    for build in builds:
        if first <= build.end <= now:
            columns[build.result if build.result in RESULTS else "UNKNOWN"][(build.end - first) // step] += 1
    return {"times": times, "step": step, **columns}


def waits(facts: Facts) -> list[dict[str, Any]]:
    """Return how many seconds each provider's machines were READY before a build or a person took them."""
    seconds: dict[str, list[int]] = defaultdict(list)
    for event in facts.events:
        if event.source == "READY" and event.target == "USED" and event.seconds is not None:
            seconds[event.provider].append(event.seconds)
    return [{"provider": name, "count": len(values), "median": median, "p95": high}
            for name, values in sorted(seconds.items()) for median, high in [blame.median_and_95(values)]]


# --- who is to blame -------------------------------------------------------------------------------------------------


def blame_of(builds: Sequence[Build]) -> dict[str, Any]:
    """Return the failure rates of providers and image types, with the flags of both decided together."""
    counted = blame.counted(builds)
    found = {"providers": blame.rates(counted, lambda build: build.provider or "?"),
             "images": blame.rates(counted, lambda build: build.image or "?")}
    flagged = blame.flags({(kind, rate.name): rate.p for kind, rates in found.items() for rate in rates})
    return {"builds": len(counted), "level": blame.LEVEL, **{
        kind: [asdict(replace(rate, flagged=(kind, rate.name) in flagged)) for rate in rates]
        for kind, rates in found.items()}}


def false_negatives(builds: Sequence[Build]) -> dict[str, Any]:
    """Return how many failed builds passed later with nothing changed, by possible cause, and the last of them."""
    found = blame.false_negatives(builds)
    failures = sum(build.result in FAILED_RESULTS for build in builds)

    def by(name_of: Callable[[Build], str | None]) -> dict[str, int]:
        return dict(Counter(name_of(one.build) or "(none)" for one in found).most_common())

    return {"count": len(found), "failures": failures, "passes": sum(build.result == PASSED for build in builds),
            "provider": by(lambda build: build.provider), "image": by(lambda build: build.image),
            "phase": by(lambda build: build.phase), "known_failure": by(lambda build: build.known_failure),
            "last": [_shown(one) for one in found[-MOST_FALSE_NEGATIVES:][::-1]]}


def _shown(one: FalseNegative) -> dict[str, Any]:
    return {**one.build._asdict(), "passed": one.passed}
