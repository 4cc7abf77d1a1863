"""The parameters of a build, and those that one build passes to another.

From Jenkins' documentation and sources: a job's builds get values for defined parameters only, the defaults or what was
given; others are dropped (SECURITY-170). From the source of the parameterized trigger (2.35.2): predefined parameters
are first read as Java properties; then $NAME and ${NAME} are replaced in each value.
"""

import re
from collections.abc import Mapping, Sequence

from tests.pocketjenkins.jobxml import Parameter

ORDINALS = {"SUCCESS": 0, "UNSTABLE": 1, "FAILURE": 2, "NOT_BUILT": 3, "ABORTED": 4}
ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


class IllegalChoiceError(Exception):
    """A value that is not among a parameter's choices."""


def worse(one: str, other: str) -> str:
    """Return the worse of two results."""
    return max(one, other, key=ORDINALS.__getitem__)


def settle(defined: Sequence[Parameter], given: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of a build; raises IllegalChoiceError with Jenkins' words."""
    settled = {}
    for parameter in defined:
        value = given.get(parameter.name, parameter.default)
        if "Choice" in parameter.kind and value not in parameter.choices:
            raise IllegalChoiceError(f"Illegal choice for parameter {parameter.name}: {value}")
        if "Boolean" in parameter.kind:
            value = "true" if value.lower() in {"true", "on"} else "false"
        settled[parameter.name] = value
    return settled


def replace_macros(text: str, environment: Mapping[str, str]) -> str:
    """Replace $NAME, ${NAME} and $$; an unknown name stays as it is."""

    def value(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        return "$" if name == "$" else environment.get(name, found[0])

    return re.sub(r"\$(\w+|\{[\w.]+\}|\$)", value, text)


def read_properties(text: str) -> dict[str, str]:
    """Read Java properties: comments, continued lines, = or : or a blank after the name, escapes."""
    lines: list[str] = []
    continued = False
    for raw in text.splitlines():
        line = raw.lstrip(" \t\f")
        if not continued and (not line or line[0] in "#!"):
            continue
        if continued:
            lines[-1] += line
        else:
            lines.append(line)
        continued = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        if continued:
            lines[-1] = lines[-1][:-1]
    values = {}
    for line in lines:
        found = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", line, re.DOTALL)
        assert found
        values[_unescape(found[1])] = _unescape(found[2])
    return values


def _unescape(text: str) -> str:
    def value(found: re.Match[str]) -> str:
        return chr(int(found[1][1:], 16)) if len(found[1]) > 1 else ESCAPES.get(found[1], found[1])

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", value, text, flags=re.DOTALL)


def is_met(condition: str, result: str) -> bool:
    """Return whether a parameterized trigger is due after a build; conditions are those of its ResultCondition."""
    if condition == "ALWAYS":
        return True
    if condition in {"SUCCESS", "UNSTABLE", "FAILED", "ABORTED"}:
        return result == condition.replace("FAILED", "FAILURE")
    bound = ORDINALS["UNSTABLE" if condition.startswith("UNSTABLE") else "FAILURE"]
    return ORDINALS[result] >= bound if condition.endswith("WORSE") else ORDINALS[result] <= bound
