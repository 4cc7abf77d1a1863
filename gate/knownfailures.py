#!/usr/bin/env python3
"""Known failures: signatures of what has gone wrong before, looked for in the logs of a run that failed.

    knownfailures.py FILE   check a file of signatures; print them as collectlogs.py wants them

The file is an INI file with a section for each signature. Keys:

    pattern   extended regular expression (grep -E) for one line; required
    files     names of files below logs/, as shell patterns separated by blanks (* also stands for /); required.
              A compressed file is named without its .gz
    url, text what is known: one of them, or both
    kind      infrastructure (the default): not the fault of the change; or test, source, configuration, machine
    until     YYYY-MM-DD, the last day on which it counts; optional

Exit code: 0; 2 the file is wrong: one line on stderr with file, section and key.
Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import configparser
import datetime
import fnmatch
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

KEYS = ("pattern", "files", "url", "text", "kind", "until")
KINDS = ("infrastructure", "test", "source", "configuration", "machine")
MAX_FILE = 1 << 20  # bytes of the file of signatures
MAX_SIGNATURES = 200
MAX_VALUE = 1000  # characters of one value
LIMITED = ("sh", "-c", 'ulimit -v 1000000 && exec "$@"', "sh")  # at most 1 GB of memory for a pattern or a line
CHECK_SECONDS = 10
MAX_READ = 1 << 30  # bytes of one log, decompressed
FILES_AT_ONCE = 500
MAX_MATCHES = 20


class WrongFileError(Exception):
    """The file of signatures is wrong; the message says where."""


def load(name: str) -> list[dict[str, str]]:
    """Return the signatures of a file, each with its section as `name`; raise WrongFileError if it is wrong."""
    parser = configparser.ConfigParser(
        interpolation=None,
        default_section="\n",
        delimiters=("=",),
        comment_prefixes=("#", ";"),
        empty_lines_in_values=False,
    )
    try:
        parser.read_string(_read(name))
    except configparser.MissingSectionHeaderError as err:
        raise WrongFileError(f"line {err.lineno}: expected a section, [name], first") from err
    except (configparser.DuplicateSectionError, configparser.DuplicateOptionError) as err:
        option = getattr(err, "option", "")
        raise WrongFileError(
            f"[{err.section}]{' ' + option if option else ''}: is there twice, line {err.lineno}"
        ) from err
    except configparser.ParsingError as err:
        raise WrongFileError(f"line {err.errors[0][0] if err.errors else '?'}: expected key = value") from err
    if len(parser.sections()) > MAX_SIGNATURES:
        raise WrongFileError(f"expected at most {MAX_SIGNATURES} sections")
    return [{"name": section, **_checked(section, dict(parser[section]))} for section in parser.sections()]


def _read(name: str) -> str:
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise WrongFileError("expected a file")
            data = file.read(MAX_FILE + 1)
    except (OSError, ValueError) as err:
        raise WrongFileError(
            f"cannot be read: {getattr(err, 'strerror', None) or 'expected the name of a file'}"
        ) from err
    if len(data) > MAX_FILE:
        raise WrongFileError("expected at most 1 MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise WrongFileError(f"expected UTF-8: byte {err.start}") from err


def _checked(section: str, values: dict[str, str]) -> dict[str, str]:
    for key, value in values.items():
        if key not in KEYS:
            raise WrongFileError(
                f"[{section}] {key}: no such key, the nearest is {_nearest(key)}; expected {', '.join(KEYS)}"
            )
        if len(value) > MAX_VALUE or not value.isprintable():
            raise WrongFileError(f"[{section}] {key}: expected one line of at most {MAX_VALUE} printable characters")
    for key in ("pattern", "files"):
        if not values.get(key):
            raise WrongFileError(f"[{section}] {key}: expected a value")
    if not (values.get("url") or values.get("text")):
        raise WrongFileError(f"[{section}] url or text: expected what is known about it")
    values.setdefault("kind", KINDS[0])
    if values["kind"] not in KINDS:
        raise WrongFileError(f"[{section}] kind: expected one of {', '.join(KINDS)}, not '{values['kind']}'")
    if "until" in values and not _is_date(values["until"]):
        raise WrongFileError(f"[{section}] until: expected a date as 2026-12-31, not '{values['until']}'")
    reason = _refusal(values["pattern"])
    if reason:
        raise WrongFileError(f"[{section}] pattern: expected an extended regular expression for grep -E: {reason}")
    return values


def _nearest(word: str) -> str:
    """Return the key that has the most pairs of letters in common with a word."""

    def pairs(text: str) -> set[str]:
        return {text[at : at + 2] for at in range(-1, len(text))}

    return max(KEYS, key=lambda key: len(pairs(key) & pairs(word)) / len(pairs(key) | pairs(word)))


def _is_date(text: str) -> bool:
    try:
        return bool(re.fullmatch(r"\d{4}-\d\d-\d\d", text) and datetime.date.fromisoformat(text))
    except ValueError:
        return False


def _refusal(pattern: str) -> str:
    """Return why a pattern is refused, or ''."""
    if re.search(r"(?<!\\)(?:\\\\)*\\[1-9]", pattern):
        return "a reference back to a group may take for ever"
    try:
        done = subprocess.run(
            _grep(pattern), input=b"\n", capture_output=True, timeout=CHECK_SECONDS, check=False, env=_environment()
        )
    except subprocess.TimeoutExpired:
        return f"grep needs more than {CHECK_SECONDS} seconds to read it"
    if done.returncode > 1 or done.returncode < 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        return said[0].partition("grep: ")[2] if said else f"grep ends with {done.returncode}"
    return "it matches an empty line, so it would match anywhere" if done.returncode == 0 else ""


def _grep(pattern: str, *options: str) -> list[str]:
    return [*LIMITED, "grep", "-E", "-a", "-m", "1", *options, "-e", pattern]


def _environment() -> dict[str, str]:
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


def search(signatures: list[dict[str, str]], folder: str, until: float) -> Iterator[dict[str, Any]]:
    """Return the signatures that are found in a folder, each with the first line in the first file.

    The search ends at a time of the monotonic clock, finished or not. Nobody else may write to the folder.
    """
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    files = sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink()
    )
    found = 0
    for signature in signatures:
        if signature.get("until", today) < today or found >= MAX_MATCHES:
            continue
        names = [file for file in files if _is_meant(file, signature["files"])]
        match = _first(signature["pattern"], folder, names, until)
        if match:
            found += 1
            yield {
                "name": signature["name"],
                "kind": signature["kind"],
                "url": signature.get("url", ""),
                "text": signature.get("text", ""),
                **match,
            }


def _is_meant(file: str, patterns: str) -> bool:
    plain = file[:-3] if file.endswith(".gz") else file
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns.split() for name in (file, plain))


def _first(pattern: str, folder: str, names: list[str], until: float) -> dict[str, Any] | None:
    plain = [name for name in names if not name.endswith(".gz")]
    for at in range(0, len(plain), FILES_AT_ONCE):
        lines = _run([*_grep(pattern, "-n", "-H", "-Z"), "--", *plain[at : at + FILES_AT_ONCE]], folder, until)
        if lines:
            file, _, rest = lines.partition(b"\0")
            return _match(file.decode("utf-8", "replace"), rest)
    for name in names:
        if name.endswith(".gz"):
            line = _run(_grep(pattern, "-n"), folder, until, ["gzip", "-dc", "--", name])
            if line:
                return _match(name, line)
    return None


def _match(file: str, rest: bytes) -> dict[str, Any]:
    number, _, line = rest.partition(b"\n")[0].partition(b":")
    return {
        "file": file,
        "line": int(number) if number.isascii() and number.isdigit() else 0,
        "match": line[:MAX_VALUE].decode("utf-8", "replace").strip(),
    }


def _run(grep: list[str], folder: str, until: float, source: list[str] | None = None) -> bytes:
    """Return the first lines that a grep prints, b"" if the time is up; it reads the output of `source`, if given."""
    left = until - time.monotonic()
    if left <= 0:
        return b""
    commands = [*([source, ["head", "-c", str(MAX_READ)]] if source else []), grep, ["head", "-c", str(MAX_FILE)]]
    started: list[subprocess.Popen[bytes]] = []
    stdin: Any = subprocess.DEVNULL
    try:
        for command in commands:
            started.append(
                subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=stdin,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                )
            )
            if stdin != subprocess.DEVNULL:
                stdin.close()
            stdin = started[-1].stdout
        return started[-1].communicate(timeout=left)[0]
    except subprocess.TimeoutExpired:
        return b""
    finally:
        for process in started:
            process.kill()
            process.wait()


def main(arguments: list[str]) -> int:
    """Run as the docstring of this file says."""
    if len(arguments) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    try:
        sys.stdout.write(ascii(load(arguments[0])))
    except WrongFileError as err:
        name = re.sub(r"[^\x20-\x7e]", "?", arguments[0][:200])
        sys.stderr.write(f"{name}: {''.join(char if char.isprintable() else '?' for char in str(err))[:500]}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
