#!/usr/bin/env python3
"""Collect what a run leaves for people and machines to read; devstack-vm-gate-wrap.sh calls this at the end, as root.

    collectlogs.py run < RECORDS     logs/ of a run: its own files, devstack's, services', the journal, results of
                                     tests, known failures, reproduce.sh, verdict.json
    collectlogs.py failed BASE SINCE print how many tests failed since a Unix time, "" for any; nothing if none did
    collectlogs.py tidy FROM TO      tidy a folder that comes from elsewhere: copy it to a new folder

Everything is copied, in one pass and without secrets, into a fresh folder that nobody else can write to, which takes
the place of logs/ at the end: whatever the test left there, or still writes there, is only read. This follows no link
out of its folder, reads files only, nothing that is mounted, and no more of a file than it had when it was opened.
Number and size of all files are limited, and so is the time: when that is over, the files copied so far take the place
of logs/. Large files are compressed. RECORDS: kind, name and text, each ended by a NUL.

Exit code: 0; 1 there is no logs/verdict.json.
Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import fcntl
import heapq
import os
import pwd
import re
import signal
import stat
import subprocess
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import knownfailures
from console import printable
from hidesecrets import Hider, left_out, values_given, write_all
from reproduce import reproduce
from testresults import MAX_TESTS, Test, junit, read_results
from verdict import text_of, verdict, written

LARGE = 1 << 20  # bytes; larger files are compressed
BLOCK = 1 << 18  # bytes that are read at once
MAX_RAW = 1 << 30  # bytes of one file; of a larger one the end is kept
MAX_SEEN = 300_000  # entries of folders that are looked at
MAX_DEPTH = 30  # folders in folders
MAX_NAME = 200  # bytes of a name
MAX_UNITS = 200  # of devstack, in the journal
MAX_STREAMS = 10  # of test results
COMMAND_SECONDS = 60  # for one command that prints something for the logs
RESERVE_SECONDS = 2  # of the time, for what comes after copying
SEARCH_SHARE = 4  # a quarter of the time is for known failures
SHOWN_TESTS = 10  # failed tests on the console
PACKED = (".gz", ".tgz", ".xz", ".bz2", ".zip", ".lzma", ".zst", ".whl", ".jar", ".png", ".jpg", ".qcow2")
# How files begin that are compressed in ways that Python 3.8 has no module for: zstd (and its frames to be skipped,
# which lz4 has, too), lz4 (also the old form), lzip, lzop, 7z, rar, compress, snappy, git's packs.
UNREADABLE = (
    b"\x28\xb5\x2f\xfd",
    *(bytes([number]) + b"\x2a\x4d\x18" for number in range(0x50, 0x60)),
    b"\x04\x22\x4d\x18",
    b"\x02\x21\x4c\x18",
    b"LZIP\1",
    b"\x89LZO\0",
    b"7z\xbc\xaf\x27\x1c",
    b"Rar!\x1a\7",
    b"\x1f\x9d",
    b"\xff\6\0\0sNaPpY",
    b"PACK\0\0\0",
)
NOT_PACKED = ("tempest-results.xml", "cleanup-host.txt")  # Jenkins and people want these uncompressed
REPOSITORIES = (".stestr", ".testrepository")
LAST_FILES = ("verdict.json", "reproduce.sh")
DEVSTACK_LOGS = ("new/devstacklog.txt", "logs/devstacklog.txt", "logs/stack.sh.log")
SETTINGS_FILES = ("local.conf", "localrc", ".localrc.auto", ".localrc.password")
FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_IMMUTABLE_OR_APPEND = 0x80086601, 0x40086602, 0x30


class TooMuchError(Exception):
    """There is more than may be kept."""


class OverError(Exception):
    """The time is up."""


class UnreadableError(Exception):
    """A compressed file holds what cannot be looked into."""


# --- reading what is not to be trusted ---


class Entry(NamedTuple):
    """A file or link in a folder: its path below that, and its kind."""

    path: str
    kind: str  # file or link
    size: int  # of a link: the size of its target


class Tree:
    """A folder that others write to; only files that are really in it are read."""

    def __init__(self, folder: str) -> None:
        self._descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        self.real = os.readlink(f"/proc/self/fd/{self._descriptor}")
        self._mount = mount_of(self._descriptor)

    def close(self) -> None:
        """Close the folder."""
        os.close(self._descriptor)

    def entries(self, seen: list[int]) -> Iterator[Entry]:
        """Yield files and links in it, down to MAX_DEPTH; count in `seen` the entries that it looks at."""
        yield from self._entries(self._descriptor, "", 0, seen)

    def _entries(self, descriptor: int, path: str, depth: int, seen: list[int]) -> Iterator[Entry]:
        folders = []
        with os.scandir(descriptor) as listing:
            for one in listing:
                seen[0] += 1
                if seen[0] > MAX_SEEN:
                    return
                with contextlib.suppress(OSError):
                    info = one.stat(follow_symlinks=False)
                    name = f"{path}/{one.name}" if path else one.name
                    if stat.S_ISDIR(info.st_mode):
                        folders.append((one.name, name))
                    elif stat.S_ISREG(info.st_mode):
                        yield Entry(name, "file", info.st_size)
                    elif stat.S_ISLNK(info.st_mode):
                        yield Entry(name, "link", one.stat().st_size)
        for entry, name in folders if depth < MAX_DEPTH else []:
            try:
                inner = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            except OSError:
                continue
            try:
                if mount_of(inner) == self._mount:
                    yield from self._entries(inner, name, depth + 1, seen)
            except OSError:
                continue
            finally:
                os.close(inner)

    def open(self, path: str) -> BinaryIO | None:
        """Open a file or a link's target; None if that is outside of the folder, mounted or not a file.

        It checks the file before it opens it, so that it never waits for the other end of a pipe.
        """
        looked = os.open(f"{self.real}/{path}", os.O_PATH | os.O_CLOEXEC)  # follows links; the target is checked next
        try:
            real = os.readlink(f"/proc/self/fd/{looked}")
            if (
                not real.startswith(self.real + "/")
                or not stat.S_ISREG(os.fstat(looked).st_mode)
                or mount_of(looked) != self._mount
            ):
                return None
            return os.fdopen(
                os.open(f"/proc/self/fd/{looked}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb"
            )
        finally:
            os.close(looked)


def mount_of(descriptor: int) -> str:
    """Return the kernel's number of the mount that an open file is on; bind mounts of one disk differ in it."""
    with open(f"/proc/self/fdinfo/{descriptor}") as info:  # of /proc
        for line in info:
            if line.startswith("mnt_id:"):
                return line
    return ""


# --- writing ---


class Limits:
    """How much may be kept, and until when."""

    def __init__(self, bytes_left: int, files_left: int, until: float) -> None:
        self.bytes_left, self.files_left, self.until = bytes_left, files_left, until

    def check(self) -> None:
        """Raise OverError if the time is up."""
        if time.monotonic() > self.until:
            raise OverError


class Output:
    """A file of the new logs: plain while it is small, compressed once it is large."""

    def __init__(self, path: str, owner: tuple[int, int], limits: Limits, pack: bool) -> None:
        self.path, self._owner, self._limits, self._pack = path, owner, limits, pack
        self._begin: bytes | None = b""
        self._descriptor = -1
        self._packer: Any = None
        self._size = 0

    def write(self, data: bytes) -> None:
        """Add data; raise TooMuchError if there is no room for it within the limits."""
        if self._begin is not None:
            self._begin += data
            if len(self._begin) <= LARGE:
                return
            data, self._begin = self._begin, None
            if self._pack:
                self.path += ".gz"
                self._packer = zlib.compressobj(6, zlib.DEFLATED, 31)
        self._put(self._packer.compress(data) if self._packer else data)

    def _put(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limits.bytes_left:
            raise TooMuchError
        if self._descriptor < 0:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._descriptor = os.open(self.path, flags, 0o644)
            os.fchmod(self._descriptor, 0o644)
            os.fchown(self._descriptor, *self._owner)
        write_all(self._descriptor, data)

    def close(self) -> None:
        """Write the rest, and count the file."""
        if self._begin is not None:
            data, self._begin = self._begin, None
            self._put(data)
        elif self._packer:
            self._put(self._packer.flush())
        self._limits.bytes_left -= self._size
        self._limits.files_left -= 1
        self._shut()

    def drop(self) -> None:
        """Remove the file."""
        if self._descriptor >= 0:
            os.unlink(self.path)  # the name may hold any bytes
        self._shut()

    def _shut(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Wanted(NamedTuple):
    """A file to be copied: in which order, from where, to where."""

    rank: int
    entry: Entry
    tree: Tree
    to: str
    own: bool = False


class Collector:
    """Copies into the fresh folder."""

    def __init__(self, folder: str, owner: tuple[int, int], hider: Hider, limits: Limits) -> None:
        self.folder, self.owner, self.hider, self.limits = folder, owner, hider, limits
        self.said: list[str] = []  # for the console
        # The names in use, each by a file or a folder. Those of the files that are written last are reserved.
        self._taken: dict[str, str] = dict.fromkeys(LAST_FILES, "file")
        self._copied: dict[tuple[int, int], str] = {}
        self._left: dict[str, list[int]] = {}

    # Names and places.

    def place(self, name: str) -> str:
        """Return an unused path in plain characters, without secrets, for a file of this name; make its folders."""
        name = self.hider.hide(name.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
        parts = [plain_name(part) for part in name.split("/") if part not in ("", ".", "..")] or ["_"]
        folder = ""
        for part in parts[:-1]:
            while True:
                path = f"{folder}/{part}" if folder else part
                if self._taken.setdefault(path, "folder") == "folder":
                    break
                part = f"_{part}"  # noqa: PLW2901  # a file has the name
            folder = path
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.folder}/{folder}", 0o755)  # the name may hold any bytes
                os.chown(f"{self.folder}/{folder}", *self.owner)
        last = parts[-1]
        while True:
            path = f"{folder}/{last}" if folder else last
            plain = path[:-3] if path.endswith(".gz") else path
            if not {path, plain, f"{plain}.gz"} & self._taken.keys():
                self._taken[path] = "file"
                return path
            last = f"_{last}"

    def output(self, name: str, *, pack: bool = True) -> Output:
        """Return a new file of this name; raise TooMuchError if there are as many files as may be."""
        self.limits.check()
        if self.limits.files_left <= 0:
            raise TooMuchError
        path = self.place(name)
        return Output(
            f"{self.folder}/{path}", self.owner, self.limits, pack and not path.endswith((*PACKED, *NOT_PACKED))
        )

    def put(self, name: str, pieces: Iterator[bytes] | Sequence[bytes], *, pack: bool = True) -> str:
        """Write a file of ours from pieces; return its path, or "" if it could not be written whole."""
        try:
            output = self.output(name, pack=pack)
        except TooMuchError:
            self.leave("more files than the limit", 0)
            return ""
        try:
            for piece in pieces:
                self.limits.check()
                output.write(piece)
            output.close()
        except (TooMuchError, OSError) as err:
            output.drop()
            why = (
                "more than the limit of all logs"
                if isinstance(err, TooMuchError)
                else err.strerror or "cannot be written"
            )
            self.said.append(f"Dropped {printable(name)}: {why}.")
            return ""
        except OverError:
            output.drop()
            raise
        return output.path[len(self.folder) + 1 :]

    def leave(self, why: str, size: int) -> None:
        """Count a file that is left out, for one line at the end."""
        count = self._left.setdefault(why, [0, 0])
        count[0] += 1
        count[1] += size

    def tell(self) -> None:
        """Say how much was left out."""
        for why, (number, size) in self._left.items():
            self.said.append(f"Left out {number} files ({size >> 10} KB): {why}.")

    # Files that others wrote.

    def copy(self, wanted: Wanted) -> None:
        """Copy one file, unless it was copied before."""
        self.limits.check()
        if self.limits.files_left <= 0:
            self.leave("more files than the limit", wanted.entry.size)
            return
        try:
            file = wanted.tree.open(wanted.entry.path)
        except OSError as err:
            if err.errno not in (errno.ENOENT, errno.ELOOP):
                self.leave(f"cannot be read: {err.strerror}", 0)
            return
        if not file:
            self.leave("links out of the logs, or not regular files", 0)
            return
        with file:
            info = os.fstat(file.fileno())
            identity = (info.st_dev, info.st_ino)
            try:
                if identity in self._copied:
                    if wanted.own and wanted.entry.kind == "link":
                        self._link(wanted.to, self._copied[identity])
                    return
                path = self._write(wanted.to, file, info.st_size)
            except OSError as err:  # such as a path that is too long in the new folder
                self.leave(f"cannot be copied: {err.strerror}", info.st_size)
                return
            if path:
                self._copied[identity] = path

    def _link(self, name: str, to: str) -> None:
        path = self.place(name + (".gz" if to.endswith(".gz") and not name.endswith(".gz") else ""))
        os.symlink(os.path.relpath(to, os.path.dirname(path) or "."), f"{self.folder}/{path}")
        self.limits.files_left -= 1

    def _write(self, name: str, file: BinaryIO, size: int) -> str:
        first = file.read(BLOCK)
        pieces = self._pieces(file, first, size)
        try:
            output = self.output(name)
        except TooMuchError:
            self.leave("more files than the limit", size)
            return ""
        try:
            packed = unpacked(first)
            if packed:
                try:
                    secret = self._has_secret(packed(file)) or self._has_secret(self._raw(file, size))
                except UnreadableError:
                    self.leave("compressed in a way that cannot be looked into", size)
                    return ""
                except ValueError:  # it only begins like a compressed one
                    file.seek(len(first))
                else:
                    if secret:
                        self.leave("compressed, with secrets in them", size)
                        return ""
                    pieces = self._raw(file, size)
            for piece in pieces:
                self.limits.check()
                output.write(piece)
            output.close()
        except TooMuchError:
            output.drop()
            self.said.append(f"Dropped {printable(name)} ({size >> 10} KB): more than the limit of all logs.")
            return ""
        except OverError:
            output.drop()
            raise
        except OSError as err:
            output.drop()
            self.leave(f"cannot be copied: {err.strerror}", size)
            return ""
        return output.path[len(self.folder) + 1 :]

    def _pieces(self, file: BinaryIO, first: bytes, size: int) -> Iterator[bytes]:
        """Yield the content that the file had when it was opened, without secrets."""
        binary = b"\0" in first
        if size > MAX_RAW:
            yield f"[the first {size - MAX_RAW} bytes are left out]\n".encode()
            file.seek(size - MAX_RAW)
            first, size = b"", MAX_RAW
        left = size
        while left > 0:
            chunk = (first or file.read(BLOCK))[:left]
            first = b""
            if not chunk:
                break
            left -= len(chunk)
            yield self.hider.feed(chunk, same_length=binary)
        yield self.hider.feed(b"", end=True, same_length=binary)

    def _raw(self, file: BinaryIO, size: int) -> Iterator[bytes]:
        file.seek(0)
        left = size
        while left > 0:
            chunk = file.read(min(BLOCK, left))
            if not chunk:
                return
            left -= len(chunk)
            yield chunk

    def _has_secret(self, chunks: Iterator[bytes]) -> bool:
        """Return whether compressed content holds a secret.

        Raises UnreadableError if only a part of it can be looked into, ValueError if nothing of it is compressed.
        """
        before, total = b"", 0
        try:
            for chunk in chunks:
                self.limits.check()
                total += len(chunk)
                if self.hider.knows(before + chunk):
                    return True
                if total > MAX_RAW:
                    raise UnreadableError
                before = chunk[-4096:]
        except ImportError as err:
            raise UnreadableError from err
        except (OSError, EOFError, ValueError, RuntimeError, NotImplementedError, zlib.error) as err:
            # Other programs may read more of a damaged file.
            raise (UnreadableError if total else ValueError) from err
        return False


def plain_name(name: str) -> str:
    """Return a name without blanks, colons and unprintable characters, not too long, and not like an option."""
    name = "".join(char if char.isprintable() and char not in ' \t:\\*?"<>|' else "_" for char in name)
    while len(name.encode()) > MAX_NAME:
        stem, dot, end = name.rpartition(".")
        name = f"{stem[:-1]}{dot}{end}" if stem and len(end) < 20 else name[:-1]  # noqa: PLR2004  # an extension
    return f"_{name}" if name.startswith("-") else name


def unpacked(first: bytes) -> Callable[[BinaryIO], Iterator[bytes]] | None:
    """Return a function that decompresses a file that begins like this; None if it is not compressed.

    Of what Python cannot decompress the function raises UnreadableError.
    """
    for magic, read in (
        (b"\x1f\x8b", _of_zlib),
        (b"\xfd7zXZ\0", _of_xz),
        (b"]\0\0", _of_xz),  # .lzma
        (b"BZh", _of_bzip2),
        (b"PK\3\4", _members),
        *((one, _of_others) for one in UNREADABLE),
    ):
        if first.startswith(magic):
            return read
    return _of_zlib if begins_zlib(first) else None


def begins_zlib(first: bytes) -> bool:
    """Return whether a file that begins like this is a zlib stream; text may have the same two bytes."""
    if first[:1] != b"x" or int.from_bytes(first[:2], "big") % 31:
        return False
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(first, BLOCK)
    except zlib.error:
        return False
    return unpacker.eof or len(first) > 100  # noqa: PLR2004  # bytes, of which text has some that no stream has


def _of_others(_file: BinaryIO) -> Iterator[bytes]:
    raise UnreadableError


def _of_zlib(file: BinaryIO) -> Iterator[bytes]:
    file.seek(0)
    rest = file.read(BLOCK)
    while rest:
        unpacker = zlib.decompressobj(47)  # gzip's header, or zlib's
        while rest and not unpacker.eof:
            yield unpacker.decompress(rest, BLOCK)
            rest = unpacker.unconsumed_tail or unpacker.unused_data or file.read(BLOCK)
        if unpacker.eof:
            rest = rest.lstrip(b"\0") or file.read(BLOCK)
            if not rest.startswith(b"\x1f\x8b"):
                return


def _of_xz(file: BinaryIO) -> Iterator[bytes]:
    import lzma  # not every Python has it

    try:
        with lzma.LZMAFile(_rewound(file)) as unpacked_file:
            yield from _chunks(unpacked_file)
    except lzma.LZMAError as err:
        raise ValueError(str(err)) from err


def _of_bzip2(file: BinaryIO) -> Iterator[bytes]:
    import bz2  # not every Python has it

    with bz2.BZ2File(_rewound(file)) as unpacked_file:
        yield from _chunks(unpacked_file)


def _rewound(file: BinaryIO) -> BinaryIO:
    file.seek(0)
    return file


def _chunks(file: Any) -> Iterator[bytes]:
    while True:
        chunk = file.read(BLOCK)
        if not chunk:
            return
        yield chunk


def _members(file: BinaryIO) -> Iterator[bytes]:
    import zipfile  # rare

    try:
        with zipfile.ZipFile(_rewound(file)) as archive:
            for one in archive.infolist():
                yield one.filename.encode("utf-8", "replace")
                with archive.open(one) as member:
                    yield from _chunks(member)
    except zipfile.BadZipFile as err:
        raise ValueError(str(err)) from err


# --- what belongs to a run's logs ---


class Run:
    """One run: what the wrap script tells about it, and what is collected."""

    def __init__(self, records: bytes) -> None:
        self.started = time.monotonic()
        fields = records.split(b"\0")
        triples = list(zip(fields[::3], fields[1::3], fields[2::3]))
        self.records = records
        self.settings = [(name.decode("utf-8", "replace"), text) for kind, name, text in triples if kind == b"setting"]
        self.functions = [
            (name.decode("utf-8", "replace"), text) for kind, name, text in triples if kind == b"function"
        ]
        self.facts = {
            name.decode(): text.decode("utf-8", "surrogateescape") for kind, name, text in triples if kind == b"fact"
        }
        self.logs, self.base = self.facts["logs"], self.facts["base"]
        self.owner = (int(self.facts["uid"]), int(self.facts["gid"]))
        self.until = self.started + float(self.facts["seconds"])
        make_again(os.path.dirname(self.logs), self.owner)
        self.folder = new_folder(os.path.dirname(self.logs) + "/.logs-new")
        self.results: dict[str, Any] = {}
        self.known: list[dict[str, Any]] = []
        self.said: list[str] = []
        self.hider = Hider(())

    # Stages, each in a process of its own that can be stopped; each sends what it finds line by line.

    def collect(self, send: Callable[[str, Any], None]) -> None:
        """Copy everything that belongs to the logs; first what matters most, and what is small."""
        until = self.until - RESERVE_SECONDS - self._seconds() / SEARCH_SHARE * bool(int(self.facts["status"]))
        limits = Limits(int(self.facts["cap_kb"]) << 10, int(self.facts["cap_files"]), until)
        collector = Collector(self.folder, self.owner, self.hider, limits)
        try:
            self._collect(collector, send)
        except OverError:
            collector.said.append("Not all logs could be collected in time.")
        collector.tell()
        send("said", collector.said)

    def _seconds(self) -> float:
        return self.until - self.started

    def _collect(self, collector: Collector, send: Callable[[str, Any], None]) -> None:
        wanted, large = self._wanted()
        # First the kinds with few files, then all others by size: if there is too much, the biggest are left out.
        for one in wanted:
            if one.rank == 0:
                collector.copy(one)
        self._settings(collector)
        collector.put("cleanup-host.txt", self._machine(), pack=False)
        self._results(collector, send)
        self._journal(collector)
        heap = [(one.entry.size, number, one) for number, one in enumerate(wanted) if one.rank]
        heapq.heapify(heap)
        while heap:
            collector.copy(heapq.heappop(heap)[2])
        if large:
            collector.said.append(f"Not looked at: all but the first {MAX_SEEN} files.")

    def _wanted(self) -> tuple[list[Wanted], bool]:
        wanted: list[Wanted] = []
        seen = [0]
        services = [(f"/var/log/{name}", name, 3) for name in self.facts["services"].split()]
        folders = [
            (self.logs, "", 0),
            (f"{self.base}/logs", "", 2),
            (f"{self.base}/new/logs", "", 2),
            (f"{self.base}/new/screen-logs", "", 2),
            (f"{self.base}/old/logs", "old", 2),
            (f"{self.base}/old/screen-logs", "old", 2),
            *services,
        ]
        wanted += self._single_files()
        for folder, to, rank in folders:
            try:
                tree = Tree(folder)
            except OSError:
                continue
            for entry in tree.entries(seen):
                name = (
                    entry.path if folder == self.logs or not entry.path.endswith(".log") else f"{entry.path[:-4]}.txt"
                )
                top = rank == 0 and "/" not in entry.path and entry.kind == "file"
                if top and entry.path in (*LAST_FILES, "cleanup-host.txt"):
                    continue  # ours, which are written again
                wanted.append(
                    Wanted(
                        0 if top and self._is_ours(entry.path) else max(rank, 1),
                        entry,
                        tree,
                        f"{to}/{name}" if to else name,
                        own=folder == self.logs,
                    )
                )
        # If a file has several names, devstack's links have the better ones; in logs/ the file itself has.
        wanted.sort(key=lambda one: (one.rank, one.entry.kind == ("link" if one.own else "file"), one.entry.size))
        return wanted, seen[0] > MAX_SEEN

    def _is_ours(self, name: str) -> bool:
        return bool(re.fullmatch(r"(?:setup-[\w-]+|devstack-vm-gate|[\w-]+_hook)\.txt", name))

    def _single_files(self) -> list[Wanted]:
        """Return the files outside of the folders of logs."""
        wanted = []
        devstack_log = next((name for name in DEVSTACK_LOGS if os.path.isfile(f"{self.base}/{name}")), DEVSTACK_LOGS[0])
        singles = [
            (devstack_log, "devstacklog.txt"),
            ("new/tempest/etc/tempest.conf", "tempest_conf.txt"),
            ("new/tempest/tempest.log", "tempest.txt"),
            ("new/grenade/localrc", "grenade/localrc.txt"),
            ("new/grenade/grenade.log", "grenade/grenade.txt"),
        ]
        if not os.path.isdir("/run/systemd/system"):
            singles += [("/var/log/syslog", "syslog.txt")]
        for path, to in singles:
            folder, _, name = path.rpartition("/") if path.startswith("/") else path.partition("/")
            folder = os.path.realpath(os.path.join(self.base, folder))  # BASE, or new in it, may be a link
            with contextlib.suppress(OSError):
                size = os.stat(f"{folder}/{name}").st_size
                wanted.append(Wanted(0, Entry(name, "file", size), Tree(folder), to))
        return wanted

    def _settings(self, collector: Collector) -> None:
        """Write devstack's settings without anything that sounds secret, known or not."""
        for side, to in (("new", "local_conf.txt"), ("old", "old/local_conf.txt")):
            for name in ("local.conf", "localrc"):
                text = read_small(f"{self.base}/{side}/devstack", name)
                if text:
                    collector.put(to, [left_out(collector.hider.hide(text), b"********")])
                    break

    def _machine(self) -> Iterator[bytes]:
        yield b"State of the machine\n"
        yield read_small(self.logs, "cleanup-host.txt")
        for command in (["df", "-h"], ["free", "-m"], ["ps", "-e", "-ww", "-o", "pid,ppid,user,rss,etime,args"]):
            yield self.hider.hide(b"".join(run_command(command, self._left())))

    def _left(self) -> float:
        return max(0.0, min(COMMAND_SECONDS, self.until - RESERVE_SECONDS - time.monotonic()))

    def _journal(self, collector: Collector) -> None:
        """Write syslog.txt, and a file for each of devstack's services if systemd runs them."""
        since = self.facts.get("journal_start", "")
        if not since.isdigit() or not os.path.isdir("/run/systemd/system"):
            return
        journal = ["journalctl", "--no-pager", "-o", "short-precise", "--since", f"@{since}"]
        listing = b"".join(
            run_command(["systemctl", "list-units", "--all", "--no-legend", "--plain", "devstack@*"], self._left())
        )
        units = re.findall(rb"^(devstack@([\w.:@\\-]{1,100})\.service)\b", listing, re.M)[:MAX_UNITS]
        for name, words in [
            ("syslog.txt", []),
            *((f"{name.decode()}.txt", ["-u", unit.decode()]) for unit, name in units),
        ]:
            collector.put(name, self._hidden(run_command([*journal, *words], self._left())))

    def _hidden(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        for chunk in chunks:
            yield self.hider.feed(chunk)
        yield self.hider.feed(b"", end=True)

    def _results(self, collector: Collector, send: Callable[[str, Any], None]) -> None:
        """Write tempest's results as JUnit XML for Jenkins, and as HTML if the tool for that is installed."""
        tempest = f"{self.base}/new/tempest"
        if not any(os.path.isdir(f"{tempest}/{name}") for name in REPOSITORIES):
            return
        work = new_folder("/tmp/devstack-gate")
        try:
            owner = os.stat(tempest)
            os.chown(work, owner.st_uid, owner.st_gid)
            streams = streams_of(tempest, self.facts.get("journal_start", ""))
            tests = [test for stream in streams[:-1] for test in read_results(stream.file)]
            with self._stream(tempest, work, owner.st_uid, streams[-1] if streams else None) as stream:
                tests = [*tests, *read_results(stream)][:MAX_TESTS]
                send("results", summary(tests, self.hider))
                empty = not tests and not os.fstat(stream.fileno()).st_size
            if empty:
                return
            written_to = (
                collector.put("tempest-results.xml", junit(tests, self.hider.hide), pack=False) if tests else ""
            )
            if not written_to:
                collector.said.append(
                    "There are test results, but no JUnit XML could be written from them"
                    + ("." if tests else ": none of them could be read.")
                )
            html = self._html(tempest, work, owner.st_uid)
            if html:
                collector.put("tempest-results.html", [self.hider.hide(html)])
        except OSError as err:
            collector.said.append(f"There are results of tests that cannot be read: {err.strerror}.")
        finally:
            remove(work, self.until)

    def _stream(self, tempest: str, work: str, user: int, newest: Stream | None) -> BinaryIO:
        """Return the last results: from the tools' output, which is kept in `work`, or from the repository.

        A run that was cut short leaves a stream in the repository that no tool shows.
        """
        printed = b""
        if newest is None or not newest.name.startswith("tmp"):
            for name in ("stestr", "testr"):
                tool = self._tool(tempest, name)
                if tool and not printed:
                    printed = b"".join(
                        run_command(
                            [tool, "last", "--subunit"], self._left(), user=user, folder=tempest, most=MAX_RAW >> 2
                        )
                    )
        with open(f"{work}/stream", "wb") as copy:
            copy.write(printed)
        if not printed and newest:
            return newest.file
        return open(f"{work}/stream", "rb")

    def _tool(self, tempest: str, name: str) -> str:
        """Return a tool that came with the tests, or was there before; "" if there is none."""
        folders = [f"{tempest}/.tox/tempest/bin", f"{self.base}/data/venv/bin", *os.get_exec_path()]
        return next((f"{folder}/{name}" for folder in folders if os.access(f"{folder}/{name}", os.X_OK)), "")

    def _html(self, tempest: str, work: str, user: int) -> bytes:
        """Return the HTML that subunit2html makes of the tools' output, run as the user of the tests."""
        tool = self._tool(tempest, "subunit2html")
        if not tool or not os.path.getsize(f"{work}/stream"):
            return b""
        b"".join(run_command([tool, f"{work}/stream", f"{work}/html"], self._left(), user=user))
        return read_small(work, "html", MAX_RAW >> 4)

    def search(self, send: Callable[[str, Any], None]) -> None:
        """Look for known failures."""
        for one in knownfailures.search(
            ast.literal_eval(self.facts["known"]), self.folder, self.until - RESERVE_SECONDS / 2
        ):
            send("known", one)

    def note(self, name: str, value: Any) -> None:
        """Store what a stage has sent."""
        if name == "said":
            self.said += value
        elif name == "results":
            self.results = value
        elif name == "known":
            self.known.append(value)

    # The end, which runs in any case.

    def finish(self) -> None:
        """Write reproduce.sh and verdict.json; put the new folder in the place of logs/."""
        seconds = time.monotonic() - self.started
        minutes = self.facts.get("minutes", "")
        self.facts["minutes"] = (
            f"{minutes}{', ' if minutes else ''}cleanup-host {int(seconds) // 60}.{int(seconds) % 60 // 6}"
        )
        node = dict(line.partition("=")[::2] for line in self.facts.get("node", "").splitlines())
        settings = {name: value.decode("utf-8", "replace") for name, value in self.settings}
        script = reproduce(
            [one for one in self.settings if one[0] not in ("WORKSPACE", "DEVSTACK_GATE_THIS_HOST")],
            self.functions,
            settings.get("WORKSPACE", os.path.dirname(self.logs)),
            self.facts["gate"],
            self.facts.get("tested", "").encode("utf-8", "surrogateescape"),
        )
        content = verdict(self.facts, node, change_of(settings, self.facts), self.results, self.known)
        limits = Limits(1 << 30, 2, time.monotonic() + COMMAND_SECONDS)
        for name, data, mode in (
            ("reproduce.sh", self.hider.hide(script), 0o755),
            ("verdict.json", self._hidden_json(content), 0o644),
        ):
            path = f"{self.folder}/{name}"
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # one that a hook wrote
            while not self._written(path, data, limits):
                pass
            os.chmod(path, mode)
        os.chown(self.folder, *self.owner)
        os.chmod(self.folder, 0o755)
        take_place(self.folder, self.logs, self.until)

    def _written(self, path: str, data: bytes, limits: Limits) -> bool:
        """Write one of the last files; on a full disk, make room for it and return False."""
        output = Output(path, self.owner, limits, False)
        try:
            output.write(data)
            output.close()
        except OSError as err:
            output.drop()
            if err.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._make_room():
                raise
            return False
        return True

    def _make_room(self) -> bool:
        """Remove the folder that ours replaces or, once that is gone, the largest log; return whether there was one."""
        if os.path.isdir(self.logs) and not os.path.islink(self.logs):
            unmount(self.logs)
            with contextlib.suppress(OSError):
                remove(self.logs, self.until)
                return True
        largest = largest_file(self.folder, LAST_FILES)
        if not largest:
            return False
        os.unlink(largest)
        self.said.append(f"Dropped {printable(largest[len(self.folder) + 1 :])}: the disk is full.")
        return True

    def _hidden_json(self, content: Mapping[str, Any]) -> bytes:
        """Return the verdict without secrets: they are hidden in its texts, so that it stays JSON."""

        def hide(value: Any) -> Any:
            if isinstance(value, str):
                return self.hider.hide(value.encode()).decode("utf-8", "replace")
            if isinstance(value, list):
                return [hide(one) for one in value]
            return {key: hide(one) for key, one in value.items()} if isinstance(value, dict) else value

        return written(hide(content))

    def show(self) -> None:
        """Print what was left out, which tests failed, and which known failures were found."""
        lines = list(self.said)
        if self.results.get("failed"):
            lines.append(f"{self.results['failed']} of {self.results['run']} tests failed:")
            names = self.results["names"]
            lines += [f"  {name}" for name in names[:SHOWN_TESTS]]
            if self.results["failed"] > SHOWN_TESTS:
                lines.append(
                    f"  and {self.results['failed'] - min(len(names), SHOWN_TESTS)} more, see logs/tempest-results.xml"
                )
        for one in self.known:
            known = " ".join(word for word in (one["text"], one["url"]) if word)
            lines.append(f"Known failure {one['name']} ({one['kind']}): {known}")
            lines.append(f"  logs/{one['file']}, line {one['line']}: {one['match']}")
        for line in lines:
            shown = text_of(self.hider.hide(line.encode("utf-8", "replace")).decode("utf-8", "replace"))
            print("  " + shown if line.startswith("  ") else shown)


def summary(tests: Sequence[Test], hider: Hider) -> dict[str, Any]:
    """Return the numbers of a run's tests, and the names of the first that failed."""
    failed = [test for test in tests if test.failed]
    return {
        "run": sum(not test.skipped for test in tests),
        "failed": len(failed),
        "skipped": sum(test.skipped for test in tests),
        "names": [
            text_of(hider.hide(test.name.encode("utf-8", "replace")).decode("utf-8", "replace")) for test in failed[:20]
        ],
    }


def change_of(settings: Mapping[str, str], facts: Mapping[str, str]) -> dict[str, str] | None:
    """Return the change under test, or None."""
    if settings.get("ZUUL_REF"):
        names = ("ZUUL_PROJECT", "ZUUL_BRANCH", "ZUUL_REF", "ZUUL_CHANGE", "ZUUL_PATCHSET")
    elif settings.get("GERRIT_REFSPEC"):
        names = ("GERRIT_PROJECT", "GERRIT_BRANCH", "GERRIT_REFSPEC", "GERRIT_CHANGE_NUMBER", "GERRIT_PATCHSET_NUMBER")
    else:
        return None
    keys = ("project", "branch", "ref", "number", "patchset")
    return {**{key: settings.get(name, "") for key, name in zip(keys, names)}, "sha1": facts.get("sha1", "")}


class Stream(NamedTuple):
    """A stream of results in a repository; its name is tmp... if the run of the tests was cut short."""

    file: BinaryIO
    name: str


def streams_of(tempest: str, since: str) -> list[Stream]:
    """Return the last streams in a repository of stestr or testrepository, one for each run of tests, the newest last.

    A stream from before `since`, in Unix seconds, is returned only if it is the newest of all.
    """
    begin = float(since) if re.fullmatch("[0-9]{1,12}", since) else 0.0
    for name in REPOSITORIES:
        try:
            tree = Tree(f"{tempest}/{name}")
        except OSError:
            continue
        found: list[tuple[float, str]] = []
        for entry in tree.entries([0]):
            if re.fullmatch(r"\d+|tmp\w+", entry.path) and entry.kind == "file" and entry.size:
                with contextlib.suppress(OSError):
                    found.append((os.stat(f"{tree.real}/{entry.path}", follow_symlinks=False).st_mtime, entry.path))
        found.sort(key=lambda one: (one[0], len(one[1]), one[1]))  # 9 before 10
        streams = []
        for changed, path in found[-MAX_STREAMS:]:
            if changed >= begin or path == found[-1][1]:
                with contextlib.suppress(OSError):
                    file = tree.open(path)
                    streams += [Stream(file, path)] if file else []
        if streams:
            return streams
    return []


def read_small(folder: str, name: str, size: int = 4 << 20) -> bytes:
    """Return the content of a file in a folder, up to a size; b"" if it is not a file there."""
    try:
        tree = Tree(folder)
    except OSError:
        return b""
    try:
        file = tree.open(name)
        if not file:
            return b""
        with file:
            return file.read(size)
    except OSError:
        return b""
    finally:
        tree.close()


def run_command(
    command: Sequence[str], seconds: float, *, user: int = -1, folder: str = "/", most: int = MAX_RAW
) -> Iterator[bytes]:
    """Yield the output of a command in pieces, up to limits in seconds and (about) in bytes."""

    def become() -> None:
        os.setsid()
        if user > 0 and os.geteuid() == 0:
            account = pwd.getpwuid(user)
            os.initgroups(account.pw_name, account.pw_gid)
            os.setgid(account.pw_gid)
            os.setuid(user)

    try:
        process = subprocess.Popen(
            ["timeout", "-k", "1", f"{seconds + 0.01:.2f}", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            preexec_fn=become,  # noqa: PLW1509
            env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"},
        )
    except (OSError, subprocess.SubprocessError, KeyError):
        return
    try:
        for chunk in _chunks(process.stdout):
            yield chunk
            most -= len(chunk)
            if most < 0:
                break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def largest_file(folder: str, spared: Sequence[str]) -> str:
    """Return the largest file of a folder except the spared ones; "" if there is no other."""
    found = [
        f"{path}/{name}"
        for path, _, names in os.walk(folder)
        for name in names
        if path != folder or name not in spared
    ]
    return max(found, key=lambda path: os.lstat(path).st_blocks, default="")


# --- the place of logs/ ---


def take_place(new: str, place: str, until: float) -> None:
    """Put a folder in the place of another one, whatever that has become, and remove the other one."""
    old = new_folder(os.path.dirname(place) + "/.logs-old")
    unmount(place)
    for path in (os.path.dirname(place), place):
        make_movable(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(place, f"{old}/logs")
    os.rename(new, place)
    with contextlib.suppress(OSError):
        remove(old, until)


def make_again(folder: str, owner: tuple[int, int]) -> None:
    """Make the job's folder again if the test has removed it."""
    with contextlib.suppress(FileExistsError):
        os.makedirs(folder, 0o755)
        os.chown(folder, *owner)


def new_folder(name: str) -> str:
    """Make a folder that only we can use; `name` is the beginning of its name."""
    folder = f"{name}-{os.urandom(8).hex()}"
    os.mkdir(folder, 0o700)
    return folder


def unmount(place: str) -> None:
    """Unmount what is mounted in or on a folder, the innermost first."""
    real = os.path.realpath(os.path.dirname(place)) + "/" + os.path.basename(place)
    with open("/proc/self/mountinfo", "rb") as table:  # of /proc
        points = [re.sub(rb"\\(\d{3})", lambda one: bytes([int(one[1], 8)]), line.split()[4]) for line in table]
    for point in reversed(points):
        if point == real.encode() or point.startswith(real.encode() + b"/"):
            subprocess.run(
                ["umount", "-l", "--", point], stderr=subprocess.DEVNULL, timeout=COMMAND_SECONDS, check=False
            )


def make_movable(path: str) -> None:
    """Remove the flags that keep even root from renaming it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            flags = int.from_bytes(fcntl.ioctl(descriptor, FS_IOC_GETFLAGS, b"\0" * 8)[:4], sys.byteorder)
            if flags & FS_IMMUTABLE_OR_APPEND:
                fcntl.ioctl(descriptor, FS_IOC_SETFLAGS, (flags & ~FS_IMMUTABLE_OR_APPEND).to_bytes(8, sys.byteorder))
        finally:
            os.close(descriptor)


def remove(folder: str, until: float) -> None:
    """Remove a folder without following anything out of it: no link, and nothing that is mounted in it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _empty(descriptor, mount_of(descriptor), until)
    finally:
        os.close(descriptor)
    os.rmdir(folder)


def _empty(descriptor: int, mount: str, until: float) -> None:
    with os.scandir(descriptor) as listing:
        names = [(one.name, one.is_dir(follow_symlinks=False)) for one in listing]
    for name, is_folder in names:
        if time.monotonic() > until:
            return
        if not is_folder:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=descriptor)
            continue
        with contextlib.suppress(OSError):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=descriptor)
            try:
                if mount_of(inner) == mount:
                    _empty(inner, mount, until)
            finally:
                os.close(inner)
            os.rmdir(name, dir_fd=descriptor)


# --- processes ---


def in_process(
    work: Callable[[Callable[[str, Any], None]], None], until: float, note: Callable[[str, Any], None]
) -> bool:
    """Run a function in its own process until a time of the monotonic clock; return whether it finished.

    It sends lines of literals, which are noted even if it is stopped.
    """
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(receiving)
            os.setsid()
            work(lambda name, value: write_all(sending, ascii([name, value]).encode() + b"\n"))
            code = 0
        except BaseException:  # noqa: BLE001  # whatever it is, it is reported, and the logs are kept
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(sending)
    timer = _Stopper(child, until)
    with os.fdopen(receiving, "rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, SyntaxError):
                note(*ast.literal_eval(line.decode()))
    return timer.ended()


class _Stopper:
    """Kills a process when its time is up."""

    def __init__(self, child: int, until: float) -> None:
        self._child = child
        signal.signal(signal.SIGALRM, self._kill)
        signal.setitimer(signal.ITIMER_REAL, max(0.01, until - time.monotonic()))

    def _kill(self, _number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)

    def ended(self) -> bool:
        """Wait for the process; return whether it ended by itself with status 0."""
        _, status = os.waitpid(self._child, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child, signal.SIGKILL)
        return status == 0


def collect_run(records: bytes) -> int:
    """Make the logs of a run and return the exit code."""
    run = Run(records)
    files = [f"{run.base}/{side}/devstack" for side in ("new", "old")]
    texts = [read_small(folder, name) for folder in files for name in SETTINGS_FILES]
    settings = b"".join(b"text\0\0" + text.replace(b"\0", b"") + b"\0" for text in texts)
    run.hider = Hider(values_given(records + settings))
    if not in_process(run.collect, run.until - RESERVE_SECONDS, run.note):
        run.said.append("Not all logs could be collected.")
    if int(run.facts["status"]) and not in_process(run.search, run.until, run.note):
        run.said.append("Not all known failures could be looked for.")
    run.finish()
    run.show()
    return 0


def tell_failed(base: str, since: str) -> int:
    """Print how many tests failed by the results below BASE, if any did, and return the exit code."""
    streams = streams_of(f"{base}/new/tempest", since)
    tests = [test for stream in streams for test in read_results(stream.file)]
    failed = sum(test.failed for test in tests)
    if failed:
        print(f"{failed} of {sum(not test.skipped for test in tests)} tests failed")
    return 0


def tidy(source: str, target: str) -> int:
    """Copy a folder of logs from elsewhere into a new one, by the same rules, and return the exit code."""
    os.mkdir(target, 0o755)
    limits = Limits(1 << 30, 20_000, time.monotonic() + 600)
    collector = Collector(target, (os.getuid(), os.getgid()), Hider(()), limits)
    tree, seen = Tree(source), [0]
    entries = sorted(tree.entries(seen), key=lambda one: (one.kind == "link", one.size))
    try:
        for entry in entries:
            collector.copy(Wanted(0, entry, tree, entry.path, own=True))
    except OverError:
        collector.said.append("Not all logs could be tidied in time.")
    collector.tell()
    for line in collector.said:
        print(text_of(line))
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run as the docstring of this file says."""
    os.umask(0o022)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    if arguments == ["run"]:
        return collect_run(sys.stdin.buffer.read())
    if len(arguments) == 3 and arguments[0] == "failed":  # noqa: PLR2004
        return tell_failed(arguments[1], arguments[2])
    if len(arguments) == 3 and arguments[0] == "tidy":  # noqa: PLR2004
        return tidy(arguments[1], arguments[2])
    sys.stderr.write(__doc__ or "")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
