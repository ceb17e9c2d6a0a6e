"""Who computes a case: each provider as a forward and backward on given tensors.

Imports pyrevgrad, torch, cases, idioms, strongest, peers, placing and timing. No provider's time
counts before its `gate`.
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

from . import idioms, peers, placing, strongest
from .cases import SLOW_COMPILED, Case
from .idioms import Apply, differentiated
from .timing import Measured

#: In the order of the tables.
NAMES = (
    *("fused", "fused-triton", "reference", "idiom", "eager-best"),
    *("idiom+compile", "best+compile", "plain"),
    *("fused+compile", "plain+compile"),
    *("captum", "zennit", "grad-cam", "pytorch-revgrad", "numpy", "copy"),
)
#: Timed beside what they stand in for where they are faster: no row of their own.
HOOK = "eager-best, hook"
STAND_IN = {HOOK: "eager-best"}
#: The forms that compete for a row, by the names that they are timed under.
_COMPETING = {"eager-best": {"Function": "eager-best", "hook": HOOK, "idiom": "idiom"}}
#: Libraries that are installed or not.
PEERS = tuple(peers.PACKAGES)
#: Those that a compiler builds, which takes seconds a case.
COMPILED = ("idiom+compile", "best+compile", "fused+compile", "plain+compile")
OURS = ("fused", "fused-triton", "reference", "fused+compile")

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Provider:
    """One way to compute a case: ``step(x, g)`` gives (y, gx).

    ``returns`` is the dtype of what it gives where that is not the dtype of x, ``apply`` its
    forward where that can be compiled.
    """

    name: str
    step: Step
    returns: torch.dtype | None = None
    apply: Apply | None = None


def _of(name: str, apply: Apply) -> Provider:
    return Provider(name, differentiated(apply), apply=apply)


@dataclass(frozen=True)
class Skipped:
    """A provider that cannot run a case, and why."""

    name: str
    reason: str


Maker = Callable[[Case, torch.dtype, torch.device], Provider | Skipped]


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
    return _of("fused", lambda x: function(x, rule))


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
    return _of("idiom", apply)


def _compiler(case: Case, name: str, device: torch.device) -> Callable[..., Any] | Skipped:
    """torch.compile for a case: on the CPU for any size at once, one compilation a case and dtype,
    which measured beside one a size was no slower from 2^10 to 2^22 elements; on a GPU for the
    size at hand, since bounds that are unknown let Triton load no more than an element at once.
    """
    if case.activation != "relu" and case not in SLOW_COMPILED:
        return Skipped(name, "compiled for few cases: each takes seconds to build")
    import torch._dynamo
    import torch._inductor.config

    # Cases share code objects, whose recompilations Dynamo counts and limits; and Inductor builds
    # the number of threads into the code, which its cache would not tell apart by itself.
    torch._dynamo.reset()
    torch._inductor.config.cpp.threads = torch.get_num_threads()
    return functools.partial(torch.compile, dynamic=device.type == "cpu", fullgraph=True)


def _compiled(name: str) -> Maker:
    """The maker of a provider as it is, compiled."""
    maker = {"fused": _fused, "idiom": _idiom, "plain": _plain}[name.removesuffix("+compile")]

    def make(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
        eager = maker(case, dtype, device)
        if isinstance(eager, Skipped):
            return Skipped(name, eager.reason)
        if case in SLOW_COMPILED and name == "idiom+compile":
            return Skipped(name, "compiled for relu alone: it takes seconds")
        compiler = _compiler(case, name, device)
        if isinstance(compiler, Skipped):
            return compiler
        assert eager.apply is not None
        return Provider(name, differentiated(compiler(eager.apply)))

    return make


def _strongest_compiled(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    if device.type != "cpu":
        reason = "on a GPU a mask of bytes is stored like anything else: see idiom+compile"
        return Skipped("best+compile", reason)
    compiler = _compiler(case, "best+compile", device)
    if isinstance(compiler, Skipped):
        return compiler
    relu = case.activation == "relu"
    backward = strongest.relu_backward(case.rule_name, case.rule) if relu else None
    if backward is None:
        return Skipped("best+compile", f"no compiled backward is written for {case.name}")
    compiled = compiler(backward)
    apply = lambda x: strongest.CompiledRelu.apply(x, compiled)  # noqa: E731
    return Provider("best+compile", differentiated(apply))


def _strongest(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    apply = strongest.function(case.activation, case.rule_name, case.rule)
    if apply is None:
        return Skipped("eager-best", f"nothing stronger than the idiom is known for {case.name}")
    return Provider("eager-best", differentiated(apply))


def _hooked(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    apply = strongest.hooked(case.activation, case.rule_name, case.rule)
    if apply is None:
        return Skipped(HOOK, f"a hook on y does not give the gradient of {case.name}")
    return Provider(HOOK, differentiated(apply))


def _plain(case: Case, dtype: torch.dtype, device: torch.device) -> Provider | Skipped:
    apply = idioms.plain(case.activation)
    if apply is None:
        return Skipped("plain", f"PyTorch has no {case.activation} with a gradient")
    return _of("plain", apply)


def _copy(case: Case, dtype: torch.dtype, device: torch.device) -> Provider:
    return Provider("copy", lambda x, g: (x.detach().clone(), g.clone()))


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
    HOOK: _hooked,
    **{name: _compiled(name) for name in COMPILED if name != "best+compile"},
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
    given, where = without or {}, torch.device(device)
    reasons = {stand_in: given[name] for stand_in, name in STAND_IN.items() if name in given}
    reasons |= given
    return [
        Skipped(name, reasons[name]) if name in reasons else _MAKERS[name](case, dtype, where)
        for name in (*NAMES, *STAND_IN)
    ]


def fastest_form(name: str, times: Mapping[str, Measured]) -> tuple[Measured, dict[str, str]]:
    """The samples of `name`, and what its row says of them: of forms that compete, the one with the
    least median, by its name."""
    forms = {form: times[own] for form, own in _COMPETING.get(name, {}).items() if own in times}
    if name not in times or not forms:
        return times[name], {}
    best = min(forms, key=lambda form: forms[form].seconds.median)
    return forms[best], {"form": best}


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
