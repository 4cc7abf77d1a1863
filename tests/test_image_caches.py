"""What a machine has whose image was built, with all caches, from a devstack with two branches."""

import json
import os
import re
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.support.filehost import FileHost, file_host, proxy_free
from tests.support.pool import Pool, host, image, provider
from tests.support.repos import git, repository

BUILD_SECONDS = 300  # to find a hang
CUSTOM_SCRIPT = """#!/bin/bash
set -eu
{ ls /home/jenkins/cache/files /home/jenkins/cache/pip; dpkg-query -W -f '${Package}\\n' tree; } > /etc/custom-saw
echo '* * * * * root touch /tmp/nightly-ran' > /etc/cron.d/nightly
printf '#!/bin/sh\\ntouch /tmp/daily-ran\\n' > /etc/cron.daily/daily
install -d /var/spool/cron/crontabs
echo '* * * * * touch /tmp/own-ran' > /var/spool/cron/crontabs/root
for home in /root /home/debian /home/jenkins; do echo secret > $home/.bash_history; done
echo 0123456789abcdef0123456789abcdef > /etc/machine-id
"""
DEVSTACK = {
    "master": {
        "files/debs/general": "tree\njq # a comment, dist:bookworm,trixie\nhello # NOPRIME\nno-such-tool # NOPRIME\n",
        "files/debs/nova": "figlet # dist:trixie\nno-such-package\n",
        "stackrc": "echo 'this is not devstack' >&2; id -un > /home/jenkins/ran-as\n"
                   "EXTRA_CACHE_URLS=,@/files/extra.tar.gz\n"
                   "GITREPO[\"tiny\"]=${TINY_REPO:-${GIT_BASE}/openstack/tiny.git}\n"
                   "GITREPO[\"gone\"]=${GONE_REPO:-${GIT_BASE}/openstack/gone.git}\n",
        "tools/image_list.sh": "#!/bin/bash\necho @/files/new.img,@/files/broken.img\necho @/files/both.img\n",
        "lib/tool": "install_package hello-traditional no-such-guess\n",
    },
    "stable/older": {
        "files/apts/general": "sl\n",
        "files/pips/general": "tiny-one # the first\ntiny-gone\n",
        "stackrc": ("LIBVIRT_TYPE=${LIBVIRT_TYPE:-qemu}\ncase $LIBVIRT_TYPE in\n"
                    "    qemu) IMAGE_URLS=@/files/both.img;;\n"
                    "    *) IMAGE_URLS=@/files/never.img;;\nesac\n#IMAGE_URLS=@/files/never.img\n"
                    "IMAGE_URLS+=\",@/files/old.img\"\n"),
    },
    "feature/ignored": {"files/debs/general": "sl\n"},
}
CONSTRAINTS = "tiny-two===1.5\ntiny-dep===1.0\nnever-wanted===1.0\n"
TOOLS = ("pip", "setuptools", "wheel", "tiny-backend")
NOVA = {
    "master": {"requirements.txt": "tiny_two>=1.0 # Apache-2.0\ntiny-two;python_version>'3'\nold;python_version<'3'\n",
               "setup.cfg": "[extras]\nmore =\n    tiny-extra\n",
               "pyproject.toml": "[build-system]\nrequires = ['tiny-backend']\n"},
    "stable/older": {"requirements.txt": "never-wanted\n"},
    "feature/x": {"README": "of a feature\n"},
}


@dataclass
class Built:
    """A pool with machines whose image was built from a devstack checkout."""

    pool: Pool
    site: FileHost
    output: str
    log: str
    seconds: tuple[int, int]
    host_before: dict[str, Any]
    host_after: dict[str, Any]
    workspace: Path

    def run(self, command: str, machine: int = 1) -> str:
        """Return the output of a command on a machine, run as the node account."""
        ((address,),) = self.pool.sql("SELECT ip FROM machine WHERE id = ?", machine)
        result = self.pool.ssh(address, command)
        assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout


def wheel(folder: Path, name: str, version: str, requires: str = "") -> None:
    """Make a wheel of an empty distribution, and list it in a simple index."""
    under = name.replace("-", "_")
    path = folder / name / f"{under}-{version}-py3-none-any.whl"
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    if requires:
        metadata += f"Requires-Dist: {requires}\n"
    with zipfile.ZipFile(path, "w") as archive:
        info = f"{under}-{version}.dist-info"
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{one.name}">{one.name}</a>\n' for one in sorted(path.parent.glob("*.whl")))
    (path.parent / "index.html").write_text(f"<html><body>{links}</body></html>")


def fill(site: FileHost) -> None:
    """Put all that the build fetches onto the site."""
    (site.folder / "files").mkdir()
    (site.folder / "files/extra.tar.gz").write_text("extra\n")
    for name in ("new", "old", "both", "broken"):
        (site.folder / f"files/{name}.img").write_text(f"{name} image\n" * 1000)
    site.broken = {"/files/broken.img"}
    for name, version, requires in (("tiny-one", "1.0", ""), ("tiny-two", "1.5", "tiny-dep"), ("tiny-two", "2.0", ""),
                                    ("tiny-dep", "1.0", ""), ("tiny-dep", "2.0", ""), ("never-wanted", "1.0", ""),
                                    ("tiny-extra", "1.0", ""), *((name, "99", "") for name in TOOLS)):
        wheel(site.folder / "simple", name, version, requires)
    devstack = {branch: {name: text.replace("@/", f"{site.url}/") for name, text in files.items()}
                for branch, files in DEVSTACK.items()}
    constraints = {branch: {"upper-constraints.txt": CONSTRAINTS} for branch in ("master", "stable/older")}
    for name, branches in (("devstack", devstack), ("requirements", constraints), ("nova", NOVA),
                           ("tiny", {"master": {"README": "a library\n"}})):
        folder = repository(site.folder / f"openstack/{name}.work", branches)
        git(site.folder, "clone", "--quiet", "--bare", str(folder), f"openstack/{name}")
        git(site.folder / "openstack" / name, "update-server-info")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("caches")
    with file_host(folder / "site") as site, Pocket(folder, "--machines", "namespace") as pocket:
        fill(site)
        pool = Pool(folder, pocket)
        (folder / "custom.sh").write_text(CUSTOM_SCRIPT)
        (folder / "user-data.sh").write_text(
            f"#!/bin/sh\nprintf '[global]\\nindex-url = {site.url}/simple/\\n' > /etc/pip.conf\n{proxy_free(site.url)}")
        workspace = folder / "workspace"
        workspace.mkdir()
        pool.load(provider(images=[image(min_ready=2, user_data="user-data.sh")]))
        before, began = host(), int(time.time())
        run = pool.start(
            "devstack-vm-update-image.sh", "one", "--script", str(folder / "custom.sh"), WORKSPACE=str(workspace),
            GIT_BASE=site.url, DEVSTACK_GATE_PROJECTS="openstack/nova openstack/requirements openstack/absent",
            PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}", no_proxy="127.0.0.1")
        try:
            out, err = run.communicate(timeout=BUILD_SECONDS)
        finally:
            run.kill()
        assert run.returncode == 0, err
        ended, after = int(time.time()), host()
        pool.run("devstack-vm-launch.py", "one", expect=0)
        yield Built(pool, site, out, err, (began, ended), before, after, workspace)


def warnings(built: Built) -> list[str]:
    """Return the warnings on the console, without time and subject."""
    head = "WARNING provider=one image=noble "
    return sorted(line.partition(head)[2] for line in built.log.splitlines() if head in line)


# --- packages ---


def test_packages_of_all_branches_are_installed(built: Built) -> None:
    names = built.run("dpkg-query -W -f '${db:Status-Status} ${Package}\\n' tree jq sl git").splitlines()

    assert sorted(names) == ["installed git", "installed jq", "installed sl", "installed tree"]


def test_packages_that_devstack_installs_later_are_only_in_the_archive(built: Built) -> None:
    assert re.fullmatch(r"/var/cache/apt/archives/hello_\S+\.deb\n", built.run("ls /var/cache/apt/archives/hello_*"))
    assert built.run("dpkg-query -W -f '${db:Status-Status}' hello 2> /dev/null || echo absent") == "absent\n"


def test_packages_that_a_script_of_devstack_s_installs_are_in_the_archive_too(built: Built) -> None:
    assert built.run("ls /var/cache/apt/archives | grep -c hello-traditional_") == "1\n"


def test_packages_for_other_distributions_and_other_branches_are_not_there(built: Built) -> None:
    assert built.run("ls /var/cache/apt/archives | grep figlet || echo none") == "none\n"
    assert "stable/older" in built.log
    assert "feature/ignored" not in built.log


def test_what_could_not_be_had_is_named_with_its_file_and_branch(built: Built) -> None:
    found = warnings(built)

    assert "there is no package no-such-package (files/debs/nova of master)" in found
    assert "there is no package no-such-tool (files/debs/general of master)" in found
    assert [line.split(" (")[0] for line in found if "could not get" in line] == [
        "cache pip packages of stable/older: could not get tiny-gone",
        f"cache test images: could not get {built.site.url}/files/broken.img",
        "clone 3 projects: could not get openstack/absent",
    ]
    assert "clone 3 projects: could not clone these, which devstack may clone too: openstack/gone" in found
    assert len(found) == 6, found


# --- files, pip, projects ---


def test_test_images_of_all_branches_are_whole_and_nothing_half_is_left(built: Built) -> None:
    listing = built.run("cd cache/files && for f in * .[!.]*; do [ -e $f ] && echo $f $(wc -l < $f); done; true")

    assert listing.splitlines() == ["both.img 1000", "extra.tar.gz 1", "new.img 1000", "old.img 1000"]


def test_devstack_s_code_ran_on_the_template_as_the_account(built: Built) -> None:
    assert built.run("cat ran-as") == "jenkins\n"
    assert not Path("/home/jenkins/ran-as").exists()


def test_an_image_that_two_branches_want_is_fetched_once(built: Built) -> None:
    asked = {path: count for path, count in built.site.asked.items() if path.startswith("/files/")}

    assert asked == {"/files/both.img": 1, "/files/new.img": 1, "/files/old.img": 1, "/files/broken.img": 3,
                     "/files/extra.tar.gz": 1}


def test_pip_packages_are_what_devstack_lists_or_projects_require_and_all_that_builds_them(built: Built) -> None:
    assert built.run("ls cache/pip").splitlines() == [f"{name}-py3-none-any.whl" for name in (
        "pip-99", "setuptools-99", "tiny_backend-99", "tiny_dep-1.0", "tiny_extra-1.0", "tiny_one-1.0", "tiny_two-1.5",
        "wheel-99")]


def test_the_cached_pip_packages_can_be_installed_without_an_index(built: Built) -> None:
    shown = built.run("python3 -m pip install -q --no-index --find-links cache/pip --target /tmp/target tiny-two && "
                      "ls /tmp/target | grep -c dist-info")

    assert shown == "2\n"


def test_projects_are_cloned_with_all_branches(built: Built) -> None:
    branches = built.run("cd workspace-cache/openstack/nova && git for-each-ref --format='%(refname)' refs/remotes")

    assert set(branches.split()) - {"refs/remotes/origin/HEAD"} == {
        f"refs/remotes/origin/{branch}" for branch in NOVA}
    assert built.run("cd workspace-cache/openstack/nova && git remote get-url origin && git status --porcelain"
                     ) == f"{built.site.url}/openstack/nova\n"
    assert built.run("ls workspace-cache/openstack").split() == ["nova", "requirements", "tiny"]


def test_the_caches_and_the_workspace_belong_to_the_account(built: Built) -> None:
    assert built.run("stat -c '%U %G %n' cache cache/files cache/pip workspace-cache workspace && "
                     "find . ! -user jenkins").splitlines() == [
        f"jenkins jenkins {name}" for name in ("cache", "cache/files", "cache/pip", "workspace-cache", "workspace")]


# --- the machine ---


def test_the_image_says_what_it_was_made_from(built: Built) -> None:
    ((name,),) = built.pool.sql("SELECT name FROM snapshot_image")
    shas = {branch: git(built.site.folder / "openstack/devstack", "rev-parse", branch) for branch in DEVSTACK}

    marks = dict(line.split("=", 1) for line in built.run("cat /etc/devstack-gate/image").splitlines())

    made = time.strptime(marks.pop("IMAGE_TIME"), "%Y-%m-%dT%H:%M:%SZ")
    assert built.seconds[0] <= int(time.mktime(made) - time.timezone) <= built.seconds[1]
    assert marks == {
        "IMAGE_SNAPSHOT": name, "IMAGE_BRANCHES": "master,stable/older",
        "IMAGE_DEVSTACK": f"master:{shas['master']},stable/older:{shas['stable/older']}"}


def test_the_custom_script_ran_when_the_caches_were_full(built: Built) -> None:
    saw = built.run("cat /etc/custom-saw").split()

    assert {"tree", "new.img", "tiny_two-1.5-py3-none-any.whl"} <= set(saw)


def test_no_cron_job_is_left(built: Built) -> None:
    assert built.run("sudo find /etc/cron.d /etc/cron.hourly /etc/cron.daily /etc/cron.weekly /etc/cron.monthly "
                     "/var/spool/cron -type f ! -name '.*' 2> /dev/null || true") == ""
    assert built.run("[ ! -e /etc/crontab ] || grep -v '^#' /etc/crontab || true") == ""


@pytest.mark.parametrize("timer", ["apt-daily.timer", "apt-daily-upgrade.timer", "apt-daily.service"])
def test_the_timers_of_apt_are_off(built: Built, timer: str) -> None:
    assert built.run(f"[ ! -e /lib/systemd/system/{timer} ] || readlink /etc/systemd/system/{timer}") == "/dev/null\n"


def test_machines_have_no_identity_of_the_template(built: Built) -> None:
    assert [built.run("cat /etc/machine-id", machine) for machine in (1, 2)] == ["", ""]
    assert built.run("sudo find / -xdev -name .bash_history") == ""
    fingerprints = {built.run("cat /etc/ssh/ssh_host_ed25519_key.pub", machine).split()[1] for machine in (1, 2)}
    assert len(fingerprints) == 2


def test_no_key_of_the_build_is_left(built: Built) -> None:
    keys = built.run("sudo sh -c 'cat /root/.ssh/authorized_keys /home/*/.ssh/authorized_keys'")

    assert keys.split() == (built.pool.folder / "id_ed25519.pub").read_text().split()


def test_no_file_of_the_build_is_left(built: Built) -> None:
    assert built.run("ls -d /var/lib/devstack-gate 2> /dev/null || echo none") == "none\n"
    assert built.run("ls /etc/devstack-gate").split() == ["image", "node"]


def test_the_host_name_resolves_and_sudo_does_not_complain(built: Built) -> None:
    assert built.run("sudo true 2>&1; getent ahostsv4 $(hostname) > /dev/null && hostname") == "devstack-noble-one-1\n"


def test_nothing_of_it_is_on_the_host(built: Built) -> None:
    assert built.host_after == built.host_before


def test_the_checkout_in_the_workspace_says_beforehand_what_is_cached(built: Built) -> None:
    shown = built.pool.run("devstack-vm-update-image.py", "--what", "bookworm", expect=0,
                           WORKSPACE=str(built.workspace), DEVSTACK_GATE_PROJECTS="openstack/nova")

    what = json.loads(shown.stdout)
    assert what["master"]["packages"] == ["hello", "jq", "no-such-package", "no-such-tool", "tree"]
    assert what["stable/older"] == {
        "packages": ["sl"], "pips": ["tiny-gone", "tiny-one"], "projects": ["openstack/nova"],
        "images": [f"{built.site.url}/files/both.img", f"{built.site.url}/files/old.img"]}
