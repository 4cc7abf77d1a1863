"""Functions of image/steps.sh that need no machine."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image import pipneeds
from tests.support.pool import PROJECT
from tests.support.repos import ENVIRONMENT, commit, git, repository, write

SOURCE = f"""
set -uo pipefail
source '{PROJECT}/image/steps.sh'
sleep() {{ :; }}  # no pauses
export -f sleep
"$@"
"""
RUN_SECONDS = 60


def call(folder: Path, *words: str, stdin: str = "", before: str = "", **environment: str
         ) -> subprocess.CompletedProcess[str]:
    """Call a function in a folder; `before` is bash code that runs before it."""
    return subprocess.run(
        ["bash", "-c", SOURCE.replace('"$@"', f'{before}\n"$@"'), "steps", *words], input=stdin, cwd=folder, text=True,
        env=os.environ | ENVIRONMENT | environment, capture_output=True, timeout=RUN_SECONDS, check=False)


def lines(folder: Path, *words: str, stdin: str = "", **environment: str) -> list[str]:
    """Return the lines that a function prints; check that it succeeds and says nothing on stderr."""
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


def apt_here(folder: Path) -> str:
    """Return bash code that makes apt-get and dpkg work on a folder with nothing installed and no mirrors."""
    for name in ("state/lists/partial", "cache/archives/partial", "dpkg/info", "dpkg/updates"):
        (folder / name).mkdir(parents=True)
    write(folder, {"dpkg/status": "", "dpkg/available": "", "dpkg/info/format": "1\n", "none": ""})
    options = {"Dir::State": folder / "state", "Dir::Cache": folder / "cache",
               "Dir::State::status": folder / "dpkg/status", "Dir::Etc::sourcelist": folder / "none",
               "Dir::Etc::sourceparts": "/dev/null"}
    words = " ".join(f"-o {name}={value}" for name, value in options.items())
    return f"unset -f sleep; export DPKG_ADMINDIR='{folder}/dpkg'; APT+=({words})"


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that has another process hold a lock of apt-get or dpkg for some seconds."""
    holders = []

    def hold(name: str, seconds: float = 4) -> None:
        script = ("import fcntl, sys, time; lock = open(sys.argv[1], 'a'); fcntl.lockf(lock, fcntl.LOCK_EX); "
                  "print(flush=True); time.sleep(float(sys.argv[2]))")
        holders.append(subprocess.Popen([sys.executable, "-c", script, tmp_path / name, str(seconds)],
                                        stdout=subprocess.PIPE))
        assert holders[-1].stdout
        holders[-1].stdout.readline()

    yield hold
    for holder in holders:
        holder.kill()
        holder.communicate()


@pytest.mark.parametrize(
    ("lock", "words"),
    [
        ("state/lists/lock", ["update_lists"]),
        ("cache/archives/lock", ["apt", "clean"]),
        ("dpkg/lock", ["repair_packages"]),
        ("dpkg/lock-frontend", ["repair_packages"]),
        ("dpkg/lock-frontend", ["apt", "--fix-broken", "install"]),
    ],
    ids=["lists", "archives", "dpkg", "frontend", "apt's own time limit"],
)
def test_a_lock_that_another_process_holds_is_waited_for(
    tmp_path: Path, held: Callable[[str], None], lock: str, words: list[str]
) -> None:
    prepare = apt_here(tmp_path)
    held(lock)
    result = call(tmp_path, *words, before=prepare)
    assert result.returncode == 0, result.stdout + result.stderr


def test_a_lock_is_not_waited_for_for_ever(tmp_path: Path, held: Callable[[str, float], None]) -> None:
    prepare = apt_here(tmp_path)
    held("state/lists/lock", 60)
    result = call(tmp_path, "update_lists", before=f"{prepare}; LOCK_SECONDS=0")
    assert (result.returncode, "Could not get lock" in result.stdout) == (100, True), result.stdout


def test_what_an_interrupted_dpkg_left_is_finished(tmp_path: Path) -> None:
    prepare = apt_here(tmp_path)
    write(tmp_path, {"dpkg/info/tiny.list": "/.\n", "dpkg/updates/0001":
                     "Package: tiny\nStatus: install ok unpacked\nMaintainer: a <a@example.org>\nArchitecture: all\n"
                     "Version: 1\nDescription: x\n"})
    before = call(tmp_path, "apt", "--fix-broken", "install", before=prepare)
    assert "dpkg was interrupted" in before.stdout

    result = call(tmp_path, "repair_packages", before=prepare)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Status: install ok installed\n" in (tmp_path / "dpkg/status").read_text()


SYSTEMCTL = """#!/bin/bash
echo "$*" >> '{folder}/calls'
case $1 in
    show)
        echo ActiveState=inactive
        if [[ ! -e {folder}/ended ]]; then touch '{folder}/ended'; echo ActiveState=activating; fi
        ;;
    stop) exit 5 ;;  # some of them are not there
esac
"""


def test_automatic_upgrades_are_stopped_and_what_is_under_way_is_waited_for(tmp_path: Path) -> None:
    write(tmp_path, {"bin/systemctl": SYSTEMCTL.format(folder=tmp_path)})
    (tmp_path / "bin/systemctl").chmod(0o755)
    result = call(tmp_path, "stop_upgrades", PATH=f"{tmp_path}/bin:{os.environ['PATH']}",
                  before="mask_upgrades() { echo masked >> calls; }; SYSTEMD=$PWD")
    assert (result.returncode, result.stderr) == (0, "")
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [line.split()[0] for line in calls] == ["masked", "daemon-reload", "stop", "show", "show", "stop"]
    assert calls[2].startswith("stop apt-daily.timer apt-daily-upgrade.timer ")
    assert "apt-daily.service apt-daily-upgrade.service" in calls[3]
    assert calls[-1] == "stop unattended-upgrades.service"


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
    """Make a folder with clones of two projects and of the requirements."""
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


def needs(folder: Path, branch: str, projects: str = PROJECTS) -> dict[str, tuple[bool, str]]:
    """Return {project: (whether it has the branch, its requirements.txt)}."""
    (blob,) = lines(folder, "show_needs", branch, "cache", stdin=projects)
    return {one.name: (one.has_branch, one.files["requirements.txt"]) for one in pipneeds.unpack(blob)}


@pytest.mark.parametrize(("branch", "nova"), [
    ("master", (True, "pbr\nsix\n")), ("stable/x", (True, "pbr>=1\n")), ("none", (False, "pbr\nsix\n"))])
def test_what_projects_need_is_that_of_the_branch_or_else_of_the_default_one(
    cache: Path, branch: str, nova: tuple[bool, str]
) -> None:
    assert needs(cache.parent, branch) == {"openstack/nova": nova, "openstack/glance": (False, "wsme")}


def test_the_files_that_say_what_a_project_needs_are_shown(tmp_path: Path) -> None:
    names = ("requirements.txt", "test-requirements.txt", "doc/requirements.txt", "setup.cfg", "pyproject.toml",
             "setup.py", "tox.ini")
    files = {name: f"of {name} ö\n" for name in names}
    repository(tmp_path / "remote", {"master": {**files, "other.txt": "x"}})
    git(tmp_path, "clone", "--quiet", str(tmp_path / "remote"), "cache/nova")
    (blob,) = lines(tmp_path, "show_needs", "master", "cache", stdin="openstack/nova\n")
    assert pipneeds.unpack(blob) == [pipneeds.ProjectFiles("openstack/nova", True, files)]


@pytest.mark.parametrize("setting", ["core.fsmonitor", "diff.x.textconv", "filter.x.smudge", "core.sshCommand",
                                     "remote.origin.uploadpack", "core.pager"])
def test_nothing_that_a_clone_s_settings_name_is_run(cache: Path, setting: str) -> None:
    clone = cache / "openstack/nova"
    git(clone, "config", setting, f"touch '{cache}/ran'; cat")
    git(clone, "config", "remote.origin.promisor", "true")
    git(clone, "config", "extensions.partialClone", "origin")
    write(clone, {".git/info/attributes": "* diff=x filter=x\n"})
    blob = git(clone, "rev-parse", "origin/stable/x:requirements.txt")
    (clone / f".git/objects/{blob[:2]}/{blob[2:]}").unlink()
    call(cache.parent, "show_needs", "stable/x", "cache", stdin="openstack/nova\n")
    assert not (cache / "ran").exists()


@pytest.mark.parametrize(
    ("branch", "expected"), [("master", ["pbr===6"]), ("stable/x", ["pbr===5"]), ("stable/empty", []), ("none", [])])
def test_constraints_are_those_of_the_branch_alone(cache: Path, branch: str, expected: list[str]) -> None:
    assert lines(cache.parent, "show_constraints", branch, "cache") == expected


def test_without_the_requirements_project_there_are_no_constraints(tmp_path: Path) -> None:
    assert lines(tmp_path, "show_constraints", "master", "cache") == []


def test_the_work_tree_of_a_clone_does_not_count(cache: Path) -> None:
    commit(cache / "openstack/nova", "master", {"requirements.txt": "mine\n"})
    assert needs(cache.parent, "master", "openstack/nova\n") == {"openstack/nova": (True, "pbr\nsix\n")}


def test_a_folder_that_is_no_clone_is_not_taken_for_the_repository_round_it(tmp_path: Path) -> None:
    outer = repository(tmp_path / "outer", {"master": {"requirements.txt": "outer\n"}})
    write(outer / "cache/openstack/absent", {"x": ""})
    assert needs(outer, "master", "openstack/absent\n") == {}


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
            ["bash", str(PROJECT / "image/steps.sh"), "clone_bundle", "https://example.org/nova", str(clone)],
            stdin=bundle, env=os.environ | ENVIRONMENT, capture_output=True, timeout=RUN_SECONDS, check=False)
    assert result.returncode == 0, result.stderr
    assert git(clone, "remote", "get-url", "origin") == "https://example.org/nova"
    assert git(clone, "rev-parse", "HEAD", "origin/stable/x") == git(source, "rev-parse", "master", "stable/x")
    assert [path.name for path in clone.parent.iterdir()] == ["it"]


# Packages of pip


PIP = """#!/bin/bash
# A pip: it cannot `wheel` anything if one of the names is in $UNBUILT, nor get anything if one is in $GONE.
set -u
if [[ $* == *--version ]]; then exit 0; fi
while [[ $1 != wheel && $1 != download ]]; do shift; done
what=$1
shift 3  # and the folder
if [[ $1 == --requirement ]]; then set -- $(< "$2"); fi
no=" $GONE "
if [[ $what == wheel ]]; then no+="$UNBUILT "; fi
echo "$what $*" >> "$CALLS"
for name in "$@"; do if [[ $no == *" $name "* ]]; then exit 1; fi; done
printf '%s\\n' "$@" >> "$CALLS.$what"
"""


@pytest.mark.parametrize(
    ("count", "gone", "unbuilt", "most"),
    [(100, [], [], 1), (100, [1], [], 16), (100, [100], [], 16), (100, [57], [], 16), (100, [], [33], 16),
     (100, [20, 21], [80], 40), (3, [2], [3], 8), (1, [1], [], 2), (1, [], [1], 2), (4, [1, 2, 3, 4], [], 11)])
def test_a_package_that_pip_cannot_get_costs_neither_the_others_nor_much_time(
    tmp_path: Path, count: int, gone: list[int], unbuilt: list[int], most: int
) -> None:
    write(tmp_path, {"bin/python3": PIP})
    (tmp_path / "bin/python3").chmod(0o755)
    names = [f"p{number}" for number in range(1, count + 1)]
    found = call(tmp_path, "cache_pips", "", stdin="\n".join(names) + "\n", CALLS=str(tmp_path / "calls"),
                 GONE=" ".join(f"p{number}" for number in gone), UNBUILT=" ".join(f"p{number}" for number in unbuilt),
                 PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    assert found.stdout.splitlines() == [f"unavailable: p{number}" for number in gone]
    wheels, downloads = (
        sorted(path.read_text().split(), key=names.index) if path.exists() else []
        for path in (tmp_path / "calls.wheel", tmp_path / "calls.download"))
    assert wheels == [name for name in names if int(name[1:]) not in gone + unbuilt]
    assert downloads == [f"p{number}" for number in unbuilt]
    assert len((tmp_path / "calls").read_text().splitlines()) <= most


def test_packages_of_pip_for_which_no_time_is_left_are_named(tmp_path: Path) -> None:
    write(tmp_path, {"bin/python3": PIP})
    (tmp_path / "bin/python3").chmod(0o755)
    found = call(tmp_path, "cache_pips", "", stdin="p1\np2\np3\np4\n", GONE="p1", UNBUILT="",
                 CALLS=str(tmp_path / "calls"), PATH=f"{tmp_path}/bin:{os.environ['PATH']}",
                 before="timeout() { shift 4; \"$@\"; local rc=$?; SECONDS=$(( SECONDS + 1000 )); return $rc; }")
    assert found.stdout.splitlines() == [f"unavailable: p{number}" for number in range(1, 5)]
    assert (tmp_path / "calls").read_text().splitlines() == ["wheel p1 p2 p3 p4", "wheel p1 p2"]
