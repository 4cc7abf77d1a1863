"""metrics.prom, which Prometheus reads through node_exporter's textfile collector or from a web server.

Counters and histograms come from the table tally, which only grows; gauges show the moment of the page.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.utils import floatToGoString

from pool.triggers import BUILD_MINUTES, READY_SECONDS
from status.facts import Facts
from status.sections import STATES
from vmdatabase import ENVIRONMENT_STATES

WHERE = ("provider", "image")
Rows = Iterable[tuple[Sequence[str], float]]


def text(facts: Facts, sections: Mapping[str, Any]) -> bytes:
    """Return the file, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Collector(list(_families(facts, sections))))
    return generate_latest(registry)


class _Collector:
    """Hands over metrics that were made before."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _families(facts: Facts, sections: Mapping[str, Any]) -> Iterator[Metric]:
    pool = sections["pool"]
    yield _gauge("machines", "Machines by state, now.", (*WHERE, "state"), (
        ((row["provider"], row["image"], state), row[state.lower()]) for row in pool for state in STATES))
    yield _gauge("min_ready", "Machines that are wanted ready.", WHERE, (
        ((row["provider"], row["image"]), row["wanted"]) for row in pool))
    yield _gauge("max_servers", "Servers that a provider may have.", ("provider",), (
        ((one.name,), one.max_servers) for one in facts.providers))
    yield _gauge("servers", "Servers that the rows of a provider stand for.", ("provider",), (
        ((one.name,), one.taken) for one in facts.providers))
    yield _gauge("snapshot_age_seconds", "Age of the newest snapshot that machines boot from.", WHERE, (
        ((row["provider"], row["image"]), facts.now - row["snapshot_time"]) for row in pool if row["snapshot_time"]))
    if facts.waiting_by_label is not None:
        yield _gauge("waiting_builds", "Builds that wait in Jenkins' queue.", ("label",), (
            ((row["label"],), row["waiting"]) for row in sections["labels"]))
    environments = sections["environments"]
    yield _gauge("environments", "Test environments, 1 for the state that each is in.", ("environment", "state"), (
        ((one["name"], state), int(one["state"] == state)) for one in environments["all"]
        for state in ENVIRONMENT_STATES))
    yield _gauge("environment_waiting", "Machines that wait for a test environment.", (), [
        ((), environments["waiting"])])
    matters = Counter(matter["kind"] for matter in sections["attention"])
    yield _gauge("attention", "Matters on the status page that need a person, by kind.", ("kind",), (
        ((kind,), count) for kind, count in sorted(matters.items())))
    for kind in ("provider", "image"):
        rates = sections["blame"][f"{kind}s"]
        yield _gauge(f"{kind}_failure_ratio", "Share of builds that failed, over the page's longer span.", (kind,), (
            ((rate["name"],), rate["rate"]) for rate in rates))
        yield _gauge(f"{kind}_flagged", "Whether builds fail there more often than chance explains.", (kind,), (
            ((rate["name"],), int(rate["flagged"])) for rate in rates))
    yield _gauge("false_negatives", "Failed builds that passed later untouched, over the page's longer span.",
                 ("provider",), (((name,), count) for name, count in sections["false_negatives"]["provider"].items()))
    yield _gauge("status_timestamp_seconds", "When the status page was made.", (), [((), facts.now)])
    yield from _counted(facts)


def _gauge(name: str, help_text: str, labels: Sequence[str], rows: Rows) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"devstack_gate_{name}", help_text, labels=labels)
    for values, number in rows:
        family.add_metric(list(values), number)
    return family


def _counted(facts: Facts) -> Iterator[Metric]:
    tally: dict[str, dict[tuple[str, str], dict[str, tuple[int, int]]]] = defaultdict(lambda: defaultdict(dict))
    for what, provider, image, key, count, total in facts.tally:
        tally[what][provider, image][key] = count, total
    moves = CounterMetricFamily("devstack_gate_moves", "Moves of machines; none: the row is new, or gone.",
                                labels=(*WHERE, "from", "to"))
    boots = CounterMetricFamily("devstack_gate_boots", "Boots by how they ended.", labels=(*WHERE, "result"))
    for where, keys in tally["move"].items():
        for key, (count, _) in keys.items():
            source, _, target = key.partition(">")
            moves.add_metric([*where, source or "none", target or "none"], count)
        for target, result in (("READY", "ready"), ("ERROR", "failed")):
            boots.add_metric([*where, result], keys.get(f"BUILDING>{target}", (0, 0))[0])
    builds = CounterMetricFamily("devstack_gate_builds", "Builds that have ended, by result.",
                                 labels=(*WHERE, "result"))
    for where, keys in tally["build"].items():
        for key, (count, _) in keys.items():
            builds.add_metric([*where, key], count)
    locked = CounterMetricFamily("devstack_gate_environment_moves", "Moves of test environments; of whose machine.",
                                 labels=(*WHERE, "from", "to"))
    for where, keys in tally["environment"].items():
        for key, (count, _) in keys.items():
            source, _, target = key.partition(">")
            locked.add_metric([*where, source or "none", target or "none"], count)
    yield from (moves, boots, builds, locked)
    yield _histogram("ready_seconds", "Time from asked for to READY.", tally["ready"], READY_SECONDS, 1)
    yield _histogram("build_duration_seconds", "How long builds had their machines.", tally["minutes"],
                     BUILD_MINUTES, 60)


def _histogram(name: str, help_text: str, tally: Mapping[tuple[str, str], Mapping[str, tuple[int, int]]],
               bounds: Sequence[int], seconds: int) -> HistogramMetricFamily:
    """Return a histogram; seconds is the unit of tally's bounds."""
    family = HistogramMetricFamily(f"devstack_gate_{name}", help_text, labels=WHERE)
    for where, keys in tally.items():
        buckets, reached = [], 0
        for bound in (*map(str, bounds), "+Inf"):
            reached += keys.get(bound, (0, 0))[0]
            buckets.append((floatToGoString(float(bound) * seconds), reached))
        family.add_metric(list(where), buckets, sum(total for _, total in keys.values()))
    return family
