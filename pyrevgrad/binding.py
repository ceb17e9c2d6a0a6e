"""The optional C++ nodes of autograd, where they were built for the torch and Python that run.

Imports the standard library and torch. `NODES` is the compiled module or None, and `WHY` a line.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch

#: What this Python's build left beside the nodes: what they are for, or why there are none.
RECORD = Path(__file__).with_name(f"_autograd{EXTENSION_SUFFIXES[0]}").with_suffix(".txt")
CURE = "`pip install --no-build-isolation --no-deps --force-reinstall .` in the checkout"


def _load() -> tuple[Any, str]:
    """The module or None, and what `show_config()` says of it.

    Raises
    ------
    ValueError
        PYREVGRAD_AUTOGRAD is neither "python" nor "c++".
    ImportError
        It is "c++", and the nodes are missing, another torch's or another Python's.
    """
    asked = os.environ.get("PYREVGRAD_AUTOGRAD") or None
    if asked not in (None, "python", "c++"):
        raise ValueError(f"PYREVGRAD_AUTOGRAD is python or c++, not {asked!r}")
    if asked == "python":
        return None, "Python functions (PYREVGRAD_AUTOGRAD is python)"
    reason = _mismatch()
    if reason is None:
        try:
            return importlib.import_module("pyrevgrad._autograd"), "C++ nodes"
        except ImportError as error:
            reason = f"the compiled nodes did not load ({error})"
    if asked == "c++":
        raise ImportError(f"PYREVGRAD_AUTOGRAD is c++, and {reason}. Cure: {CURE}.")
    return None, f"Python functions ({reason}; they take longer on small tensors. Cure: {CURE})"


def _mismatch() -> str | None:
    """Why the nodes must not be loaded: C++ promises nothing between two versions of torch."""
    here = f"torch {torch.__version__} and Python {sys.version_info[0]}.{sys.version_info[1]}"
    records = [RECORD] if RECORD.exists() else sorted(RECORD.parent.glob("_autograd.*.txt"))
    said = [record.read_text(encoding="utf-8").strip() for record in records]
    if said == [here]:
        return None
    if RECORD.exists() and not said[0].startswith("torch "):
        return said[0]
    built = "; ".join(line for line in said if line.startswith("torch "))
    return f"the compiled nodes are for {built}, and this is {here}" if built else "none were built"


NODES, WHY = _load()
