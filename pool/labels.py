"""Labels as vm.db has them, for the rules of pool/demand.py."""

from __future__ import annotations

import json

import vmdatabase
from pool.demand import Label, Standing
from vmdatabase import BUILDING, READY, BaseImage, LabelRow


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
        on_trial=provider.on_trial)
