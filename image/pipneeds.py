"""Which pip packages a devstack build will ask for, read as text from the files of devstack and of the projects.

Pure functions: they run none of the code that they read. A build asks in several ways, and the cache must answer each:
projects and their extras under the upper constraints of the branch; packages that devstack itself installs; projects
without such a branch (tempest) under master's constraints; the tox environments in which devstack runs a project; and
the build requirements of projects, of which pip takes the newest versions without constraints.
"""

from __future__ import annotations

import base64
import configparser
import gzip
import io
import re
import shlex
import tomllib
import zlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from gateprocess import GateError

REQUIREMENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
REQUIREMENT = re.compile(r"(?=.*[A-Za-z])[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9._,\s-]*\])?\s*([<>=!~;(][^$]*)?")
EXTRAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[^\]]*\])")
CONSTRAINED = re.compile("constraint", re.IGNORECASE)  # in a tox.ini
LISTED = "what devstack lists"
TOOLS = ("pip", "setuptools", "wheel")  # what pip itself uses if a project does not say how it is built
MAX_TEXT = 64 * 1024 * 1024  # bytes of the projects' files, all together
# In devstack's scripts: pip_install 'tox<4', pip_install_gr psutil, $VENV/bin/pip install bindep
CALL = re.compile(r"(?:^|[\s/;&|(])(pip_install(?:_gr)?|pip3?[ \t]+(?:install|download))[ \t]+([^;&|#\n]+)")
WITH_EXTRAS = re.compile(
    r"pip_install_gr_extras[ \t]+([\w.-]+)[ \t]+(?:\$\(join_extras \"?\$\{(\w+)\[@\]\}\"?\)|([\w,.-]+))")
WITH_ARGUMENT = ("-c", "-r", "-e", "-t", "-i", "--constraint", "--requirement", "--editable", "--target", "--python")
# tox -evenv -- tempest, tox -revenv-tempest --notest, tox -r --notest -efull
TOX = re.compile(r"(?:^|[\s/;&|(])tox(?=[ \t]+-)((?:[ \t]+(?!--\s)[^\s;&|]+)+)", re.MULTILINE)
TOX_ENVIRONMENTS = re.compile(r"\s-[a-z]*?e[ \t=]*([\w.,-]+)")
TOX_REFERENCE = re.compile(r"\{\[([^\]]+)\](\w+)\}")
TOX_FILE = re.compile(r"(?:-r|--requirement)[ \t=]*(?:\{toxinidir\}/)?(\S+)")
ASSIGNMENT = re.compile(r"""\b(\w+)\+?=(?:"([^"$`]*)"|'([^']*)'|"?\$\{\w+:-"?([^}$"]*)"?\}"?|([\w.+:@/~<>=!,-]+))""")
VARIABLE = re.compile(r"\$\{?(\w+)\}?")


@dataclass(frozen=True)
class PipSet:
    """Requirements for one call of pip, under the upper constraints of a branch unless that is empty."""

    name: str
    requirements: tuple[str, ...]
    constraints: str


@dataclass(frozen=True)
class ProjectFiles:
    """The files of a project, {name: text}; has_branch is False if they are from its default branch."""

    name: str
    has_branch: bool
    files: Mapping[str, str]


# --- requirements ---------------------------------------------------------------------------------------------------


def parse_requirements(text: str) -> list[str]:
    """Return the requirements of a pip requirements file: no comments, no options, no links."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if REQUIREMENT_NAME.match(line) and "://" not in line.partition(";")[0]]


def pinned(requirements: Iterable[str], constraints: str) -> list[str]:
    """Return requirements with the versions of an upper-constraints file, sorted, each once.

    Each pin keeps the requirement's extras (`oslo.db[mysql]`) and marker (`; python_version...`); a requirement without
    a constraint stays as it is. Empty if there are no constraints, because the requirements project is not cached.
    """
    pins: dict[str, list[str]] = {}
    for line in parse_requirements(constraints):
        pins.setdefault(project_name(line), []).append(line)
    found: set[str] = set()
    for requirement in requirements if pins else ():
        extras, marker = EXTRAS.match(requirement), requirement.partition(";")[2].strip()
        for pin in pins.get(project_name(requirement), [requirement]):
            found.add(_with_marker(_with_extras(pin, extras[1] if extras else ""), marker))
    return in_order(found)


def in_order(requirements: Iterable[str]) -> list[str]:
    """Return requirements sorted, each once, in the same order in each run."""
    return sorted(set(requirements), key=lambda requirement: (requirement.lower(), requirement))


def project_name(requirement: str) -> str:
    """Return the name of a requirement as PEP 503 compares names."""
    name = REQUIREMENT_NAME.match(requirement)
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def _with_extras(pin: str, extras: str) -> str:
    name = REQUIREMENT_NAME.match(pin)
    return pin if not extras or not name or EXTRAS.match(pin) else f"{name[0]}{extras}{pin[name.end():]}"


def _with_marker(pin: str, marker: str) -> str:
    version, _, own = (part.strip() for part in pin.partition(";"))
    markers = [one for one in dict.fromkeys((own, marker)) if one]
    if not markers:
        return version
    return f"{version};{markers[0] if len(markers) == 1 else ' and '.join(f'({one})' for one in markers)}"


# --- files of projects ----------------------------------------------------------------------------------------------


def unpack(blob: str) -> list[ProjectFiles]:
    """Return the projects that show_needs of image/steps.sh printed; GateError if its output cannot be read."""
    try:
        text = _unzip(base64.b64decode(blob, validate=True)).decode()
        found: dict[tuple[str, str], dict[str, str]] = {}
        for line in text.splitlines():
            project, kind, file, content = line.split(" ")
            found.setdefault((project, kind), {})[file] = base64.b64decode(content).decode(errors="replace")
    except (ValueError, OSError, EOFError, zlib.error) as err:
        raise GateError(f"the files of projects could not be read: {err}") from err
    return [ProjectFiles(project, kind == "branch", files) for (project, kind), files in found.items()]


def _unzip(data: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        return file.read(MAX_TEXT)


def requirements_of(project: ProjectFiles) -> list[str]:
    """Return what a project requires, whichever of its files says so."""
    config, toml = _setup_cfg(project), _pyproject(project)
    lines = parse_requirements(project.files.get("requirements.txt", ""))
    lines += parse_requirements(config.get("options", {}).get("install_requires", ""))
    return lines + _words(_table(toml, "project").get("dependencies"))


def extras_of(project: ProjectFiles) -> dict[str, list[str]]:
    """Return what the extras of a project require, {extra: requirements}."""
    config, found = _setup_cfg(project), {}
    for section in ("extras", "options.extras_require"):
        for extra, text in config.get(section, {}).items():
            found[extra] = [re.sub(r"\s*:\s*", ";", line, count=1) for line in parse_requirements(text)]  # pbr's marker
    for extra, listed in _table(_pyproject(project), "project", "optional-dependencies").items():
        found[extra] = _words(listed)
    return {extra: lines for extra, lines in found.items() if lines}


def build_requirements_of(project: ProjectFiles) -> list[str]:
    """Return the build requirements of a project."""
    system = _table(_pyproject(project), "build-system")
    lines = _words(system.get("requires")) or list(TOOLS[1:])
    if str(system.get("build-backend", "")).startswith("hatchling"):
        lines.append("editables")  # pip asks for it when it installs with -e
    lines += parse_requirements(_setup_cfg(project).get("options", {}).get("setup_requires", ""))
    for listed in re.findall(r"setup_requires\s*=\s*\[([^\]]*)\]", project.files.get("setup.py", "")):
        lines += parse_requirements("\n".join(re.findall(r"['\"]([^'\"]+)['\"]", listed)))
    return list(dict.fromkeys(lines))


def tox_requirements_of(project: ProjectFiles, environments: Iterable[str]) -> list[str]:
    """Return what tox installs into environments of a project's tox.ini; one that is not there is as [testenv]."""
    sections = _sections(project, "tox.ini")
    lines = deque(f"{{[testenv:{environment}]deps}}" for environment in environments)
    found: list[str] = []
    seen: set[tuple[str, str]] = set()
    while lines:
        line = lines.popleft()
        if reference := TOX_REFERENCE.search(line):
            section, key = place = reference[1], reference[2]
            inherited = sections.get("testenv", {}).get(key, "") if section.startswith("testenv:") else ""
            if place not in seen:
                lines.extendleft(reversed(sections.get(section, {}).get(key, inherited).splitlines()))
            seen.add(place)
        elif file := TOX_FILE.match(line.strip()):
            found += parse_requirements(project.files.get(file[1], ""))
        else:
            found += parse_requirements(line)
    return found


def _setup_cfg(project: ProjectFiles) -> dict[str, dict[str, str]]:
    return _sections(project, "setup.cfg")


def _sections(project: ProjectFiles, file: str) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser(strict=False, delimiters=("=",))
    try:
        parser.read_string(project.files.get(file, ""))
    except configparser.Error:
        return {}
    return {section: dict(parser.items(section)) for section in parser.sections()}


def _pyproject(project: ProjectFiles) -> dict[str, Any]:
    try:
        return tomllib.loads(project.files.get("pyproject.toml", ""))
    except tomllib.TOMLDecodeError:
        return {}


def _table(toml: Mapping[str, Any], *names: str) -> dict[str, Any]:
    found: Any = toml
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def _words(listed: object) -> list[str]:
    lines = [line for line in listed if isinstance(line, str)] if isinstance(listed, list) else []
    return parse_requirements("\n".join(lines))


# --- devstack's own words -------------------------------------------------------------------------------------------


def words_of(scripts: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return what devstack's scripts install with pip by name, (under the upper constraints, without), each in order.

    pip_install and its kin apply the constraints, pip itself does not.
    """
    constrained: set[str] = set()
    free: set[str] = set()
    for script in scripts:
        text = code_of(script)
        for command, arguments in CALL.findall(text):
            is_free = not command.startswith("pip_install") and not re.search(r"(^|\s)-c\s", arguments)
            (free if is_free else constrained).update(
                word for word in arguments_of(arguments, text) if REQUIREMENT.fullmatch(word))
        for name, array, listed in WITH_EXTRAS.findall(text):
            extras = " ".join(re.findall(rf"\b{array}\+?=\(([^)]*)\)", text)) if array else listed
            names = sorted(set(re.findall(r"(?<![\w${])[A-Za-z][\w.-]*(?![\w\[])", extras)) - {array})
            constrained.add(f"{name}[{','.join(names)}]" if names else name)
    return in_order(constrained), in_order(free)


def tox_environments(script: str) -> list[str]:
    """Return the names of the tox environments that a shell script runs, sorted, each once."""
    return sorted({name for arguments in TOX.findall(code_of(script))
                   for names in TOX_ENVIRONMENTS.findall(arguments) for name in names.split(",") if name})


def code_of(script: str) -> str:
    """Return a shell script without its comment lines, and with continued lines joined."""
    return re.sub(r"^[ \t]*#.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE)


def arguments_of(arguments: str, text: str) -> list[str]:
    """Return the words of a command's arguments, without its options.

    A variable stands for each literal value or default that the text gives it; words with other variables are left out.
    """
    values: dict[str, set[str]] = {}
    for name, *literals in ASSIGNMENT.findall(text):
        values.setdefault(name, set()).update(filter(None, literals))
    try:
        words = shlex.split(re.sub(r"\$\([^)]*\)?", "$", arguments))
    except ValueError:
        return []
    found: list[str] = []
    for previous, word in zip(["", *words], words, strict=False):
        if previous not in WITH_ARGUMENT:
            found += [one for expanded in _expand(word, values) for one in expanded.split() if not one.startswith("-")]
    return found


def _expand(word: str, values: Mapping[str, Iterable[str]]) -> list[str]:
    variable = VARIABLE.search(word)
    if not variable:
        return [] if "$" in word or "`" in word else [word]
    literals = sorted(values.get(variable[1], ()))
    rest = _expand(word[variable.end():], values)
    return [f"{word[:variable.start()]}{literal}{end}" for literal in literals for end in rest]


# --- what pip is asked for ------------------------------------------------------------------------------------------


def sets_of(
    branch: str, projects: Sequence[ProjectFiles], own: tuple[Sequence[str], Sequence[str]],
    own_builds: Sequence[ProjectFiles] = (), listed: Sequence[str] | None = None,
    toxes: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> list[PipSet]:
    """Return what to ask pip for, so that a build of a branch finds all of it in the cache.

    own is what devstack installs by name (words_of), own_builds what it builds in its own tree; listed is the list in
    an old devstack, which replaces the projects' requirements; toxes are the tox environments that it runs, {project
    without its namespace: names}. Sets without constraints are the same for all branches: get each once.
    """
    here = [project for project in projects if project.has_branch]
    others = [project for project in projects if not project.has_branch]
    found = [PipSet("what projects require", tuple(_all(requirements_of(one) for one in here)), branch)]
    if listed is not None:
        found = [PipSet(LISTED, tuple(listed), branch)]
    once, others_of_a_name = _by_name(own[0])
    found += [PipSet("what devstack installs", tuple(once), branch),
              PipSet("what projects without this branch require", tuple(_all(requirements_of(one) for one in others)),
                     "master")]
    found += [PipSet(f"what tox installs for {one.name}", tuple(in_order(tox_requirements_of(one, names))),
                     _constraints_of(one, branch))
              for one in projects if (names := toxes.get(one.name.rpartition("/")[2]))]
    found += [PipSet("what devstack installs", (word,), branch) for word in others_of_a_name]
    found += [PipSet("what devstack installs", (word,), "") for word in own[1]]
    found += [PipSet(f"what {one.name} requires", tuple(in_order(requirements_of(one))), "") for one in projects
              if "tox.ini" in one.files and not CONSTRAINED.search(one.files["tox.ini"])]
    found += [PipSet("pip's own tools", (tool,), "") for tool in TOOLS]
    found += [PipSet(f"what builds {one.name}", tuple(build_requirements_of(one)), "")
              for one in [*projects, *own_builds]]
    # They come last, since many, large packages are among them, and few builds ask for any.
    found += [PipSet(f"extras of {one.name}", tuple(_all(extras_of(one).values())), _constraints_of(one, branch))
              for one in projects]
    unique = {(one.requirements, one.constraints): one for one in reversed(found) if one.requirements}
    return list(reversed(unique.values()))


def _constraints_of(project: ProjectFiles, branch: str) -> str:
    return branch if project.has_branch else "master"


def _by_name(requirements: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the requirements whose project is named only once, and the others, which may exclude each other."""
    names = [project_name(requirement) for requirement in requirements]
    once = [names.count(name) == 1 for name in names]
    return ([one for one, alone in zip(requirements, once, strict=True) if alone],
            [one for one, alone in zip(requirements, once, strict=True) if not alone])


def _all(lists: Iterable[Sequence[str]]) -> list[str]:
    return in_order(line for lines in lists for line in lines)
