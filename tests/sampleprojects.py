"""The sample projects as git repositories that are made on the fly, with changes as Zuul and Gerrit offer them."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

SAMPLE = Path(__file__).parent / "sample"
PROJECTS = ("sample/devstack", "sample/adder", "sample/adderd")
GATE_FILES = ["devstack-vm-gate-wrap.sh", "devstack-vm-gate.sh", "functions.sh", "gatehost.sh", "gatelogs.sh",
              "gateremote.sh", "projects.txt"]
WHO = ["-c", "user.name=sample", "-c", "user.email=sample@localhost"]


def make_projects(folder: Path) -> None:
    """Make the repositories under `folder`, each with one commit on master."""
    for project in PROJECTS:
        source = SAMPLE / project.rpartition("/")[2]
        commit_files(folder / project, source, [file.name for file in source.iterdir() if file.is_file()])


def commit_files(tree: Path, source: Path, names: Sequence[str]) -> None:
    """Make a repository with one commit on master that holds these files of a folder."""
    tree.mkdir(parents=True)
    for name in names:
        shutil.copy(source / name, tree / name)
    git(tree, "init", "-q", "-b", "master")
    git(tree, "add", ".")
    git(tree, *WHO, "commit", "-q", "-m", f"Start of {tree.name}")


def add_change(tree: Path, ref: str, subject: str, file: str, old: str, new: str, *, base: str = "master") -> str:
    """Put a change that replaces text in a file on a ref, as a commit on `base`; returns its sha1."""
    git(tree, "checkout", "-q", "--detach", base)
    path = tree / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    git(tree, *WHO, "commit", "-q", "-a", "-m", subject)
    git(tree, "update-ref", ref, "HEAD")
    sha1 = git(tree, "rev-parse", "HEAD")
    git(tree, "checkout", "-q", "master")
    return sha1


def git(tree: Path, *words: str) -> str:
    """Run git in a repository; returns what it prints."""
    done = subprocess.run(["git", "-C", str(tree), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
