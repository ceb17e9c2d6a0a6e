"""The optional C++ nodes of autograd, where they were built for the very torch that runs.

Imports the standard library and torch. `NODES` is the compiled module or None, and `WHY` a line.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import torch

#: What the build left: "torch " and the version it was for, or why there are no nodes.
RECORD = Path(__file__).with_name("_autograd.txt")
CURE = "`pip install --no-build-isolation --no-deps --force-reinstall .` in the checkout"


def _load() -> tuple[Any, str]:
    """The module or None, and what `show_config()` says of it.

    Raises
    ------
    ValueError
        PYREVGRAD_AUTOGRAD is neither "python" nor "c++".
    ImportError
        It is "c++", and the nodes are missing or another torch's.
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
    record = RECORD.read_text(encoding="utf-8").strip() if RECORD.exists() else "none were built"
    if not record.startswith("torch "):
        return record
    if record != f"torch {torch.__version__}":
        return f"the compiled nodes are for {record}, and this is {torch.__version__}"
    return None


NODES, WHY = _load()
