#!/usr/bin/env python3
"""Print what a devstack would clone by itself with the settings of a gate job.

Usage: devstackclones.py DEVSTACK

Reads the checkout DEVSTACK without running it, and takes the job's settings from the environment: ENABLED_SERVICES,
OVERRIDE_ENABLED_SERVICES, DEVSTACK_LOCAL_CONFIG, DEVSTACK_LOCALCONF, LIBS_FROM_GIT, DEVSTACK_PROJECT_FROM_GIT,
GIT_BASE. Prints a line for each repository: project, git base, branch or tag, folder beside devstack; "-" for a base or
branch that nobody named. A condition that cannot be known counts as true: one tree too many is better than a clone that
fails. Exit code: 0, or 2 if DEVSTACK is not a devstack.

Needs only Python 3.8, since it runs on test nodes.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

DEFAULT_BASE = "https://opendev.org"
# Hosts that have or had OpenStack's repositories: the job's git base has the same projects.
OPENSTACK_HOSTS = ("opendev.org", "review.opendev.org", "git.openstack.org", "review.openstack.org", "github.com",
                   "git.opendev.org")
SECTION = re.compile(r"\[\[.+\|.*\]\]")  # as devstack has it: a condition is none
BEFORE_COMMAND = frozenset(("then", "do", "else", "{", "!"))
MAX_LINES = 20  # of one word in quotes
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
PROJECT = re.compile(rf"{NAME}(?:/{NAME})*")
ASSIGNMENT = re.compile(r"""(?s)^\s*(?:export\s+|declare\s+-\w+\s+)?(\w+(?:\[["']?[\w.-]+["']?\])?)(\+?)=(.*)$""")
DEFAULTED = re.compile(r"^\$\{\w+:?[-=](.*)\}$")
CLONE = re.compile(r"\bgit_clone\s+\"?\$\{?(\w+_REPO)\}?\"?\s+\"?(\S+?)\"?(?:\s|$)")
USED_FROM_GIT = re.compile(r"""use_library_from_git\s+["']?([\w.-]+)""")
ON_TEST = re.compile(r"is_service_enabled\s+([^;&|\]]+)")


class Clone(NamedTuple):
    """A repository that devstack would clone."""

    project: str
    base: str
    ref: str
    folder: str


@dataclass
class Settings:
    """The job's settings of devstack: services in order, plugins (name, URL, ref), libraries, other assignments."""

    git_base: str
    services: list[str] = field(default_factory=list)
    plugins: list[tuple[str, str, str]] = field(default_factory=list)
    libraries: set[str] = field(default_factory=set)
    values: dict[str, str] = field(default_factory=dict)

    def enable(self, names: Sequence[str]) -> None:
        """Add services; remove those with a minus sign, as devstack does."""
        for name in names:
            if name.startswith("-"):
                self.disable([name[1:]])
            elif re.fullmatch(r"[\w.-]+", name) and name not in self.services:
                self.services.append(name)

    def disable(self, names: Sequence[str]) -> None:
        """Remove services."""
        self.services = [name for name in self.services if name not in names]


def main(argv: Sequence[str] | None = None) -> int:
    """Print the clones."""
    arguments = sys.argv[1:] if argv is None else argv
    if len(arguments) != 1 or not (Path(arguments[0]) / "stackrc").is_file():
        print("devstackclones.py: DEVSTACK: expected the folder of a devstack with a stackrc", file=sys.stderr)
        return 2
    devstack = Path(arguments[0])
    for clone in find_clones(devstack, os.environ):
        print(*clone)
    return 0


def find_clones(devstack: Path, environ: Mapping[str, str]) -> list[Clone]:
    """Return what this devstack would clone, each folder once."""
    stackrc = dict(_assignments(_read(devstack / "stackrc")))
    settings = read_settings(devstack, environ)
    found: dict[str, Clone] = {}
    for name, url, ref in settings.plugins:
        _add(found, settings, url, name, ref, anywhere=True)
    for name in sorted(settings.libraries):
        _add(found, settings, stackrc.get(f"GITREPO[{name}]", ""), name)
    for path in [devstack / "stack.sh", *sorted((devstack / "lib").glob("*"))]:
        if path.is_file() and _is_wanted(path, devstack, settings):
            text = _read(path)
            folders = {**stackrc, **dict(_assignments(text))}
            for repository, folder in _clones_in(text, devstack, settings):
                url = settings.values.get(repository) or stackrc.get(repository, "")
                _add(found, settings, url, _folder(folder, folders))
    return list(found.values())


# --- the job's settings ---


def read_settings(devstack: Path, environ: Mapping[str, str]) -> Settings:
    """Return devstack's settings: its defaults, then the job's variables, then the job's lines of local.conf."""
    settings = Settings(environ.get("GIT_BASE", "").rstrip("/") or DEFAULT_BASE)
    for line in _read(devstack / "stackrc").splitlines():
        found = ASSIGNMENT.match(line)
        if found and found.group(1) == "ENABLED_SERVICES":
            settings.enable(_words(found.group(3)))
    if environ.get("OVERRIDE_ENABLED_SERVICES"):
        settings.services = []
    for name in ("OVERRIDE_ENABLED_SERVICES", "ENABLED_SERVICES"):
        settings.enable(_words(environ.get(name, "")))
    if environ.get("DEVSTACK_GATE_TEMPEST") == "1":
        settings.enable(["tempest"])
    for name in ("LIBS_FROM_GIT", "DEVSTACK_PROJECT_FROM_GIT"):
        settings.libraries.update(_words(environ.get(name, "")))
    for name in ("DEVSTACK_LOCAL_CONFIG", "DEVSTACK_LOCALCONF"):
        for words in _commands(environ.get(name, "")):
            _obey(words, settings)
    settings.services = [name for name in settings.services if name]
    if "ALL" in settings.libraries:
        settings.libraries = {name[8:-1] for name, _ in _assignments(_read(devstack / "stackrc"))
                              if name.startswith("GITREPO[")}
    return settings


def _commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of localrc, also of those that stand behind a condition."""
    lines = list(_localrc_lines(text))
    while lines:
        words, count = _words_of(lines)
        del lines[:count]
        command: list[str] = []
        for word in [*words, ";"]:
            if word.strip(";&|") and word not in BEFORE_COMMAND:
                command.append(word)
            elif command:
                yield command
                command = []


def _localrc_lines(text: str) -> Iterator[str]:
    """Yield the lines that devstack's shell reads, but not those in sections for services' files."""
    ours = True
    for line in re.sub(r"^(?!\s*#)(.*)\\\n", r"\1", text, flags=re.MULTILINE).splitlines():
        if SECTION.match(line):
            ours = line.startswith("[[local|localrc]]")
        elif ours:
            yield line


def _words_of(lines: Sequence[str]) -> tuple[list[str], int]:
    """Return the words of the first line, and how many lines they are: a word in quotes may go on in the next ones."""
    for count in range(1, min(len(lines), MAX_LINES) + 1):
        reader = shlex.shlex("\n".join(lines[:count]), posix=True, punctuation_chars=";&|")
        reader.whitespace_split = True
        try:
            return list(reader), count
        except ValueError:
            continue
    return [], 1


def _obey(words: Sequence[str], settings: Settings) -> None:
    """Apply a command of localrc to the settings."""
    rest = [_expand(word, settings) for word in words[1:]]
    services = [name for word in rest for name in _words(word)]
    if words[0] == "enable_service":
        settings.enable(services)
    elif words[0] == "disable_service":
        settings.disable(services)
    elif words[0] == "disable_all_services":
        settings.services = []
    elif words[0] == "enable_plugin" and rest[1:]:
        name, url, ref, *_ = [*rest, "-"]
        settings.plugins.append((name, url, ref))
    else:
        _assign(words[1] if words[0] == "export" and rest else words[0], settings)


def _assign(word: str, settings: Settings) -> None:
    found = ASSIGNMENT.match(word)
    if not found:
        return
    name, more, value = found.groups()
    if name == "ENABLED_SERVICES":
        if not more and "ENABLED_SERVICES" not in value:
            settings.services = []
        settings.enable(_words(value))
    elif name == "LIBS_FROM_GIT":
        settings.libraries.update(_words(value))
    else:
        settings.values[name] = _expand(value, settings)


def _words(value: str) -> list[str]:
    """Return the names in a list separated by commas or blanks, without those that a shell would have to expand."""
    return [word for word in re.split(r"[,\s\"']+", value) if word and "$" not in word]


def _expand(word: str, settings: Settings) -> str:
    return re.sub(r"\$\{GIT_BASE(?::?-[^}]*)?\}|\$GIT_BASE\b", settings.git_base.replace("\\", r"\\"), word)


# --- devstack's files ---


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _assignments(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and values, ${NAME:-VALUE} as VALUE, which is its default."""
    for line in text.splitlines():
        found = ASSIGNMENT.match(line)
        if found:
            value = found.group(3).split(" #")[0].strip().strip("\"'")
            default = DEFAULTED.match(value)
            yield re.sub(r"[\"']", "", found.group(1)), default.group(1) if default else value


def _is_wanted(path: Path, devstack: Path, settings: Settings) -> bool:
    """Return whether the service of a file in lib is on; a file without a service counts as on."""
    service = path.name.partition("-")[0]
    if path.name == "stack.sh" or path.parent != devstack / "lib":
        return True
    return not _is_service(service, devstack) or _is_on(service, devstack, settings)


def _is_service(name: str, devstack: Path) -> bool:
    paths = [devstack / "stack.sh", devstack / "functions", devstack / "functions-common",
             *(devstack / "extras.d").glob("*.sh")]
    texts = [_read(path) for path in paths]
    return any(re.search(rf"is_service_enabled[^;\n]*\b{re.escape(name)}\b", text) for text in texts)


def _is_on(name: str, devstack: Path, settings: Settings) -> bool:
    """Return whether a service is on, by its name or by a prefix that devstack knows for it: n- is nova."""
    if name in settings.services:
        return True
    rules = []
    for path in [devstack / "functions", devstack / "functions-common", *sorted((devstack / "lib").glob("*"))]:
        text = _read(path) if path.is_file() else ""
        rules += re.findall(rf"""==\s*"?{re.escape(name)}"?\s*&&[^\n]*?=~\s*,?"([\w-]+)"(,?)""", text)
        body = re.search(rf"function is_{re.escape(name)}_enabled\b.*?\n\}}", text, re.DOTALL)
        if body:
            rules += re.findall(r"""ENABLED_SERVICES\},?\s*=~\s*,?"([\w-]+)"(,?)""", body.group())
    return any(service == start if end else service.startswith(start)
               for start, end in rules for service in settings.services)


def _clones_in(text: str, devstack: Path, settings: Settings) -> Iterator[tuple[str, str]]:
    """Yield the repository's variable and the folder of each git_clone whose conditions hold or cannot be known."""
    conditions: list[bool] = []
    for line in text.replace("\\\n", " ").splitlines():
        words = line.strip()
        if words.startswith("#"):
            continue
        if re.match(r"if\b", words):
            conditions.append(_holds(words, devstack, settings))
            if re.search(r";\s*fi\b", words):
                conditions.pop()
        elif conditions and re.match(r"(elif|else)\b", words):
            conditions[-1] = True
        elif conditions and re.match(r"fi\b", words):
            conditions.pop()
        elif re.match(r"(function\s|\w+\s*\(\)|\}$)", line):
            conditions = []
        found = CLONE.search(words)
        if found and all(conditions):
            yield found.group(1), found.group(2)


def _holds(condition: str, devstack: Path, settings: Settings) -> bool:
    """Return whether a condition holds; True if that cannot be known."""
    library = USED_FROM_GIT.search(condition)
    if library:
        return library.group(1) in settings.libraries
    parts = re.split(r"&&|\|\|", re.sub(r"^if\s+|;\s*then.*$", "", condition))
    tests = [ON_TEST.fullmatch(part.strip()) for part in parts]
    if not all(tests):
        return True
    on = [any(_is_on(name, devstack, settings) for name in _words(test.group(1))) for test in tests if test]
    return all(on) if "&&" in condition else any(on)


def _folder(word: str, values: Mapping[str, str]) -> str:
    """Return the name of a folder that lies directly in $DEST, or ''."""
    for _ in range(3):
        word = re.sub(r"\$\{?(?!DEST\b)(\w+)\}?", lambda found: values.get(found.group(1), "$?"), word)
    found = re.fullmatch(rf"\$\{{?DEST\}}?/({NAME})", word)
    return found.group(1) if found else ""


def _add(found: dict[str, Clone], settings: Settings, url: str, folder: str, ref: str = "-", *,
         anywhere: bool = False) -> None:
    """Add the repository of a URL if it is below the job's git base or OpenStack's, or if it may be from anywhere."""
    url = re.sub(r"\.git/?$", "", _expand(url, settings)).rstrip("/")
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    if url.startswith(settings.git_base + "/"):
        base, project = "-", url[len(settings.git_base) + 1:]
    elif host in OPENSTACK_HOSTS and path.startswith("openstack"):
        base, project = "-", path
    elif anywhere:
        base, project = f"{scheme}://{host}", path
    else:
        return
    if ref.startswith("refs/"):  # devstack fetches it in any case
        ref = "-"
    if all([PROJECT.fullmatch(project), re.fullmatch(NAME, folder), re.fullmatch(r"[\w./+@-]+", ref),
            re.fullmatch(r"-|[\w+.-]+://[\w.:@%-]+", base)]):
        found.setdefault(folder, Clone(project, base, ref, folder))


if __name__ == "__main__":
    sys.exit(main())
