"""What the scripts rely on in OpenStack: a contract for pocketcloud here, and for real services in tests/realcloud.

Tests use the real clients as cloud/nova.py does: python-novaclient at 2.1 and openstacksdk on one session. If the shape
of an answer matters, they make bare calls on that session. tests/support/contract.py has what must be provoked
differently on either side.
"""

import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import keystoneauth1.exceptions
import novaclient.exceptions
import openstack.exceptions
import pytest
import requests
from keystoneauth1.identity.v3 import Password
from keystoneauth1.session import Session

from cloud import nova
from cloud.nova import Recipe
from tests.pocketcloud.client import Pocket
from tests.support.contract import Clients, PocketSide, Side, waited
from vmdatabase import BaseImage, Provider

NOBODY = "00000000-0000-0000-0000-000000000001"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN/jT0PYldlQIIIkUMeA3uOdqjqF3vGDD4A3l8SPPuPT nobody"
KEY_FINGERPRINT = "51:20:93:c1:0a:d2:eb:dd:59:43:18:f7:f9:51:d7:33"
EMPTY_TAR = bytes(10240)  # machines of tests/realcloud boot from it, too
POOL = "11111111-2222-3333-4444-555555555555"
LISTS = {"identity": "/auth/catalog", "compute": "/servers", "image": "/v2/images", "network": "/v2.0/networks"}
SERVER_FIELDS = {
    "OS-DCF:diskConfig", "OS-EXT-AZ:availability_zone", "OS-EXT-STS:power_state", "OS-EXT-STS:task_state",
    "OS-EXT-STS:vm_state", "OS-SRV-USG:launched_at", "OS-SRV-USG:terminated_at", "accessIPv4", "accessIPv6",
    "addresses", "config_drive", "created", "flavor", "hostId", "id", "image", "key_name", "links", "metadata", "name",
    "os-extended-volumes:volumes_attached", "progress", "security_groups", "status", "tenant_id", "updated", "user_id",
}  # fmt: skip
IMAGE_FIELDS = {
    "checksum", "container_format", "created_at", "disk_format", "file", "id", "min_disk", "min_ram", "name",
    "os_hash_algo", "os_hash_value", "os_hidden", "owner", "protected", "schema", "self", "size", "status", "tags",
    "updated_at", "virtual_size", "visibility",
}  # fmt: skip
FLOATING_FIELDS = {
    "id", "tenant_id", "project_id", "floating_ip_address", "floating_network_id", "router_id", "port_id",
    "fixed_ip_address", "status", "description", "port_details", "tags", "created_at", "updated_at", "revision_number",
}  # fmt: skip
VOLUME_FIELDS = {
    "attachments", "availability_zone", "bootable", "consistencygroup_id", "created_at", "description", "encrypted",
    "id", "links", "metadata", "multiattach", "name", "os-vol-tenant-attr:tenant_id", "replication_status", "size",
    "snapshot_id", "source_volid", "status", "updated_at", "user_id", "volume_type",
}  # fmt: skip
IN_USE = (
    "Invalid volume: Volume status must be available or error or error_restoring or error_extending or error_managing "
    "and must not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated "
    "from snapshots after volume transfer."
)


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    """Run one of the two clouds that the contract is tested against."""
    with Pocket(tmp_path_factory.mktemp("cloud"), "--machines", "none", "--clouds", "pocket-a") as pocket:
        yield PocketSide(pocket)


@pytest.fixture
def cloud(side: Side) -> Iterator[Clients]:
    """Yield the clients of a project that has nothing, and remove what the test leaves."""
    clients = side.clients()
    yield clients
    side.clear()
    clients.clear()


def fault(name: str, code: int, message: str) -> dict[str, Any]:
    """Return the body of an error of Nova's."""
    return {name: {"code": code, "message": message}}


def page(title: str, text: str) -> str:
    """Return the body of an error of Glance's."""
    return (f"<html>\n <head>\n  <title>{title}</title>\n </head>\n <body>\n  <h1>{title}</h1>\n  {text}"
            "<br /><br />\n\n\n\n </body>\n</html>")


def neutron(kind: str, message: str) -> dict[str, Any]:
    """Return the body of an error of Neutron's."""
    return {"NeutronError": {"type": kind, "message": message, "detail": ""}}


def is_nova(answer: requests.Response, name: str, code: int, message: str) -> bool:
    """Compare an error of Nova's as a whole, so that pytest shows what differs; return whether its type is JSON."""
    assert (answer.status_code, answer.json()) == (code, fault(name, code, message))
    return answer.headers["Content-Type"] == "application/json; charset=UTF-8"


def refused(answer: requests.Response, message: str) -> None:
    assert is_nova(answer, "badRequest", 400, message)


def conflicts(answer: requests.Response, message: str) -> None:
    assert is_nova(answer, "conflictingRequest", 409, message)


def missing(answer: requests.Response, message: str) -> None:
    assert is_nova(answer, "itemNotFound", 404, message)


# Login, catalogue, versions


def login(cloud: Clients, **changes: str) -> requests.Response:
    """Log in with a password; changes replace keys of auth in clouds.yaml."""
    auth = {**cloud.config.config["auth"], **changes}
    user = {"name": auth["username"], "domain": {"name": "Default"}, "password": auth["password"]}
    scope = {"project": {"name": auth["project_name"], "domain": {"name": "Default"}}}
    wish = {"auth": {"identity": {"methods": ["password"], "password": {"user": user}}, "scope": scope}}
    return cloud.raw("identity", "POST", f"{auth['auth_url'].rstrip('/')}/auth/tokens", json=wish, authenticated=False)


def test_a_password_gives_a_token_with_the_catalogue(cloud: Clients) -> None:
    answer = login(cloud)
    token = answer.json()["token"]
    assert (answer.status_code, sorted(token)) == (201, [
        "audit_ids", "catalog", "expires_at", "is_domain", "issued_at", "methods", "project", "roles", "user"])
    assert answer.headers["X-Subject-Token"].startswith("gAAAAA")
    assert token["project"]["id"] == cloud.project
    services = {service["type"]: service["endpoints"] for service in token["catalog"]}
    assert set(services) >= {"identity", "compute", "image", "network"}
    assert {tuple(sorted(endpoint)) for endpoints in services.values() for endpoint in endpoints} == {
        ("id", "interface", "region", "region_id", "url")}


@pytest.mark.parametrize("change", ["password", "username", "project_name"])
def test_a_wrong_login_is_401(cloud: Clients, change: str) -> None:
    answer = login(cloud, **{change: "wrong"})
    message = "The request you have made requires authentication."
    assert (answer.status_code, answer.json()) == (
        401, {"error": {"code": 401, "title": "Unauthorized", "message": message}})
    auth_url = cloud.config.config["auth"]["auth_url"].rstrip("/")
    assert answer.headers["WWW-Authenticate"] == f'Keystone uri="{auth_url}"'


def test_a_wrong_password_stops_the_clients_at_their_first_call(cloud: Clients, tmp_path: Path) -> None:
    file = tmp_path / "clouds.yaml"
    file.write_text(re.sub("password: .*", "password: wrong", cloud.clouds_yaml.read_text()))
    wrong = replace(cloud, clouds_yaml=file)
    with pytest.raises(keystoneauth1.exceptions.Unauthorized, match="requires authentication"):
        wrong.session.get_token()
    with pytest.raises(keystoneauth1.exceptions.Unauthorized, match="requires authentication"):
        wrong.nova.flavors.list()
    with pytest.raises(keystoneauth1.exceptions.Unauthorized, match="requires authentication"):
        list(wrong.sdk.image.images())


def test_the_endpoints_of_the_services_are_found_in_their_region_only(cloud: Clients, tmp_path: Path) -> None:
    file = tmp_path / "clouds.yaml"
    file.write_text(cloud.clouds_yaml.read_text().replace("region_name: RegionOne", "region_name: Nowhere"))
    here, elsewhere = cloud.config, replace(cloud, clouds_yaml=file).config
    assert here.get_session_endpoint("compute").endswith("/v2.1")
    kinds = ("network", "image", "object-store")
    assert [here.get_session_endpoint(kind) is None for kind in kinds] == [False, False, True]
    assert elsewhere.get_session_endpoint("compute") is None


UNVERIFIED = ("This server could not verify that you are authorized to access the document you requested. Either you "
              "supplied the wrong credentials (e.g., bad password), or your browser does not understand how to supply "
              "the credentials required.")


def unauthorized(answer: requests.Response, service: str) -> None:
    """Check that an answer is the service's 401; Glance has its own page for it."""
    if service == "image":
        assert (answer.status_code, answer.text) == (401, page("401 Unauthorized", UNVERIFIED))
        assert answer.headers["Content-Type"] == "text/html; charset=UTF-8"
    else:
        message = "The request you have made requires authentication."
        body = {"error": {"code": 401, "title": "Unauthorized", "message": message}}
        assert (answer.status_code, answer.json()) == (401, body)
    assert answer.headers["WWW-Authenticate"].startswith('Keystone uri="http://127.0.0.1:')


@pytest.mark.parametrize("service", LISTS)
def test_no_token_and_a_wrong_one_are_401(cloud: Clients, service: str) -> None:
    unauthorized(cloud.raw(service, "GET", LISTS[service], authenticated=False), service)
    unauthorized(cloud.with_token(service, LISTS[service], "nonsense"), service)


@pytest.mark.parametrize("service", LISTS)
def test_a_token_that_has_ended_is_401(cloud: Clients, service: str) -> None:
    token = cloud.side.ending_token(1)
    waited("the end of the token", lambda: token.expires < datetime.now(UTC) - timedelta(seconds=1))
    unauthorized(cloud.with_token(service, LISTS[service], token.auth_token), service)


def revoke(session: Session, cloud: Clients) -> str:
    """Revoke a session's token without telling the session; return the token."""
    token = str(session.get_token())
    answer = cloud.raw("identity", "DELETE", "/auth/tokens", headers={"X-Subject-Token": token})
    assert answer.status_code == 204
    return token


@pytest.mark.parametrize("service", ["compute", "image", "network"])  # Keystone may accept it for a while: it caches
def test_a_revoked_token_is_401(cloud: Clients, service: str) -> None:
    other = replace(cloud)
    token = revoke(other.session, cloud)
    unauthorized(cloud.with_token(service, LISTS[service], token), service)
    again = cloud.raw("identity", "DELETE", "/auth/tokens", headers={"X-Subject-Token": token})
    assert (again.status_code, again.json()["error"]["title"]) == (404, "Not Found")


CALLS: dict[str, Callable[[Clients], object]] = {
    "compute": lambda cloud: cloud.nova.servers.list(),
    "image": lambda cloud: list(cloud.sdk.image.images()),
    "network": lambda cloud: list(cloud.sdk.network.networks()),
}


@pytest.mark.parametrize("service", CALLS)
def test_a_session_whose_token_was_revoked_logs_in_again_by_itself(cloud: Clients, service: str) -> None:
    other = replace(cloud)
    token = revoke(other.session, cloud)
    CALLS[service](other)
    assert other.session.get_token() != token


class Forgetful(Password):
    """A login whose token is always wrong."""

    def get_token(self, session: Session, **_: Any) -> str:
        self.get_access(session)
        return "nonsense"


@pytest.mark.parametrize("service", CALLS)
def test_a_session_logs_in_again_once_for_each_call(cloud: Clients, service: str) -> None:
    session = Session(Forgetful(**cloud.config.config["auth"]))
    seen: list[int] = []
    session.session.hooks["response"].append(lambda answer, **_: seen.append(answer.status_code))
    answer = session.get(LISTS[service], endpoint_filter={"service_type": service}, raise_exc=False)
    assert (answer.status_code, seen[-3:]) == (401, [401, 201, 401])


def test_a_microversion_that_nova_does_not_speak_is_406(cloud: Clients) -> None:
    version = cloud.raw("compute", "GET", "/", authenticated=False).json()["version"]
    least, most = version["min_version"], version["version"]
    beyond = f"2.{int(most.partition('.')[2]) + 1}"
    answer = cloud.raw("compute", "GET", "/servers", headers={"OpenStack-API-Version": f"compute {beyond}"})
    message = f"Version {beyond} is not supported by the API. Minimum is {least} and maximum is {most}."
    assert is_nova(answer, "computeFault", 406, message)
    assert answer.headers["OpenStack-API-Version"] == f"compute {beyond}"
    with pytest.raises(novaclient.exceptions.NotAcceptable):
        cloud.nova.client.get("/servers", headers={"OpenStack-API-Version": f"compute {beyond}"})


def test_a_microversion_that_is_none_is_400(cloud: Clients) -> None:
    answer = cloud.raw("compute", "GET", "/servers", headers={"OpenStack-API-Version": "compute 2.x"})
    refused(answer, "API Version String 2.x is of invalid format. Must be of format MajorNum.MinorNum.")
    assert "OpenStack-API-Version" not in answer.headers


def test_nova_answers_at_2_1_unless_asked_for_more(cloud: Clients) -> None:
    old, new = cloud.raw("compute", "GET", "/servers"), cloud.raw("compute", "GET", "/servers", microversion="2.96")
    assert [answer.headers["OpenStack-API-Version"] for answer in (old, new)] == ["compute 2.1", "compute 2.96"]
    assert old.headers["X-OpenStack-Request-Id"] == old.headers["X-Compute-Request-Id"]


@pytest.mark.parametrize("service", LISTS)
def test_a_path_that_a_service_does_not_have_is_its_own_404(cloud: Clients, service: str) -> None:
    answer = cloud.raw(service, "GET", {"image": "/v2", "network": "/v2.0"}.get(service, "") + "/no-such-thing")
    kind = answer.headers["Content-Type"].partition(";")[0]
    assert (answer.status_code, kind) == (404, "application/json" if service == "network" else "text/html")
    if service == "network":
        assert answer.json() == neutron("HTTPNotFound", "The resource could not be found.")
    else:
        assert ("404 Not Found" in answer.text, service in ("image", "compute")) == (
            True, answer.text == page("404 Not Found", "The resource could not be found."))


# Flavors, images, keypairs


def test_flavors_have_names_and_sizes_and_boot_by_their_ids(cloud: Clients) -> None:
    shown = {flavor["name"]: flavor for flavor in cloud.raw("compute", "GET", "/flavors/detail").json()["flavors"]}
    tiny = shown["m1.tiny"]
    assert (tiny["ram"], tiny["vcpus"], tiny["disk"]) == (512, 1, 1)
    assert set(tiny) == {"OS-FLV-DISABLED:disabled", "OS-FLV-EXT-DATA:ephemeral", "disk", "id", "links", "name",
                         "os-flavor-access:is_public", "ram", "rxtx_factor", "swap", "vcpus"}
    missing(cloud.raw("compute", "GET", "/flavors/m1.tiny"), "Flavor m1.tiny could not be found.")


def upload(cloud: Clients, name: str, **more: Any) -> Any:
    return cloud.sdk.image.create_image(name, data=EMPTY_TAR, disk_format="raw", container_format="bare", wait=True,
                                        allow_duplicates=True, **more)


def test_an_image_is_found_by_its_whole_name_and_by_its_id(cloud: Clients) -> None:
    images = cloud.sdk.image
    assert [image.id for image in images.images(name=cloud.base_name)] == [cloud.base]
    assert list(images.images(name=cloud.base_name[:-1])) == []
    assert images.get_image(cloud.base).name == cloud.base_name
    with pytest.raises(openstack.exceptions.NotFoundException):
        images.get_image("Debian 12.5")


def test_two_images_of_a_name_are_both_listed_newest_first(cloud: Clients) -> None:
    first = upload(cloud, "twice")
    after_this_second(first.created_at)
    second = upload(cloud, "twice")
    found = list(cloud.sdk.image.images(name="twice"))
    assert [(image.id, image.status) for image in found] == [(second.id, "active"), (first.id, "active")]
    assert epoch(found[0].created_at) > epoch(found[1].created_at)
    with pytest.raises(openstack.exceptions.DuplicateResource):
        cloud.sdk.image.find_image("twice")


def epoch(stamp: str) -> float:
    """Return the seconds since 1970 of a time stamp as OpenStack writes it."""
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", stamp), stamp
    return datetime.fromisoformat(stamp).timestamp()


def after_this_second(stamp: str) -> None:
    """Wait until things made from now on have a later time stamp: stamps count whole seconds."""
    waited("the next second", lambda: time.time() > epoch(stamp) + 1.1)


def test_an_image_is_shown_with_its_properties_beside_its_fields(cloud: Clients) -> None:
    made = upload(cloud, "up", colour="red")
    shown = cloud.raw("image", "GET", f"/v2/images/{made.id}").json()
    assert IMAGE_FIELDS | {"colour", "stores"} <= set(shown)
    assert {key: shown[key] for key in ("status", "size", "owner", "colour", "os_hidden", "protected")} == {
        "status": "active", "size": len(EMPTY_TAR), "owner": cloud.project, "colour": "red", "os_hidden": False,
        "protected": False}
    assert abs(epoch(shown["created_at"]) - time.time()) < 60
    assert cloud.sdk.image.get_image(made.id).properties["colour"] == "red"


def test_an_image_without_data_is_queued_and_does_not_boot(cloud: Clients) -> None:
    made = cloud.raw("image", "POST", "/v2/images", json={"name": "empty"})
    shown = made.json()
    assert (made.status_code, set(shown)) == (201, IMAGE_FIELDS)
    assert {key: shown[key] for key in ("status", "visibility", "size", "disk_format", "container_format")} == {
        "status": "queued", "visibility": "shared", "size": None, "disk_format": None, "container_format": None}
    data = cloud.raw("image", "PUT", f"/v2/images/{shown['id']}/file", data=b"x",
                     headers={"Content-Type": "application/octet-stream"})
    reason = "Properties disk_format, container_format must be set prior to saving data."
    assert (data.status_code, data.text) == (400, page("400 Bad Request", reason))
    refused(create(cloud, {"imageRef": shown["id"]}), f"Image {shown['id']} is not active.")
    assert [image.status for image in cloud.sdk.image.images(name="empty")] == ["queued"]


def test_images_are_listed_by_visibility(cloud: Clients) -> None:
    for visibility in ("private", "shared"):
        upload(cloud, visibility, visibility=visibility)
    assert [image.name for image in cloud.sdk.image.images(visibility="private")] == ["private"]
    assert [image.name for image in cloud.sdk.image.images(visibility="shared")] == ["shared"]
    assert cloud.base_name in [image.name for image in cloud.sdk.image.images(visibility="public")]
    assert {image.name for image in cloud.sdk.image.images()} >= {"private", "shared", cloud.base_name}


def test_images_come_in_pages(cloud: Clients) -> None:
    for name in ("a", "b", "c"):
        upload(cloud, name, visibility="private")
    first = cloud.raw("image", "GET", "/v2/images?limit=2&visibility=private").json()
    assert first["first"] == "/v2/images?limit=2&visibility=private"
    assert (len(first["images"]), first["schema"]) == (2, "/v2/schemas/images")
    last = cloud.raw("image", "GET", first["next"]).json()
    assert (len(last["images"]), "next" in last) == (1, False)
    assert len(list(cloud.sdk.image.images(visibility="private", limit=1))) == 3


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("limit=x", "limit param must be an integer"),
        (f"marker={NOBODY}", f"No image found with ID {NOBODY}"),
        ("visibility=nonsense", "Invalid visibility value: nonsense"),
    ],
)
def test_a_wrong_list_of_images_is_400(cloud: Clients, query: str, text: str) -> None:
    answer = cloud.raw("image", "GET", f"/v2/images?{query}")
    assert (answer.status_code, answer.text) == (400, page("400 Bad Request", text))


def test_what_glance_does_not_know_it_ignores_in_a_filter(cloud: Clients) -> None:
    assert cloud.raw("image", "GET", "/v2/images?strange=x").json()["images"] == []


@pytest.mark.parametrize(
    ("method", "wanted", "text"),
    [
        ("GET", NOBODY, f"No image found with ID {NOBODY}"),
        ("GET", "Debian 12.5", "No image found with ID Debian 12.5"),
        ("DELETE", NOBODY, f"Failed to find image {NOBODY} to delete"),
    ],
)
def test_a_404_of_glance_is_html(cloud: Clients, method: str, wanted: str, text: str) -> None:
    answer = cloud.raw("image", method, f"/v2/images/{wanted}")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "text/html; charset=UTF-8")
    assert answer.text == page("404 Not Found", text)


def test_an_image_is_deleted_once_and_gone_at_once(cloud: Clients) -> None:
    made = upload(cloud, "goes")
    cloud.sdk.image.delete_image(made.id, ignore_missing=False)
    with pytest.raises(openstack.exceptions.NotFoundException):
        cloud.sdk.image.get_image(made.id)
    with pytest.raises(openstack.exceptions.NotFoundException):
        cloud.sdk.image.delete_image(made.id, ignore_missing=False)
    cloud.sdk.image.delete_image(made.id, ignore_missing=True)


def test_somebody_elses_image_is_not_ours_to_delete(cloud: Clients) -> None:
    answer = cloud.raw("image", "DELETE", f"/v2/images/{cloud.base}")
    assert (answer.status_code, answer.text) == (
        403, page("403 Forbidden", "You are not authorized to complete delete_image action."))
    with pytest.raises(openstack.exceptions.ForbiddenException):
        cloud.sdk.image.delete_image(cloud.base, ignore_missing=True)


def test_a_keypair_is_there_once(cloud: Clients) -> None:
    user = cloud.session.get_user_id()
    made = cloud.raw("compute", "POST", "/os-keypairs", json={"keypair": {"name": "one", "public_key": KEY}})
    pair = {"name": "one", "public_key": KEY, "fingerprint": KEY_FINGERPRINT}
    assert (made.status_code, made.json()) == (200, {"keypair": pair | {"user_id": user}})
    listed = cloud.raw("compute", "GET", "/os-keypairs")
    assert listed.json() == {"keypairs": [{"keypair": pair}]}
    with pytest.raises(novaclient.exceptions.Conflict) as caught:
        cloud.nova.keypairs.create("one", KEY)
    assert caught.value.message == "Key pair 'one' already exists."
    assert [found.name for found in cloud.nova.keypairs.list()] == ["one"]
    cloud.nova.keypairs.delete("one")
    for method in ("GET", "DELETE"):
        missing(cloud.raw("compute", method, "/os-keypairs/one"), f"Keypair one not found for user {user}")
    assert cloud.nova.keypairs.list() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"public_key": "nonsense"}, "Keypair data is invalid: failed to generate fingerprint"),
        ({"name": ""}, "Invalid input for field/attribute name. Value: . '' should be non-empty"),
    ],
    ids=["key", "name"],
)
def test_a_wrong_keypair_is_400(cloud: Clients, change: dict[str, str], message: str) -> None:
    pair = {"name": "one", "public_key": KEY, **change}
    refused(cloud.raw("compute", "POST", "/os-keypairs", json={"keypair": pair}), message)


# Create


def create(cloud: Clients, change: dict[str, Any], *, microversion: str = "2.1") -> requests.Response:
    """Ask for a server with changed keys; None leaves a key out."""
    networks: Any = [{"uuid": cloud.network}] if microversion == "2.1" else "auto"
    wish = {"name": "x", "imageRef": cloud.base, "flavorRef": cloud.flavor, "networks": networks, **change}
    server = {key: value for key, value in wish.items() if value is not None}
    return cloud.raw("compute", "POST", "/servers", json={"server": server}, microversion=microversion)


def test_the_answer_to_a_create_names_the_server(cloud: Clients) -> None:
    answer = create(cloud, {})
    server = answer.json()["server"]
    assert (answer.status_code, sorted(server)) == (
        202, ["OS-DCF:diskConfig", "adminPass", "id", "links", "security_groups"])
    own = next(link["href"] for link in server["links"] if link["rel"] == "self")
    assert answer.headers["Location"] == own
    assert own.endswith(f"/v2.1/servers/{server['id']}")


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "image": ({"imageRef": NOBODY}, "Can not find requested image"),
    "image name": ({"imageRef": "noble"}, "Invalid input for field/attribute imageRef. Value: noble. 'noble' is not "
                   "valid under any of the given schemas"),
    "no image": ({"imageRef": None}, "Missing imageRef attribute"),
    "flavor": ({"flavorRef": NOBODY}, f"Flavor {NOBODY} could not be found."),
    "flavor name": ({"flavorRef": "m1.tiny"}, "Flavor m1.tiny could not be found."),
    "key": ({"key_name": "none"}, "Invalid key_name provided."),
    "network": ({"networks": [{"uuid": NOBODY}]}, f"Network {NOBODY} could not be found."),
    "network name": ({"networks": [{"uuid": "private"}]},
                     "Bad networks format: network uuid is not in proper format (private)"),
    "zone": ({"availability_zone": "nowhere"}, "The requested availability zone is not available"),
    "group": ({"security_groups": [{"name": "none"}]}, "Unable to find security_group with name or id 'none'"),
    "empty name": ({"name": ""}, "Invalid input for field/attribute name. Value: . '' should be non-empty"),
    "metadata": ({"metadata": {"k": 1}}, "Invalid input for field/attribute k. Value: 1. 1 is not of type 'string'"),
    "long metadata": ({"metadata": {"k": "x" * 256}}, f"Invalid input for field/attribute k. Value: {'x' * 256}. "
                      f"'{'x' * 256}' is too long"),
    "user data": ({"user_data": "A"}, "Invalid input for field/attribute user_data. Value: A. 'A' is not a 'base64'"),
    "choice": ({"networks": "auto"}, "Invalid input for field/attribute networks. Value: auto. 'auto' is not of type "
               "'array'"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_a_wrong_create_is_400(cloud: Clients, what: str) -> None:
    change, message = REFUSED[what]
    refused(create(cloud, change), message)
    assert cloud.nova.servers.list() == []


@pytest.mark.parametrize(
    ("change", "microversion", "reason"),
    [
        ({"flavorRef": None}, "2.1", "'flavorRef' is a required property"),
        ({"name": None}, "2.1", "'name' is a required property"),
        ({"networks": None}, "2.37", "'networks' is a required property"),
        ({"strange": 1}, "2.1", "Additional properties are not allowed ('strange' was unexpected)"),
    ],
)
def test_a_create_with_too_little_or_too_much_is_400(
    cloud: Clients, change: dict[str, Any], microversion: str, reason: str
) -> None:
    answer = create(cloud, change, microversion=microversion)
    message = answer.json()["badRequest"]["message"]
    assert (answer.status_code, message.startswith("Invalid input for field/attribute server. Value: {")) == (400, True)
    assert message.endswith(f"}}. {reason}")


def test_a_create_without_a_server_is_400(cloud: Clients) -> None:
    refused(cloud.raw("compute", "POST", "/servers", json={}), "'server' is a required property")
    refused(cloud.raw("compute", "POST", "/servers", data="{", headers={"Content-Type": "application/json"}),
            "Malformed request body")


def test_more_than_128_metadata_are_403(cloud: Clients) -> None:
    answer = create(cloud, {"metadata": {f"k{number}": "x" for number in range(129)}})
    assert is_nova(answer, "forbidden", 403, "Maximum number of metadata items exceeds 128")


def test_an_active_server_shows_what_it_was_created_with(cloud: Clients) -> None:
    cloud.nova.keypairs.create("one", KEY)
    metadata = {"devstack-gate-pool": POOL, "long": "x" * 255}
    made = cloud.booted("devstack-noble-one-7", meta=metadata, key_name="one", userdata="#!/bin/sh\necho ran\n",
                        availability_zone="nova", security_groups=["default"])
    shown = cloud.show(made.id)
    assert set(shown) == SERVER_FIELDS
    expected = {
        "name": "devstack-noble-one-7", "status": "ACTIVE", "metadata": metadata, "key_name": "one",
        "OS-EXT-STS:vm_state": "active", "OS-EXT-STS:task_state": None, "OS-EXT-STS:power_state": 1, "progress": 0,
        "OS-EXT-AZ:availability_zone": "nova", "security_groups": [{"name": "default"}], "tenant_id": cloud.project,
        "accessIPv4": "", "accessIPv6": "", "config_drive": "", "os-extended-volumes:volumes_attached": [],
    }  # fmt: skip
    assert {key: shown[key] for key in expected} == expected
    assert (shown["image"]["id"], shown["flavor"]["id"]) == (cloud.base, cloud.flavor)
    assert abs(epoch(shown["created"]) - time.time()) < 60
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}", shown["OS-SRV-USG:launched_at"])


def test_a_server_at_2_96_shows_more_and_its_flavor_without_an_id(cloud: Clients) -> None:
    made = cloud.booted("one")
    shown = cloud.show(made.id, microversion="2.96")
    more = {"locked": False, "description": "one", "tags": [], "trusted_image_certificates": None, "server_groups": [],
            "locked_reason": None, "OS-EXT-SRV-ATTR:hostname": "one", "pinned_availability_zone": None}
    assert set(shown) == SERVER_FIELDS | set(more)
    assert {key: shown[key] for key in more} == more
    assert shown["flavor"] == {"vcpus": 1, "ram": 512, "disk": 1, "ephemeral": 0, "swap": 0,
                               "original_name": "m1.tiny", "extra_specs": {}}


def test_a_server_under_way_is_in_build_without_addresses(cloud: Clients) -> None:
    made = cloud.boot(**cloud.side.slow_boot(4))
    spawning = cloud.until(made.id, lambda shown: shown["OS-EXT-STS:task_state"] == "spawning"
                           and "security_groups" in shown)
    expected = {"status": "BUILD", "addresses": {}, "OS-EXT-STS:vm_state": "building", "OS-EXT-STS:power_state": 0,
                "OS-SRV-USG:launched_at": None, "progress": 0, "OS-EXT-AZ:availability_zone": "nova",
                "security_groups": [{"name": "default"}]}
    assert {key: spawning[key] for key in expected} == expected
    assert set(spawning) == SERVER_FIELDS
    assert cloud.nova.servers.get_console_output(made.id) is not None
    conflicts(cloud.act(made.id, {"createImage": {"name": "early"}}),
              f"Cannot 'createImage' instance {made.id} while it is in vm_state building")
    cloud.in_status(made.id, "ACTIVE")


def test_a_server_nobody_has_taken_yet_has_no_host_and_no_console(cloud: Clients) -> None:
    made = cloud.boot(**cloud.side.failing_boot("no-host"))
    shown = cloud.until(made.id, lambda shown: shown["status"] == "ERROR")
    assert (shown["hostId"], shown["OS-EXT-AZ:availability_zone"], "security_groups" in shown) == ("", "", False)
    actions: list[dict[str, Any]] = [{"os-getConsoleOutput": {}}, {"os-start": None}, {"os-stop": None}]
    for action in actions:
        conflicts(cloud.act(made.id, action), f"Instance {made.id} is not ready")
    conflicts(cloud.act(made.id, {"createImage": {"name": "x"}}),
              f"Cannot 'createImage' instance {made.id} while it is in vm_state error")


def test_several_networks_and_no_choice_is_409(cloud: Clients) -> None:
    message = "Multiple possible networks found, use a Network ID to be more specific."
    with cloud.side.second_network() as (second, name):
        conflicts(create(cloud, {"networks": None}), message)
        conflicts(create(cloud, {}, microversion="2.37"), message)
        with pytest.raises(novaclient.exceptions.Conflict):
            cloud.boot(nics=None)
        assert cloud.booted("chosen").addresses.keys() == {"private"}
        both = cloud.booted("both", nics=[{"net-id": cloud.network}, {"net-id": second}])
        assert {network: [address["OS-EXT-IPS:type"] for address in group] for network, group in
                both.addresses.items()} == {"private": ["fixed"], name: ["fixed"]}
        assert {port.network_id for port in cloud.sdk.network.ports(device_id=both.id)} == {cloud.network, second}


def test_a_single_network_needs_no_choice(cloud: Clients) -> None:
    assert cloud.booted(nics=None).addresses.keys() == {"private"}


def test_a_server_on_an_external_network_is_accepted_and_fails(cloud: Clients) -> None:
    made = cloud.booted(nics=[{"net-id": cloud.public_network}], status="ERROR")
    message = f"Build of instance {made.id} aborted: Failed to allocate the network(s), not rescheduling."
    assert (made.fault["code"], made.fault["message"], made.addresses) == (500, message, {})


# Builds that fail, and quotas


FAULTS = {
    "no-host": "No valid host was found. ",  # the scheduler adds a sentence if it was the one that found no host
    "abort": "Build of instance {id} aborted: as told",
    "retry": "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for "
               "instance {id}.",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_failed_build_is_error_with_a_fault_and_gives_its_ports_back(cloud: Clients, how: str) -> None:
    made = cloud.booted(status="ERROR", **cloud.side.failing_boot(how))
    shown = cloud.show(made.id)  # Nova may still show addresses, from its own copy
    assert set(shown) == SERVER_FIELDS - {"progress", "security_groups"} | {"fault"}
    assert sorted(shown["fault"]) == ["code", "created", "message"]
    message = shown["fault"]["message"].removesuffix("There are not enough hosts available.")
    assert (shown["fault"]["code"], message) == (500, FAULTS[how].format(id=made.id))
    assert (shown["OS-EXT-STS:vm_state"], shown["OS-SRV-USG:launched_at"]) == ("error", None)
    assert epoch(shown["fault"]["created"]) >= epoch(shown["created"])
    listed = cloud.raw("compute", "GET", "/servers/detail?status=ERROR").json()["servers"]
    assert [(server["id"], server["fault"]["message"]) for server in listed] == [(made.id, shown["fault"]["message"])]
    waited("the end of its ports", lambda: list(cloud.sdk.network.ports(device_id=made.id)) == [])
    made.delete()
    waited("404", lambda: cloud.is_gone(made.id))


def test_over_the_quota_is_403(cloud: Clients) -> None:
    with cloud.side.small(2) as small:
        for name in ("one", "two"):
            small.booted(name)
        message = "Quota exceeded for instances: Requested 1, but already used 2 of 2 instances"
        assert is_nova(create(small, {}), "forbidden", 403, message)
        with pytest.raises(novaclient.exceptions.Forbidden) as caught:
            small.boot("three")
        assert (caught.value.code, caught.value.message) == (403, message)
        absolute = small.nova.limits.get().to_dict()["absolute"]
        assert (absolute["totalInstancesUsed"], absolute["maxTotalInstances"]) == (2, 2)


def test_over_the_quota_of_cores_is_403_and_limits_tell_of_it(cloud: Clients) -> None:
    with cloud.side.small(9, cores=2, ram=1024) as small:
        for name in ("one", "two"):  # a create may be answered a moment before its server counts
            small.booted(name)
        flavor = small.flavors["m1.medium"]
        assert is_nova(create(small, {"flavorRef": flavor}), "forbidden", 403, "Quota exceeded for cores, ram: "
                       "Requested 2, 4096, but already used 2, 1024 of 2, 1024 cores, ram")
        limits = small.raw("compute", "GET", "/limits").json()["limits"]
        assert limits["rate"] == []
        told = {name: value for name, value in limits["absolute"].items() if re.search("Instances|Cores|RAM", name)}
        assert told == {"maxTotalInstances": 9, "totalInstancesUsed": 2, "maxTotalCores": 2, "totalCoresUsed": 2,
                        "maxTotalRAMSize": 1024, "totalRAMUsed": 1024}


def test_without_a_quota_the_limit_is_minus_one(cloud: Clients) -> None:
    told = cloud.raw("compute", "GET", "/limits").json()["limits"]["absolute"]
    assert [told[f"maxTotal{name}"] for name in ("Instances", "Cores", "RAMSize")] == [-1, -1, -1]


def test_an_error_server_counts_against_the_quota(cloud: Clients) -> None:
    with cloud.side.small(1) as small:
        small.booted("bad", status="ERROR", **cloud.side.failing_boot("no-host"))
        with pytest.raises(novaclient.exceptions.Forbidden, match="already used 1 of 1 instances"):
            small.boot("next")


def test_a_burst_over_the_quota_is_refused_or_fails_later(cloud: Clients) -> None:
    made, refusals = [], 0
    with cloud.side.small(2) as small:
        for number in range(5):
            try:
                made.append(small.boot(f"n{number}").id)
            except novaclient.exceptions.Forbidden:
                refusals += 1
        shown = [small.until(one, lambda shown: shown["status"] != "BUILD") for one in made]
        assert refusals + len(made) == 5
        assert [server["status"] for server in shown].count("ACTIVE") == 2
        for server in shown:
            if server["status"] == "ERROR":
                assert (server["fault"]["code"], server["fault"]["message"].startswith("Quota exceeded")) == (413, True)


# Lists


def test_the_name_in_a_list_is_a_regular_expression(cloud: Clients) -> None:
    for name in ("aa", "ab", "b"):
        cloud.booted(name)
    assert sorted(cloud.listed("name=^a")) == ["aa", "ab"]
    assert cloud.listed("name=^b$") == ["b"]
    assert [server.name for server in cloud.nova.servers.list(search_opts={"name": "a[b]"})] == ["ab"]
    refused(cloud.raw("compute", "GET", "/servers?name=["),
            "Invalid input for query parameters name. Value: [. '[' is not a 'regex'")


def test_a_filter_by_metadata_is_ignored(cloud: Clients) -> None:
    cloud.booted("one", meta={"pool": "mine"})
    assert cloud.listed('metadata={"pool": "other"}') == ["one"]
    assert len(cloud.nova.servers.list(search_opts={"metadata": {"no": "such"}})) == 1


def test_filters(cloud: Clients) -> None:
    one = cloud.booted("one")
    found = {query: cloud.listed(query) for query in (
        "status=ACTIVE", "status=active", "status=BUILD", "status=NONSENSE", f"image={cloud.base}", f"image={NOBODY}",
        f"flavor={cloud.flavor}", f"flavor={NOBODY}", f"uuid={one.id}",
        "changes-since=2090-01-01T00:00:00Z", "deleted=true", "status=ACTIVE&status=BUILD")}
    some = {"status=ACTIVE", "status=active", f"image={cloud.base}", f"flavor={cloud.flavor}", f"uuid={one.id}",
            "deleted=true", "status=ACTIVE&status=BUILD"}
    assert found == {query: ["one"] if query in some else [] for query in found}
    assert cloud.listed(f"changes-since={one.created}")[0] == "one"  # deleted ones may follow


@pytest.mark.parametrize("query", ["unknown=1", "key_name=other", "tags=a", "locked=true", "host=elsewhere"])
def test_a_filter_that_2_1_does_not_know_is_ignored_there(cloud: Clients, query: str) -> None:
    cloud.booted("one")
    assert cloud.listed(query) == ["one"]


def test_a_filter_that_is_known_later_filters_then(cloud: Clients) -> None:
    cloud.nova.keypairs.create("mine", KEY)
    cloud.booted("one", key_name="mine")
    found = {query: cloud.listed(query, microversion="2.96") for query in (
        "key_name=mine", "key_name=other", "tags=a", "not-tags=a", "locked=true", "locked=false", "host=elsewhere")}
    some = {"key_name=mine", "not-tags=a", "locked=false", "host=elsewhere"}
    assert found == {query: ["one"] if query in some else [] for query in found}


def test_an_unknown_filter_is_400_from_2_75_on(cloud: Clients) -> None:
    refused(cloud.raw("compute", "GET", "/servers/detail?unknown=1", microversion="2.75"),
            "'unknown' does not match any of the regexes: '^_'")


WRONG_LISTS = {
    "limit=x": "Invalid input for query parameters limit. Value: x. 'x' does not match '^[0-9]*$'",
    "limit=-1": "Invalid input for query parameters limit. Value: -1. '-1' does not match '^[0-9]*$'",
    f"marker={NOBODY}": f"marker [{NOBODY}] not found",
    "changes-since=x": "Invalid input for query parameters changes-since. Value: x. 'x' is not a 'date-time'",
}


@pytest.mark.parametrize("query", WRONG_LISTS)
def test_a_wrong_list_is_400(cloud: Clients, query: str) -> None:
    refused(cloud.raw("compute", "GET", f"/servers/detail?{query}"), WRONG_LISTS[query])


def test_a_wrong_sort_key_is_400(cloud: Clients) -> None:
    answer = cloud.raw("compute", "GET", "/servers?sort_key=nonsense")
    start = "Invalid input for query parameters sort_key. Value: nonsense. 'nonsense' is not one of ["
    assert (answer.status_code, answer.json()["badRequest"]["message"].startswith(start)) == (400, True)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("status=DELETED", "Only administrators may list deleted instances"),
        ("all_tenants=1", "Policy doesn't allow os_compute_api:servers:detail:get_all_tenants to be performed."),
    ],
)
def test_what_only_an_administrator_may_list_is_403(cloud: Clients, query: str, message: str) -> None:
    assert is_nova(cloud.raw("compute", "GET", f"/servers/detail?{query}"), "forbidden", 403, message)


def test_long_lists_come_in_pages_newest_first(cloud: Clients) -> None:
    for name in ("a", "b", "c"):
        after_this_second(cloud.booted(name).created)
    assert cloud.listed() == ["c", "b", "a"]
    assert cloud.listed("sort_key=created_at&sort_dir=asc") == cloud.listed("sort_key=display_name&sort_dir=asc") == [
        "a", "b", "c"]
    first = cloud.raw("compute", "GET", "/servers/detail?limit=2").json()
    assert [server["name"] for server in first["servers"]] == ["c", "b"]
    (link,) = first["servers_links"]
    place, _, query = link["href"].partition("?")
    assert (link["rel"], query) == ("next", f"limit=2&marker={first['servers'][1]['id']}")
    assert place.endswith("/v2.1/servers/detail")
    last = cloud.raw("compute", "GET", f"/servers/detail?{query}").json()
    assert ([server["name"] for server in last["servers"]], "servers_links" in last) == (["a"], False)
    full = cloud.raw("compute", "GET", "/servers/detail?limit=3").json()
    assert "servers_links" in full  # even if a full page was the last one
    assert cloud.listed(f"limit=3&marker={full['servers'][2]['id']}") == []
    assert (cloud.listed("limit=0"), len(cloud.listed("limit=2000"))) == ([], 3)
    assert [server.name for server in cloud.nova.servers.list(limit=-1)] == ["c", "b", "a"]


def test_a_brief_list_has_ids_and_names(cloud: Clients) -> None:
    one = cloud.booted("one")
    (brief,) = cloud.raw("compute", "GET", "/servers").json()["servers"]
    assert (set(brief), brief["id"], brief["name"]) == ({"id", "name", "links"}, one.id, "one")


def test_a_list_shows_servers_as_they_are_shown_alone(cloud: Clients) -> None:
    one = cloud.booted("one", meta={"pool": POOL})
    assert cloud.raw("compute", "GET", "/servers/detail").json() == {"servers": [cloud.show(one.id)]}


# Actions


def test_a_server_stops_starts_and_reboots(cloud: Clients) -> None:
    one = cloud.booted()
    conflicts(cloud.act(one.id, {"os-start": None}),
              f"Cannot 'start' instance {one.id} while it is in vm_state active")
    assert cloud.act(one.id, {"os-stop": None}).status_code == 202
    cloud.in_status(one.id, "SHUTOFF")
    shown = cloud.show(one.id)
    assert (set(shown), shown["OS-EXT-STS:vm_state"], shown["OS-EXT-STS:power_state"]) == (
        SERVER_FIELDS - {"progress"}, "stopped", 4)
    conflicts(cloud.act(one.id, {"os-stop": None}), f"Cannot 'stop' instance {one.id} while it is in vm_state stopped")
    conflicts(cloud.act(one.id, {"reboot": {"type": "SOFT"}}),
              f"Cannot 'reboot' instance {one.id} while it is in vm_state stopped")
    assert cloud.act(one.id, {"os-start": None}).status_code == 202
    cloud.in_status(one.id, "ACTIVE")
    for kind in ("SOFT", "HARD"):
        assert cloud.act(one.id, {"reboot": {"type": kind}}).status_code == 202
        cloud.in_status(one.id, "ACTIVE")


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ({"nonsense": None}, "There is no such action: nonsense"),
        ({}, "Malformed request body"),
        ({"os-start": None, "os-stop": None}, "Malformed request body"),
        ({"createImage": {}},
         "Invalid input for field/attribute createImage. Value: {}. 'name' is a required property"),
        ({"reboot": {}}, "Invalid input for field/attribute reboot. Value: {}. 'type' is a required property"),
        ({"os-getConsoleOutput": {"length": "x"}},
         "Invalid input for field/attribute length. Value: x. 'x' does not match '^-?[0-9]+$'"),
    ],
    ids=["unknown", "none", "two", "image", "reboot", "console"],
)  # fmt: skip
def test_a_wrong_action_is_400(cloud: Clients, action: dict[str, Any], message: str) -> None:
    refused(cloud.act(cloud.booted().id, action), message)


def test_the_console_is_text_and_its_length_counts_lines_from_the_end(cloud: Clients) -> None:
    one = cloud.booted(userdata="#!/bin/sh\necho one\necho two\n")

    def look() -> bool:  # the machine may still be writing
        whole, end, again = (
            str(cloud.nova.servers.get_console_output(one.id, length=length)) for length in (None, 2, 500))
        lines = whole.split("\n")  # the empty text behind the last newline is a line, too
        return whole == again and len(lines) > 2 and end.split("\n") == lines[-2:]

    waited("the same console at each length", look)


@pytest.mark.parametrize("action", [{"createImage": {"name": "x"}}, {"os-getConsoleOutput": {}},
                                    {"reboot": {"type": "HARD"}}], ids=["image", "console", "reboot"])
def test_what_is_asked_of_no_server_is_404(cloud: Clients, action: dict[str, Any]) -> None:
    missing(cloud.act(NOBODY, action), f"Instance {NOBODY} could not be found.")


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("GET", "/metadata")])
@pytest.mark.parametrize("wanted", [NOBODY, "nonsense"])
def test_a_server_that_is_not_there_is_404(cloud: Clients, method: str, path: str, wanted: str) -> None:
    missing(cloud.raw("compute", method, f"/servers/{wanted}{path}"), f"Instance {wanted} could not be found.")


# Images of servers


def test_an_image_of_a_server_goes_through_its_states_and_boots(cloud: Clients) -> None:
    one = cloud.booted("one", **cloud.side.slow_snapshot(2))
    image_id = cloud.nova.servers.create_image(one.id, "snap", {"devstack-gate-pool": POOL})
    first = cloud.raw("image", "GET", f"/v2/images/{image_id}").json()
    nothing = ("size", "checksum", "disk_format", "container_format", "os_hash_value", "virtual_size")
    assert (first["status"], {first[key] for key in nothing}) == ("queued", {None})
    again = cloud.act(one.id, {"createImage": {"name": "again"}})
    state = again.json()["conflictingRequest"]["message"].rpartition(" ")[2]
    conflicts(again, f"Cannot 'createImage' instance {one.id} while it is in task_state {state}")
    assert state in ("image_snapshot_pending", "image_snapshot", "image_pending_upload", "image_uploading")
    seen: list[str] = []

    def look() -> bool:
        seen.append(cloud.sdk.image.get_image(image_id).status)
        return seen[-1] == "active"

    waited("an active image", look)
    assert [status for status in ("queued", "saving", "active") if status in seen] == sorted(
        set(seen), key=seen.index)
    made = cloud.sdk.image.get_image(image_id)
    expected = {"devstack-gate-pool": POOL, "image_type": "snapshot", "instance_uuid": one.id,
                "base_image_ref": cloud.base, "image_state": "available", "image_location": "snapshot"}
    shown = cloud.raw("image", "GET", f"/v2/images/{image_id}").json()
    assert {key: shown[key] for key in expected} == expected
    assert made.properties["devstack-gate-pool"] == POOL
    assert (made.name, made.visibility, made.min_disk, made.owner_id) == ("snap", "private", 1, cloud.project)
    assert made.size > 0
    cloud.in_status(one.id, "ACTIVE")
    two = cloud.booted("two", image=image_id)
    assert two.image["id"] == image_id
    assert [image.id for image in cloud.sdk.image.images(visibility="private")] == [image_id]


def test_the_id_of_a_servers_image_is_in_the_location_and_later_in_the_body(cloud: Clients) -> None:
    one = cloud.booted()
    old = cloud.act(one.id, {"createImage": {"name": "old"}})
    assert (old.status_code, old.text) == (202, "")
    assert old.headers["Location"].endswith(f"//images/{cloud.sdk.image.find_image('old').id}")
    waited("an active image", lambda: cloud.sdk.image.find_image("old").status == "active")
    cloud.in_status(one.id, "ACTIVE")
    new = cloud.act(one.id, {"createImage": {"name": "new"}}, microversion="2.45")
    assert (new.status_code, new.json()) == (202, {"image_id": cloud.sdk.image.find_image("new").id})
    assert "Location" not in new.headers
    cloud.in_status(one.id, "ACTIVE")


def test_an_image_whose_snapshot_fails_is_gone_again(cloud: Clients) -> None:
    one = cloud.booted("one", **cloud.side.failing_snapshot())
    image_id = one.create_image("snap")
    assert cloud.sdk.image.get_image(image_id).status == "queued"
    waited("404", lambda: cloud.raw("image", "GET", f"/v2/images/{image_id}").status_code == 404)
    cloud.in_status(one.id, "ACTIVE")


def test_an_image_inherits_the_properties_of_the_servers_image(cloud: Clients) -> None:
    base = upload(cloud, "base", colour="red")
    one = cloud.booted("one", image=base.id)
    image_id = one.create_image("snap", {"size-of": "one"})
    waited("an active image", lambda: cloud.sdk.image.get_image(image_id).status == "active")
    found = cloud.sdk.image.get_image(image_id).properties
    assert {key: found[key] for key in ("colour", "size-of", "base_image_ref")} == {
        "colour": "red", "size-of": "one", "base_image_ref": base.id}
    cloud.in_status(one.id, "ACTIVE")


# Networks, addresses, floating IPs


def test_networks_are_found_by_name_and_the_external_ones_by_filter(cloud: Clients) -> None:
    network = cloud.sdk.network
    assert [one.name for one in network.networks(is_router_external=True)] == ["public"]
    assert [one.name for one in network.networks(is_router_external=False)] == ["private"]
    assert (network.find_network("private").id, network.find_network("none")) == (cloud.network, None)
    with pytest.raises(openstack.exceptions.NotFoundException):
        network.find_network("none", ignore_missing=False)


def test_a_server_has_a_port_with_its_address(cloud: Clients) -> None:
    one = cloud.booted()
    (address,) = one.addresses["private"]
    assert set(address) == {"version", "addr", "OS-EXT-IPS:type", "OS-EXT-IPS-MAC:mac_addr"}
    assert (address["version"], address["OS-EXT-IPS:type"]) == (4, "fixed")
    (port,) = cloud.sdk.network.ports(device_id=one.id)
    assert ([place["ip_address"] for place in port.fixed_ips], port.mac_address, port.status, port.device_owner) == (
        [address["addr"]], address["OS-EXT-IPS-MAC:mac_addr"], "ACTIVE", "compute:nova")
    assert list(cloud.sdk.network.ports(device_id=NOBODY)) == []


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("networks", "NetworkNotFound", f"Network {NOBODY} could not be found."),
        ("ports", "PortNotFound", f"Port {NOBODY} could not be found."),
        ("floatingips", "FloatingIPNotFound", f"Floating IP {NOBODY} could not be found"),
    ],
)
def test_a_404_of_neutron_names_its_kind(cloud: Clients, path: str, kind: str, message: str) -> None:
    answer = cloud.raw("network", "GET", f"/v2.0/{path}/{NOBODY}")
    assert (answer.status_code, answer.json()) == (404, neutron(kind, message))


@pytest.mark.parametrize("path", ["networks", "ports", "floatingips"])
def test_an_unknown_filter_of_neutrons_is_400(cloud: Clients, path: str) -> None:
    answer = cloud.raw("network", "GET", f"/v2.0/{path}?strange=x")
    assert (answer.status_code, answer.json()) == (
        400, neutron("HTTPBadRequest", "['strange'] is invalid attribute for filtering"))


def floating(cloud: Clients, **wish: Any) -> requests.Response:
    wish = {"floating_network_id": cloud.public_network, **wish}
    return cloud.raw("network", "POST", "/v2.0/floatingips", json={"floatingip": wish})


@pytest.mark.parametrize("how", ["made on the port", "made and bound later"])
def test_a_floating_ip_is_bound_and_shows_among_the_addresses_later(cloud: Clients, how: str) -> None:
    one, network = cloud.booted(), cloud.sdk.network
    (port,) = network.ports(device_id=one.id)
    options = {"floating_network_id": cloud.public_network, "description": "ours"}
    if how == "made on the port":
        made = network.create_ip(port_id=port.id, **options)
    else:
        made = network.create_ip(**options)
        assert (made.port_id, made.fixed_ip_address, made.status) == (None, None, "DOWN")
        made = network.update_ip(made, port_id=port.id)
    assert (made.port_id, made.fixed_ip_address, made.description) == (
        port.id, port.fixed_ips[0]["ip_address"], "ours")
    waited("two addresses", lambda: len(cloud.show(one.id)["addresses"]["private"]) == 2)
    fixed, shown = cloud.show(one.id)["addresses"]["private"]
    assert shown == {**fixed, "addr": made.floating_ip_address, "OS-EXT-IPS:type": "floating"}
    assert [(ip.id, ip.description) for ip in network.ips()] == [(made.id, "ours")]
    network.delete_ip(made.id, ignore_missing=False)
    waited("one address", lambda: cloud.show(one.id)["addresses"] == {"private": [fixed]})


def test_a_floating_ip_outlives_its_server_and_is_released_once(cloud: Clients) -> None:
    one, network = cloud.booted(), cloud.sdk.network
    (port,) = network.ports(device_id=one.id)
    made = network.create_ip(floating_network_id=cloud.public_network, port_id=port.id, description="ours")
    one.delete()
    waited("404", lambda: cloud.is_gone(one.id))
    left = network.get_ip(made.id)
    assert (left.port_id, left.fixed_ip_address, left.status, left.description) == (None, None, "DOWN", "ours")
    network.delete_ip(made.id, ignore_missing=False)
    assert list(network.ips()) == []
    for method in ("GET", "DELETE"):
        answer = cloud.raw("network", method, f"/v2.0/floatingips/{made.id}")
        assert (answer.status_code, answer.json()) == (
            404, neutron("FloatingIPNotFound", f"Floating IP {made.id} could not be found"))
    network.delete_ip(made.id, ignore_missing=True)


def test_a_second_floating_ip_on_a_port_is_409(cloud: Clients) -> None:
    one = cloud.booted()
    (port,) = cloud.sdk.network.ports(device_id=one.id)
    assert floating(cloud, port_id=port.id).status_code == 201
    answer = floating(cloud, port_id=port.id)
    error = answer.json()["NeutronError"]
    assert (answer.status_code, error["type"]) == (409, "FloatingIPPortAlreadyAssociated")
    assert re.fullmatch(
        rf"Cannot associate floating IP 127\.\S+ \(\S{{36}}\) with port {port.id} using fixed IP "
        rf"{port.fixed_ips[0]['ip_address']}, as that fixed IP already has a floating IP on external network "
        rf"{cloud.public_network}\.", error["message"]), error["message"]
    assert len(list(cloud.sdk.network.ips())) == 1


def test_a_floating_ip_is_shown_with_these_fields(cloud: Clients) -> None:
    answer = floating(cloud)
    assert (answer.status_code, set(answer.json()["floatingip"]) >= FLOATING_FIELDS) == (201, True)


def test_a_wrong_floating_ip_is_refused(cloud: Clients) -> None:
    answers = [floating(cloud, floating_network_id=NOBODY), floating(cloud, port_id=NOBODY),
               floating(cloud, floating_network_id=cloud.network),
               cloud.raw("network", "POST", "/v2.0/floatingips", json={})]
    internal = f"Bad floatingip request: Network {cloud.network} is not a valid external network."
    assert [(answer.status_code, answer.json()) for answer in answers] == [
        (404, neutron("NetworkNotFound", f"Network {NOBODY} could not be found.")),
        (404, neutron("PortNotFound", f"Port {NOBODY} could not be found.")),
        (400, neutron("BadRequest", internal)),
        (400, neutron("HTTPBadRequest", "Resource body required")),
    ]


def test_over_the_quota_of_floating_ips_is_409(cloud: Clients) -> None:
    with cloud.side.few_floating() as small:
        answer = floating(small)
        assert (answer.status_code, answer.json()) == (
            409, neutron("OverQuota", "Quota exceeded for resources: ['floatingip']."))
        with pytest.raises(openstack.exceptions.ConflictException, match="Quota exceeded"):
            small.sdk.network.create_ip(floating_network_id=small.public_network)


def test_the_details_of_neutrons_quotas_tell_limit_and_use(cloud: Clients) -> None:
    with cloud.side.few_floating(3) as small:
        small.sdk.network.create_ip(floating_network_id=small.public_network)
        path = f"/v2.0/quotas/{small.project}/details"
        assert small.raw("network", "GET", path).json()["quota"]["floatingip"] == {
            "limit": 3, "used": 1, "reserved": 0}
        assert small.raw("network", "GET", f"/v2.0/quotas/{NOBODY}/details").status_code == 403
        small.clear()


# Volumes


def create_volume(cloud: Clients, **wish: Any) -> requests.Response:
    wish = {"size": 1, "name": "one", "metadata": {"devstack-gate-pool": POOL}, **wish}
    return cloud.raw("block-storage", "POST", "/volumes", json={"volume": wish})


def volume_of_base(cloud: Clients) -> str:
    """Return the id of a new volume of the base image, from which a server can boot."""
    answer = create_volume(cloud, imageRef=cloud.base)
    return str(cloud.volume_in(answer.json()["volume"]["id"], "available")["id"])


def boot_from(cloud: Clients, volume: str) -> Any:
    root = {"boot_index": 0, "uuid": volume, "source_type": "volume", "destination_type": "volume",
            "delete_on_termination": True}
    return cloud.booted(image=None, block_device_mapping_v2=[root])


def is_cinder(answer: requests.Response, name: str, code: int, message: str) -> None:
    later = {"retryAfter": "0"} if code == 413 else {}
    assert (answer.status_code, answer.json()) == (code, {name: {"code": code, "message": message, **later}})


def test_a_volume_of_an_image_is_shown_with_its_marks(cloud: Clients) -> None:
    answer = create_volume(cloud, imageRef=cloud.base, size=2)
    made = answer.json()["volume"]
    assert (answer.status_code, made["status"]) == (202, "creating")
    shown = cloud.volume_in(made["id"], "available")
    assert set(shown) - {"volume_image_metadata"} == VOLUME_FIELDS
    assert set(made) >= {"id", "metadata", "name", "size", "status"}
    assert shown["volume_image_metadata"]["image_id"] == cloud.base
    told = {name: shown[name] for name in (
        "attachments", "availability_zone", "bootable", "metadata", "name", "size", "snapshot_id")}
    assert told == {"attachments": [], "availability_zone": "nova", "bootable": "true", "name": "one", "size": 2,
                    "metadata": {"devstack-gate-pool": POOL}, "snapshot_id": None}
    listed = cloud.raw("block-storage", "GET", "/volumes/detail").json()["volumes"]
    assert [(one["id"], one["metadata"]) for one in listed] == [(made["id"], told["metadata"])]
    zones = cloud.raw("block-storage", "GET", "/os-availability-zone").json()["availabilityZoneInfo"]
    assert zones == [{"zoneName": "nova", "zoneState": {"available": True}}]
    cloud.sdk.block_storage.delete_volume(made["id"])
    waited("its end", lambda: cloud.raw("block-storage", "GET", f"/volumes/{made['id']}").status_code == 404)


def test_a_server_that_boots_from_a_volume_takes_it_along(cloud: Clients) -> None:
    volume = volume_of_base(cloud)
    server = boot_from(cloud, volume)
    shown = cloud.show(server.id)
    assert (shown["image"], [one["id"] for one in shown["os-extended-volumes:volumes_attached"]]) == ("", [volume])
    held = cloud.volume_in(volume, "in-use")
    assert [(one["server_id"], one["volume_id"]) for one in held["attachments"]] == [(server.id, volume)]
    is_cinder(cloud.raw("block-storage", "DELETE", f"/volumes/{volume}"), "badRequest", 400, IN_USE)
    again = cloud.raw("compute", "POST", "/servers", json={"server": {
        "name": "two", "flavorRef": cloud.flavor, "networks": "auto", "block_device_mapping_v2": [
            {"boot_index": 0, "uuid": volume, "source_type": "volume", "destination_type": "volume"}]}},
        microversion="2.37")
    told = again.json()["badRequest"]["message"]
    assert re.sub("req-[-0-9a-f]{36}", "REQUEST", told) == (
        f"Invalid volume: Invalid input received: Invalid volume: Volume {volume} status must be available or "
        "downloading to reserve, but the current status is in-use. (HTTP 400) (Request-ID: REQUEST)")
    cloud.nova.servers.delete(server.id)
    waited("its end", lambda: cloud.is_gone(server.id))
    waited("the end of its volume", lambda: not cloud.raw("block-storage", "GET", "/volumes").json()["volumes"])


def test_what_a_volume_cannot_be_made_of_is_told(cloud: Clients) -> None:
    large = cloud.sdk.image.create_image("large", data=EMPTY_TAR, disk_format="raw", container_format="bare", wait=True,
                                         min_disk=5)
    answer = create_volume(cloud, imageRef=large.id)
    is_cinder(answer, "badRequest", 400, "Invalid input received: Volume size 1GB cannot be smaller than the image "
                                         "minDisk size 5GB.")
    answer = create_volume(cloud, imageRef=NOBODY)
    is_cinder(answer, "badRequest", 400, "Invalid image identifier or unable to access requested image.")
    answer = create_volume(cloud, availability_zone="nowhere")
    is_cinder(answer, "badRequest", 400, "Availability zone 'nowhere' is invalid.")
    answer = create_volume(cloud, snapshot_id=NOBODY)
    is_cinder(answer, "itemNotFound", 404, f"Snapshot {NOBODY} could not be found.")
    for method in ("GET", "DELETE"):
        answer = cloud.raw("block-storage", method, f"/volumes/{NOBODY}")
        is_cinder(answer, "itemNotFound", 404, f"Volume {NOBODY} could not be found.")
    assert cloud.raw("block-storage", "GET", "/volumes").json() == {"volumes": []}


def test_quotas_of_volumes_are_told_and_refused_with_413(cloud: Clients) -> None:
    with cloud.side.few_volumes(1, 5) as small:
        volume_of_base(small)
        absolute = small.raw("block-storage", "GET", "/limits").json()["limits"]["absolute"]
        assert {name: absolute[name] for name in (
            "maxTotalVolumes", "totalVolumesUsed", "maxTotalVolumeGigabytes", "totalGigabytesUsed")} == {
            "maxTotalVolumes": 1, "totalVolumesUsed": 1, "maxTotalVolumeGigabytes": 5, "totalGigabytesUsed": 1}
        is_cinder(create_volume(small), "overLimit", 413, "VolumeLimitExceeded: Maximum number of volumes allowed (1) "
                                                          "exceeded for quota 'volumes'.")
        small.clear()
    with cloud.side.few_volumes(9, 5) as small:
        is_cinder(create_volume(small, size=6), "overLimit", 413,
                  "VolumeSizeExceedsAvailableQuota: Requested volume or snapshot exceeds allowed gigabytes quota. "
                  "Requested 6G, quota is 5G and 0G has been consumed.")


def test_a_snapshot_of_a_server_on_a_volume_is_one_of_its_volume(cloud: Clients) -> None:
    volume = volume_of_base(cloud)
    server = boot_from(cloud, volume)
    image_id = cloud.nova.servers.create_image(server.id, "snap", {"devstack-gate-pool": POOL})
    waited("an active image", lambda: cloud.sdk.image.get_image(image_id).status == "active")
    (device,) = json.loads(cloud.sdk.image.get_image(image_id).properties["block_device_mapping"])
    (snapshot,) = cloud.raw("block-storage", "GET", "/snapshots/detail").json()["snapshots"]
    assert (device["snapshot_id"], device["source_type"], device["boot_index"]) == (snapshot["id"], "snapshot", 0)
    assert (snapshot["name"], snapshot["volume_id"], snapshot["size"]) == ("snapshot for snap", volume, 1)
    cloud.nova.servers.delete(server.id)
    waited("its end", lambda: cloud.is_gone(server.id))
    assert cloud.volume_in(volume, "available")["attachments"] == []  # a volume with a snapshot stays
    is_cinder(cloud.raw("block-storage", "DELETE", f"/volumes/{volume}"), "badRequest", 400, IN_USE)
    made = create_volume(cloud, snapshot_id=snapshot["id"]).json()["volume"]["id"]
    assert cloud.volume_in(made, "available")["bootable"] == "true"
    cloud.sdk.block_storage.delete_snapshot(snapshot["id"])
    waited("its end", lambda: not cloud.raw("block-storage", "GET", "/snapshots").json()["snapshots"])


# Delete


def test_a_deleted_server_is_seen_until_it_is_gone(cloud: Clients) -> None:
    one = cloud.booted("one", **cloud.side.slow_delete(4))
    assert cloud.raw("compute", "DELETE", f"/servers/{one.id}").status_code == 204
    shown = cloud.show(one.id)
    assert (shown["status"], shown["OS-EXT-STS:task_state"], shown["OS-EXT-STS:vm_state"]) == (
        "ACTIVE", "deleting", "active")
    assert (cloud.listed(), set(shown)) == (["one"], SERVER_FIELDS)
    assert cloud.raw("compute", "DELETE", f"/servers/{one.id}").status_code == 204
    actions: dict[str, dict[str, Any]] = {"createImage": {"createImage": {"name": "x"}}, "stop": {"os-stop": None},
                                          "reboot": {"reboot": {"type": "HARD"}}}
    for name, action in actions.items():
        conflicts(cloud.act(one.id, action),
                  f"Cannot '{name}' instance {one.id} while it is in task_state deleting")
    waited("404", lambda: cloud.is_gone(one.id))
    message = f"Instance {one.id} could not be found."
    for method in ("GET", "DELETE"):
        missing(cloud.raw("compute", method, f"/servers/{one.id}"), message)
    missing(cloud.act(one.id, {"os-getConsoleOutput": {}}), message)
    with pytest.raises(novaclient.exceptions.NotFound):
        cloud.nova.servers.delete(one.id)
    assert (cloud.listed(), list(cloud.sdk.network.ports(device_id=one.id))) == ([], [])


def test_a_delete_during_the_boot_waits_for_its_end(cloud: Clients) -> None:
    one = cloud.boot(**cloud.side.slow_boot(4))
    waited("spawning", lambda: cloud.show(one.id)["OS-EXT-STS:task_state"] == "spawning")
    one.delete()
    shown = cloud.show(one.id)
    assert (shown["status"], shown["OS-EXT-STS:task_state"], shown["OS-EXT-STS:vm_state"]) == (
        "BUILD", "deleting", "building")
    waited("404", lambda: cloud.is_gone(one.id))
    assert list(cloud.sdk.network.ports(device_id=one.id)) == []


# What providers put in front of Nova


@pytest.mark.parametrize("status", [429, 413])
def test_a_rate_limit_of_pocketcloud_alone_says_retry_after(cloud: Clients, status: int) -> None:
    """Stock Nova sends neither 429 nor Retry-After; what providers put before it does. No real service to test here."""
    assert isinstance(cloud.side, PocketSide)
    cloud.flavor  # noqa: B018  (asked for before calls are limited)
    cloud.side.knobs(rate_limit=0.1, rate_limit_status=status)
    answers = [cloud.raw("compute", "GET", "/servers") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, status]
    assert list(answers[1].json()) == ["overLimit"]
    assert 1 <= int(answers[1].headers["Retry-After"]) <= 10
    kind = novaclient.exceptions.RateLimit if status == 429 else novaclient.exceptions.OverLimit
    with pytest.raises(kind) as caught:
        cloud.nova.client.get("/servers")
    assert 1 <= caught.value.retry_after <= 10


# cloud/nova.py itself


@pytest.fixture
def provider(cloud: Clients, monkeypatch: pytest.MonkeyPatch) -> Callable[..., nova.Cloud]:
    """Return a function that makes a provider of the cloud; keys are columns of the table provider, lists are lists."""
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(cloud.clouds_yaml))

    def make(**columns: Any) -> nova.Cloud:
        values = {"name": "one", "cloud": cloud.name, "boot_timeout": 30, "floating_ips": "never",
                  "address": "public-v4", "networks": [], "security_groups": [], **columns}
        return nova.Cloud(Provider(**{key: json.dumps(value) if isinstance(value, list) else value
                                           for key, value in values.items()}), POOL)

    return make


MakeCloud = Callable[..., nova.Cloud]


def test_novacloud_takes_a_machine_through_its_life(cloud: Clients, provider: MakeCloud) -> None:
    ours = provider(floating_ips="always", networks=["private"], security_groups=["default"])
    assert ours.find_base_image(cloud.base_name) == ours.find_base_image(cloud.base) == cloud.base
    recipe = Recipe(cloud.base, cloud.flavor, "#!/bin/sh\necho ran\n")
    server_id = ours.create_server("devstack-noble-one-7", recipe, {nova.MACHINE_KEY: "7"}, zone="nova")
    cloud.in_status(server_id, "ACTIVE")
    server = ours.get_server(server_id)
    assert [(one.id, one.machine_id, one.name) for one in ours.list_servers()] == [
        (server_id, 7, "devstack-noble-one-7")]
    assert abs(server.created - time.time()) < 60
    waited("its console", lambda: ours.console_log(server_id))
    address = ours.network.reachable_address(server)
    assert ours.network.reachable_address(server) == address
    assert [ip.server_id for ip in ours.network.list_ours()] == [server_id]
    waited("its floating IP", lambda: ours.network.reachable_address(ours.get_server(server_id)) == address)
    for ip in ours.network.list_ours():
        ours.network.release(ip)
        ours.network.release(ip)
    assert (ours.delete_server(server_id), ours.network.list_ours()) == (True, [])
    waited("its end", lambda: cloud.is_gone(server_id))
    assert (ours.delete_server(server_id), ours.list_servers()) == (False, [])
    with pytest.raises(nova.GoneError):
        ours.get_server(server_id)


def test_novacloud_makes_finds_and_deletes_a_template(cloud: Clients, provider: MakeCloud) -> None:
    ours, name = provider(), "devstack-noble-1795000000.template.openstack.org"
    ours.create_keypair(ours.keypair_name(3), KEY)
    ours.create_keypair(ours.keypair_name(3), KEY)
    server_id = ours.create_server(name, Recipe(cloud.base, cloud.flavor), {nova.SNAPSHOT_KEY: "3"},
                                   key_name=ours.keypair_name(3))
    cloud.in_status(server_id, "ACTIVE")
    image_id = ours.create_image(server_id, name, 3)
    waited("an active image", lambda: ours.image_status(image_id) == "active")
    assert [(one.id, one.name, one.status, one.snapshot_id) for one in ours.list_snapshots()] == [
        (image_id, name, "active", 3)]
    assert ours.list_keypairs() == {ours.keypair_name(3): 3}
    for _ in range(2):
        ours.delete_keypair(ours.keypair_name(3))
        ours.delete_image(image_id, name)
    assert (ours.list_keypairs(), ours.list_snapshots()) == ({}, [])
    with pytest.raises(nova.GoneError):
        ours.image_status(image_id)


def test_novacloud_boots_from_a_volume_and_deletes_what_has_no_server(cloud: Clients, provider: MakeCloud) -> None:
    ours = provider(networks=["private"])
    source = nova.Source(cloud.base)
    recipe = Recipe(cloud.base, cloud.flavor, gigabytes=1, source=source)
    server_id = ours.make_server("devstack-noble-one-7", recipe, {nova.MACHINE_KEY: "7"}, zone="nova")
    cloud.in_status(server_id, "ACTIVE")
    left = ours.volumes.make("devstack-noble-one-8", 1, source, ours.marks({nova.MACHINE_KEY: "8"}), 30)
    found = {volume.machine_id: volume for volume in ours.list_volumes()}
    assert (found[7].servers, found[7].unattached) == ((server_id,), False)
    assert (found[8].id, found[8].unattached) == (left, True)
    with pytest.raises(nova.RefusedError, match="must not be migrating, attached"):
        ours.volumes.delete(found[7].id)
    ours.volumes.delete(left)
    waited("its end", lambda: left not in [volume.id for volume in ours.list_volumes()])
    ours.volumes.delete(left)
    assert ours.delete_server(server_id)
    waited("the end of both", lambda: not ours.list_volumes())


def test_novacloud_tells_what_went_wrong(cloud: Clients, provider: MakeCloud) -> None:
    ours = provider()
    metadata = {nova.MACHINE_KEY: "1"}
    with pytest.raises(nova.RefusedError, match="Can not find requested image"):
        ours.create_server("x", Recipe(NOBODY, cloud.flavor), metadata)
    with pytest.raises(nova.RefusedError, match=f"Flavor {NOBODY} could not be found"):
        ours.create_server("x", Recipe(cloud.base, NOBODY), metadata)
    with pytest.raises(nova.RefusedError, match="availability zone is not available"):
        ours.create_server("x", Recipe(cloud.base, cloud.flavor), metadata, zone="nowhere")
    with pytest.raises(nova.GoneError):
        ours.image_status(NOBODY)
    with pytest.raises(nova.GoneError):
        ours.console_log(NOBODY)
    with pytest.raises(nova.CloudConfigError, match="no active image 'no such image'"):
        ours.find_base_image("no such image")
    with pytest.raises(nova.CloudConfigError, match="there is no network none"):
        provider(networks=["none"]).network.attached()
    with pytest.raises(nova.CloudConfigError, match="no external network none"):
        provider(floating_ip_network="none").network.external()
    with pytest.raises(nova.CloudConfigError, match="Nowhere"):
        provider(region="Nowhere")
    with cloud.side.second_network(), pytest.raises(nova.RefusedError, match="Multiple possible networks"):
        ours.create_server("x", Recipe(cloud.base, cloud.flavor), metadata)
    assert ours.list_servers() == []


def test_novacloud_takes_full_quotas_for_a_lack_of_room(cloud: Clients, provider: MakeCloud) -> None:
    with cloud.side.small(1) as small:
        ours = provider(cloud=small.name, floating_ips="always")
        server_id = ours.create_server("x", Recipe(small.base, small.flavor), {})
        small.in_status(server_id, "ACTIVE")
        with pytest.raises(nova.CapacityError, match="Quota exceeded for instances"):
            ours.create_server("y", Recipe(small.base, small.flavor), {})
        with cloud.side.few_floating(), pytest.raises(nova.CapacityError, match="Quota exceeded"):
            ours.network.reachable_address(ours.get_server(server_id))


def test_novacloud_tells_what_is_left_of_the_quotas(cloud: Clients, provider: MakeCloud) -> None:
    with cloud.side.small(4, cores=8) as small, cloud.side.few_floating(3):
        ours = provider(cloud=small.name, floating_ips="always")
        recipe = ours.recipe(BaseImage(min_ram=512), small.base)
        assert ours.takes(recipe) == {"instances": 1, "cores": 1, "RAM": 512, "floating IPs": 1}
        small.booted("somebody's")
        ours.network.reserve(7)
        small.sdk.network.create_ip(floating_network_id=small.public_network)  # it is free, so it counts as left
        assert ours.left([recipe]) == {"instances": 3, "cores": 7, "floating IPs": 2}
        small.clear()


def test_novacloud_sees_the_fault_of_a_failed_build(cloud: Clients, provider: MakeCloud) -> None:
    ours = provider()
    failing = cloud.side.failing_boot("no-host").get("meta", {})
    server_id = ours.create_server("x", Recipe(cloud.base, cloud.flavor), failing)
    cloud.in_status(server_id, "ERROR")
    server = ours.get_server(server_id)
    assert server.fault.startswith("No valid host was found.")
    assert (server.addresses, ours.network.reachable_address(server)) == ({}, None)
    assert nova.CAPACITY_FAULTS.search(server.fault)


def test_novacloud_goes_on_after_its_token_was_revoked(cloud: Clients, provider: MakeCloud) -> None:
    ours = provider()
    for call in (ours.list_servers, ours.list_snapshots, ours.network.list_ours):
        revoke(ours.connection.session, cloud)
        assert call() == []
