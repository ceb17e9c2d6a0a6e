"""An activation of one's own under any rule: squareplus, (x + √(x² + b)) / 2 (Barron 2021).

Two functions in PyTorch serve everywhere; two in Triton run it in one kernel each way on CUDA.
"""

import torch

import pyrevgrad


def value(x, b):
    return (x + torch.sqrt(x * x + b)) / 2


def slope(x, b):
    return (1 + x / torch.sqrt(x * x + b)) / 2


try:
    import triton
    import triton.language as tl
except ImportError:
    FUSED = None
else:

    @triton.jit
    def fused_value(x, b):
        return (x + tl.sqrt(x * x + b)) * 0.5

    @triton.jit
    def fused_slope(x, b):
        return (1.0 + x / tl.sqrt(x * x + b)) * 0.5

    FUSED = (fused_value, fused_slope)

squareplus = pyrevgrad.custom(
    "squareplus",
    value,
    slope,
    triton=FUSED,
    parameters={"b": 4.0},
    text=("(x + √(x² + b)) / 2", "(1 + x / √(x² + b)) / 2"),
)


def main():
    x = torch.tensor([-2.0, 0.0, 3.0], requires_grad=True)
    for rule in (pyrevgrad.EXACT, pyrevgrad.reverse(0.5), pyrevgrad.GUIDED):
        (gx,) = torch.autograd.grad(squareplus(x, rule).sum(), x)
        print(f"{rule!r:14} {rule.formula('squareplus')}\n{'':14} {gx.tolist()}")
    layer = pyrevgrad.nn.Activation("squareplus", rule=pyrevgrad.GUIDED, b=1.0)
    print(layer, layer(x.detach()).tolist())


if __name__ == "__main__":
    main()
