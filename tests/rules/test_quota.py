"""What is left of a cloud's quotas (cloud/quota.py), and which image types get it (pool/rules.py)."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud import quota
from cloud.rules import Flavor, takes
from pool.allowance import Allowance
from pool.rules import SERVERS, Need, Room, plan_launches, room_for, whole

repeatable = settings(derandomize=True, database=None)
FULL = {"maxTotalInstances": 20, "totalInstancesUsed": 5, "maxTotalCores": 40, "totalCoresUsed": 38,
        "maxTotalRAMSize": -1, "totalRAMUsed": 9000}


def limits(**change: Any) -> dict[str, Any]:
    """Return an answer to GET /limits; None leaves a key out."""
    absolute = {name: value for name, value in {**FULL, **change}.items() if value is not None}
    return {"limits": {"rate": [], "absolute": absolute}}


@pytest.mark.parametrize(("body", "left"), [
    (limits(), {"instances": 15, "cores": 2}),  # -1: no limit
    (limits(totalCoresUsed=50), {"instances": 15, "cores": 0}),
    (limits(maxTotalInstances="20", totalInstancesUsed="5", totalCoresUsed=38.0), {"instances": 15, "cores": 2}),
    (limits(totalInstancesUsed=-3), {"instances": 20, "cores": 2}),  # as old clouds count after failed deletes
    (limits(maxTotalInstances=None, totalCoresUsed=None), {}),
    (limits(maxTotalCores="unlimited", maxTotalInstances=True), {}),
    (limits(maxTotalCores=[40], maxTotalInstances={"limit": 20}), {}),
    (limits(maxTotalCores="nan", totalInstancesUsed="inf"), {}),
    ({"limits": {"absolute": {"maxTotalInstances": 20, "totalInstancesUsed": None, "maxTotalCores": None}}}, {})])
def test_what_is_left_by_the_limits_that_a_cloud_tells(body: dict[str, Any], left: dict[str, int]) -> None:
    assert quota.of_limits(body, quota.COMPUTE) == left


@pytest.mark.parametrize("body", [{}, {"limits": None}, {"limits": {"rate": []}}, {"limits": {"absolute": []}}, [], ""])
def test_an_answer_without_limits_is_none(body: Any) -> None:
    with pytest.raises((ValueError, KeyError, TypeError), match=r"^[^$]*$"):
        quota.of_limits(body, quota.COMPUTE)


@pytest.mark.parametrize(("told", "left"), [
    ({"limit": 10, "used": 4, "reserved": 1}, {"floating IPs": 5}), ({"limit": -1, "used": 4}, {}),
    ({"limit": 3, "used": 4, "reserved": 0}, {"floating IPs": 0}), ({"limit": 10}, {}), (None, {})])
def test_floating_ips_that_are_left(told: Any, left: dict[str, int]) -> None:
    assert quota.of_details({"quota": {"floatingip": told}}) == left


@pytest.mark.parametrize(("wanted", "left", "most", "room"), [
    ({"cores": 4}, {"cores": 13}, 9, Room(3, ["cores"])),
    ({"cores": 4}, {"cores": 13}, 3, Room(3, [])),
    ({"cores": 4, "RAM": 8192}, {"cores": 8, "RAM": 16384}, 9, Room(2, ["cores", "RAM"])),
    ({"cores": 4}, {"instances": 1}, 9, Room(9, [])),
    ({"instances": 1, "cores": 0}, {"instances": 0, "cores": 0}, 2, Room(0, ["instances"]))])
def test_room_and_what_is_short(wanted: dict[str, int], left: dict[str, int], most: int, room: Room) -> None:
    assert room_for(wanted, left, most) == room
    assert str(Room(3, ["cores"])) == "room for 3 more: cores"


def test_what_a_server_takes() -> None:
    flavor = Flavor("1", "large", 8192, 0, 4)
    assert takes(flavor, None, floating_ip=False) == {"instances": 1, "cores": 4, "RAM": 8192}
    assert takes(flavor, 20, floating_ip=True) == {
        "instances": 1, "cores": 4, "RAM": 8192, "volumes": 1, "gigabytes of volumes": 20, "floating IPs": 1}


BIG, SMALL = Need(1, 2, 0, {"cores": 8}), Need(2, 4, 0, {"cores": 1})


@pytest.mark.parametrize(("needs", "left", "plan"), [
    ([BIG, SMALL], {}, [1, 2, 2, 1, 2, 2]),
    ([BIG, SMALL], {"cores": 12}, [1, 2, 2, 2, 2]),  # the second big one does not fit, and gets no room kept
    ([BIG, SMALL], {"cores": 5}, [2, 2, 2, 2]),  # a big one never fits: others of the project have the rest
    ([BIG, replace(SMALL, present=2, held=5)], {"cores": 5}, []),  # it will fit as small ones end, so they wait
    ([BIG, replace(SMALL, held=5)], {"cores": 5}, []),  # also if there is no small one: a big one is next
    ([BIG, replace(SMALL, present=2, held=5, takes={"instances": 1})], {"cores": 5}, [2, 2]),  # which take no cores
    ([BIG, SMALL], {"instances": 0}, [1, 2, 2, 1, 2, 2])])
def test_who_gets_what_is_left(needs: list[Need], left: dict[str, int], plan: list[int]) -> None:
    assert sorted(plan_launches(needs, 99, left)) == sorted(plan)


RESOURCES = ("instances", "cores", "RAM")
TAKES = st.fixed_dictionaries({"instances": st.just(1), "cores": st.integers(1, 9), "RAM": st.integers(1, 9)})
NEEDS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), TAKES, st.integers(0, 3), st.integers(1, 4)),
                 max_size=4).map(
    lambda rows: [Need(number, ready, present, amounts, present + more, size)
                  for number, (ready, present, amounts, more, size) in enumerate(rows)])
LEFT = st.dictionaries(st.sampled_from(RESOURCES), st.integers(0, 40))


def taken(needs: list[Need], plan: list[int]) -> Counter[str]:
    """Return what the machines of a plan take together, with their subnodes; servers count, too."""
    found: Counter[str] = Counter()
    for image_id in plan:
        found.update(next(whole(need) for need in needs if need.image_id == image_id))
    return found


@given(needs=NEEDS, room=st.integers(-2, 30), left=LEFT)
@repeatable
def test_a_plan_takes_no_more_than_is_left_and_leaves_nothing_that_nobody_waits_for(
        needs: list[Need], room: int, left: dict[str, int]) -> None:
    plan = plan_launches(needs, room, left)
    used, counts = taken(needs, plan), Counter(plan)
    rest = {name: number - used[name] for name, number in {**left, SERVERS: max(0, room)}.items()}

    assert all(number >= 0 for number in rest.values())
    short = [need for need in needs if need.present + counts[need.image_id] < need.min_ready]
    fits = [need for need in short if room_for(whole(need), rest, 1).count]
    empty = [need for need in short if not need.present + counts[need.image_id] and need not in fits]
    assert not fits or empty


@given(needs=NEEDS, room=st.integers(0, 30), left=LEFT, first=st.integers(0, 30), last=st.integers(0, 4))
@repeatable
def test_a_plan_that_is_begun_and_then_made_anew_is_the_same_plan(
        needs: list[Need], room: int, left: dict[str, int], first: int, last: int) -> None:
    at_once = plan_launches(needs, room, left, last)
    begun = at_once[:first]
    used, more = taken(needs, begun), Counter(begun)
    then = [replace(need, present=need.present + more[need.image_id], held=need.held + more[need.image_id])
            for need in needs]

    rest = {name: left[name] - used[name] for name in left}

    assert begun + plan_launches(then, room - used[SERVERS], rest, [last, *begun][-1]) == at_once


@given(sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 6)), min_size=1, max_size=4),
       cores=st.integers(1, 30), others=st.integers(0, 10))
@repeatable
def test_whoever_fits_gets_a_machine_in_time_as_machines_end(
        sizes: list[tuple[int, int]], cores: int, others: int) -> None:
    """The oldest machine ends in each round; others of the project keep what they have."""
    mine = max(0, cores - others)
    needs = [Need(number, ready, 0, {"cores": size}) for number, (size, ready) in enumerate(sizes)]
    alive: list[int] = []
    served: list[int] = []
    for _ in range(200):
        counts = Counter(alive)
        now = [replace(need, present=counts[need.image_id], held=counts[need.image_id]) for need in needs]
        plan = plan_launches(now, 99, {"cores": mine - taken(needs, alive)["cores"]}, served[-1] if served else None)
        served += plan
        alive += plan
        assert taken(needs, alive)["cores"] <= mine
        alive = alive[1:]
    assert set(served) == {need.image_id for need in needs if need.takes["cores"] <= mine}


def test_what_a_run_asks_for_is_counted_and_what_is_refused_is_given_back() -> None:
    allowance = Allowance()
    needs = [Need(1, 4, 1), Need(2, 2, 0)]
    assert allowance.plan(needs, 9) == ([2, 1, 2, 1, 1], {})  # no quota is known yet
    allowance.learn(1, {"instances": 1, "cores": 4})
    allowance.learn(2, {"instances": 1, "cores": 2})
    allowance.know({"cores": 9})
    assert allowance.plan(needs, 9) == ([2, 1, 2], {1: Room(1, ["cores"])})
    assert allowance.plan(needs, 3) == ([2, 1, 2], {})  # not the quota, but max-servers
    for image_id in (2, 1, 2):
        allowance.spend(image_id)
    assert (allowance.rest, allowance.room(1, 5)) == ({"cores": 1}, Room(0, ["cores"]))
    allowance.give_back(1)
    assert (allowance.rest, allowance.room(1, 5)) == ({"cores": 5}, Room(1, ["cores"]))
    assert allowance.room(1, 5, ["cores"]) == Room(5, [])


def test_an_image_type_that_leaves_something_to_another_is_told_what() -> None:
    allowance = Allowance()
    allowance.learn(1, {"cores": 8})
    allowance.learn(2, {"cores": 1})
    allowance.know({"cores": 5})
    assert allowance.plan([Need(1, 1, 0), Need(2, 8, 3, held=5)], 9) == ([], {1: Room(0, ["cores"]),
                                                                             2: Room(0, ["cores"])})
