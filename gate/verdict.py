"""The outcome of a run for machines to read: logs/verdict.json.

It is one JSON object in UTF-8, of at most 64 KB, with all of these keys:

    version         1: of this description
    status          exit status of the run, 0 to 255
    kind            passed         the test passed; what was tested is in reason
                    test           the test failed, and nothing below explains it
                    source         the code of a project could not be had, or the change does not merge, or it is not in
                                   what was installed
                    configuration  wrong settings
                    machine        the node could not be prepared
                    infrastructure a known failure of that kind, or a hook that ended with status 75
                    timeout        the time limit was reached
                    aborted        a signal ended the run, or nobody read its console any more
    phase           the phase that failed, as on the console's last line; "" if the test passed
    step            the step of devstack-vm-gate.sh that failed, or ""
    reason          the console's last line, without the minutes
    minutes         object: for each phase the minutes it took, a number with one decimal
    change          the change under test, or null: object of project, branch, ref, number, patchset, sha1
                    (each a text, "" if not known)
    node            object of provider, image, name, snapshot (texts, "" if not known)
    tests           object of run, failed, skipped (numbers), names (of the first 20 that failed)
    known_failures  list, at most 20, of objects of name, kind, file (below logs/), line (a number),
                    match (that line), url, text

Texts hold at most 500 printable characters, whatever the run printed. Do not trust the file: it comes from a machine on
which the change was root.

Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from console import printable

NAMES = 20  # of failed tests
MAX_TEXT = 500  # characters
MAX_NUMBER = 10**9
EXIT_SOURCE, EXIT_CONFIGURATION = 3, 2
PARTS = re.compile(
    r"(?:stack|unstack|exercise|grenade)\.sh|tempest.*"
)  # of devstack-vm-gate.sh, whose status is the test's
ESCAPED = re.compile(r'[\x00-\x1f"\\\x7f-\x9f\ud800-\udfff]')
HOOK = re.compile(r".*_hook")


def kind_of(facts: Mapping[str, str], known: list[dict[str, Any]]) -> str:
    """Return the kind of a run's end, from its status, phase and step, and from known failures."""
    status, phase, step = _number(facts.get("status", "")), facts.get("phase", ""), facts.get("step", "")
    stopped, hint = facts.get("stopped", ""), facts.get("hint", "")
    if not status:
        return "passed"
    if stopped:
        return "timeout" if stopped == "timeout" else "aborted"
    if hint == "infrastructure":
        return hint
    own = not HOOK.fullmatch(phase) and not PARTS.fullmatch(step)  # the statuses of hooks and tests mean other things
    kinds = {EXIT_SOURCE: "source", EXIT_CONFIGURATION: "configuration"} if own else {}
    if status in kinds:
        return kinds[status]
    if phase.startswith("setup-"):
        return "machine" if phase == "setup-host" else "source"
    if any(one["kind"] == "infrastructure" for one in known):
        return "infrastructure"
    return "test" if phase else "machine"


def verdict(
    facts: Mapping[str, str],
    node: Mapping[str, str],
    change: Mapping[str, str] | None,
    tests: Mapping[str, Any],
    known: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the content of the file, as the docstring of this module says."""
    return {
        "version": 1,
        "status": _number(facts.get("status", "")) & 255,
        "kind": kind_of(facts, known),
        "phase": text_of(facts.get("phase", "")),
        "step": text_of(facts.get("step", "")),
        "reason": text_of(facts.get("words", "")),
        "minutes": minutes_of(facts.get("minutes", "")),
        "change": {key: text_of(value) for key, value in change.items()} if change else None,
        "node": {
            key: text_of(node.get(f"NODE_{key.upper()}", "")) for key in ("provider", "image", "name", "snapshot")
        },
        "tests": {
            "run": _number(tests.get("run", 0)),
            "failed": _number(tests.get("failed", 0)),
            "skipped": _number(tests.get("skipped", 0)),
            "names": [text_of(name) for name in tests.get("names", [])[:NAMES]],
        },
        "known_failures": [
            {
                key: _number(one[key]) if key == "line" else text_of(one[key])
                for key in ("name", "kind", "file", "line", "match", "url", "text")
            }
            for one in known[:NAMES]
        ],
    }


def written(content: Mapping[str, Any]) -> bytes:
    """Return the file."""
    return (json_of(content) + "\n").encode("utf-8", "replace")


def json_of(value: Any, indent: str = "") -> str:
    """Return a value as JSON; written here since a distribution's smallest Python has no module json."""
    inner = indent + " "
    if isinstance(value, str):
        return '"' + ESCAPED.sub(lambda one: f"\\u{ord(one[0]):04x}", value) + '"'
    if isinstance(value, Mapping):
        items = [f"{inner}{json_of(str(key))}: {json_of(one, inner)}" for key, one in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{indent}}}" if items else "{}"
    if isinstance(value, list):
        return "[\n" + ",\n".join(inner + json_of(one, inner) for one in value) + f"\n{indent}]" if value else "[]"
    return "null" if value is None else str(value)


def text_of(value: object) -> str:
    """Return a text in one line of printable characters, cut to MAX_TEXT."""
    text = " ".join(printable(str(value)).split())[:MAX_TEXT]
    return "".join(char if char.isprintable() else "?" for char in text)


def minutes_of(words: str) -> dict[str, float]:
    """Return the minutes of each phase, as the console's last line has them, added up for each name."""
    minutes: dict[str, float] = {}
    for name, number in re.findall(r"([\w.-]{1,100}) (\d{1,9}\.\d)(?:,|$)", words):
        minutes[name] = round(minutes.get(name, 0.0) + float(number), 1)
    return minutes


def _number(value: object) -> int:
    try:
        return max(0, min(int(str(value)), MAX_NUMBER))
    except ValueError:
        return 0
