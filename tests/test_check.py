"""jobs/check.py says what a Jenkins lacks for the jobs. It runs against the stand-in with its script console.

Each case takes one thing away from a Jenkins that has everything, and expects the one line that says so.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jenkins
import pytest
import requests

from tests.pocketjenkins.client import StandIn
from tests.support.pool import PROJECT, Pool, clear_jenkins, load_script, make_key, provider
from tests.support.sshserver import free_address

CHECK = "jobs/check.py"
USERS = {"scripts": ("scripts-password", "scripts-token"), "boss": ("boss-password", "boss-token"),
         "builds": ("builds-password", "builds-token"), "reader": ("reader-password", "reader-token")}
GATE, TAKE, GIVE = "gate-integration-tests-devstack-vm", "devstack-vm-inprogress", "devstack-vm-delete"
HOST = "devstack-gate-host"
STARTED = {TAKE: "devstack-launch-vms", GIVE: "devstack-reap-vms"}
PLUGINS = {"credentials": "2.3.15", "ssh-credentials": "1.18.1", "ssh-slaves": "1.31.5", "matrix-project": "1.18",
           "junit": "1.29", "token-macro": "2.13"}
FULL = {"parameterized-trigger": "787.v665fcf2a_830b_", "build-timeout": "1.38", "timestamper": "1.9",
        "build-name-setter": "2.4.3"}
PIPELINE = {"workflow-job": "1400.v7fd111b_ec82f", "workflow-cps": "3964.v0767b_4b_a_0b_fa_",
            "workflow-durable-task-step": "1371.vb_7cec8f3b_95e", "workflow-basic-steps": "1058.vcb_fc1e3a_21a_9",
            "pipeline-build-step": "540.vb_e8849e1a_b_d8"}
SCRIPTS_MAY = ["Overall.Read", "Computer.Create", "Computer.Configure", "Computer.Disconnect", "Computer.Delete",
               f"Item.Read/{GATE}", f"Item.Read/{GIVE}"]
BUILDS_MAY = ["Overall.Read", f"Item.Read/{TAKE}", f"Item.Build/{TAKE}"]
RIGHTS = {"scripts": SCRIPTS_MAY, "builds": BUILDS_MAY, "reader": ["Overall.Read", "Computer.Configure"]}
KNOBS: dict[str, Any] = {"connect": "instant", "plugins": {**PLUGINS, **FULL}, "rights": RIGHTS, "master_label": HOST,
                         "master_executors": 10, "passwords": {"login": "jenkins"}}
ALL_IS_WELL = [
    "ok       provider ovh-gra",
    "ok       provider rax-ord",
    f"ok       image noble: {GATE}",
    "ok       Jenkins URL 2.263.4, user scripts",
    f"ok       label {HOST}: node master, 10 executors",
    "ok       plugin build-name-setter 2.4.3",
    "ok       plugin build-timeout 1.38",
    "ok       plugin credentials 2.3.15",
    "ok       plugin junit 1.29",
    "ok       plugin matrix-project 1.18",
    "ok       plugin parameterized-trigger 787.v665fcf2a_830b_",
    "ok       plugin ssh-credentials 1.18.1",
    "ok       plugin ssh-slaves 1.31.5",
    "ok       plugin timestamper 1.9",
    "ok       right Overall/Read of user scripts",
    "ok       right Agent/Create of user scripts",
    "ok       right Agent/Configure of user scripts",
    "ok       right Agent/Disconnect of user scripts",
    "ok       right Agent/Delete of user scripts",
    f"ok       right Job/Read {GATE} of user scripts",
    f"ok       right Job/Read {GIVE} of user scripts",
    "ok       credential nodes, user jenkins",
    "ok       address URL",
]
BUILDS_LINES = [
    "ok       right Overall/Read of user builds",
    f"ok       right Job/Read {TAKE} of user builds",
    f"ok       right Job/Build {TAKE} of user builds",
]
ASKED_AS = "asked as user {} of jenkins_jobs.ini"


def project(job: str, *permissions: str, disabled: bool = False, started: str | None = None) -> str:
    """Return the configuration of a freestyle job that starts another, with rights as the web form writes them."""
    listed = "".join(f"<permission>{one}</permission>" for one in permissions)
    rights = f"<properties><hudson.security.AuthorizationMatrixProperty>{listed}" \
             "</hudson.security.AuthorizationMatrixProperty></properties>" if permissions else ""
    child = STARTED.get(job, "") if started is None else started
    trigger = f"<publishers><hudson.tasks.BuildTrigger><childProjects>{child}</childProjects>" \
              "</hudson.tasks.BuildTrigger></publishers>" if child else ""
    return f"<project><disabled>{str(disabled).lower()}</disabled>{rights}{trigger}</project>"


class Desk:
    """Where the operator sits: a host with vm.db, a Jenkins that has everything, and the administrator's login."""

    def __init__(self, pool: Pool, standin: StandIn) -> None:
        self.pool = pool
        self.standin = standin
        self.log_in("boss", "boss-token")

    def log_in(self, user: str, password: str, **more: str) -> None:
        """Write the jenkins_jobs.ini."""
        keys = {"user": user, "password": password, "query_plugins_info": "False", **more}
        text = "[job_builder]\nrecursive = True\n[jenkins]\n" + "".join(f"{key}={keys[key]}\n" for key in keys)
        (self.pool.folder / "jenkins_jobs.ini").write_text(text)

    def defaults(self, *changes: tuple[str, str]) -> list[str]:
        """Write a defaults.yaml that differs from the project's; return the option for it."""
        text = (PROJECT / "jobs/defaults.yaml").read_text()
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        (self.pool.folder / "defaults.yaml").write_text(text)
        return ["--defaults", "defaults.yaml"]

    def core(self, *changes: tuple[str, str], **secure: str) -> list[str]:
        """Take the plugins of FULL away, and have `plugins: core` in defaults.yaml; return the option for it."""
        self.standin.knobs(plugins=PLUGINS)
        self.pool.write_secure_config(**{"node_user": "builds", "node_apikey": "builds-token", **secure})
        return self.defaults(("\n    plugins: full", "\n    plugins: core"), *changes)

    def check(self, *options: str, expect: int, conf: bool = True, **environment: str) -> list[str]:
        """Run check.py and return its lines; check that it changes nothing in Jenkins."""
        self.standin.reset_calls()
        before = self.truth()
        options = (*options, "--conf", "jenkins_jobs.ini") if conf else options
        result = self.pool.run(CHECK, *options, expect=expect, **environment)
        assert result.stderr == ""
        assert self.truth() == before
        asked = {f"{one['method']} {one['path']}" for one in self.standin.look()["requests"]}
        assert {one for one in asked if not one.startswith("GET ")} <= {"POST /scriptText"}
        return self.plain(result.stdout).splitlines()

    def plain(self, text: str) -> str:
        """Return text without what differs in each run."""
        return text.replace(self.standin.url, "URL").replace(str(self.pool.folder), "HOME")

    def refused(self, *options: str, **environment: str) -> str:
        """Run check.py with wrong options or a wrong configuration; return its one line of error."""
        result = self.pool.run(CHECK, *options, expect=2, **environment)
        assert result.stdout == ""
        (line,) = self.plain(result.stderr).splitlines()
        return line

    def truth(self) -> dict[str, Any]:
        return {key: value for key, value in self.standin.look().items() if key not in {"now", "calls", "requests"}}


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    folder = tmp_path_factory.mktemp("jenkins")
    keys = {"nodes": ("jenkins", make_key(folder)), "roots": ("root", make_key(folder))}
    with StandIn(folder, USERS, keys, KNOBS) as running:
        for job in (GATE, TAKE, GIVE):
            running.add_job(job, HOST)
        admin = jenkins.Jenkins(running.url, "boss", "boss-token")
        for job in STARTED:
            admin.upsert_job(job, project(job))
        yield running


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a vm.db with the providers that the project's defaults.yaml names; return its path."""
    pool = Pool(tmp_path_factory.mktemp("loaded"))
    pool.load(provider("rax-ord"), provider("ovh-gra"))
    return pool.database


@pytest.fixture
def desk(standin: StandIn, loaded: Path, tmp_path: Path) -> Iterator[Desk]:
    shutil.copy(loaded, tmp_path)
    yield Desk(Pool(tmp_path, jenkins=standin), standin)
    clear_jenkins(standin)


@pytest.fixture
def configured(desk: Desk) -> Iterator[Callable[[str, str], None]]:
    """Yield a function that posts the configuration of a job; restore the jobs after the test."""
    desk.standin.knobs(plugins={**PLUGINS, **FULL, "matrix-auth": "3.1"})
    admin = jenkins.Jenkins(desk.standin.url, "boss", "boss-token")
    yield admin.upsert_job
    for job in (GATE, TAKE, GIVE):
        admin.delete_job(job)
        desk.standin.add_job(job, HOST)
    for job in STARTED:
        admin.upsert_job(job, project(job))


def as_pipeline(desk: Desk, configured: Callable[[str, str], None]) -> None:
    """Replace the gate job by a pipeline."""
    jenkins.Jenkins(desk.standin.url, "boss", "boss-token").delete_job(GATE)
    configured(GATE, "<flow-definition/>")


def wrong(lines: list[str]) -> list[str]:
    return [line for line in lines if not line.startswith("ok ")]


# All is well


def test_a_jenkins_that_has_everything_is_found_well(desk: Desk) -> None:
    assert desk.check(expect=0) == ALL_IS_WELL


def test_the_administrators_password_does_as_well_as_a_token(desk: Desk) -> None:
    desk.log_in("boss", "boss-password", url=desk.standin.url.rstrip("/"))
    assert desk.check(expect=0) == ALL_IS_WELL


def test_without_its_plugins_a_jenkins_with_a_login_for_builds_is_found_well(desk: Desk) -> None:
    lines = [line for line in ALL_IS_WELL if not any(f"plugin {name}" in line for name in FULL)]
    assert desk.check(*desk.core(), expect=0) == [*lines[:-2], *BUILDS_LINES, *lines[-2:]]


def test_pipelines_take_plugins_of_their_own_and_no_login_for_builds(
        desk: Desk, configured: Callable[[str, str], None]) -> None:
    options = desk.core(("- gate-freestyle", "- gate-pipeline"), node_user="", node_apikey="")
    desk.standin.knobs(plugins={**PLUGINS, **PIPELINE, "timestamper": "1.9"}, has_address=False)
    as_pipeline(desk, configured)
    lines = desk.check(*options, expect=0)
    assert "ok       Jenkinsfile, as defaults.yaml says" in lines
    assert [line for line in lines if "workflow" in line] == [
        f"ok       plugin {name} {PIPELINE[name]}" for name in sorted(PIPELINE) if "workflow" in name]


def test_what_a_pipeline_does_not_take_from_the_defaults_file_is_told(
        desk: Desk, configured: Callable[[str, str], None]) -> None:
    options = desk.defaults(("- gate-freestyle", "- gate-pipeline"), ("gate_timeout: 120", "gate_timeout: 90"),
                            ("gate_settings: ''", "gate_settings: export PROJECTS=x"))
    desk.standin.knobs(plugins={**PLUGINS, **FULL, **PIPELINE})
    as_pipeline(desk, configured)
    assert wrong(desk.check(*options, expect=1)) == [
        "wrong    gate_settings in defaults.yaml: pipelines do not take it; write it into the Jenkinsfile",
        "wrong    MINUTES in the Jenkinsfile: expected 90, as gate_timeout in defaults.yaml says, it is 120"]


def test_the_places_where_jenkins_jobs_looks_are_looked_at(desk: Desk) -> None:
    home = desk.pool.folder / ".config/jenkins_jobs"
    home.mkdir(parents=True)
    (desk.pool.folder / "jenkins_jobs.ini").rename(home / "jenkins_jobs.ini")
    assert desk.check(expect=0, conf=False) == ALL_IS_WELL
    (home / "jenkins_jobs.ini").rename(home / "other.ini")
    assert desk.check(expect=0, conf=False, JJB_CONF=str(home / "other.ini")) == ALL_IS_WELL


def test_rights_to_all_jobs_count_for_jobs_that_are_not_loaded_yet(desk: Desk) -> None:
    options = desk.defaults(("- '':", "- '-new':"))
    desk.standin.knobs(rights={**RIGHTS, "scripts": [*SCRIPTS_MAY, "Item.Read"]})
    assert f"ok       right Job/Read {GATE}-new of user scripts" in desk.check(*options, expect=0)
    desk.standin.knobs(rights=RIGHTS)
    assert wrong(desk.check(*options, expect=1)) == [f"missing  right Job/Read {GATE}-new of user scripts"]


# Rights and kinds of existing jobs


RIGHTS_OF_JOBS = [("gate_rights: {}", "gate_rights: {'USER:scripts': [job-read]}"),
                  ("delete_rights: {}", "delete_rights: {scripts: [job-read]}"),
                  ("inprogress_rights: {}", "inprogress_rights: {'user:builds': [job-read, job-build]}")]
NO_JOBS = {**RIGHTS, "scripts": SCRIPTS_MAY[:5], "builds": ["Overall.Read"]}


def test_rights_that_were_given_on_a_job_by_hand_are_lost_by_a_load_and_told_before(
        desk: Desk, configured: Callable[[str, str], None]) -> None:
    desk.standin.knobs(rights=NO_JOBS)
    for job in (GATE, GIVE):
        configured(job, project(job, "USER:hudson.model.Item.Read:scripts"))
    lost = "given on the job itself, where the next jenkins-jobs update takes it away; give it for all jobs, or as"
    assert wrong(desk.check(expect=1)) == [
        f"wrong    right Job/Read {GATE} of user scripts: {lost} gate_rights in defaults.yaml",
        f"wrong    right Job/Read {GIVE} of user scripts: {lost} delete_rights in defaults.yaml"]
    assert wrong(desk.check(*desk.defaults(*RIGHTS_OF_JOBS), expect=0)) == []
    desk.standin.knobs(rights={**NO_JOBS, "scripts": [*SCRIPTS_MAY[:5], "Item.Read"]})
    assert wrong(desk.check(expect=0)) == []


def test_rights_that_jobs_bring_along_count_before_the_first_load_and_are_missed_after_it(
        desk: Desk, configured: Callable[[str, str], None]) -> None:
    desk.standin.knobs(rights=NO_JOBS)
    admin = jenkins.Jenkins(desk.standin.url, "boss", "boss-token")
    for job in (GATE, TAKE, GIVE):
        admin.delete_job(job)
    options = desk.core(*RIGHTS_OF_JOBS)
    assert wrong(desk.check(*options, expect=0)) == []
    desk.standin.knobs(plugins={**PLUGINS, "matrix-auth": "3.1"})
    configured(GATE, project(GATE, "hudson.model.Item.Read:scripts"))
    configured(GIVE, project(GIVE))
    configured(TAKE, project(TAKE, "USER:hudson.model.Item.Read:builds"))
    assert wrong(desk.check(*options, expect=1)) == [
        f"missing  right Job/Read {GIVE} of user scripts: load the jobs, which bring it",
        f"missing  right Job/Build {TAKE} of user builds: load the jobs, which bring it"]


def test_a_job_of_another_kind_is_told_before_jenkins_refuses_it(
        desk: Desk, configured: Callable[[str, str], None]) -> None:
    options = desk.defaults(("- gate-freestyle", "- gate-pipeline"))
    desk.standin.knobs(plugins={**PLUGINS, **FULL, **PIPELINE})
    line = f"wrong    job {GATE}: expected {{}}, it is {{}}, which no load changes; when no build of it runs: " \
           f"jenkins-jobs delete {GATE}"
    assert wrong(desk.check(*options, expect=1)) == [line.format("a pipeline", "a freestyle job")]
    as_pipeline(desk, configured)
    assert wrong(desk.check(*options, expect=0)) == []
    assert wrong(desk.check(expect=1)) == [line.format("a freestyle job", "a pipeline")]


# Labels and demand


def test_jobs_that_start_no_replacement_and_jobs_that_are_disabled_are_told(
        desk: Desk, configured: Callable[[str, str], None]) -> None:
    configured(TAKE, project(TAKE, started="devstack-vm-status"))
    configured(GIVE, project(GIVE, disabled=True))
    assert wrong(desk.check(expect=1)) == [
        f"wrong    job {GIVE}: it is disabled; enable it",
        f"wrong    job {TAKE}: it does not start devstack-launch-vms, as replacement: at-once in defaults.yaml says; "
        "load the jobs"]
    by_the_clock = desk.defaults(("replacement: at-once", "replacement: by-the-clock"))
    assert wrong(desk.check(*by_the_clock, expect=1)) == [f"wrong    job {GIVE}: it is disabled; enable it"]


def test_builds_that_wait_are_seen_by_the_user_of_the_scripts(desk: Desk) -> None:
    label = {"name": "noble", "min-ready": 0, "max-ready": 9, "demand": "queue"}
    desk.pool.load(provider("rax-ord"), provider("ovh-gra"), labels=[label])
    try:
        for job in (GATE, "secret"):
            desk.standin.add_job(job, "devstack-noble")
            requests.post(f"{desk.standin.url}job/{job}/build", auth=("boss", "boss-token"), timeout=30)
        hidden = desk.check(expect=1)
        desk.standin.knobs(rights={**RIGHTS, "scripts": [*SCRIPTS_MAY[:5], "Item.Read"]})
        seen = desk.check(expect=1)
        desk.pool.load(provider("rax-ord"), provider("ovh-gra"), labels=[{**label, "max-ready": 0}])
        useless = desk.check(expect=1)
    finally:
        for job in (GATE, "secret"):
            requests.post(f"{desk.standin.url}job/{job}/doDelete", auth=("boss", "boss-token"), timeout=30)
        desk.standin.add_job(GATE, HOST)
    assert "wrong    queue: user scripts does not see 1 of 2 builds that wait for devstack-noble; it needs the right " \
           "Job/Read to their jobs" in hidden
    assert "ok       queue, 2 builds wait for devstack-noble" in seen
    assert "wrong    label noble: demand: queue has no effect, since max-ready is min-ready, 0" in useless


# One thing is wrong


def without(name: str) -> dict[str, str]:
    return {key: version for key, version in {**PLUGINS, **FULL}.items() if key != name}


def may(user: str, missing: str) -> dict[str, list[str]]:
    return {**RIGHTS, user: [right for right in RIGHTS[user] if right != missing]}


PLUGIN_CASES: list[tuple[dict[str, Any], str]] = [
    ({"plugins": without("junit")}, "missing  plugin junit: install 1.29 or later"),
    ({"plugins": without("ssh-slaves")}, "missing  plugin ssh-slaves: install 1.31 or later"),
    *(({"plugins": without(name)}, f"missing  plugin {name}: install {oldest} or later, or set plugins: core")
      for name, oldest in [("parameterized-trigger", "2.35"), ("build-timeout", "1.19"), ("timestamper", "1.9"),
                           ("build-name-setter", "2.0")]),
    ({"plugins": {**PLUGINS, **FULL, "junit": "1.28.1"}}, "wrong    plugin junit 1.28.1: expected 1.29 or later"),
    ({"plugins": {**PLUGINS, **FULL, "ssh-slaves": "1.9"}}, "wrong    plugin ssh-slaves 1.9: expected 1.31 or later"),
    ({"inactive": ["build-timeout"]},
     "wrong    plugin build-timeout 1.38: it is not active; enable it and restart Jenkins"),
]
RIGHT_CASES: list[tuple[dict[str, Any], str]] = [
    *(({"rights": may("scripts", f"Computer.{right}")}, f"missing  right Agent/{right} of user scripts")
      for right in ("Create", "Configure", "Disconnect", "Delete")),
    *(({"rights": may("scripts", f"Item.Read/{job}")}, f"missing  right Job/Read {job} of user scripts")
      for job in (GATE, GIVE)),
    ({"departed": ["scripts"]}, "missing  user scripts: Jenkins knows no such user, or knows it no more"),
]
LABEL_CASES: list[tuple[dict[str, Any], str]] = [
    ({"master_label": "linux"}, f"missing  label {HOST}: no node carries it; give it to the one on the host of vm.db"),
    ({"master_executors": 9}, f"wrong    label {HOST}: its node master has 9 executors, expected 10 for 2 providers: "
                              "gate builds would wait for timed jobs"),
]


@pytest.mark.parametrize(("knobs", "line"), [*PLUGIN_CASES, *RIGHT_CASES, *LABEL_CASES],
                         ids=lambda value: value if isinstance(value, str) else "")
def test_one_thing_that_is_not_as_it_should_be_is_one_line(desk: Desk, knobs: dict[str, Any], line: str) -> None:
    desk.standin.knobs(**knobs)
    lines = desk.check(expect=1)
    assert wrong(lines) == [line]
    assert set(lines) - {line} <= set(ALL_IS_WELL)


@pytest.mark.parametrize(("credential", "line"), [
    ("absent", "missing  credential absent: add one with this id, of kind SSH Username with private key, user jenkins"),
    ("login", "wrong    credential login: expected kind SSH Username with private key, it is Username with password"),
    ("roots", "wrong    credential roots: expected user jenkins, as [node] user says, it is root"),
])
def test_the_credential_is_the_one_that_nodes_are_made_with(desk: Desk, credential: str, line: str) -> None:
    desk.pool.write_secure_config(credentials_id=credential)
    assert wrong(desk.check(expect=1)) == [line]


def test_the_label_belongs_to_one_node(desk: Desk) -> None:
    desk.standin.add_nodes([{"name": "spare", "label": f"linux {HOST}"}])
    desk.standin.wait_node("spare", "online")
    assert wrong(desk.check(expect=1)) == [
        f"wrong    label {HOST}: on master, spare; expected on one node, the one on the host of vm.db"]


def test_the_host_is_online(desk: Desk) -> None:
    desk.standin.knobs(master_label="")
    desk.standin.add_nodes([{"name": "host-7", "label": HOST}])
    desk.standin.wait_node("host-7", "online")
    desk.standin.node("host-7", temporarilyOffline=True)
    assert wrong(desk.check(expect=1)) == [f"wrong    label {HOST}: its node host-7 is offline"]


@pytest.mark.parametrize(("providers", "lines"), [
    (["rax-ord"], ["missing  provider ovh-gra: in defaults.yaml, but not in HOME/vm.db: load a file that has it"]),
    (["rax-ord", "ovh-gra", "third"],
     ["missing  provider third: in HOME/vm.db, but not in defaults.yaml: no job would look after it"]),
])
def test_the_providers_are_those_of_the_database(desk: Desk, providers: list[str], lines: list[str]) -> None:
    desk.pool.load(*map(provider, providers))
    assert wrong(desk.check(expect=1)) == lines


@pytest.mark.parametrize(("suffixes", "lines"), [
    ("- '':\n          image: noble\n      - '-jammy':\n          image: jammy",
     [f"missing  image jammy: {GATE}-jammy runs on it, but no provider in HOME/vm.db has it"]),
    ("- '':\n          image: jammy",
     [f"missing  image jammy: {GATE} runs on it, but no provider in HOME/vm.db has it",
      "missing  image noble: in HOME/vm.db, but no gate job in defaults.yaml runs on it"]),
])
def test_the_images_of_gate_jobs_are_those_of_the_database(desk: Desk, suffixes: str, lines: list[str]) -> None:
    desk.standin.knobs(rights={**RIGHTS, "scripts": [*SCRIPTS_MAY, "Item.Read"]})
    options = desk.defaults(("- '':\n          image: noble", suffixes))
    assert wrong(desk.check(*options, expect=1)) == lines


def test_without_a_database_one_line_says_what_to_do(desk: Desk) -> None:
    desk.pool.database.unlink()
    assert wrong(desk.check(expect=1)) == [
        "missing  HOME/vm.db: run vmdatabase.py load with your providers file on this host"]
    assert not desk.pool.database.exists()


@pytest.mark.parametrize(("right", "line"), [
    (f"Item.Read/{TAKE}", f"missing  right Job/Read {TAKE} of user builds"),
    (f"Item.Build/{TAKE}", f"missing  right Job/Build {TAKE} of user builds"),
])
def test_the_user_of_builds_may_start_the_job_that_takes_the_node(desk: Desk, right: str, line: str) -> None:
    desk.standin.knobs(rights=may("builds", right))
    assert wrong(desk.check(*desk.core(), expect=1)) == [line]


def test_the_user_of_builds_may_read(desk: Desk) -> None:
    desk.standin.knobs(rights=may("builds", "Overall.Read"))
    assert wrong(desk.check(*desk.core(), expect=1)) == [
        "wrong    [jenkins] node_user and node_apikey of the secure configuration: 403, this user needs the right "
        "Overall/Read", "missing  right Overall/Read of user builds"]


def test_the_user_of_builds_is_one_that_jenkins_knows(desk: Desk) -> None:
    assert wrong(desk.check(*desk.core(node_user="nobody"), expect=1)) == [
        "wrong    [jenkins] node_user and node_apikey of the secure configuration: 401, user or password (API key) is "
        "wrong",
        "missing  user nobody: Jenkins knows no such user, or knows it no more"]


def test_a_user_of_builds_is_asked_for_beside_everything_else(desk: Desk) -> None:
    lines = desk.check(*desk.core(node_user="", node_apikey=""), expect=1)
    assert wrong(lines) == ["missing  [jenkins] node_user and node_apikey in the secure configuration: with plugins: "
                            "core gate builds call Jenkins from their nodes"]
    assert "ok       credential nodes, user jenkins" in lines


def test_builds_that_call_jenkins_must_be_told_where_it_is(desk: Desk) -> None:
    options = desk.core()
    desk.standin.knobs(has_address=False)
    assert wrong(desk.check(*options, expect=1)) == [
        "missing  address of Jenkins: enter it under Manage Jenkins, System; without it gate builds have no "
        "JENKINS_URL to call"]


def test_other_builds_need_not_be_told_where_jenkins_is(desk: Desk) -> None:
    desk.standin.knobs(has_address=False)
    assert desk.check(expect=0) == ALL_IS_WELL[:-1]


# Jenkins gives no answer, or a useless one


AS_SCRIPTS = "unknown  Jenkins URL, asked as user scripts of the secure configuration: "


def test_a_jenkins_that_is_down_is_one_line(desk: Desk) -> None:
    host, port = free_address()
    url = f"http://{host}:{port}/"
    desk.pool.write_secure_config(server=url)
    assert wrong(desk.check(expect=1)) == [f"{AS_SCRIPTS}no answer (Connection refused)".replace("URL", url)]


def test_a_jenkins_that_starts_is_one_line(desk: Desk) -> None:
    desk.standin.knobs(starting_up=True)
    assert wrong(desk.check(expect=1)) == [
        f"{AS_SCRIPTS}503 Service Unavailable; Jenkins is starting, or a proxy does not reach it"]


def test_a_wrong_api_key_is_one_line(desk: Desk) -> None:
    desk.pool.write_secure_config(apikey="wrong")
    assert wrong(desk.check(expect=1)) == [f"{AS_SCRIPTS}401, user or password (API key) is wrong"]


def test_a_user_who_may_not_even_read_is_one_line(desk: Desk) -> None:
    desk.standin.knobs(rights=may("scripts", "Overall.Read"))
    assert wrong(desk.check(expect=1)) == [f"{AS_SCRIPTS}403, this user needs the right Overall/Read"]


def test_what_is_no_jenkins_is_one_line(desk: Desk) -> None:
    desk.pool.write_secure_config(server=f"{desk.standin.url}elsewhere/")
    assert wrong(desk.check(expect=1)) == [
        f"{AS_SCRIPTS}404 Not Found; is this the address of a Jenkins?".replace("URL", "URLelsewhere/")]


def test_without_an_administrators_login_the_rest_is_unknown(desk: Desk) -> None:
    lines = desk.check(expect=1, conf=False)
    assert lines == [*ALL_IS_WELL[:5], "unknown  plugins, rights, credential, address: only an administrator can tell; "
                                       "name the jenkins_jobs.ini with which you load jobs: --conf FILE"]


@pytest.mark.parametrize(("user", "password", "reason"), [
    ("reader", "reader-token", "403, this user needs the right Overall/Administer"),
    ("boss", "wrong", "401, user or password (API key) is wrong"),
])
def test_a_login_that_is_no_administrators_is_named(desk: Desk, user: str, password: str, reason: str) -> None:
    desk.log_in(user, password)
    asked_as = ASKED_AS.format(user)
    assert wrong(desk.check(expect=1)) == [
        f"unknown  plugins, rights, credential, address, {asked_as}: {reason}"]


def test_the_password_of_another_jenkins_is_not_sent_to_this_one(desk: Desk) -> None:
    desk.log_in("boss", "boss-token", url="http://127.0.0.2:9/")
    assert wrong(desk.check(expect=1)) == [
        "wrong    url http://127.0.0.2:9/ in jenkins_jobs.ini: expected URL, the server of the secure configuration, "
        "so that jobs are loaded where the scripts work"]
    assert "boss" not in {request["user"] for request in desk.standin.look()["requests"]}


@pytest.mark.parametrize(("knobs", "start"), [
    ({"answers": [{"match": "POST /scriptText", "status": 500}]}, "500 Server Error"),
    ({"plugins": without("credentials")},
     "org.codehaus.groovy.control.MultipleCompilationErrorsException: startup failed: Script1.groovy: "),
])
def test_a_script_that_fails_leaves_the_rest_told(desk: Desk, knobs: dict[str, Any], start: str) -> None:
    desk.standin.knobs(**knobs)
    lines = desk.check(expect=1)
    assert [line for line in wrong(lines) if line.startswith("unknown")] == [lines[-1]]
    asked_as = ASKED_AS.format("boss")
    assert lines[-1].startswith(f"unknown  rights, credential, address, {asked_as}: {start}")
    assert len(lines[-1]) < 320


# Wrong use or configuration


@pytest.mark.parametrize(("text", "message"), [
    (None, "cannot be read (No such file or directory)"),
    ("user=boss\n", "not an INI file: line 1: expected key = value in a [section]"),
    ("[jenkins]\nuser=boss\npassword hunter2\n", "not an INI file: line 3: expected key = value in a [section]"),
    ("\ufeff[jenkins]\npassword=x\n", "[jenkins] user is missing"),  # some editors put a byte order mark first
    ("[jenkins]\npassword=x\n", "[jenkins] user is missing"),
    ("[jenkins]\nuser=boss\n", "[jenkins] password is missing"),
    ("[job_builder]\n", "[jenkins] user is missing"),
])
def test_a_login_file_that_is_none_is_refused(desk: Desk, text: str | None, message: str) -> None:
    if text is not None:
        (desk.pool.folder / "other.ini").write_text(text)
    assert desk.refused("--conf", "other.ini") == f"check.py: other.ini: {message}"


def test_without_a_section_for_jenkins_there_is_nothing_to_check(desk: Desk) -> None:
    desk.pool.secure_config.write_text("[node]\nuser = jenkins\n")
    assert desk.refused("--conf", "jenkins_jobs.ini") == (
        "check.py: HOME/secure.conf: [jenkins] is missing; without Jenkins there are no jobs")


PART = "expected '- {}:' with 'name: {}', as in the file that comes with the project"


@pytest.mark.parametrize(("change", "message"), [
    (lambda text: None, "cannot be read (No such file or directory)"),
    (lambda text: "- : ]\n", "not YAML (while parsing ..."),
    (lambda text: "", PART.format("defaults", "global")),
    (lambda text: "providers: [one]\n", PART.format("defaults", "global")),
    (lambda text: text.partition("- project:")[0], PART.format("project", "gate")),
    *((lambda text, key=key: re.sub(rf"(?m)^    {key}:.*\n(      -.*\n)*", "", text), f"{key} is missing")
      for key in ("providers", "host", "plugins", "gate_triggers", "gate_rights", "jobs")),
    (lambda text: text.replace("plugins: full", "plugins: some"), "plugins: expected full or core, got 'some'"),
    (lambda text: text.replace("plugins: full", "plugins: [core]"), "plugins: expected a word, got ['core']"),
    (lambda text: re.sub(r"providers:\n(      -.*\n)+", "providers: rax-ord\n", text),
     "providers: expected a list, got 'rax-ord'"),
    (lambda text: text.replace("gate_rights: {}", "gate_rights: []"), "gate_rights: expected a mapping, got []"),
    (lambda text: text.replace("gate_rights: {}", "gate_rights: {anna: job-read}"),
     "gate_rights: anna: expected a list such as [job-read], got 'job-read'"),
    (lambda text: text.replace("image: noble", "label: noble"), "suffix '': image is missing"),
    (lambda text: text.replace("- '':\n          image: noble", "- '-noble'"), "suffix '-noble': image is missing"),
])
def test_a_defaults_file_that_is_none_is_refused_by_key(
    desk: Desk, change: Callable[[str], str | None], message: str
) -> None:
    text = change((PROJECT / "jobs/defaults.yaml").read_text())
    if text is not None:
        (desk.pool.folder / "mine.yaml").write_text(text)
    said = desk.refused("--conf", "jenkins_jobs.ini", "--defaults", "mine.yaml")
    start, dots, _ = f"check.py: mine.yaml: {message}".partition("...")
    assert said.startswith(start) if dots else said == start


# Versions


def test_versions_of_plugins_are_put_in_order() -> None:
    numbers: Callable[[str], list[int]] = load_script(CHECK)._numbers
    ordered = ["1.9", "1.18", "1.18.1", "1.29", "1.31.5", "2.0", "2.3", "2.3.15", "2.35.2", "3.28", "3.28-1", "3.29",
               "505.v5f0844d8d126", "545.v9d4fc2f8d2b_7", "545.547.vb_f8a_d4e12", "1254.v3f64639b_11dd"]
    for older, newer in pairwise(ordered):
        assert numbers(older) < numbers(newer), (older, newer)


@pytest.mark.parametrize(("one", "same"), [
    ("2.0", "2"), ("2.0", "2.0.0"), ("545.v9d4fc2f8d2b_7", "545.v1234"), ("2.0", "2.0-SNAPSHOT (private-x)"),
])
def test_words_and_last_zeros_of_versions_do_not_count(one: str, same: str) -> None:
    numbers: Callable[[str], list[int]] = load_script(CHECK)._numbers
    assert numbers(one) == numbers(same)


# The console of the stand-in


@pytest.fixture
def console(standin: StandIn) -> Iterator[jenkins.Jenkins]:
    yield jenkins.Jenkins(standin.url, "boss", "boss-token", timeout=60)
    clear_jenkins(standin)


def test_the_console_runs_what_is_posted(console: jenkins.Jenkins) -> None:
    printed = console.run_script("println([1, 2].sum())\nprintln(Jenkins.get().getClass().name)")
    assert printed == "3\njenkins.model.Jenkins"


@pytest.mark.parametrize(("script", "error"), [
    ("throw new IllegalStateException('so')", r"java\.lang\.IllegalStateException: so\n\tat "),
    ("nothing", r"groovy\.lang\.MissingPropertyException: No such property: nothing"),
    ("println((", r"org\.codehaus\.groovy\.control\.MultipleCompilationErrorsException: startup failed"),
])
def test_the_console_shows_where_a_script_failed(console: jenkins.Jenkins, script: str, error: str) -> None:
    with pytest.raises(jenkins.JenkinsException, match=error):
        console.run_script(script)


def test_the_console_is_for_administrators(standin: StandIn) -> None:
    reader = jenkins.Jenkins(standin.url, "scripts", "scripts-token", timeout=60)
    with pytest.raises(jenkins.JenkinsException, match=r"\[403\]"):
        reader.run_script("println(1)")


def test_a_login_for_nodes_that_does_not_work_or_is_too_much_is_wrong(desk: Desk) -> None:
    options = desk.core(node_apikey="nonsense")
    what = "wrong    [jenkins] node_user and node_apikey of the secure configuration: "
    assert f"{what}401, user or password (API key) is wrong" in desk.check(*options, expect=1)

    options = desk.core(node_user="scripts", node_apikey="scripts-token")
    assert [line for line in desk.check(*options, expect=1) if "expected another user than scripts: " in line]


def test_a_login_for_nodes_that_no_job_uses_is_wrong(desk: Desk) -> None:
    desk.pool.write_secure_config(
        user="scripts", apikey="scripts-token", node_user="builds", node_apikey="builds-token")
    assert [line for line in desk.check(expect=1) if not line.startswith("ok")] == [
        "wrong    [jenkins] node_user of the secure configuration: user builds is given to each node, and no gate job "
        "uses it; remove it"]


def test_a_prefix_that_the_scripts_do_not_have_is_wrong(desk: Desk) -> None:
    lines = desk.check(*desk.defaults(("prefix: ''", "prefix: staging-")), expect=1)
    assert [line for line in lines if not line.startswith("ok")] == [
        "wrong    prefix staging- in defaults.yaml: expected none, as DEVSTACK_GATE_PREFIX says; no node has the label "
        "that gate jobs ask for"]


@pytest.mark.parametrize("jobs", ["gate-freestyle\n      - gate-pipeline", "gate-freestile"])
def test_gate_jobs_that_cannot_be_loaded_are_wrong_use(desk: Desk, jobs: str) -> None:
    said = desk.refused(*desk.defaults(("      - gate-freestyle\n", f"      - {jobs}\n")))
    assert "jobs: expected one of gate-freestyle and gate-pipeline, got [" in said


# Other jobs on the pool's nodes


@pytest.mark.parametrize(("expression", "labels"), [
    ("devstack-noble", {"devstack-noble"}), ('"devstack-noble"&&"very big"', {"devstack-noble", "very big"}),
    ("(linux||devstack-noble)", {"linux", "devstack-noble"}), ("linux->devstack-noble", {"linux", "devstack-noble"}),
    ("a <-> b", {"a", "b"}), ("linux && !devstack-noble", {"linux"}), ("", set()),
])
def test_the_labels_of_an_expression(expression: str, labels: set[str]) -> None:
    assert load_script(CHECK).labels_asked_for(expression) == labels


def test_a_job_of_others_on_the_nodes_of_the_pool_is_named(desk: Desk) -> None:
    told = "wrong    job others: runs on devstack-noble; expected gate jobs only: no machine is taken for it"
    desk.standin.add_job("others", "linux||devstack-noble")
    try:
        assert wrong(desk.check(expect=1)) == [told]
        assert wrong(desk.check(*desk.core(), expect=1)) == [
            f"{told}, and it can read the login with which gate builds call Jenkins"]
    finally:
        requests.post(f"{desk.standin.url}job/others/doDelete", auth=("boss", "boss-token"), timeout=30)
    assert desk.pool.jenkins
    assert wrong(desk.check(*desk.core(), expect=0)) == []
