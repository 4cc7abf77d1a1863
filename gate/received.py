#!/usr/bin/env python3
"""Reads what a machine sends on which a change was root, as data only: from stdin, after a line MARK.

`console STATE` shows a console: each line cut and made printable, up to a limit for all. It goes on where the file
STATE says: bytes taken so far, whether the rest of a line is left out, and the last line. Exit code 3: it is too much,
4: nobody reads it here. `logs FOLDER` puts the plain files of a ustar archive into an empty folder, with names and
modes of ours, up to limits in number and size; stderr says what was left out. Exit code 1: it ended too early.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from typing import BinaryIO

MARK = b"--- devstack-gate ---\n"  # comes after whatever the shell there prints at its start
NOISE_BYTES = 1 << 20
CHUNK_BYTES = 1 << 16
LINE_BYTES = 8192
CONSOLE_BYTES = 100 << 20
LOGS_BYTES = 1 << 30
LOGS_FILES = 20_000
NAME_BYTES = 200
DEPTH = 20
BLOCK = 512
COLORS = re.compile(r"\x1b\[[0-9;]*[mK]")


class BrokenError(Exception):
    """The data is not an archive, or not a complete one."""


def printable(raw: bytes) -> str:
    """Return the text of a line without anything that a terminal would obey."""
    text = COLORS.sub("", raw.decode(errors="replace").rstrip("\r\n"))
    return "".join(one if one.isprintable() or one == "\t" else " " if one.isspace() else "?" for one in text)


class Stream:
    """The data after the mark, in the pieces in which it comes."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._ahead = b""

    def find_mark(self) -> bool:
        """Drop the data before the mark; return whether there is a mark."""
        while MARK not in self._ahead:
            piece = os.read(self._number, CHUNK_BYTES)
            if not piece or len(self._ahead) > NOISE_BYTES:
                return False
            self._ahead += piece
        self._ahead = self._ahead.partition(MARK)[2]
        return True

    def piece(self) -> bytes:
        """Return the next piece, at least one byte; b"" at the end."""
        piece, self._ahead = self._ahead or os.read(self._number, CHUNK_BYTES), b""
        return piece

    def exactly(self, size: int) -> bytes:
        """Return exactly `size` bytes; raise BrokenError if the data ends before."""
        while len(self._ahead) < size:
            piece = os.read(self._number, CHUNK_BYTES)
            if not piece:
                raise BrokenError("the connection ended in the middle of a file")
            self._ahead += piece
        taken, self._ahead = self._ahead[:size], self._ahead[size:]
        return taken


class Console:
    """A console that is shown here, across connections."""

    def __init__(self, state: str) -> None:
        self._state = state
        with open(state, encoding="utf-8") as file:
            numbers, _, self._last = file.read().rstrip("\n").partition("\n")
        self.taken, self._cut = (int(word) for word in numbers.split())

    def show(self, stream: Stream) -> int:
        """Show the data and return an exit code. A line that the end of a connection cuts is sent again."""
        begun = b""
        while self.taken < CONSOLE_BYTES:
            piece = stream.piece()
            if not piece:
                return 0
            *lines, begun = (begun + piece).split(b"\n")
            shown = [text for line in lines for text in self._line(line)]
            self.taken += sum(len(line) + 1 for line in lines)
            if len(begun) > LINE_BYTES:
                shown += self._line(begun)
                self.taken += len(begun)
                self._cut, begun = 1, b""
            sys.stdout.write("".join(text + "\n" for text in shown))
            sys.stdout.flush()
            self._save(shown)
        return 3

    def _line(self, line: bytes) -> list[str]:
        """Return the part of a line that is shown; nothing for the rest of a line that was cut."""
        if self._cut:
            self._cut = 0
            return []
        more = " [...]" if len(line) > LINE_BYTES else ""
        return [printable(line[:LINE_BYTES]) + more]

    def _save(self, shown: list[str]) -> None:
        if shown:
            self._last = shown[-1]
        with open(self._state, "w", encoding="utf-8") as file:
            file.write(f"{self.taken} {self._cut}\n{self._last}\n")


class Logs:
    """A folder that is filled with the plain files of an archive."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._files = 0
        self._bytes = 0
        self.others = 0  # entries that are no plain files, or whose names lead elsewhere, go too deep or are too long
        self.full = ""

    def take(self, stream: Stream) -> None:
        """Take files until the archive ends or exceeds a limit."""
        while any(header := stream.exactly(BLOCK)):
            name, size, plain = read_header(header)
            path = self._path(name) if plain else ""
            if self._bytes + size > LOGS_BYTES:
                self.full = f"more than {LOGS_BYTES >> 20} MB"
            elif self._files >= LOGS_FILES:
                self.full = f"more than {LOGS_FILES} files"
            if self.full:
                return
            self._bytes += size + BLOCK
            if path:
                self._files += 1
                self._write(path, stream, size)
            else:
                self.others += 1
                copy(stream, size, None)
            stream.exactly(-size % BLOCK)

    def _path(self, name: bytes) -> str:
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if not parts or len(parts) > DEPTH or b".." in parts:
            return ""
        return "/".join([self._folder, *map(tidy_name, parts)])

    def _write(self, path: str, stream: Stream, size: int) -> None:
        try:
            number = self._made(path)
        except OSError as err:
            if err.errno != errno.ENAMETOOLONG:
                raise
            self.others += 1
            copy(stream, size, None)
            return
        with os.fdopen(number, "wb") as file:
            copy(stream, size, file)

    def _made(self, path: str) -> int:
        """Return the descriptor of a new file with this name, or a similar one."""
        folder, _, name = path.rpartition("/")
        try:
            os.makedirs(folder, 0o755, exist_ok=True)
        except (FileExistsError, NotADirectoryError):  # a file has the name of a folder
            folder, name = self._folder, path[len(self._folder) + 1:].replace("/", "_")[:NAME_BYTES // 4]
        while os.path.lexists(f"{folder}/{name}"):
            name = "_" + name
        return os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)


def read_header(header: bytes) -> tuple[bytes, int, bool]:
    """Return name, size in bytes, and whether it is a plain file, from the block before a file in an archive."""
    def text(begin: int, end: int) -> bytes:
        return header[begin:end].partition(b"\0")[0]

    try:
        size, checksum = int(text(124, 136), 8), int(text(148, 156), 8)
    except ValueError as err:
        raise BrokenError("what came is not an archive of logs") from err
    if size < 0 or checksum != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise BrokenError("what came is not an archive of logs")
    return text(345, 500) + b"/" + text(0, 100), size, header[156:157] in (b"0", b"\0")


def tidy_name(part: bytes) -> str:
    """Return a file's name without characters that disturb terminals, URLs or other systems."""
    text = part[:NAME_BYTES].decode(errors="replace").replace("\N{REPLACEMENT CHARACTER}", "_")
    return "".join(one if one.isprintable() and one not in " :" else "_" for one in text)


def copy(stream: Stream, size: int, to: BinaryIO | None) -> None:
    """Copy `size` bytes, or drop them if `to` is None."""
    while size:
        data = stream.exactly(min(size, CHUNK_BYTES))
        size -= len(data)
        if to:
            to.write(data)


def receive_logs(folder: str) -> int:
    """Fill a folder with logs, and return an exit code."""
    logs = Logs(folder)
    os.umask(0o022)
    stream = Stream(0)
    try:
        if not stream.find_mark():
            raise BrokenError("nothing came")
        logs.take(stream)
    except (BrokenError, OSError) as err:
        print(err, file=sys.stderr)
        return 1
    if logs.others:
        print(f"left out entries that are not plain files: {logs.others}", file=sys.stderr)
    if logs.full:
        print(f"{logs.full}: the rest is left out", file=sys.stderr)
    return 0


def show_console(state: str) -> int:
    """Show a console, and return an exit code."""
    sys.stdout.reconfigure(encoding="utf-8", errors="replace")  # type: ignore[union-attr]
    stream = Stream(0)
    if not stream.find_mark():
        return 0
    try:
        return Console(state).show(stream)
    except BrokenPipeError:
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return 4


def main(argv: list[str]) -> int:
    """Do what the command line says, and return an exit code."""
    if len(argv) != 2 or argv[0] not in ("console", "logs"):  # noqa: PLR2004
        print(__doc__, file=sys.stderr)
        return 2
    return show_console(argv[1]) if argv[0] == "console" else receive_logs(argv[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
