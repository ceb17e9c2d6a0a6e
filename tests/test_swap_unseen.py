"""Ways past a swap: each is taken, or said, and none leaves a plain gradient unnoticed."""

from __future__ import annotations

import abc
import functools
import threading
import typing
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from swapped_models import Wrapped, run
from torch import nn

import pyrevgrad
from pyrevgrad import GUIDED, SwapError, SwapWarning, reverse, swap
from pyrevgrad.attribution import GuidedBackprop, jacobian
from pyrevgrad.swapping import ModelError

# Data written into what was a parameter.


class Tokens(nn.Module):
    """A learned token that data are added to; `write(token, h)` says how."""

    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.act, self.b = nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16)
        self.c, self.token = nn.Linear(16, 3), nn.Parameter(torch.zeros(8, 16))
        self.write = write
        self.double()

    def forward(self, x):
        return self.c(F.relu(self.write(self.token, self.b(self.act(self.a(x))))))


def copied(into):
    """A way to write that changes a copy of the token."""

    def write(token, h):
        copy = token.clone()
        into(copy, h)
        return copy

    return write


def set_slice(token, h):
    token[:] = h + token


def through_a_view(token, h):
    token.view(-1).add_(h.flatten())


WRITES = {
    "+=": copied(lambda token, h: token.add_(h)),
    "other=": lambda token, h: torch.add(token, other=h),
    "method, other=": lambda token, h: token.add(other=h),
    "sub, other=": lambda token, h: -torch.sub(token, other=h),
    "cast and +=": lambda token, h: token.double().clone().float().double().add_(h),
    "index_add_": copied(lambda token, h: token.index_add_(0, torch.arange(8), h)),
    "a slice": copied(set_slice),
    "a view": copied(through_a_view),
    "copy_": copied(lambda token, h: token.copy_(h)),
}


@pytest.mark.parametrize("name", WRITES)
def test_data_written_into_a_copy_of_a_parameter_are_data(name):
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(1)).double()
    plainly = Tokens(lambda token, h: token + h)
    wanted = GuidedBackprop(plainly).attribute(x, target=1)
    model = Tokens(WRITES[name])
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, target=1), wanted)
    with swap(model, GUIDED, strict="all") as swapped:
        model(x.requires_grad_()).sum().backward()
    assert [site.forward for site in swapped.report.replaced] == [1, 1]


def test_what_is_made_of_the_parameter_alone_is_still_left():
    model = Tokens(lambda token, h: h + F.relu(token.clone().mul_(2.0).add_(1.0)))
    with swap(model, GUIDED) as swapped:
        model(torch.randn(8, 6).double().requires_grad_()).sum().backward()
    assert [site.reason for site in swapped.report.left] == [
        "its input is a parameter of the model, and so it is no activation of the data"
    ]


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


class Mixed:
    def encode(self, x):
        return F.relu(self.a(x))


class Mixing(nn.Module, Mixed):
    def __init__(self):
        super().__init__()
        self.a, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.a(x))


def test_a_method_of_a_class_mixed_in_behind_the_module_is_taken():
    model = Mixing()
    with swap(model, GUIDED, strict="all") as swapped:
        model.encode(torch.randn(2, 4)).sum().backward()
    assert [site.kind for site in swapped.report.replaced if site.backward] == ["relu"]


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


class CheckpointFunction(torch.autograd.Function):
    """A checkpoint of somebody else's, of the same name as PyTorch's."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function = function
        ctx.save_for_backward(x)
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, g):
        x = ctx.saved_tensors[0].detach().requires_grad_()
        with torch.enable_grad():
            y = ctx.function(x)
        return None, torch.autograd.grad(y, x, g)[0]


def test_a_checkpoint_of_ones_own_is_not_taken_for_pytorchs():
    model = Wrapped(lambda x: CheckpointFunction.apply(F.relu, x))
    with (
        pytest.warns(SwapWarning, match="custom autograd.Function called CheckpointFunction"),
        swap(model, GUIDED),
    ):
        run(model, dtype=torch.float32)


# Written by hand.

BY_HAND = {
    "hard swish": lambda h: h * F.relu6(h + 3) / 6,
    "hard swish by hardtanh": lambda h: h * F.hardtanh(h + 3, 0, 6) / 6,
    "hard swish by clamp": lambda h: h * torch.clamp(h + 3, 0, 6) / 6,
    "hard sigmoid": lambda h: F.relu6(h + 3) / 6,
    "hard sigmoid by clamp": lambda h: (3 + h).clamp(min=0, max=6) / 6,
    "swish by expit": lambda h: h * torch.special.expit(h),
    "swish, in place": lambda h: h.clone().mul_(h.sigmoid()),
    "swish of what is clamped": lambda h: (c := h.clamp(max=7.0)) * torch.sigmoid(1.702 * c),
    "relu by where": lambda h: h.where(h > 0, torch.zeros_like(h)),
    "relu by maximum": lambda h: torch.maximum(h, other=torch.zeros_like(h)),
    "relu by where of a tensor": lambda h: torch.where(h > 0, h, torch.tensor(0.0).double()),
    "relu by integers": lambda h: h * (h > 0).long(),
    "relu by what is not negative": lambda h: h * (~(h < 0)),
    "relu by a detached gate": lambda h: h * (h.detach() > 0),
    "relu by greater": lambda h: h * torch.greater(h, 0),
    "gelu by ndtr": lambda h: h * torch.special.ndtr(h),
    "relu by masked_fill": lambda h: h.masked_fill(h < 0, 0.0),
    "an operator of ATen": lambda h: torch.ops.aten.mul.Tensor(h, torch.ops.aten.sigmoid(h)),
    "overloads of ATen": lambda h: torch.ops.aten.mul.Tensor(
        h, torch.ops.aten.clamp.default(torch.ops.aten.add.Tensor(h, 3), 0, 6)
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_what_is_written_by_hand_warns(name):
    model = Wrapped(BY_HAND[name]).double()
    with pytest.warns(SwapWarning, match="written by hand"), swap(model, GUIDED):
        run(model)


INNOCENT = {
    "a shift into another clamp": lambda h: torch.clamp(h + 3, -6, 6),
    "a clamp of a sum": lambda h: torch.clamp(h + 2, 0, 6),
    "a product of two": lambda h: h * torch.sigmoid(h.flip(0)),
    "a normalisation": lambda h: h / h.norm(dim=-1, keepdim=True).clamp(min=1e-6),
    "a floor": lambda h: torch.maximum(h, torch.full_like(h, 1e-6)),
    "a bound": lambda h: h.masked_fill(h > 9.0, 9.0),
    "zeros that were filled": lambda h: torch.maximum(h, torch.zeros_like(h).copy_(h.flip(0))),
}


@pytest.mark.parametrize("name", INNOCENT)
def test_what_is_no_activation_by_hand_does_not_warn(name):
    model = Wrapped(INNOCENT[name]).double()
    with swap(model, GUIDED, strict="all"):
        run(model)


@pytest.mark.filterwarnings("ignore::pyrevgrad.SwapWarning", "ignore::FutureWarning")
def test_a_decomposed_exported_graph_says_what_it_does_not_take():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)

        def forward(self, x):
            return F.silu(self.b(self.act(self.a(x))))

    exported = torch.export.export(Both(), (torch.randn(2, 4),))
    model = exported.run_decompositions().module()
    with swap(model, GUIDED, strict=False) as swapped:
        model(torch.randn(2, 4, requires_grad=True)).sum().backward()
    assert len(swapped.report.replaced) == 1
    silus = [site for site in swapped.report.sites if "silu" in site.kind or not site.certain]
    assert silus, "silu is taken whole, or the product of its parts is said"


# Classes that a swap's own must stand for.

T = typing.TypeVar("T")


class Core:
    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.act = nn.Linear(4, 4), nn.ReLU()

    def forward(self, x):
        return self.act(self.a(x))


class Abstract(Core, abc.ABC, nn.Module):
    pass


class Typed(typing.Generic[T], Core, nn.Module):
    pass


class Child(Abstract):
    pass


class Tabular(Core, nn.Module, dict):
    __hash__ = nn.Module.__hash__


@pytest.mark.parametrize("cls", [Abstract, Typed, Child, Tabular])
def test_a_class_that_does_not_begin_as_a_module_can_be_swapped(cls):
    model, x = cls(), torch.randn(3, 4)
    wanted = GuidedBackprop(nn.Sequential(model.a, nn.ReLU())).attribute(x, target=1)
    torch.testing.assert_close(GuidedBackprop(model).attribute(x, target=1), wanted)
    with swap(model, GUIDED) as swapped:
        assert "swap(GUIDED)" in repr(model) and isinstance(model, cls)
        model(x)
    assert type(model) is cls and len(swapped.report.replaced) == 1


def test_hooks_of_a_class_that_begins_as_abc_do_not_hear_of_the_swaps_own():
    registry = {}

    class Registering(abc.ABC, nn.Module):
        def __init_subclass__(cls, *, key, **rest):
            super().__init_subclass__(**rest)
            registry[key] = cls

    class One(Core, Registering, key="one"):
        pass

    model = One()
    with swap(model, GUIDED) as swapped:
        model(torch.randn(3, 4))
    assert registry == {"one": One} and len(swapped.report.replaced) == 1


class Checked(type(nn.Module)):
    def __new__(mcs, name, bases, body):
        if "documented" not in body:
            raise TypeError("every class must be documented")
        return super().__new__(mcs, name, bases, body)


def test_a_class_that_allows_no_other_is_refused_by_name():
    class Strict(Core, nn.Module, metaclass=Checked):
        documented = True

    model = nn.Sequential(nn.ReLU(), Strict())
    sentence = r"cannot hold a .*Strict, .*no subclass made at run time: every class must be"
    with pytest.raises(ModelError, match=sentence):
        swap(model, GUIDED)
    assert type(model) is nn.Sequential and type(model[0]) is nn.ReLU and type(model[1]) is Strict


def test_training_code_bound_before_a_swap_is_named_with_its_line():
    model = Net()
    bound = model.forward
    with (
        pytest.raises(SwapError, match=r"Net\.forward calls itself in the model itself \(test_"),
        swap(model, reverse(0.5)),
    ):
        bound(x_of())
    assert pyrevgrad.assert_overridden(model, reverse(0.5), x_of()).differing
