#!/usr/bin/env python3
"""Keep min-ready machines per image booted, ssh-tested and registered as Jenkins nodes.

Run by the job devstack-launch-vms every 10 minutes, once for each provider (or `all`). Asks the provider for what is
missing within max-servers, takes over what an earlier run left unfinished, and hands each machine to Jenkins as soon
as it has passed the ssh test. Changes: servers of the provider, rows in vm.db, nodes in Jenkins.

Exit codes: 0 the pool is full, 1 it is short or something failed (the next run goes on), 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import math
import os
import re
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateconfig
import gateprocess
import jenkinsnodes
import nodessh
import vmdatabase
from cloud import nova
from gateconfig import SecureConfig
from gateprocess import ConfigError, GateError, get_log
from jenkinsnodes import AWAITED, HERE, LOST
from pool import boots, demand, jenkinses, labels, rules, script
from pool.allowance import Allowance
from pool.boots import (
    AGENT,
    BOOT,
    COMING,
    CREATE,
    GATHER,
    JOIN,
    LOGIN,
    REGISTER,
    Boot,
    LifeEnd,
    Look,
    Request,
    Tools,
)
from pool.groups import REPLACED_MOST, Group, by_lead
from pool.rules import Need, Room
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, READY, USED, BaseImage, Machine, Provider, SnapshotImage

OFFLINE = "offline"  # of an agent: a person took its node offline
DEAD = "dead"  # of an agent: its server, or that of a subnode, does not run
POLL_SECONDS = (1.0, 5.0)  # between two lists of servers: least, most
TAKEN_OVER_SECONDS = 60  # least time for a machine that an earlier run left: it may have been up for long
QUEUE_SECONDS = 10  # between two looks at the builds waiting in Jenkins, while machines boot
CALLS_SECONDS = 300  # for a run, in addition to the boots of its first and its last machine
STATE_WORDS = {READY: "ready", BUILDING: "booting", USED: "used", HOLD: "held", ERROR: "failed",
               DELETE: "to be deleted"}
Accounts = tuple[dict[int, str | None], dict[int, SnapshotImage]]  # see Launch.accounts


def poll_pause(quiet: float, took: float) -> float:
    """Return how long to wait before the next list of servers, in seconds.

    quiet: how long nothing has happened; a boot may be noticed a twentieth of that late. took: how long the last list
    took; at most a sixth of a run should go into lists.
    """
    least, most = POLL_SECONDS
    return min(max(least, quiet / 20, took * 5), most)


@dataclass
class Template:
    """What the machines of one image type are made of."""

    snapshot: SnapshotImage
    recipe: nova.Recipe


class Launch:
    """One run for one provider. Only the main thread touches vm.db; calls to the outside run in workers."""

    def __init__(self, provider: Provider, config: SecureConfig, only_looks: bool = False) -> None:
        """Prepare a run; only_looks: it changes and records nothing."""
        self.provider = provider
        self.only_looks = only_looks
        self.config = config
        self.log = get_log(provider=provider.name)
        self.prefix = gateconfig.name_prefix()
        self.images = {image.id: image for image in vmdatabase.images_of(provider)}
        self.zones = provider.listed("availability_zones")
        self.jenkinses = script.jenkinses_of(config)
        self.silent: Mapping[str, GateError] = {}  # why a Jenkins gets no machines in this run, by name
        self.refusing: dict[str, GateError] = {}  # the same for those that do not let us make nodes
        self.workers = gateprocess.Workers(provider.max_concurrency)
        self.nodes_listing = self.jenkinses.begin_look(self.workers) if self.jenkinses and not only_looks else None
        self.cloud = script.cloud_of(provider)
        self.tools = Tools(provider, config, self.prefix, self.cloud, self.jenkinses, self.workers,
                           gateprocess.Workers(provider.max_concurrency), self.log)
        self.started = math.inf  # when it began to ask for machines, on the monotonic clock
        self.boots: dict[int, Boot] = {}
        self.groups: dict[int, Group] = {}  # groups on their way, by the id of their lead
        self.templates: dict[int, Template] = {}
        self.orphans = 0  # servers of ours without a row
        self.failed: Counter[int] = Counter()  # machines that failed in this run, by image
        self.came_up: set[int] = set()  # images with a machine that became ready in this run
        self.agents: dict[int, str] = {}  # of ready machines, by machine id: HERE, AWAITED, LOST, OFFLINE or DEAD
        self.proven: dict[int, dict[int, Machine]] = defaultdict(dict)  # machines whose agent was seen, by image
        self.lost: list[tuple[str, str]] = []  # names of lost machines still to be reported, and why
        self.offline: dict[int, str] = {}  # names of ready machines that a person took offline, and why, by machine id
        self.told: set[int] = set()  # images reported as tried with one machine at a time
        self.stuck: list[nova.Volume] = []  # volumes of nobody that block storage does not delete, as first seen
        self.no_more: dict[int | None, GateError] = {}  # by image (None: all): why this run asks for no more
        self.waiting: dict[str, Counter[str]] = {}  # builds that wait, by Jenkins and label, as last asked
        self.uncounted: set[str] = set()  # names of Jenkins that did not show their queue when last asked
        self.queue_at = -math.inf  # when they were asked, on the monotonic clock
        self.allowance = Allowance()  # of the cloud's quotas
        self.rooms: dict[int, Room] = {}  # for image types that quotas leave short, as first seen
        self.full_noted = False  # whether vm.db tells that to launches of other providers
        self.full: set[tuple[int, str | None]] = set()  # image, and zone where no host has room for it
        self.outcomes: defaultdict[int, dict[int, bool | None]] = defaultdict(dict)  # by image and machine; see rules
        self.consoles: list[Future[None]] = []
        self.asks_for_more = False  # before the next look: the plan exceeded the workers, or a machine failed

    def run(self, wait_for_boots: bool) -> int:
        """Fill the pool, wait for it if asked to, and return the exit code."""
        with gateprocess.telling(self.left):
            return self.fill(wait_for_boots)

    def left(self) -> str:
        """Return in words what a run that is stopped leaves to the next one."""
        names = [str(boot.machine.name) for boot in list(self.boots.values())]
        return f"left to the next launch, on their way: {gateprocess.some(names)}" if names else ""

    def fill(self, wait_for_boots: bool) -> int:
        """Do the work of run()."""
        before = self.accounts()
        listing = self.workers.submit(self.cloud.list_servers)  # meanwhile
        nodes = self.see_nodes(self.nodes_listing)  # nothing is begun without Jenkins
        servers = self.see_servers(listing)
        self.look_at_queue()
        self.look_at_volumes(servers)
        self.leave_out_ids(servers, nodes or {})
        self.count_orphans(servers, before)
        self.take_over(servers, nodes)
        self.note_dead(servers)
        self.check_right_to_register()
        self.started = time.monotonic()  # the looks before may have taken longer than boot-timeout
        self.ask_for_machines()
        pause = POLL_SECONDS[0]
        changed_at = time.monotonic()
        while any(wait_for_boots or boot.stage in (CREATE, REGISTER) for boot in self.boots.values()):
            changed = self.collect(time.monotonic() + pause)
            began = time.monotonic()
            if any(boot.stage == AGENT for boot in self.boots.values()):
                changed |= self.look_at_agents()
            if any(boot.stage in COMING for boot in self.boots.values()):
                changed |= self.look()
            self.ask_for_machines()
            now = time.monotonic()
            changed_at = now if changed else changed_at
            pause = poll_pause(now - changed_at, now - began)
        wait(self.consoles)
        return self.report()

    def see_servers(self, listing: Future[list[nova.Server]]) -> list[nova.Server]:
        """Return the provider's servers once they are listed; record whether it answers."""
        try:
            servers = listing.result()
        except GateError:
            labels.note_down(self.provider, self.config)
            raise
        vmdatabase.note_answer(self.provider, True)
        vmdatabase.note_place(self.provider, *self.cloud.place)
        return servers

    def see_nodes(self, listing: jenkinses.Listing | None = None) -> Mapping[str, jenkinsnodes.Node] | None:
        """Return the nodes of every Jenkins that answers; None in a pool without Jenkins; GateError if none answers.

        listing: calls that have begun.
        """
        if self.jenkinses is None:
            return None
        seen = self.jenkinses.look(listing)
        for name in seen.silent.keys() - self.silent.keys():
            self.log.error("%s; [jenkins %s] keeps its machines and gets no new ones in this run", seen.silent[name],
                           name)
        self.silent = seen.silent
        return seen.nodes

    def is_silent(self, machine: Machine) -> bool:
        """Return whether a machine's Jenkins did not answer."""
        nodes = self.jenkinses.of(machine) if self.jenkinses and self.silent else None
        return nodes is not None and nodes.name in self.silent

    def look_at_volumes(self, servers: Iterable[nova.Server]) -> None:
        """Look for stuck volumes, if machines boot from volumes: block storage may be unable to make any."""
        if not any(image.boot_from_volume and image.active for image in self.images.values()):
            return
        rows = dict(vmdatabase.server_ids(self.provider))
        snapshots = {snapshot.id for snapshot in vmdatabase.snapshots_of(self.provider)}
        there = {server.id for server in servers} | vmdatabase.all_server_ids()
        try:
            self.stuck = rules.stuck_volumes(self.cloud.list_volumes(), rows, snapshots, there, vmdatabase.now())
        except GateError as err:
            self.log.warning("%s", err)
        if self.stuck:
            names = gateprocess.some([f"{volume.name} ({volume.status})" for volume in self.stuck])
            self.log.warning("there are stuck volumes of nobody, see devstack-vm-reap.py: %s; only one machine with a "
                             "volume is tried at a time until one is ready", names)

    def label_rows(self) -> list[vmdatabase.LabelRow]:
        """Return the labels of this provider's image types, as far as they have one."""
        return [label for image in self.images.values() if (label := vmdatabase.label_named(image.name))]

    def look_at_queue(self) -> None:
        """Count the builds that wait, every QUEUE_SECONDS, if a label or the choice among several Jenkins needs it."""
        if not self.jenkinses or time.monotonic() - self.queue_at < QUEUE_SECONDS:
            return
        self.queue_at = time.monotonic()
        if len(self.jenkinses) == 1 and not any(label.demand == demand.QUEUE for label in self.label_rows()):
            return
        of_nodes = vmdatabase.labels_of_nodes(self.prefix)
        for nodes in [nodes for nodes in self.jenkinses if nodes.name not in self.silent]:
            try:
                self.waiting[nodes.name] = nodes.waiting(of_nodes)
                self.uncounted.discard(nodes.name)
            except GateError as err:
                if nodes.name not in self.uncounted:
                    self.log.error("%s; builds that wait there are not counted", err)
                self.uncounted.add(nodes.name)

    def usable(self) -> list[str]:
        """Return the names of the Jenkins that answer and take nodes."""
        return [nodes.name for nodes in self.jenkinses or [] if nodes.name not in {*self.silent, *self.refusing}]

    def jenkins_for(self, image: BaseImage) -> str:
        """Return the name of the Jenkins that gets the next machine of an image type; empty without Jenkins."""
        names = self.starved(image) or self.usable()
        if len(names) <= 1:
            return names[0] if names else ""
        return jenkinses.next_one(jenkinses.parts_of(
            names, self.waiting_for(str(image.name)), vmdatabase.count_by_jenkins(str(image.name))))

    def waiting_for(self, image: str) -> dict[str, int]:
        """Return how many builds wait for an image type, by Jenkins; 0 if its queue was not looked at."""
        label = f"{self.prefix}devstack-{image}"
        return {nodes.name: self.waiting.get(nodes.name, Counter())[label] for nodes in self.jenkinses or []}

    def settle(self, machine: Machine) -> Machine:
        """Return a machine, moved to another Jenkins if the configuration no longer has its own."""
        if self.jenkinses and machine.lead_id is None and self.jenkinses.of(machine) is None:
            name = self.jenkins_for(self.images[machine.base_image_id])
            self.log_of(machine).info("belongs to [jenkins %s] now; there is no section [jenkins %s] any more", name,
                                      machine.jenkins)
            vmdatabase.give_to_jenkins(machine, name)
        return machine

    # --- what earlier runs left ---

    def leave_out_ids(
        self, servers: Iterable[nova.Server], nodes: Mapping[str, jenkinsnodes.Node]
    ) -> None:
        """Skip the ids of machines that a restored vm.db no longer knows, so that no name is used twice."""
        of_nodes = jenkinses.by_machine(self.jenkinses.marked(nodes)[0]) if self.jenkinses else {}
        vmdatabase.leave_out_ids("machine", max([0, *of_nodes, *(server.machine_id or 0 for server in servers)]))

    def take_over(
        self, servers: Sequence[nova.Server], nodes: Mapping[str, jenkinsnodes.Node] | None
    ) -> None:
        """Go on with machines that boot, servers whose id was not saved, and ready machines without a node."""
        by_machine = {server.machine_id: server for server in servers}
        building = [machine for machine in vmdatabase.machines_of(self.provider, [BUILDING])
                    if machine.lead_id is not None or not self.is_silent(machine)]
        subnodes = by_lead(building)
        for machine in [one for one in building if one.lead_id is None]:
            if nodes is not None and machine.name in nodes:  # nodes are made after READY
                self.log_of(machine).warning("has a node already: vm.db is older than that; left to the next reap")
            else:
                self.adopt_group(machine, subnodes.get(machine.id, []), by_machine)
        if nodes is None:
            return
        ready = [machine for machine in vmdatabase.ready_machines(self.provider)  # perhaps thousands: no whole rows
                 if not self.is_silent(machine)]
        vmdatabase.note_agents(ready, nodes)
        for machine in ready:
            node = nodes.get(str(machine.name))
            if node:
                if self.jenkinses:
                    self.jenkinses.settle(machine, node)
                self.note_agent(machine, node)
            elif vmdatabase.restored_since(machine.state_time):  # its build may be over, and the machine about to go
                self.log_of(machine).warning("is READY but not in Jenkins, and vm.db was restored; left to reap")
                self.agents[machine.id] = LOST
            elif unregistered := Machine.get_or_none(id=machine.id, state=READY):
                self.log_of(unregistered).info("is READY but not in Jenkins")
                vmdatabase.set_columns(self.settle(unregistered), jenkins_name=machine.name)
                self.follow(unregistered, REGISTER)
        self.tell_agents()

    def note_agent(self, machine: Machine, node: jenkinsnodes.Node) -> str:
        """Record and return whether the agent of a ready machine can be used: HERE, AWAITED or LOST.

        In self.agents, one that was seen before and is away for a moment counts as HERE: network breaks pass; one whose
        node a person took offline is OFFLINE there.
        """
        now = vmdatabase.now()
        absent = now - machine.absent_time if machine.absent_time else 0
        came = machine.online_time is not None
        found = node.prospect(now - machine.state_time, came, absent)
        label = f"{self.prefix}devstack-{self.images[machine.base_image_id].name}"
        why = ""
        if not node.serves(str(machine.name), str(self.images[machine.base_image_id].name)):
            why = node.mislabelled()
        elif node.spent and vmdatabase.state_of(machine) == READY:  # else a build has just taken it
            why = f"our scripts took it out of service: {node.told_cause or 'its label is gone'}; log: {node.url}/log"
        elif not str(machine.name).startswith(f"{label}-"):
            why = f"builds ask for {label} since DEVSTACK_GATE_PREFIX was changed; delete them with: " \
                  f"devstack-vm-reap.py {self.provider.name} --all-servers; log: {node.url}/log"
        found = LOST if why else found
        self.agents[machine.id] = found if found == LOST or not came else HERE
        if found == HERE and node.by_person and not node.spent:
            self.agents[machine.id] = OFFLINE
            self.offline[machine.id] = f"{machine.name} ({node.told_cause or 'without a reason'})"
        self.proven[machine.base_image_id].pop(machine.id, None)
        if found == HERE and not node.offline:
            self.proven[machine.base_image_id][machine.id] = machine
        if found == LOST:
            self.lost.append((str(machine.name), why or node.loss(came)))
        return found

    def tell_agents(self) -> None:
        """Report the ready machines whose agents are lost, and why; reap replaces them."""
        whys: dict[str, list[str]] = defaultdict(list)
        for name, why in self.lost:
            whys[re.sub("; log: .*", "", why)].append(name)
        for why, names in whys.items():
            log = next(text for name, text in self.lost if name == names[0]).rpartition("; log: ")[2]
            self.log.error("no build can run on %s: %s; log: %s", gateprocess.some(names), why, log)
        self.lost.clear()

    def note_dead(self, servers: Iterable[nova.Server]) -> None:
        """Report the ready machines and subnodes whose servers do not run; reap replaces them."""
        dead = {server.id: server.status for server in servers if server.status in nova.DEAD_STATUSES}
        if not dead:
            return
        for machine in vmdatabase.machines_of(self.provider, [READY]):
            lead_id, status = machine.lead_id or machine.id, dead.get(str(machine.external_id))
            if status and self.agents.get(lead_id) != OFFLINE:  # reap leaves those to that person
                self.agents[lead_id] = DEAD
                self.log_of(machine).error("is READY, but its server is %s; the next reap replaces it", status)

    def list_servers(self) -> list[nova.Server]:
        """Return the provider's servers, and count those of ours that no row accounts for."""
        before = self.accounts()
        servers = self.cloud.list_servers()
        self.count_orphans(servers, before)
        return servers

    def accounts(self) -> Accounts:
        """Return what servers vm.db accounts for: the ids of machines' servers, and the snapshots, by row."""
        return (dict(vmdatabase.server_ids(self.provider)),
                {snapshot.id: snapshot for snapshot in vmdatabase.snapshots_of(self.provider)})

    def count_orphans(self, servers: Sequence[nova.Server], before: Accounts) -> None:
        """Count our servers that no row accounts for: leaks, doubles, templates of ended builds.

        before: what accounts() returned before they were listed; reap may have dropped rows of listed servers since.
        """
        now = self.accounts()
        rows, snapshots = before[0] | now[0], before[1] | now[1]
        self.orphans = len(rules.unaccounted_servers(servers, rows, snapshots, vmdatabase.now()))

    def adopt_group(
        self, lead: Machine, subnodes: Sequence[Machine], by_machine: Mapping[int | None, nova.Server]
    ) -> None:
        """Follow a machine that was left BUILDING and its subnodes, and ask for the subnodes that it still lacks."""
        wanted = self.images[lead.base_image_id].subnodes
        if wanted or subnodes:
            self.groups[lead.id] = Group(lead.id, wanted)
        for machine in [lead, *subnodes]:
            self.adopt(machine, by_machine.get(machine.id))
        group = self.groups.get(lead.id)
        if group and not all(self.add_member(group) for _ in range(group.missing)):
            self.end_group(group, "there is no room for its subnodes")

    def adopt(self, machine: Machine, server: nova.Server | None) -> None:
        """Follow a machine that was left BUILDING; a server whose id was not saved is recognised by its mark."""
        if server and not machine.external_id:
            vmdatabase.set_columns(machine, external_id=server.id)
        age = max(vmdatabase.now() - (machine.create_time or machine.state_time), 0)
        left = max(self.provider.boot_timeout - age, min(TAKEN_OVER_SECONDS, self.provider.boot_timeout))
        self.log_of(machine).info("taken over from an earlier run after %d s", age)
        self.follow(self.settle(machine), BOOT, seconds=left)

    def has_room(self, image: BaseImage) -> bool:
        """Return whether quotas allow one more machine; floating IPs do not count, as its own may exist already."""
        if self.template(image):
            self.look_at_quotas()
        return self.allowance.room(image.id, 1, [nova.FLOATING_IPS]).count > 0

    # --- asking for machines ---

    def ask_for_machines(self) -> None:
        """Record the missing machines and ask the cloud for them; late in a run, leave that to the next run.

        Ask for no more at once than there are workers, so that no queue of creates goes on after a refusal.
        """
        self.look_at_queue()
        free = self.provider.max_concurrency - sum(boot.stage == CREATE for boot in self.boots.values())
        if free > 0 and time.monotonic() - self.started < self.provider.boot_timeout:
            self.asks_for_more = bool(self.plan()) and self.start(free)
        if self.rooms and not self.full_noted:  # so that others make up for it
            self.full_noted = True
            vmdatabase.note_room(self.provider, refused=True)

    def plan(self, ask: bool = True) -> list[BaseImage]:
        """Return the image types to launch, one entry for each machine; ask: whether the cloud may be asked."""
        self.refresh()
        if self.provider.paused:
            return []
        counts = vmdatabase.count_machines(self.provider)
        needs = []
        for image in self.images.values():
            present = counts[image.id, READY] + counts[image.id, BUILDING] + self.failed[image.id]
            image.min_ready = self.share(image, present, ask)
            if present < image.min_ready and image.active and self.template(image, ask):
                held = sum(count for (image_id, _), count in counts.items() if image_id == image.id)
                wanted = self.wanted(image, counts[image.id, READY])
                needs.append(Need(image.id, wanted, present, held=held, size=1 + image.subnodes))
        room = self.room()
        if ask and needs and room > 0:
            self.look_at_quotas()
        planned, short = self.allowance.plan(needs, room, vmdatabase.last_image(self.provider))
        for image_id, left in short.items():
            self.note_short(self.images[image_id], left)
        return [self.images[image_id] for image_id in planned]

    def room(self) -> int:
        """Return how many more servers the provider may have, quotas aside; below 0 if it has too many."""
        return self.provider.max_servers - vmdatabase.count_rows(self.provider) - self.orphans

    def look_at_quotas(self) -> None:
        """Ask the cloud once what the project's quotas leave, before this run asks for its first machine."""
        recipes = {image_id: template.recipe for image_id, template in self.templates.items()}
        for image_id in [one for one in recipes if not self.allowance.takes(one)]:
            self.allowance.learn(image_id, self.cloud.takes(recipes[image_id]))
        if not self.allowance.known:
            self.allowance.know(self.cloud.left(recipes.values()))

    def note_short(self, image: BaseImage, room: Room) -> None:
        """Remember, and report once, that quotas leave an image type short."""
        if image.id not in self.rooms:
            self.rooms[image.id] = room
            self.log.bind(image=image.name).warning("%s", room)

    def share(self, image: BaseImage, present: int, ask: bool) -> int:
        """Return how many machines of an image type this provider should have: its min-ready, or its part of a label.

        A label's machines are counted over all providers. Other providers give what this one lacks the quota for.
        """
        label = vmdatabase.label_named(image.name)
        if label is None or not image.active:
            enough = image.active and image.min_ready and present >= image.min_ready
            starved = self.starved(image) if enough else []
            return present + len(starved) if starved else image.min_ready
        wish, parts = self.demand_for(label, present)
        part = self.own(parts)
        if not part.standing.gives and wish.count > sum(one.offer.present for one in parts):
            self.template(image, ask)  # reports why
        if self.allowance.known:
            room = self.allowance.room(image.id, part.adds, size=1 + image.subnodes)
            if room.count < part.adds:
                self.note_short(image, room)
                part = self.own(self.demand_for(label, present, room.count)[1])
        return present + part.adds

    def own(self, parts: Iterable[demand.Part]) -> demand.Part:
        """Return this provider's part of a label."""
        return next(part for part in parts if part.standing.provider == self.provider.name)

    def starved(self, image: BaseImage) -> list[str]:
        """Return the names of the Jenkins in which builds wait for an image type and that have no machine of it."""
        if len(self.jenkinses or []) <= 1 or not self.waiting:
            return []
        present, waiting = labels.present_by_jenkins(str(image.name)), self.waiting_for(str(image.name))
        return [name for name in self.usable() if waiting[name] and not present[name]]

    def demand_for(
        self, label: vmdatabase.LabelRow, present: int, quota: int | None = None
    ) -> tuple[demand.Wanted, list[demand.Part]]:
        """Return how many machines of a label are wanted, and each provider's part; this one's is as seen now."""
        standings = [self.as_seen(standing, present) if standing.provider == self.provider.name else standing
                     for standing in labels.standings_of(label.name)]
        waiting = self.waiting_for(str(label.name))
        quotas = {} if quota is None else {self.provider.name: quota}
        return demand.plan(labels.label_of(label), datetime.now(UTC), sum(waiting.values()), standings, quotas,
                           labels.elsewhere(partial(labels.present_by_jenkins, str(label.name)), waiting))

    def as_seen(self, standing: demand.Standing, present: int) -> demand.Standing:
        """Return how this provider stands now that it has answered.

        If its last machines have failed, it gives only what the others cannot, one machine at a time.
        """
        return replace(standing, ready=present - standing.building, taken=standing.taken + self.orphans,
                       down=False, absent=standing.absent if standing.on_trial else 0, full=False, failing=False,
                       is_last=standing.failing)

    def plans(self) -> Iterable[tuple[BaseImage, demand.Wanted, list[demand.Part]]]:
        """Yield, for each label of this provider, its image type, how many machines it wants, and who gives them."""
        counts = vmdatabase.count_machines(self.provider)
        for image in self.images.values():
            label = vmdatabase.label_named(image.name)
            if label is None or not image.active:
                continue
            present = counts[image.id, READY] + counts[image.id, BUILDING]
            room = self.rooms.get(image.id)
            yield image, *self.demand_for(label, present, room.count if room else None)

    def label_lines(self) -> list[str]:
        """Return a line for each label of this provider: how many machines it wants, why, and who gives them."""
        return [f"label {image.name}: {words_of(wish, parts)}" for image, wish, parts in self.plans()]

    def tell_labels(self) -> bool:
        """Report the labels that the providers cannot fill; returns whether one lacks more than the queue's share."""
        short = False
        for image, wish, parts in self.plans():
            missing = demand.missing_of(wish, parts)
            if missing and not all(part.standing.paused for part in parts):
                below = missing > wish.count - wish.least
                self.log.bind(image=image.name).log(
                    logging.ERROR if below else logging.WARNING,
                    "label %s: %s", image.name, words_of(wish, parts))
                short |= below
        return short

    def wanted(self, image: BaseImage, ready: int) -> int:
        """Return how many machines of an image type to have: min-ready, unless too many in a row were lost to Jenkins.

        Then it is one more than those whose agents were seen, so that only one is tried at a time. The same holds for
        machines that boot from volumes while there are stuck volumes, until one is ready: each try may leave another.
        """
        if self.stuck and image.boot_from_volume and image.id not in self.came_up:
            return min(image.min_ready, ready + 1)
        if image.deaths < vmdatabase.DEATHS_IN_A_ROW:
            return image.min_ready
        if image.death_of != vmdatabase.recipe(self.provider, image, None, self.config):
            vmdatabase.forget_deaths([image.id])
            return image.min_ready
        if image.id not in self.told:
            self.told.add(image.id)
            self.log.bind(image=image.name).error(
                "%d ready machines in a row were lost to Jenkins (%s); only one at a time is tried until one works, or "
                "the image or its entry in the providers file changes", image.deaths, image.death)
        return min(image.min_ready, len(self.proven[image.id]) + 1)

    def check_right_to_register(self) -> None:
        """Give no machines to a Jenkins that would refuse our nodes; one that does not answer may take them later."""
        if not self.jenkinses or not self.plan():
            return
        for nodes in [nodes for nodes in self.jenkinses if nodes.name not in self.silent]:
            try:
                nodes.check_create()
            except ConfigError as err:
                self.refusing[nodes.name] = err
                if len(self.refusing) + len(self.silent) == len(self.jenkinses):
                    self.ask_no_more(None, err)
                else:
                    self.log.error("%s; it gets no machines in this run", err)
            except GateError as err:
                self.log.warning("%s", err)

    def refresh(self) -> None:
        """Read the settings again, so that nothing more is asked for of an image type drained meanwhile."""
        fresh = {image.id: image for image in vmdatabase.images_of(self.provider)}
        for image in self.images.values():
            image.active, image.min_ready = False, 0
        self.images.update(fresh)
        provider = Provider.get_or_none(Provider.id == self.provider.id)
        self.provider.max_servers = provider.max_servers if provider else 0
        self.provider.paused = bool(provider and provider.paused)

    def template(self, image: BaseImage, ask: bool = True) -> Template | None:
        """Return what to boot for an image type; None if this run cannot, or would have to ask the cloud first."""
        if {None, image.id} & self.no_more.keys():
            return None
        if image.id not in self.templates and ask:
            try:
                snapshot = vmdatabase.current_snapshot(image)
                if snapshot is None:
                    raise GateError(f"there is no snapshot{f' of {image.template}' if image.template else ''} yet; "
                                    "run devstack-vm-update-image.sh")
                self.cloud.network.attached()
                boots.read_ready_script(image.ready_script)
                self.templates[image.id] = Template(snapshot, self.cloud.recipe(image, str(snapshot.external_id)))
            except GateError as err:
                self.ask_no_more(image.id, err)
        return self.templates.get(image.id)

    def ask_no_more(self, image_id: int | None, why: GateError) -> None:
        """Ask for no more machines of an image type (None: of any) in this run."""
        if image_id not in self.no_more:
            self.no_more[image_id] = why
            if not isinstance(why, nova.CapacityError):
                self.note_failing(one for one in self.images.values() if image_id in (None, one.id))
            log = self.log.bind(image=self.images[image_id].name) if image_id else self.log
            log.error("requesting no more servers in this run: %s", why)

    def note_failing(self, images: Iterable[BaseImage]) -> None:
        """Have other providers make up for image types until one of their machines is ready here."""
        for image in images:
            if not self.only_looks and vmdatabase.current_snapshot(image):  # one without a snapshot has not failed
                vmdatabase.note_failing(image)

    def run_short(self, boot: Boot, why: GateError) -> None:
        """Ask for no more of whatever needs what the cloud has run out of: this zone, image type, volumes, or all."""
        image_id = boot.machine.base_image_id
        vmdatabase.note_room(self.provider, refused=True)
        lack = nova.shortage(str(why))
        if lack == nova.HOST:
            self.leave_zone(boot, why)
        elif lack == nova.FLAVOR:
            self.ask_no_more(image_id, why)
        elif lack == nova.VOLUME:
            for image in self.images.values():
                if image.boot_from_volume:
                    self.ask_no_more(image.id, why)
        else:
            self.ask_no_more(None, why)

    def leave_zone(self, boot: Boot, why: GateError) -> bool:
        """Ask for no more of an image type in this machine's zone; returns whether other zones are left."""
        image_id = boot.machine.base_image_id
        zone = boot.request.zone if boot.request else None
        if self.zones and zone is None:  # taken over; machines that this run asks for tell more
            return True
        self.full.add((image_id, zone))
        left = self.zones_left(image_id)
        if left:
            self.log_of(boot.machine).warning("continuing in zone %s, since zone %s refused: %s",
                                              " and ".join(left), zone, why)
        else:
            self.ask_no_more(image_id, why)
        return bool(left)

    def zones_left(self, image_id: int) -> list[str]:
        """Return the zones in which there may be room for an image type."""
        return [zone for zone in self.zones if (image_id, zone) not in self.full]

    def start(self, most: int) -> bool:
        """Write the rows of planned machines, and ask for their servers; returns whether some of the plan are left.

        It stops at `most` servers, but the last machine still gets its subnodes. Plan and rows are one transaction, so
        that runs of several providers never make too many together.
        """
        machines: list[tuple[Machine, Template]] = []
        with vmdatabase.database.atomic("IMMEDIATE"):
            planned = self.plan(ask=False)
            while planned and len(machines) < most:
                image = planned.pop(0)
                template = self.templates[image.id]
                lead = self.new_row(image, template)
                subnodes = [self.new_row(image, template, lead) for _ in range(image.subnodes)]
                machines += [(machine, template) for machine in (lead, *subnodes)]
                if subnodes:
                    self.groups[lead.id] = Group(lead.id, len(subnodes))
                vmdatabase.note_last_image(image)
        vmdatabase.note_ids()  # after the rows: ids that only the file has mean that vm.db was restored
        for machine, template in machines:
            self.create(machine, template)
        return bool(planned)

    def new_row(self, image: BaseImage, template: Template, lead: Machine | None = None) -> Machine:
        """Write the row of a machine to ask for, inside a transaction; lead: the machine whose subnode it is."""
        machine = Machine.create(base_image=image, snapshot_image=template.snapshot, user=self.config.node.user,
                                 state=BUILDING, state_time=vmdatabase.now(), lead_id=lead.id if lead else None,
                                 jenkins=lead.jenkins if lead else self.jenkins_for(image),
                                 state_reason=f"a subnode of {lead.name}" if lead else None)
        name = f"{self.prefix}devstack-{image.name}-{self.provider.name}-{machine.id}"
        vmdatabase.set_columns(machine, name=name)
        return machine

    def add_member(self, group: Group) -> bool:
        """Ask for one more subnode of a group on its way; returns False if that cannot be."""
        lead: Machine | None = Machine.get_or_none(id=group.lead_id, state=BUILDING)
        if lead is None:
            return False
        image = self.images[lead.base_image_id]
        template = self.template(image) if self.has_room(image) else None
        if template is None:
            return False
        with vmdatabase.database.atomic("IMMEDIATE"):
            if self.room() <= 0 or vmdatabase.state_of(lead) != BUILDING:
                return False
            member = self.new_row(image, template, lead)
        vmdatabase.note_ids()
        group.expect(member.id, math.inf, replaces=True)
        self.create(member, template)
        return True

    def create(self, machine: Machine, template: Template, *, again: bool = False) -> None:
        """Have the server of a row created; again: an earlier run may have begun to create it."""
        zones = self.zones_left(machine.base_image_id)
        zone = zones[(machine.lead_id or machine.id) % len(zones)] if zones else None  # one zone for a whole group
        self.outcomes[machine.base_image_id][machine.id] = None
        self.allowance.spend(machine.base_image_id)
        self.follow(machine, CREATE, Request(template.recipe, zone, again))

    # --- the machines on their way: see pool/boots.py ---

    def follow(
        self, machine: Machine, stage: str, request: Request | None = None, seconds: float = math.inf
    ) -> None:
        """Follow a machine in this run, from a stage on."""
        image = self.images[machine.base_image_id]
        group = self.groups.get(machine.lead_id or machine.id)
        boot = self.boots[machine.id] = Boot(self.tools, machine, image, stage, request, seconds, group)
        if group:
            group.expect(machine.id, boot.deadline)

    def collect(self, until: float) -> bool:
        """Go on until then with machines whose worker is done or pause over; returns whether any worker was done."""
        changed = False
        while self.boots and time.monotonic() < until:
            paused = [boot for boot in self.boots.values()
                      if boot.task is None and boot.stage in (LOGIN, JOIN, REGISTER)]
            tasks = {boot.task: boot for boot in self.boots.values() if boot.task}
            done = _finished(tasks, min([until, *(boot.retry_at for boot in paused)]))
            for boot in [tasks[task] for task in done]:
                self.resume(boot)
                changed = True
            for boot in paused:
                if boot.retry_at <= time.monotonic():
                    self.resume(boot)
            if self.asks_for_more:
                self.ask_for_machines()
        return changed

    def look(self) -> bool:
        """Look at all booting machines with one list of servers; returns whether any moved on."""
        look = Look(listed=False)
        try:
            servers = self.list_servers()
            look = Look({server.id: server for server in servers}, {server.machine_id: server for server in servers})
        except GateError as err:  # also a 401: the login was good a moment ago
            self.log.warning("%s", err)
        before = [(boot.machine.id, boot.stage) for boot in self.boots.values()]
        for boot in [boot for boot in self.boots.values() if boot.stage in COMING]:
            self.resume(boot, look)
        return before != [(boot.machine.id, boot.stage) for boot in self.boots.values()]

    def look_at_agents(self) -> bool:
        """Look at the nodes that this run registered, with one list; returns whether any agent came or is lost."""
        waiting = [boot for boot in self.boots.values() if boot.stage == AGENT]
        try:
            nodes = self.see_nodes() or {}
        except GateError as err:
            self.log.warning("%s", err)
            nodes = {}
        vmdatabase.note_agents([boot.machine for boot in waiting], nodes)
        for machine in [one for image_id in self.told for one in self.proven[image_id].values()]:
            if machine.name in nodes:
                self.note_agent(machine, nodes[str(machine.name)])  # Jenkins' monitors check a little later
        for boot in waiting:
            node = nodes.get(str(boot.machine.name))
            self.resume(boot, self.note_agent(boot.machine, node) if node else AWAITED)
        self.tell_agents()
        return any(boot.machine.id not in self.boots for boot in waiting)

    # --- the ends of their lives ---

    def resume(self, boot: Boot, seen: Look | str | None = None) -> None:
        """Go on with a machine's life, given what was seen; if it ends, conclude what else to ask for."""
        machine, image_id = boot.machine, boot.machine.base_image_id
        if self.boots.get(machine.id) is not boot:
            return  # it ended with its group
        self.full_noted = False  # a ready machine makes vm.db say that there is room
        try:
            boot.life.send(seen)
            if machine.state == READY:
                self.came_up.add(image_id)
            if boot.stage == LOGIN:  # its zone had room for it
                self.outcomes[image_id][machine.id] = True
        except StopIteration:
            del self.boots[machine.id]
        except LifeEnd as end:
            del self.boots[machine.id]
            self.asks_for_more = True
            if isinstance(end, boots.NeverAskedError):
                self.ask_again(boot)
            elif isinstance(end, boots.FailedError):
                self.fail(boot, end)
            elif isinstance(end, boots.RefusedError) and end.err:
                self.forget(boot, end.err)
            elif end.err:
                self.failed[image_id] += 1
                boot.log.error("%s", end.err)
            if boot.group and machine.id not in self.boots and machine.id in boot.group:
                boot.group.over = f"{machine.name} has ended"  # somebody else moved it, or it is the lead
        self.go_on_with(boot.group)

    def go_on_with(self, group: Group | None) -> None:
        """Wake the machines of a group that wait for each other, as soon as they can go on."""
        lead = self.boots.get(group.lead_id) if group else None
        if group and lead and lead.stage == GATHER and lead.task is None and group.is_whole:
            self.resume(lead)
        if group and group.is_ready:
            for boot in [boot for boot in self.boots.values() if boot.group is group and boot.is_member]:
                self.resume(boot)

    def replace(self, boot: Boot, why: str) -> None:
        """Ask for another subnode in place of a failed one, if time and room are left; else give up its group."""
        group = boot.group
        if group is None or group.over:
            return
        group.lose(boot.machine.id)
        if group.replaced < REPLACED_MOST and time.monotonic() < group.deadline and self.add_member(group):
            group.replaced += 1
        else:
            self.end_group(group, f"its subnode {boot.machine.name}: {why}")

    def heir_of(self, boot: Boot) -> Boot | None:
        """Return the subnode that can replace the lead that failed while its group booted; None if there is none."""
        group = boot.group
        if group is None or boot.is_member or group.is_ready or group.over or group.replaced >= REPLACED_MOST:
            return None
        able = [one for one in self.boots.values() if one.group is group and one.is_member and one.stage in COMING
                and one.machine.external_id]
        return min(able, key=lambda one: (not group.is_in(one.machine.id), one.machine.id), default=None)

    def hand_over(self, boot: Boot, heir: Boot, end: boots.FailedError) -> None:
        """Make a subnode the lead of its group in place of one that failed; it passes the ssh test again, as a lead."""
        machine, lead, group = boot.machine, heir.machine, heir.group
        if group is None:
            return
        with vmdatabase.database.atomic("IMMEDIATE"):
            vmdatabase.make_lead(lead, machine)
            boot.move(ERROR, error=str(end), **end.columns)
        self.log_of(lead).info("stands for its group now, in the place of %s", machine.name)
        self.groups[lead.id] = self.groups.pop(machine.id)
        group.lead_id = lead.id
        group.let_in(lead.id, None)
        for one in [one for one in self.boots.values() if one.group is group]:
            one.machine.lead_id = None if one is heir else lead.id
        left = max(group.deadline - time.monotonic(), 0)
        self.boots[lead.id] = Boot(self.tools, lead, self.images[lead.base_image_id], BOOT, None, left, group)

    def end_group(self, group: Group, why: str) -> None:
        """Give up a group: moving its lead moves all of it; a machine being created ends when its server has an id."""
        lead = self.boots.get(group.lead_id)
        group.over = why
        if lead:
            with contextlib.suppress(boots.TakenError):
                lead.move(ERROR, error=why)
                self.failed[lead.machine.base_image_id] += 1

    def ask_again(self, boot: Boot) -> None:
        """Ask for the server that an earlier run did not get to ask for, if it is still wanted.

        If its first server shows up after all, reap finds two with the mark of one row and deletes the second. A row
        of a restored vm.db may have had its server since then; its name is not used for another.
        """
        machine = boot.machine
        image = self.images[machine.base_image_id]
        counts = vmdatabase.count_machines(self.provider)
        may_have_been = vmdatabase.restored_since(machine.create_time or machine.state_time)
        wanted = not may_have_been and image.active and not self.provider.paused and self.room() >= 0 \
            and counts[image.id, READY] + counts[image.id, BUILDING] <= image.min_ready
        template = self.template(image) if wanted and self.has_room(image) else None
        if template and vmdatabase.move(machine, BUILDING, BUILDING, snapshot_image=template.snapshot):
            self.create(machine, template, again=True)
        else:
            why = "there is no server; it may have had one before vm.db was restored" if may_have_been else \
                "an earlier run ended before the cloud had made a server"
            with contextlib.suppress(boots.TakenError):
                boot.move(ERROR, error=why)
            if boot.group and boot.is_member:
                self.end_group(boot.group, f"its subnode {machine.name}: {why}")

    def forget(self, boot: Boot, why: GateError) -> None:
        """Drop the row of a machine that the cloud refused, and ask for no more of what it refuses."""
        machine = boot.machine
        Machine.delete().where((Machine.id == machine.id) & (Machine.state == BUILDING)).execute()
        del self.outcomes[machine.base_image_id][machine.id]
        self.allowance.give_back(machine.base_image_id)
        if boot.group and boot.is_member and not boot.group.over:
            self.end_group(boot.group, f"the cloud refused its subnode {machine.name}: {why}")
        if isinstance(why, nova.CapacityError):
            self.run_short(boot, why)
        elif "availability zone" in str(why) and self.zones:
            self.leave_zone(boot, why)
        else:
            self.ask_no_more(machine.base_image_id, why)

    def fail(self, boot: Boot, end: boots.FailedError) -> None:
        """Move a machine to ERROR; save its console log if it booted but did not pass the login."""
        elsewhere = end.fault is not None and self.went_to_error(boot, end.fault)
        if end.err:
            self.ask_no_more(None, end.err)
        with contextlib.suppress(boots.TakenError):
            heir = self.heir_of(boot)
            if heir:
                self.hand_over(boot, heir, end)
            else:
                boot.move(ERROR, error=str(end), **end.columns)
            if boot.is_member or heir:
                self.replace(boot, str(end))
            else:
                self.failed[boot.machine.base_image_id] += not elsewhere  # else another one is asked for at once
                if not elsewhere and boot.image.id not in self.came_up:
                    self.note_failing([boot.image])
            if boot.server and boot.server.status == nova.ACTIVE and boot.stage == LOGIN:
                self.consoles.append(self.workers.submit(self.save_console, boot.server, str(boot.machine.name)))

    def went_to_error(self, boot: Boot, fault: str) -> bool:
        """Conclude from a server's fault what to ask for no more; returns whether another zone may have room."""
        image_id = boot.machine.base_image_id
        why = nova.CapacityError(fault)
        if nova.RETRY_FAULTS.search(fault):
            self.outcomes[image_id][boot.machine.id] = False
            if nova.out_of_room([*self.outcomes[image_id].values()]):
                self.ask_no_more(image_id, why)
        elif nova.shortage(fault) == nova.HOST:
            return self.leave_zone(boot, why)
        elif nova.CAPACITY_FAULTS.search(fault):
            self.run_short(boot, why)
        return False

    def save_console(self, server: nova.Server, name: str) -> None:
        """Run in a worker: save the console log of a machine that did not come up, in $WORKSPACE or beside vm.db."""
        log = self.log.bind(node=name)
        folder = Path(os.environ.get("WORKSPACE") or vmdatabase.own_folder()) / "console-logs"
        try:
            for path in (folder.parent, folder):  # others could make us write through a link of theirs
                gateconfig.check_ours(path, "console-logs")
            text = self.cloud.console_log(server.id)
            folder.mkdir(parents=True, exist_ok=True)
            gateprocess.make_private(folder)
            (folder / f"{name}.txt").write_text(text, encoding="utf-8", errors="replace")
        except (GateError, OSError) as err:
            log.warning("the console log could not be saved: %s", err)
        else:
            log.info("console log saved as %s", folder / f"{name}.txt")

    def log_of(self, machine: Machine) -> gateprocess.Log:
        """Return the log of one machine."""
        image = self.images[machine.base_image_id].name
        return self.log.bind(image=image, machine=machine.id, node=machine.name)

    def report(self) -> int:
        """Print how full the pool is for each image type; returns the exit code."""
        counts = vmdatabase.count_machines(self.provider)
        agents = self.count_agents()
        told = [text for number, text in self.offline.items() if self.agents[number] == OFFLINE]
        if told:
            self.log.warning("%d ready machines are taken offline in Jenkins by a person, and serve no build: %s",
                             len(told), gateprocess.some(told))
        short = False
        for image in self.images.values():
            awaited, lost, offline, dead = (agents[image.id, state] for state in (AWAITED, LOST, OFFLINE, DEAD))
            ready, building = counts[image.id, READY] - awaited - lost - offline - dead, counts[image.id, BUILDING]
            room = self.rooms.get(image.id)
            usable = ready + awaited + building
            missing = usable + offline < image.min_ready and not self.provider.paused
            short |= missing or lost + dead > 0 or room is not None \
                or (offline > 0 and image.min_ready > 0 and not usable)
            also = {"booting": building, "waiting for their agents": awaited, "lost to Jenkins": lost,
                    "with a dead server": dead, "offline by a person": offline, "failed": self.failed[image.id]}
            print(f"{self.provider.name} {image.name}: {ready} of {image.min_ready} ready"
                  + "".join(f", {count} {what}" for what, count in also.items() if count)
                  + (f", there was {room}" if room else "") + ", paused" * self.provider.paused)
        short |= self.tell_labels()
        self.tell_full(counts, vmdatabase.count_servers(self.provider).total() - counts.total(), short)
        only_config = self.no_more and all(isinstance(why, ConfigError) for why in self.no_more.values())
        if only_config and not counts.total():
            return gateprocess.EXIT_CONFIG
        troubled = short or self.failed.total() or self.no_more or self.silent or self.refusing or self.uncounted
        return gateprocess.EXIT_FAILED if troubled else gateprocess.EXIT_OK

    def tell_full(self, counts: Counter[tuple[int, str]], subnodes: int, short: bool) -> None:
        """Report what fills the provider, if that is why the pool is short."""
        taken: Counter[str] = Counter()
        for (_, state), count in counts.items():
            taken[STATE_WORDS[state]] += count
        taken["subnodes"] = subnodes
        taken["building images"] = vmdatabase.count_templates(self.provider)
        taken["without a row in vm.db"] = self.orphans
        used = ", ".join(f"{count} {what}" for what, count in taken.items() if count) or "none may be had"
        room = self.provider.max_servers - taken.total()
        least = min((1 + image.subnodes for image in self.images.values() if image.min_ready), default=1)
        if short and room <= 0:
            self.log.error("max-servers %d reached: %s", self.provider.max_servers, used)
        elif short and room < least:
            self.log.error("max-servers %d leaves room for %d, and a machine takes %d servers with its subnodes: %s",
                           self.provider.max_servers, room, least, used)

    def count_agents(self) -> Counter[tuple[int, str]]:
        """Return how many ready machines have their agents HERE, AWAITED and so on, by (image id, that)."""
        left = {boot.machine.id for boot in self.boots.values() if boot.stage == AGENT}
        return Counter((image_id, AWAITED if number in left else self.agents.get(number, HERE))
                       for number, image_id in vmdatabase.ready_by_image(self.provider).items())


def words_of(wish: demand.Wanted, parts: Sequence[demand.Part]) -> str:
    """Return in words how many machines are wanted, why, and who gives them."""
    missing = demand.missing_of(wish, parts)
    return f"{wish.count} wanted ({wish.why}); {', '.join(map(str, parts))}" \
        + f": no provider can give {missing} of them now" * bool(missing)


def _finished(tasks: Iterable[Future[Any]], until: float) -> set[Future[Any]]:
    """Wait until a task is done, or until a moment of the monotonic clock; return the tasks that are done."""
    seconds = max(0.0, until - time.monotonic())
    if tasks:
        return wait(tasks, seconds, FIRST_COMPLETED).done
    time.sleep(seconds)
    return set()


def main(argv: list[str] | None = None) -> int:
    """Fill the pool of one provider, or of each."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    return script.run_for_provider(options.provider, argv, lambda provider: _launch(provider, options))


def _launch(provider: Provider, options: argparse.Namespace) -> int:
    config = gateconfig.load_secure_config()
    public_key = gateconfig.require_ssh_key(config)
    nodessh.check_key_pair(config.node.ssh_key, public_key)
    if why := script.lost_section(config, provider):
        raise ConfigError(f"{why}; put the section back")
    if not config.jenkinses:
        get_log(provider=provider.name).info(
            "no [jenkins] section in %s: machines are not registered in Jenkins", config.path)
    longest = 2 * provider.boot_timeout + CALLS_SECONDS
    again = 0 if options.dry_run else provider.boot_timeout
    return script.run_alone("launch", provider, lambda: _launch_alone(provider, config, options), longest,
                            again_seconds=again)


def _launch_alone(provider: Provider, config: SecureConfig, options: argparse.Namespace) -> int:
    try:
        launch = Launch(provider, config, options.dry_run)
    except (GateError, ConfigError):
        if not options.dry_run:
            labels.note_down(provider, config)
        raise
    if not options.dry_run:
        return launch.run(wait_for_boots=not options.no_wait)
    launch.look_at_volumes(launch.list_servers())
    launch.look_at_queue()
    for image in launch.plan():
        print(f"would launch a machine of {provider.name} {image.name}")
    for image_id, room in launch.rooms.items():
        print(f"{provider.name} {launch.images[image_id].name}: {room}")
    for line in launch.label_lines():
        print(line)
    return gateprocess.EXIT_OK


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("provider", metavar="PROVIDER", help="a provider of vm.db, or all")
    parser.add_argument("--dry-run", action="store_true", help="print what would be launched")
    parser.add_argument("--no-wait", action="store_true", help="ask for machines and leave; the next run takes over")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateprocess.run(main)
