"""Set up the gate's workspace, 14 projects, without and with the clones that an image carries.

Ours is setup_workspace of devstack-vm-gate-wrap.sh, in a bash process of its own, with a change to one of the projects
on Zuul's server. A project has 20 MB of files, of which half cannot be compressed, 300 commits, four branches and ten
tags, on a git daemon on loopback; that is the mean, their sizes differ as OpenStack's do. Cold: there are no clones.
Cached: clones as image/steps.sh makes them, a day old, which is ten commits. The limit is the bare git commands in
workspace.sh, four projects at once as well: clone, or hard links and a fetch; a fetch from Zuul's server; checkout. It
looks for no other branch, tries nothing twice, has no time limits and believes whatever is in a cache. All read from
and write to the page cache; folders are new for each run.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import measure
from bench.measure import PROJECT, BenchError, Row, Usage, pairs
from tests.support.repos import ENVIRONMENT, git
from tests.support.sampleprojects import git_server

SCRIPT = Path(__file__).with_name("workspace.sh")
SIZES = {  # 1 is 20 MB, which is the mean
    "openstack/devstack": 0.2, "openstack/requirements": 0.2, "openstack/tempest": 0.8, "openstack/grenade": 0.1,
    "openstack/keystone": 1.0, "openstack/glance": 0.7, "openstack/placement": 0.3, "openstack/nova": 3.5,
    "openstack/neutron": 2.5, "openstack/cinder": 2.0, "openstack/swift": 0.8, "openstack/horizon": 1.5,
    "openstack/os-brick": 0.2, "openstack/os-vif": 0.2}
CHANGED, ZUUL_REF, SUBJECT = "openstack/keystone", "refs/zuul/master/Zbench", "The change under test"
TEXT_FILES, TEXT_LINES, DATA_FILES, DATA_BYTES = 800, 180, 100, 100_000
BRANCHES, TAGS = ("stable/one", "stable/two", "feature/three"), 10
BRANCH_COMMITS, NEW_COMMITS = 20, 10
HISTORY_BEGAN = 1_700_000_000  # the first commit's date


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for how big the projects are."""
    parser.add_argument("--megabytes", type=float, default=20.0, metavar="N", help="of a project, the mean (20)")
    parser.add_argument("--commits", type=int, default=300, metavar="N", help="on a project's master branch (300)")


def run(options: argparse.Namespace) -> list[Row]:
    """Return a row for each case."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name, \
            _bench(Path(name), options.megabytes / 20, options.commits) as bench:
        return [bench.measure(case, options.runs) for case in ("cold", "cached")]


@dataclass
class Bench:
    """The servers' addresses, and the home folders with and without clones."""

    folder: Path
    url: str

    def measure(self, case: str, runs: int) -> Row:
        """Return the row of a case; BenchError unless both ways end with the same commits."""
        row = Row(f"14 projects, {case}")
        cpu: dict[str, list[float]] = {"gate": [], case: []}

        def take(way: str) -> Usage:
            used = self.set_up(way, case)
            cpu[way].append(used.cpu_seconds)
            return used

        def ours() -> float:
            used = take("gate")
            if f"{CHANGED} master {self.commits('gate')[CHANGED][:7]}" not in used.output:
                raise BenchError(f"the change under test was not set up:\n{used.output}")
            row.peak_mb.append(used.peak_mb)
            return used.seconds

        def limit() -> float:
            used = take(case)
            if self.commits(case) != self.commits("gate"):
                raise BenchError("the limit has other commits")
            return used.seconds

        pairs(row, runs, ours, limit)
        row.more = {"CPU": statistics.median(cpu["gate"]), "CPU of the limit": statistics.median(cpu[case])}
        return row

    def set_up(self, way: str, case: str) -> Usage:
        """Set up the projects' code in a new folder that is named after the way."""
        folder = self.folder / way
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "workspace").mkdir(parents=True)
        os.sync()  # so that this run need not write what was written before
        return measure.run_process(["bash", SCRIPT, way], self.environment(way, case), folder)

    def environment(self, way: str, case: str) -> dict[str, str]:
        """Return the environment that the gate job gives its script, with no user's git settings."""
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.folder / f"home-{case}"), **ENVIRONMENT,
            "GIT_TERMINAL_PROMPT": "0", "WORKSPACE": str(self.folder / way / "workspace"),
            "BASE": str(self.folder / way), "GIT_BASE": f"{self.url}/base", "ZUUL_URL": f"{self.url}/zuul",
            "DEVSTACK_GATE_PROJECTS": " ".join(SIZES), "ZUUL_PROJECT": CHANGED, "ZUUL_BRANCH": "master",
            "ZUUL_REF": ZUUL_REF}

    def commits(self, way: str) -> dict[str, str]:
        """Return {project: the commit that is checked out}; BenchError if a checkout differs from its commit."""
        found = {}
        for project in SIZES:
            tree = self.folder / way / "new" / project.rpartition("/")[2]
            if git(tree, "status", "--porcelain"):
                raise BenchError(f"{tree}: not as it was committed")
            found[project] = git(tree, "rev-parse", "HEAD")
        return found


@contextmanager
def _bench(folder: Path, scale: float, commits: int) -> Iterator[Bench]:
    """Run the servers, with clones beside them that are a day old."""
    homes = [folder / "home-cold", folder / "home-cached"]
    for home in homes:
        home.mkdir()
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(_make, [folder / "git/base" / project for project in SIZES],
                         [size * scale for size in SIZES.values()], [commits] * len(SIZES)))
    (folder / "git/zuul").symlink_to("base")  # another address, so another fetch
    with git_server(folder / "git") as url:
        bench = Bench(folder, url)
        measure.run_process(["bash", PROJECT / "image/steps.sh", "clone_projects", f"{url}/base"],
                            bench.environment("clone", "cached"), homes[1], stdin="\n".join(SIZES))
        for project in SIZES:
            _import(folder / "git/base" / project, _day(commits))
        _import(folder / "git/base" / CHANGED, [_commit(ZUUL_REF, SUBJECT, commits + NEW_COMMITS, "refs/heads/master")])
        yield bench


# --- repositories ---


def _make(folder: Path, size: float, commits: int) -> None:
    """Make a server's repository with a given size."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q", "--bare", "-b", "master")
    _import(folder, _history(random.Random(folder.name), size, commits))
    git(folder, "repack", "-q", "-a", "-d", "--write-bitmap-index")


def _import(folder: Path, stream: Iterable[bytes]) -> None:
    with subprocess.Popen(["git", "-C", folder, "fast-import", "--quiet"], stdin=subprocess.PIPE) as process:
        assert process.stdin
        for part in stream:
            process.stdin.write(part)
    if process.returncode:
        raise BenchError(f"git fast-import: exit code {process.returncode}")


def _history(source: random.Random, size: float, commits: int) -> Iterator[bytes]:
    """Yield all commits except those of the last day, in the format of git fast-import."""
    words = [f"word{number}" for number in range(2000)]
    lines = [" ".join(source.choices(words, k=9)) for _ in range(5000)]
    yield _commit("refs/heads/master", "All files", 0)
    for number in range(round(size * DATA_FILES)):
        yield _file(f"data/{number}", source.randbytes(DATA_BYTES))
    for number in range(round(size * TEXT_FILES)):
        yield _file(f"module{number % 40}/{number}.py", "\n".join(source.choices(lines, k=TEXT_LINES)).encode())
    for number in range(1, commits):
        yield _commit("refs/heads/master", f"Change {number}", number)
        yield _file(f"module{number % 40}/{number}.py", "\n".join(source.choices(lines, k=TEXT_LINES)).encode())
        if (number + 1) % (commits // TAGS) == 0:
            yield f"reset refs/tags/{number}\nfrom refs/heads/master\n\n".encode()
    for branch in BRANCHES:
        yield f"reset refs/heads/{branch}\nfrom refs/heads/master\n\n".encode()
        for number in range(BRANCH_COMMITS):
            yield _commit(f"refs/heads/{branch}", f"Change {number} of {branch}", number)
            yield _file(f"module{number}/{branch}.py", "\n".join(source.choices(lines, k=TEXT_LINES)).encode())


def _day(commits: int) -> Iterator[bytes]:
    """Yield the commits of one day."""
    for number in range(commits, commits + NEW_COMMITS):
        parent = "refs/heads/master^0" if number == commits else ""  # git knows the parents of later ones
        yield _commit("refs/heads/master", f"Change {number}", number, parent)
        yield _file(f"module{number % 40}/{number}.py", f"changed in {number}\n".encode())


def _commit(ref: str, subject: str, number: int, parent: str = "") -> bytes:
    date = HISTORY_BEGAN + 3600 * number
    return (f"commit {ref}\ncommitter a <a@localhost> {date} +0000\ndata {len(subject)}\n{subject}\n"
            + f"from {parent}\n" * bool(parent)).encode()


def _file(path: str, content: bytes) -> bytes:
    return f"M 644 inline {path}\ndata {len(content)}\n".encode() + content + b"\n"
