"""What runs in or about the model and that no swap sees: its own code that was bound or compiled
before, what the graph shows besides, and calls of its parts alone.

Imports given, audit, calls, sites and torch.
"""

from __future__ import annotations

import functools
import os.path
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from ..given import names_in
from . import audit
from .calls import NAMES
from .places import Place
from .refusals import SwapWarning
from .sites import Site

BOUND = (
    "it runs unseen, since it was bound or compiled before the swap or is no plain method; call "
    "the model while the swap holds"
)
PARTS = "only parts of the model were called, and nothing else of it was seen; swap those parts"
#: What a class may keep a function in, and where that has it.
_KEPT_IN = {
    types.FunctionType: "__wrapped__",
    types.MethodType: "__func__",
    staticmethod: "__func__",
    classmethod: "__func__",
    property: "fget",
    functools.cached_property: "func",
    functools.partialmethod: "func",
    functools.partial: "func",
    type(functools.lru_cache(str)): "__wrapped__",
}
#: A function's file and first line; compilers keep both.
Source = tuple[str, int]
#: The code of each class's own functions.
_codes_of: weakref.WeakKeyDictionary[type, dict[Source, types.CodeType]] = (
    weakref.WeakKeyDictionary()
)


class Unseen:
    """Looks, where a model is entered and left, for what no swap has seen."""

    def __init__(self, swap: Any, modules: Iterable[nn.Module], where: Any) -> None:
        self._swap = swap
        self._modules = tuple(modules)
        self._all = where is None or where == "all"
        self._codes: dict[Source, types.CodeType] = {}
        for cls in {base for module in self._modules for base in type(module).__mro__}:
            self._codes |= _own_codes(cls)
        #: What is listed here, which `where` cannot leave out.
        self.sites: list[Site] = []
        #: Whether a custom Function was among it, inside which no gradient is recorded.
        self.custom = False
        # What runs as the swap begins is its author's: a method that swaps its own model. In other
        # threads that cannot be told, since asking for their frames may block in Python 3.11.
        self._thread = threading.get_ident()
        self._around = {found[1:] for found in self._own_frames(sys._getframe())}
        self._whole = bool(self._around)

    def entered(self, place: Place, forward: bool) -> None:
        """Before the outermost call: list the model's own code that makes it and is not seen.

        Not where it calls the model itself, whose forward is seen from its beginning, nor in a
        thread that may have run it before the swap.
        """
        if forward and place.module is self._swap.model:
            return
        if threading.get_ident() != self._thread:
            return
        # A compiler that traced it would keep the frames that it saw.
        caller = Unseen._caller
        found = (_uncompiled(caller) if "torch._dynamo" in sys.modules else caller)(self)
        if found is None or self._swap.lists(found):
            return
        name, source, calls_one = found
        site = self._site(found, f"what {name} calls itself", BOUND)
        site.source, site.meant = source, calls_one
        self._whole = True
        if not calls_one:
            self._warn(site)

    def left(self, place: Place, inputs: Any, outputs: Any) -> None:
        """After the outermost call: list what the graph shows that no swap has marked."""
        model = self._swap.model
        self._whole = self._whole or place.module is model
        findings = audit.unseen(inputs, outputs)
        if findings:
            # Weights may be results of a graph of their own: of a call that is given them.
            weights = [*model.parameters(), *model.buffers()]
            findings = audit.unseen((inputs, weights), outputs)
        for finding in findings:
            self._note(place, finding)

    def finished(self) -> None:
        """At the end: warn where only parts of the model were called; it may call more itself."""
        model = self._swap.model
        module = getattr(type(model).forward, "__module__", None) or "torch.nn."
        if self._all and not self._whole and not module.startswith("torch.nn."):
            self._warn(self._site("parts", f"what {type(model).__name__} calls itself", PARTS))

    def _site(self, key: Any, spelling: str, reason: str) -> Site:
        site = Site("", "unseen", self._swap.model)
        site.spelling, site.reason, site.forward = spelling, reason, 1
        self._swap.add(key, site)
        self.sites.append(site)
        return site

    def _warn(self, site: Site) -> None:
        site.certain = False
        warnings.warn(f"swap left {site}: {site.reason}", SwapWarning, stacklevel=5)

    def _note(self, place: Place, finding: audit.Finding) -> None:
        self.custom = self.custom or finding.custom
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
        self.sites.append(site)
        if not site.certain:
            site.reason += "; the swap cannot tell whether it is an activation that it should take"
            self._warn(site)

    def _explained(self, finding: audit.Finding) -> bool:
        """Whether a fused operation, listed already, leaves such nodes."""
        fused = "fused tanh" if finding.kind == "sigmoid" else f"fused {finding.kind}"
        return any(site.kind == fused and site.forward for site in self._swap.report.left)

    def _caller(self) -> tuple[str, str, bool] | None:
        """The method of the model that calls into it unseen, its ``file:line``, and whether it
        names an activation that is none of its modules; None if there is none."""
        for frame, depth, source in self._own_frames(sys._getframe()):
            if (depth, source) in self._around:
                continue
            owner = frame.f_locals.get(frame.f_code.co_varnames[0])
            if not self._is_own(owner):
                continue
            code = _codes_of_classes(type(owner)).get(source)
            if code is not None:
                cls = type(owner).__dict__.get("_pyrevgrad_original", type(owner))
                place = f"{os.path.basename(source[0])}:{source[1]}"
                calls_one = not (names_in(code) & NAMES) <= owner._modules.keys()
                return f"{cls.__name__}.{code.co_name}", place, calls_one
        return None

    def _own_frames(self, frame: Any) -> list[tuple[Any, int, Source]]:
        """The frames of code of the model's classes that take an argument, and their depths."""
        found, height = [], 0
        while frame is not None:
            code = frame.f_code
            source = code.co_filename, code.co_firstlineno
            if source in self._codes and code.co_argcount:
                found.append((frame, height, source))
            frame, height = frame.f_back, height + 1
        return [(frame, height - above, source) for frame, above, source in found]

    def _is_own(self, value: Any) -> bool:
        return isinstance(value, nn.Module) and any(value is own for own in self._modules)


@functools.cache
def _uncompiled(function: Any) -> Any:
    return torch._dynamo.disable(function)


def _codes_of_classes(cls: type) -> dict[Source, types.CodeType]:
    found: dict[Source, types.CodeType] = {}
    for base in cls.__mro__:
        found |= _own_codes(base)
    return found


def _own_codes(cls: type) -> dict[Source, types.CodeType]:
    """Of the functions that the author of a class, if it is not PyTorch's or ours, wrote in it."""
    found = _codes_of.get(cls)
    if found is None:
        room = cls.__module__
        plain = cls is nn.Module or room == "torch.nn.modules.container" or ".parametriz" in room
        values = [] if plain or "_pyrevgrad_original" in vars(cls) else list(vars(cls).values())
        codes = [code for value in values for code in _codes(value)]
        found = {(code.co_filename, code.co_firstlineno): code for code in codes}
        _codes_of[cls] = found
    return found


def _codes(value: Any) -> Iterator[types.CodeType]:
    """The code of a function, and of those that it wraps."""
    for _ in range(10):
        name = _KEPT_IN.get(type(value))
        if name is None:
            return
        if isinstance(value, types.FunctionType):
            yield value.__code__
        value = getattr(value, name, None)
