"""Models whose activations no swap can reach, refused by name before anything is changed.

Imports torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

COMPILED = "compiled by torch.compile"


class SwapError(RuntimeError):
    """A swap that replaced nothing, or that did not reach what it was meant to reach."""


class ModelError(SwapError, TypeError):
    """A model of a kind that cannot be swapped."""


class SwapWarning(UserWarning):
    """Something that looks like an activation and that the swap left as it is."""


def check_model(model: Any, called: str = "swap") -> None:
    """ModelError unless the swap can see into every module of `model`; it names what was called."""
    modules_of(model, called)


def modules_of(model: Any, called: str = "swap") -> dict[str, nn.Module]:
    """Every module of `model` by each of its dotted names, checked as by `check_model`."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        cure = f"; {called} the model that it was made from" if "Export" in kind else ""
        raise ModelError(f"{called} takes a torch.nn.Module, not {kind}{cure}")
    named: dict[str, nn.Module] = {}
    _list(model, "", named)
    classes: dict[type, tuple[str, str] | None] = {}
    for path, module in named.items():
        cls = type(module)
        if cls not in classes:
            classes[cls] = _refused_class(cls)
        found = classes[cls] or _refused(module)
        if found is not None:
            kind, cure = found
            if path and kind == COMPILED:
                own = f"model.get_submodule({path!r})._orig_mod"
                cure = f"the model after model.set_submodule({path!r}, {own})"
            place = f"{path} is" if path else "the model is"
            raise ModelError(
                f"{called}: {place} {kind}, whose activations cannot be reached; {called} {cure}"
            )
    return named


def _list(module: nn.Module, path: str, named: dict[str, nn.Module]) -> None:
    """As ``named_modules(remove_duplicate=False)``, without its nested generators."""
    named[path] = module
    for name, child in module._modules.items():
        if child is not None:
            _list(child, f"{path}.{name}" if path else name, named)


def _refused_class(cls: type) -> tuple[str, str] | None:
    name, room = cls.__name__, cls.__module__
    if issubclass(cls, torch.jit.ScriptModule):
        return f"a ScriptModule ({name})", "the model before torch.jit"
    if ".quantized" in room and room.startswith(("torch.ao.nn.", "torch.nn.")):
        return f"quantised ({room.rpartition('.nn.')[2]}.{name})", "the float model"
    return None


def _refused(module: nn.Module) -> tuple[str, str] | None:
    # In its own dictionary: a module is slow to say that it lacks an attribute.
    own, cls = module.__dict__, type(module)
    if cls.__name__ == "OptimizedModule" and hasattr(module, "_orig_mod"):
        return COMPILED, "its _orig_mod, which runs uncompiled"
    if own.get("_compiled_call_impl") is not None:
        return "compiled by Module.compile()", "a copy that is not compiled"
    configured = own.get("qconfig", getattr(cls, "qconfig", None))
    if configured is not None and hasattr(module, "_is_quantized"):
        return f"quantised ({cls.__name__})", "the float model"
    return None
