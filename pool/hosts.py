"""What must be the same on all hosts of one pool; jobs/check.py on each host notes it in the pool's database.

Secrets are noted only as a code, made with the nodes' private key, which the database does not have.
"""

from __future__ import annotations

import hmac
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import gateconfig
import gateprocess
import vmdatabase
from gateconfig import SecureConfig
from pool.migrations import MIGRATIONS
from vmdatabase import BaseImage, TestEnvironment

NOTED = "what is on host "  # the names of these settings begin with it
OFF_SECONDS = 300  # a host's clock may differ from the database's by this: log lines, schedules
DAY = 86400


class Host(NamedTuple):
    """What a host has: of each thing that must be the same its value, or a code if it is secret; when it was noted."""

    name: str
    time: int
    has: dict[str, str]

    def differences(self, other: Host) -> list[str]:
        """Return the names of the things in which another host differs from this one."""
        if self.has["ssh key of the nodes"] != other.has.get("ssh key of the nodes"):
            return ["ssh key of the nodes"]  # the codes of the rest depend on it
        return sorted(name for name in self.has.keys() | other.has.keys() if self.has.get(name) != other.has.get(name))


def here(config: SecureConfig) -> Host:
    """Return what this host has."""
    key = _content(config.node.ssh_key)

    def code(content: bytes) -> str:
        return hmac.new(key, content, "sha256").hexdigest()

    has = {"ssh key of the nodes": hmac.new(b"", key, "sha256").hexdigest(),
           "version of the scripts": f"{gateprocess.VERSION}, schema {len(MIGRATIONS)}",
           "DEVSTACK_GATE_PREFIX": gateconfig.name_prefix(),
           "[jenkins] of the secure configuration": code(repr([tuple(one) for one in config.jenkinses]).encode()),
           "[node] of the secure configuration": code(f"{config.node.user} {config.node.remote_fs}".encode()),
           "[image] of the secure configuration": code(repr(tuple(config.image)).encode())}
    has |= {name: code(_content(path)) for name, path in gateconfig.cloud_files().items()}
    has |= {str(path): code(_content(path)) for path in _files()}
    return Host(os.uname().nodename, vmdatabase.now(), has)


def _files() -> Iterator[Path]:
    """Yield the files that providers file and test environments name."""
    for image in BaseImage.select().where(BaseImage.active == 1):
        yield from (Path(path) for path in (image.user_data, image.ready_script) if path)
    yield from (Path(environment.data) for environment in TestEnvironment.select())


def _content(path: Path | None) -> bytes:
    try:
        return path.read_bytes() if path else b"(none)"
    except OSError:
        return b"(cannot be read)"


def note(host: Host) -> None:
    """Record what this host has, for the others."""
    vmdatabase.set_setting(f"{NOTED}{host.name}", json.dumps({"time": host.time, "has": host.has}))


def others(host: Host) -> list[Host]:
    """Return the other hosts as recorded, in the order of their names."""
    told = {name: json.loads(value) for name, value in sorted(vmdatabase.settings_of(NOTED).items())}
    return [Host(name, one["time"], one["has"]) for name, one in told.items() if name != host.name]


def clock_off() -> float:
    """Return how many seconds this host's clock is ahead of the database's."""
    return time.time() - vmdatabase.clock()
