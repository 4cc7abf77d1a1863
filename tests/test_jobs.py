"""The XML that jenkins-jobs makes of jobs/: what Jenkins would do with it, and what it would never do."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import pytest
import yaml

from gateconfig import ImageConfig
from image import template
from tests.support.jobsite import GATE, JENKINS_JOBS, JOBS, make_site, render
from tests.support.pool import PROJECT, load_script

BY_THE_CLOCK = ("devstack-update-vm-image", "devstack-launch-vms", "devstack-reap-vms")
STATUS = "devstack-vm-status"
FOR_A_NODE = ("devstack-vm-inprogress", "devstack-vm-delete")
SHELL = "hudson.tasks.Shell"
TRIGGER = "hudson.plugins.parameterizedtrigger"
NODE = "GATE_NODE_NAME=$NODE_NAME\nGATE_JOB_NAME=$JOB_NAME\nGATE_BUILD_NUMBER=$BUILD_NUMBER\n"
CHANGE = "".join(f"{name}=${name}\n" for name in (
    "ZUUL_CHANGE", "ZUUL_PATCHSET", "GERRIT_CHANGE_NUMBER", "GERRIT_PATCHSET_NUMBER"))
# The first parts of element names of Jenkins itself, and of plugins from Jenkins' own set.
OWN = ("hudson.model.", "hudson.tasks.", "hudson.triggers.", "hudson.matrix.", "hudson.scm.", "jenkins.model.")
Jobs = dict[str, Element]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Return the jobs as they come."""
    return render(JOBS, tmp_path_factory.mktemp("full"))


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Return the jobs for a Jenkins without other people's plugins."""
    folder = tmp_path_factory.mktemp("core")
    return render(make_site(folder, plugins="core"), folder / "xml")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Return the jobs with a pipeline for the gate."""
    folder = tmp_path_factory.mktemp("pipeline")
    return render(make_site(folder, {"jobs": ["gate-pipeline"]}), folder / "xml")


def shells(job: Element) -> list[str]:
    """Return the shell steps of a job."""
    return [step.findtext("command") or "" for step in job.iterfind(f"builders/{SHELL}")]


def parameters(job: Element) -> dict[str, str]:
    """Return {name: default} of a job's parameters."""
    found = job.iterfind("properties/hudson.model.ParametersDefinitionProperty/parameterDefinitions/*")
    return {str(one.findtext("name")): one.findtext("defaultValue") or "" for one in found}


def minutes(job: Element) -> int:
    """Return a job's time-out in minutes, or 0 if it has none."""
    return int(job.findtext("buildWrappers/hudson.plugins.build__timeout.BuildTimeoutWrapper/strategy/timeoutMinutes")
               or 0)


def test_jenkins_jobs_renders_all_jobs_without_a_complaint(tmp_path: Path) -> None:
    done = subprocess.run([JENKINS_JOBS, "--conf", "/dev/null", "test", "jobs/", "-o", tmp_path, "--config-xml"],
                          cwd=PROJECT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    assert said == ["WARNING:jenkins_jobs.config:Config file, /dev/null, not found. Using default config values."]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*BY_THE_CLOCK, *FOR_A_NODE, STATUS, GATE])


@pytest.mark.parametrize("name", BY_THE_CLOCK)
def test_a_timed_job_has_a_combination_for_each_provider_on_the_host(full: Jobs, name: str) -> None:
    job = full[name]

    assert job.tag == "matrix-project"
    axes = {axis.findtext("name"): (axis.tag, [value.text for value in axis.iterfind("values/string")])
            for axis in job.iterfind("axes/*")}
    assert axes == {"GATE_HOST": ("hudson.matrix.LabelExpAxis", ["devstack-gate-host"]),
                    "PROVIDER": ("hudson.matrix.TextAxis", ["rax-ord", "ovh-gra"])}
    assert job.findtext("assignedNode") == "devstack-gate-host"
    by_builds = name != "devstack-update-vm-image"
    assert (job.findtext("concurrentBuild"), job.findtext("quietPeriod")) == (
        ("true", "1") if by_builds else ("false", None))
    assert (job.findtext("triggers/hudson.triggers.TimerTrigger/spec") or "").startswith("H")


def test_images_are_built_daily_machines_launched_every_ten_minutes_and_reaped_hourly(full: Jobs) -> None:
    assert [full[name].findtext("triggers/hudson.triggers.TimerTrigger/spec") for name in BY_THE_CLOCK] == [
        "H H * * *", "H/10 * * * *", "H * * * *"]


def test_the_status_page_is_made_every_10_minutes_on_the_host_and_archived_whole(full: Jobs) -> None:
    job = full[STATUS]
    assert (job.findtext("assignedNode"), job.findtext("concurrentBuild")) == ("devstack-gate-host", "false")
    assert job.findtext("triggers/hudson.triggers.TimerTrigger/spec") == "H/10 * * * *"
    assert job.findtext("publishers/hudson.tasks.ArtifactArchiver/artifacts") == "status/**"
    assert job.findtext("publishers/hudson.tasks.ArtifactArchiver/allowEmptyArchive") == "false"
    assert job.findtext("properties/jenkins.model.BuildDiscarderProperty/strategy/artifactNumToKeep") == "10"


def test_the_jobs_of_nodes_run_at_once_side_by_side_on_the_host(full: Jobs) -> None:
    for name in FOR_A_NODE:
        job = full[name]
        assert (job.findtext("assignedNode"), job.findtext("concurrentBuild"), job.findtext("quietPeriod")) == (
            "devstack-gate-host", "true", "0")
        assert "GATE_NODE_NAME" in parameters(job)


def test_the_first_step_of_a_gate_build_waits_for_inprogress_and_fails_with_it(full: Jobs) -> None:
    first = full[GATE].find("builders")
    assert first is not None
    assert first[0].tag == f"{TRIGGER}.TriggerBuilder"
    config = first[0].find(f"configs/{TRIGGER}.BlockableBuildTriggerConfig")
    assert config is not None
    assert config.findtext("projects") == "devstack-vm-inprogress"
    assert config.findtext(f"configs/{TRIGGER}.PredefinedBuildParameters/properties") == NODE + CHANGE
    thresholds = {one.tag: one.findtext("name") for one in config.iterfind("block/*")}
    assert thresholds == {"buildStepFailureThreshold": "UNSTABLE", "failureThreshold": "UNSTABLE"}


@pytest.mark.parametrize("result", ["", "FAILURE", "ABORTED"])
def test_without_the_plugin_the_second_step_stops_the_build(full: Jobs, tmp_path: Path, result: str) -> None:
    guard = shells(full[GATE])[0]

    done = run_shell(guard, {"TRIGGERED_BUILD_RESULT_devstack_vm_inprogress": result} if result else {}, tmp_path)

    assert done.returncode == 1
    assert "the plugin Parameterized Trigger is missing" in done.stderr
    passed = run_shell(guard, {"TRIGGERED_BUILD_RESULT_devstack_vm_inprogress": "SUCCESS"}, tmp_path)
    assert (passed.returncode, passed.stderr) == (0, "")


def test_a_gate_build_runs_on_its_label_checks_out_the_scripts_and_runs_a_copy(full: Jobs, core: Jobs) -> None:
    for jobs in (full, core):
        job = jobs[GATE]
        assert (job.findtext("assignedNode"), job.findtext("canRoam")) == ("devstack-noble", "false")
        checkout, run = shells(job)[-2:]
        assert "git clone --quiet -- 'https://opendev.org/openstack/devstack-gate' devstack-gate" in checkout
        assert "cp devstack-gate/devstack-vm-gate-wrap.sh ./safe-devstack-vm-gate-wrap.sh" in checkout
        assert run.splitlines()[-1] == "exec ./safe-devstack-vm-gate-wrap.sh"


def test_a_checkout_that_fails_ends_the_build(full: Jobs, tmp_path: Path) -> None:
    checkout = shells(full[GATE])[-2].replace("for pause in 0 10 60", "for pause in 0")
    repository = "'https://opendev.org/openstack/devstack-gate'"
    assert repository in checkout

    done = run_shell(checkout.replace(repository, str(tmp_path / "nothing")), {}, tmp_path)

    assert done.returncode != 0
    assert "does not exist" in done.stderr


def test_after_any_end_logs_are_archived_and_delete_is_told_last(full: Jobs) -> None:
    publishers = full[GATE].find("publishers")
    assert publishers is not None
    assert [one.tag for one in publishers] == [
        "hudson.tasks.ArtifactArchiver", "hudson.tasks.junit.JUnitResultArchiver", f"{TRIGGER}.BuildTrigger"]
    assert publishers[0].findtext("artifacts") == "logs/**"
    assert publishers[0].findtext("onlyIfSuccessful") == "false"
    assert publishers[0].findtext("allowEmptyArchive") == publishers[1].findtext("allowEmptyResults") == "true"
    config = publishers[2].find(f"configs/{TRIGGER}.BuildTriggerConfig")
    assert config is not None
    assert (config.findtext("projects"), config.findtext("condition")) == ("devstack-vm-delete", "ALWAYS")
    assert config.findtext(f"configs/{TRIGGER}.PredefinedBuildParameters/properties") == NODE


def test_without_plugins_the_node_is_taken_by_a_script_and_delete_follows_aborted_builds_too(core: Jobs) -> None:
    job = core[GATE]
    assert shells(job)[0] == (JOBS / "take-node.py").read_text()
    trigger = job.find("publishers/hudson.tasks.BuildTrigger")
    assert trigger is not None
    assert trigger.findtext("childProjects") == "devstack-vm-delete"
    assert (trigger.findtext("threshold/name"), trigger.findtext("threshold/ordinal")) == ("ABORTED", "4")


@pytest.mark.parametrize(("replacement", "started"), [("at-once", ["devstack-launch-vms", "devstack-reap-vms"]),
                                                      ("by-the-clock", [])])
def test_use_and_end_start_launch_and_reap_however_the_step_ended(
        tmp_path: Path, replacement: str, started: list[str]) -> None:
    jobs = render(make_site(tmp_path, replacement=replacement), tmp_path / "xml")
    triggers = [trigger for name in ("devstack-vm-inprogress", "devstack-vm-delete")
                for trigger in jobs[name].findall("publishers/hudson.tasks.BuildTrigger")]
    assert [trigger.findtext("childProjects") for trigger in triggers] == started
    assert {trigger.findtext("threshold/name") for trigger in triggers} <= {"FAILURE"}


def test_without_plugins_no_job_has_an_element_of_a_plugin(core: Jobs) -> None:
    dotted = {element.tag for job in core.values() for element in job.iter() if "." in element.tag}
    assert [tag for tag in sorted(dotted) if not tag.startswith(OWN)] == []
    assert [tag for tag in sorted(dotted) if "parameterizedtrigger" in tag or "plugins" in tag] == []


def test_time_outs_are_longer_than_what_the_scripts_allow_themselves(full: Jobs) -> None:
    update_image = load_script("devstack-vm-update-image.py")
    nothing: Any = object()
    plan = template.Plan(node=nothing, image=ImageConfig((), (), "x", "", ""), public_key="", script=b"",
                         checkout=nothing, branches=["b"] * 5, projects=[], git_base="", step_seconds=0,
                         keep_failed=False)
    boot_minutes = 900 / 60
    steps = len(template.steps_of(plan, "", "")) * update_image.STEP_SECONDS / 60
    # The wait for room, two boots with their logins, and the snapshot.
    image = steps + (1 + 2 * 2 + update_image.SNAPSHOT_BOOTS) * boot_minutes
    shells_of_gate = shells(full[GATE])
    assert f"export DEVSTACK_GATE_TIMEOUT={120}" in shells_of_gate[-1]
    assert minutes(full["devstack-update-vm-image"]) > image
    assert minutes(full["devstack-launch-vms"]) > 2 * boot_minutes
    assert minutes(full["devstack-reap-vms"]) > 30
    assert all(minutes(full[name]) >= 15 for name in FOR_A_NODE)
    assert minutes(full[GATE]) >= 120 + minutes(full["devstack-vm-inprogress"]) + 3 * 5
    operations = full[GATE].find("buildWrappers/hudson.plugins.build__timeout.BuildTimeoutWrapper/operationList")
    assert operations is not None
    assert [one.tag.rpartition(".")[2] for one in operations] == ["FailOperation"], "an aborted build's machine goes"


def test_every_job_stamps_and_names_its_builds_and_forgets_old_ones(full: Jobs) -> None:
    for name, job in full.items():
        assert job.find("buildWrappers/hudson.plugins.timestamper.TimestamperBuildWrapper") is not None, name
        template = job.findtext("buildWrappers/org.jenkinsci.plugins.buildnamesetter.BuildNameSetter/template")
        assert template is not None, name
        assert template.startswith("#${BUILD_NUMBER} ${ENV,var=\""), name
        assert job.findtext("properties/jenkins.model.BuildDiscarderProperty/strategy/daysToKeep") == "30", name
    assert 'NODE_NAME' in str(full[GATE].findtext(".//template"))
    assert 'ZUUL_CHANGE' in str(full[GATE].findtext(".//template"))


def test_the_gate_takes_what_zuul_and_gerrit_trigger_send_and_nothing_is_set_by_default(full: Jobs) -> None:
    given = parameters(full[GATE])
    assert {name for name in given if name.startswith(("ZUUL_", "GERRIT_"))} == {
        "ZUUL_URL", "ZUUL_PROJECT", "ZUUL_BRANCH", "ZUUL_REF", "ZUUL_COMMIT", "ZUUL_CHANGE", "ZUUL_PATCHSET",
        "ZUUL_CHANGES", "ZUUL_UUID", "ZUUL_PIPELINE", "GERRIT_PROJECT", "GERRIT_BRANCH", "GERRIT_REFSPEC",
        "GERRIT_CHANGE_NUMBER", "GERRIT_PATCHSET_NUMBER", "GERRIT_PATCHSET_REVISION", "GERRIT_SCHEME", "GERRIT_HOST",
        "GERRIT_PORT", "GERRIT_CHANGES"}
    assert set(given.values()) == {""}
    # These would let a caller change a machine that is no test node, or outlast the job's time-out.
    assert not given.keys() & {"DEVSTACK_GATE_THIS_HOST", "DEVSTACK_GATE_TIMEOUT", "BASE", "WORKSPACE", "PATH"}


def test_a_pipeline_is_not_resumed_into_a_node_that_is_out_of_service(pipeline: Jobs) -> None:
    names = [one.tag.rpartition(".")[2] for one in pipeline[GATE].iterfind("properties/*")]
    assert "DisableResumeJobProperty" in names


def test_rights_of_the_defaults_file_are_loaded_with_the_jobs_and_without_any_no_plugin_is_needed(
        full: Jobs, tmp_path: Path) -> None:
    rights = make_site(tmp_path, gate_rights={"USER:scripts": ["job-read"]}, delete_rights={"scripts": ["job-read"]},
                       inprogress_rights={"USER:node": ["job-read", "job-build"]})
    jobs = render(rights, tmp_path / "xml")

    path = "properties/hudson.security.AuthorizationMatrixProperty"
    assert {name: [one.text for one in job.iterfind(f"{path}/permission")] for name, job in jobs.items()} == {
        **{name: [] for name in (*BY_THE_CLOCK, STATUS)}, GATE: ["USER:hudson.model.Item.Read:scripts"],
        "devstack-vm-delete": ["hudson.model.Item.Read:scripts"],
        "devstack-vm-inprogress": ["USER:hudson.model.Item.Read:node", "USER:hudson.model.Item.Build:node"]}
    assert all(job.find(path) is None for job in full.values())
    assert all(job.find("properties/jenkins.model.BuildDiscarderProperty") is not None for job in jobs.values())


def test_no_parameter_stands_where_jenkins_or_a_shell_would_evaluate_it(full: Jobs, core: Jobs, pipeline: Jobs) -> None:
    for jobs in (full, core, pipeline):
        for name, job in jobs.items():
            names = "|".join([*parameters(job), "PROVIDER"])
            for shell in [text for text in shells(job) if "python3" not in text.splitlines()[0]]:
                bare = re.findall(rf'[^"]\$(?:{names})\b|\$\{{(?:{names})\}}', shell)
                assert bare == [], f"{name}: {shell}"
                assert "eval" not in shell, name
            properties = [text for one in job.iter("properties") if (text := one.text or "").strip()]
            # The plugin reads these lines before it puts values in, so a newline in a value sets no other parameter.
            assert all(text in (NODE, NODE + CHANGE) for text in properties), name


@pytest.mark.parametrize("value", ["x; touch owned", "$(touch owned)", "`touch owned`", "'; touch owned; '",
                                   '"; touch owned; "', "a\ntouch owned", "--help", "$((x[$(touch owned)]))"])
def test_a_hostile_value_of_any_parameter_runs_nothing(full: Jobs, tmp_path: Path, value: str) -> None:
    for name in (*BY_THE_CLOCK, *FOR_A_NODE):
        scripts = tmp_path / name
        (scripts / ".venv/bin").mkdir(parents=True)
        (scripts / "jobs").mkdir()
        for script in ["devstack-vm-update-image.sh", *(f"devstack-vm-{what}.py" for what in (
                "launch", "reap", "inprogress", "delete")), "jobs/after-build.py"]:
            (scripts / script).write_text('#!/bin/bash\nfor word; do printf "<%s>" "$word"; done\n')
            (scripts / script).chmod(0o755)
        names = [*parameters(full[name]), "PROVIDER"]

        done = run_shell(shells(full[name])[0].replace("/opt/devstack-gate", str(scripts)),
                         dict.fromkeys(names, value), tmp_path)

        words = {"devstack-vm-inprogress": f"<--><{value}>", "devstack-vm-delete": ""}.get(name, f"<{value}>")
        assert (done.returncode, done.stdout) == (0, words)
    assert not list(tmp_path.rglob("owned"))


def test_every_script_that_a_job_calls_exists_and_takes_what_it_is_given(full: Jobs, tmp_path: Path) -> None:
    called: dict[str, list[str]] = {}
    for name in (*BY_THE_CLOCK, *FOR_A_NODE, STATUS):
        (line,) = [line for line in shells(full[name])[0].splitlines() if line.startswith("exec ")]
        script, *arguments = shlex.split(line)[1:]
        called[name] = [script.replace("/opt/devstack-gate", str(PROJECT)), *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GATE_")}
    environment |= {"PATH": f"{JENKINS_JOBS.parent}:{os.environ['PATH']}", "DEVSTACK_GATE_DB": str(tmp_path / "vm.db"),
                    "WORKSPACE": str(tmp_path), "GIT_BASE": "file:///none",
                    "DEVSTACK_GATE_SECURE_CONFIG": str(tmp_path / "none")}
    for words in called.values():
        assert os.access(words[0], os.X_OK)
        done = subprocess.run([*words[:1], "--help"], env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        given = [word.replace("$PROVIDER", "all").replace("$GATE_NODE_NAME", "devstack-noble-one-1")
                 for word in words[1:]]
        if words[0].endswith(".py") and given:
            done = subprocess.run([words[0], *given], env=environment, capture_output=True, text=True, check=False)
            assert (done.returncode, "see" in done.stderr and "--help" in done.stderr) == (2, False), done.stderr


def test_jobs_and_the_providers_example_have_the_same_providers_and_images(full: Jobs) -> None:
    providers = yaml.safe_load((PROJECT / "providers.example.yaml").read_text())["providers"]
    axis = full["devstack-launch-vms"].findall("axes/*")[1]
    assert [value.text for value in axis.iterfind("values/string")] == [provider["name"] for provider in providers]
    labels = {job.findtext("assignedNode") for name, job in full.items() if name.startswith(GATE)}
    assert labels == {f"devstack-{image['name']}" for provider in providers for image in provider["images"]}


def test_the_providers_example_loads(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, PROJECT / "vmdatabase.py", "--db", tmp_path / "vm.db", "load",
                           PROJECT / "providers.example.yaml"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_further_images_get_gate_jobs_of_their_own(tmp_path: Path) -> None:
    suffixes = [{"": {"image": "noble"}}, {"-bookworm": {"image": "bookworm"}}]
    jobs = render(make_site(tmp_path, {"suffix": suffixes}, prefix="staging-"), tmp_path / "xml")
    assert {name: job.findtext("assignedNode") for name, job in jobs.items() if name.startswith(GATE)} == {
        GATE: "staging-devstack-noble", f"{GATE}-bookworm": "staging-devstack-bookworm"}


def test_settings_of_the_site_are_exported_before_the_tests_run(tmp_path: Path) -> None:
    settings = 'export ENABLED_SERVICES=heat\npre_test_hook() {{ echo "${{WORKSPACE}}"; }}\nexport -f pre_test_hook'
    jobs = render(make_site(tmp_path, gate_settings=settings, gate_timeout=60), tmp_path / "xml")
    assert shells(jobs[GATE])[-1].splitlines()[1:] == [
        "export DEVSTACK_GATE_TIMEOUT=60", *settings.replace("{{", "{").replace("}}", "}").splitlines(),
        "exec ./safe-devstack-vm-gate-wrap.sh"]


def test_gerrit_trigger_can_start_builds(tmp_path: Path) -> None:
    gerrit = {"trigger-on": ["patchset-created-event"], "projects": [{
        "project-compare-type": "REG_EXP", "project-pattern": ".*", "branches": [
            {"branch-compare-type": "ANT", "branch-pattern": "**"}]}]}
    jobs = render(make_site(tmp_path, gate_triggers=[{"gerrit": gerrit}]), tmp_path / "xml")
    found = [one.tag for one in jobs[GATE].iterfind("triggers/*")]
    assert found == ["com.sonyericsson.hudson.plugins.gerrit.trigger.hudsontrigger.GerritTrigger"]


def test_the_pipeline_runs_the_jenkinsfile_with_one_label_to_choose_from(full: Jobs, pipeline: Jobs) -> None:
    job = pipeline[GATE]
    assert job.tag == "flow-definition"
    assert [one.tag for one in job.iter() if "DisableConcurrentBuilds" in one.tag] == []
    assert job.findtext("definition/script") == (JOBS / "Jenkinsfile").read_text()
    assert job.findtext("definition/sandbox") == "true"
    choices = job.find(".//hudson.model.ChoiceParameterDefinition/choices")
    assert choices is not None
    assert [one.text for one in choices.iter("string")] == ["devstack-noble"]
    assert parameters(job).keys() - parameters(full[GATE]).keys() == {"GATE_LABEL"}


def run_shell(text: str, environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell step as Jenkins does: from a file, with the interpreter that its first line names."""
    script = folder / "step"
    script.write_text(text)
    interpreter = text.splitlines()[0].removeprefix("#!").split()
    return subprocess.run([*interpreter, script], env={"PATH": os.environ["PATH"], **environment}, cwd=folder,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False)
