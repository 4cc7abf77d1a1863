"""Bad answers of a cloud, a Jenkins, or whoever is in their place: none, drop by drop, endless, from elsewhere."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keystoneauth1.exceptions
import keystoneauth1.session
import keystoneauth1.token_endpoint
import pytest
import requests

import cloud.login
import gateprocess
import httpcalls
from cloud.errors import CloudConfigError, CloudError, GoneError, explained
from gateconfig import JenkinsConfig
from jenkinsnodes import JenkinsError, Nodes
from tests.support.hostilehttp import (
    ENDLESS,
    SENSELESS,
    SLOW,
    Serve,
    drip_a_body,
    hostile_http,
    lead_nowhere,
    leading_to,
)
from tests.support.pool import PROJECT, Pool, image, provider
from tests.test_memory import MEASURE, MEGABYTES

SLACK_SECONDS = 25  # for a machine that is busy with other things
CALL_SECONDS = 1


def cloud_get(url: str, seconds: int = CALL_SECONDS) -> Any:
    """Make a call with a token, as the cloud's clients do."""
    session = keystoneauth1.session.Session(
        keystoneauth1.token_endpoint.Token(url, "TOKEN-CANARY"), timeout=seconds)
    httpcalls.limit(session.session)
    with explained("provider one: show server", "x"):
        return session.get(f"{url}servers/1", authenticated=True).json()


def nodes(url: str, folder: Path, seconds: int = CALL_SECONDS) -> Nodes:
    found = Nodes(JenkinsConfig(url, "robot", "KEY-CANARY", "nodes"), folder / "locks", "p")
    found._jenkins.timeout = seconds
    return found


@pytest.mark.parametrize("serve", [*SLOW, *ENDLESS, *SENSELESS])
def test_a_call_to_a_cloud_ends_in_its_time(serve: Serve) -> None:
    began = time.monotonic()
    with hostile_http(serve) as (url, _), pytest.raises(CloudError) as caught:
        cloud_get(url)
    assert time.monotonic() - began < CALL_SECONDS + SLACK_SECONDS
    assert not isinstance(caught.value, GoneError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("serve", [*SLOW, *ENDLESS, *SENSELESS])
def test_a_call_to_jenkins_ends_in_its_time(tmp_path: Path, serve: Serve) -> None:
    began = time.monotonic()
    with hostile_http(serve) as (url, _), pytest.raises(JenkinsError) as caught:
        nodes(url, tmp_path).look("n1")
    assert time.monotonic() - began < CALL_SECONDS + SLACK_SECONDS
    assert "\n" not in str(caught.value)


# --- redirects ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_login_of_a_cloud_goes_to_no_other_server(status: int) -> None:
    with hostile_http(lead_nowhere) as (other, seen), \
            hostile_http(leading_to(f"{other}servers/1", status)) as (url, asked), \
            pytest.raises(CloudError, match=f"leads to another server, {other}servers/1"):
        cloud_get(url)
    assert (len(asked), b"TOKEN-CANARY" in asked[0], seen) == (1, True, [])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_login_of_jenkins_goes_to_no_other_server(tmp_path: Path, status: int) -> None:
    with hostile_http(lead_nowhere) as (other, seen), \
            hostile_http(leading_to(other, status)) as (url, asked), \
            pytest.raises(JenkinsError, match=f"leads to another server, {other}, to which no login is carried"):
        nodes(url, tmp_path).look("n1")
    assert (len(asked), seen) == (1, [])


@pytest.mark.parametrize("form", ["http://{other}\\@{own}/", "//{other}\\@{own}/", "http://{own}@{other}/",
                                  "http:\\\\{other}/", "///{other}/", "http://{other}#@{own}/", "http://{other}?@{own}/"])
def test_no_trick_with_an_address_carries_a_login_elsewhere(tmp_path: Path, form: str) -> None:
    def serve(connection: Any, _: Any) -> None:
        answer(connection, "302 Found", headers=f"Location: {form.format(other=other, own=own)}\r\n")

    with hostile_http(lead_nowhere) as (elsewhere, seen), hostile_http(serve) as (url, _):
        other, own = (one.split("/")[2] for one in (elsewhere, url))
        with pytest.raises(CloudError):
            cloud_get(url)
        with pytest.raises(JenkinsError):
            nodes(url, tmp_path).look("n1")
        assert take_node(tmp_path, url).returncode == 1
    assert seen == []


@pytest.mark.parametrize(("link", "there"), [
    ("/v2/images?marker=a", "/v2/images?marker=a"), ("https://h:1/v2/images?marker=a", "https://h:1/v2/images?marker=a"),
    ("http://h:1/v2/images?marker=a", "https://h:1/v2/images?marker=a"),
    ("https://evil/v2/images?marker=a", "https://h:1/v2/images?marker=a"),
    ("//evil/v2/images?marker=a", "https://h:1/v2/images?marker=a"),
    ("https://evil\\@h:1/x", "https://h:1/%5C@h:1/x"), ("file:///etc/passwd", "https://h:1/etc/passwd")])
def test_the_next_page_of_a_list_is_on_the_server_of_the_first(link: str, there: str) -> None:
    page: Any
    for page, key in (({"images": [], "next": link}, "next"), ({"ports_links": [{"rel": "next", "href": link}]}, "")):
        assert httpcalls.move_next_page(page, "https://h:1/v2/images?limit=1") == (link != there)
        assert (page[key] if key else page["ports_links"][0]["href"]) == there
    for told in ({"next": 5}, ["next"], {"next": "http://[x"}, None, {"x_links": 5, "next": "a"}):
        before = json.dumps(told)
        assert not httpcalls.move_next_page(told, "https://h:1/")
        assert json.dumps(told) == before


@pytest.mark.parametrize("word", ["next", "\\u006eext"])  # the second is the first to whoever reads JSON
def test_a_list_leads_nowhere_else(word: str) -> None:
    """The answer says the same as text and parsed."""
    def serve(connection: Any, _: Any) -> None:
        answer(connection, "200 OK", b'{"%s": "http://elsewhere/v2/images?marker=a"}' % word.encode())

    session = requests.Session()
    httpcalls.limit(session)
    with hostile_http(serve) as (url, _):
        found = session.get(url)
    own = f"{url.rstrip('/')}/v2/images?marker=a"
    assert (found.json(), json.loads(found.text)) == ({"next": own}, {"next": own})


def answer(connection: Any, status: str, body: bytes = b"", headers: str = "") -> None:
    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body)


def test_a_404_behind_a_redirect_does_not_mean_that_a_thing_is_gone(tmp_path: Path) -> None:
    def serve(connection: Any, _: Any) -> None:
        if asked[-1].startswith(b"GET /lost"):
            answer(connection, "404 Not Found")
        else:
            answer(connection, "302 Found", headers="Location: /lost\r\n")

    asked: list[bytes] = []
    with hostile_http(serve, asked) as (url, _):
        with pytest.raises(CloudError, match=r"leads to .*/lost, where there is nothing") as caught:
            cloud_get(url)
        assert not isinstance(caught.value, GoneError)
        with pytest.raises(JenkinsError, match=r"leads to .*/lost, where there is nothing"):
            nodes(url, tmp_path).look("n1")


def test_a_change_that_is_only_redirected_is_not_taken_for_done(tmp_path: Path) -> None:
    """A proxy may lead all of http to another port."""
    with hostile_http(leading_to("http://127.0.0.1:1/computer/n1/doDelete")) as (url, _):
        jenkins = nodes(url, tmp_path)
        with pytest.raises(JenkinsError, match=r"leads to another server, http://127\.0\.0\.1:1/computer/n1/doDelete"):
            jenkins._ask("delete node n1", jenkins._request("POST", "computer/n1/doDelete"))


def test_a_change_that_leads_to_a_page_is_done(tmp_path: Path) -> None:
    with hostile_http(leading_to("../")) as (url, seen):
        jenkins = nodes(url, tmp_path)
        assert jenkins._ask("delete node n1", jenkins._request("POST", "computer/n1/doDelete")) == ""
    assert len(seen) == 1


def test_an_answer_behind_a_redirect_of_the_same_server_is_taken() -> None:
    def serve(connection: Any, _: Any) -> None:
        if len(asked) == 1:
            answer(connection, "301 Moved", headers="Location: /v2.1/servers/1/\r\n")
        else:
            answer(connection, "200 OK", b'{"server": 1}', "Content-Type: application/json\r\n")

    asked: list[bytes] = []
    with hostile_http(serve, asked) as (url, _):
        assert cloud_get(url) == {"server": 1}
    assert [one.split(b" ")[1] for one in asked] == [b"/servers/1", b"/v2.1/servers/1/"]
    assert b"TOKEN-CANARY" in asked[1]


# --- profiles ---


def connect_by(profile: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Connect to a cloud whose entry names a profile by its URL."""
    file = folder / "clouds.yaml"
    file.write_text(json.dumps({"clouds": {"x": {"profile": profile, "auth": {
        "username": "u", "password": "PW-CANARY", "project_name": "p"}}}}))
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", str(file))
    return cloud.login.connect(SimpleNamespace(name="one", cloud="x", region=None), CALL_SECONDS)


@pytest.mark.parametrize("serve", [drip_a_body, *ENDLESS, *SENSELESS])
def test_a_profile_that_is_fetched_has_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    began = time.monotonic()
    with hostile_http(serve) as (url, _), pytest.raises((CloudError, CloudConfigError)) as caught:
        connect_by(url, tmp_path, monkeypatch)
    assert time.monotonic() - began < CALL_SECONDS + SLACK_SECONDS
    assert str(caught.value).startswith(f"provider one: clouds.yaml: entry x: profile {url} "), caught.value


@pytest.mark.parametrize(
    ("told", "where"), [({"name": "y", "profile": {"auth": {"auth_url": "http://127.0.0.1:9/v3"}}}, "127.0.0.1:9"),
                        ([], ""), ({"name": "y", "profile": {"auth": 5}}, ""), ({"name": "y", "profile": 5}, "")])
def test_a_profile_is_used_only_if_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: Any, where: str
) -> None:
    with hostile_http(lambda connection, _: answer(connection, "200 OK", json.dumps(told).encode())) as (url, seen):
        if where:
            connection = connect_by(url, tmp_path, monkeypatch)
            assert connection.config.config["auth"]["auth_url"] == f"http://{where}/v3"
        else:
            with pytest.raises(CloudConfigError, match=rf"profile {url} is none: "):
                connect_by(url, tmp_path, monkeypatch)
    assert [one.split()[1] for one in seen] == [b"/.well-known/openstack/api"]


# --- scripts ---


def measured(pool: Pool, *words: str, seconds: float = 60, **limits: float) -> tuple[int, str, float, int]:
    """Run a script with short time limits; return exit code, stderr, and the seconds and megabytes that it took."""
    order = json.dumps({"limits": limits, "environment": {}, "folder": str(pool.folder)})
    command = [sys.executable, "-c", MEASURE, sys.executable, "-m", "tests.support.starter", order, *words]
    began = time.monotonic()
    result = subprocess.run(command, env={**os.environ, **pool.environment, "PYTHONPATH": str(PROJECT)}, cwd=PROJECT,
                            capture_output=True, text=True, timeout=seconds, check=False)
    return result.returncode, result.stderr, time.monotonic() - began, int(result.stdout.split()[-1]) >> 10


@pytest.mark.parametrize("serve", [drip_a_body, *ENDLESS])
@pytest.mark.parametrize("script", ["launch", "reap"])
def test_a_cloud_ends_no_script_s_patience_or_memory(tmp_path: Path, script: str, serve: Serve) -> None:
    pool = Pool(tmp_path)
    with hostile_http(serve) as (url, _):
        auth = {"auth_url": f"{url}v3", "username": "u", "password": "PW-CANARY", "project_name": "p",
                "user_domain_name": "d", "project_domain_name": "d"}
        clouds = tmp_path / "clouds.yaml"
        clouds.write_text(json.dumps({"clouds": {"pocket-a": {"auth": auth, "api_timeout": 2}}}))
        pool.environment["OS_CLIENT_CONFIG_FILE"] = str(clouds)
        pool.load(provider())
        code, err, took, megabytes = measured(pool, f"devstack-vm-{script}.py", "one")
    assert code == 1, err
    assert took < 2 + SLACK_SECONDS, err
    assert megabytes < MEGABYTES, err
    assert (len(err.strip().splitlines()[-1:]), "PW-CANARY" in err, "Traceback" in err) == (1, False, False), err


@pytest.mark.parametrize(
    "words", [("devstack-vm-inprogress.py",), ("devstack-vm-delete.py", "--result", "SUCCESS"),
              ("devstack-vm-reap.py",), ("devstack-vm-launch.py",)], ids=lambda words: words[0])
def test_a_jenkins_that_drips_holds_no_script(pool: Pool, words: tuple[str, ...]) -> None:
    pool.load(provider())
    name = pool.add_machine("USED" if "delete" in words[0] else "READY")
    with hostile_http(drip_a_body) as (url, _):
        pool.write_secure_config(server=url)
        subject = "one" if words[0].endswith(("reap.py", "launch.py")) else name
        code, err, took, _ = measured(pool, *words, subject, **{
            "jenkinsnodes.CALL_SECONDS": 3, "jenkinsnodes.QUICK_SECONDS": 1})
    assert (code, "no whole answer within" in err) == (1, True), err
    assert took < 3 + SLACK_SECONDS, err


# --- take-node.py ---


def take_node(tmp_path: Path, url: str, seconds: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the first step of a gate build as Jenkins does, with short time limits."""
    (tmp_path / ".devstack-gate-jenkins").write_text("node:TOKEN-CANARY\n")
    code = (f"import sys; sys.argv = ['take-node.py']; text = open({str(PROJECT / 'jobs/take-node.py')!r}).read();"
            f"text = text.replace('CALL_SECONDS = 30', 'CALL_SECONDS = {seconds}')"
            ".replace('BUSY_SECONDS = 300', 'BUSY_SECONDS = 1').replace('WAIT_SECONDS = 4800', 'WAIT_SECONDS = 1');"
            "exec(compile(text, 'take-node.py', 'exec'))")
    environment = {**os.environ, "HOME": str(tmp_path), "JENKINS_URL": url, "NODE_NAME": "n1", "JOB_NAME": "gate",
                   "BUILD_NUMBER": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60,
                          check=False)


@pytest.mark.parametrize("serve", [*SLOW, *ENDLESS, *SENSELESS])
def test_the_first_step_of_a_build_ends_whatever_answers(tmp_path: Path, serve: Serve) -> None:
    began = time.monotonic()
    with hostile_http(serve) as (url, _):
        result = take_node(tmp_path, url)
    assert time.monotonic() - began < 3 + SLACK_SECONDS
    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1), result.stderr
    assert result.stderr.endswith("; this build must not run on this node\n")


@pytest.mark.parametrize(("item", "build"), [
    ("[]", ""), ("null", ""), ('{"executable": 5}', ""), ('{"executable": {"number": 1e999}}', ""),
    ('{"executable": {"number": null}}', ""), ('{"executable": {"number": 5}}', "[]"),
    ('{"executable": {"number": 5}}', '{"result": "\\u001b[2J\\n\\ud800FORGED"}')])
def test_the_first_step_of_a_build_ends_whatever_a_queue_holds(tmp_path: Path, item: str, build: str) -> None:
    def serve(connection: Any, _: Any) -> None:
        path = asked[-1].split()[1]
        if asked[-1].startswith(b"POST"):
            answer(connection, "201 Created", headers="Location: http://x/queue/item/7/\r\n")
        else:
            answer(connection, "200 OK", (
                item if b"/queue/" in path else "\x1b[2Jlast words" if b"consoleText" in path else build).encode())

    asked: list[bytes] = []
    with hostile_http(serve, asked) as (url, _):
        result = take_node(tmp_path, url)
    assert (result.returncode, result.stderr.replace("\n", "").isprintable()) == (1, True), result.stderr
    assert result.stderr.endswith("; this build must not run on this node\n")
    assert len(result.stderr.splitlines()) == 1 + ("FORGED" in build)


@pytest.mark.parametrize("status", [302, 307])
def test_the_login_of_a_node_goes_to_no_other_server(tmp_path: Path, status: int) -> None:
    with hostile_http(lead_nowhere) as (other, seen), hostile_http(leading_to(other, status)) as (url, asked):
        result = take_node(tmp_path, url)
    assert f"leads to {other}, to which no login is carried" in result.stderr
    assert (b"Authorization" in asked[0], seen) == (True, [])


# --- texts and reasons ---

NASTY = "\x1b[31mred\x1b[0m \x9b2J \u202eevil\nFORGED line\r\tend " + "x" * 5000


def test_what_others_say_is_one_printable_line() -> None:
    said = gateprocess.plain(NASTY, 100)
    assert (said.isprintable(), len(said)) == (True, 100)
    assert said.startswith("?[31mred?[0m ?2J ?evil FORGED line end xxx")


def test_a_message_of_several_lines_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    gateprocess.setup_logging(0)
    gateprocess.get_log().warning("%s", NASTY)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.isprintable() and " WARNING " in line for line in lines), lines
    assert len(lines) == 3


def test_the_text_of_an_answer_is_looked_through_in_no_time() -> None:
    began = time.monotonic()
    for text in ("<" * 2_000_000, "A" * 2_000_000, "A (HTTP " * 200_000):
        with pytest.raises(CloudError), explained("provider one: log in", "x"):
            raise keystoneauth1.exceptions.DiscoveryFailure(text)
    assert time.monotonic() - began < SLACK_SECONDS


@pytest.mark.parametrize(
    ("url", "reason"), [("http://no-such-name.invalid:5000/v3", "Failed to resolve 'no-such-name.invalid'"),
                        ("https://{host}/v3", "(?i)wrong.version.number|record layer failure")])
def test_the_reason_of_a_failed_connection_is_not_cut_off(url: str, reason: str) -> None:
    def serve(connection: Any, _: Any) -> None:
        answer(connection, "400 Bad Request")

    with hostile_http(serve) as (plain_url, _), pytest.raises(CloudError) as caught:
        cloud_get(f"{url.format(host=plain_url.split('/')[2])}/{'long-' * 60}/", SLACK_SECONDS)
    assert re.search(reason, str(caught.value)), str(caught.value)


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[str]:
    """Yield the URL of a server whose certificate nobody else has signed."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out",
                    str(certificate), "-days", "2", "-subj", "/CN=127.0.0.1"], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    def serve(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection = listener.accept()[0]
                with suppress(OSError):
                    context.wrap_socket(connection, server_side=True).recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"https://127.0.0.1:{listener.getsockname()[1]}/"
        listener.shutdown(socket.SHUT_RDWR)


def test_a_certificate_that_is_not_good_is_told(self_signed: str, tmp_path: Path) -> None:
    with pytest.raises(CloudError, match=r"certificate verify failed: self.signed certificate"):
        cloud_get(f"{self_signed}{'long-' * 60}/", SLACK_SECONDS)
    with pytest.raises(JenkinsError, match=r"certificate verify failed: self.signed certificate"):
        nodes(self_signed, tmp_path, SLACK_SECONDS).look("n1")


def test_a_name_of_jenkins_that_does_not_resolve_is_told(tmp_path: Path) -> None:
    with pytest.raises(JenkinsError, match=r"Failed to resolve|Name or service not known|name resolution"):
        nodes("http://no-such-name.invalid/", tmp_path).look("n1")


@pytest.mark.parametrize("server", ["http://bob:URL-CANARY@127.0.0.1:1/", "https://URL-CANARY@jenkins.example.org",
                                    "bob:URL-CANARY@jenkins.example.org/", "ftp://bob:URL-CANARY@jenkins.example.org/"])
def test_a_login_in_the_url_of_jenkins_is_refused_and_not_shown(pool: Pool, server: str) -> None:
    pool.load(provider())
    pool.write_secure_config(server=server)
    result = pool.run("devstack-vm-launch.py", "one", expect=2)
    (line,) = result.stderr.splitlines()
    assert "secure.conf: [jenkins] server: expected a URL without a login in it" in line
    assert "CANARY" not in result.stderr


def test_what_jenkins_and_the_cloud_say_is_made_printable_wherever_it_goes(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=1)]))
    pool.seed_snapshots()
    pool.knobs(boot_failure_rate=1.0, boot_failure="error", boot_fault=NASTY)

    result = pool.run("devstack-vm-launch.py", "one", expect=1)

    ((error,),) = pool.sql("SELECT error FROM machine")
    assert error.startswith("the server went to ERROR: ?[31mred?[0m ?2J ?evil FORGED line end xxx"), error
    assert error.isprintable()
    assert len(error) < gateprocess.TEXT_LENGTH + 100
    assert all(line.isprintable() for line in result.stderr.splitlines())
