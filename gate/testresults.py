"""Test results: read from the repository of stestr or testrepository, written as JUnit XML.

The streams are subunit's (its README describes the formats). These repositories keep version 1: lines that name a test
and its outcome. Their commands print version 2: packets with a checksum. They are read here because the tools that turn
them into XML need a package that neither tempest nor devstack installs. Anything else that was printed in between is
skipped.

Python 3.8 and its standard library: this runs on test nodes.
"""

from __future__ import annotations

import datetime
import re
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

SIGNATURE = b"\xb3"
VERSION = 0x2
WITH_ROUTE, WITH_ID, WITH_TIME, WITH_TAGS, WITH_FILE, WITH_TYPE = 0x0400, 0x0800, 0x0200, 0x0080, 0x0040, 0x0020
STATUSES = ("", "exists", "inprogress", "success", "uxsuccess", "skip", "fail", "xfail")
MAX_PACKET = 4 << 20  # bytes, as the format has it
BLOCK = 1 << 20
MAX_STREAM = 1 << 30  # bytes that are read
MAX_VAIN = 1 << 28  # bytes with a wrong checksum, after which the rest is skipped
MAX_TESTS = 100_000
MAX_DETAIL = 64 << 10  # bytes of a test's output: the last ones are kept
MAX_DETAILS = 16 << 20  # bytes of all tests' output; beyond that only names are kept
MAX_NAME = 500  # characters
MAX_LINE = 1 << 16  # bytes of a line of version 1
OUTCOMES = {
    b"success": "success",
    b"successful": "success",
    b"failure": "fail",
    b"error": "fail",
    b"skip": "skip",
    b"xfail": "xfail",
    b"uxsuccess": "uxsuccess",
}
NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]|[\x7f-\x9f]")


class Packet(NamedTuple):
    """One event of a stream."""

    test: str
    status: str
    seconds: float | None
    file: str
    content: bytes


class Test:
    """The outcome of a test."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = "inprogress"
        self.begun: float | None = None
        self.ended: float | None = None
        self.detail: dict[str, bytes] = {}

    @property
    def failed(self) -> bool:
        """Return whether it failed; one that has not ended counts as failed, since the run was cut short during it."""
        return self.status in ("fail", "uxsuccess", "inprogress")

    @property
    def skipped(self) -> bool:
        """Return whether it was not run."""
        return self.status == "skip"


def events(stream: BinaryIO) -> Iterator[Packet]:
    """Return the events of a stream of either version, from its beginning."""
    stream.seek(0)
    head = stream.read(MAX_LINE)
    stream.seek(0)
    in_lines = re.search(rb"^(?:test|testing|time|tags):? ", head, re.M)
    return lines(stream) if in_lines and not head.startswith(SIGNATURE) else packets(stream)


def lines(stream: BinaryIO) -> Iterator[Packet]:
    """Return the events of a stream of version 1, whatever it holds."""
    seconds = None
    while stream.tell() < MAX_STREAM:
        line = stream.readline(MAX_LINE)
        if not line:
            return
        word, _, rest = line.strip().partition(b" ")
        word = word.rstrip(b":").lower()
        if word == b"time":
            seconds = _moment(rest.decode("ascii", "replace"))
        elif word in (b"test", b"testing"):
            yield Packet(rest.decode("utf-8", "replace"), "inprogress", seconds, "", b"")
        elif word in OUTCOMES:
            name, bracket, form = rest.partition(b" [")
            test = name.decode("utf-8", "replace")
            if bracket:
                for file, content in _parts(stream) if form.strip() == b"multipart" else _plain(stream):
                    yield Packet(test, "", None, file, content)
            yield Packet(test, OUTCOMES[word], seconds, "", b"")


def _moment(text: str) -> float | None:
    try:
        moment = datetime.datetime.fromisoformat(text.strip().rstrip("Z"))
        return moment.replace(tzinfo=datetime.timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return None


def _plain(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Return the text up to a line with a bracket."""
    while True:
        line = stream.readline(MAX_LINE)
        if not line or line.rstrip() == b"]":
            return
        yield "reason", line


def _parts(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Return the named parts of an outcome, each in chunks after their length in hexadecimal."""
    while True:
        kind = stream.readline(MAX_LINE)
        if not kind.lower().startswith(b"content-type:"):
            return
        file = stream.readline(MAX_LINE).strip().decode("utf-8", "replace")
        while True:
            length = stream.readline(MAX_LINE).strip()
            if not re.fullmatch(rb"[0-9a-fA-F]{1,8}", length):
                return
            if not int(length, 16):
                break
            left = int(length, 16)
            while left > 0:
                content = stream.read(min(left, BLOCK))
                if not content:
                    return
                left -= len(content)
                yield file, content


def packets(stream: BinaryIO) -> Iterator[Packet]:
    """Return the events of a stream of version 2, whatever it holds."""
    buffer, at, total, vain, ended = b"", 0, 0, 0, False
    while vain < MAX_VAIN:
        at = buffer.find(SIGNATURE, at)
        if at < 0:
            buffer, at = b"", 0
        size = _size(buffer, at)
        whole = 0 < size <= len(buffer) - at
        if size >= 0 and not whole and not ended:
            block = stream.read(BLOCK) if total < MAX_STREAM else b""
            buffer, at = buffer[at:] + block, 0
            total += len(block)
            ended = not block
            continue
        if not buffer:
            return
        packet = _parsed(buffer[at : at + size]) if whole else None
        if packet:
            yield packet
        elif whole:
            vain += size
        at += size if packet else 1


def _size(buffer: bytes, at: int) -> int:
    """Return the size in bytes of the packet that begins here: 0 if not known yet, -1 if there is none."""
    if len(buffer) - at < 7:  # noqa: PLR2004  # signature, flags, the longest length
        return 0
    if buffer[at + 1] >> 4 != VERSION:
        return -1
    size, _ = _number(buffer, at + 3)
    return size if 8 <= size <= MAX_PACKET else -1  # noqa: PLR2004  # with its checksum


def _number(data: bytes, at: int) -> tuple[int, int]:
    """Return a number of one to four bytes, whose first two bits say how many, and where it ends."""
    more = data[at] >> 6
    value = data[at] & 0x3F
    for byte in data[at + 1 : at + 1 + more]:
        value = value << 8 | byte
    if len(data) < at + 1 + more:
        raise IndexError("a number that is cut off")
    return value, at + 1 + more


def _text(data: bytes, at: int) -> tuple[str, int]:
    size, at = _number(data, at)
    if at + size > len(data):
        raise IndexError("a text that is cut off")
    return data[at : at + size].decode("utf-8", "replace"), at + size


def _parsed(data: bytes) -> Packet | None:
    if zlib.crc32(data[:-4]) != int.from_bytes(data[-4:], "big"):
        return None
    flags = int.from_bytes(data[1:3], "big")
    data = data[:-4]
    test, file, content, seconds = "", "", b"", None
    try:
        _, at = _number(data, 3)
        if flags & WITH_TIME:
            nanoseconds, end = _number(data, at + 4)
            seconds, at = int.from_bytes(data[at : at + 4], "big") + nanoseconds / 1e9, end
        if flags & WITH_ID:
            test, at = _text(data, at)
        if flags & WITH_TAGS:
            count, at = _number(data, at)
            for _ in range(count):
                _, at = _text(data, at)
        if flags & WITH_TYPE:
            _, at = _text(data, at)
        if flags & WITH_FILE:
            file, at = _text(data, at)
            size, at = _number(data, at)
            content = data[at : at + size]
    except IndexError:
        return None
    return Packet(test, STATUSES[flags & 0x7], seconds, file, content)


def read_results(stream: BinaryIO) -> list[Test]:
    """Return each test of a stream, in the order in which they began."""
    tests: dict[str, Test] = {}
    kept = 0
    for packet in events(stream):
        if not packet.test or packet.status == "exists":
            continue
        if packet.test not in tests and len(tests) >= MAX_TESTS:
            continue
        test = tests.setdefault(packet.test, Test(packet.test))
        if packet.content and kept < MAX_DETAILS and len(test.detail) < 16:  # noqa: PLR2004  # files of one test
            before = test.detail.get(packet.file, b"")
            test.detail[packet.file] = (before + packet.content)[-MAX_DETAIL:]
            kept += len(test.detail[packet.file]) - len(before)
        if packet.status == "inprogress":
            if test.status != "inprogress":  # it began again, in another worker
                test.detail = {}
            test.status, test.begun = "inprogress", packet.seconds
        elif packet.status:
            test.status, test.ended = packet.status, packet.seconds
        if test.status in ("success", "xfail"):
            kept -= sum(map(len, test.detail.values()))
            test.detail = {}
    return list(tests.values())


def junit(tests: list[Test], hide: Callable[[bytes], bytes]) -> Iterator[bytes]:
    """Return the JUnit XML of results, in pieces; `hide` takes the secrets out of every text."""
    failed = sum(test.failed for test in tests)
    skipped = sum(test.skipped for test in tests)
    seconds = sum(_seconds(test) for test in tests)
    yield (
        f'<?xml version="1.0" encoding="utf-8"?>\n<testsuite name="tempest" tests="{len(tests)}" errors="0" '
        f'failures="{failed}" skipped="{skipped}" time="{seconds:.3f}">\n'
    ).encode()
    for test in tests:
        yield _case(test, hide).encode()
    yield b"</testsuite>\n"


def _case(test: Test, hide: Callable[[bytes], bytes]) -> str:
    name = _clean(hide(test.name.encode()).decode("utf-8", "replace"))[:MAX_NAME]
    plain = name.partition("[")[0]
    group, dot, _ = plain.rpartition(".") if "(" not in plain else ("", "", "")
    begin = (
        f"<testcase classname={_attribute(group or 'tests')} name={_attribute(name[len(group + dot) :])} "
        f'time="{_seconds(test):.3f}"'
    )
    if not test.failed and not test.skipped:
        return begin + "/>\n"
    text = _clean(
        "\n".join(
            f"{file}: {hide(content).decode('utf-8', 'replace')}"
            if file != "reason"
            else hide(content).decode("utf-8", "replace")
            for file, content in test.detail.items()
        )
    )
    if test.skipped:
        return begin + f"><skipped message={_attribute(text[:MAX_NAME])}/></testcase>\n"
    why = {"uxsuccess": "passed, which was not expected", "inprogress": "it had not ended when the run did"}
    message = why.get(test.status) or next((line for line in reversed(text.splitlines()) if line.strip()), "failed")
    return (
        begin
        + f'><failure type="{test.status}" message={_attribute(message[:MAX_NAME])}>'
        + f'{_escaped(text)}</failure></testcase>\n'
    )


def _seconds(test: Test) -> float:
    if test.begun is None or test.ended is None:
        return 0.0
    return max(0.0, test.ended - test.begun)


def _clean(text: str) -> str:
    """Return a text without characters that XML forbids."""
    return NOT_XML.sub("\N{REPLACEMENT CHARACTER}", text)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _attribute(text: str) -> str:
    """Return a text as the quoted value of an attribute."""
    return '"' + re.sub(r"[\t\r\n]", " ", _escaped(text)).replace('"', "&quot;") + '"'
