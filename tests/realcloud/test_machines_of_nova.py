"""A real Nova's servers are machines: boot, ssh, apt, snapshot, boot from the snapshot, delete."""

import base64
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import openstack.exceptions
import pytest

from tests.realcloud.client import RealCloud
from tests.realcloud.configuration import ADMIN, MEMBER, SMALL
from tests.realcloud.processes import family, listening
from tests.support.contract import waited
from tests.support.pool import SSH_TO_STRANGERS, client, make_key


@dataclass
class User:
    """A user with a project and a key for its servers."""

    real: RealCloud
    key: Path
    cloud: str = MEMBER

    @property
    def api(self) -> Any:
        return client(self.real.clouds_yaml, self.cloud)

    def create(self, name: str, image: str = "Debian 12", **more: Any) -> Any:
        """Request a server."""
        networks = [{"uuid": self.api.network.find_network("private").id}]
        return self.api.compute.create_server(name=name, image_id=self.api.image.find_image(image).id, flavor_id="1",
                                              networks=networks, key_name="key", **more)

    def boot(self, name: str, image: str = "Debian 12", **more: Any) -> Any:
        """Request a server and wait until it is ACTIVE."""
        return self.in_status(self.create(name, image, **more), "ACTIVE")

    def in_status(self, server: Any, status: str) -> Any:
        """Wait until a server has a status and no task, and return it."""

        def look() -> Any:
            got = self.api.compute.get_server(server.id)
            assert got.status in (status, "BUILD", "REBOOT", "ACTIVE"), got.fault
            return got if got.status == status and got.task_state is None else None

        return waited(status, look)

    def snapshot(self, server: Any, name: str) -> tuple[Any, list[str]]:
        """Make an image of a server; returns it with the statuses that it was seen in."""
        self.api.compute.create_server_image(server, name)
        seen: list[str] = []

        def active() -> Any:
            image = self.api.image.find_image(name)
            if image.status not in seen:
                seen.append(image.status)
            return image.status == "active" and image

        return waited("an active image", active), seen

    def ssh(self, address: str, command: str) -> tuple[int, str]:
        """Run a command as debian."""
        words = ["ssh", "-i", str(self.key), "-F", "none", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
                 *SSH_TO_STRANGERS, f"debian@{address}", command]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90, check=False)
        return done.returncode, done.stdout + done.stderr

    def delete(self, server: Any) -> None:
        """Delete a server and wait until it is gone."""
        self.api.compute.delete_server(server)
        waited("404", lambda: not self.api.compute.find_server(server.id))

    def clear(self) -> None:
        """Reset the knobs, and delete the project's servers, images and floating IPs."""
        self.real.knobs()
        for server in self.api.compute.servers():
            self.delete(server)
        for image in self.api.image.images(visibility="private"):
            self.api.image.delete_image(image)
        for floating in self.api.network.ips():
            self.api.network.delete_ip(floating)


def fixed(server: Any) -> str:
    return str(server.addresses["private"][0]["addr"])


def refuses(user: User, address: str) -> Callable[[], bool]:
    return lambda: "Connection refused" in user.ssh(address, "true")[1]


@pytest.fixture(scope="module")
def users(real: RealCloud, tmp_path_factory: pytest.TempPathFactory) -> dict[str, User]:
    key = make_key(tmp_path_factory.mktemp("key"))
    found = {cloud: User(real, key, cloud) for cloud in (MEMBER, SMALL, ADMIN)}
    for user in found.values():
        user.api.compute.create_keypair(name="key", public_key=key.with_suffix(".pub").read_text())
    return found


@pytest.fixture
def user(users: dict[str, User]) -> Iterator[User]:
    yield users[MEMBER]
    users[MEMBER].clear()


def test_what_is_done_on_a_server_is_in_its_snapshot_and_on_those_that_boot_from_it(user: User) -> None:
    first = user.boot("First One")
    steps = ["hostname", "sudo apt-get -qq update", "sudo apt-get -qq install hello > /dev/null 2>&1", "hello",
             "sudo rm -r /usr/share/doc/sudo", "sudo ln /usr/bin/hello /opt/linked"]
    assert user.ssh(fixed(first), " && ".join(steps)) == (0, "first-one\nHello, world!\n")

    image, seen = user.snapshot(first, "with-hello")
    user.delete(first)
    second = user.boot("second", image.name)

    look = "hostname; hello; stat -c %h /opt/linked; ls /usr/share/doc/sudo 2> /dev/null; sudo touch /opt/second"
    assert user.ssh(fixed(second), look) == (0, "second\nHello, world!\n2\n")
    assert seen == [status for status in ("queued", "saving", "active") if status in seen]
    user.snapshot(second, "deeper")
    user.api.image.delete_image(image)
    third = user.boot("third", "deeper")
    assert user.ssh(fixed(third), "ls /opt; hello") == (0, "linked\nsecond\nHello, world!\n")


def test_a_deleted_server_leaves_nothing(user: User) -> None:
    server = user.boot("goes")
    folder = user.real.root / "state/machines" / server.id
    assert folder.is_dir()
    assert user.ssh(fixed(server), "nohup sleep 1000 > /dev/null 2>&1 &")[0] == 0
    before = family(user.real.process.pid)

    user.delete(server)

    assert not folder.exists()
    waited("a closed port", refuses(user, fixed(server)))
    ended = before - family(user.real.process.pid)
    assert len(ended) >= 4, "setpriv or unshare, init, sshd, sleep"


def test_user_data_runs_once_and_the_console_shows_it(user: User) -> None:
    script = base64.b64encode(b"#!/bin/sh\necho ran >> /root/ran; echo loud\n").decode()
    server = user.boot("data", user_data=script)
    waited("the end of user data",
               lambda: "loud" in user.api.compute.get_server_console_output(server)["output"])

    user.api.compute.reboot_server(server, "SOFT")
    user.in_status(server, "ACTIVE")

    waited("ssh", lambda: user.ssh(fixed(server), "sudo cat /root/ran") == (0, "ran\n"))


def test_a_floating_ip_leads_to_its_server_as_long_as_it_is_bound(user: User) -> None:
    server, network = user.boot("floats"), user.api.network
    port = next(network.ports(device_id=server.id))
    floating = network.create_ip(floating_network_id=network.find_network("public").id, port_id=port.id)
    address = floating.floating_ip_address

    waited("ssh", lambda: user.ssh(address, "hostname") == (0, "floats\n"))
    shown = {"fixed": fixed(server), "floating": address}
    waited("both addresses", lambda: {
        one["OS-EXT-IPS:type"]: one["addr"] for one in user.api.compute.get_server(server.id).addresses["private"]
    } == shown)

    network.update_ip(floating, port_id=None)
    waited("a closed port", refuses(user, address))
    assert user.ssh(fixed(server), "true") == (0, "")


def test_everything_listens_on_loopback_only(user: User) -> None:
    server, network = user.boot("listens"), user.api.network
    port = next(network.ports(device_id=server.id))
    floating = network.create_ip(floating_network_id=network.find_network("public").id, port_id=port.id)
    waited("ssh", lambda: user.ssh(floating.floating_ip_address, "true")[0] == 0)

    found = listening(family(user.real.process.pid))

    machines = [(address, port) for address, port in found if address != "127.0.0.1"]
    assert machines == sorted((address, 22) for address in (fixed(server), floating.floating_ip_address))
    assert len(found) - len(machines) == 6, f"the six services: {found}"


def test_the_small_project_has_room_for_two(users: dict[str, User]) -> None:
    user = users[SMALL]
    try:
        for number in range(2):
            user.boot(f"small-{number}")
        with pytest.raises(openstack.exceptions.ForbiddenException, match="Quota exceeded for instances"):
            user.boot("one-too-many")
    finally:
        user.clear()


@pytest.mark.parametrize(("failure", "fault"), [
    ("no-host", "No valid host was found. There are not enough hosts available."),
    ("abort", "Build of instance {id} aborted: as told"),
    ("retry", "Exceeded maximum number of retries. Exhausted all hosts available for retrying build failures for "
              "instance {id}."),
])
def test_boots_fail_as_told_for_all_and_for_one(user: User, failure: str, fault: str) -> None:
    def failed(server: Any) -> Any:
        got = user.api.compute.get_server(server.id)
        return got if got.status == "ERROR" else None

    def has_no_port(server: Any) -> bool:  # Nova can still show its addresses from a cache
        return not list(user.api.network.ports(device_id=server.id))

    user.real.knobs(boot_failure=failure)
    of_all = user.create("all")
    waited("ERROR", partial(failed, of_all))
    user.real.knobs()
    of_one = user.create("one", metadata={"real.boot_failure": failure})
    other = user.boot("other")

    for server in (of_all, of_one):
        assert waited("ERROR", partial(failed, server)).fault["message"] == fault.format(id=server.id)
        waited("its addresses to be given back", partial(has_no_port, server))
    assert user.ssh(fixed(other), "hostname") == (0, "other\n")


def test_an_image_that_is_no_machines_does_not_boot(user: User) -> None:
    user.api.image.create_image("strange", data=b"not a machine's", disk_format="raw", container_format="bare")

    server = user.create("strange", "strange")

    waited("ERROR", lambda: user.api.compute.find_server(server.id, ignore_missing=False).status == "ERROR")
