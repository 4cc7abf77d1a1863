"""The facts on the status page, read from vm.db at one moment and from Jenkins' queue."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import jenkinsnodes
import vmdatabase
from gateprocess import NONSENSE
from pool import environments
from pool.demand import Label, Standing
from pool.labels import label_of, present_by_jenkins, standings_of
from vmdatabase import LabelRow
from vmdatabase import Provider as ProviderRow

if TYPE_CHECKING:
    from gateconfig import JenkinsConfig

QUEUE_BYTES = 16 << 20
PASSED = "SUCCESS"


@dataclass(frozen=True)
class Provider:
    """A provider; taken is how many servers its rows stand for."""

    name: str
    max_servers: int
    active: bool
    taken: int


@dataclass(frozen=True)
class Image:
    """An image type of a provider, with how many machines are in which state."""

    provider: str
    name: str
    min_ready: int  # 0 if its label has one for all providers together
    active: bool
    paused: bool  # the provider is paused: it gives no new machines
    deaths: int
    death: str | None
    snapshot_time: int | None  # of the newest READY snapshot, its own or its template's
    states: Counter[str]
    subnodes: int = 0  # servers that belong to each machine


@dataclass(frozen=True)
class Machine:
    """A machine that exists now."""

    name: str
    provider: str
    image: str
    state: str
    state_time: int
    error: str | None
    hold_reason: str | None
    hold_until: int | None
    delete_time: int | None
    in_jenkins: bool
    online_time: int | None
    absent_time: int | None


class Event(NamedTuple):
    """A move of a machine."""

    time: int
    provider: str
    image: str
    source: str | None
    target: str | None
    seconds: int | None
    reason: str | None  # of a move to ERROR


class Build(NamedTuple):
    """A build that has ended."""

    end: int
    provider: str
    image: str
    job: str
    change: int | None
    patchset: int | None
    result: str | None
    kind: str | None
    phase: str | None
    known_failure: str | None


@dataclass(frozen=True)
class Environment:
    """A test environment; node is the machine that has it."""

    name: str
    state: str
    since: int
    reason: str | None  # of its last move
    node: str | None
    images: list[str]


@dataclass(frozen=True)
class Waiting:
    """Builds that wait in Jenkins for a label; longest in seconds."""

    count: int
    longest: int

    def with_more(self, others: Waiting) -> Waiting:
        """Return these together with those of another Jenkins."""
        return Waiting(self.count + others.count, max(self.longest, others.longest))


@dataclass(frozen=True)
class Facts:
    """All facts; events and builds are those since `since`, sorted by time."""

    now: int
    since: int
    providers: list[Provider]
    images: list[Image]
    machines: list[Machine]
    events: list[Event]
    builds: list[Build]
    tally: list[tuple[str, str, str, str, int, int]]  # what, provider, image, key, count, total
    waiting: dict[str, dict[str, Waiting] | None] = field(default_factory=dict)  # by Jenkins and label; None: not told
    waiting_error: str = ""
    prefix: str = ""
    has_jenkins: bool = False
    # Labels, how each provider stands with them, and how many machines each Jenkins has ready or on their way.
    labels: list[tuple[Label, list[Standing], Counter[str]]] = field(default_factory=list)
    environments: list[Environment] = field(default_factory=list)
    environment_waits: list[int] = field(default_factory=list)  # since when machines wait for one, in line order
    subnodes: list[Machine] = field(default_factory=list)  # the servers that belong to machines

    @property
    def waiting_by_label(self) -> dict[str, Waiting] | None:
        """Which builds wait, in all Jenkins that tell; None if none does."""
        told = [builds for builds in self.waiting.values() if builds is not None]
        found: dict[str, Waiting] = {}
        for label, builds in [item for one in told for item in one.items()]:
            found[label] = found[label].with_more(builds) if label in found else builds
        return found if told else None


def read(since: int, now: int) -> dict[str, Any]:
    """Return the arguments of Facts that come from vm.db, all read at one moment."""
    with vmdatabase.database.atomic():
        return {
            "now": now, "since": since, "providers": list(_providers()), "images": list(_images()),
            "machines": list(_machines("IS NULL")), "subnodes": list(_machines("IS NOT NULL")),
            "events": list(_events(since)),
            "builds": [Build(*row) for row in _rows(
                "SELECT end_time, coalesce(provider, ''), coalesce(image, ''), coalesce(jenkins_job_name, ''), "
                "gerrit_change_number, gerrit_patchset_number, result, kind, phase, known_failure FROM result "
                "WHERE end_time >= ? AND coalesce(by_person, 0) = 0 ORDER BY end_time, id", since)],
            "labels": [(label_of(row), standings_of(row.name), present_by_jenkins(row.name))
                       for row in LabelRow.select().order_by(LabelRow.name)],
            "environments": [Environment(row["name"], row["state"], row["since"], row["reason"], row["node"],
                                         row["images"]) for row in environments.table()],
            "environment_waits": [since for (since,) in _rows("SELECT since FROM environment_waiter ORDER BY id")],
            "tally": list(_rows("SELECT what, provider, image, key, count, total FROM tally")),
        }


def _events(since: int) -> Iterator[Event]:
    """Yield the moves of machines; there may be hundreds of thousands, so equal texts share memory."""
    texts: dict[str | None, str | None] = {}
    for time_, *words, seconds, reason in _rows(
            "SELECT time, provider, image, from_state, to_state, seconds, CASE to_state WHEN 'ERROR' THEN reason END "
            "FROM event WHERE time >= ? AND machine_id IS NOT NULL AND lead_id IS NULL ORDER BY time, id", since):
        provider, image, source, target = (texts.setdefault(word, word) for word in words)
        yield Event(time_, str(provider), str(image), source, target, seconds, texts.setdefault(reason, reason))


def _rows(query: str, *values: object) -> Iterator[tuple[Any, ...]]:
    return iter(vmdatabase.database.execute_sql(query, values))


def _providers() -> Iterator[Provider]:
    for row in ProviderRow.select().order_by(ProviderRow.name):
        yield Provider(row.name, row.max_servers, row.active, vmdatabase.count_rows(row))


def _images() -> Iterator[Image]:
    states: dict[int, Counter[str]] = {}
    for key, state, count in _rows(
            "SELECT base_image_id, state, count(*) FROM machine WHERE lead_id IS NULL GROUP BY 1, 2"):
        states.setdefault(key, Counter())[state] = count
    newest = {(provider, name): version for provider, name, version in _rows(
        "SELECT provider_id, base_image.name, max(version) FROM snapshot_image JOIN base_image "
        "ON base_image.id = base_image_id WHERE state = 'READY' GROUP BY 1, 2")}
    for key, provider_id, provider, name, wanted, active, paused, deaths, death, template, subnodes in _rows(
            "SELECT base_image.id, provider_id, provider.name, base_image.name, "
            "CASE WHEN label.name IS NULL THEN base_image.min_ready ELSE 0 END, "
            "base_image.active * provider.active, paused, deaths, death, template, subnodes "
            "FROM base_image JOIN provider ON provider.id = provider_id "
            "LEFT JOIN label ON label.name = base_image.name "
            "ORDER BY provider.name, base_image.name"):
        yield Image(provider, name, wanted, bool(active), bool(paused), deaths, death,
                    newest.get((provider_id, template or name)), states.get(key, Counter()), subnodes)


def _machines(lead: str) -> Iterator[Machine]:
    for name, provider, image, state, since, error, reason, until, deleted, node, online, absent in _rows(
            "SELECT coalesce(machine.name, 'machine ' || machine.id), provider.name, base_image.name, state, "
            "state_time, error, hold_reason, hold_until, delete_time, jenkins_name, online_time, absent_time "
            "FROM machine JOIN base_image ON base_image.id = base_image_id "
            f"JOIN provider ON provider.id = provider_id WHERE lead_id {lead} ORDER BY machine.id"):
        yield Machine(name, provider, image, state, since, error, reason, until, deleted, node is not None, online,
                      absent)


def waiting_builds(config: JenkinsConfig, labels: Mapping[str, str]) -> dict[str, Waiting]:
    """Return which builds wait in Jenkins, by the label that they wait for; raises OSError or ValueError.

    labels is {node: label}, see jenkinsnodes.queued.
    """
    try:
        head = "".join(f"{name}: {value}\r\n" for name, value in jenkinsnodes.IN_ENGLISH.items())
        status, body = jenkinsnodes.quick_get(config, jenkinsnodes.QUEUE, QUEUE_BYTES, head)
        if status != 200:  # noqa: PLR2004
            raise ValueError(f"Jenkins answered {status}")
        found, now = jenkinsnodes.queued(body, labels), time.time()
        return {label: Waiting(len(times), max(0, int(now - min(times) / 1000))) for label, times in found.items()}
    except NONSENSE as err:
        raise ValueError(str(err) if type(err) is ValueError else "Jenkins' queue could not be read") from err
