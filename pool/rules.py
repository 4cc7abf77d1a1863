"""The pool's rules: how many machines to launch, what goes and why, and what no row accounts for.

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
GRACE = 900  # seconds: the row of a younger server or image may be newer than our look at vm.db
SNAPSHOTS_KEPT = 2  # current and previous
SERVERS = "servers"  # the resource that max-servers limits
STUCK_STATUSES = ("in-use", "reserved", "attaching", "detaching")  # of volumes that only an administrator can free
FEW_LEAKS = 3  # so many servers without a row need no confirmation, however few rows there are


# --- what to launch -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Need:
    """What the plan needs to know of one image type."""

    image_id: int
    min_ready: int
    present: int  # machines ready, on their way, or failed in this run
    takes: Mapping[str, int] = field(default_factory=dict)  # of each of the cloud's quotas, for one server
    held: int = 0  # existing machines, in any state: what they take comes back
    size: int = 1  # servers of one machine, subnodes included


@dataclass(frozen=True)
class Room:
    """How many more machines of an image type the cloud's quotas allow, and which resources are short, if any."""

    count: int
    short: Sequence[str]

    def __str__(self) -> str:
        """Return it in words."""
        return f"room for {self.count} more: {', '.join(self.short)}"


def room_for(takes: Mapping[str, int], left: Mapping[str, int], most: int) -> Room:
    """Return for how many machines there is room, at most `most`; left: of each resource with a known limit."""
    counts = {name: left[name] // amount for name, amount in takes.items() if amount and name in left}
    count = min([most, *counts.values()])
    return Room(count, [name for name, found in counts.items() if found == count] if count < most else [])


def plan_launches(
    needs: Sequence[Need], room: int, left: Mapping[str, int] | None = None, last: int | None = None
) -> list[int]:
    """Return the ids of the image types to launch, one for each machine, in this order.

    They take at most `room` servers, and no more than is left of the cloud's quotas. Each machine goes to the image
    type that has the smallest share of its min-ready, so that none starves another. Among equals they take turns after
    `last`, the image type that got the last machine. If a type has no machine at all and needs more than is left, those
    after it leave what it lacks, if existing machines of the pool will give that back in time.
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
    """Return what a machine takes with its subnodes, of servers and of the cloud's quotas."""
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
    """Who has a machine, by its server and node: a build or a person (USED), or a person who holds it (HOLD)."""

    state: str
    why: str
    hold_until: int | None = None

    @property
    def columns(self) -> dict[str, object]:
        """The columns to write into the machine's row with the state."""
        return {"hold_reason": self.why, "hold_until": self.hold_until} if self.state == HOLD else {}


def use_of(server: nova.Server | None, node: jenkinsnodes.Node | None, now: float) -> Use | None:
    """Return who has a machine, whatever vm.db says, which may be older; None if nobody has it.

    This reads the marks that hold, inprogress and delete leave on server and node. A node that a person took offline by
    hand, and that still has its label, does not belong to a build: that person says when it can go.
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
    offline = f"its node is offline in Jenkins: {node.told_cause or 'without a reason'}"
    return Use(HOLD, offline) if node.by_person and not node.spent else None


def forgotten_use(
    machine: Machine, server: nova.Server | None, node: jenkinsnodes.Node | None, now: float
) -> Use | None:
    """Return who has a machine whose row does not say so, because vm.db is older than the use; None if nobody.

    A node is made after its machine is READY, so the node of a BUILDING machine is proof. For other rows only the marks
    count that hold and inprogress leave after writing their state into vm.db. The mark of a hold outlives the hold, and
    so does the reason in its row: a row in DELETE without a reason was moved by somebody who did not know of the hold.
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
    """Return the build named in an offline message such as "in use by JOB #7", as Jenkins' environment variables."""
    found = re.fullmatch(rf"{jenkinsnodes.IN_USE_BY}(.+) #([0-9]{{1,9}})", text)
    return {"JOB_NAME": found[1], "BUILD_NUMBER": found[2]} if found else {}


def why_taken(machine: Machine, taken: Result | None) -> str:
    """Return the offline message for the node of a machine that somebody has; build_named and use_of read it."""
    if machine.state == HOLD:
        return f"{jenkinsnodes.HELD}{machine.hold_reason or ''}"
    who = (vmdatabase.build_of(taken) or "a person") if taken else ""
    return f"{jenkinsnodes.IN_USE_BY}{who}" if who else "its machine has been used"


def judge(
    machine: Machine, image: BaseImage, boot_timeout: int, sight: Sight, now: int, moved: int = 0, unclaimed: str = ""
) -> MoveMachine | None:
    """Return the move that one machine's state, age and sight demand; None if it stays.

    moved: when a person last said that vm.db was restored or moved on purpose; rows from before may be out of date.
    unclaimed: why nobody has a used machine, empty if somebody has it.
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
        why = f"used for {age // 60} min, but nobody has it: {unclaimed}"
    return MoveMachine(machine, DELETE, why) if why else None


def judge_ready(machine: Machine, image: BaseImage, sight: Sight, age: int) -> MoveMachine | None:
    """Return the move of a machine that has been READY for `age` seconds; None if it stays."""
    if death := sight.death(machine):
        return MoveMachine(machine, ERROR, death)
    if sight.builds(machine):
        return None
    if labels := sight.relabelled(machine, str(image.name)):
        text = f"its node's labels were changed in Jenkins: {labels}"
        return MoveMachine(machine, HOLD, text, {"hold_reason": text})
    why = None
    if mark := sight.lost_mark(machine):
        why = f"its server does not carry our {mark} any more"
    elif sight.spent(machine):
        why = "no build can start on its node any more"
    elif not image.active:
        why = "its image is no longer in the providers file"
    elif image.max_ready_age and age >= image.max_ready_age * HOUR:
        why = f"ready for more than {image.max_ready_age} hours (max-ready-age)"
    return MoveMachine(machine, DELETE, why) if why else None


def judge_old_row(machine: Machine, sight: Sight, now: int, moved: int) -> MoveMachine | None:
    """Return the move of a machine that a person or a newer vm.db has changed, unknown to its row; None if none."""
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
    """Return the machines of ended builds, oldest first, that must go early so that the pool can be full, and no more.

    missing and room count servers; sizes has the number of servers of each machine, by its id; 1 if it is not there.
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
    """Return our servers that no row accounts for, except those whose row may be newer than our look at vm.db."""
    return [server for server in unaccounted_servers(servers, machines, snapshots, now)
            if now - server.created >= GRACE or server.snapshot_id in snapshots or server.machine_id in machines]


def unaccounted_servers(
    servers: Iterable[nova.Server], machines: Mapping[int, str | None], snapshots: Mapping[int, SnapshotImage],
    now: float,
) -> list[nova.Server]:
    """Return our servers that take room in addition to those that rows account for.

    machines is {row id: server id or None}. They are servers without a row, second servers of a row, and template
    servers whose snapshot is neither BUILDING nor kept for a person. A server whose id a row has belongs to that row,
    whatever somebody wrote into its marks.
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
    """Return why these servers without a row cannot be plain leaks, so that vm.db may be old; empty if they can be.

    A row is written before its server is asked for and deleted after the server is gone, so leaks are few. rows: how
    many machines vm.db has of the provider; moved: when a person last said that vm.db was restored or moved on purpose
    (Unix seconds, 0 for never): it may have forgotten any number of older servers.
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
    """Return our images that no row accounts for.

    One without a row counts only after GRACE; a second one with a row's name at once. An image that a user made of one
    of our machines inherits the mark of a row, but not its name. An image whose id a row has belongs to that row.
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
    """Return our volumes that belong to no server and are not about to.

    machines: {row id: state}; snapshots: the ids of those that are being built or used. The volume of a machine that
    boots, or was held while it did, is left alone. So is a volume that a server has, as it goes with the server, and
    the volume that a snapshot was made of, since some clouds cannot delete it while the snapshot exists.
    """
    return [volume for volume in volumes if volume.unattached
            and machines.get(volume.machine_id or 0) not in (BUILDING, HOLD) and volume.snapshot_id not in snapshots]


def stuck_volumes(
    volumes: Iterable[nova.Volume], machines: Container[int], snapshots: Container[int], servers: Container[str],
    now: float,
) -> list[nova.Volume]:
    """Return our volumes that have neither a row nor an existing server, and that block storage would not delete.

    It shows them as in use if it was not told of their server's deletion. Any other status counts only once it has
    lasted for GRACE: `creating` and the like pass. machines and snapshots: the ids of all rows; servers: the ids of all
    existing servers.
    """
    return [volume for volume in volumes if not volume.unattached
            and (volume.status in STUCK_STATUSES or now - volume.changed >= GRACE)
            and volume.machine_id not in machines and volume.snapshot_id not in snapshots
            and not any(server in servers for server in volume.servers)]


def old_snapshots(snapshots: Sequence[SnapshotImage], everything: bool, now: float) -> list[SnapshotImage]:
    """Return which snapshots of one image type go, given all of them, newest first.

    These are the failed ones and those older than current and previous; everything: all but those being built or kept
    for a person.
    """
    ready = [row for row in snapshots if row.state == READY]
    kept = [] if everything else ready[:SNAPSHOTS_KEPT]
    return [row for row in snapshots if not row.has_server(now) and row not in kept]
