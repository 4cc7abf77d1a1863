"""What people who type a command see: help, one line for what is wrong, the right exit code, and nothing changed."""

import ast
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

import gateprocess
from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import PROJECT, SCRIPT_SECONDS, Pool, await_that, image, provider
from tests.support.sshserver import free_address

NODE = "devstack-noble-one-1"
LAUNCH, REAP, UPDATE = "devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-update-image.py"
INPROGRESS, DELETE, VMDB = "devstack-vm-inprogress.py", "devstack-vm-delete.py", "vmdatabase.py"
SCRIPTS = (VMDB, LAUNCH, INPROGRESS, DELETE, REAP, UPDATE)
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (DEBUG|INFO|WARNING|ERROR) ")
HOLD = (VMDB, "hold", NODE, "--reason", "bug 7")
Call = tuple[str, ...]


def pairs(calls: Sequence[Call], few: Sequence[Call], kinds: Sequence[str]) -> list[ParameterSet]:
    """Return all calls with the first kind, and a few with the others: all read the same things in the same way."""
    combined = [(call, kinds[0]) for call in calls] + [(call, kind) for kind in kinds[1:] for call in few]
    return [pytest.param(call, kind, id=f"{' '.join(call)}-{kind}") for call, kind in combined]


@pytest.fixture(scope="module")
def made(site: tuple[Pocket, StandIn], tmp_path_factory: pytest.TempPathFactory) -> Pool:
    """Make a pool with one provider, a snapshot to boot from, room, and a READY machine."""
    pool = Pool(tmp_path_factory.mktemp("made"), *site)
    pool.load(provider())
    pool.seed_snapshots()
    pool.add_machine(server=False, node=False, jenkins_name=NODE, ip="127.0.0.1")
    return pool


@pytest.fixture
def pool(pool: Pool, made: Pool) -> Pool:
    """Return a copy of that pool for each test, with the machine's node."""
    for file in (made.database, made.folder / "providers.yaml"):
        shutil.copy(file, pool.folder)
    with closing(sqlite3.connect(pool.database)) as connection, connection:  # as if it had been made there
        connection.execute("UPDATE setting SET value = ? WHERE name = 'path'", [str(pool.database)])
    pool.add_node(NODE, "devstack-noble", "127.0.0.1")
    return pool


LOCKED_CALLS: list[Call] = [(DELETE, "-q", NODE), HOLD, (VMDB, "load", "providers.yaml")]


@pytest.fixture(scope="module", autouse=True)
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pool, list[subprocess.Popen[str]]]]:
    """Start scripts on a vm.db that stays locked; they wait from the first test on, and the last one looks at them."""
    pool = Pool(tmp_path_factory.mktemp("locked"))
    pool.load(provider())
    pool.add_machine("USED", server=False)
    with closing(sqlite3.connect(pool.database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        processes = [pool.start(*call) for call in LOCKED_CALLS]
        try:
            yield pool, processes
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def contents(path: Path) -> object:
    """Return what is in vm.db, or in what is there instead."""
    if path.is_dir():
        return sorted(path.iterdir())
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            return list(connection.iterdump())
    except sqlite3.Error:
        return path.read_bytes() if path.exists() else None


def service(pool: Pool) -> dict[str, bool]:
    """Return the nodes, and whether each is in service."""
    return {name: pool.in_service(name) for name in pool.nodes()} if pool.jenkins else {}


def told(result: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the lines on stderr that are not log lines."""
    return [line for line in result.stderr.splitlines() if not LOG_LINE.match(line)]


def shape(text: str) -> str:
    """Return a regular expression for a text in which ... stands for anything."""
    return re.escape(text).replace(re.escape("..."), ".*")


def check_refused(pool: Pool, call: Call, code: int, message: str, **environment: str) -> None:
    """Run a script, and check that it ends with this code and this one line and has changed nothing."""
    before = contents(pool.database), service(pool)
    result = pool.run(*call, expect=code, **environment)
    (line,) = told(result)
    assert re.fullmatch(rf"{re.escape(call[0])}( \w+)?: {shape(message)}", line), line
    assert result.stdout == ""
    assert (contents(pool.database), service(pool)) == before
    if pool.pocket:
        assert pool.created() == 0


# Help


def docstring(script: str) -> list[str]:
    return (ast.get_docstring(ast.parse((PROJECT / script).read_text())) or "").splitlines()


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_prints_the_docstring_from_any_folder_and_through_a_link(tmp_path: Path, script: str) -> None:
    link = tmp_path / "bin" / "gate-script"
    link.parent.mkdir()
    link.symlink_to(PROJECT / script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path)}  # no vm.db, no settings
    result = subprocess.run([link, "--help"], cwd="/", env=environment, text=True, capture_output=True, timeout=60,
                            check=False)
    assert (result.returncode, result.stderr) == (0, "")
    lines = docstring(script)
    start = result.stdout.splitlines().index(lines[0])
    assert result.stdout.splitlines()[start:start + len(lines)] == lines
    assert list(tmp_path.iterdir()) == [link.parent]


@pytest.mark.parametrize("script", [*SCRIPTS, "devstack-vm-update-image.sh", "devstack-vm-gate-wrap.sh",
                                    "devstack-vm-gate.sh", "run-demo.sh", "run-tests.sh", "jobs/check.py",
                                    "jobs/after-build.py"])
def test_each_script_tells_the_version_that_stands_in_one_place(tmp_path: Path, script: str) -> None:
    link = tmp_path / "gate-script"
    link.symlink_to(PROJECT / script)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = subprocess.run([link, "--version"], cwd="/", env={"PATH": path, "HOME": str(tmp_path)}, text=True,
                            capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"gate-script {gateprocess.VERSION}\n"


@pytest.mark.parametrize("script", [*SCRIPTS, "devstack-vm-status.py", "jobs/check.py", "jobs/after-build.py"])
def test_each_script_finds_its_modules_although_python_leaves_out_its_folder(tmp_path: Path, script: str) -> None:
    environment = {"PYTHONSAFEPATH": "1", "HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, PROJECT / script, "--help"], cwd=tmp_path, env=environment, text=True,
                            capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stderr) == (0, "")


def test_a_working_folder_that_somebody_removed_is_told_in_one_line(pool: Pool) -> None:
    gone = pool.folder / "gone"
    gone.mkdir()
    result = subprocess.run(["sh", "-c", 'cd "$1" && rmdir "$1" && exec "$2" "$3" one', "sh", gone, sys.executable,
                             PROJECT / REAP], env=pool.environment, text=True, capture_output=True, timeout=300,
                            check=False)
    assert (result.returncode, told(result)) == (
        2, [f"{REAP}: the working folder does not exist any more; change to one that does"])


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_the_packages_it_says_so_in_one_line(tmp_path: Path, script: str) -> None:
    """Somebody who has not activated the virtual environment sees this."""
    result = subprocess.run([sys.executable, "-S", PROJECT / script, "x"], env={"HOME": str(tmp_path)}, text=True,
                            capture_output=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        f"{script}: there is no Python package peewee here; activate the virtual environment of the set-up, or make "
        "it: pip install -r requirements.txt\n")


@pytest.mark.parametrize("command", ["list", "load", "hold", "unhold"])
def test_each_command_has_help(tmp_path: Path, command: str) -> None:
    result = Pool(tmp_path).run(VMDB, command, "--help", expect=0)
    assert result.stdout.startswith(f"usage: vmdatabase.py {command} ")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_docstring_says_what_the_exit_codes_mean(script: str) -> None:
    assert re.search(r"Exit codes: 0 .*1 .*2 ", " ".join(docstring(script)))


def test_a_reader_that_leaves_early_is_no_traceback(pool: Pool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run([sys.executable, str(PROJECT / VMDB)], env=pool.environment, stdout=writing,
                            stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (1, "")


# Wrong use

WRONG_USE: list[tuple[Call, str]] = [
    *(((script,), "...required: PROVIDER...") for script in (LAUNCH, REAP, UPDATE)),
    *(((script, "one", "--nope"), "...unrecognized arguments: --nope...") for script in (LAUNCH, REAP, UPDATE)),
    *(((script, NODE, "--nope"), "...unrecognized arguments: --nope...") for script in (INPROGRESS, DELETE)),
    *(((script, "one", "two"), "...unrecognized arguments: two...") for script in (LAUNCH, REAP, UPDATE)),
    ((LAUNCH, "-v", "-q", "one"), "...not allowed with argument..."),
    ((INPROGRESS,), "...NODE_NAME --image is required..."),
    ((INPROGRESS, NODE, "--image", "noble"), "...--image: not allowed with argument NODE_NAME..."),
    ((INPROGRESS, NODE, "--provider", "one"), "...--provider goes with --image..."),
    ((INPROGRESS, NODE, "--provider", ""), "...--provider goes with --image..."),
    ((DELETE,), "...required: NODE_NAME..."),
    ((DELETE, NODE, "--result", "GREAT"), "...--result: invalid choice: 'GREAT'...SUCCESS...TIMEOUT..."),
    ((VMDB, "lost"), "argument COMMAND: invalid choice: 'lost'...list...load...hold...unhold..."),
    ((VMDB, "--nope"), "...unrecognized arguments: --nope..."),
    ((VMDB, "load"), "...required: FILE..."),
    ((VMDB, "hold", NODE), "...required: --reason..."),
    ((VMDB, "hold", NODE, "--reason", " "), "...--reason: expected one line of text, got ' '..."),
    ((INPROGRESS, ""), "...unknown node ''; ..."),  # from a job that lost its parameter
    ((INPROGRESS, "devstack-\udce4"), "...unknown node 'devstack-\\udce4'; ..."),  # bytes that are not UTF-8
    ((INPROGRESS, "--image", "noble", "--provider", ""), "...unknown provider ''; known are one..."),
    ((VMDB, "--db", ""), "...--db: expected a path or an address..."),
    ((DELETE, "one "), "...unknown node 'one '; ..."),
    ((VMDB, "unhold"), "...required: NODE..."),
]


@pytest.mark.parametrize(("call", "message"), WRONG_USE, ids=[" ".join(call) for call, _ in WRONG_USE])
def test_wrong_use_is_2_and_one_line_that_names_the_option(pool: Pool, call: Call, message: str) -> None:
    check_refused(pool, call, 2, message)


@pytest.mark.parametrize("script", [LAUNCH, REAP, UPDATE])
@pytest.mark.parametrize(("name", "hint"), [("onne", "; did you mean one?"), ("zzz", "; known are one")])
def test_an_unknown_provider_is_2_and_the_nearest_is_named(pool: Pool, script: str, name: str, hint: str) -> None:
    check_refused(pool, (script, name), 2, f"{pool.database}: unknown provider {name}{hint}")


@pytest.mark.parametrize("script", [LAUNCH, REAP, UPDATE])
@pytest.mark.parametrize(("name", "message"), [
    ("one", "{database}: unknown provider one; vm.db has none yet, run: vmdatabase.py load FILE"),
    ("all", "all: vm.db has no providers yet; run: vmdatabase.py load FILE"),
])
def test_an_empty_vm_db_is_2_and_says_how_to_fill_it(tmp_path: Path, script: str, name: str, message: str) -> None:
    pool = Pool(tmp_path)
    pool.run(VMDB, expect=0)
    check_refused(pool, (script, name), 2, message.format(database=pool.database))


@pytest.mark.parametrize(
    "call",
    [(INPROGRESS, "lost"), (DELETE, "lost"), (VMDB, "unhold", "lost"), (VMDB, "hold", "lost", "--reason", "bug 7")],
    ids=" ".join)
def test_an_unknown_node_is_2_and_named(pool: Pool, call: Call) -> None:
    message = "unknown node lost; `select name from node` lists those there are"
    check_refused(pool, call, 2, f"{pool.database}: {message}")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ((INPROGRESS, "--image", "nobel"), "--image: unknown image nobel; did you mean noble?"),
        ((INPROGRESS, "--image", ""), "--image: unknown image ''; known are noble"),
        ((INPROGRESS, "--image", "noble", "--provider", "onne"), "{db}: unknown provider onne; did you mean one?"),
        ((UPDATE, "one", "--image", "nobel"), "--image: provider one has no image nobel; did you mean noble?"),
        ((UPDATE, "one", "--script", "missing"), "--script ...missing cannot be read (No such file or directory)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_an_option_names_must_be_there(pool: Pool, call: Call, message: str) -> None:
    check_refused(pool, call, 2, message.format(db=pool.database))


def test_a_script_that_a_variable_names_is_reported_by_the_variable(pool: Pool) -> None:
    message = "...DEVSTACK_GATE_CUSTOM_SCRIPT...missing cannot be read (No such file or directory)"
    check_refused(pool, (UPDATE, "one"), 2, message, DEVSTACK_GATE_CUSTOM_SCRIPT="missing")


@pytest.mark.parametrize("script", [LAUNCH, UPDATE])
def test_a_wrong_prefix_is_2_and_named(pool: Pool, script: str) -> None:
    message = "DEVSTACK_GATE_PREFIX: 'a b' may hold letters, digits and - only"
    check_refused(pool, (script, "one"), 2, message, DEVSTACK_GATE_PREFIX="a b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "providers.yaml: cannot be read (No such file or directory)"),
        ("providers: [\n", "providers.yaml:2: not YAML: ..."),
        ("providers:\n  - name: one\n    clod: a\n", "providers.yaml:3: ...unknown key clod; did you mean cloud?"),
        (f"providers: [{{name: a, cloud: b, max-servers: {10 ** 20}}}]\n", "providers.yaml:1: ...max-servers..."),
        ('providers: [{name: a, cloud: "\\ud800", max-servers: 1}]\n', "providers.yaml:1: ...cloud..."),
    ],
    ids=["missing", "malformed", "unknown key", "too large", "surrogate"],
)
def test_a_wrong_providers_file_is_2_with_its_line(pool: Pool, text: str | None, message: str) -> None:
    file = pool.folder / "providers.yaml"
    file.unlink()
    if text is not None:
        file.write_text(text)
    check_refused(pool, (VMDB, "load", "providers.yaml"), 2, message)


# vm.db

DATABASE_CALLS: list[Call] = [
    (VMDB,), (VMDB, "list", "--json"), (VMDB, "load", "providers.yaml"), HOLD, (VMDB, "unhold", NODE), (LAUNCH, "one"),
    (LAUNCH, "all"), (REAP, "one"), (UPDATE, "one"), (INPROGRESS, NODE), (INPROGRESS, "--image", "noble"),
    (DELETE, NODE),
]


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE machine (whose TEXT)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE setting (name TEXT, value TEXT)")
        connection.execute("PRAGMA user_version = 99")


def garbled(path: Path) -> None:
    foreign(path)
    path.write_bytes(path.read_bytes()[:100] + b"\xff" * 5000)


BAD_DATABASES: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (lambda path: path.write_text("This is no database, but long enough to be one." * 100),
             "cannot be opened for writing as a SQLite database (file is not a database)"),
    "folder": (Path.mkdir, "is no plain file; name that of vm.db"),
    "garbled": (garbled, "cannot be opened for writing as a SQLite database (...)"),
    "newer": (newer, "has schema version 99, newer than the ... known here; use the scripts that made it"),
    "foreign": (foreign, "holds tables that devstack-gate did not make; name another file"),
}


@pytest.fixture
def unmade(tmp_path: Path) -> Pool:
    """Return a pool with a providers file, but without vm.db."""
    pool = Pool(tmp_path)
    (tmp_path / "providers.yaml").write_text("providers: []\n")
    return pool


@pytest.mark.parametrize(
    ("call", "kind"), pairs(DATABASE_CALLS, [(VMDB,), (LAUNCH, "one"), (DELETE, NODE)], list(BAD_DATABASES)))
def test_a_vm_db_that_is_none_is_2_and_left_alone(unmade: Pool, call: Call, kind: str) -> None:
    make, message = BAD_DATABASES[kind]
    make(unmade.database)
    check_refused(unmade, call, 2, f"{unmade.database}: {message}")


@pytest.mark.parametrize("call", [(VMDB,), (REAP, "one"), (INPROGRESS, NODE)], ids=" ".join)
def test_a_missing_folder_of_vm_db_is_2_and_not_made(unmade: Pool, call: Call) -> None:
    path = unmade.folder / "missing" / "vm.db"
    check_refused(unmade, call, 2, f"{path}: there is no folder {path.parent}", DEVSTACK_GATE_DB=str(path))
    assert not path.parent.exists()


# The secure configuration

SECURE_CALLS: list[Call] = [
    (LAUNCH, "one"), (REAP, "one"), (UPDATE, "one"), (INPROGRESS, NODE), (INPROGRESS, "--image", "noble"),
    (DELETE, NODE), HOLD,
]
BAD_CONFIGS: dict[str, tuple[Callable[[str], str | None], str]] = {
    "missing": (lambda _: None, "secure configuration cannot be read (No such file or directory); "
                                "set DEVSTACK_GATE_SECURE_CONFIG or create it"),
    "malformed": (lambda text: "what\n" + text, "not an INI file: ..."),
    "unknown section": (lambda text: text.replace("[jenkins]", "[jenkin]"),
                        "unknown section [jenkin]; did you mean jenkins?"),
    "unknown key": (lambda text: text.replace("apikey", "api-key"),
                    "[jenkins] unknown key api-key; did you mean apikey?"),
    "missing key": (lambda text: re.sub("credentials_id.*", "", text), "[jenkins] credentials_id is missing"),
    "no URL": (lambda text: text.replace("http://", ""), "[jenkins] server: expected an http(s) URL, got ..."),
}


@pytest.mark.parametrize(
    ("call", "kind"), pairs(SECURE_CALLS, [(INPROGRESS, NODE), (UPDATE, "one")], list(BAD_CONFIGS)))
def test_a_wrong_secure_configuration_is_2_and_named(pool: Pool, call: Call, kind: str) -> None:
    change, message = BAD_CONFIGS[kind]
    text = change(pool.secure_config.read_text())
    pool.secure_config.unlink()
    if text is not None:
        pool.secure_config.write_text(text)
        pool.secure_config.chmod(0o600)
    check_refused(pool, call, 2, f"{pool.secure_config}: {message}")


@pytest.mark.parametrize("call", [(LAUNCH, "one"), (UPDATE, "one")], ids=" ".join)
@pytest.mark.parametrize("end", ["", ".pub"])
def test_a_missing_ssh_key_is_2_and_named(pool: Pool, call: Call, end: str) -> None:
    key = Path(f"{pool.key}{end}")
    key.unlink()
    check_refused(pool, call, 2, f"{pool.secure_config}: [node] ssh_key: there is no file {key}")


def test_an_ssh_key_that_cannot_be_used_is_2_before_anything_is_made(pool: Pool) -> None:
    pool.key.write_text("no key\n")
    check_refused(pool, (LAUNCH, "one"), 2, f"[node] ssh_key: {pool.key} is no private key without a passphrase (...)")


# The cloud

CLOUD_CALLS: list[Call] = [(LAUNCH, "one"), (REAP, "one"), (UPDATE, "one")]

BAD_CLOUDS: dict[str, tuple[Callable[[str], str | None], int, str]] = {
    "wrong password": (lambda text: text.replace("password: pocket", "password: wrong"), 2,
                       "log in: ...401...; see entry pocket-a of clouds.yaml"),
    "nobody listens": (lambda text: re.sub(r"1:\d+", f"1:{free_address()[1]}", text), 1, "log in: ..."),
    "no service there": (lambda text: text.replace("/identity/v3", "/nothing/v3"), 2, "...pocket-a...clouds.yaml..."),
    "no such file": (lambda _: None, 2, "clouds.yaml...pocket-a..."),
    "malformed": (lambda _: "clouds: [\n", 2, "...clouds.yaml..."),
    "not a mapping": (lambda _: "clouds\n", 2, "...clouds.yaml..."),
    "no such entry": (lambda text: text.replace("pocket-a:", "pocket-c:"), 2, "clouds.yaml...pocket-a..."),
    "no auth": (lambda _: "clouds:\n  pocket-a:\n    region_name: R\n", 2, "clouds.yaml: ...pocket-a..."),
    "no such region": (lambda text: text.replace("region_name: ", "region_name: not-"), 2,
                       "...pocket-a...clouds.yaml..."),
}


@pytest.mark.parametrize(
    ("call", "kind"), [*pairs(CLOUD_CALLS, [(LAUNCH, "one")], list(BAD_CLOUDS)), ((UPDATE, "one"), "no such region")])
def test_a_cloud_that_cannot_be_used_is_one_line_that_names_the_provider(pool: Pool, call: Call, kind: str) -> None:
    assert pool.pocket
    change, code, message = BAD_CLOUDS[kind]
    file = pool.folder / "clouds.yaml"
    text = change(pool.pocket.clouds_yaml.read_text())
    if text is not None:
        file.write_text(text)
    check_refused(pool, call, code, f"provider one: {message}", OS_CLIENT_CONFIG_FILE=str(file))


BAD_ANSWERS: dict[str, dict[str, Any]] = {
    "500": {"status": 500},
    "503": {"status": 503},
    "html": {"kind": "html", "status": 502},
    "html instead of JSON": {"kind": "html", "status": 200},
    "text instead of JSON": {"status": 200, "body": "hello"},
    "JSON of another kind": {"status": 200, "body": []},
    "truncated": {"kind": "truncate"},
    "closed": {"kind": "close"},
    "reset": {"kind": "reset"},
}


@pytest.mark.parametrize(("call", "kind"), pairs(CLOUD_CALLS, [(REAP, "one")], list(BAD_ANSWERS)))
def test_a_login_that_is_answered_with_rubbish_is_1_and_one_line(pool: Pool, call: Call, kind: str) -> None:
    assert pool.pocket
    pool.pocket.knobs("pocket-a", answers=[{"service": "identity", "match": "POST /auth/tokens", **BAD_ANSWERS[kind]}])
    check_refused(pool, call, 1, "provider one: log in: ...")


@pytest.mark.parametrize(
    ("call", "kind"), pairs([(LAUNCH, "one"), (REAP, "one")], [(LAUNCH, "one")], list(BAD_ANSWERS)))
def test_a_list_that_is_answered_with_rubbish_is_1_and_one_line(pool: Pool, call: Call, kind: str) -> None:
    assert pool.pocket
    pool.pocket.knobs("pocket-a", answers=[{"match": "GET /servers/detail", **BAD_ANSWERS[kind]}])
    check_refused(pool, call, 1, "provider one: list servers: ...")


# Jenkins


@pytest.mark.parametrize(
    ("server", "message"),
    [
        ("http://127.0.0.1:{port}/", "Jenkins http://127.0.0.1:{port}/: list nodes: no answer (Connection refused)"),
        ("http://jenkins.invalid/", "Jenkins http://jenkins.invalid/: list nodes: no answer (...)"),
    ],
    ids=["refused", "unknown name"],
)
def test_launch_without_jenkins_is_1_and_begins_nothing(pool: Pool, server: str, message: str) -> None:
    port = free_address()[1]
    pool.write_secure_config(server=server.format(port=port))
    check_refused(pool, (LAUNCH, "one"), 1, message.format(port=port))


def test_launch_with_a_wrong_apikey_is_2_and_begins_nothing(pool: Pool) -> None:
    assert pool.jenkins
    pool.write_secure_config(apikey="wrong")
    message = f"Jenkins {pool.jenkins.url}: list nodes: 401, user admin or its apikey is wrong"
    check_refused(pool, (LAUNCH, "one"), 2, message)


@pytest.mark.parametrize(
    "call", [(INPROGRESS, NODE), (INPROGRESS, "--image", "noble"), HOLD, (DELETE, NODE)], ids=" ".join)
def test_a_wrong_apikey_is_2_only_if_nothing_was_changed(pool: Pool, call: Call) -> None:
    pool.write_secure_config(apikey="wrong")
    before = contents(pool.database)
    result = pool.run(*call)
    assert "user admin or its apikey is wrong" in result.stderr
    assert result.returncode == (2 if contents(pool.database) == before else 1), result.stderr
    assert len(told(result)) <= 1
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("call", [(INPROGRESS, NODE), HOLD, (DELETE, NODE), (REAP, "one")], ids=" ".join)
def test_a_jenkins_that_does_not_answer_is_1_without_a_traceback(pool: Pool, call: Call) -> None:
    pool.write_secure_config(server=f"http://127.0.0.1:{free_address()[1]}/")
    result = pool.run(*call, expect=1)
    assert "no answer (Connection refused)" in result.stderr
    assert len(told(result)) <= 1
    assert "Traceback" not in result.stderr


# Signals


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_launch_that_waits_ends_at_once_and_its_machines_are_recorded(
    pool: Pool, number: signal.Signals, code: int
) -> None:
    assert pool.pocket
    pool.pocket.knobs("pocket-a", boot_seconds=60)
    process = pool.start(LAUNCH, "-q", "one")
    try:
        await_that("the servers", lambda: pool.sql("SELECT count(external_id) FROM machine") == [(1,)])
        process.send_signal(number)
        out, err = process.communicate(timeout=5)
    finally:
        process.kill()
    assert (process.returncode, out) == (code, "")
    (line,) = err.splitlines()
    assert line.endswith("Z WARNING stopped; left to the next launch, on their way: devstack-noble-one-2")
    (server,) = pool.servers()
    assert pool.sql("SELECT state, external_id FROM machine WHERE id = 2") == [("BUILDING", server["id"])]


# PROVIDER all


def test_one_broken_provider_does_not_stop_the_launch_of_the_other(pool: Pool) -> None:
    pool.load(provider(images=[image(min_ready=1)]), provider("broken", cloud="nowhere"))
    pool.sql("DELETE FROM machine")
    result = pool.run(LAUNCH, "all", expect=1)
    assert result.stdout == "one noble: 1 of 1 ready\n"
    (line,) = told(result)
    assert line.startswith(f"{LAUNCH}: provider broken: clouds.yaml: ")
    assert pool.sql("SELECT provider, state FROM node") == [("one", "READY")]


def test_one_broken_provider_does_not_stop_the_reap_of_the_other(pool: Pool) -> None:
    pool.load(provider(), provider("broken", cloud="nowhere"))
    pool.sql("UPDATE machine SET state = 'DELETE', jenkins_name = NULL")
    result = pool.run(REAP, "all", expect=1)
    assert result.stdout.startswith("one: deleted ")
    (line,) = told(result)
    assert line.startswith(f"{REAP}: provider broken: clouds.yaml: ")
    assert pool.sql("SELECT * FROM node") == []


@pytest.mark.parametrize("script", [LAUNCH, REAP, UPDATE])
def test_all_of_broken_providers_is_2_with_a_line_for_each(pool: Pool, script: str) -> None:
    pool.load(provider(cloud="nowhere"), provider("two", cloud="nowhere"))
    before = contents(pool.database)
    with pool.start(script, "all") as process:
        out, err = process.communicate(timeout=SCRIPT_SECONDS)
    assert (process.returncode, out) == (2, "")
    lines = sorted(line for line in err.splitlines() if not LOG_LINE.match(line))
    assert [line.partition(": clouds.yaml: ")[0] for line in lines] == [
        f"{script}: provider one", f"{script}: provider two"]
    assert contents(pool.database) == before


# A locked vm.db


def test_a_vm_db_that_stays_locked_is_1_after_30_seconds(locked: tuple[Pool, list[subprocess.Popen[str]]]) -> None:
    pool, processes = locked
    message = f"{pool.database}: another process has held it for more than 30 s; try again"
    outcomes = [(*process.communicate(timeout=60), process.returncode) for process in processes]
    assert outcomes == [("", f"{call[0]}: {message}\n", 1) for call in LOCKED_CALLS]
    assert pool.machines() == {NODE: "USED"}
    assert pool.sql("SELECT * FROM result") == []
