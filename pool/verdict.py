"""A build's own verdict: logs/verdict.json, which its job archives (gate/verdict.py describes it).

The file comes from a machine on which the change under test was root, so its size, schema and characters are checked.
A build without a valid file is recorded as of kind `unknown`, with the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import gateprocess
import jenkinsnodes
from gateprocess import GateError

if TYPE_CHECKING:
    from gateconfig import JenkinsConfig

FILE = "logs/verdict.json"
MAX_BYTES = 64 << 10
MAX_TEXT = 500  # characters
MAX_PHASES, MAX_KNOWN, MAX_NAMES = 100, 20, 20
MAX_NUMBER = 10**9
MAX_MINUTES = 10**6
MAX_STATUS = 255
FAILED_RESULTS = ("FAILURE", "UNSTABLE", "TIMEOUT")  # machines of builds with these results are kept for a look
NOT_THE_CHANGES = ("infrastructure", "machine")  # kinds of failures that are not worth a look
UNKNOWN = "unknown"
KINDS = ("passed", "test", "source", "configuration", "machine", "infrastructure", "timeout", "aborted")


class Verdict(NamedTuple):
    """What is recorded about a build; the fields are columns of the table result."""

    kind: str
    phase: str | None
    reason: str | None
    known_failure: str | None
    minutes: float | None
    url: str


class WrongVerdictError(ValueError):
    """The file is not valid; the message says where."""


def is_kept(result: str | None, verdict: Verdict | None) -> bool:
    """Return whether the machine of a build with this end is kept for whoever wants to look."""
    return result in FAILED_RESULTS and not (verdict and verdict.kind in NOT_THE_CHANGES)


def end_words(result: str | None, verdict: Verdict | None) -> str:
    """Return in words how a build ended, for its machine's history."""
    words = f"its build has ended {result or ''}".strip()
    return words + (f", of kind {verdict.kind}: {verdict.reason}" if verdict and result in FAILED_RESULTS else "")


def fetch(config: JenkinsConfig, job: str, number: int) -> Verdict | None:
    """Return the verdict of a build with one quick request; None if Jenkins should be asked in the usual way."""
    url = jenkinsnodes.build_url(config, job, number)
    try:
        status, body = jenkinsnodes.quick_get(config, artifact_of(job, number), MAX_BYTES)
    except (OSError, ValueError, IndexError):
        return None
    if status == 200:  # noqa: PLR2004
        return checked(body, url)
    return without(url, "404") if status == 404 else None  # noqa: PLR2004


def fetch_slowly(nodes: jenkinsnodes.Nodes, job: str, number: int) -> Verdict:
    """Return the verdict of a build, with a request of Nodes, the usual way to ask Jenkins."""
    url = jenkinsnodes.build_url(nodes.config, job, number)
    try:
        body = nodes.text(f"read {FILE} of {job} #{number}", artifact_of(job, number))
    except GateError as err:
        return without(url, str(err))
    return without(url, "404") if body is None else checked(body.encode("utf-8", "surrogatepass"), url)


def artifact_of(job: str, number: int) -> str:
    """Return the path of a build's verdict below Jenkins' address."""
    return f"{jenkinsnodes.build_path(job, number)}artifact/{FILE}"


def without(url: str, why: str) -> Verdict:
    """Return what is recorded about a build that left no valid verdict."""
    return Verdict(UNKNOWN, None, gateprocess.plain(f"no {FILE}: {why}", MAX_TEXT), None, None, url)


def checked(body: bytes, url: str) -> Verdict:
    """Return the verdict in a file if it is valid, else one of kind `unknown`."""
    try:
        return read(body, url)
    except WrongVerdictError as err:
        return without(url, str(err))
    except gateprocess.NONSENSE as err:  # the end of a build is recorded, whatever its node sent
        return without(url, f"it makes no sense ({err})")


def read(body: bytes, url: str) -> Verdict:
    """Return the verdict in a file; raises WrongVerdictError if anything in it is not as described."""
    if len(body) > MAX_BYTES:
        raise WrongVerdictError(f"it has more than {MAX_BYTES >> 10} KB")
    try:
        content = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as err:
        raise WrongVerdictError("it is not JSON in UTF-8") from err
    _object(content, "it")
    _check("version", content, lambda value: value == 1 and _whole(1)(value), "1")
    _check("status", content, _whole(MAX_STATUS), "a number from 0 to 255")
    kind: str = _check("kind", content, lambda value: isinstance(value, str) and value in KINDS,
                       f"one of {', '.join(KINDS)}")
    phase, _, reason = (_text(name, content) for name in ("phase", "step", "reason"))
    minutes = _minutes(content)
    if content.get("change", 0) is not None:
        _texts("change", content, ("project", "branch", "ref", "number", "patchset", "sha1"))
    _texts("node", content, ("provider", "image", "name", "snapshot"))
    _tests(content)
    known = _known_failures(content)
    return Verdict(kind, phase or None, reason or None, known[0] if known else None, minutes, url)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongVerdictError(f"{where}: expected an object")
    return value


def _check(name: str, content: dict[str, Any], valid: Callable[[Any], bool], expected: str) -> Any:
    if name not in content or not valid(content[name]):
        raise WrongVerdictError(f"{name}: expected {expected}")
    return content[name]


def _whole(most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and 0 <= value <= most


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _text(name: str, content: dict[str, Any]) -> str:
    return str(_check(name, content, _is_text, f"at most {MAX_TEXT} printable characters"))


def _texts(name: str, content: dict[str, Any], keys: tuple[str, ...]) -> None:
    of_it = _object(content.get(name), name)
    for key in keys:
        _text(key, of_it)


def _minutes(content: dict[str, Any]) -> float:
    """Return the sum of all phases."""
    phases = _object(content.get("minutes"), "minutes")
    if len(phases) > MAX_PHASES or not all(map(_is_text, phases)):
        raise WrongVerdictError(f"minutes: expected at most {MAX_PHASES} phases")
    for value in phases.values():
        if type(value) not in (int, float) or not 0 <= value <= MAX_MINUTES:  # refuses NaN, too
            raise WrongVerdictError(f"minutes: expected numbers from 0 to {MAX_MINUTES}")
    return round(math.fsum(phases.values()), 1)


def _tests(content: dict[str, Any]) -> None:
    tests = _object(content.get("tests"), "tests")
    for key in ("run", "failed", "skipped"):
        _check(key, tests, _whole(MAX_NUMBER), "a whole number")
    names = _check("names", tests, lambda value: isinstance(value, list), "a list")
    if len(names) > MAX_NAMES or not all(map(_is_text, names)):
        raise WrongVerdictError(f"names: expected at most {MAX_NAMES} texts")


def _known_failures(content: dict[str, Any]) -> list[str]:
    """Return the names of the known failures."""
    known = _check("known_failures", content, lambda value: isinstance(value, list), "a list")
    if len(known) > MAX_KNOWN:
        raise WrongVerdictError(f"known_failures: expected at most {MAX_KNOWN}")
    for one in known:
        of_it = _object(one, "known_failures")
        _check("line", of_it, _whole(MAX_NUMBER), "a whole number")
        for key in ("name", "kind", "file", "match", "url", "text"):
            _text(key, of_it)
    return [one["name"] for one in known]
