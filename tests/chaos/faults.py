"""The catalogue of faults: what clouds, machines, Jenkins, disk and clock do to the scripts of a round."""

import random
from collections.abc import Callable
from typing import Any

from tests.chaos.world import World

Fault = Callable[[World, random.Random], str]  # switches the fault on, returns what it did; World.calm switches it off
LISTS_AND_LOOKS = [
    ("compute", "GET /servers/detail"), ("compute", "GET /servers/[^/]+"), ("compute", "GET /flavors/detail"),
    ("compute", "GET /os-keypairs"), ("image", "GET /images"), ("image", "GET /images/.*"),
    ("compute", "GET /limits"), ("block-storage", "GET /limits"), ("network", "GET /quotas/.*"),
    ("block-storage", "GET /volumes.*"), ("network", "GET /floatingips"), ("network", "GET /ports"),
    ("network", "GET /networks.*"),
    ("identity", "POST /auth/tokens"),
]
CHANGES = [
    ("compute", "POST /servers"), ("compute", "DELETE /servers/.*"), ("compute", "POST /servers/.*/action createImage"),
    ("compute", "POST /os-keypairs"), ("compute", "DELETE /os-keypairs/.*"), ("image", "DELETE /images/.*"),
    ("network", "POST /floatingips"), ("network", "PUT /floatingips/.*"), ("network", "DELETE /floatingips/.*"),
    ("block-storage", "POST /volumes"), ("block-storage", "DELETE /volumes/.*"),
    ("block-storage", "DELETE /snapshots/.*"),
]
QUOTA = {"forbidden": {"code": 403, "message": "Quota exceeded for instances: Requested 1, but already used 9 of 9"}}
REFUSALS: dict[str, dict[str, Any]] = {
    "401": {"status": 401},
    "403 quota": {"status": 403, "body": QUOTA},
    "404": {"status": 404},
    "409": {"status": 409},
    "413 with Retry-After": {"status": 413, "headers": {"Retry-After": "1"}},
    "429 with Retry-After": {"status": 429, "headers": {"Retry-After": "1"}},
}
OUTAGES: dict[str, dict[str, Any]] = {  # after these, the caller does not know whether the call was carried out
    "500": {"status": 500},
    "502": {"kind": "html", "status": 502},
    "503": {"status": 503},
    "reset": {"kind": "reset"},
    "closed without an answer": {"kind": "close"},
    "hang": {"kind": "hang"},
    "truncated answer": {"kind": "truncate"},
    "non-JSON answer": {"kind": "html", "status": 200},
}
JENKINS_CALLS = ["GET /computer/api/json", "GET /computer/[^/]+/api/json", "POST /computer/doCreateItem",
                 "GET /computer/[^/]+/config.xml", "POST /computer/[^/]+/config.xml",
                 "POST /computer/[^/]+/changeOfflineCause", "POST /computer/[^/]+/doDelete", "GET /api/json",
                 "GET /queue/api/json"]
JENKINS_OUTAGES: list[dict[str, Any]] = [{"status": 500}, {"status": 503}, {"status": 403}, {"status": 401},
                                         {"kind": "hang", "seconds": 4}, {"kind": "reset"}, {"kind": "close"}]


def draw(world: World, rng: random.Random) -> list[str]:
    """Switch on the faults of a round, often few or none, and return what they did."""
    often = ["failing calls", "failing jenkins", "failing boots"]
    catalogue = CATALOGUE
    if world.servers:
        catalogue = {name: fault for name, fault in CATALOGUE.items() if name not in OF_DISK} | ON_SERVER
        often.append(rng.choice(list(ON_SERVER)))
    names = dict.fromkeys(rng.choices([*catalogue, *4 * often], k=rng.choice([0, 1, 2, 2, 3, 4])))
    if len(names.keys() & {"dying server", "still server"}) > 1:
        del names["still server"]  # a dead server cannot stand still
    names = dict(sorted(names.items(), key=lambda one: one[0] in OF_DISK))  # the others can write to vm.db
    return [f"{name}: {catalogue[name](world, rng)}" for name in names]


# --- calls of the clouds ---


def failing_calls(world: World, rng: random.Random) -> str:
    """Make some calls of a cloud fail a few times; a change can still be carried out."""
    cloud = _cloud(world, rng)
    answers, names = [], []
    for _ in range(rng.randint(2, 6)):
        service, match = rng.choice(LISTS_AND_LOOKS + 2 * CHANGES)
        name = rng.choice([*REFUSALS, *OUTAGES])
        answer = {**REFUSALS, **OUTAGES}[name]
        if (service, match) in CHANGES and name in OUTAGES and rng.random() < 0.5:
            kind = answer.get("kind", "status")
            answer = answer | {"kind": "after", "then": kind}
            name += " after it was done"
        answers.append({"service": service, "match": match, "times": rng.choice([1, 1, 2, 6]), **answer})
        names.append(f"{match} {name}")
    world.turn(cloud, answers=answers)
    return f"{cloud}: {', '.join(names)}"


def refused_connections(world: World, _rng: random.Random) -> str:
    world.unreachable["OS_CLIENT_CONFIG_FILE"] = str(world.folder / "dead-clouds.yaml")
    return "all clouds"


def rate_limit(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, rate_limit=3.0, rate_limit_status=rng.choice([413, 429]))


def no_quota(world: World, rng: random.Random) -> str:
    change: dict[str, Any] = rng.choice([
        {"quota_instances": rng.randint(2, 12)}, {"quota_cores": rng.randint(2, 12)},
        {"quota_ram": 512 * rng.randint(2, 12)}, {"volume_gigabytes_quota": rng.randint(0, 8)},
        {"floating_quota": rng.randint(0, 8)}])
    return _knobs(world, rng, **change)


def every_other_list_fails(world: World, rng: random.Random) -> str:
    """Make a provider go down, recover, and go down again."""
    fails = {"service": "compute", "match": "GET /servers/detail", "status": 503, "times": 1}
    works = {"service": "compute", "match": "GET /nothing", "times": 1}
    cloud = _cloud(world, rng)
    world.turn(cloud, answers=[fails, works] * rng.randint(1, 4))
    return cloud


def paused_provider(world: World, rng: random.Random) -> str:
    name = rng.choice(list(world.providers))
    world.pause(name)
    return name


def slow_cloud(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, latency_seconds=rng.choice([0.1, 0.3]))


def stale_lists(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, list_stale_seconds=rng.choice([1.0, 3.0, 30.0]))


def empty_lists(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, list_empty=rng.choice([1, 3, 50]))


def ignored_deletes(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, delete_ignored=True)


def slow_deletes(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, delete_seconds=rng.choice([0.5, 2.0, 6.0]))


# --- servers and images ---


def failing_boots(world: World, rng: random.Random) -> str:
    """Make boots fail: ERROR, stuck in BUILD, ACTIVE without address, ssh refused or silent, status UNKNOWN."""
    how = rng.choice(["error", "stuck", "no-address", "no-ssh", "silent-ssh", "unknown"])
    return _knobs(world, rng, boot_failure=how, boot_failure_rate=rng.choice([0.4, 1.0]),
                  random_seed=rng.randint(1, 10**6))


def slow_boots(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, boot_seconds=rng.choice([1.0, 3.0, 8.0]))


def broken_servers(world: World, rng: random.Random) -> str:
    """Break ACTIVE servers: ERROR, off, gone without a delete, ssh refused, silent, reset or with another host key."""
    cloud, done = _cloud(world, rng), []
    ours = [one for one in world.pocket.look(cloud)["servers"]
            if one["metadata"].get("devstack-gate-pool") == world.uuid and one["status"] == "ACTIVE"]
    for server in rng.sample(ours, min(len(ours), rng.randint(1, 2))):
        change: dict[str, Any] = rng.choice([
            {"status": "ERROR", "fault": "died"}, {"status": "SHUTOFF"}, {"vanish": True}, {"ssh": "refused"},
            {"ssh": "silent"}, {"ssh": "reset"}, {"ssh": "stranger"}])
        if change.get("vanish"):
            world.vanished[server["id"]] = server["metadata"].get("devstack-gate-lead", "")
        world.pocket.server(cloud, server["id"], **change)
        done.append(f"{server['name']} {server['id']} {change}")
    return f"{cloud}: {', '.join(done)}"


def failing_snapshots(world: World, rng: random.Random) -> str:
    return _knobs(world, rng, snapshot_failure=rng.choice(["queued", "stuck", "killed", "error"]))


def failing_volumes(world: World, rng: random.Random) -> str:
    """Make volumes fail, take long, run out, or stay behind when their servers go."""
    change: dict[str, Any] = rng.choice([
        {"volume_failures": 2}, {"volume_seconds": rng.choice([1.0, 4.0])}, {"volume_quota": rng.randint(0, 4)},
        {"volumes_stay": True}])
    return _knobs(world, rng, **change)


# --- Jenkins ---


def failing_jenkins(world: World, rng: random.Random) -> str:
    answers = [{"match": rng.choice(JENKINS_CALLS), "times": rng.choice([1, 2, 8]),
                "when": rng.choice(["before", "after"]), **rng.choice(JENKINS_OUTAGES)}
               for _ in range(rng.randint(1, 3))]
    world.jenkins.knobs(answers=answers)
    return str(answers)


def restarting_jenkins(world: World, rng: random.Random) -> str:
    world.jenkins.knobs(restart_seconds=rng.choice([0.5, 3.0]))
    world.jenkins.restart()
    return "restart"


def slow_jenkins(world: World, rng: random.Random) -> str:
    seconds = rng.choice([0.2, 0.6, 2.5])
    world.jenkins.knobs(latency_seconds=seconds)
    return f"{seconds} s"


def unreachable_jenkins(world: World, _rng: random.Random) -> str:
    world.unreachable["DEVSTACK_GATE_SECURE_CONFIG"] = str(world.folder / "dead-jenkins.conf")
    return "refuses connections"


def dying_agents(world: World, rng: random.Random) -> str:
    nodes = sorted(world.jenkins.look()["nodes"].keys() & world.machines().keys())
    chosen = rng.sample(nodes, min(len(nodes), 2))
    for name in chosen:
        world.jenkins.node(name, die=True, connect=rng.choice(["never", "instant"]))
    return ", ".join(chosen)


def agents_that_never_come(world: World, rng: random.Random) -> str:
    """Make Jenkins connect for ever, or register the nodes with a credential that it does not have."""
    if rng.random() < 0.5:
        world.jenkins.knobs(connect="never")
        return "connecting for ever"
    world.unreachable["DEVSTACK_GATE_SECURE_CONFIG"] = str(world.folder / "wrong-credential.conf")
    return "wrong credential"


def barred_nodes(world: World, rng: random.Random) -> str:
    """Take nodes offline as Jenkins' own monitors do."""
    truth = world.jenkins.look()["nodes"]
    nodes = sorted(name for name in truth.keys() & world.machines().keys() if not truth[name]["temporarilyOffline"])
    chosen = rng.sample(nodes, min(len(nodes), rng.randint(1, 3)))
    for name in chosen:
        world.jenkins.node(name, barred="hudson.node_monitors.DiskSpaceMonitorDescriptor$DiskSpace",
                           message="0.412GB left on /tmp.")
    return ", ".join(chosen)


# --- the host ---


def full_disk(world: World, _rng: random.Random) -> str:
    world.fill_disk()
    return "no room for vm.db"


def read_only_disk(world: World, _rng: random.Random) -> str:
    return "vm.db cannot be written" if world.remount("ro") else "not done, it is being written"


def clock_set_back(world: World, _rng: random.Random) -> str:
    world.order["clock"] = -3600
    return "an hour"


# --- the server of the database ---


def dying_server(world: World, rng: random.Random) -> str:
    assert world.servers
    seconds = rng.choice([0.2, 1.0, 3.0])
    world.servers.die(seconds)
    return f"back after {seconds} s"


def still_server(world: World, rng: random.Random) -> str:
    assert world.servers
    seconds = rng.choice([0.5, 3.0, 15.0])
    world.servers.stand_still(seconds)
    return f"stands still for {seconds} s"


def lost_connections(world: World, rng: random.Random) -> str:
    assert world.servers
    times = rng.choice([1, 4, 20])
    world.servers.cut(times)
    return f"{times} times"


CATALOGUE: dict[str, Fault] = {fault.__name__.replace("_", " "): fault for fault in (
    failing_calls, refused_connections, rate_limit, no_quota, every_other_list_fails, paused_provider, slow_cloud,
    stale_lists, empty_lists, ignored_deletes, slow_deletes, failing_boots, slow_boots, broken_servers,
    failing_snapshots, failing_volumes, failing_jenkins, restarting_jenkins, slow_jenkins, unreachable_jenkins,
    dying_agents, agents_that_never_come, barred_nodes,
    full_disk, read_only_disk, clock_set_back)}
ON_SERVER: dict[str, Fault] = {fault.__name__.replace("_", " "): fault for fault in (
    dying_server, still_server, lost_connections)}  # instead of the faults of the disk
OF_DISK = ("full disk", "read only disk")


def _cloud(world: World, rng: random.Random) -> str:
    return rng.choice(list(world.providers.values()))


def _knobs(world: World, rng: random.Random, **knobs: Any) -> str:
    cloud = _cloud(world, rng)
    world.turn(cloud, **knobs)
    return f"{cloud}: {knobs}"
