"""Check that the change under test is in what devstack has installed.

Usage: python3 -I installed.py BASE [FOLDER...]; each FOLDER is one more virtual environment to look into

For each tree below BASE/new that has the change under test or one that it depends on (.git/gate-change holds the
commit): is that commit still in what is checked out, and does what is installed under the distribution's name come
from the tree? Files are read as they are; nothing that was installed is asked or run, since it could answer for itself.
Exit code: 0 yes, 3 no; a line for each project. Runs on test nodes: Python 3.8 or later, the standard library only.

The environments of devstack's services count: virtual environments, or the system's packages if there are none. Those
that tox makes for tempest take libraries from the package index by design; they count for what is installed nowhere
else.
"""

from __future__ import annotations

import configparser
import functools
import json
import os
import re
import subprocess
import sys
from email.parser import HeaderParser
from pathlib import Path
from typing import Iterator, NamedTuple, Sequence
from urllib.parse import unquote, urlsplit

GIT_SECONDS = 60
NOWHERE = "is installed nowhere"  # devstack-vm-gate.sh looks for these words
SYSTEM = ("/usr/local/lib/python3*/dist-packages", "/usr/local/lib/python3*/site-packages",
          "/usr/local/lib64/python3*/site-packages", "/usr/lib/python3*/dist-packages",
          "/usr/lib/python3*/site-packages", "/usr/lib64/python3*/site-packages")


class Installed(NamedTuple):
    """A distribution in an environment."""

    version: str
    place: Path  # the folder of packages that holds it
    origin: str  # where it comes from, in words
    right: bool  # whether that is the tree, with what the tree holds


def main(arguments: Sequence[str]) -> int:
    """Print a line for each project with a change; returns the exit code."""
    base, *more = (Path(argument) for argument in arguments)
    failed = False
    for mark in sorted(base.glob("new/*/.git/gate-change")):
        tree = mark.parent.parent
        right, words = judge(tree, mark.read_text().strip(), base, more)
        failed = failed or not right
        print(f"{'' if right else 'NOT TESTED: '}{tree.name}: {words}")
    return 3 if failed else 0


def judge(tree: Path, change: str, base: Path, more: Sequence[Path]) -> tuple[bool, str]:
    """Return whether the change counts as tested, and the line that says so."""
    missing = lost(tree, change)
    if missing:
        return False, missing
    name = distribution_name(tree)
    if not name:
        return True, f"has the change {change[:10]}; it is no Python distribution, so there is nothing to compare"
    for environments in (virtual_environments(base, more), system_environment(), tox_environments(base)):
        found = [one for folders in environments for one in look(folders, name, tree)]
        wrong = [one for one in found if not one.right]
        if wrong:
            return False, "; ".join(f"{name} {one.version} in {one.place} comes {one.origin}" for one in wrong)
        if found:
            places = ", ".join(str(one.place) for one in found)
            return True, f"{name} {found[0].version} is installed {found[0].origin}, in {places}"
    return True, f"{NOWHERE}: only what reads {tree} has the change {change[:10]}"


def lost(tree: Path, change: str) -> str:
    """Return why the checkout lacks the commit with the change, or '' if it has it."""
    done = git(tree, "merge-base", "--is-ancestor", change, "HEAD")
    if done.returncode == 0:
        return ""
    said = " ".join(done.stderr.split())[:200]
    return f"the change {change[:10]} is not in what is checked out any more{': ' * bool(said)}{said}"


def git(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run git in a tree, whoever owns it, without anybody's settings."""
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "HOME": "/nonexistent",
                   "GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "safe.directory",
                   "GIT_CONFIG_VALUE_0": "*"}
    return subprocess.run(["git", "-C", str(tree), *words], env=environment, stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, errors="replace", timeout=GIT_SECONDS, check=False)


def distribution_name(tree: Path) -> str | None:
    """Return the name under which a tree is installed, as its own files have it."""
    setup = configparser.RawConfigParser(strict=False)
    try:
        setup.read(tree / "setup.cfg", encoding="utf-8")
        if setup.get("metadata", "name", fallback=""):
            return setup.get("metadata", "name").strip()
    except (configparser.Error, UnicodeDecodeError):
        pass
    for file, pattern in (("pyproject.toml", r"^\[project\][^\[]*?^name\s*=\s*[\"']([^\"']+)"),
                          ("setup.py", r"\bname\s*=\s*[\"']([^\"']+)")):
        path = tree / file
        found = re.search(pattern, path.read_text(errors="replace"), re.M | re.S) if path.is_file() else None
        if found:
            return found.group(1).strip()
    return None


def virtual_environments(base: Path, more: Sequence[Path]) -> list[list[Path]]:
    """Return the folders of packages of each environment of devstack's services, and of those that are named."""
    scripts = [script for depth in ("*", "*/*", "*/*/*") for script in sorted(base.glob(depth + "/bin/activate"))]
    made = [script.parent.parent for script in scripts]
    for_services = [venv for venv in made if not any(part.startswith(".") for part in venv.relative_to(base).parts)]
    return [sorted(venv.glob("lib*/python3*/site-packages")) for venv in [*for_services, *more]]


def system_environment() -> list[list[Path]]:
    """Return the system's folders of packages, first those that win."""
    return [[folder for pattern in SYSTEM for folder in sorted(Path("/").glob(pattern[1:]))]]


def tox_environments(base: Path) -> list[list[Path]]:
    """Return the folders of packages of each environment that tox has made."""
    return [sorted(venv.glob("lib*/python3*/site-packages")) for venv in sorted(base.glob("new/*/.tox/*"))]


def look(folders: Sequence[Path], name: str, tree: Path) -> Iterator[Installed]:
    """Yield the distributions of a name in an environment; the first of its folders wins."""
    for folder in dict.fromkeys(path.resolve() for path in folders):
        found = next(entries(folder, name), None)
        if found:
            yield examine(found, folder, tree)
            return


def entries(folder: Path, name: str) -> Iterator[Path]:
    """Yield the records of a distribution in a folder of packages; setuptools' links to trees come first."""
    wanted = canonical(name)
    endings: dict[str, list[Path]] = {".egg-link": [], ".dist-info": [], ".egg-info": []}
    for path in folder.iterdir():
        name_of = path.stem if path.suffix == ".egg-link" else path.stem.split("-")[0]
        if path.suffix in endings and canonical(name_of) == wanted:
            endings[path.suffix].append(path)
    for found in endings.values():
        yield from sorted(found)


def canonical(name: str) -> str:
    """Return a distribution's name as the package index compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def examine(record: Path, folder: Path, tree: Path) -> Installed:
    """Return the origin of a distribution."""
    if record.suffix == ".egg-link":
        target = Path(record.read_text().splitlines()[0].strip())
        return Installed("as checked out", folder, f"from {target}", inside(target, tree))
    version = version_of(record)
    source, editable = direct_url(record)
    if source is None and built_from(record) == head(tree):
        source = str(tree)
    if source is None:
        return Installed(version, folder, "from a package index or the distribution's packages", False)
    if not inside(Path(source), tree):
        return Installed(version, folder, f"from {source}", False)
    differing = [] if editable else differing_files(record, folder, tree)
    if differing:
        return Installed(version, folder, f"from {source}, but is older than it: {differing[0]} differs", False)
    hidden = hidden_by(record, folder) if editable else None
    if hidden:
        return Installed(version, folder, f"from {source}, but Python finds {hidden} first", False)
    return Installed(version, folder, f"from {source}", True)


def hidden_by(record: Path, folder: Path) -> Path | None:
    """Return the package that is imported instead of a tree installed by a finder, which Python asks after its path."""
    environment, listed = folder.parents[2] / "pyvenv.cfg", record / "RECORD"
    if not listed.is_file():
        return None
    with_system = not environment.is_file() or re.search(
        r"^include-system-site-packages\s*=\s*true", environment.read_text(), re.M)
    names: list[str] = []
    for line in listed.read_text(errors="replace").splitlines():
        finder = folder / line.split(",")[0]
        if re.fullmatch(r"__editable___.*_finder\.py", finder.name) and finder.is_file():
            mapping = re.search(r"^MAPPING[^=]*=\s*(\{.*?\})", finder.read_text(errors="replace"), re.M | re.S)
            names += re.findall(r"['\"]([\w.]+)['\"]\s*:", mapping.group(1)) if mapping else []
    for packages in [folder, *(system_environment()[0] if with_system else [])]:
        for place in (packages / form for name in names for form in (name, f"{name}.py")):
            if place.exists():
                return place
    return None


def inside(path: Path, tree: Path) -> bool:
    """Return whether a path is the tree or a folder in it."""
    path, tree = path.resolve(), tree.resolve()
    return path == tree or tree in path.parents


def version_of(record: Path) -> str:
    """Return the version that a record tells, or "?"."""
    for file in (record / "METADATA", record / "PKG-INFO", record):
        if file.is_file():
            return str(HeaderParser().parsestr(file.read_text(errors="replace")).get("Version", "?"))[:60]
    return "?"


def direct_url(record: Path) -> tuple[str | None, bool]:
    """Return the folder that pip has installed from, or None, and whether its files are used in place (PEP 610)."""
    try:
        told = json.loads((record / "direct_url.json").read_text())
        url = urlsplit(told["url"])
        if url.scheme != "file":
            return told["url"], False
        return unquote(url.path), bool(told.get("dir_info", {}).get("editable"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, False


def built_from(record: Path) -> str:
    """Return the commit, abbreviated, that pbr has built a development version from; old pips write no origin."""
    try:
        told = json.loads((record / "pbr.json").read_text())
        return "" if told["is_release"] else str(told["git_version"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def head(tree: Path) -> str:
    """Return the commit that is checked out in a tree, abbreviated as pbr does."""
    return git(tree, "log", "-n1", "--pretty=format:%h").stdout.strip()


def differing_files(record: Path, folder: Path, tree: Path) -> list[str]:
    """Return the installed modules that are not what the tree has under the same name."""
    listed = record / "RECORD"
    if not listed.is_file():
        return []
    differing = []
    for line in listed.read_text(errors="replace").splitlines():
        name = line.split(",")[0].strip('"')
        if not name.endswith(".py") or name.startswith(("..", "/")):
            continue
        for source in (tree / name, tree / "src" / name, tree / "lib" / name):
            if source.is_file() and is_tracked(source, tree):
                if not same(source, folder / name):
                    differing.append(name)
                break
    return differing


def is_tracked(file: Path, tree: Path) -> bool:
    """Return whether git knows a file of a tree; what a build has made there may differ."""
    return str(file.relative_to(tree)) in tracked_files(tree)


@functools.lru_cache(maxsize=None)
def tracked_files(tree: Path) -> frozenset[str]:
    """Return the files of a tree that git knows."""
    return frozenset(git(tree, "ls-files", "-z").stdout.split("\0"))


def same(first: Path, second: Path) -> bool:
    """Return whether two files hold the same bytes."""
    try:
        return first.read_bytes() == second.read_bytes()
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
