#!/usr/bin/env python3
"""Run devstack-vm-delete.py for a gate build that has ended: find out which node it had and how it ended.

Run by the job devstack-vm-delete, on the host of vm.db. GATE_JOB_NAME, GATE_BUILD_NUMBER and GATE_NODE_NAME name the
build; without these it is each build that triggered this one in Jenkins, which JOB_NAME and BUILD_NUMBER name.
GATE_RESULT says how it ended; if that is empty, Jenkins is asked. With GATE_NODE_NAME alone the machine is marked
without a result.

Exit codes: that of devstack-vm-delete.py; 1 if Jenkins does not tell, or if one of several builds is not dealt with.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gateconfig
import gateprocess
import vmdatabase
from gateprocess import ConfigError, GateError
from jenkinsnodes import Nodes
from pool import script

DELETE = Path(__file__).resolve().parent.parent / "devstack-vm-delete.py"
END_SECONDS = 60  # for a build that triggers this job to finish its last bookkeeping
POLL_SECONDS = 1
RESULT_OF = {"NOT_BUILT": "ABORTED"}  # all others have the names that devstack-vm-delete.py uses


@dataclass(frozen=True)
class Ended:
    """A build that has ended; result is empty if it is unknown."""

    node: str
    result: str
    job: str = ""
    number: str = ""


def main(argv: list[str] | None = None) -> int:
    """Find the builds, and run devstack-vm-delete.py for each."""
    options = gateprocess.make_parser(__doc__).parse_args(argv)
    gateprocess.setup_logging(options.verbosity)
    node, result = os.environ.get("GATE_NODE_NAME", ""), os.environ.get("GATE_RESULT", "")
    job, number = build_named("GATE_JOB_NAME", "GATE_BUILD_NUMBER")
    if node and (result or not number):
        return delete(Ended(node, result, job, str(number or "")))
    nodes = open_jenkins()
    builds = [(job, number)] if number else followed(nodes)
    codes = [delete_after(nodes, job, number, node) for job, number in builds]
    return codes[0] if len(codes) == 1 else int(any(codes))


def open_jenkins() -> Nodes:
    """Return the Jenkins to ask, from the secure configuration; ConfigError if it has none, or not this one."""
    config = gateconfig.load_secure_config()
    with vmdatabase.opened(gateconfig.database_place()):
        jenkinses = script.jenkinses_of(config)
    if jenkinses is None:
        raise ConfigError(f"{config.path}: [jenkins] is missing: GATE_RESULT is empty, so Jenkins must be asked")
    nodes = jenkinses.at(os.environ.get("JENKINS_URL", ""))
    if nodes is None:
        raise ConfigError(f"{config.path}: JENKINS_URL is the server of no [jenkins] section: GATE_RESULT is empty, "
                          "and nobody knows which Jenkins to ask")
    return nodes


def build_named(job_variable: str, number_variable: str) -> tuple[str, int | None]:
    """Return the job and number that two variables name, or nothing; ConfigError if they make no sense."""
    job, number = os.environ.get(job_variable, ""), os.environ.get(number_variable, "")
    if not job and not number:
        return "", None
    if not re.fullmatch(r"[0-9]{1,9}", number) or not job:
        raise ConfigError(f"{job_variable} and {number_variable}: expected a job and the number of a build, "
                          f"got {job!r} and {number!r}")
    return job, int(number)


def followed(nodes: Nodes) -> list[tuple[str, int]]:
    """Return the builds that triggered this one: Jenkins merges several waiting builds into one."""
    job, number = build_named("JOB_NAME", "BUILD_NUMBER")
    this = nodes.build(job, number) if number else None
    if this is None or not this.upstream:
        raise ConfigError("GATE_NODE_NAME: expected the node of a build, since this one follows no other")
    return list(dict.fromkeys(this.upstream))


def end_of(nodes: Nodes, job: str, number: int, node: str) -> Ended:
    """Return how a build ended, and on which node: `node`, or Jenkins' answer. GateError if Jenkins does not tell."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        build = nodes.build(job, number)
        if build is None:
            raise GateError(f"Jenkins knows no {job} #{number}, or the user lacks the right Job/Read on it; its "
                            "machine is left to devstack-vm-reap")
        if build.result:
            return Ended(node or build.node, RESULT_OF.get(build.result, build.result), job, str(number))
        if time.monotonic() > deadline:
            raise GateError(f"{job} #{number} still runs after {END_SECONDS} s")
        time.sleep(POLL_SECONDS)


def delete_after(nodes: Nodes, job: str, number: int, node: str) -> int:
    """Deal with one build of several, and return the exit code; a failure does not stop the others."""
    try:
        return delete(end_of(nodes, job, number, node))
    except GateError as err:
        gateprocess.get_log().error("%s", err)
        return err.exit_code


def delete(build: Ended) -> int:
    """Run devstack-vm-delete.py as that build's last step, and return its exit code."""
    result = [f"--result={build.result}"] if build.result else []
    settings = {"JOB_NAME": build.job, "BUILD_NUMBER": build.number, "GATE_JOB_NAME": build.job,
                "GATE_BUILD_NUMBER": build.number}
    return subprocess.run([sys.executable, DELETE, *result, "--", build.node], env={**os.environ, **settings},
                          check=False).returncode


if __name__ == "__main__":
    gateprocess.run(main)
