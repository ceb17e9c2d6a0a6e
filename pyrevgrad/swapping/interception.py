"""The mode that sees every PyTorch call inside a swapped model and replaces the activations.

Imports calls, patterns, sites, the layers and the public binding of activations with rules.
"""

from __future__ import annotations

import os.path
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .. import autograd, backends
from ..nn import Activation
from ..rules import Rule
from ..transforms import TracingError
from . import calls, sparing
from .calls import Call, may_need_gradient
from .declaring import LayerValue
from .patterns import Patterns, followed
from .places import Place
from .refusals import SwapError
from .seeing import SEEN, differentiated, is_quiet, mark, node_of, quiet
from .sites import Site
from .stance import uncompiled

NOT_COMPILED = (
    "pyrevgrad.swap: a swapped model runs uncompiled, so fullgraph=True is refused; call the model "
    "and not its compiled form, and one that compiles a part of itself once before the swap"
)
NOT_TRACED = (
    "torch.fx.symbolic_trace would replace the backward of a swapped model by the plain gradient; "
    "trace the model before, and swap the graph module"
)
OF_PARAMETERS = "its input is a parameter of the model, and so it is no activation of the data"
_is_dynamo_compiling = torch.compiler.is_dynamo_compiling
# With the separator at the end, without which torchvision would lie in torch.
_TORCH, _OURS, _SWAPPING = (
    os.path.join(folder, "")
    for folder in (Path(torch.__file__).parent, Path(__file__).parent.parent, Path(__file__).parent)
)
#: Files of PyTorch that pass every call on, and say nothing of where it comes from.
_DISPATCHING = tuple(
    os.path.join(_TORCH, *names)
    for names in (("overrides.py",), ("nn", "functional.py"), ("nn", "modules", "module.py"))
)
#: By the code's id, since not all code can be hashed; the code is kept, so that no other gets it.
_rooms: dict[int, tuple[Any, str]] = {}
MOST_KEPT = 4096


class _Resumed(threading.local):
    swaps: frozenset[Any] | None = None


_resumed = _Resumed()


def resumed_swaps() -> frozenset[Any] | None:
    """The swaps that alone hold in this thread while it recomputes a checkpoint; None elsewhere."""
    return _resumed.swaps


#: A code's id, an instruction, ``file:line``, whether the model's author wrote it.
Origin = tuple[int, int, str, bool]


def caller(root: Any) -> Origin:
    """Where the model calls.

    The innermost frame outside of PyTorch and pyrevgrad, or else the innermost of a layer of
    theirs. Those from `root` on, where the model was called, are not the model's.
    """
    frame: Any = sys._getframe(2)
    found, room = None, ""
    while frame is not None and frame is not root:
        code = frame.f_code
        room = (_rooms.get(id(code)) or _room(code))[1]
        if room == "author" or (room == "library" and found is None):
            found = frame
        if room == "author":
            break
        frame = frame.f_back
    found = found or sys._getframe(2)
    name = os.path.basename(found.f_code.co_filename)
    return id(found.f_code), found.f_lasti, f"{name}:{found.f_lineno}", room == "author"


def _room(code: Any) -> tuple[Any, str]:
    file = code.co_filename
    if file.startswith(_SWAPPING) or file in _DISPATCHING:
        room = "swap"
    else:
        library = file.startswith((_TORCH, _OURS)) or "<frozen" in file
        room = "library" if library else "author"
    if len(_rooms) >= MOST_KEPT:
        _rooms.clear()
    _rooms[id(code)] = code, room
    return code, room


class _Thread(threading.local):
    """What one thread does inside the model: the modules it is in, and whether the mode is on."""

    def __init__(self) -> None:
        self.places: list[Place] = []
        self.active = False
        #: The frame that the model is called from.
        self.root: Any = None
        #: In a recomputation, where the forward called for it.
        self.origin: Origin | None = None


class Interceptor(TorchFunctionMode):
    """On in a thread while it runs a method of one of the model's modules."""

    def __init__(self, swap: Any) -> None:
        super().__init__()
        self.swap = swap
        self.thread = _Thread()
        self.patterns = Patterns()

    def run(
        self, place: Place, function: Callable[..., Any], forward: bool, args: Any, kwargs: Any
    ) -> Any:
        """Call a method of the module of `place` with the mode on in this thread."""
        thread = self.thread
        places = thread.places
        if is_quiet() or (thread.active and places and places[-1] is place):
            return function(*args, **kwargs)
        resumed = _resumed.swaps
        if self.swap not in resumed if resumed is not None else not self.swap.live:
            return function(*args, **kwargs)
        if not places:
            return self._run_outermost(place, function, forward, args, kwargs)
        switched = self._switch_on(thread)
        places.append(place)
        try:
            return function(*args, **kwargs)
        finally:
            places.pop()
            if switched:
                self._switch_off(thread)

    def _run_outermost(
        self, place: Place, function: Callable[..., Any], forward: bool, args: Any, kwargs: Any
    ) -> Any:
        if any(isinstance(part, torch.fx.Proxy) for part in args):
            raise TracingError(NOT_TRACED)
        self.swap.unseen.entered(place, forward)
        result = self.resume([place], lambda: function(*args, **kwargs))
        if _resumed.swaps is None:
            self.swap.after_call(place, forward, args, kwargs, result)
        return result

    def _switch_on(self, thread: _Thread) -> bool:
        if thread.active:
            return False
        self.__enter__()
        thread.active = True
        return True

    def _switch_off(self, thread: _Thread) -> None:
        thread.active = False
        self.__exit__(None, None, None)

    def resume(
        self, places: list[Place], function: Callable[[], Any], origin: Origin | None = None
    ) -> Any:
        """Call `function` as if inside `places`, where it was called in the forward."""
        thread = self.thread
        before = thread.places, thread.root, thread.origin
        thread.places, thread.origin = list(places), origin
        # A compiler that traces this refuses the frame, and the swap refuses the compiler later.
        traced = _is_dynamo_compiling()
        thread.root = None if traced else sys._getframe()
        switched = bool(places) and self._switch_on(thread)
        try:
            with nullcontext() if traced else uncompiled():
                return function()
        finally:
            thread.places, thread.root, thread.origin = before
            if switched:
                self._switch_off(thread)

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if _is_dynamo_compiling():
            torch._dynamo.graph_break(msg=NOT_COMPILED)
            # Behind the break the compiler would go on, with what stands below.
            again = torch.compiler.disable(self.__torch_function__)
            return again(function, types, args, kwargs)
        kwargs = kwargs or {}
        if is_quiet():
            return function(*args, **kwargs)
        thread = self.thread
        places = thread.places
        # PyTorch has taken this mode off the stack for the time of this call. A module that is
        # called from here, as by a backward that recomputes, must put it on again.
        thread.active = False
        try:
            name = followed(function)
            origins = [] if name is None else self.patterns.origins(args, kwargs)
            spelling = calls.spelling_of(function) if places else None
            call = None if spelling is None else calls.read(spelling, args, kwargs)
            if call is not None:
                result = self._activation(call, function, args, kwargs)
            elif places and self.swap.sparing and function in sparing.SPARED:
                result = sparing.call(function, args, kwargs)
            elif function is torch.autograd.grad:
                result = differentiated(function, args, kwargs)
            else:
                result = function(*args, **kwargs)
            if name is not None:
                pattern = self.patterns.follow(name, args, kwargs, origins, result)
                if pattern is not None and places:
                    self._note_pattern(pattern, places[-1])
            return result
        finally:
            thread.active = True

    def _activation(self, call: Call, function: Any, args: Any, kwargs: Any) -> Any:
        if self.is_of_parameters(call.x):
            y = function(*args, **kwargs)
            mark(y)
            self._note_of_parameters(call)
            return y
        site = self._site(call)
        self.swap.count_forward(site)
        if site.rule is None:
            return self._left(function(*args, **kwargs), site)
        if not may_need_gradient(call.x):
            return function(*args, **kwargs)
        refusal = _unserved(call.x)
        if refusal is not None:
            y = function(*args, **kwargs)
            mark(y)
            self.swap.note_unserved(site, refusal)
            return y
        return self.apply(call, site)

    def declared_layer(
        self, place: Place, function: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The forward of a layer that is declared to be one activation, as that."""
        thread = self.thread
        if not (thread.active and thread.places and thread.places[-1] is place):
            return function(*args, **kwargs)
        module, *given = args
        given += kwargs.values()
        if place.declared is None:
            return function(*args, **kwargs)
        (kind, params), name = place.declared, type(module).__name__
        registered = self.swap.layer_site(place.path, kind)
        x = given[0] if len(given) == 1 and isinstance(given[0], Tensor) else None
        if x is None:
            if registered.rule is None:
                return function(*args, **kwargs)
            named = [f"{key}: {type(part).__name__}" for key, part in kwargs.items()]
            listed = ", ".join([*(type(part).__name__ for part in args[1:]), *named])
            raise SwapError(
                f"{name} is declared to be {kind}, and is given more or else than one tensor: "
                f"({listed})"
            )

        value = LayerValue(function, module, kind, tuple(kwargs))
        refusal, rectifier = self.swap.refusal_of_declared(place.module), registered.rectifier
        call = Call(kind, name, x, params, False, refusal, rectifier, value, declared=True)
        if self.is_of_parameters(x):
            self._note_of_parameters(call)
            return function(*args, **kwargs)
        site = self._site(call)
        self.swap.count_forward(site)
        if site.rule is None:
            return self._left(function(*args, **kwargs), site)
        if not may_need_gradient(x):
            return function(*args, **kwargs)
        unserved = _unserved(x)
        if unserved is not None:
            self.swap.note_unserved(site, unserved)
            return function(*args, **kwargs)
        if refusal is not None:
            raise SwapError(f"{site}: {refusal}")
        with quiet():
            if not value.may_write:
                return self.apply(call, site)
            y = self.apply(replace(call, x=x.clone()), site)
            return x.copy_(y) if value.wrote else y

    def own_call(self, call: Call, pairs: Any, scale: Any) -> Any:
        """A call of pyrevgrad's own in the model: its rule if exact is ours to replace."""
        if not (pairs.rule.is_exact and scale is None):
            call.refusal = f"it has a rule of its own: {pairs.rule!r}"
        site = self._site(call)
        if call.refusal is not None:
            # Its author has chosen already.
            site.meant = False
        self.swap.count_forward(site)
        if site.rule is None or not may_need_gradient(call.x):
            return None
        with quiet():
            return self.apply(call, site)

    def apply(self, call: Call, site: Site) -> Any:
        """f(x) by PyTorch, or bit for bit as PyTorch's, with the backward of the site's rule."""
        x = _as_autocast_would(call)
        if not (call.inplace and x._is_view()):
            return self._counted(self.swap.substitute(call, x, site), site)
        # In place on a view, PyTorch hides our node inside another, where nothing can count it.
        y = self.swap.substitute(replace(call, inplace=False), x.clone(), site)
        return x.copy_(self._counted(y, site))

    def _counted(self, y: Tensor, site: Site) -> Tensor:
        node: Any = y.grad_fn or node_of(y)
        if node is not None:
            node.metadata[SEEN] = True
            node.register_prehook(lambda _: self.swap.count_backward(site))
        return y

    def _left(self, y: Any, site: Site) -> Any:
        """`y` of an activation that is left: seen, and counted where a gradient reaches it."""
        mark(y)
        if isinstance(y, Tensor):
            # In place on a view, what is recorded is a copy into its base.
            node = y._base.grad_fn if y._is_view() and y._base is not None else node_of(y)
            if node is not None:
                node.register_prehook(lambda _: self.swap.count_backward(site))
        return y

    def _site(self, call: Call) -> Site:
        thread = self.thread
        place = thread.places[-1]
        registered = self.swap.layer_site(place.path, call.kind)
        if registered is not None and registered.source:
            return registered
        code, instruction, source, written = self.called_from()
        if not written and (registered is not None or isinstance(place.module, Activation)):
            # A line of PyTorch's or ours says nothing: whose forward calls the layer does.
            around = thread.places[-2].module if len(thread.places) > 1 else place.module
            source = f"nn.{type(around).__name__}"
        line = (code, instruction) if registered is None else ()
        return self.swap.site((place.path, call.kind, *line), place, call, source)

    def is_of_parameters(self, x: Tensor) -> bool:
        """Whether `x` is a parameter of the model, or a function of one and of constants alone."""
        source = self.patterns.parameter_of(x)
        return self.swap.is_parameter(x if source is None else source)

    def called_from(self) -> Origin:
        """Where the model calls in this thread, or called for what is recomputed now."""
        found, before = caller(self.thread.root), self.thread.origin
        return found if found[-1] or before is None else before

    def _note_of_parameters(self, call: Call) -> None:
        place = self.thread.places[-1]
        code, instruction, source, _ = self.called_from()
        key = (place.path, call.kind, OF_PARAMETERS, code, instruction)
        self.swap.note_left(key, place, call, source, OF_PARAMETERS)

    def _note_pattern(self, pattern: str, place: Place) -> None:
        code, instruction, source, _ = self.called_from()
        self.swap.note_uncertain((place.path, pattern, code, instruction), place, pattern, source)


def substitute(call: Call, x: Tensor, rule: Rule) -> Tensor:
    """The activation of `call` on `x` with the backward of `rule`."""
    pairs = backends.pairs_of(call.kind, rule_for(call, rule), call.params)
    return autograd.call_unwatched(x, pairs, pairs.tensor, call.inplace, call.value)


def rule_for(call: Call, rule: Rule) -> Rule:
    """`rule` for the row of `call`: on a clamp, with a slope of 1 at its bounds too."""
    if call.interval is None or rule.slope != "exact":
        return rule
    if rule.input_gate is not None or rule.custom:
        return rule
    gate = "gradient" if rule.gradient_gate == "product" else rule.gradient_gate
    return replace(rule, slope="identity", input_gate=call.interval, gradient_gate=gate)


def _unserved(x: Tensor) -> str | None:
    """Why no row serves a tensor like `x`, or None."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return f"its input is of {x.dtype}"
    if x.layout is not torch.strided or x.is_nested:
        return "its input is no dense tensor"
    return None


def _as_autocast_would(call: Call) -> Tensor:
    """x in the dtype in which autocast computes the activation, recorded as a cast."""
    x = call.x
    if call.value is None or not torch.is_autocast_enabled(x.device.type):
        return x
    # A layer's own forward may ask for the dimensions that it is used to.
    probe = x.detach() if call.declared else x.detach().new_empty(0)
    return x.to(call.value(probe).dtype)
