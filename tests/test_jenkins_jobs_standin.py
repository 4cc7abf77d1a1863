"""The stand-in for Jenkins runs jobs that Jenkins Job Builder loads into it, as Jenkins 2.263.4 and the plugins would.

How they would is taken from their sources and documentation: recordings show such jobs being loaded, but no build.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jenkins
import pytest
import requests

import jenkinsnodes
from tests.pocketjenkins.client import StandIn
from tests.pocketjenkins.labels import fits
from tests.pocketjenkins.parameters import read_properties, replace_macros
from tests.pocketjenkins.plugins import RECORDED
from tests.support.pool import await_that, make_key
from tests.support.sshserver import Sshd

USERS = {"admin": ("admin-password", "admin-token"), "zuul": ("zuul-password", "zuul-token")}
PLUGINS = {
    **RECORDED,
    "parameterized-trigger": "2.39",
    "build-timeout": "1.20",
    "timestamper": "1.11.8",
    "build-name-setter": "2.1.0",
}
WAIT_SECONDS = 30.0
CALL_SECONDS = 20.0

Load = Callable[[str], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("jenkins-jobs")


@pytest.fixture(scope="module")
def sshd(folder: Path) -> Iterator[Sshd]:
    server = Sshd(folder / "sshd", make_key(folder).with_suffix(".pub").read_text())
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def site(folder: Path, sshd: Sshd) -> Iterator[StandIn]:
    """Run a Jenkins whose host has the label `controller`, with a node n1 of label `lab` that it reaches by ssh."""
    knobs = {
        "plugins": PLUGINS,
        "master_label": "controller",
        "master_executors": 4,
        "master_environment": {"GREETING": "hello"},
        "reconnect_seconds": 0.2,
    }
    with StandIn(folder / "jenkins", USERS, {"nodes": ("root", make_key(folder))}, knobs) as running:
        client(running).create_node(
            "n1", numExecutors=2, remoteFS=str(sshd.root), labels="lab", exclusive=True, launcher=jenkins.LAUNCHER_SSH,
            launcher_params={"host": sshd.host, "port": str(sshd.port), "credentialsId": "nodes"})
        yield running


@pytest.fixture
def standin(site: StandIn) -> Iterator[StandIn]:
    """Yield that Jenkins with n1 online and no job; delete the jobs afterwards."""
    site.knobs(plugins=PLUGINS, rights={}, minute_seconds=60.0)
    site.wait_node("n1", "online", WAIT_SECONDS)
    yield site
    for job in client(site).get_all_jobs():
        client(site).delete_job(job["name"])


@pytest.fixture
def load(standin: StandIn, tmp_path: Path) -> Load:
    """Return a function that loads jobs written in YAML with jenkins-jobs update."""
    def update(text: str, *options: str) -> None:
        (tmp_path / "jobs.yaml").write_text(text)
        ini = f"[jenkins]\nurl={standin.url}\nuser={standin.user}\npassword={standin.token}\n"
        (tmp_path / "jobs.ini").write_text(ini)
        argv = [sys.executable, "-m", "jenkins_jobs", *options, "--conf", str(tmp_path / "jobs.ini"), "update",
                str(tmp_path / "jobs.yaml")]
        environment = {**os.environ, "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
    return update


def client(standin: StandIn) -> jenkins.Jenkins:
    return jenkins.Jenkins(standin.url, standin.user, standin.token, timeout=CALL_SECONDS)


def ask(standin: StandIn, path: str, **query: str) -> Any:
    """Return what the JSON API says."""
    answer = requests.get(f"{standin.url}{path}api/json", params=query, auth=(standin.user, standin.token),
                          timeout=CALL_SECONDS)
    assert answer.status_code == 200, answer.text[:300]
    return answer.json()


def post(standin: StandIn, path: str, user: str = "admin", **form: str) -> requests.Response:
    return requests.post(f"{standin.url}{path}", data=form, auth=(user, f"{user}-token"), timeout=CALL_SECONDS,
                         allow_redirects=False)


def run(standin: StandIn, job: str, **parameters: str) -> dict[str, Any]:
    """Run a build to its end; return it."""
    started = standin.wait_started(standin.build(job, **parameters), WAIT_SECONDS)
    return standin.wait_build(job, started["number"], WAIT_SECONDS)


def ended(standin: StandIn, job: str, number: int = 1) -> dict[str, Any]:
    """Wait for the end of a build that something else has asked for; return it."""
    await_that(f"{job} #{number}", lambda: any((one["job"], one["number"]) == (job, number)
                                               for one in standin.look()["builds"]), WAIT_SECONDS)
    return standin.wait_build(job, number, WAIT_SECONDS)


def said(build: dict[str, Any]) -> list[str]:
    """Return what the steps of a build have printed, without traces and Jenkins' own first and last lines."""
    lines = str(build["console"]).splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("Building ")) + 1
    return [line for line in lines[first:-1] if not line.startswith(("+ ", "["))]


def shell(name: str, command: str, node: str = "controller", more: str = "") -> str:
    """Return a job with one step, in YAML."""
    text = json.dumps(command)
    return f"- job:\n    name: {name}\n    node: {node}\n    builders: [{{shell: {text}}}]\n{more}"


# Loading


JOB = """
- job:
    name: gate
    node: controller
    description: A job
    parameters:
      - string: {name: CHANGE, default: none, description: what is tested}
      - choice: {name: KIND, choices: [full, quick]}
      - bool: {name: KEEP, default: false}
      - text: {name: NOTE, default: "two\\nlines"}
      - password: {name: SECRET, default: hush}
    builders:
      - shell: |
          #!/bin/sh
          echo "$CHANGE $KIND $KEEP $SECRET"
          echo "$NOTE"
          echo "unknown: $UNKNOWN"
"""


def test_a_second_update_changes_nothing(standin: StandIn, load: Load) -> None:
    load(JOB)
    first = client(standin).get_job_config("gate")
    standin.reset_calls()
    load(JOB)
    assert "POST /job/{name}/config.xml" not in standin.calls()
    assert client(standin).get_job_config("gate") == first


def test_an_update_that_is_forced_adds_what_jenkins_jobs_itself_asks_about(standin: StandIn, load: Load) -> None:
    load(JOB)
    first = client(standin).get_job_config("gate")
    for _ in range(2):
        load(JOB, "--ignore-cache")  # type: ignore[call-arg]
        assert client(standin).get_job_config("gate") == first.replace(
            "</project>", "  <disabled>false</disabled>\n</project>")


def test_an_update_keeps_the_builds_of_a_job(standin: StandIn, load: Load) -> None:
    load(shell("gate", "echo one"))
    run(standin, "gate")
    load(shell("gate", "echo two"))
    assert said(run(standin, "gate")) == ["two"]
    assert [build["number"] for build in ask(standin, "job/gate/")["builds"]] == [2, 1]
    assert ask(standin, "job/gate/", tree="nextBuildNumber,lastBuild[number,result]") == {
        "_class": "hudson.model.FreeStyleProject", "nextBuildNumber": 3,
        "lastBuild": {"_class": "hudson.model.FreeStyleBuild", "number": 2, "result": "SUCCESS"}}


def test_jenkins_jobs_sees_the_plugins_that_are_there(standin: StandIn) -> None:
    plugins = client(standin).get_plugins()
    assert plugins["parameterized-trigger"]["version"] == "2.39"
    tree = ask(standin, "pluginManager/", tree="plugins[shortName,version]")["plugins"]
    assert {plugin["shortName"]: plugin["version"] for plugin in tree} == PLUGINS


def test_what_belongs_to_a_plugin_that_is_not_there_is_left_out(standin: StandIn, load: Load) -> None:
    standin.knobs(plugins=RECORDED)
    load("""
- job:
    name: gate
    node: controller
    wrappers: [{timeout: {timeout: 1}}, {build-name: {name: renamed}}]
    builders:
      - trigger-builds: [{project: nothing, block: true}]
      - shell: echo here
    publishers:
      - trigger-parameterized-builds: [{project: nothing, trigger-with-no-params: true}]
""")
    build = run(standin, "gate")
    assert (build["result"], said(build)) == ("SUCCESS", ["here"])
    assert "TriggerBuilder" in client(standin).get_job_config("gate")


def test_a_job_of_a_plugin_that_is_not_there_is_refused(standin: StandIn) -> None:
    standin.knobs(plugins={})
    with pytest.raises(jenkins.JenkinsException, match=r"\[500\]"):
        client(standin).create_job("m", "<matrix-project/>")


# Parameters, environment, shell steps


def test_a_build_gets_defaults_and_what_is_given_and_nothing_undefined(standin: StandIn, load: Load) -> None:
    load(JOB)
    assert said(run(standin, "gate")) == ["none full false hush", "two", "lines", "unknown: "]
    build = run(standin, "gate", CHANGE="12", KIND="quick", KEEP="true", NOTE="x", UNKNOWN="1")
    assert said(build) == ["12 quick true hush", "x", "unknown: "]
    (action,) = [one for one in ask(standin, "job/gate/2/", tree="actions[parameters[name,value]]")["actions"]
                 if "parameters" in one]
    assert [(one["name"], one.get("value")) for one in action["parameters"]] == [
        ("CHANGE", "12"), ("KIND", "quick"), ("KEEP", True), ("NOTE", "x"), ("SECRET", None)]


def test_an_illegal_choice_is_refused(standin: StandIn, load: Load) -> None:
    load(JOB)
    answer = post(standin, "job/gate/buildWithParameters", KIND="other")
    assert answer.status_code == 400
    assert "Illegal choice for parameter KIND: other" in answer.text


@pytest.mark.parametrize(("more", "path", "status"), [
    ("    disabled: true\n", "build", 409),
    ("", "buildWithParameters", 500),
    ("    parameters: [{string: {name: CHANGE}}]\n", "build", 400),
])
def test_what_jenkins_does_not_build_is_refused(standin: StandIn, load: Load, more: str, path: str, status: int
                                                ) -> None:
    load(shell("gate", "true", more=more))
    assert post(standin, f"job/gate/{path}").status_code == status


def test_a_step_on_the_host_has_the_environment_of_its_build(standin: StandIn, load: Load) -> None:
    names = ["JOB_NAME", "JOB_BASE_NAME", "BUILD_NUMBER", "BUILD_ID", "BUILD_TAG", "BUILD_URL", "JOB_URL",
             "JENKINS_URL", "HUDSON_URL", "NODE_NAME", "NODE_LABELS", "WORKSPACE", "PWD", "GREETING"]
    load(shell("gate", "env"))
    seen = dict(line.partition("=")[::2] for line in said(run(standin, "gate")) if "=" in line)
    workspace = str(standin.root / "workspace/gate")
    assert [seen[name] for name in names] == [
        "gate", "gate", "1", "1", "jenkins-gate-1", f"{standin.url}job/gate/1/", f"{standin.url}job/gate/", standin.url,
        standin.url, "master", "controller master", workspace, workspace, "hello"]
    assert ask(standin, "job/gate/1/")["builtOn"] == ""


@pytest.mark.parametrize("node", ["controller", "lab"])
def test_a_script_runs_by_its_first_line_or_by_sh_that_stops_at_a_failure(
    standin: StandIn, load: Load, node: str
) -> None:
    load(f"""
- job:
    name: gate
    node: {node}
    builders:
      - shell: |
          #!/usr/bin/env python3
          import sys, os; print("python", os.path.basename(sys.argv[0])[:7])
      - shell: echo "${{{{0%jenkins*}}}}"; false; echo not reached
      - shell: echo not reached
""")
    build = run(standin, "gate")
    where = f"{standin.root}/tmp/" if node == "controller" else "/tmp/"
    assert said(build) == ["python jenkins", where, "Build step 'Execute shell' marked build as failure"]
    assert (build["result"], "$ /usr/bin/env python3 " in build["console"]) == ("FAILURE", True)
    assert "$ /bin/sh -xe " in build["console"]


def test_an_exit_status_can_mean_unstable_and_the_next_step_runs(standin: StandIn, load: Load) -> None:
    load("""
- job:
    name: gate
    node: controller
    builders:
      - shell: {command: exit 3, unstable-return: 3}
      - shell: echo next
""")
    build = run(standin, "gate")
    assert (build["result"], said(build)[-1]) == ("UNSTABLE", "next")


def test_a_second_build_waits_unless_the_job_is_concurrent(standin: StandIn, load: Load, tmp_path: Path) -> None:
    wait = f'until test -e "{tmp_path}/go"; do sleep 0.05; done; echo "$WORKSPACE"'
    load(shell("alone", wait) + shell("many", wait, more="    concurrent: true\n"))
    standin.wait_started(standin.build("alone"))
    item = standin.build("alone")
    assert "Build #1 is already in progress" in ask(standin, f"queue/item/{item}/")["why"]
    for _ in range(2):
        standin.wait_started(standin.build("many"))
    (tmp_path / "go").touch()
    workspaces = [said(standin.wait_build("many", number))[0] for number in (1, 2)]
    assert workspaces == [f"{standin.root}/workspace/many", f"{standin.root}/workspace/many@2"]
    standin.wait_build("alone", 2)
    assert ask(standin, f"queue/item/{item}/", tree="cancelled,executable[number,url]") == {
        "_class": "hudson.model.Queue$LeftItem", "cancelled": False, "executable": {
            "_class": "hudson.model.FreeStyleBuild", "number": 2, "url": f"{standin.url}job/alone/2/"}}


# Triggers


CALLER = """
- job:
    name: caller
    node: controller
    builders:
      - trigger-builds:
          - project: the-callee
            block: true
            block-thresholds: {build-step-failure-threshold: %s, unstable-threshold: %s, failure-threshold: %s}
      - shell: echo next
"""


@pytest.mark.parametrize(("exit_status", "thresholds", "result", "last"), [
    (0, ("FAILURE", "UNSTABLE", "FAILURE"), "SUCCESS", "next"),
    (1, ("FAILURE", "UNSTABLE", "FAILURE"), "FAILURE",
     "Build step 'Trigger/call builds on other projects' marked build as failure"),
    (1, ("never", "UNSTABLE", "FAILURE"), "FAILURE", "next"),
    (1, ("never", "UNSTABLE", "never"), "UNSTABLE", "next"),
    (3, ("FAILURE", "UNSTABLE", "FAILURE"), "UNSTABLE", "next"),
    (3, ("UNSTABLE", "never", "never"), "FAILURE",
     "Build step 'Trigger/call builds on other projects' marked build as failure"),
])
def test_a_build_that_is_waited_for_decides_about_the_one_that_waits(
    standin: StandIn, load: Load, exit_status: int, thresholds: tuple[str, str, str], result: str, last: str
) -> None:
    load(CALLER % thresholds + "- job:\n    name: the-callee\n    node: controller\n    builders:\n"
         f"      - shell: {{command: exit {exit_status}, unstable-return: 3}}\n")
    build = run(standin, "caller")
    assert (build["result"], said(build)[-1]) == (result, last)


def test_the_steps_after_a_build_that_was_waited_for_know_of_it(standin: StandIn, load: Load) -> None:
    load("""
- job:
    name: caller
    node: controller
    parameters: [{string: {name: CHANGE, default: "7"}}]
    builders:
      - trigger-builds:
          - project: the-callee
            block: true
            current-parameters: true
            predefined-parameters: |
              NODE=$NODE_NAME
              TEXT=a\\nb $BUILD_TAG
      - shell: |
          #!/bin/sh
          env | grep TRIGGERED | sort
- job:
    name: the-callee
    node: lab
    parameters:
      - string: {name: NODE}
      - string: {name: TEXT}
      - string: {name: CHANGE}
      - string: {name: OWN, default: x}
    builders:
      - shell: |
          #!/bin/sh
          printf "%s\\n" "$NODE" "$TEXT" "$CHANGE $OWN"
""")
    assert said(run(standin, "caller")) == [
        "Waiting for the completion of the-callee", "the-callee #1 completed. Result was SUCCESS",
        "LAST_TRIGGERED_JOB_NAME=the_callee", "TRIGGERED_BUILD_NUMBERS_the_callee=1",
        "TRIGGERED_BUILD_NUMBER_the_callee=1", "TRIGGERED_BUILD_RESULT_the_callee=SUCCESS",
        "TRIGGERED_BUILD_RESULT_the_callee_RUN_1=SUCCESS", "TRIGGERED_BUILD_RUN_COUNT_the_callee=1",
        "TRIGGERED_JOB_NAMES=the_callee"]
    assert said(ended(standin, "the-callee")) == ["master", "a", "b jenkins-caller-1", "7 x"]
    actions = ask(standin, "job/the-callee/1/",
                  tree="actions[causes[shortDescription,upstreamProject,upstreamBuild]]")["actions"]
    assert [action["causes"] for action in actions if "causes" in action] == [[{
        "_class": "hudson.model.Cause$UpstreamCause", "upstreamProject": "caller", "upstreamBuild": 1,
        "shortDescription": 'Started by upstream project "caller" build number 1'}]]


def test_a_value_with_a_newline_gives_no_second_parameter(standin: StandIn, load: Load) -> None:
    """The plugin reads the properties first, and then replaces variables in their values."""
    load("""
- job:
    name: caller
    node: controller
    parameters: [{string: {name: NOTE}}]
    builders: [{trigger-builds: [{project: the-callee, block: true, predefined-parameters: COPY=$NOTE}]}]
- job:
    name: the-callee
    node: lab
    parameters: [{string: {name: COPY}}, {string: {name: OWN, default: untouched}}]
    builders: [{shell: 'true'}]
""")
    run(standin, "caller", NOTE="a\\tb\nOWN=other")
    assert ended(standin, "the-callee")["parameters"] == {"COPY": "a\\tb\nOWN=other", "OWN": "untouched"}


def test_a_job_that_is_not_there_fails_the_step_that_calls_it(standin: StandIn, load: Load) -> None:
    load(CALLER % ("FAILURE", "UNSTABLE", "FAILURE"))
    build = run(standin, "caller")
    assert build["result"] == "FAILURE"
    assert "Can't trigger undefined projects" in build["console"]


AFTER = """
- job:
    name: gate
    node: controller
    builders: [{shell: {command: exit %d, unstable-return: 3}}]
    publishers:
      - trigger-parameterized-builds:
"""
CONDITIONS = ("SUCCESS", "UNSTABLE", "FAILED", "UNSTABLE_OR_BETTER", "UNSTABLE_OR_WORSE", "FAILED_OR_BETTER", "ALWAYS")


@pytest.mark.parametrize(("exit_status", "due"), [
    (0, {"SUCCESS", "UNSTABLE_OR_BETTER", "FAILED_OR_BETTER", "ALWAYS"}),
    (1, {"FAILED", "UNSTABLE_OR_WORSE", "FAILED_OR_BETTER", "ALWAYS"}),
    (3, {"UNSTABLE", "UNSTABLE_OR_BETTER", "UNSTABLE_OR_WORSE", "FAILED_OR_BETTER", "ALWAYS"}),
])
def test_a_trigger_after_the_build_is_due_by_its_condition(
    standin: StandIn, load: Load, exit_status: int, due: set[str]
) -> None:
    text = AFTER % exit_status
    for condition in CONDITIONS:
        text += (f"          - {{project: after-{condition}, condition: {condition}, "
                 'predefined-parameters: "OF=$BUILD_NUMBER"}\n')
    load(text + "".join(shell(f"after-{condition}", "true") for condition in CONDITIONS))
    build = run(standin, "gate")
    triggered = {line.rpartition("-")[2] for line in said(build) if line.startswith("Triggering a new build of")}
    assert triggered == due


def test_a_trigger_without_parameters_does_nothing_unless_told(standin: StandIn, load: Load) -> None:
    load(AFTER % 0 + "          - {project: one}\n          - {project: two, trigger-with-no-params: true}\n"
         "          - {project: three, current-parameters: true}\n"
         + "".join(shell(name, "true") for name in ("one", "two", "three")))
    assert said(run(standin, "gate")) == [
        "[parameterized-trigger] Current build has no parameters.", "Triggering a new build of two"][1:]


@pytest.mark.parametrize(("threshold", "exit_status", "builds"), [
    ("SUCCESS", 0, 1), ("SUCCESS", 3, 0), ("UNSTABLE", 3, 1), ("UNSTABLE", 1, 0), ("FAILURE", 1, 1)])
def test_the_plain_trigger_is_due_at_its_threshold_or_better(
    standin: StandIn, load: Load, threshold: str, exit_status: int, builds: int
) -> None:
    load("- job:\n    name: gate\n    node: controller\n    builders:\n"
         f"      - shell: {{command: exit {exit_status}, unstable-return: 3}}\n"
         f"    publishers: [{{trigger: {{project: next, threshold: {threshold}}}}}]\n" + shell("next", "true"))
    build = run(standin, "gate")
    assert said(build).count("Triggering a new build of next") == builds


def test_equal_builds_that_wait_are_one_with_all_the_causes(standin: StandIn, load: Load) -> None:
    load("".join(shell(name, "true", more="    publishers: [{trigger: {project: next}}]\n") for name in ("one", "two"))
         + shell("next", "true", node="nowhere"))
    for name in ("one", "two"):
        run(standin, name)
    (item,) = ask(standin, "queue/", tree="items[actions[causes[shortDescription]],why]")["items"]
    assert item["why"].startswith("There are no nodes with the label ")
    assert [cause["shortDescription"] for action in item["actions"] for cause in action["causes"]] == [
        f'Started by upstream project "{name}" build number 1' for name in ("one", "two")]


def test_a_background_process_does_not_hold_up_the_build(standin: StandIn, load: Load) -> None:
    for node in ("controller", "lab"):
        load(shell(f"gate-{node}", "#!/bin/sh\nsleep 60 &\necho done", node))
        assert said(run(standin, f"gate-{node}")) == ["done"]


# What a build leaves


ARCHIVE = """
- job:
    name: gate
    node: %s
    builders:
      - shell: |
          mkdir -p logs/deep other && echo one >logs/one.txt && echo two >logs/deep/two.txt && echo no >other/no.txt
    publishers:
      - archive: {artifacts: "%s", allow-empty: %s, excludes: "**/*.tmp"}
"""


@pytest.mark.parametrize("node", ["controller", "lab"])
def test_artifacts_are_kept_listed_and_served(standin: StandIn, load: Load, node: str) -> None:
    load(ARCHIVE % (node, "logs/**", "false"))
    build = run(standin, "gate")
    assert (build["result"], said(build)) == ("SUCCESS", ["Archiving artifacts"])
    paths = [one["relativePath"] for one in ask(standin, "job/gate/1/", tree="artifacts[relativePath]")["artifacts"]]
    assert sorted(paths) == ["logs/deep/two.txt", "logs/one.txt"]
    answer = requests.get(f"{standin.url}job/gate/1/artifact/logs/deep/two.txt", auth=("admin", "admin-token"),
                          timeout=CALL_SECONDS)
    assert (answer.status_code, answer.text) == (200, "two\n")


@pytest.mark.parametrize(("allow_empty", "result"), [("true", "SUCCESS"), ("false", "FAILURE")])
def test_a_missing_artifact_fails_the_build_unless_allowed(
    standin: StandIn, load: Load, allow_empty: str, result: str
) -> None:
    load(ARCHIVE % ("controller", "nothing/*", allow_empty))
    build = run(standin, "gate")
    assert build["result"] == result
    assert 'No artifacts found that match the file pattern "nothing/*". Configuration error?' in build["console"]


@pytest.mark.parametrize(("case", "allow_empty", "result"), [
    ("<testcase/>", "false", "SUCCESS"), ("<testcase><failure/></testcase>", "false", "UNSTABLE"),
    ("", "true", "SUCCESS"), ("", "false", "FAILURE")])
def test_a_failed_test_makes_the_build_unstable(
    standin: StandIn, load: Load, case: str, allow_empty: str, result: str
) -> None:
    make = f"rm -rf r; mkdir r; test -z '{case}' || echo '<testsuite>{case}</testsuite>' >r/t.xml"
    publish = f"    publishers: [{{junit: {{results: r/*.xml, allow-empty-results: {allow_empty}}}}}]\n"
    load(shell("gate", make, more=publish))
    assert run(standin, "gate")["result"] == result


# Ends from outside


DELETE = """    publishers:
      - trigger-parameterized-builds:
          - {project: delete, condition: ALWAYS, predefined-parameters: "OF=$BUILD_NUMBER"}
"""


@pytest.mark.parametrize("node", ["controller", "lab"])
def test_an_aborted_step_may_clean_up_and_the_triggers_after_the_build_are_due(
    standin: StandIn, load: Load, tmp_path: Path, node: str
) -> None:
    trap = f"trap 'echo cleaned >{tmp_path}/cleaned; exit 0' TERM"
    command = f"#!/bin/bash\n{trap}\ntouch {tmp_path}/up\nsleep 60 & wait\n"
    load(shell("gate", command, node, DELETE) + shell("delete", "true"))
    standin.build("gate")
    await_that("the step", (tmp_path / "up").exists)
    post(standin, "job/gate/1/stop")
    assert standin.wait_build("gate", 1)["result"] == "ABORTED"
    await_that("the trap", (tmp_path / "cleaned").exists)
    assert ended(standin, "delete")["result"] == "SUCCESS"


def test_a_step_that_ignores_sigterm_is_killed(standin: StandIn, load: Load, tmp_path: Path) -> None:
    load(shell("gate", f"trap '' TERM; echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 60"))
    standin.build("gate")
    await_that("the step", (tmp_path / "pid").exists)
    post(standin, "job/gate/1/stop")
    assert standin.wait_build("gate", 1)["result"] == "ABORTED"
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


@pytest.mark.parametrize(("fail", "result"), [("false", "ABORTED"), ("true", "FAILURE")])
def test_a_build_that_takes_too_long_is_ended(standin: StandIn, load: Load, fail: str, result: str) -> None:
    standin.knobs(minute_seconds=0.05)
    limit = f"    wrappers: [{{timeout: {{timeout: 3, fail: {fail}}}}}]\n"
    load(shell("gate", "sleep 60", more=limit + DELETE) + shell("delete", "true"))
    build = run(standin, "gate")
    assert build["result"] == result
    word = "failed" if fail == "true" else "aborted"
    assert f"Build timed out (after 3 minutes). Marking the build as {word}." in build["console"]
    assert ended(standin, "delete")["result"] == "SUCCESS"


def test_a_lost_node_fails_the_build_and_the_triggers_after_it_are_due(
    standin: StandIn, load: Load, tmp_path: Path
) -> None:
    archive = DELETE + '      - archive: {artifacts: "*", allow-empty: true}\n'
    load(shell("gate", f"touch {tmp_path}/up; sleep 60", "lab", archive) + shell("delete", "true"))
    standin.build("gate")
    await_that("the step", (tmp_path / "up").exists)
    standin.node("n1", die=True)
    build = standin.wait_build("gate", 1, WAIT_SECONDS)
    assert build["result"] == "FAILURE"
    assert "no workspace for gate #1" in build["console"]
    assert ended(standin, "delete")["result"] == "SUCCESS"


def test_stopping_jenkins_ends_the_steps_on_its_host(tmp_path: Path) -> None:
    command = f"echo $$ &gt;{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; sleep 60"
    step = f"<hudson.tasks.Shell><command>{command}</command></hudson.tasks.Shell>"
    xml = f"<project><builders>{step}</builders></project>"
    with StandIn(tmp_path / "jenkins") as standin:
        client(standin).create_job("gate", xml)
        standin.build("gate")
        await_that("the step", (tmp_path / "pid").exists)
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_what_the_stand_in_does_not_model_is_said_and_a_pipeline_fails(standin: StandIn) -> None:
    standin.knobs(plugins={**PLUGINS, "workflow-job": "2.40"})
    client(standin).create_job("other", "<project><builders><hudson.tasks.Maven/></builders></project>")
    client(standin).create_job("pipeline", "<flow-definition/>")
    build = run(standin, "other")
    assert (build["result"], said(build)) == ("SUCCESS", ["The stand-in for Jenkins does not model hudson.tasks.Maven"])
    assert run(standin, "pipeline")["result"] == "FAILURE"


# Names, matrices, rights


def test_a_build_can_be_named(standin: StandIn, load: Load) -> None:
    macros = '#${{BUILD_NUMBER}} of ${{ENV,var="JOB_NAME"}}${{ENV,var="UNSET"}}'
    name = f"    wrappers: [timestamps, {{build-name: {{name: '{macros}'}}}}]\n"
    load(shell("gate", "true", more=name))
    run(standin, "gate")
    shown = ask(standin, "job/gate/1/", tree="displayName,fullDisplayName")
    assert (shown["displayName"], shown["fullDisplayName"]) == ("#1 of gate", "gate #1 of gate")


MATRIX = """
- job:
    name: matrix
    project-type: matrix
    node: controller
    axes:
      - axis: {type: user-defined, name: PROVIDER, values: [one, two]}
      %s
    builders: [{shell: 'echo "$PROVIDER on $NODE_NAME in $WORKSPACE"; test "$PROVIDER" != "%s"'}]
    publishers: [{archive: {artifacts: none, allow-empty: true}}, {trigger: {project: next, threshold: FAILURE}}]
"""


@pytest.mark.parametrize(("failing", "result"), [("none", "SUCCESS"), ("two", "FAILURE")])
def test_a_matrix_is_a_build_of_each_combination_and_as_bad_as_the_worst(
    standin: StandIn, load: Load, failing: str, result: str
) -> None:
    load(MATRIX % ("", failing) + shell("next", "true"))
    build = run(standin, "matrix")
    assert (build["result"], said(build).count("Triggering a new build of next")) == (result, 1)
    runs = ask(standin, "job/matrix/1/", tree="runs[number,url,result]")["runs"]
    assert [(one["number"], one["url"]) for one in runs] == [
        (1, f"{standin.url}job/matrix/PROVIDER={name}/1/") for name in ("one", "two")]
    cell = ask(standin, "job/matrix/PROVIDER=two/1/")
    assert (cell["fullDisplayName"], cell["result"]) == ("matrix \N{RIGHT-POINTING DOUBLE ANGLE QUOTATION MARK} two #1",
                                                         result)
    assert jenkinsnodes.build_path("matrix/PROVIDER=two", 1) == "job/matrix/PROVIDER=two/1/"
    console = requests.get(f"{standin.url}job/matrix/PROVIDER=two/1/consoleText", auth=("admin", "admin-token"),
                           timeout=CALL_SECONDS).text
    assert f"two on master in {standin.root}/workspace/matrix/PROVIDER/two" in console.splitlines()
    assert "Triggering" not in console


def test_the_label_axis_of_a_matrix_chooses_nodes(standin: StandIn, load: Load) -> None:
    load(MATRIX % ("- axis: {type: label-expression, name: label, values: [lab, controller]}", "none"))
    assert run(standin, "matrix")["result"] == "SUCCESS"
    built = {one["job"]: one["node"] for one in standin.look()["builds"] if one["job"].startswith("matrix/")}
    assert built == {f"matrix/PROVIDER={name},label={label}": node for name in ("one", "two")
                     for label, node in (("lab", "n1"), ("controller", "master"))}


def test_a_right_on_one_job_is_for_that_job_only(standin: StandIn, load: Load) -> None:
    load(shell("open", "true") + shell("seen", "true") + shell("hidden", "true"))
    standin.knobs(rights={"zuul": ["Overall.Read", "Item.Read/open", "Item.Build/open", "Item.Read/seen"]})
    statuses = [post(standin, f"job/{name}/build", "zuul").status_code for name in ("open", "seen", "hidden")]
    assert statuses == [201, 403, 404]
    zuul = jenkins.Jenkins(standin.url, "zuul", "zuul-token", timeout=CALL_SECONDS)
    assert [job["name"] for job in zuul.get_all_jobs()] == ["open", "seen"]


# Rules


@pytest.mark.parametrize(("expression", "fit"), [
    ("a", True), ("c", False), ("a && b", True), ("a&&c", False), ("a || c", True), ("!c && (c || b)", True),
    ('"a b"', False), ("", True)])
def test_label_expressions(expression: str, fit: bool) -> None:
    assert fits(expression, {"a", "b"}) is fit


def test_java_properties() -> None:
    text = "# comment\n! comment\n\na=1\n b : 2 \nc 3=4\nlong=x\\\n   y\nescaped\\ name=\\u0041\\t\\\\\nempty\n"
    assert read_properties(text) == {"a": "1", "b": "2 ", "c": "3=4", "long": "xy", "escaped name": "A\t\\",
                                     "empty": ""}


def test_macros_are_replaced_where_there_is_such_a_variable() -> None:
    assert replace_macros("$A ${A} $$A $B ${B} $", {"A": "1"}) == "1 1 $A $B ${B} $"
