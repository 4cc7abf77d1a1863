"""Steps on a template with what is rare in clouds: a mirror that fails, puppet, rpm packages.

One image is built from Debian: with our own package from a mirror that fails at first, puppet, and all that rpm
packages need. Its custom script then makes the machine look like a Fedora, so that dnf prepares the images that are
built on top of it.
"""

import hashlib
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.pocketcloud.client import Pocket
from tests.support.filehost import FileHost, file_host, proxy_free
from tests.support.pool import Pool, host, image, provider
from tests.support.repos import repository, write

BUILD_SECONDS = 400  # to find a hang
FAILURES = {"Release": 2, "Packages": 6, "from-the-mirror_1.0_all.deb": 2}  # apt-get itself tries four times
RPMS = ("sudo", "git", "curl", "python3-pip", "wanted", "of-devstack", "for-later")
PUPPET = {"master": {
    "manifests/site.pp": "include written\n",
    "modules/written/manifests/init.pp":
        "class written {\n  file { '/etc/written-by-puppet': content => \"by puppet\\n\" }\n}\n",
    "manifests/fails.pp": "exec { '/bin/false': }\n",
}}
BECOME_FEDORA = """#!/bin/bash
set -eu
cd /root
printf 'Name: all\nVersion: 1.0\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n%%description\nx\n' > spec
for name in RPMS; do
    printf '%%package -n %s\nSummary: x\n%%description -n %s\nx\n%%files -n %s\n' $name $name $name >> spec
done
rpmbuild --quiet -bb --define "_rpmdir /srv/rpms" spec
createrepo_c -q /srv/rpms
cd /srv/rpms
find . -type f | while read -r path; do curl -sS -f --noproxy '*' -T "$path" "URL/rpms/${path#./}"; done
mkdir -p /etc/yum.repos.d
printf '[local]\\nname=local\\nbaseurl=URL/rpms/\\ngpgcheck=0\\nproxy=\\n' > /etc/yum.repos.d/local.repo
rm /etc/os-release
printf 'ID=fedora\\nVERSION_ID=41\\n' > /etc/os-release
mv /usr/bin/apt-get /usr/bin/apt-get.away
"""


@dataclass
class Built:
    """The pool, and how its builds went: {image: (exit code, console)}."""

    pool: Pool
    site: FileHost
    runs: dict[str, tuple[int, str]]
    host_before: dict[str, Any]

    def run(self, image_name: str, command: str) -> str:
        """Return the output of a command on a machine of an image."""
        ((address,),) = self.pool.sql("SELECT ip FROM machine JOIN base_image ON base_image_id = base_image.id "
                                      "WHERE base_image.name = ?", image_name)
        result = self.pool.ssh(address, command)
        assert result.returncode == 0, f"{command}: {result.returncode}\n{result.stdout}{result.stderr}"
        return result.stdout


def make_mirror(site: FileHost) -> None:
    """Make an apt repository with one package; the first requests for each of its files fail."""
    package = write(site.folder / "package", {
        "DEBIAN/control": "Package: from-the-mirror\nVersion: 1.0\nArchitecture: all\nMaintainer: A <a@example.org>\n"
                          "Description: a test\n", "etc/from-the-mirror": "yes\n"})
    (site.folder / "apt").mkdir()
    deb = site.folder / "apt/from-the-mirror_1.0_all.deb"
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", str(package), str(deb)], check=True,
                   capture_output=True)
    control = (package / "DEBIAN/control").read_text()
    packages = (f"{control}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\n"
                f"SHA256: {hashlib.sha256(deb.read_bytes()).hexdigest()}\n")
    release = f"Suite: test\nSHA256:\n {hashlib.sha256(packages.encode()).hexdigest()} {len(packages)} Packages\n"
    write(site.folder / "apt", {"Packages": packages, "Release": release})
    site.failures.update({f"/apt/{name}": count for name, count in FAILURES.items()})


def configure(pool: Pool, **settings: str) -> None:
    """Write section [image] of the secure configuration."""
    pool.write_secure_config()
    head = pool.secure_config.read_text().partition("[image]")[0]
    pool.secure_config.write_text(f"{head}[image]\n" + "".join(f"{key} = {text}\n" for key, text in settings.items()))


def build(pool: Pool, name: str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Build an image; return exit code and console."""
    run = pool.start("devstack-vm-update-image.py", "one", "--image", name, *arguments, **environment)
    try:
        return (run.communicate(timeout=BUILD_SECONDS)[1], run.returncode)[::-1]
    finally:
        run.kill()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    folder = tmp_path_factory.mktemp("steps")
    with file_host(folder / "site") as site, Pocket(folder, "--machines", "namespace") as pocket:
        make_mirror(site)
        puppet = repository(folder / "puppet", PUPPET)
        write(folder, {
            "user-data.sh": f"#!/bin/sh\n{proxy_free(site.url)}echo 'deb [trusted=yes] {site.url}/apt ./' > "
                            "/etc/apt/sources.list.d/test.list\n",
            "custom.sh": BECOME_FEDORA.replace("RPMS", " ".join(RPMS)).replace("URL", site.url)})
        devstack = repository(folder / "devstack", {
            "master": {"files/rpms/general": "of-devstack\nfor-later # NOPRIME\nnot-there\nnever # dist:f99\n"},
            "stable/bare": {"files/rpms/general": "absent # NOPRIME\n"}})
        pool = Pool(folder, pocket)
        keys: dict[str, Any] = {"user_data": "user-data.sh", "min_ready": 1}
        pool.load(provider(images=[image("debian", **keys)]))
        before, runs = host(), {}
        configure(pool, packages="from-the-mirror dnf createrepo-c rpm curl", puppet_repo=str(puppet))
        runs["debian"] = build(pool, "debian", "--script", str(folder / "custom.sh"))
        assert runs["debian"][0] == 0, runs["debian"][1]
        ((snapshot,),) = pool.sql("SELECT name FROM snapshot_image")
        pool.load(provider(images=[image("debian", **keys), image("fedora", image=snapshot, **keys),
                                   image("fails", image=snapshot, **keys)]))
        configure(pool, packages="wanted")
        runs["fedora"] = build(pool, "fedora", "-v", "--devstack", str(devstack), GIT_BASE=str(folder),
                               DEVSTACK_GATE_PROJECTS="puppet")
        configure(pool, puppet_repo=str(puppet), puppet_manifest="manifests/fails.pp", packages="not-there")
        runs["fails"] = build(pool, "fails")
        launch = pool.run("devstack-vm-launch.py", "one")
        assert launch.returncode == 1, launch.stderr  # the image "fails" was not built
        yield Built(pool, site, runs, before)


def test_a_mirror_that_fails_at_first_costs_no_build(built: Built) -> None:
    """The package lists fail until the step is tried again, the package until apt-get itself tries again."""
    assert built.run("debian", "cat /etc/from-the-mirror") == "yes\n"
    asked = {name: built.site.asked[f"/apt/{name}"] for name in FAILURES}
    assert all(asked[name] > FAILURES[name] for name in FAILURES), asked


def test_puppet_does_what_the_manifest_says(built: Built) -> None:
    assert built.run("debian", "cat /etc/written-by-puppet") == "by puppet\n"


def test_nothing_is_left_of_the_puppet_repository_but_what_it_did(built: Built) -> None:
    assert built.run("debian", "ls -d /var/lib/devstack-gate 2> /dev/null || echo none") == "none\n"


def test_a_manifest_that_fails_ends_the_build_with_the_step_and_what_puppet_said(built: Built) -> None:
    code, log = built.runs["fails"]

    assert code == 1
    ((error,),) = built.pool.sql("SELECT error FROM snapshot_image JOIN base_image ON base_image_id = base_image.id "
                                 "WHERE snapshot_image.state = 'ERROR' AND base_image.name = 'fails'")
    assert ": apply puppet: exit status 4 | " in error
    assert error.isprintable()
    assert "/bin/false" in error
    assert "image=fails no new snapshot: " in log


def test_rpm_packages_are_installed_and_those_for_later_only_kept(built: Built) -> None:
    assert built.runs["fedora"][0] == 0, built.runs["fedora"][1]
    installed = built.run("fedora", "sudo rpm -qa --queryformat '%{NAME}\\n'").split()
    assert sorted(installed) == ["curl", "git", "of-devstack", "python3-pip", "sudo", "wanted"]
    kept = built.run("fedora", "sudo find /var/cache/dnf -name '*.rpm' -printf '%f\\n'").split()
    assert "for-later-1.0-1.noarch.rpm" in kept


def test_rpm_packages_that_are_missing_are_named_with_their_file_and_not_tried_again(built: Built) -> None:
    log = built.runs["fedora"][1]

    assert "image=fedora the distribution is f41\n" in log
    assert re.findall(r"WARNING provider=one image=fedora (.*)\n", log) == [
        "there is no package not-there (files/rpms/general of master)",
        "there is no package absent (files/rpms/general of stable/bare)"]
    assert "again in" not in log


def test_a_required_rpm_package_that_is_missing_is_an_error_in_the_end(built: Built) -> None:
    assert "image=fails the required package not-there ([image] packages) does not exist" in (
        built.runs["fails"][1])


def test_the_host_is_as_it_was(built: Built) -> None:
    assert host() == built.host_before
    assert not Path("/srv/rpms").exists()
