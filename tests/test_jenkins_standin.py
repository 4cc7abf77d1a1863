"""The stand-in for Jenkins answers as a real one was recorded to answer, and does over time what that did.

tests/data/jenkins/exchanges.jsonl holds exchanges recorded with Jenkins 2.263.4 (ssh-slaves 1.31.5) and python-jenkins
1.8.3: one per line, in the order of its scene. Only this differs from the original: long HTML was cut when it was
recorded, values of monitors are left out, one long path is shortened, and the second request for sleepB, of which only
the outcome was noted, repeats the first.
"""

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jenkins
import pytest
import requests

from tests.pocketjenkins.client import StandIn, StandInError
from tests.support.sshserver import Sshd

EXCHANGES = [json.loads(line) for line in (Path(__file__).parent / "data/jenkins/exchanges.jsonl").open()]
RECORDED_URL = "http://127.0.0.1:8080/"
USERS = {"admin": ("admin-password", "admin-token"), "reader": ("reader-password", "reader-token")}
CREDENTIAL = "agent-ssh-key"
WAIT_SECONDS = 10.0
CALL_SECONDS = 20.0
CHANGING = {  # keys whose values differ each time, or depend on when one asks
    "icon",
    "timestamp",
    "duration",
    "estimatedDuration",
    "inQueueSince",
    "buildableStartMilliseconds",
    "crumb",
    "queueId",
    "id",
}

Node = dict[str, Any]


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """Make the private key with which the master logs in to nodes."""
    path = tmp_path / "id_agent"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20)
    return path


@pytest.fixture
def standin(tmp_path: Path, key_file: Path) -> Iterator[StandIn]:
    """Run a Jenkins whose nodes come online without a machine."""
    knobs = {"connect": "instant", "connect_seconds": 0.1}
    with StandIn(tmp_path / "jenkins", USERS, {CREDENTIAL: ("jenkins", key_file)}, knobs) as running:
        yield running


@pytest.fixture
def client(standin: StandIn) -> jenkins.Jenkins:
    return connect(standin)


def connect(standin: StandIn, secret: str | None = None) -> jenkins.Jenkins:
    return jenkins.Jenkins(standin.url, standin.user, secret or standin.token, timeout=CALL_SECONDS)


def create(client: jenkins.Jenkins, name: str, label: str = "lab", **launcher: Any) -> None:
    """Create a node as launch does: exclusive, with one executor and its own launcher."""
    settings = {"host": "127.0.0.1", "port": "22", "credentialsId": CREDENTIAL, **launcher}
    client.create_node(
        name,
        numExecutors=1,
        remoteFS="/home/jenkins",
        labels=label,
        exclusive=True,
        launcher=jenkins.LAUNCHER_SSH,
        launcher_params=settings,
    )


def online(standin: StandIn, client: jenkins.Jenkins, name: str, label: str = "lab") -> None:
    create(client, name, label)
    standin.wait_node(name, "online", WAIT_SECONDS)


def relabel(client: jenkins.Jenkins, name: str, label: str) -> None:
    config = client.get_node_config(name)
    client.reconfig_node(name, re.sub(r"<label>.*</label>", f"<label>{label}</label>", config))


def at_once(*actions: Callable[[], object]) -> list[str]:
    """Start actions at the same moment; return "ok" or the kind of the error for each, sorted."""
    outcomes: list[str] = []
    gate = threading.Barrier(len(actions))

    def act(action: Callable[[], object]) -> None:
        gate.wait(CALL_SECONDS)
        try:
            action()
            outcomes.append("ok")
        except (jenkins.JenkinsException, requests.RequestException) as err:
            outcomes.append(type(err).__name__)

    threads = [threading.Thread(target=act, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(CALL_SECONDS)
    return sorted(outcomes)


# 1. Recorded exchanges


class Replay:
    """Sends recorded requests to the stand-in and says where its answers differ."""

    def __init__(self, standin: StandIn) -> None:
        self.standin = standin
        self.session = requests.Session()
        self.session.trust_env = False

    def scene(self, name: str, hooks: dict[str, Callable[[], object]] | None = None) -> None:
        """Replay a scene; call each hook before the first exchange of its step."""
        left = dict(hooks or {})
        for exchange in [exchange for exchange in EXCHANGES if exchange["scene"] == name]:
            step = exchange["step"].split()[0]
            left.pop(step, lambda: None)()
            self.check(exchange)
        assert left == {}

    def check(self, exchange: dict[str, Any]) -> None:
        """Check an exchange; one answered in JSON is sent again for up to WAIT_SECONDS, since states take time."""
        deadline = time.monotonic() + WAIT_SECONDS
        differences = self.differences(exchange)
        while differences and "json" in exchange and time.monotonic() < deadline:
            time.sleep(0.02)
            differences = self.differences(exchange)
        assert differences == [], f"{exchange['step']}: {exchange['method']} {exchange['path']}"

    def differences(self, exchange: dict[str, Any]) -> list[str]:
        answer = self.send(exchange)
        found = []
        if answer.status_code != exchange["status"]:
            found.append(f"status {answer.status_code} instead of {exchange['status']}: {answer.text[:300]}")
        for name, value in exchange["headers"].items():
            if self.alike(answer.headers.get(name, "")) != self.alike(value):
                found.append(f"{name}: {answer.headers.get(name)!r} instead of {value!r}")
        if "json" in exchange:
            return found + list(unlike("", json.loads(self.alike(answer.text)), self.recorded_json(exchange)))
        recorded = self.alike(exchange["text"])
        if exchange["path"].endswith(("progressiveText", "consoleText")):
            return found + [f"no line {line!r}" for line in recorded.splitlines() if not said(line, answer.text)]
        return found if self.alike(answer.text).startswith(recorded) else [*found, f"{answer.text!r:.400}"]

    def alike(self, text: str) -> str:
        """Cut out of a text what differs between any two Jenkins: address, build of the static files, queue number."""
        text = text.replace(self.standin.url, RECORDED_URL)
        text = re.sub(r"/static/\w+", "/static/", text)
        return re.sub(r"queue/item/\d+/", "queue/item/N/", text)

    def recorded_json(self, exchange: dict[str, Any]) -> Any:
        return json.loads(self.alike(json.dumps(exchange["json"])))

    def send(self, exchange: dict[str, Any]) -> requests.Response:
        name, secret, headers = self.identity(exchange["as"])
        body = exchange["xml"].encode() if "xml" in exchange else exchange.get("form")
        url = self.standin.url + exchange["path"].lstrip("/") + "?" + exchange.get("query", "")
        return self.session.request(
            exchange["method"],
            url.rstrip("?"),
            data=body,
            headers=headers,
            auth=(name, secret) if name else None,
            timeout=CALL_SECONDS,
            allow_redirects=False,
        )

    def identity(self, who: str) -> tuple[str, str, dict[str, str]]:
        """Return name, secret and headers of the client that the exchange was recorded with."""
        self.session.cookies.clear()
        if who in {"token", "token and wrong crumb"}:
            return "admin", "admin-token", {"Jenkins-Crumb": "wrong"} if "crumb" in who else {}
        if who == "reader":
            return "reader", "reader-token", {}
        if who == "nobody":
            return "", "", {}
        if who == "wrong password":
            return "admin", "wrong", {}
        headers = {}
        if "crumb" in who:
            headers["Jenkins-Crumb"] = self.crumb()
        if "another session" in who:
            self.session.cookies.clear()
        return "admin", "admin-password", headers

    def crumb(self) -> str:
        url = f"{self.standin.url}crumbIssuer/api/json"
        answer = self.session.get(url, auth=("admin", "admin-password"), timeout=CALL_SECONDS)
        return str(answer.json()["crumb"])


def unlike(where: str, seen: Any, recorded: Any) -> Iterator[str]:
    """Yield where two JSON values differ, apart from the values of CHANGING keys."""
    if isinstance(seen, dict) and isinstance(recorded, dict):
        if seen.keys() != recorded.keys():
            yield f"{where}: keys {sorted(seen.keys() ^ recorded.keys())} are in one only"
        for key in (seen.keys() & recorded.keys()) - CHANGING:
            yield from unlike(f"{where}.{key}", seen[key], recorded[key])
    elif isinstance(seen, list) and isinstance(recorded, list) and len(seen) == len(recorded):
        for number, (one, other) in enumerate(zip(seen, recorded, strict=True)):
            yield from unlike(f"{where}[{number}]", one, other)
    elif seen != recorded:
        yield f"{where}: {seen!r} instead of {recorded!r}"


def said(line: str, log: str) -> bool:
    """Return whether a log has a line, or the line is one of the build's script, which does not run here."""
    return line in log or line.startswith(("+ ", "START ", "[sleepB]", "FATAL: Unable to delete"))


@pytest.fixture
def replay(standin: StandIn) -> Replay:
    return Replay(standin)


def test_a_starting_jenkins_answers_503_as_recorded(replay: Replay) -> None:
    replay.standin.knobs(starting_up=True)
    replay.scene("starting")


@pytest.mark.parametrize("scene", ["login", "missing node", "job"])
def test_an_empty_jenkins_answers_as_recorded(replay: Replay, scene: str) -> None:
    replay.scene(scene)


def test_the_life_of_a_node_is_answered_as_recorded(replay: Replay) -> None:
    replay.standin.knobs(connect_seconds=0.3)
    replay.scene("life of a node")


def test_builds_on_a_node_are_answered_as_recorded(replay: Replay) -> None:
    standin = replay.standin
    standin.knobs(connect_seconds=0.3)

    def give_the_jobs_a_length() -> None:
        for name in ("sleepA", "sleepB"):
            standin.add_job(name, "lab", seconds=1.0, concurrent=False)

    replay.scene("builds", {"C1": give_the_jobs_a_length})


def test_all_kinds_of_launchers_are_answered_as_recorded(replay: Replay) -> None:
    replay.standin.knobs(connect="never")
    replay.scene("launchers")


def test_a_user_without_rights_is_answered_as_recorded(replay: Replay, client: jenkins.Jenkins) -> None:
    online(replay.standin, client, "e1")
    replay.standin.knobs(rights={"reader": ["Overall.Read"]})
    replay.scene("rights")


def test_a_dead_agent_is_shown_as_recorded(replay: Replay, client: jenkins.Jenkins) -> None:
    online(replay.standin, client, "e1")
    replay.standin.node("e1", die=True)
    replay.scene("agent died")


def test_quiet_down_is_answered_as_recorded(replay: Replay, client: jenkins.Jenkins) -> None:
    standin = replay.standin
    online(standin, client, "e1")
    standin.add_job("sleepA", "lab", seconds=60)
    standin.build("sleepA")
    standin.wait_started(1)
    client.stop_build("sleepA", 1)
    replay.scene("quiet")


# 2. What the real client makes of it


@pytest.mark.parametrize("answer", [{"status": 401}, {"status": 403}, {"status": 500}, {"status": 503}])
def test_node_exists_says_false_for_a_node_that_is_there(
    standin: StandIn, client: jenkins.Jenkins, answer: dict[str, Any]
) -> None:
    online(standin, client, "n1")
    standin.knobs(answers=[{"match": "GET /computer/n1/", **answer}])
    assert client.node_exists("n1") is False


def test_a_starting_jenkins_makes_the_calls_fail_each_in_its_own_way(standin: StandIn, client: jenkins.Jenkins) -> None:
    standin.knobs(starting_up=True)
    with pytest.raises(jenkins.BadHTTPException, match="Error communicating with server"):
        client.get_whoami()
    with pytest.raises(requests.HTTPError, match="503 Server Error: Service Unavailable"):
        create(client, "n1")
    with pytest.raises(jenkins.JenkinsException, match=r"node\[n1\] does not exist"):
        client.disable_node("n1")


def test_a_missing_right_is_a_jenkinsexception_that_says_authentication(
    standin: StandIn, client: jenkins.Jenkins
) -> None:
    standin.knobs(rights={"admin": ["Overall.Read", "Computer.Delete"]})
    with pytest.raises(jenkins.JenkinsException, match=r"Possibly authentication failed \[403\]: Forbidden"):
        create(client, "n1")


def test_disable_node_does_nothing_while_the_node_connects(standin: StandIn, client: jenkins.Jenkins) -> None:
    standin.knobs(connect_seconds=0.5)
    create(client, "n1")
    client.disable_node("n1", "hold")
    seen = standin.wait_node("n1", "online", WAIT_SECONDS)
    assert seen["temporarilyOffline"] is False


def test_a_raw_toggle_while_the_node_connects_sticks(standin: StandIn, client: jenkins.Jenkins) -> None:
    standin.knobs(connect_seconds=0.5)
    create(client, "n1")
    toggle = requests.Request("POST", f"{standin.url}computer/n1/toggleOffline?offlineMessage=hold")
    client.jenkins_open(toggle)
    seen = standin.wait_node("n1", "online", WAIT_SECONDS)
    assert (seen["temporarilyOffline"], seen["offlineCauseReason"]) == (True, "hold")


def test_enable_node_takes_a_disconnected_node_out_of_service(standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    client.jenkins_open(requests.Request("POST", f"{standin.url}computer/n1/doDisconnect?offlineMessage=x"))
    client.enable_node("n1")
    assert client.get_node_info("n1")["temporarilyOffline"] is True


def test_two_clients_that_disable_at_once_leave_the_node_online(standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    others = [connect(standin), connect(standin)]
    for other in others:
        other.get_whoami()
    standin.knobs(latency_seconds=0.2)
    assert at_once(*(lambda other=other: other.disable_node("n1", "mine") for other in others)) == ["ok", "ok"]
    assert standin.look()["nodes"]["n1"]["temporarilyOffline"] is False


@pytest.mark.parametrize(("races", "outcomes"), [(True, ["ok", "ok"]), (False, ["HTTPError", "ok"])])
def test_two_clients_that_create_one_name_at_once(standin: StandIn, races: bool, outcomes: list[str]) -> None:
    clients = [connect(standin), connect(standin)]
    for client in clients:
        client.get_whoami()
    standin.knobs(create_races=races, latency_seconds=0.1)
    assert at_once(*(lambda client=client: create(client, "n1") for client in clients)) == outcomes
    assert list(standin.look()["nodes"]) == ["n1"]


def test_a_password_client_cannot_post_after_a_restart(standin: StandIn) -> None:
    client = connect(standin, standin.password)
    create(client, "n1")
    standin.knobs(restart_seconds=0.0)
    standin.restart()
    with pytest.raises(jenkins.JenkinsException, match="No valid crumb was included"):
        client.delete_node("n1")


def test_a_change_of_the_offline_cause_marks_a_node_offline_whatever_it_was(
        standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    for text in ("try 0", "try 1"):
        client.jenkins_open(requests.Request(
            "POST", f"{standin.url}computer/n1/changeOfflineCause?offlineMessage={quote(text)}"))
        seen = client.get_node_info("n1")
        assert (seen["temporarilyOffline"], seen["offlineCauseReason"]) == (True, text)


def test_a_restart_keeps_nodes_labels_and_what_is_out_of_service(standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    client.disable_node("n1", "held")
    standin.knobs(restart_seconds=0.2)
    standin.restart()
    with pytest.raises(jenkins.BadHTTPException):
        client.get_whoami()
    seen = standin.wait_node("n1", "online", WAIT_SECONDS)
    assert (seen["label"], seen["temporarilyOffline"], seen["offlineCauseReason"]) == ("lab", True, "held")


# 3. Builds over time


@pytest.fixture
def busy(standin: StandIn, client: jenkins.Jenkins) -> StandIn:
    """Start two builds of one label: node n1 runs first #1 for half a second, while second #1 waits."""
    online(standin, client, "n1")
    for name in ("first", "second"):
        standin.add_job(name, "lab", seconds=0.5)
        item = standin.build(name)
        if name == "first":
            standin.wait_started(item, WAIT_SECONDS)
    return standin


def why(client: jenkins.Jenkins, item: int = 2) -> str | None:
    """Return why a queue item waits, or None if it does not."""
    reason: str | None = client.get_queue_item(item)["why"]
    return reason


def test_the_next_build_starts_about_20_ms_after_the_one_before(busy: StandIn) -> None:
    ended = busy.wait_build("first", 1, WAIT_SECONDS)["ended"]
    started = busy.wait_started(2, WAIT_SECONDS)["started"]
    assert 0.01 < started - ended < 0.1


def test_a_build_goes_on_when_its_node_is_disabled_and_the_next_one_waits(
    busy: StandIn, client: jenkins.Jenkins
) -> None:
    client.disable_node("n1", "draining")
    assert busy.wait_build("first", 1, WAIT_SECONDS)["result"] == "SUCCESS"
    time.sleep(0.1)  # five times the gap between two builds
    assert why(client) == "\N{LEFT SINGLE QUOTATION MARK}n1\N{RIGHT SINGLE QUOTATION MARK} is offline"
    client.enable_node("n1")
    assert busy.wait_build("second", 1, WAIT_SECONDS)["result"] == "SUCCESS"


def test_a_build_goes_on_when_its_node_is_relabelled_and_the_next_one_finds_no_node(
    busy: StandIn, client: jenkins.Jenkins
) -> None:
    relabel(client, "n1", "devstack-used")
    assert busy.wait_build("first", 1, WAIT_SECONDS)["result"] == "SUCCESS"
    time.sleep(0.1)  # five times the gap between two builds
    label = "\N{LEFT SINGLE QUOTATION MARK}lab\N{RIGHT SINGLE QUOTATION MARK}"
    assert why(client) == f"There are no nodes with the label {label}"


def test_two_clients_that_relabel_at_once_end_in_the_same_state(busy: StandIn) -> None:
    clients = [connect(busy), connect(busy)]
    outcomes = at_once(*(lambda client=client: relabel(client, "n1", "devstack-used") for client in clients))
    assert (outcomes, busy.look()["nodes"]["n1"]["label"]) == (["ok", "ok"], "devstack-used")


def test_a_build_fails_at_once_when_its_node_is_deleted(busy: StandIn, client: jenkins.Jenkins) -> None:
    client.delete_node("n1")
    assert client.get_build_info("first", 1)["result"] == "FAILURE"


def test_a_build_fails_when_its_agent_dies_and_the_node_comes_back(busy: StandIn) -> None:
    busy.knobs(reconnect_seconds=0.1)
    busy.node("n1", die=True)
    assert busy.wait_build("first", 1, WAIT_SECONDS)["result"] == "FAILURE"
    assert busy.wait_build("second", 1, WAIT_SECONDS)["node"] == "n1"


def test_equal_builds_that_wait_are_one_and_different_parameters_make_two(busy: StandIn) -> None:
    assert [busy.build("second"), busy.build("second", CHANGE="1"), busy.build("second", CHANGE="2")] == [2, 3, 4]


def test_the_steps_on_the_host_run_first_and_last_with_the_builds_environment(
    standin: StandIn, client: jenkins.Jenkins
) -> None:
    online(standin, client, "n1")
    before = ["sh", "-c", 'echo "$0 $JOB_NAME $CHANGE $DB"; exit 3', "$NODE_NAME"]
    standin.add_job("gate", "lab", before=before, after=["echo", "after $RESULT"], environment={"DB": "vm.db"})
    standin.build("gate", CHANGE="7")
    build = standin.wait_build("gate", 1, WAIT_SECONDS)
    lines = [line for line in build["console"].splitlines() if line[0] != "["]
    assert build["result"] == "FAILURE"
    assert lines[3:] == [
        "n1 gate 7 vm.db",
        "Build step 'Execute on the Jenkins host' marked build as failure",
        "after FAILURE",
        "Finished: FAILURE",
    ]


def test_an_aborted_build_keeps_its_node_until_its_last_step_is_done(
    standin: StandIn, client: jenkins.Jenkins
) -> None:
    online(standin, client, "n1")
    standin.add_job("gate", "lab", before=["sleep", "60"], after=["sh", "-c", "echo after $RESULT; sleep 0.3"])
    standin.add_job("next", "lab")
    standin.wait_started(standin.build("gate"), WAIT_SECONDS)
    standin.build("next")
    client.stop_build("gate", 1)
    gate = standin.wait_build("gate", 1, WAIT_SECONDS)
    assert gate["console"].splitlines()[-2:] == ["after ABORTED", "Finished: ABORTED"]
    assert standin.wait_build("next", 1, WAIT_SECONDS)["started"] > gate["ended"]


def test_stopping_it_ends_the_commands_of_its_builds(standin: StandIn, client: jenkins.Jenkins, tmp_path: Path) -> None:
    online(standin, client, "n1")
    script = "echo $$ >$0.new; mv $0.new $0; sleep 60"
    standin.add_job("gate", "lab", before=["sh", "-c", script, f"{tmp_path}/pid"])
    standin.build("gate")
    deadline = time.monotonic() + WAIT_SECONDS
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    standin.stop()
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_a_restart_ends_builds_without_their_last_step(standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    standin.add_job("gate", "lab", before=["sleep", "60"], after=["echo", "after $RESULT"])
    standin.wait_started(standin.build("gate"), WAIT_SECONDS)
    standin.restart()
    build = standin.wait_build("gate", 1, WAIT_SECONDS)
    assert (build["result"], "after FAILURE" in build["console"]) == ("FAILURE", False)


# 4. Agents over ssh


@pytest.fixture
def sshd(tmp_path: Path, key_file: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "sshd", key_file.with_suffix(".pub").read_text())
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture
def real(tmp_path: Path, key_file: Path) -> Iterator[StandIn]:
    """Run a Jenkins that really connects to its nodes, as root."""
    knobs = {"retry_seconds": 0.05, "reconnect_seconds": 0.2}
    with StandIn(tmp_path / "jenkins", USERS, {CREDENTIAL: ("root", key_file)}, knobs) as running:
        yield running


def pinned(key: str) -> dict[str, Any]:
    """Return launcher settings with which Jenkins refuses any other host key."""
    kind = "hudson.plugins.sshslaves.verifiers.ManuallyProvidedKeyVerificationStrategy"
    return {"sshHostKeyVerificationStrategy": {"stapler-class": kind, "key": key}}


def create_on(sshd: Sshd, standin: StandIn, **launcher: Any) -> jenkins.Jenkins:
    """Create node n1, which works in sshd's directory; return the client."""
    client = connect(standin)
    settings = {"host": sshd.host, "port": str(sshd.port), "credentialsId": CREDENTIAL, **launcher}
    client.create_node(
        "n1",
        numExecutors=1,
        remoteFS=str(sshd.root),
        labels="lab",
        exclusive=True,
        launcher=jenkins.LAUNCHER_SSH,
        launcher_params=settings,
    )
    return client


def test_a_node_with_the_host_key_that_jenkins_was_given_comes_online(sshd: Sshd, real: StandIn) -> None:
    create_on(sshd, real, **pinned(sshd.host_key))
    assert "SSH host key matched" in real.wait_node("n1", "online", WAIT_SECONDS)["log"]


def test_a_node_with_another_host_key_is_refused(sshd: Sshd, real: StandIn, key_file: Path) -> None:
    other = " ".join(key_file.with_suffix(".pub").read_text().split()[:2])
    create_on(sshd, real, maxNumRetries=1, **pinned(other))
    log = real.wait_node("n1", "launch-failed", WAIT_SECONDS)["log"]
    assert "does not match the key required in the connection configuration" in log
    assert "There are 1 more retries left." in log


def test_a_host_key_posted_in_config_xml_counts_for_the_next_launch(
    sshd: Sshd, real: StandIn, key_file: Path
) -> None:
    other = " ".join(key_file.with_suffix(".pub").read_text().split()[:2])
    client = create_on(sshd, real, maxNumRetries=0, **pinned(other))
    real.wait_node("n1", "launch-failed", WAIT_SECONDS)
    config = client.get_node_config("n1")
    client.reconfig_node("n1", config.replace(other.split()[1], sshd.host_key.split()[1]))
    client.jenkins_open(requests.Request("POST", f"{real.url}computer/n1/launchSlaveAgent"))
    real.wait_node("n1", "online", WAIT_SECONDS)


def test_a_login_that_the_node_refuses_fails_the_launch(sshd: Sshd, real: StandIn) -> None:
    (sshd.root / "authorized_keys").write_text("")
    create_on(sshd, real)
    assert "Authentication failed" in real.wait_node("n1", "launch-failed", WAIT_SECONDS)["log"]


def test_a_closed_port_is_tried_again_until_it_opens(sshd: Sshd, real: StandIn) -> None:
    sshd.stop()
    real.knobs(retry_seconds=0.5)
    create_on(sshd, real)
    real.wait_node("n1", "connecting", WAIT_SECONDS)
    sshd.start()
    assert "Connection refused" in real.wait_node("n1", "online", WAIT_SECONDS)["log"]


def test_a_script_runs_on_the_node_in_its_workspace_with_the_builds_environment(sshd: Sshd, real: StandIn) -> None:
    create_on(sshd, real)
    script = 'pwd\necho "$NODE_NAME $BUILD_NUMBER $CHANGE"\nfalse\necho not reached'
    real.add_job("gate", "lab", script=script, after=["echo", "after $RESULT"])
    real.wait_node("n1", "online", WAIT_SECONDS)
    real.build("gate", CHANGE="it's 7")
    build = real.wait_build("gate", 1, WAIT_SECONDS)
    said = [line for line in build["console"].splitlines() if line[0] not in "+["]
    assert build["result"] == "FAILURE"
    assert said[3:] == [
        f"{sshd.root}/workspace/gate",
        "n1 1 it's 7",
        "Build step 'Execute shell' marked build as failure",
        "after FAILURE",
        "Finished: FAILURE",
    ]


def test_a_build_fails_when_the_ssh_connection_is_lost_and_the_node_comes_back(sshd: Sshd, real: StandIn) -> None:
    create_on(sshd, real)
    real.add_job("gate", "lab", script='kill "$PPID"; sleep 60')  # its parent is the sshd of this connection
    real.wait_node("n1", "online", WAIT_SECONDS)
    real.build("gate")
    assert real.wait_build("gate", 1, WAIT_SECONDS)["result"] == "FAILURE"
    real.wait_node("n1", "online", WAIT_SECONDS)


# 5. What tests make it do


def test_ordered_answers_are_given_as_often_as_ordered(standin: StandIn, client: jenkins.Jenkins) -> None:
    standin.knobs(answers=[{"match": "GET /api/json", "status": 500, "times": 2}])
    for _ in range(2):
        with pytest.raises(jenkins.JenkinsException, match=r"\[500\]: Server Error"):
            client.get_info()
    assert client.get_info()["nodeName"] == ""


@pytest.mark.parametrize("kind", ["reset", "close"])
def test_a_create_whose_answer_is_lost_has_happened(standin: StandIn, client: jenkins.Jenkins, kind: str) -> None:
    standin.knobs(answers=[{"match": "POST /computer/doCreateItem", "kind": kind, "when": "after", "times": 1}])
    with pytest.raises(requests.ConnectionError):
        create(client, "n1")
    assert client.node_exists("n1")


def test_a_hanging_answer_runs_into_the_clients_time_limit(standin: StandIn) -> None:
    client = jenkins.Jenkins(standin.url, standin.user, standin.token, timeout=0.3)
    standin.knobs(answers=[{"match": "GET /me/", "kind": "hang"}])
    with pytest.raises(jenkins.TimeoutException):
        client.get_whoami()


def test_calls_are_counted_by_kind_until_they_are_reset(standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    online(standin, client, "n2")
    standin.reset_calls()
    for name in ("n1", "n2"):
        client.get_node_info(name)
    assert standin.calls() == {"GET /computer/{name}/api/json": 2}


def test_an_unknown_knob_is_refused_by_name(standin: StandIn) -> None:
    with pytest.raises(StandInError, match="no knob 'conect'"):
        standin.knobs(conect="ssh")


def test_a_tree_gives_just_what_it_names(standin: StandIn, client: jenkins.Jenkins) -> None:
    online(standin, client, "n1")
    standin.add_job("first", "lab", seconds=60)
    standin.wait_started(standin.build("first"), WAIT_SECONDS)
    tree = "computer[displayName,offline,assignedLabels[name],executors[currentExecutable[number]]]{1,}"
    answer = requests.get(
        f"{standin.url}computer/api/json",
        params={"tree": tree},
        auth=(standin.user, standin.token),
        timeout=CALL_SECONDS,
    )
    node = {
        "_class": "hudson.slaves.SlaveComputer",
        "displayName": "n1",
        "offline": False,
        "assignedLabels": [{"name": "lab"}, {"name": "n1"}],
        "executors": [{"currentExecutable": {"_class": "hudson.model.FreeStyleBuild", "number": 1}}],
    }
    assert answer.json() == {"_class": "hudson.model.ComputerSet", "computer": [node]}
