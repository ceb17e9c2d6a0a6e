"""Guided backpropagation by captum, zennit and grad-cam, as the registry has them.

Imports peers, which loads them without what their packages' own ``__init__`` would import.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from . import peers

Map = Callable[[Tensor], Tensor]


def captum(model: nn.Module) -> Map:
    """The map of output 0 by captum's class."""
    from captum.attr import GuidedBackprop

    theirs = GuidedBackprop(model)

    def run(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return theirs.attribute(x.detach().requires_grad_(), 0)

    return run


def zennit(model: nn.Module) -> Map:
    """The map of output 0 by zennit's composite."""
    composites, attribution = peers.zennits_modules()

    def one_hot(y: Tensor) -> Tensor:
        return torch.eye(y.shape[1]).to(y)[:1].expand_as(y)

    def run(x: Tensor) -> Tensor:
        with attribution.Gradient(model, composites.GuidedBackprop()) as attributor:
            return attributor(x.detach(), one_hot)[1]

    return run


def grad_cam(model: nn.Module) -> Map:
    """The map of output 0 by grad-cam's guided model: one image a call, gradients of weights too.

    On a copy: it leaves other layers in the model than it found.
    """
    theirs = peers.grad_cams_module().GuidedBackpropReLUModel(copy.deepcopy(model))

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
