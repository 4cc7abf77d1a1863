"""docs/jenkins.md says what check.py says, and jenkins-jobs and bash take its settings."""

import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from tests.pocketjenkins.client import StandIn
from tests.support.jobsite import GATE, make_site, render
from tests.support.pool import PROJECT, Pool, make_key, provider

PAGE = PROJECT / "docs" / "jenkins.md"
USERS = {"devstack-gate": ("password", "token"), "admin": ("admin-password", "admin-token")}
TRIGGER = "com.sonyericsson.hudson.plugins.gerrit.trigger.hudsontrigger.GerritTrigger"


def blocks(language: str) -> list[str]:
    """Return the blocks of the page that are written in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def said() -> list[str]:
    """Return the lines that check.py prints according to the page."""
    return re.findall(r"(?m)^    ((?:missing|wrong|unknown) +.*)$", PAGE.read_text())


def settings() -> dict[str, Any]:
    """Return what the page writes into defaults.yaml."""
    merged: dict[str, Any] = {}
    for block in blocks("yaml")[1:]:
        merged |= yaml.safe_load(block)
    return merged


def test_an_empty_jenkins_is_told_what_the_page_says(tmp_path: Path) -> None:
    """Each stage of the set-up lacks what later stages bring."""
    knobs = {"rights": {"devstack-gate": ["Overall.Read", "Item.Read/devstack-vm-delete"]}, "connect": "instant",
             "plugins": {"credentials": "2.5", "ssh-credentials": "1.19", "ssh-slaves": "1.33.0", "junit": "1.29",
                         "matrix-project": "1.18", "matrix-auth": "3.1"}}
    given = "USER:hudson.model.Item.Read:devstack-gate"
    with StandIn(tmp_path / "jenkins", USERS, {"other": ("jenkins", make_key(tmp_path))}, knobs) as standin:
        pool = Pool(tmp_path, jenkins=standin)
        pool.load(provider("rax-ord"), provider("ovh-gra"))
        (tmp_path / "jenkins_jobs.ini").write_text("[jenkins]\nuser = admin\npassword = admin-token\n")
        (tmp_path / "defaults.yaml").write_text((PROJECT / "jobs/defaults.yaml").read_text().replace(
            "- gate-freestyle", "- gate-pipeline"))
        standin.add_job(GATE, "")
        standin.knobs(rights={"devstack-gate": ["Overall.Read"]})
        create(standin, "devstack-vm-delete", given)
        lines: set[str] = set()
        for apikey in ("wrong", "token"):
            pool.write_secure_config(user="devstack-gate", apikey=apikey, credentials_id="jenkins-nodes")
            lines |= set(pool.run("jobs/check.py", "--conf", "jenkins_jobs.ini", "--defaults", "defaults.yaml", expect=1
                                  ).stdout.replace(standin.url, "https://jenkins.example.org/").splitlines())

    assert len(said()) == 7
    assert [line for line in said() if line not in lines] == []


def create(standin: StandIn, job: str, permission: str) -> None:
    """Make a freestyle job on which somebody has a right."""
    import jenkins

    jenkins.Jenkins(standin.url, "admin", "admin-token").create_job(
        job, f"<project><properties><hudson.security.AuthorizationMatrixProperty><permission>{permission}</permission>"
             "</hudson.security.AuthorizationMatrixProperty></properties></project>")


def test_the_settings_of_the_page_make_a_job_that_changes_and_rechecks_start(tmp_path: Path) -> None:
    job = render(make_site(tmp_path, **settings()), tmp_path / "xml")[GATE]

    trigger = job.find(f"triggers/{TRIGGER}")
    assert trigger is not None
    events = [one.tag.rpartition(".")[2] for one in trigger.iterfind("triggerOnEvents/*")]
    assert events == ["PluginPatchsetCreatedEvent", "PluginCommentAddedContainsEvent"]
    assert [one.text for one in trigger.iterfind("skipVote/*")] == ["true"] * 5
    (comment,) = [one.text or "" for one in trigger.iter("commentAddedCommentContains")]
    for text, starts in {"Patch Set 2:\n\nrecheck": True, "recheck bug 1": True, "do not recheck": False}.items():
        assert bool(re.match(comment, text)) == starts, text


def test_the_hooks_of_the_page_are_functions_that_bash_exports(tmp_path: Path) -> None:
    job = render(make_site(tmp_path, **settings()), tmp_path / "xml")[GATE]
    (script,) = [one.text or "" for one in job.iter("command") if "post_test_hook" in (one.text or "")]
    script = script.replace("exec ./safe-devstack-vm-gate-wrap.sh", "bash -c 'declare -F'")

    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["declare", "-fx", "cleanup_hook", "declare", "-fx", "post_test_hook"]


def test_the_configuration_as_code_gives_the_rights_that_check_py_wants() -> None:
    code = yaml.safe_load(blocks("yaml")[0])
    entries = code["jenkins"]["authorizationStrategy"]["projectMatrix"]["entries"]
    rights = {entry["user"]["name"]: entry["user"]["permissions"] for entry in entries}
    assert rights["devstack-gate"] == ["Overall/Read", "Agent/Create", "Agent/Configure", "Agent/Disconnect",
                                       "Agent/Delete", "Job/Read"]
    assert "nodes" not in code["jenkins"]


