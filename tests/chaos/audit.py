"""What must be true at any time, and what must be true after peace; nothing here trusts the scripts."""

import re
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.chaos.events import Events
from tests.chaos.runs import Run
from tests.chaos.world import ENVIRONMENTS, IMAGES, MAX_SERVERS, OF_LABEL, POOL, SUBNODES, World

STOP_SECONDS = 5.0  # from SIGTERM or SIGINT to the end of a script
SIGNALS = {signal.SIGTERM: 143, signal.SIGINT: 130}
LIVING = ("READY", "USED", "HOLD")
SNAPSHOTS_KEPT = 2
AGENT_SECONDS = 700  # a machine whose agent is away for longer must be replaced
Row = dict[str, Any]


@dataclass(frozen=True)
class Violation:
    """Something that must not happen; words are the thing's names in the event log."""

    rule: str
    text: str
    words: tuple[str, ...]

    def report(self, seed: int, events: Events) -> str:
        """Return what is wrong, in which round, and the last events that concern the thing."""
        story = "\n".join(f"    {line}" for line in events.concerning(self.words))
        return f"VIOLATION seed {seed} round {events.round}: {self.rule}: {self.text}\n{story}"


def any_time(world: World, runs: Collection[Run]) -> list[Violation]:
    """Return what is wrong even if things are still under way."""
    return [*of_runs(runs), *of_database(world), *of_limits(world), *of_uses(world), *of_holds(world),
            *of_strangers(world), *of_environments(world, runs), *of_groups(world)]


def after_peace(world: World, runs: Collection[Run]) -> list[Violation]:
    """Return what is wrong once nothing is under way any more; runs are those of World.peace."""
    state = State(world)
    found = [*any_time(world, runs), *of_groups_at_peace(world), *of_machines(world, state),
             *of_snapshots(world, state), *of_pool(world, state), *of_nodes(world, state),
             *of_environments_at_peace(world)]
    for cloud in world.providers.values():
        found += [*of_cloud(world, state, cloud), *of_volumes(world, state, cloud)]
    # Only the first reap of each provider can fail: nothing obstructs the launch and reap after it.
    return found + [Violation("peace", f"{run.name}: exit code {run.status}", (run.name,)) for run in runs
                    if run.status != 0 and run in list(runs)[len(world.providers):]]


class State:
    """vm.db, clouds and Jenkins as they are now; `servers` and `images` hold only the pool's own."""

    def __init__(self, world: World) -> None:
        self.machines = _rows(world, "SELECT machine.*, base_image.name AS image, provider.name AS provider, cloud "
                              "FROM machine JOIN base_image ON base_image_id = base_image.id "
                              "JOIN provider ON provider_id = provider.id")
        self.snapshots = _rows(world, "SELECT snapshot_image.*, base_image.name AS image, provider.name AS provider, "
                               "cloud FROM snapshot_image JOIN base_image ON base_image_id = base_image.id "
                               "JOIN provider ON provider_id = provider.id")
        uuid = world.uuid
        self.truth = {cloud: world.pocket.look(cloud) for cloud in world.providers.values()}
        self.servers = {cloud: {one["id"]: one for one in truth["servers"]
                                if one["metadata"].get("devstack-gate-pool") == uuid}
                        for cloud, truth in self.truth.items()}
        self.images = {cloud: {one["id"]: one for one in truth["images"]
                               if one["properties"].get("devstack-gate-pool") == uuid}
                       for cloud, truth in self.truth.items()}
        self.nodes: dict[str, Any] = world.jenkins.look()["nodes"]


def _rows(world: World, statement: str) -> list[Row]:
    columns = world.pool.columns(_table(statement))
    return [dict(zip([*columns, "image", "provider", "cloud"], row, strict=True)) for row in world.pool.sql(statement)]


def _table(statement: str) -> str:
    return statement.split()[1].removesuffix(".*,")


def _words(row: Row) -> tuple[str, ...]:
    return tuple(str(row[key]) for key in ("name", "external_id", "server_external_id") if row.get(key))


# --- at any time ---


def of_runs(runs: Iterable[Run]) -> Iterator[Violation]:
    """Check for tracebacks, unforeseen errors, hangs, unknown exit codes, and slow or silent ends after a signal."""
    for run in runs:
        words = (run.name,)
        for line in run.lines:
            if re.search("Traceback|unforeseen|Fatal Python error|chaos: still running", line):
                yield Violation("output", f"{run.name}: {line}", words)
        if run.status not in (0, 1, 2, 130, 143, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT):
            yield Violation("exit code", f"{run.name}: {run.status}", words)
        if run.signalled is None or run.signalled[0] not in SIGNALS:
            continue
        number, moment = run.signalled
        if run.ended_at - moment > STOP_SECONDS:
            yield Violation("stop", f"{run.name}: ended {run.ended_at - moment:.1f} s after signal {number}", words)
        if run.status == SIGNALS[signal.Signals(number)] and "stopped" not in run.text():
            yield Violation("stop", f"{run.name}: does not say that it was stopped", words)


def of_database(world: World) -> Iterator[Violation]:
    """Check that vm.db is intact; a PostgreSQL server sees to that itself."""
    if world.servers:
        return
    for pragma in ("integrity_check", "foreign_key_check"):
        found = [str(row) for row in world.pool.sql(f"PRAGMA {pragma}") if row != ("ok",)]
        if found:
            yield Violation("vm.db", f"PRAGMA {pragma}: {'; '.join(found)[:500]}", ())


def of_limits(world: World) -> Iterator[Violation]:
    """Check that no provider has more machines than max-servers, and the label no more than max-ready."""
    for provider, count in world.pool.sql("SELECT provider.name, count(*) FROM machine JOIN base_image "
                                          "ON base_image.id = base_image_id JOIN provider ON provider.id = provider_id "
                                          "GROUP BY 1"):
        if count > MAX_SERVERS:
            yield Violation("limits", f"{provider}: {count} machines, max-servers {MAX_SERVERS}", ())
    ((count,),) = world.pool.sql("SELECT count(*) FROM machine JOIN base_image ON base_image.id = base_image_id "
                                 "WHERE base_image.name = ? AND state IN ('READY', 'BUILDING')", OF_LABEL)
    most = world.wanted_of_label()[1]
    if count > most:
        yield Violation("limits", f"label {OF_LABEL}: {count} machines ready or on their way, max-ready {most}",
                        (f"-{OF_LABEL}-",))


def of_uses(world: World) -> Iterator[Violation]:
    """Check that no machine is given to two, and that no node is in service once a build was let in."""
    lines = world.let_in.read_text().splitlines()
    for node, count in Counter(line.split()[0] for line in lines).items():
        if count > 1:
            who = [line for line in lines if line.startswith(f"{node} ")]
            yield Violation("single use", f"{node} was given to {', '.join(who)}", (node,))
    nodes = world.jenkins.look()["nodes"]
    for line in lines:
        node, build = line.split(maxsplit=1)
        if node in nodes and build.startswith("gate-") and in_service(nodes[node]):
            yield Violation("single use", f"{node} is in service after it was given to {build}", (node,))


def in_service(node: Row) -> bool:
    """Return whether Jenkins would start a build of the node's image there."""
    return not node["temporarilyOffline"] and node["label"] != "devstack-used"


def of_holds(world: World) -> Iterator[Violation]:
    """Check that machines held by a person stay as they are."""
    there = world.servers_there()
    states = world.pool.machines()
    for node, server_id in world.held.items():
        goes = node in world.outlived and server_id in world.vanished  # its server is gone since a restore
        if states.get(node) != "HOLD" and not world.restored and not goes:  # if restored, the next reap repairs it
            yield Violation("hold", f"{node} is held, but {states.get(node, 'has no row')}", (node, server_id or node))
        if server_id and server_id not in there | world.vanished.keys():
            yield Violation("hold", f"{node} is held, but its server {server_id} is gone", (node, server_id))


def of_environments(world: World, runs: Iterable[Run]) -> Iterator[Violation]:
    """Check that each environment exists, is LOCKED only by a machine in use, and is with the one it was given to."""
    consoles = [one["console"].splitlines() for one in world.jenkins.look()["builds"]]
    for lines in (*(run.lines for run in runs), *consoles):
        world.note_given(lines)
    rows = world.pool.sql("SELECT test_environment.name, test_environment.state, machine.name, machine.state "
                          "FROM test_environment LEFT JOIN machine ON machine.id = machine_id")
    if sorted(row[0] for row in rows) != sorted(ENVIRONMENTS):
        yield Violation("environments", f"there are {[row[0] for row in rows]}", ("rack-",))
    for name, state, node, machine_state in rows:
        if (state == "LOCKED") != (machine_state in ("USED", "HOLD")):
            yield Violation("environments", f"{name} is {state}, by {node} which is {machine_state}", (name,))
    if world.restored:
        return  # reap must find out first
    holders, states = {name: node for name, _, node, _ in rows}, world.pool.machines()
    for node, name in world.given.items():
        if states.get(node) in ("USED", "HOLD") and holders.get(name) != node:
            yield Violation("environments", f"{node} is {states[node]} and was given {name}, which "
                            f"{holders.get(name)} has", (node, name))


def of_groups(world: World) -> Iterator[Violation]:
    """Check that READY and USED leads have all subnodes in their state; a USED one can lack those that vanished."""
    if world.restored:
        return  # reap must find out first
    counts = world.pool.sql(
        "SELECT machine.id, machine.name, machine.state, (SELECT count(*) FROM machine AS member "
        "WHERE member.lead_id = machine.id AND member.state = machine.state) FROM machine "
        "JOIN base_image ON base_image.id = base_image_id "
        "WHERE lead_id IS NULL AND machine.state IN ('READY', 'USED') AND subnodes > 0")
    lost = Counter(world.vanished.values())
    for number, name, state, count in counts:
        least = SUBNODES - lost[str(number)] * (state == "USED")
        if not least <= count <= SUBNODES:
            yield Violation("groups", f"{name} is {state} with {count} subnodes", (name,))


def of_groups_at_peace(world: World) -> Iterator[Violation]:
    """Check that each subnode is in the state of its lead."""
    for name, state, lead, lead_state in world.pool.sql(
            "SELECT machine.name, machine.state, lead.name, lead.state FROM machine "
            "LEFT JOIN machine AS lead ON lead.id = machine.lead_id WHERE machine.lead_id IS NOT NULL"):
        if state != lead_state:
            yield Violation("groups", f"{name} is {state}, {lead} to which it belongs {lead_state}", (name, str(lead)))


def of_strangers(world: World) -> Iterator[Violation]:
    """Check that nobody else's things were touched."""
    seen = world.strangers_seen()
    for place, things in world.strangers.items():
        if things != seen[place]:
            yield Violation("strangers", f"{place}: was {things}, is {seen[place]}", ("somebody-elses",))


# --- after peace ---


def of_environments_at_peace(world: World) -> Iterator[Violation]:
    """Check that each environment is FREE or LOCKED, and that no machine waits for one."""
    for name, state in world.pool.sql("SELECT name, state FROM test_environment WHERE state NOT IN ('FREE', 'LOCKED')"):
        yield Violation("environments", f"{name} is still {state}", (name,))
    for (number,) in world.pool.sql("SELECT machine_id FROM environment_waiter"):
        yield Violation("environments", f"machine {number} stands in the line", (f"-{number}",))


def of_machines(world: World, state: State) -> Iterator[Violation]:
    """Check that each machine has its own server, and that none is on its way in or out."""
    for row in state.machines:
        server = state.servers[row["cloud"]].get(row["external_id"])
        if row["state"] not in LIVING:
            yield Violation("rows", f"{row['name']} is still {row['state']}", _words(row))
        elif server is None and not (row["state"] == "HOLD" and row["external_id"] in {None, *world.vanished}):
            yield Violation("rows", f"{row['name']} ({row['state']}) has no server {row['external_id']}", _words(row))
        elif server and server["metadata"].get("devstack-gate-machine") != str(row["id"]):
            yield Violation("rows", f"{row['name']} has the server of another machine", _words(row))
        elif server and row["state"] == "READY" and server["status"] != "ACTIVE":
            yield Violation("rows", f"{row['name']} is READY, its server {server['status']}", _words(row))


def of_snapshots(world: World, state: State) -> Iterator[Violation]:
    """Check that each image type has one or two READY snapshots, and that no row lacks its image."""
    ready = Counter((row["provider"], row["image"]) for row in state.snapshots if row["state"] == "READY")
    for provider in world.providers:
        for name in IMAGES:
            if not 1 <= ready[provider, name] <= SNAPSHOTS_KEPT:
                yield Violation("snapshots", f"{provider} {name}: {ready[provider, name]} are READY", (f"-{name}-",))
    for row in state.snapshots:
        found = state.images[row["cloud"]].get(row["external_id"])
        if row["state"] != "READY":
            yield Violation("snapshots", f"{row['name']} is still {row['state']}", _words(row))
        elif found is None or found["status"] != "active":
            yield Violation("snapshots", f"{row['name']}: its image is {found and found['status']}", _words(row))


def of_pool(world: World, state: State) -> Iterator[Violation]:
    """Check that every pool is full, and not too full."""
    ready = Counter((row["provider"], row["image"]) for row in state.machines
                    if row["state"] == "READY" and row["lead_id"] is None)
    least, most = world.wanted_of_label()
    count = sum(ready[provider, OF_LABEL] for provider in world.providers)
    if not least <= count <= most:
        yield Violation("pool", f"label {OF_LABEL}: {count} of {least} to {most} are READY", ())
    for provider, cloud in world.providers.items():
        for name, wanted in POOL.items():
            if ready[provider, name] != wanted and name != OF_LABEL:
                yield Violation("pool", f"{provider} {name}: {ready[provider, name]} of {wanted} are READY", ())
        if len(state.servers[cloud]) > MAX_SERVERS:
            yield Violation("pool", f"{provider}: {len(state.servers[cloud])} servers, max-servers {MAX_SERVERS}", ())


def of_nodes(world: World, state: State) -> Iterator[Violation]:
    """Check that each READY lead has its node, with its address, label and agent, and that no other is in service."""
    rows = {row["name"]: row for row in state.machines}
    for name, node in state.nodes.items():
        if name in world.strangers["Jenkins"] or name == "master" or not re.search(
                rf"-({'|'.join(world.providers)})-\d+$", name):
            continue
        row = rows.get(name)
        if row is None:
            yield Violation("nodes", f"Jenkins node {name} has no machine", (name,))
        elif in_service(node) and row["state"] != "READY":
            yield Violation("nodes", f"node {name} is in service, its machine {row['state']}", _words(row))
    for row in state.machines:
        node = state.nodes.get(row["name"])
        if row["lead_id"] is not None and node:
            yield Violation("nodes", f"subnode {row['name']} has a node", _words(row))
        if row["state"] != "READY" or row["lead_id"] is not None:
            continue
        if node is None or node["host"] != row["ip"] or node["label"] != f"devstack-{row['image']}":
            yield Violation("nodes", f"READY machine {row['name']} has the node {node}", _words(row))
        elif (node["state"] != "online" or node["temporarilyOffline"]) and row["absent_time"] is None:
            yield Violation("agents", f"{row['name']} is READY without an agent, which nobody has seen", _words(row))
        elif node["state"] != "online" and time.time() - row["absent_time"] > AGENT_SECONDS:
            yield Violation("agents", f"{row['name']} is READY without an agent for long", _words(row))


def of_cloud(world: World, state: State, cloud: str) -> Iterator[Violation]:
    """Check that no server, image, floating IP or port of ours lacks its row or server, and that no keypair is left."""
    truth, uuid = state.truth[cloud], world.uuid
    known = {row["external_id"] for row in state.machines if row["cloud"] == cloud}
    for server in state.servers[cloud].values():
        if server["id"] not in known:
            yield Violation("leak", f"{cloud}: server {server['name']} {server['id']} has no row",
                            (server["id"], server["name"]))
    snapshots = {row["external_id"] for row in state.snapshots}
    for one in state.images[cloud].values():
        if one["id"] not in snapshots:
            yield Violation("leak", f"{cloud}: image {one['name']} {one['id']} has no row", (one["id"], one["name"]))
    for one in truth["keypairs"]:
        if uuid in one["name"]:
            yield Violation("leak", f"{cloud}: keypair {one['name']} is left", (one["name"],))
    servers = {one["id"] for one in truth["servers"]}
    bound = Counter(one["port"] for one in truth["floating_ips"] if uuid in one["description"])
    ports = {one["id"]: one for one in truth["ports"]}
    reserved = {f"machine={row['id']}" for row in state.machines if row["state"] in ("BUILDING", "HOLD")}
    for one in truth["floating_ips"]:
        server = one["description"].rpartition("server=")[2]
        if uuid not in one["description"] or server.rpartition(" ")[2] in reserved:
            continue
        if one["port"] not in ports or server not in known or bound[one["port"]] > 1:
            yield Violation("leak", f"{cloud}: floating IP {one['address']} of server {server} is left",
                            (one["address"], one["id"], server))
    for port in ports.values():
        if port["made_by_nova"] and port["device"] not in servers:
            yield Violation("leak", f"{cloud}: port {port['id']} of {port['device']} is left",
                            (port["id"], port["device"]))


def of_volumes(world: World, state: State, cloud: str) -> Iterator[Violation]:
    """Check that no volume of ours lacks its machine or snapshot, and no snapshot of a volume its image."""
    servers = {row["external_id"] for row in state.machines if row["cloud"] == cloud}
    made = {str(row["id"]) for row in state.snapshots}
    for one in state.truth[cloud]["volumes"]:
        of_snapshot = one["metadata"].get("devstack-gate-snapshot") in made
        if one["metadata"].get("devstack-gate-pool") == world.uuid and one["server"] not in servers and not of_snapshot:
            yield Violation("leak", f"{cloud}: volume {one['name']} {one['id']} ({one['status']}) is left",
                            (one["id"], one["name"]))
    images = {row["external_id"] for row in state.snapshots}
    for one in state.truth[cloud]["volume_snapshots"]:
        if one["image"] not in images:
            yield Violation("leak", f"{cloud}: {one['name']} {one['id']} is left", (one["id"], one["image"]))
