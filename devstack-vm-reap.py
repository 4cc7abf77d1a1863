#!/usr/bin/env python3
"""Make cloud, Jenkins and vm.db agree again: delete what is used up, died or leaked.

Run by the job devstack-reap-vms every hour, once for each provider (or `all`). Deletes machines marked DELETE or ERROR,
machines of failed builds after 24 hours, those that were taken but by no build after 15 minutes, held ones whose hours
are over, ready ones that died, old snapshots, and whatever carries this pool's UUID but has no row. Records the ends of
builds that devstack-vm-delete was not called for, as when Jenkins died, and runs resets of test environments that are
due. Nothing without that mark is ever touched, nothing is concluded from an answer other than 404, and a node that
still builds is left alone. If vm.db is older than the world, as after a restore, what builds, is held or is out of
service gets its row or state back, and other servers without a row are left until a person says that the restore was on
purpose (vmdatabase.py moved), or --all-servers.
Changes: servers, images, keypairs, volumes and floating IPs of the provider, nodes in Jenkins, rows in vm.db.

Exit codes: 0 all agree, 1 something is left for the next run (said why), 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateconfig
import gateprocess
import jenkinsnodes
import vmdatabase
from cloud import nova
from gateconfig import SecureConfig
from gateprocess import GateError, get_log
from pool import actions, autohold, decisions, demand, environments, history, labels, rules, script
from pool.actions import Action
from pool.decisions import Rows
from pool.sight import CLOCK_SECONDS, GONE, Look, Sight
from pool.verdict import FAILED_RESULTS, end_words, is_kept
from vmdatabase import DELETE, ERROR, HOLD, READY, USED, Machine, Provider, SnapshotImage

FORGOTTEN_SECONDS = 300  # a build unknown to Jenkins is over once its machine was taken this long ago
WATCH_SECONDS = 60  # how long a run waits to see servers gone; the next run looks again
LONGEST_SECONDS = 2 * rules.HOUR  # what a run can take
AGAIN_SECONDS = 600  # how long a run may go on to do the work of others that came meanwhile
ASKED, BUILDS = "asked", "builds"


class Reap:
    """One run for one provider. Only the main thread touches vm.db; calls to the outside run in workers."""

    def __init__(self, provider: Provider, config: SecureConfig, options: argparse.Namespace) -> None:
        self.provider = provider
        self.options = options
        self.config = config
        self.log = get_log(provider=provider.name)
        self.troubles = 0
        self.look = Look(provider, config, self.trouble)
        self.jenkinses, self.cloud, self.workers = self.look.jenkinses, self.look.cloud, self.look.workers
        self.printed: set[str] = set()  # what a dry run has said
        self.died: Counter[int] = Counter()  # ready machines whose agent never came or was lost, by image
        self.deleted: Counter[str] = Counter()
        self.going: dict[int, str] = {}  # names of machines whose deletion this run has begun
        self.waiting: dict[str, Machine | None] = {}  # servers being deleted, each with its machine, if any
        self.gone: set[str] = set()  # ids of servers that this run saw gone
        self.acts: dict[type[Action], Callable[[Any], Iterator[None]]] = {
            actions.AdoptServer: self.adopt_server, actions.RecordEnd: self.record_end,
            actions.MoveMachine: self.move_machine, actions.MarkHeld: self.mark_held,
            actions.RetireNode: self.retire_node, actions.DeleteMachine: self.delete_machine,
            actions.Delete: self.delete, actions.AdoptImage: self.adopt_image, actions.MarkProved: self.mark_proved,
            actions.DeleteSnapshot: self.delete_snapshot, actions.ResetEnvironment: self.reset_environment,
            actions.Leave: self.leave}
        self.deletes: dict[str, Callable[[Any], object]] = {
            decisions.SERVER: self.delete_leak,
            decisions.IMAGE: lambda image: self.cloud.delete_image(image.id, image.name),
            decisions.KEYPAIR: self.cloud.delete_keypair, decisions.FLOATING_IP: self.cloud.network.release,
            decisions.VOLUME: self.cloud.delete_volume, decisions.NODE: self.delete_node}

    def run(self) -> int:
        """See, decide, act, look again; returns the exit code."""
        with gateprocess.telling(self.left):
            return self.reap()

    def left(self) -> str:
        """Return in words what a run that is stopped leaves to the next one."""
        names = list(self.going.values())
        return f"left to the next reap, being deleted: {gateprocess.some(names)}" if names else ""

    def reap(self) -> int:
        """Do the work of run().

        Later decisions depend on earlier acts, so this decides and acts in phases. A dry run does nothing, and so each
        phase prints what it would do to the present state.
        """
        sight = self.see()
        now = self.look.now()
        strays = decisions.stray_nodes(
            self.rows(), sight, vmdatabase.node_names(), vmdatabase.provider_names(), now)
        self.do(lambda: vmdatabase.note_place(self.provider, *self.cloud.place), lambda: self.leave_out_ids(sight),
                self.end_dead_builds)
        self.act(decisions.adoptions(self.rows(), sight, now))
        self.act(self.ended_builds(sight))
        self.act(self.moves(sight))
        self.act(self.ended_builds(sight))  # also of builds that vm.db has only now learnt of
        self.act(self.marks(sight))
        self.act(decisions.retirements(self.rows(), sight) if self.jenkinses else [])
        self.act(decisions.deletions(self.rows(), sight, now, self.options.all_servers))
        self.see_gone()
        if sight.images is not None:
            self.act(decisions.leaked_images(self.rows(), sight.images, now, self.options.all_images))
            self.act(self.snapshots(sight.images))
        self.act([*self.leftovers(sight), *self.stuck_volumes(sight), *strays])
        self.do(lambda: self.see_to_environments(sight))
        self.act([actions.ResetEnvironment(name) for name in environments.due()])
        self.do(lambda: self.drop_drained(sight), lambda: history.prune(now), self.report)
        return gateprocess.EXIT_FAILED if self.troubles or self.died else gateprocess.EXIT_OK

    def act(self, decided: Sequence[Action]) -> None:
        """Do what was decided, or print it in a dry run.

        All acts begin before the first one ends, so that the calls that workers make for them run side by side.
        """
        if self.options.dry_run:
            self.show(decided)
            return
        acts = [(action, self.acts[type(action)](action)) for action in decided]
        for action, act in acts * 2:
            try:
                next(act, None)
            except GateError as err:
                self.trouble(f"{action.subject}: {err}")

    def show(self, decided: Iterable[Action]) -> None:
        """Print what would be done, each thing once, and report what is left."""
        for action in decided:
            if isinstance(action, actions.Leave):
                self.trouble(action.words)
            elif action.words not in self.printed:
                self.printed.add(action.words)
                print(f"would {action.words}")

    def trouble(self, text: object) -> None:
        """Report what is left for the next run."""
        self.troubles += 1
        self.log.warning("%s", text)

    def do(self, *steps: Callable[[], object]) -> None:
        """Do steps that need no decision; in a dry run do nothing."""
        if not self.options.dry_run:
            for step in steps:
                step()

    # --- seeing ---

    def see(self) -> Sight:
        """Look at cloud and Jenkins, only then at vm.db, then again at what the lists leave open."""
        lists = self.look.lists()
        if self.look.is_timely:
            self.do(self.mend_times)
        machines = vmdatabase.machines_of(self.provider)
        ready = [machine for machine in machines if machine.state == READY]
        self.do(lambda: vmdatabase.note_agents(ready, lists.nodes or {}), lambda: self.settle(machines, lists))
        sight = self.look.closely(lists, machines)
        self.do(lambda: vmdatabase.note_answers(ready, sight.by_ssh))
        return sight

    def settle(self, machines: Iterable[Machine], lists: Sight) -> None:
        """Assign machines to the Jenkins that has their nodes, and learn which nodes these are."""
        if self.jenkinses:
            for machine in machines:
                self.jenkinses.settle(machine, (lists.nodes or {}).get(str(machine.jenkins_name)))
                self.jenkinses.learn(machine, lists.node(machine))

    def mend_times(self) -> None:
        """Replace times that a clock that was ahead has written by the present time."""
        if count := vmdatabase.mend_times(self.provider, self.look.now(), CLOCK_SECONDS):
            self.log.warning("%d machines have times in the future, written by a clock that was ahead; their ages "
                             "count from now", count)

    def rows(self) -> Rows:
        """Return what vm.db says now."""
        machines = vmdatabase.machines_of(self.provider)
        return Rows(
            self.provider, machines, {image.id: image for image in vmdatabase.images_of(self.provider)},
            {snapshot.id: snapshot for snapshot in vmdatabase.snapshots_of(self.provider)},
            vmdatabase.machines_with_ended_builds(), int(vmdatabase.setting("moved") or 0),
            vmdatabase.known_ids("machine"), vmdatabase.known_ids("snapshot_image"))

    def leave_out_ids(self, sight: Sight) -> None:
        """Skip the ids that servers, nodes and images carry, and record which of them vm.db does not know."""
        of_nodes = [number for number, node in sight.nodes_by_id.items() if node not in sight.strangers]
        seen = [0, *of_nodes, *(number or 0 for number in sight.by_machine)]
        vmdatabase.leave_out_ids("machine", max(seen))
        vmdatabase.leave_out_ids("snapshot_image", nova.last_snapshot_id(
            sight.servers.values(), sight.images or [], sight.keypairs.values()))

    def end_dead_builds(self) -> None:
        """Move BUILDING snapshots to ERROR if no devstack-vm-update-image of this provider runs."""
        with script.provider_lock("update-image", self.provider.name) as no_build_runs:
            if no_build_runs:
                vmdatabase.end_dead_builds(self.provider)

    # --- deciding: what the functions of pool/decisions.py need to know, and what they conclude ---

    def ended_builds(self, sight: Sight) -> list[actions.RecordEnd]:
        """Ask Jenkins about each build that vm.db shows as running on an idle node, as after a crash of Jenkins."""
        if self.jenkinses is None or sight.nodes is None:
            return []
        idle = [machine for machine in vmdatabase.machines_of(self.provider, [USED, HOLD]) if not sight.builds(machine)]
        running = [(machine, row) for machine in idle
                   if (row := vmdatabase.open_result(machine)) and decisions.is_named(row)]
        self.look.ask_for({machine.id: row for machine, row in running})
        return decisions.ended_builds(
            running, self.look.builds, self.look.verdicts, self.look.now() - FORGOTTEN_SECONDS, sight)

    def moves(self, sight: Sight) -> list[actions.MoveMachine | actions.Leave]:
        """Apply the rules to every machine; ask Jenkins for the builds of those that may belong to nobody."""
        rows, now = self.rows(), self.look.now()
        if any(machine.state == USED and machine.id in rows.ended for machine in rows.leads):  # it may make room
            rows = replace(rows, lacking=self.lacking())
        doubted = decisions.doubted(rows, sight, now) if self.jenkinses else []
        last = {machine.id: vmdatabase.last_result(machine) for machine in doubted}
        self.look.ask_for({number: row for number, row in last.items()
                           if row and decisions.is_named(row) and not (row.by_person or row.result)})
        unclaimed = {machine.id: decisions.why_unclaimed(machine, last[machine.id], self.look.builds.get(machine.id),
                                                         sight.knows_node(machine))
                     for machine in doubted}
        claimed = self.claimed(rows, sight) if self.options.all_servers else {}
        return decisions.moves(rows, sight, now, unclaimed, self.options.all_servers, claimed)

    def claimed(self, rows: Rows, sight: Sight) -> dict[int, str]:
        """Return who has used machines on whose nodes no build runs, by machine; ask Jenkins for their builds."""
        opened = {machine.id: vmdatabase.open_result(machine) for machine in rows.leads
                  if machine.state == USED and not sight.builds(machine)}
        self.look.ask_for({number: row for number, row in opened.items()
                           if row and decisions.is_named(row) and not row.by_person})
        whys = {number: decisions.why_claimed(rows.by_id[number], row, self.look.builds.get(number))
                for number, row in opened.items()}
        return {number: why for number, why in whys.items() if why}

    def lacking(self) -> dict[int, int]:
        """Return how many more machines this provider should have, by image type, if its min-ready does not say it.

        That is so for labels, for which builds that wait in Jenkins may count, and while it is paused.
        """
        images = vmdatabase.images_of(self.provider)
        if self.provider.paused:
            return dict.fromkeys((image.id for image in images), 0)
        rows = [label for image in images if (label := vmdatabase.label_named(image.name))]
        waiting: dict[str, Counter[str]] = {}
        prefix = gateconfig.name_prefix()
        if self.jenkinses and any(label.demand == demand.QUEUE for label in rows):
            of_nodes = vmdatabase.labels_of_nodes(prefix)
            for nodes in self.jenkinses:
                waiting[nodes.name] = self.look.answer(partial(nodes.waiting, of_nodes)) or Counter()
        return labels.lacking(self.provider, waiting, prefix)

    def marks(self, sight: Sight) -> list[actions.MarkHeld]:
        """Find the held machines whose servers do not say so, and report those whose servers are gone."""
        rows = self.rows()
        for machine in rows.machines:
            if machine.state == HOLD and machine.external_id in sight.gone:
                lead = rows.by_id.get(machine.lead_id or machine.id, machine)
                self.log_of(machine).warning("is held, but its server is gone; release it with: "
                                             "vmdatabase.py unhold %s", lead.name)
        return decisions.marks(rows, sight)

    def snapshots(self, images: Sequence[nova.Image]) -> list[actions.MarkProved | actions.DeleteSnapshot]:
        """Find the snapshots to delete or to mark; ask the cloud for the images that its list does not show."""
        rows, listed = self.rows(), {image.id for image in images}
        gone = self.look.images_gone(row for row in rows.snapshots.values() if row.state == READY
                                     and row.external_id and row.external_id not in listed)
        return decisions.snapshots(rows, images, gone, self.look.now(), self.options.all_images)

    def leftovers(self, sight: Sight) -> list[Action]:
        """Find keypairs, floating IPs and volumes of servers that are gone, including those that this run deleted."""
        gone = self.gone | sight.gone
        server_ids = (vmdatabase.all_server_ids() | sight.servers.keys()) - gone
        found = decisions.leftovers(self.rows(), sight, server_ids, vmdatabase.machines_to_bind(sight.listed_at),
                                    vmdatabase.building_snapshot_ids())
        return [action if action.what != decisions.FLOATING_IP or action.thing.server_id in gone
                else self.unless_taken(action) for action in found]

    def unless_taken(self, action: actions.Delete) -> Action:
        """Return the deletion of a floating IP, or Leave if its server exists though no list has it; asks for each."""
        ip = action.thing
        if not (ip.server_id and self.look.shows(ip.server_id)):
            return action
        told = f"floating IP {ip.address} leads to server {ip.server_id}, "
        if self.look.answer(partial(self.look.has_own, ip.server_id)) is not False:
            return actions.Leave(f"{told}which the cloud's list leaves out, so it is left")
        return actions.Leave(f"{told}which does not carry our marks any more, so it is left; clear its description "
                             "or delete it")

    def stuck_volumes(self, sight: Sight) -> list[actions.Leave]:
        """Find volumes of nobody that we cannot delete; ask for each server that block storage names as their user."""
        if not sight.volumes:
            return []
        rows = self.rows()
        there = sight.servers.keys() | vmdatabase.all_server_ids() | self.gone
        found = rules.stuck_volumes(sight.volumes, rows.by_id, rows.snapshots, there, self.look.now())
        gone = [volume for volume in found if not any(map(self.look.shows, volume.servers))]
        return [actions.Leave(f"volume {volume.name} {volume.id} is {volume.status}, but there is no server that has "
                              f"it; an administrator of the cloud can free it (openstack volume set {how})")
                for volume in gone
                for how in ["--detached" if volume.status in rules.STUCK_STATUSES else "--state error"]]

    # --- acting: an act begins up to its yield, and ends after it ---

    def adopt_server(self, action: actions.AdoptServer) -> Iterator[None]:
        """Write a row for a server that somebody has."""
        server, node = action.server, action.node
        values = {"id": server.machine_id, "base_image": action.image, "external_id": server.id, "name": server.name,
                  "jenkins_name": node.name if node else None, "user": self.config.node.user, "state": action.target,
                  "state_time": vmdatabase.now(), "state_reason": action.why, "lead_id": server.lead_id,
                  **action.columns}
        try:
            Machine.insert(**values).execute()
        except vmdatabase.IntegrityError:
            return  # a row of another provider has that id
        yield from self.tell_forgotten(Machine.get_by_id(server.machine_id), action.why, server)

    def move_machine(self, action: actions.MoveMachine) -> Iterator[None]:
        """Move a machine; if it was ready and is lost to Jenkins, count it in a row with earlier ones."""
        machine, source = action.machine, str(action.machine.state)
        if not vmdatabase.move(machine, source, action.target, action.why, **action.columns):
            return
        self.log_of(machine).info("%s -> %s: %s", source, action.target, action.why)
        if action.loss:
            self.died[machine.base_image_id] += 1
            made_of = vmdatabase.recipe(self.provider, machine.base_image, machine.snapshot_image_id, self.config)
            vmdatabase.count_death(machine, action.loss, made_of)
        if action.target in (HOLD, USED):
            yield from self.tell_forgotten(machine, action.why, action.server)

    def tell_forgotten(self, machine: Machine, why: str, server: nova.Server | None) -> Iterator[None]:
        """Report a machine that vm.db did not know to be in use, and record the build that has it."""
        self.trouble(f"{machine.name}: vm.db did not know that it is {machine.state} ({why}); now it does")
        if machine.state == USED and machine.lead_id is None and not vmdatabase.open_result(machine):
            build = rules.build_named(why)
            vmdatabase.record_start(machine, build, by_person=not build or None)
        if machine.ip is None and server:
            task = self.workers.submit(self.cloud.network.shown_address, server)
            yield
            vmdatabase.set_columns(machine, ip=task.result())

    def record_end(self, action: actions.RecordEnd) -> Iterator[None]:
        """Record how a build has ended; its machine goes on as after devstack-vm-delete."""
        machine, told, log = action.machine, action.verdict, self.log_of(action.machine)
        if action.result is None:
            log.warning("Jenkins knows no %s, or the user lacks the right Job/Read on it; its end is not known",
                        action.build)
            vmdatabase.record_end(machine, {}, None)
            return
        log.info("%s has ended %s, and devstack-vm-delete did not come", action.build, action.result)
        vmdatabase.record_end(machine, {}, action.result, **(told._asdict() if told else {}))
        ended = end_words(action.result, told)
        if action.result in FAILED_RESULTS and (wanted := autohold.take(machine)):
            log.info("USED -> HOLD: %s", wanted.hold_reason)
            task = self.workers.submit(autohold.let_in, machine, wanted, self.config)
            yield
            try:
                task.result()
            except GateError as err:
                self.trouble(err)
        elif not is_kept(action.result, told) and vmdatabase.move(machine, USED, DELETE, ended):
            log.info("USED -> DELETE: %s", ended)

    def mark_held(self, action: actions.MarkHeld) -> Iterator[None]:
        """Save id and address of a held machine's server, and mark the server as held.

        One that was held while it booted has no address yet: no launch goes on with it.
        """
        machine, server = action.machine, action.server
        vmdatabase.set_columns(machine, external_id=server.id)
        task = self.workers.submit(
            self.cloud.mark_held, server.id, str(machine.hold_reason or ""), machine.hold_until)
        looks = machine.ip is None and server.status == nova.ACTIVE
        address = self.workers.submit(self.cloud.network.reachable_address, server) if looks else None
        yield
        if address and (found := address.result()):
            vmdatabase.set_columns(machine, ip=found)
            self.log_of(machine).info("is held, and has an address now: %s@%s", machine.user, found)
        task.result()

    def retire_node(self, action: actions.RetireNode) -> Iterator[None]:
        """Take the node of a machine that somebody has out of service."""
        machine = action.machine
        why = rules.why_taken(machine, vmdatabase.open_result(machine))
        task = self.workers.submit(self.take_out, action.node, machine.ip, why)
        yield
        if task.result():
            self.log_of(machine).info("its node is out of service now")

    def take_out(self, node: jenkinsnodes.Node, address: str | None, why: str) -> bool:
        """Run in a worker: take a node out of service if it is ours; return whether it is."""
        nodes = self.jenkinses.named(node.jenkins) if self.jenkinses else None
        if nodes is None or not nodes.is_ours(node, address):
            return False
        nodes.take_out_of_service(node.name, why, missing_ok=True)
        return True

    def delete_machine(self, action: actions.DeleteMachine) -> Iterator[None]:
        """Delete a machine's node and server; drop its row if there is no server, else leave that to see_gone."""
        machine = action.machine
        if machine.state == ERROR and not vmdatabase.move(machine, ERROR, DELETE) \
                and vmdatabase.state_of(machine) != DELETE:  # a subnode follows its lead to DELETE
            return  # a person holds it
        vmdatabase.set_columns(machine, external_id=action.server_id,
                               delete_time=machine.delete_time or vmdatabase.now())
        self.going[machine.id] = str(machine.name)
        nodes = self.jenkinses.of(machine) if self.jenkinses else None
        task = self.workers.submit(
            self.delete_node_and_server, nodes, machine.jenkins_name, machine.ip, action.server_id)
        yield
        try:
            answer = task.result()
        except GateError as err:
            raise GateError(f"{err}{stuck(machine)}") from err
        if answer == BUILDS:
            self.log_of(machine).info("its node still builds; left for the next run")
        elif action.may_have_server:
            self.log_of(machine).info("cannot tell yet whether it ever had a server; left for a later run")
        elif answer == GONE:
            self.gone.add(str(machine.external_id))
            self.drop(machine)
        else:
            self.waiting[str(machine.external_id)] = machine

    def delete_node_and_server(
        self, nodes: jenkinsnodes.Nodes | None, node: str | None, address: str | None, server_id: str | None
    ) -> str:
        """Run in a worker: remove a node that builds nothing, then ask for the deletion of the server."""
        if nodes and node and not nodes.remove(node, jenkinsnodes.GOING, address):
            return BUILDS
        return ASKED if server_id and self.cloud.delete_server(server_id) else GONE

    def delete(self, action: actions.Delete) -> Iterator[None]:
        """Delete something that has no row."""
        task = self.workers.submit(self.deletes[action.what], action.thing)
        yield
        task.result()
        self.log.info("deleted %s", action.subject)
        self.deleted[action.what] += 1
        if action.what == decisions.SERVER:
            self.waiting[action.thing[0]] = None

    def delete_leak(self, server: tuple[str, jenkinsnodes.Node | None]) -> None:
        """Run in a worker: delete a server without a row, after its node, if any; GateError if a build runs there."""
        server_id, node = server
        if node:
            self.delete_node(node, jenkinsnodes.GOING)
        self.cloud.delete_server(server_id)

    def delete_node(self, node: jenkinsnodes.Node, why: str = jenkinsnodes.STRAY) -> None:
        """Run in a worker: remove a node from Jenkins; GateError if a build runs there."""
        if self.jenkinses and not self.jenkinses.named(node.jenkins).remove(node.name, why):
            raise GateError("a build runs there; left for the next run")

    def adopt_image(self, action: actions.AdoptImage) -> Iterator[None]:
        """Write a row for an image from which machines boot well."""
        image = action.image
        try:
            SnapshotImage.insert(
                id=image.snapshot_id, base_image=action.base_image, name=image.name, version=action.version,
                external_id=image.id, state=READY, state_time=vmdatabase.now()).execute()
        except vmdatabase.IntegrityError as err:
            raise GateError("vm.db does not know it, but has another snapshot of its id") from err
        self.trouble(f"{action.subject}: vm.db did not know it; now it does")
        yield

    def mark_proved(self, action: actions.MarkProved) -> Iterator[None]:
        """Mark an image as one from which machines boot well."""
        task = self.workers.submit(self.cloud.mark_proved, action.image_id)
        yield
        task.result()

    def delete_snapshot(self, action: actions.DeleteSnapshot) -> Iterator[None]:
        """Delete a snapshot's image, and its row when the image and the template server are gone."""
        row = action.snapshot
        if row.state == READY and not vmdatabase.move(row, READY, DELETE):
            return
        task = self.workers.submit(
            self.delete_image_and_server, action.image_id, str(row.name), row.server_external_id)
        yield
        if not task.result():
            self.log.info("%s: its template server is not gone yet; its row stays", action.subject)
            return
        row.delete_instance()
        self.log.info("deleted %s", action.subject)
        self.deleted["snapshot"] += 1

    def delete_image_and_server(self, image_id: str | None, name: str, server_id: str | None) -> bool:
        """Run in a worker: delete an image, then its template server; return whether the server is gone, too.

        A server that somebody renamed is left; why_left of pool/decisions.py tells that.
        """
        if image_id and self.cloud.delete_image(image_id, name) and not self.look.image_is_gone(image_id):
            raise GateError("the image is still there")
        server = self.look.own_server(server_id) if server_id else None
        return server is None or (server.name == name and not self.cloud.delete_server(server.id))

    def leave(self, action: actions.Leave) -> Iterator[None]:
        """Report what is left for a person or the next run."""
        self.trouble(action.words)
        yield

    # --- after the acts ---

    def see_gone(self) -> None:
        """Look again until the servers are gone, and drop the rows of their machines; report those that stay."""
        deadline = time.monotonic() + WATCH_SECONDS
        pause = 0.5
        while self.waiting and time.monotonic() < deadline:
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)
            for server_id in self.look.seen_gone(list(self.waiting)):
                self.gone.add(server_id)
                if machine := self.waiting.pop(server_id):
                    self.drop(machine)
        for server_id, machine in self.waiting.items():
            self.trouble(f"{machine.name if machine else server_id}: the server is still there, "
                         f"{WATCH_SECONDS} s after its deletion was asked for{stuck(machine)}")

    def drop(self, machine: Machine) -> None:
        """Delete the row of a machine that is gone."""
        if Machine.delete().where((Machine.id == machine.id) & (Machine.state == DELETE)).execute():
            self.log_of(machine).info("server, node and row are gone")
            self.going.pop(machine.id, None)
            self.deleted["machine"] += 1

    def see_to_environments(self, sight: Sight) -> None:
        """Mend what a restored vm.db does not know of test environments, and tidy the line for them."""
        for words in environments.remember(
                self.provider.name, lambda server_id: self.look.look_at(server_id) == GONE, sight.is_unused):
            self.trouble(f"test environment {words}")
        environments.tidy_line()

    def reset_environment(self, action: actions.ResetEnvironment) -> Iterator[None]:
        """Run the reset of a test environment."""
        resets = environments.Resets()
        resets.begin(action.name)
        yield
        self.troubles += resets.finish()

    def drop_drained(self, sight: Sight) -> None:
        """Delete the rows of images and providers that left the providers file, once nothing else of them is left.

        Nobody looks at the cloud of a dropped provider again, so it stays while anything of it is left to report, and
        for another look if there were volumes: those of servers that have just gone may have stayed behind.
        """
        for what in vmdatabase.drop_drained(self.provider, bool(self.troubles or sight.volumes)):
            self.log.info("drained: %s", what)

    def report(self) -> None:
        """Print what was deleted and whether anything is left."""
        counted = [f"{count} {what}{'s' * (count > 1)}" for what, count in sorted(self.deleted.items())]
        for image in [image for image in vmdatabase.images_of(self.provider) if self.died[image.id]]:
            if image.deaths >= vmdatabase.DEATHS_IN_A_ROW:
                self.log.bind(image=image.name).error(
                    "%d ready machines in a row were lost to Jenkins; launch tries one at a time until one works, "
                    "or the image or its entry in the providers file changes", image.deaths)
        count = self.died.total()
        died = f"; {count} ready machine{'s' * (count > 1)} lost to Jenkins" if count else ""
        left = f"; {self.troubles} left for the next run" if self.troubles else ""
        print(f"{self.provider.name}: deleted {', '.join(counted) or 'nothing'}{died}{left}")

    def log_of(self, machine: Machine) -> gateprocess.Log:
        """Return the log of one machine."""
        return self.log.bind(machine=machine.id, node=machine.name)


def stuck(machine: Machine | None) -> str:
    """Return words for a deletion that takes too long, counted from its first attempt; empty for any other."""
    age = vmdatabase.now() - machine.delete_time if machine and machine.delete_time else 0
    return f"; stuck, the first attempt to delete it was {age // 60} min ago" if age >= vmdatabase.STUCK_SECONDS else ""


def main(argv: list[str] | None = None) -> int:
    """Reap one provider, or each."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    return script.run_for_provider(options.provider, argv, lambda provider: _reap(provider, options))


def _reap(provider: Provider, options: argparse.Namespace) -> int:
    config = gateconfig.load_secure_config()
    if not config.jenkinses:
        get_log(provider=provider.name).info(
            "no [jenkins] section in %s: there are no nodes to look after", config.path)
    return script.run_alone("reap", provider, lambda: Reap(provider, config, options).run(), LONGEST_SECONDS,
                            again_seconds=0 if options.dry_run else AGAIN_SECONDS)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("provider", metavar="PROVIDER", help="a provider of vm.db, or all")
    parser.add_argument("--all-servers", action="store_true",
                        help="delete all machines, also ready ones; never held ones, those that build, or a person's")
    parser.add_argument("--all-images", action="store_true", help="delete all snapshots, also the current ones")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateprocess.run(main)
