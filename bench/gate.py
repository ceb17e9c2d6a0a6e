"""What a provider must give before its time counts: the reference's value and gradient.

Imports pyrevgrad, torch, cases and providers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import pyrevgrad

from .cases import Case
from .providers import NAMES, OURS, STAND_IN, Provider, Skipped


class GateError(AssertionError):
    """A provider's result is wrong, so its time means nothing."""


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """A tensor in pieces that the caches hold, so that looking at all of it costs little."""
    flat = tensor.detach().flatten()
    return flat.split(1 << 18 if flat.device.type == "cpu" else 1 << 24)


def expected(case: Case, x: Tensor, g: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What each provider must give: the rule's gradient, the ordinary one, or a copy."""
    function = getattr(pyrevgrad, case.activation)
    found: list[tuple[Tensor, ...]] = []
    with pyrevgrad.backend("reference"):
        for inputs, arriving in zip(_parts(x), _parts(g), strict=True):
            inputs = inputs.clone().requires_grad_()
            y = function(inputs, case.rule)
            gx = torch.autograd.grad(y, inputs, arriving)[0]
            ordinary = torch.autograd.grad(function(inputs), inputs, arriving)[0]
            found.append((y.detach(), gx, ordinary))
    y, gx, ordinary = (torch.cat(pieces) for pieces in zip(*found, strict=True))
    results = dict.fromkeys((*NAMES, *STAND_IN), (y, gx))
    results["plain"] = results["plain+compile"] = (y, ordinary)
    results["copy"] = (x.detach(), g)
    return results


_TOLERANCES = {
    torch.float64: 1e-7,
    torch.float32: 1.3e-6,
    torch.bfloat16: 1.6e-2,
    torch.float16: 1e-3,
}


def agree(got: Tensor, want: Tensor, given: Tensor) -> bool:
    """Within PyTorch's relative tolerance of the size of the result and of what went in.

    The second part is for opponents that round between kernels (bfloat16 x − tanh(x)): a gate is
    there to catch a wrong rule, whose results are off by the size of g, not to grade rounding.
    """
    tolerance = _TOLERANCES[want.dtype]
    wide = torch.promote_types(want.dtype, torch.float32)
    for pieces in zip(_parts(got), _parts(want), _parts(given), strict=True):
        if pieces[0].dtype == want.dtype and torch.equal(pieces[0], pieces[1]):
            continue
        one, other, size = (piece.to(wide) for piece in pieces)
        bound = other.abs().add_(size.abs()).mul_(tolerance)
        if not bool((one - other).abs_().le(bound).all()):
            return False
    return True


Pair = tuple[Tensor, Tensor]


def copied(x: Tensor, g: Tensor) -> Pair:
    """What x and g hold, to be compared with after a provider had them."""
    return x.detach().clone(), g.clone()


def check(
    provider: Provider, case: Case, x: Tensor, g: Tensor, wanted: Pair, before: Pair | None = None
) -> None:
    """Run `provider` once on the tensors that are timed; compare all of what it gives.

    Parameters
    ----------
    wanted : pair of Tensor
        Its value and gradient, of `expected`.
    before : pair of Tensor
        What x and g must hold afterwards; what they hold now if not given.

    Raises
    ------
    GateError
        Its value or its gradient is wrong, it wrote into x or g, or it left a hook on x, which
        would change every gradient from then on.
    """
    before = before or copied(x, g)
    y, gx = provider.step(x, g)
    if not (torch.equal(x, before[0]) and torch.equal(g, before[1])):
        with torch.no_grad():  # for those that come after
            x.copy_(before[0])
            g.copy_(before[1])
        raise GateError(f"{provider.name} wrote into its inputs on {case.name}")
    if x._backward_hooks:
        x._backward_hooks.clear()
        raise GateError(f"{provider.name} left a hook on its input on {case.name}")
    results = (("value", y, wanted[0], x), ("gradient", gx, wanted[1], g))
    for what, got, want, given in results:
        if got.dtype != (provider.returns or want.dtype):
            raise GateError(f"{provider.name} gives a {what} in {got.dtype} on {case.name}")
        if got.shape != given.shape or not agree(got, want, given):
            raise GateError(f"{provider.name} gives a wrong {what} on {case.name}")


def gated(
    made: Sequence[Provider | Skipped], case: Case, x: Tensor, g: Tensor,
    wanted: dict[str, Pair] | None = None, before: Pair | None = None,
) -> tuple[dict[str, Provider], dict[str, dict[str, str]]]:  # fmt: skip
    """The providers that may be timed, and what is to be said of the others.

    `wanted` and `before` are `expected` and `copied` of the same numbers, where those are known.
    """
    wanted, before = wanted or expected(case, x, g), before or copied(x, g)
    passed: dict[str, Provider] = {}
    left_out: dict[str, dict[str, str]] = {}
    for provider in made:
        if isinstance(provider, Skipped):
            left_out[provider.name] = {"skipped": provider.reason}
            continue
        try:
            check(provider, case, x, g, wanted[provider.name], before)
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
