"""The pool's rules: how many machines to launch, what goes and why, and what nobody accounts for.

Pure functions of rows, of what was seen of cloud and Jenkins, and of a clock; nothing here asks, waits or writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import jenkinsnodes
import vmdatabase
from cloud import nova
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, READY, USED, BaseImage, KnownIds, Machine, SnapshotImage

HOUR = 3600  # seconds
KEEP_FAILED = 24 * HOUR
GRACE = 900  # seconds that a server without a row may be young: its row may be newer than our look at vm.db
CUT_OFF_SECONDS = HOUR // 2  # how long all machines of a provider may be silent at once
SNAPSHOTS_KEPT = 2  # current and previous
FEW_LEAKS = 3  # so many servers without a row need nobody's word, however few rows there are


# --- what to launch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What the plan needs to know of one image type."""

    image_id: int
    min_ready: int
    present: int  # machines ready, on their way, or failed in this run


def plan_launches(needs: Sequence[Need], room: int) -> list[int]:
    """Return the ids of the image types to launch a machine of, in this order.

    At most room of them; each next one goes to the image type that then has the smallest share of its min-ready, so
    that none starves another.
    """
    present = {need.image_id: need.present for need in needs}
    plan: list[int] = []
    while len(plan) < room:
        short = [need for need in needs if present[need.image_id] < need.min_ready]
        if not short:
            break
        next_one = min(short, key=lambda need: present[need.image_id] / need.min_ready)
        present[next_one.image_id] += 1
        plan.append(next_one.image_id)
    return plan


# --- what goes -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A machine to move, the state to move it to, and why."""

    machine: Machine
    target: str
    why: str
    columns: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Use:
    """Who has a machine, as its server and its node tell: a build or a person (USED), or a person for long (HOLD)."""

    state: str
    why: str
    hold_until: int | None = None

    @property
    def columns(self) -> dict[str, object]:
        """What is written into the machine's row with the state."""
        return {"hold_reason": self.why, "hold_until": self.hold_until} if self.state == HOLD else {}


def use_of(server: nova.Server | None, node: jenkinsnodes.Node | None, now: float) -> Use | None:
    """Return who has a machine, whatever vm.db says, which may be older than this; None if nobody has it.

    The marks are those that hold, inprogress and delete leave on server and node. A node that a person took offline by
    hand, and that has its label still, is none of a build's: whoever did that is to say when it may go.
    """
    if server and server.hold and now < (server.hold[1] or math.inf):
        return Use(HOLD, *server.hold)
    if node is None:
        return None
    said = node.reason if node.temporarily_offline and node.by_person else ""
    spent = jenkinsnodes.USED_LABEL in node.labels
    if said.startswith(jenkinsnodes.HELD):
        return Use(HOLD, said.removeprefix(jenkinsnodes.HELD))
    if not node.idle:
        return Use(USED, said or "a build runs there")
    if spent and said not in (jenkinsnodes.UNKNOWN, jenkinsnodes.UNANSWERED, jenkinsnodes.GOING, jenkinsnodes.STRAY):
        return Use(USED, said or "its node has lost its label")
    return Use(HOLD, f"its node is offline in Jenkins: {said}") if node.by_person and not spent else None


def forgotten_use(
    machine: Machine, server: nova.Server | None, node: jenkinsnodes.Node | None, now: float
) -> Use | None:
    """Return who has a machine whose row does not say so, because vm.db is older than that; None if that is not so.

    A node is made after its machine is READY, so that one of a BUILDING machine tells for sure. Of other rows only the
    marks do that hold and inprogress leave after they have written their state into vm.db.
    """
    use = use_of(server, node, now)
    if use is None or machine.state in (HOLD, DELETE):
        return None
    said = node.reason if node and node.temporarily_offline else ""
    held = use.state == HOLD and (bool(server and server.hold) or said.startswith(jenkinsnodes.HELD))
    taken = machine.state == READY and said.startswith(jenkinsnodes.IN_USE_BY)
    return use if held or taken or machine.state == BUILDING else None


@dataclass(frozen=True)
class Suspect:
    """A ready machine whose agent is away."""

    lost: bool  # whether it has been away for longer than Jenkins takes to have it back, or never came
    gone: bool  # whether Jenkins has given up for the moment, rather than still connecting
    absent: int  # seconds since a run first saw it away


def is_dead(suspect: Suspect, silent: bool, cut_off: bool) -> bool:
    """Whether a machine whose agent stayed away for another look is to be replaced.

    silent: it does not answer by ssh either. cut_off: no ready machine of the provider does, nor has its agent; that is
    the network rather than all of them, for some time.
    """
    if silent and cut_off and suspect.absent < CUT_OFF_SECONDS:
        return False
    return suspect.lost or (silent and suspect.gone)


@dataclass(frozen=True)
class Sight:
    """What was seen of cloud and Jenkins, before vm.db was read; nodes is None where Jenkins did not tell."""

    servers: Mapping[str, nova.Server]
    gone: frozenset[str]  # ids of servers for which the cloud, asked one by one, answered 404
    list_is_whole: bool  # False: the list left out servers that the cloud shows when asked for them
    nodes: Mapping[str, jenkinsnodes.Node] | None
    dead_nodes: frozenset[str]  # nodes whose agent never came or stays away
    nodes_by_id: Mapping[int, jenkinsnodes.Node] = field(default_factory=dict)  # those of ours, by the id in their name

    @cached_property
    def by_machine(self) -> dict[int | None, nova.Server]:
        """The servers by the row id of their mark."""
        return {server.machine_id: server for server in self.servers.values()}

    def server(self, machine: Machine) -> nova.Server | None:
        """Return the server of a machine."""
        return self.servers.get(str(machine.external_id)) or (
            None if machine.external_id else self.by_machine.get(machine.id))

    def node(self, machine: Machine) -> jenkinsnodes.Node | None:
        """Return the node of a machine, also of one that was never in Jenkins as far as vm.db knows."""
        return (self.nodes or {}).get(str(machine.jenkins_name or machine.name))

    def renamed(self, machine: Machine) -> str:
        """Return the name that a person gave to the server of a machine, empty if it has its own."""
        server = self.server(machine)
        return server.name if server and machine.name and server.name != machine.name else ""

    def builds(self, machine: Machine) -> bool:
        """Whether a build may be running on the machine; a node that nobody could ask about counts as building."""
        if self.nodes is None:
            return machine.jenkins_name is not None
        node = self.nodes.get(str(machine.jenkins_name))
        return node is not None and not node.idle

    def spent(self, machine: Machine) -> bool:
        """Whether no build can start on its node any more, because the node has lost its label.

        A person who takes a node offline leaves its label alone; only our scripts remove the label, possibly without
        getting as far as the offline mark.
        """
        node = (self.nodes or {}).get(str(machine.jenkins_name))
        return node is not None and jenkinsnodes.USED_LABEL in node.labels

    def server_death(self, machine: Machine) -> str | None:
        """Return what became of the server of a machine, None if it lives."""
        server = self.servers.get(str(machine.external_id))
        if machine.external_id in self.gone:
            return "the server is gone"
        if server and server.status in nova.DEAD_STATUSES:
            return f"the server is {server.status} {server.fault}".strip()
        return None

    def death(self, machine: Machine) -> str | None:
        """Return what a machine died of, None if it lives."""
        if why := self.server_death(machine):
            return why
        node = self.node(machine)
        why = f" ({node.loss(machine.online_time is not None)})" if node else ""
        return f"its Jenkins node died{why}" if machine.jenkins_name in self.dead_nodes else None


def build_named(text: str) -> dict[str, str]:
    """Return the build that an offline message such as "in use by JOB #7" names, as Jenkins' environment does."""
    found = re.fullmatch(rf"{jenkinsnodes.IN_USE_BY}(.+) #([0-9]{{1,9}})", text)
    return {"JOB_NAME": found[1], "BUILD_NUMBER": found[2]} if found else {}


def why_taken(machine: Machine) -> str:
    """Return the offline message of the node of a machine that somebody has, as build_named and use_of read it."""
    if machine.state == HOLD:
        return f"{jenkinsnodes.HELD}{machine.hold_reason or ''}"
    taken = vmdatabase.open_result(machine)
    who = (vmdatabase.build_of(taken) or "a person") if taken else ""
    return f"{jenkinsnodes.IN_USE_BY}{who}" if who else "its machine has been used"


def judge(
    machine: Machine, image: BaseImage, boot_timeout: int, sight: Sight, now: int, moved: int = 0, unclaimed: str = ""
) -> Verdict | None:
    """Return what becomes of one machine by its state, its age and what was seen of it; None: nothing.

    moved is when vm.db was last said to have been restored or moved on purpose: what it says of before may be old.
    unclaimed says why a used machine is nobody's, empty if it is somebody's.
    """
    age = now - machine.state_time
    if verdict := judge_old_row(machine, sight, now, moved):
        return verdict
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
    elif machine.state == USED and age >= KEEP_FAILED:
        why = "used, and kept for 24 hours"
    elif machine.state == USED:
        why = f"used for {age // 60} min, and nobody's: {unclaimed}" if unclaimed else None
    elif sight.spent(machine):
        why = "no build can start on its node any more"
    elif not image.active:
        why = "its image is no longer in the providers file"
    elif image.max_ready_age and age >= image.max_ready_age * HOUR:
        why = f"ready for more than {image.max_ready_age} hours (max-ready-age)"
    return Verdict(machine, DELETE, why) if why else None


def judge_old_row(machine: Machine, sight: Sight, now: int, moved: int) -> Verdict | None:
    """Return what becomes of a machine of which a person or a newer vm.db has made something else than its row says."""
    if use := forgotten_use(machine, sight.server(machine), sight.node(machine), now):
        return Verdict(machine, use.state, use.why, use.columns)
    if machine.state not in (HOLD, DELETE) and (name := sight.renamed(machine)):
        why = f"its server was renamed to {name}"
        return Verdict(machine, HOLD, why, {"hold_reason": why})
    if machine.state == HOLD and machine.state_time < moved and machine.external_id in sight.gone:
        return Verdict(machine, DELETE, "the server is gone, and vm.db was restored since it was held")
    if machine.state == READY and machine.state_time < moved and machine.jenkins_name and sight.nodes is not None \
            and sight.node(machine) is None:
        return Verdict(machine, ERROR, "its node is gone, and vm.db was restored since it was ready")
    if machine.state == BUILDING and machine.jenkins_name is None and sight.node(machine):
        return Verdict(machine, ERROR, "it has a node already, of which vm.db knows nothing")
    return None


def make_room(finished: Sequence[Machine], missing: int, room: int) -> list[Verdict]:
    """Return the machines of ended builds, oldest first, that must go early for the pool to be full, and no more."""
    oldest = sorted(finished, key=lambda machine: (machine.state_time, machine.id))
    return [Verdict(machine, DELETE, "its build has ended and the provider is full")
            for machine in oldest[:max(0, missing - max(0, room))]]


def leaked_servers(
    servers: Iterable[nova.Server], machines: Mapping[int, str | None], snapshots: Mapping[int, SnapshotImage],
    now: float,
) -> list[nova.Server]:
    """Return the servers of ours that no row accounts for, but for those whose row may be newer than our look at it."""
    return [server for server in unaccounted_servers(servers, machines, snapshots, now)
            if now - server.created >= GRACE or server.snapshot_id in snapshots or server.machine_id in machines]


def unaccounted_servers(
    servers: Iterable[nova.Server], machines: Mapping[int, str | None], snapshots: Mapping[int, SnapshotImage],
    now: float,
) -> list[nova.Server]:
    """Return the servers of ours that take room beside what the rows stand for.

    machines is {row id: server id or None}. Besides those without any row it is one beside the server that its row
    knows, and a template server whose snapshot is no longer built, nor kept for a person.
    """
    found = []
    for server in servers:
        snapshot = snapshots.get(server.snapshot_id or 0)
        if snapshot:
            accounted = snapshot.has_server(now)
        else:
            accounted = machines.get(server.machine_id or 0, "") in (None, server.id)
        found += [server] * (not accounted)
    return found


def unlikely_leaks(
    servers: Sequence[nova.Server], machines: KnownIds, snapshots: KnownIds, rows: int, moved: int
) -> str:
    """Return why so many or such servers without a row are none of a pool's that knows itself, empty if they may be.

    A row is written before its server is asked for and deleted after that is gone, so that leaks are few. rows is how
    many machines vm.db has of the provider; moved is when a person last said that vm.db was restored or moved on
    purpose (Unix seconds, 0 for never): it may have forgotten any number of servers that are older.
    """
    newer = [server for server in servers
             if not machines.knows(server.machine_id or 0) or not snapshots.knows(server.snapshot_id or 0)]
    if newer:
        return f"{len(newer)} of {len(servers)} were made by a newer vm.db than this one"
    count = sum(server.created > moved for server in servers)
    return f"these are {count}, but only {rows} machines have a row" if count > max(rows, FEW_LEAKS) else ""


def leaked_images(
    images: Iterable[nova.Image], snapshots: Mapping[int, SnapshotImage], now: float
) -> list[nova.Image]:
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
    volumes: Iterable[nova.Volume], machines: Mapping[int, str], snapshots: Container[int]
) -> list[nova.Volume]:
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
