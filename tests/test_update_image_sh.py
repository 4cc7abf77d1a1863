"""devstack-vm-update-image.sh: a clone of devstack that equals its remote, whatever was there before."""

import base64
import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.pool import PROJECT, await_that
from tests.support.repos import ENVIRONMENT, commit, git, repository, write

SCRIPT = "devstack-vm-update-image.sh"
RUN_SECONDS = 60
STAND_IN = """#!/usr/bin/env python3
import fcntl, json, os, sys
lock = open(os.path.join(os.environ["WORKSPACE"], "devstack.lock"))
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
print(json.dumps(sys.argv[1:]))
sys.exit(int(os.environ.get("STATUS", "0")))
"""
DEVSTACK = {"master": {"stackrc": "one", ".gitignore": "*.pyc\n"}, "stable/2024.2": {"stackrc": "2024.2"}}


class Site:
    """A host with the script, a stand-in for the program that it runs last, a workspace, and a remote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scripts = folder / "scripts"
        self.workspace = folder / "work space"
        self.base = folder / "base"
        self.remote = self.base / "openstack/devstack"
        self.checkout = self.workspace / "devstack"
        for made in (self.scripts, self.workspace, folder / "bin", folder / "home"):
            made.mkdir()
        for name in (SCRIPT, "functions.sh"):
            shutil.copy(PROJECT / name, self.scripts)
        shutil.copytree(PROJECT / "gate", self.scripts / "gate")
        program(self.scripts / "devstack-vm-update-image.py", STAND_IN)
        program(folder / "bin/sleep", "#!/bin/sh\n")  # no pause between two attempts
        self.environment = {
            "PATH": f"{folder}/bin:{os.environ['PATH']}", "HOME": str(folder / "home"),
            "WORKSPACE": str(self.workspace), "GIT_BASE": f"file://{self.base}", "GIT_CONFIG_SYSTEM": "/dev/null"}

    def start(self, *arguments: str, script: Path | str = "", **environment: str) -> subprocess.Popen[str]:
        """Start the script as Jenkins does; empty variables are not set."""
        variables = {name: value for name, value in (self.environment | environment).items() if value}
        return subprocess.Popen([script or self.scripts / SCRIPT, *arguments], env=variables, cwd=self.folder,
                                text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def run(self, *arguments: str, expect: int = 0, script: Path | str = "", **environment: str
            ) -> subprocess.CompletedProcess[str]:
        """Run the script to its end; fail the test with its output if the exit code is not the expected one."""
        process = self.start(*(arguments or ("one",)), script=script, **environment)
        try:
            out, err = process.communicate(timeout=RUN_SECONDS)
        finally:
            process.kill()
        assert process.returncode == expect, f"{process.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def branches(self) -> dict[str, str]:
        """Return {branch of the remote: commit} as the checkout has them."""
        lines = git(self.checkout, "for-each-ref", "--format=%(refname:lstrip=3) %(objectname)", "refs/remotes/origin")
        found = dict(line.split() for line in lines.splitlines())
        found.pop("HEAD", None)
        return found

    def files(self) -> dict[str, str]:
        """Return {name: text} of the checkout's work tree."""
        paths = [path for path in self.checkout.rglob("*") if ".git" not in path.parts and path.is_file()]
        return {str(path.relative_to(self.checkout)): path.read_text() for path in paths}

    def equals(self, remote: Path, branch: str = "master") -> bool:
        """Check that the checkout equals a remote, with the files of that branch in its work tree; return True."""
        lines = git(remote, "for-each-ref", "--format=%(refname:lstrip=2) %(objectname)", "refs/heads")
        head = git(self.checkout, "rev-parse", "HEAD")
        expected = dict(line.split() for line in lines.splitlines())
        assert self.branches() == expected
        assert (head, git(self.checkout, "status", "--porcelain", "--ignored")) == (expected[branch], "")
        names = git(remote, "ls-tree", "-r", "--name-only", f"refs/heads/{branch}").splitlines()
        assert self.files().keys() == set(names)
        return True


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def new(tmp_path: Path) -> Site:
    """Make a site with a remote and an empty workspace."""
    site = Site(tmp_path)
    repository(site.remote, DEVSTACK)
    return site


@pytest.fixture
def site(new: Site) -> Site:
    """Return a site whose checkout an earlier run has made."""
    new.run()
    return new


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    return result.stderr.splitlines()[-1]


# Use


def test_the_first_run_clones_devstack_with_all_branches_and_then_builds(new: Site) -> None:
    result = new.run("one", "--image", "noble")
    assert new.equals(new.remote)
    assert (result.stdout, result.stderr) == ('["one", "--image", "noble"]\n', "")
    assert sorted(path.name for path in new.workspace.iterdir()) == ["devstack", "devstack.lock"]


def test_arguments_are_passed_on_as_they_are(new: Site) -> None:
    arguments = ["all", "--script", "a  b", "", "*", "$HOME", "'", "--", "-x\n"]
    assert json.loads(new.run(*arguments).stdout) == arguments


@pytest.mark.parametrize("status", [0, 1, 2, 143])
def test_the_exit_code_is_that_of_the_build(site: Site, status: int) -> None:
    site.run(STATUS=str(status), expect=status)


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_says_what_it_does_and_does_nothing(new: Site, option: str) -> None:
    result = new.run(option, WORKSPACE="")
    assert result.stdout.startswith("Usage: devstack-vm-update-image.sh PROVIDER [ARGUMENTS]\n")
    assert (result.stderr, list(new.workspace.iterdir())) == ("", [])


@pytest.mark.parametrize(
    ("arguments", "workspace", "message"),
    [
        ([""], "{folder}/work space", "expected a provider, or all, as the first argument; see --help"),
        (["--image", "one"], "{folder}/work space", "expected a provider, or all, as the first argument; see --help"),
        (["one"], "", "WORKSPACE is not set; it names the folder into which devstack is cloned"),
        (["one"], "{folder}/none", "WORKSPACE: {folder}/none is not a folder that can be written to"),
        (["one"], "{folder}/bin/sleep", "WORKSPACE: {folder}/bin/sleep is not a folder that can be written to"),
    ],
    ids=["empty", "option first", "no workspace", "no folder", "a file"],
)
def test_wrong_use_is_one_line_and_exit_code_2(new: Site, arguments: list[str], workspace: str, message: str) -> None:
    result = new.run(*arguments, WORKSPACE=workspace.format(folder=new.folder), expect=2)
    assert (result.stdout, result.stderr) == ("", f"{SCRIPT}: {message.format(folder=new.folder)}\n")
    assert list(new.workspace.iterdir()) == []


def test_no_arguments_at_all_are_wrong_use(new: Site) -> None:
    with new.start() as process:
        _, err = process.communicate(timeout=RUN_SECONDS)
    assert (process.returncode, err) == (
        2, f"{SCRIPT}: expected a provider, or all, as the first argument; see --help\n")


def test_the_script_may_be_called_by_a_symbolic_link_from_another_folder(new: Site) -> None:
    (new.folder / "link").symlink_to(new.scripts / SCRIPT)
    assert new.run("one", script="./link").stdout == '["one"]\n'
    assert new.equals(new.remote)


def test_the_workspace_may_be_named_from_where_we_are(new: Site) -> None:
    new.run(WORKSPACE="work space")
    assert new.equals(new.remote)


@pytest.mark.parametrize("base", ["file://{base}/", "{base}"], ids=["slash", "folder"])
def test_the_base_may_end_with_a_slash_or_be_a_folder(new: Site, base: str) -> None:
    new.run(GIT_BASE=base.format(base=new.base))
    assert new.equals(new.remote)


def test_two_jobs_may_share_a_workspace(new: Site) -> None:
    with new.start("one") as first, new.start("two") as second:
        ends = [(process.communicate(timeout=RUN_SECONDS), process.returncode) for process in (first, second)]
    assert [(out, code) for (out, _), code in ends] == [('["one"]\n', 0), ('["two"]\n', 0)], ends
    assert new.equals(new.remote)


# A remote that changes


def test_new_changed_and_removed_branches_are_followed(site: Site) -> None:
    commit(site.remote, "stable/2025.1", {"stackrc": "2025.1"})
    commit(site.remote, "master", {"stackrc": "two"})
    git(site.remote, "branch", "--quiet", "-D", "stable/2024.2")
    site.run()
    assert site.equals(site.remote)
    assert site.files() == {"stackrc": "two"}


def test_a_branch_whose_history_was_rewritten_is_followed(site: Site) -> None:
    git(site.remote, "commit", "--quiet", "--amend", "--message", "another")
    git(site.remote, "tag", "moved", "master")
    site.run()
    git(site.remote, "tag", "--force", "moved", "stable/2024.2")
    site.run()
    assert site.equals(site.remote)


@pytest.mark.parametrize(("old", "new_branch"), [("stable/x", "stable/x/y"), ("a/b", "a")])
def test_a_branch_that_stands_where_another_was_is_fetched(site: Site, old: str, new_branch: str) -> None:
    commit(site.remote, old, {"stackrc": "old"})
    site.run()
    git(site.remote, "checkout", "--quiet", "master")
    git(site.remote, "branch", "--quiet", "-D", old)
    commit(site.remote, new_branch, {"stackrc": "new"})
    git(site.remote, "checkout", "--quiet", "master")
    site.run()
    assert site.equals(site.remote)


@pytest.mark.parametrize("default", ["main", "trunk", "stable/only"])
def test_the_default_branch_may_have_any_name(tmp_path: Path, default: str) -> None:
    site = Site(tmp_path)
    repository(site.remote, {default: {"stackrc": "x"}, "other": {"stackrc": "y"}})
    site.run()
    site.run()
    assert site.equals(site.remote, default)


def test_another_default_branch_is_followed(site: Site) -> None:
    commit(site.remote, "main", {"stackrc": "main"})
    git(site.remote, "branch", "--quiet", "-D", "master")
    site.run()
    assert site.equals(site.remote, "main")


def test_a_remote_whose_default_branch_does_not_exist_has_its_others(new: Site) -> None:
    git(new.remote, "symbolic-ref", "HEAD", "refs/heads/nowhere")
    new.run()
    assert new.equals(new.remote, "master")


def test_a_remote_without_branches_is_an_error(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.remote.mkdir(parents=True)
    git(site.remote, "init", "--quiet")
    result = site.run(expect=1)
    assert last_line(result) == (
        f"{SCRIPT}: devstack could not be fetched from file://{site.base}/openstack/devstack; nothing was built")
    assert result.stdout == ""


def test_a_checkout_moves_to_another_remote(site: Site) -> None:
    other = repository(
        site.folder / "other/openstack/devstack", {"master": {"lib/x": "x"}, "stable/x": {"stackrc": ""}})
    site.run(GIT_BASE=f"file://{site.folder}/other")
    assert site.equals(other)


# What was done in the checkout


def test_local_changes_and_stray_files_go(site: Site) -> None:
    write(site.checkout, {"stackrc": "changed", "stray": "x", "stray.pyc": "ignored", "deep/er/file": "x",
                          "name with blank\n": "x", ".hidden": "x"})
    git(site.checkout, "add", "stray")
    repository(site.checkout / "nested", {"master": {"x": "x"}})
    site.run()
    assert site.equals(site.remote)
    assert site.files()["stackrc"] == "one"


def test_local_commits_and_branches_leave_no_trace_in_the_work_tree(site: Site) -> None:
    commit(site.checkout, "master", {"stackrc": "mine"})
    site.run()
    assert site.equals(site.remote)


def test_a_deleted_work_tree_comes_back(site: Site) -> None:
    for path in site.checkout.iterdir():
        if path.name != ".git":
            path.unlink()
    site.run()
    assert site.equals(site.remote)


def test_a_merge_that_was_left_half_done_goes(site: Site) -> None:
    git(site.checkout, "checkout", "--quiet", "-b", "mine")
    write(site.checkout, {"stackrc": "mine"})
    git(site.checkout, "commit", "--quiet", "--all", "--message", "mine")
    commit(site.remote, "master", {"stackrc": "theirs"})
    git(site.checkout, "fetch", "--quiet")
    subprocess.run(["git", "-C", site.checkout, "merge", "--quiet", "--allow-unrelated-histories", "origin/master"],
                   env=os.environ | ENVIRONMENT, capture_output=True, check=False)
    assert (site.checkout / ".git/MERGE_HEAD").exists()
    site.run()
    assert site.equals(site.remote)


# Damage


DAMAGE = {  # commands in the workspace
    "HEAD is empty": ": > devstack/.git/HEAD",
    "HEAD is gone": "rm devstack/.git/HEAD",
    "config is broken": "printf '[remote \"ori' > devstack/.git/config",
    "config is empty": ": > devstack/.git/config",
    "no objects": "rm -r devstack/.git/objects",
    "truncated objects": "find devstack/.git/objects -type f -exec chmod u+w {} + -exec truncate --size=5 {} +",
    "empty refs": "find devstack/.git/refs/remotes -type f -exec truncate --size=0 {} +",
    "broken packed refs": "echo garbage > devstack/.git/packed-refs",
    "broken index": "printf DIRC > devstack/.git/index",
    "index locked": "touch devstack/.git/index.lock",
    "HEAD locked": "touch devstack/.git/HEAD.lock",
    "config locked": "touch devstack/.git/config.lock",
    "ref locked": "touch devstack/.git/refs/remotes/origin/master.lock",
    "shallow locked": "touch devstack/.git/shallow.lock",
    "empty .git": "rm -r devstack/.git; mkdir devstack/.git",
    ".git is gone": "rm -r devstack/.git",
    ".git is a file": "rm -r devstack/.git; echo 'gitdir: no' > devstack/.git",
    "no remote": "git -C devstack remote remove origin",
    "a file": "rm -r devstack; touch devstack",
    "an empty folder": "rm -r devstack; mkdir devstack",
    "half a clone beside it": "mkdir -p devstack.new/.git; touch devstack.new/.git/HEAD devstack.new/x",
    "half a clone alone": "mv devstack devstack.new; rm devstack.new/.git/HEAD",
    "a link to nowhere": "rm -r devstack; ln -s nowhere devstack",
}


def damage_checkout(workspace: Path, damage: str) -> None:
    subprocess.run(["bash", "-ec", DAMAGE[damage]], cwd=workspace, check=True)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkout_is_mended_or_replaced(site: Site, damage: str) -> None:
    damage_checkout(site.workspace, damage)
    commit(site.remote, "master", {"stackrc": "two"})
    result = site.run()
    assert site.equals(site.remote)
    assert site.files() == {"stackrc": "two"}
    assert result.stdout == '["one"]\n'
    assert sorted(path.name for path in site.workspace.iterdir()) == ["devstack", "devstack.lock"]


KILLER = """#!/bin/sh
[ "$1" = clone ] || exec {git} "$@"
for folder; do :; done
mkdir -p "$folder/.git/objects" && echo 'ref: refs/heads/master' > "$folder/.git/HEAD"
kill -KILL "$(ps -o ppid= -p $PPID)"  # the script; our parent is timeout
"""


def test_a_run_that_was_killed_while_it_cloned_is_made_good_by_the_next(new: Site) -> None:
    program(new.folder / "bin/git", KILLER.format(git=shutil.which("git")))
    new.run(expect=-9)
    assert (new.workspace / "devstack.new/.git/HEAD").exists()
    (new.folder / "bin/git").unlink()
    new.run()
    assert new.equals(new.remote)


# A server that does not answer


@contextmanager
def daemon(base: Path, port: int) -> Iterator[None]:
    """Run a git server for what is in a folder."""
    command = ["git", "daemon", "--reuseaddr", "--listen=127.0.0.1", f"--port={port}", "--export-all",
               f"--base-path={base}", str(base)]
    with subprocess.Popen(command, env=os.environ | ENVIRONMENT | {
            "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory", "GIT_CONFIG_VALUE_0": "*"},
            stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            await_that("git daemon", lambda: answers(port))
            yield
        finally:
            os.killpg(process.pid, 15)


def answers(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.parametrize("base", ["opendev.org", "nowhere/at/all", "-x", "https://opendev.org\n"])
def test_a_base_that_names_no_place_is_refused_before_git_is_asked(new: Site, base: str) -> None:
    result = new.run(GIT_BASE=base, expect=2)
    assert (result.stdout, result.stderr) == (
        "", f"{SCRIPT}: GIT_BASE: expected the URL of a git server or an absolute path\n")


def test_an_outage_of_the_server_keeps_the_checkout_and_the_next_run_goes_on(new: Site) -> None:
    port = free_port()
    base = f"git://127.0.0.1:{port}"
    with daemon(new.base, port):
        new.run(GIT_BASE=base)
    commit(new.remote, "master", {"stackrc": "two"})
    before = (new.branches(), new.files())

    result = new.run(GIT_BASE=base, expect=1)
    assert last_line(result) == (
        f"{SCRIPT}: devstack could not be fetched from {base}/openstack/devstack; nothing was built")
    assert (result.stdout, (new.branches(), new.files())) == ("", before)

    with daemon(new.base, port):
        new.run(GIT_BASE=base)
    assert new.equals(new.remote)


def test_a_server_that_answers_at_the_third_attempt_is_good_enough(new: Site) -> None:
    program(new.folder / "bin/git", f"#!/bin/sh\necho \"$*\" >> '{new.folder}/calls'\ncase \" $* \" in *' clone '*) "
                                    f"[ $(grep -c clone '{new.folder}/calls') -ge 3 ] || exit 128;; esac\n"
                                    f"exec {shutil.which('git')} \"$@\"\n")
    result = new.run()
    assert new.equals(new.remote)
    assert [line.split("Z ", 1)[1] for line in result.stderr.splitlines()] == [
        "git failed with 128, attempt 1 of 3; again in 2 s", "git failed with 128, attempt 2 of 3; again in 4 s"]


@pytest.mark.parametrize("earlier", [False, True], ids=["first run", "later run"])
def test_a_remote_that_does_not_exist_is_named(new: Site, earlier: bool) -> None:
    if earlier:
        new.run()
    result = new.run(GIT_BASE=f"file://{new.folder}/nowhere", expect=1)
    url = f"file://{new.folder}/nowhere/openstack/devstack"
    assert last_line(result) == f"{SCRIPT}: devstack could not be fetched from {url}; nothing was built"
    assert (result.stdout, new.checkout.exists()) == ("", earlier)
    assert not earlier or (new.run() and new.equals(new.remote))


# Other repositories and settings


def state_of(folder: Path) -> tuple[str, str, str, str]:
    return (git(folder, "rev-parse", "HEAD"), git(folder, "status", "--porcelain", "--", ".", ":!inside"),
            (folder / ".git/config").read_text(), (folder / "file").read_text())


@pytest.mark.parametrize("damage", [None, "empty .git", ".git is gone", "no objects", ".git is a file", "HEAD is gone"])
def test_a_workspace_inside_another_repository_never_touches_that(new: Site, damage: str | None) -> None:
    outer = repository(new.folder / "outer", {"master": {"file": "x", "ignored": "x"}})
    write(outer, {"file": "changed by hand", "stray": "x", "inside/x": "x"})
    before = state_of(outer)
    new.workspace = outer / "inside"
    new.checkout = new.workspace / "devstack"
    new.run(WORKSPACE=str(new.workspace))
    if damage:
        damage_checkout(new.workspace, damage)
        new.run(WORKSPACE=str(new.workspace))
    assert state_of(outer) == before
    assert new.equals(new.remote)


@pytest.mark.parametrize("variables", [["GIT_DIR"], ["GIT_DIR", "GIT_WORK_TREE"], ["GIT_INDEX_FILE"]], ids=" ".join)
def test_git_s_own_variables_lead_to_no_other_repository(new: Site, variables: list[str]) -> None:
    other = repository(new.folder / "other", {"master": {"file": "x"}})
    write(other, {"file": "changed by hand", "stray": "x"})
    before = state_of(other)
    values = {"GIT_DIR": f"{other}/.git", "GIT_WORK_TREE": str(other), "GIT_INDEX_FILE": f"{other}/.git/index"}
    new.environment |= {name: values[name] for name in variables}
    for _ in range(2):
        new.run()
    assert state_of(other) == before
    assert new.equals(new.remote)


@pytest.mark.parametrize("setting", ["clone.defaultRemoteName upstream", "fetch.prune false", "submodule.recurse true",
                                     "remote.origin.tagOpt --no-tags", "core.bare false"])
def test_git_settings_of_the_account_change_nothing(new: Site, setting: str) -> None:
    key, value = setting.split()
    git(new.folder, "config", "--file", str(new.folder / "home/.gitconfig"), key, value)
    for _ in range(2):
        new.run()
    assert new.equals(new.remote)


def test_a_tag_is_not_taken_for_a_branch(new: Site) -> None:
    for name in ("origin/master", "origin/HEAD", "master"):
        git(new.remote, "tag", name, "stable/2024.2")
    for _ in range(2):
        new.run()
    assert new.equals(new.remote)


# What others could have put there


def planted(folder: Path, text: str) -> str:
    """Write a command that leaves a mark if it is run; return its path."""
    return str(write(folder, {"planted": f"#!/bin/sh\ntouch '{folder}/ran'\n{text}\n"}) / "planted")


@pytest.mark.parametrize("line", [
    "fsmonitor = {planted}", "hooksPath = {folder}", "sshCommand = {planted}", "gitProxy = {planted}",
    "worktree = {folder}", "attributesFile = {folder}/attributes"])
def test_nothing_that_a_checkout_s_settings_name_is_run(site: Site, line: str) -> None:
    folder = site.folder / "planted-things"
    script = planted(folder, "cat")
    for name in ("planted", "post-checkout", "reference-transaction", "post-index-change"):
        program(folder / name, f"#!/bin/sh\ntouch '{folder}/ran'\ncat\n")
    write(folder, {"attributes": "* filter=planted\n"})
    with (site.checkout / ".git/config").open("a") as config:
        config.write(f"[core]\n\t{line.format(planted=script, folder=folder)}\n"
                     f"[filter \"planted\"]\n\tsmudge = {script}\n\tclean = {script}\n"
                     f"[credential]\n\thelper = {script}\n"
                     f"[remote \"origin\"]\n\tuploadpack = {script}\n")
    for name in ("post-checkout", "reference-transaction", "post-index-change"):
        (site.checkout / ".git/hooks").mkdir(exist_ok=True)
        program(site.checkout / f".git/hooks/{name}", f"#!/bin/sh\ntouch '{folder}/ran'\n")
    write(site.checkout, {".git/info/attributes": "* filter=planted\n"})
    commit(site.remote, "master", {"stackrc": "two", ".gitattributes": "* filter=planted\n"})

    site.run()

    assert site.equals(site.remote)
    assert not (folder / "ran").exists()


def test_hooks_of_the_account_s_template_are_not_run(new: Site) -> None:
    hook = write(new.folder / "template", {"hooks/post-checkout": f"#!/bin/sh\ntouch '{new.folder}/ran'\n"})
    (hook / "hooks/post-checkout").chmod(0o755)
    git(new.folder, "config", "--file", str(new.folder / "home/.gitconfig"), "init.templateDir", str(hook))
    for _ in range(2):
        new.run()
    assert not (new.folder / "ran").exists()


def test_a_lock_file_that_is_a_link_is_refused_and_what_it_names_stays_whole(new: Site) -> None:
    precious = write(new.folder, {"vm.db": "all machines"}) / "vm.db"
    (new.workspace / "devstack.lock").symlink_to(precious)
    result = new.run(expect=2)
    assert result.stderr == (
        f"{SCRIPT}: {new.workspace}/devstack.lock: expected a file of our own; move it away\n")
    assert (precious.read_text(), new.checkout.exists()) == ("all machines", False)


def test_a_lock_file_that_is_no_file_does_not_keep_us_waiting(new: Site) -> None:
    os.mkfifo(new.workspace / "devstack.lock")
    assert new.run(expect=2).stderr == (
        f"{SCRIPT}: {new.workspace}/devstack.lock: expected a file of our own; move it away\n")


def test_what_the_lock_file_holds_is_kept(new: Site) -> None:
    write(new.workspace, {"devstack.lock": "kept"})
    new.run()
    assert (new.workspace / "devstack.lock").read_text() == "kept"


@pytest.mark.parametrize("name", ["devstack", "devstack/.git", "devstack.lock"])
def test_what_belongs_to_somebody_else_is_refused(site: Site, name: str) -> None:
    os.chown(site.workspace / name, 65534, 65534, follow_symlinks=False)
    commit(site.remote, "master", {"stackrc": "two"})
    result = site.run(expect=2)
    assert result.stderr == f"{SCRIPT}: {site.workspace}/{name}: belongs to somebody else; move it away\n"
    assert site.files()["stackrc"] == "one"


def test_a_login_of_the_base_is_in_no_file_that_others_can_read(site: Site) -> None:
    (site.checkout / ".git/config").chmod(0o644)
    with daemon(site.base, port := free_port()):
        site.run(GIT_BASE=f"git://robot:hunter2@127.0.0.1:{port}", expect=1)  # git:// has no logins
    found = [path for path in site.workspace.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]
    assert all(path.stat().st_mode & 0o077 == 0 for path in found), found
    assert found, "the setting with the login was not written"


@contextmanager
def asking_for_a_login(repository: Path, login: str, seen: list[str]) -> Iterator[str]:
    """Serve a repository for that login only; at each request, note what everybody can see of all processes."""
    token = base64.b64encode(login.encode()).decode()

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    seen.append(file.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            if self.headers.get("Authorization") == f"Basic {token}":
                super().do_GET()
            else:
                self.send_response(401)
                self.send_header("WWW-Authenticate", 'Basic realm="git"')
                self.send_header("Content-Length", "0")
                self.end_headers()

        def translate_path(self, path: str) -> str:
            return f"{repository}/.git/{path.partition('?')[0].partition('/openstack/devstack/')[2]}"

        def log_message(self, *_: object) -> None:
            pass

    git(repository, "update-server-info")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("password", ["hunter2-CANARY", "p%40ss%2Fw%27ord-CANARY"])
def test_a_login_of_the_base_is_in_no_list_of_processes_and_in_no_file_afterwards(site: Site, password: str) -> None:
    (site.workspace / "devstack.login").symlink_to(victim := site.folder / "victim")
    victim.write_text("mine")
    seen: list[str] = []
    shutil.rmtree(site.checkout, ignore_errors=True)
    with asking_for_a_login(site.remote, f"robot:{unquote(password)}", seen) as place:
        for _ in range(2):  # a clone, then a fetch
            site.run(GIT_BASE=f"http://robot:{password}@{place}")
            commit(site.remote, "master", {"stackrc": "two"})
            git(site.remote, "update-server-info")
        site.run(GIT_BASE=f"http://robot:wrong-CANARY@{place}", expect=1)
    assert site.files()["stackrc"] == "two"
    assert any("remote-http" in line for line in seen)
    assert [line for line in seen if "CANARY" in line] == []
    assert [path for path in site.workspace.rglob("*") if path.is_file() and b"CANARY" in path.read_bytes()] == []
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("name", [".", "devstack", "devstack/.git", "devstack.lock"])
@pytest.mark.parametrize("rights", [0o020, 0o002])
def test_what_others_can_write_is_refused_and_stays_as_it_is(site: Site, name: str, rights: int) -> None:
    path = site.workspace / name
    before = path.stat().st_mode & 0o777
    path.chmod(before | rights)
    head = git(site.checkout, "rev-parse", "HEAD")

    result = site.run(expect=2)

    assert result.stderr == (f"{SCRIPT}: {path if name != '.' else site.workspace}: can be written by others than you; "
                             "see that nobody has put anything there, and chmod go-w it\n")
    assert (git(site.checkout, "rev-parse", "HEAD"), path.stat().st_mode & 0o777) == (head, before | rights)
    path.chmod(before)
    site.run()


def test_a_checkout_in_which_others_could_write_is_cloned_afresh(site: Site) -> None:
    (site.checkout / ".git/objects").chmod(0o777)

    result = site.run()

    assert "holds what others than you could write; cloning it afresh" in result.stderr
    assert (site.checkout / ".git/objects").stat().st_mode & 0o077 == 0


def test_a_checkout_is_for_its_owner_only(site: Site) -> None:
    site.checkout.chmod(0o755)

    site.run()

    assert site.checkout.stat().st_mode & 0o077 == 0
