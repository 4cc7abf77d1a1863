#!/usr/bin/env python3
"""Say what a Jenkins lacks for the jobs of this folder: plugins, credential, label, rights. Changes nothing there.

If several hosts work on the pool (docs/several-hosts.md), each notes in its database what it has, and this compares
them.

Run by hand on the host of vm.db, before jobs are loaded, and again afterwards. Reads the secure configuration, vm.db,
defaults.yaml beside this file, and the jenkins_jobs.ini with which jenkins-jobs loads jobs (--conf, or where
jenkins-jobs looks itself). The user in that must be an administrator for the whole answer: check.groovy looks up rights
and credential in Jenkins' script console.

Prints a line for each thing: ok, missing, wrong (with what is expected), or unknown (with the reason).

Exit codes: 0 all is well, 1 something is missing, wrong or unknown, 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gateconfig
import gateprocess
import vmdatabase
from gateconfig import JenkinsConfig
from gateprocess import ConfigError
from jenkinsnodes import IN_ENGLISH, QUEUE, queued, response_of, short_reason
from pool import demand

if TYPE_CHECKING:
    import jenkins
    import requests

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
CONF_PLACES = ("~/.config/jenkins_jobs/jenkins_jobs.ini", "/etc/jenkins_jobs/jenkins_jobs.ini")  # as jenkins-jobs does
CALL_SECONDS = 30
FOLDERS_DEEP = 5
OK, MISSING, WRONG, UNKNOWN = "ok", "missing", "wrong", "unknown"

# The oldest versions known to have what these jobs use.
CORE_PLUGINS = {"credentials": "2.3", "ssh-credentials": "1.18", "ssh-slaves": "1.31", "matrix-project": "1.18",
                "junit": "1.29"}
FULL_PLUGINS = {"parameterized-trigger": "2.35", "build-timeout": "1.19", "timestamper": "1.9",
                "build-name-setter": "2.0"}
PIPELINE_PLUGINS = {"workflow-job": "2.40", "workflow-cps": "2.80", "workflow-durable-task-step": "2.35",
                    "workflow-basic-steps": "2.20", "pipeline-build-step": "2.12", "timestamper": "1.9"}
GERRIT_PLUGINS = {"gerrit-trigger": "2.30"}
SCRIPT_RIGHTS = ("Overall/Read", "Agent/Create", "Agent/Configure", "Agent/Disconnect", "Agent/Delete")
RIGHT_PLACES = {"hudson.model.Hudson.": "Overall/", "hudson.model.Computer.": "Agent/", "hudson.model.Item.": "Job/"}
# A pipeline takes these from the Jenkinsfile beside this file, other jobs from defaults.yaml.
PIPELINE_CONSTANTS = {"gate_repository": "REPOSITORY", "gate_timeout": "MINUTES", "gate_job_timeout": "JOB_MINUTES"}
GIVEN = {"job-read": "Job/Read", "job-build": "Job/Build"}  # as jenkins-jobs calls them
OF_PERMISSION = {"hudson.model.Item.Read": "Job/Read", "hudson.model.Item.Build": "Job/Build"}
FREESTYLE, PIPELINE = "hudson.model.FreeStyleProject", "org.jenkinsci.plugins.workflow.job.WorkflowJob"
MATRIX = "hudson.matrix.MatrixProject"
KINDS = {FREESTYLE: "a freestyle job", PIPELINE: "a pipeline", MATRIX: "a matrix"}
BY_THE_CLOCK = ("devstack-update-vm-image", "devstack-launch-vms", "devstack-reap-vms")
TAKE, GIVE_BACK, STATUS = "devstack-vm-inprogress", "devstack-vm-delete", "devstack-vm-status"
STARTED = {TAKE: "devstack-launch-vms", GIVE_BACK: "devstack-reap-vms"}  # what each starts, with replacement: at-once
KEY_KIND = "SSH Username with private key"


@dataclass(frozen=True)
class Site:
    """What defaults.yaml says: gate_jobs maps the names of gate jobs to their image types."""

    path: Path
    providers: Sequence[str]
    host: str
    core: bool
    freestyle: bool
    pipeline: bool
    gerrit: bool
    at_once: bool
    prefix: str
    gate_jobs: Mapping[str, str]
    given: frozenset[tuple[str, str]]  # rights that come with the jobs: user, and 'Job/Read JOB'
    settings: Mapping[str, str]  # of gate builds

    @property
    def nodes_call(self) -> bool:
        """Whether gate builds call Jenkins from their nodes."""
        return self.core and self.freestyle


@dataclass(frozen=True)
class Loader:
    """The login with which jenkins-jobs loads jobs; server is empty if the file does not name it."""

    path: Path
    user: str
    password: str = field(repr=False)
    server: str = ""


@dataclass(frozen=True)
class Line:
    """The finding for one thing that the jobs need."""

    state: str
    what: str


def main(argv: list[str] | None = None) -> int:
    """Check everything, and print each line as soon as it is known."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    site = read_site(options.defaults)
    config = gateconfig.load_secure_config()
    loader = read_loader(options.conf)
    jenkins = _jenkins_of(config, options.jenkins, loader.server if loader else "")
    fine = True
    for line in check(site, jenkins, config.node.user, loader):
        print(f"{line.state:8} {line.what}", flush=True)
        fine = fine and line.state == OK
    return gateprocess.EXIT_OK if fine else gateprocess.EXIT_FAILED


# --- what is wanted ---


def read_site(path: Path) -> Site:
    """Return what defaults.yaml says; ConfigError names the key."""
    try:
        parts = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise ConfigError(f"{path}: cannot be read ({err.strerror})") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{path}: not YAML (not UTF-8 text)") from err
    except yaml.YAMLError as err:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(err).split())})") from err
    defaults = _part(path, parts, "defaults", "global")
    gate = _part(path, parts, "project", "gate")
    plugins = _value(path, defaults, "plugins", str)
    if plugins not in ("full", "core"):
        raise ConfigError(f"{path}: plugins: expected full or core, got {plugins!r}")
    replacement = _value(path, defaults, "replacement", str)
    if replacement not in ("at-once", "by-the-clock"):
        raise ConfigError(f"{path}: replacement: expected at-once or by-the-clock, got {replacement!r}")
    jobs = [next(iter(job)) if isinstance(job, dict) and job else job for job in _value(path, gate, "jobs", list)]
    if jobs not in (["gate-freestyle"], ["gate-pipeline"]):
        raise ConfigError(f"{path}: jobs: expected one of gate-freestyle and gate-pipeline, got {jobs}")
    return Site(
        path=path, providers=[str(name) for name in _value(path, defaults, "providers", list)],
        host=_value(path, defaults, "host", str), core=plugins == "core", freestyle="gate-freestyle" in jobs,
        pipeline="gate-pipeline" in jobs, at_once=replacement == "at-once",
        gerrit="gerrit" in str(_value(path, defaults, "gate_triggers", list)),
        gate_jobs=dict(_gate_jobs(path, gate)), given=frozenset(_given_rights(path, defaults, gate)),
        prefix=_value(path, defaults, "prefix", str),
        settings={key: str(defaults.get(key) or "") for key in (*PIPELINE_CONSTANTS, "gate_settings")})


def _part(path: Path, parts: object, kind: str, name: str) -> dict[str, Any]:
    """Return the part of a jenkins-jobs file that defines a name: - KIND: {name: NAME, ...}."""
    for part in parts if isinstance(parts, list) else ():
        found = part.get(kind) if isinstance(part, dict) else None
        if isinstance(found, dict) and found.get("name") == name:
            return found
    raise ConfigError(f"{path}: expected '- {kind}:' with 'name: {name}', as in the file that comes with the project")


def _value(path: Path, part: dict[str, Any], key: str, kind: type[T]) -> T:
    if key not in part:
        raise ConfigError(f"{path}: {key} is missing")
    value = part[key]
    if not isinstance(value, kind):
        what = "list" if kind is list else "mapping" if kind is dict else "word"
        raise ConfigError(f"{path}: {key}: expected a {what}, got {value!r}")
    return value


def _gate_jobs(path: Path, gate: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for entry in _value(path, gate, "suffix", list):
        for suffix, values in entry.items() if isinstance(entry, dict) else [(entry, None)]:
            if not isinstance(values, dict) or "image" not in values:
                raise ConfigError(f"{path}: suffix {suffix!r}: image is missing")
            yield f"gate-integration-tests-devstack-vm{suffix}", str(values["image"])


def _given_rights(path: Path, defaults: dict[str, Any], gate: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield user and right of each right that comes with the jobs; groups keep their prefix, and so match no user."""
    jobs = {"gate_rights": [job for job, _ in _gate_jobs(path, gate)], "delete_rights": [GIVE_BACK],
            "inprogress_rights": [TAKE]}
    for key, names in jobs.items():
        for user, words in _value(path, defaults, key, dict).items():
            if not isinstance(words, list):
                raise ConfigError(f"{path}: {key}: {user}: expected a list such as [job-read], got {words!r}")
            for right in [GIVEN[word] for word in words if word in GIVEN]:
                yield from ((re.sub("(?i)^user:", "", str(user)), f"{right} {job}") for job in names)


def wanted_kinds(site: Site) -> dict[str, str]:
    """Return the classes of the jobs that would be loaded, by name."""
    gate = dict.fromkeys(site.gate_jobs, PIPELINE if site.pipeline else FREESTYLE)
    return {**dict.fromkeys(BY_THE_CLOCK, MATRIX), **dict.fromkeys((TAKE, GIVE_BACK, STATUS), FREESTYLE), **gate}


def _jenkins_of(config: gateconfig.SecureConfig, name: str | None, url: str) -> JenkinsConfig:
    """Return the Jenkins to check: by its section's name, by the url that jobs are loaded to, or the only one.

    Raises ConfigError if there is none, or more than one.
    """
    names = [jenkins.name for jenkins in config.jenkinses]
    if not names:
        raise ConfigError(f"{config.path}: [jenkins] is missing; without Jenkins there are no jobs")
    if name is not None and name not in names:
        hint = gateprocess.nearest(name, names) if any(names) else "; it has [jenkins] alone"
        raise ConfigError(f"--jenkins: {config.path} has no [jenkins {name}]{hint}")
    meant = [jenkins for jenkins in config.jenkinses if jenkins.name == name] if name is not None else [
        jenkins for jenkins in config.jenkinses if gateconfig.is_same_url(jenkins.server, url)] or config.jenkinses
    if len(meant) > 1:
        raise ConfigError(f"{config.path}: has {len(meant)} Jenkins; --jenkins NAME says which one to check "
                          f"({', '.join(repr(one) for one in names)})")
    return meant[0]


def read_loader(path: Path | None) -> Loader | None:
    """Return the login with which jenkins-jobs loads jobs, None if there is no such file and none was named."""
    if path is None and os.environ.get("JJB_CONF"):
        path = Path(os.environ["JJB_CONF"])
    places = [path] if path else [place for name in CONF_PLACES if (place := Path(name).expanduser()).exists()]
    if not places:
        return None
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(places[0].read_text(encoding="utf-8-sig"))
    except OSError as err:
        raise ConfigError(f"{places[0]}: cannot be read ({err.strerror})") from err
    except UnicodeDecodeError as err:
        raise ConfigError(f"{places[0]}: not an INI file (not UTF-8 text)") from err
    except configparser.Error as err:
        raise ConfigError(f"{places[0]}: not an INI file: {gateconfig.ini_problem(err)}") from err
    user, password, url = (parser.get("jenkins", key, fallback="") for key in ("user", "password", "url"))
    if not user or not password:
        raise ConfigError(f"{places[0]}: [jenkins] {'password' if user else 'user'} is missing")
    return Loader(places[0], user, password, url)


def wanted_plugins(site: Site) -> dict[str, str]:
    """Return the plugins that the jobs need, with their oldest versions."""
    return {**CORE_PLUGINS, **({} if site.core else FULL_PLUGINS), **(PIPELINE_PLUGINS if site.pipeline else {}),
            **(GERRIT_PLUGINS if site.gerrit else {})}


def wanted_rights(site: Site, config: JenkinsConfig) -> dict[str, list[str]]:
    """Return the rights that each user of the scripts needs: 'Agent/Create', or 'Job/Read JOB' for one job."""
    rights = {config.user: [*SCRIPT_RIGHTS, *(f"Job/Read {job}" for job in (*site.gate_jobs, GIVE_BACK))]}
    if site.nodes_call and config.node_login:
        wanted = rights.setdefault(config.node_login.partition(":")[0], [])
        wanted += ["Overall/Read", f"Job/Read {TAKE}", f"Job/Build {TAKE}"]
    return {user: list(dict.fromkeys(wanted)) for user, wanted in rights.items()}


# --- what there is ---


class NoAnswerError(Exception):
    """Jenkins did not answer the question; the message is one short line."""


def check(site: Site, config: JenkinsConfig, node_user: str, loader: Loader | None) -> Iterator[Line]:
    """Yield a line for each check; after a failed login nothing more is asked."""
    yield from check_providers(site)
    yield from check_hosts()
    if site.pipeline:
        yield from check_pipeline(site)
    api = connect(config.server, config.user, config.apikey)
    try:
        ask(api.get_whoami)
        version = ask(api.get_version)
    except NoAnswerError as err:
        yield Line(UNKNOWN, f"Jenkins {config.server}, asked as user {config.user} of the secure configuration: {err}")
        return
    yield Line(OK, f"Jenkins {config.server} {version}, user {config.user}")
    yield from or_unknown(f"label {site.host}", check_host(api, site))
    yield from check_node_login(site, config)
    if loader is None:
        yield Line(UNKNOWN, "plugins, rights, credential, address: only an administrator can tell; name the "
                            "jenkins_jobs.ini with which you load jobs: --conf FILE")
        return
    if loader.server and not gateconfig.is_same_url(loader.server, config.server):
        yield Line(WRONG, f"url {loader.server} in {loader.path}: expected {config.server}, the server of the secure "
                          "configuration, so that jobs are loaded where the scripts work")
        return
    admin = connect(config.server, loader.user, loader.password)
    asked_as = f"asked as user {loader.user} of {loader.path}"
    try:
        plugins = ask(admin.get_plugins)
    except NoAnswerError as err:
        yield Line(UNKNOWN, f"plugins, rights, credential, address, {asked_as}: {err}")
        return
    yield from check_plugins({str(plugin["shortName"]): plugin for plugin in plugins.values()}, site)
    yield from or_unknown(f"jobs, {asked_as}", check_kinds(admin, site))
    yield from or_unknown(f"jobs that builds start, {asked_as}", check_started(admin, site))
    yield from or_unknown("queue", check_queue(api, admin, site, config.user))
    yield from or_unknown(f"other jobs on the pool's nodes, {asked_as}", check_other_jobs(admin, site))
    yield from or_unknown(f"rights, credential, address, {asked_as}", check_with_script(admin, site, config, node_user))


def check_node_login(site: Site, config: JenkinsConfig) -> Iterator[Line]:
    """Say that the login for nodes is missing, or what is wrong with it."""
    user, _, apikey = config.node_login.partition(":")
    if site.nodes_call and not user:
        yield Line(MISSING, "[jenkins] node_user and node_apikey in the secure configuration: with plugins: core gate "
                            "builds call Jenkins from their nodes")
    elif user and not site.nodes_call:
        yield Line(WRONG, f"[jenkins] node_user of the secure configuration: user {user} is given to each node, and no "
                          "gate job uses it; remove it")
    elif user == config.user:
        yield Line(WRONG, f"[jenkins] node_user of the secure configuration: expected another user than {user}: "
                          "a change under test may read the logins on its node")
    elif user:
        try:
            ask(connect(config.server, user, apikey).get_whoami)
        except NoAnswerError as err:
            yield Line(WRONG, f"[jenkins] node_user and node_apikey of the secure configuration: {err}")


def or_unknown(what: str, lines: Iterator[Line]) -> Iterator[Line]:
    """Yield the lines, or one that says that Jenkins did not answer."""
    try:
        yield from lines
    except NoAnswerError as err:
        yield Line(UNKNOWN, f"{what}: {err}")


def connect(server: str, user: str, password: str) -> jenkins.Jenkins:
    """Return a client; nothing is asked yet."""
    import jenkins

    import httpcalls

    api = jenkins.Jenkins(server, user, password, timeout=CALL_SECONDS)
    httpcalls.limit(api._session, forms=True)
    return api


def ask(call: Callable[[], T]) -> T:
    """Return the result of a call of the client; NoAnswerError if Jenkins did not answer."""
    import jenkins
    import requests

    try:
        return call()
    except (jenkins.JenkinsException, requests.RequestException) as err:
        raise NoAnswerError(_reason(err, response_of(err))) from err
    except gateprocess.NONSENSE as err:
        raise NoAnswerError("the answer makes no sense; is this the address of a Jenkins?") from err


def check_hosts() -> Iterator[Line]:
    """Compare this host with the others of the pool, if several can share it, and note for them what it has."""
    place = gateconfig.database_place()
    if isinstance(place, Path):
        return
    from pool import hosts

    with vmdatabase.opened(place):
        own = hosts.here(gateconfig.load_secure_config())
        hosts.note(own)
        off, others = hosts.clock_off(), hosts.others(own)
    if abs(off) > hosts.OFF_SECONDS:
        yield Line(WRONG, f"clock of this host: {abs(off) / 60:.0f} min {'ahead of' if off > 0 else 'behind'} the "
                          "database's; have both follow the time of the network")
    for host in others:
        if different := own.differences(host):
            yield Line(WRONG, f"host {host.name}: not the same there as here: {', '.join(different)} (as of "
                              f"{(own.time - host.time) // hosts.DAY} days ago; when it is, run this there again)")
        else:
            yield Line(OK, f"host {host.name}: the same as here")


def _reason(err: Exception, response: requests.Response | None) -> str:
    """Return in a few words why Jenkins did not answer the question."""
    import jenkins

    if response is None:
        # Without an answer of Jenkins, python-jenkins' message is a script's output, which begins with its error.
        said = " ".join(line.strip() for line in str(err).split("\n\tat ")[0].splitlines()[:2])
        known = said and type(err) is jenkins.JenkinsException
        return gateprocess.plain(said, 200) if known else f"no answer ({short_reason(err)})"
    status, right = response.status_code, gateprocess.plain(response.headers.get("X-Required-Permission", ""), 200)
    if status == 401:  # noqa: PLR2004
        return "401, user or password (API key) is wrong"
    if status == 403 and right:  # noqa: PLR2004
        for theirs, shown in RIGHT_PLACES.items():
            right = right.replace(theirs, shown)
        return f"403, this user needs the right {right}"
    hints = {404: "; is this the address of a Jenkins?", 503: "; Jenkins is starting, or a proxy does not reach it"}
    return f"{status} {gateprocess.plain(str(response.reason), 200)}{hints.get(status, '')}"


def check_providers(site: Site) -> Iterator[Line]:
    """Compare the providers and images of defaults.yaml with vm.db's."""
    path = gateconfig.database_place()
    if isinstance(path, Path) and not path.exists():
        yield Line(MISSING, f"{path}: run vmdatabase.py load with your providers file on this host")
        return
    with vmdatabase.opened(path):
        known = {provider.name: {image.name for image in vmdatabase.images_of(provider) if image.active}
                 for provider in vmdatabase.Provider.select() if provider.active}
    for name in sorted({name for name in site.providers if site.providers.count(name) > 1}):
        yield Line(WRONG, f"provider {name}: more than once in {site.path.name}")
    if site.prefix != gateconfig.name_prefix():
        yield Line(WRONG, f"prefix {site.prefix or '(none)'} in {site.path.name}: expected "
                          f"{gateconfig.name_prefix() or 'none'}, as DEVSTACK_GATE_PREFIX says; no node has the label "
                          "that gate jobs ask for")
    for name in sorted(known.keys() | set(site.providers)):
        if name not in known:
            yield Line(MISSING, f"provider {name}: in {site.path.name}, but not in {path}: load a file that has it")
        elif name not in site.providers:
            yield Line(MISSING, f"provider {name}: in {path}, but not in {site.path.name}: no job would look after it")
        else:
            yield Line(OK, f"provider {name}")
    had = {image for images in known.values() for image in images}
    for image in sorted(had | set(site.gate_jobs.values())):
        jobs = ", ".join(job for job, wanted in site.gate_jobs.items() if wanted == image)
        if image not in had:
            yield Line(MISSING, f"image {image}: {jobs} runs on it, but no provider in {path} has it")
        elif not jobs:
            yield Line(MISSING, f"image {image}: in {path}, but no gate job in {site.path.name} runs on it")
        else:
            yield Line(OK, f"image {image}: {jobs}")


def check_pipeline(site: Site) -> Iterator[Line]:
    """Compare the constants of the Jenkinsfile with defaults.yaml, from which the other jobs take theirs."""
    text = (HERE / "Jenkinsfile").read_text(encoding="utf-8")
    fine = not site.settings["gate_settings"]
    if not fine:
        yield Line(WRONG, f"gate_settings in {site.path.name}: pipelines do not take it; write it into the Jenkinsfile")
    for key, constant in PIPELINE_CONSTANTS.items():
        found = re.search(rf"(?m)^final \w+ {constant} = '?([^'\n]*)'?$", text)
        if found is None or found[1] != site.settings[key]:
            fine = False
            yield Line(WRONG, f"{constant} in the Jenkinsfile: expected {site.settings[key]}, as {key} in "
                              f"{site.path.name} says, it is {found[1] if found else 'missing'}")
    if fine:
        yield Line(OK, f"Jenkinsfile, as {site.path.name} says")


def check_host(api: jenkins.Jenkins, site: Site) -> Iterator[Line]:
    """Look for the node with the label of the host of vm.db, and count its executors."""
    carrying = ask(lambda: _nodes_with_label(api, site.host))
    wanted = 3 * len(site.providers) + 4
    if not carrying:
        yield Line(MISSING, f"label {site.host}: no node carries it; give it to the one on the host of vm.db")
        return
    names = ", ".join(sorted(name for name, _, _ in carrying))
    _, offline, executors = carrying[0]
    if len(carrying) > 1:
        yield Line(WRONG, f"label {site.host}: on {names}; expected on one node, the one on the host of vm.db")
    elif offline:
        yield Line(WRONG, f"label {site.host}: its node {names} is offline")
    elif executors < wanted:
        yield Line(WRONG, f"label {site.host}: its node {names} has {executors} executors, expected {wanted} for "
                          f"{len(site.providers)} providers: gate builds would wait for timed jobs")
    else:
        yield Line(OK, f"label {site.host}: node {names}, {executors} executors")


def _nodes_with_label(api: jenkins.Jenkins, label: str) -> list[tuple[str, bool, int]]:
    """Return name, offline or not, and number of executors of each node with a label."""
    import requests

    tree = "computer[displayName,offline,numExecutors,assignedLabels[name]]"
    request = requests.Request("GET", f"{api.server}computer/api/json", params={"tree": tree})
    return [(node["displayName"], node["offline"], node["numExecutors"])
            for node in json.loads(api.jenkins_open(request))["computer"]
            if label in {one["name"] for one in node["assignedLabels"]}]


def check_plugins(found: Mapping[str, Mapping[str, Any]], site: Site) -> Iterator[Line]:
    """Compare the plugins that Jenkins has, by their names, with those that the jobs need."""
    for name, oldest in sorted(wanted_plugins(site).items()):
        plugin = found.get(name)
        instead = ", or set plugins: core" if name in FULL_PLUGINS and not (
            site.pipeline and name in PIPELINE_PLUGINS) else ""
        if plugin is None:
            yield Line(MISSING, f"plugin {name}: install {oldest} or later{instead}")
        elif _numbers(str(plugin["version"])) < _numbers(oldest):
            yield Line(WRONG, f"plugin {name} {plugin['version']}: expected {oldest} or later")
        elif not plugin["active"]:
            yield Line(WRONG, f"plugin {name} {plugin['version']}: it is not active; enable it and restart Jenkins")
        else:
            yield Line(OK, f"plugin {name} {plugin['version']}")


def _numbers(version: str) -> list[int]:
    """Return the numbers by which versions compare, up to the first word, as in 3.28-1 or 1254.v3f64639b_11dd.

    Zeros at the end do not count: 2.0 is 2.
    """
    numbers: list[int] = []
    for part in re.split("[. -]", version):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    while numbers and not numbers[-1]:
        numbers.pop()
    return numbers


def check_other_jobs(admin: jenkins.Jenkins, site: Site) -> Iterator[Line]:
    """Name the jobs that run on the pool's nodes but are not gate jobs: nothing takes a node for them."""
    labels = {f"{site.prefix}devstack-{image}" for image in site.gate_jobs.values()}
    for name, expression in ask(lambda: _jobs_with_labels(admin)):
        shared = sorted(labels & labels_asked_for(expression))
        if shared and name not in site.gate_jobs:
            reads = ", and it can read the login with which gate builds call Jenkins" if site.nodes_call else ""
            yield Line(WRONG, f"job {name}: runs on {', '.join(shared)}; expected gate jobs only: no machine is taken "
                              f"for it{reads}")


def _jobs_with_labels(admin: jenkins.Jenkins) -> list[tuple[str, str]]:
    """Return full name and label expression of each job that has one, in folders, too."""
    import requests

    tree = "fullName,labelExpression"
    for _ in range(FOLDERS_DEEP):
        tree = f"fullName,labelExpression,jobs[{tree}]"
    request = requests.Request("GET", f"{admin.server}api/json", params={"tree": f"jobs[{tree}]"})
    found, left = [], list(json.loads(admin.jenkins_open(request))["jobs"])
    while left:
        job = left.pop()
        left += job.get("jobs") or []
        if job.get("labelExpression"):
            found.append((str(job["fullName"]), str(job["labelExpression"])))
    return sorted(found)


def labels_asked_for(expression: str) -> set[str]:
    """Return the labels in a label expression of Jenkins, such as a && (b || "c d"), except those after a !."""
    found = re.findall(r'(!?)\s*("[^"]*"|[^\s!&|()<>"]+)', re.sub("<?->", " ", expression))
    return {label.strip('"') for no, label in found if not no}


def check_with_script(admin: jenkins.Jenkins, site: Site, config: JenkinsConfig, node_user: str) -> Iterator[Line]:
    """Ask Jenkins' script console for rights, credential and address."""
    rights = wanted_rights(site, config)
    # Ask also whether the user has the right for all jobs.
    asked = json.dumps({"users": {user: [*wanted, *OF_PERMISSION.values()] for user, wanted in rights.items()},
                        "credential": config.credentials_id})
    script = (HERE / "check.groovy").read_text(encoding="utf-8")
    script = script.replace("'ASKED'", f"'{base64.b64encode(asked.encode()).decode()}'")
    seen = ask(lambda: json.loads(admin.run_script(script)))
    by_hand = dict(_rights_on_jobs(admin, site, config))
    for user, wanted in rights.items():
        has = seen["rights"][user]
        if has is None:
            yield Line(MISSING, f"user {user}: Jenkins knows no such user, or knows it no more")
        for right in wanted if has is not None else ():
            yield _right_line(user, right, has, by_hand, site)
    yield _credential_line(seen["credential"], config.credentials_id, node_user)
    if seen["url"]:
        yield Line(OK, f"address {seen['url']}")
    elif site.nodes_call:
        yield Line(MISSING, "address of Jenkins: enter it under Manage Jenkins, System; without it gate builds have no "
                            "JENKINS_URL to call")


def _rights_on_jobs(admin: jenkins.Jenkins, site: Site, config: JenkinsConfig) -> Iterator[tuple[str, set[str]]]:
    """Yield each existing job on which users need rights, with the rights in its own configuration.

    Such a right is 'USER Job/Read'; jenkins-jobs overwrites these rights.
    """
    jobs = {right.partition(" ")[2] for wanted in wanted_rights(site, config).values() for right in wanted}
    for job in sorted((jobs - {""}) & ask(lambda: _kinds(admin)).keys()):
        text = ask(lambda job=job: admin.get_job_config(job))  # type: ignore[misc]
        found = re.findall(r"<permission>(?:USER:)?([\w.]+):([^<:]+)</permission>", text)
        yield job, {f"{user} {OF_PERMISSION[name]}" for name, user in found if name in OF_PERMISSION}


def _right_line(user: str, right: str, has: Sequence[str], by_hand: Mapping[str, set[str]], site: Site) -> Line:
    """Return whether a user has a right, and will still have it after the jobs are loaded."""
    name, _, job = right.partition(" ")
    what = f"right {right} of user {user}"
    comes = (user, right) in site.given
    if right not in has and comes:
        return Line(MISSING, f"{what}: load the jobs, which bring it") if job in by_hand else Line(OK, what)
    if right in has and job and name not in has and f"{user} {name}" in by_hand.get(job, ()) and not comes:
        key = {TAKE: "inprogress_rights", GIVE_BACK: "delete_rights"}.get(job, "gate_rights")
        return Line(WRONG, f"{what}: given on the job itself, where the next jenkins-jobs update takes it away; give "
                           f"it for all jobs, or as {key} in {site.path.name}")
    return Line(OK if right in has else MISSING, what)


def check_kinds(admin: jenkins.Jenkins, site: Site) -> Iterator[Line]:
    """Name the existing jobs whose kind differs from the one to load: Jenkins refuses to change it."""
    found = ask(lambda: _kinds(admin))
    for job, kind in wanted_kinds(site).items():
        if found.get(job, kind) != kind:
            yield Line(WRONG, f"job {job}: expected {KINDS[kind]}, it is {KINDS.get(found[job], found[job])}, which no "
                              f"load changes; when no build of it runs: jenkins-jobs delete {job}")


def check_started(admin: jenkins.Jenkins, site: Site) -> Iterator[Line]:
    """Name the jobs that are disabled, and those that do not start the launch or reap that they should."""
    for job in sorted(wanted_kinds(site).keys() & ask(lambda: _kinds(admin)).keys()):
        text = ask(lambda job=job: admin.get_job_config(job))  # type: ignore[misc]
        if re.search("<disabled>true</disabled>", text):
            yield Line(WRONG, f"job {job}: it is disabled; enable it")
        children = {name.strip() for names in re.findall("<childProjects>([^<]*)</childProjects>", text)
                    for name in names.split(",")}
        if site.at_once and job in STARTED and STARTED[job] not in children:
            yield Line(WRONG, f"job {job}: it does not start {STARTED[job]}, as replacement: at-once in "
                              f"{site.path.name} says; load the jobs")


def check_queue(api: jenkins.Jenkins, admin: jenkins.Jenkins, site: Site, user: str) -> Iterator[Line]:
    """Say for each label with `demand: queue` whether the scripts see the builds that wait for it."""
    path = gateconfig.database_place()
    if isinstance(path, Path) and not path.exists():
        return
    with vmdatabase.opened(path):
        labels = [label for label in vmdatabase.LabelRow.select() if label.demand == demand.QUEUE]
        nodes = vmdatabase.labels_of_nodes(site.prefix)
    if not labels:
        return
    seen, there = ask(lambda: _queue(api, nodes)), ask(lambda: _queue(admin, nodes))
    for label in labels:
        name = f"{site.prefix}devstack-{label.name}"
        hidden = len(there.get(name, ())) - len(seen.get(name, ()))
        if label.max_ready <= label.min_ready:
            yield Line(WRONG, f"label {label.name}: demand: queue has no effect, since max-ready is min-ready, "
                              f"{label.min_ready}")
        elif hidden > 0:
            yield Line(WRONG, f"queue: user {user} does not see {hidden} of {len(there[name])} builds that wait for "
                              f"{name}; it needs the right Job/Read to their jobs")
        else:
            yield Line(OK, f"queue, {len(seen.get(name, ()))} builds wait for {name}")


def _queue(api: jenkins.Jenkins, labels: Mapping[str, str]) -> dict[str, list[int]]:
    """Return which builds wait for a node, as a user sees it; see jenkinsnodes.queued."""
    import requests

    request = requests.Request("GET", f"{api.server}{QUEUE}", headers=IN_ENGLISH)
    return queued(api.jenkins_open(request), labels)


def _kinds(api: jenkins.Jenkins) -> dict[str, str]:
    """Return the classes of the jobs at the top of Jenkins, by name."""
    import requests

    request = requests.Request("GET", f"{api.server}api/json", params={"tree": "jobs[name]"})
    return {str(job["name"]): str(job["_class"]) for job in json.loads(api.jenkins_open(request))["jobs"]}


def _credential_line(found: dict[str, str] | None, name: str, node_user: str) -> Line:
    if found is None:
        return Line(MISSING, f"credential {name}: add one with this id, of kind {KEY_KIND}, user {node_user}")
    if found["kind"] != "BasicSSHUserPrivateKey":
        return Line(WRONG, f"credential {name}: expected kind {KEY_KIND}, it is {found['named']}")
    if found["user"] != node_user:
        return Line(WRONG, f"credential {name}: expected user {node_user}, as [node] user says, it is {found['user']}")
    return Line(OK, f"credential {name}, user {node_user}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("--conf", metavar="FILE", type=Path, help="the jenkins_jobs.ini of jenkins-jobs [JJB_CONF]")
    parser.add_argument("--jenkins", metavar="NAME", help="of several, the one of section [jenkins NAME]; without it "
                        "the one that url in --conf names")
    parser.add_argument("--defaults", metavar="FILE", type=Path, default=HERE / "defaults.yaml",
                        help="instead of the defaults.yaml beside this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateprocess.run(main)
