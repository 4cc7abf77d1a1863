"""A gate job in Jenkins, whose builds run on a pool's machines."""

from tests.support.pool import Pool, starter

LABEL = "devstack-noble"
SCRIPT = """set -eu
test ! -e /var/tmp/somebody-was-here
touch /var/tmp/somebody-was-here
cat /etc/devstack-gate/node
sleep 1
"""


def add_gate_job(pool: Pool, name: str, script: str = SCRIPT, *, told: bool = True) -> None:
    """Add the gate job as jobs/ defines it: inprogress first, then the script on the node, then delete in any case.

    told: whether delete runs; it does not if Jenkins dies during a build.
    """
    assert pool.jenkins
    variables = {key: value for key, value in pool.environment.items()
                 if key in ("DEVSTACK_GATE_DB", "DEVSTACK_GATE_SECURE_CONFIG", "HOME")}
    pool.jenkins.add_job(
        name, LABEL, script=script, environment=variables,
        before=[*starter().command(), "devstack-vm-inprogress.py", "$NODE_NAME"],
        after=[*starter().command(), "devstack-vm-delete.py", "$NODE_NAME", "--result", "$RESULT"] if told
        else ["true"])


def build(pool: Pool, name: str, **parameters: str) -> tuple[str, str, str]:
    """Run a build to its end; returns its result, node and console."""
    assert pool.jenkins
    started = pool.jenkins.wait_started(pool.jenkins.build(name, **parameters))
    ended = pool.jenkins.wait_build(name, started["number"])
    return ended["result"], ended["node"], ended["console"]
