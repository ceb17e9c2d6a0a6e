"""Guided backpropagation by captum, zennit and grad-cam, as the registry has them.

Imports them where called, without the packages that their roofs import and this does not use.
"""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import torch
from torch import Tensor, nn

Map = Callable[[Tensor], Tensor]
#: The package that each is found by.
PACKAGES = {"captum": "captum", "zennit": "zennit", "grad-cam": "pytorch_grad_cam"}


def captum(model: nn.Module) -> Map:
    """The map of output 0 by captum's class."""
    from captum.attr import GuidedBackprop

    theirs = GuidedBackprop(model)

    def run(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return theirs.attribute(x.detach().requires_grad_(), 0)

    return run


def _without_torchvision() -> None:
    """zennit asks torchvision for the classes of two models, which nothing here uses."""
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return
    names = ("torchvision", "torchvision.models", "torchvision.models.resnet")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__spec__ = ModuleSpec(name, None)
        for of in ("Bottleneck", "BasicBlock", "ResNet", "VGG"):
            setattr(sys.modules[name], of, type(of, (nn.Module,), {}))
    sys.modules["torchvision.models"].resnet = sys.modules["torchvision.models.resnet"]


def zennit(model: nn.Module) -> Map:
    """The map of output 0 by zennit's composite."""
    _without_torchvision()
    from zennit.attribution import Gradient
    from zennit.composites import GuidedBackprop

    def one_hot(y: Tensor) -> Tensor:
        return torch.eye(y.shape[1]).to(y)[:1].expand_as(y)

    def run(x: Tensor) -> Tensor:
        with Gradient(model=model, composite=GuidedBackprop()) as attributor:
            return attributor(x.detach(), one_hot)[1]

    return run


def _grad_cams_model() -> Any:
    """The class, past the package's roof, which imports OpenCV and test-time augmentation."""
    found = importlib.util.find_spec("pytorch_grad_cam")
    assert found is not None
    for name in ("pytorch_grad_cam", "pytorch_grad_cam.utils"):
        if name not in sys.modules:
            folder = [str(place) for place in found.submodule_search_locations or ()]
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__spec__ = ModuleSpec(name, None)
            sys.modules[name].__path__ = [
                "/".join((place, *name.split(".")[1:])) for place in folder
            ]
    from pytorch_grad_cam.guided_backprop import GuidedBackpropReLUModel

    return GuidedBackpropReLUModel


def grad_cam(model: nn.Module) -> Map:
    """The map of output 0 by grad-cam's guided model: one image a call, gradients of weights too.

    On a copy: it leaves other layers in the model than it found.
    """
    theirs = _grad_cams_model()(copy.deepcopy(model))

    def run(x: Tensor) -> Tensor:
        maps = [torch.from_numpy(theirs(image[None].clone(), 0)) for image in x.detach()]
        theirs.model.zero_grad()
        return torch.stack(maps).permute(0, 3, 1, 2).to(x.device)

    return run


MAKERS: dict[str, Callable[[nn.Module], Map]] = {
    "captum": captum,
    "zennit": zennit,
    "grad-cam": grad_cam,
}
