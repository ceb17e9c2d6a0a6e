"""Adversarial networks and their training, on top of the layers and schedules."""

from ..schedules import (
    ConstantSchedule,
    GaninLearningRate,
    GaninSchedule,
    LinearSchedule,
    Schedule,
)
from .conditional import CDAN, OuterProduct, RandomizedProduct
from .networks import DANN, Losses
from .records import DivergedError, History, Score
from .scoring import evaluate
from .training import fit

__all__ = [
    "CDAN",
    "DANN",
    "ConstantSchedule",
    "DivergedError",
    "GaninLearningRate",
    "GaninSchedule",
    "History",
    "LinearSchedule",
    "Losses",
    "OuterProduct",
    "RandomizedProduct",
    "Schedule",
    "Score",
    "evaluate",
    "fit",
]
