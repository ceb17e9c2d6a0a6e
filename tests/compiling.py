"""What the tests of torch.compile share. It may import torch."""

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def both(function, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    y = function(x)
    return y, torch.autograd.grad(y, x, g)[0]


def inputs(*shape: int, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    return x * 1, torch.randn(shape, generator=generator).to(dtype)
