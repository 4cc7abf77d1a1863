"""The statistics of the status page: intervals, flags that are not due to chance, false negatives."""

import itertools
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from status import blame
from status.facts import Build

PROVIDERS, WEEK_LOOKS = 10, 7 * 144  # a page every 10 minutes
WEEKS = 1000


def build(provider: str, result: str, job: str = "gate", **columns: Any) -> Build:
    values = {"end": 1, "image": "noble", "change": None, "patchset": None, "kind": None, "phase": None,
              "known_failure": None, **columns}
    return Build(provider=provider, job=job, result=result, **values)


def builds(provider: str, failed: int, passed: int, job: str = "gate") -> list[Build]:
    return [build(provider, "FAILURE", job)] * failed + [build(provider, "SUCCESS", job)] * passed


@pytest.mark.parametrize(("failed", "count", "low", "high"), [
    (0, 0, 0.0, 1.0), (0, 10, 0.0, 0.27753), (10, 10, 0.72247, 1.0), (5, 100, 0.02154, 0.11175),
    (50, 1000, 0.03813, 0.06531)])
def test_wilsons_interval(failed: int, count: int, low: float, high: float) -> None:
    assert blame.wilson(failed, count) == pytest.approx((low, high), abs=2e-5)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_nineteen_of_twenty_intervals_hold_the_rate(rate: float) -> None:
    failed = np.random.default_rng(7).binomial(400, rate, 4000)
    held = np.mean([low <= rate <= high for low, high in (blame.wilson(int(count), 400) for count in failed)])

    assert 0.93 < held < 0.97


def exact(failed: int, strata: list[tuple[int, int, int]]) -> Fraction:
    """Return the same chance as a fraction, by counting every way in which the failures can fall."""
    total = Fraction(0)
    for falls in itertools.product(*(range(min(own, bad) + 1) for own, bad, _ in strata)):
        if sum(falls) >= failed:
            ways = Fraction(1)
            for fall, (own, bad, count) in zip(falls, strata, strict=True):
                ways *= Fraction(math.comb(bad, fall) * math.comb(count - bad, own - fall), math.comb(count, own))
            total += ways
    return total


@pytest.mark.parametrize(("failed", "strata"), [
    (0, [(5, 3, 10)]), (3, [(5, 3, 10)]), (4, [(20, 6, 60)]), (6, [(20, 6, 20)]), (2, [(3, 9, 10)]),
    (5, [(10, 4, 30), (12, 5, 40)]), (7, [(10, 4, 30), (12, 5, 40), (3, 3, 4)]), (1, [(1, 0, 5), (4, 1, 9)])])
def test_the_chance_is_exact(failed: int, strata: list[tuple[int, int, int]]) -> None:
    assert blame.exact_p(failed, strata) == pytest.approx(float(exact(failed, strata)), rel=1e-9)


def test_holms_correction_counts_how_many_are_compared() -> None:
    values = {"a": 0.01, "b": 0.02, "c": 0.2, "d": 0.011}

    assert blame.flags(values, 0.05) == {"a", "d", "b"}
    assert blame.flags(values | {str(number): 0.9 for number in range(6)}, 0.05) == set()
    assert blame.flags({}, 0.05) == set()


def test_a_provider_that_fails_more_than_the_others_in_the_same_job_has_a_small_p() -> None:
    found = {rate.name: rate for rate in blame.rates(
        builds("a", 60, 440) + builds("b", 25, 475) + builds("c", 24, 476), lambda one: one.provider)}

    assert found["a"].p < 1e-5
    assert (found["a"].rate, found["a"].others) == (0.12, 0.049)
    assert min(found["b"].p, found["c"].p) > 0.5


def test_a_provider_that_runs_the_harder_job_is_not_blamed_for_it() -> None:
    hard = builds("a", 90, 210, "hard") + builds("b", 9, 21, "hard")
    easy = builds("a", 1, 29, "easy") + builds("b", 10, 290, "easy")
    found = blame.rates(hard + easy, lambda one: one.provider)

    assert found[0].rate > 4 * found[1].rate
    assert min(rate.p for rate in found) > 0.4


def test_a_job_that_runs_at_one_provider_only_tells_nothing_about_it() -> None:
    found = blame.rates(builds("a", 90, 10, "own") + builds("b", 1, 99, "other"), lambda one: one.provider)

    assert [rate.p for rate in found] == [1.0, 1.0]


def test_what_is_the_changes_own_fault_and_aborted_builds_count_for_nobody() -> None:
    kept = [build("a", "FAILURE", kind=kind) for kind in ("test", "infrastructure", "unknown", None)]
    left = [build("a", "FAILURE", kind=kind) for kind in ("source", "configuration")] + [build("a", "ABORTED")]

    assert blame.counted([*left, *kept]) == kept


def least_flagged(own: int, bad: int) -> int:
    """Return how many of `bad` failures must be one provider's for a flag, if each of ten had `own` builds."""
    others: dict[Any, float] = dict.fromkeys(range(1, PROVIDERS), 1.0)
    return next(failed for failed in range(bad + 2) if failed > bad or blame.flags(
        {0: blame.exact_p(failed, [(own, bad, PROVIDERS * own)]), **others}))


def shows_flag(failed: Any, own: int) -> Any:
    """Return whether a page shows a flag, for arrays of failures whose last dimension is the providers."""
    bad = failed.sum(axis=-1)
    least = np.array([least_flagged(own, number) for number in range(int(bad.min()), int(bad.max()) + 1)])
    return failed.max(axis=-1) >= least[bad - bad.min()]


def test_without_a_difference_fewer_than_one_week_in_twenty_shows_a_flag_at_any_time() -> None:
    """Each provider has two builds between one page and the next; each page looks at the 7 days before it."""
    slots = np.random.default_rng(18).binomial(2, 0.05, (WEEKS, 2 * WEEK_LOOKS, PROVIDERS)).astype(np.int16)
    sums = slots.cumsum(axis=1, dtype=np.int32)
    shown = shows_flag(sums[:, WEEK_LOOKS:] - sums[:, :-WEEK_LOOKS], 2 * WEEK_LOOKS)

    assert shown[:, -1].mean() < 0.01
    assert 0.001 < shown.any(axis=1).mean() < 0.05


@pytest.mark.parametrize(("own", "share"), [(2000, 1.0), (450, 0.9)])
def test_a_provider_at_12_percent_among_others_at_5_is_flagged_within_a_week(own: int, share: float) -> None:
    failed = np.random.default_rng(19).binomial(own, [0.12] + [0.05] * (PROVIDERS - 1), (WEEKS, PROVIDERS))
    flagged = [blame.flags({number: blame.exact_p(int(one), [(own, int(week.sum()), PROVIDERS * own)])
                            for number, one in enumerate(week)}) for week in failed]

    assert np.mean([0 in names for names in flagged]) >= share
    assert np.mean([bool(names - {0}) for names in flagged]) < 0.01
