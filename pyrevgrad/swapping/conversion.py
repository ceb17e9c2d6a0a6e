"""The permanent form for training: activation layers replaced by fused ones that keep one bit.

Imports the layers, plans and the table of PyTorch's layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from ..activations import ACTIVATIONS
from ..nn import Activation
from ..rules import EXACT, Rule, plan
from .layers import LAYERS, declared, layer_kind
from .leaving import as_found
from .refusals import check_model
from .selection import Selection
from .sites import Site, table

_HOOKS = [name for name in vars(nn.Module()) if name.endswith("_hooks")]
_CONTENTS = ("_parameters", "_buffers", "_modules")


@dataclass
class Conversion:
    """What `convert` did.

    Attributes
    ----------
    model : torch.nn.Module
        The model itself, changed in place.
    converted : list of str
        The layers that were replaced, by their first dotted name.
    skipped : dict
        The reason for each activation layer that was not.
    bytes_before, bytes_after : int
        What autograd keeps of one forward at the given inputs, each storage counted once, without
        parameters, buffers and inputs.
    """

    model: nn.Module
    converted: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0
    _undo: list[Callable[[], None]] = field(default_factory=list, repr=False)

    def revert(self) -> nn.Module:
        """Put the layers that were there back, the same objects; returns the model."""
        while self._undo:
            self._undo.pop()()
        return self.model

    def __str__(self) -> str:
        rows = [(name, "converted", "") for name in self.converted]
        rows += [(name, "skipped", reason) for name, reason in self.skipped.items()]
        if not rows:
            model = type(self.model).__name__
            return f"{model} has no activation layer (functions stay as they are)"
        saved = 100 * (1 - self.bytes_after / self.bytes_before) if self.bytes_before else 0.0
        last = (
            f"kept for backward: {self.bytes_before} bytes before, {self.bytes_after} after "
            f"({saved:.0f} % less)"
        )
        return "\n".join([*table(("layer", "", "reason"), rows), last])


class _Kept:
    """The storages that autograd keeps, and who keeps them: a layer, or the rest of the model."""

    def __init__(self, model: nn.Module, given: Any) -> None:
        named = [*model.named_parameters(), *model.named_buffers()]
        self._own: set[int] = set()
        for name, tensor in [*named, *(("an input", tensor) for tensor in given)]:
            reason = _unmeasurable(tensor)
            if reason is not None:
                raise ValueError(f"convert cannot measure what the model keeps: {name} {reason}")
            self._own.add(tensor.untyped_storage().data_ptr())
        self.sizes: dict[int, int] = {}
        self.keepers: dict[int, set[str]] = {}
        self.ran: dict[str, None] = {}
        self.current: list[str] = []

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in self._own:
            self.sizes[place] = storage.nbytes()
            keeper = self.current[-1] if self.current else ""
            self.keepers.setdefault(place, set()).add(keeper)
        return tensor

    @contextmanager
    def announced(self, layers: dict[str, nn.Module]) -> Iterator[None]:
        handles = []
        for name, layer in layers.items():
            handles.append(layer.register_forward_pre_hook(lambda *_, name=name: self._enter(name)))
            handles.append(layer.register_forward_hook(lambda *_: self._leave()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> None:
        self.ran[name] = None
        self.current.append(name)

    def _leave(self) -> None:
        self.current.pop()


def _unmeasurable(tensor: Tensor) -> str | None:
    """Why what is kept cannot be told from this tensor of the model's or of its input, if so."""
    if is_lazy(tensor):
        return "is not initialised: run the model once before"
    if isinstance(tensor, nn.Parameter) and tensor.is_inference():
        return "was made under torch.inference_mode and cannot be trained: make the model outside"
    try:
        storage = tensor.untyped_storage()
        if storage.device.type == "meta":
            return "is a meta or fake tensor: give the model and its input real ones"
        storage.data_ptr()
    except RuntimeError:
        kind = f"{type(tensor).__name__} of layout {tensor.layout}"
        return f"is a {kind}, which shows no storage; a model is converted before it is sharded"
    return None


def _recordable(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor


def _measured(model: nn.Module, layers: dict[str, nn.Module], args: Any, kwargs: Any) -> _Kept:
    with torch.inference_mode(False):
        # Autograd keeps no tensor that was made in inference mode.
        args, kwargs = tree_map_only(Tensor, _recordable, (args, kwargs))
    given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    kept = _Kept(model, given)
    with (
        as_found(model),
        torch.inference_mode(False),
        torch.enable_grad(),
        kept.announced(layers),
        torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
    ):
        # Held until the count is done, or a storage's place could be another's.
        output = model(*args, **kwargs)
    del output
    return kept


def convert(model: nn.Module, *inputs: Any, where: Any = None, **named: Any) -> Conversion:
    """Replace activation layers by fused ones of the same value and gradient, for good.

    A piecewise-linear activation (relu, leaky_relu, relu6, …) then keeps one bit per element where
    PyTorch keeps a tensor. One forward at `inputs` shows where that saves memory: a layer whose
    tensor another operation keeps anyway, as a convolution keeps its input, is skipped, and so is
    one that would keep as much as PyTorch's. Only layers are replaced; functions cannot be.
    Convert in the mode that you train in: in ``eval()`` a dropout keeps nothing, and the relu
    before it shares its tensor with the layer behind.

    Parameters
    ----------
    model : torch.nn.Module
        Changed in place; its ``state_dict`` stays the same.
    *inputs, **named
        What the model takes.
    where : optional
        Which layers may be replaced, as `swap`; of a mapping, None leaves a layer out.

    Returns
    -------
    Conversion
        What was replaced, what was skipped and why, and the bytes kept before and after.

    Raises
    ------
    TypeError, ValueError
        As `swap`, for the model and `where`; inputs that are not what the model takes; parameters
        that are sharded, lazy, on the meta device, or made under ``torch.inference_mode``.
    RuntimeError
        The model runs at these inputs, and not once more with its layers replaced; it is as before.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 2))
    >>> done = convert(model, torch.randn(8, 4))
    >>> done.converted, model[1]
    (['1'], Activation('relu'))
    """
    check_model(model, "convert")
    _check_inputs(model, inputs, named, where)
    aliases: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if layer_kind(module) is not None or isinstance(module, Activation):
            aliases.setdefault(module, []).append(name)
    selection = Selection(
        dict(model.named_modules(remove_duplicate=False)), EXACT, "all" if where is None else where
    )
    done = Conversion(model)
    made: dict[str, Activation] = {}
    for module, names in aliases.items():
        reason, fused = _fused(module, names, selection)
        if fused is None:
            done.skipped[names[0]] = reason
        else:
            made[names[0]] = fused
    layers = {names[0]: module for module, names in aliases.items()}
    before = _measured(model, layers, inputs, named)
    done.bytes_before = done.bytes_after = sum(before.sizes.values())
    try:
        _replace_gainful(
            done, made, before, aliases, lambda old: _measured(model, old, inputs, named)
        )
    except BaseException as error:
        done.revert()
        if not isinstance(error, Exception):
            raise
        raise RuntimeError(
            "convert runs the model again at the same inputs, and with layers replaced it raised "
            f"{type(error).__name__}: {error}; the model is as before"
        ) from error
    return done


def _check_inputs(model: nn.Module, inputs: Any, named: Any, where: Any) -> None:
    chosen = where.values() if isinstance(where, Mapping) else ()
    given = (*inputs, *named.values(), where, *(rule for rule in chosen if rule != EXACT))
    if any(isinstance(one, Rule) for one in given):
        raise TypeError(
            "convert keeps the model's gradients and takes no rule; swap(model, rule) changes them"
        )
    if model._forward_pre_hooks:
        return  # a hook may bring what is missing
    try:
        inspect.signature(model.forward).bind(*inputs, **named)
    except TypeError as error:
        raise TypeError(
            f"convert runs the model to see what it keeps: give it what "
            f"{type(model).__name__}.forward takes, as convert(model, x); {error}"
        ) from None


def _fused(module: nn.Module, names: list[str], selection: Selection) -> tuple[str, Any]:
    """The fused layer that could stand for `module`, or None and the reason."""
    if isinstance(module, Activation):
        return "it is pyrevgrad's already", None
    kind = layer_kind(module)
    assert kind is not None
    if "" in names:
        return "it is the model itself, which has no parent to put another into", None
    ours = type(module) in LAYERS and declared(module) is None and kind in ACTIVATIONS
    if not ours or isinstance(module, nn.RReLU) or "forward" in vars(module):
        return "no fused layer computes the same", None
    site = Site(names[0], kind, module, tuple(names), rectifier=ACTIVATIONS[kind].rectifier)
    selection.decide(site, None)
    if site.rule is None:
        return site.reason, None
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "it has hooks, which the new layer would lose", None
    if any(getattr(module, contents) for contents in _CONTENTS):
        return "it has tensors or layers of its own, which the new layer would lose", None
    params = {p.name: getattr(module, p.name) for p in ACTIVATIONS[kind].parameters
              if hasattr(module, p.name)}  # fmt: skip
    try:
        keeps = plan(kind, EXACT, **params).keeps
    except (TypeError, ValueError) as error:
        return f"no fused layer has its parameter: {error}", None
    if keeps != "mask":
        return "fused, it keeps as much as PyTorch's", None
    fused = Activation(kind, inplace=getattr(module, "inplace", False), **params)
    return "", fused.train(module.training)


def _no_gain(name: str, candidates: set[str], kept: _Kept) -> str | None:
    """Why a mask in place of what the layer `name` keeps would free nothing, or None."""
    own = [place for place, keepers in kept.keepers.items() if name in keepers]
    if not own:
        return "it did not run, or kept nothing, at these inputs"
    if any(kept.keepers[place] <= candidates for place in own):
        return None
    return "what it keeps is kept by another operation anyway"


def _replace_gainful(
    done: Conversion,
    made: dict[str, Activation],
    before: _Kept,
    aliases: dict[nn.Module, list[str]],
    measured: Callable[[dict[str, nn.Module]], _Kept],
) -> None:
    """Put those of `made` that save memory into the model, and measure what it keeps then."""
    layers = {names[0]: module for module, names in aliases.items()}
    while True:
        for name in list(made):
            gainless = _no_gain(name, set(made), before)
            if gainless is not None:
                done.skipped[name] = gainless
                del made[name]
        if not made:
            return
        for name, fused in made.items():
            _replace(done, layers[name], fused, aliases[layers[name]])
        after = measured({name: layers[name] for name in made})
        if not after.ran:
            break
        done.revert()
        for name in after.ran:
            done.skipped[name] = "the model also calls it by a reference that is no module's child"
            del made[name]
    done.converted += made
    done.bytes_after = sum(after.sizes.values())


def _replace(done: Conversion, module: nn.Module, fused: nn.Module, names: list[str]) -> None:
    for name in names:
        parent_name, _, child = name.rpartition(".")
        parent = done.model.get_submodule(parent_name)
        parent._modules[child] = fused

        def undo(parent: nn.Module = parent, child: str = child) -> None:
            parent._modules[child] = module

        done._undo.append(undo)
