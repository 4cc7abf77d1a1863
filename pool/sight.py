"""What reap sees of a provider: lists of cloud and Jenkins, then second looks at what the lists leave out.

Nothing here records or changes anything.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import gateprocess
import jenkinsnodes
import nodessh
import vmdatabase
from cloud import nova
from gateconfig import SecureConfig
from gateprocess import GateError
from pool import script
from pool.jenkinses import Seen, by_machine
from pool.verdict import Verdict, fetch_slowly
from vmdatabase import BUILDING, READY, Machine, Provider, Result, SnapshotImage

T = TypeVar("T")

CLOCK_SECONDS = 300  # how far this host's clock may be ahead of others
CUT_OFF_SECONDS = 1800  # how long all machines of a provider may be silent at once
DEAD_NODE_SECONDS = 20  # between two looks at a ready machine whose agent is away
CONFIRMED = 10  # servers to ask for one by one if a list shows none at all
GONE = "gone"
UNTOLD = jenkinsnodes.Build(node="", result=None, upstream=(), tells_node=False)  # Jenkins did not answer


@dataclass(frozen=True)
class Suspect:
    """A ready machine whose agent is away, or which has none and does not answer by ssh."""

    lost: bool  # it has been away for longer than Jenkins takes to get it back, or never came
    gone: bool  # Jenkins has given up for the moment, rather than still connecting
    absent: int  # seconds since a run first saw it away


def is_dead(suspect: Suspect, silent: bool, cut_off: bool) -> bool:
    """Return whether a machine whose agent stayed away for another look should be replaced.

    silent: it does not answer by ssh either. cut_off: no ready machine of the provider answers or has its agent; for
    CUT_OFF_SECONDS that is taken for a fault of the network, not of all machines.
    """
    if silent and cut_off and suspect.absent < CUT_OFF_SECONDS:
        return False
    return suspect.lost or (silent and suspect.gone)


@dataclass(frozen=True)
class Sight:
    """What was seen of cloud and Jenkins, before vm.db was read; None if they did not answer."""

    servers: Mapping[str, nova.Server]
    gone: frozenset[str]  # ids of servers for which the cloud, asked one by one, answered 404
    list_is_whole: bool  # False: the list left out servers of ours that the cloud shows when asked for them
    nodes: Mapping[str, jenkinsnodes.Node] | None
    dead_nodes: frozenset[str]  # nodes whose agent never came or stays away
    # Nodes with our mark, by the id in their name.
    nodes_by_id: Mapping[int, jenkinsnodes.Node] = field(default_factory=dict)
    strangers: Sequence[jenkinsnodes.Node] = ()  # nodes with our mark, but under a name that the pool does not give
    listed_at: int = 0  # Unix seconds, before the first list
    images: Sequence[nova.Image] | None = None
    keypairs: Mapping[str, int] = field(default_factory=dict)  # name: snapshot id
    floating_ips: Sequence[nova.FloatingIP] = ()
    volumes: Sequence[nova.Volume] = ()
    silent: frozenset[str] = frozenset()  # names in machines' rows of each Jenkins that did not answer
    misplaced: Sequence[jenkinsnodes.Node] = ()  # nodes in a Jenkins to which their machines no longer belong
    # The ids of existing servers from which somebody removed our marks, each with the key of the first that is missing.
    disowned: Mapping[str, str] = field(default_factory=dict)
    unowned: Sequence[nova.Server] = ()  # those with our UUID that belong to no provider of vm.db
    by_ssh: Mapping[int, bool] = field(default_factory=dict)  # ready machines, if there is no Jenkins: who answered
    dead_machines: frozenset[int] = frozenset()  # those that did not answer and are to be replaced

    @cached_property
    def by_machine(self) -> dict[int | None, nova.Server]:
        """The servers by the row id in their mark."""
        return {server.machine_id: server for server in self.servers.values()}

    def server(self, machine: Machine) -> nova.Server | None:
        """Return the server of a machine; None if none was seen."""
        return self.servers.get(str(machine.external_id)) or (
            None if machine.external_id else self.by_machine.get(machine.id))

    def server_id(self, machine: Machine) -> str | None:
        """Return the id of a machine's server, which may be known only by its mark; None if it has none."""
        marked = None if machine.external_id else self.by_machine.get(machine.id)
        return marked.id if marked else machine.external_id

    def node(self, machine: Machine) -> jenkinsnodes.Node | None:
        """Return the node of a machine, even if vm.db knows of none."""
        return (self.nodes or {}).get(str(machine.jenkins_name or machine.name))

    def knows_node(self, machine: Machine) -> bool:
        """Return whether the node of a machine is in Jenkins, or the machine never had one."""
        return machine.jenkins_name is None or self.node(machine) is not None

    def renamed(self, machine: Machine) -> str:
        """Return the name that a person gave to the server of a machine; empty if it has its own name."""
        server = self.server(machine)
        return server.name if server and machine.name and server.name != machine.name else ""

    def lost_mark(self, machine: Machine) -> str:
        """Return the mark that somebody removed from the server of a machine, which is then theirs; empty if none."""
        return self.disowned.get(str(machine.external_id), "")

    def builds(self, machine: Machine) -> bool:
        """Return whether a build may run on the machine; a node whose Jenkins did not answer counts as building."""
        if self.is_untold(machine):
            return machine.jenkins_name is not None
        node = (self.nodes or {}).get(str(machine.jenkins_name))
        return node is not None and not node.idle

    def is_untold(self, machine: Machine) -> bool:
        """Return whether the Jenkins of a machine did not answer."""
        return self.nodes is None or machine.jenkins in self.silent

    @property
    def is_whole(self) -> bool:
        """Whether every Jenkins has answered."""
        return self.nodes is not None and not self.silent

    def spent(self, machine: Machine) -> bool:
        """Return whether our scripts began to take its node out of service, so that no build can start there."""
        node = (self.nodes or {}).get(str(machine.jenkins_name))
        return node is not None and node.spent

    def is_unused(self, machine: Machine) -> bool:
        """Return whether its node shows that nobody has taken a machine: it is idle, and a build could start there."""
        node = None if self.is_untold(machine) else self.node(machine)
        return node is not None and node.idle and not node.temporarily_offline and not node.spent

    def relabelled(self, machine: Machine, image: str) -> str:
        """Return the labels of a node if a person changed them so that no build of its image type can come.

        Otherwise return an empty text.
        """
        node = self.node(machine)
        if node is None or not machine.name or node.serves(str(machine.name), image):
            return ""
        return node.told_labels

    def server_death(self, machine: Machine) -> str | None:
        """Return in words how the server of a machine died; None if it lives."""
        server = self.servers.get(str(machine.external_id))
        if machine.external_id in self.gone:
            return "the server is gone"
        if server and server.status in nova.DEAD_STATUSES:
            return f"the server is {server.status} {server.fault}".strip()
        return None

    def death(self, machine: Machine) -> str | None:
        """Return in words what a machine died of; None if it lives."""
        if why := self.server_death(machine):
            return why
        if machine.id in self.dead_machines:
            return "it does not answer by ssh"
        node = self.node(machine)
        why = f" ({node.loss(machine.online_time is not None)})" if node else ""
        return f"its Jenkins node died{why}" if machine.jenkins_name in self.dead_nodes else None


# --- looking ----------------------------------------------------------------------------------------------------------


class Look:
    """The looks of one run; calls to the outside run in workers. What cannot be seen is reported to trouble."""

    def __init__(self, provider: Provider, config: SecureConfig, trouble: Callable[[object], None]) -> None:
        self.provider = provider
        self.config = config
        self.trouble = trouble
        self.log = gateprocess.get_log(provider=provider.name)
        self.jenkinses = script.jenkinses_of(config)
        self.cloud = script.cloud_of(provider)
        self.workers = gateprocess.Workers(provider.max_concurrency)
        self.builds: dict[int, jenkinsnodes.Build | None] = {}  # Jenkins' answers, by machine; see ask_for
        self.verdicts: dict[int, Verdict] = {}  # of those that have ended
        self.is_timely = True  # our clock is not far behind the cloud's and Jenkins'
        self.clock_ahead = 0.0  # seconds that our clock is ahead of both

    def now(self) -> float:
        """Return the time from which ages are counted, in Unix seconds."""
        return vmdatabase.clock() - self.clock_ahead

    # --- the first look: lists ---

    def lists(self) -> Sight:
        """List what cloud and Jenkins have, before vm.db is read, so that what is launched meanwhile is not a leak."""
        listed_at = vmdatabase.now()
        images = self.answer(self.cloud.list_snapshots)
        keypairs = self.answer(self.cloud.list_keypairs) or {}
        floating_ips = self.answer(self.cloud.network.list_ours) or []
        volumes = self.see_volumes()
        of_pool = self.cloud.list_pool()
        servers = {server.id: server for server in of_pool if self.cloud.is_own(server)}
        seen = self.see_nodes()
        self.see_clock()
        place = self.cloud.place
        owners = vmdatabase.provider_names_at(*place)
        tells = min([self.provider.name, *vmdatabase.provider_names_at(*place, known=True)]) == self.provider.name
        unowned = [server for server in of_pool if tells and server.id not in servers
                   and server.metadata.get(nova.PROVIDER_KEY) not in owners]
        sight = Sight(servers, frozenset(), True, None, frozenset(), listed_at=listed_at, images=images,
                      keypairs=keypairs, floating_ips=floating_ips, volumes=volumes, unowned=unowned)
        if seen is None:
            return sight
        own, strangers = self.jenkinses.marked(seen.nodes) if self.jenkinses else ([], [])
        return replace(sight, nodes=seen.nodes, nodes_by_id=by_machine([*strangers, *own]),
                       strangers=tuple(strangers), silent=self.names_of(seen.silent), misplaced=seen.misplaced)

    def answer(self, call: Callable[[], T]) -> T | None:
        """Return the result of a call; if it fails, report that and return None: the run can do without it."""
        try:
            return call()
        except GateError as err:
            self.trouble(err)
            return None

    def see_volumes(self) -> list[nova.Volume]:
        """Return our volumes; if no image type boots from one, a failing list is no trouble."""
        if any(image.boot_from_volume for image in vmdatabase.images_of(self.provider)):
            return self.answer(self.cloud.list_volumes) or []
        try:
            return self.cloud.list_volumes()
        except GateError as err:
            self.log.info("%s; no image type boots from a volume now", err)
            return []

    def see_nodes(self) -> Seen | None:
        """Return the nodes; None if no Jenkins answers: then machines that may have a node are left alone."""
        if self.jenkinses is None:
            return self.without_jenkins()
        try:
            seen = self.jenkinses.look()
        except GateError as err:
            self.trouble(f"{err}; machines that may have a node are left alone")
            return None
        for name, why in seen.silent.items():
            self.trouble(f"{why}; machines of [jenkins {name}] that may have a node are left alone")
        return seen

    def without_jenkins(self) -> Seen | None:
        """Return no nodes; None if machines have some: then a section was lost, and builds may still run."""
        if why := script.lost_section(self.config, self.provider):
            self.trouble(f"{why}, where builds may run; they are left alone until the section is there again")
            return None
        return Seen({}, {}, [])

    def names_of(self, silent: Collection[str]) -> frozenset[str]:
        """Return the names in machines' rows that lead to these Jenkins."""
        owners = {name: self.jenkinses.owner(name) for name in ("", *silent)} if self.jenkinses else {}
        return frozenset(name for name, owner in owners.items() if owner and owner.name in silent)

    def see_clock(self) -> None:
        """Compare our clock with the cloud's and Jenkins', so that one that has jumped ahead ends no hold."""
        ours = vmdatabase.clock() - time.time()  # the database's clock may be ahead of this host's
        told = {"the cloud's": self.cloud.clock_ahead,
                "Jenkins'": self.jenkinses.clock_ahead() if self.jenkinses else None}
        known = {whose: seconds for whose, seconds in told.items() if seconds is not None}
        ahead = min(known.values(), default=0.0) + ours
        self.is_timely = ahead > -CLOCK_SECONDS
        if not self.is_timely:
            self.log.warning("the clock of %s is %.0f min behind %s; what is due ends later", vmdatabase.whose_clock(),
                             -ahead / 60, " and ".join(known))
        if ahead > CLOCK_SECONDS:
            self.clock_ahead = ahead
            self.trouble(f"the clock of {vmdatabase.whose_clock()} is {ahead / 60:.0f} min ahead of "
                         f"{' and '.join(known)}; ages are counted without that")

    # --- the second look: one by one ---

    def closely(self, lists: Sight, machines: Sequence[Machine]) -> Sight:
        """Look again at machines whose server is not in the list, and at ready ones whose agent is away."""
        servers = lists.servers
        suspects = [str(machine.external_id) for machine in machines
                    if machine.external_id and machine.external_id not in servers
                    and machine.state_time < lists.listed_at and (machine.state != BUILDING or not servers)]
        tasks = {server_id: self.workers.submit(self.look_at, server_id) for server_id in suspects}
        found = {server_id: task.result() for server_id, task in tasks.items()}
        shown = {server_id: server for server_id, server in found.items() if isinstance(server, nova.Server)}
        hidden = {server_id: server for server_id, server in shown.items() if self.cloud.is_own(server)}
        disowned = {server_id: self.cloud.changed_mark(server.metadata) for server_id, server in shown.items()
                    if server_id not in hidden}
        for server_id, mark in sorted(disowned.items()):
            self.log.warning("server %s %s does not carry our %s any more, so it is left to whoever took that away",
                             shown[server_id].name, server_id, mark)
        if hidden:
            self.trouble(f"the list of servers left out {len(hidden)} that are there; nothing is concluded from it")
        ready = [machine for machine in machines if machine.state == READY]
        sight = replace(
            lists, servers={**servers, **hidden},
            gone=frozenset(server_id for server_id, answer in found.items() if answer == GONE),
            list_is_whole=all(answer == GONE or server_id in disowned for server_id, answer in found.items()),
            disowned=disowned,
            dead_nodes=self.see_dead_nodes(ready, lists.nodes))
        if self.jenkinses or lists.nodes is None:
            return sight
        return self.with_dead_machines(sight, [
            one for one in ready if one.lead_id is None and sight.server(one) and not sight.server_death(one)])

    def look_at(self, server_id: str) -> nova.Server | str | None:
        """Run in a worker: return the server, GONE for a 404, None if the cloud does not answer."""
        try:
            return self.cloud.get_server(server_id)
        except nova.GoneError:
            return GONE
        except GateError as err:
            self.trouble(err)
            return None

    def shows(self, server_id: str) -> bool:
        """Return whether the cloud shows a server, in any state, or does not answer."""
        found = self.answer(lambda: self.cloud.shows(server_id))
        return found is not False

    def own_server(self, server_id: str) -> nova.Server | None:
        """Return a server if the cloud, asked for it, shows it with our marks."""
        try:
            server = self.cloud.get_server(server_id)
        except nova.GoneError:
            return None
        return server if self.cloud.is_own(server) else None

    def has_own(self, server_id: str) -> bool:
        """Return whether the cloud, asked for a server, shows it with our marks."""
        return self.own_server(server_id) is not None

    def see_dead_nodes(
        self, machines: Sequence[Machine], nodes: Mapping[str, jenkinsnodes.Node] | None
    ) -> frozenset[str]:
        """Return the nodes of ready machines whose agent is lost, after a second look and logins by ssh."""
        if nodes is None:
            return frozenset()
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
        dead |= {name for name in away if is_dead(suspects[name], name in silent, cut_off)}
        if waiting := sorted((away | suspects.keys() - set(doubted)) - dead):
            self.log.warning("the agents of %s are disconnected; waiting for Jenkins to reconnect them%s",
                             gateprocess.some(waiting), ", and for the network, since none answers by ssh" * cut_off)
        return frozenset(dead)

    def suspect(self, machine: Machine, node: jenkinsnodes.Node) -> Suspect:
        """Return the facts about a ready machine whose agent may be lost."""
        absent = self.absent(machine)
        state = node.prospect(int(self.now()) - machine.state_time, machine.online_time is not None, absent)
        return Suspect(state == jenkinsnodes.LOST, node.agent == jenkinsnodes.GONE, absent)

    def absent(self, machine: Machine) -> int:
        """Return for how many seconds runs have seen a machine away."""
        return int(self.now()) - machine.absent_time if machine.absent_time else 0

    def with_dead_machines(self, sight: Sight, machines: Sequence[Machine]) -> Sight:
        """Return a sight with the ready machines that do not answer by ssh, where there is no Jenkins to watch them."""
        named = {str(machine.name): machine for machine in machines}
        silent = self.silent_ones(named, named)
        if silent:
            time.sleep(DEAD_NODE_SECONDS)
            silent = self.silent_ones(named, silent)
        cut_off = len(silent) > 1 and len(silent) == len(named)
        dead = {name for name in silent if is_dead(Suspect(False, True, self.absent(named[name])), True, cut_off)}
        if waiting := sorted(silent - dead):
            self.log.warning("none of the ready machines answers by ssh; waiting for the network: %s",
                             gateprocess.some(waiting))
        return replace(sight, by_ssh={machine.id: name not in silent for name, machine in named.items()},
                       dead_machines=frozenset(named[name].id for name in dead))

    def silent_ones(self, machines: Mapping[str, Machine], names: Iterable[str]) -> set[str]:
        """Return which machines do not answer by ssh."""
        port, node = self.provider.ssh_port, self.config.node
        tasks = {name: self.workers.submit(nodessh.answers, nodessh.Login(
            str(machines[name].ip), port, str(machines[name].user), node.ssh_key, machines[name].host_key),
            self.provider.boot_timeout)
            for name in names}
        return {name for name, task in tasks.items() if not task.result()}

    def stay_away(self, names: Sequence[str]) -> set[str]:
        """Look at nodes for DEAD_NODE_SECONDS; return those whose agents stayed away."""
        away = set(names)
        deadline = time.monotonic() + DEAD_NODE_SECONDS
        while away and time.monotonic() < deadline:
            time.sleep(2)
            seen = self.see_nodes()
            if seen is None:
                return set()
            away = {name for name in away if (node := seen.nodes.get(name)) and node.idle
                    and node.agent != jenkinsnodes.HERE}
        return away

    def images_gone(self, snapshots: Iterable[SnapshotImage]) -> set[str]:
        """Return the ids of snapshots' images that the cloud, asked one by one, no longer has."""
        tasks = [(row, self.workers.submit(self.image_is_gone, str(row.external_id))) for row in snapshots]
        gone = [row for row, task in tasks if self.answer(task.result)]
        for row in gone:
            self.log.warning("snapshot %s: its image is gone", row.name)
        return {str(row.external_id) for row in gone}

    def image_is_gone(self, image_id: str) -> bool:
        """Return whether the cloud shows that an image is gone."""
        try:
            return self.cloud.image_status(image_id) in ("deleted", "pending_delete")
        except nova.GoneError:
            return True

    # --- builds, and servers being deleted ---

    def ask_for(self, rows: Mapping[int, Result]) -> None:
        """Ask Jenkins for builds, {row id of the machine: row of its build}, each once in a run; fill self.builds.

        There a build that Jenkins does not know is None, and one for which it did not answer is UNTOLD. Verdicts of
        ended builds go into self.verdicts. Without Jenkins this does nothing.
        """
        if self.jenkinses is None:
            return
        owners = {number: self.jenkinses.owner(name) for number, name in vmdatabase.jenkins_of(rows).items()}
        of_machines = {number: nodes for number, nodes in owners.items() if nodes}
        tasks = {number: self.workers.submit(of_machines[number].build, row.jenkins_job_name, row.jenkins_build_number)
                 for number, row in rows.items() if number not in self.builds and number in of_machines}
        for number, task in tasks.items():
            try:
                self.builds[number] = task.result()
            except GateError as err:
                self.trouble(err)
                self.builds[number] = UNTOLD
        self.builds.update(dict.fromkeys(rows.keys() - of_machines.keys(), UNTOLD))
        verdicts = {number: self.workers.submit(fetch_slowly, of_machines[number], row.jenkins_job_name,
                                                row.jenkins_build_number)
                    for number, row in rows.items() if number in tasks and (build := self.builds[number])
                    and build.result}
        self.verdicts.update({number: task.result() for number, task in verdicts.items()})

    def seen_gone(self, server_ids: Sequence[str]) -> list[str]:
        """Return which of these servers another list shows to be gone.

        An empty list is believed only if the last few servers, asked for one by one, are gone, too.
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
