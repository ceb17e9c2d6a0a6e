"""Modules that announce their calls: while a swap holds, each has a class derived from its own.

A derived class and not hooks, since it also sees methods that are called directly, in data-parallel
replicas too, and makes torch.compile look again. Imports torch, refusals
and what the swaps have seen.
"""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import inspect
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from . import seeing
from .refusals import ModelError

#: The attribute of a module that holds its places, outermost swap first.
KEY = "_pyrevgrad_places"
#: The derived class of each class and the methods that it was made of. To make one takes longer
#: than all else that a swap does with a module; a class that is kept here outlives its author's.
_made: dict[type, tuple[tuple[tuple[str, Any], ...], type]] = {}
MOST_KEPT = 256


#: Layers of PyTorch's whose forward is one operation, no activation of each element.
SILENT = {
    getattr(nn, name)
    for name in (
        *("Linear", "Bilinear", "Identity", "Flatten", "Unflatten", "Embedding", "EmbeddingBag"),
        *(f"{kind}{n}d" for n in (1, 2, 3) for kind in ("Conv", "ConvTranspose", "BatchNorm")),
        *(f"{kind}{n}d" for n in (1, 2, 3) for kind in ("InstanceNorm", "MaxPool", "AvgPool")),
        *(f"Adaptive{kind}Pool{n}d" for n in (1, 2, 3) for kind in ("Max", "Avg")),
        *("LayerNorm", "GroupNorm", "RMSNorm", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d"),
        *("AlphaDropout", "Upsample", "PixelShuffle", "Softmax", "LogSoftmax", "Softmax2d"),
        *("ReflectionPad2d", "ReplicationPad2d", "ZeroPad2d", "ConstantPad2d"),
    )
}


class Place:
    """One module of a swapped model: the swap, the module, and its dotted names."""

    __slots__ = ("aliases", "declared", "module", "path", "swap")

    def __init__(self, swap: Any, module: nn.Module, aliases: tuple[str, ...]) -> None:
        self.swap, self.module = swap, module
        self.path, self.aliases = aliases[0], aliases
        #: The activation that the module is declared to be, and its parameters.
        self.declared: tuple[str, dict[str, float]] | None = None


class Announcing(nn.Module):
    """A base of the derived classes: the hooks of the authors' bases are for classes of theirs.

    A Module itself, so that a derived class has the layout of the one that it stands for.
    """

    def __init_subclass__(cls) -> None:
        pass


def _extra_repr(self: Any) -> str:
    """The module's own line, and what the swap does here."""
    parts = [type(self)._pyrevgrad_original.extra_repr(self)]
    parts += [place.swap.describe(place) for place in self.__dict__.get(KEY, ())]
    return ", ".join(part for part in parts if part)


def _deepcopy(self: Any, memo: dict[int, Any]) -> Any:
    """A plain model of its own."""
    with as_it_was(self) as module:
        made = copy.deepcopy(module, memo)
    memo[id(self)] = made
    return made


def _reduce_ex(self: Any, protocol: Any) -> Any:
    """What a plain model is pickled as."""
    with as_it_was(self) as module:
        reduced = module.__reduce_ex__(protocol)
        # The state may be the dictionary itself, which gets its places back below.
        parts = [dict(part) if part is module.__dict__ else part for part in reduced]
        if parts[0] is copyreg.__newobj__:  # type: ignore[attr-defined]
            # pickle would compare the class with that of the swapped module.
            parts[0] = object.__new__
        return tuple(parts)


_ADDED = {"extra_repr": _extra_repr, "__deepcopy__": _deepcopy, "__reduce_ex__": _reduce_ex}


class as_it_was:
    """A block in which one module has its own class and no places, as before the swap."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __enter__(self) -> Any:
        self._class = type(self._module)
        self._places = self._module.__dict__.pop(KEY, None)
        self._module.__class__ = self._class._pyrevgrad_original
        return self._module

    def __exit__(self, *_: object) -> None:
        if self._places is not None:
            self._module.__dict__[KEY] = self._places
        self._module.__class__ = self._class


@contextlib.contextmanager
def as_they_were(places: list[Place]) -> Iterator[None]:
    """A block in which the modules of `places` have their own classes and no swap holds them."""
    with _changing, contextlib.ExitStack() as held:
        for place in places:
            # Not a lazy layer, which has taken another class by itself.
            if "_pyrevgrad_original" in type(place.module).__dict__:
                held.enter_context(as_it_was(place.module))
        yield


_LAZY = inspect.CO_GENERATOR | inspect.CO_COROUTINE


def _own_methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """The methods that the authors of `cls` wrote, from which calls may be made."""
    seen: set[str] = set()
    for base in cls.__mro__:
        if base is nn.Module:
            # Classes mixed in behind it add to it, and cannot change what it has.
            seen.update(vars(nn.Module))
            continue
        for name, value in vars(base).items():
            if name in seen or not isinstance(value, types.FunctionType):
                continue
            seen.add(name)
            # PyTorch's own layers reach their other methods through forward alone.
            library = base.__module__.startswith("torch.nn.") or hasattr(nn.Module, name)
            private = name.startswith("__") or (library and name != "forward")
            if not (private or value.__code__.co_flags & _LAZY):
                yield name, value


def _announced(name: str, function: Callable[..., Any], entry: str) -> Callable[..., Any]:
    forward = name in ("forward", "__call__")

    @functools.wraps(function)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        places = self.__dict__.get(KEY)
        if not places:
            return function(self, *args, **kwargs)
        called = function
        # A forward of the instance's own is not this class's: its call is what can be held.
        if forward and name == ("__call__" if "forward" in self.__dict__ else entry):
            called = _as_declared(tuple(places), function)
        if len(places) > 1:
            return _through(tuple(places), called, forward, (self, *args), kwargs)
        place = places[0]
        return place.swap.interceptor.run(place, called, forward, (self, *args), kwargs)

    return method


def _as_declared(places: tuple[Place, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, as the activation that the layer is declared to be; the innermost swap first."""
    declared = [place for place in places if place.declared is not None]
    if not declared:
        return function
    called: Callable[..., Any] = functools.partial(seeing.unsuspected, function)
    for place in declared:
        called = functools.partial(_declared_in, place, called)
    return called


def _declared_in(place: Place, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if seeing.is_quiet():
        return function(*args, **kwargs)
    return place.swap.interceptor.declared_layer(place, function, args, kwargs)


def _through(
    places: tuple[Place, ...], function: Callable[..., Any], forward: bool, args: Any, kwargs: Any
) -> Any:
    place, *inner = places
    if inner:
        function = functools.partial(_through, tuple(inner), function, forward)
        return place.swap.interceptor.run(place, function, forward, (args, kwargs), {})
    return place.swap.interceptor.run(place, function, forward, args, kwargs)


def _derived(cls: type, module: nn.Module) -> type:
    """The class that stands for `cls` while a swap holds: the last one, if `cls` is as it was."""
    methods = (*_own_methods(cls), ("__call__", cls.__call__))
    made = _made.get(cls)
    if made is not None and made[0] == methods:
        return made[1]
    if len(_made) >= MOST_KEPT:
        _made.clear()
    derived = _derive(cls, methods, module)
    _made[cls] = methods, derived
    return derived


def _derive(cls: type, methods: tuple[tuple[str, Any], ...], module: nn.Module) -> type:
    # A forward that is static, or made otherwise, is none of the methods.
    plain = cls.__call__ is nn.Module.__call__ and any(name == "forward" for name, _ in methods)
    entry = "forward" if plain else "__call__"
    body: dict[str, Any] = {name: _announced(name, method, entry) for name, method in methods}
    body["__module__"], body["__qualname__"] = cls.__module__, cls.__qualname__
    body["__doc__"], body["_pyrevgrad_original"] = cls.__doc__, cls
    body |= _ADDED
    for announcing in _announcing_for(cls):
        bases = (cls,) if announcing is None else (announcing, cls)
        try:
            derived = _made_of(type(cls), cls.__name__, bases, dict(body))
            _set_class(module, derived)
        except TypeError as error:
            refused = error
        else:
            _set_class(module, cls)
            return derived
    raise refused


def _made_of(kind: Any, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
    """A class of the metaclass `kind`, made past what its authors do with each new class, such as
    to register it."""
    python = ("builtins", "abc", "typing")
    maker = next(
        base for base in kind.__mro__ if base.__module__ in python and "__new__" in vars(base)
    )
    made: type = maker.__new__(kind, name, bases, body)
    return made


def _announcing_for(cls: type) -> Iterator[type | None]:
    """What may keep the authors' hooks from a derived class: `Announcing`, or one that is laid out
    as a class where ABC or the like comes before Module; None where nothing else does."""
    yield Announcing
    first: Any = cls
    while first.__base__.__dictoffset__:
        first = first.__base__
    if first is not nn.Module:
        with contextlib.suppress(TypeError):
            quiet = {"__init_subclass__": classmethod(lambda cls: None)}
            yield types.new_class(
                "Announcing", (first.__base__, nn.Module), exec_body=lambda ns: ns.update(quiet)
            )
        yield None


def _set_class(module: nn.Module, cls: type) -> None:
    # Past nn.Module.__setattr__, which takes ten times as long.
    object.__setattr__(module, "__class__", cls)


def calls_no_activation(module: nn.Module) -> bool:
    """Whether a module is a layer of PyTorch's whose forward is one operation, no activation."""
    return type(module) in SILENT


#: Held while classes change: two swaps may share a module.
_changing = threading.RLock()


def announce(places: list[Place]) -> None:
    """Give each place's module a derived class and the place; undone if one cannot have it."""
    derived: dict[type, type] = {}
    done: list[Place] = []
    with _changing:
        try:
            for place in places:
                module, cls = place.module, type(place.module)
                if "_pyrevgrad_original" not in cls.__dict__:
                    try:
                        if cls not in derived:
                            derived[cls] = _derived(cls, module)
                        _set_class(module, derived[cls])
                    except Exception as error:
                        said = f"the swap cannot hold a {cls.__qualname__}, whose class takes"
                        raise ModelError(f"{said} no subclass made at run time: {error}") from error
                module.__dict__.setdefault(KEY, []).append(place)
                done.append(place)
        except BaseException:
            silence(done)
            raise


def silence(places: list[Place]) -> None:
    """Take the places away, and give each module that has none left its own class again."""
    with _changing:
        for place in places:
            module = place.module
            held = module.__dict__.get(KEY, [])
            module.__dict__[KEY] = held = [other for other in held if other is not place]
            if not held:
                del module.__dict__[KEY]
                # A lazy layer has taken another class by itself, and keeps it.
                original = type(module).__dict__.get("_pyrevgrad_original")
                if original is not None:
                    _set_class(module, original)
