"""Who computes a case: each provider as a forward and backward on given tensors, and its gate.

Imports pyrevgrad, torch, cases, idioms, peers and placing. No provider's time counts before `check`
has passed it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import pyrevgrad
from pyrevgrad import backends, triton_backend
from pyrevgrad.pairs import Pair

from . import idioms, peers, placing
from .cases import Case
from .idioms import differentiated

#: In the order of the tables.
NAMES = (
    *("fused", "fused-triton", "reference", "idiom", "eager-best"),
    *("idiom+compile", "best+compile", "plain"),
    *("captum", "zennit", "grad-cam", "pytorch-revgrad", "numpy", "copy"),
)
#: Libraries that are installed or not.
PEERS = tuple(peers.PACKAGES)
#: Those that a compiler builds, which takes seconds a case.
COMPILED = ("idiom+compile", "best+compile")
OURS = ("fused", "fused-triton", "reference")

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class GateError(AssertionError):
    """A provider's result is wrong, so its time means nothing."""


@dataclass(frozen=True)
class Provider:
    """One way to compute a case: ``step(x, g)`` gives (y, gx).

    ``returns`` is the dtype of what it gives where that is not the dtype of x.
    """

    name: str
    step: Step
    returns: torch.dtype | None = None


@dataclass(frozen=True)
class Skipped:
    """A provider that cannot run a case, and why."""

    name: str
    reason: str


def pair_of(case: Case, dtype: torch.dtype) -> Pair:
    """What serves a case on tensors of `dtype`."""
    pairs = backends.pairs_of(case.activation, case.rule, {})
    return pairs.half if dtype in backends.HALF_TYPES else pairs.full


def _fused(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    x = torch.empty(0, dtype=dtype, device=device)
    serving = backends.choose(x, pair_of(case, dtype)).name
    if serving != "native":
        return Skipped("fused", f"the {serving} backend would serve it: see show_config()")
    function, rule = getattr(pyrevgrad, case.activation), case.rule
    return Provider("fused", differentiated(lambda x: function(x, rule)))


def _triton(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    if device.type == "cpu":
        return Skipped("fused-triton", "Triton's kernels run on a GPU")
    x = torch.empty(0, dtype=dtype, device=device)
    refused = triton_backend.refusal(x, pair_of(case, dtype))
    if refused:
        return Skipped("fused-triton", f"Triton does not serve {refused}")
    return _under("triton", "fused-triton", case)


def _under(backend: str, name: str, case: Case) -> Provider:
    """Our function with the backend named, which costs the host a few microseconds."""
    function, rule = getattr(pyrevgrad, case.activation), case.rule

    def apply(x: Tensor) -> Tensor:
        with pyrevgrad.backend(backend):
            return function(x, rule)

    return Provider(name, differentiated(apply))


def _reference(case: Case, dtype: torch.dtype, device: torch.device) -> Provider:
    return _under("reference", "reference", case)


def _idiom(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    apply = idioms.idiom(case.activation, case.rule_name, case.rule)
    if apply is None:
        return Skipped("idiom", f"no eager idiom is written for {case.name}")
    return Provider("idiom", differentiated(apply))


def _compiler(case: Case, name: str, device: torch.device) -> Callable[..., Any] | Skipped:
    """torch.compile for a case: on the CPU for any size at once, one compilation a case and dtype,
    which measured beside one a size was no slower from 2^10 to 2^22 elements; on a GPU for the
    size at hand, since bounds that are unknown let Triton load no more than an element at once.
    """
    if case.activation != "relu":
        return Skipped(name, "compiled for relu only: each case takes seconds to build")
    import torch._dynamo
    import torch._inductor.config

    # Cases share code objects, whose recompilations Dynamo counts and limits; and Inductor builds
    # the number of threads into the code, which its cache would not tell apart by itself.
    torch._dynamo.reset()
    torch._inductor.config.cpp.threads = torch.get_num_threads()
    return functools.partial(torch.compile, dynamic=device.type == "cpu", fullgraph=True)


def _compiled(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    compiler = _compiler(case, "idiom+compile", device)
    if isinstance(compiler, Skipped):
        return compiler
    apply = idioms.idiom(case.activation, case.rule_name, case.rule)
    if apply is None:
        return Skipped("idiom+compile", f"no eager idiom is written for {case.name}")
    return Provider("idiom+compile", differentiated(compiler(apply)))


def _strongest_compiled(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    if device.type != "cpu":
        reason = "on a GPU a mask of bytes is stored like anything else: see idiom+compile"
        return Skipped("best+compile", reason)
    compiler = _compiler(case, "best+compile", device)
    if isinstance(compiler, Skipped):
        return compiler
    backward = idioms.strongest_backward(case.rule_name, case.rule)
    if backward is None:
        return Skipped("best+compile", f"no compiled backward is written for {case.name}")
    compiled = compiler(backward)
    apply = lambda x: idioms.StrongestCompiledRelu.apply(x, compiled)  # noqa: E731
    return Provider("best+compile", differentiated(apply))


def _strongest(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    apply = idioms.strongest(case.activation, case.rule_name, case.rule)
    if apply is None:
        return Skipped("eager-best", f"nothing stronger than the idiom is known for {case.name}")
    return Provider("eager-best", differentiated(apply))


def _plain(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    apply = idioms.plain(case.activation)
    if apply is None:
        return Skipped("plain", f"PyTorch has no {case.activation} with a gradient")
    return Provider("plain", differentiated(apply))


def _copy(case: Case, dtype: torch.dtype, device: torch.device) -> Provider:
    return Provider("copy", lambda x, g: (x.detach().clone(), g.clone()))


Maker = Callable[[Case, torch.dtype, torch.device], Provider | Skipped]


def _peer(name: str, make: Callable[[Case, torch.dtype], Step]) -> Maker:
    """The maker of another library's provider, whose absence or failure is a reason."""

    def maker(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
        if name == "numpy" and device.type != "cpu":
            return Skipped(name, "NumPy computes on the CPU")
        try:
            return Provider(name, make(case, dtype), torch.float64 if name == "numpy" else None)
        except peers.NotHere as reason:
            return Skipped(name, str(reason))
        except Exception as error:
            return Skipped(name, f"it did not load: {type(error).__name__}: {error}")

    return maker


_MAKERS: dict[str, Maker] = {
    "fused": _fused,
    "fused-triton": _triton,
    "reference": _reference,
    "idiom": _idiom,
    "eager-best": _strongest,
    "idiom+compile": _compiled,
    "best+compile": _strongest_compiled,
    "plain": _plain,
    "captum": _peer("captum", peers.captum),
    "zennit": _peer("zennit", peers.zennit),
    "grad-cam": _peer("grad-cam", peers.grad_cam),
    "pytorch-revgrad": _peer("pytorch-revgrad", peers.pytorch_revgrad),
    "numpy": _peer("numpy", peers.numpy),
    "copy": _copy,
}


def build(
    case: Case,
    dtype: torch.dtype,
    without: Mapping[str, str] | None = None,
    device: torch.device | str = "cpu",
) -> list[Provider | Skipped]:
    """Every provider of `case`; a Skipped for what cannot run and for the reasons in `without`."""
    reasons, where = without or {}, torch.device(device)
    return [
        Skipped(name, reasons[name]) if name in reasons else _MAKERS[name](case, dtype, where)
        for name in NAMES
    ]


def tensors(elements: int, dtype: torch.dtype, seed: int = 0) -> tuple[Tensor, Tensor]:
    """x, no leaf but in need of a gradient, and the gradient that arrives."""
    generator = torch.Generator().manual_seed(seed)
    leaf = torch.randn(elements, generator=generator).to(dtype).requires_grad_()
    g = torch.randn(elements, generator=generator).to(dtype)
    return leaf * 1, g


def placed(elements: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """`tensors` in each of the places that rounds visit."""
    made = tensors(elements, dtype)
    more = placing.places(2 * elements * dtype.itemsize) - 1
    return [made, *((made[0].clone(), made[1].clone()) for _ in range(more))]


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
    results = dict.fromkeys(NAMES, (y.detach(), gx))
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
    return passed, left_out
