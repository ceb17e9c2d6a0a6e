"""A folded layer, the layers that it stands for, and what running them costs."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyrevgrad.nn import GradientReversal, ReversedLinear


def pair(scale=0.7, **options):
    """A folded layer, and the layers that it stands for, with the same weights."""
    folded = ReversedLinear(3, 4, scale=scale, **options)
    plain = nn.Linear(3, 4, bias=folded.bias is not None)
    plain.load_state_dict(dict(folded.named_parameters()))
    return folded, plain


def gradients(function, x, g, parameters):
    at = x.clone().requires_grad_()
    y = function(at)
    return y, torch.autograd.grad(y, [at, *parameters], g)


def composed(plain, scale):
    return lambda at: plain(GradientReversal(scale)(at))


class Operations(TorchDispatchMode):
    """The operations that compute, by name; views and empty tensors do not."""

    FREE = ("view", "reshape", "empty", "t.default", "detach", "expand", "alias", "transpose",
            "unsqueeze", "ones_like", "lift_fresh", "split", "select", "as_strided")  # fmt: skip

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function).removeprefix("aten.")
        assert "_local_scalar_dense" not in name, "a value was read: a sync"
        if not any(part in name for part in self.FREE):
            self.seen.append(name)
        return function(*args, **(kwargs or {}))
