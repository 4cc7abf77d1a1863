"""Failure rates with intervals, and the differences that chance does not explain.

A provider is flagged if more of its builds fail than of the others', by Fisher's one-sided exact test within each job,
combined over all jobs (the exact form of the Cochran-Mantel-Haenszel test), so that a provider which happens to run the
harder jobs is not blamed. LEVEL holds for all comparisons together, by Holm's correction. It is 0.3 %, not 5 %, because
the page is made every 10 minutes, and people look again and again at a moving week: of weeks without any real
difference, fewer than one in twenty shows a flag at any of these looks.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from pool.verdict import FAILED_RESULTS
from status.facts import PASSED, Build

Name = TypeVar("Name", bound=Hashable)

LEVEL = 0.003
Z_95 = 1.959963984540054  # of the normal distribution; 5 % for both sides together
OF_THE_CHANGE = ("source", "configuration")  # kinds of failures that no provider or image can be blamed for


@dataclass(frozen=True)
class Rate:
    """How many of the builds of a provider or an image failed; low and high are the ends of the 95 % interval."""

    name: str
    failed: int
    builds: int
    rate: float
    low: float
    high: float
    others: float | None  # rate of all the others; None if there are no others
    p: float  # the probability of this many failures or more by chance alone
    flagged: bool


def wilson(failed: int, builds: int) -> tuple[float, float]:
    """Return the ends of Wilson's 95 % interval of a rate; 0 and 1 without builds."""
    if not builds:
        return 0.0, 1.0
    share, square = failed / builds, Z_95**2 / builds
    middle = (share + square / 2) / (1 + square)
    half = Z_95 / (1 + square) * math.sqrt(share * (1 - share) / builds + square / (4 * builds))
    return max(0.0, middle - half), min(1.0, middle + half)


def counted(builds: Iterable[Build]) -> list[Build]:
    """Return the builds by which to judge providers and images: passed, or failed in a way that may be their fault."""
    return [build for build in builds
            if build.result == PASSED or (build.result in FAILED_RESULTS and build.kind not in OF_THE_CHANGE)]


def rates(builds: Sequence[Build], name_of: Callable[[Build], str]) -> list[Rate]:
    """Return the rate of each provider or image, whichever name_of returns; flagged is not decided yet."""
    total: dict[str, Counter[str]] = defaultdict(Counter)  # by job
    failed: dict[str, Counter[str]] = defaultdict(Counter)
    for build in builds:
        name = name_of(build)
        total[build.job][name] += 1
        failed[build.job][name] += build.result != PASSED
    names = sorted({name for counts in total.values() for name in counts})
    sums = {name: (sum(failed[job][name] for job in total), sum(total[job][name] for job in total)) for name in names}
    all_failed, all_builds = (sum(column) for column in zip(*sums.values(), strict=True)) if sums else (0, 0)
    found = []
    for name, (bad, count) in sums.items():
        strata = [(total[job][name], failed[job].total(), total[job].total()) for job in total if total[job][name]]
        rest = all_builds - count
        found.append(Rate(name, bad, count, bad / count, *wilson(bad, count),
                          (all_failed - bad) / rest if rest else None, exact_p(bad, strata), False))
    return found


def exact_p(failed: int, strata: Sequence[tuple[int, int, int]]) -> float:
    """Return the probability of this many failures or more by chance, given how many builds of each job each one ran.

    Each stratum is a job: builds of the provider or image in question, failures of all, builds of all. Within it the
    failures fall on the builds at random (hypergeometric); the strata are independent of each other.
    """
    chances = np.ones(1)
    least = 0
    for own, bad, builds in strata:
        first, part = hypergeometric(own, bad, builds)
        least += first
        chances = np.convolve(chances, part)
    return float(min(1.0, chances[max(0, failed - least):].sum()))


@lru_cache(maxsize=1000)
def hypergeometric(own: int, bad: int, builds: int) -> tuple[int, Any]:
    """Return the least number of failures that `own` of the builds can have, and the chances of it and of all above."""
    least, most = max(0, own + bad - builds), min(own, bad)
    logs = [_log_choose(bad, number) + _log_choose(builds - bad, own - number) for number in range(least, most + 1)]
    return least, np.exp(np.array(logs) - _log_choose(builds, own))


def _log_choose(many: int, few: int) -> float:
    return math.lgamma(many + 1) - math.lgamma(few + 1) - math.lgamma(many - few + 1)


def flags(values: Mapping[Name, float], level: float = LEVEL) -> set[Name]:
    """Return the names whose p values, compared together, are too small for chance, by Holm's correction."""
    found: set[Name] = set()
    for place, (name, value) in enumerate(sorted(values.items(), key=lambda item: item[1])):
        if value > level / (len(values) - place):
            break
        found.add(name)
    return found


@dataclass(frozen=True)
class FalseNegative:
    """A build that failed, though the same change, patchset and job passed later with nothing changed."""

    build: Build
    passed: int  # when it passed


def false_negatives(builds: Iterable[Build]) -> list[FalseNegative]:
    """Return the builds that failed and then passed with nothing changed; `builds` is sorted by time."""
    failed: dict[tuple[str, int, int], list[Build]] = defaultdict(list)
    found = []
    for build in builds:
        if build.change is None or build.patchset is None or not build.job:
            continue
        key = build.job, build.change, build.patchset
        if build.result in FAILED_RESULTS:
            failed[key].append(build)
        elif build.result == PASSED:
            found += [FalseNegative(earlier, build.end) for earlier in failed.pop(key, [])]
    return sorted(found, key=lambda one: one.build.end)


def median_and_95(values: Sequence[float]) -> tuple[float, float]:
    """Return the median and the 95th percentile of values, which are not empty."""
    middle, high = np.percentile(np.asarray(values, dtype=float), [50, 95])
    return float(middle), float(high)
