"""The build of a job from config.xml: wrappers, builders, publishers, and the jobs triggered after its end.

The order and the messages are from the sources of Jenkins 2.263 and its plugins, not from recordings:
- the first builder that fails ends the builders; publishers always run after them; other jobs are triggered once the
  result is set (a build that has triggered others shows its result already);
- a publisher of the parameterized trigger without parameters to pass does nothing, unless triggerWithNoParameters;
- "block": a triggered build at least as bad as the step's threshold fails the step; otherwise the other two thresholds
  decide the build's result. An aborted build leaves the builds that it has triggered running.
Not modelled: pipelines, whose builds fail; the quiet period (the recorded Jenkins had none); SCM; other builders and
publishers; stale test reports; `triggerFromChildProjects`.
"""

import re
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

from tests.pocketjenkins.builds import Build, Cause, Item, Job
from tests.pocketjenkins.jobxml import (
    DEFAULT_EXCLUDES,
    Archive,
    Builder,
    JobConfig,
    PlainTrigger,
    Publisher,
    Report,
    Shell,
    Timeout,
    Trigger,
    TriggerStep,
)
from tests.pocketjenkins.parameters import (
    ORDINALS,
    IllegalChoiceError,
    is_met,
    read_properties,
    replace_macros,
    worse,
)
from tests.pocketjenkins.workplace import WIPE, Place, PlaceLostError, chosen, fetch, workspace_files

POLL_SECONDS = 0.05
NAMES = {
    Shell: "Execute shell",
    TriggerStep: "Trigger/call builds on other projects",
    Archive: "Archive the artifacts",
    Report: "Publish JUnit test result report",
}


class StepError(Exception):
    """A step cannot go on; the text is that of the console."""


class Jenkins(Protocol):
    """What a build needs from Jenkins."""

    root: Path

    def find_job(self, name: str) -> Job | None:
        """Return the job of that name, None if there is none."""

    def add_build(self, job: Job, given: Mapping[str, str], cause: Cause) -> Item:
        """Queue a build; raises IllegalChoiceError for a value that is not among a parameter's choices."""

    def minute_seconds(self) -> float:
        """Return the length of a minute of a time limit."""

    def end_build(self, build: Build, result: str, last: Callable[[], None]) -> None:
        """Record the end of a build; `last` is called once its result is set."""


class Run:
    """One build."""

    def __init__(self, build: Build, config: JobConfig, place: Place, jenkins: Jenkins) -> None:
        self.build = build
        self.config = config
        self.place = place
        self.jenkins = jenkins
        self.result = "SUCCESS"
        self.triggered: list[Build] = []

    def run(self) -> None:
        """Run the build, from the first builder to the end."""
        for name in self.config.unmodelled:
            self.build.say(f"The stand-in for Jenkins does not model {name}")
        if self.config.kind == "flow-definition":  # so that no test takes a pipeline that did not run for a success
            self.build.say("ERROR: The stand-in for Jenkins runs no pipelines")
            self._set("FAILURE")
        self._name()
        with _TimeLimit(self.build, self.config.timeout, self.jenkins.minute_seconds()):
            self._build()
        self.place.close()
        if self.build.crashed:
            return
        self._set(self.build.forced or "SUCCESS")
        for publisher in self.config.publishers:
            self._publish(publisher)
        self.jenkins.end_build(self.build, self.result, self.trigger_others)

    def _set(self, result: str) -> None:
        self.result = worse(self.result, result)

    def _name(self) -> None:
        """Set the build's name; of the token macros, only variables and ENV work; ENV gives '' for an unset one."""
        template = self.config.display_name
        if template:
            known = self.build.environment
            template = re.sub(r'\$\{ENV, *var="(\w+)"\}', lambda found: known.get(found[1], ""), template)
            self.build.display_name = replace_macros(template, known)
            self.build.say(f"New run name is '{self.build.display_name}'")

    def _build(self) -> None:
        if self.config.wipe_first:
            self.build.say("[WS-CLEANUP] Deleting project workspace...")
            with suppress(PlaceLostError):
                self.place.capture(WIPE, self.build.environment)
        for builder in self.config.builders:
            if self.build.stop.is_set() or not self._perform(builder):
                return

    def _perform(self, builder: Builder) -> bool:
        """Run a builder; returns whether the next one can run."""
        try:
            done = self._shell(builder) if isinstance(builder, Shell) else self._trigger_step(builder)
        except (StepError, IllegalChoiceError) as err:
            self.build.say(f"ERROR: {err}")
            done = False
        if self.build.stop.is_set():
            return False
        if not done:
            self.build.say(f"Build step '{NAMES[type(builder)]}' marked build as failure")
            self._set("FAILURE")
        return done

    def _shell(self, shell: Shell) -> bool:
        status = self.place.run(shell.command, self.build.environment, self.build.say, self.build.stop)
        if status is None and not self.build.stop.is_set():
            self.build.say("FATAL: command execution failed\nCaused: java.io.IOException: Unexpected termination of "
                           "the channel")
        if status and status == shell.unstable_return:
            self.build.say("Build step 'Execute shell' changed build result to UNSTABLE")
            self._set("UNSTABLE")
            return True
        return status == 0

    # Other jobs, within the build

    def _trigger_step(self, step: TriggerStep) -> bool:
        done = True
        for trigger in step.triggers:
            if not is_met(trigger.condition, self.result):
                continue
            jobs = self._jobs(trigger)
            given = self._given(trigger)
            able = [job for job in jobs if not job.disabled]
            items = [self.jenkins.add_build(job, given or {}, self._cause()) for job in able]
            if trigger.blocking is None:
                self.build.say(f"Triggering projects: {', '.join(job.name for job in jobs)}")
                continue
            for job in jobs:
                if job.disabled:
                    self.build.say(f"Skipping {job.name}. The project is either disabled or the configuration has not "
                                   "been saved yet.")
            for item in items:
                done = self._await(item, trigger, done)
                if self.build.stop.is_set():
                    return False
        return done

    def _jobs(self, trigger: Trigger) -> list[Job]:
        """Return the jobs of a trigger; raises StepError if one does not exist."""
        names = [name.strip() for name in replace_macros(trigger.projects, self.build.environment).split(",")]
        found = [(name, self.jenkins.find_job(name)) for name in names if name]
        if not found:
            raise StepError("Build aborted. No projects to trigger. Check your configuration!")
        missing = [name for name, job in found if job is None]
        if missing:
            listed = "".join(f" > {name}\n" for name in missing)
            raise StepError(f"Build aborted. Can't trigger undefined projects. {len(missing)} of the below project(s) "
                            f"can't be resolved:\n{listed}Check your configuration!")
        return [job for _, job in found if job is not None]

    def _await(self, item: Item, trigger: Trigger, done: bool) -> bool:
        """Wait for the build of an item and apply its result; returns whether the step is still good."""
        assert trigger.blocking is not None
        self.build.say(f"Waiting for the completion of {item.job.name}")
        while not item.done.wait(POLL_SECONDS) and not self.build.stop.is_set():
            pass
        if self.build.stop.is_set():
            return False
        if item.build is None or item.build.result is None:
            raise StepError(f"{item.job.name} aborted.")
        other, result = item.build, item.build.result
        self.build.say(f"{other.full_name} completed. Result was {result}")
        self.triggered.append(other)
        self.build.environment.update(triggered_variables(self.triggered))
        blocking = trigger.blocking
        if not done or _reached(result, blocking.step):
            return False
        if _reached(result, blocking.failure):
            self._set("FAILURE")
        elif _reached(result, blocking.unstable):
            self._set("UNSTABLE")
        return True

    def _given(self, trigger: Trigger) -> dict[str, str] | None:
        """Return the parameters that a trigger passes; None if it has none to pass."""
        given: dict[str, str] | None = None
        for text in trigger.given:
            if text is not None:
                values = {name: replace_macros(value, self.build.environment)
                          for name, value in read_properties(text).items()}
            elif self.build.item.parameters:
                values = self.build.item.parameters
            else:
                self.build.say("[parameterized-trigger] Current build has no parameters.")
                continue
            given = {**(given or {}), **values}
        return given

    def _cause(self) -> Cause:
        return Cause(project=self.build.job.name, number=self.build.number, before=tuple(self.build.item.causes))

    # After the end

    def trigger_others(self) -> None:
        """Trigger the jobs that are due after a build with this result."""
        for trigger in () if self.build.job.parent else self.config.triggers:  # only the matrix triggers, not its cells
            if isinstance(trigger, PlainTrigger):
                due, given = ORDINALS[self.result] <= ORDINALS[trigger.threshold], None
            else:
                due = is_met(trigger.condition, self.result)
                given = self._given(trigger) if due else None
                due = due and (given is not None or trigger.with_no_parameters)
            for name in replace_macros(trigger.projects, self.build.environment).split(",") if due else ():
                self._trigger(name.strip(), given or {})

    def _trigger(self, name: str, given: Mapping[str, str]) -> None:
        job = self.jenkins.find_job(name)
        if job is None:
            return  # the real one has no such dependency, and prints nothing
        if job.disabled:
            self.build.say(f"{name} is disabled. Triggering skipped")
            return
        try:
            self.jenkins.add_build(job, given, self._cause())
        except IllegalChoiceError as err:
            self.build.say(f"ERROR: {err}")
            return
        self.build.say(f"Triggering a new build of {name}")

    def _publish(self, publisher: Publisher) -> None:
        try:
            if isinstance(publisher, Archive):
                self._archive(publisher)
            elif isinstance(publisher, Report):
                self._report(publisher)
            else:
                self.build.say("[WS-CLEANUP] Deleting project workspace...")
                self.place.capture(WIPE, self.build.environment)
        except PlaceLostError:
            name = NAMES.get(type(publisher), "Delete workspace when build is done")
            self.build.say(f"ERROR: Step \N{LEFT SINGLE QUOTATION MARK}{name}\N{RIGHT SINGLE QUOTATION MARK} failed: "
                           f"no workspace for {self.build.full_name}")
            self._set("FAILURE")
        except StepError as err:
            self.build.say(f"ERROR: {err}")
            self._set("FAILURE")

    def _archive(self, archive: Archive) -> None:
        if archive.only_if_successful and ORDINALS[self.result] > ORDINALS["UNSTABLE"]:
            self.build.say("Skipped archiving because build is not successful")
            return
        self.build.say("Archiving artifacts")
        excludes = [one for one in re.split(r"[,\s]+", archive.excludes) if one]
        excludes += DEFAULT_EXCLUDES if archive.default_excludes else ()
        patterns = replace_macros(archive.artifacts, self.build.environment)
        names = chosen(workspace_files(self.place, self.build.environment), patterns, excludes)
        for name, data in fetch(self.place, self.build.environment, names).items():
            target = self.build.folder(self.jenkins.root) / "archive" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            self.build.artifacts.append(name)
        # As in Jenkins, a build that has failed already prints nothing about missing artifacts.
        if not names and ORDINALS[self.result] <= ORDINALS["UNSTABLE"]:
            text = f'No artifacts found that match the file pattern "{archive.artifacts}". Configuration error?'
            if not archive.allow_empty:
                raise StepError(text)
            self.build.say(text)

    def _report(self, report: Report) -> None:
        self.build.say("Recording test results")
        names = chosen(workspace_files(self.place, self.build.environment), report.results)
        if not names:
            if self.result == "FAILURE":
                return
            text = "No test report files were found. Configuration error?"
            if not report.allow_empty:
                raise StepError(text)
            self.build.say(text)
            return
        for data in fetch(self.place, self.build.environment, names).values():
            try:
                cases = list(ElementTree.fromstring(data).iter("testcase"))
            except ElementTree.ParseError as err:
                raise StepError(f"Failed to read test report file: {err}") from err
            self.build.tests["totalCount"] += len(cases)
            failed = sum(case.find("failure") is not None or case.find("error") is not None for case in cases)
            self.build.tests["failCount"] += failed
            self.build.tests["skipCount"] += sum(case.find("skipped") is not None for case in cases)
        if not self.build.tests["totalCount"] and not report.allow_empty:
            raise StepError("None of the test reports contained any result")
        if self.build.tests["failCount"]:
            self._set("UNSTABLE")


class _TimeLimit:
    """Ends a build that takes too long, as the build timeout plugin does."""

    def __init__(self, build: Build, timeout: Timeout | None, minute_seconds: float) -> None:
        self._timer: threading.Timer | None = None
        if timeout:
            word = "failed" if timeout.result == "FAILURE" else "aborted"
            text = f"Build timed out (after {timeout.minutes:g} minutes). Marking the build as {word}."
            seconds = timeout.minutes * minute_seconds
            self._timer = threading.Timer(seconds, build.force, (timeout.result, text, "Build was aborted"))
            self._timer.daemon = True

    def __enter__(self) -> None:
        if self._timer:
            self._timer.start()

    def __exit__(self, *error: object) -> None:
        if self._timer:
            self._timer.cancel()


def _reached(result: str, threshold: str | None) -> bool:
    return threshold in ORDINALS and ORDINALS[result] >= ORDINALS[str(threshold)]


def triggered_variables(builds: list[Build]) -> dict[str, str]:
    """Return the variables about builds that earlier steps have triggered and waited for."""
    variables: dict[str, str] = {}
    seen: dict[str, list[Build]] = {}
    for build in builds:
        seen.setdefault(re.sub(r"[^a-zA-Z0-9]+", "_", build.job.name), []).append(build)
        variables["LAST_TRIGGERED_JOB_NAME"] = re.sub(r"[^a-zA-Z0-9]+", "_", build.job.name)
    for name, ones in seen.items():
        variables[f"TRIGGERED_BUILD_NUMBER_{name}"] = str(ones[-1].number)
        variables[f"TRIGGERED_BUILD_NUMBERS_{name}"] = ",".join(str(one.number) for one in ones)
        variables[f"TRIGGERED_BUILD_RESULT_{name}"] = str(ones[-1].result)
        variables[f"TRIGGERED_BUILD_RUN_COUNT_{name}"] = str(len(ones))
        variables |= {f"TRIGGERED_BUILD_RESULT_{name}_RUN_{one.number}": str(one.result) for one in ones}
    return {**variables, "TRIGGERED_JOB_NAMES": ",".join(seen)}
