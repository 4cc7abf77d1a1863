"""The jobs of jobs/ at a site: with the site's own defaults.yaml, rendered or loaded by the real jenkins-jobs."""

import configparser
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import yaml

from tests.support.pool import PROJECT, starter
from tests.support.sampleprojects import PROJECTS

JOBS = PROJECT / "jobs"
JENKINS_JOBS = Path(sys.executable).with_name("jenkins-jobs")
RUN_SECONDS = 120
GATE = "gate-integration-tests-devstack-vm"
# The plugins that `plugins: full` needs in addition to `plugins: core`.
FULL = {"parameterized-trigger": "2.39", "build-timeout": "1.20", "timestamper": "1.11.8", "build-name-setter": "2.1.0"}


def make_site(folder: Path, project: Mapping[str, Any] | None = None, **defaults: Any) -> Path:
    """Copy jobs/ and change defaults and keys of the gate jobs' project in its defaults.yaml; returns the copy."""
    folder.mkdir(exist_ok=True)
    site = folder / "jobs"
    shutil.copytree(JOBS, site, ignore=shutil.ignore_patterns("__pycache__"))
    parts = yaml.safe_load((JOBS / "defaults.yaml").read_text())
    known = next(part["defaults"] for part in parts if "defaults" in part)
    assert defaults.keys() <= known.keys(), "no such variable"
    known |= defaults
    next(part["project"] for part in parts if "project" in part).update(project or {})
    (site / "defaults.yaml").write_text(yaml.safe_dump(parts))
    return site


def forking_scripts(folder: Path) -> Path:
    """Make what jobs take for the checkout: links to the scripts, and a python3 that runs them through the starter."""
    scripts = folder / "scripts"
    python = scripts / ".venv/bin/python3"
    python.parent.mkdir(parents=True)
    for script in PROJECT.glob("*.[ps][yh]"):
        (scripts / script.name).symlink_to(script)
    (scripts / "jobs").symlink_to(JOBS)
    python.write_text(f"""#!/bin/bash
case $1 in
    *.py) exec {shlex.join(starter().command())} "${{1#{scripts}/}}" "${{@:2}}" ;;
    *) exec {sys.executable} "$@" ;;
esac
""")
    python.chmod(0o755)
    return scripts


def sample_settings(git_base: str) -> dict[str, Any]:
    """Return the defaults of a site whose gate runs on the sample projects of a git server."""
    return {"gate_repository": f"{git_base}/openstack/devstack-gate", "gate_settings":
            f"export GIT_BASE={git_base}\nexport DEVSTACK_GATE_PROJECTS='{' '.join(PROJECTS)}'\n"}


def tripleo_settings() -> str:
    """Return the gate_settings of the sample job in docs/tripleo.md."""
    (shown,) = re.findall(r"```yaml\n(gate_settings.*?)```", (PROJECT / "docs/tripleo.md").read_text(), re.DOTALL)
    return str(yaml.safe_load(shown)["gate_settings"])


def render(site: Path, into: Path) -> dict[str, ElementTree.Element]:
    """Render the jobs; returns {job name: its config.xml}."""
    run_jenkins_jobs("test", str(site), "-o", str(into), "--config-xml")
    return {file.parent.name: ElementTree.fromstring(file.read_text()) for file in into.glob("*/config.xml")}


def load(site: Path, url: str, user: str, password: str) -> str:
    """Load the jobs into a Jenkins; returns the output of jenkins-jobs."""
    conf = site.parent / "jenkins_jobs.ini"  # its folder also holds jenkins-jobs' cache
    parser = configparser.ConfigParser(interpolation=None)
    parser["jenkins"] = {"url": url, "user": user, "password": password}
    with conf.open("w") as stream:
        parser.write(stream)
    return run_jenkins_jobs("update", str(site), conf=conf)


def run_jenkins_jobs(*words: str, conf: Path | None = None) -> str:
    """Run jenkins-jobs; returns its output."""
    command = [str(JENKINS_JOBS), "--conf", str(conf or "/dev/null"), *words]
    if conf:  # its cache of the jobs that it has loaded into a Jenkins
        command.insert(0, "env")
        command.insert(1, f"XDG_CACHE_HOME={conf.parent}")
    done = subprocess.run(command, check=False, text=True, timeout=RUN_SECONDS, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}"
    return done.stdout
