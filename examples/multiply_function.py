"""Multiply as a `torch.autograd.Function`, checked by gradcheck and against the NumPy gate."""

import torch

from pyrevgrad.reference import gates


class Multiply(torch.autograd.Function):
    """a · b for tensors of one shape: a gets g·b, b gets g·a."""

    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a * b

    @staticmethod
    def backward(ctx, gradient):
        a, b = ctx.saved_tensors
        return gradient * b, gradient * a


def main():
    draw = torch.Generator().manual_seed(0)
    a, b, sent = (torch.randn(2, 3, dtype=torch.float64, generator=draw) for _ in range(3))
    a.requires_grad_()
    b.requires_grad_()
    product = Multiply.apply(a, b)
    gradients = torch.autograd.grad(product, (a, b), sent)

    gate = gates.Multiply()
    value = gate.forward(a.detach(), b.detach())
    torch.testing.assert_close(product.detach(), torch.from_numpy(value))
    print("the value equals the gate's:\n", value)
    for name, ours, expected in zip("ab", gradients, gate.backward(sent), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(expected))
        print(f"the gradient of {name} equals the gate's:\n", expected)
    print("gradcheck:", torch.autograd.gradcheck(Multiply.apply, (a, b)))
    print("gradgradcheck:", torch.autograd.gradgradcheck(Multiply.apply, (a, b)))


if __name__ == "__main__":
    main()
