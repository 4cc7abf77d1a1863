"""Groups of machines: what vm.db does with subnodes, what they know of each other, what reap decides about them."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import nodessh
import vmdatabase
from gateprocess import ConfigError
from pool import actions, decisions, demand, groups, labels, rules
from pool.allowance import Allowance
from pool.decisions import Rows
from pool.groups import Group, Place
from pool.migrations import MIGRATIONS
from pool.rules import Need, Room, plan_launches
from status import facts, sections
from tests.rules.test_reap_decisions import HOUR, NOW, machine, node, server, sight
from vmdatabase import BUILDING, DELETE, ERROR, HOLD, READY, USED, BaseImage, Event, Machine, Provider

OLD_PROVIDER = ("INSERT INTO provider (name, cloud, max_servers, boot_timeout, max_concurrency, networks, "
                "floating_ips, address, ssh_port, security_groups, availability_zones) "
                "VALUES ('one', 'c', 9, 9, 9, '[]', '', '', 22, '[]', '[]')")
OLD_IMAGE = ("INSERT INTO base_image (provider_id, name, external_id, min_ready, min_ram) "
             "VALUES (1, 'noble', 'x', 1, 1)")


@pytest.fixture
def vm_db(place: Path | str) -> Iterator[None]:
    with vmdatabase.opened(place):
        vmdatabase.database.execute_sql(OLD_PROVIDER)
        vmdatabase.database.execute_sql(OLD_IMAGE)
        yield


def row(state: str, lead: int | None = None, **columns: Any) -> int:
    """Add the row of a machine, or of a subnode of `lead`; return its id."""
    made = Machine.create(base_image=1, state=state, state_time=1, lead_id=lead, **columns)
    vmdatabase.set_columns(made, name=f"devstack-noble-one-{made.id}")
    return int(made.id)


def states() -> dict[int, str]:
    return {one.id: one.state for one in Machine.select()}


# vm.db


@pytest.mark.parametrize(("source", "target", "columns"), [
    (BUILDING, READY, {}), (READY, USED, {}), (USED, HOLD, {"hold_reason": "bug 7", "hold_until": 99}),
    (HOLD, DELETE, {}), (READY, ERROR, {"error": "dead"}), (ERROR, DELETE, {})])
def test_subnodes_move_with_their_lead_in_its_transaction(
        vm_db: None, source: str, target: str, columns: dict[str, Any]) -> None:
    lead = row(source)
    members = [row(source, lead), row(source, lead)]
    other = row(source, row(source))
    failed = row(ERROR if source != ERROR else DELETE, lead)

    assert vmdatabase.move(Machine.get_by_id(lead), source, target, **columns)

    found = states()
    assert [found[one] for one in (lead, *members, other)] == [target, target, target, source]
    assert found[failed] in (ERROR, DELETE)
    member = Machine.get_by_id(members[0])
    assert {name: getattr(member, name) for name in columns} == columns
    assert member.state_time == Machine.get_by_id(lead).state_time
    assert member.state_reason == f"with devstack-noble-one-{lead}"
    assert [(one.from_state, one.to_state, one.lead_id) for one in Event.select().where(
        (Event.machine_id == members[0]) & Event.from_state.is_null(False))] == [(source, target, lead)]


def test_a_person_at_a_prompt_moves_a_group_as_well(vm_db: None) -> None:
    lead = row(USED)
    member = row(USED, lead)
    vmdatabase.database.execute_sql(f"UPDATE machine SET state = 'DELETE' WHERE id = {lead}")
    assert states() == {lead: DELETE, member: DELETE}


def test_subnodes_whose_lead_has_no_row_any_more_are_to_go(vm_db: None) -> None:
    lead = row(BUILDING)
    member, failed = row(BUILDING, lead), row(ERROR, lead)
    Machine.delete().where(Machine.id == lead).execute()
    assert states() == {member: DELETE, failed: DELETE}
    assert Machine.get_by_id(member).state_reason == f"devstack-noble-one-{lead} is gone"


def test_subnodes_are_servers_but_no_machines_that_a_build_could_have(vm_db: None) -> None:
    BaseImage.update(subnodes=1).execute()
    lead = row(READY)
    row(READY, lead)
    row(BUILDING, row(BUILDING))
    provider = Provider.get_by_id(1)
    run = vmdatabase.database.execute_sql

    assert vmdatabase.count_machines(provider) == {(1, READY): 1, (1, BUILDING): 1}
    assert vmdatabase.count_servers(provider) == {(1, READY): 2, (1, BUILDING): 2}
    assert vmdatabase.count_rows(provider) == 4
    assert [one.id for one in vmdatabase.ready_machines(provider)] == [lead]
    assert vmdatabase.labels_of_nodes("ci-") == {
        "devstack-noble-one-1": "ci-devstack-noble", "devstack-noble-one-3": "ci-devstack-noble"}
    assert run("SELECT ready, building, subnodes FROM pool").fetchall() == [(1, 1, 1)]
    assert run("SELECT name, lead FROM node").fetchall() == [
        ("devstack-noble-one-1", None), ("devstack-noble-one-2", "devstack-noble-one-1"),
        ("devstack-noble-one-3", None), ("devstack-noble-one-4", "devstack-noble-one-3")]
    assert labels.standing_of(BaseImage.get_by_id(1)) == demand.Standing("one", 0, 1, 1, 4, 9, gives=False, size=2)


def test_what_subnodes_do_is_counted_as_what_it_is(vm_db: None) -> None:
    lead = row(BUILDING)
    row(BUILDING, lead)
    vmdatabase.move(Machine.get_by_id(lead), BUILDING, READY)
    counts = vmdatabase.database.execute_sql("SELECT what, key, count FROM tally WHERE what != 'ready'").fetchall()
    assert sorted(counts) == [("move", ">BUILDING", 1), ("move", "BUILDING>READY", 1),
                              ("subnode", ">BUILDING", 1), ("subnode", "BUILDING>READY", 1)]
    assert vmdatabase.database.execute_sql("SELECT sum(count) FROM tally WHERE what = 'ready'").fetchall() == [(1,)]


def test_the_name_of_a_subnode_leads_to_its_machine(vm_db: None) -> None:
    lead = row(USED)
    row(USED, lead)
    row(USED, 77)
    with pytest.raises(ConfigError, match=r"-2: is a subnode of devstack-noble-one-1; name that one$"):
        vmdatabase.machine_named("devstack-noble-one-2")
    with pytest.raises(ConfigError, match=r"-3: is a subnode of a machine that is gone; reap deletes it$"):
        vmdatabase.machine_named("devstack-noble-one-3")


@pytest.mark.file
def test_a_vm_db_of_schema_7_goes_on_with_its_machines(tmp_path: Path) -> None:
    path = tmp_path / "vm.db"
    with vmdatabase.opened(path, MIGRATIONS[:7]):
        run = vmdatabase.database.execute_sql
        run(OLD_PROVIDER)
        run(OLD_IMAGE)
        for state in (BUILDING, READY, USED, HOLD):
            run("INSERT INTO machine (base_image_id, name, state, state_time) VALUES (1, ?, ?, 1)", (state, state))
    with vmdatabase.opened(path):
        run = vmdatabase.database.execute_sql
        assert vmdatabase.count_machines(Provider.get_by_id(1)) == {
            (1, state): 1 for state in (BUILDING, READY, USED, HOLD)}
        assert not BaseImage.get_by_id(1).subnodes
        for lead, (source, target) in enumerate([(BUILDING, READY), (READY, USED), (USED, HOLD), (HOLD, DELETE)], 1):
            row(source, lead)
            assert vmdatabase.move(Machine.get_by_id(lead), source, target)
        assert list(states().values()) == [READY, USED, HOLD, DELETE] * 2
        moved = run("SELECT node_name, to_state FROM event WHERE from_state IS NOT NULL AND lead_id IS NULL "
                    "ORDER BY id")
        assert moved.fetchall() == [(BUILDING, READY), (READY, USED), (USED, HOLD), (HOLD, DELETE)]


def test_the_status_page_tells_subnodes_apart_from_machines(vm_db: None) -> None:
    BaseImage.update(subnodes=2).execute()
    lead = row(BUILDING)
    members = [row(BUILDING, lead), row(BUILDING, lead)]
    vmdatabase.move(Machine.get_by_id(members[0]), BUILDING, ERROR, error="no disk")
    vmdatabase.set_columns(Machine.get_by_id(members[0]), delete_time=1)
    vmdatabase.move(Machine.get_by_id(lead), BUILDING, READY)

    read = facts.Facts(**facts.read(0, vmdatabase.now()))

    assert [(one.name, one.state) for one in read.machines] == [("devstack-noble-one-1", READY)]
    assert [one.state for one in read.subnodes] == [ERROR, READY]
    assert [(one.source, one.target) for one in read.events] == [(None, BUILDING), (BUILDING, READY)]
    (shown,) = sections.pool(read)
    assert {name: shown[name] for name in ("ready", "error", "subnodes", "room")} == {
        "ready": 1, "error": 0, "subnodes": 2, "room": 6}
    assert [one["kind"] for one in sections.attention(read) if "stuck" in one["kind"]] == ["stuck deletes"]


# How many


@pytest.mark.parametrize(("needs", "room", "plan"), [
    ([Need(1, 2, 0, size=3)], 6, [1, 1]),
    ([Need(1, 2, 0, size=3)], 5, [1]),  # a group is asked for as a whole or not at all
    ([Need(1, 2, 0, size=3)], 2, []),
    ([Need(1, 2, 0, size=3), Need(2, 4, 0)], 7, [1, 2, 2, 2, 2]),
    ([Need(1, 2, 0, size=3), Need(2, 4, 0)], 8, [1, 1, 2, 2]),
    ([Need(1, 2, 0, size=3), Need(2, 4, 2, held=2)], 1, []),  # room is kept for the group, which will fit in time
    ([Need(1, 2, 0, size=3), Need(2, 4, 2, held=1)], 1, [2]),  # no room is kept: the group would never fit
    ([Need(1, 2, 1, size=3), Need(2, 4, 2)], 1, [2])])
def test_a_plan_counts_servers(needs: list[Need], room: int, plan: list[int]) -> None:
    assert sorted(plan_launches(needs, room)) == plan


def test_quotas_are_those_of_all_servers_of_a_group() -> None:
    allowance = Allowance()
    allowance.learn(1, {"cores": 4})
    allowance.know({"cores": 30})
    assert allowance.plan([Need(1, 4, 0, size=3)], 99) == ([1, 1], {1: Room(2, ["cores"])})
    assert allowance.plan([Need(1, 4, 0, size=3)], 5) == ([1], {})  # not the quota, but max-servers
    assert allowance.room(1, 9, size=3) == Room(2, ["cores"])


def test_room_is_made_of_whole_groups() -> None:
    used = [machine(USED, age, id=age) for age in (1, 2, 3)]
    assert [one.machine.id for one in rules.make_room(used, 4, 0, {1: 3, 2: 3, 3: 3})] == [3, 2]
    assert [one.machine.id for one in rules.make_room(used, 3, 1, {3: 3})] == [3]


def test_an_offer_is_one_of_machines() -> None:
    standing = demand.Standing("one", 0, 1, 0, 4, 12, size=3)
    assert demand.offer_of(standing) == demand.Offer("one", 0, 1, room=2, capacity=4)


# A group on its way


def login(address: str, port: int = 22) -> nodessh.Login:
    return nodessh.Login(address, port, "jenkins", Path("key"), f"ssh-ed25519 {address}")


def fixed(*addresses: str) -> dict[str, list[dict[str, Any]]]:
    return {"net": [{"version": 4, "addr": one, "OS-EXT-IPS:type": "fixed"} for one in addresses]}


@pytest.mark.parametrize(("addresses", "reached", "private", "public"), [
    (fixed("10.0.0.4"), "10.0.0.4", "10.0.0.4", None),
    (fixed("10.0.0.4"), "203.0.113.9", "10.0.0.4", "203.0.113.9"),  # a floating IP that the list does not show yet
    ({"net": [*fixed("10.0.0.4")["net"], {"version": 4, "addr": "198.51.100.2", "OS-EXT-IPS:type": "floating"}]},
     "198.51.100.2", "10.0.0.4", "198.51.100.2"),
    (fixed("8.8.8.8"), "8.8.8.8", "8.8.8.8", "8.8.8.8"),
    ({}, "2001:db8::1", None, "2001:db8::1")])
def test_where_a_machine_of_a_group_is(
        addresses: dict[str, Any], reached: str, private: str | None, public: str | None) -> None:
    seen: Any = SimpleNamespace(id="s2", addresses=addresses, lead_id=1)
    place = groups.place_of(Machine(id=2, name="b", lead_id=1), seen, login(reached))
    assert (place.role, place.private, place.public, place.lead_id) == ("subnode", private, public, 1)


def test_what_a_lead_knows_of_its_subnodes() -> None:
    places = [Place("a", "primary", "10.0.0.1", None, login("10.0.0.1")),
              Place("b", "subnode", "10.0.0.2", "198.51.100.2", login("198.51.100.2", 2222)),
              Place("c", "subnode", None, "198.51.100.3", login("198.51.100.3"))]
    assert groups.nodes_text(places) == ("a primary 10.0.0.1 -\nb subnode 10.0.0.2 198.51.100.2\n"
                                         "c subnode - 198.51.100.3\n")
    assert groups.known_hosts(places) == ("[b]:2222,[10.0.0.2]:2222,[198.51.100.2]:2222 ssh-ed25519 198.51.100.2\n"
                                          "c,198.51.100.3 ssh-ed25519 198.51.100.3\n")
    assert groups.ssh_config(places).splitlines()[1:4] == [
        "Host b 10.0.0.2 198.51.100.2", "    HostName 10.0.0.2", "    Port 2222"]


def test_each_group_has_keys_of_its_own_which_are_not_shown() -> None:
    one, other = Group(1, 2), Group(2, 2)
    assert one.keys is one.keys
    assert one.keys.private != other.keys.private
    assert one.keys.private not in repr(one.keys)


def test_a_group_is_whole_when_all_have_passed_the_ssh_test() -> None:
    group = Group(1, 2)
    place: Any = SimpleNamespace(name="x")
    for number in (1, 2, 3):
        group.expect(number, 100.0)
    for number in (1, 3):
        group.let_in(number, place)
    assert (group.is_whole, group.missing) == (False, 0)
    group.lose(2)
    assert (group.is_whole, group.missing) == (False, 1)
    group.expect(4, float("inf"), replaces=True)
    assert (group.is_whole, group.missing) == (False, 0)
    group.let_in(4, place)
    assert group.is_whole


def test_marks_that_name_another_lead_are_set_anew() -> None:
    group = Group(2, 2)
    for number, role, lead in ((2, "primary", 1), (3, "subnode", 1), (4, "subnode", 2)):
        group.expect(number, 9.0)
        group.let_in(number, Place("x", role, None, None, login("10.0.0.1"), f"s{number}", lead))
    assert group.marks_to_set() == [("s2", None), ("s3", 2)]


def test_what_replaces_a_subnode_has_no_more_time_than_the_group_had() -> None:
    group = Group(1, 1)
    group.expect(1, float("inf"))
    assert group.deadline == float("inf")  # while the first ones are being asked for
    group.expect(2, 100.0)
    assert (group.end_of(1, 90.0), group.deadline) == (90.0, 100.0)
    group.expect(3, float("inf"), replaces=True)
    assert (group.end_of(3, 500.0), group.end_of(3, 50.0), group.deadline) == (100.0, 50.0, 100.0)


# What reap decides


def members_of_group(state: str, age: int = 0) -> list[Any]:
    """Return a lead with two subnodes: ids 1 to 3, servers s1 to s3."""
    lead = machine(state, age, external_id="s1", name="s1")
    return [lead, *(machine(state, age, id=number, name=f"s{number}", external_id=f"s{number}", jenkins_name=None,
                            lead_id=1) for number in (2, 3))]


def rows_of(machines: list[Any], subnodes: int = 2, **columns: Any) -> Rows:
    image: Any = SimpleNamespace(id=1, name="noble", min_ready=0, active=True, max_ready_age=None, subnodes=subnodes)
    provider: Any = SimpleNamespace(id=1, name="one", boot_timeout=900, max_servers=99)
    return Rows(provider, machines, {1: image}, {}, **columns)


def moved(of: Rows, seen: Any, all_servers: bool = False) -> list[Any]:
    return [*decisions.moves(of, seen, NOW, {}, all_servers)]


SERVERS = [server(f"s{number}") for number in (1, 2, 3)]
IDLE, BUSY = {"node": node()}, {"node": node(idle=False)}


@pytest.mark.parametrize(("state", "seen", "subnodes", "moves"), [
    (READY, sight(*SERVERS, nodes=IDLE), 2, []),
    (USED, sight(*SERVERS, nodes=BUSY), 2, []),
    (USED, sight(*SERVERS[:2], gone=("s3",), nodes=BUSY), 2, []),  # its build finds out
    (USED, sight(*SERVERS[:2], gone=("s3",), nodes=IDLE), 2, [(3, DELETE, "the server is gone")]),
    (USED, sight(SERVERS[1], gone=("s1", "s3"), nodes=IDLE), 2, [(1, DELETE, "the server is gone")]),
    (HOLD, sight(*SERVERS[:2], gone=("s3",), nodes=IDLE), 2, []),
    (READY, sight(*SERVERS[:2], gone=("s3",), nodes=IDLE), 2, [(1, ERROR, "its subnode s3: the server is gone")]),
    (READY, sight(*SERVERS[:2], server("s3", "SHUTOFF"), nodes=IDLE), 2,
     [(1, ERROR, "its subnode s3: the server is SHUTOFF")]),
    (READY, sight(*SERVERS[:2], gone=("s3",), nodes=BUSY), 2, []),
    (READY, sight(*SERVERS, nodes=IDLE), 0, [(1, DELETE, "it has 2 subnodes, and the providers file says 0")]),
    (READY, sight(*SERVERS, nodes=IDLE), 3, [(1, DELETE, "it has 2 subnodes, and the providers file says 3")]),
    (READY, sight(*SERVERS, nodes=BUSY), 0, []),
    (USED, sight(*SERVERS, nodes=BUSY), 0, []), (BUILDING, sight(*SERVERS, nodes={}), 0, []),
    (READY, sight(*SERVERS[:2], server("other"), nodes=IDLE), 2, [])])
def test_a_group_is_judged_by_all_of_it_and_moved_by_its_lead(
        state: str, seen: Any, subnodes: int, moves: list[tuple[int, str, str]]) -> None:
    found = moved(rows_of(members_of_group(state), subnodes), seen)
    assert [(one.machine.id, one.target, one.why) for one in found] == moves


def test_used_subnodes_are_nobodys_only_if_their_lead_is() -> None:
    rows = rows_of([*members_of_group(USED, age=3 * HOUR)])
    assert [one.id for one in decisions.doubted(rows, sight(*SERVERS, nodes=IDLE), NOW)] == [1]


def test_a_renamed_server_of_a_subnode_keeps_the_group_for_whoever_did_that() -> None:
    lead, *members = members_of_group(READY)
    members[1].name = "s3-before"
    (move,) = moved(rows_of([lead, *members]), sight(*SERVERS, nodes=IDLE))
    assert (move.machine, move.target) == (lead, HOLD)


@pytest.mark.parametrize(("state", "age"), [(READY, 0), (BUILDING, 0), (USED, 30 * HOUR)])
def test_a_subnode_that_a_person_put_on_hold_by_hand_keeps_its_group(state: str, age: int) -> None:
    lead, *members = members_of_group(state, age)
    members[1].state, members[1].hold_reason, members[1].hold_until = HOLD, "mine", 7
    seen = sight(*SERVERS, nodes={} if state == BUILDING else IDLE)
    (move,) = moved(rows_of([lead, *members]), seen)
    assert (move.machine, move.target, move.why, move.columns) == (
        lead, HOLD, "its subnode s3 is held", {"hold_reason": "mine", "hold_until": 7})


def test_a_machine_that_is_over_does_not_take_a_held_subnode_with_it() -> None:
    lead, *members = members_of_group(DELETE)
    members[1].state = HOLD
    found = decisions.deletions(rows_of([lead, *members]), sight(*SERVERS, nodes=IDLE), NOW, False)
    assert [type(one).__name__ for one in found] == ["Leave", "DeleteMachine"]
    assert found[0].words == ("s1: its subnode s3 was put on HOLD by hand and would be deleted with it; first set "
                              "the subnode to DELETE, or take it out of the pool")


def test_all_servers_is_said_to_leads() -> None:
    found = moved(rows_of(members_of_group(READY)), sight(*SERVERS, nodes=IDLE), True)
    assert [(one.machine.id, one.target) for one in found] == [(1, DELETE)]


@pytest.mark.parametrize(("lead", "member", "why"), [
    (READY, READY, ""), (None, DELETE, ""), (BUILDING, ERROR, ""), (READY, ERROR, ""), (READY, HOLD, ""),
    (None, READY, "the machine that it belongs to is gone"), (None, HOLD, "the machine that it belongs to is gone"),
    (USED, READY, "lead, to which it belongs, is USED"), (DELETE, USED, "lead, to which it belongs, is DELETE")])
def test_a_subnode_without_its_lead_goes(lead: str | None, member: str, why: str) -> None:
    found = groups.strayed(machine(member, lead_id=7), machine(lead, name="lead") if lead else None)
    assert found == why


def deleted(machines: list[Any], seen: Any) -> list[int]:
    return [one.machine.id for one in decisions.deletions(rows_of(machines), seen, NOW, False)
            if isinstance(one, actions.DeleteMachine)]


def test_subnodes_stay_under_a_build_that_runs_on_their_lead() -> None:
    machines = members_of_group(DELETE)
    assert deleted(machines, sight(*SERVERS, nodes=BUSY)) == [1]  # the action leaves its node alone
    assert deleted(machines, sight(*SERVERS, nodes=None)) == []
    assert deleted(machines, sight(*SERVERS, nodes=IDLE)) == [1, 2, 3]


def test_a_subnode_that_failed_goes_though_its_lead_builds() -> None:
    lead, member, failed = members_of_group(USED)
    failed.state = ERROR
    assert deleted([lead, member, failed], sight(*SERVERS, nodes=BUSY)) == [3]


# A restored vm.db


def subnode(number: int) -> Any:
    made = server(f"s{number}", age=HOUR, machine=number, lead=1)
    return type(made)(made.id, f"devstack-noble-one-{number}", made.status, made.fault, made.metadata, {}, made.created)


@pytest.mark.parametrize(("lead", "nodes", "adopted"), [
    (machine(USED, name="lead"), BUSY, (USED, "with lead")),
    (machine(HOLD, name="lead"), IDLE, (HOLD, "with lead")),
    (machine(BUILDING, name="lead", jenkins_name=None), {"lead": node(idle=False)}, (USED, "a build runs there")),
    (machine(READY, name="lead"), IDLE, None),
    (machine(DELETE, name="lead"), IDLE, None)])
def test_a_subnode_that_vm_db_forgot_belongs_to_whoever_has_its_lead(
        lead: Any, nodes: dict[str, Any], adopted: tuple[str, str] | None) -> None:
    rows = rows_of([lead], machine_ids=vmdatabase.KnownIds(9), snapshot_ids=vmdatabase.KnownIds(9))
    seen = sight(server(), subnode(2), nodes=nodes)
    found = [(one.target, one.why) for one in decisions.adoptions(rows, seen, NOW)]
    assert found == ([adopted] if adopted else [])
    going = [one for one in decisions.deletions(rows, seen, NOW, False) if isinstance(one, actions.Delete)]
    assert [one.thing[0] for one in going] == ([] if adopted else ["s2"])


def test_a_group_that_vm_db_forgot_and_a_build_has_gets_its_rows_back() -> None:
    lead = server("s1", age=HOUR, machine=1)
    lead = type(lead)(lead.id, "devstack-noble-one-1", lead.status, lead.fault, lead.metadata, {}, lead.created)
    seen = sight(lead, subnode(2), nodes=BUSY, by_id={1: BUSY["node"]})
    found = decisions.adoptions(rows_of([]), seen, NOW)
    assert [(one.server.id, one.target) for one in found] == [("s1", USED), ("s2", USED)]
