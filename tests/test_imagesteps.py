"""Functions of imagesteps.sh that need no machine of their own."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.pool import PROJECT
from tests.repos import ENVIRONMENT, commit, git, repository, write

SOURCE = f"""
set -uo pipefail
source '{PROJECT}/imagesteps.sh'
sleep() {{ :; }}  # no pauses
export -f sleep
"$@"
"""
RUN_SECONDS = 60


def call(folder: Path, *words: str, stdin: str = "", before: str = "", **environment: str
         ) -> subprocess.CompletedProcess[str]:
    """Call a function from a folder; `before` is bash that goes before it."""
    return subprocess.run(
        ["bash", "-c", SOURCE.replace('"$@"', f'{before}\n"$@"'), "steps", *words], input=stdin, cwd=folder, text=True,
        env=os.environ | ENVIRONMENT | environment, capture_output=True, timeout=RUN_SECONDS, check=False)


def lines(folder: Path, *words: str, stdin: str = "", **environment: str) -> list[str]:
    """The lines that a function prints, which must succeed and say nothing else."""
    result = call(folder, *words, stdin=stdin, **environment)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout.splitlines()


def test_sourcing_it_does_nothing(tmp_path: Path) -> None:
    assert lines(tmp_path, "true") == []


# Attempts


FAILS = 'attempt() { echo x >> attempts; (( $(wc -l < attempts) > $1 )) || return 7; }'


@pytest.mark.parametrize(("failures", "code", "attempts"), [(0, 0, 1), (1, 0, 2), (2, 0, 3), (3, 7, 3), (9, 7, 3)])
def test_what_fails_is_tried_again_at_most_so_often(tmp_path: Path, failures: int, code: int, attempts: int) -> None:
    result = call(tmp_path, "retry", "3", "attempt", str(failures), before=FAILS)
    assert (result.returncode, (tmp_path / "attempts").read_text().count("x")) == (code, attempts)
    assert result.stdout.splitlines() == [
        f"attempt: failed with 7, attempt {number} of 3; again in {pause} s"
        for number, pause in ((1, 5), (2, 10)) if number < attempts]


def test_words_are_tried_as_they_are(tmp_path: Path) -> None:
    assert lines(tmp_path, "retry", "1", "printf", "%s\n", "a  b", "*", "") == ["a  b", "*", ""]


# apt


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("", []),
        ("E: Unable to locate package no-such\n", ["no-such"]),
        ("Reading package lists...\nE: Unable to locate package b\nE: Unable to locate package a\n", ["a", "b"]),
        ("E: Package 'python' has no installation candidate\n", ["python"]),
        ("E: Unable to locate package a\nE: Unable to locate package a\n", ["a"]),
        ("Package python is not available, but is referred to by another package.\n"
         "However the following packages replace it:\n  python-is-python3\n\n"
         "E: Package 'python' has no installation candidate\nE: Unable to locate package x\n", ["python", "x"]),
        ("E: Couldn't find any package by glob 'python3.8'\nE: Unable to locate package python3.8\n", ["python3.8"]),
        ("The following packages have unmet dependencies:\n a : Depends: b but it is not installable\n"
         "E: Unable to correct problems, you have held broken packages.\n", []),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend\n", []),
    ],
    ids=["nothing", "unknown", "two", "virtual", "twice", "both", "glob", "dependencies", "lock"],
)
def test_the_names_that_apt_does_not_have_are_found(tmp_path: Path, output: str, names: list[str]) -> None:
    assert lines(tmp_path, "unknown_to_apt", stdin=output) == names


# Paths


@pytest.mark.parametrize(("path", "expected"), [
    ("modules", "/clone/modules"), ("/etc/puppet", "/etc/puppet"), ("a b/c", "/clone/a b/c"), (".", "/clone/."),
])
def test_a_relative_path_is_in_the_folder(tmp_path: Path, path: str, expected: str) -> None:
    assert lines(tmp_path, "within", "/clone", path) == [expected]


@pytest.mark.parametrize(("url", "shown"), [
    ("https://me:secret@example.org/a/b", "https://example.org/a/b"),
    ("https://example.org/a@b", "https://example.org/a@b"),
    ("git@example.org:a/b", "git@example.org:a/b"),
    ("file:///srv/a", "file:///srv/a"),
])
def test_no_login_is_left_in_the_url_of_a_clone(tmp_path: Path, url: str, shown: str) -> None:
    assert lines(tmp_path, "hide_login", url) == [shown]


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ([], "cache/openstack/nova"),
        (["openstack/nova/.git"], "cache/openstack/nova"),
        (["nova/.git"], "cache/nova"),
        (["nova/.git", "openstack/nova/.git"], "cache/openstack/nova"),
        (["nova/x"], "cache/openstack/nova"),
    ],
    ids=["nothing", "with namespace", "without", "both", "no clone"],
)
def test_a_clone_is_found_with_and_without_its_namespace(tmp_path: Path, there: list[str], expected: str) -> None:
    for name in there:
        (tmp_path / "cache" / name).mkdir(parents=True)
    assert lines(tmp_path, "clone_of", "cache", "openstack/nova") == [expected]


# Requirements


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A folder with clones of two projects and of the requirements."""
    remotes = {
        "nova": {"master": {"requirements.txt": "pbr\nsix\n"}, "stable/x": {"requirements.txt": "pbr>=1\n"}},
        "glance": {"main": {"requirements.txt": "wsme"}},
        "requirements": {"master": {"upper-constraints.txt": "pbr===6\n"},
                         "stable/x": {"upper-constraints.txt": "pbr===5\n"}, "stable/empty": {}},
    }
    for name, branches in remotes.items():
        repository(tmp_path / f"remotes/openstack/{name}", branches)
        git(tmp_path, "clone", "--quiet", str(tmp_path / f"remotes/openstack/{name}"), f"cache/openstack/{name}")
    return tmp_path / "cache"


PROJECTS = "openstack/nova\nopenstack/glance\nopenstack/absent\n"


@pytest.mark.parametrize(
    ("branch", "expected"),
    [("master", ["pbr", "six", "wsme"]), ("stable/x", ["pbr>=1", "wsme"]), ("none", ["pbr", "six", "wsme"])],
)
def test_requirements_are_those_of_the_branch_or_else_the_default_one(
    cache: Path, branch: str, expected: list[str]
) -> None:
    found = lines(cache.parent, "show_requirements", branch, "cache", stdin=PROJECTS)
    assert [line for line in found if line] == expected


@pytest.mark.parametrize(
    ("branch", "expected"), [("master", ["pbr===6"]), ("stable/x", ["pbr===5"]), ("stable/empty", []), ("none", [])])
def test_constraints_are_those_of_the_branch_alone(cache: Path, branch: str, expected: list[str]) -> None:
    assert lines(cache.parent, "show_constraints", branch, "cache") == expected


def test_without_the_requirements_project_there_are_no_constraints(tmp_path: Path) -> None:
    assert lines(tmp_path, "show_constraints", "master", "cache") == []


def test_the_work_tree_of_a_clone_does_not_count(cache: Path) -> None:
    commit(cache / "openstack/nova", "master", {"requirements.txt": "mine\n"})
    assert lines(cache.parent, "show_requirements", "master", "cache", stdin="openstack/nova\n") == ["pbr", "six", ""]


def test_a_folder_that_is_no_clone_is_not_taken_for_the_repository_round_it(tmp_path: Path) -> None:
    outer = repository(tmp_path / "outer", {"master": {"requirements.txt": "outer\n"}})
    write(outer / "cache/openstack/absent", {"x": ""})
    assert lines(outer, "show_requirements", "master", "cache", stdin="openstack/absent\n") == [""]


# Clones


def test_projects_are_cloned_with_all_branches_and_what_cannot_be_had_is_named(cache: Path) -> None:
    base = f"file://{cache.parent}/remotes"
    home = write(cache.parent / "home", {"workspace-cache/openstack/nova/half": "x"})
    result = call(home, "clone_projects", base, stdin=PROJECTS)
    assert (result.returncode, result.stderr) == (0, "")
    (line,) = result.stdout.splitlines()
    assert line.startswith("unavailable: openstack/absent")
    folders = home / "workspace-cache/openstack"
    assert sorted(path.name for path in folders.iterdir()) == ["glance", "nova"]
    assert git(folders / "nova", "for-each-ref", "--format=%(refname:lstrip=3)", "refs/remotes/origin").split() == [
        "HEAD", "master", "stable/x"]
    assert git(folders / "nova", "remote", "get-url", "origin") == f"{base}/openstack/nova"
    assert not (folders / "nova/half").exists()


def test_no_projects_are_no_work(tmp_path: Path) -> None:
    assert lines(tmp_path, "clone_projects", "file:///nowhere") == []


def test_a_clone_that_works_at_the_third_attempt_is_no_failure(cache: Path) -> None:
    home = write(cache.parent / "home", {"bin/git": f"#!/bin/sh\necho x >> '{cache.parent}/calls'\n"
                                                    f"[ $(wc -l < '{cache.parent}/calls') -ge 3 ] || exit 128\n"
                                                    "PATH=${PATH#*:} exec git \"$@\"\n"})
    (home / "bin/git").chmod(0o755)
    found = lines(home, "clone_projects", f"file://{cache.parent}/remotes", stdin="openstack/glance\n",
                  PATH=f"{home}/bin:{os.environ['PATH']}")
    assert found == []
    assert git(home / "workspace-cache/openstack/glance", "rev-parse", "--abbrev-ref", "HEAD") == "main"


def test_a_bundle_becomes_a_clone_of_its_url(cache: Path) -> None:
    source, clone = cache.parent / "remotes/openstack/nova", cache.parent / "clone/of/it"
    git(source, "bundle", "create", "--quiet", str(cache.parent / "bundle"), "--all")
    with (cache.parent / "bundle").open("rb") as bundle:
        result = subprocess.run(
            ["bash", str(PROJECT / "imagesteps.sh"), "clone_bundle", "https://example.org/nova", str(clone)],
            stdin=bundle, env=os.environ | ENVIRONMENT, capture_output=True, timeout=RUN_SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    assert git(clone, "remote", "get-url", "origin") == "https://example.org/nova"
    assert git(clone, "rev-parse", "HEAD", "origin/stable/x") == git(source, "rev-parse", "master", "stable/x")
    assert [path.name for path in clone.parent.iterdir()] == ["it"]
