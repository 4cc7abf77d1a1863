"""jenkinsnodes.py and the traps of Jenkins and python-jenkins, with a stand-in that has the same traps."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jenkins
import pytest
import requests

import jenkinsnodes
from gateconfig import JenkinsConfig
from gateprocess import GateError
from jenkinsnodes import JenkinsConfigError, JenkinsError, Node, NodeConflictError, Nodes, is_out_of_service
from tests.pocketjenkins.client import StandIn
from tests.support.pool import ANY_HOST_KEY, PROJECT, await_that, clear_jenkins
from tests.support.sshserver import free_address

LABEL, USED = "devstack-noble", "devstack-used"
WAIT_SECONDS = 10.0
GAPS_SECONDS = 0.15  # the gap between two builds on an executor is 18 ms
OTHER_HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOtherOtherOtherOtherOtherOtherOtherOtherOth"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """Run a Jenkins whose nodes come online without a machine."""
    with StandIn(tmp_path_factory.mktemp("jenkins"), knobs={"connect": "instant"}) as stand_in:
        yield stand_in


@pytest.fixture
def stand_in(running: StandIn) -> Iterator[StandIn]:
    """Yield that Jenkins without nodes, and clear it after each test."""
    running.reset_calls()
    yield running
    clear_jenkins(running)


@pytest.fixture
def busy_jenkins(tmp_path: Path) -> Iterator[StandIn]:
    """Run a Jenkins for one test, which may restart it and leave builds on it."""
    with StandIn(tmp_path / "jenkins", knobs={"connect": "instant"}) as stand_in:
        yield stand_in


def config_of(stand_in: StandIn, apikey: str | None = None) -> JenkinsConfig:
    return JenkinsConfig(stand_in.url, stand_in.user, apikey or stand_in.token, "nodes")


@pytest.fixture
def nodes(stand_in: StandIn, tmp_path: Path) -> Nodes:
    return Nodes(config_of(stand_in), tmp_path / "locks", "p")


def client(stand_in: StandIn) -> jenkins.Jenkins:
    """Return a client, as other people use it."""
    return jenkins.Jenkins(stand_in.url, stand_in.user, stand_in.token, timeout=20)


def add(
    nodes: Nodes, name: str = "n1", address: str = "192.0.2.1", port: int = 22, host_key: str = ANY_HOST_KEY
) -> None:
    """Add a node as launch does."""
    nodes.add(name, label=LABEL, address=address, port=port, host_key=host_key, remote_fs="/home/jenkins")


def add_online(nodes: Nodes, stand_in: StandIn, name: str = "n1") -> None:
    add(nodes, name)
    stand_in.wait_node(name, "online", WAIT_SECONDS)


def state(stand_in: StandIn, name: str = "n1") -> tuple[bool, str]:
    """Return whether a node really is marked offline, and its label."""
    node = stand_in.look()["nodes"][name]
    return node["temporarilyOffline"], node["label"]


# What "missing" means

CALLS: dict[str, Callable[[Nodes], object]] = {
    "look": lambda nodes: nodes.look("n1"),
    "take out of service": lambda nodes: nodes.take_out_of_service("n1", "held", missing_ok=True),
    "remove": lambda nodes: nodes.remove("n1", "gone"),
    "all": lambda nodes: nodes.all(),
}


@pytest.mark.parametrize("name", ["look", "take out of service", "remove"])
def test_a_node_is_missing_when_jenkins_says_404(nodes: Nodes, name: str) -> None:
    assert CALLS[name](nodes) is (True if name == "remove" else None)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"status": 401}, JenkinsConfigError, "401, user admin or its apikey is wrong"),
        ({"status": 403}, JenkinsConfigError, "403, user admin needs the right hudson.model.Hudson.Read"),
        ({"status": 500}, JenkinsError, "500 Server Error"),
        ({"status": 503}, JenkinsError, "503 Service Unavailable"),
        ({"status": 400}, JenkinsError, "400 Bad Request"),
        ({"kind": "reset"}, JenkinsError, "no answer ("),
        ({"kind": "close"}, JenkinsError, "no answer ("),
    ],
    ids=["401", "403", "500", "503", "400", "reset", "close"],
)
def test_no_other_answer_means_missing(
    nodes: Nodes, stand_in: StandIn, call: str, answer: dict[str, Any], error: type[GateError], message: str
) -> None:
    add(nodes)
    stand_in.knobs(answers=[{"match": "GET /computer/", **answer}])
    with pytest.raises(error) as caught:
        CALLS[call](nodes)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"Jenkins {stand_in.url}: ")
    assert f": {message}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(stand_in.look()["nodes"]) == ["n1"]


@pytest.mark.parametrize("call", CALLS)
def test_a_jenkins_that_starts_up_does_not_tell(nodes: Nodes, stand_in: StandIn, call: str) -> None:
    stand_in.knobs(starting_up=True)
    with pytest.raises(JenkinsError, match=r": 503 Service Unavailable$"):
        CALLS[call](nodes)


@pytest.mark.parametrize("call", CALLS)
def test_a_jenkins_that_is_not_there_does_not_tell(tmp_path: Path, call: str) -> None:
    config = JenkinsConfig(f"http://127.0.0.1:{free_address()[1]}/", "admin", "x", "nodes")
    with pytest.raises(JenkinsError, match=r": no answer \(Connection refused\)$"):
        CALLS[call](Nodes(config, tmp_path / "locks", "p"))


@pytest.mark.parametrize("call", CALLS)
def test_a_jenkins_that_hangs_does_not_tell(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(jenkinsnodes, "CALL_SECONDS", 0.3)  # 30 s would prove the same
    stand_in.knobs(answers=[{"match": "GET /computer/", "kind": "hang", "seconds": 60}])
    began = time.monotonic()
    with pytest.raises(JenkinsError, match=r": no answer \("):
        CALLS[call](Nodes(config_of(stand_in), tmp_path / "locks", "p"))
    assert time.monotonic() - began < 30


@contextmanager
def answering(status: int, body: str) -> Iterator[str]:
    """Run a server that gives one answer to everything; yield its URL."""
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()


RUBBISH = ["<html>Welcome</html>", "", "[]", "{}", "null", '{"computer": [{}]}', '{"computer": null}', '{"computer": [']


@pytest.mark.parametrize("call", ["look", "take out of service", "all"])
@pytest.mark.parametrize("body", RUBBISH)
def test_an_answer_that_makes_no_sense_does_not_tell(tmp_path: Path, call: str, body: str) -> None:
    with answering(200, body) as url, pytest.raises(JenkinsError) as caught:
        CALLS[call](Nodes(JenkinsConfig(url, "admin", "x", "nodes"), tmp_path / "locks", "p"))
    assert str(caught.value).startswith(f"Jenkins {url}: ")


def test_a_404_to_the_list_of_nodes_asks_whether_this_is_a_jenkins(tmp_path: Path) -> None:
    with answering(404, "") as url, pytest.raises(JenkinsError, match=r"404, is this the address of a Jenkins\?"):
        Nodes(JenkinsConfig(url, "admin", "x", "nodes"), tmp_path / "locks", "p").all()


# What is shown


def disconnect(stand_in: StandIn, name: str = "n1") -> None:
    """Disconnect a node, as a person does."""
    client(stand_in).jenkins_open(requests.Request("POST", f"{stand_in.url}computer/{name}/doDisconnect"))


def toggle(stand_in: StandIn, message: str = "") -> None:
    client(stand_in).jenkins_open(requests.Request(
        "POST", f"{stand_in.url}computer/n1/toggleOffline", params={"offlineMessage": message}))


DISK = {"barred": "hudson.node_monitors.DiskSpaceMonitorDescriptor$DiskSpace", "message": "0.100GB left on /tmp."}
STATES: dict[str, tuple[Callable[[StandIn], object], dict[str, Any], str]] = {
    "online": (lambda _: None, {"offline": False, "cause": ""}, "here"),
    "disabled": (lambda stand_in: toggle(stand_in, "held"),
                 {"offline": True, "temporarily_offline": True, "cause": "UserCause", "reason": "held",
                  "cause_text": "Disconnected by admin : held"}, "here"),
    "disconnected": (disconnect, {"offline": True, "cause": "UserCause", "cause_text": "Disconnected by admin"},
                     "here"),
    "died": (lambda stand_in: stand_in.node("n1", die=True), {"offline": True, "cause": "ChannelTermination"}, "gone"),
    "disk full": (lambda stand_in: stand_in.node("n1", **DISK),
                  {"offline": True, "temporarily_offline": True, "cause": "DiskSpace"}, "barred"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_node_is_shown_as_it_is_and_only_what_a_person_does_is_none_of_its_agents(
    nodes: Nodes, stand_in: StandIn, name: str
) -> None:
    change, expected, agent = STATES[name]
    add_online(nodes, stand_in)
    change(stand_in)
    node = nodes.look("n1")
    assert node
    usual = Node("n1", "devstack-gate-pool=p", False, False, True, "", node.reason, frozenset({LABEL, "n1"}),
                 f"{stand_in.url}computer/n1")
    assert node == usual._replace(**expected)
    assert node.agent == agent
    assert nodes.all()["n1"] == node


def test_a_node_that_still_connects_is_not_dead(nodes: Nodes, stand_in: StandIn) -> None:
    stand_in.knobs(connect="never")
    add(nodes)
    node = nodes.look("n1")
    assert node
    assert (node.offline, node.temporarily_offline, node.cause, node.agent) == (True, False, "", "connecting")


def test_a_node_whose_launch_failed_is_dead(nodes: Nodes, stand_in: StandIn) -> None:
    stand_in.knobs(connect="ssh", retry_seconds=0.01)
    host, port = free_address()
    add(nodes, address=host, port=port)
    stand_in.wait_node("n1", "launch-failed", WAIT_SECONDS)
    node = nodes.look("n1")
    assert node
    assert (node.cause, node.agent) == ("LaunchFailed", "gone")


def shown(agent: str, cause: str = "") -> Node:
    """Return a node whose agent is in that state."""
    return {
        "here": Node("n", "", False, False, True, "", "", frozenset()),
        "offline by hand": Node("n", "", True, True, True, "UserCause", "", frozenset()),
        "offline by hand, restarted": Node("n", "", True, True, True, "", "", frozenset()),
        "offline by command": Node("n", "", True, True, True, "ByCLI", "", frozenset()),
        "barred": Node("n", "", True, True, True, cause or "DiskSpace", "", frozenset()),
        "connecting": Node("n", "", True, False, True, "", "", frozenset()),
        "gone": Node("n", "", True, False, True, cause or "LaunchFailed", "", frozenset()),
    }[agent]


@pytest.mark.parametrize(("node", "ready", "came", "absent", "prospect"), [
    (shown("here"), 9999, True, 9999, "here"),
    (shown("offline by hand"), 9999, True, 9999, "here"),
    (shown("offline by hand, restarted"), 9999, True, 9999, "here"),
    (shown("offline by command"), 9999, True, 9999, "here"),
    (shown("barred"), 0, True, 0, "lost"),
    (shown("barred", "ResponseTime"), 0, False, 0, "lost"),
    (shown("connecting"), 599, False, 599, "awaited"),
    (shown("connecting"), 600, False, 0, "lost"),
    (shown("connecting"), 9999, True, 599, "awaited"),  # Jenkins has been restarted
    (shown("connecting"), 9999, True, 600, "lost"),
    (shown("gone"), 0, False, 0, "lost"),  # Jenkins has given up: a wrong credential, no Java
    (shown("gone"), 9999, True, 149, "awaited"),  # Jenkins takes up to two minutes to have it back
    (shown("gone"), 9999, True, 150, "lost"),
    (shown("gone", "ChannelTermination"), 9999, True, 149, "awaited"),
    (shown("gone", "ChannelTermination"), 9999, True, 150, "lost"),
    (shown("gone", "ChannelTermination"), 9999, False, 149, "awaited"),  # it was there, though no run has seen it
    (shown("gone", "ChannelTermination"), 9999, False, 150, "lost"),
    (shown("gone", "Data"), 9999, True, 149, "awaited"),  # the monitor of response times disconnects
])
def test_prospect(node: Node, ready: float, came: bool, absent: float, prospect: str) -> None:
    assert node.prospect(ready, came, absent) == prospect


@pytest.mark.parametrize(("node", "came", "words"), [
    (shown("gone")._replace(reason="Jenkins failed to launch it.\nat java.lang"), False,
     "its agent never came: Jenkins failed to launch it."),
    (shown("gone"), True, "its agent is gone: LaunchFailed"),
    (shown("connecting"), False, "its agent never came: Jenkins still connects"),
    (shown("barred")._replace(reason="0.100GB left on /tmp."), True, "Jenkins took it offline: 0.100GB left on /tmp."),
])
def test_a_loss_is_told_with_what_jenkins_says_and_where_the_log_is(node: Node, came: bool, words: str) -> None:
    assert node._replace(url="http://ci/computer/n").loss(came) == f"{words}; log: http://ci/computer/n/log"


def test_all_nodes_are_seen_by_one_call(nodes: Nodes, stand_in: StandIn) -> None:
    stand_in.add_nodes([{"name": f"n{number}", "label": LABEL} for number in range(300)])
    stand_in.reset_calls()
    assert set(nodes.all()) >= {f"n{number}" for number in range(300)}
    assert stand_in.calls() == {"GET /computer/api/json": 1}


def test_a_node_of_another_kind_hides_no_others(nodes: Nodes, stand_in: StandIn) -> None:
    common = {"offline": False, "temporarilyOffline": False, "idle": True}
    listed = [{"displayName": "pod", **common, "assignedLabels": [{}, None, {"name": "pods"}]},
              {"displayName": "bare", **common, "assignedLabels": None, "description": None}]
    body = json.dumps({"computer": listed})
    stand_in.knobs(answers=[{"match": "GET /computer/api/json", "status": 200, "body": body}])

    assert {name: node.labels for name, node in nodes.all().items()} == {"pod": {"pods"}, "bare": frozenset()}


def test_a_redirect_of_a_look_is_followed(tmp_path: Path) -> None:
    """A proxy may lead to another address of Jenkins."""
    class Moved(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b'{"computer": []}' if self.path.startswith("/moved") else b""
            self.send_response(200 if body else 302)
            if not body:
                self.send_header("Location", "/moved")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Moved) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        config = JenkinsConfig(f"http://127.0.0.1:{server.server_port}/", "user", "key", "nodes")
        seen = Nodes(config, tmp_path / "locks", "p").all()
        server.shutdown()

    assert seen == {}


def test_a_node_that_builds_is_not_idle(busy_jenkins: StandIn, tmp_path: Path) -> None:
    nodes = Nodes(config_of(busy_jenkins), tmp_path / "locks", "p")
    add_online(nodes, busy_jenkins)
    busy_jenkins.add_job("gate", LABEL, seconds=60)
    busy_jenkins.wait_started(busy_jenkins.build("gate"), WAIT_SECONDS)
    assert nodes.all()["n1"].idle is False


# Adding


def test_a_node_is_made_for_one_build_of_its_label_with_its_host_key(nodes: Nodes, stand_in: StandIn) -> None:
    add(nodes)
    node = stand_in.look()["nodes"]["n1"]
    expected = {"label": LABEL, "executors": 1, "exclusive": True, "host": "192.0.2.1", "port": 22, "key": ANY_HOST_KEY,
                "credentialsId": "nodes", "remoteFS": "/home/jenkins", "strategy": "ManuallyProvided"}
    assert {name: node[name] for name in expected} == expected


def test_no_page_of_all_nodes_is_drawn_for_a_change(nodes: Nodes, stand_in: StandIn) -> None:
    """Each request counts when there are thousands of nodes."""
    add(nodes)
    assert stand_in.calls() == {"POST /computer/doCreateItem": 1, "GET /computer/{name}/config.xml": 1}
    nodes.take_out_of_service("n1", "used")
    stand_in.reset_calls()
    nodes.remove("n1", "gone")
    assert stand_in.calls() == {"GET /computer/{name}/api/json": 2, "POST /computer/{name}/doDelete": 1}


def test_each_node_gets_its_own_host_key(nodes: Nodes, stand_in: StandIn) -> None:
    keys = {"n1": ANY_HOST_KEY, "n2": OTHER_HOST_KEY}
    for name, key in keys.items():
        add(nodes, name, host_key=key)
    assert {name: node["key"] for name, node in stand_in.look()["nodes"].items()} == keys


def test_a_node_with_our_name_and_address_is_taken_as_it_is(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    add(nodes)
    assert list(stand_in.look()["nodes"]) == ["n1"]


@pytest.mark.parametrize(("address", "port"), [("192.0.2.2", 22), ("192.0.2.1", 2222)])
def test_a_node_that_leads_elsewhere_is_a_conflict_and_left_alone(
    nodes: Nodes, stand_in: StandIn, address: str, port: int
) -> None:
    add_online(nodes, stand_in)
    before = stand_in.look()["nodes"]
    with pytest.raises(NodeConflictError) as caught:
        add(nodes, address=address, port=port)
    assert str(caught.value) == (f"Jenkins {stand_in.url}: has a node n1 that is not ours; it leads to 192.0.2.1:22, "
                                 f"ours would lead to {address}:{port}")
    assert stand_in.look()["nodes"] == before


def test_a_node_of_another_pool_is_a_conflict_and_left_alone(stand_in: StandIn, tmp_path: Path) -> None:
    add_online(Nodes(config_of(stand_in), tmp_path / "locks", "another"), stand_in)
    before = stand_in.look()["nodes"]
    with pytest.raises(NodeConflictError, match="has a node n1 that is not ours"):
        add(Nodes(config_of(stand_in), tmp_path / "locks", "p"))
    assert stand_in.look()["nodes"] == before


@pytest.mark.parametrize("races", [True, False])
def test_two_that_add_one_node_at_once_both_have_it(stand_in: StandIn, tmp_path: Path, races: bool) -> None:
    stand_in.knobs(create_races=races, latency_seconds=0.05)
    both = [Nodes(config_of(stand_in), tmp_path / "locks", "p") for _ in range(2)]
    gate = threading.Barrier(2)

    def act(nodes: Nodes) -> None:
        gate.wait(WAIT_SECONDS)
        add(nodes)

    with ThreadPoolExecutor(2) as workers:
        for done in [workers.submit(act, nodes) for nodes in both]:
            done.result(WAIT_SECONDS)
    assert list(stand_in.look()["nodes"]) == ["n1"]


@pytest.mark.parametrize("answer", [{"status": 500}, {"status": 503}, {"kind": "reset"}, {"kind": "close"}], ids=str)
def test_a_create_that_was_carried_out_and_answered_wrong_is_done(
    nodes: Nodes, stand_in: StandIn, answer: dict[str, Any]
) -> None:
    stand_in.knobs(answers=[{"match": "POST /computer/doCreateItem", "when": "after", "times": 1, **answer}])
    add(nodes)
    assert list(stand_in.look()["nodes"]) == ["n1"]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ({"status": 500}, JenkinsError, "create node n1: 500 Server Error"),
        ({"status": 401}, JenkinsConfigError, "create node n1: 401, user admin or its apikey is wrong"),
        ({"kind": "close"}, JenkinsError, "create node n1: no answer ("),
    ],
    ids=["500", "401", "close"],
)
def test_a_create_that_was_not_carried_out_fails_with_its_reason(
    nodes: Nodes, stand_in: StandIn, answer: dict[str, Any], error: type[GateError], message: str
) -> None:
    stand_in.knobs(answers=[{"match": "POST /computer/doCreateItem", **answer}])
    with pytest.raises(error) as caught:
        add(nodes)
    assert str(caught.value).startswith(f"Jenkins {stand_in.url}: {message}")
    assert stand_in.look()["nodes"] == {}


@pytest.mark.parametrize(
    ("missing", "act", "what"),
    [
        ("Create", add, "create node n1"),
        ("Configure", lambda nodes: nodes.take_out_of_service("n1", "held"), "read node n1"),
        ("Disconnect", lambda nodes: nodes.take_out_of_service("n1", "held"), "take node n1 out of service"),
        ("Delete", lambda nodes: nodes.remove("n1", "gone"), "delete node n1"),
    ],
)
def test_a_right_that_is_missing_is_named(
    nodes: Nodes, stand_in: StandIn, missing: str, act: Callable[[Nodes], object], what: str
) -> None:
    if missing != "Create":
        add_online(nodes, stand_in)
    rights = {"Create", "Configure", "Disconnect", "Delete", "ExtendedRead"} - {missing}
    stand_in.knobs(rights={"admin": ["Overall.Read", *(f"Computer.{right}" for right in sorted(rights))]})
    with pytest.raises(JenkinsConfigError) as caught:
        act(nodes)
    assert str(caught.value) == (f"Jenkins {stand_in.url}: {what}: 403, user admin needs the right "
                                 f"hudson.model.Computer.{missing}")


def test_a_node_that_may_not_be_relabelled_is_marked_offline_all_the_same(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    stand_in.knobs(rights={"admin": ["Overall.Read", "Computer.Disconnect"]})
    with pytest.raises(JenkinsConfigError, match=r"403, user admin needs the right hudson\.model\.Computer\.Configure"):
        nodes.take_out_of_service("n1", "in use by gate #7")
    assert state(stand_in) == (True, LABEL)


@pytest.mark.parametrize("rights", [["Computer.Create"], ["Computer.Configure"]])
def test_the_right_to_make_nodes_is_known_without_one(nodes: Nodes, stand_in: StandIn, rights: list[str]) -> None:
    stand_in.knobs(rights={"admin": ["Overall.Read", *rights]})
    if rights == ["Computer.Create"]:
        nodes.check_create()
    else:
        with pytest.raises(JenkinsConfigError, match=r"create nodes: 403, .* hudson\.model\.Computer\.Create"):
            nodes.check_create()
    assert stand_in.look()["nodes"] == {}


def test_jenkins_is_told_to_give_up_soon_on_an_agent_that_does_not_answer(nodes: Nodes, stand_in: StandIn) -> None:
    add(nodes)
    config = client(stand_in).get_node_config("n1")
    assert "<maxNumRetries>3</maxNumRetries>" in config
    assert "<retryWaitTime>5</retryWaitTime>" in config


# Taking out of service


def test_a_node_out_of_service_is_marked_offline_and_without_its_label(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    node = nodes.take_out_of_service("n1", "in use by gate #7")
    assert node == nodes.look("n1")
    assert node
    assert (node.out_of_service, node.reason, node.labels) == (True, "in use by gate #7", frozenset({USED, "n1"}))
    assert state(stand_in) == (True, USED)


def test_taking_it_out_again_does_not_bring_it_back(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    for message in ("one", "two"):
        nodes.take_out_of_service("n1", message)
    assert state(stand_in) == (True, USED)
    assert stand_in.look()["nodes"]["n1"]["offlineCauseReason"] == "one"


@pytest.mark.parametrize(
    "before", [lambda stand_in: toggle(stand_in, "a person"), lambda stand_in: stand_in.node("n1", label=USED)],
    ids=["toggled", "relabelled"])
def test_what_is_half_out_of_service_is_taken_out_wholly(
    nodes: Nodes, stand_in: StandIn, before: Callable[[StandIn], object]
) -> None:
    add_online(nodes, stand_in)
    before(stand_in)
    nodes.take_out_of_service("n1", "held")
    assert state(stand_in) == (True, USED)


def test_the_message_of_a_person_stays_and_that_of_a_monitor_does_not(nodes: Nodes, stand_in: StandIn) -> None:
    """A monitor brings a node back that it took offline, as soon as there is room again."""
    add_online(nodes, stand_in, "n1")
    add_online(nodes, stand_in, "n2")
    toggle(stand_in, "a person")
    stand_in.node("n2", **DISK)

    taken = [nodes.take_out_of_service(name, "in use by gate #7") for name in ("n1", "n2")]

    assert [(node.out_of_service, node.cause, node.reason) for node in taken if node] == [
        (True, "UserCause", "a person"), (True, "UserCause", "in use by gate #7")]


def test_two_that_mark_a_node_at_once_leave_it_offline(nodes: Nodes, stand_in: StandIn, tmp_path: Path) -> None:
    """Jenkins' toggle would leave it online."""
    add_online(nodes, stand_in)
    stand_in.knobs(latency_seconds=0.1)
    other = Nodes(config_of(stand_in), tmp_path / "elsewhere", "p")  # on another host, behind another lock
    with ThreadPoolExecutor(2) as both:
        taken = [both.submit(one.take_out_of_service, "n1", "held") for one in (nodes, other)]
        assert [one.result(WAIT_SECONDS) is not None for one in taken] == [True, True]
    assert state(stand_in) == (True, USED)


def test_a_mark_that_a_restart_hides_until_the_agent_is_back_is_made_again(nodes: Nodes, stand_in: StandIn) -> None:
    """Jenkins before 2.483 hides it; the label stays, and keeps builds off meanwhile."""
    add_online(nodes, stand_in)
    nodes.take_out_of_service("n1", "in use by gate #7")
    stand_in.knobs(restart_seconds=0.0, connect="never")
    stand_in.restart()
    hidden = await_that("an answer", lambda: nodes.look("n1"))
    assert hidden
    assert (hidden.temporarily_offline, USED in hidden.labels, hidden.out_of_service) == (False, True, False)

    again = nodes.take_out_of_service("n1", "its machine has been used")

    assert again
    assert (again.out_of_service, again.reason) == (True, "its machine has been used")
    stand_in.knobs(connect="instant")
    stand_in.restart()
    stand_in.wait_node("n1", "online", WAIT_SECONDS)
    assert state(stand_in) == (True, USED)


def test_a_node_that_still_connects_comes_online_out_of_service(nodes: Nodes, stand_in: StandIn) -> None:
    stand_in.knobs(connect_seconds=0.5)
    add(nodes)
    nodes.take_out_of_service("n1", "held")
    stand_in.wait_node("n1", "online", WAIT_SECONDS)
    assert state(stand_in) == (True, USED)


def test_a_disconnected_node_comes_back_out_of_service(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    disconnect(stand_in)
    nodes.take_out_of_service("n1", "held")
    stand_in.node("n1", launch=True)
    stand_in.wait_node("n1", "online", WAIT_SECONDS)
    assert state(stand_in) == (True, USED)


def test_a_node_that_died_comes_back_out_of_service(nodes: Nodes, stand_in: StandIn) -> None:
    stand_in.knobs(reconnect_seconds=0.3)
    add_online(nodes, stand_in)
    stand_in.node("n1", die=True)
    nodes.take_out_of_service("n1", "held")
    stand_in.wait_node("n1", "online", WAIT_SECONDS)
    assert state(stand_in) == (True, USED)


def test_relabelling_keeps_everything_else(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    before = client(stand_in).get_node_config("n1")
    nodes.take_out_of_service("n1", "held")
    after = client(stand_in).get_node_config("n1")
    assert before.count(f"<label>{LABEL}</label>") == 1
    assert after.replace(f"<label>{USED}</label>", f"<label>{LABEL}</label>") == before


def test_a_missing_node_is_an_error_unless_that_is_fine(nodes: Nodes, stand_in: StandIn) -> None:
    with pytest.raises(JenkinsError) as caught:
        nodes.take_out_of_service("n1", "held")
    assert str(caught.value) == f"Jenkins {stand_in.url}: has no node n1"
    assert nodes.take_out_of_service("n1", "held", missing_ok=True) is None


TAKER = """
import sys
sys.path.insert(0, {project!r})
from pathlib import Path
import gateconfig, gateprocess, jenkinsnodes

nodes = jenkinsnodes.Nodes(gateconfig.JenkinsConfig({url!r}, {user!r}, {token!r}, "nodes"), Path(sys.argv[1]), "p")
nodes.all()
print("here", flush=True)
for line in sys.stdin:
    try:
        print(nodes.take_out_of_service(line.strip(), "held").out_of_service, flush=True)
    except gateprocess.GateError as err:
        print(err, flush=True)
"""


@pytest.mark.parametrize("folders", [("one", "one"), ("one", "two")], ids=["on one host", "on two hosts"])
def test_two_processes_that_take_a_node_at_once_do_not_bring_it_back(
    nodes: Nodes, stand_in: StandIn, tmp_path: Path, folders: tuple[str, str]
) -> None:
    names = [f"n{number}" for number in range(10)]
    for name in names:
        add_online(nodes, stand_in, name)
    stand_in.knobs(latency_seconds=0.02)
    script = TAKER.format(project=str(PROJECT), url=stand_in.url, user=stand_in.user, token=stand_in.token)
    takers = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path / folder)], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE) for folder in folders]
    try:
        said = [ask(taker, "") for taker in takers]
        for name in names:
            for taker in takers:
                assert taker.stdin
                taker.stdin.write(f"{name}\n")
                taker.stdin.flush()
            said += [ask(taker, "") for taker in takers]
    finally:
        for taker in takers:
            taker.kill()
            taker.communicate()
    assert said == ["here\n"] * 2 + ["True\n"] * 20
    assert {name: state(stand_in, name) for name in names} == dict.fromkeys(names, (True, USED))


def ask(process: subprocess.Popen[str], text: str) -> str:
    assert process.stdin
    assert process.stdout
    process.stdin.write(text)
    process.stdin.flush()
    return process.stdout.readline()


@pytest.mark.parametrize("change", [{"temporarilyOffline": False}, {"label": LABEL}], ids=["toggled", "relabelled"])
def test_what_somebody_else_undoes_at_that_moment_is_told_and_still_keeps_builds_off(
    nodes: Nodes, stand_in: StandIn, change: dict[str, Any]
) -> None:
    add_online(nodes, stand_in)
    stand_in.knobs(latency_seconds=0.1)

    def undo() -> None:
        wanted = (True, USED) if "temporarilyOffline" in change else (False, USED)
        await_that("the node to be taken out", lambda: state(stand_in) == wanted)
        stand_in.node("n1", **change)

    with ThreadPoolExecutor(1) as somebody:
        undone = somebody.submit(undo)
        with pytest.raises(JenkinsError, match="node n1 does not stay out of service"):
            nodes.take_out_of_service("n1", "held")
        undone.result(WAIT_SECONDS)
    assert state(stand_in) == ((False, USED) if "temporarilyOffline" in change else (True, LABEL))
    nodes.take_out_of_service("n1", "held")
    assert state(stand_in) == (True, USED)


def test_a_mark_that_does_not_stick_is_an_error(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    stand_in.knobs(rights={}, answers=[{"match": "POST /computer/n1/changeOfflineCause", "status": 302}])
    with pytest.raises(JenkinsError):
        nodes.take_out_of_service("n1", "held")
    assert state(stand_in) == (False, USED)


def test_a_mark_whose_answer_is_lost_fails_and_the_next_try_does_not_undo_it(
    nodes: Nodes, stand_in: StandIn
) -> None:
    add_online(nodes, stand_in)
    answer = {"match": "POST /computer/n1/changeOfflineCause", "kind": "close", "when": "after", "times": 1}
    stand_in.knobs(answers=[answer])
    with pytest.raises(JenkinsError):
        nodes.take_out_of_service("n1", "held")
    nodes.take_out_of_service("n1", "held")
    assert state(stand_in) == (True, USED)


@pytest.mark.parametrize("seconds", [0.3], ids=["a build runs"])
def test_a_queued_build_does_not_land_on_a_node_that_was_taken_out(
    busy_jenkins: StandIn, tmp_path: Path, seconds: float
) -> None:
    nodes = Nodes(config_of(busy_jenkins), tmp_path / "locks", "p")
    add_online(nodes, busy_jenkins)
    for name in ("first", "second"):
        busy_jenkins.add_job(name, LABEL, seconds=seconds)
    busy_jenkins.wait_started(busy_jenkins.build("first"), WAIT_SECONDS)
    busy_jenkins.build("second")
    nodes.take_out_of_service("n1", "in use by first #1")
    assert busy_jenkins.wait_build("first", 1, WAIT_SECONDS)["result"] == "SUCCESS"
    time.sleep(GAPS_SECONDS)
    assert [item["job"] for item in busy_jenkins.look()["queue"]] == ["second"]
    busy_jenkins.node("n1", temporarilyOffline=False)  # somebody brings it back online: the label still keeps it out
    time.sleep(GAPS_SECONDS)
    assert [item["job"] for item in busy_jenkins.look()["queue"]] == ["second"]


# Crumbs


def test_a_password_works_and_goes_on_working_when_jenkins_restarts(busy_jenkins: StandIn, tmp_path: Path) -> None:
    busy_jenkins.knobs(restart_seconds=0.0)
    nodes = Nodes(config_of(busy_jenkins, busy_jenkins.password), tmp_path / "locks", "p")
    for name in ("n1", "n2"):
        add_online(nodes, busy_jenkins, name)
        busy_jenkins.restart()
        busy_jenkins.wait_node(name, "online", WAIT_SECONDS)
        nodes.take_out_of_service(name, "held")
        assert state(busy_jenkins, name) == (True, USED)
    busy_jenkins.restart()
    assert nodes.remove("n1", "gone") is True
    assert list(busy_jenkins.look()["nodes"]) == ["n2"]


def test_a_token_needs_no_crumb(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    assert [call for call in stand_in.calls() if "crumb" in call.lower()] == []


def test_a_wrong_password_is_named_by_its_user_and_not_shown(stand_in: StandIn, tmp_path: Path) -> None:
    nodes = Nodes(config_of(stand_in, "s3cr3t"), tmp_path / "locks", "p")
    for call in (nodes.all, lambda: add(nodes), lambda: nodes.look("n1")):
        with pytest.raises(JenkinsConfigError, match="user admin or its apikey is wrong") as caught:
            call()
        assert "s3cr3t" not in str(caught.value)


# Removing


def test_an_idle_node_is_removed(nodes: Nodes, stand_in: StandIn) -> None:
    add_online(nodes, stand_in)
    assert nodes.remove("n1", "gone") is True
    assert stand_in.look()["nodes"] == {}


def test_a_node_that_builds_is_taken_out_of_service_and_not_removed(busy_jenkins: StandIn, tmp_path: Path) -> None:
    nodes = Nodes(config_of(busy_jenkins), tmp_path / "locks", "p")
    add_online(nodes, busy_jenkins)
    busy_jenkins.add_job("gate", LABEL, seconds=0.5)
    busy_jenkins.wait_started(busy_jenkins.build("gate"), WAIT_SECONDS)
    assert nodes.remove("n1", "gone") is False
    assert state(busy_jenkins) == (True, USED)
    assert busy_jenkins.wait_build("gate", 1, WAIT_SECONDS)["result"] == "SUCCESS"
    assert nodes.remove("n1", "gone") is True
    assert busy_jenkins.look()["nodes"] == {}


def test_a_node_of_another_pool_is_not_removed(nodes: Nodes, stand_in: StandIn, tmp_path: Path) -> None:
    add_online(Nodes(config_of(stand_in), tmp_path / "locks", "another"), stand_in)
    assert nodes.remove("n1", "gone") is True
    assert state(stand_in) == (False, LABEL)


@pytest.mark.parametrize(("address", "left"), [("192.0.2.1", []), ("192.0.2.2", ["n1"]), (None, ["n1"])])
def test_a_node_without_any_mark_is_ours_only_if_it_leads_to_our_address(
        nodes: Nodes, stand_in: StandIn, address: str | None, left: list[str]) -> None:
    stand_in.add_nodes([{"name": "n1", "label": LABEL, "host": "192.0.2.1"}])
    assert nodes.remove("n1", "gone", address) is True
    assert list(stand_in.look()["nodes"]) == left


def test_a_build_that_starts_just_before_the_removal_is_not_failed(busy_jenkins: StandIn, tmp_path: Path) -> None:
    nodes = Nodes(config_of(busy_jenkins), tmp_path / "locks", "p")
    add_online(nodes, busy_jenkins)
    busy_jenkins.add_job("gate", LABEL, seconds=2)
    busy_jenkins.knobs(latency_seconds=0.1)
    with ThreadPoolExecutor(1) as worker:
        removed = worker.submit(nodes.remove, "n1", "gone")
        await_that("the first look", lambda: busy_jenkins.calls().get("GET /computer/{name}/config.xml"))
        busy_jenkins.build("gate")
        outcome = removed.result(WAIT_SECONDS)
    results = [build["result"] for build in busy_jenkins.look()["builds"]]
    assert (outcome, results) in [(False, [None]), (True, [])]


@pytest.mark.parametrize("answer", [{"status": 500}, {"status": 403}, {"kind": "close"}], ids=str)
def test_a_removal_that_fails_is_not_taken_for_done(nodes: Nodes, stand_in: StandIn, answer: dict[str, Any]) -> None:
    add_online(nodes, stand_in)
    stand_in.knobs(answers=[{"match": "POST /computer/n1/doDelete", **answer}])
    with pytest.raises(GateError, match="delete node n1: "):
        nodes.remove("n1", "gone")
    assert list(stand_in.look()["nodes"]) == ["n1"]


# Is it out of service?


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, False),
        ({"label": USED}, False),
        ({"temporarilyOffline": True}, False),
        ({"temporarilyOffline": True, "label": USED}, True),
        ({"temporarilyOffline": True, "label": f"other {USED}"}, True),
        ({"die": True, "label": USED}, False),
    ],
    ids=["online", "label", "toggle", "both", "two labels", "dead"],
)
def test_a_node_is_out_of_service_by_both_marks(
    nodes: Nodes, stand_in: StandIn, change: dict[str, Any], expected: bool
) -> None:
    add_online(nodes, stand_in)
    stand_in.node("n1", **change)
    assert is_out_of_service(config_of(stand_in), "n1") is expected


@pytest.mark.parametrize(
    "answer",
    [*({"status": status} for status in (401, 403, 404, 500, 503)), {"kind": "reset"}, {"kind": "close"}],
    ids=str,
)
def test_what_jenkins_does_not_tell_is_not_out_of_service(
    nodes: Nodes, stand_in: StandIn, answer: dict[str, Any]
) -> None:
    add_online(nodes, stand_in)
    nodes.take_out_of_service("n1", "held")
    stand_in.knobs(answers=[{"match": "GET /computer/n1/", **answer}])
    assert is_out_of_service(config_of(stand_in), "n1") is False


@pytest.mark.parametrize("body", RUBBISH)
def test_an_answer_that_makes_no_sense_is_not_out_of_service(body: str) -> None:
    with answering(200, body) as url:
        assert is_out_of_service(JenkinsConfig(url, "admin", "x", "nodes"), "n1") is False


@pytest.mark.parametrize("url", ["http://127.0.0.1:{port}/", "http://jenkins.invalid/", "https://127.0.0.1:{port}/"])
def test_a_jenkins_that_is_not_there_is_not_out_of_service(url: str) -> None:
    assert is_out_of_service(JenkinsConfig(url.format(port=free_address()[1]), "admin", "x", "nodes"), "n1") is False


def test_a_jenkins_that_hangs_is_not_out_of_service(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jenkinsnodes, "CALL_SECONDS", 0.3)  # 30 s would prove the same
    stand_in.knobs(answers=[{"match": "GET /computer/", "kind": "hang", "seconds": 60}])
    began = time.monotonic()
    assert is_out_of_service(config_of(stand_in), "n1") is False
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("path", ["", "/", "/jenkins", "/jenkins/"])
def test_the_address_may_have_a_path_and_a_slash_at_its_end(tmp_path: Path, path: str) -> None:
    node = {"displayName": "n1", "offline": True, "temporarilyOffline": True, "idle": True,
            "assignedLabels": [{"name": USED}]}
    with answering(200, json.dumps(node)) as url:
        config = JenkinsConfig(f"{url.rstrip('/')}{path}", "admin", "x", "nodes")
        assert is_out_of_service(config, "n1") is True
        shown = Nodes(config, tmp_path / "locks", "p").look("n1")
    assert shown
    assert shown.out_of_service
