"""Where a swapped model runs: threads, replicas, checkpoints, transforms, autocast, compilers."""

from __future__ import annotations

import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
import zoo
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import pyrevgrad
from pyrevgrad import DECONVNET, GUIDED, SwapError, reverse, swap


class Net(nn.Module):
    """A body of a layer, a function and a method, called in one of several ways."""

    def __init__(self, how="plainly", reentrant=False, oracle=None):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.act = nn.ReLU() if oracle is None else zoo.Layer(zoo.site_of("relu", oracle))
        self.relu = F.relu if oracle is None else zoo.site_of("relu", oracle)
        self.silu = F.silu if oracle is None else zoo.site_of("silu", oracle)
        self.how, self.reentrant = how, reentrant
        self.double()

    def body(self, x):
        h = self.act(self.a(x))
        return self.silu(h + self.relu(self.b(h)))

    def forward(self, x):
        if self.how == "method":
            h = checkpoint(self.body, x, use_reentrant=self.reentrant)
        elif self.how == "lambda":
            h = self.act(self.a(x))
            h = checkpoint(
                lambda h: self.silu(h + self.relu(self.b(h))), h, use_reentrant=self.reentrant
            )
        elif self.how == "layer":
            h = checkpoint(self.act, self.a(x), use_reentrant=self.reentrant)
            h = self.silu(h + self.relu(self.b(h)))
        else:
            h = self.body(x)
        return self.c(h)


def backward(y, x):
    """Through ``.backward()``, the only one that reentrant checkpointing allows."""
    x.grad = None
    y.sum().backward()
    return x.grad


def leaf():
    own = torch.Generator().manual_seed(1)
    return torch.randn(6, 4, dtype=torch.float64, generator=own).requires_grad_()


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-13)


@pytest.fixture
def wanted():
    x = leaf()
    return backward(Net(oracle="GUIDED")(x), x)


@pytest.fixture
def plain():
    x = leaf()
    return backward(Net()(x), x)


# Checkpointing.


@pytest.mark.parametrize("when", ["inside", "after"])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("how", ["method", "lambda", "layer"])
def test_recomputation_is_modified_inside_and_after_the_block(how, reentrant, when, wanted, plain):
    model, x = Net(how, reentrant), leaf()
    with swap(model, GUIDED):
        y = model(x)
        if when == "inside":
            close(backward(y, x), wanted)
    if when == "after":
        close(backward(y, x), wanted)
    assert type(model) is Net
    close(backward(model(x), x), plain)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("outer", [False, True])
def test_a_checkpoint_of_a_checkpointed_model_after_the_block(outer, inner, wanted):
    model, x = Net("lambda", inner), leaf()
    with swap(model, GUIDED, where={"act": GUIDED}):
        y = checkpoint(model, x, use_reentrant=outer)
    close(backward(y, x), wanted)
    assert type(model) is Net and type(model.act) is nn.ReLU


def test_recomputation_keeps_where(plain):
    model, x = Net("method"), leaf()
    with swap(model, GUIDED, where="act"):
        inside = backward(model(x), x)
        y = model(x)
    close(backward(y, x), inside)
    assert not torch.allclose(inside, plain)


def test_recomputation_meets_the_swap_of_its_forward_and_no_later_one(wanted):
    model, x = Net("method"), leaf()
    with swap(model, GUIDED):
        y = model(x)
    with swap(model, DECONVNET, strict=False):
        close(backward(y, x), wanted)


def test_checkpoint_sequential():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(4))).double()
    x = leaf()
    with swap(model, GUIDED):
        expected = backward(model(x), x)
        y = checkpoint_sequential(model, 2, x, use_reentrant=False)
    close(backward(y, x), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("function", [F.relu, lambda h: F.relu(h), nn.ReLU()])
def test_a_checkpoint_of_one_activation_is_one_site(function, reentrant):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(checkpoint(function, self.first(x), use_reentrant=reentrant))

    model = Checkpointed()
    with swap(model, GUIDED) as swapped:
        model(torch.randn(5, 4, requires_grad=True)).sum().backward()
    (site,) = swapped.report.sites
    assert (site.forward, site.backward) == (2, 1)
    assert site.source.startswith("test_swap_places.py:")


def test_checkpointing_is_pytorchs_own_again():
    before = torch.utils.checkpoint.CheckpointFunction.forward
    generator = torch.utils.checkpoint._checkpoint_without_reentrant_generator
    model = Net("method")
    with swap(model, GUIDED):
        assert torch.utils.checkpoint.CheckpointFunction.forward is not before
        backward(model(x := leaf()), x)
    assert torch.utils.checkpoint.CheckpointFunction.forward is before
    assert torch.utils.checkpoint._checkpoint_without_reentrant_generator is generator


# Threads and replicas.


def in_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_worker_thread_runs_the_swapped_model(wanted):
    model, x = Net(), leaf()
    with swap(model, GUIDED):
        close(in_thread(lambda: backward(model(x), x)), wanted)


def test_several_threads_at_once_are_all_counted(wanted):
    model, results = Net(), []

    def work():
        for _ in range(20):
            x = leaf()
            results.append(torch.autograd.grad(model(x).sum(), x)[0])

    with swap(model, GUIDED) as swapped:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(results) == 80
    for found in results:
        close(found, wanted)
    assert [site.forward for site in swapped.report.replaced] == [80, 80, 80]
    assert [site.backward for site in swapped.report.replaced] == [80, 80, 80]


def replica_of(model):
    """What torch.nn.parallel.replicate makes, on one device."""
    made = model._replicate_for_data_parallel()
    made._parameters = {}
    for name, parameter in model._parameters.items():
        setattr(made, name, None if parameter is None else parameter * 1)
    made._modules = {name: replica_of(child) for name, child in model._modules.items()}
    return made


def test_replicas_are_swapped_and_use_their_own_parameters(wanted):
    model = Net()
    with swap(model, GUIDED) as swapped:
        replica = replica_of(model)
        for module in model.modules():
            for parameter in module._parameters.values():
                parameter.data.zero_()
        x = leaf()
        close(in_thread(lambda: torch.autograd.grad(replica(x).sum(), x)[0]), wanted)
    assert {site.path for site in swapped.report.replaced} == {"", "act"}


@pytest.mark.parametrize(
    "call", [lambda m, x: m.forward(x), lambda m, x: m.c(m.body(x))], ids=["forward", "a method"]
)
def test_methods_that_are_called_directly(call, wanted):
    model, x = Net(), leaf()
    with swap(model, GUIDED):
        close(torch.autograd.grad(call(model, x).sum(), x)[0], wanted)


# Transforms.


def test_functional_call_and_torch_func(wanted):
    model, x = Net(), leaf()
    parameters = {name: p.detach() * 1 for name, p in model.named_parameters()}
    with swap(model, GUIDED):
        y = torch.func.functional_call(model, parameters, (x,))
        close(torch.autograd.grad(y.sum(), x)[0], wanted)
        grad = torch.func.grad(lambda v: model(v[None]).sum())
        close(torch.func.vmap(grad)(x.detach()), wanted)
        y = torch.func.vmap(lambda v: model(v[None])[0])(x)
        close(torch.autograd.grad(y.sum(), x)[0], wanted)
        _, pullback = torch.func.vjp(model, x.detach())
        rows = torch.func.vmap(lambda g: pullback(g.expand(6, 3))[0])(torch.eye(3).double())
    plain_x = leaf()
    y = Net(oracle="GUIDED")(plain_x)
    for column in range(3):
        expected = torch.autograd.grad(y[:, column].sum(), plain_x, retain_graph=True)[0]
        close(rows[column], expected)


class Batched(nn.Module):
    """Layers that run under vmap inside the model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(torch.vmap(self.body)(x))


def test_vmap_inside_the_model_is_counted_and_verify_says_that_it_proves_nothing_there():
    model, x = Batched(), torch.randn(5, 4, requires_grad=True)
    with swap(model, GUIDED) as swapped:
        model(x)[:, 1].sum().backward()
    (site,) = swapped.report.replaced
    assert (site.forward, site.backward) == (1, 1)
    pre, g = model.body[0](x), model.head.weight[1]
    torch.testing.assert_close(x.grad, (g * (pre > 0) * (g > 0)) @ model.body[0].weight)
    with pytest.raises(SwapError, match=r"nn\.ReLU in body\.1 .*under a transform"):
        pyrevgrad.assert_overridden(model, GUIDED, x.detach())


def test_double_backward():
    model = Net()

    def twice(function):
        x = leaf()
        (g,) = torch.autograd.grad(function(x).pow(2).sum(), x, create_graph=True)
        return torch.autograd.grad(g.pow(2).sum(), x)[0]

    def by_site(x):
        h = pyrevgrad.relu(model.a(x), reverse(0.5))
        return model.c(pyrevgrad.silu(h + pyrevgrad.relu(model.b(h), reverse(0.5)), reverse(0.5)))

    expected = twice(by_site)
    with swap(model, reverse(0.5)):
        close(twice(model), expected)


def test_a_gradient_inside_the_forward():
    class Energy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = Net()

        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.net(x).sum(), x)[0]

    model = Energy()
    with swap(model, GUIDED):
        found = model(leaf())
    x = leaf()
    close(found, backward(Net(oracle="GUIDED")(x), x))


@pytest.mark.parametrize("kind", ["softplus", "gelu", "relu"])
def test_autocast_keeps_its_dtypes_and_values(kind):
    model = nn.Sequential(nn.Linear(4, 4), zoo.Layer(getattr(F, kind)), nn.Linear(4, 2))
    x = leaf().detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
        with swap(model, GUIDED):
            swapped = model(x)
    assert swapped.dtype == y.dtype and torch.equal(swapped, y)
    assert torch.autograd.grad(swapped.float().sum(), x)[0].dtype == torch.float32


def test_no_gradient_wanted_runs_pytorchs_own_function():
    model = Net()
    with swap(model, GUIDED) as swapped, torch.no_grad():
        y = model(leaf())
    assert torch.equal(y, model(leaf()))
    assert [site.forward for site in swapped.report.replaced] == [1, 1, 1]


# torch.compile.


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("backend", "warm"), [("eager", True), ("aot_eager", False)])
def test_a_compiled_form_of_the_model_is_never_silently_plain(backend, warm):
    torch._dynamo.reset()
    model, x = zoo.Layer(lambda x: F.relu(x * 3 - 1).sin()), leaf()
    plain = backward(model(x), x)
    oracle = zoo.site_of("relu", "GUIDED")
    wanted = backward(oracle(x * 3 - 1).sin(), x)
    compiled = torch.compile(model, backend=backend)
    if warm:
        close(backward(compiled(x), x), plain)
    try:
        with swap(model, GUIDED):
            close(backward(compiled(x), x), wanted)
    except SwapError as error:
        assert backend != "eager" and "compiled by torch.compile" in str(error)
    close(backward(compiled(x), x), plain)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")
def test_fullgraph_is_refused_by_name():
    torch._dynamo.reset()
    model = Net()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with (
        pytest.raises(Exception, match=r"pyrevgrad\.swap: a swapped model runs uncompiled"),
        swap(model, GUIDED),
    ):
        compiled(leaf())
    torch._dynamo.reset()


def test_warnings_stay_as_they_were():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with swap(Net(), GUIDED) as swapped:
            swapped.model(leaf())
