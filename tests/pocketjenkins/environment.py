"""The environment of a build's steps, as Jenkins' own page /env-vars.html lists it.

Not set: what other plugins than the modelled ones add, and the cookies by which Jenkins finds leaked processes.
"""

from collections.abc import Collection
from pathlib import Path

from tests.pocketjenkins.builds import Item
from tests.pocketjenkins.nodes import Node


def build_environment(
    item: Item, node: Node, number: int, executor: int, url: str, home: Path, taken: Collection[str]
) -> dict[str, str]:
    """Return the variables; parameters override those that Jenkins sets.

    taken: the workspaces of the node's running builds. url: empty if Jenkins does not know its own address; then there
    are no variables with addresses.
    """
    job = item.job
    addresses = {
        "JENKINS_URL": url,
        "HUDSON_URL": url,
        "JOB_URL": f"{url}{job.path}",
        "BUILD_URL": f"{url}{job.path}{number}/",
    }
    return {
        **job.environment,
        **(addresses if url else {}),
        "JENKINS_HOME": str(home),
        "HUDSON_HOME": str(home),
        "JOB_NAME": job.name,
        "JOB_BASE_NAME": job.base_name,
        "BUILD_NUMBER": str(number),
        "BUILD_ID": str(number),
        "BUILD_DISPLAY_NAME": f"#{number}",
        "BUILD_TAG": f"jenkins-{job.name.replace('/', '-')}-{number}",
        "NODE_NAME": node.name,
        "NODE_LABELS": " ".join(node.labels()),
        "EXECUTOR_NUMBER": str(executor),
        "WORKSPACE": _workspace(f"{node.config.remote_fs.rstrip('/')}/workspace/{job.workspace}", taken),
        **item.axes,
        **item.parameters,
    }


def _workspace(path: str, taken: Collection[str]) -> str:
    """Return a workspace that no concurrent build of the job on the node has: path, path@2, ..."""
    number, free = 1, path
    while free in taken:
        number += 1
        free = f"{path}@{number}"
    return free
