"""Attributions in several threads: turns on what models share, and none on what they do not."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref

import pytest
import torch
from threads import together
from torch import nn

from pyrevgrad import GUIDED
from pyrevgrad.attribution import (
    Deconvolution,
    GuidedBackprop,
    GuidedGradCam,
    RectGrad,
    Saliency,
    jacobian,
    sanity_check,
)
from pyrevgrad.attribution.turns import alone


def layers():
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(3) for part in (nn.Conv2d(2, 2, 1), nn.ReLU())))


def headed(body):
    return nn.Sequential(body, nn.Flatten(), nn.Linear(32, 3))


def batch():
    return torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(1))


def by_hand(model, x, backward):
    """The map of output 1, with each ReLU of the body and its backward spelled out."""

    class Spelled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h):
            ctx.save_for_backward(h)
            return h.clamp(min=0)

        @staticmethod
        def backward(ctx, g):
            return backward(*ctx.saved_tensors, g)

    x = h = x.clone().requires_grad_()
    for layer in model[0]:
        h = Spelled.apply(h) if isinstance(layer, nn.ReLU) else layer(h)
    y = model[2](h.flatten(1))
    return torch.autograd.grad(y[:, 1].sum(), x)[0]


def test_methods_on_one_model_take_turns():
    model, x = headed(layers()), batch()
    methods = [GuidedBackprop(model), Deconvolution(model), Saliency(model)]
    wanted = [method.attribute(x, 1) for method in methods]
    waiting = iter(list(zip(methods, wanted, strict=True)) * 4)

    def work():
        method, expected = next(waiting)
        assert torch.equal(method.attribute(x, 1), expected)

    together(work, 12)


def test_models_that_share_a_body_take_turns():
    body, x = layers(), batch()
    guided, plain, deconvnet = (headed(body) for _ in range(3))
    wanted = [
        by_hand(guided, x, lambda h, g: g * (h > 0) * (g > 0)),
        by_hand(plain, x, lambda h, g: g * (h > 0)),
        by_hand(deconvnet, x, lambda h, g: g * (g > 0)),
    ]
    wanted[1] = wanted[1].abs()
    methods = GuidedBackprop(guided), Saliency(plain), Deconvolution(deconvnet)
    waiting = iter(zip(methods, wanted, strict=True))

    def work():
        method, expected = next(waiting)
        for _ in range(20):
            torch.testing.assert_close(method.attribute(x, 1), expected)

    together(work, 3, interval=1e-4)


CALLS = {
    "guided": lambda model, x: GuidedBackprop(model).attribute(x, 1),
    "saliency": lambda model, x: Saliency(model).attribute(x, 1),
    "rectgrad": lambda model, x: RectGrad(model).attribute(x, 1),
    "grad_cam": lambda model, x: GuidedGradCam(model, "0").grad_cam(x, 1),
    "jacobian": lambda model, x: jacobian(model, x, 1, rule=GUIDED),
    "plain jacobian": lambda model, x: jacobian(model, x, 1),
    "sanity_check": lambda model, x: sanity_check(model, x, target=1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_waits_for_the_thread_that_has_a_part_of_its_model(name):
    body = layers()
    model = headed(nn.Sequential(body))
    call = threading.Thread(target=CALLS[name], args=(model, batch()))
    with alone(body):
        call.start()
        call.join(0.3)
        assert call.is_alive()
    call.join()


def test_independent_models_do_not_wait_for_each_other():
    both = threading.Barrier(2)

    class Meeting(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = layers()

        def forward(self, x):
            both.wait(60)
            return self.body(x).flatten(1)

    together(lambda: GuidedBackprop(Meeting()).attribute(batch(), 1), 2)


def test_one_thread_attributes_a_part_within_an_attribution_of_the_whole():
    class Explaining(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = headed(layers())

        def forward(self, x):
            self.maps = GuidedBackprop(self.model).attribute(x, 2)
            return self.model(x)

    model, x = Explaining(), batch()
    found = GuidedBackprop(model).attribute(x, 1)
    assert torch.equal(found, GuidedBackprop(model.model).attribute(x, 1))
    assert torch.equal(model.maps, GuidedBackprop(model.model).attribute(x, 2))
    inside, waiting = alone(model), threading.Thread(target=model, args=(x,))
    with inside:
        with alone(model.model):
            pass
        # What the whole has is not given back with the part.
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join()


def test_an_attribution_that_raises_gives_the_turn_back():
    body, x = layers(), batch()
    with pytest.raises(ValueError, match="out of range"):
        GuidedBackprop(headed(body)).attribute(x, 9)
    call = threading.Thread(target=GuidedBackprop(headed(body)).attribute, args=(x, 1), daemon=True)
    call.start()
    call.join(60)
    assert not call.is_alive()


def test_turns_keep_no_model_alive_and_copies_are_models_of_their_own():
    model = headed(layers())
    with alone(model):
        others = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        for other in others:
            together(lambda other=other: GuidedBackprop(other).attribute(batch(), 1), 1)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
