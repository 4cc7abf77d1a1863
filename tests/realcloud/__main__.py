"""A real OpenStack control plane on loopback: Keystone, Glance, Placement, Neutron, Nova, with pocketcloud's machines.

With --volumes, Cinder, too. Prints a clouds.yaml and writes it to ROOT/clouds.yaml; writes ROOT/ready when all services
answer. Runs until SIGINT or SIGTERM, then stops the services and the machines and removes what it made. The very first
start takes a few minutes more: it installs the services and makes their databases below --cache. See README.md beside
this file.
Exit codes: 0 stopped on request, 1 a service could not be installed or started, or ended (the last lines of its log are
on stderr), 2 it cannot run here with these options (one line on stderr says why).
"""

import argparse
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from tests.pocketcloud import basetree, leftovers
from tests.pocketcloud.addresses import NoRangeLeftError, Range
from tests.pocketcloud.kinds import check_ssh_port
from tests.pocketcloud.leftovers import RootError
from tests.pocketcloud.records import KindError
from tests.realcloud import configuration, environment, seed, template
from tests.realcloud.configuration import MEMBER, SMALL
from tests.realcloud.services import NAMES, VOLUMES, ServiceError, Services

log = logging.getLogger("realcloud")
OURS = ("state", "clouds.yaml", "ready", "ready.new")
CHECK_SECONDS = 1.0


class StoppedError(Exception):
    """SIGINT or SIGTERM asked it to stop."""


def main(argv: list[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    options = _parse(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        if os.geteuid():
            raise KindError("it needs root, to make namespaces")
        made = environment.ensure(options.cache)
        if options.prepare_only:
            return 0
        with _running(options, made) as services:
            while True:
                time.sleep(CHECK_SECONDS)
                services.check()
    except StoppedError:
        log.info("stopped")
        return 0
    except ServiceError as err:
        log.error("%s", err)
        return 1
    except (KindError, NoRangeLeftError, RootError) as err:
        log.error("%s", err)
        return 2


def _parse(argv: list[str] | None) -> argparse.Namespace:
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    ours = Path(os.environ.get("DEVSTACK_GATE_REALCLOUD") or caches / "devstack-gate-realcloud")
    parser = argparse.ArgumentParser(
        prog="python -m tests.realcloud", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clouds", default="", help=f"more projects than {MEMBER} and {SMALL}, separated by commas")
    parser.add_argument("--root", type=Path, default=Path("/var/tmp/realcloud"), help="where its state is kept")
    parser.add_argument("--ssh-port", type=int, default=22, help="of the machines")
    parser.add_argument("--cache", type=Path, default=ours, help="where the services are; or DEVSTACK_GATE_REALCLOUD")
    parser.add_argument("--trees", type=Path, default=caches / "pocketcloud", help="where the base tree is kept")
    parser.add_argument("--logs", type=Path, help="a folder to which the services' logs are copied at the end")
    parser.add_argument("--nova", action="append", default=[], metavar="SECTION.OPTION=VALUE", help="in nova.conf, too")
    parser.add_argument("--volumes", action="store_true", help="with Cinder")
    parser.add_argument("--prepare-only", action="store_true", help="make what is below --cache if needed and exit")
    options = parser.parse_args(argv)
    options.root, options.cache, options.trees = (
        path.absolute() for path in (options.root, options.cache, options.trees)
    )
    return options


def _stop(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # once is enough; cleaning up must not be disturbed
    raise StoppedError


@contextlib.contextmanager
def _running(options: argparse.Namespace, made: environment.Environment) -> Iterator[Services]:
    check_ssh_port(options.ssh_port)
    base = basetree.ensure(options.trees)
    with contextlib.ExitStack() as stack:
        stack.enter_context(leftovers.owned(options.root, OURS, "realcloud"))
        ranges = {}
        for use in ("fixed", "floating"):
            ranges[use] = Range()
            stack.callback(ranges[use].release)
        state = options.root / "state"
        shutil.copytree(made.template, state)
        shutil.rmtree(state / "log")  # from making the template
        if options.logs:
            stack.callback(shutil.copytree, state / "log", options.logs, dirs_exist_ok=True)
        services = Services(
            state, made.venv, REALCLOUD_SSH_PORT=str(options.ssh_port), REALCLOUD_BASE=str(base)
        )
        stack.callback(services.stop)
        clouds = [MEMBER, SMALL, *filter(None, options.clouds.split(","))]
        cidrs = {use: one.cidr for use, one in ranges.items()}
        _start(options, services, made.venv, clouds, cidrs)
        _announce(options.root, services, clouds, cidrs)
        yield services


def _start(options: argparse.Namespace, services: Services, venv: Path, clouds: list[str], cidrs: dict[str, str]
           ) -> None:
    """Start everything, and make what differs from run to run."""
    began = time.time()
    root, state = options.root, options.root / "state"
    configuration.write(state, venv, services.ports, nova=options.nova)
    seed.move_endpoints(state / "databases/keystone.db", services.ports)
    (root / "clouds.yaml").write_text(configuration.clouds_yaml(services.ports["keystone"], clouds))
    names = [*NAMES, VOLUMES] if options.volumes else NAMES
    services.start(*names)
    services.wait(*names)
    admin = seed.connect(root / "clouds.yaml")
    if options.volumes:
        seed.add_block_storage(admin, services.ports[VOLUMES])
    for name in clouds[2:]:
        seed.add_project(admin, name, "member")
    seed.add_networks(admin, **cidrs)
    seed.add_base_image(admin)
    template.wait_for_workers(services, admin, began)
    log.info("ready after %.1f s", time.time() - began)


def _announce(root: Path, services: Services, clouds: list[str], cidrs: dict[str, str]) -> None:
    print((root / "clouds.yaml").read_text(), end="", flush=True)
    url = f"http://127.0.0.1:{services.ports['keystone']}/v3"
    ready: dict[str, Any] = {"url": url, "pid": os.getpid(), "clouds": dict.fromkeys(clouds, cidrs)}
    (root / "ready.new").write_text(json.dumps(ready))
    (root / "ready.new").rename(root / "ready")


if __name__ == "__main__":
    sys.exit(main())
