"""A pool that serves two Jenkins: each machine belongs to one, and one that is down gets none and loses none."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import gateconfig
from gateconfig import JenkinsConfig, NodeConfig, SecureConfig
from pool.jenkinses import Jenkinses, Part, next_one
from tests.pocketjenkins.client import StandIn
from tests.support.pool import Pool, clear_jenkins, image, provider
from tests.test_status import told

LAUNCH, REAP, TAKE, DELETE = (
    "devstack-vm-launch.py", "devstack-vm-reap.py", "devstack-vm-inprogress.py", "devstack-vm-delete.py")
JOB = {"JOB_NAME": "gate", "BUILD_NUMBER": "7"}


@pytest.fixture(scope="module")
def west(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    with StandIn(tmp_path_factory.mktemp("west") / "jenkins", knobs={"connect": "instant"}) as jenkins:
        yield jenkins


class Two:
    """A pool with a min-ready of 4, and its two Jenkins."""

    def __init__(self, pool: Pool, west: StandIn) -> None:
        assert pool.jenkins
        self.pool = pool
        self.jenkins = {"east": pool.jenkins, "west": west}
        self.configure("east", "west")
        pool.load(provider(max_servers=8, images=[image(min_ready=4)]))
        pool.seed_snapshots()

    def configure(self, *names: str, **changes: dict[str, str]) -> None:
        """Write a secure configuration with a section for each of these Jenkins."""
        text = f"[node]\nuser = jenkins\nssh_key = {self.pool.key}\n[image]\npackages = git\n"
        for name in names:
            jenkins = self.jenkins[name]
            keys = {"server": jenkins.url, "user": jenkins.user, "apikey": jenkins.token, "credentials_id": "nodes",
                    **changes.get(name, {})}
            text += f"[jenkins {name}]\n" + "".join(f"{key} = {value}\n" for key, value in keys.items())
        self.pool.secure_config.write_text(text)

    def away(self, name: str) -> None:
        """Give that Jenkins an address at which nobody answers."""
        self.configure("east", "west", **{name: {"server": "http://127.0.0.1:9/"}})

    def nodes(self) -> dict[str, set[str]]:
        """Return the names of the nodes that each Jenkins has in service."""
        return {name: {node for node, truth in jenkins.look()["nodes"].items() if not truth["temporarilyOffline"]}
                for name, jenkins in self.jenkins.items()}

    def owned(self, state: str = "READY") -> dict[str, set[str]]:
        """Return the names of the machines in a state, by the Jenkins to which they belong in vm.db."""
        found: dict[str, set[str]] = {"east": set(), "west": set()}
        for name, jenkins in self.pool.sql("SELECT name, jenkins FROM machine WHERE state = ?", state):
            found[jenkins].add(name)
        return found


@pytest.fixture
def two(pool: Pool, west: StandIn) -> Iterator[Two]:
    yield Two(pool, west)
    clear_jenkins(west)


def test_both_get_machines_and_each_script_goes_to_the_right_one(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    assert two.nodes() == two.owned()
    assert {name: len(nodes) for name, nodes in two.nodes().items()} == {"east": 2, "west": 2}

    taken = {name: min(nodes) for name, nodes in two.owned().items()}
    for name in taken.values():
        two.pool.run(TAKE, name, expect=0, **JOB)
    assert two.owned("USED") == {jenkins: {name} for jenkins, name in taken.items()}
    assert two.nodes() == two.owned()

    for name in taken.values():
        two.pool.run(DELETE, name, "--result", "SUCCESS", expect=0, **JOB)
    two.pool.run(REAP, "one", expect=0)
    two.pool.run(LAUNCH, "one", expect=0)
    assert not set(taken.values()) & two.pool.machines().keys()
    assert {name: len(nodes) for name, nodes in two.nodes().items()} == {"east": 2, "west": 2}
    assert all(not set(taken.values()) & jenkins.look()["nodes"].keys() for jenkins in two.jenkins.values())


def test_one_that_is_down_gets_no_machines_and_loses_none(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    before = two.nodes()
    two.away("west")
    two.pool.run(TAKE, min(before["east"]), expect=0, **JOB)

    launched = two.pool.run(LAUNCH, "one", expect=1)
    reaped = two.pool.run(REAP, "one", expect=1)

    assert launched.stdout == "one noble: 4 of 4 ready\n"
    for output in (launched.stderr, reaped.stderr):
        assert "Jenkins http://127.0.0.1:9/: list nodes: no answer" in output
        assert "[jenkins west]" in output
    assert two.nodes()["west"] == before["west"] == two.owned()["west"]
    assert len(two.nodes()["east"]) == 2

    two.pool.run(REAP, "one", "--all-servers", expect=1)  # a build may be running there
    assert two.owned()["west"] == before["west"]
    two.configure("east", "west")
    two.pool.run(REAP, "one", expect=0)
    two.pool.run(LAUNCH, "one", expect=0)
    assert two.nodes() == two.owned()


def test_ready_machines_of_one_whose_section_is_gone_go_to_the_others(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    before = two.owned()
    busy, idle = sorted(before["west"])
    two.pool.run(TAKE, busy, expect=0, **JOB)
    two.configure("east")

    two.pool.run(REAP, "one", expect=0)
    two.pool.run(LAUNCH, "one", expect=0)

    assert two.pool.machines()[busy] == "USED"  # a build may be running there
    assert two.owned()["west"] == set()
    assert two.owned()["east"] >= {*before["east"], idle}
    assert two.nodes()["east"] == two.owned()["east"]

    two.configure("east", "west")  # it comes back, with the node that it had
    two.pool.run(REAP, "one", expect=0)
    assert idle not in two.jenkins["west"].look()["nodes"]
    assert two.nodes()["east"] == two.owned()["east"]


def test_a_group_belongs_to_one_and_goes_as_a_whole(two: Two) -> None:
    two.pool.load(provider(max_servers=20, images=[image(min_ready=4, subnodes=1)]))
    two.pool.run(LAUNCH, "one", expect=0)
    leads = {name for (name,) in two.pool.sql("SELECT name FROM machine WHERE lead_id IS NULL")}
    before = two.owned()
    assert {name: len(nodes) for name, nodes in before.items()} == {"east": 4, "west": 4}
    assert two.nodes() == {name: nodes & leads for name, nodes in before.items()}
    busy, idle = sorted(before["west"] & leads)
    two.pool.run(TAKE, busy, expect=0, **JOB)

    two.configure("east")
    two.pool.run(REAP, "one", expect=0)
    two.pool.run(LAUNCH, "one", expect=0)

    assert list(two.pool.machines().values()).count("USED") == 2  # a build may be running there
    assert {name: len(nodes) for name, nodes in two.owned().items()} == {"east": 8, "west": 0}
    assert idle in two.nodes()["east"]
    two.configure("east", "west")
    two.pool.run(DELETE, busy, "--result", "SUCCESS", expect=0, **JOB)
    two.pool.run(REAP, "one", expect=0)
    assert set(two.pool.machines().values()) == {"READY"}
    assert not two.jenkins["west"].look()["nodes"].keys() & leads


def test_machines_go_with_a_section_that_is_renamed(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    first, second = sorted(two.owned()["west"])
    two.jenkins["ost"] = two.jenkins.pop("west")
    two.configure("east", "ost")

    two.pool.run(TAKE, first, expect=0, **JOB)
    two.pool.run("vmdatabase.py", "hold", second, "--reason", "bug 1", expect=0)
    assert two.nodes()["ost"] == set()
    two.pool.sql("UPDATE machine SET jenkins = 'west' WHERE jenkins = 'ost'")
    two.pool.run(REAP, "one", expect=0)
    assert two.pool.sql("SELECT DISTINCT jenkins FROM machine ORDER BY 1") == [("east",), ("ost",)]

    two.pool.sql("UPDATE machine SET jenkins = 'ist' WHERE jenkins = 'east'")
    two.pool.run(LAUNCH, "one", expect=0)
    assert two.pool.sql("SELECT DISTINCT jenkins FROM machine ORDER BY 1") == [("east",), ("ost",)]


def test_the_next_machine_goes_where_builds_wait(two: Two) -> None:
    two.pool.load(provider(max_servers=8, images=[image(min_ready=0)]),
                  labels=[{"name": "noble", "min-ready": 0, "max-ready": 8, "demand": "queue"}])
    west = two.jenkins["west"]
    west.add_job("waits", "devstack-noble", seconds=600)
    for number in range(3):
        west.build("waits", NUMBER=str(number))

    two.pool.run(LAUNCH, "one", expect=0)

    assert {name: len(jenkins.look()["nodes"]) for name, jenkins in two.jenkins.items()} == {"east": 0, "west": 3}


def waits(jenkins: StandIn, count: int) -> None:
    """Let builds wait for machines in a Jenkins."""
    why = "There are no nodes with the label \u2018devstack-noble\u2019"
    items = [{"buildable": True, "pending": False, "why": why, "inQueueSince": 1000}] * count
    jenkins.knobs(answers=[{"match": "GET /queue/api/json", "body": json.dumps({"items": items})}] if count else [])


def test_a_new_one_whose_builds_wait_gets_a_machine_though_the_first_has_as_many_as_are_wanted(two: Two) -> None:
    two.configure("east")
    two.pool.run(LAUNCH, "one", expect=0)
    two.configure("east", "west")
    two.pool.run(LAUNCH, "one", expect=0)
    assert {name: len(of_it) for name, of_it in two.owned().items()} == {"east": 4, "west": 0}
    waits(two.jenkins["east"], 9)  # they get no more than min-ready
    waits(two.jenkins["west"], 2)
    assert two.pool.run(LAUNCH, "one", expect=0).stdout == "one noble: 5 of 4 ready\n"
    for name in ("east", "west"):
        waits(two.jenkins[name], 0)
    assert {name: len(of_it) for name, of_it in two.owned().items()} == {"east": 4, "west": 1}


def test_builds_that_wait_in_one_do_not_starve_for_machines_that_idle_in_another(two: Two) -> None:
    two.pool.load(provider(max_servers=8, images=[image(min_ready=0)]),
                  labels=[{"name": "noble", "min-ready": 0, "max-ready": 6, "demand": "queue"}])
    wanted = []
    for name in ("east", "west"):
        waits(two.jenkins[name], 2)
        wanted.append(told(two.pool)["labels"][0]["wanted"])
        two.pool.run(LAUNCH, "one", expect=0)
        waits(two.jenkins[name], 0)
    assert {name: len(of_it) for name, of_it in two.owned().items()} == {"east": 2, "west": 2}
    assert wanted == [2, 4], "the status page counts as launch does"


def test_two_sections_about_one_jenkins_are_refused(two: Two) -> None:
    """Each would take the nodes of the other for strays, and reap would remove all of them."""
    two.configure("east", "west", west={"server": f"{two.jenkins['east'].url.rstrip('/')}/"})
    for script in (LAUNCH, REAP):
        assert two.pool.run(script, "one", expect=2).stderr.endswith(
            "secure.conf: [jenkins west] server: is the same Jenkins as in [jenkins east]; expected one section "
            "for each Jenkins\n")


def test_a_person_gets_a_machine_of_any_that_answers_and_a_hold_finds_the_right_one(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    (held, _), (other, _) = (sorted(two.owned()[name]) for name in ("east", "west"))
    two.pool.run("vmdatabase.py", "hold", other, "--reason", "look", expect=0)
    assert other not in two.nodes()["west"]

    two.away("east")
    taken = two.pool.run(TAKE, "--image", "noble", expect=0).stdout.split()[0]
    assert taken in two.owned("USED")["west"]
    assert taken not in two.nodes()["west"]
    assert "no READY machine" in two.pool.run(TAKE, "--image", "noble", expect=1).stderr
    assert held in two.nodes()["east"]


def test_a_machine_whose_jenkins_is_not_configured_is_not_given_to_a_build(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    name = min(two.owned()["west"])
    two.configure("east")

    result = two.pool.run(TAKE, name, expect=2, **JOB)

    assert result.stderr.splitlines()[-1] == (
        f"devstack-vm-inprogress.py: {name}: belongs to [jenkins west], and {two.pool.secure_config} has no such "
        "section")
    assert two.pool.machines()[name] == "READY"


def test_one_that_lets_us_make_no_nodes_gets_no_machines(two: Two) -> None:
    west = two.jenkins["west"]
    west.knobs(rights={west.user: ["Overall.Read", "Computer.Connect", "Computer.Configure", "Job.Read"]})
    try:
        launched = two.pool.run(LAUNCH, "one", expect=1)
    finally:
        west.knobs(rights={})

    assert "it gets no machines in this run" in launched.stderr
    assert {name: len(nodes) for name, nodes in two.nodes().items()} == {"east": 4, "west": 0}


def test_those_that_were_made_before_there_were_several_belong_to_the_first(two: Two) -> None:
    two.pool.run(LAUNCH, "one", expect=0)
    east = two.owned()["east"]
    two.pool.sql("UPDATE machine SET jenkins = '' WHERE jenkins = 'east'")

    two.pool.run(REAP, "one", expect=0)
    two.pool.run(TAKE, min(east), expect=0, **JOB)

    assert two.nodes()["east"] == east - {min(east)}


@pytest.mark.parametrize(("url", "expected"), [
    ("http://east.example.org/", "east"), ("http://west.example.org/ci", "west"), ("http://other/", None), ("", None),
    ("HTTP://East.Example.org:80/", "east"), ("https://east.example.org/", None), ("http://east:x/", None),
])
def test_a_build_says_in_which_one_it_runs(url: str, expected: str | None, tmp_path: Path) -> None:
    servers = {"east": "http://east.example.org", "west": "http://west.example.org/ci/"}
    config = SecureConfig(
        tmp_path, tuple(JenkinsConfig(server, "user", "key", "nodes", name=name) for name, server in servers.items()),
        NodeConfig("jenkins", tmp_path, "/home/jenkins"), gateconfig.load_image_config())

    found = Jenkinses(config, tmp_path, "pool").at(url)
    only = Jenkinses(config._replace(jenkinses=config.jenkinses[:1]), tmp_path, "pool").at(url)

    assert (found and found.name, only and only.name) == (expected, "east")


@pytest.mark.parametrize(("arguments", "why"), [
    ((), "has 2 Jenkins; --jenkins NAME says which one to check ('east', 'west')"),
    (("--jenkins", "wset"), "has no [jenkins wset]; did you mean west?"),
])
def test_the_check_is_of_one_jenkins(two: Two, arguments: tuple[str, ...], why: str) -> None:
    assert why in two.pool.run("jobs/check.py", *arguments, expect=2).stderr
    url = two.jenkins["west"].url
    assert url in two.pool.run("jobs/check.py", "--jenkins", "west").stdout


@pytest.mark.parametrize(("parts", "expected"), [
    ([Part("a", 0, 0, 2), Part("b", 0, 0, 1)], "b"),
    ([Part("a", 0, 0, 2), Part("b", 0, 1, 1)], "a"),
    ([Part("a", 1, 0, 9), Part("b", 0, 0, 0)], "a"),
    ([Part("a", 1, 1, 9), Part("b", 0, 0, 0)], "b"),
    ([Part("a", 3, 1, 0), Part("b", 3, 0, 5)], "b"),
])
def test_demand_comes_first_and_then_the_fewest(parts: list[Part], expected: str) -> None:
    assert next_one(parts) == expected


def test_any_number_of_machines_ends_even_without_demand() -> None:
    have: Counter[str] = Counter()
    for _ in range(31):
        have[next_one([Part(name, 0, 0, have[name]) for name in ("a", "b", "c")])] += 1
    assert sorted(have.values()) == [10, 10, 11]


@pytest.mark.parametrize(("section", "why"), [
    ("jenkins ", "[jenkins ]: expected [jenkins NAME], NAME with"),
    ("jenkins a b", "[jenkins a b]: expected [jenkins NAME], NAME with"),
    ("jenkins a/b", "[jenkins a/b]: expected [jenkins NAME], NAME with"),
    ("jenkinsa", "unknown section [jenkinsa]; did you mean jenkins?"),
])
def test_a_section_is_named_with_one_word(pool: Pool, section: str, why: str) -> None:
    pool.load(provider())
    pool.secure_config.write_text(f"[{section}]\nserver = http://127.0.0.1:1/\n")
    result = pool.run(LAUNCH, "one", expect=2)
    assert why in result.stderr

