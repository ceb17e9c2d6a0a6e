"""Weights of a user's file into a user's model: the state_dict that is in it.

Imports torch, and the error of the command that imports this when it is asked for weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from . import ExplainError

#: Under what training scripts save it beside other things.
_WITHIN = ("state_dict", "model_state_dict", "model")
#: What DataParallel and torch.compile put before each key.
_PREFIXES = ("module.", "_orig_mod.")


def load(model: nn.Module, path: Path) -> None:
    """Load the file, printing what was done to make its keys the model's.

    Raises
    ------
    ExplainError
        There is no such file, it holds other things than tensors, or they do not fit.
    """
    if not path.is_file():
        raise ExplainError(f"--weights: there is no file {path}")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Any, as the bytes are: a text gives a KeyError.
        raise ExplainError(
            f"--weights: {path} is broken or holds more than tensors, such as a whole model; save "
            "model.state_dict() with torch.save"
        ) from error
    state = _state_of(found, model, path)
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        why = _unlike(state, model) or str(error).strip().splitlines()[-1].strip()
        raise ExplainError(f"--weights: {path} does not fit: {why}") from error


def _state_of(found: Any, model: nn.Module, path: Path) -> dict[str, Any]:
    """What is found as the model would name it, each step printed."""
    within = [key for key in _WITHIN if isinstance(found, Mapping) and key in found]
    if within and isinstance(found[within[0]], Mapping):
        print(f"--weights: of {path}, what is under {within[0]!r}")
        found = found[within[0]]
    if not (isinstance(found, dict) and all(isinstance(key, str) for key in found)):
        raise ExplainError(f"--weights: {path} holds no state_dict but a {type(found).__name__}")
    own = model.state_dict()
    while found and found.keys().isdisjoint(own):
        common = [p for p in _PREFIXES if all(key.startswith(p) for key in found)]
        if not common:
            break
        print(f"--weights: {common[0]!r} is left out before each key")
        consume_prefix_in_state_dict_if_present(found, common[0])
    return found


def _unlike(state: dict[str, Any], model: nn.Module) -> str:
    """Which keys the file or the model lacks, in a sentence; nothing where they are the same."""
    own = model.state_dict()
    missing, unknown = [k for k in own if k not in state], [k for k in state if k not in own]
    parts = []
    if missing:
        parts.append(f"it lacks {len(missing)} of the model's {len(own)} keys, as {missing[0]!r}")
    if unknown:
        parts.append(f"the model has none of {len(unknown)} of its keys, as {unknown[0]!r}")
    return ", and ".join(parts)
