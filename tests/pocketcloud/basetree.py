"""The root file system that the machines of the image "Debian 12" start from, made once by debootstrap."""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.pocketcloud.records import KindError

log = logging.getLogger(__name__)
SUITE = "bookworm"
PACKAGES = "openssh-server,sudo,ca-certificates,git,iproute2,procps,python3,netbase"
RECIPE_VERSION = 1  # increase it when _configure changes; the rest of the recipe is hashed
FINISH = """set -e
update-ca-certificates > /dev/null
apt-get -q -y update
apt-get -q -y dist-upgrade
groupadd --gid 1000 debian
useradd --uid 1000 --gid 1000 --groups adm,sudo --create-home --shell /bin/bash --comment 'Debian' debian
echo 'debian ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/90-cloud-init-users
chmod 440 /etc/sudoers.d/90-cloud-init-users
rm -f /etc/ssh/ssh_host_* /etc/machine-id /etc/resolv.conf
apt-get clean
rm -rf /var/lib/apt/lists/*
"""
PRIVATE = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--pid", "--fork"]
PRIVATE += ["--kill-child", "--mount-proc"]
APT_SETTINGS = ("Acquire::http::", "Acquire::https::", "Acquire::Check-", "Acquire::Retries")


class BaseTreeError(KindError):
    """The base tree cannot be made here."""


@dataclass(frozen=True)
class Source:
    """One entry of apt's sources."""

    uri: str
    suite: str
    components: tuple[str, ...]


def ensure(cache: Path) -> Path:
    """Return the base tree; makes it if it is missing or its recipe has changed. Raises BaseTreeError."""
    tree = cache / f"debian-12-{_version()}"
    cache.mkdir(parents=True, exist_ok=True)
    with _lock(cache / "lock"):
        if not tree.exists():
            _make(tree)
    return tree


def _version() -> str:
    recipe = f"{RECIPE_VERSION} {SUITE} {PACKAGES} {FINISH}"
    return hashlib.sha256(recipe.encode()).hexdigest()[:12]


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make(tree: Path) -> None:
    for left in tree.parent.glob("making-*"):
        shutil.rmtree(left)
    making = tree.parent / f"making-{os.getpid()}"
    sources = debian_sources()
    began = time.monotonic()
    log.info("making the base tree %s, this takes a minute", tree)
    command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, str(making), sources[0].uri]
    if shutil.which("debootstrap") is None:
        raise BaseTreeError("debootstrap is missing: apt-get install debootstrap")
    _run("debootstrap", [*PRIVATE, *command])
    _configure(making, sources)
    _run("the last step", [*PRIVATE, "chroot", str(making), "/bin/sh", "-c", FINISH])
    (making / "etc/pocketcloud-recipe").write_text(f"{_version()}\n")
    making.rename(tree)
    log.info("the base tree is ready after %.0f s", time.monotonic() - began)


def _run(what: str, command: list[str]) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment = clean | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise BaseTreeError(f"base tree: {what} failed with {done.returncode}: {(done.stdout + done.stderr)[-1500:]}")


def _configure(tree: Path, sources: list[Source]) -> None:
    """Let the machines reach what the host reaches: its mirror, its proxies, its certificate authorities."""
    lines = [f"deb {one.uri} {one.suite} {' '.join(one.components)}" for one in sources]
    (tree / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
    (tree / "etc/apt/apt.conf.d/90host").write_text(_apt_settings())
    (tree / "etc/dpkg/dpkg.cfg.d/90fast").write_text("force-unsafe-io\n")
    policy = tree / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\n# The network is the host's: no package starts its service by itself.\nexit 101\n")
    policy.chmod(0o755)
    proxies = [name for name in ("http_proxy", "https_proxy", "no_proxy") if os.environ.get(name)]
    (tree / "etc/environment").write_text("".join(f"{name}={os.environ[name]}\n" for name in proxies))
    authorities = Path("/usr/local/share/ca-certificates")
    if authorities.is_dir():
        shutil.copytree(authorities, tree / "usr/local/share/ca-certificates", dirs_exist_ok=True)


def _apt_settings() -> str:
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    lines = [line for line in dump.splitlines() if line.startswith(APT_SETTINGS)]
    for scheme in ("http", "https"):
        proxy = os.environ.get(f"{scheme}_proxy")
        if proxy:
            lines.append(f'Acquire::{scheme}::Proxy "{proxy}";')
    return "\n".join([*lines, 'APT::Install-Recommends "false";']) + "\n"


# The host's Debian mirror


def debian_sources(folder: Path = Path("/etc/apt")) -> list[Source]:
    """Return the host's own sources for this suite, the main archive first; raises BaseTreeError if there is none."""
    found: list[Source] = []
    for path in [folder / "sources.list", *sorted((folder / "sources.list.d").glob("*"))]:
        if path.suffix == ".sources":
            found += _deb822(path.read_text())
        elif path.suffix == ".list" and path.exists():
            found += _one_line(path.read_text())
    codename = _host_codename()
    wanted = {codename: SUITE, f"{codename}-updates": f"{SUITE}-updates", f"{codename}-security": f"{SUITE}-security"}
    ours = [
        Source(one.uri, wanted[one.suite], ("main",))
        for one in found
        if one.suite in wanted and "main" in one.components
    ]
    ours.sort(key=lambda one: list(wanted.values()).index(one.suite))
    if not ours or ours[0].suite != SUITE:
        raise BaseTreeError(f"no Debian mirror found: expected a source of {codename} main in {folder}/sources.list*")
    return ours


def _host_codename() -> str:
    """Return the host's suite if the host is a Debian, whose mirror has SUITE too; else SUITE."""
    release = dict(re.findall(r'^(\w+)="?([^"\n]*)"?$', Path("/etc/os-release").read_text(), re.MULTILINE))
    return release.get("VERSION_CODENAME", SUITE) if release.get("ID") == "debian" else SUITE


def _one_line(text: str) -> list[Source]:
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.split("#")[0].strip())
        if match:
            found.append(Source(match[1], match[2], tuple(match[3].split())))
    return found


def _deb822(text: str) -> list[Source]:
    found = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        fields = {
            name.lower(): value.split()
            for name, value in re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", stanza, re.MULTILINE)
        }
        if "deb" not in fields.get("types", []) or fields.get("enabled", ["yes"])[0].lower() in ("no", "false"):
            continue
        for uri in fields.get("uris", []):
            found += [Source(uri, suite, tuple(fields.get("components", []))) for suite in fields.get("suites", [])]
    return found
