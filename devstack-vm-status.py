#!/usr/bin/env python3
"""Write the status page: what needs a person, what is there, how it went, and who is to blame.

Run by the job devstack-vm-status every 10 minutes. Reads vm.db, and Jenkins' queue where a secure configuration names a
Jenkins; changes neither. Writes index.html, style.css, icon.svg, pictures (SVG), status.json and metrics.prom into a
folder. Each file is replaced in one step, index.html last: whenever a run ends, the page is the old or the new one.
Needs the packages of requirements-status.txt, which no other script needs.

Exit codes: 0 done, 1 the page could not be made this time, 2 wrong use or configuration.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import gateconfig
import gateprocess
import vmdatabase
from gateprocess import ConfigError, GateError, get_log

HOUR = 3600  # seconds
HOURS, MOST_HOURS = 24, 31 * 24
LONG_HOURS = 7 * 24  # of the longer span, unless the shorter one is longer
READABLE = 0o644  # a web server and node_exporter run under other accounts
KEEP_SECONDS = HOUR  # of pictures no longer on the page: a browser may still load them


def main(argv: list[str] | None = None) -> int:
    """Read, compute, draw, write."""
    options = _parse(argv)
    gateprocess.setup_logging(options.verbosity)
    folder = output_folder(options.output)
    _require_packages()
    facts = _facts(options.hours)
    from status import metrics, page, pictures, sections

    told = sections.compute(facts, options.hours)
    drawn, files = pictures.draw_all(told)
    write(folder, {
        **files, "style.css": page.STYLE.read_bytes(), "icon.svg": page.ICON.read_bytes(),
        "metrics.prom": metrics.text(facts, told),
        "status.json": (json.dumps(told, indent=1, ensure_ascii=True) + "\n").encode(),
        "index.html": page.render(told, drawn)})
    remove_old_pictures(folder, files)
    print(folder / "index.html")
    return gateprocess.EXIT_OK


def output_folder(given: Path | None) -> Path:
    """Return the folder to write into, made if it is missing; raises ConfigError if it cannot be made."""
    if given is None and not os.environ.get("WORKSPACE"):
        raise ConfigError("--output: expected a folder, since WORKSPACE is not set")
    folder = gateconfig.expanded(str(given), "--output") if given else Path(os.environ["WORKSPACE"]) / "status"
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            folder.chmod(READABLE | 0o111)
    except OSError as err:
        raise ConfigError(f"--output: {folder}: cannot be made, or is no folder ({err.strerror})") from err
    return folder


def _require_packages() -> None:
    import importlib.util

    missing = [name for name in ("jinja2", "matplotlib", "prometheus_client") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"there is no Python package {', '.join(missing)} here; install what the status page needs: "
                          "pip install -r requirements-status.txt")


def _facts(hours: int) -> Any:
    """Return the data for the page."""
    from pool import rows
    from status.facts import Facts, read

    prefix = gateconfig.name_prefix()
    config = gateconfig.load_secure_config() if gateconfig.secure_config_path().exists() else None
    with vmdatabase.opened(gateconfig.database_place()):
        rows.check_kinds()
        now = vmdatabase.now()
        found = read(now - max(hours, LONG_HOURS) * HOUR, now)
    labels = {machine.name: f"{prefix}devstack-{machine.image}" for machine in found["machines"]}
    return Facts(**found, **_queue(config, labels), prefix=prefix)


def _queue(config: gateconfig.SecureConfig | None, labels: Mapping[str, str]) -> dict[str, Any]:
    """Return what Jenkins says about waiting builds, as arguments of Facts; labels is {node: label}."""
    from status.facts import Waiting, waiting_builds

    if config is None or not config.jenkinses:
        get_log().info("there is no [jenkins] section in %s, or no such file: waiting builds are not known",
                       gateconfig.secure_config_path())
        return {}
    waiting: dict[str, dict[str, Waiting] | None] = {}
    reasons = []
    for jenkins in config.jenkinses:
        waiting[jenkins.name] = None
        try:
            waiting[jenkins.name] = waiting_builds(jenkins, labels)
        except (OSError, ValueError) as err:
            reasons.append(gateprocess.plain(f"{jenkins.server} does not tell which builds wait: {err}"))
            get_log().warning("%s", reasons[-1])
    return {"waiting": waiting, "waiting_error": "; ".join(reasons), "has_jenkins": True}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Replace files, each in one step and in this order; raises GateError if one cannot be written."""
    for name, content in files.items():
        draft = folder / f".{name}.{secrets.token_hex(8)}.new"
        try:
            try:  # others may write to the folder: never open a file that is already there
                with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW), "wb") as stream:
                    stream.write(content)
                    os.fchmod(stream.fileno(), READABLE)
                draft.replace(folder / name)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as err:
            raise GateError(f"{folder / name}: cannot be written ({err.strerror})") from err


def remove_old_pictures(folder: Path, kept: Mapping[str, bytes]) -> None:
    """Remove pictures that no page of the last hour shows, and drafts that killed runs left an hour ago."""
    for file in (*folder.glob("*-*-*-????????.svg"), *folder.glob(".*.new")):
        try:
            if file.name not in kept and time.time() - file.lstat().st_mtime > KEEP_SECONDS:
                file.unlink()
        except OSError as err:
            get_log().warning("%s: cannot be removed (%s)", file, err.strerror)


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("expected a folder, got ''")
    return Path(text)


def _hours(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and 1 <= int(text[:9]) <= MOST_HOURS):
        raise argparse.ArgumentTypeError(f"expected hours, a whole number from 1 to {MOST_HOURS}, got {text!a}")
    return int(text)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = gateprocess.make_parser(__doc__)
    parser.add_argument("--output", type=_folder, metavar="DIR", help="where to; default: $WORKSPACE/status")
    parser.add_argument("--hours", type=_hours, default=HOURS, metavar="N",
                        help=f"the shorter span that is shown, default {HOURS}; the longer one is at least "
                             f"{LONG_HOURS // 24} days")
    return parser.parse_args(argv)


if __name__ == "__main__":
    gateprocess.run(main)
