"""What reap decides: rules for one thing (pool/rules.py), and lists of actions for all (pool/decisions.py)."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import vmdatabase
from cloud import nova
from jenkinsnodes import Build, Node
from pool import actions, decisions, rules
from pool import sight as sight_of
from pool.verdict import Verdict

HOUR = 3600
NOW = 1_800_000_000


# --- one thing ---


def machine(state: str, age: int = 0, **columns: Any) -> Any:
    values = {"id": 1, "external_id": "server", "jenkins_name": "node", "ip": "127.0.0.1", "online_time": None,
              "base_image": vmdatabase.BaseImage(id=1)}
    return vmdatabase.Machine(state=state, state_time=NOW - age, **(values | columns))


def server(ident: str = "server", status: str = "ACTIVE", age: float = 0, fault: str = "", **marks: object) -> Any:
    metadata = {f"devstack-gate-{name}": str(value) for name, value in marks.items()}
    return nova.Server(ident, ident, status, fault, metadata, {}, NOW - age)


def node(idle: bool = True, offline: str | None = None, label: str = "devstack-noble", cause: str = "UserCause") -> Any:
    """Return a node; offline is the message with which a person, or another cause, took it offline."""
    away = offline is not None
    return Node("node", "", away, away, idle, cause if away else "", offline or "", frozenset({label, "node"}), "URL")


def sight(*servers: Any, gone: tuple[str, ...] = (), nodes: Mapping[str, Any] | None = None,
          dead: tuple[str, ...] = (), by_id: Mapping[int, Any] | None = None) -> Any:
    return sight_of.Sight(
        {one.id: one for one in servers}, frozenset(gone), True, nodes, frozenset(dead), by_id or {})


USED = "devstack-used"
UNLABELLED = sight(server(), nodes={"node": node(label=USED)})
SPENT = sight(server(), nodes={"node": node(offline="vm.db did not answer", label=USED)})
UNANSWERED = sight(server(), nodes={"node": node(offline="vm.db did not answer")})  # Jenkins refused another label
OFFLINE = sight(server(), nodes={"node": node(offline="anna looks")})
LAUNCH_FAILED = Node("node", "", True, False, True, "LaunchFailed", "no Java\nat ...", frozenset(), "URL")
ALIVE = sight(server(), nodes={"node": node()})
BUILDS = sight(server(), nodes={"node": node(idle=False)})
NOT_KNOWN = sight(server(), nodes=None)
DISOWNED = replace(ALIVE, servers={}, disowned={"server": nova.POOL_KEY})


@pytest.mark.parametrize(("one", "seen", "verdict"), [
    (machine("READY"), ALIVE, None),
    (machine("READY", 1000 * HOUR), ALIVE, None),
    (machine("READY"), sight(gone=("server",), nodes={}), ("ERROR", "the server is gone")),
    (machine("READY"), sight(nodes={}), None),  # not in the list, but the cloud has not said 404
    (machine("READY"), sight(server(status="ERROR", fault="fire"), nodes={}), ("ERROR", "the server is ERROR fire")),
    (machine("READY"), sight(server(status="SHUTOFF"), nodes={}), ("ERROR", "the server is SHUTOFF")),
    (machine("READY"), sight(server(status="RESCUE"), nodes={}), ("ERROR", "the server is RESCUE")),
    (machine("READY"), sight(server(status="UNKNOWN"), nodes={}), None),
    (machine("READY"), sight(server(status="REBOOT"), nodes={}), None),
    (machine("READY"), sight(server(), nodes={"node": LAUNCH_FAILED}, dead=("node",)),
     ("ERROR", "its Jenkins node died (its agent never came: no Java; log: URL/log)")),
    (machine("READY", online_time=1), sight(server(), nodes={"node": LAUNCH_FAILED}, dead=("node",)),
     ("ERROR", "its Jenkins node died (its agent is gone: no Java; log: URL/log)")),
    (machine("READY"), sight(server(), nodes={"node": node(offline="0 GB left", cause="DiskSpace")}, dead=("node",)),
     ("ERROR", "its Jenkins node died (Jenkins took it offline: 0 GB left; log: URL/log)")),
    (machine("READY"), sight(server(), nodes={}, dead=("node",)), ("ERROR", "its Jenkins node died")),
    (machine("READY"), SPENT, ("DELETE", "no build can start on its node any more")),
    (machine("READY"), UNLABELLED, ("DELETE", "no build can start on its node any more")),
    (machine("READY"), UNANSWERED, ("DELETE", "no build can start on its node any more")),
    (machine("READY"), OFFLINE, None),  # a person's doing
    (machine("READY", name="devstack-noble-one-1"), sight(nodes={"node": node()}), None),
    (machine("READY", name="ci-devstack-noble-one-1"), sight(server("ci-devstack-noble-one-1"), nodes={
        "node": node(label="ci-devstack-noble")}), None),
    (machine("READY", name="devstack-noble-one-1"), sight(nodes={"node": node(label="debug")}),
     ("HOLD", "its node's labels were changed in Jenkins: debug")),
    (machine("READY", name="devstack-noble-one-1"), sight(nodes={"node": node(label="devstack-noble-two")}),
     ("HOLD", "its node's labels were changed in Jenkins: devstack-noble-two")),
    (machine("USED", name="devstack-noble-one-1"), sight(nodes={"node": node(label="debug")}), None),
    (machine("READY"), DISOWNED, ("DELETE", "its server does not carry our devstack-gate-pool any more")),
    (machine("USED"), DISOWNED, None),
    (machine("HOLD"), DISOWNED, None),
    (machine("USED", 24 * HOUR - 1), ALIVE, None),
    (machine("USED", 24 * HOUR), ALIVE, ("DELETE", "used, and kept for 24 hours")),
    (machine("USED", 99 * HOUR), BUILDS, None),
    (machine("USED", 99 * HOUR), NOT_KNOWN, None),
    (machine("USED", 99 * HOUR, jenkins_name=None), NOT_KNOWN, ("DELETE", "used, and kept for 24 hours")),
    (machine("HOLD", 999 * HOUR), ALIVE, None),
    (machine("HOLD", hold_until=NOW + 1), ALIVE, None),
    (machine("HOLD", hold_until=NOW), ALIVE, ("DELETE", "its hours on hold are over")),
    (machine("HOLD", hold_until=NOW), NOT_KNOWN, ("DELETE", "its hours on hold are over")),
    (machine("BUILDING", 900 + 600 - 1), sight(server(), nodes={}), None),
    (machine("BUILDING", 900 + 600), sight(server(), nodes={}), ("ERROR", "still BUILDING after 1500 s")),
    (machine("ERROR"), ALIVE, None),
    (machine("DELETE"), ALIVE, None),
])
def test_judge(one: Any, seen: Any, verdict: tuple[str, str] | None) -> None:
    found = rules.judge(one, vmdatabase.BaseImage(name="noble", active=True, max_ready_age=None), 600, seen, NOW)

    assert (found and (found.machine, found.target, found.why)) == (verdict and (one, *verdict))


def held(until: int | None = None) -> Any:
    marks: dict[str, Any] = {"hold": "bug 1", "hold-until": until or 0}
    return server(**marks)


HELD = node(offline="held: bug 1", label=USED)
TAKEN = node(offline="in use by gate #7", label=USED)


@pytest.mark.parametrize(("seen", "found", "use"), [
    (server(), None, None),
    (None, node(), None),
    (server(), node(), None),
    (held(), None, ("HOLD", "bug 1", None)),
    (held(NOW + 1), None, ("HOLD", "bug 1", NOW + 1)),
    (held(NOW), None, None),  # its hours are over
    (held(), node(idle=False), ("HOLD", "bug 1", None)),
    (server(), HELD, ("HOLD", "bug 1", None)),
    (server(), node(idle=False), ("USED", "a build runs there", None)),
    (server(), node(False, "in use by gate #7", USED), ("USED", "in use by gate #7", None)),
    (server(), TAKEN, ("USED", "in use by gate #7", None)),
    (server(), node(offline="its build has ended", label=USED), ("USED", "its build has ended", None)),
    (server(), node(label=USED), ("USED", "its node has lost its label", None)),  # Jenkins was restarted
    (server(), node(offline="its machine is being deleted", label=USED), None),
    (server(), node(offline="there is no machine of this name", label=USED), None),
    (server(), node(offline="vm.db does not know it", label=USED), None),
    (server(), node(offline="vm.db did not answer", label=USED), None),
    (server(), node(offline="vm.db did not answer"), None),
    (server(), node(offline="anna looks"), ("HOLD", "its node is offline in Jenkins: anna looks", None)),
    (server(), node(offline="0 GB left", cause="DiskSpace"), None),
    (server(), LAUNCH_FAILED, None),
])
def test_use_of(seen: Any, found: Any, use: tuple[str, str, int | None] | None) -> None:
    assert rules.use_of(seen, found, NOW) == (use and rules.Use(*use))


HOLD = {"hold_reason": "bug 1", "hold_until": None}


@pytest.mark.parametrize(("one", "seen", "found", "verdict"), [
    # The marks of a hold, on server and node, win over any row, except one that knew of the hold.
    *((machine(state), held(), found, ("HOLD", "bug 1", HOLD)) for state in ("BUILDING", "READY", "USED", "ERROR")
      for found in (None, node(), TAKEN)),
    *((machine(state), server(), HELD, ("HOLD", "bug 1", HOLD)) for state in ("BUILDING", "READY", "USED", "ERROR")),
    (machine("DELETE"), held(), None, ("HOLD", "bug 1", HOLD)),  # deleted e.g. by inprogress, for its test environment
    (machine("DELETE"), server(), HELD, ("HOLD", "bug 1", HOLD)),
    (machine("DELETE"), server(), node(offline="in use by gate #1", label=USED), None),
    (machine("DELETE", hold_reason="bug 1"), held(), HELD, None),  # after unhold
    (machine("HOLD"), held(), HELD, None),
    (machine("READY"), server(), TAKEN, ("USED", "in use by gate #7", {})),
    (machine("READY"), server(), node(False, "in use by gate #7", USED), ("USED", "in use by gate #7", {})),
    (machine("READY"), server(), node(idle=False), None),  # a build that is just asking for it
    (machine("READY"), server(), node(offline="anna looks"), None),
    (machine("USED"), server(), TAKEN, None),
    # A node is made only after READY.
    (machine("BUILDING"), server(), node(idle=False), ("USED", "a build runs there", {})),
    (machine("BUILDING"), server(), TAKEN, ("USED", "in use by gate #7", {})),
    (machine("BUILDING", name="server", jenkins_name=None), server(), node(),
     ("ERROR", "it has a node already, of which vm.db knows nothing", {})),
    (machine("BUILDING"), server(), None, None),
    *((machine(state, name="server"), server(), node(), None) for state in ("READY", "USED", "ERROR", "DELETE")),
    *((machine(state, name="given"), server(), node(), ("HOLD", "its server was renamed to server", {
        "hold_reason": "its server was renamed to server"})) for state in ("READY", "USED", "ERROR")),
    (machine("DELETE", name="given"), server(), node(), None),
])
def test_a_row_that_is_older_than_the_world_is_put_right(
        one: Any, seen: Any, found: Any, verdict: tuple[str, str, Any] | None) -> None:
    old = rules.judge_old_row(one, sight(seen, nodes={"node": found, "server": found} if found else {}), NOW, 0)

    assert (old and (old.target, old.why, old.columns)) == verdict


@pytest.mark.parametrize(("held_at", "moved", "gone", "goes"), [
    (100, 0, True, False), (100, 99, True, False), (100, 101, True, True), (100, 101, False, False)])
def test_a_hold_of_before_a_restore_ends_when_its_server_is_gone(
        held_at: int, moved: int, gone: bool, goes: bool) -> None:
    one = machine("HOLD", NOW - held_at)

    verdict = rules.judge_old_row(one, sight(gone=("server",) * gone, nodes={}), NOW, moved)

    assert (verdict is not None) == goes


@pytest.mark.parametrize(("ready_at", "moved", "nodes", "goes"), [
    (100, 99, {}, True), (100, 101, {}, False), (100, 99, {"node": node()}, False), (100, 99, None, False)])
def test_a_ready_machine_of_before_a_restore_whose_node_is_gone_may_have_had_its_build(
        ready_at: int, moved: int, nodes: Any, goes: bool) -> None:
    one = machine("READY", ready_at)

    verdict = rules.judge_old_row(one, sight(server(), nodes=nodes), NOW, NOW - moved)

    assert (verdict and (verdict.target, verdict.why)) == (
        ("ERROR", "its node is gone, and vm.db was restored since it was ready") if goes else None)


def test_a_build_is_known_by_the_message_of_its_node() -> None:
    assert rules.build_named("in use by folder/gate job #17") == {"JOB_NAME": "folder/gate job", "BUILD_NUMBER": "17"}
    assert rules.build_named("in use by a person") == rules.build_named("its build has ended") == {}


IDS = vmdatabase.KnownIds


@pytest.mark.parametrize(("servers", "machines", "rows", "unlikely"), [
    ([], IDS(0), 0, ""),
    ([3], IDS(3), 0, ""),
    ([1, 2, 3], IDS(3), 0, ""),
    ([1, 2, 3, 4], IDS(4), 0, "these are 4, but only 0 machines have a row"),
    ([1, 2, 3, 4], IDS(9), 4, ""),
    ([1, 2, 3, 4, 5], IDS(9), 4, "these are 5, but only 4 machines have a row"),
    ([4], IDS(3), 99, "1 of 1 were made by a newer vm.db than this one"),
    ([3, 4, 5], IDS(3), 99, "2 of 3 were made by a newer vm.db than this one"),
    ([4], IDS(9, range(4, 6)), 99, "1 of 1 were made by a newer vm.db than this one"),
    ([3, 6], IDS(9, range(4, 6)), 99, ""),
])
def test_unlikely_leaks(servers: list[int], machines: Any, rows: int, unlikely: str) -> None:
    found = [server(str(number), machine=number) for number in servers]
    assert rules.unlikely_leaks(found, machines, IDS(0), rows, 0) == unlikely


@pytest.mark.parametrize(("older", "younger", "unlikely"), [
    (9, 0, ""), (9, 3, ""), (0, 4, "these are 4, but only 0 machines have a row"),
    (9, 4, "these are 4, but only 0 machines have a row")])
def test_leaks_of_before_a_persons_word_are_as_many_as_there_are(older: int, younger: int, unlikely: str) -> None:
    found = [server(str(number), machine=number, age=age)
             for number, age in enumerate([HOUR] * older + [HOUR - 1] * younger)]
    assert rules.unlikely_leaks(found, IDS(99), IDS(0), 0, NOW - HOUR) == unlikely


@pytest.mark.parametrize(("snapshot", "unlikely"), [(5, False), (6, True)])
def test_a_template_server_of_a_snapshot_that_vm_db_cannot_know_is_none_of_its_leaks(
        snapshot: int, unlikely: bool) -> None:
    assert bool(rules.unlikely_leaks([server("s", snapshot=snapshot)], IDS(0), IDS(5), 9, 0)) == unlikely


@pytest.mark.parametrize(("lost", "gone", "silent", "cut_off", "absent", "dead"), [
    (True, True, False, False, 0, True),  # Jenkins cannot connect, though ssh answers
    (True, False, False, False, 0, True),
    (True, True, True, False, 0, True),
    (False, True, True, False, 0, True),  # nobody can reach it, but others can be reached
    (False, False, True, False, 0, False),  # Jenkins still tries
    (False, True, False, False, 0, False),  # Jenkins is given time
    (False, True, True, True, 1799, False),  # nobody can reach any of them, so it is the network
    (True, True, True, True, 1799, False),
    (True, True, True, True, 1800, True),
    (True, True, False, True, 0, True),
])
def test_is_dead(lost: bool, gone: bool, silent: bool, cut_off: bool, absent: int, dead: bool) -> None:
    assert sight_of.is_dead(sight_of.Suspect(lost, gone, absent), silent, cut_off) == dead


@pytest.mark.parametrize(("one", "columns", "verdict"), [
    (machine("READY", 5 * HOUR - 1), {"max_ready_age": 5}, None),
    (machine("READY", 5 * HOUR), {"max_ready_age": 5}, "ready for more than 5 hours (max-ready-age)"),
    (machine("READY"), {"active": False}, "its image is no longer in the providers file"),
    (machine("USED"), {"active": False}, None),
    (machine("HOLD"), {"active": False}, None),
    (machine("USED", 5 * HOUR), {"max_ready_age": 5}, None),
])
def test_judge_by_the_image(one: Any, columns: dict[str, Any], verdict: str | None) -> None:
    found = rules.judge(one, vmdatabase.BaseImage(**{"active": True, "max_ready_age": None} | columns), 600, ALIVE, NOW)

    assert (found and (found.target, found.why)) == (verdict and ("DELETE", verdict))


@given(state=st.sampled_from(["READY", "USED", "BUILDING", "ERROR", "DELETE", "HOLD"]), age=st.integers(-HOUR, 10**9),
       seen=st.sampled_from([ALIVE, BUILDS, NOT_KNOWN, sight(gone=("server",), nodes={})]), active=st.booleans(),
       max_age=st.none() | st.integers(1, 100))
def test_a_hold_without_hours_is_never_judged_and_a_node_that_builds_never_goes(
        state: str, age: int, seen: Any, active: bool, max_age: int | None) -> None:
    found = rules.judge(machine(state, age), vmdatabase.BaseImage(active=active, max_ready_age=max_age), 600, seen, NOW)

    assert found is None or (state != "HOLD" and not (state in ("USED", "READY") and seen in (BUILDS, NOT_KNOWN)))


@pytest.mark.parametrize(("missing", "room", "gone"), [
    (0, 0, []), (1, 0, [3]), (2, 0, [3, 2]), (2, 1, [3]), (2, 2, []), (9, 0, [3, 2, 1]), (1, -5, [3]),
])
def test_room_is_made_of_the_oldest_finished_machines_and_only_as_much_as_needed(
        missing: int, room: int, gone: list[int]) -> None:
    finished = [machine("USED", age, id=number) for number, age in ((1, 10), (2, 20), (3, 30))]

    verdicts = rules.make_room(finished, missing, room)

    assert [(verdict.machine.id, verdict.target) for verdict in verdicts] == [(number, "DELETE") for number in gone]


YOUNG, OLD = 899, 900


@pytest.mark.parametrize(("one", "machines", "leaked"), [
    (server("s", age=OLD, machine=7), {7: "s"}, False),
    (server("s", age=OLD, machine=7), {7: None}, False),  # its id was not saved
    (server("s", age=OLD, machine="x"), {7: "s"}, False),  # somebody wrote that into its mark
    (server("s", age=OLD, machine=8), {7: "s", 8: "another"}, False),
    (server("s", age=OLD, snapshot=3), {7: "s"}, False),
    (server("s", age=OLD, machine=7), {}, True),
    (server("s", age=YOUNG, machine=7), {}, False),
    (server("s", age=OLD, machine=7), {7: "another"}, True),
    (server("s", age=YOUNG, machine=7), {7: "another"}, True),  # its row is older than it
    (server("s", age=OLD), {}, True),
    (server("s", age=OLD, snapshot=1), {}, False),  # BUILDING
    (server("s", age=0, snapshot=2), {}, True),  # ERROR
    (server("s", age=0, snapshot=3), {}, True),  # READY
    (server("s", age=OLD, snapshot=4), {}, True),  # no such row
    (server("s", age=YOUNG, snapshot=4), {}, False),
    (server("s", age=OLD, snapshot=5), {}, False),  # ERROR, kept for a person
    (server("s", age=OLD, snapshot=6), {}, True),  # no longer kept
])
def test_leaked_servers(one: Any, machines: dict[int, str | None], leaked: bool) -> None:
    snapshots = {number: vmdatabase.SnapshotImage(id=number, state=state, keep_until=keep_until)
                 for number, state, keep_until in ((1, "BUILDING", None), (2, "ERROR", None), (3, "READY", None),
                                                   (5, "ERROR", NOW + 1), (6, "ERROR", NOW))}

    assert rules.leaked_servers([one], machines, snapshots, NOW) == [one] * leaked


@pytest.mark.parametrize(("snapshot", "age", "leaked"), [
    (1, OLD, False),  # BUILDING
    (2, OLD, True),  # its row knows another image
    (3, OLD, False),  # its row knows this one
    (4, OLD, False),  # a user made it from a machine of that row
    (9, OLD, True), (9, YOUNG, False), (None, OLD, True),
    ("known", OLD, False),  # known by its id, though somebody took the mark away
])
def test_leaked_images(snapshot: Any, age: int, leaked: bool) -> None:
    rows = {1: vmdatabase.SnapshotImage(id=1, name="name", state="BUILDING", external_id=None),
            2: vmdatabase.SnapshotImage(id=2, name="name", state="READY", external_id="another"),
            3: vmdatabase.SnapshotImage(id=3, name="name", state="READY", external_id="known"),
            4: vmdatabase.SnapshotImage(id=4, name="other", state="READY", external_id="another")}
    known = snapshot in (3, "known")
    mark = None if snapshot == "known" else snapshot
    one = nova.Image("known" if known else "image", "name", "active", mark, NOW - age)

    assert rules.leaked_images([one], rows, NOW) == [one] * leaked


@pytest.mark.parametrize(("states", "everything", "old"), [
    ("READY READY", False, []),
    ("READY READY READY READY", False, [2, 3]),
    ("ERROR READY ERROR READY ERROR READY", False, [0, 2, 4, 5]),
    ("BUILDING READY READY READY", False, [3]),
    ("BUILDING DELETE READY", False, [1]),
    ("BUILDING READY READY", True, [1, 2]),
    ("ERROR+1 READY ERROR READY", False, [2]),
    ("ERROR+1 READY READY", True, [1, 2]),
    ("ERROR+0 READY READY", False, [0]),
])
def test_old_snapshots(states: str, everything: bool, old: list[int]) -> None:
    """STATE+N is a template that is kept for N more seconds."""
    rows = []
    for number, word in enumerate(states.split()):
        state, _, kept = word.partition("+")
        rows.append(vmdatabase.SnapshotImage(id=number, state=state, keep_until=NOW + int(kept) if kept else None))

    assert [row.id for row in rules.old_snapshots(rows, everything, NOW)] == old


@pytest.mark.parametrize(("needs", "room", "plan"), [
    ([(1, 3, 0)], 10, [1, 1, 1]),
    ([(1, 3, 3)], 10, []),
    ([(1, 3, 5)], 10, []),
    ([(1, 3, 0)], 2, [1, 1]),
    ([(1, 3, 0)], 0, []),
    ([(1, 3, 0)], -4, []),
    ([(1, 0, 0)], 4, []),
    ([(1, 4, 0), (2, 2, 0)], 3, [1, 2, 1]),
    ([(1, 100, 99), (2, 1, 0)], 1, [2]),
    ([(1, 10, 5), (2, 10, 0)], 4, [2, 2, 2, 2]),
])
def test_plan_launches(needs: list[tuple[int, int, int]], room: int, plan: list[int]) -> None:
    assert rules.plan_launches([rules.Need(*need) for need in needs], room) == plan


NEEDS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 40)), max_size=6).map(
    lambda pairs: [rules.Need(number, wanted, present) for number, (wanted, present) in enumerate(pairs)])


@given(needs=NEEDS, room=st.integers(-5, 100))
def test_a_plan_fills_the_room_or_the_pool_and_is_never_above_either(needs: list[Any], room: int) -> None:
    plan = rules.plan_launches(needs, room)

    missing = sum(max(0, need.min_ready - need.present) for need in needs)
    planned = Counter(plan)
    assert len(plan) == max(0, min(room, missing))
    assert all(planned[need.image_id] <= max(0, need.min_ready - need.present) for need in needs)


@given(needs=NEEDS, room=st.integers(1, 100))
def test_no_image_is_starved(needs: list[Any], room: int) -> None:
    """No image type got its last machine while its share was above that of one that still lacks machines."""
    planned = Counter(rules.plan_launches(needs, room))

    share = {need.image_id: (need.present + planned[need.image_id]) / need.min_ready
             for need in needs if need.min_ready}
    short = [need for need in needs if need.present + planned[need.image_id] < need.min_ready]
    for poor in short:
        for rich in needs:
            if planned[rich.image_id]:
                assert share[rich.image_id] - 1 / rich.min_ready <= share[poor.image_id] + 1e-9


@pytest.mark.parametrize(("status", "left"), [("available", False), ("error", False), ("in-use", True),
                                              ("attaching", True), ("creating", True), ("deleting", True)])
def test_a_volume_that_a_server_may_have_is_no_leak(status: str, left: bool) -> None:
    volume = nova.Volume("v", "n", status, {}, 7, None)
    assert (rules.leaked_volumes([volume], {}, set()) == []) is left


@pytest.mark.parametrize(("state", "left"), [("BUILDING", True), ("HOLD", True), ("READY", False), ("USED", False),
                                             ("ERROR", False), ("DELETE", False), (None, False)])
def test_the_volume_of_a_machine_that_boots_is_no_leak(state: str | None, left: bool) -> None:
    volume = nova.Volume("v", "n", "available", {}, 7, None)
    assert (rules.leaked_volumes([volume], {7: state} if state else {}, set()) == []) is left


@pytest.mark.parametrize(("snapshots", "left"), [({3}, True), (set(), False)])
def test_the_volume_that_a_snapshot_was_made_of_stays_with_it(snapshots: set[int], left: bool) -> None:
    volume = nova.Volume("v", "n", "available", {}, None, 3)
    assert (rules.leaked_volumes([volume], {}, snapshots) == []) is left


@pytest.mark.parametrize(("status", "machines", "servers", "stuck"), [
    ("in-use", {}, set(), True), ("reserved", {}, set(), True), ("detaching", {}, {"other"}, True),
    ("in-use", {7}, set(), False), ("in-use", {}, {"server"}, False), ("deleting", {}, set(), False),
    ("available", {}, set(), False)])
def test_a_volume_in_use_by_no_server_that_is_there_is_told(
        status: str, machines: set[int], servers: set[str], stuck: bool) -> None:
    volume = nova.Volume("v", "n", status, {}, 7, None, () if status == "reserved" else ("server",))
    assert rules.stuck_volumes([volume], machines, set(), servers, 0.0) == [volume] * stuck


@pytest.mark.parametrize("status", ["creating", "deleting", "awaiting-transfer", "backing-up", "maintenance", "other"])
def test_a_volume_of_nobody_that_stays_in_a_status_in_which_it_cannot_be_deleted_is_told(status: str) -> None:
    volume = nova.Volume("v", "n", status, {}, 7, None, changed=100.0)
    told = [rules.stuck_volumes([volume], machines, set(), set(), now) for machines, now in
            ((set(), 99.0 + rules.GRACE), (set(), 100.0 + rules.GRACE), ({7}, 100.0 + rules.GRACE))]
    assert told == [[], [volume], []]


# --- all of them ---


def rows(*machines: Any, snapshots: tuple[Any, ...] = (), known: int = 99, **values: Any) -> decisions.Rows:
    """Return rows of vm.db: machines of provider `one`, whose image type `noble` has min-ready 2."""
    columns = {"name": "one", "boot_timeout": 600, "max_servers": 4}
    settings = {name: values.pop(name) for name in columns.keys() & values.keys()}
    image = {"id": 1, "name": "noble", "active": True, "min_ready": 2} | values.pop("image", {})
    return decisions.Rows(vmdatabase.Provider(**(columns | settings)), machines, {1: vmdatabase.BaseImage(**image)},
                          {row.id: row for row in snapshots}, machine_ids=IDS(known), snapshot_ids=IDS(known), **values)


def snapshot(number: int, state: str = "READY", **columns: Any) -> Any:
    return vmdatabase.SnapshotImage(**({"id": number, "base_image": vmdatabase.BaseImage(id=1), "name": f"s{number}",
                                        "state": state, "external_id": f"i{number}"} | columns))


def words(decided: Any) -> list[str]:
    return [action.words for action in decided]


def moves(of: decisions.Rows, seen: Any, all_servers: bool = False, **unclaimed: str) -> list[str]:
    return words(decisions.moves(of, seen, NOW, {int(name[1:]): why for name, why in unclaimed.items()}, all_servers))


def used(number: int, hours: int) -> Any:
    return machine("USED", hours * HOUR, id=number, name=f"m{number}")


ENDED = (used(1, 2), used(2, 3), used(3, 1))


@pytest.mark.parametrize(("of", "moved"), [
    (rows(*ENDED, ended={1, 2, 3}, max_servers=5), []),
    (rows(*ENDED, ended={1, 2, 3}), ["m2"]),
    (rows(*ENDED, ended={1, 3}), ["m1"]),
    (rows(*ENDED, ended={1, 2, 3}, max_servers=3), ["m2", "m1"]),
    (rows(*ENDED, machine("READY", id=4, name="m4"), ended={1, 2, 3}), ["m2"]),
    (rows(*ENDED, machine("DELETE", id=4, name="m4"), ended={1, 2, 3}), ["m2"]),  # m4 makes room soon
    (rows(*ENDED, machine("HOLD", id=4, name="m4"), ended={1, 2, 3}, max_servers=5), ["m2"]),
    (rows(*ENDED, snapshots=(snapshot(5, "BUILDING"),), ended={1, 2, 3}, max_servers=5), ["m2"]),
    (rows(*ENDED, image={"active": False, "min_ready": 0}, ended={1, 2, 3}, max_servers=3), []),
    (rows(*ENDED, image={"min_ready": 0}, ended={1, 2, 3}, max_servers=3, lacking={1: 2}), ["m2", "m1"]),  # for a label
    (rows(*ENDED, ended={1, 2, 3}, max_servers=3, lacking={1: 0}), []),
])
def test_finished_machines_go_early_only_if_the_pool_has_no_room_to_be_full(
        of: decisions.Rows, moved: list[str]) -> None:
    why = "its build has ended and the provider is full"
    assert moves(of, sight(nodes={})) == [f"move {name} USED -> DELETE: {why}" for name in moved]


def test_each_machine_moves_by_the_rules_of_its_image_type_and_of_what_is_known_of_it() -> None:
    of = rows(machine("READY", 6 * HOUR, id=1, name="m1"), machine("READY", 4 * HOUR, id=2, name="m2"), used(3, 1),
              machine("BUILDING", 1500, id=4, name="m4"), image={"max_ready_age": 5}, max_servers=99)
    seen = sight(nodes={})
    assert moves(of, seen, m3="no build has taken it") == [
        "move m1 READY -> DELETE: ready for more than 5 hours (max-ready-age)",
        "move m3 USED -> DELETE: used for 60 min, but nobody has it: no build has taken it",
        "move m4 BUILDING -> ERROR: still BUILDING after 1500 s"]


@pytest.mark.parametrize(("seen", "gone"), [
    (sight(nodes={}), ["READY", "USED", "BUILDING"]), (BUILDS, ["BUILDING"]), (NOT_KNOWN, ["BUILDING"])])
def test_all_servers_spares_the_held_and_what_builds_or_may(seen: Any, gone: list[str]) -> None:
    states = ("READY", "USED", "BUILDING", "HOLD", "ERROR", "DELETE")
    of = rows(*(machine(state, id=number, name=state, external_id=state,
                        jenkins_name=None if state == "BUILDING" else "node") for number, state in enumerate(states)))
    assert moves(of, seen, True) == [f"move {state} {state} -> DELETE: --all-servers" for state in gone]


@pytest.mark.parametrize(("age", "image", "seen", "all_servers", "why"), [
    (6 * HOUR, {}, OFFLINE, False, "ready for more than 5 hours (max-ready-age)"),
    (0, {"active": False}, OFFLINE, False, "its image is no longer in the providers file"),
    (0, {"subnodes": 1}, OFFLINE, False, "it has 0 subnodes, and the providers file says 1"),
    (0, {}, OFFLINE, True, "--all-servers"),
    (0, {}, replace(OFFLINE, servers={"server": server(status="RESCUE")}), False, "the server is RESCUE")])
def test_a_ready_machine_whose_node_a_person_took_offline_is_left_and_told_whatever_would_end_it(
        age: int, image: dict[str, Any], seen: Any, all_servers: bool, why: str) -> None:
    of = rows(machine("READY", age, name="server"), image={"max_ready_age": 5, **image})
    assert decisions.moves(of, seen, NOW, {}, all_servers) == [actions.Leave(
        f"server: its node is offline in Jenkins: anna looks; so it is left, although it should go: {why}")]


@pytest.mark.parametrize(("seen", "target"), [
    (replace(OFFLINE, servers={}, gone=frozenset({"server"})), "ERROR"),
    (replace(OFFLINE, servers={}, disowned=DISOWNED.disowned), "DELETE"), (SPENT, "DELETE")])
def test_a_person_keeps_no_machine_whose_server_is_gone_or_taken_away_and_no_script_does(
        seen: Any, target: str) -> None:
    move: Any = decisions.moves(rows(machine("READY", name="server")), seen, NOW, {}, False)[0]
    assert move.target == target


@pytest.mark.parametrize(("one", "seen", "columns", "loss"), [
    (machine("READY"), sight(server(), nodes={"node": LAUNCH_FAILED}, dead=("node",)),
     {"error": "its Jenkins node died (its agent never came: no Java; log: URL/log)"}, "gone LaunchFailed"),
    (machine("READY"), sight(server(status="ERROR"), nodes={"node": LAUNCH_FAILED}, dead=("node",)),
     {"error": "the server is ERROR"}, ""),  # no image is to blame for that
    (machine("USED", 24 * HOUR), ALIVE, {}, ""),
    (machine("BUILDING", name="server", jenkins_name=None), sight(server(), nodes={"server": node()}),
     {"error": "it has a node already, of which vm.db knows nothing", "jenkins_name": "node"}, "")])
def test_a_move_tells_all_that_is_written_with_it(
        one: Any, seen: Any, columns: dict[str, str], loss: str) -> None:
    move: Any = decisions.moves(rows(one), seen, NOW, {}, False)[0]
    assert (move.columns, move.loss) == (columns, loss)


def build_row(**columns: Any) -> Any:
    return vmdatabase.Result(**({"jenkins_job_name": "gate", "jenkins_build_number": 7} | columns))


@pytest.mark.parametrize(("last", "build", "why"), [
    (None, None, "no build has taken it"),
    (build_row(jenkins_job_name=None), None, "no build has taken it"),
    (build_row(jenkins_build_number=None), None, "no build has taken it"),
    (build_row(jenkins_job_name=None, by_person=True), None, ""),
    (build_row(result="FAILURE"), None, ""),
    (build_row(), None, "Jenkins knows no gate #7"),
    (build_row(), Build("node", None, ()), ""),
    (build_row(), Build("other", None, ()), "gate #7 did not run there"),
    (build_row(), sight_of.UNTOLD, "")])
def test_a_machine_is_nobodys_only_if_jenkins_says_so(last: Any, build: Build | None, why: str) -> None:
    assert decisions.why_unclaimed(machine("USED"), last, build, True) == why


@pytest.mark.parametrize(("opened", "build", "why"), [
    (None, None, ""),
    (build_row(jenkins_job_name=None, by_person=True), None, "a person was given it"),
    (build_row(), None, ""),
    (build_row(), Build("node", "SUCCESS", ()), ""),
    (build_row(), Build("other", None, ()), ""),
    (build_row(), Build("node", None, ()), "Jenkins does not say that gate #7 has ended"),  # its node was renamed
    (build_row(), sight_of.UNTOLD, "Jenkins does not say that gate #7 has ended")])
def test_all_servers_leaves_what_somebody_has_without_a_build_on_its_node(
        opened: Any, build: Build | None, why: str) -> None:
    one = machine("USED", external_id="id", name="m")
    assert decisions.why_claimed(one, opened, build) == why
    moved = decisions.moves(rows(one), sight(server(), nodes={}), NOW, {}, True, {one.id: why} if why else {})
    assert words(moved) == [f"m: {why}; so it is left, although it should go: --all-servers; if it may go all the "
                            "same, hold it and unhold it" if why else "move m USED -> DELETE: --all-servers"]


def test_a_jenkins_without_the_node_may_be_another_one_and_ends_no_build() -> None:
    one = machine("USED", 25 * HOUR - 1)
    other = sight(server(), nodes={})
    assert decisions.why_unclaimed(one, build_row(), None, other.knows_node(one)) == ""
    assert decisions.ended_builds([(one, build_row())], {1: None}, {}, NOW - 300, other) == []


@pytest.mark.parametrize(("one", "seen", "found"), [
    (machine("USED", 900), ALIVE, True), (machine("USED", 899), ALIVE, False), (machine("HOLD", 900), ALIVE, False),
    (machine("USED", 900), BUILDS, False), (machine("USED", 900, jenkins_name=None), NOT_KNOWN, False)])
def test_who_has_a_machine_is_asked_a_while_after_it_was_taken(one: Any, seen: Any, found: bool) -> None:
    assert decisions.doubted(rows(one), seen, NOW) == [one] * found


PASSED = Verdict("passed", None, None, None, 1.0, "URL")


@pytest.mark.parametrize(("age", "build", "end"), [
    (301, None, (None, None)), (299, None, None), (0, sight_of.UNTOLD, None), (0, Build("node", None, ()), None),
    (0, Build("node", "SUCCESS", ()), ("SUCCESS", PASSED)), (0, Build("other", "SUCCESS", ()), None)])
def test_a_build_has_ended_if_jenkins_says_so_or_has_not_known_it_for_minutes(
        age: int, build: Build | None, end: tuple[str | None, Any] | None) -> None:
    one = machine("USED", age)
    found = decisions.ended_builds([(one, build_row())], {1: build}, {1: PASSED}, NOW - 300, ALIVE)
    assert found == ([actions.RecordEnd(one, "gate #7", *end)] if end else [])


def test_a_server_that_somebody_has_gets_a_row_and_no_other_does() -> None:
    servers = [server(f"devstack-{name}", age=OLD, machine=number) for name, number in (
        ("noble-one-7", 7), ("noble-one-8", 8), ("other-one-9", 9), ("noble-one-1", 1))]
    seen = sight(*servers, nodes={}, by_id=dict.fromkeys((7, 9, 1), TAKEN))
    assert words(decisions.adoptions(rows(machine("USED", external_id="x")), seen, NOW)) == [
        "take over devstack-noble-one-7 as USED: in use by gate #7"]


@pytest.mark.parametrize(("one", "seen", "decided"), [
    (machine("DELETE", name="server"), ALIVE, ["delete machine server (DELETE)"]),
    (machine("ERROR", name="server"), ALIVE, ["delete machine server (ERROR)"]),
    (machine("READY", name="server"), ALIVE, []),
    (machine("DELETE", name="server"), NOT_KNOWN, []),
    (machine("DELETE", name="server", jenkins_name=None), NOT_KNOWN, ["delete machine server (DELETE)"]),
    (machine("DELETE", name="m"), ALIVE, [
        "m: its server was renamed to server, so it is left; delete it or take its metadata devstack-gate-pool away"]),
])
def test_a_machine_that_is_over_is_deleted_unless_a_person_renamed_it_or_jenkins_does_not_tell(
        one: Any, seen: Any, decided: list[str]) -> None:
    assert words(decisions.deletions(rows(one), seen, NOW, False)) == decided


@pytest.mark.parametrize(("whole", "server_id", "may_have"), [(True, None, False), (False, None, True)])
def test_a_machine_without_a_servers_id_has_none_only_if_the_list_is_whole(
        whole: bool, server_id: str | None, may_have: bool) -> None:
    seen = sight_of.Sight({}, frozenset(), whole, {}, frozenset())
    one = machine("DELETE", external_id=None)
    assert decisions.deletions(rows(one), seen, NOW, False) == [actions.DeleteMachine(one, server_id, may_have)]


def test_the_server_of_a_row_without_its_id_is_known_by_its_mark() -> None:
    one = machine("ERROR", external_id=None, name="s")
    assert decisions.deletions(rows(one), sight(server("s", machine=1), nodes={}), NOW, False) == [
        actions.DeleteMachine(one, "s", False)]


NEWER = ("servers without a row in vm.db: devstack-noble-one-7; 1 of 1 were made by a newer vm.db than this one, "
         "which looks like a restored vm.db, so all are left; if it was restored, run vmdatabase.py moved, otherwise "
         "reap with --all-servers")


@pytest.mark.parametrize(("name", "found", "known", "all_servers", "decided"), [
    ("devstack-noble-one-7", None, 99, False, ["delete leaked server devstack-noble-one-7 devstack-noble-one-7"]),
    ("devstack-noble-one-7", None, 6, False, [NEWER]),
    ("devstack-noble-one-7", None, 6, True, ["delete leaked server devstack-noble-one-7 devstack-noble-one-7"]),
    ("annas", None, 99, False, ["server annas annas has no row in vm.db and is left: it was renamed or copied by a "
                                "person; its metadata devstack-gate-pool makes it ours"]),
    ("annas", None, 99, True, ["delete leaked server annas annas"]),
    ("devstack-noble-one-7", TAKEN, 99, True, [
        "server devstack-noble-one-7 devstack-noble-one-7 has no row in vm.db and is left: in use by gate #7"]),
])
def test_a_server_without_a_row_goes_unless_somebody_has_it_or_vm_db_may_have_forgotten_it(
        name: str, found: Any, known: int, all_servers: bool, decided: list[str]) -> None:
    seen = sight(server(name, age=OLD, machine=7), nodes={}, by_id={7: found} if found else {})
    assert words(decisions.deletions(rows(known=known), seen, NOW, all_servers)) == decided


def test_many_servers_without_a_row_need_a_persons_word() -> None:
    names = [f"devstack-noble-one-{number}" for number in (1, 2, 3, 4)]
    seen = sight(*(server(name, age=OLD, machine=name[-1]) for name in names), nodes={})
    (left,) = decisions.deletions(rows(), seen, NOW, False)
    assert isinstance(left, actions.Leave)
    assert "these are 4, but only 0 machines have a row" in left.words
    assert len(decisions.deletions(rows(), seen, NOW, True)) == len(names)


@pytest.mark.parametrize("state", ["USED", "HOLD"])
@pytest.mark.parametrize(("found", "retired"), [(node(), True), (node(False), True), (HELD, False)])
def test_a_node_in_service_whose_machine_somebody_has_is_taken_out(state: str, found: Any, retired: bool) -> None:
    one = machine(state)
    assert decisions.retirements(rows(one, machine("READY")), sight(nodes={"node": found})) == [
        actions.RetireNode(one, found)] * retired


@pytest.mark.parametrize(("one", "seen", "marked"), [
    (machine("HOLD", hold_reason="bug 1"), server(), True), (machine("HOLD", hold_reason="bug 1"), held(), False),
    (machine("HOLD", hold_reason="bug 1", hold_until=NOW), held(), True),
    (machine("HOLD", hold_reason="bug 1", ip=None), held(), True),  # it was held while it booted
    (machine("HOLD", hold_reason="bug 1", ip=None), replace(held(), status="BUILD"), False),
    (machine("HOLD", hold_reason="bug 1", external_id=None), held(), False), (machine("USED"), server(), False)])
def test_the_server_of_a_held_machine_is_marked_if_it_does_not_tell_so(one: Any, seen: Any, marked: bool) -> None:
    assert decisions.marks(rows(one), sight(seen)) == [actions.MarkHeld(one, seen)] * marked


@pytest.mark.parametrize(("number", "known", "all_images", "proved", "decided"), [
    (7, 99, False, False, ["delete leaked image"]),
    (7, 6, False, False, []),
    (7, 6, True, True, ["delete leaked image"]),
    (7, 6, False, True, ["take over image"]),
    (5, 6, False, True, ["delete leaked image"]),  # its row has another image
])
def test_a_good_image_without_a_row_gets_one_and_others_go_if_vm_db_may_have_known_them(
        number: int, known: int, all_images: bool, proved: bool, decided: list[str]) -> None:
    name = f"devstack-noble-4{nova.TEMPLATE_SUFFIX}"
    of = rows(snapshots=(snapshot(5, name=name),), known=known)
    (found,) = decisions.leaked_images(
        of, [nova.Image("x", name, "active", number, NOW - OLD, proved)], NOW, all_images)
    assert [found.words.partition(f" {name}")[0]] * (not isinstance(found, actions.Leave)) == decided


def test_snapshots_without_their_image_go_first_and_do_not_count_as_current_or_previous() -> None:
    of = rows(snapshots=tuple(snapshot(number) for number in (4, 3, 2, 1)))
    images = [nova.Image(f"i{number}", f"s{number}", "active", number, 0.0, number == 1) for number in (1, 2, 3)]
    assert words(decisions.snapshots(of, images, {"i4"}, NOW, False)) == [
        "mark image s3 as good", "mark image s2 as good", "delete snapshot s4 (READY)", "delete snapshot s1 (READY)"]
    drained = rows(snapshots=(snapshot(2), snapshot(1, "ERROR", keep_until=NOW + 1)), image={"active": False})
    assert decisions.snapshots(drained, images, (), NOW, False) == [actions.DeleteSnapshot(drained.snapshots[2], "i2")]


def test_an_image_whose_id_was_not_saved_is_known_by_its_mark_and_name() -> None:
    failed = snapshot(1, "ERROR", external_id=None)
    images = [nova.Image("i", "s1", "active", 1, 0.0), nova.Image("of a user", "annas", "active", 1, 0.0)]
    of = rows(snapshots=(failed,))
    assert decisions.snapshots(of, images, (), NOW, False) == [actions.DeleteSnapshot(failed, "i")]


def test_what_belongs_to_nothing_goes() -> None:
    addresses = [nova.FloatingIP("1", "10.0.0.1", "gone"), nova.FloatingIP("2", "10.0.0.2", "there"),
                 nova.FloatingIP("3", "10.0.0.3", "", 7), nova.FloatingIP("4", "10.0.0.4", "", 8)]
    seen = sight_of.Sight({}, frozenset(), True, {}, frozenset(), keypairs={"k5": 5, "k6": 6}, floating_ips=addresses,
                          volumes=[nova.Volume("v", "n", "available", {}, 7, None)])
    assert words(decisions.leftovers(rows(), seen, {"there"}, {8}, {6})) == [
        "delete keypair k5", "delete floating IP 10.0.0.1", "delete floating IP 10.0.0.3", "delete volume n v"]


def test_a_node_under_a_name_that_the_pool_does_not_give_is_left_and_told() -> None:
    copy, other = (node()._replace(name=name) for name in ("devstack-noble-one-1-7", "devstack-noble-one-7"))
    seen = replace(sight(nodes={}, by_id={7: copy}), strangers=(copy, other))
    assert words(decisions.stray_nodes(rows(), seen, {other.name}, ["one"], NOW)) == [
        "node devstack-noble-one-1-7 carries our devstack-gate-pool, but its name is not one of our image types and "
        "providers, so it is left; if a person made it, clear its description"]
    leak = server("devstack-noble-one-7", age=OLD, machine=7)
    assert decisions.deletions(rows(), replace(seen, servers={leak.id: leak}), NOW, False) == [
        actions.Delete("leaked server", f"{leak.name} {leak.id}", (leak.id, None))]


@pytest.mark.parametrize(("name", "known", "found", "stray"), [
    ("devstack-noble-one-7", 99, node(), True),
    ("devstack-noble-two-7", 99, node(), False),
    ("devstack-noble-three-7", 99, node(), True),  # a provider that is no more: the first one's reap sees to it
    ("devstack-noble-one-two-7", 99, node(), False),
    ("devstack-noble-two-one-7", 99, node(), True),
    ("devstack-noble-one-7", 6, TAKEN, False),
    ("devstack-noble-one-7", 99, TAKEN, True),
    ("devstack-noble-one-1", 99, node(), False),
])
def test_a_node_without_a_machine_goes_but_not_that_of_another_provider_or_of_a_vm_db_that_is_newer(
        name: str, known: int, found: Any, stray: bool) -> None:
    one = Node(name, "", found.offline, found.temporarily_offline, found.idle, found.cause, found.reason, found.labels,
               "URL")
    seen = sight(nodes={name: one}, by_id={int(name[-1]): one})
    names = {"devstack-noble-one-1"}
    assert words(decisions.stray_nodes(rows(known=known), seen, names, ["one", "two"], NOW)) == [
        f"delete stray node {name}"] * stray
