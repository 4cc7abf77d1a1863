"""Which machine gets which test environment, and which kept machine gives up the one that it has."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pool.turns import Kept, Place, Waiter, gives_way, grants

repeatable = settings(derandomize=True, database=None, max_examples=200,
                      suppress_health_check=[HealthCheck.too_slow])


def place(number: int, images: str = "noble", providers: str = "", since: int = 0) -> Place:
    return Place(number, frozenset(images.split()), frozenset(providers.split()), since)


def waiter(number: int, image: str = "noble", provider: str = "one") -> Waiter:
    return Waiter(number, image, provider)


@pytest.mark.parametrize(("waiters", "places", "given"), [
    ([], [place(1)], {}),
    ([waiter(7)], [], {}),
    ([waiter(7), waiter(8)], [place(1)], {7: 1}),
    ([waiter(8), waiter(7)], [place(1)], {8: 1}),
    ([waiter(7), waiter(8)], [place(1, since=20), place(2, since=10)], {7: 2, 8: 1}),
    ([waiter(7, "jammy"), waiter(8)], [place(1)], {8: 1}),
    ([waiter(7, provider="two"), waiter(8)], [place(1, providers="one three")], {8: 1}),
    ([waiter(7), waiter(8, "jammy")], [place(1, "noble jammy"), place(2, since=99)], {7: 2, 8: 1}),
    ([waiter(7), waiter(8, provider="two")], [place(1), place(2, providers="one", since=99)], {7: 2, 8: 1}),
], ids=["nobody", "nothing", "the first", "in the order of the line", "free for longest", "another image",
        "another provider", "leaves the other image its own", "leaves the other provider its own"])
def test_who_gets_what(waiters: Sequence[Waiter], places: Sequence[Place], given: dict[int, int]) -> None:
    assert grants(waiters, places) == given


KINDS = st.sampled_from(["noble", "jammy", "noble jammy"])
WHERE = st.sampled_from(["", "one", "two", "one two"])
PLACES = st.lists(st.tuples(KINDS, WHERE, st.integers(0, 3)), max_size=6).map(
    lambda rows: [place(number, *row) for number, row in enumerate(rows, 1)])
WAITERS = st.lists(st.tuples(st.sampled_from(["noble", "jammy"]), st.sampled_from(["one", "two"])), max_size=8).map(
    lambda rows: [waiter(number, *row) for number, row in enumerate(rows, 1)])


@given(waiters=WAITERS, places=PLACES)
@repeatable
def test_nobody_is_passed_over_and_none_is_given_twice(waiters: list[Waiter], places: list[Place]) -> None:
    given = grants(waiters, places)

    by_id = {one.id: one for one in places}
    assert len(set(given.values())) == len(given)
    taken: set[int] = set()
    for one in waiters:
        fitting = {each.id for each in places if each.fits(one)} - taken
        assert (one.machine_id in given) == bool(fitting)
        if fitting:
            assert by_id[given[one.machine_id]].fits(one)
            taken.add(given[one.machine_id])


def test_the_machine_whose_build_ended_first_gives_way_if_its_environment_fits() -> None:
    kept = [Kept(1, 30, place(1)), Kept(2, 10, place(2, "jammy")), Kept(3, 20, place(3))]

    assert gives_way(waiter(7), kept) == kept[2]
    assert gives_way(waiter(7, "focal"), kept) is None
    assert gives_way(waiter(7), []) is None
