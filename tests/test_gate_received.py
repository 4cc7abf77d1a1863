"""gate/received.py: consoles and logs as it gets them from a machine that nobody trusts."""

import io
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pool import PROJECT

MARK = b"--- devstack-gate ---\n"
PROGRAM = PROJECT / "gate/received.py"


def received(what: str, where: Path, data: bytes, program: Path = PROGRAM) -> tuple[int, str, str]:
    """Give the program data; return its status, stdout and stderr."""
    done = subprocess.run([sys.executable, "-I", str(program), what, str(where)], input=data, capture_output=True,
                          check=False, timeout=60)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


Fill = Callable[[tarfile.TarFile], object]


def archive(fill: Fill, form: int = tarfile.USTAR_FORMAT) -> bytes:
    """Return noise, the mark, and an archive."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=form) as tar:
        fill(tar)
    return b"noise\n" + MARK + packed.getvalue()


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Fill:
    """Return a function that adds one member to an archive."""
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname, info.mode = len(data), kind, link, 0o6777
        tar.addfile(info, io.BytesIO(data))
    return add


def changed(folder: Path, **constants: str) -> Path:
    """Make a copy of the program with other limits; return its path."""
    text = PROGRAM.read_text()
    for name, value in constants.items():
        text, count = re.subn(rf"(?m)^{name} = .*", f"{name} = {value}", text)
        assert count == 1
    copy = folder / "received.py"
    copy.write_text(text)
    return copy


def found_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    return folder


@pytest.fixture
def state(tmp_path: Path) -> Path:
    file = tmp_path / "state"
    file.write_text("0 0\n\n")
    return file


def test_names_lead_nowhere_else_and_nothing_but_plain_files_is_taken(logs: Path, tmp_path: Path) -> None:
    others = {"../out": tarfile.REGTYPE, "a/../../out": tarfile.REGTYPE, "/".join("a" * 50): tarfile.REGTYPE,
              "link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "disk": tarfile.BLKTYPE,
              "fifo": tarfile.FIFOTYPE, "folder": tarfile.DIRTYPE}

    def fill(tar: tarfile.TarFile) -> None:
        for name, kind in others.items():
            member(name, b"x" if kind == tarfile.REGTYPE else b"", kind, "/etc/passwd")(tar)
        member("/etc/absolute", b"1")(tar)
        member("link/through", b"2")(tar)
        member("twice", b"3")(tar)
        member("./twice", b"4")(tar)
        member("twice/below", b"5")(tar)
        member("twice/far/below", b"5")(tar)
        for _ in range(300):
            member("same", b"")(tar)
        # The longest name, in bytes that are no text, each of which would become three.
        member("\udcff" * 100, b"7")(tar)
        member("last", b"6" * 100_000)(tar)

    code, _, said = received("logs", logs, archive(fill))

    found = found_in(logs)
    same = {name for name in found if name.endswith("same")}
    assert (code, said) == (0, f"left out entries that are not plain files: {len(others) + 300 - len(same)}\n")
    assert max(map(len, same)) == 255  # bytes, as long as a name may be
    assert {name: found[name] for name in found.keys() - same} == {
        "etc/absolute": b"1", "link/through": b"2", "twice": b"3", "_twice": b"4", "twice_below": b"5",
        "twice_far_below": b"5", "_" * 100: b"7", "last": b"6" * 100_000}
    assert {path.stat().st_mode & 0o7777 for path in logs.rglob("*")} == {0o755, 0o644}
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


def test_what_is_too_much_is_left_out(logs: Path, tmp_path: Path) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        for number in range(6):
            member(f"file{number}", b"x" * 1000)(tar)

    few = changed(tmp_path, LOGS_FILES="4")
    assert received("logs", logs, archive(fill), few) == (0, "", "more than 4 files: the rest is left out\n")
    assert len(found_in(logs)) == 4
    small = changed(tmp_path, LOGS_BYTES="1 << 20")
    data = archive(lambda tar: [member("a", b"1")(tar), member("b", b"x" * (1 << 20))(tar), member("c", b"2")(tar)])
    (logs / "more").mkdir()
    assert received("logs", logs / "more", data, small) == (0, "", "more than 1 MB: the rest is left out\n")
    assert found_in(logs / "more") == {"a": b"1"}


GOOD = archive(member("file", b"x" * 2000))


@pytest.mark.parametrize(("data", "said"), [
    (b"", "nothing came\n"),
    (b"noise without end " * 100_000, "nothing came\n"),
    (GOOD[:-9800], "the connection ended in the middle of a file\n"),
    (MARK, "the connection ended in the middle of a file\n"),
    (MARK + b"\1" * 4096, "what came is not an archive of logs\n"),
    (GOOD.replace(b"0006777", b"0006776"), "what came is not an archive of logs\n"),
    (GOOD.replace(b"00000003720", b"-0000003720"), "what came is not an archive of logs\n"),
])
def test_what_is_no_archive_is_told_in_a_line(logs: Path, data: bytes, said: str) -> None:
    assert received("logs", logs, data) == (1, "", said)


def test_headers_of_other_archives_cost_nothing(logs: Path) -> None:
    """However long a name such an archive allows, it is dropped in pieces."""
    data = archive(member("x" * 5_000_000, b"1"), tarfile.GNU_FORMAT)

    code, _, said = received("logs", logs, data)

    assert (code, said) == (0, "left out entries that are not plain files: 1\n")
    assert list(found_in(logs)) == ["x" * 100]


def test_a_console_is_shown_in_lines_that_no_terminal_obeys(state: Path) -> None:
    lines = [b"noise", MARK.strip(), b"plain", b"\x1b[32mgreen\x1b[0m \x1b]0;title\x07", b"10%\r20%\r",
             b"\xff \xc2\x9b2J \xe2\x80\xae\xe2\x80\xa8\tend", b""]
    shown = ["plain", "green ?]0;title?", "10% 20%", "\ufffd ?2J ? \tend", ""]

    assert received("console", state, b"\n".join(lines)) == (0, "\n".join(shown), "")


def test_a_console_goes_on_with_the_line_that_a_lost_connection_left(state: Path) -> None:
    text = b"one\ntwo\nthree\n"

    assert received("console", state, MARK + text[:6])[1] == "one\n"
    assert state.read_text() == "4 0\none\n"
    assert received("console", state, MARK + text[4:])[1] == "two\nthree\n"
    assert state.read_text() == f"{len(text)} 0\nthree\n"


def test_a_line_without_end_is_cut_once_across_connections(state: Path) -> None:
    text = b"x" * 300_000 + b"\nnext\n"

    first = received("console", state, MARK + text[:200_000])[1]
    taken = int(state.read_text().split()[0])
    second = received("console", state, MARK + text[taken:])[1]

    assert first == "x" * 8192 + " [...]\n"
    assert second == "next\n"


def test_a_console_has_an_end(state: Path, tmp_path: Path) -> None:
    code, shown, _ = received("console", state, MARK + b"yes\n" * 1_000_000, changed(tmp_path, CONSOLE_BYTES="1 << 20"))

    assert code == 3
    assert 1 << 20 <= len(shown) < 2 << 20


def test_a_console_that_nobody_reads_is_told(state: Path) -> None:
    process = subprocess.Popen([sys.executable, "-I", str(PROGRAM), "console", str(state)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdin and process.stdout and process.stderr
    process.stdout.close()
    process.stdin.write(MARK + b"line\n" * 100)
    process.stdin.close()

    assert process.stderr.read() == b""
    assert process.wait(20) == 4
