#!/usr/bin/env python3
"""Build and snapshot the image from which a provider's machines boot.

Run by the job devstack-update-vm-image every day, once for each provider (or `all`). Boots the provider's base image
with a temporary key, makes the node account with sudo and the configured public key, installs packages, runs the custom
script, snapshots the machine, and proves the snapshot: a machine booted from it must pass the ssh test. Until then the
previous one stays in use; old ones are left to devstack-vm-reap. Changes: a template server, a keypair and an image at
the provider, rows in vm.db.

Exit codes: 0 done, 1 an image could not be built (nothing of it is left but its row), 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko

import gateconfig
import nodessh
import novacloud
import vmdatabase
from gateconfig import ConfigError, GateError, SecureConfig, get_log
from vmdatabase import BUILDING, ERROR, READY, BaseImage, Provider, SnapshotImage

FIRST_LOGINS = ("root", "ubuntu", "debian")  # tried when the providers file names no username
LOCK_SECONDS = 10  # reap holds the same lock for a moment
POLL_SECONDS = 1
STEP_SECONDS = 1800  # for a step that installs packages or runs the custom script
SNAPSHOT_SECONDS = 3600
GONE_SECONDS = 60
FAILED_IMAGE = ("killed", "error", "deleted", "pending_delete", "deactivated")

# No prompt can stop these: apt keeps configuration files as they are and waits for whoever holds its lock.
INSTALL = """set -eu
if command -v apt-get >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive NEEDRESTART_MODE=a
    set -- -y -q -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold -o Acquire::Retries=3 install "$@"
    apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 update
    apt-get "$@"
elif command -v dnf >/dev/null; then
    dnf -y install "$@"
else
    echo "neither apt-get nor dnf is here" >&2
    exit 1
fi
"""
ACCOUNT = """set -eu
user=$1 key=$2 home=$3
id -u "$user" >/dev/null 2>&1 || useradd -m -d "$home" -s /bin/bash "$user"
home=$(getent passwd "$user" | cut -d: -f6)
install -d -m 700 -o "$user" -g "$(id -gn "$user")" "$home/.ssh"
printf '%s\\n' "$key" > "$home/.ssh/authorized_keys"
chown "$user" "$home/.ssh/authorized_keys"
chmod 600 "$home/.ssh/authorized_keys"
if [ "$user" != root ]; then
    printf '%s ALL=(ALL) NOPASSWD:ALL\\n' "$user" > /etc/sudoers.d/devstack-gate
    chmod 440 /etc/sudoers.d/devstack-gate
fi
"""
# Each machine makes host keys of its own at its first boot (cloud-init does); the build's key opens none of them.
FORGET = """set -eu
for file in /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys; do
    if [ -f "$file" ]; then sed -i "\\\\|$1|d" "$file"; fi
done
if command -v cloud-init >/dev/null; then cloud-init clean --logs; fi
rm -f /etc/ssh/ssh_host_*
sync
"""


class Build:
    """The making of one snapshot; ConfigError, before there is a row, for what the provider does not have."""

    def __init__(self, cloud: novacloud.Cloud, image: BaseImage, config: SecureConfig, script: str | None) -> None:
        self.cloud = cloud
        self.provider: Provider = image.provider
        self.image = image
        self.config = config
        self.script = script
        self.log = get_log(provider=self.provider.name, image=image.name)
        version = vmdatabase.now()
        self.base_id = cloud.find_base_image(image.external_id)
        self.flavor_id = cloud.flavor_id(image)
        self.user_data = novacloud.read_user_data(image)
        cloud.network_ids()
        self.row = SnapshotImage.create(
            base_image=image, version=version, state=BUILDING, state_time=version,
            name=f"{gateconfig.name_prefix()}devstack-{image.name}-{version}{novacloud.TEMPLATE_SUFFIX}")
        self.key = paramiko.ECDSAKey.generate()

    def run(self) -> None:
        """Build the snapshot, READY in the end; on any failure the row is ERROR and the rest is gone."""
        keypair = self.cloud.keypair_name(self.row.id)
        try:
            self.wait_for_room()
            self.cloud.create_keypair(keypair, f"{self.key.get_name()} {self.key.get_base64()}")
            with self.server("template", self.base_id, keypair) as (server_id, address):
                self.prepare(self.first_login(address))
                image_id = self.snapshot(server_id)
            self.see_gone(server_id)
            with self.server("test machine", image_id, None) as (_, address):
                self.prove(address)
            vmdatabase.move(self.row, BUILDING, READY)
            self.log.info("BUILDING -> READY: %s %s", self.row.name, image_id)
        except BaseException as err:
            vmdatabase.move(self.row, BUILDING, ERROR, error=str(err) or type(err).__name__)
            self.log.info("BUILDING -> ERROR: %s", self.row.name)
            raise
        finally:
            self.clean_up(lambda: self.cloud.delete_keypair(keypair))

    @contextmanager
    def server(self, what: str, image_id: str, keypair: str | None) -> Iterator[tuple[str, str]]:
        """Boot a server for the build, yield its id and address, and see that it does not outlive its use."""
        try:
            with gateconfig.phase(self.log, f"boot {what}"):
                server_id = self.cloud.create_server(
                    self.row.name, image_id, self.flavor_id, {novacloud.SNAPSHOT_KEY: str(self.row.id)},
                    key_name=keypair, user_data=self.user_data)
                vmdatabase.set_columns(self.row, server_external_id=server_id)
                address = self.reach(server_id)
            yield server_id, address
        finally:
            self.clean_up(self.delete_server)

    def clean_up(self, step: Callable[[], None]) -> None:
        """Do a step of tidying up; what cannot be tidied now is left to reap."""
        try:
            step()
        except GateError as err:
            self.log.warning("%s; left to devstack-vm-reap", err)

    def delete_server(self) -> None:
        """Delete the server of this build and its floating IP."""
        server_id = self.row.server_external_id
        if server_id:
            self.cloud.delete_server(server_id)
            for ip in self.cloud.list_floating_ips():
                if ip.server_id == server_id:
                    self.cloud.delete_floating_ip(ip.id)

    def wait_for_room(self) -> None:
        """Return when the provider has room for the template; launch leaves it free once our row is there."""
        deadline = time.monotonic() + self.provider.boot_timeout
        while vmdatabase.count_rows(self.provider) > self.provider.max_servers:
            if time.monotonic() > deadline:
                raise GateError(f"provider {self.provider.name}: no room for a template server within max-servers "
                                f"({self.provider.max_servers}) after {self.provider.boot_timeout} s")
            time.sleep(POLL_SECONDS)

    def see_gone(self, server_id: str) -> None:
        """Return when a deleted server is gone, or after a while: the next one may need its room."""
        deadline = time.monotonic() + GONE_SECONDS
        try:
            while time.monotonic() < deadline:
                self.cloud.get_server(server_id)
                time.sleep(POLL_SECONDS)
        except novacloud.CloudError:
            return

    def reach(self, server_id: str) -> str:
        """Return the address of a server once it is active and has one."""
        deadline = time.monotonic() + self.provider.boot_timeout
        last = "nothing yet"
        while time.monotonic() < deadline:
            try:
                server = self.cloud.get_server(server_id)
                last = f"status {server.status}"
                if server.status == novacloud.SERVER_ERROR:
                    raise GateError(f"the server went to ERROR: {server.fault or 'without a fault text'}")
                address = self.cloud.reachable_address(server) if server.status == novacloud.ACTIVE else None
                if address:
                    return address
            except novacloud.GoneError:
                raise
            except novacloud.CloudError as err:
                last = str(err)
            time.sleep(POLL_SECONDS)
        raise GateError(f"the server has no address after {self.provider.boot_timeout} s; last seen: {last}")

    def first_login(self, address: str) -> nodessh.Login:
        """Return the login that the base image lets in and lets run commands."""
        users = (self.image.username,) if self.image.username else FIRST_LOGINS
        logins = [nodessh.Login(address, self.provider.ssh_port, user, self.key) for user in users]
        with gateconfig.phase(self.log, "first login"):
            return nodessh.wait_for_session(logins, time.monotonic() + self.provider.boot_timeout, is_shell)

    def prepare(self, login: nodessh.Login) -> None:
        """Run the steps that make the machine what its snapshot is to be."""
        node = self.config.node
        public_key = gateconfig.require_ssh_key(self.config)
        with nodessh.session(login) as session:
            steps: list[tuple[str, list[str]]] = [
                ("install packages", ["sh", "-c", INSTALL, "sh", "sudo", *self.config.image_packages]),
                ("make account", ["sh", "-c", ACCOUNT, "sh", node.user, public_key, node.remote_fs]),
            ]
            if self.script is not None:
                session.put("copy custom script", "/root/devstack-gate-custom-script", self.script, "0755")
                steps.append(("run custom script", ["/root/devstack-gate-custom-script"]))
            steps.append(("forget this machine", ["sh", "-c", FORGET, "sh", self.key.get_base64()]))
            for name, words in steps:
                with gateconfig.phase(self.log, name):
                    self.log.debug("%s", session.run(name, session.as_root(words), STEP_SECONDS))

    def prove(self, address: str) -> None:
        """Log in to a machine booted from the snapshot as the builds will, and see that sudo works there."""
        node = self.config.node
        login = nodessh.Login(address, self.provider.ssh_port, node.user, node.ssh_key)
        with gateconfig.phase(self.log, "ssh test"):
            nodessh.wait_for_session(
                [login], time.monotonic() + self.provider.boot_timeout,
                lambda session: session.attempt("ssh test", session.as_root(["true"])).status == 0)

    def snapshot(self, server_id: str) -> str:
        """Snapshot the template server and return the image's id once it is active."""
        with gateconfig.phase(self.log, "snapshot"):
            image_id = self.cloud.create_image(server_id, self.row.name, self.row.id)
            vmdatabase.set_columns(self.row, external_id=image_id)
            deadline = time.monotonic() + SNAPSHOT_SECONDS
            last = "nothing yet"
            while time.monotonic() < deadline:
                try:
                    last = self.cloud.image_status(image_id)
                except novacloud.GoneError:
                    raise
                except novacloud.CloudError as err:
                    last = str(err)
                if last == "active":
                    return image_id
                if last in FAILED_IMAGE:
                    raise GateError(f"the snapshot became {last}")
                time.sleep(POLL_SECONDS)
            raise GateError(f"the snapshot is not active after {SNAPSHOT_SECONDS} s; last: {last}")


def is_shell(session: nodessh.Session) -> bool:
    """Whether the login is this user's own shell: cloud images let root in only to say who else to log in as."""
    outcome = session.attempt("first login", ["id", "-un"], seconds=5)
    return outcome.status == 0 and outcome.output.strip() == session.login.user


def main(argv: list[str] | None = None) -> int:
    """Build the images of one provider, or of each."""
    options = _parse(argv)
    gateconfig.setup_logging(options.verbosity)
    return vmdatabase.run_for_provider(options.provider, argv, lambda provider: _update(provider, options))


def _update(provider: Provider, options: argparse.Namespace) -> int:
    config = gateconfig.load_secure_config()
    public_key = gateconfig.require_ssh_key(config)
    nodessh.check_key_pair(config.node.ssh_key, public_key)
    gateconfig.name_prefix()
    script = _read_script(options.script)
    images = [image for image in vmdatabase.images_of(provider) if image.active]
    if options.image:
        known = [image.name for image in images]
        images = [image for image in images if image.name == options.image]
        if not images:
            raise ConfigError(f"--image: provider {provider.name} has no image {options.image}"
                              f"{gateconfig.nearest(options.image, known)}")
    return vmdatabase.run_alone(
        "update-image", provider, lambda: _build_all(provider, images, config, script), LOCK_SECONDS)


def _build_all(provider: Provider, images: list[BaseImage], config: SecureConfig, script: str | None) -> int:
    """Build the images one after the other and return one exit code for all."""
    cloud = novacloud.Cloud(provider, vmdatabase.pool_uuid())
    codes = {_build(cloud, image, config, script) for image in images}
    if len(codes) > 1:
        return gateconfig.EXIT_FAILED
    return codes.pop() if codes else gateconfig.EXIT_OK


def _build(cloud: novacloud.Cloud, image: BaseImage, config: SecureConfig, script: str | None) -> int:
    """Build one image and return an exit code; one that fails stops no other."""
    log = get_log(provider=cloud.provider.name, image=image.name)
    try:
        build = Build(cloud, image, config, script)
    except GateError as err:
        log.error("no new snapshot: %s", err)
        return err.exit_code
    try:
        gateconfig.guarded(build.run)
    except GateError as err:
        log.error("no new snapshot: %s", err)
        return gateconfig.EXIT_FAILED
    print(f"{cloud.provider.name} {image.name}: {build.row.name}")
    return gateconfig.EXIT_OK


def _read_script(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError(f"--script or DEVSTACK_GATE_CUSTOM_SCRIPT: {path} cannot be read") from err


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateconfig.make_parser(__doc__)
    parser.add_argument("provider", metavar="PROVIDER", help="a provider of vm.db, or all")
    parser.add_argument("--image", metavar="NAME", help="this image type only (default: all of the provider)")
    custom = os.environ.get("DEVSTACK_GATE_CUSTOM_SCRIPT")
    parser.add_argument("--script", metavar="FILE", type=Path, default=Path(custom) if custom else None,
                        help="run this on the template, last ($DEVSTACK_GATE_CUSTOM_SCRIPT)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateconfig.run(main)
