"""Makes reproduce.sh, which runs a test again: settings, functions, what was tested. Secrets stay out of it.

Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence

from console import printable
from hidesecrets import find, left_out, sounds_secret

LEFT_OUT = b"left-out"
CHECK_SECONDS = 20
SIGNATURES = "DEVSTACK_GATE_KNOWN_FAILURES"
HEAD = """#!/usr/bin/env bash
# Runs this test again: [WORKSPACE=FOLDER] [DEVSTACK_GATE=FOLDER] reproduce.sh [[USER@]HOST]
# DEVSTACK_GATE is a checkout of devstack-gate.
# READ IT BEFORE YOU RUN IT: it comes from a machine on which the change under test was root.
"""


def reproduce(
    settings: Sequence[tuple[str, bytes]],
    functions: Sequence[tuple[str, bytes]],
    workspace: str,
    gate: str,
    tested: bytes,
) -> bytes:
    """Return the script: bash can parse it, whatever the run was given, and it says what it leaves out."""
    lines: list[bytes] = []
    missing: list[str] = []
    inside = workspace.rstrip("/").encode("utf-8", "surrogateescape") + b"/"
    for name, value in settings:
        if name == SIGNATURES and not value.startswith(inside):  # they explain failures, and change none
            missing.append(f"{name}, a file of the machine that ran this")
            continue
        safe, names = _setting(name, value)
        missing += names
        word = b'"$folder"/' + _quoted(safe[len(inside) :]) if safe.startswith(inside) else _quoted(safe)
        lines.append(b"export %s=%s" % (name.encode(), word))
    for name, code in functions:
        safe = left_out(code, LEFT_OUT, code=True)
        if safe != code:
            missing.append(f"words in the function {name}")
        if not _parses(safe) or not _parses(b"export -f " + _quoted(name.encode()) + b"\n"):
            missing.append(f"the function {name}, which cannot be read without them")
            continue
        lines += [safe.rstrip(b"\n"), b"export -f " + _quoted(name.encode())]
    said = [f"# Left out: {_one_line(one)}" for one in dict.fromkeys(missing)]
    tail = [
        f'export WORKSPACE=$folder\nmkdir -p -- "$WORKSPACE"\ngate=${{DEVSTACK_GATE:-{quoted(gate)}}}\n'
        'exec "$gate/devstack-vm-gate-wrap.sh" "$@"\n\n# What was tested:'
    ]
    comments = ["# " + _one_line(line) for line in tested.decode("utf-8", "replace").splitlines() if line.strip()]
    head = HEAD + "\n".join([*said, "", f"folder=${{WORKSPACE:-{quoted(workspace)}}}"])
    return b"\n".join(
        [
            head.encode("utf-8", "surrogateescape"),
            *lines,
            *(one.encode("utf-8", "surrogateescape") for one in tail + comments),
            b"",
        ]
    )


def _setting(name: str, value: bytes) -> tuple[bytes, list[str]]:
    if sounds_secret(name.encode()):
        return LEFT_OUT, [name]
    names = [place.name.decode("ascii", "replace") for place in find(value)]
    return left_out(value, LEFT_OUT), [f"{one} in {name}" for one in names]


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def quoted(text: str) -> str:
    """Return a text as one word of bash."""
    if text and not re.search(r"[^\w@%+=:,./-]", text, re.A):
        return text
    return "'" + text.replace("'", "'\\''") + "'"


def _quoted(value: bytes) -> bytes:
    return quoted(value.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def _parses(code: bytes) -> bool:
    try:
        done = subprocess.run(
            ["bash", "--norc", "-n"],
            input=code,
            capture_output=True,
            timeout=CHECK_SECONDS,
            check=False,
            env={"PATH": "/usr/bin:/bin"},
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
