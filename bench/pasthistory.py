"""Write a history into a vm.db: days of builds on many providers, always the same for the same seed."""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vmdatabase

IMAGES = ("noble", "jammy", "rocky9")
JOBS = ("gate-tempest", "gate-grenade", "gate-unit", "gate-functional")
PHASES = ("setup-host", "setup-workspace", "devstack", "tempest")
REASONS = ("no ssh within 900 s: connection refused", "the server went to ERROR: No valid host was found",
           "the server is gone", "no ssh within 900 s: timed out")
KNOWN = ("mirror away", "disk full", "name service")
COPIES = 2  # of each change: the check and the recheck
CHUNK = 20_000


@dataclass(frozen=True)
class Past:
    """What to write; fails is the share of builds that fail, for each provider where that is not `chance`."""

    days: int = 90
    builds_a_day: int = 4000
    providers: int = 14
    chance: float = 0.05
    fails: tuple[tuple[str, float], ...] = ()
    seed: int = 1


def write(path: Path, past: Past, now: int | None = None) -> None:
    """Make a vm.db with this past; the machines of the last hours still exist."""
    now = now or int(time.time())
    with vmdatabase.opened(path):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        names = [f"cloud-{number:02d}" for number in range(past.providers)]
        _providers(connection, names, now)
        triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            connection.execute(f"DROP TRIGGER {name}")
        _fill(connection, past, names, now)
        for _, sql in triggers:
            connection.execute(sql)
        _tally(connection)


def _providers(connection: sqlite3.Connection, names: list[str], now: int) -> None:
    connection.executemany(
        "INSERT INTO provider (id, name, cloud, max_servers, boot_timeout, max_concurrency, networks, floating_ips, "
        "address, ssh_port, security_groups, availability_zones) "
        "VALUES (?, ?, 'c', 100, 900, 8, '[]', 'auto', 'public-v4', 22, '[]', '[]')", enumerate(names, 1))
    rows = [(place * len(IMAGES) + at + 1, place + 1, image) for place in range(len(names))
            for at, image in enumerate(IMAGES)]
    connection.executemany("INSERT INTO base_image (id, provider_id, name, external_id, min_ready, min_ram) "
                           "VALUES (?, ?, ?, 'x', 5, 8192)", rows)
    connection.executemany("INSERT INTO snapshot_image (base_image_id, name, version, external_id, state, state_time) "
                           "VALUES (?, 's', ?, 'x', 'READY', ?)", ((row[0], now - 40000, now - 40000) for row in rows))


def _fill(connection: sqlite3.Connection, past: Past, names: list[str], now: int) -> None:
    events: list[tuple[Any, ...]] = []
    results: list[tuple[Any, ...]] = []
    machines: list[tuple[Any, ...]] = []
    for life_events, result, machine in _lives(past, names, now):
        events += life_events
        results += [result] * (result is not None)
        machines += [machine] * (machine is not None)
        if len(events) > CHUNK:
            _flush(connection, events, results)
    _flush(connection, events, results)
    connection.executemany("INSERT INTO machine (id, base_image_id, name, state, state_time) VALUES (?, ?, ?, ?, ?)",
                           machines)
    connection.execute("CREATE TEMP TABLE sorted AS SELECT * FROM event ORDER BY time")  # as it would have come in
    connection.execute("DELETE FROM event")
    columns = "time, machine_id, node_name, provider, image, from_state, to_state, seconds, reason"
    connection.execute(f"INSERT INTO event ({columns}) SELECT {columns} FROM sorted ORDER BY time")
    connection.execute("DROP TABLE sorted")


def _flush(connection: sqlite3.Connection, events: list[tuple[Any, ...]], results: list[tuple[Any, ...]]) -> None:
    connection.executemany("INSERT INTO event (time, machine_id, node_name, provider, image, from_state, to_state, "
                           "seconds, reason) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", events)
    connection.executemany("INSERT INTO result (machine_id, node_name, jenkins_job_name, jenkins_build_number, "
                           "gerrit_change_number, gerrit_patchset_number, start_time, end_time, result, provider, "
                           "image, kind, phase, reason, known_failure, minutes, url) "
                           "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", results)
    events.clear()
    results.clear()


def _lives(past: Past, names: list[str], now: int) -> Iterator[tuple[list[Any], Any, Any]]:
    """Yield for each machine its events, the row of its build if that has ended, and its own row if it still exists."""
    random_ = random.Random(past.seed)
    fails = dict(past.fails)
    step = 86400 / past.builds_a_day
    for number in range(past.days * past.builds_a_day):
        asked = now - past.days * 86400 + round(number * step)
        provider, image = random_.choice(names), random_.choice(IMAGES)
        node = f"devstack-{image}-{provider}-{number + 1}"
        where = (number + 1, node, provider, image)
        boot, wait, length = round(random_.lognormvariate(4.3, 0.3)), random_.randrange(30, 1200), \
            round(random_.gauss(2700, 600))
        if random_.random() < 0.01:  # noqa: PLR2004
            moves = [(asked, None, "BUILDING", None), (asked + 900, "BUILDING", "ERROR", random_.choice(REASONS)),
                     (asked + 2000, "ERROR", "DELETE", None), (asked + 2100, "DELETE", None, None)]
            result = None
        else:
            started, ended = asked + boot + wait, asked + boot + wait + max(60, length)
            failed = random_.random() < fails.get(provider, past.chance)
            result = _result(random_, where, started, ended, failed) if ended < now else None
            kept = ended + 86400 * failed
            moves = [(asked, None, "BUILDING", None), (asked + boot, "BUILDING", "READY", None),
                     (started, "READY", "USED", f"gate #{number}"), (kept, "USED", "DELETE", "its build has ended"),
                     (kept + 600, "DELETE", None, None)]
        yield _events(where, moves, now), result, _row(where, names, moves, now)


def _events(where: tuple[Any, ...], moves: list[Any], now: int) -> list[tuple[Any, ...]]:
    before = moves[0][0]
    found = []
    for moment, source, target, reason in moves:
        if moment <= now:
            found.append((moment, *where, source, target, None if source is None else moment - before, reason))
        before = moment
    return found


def _row(where: tuple[Any, ...], names: list[str], moves: list[Any], now: int) -> tuple[Any, ...] | None:
    number, node, provider, image = where
    moment, _, state, _ = [move for move in moves if move[0] <= now][-1]
    base_image = names.index(provider) * len(IMAGES) + IMAGES.index(image) + 1
    return (number, base_image, node, state, moment) if state else None


def _result(random_: random.Random, where: tuple[Any, ...], started: int, ended: int, failed: bool) -> tuple[Any, ...]:
    number, node, provider, image = where
    change = number // COPIES
    job = JOBS[change % len(JOBS)]
    result = random_.choices(("FAILURE", "UNSTABLE", "TIMEOUT"), (8, 1, 1))[0] if failed else \
        random_.choices(("SUCCESS", "ABORTED"), (97, 3))[0]
    known = random_.choice(KNOWN) if failed and random_.random() < 0.3 else None  # noqa: PLR2004
    kind = ("infrastructure" if known else "test") if failed else "passed"
    return (number, node, job, number, change, 1, started, ended, result, provider, image, kind,
            random_.choice(PHASES) if failed else None, "FAILED" if failed else "PASS", known,
            round((ended - started) / 60, 1), f"https://jenkins.example.org/job/{job}/{number}/")


def _tally(connection: sqlite3.Connection) -> None:
    """Count what the triggers would have counted, except for the histograms."""
    connection.execute("INSERT INTO tally SELECT 'move', provider, image, coalesce(from_state, '') || '>' || "
                       "coalesce(to_state, ''), count(*), 0 FROM event GROUP BY 2, 3, 4")
    connection.execute("INSERT INTO tally SELECT 'build', provider, image, result, count(*), 0 FROM result "
                       "GROUP BY 2, 3, 4")
    connection.execute("INSERT INTO tally SELECT 'ready', provider, image, '120', count(*), sum(seconds) FROM event "
                       "WHERE from_state = 'BUILDING' AND to_state = 'READY' GROUP BY 2, 3")
