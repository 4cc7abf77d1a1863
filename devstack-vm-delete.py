#!/usr/bin/env python3
"""Mark a machine for deletion after its build, and record the build's result.

Run after any end of a gate build, by the job devstack-vm-delete with the node's name and the build's result. Machines
of builds that ended FAILURE, UNSTABLE or TIMEOUT stay USED, out of service, 24 hours for whoever wants to look; then
reap deletes them. Not so if the build's archived logs/verdict.json says that the change is not to blame (of kind
infrastructure or machine); what that file says is recorded, too. An autohold (vmdatabase.py autohold) holds the machine
of a build that failed in any case, and lets its person in. If GATE_JOB_NAME and GATE_BUILD_NUMBER name the build,
a machine that now belongs to another build or to a person, or that no build has had yet, is left alone. If the job was
renamed meanwhile, the build keeps its machine if Jenkins says that it ran there. Changes: the machine USED -> DELETE,
the build's row in the table result; the node's label and offline mark in Jenkins if the node is still in service. If
the machine had a test environment, that is reset. The next devstack-vm-reap deletes the machine itself.

Exit codes: 0 done, 1 recorded, but Jenkins could not be asked (reap does that again), or a reset failed, 2 wrong use or
configuration.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateconfig
import gateprocess
import jenkinsnodes
import vmdatabase
from gateconfig import SecureConfig
from gateprocess import GateError
from pool import environments, script
from pool.verdict import FAILED_RESULTS, UNKNOWN, Verdict, end_words, fetch, fetch_slowly, is_kept, without
from vmdatabase import BUILDING, DELETE, READY, USED, Machine, Result

if TYPE_CHECKING:
    from pool.autohold import Autohold

RESULTS = ("SUCCESS", "FAILURE", "UNSTABLE", "ABORTED", "TIMEOUT")


def main(argv: list[str] | None = None) -> int:
    """Take the node out of service, record the result, mark the machine."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    config = gateconfig.load_secure_config()
    code = gateprocess.EXIT_OK
    with vmdatabase.opened(gateconfig.database_place()):
        if is_reaped(options.node, os.environ):
            gateprocess.get_log(node=options.node).info(
                "the machine is gone; devstack-vm-reap has recorded the end of its build")
            return code
        machine = vmdatabase.machine_named(options.node)
        if machine.state == BUILDING:
            raise GateError(f"{machine.name}: is BUILDING, no build can have run on it; left alone")
        follow_rename(machine, os.environ, config)
        if reason := not_its_own(machine, os.environ):
            vmdatabase.machine_log(machine).info("%s; left alone", reason)
            return code
        verdict = ask_for_verdict(machine, config)
        try:
            take_out_of_service(machine, config)
        except GateError as err:
            vmdatabase.machine_log(machine).error("%s; the next reap tries again", err)
            code = gateprocess.EXIT_FAILED
        wanted = record(machine, options.result, verdict(code == gateprocess.EXIT_OK))
        if wanted:
            from pool import autohold

            autohold.let_in(vmdatabase.refreshed(machine), wanted, config)
        if environments.run_resets():
            code = gateprocess.EXIT_FAILED
    return code


def ask_for_verdict(machine: Machine, config: SecureConfig) -> Callable[[bool], Verdict | None]:
    """Ask Jenkins for the build's verdict, in another thread while other things are done.

    Returns a function that waits for the verdict. Its argument says whether Jenkins answers by now, so that it can be
    asked once more in another way. It returns None for a person's machine, or if the build is not known.
    """
    job, number = build_of(machine, os.environ)
    jenkins = config.jenkins_named(machine.jenkins)
    if jenkins is None or number is None:
        return lambda _answers: None
    import threading

    found: list[Verdict | None] = []
    thread = threading.Thread(target=lambda: found.append(fetch(jenkins, job, number)), daemon=True)
    thread.start()

    def wait(answers: bool) -> Verdict | None:
        thread.join()
        told = found[0] if found else None
        if told is None and answers and (nodes := script.nodes_of(config, machine)):
            told = fetch_slowly(nodes, job, number)
        told = told or without(jenkinsnodes.build_url(jenkins, job, number), "Jenkins did not answer")
        if told.kind == UNKNOWN:
            vmdatabase.machine_log(machine).info("%s", told.reason)
        return told

    return wait


def build_of(machine: Machine, environ: Mapping[str, str]) -> tuple[str, int | None]:
    """Return job and number of the build that has the machine, from vm.db or the environment; else "" and None."""
    taken = vmdatabase.open_result(machine)
    if taken:
        return str(taken.jenkins_job_name or ""), taken.jenkins_build_number if taken.jenkins_job_name else None
    job, number = environ.get("JOB_NAME", ""), environ.get("BUILD_NUMBER", "")
    return (job, int(number)) if job and re.fullmatch("[0-9]{1,9}", number) else ("", None)


def take_out_of_service(machine: Machine, config: SecureConfig) -> None:
    """Take the node out of service, if it is not, before the machine is marked.

    inprogress has usually done that, so one look is enough. A build waits for this script.
    """
    jenkins = config.jenkins_named(machine.jenkins)
    if jenkins is None:
        vmdatabase.machine_log(machine).info("no [jenkins%s] section in %s: there is no node to look after",
                                             f" {machine.jenkins}" * bool(machine.jenkins), config.path)
    if jenkins is None or not machine.jenkins_name:
        return
    in_service = not jenkinsnodes.is_out_of_service(jenkins, machine.jenkins_name)
    if in_service and (nodes := script.nodes_of(config, machine)):
        nodes.take_out_of_service(machine.jenkins_name, "its build has ended", missing_ok=True)


def record(machine: Machine, result: str | None, told: Verdict | None) -> Autohold | None:
    """Record the result and, unless the machine is kept for a look, mark it DELETE; HOLD is never overwritten.

    Returns the autohold for which the machine is now held; None if there is none.
    """
    log = vmdatabase.machine_log(machine)
    with vmdatabase.database.atomic("IMMEDIATE"):
        vmdatabase.record_end(machine, os.environ, result, **(told._asdict() if told else {}))
        machine = vmdatabase.refreshed(machine)
        if machine.state == READY:
            vmdatabase.move(machine, READY, USED, "a build ran there without devstack-vm-inprogress")
        if machine.state != USED:
            log.info("is %s and stays so%s", machine.state, f" ({machine.hold_reason})" * bool(machine.hold_reason))
        elif result in FAILED_RESULTS and (wanted := wanted_by(machine)):
            log.info("USED -> HOLD: %s; %s@%s", wanted.hold_reason, machine.user, machine.ip)
            return wanted
        elif is_kept(result, told):
            log.info("%s: kept for 24 hours; longer with: vmdatabase.py hold %s --reason TEXT", result, machine.name)
        else:
            why = end_words(result, told)
            vmdatabase.move(machine, USED, DELETE, why)
            log.info("USED -> DELETE: %s", why)
    return None


def wanted_by(machine: Machine) -> Autohold | None:
    """Hold the machine of a failed build if an autohold wants it; return that autohold, or None."""
    from pool import autohold

    return autohold.take(machine)


def is_reaped(node: str, environ: Mapping[str, str]) -> bool:
    """Return whether the named build's end is recorded and its machine is gone."""
    job, number = environ.get("GATE_JOB_NAME", ""), environ.get("GATE_BUILD_NUMBER", "")
    if not job.isprintable() or not job or not re.fullmatch("[0-9]{1,18}", number):
        return False
    own = Result.select().where((Result.node_name == node) & (Result.jenkins_job_name == job)
                                & (Result.jenkins_build_number == int(number)) & Result.end_time.is_null(False))
    return own.exists() and not Machine.select().where(Machine.name == node).exists()


def follow_rename(machine: Machine, environ: Mapping[str, str], config: SecureConfig) -> None:
    """Record the new name of a job that was renamed while its build, which has the machine, ran.

    The named build must have the same number, and Jenkins must confirm the rest: it knows no such build under the old
    name, and the named one ran on this node. Raises GateError if Jenkins does not answer.
    """
    job, number = environ.get("GATE_JOB_NAME", ""), environ.get("GATE_BUILD_NUMBER", "")
    taken = vmdatabase.open_result(machine)
    if not taken or not job or not job.isprintable() or taken.jenkins_job_name in (None, job) \
            or taken.jenkins_build_number is None or number != str(taken.jenkins_build_number):
        return
    nodes, node = script.nodes_of(config, machine), str(machine.jenkins_name or machine.name)
    if nodes is None or nodes.build(taken.jenkins_job_name, taken.jenkins_build_number):
        return
    build = nodes.build(job, taken.jenkins_build_number)
    if build and (build.node == node or nodes.runs_on(node, job, taken.jenkins_build_number)):
        vmdatabase.machine_log(machine).info("Jenkins has renamed the job %s to %s", taken.jenkins_job_name, job)
        vmdatabase.note_of_build(machine, jenkins_job_name=job)


def not_its_own(machine: Machine, environ: Mapping[str, str]) -> str:
    """Return why the named build does not own this machine; '' if it does or no build is named."""
    told = environ.get("GATE_JOB_NAME"), environ.get("GATE_BUILD_NUMBER")
    if not all(told):
        return ""
    taken = vmdatabase.open_result(machine)
    if taken is None:
        return "no build has had it yet" if machine.state == READY else ""
    own = told == (taken.jenkins_job_name, str(taken.jenkins_build_number))
    return "" if own else f"belongs to {vmdatabase.build_of(taken) or 'a person'}"


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("node", metavar="NODE_NAME", help="the node that the build ran on")
    parser.add_argument("--result", choices=RESULTS, help="how the build ended")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateprocess.run(main)
