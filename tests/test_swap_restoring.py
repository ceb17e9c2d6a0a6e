"""The swap puts everything back, touches nothing else, and refuses what it cannot see into."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import sys
import time
import weakref

import pytest
import torch
import torch.nn.functional as F
import zoo
from swapped_models import Net, Wrapped, run
from threads import together
from torch import nn

import pyrevgrad
from pyrevgrad import DECONVNET, GUIDED, SwapError, reverse, swap
from pyrevgrad.swapping import holding, recomputation

# Putting back.


def snapshot(model):
    return [
        (
            name, module, type(module), module.training, getattr(module, "inplace", None),
            list(vars(module)), list(module._forward_hooks), list(module._forward_pre_hooks),
        )
        for name, module in model.named_modules(remove_duplicate=False)
    ]  # fmt: skip


@pytest.mark.parametrize("raises", [False, True])
def test_everything_is_as_before(raises):
    model = Net()
    model.act.register_forward_hook(lambda module, args, y: None)
    model.unused.eval()
    before, keys = snapshot(model), list(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    try:
        with swap(model, GUIDED):
            assert list(model.state_dict()) == keys
            assert isinstance(model, Net) and isinstance(model.act, nn.ReLU)
            run(model)
            if raises:
                model(torch.zeros(1, 9))
    except RuntimeError:
        assert raises
    assert snapshot(model) == before
    assert [id(parameter) for parameter in model.parameters()] == parameters
    assert pyrevgrad.autograd.watcher is None


def test_in_place_layers_keep_their_aliasing():
    class Aliasing(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x):
            h = x * 1
            y = self.act(h)
            return y + h, y is h

    model, x = Aliasing(), torch.tensor([-1.0, 2.0], requires_grad=True)
    with swap(model, GUIDED):
        y, same = model(x)
    assert same and y.tolist() == [0.0, 4.0]


def test_nested_swaps_are_put_back_in_either_order():
    model = Net()
    for inner_first in (True, False):
        outer, inner = swap(model, DECONVNET, strict=False), swap(model, GUIDED, "act", False)
        run(model)
        assert {repr(s.rule) for s in outer.report.replaced if s.backward} == {"DECONVNET"}
        assert [s.path for s in inner.report.replaced if s.backward] == ["act"]
        for one in (inner, outer) if inner_first else (outer, inner):
            one.revert()
        assert type(model) is Net and type(model.act) is nn.ReLU


def test_a_copy_of_a_swapped_model_is_a_plain_model():
    model = Net()
    plain = zoo.gradient(model, x := torch.randn(5, 4).double())[1]
    with swap(model, GUIDED):
        run(model)
        stream = io.BytesIO()
        torch.save(model, stream)
        stream.seek(0)
        loaded = torch.load(stream, weights_only=False)
        for made in (copy.deepcopy(model), copy.copy(model), pickle.loads(pickle.dumps(model))):
            assert type(made) is Net
        deep = copy.deepcopy(model)
        for made in (deep, loaded):
            assert type(made.act) is nn.ReLU and made.act is made.alias
            assert torch.equal(zoo.gradient(made, x)[1], plain)


def test_another_model_is_not_touched():
    model, other = Net(), Net()
    x = torch.randn(5, 4).double()
    plain = zoo.gradient(other, x)[1]
    with swap(model, GUIDED):
        run(model)
        assert torch.equal(zoo.gradient(other, x)[1], plain)


def test_pyrevgrads_own_activations_are_replaced_unless_they_have_a_rule():
    act = pyrevgrad.nn.Activation
    model = nn.Sequential(
        nn.Linear(4, 4), act("relu"), nn.Linear(4, 4), act("gelu", reverse(0.5))
    ).double()
    with swap(model, GUIDED) as swapped:
        run(model)
    assert [(site.path, site.rule) for site in swapped.report.replaced] == [("1", GUIDED)]
    assert [site.reason for site in swapped.report.left] == [
        "it has a rule of its own: reverse(0.5)"
    ]


def test_the_innermost_of_two_swaps_replaces_pyrevgrads_own_activation():
    act, x = pyrevgrad.nn.Activation("relu"), torch.tensor([-1.0, -1.0, 2.0], requires_grad=True)
    g = torch.tensor([1.0, -1.0, 3.0])
    with swap(act, DECONVNET) as outer, swap(act, GUIDED) as inner:
        (gx,) = torch.autograd.grad(act(x), x, g)
    # DeconvNet passes the first one too.
    assert gx.tolist() == [0.0, 0.0, 3.0]
    assert [site.backward for site in inner.report.replaced] == [1]
    assert not outer.report.replaced


# Models that cannot be swapped.


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_exported_and_compiled_models_are_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    refused = {
        "a ScriptModule": torch.jit.trace(model, torch.randn(1, 4)),
        "ExportedProgram": torch.export.export(model, (torch.randn(1, 4),)),
        "compiled by torch.compile": torch.compile(model),
    }
    for name, given in refused.items():
        with pytest.raises(SwapError, match=name) as caught:
            swap(given, GUIDED)
        assert isinstance(caught.value, TypeError)
    inner = nn.Sequential(copy.deepcopy(model))
    inner[0].compile()
    with pytest.raises(SwapError, match=r"0 is compiled by Module\.compile\(\)"):
        swap(inner, GUIDED)


def test_the_cure_for_a_compiled_part_works_as_it_is_written():
    model = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"act": torch.compile(nn.ReLU())}))
    with pytest.raises(SwapError, match=r"1\.act is compiled by torch\.compile") as caught:
        swap(model, GUIDED)
    exec(str(caught.value).rpartition(" after ")[2])
    with swap(model, GUIDED, strict=False) as swapped:
        assert [site.path for site in swapped.report.replaced] == ["1.act"]


def test_an_exported_programs_module_is_swapped():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2), nn.GELU()).double()
    x = torch.randn(3, 4).double()
    exported = torch.export.export(model, (x,)).module()
    with swap(exported, GUIDED) as swapped:
        found = zoo.gradient(exported, x)[1]
    with swap(model, GUIDED):
        wanted = zoo.gradient(model, x)[1]
    torch.testing.assert_close(found, wanted)
    assert {site.kind for site in swapped.report.replaced} == {"relu", "gelu"}


def test_a_float_model_with_a_plan_to_quantise_it_is_served():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    model.qconfig = model[1].qconfig = "what prepare() would read"
    with swap(model, GUIDED) as swapped:
        model(torch.randn(2, 3)).sum().backward()
    assert [site.path for site in swapped.report.replaced] == ["1"]


@pytest.mark.filterwarnings("ignore")
def test_quantised_models_are_refused_by_name():
    model = nn.Sequential(torch.ao.nn.quantized.Linear(4, 4))
    with pytest.raises(SwapError, match=r"0 is quantised \(.*Linear\)"):
        swap(model, GUIDED)


def test_a_method_that_runs_no_activation_does_not_raise():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).double()
    with swap(model, GUIDED) as swapped:
        model.append(nn.ReLU())
        run(model)
    assert [site.forward for site in swapped.report.replaced] == [1, 1]
    assert [type(module) for module in model] == [nn.Linear, nn.ReLU, nn.ReLU]


@pytest.mark.parametrize("function", [nn.ReLU(), lambda x: x.relu(), F.gelu])
def test_tracing_a_swapped_model_is_refused(function):
    model = Wrapped(function)
    with swap(model, GUIDED, strict=False):
        with pytest.raises(pyrevgrad.TracingError, match="symbolic_trace would replace"):
            torch.fx.symbolic_trace(model)
        with pytest.raises(pyrevgrad.TracingError, match="would replace the backward"):
            torch.export.export(model, (torch.randn(1, 4),))
    traced = torch.fx.symbolic_trace(model)
    with swap(traced, GUIDED) as swapped:
        run(traced, dtype=torch.float32)
    assert len(swapped.report.replaced) == 2


def test_classes_that_watch_their_subclasses_do_not_see_the_swap():
    seen = []

    class Watching(nn.Module):
        def __init_subclass__(cls, *, needed, **options):
            seen.append(cls)

    class Child(Watching, needed=1):
        def forward(self, x):
            return F.relu(x)

    model = Child()
    with swap(model, GUIDED):
        run(model)
    assert seen == [Child] and type(model) is Child


def test_a_lazy_layer_keeps_the_class_that_it_took():
    model = nn.Sequential(nn.LazyLinear(5), nn.ReLU())
    with swap(model, GUIDED):
        run(model, dtype=torch.float32)
    assert type(model[0]) is nn.Linear and "_pyrevgrad_places" not in vars(model[0])


def test_nothing_of_the_model_is_kept_alive():
    model = Wrapped(F.relu).double()
    reference = weakref.ref(model)
    with swap(model, GUIDED) as swapped:
        run(model)
    del model, swapped
    gc.collect()
    assert reference() is None


def test_swaps_that_come_and_go_in_many_threads_leave_every_class_as_it_was():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.ReLU()) for _ in range(8)))
    classes = [type(module) for module in model.modules()]

    def come_and_go():
        for _ in range(60):
            with swap(model, GUIDED, strict=False):
                pass

    together(come_and_go, 4, interval=1e-6)
    assert [type(module) for module in model.modules()] == classes
    assert not any("_pyrevgrad_places" in module.__dict__ for module in model.modules())


def test_swaps_of_other_models_in_other_threads_neither_stay_nor_end_each_other(monkeypatch):
    monkeypatch.setattr(recomputation, "LIVE", recomputation.LIVE)
    monkeypatch.setattr(pyrevgrad.autograd, "watcher", None)

    def give_way(frame, event, arg):
        time.sleep(0)
        return give_way

    def swap_my_own():
        act = pyrevgrad.nn.Activation("relu")
        x = torch.ones(1, requires_grad=True)
        # Another thread's turn at every line of the swap.
        sys.settrace(lambda frame, *_: give_way if frame.f_code.co_filename == room else None)
        for _ in range(30):
            # The rule stops the gradient; PyTorch's own would pass it.
            with swap(act, GUIDED):
                (gx,) = torch.autograd.grad(act(x), x, -torch.ones(1))
            assert gx.item() == 0

    room = holding.__file__
    together(swap_my_own, 4)
    assert not recomputation.LIVE and pyrevgrad.autograd.watcher is None
