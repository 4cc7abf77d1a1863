"""gate/installed.py checks that the change under test was installed: with real environments, pip and git."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.support.pool import PROJECT, load_script

BACKEND = '''
import base64, hashlib, pathlib, zipfile

def write(folder, files):
    name = "sample_lib-1.0-py3-none-any.whl"
    info = "sample_lib-1.0.dist-info/"
    files = dict(files)
    files[info + "METADATA"] = "Metadata-Version: 2.1\\nName: sample.lib\\nVersion: 1.0\\n"
    files[info + "WHEEL"] = "Wheel-Version: 1.0\\nGenerator: test\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"
    files[info + "RECORD"] = "".join(f"{path},,\\n" for path in [*files, info + "RECORD"])
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name

def build_wheel(folder, settings=None, metadata=None):
    return write(folder, {"sample_lib.py": pathlib.Path("sample_lib.py").read_text()})

def build_editable(folder, settings=None, metadata=None):
    return write(folder, {"sample_lib.pth": str(pathlib.Path.cwd()) + "\\n"})
'''
FINDER = '''
    return write(folder, {
        "__editable__.sample_lib-1.0.pth": "import __editable___sample_lib_1_0_finder as f; f.install()",
        "__editable___sample_lib_1_0_finder.py": f"""
import importlib.util, sys
MAPPING: dict[str, str] = {{'sample_lib': {str(pathlib.Path.cwd() / "sample_lib")!r}}}
class Finder:
    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, MAPPING[name] + ".py") if name in MAPPING else None
def install(): sys.meta_path.append(Finder())
"""})
'''
PYPROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'


class Site:
    """A folder like BASE, with environments and with trees that have a change."""

    def __init__(self, base: Path) -> None:
        self.base = base

    def tree(self, folder: str = "sample.lib", name: str = "sample.lib") -> Path:
        """Make a project with a change; return its tree."""
        tree = self.base / "new" / folder
        tree.mkdir(parents=True)
        files = {"pyproject.toml": PYPROJECT + f'[project]\nname = "{name}"\n' * bool(name), "backend.py": BACKEND,
                 "sample_lib.py": "changed = True\n"}
        for path, text in files.items():
            (tree / path).write_text(text)
        git(tree, "init", "-q")
        git(tree, "add", ".")
        git(tree, "commit", "-q", "-m", "change")
        (tree / ".git/gate-change").write_text(git(tree, "rev-parse", "HEAD"))
        return tree

    def environment(self, path: str) -> Path:
        """Make a virtual environment."""
        venv.create(self.base / path)
        return self.base / path

    def check(self, *more: str, path: str = os.environ["PATH"]) -> tuple[int, list[str]]:
        """Run the check; return its exit code and its lines."""
        done = subprocess.run([sys.executable, "-I", PROJECT / "gate/installed.py", self.base, *more], text=True,
                              capture_output=True, check=False, env={"PATH": path})
        assert not done.stderr
        return done.returncode, done.stdout.splitlines()


def git(tree: Path, *words: str | Path) -> str:
    who = ("GIT_AUTHOR_NAME", "GIT_AUTHOR_EMAIL", "GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL")
    done = subprocess.run(["git", "-C", tree, *words], env=os.environ | dict.fromkeys(who, "a@localhost"), text=True,
                          capture_output=True, check=True)
    return done.stdout


def change(tree: Path, **files: str) -> None:
    """Make a tree's present state its branch, and commit a change on top; a file without text is removed."""
    git(tree, "update-ref", "refs/remotes/origin/master", "HEAD")
    (tree / ".git/gate-ref").write_text("refs/zuul/master/Z1\n")
    for name, text in files.items():
        path = tree / f"{name}.py"
        path.write_text(text) if text else path.unlink()
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "the change")
    (tree / ".git/gate-change").write_text(git(tree, "rev-parse", "HEAD"))


def build_from(tree: Path, files: str) -> None:
    """Make the build of a tree take other files, which Python code gives as a dictionary, and commit what is there."""
    backend = tree / "backend.py"
    backend.write_text(backend.read_text().replace(
        '{"sample_lib.py": pathlib.Path("sample_lib.py").read_text()}', files))
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "another build")


def pip(environment: Path, *words: str | Path) -> None:
    run_pip("--python", environment / "bin/python", "install", *words)


def release(tree: Path, folder: Path) -> list[str]:
    """Make a wheel of a tree, as a package index has it; return the words that make pip take it from there."""
    run_pip("wheel", "-w", folder, tree)
    return ["--find-links", str(folder), "sample.lib"]


def run_pip(*words: str | Path) -> None:
    options = ("--no-index", "--no-build-isolation", "--disable-pip-version-check", "-q")
    place = 3 if words[0] == "--python" else 1
    subprocess.run([sys.executable, "-m", "pip", *words[:place], *options, *words[place:]], check=True)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_what_was_installed_from_the_tree_is_tested_as_a_copy_and_in_place(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, tree)
    assert site.check() == (0, [f"sample.lib: sample.lib 1.0 is installed from {tree}, in "
                                f"{next(services.glob('lib/*/site-packages'))}"])
    pip(services, "--force-reinstall", "-e", tree)
    assert site.check()[0] == 0


def test_a_released_library_is_not_the_change_whatever_its_version(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, *release(tree, site.base / "index"))

    status, lines = site.check()

    assert status == 3
    assert lines[0].startswith("NOT TESTED: sample.lib: sample.lib 1.0 in ")
    assert lines[0].endswith("from a package index or the distribution's packages")


def test_a_copy_that_is_older_than_the_tree_is_not_the_change(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, tree)
    (tree / "sample_lib.py").write_text("changed = 'later'\n")

    status, lines = site.check()

    assert status == 3
    assert lines[0].endswith(f"from {tree}, but is older than it: sample_lib.py differs")


def test_another_tree_is_not_the_change(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    other = site.base / "elsewhere"
    other.mkdir()
    for name in ("pyproject.toml", "backend.py", "sample_lib.py"):
        (other / name).write_text((tree / name).read_text())
    pip(services, other)
    assert site.check()[1][0].endswith(f"comes from {other}")


def test_each_environment_of_services_counts_and_those_of_tox_for_what_is_nowhere_else(site: Site) -> None:
    tree = site.tree()
    tox = site.environment("new/tempest/.tox/tempest")
    released = release(tree, site.base / "index")
    pip(tox, *released)
    assert site.check()[0] == 3
    pip(site.environment("data/venv"), tree)
    assert site.check()[0] == 0
    nova = site.environment("new/nova.venv")
    pip(nova, *released)
    assert site.check()[0] == 3
    pip(nova, "--force-reinstall", tree)
    assert site.check()[0] == 0
    named = site.environment("../elsewhere/venv")
    pip(named, *released)
    assert (site.check()[0], site.check(str(named))[0]) == (0, 3)


@pytest.mark.parametrize(("own", "status"), [("data/venv", 0), ("new/rally-venv", 3)])
def test_the_systems_packages_count_unless_devstack_has_a_virtual_environment_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch, own: str, status: int
) -> None:
    tree, system = site.tree(), site.environment("../system")
    pip(system, *release(tree, site.base / "index"))
    pip(site.environment(own), tree)
    installed = load_script("gate/installed.py")
    monkeypatch.setattr(installed, "SYSTEM", (str(next(system.resolve().glob("lib/*/site-packages"))),))
    assert installed.main([str(site.base)]) == status


def test_setuptools_links_to_trees_are_followed(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    packages = next(services.glob("lib/*/site-packages"))
    (packages / "sample.lib.egg-link").write_text(f"{tree}\n.")
    assert site.check()[1][0].endswith(f"from {tree}, but easy-install.pth does not name that")
    (packages / "easy-install.pth").write_text(f"{tree}\n")
    assert site.check()[0] == 0
    (packages / "sample_lib.py").touch()
    assert site.check()[1][0].endswith(f"from {tree}, but Python finds {packages / 'sample_lib.py'} first")
    for text in ("/somewhere/else\n.", "/nowhere\0\n", ""):
        (packages / "sample.lib.egg-link").write_text(text)
        assert site.check()[0] == 3


@pytest.mark.parametrize(("release", "status"), [("false", 0), ("true", 3)])
def test_an_old_pip_writes_no_origin_but_pbr_tells_the_commit(site: Site, release: str, status: int) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    record = next(services.glob("lib/*/site-packages")) / "sample.lib-1.0.egg-info"
    record.mkdir()
    (record / "PKG-INFO").write_text("Name: sample.lib\nVersion: 1.0.dev3\n")
    commit = git(tree, "log", "-n1", "--pretty=format:%h").strip()
    (record / "pbr.json").write_text(f'{{"git_version": "{commit}", "is_release": {release}}}')
    assert site.check()[0] == status


def test_what_is_not_installed_is_said_so(site: Site) -> None:
    site.tree("devstack", "")
    site.tree("plugin", "a-plugin")
    (site.base / "new/devstack/pyproject.toml").unlink()

    status, lines = site.check()

    assert status == 0
    assert [line.rpartition(" the change ")[0] for line in lines] == [
        "devstack: has", f"plugin: is installed nowhere: only what reads {site.base}/new/plugin has"]
    assert lines[0].endswith("; it is no Python distribution, so there is nothing to compare")


@pytest.mark.parametrize(("file", "text"), [
    ("pyproject.toml", '[build-system]\nrequires = ["x"]\n[project]\ndynamic = ["version"]\nname = "nova"\n'),
    ("pyproject.toml", '[project]\nauthors = [\n {name = "Others", email = "x"},\n]\nname = "nova"\n'),
    ("pyproject.toml", '[project]\ndescription = "see [nova]"\n"name" = \'nova\'\n[project.scripts]\nname = "other"\n'),
    ("pyproject.toml", '  [ project ]\r\n  name = "nova"\r\n'),
    ("pyproject.toml", 'project.name = "nova"\n[tool.x]\nname = "other"\n'),
    ("pyproject.toml", '[tool.poetry]\nname = "nova"\n'),
    ("setup.cfg", "\ufeff[metadata]\nname = nova\n"),
    ("setup.cfg", "left over from a merge\n[metadata]\nName: nova\nauthor = J\xf6rg\n[files]\nname = other\n"),
    ("setup.cfg", "[metadata]\nsummary =\n    name = other\nname =\r\n    nova\n"),
    ("setup.py", "# name='other'\nNAME = 'nova'\nsetup(ext_modules=[Extension(name='x')], name=NAME)\n"),
    ("setup.py", "import setuptools\nsetuptools.setup(name='nova')\n"),
    ("setup.py", "# name='other'\nprint 'old'\nsetup(name='nova')\n"),
])
def test_the_name_is_the_one_that_the_trees_own_files_give(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    assert load_script("gate/installed.py").distribution_name(tmp_path) == "nova"


def test_a_tree_whose_name_cannot_be_read_counts_as_installed_if_that_comes_from_it(site: Site) -> None:
    tree, services = site.tree("odd", ""), site.environment("data/venv")
    assert site.check() == (0, [f"odd: is installed nowhere: only what reads {tree} has the change "
                                f"{(tree / '.git/gate-change').read_text()[:10]}"])
    pip(services, tree)
    assert site.check()[1][0].startswith(f"odd: sample-lib 1.0 is installed from {tree}, in ")
    (tree / "sample_lib.py").write_text("changed = 'later'\n")
    assert site.check()[0] == 3


def test_a_released_library_is_not_the_change_of_a_repository_of_its_name_that_computes_it(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, *release(tree, site.base / "index"))
    (tree / "pyproject.toml").write_text(PYPROJECT)
    (tree / "setup.py").write_text("setup(name='.'.join(('sample', 'lib')))\n")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "compute the name")

    status, lines = site.check()

    assert status == 3
    assert lines[0].startswith("NOT TESTED: sample.lib: sample.lib 1.0 in ")


def test_what_another_distribution_brings_under_the_same_name_hides_the_tree(site: Site) -> None:
    """A .pth file adds its path behind packages that were copied; parts of a namespace are joined."""
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, "-e", tree)
    packages = next(services.glob("lib/*/site-packages"))
    (packages / "sample_lib-1.0.dist-info/top_level.txt").write_text("sample_lib\nshared\ntests\n")
    for name in ("shared", "tests"):
        (packages / name).mkdir()
    (packages / "tests/__init__.py").touch()
    assert site.check()[0] == 0
    (packages / "sample_lib").mkdir()
    (packages / "sample_lib/__init__.py").write_text("changed = False\n")

    asked = subprocess.run([services / "bin/python", "-c", "import sample_lib; print(sample_lib.changed)"], text=True,
                           capture_output=True, check=True)
    status, lines = site.check()

    assert (asked.stdout, status) == ("False\n", 3)
    assert lines[0].endswith(f"from {tree}, but Python finds {packages / 'sample_lib'} first")


@pytest.mark.parametrize("finder", [
    "MAPPING: dict[str, str] = {'space.part': '/tree/space/part'}", "F.map_module('space.part', '/tree/space/part')"])
def test_a_finder_for_a_part_of_a_namespace_is_asked_last_too(site: Site, finder: str) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, "-e", tree)
    packages = next(services.glob("lib/*/site-packages"))
    name = "__editable___x_finder.py" if "MAPPING" in finder else "_editable_impl_x.py"
    (packages / name).write_text(f"{finder}\n")
    with (packages / "sample_lib-1.0.dist-info/RECORD").open("a") as record:
        record.write(f"{name},,\n")
    assert site.check()[0] == 0
    (packages / "space/part").mkdir(parents=True)
    (packages / "space/part/__init__.py").touch()
    assert site.check()[1][0].endswith(f"but Python finds {packages / 'space/part'} first")


@pytest.mark.parametrize(("finder", "other"), [(False, "path"), (True, "path"), (True, "finder")])
def test_another_tree_with_the_same_package_that_python_finds_first_hides_the_tree(
    site: Site, finder: bool, other: str
) -> None:
    """Such as a fork under another name; of .pth files the first in the alphabet wins."""
    tree, services, fork = site.tree(), site.environment("data/venv"), site.base / "new/acme-lib"
    text = (tree / "backend.py").read_text()
    if finder:
        (tree / "backend.py").write_text(text[:text.index("    return write(folder, {\"sample_lib.pth")] + FINDER)
    pip(services, "-e", tree)
    assert site.check()[0] == 0
    packages = next(services.glob("lib/*/site-packages"))
    fork.mkdir()
    (fork / "sample_lib.py").write_text("changed = False\n")
    if other == "path":
        (packages / "__editable__.acme_lib-1.0.pth").write_text(f"{fork}\n")
        hiding = fork / "sample_lib.py"
    else:
        hiding = packages / "__editable___acme_lib_finder.py"
        ours = (packages / "__editable___sample_lib_1_0_finder.py").read_text()
        hiding.write_text(ours.replace(str(tree), str(fork)))
        (packages / "__editable__.acme_lib-1.0.pth").write_text(f"import {hiding.stem} as f; f.install()")
    asked = subprocess.run([services / "bin/python", "-c", "import sample_lib; print(sample_lib.changed)"], text=True,
                           capture_output=True, check=True)
    assert (asked.stdout, site.check()[1][0].endswith(f"but Python finds {hiding} first")) == ("False\n", True)
    (packages / "__editable__.acme_lib-1.0.pth").rename(packages / "zacme_lib.pth")
    if other == "path" and not finder:
        assert site.check()[0] == 0


def test_a_tree_of_another_user_is_read_by_a_git_that_believes_files_only(site: Site) -> None:
    site.tree("devstack", "")
    git_before_2_38 = site.base / "bin/git"
    git_before_2_38.parent.mkdir()
    git_before_2_38.write_text(f"#!/bin/sh\nunset GIT_CONFIG_COUNT\nexport GIT_TEST_ASSUME_DIFFERENT_OWNER=1\n"
                               f"exec {shutil.which('git')} \"$@\"\n")
    git_before_2_38.chmod(0o755)
    assert site.check(path=f"{git_before_2_38.parent}:{os.environ['PATH']}")[0] == 0


def test_a_git_that_does_not_end_is_told_in_a_line(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, installed = site.tree(), load_script("gate/installed.py")
    (site.base / "git").write_text("#!/bin/sh\nexec sleep 60\n")
    (site.base / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(site.base), prepend=":")
    monkeypatch.setattr(installed, "GIT_SECONDS", 0.1)
    with pytest.raises(SystemExit) as ended:
        installed.main([str(site.base)])
    assert ended.value.code == f"installed.py: git merge-base in {tree} did not end within 0.1 s"


def test_a_change_that_is_no_longer_checked_out_is_not_tested(site: Site) -> None:
    tree = site.tree()
    git(tree, "checkout", "-q", "--orphan", "other")
    git(tree, "commit", "-q", "-m", "other")
    assert site.check()[1][0].startswith("NOT TESTED: sample.lib: the change ")
    git(tree, "checkout", "-q", "master")
    git(tree, "commit", "-q", "--allow-empty", "-m", "a hook's")
    assert site.check()[0] == 0


@pytest.mark.parametrize(("with_system", "hidden"), [(True, True), (False, False)])
def test_a_tree_that_python_finds_after_a_package_of_the_system_is_not_tested(
    site: Site, monkeypatch: pytest.MonkeyPatch, with_system: bool, hidden: bool
) -> None:
    """Python asks setuptools' finders after the path, and the distribution's packages are on the path."""
    system = site.base / "usr/dist-packages"
    system.mkdir(parents=True)
    (system / "sample_lib.py").write_text("changed = False\n")
    tree, services = site.tree(), site.base / "data/venv"
    text = (tree / "backend.py").read_text()
    (tree / "backend.py").write_text(text[:text.index("    return write(folder, {\"sample_lib.pth")] + FINDER)
    venv.create(services, system_site_packages=with_system)
    pip(services, "-e", tree)
    packages = next(services.glob("lib/*/site-packages"))
    (packages / "system.pth").write_text(f"{system}\n" * with_system)
    asked = subprocess.run([services / "bin/python", "-c", "import sample_lib; print(sample_lib.changed)"], text=True,
                           capture_output=True, check=True)
    assert asked.stdout == f"{not hidden}\n"
    installed = load_script("gate/installed.py")
    monkeypatch.setattr(installed, "SYSTEM", (str(system),))

    right, words = installed.judge(tree, (tree / ".git/gate-change").read_text().strip(), site.base, [])

    assert right is not hidden, words
    if hidden:
        assert words.endswith(f"from {tree}, but Python finds {system / 'sample_lib.py'} first")


def test_a_change_that_is_undone_in_the_files_is_not_tested(site: Site) -> None:
    tree = site.tree("devstack", "")
    change(tree, sample_lib="changed = 2\n")
    change(tree, sample_lib="changed = 3\n")
    (tree / "sample_lib.py").write_text("changed = 4  # a hook's\n")
    assert site.check()[0] == 0
    git(tree, "add", "sample_lib.py")
    assert site.check()[0] == 0
    for commit in ("origin/master", "origin/master~1"):
        git(tree, "checkout", "-q", commit, "--", ".")
        assert site.check()[1][0].endswith(f" is undone in {tree}: sample_lib.py is as an earlier commit had it")


def test_a_hook_may_change_the_rights_of_a_changed_file_and_its_line_ends_may_be_unusual(site: Site) -> None:
    tree = site.tree("devstack", "")
    change(tree, sample_lib="changed = 2\r\n")
    (tree / "sample_lib.py").chmod(0o777)
    assert site.check()[0] == 0
    (tree / ".gitattributes").write_text("*.py text\n")
    assert site.check()[0] == 0


def test_what_is_used_in_place_may_be_hidden_whoever_has_built_it(site: Site) -> None:
    """Only setuptools writes down which modules a distribution brings."""
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, "-e", tree)
    assert site.check()[0] == 0
    hiding = next(services.glob("lib/*/site-packages")) / "sample_lib.py"
    hiding.write_text("changed = False\n")
    asked = subprocess.run([services / "bin/python", "-c", "import sample_lib; print(sample_lib.changed)"], text=True,
                           capture_output=True, check=True)
    assert (asked.stdout, site.check()[1][0].endswith(f"but Python finds {hiding} first")) == ("False\n", True)


def test_the_released_one_under_the_name_from_before_the_change_is_not_the_change(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    pip(services, *release(tree, site.base / "index"))
    git(tree, "update-ref", "refs/remotes/origin/master", "HEAD")
    (tree / "pyproject.toml").write_text(PYPROJECT + '[project]\nname = "renamed"\n')
    change(tree)
    git(tree, "update-ref", "refs/remotes/origin/master", "HEAD~1")
    assert site.check()[1][0].startswith("NOT TESTED: sample.lib: sample.lib 1.0 in ")


def test_a_distribution_in_a_folder_of_the_tree_is_the_change_if_that_is_in_it(site: Site) -> None:
    tree, services = site.tree("several"), site.environment("data/venv")
    released = release(tree, site.base / "index")
    for folder in ("client", "other"):
        shutil.copytree(tree, tree / folder, ignore=shutil.ignore_patterns(".git", "client"))
    for name in ("pyproject.toml", "backend.py", "sample_lib.py"):
        (tree / name).unlink()
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "two distributions")
    change(tree, **{"client/sample_lib": "changed = 2\n"})
    pip(services, *released)
    assert site.check()[1][0].startswith("NOT TESTED: several: sample.lib 1.0 in ")
    pip(services, "--force-reinstall", tree / "client")
    assert site.check()[1][0].startswith(f"several: sample.lib 1.0 is installed from {tree}/client, in ")
    (tree / "client/sample_lib.py").write_text("changed = 'later'\n")
    assert site.check()[1][0].endswith(f"from {tree}/client, but is older than it: sample_lib.py differs")


def test_a_distribution_may_leave_its_build_system_to_pip(site: Site) -> None:
    tree, services = site.tree("several"), site.environment("data/venv")
    released = release(tree, site.base / "index")
    (tree / "client").mkdir()
    for name in ("pyproject.toml", "backend.py", "sample_lib.py"):
        git(tree, "mv", name, f"client/{name}")
    shutil.rmtree(tree / "__pycache__")
    (tree / "client/pyproject.toml").write_text('[project]\nname = "sample.lib"\nversion = "1.0"\n')
    git(tree, "commit", "-q", "-a", "-m", "setuptools, as pip has it")
    change(tree, **{"client/sample_lib": "changed = 2\n"})
    pip(services, *released)
    assert site.check()[1][0].startswith("NOT TESTED: several: sample.lib 1.0 in ")


def test_a_sample_in_a_tree_may_have_the_name_of_another_distribution(site: Site) -> None:
    other, services = site.tree(), site.environment("data/venv")
    pip(services, *release(other, site.base / "index"))
    (other / ".git/gate-change").unlink()
    tree = site.tree("several", "several")
    (tree / "examples/app").mkdir(parents=True)
    (tree / "examples/app/setup.py").write_text("setup(name='sample.lib')\n")
    change(tree, **{"examples/app/main": "1\n"})
    assert site.check()[1][0].startswith("several: is installed nowhere: ")


def test_a_change_beside_the_distributions_of_a_tree_is_in_those_that_come_from_it(site: Site) -> None:
    tree, services = site.tree("several"), site.environment("data/venv")
    for folder in ("client", "common", "doc"):
        (tree / folder).mkdir()
    for name in ("pyproject.toml", "backend.py"):
        git(tree, "mv", name, f"client/{name}")
    git(tree, "mv", "sample_lib.py", "common/sample_lib.py")
    (tree / "client/sample_lib.py").symlink_to("../common/sample_lib.py")
    released = release(tree / "client", site.base / "index")
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "a distribution in a folder")
    change(tree, **{"common/sample_lib": "changed = 2\n"})
    assert site.check()[1][0].startswith("several: is read by nothing: ")
    pip(services, *released)
    assert site.check()[1][0].startswith("NOT TESTED: several: sample.lib 1.0 in ")
    pip(services, "--force-reinstall", tree / "client")
    assert site.check()[1][0].startswith(f"several: sample.lib 1.0 is installed from {tree}/client, in ")
    change(tree, **{"common/sample_lib": "changed = 3\n"})
    assert site.check()[1][0].endswith(f"from {tree}/client, but is older than it: sample_lib.py differs")
    pip(services, "--force-reinstall", *released)
    change(tree, **{"doc/conf": "1\n"})
    assert site.check()[1][0].startswith("several: is read by nothing: ")


@pytest.mark.parametrize("files", [{"sample/new": "1\n"}, {"sample/old": ""}])
def test_a_copy_without_the_file_that_the_change_adds_or_with_the_one_that_it_removes_is_older(
    site: Site, files: dict[str, str]
) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    (tree / "sample").mkdir()
    for name in ("old.py", "data.json"):
        (tree / "sample" / name).write_text("1\n")
    text = (tree / "backend.py").read_text()
    (tree / "backend.py").write_text(text.replace(
        '{"sample_lib.py": pathlib.Path("sample_lib.py").read_text()}',
        "dict.fromkeys(['sample/old.py', 'sample/data.json'], '1\\n')"))
    git(tree, "add", "-A")
    git(tree, "commit", "-q", "-m", "a package")
    pip(services, tree)
    assert site.check()[0] == 0
    change(tree, **files)
    assert site.check()[1][0].endswith(f"but is older than it: {next(iter(files))}.py differs")
    git(tree, "checkout", "-q", "origin/master")
    (tree / ".git/gate-change").write_text(git(tree, "rev-parse", "HEAD"))
    (tree / "sample/data.json").write_text("2\n")
    assert site.check()[1][0].endswith("but is older than it: sample/data.json differs")


@pytest.mark.parametrize("kept_in_tree", [True, False])
def test_a_wheel_is_the_change_if_its_files_are_those_of_the_tree(site: Site, kept_in_tree: bool) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    wheels = tree / "dist" if kept_in_tree else site.base / "wheels"
    run_pip("wheel", "-w", wheels, tree)
    git(tree, "add", "-f", ".")
    git(tree, "commit", "-q", "--allow-empty", "-m", "a release")
    wheel = next(wheels.glob("*.whl"))
    change(tree, notes="1\n")
    pip(services, wheel)
    assert site.check()[1][0].endswith(f" comes from {wheel.as_uri()}")
    change(tree, sample_lib="changed = 2\n")
    assert site.check()[0] == 3
    run_pip("wheel", "-w", wheels, tree)
    pip(services, "--force-reinstall", wheel)
    assert site.check()[1][0].startswith(f"sample.lib: sample.lib 1.0 is installed with the files of {tree}, in ")
    pip(services, "--force-reinstall", "--find-links", wheels, "sample.lib")
    assert site.check()[0] == 0


@pytest.mark.parametrize(("there", "installed"), [
    ("python/sample_lib.py", "sample_lib.py"), ("python/part.py", "sample/part.py")])
def test_an_older_copy_is_seen_wherever_the_packages_lie_in_the_tree(site: Site, there: str, installed: str) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    (tree / "python").mkdir()
    (tree / "sample_lib.py").unlink()
    for file in (there, "python/other.py"):
        (tree / file).write_text("1\n")
    build_from(tree, f"{{{installed!r}: open({there!r}).read(), 'sample/other.py': '1\\n'}}")
    pip(services, tree)
    assert site.check()[1][0].startswith(f"sample.lib: sample.lib 1.0 is installed from {tree}, in ")
    change(tree, **{there[:-3]: "2\n"})
    assert site.check()[1][0].endswith(f"from {tree}, but is older than it: {installed} differs")
    pip(services, "--force-reinstall", tree)
    assert site.check()[0] == 0
    change(tree, **{"python/new": "1\n"})
    if "/" in installed:
        assert site.check()[1][0].endswith("but is older than it: sample/new.py differs")


def test_a_copy_none_of_whose_files_is_in_the_tree_is_said_so(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    build_from(tree, "{'made/by_the_build.py': '1\\n'}")
    pip(services, tree)
    assert f" is installed from {tree} (no file could be compared), in " in site.check()[1][0]


def test_a_version_that_the_build_writes_makes_no_copy_older(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    (tree / "_version.py").write_text("version = '0'\n")
    (tree / "sample_lib.py").write_text("version = '0'\nold = 1\n")
    build_from(tree, """{f: pathlib.Path(f).read_text().replace("version = '0'", "version = '1.0'")
                         for f in ("sample_lib.py", "_version.py")}""")
    change(tree, notes="1\n")
    pip(services, tree)
    assert site.check()[0] == 0
    change(tree, sample_lib="version = '0'\nnew = 1\n")
    assert site.check()[1][0].endswith("but is older than it: sample_lib.py differs")
    pip(services, "--force-reinstall", tree)
    assert site.check()[0] == 0


@pytest.mark.parametrize(("files", "tests", "status"), [
    ({"sample/test_new": "1\n"}, "test_old.py", 3),  # the build takes tests
    ({"sample/test_new": "1\n"}, "", 0),
    ({"sample/new": "1\n"}, "", 3),
    ({"sample/new": "1\n", "sample/code": "2\n"}, "", 0),
])
def test_what_the_build_leaves_out_makes_no_copy_older(
    site: Site, files: dict[str, str], tests: str, status: int
) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    (tree / "sample").mkdir()
    for name in ("code.py", "test_old.py"):
        (tree / "sample" / name).write_text("1\n")
    build_from(tree, f"{{f: open(f).read() for f in 'sample/code.py {'sample/' * bool(tests)}{tests}'.split()}}")
    change(tree, **files)
    pip(services, tree)
    assert site.check()[0] == status


def test_tempest_runs_where_tox_has_put_it_whatever_the_services_have(site: Site) -> None:
    tree = site.tree("tempest")
    pip(site.environment("data/venv"), *release(tree, site.base / "index"))
    assert site.check()[0] == 3
    pip(site.environment("new/tempest/.tox/tempest"), "-e", tree)
    assert site.check()[0] == 0


def test_a_tree_that_nothing_names_is_said_so(site: Site) -> None:
    for name in ("puppet", "devstack"):
        site.tree(name, "")
        (site.base / "new" / name / "pyproject.toml").unlink()
    settings = site.base / "new/devstack/local.conf"
    settings.write_text("LIBS_FROM_GIT=puppet\nLIST=puppet-x,my.puppet\n")
    status, lines = site.check()
    said = "puppet: is read by nothing: it is no Python distribution, and devstack does not name it"
    assert (status, lines[1]) == (0, said)
    settings.write_text("enable_plugin x https://example.org/puppet.git\n")
    assert site.check()[1][1].endswith("there is nothing to compare")


def test_documentation_and_comments_of_devstack_use_nothing(site: Site) -> None:
    for name in ("ceph", "devstack"):
        (site.tree(name, "") / "pyproject.toml").unlink()
    for file in ("doc/source/registry.rst", "README.md", ".zuul.yaml", "roles/run/tasks/main.yaml", "lib/rpc"):
        path = site.base / "new/devstack" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("true  # see openstack/ceph\n" if file == "lib/rpc" else "openstack/ceph\n")
    assert site.check()[1][0].startswith("ceph: is read by nothing: ")
    (site.base / "new/devstack/lib/rpc").write_text("git_clone openstack/ceph  # the tree\n")
    assert site.check()[1][0].endswith("there is nothing to compare")


def test_an_egg_that_python_imports_is_looked_at(site: Site) -> None:
    tree, services = site.tree(), site.environment("data/venv")
    change(tree, sample_lib="changed = 2\n")
    packages = next(services.glob("lib/*/site-packages"))
    egg = packages / "sample.lib-0.1-py3.11.egg"
    (egg / "EGG-INFO").mkdir(parents=True)
    (egg / "EGG-INFO/PKG-INFO").write_text("Name: sample.lib\nVersion: 0.1\n")
    (egg / "sample_lib.py").write_text("changed = 1\n")
    assert site.check()[1][0].startswith("sample.lib: is installed nowhere: ")
    (packages / "easy-install.pth").write_text(f"./{egg.name}\n")
    assert site.check()[1][0].startswith(f"NOT TESTED: sample.lib: sample.lib 0.1 in {packages} comes from a package ")
    shutil.copy(tree / "sample_lib.py", egg)
    assert site.check()[1][0].startswith(f"sample.lib: sample.lib 0.1 is installed with the files of {tree}, in ")
    shutil.rmtree(egg)
    egg.write_bytes(b"PK\xff\x00")
    assert site.check()[0] == 3


def test_what_the_stack_user_has_installed_for_itself_comes_before_the_systems(site: Site) -> None:
    tree = site.tree()
    packages = site.base / f".local/lib/python3.{sys.version_info.minor}/site-packages"
    run_pip("install", "--target", packages, *release(tree, site.base / "index"))
    assert site.check()[1][0].startswith(f"NOT TESTED: sample.lib: sample.lib 1.0 in {packages} comes ")


@pytest.mark.parametrize("side", ["new", "old"])
def test_a_tree_that_was_set_up_with_a_change_is_looked_at_whatever_lies_there_now(site: Site, side: str) -> None:
    tree = site.tree()
    (site.base / "new").rename(site.base / side)
    tree = site.base / side / tree.name
    told = f"--change={side}/{tree.name}:{git(tree, 'rev-parse', 'HEAD').strip()}"
    git(site.base, "clone", "-q", tree, site.base / "clone")
    shutil.rmtree(tree)
    assert site.check(told)[1][0].split(": ")[2].endswith("is not in what is checked out any more")
    (site.base / "clone").rename(tree)
    assert site.check(told)[0] == 0
    shutil.rmtree(tree / ".git")
    assert (site.check()[0], site.check(told)[0]) == (0, 3)


def test_the_old_side_of_an_upgrade_still_has_its_change(site: Site) -> None:
    site.tree()
    (site.base / "new").rename(site.base / "old")
    tree = site.base / "old/sample.lib"
    change(tree, sample_lib="changed = 2\n")
    assert site.check() == (0, [f"old/sample.lib: has the change {(tree / '.git/gate-change').read_text()[:10]}"])
    git(tree, "checkout", "-q", "--detach", "HEAD~1")
    assert site.check()[1][0].startswith("NOT TESTED: old/sample.lib: the change ")
