"""The suite's statistics: medians, paired ratios, rounds, on a clock that a test moves."""

from __future__ import annotations

import math
import random

import pytest

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import timing
from bench.timing import Effort, Measured


class Clock:
    """A clock that only the steps of a test move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.speed = 1.0

    def __call__(self) -> float:
        return self.now

    def step(self, seconds: float, log: list[str] | None = None, name: str = ""):
        def run() -> None:
            self.now += seconds * self.speed
            if log is not None:
                log.append(name)

        return run


EFFORT = Effort(seconds=1.0, least=5, most=20, sample=0.01)


def test_median_and_quartiles_are_those_of_the_textbook():
    summary = timing.summarise([7.0, 1.0, 3.0, 5.0, 9.0])
    assert (summary.q1, summary.median, summary.q3, summary.runs) == (3.0, 5.0, 7.0, 5)


def test_one_value_is_its_own_quartiles():
    assert timing.summarise([2.0]) == timing.Summary(2.0, 2.0, 2.0, 1)


def test_no_values_are_an_error():
    with pytest.raises(ValueError, match="no values to summarise"):
        timing.summarise([])


def test_ratio_is_paired_within_rounds():
    slow = Measured((2.0, 20.0, 200.0), 1, 0.0)
    quick = Measured((1.0, 10.0, 100.0), 1, 0.0)
    assert timing.paired_ratios(slow, quick) == [2.0, 2.0, 2.0]


def test_ratio_leaves_out_rounds_without_both():
    slow = Measured((3.0, None, None), 1, 0.0)
    quick = Measured((1.0, 50.0, None), 1, 0.0)
    assert timing.paired_ratios(slow, quick) == [3.0]
    assert timing.paired_ratios(slow, Measured((None, None, None), 1, 0.0)) == []


def test_a_machine_that_changes_speed_does_not_change_the_ratio():
    clock, generator = Clock(), random.Random(1)
    slow_step, quick_step = clock.step(0.03), clock.step(0.01)
    calls = 0

    def with_drift(step):
        def run() -> None:
            nonlocal calls
            calls += 1
            # the machine gets slower all the time, ten times over the run, and jitters by 1 %
            clock.speed = (1 + calls / 10) * generator.uniform(0.99, 1.01)
            step()

        return run

    steps = {"slow": with_drift(slow_step), "quick": with_drift(quick_step)}
    measured = timing.interleave(steps, EFFORT, clock=clock)
    ratio = timing.summarise(timing.paired_ratios(measured["slow"], measured["quick"]))
    seconds = measured["slow"].samples
    assert seconds[-1] > 2 * seconds[0]
    assert ratio.median == pytest.approx(3.0, rel=0.05)


def test_repetitions_fill_a_sample():
    clock = Clock()
    measured = timing.interleave({"tiny": clock.step(0.001)}, EFFORT, clock=clock)["tiny"]
    assert measured.repetitions == 10
    assert measured.seconds.median == pytest.approx(0.001)


def test_one_interrupted_call_does_not_spoil_the_calibration():
    clock, durations = Clock(), iter([0.5, 0.001, 0.001, 0.001, 0.001])

    def step() -> None:
        clock.now += next(durations)

    assert timing.calibrate(step, 0.05, clock) == (50, pytest.approx(0.05))


def test_every_round_runs_every_step_once_in_a_changing_order():
    clock, log = Clock(), []
    steps = {name: clock.step(0.02, log, name) for name in "abc"}
    timing.interleave(steps, EFFORT, clock=clock)
    rounds = len(log[15:]) // 3
    orders = ["".join(log[15 + 3 * i : 18 + 3 * i]) for i in range(rounds)]
    assert {"".join(sorted(order)) for order in orders} == {"abc"}
    assert len(set(orders)) > 2


def test_what_comes_before_a_round_comes_before_each_and_costs_it_nothing():
    clock, log = Clock(), []
    steps = {name: clock.step(0.02, log, name) for name in "ab"}

    def move() -> None:
        clock.now += 100
        log.append("move")

    measured = timing.interleave(steps, EFFORT, clock=clock, before_round=move)
    rounds = "".join(log[10:]).split("move")[1:]
    assert len(rounds) == measured["a"].seconds.runs and set(rounds) == {"ab", "ba"}
    assert measured["a"].seconds.q3 == pytest.approx(0.02)


def test_a_slow_step_sits_out_rounds_but_runs_the_least_number():
    costs = {"a": 0.01, "b": 0.01, "slow": 1.0}
    rounds, strides = timing.plan_rounds(costs, EFFORT)
    runs = len(range(0, rounds, strides["slow"]))
    assert strides["a"] == strides["b"] == 1
    assert EFFORT.least <= runs < rounds <= EFFORT.most


@pytest.mark.parametrize("count", [6, 20, 49])
def test_the_median_s_interval_holds_it_95_times_in_a_hundred(count):
    generator, held, tries = random.Random(0), 0, 2000
    for _ in range(tries):
        low, high = timing.median_interval([generator.expovariate(1.0) for _ in range(count)])
        held += low <= math.log(2) <= high
    assert 0.94 < held / tries < 0.99
    with pytest.raises(ValueError, match="no values to take an interval of"):
        timing.median_interval([])


def test_what_comes_before_a_call_is_not_timed_and_a_sample_is_one_call():
    clock, log = Clock(), []
    steps = {name: clock.step(cost, log, name) for name, cost in (("a", 1e-6), ("b", 2e-6))}
    before = clock.step(0.05, log, "before")
    found = timing.interleave(steps, EFFORT, clock=clock, before_call=before)
    assert found["a"].seconds.median == pytest.approx(1e-6)
    assert found["b"].seconds.median == pytest.approx(2e-6)
    assert {one.repetitions for one in found.values()} == {1}
    # Twice 0.05 s a round: what comes before counts to the seconds that a cell may take.
    assert found["a"].seconds.runs == 9
    rounds = log[-2 * 2 * 9 :]
    assert rounds[::2] == ["before"] * 18 and set(rounds[1::2]) == {"a", "b"}


def test_a_timing_in_which_pages_were_made_is_taken_again(monkeypatch):
    clock, calls, faults = Clock(), [], 0

    def step():
        nonlocal faults
        calls.append(clock.now)
        # Every third call makes pages and takes a hundred times as long.
        making = len(calls) % 3 == 0
        faults += 1000 * making
        clock.now += 0.1 if making else 0.001

    monkeypatch.setattr(timing, "_page_faults", lambda: faults)
    found = timing.interleave(
        {"a": step}, EFFORT, clock=clock, before_call=lambda: None, most_faults=16
    )
    assert {round(seconds, 6) for seconds in found["a"].samples} == {0.001}
    assert found["a"].faults == 0
