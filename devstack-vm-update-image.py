#!/usr/bin/env python3
"""Build and snapshot the images from which a provider's machines boot.

Run by the job devstack-update-vm-image every day, once for each provider (or `all`), by way of
devstack-vm-update-image.sh, which checks devstack out. Boots the provider's base image with a temporary key, upgrades
it, installs packages, makes the node account, fills caches with what each branch of devstack wants (packages, pip
packages, test images, git repositories), runs the custom script, clears what is the machine's own, snapshots it, and
proves the snapshot: a machine booted from it must pass the ssh test. Until then the previous one stays in use; old ones
are left to devstack-vm-reap. The images of a provider are built side by side. Changes: a template server, a keypair and
an image at the provider, rows in vm.db.

Without a devstack checkout ($WORKSPACE/devstack, or --devstack) nothing is cached; all else is done.

Exit codes: 0 done, 1 an image could not be built (nothing of it is left but its row), 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateconfig
import gateprocess
import nodessh
import vmdatabase
from cloud import nova
from gateconfig import SecureConfig
from gateprocess import ConfigError, GateError, get_log
from image import devstackfiles
from image.devstackfiles import Checkout
from image.template import FORGET, MARKS, Plan, Template, steps_of
from pool import script
from vmdatabase import BUILDING, ERROR, READY, BaseImage, Provider, SnapshotImage

FIRST_LOGINS = ("root", "ubuntu", "debian")  # tried if the providers file names no username
LOCK_SECONDS = 10  # reap holds the same lock for a moment
LONGEST_SECONDS = 24 * 3600  # limit for a run: then the next day's is due
POLL_SECONDS = 1
STEP_SECONDS = 3600  # for a step on the template
SNAPSHOT_BOOTS = 4  # a snapshot may take this many boot-timeouts to become active
GONE_SECONDS = 60
UNSEEN_SECONDS = 30  # how long parts of a cloud may not know a new server or image
KEEP_SECONDS = 24 * 3600  # how long --keep-failed keeps a server: as long as a failed build's machine stays
FAILED_IMAGE = ("killed", "error", "deleted", "pending_delete", "deactivated")
ANY_HOST_KEY = "-o UserKnownHostsFile=/dev/null -o StrictHostKeyChecking=no"  # clouds reuse addresses


class Build:
    """The building of one snapshot; raises ConfigError, before there is a row, if the provider lacks something."""

    def __init__(self, cloud: nova.Cloud, image: BaseImage, plan: Plan) -> None:
        import paramiko

        self.cloud = cloud
        self.provider: Provider = image.provider
        self.image = image
        self.plan = plan
        self.log = get_log(provider=self.provider.name, image=image.name)
        self.login: nodessh.Login | None = None  # of the running server, once it has let us in
        self.zones = self.provider.listed("availability_zones")
        self.stopping = False
        self.cleared = False  # whether the template no longer accepts logins
        self.base_recipe = cloud.recipe(image, cloud.find_base_image(image.external_id))
        cloud.network.attached()
        version = vmdatabase.next_version(image)
        self.row = SnapshotImage.create(
            base_image=image, version=version, state=BUILDING, state_time=vmdatabase.now(),
            name=f"{gateconfig.name_prefix()}devstack-{image.name}-{version}{nova.TEMPLATE_SUFFIX}")
        vmdatabase.note_ids()
        self.key = paramiko.ECDSAKey.generate()
        self.keypair = cloud.keypair_name(self.row.id)

    def run(self) -> None:
        """Build the snapshot and move it to READY; on any failure move it to ERROR and clean up."""
        try:
            self.wait_for_room()
            self.cloud.create_keypair(self.keypair, f"{self.key.get_name()} {self.key.get_base64()}")
            with self.server("template", self.base_recipe, self.keypair) as (server_id, address):
                self.prepare(address)
                image_id = self.snapshot(server_id)
            self.cleared = False
            self.see_gone(server_id)
            with self.server("test machine", self.cloud.recipe(self.image, image_id), None) as (_, address):
                self.prove(address)
            self.clean_up(lambda: self.cloud.mark_proved(image_id))
            vmdatabase.move(self.row, BUILDING, READY)
            self.log.info("BUILDING -> READY: %s %s", self.row.name, image_id)
        except Exception as err:
            self.fail(f"{gateprocess.phase_of(err)}{err or type(err).__name__}")
            raise
        finally:
            self.clean_up(self.delete_keypair)

    def fail(self, reason: str) -> None:
        """Record that the build failed."""
        if vmdatabase.move(self.row, BUILDING, ERROR, error=reason):
            self.log.info("BUILDING -> ERROR: %s", self.row.name)

    def stop(self) -> None:
        """Clean up a build that another thread works on; the process ends right after this."""
        self.stopping = True
        if self.row.state != BUILDING:
            return
        self.fail("the build was stopped")
        self.clean_up(self.delete_server)
        self.clean_up(self.delete_keypair)

    @contextmanager
    def server(self, what: str, recipe: nova.Recipe, keypair: str | None) -> Iterator[tuple[str, str]]:
        """Boot a server for the build, yield its id and address, and delete it after use.

        After a failure it is kept for a while if --keep-failed was given and it still accepts logins.
        """
        self.login, server_id = None, ""
        try:
            with gateprocess.phase(self.log, f"boot {what}"):
                if self.stopping:
                    raise GateError("the build was stopped")
                server_id = self.cloud.make_server(
                    self.row.name, recipe, {nova.SNAPSHOT_KEY: str(self.row.id)}, key_name=keypair,
                    zone=self.zones[self.row.id % len(self.zones)] if self.zones else None)
                vmdatabase.set_columns(self.row, server_external_id=server_id)
                address = self.reach(server_id)
            yield server_id, address
        except Exception:
            if self.plan.keep_failed and server_id and not self.cleared:
                self.keep_server(what)
            else:
                if self.plan.keep_failed and self.cleared:
                    self.log.warning("the %s accepts no login any more, so it is not kept", what)
                self.clean_up(self.delete_server)
            raise
        else:
            self.clean_up(self.delete_server)

    def keep_server(self, what: str) -> None:
        """Keep the server of a failed build for a person, who can log in with the node's key, and log how."""
        until = vmdatabase.now() + KEEP_SECONDS
        vmdatabase.set_columns(self.row, keep_until=until)
        self.clean_up(lambda: self.cloud.mark_held(
            str(self.row.server_external_id), "kept after its build failed", until))
        self.log.warning("keeping the %s (server %s) for %d hours, then reap deletes it",
                         what, self.row.server_external_id, KEEP_SECONDS // 3600)
        node = self.plan.node
        for login in [self.login, replace(self.login, user=node.user, key=node.ssh_key)] if self.login else []:
            try:
                nodessh.authorize(login, self.plan.public_key)
            except GateError as err:
                self.log.info("%s", err)
                continue
            self.log.warning("log in: ssh -i %s -p %d %s %s@%s", node.ssh_key, login.port, ANY_HOST_KEY, login.user,
                             login.address)
            return
        self.log.warning("no login to it works; see its console: openstack console log show %s",
                         self.row.server_external_id)

    def clean_up(self, step: Callable[[], None]) -> None:
        """Do one step of cleaning up; if it fails, reap does it later."""
        try:
            step()
        except GateError as err:
            self.log.warning("%s; left to devstack-vm-reap", err)

    def delete_keypair(self) -> None:
        """Delete the keypair of this build."""
        self.cloud.delete_keypair(self.keypair)

    def delete_server(self) -> None:
        """Delete the server of this build and its floating IP."""
        server_id = self.row.server_external_id
        if server_id:
            self.cloud.delete_server(server_id)
            for ip in self.cloud.network.list_ours():
                if ip.server_id == server_id:
                    self.cloud.network.release(ip)

    def wait_for_room(self) -> None:
        """Wait until the provider has room for the template; launch leaves it free once our row is there.

        Builds go in the order of their rows. While a build that has a server runs, this waits without limit; for all
        else it waits boot-timeout.
        """
        deadline, said = time.monotonic() + self.provider.boot_timeout, False
        while True:
            ahead = [one for one in vmdatabase.snapshots_of(self.provider) if one.has_server(vmdatabase.now())
                     and (one.id < self.row.id or (one.server_external_id and one.id != self.row.id))]
            taken = vmdatabase.count_servers(self.provider).total() + len(ahead)
            if taken < self.provider.max_servers:
                return
            if not said:
                self.log.info("waiting for room: %d of max-servers (%d) are taken", taken, self.provider.max_servers)
            said = True
            if any(one.state == BUILDING and one.server_external_id for one in ahead):
                deadline = time.monotonic() + self.provider.boot_timeout
            if time.monotonic() > deadline or self.stopping:
                raise GateError(f"provider {self.provider.name}: no room for a template server within max-servers "
                                f"({self.provider.max_servers}) after {self.provider.boot_timeout} s")
            time.sleep(POLL_SECONDS)

    def see_gone(self, server_id: str) -> None:
        """Wait until a deleted server is gone, for GONE_SECONDS at most: the next server may need its room."""
        deadline = time.monotonic() + GONE_SECONDS
        try:
            while time.monotonic() < deadline:
                self.cloud.get_server(server_id)
                time.sleep(POLL_SECONDS)
        except nova.CloudError:
            return

    def reach(self, server_id: str) -> str:
        """Return the address of a server once it is active and has one."""
        began = time.monotonic()
        deadline = began + self.provider.boot_timeout
        server, last = None, "nothing yet"
        while time.monotonic() < deadline:
            try:
                server = self.cloud.get_server(server_id)
                last = f"status {server.status}"
                if server.status == nova.SERVER_ERROR:
                    raise GateError(f"the server went to ERROR: {server.fault or 'without a fault text'}")
                address = self.cloud.network.reachable_address(server) if server.status == nova.ACTIVE else None
                if address:
                    return address
            except nova.CapacityError:
                raise
            except nova.CloudError as err:
                refuse_gone(err, server is not None, began)
                last = str(err)
            time.sleep(POLL_SECONDS)
        raise GateError(f"the server has no address after {self.provider.boot_timeout} s; last seen: {last}")

    def prepare(self, address: str) -> None:
        """Run the steps that turn the machine into a template."""
        self.login = self.first_login(address)
        with nodessh.session(self.login) as session:
            template = Template(session, self.plan, self.log)
            for name, step in steps_of(self.plan, self.key.get_base64(), self.marks()):
                template.begin(name)
                if template.missing and name == FORGET:
                    raise GateError(f"install packages: there is no {', '.join(template.missing)}")
                with gateprocess.phase(self.log, name):
                    step(template)
        self.cleared = True

    def first_login(self, address: str) -> nodessh.Login:
        """Return the first login that can run commands on the base image."""
        users = (self.image.username,) if self.image.username else FIRST_LOGINS
        logins = [nodessh.Login(address, self.provider.ssh_port, user, self.key) for user in users]
        deadline = time.monotonic() + self.provider.boot_timeout
        settled_by = nodessh.settle_until(deadline)

        def test(session: nodessh.Session) -> bool:
            if not is_shell(session):
                return False
            nodessh.settle(session, settled_by)
            return True

        with gateprocess.phase(self.log, "first login"):
            return nodessh.wait_for_session(logins, deadline, test)

    def marks(self) -> str:
        """Return the contents of /etc/devstack-gate/image: one KEY=VALUE a line, with lists separated by commas."""
        made = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.row.version))
        branches, sha1s = self.plan.branches, []
        if self.plan.checkout:
            sha1s = [f"{branch}:{self.plan.checkout.sha1(branch)}" for branch in branches]
        return (f"IMAGE_SNAPSHOT={self.row.name}\nIMAGE_TIME={made}\nIMAGE_BRANCHES={','.join(branches)}\n"
                f"IMAGE_DEVSTACK={','.join(sha1s)}\n")

    def prove(self, address: str) -> None:
        """Log in to a machine booted from the snapshot as builds will; check that sudo works and its marks exist."""
        node = self.plan.node
        login = nodessh.Login(address, self.provider.ssh_port, node.user, node.ssh_key)
        seen = {}

        def test(session: nodessh.Session) -> bool:
            seen["marks"] = session.attempt("read marks", ["cat", MARKS]).output
            return session.attempt("ssh test", session.as_root(["true"])).status == 0

        with gateprocess.phase(self.log, "ssh test"):
            self.login = nodessh.wait_for_session([login], time.monotonic() + self.provider.boot_timeout, test)
            if f"IMAGE_SNAPSHOT={self.row.name}\n" not in seen["marks"]:
                raise GateError(f"a machine booted from the snapshot does not carry its marks in {MARKS}")

    def snapshot(self, server_id: str) -> str:
        """Snapshot the template server and return the image's id once it is active."""
        with gateprocess.phase(self.log, "snapshot"):
            image_id = self.cloud.create_image(server_id, self.row.name, self.row.id)
            vmdatabase.set_columns(self.row, external_id=image_id)
            seconds = SNAPSHOT_BOOTS * self.provider.boot_timeout
            began, seen, last = time.monotonic(), False, "nothing yet"
            while time.monotonic() < began + seconds:
                try:
                    last, seen = self.cloud.image_status(image_id), True
                except nova.CloudError as err:
                    refuse_gone(err, seen, began)
                    last = str(err)
                if last == "active":
                    return image_id
                if last in FAILED_IMAGE:
                    raise GateError(f"the snapshot became {last}")
                time.sleep(POLL_SECONDS)
            raise GateError(f"the snapshot is not active after {seconds} s; last: {last}")


def refuse_gone(err: GateError, seen: bool, began: float) -> None:
    """Raise an error that says that a server or image is gone, unless parts of the cloud may not know it yet.

    seen: whether it was seen before; began: when it was made, on the monotonic clock.
    """
    if isinstance(err, nova.GoneError) and (seen or time.monotonic() > began + UNSEEN_SECONDS):
        raise err


def is_shell(session: nodessh.Session) -> bool:
    """Return whether the login gives a shell: cloud images let root in only to name the user to log in as."""
    outcome = session.attempt("first login", ["id", "-un"], seconds=5)
    return outcome.status == 0 and outcome.output.strip() == session.login.user


def main(argv: list[str] | None = None) -> int:
    """Build the images of one provider, or of each; or print what would be cached."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    if options.what is not None:
        what, complete = _what(options)
        print(json.dumps(what, indent=2))
        return gateprocess.EXIT_OK if complete else gateprocess.EXIT_FAILED
    return script.run_for_provider(options.provider, argv, lambda provider: _update(provider, options))


def _what(options: argparse.Namespace) -> tuple[dict[str, dict[str, list[str]]], bool]:
    """Return what would be cached for a distribution, by branch, and whether the list is complete."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", options.what):
        raise ConfigError(f"--what: expected a distribution such as noble, bookworm or rhel9, got {options.what!r}")
    checkout = _checkout(options)
    if checkout is None:
        raise ConfigError("--what: there is no devstack checkout in $WORKSPACE/devstack; name one with --devstack DIR")
    patterns = options.branch or gateconfig.load_image_config().branches
    projects = devstackfiles.projects_of(os.environ)
    return devstackfiles.describe(checkout, options.what, checkout.branches(patterns), projects)


def _checkout(options: argparse.Namespace) -> Checkout | None:
    """Return the devstack checkout that --devstack names, or the one in the workspace if it is there."""
    if options.devstack:
        return Checkout(options.devstack)
    workspace = os.environ.get("WORKSPACE")
    folder = Path(workspace) / "devstack" if workspace else None
    if folder is None or not folder.is_dir():
        return None
    for path in (folder.parent, folder, folder / ".git"):
        gateconfig.check_ours(path, "WORKSPACE")
    return Checkout(folder)


def _update(provider: Provider, options: argparse.Namespace) -> int:
    plan = _plan(options)
    images = _images(provider, options.image)
    if options.dry_run:
        names = ["boot template", "first login", *(name for name, _ in steps_of(plan, "", "")), "snapshot",
                 "boot test machine", "ssh test"]
        for image in images:
            print("\n".join(f"{provider.name} {image.name}: {name}" for name in names))
        return gateprocess.EXIT_OK
    if plan.checkout is None:
        get_log(provider=provider.name).warning(
            "there is no devstack checkout in $WORKSPACE/devstack, so nothing is cached; devstack-vm-update-image.sh "
            "makes one")
    return script.run_alone("update-image", provider, lambda: _build_all(provider, images, plan), LONGEST_SECONDS,
                                LOCK_SECONDS)


def _images(provider: Provider, name: str | None) -> list[BaseImage]:
    """Return the image types to build: the named one, or all that do not use another one's snapshot."""
    active = [image for image in vmdatabase.images_of(provider) if image.active]
    images = [image for image in active if name in (None, image.name)]
    if name is not None and not images:
        raise ConfigError(f"--image: provider {provider.name} has no image {name}"
                          f"{gateprocess.nearest(name, [image.name for image in active])}")
    if name is not None and images[0].template:
        raise ConfigError(f"--image: {name} has a template and needs no image of its own; build {images[0].template}")
    return [image for image in images if not image.template]


def _plan(options: argparse.Namespace) -> Plan:
    """Read and check all settings."""
    config: SecureConfig = gateconfig.load_secure_config()
    public_key = gateconfig.require_ssh_key(config)
    nodessh.check_key_pair(config.node.ssh_key, public_key)
    gateconfig.name_prefix()
    checkout = _checkout(options)
    repo = config.image.puppet_repo
    if devstackfiles.is_local(repo) and not Path(repo.removeprefix("file://")).is_dir():
        raise ConfigError(f"{config.path}: [image] puppet_repo: there is no folder {repo}")
    return Plan(
        node=config.node, image=config.image, public_key=public_key, script=_read_script(options.script),
        checkout=checkout, branches=checkout.branches(options.branch or config.image.branches) if checkout else (),
        projects=devstackfiles.projects_of(os.environ),
        git_base=(os.environ.get("GIT_BASE") or "https://opendev.org").rstrip("/"),
        step_seconds=options.step_timeout, keep_failed=options.keep_failed)


def _build_all(provider: Provider, images: Sequence[BaseImage], plan: Plan) -> int:
    """Build the images side by side and return one exit code for all."""
    cloud = script.cloud_of(provider)
    vmdatabase.note_place(provider, *cloud.place)
    vmdatabase.end_dead_builds(provider)
    vmdatabase.leave_out_ids("snapshot_image", nova.last_snapshot_id(
        cloud.list_servers(), cloud.list_snapshots(), cloud.list_keypairs().values()))
    builds: list[Build] = []
    workers = gateprocess.Workers(max(1, min(provider.max_concurrency, provider.max_servers)))
    futures = [workers.submit(_build, cloud, image, plan, builds) for image in images]

    def stop() -> str:
        stopped = [build.row.name for build in builds if build.row.state == BUILDING]
        with vmdatabase.connected():
            for build in builds:
                build.stop()
        return f"no new {gateprocess.some(stopped)}" if stopped else ""

    with gateprocess.telling(stop):
        codes = {future.result() for future in futures}
    if len(codes) > 1:
        return gateprocess.EXIT_FAILED
    return codes.pop() if codes else gateprocess.EXIT_OK


def _build(cloud: nova.Cloud, image: BaseImage, plan: Plan, builds: list[Build]) -> int:
    """Build one image and return an exit code; a failure does not stop other builds."""
    log = get_log(provider=cloud.provider.name, image=image.name)
    try:
        build = gateprocess.guarded(vmdatabase.connected()(Build), cloud, image, plan)
        builds.append(build)
    except GateError as err:
        log.error("no new snapshot: %s", err)
        return err.exit_code
    try:
        gateprocess.guarded(vmdatabase.connected()(build.run))
    except GateError as err:
        log.error("no new snapshot: %s%s", gateprocess.phase_of(err), err)
        return gateprocess.EXIT_FAILED
    print(f"{cloud.provider.name} {image.name}: {build.row.name}")
    return gateprocess.EXIT_OK


def _read_script(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigError(
            f"--script or DEVSTACK_GATE_CUSTOM_SCRIPT: {path} cannot be read ({err.strerror})") from err


def _seconds(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"expected seconds, a whole number from 1 to 9999999, got {text!r}")
    return int(text)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("provider", metavar="PROVIDER", nargs="?", help="a provider of vm.db, or all")
    parser.add_argument("--image", metavar="NAME", help="this image type only (default: all of the provider)")
    custom = os.environ.get("DEVSTACK_GATE_CUSTOM_SCRIPT")
    parser.add_argument("--script", metavar="FILE", type=Path, default=Path(custom) if custom else None,
                        help="run this on the template, last ($DEVSTACK_GATE_CUSTOM_SCRIPT)")
    parser.add_argument("--devstack", metavar="DIR", type=Path, help="devstack checkout (default: $WORKSPACE/devstack)")
    parser.add_argument("--branch", metavar="PATTERN", action="append",
                        help="cache for these branches of devstack ([image] branches; default: master and stable/*)")
    parser.add_argument("--step-timeout", metavar="SECONDS", type=_seconds, default=STEP_SECONDS,
                        help=f"time limit of each step on the template (default: {STEP_SECONDS})")
    parser.add_argument("--keep-failed", action="store_true",
                        help="keep the server of a failed build for a day, and say how to get in")
    parser.add_argument("--dry-run", action="store_true", help="print the steps, change nothing")
    parser.add_argument("--what", metavar="DISTRIBUTION",
                        help="print as JSON what would be cached for a distribution (noble, rhel9); needs no cloud")
    options = parser.parse_args(argv)
    if options.what is None and options.provider is None:
        parser.error("the following arguments are required: PROVIDER or --what DISTRIBUTION")
    if options.what is not None and options.provider is not None:
        parser.error("--what is about a distribution, it takes no PROVIDER")
    return options


if __name__ == "__main__":
    gateprocess.run(main)
