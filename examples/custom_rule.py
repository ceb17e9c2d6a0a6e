"""A rule of one's own with any activation: a floor under the slope, so that dead units learn.

One function in PyTorch serves everywhere; one in Triton runs it in one kernel on CUDA.
"""

import torch

import pyrevgrad


def at_least(g, slope, floor):
    return torch.where(slope < floor, floor, slope) * g


try:
    import triton
    import triton.language as tl
except ImportError:
    FUSED = None
else:

    @triton.jit
    def fused(g, slope, floor):
        return tl.where(slope < floor, floor, slope) * g

    FUSED = fused

floored = pyrevgrad.custom_rule(
    "floored", at_least, triton=FUSED, parameters={"floor": 0.01}, text="max(slope, floor)·g"
)


def main():
    x = torch.tensor([-3.0, -0.5, 2.0], requires_grad=True)
    for name in ("relu", "sigmoid"):
        for rule in (pyrevgrad.EXACT, floored, floored.given(floor=0.2).scaled(-1.0)):
            (gx,) = torch.autograd.grad(pyrevgrad.activation(x, name, rule).sum(), x)
            print(f"{rule.formula(name)}\n    {[round(g, 4) for g in gx.tolist()]}")
        print(f"{name} keeps {pyrevgrad.plan(name, floored)}")


if __name__ == "__main__":
    main()
