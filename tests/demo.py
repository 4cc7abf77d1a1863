"""The demo: the life of a pool of single-use machines, told in steps, on this computer alone.

With --real the clouds are two regions of a real OpenStack control plane, tests/realcloud.
"""

import argparse
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pocketcloud.client import CloudProcess, Pocket
from tests.pocketjenkins.client import StandIn
from tests.pocketjenkins.plugins import RECORDED
from tests.support.gatenode import gate_script
from tests.support.jobsite import FULL, GATE, load, make_site, sample_settings
from tests.support.pool import PROJECT, SSH_TO_STRANGERS, Pool, await_that, image, make_key, provider
from tests.support.sampleprojects import served

NORTH, SOUTH = "north", "south"
BUILD_SECONDS = 60
CHANGE_GOOD, CHANGE_BREAKING = "refs/zuul/master/Zgood", "refs/zuul/master/Zbreaking"


@dataclass
class Clouds:
    """The two clouds, north and south."""

    process: CloudProcess
    turn_north: Callable[[bool], object]  # True: down
    boot_seconds: int  # time-out of a machine's boot

    @classmethod
    def pocket(cls, folder: Path, ssh_port: int, running: ExitStack) -> "Clouds":
        """Start two clouds of one pocketcloud."""
        pocket = running.enter_context(
            Pocket(folder, "--clouds", f"{NORTH},{SOUTH}", "--machines", "namespace", "--ssh-port", str(ssh_port)))
        failing = [{"service": service, "match": ".*", "status": 503}
                   for service in ("identity", "compute", "image", "network")]
        return cls(pocket, lambda down: pocket.knobs(NORTH, answers=failing if down else []), 30)

    @classmethod
    def real(cls, folder: Path, ssh_port: int, running: ExitStack) -> "Clouds":
        """Start two regions of one real control plane."""
        from tests.realcloud.client import RealCloud
        from tests.realcloud.regions import Region

        real = running.enter_context(
            RealCloud(folder, "--clouds", f"{NORTH},{SOUTH}", "--ssh-port", str(ssh_port)))
        north, _south = (running.enter_context(Region(real, name)) for name in (NORTH, SOUTH))
        return cls(real, lambda down: north.turn(down=down), 120)


class Story:
    """Prints numbered steps, what came of each, and how long it took."""

    def __init__(self) -> None:
        self.number = 0
        self.started = time.monotonic()

    def step(self, text: str) -> None:
        """Say what happens next."""
        self.number += 1
        print(f"\n{self.number:2}. {text}", flush=True)

    def came(self, text: str) -> None:
        """Say what came of it."""
        print(f"    -> {text}", flush=True)

    def show(self, text: str) -> None:
        """Show output as it is."""
        for line in text.rstrip().splitlines():
            print(f"       {line}", flush=True)


class Demo:
    """Drives the scripts as Jenkins would, against two clouds and a Jenkins on loopback."""

    def __init__(self, folder: Path, running: ExitStack, story: Story, *, real: bool) -> None:
        self.story = story
        self.folder = folder
        port = _free_ssh_port()
        what = "two regions of a real OpenStack" if real else "two OpenStack clouds"
        self.story.step(f"Start {what}, north and south, and a Jenkins, all on 127.0.0.0/8.")
        self.clouds = (Clouds.real if real else Clouds.pocket)(folder, port, running)
        self.jenkins = running.enter_context(StandIn(
            folder / "jenkins", credentials={"nodes": ("jenkins", make_key(folder))},
            knobs={"plugins": FULL | RECORDED, "master_label": "devstack-gate-host", "master_executors": 10,
                   "master_environment": {"DEVSTACK_GATE_DB": str(folder / "vm.db"), "HOME": str(folder),
                                          "DEVSTACK_GATE_SECURE_CONFIG": str(folder / "secure.conf")}}))
        self.git_base = running.enter_context(served(folder / "git", CHANGE_GOOD, CHANGE_BREAKING))
        self.pool = Pool(folder, self.clouds.process, self.jenkins)
        self.ssh_port = port
        self.story.came(f"clouds at {self.clouds.process.url}, Jenkins at {self.jenkins.url}")
        self.story.came("each virtual machine will be a Debian of its own (Linux namespaces), reached by real ssh")

    def run(self, script: str, *arguments: str, expect: int = 0) -> str:
        """Run a script, keep its log and return its stdout, with the last line of stderr if it was expected to fail."""
        result = self.pool.run(script, *arguments)
        with (self.folder / "scripts.log").open("a") as log:
            log.write(f"$ {script} {' '.join(arguments)}\n{result.stderr}{result.stdout}exit {result.returncode}\n\n")
        if result.returncode != expect:
            raise SystemExit(f"{script} exited with {result.returncode}, expected {expect}:\n{result.stderr}")
        return result.stdout if not expect else result.stdout + result.stderr.splitlines()[-1]

    def tell(self) -> None:
        """Tell the whole story."""
        self.load()
        self.build_images()
        self.fill()
        self.use_once()
        self.fail_and_keep()
        self.lose_a_provider()
        self.reap()
        self.use_two_at_once()
        self.kill_jenkins()
        self.look_inside()
        self.status_page()

    def load(self) -> None:
        """Load the providers file."""
        self.story.step("Tell the pool about them: a providers file asks for 2 ready machines at each provider.")
        self.load_images()
        self.story.came("`vmdatabase.py load providers.yaml` wrote them to vm.db, one SQLite file")

    def load_images(self, *of_south: dict[str, Any]) -> None:
        """Load a providers file with one image type at both clouds, and more of them at south."""
        keys = {"max_servers": 8, "ssh_port": self.ssh_port, "boot_timeout": self.clouds.boot_seconds}
        bookworm = image("bookworm", min_ready=2)
        self.pool.load(provider(NORTH, cloud=NORTH, images=[bookworm], **keys),
                       provider(SOUTH, cloud=SOUTH, images=[bookworm, *of_south], **keys))

    def build_images(self) -> None:
        """Build the images, as the daily job does."""
        self.story.step("Build an image at each: boot a plain Debian, install packages, make an account, snapshot.")
        started = time.monotonic()
        self.run("devstack-vm-update-image.py", "all")
        self.story.came(f"2 snapshots after {time.monotonic() - started:.0f} s; machines will boot from them "
                        "without installing anything")

    def fill(self) -> None:
        """Fill the pool, as the 10-minute job does."""
        self.story.step("Fill the pool: boot machines, test them by ssh, register them as Jenkins nodes.")
        started = time.monotonic()
        self.run("devstack-vm-launch.py", "all")
        for name in self.pool.machines():
            self.jenkins.wait_node(name, "online")
        self.story.came(f"full after {time.monotonic() - started:.1f} s, and Jenkins has connected to each "
                        "(it accepts only the host key seen in the ssh test):")
        self.show_pool()

    def use_once(self) -> None:
        """Run two builds, which use two machines."""
        self.story.step("Load the jobs of jobs/ into Jenkins, and run two builds of the gate job.")
        jobs = make_site(self.folder, {"suffix": [{"": {"image": "bookworm"}}]}, providers=[NORTH, SOUTH],
                         scripts=str(PROJECT), replacement="by-the-clock", **sample_settings(self.git_base))
        load(jobs, self.jenkins.url, self.jenkins.user, self.jenkins.token)
        self.story.came("`jenkins-jobs update jobs/` made six jobs. The gate's first step has its node taken out of")
        self.story.show("service, and waits for that; after any end its machine is marked for deletion")
        self.story.came("between them devstack-vm-gate-wrap.sh sets up three projects with the change, prepares the")
        self.story.show("machine, and runs a small devstack, which starts a service, and the test that uses it")
        first, second = self.build(CHANGE_GOOD, "SUCCESS"), self.build(CHANGE_BREAKING, "FAILURE")
        if first["node"] == second["node"]:
            raise SystemExit("one machine served two builds")
        self.story.came(f"gate #{first['number']} {first['result']} on {first['node']}; from its console:")
        self.story.show(_told(first["console"], "sample/", "1 + 2", "PASS."))
        self.story.came(f"gate #{second['number']} {second['result']} on {second['node']}, another machine: "
                        "each serves one build. Its change breaks another project:")
        self.story.show(_told(second["console"], "sample/", "1 + 2", "FAIL ("))
        self.failed_node = str(second["node"])

    def build(self, change: str, expect: str) -> dict[str, Any]:
        """Run one build to its end, and keep its console."""
        started = self.jenkins.wait_started(self.start(change), BUILD_SECONDS)
        build = self.jenkins.wait_build(GATE, started["number"], BUILD_SECONDS)
        (self.folder / f"console-gate-{build['number']}.txt").write_text(build["console"])
        await_that("devstack-vm-delete", lambda: self.pool.sql(
            "SELECT 1 FROM result WHERE node_name = ? AND end_time IS NOT NULL", build["node"]))
        if build["result"] != expect:
            raise SystemExit(f"gate #{build['number']} ended {build['result']}, expected {expect}:\n{build['console']}")
        return build

    def start(self, change: str) -> int:
        """Ask Jenkins for a build; return the number of its queue item."""
        return self.jenkins.build(GATE, ZUUL_URL=self.git_base, ZUUL_PROJECT="sample/adder", ZUUL_BRANCH="master",
                                  ZUUL_REF=change)

    def fail_and_keep(self) -> None:
        """Show that a failed build's machine stays."""
        self.story.step("The second build failed. Reap, the hourly job, deletes used machines; what about this one?")
        self.run("devstack-vm-reap.py", "all")
        self.story.came(f"{self.failed_node} is kept for 24 hours, for whoever wants to look; the good build's is gone")
        command = [*self.ssh_to(self.failed_node),
                   f"cat /etc/devstack-gate/node; tail -n 1 ~/workspace/{GATE}/logs/screen-adderd.txt"]
        self.story.came("a look by plain ssh:")
        self.story.show(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def address(self, node: str) -> str:
        """Return the address of a node."""
        return str(self.pool.sql("SELECT ip FROM machine WHERE name = ?", node)[0][0])

    def lose_a_provider(self) -> None:
        """Launch and build while one provider is down."""
        self.story.step("North's cloud goes down, every request fails. Launch, and run a third build.")
        self.clouds.turn_north(True)
        output = self.run("devstack-vm-launch.py", "all", expect=1)
        third = self.build(CHANGE_GOOD, "SUCCESS")
        self.story.came("launch filled south all the same, and exited with 1 so that its Jenkins job turns red:")
        self.story.show(output)
        self.story.came(f"gate #{third['number']} {third['result']} on {third['node']}")

    def reap(self) -> None:
        """Have reap and launch make all agree again."""
        self.story.step("North is back. Reap, and launch again, as the timers would.")
        self.clouds.turn_north(False)
        self.story.show(self.run("devstack-vm-reap.py", "all"))
        self.run("devstack-vm-launch.py", "all")
        self.story.came("the pool is full again:")
        self.show_pool()

    def use_two_at_once(self) -> None:
        """Use a group, with the hook of docs/groups.md."""
        self.story.step("Ask south for a machine with a subnode, and run the small devstack on both.")
        self.load_images(image("pair", template="bookworm", min_ready=1, subnodes=1))
        self.run("devstack-vm-launch.py", SOUTH)
        self.story.came("the two were READY together; `devstack-vm-inprogress.py --image pair` gives them to a person:")
        taken = self.run("devstack-vm-inprogress.py", "--image", "pair")
        self.story.show(taken)
        (hook,) = re.findall(r"```bash\n(.*?)```", (PROJECT / "docs/groups.md").read_text(), re.DOTALL)
        hooks = f"""{hook}
            post_test_hook() {{
                ssh "$SUBNODES" "cd $BASE && sudo python3 new/adderd/ask.py data/adderd.socket '2 40'"
            }}
            export -f pre_test_hook post_test_hook
            git clone -q {self.git_base}/openstack/devstack-gate ~/workspace/devstack-gate"""
        script = gate_script(hooks=hooks, GIT_BASE=self.git_base, ZUUL_URL=self.git_base,
                             ZUUL_PROJECT="sample/adder", ZUUL_BRANCH="master", ZUUL_REF=CHANGE_GOOD)
        lead = taken.split()[0]
        command = [*self.ssh_to(lead), f"bash -c {shlex.quote(script)}; ls ~/workspace/logs/devstack-pair-*/logs"]
        console = subprocess.run(command, check=False, capture_output=True, text=True).stdout
        (self.folder / "console-pair.txt").write_text(console)
        if not any(line.startswith("PASS.") for line in console.splitlines()):
            raise SystemExit(f"the run on {lead} did not pass:\n{console}")
        self.story.came("from the console of the gate there, and what it has brought from the subnode:")
        self.story.show(_told(console, "SUBNODE=", "Z 42", "PASS.", "screen-adderd"))
        self.run("devstack-vm-delete.py", lead)

    def ssh_to(self, node: str) -> list[str]:
        """Return the words of a plain ssh to a node."""
        return ["ssh", "-i", str(self.pool.key), "-p", str(self.ssh_port), *SSH_TO_STRANGERS,
                f"jenkins@{self.address(node)}"]

    def kill_jenkins(self) -> None:
        """Kill Jenkins under a build, so that no step of the build tells its end."""
        self.story.step("Kill Jenkins under a fourth build, and start it again: no step of that build tells its end.")
        started = self.jenkins.wait_started(self.start(CHANGE_GOOD), BUILD_SECONDS)
        await_that("the build's machine to be taken", lambda: self.pool.sql(
            "SELECT 1 FROM machine WHERE name = ? AND state = 'USED'", started["node"]))
        self.jenkins.restart()
        for (name,) in self.pool.sql("SELECT jenkins_name FROM machine WHERE jenkins_name IS NOT NULL"):
            self.jenkins.wait_node(name, "online")
        self.run("devstack-vm-reap.py", "all")
        ended = self.pool.sql("SELECT result FROM result WHERE node_name = ? AND end_time IS NOT NULL", started["node"])
        if ended != [("FAILURE",)]:
            raise SystemExit(f"reap did not record the end of the build on {started['node']}")
        self.story.came(f"gate #{started['number']} was at work on {started['node']}; reap asked Jenkins, and recorded "
                        "that it ended FAILURE")
        self.run("devstack-vm-launch.py", "all")
        self.story.came("its machine is kept as any failed build's, until launch needs room; the pool is full:")
        self.show_pool()

    def look_inside(self) -> None:
        """Look into vm.db with sqlite3."""
        self.story.step("Look into vm.db with plain sqlite3: the view node, and what was recorded of each build.")
        for query in ("SELECT * FROM node",
                      "SELECT node_name, jenkins_job_name AS job, jenkins_build_number AS number, result FROM result"):
            self.story.came(f'sqlite3 vm.db "{query}"')
            command = ["sqlite3", "-header", "-column", str(self.pool.database), query]
            self.story.show(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def status_page(self) -> None:
        """Write the status page."""
        self.story.step("Write the status page: what needs a person, what is there, how it went, who is to blame.")
        page = self.run("devstack-vm-status.py", "--output", str(self.folder / "status")).strip()
        self.story.came(f"for a browser: file://{page}")

    def show_pool(self) -> None:
        """Show the table that vmdatabase.py prints."""
        self.story.show(self.run("vmdatabase.py"))


def _told(console: str, *parts: str) -> str:
    """Return the lines of a console that hold one of these."""
    return "\n".join(line for line in console.splitlines() if any(part in line for part in parts))


def _free_ssh_port() -> int:
    """Return 22, or 2222 if an sshd of this machine has taken port 22 of every address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.99.99.99", 22))
        except OSError:
            return 2222
    return 22


def _left_behind(folder: Path) -> list[str]:
    """Return the processes and mounts of the demo that are still there."""
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    processes = subprocess.run(["pgrep", "-af", str(folder)], capture_output=True, text=True, check=False)
    return mounts + processes.stdout.splitlines()


def main(argv: list[str] | None = None) -> int:
    """Run the demo; return 0 if all went as told, 1 if anything is left running, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--real", action="store_true", help="the clouds are real OpenStack services")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(prefix="devstack-gate-demo-"))
    story = Story()
    code = 0
    try:
        with ExitStack() as running:
            Demo(folder, running, story, real=options.real).tell()
            story.step("Stop everything.")
    except KeyboardInterrupt:
        print("\nstopped by Ctrl-C", flush=True)
        code = 130
    left = _left_behind(folder)
    if left:
        print("still there:", *left, sep="\n", file=sys.stderr)
        return 1
    shutil.rmtree(folder / "pocket", ignore_errors=True)
    story.came(f"no process and no mount is left. Logs and vm.db: {folder} "
               "(scripts.log, console-gate-*.txt, *cloud.log, jenkins/log)")
    print(f"\nThe demo took {time.monotonic() - story.started:.0f} s.")
    return code


if __name__ == "__main__":
    sys.exit(main())
