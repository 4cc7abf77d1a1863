"""jobs/Jenkinsfile, run with groovy: tests/groovy/pipeline records its steps, and the text of sh really runs.

Two things that only a Jenkins can show are not here: the pipeline's sandbox, and that it goes on after a restart.
"""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.pocketjenkins.console import BRIEF_JAVA
from tests.support.pool import PROJECT

JENKINSFILE = PROJECT / "jobs/Jenkinsfile"
HARNESS = PROJECT / "tests/groovy/pipeline/run.groovy"
RUN_SECONDS = 60
JOB_ENV = {"JOB_NAME": "gate-integration-tests-devstack-vm", "BUILD_NUMBER": "7"}
NODE_ENV = {"NODE_NAME": "devstack-noble-one-1"}
TAKE, GIVE = "build devstack-vm-inprogress", "build devstack-vm-delete"
THIS_BUILD = {"GATE_NODE_NAME": "devstack-noble-one-1", "GATE_JOB_NAME": JOB_ENV["JOB_NAME"], "GATE_BUILD_NUMBER": "7"}
HOSTILE = ["x; touch owned", "$(touch owned)", "`touch owned`", "x\ntouch owned\n", "'; touch owned; '",
           '"; touch owned; "', "--upload-pack=touch owned", "${HOME}", "a\\b", "*", "&& touch owned"]


class Loader(yaml.SafeLoader):
    """Reads files of jenkins-jobs, whose tags name other files."""


Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def parameters() -> list[str]:
    """Return the names of the parameters that callers of the gate job may set."""
    parts = yaml.load((PROJECT / "jobs/gate.yaml").read_text(), Loader)
    (found,) = [part["parameter"] for part in parts if part.get("parameter", {}).get("name") == "gate-parameters"]
    return [definition["name"] for one in found["parameters"] for definition in one.values()]


def run(folder: Path, fail: dict[str, str] | None = None, **params: str) -> dict[str, Any]:
    """Run the pipeline; return its calls, the error that it ended with, and the build's name."""
    given = {"params": dict.fromkeys(parameters(), "") | {"GATE_LABEL": "devstack-noble"} | params,
             "env": JOB_ENV, "node_env": NODE_ENV, "fail": fail or {}}
    file = folder / "given.json"
    file.write_text(json.dumps(given))
    environment = {**os.environ, "HOME": str(folder), "LC_ALL": "C.UTF-8", "JAVA_OPTS": BRIEF_JAVA}
    done = subprocess.run(["groovy", HARNESS, JENKINSFILE, file], env=environment, capture_output=True, text=True,
                          timeout=RUN_SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def names(result: dict[str, Any]) -> list[str]:
    return [f"build {call['job']}" if call["step"] == "build" else call["step"] for call in result["calls"]]


def called(result: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what a step was called with."""
    ((_, call),) = [pair for pair in zip(names(result), result["calls"], strict=True) if pair[0] == name]
    return {key: value for key, value in call.items() if key != "step"}


BEFORE = ["node", "timestamps", "timeout"]
AFTER = ["end timeout", "end timestamps", "archiveArtifacts", "junit", GIVE, "end node"]
GATE = ["withEnv", "sh", "end withEnv"]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a run of the pipeline whose steps all end well."""
    return run(tmp_path_factory.mktemp("good"), ZUUL_CHANGE="4711", ZUUL_PATCHSET="2")


def test_the_node_is_taken_first_and_given_back_last(good: dict[str, Any]) -> None:
    assert good["error"] is None
    assert names(good) == [*BEFORE, TAKE, *GATE, *AFTER]
    assert called(good, "node") == {"label": "devstack-noble"}
    assert good["displayName"] == "#7 devstack-noble-one-1 4711"


def test_the_build_waits_for_the_job_that_takes_the_node_and_fails_with_it(good: dict[str, Any]) -> None:
    assert called(good, TAKE) == {
        "job": "devstack-vm-inprogress", "quietPeriod": 0, "parameters": {
            **THIS_BUILD, "ZUUL_CHANGE": "4711", "ZUUL_PATCHSET": "2", "GERRIT_CHANGE_NUMBER": "",
            "GERRIT_PATCHSET_NUMBER": ""}}


def test_the_build_does_not_wait_for_the_job_that_gives_the_node_back(good: dict[str, Any]) -> None:
    assert called(good, GIVE) == {
        "job": "devstack-vm-delete", "quietPeriod": 0, "wait": False, "parameters": THIS_BUILD}


def test_the_called_jobs_know_every_parameter_that_they_are_given(good: dict[str, Any]) -> None:
    text = (PROJECT / "jobs/host.yaml").read_text()
    for name in (TAKE, GIVE):
        template = text.partition(f"name: {name.removeprefix('build ')}\n")[2].partition("- job-template:")[0]
        known = set(re.findall(r"- string:\n +name: (\w+)", template.partition("    wrappers:")[0]))
        assert called(good, name)["parameters"].keys() <= known


def test_everything_but_the_last_steps_has_a_time_limit_beyond_the_gates_own(good: dict[str, Any]) -> None:
    defaults = yaml.safe_load((PROJECT / "jobs/defaults.yaml").read_text())[0]["defaults"]
    assert called(good, "timeout") == {"time": defaults["gate_job_timeout"], "unit": "MINUTES"}
    assert called(good, "withEnv") == {"variables": [f"GATE_REPOSITORY={defaults['gate_repository']}",
                                                     f"DEVSTACK_GATE_TIMEOUT={defaults['gate_timeout']}"]}


def test_logs_and_results_are_kept_where_there_are_any(good: dict[str, Any]) -> None:
    assert called(good, "archiveArtifacts") == {"artifacts": "logs/**", "allowEmptyArchive": True}
    assert called(good, "junit") == {"testResults": "logs/**/*.xml", "allowEmptyResults": True}


def test_with_gerrits_parameters_the_change_is_told_as_well(tmp_path: Path) -> None:
    result = run(tmp_path, GERRIT_CHANGE_NUMBER="12", GERRIT_PATCHSET_NUMBER="3")
    assert called(result, TAKE)["parameters"] == {
        **THIS_BUILD, "ZUUL_CHANGE": "", "ZUUL_PATCHSET": "", "GERRIT_CHANGE_NUMBER": "12",
        "GERRIT_PATCHSET_NUMBER": "3"}
    assert result["displayName"] == "#7 devstack-noble-one-1 12"


LAST = AFTER[2:]
UNTIL_SH = [*BEFORE, TAKE, *GATE, *AFTER[:2]]


@pytest.mark.parametrize(("step", "how", "calls"), [
    (TAKE, "FAILURE", [*BEFORE, TAKE, *AFTER]),
    (TAKE, "aborted", [*BEFORE, TAKE, *AFTER]),
    ("sh", "script returned exit code 1", [*UNTIL_SH, *LAST]),
    ("sh", "aborted", [*UNTIL_SH, *LAST]),
    ("archiveArtifacts", "the node is gone", [*UNTIL_SH, "archiveArtifacts", GIVE, "end node"]),
    ("junit", "the node is gone", [*UNTIL_SH, *LAST]),
    (GIVE, "no such job", [*UNTIL_SH, *LAST]),
])
def test_after_a_step_that_fails_only_the_last_steps_follow(
    tmp_path: Path, step: str, how: str, calls: list[str]
) -> None:
    result = run(tmp_path, {step: how})
    assert names(result) == calls
    assert result["error"] == f"{step}: {how}"
    assert called(result, GIVE)["parameters"] == THIS_BUILD


# What sh runs


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Make a repository whose gate script prints its environment."""
    folder = tmp_path / "devstack-gate.git"
    folder.mkdir()
    script = folder / "devstack-vm-gate-wrap.sh"
    script.write_text("#!/bin/bash\nenv -0\nexit 3\n")
    script.chmod(0o755)
    git = ["git", "-C", str(folder), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "gate"]):
        subprocess.run([*git, *command], check=True, timeout=30)
    return folder


def sh(result: dict[str, Any], workspace: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the text of the step sh as Jenkins does: as a file, in the workspace, with these variables."""
    workspace.mkdir(exist_ok=True)
    script = workspace.parent / "script.sh"
    script.write_text(called(result, "sh")["script"])
    script.chmod(0o755)
    path = f"{workspace.parent / 'bin'}:{os.environ['PATH']}"
    return subprocess.run([script], cwd=workspace, env={"PATH": path, "HOME": str(workspace), **environment},
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("value", HOSTILE)
def test_whatever_callers_set_is_a_variable_and_nothing_else(
    good: dict[str, Any], repository: Path, tmp_path: Path, value: str
) -> None:
    given = dict.fromkeys(parameters(), value)
    workspace = tmp_path / "workspace"
    done = sh(good, workspace, GATE_REPOSITORY=str(repository), DEVSTACK_GATE_TIMEOUT="120", **given)
    assert done.returncode == 3, done.stderr
    seen = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if entry)
    assert {name: seen.get(name) for name in given} == given
    assert seen["DEVSTACK_GATE_TIMEOUT"] == "120"
    assert sorted(path.name for path in workspace.iterdir()) == ["devstack-gate", "safe-devstack-vm-gate-wrap.sh"]
    assert not list(tmp_path.rglob("*owned*"))


def test_no_parameter_changes_what_sh_is_given(good: dict[str, Any], tmp_path: Path) -> None:
    result = run(tmp_path, None, **dict.fromkeys(parameters(), "${env.HOME} $(touch owned)"))
    assert called(result, "sh") == called(good, "sh")
    assert called(result, "withEnv") == called(good, "withEnv")
    assert called(result, "timeout") == called(good, "timeout")


def stub(folder: Path, name: str, text: str) -> None:
    """Make a command that is found before the machine's own."""
    (folder / "bin").mkdir(exist_ok=True)
    (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / "bin" / name).chmod(0o755)


def test_a_clone_that_fails_is_tried_again_from_nothing(good: dict[str, Any], repository: Path, tmp_path: Path) -> None:
    pauses = tmp_path / "pauses"
    stub(tmp_path, "sleep", f'echo "$1" >> {pauses}')
    real = next(path for path in os.environ["PATH"].split(":") if Path(path, "git").exists())
    stub(tmp_path, "git", f"if [[ ! -e {tmp_path}/once ]]; then touch {tmp_path}/once; mkdir devstack-gate; "
                          f'touch devstack-gate/rest; exit 128; fi\nexec {real}/git "$@"')
    workspace = tmp_path / "workspace"
    assert sh(good, workspace, GATE_REPOSITORY=str(repository)).returncode == 3
    assert pauses.read_text().split() == ["0", "10"]
    assert not (workspace / "devstack-gate/rest").exists()


def test_without_a_clone_nothing_runs(good: dict[str, Any], tmp_path: Path) -> None:
    pauses = tmp_path / "pauses"
    stub(tmp_path, "sleep", f'echo "$1" >> {pauses}')
    workspace = tmp_path / "workspace"
    workspace.mkdir()
    left = workspace / "safe-devstack-vm-gate-wrap.sh"
    left.write_text("#!/bin/bash\ntouch owned\n")  # from an earlier build
    left.chmod(0o755)
    done = sh(good, workspace, GATE_REPOSITORY=str(tmp_path / "none"))
    assert done.returncode == 1
    assert b"No such file or directory" in done.stderr
    assert pauses.read_text().split() == ["0", "10", "60"]
    assert [path.name for path in workspace.iterdir()] == [left.name]
