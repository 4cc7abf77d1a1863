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
    """Return a label of vm.db; ConfigError if a person wrote a schedule there that is none."""
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
    """Return how each provider stands with a label, by vm.db, in the order of their names."""
    return [standing_of(image) for image in vmdatabase.images_named(name)]


def standing_of(image: BaseImage) -> Standing:
    """Return how a provider stands with an image type, by vm.db."""
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
    """Return how many machines of an image type builds that wait cannot get, since they belong to another Jenkins.

    waiting is how many builds wait in each Jenkins; present tells how many machines each has ready or on their way, and
    is not asked where there is one Jenkins.
    """
    if len(waiting) <= 1:
        return 0
    return sum(max(0, count - waiting.get(jenkins, 0)) for jenkins, count in present().items())


def present_by_jenkins(name: str) -> Counter[str]:
    """Return how many machines of an image type are ready or on their way, by the Jenkins that they belong to."""
    present: Counter[str] = Counter()
    for (jenkins, state), count in vmdatabase.count_by_jenkins(name).items():
        present[jenkins] += count * (state in (READY, BUILDING))
    return present


def lacking(provider: Provider, waiting: Mapping[str, Mapping[str, int]], prefix: str) -> dict[int, int]:
    """Return how many machines a provider, which answers, is to have more for labels, by id of the image type.

    Those are counted for which machines of ended builds, that are kept for a look, would have to go: here, or at the
    others, which do the same. waiting is how many builds wait, by Jenkins and label.
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
            if demand.missing_of(wish, parts) else {}  # else each has room as it is
        found[image.id] = demand.lacking(wish, parts, label.spread, room)[provider.name]
    return found


def _room_without(ended: Container[int], part: demand.Part) -> int:
    """Return how many servers a provider may have more, beside those that it adds, without those of ended builds."""
    standing = part.standing
    used = vmdatabase.machines_of(vmdatabase.provider_named(standing.provider), [USED])
    kept = sum(machine.id in ended or machine.lead_id in ended for machine in used)
    return standing.max_servers - standing.taken + kept - part.adds * standing.size


def note_down(provider: Provider, config: SecureConfig) -> None:
    """Write down that a provider does not answer, if others make up what it cannot give, and what Jenkins has lost.

    Ready machines that stay away, and boots that are over, are given up: they count for max-ready until then.
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
        what = "lost to Jenkins"
        if machine.state == BUILDING:
            since, limit = machine.create_time or machine.state_time, provider.boot_timeout + rules.GRACE
            what = "on its way"
        age = vmdatabase.now() - (since or vmdatabase.now())
        why = f"{what} for {age} s, and its provider does not answer"
        if age >= limit and vmdatabase.move(machine, machine.state, ERROR, error=why):
            vmdatabase.machine_log(machine).error("%s -> ERROR: %s", machine.state, why)
