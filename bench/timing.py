"""Interleaved timing: every round times each step once, in a shuffled order; ratios are paired.

Imports the standard library only. A machine that slows down slows all of a round, so a ratio
taken inside the round does not see it.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

Step = Callable[[], object]


@dataclass(frozen=True)
class Effort:
    """How long one cell is measured.

    Attributes
    ----------
    seconds : float
        What the rounds of a cell may take together, `least` rounds aside.
    least, most : int
        Bounds on the number of rounds.
    sample : float
        The least duration of one timing in seconds; quick steps are repeated to fill it.
    """

    seconds: float
    least: int
    most: int
    sample: float


@dataclass(frozen=True)
class Summary:
    """Median and quartiles of one figure over `runs` rounds."""

    median: float
    q1: float
    q3: float
    runs: int


@dataclass(frozen=True)
class Measured:
    """One step's samples by round (None: left out of that round) and what they cost besides."""

    samples: tuple[float | None, ...]
    repetitions: int
    faults: float

    @property
    def seconds(self) -> Summary:
        """Median and quartiles of the seconds per call."""
        return summarise([sample for sample in self.samples if sample is not None])


def summarise(values: Sequence[float]) -> Summary:
    """Median and quartiles, linear between the sorted values.

    Examples
    --------
    >>> summarise([4.0, 1.0, 3.0, 2.0, 5.0])
    Summary(median=3.0, q1=2.0, q3=4.0, runs=5)
    """
    if not values:
        raise ValueError("no values to summarise")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, q1, q3, len(values))


def paired_ratios(numerator: Measured, denominator: Measured) -> list[float]:
    """The ratio within each round that holds both."""
    return [
        above / below
        for above, below in zip(numerator.samples, denominator.samples, strict=True)
        if above is not None and below is not None
    ]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median by order statistics, whatever the distribution.

    Of five values or fewer it is all of them, which holds the median less often.

    Examples
    --------
    >>> median_interval([3.0, 1.0, 2.0]), median_interval([float(n) for n in range(20)])
    ((1.0, 3.0), (5.0, 14.0))
    """
    if not values:
        raise ValueError("no values to take an interval of")
    ordered, count = sorted(values), len(values)
    place, below = 0, 1 / 2**count
    while (below := below + math.comb(count, place + 1) / 2**count) <= 0.025:
        place += 1
    return ordered[place], ordered[-1 - place]


def figures(key: str, ratios: Sequence[float], factor: float = 1.0) -> dict[str, float]:
    """A ratio as a record keeps it: the median by the name `key`, its quartiles and interval."""
    told, (low, high) = summarise(ratios), median_interval(ratios)
    found = {"": told.median, "_q1": told.q1, "_q3": told.q3, "_low": low, "_high": high}
    return {key + name: factor * number for name, number in found.items()}


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource else 0


def _run(step: Step, repetitions: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds and page faults per call."""
    faults = _page_faults()
    start = clock()
    for _ in range(repetitions):
        step()
    elapsed = clock() - start
    return elapsed / repetitions, (_page_faults() - faults) / repetitions


def calibrate(step: Step, sample: float, clock: Callable[[], float]) -> tuple[int, float]:
    """How many repetitions fill `sample` seconds, and about what they take.

    The least of a few calls counts, since an interrupted one says nothing of the step.
    """
    least, spent = float("inf"), 0.0
    for _ in range(5):
        seconds, _ = _run(step, 1, clock)
        least, spent = min(least, seconds), spent + seconds
        if spent > 50 * sample:
            break
    repetitions = max(1, math.ceil(sample / max(least, 1e-9)))
    return repetitions, least * repetitions


def _whole(step: Step, before: Callable[[], object], clock: Callable[[], float]) -> float:
    """The seconds of a call with what is done before it, after one that does not count."""
    step()
    start = clock()
    before()
    step()
    return clock() - start


def plan_rounds(costs: Mapping[str, float], effort: Effort) -> tuple[int, dict[str, int]]:
    """The number of rounds, and every how many of them each step takes part.

    A step that costs several times the median one sits out most rounds, but runs in `least` of
    them, so that one slow opponent does not cost all others their rounds.
    """
    usual = statistics.median(costs.values())
    strides = {name: max(1, round(cost / (4 * usual))) for name, cost in costs.items()}
    per_round = sum(cost / strides[name] for name, cost in costs.items())
    rounds = max(effort.least, min(effort.most, int(effort.seconds / per_round)))
    most_stride = max(1, rounds // effort.least)
    return rounds, {name: min(stride, most_stride) for name, stride in strides.items()}


def interleave(
    steps: Mapping[str, Step],
    effort: Effort,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    before_round: Callable[[], object] = lambda: None,
    before_call: Callable[[], object] | None = None,
    most_faults: float = math.inf,
) -> dict[str, Measured]:
    """Time `steps` in rounds, each once a round in a shuffled order, the collector switched off.

    Parameters
    ----------
    steps : mapping of name to callable
    effort : Effort
    seed : int
        Of the shuffling.
    clock : callable
        Seconds; another one for tests.
    before_round : callable
        Called before every round, unmeasured, such as to move what the steps read.
    before_call : callable, optional
        Called before every step, unmeasured, such as to empty the caches: a sample is one call.
    most_faults : float
        Page faults a call beyond which a timing is taken again, three times at most: what is said
        to be of reused memory should not be of pages that are made.
    """
    generator = random.Random(seed)
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        if before_call is None:
            calibrated = {n: calibrate(step, effort.sample, clock) for n, step in steps.items()}
        else:
            calibrated = {n: (1, _whole(step, before_call, clock)) for n, step in steps.items()}
        rounds, strides = plan_rounds({n: cost for n, (_, cost) in calibrated.items()}, effort)
        samples: dict[str, list[float | None]] = {name: [None] * rounds for name in steps}
        faults: dict[str, list[float]] = {name: [] for name in steps}
        order = list(steps)
        for number in range(rounds):
            before_round()
            generator.shuffle(order)
            for name in order:
                if number % strides[name] == 0:
                    for _ in range(4):
                        if before_call is not None:
                            before_call()
                        seconds, missed = _run(steps[name], calibrated[name][0], clock)
                        if missed <= most_faults:
                            break
                    samples[name][number] = seconds
                    faults[name].append(missed)
    finally:
        if was_enabled:
            gc.enable()
    return {
        name: Measured(tuple(samples[name]), calibrated[name][0], statistics.median(faults[name]))
        for name in steps
    }
