"""The pool's rules: how many machines to launch, what goes and why, and what nobody accounts for.

Pure functions of rows, of what was seen of cloud and Jenkins, and of a clock; nothing here asks, waits or writes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import jenkinsnodes
import vmdatabase
from cloud import nova
from pool.actions import MoveMachine
from pool.sight import Sight
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, READY, USED, BaseImage, KnownIds, Machine, Result, SnapshotImage

HOUR = 3600  # seconds
KEEP_FAILED = 24 * HOUR
GRACE = 900  # seconds that a server without a row may be young: its row may be newer than our look at vm.db
SNAPSHOTS_KEPT = 2  # current and previous
SERVERS = "servers"  # the resource of which a provider has max-servers
STUCK_STATUSES = ("in-use", "reserved", "attaching", "detaching")  # of volumes that only an administrator can free
FEW_LEAKS = 3  # so many servers without a row need nobody's word, however few rows there are


# --- what to launch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What the plan needs to know of one image type."""

    image_id: int
    min_ready: int
    present: int  # machines ready, on their way, or failed in this run
    takes: Mapping[str, int] = field(default_factory=dict)  # of each quota of the cloud's, for one server
    held: int = 0  # machines that there are, in whatever state: what they take comes back
    size: int = 1  # servers of one machine, its subnodes counted


@dataclass(frozen=True)
class Room:
    """How many more machines of an image type the cloud's quotas let be made, and what is short, empty for nothing."""

    count: int
    short: Sequence[str]

    def __str__(self) -> str:
        """Return it in words."""
        return f"room for {self.count} more: {', '.join(self.short)}"


def room_for(takes: Mapping[str, int], left: Mapping[str, int], most: int) -> Room:
    """Return how many machines there is room for, at most so many; left is of each resource that has a known limit."""
    counts = {name: left[name] // amount for name, amount in takes.items() if amount and name in left}
    count = min([most, *counts.values()])
    return Room(count, [name for name, found in counts.items() if found == count] if count < most else [])


def plan_launches(
    needs: Sequence[Need], room: int, left: Mapping[str, int] | None = None, last: int | None = None
) -> list[int]:
    """Return the ids of the image types to launch a machine of, in this order.

    With room servers at most, and no more than what is left of the cloud's quotas. Each next one goes to the image type
    that then has the smallest share of its min-ready, so that none starves another; last is the one that got the last
    machine, after which those with equal shares take turns. If one has no machine at all and needs more than is left,
    those after it leave what it lacks, if that comes back in time from machines of the pool.
    """
    rest = {**(left or {}), SERVERS: room}
    needs = [replace(need, takes=whole(need)) for need in needs]
    ever = {name: rest[name] + sum(need.held * need.takes.get(name, 0) for need in needs) for name in rest}
    present = {need.image_id: need.present for need in needs}
    plan: list[int] = []
    while rest[SERVERS] > 0:
        short = [need for need in needs if present[need.image_id] < need.min_ready]
        turns = sorted(short, key=lambda need: (
            present[need.image_id] / need.min_ready, last is not None and need.image_id <= last, need.image_id))
        starved = {need.image_id for need in short if not present[need.image_id] and not lacks(need, ever)}
        next_one = _first_that_fits(turns, starved, rest)
        if next_one is None:
            break
        last = next_one.image_id
        present[last] += 1
        for name in next_one.takes.keys() & rest.keys():
            rest[name] -= next_one.takes[name]
        plan.append(last)
    return plan


def whole(need: Need) -> dict[str, int]:
    """Return what a machine takes with its subnodes, of servers as of the cloud's quotas."""
    return {SERVERS: need.size, **{name: amount * need.size for name, amount in need.takes.items()}}


def _first_that_fits(turns: Iterable[Need], starved: Container[int], left: Mapping[str, int]) -> Need | None:
    """Return the first image type that fits into what is left and takes nothing that a starved one before it lacks."""
    kept: set[str] = set()
    for need in turns:
        missing = lacks(need, left)
        if not missing and not any(need.takes.get(name) for name in kept):
            return need
        if need.image_id in starved:
            kept |= missing
    return None


def lacks(need: Need, left: Mapping[str, int]) -> set[str]:
    """Return the resources of which less is left than one machine takes."""
    return {name for name, amount in need.takes.items() if amount > left.get(name, amount)}


# --- what goes -------------------------------------------------------------------------------------------------------


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
    if said.startswith(jenkinsnodes.HELD):
        return Use(HOLD, said.removeprefix(jenkinsnodes.HELD))
    if not node.idle:
        return Use(USED, said or "a build runs there")
    if node.spent and said not in jenkinsnodes.GIVEN_UP:
        return Use(USED, said or "its node has lost its label")
    return Use(HOLD, f"its node is offline in Jenkins: {said}") if node.by_person and not node.spent else None


def forgotten_use(
    machine: Machine, server: nova.Server | None, node: jenkinsnodes.Node | None, now: float
) -> Use | None:
    """Return who has a machine whose row does not say so, because vm.db is older than that; None if that is not so.

    A node is made after its machine is READY, so that one of a BUILDING machine tells for sure. Of other rows only the
    marks do that hold and inprogress leave after they have written their state into vm.db. The mark of a hold outlives
    the hold, and so does the reason in its row: one that is DELETE without a reason was moved by who knew of no hold.
    """
    use = use_of(server, node, now)
    if use is None or machine.state == HOLD:
        return None
    said = node.reason if node and node.temporarily_offline else ""
    held = use.state == HOLD and (bool(server and server.hold) or said.startswith(jenkinsnodes.HELD))
    if machine.state == DELETE:
        return use if held and machine.hold_reason is None else None
    taken = machine.state == READY and said.startswith(jenkinsnodes.IN_USE_BY)
    return use if held or taken or machine.state == BUILDING else None


def build_named(text: str) -> dict[str, str]:
    """Return the build that an offline message such as "in use by JOB #7" names, as Jenkins' environment does."""
    found = re.fullmatch(rf"{jenkinsnodes.IN_USE_BY}(.+) #([0-9]{{1,9}})", text)
    return {"JOB_NAME": found[1], "BUILD_NUMBER": found[2]} if found else {}


def why_taken(machine: Machine, taken: Result | None) -> str:
    """Return the offline message of the node of a machine that somebody has, as build_named and use_of read it."""
    if machine.state == HOLD:
        return f"{jenkinsnodes.HELD}{machine.hold_reason or ''}"
    who = (vmdatabase.build_of(taken) or "a person") if taken else ""
    return f"{jenkinsnodes.IN_USE_BY}{who}" if who else "its machine has been used"


def judge(
    machine: Machine, image: BaseImage, boot_timeout: int, sight: Sight, now: int, moved: int = 0, unclaimed: str = ""
) -> MoveMachine | None:
    """Return what becomes of one machine by its state, its age and what was seen of it; None: nothing.

    moved is when vm.db was last said to have been restored or moved on purpose: what it says of before may be old.
    unclaimed says why a used machine is nobody's, empty if it is somebody's.
    """
    age = now - machine.state_time
    if verdict := judge_old_row(machine, sight, now, moved):
        return verdict
    if machine.state == HOLD and machine.hold_until is not None and now >= machine.hold_until:
        return MoveMachine(machine, DELETE, "its hours on hold are over")
    if machine.state == BUILDING and age >= boot_timeout + GRACE:
        return MoveMachine(machine, ERROR, f"still BUILDING after {age} s")
    if machine.state == READY:
        return judge_ready(machine, image, sight, age)
    if machine.state != USED or sight.builds(machine):
        return None
    why = None
    if machine.external_id in sight.gone:
        why = "the server is gone"
    elif age >= KEEP_FAILED:
        why = "used, and kept for 24 hours"
    elif unclaimed:
        why = f"used for {age // 60} min, and nobody's: {unclaimed}"
    return MoveMachine(machine, DELETE, why) if why else None


def judge_ready(machine: Machine, image: BaseImage, sight: Sight, age: int) -> MoveMachine | None:
    """Return what becomes of a machine that is READY for so many seconds, None: nothing."""
    if death := sight.death(machine):
        return MoveMachine(machine, ERROR, death)
    if sight.builds(machine):
        return None
    if labels := sight.relabelled(machine, str(image.name)):
        text = f"its node's labels were changed in Jenkins: {labels}"
        return MoveMachine(machine, HOLD, text, {"hold_reason": text})
    why = None
    if sight.is_disowned(machine):
        why = f"its server does not carry our {nova.POOL_KEY} any more"
    elif sight.spent(machine):
        why = "no build can start on its node any more"
    elif not image.active:
        why = "its image is no longer in the providers file"
    elif image.max_ready_age and age >= image.max_ready_age * HOUR:
        why = f"ready for more than {image.max_ready_age} hours (max-ready-age)"
    return MoveMachine(machine, DELETE, why) if why else None


def judge_old_row(machine: Machine, sight: Sight, now: int, moved: int) -> MoveMachine | None:
    """Return what becomes of a machine of which a person or a newer vm.db has made something else than its row says."""
    if use := forgotten_use(machine, sight.server(machine), sight.node(machine), now):
        return MoveMachine(machine, use.state, use.why, use.columns)
    if machine.state not in (HOLD, DELETE) and (name := sight.renamed(machine)):
        why = f"its server was renamed to {name}"
        return MoveMachine(machine, HOLD, why, {"hold_reason": why})
    if machine.state == HOLD and machine.state_time < moved and machine.external_id in sight.gone:
        return MoveMachine(machine, DELETE, "the server is gone, and vm.db was restored since it was held")
    if machine.state == READY and machine.state_time < moved and machine.jenkins_name and not sight.is_untold(machine) \
            and sight.node(machine) is None:
        return MoveMachine(machine, ERROR, "its node is gone, and vm.db was restored since it was ready")
    if machine.state == BUILDING and machine.jenkins_name is None and sight.node(machine):
        return MoveMachine(machine, ERROR, "it has a node already, of which vm.db knows nothing")
    return None


def make_room(
    finished: Sequence[Machine], missing: int, room: int, sizes: Mapping[int, int] | None = None
) -> list[MoveMachine]:
    """Return the machines of ended builds, oldest first, that must go early for the pool to be full, and no more.

    missing and room are servers; sizes says of how many a machine consists, by its id, one if it does not say.
    """
    going: list[MoveMachine] = []
    lacking = missing - max(0, room)
    for machine in sorted(finished, key=lambda machine: (machine.state_time, machine.id)):
        if lacking > 0:
            going.append(MoveMachine(machine, DELETE, "its build has ended and the provider is full"))
            lacking -= (sizes or {}).get(machine.id, 1)
    return going


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
    knows, and a template server whose snapshot is no longer built, nor kept for a person. What a row knows by its id is
    its own, whatever somebody wrote into the marks.
    """
    found = []
    known = set(machines.values())
    for server in servers:
        snapshot = snapshots.get(server.snapshot_id or 0)
        if snapshot and server.id not in known:
            accounted = snapshot.has_server(now)
        else:
            accounted = server.id in known or machines.get(server.machine_id or 0, "") is None
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
    of one of our machines inherits the mark of a row, but not its name. What a row knows by its id is its own.
    """
    leaked = []
    known = {row.external_id for row in snapshots.values()}
    for image in [image for image in images if image.id not in known]:
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


def stuck_volumes(
    volumes: Iterable[nova.Volume], machines: Container[int], snapshots: Container[int], servers: Container[str]
) -> list[nova.Volume]:
    """Return the volumes of ours that are held by no server that is there, and that cannot be deleted like that.

    Such are left by a server whose end block storage was not told of. machines and snapshots are the ids of all rows,
    servers those of the servers that there are.
    """
    return [volume for volume in volumes if volume.status in STUCK_STATUSES
            and volume.machine_id not in machines and volume.snapshot_id not in snapshots
            and not any(server in servers for server in volume.servers)]


def old_snapshots(snapshots: Sequence[SnapshotImage], everything: bool, now: float) -> list[SnapshotImage]:
    """Return which snapshots of one image type go, of a list with the newest first.

    The failed ones and those beyond current and previous; everything: all but those being built or kept for a person.
    """
    ready = [row for row in snapshots if row.state == READY]
    kept = [] if everything else ready[:SNAPSHOTS_KEPT]
    return [row for row in snapshots if not row.has_server(now) and row not in kept]
