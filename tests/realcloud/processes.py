"""The processes, mounts and sockets of a control plane and its machines."""

import re
import subprocess
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from tests.realcloud.client import RealCloud


def family(pid: int) -> set[int]:
    """Return the process and all its descendants."""
    children = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            children[int(stat.read_text().rpartition(")")[2].split()[1])].append(int(stat.parent.name))
    found, look = set(), [pid]
    while look:
        one = look.pop()
        found.add(one)
        look += children[one]
    return found


def alive(pids: set[int]) -> set[int]:
    """Return the processes that still run; zombies do not."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
    return found


def left(real: RealCloud, pids: set[int]) -> tuple[set[int], list[str]]:
    """Return which of these processes of a control plane still run, and which of its mounts are still there."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(real.root) in line]
    return alive(pids), mounts


def listening(pids: set[int]) -> list[tuple[str, int]]:
    """Return the addresses and ports, TCP and UDP, that these processes listen on."""
    lines = subprocess.run(["ss", "-Hlntup"], capture_output=True, text=True, check=True).stdout.splitlines()
    ours = [line.split()[4] for line in lines if {int(pid) for pid in re.findall(r"pid=(\d+)", line)} & pids]
    return sorted((address.rpartition(":")[0], int(address.rpartition(":")[2])) for address in ours)
