"""How much memory a launch needs for a big pool."""

import subprocess
import sys
from pathlib import Path

from tests.pocketcloud.client import Pocket
from tests.pocketjenkins.client import StandIn
from tests.support.pool import PROJECT, SCRIPT_SECONDS, Pool, image, provider

MACHINES = 2000
MEGABYTES = 200
MEASURE = ("import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)")


def test_a_launch_over_2000_machines_stays_below_200_mb(tmp_path: Path) -> None:
    """All but 20 are ready; launch makes those 20."""
    numbers = range(1, MACHINES - 19)
    with Pocket(tmp_path, "--machines", "shared-ssh") as pocket, \
            StandIn(tmp_path / "jenkins", knobs={"connect": "instant"}) as jenkins:
        pool = Pool(tmp_path, pocket, jenkins)
        pool.load(provider(max_servers=MACHINES, boot_timeout=SCRIPT_SECONDS, images=[image(min_ready=MACHINES)]))
        pool.seed_snapshots()
        pool.add_ready_machines(numbers)

        command = [sys.executable, "-c", MEASURE, sys.executable, str(PROJECT / "devstack-vm-launch.py"), "one"]
        result = subprocess.run(command, env=pool.environment, cwd=tmp_path, capture_output=True, text=True,
                                timeout=SCRIPT_SECONDS, check=False)

    *printed, kilobytes = result.stdout.splitlines()
    assert (result.returncode, printed) == (0, [f"one noble: {MACHINES} of {MACHINES} ready"]), result.stderr
    assert int(kilobytes) < MEGABYTES * 1024
