"""pool/demand.py: how many machines of a label are wanted, and how many of them each provider gives."""

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jenkinsnodes import awaited_label, label_that_serves
from pool.demand import (
    EVEN,
    NONE,
    PACK,
    QUEUE,
    Label,
    Offer,
    Standing,
    days_of,
    fits,
    hours_of,
    lacking,
    missing_of,
    offer_of,
    plan,
    shares,
    wanted,
)

BERLIN = ZoneInfo("Europe/Berlin")
WORK = {"days": "mon-fri", "hours": "08:00-18:00", "zone": "Europe/Berlin", "min-ready": 30}
NIGHT = {"days": "fri", "hours": "22:00-06:00", "zone": "Europe/Berlin", "min-ready": 1}
WRONG = "^[^$]*$"  # any message
FRIDAY = datetime(2026, 7, 3, tzinfo=BERLIN)


def offer(name: str, present: int = 0, room: int = 99, capacity: int = 100, priority: int = 0) -> Offer:
    return Offer(name, priority, present, room, capacity)


@pytest.mark.parametrize(("text", "days"), [
    ("mon", {0}), ("mon-fri", {0, 1, 2, 3, 4}), ("sat,sun", {5, 6}), ("fri-mon", {4, 5, 6, 0}), ("Mon, wed", {0, 2}),
    ("sun-sun", {6})])
def test_days(text: str, days: set[int]) -> None:
    assert days_of(text) == days


@pytest.mark.parametrize("text", ["", "monday", "mon-", "mon--fri", "-fri", "mon,,tue"])
def test_no_days(text: str) -> None:
    with pytest.raises(ValueError, match=WRONG):
        days_of(text)


@pytest.mark.parametrize("text", ["", "8-18", "08:00", "08:00-25:00", "08:60-09:00", "08:00 - 09:00"])
def test_no_hours(text: str) -> None:
    with pytest.raises(ValueError, match=WRONG):
        hours_of(text)


@pytest.mark.parametrize(("entry", "hours", "there"), [
    (WORK, 7.99, False), (WORK, 8, True), (WORK, 17.99, True), (WORK, 18, False), (WORK, 24 + 9, False),  # Saturday
    (NIGHT, 21.9, False), (NIGHT, 22, True), (NIGHT, 29.9, True), (NIGHT, 30, False), (NIGHT, 1, False),
    ({**WORK, "hours": "00:00-24:00"}, 23.99, True)])
def test_an_entry_holds_in_its_hours_of_its_days(entry: dict[str, Any], hours: float, there: bool) -> None:
    assert fits(entry, FRIDAY + timedelta(hours=hours)) is there


@pytest.mark.parametrize(("day", "there"), [
    ("2026-03-27T07:30:00+00:00", True), ("2026-03-27T06:30:00+00:00", False),  # Friday, winter time: UTC+1
    ("2026-03-30T06:30:00+00:00", True), ("2026-03-30T16:30:00+00:00", False)])  # Monday, summer time: UTC+2
def test_hours_are_those_of_clocks_on_the_wall_also_in_summer(day: str, there: bool) -> None:
    assert fits(WORK, datetime.fromisoformat(day)) is there


@pytest.mark.parametrize(("demand", "schedule", "waiting", "count", "why"), [
    (NONE, [], 50, 10, "min-ready"),
    (QUEUE, [], 0, 10, "min-ready"),
    (QUEUE, [], 5, 15, "min-ready 10 and 5 waiting in the queue, max-ready 40"),
    (QUEUE, [], 500, 40, "min-ready 10 and 500 waiting in the queue, max-ready 40"),
    (NONE, [WORK], 0, 30, "schedule mon-fri 08:00-18:00 Europe/Berlin"),
    (QUEUE, [NIGHT, WORK], 3, 33, "schedule mon-fri 08:00-18:00 Europe/Berlin 30 and 3 waiting in the queue, "
                                  "max-ready 40")])
def test_how_many_are_wanted_and_why(
        demand: str, schedule: Sequence[dict[str, Any]], waiting: int, count: int, why: str) -> None:
    found = wanted(Label("noble", 10, 40, demand, EVEN, schedule), FRIDAY + timedelta(hours=9), waiting)
    assert (found.count, found.why) == (count, why)


@pytest.mark.parametrize(("count", "offers", "spread", "added"), [
    (10, [offer("a"), offer("b")], EVEN, {"a": 5, "b": 5}),
    (10, [offer("a"), offer("b")], PACK, {"a": 10, "b": 0}),
    (10, [offer("a", room=3), offer("b")], PACK, {"a": 3, "b": 7}),
    (10, [offer("a", capacity=100), offer("b", capacity=300)], EVEN, {"a": 2, "b": 8}),
    (10, [offer("a", present=5), offer("b")], EVEN, {"a": 0, "b": 5}),
    (10, [offer("a", room=0), offer("b")], EVEN, {"a": 0, "b": 10}),  # a is down
    (10, [offer("a"), offer("b", priority=1)], EVEN, {"a": 0, "b": 10}),
    (10, [offer("a"), offer("b", priority=1, room=4)], EVEN, {"a": 6, "b": 4}),
    (3, [offer("a", present=5), offer("b")], EVEN, {"a": 0, "b": 0}),  # a surplus shrinks as nothing is replaced
    (10, [offer("a", room=1), offer("b", room=2)], EVEN, {"a": 1, "b": 2})])
def test_shares(count: int, offers: Sequence[Offer], spread: str, added: dict[str, int]) -> None:
    assert shares(count, offers, spread) == added


OFFERS = st.lists(st.builds(Offer, st.text("abcdef", min_size=1, max_size=2), st.integers(0, 2), st.integers(0, 9),
                            st.integers(0, 9), st.integers(1, 20)), max_size=5, unique_by=lambda one: one.provider)


@given(count=st.integers(0, 60), offers=OFFERS, spread=st.sampled_from([EVEN, PACK]))
@settings(derandomize=True, database=None)
def test_shares_never_exceed_a_limit_and_leave_nothing_wanting_that_somebody_has_room_for(
        count: int, offers: list[Offer], spread: str) -> None:
    added = shares(count, offers, spread)
    present, room = sum(one.present for one in offers), sum(one.room for one in offers)
    assert all(0 <= added[one.provider] <= one.room for one in offers)
    assert sum(added.values()) == max(0, min(count - present, room))


@given(count=st.integers(0, 60), offers=OFFERS, spread=st.sampled_from([EVEN, PACK]), order=st.randoms())
@settings(derandomize=True, database=None)
def test_whoever_launches_first_the_end_is_the_same(
        count: int, offers: list[Offer], spread: str, order: Any) -> None:
    together = shares(count, offers, spread)
    now = {one.provider: one for one in offers}
    names = list(now)
    order.shuffle(names)
    for name in names:
        mine = shares(count, list(now.values()), spread)[name]
        one = now[name]
        now[name] = Offer(name, one.priority, one.present + mine, one.room - mine, one.capacity)
    assert {one.provider: now[one.provider].present - one.present for one in offers} == together


@pytest.mark.parametrize(("item", "label"), [
    ({"buildable": True, "why": "There are no nodes with the label \u2018devstack-noble\u2019"}, "devstack-noble"),
    ({"buildable": True, "why": "All nodes of label \u2018devstack-noble\u2019 are offline"}, "devstack-noble"),
    ({"buildable": True, "why": "Waiting for next available executor on \u2018devstack-noble\u2019"}, "devstack-noble"),
    ({"buildable": True, "why": "There are no nodes with the label \u2018a && b\u2019"}, "a && b"),
    ({"buildable": True, "pending": True, "why": "Waiting for next available executor on \u2018x\u2019"}, ""),
    ({"buildable": True, "why": "\u2018devstack-noble-one-7\u2019 is offline"}, "devstack-noble-one-7"),
    ({"buildable": False, "why": "In the quiet period. Expires in 4.9 sec"}, ""),
    ({"buildable": False, "why": "A build is already in progress"}, ""),
    ({"buildable": True, "why": "Waiting for next available executor"}, ""),
    ({"buildable": True, "why": None}, ""), ({}, "")])
def test_a_queued_build_wants_the_machine_that_it_waits_for_and_no_other(item: dict[str, Any], label: str) -> None:
    assert awaited_label(item) == label


@pytest.mark.parametrize(("expression", "label"), [
    ("devstack-noble", "devstack-noble"), ("devstack-noble||devstack-jammy", "devstack-noble"),
    ("linux || devstack-noble", "devstack-noble"), ("(devstack-noble)&&!(big||slow)", "devstack-noble"),
    ("devstack-a->devstack-b", "devstack-b"), ('"devstack-noble"||x', "devstack-noble"),
    ("devstack-noble&&linux", "devstack-noble&&linux"), ("!devstack-noble", "!devstack-noble"),
    ("devstack-noble||", "devstack-noble||"), ("((devstack-noble)", "((devstack-noble)"), ("two words", "two words"),
    ("", "")])
def test_an_expression_wants_the_label_of_a_node_with_which_it_holds(expression: str, label: str) -> None:
    assert label_that_serves(expression) == label


@given(st.text("ab|&!()<->\" -", max_size=20))
@settings(derandomize=True, database=None)
def test_no_expression_is_too_strange(text: str) -> None:
    assert label_that_serves(text) in {text, *"ab-", *text.replace('"', " ").split()} or label_that_serves(text) in text


def standing(name: str, ready: int = 0, building: int = 0, room: int | None = None, **columns: Any) -> Standing:
    """Return the standing of a provider that may have nine servers, and has only these unless `room` says otherwise."""
    taken = ready + building if room is None else 9 - room
    return Standing(name, columns.pop("priority", 0), ready, building, taken, 9, **columns)


@pytest.mark.parametrize(("of", "priority", "present", "room", "doubtful"), [
    (standing("a", 1, 2), 0, 3, 6, 0), (standing("a", 1, 2, failing=True, on_trial=True), 0, 1, 0, 2),
    (standing("a", 3, absent=2, on_trial=True), 0, 1, 1, 2), (standing("a", 0, 1, on_trial=True), 0, 0, 0, 1),
    (standing("a", 1, priority=5, is_last=True, on_trial=True), -math.inf, 1, 1, 0),
    (standing("a", 1, gives=False), 0, 1, 0, 0)])
def test_what_a_provider_offers_whose_machines_fail(
        of: Standing, priority: float, present: int, room: int, doubtful: int) -> None:
    found = offer_of(of)
    assert (found.priority, found.present, found.room, found.doubtful) == (priority, present, room, doubtful)


LABEL = Label("noble", 4, 4, NONE, EVEN)


@pytest.mark.parametrize(("standings", "room", "lacks", "missing"), [
    ([standing("a"), standing("b")], {"a": 9, "b": 9}, {"a": 2, "b": 2}, 0),  # there is room, so nothing has to go
    ([standing("a", room=0), standing("b", room=1)], {"a": 5, "b": 0}, {"a": 3, "b": 1}, 3),
    ([standing("a", room=0), standing("b", room=0)], {"a": 5, "b": 5}, {"a": 2, "b": 2}, 4),
    ([standing("a", room=0), standing("b", room=0, paused=True)], {"a": 5, "b": 5}, {"a": 4, "b": 0}, 4),
    ([standing("a", 2, 2, room=0)], {"a": 5}, {"a": 0}, 0),
    ([standing("a", room=0)], {"a": 1}, {"a": 1}, 4)])
def test_who_makes_how_much_room_for_what_nobody_can_give(
        standings: list[Standing], room: dict[str, int], lacks: dict[str, int], missing: int) -> None:
    wish, parts = plan(LABEL, FRIDAY, 0, standings)
    assert (lacking(wish, parts, EVEN, room), missing_of(wish, parts)) == (lacks, missing)


@pytest.mark.parametrize(("least", "waiting", "elsewhere", "count"), [
    (0, 2, 0, 2), (0, 2, 2, 4), (3, 2, 2, 5), (0, 0, 5, 0), (0, 9, 9, 12)])
def test_machines_of_another_jenkins_are_none_for_builds_that_wait(
        least: int, waiting: int, elsewhere: int, count: int) -> None:
    assert wanted(Label("noble", least, 12, QUEUE, EVEN), FRIDAY, waiting, elsewhere).count == count
