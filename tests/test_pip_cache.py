"""pip takes the packages of the image: real pips, a real index on loopback, and one that does not answer.

Each command runs as root in a mount namespace with another /etc, because the gate writes /etc/pip.conf.
"""

import io
import os
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.filehost import FileHost, file_host
from tests.support.pool import PROJECT

RUN_SECONDS = 120
SETUP = """
mkdir "$1/etc" "$1/work" 2> /dev/null
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$1/etc,workdir=$1/work" /etc || exit 99
if [ ! -e "$1/begun" ]; then
    rm -f /etc/pip.conf /etc/pip.conf.before-devstack-gate
    printf '%s' "$PIP_CONF" > /etc/pip.conf
    touch "$1/begun"
fi
export HOME="$1/home"
unset XDG_CONFIG_DIRS "${!PIP_@}"
"""
GATE = f"""
set -uo pipefail
. '{PROJECT}/gate/host.sh'
as_root() {{ "$@"; }}
log() {{ echo "$*"; }}
mkdir -p "$BASE/gate" "$RUN"
use_pip_cache
"""
BACKEND = '''
import zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(folder + "/built-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("built.py", "MARK = 'built'")
        archive.writestr("built-1.0.dist-info/METADATA",
                         "Metadata-Version: 2.1\\nName: built\\nVersion: 1.0\\n")
        archive.writestr("built-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        archive.writestr("built-1.0.dist-info/RECORD", "")
    return "built-1.0-py3-none-any.whl"
'''


def wheel(folder: Path, name: str, version: str, code: str, requires: str = "") -> None:
    """Make a wheel with one module."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        info = f"{name}-{version}.dist-info"
        archive.writestr(f"{name}.py", code)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")


def sdist(folder: Path) -> None:
    """Make a source distribution that is built with our backend."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / "built-1.0.tar.gz", "w:gz") as archive:
        for name, text in (("PKG-INFO", "Metadata-Version: 2.1\nName: built\nVersion: 1.0\n"),
                           ("pyproject.toml", "[build-system]\nrequires = ['tiny_backend']\n"
                                              "build-backend = 'tiny_backend'\n")):
            info = tarfile.TarInfo(f"built-1.0/{name}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))


class Node:
    """A machine with a cache of pip packages, and an index."""

    def __init__(self, folder: Path, site: FileHost) -> None:
        self.folder, self.site = folder, site
        self.base = folder / "base"
        self.conf = f"[global]\nindex-url = {site.url}/simple\n"
        cache = self.base / "cache/pip"
        for where, mark in ((cache, "cache"), (site.folder / "simple", "index")):
            for name, version, requires in (("tiny_one", "1.0", "tiny.two"), ("tiny_two", "1.0", "")):
                wheel(where if mark == "cache" else where / name.replace("_", "-"), name, version, f"MARK = '{mark}'",
                      requires)
            wheel(where if mark == "cache" else where / "tiny-backend", "tiny_backend", "1.0", BACKEND)
            sdist(where if mark == "cache" else where / "built")
        wheel(site.folder / "simple/tiny-two", "tiny_two", "2.0", "MARK = 'newer'")
        wheel(site.folder / "simple/pbr", "pbr", "7.0", "")

    def run(self, script: str, expect: int = 0, **environment: str) -> str:
        """Run bash on it and return all that it prints."""
        command = ["unshare", "--mount", "bash", "-c", f"{SETUP}\n{script}", "node", str(self.folder)]
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                                timeout=RUN_SECONDS, env=os.environ | {
                                    "BASE": str(self.base), "RUN": str(self.folder / "run"), "PIP_CONF": self.conf,
                                    "no_proxy": "127.0.0.1"} | environment)
        assert result.returncode == expect, result.stdout
        return result.stdout

    def use(self) -> str:
        """Have the gate make pip use the cache; return what it prints."""
        return self.run(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n{GATE}")

    def install(self, pip: str, *words: str) -> dict[str, str]:
        """Install with a pip; return {module: its mark}."""
        self.site.asked.clear()
        target = self.folder / "target"
        words = ("install", "--no-cache-dir", "--target", str(target), "--upgrade", *words)
        self.said = self.run(f"{pip} {shlex.join(words)}")
        marks: dict[str, str] = {}
        for path in target.glob("*.py"):
            values: dict[str, str] = {}
            exec(path.read_text(), values)
            marks[path.stem] = values.get("MARK", "")
        return marks

    def downloaded(self) -> list[str]:
        """Return the files that the index was asked for."""
        return sorted(path.rpartition("/")[2] for path in self.site.asked if path.endswith((".whl", ".gz")))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with file_host(tmp_path / "site") as site:
        yield Node(tmp_path, site)


@pytest.fixture(scope="module", params=["this", "venv"])
def pip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return a pip that tests do not change: that of the tests, or that of a new virtual environment."""
    if request.param == "this":
        return f"{shlex.quote(sys.executable)} -m pip"
    folder = tmp_path_factory.mktemp("pip") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return shlex.quote(f"{folder}/bin/pip")


def test_nothing_is_downloaded_that_the_cache_has(node: Node, pip: str) -> None:
    assert node.use() == ""
    (node.folder / "constraints").write_text("tiny-two===1.0\n")

    marks = node.install(pip, "-c", str(node.folder / "constraints"), "tiny-one", "built")

    assert marks == {"tiny_one": "cache", "tiny_two": "cache", "built": "built"}
    assert node.downloaded() == []
    assert "Downloading" not in node.said


def test_a_file_that_is_not_whole_is_no_part_of_the_cache(node: Node, pip: str) -> None:
    """The disk may have been full when the image was built."""
    cache = node.base / "cache/pip"
    for file in (cache / "tiny_two-1.0-py3-none-any.whl", next(cache.glob("built*.tar.gz"))):
        file.write_bytes(file.read_bytes()[:-100])
    said = node.use()
    assert said == "left out of pip's cache, damaged: built-1.0.tar.gz tiny_two-1.0-py3-none-any.whl\n"
    marks = node.install(f"PIP_FIND_LINKS={cache} {pip}", "tiny-one==1.0", "tiny-two==1.0")
    assert marks == {"tiny_one": "cache", "tiny_two": "index"}


def test_without_the_gate_s_doing_pip_downloads_all_of_it(node: Node, pip: str) -> None:
    """The reason for all this: links to the cache alone do not help."""
    marks = node.install(f"PIP_FIND_LINKS={node.base}/cache/pip {pip}", "tiny-one==1.0", "tiny-two==1.0")
    assert marks == {"tiny_one": "index", "tiny_two": "index"}


def test_a_newer_version_comes_from_the_index(node: Node, pip: str) -> None:
    node.use()
    marks = node.install(pip, "tiny-one", "tiny-two>=2")
    assert (marks, node.downloaded()) == ({"tiny_one": "cache", "tiny_two": "newer"}, ["tiny_two-2.0-py3-none-any.whl"])


def test_without_an_index_that_answers_all_comes_from_the_cache_and_nobody_waits(node: Node, pip: str) -> None:
    node.conf = "[global]\nindex-url = http://127.0.0.1:9/simple\nextra-index-url = http://127.0.0.1:9/more\n"
    assert node.use() == "the package index does not answer: pip takes all from the image's cache\n"

    marks = node.install(pip, "tiny-one", "built")

    assert marks == {"tiny_one": "cache", "tiny_two": "cache", "built": "built"}
    assert "Retrying" not in node.said
    assert (node.base / "gate/pip").read_text() == "only\n"
    assert node.run("apt-config dump Acquire::Retries; apt-config dump Acquire::http::Timeout").splitlines() == [
        'Acquire::Retries "0";', 'Acquire::http::Timeout "10";']


def test_what_the_operator_configured_stays_and_a_second_run_changes_nothing(node: Node) -> None:
    node.conf += f"extra-index-url = {node.site.url}/other\ntimeout = 33\n"
    expected = {"global.extra-index-url": f"{node.site.url}/other file://{node.base}/cache/pip/simple",
                "global.index-url": f"{node.site.url}/simple", "global.timeout": "33"}
    for _ in range(2):
        node.use()
        lines = node.run(f"{shlex.quote(sys.executable)} -m pip config --global list").splitlines()
        settings = {name: text.strip("'") for name, _, text in (line.partition("=") for line in lines)}
        assert {name: settings[name] for name in expected} == expected


def test_an_index_that_comes_back_is_used_again(node: Node, pip: str) -> None:
    good, node.conf = node.conf, "[global]\nindex-url = http://127.0.0.1:9/simple\n"
    node.use()
    node.run(f"printf '%s' {shlex.quote(good)} | tee /etc/pip.conf /etc/pip.conf.before-devstack-gate")
    assert node.use() == ""
    assert node.install(pip, "tiny-two>=2") == {"tiny_two": "newer"}
    assert node.run("ls /etc/apt/apt.conf.d | grep -c devstack-gate", expect=1) == "0\n"


def test_the_cache_s_files_are_found_by_their_normalized_names(node: Node) -> None:
    cache = node.base / "cache/pip"
    for name in ("Zope_Interface-1.0-py3-none-any.whl", "a-b__c-1.0.zip", "torch-2.1+cpu-x-y-z.whl"):
        zipfile.ZipFile(cache / name, "w").close()
    tarfile.open(cache / "oslo.db-1.0.tar.gz", "w:gz").close()
    (cache / "readme-first.txt").touch()
    node.use()
    pages = {page.parent.name: page.read_text() for page in (cache / "simple").rglob("index.html")}
    assert pages.keys() == {"a-b-c", "built", "oslo-db", "tiny-backend", "tiny-one", "tiny-two", "torch",
                            "zope-interface"}
    assert pages["torch"] == '<a href="../../torch-2.1%2Bcpu-x-y-z.whl">torch-2.1+cpu-x-y-z.whl</a>\n'


def test_a_node_without_a_cache_is_left_alone(node: Node) -> None:
    node.run(f'rm -r "$BASE/cache"\n{GATE}')
    assert not (node.base / "gate/pip").exists()


@pytest.mark.parametrize(("mode", "given", "expected"), [
    ("add", {}, []),
    ("add", {"PIP_EXTRA_INDEX_URL": "http://x/y"}, ["PIP_EXTRA_INDEX_URL=http://x/y file://{base}/cache/pip/simple"]),
    ("add", {"PIP_INDEX_URL": "http://x/y", "PIP_CERT": "/c"}, ["PIP_CERT=/c", "PIP_INDEX_URL=http://x/y"]),
    ("only", {"PIP_INDEX_URL": "http://x/y", "PIP_EXTRA_INDEX_URL": "http://z", "PIP_CERT": "/c"}, ["PIP_CERT=/c"]),
    ("", {"PIP_EXTRA_INDEX_URL": "http://x/y"}, ["PIP_EXTRA_INDEX_URL=http://x/y"]),
])
def test_a_job_s_own_settings_of_pip_do_not_hide_the_cache(
    node: Node, mode: str, given: dict[str, str], expected: list[str]
) -> None:
    if mode:
        (node.base / "gate").mkdir()
        (node.base / "gate/pip").write_text(f"{mode}\n")
    script = (f". '{PROJECT}/devstack-vm-gate.sh'; settings=$(print_pip_settings); unset \"${{!PIP_@}}\"\n"
              "eval \"$settings\"; env | grep ^PIP_ | sort")
    exports = "".join(f"export {name}={text}\n" for name, text in given.items())
    found = node.run(f"{exports}{script}").splitlines()
    always = [f"PIP_FIND_LINKS={node.base}/cache/pip", "PIP_CONFIG_SETTINGS=editable_mode=compat"]
    assert found == sorted([*(line.format(base=node.base) for line in expected), *always])
