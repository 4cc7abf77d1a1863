"""How long a build waits for devstack-vm-inprogress and devstack-vm-delete, as cold processes on a warm disk.

The limit of each is its floor (floor_inprogress.py, floor_delete.py): a bare Python process that imports the same
libraries, makes one such transaction in the same vm.db and the same requests to Jenkins, and nothing else. That the
requests are the same is looked up in Jenkins' log. Must hold: within 1.3 times the floor. Each run is several
pairs. The further figures say where the time goes: the interpreter, the imports of the script and of its floor without
the interpreter, the floor's transaction, and its calls to Jenkins.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import vmdatabase
from bench.measure import PROJECT, BenchError, Row, pairs, run_process, run_script
from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, provider

PAIRS_A_RUN = 4  # a pair takes less than a second
JOB, NUMBER = "gate", "1"
SECRET = "of the machines"
BUILD = {"JOB_NAME": JOB, "BUILD_NUMBER": NUMBER, "GATE_JOB_NAME": JOB, "GATE_BUILD_NUMBER": NUMBER,
         "GATE_TAKE_SECRET": SECRET}


@dataclass(frozen=True)
class Case:
    """A script and its floor; each takes the node's name."""

    script: str
    arguments: tuple[str, ...]
    modules: str  # all that the script imports
    floor: str
    floor_arguments: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option for the number of pairs in a run."""
    parser.add_argument("--pairs", type=int, default=PAIRS_A_RUN, metavar="N",
                        help=f"of inprogress and delete in each run, at least 1 ({PAIRS_A_RUN})")


def run(options: argparse.Namespace) -> list[Row]:
    """Measure inprogress, then delete with the machines that inprogress took."""
    count = options.runs * options.pairs
    with tempfile.TemporaryDirectory() as name, \
            StandIn(Path(name) / "jenkins", knobs={"connect": "instant"}) as stand_in:
        pool = Pool(Path(name), jenkins=stand_in)
        pool.load(provider())
        start_build(stand_in)
        machines = [pool.add_machine(server=False) for _ in range(3 * (count + 1))]
        pool.sql("UPDATE machine SET take_hash = ?", vmdatabase.secret_hash(SECRET))
        return [_measure(pool, case, machines, count) for case in _cases(stand_in)]


def start_build(stand_in: StandIn) -> None:
    """Start the build that the machines are taken for, on a node that is not one of them."""
    stand_in.add_job(JOB, "any", seconds=86400)
    stand_in.add_nodes([{"name": "any", "label": "any"}])
    stand_in.wait_started(stand_in.build(JOB))


def _cases(stand_in: StandIn) -> list[Case]:
    place = urlsplit(stand_in.url)
    login = stand_in.user, stand_in.token
    return [
        Case("devstack-vm-inprogress.py", (), "gateconfig, jenkinsnodes, vmdatabase, jenkins, requests",
             "floor_inprogress.py", (stand_in.url, *login, JOB, NUMBER)),
        Case("devstack-vm-delete.py", ("--result", "SUCCESS"), "gateconfig, jenkinsnodes, pool.autohold, pool.verdict, "
             "vmdatabase, base64",
             "floor_delete.py", (str(place.hostname), str(place.port), *login, JOB, NUMBER)),
    ]


def _measure(pool: Pool, case: Case, machines: list[str], count: int) -> Row:
    """Measure `count` pairs, and the parts after each; a third of the machines each for script, floor and database."""
    row = Row(case.script.removesuffix(".py"))
    environment = pool.environment | BUILD | {"PYTHONPATH": str(PROJECT)}
    ours, floors, others = (iter(machines[number::3]) for number in range(3))
    parts: list[tuple[float, float, float, float]] = []

    def script() -> float:
        used = run_script(case.script, next(ours), *case.arguments, environment=environment, folder=pool.folder)
        row.peak_mb.append(used.peak_mb)
        return used.seconds

    def floor(step: str, node: str = "") -> float:
        command: list[str | Path] = [sys.executable, PROJECT / "bench" / case.floor, step, pool.database, node]
        return run_process([*command, *case.floor_arguments], environment, pool.folder).seconds

    def python(code: str) -> float:
        return run_process([sys.executable, "-c", code], environment, pool.folder).seconds

    def limit() -> float:
        whole = floor("jenkins", next(floors))
        parts.append((python("pass"), python(f"import {case.modules}"), floor("imports"),
                      floor("database", next(others))))
        return whole

    sent = [_requests(pool, call) for call in (script, limit)]  # the first runs warm the disk, too
    if sent[0] != sent[1]:
        raise BenchError(f"{case.script} and its floor ask Jenkins for different things: {sent[0]}, {sent[1]}")
    del row.peak_mb[:], parts[:]
    pairs(row, count, script, limit)
    row.more = {
        "requests to Jenkins": len(sent[0]),
        "interpreter": statistics.median(interpreter for interpreter, *_ in parts),
        "imports": statistics.median(imports - interpreter for interpreter, imports, *_ in parts),
        "imports of the floor": statistics.median(imports - interpreter for interpreter, _, imports, _ in parts),
        "database": statistics.median(database - imports for _, _, imports, database in parts),
        "jenkins": statistics.median(whole - database for whole, (*_, database) in zip(row.limit, parts, strict=True)),
    }
    return row


def _requests(pool: Pool, call: Callable[[], float]) -> list[str]:
    """Return the requests that a call sends to Jenkins, without the name of the node."""
    assert pool.jenkins
    pool.jenkins.reset_calls()
    call()
    sent = pool.jenkins.look()["requests"]
    names = dict.fromkeys(pool.machines(), "NODE")
    return sorted(f"{one['method']} {'/'.join(names.get(part, part) for part in one['path'].split('/'))} "
                  f"{one['query']} {one['status']}" for one in sent)  # sorted, since some are sent at the same time
