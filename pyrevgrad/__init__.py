"""Change what an activation sends back, at the cost of a copy."""

from __future__ import annotations

from . import autograd, nn, schedules
from .backends import BackendError, backend, show_config
from .autograd import TracingError
from .functional import *  # noqa: F403
from .rules import (
    DECONVNET,
    EXACT,
    GUIDED,
    STRAIGHT_THROUGH,
    Plan,
    Rule,
    clipped_straight_through,
    guided,
    plan,
    rectgrad,
    reverse,
)

__version__ = "0.1.0"
