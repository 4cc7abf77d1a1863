"""Labels as vm.db has them, for the rules of pool/demand.py."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial

import vmdatabase
from gateconfig import SecureConfig
from gateprocess import ConfigError, GateError, plain
from pool import demand, rules, script, sight
from pool.demand import Label, Standing, is_schedule
from vmdatabase import BUILDING, ERROR, READY, USED, BaseImage, LabelRow, Provider


def label_of(row: LabelRow) -> Label:
    """Return a label of vm.db; raises ConfigError if a person wrote an invalid schedule there."""
    try:
        schedule = json.loads(row.schedule)
    except ValueError:
        schedule = None
    if not is_schedule(schedule):
        raise ConfigError(f"{vmdatabase.database.database}: label {vmdatabase.printable(str(row.name))}: schedule: "
                          "expected a list of entries with days, hours, min-ready, and a zone that this host knows, "
                          f"got {plain(str(row.schedule)) or 'nothing'}; load the providers file again")
    return Label(row.name, row.min_ready, row.max_ready, row.demand, row.spread, schedule)


def standings_of(name: str) -> list[Standing]:
    """Return each provider's standing for a label, from vm.db, in the order of their names."""
    return [standing_of(image) for image in vmdatabase.images_named(name)]


def standing_of(image: BaseImage) -> Standing:
    """Return a provider's standing for an image type, from vm.db."""
    provider, now = image.provider, vmdatabase.now()
    counts = vmdatabase.count_machines(provider)
    since, failing = provider.down_since, vmdatabase.failing_until(image.id)
    return Standing(
        provider.name, provider.priority, counts[image.id, READY], counts[image.id, BUILDING],
        vmdatabase.count_rows(provider), provider.max_servers,
        gives=image.active and provider.active and bool(vmdatabase.current_snapshot(image)), paused=provider.paused,
        down=since is not None, down_minutes=0 if since is None else (now - since) // 60,
        absent=0 if since is None else vmdatabase.count_absent(image), full=(provider.full_until or 0) > now,
        on_trial=provider.on_trial or failing is not None or image.deaths >= vmdatabase.DEATHS_IN_A_ROW,
        failing=failing is not None and failing > now, size=1 + image.subnodes)


def elsewhere(present: Callable[[], Mapping[str, int]], waiting: Mapping[str, int]) -> int:
    """Return how many machines of an image type waiting builds cannot get, since they belong to another Jenkins.

    waiting: how many builds wait in each Jenkins; present: returns how many machines each has ready or on their way; it
    is not called if there is only one Jenkins.
    """
    if len(waiting) <= 1:
        return 0
    return sum(max(0, count - waiting.get(jenkins, 0)) for jenkins, count in present().items())


def present_by_jenkins(name: str) -> Counter[str]:
    """Return how many machines of an image type are ready or on their way, by their Jenkins."""
    present: Counter[str] = Counter()
    for (jenkins, state), count in vmdatabase.count_by_jenkins(name).items():
        present[jenkins] += count * (state in (READY, BUILDING))
    return present


def lacking(provider: Provider, waiting: Mapping[str, Mapping[str, int]], prefix: str) -> dict[int, int]:
    """Return how many more machines a provider, which answers, should have for labels, by id of the image type.

    This includes machines that need the room of kept machines, whose builds have ended; the other providers do the
    same. waiting: how many builds wait, by Jenkins and label.
    """
    found: dict[int, int] = {}
    ended = vmdatabase.machines_with_ended_builds()
    for image in vmdatabase.images_of(provider):
        row = vmdatabase.label_named(image.name)
        if row is None or not image.active:
            continue
        standings = [replace(one, down=False, absent=0, full=False) if one.provider == provider.name else one
                     for one in standings_of(image.name)]
        counts = {name: of_it.get(f"{prefix}devstack-{image.name}", 0) for name, of_it in waiting.items()}
        label = label_of(row)
        wish, parts = demand.plan(label, datetime.now(UTC), sum(counts.values()), standings,
                                  elsewhere=elsewhere(partial(present_by_jenkins, image.name), counts))
        room = {part.offer.provider: max(0, _room_without(ended, part)) // part.standing.size for part in parts} \
            if demand.missing_of(wish, parts) else {}  # else they have room as they are
        found[image.id] = demand.lacking(wish, parts, label.spread, room)[provider.name]
    return found


def _room_without(ended: Container[int], part: demand.Part) -> int:
    """Return how many more servers a provider may have, after its adds, once those of ended builds are gone."""
    standing = part.standing
    used = vmdatabase.machines_of(vmdatabase.provider_named(standing.provider), [USED])
    kept = sum(machine.id in ended or machine.lead_id in ended for machine in used)
    return standing.max_servers - standing.taken + kept - part.adds * standing.size


def note_down(provider: Provider, config: SecureConfig) -> None:
    """Record that a provider with labels, for which others can make up, does not answer, and what Jenkins has lost.

    Ready machines whose agents stay away, and boots past their time, are given up: until then they count for max-ready.
    """
    if not any(vmdatabase.label_named(image.name) for image in vmdatabase.images_of(provider)):
        return
    vmdatabase.note_answer(provider, False)
    jenkinses = script.jenkinses_of(config)
    with contextlib.suppress(GateError):  # the next launch looks again
        seen = jenkinses.look() if jenkinses else None
        vmdatabase.note_agents(vmdatabase.ready_machines(provider), seen.nodes if seen else {})
    for machine in [one for one in vmdatabase.machines_of(provider, [READY, BUILDING]) if one.lead_id is None]:
        since, limit = machine.absent_time, sight.CUT_OFF_SECONDS
        what = "lost to Jenkins" if machine.jenkins_name else "without an answer by ssh"
        if machine.state == BUILDING:
            since, limit = machine.create_time or machine.state_time, provider.boot_timeout + rules.GRACE
            what = "on its way"
        age = vmdatabase.now() - (since or vmdatabase.now())
        why = f"{what} for {age} s, and its provider does not answer"
        if age >= limit and vmdatabase.move(machine, machine.state, ERROR, error=why):
            vmdatabase.machine_log(machine).error("%s -> ERROR: %s", machine.state, why)
