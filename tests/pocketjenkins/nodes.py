"""Agents as Jenkins keeps them: their settings, read from the create form or config.xml, and their state."""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import escape, quoteattr

from tests.pocketjenkins.pages import quoted

VERIFIERS = "hudson.plugins.sshslaves.verifiers."
STRATEGIES = ("NonVerifying", "ManuallyProvided", "ManuallyTrusted", "KnownHostsFile")
SSH_LAUNCHER = "hudson.plugins.sshslaves.SSHLauncher"
JNLP_LAUNCHER = "hudson.slaves.JNLPLauncher"
RETENTION = "hudson.slaves.RetentionStrategy$Always"
UNSAFE = "?*/\\%!@#$^&|<>[]:;"
USER_CAUSE = "hudson.slaves.OfflineCause$UserCause"
LAUNCH_FAILED = "hudson.slaves.OfflineCause$LaunchFailed"
CHANNEL_LOST = "hudson.slaves.OfflineCause$ChannelTermination"
LAUNCH_FAILED_TEXT = "This agent is offline because Jenkins failed to launch the agent process on it."
CHANNEL_LOST_TEXT = (
    "Connection was broken: java.io.EOFException\n...\n"
    "Caused: java.io.IOException: Unexpected termination of the channel\n...\n"
)


class BadNodeError(Exception):
    """A form or config.xml that Jenkins answers with 500."""


@dataclass
class Launcher:
    """How the master reaches the node; fields that the form or XML lacks are None."""

    kind: str = SSH_LAUNCHER
    host: str | None = None
    port: int = 22
    credentials_id: str | None = None
    jvm_options: str | None = None
    java_path: str | None = None
    launch_timeout_seconds: int = 60
    retries: int = 10
    retry_wait_seconds: int = 15
    strategy: str | None = None
    key: str | None = None
    manual_trust: bool = False
    tcp_no_delay: bool = False

    def verifier(self) -> str:
        """Return `NonVerifying`, `ManuallyProvided`, ...; without a strategy, the plugin verifies nothing."""
        return (self.strategy or "NonVerifying").removeprefix(VERIFIERS).removesuffix("KeyVerificationStrategy")


@dataclass
class NodeConfig:
    """The contents of a node's config.xml."""

    label: str = ""
    remote_fs: str = ""
    executors: int = 1
    exclusive: bool = True
    description: str | None = None
    retention: str = RETENTION
    launcher: Launcher = field(default_factory=Launcher)


@dataclass(frozen=True)
class OfflineCause:
    """Why a node is offline, as the API shows it."""

    kind: str
    reason: str
    user: str | None = None

    @property
    def description(self) -> str:
        """The text of a person's cause, which names the person."""
        return f"Disconnected by {self.user or 'anonymous'}{self.reason and f' : {self.reason}'}"


@dataclass
class Node:
    """One agent. Its labels are in `config`; its builds and connection are in the model."""

    name: str
    config: NodeConfig
    online: bool = False
    temporarily_offline: bool = False
    cause: OfflineCause | None = None
    kept: OfflineCause | None = None  # cause of the mark that it gets again with its agent, after a restart
    down: str = "connecting"  # why there is no channel: connecting, disconnected, launch-failed, died
    launch: threading.Event | None = None  # the launch under way; set to call it off
    log: list[str] = field(default_factory=list)
    free_at: float = 0.0  # monotonic; a freed executor takes a moment until its next build
    connect: str | None = None  # how this node connects, if not as the knob says

    @property
    def offline(self) -> bool:
        return self.temporarily_offline or not self.online

    @property
    def state(self) -> str:
        return "online" if self.online else self.down

    def labels(self) -> list[str]:
        return sorted({*self.config.label.split(), self.name})


def bad_name(name: str) -> str | None:
    """Return why Jenkins refuses this name, in its words; None if it accepts it."""
    if not name:
        return "No name is specified"
    if name in {".", ".."}:
        return f'"{name}" is not an allowed name'
    unsafe = next((char for char in name if char in UNSAFE), None)
    return f"{quoted(unsafe)} is an unsafe character" if unsafe else None


def config_from_form(text: str) -> NodeConfig:
    """Read the `json` field of doCreateItem as python-jenkins fills it in."""
    try:
        form = json.loads(text)
        launcher = _launcher_from_form(form["launcher"])
        retention = str(form.get("retentionStrategy", {}).get("stapler-class", RETENTION))
        executors = int(form.get("numExecutors", 1))
    except (ValueError, KeyError, TypeError, AttributeError) as err:
        raise BadNodeError(f"net.sf.json.JSONException: {err}") from err
    _check_class(retention, retention.startswith("hudson.slaves.RetentionStrategy$"))
    return NodeConfig(
        label=form.get("labelString") or "",
        remote_fs=form.get("remoteFS") or "",
        executors=executors,
        exclusive=form.get("mode") == "EXCLUSIVE",
        description=form.get("nodeDescription") or None,
        retention=retention,
        launcher=launcher,
    )


def _check_class(name: str, known: bool) -> None:
    if not known:
        raise BadNodeError(f"java.lang.ClassNotFoundException: {name}")


def _launcher_from_form(form: Mapping[str, Any]) -> Launcher:
    kind = str(form["stapler-class"])
    _check_class(kind, kind in {SSH_LAUNCHER, JNLP_LAUNCHER})
    verifier = form.get("sshHostKeyVerificationStrategy") or {}
    strategy = verifier.get("stapler-class")
    if strategy is not None:
        _check_class(strategy, strategy in {f"{VERIFIERS}{name}KeyVerificationStrategy" for name in STRATEGIES})
    return Launcher(
        kind=kind,
        host=form.get("host") or None,
        port=int(form.get("port") or 22),
        credentials_id=form.get("credentialsId") or None,
        jvm_options=form.get("jvmOptions") or None,
        java_path=form.get("javaPath") or None,
        launch_timeout_seconds=_number(form.get("launchTimeoutSeconds"), 60),
        retries=_number(form.get("maxNumRetries"), 10),
        retry_wait_seconds=_number(form.get("retryWaitTime"), 15),
        strategy=strategy,
        key=verifier.get("key"),
        manual_trust=bool(verifier.get("requireInitialManualTrust", False)),
        tcp_no_delay=bool(form.get("tcpNoDelay", False)),
    )


def _number(value: object, default: int) -> int:
    return default if value in (None, "") else int(str(value))


def config_from_xml(body: bytes) -> NodeConfig:
    """Read a posted config.xml; expat does not know XML 1.1, so the declaration is dropped."""
    text = body.decode("utf-8", "replace").strip()
    if text.startswith("<?xml"):
        text = text.partition("?>")[2]
    try:
        root = ElementTree.fromstring(text)
        executors = int(root.findtext("numExecutors") or 1)
        launcher = root.find("launcher")
        settings = Launcher(kind=JNLP_LAUNCHER) if launcher is None else _launcher_from_xml(launcher)
    except (ElementTree.ParseError, ValueError) as err:
        raise BadNodeError(f"com.thoughtworks.xstream.io.StreamException: {err}") from err
    retention = root.find("retentionStrategy")
    return NodeConfig(
        label=root.findtext("label") or "",
        remote_fs=root.findtext("remoteFS") or "",
        executors=executors,
        exclusive=root.findtext("mode") == "EXCLUSIVE",
        description=root.findtext("description") or None,
        retention=RETENTION if retention is None else retention.get("class", RETENTION),
        launcher=settings,
    )


def _launcher_from_xml(element: ElementTree.Element) -> Launcher:
    def text(name: str) -> str | None:
        return element.findtext(name) or None

    verifier = element.find("sshHostKeyVerificationStrategy")
    key = None if verifier is None else verifier.find("key")
    return Launcher(
        kind=element.get("class", SSH_LAUNCHER),
        host=text("host"),
        port=_number(text("port"), 22),
        credentials_id=text("credentialsId"),
        jvm_options=text("jvmOptions"),
        java_path=text("javaPath"),
        launch_timeout_seconds=_number(text("launchTimeoutSeconds"), 60),
        retries=_number(text("maxNumRetries"), 10),
        retry_wait_seconds=_number(text("retryWaitTime"), 15),
        strategy=None if verifier is None else verifier.get("class"),
        key=None if key is None else f"{key.findtext('algorithm')} {key.findtext('key')}",
        manual_trust=verifier is not None and verifier.findtext("requireInitialManualTrust") == "true",
        tcp_no_delay=text("tcpNoDelay") == "true",
    )


def config_to_xml(node: Node) -> str:
    """Return config.xml as Jenkins writes it: XML 1.1, without elements that were never set."""
    config = node.config
    lines = [
        '<?xml version="1.1" encoding="UTF-8"?>',
        "<slave>",
        f"  <name>{escape(node.name)}</name>",
        *([f"  <description>{escape(config.description)}</description>"] if config.description else []),
        f"  <remoteFS>{escape(config.remote_fs)}</remoteFS>",
        f"  <numExecutors>{config.executors}</numExecutors>",
        f"  <mode>{'EXCLUSIVE' if config.exclusive else 'NORMAL'}</mode>",
        f"  <retentionStrategy class={quoteattr(config.retention)}/>",
        *_launcher_to_xml(config.launcher),
        f"  <label>{escape(config.label)}</label>",
        "  <nodeProperties/>",
        "</slave>",
    ]
    return "\n".join(lines)


def _launcher_to_xml(launcher: Launcher) -> list[str]:
    if launcher.kind == JNLP_LAUNCHER:
        return [f'  <launcher class="{JNLP_LAUNCHER}"/>']
    elements = [
        ("host", launcher.host),
        ("port", launcher.port),
        ("credentialsId", launcher.credentials_id),
        ("jvmOptions", launcher.jvm_options),
        ("javaPath", launcher.java_path),
        ("launchTimeoutSeconds", launcher.launch_timeout_seconds),
        ("maxNumRetries", launcher.retries),
        ("retryWaitTime", launcher.retry_wait_seconds),
    ]
    return [
        f'  <launcher class="{SSH_LAUNCHER}" plugin="ssh-slaves@1.31.5">',
        *(f"    <{name}>{escape(str(value))}</{name}>" for name, value in elements if value is not None),
        *_verifier_to_xml(launcher),
        *(["    <tcpNoDelay>true</tcpNoDelay>"] if launcher.tcp_no_delay else []),
        "  </launcher>",
    ]


def _verifier_to_xml(launcher: Launcher) -> list[str]:
    if not launcher.strategy:
        return []
    opening = f"    <sshHostKeyVerificationStrategy class={quoteattr(launcher.strategy)}"
    inside = []
    if launcher.verifier() == "ManuallyProvided":
        algorithm, _, data = (launcher.key or "").partition(" ")
        inside = [
            "      <key>",
            f"        <algorithm>{escape(algorithm)}</algorithm>",
            f"        <key>{escape(data.partition(' ')[0])}</key>",
            "      </key>",
        ]
    elif launcher.verifier() == "ManuallyTrusted":
        trust = "true" if launcher.manual_trust else "false"
        inside = [f"      <requireInitialManualTrust>{trust}</requireInitialManualTrust>"]
    if not inside:
        return [opening + "/>"]
    return [opening + ">", *inside, "    </sshHostKeyVerificationStrategy>"]
