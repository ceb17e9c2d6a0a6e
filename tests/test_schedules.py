"""λ over training steps: published figures, explicit steps, checkpoints, followers, copies."""

import copy
import gc
import math
import pickle
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from pyrevgrad.nn import GradientReversal
from pyrevgrad.schedules import (
    ConstantSchedule,
    GaninLearningRate,
    GaninSchedule,
    LinearSchedule,
    Schedule,
)


@pytest.mark.parametrize(
    ("progress", "published"),
    [(0.0, 0.0), (0.1, 0.4621), (0.25, 0.8483), (0.5, 0.9866), (1.0, 0.9999)],
)
def test_ganins_schedule_gives_the_published_figures(progress, published):
    schedule = GaninSchedule(max_steps=100)
    for _ in range(round(100 * progress)):
        schedule.step()
    assert schedule.progress == progress
    assert round(schedule.value, 4) == published


@pytest.mark.parametrize("p", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize(("gamma", "low", "high"), [(10.0, 0.0, 1.0), (3.0, 0.5, 2.0)])
def test_ganins_schedule_is_a_hyperbolic_tangent(p, gamma, low, high):
    schedule = GaninSchedule(10, gamma=gamma, low=low, high=high)
    assert schedule.at(p) == pytest.approx(low + (high - low) * math.tanh(gamma * p / 2), abs=1e-15)


def test_a_linear_schedule_rises_in_equal_steps():
    schedule = LinearSchedule(4, low=1.0, high=3.0)
    assert [schedule.value] + [schedule.step() for _ in range(4)] == [1.0, 1.5, 2.0, 2.5, 3.0]


def test_a_constant_schedule_stays():
    schedule = ConstantSchedule(0.5)
    layer = GradientReversal(schedule)
    assert [schedule.step() for _ in range(3)] == [0.5] * 3 and layer.scale.item() == 0.5
    assert schedule.state_dict() == {"steps": 3}


@pytest.mark.parametrize("make", [GaninSchedule, LinearSchedule])
def test_progress_stays_at_one_after_the_last_step(make):
    schedule = make(max_steps=3)
    values = [schedule.step() for _ in range(8)]
    assert schedule.progress == 1.0 and schedule.steps == 8
    assert len(set(values[2:])) == 1


def test_reading_takes_no_step():
    schedule = GaninSchedule(10)
    layer = GradientReversal(schedule)
    for _ in range(3):
        assert schedule.value == 0.0 and layer.scale.item() == 0.0
    assert schedule.steps == 0


def test_a_schedule_continues_from_its_state():
    schedule = GaninSchedule(10)
    for _ in range(3):
        schedule.step()
    state = schedule.state_dict()
    assert state == {"steps": 3}
    resumed = GaninSchedule(10)
    layer = GradientReversal(resumed)
    resumed.load_state_dict(state)
    assert resumed.value == schedule.value == layer.scale.item()
    assert resumed.step() == schedule.step() == layer.scale.item()


@pytest.mark.parametrize(
    "state", [{}, {"steps": -1}, {"steps": 1.5}, {"steps": True}, {"steps": 1, "x": 2}, None, []]
)
def test_a_wrong_state_is_refused_and_changes_nothing(state):
    schedule = GaninSchedule(10)
    schedule.step()
    with pytest.raises((ValueError, TypeError), match=r"a schedule's state is \{'steps': n\}"):
        schedule.load_state_dict(state)
    assert schedule.steps == 1


def test_every_follower_is_told():
    schedule = LinearSchedule(4)
    layers = [GradientReversal(schedule) for _ in range(3)]
    schedule.step()
    assert [layer.scale.item() for layer in layers] == [0.25] * 3
    schedule.steps = np.int64(3)
    assert [layer.scale.item() for layer in layers] == [0.75] * 3
    assert type(schedule.steps) is int and schedule.step() == 1.0


@pytest.mark.parametrize("steps", [-1, 1.5, True, None])
def test_a_wrong_number_of_steps_is_refused_and_changes_nothing(steps):
    schedule = LinearSchedule(4)
    layer = GradientReversal(schedule)
    with pytest.raises(ValueError, match="steps must be an int >= 0, got"):
        schedule.steps = steps
    assert schedule.steps == 0 and layer.scale.item() == 0.0


def test_a_dead_follower_is_dropped():
    schedule = LinearSchedule(4)
    layer, kept = GradientReversal(schedule), GradientReversal(schedule)
    watch = weakref.ref(layer)
    del layer
    gc.collect()
    assert watch() is None
    schedule.step()
    assert kept.scale.item() == 0.25
    assert len(schedule._followers) == 1


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["deepcopy", "pickle"]
)
def test_a_copied_layer_follows_its_own_copy_of_the_schedule(copied):
    schedule = LinearSchedule(4)
    layer = GradientReversal(schedule)
    schedule.step()
    made = copied(layer)
    assert made.schedule is not schedule and made.schedule.steps == 1
    schedule.step()
    assert (layer.scale.item(), made.scale.item()) == (0.5, 0.25)
    made.schedule.step()
    made.schedule.step()
    assert (layer.scale.item(), made.scale.item()) == (0.5, 0.75)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))], ids=["deepcopy", "pickle"]
)
def test_a_copied_network_shares_one_copied_schedule_among_its_layers(copied):
    schedule = LinearSchedule(4)
    model = nn.Sequential(GradientReversal(schedule), GradientReversal(schedule))
    made, own = copied((model, schedule))
    assert made[0].schedule is made[1].schedule is own
    own.step()
    assert [layer.scale.item() for layer in made] == [0.25, 0.25]
    assert [layer.scale.item() for layer in model] == [0.0, 0.0]


def test_a_schedule_of_ones_own_needs_a_formula_alone():
    class Square(Schedule):
        def at(self, progress):
            return progress**2

    schedule = Square(4)
    layer = GradientReversal(schedule)
    schedule.step()
    schedule.step()
    assert layer.scale.item() == 0.25
    with pytest.raises(NotImplementedError):
        Schedule(3).at(0.5)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: GaninSchedule(0), ValueError, "max_steps must be >= 1, got 0"),
        (lambda: GaninSchedule(1.5), TypeError, "max_steps must be an int, not float"),
        (lambda: LinearSchedule(True), TypeError, "max_steps must be an int, not bool"),
        (lambda: GaninSchedule(5, gamma=0.0), ValueError, "gamma must be > 0, got 0.0"),
        (lambda: GaninSchedule(5, gamma="10"), TypeError, "gamma must be a number, not str"),
        (lambda: GaninSchedule(5, low=math.nan), ValueError, "low must not be NaN"),
        (lambda: GaninSchedule(5, high=math.inf), ValueError, "high must be finite"),
        (lambda: GaninSchedule(5, gamma=math.inf), ValueError, "gamma must be finite"),
        (lambda: LinearSchedule(5, low=-math.inf), ValueError, "low must be finite"),
        (lambda: GaninSchedule(5, low=-1e308, high=1e308), ValueError, "high - low must be finite"),
        (
            lambda: LinearSchedule(5, low=1e308, high=-1e308),
            ValueError,
            "high - low must be finite",
        ),
        (lambda: ConstantSchedule("1"), TypeError, "value must be a number, not str"),
        (lambda: GaninLearningRate(sgd(), 0), ValueError, "max_steps must be >= 1, got 0"),
        (lambda: GaninLearningRate(sgd(), 1.0), TypeError, "max_steps must be an int, not float"),
        (lambda: GaninLearningRate(sgd(), 5, alpha=0), ValueError, "alpha must be > 0, got 0"),
        (lambda: GaninLearningRate(sgd(), 5, beta=math.nan), ValueError, "beta must not be NaN"),
    ],
)
def test_a_bad_argument_is_named(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (GaninSchedule(7), "GaninSchedule(max_steps=7, gamma=10, low=0, high=1)"),
        (LinearSchedule(7, high=0.5), "LinearSchedule(max_steps=7, low=0, high=0.5)"),
        (ConstantSchedule(0.5), "ConstantSchedule(0.5)"),
    ],
)
def test_a_schedule_reads_as_it_was_made(schedule, text):
    assert repr(schedule) == text


# The learning rate.


def sgd(*rates):
    groups = [{"params": [torch.zeros(1)], "lr": rate} for rate in rates or (0.01,)]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


@pytest.mark.parametrize(
    ("progress", "published"),
    [(0.0, 1.0), (0.1, 0.5946), (0.25, 0.3908), (0.5, 0.2608), (1, 0.1656)],
)
def test_the_learning_rate_gives_the_published_figures(progress, published):
    optimizer = sgd(0.01, 0.1)
    schedule = GaninLearningRate(optimizer, max_steps=100)
    for _ in range(round(100 * progress)):
        optimizer.step()
        schedule.step()
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == schedule.get_last_lr()
    assert [round(rate, 4) for rate in (rates[0] / 0.01, rates[1] / 0.1)] == [published] * 2


def test_the_learning_rate_stays_after_the_last_step():
    optimizer = sgd()
    schedule = GaninLearningRate(optimizer, max_steps=3, alpha=7.0, beta=2.0)
    for _ in range(8):
        optimizer.step()
        schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(0.01 / 8.0**2)]


def test_the_learning_rate_continues_from_its_state():
    rates = []
    for stop in (None, 4):
        optimizer = sgd()
        schedule = GaninLearningRate(optimizer, max_steps=9)
        for step in range(9):
            if step == stop:
                states = copy.deepcopy((optimizer.state_dict(), schedule.state_dict()))
                optimizer = sgd()
                schedule = GaninLearningRate(optimizer, max_steps=9)
                optimizer.load_state_dict(states[0])
                schedule.load_state_dict(states[1])
            optimizer.step()
            schedule.step()
        rates.append(schedule.get_last_lr())
    assert rates[0] == rates[1]


def test_a_steep_schedule_stays_finite_before_its_start():
    assert GaninSchedule(2, gamma=1000.0, low=0.25).at(-1) == 0.25 - 0.75


def test_a_schedule_that_is_none_is_refused_before_it_is_kept():
    layer = GradientReversal(0.5)
    with pytest.raises(TypeError, match="schedule must be a Schedule or None, not int"):
        layer.schedule = 5
    assert layer.schedule is None and layer.scale.item() == 0.5


class Ending(Schedule):
    """Has no value from the second step on."""

    def at(self, progress):
        return 0.25 if progress < 0.5 else math.nan


def test_a_schedule_whose_value_is_refused_is_not_followed():
    bad, good = Ending(4), LinearSchedule(4, low=0.5)
    bad.steps = 2
    layer = GradientReversal(good)
    for name in ("schedule", "scale"):
        with pytest.raises(ValueError, match="scale must not be NaN"):
            setattr(layer, name, bad)
        assert layer.schedule is good and layer.scale.item() == 0.5
    bad.load_state_dict({"steps": 0})
    good.step()
    assert layer.scale.item() == 0.625


@pytest.mark.parametrize(
    "move",
    [
        lambda it: it.step(),
        lambda it: it.load_state_dict({"steps": 2}),
        lambda it: setattr(it, "steps", 2),
    ],
    ids=["step", "load", "set"],
)
def test_a_step_that_a_layer_refuses_is_not_taken(move):
    schedule = Ending(4)
    layers = [GradientReversal(schedule) for _ in range(2)]
    schedule.step()
    with pytest.raises(ValueError, match="scale must not be NaN"):
        move(schedule)
    assert schedule.steps == 1 and [layer.scale.item() for layer in layers] == [0.25, 0.25]


@pytest.mark.parametrize("steps", [np.int64(5), np.uint8(5)])
def test_steps_may_be_numpys(steps):
    schedule = GaninSchedule(steps)
    assert type(schedule.max_steps) is int and repr(schedule) == repr(GaninSchedule(5))
