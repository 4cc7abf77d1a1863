"""Hours of builds on several clouds that fail, played by bench/day.py with the rules of pool/demand.py."""

import random
from collections.abc import Callable, Iterator

import pytest

from bench.day import Cloud, Day, Story, Way
from pool.demand import EVEN, NONE, PACK, QUEUE, Label

HOUR = 3600.0
BOOT = 120.0
OURS = Way(take=0.3, launch=2.0, ready=1.0, reap=2.0)
NAMES = ("a", "b", "c")


def builds(an_hour: int, hours: float, seed: int = 1, minutes: tuple[float, float] = (15, 35)) -> Iterator[
        tuple[float, float]]:
    rng = random.Random(seed)
    for _ in range(round(an_hour * hours)):
        yield rng.uniform(0, hours * HOUR), rng.uniform(*minutes) * 60


def label(min_ready: int, max_ready: int | None = None, spread: str = EVEN, demand: str = NONE) -> Label:
    return Label("noble", min_ready, max_ready or min_ready, demand, spread)


def expect_limits(story: Story, clouds: list[Cloud], most_ready: int) -> None:
    assert all(story.most[cloud.name] <= cloud.max_servers for cloud in clouds), story.most
    assert story.most_ready <= most_ready


@pytest.mark.parametrize(("spread", "dies"), [(EVEN, "b"), (PACK, "a")])
@pytest.mark.parametrize("machines", [True, False])
def test_waits_are_normal_again_one_boot_after_a_provider_died(spread: str, dies: str, machines: bool) -> None:
    """The load is 80 %: 200 builds an hour, of 25 minutes each, and 24 ready machines take 108 of 136 places.

    machines: whether the provider's machines die, too, or only its API.
    """
    began, ended = 2 * HOUR, 3.5 * HOUR

    def up(now: float) -> bool:
        return not began <= now < ended

    clouds = [Cloud(name, 17, BOOT, answers=up if name == dies else lambda _: True,
                    lives=up if name == dies and machines else lambda _: True) for name in "abcdefgh"]
    story = Day(label(24, 36, spread=spread), clouds, OURS).run(builds(200, 5), 5 * HOUR)

    expect_limits(story, clouds, 36)
    normal = story.mean_wait(HOUR, began)
    assert normal < 1
    assert story.mean_wait(began + BOOT + 10, ended) < normal + 1
    assert story.mean_wait(ended, 5 * HOUR) < normal + 1
    assert max(wait for arrival, wait in story.waits if arrival > began + BOOT + 10) < BOOT


@pytest.mark.parametrize("period", [600.0, 60.0, 7.0])
def test_a_provider_that_answers_every_other_time_does_not_make_the_pool_flap(period: float) -> None:
    """Each machine serves a build, except those left at the end: none is made to be thrown away."""
    clouds = [Cloud("a", 60, BOOT, answers=every_other(period)), Cloud("b", 60, BOOT), Cloud("c", 60, BOOT)]
    story = Day(label(24), clouds, OURS).run(builds(200, 6), 6 * HOUR)

    expect_limits(story, clouds, 24)
    served = sum(wait < HOUR for _, wait in story.waits)
    assert served == 1200
    assert sum(story.made.values()) <= served + 24 + 1
    assert story.mean_wait() < 1


def every_other(seconds: float) -> Callable[[float], bool]:
    return lambda now: int(now / seconds) % 2 == 0


def test_two_hundred_builds_at_once_are_served_from_nothing_in_the_time_of_the_clouds() -> None:
    clouds = [Cloud(name, 80, BOOT, creates_per_second=2) for name in NAMES]
    rush = [(1.0, 1800.0)] * 200
    story = Day(label(0, 200, demand=QUEUE), clouds, OURS).run(rush, 2 * HOUR)

    expect_limits(story, clouds, 200)
    launched = 600.0  # by the timer of the job
    fastest = launched + BOOT + 200 / (3 * 2)
    assert max(arrival + wait for arrival, wait in story.waits) - launched <= 1.1 * (fastest - launched)
    assert sum(story.made.values()) == 200
    assert story.machine_seconds < 1.2 * story.build_seconds


def test_each_outage_leaves_the_others_within_their_limits() -> None:
    """Each of three clouds is down four times, at random, under a load that one alone cannot bear."""
    for seed in range(3):
        rng = random.Random(seed)
        outages = {name: [(start, start + rng.uniform(60, 5000)) for start in
                          (rng.uniform(0, 4 * HOUR) for _ in range(4))] for name in NAMES}

        def up(now: float, name: str, outages: dict[str, list[tuple[float, float]]] = outages) -> bool:
            return not any(start <= now < end for start, end in outages[name])

        clouds = [Cloud(name, 40, BOOT, answers=lambda now, name=name, up=up: up(now, name),  # type: ignore[misc]
                        lives=lambda now, name=name, up=up: up(now, name)) for name in NAMES]  # type: ignore[misc]
        story = Day(label(6, 40, demand=QUEUE), clouds, OURS).run(builds(200, 4, seed), 6 * HOUR)
        expect_limits(story, clouds, 40)
