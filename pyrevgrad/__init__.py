"""Change what an activation sends back, at the cost of a copy."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

import torch

if tuple(map(int, re.findall(r"\d+", torch.__version__)[:2])) < (2, 10):
    raise ImportError(
        f"pyrevgrad needs torch 2.10 or newer, and this is {torch.__version__}: upgrade it "
        '(`pip install "torch>=2.10"`)'
    )

from . import adversarial, compat, functional, schedules

# Under its name, by which checkers see it as public: it is left out of `import *`, where it would
# hide torch's.
from . import nn as nn
from .activations import ACTIVATIONS
from .backends import BackendError, backend
from .configuration import show_config
from .customizing import custom
from .diagnosis import ReversalError, ReversalReport, check_reversal
from .functional import activation, reverse_gradient
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
from .ruling import custom_rule
from .swapping import SwapError, SwapWarning, assert_overridden, convert, declare, swap
from .transforms import TracingError

# On top of the swap, and so after it.
from . import attribution  # isort: skip

__version__ = "0.1.0"

# The named functions of the table, `pyrevgrad.relu` and its like; left out of `import *`, where
# `round` would hide a builtin.
globals().update({name: getattr(functional, name) for name in ACTIVATIONS})

if TYPE_CHECKING:
    from ._named import *  # noqa: F403
else:  # A checker would take any name for one of ours.

    def __getattr__(name: str) -> object:
        """AttributeError, which says where a name stands that is public elsewhere."""
        rooms = (nn, adversarial, attribution, compat, schedules)
        found = [f"{room.__name__}.{name}" for room in rooms if name in room.__all__]
        hint = f"; it is {' or '.join(found)}" if found else ""
        message = f"module {__name__!r} has no attribute {name!r}{hint}"
        raise AttributeError(message, name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    """The public names alone, for tab completion."""
    dunder = [name for name in globals() if name.startswith("__")]
    return sorted([*dunder, *__all__, "nn", *ACTIVATIONS])


__all__ = [
    "DECONVNET",
    "EXACT",
    "GUIDED",
    "STRAIGHT_THROUGH",
    "BackendError",
    "Plan",
    "ReversalError",
    "ReversalReport",
    "Rule",
    "SwapError",
    "SwapWarning",
    "TracingError",
    "activation",
    "adversarial",
    "assert_overridden",
    "attribution",
    "backend",
    "check_reversal",
    "clipped_straight_through",
    "compat",
    "convert",
    "custom",
    "custom_rule",
    "declare",
    "functional",
    "guided",
    "plan",
    "rectgrad",
    "reverse",
    "reverse_gradient",
    "schedules",
    "show_config",
    "swap",
]
