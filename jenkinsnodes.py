"""Jenkins nodes: add, look at, take out of service, remove.

All traps of Jenkins' REST API and python-jenkins are dealt with here and nowhere else. Only a 404 means "missing". A
node is marked offline by changing its offline cause, which works in any state of the node, and not by Jenkins' toggle,
which a second caller undoes. It is relabelled first, so that no queued build can reach it even if the mark is lost.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from gateconfig import JenkinsConfig
from gateprocess import (
    NONSENSE,
    ConfigError,
    GateError,
    clock_ahead,
    file_lock,
    has_too_many_values,
    innermost,
    plain,
)

if TYPE_CHECKING:
    import jenkins
    import requests

CALL_SECONDS = 30  # for a whole call
QUICK_SECONDS = 5  # the same if a build waits, and there is another way or one call was in vain
LOOK_BYTES = 1 << 20  # of the answer about one node
HEAD_BYTES = 16 << 10  # of an answer before its body
TEXT_LENGTH = 400  # of Jenkins' text, in a message
LOCK_SECONDS = 60
USED_LABEL = "devstack-used"
DESCRIPTION = "devstack-gate-pool="
PERSON_CAUSES = ("UserCause", "ByCLI")
CHANNEL_LOST = "ChannelTermination"
HERE, CONNECTING, GONE, BARRED = "here", "connecting", "gone", "barred"  # see Node.agent
AWAITED, LOST = "awaited", "lost"  # see Node.prospect
RECONNECT_SECONDS = 150
AGENT_SECONDS = 600
# So Jenkins says after 20 s that it cannot launch an agent; after 165 s with its own 10 retries every 15 s. It starts
# again each minute or two in either case.
LAUNCH_RETRIES, RETRY_SECONDS = 3, 5
# Why a node is out of service: the offline message, which people see and which tells what vm.db may have forgotten.
IN_USE_BY, HELD = "in use by ", "held: "  # the build or person, the reason
UNKNOWN, UNANSWERED = "vm.db does not know it", "vm.db did not answer"
GOING, STRAY = "its machine is being deleted", "there is no machine of this name"
GIVEN_UP = (UNKNOWN, UNANSWERED, GOING, STRAY)  # nobody has the machine
NODE_FIELDS = "displayName,description,offline,temporarilyOffline,idle,offlineCause[*],offlineCauseReason," \
              "assignedLabels[name]"
EXECUTOR_FIELDS = "executors[currentExecutable[url]],oneOffExecutors[currentExecutable[url]]"
QUEUE = "queue/api/json?tree=items%5Bwhy,buildable,pending,inQueueSince%5D"  # read by queued()
IN_ENGLISH = {"Accept-Language": "en"}  # what an item waits for is told in words only
QUOTES = "[\u2018\u2019'\"]"  # curly, or straight in Jenkins of other languages
WAITED_FOR = re.compile(f"(?:label|executor on) {QUOTES}(.+){QUOTES}|^{QUOTES}(.+){QUOTES} is offline$")
# The words of label expressions; - is a letter except in ->. BINDING begins with the operator that binds least.
EXPRESSION = re.compile(r'<->|->|&&|\|\||[!()]|"[^"]*"|(?:[^\s()!&|<>"-]|-(?!>))+')
BINDING = ("<->", "->", "||", "&&")
OPERATORS = {*BINDING, "!", "(", ")"}
BUILD_FIELDS = "builtOn,building,result,actions[causes[upstreamProject,upstreamBuild]]"

T = TypeVar("T")
Locks = Callable[[str, float, str], AbstractContextManager[bool]]  # kind, seconds to wait, name


class JenkinsError(GateError):
    """Jenkins did not answer, or not as expected; the state of the node or build is unknown."""


class JenkinsConfigError(ConfigError):
    """Jenkins refuses the user or the API key, or the user lacks a right."""


class NodeConflictError(GateError):
    """Jenkins has a node of this name that leads elsewhere."""


class Node(NamedTuple):
    """A node as Jenkins last showed it."""

    name: str
    description: str
    offline: bool
    temporarily_offline: bool
    idle: bool
    cause: str  # the last part of the class of the reason for being offline, such as UserCause; empty if none
    reason: str
    labels: frozenset[str]
    url: str = ""  # its page in Jenkins
    jenkins: str = ""  # name of its Jenkins, see JenkinsConfig
    cause_text: str = ""  # the reason in Jenkins' words, with the person who took it offline; empty if it says nothing

    @property
    def out_of_service(self) -> bool:
        """Return whether no build can start here: it is marked offline and lacks the label that builds ask for."""
        return self.temporarily_offline and USED_LABEL in self.labels

    @property
    def spent(self) -> bool:
        """Return whether our scripts began to take it out of service, perhaps without setting all marks.

        A person who takes a node offline leaves its label alone and gives another reason.
        """
        return USED_LABEL in self.labels or (self.temporarily_offline and self.reason in GIVEN_UP)

    @property
    def by_person(self) -> bool:
        """Return whether a person took it offline, or one of our scripts, which Jenkins takes for a person."""
        return self.offline and (self.cause in PERSON_CAUSES or (self.temporarily_offline and not self.cause))

    @property
    def told_cause(self) -> str:
        """Return in one line why it is offline, with the person who took it offline, if Jenkins says who."""
        return plain(self.cause_text or self.reason, 200)

    def serves(self, machine: str, image: str) -> bool:
        """Return whether builds that ask for the label of its machine's image type can come here.

        The machine's name begins with that label. A node that was taken out of service has another one, rightly, and
        counts as serving.
        """
        if USED_LABEL in self.labels or f"devstack-{image}-" not in machine:
            return True
        return any(label.endswith(f"devstack-{image}") and machine.startswith(f"{label}-") for label in self.labels)

    @property
    def agent(self) -> str:
        """Return the state of the agent: HERE (also if a person took the node offline), CONNECTING, GONE or BARRED.

        BARRED means by Jenkins. Its monitors, as of free disk space, mark a node offline as a person does; only the
        class of the cause tells them apart.
        """
        if not self.offline or self.by_person:
            return HERE
        if self.temporarily_offline:
            return BARRED
        return GONE if self.cause else CONNECTING

    def prospect(self, ready: float, came: bool, absent: float) -> str:
        """Return whether the agent of a ready machine is HERE, AWAITED or LOST.

        ready: how many seconds the machine has been ready; absent: for how many seconds runs have seen the agent away;
        came: whether it was ever seen. Jenkins takes 31 to 118 s (measured) to get an agent back.
        """
        if self.agent in (HERE, BARRED):
            return HERE if self.agent == HERE else LOST
        if came or self.cause == CHANNEL_LOST:
            return LOST if absent >= (RECONNECT_SECONDS if self.agent == GONE else AGENT_SECONDS) else AWAITED
        return LOST if self.agent == GONE or ready >= AGENT_SECONDS else AWAITED

    def loss(self, came: bool) -> str:
        """Return in one line why the agent cannot be used, in Jenkins' words, and where its log is."""
        what = "Jenkins took it offline" if self.agent == BARRED else "its agent is gone" if came else \
            "its agent never came"
        said = plain(self.reason.strip().partition("\n")[0], 200) or self.cause or "Jenkins still connects"
        return f"{what}: {said}; log: {self.url}/log"

    def mislabelled(self) -> str:
        """Return in one line that a person gave it labels that bring no build of its image type."""
        return f"a person changed its labels in Jenkins: {plain(self.told_labels, 200)}; log: {self.url}/log"

    @property
    def told_labels(self) -> str:
        """Return its labels in words, without its own name, which every node has as a label."""
        return " ".join(sorted(self.labels - {self.name})) or "none"


class Build(NamedTuple):
    """A build as Jenkins last showed it: where it ran, how it ended, which builds triggered it.

    result is None while it runs: what Jenkins shows until then may still get worse. node is empty for Jenkins' own
    node and for a pipeline; Jenkins does not tell where a pipeline ran, and tells_node is then false.
    """

    node: str
    result: str | None
    upstream: tuple[tuple[str, int], ...]  # job and number
    tells_node: bool = True

    def ran_elsewhere(self, node: str) -> bool:
        """Return whether it is known to have run on another node."""
        return self.tells_node and self.node != node


class Nodes:
    """The nodes of one Jenkins, and builds.

    Every method raises JenkinsError or JenkinsConfigError if Jenkins does not give the information.
    """

    def __init__(self, config: JenkinsConfig, locks: Path | Locks, pool: str) -> None:
        """Take the settings, a folder for lock files or a function that gives locks, and the UUID that marks our nodes.

        This sends nothing to Jenkins yet.
        """
        import jenkins

        import httpcalls

        self.config = config
        self.name = config.name
        self._mark = f"{DESCRIPTION}{pool}"
        self._lock: Locks = locks if callable(locks) else (
            lambda kind, seconds, name: file_lock(locks / kind, seconds, name))
        self._jenkins = jenkins.Jenkins(config.server, config.user, config.apikey, timeout=CALL_SECONDS)
        httpcalls.limit(self._jenkins._session, forms=True)
        self._jenkins.crumb = False  # an API token needs none; see _ask
        self.clock_ahead: float | None = None  # seconds that our clock is ahead of Jenkins'; None: unknown
        self._jenkins._session.hooks["response"].append(self._watch_clock)

    def _watch_clock(self, answer: requests.Response, *_: Any, **__: Any) -> None:
        """Learn Jenkins' time from the Date of its answers."""
        self.clock_ahead = clock_ahead(answer.headers.get("Date"))

    def hurry(self) -> None:
        """Give every further call a few seconds only, after one got no answer within the full time limit."""
        self._jenkins.timeout = min(QUICK_SECONDS, CALL_SECONDS)

    # --- calls ---

    def _ask(self, what: str, call: Callable[[jenkins.Jenkins], T]) -> T | None:
        """Make a call and return its result; None only for a 404.

        A password in place of an API token needs a crumb, which python-jenkins keeps for ever: this fetches a new one
        if Jenkins rejects the old one.
        """
        import jenkins
        import requests

        for fresh_crumb in (False, True):
            try:
                return call(self._jenkins)
            except jenkins.NotFoundException:
                return None
            except (jenkins.JenkinsException, requests.RequestException) as err:
                response = response_of(err)
                if response is not None and response.status_code == 403 and b"crumb" in response.content \
                        and not fresh_crumb:  # noqa: PLR2004
                    self._jenkins.crumb = None
                    continue
                raise self._explained(what, err, response) from err
            except NONSENSE as err:
                raise JenkinsError(f"Jenkins {self.config.server}: {what}: the answer makes no sense "
                                   f"({plain(str(err), TEXT_LENGTH)})") from err
        raise JenkinsError(f"Jenkins {self.config.server}: {what}: no crumb is accepted")

    def _explained(self, what: str, err: Exception, response: requests.Response | None) -> GateError:
        where = f"Jenkins {self.config.server}: {what}"
        if response is None:
            return JenkinsError(f"{where}: no answer ({short_reason(err)})")
        status = response.status_code
        if status == 401:  # noqa: PLR2004
            return JenkinsConfigError(f"{where}: 401, user {self.config.user} or its apikey is wrong")
        if status == 403:  # noqa: PLR2004
            right = plain(response.headers.get("X-Required-Permission", ""), TEXT_LENGTH)
            needs = f"needs the right {right}" if right else "is not allowed this"
            return JenkinsConfigError(f"{where}: 403, user {self.config.user} {needs}")
        said = plain(str(response.headers.get("X-Error", response.reason)), TEXT_LENGTH)
        return JenkinsError(f"{where}: {status} {said}")

    def _request(self, method: str, path: str, **arguments: Any) -> Callable[[jenkins.Jenkins], str]:
        import requests

        url = f"{self.config.server.rstrip('/')}/{path}"
        return lambda server: str(server.jenkins_open(requests.Request(method, url, **arguments)))

    def is_marked(self, node: Node) -> bool:
        """Return whether a node carries this pool's mark."""
        return self._mark in node.description

    def is_others(self, node: Node) -> bool:
        """Return whether a node carries the mark of another pool."""
        return DESCRIPTION in node.description and not self.is_marked(node)

    def is_ours(self, node: Node, address: str | None) -> bool:
        """Return whether a node with one of our names is ours: by its mark, or by its address if it has no mark."""
        if self.is_marked(node) or self.is_others(node) or not address:
            return self.is_marked(node)
        config = self._ask(f"read node {node.name}", lambda server: server.get_node_config(node.name))
        return config is not None and _element(config, "host") == address

    # --- looking ---

    def check_login(self) -> None:
        """Raise JenkinsConfigError if Jenkins refuses the user, JenkinsError if it does not answer."""
        self._ask("log in", self._request("GET", "api/json", params={"tree": "mode"}))

    def check_create(self) -> None:
        """Raise JenkinsConfigError if the user may not make nodes; Jenkins checks the right before the (empty) name."""
        self._ask("create nodes", self._request("GET", "computer/checkName", params={"value": ""}))

    def all(self) -> dict[str, Node]:
        """Return all nodes by name, in one call."""
        nodes = self._fetch("list nodes", "computer/api/json", f"computer[{NODE_FIELDS}]",
                            lambda parsed: [self._node(raw) for raw in parsed["computer"]])
        if nodes is None:
            raise JenkinsError(f"Jenkins {self.config.server}: list nodes: 404, is this the address of a Jenkins?")
        return {node.name: node for node in nodes}

    def all_but_others(self) -> dict[str, Node]:
        """Return all nodes by name, except those that carry the mark of another pool, in one call."""
        return {name: node for name, node in self.all().items() if not self.is_others(node)}

    def look(self, name: str) -> Node | None:
        """Return a node; None if Jenkins says 404."""
        return self._fetch(f"look at node {name}", f"computer/{quote(name)}/api/json", NODE_FIELDS, self._node)

    def waiting(self, labels: Mapping[str, str]) -> Counter[str]:
        """Return how many builds wait for each label, in one call; see queued().

        Builds in their quiet period, or waiting for another build of their job, do not want a node yet.
        """
        request = self._request("GET", QUEUE, headers=IN_ENGLISH)
        found = self._ask("look at the queue", lambda server: queued(request(server), labels))
        if found is None:
            raise JenkinsError(f"Jenkins {self.config.server}: look at the queue: 404, is this a Jenkins?")
        return Counter({label: len(since) for label, since in found.items()})

    def _node(self, raw: dict[str, Any]) -> Node:
        node = _node(raw)
        return node._replace(url=f"{self.config.server.rstrip('/')}/computer/{quote(node.name)}", jenkins=self.name)

    def build(self, job: str, number: int) -> Build | None:
        """Return a build of a job, whose name may include folders; None if Jenkins says 404."""
        return self._fetch(f"look at {job} #{number}", f"{build_path(job, number)}api/json", BUILD_FIELDS, _build)

    def text(self, what: str, path: str) -> str | None:
        """Return the text at a path of Jenkins, such as an artifact; None if it says 404."""
        return self._ask(what, self._request("GET", path))

    def runs_on(self, node: str, job: str, number: int) -> bool:
        """Return whether a freestyle or pipeline build runs on a node now, as far as this user may see."""
        paths = self._fetch(f"look at node {node}", f"computer/{quote(node)}/api/json", EXECUTOR_FIELDS, _running)
        return f"{job}/{number}" in (paths or ())

    def _fetch(self, what: str, path: str, tree: str, parse: Callable[[Any], T]) -> T | None:
        ask = self._request("GET", path, params={"tree": tree})
        return self._ask(what, lambda server: parse(json.loads(ask(server))))

    # --- adding ---

    def add(self, name: str, *, label: str, address: str, port: int, host_key: str, remote_fs: str) -> None:
        """Make a node with one executor, only for builds that ask for the label.

        Jenkins will connect to it only if it shows the host key. An existing node with the same name and address is
        accepted as it is. Raises NodeConflictError if the existing one has another address or belongs to another pool.
        """
        import jenkins

        form = {
            "nodeDescription": self._mark, "numExecutors": 1, "remoteFS": remote_fs, "labelString": label,
            "mode": "EXCLUSIVE", "nodeProperties": {"stapler-class-bag": "true"},
            "retentionStrategy": {"stapler-class": "hudson.slaves.RetentionStrategy$Always"},
            "launcher": {
                "stapler-class": jenkins.LAUNCHER_SSH,
                "host": address, "port": str(port), "credentialsId": self.config.credentials_id,
                "maxNumRetries": LAUNCH_RETRIES, "retryWaitTime": RETRY_SECONDS,
                "sshHostKeyVerificationStrategy": {
                    "stapler-class": "hudson.plugins.sshslaves.verifiers.ManuallyProvidedKeyVerificationStrategy",
                    "key": host_key,
                },
            },
        }
        error: GateError | None = None
        try:  # not create_node, which asks twice whether the node exists and takes any failure for "no"
            self._ask(f"create node {name}", self._request("POST", "computer/doCreateItem", data={
                "name": name, "type": jenkins.NODE_TYPE, "json": json.dumps(form)}))
        except JenkinsError as err:
            error = err  # the node may exist all the same, made by this call or by another client
        config = self._ask(f"read node {name}", lambda server: server.get_node_config(name))
        if config is None:
            raise error or JenkinsError(f"Jenkins {self.config.server}: node {name} was created but is not there")
        leads_to = _element(config, "host"), _element(config, "port")
        mark = _element(config, "description")
        if leads_to != (address, str(port)) or (DESCRIPTION in mark and self._mark not in mark):
            raise NodeConflictError(f"Jenkins {self.config.server}: has a node {name} that is not ours; it leads to "
                                    f"{':'.join(leads_to)}, ours would lead to {address}:{port}")

    # --- taking out of service and removing ---

    def take_out_of_service(self, name: str, message: str, missing_ok: bool = False) -> Node | None:
        """Take a node out of service, so that no build can start there any more, and return its new state.

        A running build goes on. Returns None if there is no such node and missing_ok is given. Raises JenkinsError if
        Jenkins does not show the node out of service in the end. If Jenkins refuses to relabel it, it is still marked
        offline before this raises: either alone keeps builds off.
        """
        with self._lock("nodes", LOCK_SECONDS, name) as mine:
            if not mine:
                raise JenkinsError(f"node {name}: another process has held its lock for more than {LOCK_SECONDS} s")
            node = self.look(name)
            if node is not None and not node.out_of_service:
                refusal = self._refusal_to_relabel(name)
                node = self._mark_offline(node, message)
                if refusal:
                    raise refusal
                if node is not None and not node.out_of_service:
                    raise JenkinsError(f"Jenkins {self.config.server}: node {name} does not stay out of service")
            if node is None and not missing_ok:
                raise JenkinsError(f"Jenkins {self.config.server}: has no node {name}")
            return node

    def _refusal_to_relabel(self, name: str) -> GateError | None:
        """Relabel a node; return the error if Jenkins refuses, raise it if Jenkins does not answer."""
        try:
            self._relabel(name)
        except GateError as err:
            if err.__cause__ is not None and response_of(err.__cause__) is None:
                raise
            return err
        return None

    def _relabel(self, name: str) -> None:
        config = self._ask(f"read node {name}", lambda server: server.get_node_config(name))
        if config is None or _element(config, "label") == USED_LABEL:
            return
        changed, count = re.subn(r"<label>[^<]*</label>|<label\s*/>", f"<label>{USED_LABEL}</label>", config)
        if count != 1:
            raise JenkinsError(f"Jenkins {self.config.server}: config.xml of node {name} has {count} labels, not one")
        self._ask(f"relabel node {name}", lambda server: server.reconfig_node(name, changed))

    def _mark_offline(self, node: Node, message: str) -> Node | None:
        """Mark a node offline and return its new state; a node that a person has marked keeps that message."""
        if not (node.temporarily_offline and node.by_person):
            self._ask(f"take node {node.name} out of service", self._request(
                "POST", f"computer/{quote(node.name)}/changeOfflineCause", params={"offlineMessage": message}))
        return self.look(node.name)

    def remove(self, name: str, message: str, address: str | None = None) -> bool:
        """Remove one of our nodes if it builds nothing; otherwise return False, with the node out of service.

        A node of that name that is not ours is left alone, as if there were none. For address see is_ours.
        """
        node = self.look(name)
        if node is None or not self.is_ours(node, address):
            return True
        if not node.out_of_service:
            node = self.take_out_of_service(name, message, missing_ok=True)
        if node is None:
            return True
        if not node.idle:
            return False
        self._ask(f"delete node {name}", self._request("POST", f"computer/{quote(name)}/doDelete"))
        if self.look(name) is not None:
            raise JenkinsError(f"Jenkins {self.config.server}: node {name} is still there after its deletion")
        return True


def is_out_of_service(config: JenkinsConfig, name: str) -> bool:
    """Return whether Jenkins shows a node as out of service, with one request; False also if Jenkins does not answer.

    A build waits for devstack-vm-delete, and this serves its common case: importing an HTTP library would take longer
    than everything else that the script does. After False, ask Nodes.
    """
    try:
        status, body = quick_get(config, f"computer/{quote(name)}/api/json?tree={quote(NODE_FIELDS)}", LOOK_BYTES)
        return status == 200 and _node(json.loads(body)).out_of_service  # noqa: PLR2004
    except (OSError, *NONSENSE):
        return False


def quick_get(config: JenkinsConfig, path: str, most: int, head: str = "") -> tuple[int, bytes]:
    """Return status and body of the answer at a path of Jenkins, with one request and without an HTTP library.

    head: further header lines, each with its line end. Raises OSError, ValueError or IndexError if there is no whole
    answer within QUICK_SECONDS, or if its body has more than `most` bytes or too many values. The request runs in
    another thread, because a resolver, or trying one address after the other, keeps no time limit.
    """
    import threading

    seconds = min(QUICK_SECONDS, CALL_SECONDS)
    done: list[tuple[int, bytes] | Exception] = []

    def work() -> None:
        try:
            done.append(_get(config, path, most, head, time.monotonic() + seconds))
        except Exception as err:  # noqa: BLE001 - it comes out in the thread that waits
            done.append(err)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise TimeoutError(f"no whole answer within {seconds} s")
    if isinstance(done[0], Exception):
        raise done[0]
    return done[0]


def _get(config: JenkinsConfig, path: str, most: int, head: str, deadline: float) -> tuple[int, bytes]:
    """Make quick_get's request; it gives up at about the deadline, on the monotonic clock."""
    import base64

    parts = urlsplit(config.server)
    login = base64.b64encode(f"{config.user}:{config.apikey}".encode()).decode()
    path = f"{parts.path.rstrip('/')}/{path}"
    request = f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\nAuthorization: Basic {login}\r\n{head}\r\n"
    with _stream(parts.scheme, str(parts.hostname), parts.port) as stream:
        stream.sendall(request.encode())
        answer, _, body = _read_all(stream, deadline, most + HEAD_BYTES).partition(b"\r\n\r\n")
    length = re.search(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})", answer, re.IGNORECASE)
    if (length and len(body) < int(length[1])) or has_too_many_values(body):
        raise ValueError("the answer was cut off, or has too many values")
    return int(answer.split()[1]), body


def build_path(job: str, number: int) -> str:
    """Return the path of a build below Jenkins' address; the name of its job may include folders.

    The last part of a name like gate/label=noble is a combination of a matrix job, not a job in a folder.
    """
    *folders, last = job.split("/")
    own = "" if folders and "=" in last else "job/"
    return "".join(f"job/{quote(part, safe='')}/" for part in folders) + f"{own}{quote(last, safe='=,')}/{number}/"


def build_url(config: JenkinsConfig, job: str, number: int) -> str:
    """Return the address of a build's page."""
    return f"{config.server.rstrip('/')}/{build_path(job, number)}"


def _read_all(stream: socket.socket, deadline: float, most: int) -> bytes:
    """Read an answer to its end; raises OSError after the deadline (monotonic clock) or if the answer is too long."""
    answer = bytearray()
    while True:
        stream.settimeout(max(0.01, deadline - time.monotonic()))
        chunk = stream.recv(65536)
        if not chunk:
            return bytes(answer)
        answer += chunk
        if len(answer) > most or time.monotonic() > deadline:
            raise OSError("the answer has no end")


def _stream(scheme: str, host: str, port: int | None) -> socket.socket:
    seconds = min(QUICK_SECONDS, CALL_SECONDS)
    stream = socket.create_connection((host, port or (443 if scheme == "https" else 80)), seconds)
    if scheme != "https":
        return stream
    import ssl

    return ssl.create_default_context().wrap_socket(stream, server_hostname=host)


def _node(raw: dict[str, Any]) -> Node:
    labels = [label for label in raw.get("assignedLabels") or [] if label]  # some kinds have no names
    cause = raw.get("offlineCause") or {}
    return Node(
        name=str(raw["displayName"]),
        description=str(raw.get("description") or ""),
        offline=bool(raw["offline"]),
        temporarily_offline=bool(raw["temporarilyOffline"]),
        idle=bool(raw["idle"]),
        cause=re.split(r"[.$]", str(cause.get("_class", "")))[-1],
        reason=str(raw.get("offlineCauseReason") or ""),
        cause_text=str(cause.get("description") or ""),
        labels=frozenset(str(label["name"]) for label in labels if label.get("name")),
    )


def queued(body: str | bytes, labels: Mapping[str, str]) -> dict[str, list[int]]:
    """Return since when builds in Jenkins' queue wait for a node (Unix milliseconds), by the label they wait for.

    body is Jenkins' answer at QUEUE. labels is {node: label}: if only one node has a label, Jenkins names that node
    instead. Raises one of NONSENSE if the body is not such an answer.
    """
    found: dict[str, list[int]] = {}
    for item in json.loads(body)["items"]:
        if awaited := label_that_serves(awaited_label(item)):
            found.setdefault(labels.get(awaited, awaited), []).append(int(item["inQueueSince"]))
    return found


def awaited_label(item: Mapping[str, Any]) -> str:
    """Return the label, or the only node of a label, that an item in Jenkins' queue waits for; empty if it is neither.

    Jenkins says it in words only: no nodes with the label X, all nodes of label X are offline, no free executor on X,
    node Y is offline, no free executor on Y. A pending build has its node already and is about to start there.
    """
    if not item.get("buildable") or item.get("pending"):
        return ""
    found = WAITED_FOR.search(str(item.get("why") or ""))
    return str(found[1] or found[2]) if found else ""


def label_that_serves(expression: str) -> str:
    """Return one label that satisfies a label expression of Jenkins, such as a||b or a&&!(b c); else the expression.

    If several do, a label of a pool is preferred, then the first. Our nodes have one label each, so an expression that
    needs two labels on a node is for other nodes.
    """
    words = EXPRESSION.findall(expression)
    names = list(dict.fromkeys(word.strip('"') for word in words if word not in OPERATORS))
    if len(words) <= 1 or "".join(words) != re.sub(r"\s", "", expression):
        return expression
    try:
        return next((name for name in sorted(names, key=lambda name: "devstack-" not in name)
                     if _Expression(words).holds(name)), expression)
    except (IndexError, RecursionError):  # not a valid expression
        return expression


class _Expression:
    """A label expression, which can be evaluated once."""

    def __init__(self, words: list[str]) -> None:
        """Take its words."""
        self._words = [*words, ""]
        self._label = ""

    def holds(self, label: str) -> bool:
        """Return whether a node with only this label satisfies it; raises IndexError for an invalid expression."""
        self._label = label
        found = self._read(0)
        if self._words != [""]:
            raise IndexError
        return found

    def _read(self, level: int) -> bool:
        """Evaluate the next words, up to an operator that binds less than those of this level."""
        if level == len(BINDING):
            return self._read_one()
        left = self._read(level + 1)
        while (word := self._words[0]) == BINDING[level]:
            self._words.pop(0)
            right = self._read(level + 1)
            left = {"<->": left == right, "->": not left or right, "||": left or right, "&&": left and right}[word]
        return left

    def _read_one(self) -> bool:
        word = self._words.pop(0)
        if word == "!":
            return not self._read_one()
        if word == "(":
            found = self._read(0)
            if self._words.pop(0) != ")":
                raise IndexError
            return found
        if not word or word in OPERATORS:
            raise IndexError
        return word.strip('"') == self._label


def _build(raw: dict[str, Any]) -> Build:
    causes = [cause for action in raw.get("actions", []) if action for cause in action.get("causes", [])]
    return Build(
        node=str(raw.get("builtOn") or ""),
        tells_node="builtOn" in raw,
        result=None if raw["building"] or not raw.get("result") else str(raw["result"]),
        upstream=tuple((str(cause["upstreamProject"]), int(cause["upstreamBuild"]))
                       for cause in causes if cause.get("upstreamProject")),
    )


def _running(raw: dict[str, Any]) -> list[str]:
    """Return JOB/NUMBER of each build that runs on a node."""
    executors = [*raw.get("executors", []), *raw.get("oneOffExecutors", [])]
    return [_build_path(str(one["currentExecutable"].get("url") or "")) for one in executors
            if one.get("currentExecutable")]


def _build_path(url: str) -> str:
    """Return JOB/NUMBER from a build's address, with the job's folders: http://jenkins/ci/job/team/job/gate/7/."""
    below = urlsplit(url).path.partition("/job/")[2].strip("/")
    return unquote(below.replace("/job/", "/"))


def _element(config: str, tag: str) -> str:
    """Return an element's text; Jenkins declares XML 1.1, which Python's parsers refuse."""
    import html

    found = re.search(rf"<{tag}>([^<]*)</{tag}>", config)
    return html.unescape(found[1]).strip() if found else ""


def response_of(err: BaseException) -> requests.Response | None:
    """Return the HTTP response behind an exception of python-jenkins, which has the status only in its text."""
    seen: BaseException | None = err
    while seen is not None:
        response: requests.Response | None = getattr(seen, "response", None)
        if response is not None:
            return response
        seen = seen.__cause__ or seen.__context__
    return None


def short_reason(err: Exception) -> str:
    """Return the reason of a connection error without the layers that the libraries wrap round it."""
    text = plain(innermost(str(err)), TEXT_LENGTH)
    errno = re.search(r"\[Errno [-\d]+\] ([^\"')]+)", text)
    return errno[1] if errno else text or type(err).__name__
