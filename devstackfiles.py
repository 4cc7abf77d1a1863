"""What a devstack checkout wants cached on an image, read from its own files.

Pure functions over the text of devstack's package and pip lists, and what it takes to read each branch of a checkout.
Devstack changed over the years (files/apts became files/debs, files/pips went away, tools/image_list.sh came); every
form is understood.
"""

from __future__ import annotations

import contextlib
import fnmatch
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateconfig import PACKAGE_NAME, TIMED_OUT, ConfigError, GateError, Log, get_log

PROJECTS_FILE = Path(__file__).resolve().parent / "gate" / "projects.txt"
STEPS_FILE = Path(__file__).resolve().parent / "imagesteps.sh"
CALL_SECONDS = 120  # for what is run of devstack
GIT_SECONDS = 600
# With these git would look at another repository than the folder's.
GIT_VARIABLES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
RPM_DISTRIBUTION = re.compile(r"(fedora|f\d|rhel|centos|rocky|almalinux|ol\d|openeuler|euleros)", re.IGNORECASE)
PACKAGE_FOLDERS = {"deb": ("files/debs", "files/apts"), "rpm": ("files/rpms",)}
MARKED = r"(.*)#.*{}:([^ ]*)"  # the last of such marks in a line counts
DEBIAN_CODENAMES = ("wheezy", "jessie", "stretch", "buster", "bullseye", "bookworm", "trixie", "forky", "duke", "sid")
URL = re.compile(r"[a-z]+://[^\s,]+")
REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Package:
    """A package that devstack names in one of its files; install is False for those that it installs itself, later."""

    name: str
    file: str
    install: bool


@dataclass(frozen=True)
class Wanted:
    """What one branch of devstack wants cached for one distribution.

    pips are pip requirements, None where those of the projects count; images are URLs.
    """

    packages: list[Package]
    pips: list[str] | None
    images: list[str]


# --- packages -------------------------------------------------------------------------------------------------------


def is_rpm(distribution: str) -> bool:
    """Whether a distribution, by the name that devstack gives it (noble, f40, rhel9), has rpm packages."""
    return bool(RPM_DISTRIBUTION.match(distribution))


def parse_packages(text: str, distribution: str, file: str = "", *, whole_lists: bool = False) -> list[Package]:
    """Return the packages of one of devstack's package files that are for a distribution.

    One package a line, a comment after #. `dist:a,b` in the comment limits the line to those distributions, `not:a,b`
    keeps it from them; as in devstack's _parse_package_files, upper and lower case are the same, the last mark of a
    kind counts, and a distribution matches a list that its name is anywhere a part of. `NOPRIME` marks what devstack
    installs later, when a service needs it. `testonly` marks what only unit tests need, which we cache all the same.
    whole_lists: only a list of just this distribution matches, as in the first devstacks (see matches_whole_lists).
    """
    return [Package(name, file, install="NOPRIME" not in line)
            for line in text.splitlines() if _is_for(line, distribution.lower(), whole_lists)
            for name in line.partition("#")[0].split() if PACKAGE_NAME.fullmatch(name)]


def _is_for(line: str, distribution: str, whole_lists: bool) -> bool:
    only, never = (re.match(MARKED.format(mark), line) for mark in ("dist", "not"))
    if whole_lists:
        return only is None or only[2].lower() == distribution
    return (only is None or distribution in only[2].lower()) and (never is None or distribution not in never[2].lower())


def matches_whole_lists(tree: Path) -> bool:
    """Whether a devstack tree is one of before autumn 2012, whose stack.sh takes `dist:a,b` for one word."""
    files = (tree / "stack.sh", tree / "functions")
    return any("${distros//,/ }" in _read(file) for file in files if file.is_file())


def packages_of(tree: Path, distribution: str) -> list[Package]:
    """Return the packages that all package files of a devstack tree name for a distribution, by name, each once."""
    found: dict[str, Package] = {}
    whole_lists = matches_whole_lists(tree)
    for folder in PACKAGE_FOLDERS["rpm" if is_rpm(distribution) else "deb"]:
        for path in sorted((tree / folder).glob("*")):
            if path.is_file():
                file = f"{folder}/{path.name}"
                for package in parse_packages(_read(path), distribution, file, whole_lists=whole_lists):
                    if package.name not in found or package.install > found[package.name].install:
                        found[package.name] = package
    return sorted(found.values(), key=lambda package: package.name)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


# --- pip packages ---------------------------------------------------------------------------------------------------


def parse_requirements(text: str) -> list[str]:
    """Return the requirements of a pip requirements file: no comments, no options, no links."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if REQUIREMENT_NAME.match(line) and "://" not in line.partition(";")[0]]


def pinned(requirements: str, constraints: str) -> list[str]:
    """Return the requirements of a text with the versions of an upper-constraints file, sorted, each once.

    A marker (`; python_version...`) of the requirement is kept with each pin; what has no constraint stays as it is.
    Empty if there are no constraints, that is, where the requirements project is not cached.
    """
    pins: dict[str, list[str]] = {}
    for line in parse_requirements(constraints):
        pins.setdefault(_project_name(line), []).append(line)
    found: set[str] = set()
    for requirement in parse_requirements(requirements) if pins else ():
        marker = requirement.partition(";")[2].strip()
        found.update(_with_marker(pin, marker) for pin in pins.get(_project_name(requirement), [requirement]))
    return _in_order(found)


def _in_order(requirements: set[str]) -> list[str]:
    return sorted(requirements, key=lambda requirement: (requirement.lower(), requirement))  # the same in each run


def _project_name(requirement: str) -> str:
    """Return the name of a requirement as PEP 503 compares names."""
    name = REQUIREMENT_NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def _with_marker(pin: str, marker: str) -> str:
    version, _, own = (part.strip() for part in pin.partition(";"))
    markers = [one for one in dict.fromkeys((own, marker)) if one]
    if not markers:
        return version
    return f"{version};{markers[0] if len(markers) == 1 else ' and '.join(f'({one})' for one in markers)}"


def pips_of(tree: Path) -> list[str] | None:
    """Return what files/pips of a devstack tree lists, sorted, each once; None where devstack has no such folder."""
    if not (tree / "files/pips").is_dir():
        return None
    files = sorted(path for path in (tree / "files/pips").glob("*") if path.is_file())
    return _in_order({requirement for path in files for requirement in parse_requirements(_read(path))})


def local_requirements(branch: str, projects: Sequence[str], cache: Path) -> list[str]:
    """Return the pinned requirements of projects that are cloned in a folder, as the build reads them on the image."""
    requirements, constraints = (
        subprocess.run(["bash", str(STEPS_FILE), function, branch, str(cache)], capture_output=True, text=True,
                       input="".join(f"{one}\n" for one in projects), env=_environment(), timeout=CALL_SECONDS,
                       check=True).stdout
        for function in ("show_requirements", "show_constraints"))
    return pinned(requirements, constraints)


# --- images ---------------------------------------------------------------------------------------------------------

# Devstack asks for the distribution, and may want to install the tool for that: it is told, and installs nothing.
LSB_RELEASE = """#!/bin/sh
for word in "$@"; do
    case $word in
        -*i* | --id) echo "{vendor}" ;;
        -*r* | --release) echo "{release}" ;;
        -*c* | --codename) echo "{distribution}" ;;
    esac
done
"""
IMAGE_URLS = "exec 3>&1 1>&2; trap 'printf \"%s\\n\" \"$IMAGE_URLS\" >&3' EXIT; source ./stackrc"


def image_urls(tree: Path, distribution: str) -> list[str]:
    """Return the URLs of the test images that a devstack tree wants, sorted, each once.

    tools/image_list.sh says so; a tree without it has them in IMAGE_URLS of stackrc, which bash evaluates. Both run
    with nothing of our environment and without sudo. GateError with the end of what they printed if they fail.
    """
    if (tree / "tools/image_list.sh").is_file():
        what, words = "tools/image_list.sh", ["bash", "tools/image_list.sh"]
    elif (tree / "stackrc").is_file():
        what, words = "stackrc", ["bash", "-c", IMAGE_URLS]
    else:
        return []
    with tempfile.TemporaryDirectory(prefix="devstack-gate-") as folder:
        path = f"{_stand_ins(Path(folder), distribution)}:/usr/sbin:/usr/bin:/sbin:/bin"
        result = subprocess.run(  # timeout ends what bash has started, too
            ["timeout", "-k", "5", str(CALL_SECONDS), *words], cwd=tree, stdin=subprocess.DEVNULL, capture_output=True,
            env={"HOME": folder, "PATH": path, "LC_ALL": "C"}, text=True, errors="replace", check=False)
    if result.returncode in TIMED_OUT:
        raise GateError(f"{what}: not done after {CALL_SECONDS} s")
    urls = sorted(set(URL.findall(result.stdout)))
    if result.returncode and (what != "stackrc" or not urls):  # stackrc alone may well end early, after IMAGE_URLS
        last = (result.stderr.strip() or result.stdout.strip() or "no output").splitlines()[-1]
        raise GateError(f"{what}: exit status {result.returncode}: {last}")
    return urls


def _stand_ins(folder: Path, distribution: str) -> Path:
    vendor = "Debian" if distribution.lower() in DEBIAN_CODENAMES else "Fedora" if is_rpm(distribution) else "Ubuntu"
    release = re.sub(r"\D", "", distribution) or "0"
    scripts = {"lsb_release": LSB_RELEASE.format(vendor=vendor, release=release, distribution=distribution)}
    for name in ("sudo", "apt-get", "yum", "dnf", "zypper"):
        scripts[name] = f"#!/bin/sh\necho '{name} is not available here' >&2\nexit 1\n"
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


# --- projects -------------------------------------------------------------------------------------------------------


def projects_of(environ: Mapping[str, str]) -> list[str]:
    """Return the gate's projects: PROJECTS, then DEVSTACK_GATE_PROJECTS or those of projects.txt, each once."""
    listed = environ.get("DEVSTACK_GATE_PROJECTS", "").split()
    if not listed:
        listed = re.sub(r"#.*", "", PROJECTS_FILE.read_text(encoding="utf-8")).split()
    names = environ.get("PROJECTS", "").split() + listed
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*", name):
            raise ConfigError(f"PROJECTS or DEVSTACK_GATE_PROJECTS: {name!r} is no project's name")
    return list(dict.fromkeys(names))


def is_local(url: str) -> bool:
    """Whether a git URL names a folder of this host, which machines do not see."""
    return url.startswith(("/", "file://"))


def bundle(url: str) -> bytes:
    """Return all of a repository on this host as a git bundle; GateError if it cannot be read."""
    folder = Path(url.removeprefix("file://"))
    with_suffix = folder.with_name(f"{folder.name}.git")
    if with_suffix.is_dir() and not folder.is_dir():
        folder = with_suffix
    return _git(folder, "bundle", "create", "-q", "-", "--all")


# --- the checkout ---------------------------------------------------------------------------------------------------


class Checkout:
    """A devstack checkout on this host: a git clone, or a plain folder with one branch's files."""

    def __init__(self, folder: Path) -> None:
        """Look at the folder; ConfigError if it holds no devstack."""
        self.folder = folder.absolute()
        self.is_git = self._is_git()
        self._sha1s: dict[str, str] = {}
        if not self.is_git and (self.folder / ".git").exists():
            raise ConfigError(f"{folder}: git cannot read this checkout")
        if not self.is_git and not (self.folder / "stackrc").is_file() and not (self.folder / "files").is_dir():
            raise ConfigError(f"{folder}: holds no devstack checkout")

    def branches(self, patterns: Sequence[str]) -> list[str]:
        """Return the branches that match one of the shell patterns, in the order of the patterns.

        They are those of the remote, or the local ones where there is no remote; a checkout without any branch has its
        HEAD, a plain folder is master. From now on each means the commit that it has now. ConfigError if none matches.
        """
        if not self.is_git:
            return ["master"]
        names = self._refs("refs/remotes/origin/")
        if not names and self._refs("refs/remotes/"):
            raise ConfigError(f"{self.folder}: has no remote called origin, whose branches count")
        names = names or self._refs("refs/heads/")
        if not names:
            self.sha1("HEAD")
            return ["HEAD"]
        found = [name for pattern in patterns for name in sorted(names) if fnmatch.fnmatchcase(name, pattern)]
        if not found:
            raise ConfigError(f"{self.folder}: no branch matches {' '.join(patterns)}; there are {', '.join(names)}")
        branches = list(dict.fromkeys(found))
        for branch in branches:
            self.sha1(branch)
        return branches

    def sha1(self, branch: str) -> str:
        """Return the commit of a branch when it was first asked for, empty for a plain folder."""
        if not self.is_git:
            return ""
        if branch not in self._sha1s:  # another job may bring the checkout up to date while we build
            try:
                sha1 = self._git("rev-parse", "--verify", "--quiet", f"{self._ref(branch)}^{{commit}}")
            except GateError as err:
                raise ConfigError(f"{self.folder}: there is no commit on {branch}") from err
            self._sha1s[branch] = sha1.strip()
        return self._sha1s[branch]

    @contextlib.contextmanager
    def tree(self, branch: str) -> Iterator[Path]:
        """Yield a folder that holds the files of a branch."""
        if not self.is_git:
            yield self.folder
            return
        with tempfile.TemporaryDirectory(prefix="devstack-gate-") as folder:
            archive = Path(folder) / "tree.tar"
            self._git("archive", "--format=tar", f"--output={archive}", self.sha1(branch))
            tree = Path(folder) / "devstack"
            tree.mkdir()
            subprocess.run(["tar", "-xf", archive, "-C", tree], check=True, timeout=GIT_SECONDS)
            yield tree

    def _is_git(self) -> bool:
        try:
            return Path(self._git("rev-parse", "--show-toplevel").strip()) == self.folder.resolve()
        except (GateError, OSError):
            return False

    def _refs(self, under: str) -> list[str]:
        output = self._git("for-each-ref", "--format=%(refname) %(symref)", under)
        names = [line.split()[0].removeprefix(under) for line in output.splitlines() if len(line.split()) == 1]
        return [name for name in names if name != "HEAD"]

    def _ref(self, branch: str) -> str:
        if branch == "HEAD":
            return branch
        remotes = "refs/remotes/origin/"
        return f"{remotes if branch in self._refs(remotes) else 'refs/heads/'}{branch}"

    def _git(self, *words: str) -> str:
        return _git(self.folder, *words).decode(errors="replace")


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}


def _git(folder: Path, *words: str) -> bytes:
    command = ["git", "-c", "safe.directory=*", "-C", str(folder), *words]
    try:
        result = subprocess.run(command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True,
                                timeout=GIT_SECONDS, check=False)
    except subprocess.TimeoutExpired as err:
        raise GateError(f"git {words[0]} in {folder}: not done after {GIT_SECONDS} s") from err
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip() or f"exit status {result.returncode}"
        raise GateError(f"git {words[0]} in {folder}: {reason}")
    return result.stdout


def wanted(checkout: Checkout, branch: str, distribution: str, log: Log) -> Wanted:
    """Return what one branch wants cached for a distribution, by the name that devstack gives it."""
    with checkout.tree(branch) as tree:
        try:
            images = image_urls(tree, distribution)
        except GateError as err:
            log.warning("branch %s: its test images are not known: %s", branch, err)
            images = []
        return Wanted(packages_of(tree, distribution), pips_of(tree), images)


def describe(
    checkout: Checkout, distribution: str, branches: Sequence[str], projects: Sequence[str]
) -> dict[str, dict[str, list[str]]]:
    """Return what is cached for a distribution, {branch: {packages, pips, images, projects}}, each a list of words.

    Requirements of projects are read from clones beside the checkout, as far as there are any.
    """
    found = {}
    for branch in branches:
        wants = wanted(checkout, branch, distribution, get_log())
        pips = wants.pips
        if pips is None:
            pips = local_requirements(branch, projects, checkout.folder.parent)
        found[branch] = {"packages": [package.name for package in wants.packages], "pips": pips,
                         "images": wants.images, "projects": list(projects)}
    return found
