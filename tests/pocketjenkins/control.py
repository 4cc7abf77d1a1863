"""`/control`: the part of the stand-in that Jenkins does not have: knobs, truth, accidents."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

from tests.pocketjenkins.builds import Build, Job
from tests.pocketjenkins.model import Model
from tests.pocketjenkins.nodes import Launcher, Node, NodeConfig
from tests.pocketjenkins.pages import Reply

JOB_KEYS = {"name", "label", "before", "script", "after", "seconds", "environment", "concurrent"}


class ControlError(Exception):
    """A wrong request to /control."""


def set_knobs(model: Model, values: dict[str, Any]) -> None:
    """Change knobs; raises KnobError, which names what is wrong, before anything is changed."""
    with model.lock:
        for name, value in values.items():
            model.knobs.check(name, value)
        for name, value in values.items():
            setattr(model.knobs, name, value)
    model.kick()


class Control:
    """Answers requests under /control. `look` returns what only the server knows: calls and requests."""

    def __init__(
        self, model: Model, look: Callable[[], dict[str, Any]], forget: Callable[[], None], restart: Callable[[], None]
    ) -> None:
        self.model = model
        self.look = look
        self.forget = forget
        self.restart = restart

    def answer(self, method: str, segments: tuple[str, ...], body: bytes) -> Reply:
        try:
            value = json.loads(body) if body else {}
            result = self._act(method, segments, value)
        except (ControlError, ValueError, TypeError, KeyError, re.error) as err:
            return _json(400, {"error": f"{type(err).__name__}: {err}"})
        return _json(200, result)

    def _act(self, method: str, segments: tuple[str, ...], value: Any) -> dict[str, Any]:
        result: dict[str, Any] = {}
        match method, *segments:
            case "GET", "control":
                result = self.truth()
            case "PATCH", "control":
                set_knobs(self.model, value)
                result = self.model.knobs.as_dict()
            case "POST", "control", "calls", "reset":
                self.forget()
            case "POST", "control", "restart":
                self.restart()
            case "POST", "control", "jobs":
                result = self.put_job(value)
            case "POST", "control", "nodes":
                result = self.add_nodes(value)
            case "POST", "control", "nodes", str(name) if name in self.model.nodes:
                result = self.change_node(self.model.nodes[name], value)
            case _:
                raise ControlError("no such thing under /control")
        return result

    def truth(self) -> dict[str, Any]:
        """Return everything as it really is, whatever the API shows."""
        model = self.model
        with model.lock:
            return {
                "now": time.monotonic(),
                "knobs": model.knobs.as_dict(),
                "quieting_down": model.quieting_down,
                "warnings": list(model.warnings),
                "nodes": {node.name: self._node(node) for node in model.nodes.values()},
                "jobs": {job.name: {"label": job.label, "builds": len(job.builds)} for job in model.jobs.values()},
                "builds": [_build(build) for build in model.builds],
                "queue": [
                    {"id": item.id, "job": item.job.name, "label": item.job.label, "parameters": item.parameters}
                    for item in model.queue
                ],
                **self.look(),
            }

    def _node(self, node: Node) -> dict[str, Any]:
        launcher = node.config.launcher
        running = self.model.running.get(node.name, [])
        return {
            "state": node.state,
            "label": node.config.label,
            "temporarilyOffline": node.temporarily_offline,
            "offlineCauseReason": node.cause.reason if node.cause else "",
            "build": f"{running[0].job.name} #{running[0].number}" if running else None,
            "host": launcher.host,
            "port": launcher.port,
            "credentialsId": launcher.credentials_id,
            "strategy": launcher.verifier(),
            "key": launcher.key,
            "executors": node.config.executors,
            "exclusive": node.config.exclusive,
            "remoteFS": node.config.remote_fs,
            "log": "\n".join(node.log),
        }

    def put_job(self, value: dict[str, Any]) -> dict[str, Any]:
        """Add a job, or change the steps of an existing one."""
        if unknown := value.keys() - JOB_KEYS:
            raise ControlError(f"no such keys of a job: {', '.join(sorted(unknown))}")
        with self.model.lock:
            job = self.model.jobs.setdefault(value["name"], Job(value["name"]))
            job.config = None  # from now on it runs the steps that the test gave
            for key in value.keys() - {"name"}:
                setattr(job, key, value[key])
        return {"name": job.name}

    def add_nodes(self, values: list[dict[str, Any]]) -> dict[str, Any]:
        """Add many nodes: name; optional label, description, host, port, credentialsId, temporarilyOffline."""
        for value in values:
            host, credential = value.get("host", "127.0.0.1"), value.get("credentialsId") or self._any_credential()
            launcher = Launcher(host=host, port=value.get("port", 22), credentials_id=credential)
            config = NodeConfig(label=value.get("label", ""), description=value.get("description", ""),
                                remote_fs="/home/jenkins", launcher=launcher)
            self.model.add_node(value["name"], config)
            if value.get("temporarilyOffline"):
                self.model.toggle_offline(self.model.nodes[value["name"]], "")
        return {"nodes": len(self.model.nodes)}

    def _any_credential(self) -> str:
        return next(iter(self.model.keys.credentials), "any")

    def change_node(self, node: Node, value: dict[str, Any]) -> dict[str, Any]:
        """Change a node: die, connect (how from now on), label, temporarilyOffline, barred, launch.

        barred: the class of the cause for which Jenkins itself takes the node offline; message: the reason it gives.
        """
        if unknown := value.keys() - {"die", "connect", "label", "temporarilyOffline", "barred", "message", "user",
                                     "launch"}:
            raise ControlError(f"nothing to do with a node: {', '.join(sorted(unknown))}")
        model = self.model
        if "connect" in value:
            node.connect = value["connect"]
        if "label" in value:
            node.config.label = value["label"]
        if value.get("temporarilyOffline", node.temporarily_offline) != node.temporarily_offline:
            model.toggle_offline(node, value.get("message", ""), value.get("user"))
        if "barred" in value:
            model.bar(node, value["barred"], value.get("message", ""))
        if value.get("die"):
            model.agent_lost(node)
        if value.get("launch"):
            model.launch(node)
        model.kick()
        return self._node(node)


def _build(build: Build) -> dict[str, Any]:
    return {
        "job": build.job.name,
        "number": build.number,
        "node": build.node_name,
        "queue_item": build.item.id,
        "parameters": build.item.parameters,
        "building": build.result is None,
        "result": build.result,
        "started": build.began_at,  # monotonic, like "now" and the times of the requests
        "ended": build.ended_at,
        "console": "\n".join(build.console),
    }


def _json(status: int, value: Any) -> Reply:
    return Reply(status, json.dumps(value).encode(), "application/json")
