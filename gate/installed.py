"""Check that the change under test is in what devstack has installed.

Usage: python3 -I installed.py [--library=NAME...] [--change=TREE:COMMIT...] BASE [FOLDER...]; each FOLDER is one more
virtual environment to look into, each NAME a tree that must be installed although it has no change, each TREE one that
was set up with a change, as new/NAME

For each tree below BASE/new that was set up with the change under test or one that it depends on: is that commit, with
its files, still in the checkout, and does what is installed under the distribution's name come from the tree? What was
told counts, then the tree's own .git/gate-change, since a hook may have put another tree in its place. Three names
count: the tree's own, the one from before the change, and that of each folder that the change touches; or of all
folders, if the tree itself is no distribution and the change is beside them. Files are read as they are; nothing that
was installed is asked or run, since it could lie.
Exit code: 0 yes, 3 no; a line for each project; 1 if git does not end. Runs on test nodes: Python 3.8 or later, the
standard library only.

The environments of devstack's services count: virtual environments and, unless devstack has one of its own, the
system's packages beside them; else these count for what is in no virtual environment. Those that tox makes for tempest
take libraries from the package index by design; they count for what is installed nowhere else, and for tempest itself,
which runs there.
"""

from __future__ import annotations

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from email.parser import HeaderParser
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Sequence
from urllib.parse import unquote, urlsplit

GIT_SECONDS = 60
NOWHERE = "is installed nowhere"  # devstack-vm-gate.sh looks for these words
UNREAD = "is read by nothing"  # and for these
MAX_SCRIPT = 1 << 20  # bytes of a devstack file that is searched
# Folders and endings of what says something about a project and is no part of what is run or installed.
ASIDE = frozenset(("api-ref", "doc", "docs", "examples", "playbooks", "releasenotes", "roles", "samples", "test",
                   "tests", "zuul.d"))
PROSE = frozenset((".md", ".rst"))
AS_THEY_LIE = frozenset(("devstack", "devstack-gate", "grenade", "requirements"))  # read, not installed
SYSTEM = ("/usr/local/lib/python3*/dist-packages", "/usr/local/lib/python3*/site-packages",
          "/usr/local/lib64/python3*/site-packages", "/usr/lib/python3*/dist-packages",
          "/usr/lib/python3*/site-packages", "/usr/lib64/python3*/site-packages")
# The section and key under which a file names its distribution.
NAMED = (("setup.cfg", "metadata", "name"), ("pyproject.toml", "project", "name"),
         ("pyproject.toml", "", "project.name"), ("pyproject.toml", "tool.poetry", "name"),
         ("pyproject.toml", "tool.flit.metadata", "dist-name"), ("pyproject.toml", "tool.flit.metadata", "module"))
FINDER = re.compile(r"(?:__editable___.*_finder|_editable_impl_.*)\.py")  # of setuptools, and of the package editables
NO_CODE = re.compile(r"^(?:\.\.|/|EGG-INFO/|[^/]*\.(?:dist|egg)-info/)|\.pyc$")  # of what is installed
TEST = re.compile(r"(?:^|/)(?:test_[^/]*|[^/]*_tests?|conftest)\.py")  # a module that many builds leave out
# Many distributions install a folder of such a name by mistake, and nobody imports it.
NOBODYS = frozenset(("test", "tests", "doc", "docs", "examples", "tools", "scripts", "releasenotes", "setup",
                     "conftest", "noxfile"))


class Installed(NamedTuple):
    """A distribution in an environment."""

    version: str
    place: Path  # the package folder that holds it
    origin: str  # where it comes from, in words
    right: bool  # whether that is the tree, with the tree's present files


def main(arguments: Sequence[str]) -> int:
    """Print a line for each project with a change, and return the exit code."""
    named, told = ([word.partition("=")[2] for word in arguments if word.startswith(f"--{option}=")]
                   for option in ("library", "change"))
    base, *more = (Path(word) for word in arguments if not word.startswith(("--library=", "--change=")))
    changes = changes_of(base, told)
    failed = False
    for tree, change in changes["new"].items():
        right, words = judge(tree, change, base, more)
        failed = failed or not right
        print(f"{'' if right else 'NOT TESTED: '}{tree.name}: {words}")
    for tree, change in changes["old"].items():  # an upgrade has replaced what these had installed
        missing = lost(tree, change) or undone(tree, before(tree, change), change)
        failed = failed or bool(missing)
        print(f"{'NOT TESTED: ' * bool(missing)}old/{tree.name}: {missing or 'has the change ' + change[:10]}")
    for name in dict.fromkeys(named):
        tree = base / "new" / name
        if name != "ALL" and tree not in changes["new"]:
            right, words = judge(tree, "HEAD", base, more) if tree.is_dir() else (False, f"there is no tree {tree}")
            print(f"{'' if right and NOWHERE not in words else 'NOT FROM ITS TREE: '}{name}: {words}")
    return 3 if failed else 0


def judge(tree: Path, change: str, base: Path, more: Sequence[Path]) -> tuple[bool, str]:
    """Return whether the change counts as tested, and the line that says so."""
    begin = before(tree, change)
    missing = lost(tree, change) or undone(tree, begin, change)
    if missing:
        return False, missing
    kinds = [virtual_environments(base, more), system_environment(base), tox_environments(base)]
    if not any(venv.is_dir() for venv in (*more, *(base / data / "venv" for data in ("data", "new/data")))):
        kinds[:2] = [kinds[0] + kinds[1]]  # devstack has none of its own: its services run with the system's packages
    if tree.name == "tempest":
        kinds.reverse()
    given = [*names_from(tree, kinds), distribution_name(tree), name_before(tree, begin),
             *names_within(tree, begin, change)]
    names = {canonical(name): name for name in given if name}
    if not names and is_distribution(tree):
        names = {canonical(tree.name): tree.name}  # its setup.py computes a name, which mostly is the repository's
    parts = {canonical(name): name for name in names_beside(tree, begin, change) if name}
    for environments in kinds:
        found = [(name, one) for name in {**names, **parts}.values() for folders in environments
                 for one in look(folders, name, tree)]
        wrong = [(name, one) for name, one in found if not one.right]
        if wrong:
            return False, "; ".join(f"{name} {one.version} in {one.place} comes {one.origin}" for name, one in wrong)
        if found:
            places = ", ".join(dict.fromkeys(str(one.place) for _, one in found))
            shown = ", ".join(dict.fromkeys(f"{name} {one.version}" for name, one in found))
            return True, f"{shown} is installed {found[0][1].origin}, in {places}"
    if names or is_distribution(tree):
        return True, f"{NOWHERE}: only what reads {tree} has the change {change[:10]}"
    if not is_read(tree, base):
        return True, f"{UNREAD}: it is no Python distribution, and devstack does not name it"
    return True, f"has the change {change[:10]}; it is no Python distribution, so there is nothing to compare"


# --- the change in the tree ---


def changes_of(base: Path, told: Sequence[str]) -> dict[str, dict[Path, str]]:
    """Return the trees that were set up with a change and its commit, for new and for old, by what was told first."""
    commits = {mark.parent.parent: mark.read_text().strip() for mark in base.glob("*/*/.git/gate-change")}
    commits.update((base / tree, commit) for tree, _, commit in (word.rpartition(":") for word in told))
    return {side: {tree: commits[tree] for tree in sorted(commits) if tree.parent == base / side}
            for side in ("new", "old")}


@functools.lru_cache(maxsize=None)
def before(tree: Path, change: str) -> str:
    """Return the commit from which the changes of a tree start on its branch; '' if that is not known."""
    ref = read_text(tree / ".git/gate-ref").strip()
    branch = ref.partition("/")[2].partition("/")[2]
    if ref.startswith("refs/zuul/"):
        branch = branch.rpartition("/")[0]
    return git(tree, "merge-base", f"refs/remotes/origin/{branch}", change).stdout.strip()


@functools.lru_cache(maxsize=None)
def files_of(tree: Path, begin: str, change: str) -> dict[str, str]:
    """Return the files that a change adds (A), removes (D) or alters (another letter)."""
    if not begin:
        return {}
    said = git(tree, "diff", "--name-status", "--no-renames", "-z", "--ignore-submodules", begin, change).stdout
    words = said.split("\0")
    return dict(zip(words[1::2], words[::2]))


def undone(tree: Path, begin: str, change: str) -> str:
    """Return words for a file that is as an earlier commit had it, or ''; edits do not count."""
    files = files_of(tree, begin, change)
    if not files or tree.name == "devstack-gate":  # the gate may lay its own scripts there
        return ""
    options = ("--name-only", "--no-renames", "--no-ext-diff", "--ignore-submodules", "-z")
    done, since = (git(tree, "diff", *options, commit) for commit in (begin, "HEAD"))
    if done.returncode or since.returncode:
        return ""
    differing, edited = (said.stdout.split("\0") for said in (done, since))
    gone = next((name for name in files
                 if name not in differing or (name in edited and is_of_history(tree, name))), "")
    return f"the change {change[:10]} is undone in {tree}: {gone} is as an earlier commit had it" if gone else ""


def is_of_history(tree: Path, file: str) -> bool:
    """Return whether a file of a tree has another text than in HEAD, one that it had in a commit before."""
    blob = blob_of(tree / file, tree)
    if blob == git(tree, "rev-parse", "--verify", "-q", f"HEAD:{file}").stdout.strip():
        return False  # only its rights differ, or it has line ends that .gitattributes would change
    found = git(tree, "log", "--format=", "--raw", "--no-abbrev", "--no-renames", "HEAD", "--", file)
    return blob in found.stdout.split()


def lost(tree: Path, change: str) -> str:
    """Return why the checkout lacks the commit with the change, or '' if it has it."""
    done = git(tree, "merge-base", "--is-ancestor", change, "HEAD")
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split())[:200]
    return f"the change {change[:10]} is not in what is checked out any more{': ' * bool(said)}{said}"


def git(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run git in a tree, whoever owns it, without any user's settings."""
    with tempfile.TemporaryDirectory() as home:
        # In a file: before 2.38 git accepts this permission to read another user's tree from nowhere else.
        Path(home, ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": home,
                       "GIT_CONFIG_NOSYSTEM": "1", "GIT_NO_REPLACE_OBJECTS": "1", "GIT_OPTIONAL_LOCKS": "0"}
        try:
            return subprocess.run(["git", "-C", str(tree), *words], env=environment, stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            sys.exit(f"installed.py: git {words[0]} in {tree} did not end within {GIT_SECONDS} s")


def is_distribution(tree: Path) -> bool:
    """Return whether pip would accept a tree as the source of a distribution."""
    if (tree / "setup.py").is_file():
        return True
    return bool(re.search(r"^\s*\[\s*(?:build-system|project)\s*\]", read_text(tree / "pyproject.toml"), re.M))


def distribution_name(tree: Path) -> str | None:
    """Return the name under which a tree is installed, by its own files."""
    return name_in(lambda file: read_text(tree / file))


def name_in(read: Callable[[str], str]) -> str | None:
    """Return the name of a distribution by its files; `read` returns the text of each."""
    for file, section, key in NAMED:
        name = value_in(read(file), section, key)
        if name:
            return name
    return name_in_setup(read("setup.py"))


def name_before(tree: Path, begin: str) -> str | None:
    """Return the name that a tree had before the change, under which others may still be installed instead of it."""
    return name_in(lambda file: git(tree, "show", f"{begin}:{file}").stdout) if begin else None


def names_within(tree: Path, begin: str, change: str) -> Iterator[str | None]:
    """Yield the names of the distributions in the folders of a tree that the change touches.

    Those of tests and samples do not count: they may have the names of others.
    """
    folders = {folder for file in files_of(tree, begin, change) for folder in Path(file).parents if folder != Path()}
    for folder in sorted(folders):
        if not is_part(f"{folder}/setup.py"):
            continue
        if is_distribution(tree / folder) or (tree / folder / "setup.cfg").is_file():
            yield distribution_name(tree / folder)


def names_beside(tree: Path, begin: str, change: str) -> Iterator[str | None]:
    """Yield the names of all distributions in the folders of a tree that is none, if the change is beside them.

    What is beside them may be linked or copied into them.
    """
    named = re.compile(r"(.+)/(?:setup\.(?:py|cfg)|pyproject\.toml)")
    folders = {found.group(1) for found in map(named.fullmatch, filter(is_part, tree_files(tree))) if found}
    beside = [file for file in files_of(tree, begin, change)
              if is_part(file) and folders.isdisjoint(str(folder) for folder in Path(file).parents)]
    if beside and not is_distribution(tree):
        yield from (distribution_name(tree / folder) for folder in sorted(folders))


def is_read(tree: Path, base: Path) -> bool:
    """Return whether the code of devstack or of a plug-in, or devstack's settings, name a tree."""
    if tree.name in AS_THEY_LIE:
        return True
    named = re.compile(rf"(?<![\w.-]){re.escape(tree.name)}(?![\w-])")
    folders = [base / "new/devstack", *(one for one in sorted(base.glob("new/*/devstack")) if one.parent != tree)]
    return any(named.search(line) for folder in folders for path in scripts_in(folder)
               for line in re.sub(r"(?m)(?:^|\s)#.*", "", read_text(path)).splitlines() if "LIBS_FROM_GIT" not in line)


def scripts_in(folder: Path) -> Iterator[Path]:
    """Yield the files of a devstack tree, except what only tells of it and large ones, which are no scripts."""
    for path in sorted(folder.rglob("*")):
        if (is_part(str(path.relative_to(folder))) and not path.is_symlink() and path.is_file()
                and path.stat().st_size < MAX_SCRIPT):
            yield path


def is_part(file: str) -> bool:
    """Return whether a file may be run or installed: no documentation, no test, nothing hidden like .zuul.yaml."""
    path = Path(file)
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and ASIDE.isdisjoint(path.parts[:-1]) and path.suffix not in PROSE


def read_text(path: Path) -> str:
    """Return the text of a file, '' if there is none."""
    return path.read_text("utf-8-sig", errors="replace") if path.is_file() else ""


def value_in(text: str, section: str, key: str) -> str:
    """Return the first word of a value in an INI or TOML file, as far as single lines tell; '' if there is none.

    In an INI file a value may begin on the indented line that follows.
    """
    now = ""
    for line in re.sub(r"=[ \t]*\r?\n[ \t]+", "= ", text).splitlines():
        header = re.match(r"\s*\[\s*([\w.-]+)\s*\]", line)
        if header:
            now = header.group(1).lower()
        found = re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*[=:]\s*[\"']?([\w.-]+)", line, re.I)
        if found and now == section:
            return found.group(1)
    return ""


def name_in_setup(code: str) -> str | None:
    """Return the name that a setup.py gives its distribution, if that is a literal or a variable for one."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except (SyntaxError, ValueError, RecursionError):  # code for another Python
        found = re.search(r"^[^#\n]*\bname\s*=\s*[\"']([^\"']+)", code, re.M)
        return found.group(1).strip() if found else None
    values = {target.id: node.value for node in nodes if isinstance(node, ast.Assign)
              for target in node.targets if isinstance(target, ast.Name)}
    for node in nodes:
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "setup":
            for word in node.keywords:
                value = values.get(word.value.id) if isinstance(word.value, ast.Name) else word.value
                if word.arg == "name" and isinstance(value, ast.Constant) and isinstance(value.value, str):
                    return value.value.strip()
    return None


def names_from(tree: Path, kinds: Sequence[Sequence[Sequence[Path]]]) -> Iterator[str]:
    """Yield the names of the distributions installed from a tree, whatever the tree's files say."""
    folders = [folder for environments in kinds for environment in environments for folder in environment]
    for folder in dict.fromkeys(path.resolve() for path in folders):
        for record in sorted(folder.glob("*.dist-info")):
            source, _ = direct_url(record)
            if source is not None and inside(Path(source), tree):
                yield canonical(record.stem.split("-")[0])


def virtual_environments(base: Path, more: Sequence[Path]) -> list[list[Path]]:
    """Return the package folders of each environment of devstack's services, and of those in `more`."""
    scripts = [script for depth in ("*", "*/*", "*/*/*") for script in sorted(base.glob(depth + "/bin/activate"))]
    made = [script.parent.parent for script in scripts]
    for_services = [venv for venv in made if not any(part.startswith(".") for part in venv.relative_to(base).parts)]
    return [sorted(venv.glob("lib*/python3*/site-packages")) for venv in [*for_services, *more]]


def system_environment(home: Path | None = None) -> list[list[Path]]:
    """Return the system's package folders, in Python's order; if a home folder is given, its user's own come first."""
    own = sorted(home.glob(".local/lib/python3*/site-packages")) if home else []
    return [[*own, *(folder for pattern in SYSTEM for folder in sorted(Path("/").glob(pattern[1:])))]]


def tox_environments(base: Path) -> list[list[Path]]:
    """Return the package folders of each environment that tox has made."""
    return [sorted(venv.glob("lib*/python3*/site-packages")) for venv in sorted(base.glob("new/*/.tox/*"))]


def look(folders: Sequence[Path], name: str, tree: Path) -> Iterator[Installed]:
    """Yield the distribution of a name in an environment, from the first of its folders that has one."""
    for folder in dict.fromkeys(path.resolve() for path in folders):
        found = next(entries(folder, name), None)
        if found:
            yield examine(found, folder, tree)
            return


def entries(folder: Path, name: str) -> Iterator[Path]:
    """Yield the records of a distribution in a package folder; setuptools' links to trees come first.

    An egg, a folder or an archive, counts if a .pth file adds it to the path.
    """
    wanted = canonical(name)
    endings: dict[str, list[Path]] = {".egg-link": [], ".dist-info": [], ".egg-info": [], ".egg": []}
    for path in folder.iterdir():
        name_of = path.stem if path.suffix == ".egg-link" else path.stem.split("-")[0]
        if path.suffix in endings and canonical(name_of) == wanted:
            endings[path.suffix].append(path)
    if endings[".egg"]:
        places = [place.resolve() for place in search_path(folder)]
        endings[".egg"] = [egg for egg in endings[".egg"] if egg.resolve() in places]
    for found in endings.values():
        yield from sorted(found)


def canonical(name: str) -> str:
    """Return a distribution's name as the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def examine(record: Path, folder: Path, tree: Path) -> Installed:
    """Return the origin of a distribution."""
    if record.suffix == ".egg-link":
        return examine_link(record, folder, tree)
    version = version_of(record)
    source, editable = direct_url(record)
    if source is None and built_from(record) == head(tree):
        source = str(tree)
    if source is None or not inside(Path(source), tree):
        copied = None if editable else compare(record, folder, tree, tree, strict=True)
        if copied and copied.shown and not copied.older:  # a package that was built from the tree
            return Installed(version, folder, f"with the files of {tree}", True)
        index = "a package index or the distribution's packages"
        return Installed(version, folder, f"from {source or index}", False)
    if not editable:
        copied = compare(record, folder, tree, Path(source))
        if copied.older:
            return Installed(version, folder, f"from {source}, but is older than it: {copied.older[0]} differs", False)
        unknown = "" if copied.compared else " (no file could be compared)"
        return Installed(version, folder, f"from {source}{unknown}", True)
    hidden = hidden_by(record, folder, tree)
    if hidden:
        return Installed(version, folder, f"from {source}, but Python finds {hidden} first", False)
    return Installed(version, folder, f"from {source}", True)


def examine_link(link: Path, folder: Path, tree: Path) -> Installed:
    """Return the origin of a distribution that setuptools has linked; Python reads easy-install.pth, not the link."""
    target = Path(read_text(link).partition("\n")[0].strip() or "an empty link")
    if not inside(target, tree):
        return Installed("as checked out", folder, f"from {target}", False)
    if str(target) not in [line.strip() for line in read_text(folder / "easy-install.pth").splitlines()]:
        return Installed("as checked out", folder, f"from {target}, but easy-install.pth does not name that", False)
    hidden = hidden_by(next(target.glob("*.egg-info"), target), folder, tree, [target])
    origin = f"from {target}, but Python finds {hidden} first" if hidden else f"from {target}"
    return Installed("as checked out", folder, origin, not hidden)


def hidden_by(record: Path, folder: Path, tree: Path, paths: Sequence[Path] = ()) -> Path | None:
    """Return what Python imports instead of a package that is used in place, since it finds that later; or None.

    What .pth files add to the path comes after the package folder, by the names of the files; finders are asked after
    the whole path, in the same order.
    """
    environment = folder.parents[2] / "pyvenv.cfg"
    with_system = not environment.is_file() or re.search(
        r"^include-system-site-packages\s*=\s*true", environment.read_text(), re.M)
    own = [*paths, *added_paths(record, folder)]
    finders = [folder / line.split(",")[0] for line in read_text(record / "RECORD").splitlines()]
    finders = [file for file in finders if FINDER.fullmatch(file.name) and file.is_file()]
    found = {name for finder in finders for name in names_found(finder)} - NOBODYS
    added = [name for name in top_levels(record, own) if name not in NOBODYS | found]
    path = search_path(folder)
    ours = {place.resolve() for place in own if place.is_absolute()}
    earlier = next((path[:at] for at, place in enumerate(path) if place.resolve() in ours), path)
    system = [place for packages in system_environment()[0] for place in search_path(packages)] if with_system else []
    apart = (record / "top_level.txt").is_file() or not any(is_package(place / name) for place in own for name in added)
    places = [place / name.replace(".", "/") for place in [*path, *system] for name in found]
    hiding = [*places, *(place.with_name(f"{place.name}.py") for place in places),
              *(place / name for place in earlier for name in added if is_package(place / name)),
              *(place / f"{name}.py" for place in earlier if apart or place == folder for name in added)]
    if finders:
        others = sorted(file for file in folder.iterdir() if FINDER.fullmatch(file.name) and file < min(finders))
        hiding += [file for file in others if not found.isdisjoint(names_found(file))]
    return next((one for one in hiding if one.exists() and not inside(one, tree)), None)


def search_path(folder: Path) -> list[Path]:
    """Return a package folder and what its .pth files add to the path, in Python's order."""
    first: list[Path] = []
    after: list[Path] = []
    for file in sorted(folder.glob("*.pth")):
        text = read_text(file)
        for line in text.splitlines():
            if line.strip() and "\0" not in line and not re.match(r"#|import[ \t]", line):
                (first if "__plen" in text else after).append(folder / line.rstrip())  # old setuptools: its own first
    return [*first, folder, *after]


def names_found(finder: Path) -> list[str]:
    """Return the packages that a finder takes from where they lie."""
    text = read_text(finder)
    mapping = re.search(r"^MAPPING[^=]*=\s*(\{.*?\})", text, re.M | re.S)
    names = re.findall(r"['\"]([\w.]+)['\"]\s*:", mapping.group(1)) if mapping else []
    return names + re.findall(r"\bmap_module\(\s*['\"]([\w.]+)", text)


def top_levels(record: Path, paths: Sequence[Path]) -> list[str]:
    """Return the modules of a distribution: those that setuptools has noted, or those on the paths that it adds."""
    noted = read_text(record / "top_level.txt").split()
    there = [one for path in paths if path.is_dir() for one in sorted(path.iterdir())]
    return noted or [one.stem for one in there if is_package(one) or one.suffix == ".py"]


def added_paths(record: Path, folder: Path) -> Iterator[Path]:
    """Yield the folders that the .pth files of a distribution add to the path."""
    for line in read_text(record / "RECORD").splitlines():
        name = line.split(",")[0]
        if name.endswith(".pth") and "/" not in name:
            for path in read_text(folder / name).splitlines():
                if path.startswith("/"):
                    yield Path(path.strip())


def is_package(folder: Path) -> bool:
    """Return whether a folder is a package of its own, not part of a namespace that several share."""
    begin = read_text(folder / "__init__.py")
    return (folder / "__init__.py").exists() and not re.search(r"declare_namespace|extend_path", begin)


def inside(path: Path, tree: Path) -> bool:
    """Return whether an absolute path is the tree or a folder in it."""
    if not path.is_absolute() or "\0" in str(path):
        return False
    path, tree = path.resolve(), tree.resolve()
    return path == tree or tree in path.parents


def version_of(record: Path) -> str:
    """Return the version that a record tells, or "?"."""
    for file in (record / "METADATA", record / "PKG-INFO", record / "EGG-INFO/PKG-INFO", record):
        if file.is_file():
            return str(HeaderParser().parsestr(file.read_text(errors="replace")).get("Version", "?"))[:60]
    return "?"


def direct_url(record: Path) -> tuple[str | None, bool]:
    """Return what pip installed from, or None, and whether its files are used in place (PEP 610).

    A folder is returned as a path, a package that was built before as a URL, even if it lies in the tree.
    """
    try:
        told = json.loads((record / "direct_url.json").read_text())
        url = urlsplit(told["url"])
        if url.scheme != "file" or "archive_info" in told:
            return told["url"], False
        return unquote(url.path), bool(told.get("dir_info", {}).get("editable"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, False


def built_from(record: Path) -> str:
    """Return the abbreviated commit from which pbr built a development version, or ''; old pips record no origin."""
    try:
        told = json.loads((record / "pbr.json").read_text())
        return "" if told["is_release"] else str(told["git_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def head(tree: Path) -> str:
    """Return the commit that is checked out in a tree, abbreviated as pbr does."""
    return git(tree, "log", "-n1", "--pretty=format:%h").stdout.strip()


class Compared(NamedTuple):
    """What a comparison of a copy with the tree has shown."""

    compared: bool  # whether any file of it was found in the tree
    older: list[str]  # files that are not as in the tree, at least one if there are any
    shown: bool  # whether a file of it shows the change


def compare(record: Path, folder: Path, tree: Path, source: Path, strict: bool = False) -> Compared:
    """Compare a copy with the tree. A file that differs is older, unless a build may have made it and not `strict`."""
    change = read_text(tree / ".git/gate-change").strip()
    begin = before(tree, change) if change else ""
    touched = files_of(tree, begin, change)
    root, names = copied_files(record, folder)
    found, folders = in_tree(names, tree, source)
    shown = False
    for name, file in found.items():
        made = not strict and is_written(root / name, tree, file, begin if change else "HEAD", touched)
        if not made and not same(tree / file, root / name):
            return Compared(True, [name], shown)
        shown = shown or (file in touched and (tree / file).stat().st_size > 0)
    modules = {name for name in names if name.endswith(".py")}
    both = [(head + file[len(prefix):], file) for prefix, head in folders for file in {**tree_files(tree), **touched}
            if file.startswith(prefix) and file.endswith(".py")]
    remaining = [name for name, file in both
                 if name in modules and touched.get(file) == "D" and is_known(root / name, tree)]
    missing = [] if shown else missing_files(modules, both, touched)
    return Compared(bool(found) or not modules, remaining + missing, shown)


def missing_files(modules: set[str], both: Sequence[tuple[str, str]], touched: dict[str, str]) -> list[str]:
    """Return the modules that the change adds beside installed ones, and that are not installed.

    A build may leave tests out: if it has done so with all older ones, a new one does not count.
    """
    packages = {name.rpartition("/")[0] for name in modules} - {""}
    missing = [(name, file) for name, file in both if name.rpartition("/")[0] in packages and name not in modules]
    older_tests = [name for name, file in missing if TEST.search(name) and touched.get(file) not in ("A", "D")]
    left_out = older_tests and not any(TEST.search(name) for name in modules)
    return [name for name, file in missing if touched.get(file) == "A" and not (left_out and TEST.search(name))]


def copied_files(record: Path, folder: Path) -> tuple[Path, list[str]]:
    """Return the folder of a copy, and its files below that, without compiled ones and what describes it."""
    if record.suffix == ".egg":
        names = [path.relative_to(record).as_posix() for path in sorted(record.rglob("*")) if path.is_file()]
    else:
        names = [line.split(",")[0].strip('"') for line in read_text(record / "RECORD").splitlines()]
        listed = read_text(record / "installed-files.txt").splitlines()
        names += [os.path.normpath(f"{record.name}/{line}") for line in listed]
    return (record if record.suffix == ".egg" else folder), [name for name in names if not NO_CODE.search(name)]


def in_tree(names: Sequence[str], tree: Path, source: Path) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """Return the file of the tree for each copied one that has one, and which folders stand for which.

    The files of a package come from where most of them are: the source, a folder in it like src, or one with another
    name than the package. Of the pairs of folders, the first is in the tree, the second where it is installed.
    """
    begin = os.path.relpath(source.resolve(), tree.resolve())
    top = "" if begin == "." else f"{begin}/"
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in sorted(tree_files(tree), key=lambda file: (file.count("/"), file)):
        if file.startswith(top):
            by_name[file.rpartition("/")[2]].append(file[len(top):])
    packages: dict[str, list[str]] = defaultdict(list)
    for name in names:
        packages[name.partition("/")[0]].append(name)
    found: dict[str, str] = {}
    folders = set()
    for members in packages.values():
        for depth in range(max(name.count("/") for name in members) + 1):
            ends = {name: "/".join(name.split("/")[depth:]) for name in members if name.count("/") >= depth}
            counts = Counter(file[:-len(end)] for end in ends.values() for file in by_name[end.rpartition("/")[2]]
                             if f"/{file}".endswith(f"/{end}"))
            if counts and (depth == 0 or 2 * max(counts.values()) > len(members) > 1):
                prefix = top + max(counts, key=lambda folder: counts[folder])
                found.update({name: tree_files(tree)[prefix + end] for name, end in ends.items()
                              if prefix + end in tree_files(tree) and (tree / prefix / end).is_file()})
                folders.add((prefix, "".join(f"{part}/" for part in members[0].split("/")[:depth])))
                break
    return found, folders or {(top, ""), (f"{top}src/", ""), (f"{top}lib/", "")}


@functools.lru_cache(maxsize=None)
def tree_files(tree: Path) -> dict[str, str]:
    """Return the files of a tree that git tracks, each with the one that holds its text: links are followed.

    Files that a build made there do not count; they may differ.
    """
    tracked = sorted(set(git(tree, "ls-files", "-z").stdout.split("\0")) - {""})
    files = dict(zip(tracked, tracked))
    for link in tracked:
        if (tree / link).is_symlink():
            target = os.path.relpath(os.path.realpath(tree / link), os.path.realpath(tree))
            files.update({link + file[len(target):]: file for file in tracked if f"{file}/".startswith(f"{target}/")})
    return files


def is_written(installed: Path, tree: Path, file: str, begin: str, touched: dict[str, str]) -> bool:
    """Return whether a build may have made an installed file from the tree's, such as to write a version into it.

    It has not if git knows the file, or if the file lacks what the change does to it.
    """
    if not begin or not installed.is_file() or same(installed, tree / file) or is_known(installed, tree):
        return False
    if file not in touched:
        return True
    texts = (read_text(installed), read_text(tree / file), git(tree, "show", f"{begin}:{file}").stdout)
    there, now, once = (Counter(text.splitlines()) for text in texts)
    changed = [line for line in {**now, **once} if now[line] != once[line]]
    return bool(changed) and all(there[line] >= now[line] if now[line] > once[line] else there[line] <= now[line]
                                 for line in changed)


def is_known(installed: Path, tree: Path) -> bool:
    """Return whether git has the text of an installed file, such as that of an earlier commit."""
    return git(tree, "cat-file", "-e", blob_of(installed, tree)).returncode == 0


def blob_of(file: Path, tree: Path) -> str:
    """Return the id by which git knows a file's text; '' if there is no such file."""
    return git(tree, "hash-object", "--no-filters", "--", str(file)).stdout.strip()


def same(first: Path, second: Path) -> bool:
    """Return whether two files hold the same bytes."""
    try:
        return first.read_bytes() == second.read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
