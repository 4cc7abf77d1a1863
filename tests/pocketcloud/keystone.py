"""Keystone v3: tokens for passwords and application credentials, and the catalogue."""

import time
import uuid
from typing import Any

from tests.pocketcloud.httpd import Answer, Call, RefusalError, Routes, not_found
from tests.pocketcloud.records import stamp
from tests.pocketcloud.state import Cloud, Token

PASSWORD = "pocket"
USER, OTHER_USER = "demo", "other"  # projects of the same names
REGION = "RegionOne"
DOMAIN = {"id": "default", "name": "Default"}
CATALOGUE = {
    "identity": ("keystone", "/identity/v3"),
    "compute": ("nova", "/compute/v2.1"),
    "image": ("glance", "/image"),
    "network": ("neutron", "/network"),
    "block-storage": ("cinder", "/block-storage/v3"),
}


def application_credential(cloud: Cloud) -> dict[str, str]:
    """Return id and secret of the first user's application credential."""
    return {"id": uuid.uuid5(uuid.UUID(cloud.user), "application").hex, "secret": f"{PASSWORD}-{cloud.name}"}


def project_name(cloud: Cloud, project: str) -> str:
    """Return the project's name, which is also its user's."""
    return USER if project == cloud.project else OTHER_USER


def _versions(call: Call) -> Answer:
    version = {
        "id": "v3.14",
        "status": "stable",
        "updated": "2020-04-07T00:00:00Z",
        "links": [{"rel": "self", "href": f"{call.base}/identity/v3/"}],
        "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
    }
    return Answer(300, {"versions": {"values": [version]}}) if call.unversioned else Answer(200, {"version": version})


def _login(call: Call) -> Answer:
    wish = call.json("auth")
    user, project = _who(call.cloud, wish)
    cloud = call.cloud
    token = Token(user, project, time.time() + cloud.knobs.token_seconds)
    secret = f"gAAAAA{uuid.uuid4().hex}{uuid.uuid4().hex}"
    with cloud.lock:
        cloud.tokens[secret] = token
    method = wish["identity"]["methods"][0]
    return Answer(201, {"token": _describe(call, token, method)}, {"X-Subject-Token": secret, "Vary": "X-Auth-Token"})


def _who(cloud: Cloud, wish: dict[str, Any]) -> tuple[str, str]:
    people = {USER: (cloud.user, cloud.project), OTHER_USER: (cloud.other_user, cloud.other_project)}
    identity = wish.get("identity", {})
    methods = identity.get("methods", [])
    if "password" in methods:
        given = identity["password"]["user"]
        for name, (user, project) in people.items():
            known = given.get("name") == name or given.get("id") == user
            if known and given.get("password") == PASSWORD and _scope_fits(wish.get("scope"), name, project):
                return user, project
    if "application_credential" in methods:
        given = identity["application_credential"]
        if {"id": given.get("id"), "secret": given.get("secret")} == application_credential(cloud):
            return people[USER]
    if "token" in methods:
        token = cloud.tokens.get(identity["token"]["id"])
        if token and token.expires > time.time():
            return token.user, token.project
    raise RefusalError(401, "The request you have made requires authentication.")


def _scope_fits(scope: dict[str, Any] | None, name: str, project: str) -> bool:
    wanted = (scope or {}).get("project")
    return wanted is None or wanted.get("id") == project or wanted.get("name") == name


def _describe(call: Call, token: Token, method: str) -> dict[str, Any]:
    cloud = call.cloud
    name = project_name(cloud, token.project)
    return {
        "methods": [method],
        "user": {"domain": DOMAIN, "id": token.user, "name": name, "password_expires_at": None},
        "audit_ids": [uuid.uuid4().hex[:22]],
        "expires_at": stamp(token.expires, micro=True) + "Z",
        "issued_at": stamp(time.time(), micro=True) + "Z",
        "project": {"domain": DOMAIN, "id": token.project, "name": name},
        "is_domain": False,
        "roles": [{"id": uuid.uuid5(uuid.NAMESPACE_OID, role).hex, "name": role} for role in ("reader", "member")],
        "catalog": _catalogue(call.base),
    }


def _catalogue(base: str) -> list[dict[str, Any]]:
    services = []
    for kind, (name, path) in CATALOGUE.items():
        endpoints = [
            {"id": uuid.uuid5(uuid.NAMESPACE_URL, base + path + interface).hex, "interface": interface,
             "region": REGION, "region_id": REGION, "url": base + path}
            for interface in ("public", "internal", "admin")
        ]  # fmt: skip
        services.append(
            {"id": uuid.uuid5(uuid.NAMESPACE_URL, base + kind).hex, "type": kind, "name": name, "endpoints": endpoints}
        )
    return services


def _subject(call: Call) -> tuple[str, Token]:
    secret = call.headers.get("x-subject-token", "")
    token = call.cloud.tokens.get(secret)
    if token is None or token.expires <= time.time():
        raise not_found("Could not find token.")
    return secret, token


def _show_token(call: Call) -> Answer:
    secret, token = _subject(call)
    return Answer(200, {"token": _describe(call, token, "password")}, {"X-Subject-Token": secret})


def _revoke_token(call: Call) -> Answer:
    del call.cloud.tokens[_subject(call)[0]]
    return Answer(204)


def _show_catalogue(call: Call) -> Answer:
    return Answer(200, {"catalog": _catalogue(call.base), "links": {"self": f"{call.base}/identity/v3/auth/catalog"}})


def _own_project(call: Call) -> dict[str, Any]:
    name = project_name(call.cloud, call.project)
    return {"id": call.project, "name": name, "domain_id": "default", "enabled": True, "is_domain": False, "tags": []}


def _list_projects(call: Call) -> Answer:
    return Answer(200, {"projects": [_own_project(call)], "links": {"next": None, "previous": None}})


def _show_project(call: Call) -> Answer:
    project = _own_project(call)
    if call.args["id"] != project["id"]:
        raise RefusalError(403, "You are not authorized to perform the requested action: identity:get_project.")
    return Answer(200, {"project": project})


def _forbidden(call: Call) -> Answer:
    raise RefusalError(403, f"You are not authorized to perform the requested action: identity:list{call.path}.")


ROUTES = Routes(
    [
        ("GET", "/", _versions),
        ("POST", "/auth/tokens", _login),
        ("GET", "/auth/tokens", _show_token),
        ("DELETE", "/auth/tokens", _revoke_token),
        ("GET", "/auth/catalog", _show_catalogue),
        ("GET", "/auth/projects", _list_projects),
        ("GET", "/projects", _forbidden),
        ("GET", "/users", _forbidden),
        ("GET", "/projects/{id}", _show_project),
    ],
    public=("/", "/auth/tokens"),
)
