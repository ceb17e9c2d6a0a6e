"""What a provider must give before its time counts: the reference's value and gradient.

Imports pyrevgrad, torch, cases and providers.
"""

from __future__ import annotations

import torch
from torch import Tensor

import pyrevgrad

from .cases import Case
from .providers import NAMES, OURS, STAND_IN, Provider, Skipped


class GateError(AssertionError):
    """A provider's result is wrong, so its time means nothing."""


_PART = 1 << 19


def part(tensor: Tensor) -> Tensor:
    """What the gate looks at: both ends of a large tensor, all of another; a copy."""
    tensor = tensor.detach()
    if tensor.numel() <= 2 * _PART:
        return tensor.clone()
    return torch.cat((tensor[:_PART], tensor[-_PART:]))


def expected(case: Case, x: Tensor, g: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each provider must give on `part`: the rule's gradient, the ordinary one, or a copy."""
    function = getattr(pyrevgrad, case.activation)
    x, g = part(x).requires_grad_(), part(g)
    with pyrevgrad.backend("reference"):
        y = function(x, case.rule)
        gx = torch.autograd.grad(y, x, g)[0]
        ordinary = torch.autograd.grad(function(x), x, g)[0]
    results = dict.fromkeys((*NAMES, *STAND_IN), (y.detach(), gx))
    results["plain"] = (y.detach(), ordinary)
    results["copy"] = (x.detach(), g)
    return results


_TOLERANCES = {
    torch.float64: 1e-7,
    torch.float32: 1.3e-6,
    torch.bfloat16: 1.6e-2,
    torch.float16: 1e-3,
}


def _agree(got: Tensor, want: Tensor, given: Tensor) -> bool:
    """Within PyTorch's relative tolerance of the size of the result and of what went in.

    The second part is for opponents that round between kernels (bfloat16 x − tanh(x)): a gate is
    there to catch a wrong rule, whose results are off by the size of g, not to grade rounding.
    """
    tolerance = _TOLERANCES[want.dtype]
    wide = torch.promote_types(want.dtype, torch.float32)
    got, want, given = (tensor.detach().to(wide) for tensor in (got, want, given))
    bound = want.abs().add_(given.abs()).mul_(tolerance)
    return bool((got - want).abs_().le(bound).all())


def check(
    provider: Provider, case: Case, x: Tensor, g: Tensor, wanted: tuple[Tensor, Tensor]
) -> None:
    """Run `provider` once on the tensors that will be timed; compare `part` of what it gives.

    Raises
    ------
    GateError
        Its value or its gradient is wrong, it wrote into x or g, or it left a hook on x, which
        would change every gradient from then on.
    """
    before = part(x), part(g)
    y, gx = provider.step(x, g)
    if not (torch.equal(part(x), before[0]) and torch.equal(part(g), before[1])):
        raise GateError(f"{provider.name} wrote into its inputs on {case.name}")
    if x._backward_hooks:
        x._backward_hooks.clear()
        raise GateError(f"{provider.name} left a hook on its input on {case.name}")
    results = (("value", y, wanted[0], x), ("gradient", gx, wanted[1], g))
    for what, got, want, given in results:
        if got.dtype != (provider.returns or want.dtype):
            raise GateError(f"{provider.name} gives a {what} in {got.dtype} on {case.name}")
        if got.shape != given.shape or not _agree(part(got), want, part(given)):
            raise GateError(f"{provider.name} gives a wrong {what} on {case.name}")


def gated(
    made: list[Provider | Skipped], case: Case, x: Tensor, g: Tensor
) -> tuple[dict[str, Provider], dict[str, dict[str, str]]]:
    """The providers that may be timed, and what is to be said of the others."""
    wanted = expected(case, x, g)
    passed: dict[str, Provider] = {}
    left_out: dict[str, dict[str, str]] = {}
    for provider in made:
        if isinstance(provider, Skipped):
            left_out[provider.name] = {"skipped": provider.reason}
            continue
        try:
            check(provider, case, x, g, wanted[provider.name])
        except GateError as error:
            left_out[provider.name] = {"refused": str(error)}
        except Exception as error:
            first_line = str(error).strip().splitlines()[:1]
            reason = f"{type(error).__name__}: {first_line[0] if first_line else ''}"
            # Another library may not serve a case; ours has to.
            kind = "refused" if provider.name in OURS else "skipped"
            left_out[provider.name] = {kind: f"it raised {reason}"}
        else:
            passed[provider.name] = provider
    return _whole(passed, left_out)


def _whole(
    passed: dict[str, Provider], left_out: dict[str, dict[str, str]]
) -> tuple[dict[str, Provider], dict[str, dict[str, str]]]:
    """A stand-in that was refused refuses what it stands in for: the row would lack its best."""
    for stand_in, name in STAND_IN.items():
        if "refused" in left_out.get(stand_in, {}):
            left_out[name] = left_out[stand_in]
            passed.pop(name, None)
    return passed, left_out
