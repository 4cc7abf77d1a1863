"""What has happened in the pool: `vmdatabase.py history`, and its pruning by reap.

Each line is a move of a machine, snapshot or test environment, or the begin or end of a build; both outlive the rows
that they are about.
"""

from __future__ import annotations

import argparse
import datetime
import heapq
import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Any

import gateprocess
import vmdatabase
from gateprocess import ConfigError, get_log

DAY = 86400  # seconds
DEFAULT_DAYS = 90
PRUNED_AT_ONCE = 5000  # events in one transaction, for which others wait
UNITS = {"m": 60, "h": 3600, "d": DAY, "w": 7 * DAY}
TIMES = "a time as 2026-12-31, 2026-12-31T23:59Z or Unix seconds, or how long ago, as 90m, 24h or 7d"

EVENTS = """
    SELECT time, node_name AS node, provider, image, machine_id, snapshot_id, environment, from_state, to_state,
        seconds, reason
    FROM event WHERE {where} ORDER BY {order}"""
# Start and end of each row of result, each with what is known at that time.
BUILDS = """
    SELECT start_time AS time, node_name AS node, provider, image, machine_id, 'start' AS build,
        jenkins_job_name AS job, jenkins_build_number AS number, gerrit_change_number AS change,
        gerrit_patchset_number AS patchset, NULL AS result, NULL AS kind, NULL AS phase, NULL AS reason,
        NULL AS known_failure, NULL AS minutes, url, by_person
    FROM result WHERE start_time IS NOT NULL AND {where}
    UNION ALL
    SELECT end_time, node_name, provider, image, machine_id, 'end', jenkins_job_name, jenkins_build_number,
        gerrit_change_number, gerrit_patchset_number, result, kind, phase, reason, known_failure,
        round((end_time - start_time) / 60.0, 1), url, by_person
    FROM result WHERE end_time IS NOT NULL AND {where}
    ORDER BY 1, 6"""


def add_parser(commands: Any) -> None:
    """Add the command history to vmdatabase.py."""
    command = commands.add_parser("history", help="tell what happened to a node, also to one long gone")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("node", metavar="NODE", nargs="?", help="a node; or a snapshot or test environment by its name")
    what.add_argument("--provider", metavar="P", help="all that happened at a provider")
    what.add_argument("--image", metavar="I", help="all that happened to an image type")
    command.add_argument("--since", type=moment, default=0, metavar="TIME", help=f"only from then on: {TIMES}")
    command.add_argument("--json", action="store_true", help="as a JSON list of one object a line")
    command.set_defaults(run=run)


def moment(text: str) -> int:
    """Return a time in Unix seconds; raises ArgumentTypeError if the text is not a time."""
    try:
        if ago := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
            return int(time.time()) - int(ago[1]) * UNITS[ago[2]]
        if re.fullmatch(r"[0-9]{9,11}", text):
            return int(text)
        parsed = datetime.datetime.fromisoformat(text)
        return int((parsed if parsed.tzinfo else parsed.replace(tzinfo=datetime.UTC)).timestamp())
    except (ValueError, OverflowError) as err:
        raise argparse.ArgumentTypeError(f"expected {TIMES}, got {text!a}") from err


def run(options: argparse.Namespace) -> int:
    """Print the history of a node, a provider or an image type."""
    column, name = next((column, value) for column, value in (
        ("node_name", options.node), ("provider", options.provider), ("image", options.image)) if value is not None)
    if column == "node_name" and not is_known(column, name) and is_known("environment", name):
        column = "environment"
    if not is_known(column, name):
        raise ConfigError(f"{'NODE' if column == 'node_name' else f'--{column}'}: vm.db knows nothing, past or "
                          f"present, of {vmdatabase.printable(name)}")
    found = story(column, name, options.since)
    if options.json:
        print_json(found)
    else:
        tell(found, column)
    return gateprocess.EXIT_OK


def is_known(column: str, name: str) -> bool:
    """Return whether any event or build has this name in a column."""
    return name.isprintable() and any(
        vmdatabase.database.execute_sql(f"SELECT 1 FROM {table} WHERE {column} = ? LIMIT 1", (name,)).fetchone()
        for table in ("event", "result"))


def story(column: str, name: str, since: int = 0) -> Iterator[dict[str, Any]]:
    """Yield events and builds by time, as dicts of their columns.

    Within a second, ends of builds come first, then moves, then starts, as they happen.
    """
    where = f"{column} = ? AND {{}} >= ?"
    # Unary plus: sort one node's few rows rather than scan everything since then.
    order = "time, id" if column in ("provider", "image") else "+time, id"
    events = rows(EVENTS.format(where=where.format("time"), order=order), name, since)
    builds = rows(BUILDS.format(where=where.format("coalesce(end_time, start_time)")), name, since, name, since)
    places = {None: 1, "end": 0, "start": 2}
    return heapq.merge(events, (build for build in builds if build["time"] >= since),
                       key=lambda row: (row["time"], places[row.get("build")]))


def rows(query: str, *values: object) -> Iterator[dict[str, Any]]:
    """Yield the rows of a query as dicts."""
    cursor = vmdatabase.database.execute_sql(query, values)
    columns = [column[0] for column in cursor.description]
    return (dict(zip(columns, row, strict=True)) for row in cursor)


def print_json(found: Iterator[Mapping[str, Any]]) -> None:
    """Print the rows as a JSON list, one by one: there may be millions."""
    end = "["
    for row in found:
        sys.stdout.write(f"{end}\n{json.dumps(dict(row))}")
        end = ","
    sys.stdout.write("[]\n" if end == "[" else "\n]\n")


def tell(found: Iterator[Mapping[str, Any]], of: str) -> None:
    """Print the rows in words, each with its node or image unless all are of one node; times in UTC."""
    for row in found:
        when = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(row["time"]))
        node = "" if of == "node_name" else f"{shown(row['node'] or row['image'])}  "
        if row.get("environment"):
            print(f"{when}  {node.strip() and node}test environment {shown(row['environment'])}: {move_words(row)}")
            continue
        print(f"{when}  {node}{build_words(row) if 'build' in row else move_words(row)}")


def move_words(row: Mapping[str, Any]) -> str:
    """Return a move in words."""
    source, target = row["from_state"], row["to_state"]
    if source is None and target == vmdatabase.BUILDING:
        words = "asked for" if row["machine_id"] else "its build begins"
    elif source is None:
        words = f"in vm.db as {target}"
    elif target is None:
        words = f"gone, {lasted(row['seconds'])} after {source}"
    else:
        words = f"{source} -> {target} after {lasted(row['seconds'])}"
    return words + (f": {shown(row['reason'])}" if row["reason"] else "")


def build_words(row: Mapping[str, Any]) -> str:
    """Return in words that a build began or ended."""
    who = "a person" if row["job"] is None else f"{shown(row['job'])} #{row['number']}"
    if row["build"] == "start":
        change = f", change {row['change']},{row['patchset'] or '?'}" if row["change"] else ""
        return f"taken by {who}{change}"
    words = f"{who} ended {shown(row['result']) or '(nobody knows how)'}"
    if row["minutes"] is not None:
        words += f" after {row['minutes']:.0f} min"
    told = [text for text in (row["kind"], row["phase"], row["reason"]) if text]
    words += f": {', '.join(map(shown, told))}" if told else ""
    return words + (f" (known failure: {shown(row['known_failure'])})" if row["known_failure"] else "")


def shown(text: str | None) -> str:
    """Return a text from vm.db as one line that a terminal can show."""
    return gateprocess.plain(text or "")


def lasted(seconds: float | None) -> str:
    """Return a duration in words."""
    if seconds is None:
        return "?"
    for unit, length in (("days", DAY), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


# --- pruning ----------------------------------------------------------------------------------------------------------


def days() -> int:
    """Return for how many days events are kept: history-days of the providers file."""
    return int(vmdatabase.setting("history-days") or DEFAULT_DAYS)


def set_days(wanted: int) -> list[str]:
    """Set that number to what a providers file says; return one line for each change."""
    before = days()
    if wanted == before:
        return []
    vmdatabase.set_setting("history-days", str(wanted))
    return [f"change history-days: {before} -> {wanted}"]


def prune(now: float) -> int:
    """Delete events older than history-days, in parts so that nobody waits for long; return how many."""
    before = int(now) - days() * DAY
    pruned = 0
    while True:
        with vmdatabase.database.atomic("IMMEDIATE"):
            count = int(vmdatabase.database.execute_sql(
                "DELETE FROM event WHERE id IN (SELECT id FROM event WHERE time < ? ORDER BY time LIMIT ?)",
                (before, PRUNED_AT_ONCE)).rowcount)
        pruned += count
        if count < PRUNED_AT_ONCE:
            break
    if pruned:
        get_log().info("pruned %d events older than %d days", pruned, days())
    return pruned
