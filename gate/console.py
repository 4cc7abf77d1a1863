#!/usr/bin/env python3
"""Show a stream to people: what a test prints is data, never a line of ours.

    console.py stamp       copy stdin to stdout, with the time (UTC) before each line that does not begin with it
    console.py printable   the same without the time

A line is shown when it has ended, or half a second after it began (dots of progress). A carriage return ends a line,
and so do 64 KB. Escape sequences, control characters and what turns the direction of text are taken out. What the run's
secrets are is read from file descriptor 3, if that is open; they are hidden (see hidesecrets.py).

Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import codecs
import re
import signal
import sys
import time

from hidesecrets import Hider, pieces_of, read_given, values_given, write_all

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
BEGUN_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b\n]*\x1b?|[ -/]*)\Z")
LINE_ENDS = re.compile(r"(?<!\r)\r+\n|[\r\v\f\x85\u2028\u2029]")
UNSEEN = re.compile(
    "[\0-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
TIME = re.compile(rb"\d{4}-\d\d-\d\dT")
LONGEST_ESCAPE = 4096  # characters; anything longer is no escape sequence
PIECE = 64 << 10  # bytes of a line that has no end


class Cleaner:
    """Removes from a stream anything that a terminal would not show as plain characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def clean(self, chunk: bytes, end: bool) -> bytes:
        """Return the part that can be passed on."""
        text = self._held + self._decoder.decode(chunk, end)
        self._held = ""
        if not end:
            begun = BEGUN_ESCAPE.search(text, max(0, len(text) - LONGEST_ESCAPE))
            keep = len(begun[0]) if begun else int(text.endswith("\r"))
            self._held = text[len(text) - keep :]
            text = text[: len(text) - keep]
        return printable(text).encode()


def printable(text: str) -> str:
    """Return a text of printable characters, tabs and newlines."""
    return UNSEEN.sub("", LINE_ENDS.sub("\n", ESCAPES.sub("", text)))


class Stamper:
    """Puts the time before each line."""

    def __init__(self, stamps: bool) -> None:
        self._stamps = stamps
        self._length = 0  # bytes of the line so far

    def stamp(self, piece: bytes) -> bytes:
        """Return a piece of the stream, with the times in it."""
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ ", time.gmtime()).encode() if self._stamps else b""
        parts = []
        for line in piece.splitlines(keepends=True):
            for part in [line[at : at + PIECE] for at in range(0, len(line), PIECE)]:
                if self._length >= PIECE:
                    parts.append(b"\n")
                    self._length = 0
                if not self._length and not TIME.match(part):
                    parts.append(now)
                parts.append(part)
                self._length = 0 if part.endswith(b"\n") else self._length + len(part)
        return b"".join(parts)

    def end(self) -> bytes:
        """Return the end of the stream: a newline, if its last line has none."""
        return b"\n" if self._length else b""


def main(arguments: list[str]) -> int:
    """Run as the docstring of this file says."""
    if arguments not in (["stamp"], ["printable"]):
        sys.stderr.write(__doc__ or "")
        return 2
    stamper = Stamper(arguments == ["stamp"])
    for piece in pieces_of(0, Hider(values_given(read_given(3))), Cleaner().clean):
        write_all(1, stamper.stamp(piece))
    write_all(1, stamper.end())
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main(sys.argv[1:]))
