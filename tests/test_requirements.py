"""requirements*.txt pin all that is installed beside credentials, with hashes, so that it is known to the byte."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pool import PROJECT

LOCKED = {"requirements": "requirements.txt", "jobs": "jobs/requirements.txt",
          "requirements-status": "requirements-status.txt",
          "requirements-postgresql": "requirements-postgresql.txt", "requirements-test": "requirements-test.txt",
          "build": "requirements/build.txt"}
RENEW = PROJECT / "requirements/renew"


def normalized(name: str) -> str:
    """Return a package's name as the packaging specifications compare it."""
    return re.sub(r"[._-]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Return the versions that a file pins, by normalized name."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE)
    return {normalized(name): version for name, version in found}


def locked(name: str) -> str:
    return (PROJECT / LOCKED[name]).read_text()


@pytest.mark.parametrize("name", LOCKED)
def test_each_package_is_pinned_with_the_hashes_of_its_files_and_no_index_is_named(name: str) -> None:
    entries = re.sub(r"\\\n", " ", re.sub(r"^ *#.*\n", "", locked(name), flags=re.MULTILINE)).splitlines()

    assert entries
    for entry in entries:
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry
    assert not re.search("://|index-url|find-links|trusted-host", locked(name))


@pytest.mark.parametrize("name", LOCKED)
def test_the_versions_are_those_that_were_asked_for_and_the_same_in_all_files(name: str) -> None:
    asked = (PROJECT / f"requirements/{name}.in").read_text()
    everywhere = pins(locked("requirements-test"))

    assert pins(asked).items() <= pins(locked(name)).items() <= everywhere.items()


def test_the_demo_does_with_the_packages_that_it_installs() -> None:
    there = pins(locked("jobs")).keys() | pins(locked("requirements-status")).keys()
    missing = [module for module, brought_by in importlib.metadata.packages_distributions().items()
               if there.isdisjoint(map(normalized, brought_by))]
    refuse = "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]))"  # modules that are None cannot be imported
    modules = "tests.demo, tests.pocketcloud.__main__, tests.pocketjenkins.__main__, tests.support.starter"

    done = subprocess.run([sys.executable, "-c", f"{refuse}; import {modules}", *missing], cwd=PROJECT,
                          capture_output=True, text=True, check=False)

    assert "psycopg" in missing
    assert done.returncode == 0, done.stderr


def test_a_file_with_another_hash_is_not_installed(tmp_path: Path) -> None:
    """pip itself refuses it, with the options of make_venv and a package on this machine."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "pyproject.toml").write_text('[project]\nname = "harmless"\nversion = "1"\n')
    (tmp_path / "locked.txt").write_text(f"{package.as_uri()} --hash=sha256:{'0' * 64}\n")
    prepare = (PROJECT / "tests/prepare.sh").read_text()
    (options,) = re.findall(r'/pip" install (.*) "\$@"', prepare)

    done = subprocess.run([sys.executable, "-m", "pip", "install", *options.split(), "--dry-run", "--no-index", "-r",
                           tmp_path / "locked.txt"], capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "hash" in done.stderr.lower(), done.stderr


def test_without_uv_renew_says_what_is_missing_and_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "requirements").mkdir()
    copy = tmp_path / "requirements/renew"
    copy.write_bytes(RENEW.read_bytes())

    done = subprocess.run(["bash", copy], env={**os.environ, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
                          check=False)

    assert (done.returncode, done.stderr) == (
        2, "requirements/renew: expected uv in .venv or on PATH; ./run-tests.sh installs it\n")
    assert list(tmp_path.rglob("*.txt")) == []


def test_an_environment_that_is_a_link_is_replaced_and_the_one_it_leads_to_is_kept(tmp_path: Path) -> None:
    shared, project = tmp_path / "shared", tmp_path / "project"
    (shared / "bin").mkdir(parents=True)
    (shared / "bin/python").write_text("of others")
    (project / "tests").mkdir(parents=True)
    (project / "requirements").mkdir()
    (project / ".venv").symlink_to(shared)
    for name in ("requirements.txt", "requirements/build.txt"):
        (project / name).touch()
    (project / "tests/prepare.sh").write_bytes((PROJECT / "tests/prepare.sh").read_bytes())

    script = ". tests/prepare.sh; install_locked() { :; }; make_venv requirements.txt"
    done = subprocess.run(["bash", "-c", script], cwd=project, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    assert (shared / "bin/python").read_text() == "of others"
    assert not (project / ".venv").is_symlink()
    assert (project / ".venv/bin/python").exists()
