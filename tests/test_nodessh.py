"""ssh to nodes, against a real sshd that the tests start."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import nodessh
from gateconfig import NodeConfig
from gateprocess import ConfigError, GateError
from nodessh import HostKeyError, Login, NotYetError, Outcome, StepError, TooSlowError
from tests.support.pool import await_that, make_key
from tests.support.sshserver import Sshd, free_address

OTHER_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIN/jT0PYldlQIIIkUMeA3uOdqjqF3vGDD4A3l8SPPuPT"


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the private key that the sshd lets in."""
    return make_key(tmp_path_factory.mktemp("key"))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory, key: Path) -> Iterator[Sshd]:
    """Run a real sshd that lets root in with the key."""
    server = Sshd(tmp_path_factory.mktemp("sshd") / "root", Path(f"{key}.pub").read_text())
    server.start()
    try:
        await_that("the sshd", lambda: answers(server.host, server.port))
        yield server
    finally:
        server.stop()


@pytest.fixture
def login(sshd: Sshd, key: Path) -> Login:
    return Login(sshd.host, sshd.port, "root", key)


@pytest.fixture
def session(login: Login) -> Iterator[nodessh.Session]:
    with nodessh.session(login) as session:
        yield session


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 1).close()
    except ConnectionRefusedError:
        return False
    return True


def works(session: nodessh.Session) -> bool:
    return session.attempt("look", ["true"]).status == 0


def refusal(login: Login) -> str:
    """Return why a login is not possible now."""
    with pytest.raises(NotYetError) as caught, nodessh.session(login):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Login


def test_the_first_login_gives_the_host_key_to_be_kept(sshd: Sshd, login: Login) -> None:
    with nodessh.session(login) as session:
        assert session.login == Login(login.address, login.port, "root", login.key, sshd.host_key)


def test_the_kept_host_key_is_accepted(sshd: Sshd, key: Path) -> None:
    with nodessh.session(Login(sshd.host, sshd.port, "root", key, sshd.host_key)) as session:
        assert works(session)


def test_another_host_key_is_refused_before_the_login(sshd: Sshd, key: Path) -> None:
    with pytest.raises(HostKeyError) as caught, nodessh.session(Login(sshd.host, sshd.port, "root", key, OTHER_KEY)):
        pass
    said = str(caught.value)
    assert said.startswith(f"[{sshd.host}]:{sshd.port}: shows another host key (ssh-ed25519 SHA256:")
    assert said.endswith(") than at first contact; the login is refused")


def test_another_host_key_ends_the_waiting_for_a_session(sshd: Sshd, key: Path) -> None:
    began = time.monotonic()
    with pytest.raises(HostKeyError):
        nodessh.wait_for_session([Login(sshd.host, sshd.port, "root", key, OTHER_KEY)], began + 30, works)
    assert time.monotonic() - began < 25


def test_a_key_that_is_not_let_in_is_not_yet(sshd: Sshd, tmp_path: Path) -> None:
    said = refusal(Login(sshd.host, sshd.port, "root", make_key(tmp_path)))
    assert said == f"root@{sshd.host}: login refused (Authentication failed.)"


def test_a_user_that_is_not_there_is_not_yet(sshd: Sshd, key: Path) -> None:
    said = refusal(Login(sshd.host, sshd.port, "nobody-of-that-name", key))
    assert said == f"nobody-of-that-name@{sshd.host}: login refused (Authentication failed.)"


def test_a_closed_port_is_not_yet(key: Path) -> None:
    host, port = free_address()
    said = refusal(Login(host, port, "root", key))
    assert said.startswith(f"root@{host}: no ssh (")
    assert str(port) in said


@contextmanager
def listening(greet: Callable[[socket.socket], object]) -> Iterator[tuple[str, int]]:
    """Run a server that is no sshd and greets each connection."""
    kept = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        def serve() -> None:
            while True:
                try:
                    connection = server.accept()[0]
                except OSError:
                    return
                kept.append(connection)
                greet(connection)

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in kept:
                connection.close()


@pytest.mark.parametrize(
    "greet",
    [
        lambda connection: connection.close(),
        lambda connection: (connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 200), connection.close()),
        lambda connection: (connection.sendall(b"SSH-2.0-cut_off\r\n"), connection.close()),
        lambda connection: (connection.sendall(b"SSH-2.0-rubbish\r\n" + b"\xff" * 200), connection.close()),
    ],
    ids=["closes", "speaks HTTP", "closes after its banner", "sends rubbish"],
)
def test_somebody_else_who_listens_is_not_yet(key: Path, greet: Callable[[socket.socket], object]) -> None:
    with listening(greet) as (host, port):
        assert refusal(Login(host, port, "root", key)).startswith(f"root@{host}: ")


@pytest.mark.parametrize(
    "greet",
    [lambda _: None, lambda connection: connection.sendall(b"SSH-2.0-silent\r\n")],
    ids=["at once", "after its banner"],
)
def test_who_accepts_and_then_is_silent_is_given_up_at_the_deadline(
    key: Path, greet: Callable[[socket.socket], object]
) -> None:
    began = time.monotonic()
    with listening(greet) as (host, port), pytest.raises(NotYetError) as caught:
        nodessh.wait_for_session([Login(host, port, "root", key)], began + 1, works)
    assert time.monotonic() - began >= 0.9
    assert str(caught.value).startswith(f"root@{host}: no ssh (")


def test_neither_agent_nor_other_keys_are_offered(
    sshd: Sshd, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".ssh").mkdir()
    for end in ("", ".pub"):
        shutil.copy(f"{key}{end}", tmp_path / ".ssh" / f"id_ed25519{end}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "agent"))
    with subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "agent")], stdout=subprocess.DEVNULL) as agent:
        try:
            await_that("the agent", (tmp_path / "agent").exists)
            subprocess.run(["ssh-add", "-q", str(key)], check=True, timeout=10, env=os.environ)
            said = refusal(Login(sshd.host, sshd.port, "root", make_key(tmp_path / "other")))
            assert said == f"root@{sshd.host}: login refused (Authentication failed.)"
        finally:
            agent.terminate()


def test_known_hosts_plays_no_part_and_is_not_written(
    sshd: Sshd, login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    known = tmp_path / ".ssh" / "known_hosts"
    known.write_text(f"[{sshd.host}]:{sshd.port} {OTHER_KEY}\n")
    before = known.read_text()
    with nodessh.session(login) as session:
        assert works(session)
    assert known.read_text() == before


def encrypted(file: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(file)], check=True)


@pytest.mark.parametrize(
    "make",
    [
        lambda file: None,
        lambda file: file.write_text("no key\n"),
        lambda file: file.write_bytes(b"\xff\x00"),
        lambda file: file.touch(),
        lambda file: file.mkdir(),
        lambda file: file.write_text(OTHER_KEY),
        lambda file: file.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"),
        encrypted,
    ],
    ids=["missing", "text", "binary", "empty", "folder", "public", "cut off", "passphrase"],
)
def test_a_private_key_that_cannot_be_used_is_configuration(
    sshd: Sshd, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    file = tmp_path / "key"
    make(file)
    with pytest.raises(ConfigError) as caught, nodessh.session(Login(sshd.host, sshd.port, "root", file)):
        pass
    assert str(caught.value).startswith(f"[node] ssh_key: {file} is no private key without a passphrase (")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
def test_a_private_key_may_be_of_any_kind(sshd: Sshd, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)], check=True)
    with (sshd.root / "authorized_keys").open("a") as keys:
        keys.write(Path(f"{file}.pub").read_text())
    with nodessh.session(Login(sshd.host, sshd.port, "root", file)) as session:
        assert works(session)


# What OpenSSH would cope with


@contextmanager
def slowly(sshd: Sshd, seconds: float) -> Iterator[tuple[str, int]]:
    """Run a relay to the sshd whose first words come late."""
    def pump(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def greet(connection: socket.socket) -> None:
        def forward() -> None:
            time.sleep(seconds)
            behind = socket.create_connection((sshd.host, sshd.port))
            threading.Thread(target=pump, args=(connection, behind), daemon=True).start()
            pump(behind, connection)

        threading.Thread(target=forward, daemon=True).start()

    with listening(greet) as address:
        yield address


def test_a_login_that_is_too_slow_gets_more_time(sshd: Sshd, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodessh, "CONNECT_SECONDS", 1)
    with slowly(sshd, 4) as (host, port):
        login = Login(host, port, "root", key)
        with pytest.raises(TooSlowError, match="no login within 1 s"), nodessh.session(login, 1):
            pass
        found = nodessh.wait_for_session([login], time.monotonic() + 40, works)
        assert found.host_key == sshd.host_key


def test_a_single_login_is_given_as_much_time_as_sshd_gives(sshd: Sshd, key: Path) -> None:
    with slowly(sshd, 12) as (host, port), nodessh.session(Login(host, port, "root", key)) as session:
        assert works(session)


@pytest.mark.parametrize(
    ("outcome", "expected"), [(TooSlowError("x"), 30), (NotYetError("x"), 10), (StepError("x"), 10)])
def test_only_what_was_too_slow_gets_more_time(outcome: Exception, expected: float) -> None:
    assert nodessh.next_patience(10, outcome) == expected


@pytest.fixture
def signed(tmp_path: Path) -> Path:
    """Make a private key and, beside it, a certificate of an authority for it."""
    file = make_key(tmp_path)
    authority = make_key(tmp_path / "authority")
    subprocess.run(["ssh-keygen", "-q", "-s", str(authority), "-I", "gate", "-n", "root", f"{file}.pub"], check=True)
    return file


@pytest.mark.parametrize("trusted", ["the authority", "the key", "both"])
def test_a_certificate_is_tried_and_then_the_key_alone(signed: Path, tmp_path: Path, trusted: str) -> None:
    server = Sshd(tmp_path / "trusting", "" if trusted == "the authority" else Path(f"{signed}.pub").read_text())
    if trusted != "the key":
        with (server.root / "config").open("a") as config:
            config.write(f"TrustedUserCAKeys {tmp_path}/authority/id_ed25519.pub\n")
    server.start()
    try:
        await_that("the sshd", lambda: answers(server.host, server.port))
        with nodessh.session(Login(server.host, server.port, "root", signed)) as session:
            assert works(session)
    finally:
        server.stop()


def test_the_key_is_the_same_with_a_certificate(signed: Path) -> None:
    nodessh.check_key_pair(signed, Path(f"{signed}.pub").read_text().strip())


def test_a_damaged_certificate_leaves_the_key(
    sshd: Sshd, signed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    certificate = signed.with_name(f"{signed.name}-cert.pub")
    certificate.write_text("ssh-ed25519-cert-v01@openssh.com AAAA damaged\n")
    with (sshd.root / "authorized_keys").open("a") as keys:
        keys.write(Path(f"{signed}.pub").read_text())
    with nodessh.session(Login(sshd.host, sshd.port, "root", signed)) as session:
        assert works(session)
    assert f"{certificate} cannot be used as a certificate" in caplog.text


# A person's key


@pytest.mark.parametrize("before", [None, "", "ssh-rsa AAAA job\n", "ssh-rsa AAAA job"])
def test_a_persons_key_is_a_line_of_its_own_once(tmp_path: Path, before: str | None) -> None:
    keys = tmp_path / ".ssh" / "authorized_keys"
    if before is not None:
        keys.parent.mkdir()
        keys.write_text(before)
    for _ in range(2):
        subprocess.run(["sh", "-c", nodessh.LET_PERSON_IN, "sh", "ssh-ed25519 AAAA anna"], check=True,
                       env={"HOME": str(tmp_path), "PATH": os.environ["PATH"]})
    assert keys.read_text().splitlines() == [*(before or "").splitlines(), "ssh-ed25519 AAAA anna"]


# Steps


@pytest.mark.parametrize(
    ("words", "outcome"),
    [
        (["true"], Outcome(0, "")),
        (["sh", "-c", "exit 3"], Outcome(3, "")),
        (["sh", "-c", "echo out; echo err >&2; exit 1"], Outcome(1, "out\nerr\n")),
        (["printf", "%s\n", "a b", "$HOME", "it's", "*"], Outcome(0, "a b\n$HOME\nit's\n*\n")),
        (["printf", r"\377"], Outcome(0, "\N{REPLACEMENT CHARACTER}")),
        (["head", "-c", "300000", "/dev/zero"], Outcome(0, "\0" * 300_000)),
        (["cat"], Outcome(0, "")),
    ],
    ids=["true", "status", "both outputs", "quoting", "not UTF-8", "much", "empty stdin"],
)
def test_a_step_gives_status_and_output(session: nodessh.Session, words: list[str], outcome: Outcome) -> None:
    assert session.attempt("step", words) == outcome


def test_a_step_that_fails_is_named_with_its_status_and_last_lines(sshd: Sshd, session: nodessh.Session) -> None:
    with pytest.raises(StepError) as caught:
        session.run("install packages", ["sh", "-c", "seq 30; exit 4"])
    lines = "".join(f"\n    {number}" for number in range(11, 31))
    assert str(caught.value) == f"{sshd.host}: install packages: exit status 4{lines}"


def test_a_step_reads_its_stdin_to_the_end(session: nodessh.Session) -> None:
    text = "line\n" * 100_000
    assert session.run("count", ["wc", "-c"], stdin=text) == f"{len(text)}\n"


def test_a_step_may_begin_to_read_late(session: nodessh.Session) -> None:
    text = "x" * 4_000_000  # more than the connection takes before it is read
    assert session.run("count", ["sh", "-c", "sleep 2; wc -c"], stdin=text) == f"{len(text)}\n"


@pytest.mark.parametrize("script", ["sleep 60", "while :; do echo more; sleep 0.1; done", "exec >&- 2>&-; sleep 60"],
                         ids=["silent", "chatty", "closed output"])
def test_a_step_that_takes_too_long_is_given_up(sshd: Sshd, session: nodessh.Session, script: str) -> None:
    began = time.monotonic()
    with pytest.raises(StepError) as caught:
        session.run("stack", ["sh", "-c", script], seconds=1)
    assert str(caught.value).splitlines()[0] == f"{sshd.host}: stack: not done after 1 s"
    assert 1 <= time.monotonic() - began < 30


def test_a_step_whose_connection_is_lost_is_named(sshd: Sshd, session: nodessh.Session) -> None:
    with pytest.raises(StepError) as caught:
        session.run("reboot", ["sh", "-c", 'echo going; kill -9 "$PPID"; sleep 60'], seconds=20)
    assert str(caught.value).startswith(f"{sshd.host}: reboot: connection lost")


def test_after_the_connection_is_lost_the_next_step_is_named_too(sshd: Sshd, session: nodessh.Session) -> None:
    for name in ("reboot", "look"):
        with pytest.raises(StepError, match=f"{sshd.host}: {name}: connection lost"):
            session.run(name, ["sh", "-c", 'kill -9 "$PPID"; sleep 60'], seconds=20)


def test_several_steps_run_in_one_login(session: nodessh.Session, tmp_path: Path) -> None:
    session.run("write", ["sh", "-c", f"echo text > {tmp_path}/file"])
    assert session.run("read", ["cat", f"{tmp_path}/file"]) == "text\n"


@pytest.mark.parametrize("mode", ["0644", "0755", "0600"])
def test_a_file_is_put_with_its_folder_and_mode(session: nodessh.Session, tmp_path: Path, mode: str) -> None:
    file = tmp_path / "a folder" / "it's" / "file"
    session.put("copy", str(file), "text\n$HOME\n", mode)
    assert (file.read_text(), oct(file.stat().st_mode)[-4:]) == ("text\n$HOME\n", mode)


def test_a_step_ends_with_its_command_whatever_that_leaves_running(session: nodessh.Session) -> None:
    began = time.monotonic()
    assert session.run("start", ["sh", "-c", "echo started; (sleep 61; echo late) & exit 0"]) == "started\n"
    assert session.run("start", ["sh", "-c", "(while :; do echo more; sleep 0.1; done) & sleep 1; exit 0"])
    assert time.monotonic() - began < 50


def test_a_step_of_roots_that_takes_too_long_is_ended_with_all_of_its_own(session: nodessh.Session) -> None:
    script = "echo begun; setpriv sleep 4711 & sleep 4712"
    with pytest.raises(StepError) as caught:
        session.run_as_root("stack", ["sh", "-c", script], 1)
    assert str(caught.value).endswith(": stack: not done after 1 s\n    begun")
    left = session.attempt("look", ["pgrep", "-f", "^sleep 471[12]$"])
    assert (left.status, left.output) == (1, "")


def test_the_error_of_a_step_is_short_whatever_it_printed(session: nodessh.Session) -> None:
    with pytest.raises(StepError) as caught:
        session.run("print", ["sh", "-c", "head -c 5000000 /dev/zero | tr '\\0' x; exit 4"])
    assert str(caught.value).splitlines()[1] == "    " + "x" * 500 + "..."


@pytest.mark.parametrize(("user", "words"), [("root", ["id"]), ("jenkins", ["sudo", "-n", "id"])])
def test_a_step_of_roots_needs_sudo_for_others_only(session: nodessh.Session, user: str, words: list[str]) -> None:
    session.login = Login("127.0.0.1", 22, user, session.login.key)
    assert session.as_root(["id"]) == words


# Waiting


def test_waiting_ends_at_its_deadline_with_the_last_thing_seen(key: Path) -> None:
    host, port = free_address()
    began = time.monotonic()
    with pytest.raises(NotYetError) as caught:
        nodessh.wait_for_session([Login(host, port, "root", key)], began + 1.5, works)
    assert time.monotonic() - began >= 1
    assert str(caught.value).startswith(f"root@{host}: no ssh (")


def test_an_sshd_that_comes_late_is_waited_for(tmp_path: Path, key: Path) -> None:
    server = Sshd(tmp_path / "late", Path(f"{key}.pub").read_text())
    later = threading.Timer(0.5, server.start)
    later.start()
    try:
        found = nodessh.wait_for_session([Login(server.host, server.port, "root", key)], time.monotonic() + 20, works)
    finally:
        later.join()
        server.stop()
    assert found.host_key == server.host_key


def test_the_first_login_that_passes_the_test_is_taken(sshd: Sshd, key: Path, tmp_path: Path) -> None:
    logins = [Login(sshd.host, sshd.port, "nobody-of-that-name", key),
              Login(sshd.host, sshd.port, "root", make_key(tmp_path)), Login(sshd.host, sshd.port, "root", key)]
    found = nodessh.wait_for_session(logins, time.monotonic() + 20, works)
    assert found == Login(sshd.host, sshd.port, "root", key, sshd.host_key)


def test_a_login_that_cannot_run_commands_is_not_taken(login: Login) -> None:
    with pytest.raises(NotYetError) as caught:
        nodessh.wait_for_session([login], time.monotonic() + 0.5, lambda _: False)
    assert str(caught.value) == f"root@{login.address}: let in, but cannot run commands"


# The login of a machine


class Row:
    """What a machine's row holds."""

    class BaseImage:
        class Provider:
            ssh_port = 2222

        provider = Provider()

    name, ip, user, host_key, base_image = "n1", "192.0.2.1", "zuul", OTHER_KEY, BaseImage()


def test_the_login_of_a_machine_is_made_of_its_row(key: Path) -> None:
    node = NodeConfig("jenkins", key, "/home/jenkins")
    assert Login.of_machine(Row(), node) == Login("192.0.2.1", 2222, "zuul", key, OTHER_KEY)


def test_a_machine_without_an_address_cannot_be_logged_in_to(key: Path) -> None:
    row = Row()
    row.ip = ""
    with pytest.raises(GateError, match="n1: has no address yet"):
        Login.of_machine(row, NodeConfig("jenkins", key, "/home/jenkins"))
