"""The libraries that people would use instead, and NumPy, each as a forward and backward.

Imports torch and pyrevgrad's NumPy gates; a peer only where a case asks for it. Of grad-cam and
zennit the modules that are timed are loaded without their packages' own ``__init__``, which asks
for torchvision, OpenCV and more; what is timed is theirs, untouched.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pyrevgrad.reference import gates

from . import idioms
from .cases import Case

Step = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

#: Each peer by its name on the registry, and the name that it is imported by.
PACKAGES = {
    "captum": "captum",
    "zennit": "zennit",
    "grad-cam": "pytorch_grad_cam",
    "pytorch-revgrad": "pytorch_revgrad",
}
#: Rules that guided backpropagation of a relu is: for relu the three forms are one.
_GUIDED = ("GUIDED", "guided_slope", "guided_product")
_GATES = {"relu": gates.Relu, "sigmoid": gates.Sigmoid, "tanh": gates.Tanh}


class NotHere(Exception):
    """A peer that cannot run a case, and why."""


def versions() -> dict[str, str | None]:
    """The installed version of each peer; None where it is not installed."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _bare(name: str, folders: list[str]) -> None:
    """A package that finds its modules and runs no code of its own."""
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__path__ = folders
        sys.modules[name] = module


def _modules(package: str, *names: str, inner: tuple[str, ...] = ()) -> list[Any]:
    """Modules of a package, without what its ``__init__`` (and those of `inner`) would import."""
    before = set(sys.modules)
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    folders = list(spec.submodule_search_locations)
    _bare(package, folders)
    for name in inner:
        _bare(f"{package}.{name}", [f"{folder}/{name}" for folder in folders])
    try:
        return [importlib.import_module(f"{package}.{name}") for name in names]
    finally:
        # Whoever imports the package later gets the whole of it.
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == package:
                del sys.modules[name]


def _here(name: str) -> None:
    if importlib.util.find_spec(PACKAGES[name]) is None:
        cure = f"pip install --no-deps {name}"
        raise NotHere(f"{name} is not installed: `{cure}`, since its requirements replace torch")


def _relu_rule(name: str, case: Case, deconvnet: bool) -> bool:
    """Whether the case is DeconvNet's rule; NotHere unless it is one that the peer has."""
    if case.activation != "relu":
        raise NotHere(f"{name} replaces the backward of nn.ReLU alone")
    if case.rule_name in _GUIDED:
        return False
    if case.rule_name == "DECONVNET" and deconvnet:
        return True
    has = "guided backpropagation" + (" and DeconvNet" if deconvnet else "")
    raise NotHere(f"{name} has {has}, and not {case.rule_name}")


@functools.cache
def zennits_modules() -> tuple[Any, Any]:
    """``zennit.composites`` and ``zennit.attribution``."""
    composites, attribution = _modules("zennit", "composites", "attribution")
    return composites, attribution


@functools.cache
def grad_cams_module() -> Any:
    """``pytorch_grad_cam.guided_backprop``."""
    (module,) = _modules("pytorch_grad_cam", "guided_backprop", inner=("utils",))
    return module


def captum(case: Case, dtype: torch.dtype) -> Step:
    """``captum.attr.GuidedBackprop`` or ``Deconvolution`` on an ``nn.ReLU``, with our g.

    The gradient function is an attribute that captum itself exchanges (in its neuron methods);
    its own sends back ones. The hooks are set and taken away in every call, as captum does.
    """
    _here("captum")
    deconvolution = _relu_rule("captum", case, deconvnet=True)
    attr = importlib.import_module("captum.attr")
    method = (attr.Deconvolution if deconvolution else attr.GuidedBackprop)(nn.ReLU())

    def step(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        values = []

        def gradient(forward: Any, inputs: Any, target: Any, more: Any) -> Any:
            values.append(forward(*inputs))
            return torch.autograd.grad(values[0], inputs, g)

        method.gradient_func = gradient
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # captum leaves a hook on its input, which would run, and change gradients, for ever.
            gx = method.attribute(x.view_as(x))
        return values[0], gx

    return step


def zennit(case: Case, dtype: torch.dtype) -> Step:
    """zennit's ``Gradient`` under its composite on an ``nn.ReLU``, registered once, ahead."""
    _here("zennit")
    deconvolution = _relu_rule("zennit", case, deconvnet=True)
    composites, attribution = zennits_modules()
    composite = composites.DeconvNet() if deconvolution else composites.GuidedBackprop()
    attributor = attribution.Gradient(model=nn.ReLU(), composite=composite)
    attributor.__enter__()
    return lambda x, g: attributor(x, g)


def grad_cam(case: Case, dtype: torch.dtype) -> Step:
    """grad-cam's ``GuidedBackpropReLUasModule``, which it puts where an ``nn.ReLU`` was."""
    _here("grad-cam")
    _relu_rule("grad-cam", case, deconvnet=False)
    return idioms.differentiated(grad_cams_module().GuidedBackpropReLUasModule())


def pytorch_revgrad(case: Case, dtype: torch.dtype) -> Step:
    """pytorch-revgrad's ``RevGrad`` layer behind PyTorch's activation."""
    _here("pytorch-revgrad")
    if case.rule_name != "reverse":
        raise NotHere(f"pytorch-revgrad reverses, and has no {case.rule_name}")
    ordinary = idioms.plain(case.activation)
    if ordinary is None:
        raise NotHere(f"PyTorch has no {case.activation} with a gradient to reverse")
    layer = importlib.import_module("pytorch_revgrad").RevGrad(alpha=-case.rule.scale)
    return idioms.differentiated(lambda x: layer(ordinary(x)))


def numpy(case: Case, dtype: torch.dtype) -> Step:
    """The NumPy gates, in float64: for scale."""
    if dtype is torch.bfloat16:
        raise NotHere("NumPy has no bfloat16")
    made: list[gates.Gate]
    if (case.activation, case.rule_name) == ("relu", "GUIDED"):
        made = [gates.GuidedRelu()]
    elif case.rule_name == "reverse" and case.activation in _GATES:
        made = [_GATES[case.activation](), gates.Reversal(-case.rule.scale)]
    else:
        raise NotHere(f"no NumPy gate is written for {case.name}")

    def step(x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        y, gx = x.detach().numpy(), g.numpy()
        for gate in made:
            y = gate.forward(y)
        for gate in reversed(made):
            (gx,) = gate.backward(gx)
        return torch.from_numpy(y), torch.from_numpy(gx)

    return step
