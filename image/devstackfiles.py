"""What a devstack checkout wants cached on an image, read from its own files.

Pure functions over the text of devstack's package and pip lists, and the code that reads each branch of a checkout.
Devstack changed over the years (files/apts became files/debs, files/pips went away, tools/image_list.sh came); every
form is understood.
"""

from __future__ import annotations

import contextlib
import fnmatch
import io
import os
import re
import subprocess
import tarfile
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gateprocess
from gateconfig import PACKAGE_NAME
from gateprocess import TIMED_OUT, ConfigError, GateError, get_log
from image import pipneeds
from image.pipneeds import PipSet, ProjectFiles

PROJECTS_FILE = Path(__file__).resolve().parents[1] / "gate" / "projects.txt"
STEPS_FILE = Path(__file__).resolve().parent / "steps.sh"
SANDBOX_FILE = STEPS_FILE.with_name("sandbox.sh")
CALL_SECONDS = 120  # for devstack code that is run
GIT_SECONDS = 600
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
LINK, PROGRAM = "120000", "100755"  # git's file modes
BIG = 1024 * 1024
TREE_BYTES = 64 << 20  # of all files of a branch; devstack has some 10 MB
PROJECT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
# With these set, git would look at another repository than the folder's.
GIT_VARIABLES = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
RPM_DISTRIBUTION = re.compile(r"(fedora|f\d|rhel|centos|rocky|almalinux|ol\d|openeuler|euleros)", re.IGNORECASE)
PACKAGE_FOLDERS = {"deb": ("files/debs", "files/apts"), "rpm": ("files/rpms",)}
INSTALLS = re.compile(r"\b(?:install_package|apt_get[ \t]+install|yum_install)[ \t]+([^;&|#\n]+)")
MARKED = r"(.*)#.*{}:([^ ]*)"  # the last such mark in a line counts
SCRIPTS = ("stack.sh", "functions*", "inc/*", "lib/*", "lib/*/*", "tools/*.sh", "extras.d/*.sh")
REPOSITORY = re.compile(  # GITREPO["cliff"]=${CLIFF_REPO:-${GIT_BASE}/openstack/cliff.git} or NOVA_REPO=${...}
    r"^[ \t]*(GITREPO\[[^\]]*\]|(\w+_REPO))=\S*\$\{?GIT_BASE\}?/([\w./-]+?)(?:\.git)?\}?[\"']?[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Package:
    """A package that devstack names in one of its files; install is False if devstack installs it later."""

    name: str
    file: str
    install: bool


@dataclass(frozen=True)
class Wanted:
    """What one branch of devstack wants cached for one distribution.

    later: packages that its scripts install, by the names of all distributions. pips: devstack's own list, None if the
    projects' requirements count instead. words: packages that it installs by name (see pipneeds.words_of). builds:
    projects in its tree that it builds. toxes: the tox environments that it runs, {project without its namespace:
    names}. urls: files that it downloads. repositories: all that it may clone. Only devstack's code knows its test
    images, see image_urls.
    """

    packages: list[Package]
    later: list[str]
    pips: list[str] | None
    words: tuple[list[str], list[str]]
    builds: list[ProjectFiles]
    toxes: dict[str, list[str]]
    urls: list[str]
    repositories: list[str]

    def pip_sets(self, branch: str, projects: Sequence[ProjectFiles]) -> list[PipSet]:
        """Return what a build of the branch asks pip for, given the projects' files."""
        return pipneeds.sets_of(branch, projects, self.words, self.builds, self.pips, self.toxes)


# --- packages -------------------------------------------------------------------------------------------------------


def is_rpm(distribution: str) -> bool:
    """Return whether a distribution, by the name that devstack gives it (noble, f40, rhel9), has rpm packages."""
    return bool(RPM_DISTRIBUTION.match(distribution))


def parse_packages(text: str, distribution: str, file: str = "", *, whole_lists: bool = False) -> list[Package]:
    """Return the packages of one of devstack's package files that are for a distribution.

    One package a line, a comment after #. `dist:a,b` in the comment limits the line to those distributions, `not:a,b`
    excludes them. As in devstack's _parse_package_files, upper and lower case are the same, the last mark of a kind
    counts, and a distribution matches a list if its name occurs anywhere in it. `NOPRIME` marks packages that devstack
    installs later, when a service needs them; `testonly` marks those that only unit tests need, which are cached, too.
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
    """Return whether a devstack tree is from before autumn 2012, when stack.sh read `dist:a,b` as one word."""
    files = (tree / "stack.sh", tree / "functions")
    return any("${distros//,/ }" in _read(file, tree) for file in files if file.is_file())


def packages_of(tree: Path, distribution: str) -> list[Package]:
    """Return the packages that all package files of a devstack tree name for a distribution, by name, each once."""
    found: dict[str, Package] = {}
    whole_lists = matches_whole_lists(tree)
    for folder in PACKAGE_FOLDERS["rpm" if is_rpm(distribution) else "deb"]:
        for path in sorted((tree / folder).glob("*")):
            if path.is_file():
                file = f"{folder}/{path.name}"
                for package in parse_packages(_read(path, tree), distribution, file, whole_lists=whole_lists):
                    if package.name not in found or package.install > found[package.name].install:
                        found[package.name] = package
    return sorted(found.values(), key=lambda package: package.name)


def later_packages(tree: Path) -> list[str]:
    """Return the packages that only the scripts of a devstack tree name, for any distribution, sorted."""
    found: set[str] = set()
    for path in scripts_of(tree):
        text = pipneeds.code_of(_read(path, tree))
        for arguments in INSTALLS.findall(text):
            found.update(word for word in pipneeds.arguments_of(arguments, text) if PACKAGE_NAME.fullmatch(word))
    return sorted(found - {package.name for package in packages_of(tree, "")})


def _read(path: Path, tree: Path) -> str:
    """Return the text of a file of a tree; '' if it is a link that leads out of the tree."""
    real = path.resolve()
    return real.read_text(encoding="utf-8", errors="replace") if real.is_relative_to(tree.resolve()) else ""


# --- pip packages ---------------------------------------------------------------------------------------------------


def pips_of(tree: Path) -> list[str] | None:
    """Return the packages in files/pips of a devstack tree, sorted, each once; None if there is no such folder."""
    if not (tree / "files/pips").is_dir():
        return None
    files = sorted(path for path in (tree / "files/pips").glob("*") if path.is_file())
    return pipneeds.in_order(requirement for path in files
                             for requirement in pipneeds.parse_requirements(_read(path, tree)))


def builds_of(tree: Path) -> list[ProjectFiles]:
    """Return the projects inside a devstack tree that devstack builds, such as tools/dbcounter."""
    found: dict[str, dict[str, str]] = {}
    for name in ("setup.cfg", "pyproject.toml", "setup.py"):
        for path in sorted(tree.glob(f"tools/*/{name}")):
            found.setdefault(str(path.parent.relative_to(tree)), {})[name] = _read(path, tree)
    return [ProjectFiles(folder, True, files) for folder, files in found.items()]


def toxes_of(tree: Path) -> dict[str, list[str]]:
    """Return the tox environments that devstack runs, {project without its namespace: names}.

    devstack has a script of a project's name for each (lib/tempest), which runs tox in that project's tree.
    """
    found = {path.name: pipneeds.tox_environments(_read(path, tree)) for path in scripts_of(tree)}
    return {project: environments for project, environments in found.items() if environments}


def local_needs(branch: str, projects: Sequence[str], cache: Path) -> tuple[list[ProjectFiles], dict[str, str]]:
    """Return the files of projects that are cloned in a folder, and the upper constraints there, {branch: text}."""
    def ask(*words: str) -> str:
        return subprocess.run(["bash", str(STEPS_FILE), *words, str(cache)], capture_output=True, text=True,
                              input="".join(f"{one}\n" for one in projects), env=_environment(), timeout=CALL_SECONDS,
                              check=True).stdout

    return (pipneeds.unpack(ask("show_needs", branch)),
            {name: ask("show_constraints", name) for name in dict.fromkeys((branch, "master"))})


# --- images and other files -----------------------------------------------------------------------------------------


def image_urls(archive: bytes, distribution: str) -> list[str]:
    """Return the URLs of the test images and other files that a devstack wants, sorted, each once; archive is a tar.

    Only devstack's own shell code knows them: stackrc composes them from the virtualization driver, the architecture
    and a dozen of its functions. An image build runs that code on the template, where there is no secret. Here it runs
    in sandbox.sh, which hides this host's files, network and processes from it. Raises SandboxError if this host does
    not let us isolate it; GateError with the reason if devstack's code fails.
    """
    command = ["timeout", "-k", "5", str(2 * CALL_SECONDS), "bash", str(SANDBOX_FILE), str(STEPS_FILE),
               "print_image_urls", distribution]
    result = subprocess.run(command, input=archive, capture_output=True, check=False,
                            env={"PATH": PATH, "LC_ALL": "C"})
    first, _, output = result.stdout.decode(errors="replace").partition("\n")
    reason = (result.stderr.decode(errors="replace").strip() or f"exit status {result.returncode}").splitlines()[-1]
    if first != "shut away":
        raise SandboxError(f"devstack's code must not see this host, which cannot shut it away ({reason}); an image "
                           "build runs it on the template")
    if result.returncode in TIMED_OUT:
        raise GateError(f"not done after {2 * CALL_SECONDS} s")
    if result.returncode:
        raise GateError(reason)
    return output.split()


class SandboxError(GateError):
    """Untrusted code cannot run here, since this host does not let us isolate it."""


def file_urls(tree: Path, distribution: str) -> list[str]:
    """Return the URLs from which a devstack tree itself fills its folder `files`: that of get-pip.py."""
    installs_pip = tree / "tools/install_pip.sh"
    text = _read(installs_pip, tree) if installs_pip.is_file() else ""
    if re.search(r"^(el)?if is_fedora" if is_rpm(distribution) else r"^(el)?if is_ubuntu", text, re.MULTILINE):
        return []  # there the distribution's own pip is used
    return re.findall(r"^\w*GET_PIP_URL=[\"']?(?:\$\{\w+:-)?[\"']?(https?://[^\s\"'}]+)", text, re.MULTILINE)


# --- repositories ---------------------------------------------------------------------------------------------------


def repositories_of(tree: Path) -> list[str]:
    """Return the repositories below GIT_BASE that a devstack tree may clone by itself, in the order of stackrc.

    stackrc says where each comes from. Libraries are in its table GITREPO; every other repository has a variable that
    ends with _REPO. A repository whose variable no `git_clone` names is not cloned.
    """
    stackrc = tree / "stackrc"
    text = _read(stackrc, tree) if stackrc.is_file() else ""
    scripts = "\n".join(_read(path, tree) for path in scripts_of(tree))
    cloned = set(re.findall(r"git_clone[ \t]+[\"']?\$\{?(\w+)", scripts))
    found: dict[str, None] = {}
    for _, variable, project in REPOSITORY.findall(text):
        if (not variable or variable in cloned) and PROJECT.fullmatch(project):
            found[project] = None
    return list(found)


def scripts_of(tree: Path) -> list[Path]:
    """Return the shell scripts with which a devstack tree installs."""
    found = [path for pattern in SCRIPTS for path in sorted(tree.glob(pattern))]
    return [path for path in found if path.is_file() and path.suffix not in (".py", ".txt", ".rst", ".template")]


# --- projects -------------------------------------------------------------------------------------------------------


def projects_of(environ: Mapping[str, str]) -> list[str]:
    """Return the gate's projects: PROJECTS, then DEVSTACK_GATE_PROJECTS or those of projects.txt, each once."""
    listed = environ.get("DEVSTACK_GATE_PROJECTS", "").split()
    if not listed:
        listed = re.sub(r"#.*", "", PROJECTS_FILE.read_text(encoding="utf-8")).split()
    names = environ.get("PROJECTS", "").split() + listed
    for name in names:
        if not PROJECT.fullmatch(name):
            raise ConfigError(f"PROJECTS or DEVSTACK_GATE_PROJECTS: {name!r} is no project's name")
    return list(dict.fromkeys(names))


def is_local(url: str) -> bool:
    """Return whether a git URL names a folder of this host, which machines do not see."""
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

        They are the remote's branches, or the local ones if there is no remote. A checkout without any branch gives
        HEAD; a plain folder gives master. From then on each name means the commit that it has now. ConfigError if none
        matches.
        """
        if not self.is_git:
            return ["master"]
        names = self._refs("refs/remotes/origin/")
        if not names and self._refs("refs/remotes/"):
            raise ConfigError(f"{self.folder}: has no remote called origin, from which branches are read")
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
        """Return the commit that a branch had when first asked for, empty for a plain folder."""
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
            tree = Path(folder) / "devstack"
            tree.mkdir()
            files = list(self._files(branch))
            # Links come last, so that nothing is written through them.
            for name, mode, content in sorted(files, key=lambda file: file[1] == LINK):
                try:
                    (tree / name).parent.mkdir(parents=True, exist_ok=True)
                    if mode == LINK:
                        (tree / name).symlink_to(content.decode(errors="replace"))
                    else:
                        with (tree / name).open("xb") as stream:
                            stream.write(content)
                except (OSError, ValueError) as err:
                    raise GateError(f"{self.folder}: {branch} holds a file {name!a} that cannot be written "
                                    f"({gateprocess.one_line(err)})") from err
            yield tree

    def archive(self, branch: str) -> bytes:
        """Return the files of a branch as a tar."""
        output = io.BytesIO()
        with tarfile.open(fileobj=output, mode="w") as archive:
            for name, mode, content in self._files(branch) if self.is_git else _files_of(self.folder):
                info = tarfile.TarInfo(name)
                info.mode = 0o755 if mode == PROGRAM else 0o644
                if mode == LINK:
                    info.type, info.linkname = tarfile.SYMTYPE, content.decode(errors="replace")
                    archive.addfile(info)
                else:
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return output.getvalue()

    def _files(self, branch: str) -> Iterator[tuple[str, str, bytes]]:
        """Yield name, mode and content of each file of a branch as it was committed: git runs no filters."""
        listed = self._git("ls-tree", "-r", "-l", "-z", self.sha1(branch)).split("\0")
        entries = [(*head.split(), name) for head, _, name in (line.partition("\t") for line in listed if line)]
        blobs = [(mode, sha1, name) for mode, kind, sha1, _, name in entries if kind == "blob"]
        refuse_unsafe(f"{self.folder}: {branch}", [(name, mode) for mode, _, name in blobs])
        if sum(int(size) for _, kind, _, size, _ in entries if kind == "blob") > TREE_BYTES:
            raise GateError(f"{self.folder}: {branch} holds more than {TREE_BYTES >> 20} MB, and is no devstack")
        output = io.BytesIO(_git(self.folder, "cat-file", "--batch",
                                 stdin="".join(f"{sha1}\n" for _, sha1, _ in blobs).encode()))
        for mode, sha1, name in blobs:
            *_, size = output.readline().split()
            if not size.isdigit():
                raise GateError(f"git cat-file in {self.folder}: {name} ({sha1}) is missing")
            yield name, mode, output.read(int(size))
            output.read(1)  # the end of the line

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


def refuse_unsafe(what: str, files: Sequence[tuple[str, str]]) -> None:
    """Raise GateError if files of a commit, each a name and a git mode, would be written outside its folder.

    git neither makes nor checks out such a commit, but it fetches one that somebody else has made.
    """
    names = Counter(name for name, _ in files)
    links = {name for name, mode in files if mode == LINK}
    for name, _ in files:
        parts = name.split("/")
        above = {"/".join(parts[:count]) for count in range(1, len(parts))}
        if names[name] > 1 or above & links or any(part.lower() in ("", ".", "..", ".git") for part in parts):
            raise GateError(f"{what} holds a file {name!a}, which could lead elsewhere; nothing is read from it")


def _files_of(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    """Yield name, mode and content of a plain folder's files, except big ones: images that it has downloaded."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            yield name, LINK, os.fsencode(path.readlink())
        elif path.is_file() and path.stat().st_size <= BIG:
            yield name, PROGRAM if os.access(path, os.X_OK) else "100644", path.read_bytes()


def _environment() -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in GIT_VARIABLES}
    return own | {"GIT_ALLOW_PROTOCOL": "", "GIT_NO_LAZY_FETCH": "1"}  # nothing is fetched, whatever git's settings say


def _git(folder: Path, *words: str, stdin: bytes = b"") -> bytes:
    command = ["git", "-c", "safe.directory=*", "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false",
               "-C", str(folder), *words]
    try:
        result = subprocess.run(command, env=_environment(), input=stdin, capture_output=True, timeout=GIT_SECONDS,
                                check=False)
    except subprocess.TimeoutExpired as err:
        raise GateError(f"git {words[0]} in {folder}: not done after {GIT_SECONDS} s") from err
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip() or f"exit status {result.returncode}"
        raise GateError(f"git {words[0]} in {folder}: {reason}")
    return result.stdout


def wanted(checkout: Checkout, branch: str, distribution: str) -> Wanted:
    """Return what one branch of devstack wants cached for a distribution, given by devstack's name for it."""
    with checkout.tree(branch) as tree:
        own = pipneeds.words_of(_read(path, tree) for path in scripts_of(tree))
        return Wanted(packages_of(tree, distribution), later_packages(tree), pips_of(tree), own, builds_of(tree),
                      toxes_of(tree), file_urls(tree, distribution), repositories_of(tree))


def describe(
    checkout: Checkout, distribution: str, branches: Sequence[str], projects: Sequence[str]
) -> tuple[dict[str, dict[str, list[str]]], bool]:
    """Return what is cached for a distribution, {branch: {packages, pips, images, projects}}, each a list of words.

    Requirements of projects are read from clones beside the checkout, if there are any. The second value is False if
    this host does not let us ask devstack for its images.
    """
    found, complete, log = {}, True, get_log()
    for branch in branches:
        wants = wanted(checkout, branch, distribution)
        all_projects = list(dict.fromkeys([*projects, *wants.repositories]))
        files, constraints = local_needs(branch, all_projects, checkout.folder.parent)
        images: list[str] = []
        try:
            images = image_urls(checkout.archive(branch), distribution)
        except SandboxError as err:
            complete = False
            log.error("branch %s: its test images are not known: %s", branch, err)
        except GateError as err:
            log.warning("branch %s: its test images are not known: %s", branch, err)
        found[branch] = {"packages": [package.name for package in wants.packages],
                         "pips": pips_described(wants.pip_sets(branch, files), constraints),
                         "images": sorted({*images, *wants.urls}), "projects": all_projects}
    return found, complete


def worth_getting(sets: Sequence[PipSet], constraints: Mapping[str, str]) -> list[PipSet]:
    """Return the sets to download; without any constraints, {branch: text}, only devstack's own list."""
    return [one for one in sets if any(constraints.values()) or one.name == pipneeds.LISTED]


def pips_described(sets: Sequence[PipSet], constraints: Mapping[str, str]) -> list[str]:
    """Return the requirements of the sets worth getting, pinned where constraints, {branch: text}, apply, sorted."""
    found: set[str] = set()
    for one in worth_getting(sets, constraints):
        pins = constraints.get(one.constraints, "")
        found.update(pipneeds.pinned(one.requirements, pins) if pins else one.requirements)
    return pipneeds.in_order(found)
