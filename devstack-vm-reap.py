#!/usr/bin/env python3
"""Make cloud, Jenkins and vm.db agree again: delete what is used up, died or leaked.

Run by the job devstack-reap-vms every hour, once for each provider (or `all`). Deletes machines marked DELETE or ERROR,
machines of failed builds after 24 hours, those that were taken but by no build after 15 minutes, held ones whose hours
are over, ready ones that died, old snapshots, and whatever carries this pool's UUID but has no row. Records the ends of
builds that devstack-vm-delete was not called for, as when Jenkins died. Nothing without that mark is ever touched,
nothing is concluded from an answer other than 404, and a node that still builds is left alone. If vm.db is older than
the world, as after a restore, what builds, is held or is out of service gets its row or state back, and other servers
without a row are left until a person says that the restore was on purpose (vmdatabase.py moved), or --all-servers.
Changes: servers, images, keypairs, volumes and floating IPs of the provider, nodes in Jenkins, rows in vm.db.

Exit codes: 0 all agree, 1 something is left for the next run (said why), 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import gateconfig
import gateprocess
import jenkinsnodes
import nodessh
import vmdatabase
from cloud import nova
from gateconfig import SecureConfig
from gateprocess import GateError, get_log
from pool import autohold, history, rules, script
from pool.rules import Sight, Suspect, Use, Verdict
from pool.verdict import FAILED_RESULTS, end_words, fetch_slowly, is_kept
from pool.verdict import Verdict as BuildVerdict
from vmdatabase import (
    BUILDING,
    DELETE,
    ERROR,
    HOLD,
    READY,
    USED,
    BaseImage,
    Machine,
    Provider,
    Result,
    SnapshotImage,
)

T = TypeVar("T")

UNCLAIMED_SECONDS = 900  # how long a machine is kept that was taken, but by no build and no person
CLOCK_SECONDS = 300  # how far this host's clock may be ahead of others
FORGOTTEN_SECONDS = 300  # for how long a machine is to be taken before its build, unknown to Jenkins, is over
DEAD_NODE_SECONDS = 20  # between two looks at a ready machine whose agent is away
WATCH_SECONDS = 60  # how long a run waits to see servers gone; the next run looks again
LONGEST_SECONDS = 2 * rules.HOUR  # what a run can take
CONFIRMED = 10  # servers that are asked for one by one when a list shows none at all
STUCK = rules.HOUR  # a delete that takes longer is reported


# --- one run ----------------------------------------------------------------------------------------------------------


GONE, ASKED, BUILDS = "gone", "asked", "builds"
UNTOLD = jenkinsnodes.Build(node="", result=None, upstream=(), tells_node=False)  # Jenkins did not answer


class Reap:
    """One run for one provider. Only the main thread touches vm.db; calls to the outside run in workers."""

    def __init__(self, provider: Provider, config: SecureConfig, options: argparse.Namespace) -> None:
        self.provider = provider
        self.options = options
        self.config = config
        self.log = get_log(provider=provider.name)
        self.prefix = gateconfig.name_prefix()
        self.nodes = script.nodes_of(config)
        self.cloud = nova.Cloud(provider, vmdatabase.pool_uuid())
        self.workers = gateprocess.Workers(provider.max_concurrency)
        self.builds: dict[int, jenkinsnodes.Build | None] = {}  # what Jenkins was asked for, by machine; see ask_for
        self.verdicts: dict[int, BuildVerdict] = {}  # of those of them that have ended
        self.troubles = 0
        self.died: Counter[int] = Counter()  # ready machines whose agent never came or was lost, by image
        self.deleted: Counter[str] = Counter()
        self.gone: set[str] = set()  # ids of servers that this run saw gone
        self.going: dict[int, str] = {}  # names of machines whose deletion this run has begun
        self.clock_ahead = 0.0  # seconds that this host's clock is ahead of the cloud's and of Jenkins'

    def run(self) -> int:
        """See, decide, act, look again; returns the exit code."""
        with gateprocess.telling(self.left):
            return self.reap()

    def left(self) -> str:
        """Return in words what a run that is stopped leaves to the next one."""
        names = list(self.going.values())
        return f"left to the next reap, being deleted: {gateprocess.some(names)}" if names else ""

    def reap(self) -> int:
        """Do the work of run(), outside the handler that reports a stop."""
        images = self.listed(self.cloud.list_snapshots)
        keypairs = self.listed(self.cloud.list_keypairs) or {}
        listed_at = vmdatabase.now()
        floating_ips = self.listed(self.cloud.network.list_ours) or []
        volumes = self.see_volumes()
        sight = self.see()
        stray_nodes = self.stray_nodes(sight)
        self.leave_out_ids(sight, images or [], keypairs)
        self.end_dead_builds()
        self.adopt(sight)
        self.see_ended_builds(sight)
        self.move_machines(sight)
        self.see_ended_builds(sight)  # also of builds that vm.db has learnt of only now
        self.retire_nodes(sight)
        self.delete_servers(sight)
        if images is not None:
            self.delete_snapshots(images)
        self.each("keypair", self.leaked_keypairs(keypairs), self.cloud.delete_keypair)
        self.release_floating_ips(floating_ips, listed_at, sight)
        self.each("volume", self.leaked_volumes(volumes), self.cloud.volumes.delete)
        self.each("stray node", stray_nodes, self.remove_node)
        if not self.options.dry_run:
            self.drop_drained()
            history.prune(self.now())
            self.report()
        return gateprocess.EXIT_FAILED if self.troubles or self.died else gateprocess.EXIT_OK

    def report(self) -> None:
        """Print what was deleted and whether anything is left."""
        counted = [f"{count} {what}{'s' * (count > 1)}" for what, count in sorted(self.deleted.items())]
        for image in [image for image in vmdatabase.images_of(self.provider) if self.died[image.id]]:
            if image.deaths >= vmdatabase.DEATHS_IN_A_ROW:
                self.log.bind(image=image.name).error(
                    "%d ready machines in a row were lost to Jenkins; launch tries one at a time until one is of use, "
                    "or the image or its entry in the providers file changes", image.deaths)
        count = self.died.total()
        died = f"; {count} ready machine{'s' * (count > 1)} lost to Jenkins" if count else ""
        left = f"; {self.troubles} left for the next run" if self.troubles else ""
        print(f"{self.provider.name}: deleted {', '.join(counted) or 'nothing'}{died}{left}")

    def trouble(self, text: object) -> None:
        """Report what is left for the next run."""
        self.troubles += 1
        self.log.warning("%s", text)

    def each(self, what: str, items: Mapping[str, str], act: Callable[[str], object]) -> list[str]:
        """Do one thing to many items side by side; {key to act on: words for people}. Returns the keys that worked."""
        if self.options.dry_run:
            for words in items.values():
                print(f"would delete {what} {words}")
            return []
        done = []
        tasks = {key: self.workers.submit(act, key) for key in items}
        for key, task in tasks.items():
            try:
                task.result()
            except GateError as err:
                self.trouble(f"{what} {items[key]}: {err}")
            else:
                self.log.info("deleted %s %s", what, items[key])
                self.deleted[what] += 1
                done.append(key)
        return done

    # --- seeing ---

    def listed(self, call: Callable[[], T]) -> T | None:
        """Return what a list call returns, or None, reported, if it fails; the rest of the run can do without it."""
        try:
            return call()
        except GateError as err:
            self.trouble(err)
            return None

    def see_volumes(self) -> list[nova.Volume]:
        """Return the volumes of ours; if no image type boots from one, silence of the cloud is no trouble."""
        if any(image.boot_from_volume for image in vmdatabase.images_of(self.provider)):
            return self.listed(self.cloud.list_volumes) or []
        try:
            return self.cloud.list_volumes()
        except GateError as err:
            self.log.info("%s; no image type boots from a volume now", err)
            return []

    def see(self) -> Sight:
        """Look at the cloud and at Jenkins, and only then at vm.db: what is launched meanwhile is no leak."""
        listed_at = vmdatabase.now()
        servers = {server.id: server for server in self.cloud.list_servers()}
        nodes = self.see_nodes()
        self.see_clock()
        machines = vmdatabase.machines_of(self.provider)
        suspects = [str(machine.external_id) for machine in machines
                    if machine.external_id and machine.external_id not in servers
                    and machine.state_time < listed_at and (machine.state in (READY, USED, HOLD) or not servers)]
        tasks = {server_id: self.workers.submit(self.look_at, server_id) for server_id in suspects}
        found = {server_id: task.result() for server_id, task in tasks.items()}
        hidden = {server_id: server for server_id, server in found.items() if isinstance(server, nova.Server)}
        if hidden:
            self.trouble(f"the list of servers left out {len(hidden)} that are there; nothing is concluded from it")
        return Sight(
            servers={**servers, **hidden},
            gone=frozenset(server_id for server_id, answer in found.items() if answer == GONE),
            list_is_whole=all(answer == GONE for answer in found.values()),
            nodes=nodes,
            nodes_by_id=self.nodes.by_machine(nodes or {}) if self.nodes else {},
            dead_nodes=self.see_dead_nodes([machine for machine in machines if machine.state == READY], nodes),
        )

    def see_clock(self) -> None:
        """Compare this host's clock with the cloud's and Jenkins': one that has jumped ahead ends no hold."""
        told = {"the cloud's": self.cloud.clock_ahead, "Jenkins'": self.nodes.clock_ahead if self.nodes else None}
        known = {whose: seconds for whose, seconds in told.items() if seconds is not None}
        ahead = min(known.values(), default=0.0)
        if ahead > CLOCK_SECONDS:
            self.clock_ahead = ahead
            self.trouble(f"the clock of this host is {ahead / 60:.0f} min ahead of {' and '.join(known)}; "
                         "ages are counted without that")

    def now(self) -> float:
        """Return the time by which ages are counted, in Unix seconds."""
        return time.time() - self.clock_ahead

    def look_at(self, server_id: str) -> nova.Server | str | None:
        """Run in a worker: return the server, GONE for a 404, None when the cloud does not tell."""
        try:
            return self.cloud.get_server(server_id)
        except nova.GoneError:
            return GONE
        except GateError as err:
            self.trouble(err)
            return None

    def see_nodes(self) -> dict[str, jenkinsnodes.Node] | None:
        """Return Jenkins' nodes, or None if it does not tell: then machines that may have a node are left alone."""
        if self.nodes is None:
            return {}
        try:
            return {name: node for name, node in self.nodes.all().items() if not self.nodes.is_others(node)}
        except GateError as err:
            self.trouble(f"{err}; machines that may have a node are left alone")
            return None

    def see_dead_nodes(
        self, machines: Sequence[Machine], nodes: Mapping[str, jenkinsnodes.Node] | None
    ) -> frozenset[str]:
        """Return the nodes of ready machines whose agent is lost, after a second look and logins of our own."""
        if nodes is None:
            return frozenset()
        if not self.options.dry_run:
            vmdatabase.note_agents(machines, nodes)
        watched = {str(machine.jenkins_name): machine for machine in machines if machine.jenkins_name in nodes}
        dead = {name for name in watched if nodes[name].idle and nodes[name].agent == jenkinsnodes.BARRED}
        suspects = {name: self.suspect(machine, nodes[name]) for name, machine in watched.items()
                    if nodes[name].idle and name not in dead}
        suspects = {name: suspect for name, suspect in suspects.items() if suspect.lost or suspect.gone}
        silent = self.silent_ones(watched, suspects)
        doubted = [name for name, one in suspects.items() if one.lost or name in silent]
        away = self.stay_away(doubted)
        silent &= self.silent_ones(watched, away & silent)
        here = [name for name in watched if nodes[name].agent == jenkinsnodes.HERE and not nodes[name].offline]
        cut_off = len(silent) > 1 and not here and len(silent) == len(suspects)
        dead |= {name for name in away if rules.is_dead(suspects[name], name in silent, cut_off)}
        if waiting := sorted((away | suspects.keys() - set(doubted)) - dead):
            self.log.warning("the agents of %s are away; Jenkins is given time to have them back%s",
                             gateprocess.some(waiting), ", and the network, since none answers by ssh" * cut_off)
        return frozenset(dead)

    def suspect(self, machine: Machine, node: jenkinsnodes.Node) -> Suspect:
        """Return what is to be known of a ready machine whose agent may be lost."""
        now = int(self.now())
        absent = now - machine.absent_time if machine.absent_time else 0
        state = node.prospect(now - machine.state_time, machine.online_time is not None, absent)
        return Suspect(state == jenkinsnodes.LOST, node.agent == jenkinsnodes.GONE, absent)

    def silent_ones(self, machines: Mapping[str, Machine], names: Iterable[str]) -> set[str]:
        """Return which machines do not answer by ssh."""
        port, node = self.provider.ssh_port, self.config.node
        tasks = {name: self.workers.submit(nodessh.answers, nodessh.Login(
            str(machines[name].ip), port, str(machines[name].user), node.ssh_key, machines[name].host_key),
            self.provider.boot_timeout)
            for name in names}
        return {name for name, task in tasks.items() if not task.result()}

    def stay_away(self, names: Sequence[str]) -> set[str]:
        """Look at nodes for a while; returns those whose agents did not show themselves meanwhile."""
        away = set(names)
        deadline = time.monotonic() + DEAD_NODE_SECONDS
        while away and time.monotonic() < deadline:
            time.sleep(2)
            seen = self.see_nodes()
            if seen is None:
                return set()
            away = {name for name in away if name in seen and seen[name].idle and seen[name].agent != jenkinsnodes.HERE}
        return away

    # --- machines ---

    def end_dead_builds(self) -> None:
        """Move snapshots that no running devstack-vm-update-image builds any more to ERROR."""
        with script.provider_lock("update-image", self.provider.name) as no_build_runs:
            if no_build_runs and not self.options.dry_run:
                vmdatabase.end_dead_builds(self.provider)

    def move_machines(self, sight: Sight) -> None:
        """Apply the rules to every machine."""
        machines = vmdatabase.machines_of(self.provider)
        images = {image.id: image for image in vmdatabase.images_of(self.provider)}
        now, moved = int(self.now()), int(vmdatabase.setting("moved") or 0)
        judged = [rules.judge(machine, images[machine.base_image_id], self.provider.boot_timeout, sight, now, moved,
                        self.unclaimed(machine, sight, now)) for machine in machines]
        verdicts = [verdict for verdict in judged if verdict]
        if self.options.all_servers:
            going = {verdict.machine.id for verdict in verdicts}
            verdicts += [Verdict(machine, DELETE, "--all-servers") for machine in machines if machine.id not in going
                         and machine.external_id and machine.state in (READY, USED, BUILDING)
                         and not sight.builds(machine)]
        else:
            verdicts += self.verdicts_for_room(machines, images.values(), verdicts, sight)
        for verdict in verdicts:
            machine, source = verdict.machine, str(verdict.machine.state)
            if self.options.dry_run:
                print(f"would move {machine.name} {source} -> {verdict.target}: {verdict.why}")
                continue
            columns = dict(verdict.columns) | ({"error": verdict.why} if verdict.target == ERROR else {})
            if source == BUILDING and (node := sight.node(machine)):
                columns["jenkins_name"] = node.name
            if vmdatabase.move(machine, source, verdict.target, verdict.why, **columns):
                self.log_of(machine).info("%s -> %s: %s", source, verdict.target, verdict.why)
                self.tell_forgotten(verdict, sight)
                self.count_death(verdict, sight)
        self.see_to_held([machine for machine in machines if machine.state == HOLD], sight)

    def unclaimed(self, machine: Machine, sight: Sight, now: int) -> str:
        """Return why a machine that was taken a while ago is nobody's, empty if it is somebody's or that is not known.

        Jenkins is asked for the build that took it. One that it does not know, or that ran elsewhere, has no use for
        the machine; somebody may have named it to take the machine away from the pool.
        """
        if machine.state != USED or now - machine.state_time < UNCLAIMED_SECONDS or self.nodes is None \
                or sight.nodes is None or sight.builds(machine):
            return ""
        last = vmdatabase.last_result(machine)
        if last and (last.by_person or last.result):
            return ""
        if not last or not last.jenkins_job_name or last.jenkins_build_number is None:
            return "no build has taken it"
        self.ask_for({machine.id: last})
        build = self.builds[machine.id]
        if build is None:
            return f"Jenkins knows no {vmdatabase.build_of(last)}"
        elsewhere = build.ran_elsewhere(str(machine.jenkins_name or machine.name))
        return f"{vmdatabase.build_of(last)} did not run there" if elsewhere else ""

    def count_death(self, verdict: Verdict, sight: Sight) -> None:
        """Count a ready machine that is of no use to Jenkins, in a row with those before it of its image type.

        Not one whose server the cloud or a person took away: no image is to blame for that.
        """
        machine, node = verdict.machine, sight.node(verdict.machine)
        if verdict.target == ERROR and node and node.name in sight.dead_nodes and not sight.server_death(machine):
            self.died[machine.base_image_id] += 1
            made_of = vmdatabase.recipe(self.provider, machine.base_image, machine.snapshot_image_id, self.config)
            vmdatabase.count_death(machine, f"{node.agent} {node.cause}", made_of)

    def tell_forgotten(self, verdict: Verdict, sight: Sight) -> None:
        """Report a machine that vm.db did not know to be somebody's, and write down the build that has it."""
        if verdict.target not in (HOLD, USED):
            return
        machine = verdict.machine
        self.trouble(f"{machine.name}: vm.db did not know that it is {verdict.target} ({verdict.why}); now it does")
        if verdict.target == USED and not vmdatabase.open_result(machine):
            build = rules.build_named(verdict.why)
            vmdatabase.record_start(machine, build, by_person=not build or None)
        server = sight.server(machine)
        if machine.ip is None and server:
            vmdatabase.set_columns(machine, ip=self.cloud.network.shown_address(server))

    def see_ended_builds(self, sight: Sight) -> None:
        """Record the ends that devstack-vm-delete was not called for, as where Jenkins died under a build.

        Jenkins is asked for each build that vm.db has running while its node is idle.
        """
        if self.nodes is None or sight.nodes is None or self.options.dry_run:
            return
        machines = [machine for machine in vmdatabase.machines_of(self.provider, [USED, HOLD])
                    if not sight.builds(machine)]
        rows = {machine.id: row for machine in machines
                if (row := vmdatabase.open_result(machine)) and row.jenkins_job_name
                and row.jenkins_build_number is not None}
        self.ask_for(rows)
        for machine in machines:
            if machine.id in rows:
                self.note_end(machine, vmdatabase.build_of(rows[machine.id]), self.builds[machine.id])

    def ask_for(self, rows: Mapping[int, Result]) -> None:
        """Ask Jenkins for builds, {row id of the machine: row of its build}, each once in a run; fills self.builds.

        A build that Jenkins does not know is None there, UNTOLD one for which it did not answer.
        """
        assert self.nodes
        tasks = {number: self.workers.submit(self.nodes.build, row.jenkins_job_name, row.jenkins_build_number)
                 for number, row in rows.items() if number not in self.builds}
        for number, task in tasks.items():
            try:
                self.builds[number] = task.result()
            except GateError as err:
                self.trouble(err)
                self.builds[number] = UNTOLD
        verdicts = {number: self.workers.submit(fetch_slowly, self.nodes, self.config.jenkins,
                                                row.jenkins_job_name, row.jenkins_build_number)
                    for number, row in rows.items() if number in tasks and (build := self.builds[number])
                    and build.result and self.config.jenkins}
        self.verdicts.update({number: task.result() for number, task in verdicts.items()})

    def note_end(self, machine: Machine, name: str, build: jenkinsnodes.Build | None) -> None:
        """Write down how a build has ended, if it has; its machine goes on as after devstack-vm-delete."""
        log = self.log_of(machine)
        if build and build.ran_elsewhere(str(machine.jenkins_name or machine.name)):
            return  # it is nobody's
        if build is None and self.now() - machine.state_time >= FORGOTTEN_SECONDS:
            log.warning("Jenkins knows no %s, or the user lacks the right Job/Read on it; its end is not known", name)
            vmdatabase.record_end(machine, {}, None)
        elif build and build.result:
            log.info("%s has ended %s, and devstack-vm-delete did not come", name, build.result)
            told = self.verdicts[machine.id]
            vmdatabase.record_end(machine, {}, build.result, **told._asdict())
            ended = end_words(build.result, told)
            if build.result in FAILED_RESULTS and (wanted := autohold.take(machine)):
                log.info("USED -> HOLD: %s", wanted.hold_reason)
                self.let_in(machine, wanted)
            elif not is_kept(build.result, told) and vmdatabase.move(machine, USED, DELETE, ended):
                log.info("USED -> DELETE: %s", ended)

    def let_in(self, machine: Machine, wanted: autohold.Autohold) -> None:
        """Put the key of an autohold on a machine that is held for it."""
        try:
            self.workers.submit(autohold.let_in, machine, wanted, self.config).result()
        except GateError as err:
            self.trouble(err)

    def see_to_held(self, machines: Sequence[Machine], sight: Sight) -> None:
        """Learn the servers of held machines whose ids were not saved, and tell whose servers are gone."""
        for machine in machines:
            if not self.options.dry_run:
                self.save_server_id(machine, sight)
                self.mark_held(machine, sight)
            if machine.external_id in sight.gone:
                self.log_of(machine).warning("is held, but its server is gone; let it go with: vmdatabase.py unhold %s",
                                             machine.name)

    def mark_held(self, machine: Machine, sight: Sight) -> None:
        """Have the server of a held machine tell so, for a vm.db that may be restored some day."""
        server = sight.server(machine)
        marks = nova.held_marks(str(machine.hold_reason or ""), machine.hold_until)
        if server and not marks.items() <= server.metadata.items():
            try:
                self.cloud.mark_held(server.id, str(machine.hold_reason or ""), machine.hold_until)
            except GateError as err:
                self.trouble(f"{machine.name}: {err}")

    @staticmethod
    def save_server_id(machine: Machine, sight: Sight) -> None:
        """Save the id of a machine's server that is known by its mark alone."""
        if not machine.external_id and machine.id in sight.by_machine:
            vmdatabase.set_columns(machine, external_id=sight.by_machine[machine.id].id)

    def retire_nodes(self, sight: Sight) -> None:
        """Take nodes out of service that are not to serve a build any more, but were left in it by an outage."""
        for machine in vmdatabase.machines_of(self.provider):
            node = (sight.nodes or {}).get(str(machine.jenkins_name))
            if machine.state not in (USED, HOLD) or self.nodes is None or node is None or node.out_of_service:
                continue
            if self.options.dry_run:
                print(f"would take node {node.name} out of service")
                continue
            try:
                if self.nodes.is_ours(node, machine.ip):
                    self.nodes.take_out_of_service(node.name, rules.why_taken(machine), missing_ok=True)
                    self.log_of(machine).info("its node is out of service now")
            except GateError as err:
                self.trouble(err)

    def verdicts_for_room(
        self, machines: Sequence[Machine], images: Iterable[BaseImage], verdicts: Sequence[Verdict], sight: Sight
    ) -> list[Verdict]:
        """Return which finished machines go before their 24 hours because the pool has no room to be full."""
        going = {verdict.machine.id for verdict in verdicts}
        staying = [machine for machine in machines if machine.id not in going and machine.state not in (DELETE, ERROR)]
        coming = Counter(machine.base_image_id for machine in staying if machine.state in (READY, BUILDING))
        missing = sum(max(0, image.min_ready - coming[image.id]) for image in images)
        ended = vmdatabase.machines_with_ended_builds()
        finished = [machine for machine in staying
                    if machine.state == USED and machine.id in ended and not sight.builds(machine)]
        rows = {machine.id: machine.external_id for machine in machines}
        snapshots = {row.id: row for row in vmdatabase.snapshots_of(self.provider)}
        others = vmdatabase.count_templates(self.provider) + len(
            rules.unaccounted_servers(sight.servers.values(), rows, snapshots, self.now()))
        return rules.make_room(finished, missing, self.provider.max_servers - len(staying) - others)

    def log_of(self, machine: Machine) -> gateprocess.Log:
        """Return the log of one machine."""
        return self.log.bind(machine=machine.id, node=machine.name)

    def delete_servers(self, sight: Sight) -> None:
        """Delete the servers of machines that are over and the leaked ones, side by side, and see them gone."""
        over = [machine for machine in vmdatabase.machines_of(self.provider) if machine.state in (DELETE, ERROR)]
        rows = dict(vmdatabase.server_ids(self.provider))
        leaked = self.leaks_to_delete(sight, rows)
        if self.options.dry_run:
            for machine in over:
                print(f"would delete machine {machine.name} ({machine.state})")
        asked = [] if self.options.dry_run else self.delete_over(over, sight)
        gone_soon: dict[str, Machine | None] = {str(machine.external_id): machine for machine in asked}
        names = {server.id: f"{server.name} {server.id}" for server in leaked}
        nodes = {server.id: sight.nodes_by_id[server.machine_id].name for server in leaked
                 if server.machine_id is not None and server.machine_id in sight.nodes_by_id.keys() - rows.keys()}
        gone_soon |= dict.fromkeys(self.each(
            "leaked server", names, lambda server_id: self.delete_leak(server_id, nodes.get(server_id))))
        self.see_gone(gone_soon)

    def delete_leak(self, server_id: str, node: str | None) -> None:
        """Run in a worker: remove the node of a server without a row, if it has one that builds nothing, then that."""
        if self.nodes and node and not self.nodes.remove(node, jenkinsnodes.GOING):
            raise GateError("a build runs there; left for the next run")
        self.cloud.delete_server(server_id)

    def delete_over(self, machines: Sequence[Machine], sight: Sight) -> list[Machine]:
        """Ask for the end of each machine's node and server; returns those still to be seen gone."""
        tasks = {}
        for machine in machines:
            if sight.nodes is None and machine.jenkins_name:
                continue
            if name := sight.renamed(machine):
                self.trouble(f"{machine.name}: its server was renamed to {name}, so it is left; delete it or take its "
                             f"metadata {nova.POOL_KEY} away")
                continue
            if machine.state == ERROR and not vmdatabase.move(machine, ERROR, DELETE):
                continue  # a person holds it
            self.save_server_id(machine, sight)
            if machine.delete_time is None:
                vmdatabase.set_columns(machine, delete_time=vmdatabase.now())
            self.going[machine.id] = str(machine.name)
            tasks[machine.id] = self.workers.submit(
                self.delete_one, machine.jenkins_name, machine.ip, machine.external_id)
        asked = []
        for machine in [machine for machine in machines if machine.id in tasks]:
            try:
                answer = tasks[machine.id].result()
            except GateError as err:
                self.trouble(f"{machine.name}: {err}{self.stuck(machine)}")
                continue
            if answer == BUILDS:
                self.log_of(machine).info("its node still builds; left for the next run")
            elif machine.external_id is None and not sight.list_is_whole:
                self.log_of(machine).info("whether it ever had a server cannot be told yet; left for a later run")
            elif answer == GONE:
                self.gone.add(str(machine.external_id))
                self.drop(machine)
            else:
                asked.append(machine)
        return asked

    def delete_one(self, node: str | None, address: str | None, server_id: str | None) -> str:
        """Run in a worker: remove a node that builds nothing, then ask for the server's end."""
        if self.nodes and node and not self.nodes.remove(node, jenkinsnodes.GOING, address):
            return BUILDS
        return ASKED if server_id and self.cloud.delete_server(server_id) else GONE

    def see_gone(self, waiting: dict[str, Machine | None]) -> None:
        """Look again until the servers are gone, and drop the rows of their machines; report those that stay."""
        deadline = time.monotonic() + WATCH_SECONDS
        pause = 0.5
        while waiting and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)
            for server_id in self.seen_gone(list(waiting)):
                self.gone.add(server_id)
                machine = waiting.pop(server_id)
                if machine:
                    self.drop(machine)
        for server_id, machine in waiting.items():
            self.trouble(f"{machine.name if machine else server_id}: the server is still there, "
                         f"{WATCH_SECONDS} s after its deletion was asked for{self.stuck(machine)}")

    def seen_gone(self, server_ids: Sequence[str]) -> list[str]:
        """Return which servers one more look shows gone.

        A list without any server is believed only if the last few, asked for one by one, are gone, too.
        """
        try:
            listed = {server.id for server in self.cloud.list_servers()}
        except GateError as err:
            self.log.warning("%s", err)
            return []
        missing = [server_id for server_id in server_ids if server_id not in listed]
        if listed:
            return missing
        few = missing[-CONFIRMED:]
        tasks = [self.workers.submit(self.look_at, server_id) for server_id in few]
        gone = [server_id for server_id, task in zip(few, tasks, strict=True) if task.result() == GONE]
        return missing if len(gone) == len(few) else gone

    @staticmethod
    def stuck(machine: Machine | None) -> str:
        """Return words for a delete that takes too long, counted from its first attempt."""
        age = vmdatabase.now() - machine.delete_time if machine and machine.delete_time else 0
        return f"; stuck, the first attempt to delete it was {age // 60} min ago" if age >= STUCK else ""

    def drop(self, machine: Machine) -> None:
        """Delete the row of a machine that is gone."""
        if Machine.delete().where((Machine.id == machine.id) & (Machine.state == DELETE)).execute():
            self.log_of(machine).info("server, node and row are gone")
            self.going.pop(machine.id, None)
            self.deleted["machine"] += 1

    # --- servers without a row ---

    def leave_out_ids(
        self, sight: Sight, images: Sequence[nova.Image], keypairs: Mapping[str, int]
    ) -> None:
        """Make no row with an id that a server or a node bears, and know which ids vm.db knows nothing of."""
        if not self.options.dry_run:
            seen = [0, *sight.nodes_by_id, *(number or 0 for number in sight.by_machine)]
            vmdatabase.leave_out_ids("machine", max(seen))
            vmdatabase.leave_out_ids("snapshot_image", nova.last_snapshot_id(
                sight.servers.values(), images, keypairs.values()))

    def leaks(self, sight: Sight) -> list[nova.Server]:
        """Return the servers of ours that no row accounts for."""
        snapshots = {row.id: row for row in vmdatabase.snapshots_of(self.provider)}
        rows = dict(vmdatabase.server_ids(self.provider))
        return rules.leaked_servers(sight.servers.values(), rows, snapshots, self.now())

    def adopt(self, sight: Sight) -> None:
        """Give a row to each server that has none though somebody has it: vm.db is older than that."""
        rows = {number for number, _ in vmdatabase.server_ids(self.provider)}
        for server in self.leaks(sight):
            number = server.machine_id
            if number is None or number in rows:
                continue
            node = sight.nodes_by_id.get(number)
            use = rules.use_of(server, node, self.now())
            if use and self.options.dry_run:
                print(f"would take over {server.name} as {use.state}: {use.why}")
            elif use:
                self.adopt_one(server, node, use, sight)

    def adopt_one(
        self, server: nova.Server, node: jenkinsnodes.Node | None, use: Use, sight: Sight
    ) -> None:
        """Write the row of a server that somebody has; one of an image type that is not known is left as it is."""
        ending = f"-{self.provider.name}-{server.machine_id}"
        image = next((image for image in vmdatabase.images_of(self.provider)
                      if server.name.endswith(f"devstack-{image.name}{ending}")), None)
        if image is None:
            return
        values = {"id": server.machine_id, "base_image": image, "external_id": server.id, "name": server.name,
                  "jenkins_name": node.name if node else None, "user": self.config.node.user, "state": use.state,
                  "state_time": vmdatabase.now(), "state_reason": use.why, **use.columns}
        try:
            Machine.insert(**values).execute()
        except vmdatabase.IntegrityError:
            return  # a row of another provider has its id
        self.tell_forgotten(Verdict(Machine.get_by_id(server.machine_id), use.state, use.why), sight)

    def leaks_to_delete(self, sight: Sight, rows: Mapping[int, str | None]) -> list[nova.Server]:
        """Return the servers without a row that go; the others are told."""
        going = []
        for server in self.leaks(sight):
            why = self.why_left(server, rows, sight)
            if why:
                self.trouble(f"server {server.name} {server.id} has no row in vm.db and is left: {why}")
            elif server.machine_id is None or sight.nodes is not None:
                going.append(server)
        unlikely = rules.unlikely_leaks(going, vmdatabase.known_ids("machine"), vmdatabase.known_ids("snapshot_image"),
                                        len(rows), int(vmdatabase.setting("moved") or 0))
        if not unlikely or self.options.all_servers:
            return going
        names = gateprocess.some(sorted(server.name for server in going))
        self.trouble(f"servers without a row in vm.db: {names}; {unlikely}, as after a restore, so all are left until "
                     "a person says that this is so (vmdatabase.py moved), or --all-servers")
        return []

    def why_left(self, server: nova.Server, rows: Mapping[int, str | None], sight: Sight) -> str:
        """Return why a server without a row is no leak but somebody's; empty if it is one."""
        template = SnapshotImage.get_or_none(SnapshotImage.id == server.snapshot_id)
        if template and template.keep_until:
            return ""  # a template server whose hours are over, as vm.db knows better than the server's marks
        number = server.machine_id
        node = None if number is None or number in rows else sight.nodes_by_id.get(number)
        if use := rules.use_of(server, node, self.now()):
            return use.why
        own_name = number is None or server.name.endswith(f"-{self.provider.name}-{number}")
        if not own_name and not self.options.all_servers:
            return f"it was renamed or copied by a person; its metadata {nova.POOL_KEY} makes it ours"
        return ""

    # --- images ---

    def delete_snapshots(self, images: Sequence[nova.Image]) -> None:
        """Delete old and failed snapshots, and images of ours without a row."""
        rows = vmdatabase.snapshots_of(self.provider)
        by_id = {row.id: row for row in rows}
        leaked = self.images_to_delete(rules.leaked_images(images, by_id, self.now()))
        self.each("leaked image", {image.id: f"{image.name} {image.id}" for image in leaked}, self.cloud.delete_image)
        self.see_images_of([row for row in rows if row.state == READY], {image.id: image for image in images})
        rows = vmdatabase.snapshots_of(self.provider)
        by_image = defaultdict(list)
        for row in rows:
            by_image[row.base_image_id].append(row)
        found = {(image.snapshot_id, image.name): image.id for image in images}
        for image_rows in by_image.values():
            image = image_rows[0].base_image
            for row in rules.old_snapshots(image_rows, self.options.all_images or not image.active, self.now()):
                self.delete_snapshot(row, row.external_id or found.get((row.id, row.name)))

    def images_to_delete(self, leaked: Sequence[nova.Image]) -> list[nova.Image]:
        """Return which images without a row go; good ones get a row, others that a newer vm.db has made are left."""
        known = vmdatabase.known_ids("snapshot_image")
        going = []
        for image in leaked:
            if self.options.all_images:
                going.append(image)
            elif not self.options.dry_run and self.adopt_image(image):
                self.trouble(f"snapshot {image.name}: vm.db did not know it; now it does")
            elif known.knows(image.snapshot_id or 0):
                going.append(image)
            else:
                self.trouble(f"image {image.name} {image.id} has no row and was made by a newer vm.db than this; it "
                             "is left until a person says that this is so (vmdatabase.py moved), or --all-images")
        return going

    def adopt_image(self, image: nova.Image) -> bool:
        """Give a row to an image that machines boot well from; returns whether it has one now."""
        version = re.search(rf"-([0-9]+){re.escape(nova.TEMPLATE_SUFFIX)}$", image.name)
        types = [one for one in vmdatabase.images_of(self.provider) if version and image.name.endswith(
            f"devstack-{one.name}-{version[1]}{nova.TEMPLATE_SUFFIX}")]
        if not (image.proved and image.status == "active" and version and types):
            return False
        try:
            SnapshotImage.insert(id=image.snapshot_id, base_image=types[0], name=image.name, version=int(version[1]),
                                 external_id=image.id, state=READY, state_time=vmdatabase.now()).execute()
        except vmdatabase.IntegrityError:
            return False
        return True

    def see_images_of(self, snapshots: Sequence[SnapshotImage], images: Mapping[str, nova.Image]) -> None:
        """Delete the rows of snapshots whose image is gone, and have the other images tell that they are good."""
        for row in snapshots:
            image = images.get(str(row.external_id))
            try:
                if self.options.dry_run or (image and image.proved):
                    continue
                if image:
                    self.cloud.mark_proved(image.id)
                elif row.external_id and self.image_deleted(row.external_id):
                    self.log.warning("snapshot %s: its image is gone", row.name)
                    self.delete_snapshot(row, None)
            except GateError as err:
                self.trouble(f"snapshot {row.name}: {err}")

    def delete_snapshot(self, row: SnapshotImage, image_id: str | None) -> None:
        """Delete a snapshot's image, and its row when the image and the template server are gone."""
        if self.options.dry_run:
            print(f"would delete snapshot {row.name} ({row.state})")
            return
        if row.state == READY and not vmdatabase.move(row, READY, DELETE):
            return
        try:
            if image_id and not self.image_gone(image_id):
                raise GateError("the image is still there")
            if row.server_external_id and self.cloud.delete_server(row.server_external_id):
                self.log.info("snapshot %s: its template server is not gone yet; its row stays", row.name)
                return
        except GateError as err:
            self.trouble(f"snapshot {row.name}: {err}")
            return
        row.delete_instance()
        self.log.info("deleted snapshot %s", row.name)
        self.deleted["snapshot"] += 1

    def image_gone(self, image_id: str) -> bool:
        """Delete an image and return whether a later look shows it gone."""
        self.cloud.delete_image(image_id)
        return self.image_deleted(image_id)

    def image_deleted(self, image_id: str) -> bool:
        """Return whether a look shows an image gone."""
        try:
            return self.cloud.image_status(image_id) in ("deleted", "pending_delete")
        except nova.GoneError:
            return True

    # --- the rest ---

    def leaked_keypairs(self, keypairs: Mapping[str, int]) -> dict[str, str]:
        """Return the keypairs whose image is not being built."""
        building = vmdatabase.building_snapshot_ids()
        return {name: name for name, snapshot_id in keypairs.items() if snapshot_id not in building}

    def release_floating_ips(self, floating_ips: Sequence[nova.FloatingIP], listed_at: int, sight: Sight) -> None:
        """Let go of the floating IPs of servers that are gone, and of those that no machine will be bound to."""
        known = (vmdatabase.all_server_ids() | sight.servers.keys()) - self.gone - sight.gone
        machines = vmdatabase.machines_to_bind(listed_at)
        leaked = {ip.id: ip for ip in floating_ips
                  if (ip.machine_id not in machines if ip.machine_id is not None else ip.server_id not in known)}
        self.each("floating IP", {ip.id: ip.address for ip in leaked.values()},
                  lambda ip_id: self.cloud.network.release(leaked[ip_id]))

    def leaked_volumes(self, volumes: Iterable[nova.Volume]) -> dict[str, str]:
        """Return the volumes that we made for servers which never were, or which left them behind."""
        snapshots = {row.id for row in vmdatabase.snapshots_of(self.provider) if row.state != ERROR}
        leaked = rules.leaked_volumes(volumes, vmdatabase.machine_states(self.provider), snapshots)
        return {volume.id: f"{volume.name} {volume.id}" for volume in leaked}

    def stray_nodes(self, sight: Sight) -> dict[str, str]:
        """Return the nodes that carry this pool's UUID but have no machine.

        Those whose server is there go with that, or stay with it, and those of another provider are its own reap's.
        One that somebody has stays while vm.db does not know its id: a list of servers may leave out one of them.
        """
        names, known = vmdatabase.node_names(), vmdatabase.known_ids("machine")
        others = [name for name in vmdatabase.provider_names() if name != self.provider.name]
        found = {}
        for number, node in sight.nodes_by_id.items():
            theirs = [name for name in others if node.name.endswith(f"-{name}-{number}")]
            ours = node.name.endswith(f"-{self.provider.name}-{number}")
            kept = not known.knows(number) and node.idle and rules.use_of(None, node, self.now())
            if node.name not in names and number not in sight.by_machine and not kept \
                    and (not theirs or (ours and len(self.provider.name) > max(map(len, theirs)))):
                found[node.name] = node.name
        return found

    def remove_node(self, name: str) -> None:
        """Run in a worker: remove a node from Jenkins, but not under a build."""
        if self.nodes and not self.nodes.remove(name, jenkinsnodes.STRAY):
            raise GateError("a build runs there; left for the next run")

    def drop_drained(self) -> None:
        """Delete the rows of images and providers that left the providers file, once nothing of theirs is left."""
        for what in vmdatabase.drop_drained(self.provider):
            self.log.info("drained: %s", what)


def main(argv: list[str] | None = None) -> int:
    """Reap one provider, or each."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    return script.run_for_provider(options.provider, argv, lambda provider: _reap(provider, options))


def _reap(provider: Provider, options: argparse.Namespace) -> int:
    config = gateconfig.load_secure_config()
    if not config.jenkins:
        get_log(provider=provider.name).info(
            "no [jenkins] section in %s: there are no nodes to look after", config.path)
    return script.run_alone("reap", provider, lambda: Reap(provider, config, options).run(), LONGEST_SECONDS)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("provider", metavar="PROVIDER", help="a provider of vm.db, or all")
    parser.add_argument("--all-servers", action="store_true",
                        help="delete all machines, also ready ones; never held ones or those that build")
    parser.add_argument("--all-images", action="store_true", help="delete all snapshots, also the current ones")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateprocess.run(main)
