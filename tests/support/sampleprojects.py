"""The sample projects as git repositories made on the fly, with changes as Zuul and Gerrit offer them."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.pool import PROJECT, await_that

SAMPLE = Path(__file__).parents[1] / "sample"
PROJECTS = ("sample/devstack", "sample/adder", "sample/adderd")
GATE_FILES = ["devstack-vm-gate-wrap.sh", "devstack-vm-gate.sh", "functions.sh", "gate"]
WHO = ["-c", "user.name=sample", "-c", "user.email=sample@localhost"]


def make_projects_with_changes(folder: Path, good: str, breaking: str) -> None:
    """Make the repositories, with two changes to the library on refs: one is good, one breaks the service."""
    make_projects(folder)
    adder = folder / "sample/adder"
    add_change(adder, good, "Say it better", "adder.py", "the numbers", "all numbers")
    add_change(adder, breaking, "A better name", "adder.py", "def total", "def whole")


def make_projects(folder: Path) -> None:
    """Make the repositories under `folder`, each with one commit on master."""
    for project in PROJECTS:
        source = SAMPLE / project.rpartition("/")[2]
        commit_files(folder / project, source, [file.name for file in source.iterdir() if file.is_file()])


def commit_files(tree: Path, source: Path, names: Sequence[str]) -> None:
    """Make a repository with one commit on master: these files and folders of `source`."""
    tree.mkdir(parents=True)
    for name in names:
        copy = shutil.copytree if (source / name).is_dir() else shutil.copy
        copy(source / name, tree / name)
    git(tree, "init", "-q", "-b", "master")
    git(tree, "add", ".")
    git(tree, *WHO, "commit", "-q", "-m", f"Start of {tree.name}")


def add_change(tree: Path, ref: str, subject: str, file: str, old: str, new: str, *, base: str = "master") -> str:
    """Commit a replacement of text in a file on top of `base`, and point a ref at it; returns its sha1."""
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


@contextmanager
def served(folder: Path, good: str, breaking: str) -> Iterator[str]:
    """Serve the sample projects with their changes, and these scripts, by git; yields the address."""
    make_projects_with_changes(folder, good, breaking)
    commit_files(folder / "openstack/devstack-gate", PROJECT, GATE_FILES)
    with git_server(folder) as url:
        yield url


@contextmanager
def git_server(folder: Path) -> Iterator[str]:
    """Serve the repositories of a folder by git, with a log beside the folder; yields the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["git", "daemon", "--reuseaddr", "--export-all", "--listen=127.0.0.1", f"--port={port}",
               f"--base-path={folder}", str(folder)]
    with (folder.parent / "git-daemon.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        await_that("the git server", lambda: _listens(port))
        yield f"git://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def git(tree: Path, *words: str) -> str:
    """Run git in a repository; returns its output."""
    done = subprocess.run(["git", "-C", str(tree), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()
