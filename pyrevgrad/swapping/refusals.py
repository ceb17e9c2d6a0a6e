"""Models whose activations no swap can reach, refused by name before anything is changed.

Imports torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class SwapError(RuntimeError):
    """A swap that replaced nothing, or that did not reach what it was meant to reach."""


class ModelError(SwapError, TypeError):
    """A model of a kind that cannot be swapped."""


class SwapWarning(UserWarning):
    """Something that looks like an activation and that the swap left as it is."""


def check_model(model: Any) -> None:
    """ModelError unless the swap can see into every module of `model`."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        cure = "; swap the model that it was made from" if "Export" in kind else ""
        raise ModelError(f"swap takes a torch.nn.Module, not {kind}{cure}")
    for path, module in model.named_modules():
        found = _refused(module)
        if found is not None:
            kind, cure = found
            place = f"{path} is" if path else "the model is"
            raise ModelError(f"swap: {place} {kind}, whose activations cannot be reached; {cure}")


def _refused(module: nn.Module) -> tuple[str, str] | None:
    name, room = type(module).__name__, type(module).__module__
    if isinstance(module, torch.jit.ScriptModule):
        return f"a ScriptModule ({name})", "swap the model before torch.jit"
    if name == "OptimizedModule" and hasattr(module, "_orig_mod"):
        return "compiled by torch.compile", "swap its _orig_mod, which runs uncompiled"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "compiled by Module.compile()", "swap a copy that is not compiled"
    if ".quantized" in room and room.startswith(("torch.ao.nn", "torch.nn")):
        return f"quantised ({room.rpartition('.nn.')[2]}.{name})", "swap the float model"
    if getattr(module, "qconfig", None) is not None and hasattr(module, "_is_quantized"):
        return f"quantised ({name})", "swap the float model"
    return None
