"""The networks that `train` builds for the shape of its data. Imports the public layers."""

from __future__ import annotations

import torch
from torch import nn

from ..adversarial import CDAN, DANN, OuterProduct, RandomizedProduct
from ..nn import Activation
from ..schedules import ConstantSchedule, GaninSchedule, LinearSchedule, Schedule

FEATURES, HIDDEN = 64, 128
#: Above so many products of features and classes, CDAN multiplies random projections: as its paper.
LARGEST_PRODUCT = 4096
RANDOM_OUTPUTS = 1024
METHODS = ("dann", "cdan", "none")
SCHEDULES = ("ganin", "linear", "constant")


def schedule_of(name: str, steps: int, scale: float) -> Schedule:
    """λ rising to `scale` over `steps`, or constant."""
    if name == "ganin":
        return GaninSchedule(steps, high=scale)
    return LinearSchedule(steps, high=scale) if name == "linear" else ConstantSchedule(scale)


def _features(shape: torch.Size) -> nn.Sequential:
    if len(shape) == 1:
        layers = [nn.Linear(shape[0], HIDDEN), Activation("relu"), nn.Linear(HIDDEN, FEATURES)]
        return nn.Sequential(*layers, Activation("relu"))
    return nn.Sequential(
        nn.Conv2d(shape[0], 16, 3, padding=1),
        Activation("relu"),
        nn.AdaptiveMaxPool2d(max(1, min(16, min(shape[1:]) // 2))),
        nn.Conv2d(16, 32, 3, padding=1),
        Activation("relu"),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, FEATURES),
        Activation("relu"),
    )


def build(
    method: str, shape: torch.Size, classes: int, schedule: Schedule, weight: float, seed: int
) -> DANN:
    """A network for samples of `shape`, (d,) or (channels, height, width).

    The initial weights of features and label head follow from `seed` alone, whatever the method.
    ``"none"`` is `DANN` with a domain weight of 0: the source alone trains it.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        features, label_head = _features(shape), nn.Linear(FEATURES, classes)
        inputs = FEATURES
        conditioning: nn.Module = OuterProduct()
        if method == "cdan":
            inputs = FEATURES * classes
            if inputs > LARGEST_PRODUCT:
                conditioning = RandomizedProduct(FEATURES, classes, RANDOM_OUTPUTS, seed)
                inputs = RANDOM_OUTPUTS
        head = nn.Sequential(nn.Linear(inputs, HIDDEN), Activation("relu"), nn.Linear(HIDDEN, 1))
    if method == "cdan":
        return CDAN(
            features, label_head, head,
            conditioning=conditioning, scale=schedule, domain_weight=weight, record_norm=True,
        )  # fmt: skip
    weight = 0.0 if method == "none" else weight
    return DANN(
        features, label_head, head, scale=schedule, domain_weight=weight, record_norm=True
    )  # fmt: skip
