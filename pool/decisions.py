"""What reap does about what it saw: pure functions of vm.db's rows, a sight and a clock, which return actions.

They are in the order in which a run decides. pool/rules.py has the rules for a single machine or server; these
functions go through all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import gateprocess
import jenkinsnodes
import vmdatabase
from cloud import nova
from pool import actions, groups, rules
from pool.actions import Action, Delete, DeleteSnapshot, Leave, MarkProved, MoveMachine
from pool.sight import Sight
from pool.verdict import Verdict
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, READY, USED, BaseImage, KnownIds, Machine, Provider, Result

UNCLAIMED_SECONDS = 900  # how long a taken machine that no build and no person has is kept
ALL_SERVERS = "--all-servers"
NO_IDS = KnownIds(0)
SERVER, IMAGE, KEYPAIR, FLOATING_IP, VOLUME, NODE = (
    "leaked server", "leaked image", "keypair", "floating IP", "volume", "stray node")


@dataclass(frozen=True)
class Rows:
    """A provider's rows in vm.db, read after the sight."""

    provider: Provider
    machines: Sequence[Machine]  # oldest first
    images: Mapping[int, BaseImage]  # by id
    snapshots: Mapping[int, vmdatabase.SnapshotImage]  # by id, newest first
    ended: Container[int] = ()  # ids of machines whose build has ended
    moved: int = 0  # when a person last said that vm.db was restored or moved on purpose, Unix seconds
    machine_ids: KnownIds = NO_IDS  # ids that vm.db may know
    snapshot_ids: KnownIds = NO_IDS
    # How many more machines should come, by the ids of image types for which min-ready alone does not say it.
    lacking: Mapping[int, int] = field(default_factory=dict)

    @cached_property
    def leads(self) -> list[Machine]:
        """The machines that are not subnodes."""
        return [machine for machine in self.machines if machine.lead_id is None]

    @cached_property
    def by_id(self) -> dict[int, Machine]:
        """The machines by their ids."""
        return {machine.id: machine for machine in self.machines}

    @cached_property
    def subnodes(self) -> dict[int, list[Machine]]:
        """The subnodes by the ids of their leads, including those that failed in their boots."""
        return groups.by_lead(self.machines)

    def members(self, lead: Machine) -> list[Machine]:
        """Return the subnodes that go with a machine."""
        return groups.members(lead, self.subnodes)

    @cached_property
    def server_ids(self) -> dict[int, str | None]:
        """The ids of the machines' servers, by the ids of their rows; None if none was saved."""
        return {machine.id: machine.external_id for machine in self.machines}

    def leaks(self, sight: Sight, now: float) -> list[nova.Server]:
        """Return our servers that no row accounts for."""
        return rules.leaked_servers(sight.servers.values(), self.server_ids, self.snapshots, now)


# --- rows that a restored vm.db lacks ---------------------------------------------------------------------------------


def adoptions(rows: Rows, sight: Sight, now: float) -> list[actions.AdoptServer]:
    """Return the servers without a row that somebody has, except those of unknown image types."""
    found = []
    for server in rows.leaks(sight, now):
        number = server.machine_id
        if number is None or number in rows.server_ids:
            continue
        node = sight.nodes_by_id.get(number)
        use = use_with_lead(server, rows, sight, now) if server.lead_id else rules.use_of(server, node, now)
        image = next((image for image in rows.images.values()
                      if server.name.endswith(f"devstack-{image.name}-{rows.provider.name}-{number}")), None)
        if use and image:
            found.append(actions.AdoptServer(server, node, image, use.state, use.why, use.columns))
    return found


def use_with_lead(server: nova.Server, rows: Rows, sight: Sight, now: float) -> rules.Use | None:
    """Return who has the lead of a subnode's server, and so the server; None if nobody has it."""
    lead = rows.by_id.get(server.lead_id or 0)
    if lead and lead.state in (HOLD, USED):
        return rules.Use(str(lead.state), f"with {lead.name}", lead.hold_until)
    if lead:
        return rules.forgotten_use(lead, sight.server(lead), sight.node(lead), now)
    number = server.lead_id
    return rules.use_of(sight.by_machine.get(number), sight.nodes_by_id.get(number or 0), now)


# --- builds that have ended -------------------------------------------------------------------------------------------


def ended_builds(
    running: Iterable[tuple[Machine, Result]], builds: Mapping[int, jenkinsnodes.Build | None],
    verdicts: Mapping[int, Verdict], forgotten: float, sight: Sight,
) -> list[actions.RecordEnd]:
    """Return the ends of builds that vm.db shows as running while their nodes are idle.

    builds and verdicts are Jenkins' answers, by machine. A build that Jenkins does not know is over if its machine was
    taken before `forgotten` (Unix seconds), unless Jenkins does not know the machine's node either: then another
    Jenkins may run the build. A build that ran on another node is not the machine's, see why_unclaimed.
    """
    found = []
    for machine, row in running:
        build = builds[machine.id]
        if build is None and machine.state_time <= forgotten and sight.knows_node(machine):
            found.append(actions.RecordEnd(machine, vmdatabase.build_of(row), None, None))
        elif build and build.result and not build.ran_elsewhere(str(machine.jenkins_name or machine.name)):
            found.append(actions.RecordEnd(machine, vmdatabase.build_of(row), build.result, verdicts[machine.id]))
    return found


# --- moves of machines ------------------------------------------------------------------------------------------------


def doubted(rows: Rows, sight: Sight, now: float) -> list[Machine]:
    """Return the machines that were taken a while ago and on which no build runs: perhaps nobody has them."""
    return [machine for machine in rows.leads if machine.state == USED and not sight.is_untold(machine)
            and now - machine.state_time >= UNCLAIMED_SECONDS and not sight.builds(machine)]


def is_named(last: Result | None) -> bool:
    """Return whether a machine was taken by a build that Jenkins can be asked about."""
    return bool(last and last.jenkins_job_name and last.jenkins_build_number is not None)


def why_unclaimed(machine: Machine, last: Result | None, build: jenkinsnodes.Build | None, has_node: bool) -> str:
    """Return why nobody has a machine that was taken; empty if somebody has it or that is not known.

    last: the row of whoever took it; build: what Jenkins says about that build; has_node: whether this Jenkins knows
    the node, and so would know the build. A build that Jenkins does not know, or that ran elsewhere, has no use for the
    machine; somebody may have named it to take the machine away from the pool.
    """
    if last and (last.by_person or last.result):
        return ""
    if last is None or not is_named(last):
        return "no build has taken it"
    if build is None:
        return f"Jenkins knows no {vmdatabase.build_of(last)}" if has_node else ""
    elsewhere = build.ran_elsewhere(str(machine.jenkins_name or machine.name))
    return f"{vmdatabase.build_of(last)} did not run there" if elsewhere else ""


def why_claimed(machine: Machine, opened: Result | None, build: jenkinsnodes.Build | None) -> str:
    """Return who has a machine on whose node no build runs now; empty if nobody has it.

    opened: the row of whoever has it; build: what Jenkins says about that build, which goes on without the node if
    somebody has renamed the node.
    """
    if opened and opened.by_person:
        return "a person was given it"
    goes_on = opened and build and not build.result and not build.ran_elsewhere(str(machine.jenkins_name))
    return f"Jenkins does not say that {vmdatabase.build_of(opened)} has ended" if opened and goes_on else ""


def moves(
    rows: Rows, sight: Sight, now: float, unclaimed: Mapping[int, str], all_servers: bool,
    claimed: Mapping[int, str] = MappingProxyType({}),
) -> list[MoveMachine | Leave]:
    """Return the moves of machines by the rules, and a Leave for each that somebody keeps from such a move.

    unclaimed says why nobody has some of them; claimed says who has machines on whose nodes no build runs:
    --all-servers leaves them their 24 hours. Subnodes move with their lead, except those that lost it.
    """
    judged = [judge_held(machine, rows)
              or rules.judge(machine, rows.images[machine.base_image_id], rows.provider.boot_timeout, sight, int(now),
                             rows.moved, unclaimed.get(machine.id, ""))
              or judge_group(machine, rows, sight)
              or (judge_all(machine, sight, claimed.get(machine.id, "")) if all_servers else None)
              for machine in rows.leads]
    found = [one if isinstance(one, Leave) else unless_kept(completed(one, sight), sight, now) for one in judged if one]
    going = {move.machine.id for move in found if isinstance(move, MoveMachine)}
    strays = [MoveMachine(member, DELETE, why) for member in rows.machines if member.lead_id is not None
              and (why := stray(member, rows, sight, going))]
    staying = [machine for machine in rows.leads if machine.id not in going]
    return found + strays + ([] if all_servers else moves_for_room(rows, staying, sight, now))


def judge_all(lead: Machine, sight: Sight, claim: str) -> MoveMachine | Leave | None:
    """Return the move of a lead that --all-servers demands, or Leave if somebody has it, as claim says.

    Return None if it is held, over already, or may run a build.
    """
    if not lead.external_id or lead.state not in (READY, USED, BUILDING) or sight.builds(lead):
        return None
    if claim:
        return Leave(f"{left_words(lead, claim, ALL_SERVERS)}; if it may go all the same, hold it and unhold it")
    return MoveMachine(lead, DELETE, ALL_SERVERS)


def left_words(machine: Machine, kept: str, going: str) -> str:
    """Return in words why a machine is left, and why it should go."""
    return f"{machine.name}: {kept}; so it is left, although it should go: {going}"


def unless_kept(move: MoveMachine, sight: Sight, now: float) -> MoveMachine | Leave:
    """Return a move, or Leave if it would end a ready machine whose node a person took offline, as if it were held.

    A server that is gone, or no longer ours, is not kept.
    """
    machine = move.machine
    use = rules.use_of(sight.server(machine), sight.node(machine), now)
    lost = machine.external_id in sight.gone or sight.lost_mark(machine)
    if lost or machine.state != READY or move.target not in (DELETE, ERROR) or not use or use.state != HOLD:
        return move
    return Leave(left_words(machine, use.why, move.why))


def judge_held(lead: Machine, rows: Rows) -> MoveMachine | None:
    """Return the move to HOLD of a lead with a subnode that a person put on HOLD: a hold is for whole groups."""
    held = next((one for one in rows.subnodes.get(lead.id, ()) if one.state == HOLD), None)
    if held is None or lead.state not in (BUILDING, READY, USED):
        return None
    why = f"its subnode {held.name} is held"
    return MoveMachine(lead, HOLD, why, {"hold_reason": held.hold_reason or why, "hold_until": held.hold_until})


def judge_group(lead: Machine, rows: Rows, sight: Sight) -> MoveMachine | None:
    """Return the move of a lead that follows from what was seen of its subnodes; None if there is none."""
    members = rows.members(lead)
    for member in members:
        if lead.state not in (HOLD, DELETE) and (name := sight.renamed(member)):
            why = f"the server of its subnode {member.name} was renamed to {name}"
            return MoveMachine(lead, HOLD, why, {"hold_reason": why})
    if lead.state != READY or sight.builds(lead):
        return None
    for member in members:
        if death := sight.server_death(member):
            return MoveMachine(lead, ERROR, f"its subnode {member.name}: {death}")
        if mark := sight.lost_mark(member):
            return MoveMachine(lead, DELETE, f"the server of its subnode {member.name} does not carry our {mark} any "
                                             "more")
    why = groups.wrong_size(lead, len(members), rows.images[lead.base_image_id].subnodes)
    return MoveMachine(lead, DELETE, why) if why else None


def stray(member: Machine, rows: Rows, sight: Sight, going: AbstractSet[int]) -> str:
    """Return why a subnode goes without its lead, empty if it does not; going: the leads that are moved.

    If only the subnode's server is gone and no build runs, the rest of the group is kept for a look, as a whole one is.
    """
    lead = rows.by_id.get(member.lead_id or 0)
    if why := groups.strayed(member, lead):
        return why
    kept = lead and lead.state == member.state == USED and lead.id not in going and not sight.builds(lead)
    return "the server is gone" if kept and member.external_id in sight.gone else ""


def completed(move: MoveMachine, sight: Sight) -> MoveMachine:
    """Return a move with everything that is recorded with it.

    The loss of a ready machine counts for its image type, but not if the cloud or a person took the server away.
    """
    machine, node, server = move.machine, sight.node(move.machine), sight.server(move.machine)
    columns = dict(move.columns)
    if server and machine.external_id is None:  # known by its mark, if launch did not get to save the id
        columns["external_id"] = server.id
    if move.target == ERROR:
        columns["error"] = move.why
    if machine.state == BUILDING and node:
        columns["jenkins_name"] = node.name
    lost = move.target == ERROR and node and node.name in sight.dead_nodes and not sight.server_death(machine)
    return replace(move, columns=columns, server=server,
                   loss=f"{node.agent} {node.cause}" if lost and node else "")


def moves_for_room(rows: Rows, staying: Iterable[Machine], sight: Sight, now: float) -> list[MoveMachine]:
    """Return the finished machines that go before their 24 hours because the pool lacks room for what is missing."""
    staying = [machine for machine in staying if machine.state not in (DELETE, ERROR)]
    coming = Counter(machine.base_image_id for machine in staying if machine.state in (READY, BUILDING))
    lacks = {image.id: rows.lacking.get(image.id, max(0, image.min_ready - coming[image.id]))
             for image in rows.images.values()}
    missing = sum(lacks[image.id] * (1 + image.subnodes) for image in rows.images.values())
    finished = [machine for machine in staying
                if machine.state == USED and machine.id in rows.ended and not sight.builds(machine)]
    others = sum(snapshot.has_server(now) for snapshot in rows.snapshots.values()) + len(
        rules.unaccounted_servers(sight.servers.values(), rows.server_ids, rows.snapshots, now))
    sizes = {machine.id: 1 + len(rows.members(machine)) for machine in staying}
    return rules.make_room(finished, missing, rows.provider.max_servers - sum(sizes.values()) - others, sizes)


def marks(rows: Rows, sight: Sight) -> list[actions.MarkHeld]:
    """Return the held machines whose servers do not say so, or whose servers' ids or addresses were not saved."""
    found = []
    for machine in rows.machines:
        server = sight.server(machine) if machine.state == HOLD else None
        told = nova.held_marks(str(machine.hold_reason or ""), machine.hold_until)
        lacks = server and (machine.external_id is None or (machine.ip is None and server.status == nova.ACTIVE))
        if server and (lacks or not told.items() <= server.metadata.items()):
            found.append(actions.MarkHeld(machine, server))
    return found


def retirements(rows: Rows, sight: Sight) -> list[actions.RetireNode]:
    """Return the nodes still in service although somebody has their machines."""
    nodes = [(machine, (sight.nodes or {}).get(str(machine.jenkins_name))) for machine in rows.machines
             if machine.state in (USED, HOLD)]
    return [actions.RetireNode(machine, node) for machine, node in nodes if node and not node.out_of_service]


# --- servers ----------------------------------------------------------------------------------------------------------


def deletions(rows: Rows, sight: Sight, now: float, all_servers: bool) -> list[Action]:
    """Return the deletions of machines and of servers without a row, and a Leave for each one that stays."""
    found: list[Action] = []
    for machine in rows.machines:
        if machine.state not in (DELETE, ERROR) or (sight.is_untold(machine) and machine.jenkins_name):
            continue
        lead = rows.by_id.get(machine.lead_id or 0)
        if lead and lead.state in (DELETE, ERROR) and sight.builds(lead):
            continue  # the build there still uses it
        held = [one.name for one in rows.subnodes.get(machine.id, ()) if one.state == HOLD]
        if held:
            found.append(Leave(f"{machine.name}: its subnode {held[0]} was put on HOLD by hand and would be deleted "
                               "with it; first set the subnode to DELETE, or take it out of the pool"))
            continue
        server_id = sight.server_id(machine)
        if sight.lost_mark(machine):
            found.append(actions.DeleteMachine(machine, None, may_have_server=False))
        elif name := sight.renamed(machine):
            found.append(Leave(f"{machine.name}: its server was renamed to {name}, so it is left; delete it or take "
                               f"its metadata {nova.POOL_KEY} away"))
        else:
            found.append(actions.DeleteMachine(machine, server_id, server_id is None and not sight.list_is_whole))
    found += [Leave(f"server {server.name} {server.id} carries our {nova.POOL_KEY}, but its {nova.PROVIDER_KEY} names "
                    "no provider of vm.db, so it is left; put that right, take both away, or delete it")
              for server in sight.unowned]
    going = []
    for server in rows.leaks(sight, now):
        if why := why_left(server, rows, sight, now, all_servers):
            found.append(Leave(f"server {server.name} {server.id} has no row in vm.db and is left: {why}"))
        elif server.machine_id is None or sight.is_whole:
            going.append(server)
    unlikely = rules.unlikely_leaks(going, rows.machine_ids, rows.snapshot_ids, len(rows.machines), rows.moved)
    if unlikely and not all_servers:
        names = gateprocess.some(sorted(server.name for server in going))
        return [*found, Leave(f"servers without a row in vm.db: {names}; {unlikely}, which looks like a restored "
                              "vm.db, so all are left; if it was restored, run vmdatabase.py moved, otherwise reap "
                              "with --all-servers")]
    nodes = {number: node for number, node in sight.nodes_by_id.items()
             if number not in rows.server_ids and node not in sight.strangers}
    return found + [Delete(SERVER, f"{server.name} {server.id}", (server.id, nodes.get(server.machine_id or 0)))
                    for server in going]


def why_left(server: nova.Server, rows: Rows, sight: Sight, now: float, all_servers: bool) -> str:
    """Return why a server without a row is not a leak; empty if it is one."""
    template = rows.snapshots.get(server.snapshot_id or 0)
    number = server.machine_id
    node = None if number is None or number in rows.server_ids else sight.nodes_by_id.get(number)
    use = rules.use_of(server, node, now) or (use_with_lead(server, rows, sight, now) if server.lead_id else None)
    if use and not (template and template.keep_until):  # its hours are over, by vm.db, which is right here
        return use.why
    if number is not None:
        own_name = server.name.endswith(f"-{rows.provider.name}-{number}")
    else:
        own_name = server.name == template.name if template else bool(nova.TEMPLATE_NAME.search(server.name))
    if not own_name and not all_servers:
        return f"it was renamed or copied by a person; its metadata {nova.POOL_KEY} makes it ours"
    return ""


# --- images and snapshots ---------------------------------------------------------------------------------------------


def leaked_images(rows: Rows, images: Sequence[nova.Image], now: float, all_images: bool) -> list[Action]:
    """Return what to do about images without a row: good ones get one, others made by a newer vm.db are left."""
    found: list[Action] = []
    for image in rules.leaked_images(images, rows.snapshots, now):
        base_image, version = made_for(image, rows.images.values())
        if base_image and image.proved and image.status == "active" and image.snapshot_id not in rows.snapshots \
                and not all_images:
            found.append(actions.AdoptImage(image, base_image, version))
        elif all_images or rows.snapshot_ids.knows(image.snapshot_id or 0):
            found.append(Delete(IMAGE, f"{image.name} {image.id}", image))
        else:
            found.append(Leave(
                f"image {image.name} {image.id} has no row and was made by a newer vm.db than this; it is left: if "
                "vm.db was restored, run vmdatabase.py moved, otherwise reap with --all-images"))
    return found


def made_for(image: nova.Image, base_images: Iterable[BaseImage]) -> tuple[BaseImage | None, int]:
    """Return the image type and the version in an image's name; None and 0 if it has none."""
    found = re.fullmatch(rf"(.*)-([0-9]+){re.escape(nova.TEMPLATE_SUFFIX)}", image.name)
    of_it = [one for one in base_images if found and found[1].endswith(f"devstack-{one.name}")]
    return (of_it[0], int(found[2])) if found and of_it else (None, 0)


def snapshots(
    rows: Rows, images: Sequence[nova.Image], gone: Container[str], now: float, all_images: bool
) -> list[MarkProved | DeleteSnapshot]:
    """Return the snapshots that are old, failed, drained or without their image, and those whose images need a mark.

    gone: the ids of images that the cloud, asked one by one, no longer has. An image type with a `template` makes no
    snapshots and boots from none of its own, so those that it made before go as if it was drained.
    """
    by_id = {image.id: image for image in images}
    by_name = {(image.snapshot_id, image.name): image.id for image in images}
    lost = [row for row in rows.snapshots.values() if row.state == READY and row.external_id in gone]
    by_type: dict[int, list[vmdatabase.SnapshotImage]] = defaultdict(list)
    for row in rows.snapshots.values():
        by_type[row.base_image_id] += [row] * (row not in lost)
    unused = {number for number, image in rows.images.items() if not image.active or image.template}
    booting = {machine.snapshot_image_id for machine in rows.machines if machine.state == BUILDING}
    old = [row for image_id, of_it in by_type.items()
           for row in rules.old_snapshots(of_it, all_images or image_id in unused, now) if row.id not in booting]
    unproved = [row for row in rows.snapshots.values() if row.state == READY and row not in old
                and (image := by_id.get(str(row.external_id))) and not image.proved]
    return [*(MarkProved(row, str(row.external_id)) for row in unproved), *(DeleteSnapshot(row, None) for row in lost),
            *(DeleteSnapshot(row, row.external_id or by_name.get((row.id, str(row.name)))) for row in old)]


# --- the rest ---------------------------------------------------------------------------------------------------------


def leftovers(
    rows: Rows, sight: Sight, server_ids: AbstractSet[str], to_bind: Container[int], building: Container[int]
) -> list[Delete]:
    """Return the keypairs, floating IPs and volumes that belong to nothing.

    server_ids: the servers that still exist; to_bind: the machines that may get a floating IP; building: the snapshots
    that are BUILDING; each of all providers.
    """
    keypairs = [Delete(KEYPAIR, name, name) for name, number in sight.keypairs.items() if number not in building]
    floating_ips = [Delete(FLOATING_IP, ip.address, ip) for ip in sight.floating_ips
                    if (ip.machine_id not in to_bind if ip.machine_id is not None else ip.server_id not in server_ids)]
    states = {machine.id: str(machine.state) for machine in rows.machines}
    in_use = {number for number, row in rows.snapshots.items() if row.state != ERROR}
    volumes = [Delete(VOLUME, f"{volume.name} {volume.id}", volume.id)
               for volume in rules.leaked_volumes(sight.volumes, states, in_use)]
    return [*keypairs, *floating_ips, *volumes]


def stray_nodes(
    rows: Rows, sight: Sight, names: Container[str], providers: Collection[str], now: float
) -> list[Delete | Leave]:
    """Return the nodes that carry this pool's UUID but have no machine; names: those of all machines.

    A node under a name that the pool never gave is a person's, such as a copy, and is left. A node with an existing
    server goes or stays with the server. One in use stays while vm.db does not know its id: a list of servers may have
    left its server out. Each node is left to the reap of one provider, see reaper_of.
    """
    def is_ours(node: jenkinsnodes.Node) -> bool:
        return reaper_of(node.name, providers) == rows.provider.name

    found: list[Delete | Leave] = [
        Leave(f"node {node.name} carries our {nova.POOL_KEY}, but its name is not one of our image types and "
              "providers, so it is left; if a person made it, clear its description")
        for node in sight.strangers if node.name not in names and is_ours(node)]
    for number, node in sight.nodes_by_id.items():
        kept = not rows.machine_ids.knows(number) and node.idle and rules.use_of(None, node, now)
        if is_ours(node) and not (
                kept or node.name in names or node in sight.strangers or number in sight.by_machine):
            found.append(Delete(NODE, node.name, node))
    return [*found, *(Delete(NODE, node.name, node) for node in sight.misplaced)]


def reaper_of(node: str, providers: Collection[str]) -> str:
    """Return the provider whose reap sees to a node without a machine: the one in its name, or else the first."""
    return max((name for name in providers if re.search(f"-{re.escape(name)}-[0-9]+$", node)), key=len,
               default=min(providers))
