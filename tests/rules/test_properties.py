"""What holds for any pool and any set of refs: plans of launch, verdicts of reap, names, and the choice of the code.

The examples are the same in every run.
"""

import os
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloud import nova
from gateprocess import ConfigError
from pool import rules
from pool.sight import Sight
from tests.support.pool import PROJECT, load_script
from tests.support.repos import ENVIRONMENT, git

HOUR = 3600
NOW = 1_800_000_000
judge: Any = rules.judge
reap = load_script("devstack-vm-reap.py")
launch = load_script("devstack-vm-launch.py")
vmdatabase = reap.vmdatabase
Node = reap.jenkinsnodes.Node

repeatable = settings(derandomize=True, database=None, max_examples=200,
                      suppress_health_check=[HealthCheck.too_slow])

# Plans of launches

NEEDS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 15)), max_size=5).map(
    lambda pairs: [rules.Need(number, wanted, present) for number, (wanted, present) in enumerate(pairs, 1)])
ROOMS = st.integers(-5, 40)


def after(needs: Sequence[Any], plan: Sequence[int]) -> list[Any]:
    """Return what is needed once the machines of a plan are there."""
    more = Counter(plan)
    return [rules.Need(need.image_id, need.min_ready, need.present + more[need.image_id]) for need in needs]


@given(needs=NEEDS, taken=st.integers(0, 20), max_servers=st.integers(0, 30))
@repeatable
def test_a_plan_never_takes_a_provider_above_max_servers_nor_an_image_above_its_min_ready(
        needs: list[Any], taken: int, max_servers: int) -> None:
    plan = rules.plan_launches(needs, max_servers - taken)

    assert len(plan) == 0 or taken + len(plan) <= max_servers
    for before, then in zip(needs, after(needs, plan), strict=True):
        assert before.present <= then.present <= max(before.present, then.min_ready)


@given(quiet=st.floats(0, 1e6), took=st.floats(0, 1e4))
@repeatable
def test_a_boot_is_seen_a_second_or_a_twentieth_of_its_time_late(quiet: float, took: float) -> None:
    pause = launch.poll_pause(quiet, took)

    assert 1 <= pause <= 5
    if took <= 0.2:
        assert pause <= max(1, quiet / 20)


@given(needs=NEEDS, room=ROOMS)
@repeatable
def test_each_next_machine_is_for_the_image_that_lacks_the_most_of_its_share(needs: list[Any], room: int) -> None:
    now = needs
    for image_id in rules.plan_launches(needs, room):
        lacks = {need.image_id: 1 - Fraction(need.present, need.min_ready)
                 for need in now if need.present < need.min_ready}
        assert lacks[image_id] == max(lacks.values())
        now = after(now, [image_id])


@given(needs=NEEDS, room=ROOMS, first=st.integers(0, 40))
@repeatable
def test_a_plan_that_is_begun_and_then_made_anew_is_the_same_plan(needs: list[Any], room: int, first: int) -> None:
    whole = rules.plan_launches(needs, room)
    begun = whole[:first]

    assert begun + rules.plan_launches(after(needs, begun), room - len(begun), last=[None, *begun][-1]) == whole


@given(needs=NEEDS, room=ROOMS, data=st.data())
@repeatable
def test_the_order_of_the_images_decides_only_between_those_that_lack_equal_shares(
        needs: list[Any], room: int, data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(needs))

    one, other = (shares(after(needs, rules.plan_launches(order, room))) for order in (needs, shuffled))

    assert min(one, default=1) == min(other, default=1)
    if not ties(needs, room):
        assert one == other


def shares(needs: Sequence[Any]) -> list[Fraction]:
    return [Fraction(need.present, need.min_ready) for need in needs if need.min_ready]


def ties(needs: Sequence[Any], room: int) -> bool:
    """Return whether some step of a plan has a choice."""
    now = needs
    for image_id in rules.plan_launches(needs, room):
        lacking = [Fraction(need.present, need.min_ready) for need in now if need.present < need.min_ready]
        if lacking.count(min(lacking)) > 1:
            return True
        now = after(now, [image_id])
    return False


# Verdicts of reaps

STATES = st.sampled_from(vmdatabase.STATES)
SERVERS = st.builds(
    nova.Server, st.just("server"), st.just("server"),
    st.sampled_from(["ACTIVE", "BUILD", "REBOOT", "UNKNOWN", *nova.DEAD_STATUSES]), st.sampled_from(["", "fire"]),
    st.just({}), st.just({}), st.just(0.0))
NODES = st.builds(
    Node, st.just("node"), st.just(""), st.booleans(), st.booleans(), st.booleans(), st.sampled_from(["", "UserCause"]),
    st.just(""), st.sampled_from([frozenset({"devstack-used"}), frozenset({"devstack-noble"})]))
SIGHTS = st.builds(
    Sight, servers=st.just({}) | SERVERS.map(lambda server: {"server": server}),
    gone=st.sampled_from([frozenset(), frozenset({"server"}), frozenset({"other"})]), list_is_whole=st.booleans(),
    nodes=st.none() | st.just({}) | NODES.map(lambda node: {"node": node}),
    dead_nodes=st.sampled_from([frozenset(), frozenset({"node"}), frozenset({"other"})]))
MACHINES = st.builds(
    lambda **columns: vmdatabase.Machine(base_image=vmdatabase.BaseImage(id=1), **columns),
    id=st.integers(1, 99), state=STATES, state_time=st.integers(NOW - 50 * HOUR, NOW + HOUR),
    external_id=st.none() | st.just("server"), jenkins_name=st.none() | st.just("node"),
    hold_until=st.none() | st.integers(NOW - HOUR, NOW + HOUR))
IMAGES = st.builds(vmdatabase.BaseImage, active=st.booleans(), max_ready_age=st.none() | st.integers(1, 40))
CASES = st.tuples(MACHINES, IMAGES, st.integers(1, 2 * HOUR), SIGHTS)


@given(case=CASES, over=st.sampled_from([-50 * HOUR, -1, 0, 1, 50 * HOUR]))
@repeatable
def test_a_hold_goes_when_its_hours_are_over_and_for_no_other_reason(case: Any, over: int) -> None:
    held, image, boot_timeout, sight = case
    held.state = "HOLD"

    verdict = judge(held, image, boot_timeout, sight, (held.hold_until or NOW) + over)

    assert (verdict is not None) == (held.hold_until is not None and over >= 0)


@given(case=CASES)
@repeatable
def test_a_machine_that_lives_and_builds_or_may_build_is_left_alone(case: Any) -> None:
    machine, image, boot_timeout, sight = case
    builds = machine.jenkins_name is not None and (
        sight.nodes is None or any(not node.idle for node in sight.nodes.values()))
    dead = sight.death(machine)

    if machine.state in ("READY", "USED") and builds and not (machine.state == "READY" and dead):
        assert judge(machine, image, boot_timeout, sight, NOW) is None


@given(case=CASES, later=st.integers(0, 100 * HOUR))
@repeatable
def test_what_goes_now_goes_the_same_way_at_any_later_time(case: Any, later: int) -> None:
    verdict = judge(*case, NOW)

    if verdict:
        again = judge(*case, NOW + later)
        assert again
        assert again.target == verdict.target


@given(case=CASES, later=st.integers(0, 100 * HOUR))
@repeatable
def test_what_has_been_moved_is_not_judged_again(case: Any, later: int) -> None:
    machine, *rest = case
    verdict = judge(machine, *rest, NOW)

    if verdict:
        in_use = verdict.target in ("USED", "HOLD")
        assert in_use or verdict.target in ("ERROR", "DELETE")
        for name, value in {"state": verdict.target, "state_time": NOW, **verdict.columns}.items():
            setattr(machine, name, value)
        assert judge(machine, *rest, NOW if in_use else NOW + later) is None


@given(finished=st.lists(MACHINES, max_size=6, unique_by=lambda machine: machine.id), missing=st.integers(0, 9),
       room=st.integers(-3, 9), data=st.data())
@repeatable
def test_room_is_made_of_finished_machines_each_once_the_oldest_first_and_no_more_than_are_missing(
        finished: list[Any], missing: int, room: int, data: st.DataObject) -> None:
    verdicts = rules.make_room(finished, missing, room)

    gone = [verdict.machine for verdict in verdicts]
    assert len(gone) <= max(0, missing - max(0, room))
    assert len({machine.id for machine in gone}) == len(gone)
    assert all(machine in finished for machine in gone)
    staying = [machine for machine in finished if machine not in gone]
    assert all(one.state_time <= other.state_time for one in gone for other in staying)
    assert not staying or len(gone) == max(0, missing - max(0, room))
    assert {verdict.target for verdict in verdicts} <= {"DELETE"}
    shuffled = data.draw(st.permutations(finished))
    assert [verdict.machine for verdict in rules.make_room(shuffled, missing, room)] == gone


# Leaks

IDS = st.sampled_from(["1", "2", "3", "0", "", "-1", "x", "01", "٣", "9" * 30])
MARKS = st.dictionaries(
    st.sampled_from(
        [nova.POOL_KEY, nova.PROVIDER_KEY, nova.MACHINE_KEY, nova.SNAPSHOT_KEY, "other"]),
    IDS | st.sampled_from(["pool", "one", "two"]), max_size=4)
AGES = st.sampled_from([0, rules.GRACE - 1, rules.GRACE, 10 * HOUR])
FOUND = st.lists(st.builds(
    lambda name, marks, age: nova.Server(name, name, "ACTIVE", "", marks, {}, NOW - age),
    st.sampled_from("abcdef"), MARKS, AGES), max_size=6, unique_by=lambda server: server.id)
ROWS = st.dictionaries(st.integers(1, 3), st.none() | st.sampled_from("abcdef"), max_size=3)
SNAPSHOTS = st.lists(st.builds(
    vmdatabase.SnapshotImage, id=st.integers(1, 3), name=st.sampled_from(["this", "that"]), state=STATES,
    external_id=st.none() | st.sampled_from("abcdef"), keep_until=st.none() | st.sampled_from([NOW - 1, NOW + 1])),
    max_size=3, unique_by=lambda row: row.id).map(lambda rows: {row.id: row for row in rows})


@given(marks=MARKS)
@repeatable
def test_a_server_is_ours_by_the_marks_of_this_pool_and_this_provider_and_by_nothing_else(
        marks: dict[str, str]) -> None:
    cloud: Any = SimpleNamespace(pool="pool", provider=SimpleNamespace(name="one"))

    ours = nova.Cloud._is_ours(cloud, marks)

    assert ours == ({nova.POOL_KEY: "pool", nova.PROVIDER_KEY: "one"}.items() <= marks.items())


@given(servers=FOUND, rows=ROWS, snapshots=SNAPSHOTS)
@repeatable
def test_a_server_that_a_row_accounts_for_or_that_is_young_and_without_a_row_is_no_leak(
        servers: list[Any], rows: dict[int, str | None], snapshots: dict[int, Any]) -> None:
    leaked = rules.leaked_servers(servers, rows, snapshots, NOW)

    for server in servers:
        snapshot = snapshots.get(server.snapshot_id)
        if server.id in rows.values():
            kept = True  # whatever its marks say
        elif snapshot:
            kept = snapshot.state == "BUILDING" or (snapshot.keep_until is not None and snapshot.keep_until > NOW)
        elif server.machine_id in rows:
            kept = rows[server.machine_id] in (None, server.id)
        else:
            kept = NOW - server.created < rules.GRACE
        assert (server in leaked) == (not kept)


@given(servers=FOUND, rows=ROWS, snapshots=SNAPSHOTS, later=st.integers(0, HOUR))
@repeatable
def test_a_leak_stays_one_until_it_is_gone_and_leaks_are_told_one_by_one(
        servers: list[Any], rows: dict[int, str | None], snapshots: dict[int, Any], later: int) -> None:
    leaked = rules.leaked_servers(servers, rows, snapshots, NOW)

    assert leaked == [one for server in servers for one in rules.leaked_servers([server], rows, snapshots, NOW)]
    assert all(server in rules.leaked_servers(servers, rows, snapshots, NOW + later) for server in leaked)


@given(images=st.lists(st.builds(
    lambda name, title, row, age: nova.Image(name, title, "active", row, NOW - age), st.sampled_from("abcdef"),
    st.sampled_from(["this", "that"]), st.none() | st.integers(0, 4), AGES), max_size=6,
    unique_by=lambda image: image.id), snapshots=SNAPSHOTS)
@repeatable
def test_an_image_that_its_row_knows_or_that_is_young_and_without_a_row_is_no_leak(
        images: list[Any], snapshots: dict[int, Any]) -> None:
    leaked = rules.leaked_images(images, snapshots, NOW)

    assert len({image.id for image in leaked}) == len(leaked)
    for image in leaked:
        row = snapshots.get(image.snapshot_id or 0)
        if row is None:
            assert NOW - image.created >= rules.GRACE
        else:
            assert row.state != "BUILDING"
            assert row.external_id is not None
            assert row.name == image.name
            assert row.external_id != image.id


@given(states=st.lists(st.tuples(STATES, st.none() | st.sampled_from([NOW - 1, NOW + 1])), max_size=7),
       everything=st.booleans())
@repeatable
def test_of_the_snapshots_the_two_newest_ready_ones_stay_and_those_that_are_built_or_kept(
        states: list[tuple[str, int | None]], everything: bool) -> None:
    rows = [vmdatabase.SnapshotImage(id=number, state=state, keep_until=until)
            for number, (state, until) in enumerate(states, 1)]

    old = rules.old_snapshots(rows, everything, NOW)

    ready = [row for row in rows if row.state == "READY"]
    assert not [row for row in old if row.state == "BUILDING" or (row.keep_until or 0) > NOW]
    assert everything or not [row for row in old if row in ready[:2]]
    assert all(row in old or row.has_server(NOW) or (not everything and row in ready[:2]) for row in rows)


# Names

NAMES = st.text(max_size=20) | st.text(st.characters(codec=None, categories=["Cs", "Cc", "Zl", "Zp", "Lu"]), max_size=9)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Open a vm.db with one machine in this process; yield the machine."""
    with vmdatabase.opened(tmp_path_factory.mktemp("pool") / "vm.db"):
        one = vmdatabase.Provider.create(
            name="one", cloud="one", max_servers=1, boot_timeout=1, max_concurrency=1, networks="[]",
            floating_ips="auto", address="public-v4", ssh_port=22, security_groups="[]", availability_zones="[]")
        image = vmdatabase.BaseImage.create(provider=one, name="noble", external_id="x", min_ready=0, min_ram=0)
        yield vmdatabase.Machine.create(base_image=image, name=NAME, state="USED", state_time=NOW)


@given(name=NAMES)
@repeatable
def test_a_name_is_found_or_refused_in_one_printable_line_whatever_it_holds(pool: Any, name: str) -> None:
    for look_up in (vmdatabase.machine_named, vmdatabase.provider_named):
        with pytest.raises(ConfigError) as caught:
            look_up(name)
        assert str(caught.value).isprintable()


NAME = "devstack-noble-one-1"
PLACES = st.integers(0, len(NAME))
ALIKE = st.tuples(PLACES, PLACES, st.sampled_from(["", "-", "1", "%", "_", "*", "?", "N", " ", "\0"])).map(
    lambda change: NAME[:change[0]] + change[2] + NAME[change[1]:])


@given(name=ALIKE | st.sampled_from([NAME, NAME.upper()]))
@repeatable
def test_a_machine_is_known_by_its_whole_name_only(pool: Any, name: str) -> None:
    if name == NAME:
        assert vmdatabase.machine_named(name) == pool
    else:
        with pytest.raises(ConfigError):
            vmdatabase.machine_named(name)


VALUES = st.text() | st.sampled_from(["", "0", "7", "9" * 18, "9" * 19, "-1", "1.0", " 7", "٣", "7\n", "\udcff"])
BUILD = st.dictionaries(st.sampled_from(["JOB_NAME", "BUILD_NUMBER", "GERRIT_CHANGE_NUMBER", "ZUUL_CHANGE",
                                         "GERRIT_PATCHSET_NUMBER", "ZUUL_PATCHSET"]), VALUES)


@given(environ=BUILD, result=st.sampled_from(["SUCCESS", "FAILURE", None]))
@repeatable
def test_the_start_and_the_end_of_a_build_are_written_down_whatever_its_environment_holds(
        pool: Any, environ: dict[str, str], result: str | None) -> None:
    with vmdatabase.database.atomic() as transaction:
        vmdatabase.record_start(pool, environ)
        vmdatabase.record_end(pool, environ, result)
        (row,) = vmdatabase.Result.select()
        transaction.rollback()

    assert (row.machine_id, row.node_name, row.result) == (pool.id, pool.name, result)
    assert row.end_time >= row.start_time
    numbers = {name: int(value) for name, value in environ.items()
               if value.isascii() and value.isdigit() and len(value) <= 18}
    assert row.jenkins_build_number == numbers.get("BUILD_NUMBER")
    assert row.gerrit_change_number == numbers.get("GERRIT_CHANGE_NUMBER", numbers.get("ZUUL_CHANGE"))
    assert row.gerrit_patchset_number == numbers.get("GERRIT_PATCHSET_NUMBER", numbers.get("ZUUL_PATCHSET"))


# Which code

BRANCHES = ("master", "stable/essex", "unmaintained/essex", "stable/essex-2", "stable/e", "essex", "feature/a-b",
            "feature/a", "feature/c/d.e", "master-2", "stable-essex", "a/stable/essex", "unmaintained/e-eol")
ZUUL_IDS = ("Zab", "Zabc", "ab", "Z-1")  # some are parts of others
REFS = sorted({*(f"refs/heads/{branch}" for branch in BRANCHES),
               *(f"refs/zuul/{branch}/{ident}" for branch in BRANCHES for ident in ZUUL_IDS),
               *(f"refs/tags/{tag}" for tag in ("essex-eol", "e-eol", "essex-2-eol", "stable/essex-eol", "essex",
                                                "master", "stable/essex", "essex-eol-2", "master-eol",
                                                "stable-essex-eol", "a/stable/essex-eol", "essex-eom", "essex-last",
                                                "e-last", "essex-em", "unmaintained/essex", "last"))})


@st.composite
def questions(draw: st.DrawFn) -> tuple[list[str], str, str]:
    """Draw refs, most of them related to the branch; the branch that is asked for; and the last part of ZUUL_REF."""
    branch = draw(st.sampled_from(BRANCHES))
    ident = draw(st.sampled_from(["", "Zab", "Zab", "Z-1"]))
    series = branch.removeprefix("stable/").removeprefix("unmaintained/")
    alike = [ref for ref in REFS if branch in ref or series in ref or "/master/Zab" in ref]
    return draw(st.lists(st.sampled_from(alike) | st.sampled_from(REFS), max_size=7, unique=True)), branch, ident


def to_test(refs: Sequence[str], branch: str, ident: str) -> str | None:
    """Return the ref of a project's code, chosen in the order that docs/gate.md gives; None if there is none."""
    kind, _, series = branch.partition("/")
    other = {"stable": "unmaintained", "unmaintained": "stable"}.get(kind)
    for name in (branch, f"{other}/{series}" if other else branch):
        if ident and f"refs/zuul/{name}/{ident}" in refs:
            return f"refs/zuul/{name}/{ident}"
        if f"refs/heads/{name}" in refs:
            return f"refs/heads/{name}"
    if ident and f"refs/zuul/master/{ident}" in refs:
        return f"refs/zuul/master/{ident}"
    if other:
        for end in ("eol", "eom", "last"):
            if f"refs/tags/{series}-{end}" in refs:
                return f"refs/tags/{series}-{end}"
    return "refs/heads/master" if "refs/heads/master" in refs else None


SOURCE = '. "$1/functions.sh"; . "$1/gate/source.sh"'
CHOOSER = """
set -euo pipefail
. "$1/gate/source.sh"
while IFS=' ' read -r branch count ident; do
    refs=
    for (( number = 0; number < count; number++ )); do read -r ref; refs+=$ref$'\\n'; done
    choose_ref "$branch" "$ident" <<< "${refs%$'\\n'}" || printf 'none\\n'
done
"""


@pytest.fixture(scope="module")
def chooser() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(["bash", "-c", CHOOSER, "chooser", str(PROJECT)], text=True, stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


@given(question=questions())
@settings(repeatable, max_examples=300)
def test_of_any_refs_the_first_of_the_documented_order_is_chosen(
        chooser: subprocess.Popen[str], question: tuple[list[str], str, str]) -> None:
    refs, branch, ident = question
    assert chooser.stdin
    assert chooser.stdout
    chooser.stdin.write("".join(f"{line}\n" for line in (f"{branch} {len(refs)} {ident}", *refs)))
    chooser.stdin.flush()

    assert chooser.stdout.readline().rstrip("\n") == (to_test(refs, branch, ident) or "none")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository of project a/b; each commit has the name of the ref that will lead to it."""
    folder = tmp_path_factory.mktemp("server") / "a/b"
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--bare")
    commits = "".join(f"commit refs/all/{number}\ncommitter A <a@example.org> 1800000000 +0000\n"
                      f"data {len(ref)}\n{ref}\n" for number, ref in enumerate(REFS))
    subprocess.run(["git", "-C", str(folder), "fast-import", "--quiet"], input=commits, text=True, check=True)
    return folder


def hold_only(server: Path, refs: Sequence[str]) -> None:
    """Leave only these refs in the project's repository."""
    there = git(server, "for-each-ref", "--format=%(refname) %(objectname)").splitlines()
    objects = dict(line.split() for line in there)
    orders = [f"delete {ref}" for ref in objects if not ref.startswith("refs/all/")]
    git_update(server, orders)
    git_update(server, [f"create {ref} {objects[f'refs/all/{REFS.index(ref)}']}" for ref in refs])


def git_update(folder: Path, orders: Sequence[str]) -> None:
    subprocess.run(["git", "-C", str(folder), "update-ref", "--stdin"], input="".join(f"{one}\n" for one in orders),
                   text=True, check=True)


@given(question=questions())
@settings(repeatable, max_examples=15)
def test_a_tree_holds_the_code_of_that_ref_of_a_real_repository(
        server: Path, question: tuple[list[str], str, str]) -> None:
    refs, branch, ident = question
    hold_only(server, refs)
    base = server.parent.parent
    zuul = {"ZUUL_URL": f"file://{base}", "ZUUL_PROJECT": "another", "ZUUL_BRANCH": "master",
            "ZUUL_REF": f"refs/zuul/master/{ident}"} if ident else {}

    result = subprocess.run(
        ["bash", "-c", f'{SOURCE}; ATTEMPTS=1; setup_project a/b "$2" "$3"', "test", str(PROJECT), branch,
         str(base)], env={"PATH": os.environ["PATH"], "HOME": str(base), "GIT_BASE": f"file://{base}", **ENVIRONMENT,
                          **zuul}, capture_output=True, text=True, check=False)

    chosen = to_test(refs, branch, ident)
    if chosen is None:
        assert result.returncode == 3
        words = "no branch master" if branch == "master" else f"neither a branch {branch} nor a branch master"
        assert f"there is {words} at " in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        own = chosen in (f"refs/heads/{branch}", f"refs/zuul/{branch}/{ident}")
        assert result.stdout.startswith("a/b ")
        assert result.stdout.endswith(f" {chosen}\n" if own else f" {chosen} (no branch {branch})\n")


CHANGES = st.lists(st.tuples(st.sampled_from(["a/b", "a/bc", "b"]), st.sampled_from(BRANCHES),
                             st.integers(1, 3).map(lambda number: f"refs/changes/0{number}/{number}/1")),
                   max_size=6, unique=True)


@given(changes=CHANGES, with_trigger=st.booleans(), branch=st.sampled_from(BRANCHES))
@settings(repeatable, max_examples=30)
def test_changes_of_gerrit_are_those_of_project_and_branch_in_their_order_and_the_triggering_one_is_among_them_once(
        changes: list[tuple[str, str, str]], with_trigger: bool, branch: str) -> None:
    trigger = ("a/b", branch, "refs/changes/09/9/1")
    listed = [*changes, *([trigger] if with_trigger else [])]
    environ = {"GERRIT_PROJECT": "a/b", "GERRIT_BRANCH": branch, "GERRIT_REFSPEC": trigger[2],
               "GERRIT_CHANGES": "^".join(map(":".join, listed)), "PATH": os.environ["PATH"]}

    found = subprocess.run(["bash", "-c", f'{SOURCE}; changes_of a/b "$2"', "test", str(PROJECT), branch],
                           env=environ, capture_output=True, text=True, check=True).stdout.split()

    assert found == [ref for project, on, ref in [*changes, trigger] if (project, on) == ("a/b", branch)]
