"""Labels as vm.db has them, for the rules of pool/demand.py."""

from __future__ import annotations

import contextlib
import json

import vmdatabase
from gateconfig import SecureConfig
from gateprocess import GateError
from pool import rules, script, sight
from pool.demand import Label, Standing
from vmdatabase import BUILDING, ERROR, READY, BaseImage, LabelRow, Provider


def label_of(row: LabelRow) -> Label:
    """Return a label of vm.db."""
    return Label(row.name, row.min_ready, row.max_ready, row.demand, row.spread, json.loads(row.schedule))


def standings_of(name: str) -> list[Standing]:
    """Return how each provider stands with a label, by vm.db, in the order of their names."""
    return [standing_of(image) for image in vmdatabase.images_named(name)]


def standing_of(image: BaseImage) -> Standing:
    """Return how a provider stands with an image type, by vm.db."""
    provider, now = image.provider, vmdatabase.now()
    counts = vmdatabase.count_machines(provider)
    since = provider.down_since
    return Standing(
        provider.name, provider.priority, counts[image.id, READY], counts[image.id, BUILDING],
        vmdatabase.count_rows(provider), provider.max_servers,
        gives=image.active and provider.active and bool(vmdatabase.current_snapshot(image)), paused=provider.paused,
        down=since is not None, down_minutes=0 if since is None else (now - since) // 60,
        absent=0 if since is None else vmdatabase.count_absent(image), full=(provider.full_until or 0) > now,
        on_trial=provider.on_trial, size=1 + image.subnodes)


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
