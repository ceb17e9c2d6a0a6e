"""Code past a swap: it is taken, or said, and none leaves a plain gradient unnoticed."""

from __future__ import annotations

import functools
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from swapped_models import Wrapped, run
from torch import nn

import pyrevgrad
from pyrevgrad import GUIDED, SwapError, SwapWarning, reverse, swap
from pyrevgrad.attribution import jacobian

# The model's own code, not called by way of the swapped model.


class Net(nn.Module):
    """Two layers and a relu of its own between them, reached in many ways."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)
        self.partly = functools.partial(Net.static, self)
        self.double()

    def forward(self, x):
        return self.b(F.relu(self.act(self.a(x)) - 0.1))

    @staticmethod
    def static(model, x):
        return model.b(F.relu(model.act(model.a(x)) - 0.1))

    @classmethod
    def of_class(cls, model, x):
        return model.b(F.relu(model.act(model.a(x)) - 0.1))

    def __getitem__(self, x):
        return self.b(F.relu(self.act(self.a(x)) - 0.1))

    @functools.lru_cache  # noqa: B019
    def cached(self, x):
        return self.b(F.relu(self.act(self.a(x)) - 0.1))

    by_part = functools.partialmethod(__getitem__)

    def lazily(self, x):
        yield self.b(F.relu(self.act(self.a(x)) - 0.1))

    def explain(self, x):
        with swap(self, GUIDED):
            return self(x)


def x_of():
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double().requires_grad_()


UNSEEN = {
    "a bound forward": lambda model, bound, x: bound(x),
    "a forward of the class": lambda model, bound, x: Net.forward(model, x),
    "a static method": lambda model, bound, x: model.static(model, x),
    "an operator": lambda model, bound, x: model[x],
    "a cached method": lambda model, bound, x: model.cached(x),
    "a part of a method": lambda model, bound, x: model.by_part(x),
    "a partial of the instance": lambda model, bound, x: model.partly(x),
    "a generator": lambda model, bound, x: next(iter(model.lazily(x))),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_code_of_the_model_that_the_swap_does_not_see_raises(name):
    model = Net()
    bound = model.forward
    with (
        pytest.raises(SwapError, match=r"what Net\.\w+ calls itself .*it runs unseen, since"),
        swap(model, GUIDED),
    ):
        UNSEEN[name](model, bound, x_of())
    with swap(model, GUIDED, strict=False) as swapped, warnings.catch_warnings():
        warnings.simplefilter("ignore", SwapWarning)
        UNSEEN[name](model, bound, x_of()).sum().backward()
    assert any("it runs unseen" in site.reason for site in swapped.report.left)
    assert type(model) is Net


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_a_forward_that_was_compiled_before_raises(backend):
    model = Net()
    compiled = torch.compile(model.forward, backend=backend)
    with (
        pytest.raises(SwapError, match=r"what Net\.forward calls itself .*bound or compiled"),
        swap(model, GUIDED),
    ):
        compiled(x_of())


def test_a_method_that_swaps_its_own_model_is_no_unseen_code():
    assert Net().explain(x_of()).shape == (5, 3)


def test_a_model_that_contains_a_swapped_one_of_its_class_is_none_of_it():
    class Chain(nn.Module):
        def __init__(self, inner=None):
            super().__init__()
            self.linear, self.inner = nn.Linear(4, 4), inner

        def forward(self, x):
            h = F.relu(self.linear(x))
            return h if self.inner is None else self.inner(h)

    inner = Chain(Chain())
    outer = Chain(inner)
    with swap(inner, GUIDED, strict="all") as swapped:
        outer(torch.randn(3, 4).requires_grad_()).sum().backward()
    assert [site.forward for site in swapped.report.replaced] == [1, 1]


def test_calls_of_parts_alone_warn_and_raise_under_strict_all():
    model, x = Net(), x_of()
    with (
        pytest.warns(SwapWarning, match="only parts of the model were called"),
        swap(model, GUIDED),
    ):
        model.act(model.a(x)).sum().backward()
    with (
        pytest.warns(SwapWarning),
        pytest.raises(SwapError, match="what Net calls itself"),
        swap(model, GUIDED, strict="all"),
    ):
        model.act(model.a(x)).sum().backward()


def test_a_container_has_no_forward_of_its_own_to_call():
    parts = nn.ModuleDict({"a": nn.Linear(4, 4), "act": nn.ReLU()})
    with swap(parts, GUIDED, strict="all") as swapped:
        parts["act"](parts["a"](torch.randn(2, 4))).sum().backward()
    assert swapped.report.replaced[0].backward == 1


def test_parts_that_where_names_may_be_called_alone():
    model, x = Net(), x_of()
    with swap(model, GUIDED, where="act", strict="all") as swapped:
        model.act(model.a(x)).sum().backward()
    assert swapped.report.replaced[0].backward == 1


def test_a_method_that_swaps_its_own_model_may_call_its_parts():
    class Own(Net):
        def map(self, x):
            with swap(self, GUIDED, strict="all"):
                return torch.autograd.grad(self.act(self.a(x)).sum(), x)[0]

    assert Own().map(x_of()).shape == (5, 4)


def test_a_function_that_is_given_the_model_is_none_of_it():
    model, x = Net(), x_of()
    with pytest.warns(SwapWarning, match="only parts of the model"), swap(model, GUIDED):
        Net.of_class(model, x)
    teacher, student = Net(), Net()

    def distil(self, other, x):
        return other.act(other.a(x)) - self.a(x)

    with pytest.warns(SwapWarning, match="only parts of the model"), swap(teacher, GUIDED):
        distil(student, teacher, x)


class Runner(Net):
    """Runs its own model in a thread, a loop and a generator of its own."""

    def train(self, batches=True):
        if isinstance(batches, bool):
            return super().train(batches)
        return [self(x) for x in batches]

    def stream(self, batches):
        for x in batches:
            yield self(x)

    def only_modules(self, x):
        return self.b(self.act(self.a(x)))


def test_loops_of_the_model_that_call_it_whole_are_no_unseen_code():
    model, x = Runner(), x_of()
    loop, stream = model.train, model.stream
    with swap(model, GUIDED, strict="all") as swapped:
        for y in (*loop([x, x]), *stream([x])):
            y.sum().backward()
    assert [site.backward for site in swapped.report.replaced] == [3, 3]


def test_unseen_code_that_names_no_activation_warns():
    model, x = Runner(), x_of()
    bound = model.only_modules
    warned = pytest.warns(SwapWarning, match=r"Runner\.only_modules calls itself")
    with warned, swap(model, GUIDED):
        bound(x).sum().backward()


def test_weights_that_are_read_outside_of_the_model_are_no_calls_of_it():
    weighted = nn.utils.parametrizations.weight_norm(nn.Linear(4, 8))
    model = nn.Sequential(weighted, nn.ReLU())
    with swap(model, GUIDED, strict="all") as swapped:
        (model(torch.randn(3, 4)).sum() + model[0].weight.norm()).backward()
    assert swapped.report.replaced[0].backward == 1


def test_a_thread_that_runs_the_model_as_the_swap_begins_is_left_alone():
    started, go_on, done = threading.Event(), threading.Event(), threading.Event()
    errors = []

    class Waiting(Net):
        def forward(self, x):
            h = self.act(self.a(x))
            if threading.current_thread() is not threading.main_thread():
                started.set()
                go_on.wait(20)
            return self.b(F.relu(self.act(h) - 0.1))

    model, x = Waiting(), x_of()

    def serve():
        try:
            model(x.detach())
        except Exception as error:
            errors.append(error)
        done.set()

    thread = threading.Thread(target=serve)
    thread.start()
    started.wait(20)
    with swap(model, GUIDED, strict="all"):
        go_on.set()
        done.wait(20)
        model(x).sum().backward()
    thread.join()
    assert not errors


def test_a_swap_that_a_call_in_a_thread_ended_says_so_at_its_end():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU())
    heard = []

    def work():
        try:
            model(torch.randn(2, 4))
        except SwapError as error:
            heard.append(error)

    sentence = "the swap ended before its block did: the swap of Sequential did not reach 1"
    with pytest.raises(SwapError, match=sentence), swap(model, GUIDED):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert len(heard) == 1


def test_nothing_of_what_ran_as_a_swap_began_is_kept():
    class Holding(Net):
        def begin(self):
            local = torch.randn(3)
            self.kept = swap(self, GUIDED, strict=False)
            return weakref.ref(local)

    model = Holding()
    assert model.begin()() is None
    model.kept.revert()


def test_training_code_bound_before_a_swap_is_named_with_its_line():
    model = Net()
    bound = model.forward
    with (
        pytest.raises(SwapError, match=r"Net\.forward calls itself in the model itself \(test_"),
        swap(model, reverse(0.5)),
    ):
        bound(x_of())
    assert pyrevgrad.assert_overridden(model, reverse(0.5), x_of()).differing


# What the graph shows of scripted functions and threads.


def scripted(function):
    return torch.jit.script(function)


def clamped(x):
    return torch.clamp(x, min=0.0)


def sixth(x):
    return F.relu6(x)


def swish(x):
    return x * torch.sigmoid(x)


def tangent(x):
    return torch.tanh(x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_relu6_raises():
    model = Wrapped(scripted(sixth))
    with pytest.raises(SwapError, match="HardtanhBackward is in the graph"), swap(model, GUIDED):
        run(model, dtype=torch.float32)


@pytest.mark.parametrize("function", [clamped, swish])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_code_that_may_be_an_activation_warns_at_once(function):
    model = Wrapped(scripted(function))
    with (
        pytest.warns(SwapWarning, match="made by a call that the swap cannot see"),
        swap(model, GUIDED),
    ):
        run(model, dtype=torch.float32)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_tanh_raises_where_every_activation_is_meant():
    model = Wrapped(scripted(tangent))
    with (
        pytest.raises(SwapError, match="TanhBackward is in the graph"),
        swap(model, GUIDED, where=lambda site: True),
    ):
        run(model, dtype=torch.float32)


def test_an_lstm_of_which_all_is_taken_leaves_no_finding():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.act = nn.LSTM(4, 4, batch_first=True), nn.ReLU()

        def forward(self, x):
            return self.act(self.lstm(x)[0])

    model = Recurrent()
    with swap(model, GUIDED) as swapped:
        model(torch.randn(2, 3, 4).requires_grad_()).sum().backward()
    assert [site.kind for site in swapped.report.left] == ["fused tanh"]


def test_what_is_left_is_seen_at_every_level_of_torch_func():
    model = nn.Sequential(nn.Linear(4, 4), nn.ELU(), nn.ReLU(), nn.Tanh())
    weights = dict(model.named_parameters())

    def adapted(weights, x):
        inner = torch.func.grad(lambda w: torch.func.functional_call(model, w, (x,)).sum())
        stepped = {name: w - 0.1 * g for (name, w), g in zip(
            weights.items(), inner(weights).values(), strict=True)}  # fmt: skip
        return torch.func.functional_call(model, stepped, (x,)).sum()

    with swap(model, GUIDED, where=nn.ReLU, strict="all"):
        found = torch.func.grad(adapted)(weights, torch.randn(3, 4))
    assert set(found) == set(weights)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_graph_is_read_under_torch_func_too():
    model, x = Wrapped(scripted(sixth)).float(), torch.randn(3, 4)
    with pytest.raises(SwapError, match="HardtanhBackward is in the graph"):
        jacobian(model, x, rule=GUIDED)
    with pytest.raises(SwapError, match="HardtanhBackward is in the graph"), swap(model, GUIDED):
        torch.func.grad(lambda t: model(t).sum())(x)
