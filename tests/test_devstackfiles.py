"""What an image build caches, read from devstack checkouts of any age."""

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateprocess import ConfigError, GateError
from image import devstackfiles, pipneeds
from image.devstackfiles import Checkout, Package, SandboxError
from tests.support.pool import Pool, await_that
from tests.support.repos import commit, git, repository, write

SCRIPT = "devstack-vm-update-image.py"


# Package files


@pytest.mark.parametrize(
    ("text", "distribution", "names"),
    [
        ("", "noble", ""),
        ("git\n", "noble", "git"),
        ("git", "noble", "git"),
        ("\n\n  \ngit\n\n", "noble", "git"),
        ("# git is useful\n#vim\n  # emacs\n", "noble", ""),
        ("git # is useful\n", "noble", "git"),
        ("git# is useful\n", "noble", "git"),
        ("git # one # two ## three\n", "noble", "git"),
        ("\tgit \t\n", "noble", "git"),
        ("git vim # both\n", "noble", "git vim"),
        ("python-mysql.connector\nlibstdc++6\ngcc:i386\nglibc.i686\n", "noble",
         "python-mysql.connector libstdc++6 gcc:i386 glibc.i686"),
        ("@development-tools\nperl(DBD::mysql)\n/usr/bin/x\n", "f40",
         "@development-tools perl(DBD::mysql) /usr/bin/x"),
        ("git\r\nvim # dist:noble\r\n", "noble", "git vim"),
        ("git\ngit # dist:noble\n", "noble", "git git"),
    ],
    ids=["none", "one", "no line end", "blank lines", "comment-only lines", "comment", "no blank", "several #", "tabs",
         "two words", "signs", "rpm names", "CRLF", "twice"],
)
def test_a_package_a_line_and_comments(text: str, distribution: str, names: str) -> None:
    found = devstackfiles.parse_packages(text, distribution, "files/debs/general")
    assert found == [Package(name, "files/debs/general", install=True) for name in names.split()]


@pytest.mark.parametrize(
    ("comment", "distribution", "wanted"),
    [
        ("dist:noble", "noble", True),
        ("dist:noble", "jammy", False),
        ("dist:jammy,noble", "noble", True),
        ("dist:jammy,noble,focal", "noble", True),
        ("dist:jammy, noble", "noble", False),  # a blank ends the list
        ("dist: noble", "noble", False),
        ("dist:", "noble", False),
        ("dist:NOBLE", "noble", True),
        ("dist:noble", "Noble", True),
        ("DIST:jammy", "noble", True),  # not a mark
        ("dist:rhel7", "rhel7", True),
        ("dist:rhel7.1", "rhel7", True),
        ("dist:rhel7", "rhel7.1", False),
        ("dist:knoble", "noble", True),
        ("dist:f40,f41", "f4", True),
        ("not:noble", "noble", False),
        ("not:noble", "jammy", True),
        ("not:jammy,NOBLE", "noble", False),
        ("not:rhel7.1", "rhel7", False),
        ("not:", "noble", True),
        ("dist:noble,jammy not:jammy", "noble", True),
        ("dist:noble,jammy not:jammy", "jammy", False),
        ("not:jammy dist:noble,jammy", "jammy", False),
        ("not:jammy dist:noble,jammy", "noble", True),
        ("not:jammy dist:noble", "focal", False),
        ("dist:noble dist:jammy", "noble", False),  # the last one counts
        ("dist:noble dist:jammy", "jammy", True),
        ("dist:noble # dist:jammy", "jammy", True),
        ("since 2014 dist:noble", "noble", True),
        ("dist:noble for nova", "noble", True),
        ("xdist:noble", "jammy", False),  # dist: counts anywhere in the comment
        ("testonly", "noble", True),
        ("testonly dist:noble", "jammy", False),
        ("NOPRIME dist:noble", "jammy", False),
        ("noprime", "noble", True),
    ],
)
def test_marks_choose_distributions_as_devstack_does(comment: str, distribution: str, wanted: bool) -> None:
    found = devstackfiles.parse_packages(f"git # {comment}\n", distribution)
    assert [package.name for package in found] == ["git"] * wanted


@pytest.mark.parametrize(("line", "install"), [
    ("git", True), ("git # NOPRIME", False), ("git #NOPRIME", False), ("git # dist:noble NOPRIME", False),
    ("git # NOPRIME dist:noble", False), ("git # noprime", True), ("git # testonly", True),
])
def test_noprime_packages_are_cached_but_not_installed(line: str, install: bool) -> None:
    assert devstackfiles.parse_packages(line, "noble", "f") == [Package("git", "f", install)]


# devstack's rules, as its own documentation has them, for the packages that it installs at once: a process that reads
# `DISTRIBUTION LINES` and that many lines of a file, and answers with the words that are left, and an empty line.
REFERENCE = r"""
left_of() {
    local line=$1 distribution=${2,,} left=${1%%#*} list
    [[ $line != *NOPRIME* ]] || return 0
    if [[ $line =~ (.*)#.*dist:([^ ]*) ]]; then
        left=${BASH_REMATCH[1]} list=${BASH_REMATCH[2],,}
        [[ $list == *"$distribution"* ]] || return 0
    fi
    if [[ $line =~ (.*)#.*not:([^ ]*) ]]; then
        left=${BASH_REMATCH[1]} list=${BASH_REMATCH[2],,}
        [[ $list != *"$distribution"* ]] || return 0
    fi
    left=${left%%#*}  # no name holds a #
    for word in $left; do printf '%s\n' "$word"; done
}
set -f
while IFS=' ' read -r distribution count; do
    for (( number = 0; number < count; number++ )); do
        IFS= read -r line
        left_of "$line" "$distribution"
    done
    printf '\n'
done
"""


@pytest.fixture(scope="module")
def reference() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(["bash", "-c", REFERENCE], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]}) as process:
        try:
            yield process
        finally:
            process.kill()


def answer(reference: subprocess.Popen[str], text: str, distribution: str) -> list[str]:
    assert reference.stdin
    assert reference.stdout
    lines = text.split("\n")
    reference.stdin.write(f"{distribution} {len(lines)}\n{text}\n")
    reference.stdin.flush()
    return [line.rstrip("\n") for line in iter(reference.stdout.readline, "\n")]


NAMES = st.lists(
    st.sampled_from(["git", "libc6-dev", "python3.11", "gcc-c++", "dist:noble", "not:noble", "a"]), max_size=3)
MARKS = st.sampled_from([
    "#", " # ", " ", "\t", ",", "dist:", "not:", "DIST:", "xnot:", "noble", "jammy", "Noble", "NOBLE", "rhel7",
    "rhel7.1", "f4", "f40", "NOPRIME", "noprime", "testonly", "for nova", "ö", "*", "\\", "'", "$HOME", "(",
    "dist:noble", "not:f40"])
LINES = st.tuples(st.sampled_from(["", " ", "\t"]), NAMES.map(" ".join), st.sampled_from(["", " ", "#", " # "]),
                  st.lists(MARKS, max_size=9).map("".join).map(lambda text: f"#{text}" if text else "")).map("".join)
DISTRIBUTIONS = st.sampled_from(["noble", "Noble", "jammy", "rhel7", "rhel7.1", "f4", "f40", "sid"])


@given(lines=st.lists(LINES, max_size=12), distribution=DISTRIBUTIONS)
def test_any_file_is_read_as_devstack_reads_it(
    reference: subprocess.Popen[str], lines: list[str], distribution: str
) -> None:
    text = "\n".join(lines)
    found = devstackfiles.parse_packages(text, distribution)
    assert [package.name for package in found if package.install] == answer(reference, text, distribution)


@given(lines=st.lists(LINES, max_size=12), distribution=DISTRIBUTIONS)
def test_without_noprime_the_same_packages_are_wanted(lines: list[str], distribution: str) -> None:
    text = "\n".join(lines)
    found = devstackfiles.parse_packages(text.replace("NOPRIME", "anytime"), distribution)
    assert [package.name for package in found] == [
        package.name for package in devstackfiles.parse_packages(text, distribution)]


@given(text=st.text(), distribution=DISTRIBUTIONS)
def test_no_text_is_too_strange(text: str, distribution: str) -> None:
    for package in devstackfiles.parse_packages(text, distribution):
        assert package.name.isascii()
        assert package.name.isprintable()
        assert not set(package.name) & set(" #'\"$;|&<>*?`\\")
        assert package.name[0] != "-"


LISTS = {
    "files/debs/general": "git\nvim # NOPRIME\nntp # dist:jammy\n",
    "files/debs/nova": "git # again\nkvm # dist:noble\nvim\nlate # NOPRIME\n",
    "files/debs/more/inner": "hidden\n",
    "files/apts/glance": "python-xattr\ngit\n",
    "files/rpms/general": "git-core\nwget # dist:f40\nsudo # not:rhel9\n",
    "files/rpms-suse/general": "zypper-thing\n",
    "files/other": "other\n",
}


@pytest.mark.parametrize(
    ("distribution", "expected"),
    [
        ("noble", [("git", "files/debs/general", True), ("kvm", "files/debs/nova", True),
                   ("late", "files/debs/nova", False), ("python-xattr", "files/apts/glance", True),
                   ("vim", "files/debs/nova", True)]),
        ("f40", [("git-core", "files/rpms/general", True), ("sudo", "files/rpms/general", True),
                 ("wget", "files/rpms/general", True)]),
        ("rhel9", [("git-core", "files/rpms/general", True)]),
        ("openEuler-22.03", [("git-core", "files/rpms/general", True), ("sudo", "files/rpms/general", True)]),
    ],
)
def test_the_lists_of_all_services_are_one(
    tmp_path: Path, distribution: str, expected: list[tuple[str, str, bool]]
) -> None:
    found = devstackfiles.packages_of(write(tmp_path, LISTS), distribution)
    assert found == [Package(*one) for one in expected]


def test_a_list_that_is_not_utf_8_is_read_all_the_same(tmp_path: Path) -> None:
    write(tmp_path, {"files/debs/general": ""})
    (tmp_path / "files/debs/general").write_bytes(b"git # caf\xe9\nvim\n")
    assert [one.name for one in devstackfiles.packages_of(tmp_path, "noble")] == ["git", "vim"]


def test_a_tree_without_lists_wants_no_packages(tmp_path: Path) -> None:
    assert devstackfiles.packages_of(tmp_path, "noble") == []


@pytest.mark.parametrize(("distribution", "rpm"), [
    ("noble", False), ("bookworm", False), ("focal", False), ("forky", False), ("feisty", False), ("f40", True),
    ("F9", True), ("rhel9", True), ("RHEL8", True), ("centos7", True), ("openEuler-22.03", True), ("sid", False),
])
def test_which_distributions_have_rpm_packages(distribution: str, rpm: bool) -> None:
    assert devstackfiles.is_rpm(distribution) is rpm


# Pip packages


def test_pip_packages_of_old_trees_are_listed_by_devstack_itself(tmp_path: Path) -> None:
    write(tmp_path, {"files/pips/general": "prettytable\nPyYAML>=3\n", "files/pips/horizon": "django\nprettytable\n",
                     "files/pips/inner/x": "hidden\n"})
    assert devstackfiles.pips_of(tmp_path) == ["django", "prettytable", "PyYAML>=3"]


def test_requirements_that_differ_in_case_only_have_one_order(tmp_path: Path) -> None:
    spelled = ["SIX", "SIx", "SiX", "Six", "sIX", "sIx", "siX", "six"]
    text = "\n".join(reversed(spelled))
    assert pipneeds.pinned(text.splitlines(), "pbr===5.0\n") == spelled
    assert devstackfiles.pips_of(write(tmp_path, {"files/pips/general": text})) == spelled


def test_newer_trees_leave_pip_packages_to_the_projects(tmp_path: Path) -> None:
    assert devstackfiles.pips_of(write(tmp_path, LISTS)) is None


def test_an_empty_list_of_pip_packages_is_a_list(tmp_path: Path) -> None:
    assert devstackfiles.pips_of(write(tmp_path, {"files/pips/general": "# none\n"})) == []


# Test images


SOURCE = f"set -uo pipefail; source '{devstackfiles.STEPS_FILE}'; CALL_SECONDS=${{SECONDS_FOR_IT:-60}}; \"$@\""


def ask(tree: Path, distribution: str = "noble", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Ask a devstack for its images, as a template does."""
    return subprocess.run(["bash", "-c", SOURCE, "steps", "print_image_urls", distribution], check=False,
                          input=archive(tree), capture_output=True, env=os.environ | environment, timeout=60)


def archive(tree: Path) -> bytes:
    """Return the files of a folder, whatever it holds, as a checkout would give them."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(tree, f"{folder}/tree")
        write(Path(folder) / "tree", {"files/none": ""})
        return Checkout(Path(folder) / "tree").archive("master")


def urls(tree: Path, distribution: str = "noble") -> list[str]:
    """Return the names of the images of a tree, whose URLs all begin alike."""
    result = ask(tree, distribution)
    assert (result.returncode, result.stderr) == (0, b"")
    found = result.stdout.decode().split()
    assert all(url.startswith("http://example.org/") for url in found), found
    return [url.removeprefix("http://example.org/") for url in found]


def stackrc(folder: Path, text: str) -> Path:
    return write(folder, {"stackrc": text.replace("U/", "http://example.org/")})


def refusal(tree: Path, **environment: str) -> str:
    """Return the error of a tree that cannot name its images."""
    result = ask(tree, **environment)
    assert result.returncode == 1, result.stdout
    return result.stderr.decode().strip()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("IMAGE_URLS=U/a\n", ["a"]),
        ("IMAGE_URLS='U/b,U/a'\n", ["a", "b"]),
        ("IMAGE_URLS='U/b, U/a'\n", ["a", "b"]),
        ("IMAGE_URLS=U/a,U/a\n", ["a"]),
        ("IMAGE_URLS=U/a\nIMAGE_URLS+=,U/b\nIMAGE_URLS=$IMAGE_URLS,U/c\n", ["a", "b", "c"]),
        ("IMAGE_URLS=U/a\nIMAGE_URLS=U/b\n", ["b"]),
        ("#IMAGE_URLS=U/a\n# IMAGE_URLS=U/b\nIMAGE_URLS=U/c  # U/d\n", ["c"]),
        ("case \"$LIBVIRT_TYPE\" in\n  lxc) IMAGE_URLS=U/lxc;;\n  *) IMAGE_URLS=U/kvm;;\nesac\n", ["kvm"]),
        ("LIBVIRT_TYPE=${LIBVIRT_TYPE:-lxc}\ncase $LIBVIRT_TYPE in\n  lxc) IMAGE_URLS=${IMAGE_URLS:-U/lxc};;\n"
         "  *) IMAGE_URLS=U/kvm;;\nesac\n", ["lxc"]),
        ("VERSION=0.6.2\nIMAGE_URLS=U/cirros-$VERSION-x86_64.img\n", ["cirros-0.6.2-x86_64.img"]),
        ("source ./part\nIMAGE_URLS+=,U/b\n", ["a", "b"]),
        ("TOP=$(cd $(dirname \"${BASH_SOURCE:-$0}\") && pwd)\nsource $TOP/part\n", ["a"]),
        ("echo U/noise\necho U/noise >&2\nIMAGE_URLS=U/a\n", ["a"]),
        ("IMAGE_URLS=U/a\nexit 1\n", ["a"]),
        ("IMAGE_URLS=U/a\nset -e\nfalse\n", ["a"]),
        ("set -u\nIMAGE_URLS=U/a\necho $NOTHING\n", ["a"]),
        ("IMAGE_URLS=U/a\nreturn 3\n", ["a"]),
        ("IMAGE_URLS=U/a\nsudo touch stolen || exit 1\n", ["a"]),
        ("sudo touch stolen\nIMAGE_URLS=U/a\n", ["a"]),
        ("apt-get -y install x && IMAGE_URLS=U/installed\nIMAGE_URLS+=,U/a\n", ["a"]),
        ("yum -y install x || dnf -y install x || zypper install x || IMAGE_URLS=U/a\n", ["a"]),
        ("read -r answer\nIMAGE_URLS=U/a$answer\n", ["a"]),
    ],
    ids=["none", "one", "commas", "comma and blank", "twice", "several assignments", "the last counts", "commented",
         "case", "case by default", "variable", "sourced", "own folder", "noise", "exits", "errexit", "unset",
         "returns", "sudo", "sudo first", "apt-get", "rpm tools", "asks"],
)
def test_images_are_what_bash_makes_of_stackrc(tmp_path: Path, text: str, names: list[str]) -> None:
    write(tmp_path, {"part": "IMAGE_URLS=http://example.org/a\n"})
    assert urls(stackrc(tmp_path, text)) == names
    assert not (tmp_path / "stolen").exists()


@pytest.mark.parametrize(
    ("distribution", "words"),
    [("noble", ["Ubuntu", "noble"]), ("bookworm", ["Debian", "bookworm"]), ("f40", ["Fedora", "40", "f40"])],
)
def test_a_tree_that_asks_for_the_distribution_is_told_the_image_s(
    tmp_path: Path, distribution: str, words: list[str]
) -> None:
    tree = stackrc(tmp_path, "IMAGE_URLS=U/$(lsb_release -i -s)/$(lsb_release -r -s)/$(lsb_release -sc)\n")
    (found,) = urls(tree, distribution)
    assert [word for word in found.split("/") if word != "0"] == words


def test_nothing_of_our_environment_gets_into_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    monkeypatch.setenv("LIBVIRT_TYPE", "lxc")
    monkeypatch.setenv("IMAGE_URLS", "http://example.org/ours")
    monkeypatch.setenv("BASH_ENV", str(write(tmp_path, {"env": "IMAGE_URLS=http://example.org/env\n"}) / "env"))
    tree = stackrc(tmp_path, "IMAGE_URLS=${IMAGE_URLS:-U/none}-$LIBVIRT_TYPE-$SECRET\n")
    assert urls(tree) == ["none--"]


def test_the_home_folder_of_devstack_s_scripts_is_not_ours(tmp_path: Path) -> None:
    urls(stackrc(tmp_path, "touch ~/left-behind\nIMAGE_URLS=U/a\n"))
    assert not (Path.home() / "left-behind").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo no such thing >&2\nexit 3\n", "stackrc: exit status 3: no such thing"),
        ("exit 4\n", "stackrc: exit status 4: no output"),
    ],
)
def test_a_stackrc_that_dies_before_it_names_images_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    assert refusal(stackrc(tmp_path, text)) == message


def test_a_stackrc_that_hangs_is_stopped_with_all_that_it_runs(tmp_path: Path) -> None:
    tree = stackrc(tmp_path / "tree", f"IMAGE_URLS=U/a\nexec 9> '{tmp_path}/pipe'\nsleep 600\n")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert refusal(tree, SECONDS_FOR_IT="1") == "stackrc: not done after 1 s"
        os.set_blocking(reader, False)
        await_that("the last writer to be gone", lambda: at_end(reader))
    finally:
        os.close(reader)


def at_end(descriptor: int) -> bool:
    """Return whether all other ends of a pipe are closed."""
    try:
        return os.read(descriptor, 1) == b""
    except BlockingIOError:
        return False


IMAGE_LIST = "tools/image_list.sh"


def test_the_tree_s_own_list_of_images_goes_before_stackrc(tmp_path: Path) -> None:
    write(tmp_path, {IMAGE_LIST: "cd $(dirname $0)/..\nsource stackrc\necho $IMAGE_URLS,http://example.org/b\n"})
    assert urls(stackrc(tmp_path, "IMAGE_URLS=U/a\n")) == ["a", "b"]


@pytest.mark.parametrize("text", [
    "echo \"ERROR: We only found 3 images in http://example.org/x,,, which can't be right.\"\nexit 1\n",
    "echo http://example.org/x\nexit 2\n", "sudo true\n", "exit 0\n", "echo nothing\n", "echo broken >&2; exit 1\n",
], ids=["since 2021", "fails", "sudo", "silent", "no URL", "reason"])
def test_stackrc_says_it_where_the_list_of_images_fails(tmp_path: Path, text: str) -> None:
    write(stackrc(tmp_path, "IMAGE_URLS=U/a\nEXTRA_CACHE_URLS=,U/etcd\n"), {IMAGE_LIST: text})
    assert urls(tmp_path) == ["a", "etcd"]


@pytest.mark.parametrize("listed", [True, False], ids=["image_list.sh", "stackrc"])
def test_extra_files_are_wanted_whoever_names_the_images(tmp_path: Path, listed: bool) -> None:
    tree = stackrc(tmp_path, "IMAGE_URLS=U/a\nEXTRA_CACHE_URLS=\nEXTRA_CACHE_URLS+=,U/etcd.tar.gz\n")
    if listed:
        write(tree, {IMAGE_LIST: "echo http://example.org/a\n"})
    assert urls(tree) == ["a", "etcd.tar.gz"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo http://example.org/a\necho duplicate image >&2\nexit 1\n", "exit status 1: duplicate image"),
        ("echo http://example.org/a\nexit 2\n", "exit status 2: http://example.org/a"),
        ("sudo true\n", "exit status 1: sudo is not available here"),
    ],
)
def test_a_list_of_images_that_fails_beside_a_stackrc_that_names_none_is_an_error(
    tmp_path: Path, text: str, message: str
) -> None:
    write(stackrc(tmp_path, "OTHER=U/a\n"), {IMAGE_LIST: text})
    assert refusal(tmp_path) == f"{IMAGE_LIST}: {message}"


def test_a_tree_without_stackrc_wants_no_images(tmp_path: Path) -> None:
    assert urls(tmp_path) == []


def test_a_process_that_stackrc_leaves_behind_keeps_nobody_waiting(tmp_path: Path) -> None:
    assert urls(stackrc(tmp_path, "setsid sleep 600 &\necho $! > ~/pid\nIMAGE_URLS=U/a\n")) == ["a"]


# What nobody may trust


SPY = """
found=$(for one in {secret} "$SECRET" ~/.ssh/id_* /root/.ssh/* /home/*/.bashrc /etc/shadow /etc/hostname /var/lib/dpkg/*
    do cat "$one" 2> /dev/null && echo "$one"; done; tr '\0' '\n' < /proc/$PPID/environ | grep SECRET
    ls /proc | grep -c '^[0-9]' | grep -v '^[0-9]$'; touch /usr/planted /planted 2> /dev/null && echo wrote
    (exec 3<> /dev/tcp/127.0.0.1/{port}) 2> /dev/null && echo connected)
IMAGE_URLS=http://example.org/seen-$(echo $found | base64 -w 0)
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_devstack_s_code_sees_nothing_of_this_host(tmp_path: Path, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "canary")
    with socket.create_server(("127.0.0.1", 0)) as server, tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        scripts = Path(folder) / "scripts"
        scripts.mkdir()
        for file in (devstackfiles.STEPS_FILE, devstackfiles.SANDBOX_FILE):
            shutil.copy(file, scripts)
        secret = write(scripts, {"secret": "canary"}) / "secret"
        tree = write(tmp_path, {"stackrc": SPY.format(secret=secret, port=server.getsockname()[1])})
        command = ["bash", str(scripts / "sandbox.sh"), str(scripts / "steps.sh"), "print_image_urls", "noble"]
        result = subprocess.run(["runuser", "-u", user, "--", *command], input=archive(tree), capture_output=True,
                                cwd="/", timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.decode().split("\n") == ["shut away", "http://example.org/seen-Cg==", ""]


def test_where_the_host_does_not_let_us_shut_devstack_away_it_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "unshare: unshare failed: Operation not permitted"
    away = write(tmp_path / "bin", {"unshare": f"#!/bin/sh\necho '{message}' >&2\nexit 1\n"})
    (away / "unshare").chmod(0o755)
    monkeypatch.setattr(devstackfiles, "PATH", f"{away}:/usr/sbin:/usr/bin:/sbin:/bin")
    tree = stackrc(tmp_path / "tree", f"touch {tmp_path}/ran\nIMAGE_URLS=U/a\n")
    with pytest.raises(SandboxError) as caught:
        devstackfiles.image_urls(archive(tree), "noble")
    assert f"cannot shut it away ({message})" in str(caught.value)
    assert not (tmp_path / "ran").exists()


FILTER = {"stackrc": "IMAGE_URLS=http://example.org/a\n", ".gitattributes": "* filter=planted\n",
          "files/debs/general": "git\n"}


def test_no_filter_of_a_checkout_is_run(tmp_path: Path) -> None:
    folder = repository(tmp_path / "devstack", {"master": FILTER})
    for key, value in (("smudge", "cat"), ("process", ""), ("clean", "")):
        git(folder, "config", f"filter.planted.{key}", f"touch '{tmp_path}/ran'; {value}")
    for key in ("core.fsmonitor", "core.sshCommand", "tar.tar.command", "core.pager"):
        git(folder, "config", key, f"touch '{tmp_path}/ran'")
    (tmp_path / "ran").unlink(missing_ok=True)
    checkout = Checkout(folder)
    checkout.branches(["master"])
    with checkout.tree("master") as tree:
        assert (tree / "stackrc").read_text() == FILTER["stackrc"]
    assert devstackfiles.image_urls(checkout.archive("master"), "noble") == ["http://example.org/a"]
    assert not (tmp_path / "ran").exists()


def test_a_link_out_of_the_tree_is_not_read(tmp_path: Path) -> None:
    secret = write(tmp_path, {"secret": "canary\n"}) / "secret"
    tree = write(tmp_path / "devstack", {"files/debs/real": "git\n", "stack.sh": ""})
    for name, target in (("outside", str(secret)), ("up", "../../../secret"), ("inside", "real")):
        (tree / f"files/debs/{name}").symlink_to(target)
    assert [one.name for one in devstackfiles.packages_of(tree, "noble")] == ["git"]


# Files that devstack downloads


INSTALL_PIP = "PIP_GET_PIP_URL=${PIP_GET_PIP_URL:-\"https://bootstrap.pypa.io/get-pip.py\"}\n"


@pytest.mark.parametrize(("text", "distribution", "files"), [
    (INSTALL_PIP, "noble", ["https://bootstrap.pypa.io/get-pip.py"]),
    (INSTALL_PIP, "f40", ["https://bootstrap.pypa.io/get-pip.py"]),
    (f"{INSTALL_PIP}if is_fedora && [[ $DISTRO == f* ]]; then\n", "noble", ["https://bootstrap.pypa.io/get-pip.py"]),
    (f"{INSTALL_PIP}if is_fedora && [[ $DISTRO == f* ]]; then\n", "f40", []),
    (f"{INSTALL_PIP}elif is_ubuntu; then\n", "noble", []),
    ("PIP_GET_PIP_URL=https://raw.example.org/get-pip.py\n", "xenial", ["https://raw.example.org/get-pip.py"]),
    ("", "noble", []),
])
def test_get_pip_is_wanted_where_the_distribution_s_pip_is_not_used(
    tmp_path: Path, text: str, distribution: str, files: list[str]
) -> None:
    assert devstackfiles.file_urls(write(tmp_path, {"tools/install_pip.sh": text}), distribution) == files


# What devstack may clone


def test_what_devstack_may_clone_is_read_from_stackrc_and_the_scripts(tmp_path: Path) -> None:
    tree = write(tmp_path, {
        "stackrc": """GIT_BASE=${GIT_BASE:-https://opendev.org}
NOVA_REPO=${NOVA_REPO:-${GIT_BASE}/openstack/nova.git}
#OLD_REPO=${OLD_REPO:-${GIT_BASE}/openstack/old.git}
OSTESTIMAGES_REPO=${OSTESTIMAGES_REPO:-${GIT_BASE}/openstack/os-test-images.git}
UNUSED_REPO=${UNUSED_REPO:-${GIT_BASE}/openstack/unused.git}
NOVNC_REPO=${NOVNC_REPO:-https://github.com/novnc/novnc.git}
GITREPO["cliff"]=${CLIFF_REPO:-${GIT_BASE}/openstack/cliff.git}
  GITREPO["pbr"]=${PBR_REPO:-${GIT_BASE}/openstack/pbr.git}
KEYSTONE_REPO=$GIT_BASE/openstack/keystone
""",
        "lib/nova": "git_clone $NOVA_REPO $NOVA_DIR $NOVA_BRANCH\n    git_clone $NOVNC_REPO $NOVNC_DIR\n",
        "lib/tempest": "  git_clone $OSTESTIMAGES_REPO $OSTESTIMAGES_DIR $OSTESTIMAGES_BRANCH\n",
        "lib/databases/x": "git_clone \"${KEYSTONE_REPO}\" there\n"})
    assert devstackfiles.repositories_of(tree) == [
        "openstack/nova", "openstack/os-test-images", "openstack/cliff", "openstack/pbr", "openstack/keystone"]


# Packages that scripts install


def test_packages_that_scripts_install_by_name_are_found(tmp_path: Path) -> None:
    tree = write(tmp_path, {
        "files/debs/general": "git\nmemcached # NOPRIME\n",
        "stack.sh": "is_package_installed sudo || install_package sudo\n# install_package never\n",
        "lib/apache": "local pkg_list=\"uwsgi uwsgi-plugin-python3\"\n    install_package ${pkg_list}\n"
                      "install_package apache2 \\\n    libapache2-mod-x; true\ninstall_package git memcached\n",
        "lib/databases/mysql": "MYSQL_SERVICE_NAME=mysql\nif x; then MYSQL_SERVICE_NAME=mariadb; fi\n"
                               "install_package $MYSQL_SERVICE_NAME-server\n",
        "lib/x": "install_package $(get_packages ovn)\ninstall_package linux-headers-$KERNEL\n"
                 "uninstall_package gone\n"})
    assert devstackfiles.later_packages(tree) == [
        "apache2", "libapache2-mod-x", "mariadb-server", "mysql-server", "sudo", "uwsgi", "uwsgi-plugin-python3"]


# Projects


def test_the_projects_are_those_of_the_file_each_once() -> None:
    found = devstackfiles.projects_of({})
    assert found[:2] == ["openstack/devstack", "openstack/requirements"]
    assert len(found) == len(set(found)) > 20


@pytest.mark.parametrize(
    ("environment", "first", "only"),
    [
        ({"PROJECTS": "openstack/x  other/y\nopenstack/devstack"}, ["openstack/x", "other/y", "openstack/devstack",
                                                                   "openstack/requirements"], False),
        ({"DEVSTACK_GATE_PROJECTS": "openstack/nova openstack/nova a"}, ["openstack/nova", "a"], True),
        ({"DEVSTACK_GATE_PROJECTS": "a", "PROJECTS": "b"}, ["b", "a"], True),
        ({"DEVSTACK_GATE_PROJECTS": " ", "PROJECTS": "b"}, ["b", "openstack/devstack"], False),
    ],
    ids=["more", "instead", "both", "blank"],
)
def test_the_environment_puts_projects_in_front_or_replaces_them(
    environment: dict[str, str], first: list[str], only: bool
) -> None:
    found = devstackfiles.projects_of(environment)
    assert found[:len(first)] == first
    assert len(found) == len(set(found))
    assert (len(found) == len(first)) is only


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc", "a//b", "a/", "-x", "a;b", "$(a)", "a/.git", "ö"])
@pytest.mark.parametrize("variable", ["PROJECTS", "DEVSTACK_GATE_PROJECTS"])
def test_a_project_whose_name_is_none_is_refused(variable: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        devstackfiles.projects_of({variable: f"openstack/nova {name}"})
    assert str(caught.value) == f"PROJECTS or DEVSTACK_GATE_PROJECTS: {name!r} is no project's name"


# Checkouts


BRANCHES = {"master": {"stackrc": "m"}, "stable/2024.2": {"stackrc": "2"}, "stable/2025.1": {"stackrc": "1"},
            "feature/x": {"stackrc": "x"}}


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a clone of a devstack with four branches."""
    source = repository(tmp_path / "source", BRANCHES)
    git(tmp_path, "clone", "--quiet", str(source), "devstack")
    return tmp_path / "devstack"


def content(checkout: Checkout, branch: str) -> str:
    with checkout.tree(branch) as tree:
        return (tree / "stackrc").read_text()


@pytest.mark.parametrize(
    ("patterns", "branches"),
    [
        (["master"], ["master"]),
        (["*"], ["feature/x", "master", "stable/2024.2", "stable/2025.1"]),
        (["stable/*", "master"], ["stable/2024.2", "stable/2025.1", "master"]),
        (["master", "stable/*"], ["master", "stable/2024.2", "stable/2025.1"]),
        (["stable/2025.1", "stable/*"], ["stable/2025.1", "stable/2024.2"]),
        (["none", "[mf]*"], ["feature/x", "master"]),
    ],
    ids=" ".join,
)
def test_branches_are_those_of_the_remote_in_the_order_of_the_patterns(
    clone: Path, patterns: list[str], branches: list[str]
) -> None:
    assert Checkout(clone).branches(patterns) == branches


@pytest.mark.parametrize("pattern", ["none", "HEAD", "Master", "origin/master", "maste", ""])
def test_a_pattern_that_no_branch_matches_is_an_error_that_names_the_branches(clone: Path, pattern: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Checkout(clone).branches([pattern])
    assert str(caught.value) == (f"{clone}: no branch matches {pattern}; there are feature/x, master, stable/2024.2, "
                                 "stable/2025.1")


def test_a_clone_whose_remote_is_not_origin_is_an_error(clone: Path) -> None:
    git(clone, "remote", "rename", "origin", "upstream")
    with pytest.raises(ConfigError) as caught:
        Checkout(clone).branches(["master"])
    assert str(caught.value) == f"{clone}: has no remote called origin, from which branches are read"


def test_a_repository_without_a_commit_is_an_error(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet", "empty")
    with pytest.raises(ConfigError) as caught:
        Checkout(tmp_path / "empty").branches(["master"])
    assert str(caught.value) == f"{tmp_path / 'empty'}: there is no commit on HEAD"


def made_tree(folder: Path, *entries: tuple[str, bytes, str]) -> str:
    """Make a tree of any entries, (mode, name, object), even of some that git never makes; return its name."""
    raw = b"".join(mode.encode() + b" " + name + b"\0" + bytes.fromhex(sha1) for mode, name, sha1 in entries)
    done = subprocess.run(["git", "-C", str(folder), "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
                          input=raw, capture_output=True, check=True)
    return done.stdout.decode().strip()


@pytest.mark.parametrize("kind", ["a link and a folder of one name", "up", "git", "GIT", "twice"])
def test_a_commit_that_no_git_would_check_out_writes_nothing_elsewhere(tmp_path: Path, kind: str) -> None:
    remote, victim = repository(tmp_path / "remote", {"master": {"stackrc": "x"}}), tmp_path / "victim"
    victim.mkdir()
    for name, text in (("blob", "of a stranger"), ("link", str(victim))):
        (tmp_path / name).write_text(text)
    blob, link = (git(remote, "hash-object", "-w", str(tmp_path / name)) for name in ("blob", "link"))
    inner = made_tree(remote, ("100644", b"authorized_keys", blob))
    entries = {"a link and a folder of one name": [("120000", b"lib", link), ("40000", b"lib", inner)],
               "up": [("40000", b"..", made_tree(remote, ("40000", b"..", inner)))],
               "git": [("40000", b".git", inner)], "GIT": [("40000", b".GIT", inner)],
               "twice": [("100644", b"a", blob), ("120000", b"a", link)]}[kind]
    commit_of = git(remote, "commit-tree", "-m", "x", made_tree(remote, *entries))
    git(remote, "branch", "stable/evil", commit_of)
    git(tmp_path, "clone", "--quiet", str(remote), "clone")
    checkout = Checkout(tmp_path / "clone")

    for read in (lambda: devstackfiles.wanted(checkout, "stable/evil", "noble"),
                 lambda: checkout.archive("stable/evil")):
        with pytest.raises(GateError, match=r"clone: stable/evil holds a file '.*', which could lead elsewhere"):
            read()
    assert list(victim.iterdir()) == []
    assert devstackfiles.wanted(checkout, "master", "noble").packages == []


def test_only_names_of_projects_are_cloned(tmp_path: Path) -> None:
    text = "".join(f'GITREPO["{number}"]=${{X_REPO:-${{GIT_BASE}}/{name}.git}}\n' for number, name in enumerate(
        ("openstack/nova", "../../home/robot/secret", "openstack/../../x", "-uevil", "/etc")))
    (tmp_path / "stackrc").write_text(text)
    assert devstackfiles.repositories_of(tmp_path) == ["openstack/nova"]


def test_a_branch_stays_what_it_was_when_the_build_began(clone: Path) -> None:
    checkout = Checkout(clone)
    checkout.branches(["master"])
    git(clone, "update-ref", "-d", "refs/remotes/origin/master")
    assert content(checkout, "master") == "m"


def test_each_branch_has_its_own_files_and_commit(clone: Path) -> None:
    (clone / "stackrc").write_text("changed")
    checkout = Checkout(clone)
    assert [content(checkout, branch) for branch in ("master", "stable/2024.2", "stable/2025.1")] == ["m", "2", "1"]
    source = clone.with_name("source")
    assert [checkout.sha1(branch) for branch in BRANCHES] == [git(source, "rev-parse", branch) for branch in BRANCHES]


def test_the_remote_s_branch_counts_not_the_local_one_of_that_name(clone: Path) -> None:
    commit(clone, "master", {"stackrc": "local"})
    commit(clone, "only-here", {"stackrc": "here"})
    checkout = Checkout(clone)
    assert content(checkout, "master") == "m"
    assert checkout.branches(["*"]) == sorted(BRANCHES)


@pytest.mark.parametrize("remote", [True, False], ids=["remote", "local"])
def test_a_branch_is_not_taken_for_one_below_its_name(tmp_path: Path, remote: bool) -> None:
    folder = repository(tmp_path / "source", {"stable/x": {"stackrc": "x"}, "stable/xy": {"stackrc": "xy"}})
    if remote:
        folder = Path(git(tmp_path, "clone", "--quiet", str(folder), "devstack") or tmp_path / "devstack")
        git(folder, "branch", "--quiet", "stable/local", "HEAD")
    checkout = Checkout(folder)
    assert {branch: content(checkout, branch) for branch in checkout.branches(["*"])} == {
        "stable/x": "x", "stable/xy": "xy"}


def test_a_repository_without_remote_has_its_own_branches(tmp_path: Path) -> None:
    checkout = Checkout(repository(tmp_path / "devstack", BRANCHES))
    assert checkout.branches(["master", "stable/*"]) == ["master", "stable/2024.2", "stable/2025.1"]
    assert content(checkout, "stable/2025.1") == "1"


def test_a_detached_checkout_without_branches_has_its_head(tmp_path: Path) -> None:
    folder = repository(tmp_path / "devstack", {"master": {"stackrc": "m"}})
    git(folder, "checkout", "--quiet", "--detach")
    git(folder, "branch", "--quiet", "-D", "master")
    checkout = Checkout(folder)
    assert checkout.branches(["master"]) == ["HEAD"]
    assert (content(checkout, "HEAD"), checkout.sha1("HEAD")) == ("m", git(folder, "rev-parse", "HEAD"))


@pytest.mark.parametrize("files", [{"stackrc": "m"}, {"files/debs/general": "git", "stackrc": "m"}])
def test_a_plain_folder_is_master(tmp_path: Path, files: dict[str, str]) -> None:
    checkout = Checkout(write(tmp_path / "devstack", files))
    assert (checkout.branches(["stable/*"]), content(checkout, "master"), checkout.sha1("master")) == (
        ["master"], "m", "")


def test_a_folder_inside_another_repository_is_not_taken_for_it(tmp_path: Path) -> None:
    repository(tmp_path / "outer", {"main": {"stackrc": "outer"}, "stable/x": {}})
    checkout = Checkout(write(tmp_path / "outer/devstack", {"stackrc": "inner"}))
    assert (checkout.branches(["*"]), content(checkout, "master"), checkout.sha1("master")) == (["master"], "inner", "")


def test_a_checkout_is_read_by_whatever_path_it_is_named(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone.parent / "link").symlink_to(clone)
    monkeypatch.chdir(clone)
    for path in (clone.parent / "link", Path(), Path("../devstack"), Path("../link")):
        assert Checkout(path).branches(["master"]) == ["master"], path


@pytest.mark.parametrize("git_variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_git_s_own_variables_do_not_lead_to_another_repository(
    clone: Path, monkeypatch: pytest.MonkeyPatch, git_variable: str
) -> None:
    other = repository(clone.with_name("other"), {"other": {"stackrc": "other"}})
    monkeypatch.setenv(git_variable, str(other / ".git"))
    checkout = Checkout(clone)
    assert (checkout.branches(["*"]), content(checkout, "master")) == (sorted(BRANCHES), "m")


@pytest.mark.parametrize("make", [lambda folder: folder.mkdir(), lambda folder: folder.write_text("x"), lambda _: None],
                         ids=["empty", "file", "missing"])
def test_what_is_no_checkout_is_refused(tmp_path: Path, make: object) -> None:
    folder = tmp_path / "devstack"
    assert callable(make)
    make(folder)
    with pytest.raises(ConfigError) as caught:
        Checkout(folder)
    assert str(caught.value) == f"{folder}: holds no devstack checkout"


def test_nothing_is_left_of_a_tree_that_was_read(clone: Path) -> None:
    checkout = Checkout(clone)
    with checkout.tree("master") as tree:
        assert tree.is_dir()
    assert not tree.exists()
    assert git(clone, "status", "--porcelain") == ""


# --what


TODAY = {
    "files/debs/general": "git\nntp # dist:jammy\nlate # NOPRIME\n",
    "files/rpms/general": "git-core\n",
    "stackrc": "IMAGE_URLS=http://example.org/cirros,http://example.org/big\n",
}
OLD = {
    "files/apts/general": "git\npython-pip # dist:noble,oneiric\n",
    "files/pips/general": "prettytable\n",
    "stackrc": "IMAGE_URLS=http://example.org/old\n",
}


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Return scripts without secure configuration, vm.db and cloud, but with a devstack in the workspace."""
    pool = Pool(tmp_path)
    pool.secure_config.unlink()
    source = repository(tmp_path / "source", {"master": TODAY, "stable/old": OLD, "feature/x": {}})
    git(tmp_path, "clone", "--quiet", str(source), str(tmp_path / "workspace/devstack"))
    pool.environment |= {"WORKSPACE": str(tmp_path / "workspace"), "DEVSTACK_GATE_PROJECTS": "openstack/nova"}
    pool.environment.pop("OS_CLIENT_CONFIG_FILE", None)
    return pool


@pytest.mark.parametrize("name", [".", "devstack", "devstack/.git"])
def test_a_workspace_that_others_can_write_or_own_is_refused(pool: Pool, name: str) -> None:
    path = Path(pool.environment["WORKSPACE"]) / name
    path.chmod(0o775)
    result = pool.run(SCRIPT, "--what", "noble", expect=2)
    assert f"WORKSPACE: {path} can be written by others than you; see that nobody has put" in result.stderr
    path.chmod(0o755)
    os.chown(path, 65534, 65534)
    assert f"WORKSPACE: {path} belongs to somebody else" in pool.run(SCRIPT, "--what", "noble", expect=2).stderr


def test_what_would_be_cached_is_printed_for_each_branch(pool: Pool) -> None:
    result = pool.run(SCRIPT, "--what", "noble", expect=0)
    assert json.loads(result.stdout) == {
        "master": {"packages": ["git", "late"], "pips": [],
                   "images": ["http://example.org/big", "http://example.org/cirros"], "projects": ["openstack/nova"]},
        "stable/old": {"packages": ["git", "python-pip"], "pips": ["prettytable"], "images": ["http://example.org/old"],
                       "projects": ["openstack/nova"]},
    }
    assert list(json.loads(result.stdout)) == ["master", "stable/old"]
    assert list(json.loads(result.stdout)["master"]) == ["packages", "pips", "images", "projects"]
    assert result.stderr == ""
    assert list(pool.folder.glob("vm.db*")) == []


def test_pip_packages_come_from_the_projects_that_are_cloned_beside_devstack(pool: Pool) -> None:
    workspace = pool.folder / "workspace"
    repository(workspace / "nova", {"master": {"requirements.txt": "pbr>=2\nSQLAlchemy[asyncio] # MIT\n"},
                                    "stable/x": {"requirements.txt": "six\n"}})
    repository(workspace / "openstack/glance", {"master": {"requirements.txt": "wsme\n"}})
    repository(workspace / "requirements", {"master": {"upper-constraints.txt": "pbr===6.0\nsqlalchemy===2.0\n"}})
    result = pool.run(SCRIPT, "--what", "noble", "--branch", "master", expect=0,
                      DEVSTACK_GATE_PROJECTS="openstack/nova openstack/glance openstack/absent openstack/requirements")
    assert json.loads(result.stdout)["master"]["pips"] == [
        "pbr===6.0", "pip", "setuptools", "sqlalchemy[asyncio]===2.0", "wheel", "wsme"]


@pytest.mark.parametrize(
    ("arguments", "branches"),
    [
        ([], ["master", "stable/old"]),
        (["--branch", "feature/*", "--branch", "master"], ["feature/x", "master"]),
    ],
    ids=["default", "options"],
)
def test_the_option_names_the_branches(pool: Pool, arguments: list[str], branches: list[str]) -> None:
    result = pool.run(SCRIPT, "--what", "f40", *arguments, expect=0)
    assert list(json.loads(result.stdout)) == branches


def test_the_secure_configuration_names_the_branches_if_it_is_there(pool: Pool) -> None:
    pool.secure_config.write_text("[image]\nbranches = feature/x\n")
    pool.secure_config.chmod(0o600)
    assert list(json.loads(pool.run(SCRIPT, "--what", "noble", expect=0).stdout)) == ["feature/x"]


def test_a_plain_folder_can_be_asked(pool: Pool) -> None:
    folder = write(pool.folder / "plain", OLD)
    result = pool.run(SCRIPT, "--what", "oneiric", "--devstack", str(folder), expect=0, WORKSPACE="")
    assert json.loads(result.stdout)["master"]["packages"] == ["git", "python-pip"]


def test_images_that_cannot_be_told_are_a_warning(pool: Pool) -> None:
    folder = write(pool.folder / "plain", {**OLD, "stackrc": "echo broken >&2; exit 7\n"})
    result = pool.run(SCRIPT, "--what", "noble", "--devstack", str(folder), expect=0)
    assert json.loads(result.stdout)["master"]["images"] == []
    assert [line.split("Z ", 1)[1] for line in result.stderr.splitlines()] == [
        "WARNING branch master: its test images are not known: stackrc: exit status 7: broken"]


HELP = f"see {SCRIPT} --help"


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ([], {}, f"the following arguments are required: PROVIDER or --what DISTRIBUTION; {HELP}"),
        (["one", "--what", "noble"], {}, f"--what is about a distribution, it takes no PROVIDER; {HELP}"),
        (["--what"], {}, f"argument --what: expected one argument; {HELP}"),
        (["--what", ""], {}, "--what: expected a distribution such as noble, bookworm or rhel9, got ''"),
        (["--what", "no ble"], {}, "--what: expected a distribution such as noble, bookworm or rhel9, got 'no ble'"),
        (["--what", "no*"], {}, "--what: expected a distribution such as noble, bookworm or rhel9, got 'no*'"),
        (["--what", "noble"], {"WORKSPACE": ""},
         "--what: there is no devstack checkout in $WORKSPACE/devstack; name one with --devstack DIR"),
        (["--what", "noble"], {"WORKSPACE": "{folder}"},
         "--what: there is no devstack checkout in $WORKSPACE/devstack; name one with --devstack DIR"),
        (["--what", "noble", "--devstack", "{folder}/none"], {}, "{folder}/none: holds no devstack checkout"),
        (["--what", "noble", "--branch", "none"], {},
         "{folder}/workspace/devstack: no branch matches none; there are feature/x, master, stable/old"),
        (["--what", "noble"], {"PROJECTS": "../x", "DEVSTACK_GATE_PROJECTS": ""},
         "PROJECTS or DEVSTACK_GATE_PROJECTS: '../x' is no project's name"),
    ],
    ids=["neither", "both", "no value", "empty", "blank", "star", "no workspace", "no devstack", "no folder",
         "no branch", "project"],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    pool: Pool, arguments: list[str], environment: dict[str, str], message: str
) -> None:
    words = [word.format(folder=pool.folder) for word in arguments]
    variables = {name: value.format(folder=pool.folder) for name, value in environment.items()}
    result = pool.run(SCRIPT, *words, expect=2, **variables)
    assert (result.stdout, result.stderr) == ("", f"{SCRIPT}: {message.format(folder=pool.folder)}\n")


def test_a_damaged_checkout_is_one_line(pool: Pool) -> None:
    shutil.rmtree(pool.folder / "workspace/devstack/.git/objects")
    result = pool.run(SCRIPT, "--what", "noble")
    assert (result.returncode, len(result.stderr.splitlines())) in ((1, 1), (2, 1)), result.stderr
