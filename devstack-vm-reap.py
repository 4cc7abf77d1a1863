#!/usr/bin/env python3
"""Make cloud, Jenkins and vm.db agree again: delete what is used up, died or leaked.

Run by the job devstack-reap-vms every hour, once for each provider (or `all`). Deletes machines marked DELETE or ERROR,
machines of failed builds after 24 hours, held ones whose hours are over, ready ones that died, old snapshots, and
whatever carries this pool's UUID but has no row. Nothing without that mark is ever touched, nothing is concluded from
an answer other than 404, and a node that still builds is left alone. Changes: servers, images, keypairs, volumes and
floating IPs of the provider, nodes in Jenkins, rows in vm.db.

Exit codes: 0 all agree, 1 something is left for the next run (said why), 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import gateconfig
import jenkinsnodes
import novacloud
import providersfile
import vmdatabase
from gateconfig import GateError, SecureConfig, get_log
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, READY, USED, BaseImage, Machine, Provider, SnapshotImage

T = TypeVar("T")

HOUR = 3600  # seconds
KEEP_FAILED = 24 * HOUR
CLOCK_SECONDS = 300  # how far this host's clock may be ahead of others
GRACE = 900  # seconds that a server without a row may be young: its row may be newer than our look at vm.db
DEAD_NODE_SECONDS = 20  # how long the agent of a ready machine may take to come back (Jenkins reconnects in 12 s)
WATCH_SECONDS = 60  # how long a run waits to see servers gone; the next run looks again
CONFIRMED = 10  # servers that are asked for one by one when a list shows none at all
STUCK = HOUR  # a delete that takes longer is reported
SNAPSHOTS_KEPT = 2  # current and previous


# --- rules: pure functions of rows and a clock ------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A machine that is to be moved, and why."""

    machine: Machine
    target: str
    why: str


@dataclass(frozen=True)
class Sight:
    """What was seen of cloud and Jenkins, before vm.db was read; nodes is None where Jenkins did not tell."""

    servers: Mapping[str, novacloud.Server]
    gone: frozenset[str]  # ids of servers for which the cloud, asked one by one, answered 404
    list_is_whole: bool  # False: the list left out servers that the cloud shows when asked for them
    nodes: Mapping[str, jenkinsnodes.Node] | None
    dead_nodes: frozenset[str]  # nodes whose agent went and stayed away

    @cached_property
    def by_machine(self) -> dict[int | None, novacloud.Server]:
        """The servers by the row id of their mark."""
        return {server.machine_id: server for server in self.servers.values()}

    def builds(self, machine: Machine) -> bool:
        """Whether a build may be running on the machine; a node that nobody could ask about counts as building."""
        if self.nodes is None:
            return machine.jenkins_name is not None
        node = self.nodes.get(str(machine.jenkins_name))
        return node is not None and not node.idle

    def spent(self, machine: Machine) -> bool:
        """Whether no build can reach its node any more, for it has lost its label.

        Who takes a node offline by hand leaves it that; a script that was cut short may have taken no more than that.
        """
        node = (self.nodes or {}).get(str(machine.jenkins_name))
        return node is not None and jenkinsnodes.USED_LABEL in node.labels

    def death(self, machine: Machine) -> str | None:
        """Return what a machine died of, None if it lives."""
        server = self.servers.get(str(machine.external_id))
        if machine.external_id in self.gone:
            return "the server is gone"
        if server and server.status in novacloud.DEAD_STATUSES:
            return f"the server is {server.status} {server.fault}".strip()
        return "its Jenkins node died" if machine.jenkins_name in self.dead_nodes else None


def judge(machine: Machine, image: BaseImage, boot_timeout: int, sight: Sight, now: int) -> Verdict | None:
    """Return what becomes of one machine by its state, its age and what was seen of it; None: nothing."""
    age = now - machine.state_time
    if machine.state == HOLD and machine.hold_until is not None and now >= machine.hold_until:
        return Verdict(machine, DELETE, "its hours on hold are over")
    if machine.state == BUILDING and age >= boot_timeout + GRACE:
        return Verdict(machine, ERROR, f"still BUILDING after {age} s")
    if machine.state == READY and (death := sight.death(machine)):
        return Verdict(machine, ERROR, death)
    if machine.state not in (READY, USED) or sight.builds(machine):
        return None
    why = None
    if machine.state == USED and machine.external_id in sight.gone:
        why = "the server is gone"
    elif machine.state == USED:
        why = "used, and kept for 24 hours" if age >= KEEP_FAILED else None
    elif sight.spent(machine):
        why = "no build can start on its node any more"
    elif not image.active:
        why = "its image is no longer in the providers file"
    elif image.max_ready_age and age >= image.max_ready_age * HOUR:
        why = f"ready for more than {image.max_ready_age} hours (max-ready-age)"
    return Verdict(machine, DELETE, why) if why else None


def make_room(finished: Sequence[Machine], missing: int, room: int) -> list[Verdict]:
    """Return the machines of ended builds, oldest first, that must go early for the pool to be full, and no more."""
    oldest = sorted(finished, key=lambda machine: (machine.state_time, machine.id))
    return [Verdict(machine, DELETE, "its build has ended and the provider is full")
            for machine in oldest[:max(0, missing - max(0, room))]]


def leaked_servers(
    servers: Iterable[novacloud.Server], machines: Mapping[int, str | None], snapshots: Mapping[int, SnapshotImage],
    now: float,
) -> list[novacloud.Server]:
    """Return the servers of ours that no row accounts for.

    machines is {row id: server id or None}. A server without a row is left its grace; not so one beside the server that
    its row knows, nor a template server whose snapshot is no longer built, nor kept for a person.
    """
    leaked = []
    for server in servers:
        snapshot = snapshots.get(server.snapshot_id or 0)
        if snapshot:
            unaccounted = not snapshot.has_server(now)
        elif (server.machine_id or 0) in machines:
            unaccounted = machines[server.machine_id or 0] not in (None, server.id)
        else:
            unaccounted = now - server.created >= GRACE
        if unaccounted:
            leaked.append(server)
    return leaked


def leaked_images(
    images: Iterable[novacloud.Image], snapshots: Mapping[int, SnapshotImage], now: float
) -> list[novacloud.Image]:
    """Return the images of ours that no row accounts for.

    One without a row is left its grace; a second one of the name that a row has goes at once. An image that a user made
    of one of our machines inherits the mark of a row, but not its name.
    """
    leaked = []
    for image in images:
        row = snapshots.get(image.snapshot_id or 0)
        if row is None:
            unaccounted = now - image.created >= GRACE
        else:
            second = image.name == row.name and row.external_id not in (None, image.id)
            unaccounted = second and row.state != BUILDING
        if unaccounted:
            leaked.append(image)
    return leaked


def leaked_volumes(
    volumes: Iterable[novacloud.Volume], machines: Mapping[int, str], snapshots: Container[int]
) -> list[novacloud.Volume]:
    """Return the volumes of ours that belong to no server and are not about to.

    machines is {row id: state}, snapshots the ids of those that are being built or used. The volume of a machine that
    boots, or was held while it did, is left alone; so is any that a server has, with which it goes, and the one that
    a snapshot was made of, from which some clouds cannot part while there is the snapshot.
    """
    return [volume for volume in volumes if volume.unattached
            and machines.get(volume.machine_id or 0) not in (BUILDING, HOLD) and volume.snapshot_id not in snapshots]


def old_snapshots(snapshots: Sequence[SnapshotImage], everything: bool, now: float) -> list[SnapshotImage]:
    """Return which snapshots of one image type go, of a list with the newest first.

    The failed ones and those beyond current and previous; everything: all but those being built or kept for a person.
    """
    ready = [row for row in snapshots if row.state == READY]
    kept = [] if everything else ready[:SNAPSHOTS_KEPT]
    return [row for row in snapshots if not row.has_server(now) and row not in kept]


# --- one run ----------------------------------------------------------------------------------------------------------


GONE, ASKED, BUILDS = "gone", "asked", "builds"


class Reap:
    """One run for one provider. Only the main thread touches vm.db; calls to the outside run in workers."""

    def __init__(self, provider: Provider, config: SecureConfig, options: argparse.Namespace) -> None:
        self.provider = provider
        self.options = options
        self.log = get_log(provider=provider.name)
        self.nodes = vmdatabase.nodes_of(config)
        self.cloud = novacloud.Cloud(provider, vmdatabase.pool_uuid())
        self.workers = gateconfig.Workers(provider.max_concurrency)
        self.troubles = 0
        self.deleted: Counter[str] = Counter()
        self.gone: set[str] = set()  # ids of servers that this run saw gone
        self.going: dict[int, str] = {}  # names of machines whose deletion this run has begun
        self.clock_ahead = 0.0  # seconds that this host's clock is ahead of the cloud's and of Jenkins'

    def run(self) -> int:
        """See, decide, act, look again; returns the exit code."""
        with gateconfig.telling(self.left):
            return self.reap()

    def left(self) -> str:
        """Return in words what a run that is stopped leaves to the next one."""
        names = list(self.going.values())
        return f"left to the next reap, being deleted: {gateconfig.some(names)}" if names else ""

    def reap(self) -> int:
        """Do what run does."""
        images = self.listed(self.cloud.list_snapshots)
        keypairs = self.listed(self.cloud.list_keypairs) or {}
        floating_ips = self.listed(self.cloud.network.list_ours) or []
        volumes = self.see_volumes()
        sight = self.see()
        stray_nodes = self.stray_nodes(sight)
        self.end_dead_builds()
        self.move_machines(sight)
        self.retire_nodes(sight)
        self.delete_servers(sight)
        if images is not None:
            self.delete_snapshots(images)
        self.each("keypair", self.leaked_keypairs(keypairs), self.cloud.delete_keypair)
        self.release_floating_ips(floating_ips, sight)
        self.each("volume", self.leaked_volumes(volumes), self.cloud.volumes.delete)
        self.each("stray node", stray_nodes, self.remove_node)
        if not self.options.dry_run:
            self.drop_drained()
            self.report()
        return gateconfig.EXIT_FAILED if self.troubles else gateconfig.EXIT_OK

    def report(self) -> None:
        """Print what was deleted and whether anything is left."""
        counted = [f"{count} {what}{'s' * (count > 1)}" for what, count in sorted(self.deleted.items())]
        left = f"; {self.troubles} left for the next run" if self.troubles else ""
        print(f"{self.provider.name}: deleted {', '.join(counted) or 'nothing'}{left}")

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
        """Return what a list call returns, or None, reported, when it fails: the rest of the run needs it not."""
        try:
            return call()
        except GateError as err:
            self.trouble(err)
            return None

    def see_volumes(self) -> list[novacloud.Volume]:
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
        hidden = {server_id: server for server_id, server in found.items() if isinstance(server, novacloud.Server)}
        if hidden:
            self.trouble(f"the list of servers left out {len(hidden)} that are there; nothing is concluded from it")
        return Sight(
            servers={**servers, **hidden},
            gone=frozenset(server_id for server_id, answer in found.items() if answer == GONE),
            list_is_whole=all(answer == GONE for answer in found.values()),
            nodes=nodes,
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

    def look_at(self, server_id: str) -> novacloud.Server | str | None:
        """Run in a worker: return the server, GONE for a 404, None when the cloud does not tell."""
        try:
            return self.cloud.get_server(server_id)
        except novacloud.GoneError:
            return GONE
        except GateError as err:
            self.trouble(err)
            return None

    def see_nodes(self) -> dict[str, jenkinsnodes.Node] | None:
        """Return Jenkins' nodes, or None if it does not tell: then machines that may have a node are left alone."""
        if self.nodes is None:
            return {}
        try:
            return self.nodes.all()
        except GateError as err:
            self.trouble(f"{err}; machines that may have a node are left alone")
            return None

    def see_dead_nodes(
        self, machines: Sequence[Machine], nodes: Mapping[str, jenkinsnodes.Node] | None
    ) -> frozenset[str]:
        """Return the nodes of ready machines whose agent is gone and does not come back within its time."""
        names = {str(machine.jenkins_name) for machine in machines}
        dead = {name for name in names if nodes and name in nodes and nodes[name].dead}
        deadline = time.monotonic() + DEAD_NODE_SECONDS
        while dead and time.monotonic() < deadline:
            time.sleep(2)
            seen = self.see_nodes()
            if seen is None:
                return frozenset()
            dead = {name for name in dead if name in seen and seen[name].dead}
        return frozenset(dead)

    # --- machines ---

    def end_dead_builds(self) -> None:
        """Move snapshots that no running devstack-vm-update-image builds any more to ERROR."""
        with vmdatabase.provider_lock("update-image", self.provider.name) as no_build_runs:
            if no_build_runs and not self.options.dry_run:
                vmdatabase.end_dead_builds(self.provider)

    def move_machines(self, sight: Sight) -> None:
        """Apply the rules to every machine."""
        machines = vmdatabase.machines_of(self.provider)
        images = {image.id: image for image in vmdatabase.images_of(self.provider)}
        now = int(self.now())
        judged = [judge(machine, images[machine.base_image_id], self.provider.boot_timeout, sight, now)
                  for machine in machines]
        verdicts = [verdict for verdict in judged if verdict]
        if self.options.all_servers:
            going = {verdict.machine.id for verdict in verdicts}
            verdicts += [Verdict(machine, DELETE, "--all-servers") for machine in machines if machine.id not in going
                         and machine.external_id and machine.state in (READY, USED, BUILDING)
                         and not sight.builds(machine)]
        else:
            verdicts += self.verdicts_for_room(machines, images.values(), verdicts, sight)
        self.see_to_held([machine for machine in machines if machine.state == HOLD], sight)
        for verdict in verdicts:
            machine, source = verdict.machine, str(verdict.machine.state)
            if self.options.dry_run:
                print(f"would move {machine.name} {source} -> {verdict.target}: {verdict.why}")
                continue
            columns = {"error": verdict.why} if verdict.target == ERROR else {}
            if vmdatabase.move(machine, source, verdict.target, **columns):
                self.log_of(machine).info("%s -> %s: %s", source, verdict.target, verdict.why)

    def see_to_held(self, machines: Sequence[Machine], sight: Sight) -> None:
        """Learn the servers of held machines whose ids were not saved, and tell whose servers are gone."""
        for machine in machines:
            if not self.options.dry_run:
                self.save_server_id(machine, sight)
            if machine.external_id in sight.gone:
                self.log_of(machine).warning("is held, but its server is gone; let it go with: vmdatabase.py unhold %s",
                                             machine.name)

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
                    self.nodes.take_out_of_service(node.name, "its machine has been used", missing_ok=True)
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
        known = {machine.id for machine in machines}
        strangers = sum(server.machine_id not in known for server in sight.servers.values())
        return make_room(finished, missing, self.provider.max_servers - len(staying) - strangers)

    def log_of(self, machine: Machine) -> gateconfig.Log:
        """Return the log of one machine."""
        return self.log.bind(machine=machine.id, node=machine.name)

    def delete_servers(self, sight: Sight) -> None:
        """Delete the servers of machines that are over and the leaked ones, side by side, and see them gone."""
        over = [machine for machine in vmdatabase.machines_of(self.provider) if machine.state in (DELETE, ERROR)]
        snapshots = {row.id: row for row in vmdatabase.snapshots_of(self.provider)}
        leaked = leaked_servers(
            sight.servers.values(), dict(vmdatabase.server_ids(self.provider)), snapshots, self.now())
        if self.options.dry_run:
            for machine in over:
                print(f"would delete machine {machine.name} ({machine.state})")
        asked = [] if self.options.dry_run else self.delete_over(over, sight)
        gone_soon: dict[str, Machine | None] = {str(machine.external_id): machine for machine in asked}
        names = {server.id: f"{server.name} {server.id}" for server in leaked}
        gone_soon |= dict.fromkeys(self.each("leaked server", names, self.cloud.delete_server))
        self.see_gone(gone_soon)

    def delete_over(self, machines: Sequence[Machine], sight: Sight) -> list[Machine]:
        """Ask for the end of each machine's node and server; returns those still to be seen gone."""
        tasks = {}
        for machine in machines:
            if sight.nodes is None and machine.jenkins_name:
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
        if self.nodes and node and not self.nodes.remove(node, "its machine is being deleted", address):
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

    # --- images ---

    def delete_snapshots(self, images: Sequence[novacloud.Image]) -> None:
        """Delete old and failed snapshots, and images of ours without a row."""
        rows = vmdatabase.snapshots_of(self.provider)
        by_id = {row.id: row for row in rows}
        leaked = leaked_images(images, by_id, self.now())
        self.each("leaked image", {image.id: f"{image.name} {image.id}" for image in leaked}, self.cloud.delete_image)
        by_image = defaultdict(list)
        for row in rows:
            by_image[row.base_image_id].append(row)
        found = {(image.snapshot_id, image.name): image.id for image in images}
        for image_rows in by_image.values():
            image = image_rows[0].base_image
            for row in old_snapshots(image_rows, self.options.all_images or not image.active, self.now()):
                self.delete_snapshot(row, row.external_id or found.get((row.id, row.name)))

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
        try:
            return self.cloud.image_status(image_id) in ("deleted", "pending_delete")
        except novacloud.GoneError:
            return True

    # --- the rest ---

    def leaked_keypairs(self, keypairs: Mapping[str, int]) -> dict[str, str]:
        """Return the keypairs whose image is not being built."""
        building = vmdatabase.building_snapshot_ids()
        return {name: name for name, snapshot_id in keypairs.items() if snapshot_id not in building}

    def release_floating_ips(self, floating_ips: Sequence[novacloud.FloatingIP], sight: Sight) -> None:
        """Let go of the floating IPs that we have for servers or machines which are gone."""
        known = (vmdatabase.all_server_ids() | sight.servers.keys()) - self.gone - sight.gone
        machines = vmdatabase.machine_ids()
        leaked = {ip.id: ip for ip in floating_ips
                  if (ip.machine_id not in machines if ip.machine_id is not None else ip.server_id not in known)}
        self.each("floating IP", {ip.id: ip.address for ip in leaked.values()},
                  lambda ip_id: self.cloud.network.release(leaked[ip_id]))

    def leaked_volumes(self, volumes: Iterable[novacloud.Volume]) -> dict[str, str]:
        """Return the volumes that we made for servers which never were, or which left them behind."""
        snapshots = {row.id for row in vmdatabase.snapshots_of(self.provider) if row.state != ERROR}
        leaked = leaked_volumes(volumes, vmdatabase.machine_states(self.provider), snapshots)
        return {volume.id: f"{volume.name} {volume.id}" for volume in leaked}

    def stray_nodes(self, sight: Sight) -> dict[str, str]:
        """Return the nodes that carry this pool's UUID but have no machine."""
        names = vmdatabase.node_names()
        return {node.name: node.name for node in (sight.nodes or {}).values()
                if self.nodes and self.nodes.is_marked(node) and node.name not in names}

    def remove_node(self, name: str) -> None:
        """Run in a worker: remove a node from Jenkins, but not under a build."""
        if self.nodes and not self.nodes.remove(name, "there is no machine of this name"):
            raise GateError("a build runs there; left for the next run")

    def drop_drained(self) -> None:
        """Delete the rows of images and providers that left the providers file, once nothing of theirs is left."""
        for what in providersfile.drop_drained(self.provider):
            self.log.info("drained: %s", what)


def main(argv: list[str] | None = None) -> int:
    """Reap one provider, or each."""
    options = _parse(argv)
    gateconfig.setup_logging(options.verbosity)
    return vmdatabase.run_for_provider(options.provider, argv, lambda provider: _reap(provider, options))


def _reap(provider: Provider, options: argparse.Namespace) -> int:
    config = gateconfig.load_secure_config()
    if not config.jenkins:
        get_log(provider=provider.name).info(
            "no [jenkins] section in %s: there are no nodes to look after", config.path)
    return vmdatabase.run_alone("reap", provider, lambda: Reap(provider, config, options).run())


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateconfig.make_parser(__doc__)
    parser.add_argument("provider", metavar="PROVIDER", help="a provider of vm.db, or all")
    parser.add_argument("--all-servers", action="store_true",
                        help="delete all machines, also ready ones; never held ones or those that build")
    parser.add_argument("--all-images", action="store_true", help="delete all snapshots, also the current ones")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateconfig.run(main)
