#!/usr/bin/env python3
"""Say what a Jenkins lacks for the jobs of this folder: plugins, credential, label, rights. Changes nothing there.

Reads the secure configuration, defaults.yaml beside this file, and the login with which jenkins-jobs loads jobs
(--conf, or the places where jenkins-jobs looks itself), which must be an administrator's for the whole answer: rights
and credentials are looked up by check.groovy in Jenkins' script console. Prints a line for each thing: ok, missing, or
unknown with the reason.

Exit codes: 0 everything is there, 1 something is missing or could not be looked up, 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import base64
import configparser
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gateconfig
import vmdatabase
from gateconfig import ConfigError, JenkinsConfig

if TYPE_CHECKING:
    import jenkins

T = TypeVar("T")

HERE = Path(__file__).resolve().parent
CONF_PLACES = ("~/.config/jenkins_jobs/jenkins_jobs.ini", "/etc/jenkins_jobs/jenkins_jobs.ini")  # as jenkins-jobs does
CALL_SECONDS = 30
OK, MISSING, UNKNOWN = "ok", "missing", "unknown"

# The oldest versions that what these jobs use is known from.
CORE_PLUGINS = {"credentials": "2.3", "ssh-credentials": "1.18", "ssh-slaves": "1.31", "matrix-project": "1.18",
                "junit": "1.29"}
FULL_PLUGINS = {"parameterized-trigger": "2.35", "build-timeout": "1.19", "timestamper": "1.9",
                "build-name-setter": "2.0"}
PIPELINE_PLUGINS = {"workflow-job": "2.40", "workflow-cps": "2.80", "workflow-durable-task-step": "2.35",
                    "workflow-basic-steps": "2.20", "pipeline-build-step": "2.12", "timestamper": "1.9"}
SCRIPT_RIGHTS = ("Overall/Read", "Agent/Create", "Agent/Configure", "Agent/Disconnect", "Agent/Delete")


@dataclass(frozen=True)
class Site:
    """What defaults.yaml says: gate_jobs maps the names of gate jobs to their image types."""

    providers: Sequence[str]
    host: str
    core: bool
    pipeline: bool
    gerrit: bool
    gate_jobs: dict[str, str]


@dataclass(frozen=True)
class Line:
    """One thing that was looked for."""

    state: str
    what: str


def main(argv: list[str] | None = None) -> int:
    """Look for everything and print what there is."""
    options = _parse(argv)
    gateconfig.setup_logging(options.verbosity)
    site = read_site(options.defaults)
    config = gateconfig.load_secure_config()
    if config.jenkins is None:
        raise ConfigError(f"{config.path}: [jenkins] is missing; without Jenkins there are no jobs")
    lines = list(check(site, config.jenkins, config.node.user, read_conf(options.conf)))
    for line in lines:
        print(f"{line.state:8} {line.what}")
    return gateconfig.EXIT_OK if all(line.state == OK for line in lines) else gateconfig.EXIT_FAILED


# --- what is wanted ---


def read_site(path: Path) -> Site:
    """Return what defaults.yaml says; ConfigError names the key."""
    try:
        parts = yaml.safe_load(path.read_text(encoding="utf-8"))
        defaults = next(part["defaults"] for part in parts if "defaults" in part)
        gate = next(part["project"] for part in parts if part.get("project", {}).get("name") == "gate")
        suffixes = {suffix: values["image"] for entry in gate["suffix"] for suffix, values in entry.items()}
        return Site(
            providers=list(defaults["providers"]), host=str(defaults["host"]), core=_is_core(path, defaults["plugins"]),
            pipeline="gate-pipeline" in gate["jobs"], gerrit="gerrit" in str(defaults["gate_triggers"]),
            gate_jobs={f"gate-integration-tests-devstack-vm{suffix}": str(image) for suffix, image in suffixes.items()})
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as err:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(err).split())})") from err
    except (KeyError, TypeError, AttributeError, StopIteration) as err:
        raise ConfigError(f"{path}: expected the keys of the file that comes with the project, got {err!r}") from err


def _is_core(path: Path, plugins: object) -> bool:
    if plugins not in ("full", "core"):
        raise ConfigError(f"{path}: plugins: expected full or core, got {plugins!r}")
    return plugins == "core"


def read_conf(path: Path | None) -> tuple[str, str] | None:
    """Return user and password with which jenkins-jobs loads jobs, None if there is no such file and none was named."""
    places = [path] if path else [place for name in CONF_PLACES if (place := Path(name).expanduser()).exists()]
    if not places:
        return None
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(places[0].read_text(encoding="utf-8"))
        return parser["jenkins"]["user"], parser["jenkins"]["password"]
    except (OSError, UnicodeDecodeError, configparser.Error) as err:
        raise ConfigError(f"{places[0]}: cannot be read ({' '.join(str(err).split())})") from err
    except KeyError as err:
        raise ConfigError(f"{places[0]}: [jenkins] user and password: expected both, {err} is missing") from err


def wanted_plugins(site: Site) -> dict[str, str]:
    """Return the plugins that the jobs need, with their oldest versions."""
    plugins = {**CORE_PLUGINS, **({} if site.core else FULL_PLUGINS)}
    if site.pipeline:
        plugins |= PIPELINE_PLUGINS
    return {**plugins, "gerrit-trigger": "2.30"} if site.gerrit else plugins


def wanted_rights(site: Site, config: JenkinsConfig) -> dict[str, list[str]]:
    """Return the rights that each user of the scripts needs: 'Agent/Create', or 'Job/Read JOB' for one job."""
    rights = {config.user: [*SCRIPT_RIGHTS, *(f"Job/Read {job}" for job in (*site.gate_jobs, "devstack-vm-delete"))]}
    if site.core:
        user = config.node_login.partition(":")[0]
        rights[user] = ["Overall/Read", "Job/Read devstack-vm-inprogress", "Job/Build devstack-vm-inprogress"]
    return rights


# --- what there is ---


class NoAnswerError(Exception):
    """Jenkins did not tell; the message is one short line."""


def check(site: Site, config: JenkinsConfig, node_user: str, conf: tuple[str, str] | None) -> Iterator[Line]:
    """Yield a line for each thing that is looked for."""
    api = connect(config.server, config.user, config.apikey)
    who = f"lets user {config.user} of the secure configuration in"
    try:
        ask(api.get_whoami)
    except NoAnswerError as err:
        yield Line(MISSING, f"Jenkins {config.server} {who}: {err}")
        return
    yield from or_unknown("version", check_version(api, f"Jenkins {config.server} {who}"))
    yield from check_providers(site)
    yield from or_unknown(f"label {site.host}", check_host(api, site))
    if site.core and not config.node_login:
        yield Line(MISSING, "[jenkins] node_user and node_apikey in the secure configuration, with which gate builds "
                            "call Jenkins (plugins: core)")
    elif conf is None:
        yield Line(UNKNOWN, "plugins, rights, credential: expected the login that loads jobs, --conf jenkins_jobs.ini")
    else:
        admin = connect(config.server, *conf)
        yield from or_unknown(f"plugins, as user {conf[0]}", check_plugins(admin, site))
        yield from or_unknown(f"rights and credential, as user {conf[0]}, who must be an administrator",
                              check_with_script(admin, site, config, node_user))


def or_unknown(what: str, lines: Iterator[Line]) -> Iterator[Line]:
    """Yield the lines, or one that says that Jenkins did not tell."""
    try:
        yield from lines
    except NoAnswerError as err:
        yield Line(UNKNOWN, f"{what}: {err}")


def connect(server: str, user: str, password: str) -> jenkins.Jenkins:
    """Return a client; nothing is asked yet."""
    import jenkins

    return jenkins.Jenkins(server, user, password, timeout=CALL_SECONDS)


def ask(call: Callable[[], T]) -> T:
    """Return what a call of the client returns; NoAnswerError if Jenkins did not tell."""
    import jenkins
    import requests

    try:
        return call()
    except (jenkins.JenkinsException, requests.RequestException, ValueError) as err:
        text = " ".join(re.sub(r"<[^>]*>", " ", str(err)).split())
        raise NoAnswerError(text[:160] or type(err).__name__) from err


def check_version(api: jenkins.Jenkins, text: str) -> Iterator[Line]:
    """Say that the login works, and which Jenkins it is."""
    yield Line(OK, f"{text}; it is a {ask(api.get_version)}")


def check_providers(site: Site) -> Iterator[Line]:
    """Compare the lists of providers and images with vm.db's."""
    path = gateconfig.database_path()
    if not path.exists():
        yield Line(MISSING, f"{path}: run vmdatabase.py load with your providers file on this host")
        return
    with vmdatabase.opened(path):
        known = {provider.name: {image.name for image in vmdatabase.images_of(provider) if image.active}
                 for provider in vmdatabase.Provider.select() if provider.active}
    for name in sorted(known.keys() | set(site.providers)):
        if name not in known:
            yield Line(MISSING, f"provider {name} of defaults.yaml in {path}")
        elif name not in site.providers:
            yield Line(MISSING, f"provider {name} of {path} in defaults.yaml: no job would look after it")
        else:
            yield Line(OK, f"provider {name}")
    for image in sorted({image for images in known.values() for image in images} | set(site.gate_jobs.values())):
        jobs = [job for job, wanted in site.gate_jobs.items() if wanted == image]
        if jobs and any(image in images for images in known.values()):
            yield Line(OK, f"image {image}: {', '.join(jobs)}")
        else:
            yield Line(MISSING, f"image {image}: {'a provider that has it' if jobs else 'a gate job in defaults.yaml'}")


def check_host(api: jenkins.Jenkins, site: Site) -> Iterator[Line]:
    """Look for the node with the label of the host of vm.db, and count its executors."""
    import requests

    tree = "computer[displayName,offline,numExecutors,assignedLabels[name]]"
    request = requests.Request("GET", f"{api.server}computer/api/json?tree={tree}")
    carrying = [node for node in ask(lambda: json.loads(api.jenkins_open(request)))["computer"]
                if site.host in {label["name"] for label in node["assignedLabels"]}]
    names = ", ".join(node["displayName"] for node in carrying)
    executors = sum(node["numExecutors"] for node in carrying)
    wanted = 3 * len(site.providers) + 4
    if not carrying:
        yield Line(MISSING, f"label {site.host}: no node carries it; give it to the one on the host of vm.db")
    elif len(carrying) > 1:
        yield Line(MISSING, f"label {site.host}: expected one node, the host of vm.db; it is on {names}")
    elif carrying[0]["offline"]:
        yield Line(MISSING, f"label {site.host}: {names} is offline")
    elif executors < wanted:
        yield Line(MISSING, f"label {site.host}: {names} has {executors} executors, expected {wanted}: gate builds "
                            "would wait for timed jobs")
    else:
        yield Line(OK, f"label {site.host}: {names}, {executors} executors")


def check_plugins(admin: jenkins.Jenkins, site: Site) -> Iterator[Line]:
    """Compare the plugins that Jenkins has with those that the jobs need."""
    found = ask(admin.get_plugins)
    versions = {plugin["shortName"]: str(plugin["version"]) for plugin in found.values() if plugin["active"]}
    for name, oldest in sorted(wanted_plugins(site).items()):
        if name not in versions:
            yield Line(MISSING, f"plugin {name} {oldest} or later{', or set plugins: core' * (name in FULL_PLUGINS)}")
        elif _numbers(versions[name]) < _numbers(oldest):
            yield Line(MISSING, f"plugin {name} {oldest} or later: it is {versions[name]}")
        else:
            yield Line(OK, f"plugin {name} {versions[name]}")


def _numbers(version: str) -> list[int]:
    """Return what versions are compared by: 1.31.5 or 1254.v3f64639b_11dd."""
    return [int(part) for part in re.findall(r"(?:^|\.)([0-9]+)(?=\.|$|-)", version)]


def check_with_script(admin: jenkins.Jenkins, site: Site, config: JenkinsConfig, node_user: str) -> Iterator[Line]:
    """Ask Jenkins' script console for rights, credential and address."""
    rights = wanted_rights(site, config)
    asked = json.dumps({"users": rights, "credential": config.credentials_id})
    script = (HERE / "check.groovy").read_text(encoding="utf-8")
    encoded = base64.b64encode(asked.encode()).decode()
    script = script.replace("'ASKED'", f"'{encoded}'")
    seen = ask(lambda: json.loads(admin.run_script(script)))
    for user, wanted in rights.items():
        has = seen["rights"][user]
        if has is None:
            yield Line(MISSING, f"user {user}")
        for right in wanted if has is not None else ():
            yield Line(OK if right in has else MISSING, f"right {right} of user {user}")
    yield _credential_line(seen["credential"], config.credentials_id, node_user)
    yield Line(OK, f"address {seen['url']}") if seen["url"] else Line(
        MISSING, "the address of Jenkins (Manage Jenkins, System): builds are told no JENKINS_URL")


def _credential_line(found: dict[str, str] | None, name: str, node_user: str) -> Line:
    if found is None:
        return Line(MISSING, f"credential {name}, of kind SSH username with private key, for user {node_user}")
    if found["kind"] != "BasicSSHUserPrivateKey":
        return Line(MISSING, f"credential {name}: expected SSH username with private key, it is a {found['kind']}")
    if found["user"] != node_user:
        return Line(MISSING, f"credential {name}: expected user {node_user} as [node] user says, it is {found['user']}")
    return Line(OK, f"credential {name} for user {node_user}")


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateconfig.make_parser(__doc__)
    parser.add_argument("--conf", metavar="FILE", type=Path, help="the jenkins_jobs.ini of jenkins-jobs")
    parser.add_argument("--defaults", metavar="FILE", type=Path, default=HERE / "defaults.yaml",
                        help="instead of the defaults.yaml beside this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateconfig.run(main)
