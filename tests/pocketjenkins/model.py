"""What the stand-in for Jenkins knows and does over time: agents, queue, executors, builds."""

import itertools
import logging
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import paramiko

from tests.pocketjenkins.agent import KeyStore, LaunchError, check_settings, connect, describe
from tests.pocketjenkins.builds import Build, Cause, Item, Job, kill_step, run_build
from tests.pocketjenkins.environment import build_environment
from tests.pocketjenkins.knobs import Knobs
from tests.pocketjenkins.labels import fits
from tests.pocketjenkins.matrix import MatrixRun
from tests.pocketjenkins.nodes import (
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
from tests.pocketjenkins.parameters import settle
from tests.pocketjenkins.steps import Run
from tests.pocketjenkins.workplace import AgentPlace, HostPlace, NowherePlace, Place
from tests.support.schedule import Schedule

log = logging.getLogger(__name__)

MASTER = "master"
WATCH_SECONDS = 0.1  # a lost connection is noticed within this time; the real one took 0.2 s
END_SECONDS = 8.0  # for the builds to end when it stops; a step gets 5 s after SIGTERM
START_SECONDS = 0.01  # from being queued, or from an executor coming up, to the start of a build


class Model:
    """All state, behind one lock. Methods have the names of Jenkins' actions."""

    def __init__(self, root: Path, keys: KeyStore, url: str) -> None:
        self.root = root
        self.keys = keys
        self.url = url
        self.lock = threading.RLock()
        self.knobs = Knobs()
        self.nodes: dict[str, Node] = {}
        self.master = Node(MASTER, NodeConfig(remote_fs=str(root), exclusive=False), online=True)
        self.jobs: dict[str, Job] = {}
        self.queue: list[Item] = []
        self.items: list[Item] = []
        self.builds: list[Build] = []
        self.running: dict[str, list[Build]] = {}
        self.warnings: list[str] = []  # from Jenkins' own log
        self.quieting_down = False
        self.up_at = 0.0
        self.schedule = Schedule()
        self._links: dict[str, paramiko.Transport] = {}
        self._watching = False
        self._at_work: list[threading.Thread] = []

    # Nodes

    def address(self) -> str:
        """Return the address of Jenkins that builds are told, empty if it does not know its own."""
        return self.url if self.knobs.has_address else ""

    def installed(self) -> dict[str, str]:
        """Return the active plugins, with their versions."""
        return {name: version for name, version in self.knobs.plugins.items() if name not in self.knobs.inactive}

    def rights(self) -> dict[str, list[str]]:
        """Return users' rights: to all jobs or, as "Item.Build/JOB", to one; those in the jobs' configurations, too."""
        with self.lock:
            rights = {user: list(some) for user, some in self.knobs.rights.items()}
            for job in self.jobs.values():
                for user, right in job.config.rights if job.config else ():
                    if user in rights:
                        rights[user].append(f"{right}/{job.name}")
        return rights

    def starting(self) -> bool:
        return self.knobs.starting_up or time.monotonic() < self.up_at

    def add_node(self, name: str, config: NodeConfig, connect: str | None = None) -> bool:
        """Add a node and launch its agent; returns False if there is one of that name."""
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

    def toggle_offline(self, node: Node, message: str, user: str | None = None) -> None:
        with self.lock:
            node.temporarily_offline, node.kept = not node.temporarily_offline, None
            node.cause = OfflineCause(USER_CAUSE, message.strip(), user) if node.temporarily_offline else None
        self.kick()

    def bar(self, node: Node, kind: str, reason: str) -> None:
        """Take a node offline as one of Jenkins' node monitors does, such as that of free disk space."""
        with self.lock:
            node.temporarily_offline = True
            node.cause = OfflineCause(kind, reason)

    def change_offline_cause(self, node: Node, message: str, user: str | None = None) -> None:
        """Mark a node offline, whatever its state; the real one was seen to do so, and its sources do since 1.509."""
        with self.lock:
            node.temporarily_offline, node.kept = True, None
            node.cause = OfflineCause(USER_CAUSE, message.strip(), user)

    def disconnect(self, node: Node, message: str, user: str | None = None) -> None:
        with self.lock:
            self._cut(node, "disconnected")
            node.cause = OfflineCause(USER_CAUSE, message.strip(), user)
            self._fail_builds(node, _channel_closed(node.name), at_once=False)

    def agent_lost(self, node: Node) -> None:
        """Handle the death of an agent: its builds fail, and it is launched again after a while."""
        with self.lock:
            self._cut(node, "died")
            if not node.temporarily_offline:
                node.cause = OfflineCause(CHANNEL_LOST, CHANNEL_LOST_TEXT)
            self._fail_builds(node, ["FATAL: command execution failed", CHANNEL_LOST_TEXT], at_once=False)
            self.schedule.later(self.knobs.reconnect_seconds, lambda: self._relaunch(node, "died"))

    def launch(self, node: Node) -> None:
        """Start connecting in the background, unless the node is connecting or connected already."""
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
            self.schedule.later(seconds, lambda: self.launched(node, called_off, None))
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
            if node.kept:
                node.temporarily_offline, node.cause, node.kept = True, node.kept, None
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
            self.schedule.later(self.knobs.relaunch_seconds, lambda: self._relaunch(node, "launch-failed"))

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
            self.schedule.later(WATCH_SECONDS, self._look_at_links)

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
        """Look at the queue soon: perhaps a build can start."""
        if self.queue:
            self.schedule.later(START_SECONDS, self._dispatch)

    def find_job(self, name: str) -> Job | None:
        return self.jobs.get(name)

    def minute_seconds(self) -> float:
        return self.knobs.minute_seconds

    def add_build(self, job: Job, given: Mapping[str, str], cause: Cause) -> Item:
        """Queue a build; as in Jenkins, it joins a queued one with the same parameters. Returns the queue item."""
        parameters = settle(job.config.parameters, given) if job.config else dict(given)
        with self.lock:
            if cause.project and job.config:  # the real one was seen to repeat each 32 times
                self.warnings += [f"Skipped parameter `{name}` as it is undefined on `{job.name}`."
                                  for name in given.keys() - parameters.keys()]
            for item in self.queue:
                if item.job is job and item.parameters == parameters and item.given == given:
                    item.causes.append(cause)
                    return item
            item = Item(len(self.items) + 1, job, parameters, [cause], dict(given))
            self._enqueue(item)
        return item

    def add_cell(self, build: Build, name: str, label: str, axes: Mapping[str, str]) -> Item:
        """Queue the build of a cell, with the number and parameters of the matrix's build."""
        job, causes = build.job, [Cause(project=build.job.name, number=build.number, before=tuple(build.item.causes))]
        with self.lock:
            cell = job.cells.setdefault(name, Job(f"{job.name}/{name}", parent=job))
            cell.kind, cell.label, cell.config = "hudson.matrix.MatrixConfiguration", label, job.config
            cell.concurrent = job.concurrent
            item = Item(len(self.items) + 1, cell, build.item.parameters, causes, axes=dict(axes), number=build.number)
            self._enqueue(item)
        return item

    def _enqueue(self, item: Item) -> None:
        self.items.append(item)
        self.queue.append(item)
        self.kick()

    def cancel(self, item: Item) -> None:
        with self.lock:
            if item in self.queue:
                self.queue.remove(item)
                item.cancelled = True
                item.done.set()

    def delete_job(self, job: Job) -> None:
        """Forget a job and its builds; running builds are aborted."""
        family = [job, *job.cells.values()]
        with self.lock:
            self.jobs.pop(job.name, None)
            for item in [item for item in self.queue if item.job in family]:
                self.cancel(item)
            for build in [build for build in self.builds if build.job in family]:
                if build.result is None:
                    self.stop_build(build)
                self.builds.remove(build)
            shutil.rmtree(self.root / "jobs" / job.name, ignore_errors=True)

    def label_nodes(self, label: str) -> list[Node]:
        return [node for node in self.all_nodes() if fits(label, node.labels())]

    def all_nodes(self) -> list[Node]:
        """Return the Jenkins host, then the agents."""
        self.master.config.label = self.knobs.master_label
        self.master.config.executors = self.knobs.master_executors
        return [self.master, *self.nodes.values()]

    def blocked_by(self, job: Job) -> Build | None:
        """Return the running build that a job without concurrent builds waits for."""
        if job.concurrent:
            return None
        return next((build for build in job.builds if build.result is None), None)

    def _dispatch(self) -> None:
        with self.lock:
            if self.quieting_down or time.monotonic() < self.up_at:
                return
            if not self.queue:
                return
            free = [node for node in self.all_nodes() if self._has_room(node)]
            candidates: dict[str, list[Node]] = {}
            for item in list(self.queue):
                if self.blocked_by(item.job):
                    continue
                label = item.job.label
                if item.job.config and item.job.config.axes and not item.job.parent:
                    self._start(item, self.master, own_executor=True)
                    continue
                if label not in candidates:
                    candidates[label] = [node for node in free if _takes(node, label)]
                fit = candidates[label]
                while fit and not self._has_room(fit[0]):
                    fit.pop(0)
                if fit:
                    self._start(item, fit[0])

    def _has_room(self, node: Node) -> bool:
        busy = len(self.running.get(node.name, ())) >= node.config.executors
        return not (node.offline or busy or node.free_at > time.monotonic())

    def _start(self, item: Item, node: Node, own_executor: bool = False) -> None:
        """Start a build; the parent of a matrix has an extra executor, beside those of the Jenkins host."""
        job = item.job
        number = item.number or (job.builds[-1].number + 1 if job.builds else 1)
        running = self.running.setdefault(node.name, [])
        executor = -1 if own_executor else _first_free({build.executor for build in running})
        workspaces = {build.environment["WORKSPACE"] for build in running}
        environment = build_environment(item, node, number, executor, self.address(), self.root, workspaces)
        build = Build(job, number, item, node.name, executor, environment)
        build.console += [line for cause in item.causes for line in cause.lines()] + ["Running as SYSTEM"]
        others = " ".join(label for label in node.labels() if label != node.name)
        where = f"{node.name} ({others})" if others else node.name
        place = f"in workspace {environment['WORKSPACE']}"
        build.say(f"Building on master {place}" if node is self.master else f"Building remotely on {where} {place}")
        self.queue.remove(item)
        item.build = build
        job.builds.append(build)
        self.builds.append(build)
        if not own_executor:
            running.append(build)
        self._run(build, node)

    def _run(self, build: Build, node: Node) -> None:
        job, link = build.job, self._links.get(node.name)
        build.stepwise = bool(job.config or job.before or job.after or (link and job.script))
        if job.config and job.config.axes and not job.parent:
            self._in_background(build, MatrixRun(build, job.config, self).run)
        elif job.config:
            self._in_background(build, Run(build, job.config, self._place(build, node, link), self).run)
        elif build.stepwise:
            self._in_background(
                build, lambda: run_build(build, link, self.root, lambda result: self.finish(build, result))
            )
        else:
            self.schedule.later(job.seconds, lambda: self.finish(build, "SUCCESS"))

    def _in_background(self, build: Build, what: Callable[[], None]) -> None:
        def run() -> None:
            try:
                what()
            except Exception as err:  # the boundary of one build; Jenkins goes on
                log.exception("A build of the stand-in for Jenkins failed")
                build.say(f"FATAL: {err!r}")
                self.finish(build, "FAILURE")

        thread = threading.Thread(target=run, daemon=True)
        self._at_work = [*(one for one in self._at_work if one.is_alive()), thread]
        thread.start()

    def _place(self, build: Build, node: Node, link: paramiko.Transport | None) -> Place:
        def started(process: subprocess.Popen[bytes] | None) -> None:
            build.process = process

        if node is self.master:
            return HostPlace(self.root / "tmp", self.knobs.master_environment, started)
        return AgentPlace(link) if link else NowherePlace(build.job.seconds)

    def finish(self, build: Build, result: str, last: Callable[[], None] | None = None) -> None:
        """Record the end of a build; the first result stays. `last` is called once the result is set."""
        with self.lock:
            if build.result is not None:
                return
            build.ended_at = time.monotonic()
            build.result = result
            if last:
                last()
            build.say(f"Finished: {result}")
            if build in self.running[build.node_name]:
                self.running[build.node_name].remove(build)
            node = self.master if build.node_name == MASTER else self.nodes.get(build.node_name)
            if node:
                node.free_at = build.ended_at + self.knobs.gap_seconds
            build.item.done.set()
        self.schedule.later(self.knobs.gap_seconds, self._dispatch)

    def end_build(self, build: Build, result: str, last: Callable[[], None]) -> None:
        self.finish(build, result, last)

    def stop_build(self, build: Build) -> None:
        with self.lock:
            build.force("ABORTED", "Aborted by a person")
            if not build.job.config:
                kill_step(build)  # the build's own thread ends a step of a job from config.xml, first by SIGTERM
            if not build.stepwise:
                self.finish(build, "ABORTED")

    def _fail_builds(self, node: Node, lines: Sequence[str], at_once: bool) -> None:
        """Fail a lost node's builds after their post-build step; `at_once`: before it, unless the job has a config."""
        for build in list(self.running.get(node.name, [])):
            build.force("FAILURE", *lines)
            if (at_once and not build.job.config) or not build.stepwise:
                self.finish(build, "FAILURE")

    # The whole

    def restart(self) -> None:
        """Restart: nodes, labels, temporarilyOffline, jobs and the queue survive; builds and connections do not.

        As in cores before 2.483, temporarilyOffline is forgotten until the agent is back.
        """
        with self.lock:
            self.up_at = time.monotonic() + self.knobs.restart_seconds
            self.quieting_down = False
            self._end_builds()
            for node in self.nodes.values():
                self._cut(node, "connecting")
                node.kept = node.cause if node.temporarily_offline else node.kept
                node.temporarily_offline, node.cause = False, None
        self.schedule.later(self.knobs.restart_seconds, self._come_up)

    def _come_up(self) -> None:
        with self.lock:
            for node in self.nodes.values():
                self.launch(node)
        self.kick()

    def _end_builds(self) -> None:
        for build in [build for build in self.builds if build.result is None]:
            build.crashed = True
            build.force("FAILURE")  # what Jenkins assumes of a build without a result
            kill_step(build)
            self.finish(build, "FAILURE")

    def close(self) -> None:
        """End everything that it has started on this host and on the nodes."""
        with self.lock:
            self.quieting_down = True
            self._end_builds()
            for node in self.nodes.values():
                self._cut(node, "disconnected")
        # A build can have started a command just after the commands were killed: its thread ends that one.
        deadline = time.monotonic() + END_SECONDS
        for thread in self._at_work:
            thread.join(max(0.0, deadline - time.monotonic()))


def _channel_closed(name: str) -> tuple[str, ...]:
    return (
        "FATAL: command execution failed",
        "Command Close created at",
        "Caused: hudson.remoting.Channel$OrderlyShutdown",
        f"Caused: java.io.IOException: Backing channel '{name}' is disconnected.",
    )


def _takes(node: Node, label: str) -> bool:
    """Return whether a node runs jobs of this label; a job without one runs on nodes that are not exclusive."""
    return fits(label, node.labels()) if label else not node.config.exclusive


def _first_free(taken: set[int]) -> int:
    return next(number for number in itertools.count() if number not in taken)
