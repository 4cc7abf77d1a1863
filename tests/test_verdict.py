"""What a build says of itself: devstack-vm-delete and reap read it from its archive in Jenkins, and do not trust it."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pool import verdict
from tests.support.pool import PROJECT, Pool

DELETE = "devstack-vm-delete.py"
BUILD = {"JOB_NAME": "gate", "BUILD_NUMBER": "17"}
ARTIFACT = "GET /job/gate/17/artifact/logs/verdict.json"
URL = "https://jenkins.example.org/job/gate/17/"
TEXT = "x" * 500
KNOWN = {"name": "no space", "kind": "infrastructure", "file": "syslog.txt", "line": 7, "match": "No space left",
         "url": "", "text": "the disk is full"}
CHANGE = {"project": "p", "branch": "b", "ref": "r", "number": "1", "patchset": "2", "sha1": "c"}
COLUMNS = "kind, phase, reason, known_failure, minutes, url"


def content(**changes: Any) -> dict[str, Any]:
    """Return a verdict as gate/verdict.py writes it; changes replace its keys."""
    return {
        "version": 1, "status": 1, "kind": "test", "phase": "tempest", "step": "", "reason": "FAILED in tempest",
        "minutes": {"setup": 1.5, "tempest": 20.25}, "change": CHANGE,
        "node": {"provider": "one", "image": "noble", "name": "n", "snapshot": "s"},
        "tests": {"run": 10, "failed": 1, "skipped": 0, "names": ["a.test"]}, "known_failures": [], **changes}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in content().items() if name != key}


def read(value: object) -> verdict.Verdict:
    return verdict.checked(value if isinstance(value, bytes) else json.dumps(value).encode(), URL)


def test_what_the_gate_writes_is_read() -> None:
    script = """
import sys
sys.path.insert(0, "gate")
import verdict
facts = {"status": "1", "phase": "gate_hook",
         "words": \'FAILED "x" \\u202e <b>\', "minutes": "setup 1.5, tempest 2.0"}
known = [{"name": "n", "kind": "infrastructure", "file": "f", "line": 3, "match": "m", "url": "", "text": "t"}]
tests = {"run": 3, "failed": 1, "skipped": 0, "names": ["a"]}
sys.stdout.buffer.write(verdict.written(verdict.verdict(facts, {"NODE_NAME": "n"}, None, tests, known)))
"""
    written = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, capture_output=True, check=True).stdout

    assert read(written) == verdict.Verdict("infrastructure", "gate_hook", 'FAILED "x" <b>', "n", 3.5, URL)


def test_a_full_verdict_is_taken() -> None:
    assert read(content(known_failures=[KNOWN, KNOWN | {"name": "second"}], step="exercise.sh", more="ignored")) == (
        "test", "tempest", "FAILED in tempest", "no space", 21.8, URL)
    assert read(content(kind="passed", status=0, phase="", reason="PASS", minutes={}, change=None)) == (
        "passed", None, "PASS", None, 0.0, URL)
    assert read(content(phase=TEXT, reason=TEXT)).kind == "test"


@pytest.mark.parametrize(("value", "reason"), [
    (b"", "it is not JSON in UTF-8"), (b"{", "it is not JSON in UTF-8"), (b"\xff{}", "it is not JSON in UTF-8"),
    (b"[" * 60000, "it is not JSON in UTF-8"), (b'{"version": NaN}', "it is not JSON in UTF-8"),
    (b'{"version": ' + b"1" * 60000 + b"}", "it is not JSON in UTF-8"),
    (b" " * (64 << 10) + b"{}", "it has more than 64 KB"),
    ([], "it: expected an object"), (None, "it: expected an object"),
    (content(version=2), "version: expected 1"), (content(version=True), "version: expected 1"),
    (content(version=1.0), "version: expected 1"), (content(status=256), "status: expected a number from 0 to 255"),
    (content(status=-1), "status: expected a number from 0 to 255"),
    (content(kind="fine"), "kind: expected one of passed, test, source, "),
    (content(kind=["test"]), "kind: expected one"),
    (content(kind="unknown"), "kind: expected one"),
    *((without(key), f"{key}: expected") for key in content()),
    (content(reason="a\nb"), "reason: expected at most 500 printable"), (content(reason="\x1b"), "reason: expected"),
    (content(reason="\u202e"), "reason: expected"), (content(reason="\ud800"), "reason: expected"),
    (content(reason=TEXT + "x"), "reason: expected"), (content(reason=7), "reason: expected"),
    (content(phase=None), "phase: expected"), (content(minutes=[]), "minutes: expected an object"),
    *((content(minutes={"a": value}), "minutes: expected numbers") for value in ("1", True, -1, 1e300, 10**400, None)),
    (json.dumps(content()).replace("1.5", "1e999").encode(), "minutes: expected numbers"),
    (content(minutes={"a\n": 1}), "minutes: expected at most 100 phases"),
    (content(minutes={str(number): 1 for number in range(101)}), "minutes: expected at most 100 phases"),
    (content(change=CHANGE | {"ref": 1}), "ref: expected"), (content(change=[]), "change: expected an object"),
    (content(node={}), "provider: expected"), (content(tests={"run": 1}), "failed: expected a whole number"),
    (content(tests={"run": 1, "failed": 1, "skipped": 1, "names": ["x"] * 21}), "names: expected at most 20"),
    (content(known_failures=[KNOWN] * 21), "known_failures: expected at most 20"),
    (content(known_failures=["x"]), "known_failures: expected an object"),
    (content(known_failures=[KNOWN | {"line": 1.5}]), "line: expected a whole number"),
    (content(known_failures=[KNOWN | {"name": "\x00"}]), "name: expected"),
], ids=lambda value: str(value)[:40])
def test_what_is_not_as_described_is_recorded_as_unknown_with_the_reason(value: object, reason: str) -> None:
    found = read(value)

    assert found._replace(reason=None) == ("unknown", None, None, None, None, URL)
    assert str(found.reason).startswith(f"no logs/verdict.json: {reason}")
    assert str(found.reason).isprintable()


# devstack-vm-delete


@pytest.fixture
def used(busy: Pool) -> Iterator[str]:
    """Yield a machine whose build has begun; end Jenkins' faults after the test."""
    name = busy.add_machine(server=False)
    busy.run("devstack-vm-inprogress.py", name, expect=0, **BUILD)
    yield name
    assert busy.jenkins
    busy.jenkins.knobs(answers=[])


def archive(pool: Pool, value: object, **answer: Any) -> None:
    """Let Jenkins show this as the verdict of the build."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    assert pool.jenkins
    pool.jenkins.knobs(answers=[{"match": ARTIFACT, "body": body.decode("latin-1"), **answer}])


def recorded(pool: Pool, name: str) -> tuple[Any, ...]:
    ((*found,),) = pool.sql(f"SELECT provider, image, result, {COLUMNS} FROM result WHERE node_name = ?", name)
    return tuple(found)


def url(pool: Pool) -> str:
    assert pool.jenkins
    return f"{pool.jenkins.url}job/gate/17/"


@pytest.mark.parametrize(("kind", "result", "state"), [
    ("test", "FAILURE", "USED"), ("source", "FAILURE", "USED"), ("timeout", "TIMEOUT", "USED"),
    ("passed", "SUCCESS", "DELETE"), ("passed", "UNSTABLE", "USED"), ("aborted", "ABORTED", "DELETE"),
    ("infrastructure", "FAILURE", "DELETE"), ("machine", "FAILURE", "DELETE"), ("infrastructure", "SUCCESS", "DELETE"),
])
def test_the_verdict_is_recorded_and_says_whether_there_is_something_to_look_at(
        busy: Pool, used: str, kind: str, result: str, state: str) -> None:
    archive(busy, content(kind=kind, known_failures=[KNOWN]))

    busy.run(DELETE, used, "--result", result, expect=0)

    assert busy.machines()[used] == state
    assert recorded(busy, used) == (
        "one", "noble", result, kind, "tempest", "FAILED in tempest", "no space", 21.8, url(busy))


def test_the_history_says_why_the_machine_of_a_failed_build_is_not_kept(busy: Pool, used: str) -> None:
    archive(busy, content(kind="machine", reason="no disk"))
    busy.run(DELETE, used, "--result", "FAILURE", expect=0)

    assert "USED -> DELETE" in (told := busy.run("vmdatabase.py", "history", used, expect=0).stdout)
    assert "its build has ended FAILURE, of kind machine: no disk" in told


@pytest.mark.parametrize(("answer", "reason"), [
    ({"body": "{}"}, "no logs/verdict.json: version: expected 1"),
    ({"body": "<html>"}, "no logs/verdict.json: it is not JSON in UTF-8"),
    ({"body": " " * 200_000}, "no logs/verdict.json: it has more than 64 KB"),
    ({"status": 404}, "no logs/verdict.json: 404"),
    ({"status": 403}, "403"), ({"status": 500}, "500"), ({"kind": "reset"}, "read logs/verdict.json of gate #17"),
], ids=lambda value: str(value)[:30])
def test_a_build_without_a_good_verdict_is_recorded_as_that_and_treated_as_before(
        busy: Pool, used: str, answer: dict[str, Any], reason: str) -> None:
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": ARTIFACT, **answer}])

    done = busy.run(DELETE, used, "--result", "FAILURE", expect=0)

    *_, kind, phase, why, known, minutes, _ = recorded(busy, used)
    assert (kind, phase, known, minutes) == ("unknown", None, None, None)
    assert reason in why
    assert why in done.stderr
    assert busy.machines()[used] == "USED"


def test_a_verdict_that_never_ends_holds_nobody_up(busy: Pool, used: str) -> None:
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": ARTIFACT, "kind": "hang", "seconds": 100, "times": 1}])
    archived = time.monotonic()

    busy.run(DELETE, used, "--result", "SUCCESS", expect=0)

    assert time.monotonic() - archived < 60
    assert recorded(busy, used)[3] == "unknown"  # the second request, made in the usual way, was answered with 404
    assert busy.machines()[used] == "DELETE"


def test_an_outage_of_jenkins_loses_the_verdict_and_nothing_else(busy: Pool, used: str) -> None:
    busy.write_secure_config(server="http://127.0.0.1:1/")
    try:
        busy.run(DELETE, used, "--result", "FAILURE", expect=1)
    finally:
        busy.write_secure_config()

    assert recorded(busy, used)[2:6] == ("FAILURE", "unknown", None, "no logs/verdict.json: Jenkins did not answer")
    assert busy.machines()[used] == "USED"


def test_a_job_in_a_folder_is_asked_for_by_its_path(busy: Pool) -> None:
    name = busy.add_machine(server=False)
    busy.run("devstack-vm-inprogress.py", name, expect=0, JOB_NAME="team a/gate", BUILD_NUMBER="3")
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": "GET /job/team%20a/job/gate/3/artifact/logs/verdict.json",
                                 "body": json.dumps(content())}])
    busy.run(DELETE, name, "--result", "FAILURE", expect=0)
    busy.jenkins.knobs(answers=[])

    assert recorded(busy, name)[3] == "test"


def test_a_persons_machine_has_no_verdict(busy: Pool) -> None:
    name = busy.add_machine(server=False)
    busy.run("devstack-vm-inprogress.py", name, expect=0)
    busy.run(DELETE, name, expect=0)

    assert recorded(busy, name) == ("one", "noble", None, *[None] * 6)


@pytest.mark.parametrize(("kind", "state"), [("test", "USED"), ("infrastructure", "DELETE")])
def test_reap_takes_the_verdict_of_a_build_whose_end_nobody_told(
        busy: Pool, kind: str, state: str, run_gate: Callable[[str], int]) -> None:
    name = busy.add_machine(age=3600)
    number = run_gate(name)
    busy.sql("UPDATE machine SET state = 'USED' WHERE name = ?", name)
    busy.sql("INSERT INTO result (machine_id, node_name, jenkins_job_name, jenkins_build_number, start_time) "
             "SELECT id, name, 'fails', ?, 1 FROM machine WHERE name = ?", number, name)
    assert busy.jenkins
    busy.jenkins.knobs(answers=[{"match": f"GET /job/fails/{number}/artifact/logs/verdict.json",
                                 "body": json.dumps(content(kind=kind))}])
    busy.run("devstack-vm-reap.py", "one")
    busy.jenkins.knobs(answers=[])

    ((found, told),) = busy.sql("SELECT result, kind FROM result WHERE node_name = ?", name)
    assert (found, told) == ("FAILURE", kind)
    assert (busy.machines().get(name, "DELETE"),) == (state,)


@pytest.fixture
def run_gate(busy: Pool) -> Callable[[str], int]:
    """Return a function that runs a build on a node, which fails, and returns its number."""
    def run(name: str) -> int:
        assert busy.jenkins
        busy.jenkins.add_job("fails", name, before=["false"])
        number = int(busy.jenkins.wait_started(busy.jenkins.build("fails"))["number"])
        busy.jenkins.wait_build("fails", number)
        return number
    return run
