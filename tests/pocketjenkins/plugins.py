"""The plugins that the stand-in for Jenkins knows, and which elements of a config.xml are theirs.

The default versions are the recorded ones. junit was installed, too, in a version that was not recorded; the one here
is the lowest that matrix-project 1.18 accepts. The long names are those of the plugins' own pages.
"""

from collections.abc import Collection, Mapping
from typing import Any

RECORDED = {
    "ssh-slaves": "1.31.5",
    "ssh-credentials": "1.18.1",
    "credentials": "2.3.15",
    "plain-credentials": "1.7",
    "token-macro": "2.13",
    "matrix-project": "1.18",
    "junit": "1.29",
}
LONG_NAMES = {
    "ssh-slaves": "SSH Build Agents plugin",
    "ssh-credentials": "SSH Credentials Plugin",
    "credentials": "Credentials Plugin",
    "plain-credentials": "Plain Credentials Plugin",
    "token-macro": "Token Macro Plugin",
    "matrix-project": "Matrix Project Plugin",
    "junit": "JUnit Plugin",
    "parameterized-trigger": "Jenkins Parameterized Trigger plugin",
    "build-timeout": "Build Timeout",
    "timestamper": "Timestamper",
    "build-name-setter": "build-name-setter",
    "ws-cleanup": "Jenkins Workspace Cleanup Plugin",
    "hidden-parameter": "Hidden Parameter plugin",
    "workflow-job": "Pipeline: Job",
    "matrix-auth": "Matrix Authorization Strategy Plugin",
}
OWNERS = {  # prefixes of plugins' elements; others that begin as in CORE are the core's
    "hudson.plugins.parameterizedtrigger.": "parameterized-trigger",
    "hudson.plugins.build__timeout.": "build-timeout",
    "hudson.plugins.timestamper.": "timestamper",
    "org.jenkinsci.plugins.buildnamesetter.": "build-name-setter",
    "hudson.tasks.junit.": "junit",
    "hudson.plugins.ws__cleanup.": "ws-cleanup",
    "com.wangyin.parameter.": "hidden-parameter",
    "hudson.matrix.": "matrix-project",
    "matrix-project": "matrix-project",
    "hudson.security.AuthorizationMatrixProperty": "matrix-auth",
    "flow-definition": "workflow-job",
    "org.jenkinsci.plugins.workflow.": "workflow-job",
}
CORE = ("hudson.model.", "hudson.tasks.", "hudson.triggers.", "jenkins.model.", "jenkins.triggers.", "project")


def resolves(element: str, installed: Mapping[str, str]) -> bool:
    """Return whether Jenkins finds the class of an element; it leaves out elements of plugins that it lacks."""
    for prefix, plugin in OWNERS.items():
        if element.startswith(prefix):
            return plugin in installed
    return element.startswith(CORE)


def listing(installed: Mapping[str, str], inactive: Collection[str]) -> list[dict[str, Any]]:
    """Return what the plugin manager says of each plugin, with the recorded keys."""
    return [
        {
            "active": name not in inactive,
            "backupVersion": None,
            "bundled": False,
            "deleted": False,
            "dependencies": [],
            "detached": False,
            "downgradable": False,
            "enabled": name not in inactive,
            "hasUpdate": False,
            "longName": LONG_NAMES.get(name, name),
            "minimumJavaVersion": "1.8",
            "pinned": False,
            "requiredCoreVersion": "2.222.4",
            "shortName": name,
            "supportsDynamicLoad": "MAYBE",
            "url": f"https://plugins.jenkins.io/{name}",
            "version": version,
        }
        for name, version in installed.items()
    ]
