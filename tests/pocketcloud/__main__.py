"""A small OpenStack cloud on loopback: Keystone, Nova, Glance, Neutron and Cinder over HTTP; servers answer ssh.

Prints a clouds.yaml and writes it to ROOT/clouds.yaml; writes ROOT/ready when it accepts connections. Runs until
SIGINT or SIGTERM, then stops the machines and removes what it made. See README.md beside this file.
Exit codes: 0 stopped on request, 2 it cannot run here with these options (one line on stderr says why).
"""

import argparse
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.pocketcloud import basetree, cinder, glance, keystone, leftovers, neutron, nova
from tests.pocketcloud.addresses import NoRangeLeftError
from tests.pocketcloud.control import control
from tests.pocketcloud.doors import Doors
from tests.pocketcloud.httpd import Server, Site
from tests.pocketcloud.kinds import Kinds
from tests.pocketcloud.knobs import KINDS, Knobs, parse_setting
from tests.pocketcloud.leftovers import RootError
from tests.pocketcloud.records import KindError
from tests.pocketcloud.state import Cloud, Workshop
from tests.support.knobs import KnobError
from tests.support.schedule import Schedule

log = logging.getLogger("pocketcloud")
HANDS = 8  # threads that start, stop and copy machines
SERVICES = {"identity": keystone.ROUTES, "compute": nova.ROUTES, "image": glance.ROUTES, "network": neutron.ROUTES,
            "block-storage": cinder.ROUTES}


class UsageError(Exception):
    """It cannot run here with these options."""


@dataclass
class Workbench:
    """What all clouds of this process share."""

    schedule: Schedule
    pool: ThreadPoolExecutor
    kinds: Kinds
    doors: Doors


def main(argv: list[str] | None = None) -> int:
    """Run until a signal; returns the exit code."""
    options = _parse(argv)
    gc.set_threshold(100_000)  # lists of thousands are no garbage
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    _raise_file_limit()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        if options.base_only:
            print(basetree.ensure(options.cache))
            return 0
        if options.clean:
            with leftovers.owned(options.root):
                return 0
        with _running(options) as ready:
            log.info("ready: %s", ready["url"])
            stop.wait()
            log.info("stopping")
    except (KindError, KnobError, NoRangeLeftError, RootError, UsageError) as err:
        log.error("%s", err)
        return 2
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pocketcloud"
    parser = argparse.ArgumentParser(
        prog="python -m tests.pocketcloud", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clouds", default="pocket-a,pocket-b", help="names, separated by commas")
    parser.add_argument("--root", type=Path, default=Path("/var/tmp/pocketcloud"), help="where its state is kept")
    parser.add_argument("--port", type=int, default=0, help="of the HTTP server; 0: a free one")
    parser.add_argument("--machines", choices=KINDS, default="namespace")
    parser.add_argument("--ssh-port", type=int, default=22)
    parser.add_argument("--cache", type=Path, default=cache, help="where the base tree is kept")
    parser.add_argument("--base-only", action="store_true", help="make the base tree if needed and exit")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KNOB=VALUE", help="JSON or text, for every cloud"
    )
    parser.add_argument("--clean", action="store_true", help="remove what a killed run left under --root and exit")
    options = parser.parse_args(argv)
    options.root, options.cache = options.root.absolute(), options.cache.absolute()
    return options


def _raise_file_limit() -> None:
    """Raise the limit of open files: a thousand servers listen on a thousand sockets."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextlib.contextmanager
def _running(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    with contextlib.ExitStack() as stack:
        stack.enter_context(leftovers.owned(options.root))
        doors = Doors(options.ssh_port)
        stack.callback(doors.stop)
        kinds = Kinds(options.root, options.cache, doors)
        stack.callback(kinds.stop)
        pool = ThreadPoolExecutor(HANDS)
        stack.callback(pool.shutdown, cancel_futures=True)
        schedule = Schedule()
        stack.callback(schedule.stop)
        clouds = _make_clouds(options, Workbench(schedule, pool, kinds, doors))
        server = _listen(options.port, Site(clouds, SERVICES, control))
        stack.callback(_stop_listening, server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield _announce(options.root, server, clouds)


def _make_clouds(options: argparse.Namespace, bench: Workbench) -> dict[str, Cloud]:
    clouds = {}
    for name in options.clouds.split(","):
        knobs = Knobs(machines=options.machines)
        for setting in options.set:
            knobs.turn(*parse_setting(setting))
        workshop = Workshop(bench.schedule, bench.pool, partial(bench.kinds.of, name, knobs), bench.doors.close)
        workshop.kind(knobs.machines)
        clouds[name] = Cloud(name, workshop, knobs)
    return clouds


def _listen(port: int, site: Site) -> Server:
    try:
        return Server(port, site)
    except OSError as err:
        raise UsageError(f"--port {port}: cannot listen on 127.0.0.1: {err.strerror}") from err


def _stop_listening(server: Server) -> None:
    server.site.stopping.set()
    server.shutdown()
    server.server_close()


def _announce(root: Path, server: Server, clouds: dict[str, Cloud]) -> dict[str, Any]:
    url = f"http://127.0.0.1:{server.server_address[1]}"
    text = _clouds_yaml(url, clouds)
    (root / "clouds.yaml").touch(0o600)
    (root / "clouds.yaml").write_text(text)
    print(text, end="", flush=True)
    ranges = {name: {"fixed": cloud.fixed.cidr, "floating": cloud.public.cidr} for name, cloud in clouds.items()}
    ready = {"url": url, "control": f"{url}/control", "pid": os.getpid(), "clouds": ranges}
    (root / "ready.new").write_text(json.dumps(ready))
    (root / "ready.new").rename(root / "ready")
    return ready


def _clouds_yaml(url: str, clouds: dict[str, Cloud]) -> str:
    lines = ["clouds:"]
    for name in clouds:
        lines += [
            f"  {name}:",
            f"    region_name: {keystone.REGION}",
            "    auth:",
            f"      auth_url: {url}/{name}/identity/v3",
            f"      username: {keystone.USER}",
            f"      password: {keystone.PASSWORD}",
            f"      project_name: {keystone.USER}",
            "      user_domain_name: Default",
            "      project_domain_name: Default",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
