"""Adversarial networks and their training, on top of the layers and schedules."""

from ..schedules import (
    ConstantSchedule,
    GaninLearningRate,
    GaninSchedule,
    LinearSchedule,
    Schedule,
)
from .networks import DANN, Losses
from .records import DivergedError, History, Score
from .scoring import evaluate
from .training import fit

__all__ = [
    "DANN",
    "ConstantSchedule",
    "DivergedError",
    "GaninLearningRate",
    "GaninSchedule",
    "History",
    "LinearSchedule",
    "Losses",
    "Schedule",
    "Score",
    "evaluate",
    "fit",
]
