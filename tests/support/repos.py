"""Real git repositories for tests."""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

GIT_SECONDS = 60
ENVIRONMENT = {
    "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null",
    **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER")
       for what, value in (("NAME", "A Tester"), ("EMAIL", "tester@example.org"))}}


def git(folder: Path, *words: str) -> str:
    """Run git in a folder and return its output, stripped."""
    result = subprocess.run(["git", "-C", str(folder), *words], env=os.environ | ENVIRONMENT, capture_output=True,
                            text=True, timeout=GIT_SECONDS, check=False)
    assert result.returncode == 0, f"git {' '.join(words)}: {result.stdout}{result.stderr}"
    return result.stdout.strip()


def write(folder: Path, files: Mapping[str, str]) -> Path:
    """Write files, {path in the folder: text}; returns the folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def repository(folder: Path, branches: Mapping[str, Mapping[str, str]]) -> Path:
    """Make a repository with branches, {branch: {path: text}}; the first one is the default. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    git(folder, "init", "--quiet", f"--initial-branch={next(iter(branches))}")
    for branch, files in branches.items():
        commit(folder, branch, files)
    git(folder, "checkout", "--quiet", "--force", next(iter(branches)))
    return folder


def commit(folder: Path, branch: str, files: Mapping[str, str]) -> str:
    """Commit exactly these files to a branch, new or not, and return the commit."""
    if git(folder, "for-each-ref", f"refs/heads/{branch}"):
        git(folder, "checkout", "--quiet", "--force", branch)
    else:
        git(folder, "checkout", "--quiet", "--orphan", branch)
    for path in folder.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write(folder, files)
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", f"{branch} of {len(files)} files")
    return git(folder, "rev-parse", "HEAD")
