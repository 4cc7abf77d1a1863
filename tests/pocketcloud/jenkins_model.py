"""What the stand-in for Jenkins knows and does over time: agents, queue, executors, builds."""

import heapq
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paramiko

from tests.pocketcloud.jenkins_agent import KeyStore, LaunchError, check_settings, connect, describe
from tests.pocketcloud.jenkins_builds import Build, Item, Job, kill_step, run_build
from tests.pocketcloud.jenkins_nodes import (
    CHANNEL_LOST,
    CHANNEL_LOST_TEXT,
    JNLP_LAUNCHER,
    LAUNCH_FAILED,
    LAUNCH_FAILED_TEXT,
    USER_CAUSE,
    Node,
    NodeConfig,
    OfflineCause,
)

log = logging.getLogger(__name__)

WATCH_SECONDS = 0.1  # a lost connection is noticed within this time; the real one took 0.2 s
START_SECONDS = 0.01  # from being queued, or from an executor coming up, to the start of a build


@dataclass
class Knobs:
    """What tests may change while it runs (`PATCH /control`)."""

    connect: str = "ssh"  # or "instant": online without a machine; or "never": connecting for ever
    connect_seconds: float = 0.0  # before a connection is made or, with "instant", the node is online
    reconnect_seconds: float = 12.0  # from the loss of an agent to the next launch, as measured
    relaunch_seconds: float = 60.0  # from a failed launch to the next one, which the retention strategy asks for
    retry_seconds: float | None = None  # instead of the launcher's retryWaitTime
    gap_seconds: float = 0.018  # an executor between two builds; 17-22 ms were measured
    restart_seconds: float = 1.0  # how long a restart answers 503
    latency_seconds: float = 0.0
    starting_up: bool = False
    create_races: bool = False  # two creates of one name at once both succeed
    race_seconds: float = 0.1  # how long such a create looks away
    rights: dict[str, list[str]] = field(default_factory=dict)  # who is not listed may do everything
    answers: list[dict[str, Any]] = field(default_factory=list)


class Clock:
    """One thread that calls things at their time."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="clock", daemon=True).start()

    def call_in(self, seconds: float, what: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (time.monotonic() + seconds, next(self._numbers), what))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._due or self._due[0][0] > time.monotonic():
                    wait_seconds = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(wait_seconds)
                what = heapq.heappop(self._due)[2]
            try:
                what()
            except Exception:  # the boundary of one event; the clock goes on
                log.exception("An event of the stand-in for Jenkins failed")


class Model:
    """All state, behind one lock. Methods named as Jenkins names what they stand for."""

    def __init__(self, root: Path, keys: KeyStore, url: str) -> None:
        self.root = root
        self.keys = keys
        self.url = url
        self.lock = threading.RLock()
        self.knobs = Knobs()
        self.nodes: dict[str, Node] = {}
        self.jobs: dict[str, Job] = {}
        self.queue: list[Item] = []
        self.items: list[Item] = []
        self.builds: list[Build] = []
        self.running: dict[str, list[Build]] = {}
        self.quieting_down = False
        self.up_at = 0.0
        self.clock = Clock()
        self._links: dict[str, paramiko.Transport] = {}
        self._watching = False

    # Nodes

    def starting(self) -> bool:
        return self.knobs.starting_up or time.monotonic() < self.up_at

    def add_node(self, name: str, config: NodeConfig, connect: str | None = None) -> bool:
        """Add a node and launch its agent; False when there is one of that name."""
        with self.lock:
            taken = name in self.nodes
        if not taken and self.knobs.create_races:
            time.sleep(self.knobs.race_seconds)
        with self.lock:
            if taken or (name in self.nodes and not self.knobs.create_races):
                return False
            node = self.nodes.get(name)
            if node is None:
                self.nodes[name] = node = Node(name, config, connect=connect)
                self.launch(node)
            else:
                node.config = config  # the second of two racing creates replaces the settings of the first
            return True

    def relabel(self, node: Node, config: NodeConfig) -> None:
        with self.lock:
            node.config = config
        self.kick()

    def delete_node(self, node: Node) -> None:
        with self.lock:
            self.nodes.pop(node.name, None)
            self._cut(node, "disconnected")
            self._fail_builds(node, _channel_closed(node.name), at_once=True)

    def toggle_offline(self, node: Node, message: str) -> None:
        with self.lock:
            node.temporarily_offline = not node.temporarily_offline
            node.cause = OfflineCause(USER_CAUSE, message.strip()) if node.temporarily_offline else None
        self.kick()

    def change_offline_cause(self, node: Node, message: str) -> None:
        with self.lock:
            node.cause = OfflineCause(USER_CAUSE, message.strip())

    def disconnect(self, node: Node, message: str) -> None:
        with self.lock:
            self._cut(node, "disconnected")
            node.cause = OfflineCause(USER_CAUSE, message.strip())
            self._fail_builds(node, _channel_closed(node.name), at_once=False)

    def agent_lost(self, node: Node) -> None:
        """The agent died: builds on it fail, and it is launched again after a while."""
        with self.lock:
            self._cut(node, "died")
            if not node.temporarily_offline:
                node.cause = OfflineCause(CHANNEL_LOST, CHANNEL_LOST_TEXT)
            self._fail_builds(node, ["FATAL: command execution failed", CHANNEL_LOST_TEXT], at_once=False)
            self.clock.call_in(self.knobs.reconnect_seconds, lambda: self._relaunch(node, "died"))

    def launch(self, node: Node) -> None:
        """Start connecting in the background, unless it is connecting or connected already."""
        with self.lock:
            if node.online or node.launch or node.config.launcher.kind == JNLP_LAUNCHER:
                return
            node.launch = called_off = threading.Event()
            node.down = "connecting"
            node.log = []
            if not node.temporarily_offline:
                node.cause = None
            how = node.connect or self.knobs.connect
            seconds = self.knobs.connect_seconds
        try:
            check_settings(node.config.launcher, self.keys)
        except LaunchError as err:
            self.launch_failed(node, called_off, str(err))
            return
        if how == "instant":
            self.clock.call_in(seconds, lambda: self.launched(node, called_off, None))
        elif how == "ssh":
            threading.Thread(target=self._launch_by_ssh, args=(node, called_off, seconds), daemon=True).start()

    def launched(self, node: Node, called_off: threading.Event, link: paramiko.Transport | None) -> None:
        with self.lock:
            if node.launch is not called_off:
                if link:
                    link.close()
                return
            node.launch = None
            node.online = True
            if link:
                self._links[node.name] = link
                self._watch()
            else:
                node.log += [describe(node.config.launcher), "Agent successfully connected and online"]
        self.kick()

    def launch_failed(self, node: Node, called_off: threading.Event, text: str) -> None:
        with self.lock:
            if node.launch is not called_off:
                return
            node.launch = None
            node.down = "launch-failed"
            node.log.append(text)
            node.cause = node.cause or OfflineCause(LAUNCH_FAILED, LAUNCH_FAILED_TEXT)
            self.clock.call_in(self.knobs.relaunch_seconds, lambda: self._relaunch(node, "launch-failed"))

    def _launch_by_ssh(self, node: Node, called_off: threading.Event, seconds: float) -> None:
        called_off.wait(seconds)
        try:
            link = connect(node.config.launcher, self.keys, node.log.append, called_off, self.knobs.retry_seconds)
        except LaunchError as err:
            self.launch_failed(node, called_off, str(err))
        except Exception as err:  # noqa: BLE001 - the boundary of one launch; Jenkins logs whatever it was
            self.launch_failed(node, called_off, f"ERROR: Unexpected error in launching an agent: {err!r}")
        else:
            self.launched(node, called_off, link)

    def _relaunch(self, node: Node, down: str) -> None:
        with self.lock:
            if self.nodes.get(node.name) is node and node.down == down:
                self.launch(node)

    def _cut(self, node: Node, down: str) -> None:
        """Close the node's connection and call off its launch."""
        if node.launch:
            node.launch.set()
            node.launch = None
        link = self._links.pop(node.name, None)
        if link:
            link.close()
        node.online = False
        node.down = down

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self.clock.call_in(WATCH_SECONDS, self._look_at_links)

    def _look_at_links(self) -> None:
        with self.lock:
            for name, link in list(self._links.items()):
                if not link.is_active():
                    self.agent_lost(self.nodes[name])
            self._watching = False
            if self._links:
                self._watch()

    # Queue and builds

    def kick(self) -> None:
        """Look at the queue soon: something may be able to start."""
        if self.queue:
            self.clock.call_in(START_SECONDS, self._dispatch)

    def add_build(self, job: Job, parameters: dict[str, str], user: str) -> Item:
        """Queue a build; one that is queued already with the same parameters is joined, as Jenkins does."""
        with self.lock:
            for item in self.queue:
                if item.job is job and item.parameters == parameters:
                    item.users.append(user)
                    return item
            item = Item(len(self.items) + 1, job, parameters, [user])
            self.items.append(item)
            self.queue.append(item)
        self.kick()
        return item

    def cancel(self, item: Item) -> None:
        with self.lock:
            if item in self.queue:
                self.queue.remove(item)
                item.cancelled = True

    def label_nodes(self, label: str) -> list[Node]:
        return [node for node in self.nodes.values() if node.name == label or label in node.config.label.split()]

    def blocked_by(self, job: Job) -> Build | None:
        """The build that a job without concurrent builds waits for."""
        if job.concurrent:
            return None
        return next((build for build in job.builds if build.result is None), None)

    def _dispatch(self) -> None:
        with self.lock:
            if self.quieting_down or time.monotonic() < self.up_at:
                return
            if not self.queue:
                return
            free = self._free_nodes()
            for item in list(self.queue):
                if self.blocked_by(item.job):
                    continue
                candidates = free.get(item.job.label, [])
                while candidates and len(self.running.get(candidates[0].name, [])) >= candidates[0].config.executors:
                    candidates.pop(0)
                if candidates:
                    self._start(item, candidates[0])

    def _free_nodes(self) -> dict[str, list[Node]]:
        """Nodes with a free executor by label; a job without a label runs on what is not exclusive."""
        now = time.monotonic()
        free: dict[str, list[Node]] = {}
        for node in self.nodes.values():
            busy = len(self.running.get(node.name, ())) >= node.config.executors
            if node.offline or busy or node.free_at > now:
                continue
            for label in [*node.labels(), *([] if node.config.exclusive else [""])]:
                free.setdefault(label, []).append(node)
        return free

    def _start(self, item: Item, node: Node) -> None:
        job = item.job
        number = job.builds[-1].number + 1 if job.builds else 1
        taken = {build.executor for build in self.running.get(node.name, [])}
        executor = next(number for number in itertools.count() if number not in taken)
        environment = self._environment(item, node, number, executor)
        build = Build(job, number, item, node.name, executor, environment)
        build.console += [f"Started by user {user}" for user in item.users] + ["Running as SYSTEM"]
        others = " ".join(label for label in node.labels() if label != node.name)
        where = f"{node.name} ({others})" if others else node.name
        build.say(f"Building remotely on {where} in workspace {environment['WORKSPACE']}")
        self.queue.remove(item)
        item.build = build
        job.builds.append(build)
        self.builds.append(build)
        self.running.setdefault(node.name, []).append(build)
        link = self._links.get(node.name)
        build.stepwise = bool(job.before or job.after or (link and job.script))
        if build.stepwise:
            arguments = (build, link, self.root, lambda result: self.finish(build, result))
            threading.Thread(target=run_build, args=arguments, daemon=True).start()
        else:
            self.clock.call_in(job.seconds, lambda: self.finish(build, "SUCCESS"))

    def _environment(self, item: Item, node: Node, number: int, executor: int) -> dict[str, str]:
        name = item.job.name
        return {
            **item.job.environment,
            "JENKINS_URL": self.url,
            "JOB_NAME": name,
            "JOB_URL": f"{self.url}job/{name}/",
            "BUILD_NUMBER": str(number),
            "BUILD_ID": str(number),
            "BUILD_TAG": f"jenkins-{name}-{number}",
            "BUILD_URL": f"{self.url}job/{name}/{number}/",
            "NODE_NAME": node.name,
            "NODE_LABELS": " ".join(node.labels()),
            "EXECUTOR_NUMBER": str(executor),
            "WORKSPACE": f"{node.config.remote_fs.rstrip('/')}/workspace/{name}",
            **item.parameters,
        }

    def finish(self, build: Build, result: str) -> None:
        """A build has ended; the first result stays."""
        with self.lock:
            if build.result is not None:
                return
            build.ended_at = time.monotonic()
            build.say(f"Finished: {result}")
            build.result = result
            self.running[build.node_name].remove(build)
            node = self.nodes.get(build.node_name)
            if node:
                node.free_at = build.ended_at + self.knobs.gap_seconds
        self.clock.call_in(self.knobs.gap_seconds, self._dispatch)

    def stop_build(self, build: Build) -> None:
        with self.lock:
            build.force("ABORTED", "Aborted by a person")
            kill_step(build)
            if not build.stepwise:
                self.finish(build, "ABORTED")

    def _fail_builds(self, node: Node, lines: Sequence[str], at_once: bool) -> None:
        """Builds of a lost node fail; unless the node is gone for good, only after their post-build step."""
        for build in list(self.running.get(node.name, [])):
            build.force("FAILURE", *lines)
            if at_once or not build.stepwise:
                self.finish(build, "FAILURE")

    # The whole

    def restart(self) -> None:
        """Nodes, labels, temporarilyOffline, jobs and the queue survive; builds and connections do not."""
        with self.lock:
            self.up_at = time.monotonic() + self.knobs.restart_seconds
            self.quieting_down = False
            self._end_builds()
            for node in self.nodes.values():
                self._cut(node, "connecting")
        self.clock.call_in(self.knobs.restart_seconds, self._come_up)

    def _come_up(self) -> None:
        with self.lock:
            for node in self.nodes.values():
                self.launch(node)
        self.kick()

    def _end_builds(self) -> None:
        for build in [build for build in self.builds if build.result is None]:
            build.crashed = True
            build.force("ABORTED", "Resuming build after Jenkins restart is not possible")
            kill_step(build)
            self.finish(build, "ABORTED")

    def close(self) -> None:
        """End what it has started on this host and on the nodes."""
        with self.lock:
            self.quieting_down = True
            self._end_builds()
            for node in self.nodes.values():
                self._cut(node, "disconnected")


def _channel_closed(name: str) -> tuple[str, ...]:
    return (
        "FATAL: command execution failed",
        "Command Close created at",
        "Caused: hudson.remoting.Channel$OrderlyShutdown",
        f"Caused: java.io.IOException: Backing channel '{name}' is disconnected.",
    )
