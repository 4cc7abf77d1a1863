"""How much memory a launch needs over a big pool."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from tests.pocketcloud.client import Pocket
from tests.pocketcloud.jenkins_client import StandIn
from tests.pool import ANY_HOST_KEY, PROJECT, SCRIPT_SECONDS, Pool, image, provider

MACHINES = 2000
MEGABYTES = 200
MEASURE = ("import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]); "
           "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)")


def boot(pool: Pool, numbers: range) -> list[str]:
    """Have servers of ours for machines of these numbers; returns their ids."""
    session = pool.client().session
    token, url = session.get_token(), session.get_endpoint(service_type="compute")
    image_id = pool.pocket_look()["images"][0]["id"]
    local = requests.Session()

    def create(number: int) -> str:
        server: dict[str, Any] = {"name": f"devstack-noble-one-{number}", "imageRef": image_id, "flavorRef": "1",
                                  "metadata": pool.marks(machine=number)}
        answer = local.post(f"{url}/servers", json={"server": server}, headers={"X-Auth-Token": token}, timeout=60)
        return str(answer.json()["server"]["id"])

    with ThreadPoolExecutor(4) as threads:
        return list(threads.map(create, numbers))


def test_a_launch_over_2000_machines_stays_below_200_mb(tmp_path: Path) -> None:
    """All but 20 are ready; those are launched."""
    numbers = range(1, MACHINES - 19)
    with Pocket(tmp_path, "--machines", "shared-ssh") as pocket, \
            StandIn(tmp_path / "jenkins", knobs={"connect": "instant"}) as jenkins:
        pool = Pool(tmp_path, pocket, jenkins)
        pool.load(provider(max_servers=MACHINES, boot_timeout=SCRIPT_SECONDS, images=[image(min_ready=MACHINES)]))
        pool.seed_snapshots()
        names = [f"devstack-noble-one-{number}" for number in numbers]
        rows = ",".join(f"({number}, 1, '{server}', '{name}', '{name}', '127.0.0.1', 'jenkins', '{ANY_HOST_KEY}', "
                        f"'READY', {int(time.time())})"
                        for number, server, name in zip(numbers, boot(pool, numbers), names, strict=True))
        pool.sql("INSERT INTO machine (id, base_image_id, external_id, name, jenkins_name, ip, user, host_key, state, "
                 f"state_time) VALUES {rows}")
        jenkins.add_nodes([{"name": name, "label": "devstack-noble"} for name in names])

        command = [sys.executable, "-c", MEASURE, sys.executable, str(PROJECT / "devstack-vm-launch.py"), "one"]
        result = subprocess.run(command, env=pool.environment, cwd=tmp_path, capture_output=True, text=True,
                                timeout=SCRIPT_SECONDS, check=False)

    *printed, kilobytes = result.stdout.splitlines()
    assert (result.returncode, printed) == (0, [f"one noble: {MACHINES} of {MACHINES} ready"]), result.stderr
    assert int(kilobytes) < MEGABYTES * 1024
