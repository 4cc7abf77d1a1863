"""The objects of Jenkins' JSON API, made from the model, with the keys of the recordings."""

from collections.abc import Callable
from typing import Any

from tests.pocketjenkins.actions import causes_of, definitions_of, parameters_of, tests_of
from tests.pocketjenkins.builds import Build, Item, Job
from tests.pocketjenkins.model import MASTER, Model
from tests.pocketjenkins.nodes import JNLP_LAUNCHER, USER_CAUSE, Node, OfflineCause
from tests.pocketjenkins.pages import quoted
from tests.pocketjenkins.tree import Export, Inline

MONITORS = ("SwapSpace", "TemporarySpace", "DiskSpace", "Architecture", "ResponseTime")
NO_MONITOR_DATA = {
    **{f"hudson.node_monitors.{name}Monitor": None for name in MONITORS},
    "hudson.node_monitors.ClockMonitor": None,
}
LOADS = ("available", "busy", "connecting", "defined", "idle", "online", "total")
DIAGRAM = Export({}, lambda: {"hour": {}, "min": {}, "sec10": {}})
LOAD = Export(
    {"_class": "hudson.model.Label$1"},
    lambda: {**{f"{name}Executors": DIAGRAM for name in LOADS}, "queueLength": DIAGRAM},
)
USER_PROPERTIES = (
    "jenkins.security.ApiTokenProperty",
    "com.cloudbees.plugins.credentials.UserCredentialsProvider$UserCredentialsProperty",
    "hudson.tasks.Mailer$UserProperty",
    "hudson.model.MyViewsProperty",
    "org.jenkinsci.plugins.displayurlapi.user.PreferredProviderUserProperty",
    "hudson.model.PaneStatusProperties",
    "jenkins.security.seed.UserSeedProperty",
    "hudson.search.UserSearchProperty",
    "hudson.model.TimeZoneProperty",
    "hudson.security.HudsonPrivateSecurityRealm$Details",
)


class Api:
    """Exports for one request.

    `url`: the address that the client used; `full`: whether it may see everything; `sees`: whether it may see a job.
    """

    def __init__(self, model: Model, url: str, full: bool, sees: Callable[[str], bool]) -> None:
        self.model = model
        self.url = url
        self.full = full
        self.sees = sees

    def root(self) -> Export:
        model = self.model
        jobs = [self.job(job) for name, job in sorted(model.jobs.items()) if self.sees(name)]
        view = Export({"_class": "hudson.model.AllView", "name": "all", "url": self.url})
        return Export(
            {
                "_class": "hudson.model.Hudson",
                "assignedLabels": [Export({"name": name}) for name in self._master().labels()],
                "mode": "NORMAL",
                "nodeDescription": "the master Jenkins node",
                "nodeName": "",
                "numExecutors": model.knobs.master_executors,
                "description": None,
                "jobs": jobs,
                "overallLoad": {},
                "primaryView": view,
                "quietingDown": model.quieting_down,
                "slaveAgentPort": -1,
                "unlabeledLoad": {"_class": "jenkins.model.UnlabeledLoadStatistics"},
                "url": self.url,
                "useCrumbs": True,
                "useSecurity": True,
                "views": [view] if self.sees("") else [],
            }
        )

    def user(self, name: str) -> Export:
        extra: dict[str, dict[str, Any]] = {
            "hudson.tasks.Mailer$UserProperty": {"address": None},
            "hudson.search.UserSearchProperty": {"insensitiveSearch": True},
        }
        return Export(
            {
                "_class": "hudson.model.User",
                "absoluteUrl": f"{self.url}user/{name}",
                "description": None,
                "fullName": name,
                "id": name,
                "property": [{"_class": kind, **extra.get(kind, {})} for kind in USER_PROPERTIES],
            }
        )

    def computers(self) -> Export:
        nodes = list(self.model.nodes.values())
        nodes.sort(key=lambda node: node.name)
        working = [node for node in nodes if not node.offline]
        busy = sum(len(self.model.running.get(name, ())) for name in [MASTER, *(node.name for node in working)])
        return Export(
            {
                "_class": "hudson.model.ComputerSet",
                "busyExecutors": busy,
                "computer": Inline([self.master(), *(self.computer(node) for node in nodes)]),
                "displayName": "Nodes",
                "totalExecutors": self.model.knobs.master_executors + sum(node.config.executors for node in working),
            }
        )

    def _master(self) -> Node:
        return self.model.all_nodes()[0]

    def master(self) -> Export:
        builds = {build.executor: build for build in self.model.running.get(MASTER, [])}
        executors = self.model.knobs.master_executors
        return Export(
            {
                "_class": "hudson.model.Hudson$MasterComputer",
                "actions": [],
                "assignedLabels": [Export({"name": name}) for name in self._master().labels()],
                "description": "the master Jenkins node",
                "displayName": "master",
                "executors": [
                    _executor(number, self.build(builds[number]) if number in builds else None)
                    for number in range(executors)
                ],
                "icon": "computer.png",
                "iconClassName": "icon-computer",
                "idle": not builds,
                "jnlpAgent": False,
                "launchSupported": True,
                "loadStatistics": LOAD,
                "manualLaunchAllowed": True,
                "monitorData": dict(NO_MONITOR_DATA) if self.full else {},
                "numExecutors": executors,
                "offline": False,
                "offlineCause": None,
                "offlineCauseReason": "",
                "oneOffExecutors": [],
                "temporarilyOffline": False,
            }
        )

    def computer(self, node: Node) -> Export:
        running = self.model.running.get(node.name, [])
        builds = {build.executor: build for build in running}
        icon = _icon(node)
        jnlp = node.config.launcher.kind == JNLP_LAUNCHER
        return Export(
            {
                "_class": "hudson.slaves.SlaveComputer",
                "actions": [],
                "assignedLabels": [self.label(name) for name in node.labels()],
                "description": node.config.description,
                "displayName": node.name,
                "executors": [
                    _executor(number, self.build(builds[number]) if number in builds else None)
                    for number in range(node.config.executors)
                ],
                "icon": "computer-flash.gif" if node.launch else f"{icon}.png",
                "iconClassName": f"icon-{icon}",
                "idle": not running,
                "jnlpAgent": jnlp,
                "launchSupported": not jnlp,
                "loadStatistics": LOAD,
                "manualLaunchAllowed": True,
                "monitorData": dict(NO_MONITOR_DATA) if self.full else {},
                "numExecutors": node.config.executors,
                "offline": node.offline,
                "offlineCause": _cause(node.cause) if node.cause else None,
                "offlineCauseReason": node.cause.reason if node.cause else "",
                "oneOffExecutors": [],
                "temporarilyOffline": node.temporarily_offline,
                "absoluteRemotePath": node.config.remote_fs if node.online and self.full else None,
            }
        )

    def label(self, name: str) -> Export:
        def more() -> dict[str, Any]:
            nodes = self.model.label_nodes(name)
            working = [node for node in nodes if not node.offline]
            busy = sum(len(self.model.running.get(node.name, ())) for node in working)
            total = sum(node.config.executors for node in working)
            jobs = [job for _, job in sorted(self.model.jobs.items()) if job.label == name and self.sees(job.name)]
            return {
                "actions": [],
                "busyExecutors": busy,
                "clouds": [],
                "description": None,
                "idleExecutors": total - busy,
                "loadStatistics": LOAD,
                "nodes": [self.slave(node) for node in nodes],
                "offline": not working,
                "tiedJobs": [self.job(job) for job in jobs],
                "totalExecutors": total,
                "propertiesList": [],
            }

        return Export({"name": name}, more)

    def slave(self, node: Node) -> Export:
        return Export(
            {"_class": "hudson.slaves.DumbSlave", "nodeName": node.name},
            lambda: {
                "assignedLabels": [self.label(name) for name in node.labels()],
                "mode": "EXCLUSIVE" if node.config.exclusive else "NORMAL",
                "nodeDescription": node.config.description,
                "numExecutors": node.config.executors,
            },
        )

    def job(self, job: Job) -> Export:
        url = f"{self.url}{job.path}"
        reference = {"_class": job.kind, "name": job.base_name, "url": url, "color": job.color()}
        return Export(reference, lambda: self._job_details(job), lambda: {"allBuilds": self._builds_of(job)})

    def _builds_of(self, job: Job) -> list[Export]:
        return [self.build(build) for build in reversed(job.builds)]

    def _job_details(self, job: Job) -> dict[str, Any]:
        builds = list(reversed(job.builds))
        done = [build for build in builds if build.result]
        queued = next((item for item in self.model.queue if item.job is job), None)

        def latest(found: list[Build], *results: str) -> Export | None:
            return next((self.build(build) for build in found if not results or build.result in results), None)

        return {
            "actions": [
                {},
                {},
                {"_class": "org.jenkinsci.plugins.displayurlapi.actions.JobDisplayAction"},
                {"_class": "com.cloudbees.plugins.credentials.ViewCredentialsAction"},
            ],
            "description": (job.config.description or None) if job.config else None,
            "displayName": job.name,
            "displayNameOrNull": None,
            "fullDisplayName": job.name,
            "fullName": job.name,
            "buildable": not job.disabled,
            "builds": self._builds_of(job),
            "firstBuild": latest(builds[-1:]),
            "healthReport": [],
            "inQueue": queued is not None,
            "keepDependencies": False,
            "lastBuild": latest(builds),
            "lastCompletedBuild": latest(done),
            "lastFailedBuild": latest(done, "FAILURE"),
            "lastStableBuild": latest(done, "SUCCESS"),
            "lastSuccessfulBuild": latest(done, "SUCCESS", "UNSTABLE"),
            "lastUnstableBuild": latest(done, "UNSTABLE"),
            "lastUnsuccessfulBuild": latest(done, "FAILURE", "UNSTABLE", "ABORTED"),
            "nextBuildNumber": builds[0].number + 1 if builds else 1,
            "property": definitions_of(job.config.parameters) if job.config else [],
            "queueItem": self.item(queued) if queued else None,
            "concurrentBuild": job.concurrent,
            "disabled": job.disabled,
            "downstreamProjects": [],
            "labelExpression": job.label or None,
            **({"activeConfigurations": [self.job(cell) for cell in job.cells.values()]} if job.cells else {}),
            "scm": {"_class": "hudson.scm.NullSCM"},
            "upstreamProjects": [],
        }

    def build(self, build: Build) -> Export:
        url = f"{self.url}{build.job.path}{build.number}/"
        reference = {"_class": build.job.build_kind, "number": build.number, "url": url}
        return Export(reference, lambda: self._build_details(build))

    def _build_details(self, build: Build) -> dict[str, Any]:
        durations = [other.duration_ms() for other in build.job.builds if other.result]
        display = {"_class": "org.jenkinsci.plugins.displayurlapi.actions.RunDisplayAction"}
        return {
            "actions": [*parameters_of(build.item), *causes_of(build.item), {}, display, *tests_of(build)],
            "artifacts": [
                {"displayPath": name.rpartition("/")[2], "fileName": name.rpartition("/")[2], "relativePath": name}
                for name in build.artifacts
            ],
            "building": build.result is None,
            "description": None,
            "displayName": build.display_name,
            "duration": build.duration_ms(),
            "estimatedDuration": sum(durations) // len(durations) if durations else -1,
            "executor": None if build.result else {},
            "fullDisplayName": build.full_name,
            "id": str(build.number),
            "keepLog": False,
            "queueId": build.item.id,
            "result": build.result,
            "timestamp": round(build.started * 1000),
            "builtOn": "" if build.node_name == MASTER else build.node_name,
            "changeSet": {"_class": "hudson.scm.EmptyChangeLogSet", "items": [], "kind": None},
            "culprits": [],
            **({"runs": [self.build(run) for run in build.runs]} if build.runs else {}),
        }

    def queue(self) -> Export:
        items = [self.item(item) for item in self.model.queue if self.sees(item.job.name.partition("/")[0])]
        return Export({"_class": "hudson.model.Queue", "discoverableItems": [], "items": Inline(items)})

    def item(self, item: Item) -> Export:
        shown: dict[str, Any] = {
            "_class": "hudson.model.Queue$LeftItem",
            "actions": parameters_of(item) + causes_of(item),
            "blocked": False,
            "buildable": False,
            "id": item.id,
            "inQueueSince": round(item.since * 1000),
            "params": "".join(f"\n{name}={value}" for name, value in item.parameters.items()),
            "stuck": False,
            "task": self.job(item.job),
            "url": f"queue/item/{item.id}/",
            "why": None,
        }
        if item.build or item.cancelled:
            executable = self.build(item.build) if item.build else None
            return Export({**shown, "cancelled": item.cancelled, "executable": executable})
        if blocker := self.model.blocked_by(item.job):
            why = f"Build #{blocker.number} is already in progress"
            return Export({**shown, "_class": "hudson.model.Queue$BlockedItem", "blocked": True, "why": why})
        nodes = self.model.label_nodes(item.job.label)
        return Export(
            {
                **shown,
                "_class": "hudson.model.Queue$BuildableItem",
                "buildable": True,
                "stuck": bool(item.job.label) and all(node.offline for node in nodes),
                "why": self._why(item.job.label, nodes),
                "buildableStartMilliseconds": round(item.since * 1000),
                "pending": False,
            }
        )

    def _why(self, label: str, nodes: list[Node]) -> str:
        """Return why a buildable item waits, in the words of hudson.model.Queue."""
        if self.model.quieting_down:
            return "Jenkins is about to shut down"
        if not label or (not self.model.nodes and nodes):
            return "Waiting for next available executor"
        if not nodes:
            return f"There are no nodes with the label {quoted(label)}"
        if all(node.offline for node in nodes):
            one = f"{quoted(nodes[0].name)} is offline"
            return one if len(nodes) == 1 else f"All nodes of label {quoted(label)} are offline"
        where = nodes[0].name if len(nodes) == 1 else label
        return f"Waiting for next available executor on {quoted(where)}"


def _icon(node: Node) -> str:
    if node.temporarily_offline:
        return "computer-user-offline"
    return "computer" if node.online else "computer-x"


def _cause(cause: OfflineCause) -> Export:
    """A person's cause has a description, as in the sources of the real one."""
    text = {"description": cause.description} if cause.kind == USER_CAUSE else {}
    return Export({"_class": cause.kind}, lambda: text)


def _executor(number: int, build: Export | None) -> Export:
    return Export(
        {},
        lambda: {
            "currentExecutable": build,
            "idle": build is None,
            "likelyStuck": False,
            "number": number,
            "progress": -1,
        },
    )
