"""Adversarial networks and their training, on top of the layers and schedules."""

from ..schedules import (
    ConstantSchedule,
    GaninLearningRate,
    GaninSchedule,
    LinearSchedule,
    Schedule,
)
from .networks import DANN, Losses

__all__ = [
    "DANN",
    "ConstantSchedule",
    "GaninLearningRate",
    "GaninSchedule",
    "LinearSchedule",
    "Losses",
    "Schedule",
]
