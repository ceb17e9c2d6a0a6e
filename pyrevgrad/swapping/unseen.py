"""What runs in or about the model and that no swap sees: its own code that was bound or compiled
before, what the graph shows besides, and calls of its parts alone.

Imports audit, sites and torch.
"""

from __future__ import annotations

import functools
import os.path
import sys
import types
import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

from . import audit
from .places import Place
from .refusals import SwapWarning
from .sites import Site

BOUND = (
    "it runs unseen, since it was bound or compiled before the swap or is no plain method; call "
    "the model while the swap holds"
)
PARTS = "only parts of the model were called, and nothing else of it was seen; swap those parts"
#: Where a method that is no plain function keeps the function.
_WRAPPED = ("__func__", "fget", "func", "__wrapped__")
_OF_INSTANCES = (types.FunctionType, types.MethodType, functools.partial)


#: A function's file and first line; compilers keep both.
Source = tuple[str, int]
#: Those of each class's own functions.
_places: weakref.WeakKeyDictionary[type, frozenset[Source]] = weakref.WeakKeyDictionary()


class Unseen:
    """Looks, where a model is entered, whether code of its own is running already."""

    def __init__(self, swap: Any, modules: Iterable[nn.Module]) -> None:
        self._swap = swap
        self._modules = tuple(modules)
        classes = {base for module in self._modules for base in type(module).__mro__}
        values = [value for module in self._modules for value in list(vars(module).values())]
        of_instances = (value for value in values if isinstance(value, _OF_INSTANCES))
        self._places = frozenset().union(*map(_places_of, classes), _places_in(of_instances))
        # What ran when the swap began is its author's: a method that explains its own model.
        self._around = list(self._own_frames())
        #: Whether the model itself was entered, and whether any call of it has ended.
        self._whole = self._ended = False
        self._token = f"pyrevgrad: the end of a call, {id(self)}"

    def entered(self, place: Place) -> None:
        """Before the outermost call: list the model's own code that makes it and is not seen."""
        self._whole = self._whole or place.module is self._swap.model
        found = self._caller()
        if found is None or self._swap.lists(found):
            return
        site = Site("", "unseen", self._swap.model)
        site.spelling, site.source = f"what {found[0]} calls itself", found[1]
        site.reason = BOUND
        site.forward, site.meant = 1, True
        self._swap.add(found, site)
        self._whole = True

    def left(self, place: Place, inputs: Any, outputs: Any) -> None:
        """After the outermost call: list what the graph shows that no swap has marked."""
        findings = audit.unseen(inputs, outputs)
        if self._ended:
            findings += audit.between(inputs, self._token)
        for finding in findings:
            self._note(place, finding)
        audit.mark_outputs(outputs, self._token)
        self._ended = True

    def finished(self) -> None:
        """At the end: warn where only parts of the model were called; it may call more itself."""
        model = self._swap.model
        if not self._whole and not type(model).forward.__module__.startswith("torch.nn."):
            site = Site("", "unseen", model)
            site.spelling, site.reason = f"what {type(model).__name__} calls itself", PARTS
            site.forward, site.certain = 1, False
            self._swap.add("parts", site)
            warnings.warn(f"swap left {site}: {site.reason}", SwapWarning, stacklevel=4)

    def _note(self, place: Place, finding: audit.Finding) -> None:
        key = (place.path, finding.kind, finding.text)
        if self._swap.lists(key) or self._explained(finding):
            return
        site = Site(place.path, finding.kind, place.module, place.aliases)
        site.spelling, site.reason = finding.kind, finding.text
        site.forward, site.certain = 1, finding.certain
        site.meant = finding.certain
        if finding.certain and not finding.rectifier:
            self._swap.selection.decide(site, finding.text)
            site.reason, site.certain = finding.text, site.meant
        self._swap.add(key, site)
        if not site.certain:
            site.reason += "; the swap cannot tell whether it is an activation that it should take"
            warnings.warn(f"swap left {site}: {site.reason}", SwapWarning, stacklevel=6)

    def _explained(self, finding: audit.Finding) -> bool:
        """Whether a fused operation, listed already, leaves such nodes."""
        fused = "fused tanh" if finding.kind == "sigmoid" else f"fused {finding.kind}"
        return any(site.kind == fused and site.forward for site in self._swap.report.left)

    def forget(self) -> None:
        """Let go of what ran when the swap began."""
        self._around.clear()

    def _caller(self) -> tuple[str, str] | None:
        """The function of the model that calls into it unseen, and its ``file:line``, or None."""
        for frame in self._own_frames():
            if any(frame is other for other in self._around):
                continue
            code, known = frame.f_code, frame.f_locals
            given = [known.get(name) for name in code.co_varnames[: code.co_argcount]]
            owner = next((part for part in given if self._is_own(part)), None)
            if owner is not None:
                cls = type(owner)
                cls = cls.__dict__.get("_pyrevgrad_original", cls)
                source = f"{os.path.basename(code.co_filename)}:{code.co_firstlineno}"
                return f"{cls.__name__}.{code.co_name}", source
        return None

    def _own_frames(self) -> Iterator[Any]:
        frame: Any = sys._getframe(1)
        while frame is not None:
            if (frame.f_code.co_filename, frame.f_code.co_firstlineno) in self._places:
                yield frame
            frame = frame.f_back

    def _is_own(self, value: Any) -> bool:
        return isinstance(value, nn.Module) and any(value is own for own in self._modules)


def _places_of(cls: type) -> frozenset[Source]:
    found = _places.get(cls)
    if found is None:
        plain = cls is nn.Module or cls.__module__ == "torch.nn.modules.container"
        own = not plain and "_pyrevgrad_original" not in cls.__dict__
        found = _places[cls] = _places_in(vars(cls).values()) if own else frozenset()
    return found


def _places_in(values: Iterable[Any]) -> frozenset[Source]:
    codes = (code for value in values for code in _codes(value))
    return frozenset((code.co_filename, code.co_firstlineno) for code in codes)


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code of a function, and of those that it wraps."""
    for _ in range(10):
        if isinstance(value, types.FunctionType):
            yield value.__code__
        inner = [found for name in _WRAPPED if (found := getattr(value, name, None)) is not None]
        if not inner:
            return
        value = inner[0]
