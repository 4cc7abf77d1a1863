"""The machine that becomes an image: the steps that run on it, in their order.

The steps themselves are functions of steps.sh, which is copied to the machine. This file chooses their arguments and
reads their output.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import gateconfig
import gateprocess
import nodessh
from gateconfig import ImageConfig, NodeConfig
from gateprocess import GateError
from image import devstackfiles, pipneeds
from image.devstackfiles import Checkout, Wanted

ALWAYS_DEB = ("sudo", "libnss-myhostname")  # the latter resolves the name of each machine
ALWAYS_RPM = ("sudo",)
CACHE_TOOLS = ("git", "curl", "python3-pip")  # fill the caches
REMOTE_FOLDER = "/var/lib/devstack-gate"
FORGET = "forget this machine"  # the last step, after which nobody can log in
URL = re.compile(r"[a-z]+://\S+")
MARKS = "/etc/devstack-gate/image"


@dataclass(frozen=True)
class Plan:
    """Settings of all images of a run; checkout is None if nothing is cached."""

    node: NodeConfig
    image: ImageConfig
    public_key: str
    script: bytes | None
    checkout: Checkout | None
    branches: Sequence[str]
    projects: Sequence[str]
    git_base: str
    step_seconds: int
    keep_failed: bool


class Template:
    """The machine that becomes the snapshot; each step is a method, run over one ssh session."""

    def __init__(self, session: nodessh.Session, plan: Plan, log: gateprocess.Log) -> None:
        self.session = session
        self.plan = plan
        self.log = log
        self.step = ""  # the name of the step that runs
        self._deadline = time.monotonic() + plan.step_seconds
        self.missing: list[str] = []  # required packages that the distribution does not have
        self._distribution = ""
        self._wanted: dict[str, Wanted] = {}
        self._got: set[tuple[tuple[str, ...], str]] = set()  # pip sets, with their constraints

    def begin(self, step: str) -> None:
        """Begin a named step; its time limit counts for everything in it."""
        self.step = step
        self._deadline = time.monotonic() + self.plan.step_seconds

    def call(self, function: str, *words: str, stdin: Sequence[str] | bytes = (), user: str = "root") -> list[str]:
        """Run a function of steps.sh, lines or bytes on stdin, and return its output; StepError if it fails."""
        words = (function, *words) if user == "root" else ("as_user", user, function, *words)
        text = stdin if isinstance(stdin, bytes) else "".join(f"{line}\n" for line in stdin)
        return self.run(["bash", f"{REMOTE_FOLDER}/steps.sh", *words], text)

    def run(self, words: Sequence[str], stdin: str | bytes = "") -> list[str]:
        """Run a command as root in the time that is left for the step, and return the lines of its output."""
        left = min(self.plan.step_seconds, max(1, math.ceil(self._deadline - time.monotonic())))
        output = self.session.run_as_root(self.step, words, left, stdin)
        self.log.debug("%s", output.rstrip())
        return output.splitlines()

    def stop_upgrades(self) -> None:
        """Copy the steps to the machine, and switch off its automatic upgrades for good."""
        text = devstackfiles.STEPS_FILE.read_text(encoding="utf-8")
        self.session.put(self.step, f"{REMOTE_FOLDER}/steps.sh", text, "0755")
        self.call("stop_upgrades")

    def wait_for_boot(self) -> None:
        """Wait for the end of the first boot, and find out the distribution."""
        self.call("wait_for_boot")
        told = self.call("print_distribution")
        if not told:
            raise GateError("the machine does not tell its distribution")
        self._distribution = told[-1]
        self.log.info("the distribution is %s", self._distribution)

    def install_packages(self) -> None:
        """Install the packages of every image; a missing one fails the build, but only at its end."""
        rpm = devstackfiles.is_rpm(self._distribution)
        names = self.plan.image.packages or (gateconfig.RPM_PACKAGES if rpm else gateconfig.DEB_PACKAGES)
        tools = [*(ALWAYS_RPM if rpm else ALWAYS_DEB), *(CACHE_TOOLS if self.plan.checkout else ())]
        self.missing = unavailable(self.call("fetch_packages", "install", stdin=[*tools, *names]))
        for name in self.missing:
            self.log.error("the required package %s ([image] packages) does not exist", name)

    def install_headers(self) -> None:
        """Install headers of the newest kernel."""
        self.warn(self.call("install_headers"))

    def apply_puppet(self) -> None:
        """Let puppet apply the operator's repository."""
        image, clone = self.plan.image, f"{REMOTE_FOLDER}/puppet"
        if devstackfiles.is_local(image.puppet_repo):
            self.call("clone_bundle", image.puppet_repo, clone, stdin=devstackfiles.bundle(image.puppet_repo))
        else:
            self.call("clone_puppet", image.puppet_repo, clone)
        self.call("apply_puppet", clone, image.puppet_modulepath, image.puppet_manifest)

    def make_account(self) -> None:
        """Make the account that Jenkins and the tests use."""
        self.call("make_account", self.plan.node.user, self.plan.public_key, self.plan.node.remote_fs)

    def clone_projects(self) -> None:
        """Clone the gate's projects and what devstack may clone, with all branches; copy those that this host has."""
        missing = self.clone(self.plan.projects)
        for line in missing:
            self.log.warning("%s: could not get %s", self.step, line)
        missing = self.clone([one for one in self.projects() if one not in self.plan.projects])
        if missing:
            self.log.warning("%s: could not clone these, which devstack may clone too: %s", self.step,
                             ", ".join(line.partition(" ")[0] for line in missing))

    def clone(self, projects: Sequence[str]) -> list[str]:
        """Clone projects and return those that could not be cloned, with the reason."""
        if not devstackfiles.is_local(self.plan.git_base):
            return unavailable(self.cache("clone_projects", self.plan.git_base, stdin=projects))
        missing = []
        for project in projects:
            url = f"{self.plan.git_base}/{project}"
            try:
                bundle = devstackfiles.bundle(url)
            except GateError as err:
                missing.append(f"{project} ({err})")
                continue
            self.cache("clone_bundle", url, f"workspace-cache/{project}", stdin=bundle)
        return missing

    def projects(self) -> list[str]:
        """Return the gate's projects and what the branches of devstack may clone, each once."""
        found = dict.fromkeys(self.plan.projects)
        for branch in self.plan.branches:
            found.update(dict.fromkeys(self.wanted(branch).repositories))
        return list(found)

    def cache_packages(self, branch: str) -> None:
        """Install the packages that devstack installs first, and download those that it installs later."""
        wanted = self.wanted(branch)
        files = {package.name: package.file for package in wanted.packages}
        for mode, install in (("install", True), ("download", False)):
            names = [package.name for package in wanted.packages if package.install == install]
            for name in unavailable(self.call("fetch_packages", mode, stdin=names)):
                self.log.warning("there is no package %s (%s of %s)", name, files.get(name, "?"), branch)
        self.call("fetch_packages", "download", stdin=wanted.later)  # whatever this distribution has of these

    def cache_pips(self, branch: str) -> None:
        """Download the pip packages that a build of the branch asks for, with their dependencies."""
        user = self.plan.node.user
        needs = "".join(self.call("show_needs", branch, "workspace-cache", stdin=self.projects(), user=user))
        constraints = {name: "\n".join(self.call("show_constraints", name, "workspace-cache", user=user))
                       for name in dict.fromkeys((branch, "master"))}
        sets = self.wanted(branch).pip_sets(branch, pipneeds.unpack(needs))
        for one in devstackfiles.worth_getting(sets, constraints):
            if time.monotonic() > self._deadline:
                self.log.warning("%s: not done after %d s; the image is made without the rest", self.step,
                                 self.plan.step_seconds)
                return
            if (one.requirements, one.constraints) not in self._got:
                self._got.add((one.requirements, one.constraints))
                for line in unavailable(self.cache("cache_pips", one.constraints, stdin=one.requirements)):
                    self.log.warning("%s: could not get %s (%s)", self.step, line, one.name)

    def cache_files(self) -> None:
        """Download all branches' test images and other files; devstack's own code, run on the template, says which."""
        checkout = self.plan.checkout
        urls: dict[str, None] = {}
        for branch in self.plan.branches:
            try:
                assert checkout, "the step is made for a checkout only"
                output = self.call("print_image_urls", self._distribution, stdin=checkout.archive(branch),
                                   user=self.plan.node.user)
                urls.update(dict.fromkeys(line for line in output if URL.fullmatch(line)))
            except nodessh.StepError as err:
                self.log.warning("branch %s: its test images are not known: %s", branch, str(err).splitlines()[-1])
            urls.update(dict.fromkeys(self.wanted(branch).urls))
        self.warn(self.cache("cache_files", stdin=list(urls)))

    def run_custom_script(self) -> None:
        """Run the operator's own script, after all that is installed and cached."""
        path = f"{REMOTE_FOLDER}/custom-script"
        self.session.put(self.step, path, self.plan.script or b"", "0755")
        self.run([path])

    def wanted(self, branch: str) -> Wanted:
        """Return what a branch wants cached on this machine."""
        if branch not in self._wanted and self.plan.checkout:
            self._wanted[branch] = devstackfiles.wanted(self.plan.checkout, branch, self._distribution)
        return self._wanted[branch]

    def cache(self, function: str, *words: str, stdin: Sequence[str] | bytes) -> list[str]:
        """Run a function that fills a cache and return its output; a missing item only costs the tests time."""
        try:
            return self.call(function, *words, stdin=stdin, user=self.plan.node.user)
        except nodessh.StepError as err:
            self.log.warning("%s; the image is made without", err)
            return []

    def warn(self, output: Sequence[str]) -> None:
        """Log the items that a step could not get."""
        for name in unavailable(output):
            self.log.warning("%s: could not get %s", self.step, name)


def unavailable(output: Sequence[str]) -> list[str]:
    """Return the names that a step printed as unavailable."""
    return [line.removeprefix("unavailable: ") for line in output if line.startswith("unavailable: ")]


Step = tuple[str, Callable[[Template], object]]


def steps_of(plan: Plan, build_key: str, marks: str) -> list[Step]:
    """Return the named steps that make a machine a template, in their order; build_key is the base64 of its key."""
    steps: list[Step] = [
        ("stop automatic upgrades", Template.stop_upgrades),
        ("wait for first boot", Template.wait_for_boot),
        ("repair packages", lambda template: template.call("repair_packages")),
        ("make hostname resolve", lambda template: template.call("resolve_hostname")),
        ("upgrade", lambda template: template.call("upgrade")),
        ("install packages", Template.install_packages),
        ("install kernel headers", Template.install_headers),
    ]
    if plan.image.puppet_repo:
        steps.append(("apply puppet", Template.apply_puppet))
    steps.append(("make account", Template.make_account))
    if plan.checkout:
        steps += [(f"cache packages of {branch}", _for(Template.cache_packages, branch)) for branch in plan.branches]
        steps.append((f"clone {len(plan.projects)} projects", Template.clone_projects))
        steps += [(f"cache pip packages of {branch}", _for(Template.cache_pips, branch)) for branch in plan.branches]
        steps += [("cache test images", Template.cache_files),
                  ("forget what pip kept", lambda template: template.cache("forget_pip_work", stdin=()))]
    if plan.script is not None:
        steps.append(("run custom script", Template.run_custom_script))
    return [
        *steps,
        ("remove cron jobs", lambda template: template.call("remove_cron_jobs")),
        (f"write {MARKS}", lambda template: template.session.put(template.step, MARKS, marks)),
        (FORGET, lambda template: template.call("forget_machine", build_key)),
    ]


def _for(step: Callable[[Template, str], object], branch: str) -> Callable[[Template], object]:
    return lambda template: step(template, branch)
