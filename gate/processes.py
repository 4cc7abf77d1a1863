#!/usr/bin/env python3
"""Finds, watches and ends the processes of a gate run: all descendants of the wrap script, which adopts orphans.

`stop` ends them all: TERM, time to end, KILL; exit code 1 if some are left. `watch` puts the wrap script into a cgroup
of its own, where that can be, and prints the pid of a watcher that outlives it: it wakes the wrap script with SIGUSR1
at the deadline, also a stopped one, and ends the run if the wrap script was killed or has not ended long after the end.
It holds the lock of the machine, which one run changes at a time: exit code 75 if another run has it.
SIGTERM ends the watcher, and the cgroup. Times are seconds of /proc/uptime. Needs Python 3.8, of it the smallest part.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pwd
import signal
import subprocess
import sys
import time
from typing import NamedTuple

LOOK_SECONDS = 0.5
LATE_SECONDS = 60.0  # after the end; then the wrap script is given up
KILL_SECONDS = 10.0
HALT_SECONDS = 2.0
LEAVE_SECONDS = 4.0
EXIT_BUSY = 75
UNITS = "devstack@*"  # what systemd runs for devstack
MARK = b"GATE_MARK="  # variable with the run's folder


class Process(NamedTuple):
    """The fields of /proc/PID/stat that we need."""

    pid: int
    state: str
    parent: int
    group: int
    session: int
    started: int  # ticks since the machine's start

    @property
    def alive(self) -> bool:
        """Return whether the process still runs."""
        return self.state not in "ZX"


def read_process(pid: int) -> Process | None:
    """Return a process, or None if there is none with that pid."""
    fields = read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    if not fields:
        return None
    return Process(pid, fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[19]))


def read_file(path: str) -> bytes:
    """Return the content of a file of /proc or of a cgroup; b"" if it cannot be read."""
    try:
        with open(path, "rb") as file:  # runs thousands of times
            return file.read()
    except OSError:
        return b""


def user_ids(pid: int) -> set[int]:
    """Return the real and the effective user id of a process; none if it is gone."""
    lines = [line for line in read_file(f"/proc/{pid}/status").splitlines() if line.startswith(b"Uid:")]
    return {int(word) for line in lines for word in line.split()[1:3]}


class Cgroup:
    """The run's own cgroup, below the one in which its wrap script was started."""

    def __init__(self, run: Process) -> None:
        self._name = f"devstack-gate-{run.pid}-{run.started}"
        self._folder = ""  # empty if the machine has no cgroups v2 that we may change
        lines = read_file(f"/proc/{run.pid}/cgroup").decode(errors="replace").splitlines()
        path = next((line[3:] for line in lines if line.startswith("0::/")), "")
        mounts = [line.split() for line in read_file("/proc/self/mountinfo").decode(errors="replace").splitlines()]
        points = [words[4] for words in mounts if words[words.index("-") + 1] == "cgroup2"]
        if path and points and ".." not in path:
            self._folder = points[0] + path.rstrip("/")

    def enter(self, run: Process) -> None:
        """Make the cgroup, and put the wrap script into it."""
        if not self._folder or self.there:
            return
        folder = f"{self._folder}/{self._name}"
        try:
            os.mkdir(folder)
            write_file(f"{folder}/cgroup.procs", str(run.pid))
        except OSError:
            self._folder = ""
        else:
            self._folder = folder

    @property
    def there(self) -> bool:
        """Return whether the run has a cgroup."""
        return self._folder.endswith("/" + self._name)

    def pids(self) -> set[int]:
        """Return the pids of all processes in the cgroup."""
        if not self.there:
            return set()
        folders = [folder for folder, _, _ in os.walk(self._folder)]
        return {int(word) for folder in folders for word in read_file(f"{folder}/cgroup.procs").split()}

    def kill(self) -> None:
        """Kill all processes in the cgroup at once, if the kernel can (from 5.14)."""
        if self.there and os.path.exists(f"{self._folder}/cgroup.kill"):
            write_file(f"{self._folder}/cgroup.kill", "1")

    def leave(self) -> None:
        """Move the processes to the cgroup above, and remove this one."""
        if not self.there:
            return
        above = os.path.dirname(self._folder)
        until = now() + LEAVE_SECONDS
        while os.path.isdir(self._folder) and now() < until:
            for pid in self.pids():
                try:
                    write_file(f"{above}/cgroup.procs", str(pid))
                except OSError:
                    continue  # the process has ended
            for folder, _, _ in os.walk(self._folder, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError:
                    time.sleep(0.05)  # a process in it has just started, or is ending


def write_file(path: str, text: str) -> None:
    """Write to one of the kernel's files."""
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


class Family:
    """The processes of a run: those in its cgroup, and those whose parent, group or session is the run's."""

    def __init__(self, run: Process, cgroup: Cgroup, user: str, mark: str, skip: set[int]) -> None:
        self.run = run
        self.cgroup = cgroup
        self._user = user  # every process of this user is the run's
        self._mark = MARK + os.fsencode(mark) + b"\0" if mark else b""
        self._skip = skip  # these and their descendants are not the run's
        self._own_user = user_ids(run.pid)
        self._seen: dict[int, Process] = {}
        self._members: set[int] = set()
        self.look()

    def look(self) -> None:
        """Update the list of processes. A process that was once the run's stays the run's."""
        there = {int(name) for name in os.listdir("/proc") if name.isdecimal()}
        self._seen = {pid: process for pid, process in self._seen.items() if pid in there}
        self._members &= there
        self._skip &= there
        fresh = sorted(self._read_with_parents(there - set(self._seen)), key=lambda one: (one.started, one.pid))
        self._seen.update((process.pid, process) for process in fresh)
        groups = self._groups()
        found = True
        while found:
            found = False
            for process in fresh:
                if self._is_new_member(process, groups):
                    self._members.add(process.pid)
                    groups |= {process.group, process.session} - {self.run.group, self.run.session}
                    found = True

    def _read_with_parents(self, pids: set[int]) -> list[Process]:
        """Return processes and their new parents. A parent that ends meanwhile leaves its child to another."""
        read: dict[int, Process] = {}
        todo = sorted(pids, reverse=True)
        while todo:
            pid = todo.pop()
            before = read.pop(pid, None)
            process = read_process(pid)
            if not process:
                continue
            read[pid] = process
            parent = process.parent
            if parent and parent not in read and parent not in self._seen and (not before or before.parent != parent):
                todo += [pid, parent]
        return list(read.values())

    def _groups(self) -> set[int]:
        """Return the process groups and sessions of members now, without those of the wrap script."""
        for pid in self._members:
            process = read_process(pid)
            if process and process.started == self._seen[pid].started:
                self._seen[pid] = process
        members = [self._seen[pid] for pid in self._members]
        return {number for one in members for number in (one.group, one.session)} - {self.run.group, self.run.session}

    def _is_new_member(self, process: Process, groups: set[int]) -> bool:
        if process.pid in self._members or process.pid in self._skip or process.pid == self.run.pid:
            return False
        if process.parent in self._skip:
            self._skip.add(process.pid)
            return False
        return process.parent == self.run.pid or process.parent in self._members \
            or process.group in groups or process.session in groups

    def living(self) -> list[int]:
        """Return the pids of all living members, with those of the user whose processes are the run's."""
        self.look()
        pids = self._members | self.cgroup.pids() | self._of_user() | self._marked()
        processes = [read_process(pid) for pid in (pids & set(self._seen)) - self._skip - {self.run.pid}]
        now = [process for process in processes if process and process.alive]
        return [one.pid for one in now if one.started == self._seen[one.pid].started]

    def helpers(self) -> list[int]:
        """Return the pids of the wrap script's helpers, which share its process group; a test has groups of its own."""
        return [pid for pid in self._members if self._seen[pid].group == self.run.group]

    def _of_user(self) -> set[int]:
        try:
            wanted = pwd.getpwnam(self._user).pw_uid if self._user else -1
        except KeyError:
            return set()
        if wanted in self._own_user:
            return set()
        return {pid for pid in self._seen if wanted in user_ids(pid)}

    def _marked(self) -> set[int]:
        """Return the pids of those with the run's mark: some start so late that their parents are gone when we look."""
        if not self._mark:
            return set()
        return {pid for pid in self._seen if self._mark in read_file(f"/proc/{pid}/environ")}


def now() -> float:
    """Return the seconds since boot (monotonic)."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def send(number: int, *pids: int) -> None:
    """Send a signal to processes; some may be gone."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except (ProcessLookupError, PermissionError):
            continue


def stop(family: Family, grace: float) -> bool:
    """End all processes of a run, with `grace` seconds between TERM and KILL; return whether none is left."""
    if os.path.isdir("/run/systemd/system"):
        subprocess.run(["systemctl", "stop", "--no-block", UNITS], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                       stderr=subprocess.DEVNULL, check=False)
    pids = halt(family)
    send(signal.SIGTERM, *pids)
    send(signal.SIGCONT, *pids)
    until = now() + grace
    while (pids := family.living()) and now() < until:
        send(signal.SIGCONT, *pids)  # again: sudo stops itself if it sees that its command was stopped
        time.sleep(0.1)
    until = now() + KILL_SECONDS
    while (pids := halt(family)) and now() < until:
        send(signal.SIGKILL, *pids)
        if not read_process(family.run.pid):
            family.cgroup.kill()
        time.sleep(0.02)
    return not pids


def halt(family: Family) -> list[int]:
    """Stop all processes of a run, if they are not too many; return the pids of all that live.

    Signals go to one after the other. A loop whose child ends a moment before it would start another in between, which
    nothing links to the run.
    """
    until = now() + HALT_SECONDS
    halted: set[int] = set()
    while (pids := family.living()) and (fresh := set(pids) - halted) and now() < until:
        send(signal.SIGSTOP, *fresh)
        halted |= fresh
    return pids


def watch(family: Family, deadline: float, end: float) -> str:
    """Watch over a run; return only when its wrap script is dead, with the reason in words."""
    told = False
    while True:
        run = read_process(family.run.pid)
        if not run or not run.alive or run.started != family.run.started:
            return "the wrap script was killed"
        if now() >= deadline:
            if not told:
                send(signal.SIGUSR1, run.pid)
                told = True
            send(signal.SIGCONT, run.pid, *family.helpers())
        if now() >= end + LATE_SECONDS:
            send(signal.SIGKILL, run.pid)
            return "the time limit was reached, and the wrap script did not end"
        family.look()
        time.sleep(LOOK_SECONDS)


def take_lock(path: str, run: int) -> int:
    """Return the descriptor of the machine's lock with the run's pid in it, or -1 if this machine cannot have one.

    Raises BlockingIOError with the pid of another run if that holds the lock.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except OSError:
        return -1
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        other = os.read(file, 20).decode(errors="replace").strip()
        os.close(file)
        raise BlockingIOError(other) from None
    os.ftruncate(file, 0)
    os.write(file, f"{run}\n".encode())
    return file


def become_watcher(lock: int) -> None:
    """Become a process that no signal to the run's group or session reaches, and that keeps no file but its lock."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, max(lock, 3))
    os.closerange(max(lock, 2) + 1, 1024)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    try:
        write_file("/proc/self/oom_score_adj", "-1000")
    except OSError:
        return  # we are not root: the kernel may kill us when memory runs out


def set_aside(logs: str) -> str:
    """Move logs that nobody has cleaned out of the folder that Jenkins keeps; return what became of them, in words."""
    aside = f"{logs}-uncollected-{os.urandom(4).hex()}"
    try:
        os.mkdir(aside, 0o700)
        owner = os.lstat(logs)
        os.rename(logs, f"{aside}/logs")
        os.chown(aside, owner.st_uid, owner.st_gid)
        remove("-f", f"{aside}/logs/.room")
    except FileNotFoundError:
        return "there are no logs"
    except OSError as err:
        return f"logs/ may hold secrets and could not be moved: {err.strerror}"
    return f"the logs may hold secrets, and are in {aside}"


def remove(*words: str) -> None:
    """Run rm."""
    subprocess.run(["rm", *words], stdin=subprocess.DEVNULL, check=False)


def tell(logs: str, words: str) -> None:
    """Add a line to a log, unless that is a link; make the folder again, for the owner of the one above."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if not os.path.lexists(logs):
            owner = os.stat(os.path.dirname(logs))
            os.mkdir(logs, 0o755)
            os.chown(logs, owner.st_uid, owner.st_gid)
        file = os.open(f"{logs}/cleanup-host.txt", flags, 0o644)
    except OSError:
        return  # the folder above is gone
    os.write(file, f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {words}\n".encode())
    os.close(file)


def ancestors(end: int) -> set[int]:
    """Return this process and its parents up to the given one: they are ours, and no part of the run."""
    pids = set()
    process = read_process(os.getpid())
    while process and process.pid not in (end, 0, 1):
        pids.add(process.pid)
        process = read_process(process.parent)
    return pids


def parse(argv: list[str]) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stop", "watch"])
    parser.add_argument("--run", type=int, required=True, help="pid of the wrap script")
    parser.add_argument("--folder", default="", help="the run's own, which is GATE_MARK in its environment")
    parser.add_argument("--user", default="", help="all of whose processes are the run's")
    parser.add_argument("--grace", type=float, default=30.0, help="seconds between TERM and KILL")
    parser.add_argument("--skip", type=int, action="append", default=[], help="pid of what stays, with all below it")
    parser.add_argument("--deadline", type=float, default=0.0, help="when the wrap script is woken")
    parser.add_argument("--end", type=float, default=0.0, help="when it should have ended")
    parser.add_argument("--lock", default="", help="file that is locked while there is a watcher")
    parser.add_argument("--logs", default="", help="folder of the logs, which go if nobody cleans them")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Do what the command line says, and return an exit code."""
    options = parse(argv)
    run = read_process(options.run)
    if not run:
        print(f"--run: there is no process {options.run}", file=sys.stderr)
        return 2
    cgroup = Cgroup(run)
    if options.what == "stop":
        family = Family(run, cgroup, options.user, "", {*options.skip, *ancestors(run.pid)})
        return 0 if stop(family, options.grace) else 1
    try:
        lock = take_lock(options.lock, run.pid) if options.lock else -1
    except BlockingIOError as err:
        print(f"another run is under way on this machine, process {err}", file=sys.stderr)
        return EXIT_BUSY
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        cgroup.enter(run)
        become_watcher(lock)
        family = Family(run, cgroup, options.user, options.folder, ancestors(run.pid))
        why = watch(family, options.deadline, options.end)
        # At once: Jenkins keeps logs/ as soon as the wrap script is dead.
        became = set_aside(options.logs) if options.logs else ""
        stop(family, options.grace)
    finally:
        cgroup.leave()
    if options.folder:
        remove("-rf", "--", options.folder)
    if options.logs:
        tell(options.logs, f"{why}; everything was stopped; {became}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
