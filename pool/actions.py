"""The actions of a run of reap: it decides on a list of them, then carries the list out, or prints it.

Nothing here acts. WORDS say what an action does, after "would"; SUBJECT names what a failure is reported of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from cloud.nova import Image, Server
from jenkinsnodes import Node
from pool.verdict import Verdict
from vmdatabase import BaseImage, Machine, SnapshotImage


@dataclass(frozen=True)
class Action:
    """One thing to do."""

    WORDS: ClassVar[str]
    SUBJECT: ClassVar[str] = "{0.machine.name}"

    @property
    def words(self) -> str:
        """What the action does."""
        return self.WORDS.format(self)

    @property
    def subject(self) -> str:
        """What the action is applied to."""
        return self.SUBJECT.format(self)


@dataclass(frozen=True)
class MoveMachine(Action):
    """Move a machine to another state; columns are written with it."""

    WORDS = "move {0.machine.name} {0.machine.state} -> {0.target}: {0.why}"
    machine: Machine
    target: str
    why: str
    columns: Mapping[str, object] = field(default_factory=dict)
    server: Server | None = None
    loss: str = ""  # how a ready machine was lost to Jenkins, if it was


@dataclass(frozen=True)
class AdoptServer(Action):
    """Give a row to a server that has none although somebody uses it."""

    WORDS = "take over {0.server.name} as {0.target}: {0.why}"
    SUBJECT = "{0.server.name}"
    server: Server
    node: Node | None
    image: BaseImage
    target: str
    why: str
    columns: Mapping[str, object]


@dataclass(frozen=True)
class RecordEnd(Action):
    """Record the end of a build for which devstack-vm-delete was not called; result None: its outcome is unknown."""

    WORDS = "record the end of {0.build} on {0.machine.name}"
    machine: Machine
    build: str  # JOB #NUMBER
    result: str | None
    verdict: Verdict | None


@dataclass(frozen=True)
class MarkHeld(Action):
    """Mark the server of a held machine as held, in case vm.db is restored some day, and save its id."""

    WORDS = "mark the server of {0.machine.name} as held"
    machine: Machine
    server: Server


@dataclass(frozen=True)
class RetireNode(Action):
    """Take a node out of service that should serve no more builds, but that an outage left in service."""

    WORDS = "take node {0.node.name} out of service"
    machine: Machine
    node: Node


@dataclass(frozen=True)
class DeleteMachine(Action):
    """Delete node, server and row of a machine that is over."""

    WORDS = "delete machine {0.machine.name} ({0.machine.state})"
    machine: Machine
    server_id: str | None
    may_have_server: bool  # the list shows no server for it, but may have left one out


@dataclass(frozen=True)
class Delete(Action):
    """Delete something that has no row; what: `leaked server`, `keypair` and so on; thing: the deletion's argument."""

    WORDS = "delete {0.what} {0.name}"
    SUBJECT = "{0.what} {0.name}"
    what: str
    name: str
    thing: Any


@dataclass(frozen=True)
class AdoptImage(Action):
    """Give a row to an image from which machines boot well."""

    WORDS = "take over image {0.image.name}"
    SUBJECT = "snapshot {0.image.name}"
    image: Image
    base_image: BaseImage
    version: int


@dataclass(frozen=True)
class MarkProved(Action):
    """Mark an image as one from which machines boot well, in case vm.db is restored some day."""

    WORDS = "mark image {0.snapshot.name} as good"
    SUBJECT = "snapshot {0.snapshot.name}"
    snapshot: SnapshotImage
    image_id: str


@dataclass(frozen=True)
class DeleteSnapshot(Action):
    """Delete image, template server and row of a snapshot."""

    WORDS = "delete snapshot {0.snapshot.name} ({0.snapshot.state})"
    SUBJECT = "snapshot {0.snapshot.name}"
    snapshot: SnapshotImage
    image_id: str | None


@dataclass(frozen=True)
class ResetEnvironment(Action):
    """Run the reset of a test environment that its machine has released."""

    WORDS = "reset test environment {0.name}"
    SUBJECT = "test environment {0.name}"
    name: str


@dataclass(frozen=True)
class Leave(Action):
    """Leave something to a person or the next run, and report it."""

    WORDS = SUBJECT = "{0.text}"
    text: str
