#!/usr/bin/env python3
"""Take a node out of service, so that its machine serves one build and no other.

Run as the first step of a gate build, by the job devstack-vm-inprogress with the node's name, and waited for: the
build may go on only if this exits with 0. With --image, a person takes a READY machine the same way; its name and
user@address are printed, and those of its subnodes below. Changes: the machine READY -> USED, one row in the table
result, the node's label and offline mark in Jenkins. Nothing is written on the machine, unless its image type has
test-environment: true in the providers file. Then this waits, in turn with others and for environment-wait at most,
until a test environment is locked for the machine, and writes its data there. If that cannot be had, the machine is
not kept.

A call that comes through Jenkins gets the machine only if it proves to come from the build on that node: it shows the
machine's own secret (GATE_TAKE_SECRET), or Jenkins says that the build which GATE_JOB_NAME and GATE_BUILD_NUMBER name
runs there now. If they name a build that has ended meanwhile, nothing is taken.

Exit codes: 0 the machine is yours alone, 1 it is not (somebody else has it, or Jenkins does not answer), 2 wrong use
or configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateconfig
import gateprocess
import jenkinsnodes
import vmdatabase
from gateconfig import SecureConfig
from gateprocess import ConfigError, GateError
from pool import environments, script
from pool.jenkinses import Jenkinses
from vmdatabase import DELETE, READY, USED, BaseImage, Machine, Provider

# Variables that the job sets, even to nothing; Jenkins itself sets the last one in each build.
FROM_JENKINS = ("GATE_NODE_NAME", "GATE_JOB_NAME", "GATE_BUILD_NUMBER", "GATE_TAKE_SECRET", "BUILD_TAG")

BUSY_SECONDS, BUSY_POLL_SECONDS = 300, 2


def main(argv: list[str] | None = None) -> int:
    """Take the machine of a node, or any machine of an image type."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    config = gateconfig.load_secure_config()
    machine, pool = None, ""
    try:
        with vmdatabase.opened(gateconfig.database_place()):
            pool = vmdatabase.pool_uuid()
            jenkinses = script.jenkinses_of(config)
            if options.image is not None:
                take_for_person(options.image, options.provider, jenkinses, config)
            else:
                machine = vmdatabase.machine_named(options.node)
                take_for_build(machine, jenkinses, config)
    except (vmdatabase.DatabaseError, ConfigError) as err:
        silent = isinstance(err, vmdatabase.DatabaseError | vmdatabase.UnusableError)
        if options.node and options.node.isprintable() and (machine is None or silent):
            why = jenkinsnodes.UNANSWERED if silent or not pool else jenkinsnodes.UNKNOWN
            take_out_unknown(options.node, config, pool, why)
        raise
    return gateprocess.EXIT_OK


def take_for_build(machine: Machine, jenkinses: Jenkinses | None, config: SecureConfig) -> None:
    """Take a machine for the build that runs on it, and a test environment if it needs one."""
    nodes = jenkinses.find(machine) if jenkinses else None
    if jenkinses and nodes is None:
        raise ConfigError(f"{machine.name}: belongs to [jenkins {machine.jenkins}], and {config.path} has no such "
                          "section")
    with environments.standing_in_line(machine):
        take_with_node(machine, nodes)
        environments.hand_over(machine, config, jenkinses)


def take_with_node(machine: Machine, nodes: jenkinsnodes.Nodes | None) -> None:
    """Take a machine for the build that runs on it.

    If that fails, the node must not serve other builds either: each would come here and fail.
    """
    looked = False
    if nodes:
        try:
            nodes.check_login()  # so a refusal shows before anything is changed, and an outage is not waited for
            refuse_ended_build(nodes, os.environ)
            node = nodes.look(str(machine.name))
            looked = True
            refuse_used_node(node, machine)
        except jenkinsnodes.JenkinsError:
            nodes.hurry()
    refuse_stranger(machine, nodes, os.environ)
    try:
        take(machine)
    except GateError:
        try:
            take_out_of_service(machine, nodes, missing_ok=True)
        except GateError as err:
            keep_busy(machine, nodes, err)
        raise
    try:
        if nodes and not looked:
            refuse_used_node(nodes.look(str(machine.name)), machine, taken=True)
        take_out_of_service(machine, nodes)
    except GateError as err:
        keep_busy(machine, nodes, err)
        raise


def keep_busy(machine: Machine, nodes: jenkinsnodes.Nodes | None, why: GateError) -> None:
    """Delay a build that must fail until no other build can start on its node, for BUSY_SECONDS at most.

    The build waits for this script. Without the delay, while Jenkins refuses everything, each queued build would come
    to this node and fail.
    """
    told, deadline = False, time.monotonic() + BUSY_SECONDS
    while nodes and machine.jenkins_name and time.monotonic() < deadline:
        try:
            node = nodes.look(machine.jenkins_name)
        except GateError:
            return  # a Jenkins that is down starts no build either
        if node is None or node.temporarily_offline or jenkinsnodes.USED_LABEL in node.labels:
            return
        if not told:
            vmdatabase.machine_log(machine).error(
                "%s; this build holds the node for %d min: others would come and fail, too", why, BUSY_SECONDS // 60)
        told = True
        time.sleep(BUSY_POLL_SECONDS)


def refuse_ended_build(nodes: jenkinsnodes.Nodes, environ: Mapping[str, str]) -> None:
    """Raise GateError if the build that GATE_JOB_NAME and GATE_BUILD_NUMBER name is over, for example aborted.

    Nothing of it can have run, since its first step waits for this script; the next build can have the node.
    """
    job, number = build_named(environ)
    build = nodes.build(job, number) if number and "GATE_JOB_NAME" in environ else None
    if build and build.result:
        raise GateError(f"{job} #{number} has ended already ({build.result}); its node is left to the next build")


def build_named(environ: Mapping[str, str]) -> tuple[str, int]:
    """Return job and number of the build that the machine is for, from the environment; "" and 0 if it names none."""
    prefix = "GATE_" if "GATE_JOB_NAME" in environ or "GATE_BUILD_NUMBER" in environ else ""
    job, number = environ.get(f"{prefix}JOB_NAME", ""), environ.get(f"{prefix}BUILD_NUMBER", "")
    return (job, int(number)) if job and re.fullmatch("[0-9]{1,9}", number) else ("", 0)


def refuse_stranger(machine: Machine, nodes: jenkinsnodes.Nodes | None, environ: Mapping[str, str]) -> None:
    """Raise GateError unless a call that comes through Jenkins proves to belong to the build on the machine's node.

    Whoever can start the job can name any node. A caller on this host's command line has access to vm.db anyway.
    """
    if nodes is None or not any(name in environ for name in FROM_JENKINS):
        return
    given = vmdatabase.secret_hash(environ.get("GATE_TAKE_SECRET", ""))
    if hmac.compare_digest(given, machine.take_hash or ""):
        return
    job, number = build_named(environ)
    if number and nodes.runs_on(str(machine.jenkins_name or machine.name), job, number):
        return
    build = f"Jenkins does not show {job} #{number} as running there" if number else "no build is named"
    raise GateError(f"{machine.name}: {build}, and its secret was not given; nothing was changed")


def refuse_used_node(node: jenkinsnodes.Node | None, machine: Machine, taken: bool = False) -> None:
    """Raise GateError if a machine is READY, or was when we took it, but its node is out of service.

    Then vm.db was restored from before the machine's use. No new build comes to such a node: the caller is a build that
    began earlier, or a person.
    """
    if node and jenkinsnodes.USED_LABEL in node.labels and (taken or vmdatabase.state_of(machine) == READY):
        raise GateError(f"{machine.name}: vm.db says READY, but its node is out of service already "
                        f"({node.reason or 'without its label'}); this build must not run on it")


def take_out_unknown(name: str, config: SecureConfig, pool: str, why: str) -> None:
    """Take a node out of service that has no row in vm.db.

    Otherwise each queued build would come here and fail. If its name is not like ours, this happens only if a build
    runs there: then a person renamed or copied a node; else somebody mistyped a name. pool is the UUID of vm.db, empty
    if it could not be read.
    """
    prefix = gateconfig.name_prefix()
    ours = name.startswith(f"{prefix}devstack-")
    local = vmdatabase.folder_of_locks()  # the database need not answer
    locks = config.path.with_name(f"{config.path.name}.locks") if local is None else local
    log = gateprocess.get_log(node=name)
    for jenkins in config.jenkinses:
        nodes = jenkinsnodes.Nodes(jenkins, partial(locked_if_possible, locks), pool)
        try:
            node = nodes.look(name)
            if node and is_black_hole(node, prefix, nodes.is_marked(node)) and (ours or not node.idle):
                nodes.take_out_of_service(name, why, missing_ok=True)
                log.warning("%s: out of service now, so that no other build fails there", why)
        except GateError as err:
            log.error("%s; each build that comes to this node will fail until somebody takes it offline", err)


@contextlib.contextmanager
def locked_if_possible(folder: Path, kind: str, seconds: float, name: str) -> Iterator[bool]:
    """Hold the lock of a kind and name; where no lock file can be made, nobody can hold that lock: go on without it."""
    with contextlib.ExitStack() as lock:
        try:
            mine = lock.enter_context(gateprocess.file_lock(folder / kind, seconds, name))
        except GateError as err:
            gateprocess.get_log(node=name).warning("%s; going on without it", err)
            mine = True
        yield mine


def is_black_hole(node: jenkinsnodes.Node, prefix: str, ours: bool) -> bool:
    """Return whether builds would come to a node that vm.db does not know and fail, one after the other.

    They would if it has a label of the pool, and either carries the pool's mark or runs a build, which then asked for
    that label. Any other node is left alone: somebody may have mistyped a name.
    """
    labels = [label for label in node.labels - {node.name, jenkinsnodes.USED_LABEL}
              if label.startswith(f"{prefix}devstack-")]
    return bool(labels) and (ours or not node.idle)


def take_for_person(
    image: str, provider: str | None, jenkinses: Jenkinses | None, config: SecureConfig
) -> None:
    """Take the READY machine of an image type that has waited longest, and print it; GateError if none can be had.

    Those whose nodes are offline come last.
    """
    vmdatabase.leave_out_noted_ids()  # this shows whether vm.db was restored
    seen = jenkinses.look() if jenkinses else None
    offline: list[tuple[Machine, jenkinsnodes.Node]] = []  # their agents may be lost for good
    for machine in candidates(image, provider):
        nodes = jenkinses.of(machine) if jenkinses else None
        if seen and nodes and nodes.name in seen.silent:
            continue  # a build may be running there
        node = seen.nodes.get(str(machine.jenkins_name)) if seen else None
        if node and (not node.idle or node.temporarily_offline or node.by_person
                     or jenkinsnodes.USED_LABEL in node.labels):
            continue  # a build has just started there, somebody took it offline, or vm.db is older than its use
        if nodes and node is None and vmdatabase.restored_since(machine.state_time):
            continue  # it may be gone, and vm.db restored from before
        if node and node.offline:
            offline.append((machine, node))
        elif give_to_person(machine, jenkinses, config):
            return
    for machine, node in offline:
        vmdatabase.machine_log(machine).warning(
            "its node is offline (%s), and there is none that is online; the machine may not answer",
            gateprocess.plain(node.reason, 200) or node.cause or "Jenkins still connects")
        if give_to_person(machine, jenkinses, config):
            return
    raise GateError(f"no READY machine of image {image}; see: vmdatabase.py list")


def give_to_person(machine: Machine, jenkinses: Jenkinses | None, config: SecureConfig) -> bool:
    """Take a machine for a person, with a test environment if it needs one, and print it.

    Returns False if the caller should try another one; raises WithoutError if there was no test environment in time.
    """
    with environments.standing_in_line(machine):
        try:
            take(machine, by_person=True)
        except GateError:
            return False  # a build or another person was faster
        take_out_of_service(machine, jenkinses.find(machine) if jenkinses else None, missing_ok=True)
        if not without_login(machine, config):
            return False
        environments.hand_over(machine, config, jenkinses)
    for one in (machine, *vmdatabase.members_of(machine)):
        print(f"{one.name} {one.user}@{one.ip}")
    vmdatabase.machine_log(machine).info(
        "yours for 24 hours; longer with: vmdatabase.py hold %s --reason TEXT", machine.name)
    return True


def without_login(machine: Machine, config: SecureConfig) -> bool:
    """Remove the login for Jenkins from a person's machine, if there is one.

    Returns whether that worked; otherwise the machine is given up.
    """
    if machine.take_hash is None and not any(jenkins.node_login for jenkins in config.jenkinses):
        return True
    import nodessh

    try:
        nodessh.wipe_jenkins_login(nodessh.Login.of_machine(machine, config.node))
    except GateError as err:
        vmdatabase.move(machine, USED, DELETE, "Jenkins' login could not be removed")
        vmdatabase.machine_log(machine).error("%s; USED -> DELETE, since Jenkins' login could not be removed", err)
        return False
    return True


def take(machine: Machine, by_person: bool = False) -> Machine:
    """Move a machine to USED and record who has it; raises GateError if it is not READY (any more)."""
    with vmdatabase.database.atomic("IMMEDIATE"):
        if not vmdatabase.move(machine, READY, USED, vmdatabase.who_takes(os.environ)):
            raise GateError(f"{machine.name}: {why_not(vmdatabase.refreshed(machine))}; this build must not run on it")
        vmdatabase.record_start(machine, os.environ, by_person=by_person or None)
        vmdatabase.forget_deaths([machine.base_image_id])
        environments.queue_up(machine)
    vmdatabase.machine_log(machine).info("READY -> USED")
    return machine


def why_not(machine: Machine) -> str:
    """Return in words why a machine cannot be taken."""
    if machine.state != USED:
        return f"is {machine.state}" + f" ({machine.hold_reason})" * bool(machine.hold_reason)
    last = vmdatabase.last_result(machine)
    build = vmdatabase.build_of(last) if last else ""
    return f"is USED already, by {build}" if build else "is USED already"


def candidates(image: str, provider: str | None) -> list[Machine]:
    """Return the READY machines of an image type, longest waiting first. Raises ConfigError for an unknown image."""
    known = sorted({row.name for row in BaseImage.select()})
    if image not in known:
        raise ConfigError(f"--image: unknown image {vmdatabase.printable(image)}{gateprocess.nearest(image, known)}")
    query = Machine.select(Machine, BaseImage, Provider).join(BaseImage).join(Provider).where(BaseImage.name == image)
    if provider is not None:
        query = query.where(BaseImage.provider == vmdatabase.provider_named(provider))
    ready = (Machine.state == READY) & Machine.lead_id.is_null()
    return list(query.where(ready).order_by(Machine.state_time, Machine.id))


def take_out_of_service(machine: Machine, nodes: jenkinsnodes.Nodes | None, missing_ok: bool = False) -> None:
    """Take the node out of service, so that Jenkins starts no more builds there; do nothing if there never was one."""
    log = vmdatabase.machine_log(machine)
    if nodes is None:
        log.info("no [jenkins] section in the secure configuration: there is no node to take out of service")
    elif machine.jenkins_name:
        build = f"{os.environ.get('JOB_NAME', '')} #{os.environ.get('BUILD_NUMBER', '')}".strip(" #")
        why = f"{jenkinsnodes.IN_USE_BY}{build or 'a person'}"
        try:
            nodes.take_out_of_service(machine.jenkins_name, why, missing_ok)
        except ConfigError as err:
            raise GateError(str(err)) from err  # exit code 2 says that nothing was changed
        log.info("out of service in Jenkins")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("node", metavar="NODE_NAME", nargs="?", help="the node that the build runs on")
    what.add_argument("--image", metavar="IMAGE", help="for a person: any READY machine of this image type")
    parser.add_argument("--provider", metavar="P", help="with --image: of this provider only")
    options = parser.parse_args(argv)
    if options.provider is not None and options.image is None:
        parser.error("--provider goes with --image")
    return options


if __name__ == "__main__":
    gateprocess.run(main)
