"""All Jenkins that the pool serves, one for each section of the secure configuration. A machine belongs to one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple

import gateconfig
import vmdatabase
from gateconfig import SecureConfig
from gateprocess import GateError, Workers, get_log
from jenkinsnodes import Locks, Node, Nodes
from vmdatabase import BUILDING, READY, Machine

# The name of a machine, whatever prefix, image types and providers there were when it was made.
MACHINE_NAME = re.compile("[A-Za-z0-9-]*devstack-[A-Za-z0-9._-]+-[A-Za-z0-9._-]+-([0-9]{1,15})")


Listing = Mapping[str, "Future[dict[str, Node]]"]  # of nodes; by the name of the Jenkins


class Seen(NamedTuple):
    """The nodes of all Jenkins, without those of other pools."""

    nodes: Mapping[str, Node]  # by name
    silent: Mapping[str, GateError]  # why a Jenkins did not answer, by name
    misplaced: Sequence[Node]  # of machines that now belong to another Jenkins


class Jenkinses:
    """One Nodes for each section [jenkins] or [jenkins NAME]."""

    def __init__(self, config: SecureConfig, locks: Path | Locks, pool: str) -> None:
        """Take the settings, a folder for lock files or a function that gives locks, and the pool's UUID."""
        self._config = config
        self._locks = locks
        self._pool = pool
        self._nodes: dict[str, Nodes] = {}

    def __iter__(self) -> Iterator[Nodes]:
        """Iterate over each Nodes, in the order of the sections."""
        return iter([self.named(jenkins.name) for jenkins in self._config.jenkinses])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._config.jenkinses)

    def named(self, name: str) -> Nodes:
        """Return the Nodes of a section; raises KeyError if there is no section of that name."""
        if name not in self._nodes:
            config = next((one for one in self._config.jenkinses if one.name == name), None)
            if config is None:
                raise KeyError(name)
            self._nodes[name] = Nodes(config, self._locks, self._pool)
        return self._nodes[name]

    def of(self, machine: Machine) -> Nodes | None:
        """Return the Nodes of a machine's Jenkins; None if its section left the secure configuration."""
        return self.owner(str(machine.jenkins))

    def find(self, machine: Machine) -> Nodes | None:
        """Return the Nodes of a machine's Jenkins; if its section is gone or renamed, of the one with its node, if any.

        Only in that case is any Jenkins asked, and the result recorded. If one does not answer, the others are asked.
        """
        own = self.of(machine)
        if own or not machine.jenkins_name:
            return own
        for nodes in self:
            try:
                node = nodes.look(str(machine.jenkins_name))
            except GateError as err:
                get_log(node=machine.name).warning("%s", err)
                continue
            if node and nodes.is_marked(node):
                self.settle(machine, node)
                return nodes
        return None

    def settle(self, machine: Machine, node: Node | None) -> None:
        """Assign a machine whose section is gone or was renamed to the Jenkins that has its node."""
        if node and self.of(machine) is None and self.named(node.jenkins).is_marked(node):
            get_log(node=machine.name).info("belongs to [jenkins %s] now, which has its node; there is no section "
                                            "[jenkins %s] any more", node.jenkins, machine.jenkins)
            vmdatabase.give_to_jenkins(machine, node.jenkins)

    def learn(self, machine: Machine, node: Node | None) -> None:
        """Record the node of a machine that is out of the pool and that, by a restored vm.db, has none."""
        if node and machine.jenkins_name is None and machine.state not in (BUILDING, READY) \
                and self.named(node.jenkins).is_marked(node):
            vmdatabase.set_columns(machine, jenkins_name=node.name)

    def owner(self, name: str) -> Nodes | None:
        """Return the Nodes of the Jenkins to which vm.db's name leads; None if there is no such section any more."""
        config = self._config.jenkins_named(name)
        return self.named(config.name) if config else None

    def at(self, url: str) -> Nodes | None:
        """Return the Nodes of the Jenkins with that URL, as in a build's JENKINS_URL; a single one whatever the URL."""
        found = [nodes for nodes in self if gateconfig.is_same_url(nodes.config.server, url)]
        found = found or list(self) * (len(self) == 1)
        return found[0] if found else None

    def begin_look(self, workers: Workers) -> Listing:
        """Have workers make the calls for a look, one to each Jenkins; the result is for look()."""
        return {nodes.name: workers.submit(nodes.all_but_others) for nodes in self}

    def look(self, listing: Listing | None = None) -> Seen:
        """Return all nodes, with one call to each Jenkins, which begin_look() may have begun.

        Raises JenkinsError or JenkinsConfigError if none of them answers.
        """
        owners = vmdatabase.owners_of_nodes() if len(self) > 1 else {}  # a single one has no nodes of others
        found: dict[str, Node] = {}
        silent: dict[str, GateError] = {}
        misplaced = []
        for nodes in self:
            try:
                listed = listing[nodes.name].result() if listing else nodes.all_but_others()
            except GateError as err:
                silent[nodes.name] = err
                continue
            for name, node in listed.items():
                owner = self.owner(owners[name]) if name in owners else None
                if owner is None or owner is nodes:
                    found[name] = node
                elif nodes.is_marked(node):
                    misplaced.append(node)
        if len(silent) == len(self):
            raise next(iter(silent.values()))
        return Seen(found, silent, misplaced)

    def marked(self, nodes: Mapping[str, Node]) -> tuple[list[Node], list[Node]]:
        """Return the nodes that carry this pool's mark: those with a name that the pool gives or gave, and all others.

        The mark is in a node's description, which also a copy has that a person makes in Jenkins. Names of image types
        and providers that are no longer in the providers file are known from the history.
        """
        given = {f"{gateconfig.name_prefix()}devstack-{image}-{provider}"
                 for image, provider in vmdatabase.image_types()}
        marked = [node for node in nodes.values() if next(iter(self)).is_marked(node)]
        doubted = [node for node in marked
                   if not MACHINE_NAME.fullmatch(node.name) or node.name.rpartition("-")[0] not in given]
        others = {node.name for node in doubted} - vmdatabase.names_in_history([node.name for node in doubted])
        return [node for node in marked if node.name not in others], [
            node for node in doubted if node.name in others]

    def clock_ahead(self) -> float | None:
        """Return how many seconds our clock is ahead of theirs, at least; None if no Jenkins has sent its time."""
        told = [nodes.clock_ahead for nodes in self._nodes.values() if nodes.clock_ahead is not None]
        return min(told, default=None)


def by_machine(nodes: Iterable[Node]) -> dict[int, Node]:
    """Return the nodes with names of machines, keyed by the machine id at their ends."""
    return {int(match[1]): node for node in nodes if (match := MACHINE_NAME.fullmatch(node.name))}


class Part(NamedTuple):
    """What a Jenkins has of an image type."""

    name: str
    waiting: int  # builds
    coming: int  # machines on their way
    ready: int


def next_one(parts: Sequence[Part]) -> str:
    """Return which Jenkins gets the next machine.

    It is the one with the most waiting builds for which no machine is on its way; among equals the one with the fewest
    machines; then the first.
    """
    return max(parts, key=lambda part: (max(0, part.waiting - part.coming), -part.ready - part.coming)).name


def parts_of(names: Sequence[str], waiting: Mapping[str, int], counts: Counter[tuple[str, str]]) -> list[Part]:
    """Return the part of each Jenkins; counts has machines by (Jenkins, state)."""
    return [Part(name, waiting.get(name, 0), counts[name, BUILDING], counts[name, READY]) for name in names]
