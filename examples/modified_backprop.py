"""ModifiedBackprop: a nonlinearity keeps its value and gets another gradient.

GuidedBackprop sends back g·(x > 0)·(g > 0), ZeilerBackprop g·(g > 0). A layer is made once and
serves every tensor type.
"""

import torch

from pyrevgrad import DECONVNET, GUIDED, STRAIGHT_THROUGH, Rule
from pyrevgrad.nn import Activation

GUIDED_BACKPROP = GUIDED
ZEILER_BACKPROP = DECONVNET

#: A rule of one's own is a value as well: the slope, what blocks, and the scale.
OWN = Rule(slope="exact", gradient_gate="gradient", scale=0.5)


def modified(name, rule):
    """The nonlinearity called `name` with the backward of `rule`."""
    return Activation(name, rule)


def gradient_through(layer, x, g):
    """What comes back through `layer` at `x` when `g` comes in."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(layer(x), x, g)[0]


def main():
    x = torch.tensor([-2.0, -2.0, 3.0, 3.0])
    g = torch.tensor([-1.0, 1.0, -1.0, 1.0])
    print(f"{'x':<38}{x.tolist()}\n{'g':<38}{g.tolist()}")
    rules = {"GuidedBackprop": GUIDED_BACKPROP, "ZeilerBackprop": ZEILER_BACKPROP, "own": OWN}
    for title, rule in rules.items():
        layer = modified("relu", rule)
        back = gradient_through(layer, x, g)
        print(f"{title + ': ' + rule.formula('relu'):<50.50} -> {back.tolist()}")
    sign = modified("sign", STRAIGHT_THROUGH)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        back = gradient_through(sign, x.to(dtype), g.to(dtype))
        print(f"sign, straight through, {back.dtype}: {back.tolist()}")


if __name__ == "__main__":
    main()
