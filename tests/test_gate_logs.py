"""What a gate run leaves, made by the programs for it: logs/, the verdict, known failures, results of tests."""

import base64
import bz2
import gzip
import json
import lzma
import os
import random
import shutil
import socket
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.support.pool import PROJECT

GATE = PROJECT / "gate"
SUBUNIT = Path(__file__).parent / "data/subunit"
PYTHON = [sys.executable, "-B", "-E", "-s", "-S"]
PASSWORD = "a1b2c3d4e5f6a7b8c9d0e1f2"


@dataclass
class Machine:
    """Folders as on a test node, and what the wrap script tells the programs."""

    folder: Path
    facts: dict[str, str] = field(default_factory=dict)
    given: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def logs(self) -> Path:
        return self.folder / "workspace/logs"

    @property
    def base(self) -> Path:
        return self.folder / "stack"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def collect(self, **facts: str) -> str:
        """Collect as at the end of a failed run; return what the console shows."""
        known = json.dumps([])
        told = {
            "logs": str(self.logs),
            "base": str(self.base),
            "seconds": "60",
            "cap_kb": "1048576",
            "cap_files": "20000",
            "services": "",
            "uid": str(os.getuid()),
            "gid": str(os.getgid()),
            "journal_start": "",
            "status": "1",
            "stopped": "",
            "phase": "gate_hook",
            "step": "",
            "words": "FAIL (1) in gate_hook",
            "minutes": "setup-workspace 0.1, gate_hook 12.5",
            "hint": "",
            "node": "NODE_PROVIDER=one\nNODE_NAME=n1",
            "known": known,
            "tested": "",
            "gate": "/gate",
            "sha1": "",
            **self.facts,
            **facts,
        }
        records = [*self.given, *(("fact", name, value) for name, value in told.items())]
        stdin = b"".join(f"{text}\0".encode(errors="surrogateescape") for record in records for text in record)
        done = subprocess.run(
            [*PYTHON, str(GATE / "collectlogs.py"), "run"],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout.decode()
        return done.stdout.decode()

    def failed(self, since: str) -> tuple[int, str]:
        """Ask how many tests failed; return the exit status and what is said."""
        command = [*PYTHON, str(GATE / "collectlogs.py"), "failed", str(self.base), since]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False)
        return done.returncode, done.stdout.decode()

    def files(self) -> list[str]:
        """Return the files in logs/, except those that are always there."""
        always = {"cleanup-host.txt", "reproduce.sh", "verdict.json"}
        found = [
            str(path.relative_to(self.logs)) for path in self.logs.rglob("*") if path.is_symlink() or not path.is_dir()
        ]
        assert always <= set(found)
        return sorted(set(found) - always)

    def verdict(self) -> dict[str, object]:
        content = json.loads((self.logs / "verdict.json").read_text())
        assert isinstance(content, dict)
        return content

    def text(self) -> bytes:
        """Return the content of all files in logs/, decompressed."""
        return b"\n".join(
            gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            for path in self.logs.rglob("*")
            if path.is_file()
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Make empty folders."""
    (tmp_path / "workspace/logs").mkdir(parents=True)
    (tmp_path / "stack/new/devstack").mkdir(parents=True)
    return Machine(tmp_path)


# --- files ---


def test_thousands_of_files_with_any_names_are_all_there(machine: Machine) -> None:
    for number in range(3000):
        machine.write(f"workspace/logs/d{number % 7}/a file\n{number}: x.log", "x")
    machine.write("workspace/logs/" + "n" * 255, "long")
    machine.write("workspace/logs/\udcff\x1b[31m/\u202e-x", "odd")

    machine.collect()

    files = machine.files()
    assert len(files) == 3002
    assert "d3/a_file_3__x.log" in files
    assert all(char.isprintable() and char not in " :\n" for name in files for char in name)
    assert (machine.logs / "__[31m/_-x").read_text() == "odd"
    assert max(len(name) for name in files) <= 204


def test_nothing_leads_out_of_the_folder_and_nothing_holds_it_up(machine: Machine) -> None:
    secret = machine.write("outside/secret", "not for logs")
    machine.write("stack/logs/screen-key.2026.log", "today")
    (machine.base / "logs/screen-key.log").symlink_to("screen-key.2026.log")
    for folder in (machine.logs, machine.base / "logs"):
        (folder / "link").symlink_to(secret)
        (folder / "folder").symlink_to(secret.parent)
        (folder / "loop").symlink_to("loop")
        os.mkfifo(folder / "pipe")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(folder / "socket"))
        os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero, which has no end
        (folder / "zero").symlink_to("device")
    (machine.logs / "twice").symlink_to("cleanup-host.txt")
    set_uid = machine.write("workspace/logs/set-uid", "x")
    set_uid.chmod(0o6777)

    machine.collect()

    assert machine.files() == ["screen-key.txt", "set-uid"]
    assert (machine.logs / "screen-key.txt").read_text() == "today"
    assert b"not for logs" not in machine.text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in machine.logs.rglob("*") if path.name != "reproduce.sh"} == {
        0o644
    }
    assert stat.S_IMODE(machine.logs.stat().st_mode) == 0o755


def run_with_mounts(mounts: str, program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program under the mounts that a bash script makes."""
    return subprocess.run(
        ["unshare", "-m", "bash", "-c", mounts, "bash", sys.executable, "-c", program],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_is_mounted_in_logs_is_neither_read_nor_removed(machine: Machine) -> None:
    outside = machine.write("outside/secret", "not for logs").parent
    machine.write("workspace/logs/file.txt", "on top of which something is mounted")
    (machine.logs / "mounted").mkdir()
    script = (
        f"mount --bind {outside} {machine.logs}/mounted && mount --bind {outside}/secret {machine.logs}/file.txt && "
        f'mount --bind {machine.logs} {machine.logs} && exec "$@"'
    )
    records = machine.folder / "records"
    program = (
        f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from pathlib import Path; "
        "from tests.test_gate_logs import Machine; "
        f"Machine(Path({str(machine.folder)!r})).collect()"
    )

    done = run_with_mounts(script, program)

    assert done.returncode == 0, done.stderr
    assert not records.exists()
    assert b"not for logs" not in machine.text()
    assert (outside / "secret").read_text() == "not for logs"


def test_a_full_disk_costs_logs_that_are_large_not_the_verdict(machine: Machine) -> None:
    program = f"""
import os, sys
sys.path.insert(0, {str(PROJECT)!r})
from pathlib import Path
from tests.test_gate_logs import Machine
machine = Machine(Path({str(machine.folder)!r}) / "disk")
for name in ("workspace/logs/gate_hook.txt", "stack/new/devstack/x", "stack/logs/small.txt"):
    machine.write(name, "small")
machine.write("workspace/logs/setup-host.txt", os.urandom(900_000))
try:
    machine.write("stack/data/full", bytes(9_000_000))
except OSError as err:
    print(err.strerror)
print(machine.collect(), machine.verdict()["status"], (machine.logs / "reproduce.sh").stat().st_size > 100)
"""
    (machine.folder / "disk").mkdir()
    mount = f'mount -t tmpfs -o size=3m tmpfs {machine.folder}/disk && exec "$@"'

    done = run_with_mounts(mount, program)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("No space left on device\n")
    assert done.stdout.endswith(" 1 True\n"), done.stdout
    assert "Left out 3 files (878 KB): cannot be copied: No space left on device." in done.stdout


def test_a_name_that_is_too_long_in_the_new_folder_costs_no_other_log(machine: Machine) -> None:
    machine.write("stack/logs/later.txt", "a larger file comes later")
    descriptor = os.open(machine.base / "logs", os.O_RDONLY)
    left = 4085 - len(str(machine.base / "logs"))  # a path of the new folder is longer; Linux allows 4095 bytes
    while left > 1:
        name = "d" * min(200, left - 1)
        left -= len(name) + 1
        os.mkdir(name, dir_fd=descriptor)
        inner = os.open(name, os.O_RDONLY, dir_fd=descriptor)
        os.close(descriptor)
        descriptor = inner
    os.close(os.open("f", os.O_WRONLY | os.O_CREAT, dir_fd=descriptor))
    os.close(descriptor)

    console = machine.collect()

    assert machine.files() == ["later.txt"]
    assert "cannot be copied: File name too long." in console


def test_logs_that_no_one_may_rename_or_that_are_no_folder_are_replaced(machine: Machine) -> None:
    shutil.rmtree(machine.logs)
    machine.logs.write_text("a file")

    machine.collect()

    assert machine.files() == []
    shutil.rmtree(machine.logs)
    machine.collect()
    assert machine.files() == []


def test_a_file_that_grows_without_end_is_copied_as_it_is_now(machine: Machine) -> None:
    with subprocess.Popen(["bash", "-c", f"while :; do printf 'a line\\n'; done > {machine.logs}/busy.txt"]) as writer:
        while not (machine.logs / "busy.txt").exists():
            time.sleep(0.01)
        machine.collect()
        size = sum(path.stat().st_size for path in machine.logs.glob("busy.txt*"))
        time.sleep(0.2)
        assert sum(path.stat().st_size for path in machine.logs.glob("busy.txt*")) == size
        writer.kill()


def test_there_are_limits_on_number_and_size_and_what_is_left_out_is_told(machine: Machine) -> None:
    for number in range(50):
        machine.write(f"stack/logs/{number}", "x")
    console = machine.collect(cap_files="20")
    assert len(machine.files()) in range(15, 21)
    assert "more files than the limit" in console

    for name, size in (("large", 200_000), ("middle", 150_000), ("small", 100_000)):
        machine.write(f"stack/logs/{name}", os.urandom(size))
    console = machine.collect(cap_kb="400")
    assert {"small", "middle"} <= set(machine.files())
    assert "large" not in machine.files()
    assert "Dropped large (195 KB): more than the limit of all logs." in console


def test_large_files_are_compressed_and_sparse_ones_cost_no_more_than_the_limit(machine: Machine) -> None:
    machine.write("workspace/logs/large.txt", b"line\n" * 400_000)
    machine.write("workspace/logs/just.txt", b"x" * (1 << 20))
    with (machine.logs / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 40)

    machine.collect()

    assert machine.files() == ["just.txt", "large.txt.gz", "sparse.gz"]
    assert gzip.decompress((machine.logs / "large.txt.gz").read_bytes()) == b"line\n" * 400_000


def test_what_has_been_copied_is_tidy_when_the_time_is_over(machine: Machine) -> None:
    for number in range(30_000):
        machine.write(f"workspace/logs/d/a {number}", "x")
    (machine.logs / "d/out").symlink_to("/etc/passwd")
    os.mkfifo(machine.logs / "pipe")
    machine.write("workspace/logs/gate_hook.txt", "what the hook said")

    console = machine.collect(seconds="6")

    assert "in time" in console or "Left out" in console
    assert (machine.logs / "gate_hook.txt").read_text() == "what the hook said"
    assert all(
        path.is_dir() or (path.is_file() and not path.is_symlink() and " " not in path.name)
        for path in machine.logs.rglob("*")
    )
    assert machine.verdict()["phase"] == "gate_hook"


@pytest.mark.parametrize("linked", ["stack", "stack/new"])
def test_the_folder_of_the_trees_may_be_a_link(machine: Machine, linked: str) -> None:
    machine.write("stack/new/devstacklog.txt", "log")
    (machine.folder / linked).rename(machine.folder / "large")
    (machine.folder / linked).symlink_to(machine.folder / "large")

    machine.collect()

    assert machine.files() == ["devstacklog.txt"]


def test_what_an_upgrade_and_tempest_leave_is_there_too(machine: Machine) -> None:
    for name in (
        "new/tempest/etc/tempest.conf",
        "new/tempest/tempest.log",
        "new/grenade/localrc",
        "old/logs/n-api.log",
        "old/devstack/localrc",
        "new/devstack/local.conf",
        "new/devstacklog.txt",
    ):
        machine.write(f"stack/{name}", name)

    machine.collect()

    assert machine.files() == [
        "devstacklog.txt",
        "grenade/localrc.txt",
        "local_conf.txt",
        "old/local_conf.txt",
        "old/n-api.txt",
        "tempest.txt",
        "tempest_conf.txt",
    ]


# --- secrets ---


def test_a_secret_in_the_name_of_a_log_or_of_its_folder_is_hidden(machine: Machine) -> None:
    machine.given = [("environment", "MY_TOKEN", "hunter2-canary77"), ("environment", "B_TOKEN", "t0ken/with@parts")]
    machine.write("workspace/logs/session-hunter2-canary77.txt", "one")
    machine.write("workspace/logs/hunter2-canary77/keystone-token.txt", "two")
    machine.write("stack/logs/t0ken/with@parts.log", "three")

    console = machine.collect()

    assert machine.files() == ["________.txt", "________/keystone-token.txt", "session-________.txt"]
    assert "canary77" not in console


def test_secrets_of_the_run_are_in_no_file(machine: Machine) -> None:
    machine.write(
        "stack/new/devstack/local.conf", f"[[local|localrc]]\nADMIN_PASSWORD={PASSWORD}\nDATABASE_PASSWORD=openstack\n"
    )
    machine.write("stack/old/devstack/localrc", "RABBIT_PASSWORD='of the 0ld side'\n")
    machine.given = [
        ("setting", "GIT_BASE", "https://robot:hunter2secret@example.org"),
        ("setting", "DEVSTACK_LOCAL_CONFIG", "SWIFT_HASH=s3cret-hash-value\nMULTI_PASSWORD='first 1ine\nsecond 2ine'"),
        ("function", "gate_hook", "gate_hook () \n{ \n    curl -u bob:c4nary-hook https://x\n}"),
        ("environment", "MY_API_TOKEN", "t0ken/with+chars&<>"),
        ("environment", "PWD", "/home/jenkins"),
    ]
    secrets = [
        PASSWORD,
        "of the 0ld side",
        "hunter2secret",
        "s3cret-hash-value",
        "first 1ine",
        "second 2ine",
        "c4nary-hook",
        "t0ken/with+chars&<>",
        "t0ken%2Fwith%2Bchars%26%3C%3E",
        "t0ken/with+chars&amp;&lt;&gt;",
    ]
    words = "\n".join(f"it is {secret} indeed" for secret in secrets)
    machine.write("workspace/logs/gate_hook.txt", words)
    machine.write("stack/logs/large.log", (words + "\n") * 10_000)
    machine.write("stack/logs/one-line.log", "x" * 70_000 + PASSWORD + "x" * 3_000_000 + PASSWORD)
    machine.write("stack/logs/binary", b"\0" + words.encode() * 1000)
    machine.write("stack/logs/rotated.log.1.gz", gzip.compress(words.encode()))
    machine.write("stack/logs/clean.log.1.gz", gzip.compress(b"nothing in it"))
    machine.write(
        "stack/logs/mysql.log",
        "sudo: COMMAND=/bin/mysql -uroot -popenstack -e 'set password'; login mysql://root:openstack@h/x\n"
        'in /opt/openstack as openstack, password: openstack, "password": "openstack"\n',
    )

    machine.collect()

    text = machine.text()
    assert [secret for secret in secrets if secret.encode() in text] == []
    assert (machine.logs / "mysql.txt").read_text() == (
        "sudo: COMMAND=/bin/mysql -uroot -p******** -e 'set password'; login mysql://root:********@h/x\n"
        'in /opt/openstack as openstack, password: ********, "password": "********"\n'
    )
    assert gzip.decompress((machine.logs / "clean.log.1.gz").read_bytes()) == b"nothing in it"
    assert "rotated.log.1.gz" not in machine.files()
    assert (machine.logs / "binary").stat().st_size == len(words.encode()) * 1000 + 1
    assert (
        machine.logs / "local_conf.txt"
    ).read_text() == "[[local|localrc]]\nADMIN_PASSWORD=********\nDATABASE_PASSWORD=********\n"
    assert b"/home/jenkins" not in text or b"********/home" not in text


LONG = b"".join(b"line %d of a log\n" % number for number in range(300))


@pytest.mark.parametrize(
    "pack",
    [gzip.compress, bz2.compress, lzma.compress, partial(lzma.compress, format=lzma.FORMAT_ALONE), zlib.compress],
    ids=["gz", "bz2", "xz", "lzma", "zlib"],
)
def test_compressed_logs_are_kept_unless_a_secret_is_in_them_or_after_them(
    machine: Machine, pack: Callable[[bytes], bytes]
) -> None:
    clean, secret = pack(LONG), PASSWORD.encode()
    machine.given = [("setting", "ADMIN_PASSWORD", PASSWORD)]
    machine.write("workspace/logs/clean", clean)
    machine.write("workspace/logs/in", pack(LONG + secret))
    machine.write("workspace/logs/after", clean + secret)

    said = machine.collect()

    assert (machine.logs / "clean").read_bytes() == clean
    assert machine.files() == ["clean"]
    assert ": compressed, with secrets in them." in said


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(bytes.fromhex("28b52ffd045831000061206c6f670ac681ccf8"), id="zstd"),
        pytest.param(lzma.compress(os.urandom(1 << 20))[: 1 << 19] + bytes(1 << 19), id="damaged"),
    ],
)
def test_what_is_compressed_in_a_way_that_cannot_be_looked_into_is_left_out(machine: Machine, content: bytes) -> None:
    machine.write("workspace/logs/a", content)

    said = machine.collect()

    assert machine.files() == []
    assert f"Left out 1 files ({len(content) >> 10} KB): compressed in a way that cannot be looked into." in said


@pytest.mark.parametrize("begin", [b"x^2", b"x^" + b"y" * 200, b"BZh", b"]\0\0", b"\x1f\x8b", b"\xfd7zXZ\0", b"PK\3\4"])
def test_secrets_are_hidden_in_what_only_begins_like_a_compressed_file(machine: Machine, begin: bytes) -> None:
    machine.given = [("setting", "ADMIN_PASSWORD", PASSWORD)]
    machine.write("workspace/logs/a", begin + b" is it " + PASSWORD.encode() + b" or not")

    machine.collect()

    assert (machine.logs / "a").read_bytes().replace(b"*", b"") == begin + b" is it  or not"


def test_a_secret_is_known_in_any_variable_and_in_the_forms_that_programs_print() -> None:
    token = "Ab3$x(y)[z].*Q9/"
    given = [
        ("environment", "MY_TOKEN", token),
        ("environment", "SSHPASS", "Xn7-canary01"),
        ("environment", "DEPLOY_PEM", "-----BEGIN RSA PRIVATE KEY-----\nMIIEcanary02\n-----END RSA PRIVATE KEY-----"),
        ("environment", "OPTIONS", "--user me --password Xn7-canary03"),
        ("environment", "CLOUD", '{"secret_access_key": "Xn7-canary04"}'),
        ("environment", "GERRIT_CHANGE_SUBJECT", "password=not-a-canary05"),
        ("environment", "NEXUS_PSW", "Xn7-canary09"),
        ("environment", "NEXUS_CREDS", "me:Xn7-canary10"),
        ("environment", "CLOUD_CREDENTIALS", '{"user": "me", "password": "Xn7-canary11"}'),
        ("function", "hook", "hook() { openssl enc -k Xn7-canary06 -in x; docker login -u me -p Xn7-canary07 host; }"),
        ("function", "other", 'other() { echo "machine h login me password Xn7-canary08" > .netrc; ls -p Xn7-file; }'),
    ]
    printed = [
        *(f"Xn7-canary{number:02}" for number in (1, 3, 4, 6, 7, 8, 9, 10, 11)),
        "MIIEcanary02",
        token,
        "Ab3%24x%28y%29%5bz%5d.%2aQ9%2f",
        *(base64.b64encode(f"{before}{token}".encode()).decode() for before in ("", "u:", "me:")),
        base64.urlsafe_b64encode(f"me:{token}".encode()).decode(),
    ]
    others = ["not-a-canary05", "Xn7-file", "Ab3", base64.b64encode(b"nothing of it").decode()]
    source = f"import sys; sys.path.insert(0, {str(GATE)!r}); from hidesecrets import *; "
    source += "data = sys.stdin.buffer.read(); records, _, text = data.partition(b'\\0\\0\\0'); "
    source += "write_all(1, Hider(values_given(records)).hide(text))"
    records = "\0".join(word for record in given for word in record)

    done = subprocess.run(
        [*PYTHON, "-c", source], input=f"{records}\0\0\0{' '.join(printed)}\n{' '.join(others)}".encode(),
        capture_output=True, check=True,
    )

    hidden, shown = done.stdout.decode().splitlines()
    assert [word for word in hidden.split() if "*" * 8 not in word] == []
    assert "canary" not in hidden
    assert shown == " ".join(others)


SETTINGS = """ADMIN_PASSWORD=CANARY01
AWS_ACCESS_KEY_ID=CANARY02
AWS_SECRET_ACCESS_KEY=CANARY03
SSH_PASSPHRASE=CANARY04
REGISTRY_AUTH=CANARY05
DB_PASS=CANARY06
SWIFT_HASH=CANARY07
X=1; RABBIT_PASSWORD=CANARY08
MY_KEY=CANARY09
PASSWORD: CANARY10
export ADMIN_PASSWORD='multi CANARY11
second CANARY12'
connection = mysql+pymysql://root:CANARY13@localhost/nova
git_url=ssh://bob:CANARY14@h/x
URL=https://user:CANARY15@[::1]/x https://a:CANARY16@b
MAIL_PWD=CANARY17
auth_token CANARY18
-----BEGIN OPENSSH PRIVATE KEY-----
CANARY19
-----END OPENSSH PRIVATE KEY-----
password="CANARY21"
Authorization: Bearer CANARY22
https://CANARY23:x-oauth-basic@github.com/x
sas=https://h/c?sig=CANARY24&se=1
user:pass=CANARY25
KEYSTONE_FERNET=CANARY26
a = https://u:CAN/ARY27@x https://u:p@CANARY28@y
"""
HOOK = """gate_hook () 
{ 
    curl -u bob:CANARY40 https://x;
    export OS_PASSWORD=CANARY41;
    mysql -pCANARY42;
    docker login --password CANARY43;
    curl -H "X-Auth-Token: CANARY44" http://x;
    sshpass -p CANARY45 ssh x;
    local -A pw=([admin]=CANARY46);
    cat <<X
password CANARY47
X

    SERVICE_TOKEN=$(cat <<Y
CANARY48
Y
);
    DB_PASSWORD=${DB_PASSWORD:-CANARY49};
    [[ $API_TOKEN == "" ]] && echo none;
    for token in a b;
    do
        echo $token;
    done;
    local password secret token;
    read -s password secret;
    case $a in 
        password=*)
            echo y
        ;;
    esac;
    test "$password" = "$token";
    MY_KEY=/path/id_rsa;
    X_TOKEN=$(make "a b");
    mkdir -p /foo;
    tar -pxf a;
    git push -u origin:master;
    sort --key=2 f;
    PWD=/x
}"""  # noqa: W291  # as bash prints it


def test_reproduce_has_no_secret_leaves_code_alone_and_says_what_it_leaves_out(machine: Machine) -> None:
    machine.given = [
        ("setting", "DEVSTACK_LOCAL_CONFIG", SETTINGS),
        ("setting", "GIT_BASE", "https://CANARY30@git"),
        ("setting", "BROKER_TOKEN", "CANARY31"),
        ("setting", "ENABLED_SERVICES", "a\n\"b\" 'c' $HOME `d`"),
        ("setting", "WORKSPACE", "/w"),
        ("function", "gate_hook", HOOK),
        ("function", "helper", "helper () \n{ \n    echo helped\n}"),
    ]
    machine.write("workspace/logs/reproduce.sh", "rm -rf /  # the change's own")
    machine.collect(tested="openstack/nova master 0123abc Subject \x1b[31m$(touch x)\nnew/nova " + "0" * 40)

    script = (machine.logs / "reproduce.sh").read_text()
    assert "CANARY" not in script
    assert "ARY27" not in script
    assert subprocess.run(["bash", "-n", str(machine.logs / "reproduce.sh")], check=False).returncode == 0
    for line in HOOK.splitlines():
        if "CANARY" not in line:
            assert line in script
    for word in (
        "change under test was root",
        "# Left out: BROKER_TOKEN",
        "# Left out: words in the function gate_hook",
        "# Left out: login in GIT_BASE",
        "# Left out: SWIFT_HASH in DEVSTACK_LOCAL_CONFIG",
        "# openstack/nova master 0123abc Subject $(touch x)",
        "# new/nova 0000000000",
        "export -f helper",
    ):
        assert word in script
    gate = machine.write(
        "gate/devstack-vm-gate-wrap.sh",
        '#!/bin/bash\nprintf \'<%s>\' "$ENABLED_SERVICES" "$GIT_BASE" "$WORKSPACE"; helper\n',
    )
    gate.chmod(0o755)
    ran = subprocess.run(
        [str(machine.logs / "reproduce.sh")],
        env={
            "PATH": os.environ["PATH"],
            "DEVSTACK_GATE": str(gate.parent),
            "WORKSPACE": str(machine.folder / "else where"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.stdout == f"<a\n\"b\" 'c' $HOME `d`><https://git><{machine.folder}/else where>helped\n", ran.stderr


def test_reproduce_names_no_file_that_only_this_machine_has(machine: Machine) -> None:
    machine.given = [
        ("setting", "WORKSPACE", "/w"),
        ("setting", "DEVSTACK_GATE_SETTINGS", "/w/a file x"),
        ("setting", "DEVSTACK_GATE_KNOWN_FAILURES", "/home/x/devstack-gate/gate/known"),
        ("setting", "MINE", "/ws/b"),
    ]

    machine.collect()

    lines = (machine.logs / "reproduce.sh").read_text().splitlines()
    assert "export DEVSTACK_GATE_SETTINGS=\"$folder\"/'a file x'" in lines
    assert "export MINE=/ws/b" in lines
    assert "# Left out: DEVSTACK_GATE_KNOWN_FAILURES, a file of the machine that ran this" in lines
    assert not any(line.startswith("export DEVSTACK_GATE_KNOWN_FAILURES") for line in lines)


def test_a_function_that_cannot_be_read_is_left_out_of_reproduce(machine: Machine) -> None:
    machine.given = [
        ("function", "broken", "broken () \n{ \n    if\n}"),
        ("function", "whole", "whole () \n{ \n    :\n}"),
    ]

    machine.collect()

    script = (machine.logs / "reproduce.sh").read_text()
    assert "# Left out: the function broken" in script
    assert "whole ()" in script
    assert subprocess.run(["bash", "-n", str(machine.logs / "reproduce.sh")], check=False).returncode == 0


# --- results of tests ---


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_results_are_junit_whichever_version_the_repository_has(machine: Machine, version: str) -> None:
    machine.write("stack/new/devstack/local.conf", "ADMIN_PASSWORD=the-secret-99\n")
    machine.write("stack/new/tempest/.stestr/0", "")
    machine.write("stack/new/tempest/.stestr/1", (SUBUNIT / f"stestr.{version}").read_bytes())

    console = machine.collect()

    suite = ElementTree.parse(machine.logs / "tempest-results.xml").getroot()
    assert {name: suite.attrib[name] for name in ("tests", "failures", "skipped")} == {
        "tests": "6",
        "failures": "3",
        "skipped": "1",
    }
    assert [(case.get("classname"), case.get("name"), [child.tag for child in case]) for case in suite] == [
        ("tests", "setUpClass (tests.test_it.BrokenClass)", ["failure"]),
        ("tests.test_it.Mixed", "test_bad", ["failure"]),
        ("tests.test_it.Mixed", "test_expected", []),
        ("tests.test_it.Mixed", "test_skipped", ["skipped"]),
        ("tests.test_it.Mixed", "test_unexpected", ["failure"]),
        ("tests.test_it.Passing", "test_good", []),
    ]
    assert "<tag> & ]]> ********" in (suite[1][0].text or "")
    assert machine.verdict()["tests"] == {
        "run": 5,
        "failed": 3,
        "skipped": 1,
        "names": [
            "setUpClass (tests.test_it.BrokenClass)",
            "tests.test_it.Mixed.test_bad",
            "tests.test_it.Mixed.test_unexpected",
        ],
    }
    assert "3 of 5 tests failed:\n  setUpClass (tests.test_it.BrokenClass)\n" in console


def test_each_of_several_runs_of_tests_counts(machine: Machine) -> None:
    stream = "test: a.B.{0}\nsuccess: a.B.{0}\ntest: a.B.again\n{1}: a.B.again\n"
    for number, outcome in enumerate(("failure", "success", "success")):
        machine.write(f"stack/new/tempest/.stestr/{number + 9}", stream.format(f"only{number}", outcome))
    os.utime(machine.base / "new/tempest/.stestr/9", (1, 1))

    machine.collect()

    names = ["only0", "again", "only1", "again", "only2", "again"]
    suite = ElementTree.parse(machine.logs / "tempest-results.xml").getroot()
    assert [(case.get("name"), len(case)) for case in suite] == [
        (name, int(place == 1)) for place, name in enumerate(names)
    ]
    assert machine.verdict()["tests"] == {"run": 6, "failed": 1, "skipped": 0, "names": ["a.B.again"]}

    machine.facts["journal_start"] = "1000"  # another run has left its results before that

    machine.collect()

    assert machine.verdict()["tests"] == {"run": 4, "failed": 0, "skipped": 0, "names": []}
    said = [machine.failed(since) for since in ("", "1000", "soon")]
    assert said == [(0, "1 of 6 tests failed\n"), (0, ""), (0, "1 of 6 tests failed\n")]


def test_a_test_that_the_run_was_stopped_in_is_a_failure(machine: Machine) -> None:
    machine.write(
        "stack/new/tempest/.stestr/tmpabc123",
        "time: 2026-01-01 00:00:00Z\ntest: a.B.whole\nsuccess: a.B.whole\ntest: a.B.hangs\n",
    )

    machine.collect()

    suite = ElementTree.parse(machine.logs / "tempest-results.xml").getroot()
    assert [(case.get("name"), len(case)) for case in suite] == [("whole", 0), ("hangs", 1)]
    assert machine.verdict()["tests"] == {"run": 2, "failed": 1, "skipped": 0, "names": ["a.B.hangs"]}


def test_junit_is_xml_whatever_the_stream_holds(machine: Machine) -> None:
    choose = random.Random(7)
    for number in range(12):
        data = bytearray((SUBUNIT / f"stestr.v{number % 2 + 1}").read_bytes())
        for _ in range(20):
            data[choose.randrange(len(data))] = choose.randrange(256)
        machine.write("stack/new/tempest/.stestr/0", bytes(data))
        console = machine.collect()
        path = machine.logs / "tempest-results.xml"
        if path.exists():
            ElementTree.parse(path)
        else:
            assert "There are test results, but no JUnit XML could be written from them" in console


def test_results_that_only_the_tools_can_print_are_used_and_shown_as_html(machine: Machine) -> None:
    tools = machine.base / "new/tempest/.tox/tempest/bin"
    machine.write("stack/new/tempest/.stestr/0", "not what a file repository holds")
    machine.write("stack/stream", (SUBUNIT / "stestr.v2").read_bytes())
    for name, code in (
        ("stestr", f'[ "$*" = "last --subunit" ] && [ -d .stestr ] && cat {machine.base}/stream'),
        ("subunit2html", 'size=$(wc -c < "$1"); echo "<html>$size</html>" > "$2"'),
    ):
        machine.write(f"stack/new/tempest/.tox/tempest/bin/{name}", f"#!/bin/sh\n{code}\n")
        (tools / name).chmod(0o755)

    machine.collect()

    assert len(ElementTree.parse(machine.logs / "tempest-results.xml").getroot()) == 6
    size = (SUBUNIT / "stestr.v2").stat().st_size
    assert (machine.logs / "tempest-results.html").read_text() == f"<html>{size}</html>\n"


def test_results_that_cannot_be_read_are_told(machine: Machine) -> None:
    machine.write("stack/new/tempest/.stestr/0", b"\xff" * 1000)

    assert "There are test results, but no JUnit XML could be written from them" in machine.collect()


# --- the verdict ---


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"status": "0", "phase": "", "words": "PASS"}, "passed"),
        ({"status": "1"}, "test"),
        ({"status": "2"}, "test"),  # from a hook, 2 does not mean configuration
        ({"status": "1", "phase": "devstack-vm-gate.sh", "step": "stack.sh"}, "test"),
        ({"status": "3", "phase": "devstack-vm-gate.sh", "step": "tempest smoke"}, "test"),
        ({"status": "3", "phase": "devstack-vm-gate.sh", "step": "check of the change"}, "source"),
        ({"status": "2", "phase": "devstack-vm-gate.sh"}, "configuration"),
        ({"status": "3", "phase": "setup-workspace"}, "source"),
        ({"status": "1", "phase": "setup-host"}, "machine"),
        ({"status": "75", "phase": "pre_test_hook", "hint": "infrastructure"}, "infrastructure"),
        ({"status": "124"}, "test"),  # the hook's own limit
        ({"status": "141"}, "test"),
        ({"status": "143", "phase": "devstack-vm-gate.sh", "step": "stack.sh"}, "test"),
        ({"status": "124", "stopped": "timeout"}, "timeout"),
        ({"status": "130", "stopped": "INT"}, "aborted"),
        ({"status": "143", "stopped": "TERM"}, "aborted"),
        ({"status": "141", "stopped": "PIPE"}, "aborted"),
    ],
)
def test_the_verdict_tells_the_kind_of_end(machine: Machine, facts: dict[str, str], kind: str) -> None:
    machine.collect(**facts)

    verdict = machine.verdict()
    assert (verdict["kind"], verdict["status"], verdict["phase"]) == (
        kind,
        int(facts["status"]),
        facts.get("phase", "gate_hook"),
    )


def test_the_verdict_says_what_ran_where_and_how_long(machine: Machine) -> None:
    machine.given = [
        ("setting", "ZUUL_PROJECT", "openstack/nova"),
        ("setting", "ZUUL_BRANCH", "master"),
        ("setting", "ZUUL_REF", "refs/zuul/master/Z1"),
        ("setting", "ZUUL_CHANGE", "45"),
    ]

    machine.collect(sha1="0" * 40)

    verdict = machine.verdict()
    minutes = verdict.pop("minutes")
    assert isinstance(minutes, dict)
    assert sorted(minutes) == ["cleanup-host", "gate_hook", "setup-workspace"]
    assert (minutes["setup-workspace"], minutes["gate_hook"]) == (0.1, 12.5)
    assert verdict == {
        "version": 1,
        "status": 1,
        "kind": "test",
        "phase": "gate_hook",
        "step": "",
        "reason": "FAIL (1) in gate_hook",
        "change": {
            "project": "openstack/nova",
            "branch": "master",
            "ref": "refs/zuul/master/Z1",
            "number": "45",
            "patchset": "",
            "sha1": "0" * 40,
        },
        "node": {"provider": "one", "image": "", "name": "n1", "snapshot": ""},
        "tests": {"run": 0, "failed": 0, "skipped": 0, "names": []},
        "known_failures": [],
    }


def test_the_verdict_is_valid_bounded_and_printable_for_any_bytes(machine: Machine) -> None:
    odd = bytes(range(1, 256)).decode("utf-8", "surrogateescape") + "\u202e\u2028" + "x" * 100_000
    machine.given = [("setting", name, odd) for name in ("ZUUL_PROJECT", "ZUUL_REF", "ZUUL_BRANCH", "ZUUL_CHANGE")]
    machine.write(
        "stack/new/tempest/.stestr/0",
        b"".join(
            b"test: %s%d\nfailure: %s%d\n" % (b"\xff\x1b\x00" * 300, one, b"\xff\x1b\x00" * 300, one)
            for one in range(200)
        ),
    )

    machine.collect(step=odd, words=odd, node=f"NODE_NAME={odd}", phase=odd, minutes=odd)

    data = (machine.logs / "verdict.json").read_bytes()
    assert len(data) < 64 << 10
    assert all(char.isprintable() or char == "\n" for char in data.decode())
    names = machine.verdict()["tests"]
    assert isinstance(names, dict)
    assert len(names["names"]) == 20


# --- known failures ---


def signatures(machine: Machine, text: str) -> subprocess.CompletedProcess[str]:
    machine.write("known.ini", text)
    return subprocess.run(
        [*PYTHON, str(GATE / "knownfailures.py"), str(machine.folder / "known.ini")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_known_failures_are_found_in_plain_and_compressed_logs(machine: Machine) -> None:
    known = signatures(
        machine,
        "[disk]\npattern = No space left on (device|disk)\nfiles = *.txt\ntext = A disk is full.\n"
        "[bug]\npattern = ^Traceback [[:alpha:]]+\nfiles = a/*.txt\nurl = https://bugs.example.org/1\nkind = test\n"
        "[old]\npattern = line\nfiles = *\ntext = long ago\nuntil = 2020-01-01\n"
        "[never]\npattern = this is nowhere\nfiles = *\ntext = x\n",
    ).stdout
    machine.write(
        "workspace/logs/large.txt",
        b"a line\n" * 200_000 + b"write: No space left on device\x1b[31m\n" + b"a line\n" * 9,
    )
    machine.write("workspace/logs/a/b.txt", "first\nTraceback most\n")

    console = machine.collect(known=known)

    verdict = machine.verdict()
    assert verdict["kind"] == "infrastructure"
    assert verdict["known_failures"] == [
        {
            "name": "disk",
            "kind": "infrastructure",
            "file": "large.txt.gz",
            "line": 200_001,
            "match": "write: No space left on device",
            "url": "",
            "text": "A disk is full.",
        },
        {
            "name": "bug",
            "kind": "test",
            "file": "a/b.txt",
            "line": 2,
            "match": "Traceback most",
            "url": "https://bugs.example.org/1",
            "text": "",
        },
    ]
    assert (
        "Known failure disk (infrastructure): A disk is full.\n"
        "  logs/large.txt.gz, line 200001: write: No space left on device\n"
        in console
    )


def test_a_known_failure_of_kind_test_leaves_it_a_test_and_a_run_that_passed_has_none(machine: Machine) -> None:
    known = signatures(machine, "[bug]\npattern = boom\nfiles = *\ntext = x\nkind = test\n").stdout
    machine.write("workspace/logs/a.txt", "boom\n")
    machine.collect(known=known)
    assert machine.verdict()["kind"] == "test"

    assert "Known failure" not in machine.collect(known=known, status="0", phase="", words="PASS")
    assert (machine.verdict()["kind"], machine.verdict()["known_failures"]) == ("passed", [])


@pytest.mark.parametrize(
    ("log", "name"),
    [
        (
            "ERROR: Could not install packages due to an OSError: HTTPSConnectionPool(host='pypi.org', port=443): "
            "Max retries exceeded "
            "with url: /simple/pbr/ (Caused by NewConnectionError",
            "package index away",
        ),
        ("E: Failed to fetch http://mirror.example.org/pool/x.deb  503  Service Unavailable", "package mirror away"),
        (
            "fatal: unable to access 'https://opendev.org/openstack/nova/': The requested URL returned error: 502",
            "git host away",
        ),
        ("OSError: [Errno 28] No space left on device", "disk full"),
        ("kernel: Out of memory: Killed process 4711 (mysqld) total-vm:1kB", "out of memory"),
        ("curl: (6) Could not resolve host: opendev.org", "name service away"),
        ("E: Failed to fetch http://m.org/x.deb  Temporary failure resolving 'm.org'", "name service away"),
    ],
)
def test_the_signatures_that_come_with_the_project_know_what_is_never_a_changes_fault(
    machine: Machine, log: str, name: str
) -> None:
    known = signatures(machine, (GATE / "known-failures.ini").read_text())
    assert known.returncode == 0, known.stderr
    machine.write("stack/new/devstacklog.txt", f"+ doing\n{log}\n")

    machine.collect(known=known.stdout, phase="devstack-vm-gate.sh", step="stack.sh")

    found = machine.verdict()["known_failures"]
    assert isinstance(found, list)
    assert name in [one["name"] for one in found]
    assert machine.verdict()["kind"] == "infrastructure"


def test_package_lists_that_apt_did_without_are_no_known_failure(machine: Machine) -> None:
    known = signatures(machine, (GATE / "known-failures.ini").read_text())
    machine.write(
        "stack/new/devstacklog.txt",
        "Err:1 http://mirror.example.org/debian stable InRelease\n"
        "  Temporary failure resolving 'mirror.example.org'\n"
        "W: Failed to fetch http://mirror.example.org/debian/dists/stable/InRelease  "
        "Temporary failure resolving 'mirror.example.org'\n"
        "W: Some index files failed to download. They have been ignored, or old ones used instead.\n",
    )

    machine.collect(known=known.stdout, phase="devstack-vm-gate.sh", step="tempest full")

    assert (machine.verdict()["kind"], machine.verdict()["known_failures"]) == ("test", [])


GOOD = "pattern = a\nfiles = *\ntext = x\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pattern = a\n", "line 1: expected a section"),
        ("[a]\nwhat\n", "line 2: expected key = value"),
        (f"[a]\n{GOOD}patern = b\n", "[a] patern: no such key, the nearest is pattern"),
        ("[a]\nfiles = *\ntext = x\n", "[a] pattern: expected a value"),
        ("[a]\npattern = a\nfiles = *\n", "[a] url or text: expected what is known"),
        (f"[a]\n{GOOD}kind = passed\n", "[a] kind: expected one of infrastructure"),
        (f"[a]\n{GOOD}until = tomorrow\n", "[a] until: expected a date as 2026-12-31, not 'tomorrow'"),
        (f"[a]\n{GOOD}until = 2026-02-30\n", "[a] until: expected a date"),
        (f"[a]\n{GOOD}[a]\n{GOOD}", "[a]: is there twice, line 5"),
        (
            "[a]\npattern = (a\nfiles = *\ntext = x\n",
            "[a] pattern: expected an extended regular expression for grep -E: Unmatched",
        ),
        (
            "[a]\npattern = (a*)*\\1\nfiles = *\ntext = x\n",
            "[a] pattern: expected an extended regular expression for grep -E: a reference back",
        ),
        ("[a]\npattern = x*\nfiles = *\ntext = x\n", "it matches an empty line"),
        (
            "[a]\npattern = ((a{999}){999}){999}\nfiles = *\ntext = x\n",
            "[a] pattern: expected an extended regular expression",
        ),
        ("[a\x1b[31m]\n" + GOOD + "kind = \x07\n", "expected one line"),
    ],
)
def test_a_wrong_file_of_signatures_is_told_with_section_and_key(machine: Machine, text: str, words: str) -> None:
    done = signatures(machine, text)

    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.startswith(f"{machine.folder}/known.ini: ")
    assert done.stderr.count("\n") == 1
    assert done.stderr.strip().isprintable()


def test_a_secret_is_hidden_in_a_log_that_is_latin_1(machine: Machine) -> None:
    machine.given = [("environment", "DB_PASSWORD", "Xn7-cänary09")]
    machine.write("workspace/logs/a.txt", "it is Xn7-cänary09 indeed".encode("latin-1"))

    machine.collect()

    assert (machine.logs / "a.txt").read_text() == "it is ******** indeed"


def test_a_file_of_signatures_may_begin_with_a_byte_order_mark(machine: Machine) -> None:
    done = signatures(machine, f"\ufeff[a]\n{GOOD}")

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["/nowhere", "/dev/zero", "/", "\udcff\n"])
def test_a_file_of_signatures_that_is_none_is_told(name: str) -> None:
    done = subprocess.run(
        [*PYTHON, str(GATE / "knownfailures.py"), name], capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_looking_for_known_failures_ends_whatever_the_logs_hold(machine: Machine) -> None:
    known = signatures(
        machine, "[slow]\npattern = (a|aa|aaa)*(b|a)*c.*[^x]{50}d\nfiles = one-line.txt bomb.txt\ntext = x\n"
    ).stdout
    machine.write("workspace/logs/bomb.txt.gz", gzip.compress(b"\0" * (1 << 28)))
    machine.write("workspace/logs/one-line.txt", b"a" * 1_000_000)

    started = time.monotonic()
    machine.collect(known=known, seconds="20")

    assert time.monotonic() - started < 40
    assert machine.verdict()["known_failures"] == []


# --- the console ---


@pytest.fixture
def stamp() -> Iterator[subprocess.Popen[bytes]]:
    """Run the filter between a phase's output and the console."""
    with subprocess.Popen(
        [*PYTHON, str(GATE / "console.py"), "stamp"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def shown(text: bytes) -> str:
    done = subprocess.run(
        [*PYTHON, str(GATE / "console.py"), "stamp"], input=text, capture_output=True, timeout=60, check=True
    )
    return done.stdout.decode()


def test_dots_without_a_newline_are_shown_while_they_come(stamp: subprocess.Popen[bytes]) -> None:
    assert stamp.stdin
    assert stamp.stdout
    stamp.stdin.write(b"...")
    stamp.stdin.flush()

    assert stamp.stdout.read(24).endswith(b"Z ...")
    stamp.stdin.write(b".\n")
    stamp.stdin.close()
    assert stamp.stdout.read() == b".\n"


def test_what_a_test_prints_cannot_pass_for_a_line_of_ours() -> None:
    text = shown(
        b"\x1b[2K\x1b[1A\rPASS. Minutes: none\x0bPASS\xc2\x85PASS\xe2\x80\xa8PASS\n"
        b"\x1b]0;title\x07\x08\xe2\x80\xaeevil\xff\x00\n"
        b"\x1b[8mha:AAAA\x1b[0mnote\n10%\r20%\r\n"
    )

    lines = text.splitlines()
    assert all(line[:4].isdigit() and line[10] == "T" and line[19:21] == "Z " for line in lines)
    assert [line[21:] for line in lines] == [
        "",
        "PASS. Minutes: none",
        "PASS",
        "PASS",
        "PASS",
        "evil\ufffd",
        "ha:AAAAnote",
        "10%",
        "20%",
    ]
    assert all(line.isprintable() for line in lines)


def test_a_line_without_an_end_costs_no_memory() -> None:
    script = f"head -c 60000000 /dev/zero | tr '\\0' a | (ulimit -v 200000; {' '.join(PYTHON)} {GATE}/console.py stamp)"
    script += " | wc -lc"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, timeout=120, check=True
    )

    lines, size = map(int, done.stdout.split())
    assert lines > 400
    assert size > 60_000_000


def test_secrets_do_not_get_to_the_console_in_pieces_either() -> None:
    pieces = (f"it is {PASSWORD[:10]}", f"{PASSWORD[10:]} and password=open", "stack on openstack")
    script = (
        'given=$1; shift; for piece; do printf %s "$piece"; sleep 1.2; done '
        f'| {" ".join(PYTHON)} {GATE}/console.py printable 3< <(printf %b "$given")'
    )
    given = rf"setting\0ADMIN_PASSWORD\0{PASSWORD}\0setting\0MY_PASSWORD\0openstack\0".replace(r"\0", r"\0000")
    done = subprocess.run(
        ["bash", "-c", script, "bash", given, *pieces], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout == "it is ******** and password=******** on openstack\n"


def test_a_stuck_reader_of_logs_is_stopped_and_the_verdict_is_there(machine: Machine) -> None:
    # A tool of the test that never ends and ignores TERM.
    machine.write("stack/new/tempest/.stestr/0", "x")
    tool = machine.write(
        "stack/new/tempest/.tox/tempest/bin/stestr", "#!/bin/bash\ntrap '' TERM\nwhile :; do sleep 1; done\n"
    )
    tool.chmod(0o755)

    machine.collect(seconds="6")

    assert machine.verdict()["kind"] == "test"
