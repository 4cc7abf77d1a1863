"""What reap sees of a provider: lists of cloud and Jenkins, then second looks at what they leave out.

Nothing here is written down or changed.
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
from pool.jenkinses import Seen
from pool.verdict import Verdict, fetch_slowly
from vmdatabase import BUILDING, READY, Machine, Provider, Result, SnapshotImage

T = TypeVar("T")

CLOCK_SECONDS = 300  # how far this host's clock may be ahead of others
CUT_OFF_SECONDS = 1800  # how long all machines of a provider may be silent at once
DEAD_NODE_SECONDS = 20  # between two looks at a ready machine whose agent is away
CONFIRMED = 10  # servers that are asked for one by one when a list shows none at all
GONE = "gone"
UNTOLD = jenkinsnodes.Build(node="", result=None, upstream=(), tells_node=False)  # Jenkins did not answer


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
    """What was seen of cloud and Jenkins, before vm.db was read; None where they did not tell."""

    servers: Mapping[str, nova.Server]
    gone: frozenset[str]  # ids of servers for which the cloud, asked one by one, answered 404
    list_is_whole: bool  # False: the list left out servers of ours that the cloud shows when asked for them
    nodes: Mapping[str, jenkinsnodes.Node] | None
    dead_nodes: frozenset[str]  # nodes whose agent never came or stays away
    nodes_by_id: Mapping[int, jenkinsnodes.Node] = field(default_factory=dict)  # those of ours, by the id in their name
    listed_at: int = 0  # Unix seconds, before the first list
    images: Sequence[nova.Image] | None = None
    keypairs: Mapping[str, int] = field(default_factory=dict)  # name: snapshot id
    floating_ips: Sequence[nova.FloatingIP] = ()
    volumes: Sequence[nova.Volume] = ()
    silent: frozenset[str] = frozenset()  # names that machines bear of each Jenkins that does not tell
    misplaced: Sequence[jenkinsnodes.Node] = ()  # nodes in a Jenkins that their machines do not belong to any more
    disowned: frozenset[str] = frozenset()  # ids of servers that are there, but from which somebody took our marks

    @cached_property
    def by_machine(self) -> dict[int | None, nova.Server]:
        """The servers by the row id of their mark."""
        return {server.machine_id: server for server in self.servers.values()}

    def server(self, machine: Machine) -> nova.Server | None:
        """Return the server of a machine."""
        return self.servers.get(str(machine.external_id)) or (
            None if machine.external_id else self.by_machine.get(machine.id))

    def server_id(self, machine: Machine) -> str | None:
        """Return the id of the server of a machine, also of one that is known by its mark alone; None: it has none."""
        marked = None if machine.external_id else self.by_machine.get(machine.id)
        return marked.id if marked else machine.external_id

    def node(self, machine: Machine) -> jenkinsnodes.Node | None:
        """Return the node of a machine, also of one that was never in Jenkins as far as vm.db knows."""
        return (self.nodes or {}).get(str(machine.jenkins_name or machine.name))

    def knows_node(self, machine: Machine) -> bool:
        """Whether the node of a machine is in Jenkins, or the machine never had one."""
        return machine.jenkins_name is None or self.node(machine) is not None

    def renamed(self, machine: Machine) -> str:
        """Return the name that a person gave to the server of a machine, empty if it has its own."""
        server = self.server(machine)
        return server.name if server and machine.name and server.name != machine.name else ""

    def is_disowned(self, machine: Machine) -> bool:
        """Whether somebody took our marks from the server of a machine, which is theirs then."""
        return machine.external_id in self.disowned

    def builds(self, machine: Machine) -> bool:
        """Whether a build may be running on the machine; a node that nobody could ask about counts as building."""
        if self.is_untold(machine):
            return machine.jenkins_name is not None
        node = (self.nodes or {}).get(str(machine.jenkins_name))
        return node is not None and not node.idle

    def is_untold(self, machine: Machine) -> bool:
        """Whether the Jenkins of a machine does not tell what it has."""
        return self.nodes is None or machine.jenkins in self.silent

    @property
    def is_whole(self) -> bool:
        """Whether every Jenkins has told what it has."""
        return self.nodes is not None and not self.silent

    def spent(self, machine: Machine) -> bool:
        """Whether no build can start on its node any more: our scripts began to take it out of service."""
        node = (self.nodes or {}).get(str(machine.jenkins_name))
        return node is not None and node.spent

    def is_unused(self, machine: Machine) -> bool:
        """Whether its node shows that nobody has taken a machine: it is idle, and a build could start there."""
        node = None if self.is_untold(machine) else self.node(machine)
        return node is not None and node.idle and not node.temporarily_offline and not node.spent

    def relabelled(self, machine: Machine, image: str) -> str:
        """Return the labels that a person gave to the node of a machine, by which no build of its image type comes.

        Empty if it has its own.
        """
        node = self.node(machine)
        if node is None or not machine.name or node.serves(str(machine.name), image):
            return ""
        return node.told_labels

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


# --- looking ----------------------------------------------------------------------------------------------------------


class Look:
    """The looks of one run; calls to the outside run in workers. What cannot be seen is told to trouble."""

    def __init__(self, provider: Provider, config: SecureConfig, trouble: Callable[[object], None]) -> None:
        self.provider = provider
        self.config = config
        self.trouble = trouble
        self.log = gateprocess.get_log(provider=provider.name)
        self.jenkinses = script.jenkinses_of(config)
        self.cloud = script.cloud_of(provider)
        self.workers = gateprocess.Workers(provider.max_concurrency)
        self.builds: dict[int, jenkinsnodes.Build | None] = {}  # what Jenkins was asked for, by machine; see ask_for
        self.verdicts: dict[int, Verdict] = {}  # of those of them that have ended
        self.is_timely = True  # whether the clock is not far behind theirs
        self.clock_ahead = 0.0  # seconds that the clock is ahead of the cloud's and of Jenkins'

    def now(self) -> float:
        """Return the time by which ages are counted, in Unix seconds."""
        return vmdatabase.clock() - self.clock_ahead

    # --- the first look: lists ---

    def lists(self) -> Sight:
        """List what cloud and Jenkins have, before vm.db is read: what is launched meanwhile is no leak."""
        listed_at = vmdatabase.now()
        images = self.answer(self.cloud.list_snapshots)
        keypairs = self.answer(self.cloud.list_keypairs) or {}
        floating_ips = self.answer(self.cloud.network.list_ours) or []
        volumes = self.see_volumes()
        servers = {server.id: server for server in self.cloud.list_servers()}
        seen = self.see_nodes()
        self.see_clock()
        sight = Sight(servers, frozenset(), True, None, frozenset(), {}, listed_at, images, keypairs, floating_ips,
                      volumes)
        if seen is None:
            return sight
        by_id = self.jenkinses.by_machine(seen.nodes) if self.jenkinses else {}
        return replace(sight, nodes=seen.nodes, nodes_by_id=by_id, silent=self.names_of(seen.silent),
                       misplaced=seen.misplaced)

    def answer(self, call: Callable[[], T]) -> T | None:
        """Return what a call returns, or None, reported, if it fails; the rest of the run can do without it."""
        try:
            return call()
        except GateError as err:
            self.trouble(err)
            return None

    def see_volumes(self) -> list[nova.Volume]:
        """Return the volumes of ours; if no image type boots from one, silence of the cloud is no trouble."""
        if any(image.boot_from_volume for image in vmdatabase.images_of(self.provider)):
            return self.answer(self.cloud.list_volumes) or []
        try:
            return self.cloud.list_volumes()
        except GateError as err:
            self.log.info("%s; no image type boots from a volume now", err)
            return []

    def see_nodes(self) -> Seen | None:
        """Return the nodes, or None if no Jenkins tells: then machines that may have a node are left alone."""
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
        """Return no nodes, or None if machines have some: then a section was lost, and builds may go on."""
        if why := script.lost_section(self.config, self.provider):
            self.trouble(f"{why}, where builds may run; they are left alone until the section is there again")
            return None
        return Seen({}, {}, [])

    def names_of(self, silent: Collection[str]) -> frozenset[str]:
        """Return the names that machines bear of these."""
        owners = {name: self.jenkinses.owner(name) for name in ("", *silent)} if self.jenkinses else {}
        return frozenset(name for name, owner in owners.items() if owner and owner.name in silent)

    def see_clock(self) -> None:
        """Compare the clock with the cloud's and Jenkins': one that has jumped ahead ends no hold."""
        ours = vmdatabase.clock() - time.time()  # that of the database, which may be ahead of this host's
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
        """Look again at machines whose server is in no list, and at ready ones whose agent is away."""
        servers = lists.servers
        suspects = [str(machine.external_id) for machine in machines
                    if machine.external_id and machine.external_id not in servers
                    and machine.state_time < lists.listed_at and (machine.state != BUILDING or not servers)]
        tasks = {server_id: self.workers.submit(self.look_at, server_id) for server_id in suspects}
        found = {server_id: task.result() for server_id, task in tasks.items()}
        shown = {server_id: server for server_id, server in found.items() if isinstance(server, nova.Server)}
        hidden = {server_id: server for server_id, server in shown.items() if self.cloud.is_own(server)}
        disowned = frozenset(shown.keys() - hidden.keys())
        for server_id in sorted(disowned):
            self.log.warning("server %s %s does not carry our %s any more, so it is left to whoever took that away",
                             shown[server_id].name, server_id, nova.POOL_KEY)
        if hidden:
            self.trouble(f"the list of servers left out {len(hidden)} that are there; nothing is concluded from it")
        ready = [machine for machine in machines if machine.state == READY]
        return replace(
            lists, servers={**servers, **hidden},
            gone=frozenset(server_id for server_id, answer in found.items() if answer == GONE),
            list_is_whole=all(answer == GONE or server_id in disowned for server_id, answer in found.items()),
            disowned=disowned,
            dead_nodes=self.see_dead_nodes(ready, lists.nodes))

    def look_at(self, server_id: str) -> nova.Server | str | None:
        """Run in a worker: return the server, GONE for a 404, None when the cloud does not tell."""
        try:
            return self.cloud.get_server(server_id)
        except nova.GoneError:
            return GONE
        except GateError as err:
            self.trouble(err)
            return None

    def shows(self, server_id: str) -> bool:
        """Return whether the cloud shows a server, in whatever state, or does not tell."""
        found = self.answer(lambda: self.cloud.shows(server_id))
        return found is not False

    def has_own(self, server_id: str) -> bool:
        """Return whether the cloud has a server that carries our marks, as a look at it shows."""
        try:
            return self.cloud.is_own(self.cloud.get_server(server_id))
        except nova.GoneError:
            return False

    def see_dead_nodes(
        self, machines: Sequence[Machine], nodes: Mapping[str, jenkinsnodes.Node] | None
    ) -> frozenset[str]:
        """Return the nodes of ready machines whose agent is lost, after a second look and logins of our own."""
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
            away = {name for name in away if (node := seen.nodes.get(name)) and node.idle
                    and node.agent != jenkinsnodes.HERE}
        return away

    def images_gone(self, snapshots: Iterable[SnapshotImage]) -> set[str]:
        """Return the ids of the images of snapshots that the cloud, asked one by one, has no more."""
        tasks = [(row, self.workers.submit(self.image_is_gone, str(row.external_id))) for row in snapshots]
        gone = [row for row, task in tasks if self.answer(task.result)]
        for row in gone:
            self.log.warning("snapshot %s: its image is gone", row.name)
        return {str(row.external_id) for row in gone}

    def image_is_gone(self, image_id: str) -> bool:
        """Return whether a look shows an image gone."""
        try:
            return self.cloud.image_status(image_id) in ("deleted", "pending_delete")
        except nova.GoneError:
            return True

    # --- builds, and servers that are to go ---

    def ask_for(self, rows: Mapping[int, Result]) -> None:
        """Ask Jenkins for builds, {row id of the machine: row of its build}, each once in a run; fills self.builds.

        A build that Jenkins does not know is None there, UNTOLD one for which it did not answer. A pool without Jenkins
        has none to ask.
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
