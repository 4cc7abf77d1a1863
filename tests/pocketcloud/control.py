"""The control interface: /control/CLOUD, by which tests look at a cloud and turn its knobs."""

import json
from typing import Any

from tests.pocketcloud.httpd import Answer
from tests.pocketcloud.keystone import application_credential
from tests.pocketcloud.records import KindError
from tests.pocketcloud.state import Cloud
from tests.support.knobs import KnobError

SSH_MODES = ("up", "refused", "silent", "reset", "stranger")  # stranger: another host key, shared-ssh only
SERVER_CHANGES = {"status", "fault", "ssh", "vanish"}


def control(clouds: dict[str, Cloud], method: str, words: list[str], body: bytes) -> Answer:
    """Answer GET or PATCH CLOUD, POST CLOUD/reset-calls, POST CLOUD/age, POST CLOUD/servers/ID."""
    if not words or words[0] not in clouds:
        return Answer(404, {"error": f"control of what? The clouds are {', '.join(clouds)}"})
    try:
        return _act(clouds[words[0]], [method, *words[1:]], json.loads(body or b"{}"))
    except (KindError, KnobError, KeyError, ValueError) as err:
        return Answer(400, {"error": str(err)})


def _act(cloud: Cloud, words: list[str], wishes: dict[str, Any]) -> Answer:
    match " ".join(words).replace("/", " ").split():
        case ["GET"]:
            return Answer(200, cloud.truth() | {"application_credential": application_credential(cloud)})
        case ["PATCH"]:
            return _turn(cloud, wishes)
        case ["POST", "reset-calls"]:
            cloud.calls.reset()
            return Answer(200, {})
        case ["POST", "age"]:
            cloud.age(float(wishes["seconds"]))
            return Answer(200, {})
        case ["POST", "servers", server_id]:
            return _change_server(cloud, server_id, wishes)
    return Answer(404, {"error": f"no such control: {' '.join(words)}"})


def _turn(cloud: Cloud, wishes: dict[str, Any]) -> Answer:
    for name, value in wishes.items():
        cloud.turn(name, value)
    return Answer(200, cloud.knobs.as_dict())


def _change_server(cloud: Cloud, server_id: str, wishes: dict[str, Any]) -> Answer:
    strange = set(wishes) - SERVER_CHANGES
    if strange or wishes.get("ssh", "up") not in SSH_MODES:
        raise KnobError(f"a server can be given {', '.join(sorted(SERVER_CHANGES))}; ssh: {', '.join(SSH_MODES)}")
    with cloud.lock:
        server = cloud.servers.get(server_id)
        if server is None and wishes == {"vanish": True}:
            return Answer(200, {})  # a delete under way was quicker
        if server is None:
            return Answer(404, {"error": f"no server {server_id}"})
        if "status" in wishes:
            server.status, server.task_state = wishes["status"], None
            if server.status == "ERROR":
                cloud.set_fault(server, wishes.get("fault", "Unknown"))
        if "ssh" in wishes:
            cloud.set_ssh(server, wishes["ssh"])
        if wishes.get("vanish"):
            cloud.vanish_server(server)
    return Answer(200, {})
