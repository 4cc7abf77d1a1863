"""Every Jenkins that the pool serves, by the sections of the secure configuration. Each machine belongs to one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import gateconfig
import vmdatabase
from gateconfig import SecureConfig
from gateprocess import GateError, get_log
from jenkinsnodes import Locks, Node, Nodes
from vmdatabase import BUILDING, READY, Machine


class Seen(NamedTuple):
    """The nodes that are somewhere, without those of other pools."""

    nodes: Mapping[str, Node]  # by name
    silent: Mapping[str, GateError]  # why a Jenkins does not tell, by its name
    misplaced: Sequence[Node]  # of machines that belong to another Jenkins by now


class Jenkinses:
    """One Nodes for each section [jenkins] or [jenkins NAME]."""

    def __init__(self, config: SecureConfig, locks: Path | Locks, pool: str) -> None:
        """Take the settings, a folder for lock files or who gives locks, and the pool's UUID; nothing is asked yet."""
        self._config = config
        self._locks = locks
        self._pool = pool
        self._nodes: dict[str, Nodes] = {}

    def __iter__(self) -> Iterator[Nodes]:
        """Return each, in the order of the sections."""
        return iter([self.named(jenkins.name) for jenkins in self._config.jenkinses])

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._config.jenkinses)

    def named(self, name: str) -> Nodes:
        """Return that of a section; KeyError if there is none of that name."""
        if name not in self._nodes:
            config = next((one for one in self._config.jenkinses if one.name == name), None)
            if config is None:
                raise KeyError(name)
            self._nodes[name] = Nodes(config, self._locks, self._pool)
        return self._nodes[name]

    def of(self, machine: Machine) -> Nodes | None:
        """Return that which a machine belongs to, None if its section was taken out of the secure configuration."""
        return self.owner(str(machine.jenkins))

    def find(self, machine: Machine) -> Nodes | None:
        """Return that which a machine belongs to; if its section is gone or renamed, the one that has its node, if any.

        What was found so is written down. Jenkins is asked only then; if one does not answer, the others are.
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
        """Have a machine whose section is gone or was renamed belong to the Jenkins that has its node."""
        if node and self.of(machine) is None and self.named(node.jenkins).is_marked(node):
            get_log(node=machine.name).info("belongs to [jenkins %s] now, which has its node; there is no section "
                                            "[jenkins %s] any more", node.jenkins, machine.jenkins)
            vmdatabase.give_to_jenkins(machine, node.jenkins)

    def learn(self, machine: Machine, node: Node | None) -> None:
        """Write down the node of a machine that is out of the pool and, as far as a restored vm.db knows, has none."""
        if node and machine.jenkins_name is None and machine.state not in (BUILDING, READY) \
                and self.named(node.jenkins).is_marked(node):
            vmdatabase.set_columns(machine, jenkins_name=node.name)

    def owner(self, name: str) -> Nodes | None:
        """Return that which machines belong to that bear a name in vm.db, None if it is there no more."""
        config = self._config.jenkins_named(name)
        return self.named(config.name) if config else None

    def at(self, url: str) -> Nodes | None:
        """Return that which calls itself so, as in a build's JENKINS_URL; the only one in any case."""
        found = [nodes for nodes in self if gateconfig.is_same_url(nodes.config.server, url)]
        found = found or list(self) * (len(self) == 1)
        return found[0] if found else None

    def look(self) -> Seen:
        """Return all nodes, in one call to each Jenkins.

        Raises JenkinsError or JenkinsConfigError if none of them tells.
        """
        owners = vmdatabase.owners_of_nodes() if len(self) > 1 else {}  # one alone has no other's nodes
        found: dict[str, Node] = {}
        silent: dict[str, GateError] = {}
        misplaced = []
        for nodes in self:
            try:
                listed = nodes.all_but_others()
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

    def by_machine(self, nodes: Mapping[str, Node]) -> dict[int, Node]:
        """Return the nodes that carry this pool's mark by the machine id that their names end with."""
        return next(iter(self)).by_machine(nodes)

    def clock_ahead(self) -> float | None:
        """Return how many seconds our clock is ahead of theirs, at least; None if none has told."""
        told = [nodes.clock_ahead for nodes in self._nodes.values() if nodes.clock_ahead is not None]
        return min(told, default=None)


class Part(NamedTuple):
    """What a Jenkins has of an image type."""

    name: str
    waiting: int  # builds
    coming: int  # machines on their way
    ready: int


def next_one(parts: Sequence[Part]) -> str:
    """Return which Jenkins gets the next machine.

    That is where most builds wait for one that is not on its way, else the one that has the fewest; of equals, the
    first.
    """
    return max(parts, key=lambda part: (max(0, part.waiting - part.coming), -part.ready - part.coming)).name


def parts_of(names: Sequence[str], waiting: Mapping[str, int], counts: Counter[tuple[str, str]]) -> list[Part]:
    """Return the part of each Jenkins; counts is by Jenkins and state."""
    return [Part(name, waiting.get(name, 0), counts[name, BUILDING], counts[name, READY]) for name in names]
