"""A job read from its config.xml, as far as the stand-in for Jenkins runs it.

Elements whose plugin is not installed are left out silently, as Jenkins does when it loads a job. Elements that Jenkins
would honour but the stand-in does not are kept by name: each build reports them on its console. The names and meanings
of the elements are from the sources of Jenkins and its plugins; the recordings have no run of such a job.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from tests.pocketjenkins.plugins import resolves

TRIGGER = "hudson.plugins.parameterizedtrigger."
DEFAULT_EXCLUDES = ("**/*~", "**/.git", "**/.git/**", "**/.svn/**", "**/.DS_Store")  # those of Ant's that can match
NO_EFFECT_HERE = {  # about keeping, timing and displaying builds, which tests do not need
    "jenkins.model.BuildDiscarderProperty",
    "hudson.triggers.TimerTrigger",
    "hudson.plugins.timestamper.TimestamperBuildWrapper",
    "org.jenkinsci.plugins.workflow.job.properties.DisableResumeJobProperty",
}
MATRIX_RIGHTS = "hudson.security.AuthorizationMatrixProperty"


class BadJobError(Exception):
    """A config.xml with which Jenkins answers 500."""


@dataclass(frozen=True)
class Parameter:
    """A defined parameter; `kind` is the class without "Definition"."""

    kind: str
    name: str
    default: str
    description: str = ""
    choices: tuple[str, ...] = ()

    @property
    def secret(self) -> bool:
        return "Password" in self.kind


@dataclass(frozen=True)
class Shell:
    """Execute shell."""

    command: str
    unstable_return: int | None = None


@dataclass(frozen=True)
class Blocking:
    """How bad the triggered build's result must be for the step to fail, the build to be unstable, or it to fail."""

    step: str | None
    unstable: str | None
    failure: str | None


@dataclass(frozen=True)
class Trigger:
    """A configuration of the parameterized trigger. `given`: property texts, or None for the build's own parameters."""

    projects: str
    condition: str
    given: tuple[str | None, ...]
    with_no_parameters: bool = False
    blocking: Blocking | None = None


@dataclass(frozen=True)
class TriggerStep:
    """The configurations of one "Trigger/call builds on other projects"."""

    triggers: tuple[Trigger, ...]


@dataclass(frozen=True)
class PlainTrigger:
    """Build other projects (of the core)."""

    projects: str
    threshold: str


@dataclass(frozen=True)
class Archive:
    """Archive the artifacts."""

    artifacts: str
    excludes: str
    default_excludes: bool
    allow_empty: bool
    only_if_successful: bool


@dataclass(frozen=True)
class Report:
    """Publish JUnit test result report."""

    results: str
    allow_empty: bool


@dataclass(frozen=True)
class Wipe:
    """Delete the workspace, after the build."""


@dataclass(frozen=True)
class Timeout:
    """Abort the build if it is stuck."""

    minutes: float
    result: str


@dataclass(frozen=True)
class Axis:
    """An axis of a matrix; with `by_label`, its values choose nodes."""

    name: str
    values: tuple[str, ...]
    by_label: bool


Builder = Shell | TriggerStep
Publisher = Archive | Report | Wipe


@dataclass(frozen=True)
class JobConfig:
    """Everything that a job does."""

    kind: str
    label: str = ""
    concurrent: bool = False
    disabled: bool = False
    description: str = ""
    parameters: tuple[Parameter, ...] = ()
    rights: tuple[tuple[str, str], ...] = ()  # user, right such as "Item.Read"
    builders: tuple[Builder, ...] = ()
    publishers: tuple[Publisher, ...] = ()
    triggers: tuple[Trigger | PlainTrigger, ...] = ()
    timeout: Timeout | None = None
    display_name: str = ""
    wipe_first: bool = False
    axes: tuple[Axis, ...] = ()
    sequential: bool = False
    unmodelled: tuple[str, ...] = ()


@dataclass
class Reader:
    """Reads one config.xml, with the plugins that are installed."""

    installed: Mapping[str, str]
    unmodelled: list[str] = field(default_factory=list)

    def read(self, text: str) -> JobConfig:
        """Return a JobConfig; raises BadJobError if the text is not XML or the kind of job is unknown."""
        try:
            # expat does not know XML 1.1, so the declaration is dropped
            root = ElementTree.fromstring(text.partition("?>")[2] if text.lstrip().startswith("<?xml") else text)
        except ElementTree.ParseError as err:
            raise BadJobError(f"com.thoughtworks.xstream.io.StreamException: {err}") from err
        if root.tag not in {"project", "matrix-project", "flow-definition"} or not resolves(root.tag, self.installed):
            raise BadJobError(f"com.thoughtworks.xstream.mapper.CannotResolveClassException: {root.tag}")
        publishers = list(self._known(root.find("publishers")))
        wrappers = {element.tag.rpartition(".")[2]: element for element in self._known(root.find("buildWrappers"))}
        return JobConfig(
            kind=root.tag,
            label=(root.findtext("assignedNode") or "").strip(),
            concurrent=_true(root, "concurrentBuild"),
            disabled=_true(root, "disabled"),
            description=root.findtext("description") or "",
            parameters=tuple(self._parameters(root.find("properties"))),
            rights=tuple(self._rights(root.find("properties"))),
            builders=tuple(self._builders(root.find("builders"))),
            publishers=tuple(self._publishers(publishers)),
            triggers=tuple(_triggers_after(publishers)),
            timeout=_timeout(wrappers.pop("BuildTimeoutWrapper", None)),
            display_name=_display_name(wrappers.pop("BuildNameSetter", None)),
            wipe_first=wrappers.pop("PreBuildCleanup", None) is not None,
            axes=tuple(_axes(root.find("axes"))),
            sequential=root.findtext("executionStrategy/runSequentially") == "true",
            unmodelled=(*self.unmodelled, *(element.tag for element in wrappers.values()), *self._source(root)),
        )

    def _known(self, parent: Element | None) -> Iterator[Element]:
        for element in parent if parent is not None else ():
            if resolves(element.tag, self.installed) and element.tag not in NO_EFFECT_HERE:
                yield element

    def _source(self, root: Element) -> Iterator[str]:
        scm = root.find("scm")
        if scm is not None and scm.get("class", "") not in {"", "hudson.scm.NullSCM"}:
            yield scm.get("class", "")

    def _parameters(self, properties: Element | None) -> Iterator[Parameter]:
        for element in self._known(properties):
            if element.tag == MATRIX_RIGHTS:
                continue
            if element.tag != "hudson.model.ParametersDefinitionProperty":
                self.unmodelled.append(element.tag)
                continue
            for definition in self._known(element.find("parameterDefinitions")):
                yield _parameter(definition)

    def _rights(self, properties: Element | None) -> Iterator[tuple[str, str]]:
        """Yield the users' rights by project-based matrix authorization."""
        for element in self._known(properties):
            for one in element.findall("permission") if element.tag == MATRIX_RIGHTS else ():
                right, _, user = (one.text or "").removeprefix("USER:").partition(":")
                yield user, right.removeprefix("hudson.model.")

    def _builders(self, parent: Element | None) -> Iterator[Builder]:
        for element in self._known(parent):
            if element.tag == "hudson.tasks.Shell":
                unstable = (element.findtext("unstableReturn") or "").strip()
                yield Shell(element.findtext("command") or "", int(unstable) if unstable else None)
            elif element.tag == TRIGGER + "TriggerBuilder":
                yield TriggerStep(tuple(_trigger(one) for one in element.findall("configs/*")))
            else:
                self.unmodelled.append(element.tag)

    def _publishers(self, elements: list[Element]) -> Iterator[Publisher]:
        for element in elements:
            if element.tag == "hudson.tasks.ArtifactArchiver":
                yield Archive(
                    element.findtext("artifacts") or "",
                    element.findtext("excludes") or "",
                    element.findtext("defaultExcludes") != "false",
                    _true(element, "allowEmptyArchive"),
                    _true(element, "onlyIfSuccessful"),
                )
            elif element.tag == "hudson.tasks.junit.JUnitResultArchiver":
                yield Report(element.findtext("testResults") or "", _true(element, "allowEmptyResults"))
            elif element.tag == "hudson.plugins.ws__cleanup.WsCleanup":
                yield Wipe()
            elif element.tag not in {TRIGGER + "BuildTrigger", "hudson.tasks.BuildTrigger"}:
                self.unmodelled.append(element.tag)


def _true(element: Element, name: str) -> bool:
    return (element.findtext(name) or "").strip() == "true"


def _parameter(element: Element) -> Parameter:
    choices = tuple(one.text or "" for one in element.iter("string"))
    return Parameter(
        kind=element.tag.removesuffix("Definition"),
        name=element.findtext("name") or "",
        default=(choices or ("",))[0] if "Choice" in element.tag else element.findtext("defaultValue") or "",
        description=element.findtext("description") or "",
        choices=choices,
    )


def _trigger(element: Element) -> Trigger:
    given = [
        None if one.tag.endswith("CurrentBuildParameters") else one.findtext("properties") or ""
        for one in element.findall("configs/*")
        if one.tag in {TRIGGER + "CurrentBuildParameters", TRIGGER + "PredefinedBuildParameters"}
    ]
    block = element.find("block")
    thresholds = [f"{name}Threshold/name" for name in ("buildStepFailure", "unstable", "failure")]
    return Trigger(
        projects=element.findtext("projects") or "",
        condition=element.findtext("condition") or "ALWAYS",
        given=tuple(given),
        with_no_parameters=_true(element, "triggerWithNoParameters"),
        blocking=None if block is None else Blocking(*(block.findtext(path) for path in thresholds)),
    )


def _triggers_after(publishers: list[Element]) -> Iterator[Trigger | PlainTrigger]:
    for element in publishers:
        if element.tag == TRIGGER + "BuildTrigger":
            yield from (_trigger(one) for one in element.findall("configs/*"))
        elif element.tag == "hudson.tasks.BuildTrigger":
            yield PlainTrigger(element.findtext("childProjects") or "", element.findtext("threshold/name") or "SUCCESS")


def _timeout(element: Element | None) -> Timeout | None:
    minutes = None if element is None else element.findtext("strategy/timeoutMinutes")
    if element is None or not minutes:
        return None
    operations = [one.tag.rpartition(".")[2] for one in element.findall("operationList/*")]
    return Timeout(float(minutes), "FAILURE" if "FailOperation" in operations else "ABORTED")


def _display_name(element: Element | None) -> str:
    return "" if element is None else element.findtext("template") or ""


def _axes(parent: Element | None) -> Iterator[Axis]:
    for element in parent if parent is not None else ():
        values = tuple((one.text or "").strip() for one in element.findall("values/string"))
        yield Axis(element.findtext("name") or "", values, "Label" in element.tag)
