"""Optimizers and schedulers that fit takes, and those that would train nothing in silence."""

import copy
import warnings

import pytest
import torch
from adversaries import network, same, train
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from pyrevgrad.adversarial import GaninLearningRate, GaninSchedule


def sgd(model):
    return SGD(model.parameters(), 0.1, momentum=0.9)


def scheduled(make):
    def made(model):
        optimizer = sgd(model)
        return {"optimizer": optimizer, "scheduler": make(optimizer)}

    return made


def of_another(model):
    return {"optimizer": sgd(model), "scheduler": StepLR(sgd(model), 2)}


REFUSED = {
    "a closure": (
        lambda model: {"optimizer": torch.optim.LBFGS(model.parameters())}, TypeError,
        r"that of LBFGS needs its closure: train in a loop of your own",
    ),
    "metrics": (
        scheduled(ReduceLROnPlateau), TypeError,
        r"ReduceLROnPlateau\.step\(\) needs its metrics: leave it out and step it in after_epoch",
    ),
    "a copy's parameters": (
        lambda model: {"optimizer": sgd(copy.deepcopy(model))}, ValueError,
        "holds none of the model's trainable parameters, so that nothing would train",
    ),
    "another optimizer's scheduler": (
        of_another, ValueError, "the scheduler is of another optimizer, whose rates it would change"
    ),
    "a schedule of λ": (
        scheduled(lambda optimizer: GaninSchedule(12)), TypeError,
        "GaninSchedule is a schedule of λ: give it to the network, as scale=",
    ),
    "a scheduler's class": (
        scheduled(lambda optimizer: StepLR), TypeError,
        r"scheduler is the class StepLR: make one, as StepLR\(the optimizer, …\)",
    ),
    "a scheduler's name": (
        scheduled(lambda optimizer: "cosine"), TypeError,
        r"scheduler must be a scheduler of torch\.optim: 'cosine' has no step\(\)",
    ),
    "an optimizer's class": (
        lambda model: {"optimizer": Adam}, TypeError,
        r"optimizer is the class Adam: make one, as Adam\(model\.parameters\(\), …\)",
    ),
    "an optimizer's name": (
        lambda model: {"optimizer": "adam"}, TypeError,
        r"optimizer must be an optimizer of torch\.optim: 'adam' has no step\(\)",
    ),
    "scores without names": (
        lambda model: {"scores": (1, 2)}, TypeError,
        r"scores is a dict of data by name, as {'target': \(x, y\)}, not a tuple",
    ),
    "no function": (
        lambda model: {"after_epoch": 3}, TypeError,
        "after_epoch is called with the record of an epoch, and 3 is no function",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_could_not_train_is_refused_before_a_weight_changes(what):
    options, kind, message = REFUSED[what]
    model = network()
    with pytest.raises(kind, match=message):
        train(model, **options(model))
    assert same(model, network())


TAKEN = {
    "one after another": lambda o: SequentialLR(o, [StepLR(o, 2), ExponentialLR(o, 0.9)], [2]),
    "chained": lambda o: ChainedScheduler([StepLR(o, 2), ExponentialLR(o, 0.9)]),
    "a cycle": lambda o: OneCycleLR(o, 0.1, 12),
    "the paper's": lambda o: GaninLearningRate(o, 12),
}


@pytest.mark.parametrize("make", TAKEN.values(), ids=TAKEN)
def test_schedulers_of_the_optimizer_are_taken_whatever_holds_them(make):
    model = network()
    rates = [record["learning_rate"] for record in train(model, **scheduled(make)(model)).epochs]
    assert len(set(rates)) > 1


def test_a_wrapper_that_shares_its_groups_is_the_same_optimizer():
    class Wrapped(torch.optim.Optimizer):
        def __init__(self, inside):
            self.inside, self.param_groups = inside, inside.param_groups

        def zero_grad(self):
            self.inside.zero_grad()

        def step(self):
            self.inside.step()

    model = network()
    optimizer = sgd(model)
    train(model, optimizer=Wrapped(optimizer), scheduler=StepLR(optimizer, 2))
    assert not same(model, network())


def test_a_part_that_the_optimizer_does_not_hold_is_named():
    model = network()
    held = [*model.features.parameters(), model.label_head.weight]
    message = "does not hold label_head.bias, domain_head, which will not train; requires_grad_"
    with pytest.warns(UserWarning, match=message):
        train(model, optimizer=SGD(held, 0.1))


def test_a_part_that_is_frozen_may_be_left_out():
    model = network()
    model.domain_head.requires_grad_(False)
    held = [*model.features.parameters(), *model.label_head.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer=Adam(held, 0.1))
    assert not same(model, network())
