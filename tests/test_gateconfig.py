"""Settings, logging, exit codes and locks, which all scripts share."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import gateconfig
import gateprocess
from gateconfig import ImageConfig, JenkinsConfig, NodeConfig, SecureConfig
from gateprocess import ConfigError
from tests.support.pool import PROJECT, Pool, provider

JENKINS = "[jenkins]\nserver = https://jenkins.example.org/\nuser = gate\napikey = s3cr3t\ncredentials_id = nodes\n"
IMAGE_DEFAULTS = ImageConfig((), ("master", "stable/*"), "", "modules", "manifests/site.pp")


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    """Return a pool with neither cloud nor Jenkins; vm.db has one provider."""
    pool = Pool(tmp_path)
    pool.load(provider())
    return pool


@pytest.fixture
def secure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of the secure configuration, which does not exist yet; ~ is the test's folder."""
    path = tmp_path / "secure.conf"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DEVSTACK_GATE_SECURE_CONFIG", str(path))
    return path


# Where settings come from


@pytest.mark.parametrize("address", [
    "postgresql://u:p/CANARY@host/db", "postgresql://u:CANARY?x@127.0.0.1/db", "postgresql://u:CANARY#x@127.0.0.1:1/db",
    "postgresql://u:CANARY@[::1/db", "postgresql://h:5432/db?password=CANARY", "postgresql://h/db?pass%77ord=CANARY",
    "postgresql://h/db?oauth_client_secret=CANARY", "postgresql:u:CANARY@h/db", "host=h password=CANARY dbname=x",
    "password = CANARY", "mysql://u:CANARY@h/db", "postgresql://u:CA\nNARY@h/db"])
def test_a_database_with_a_password_in_its_address_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^DEVSTACK_GATE_DB: expected") as caught:
        gateconfig.place_of_database(address, "DEVSTACK_GATE_DB")
    assert "NARY" not in str(caught.value)


@pytest.mark.parametrize("place", ["postgresql://u@h:5432/db?application_name=a@b", "postgresql://[::1]:5432/db",
                                   "postgresql:///db?host=/run/postgresql", "postgresql://h1:1,h2:2/db", "/var/vm.db",
                                   "~/a=b.db", "/srv/host=x/vm.db"])
def test_a_database_without_a_password_in_its_address_is_taken(place: str) -> None:
    assert str(gateconfig.place_of_database(place, "x")).endswith(place.removeprefix("~"))


@pytest.mark.parametrize(("text", "shown"), [
    ("no http://u:p/CANARY@host/x here", "no http://host/x here"), ("a://u:p@h/", "a://h/"), ("a://h:80/x@y", "a://h:80/x@y"),
    ("a://[::1]:80/x@y", "a://[::1]:80/x@y"), ("a://u:CANARY?b@h", "a://h"), ("http://h/a: b@c", "http://h/a: b@c")])
def test_logins_of_urls_are_not_shown(text: str, shown: str) -> None:
    assert gateprocess.printable(text) == shown


@pytest.mark.parametrize(
    ("arguments", "environment", "made"),
    [
        (["--db", "option.db"], {"DEVSTACK_GATE_DB": "environment.db"}, "option.db"),
        ([], {"DEVSTACK_GATE_DB": "environment.db"}, "environment.db"),
        ([], {"DEVSTACK_GATE_DB": "~/home.db"}, "home.db"),
        ([], {"DEVSTACK_GATE_DB": ""}, "vm.db"),
    ],
    ids=["option", "variable", "tilde", "default"],
)
def test_the_option_goes_before_the_variable_and_the_variable_before_the_default(
    tmp_path: Path, arguments: list[str], environment: dict[str, str], made: str
) -> None:
    Pool(tmp_path).run("vmdatabase.py", *arguments, **environment, expect=0)
    assert [file.name for file in tmp_path.glob("*.db")] == [made]


def test_the_secure_configuration_is_looked_for_in_the_home_folder_by_default(pool: Pool) -> None:
    pool.secure_config.rename(pool.folder / "devstack-gate-secure.conf")
    name = pool.add_machine("USED", node=False, server=False)
    pool.run("devstack-vm-delete.py", name, DEVSTACK_GATE_SECURE_CONFIG="", expect=0)
    assert pool.machines() == {name: "DELETE"}


NODE_DEFAULTS = {"user": "jenkins", "ssh_key": "id_ed25519", "remote_fs": "/home/jenkins"}


@pytest.mark.parametrize(
    ("text", "jenkins", "node", "image"),
    [
        ("", None, NODE_DEFAULTS, {}),
        (JENKINS, JenkinsConfig("https://jenkins.example.org/", "gate", "s3cr3t", "nodes"), NODE_DEFAULTS, {}),
        ("[node]\nuser = zuul\n", None, NODE_DEFAULTS | {"user": "zuul", "remote_fs": "/home/zuul"}, {}),
        ("[node]\nuser = root\n", None, NODE_DEFAULTS | {"user": "root", "remote_fs": "/root"}, {}),
        ("[node]\nssh_key = ~/other\nremote_fs = /srv/jenkins\n", None,
         NODE_DEFAULTS | {"ssh_key": "../other", "remote_fs": "/srv/jenkins"}, {}),
        ("[image]\npackages = git\n    vim\n", None, NODE_DEFAULTS, {"packages": ("git", "vim")}),
        ("[image]\npackages = @development-tools gcc-c++ glibc.i686\n", None, NODE_DEFAULTS,
         {"packages": ("@development-tools", "gcc-c++", "glibc.i686")}),
        ("[image]\nbranches = main\n  stable/2025.*\n", None, NODE_DEFAULTS, {"branches": ("main", "stable/2025.*")}),
        ("[image]\npackages =\nbranches =\npuppet_repo =\n", None, NODE_DEFAULTS, {}),
        ("[image]\npuppet_repo = https://example.org/puppet\n", None, NODE_DEFAULTS,
         {"puppet_repo": "https://example.org/puppet"}),
        ("[image]\npuppet_repo = x\npuppet_modulepath = a:/b\npuppet_manifest = node.pp\n", None, NODE_DEFAULTS,
         {"puppet_repo": "x", "puppet_modulepath": "a:/b", "puppet_manifest": "node.pp"}),
    ],
    ids=["empty", "jenkins", "user", "root", "paths", "packages", "rpm packages", "branches", "empty values", "puppet",
         "all of puppet"],
)
def test_what_the_secure_configuration_leaves_out_has_its_default(
    secure: Path, text: str, jenkins: JenkinsConfig | None, node: dict[str, str], image: dict[str, Any]
) -> None:
    secure.write_text(text)
    secure.chmod(0o600)
    key = (secure.parent / ".ssh" / node["ssh_key"]).resolve()
    expected = SecureConfig(
        secure, (jenkins,) if jenkins else (), NodeConfig(node["user"], key, node["remote_fs"]),
        IMAGE_DEFAULTS._replace(**image))
    assert gateconfig.load_secure_config() == expected


def test_the_settings_of_images_have_defaults_where_there_is_no_file(secure: Path) -> None:
    assert gateconfig.load_image_config() == IMAGE_DEFAULTS
    secure.write_text("[image]\nbranches = main\n")
    assert gateconfig.load_image_config() == IMAGE_DEFAULTS._replace(branches=("main",))


@pytest.mark.parametrize("packages", [gateconfig.DEB_PACKAGES, gateconfig.RPM_PACKAGES], ids=["deb", "rpm"])
def test_the_default_packages_are_words_that_the_file_could_hold(secure: Path, packages: tuple[str, ...]) -> None:
    secure.write_text(f"[image]\npackages = {' '.join(packages)}\n")
    assert gateconfig.load_image_config().packages == packages


def test_a_percent_sign_in_a_value_means_itself(secure: Path) -> None:
    secure.write_text(JENKINS.replace("s3cr3t", "50%(off)s"))
    config = gateconfig.load_secure_config()
    assert [jenkins.apikey for jenkins in config.jenkinses] == ["50%(off)s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[jenkin]\n", "unknown section [jenkin]; did you mean jenkins?"),
        ("[x]\n", "unknown section [x]; known are jenkins, node, image"),
        ("[node]\nusr = jenkins\n", "[node] unknown key usr; did you mean user?"),
        ("[node]\nuser = Jenkins User\n", "[node] user: expected an account name, got 'Jenkins User'"),
        ("[node]\nremote_fs = ~/x\n", "[node] remote_fs: expected an absolute path on the nodes, got '~/x'"),
        ("[image]\nbranch = master\n", "[image] unknown key branch; did you mean branches?"),
        ("[image]\npackages = git -y\n", "[image] packages: '-y' is no package's name"),
        ("[image]\npackages = git, vim\n", "[image] packages: 'git,' is no package's name"),
        ("[image]\npuppet_manifest = site.pp\n",
         "[image] puppet_repo is missing, which puppet_modulepath and puppet_manifest belong to"),
        ("[image]\npuppet_modulepath = modules\n",
         "[image] puppet_repo is missing, which puppet_modulepath and puppet_manifest belong to"),
        (JENKINS.replace("apikey = s3cr3t", ""), "[jenkins] apikey is missing"),
        (JENKINS.replace("s3cr3t", ""), "[jenkins] apikey is missing"),
        (JENKINS.replace("credentials_id = nodes", ""), "[jenkins] credentials_id is missing"),
        (JENKINS.replace("https://", "ftp://"),
         "[jenkins] server: expected an http(s) URL, got 'ftp://jenkins.example.org/'"),
        (JENKINS.replace("https://", ""), "[jenkins] server: expected an http(s) URL, got 'jenkins.example.org/'"),
        (JENKINS.replace("jenkins.example.org/", ""), "[jenkins] server: expected an http(s) URL, got 'https://'"),
        (JENKINS.replace(".org/", ".org:http/"),
         "[jenkins] server: expected an http(s) URL, got 'https://jenkins.example.org:http/'"),
        (JENKINS.replace(".org/", ".org:99999/"),
         "[jenkins] server: expected an http(s) URL, got 'https://jenkins.example.org:99999/'"),
        (JENKINS.replace("apikey", "    apikey"), "[jenkins] user: expected one line of text (an indented line goes on "
                                                  "with the one before it)"),
        ("apikey = s3cr3t\n", "not an INI file: line 1: expected key = value in a [section]"),
        (JENKINS + "s3cr3t\n", "not an INI file: line 6: expected key = value in a [section]"),
        (JENKINS + "user = twice\n", "not an INI file: line 6: [jenkins] user is given twice"),
        (JENKINS + "[jenkins]\n", "not an INI file: line 6: section [jenkins] is given twice"),
        ("[DEFAULT]\nx = y\n" + JENKINS, "[DEFAULT] unknown key x; known are server, user, apikey, credentials_id, "
                                         "node_user, node_apikey"),
        (JENKINS.replace("[jenkins]", "[jenkins a b]"), "[jenkins a b]: expected [jenkins NAME], NAME with at most 60 "
                                                        "letters, digits, ., _ and -"),
    ],
    ids=["section", "far section", "key", "account", "folder", "image key",
         "option", "comma", "manifest", "modules", "no key",
         "empty key", "no credential", "ftp", "no scheme",
         "no host", "port", "high port", "two lines", "no section", "no key and value", "key twice", "section twice",
         "for all sections", "name of a Jenkins"],
)
def test_a_wrong_secure_configuration_is_named_with_section_and_key(secure: Path, text: str, message: str) -> None:
    secure.write_text(text)
    with pytest.raises(ConfigError) as caught:
        gateconfig.load_secure_config()
    assert str(caught.value) == f"{secure}: {message}"


def test_an_unreadable_secure_configuration_says_how_to_name_another(secure: Path) -> None:
    hint = "set DEVSTACK_GATE_SECURE_CONFIG or create it"
    with pytest.raises(ConfigError) as missing:
        gateconfig.load_secure_config()
    secure.write_bytes(b"[node]\nuser = \xff\n")
    with pytest.raises(ConfigError) as binary:
        gateconfig.load_secure_config()
    secure.unlink()
    secure.mkdir()
    with pytest.raises(ConfigError) as folder:
        gateconfig.load_secure_config()
    reasons = ["No such file or directory", "not UTF-8 text", "Is a directory"]
    assert [str(one.value) for one in (missing, binary, folder)] == [
        f"{secure}: secure configuration cannot be read ({reason}); {hint}" for reason in reasons]


@pytest.mark.parametrize("missing", ["", ".pub"], ids=["private", "public"])
def test_a_missing_ssh_key_is_named_with_the_key_of_the_file(secure: Path, missing: str) -> None:
    secure.write_text(f"[node]\nssh_key = {secure.parent}/key\n")
    for end in {"", ".pub"} - {missing}:
        Path(f"{secure.parent}/key{end}").write_text("")
    with pytest.raises(ConfigError) as caught:
        gateconfig.require_ssh_key(gateconfig.load_secure_config())
    assert str(caught.value) == f"{secure}: [node] ssh_key: there is no file {secure.parent}/key{missing}"


# Secrets


@pytest.mark.parametrize(("mode", "warns"), [(0o600, False), (0o400, False), (0o640, True), (0o604, True)])
def test_a_secure_configuration_that_others_can_read_is_a_warning(pool: Pool, mode: int, warns: bool) -> None:
    name = pool.add_machine("USED", node=False, server=False)
    pool.secure_config.chmod(mode)
    result = pool.run("devstack-vm-delete.py", "-q", name, expect=0)
    warning = f"WARNING {pool.secure_config} can be read by others than its owner (mode {mode:o}); chmod 600 it"
    assert [line.partition(" ")[2] for line in result.stderr.splitlines()] == [warning] * warns


@pytest.mark.parametrize("mode", [0o666, 0o620, 0o602, 0o777])
@pytest.mark.parametrize("which", ["secure configuration", "ssh key"])
def test_a_file_of_secrets_that_others_can_write_is_refused(pool: Pool, which: str, mode: int) -> None:
    name = pool.add_machine("USED", node=False, server=False)
    path = pool.secure_config if which == "secure configuration" else pool.key
    path.chmod(mode)

    result = pool.run("devstack-vm-delete.py", "-q", name, expect=2)

    path.chmod(0o600)
    assert result.stderr == (f"devstack-vm-delete.py: {path}: can be written by others than its owner (mode {mode:o}); "
                             "see that it is as you wrote it, and chmod 600 it\n")
    assert pool.machines()[name] == "USED"


def test_an_ssh_key_that_others_can_read_is_a_warning(pool: Pool) -> None:
    name = pool.add_machine("USED", node=False, server=False)
    pool.key.chmod(0o640)
    result = pool.run("devstack-vm-delete.py", "-q", name, expect=0)
    pool.key.chmod(0o600)
    assert [line.partition(" ")[2] for line in result.stderr.splitlines()] == [
        f"WARNING {pool.key} can be read by others than its owner (mode 640); chmod 600 it"]


@pytest.mark.parametrize(("mode", "told"), [
    (0o600, ""), (0o644, "WARNING {} can be read by others than its owner (mode 644); chmod 600 it"),
    (0o664, "{}: can be written by others than its owner (mode 664); see that it is as you wrote it"),
])
@pytest.mark.parametrize("place", ["named", "home"])
def test_the_modes_of_clouds_yaml_are_looked_at(pool: Pool, mode: int, told: str, place: str) -> None:
    pool.load(provider())
    path = pool.folder / ("c.yaml" if place == "named" else ".config/openstack/clouds.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("clouds: {}\n")
    path.chmod(mode)

    result = pool.run("devstack-vm-reap.py", "-q", "one", expect=2,
                      OS_CLIENT_CONFIG_FILE=str(path) if place == "named" else "")

    lines = [line for line in result.stderr.splitlines() if "than its owner" in line]
    assert [told.format(path) in line for line in lines] == [True] * bool(told)
    assert ("pocket-a" in result.stderr) == (mode != 0o664), "nothing is done with a file that others can write"


def test_secrets_are_not_shown_by_repr(secure: Path) -> None:
    secure.write_text(JENKINS)
    secure.chmod(0o600)
    assert "s3cr3t" not in repr(gateconfig.load_secure_config())
    assert "apikey" not in repr(gateconfig.load_secure_config())


# Prefix


@pytest.mark.parametrize("prefix", ["", "ci-", "Team7-"])
def test_a_prefix_may_hold_letters_digits_and_dashes(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("DEVSTACK_GATE_PREFIX", prefix)
    assert gateconfig.name_prefix() == prefix


@pytest.mark.parametrize("prefix", ["a b", "a_b", "a/b", "ö", "a\n", "a.b"])
def test_a_prefix_with_anything_else_is_refused(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    monkeypatch.setenv("DEVSTACK_GATE_PREFIX", prefix)
    with pytest.raises(ConfigError) as caught:
        gateconfig.name_prefix()
    assert str(caught.value) == f"DEVSTACK_GATE_PREFIX: {prefix!r} may hold letters, digits and - only"


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("min-redy", ["min-ready", "min-ram"], "; did you mean min-ready?"),
        ("xyz", ["one", "two"], "; known are one, two"),
    ],
)
def test_the_nearest_known_word_is_named(word: str, known: list[str], hint: str) -> None:
    assert gateprocess.nearest(word, known) == hint


# Log lines


def test_log_lines_have_the_time_in_utc_the_level_and_the_subject(pool: Pool) -> None:
    name = pool.add_machine("USED", node=False, server=False)
    result = pool.run("vmdatabase.py", "hold", name, "--reason", "100% of it", TZ="Asia/Tokyo", expect=0)
    stamp, text = result.stderr.splitlines()[0].split("Z ", 1)
    assert text == f"INFO provider=one image=noble machine=1 node={name} USED -> HOLD: 100% of it"
    assert abs(datetime.fromisoformat(stamp).replace(tzinfo=UTC) - datetime.now(UTC)) < timedelta(seconds=30)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", stamp)


MANY_LINES = """
import sys
sys.path.insert(0, {project!r})
import gateprocess

gateprocess.setup_logging(0)
gateprocess.get_log(provider="one", image="noble").error("%s", {message!r})
"""


@pytest.mark.parametrize(("message", "lines"), [
    ("one\ntwo", ["one", "two"]),
    ("one\r\n\ntwo\n", ["one", "", "two"]),
    ("", [""]),
    ("50% of\n{it}", ["50% of", "{it}"]),
], ids=["two", "blank", "none", "signs"])
def test_each_line_of_a_message_has_time_level_and_subject(message: str, lines: list[str]) -> None:
    script = MANY_LINES.format(project=str(PROJECT), message=message)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split("Z ", 1)[1] for line in result.stderr.splitlines()] == [
        f"ERROR provider=one image=noble {line}" for line in lines]


def test_each_line_of_a_traceback_has_time_level_and_subject() -> None:
    script = MANY_LINES.format(project=str(PROJECT), message="x") + \
        "\ntry:\n    1 / 0\nexcept ZeroDivisionError:\n    gateprocess.get_log(image='b').warning('w', exc_info=True)\n"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    lines = [line.split("Z ", 1)[1] for line in result.stderr.splitlines()][1:]
    assert lines[:2] == ["WARNING image=b w", "WARNING image=b Traceback (most recent call last):"]
    assert lines[-1] == "WARNING image=b ZeroDivisionError: division by zero"


@pytest.mark.parametrize(("option", "levels"), [("-q", ["WARNING"]), ("-v", ["INFO", "WARNING"])])
def test_quiet_leaves_warnings(pool: Pool, option: str, levels: list[str]) -> None:
    name = pool.add_machine("USED", node=False, server=False)
    pool.secure_config.chmod(0o644)
    result = pool.run("devstack-vm-delete.py", option, name, expect=0)
    seen = {line.split()[1] for line in result.stderr.splitlines()}
    assert sorted(seen - {"DEBUG"}) == levels


def test_results_go_to_stdout_alone(pool: Pool) -> None:
    file = pool.folder / "providers.yaml"
    file.write_text(file.read_text().replace("max-servers: 10", "max-servers: 1"))
    result = pool.run("vmdatabase.py", "load", str(file), expect=0)
    assert result.stdout == "change provider one: max-servers 10 -> 1\n"
    assert [line.split("Z ", 1)[1] for line in result.stderr.splitlines()] == [
        "WARNING provider=one min-ready adds up to 2, but max-servers is 1: the pool can never be full"]


# A script for each provider

CHILD = """
import os, signal, sys, time
sys.path.insert(0, {project!r})
import gateprocess

def body():
    word = sys.argv[1]
    if word == "all":
        return gateprocess.run_each({names!r}, sys.argv[1:])
    os.write(1, (" ".join(sys.argv[1:]) + "\\n").encode())
    if word == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "hangs":
        time.sleep(60)
    return int(word)

gateprocess.run(body)
"""


def each(folder: Path, *names: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    script = folder / "script.py"
    script.write_text(CHILD.format(project=str(PROJECT), names=list(names)))
    return subprocess.Popen([sys.executable, str(script), "all", *options], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (("0", "0"), 0),
        (("0", "1"), 1),
        (("0", "2"), 1),
        (("1", "2"), 1),
        (("1", "1"), 1),
        (("2", "2"), 2),
        (("143", "143"), 1),
        (("killed", "0"), 1),
        (("killed", "killed"), 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_one_code_stands_for_those_of_all_providers(tmp_path: Path, names: tuple[str, ...], code: int) -> None:
    with each(tmp_path, *names, options=("--dry-run", "-q")) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (code, "")
    assert sorted(out.splitlines()) == sorted(f"{name} --dry-run -q" for name in names)


def test_all_of_no_providers_is_2(tmp_path: Path) -> None:
    with each(tmp_path) as process:
        out, err = process.communicate(timeout=30)
    message = "script.py: all: vm.db has no providers yet; run: vmdatabase.py load FILE\n"
    assert (process.returncode, out, err) == (2, "", message)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_over_all_providers_stops_each(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with each(tmp_path, "0", "hangs") as process:
        assert process.stdout
        assert {process.stdout.readline(), process.stdout.readline()} == {"0\n", "hangs\n"}
        process.send_signal(number)
        out, err = process.communicate(timeout=30)  # ends only when the child has let go of the pipes, too
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err


# Locks

HOLDER = """
import sys
from pathlib import Path
sys.path.insert(0, {project!r})
import gateprocess

with gateprocess.file_lock(Path({path!r}), 0) as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run another process that has a lock."""
    command = [sys.executable, "-c", HOLDER.format(project=str(PROJECT), path=str(path))]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def test_a_lock_is_had_by_one_process_only(tmp_path: Path) -> None:
    lock = tmp_path / "locks" / "launch-one"
    with holder(lock):
        began = time.monotonic()
        with gateprocess.file_lock(lock, 0.3) as mine:
            assert mine is False
    assert time.monotonic() - began >= 0.3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_the_process_that_has_it(tmp_path: Path, number: signal.Signals) -> None:
    with holder(tmp_path / "lock") as process:
        process.send_signal(number)
        process.wait(10)
        with gateprocess.file_lock(tmp_path / "lock", 0) as mine:
            assert mine is True


def test_a_lock_that_is_let_go_of_in_time_is_had(tmp_path: Path) -> None:
    with holder(tmp_path / "lock") as process:
        assert process.stdin
        process.stdin.close()
        with gateprocess.file_lock(tmp_path / "lock", 10) as mine:
            assert mine is True


def test_a_second_launch_on_a_provider_leaves_it_to_the_first(pool: Pool) -> None:
    with holder(Path(f"{pool.database}.locks/launch-one")) as process:
        result = pool.run("devstack-vm-launch.py", "-q", "one", expect=0)
    (line,) = result.stderr.splitlines()
    assert line.split("Z ", 1)[1].startswith(
        "WARNING provider=one another launch is at work on this provider; leaving it to that one "
        f"(process {process.pid}, since 2")


NAMED_HOLDER = """import sys; sys.path.insert(0, {project!r})
from pathlib import Path
import gateprocess
with gateprocess.file_lock(Path({path!r}), 0, "node-1") as mine:
    print(mine, flush=True)
    sys.stdin.read()
"""


def test_names_share_a_lock_file_and_do_not_keep_each_other_waiting(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "nodes"
    command = [sys.executable, "-c", NAMED_HOLDER.format(project=str(PROJECT), path=str(path))]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == "True\n"
            had = {}
            for name in ("node-1", "node-2"):
                with gateprocess.file_lock(path, 0, name) as mine, gateprocess.file_lock(path, 0, name) as again:
                    had[name] = (mine, again)
            assert had == {"node-1": (False, False), "node-2": (True, False)}
        finally:
            process.kill()
    with gateprocess.file_lock(path, 0, "node-1") as mine:
        assert mine is True
    assert [file.name for file in path.parent.iterdir()] == ["nodes"]


def test_a_byte_order_mark_before_the_first_section_plays_no_part(secure: Path) -> None:
    secure.write_bytes(b"\xef\xbb\xbf[node]\nuser = stack\n")
    secure.chmod(0o600)
    assert gateconfig.load_secure_config().node.user == "stack"
