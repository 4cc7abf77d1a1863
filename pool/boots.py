"""The life of a machine on its way into the pool, and how it ends: `Boot.live`, and what that calls, top to bottom.

Nothing here knows other machines, beyond its group, or how many are wanted. The run that has the boots
(devstack-vm-launch) plans, resumes each life when its event has come, and concludes from its end what else to ask for.
"""

from __future__ import annotations

import contextlib
import math
import secrets
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import gateprocess
import jenkinsnodes
import nodessh
import vmdatabase
from cloud import nova
from gateconfig import SecureConfig
from gateprocess import ConfigError, GateError
from jenkinsnodes import AWAITED
from pool import groups
from pool.jenkinses import Jenkinses
from vmdatabase import READY, BaseImage, Machine, Provider, SnapshotImage

T = TypeVar("T")

ABSENT_SECONDS, ASK_AGAIN_SECONDS = 2, 10  # lists lag behind: when to ask for a single server, and how often
UNSEEN_BEFORE_SECONDS = 5  # how long a server whose id was not saved may be missing from the list
NEW_SECONDS = 10  # how long parts of a cloud may not know a new server
UNSEEN_SECONDS = 30  # the same after a create whose answer was lost
REGISTER_SECONDS = 15  # how long Jenkins may fail to take a node before the machine is given up
ONLINE_SECONDS = 30  # how long a run waits for the agent of a node that it registered; most take 2 to 6 s
LATE_SECONDS = 3  # after a machine's deadline, until it is given up even if a worker is busy with it
SECRET_BYTES = 32  # of the secret with which a build takes its machine
RETRY_SECONDS = (0.25, 0.5, 1.0, 2.0, 3.0)  # pauses between tries of a login or a registration

# The stages of a life; GATHER and JOIN are those of a group, see pool/groups.py.
CREATE, BOOT, LOGIN, GATHER, JOIN, REGISTER, AGENT = "create", "boot", "login", "gather", "join", "register", "agent"
COMING = (BOOT, LOGIN, GATHER, JOIN)  # its server is watched


@dataclass(frozen=True)
class Tools:
    """What a run has for its boots."""

    provider: Provider
    config: SecureConfig
    prefix: str  # of labels
    cloud: nova.Cloud
    jenkinses: Jenkinses | None
    workers: gateprocess.Workers
    patient: gateprocess.Workers  # for calls that take long and must not delay others
    log: gateprocess.Log


@dataclass(frozen=True)
class Look:
    """A look at all servers with one list; listed is false if the cloud did not answer."""

    servers: Mapping[str, nova.Server] = field(default_factory=dict)  # by their ids
    by_machine: Mapping[int | None, nova.Server] = field(default_factory=dict)
    listed: bool = True


@dataclass(frozen=True)
class Request:
    """What to ask the cloud for; again: whether an earlier run may have begun to ask."""

    recipe: nova.Recipe
    zone: str | None
    again: bool = False


# A life waits at each yield. It is resumed with a look at the servers (COMING), with the state of the agent (AGENT), or
# with None if its worker is done or its pause over.
Life = Generator[None, Look | str | None, T]


class LifeEnd(Exception):  # noqa: N818
    """A life ends early. err is the failure, if it concerns more than this machine."""

    def __init__(self, why: str = "", err: GateError | None = None) -> None:
        super().__init__(why)
        self.err = err


class RefusedError(LifeEnd):
    """The cloud has made no server: the row is deleted."""


class FailedError(LifeEnd):
    """The machine has to go to ERROR; fault is the server's fault text, columns are written with the move."""

    def __init__(self, why: str, err: GateError | None = None, fault: str | None = None, **columns: Any) -> None:
        super().__init__(why, err)
        self.fault = fault
        self.columns = columns


class TakenError(LifeEnd):
    """Somebody else has moved the machine; it is left to them."""


class NeverAskedError(LifeEnd):
    """An earlier run ended before it could ask for the server."""


class Boot:
    """A machine on its way, with what the run looks at: its stage, and the task or moment that it waits for."""

    def __init__(
        self, tools: Tools, machine: Machine, image: BaseImage, stage: str, request: Request | None = None,
        seconds: float = math.inf, group: groups.Group | None = None,
    ) -> None:
        """Take a machine at a stage; request is for CREATE, seconds is the time left in BOOT."""
        self.tools = tools
        self.machine = machine
        self.image = image
        self.stage = stage
        self.request = request
        self.log = tools.log.bind(image=image.name, machine=machine.id, node=machine.name)
        self.task: Future[Any] | None = None
        self.retry_at = 0.0  # monotonic, as are the other moments
        self.tries = 0
        self.deadline = time.monotonic() + seconds
        self.group = group
        self.is_member = machine.lead_id is not None  # a subnode, unknown to Jenkins
        self.give_up_at = time.monotonic() + UNSEEN_BEFORE_SECONDS  # until when to look for a server without a saved id
        self.new_until = time.monotonic() + NEW_SECONDS
        self.ask_at: float | None = None  # when to ask for a single server that the list leaves out
        self.sent_at: float | None = None  # when the create was sent, after waiting for the rate
        self.settled_by = 0.0  # until when to wait for cloud-init
        self.patience: float = nodessh.CONNECT_SECONDS  # limit of each wait in the next login, seconds
        self.server: nova.Server | None = None
        self.last_seen = "nothing yet"
        # The nodes of its Jenkins; a subnode has none.
        self.nodes = tools.jenkinses.of(machine) if tools.jenkinses and not self.is_member else None
        login = self.nodes.config.node_login if self.nodes else ""
        self.secret = secrets.token_urlsafe(SECRET_BYTES) if login else ""
        # For builds that call Jenkins from this node: a line with the login and one with the machine's secret.
        self.jenkins_login = f"{login}\n{self.secret}" if login else ""
        self.life = self.live()
        next(self.life)

    def live(self) -> Life[None]:
        """Lead a machine from its create, or from the stage at which it was taken over, to its agent in Jenkins.

        Raises RefusedError, FailedError, TakenError or NeverAskedError if it ends earlier.
        """
        if self.request:
            yield from self.be_made(self.request)
        if self.stage != REGISTER:
            server = yield from self.come_up()
            login = yield from self.be_let_in(server)
            if self.group:
                yield from self.gather(self.group, login, self.server or server)
            if self.is_member:
                return
            self.become_ready(login)
        if self.nodes:
            yield from self.join_jenkins(self.nodes)
            yield from self.show_agent()

    # --- asked for ---

    def be_made(self, request: Request) -> Life[None]:
        """Have the server created and save its id; if the answer was lost, there may be a server all the same."""
        self.log.info("asking for a server")
        self.sent_at = None
        self.task = self.tools.workers.submit(self.make_server, request)
        yield
        task, self.task = self.task, None
        sent_at = self.sent_at or time.monotonic()
        self.deadline = sent_at + self.tools.provider.boot_timeout
        if self.group:
            self.deadline = self.group.end_of(self.machine.id, self.deadline)
        sent_time = vmdatabase.now() - round(time.monotonic() - sent_at)
        try:
            vmdatabase.set_columns(self.machine, external_id=task.result(), create_time=sent_time)
        except (nova.CapacityError, nova.RefusedError, ConfigError) as err:
            raise RefusedError(str(err), err) from err
        except GateError as err:
            if self.sent_at is None:  # it failed before the create was sent
                raise RefusedError(str(err), err) from err
            self.log.warning("%s; looking whether there is a server all the same", err)
            self.last_seen = str(err)
        self.give_up_at = time.monotonic() + UNSEEN_SECONDS
        self.new_until = time.monotonic() + NEW_SECONDS

    def make_server(self, request: Request) -> str:
        """Run in a worker: reserve what the server needs, create it, and return its id."""
        cloud, machine_id = self.tools.cloud, self.machine.id
        marks = {nova.MACHINE_KEY: str(machine_id)}
        if self.is_member:
            marks[nova.LEAD_KEY] = str(self.machine.lead_id)
        cloud.network.reserve(machine_id, again=request.again)
        try:
            return cloud.make_server(str(self.machine.name), request.recipe, marks, zone=request.zone, sent=self.sent)
        except (nova.CapacityError, nova.RefusedError, ConfigError):
            with contextlib.suppress(GateError):  # reap sweeps what is left
                cloud.network.release_for(machine_id)
            raise

    def sent(self) -> None:
        """Note, called by a worker, that the create is sent now."""
        self.sent_at = time.monotonic()

    # --- the server is there, and comes up ---

    def come_up(self) -> Life[nova.Server]:
        """Wait for the server to be ACTIVE, and return it."""
        self.stage = BOOT
        server = None
        while server is None or server.status != nova.ACTIVE:
            server = self.watch((yield))
        now = time.monotonic()
        self.deadline = max(self.deadline, now + nodessh.CONNECT_SECONDS)  # our look may have waited for the rate
        self.settled_by = nodessh.settle_until(self.deadline)
        return server

    def watch(self, look: Look | str | None) -> nova.Server | None:
        """Judge a machine by a look and return its server; ERROR, a missing server and the deadline are final."""
        if self.group and self.group.over:
            raise TakenError
        if not isinstance(look, Look):
            return None
        server = self.find(look) if look.listed else None
        if server:
            self.server, self.ask_at = server, None
            if server.status == nova.SERVER_ERROR:
                raise FailedError(f"the server went to ERROR: {server.fault or 'without a fault text'}",
                                  fault=server.fault)
            if self.stage == BOOT and server.status == nova.ACTIVE:
                return server
            if self.stage == BOOT:
                self.last_seen = f"server status {server.status}"
        self.check_time(LATE_SECONDS if self.task else 0)
        return server

    def check_time(self, grace: float = 0) -> None:
        """Raise FailedError if the machine's deadline passed at least `grace` seconds ago."""
        if time.monotonic() > self.deadline + grace:
            raise FailedError(f"not ready after {self.tools.provider.boot_timeout} s (boot-timeout); last seen: "
                              f"{self.last_seen}")

    def find(self, look: Look) -> nova.Server | None:
        """Return the server as a look shows it; if the answer to its create was lost, find it by its mark."""
        if self.machine.external_id:
            return look.servers.get(self.machine.external_id) or self.ask_for_it()
        server = look.by_machine.get(self.machine.id)
        if server:
            self.log.info("the server is there all the same")
            vmdatabase.set_columns(self.machine, external_id=server.id)
        elif time.monotonic() > self.give_up_at and self.request:
            raise FailedError(f"no server {UNSEEN_SECONDS} s after: {self.last_seen}")
        elif time.monotonic() > self.give_up_at:
            raise NeverAskedError
        return server

    def ask_for_it(self) -> nova.Server | None:
        """Ask for a server that lists have left out for some time; only a 404 means that it is gone.

        A new server that was never seen may not be known in all parts of the cloud yet.
        """
        now = time.monotonic()
        if self.ask_at is None:
            self.ask_at = now + ABSENT_SECONDS
        if now < self.ask_at:
            return None
        self.ask_at = now + ASK_AGAIN_SECONDS
        try:
            return self.tools.cloud.get_server(str(self.machine.external_id))
        except nova.GoneError as err:
            if self.server or now >= self.new_until:
                raise FailedError("the server is gone") from err
            self.last_seen = "no server yet"  # parts of a cloud may not know of it for some seconds
            self.ask_at = now + ABSENT_SECONDS
        except GateError as err:
            self.last_seen = str(err)
        return None

    # --- address, ssh test, ready-script ---

    def be_let_in(self, server: nova.Server) -> Life[nodessh.Login]:
        """Repeat the ssh test, which leaves the marks on the machine, until it passes; watch the server meanwhile."""
        self.stage = LOGIN
        snapshot = SnapshotImage.get_or_none(SnapshotImage.id == self.machine.snapshot_image_id)  # reap may delete it
        marks = {"NODE_PROVIDER": self.tools.provider.name, "NODE_IMAGE": self.image.name,
                 "NODE_NAME": self.machine.name, "NODE_SNAPSHOT": snapshot.name if snapshot else ""}
        text = "".join(f"{key}={value}\n" for key, value in marks.items())
        while True:
            slow = self.patience > nodessh.CONNECT_SECONDS or self.image.ready_script
            workers = self.tools.patient if slow else self.tools.workers
            try:
                return (yield from self.done_by(workers, self.log_in, server, text))
            except (ConfigError, nova.CapacityError) as err:  # settings, or no more floating IPs
                raise FailedError(str(err), err) from err
            except nodessh.ReadyScriptError as err:
                raise FailedError(str(err)) from err
            except GateError as err:
                self.last_seen = str(err)
                self.patience = nodessh.next_patience(self.patience, err)
            self.check_time()
            yield from self.pause()

    def log_in(self, server: nova.Server, marks: str) -> nodessh.Login:
        """Run in a worker: find the address and run the ssh test."""
        address = self.tools.cloud.network.reachable_address(server)
        if address is None:
            raise nodessh.NotYetError("active, but without an address")
        login = nodessh.Login(address, self.tools.provider.ssh_port, str(self.machine.user),
                              self.tools.config.node.ssh_key)
        gift = nodessh.Welcome(marks, self.jenkins_login, read_ready_script(self.image.ready_script),
                               self.group.keys.public if self.group and self.is_member else "")
        return nodessh.welcome(login, gift, self.deadline, self.patience, self.settled_by)

    # --- a group ---

    def gather(self, group: groups.Group, login: nodessh.Login, server: nova.Server) -> Life[None]:
        """Wait for the others of the group; the lead then introduces them to each other, and subnodes wait for that."""
        self.stage, self.tries = GATHER, 0
        vmdatabase.set_columns(self.machine, ip=login.address, host_key=login.host_key)
        group.let_in(self.machine.id, groups.place_of(self.machine, server, login))
        while not group.is_ready:
            self.stage = GATHER
            # A late subnode fails by itself; the lead gives up after it.
            self.deadline = math.inf if self.is_member else group.deadline + LATE_SECONDS
            if self.is_member or not group.is_whole:
                self.last_seen = "ready, but not all of its group"
                self.watch((yield))
            elif (yield from self.join(group)):
                return

    def join(self, group: groups.Group) -> Life[bool]:
        """Introduce the machines of a whole group to each other; returns whether that worked and all still belong."""
        self.stage, places = JOIN, group.places
        try:
            yield from self.done_by(self.tools.patient, self.introduce, group, places)
        except ConfigError as err:
            raise FailedError(str(err), err) from err
        except GateError as err:
            self.last_seen = str(err)
            self.check_time()
            yield from self.pause()
            return False
        return group.is_whole and group.places == places

    def introduce(self, group: groups.Group, places: Sequence[groups.Place]) -> None:
        """Run in a worker: tell cloud and machines who belongs to whom; the lead may have changed on the way."""
        for server_id, lead_id in group.marks_to_set():
            self.tools.cloud.mark_lead(server_id, lead_id)
        groups.introduce(places, group.keys, self.deadline)

    # --- READY, a node, an agent ---

    def become_ready(self, login: nodessh.Login) -> None:
        """Move the machine to READY; one that was held meanwhile keeps its state and gets its address all the same."""
        vmdatabase.set_columns(self.machine, ip=login.address, host_key=login.host_key)
        self.move(READY, jenkins_name=self.machine.name if self.nodes else None,
                  take_hash=vmdatabase.secret_hash(self.secret) if self.jenkins_login else None,
                  reason=f"with {self.group}" if self.group else None)
        vmdatabase.note_room(self.tools.provider, refused=False)
        vmdatabase.note_well(self.image.id)
        if self.group:
            self.group.is_ready = True

    def join_jenkins(self, nodes: jenkinsnodes.Nodes) -> Life[None]:
        """Register the machine in Jenkins as a node."""
        self.stage, self.tries, self.deadline = REGISTER, 0, time.monotonic() + REGISTER_SECONDS
        while True:
            try:
                yield from self.done_by(
                    self.tools.workers, nodes.add, str(self.machine.name),
                    label=f"{self.tools.prefix}devstack-{self.image.name}", address=str(self.machine.ip),
                    port=self.tools.provider.ssh_port, host_key=str(self.machine.host_key),
                    remote_fs=self.tools.config.node.remote_fs)
                break
            except jenkinsnodes.JenkinsError as err:
                if time.monotonic() >= self.deadline:
                    raise FailedError(str(err)) from err
            except jenkinsnodes.NodeConflictError as err:
                raise FailedError(str(err), jenkins_name=None) from err  # that node is not ours to remove
            except GateError as err:
                raise FailedError(str(err)) from err
            yield from self.pause()
        self.log.info("registered in Jenkins")
        self.take_back(nodes)

    def take_back(self, nodes: jenkinsnodes.Nodes) -> None:
        """Remove or disable the node of a machine that left READY while it was registered, and raise TakenError."""
        state = vmdatabase.state_of(self.machine)
        if state == READY:
            return
        try:
            if state is None:
                nodes.remove(str(self.machine.name), "its machine is gone", self.machine.ip)
            else:
                nodes.take_out_of_service(str(self.machine.name), "taken while it was being registered")
        except GateError as err:
            raise TakenError(str(err), err) from err
        raise TakenError

    def show_agent(self) -> Life[None]:
        """Wait until Jenkins has the machine's agent or has lost it, for ONLINE_SECONDS at most."""
        self.stage, self.deadline = AGENT, time.monotonic() + ONLINE_SECONDS
        while (yield) == AWAITED and time.monotonic() <= self.deadline:
            pass

    # --- what all stages need ---

    def move(self, target: str, **columns: Any) -> None:
        """Move the machine to another state; raises TakenError if somebody else has moved it."""
        source = self.machine.state
        if not vmdatabase.move(self.machine, source, target, **columns):
            self.log.info("is no longer %s; left alone", source)
            raise TakenError
        self.log.info("%s -> %s%s", source, target, f": {columns['error']}" if "error" in columns else "")

    def done_by(
        self, workers: gateprocess.Workers, call: Callable[..., T], *arguments: Any, **keywords: Any
    ) -> Life[T]:
        """Have a worker make a call, and return its result."""
        self.task = task = workers.submit(call, *arguments, **keywords)
        while not task.done():
            self.watch((yield))
        self.task = None
        return task.result()

    def pause(self) -> Life[None]:
        """Wait before another try, longer each time."""
        self.retry_at = time.monotonic() + RETRY_SECONDS[min(self.tries, len(RETRY_SECONDS) - 1)]
        self.tries += 1
        while time.monotonic() < self.retry_at:
            self.watch((yield))


def read_ready_script(path: str | None) -> bytes | None:
    """Return the ready-script of an image type; raises ReadyScriptError if its file cannot be read."""
    try:
        return Path(path).read_bytes() if path else None
    except OSError as err:
        raise nodessh.ReadyScriptError(f"ready-script: {path} cannot be read ({err.strerror})") from err
