"""Jobs, queue items and builds of the Jenkins stand-in, and the steps of builds of jobs that tests describe."""

import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from tests.pocketjenkins.agent import run_script
from tests.pocketjenkins.jobxml import JobConfig

STOP_GRACE_SECONDS = 5.0


@dataclass
class Job:
    """A job, which does what its `config` says. A cell of a matrix is a job with a `parent`.

    A job that a test describes has no `config`: it runs `before` on the Jenkins host, then `script` on the node (or
    just takes `seconds`), then `after` on the host.
    """

    name: str
    label: str = ""
    before: list[str] = field(default_factory=list)
    script: str = ""
    after: list[str] = field(default_factory=list)
    seconds: float = 0.0
    environment: dict[str, str] = field(default_factory=dict)
    concurrent: bool = True
    kind: str = "hudson.model.FreeStyleProject"
    config_xml: str = "<project/>"
    config: JobConfig | None = None
    parent: "Job | None" = None
    cells: dict[str, "Job"] = field(default_factory=dict)
    builds: list["Build"] = field(default_factory=list)

    @property
    def disabled(self) -> bool:
        return self.config is not None and self.config.disabled

    @property
    def base_name(self) -> str:
        return self.name.rpartition("/")[2]

    @property
    def display_name(self) -> str:
        """The name for people; a cell's has the matrix and the values of the axes."""
        if self.parent is None:
            return self.name
        values = ",".join(part.partition("=")[2] for part in self.base_name.split(","))
        return f"{self.parent.name} \N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK} {values}"

    @property
    def path(self) -> str:
        """Its address, relative to that of Jenkins."""
        return f"{self.parent.path}{self.base_name}/" if self.parent else f"job/{self.name}/"

    @property
    def workspace(self) -> str:
        """Its folder among the workspaces of a node."""
        return self.name.replace("=", "/").replace(",", "/") if self.parent else self.name

    @property
    def build_kind(self) -> str:
        kinds = {
            "MatrixProject": "hudson.matrix.MatrixBuild",
            "MatrixConfiguration": "hudson.matrix.MatrixRun",
            "WorkflowJob": "org.jenkinsci.plugins.workflow.job.WorkflowRun",
        }
        return kinds.get(self.kind.rpartition(".")[2], "hudson.model.FreeStyleBuild")

    def color(self) -> str:
        done = next((build for build in reversed(self.builds) if build.result), None)
        colors = {"SUCCESS": "blue", "FAILURE": "red", "ABORTED": "aborted", "UNSTABLE": "yellow",
                  "NOT_BUILT": "notbuilt"}
        color = colors[done.result] if done and done.result else "notbuilt"
        return color + "_anime" if any(not build.result for build in self.builds) else color


@dataclass(frozen=True)
class Cause:
    """Why a build was started: by a person, or by a build of another job, with that build's causes."""

    user: str = ""
    project: str = ""
    number: int = 0
    before: tuple["Cause", ...] = ()

    @property
    def text(self) -> str:
        if self.project:
            return f'Started by upstream project "{self.project}" build number {self.number}'
        return f"Started by user {self.user}"

    def lines(self, indent: str = "") -> list[str]:
        """Return the first lines of the build's console."""
        more = [line for cause in self.before for line in cause.lines(indent + " ")]
        return [indent + self.text, *([f"{indent}originally caused by:", *more] if more else [])]


@dataclass
class Item:
    """An item of the queue, kept after the build has left it. `given`: the parameters as asked for, known or not."""

    id: int
    job: Job
    parameters: dict[str, str]
    causes: list[Cause]
    given: dict[str, str] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    number: int | None = None  # of a cell's build: that of its matrix
    since: float = field(default_factory=time.time)
    build: "Build | None" = None
    cancelled: bool = False
    done: threading.Event = field(default_factory=threading.Event)  # set when the build has ended or there will be none


@dataclass
class Build:
    """One build. `forced`: a result from outside that does not wait for the steps, as when the node was deleted."""

    job: Job
    number: int
    item: Item
    node_name: str
    executor: int
    environment: dict[str, str]
    started: float = field(default_factory=time.time)
    began_at: float = field(default_factory=time.monotonic)
    ended_at: float | None = None
    result: str | None = None
    forced: str | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    stepwise: bool = False  # a thread runs its steps, and ends it after the last one
    crashed: bool = False  # Jenkins went away during it: no further step runs
    process: subprocess.Popen[bytes] | None = None
    console: list[str] = field(default_factory=list)
    display_name: str = ""
    artifacts: list[str] = field(default_factory=list)
    tests: Counter[str] = field(default_factory=Counter)
    runs: list["Build"] = field(default_factory=list)  # of a matrix: the builds of its cells

    @property
    def full_name(self) -> str:
        return f"{self.job.display_name} {self.display_name}"

    def folder(self, root: Path) -> Path:
        """Return the folder in which Jenkins keeps the build's record."""
        return root / "jobs" / self.job.name / "builds" / str(self.number)

    def __post_init__(self) -> None:
        self.display_name = self.display_name or f"#{self.number}"

    def say(self, text: str) -> None:
        self.console.append(text)

    def duration_ms(self) -> int:
        return 0 if self.ended_at is None else max(1, round((self.ended_at - self.began_at) * 1000))

    def force(self, result: str, *lines: str) -> None:
        """End the build from outside; the first cause wins."""
        if self.forced is None and self.result is None:
            self.forced = result
            self.console.extend(lines)
        self.stop.set()


def run_build(build: Build, transport: paramiko.Transport | None, root: Path, finish: Callable[[str], None]) -> None:
    """Run all steps of a build, then call `finish` with the result.

    A build that was forced to end has its result already, but its post-build step still runs.
    """
    result = _run_steps(build, transport, root)
    if build.job.after and not build.crashed:
        _run_on_host(build, build.job.after, root, {"RESULT": build.forced or result})
    finish(build.forced or result)


def _run_steps(build: Build, transport: paramiko.Transport | None, root: Path) -> str:
    job = build.job
    if job.before and _run_on_host(build, job.before, root, {}, until=build.stop) != 0:
        build.say("Build step 'Execute on the Jenkins host' marked build as failure")
        return "FAILURE"
    if build.stop.is_set():
        return build.forced or "ABORTED"
    if transport is None or not job.script:
        build.stop.wait(job.seconds)
        return "SUCCESS"
    build.say(f"[{job.name}] $ /bin/bash -xe /tmp/jenkins{build.item.id}.sh")
    status = run_script(transport, job.script, build.environment, build.say, build.stop)
    if status is None and not build.stop.is_set():
        build.say("FATAL: command execution failed\nCaused: java.io.IOException: Unexpected termination of the channel")
    if status:
        build.say("Build step 'Execute shell' marked build as failure")
    return "SUCCESS" if status == 0 else "FAILURE"


def _run_on_host(build: Build, argv: Sequence[str], root: Path, extra: Mapping[str, str],
                 until: threading.Event | None = None) -> int:
    """Run a command on the Jenkins host with its output on the console; returns its exit status.

    Stopping the build kills a command that runs; `until` is set if the build was stopped just before.
    """
    environment = {**os.environ, **build.environment, **extra}
    words = [expand(word, environment) for word in argv]
    build.say(f"[{build.job.name}] $ {' '.join(words)}")
    try:
        process = subprocess.Popen(
            words,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as err:
        build.say(f"FATAL: cannot run {words[0]}: {err.strerror}")
        return 127
    build.process = process
    if until and until.is_set():
        kill_step(build)
    with process:
        assert process.stdout is not None
        for line in process.stdout:
            build.say(line.decode("utf-8", "replace").rstrip("\n"))
    build.process = None
    return process.returncode


def expand(word: str, environment: Mapping[str, str]) -> str:
    """Replace $NAME and ${NAME} if the variable exists; everything else stays."""

    def value(found: re.Match[str]) -> str:
        return environment.get(found[1] or found[2], found[0])

    return re.sub(r"\$(?:(\w+)|\{(\w+)\})", value, word)


def kill_step(build: Build) -> None:
    """Kill the command that a build runs on the Jenkins host, and what the command has started."""
    process = build.process
    if process is None or process.poll() is not None:
        return
    try:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(STOP_GRACE_SECONDS)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
