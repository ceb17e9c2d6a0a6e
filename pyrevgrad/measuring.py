"""A copy of a model to measure on: autograd's gradient over that by differences of the forward.

Imports the buffer of λ alone, to set it on the copy.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .scaled import Scaled

#: λ that layers of ours are given on the copy: 0 could not be seen, and 1 has no sign of its own.
PROBE = 0.5
#: Relative step of the differences.
STEP = {torch.float64: 1e-5, torch.float32: 1e-3}
#: The name of the model's floating-point inputs among what is measured.
INPUT = "input"


class Probe:
    """A copy of the model that can be run again and again with one random state."""

    def __init__(self, model: nn.Module, inputs: Any, features: Any, dtype: torch.dtype) -> None:
        self.dtype, self.step = dtype, STEP[dtype]
        self.features = _name_of(model, features)
        try:
            self.model = copy.deepcopy(model).to(dtype)
        except Exception as error:
            raise TypeError(f"the model cannot be copied to be measured: {error}") from error
        for parameter in self.model.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        self.args, self.kwargs = self._prepared(inputs)
        self.inputs = _floats([self.args, self.kwargs])
        #: What leads to the output of the last `factors` and has no effect on it.
        self.without_effect: list[str] = []
        self.seed = int(torch.randint(2**31, (), generator=torch.Generator().manual_seed(0)))

    def _prepared(self, inputs: Any) -> tuple[list[Any], dict[str, Any]]:
        def taken(it: Tensor) -> Tensor:
            # Labels too: autograd keeps no tensor that inference mode made.
            if not _is_float(it):
                return it.clone()
            return it.detach().to(self.dtype, copy=True).requires_grad_()

        if isinstance(inputs, Mapping):
            return [], {name: _each_tensor(it, taken) for name, it in inputs.items()}
        given = inputs if isinstance(inputs, (tuple, list)) else [inputs]
        return [_each_tensor(it, taken) for it in given], {}

    def scales(self) -> dict[str, float]:
        """λ of every live layer of ours, by its name."""
        named = self.model.named_modules()
        layers = {name or "the layer itself": it for name, it in named if isinstance(it, Scaled)}
        return {name: it.scale.item() for name, it in layers.items() if it.scale is not None}

    def set_scale(self) -> float:
        """Give every live layer of ours the same λ, and say which; 1 where there is none."""
        layers = [m for m in self.model.modules() if isinstance(m, Scaled)]
        live = [layer for layer in layers if layer.scale is not None]
        for layer in live:
            if getattr(layer, "auto_step", False):
                layer.auto_step = False
            layer.set_scale(PROBE)
        return PROBE if live else 1.0

    @torch.no_grad()
    def stir(self) -> None:
        """Move the copy's parameters by many steps, but little beside what they are."""
        generator = torch.Generator().manual_seed(self.seed)
        for parameter in self.model.parameters():
            if parameter.is_floating_point() and parameter.numel():
                size = parameter.square().mean().sqrt().item() or 1.0
                noise = torch.randn(parameter.shape, generator=generator, dtype=self.dtype)
                parameter.add_(noise.to(parameter), alpha=30 * self.step * size)

    def is_feature(self, name: str) -> bool | None:
        """Whether a module of this name lies in the features; None where nobody named them."""
        inside = self.features
        if inside is None:
            return None
        return inside == "" or name == inside or name.startswith(inside + ".")

    def run(self) -> Any:
        """What the copy returns, from the same random state and the same buffers each time."""
        # Cloned, since the model may overwrite what it is given.
        args, kwargs = _each_tensor([self.args, self.kwargs], torch.clone)
        devices = sorted({p.device.index or 0 for p in self.model.parameters() if p.is_cuda})
        with torch.random.fork_rng(devices=devices), self._forgetting():
            torch.manual_seed(self.seed)
            return self.model(*args, **kwargs)

    @contextmanager
    def _forgetting(self) -> Iterator[None]:
        """Copies in the buffers' places, as a spectral norm goes on from what it left in its own.

        In their places, and not written back: a gradient may still need what a forward wrote.
        """
        own = [
            (module._buffers, name, buffer)
            for module in self.model.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        copies = {id(buffer): buffer.clone() for *_, buffer in own}
        try:
            for buffers, name, buffer in own:
                buffers[name] = copies[id(buffer)]
            yield
        finally:
            for buffers, name, buffer in own:
                buffers[name] = buffer

    def chosen(self, output: Any, label: Any) -> tuple[Callable[[Any], Tensor], Any]:
        """How to take the domain output, and the label output if it is known, from a result."""
        try:
            with torch.no_grad():
                result = self.run()
        except RuntimeError as error:
            if self.dtype == torch.float32:
                raise
            raise RuntimeError(
                f"the model does not run in float64 ({error}): if it runs in float32 alone, pass "
                "dtype=torch.float32"
            ) from error
        if output is None:
            if isinstance(result, Tensor):
                return _taker(lambda it: it, result), None
            if not hasattr(result, "domain_loss"):
                raise ValueError(
                    f"the model returns a {type(result).__name__}: say by output= (an index, a "
                    "key, an attribute or a function) which part comes from the domain head"
                )
            output, label = "domain_loss", "label_loss" if label is None else label
        if label is None and isinstance(result, (tuple, list)) and output in (0, 1):
            label = 1 - output if len(result) == 2 and _is_float(result[1 - output]) else None
        domain = _taker(_picker(output), result)
        return domain, None if label is None else _taker(_picker(label), result)

    def factors(self, take: Callable[[Any], Tensor]) -> dict[str, float]:
        """For each group that the output depends on: autograd's gradient over the plain one."""
        found = {INPUT: self.inputs}
        for name, module in self.model.named_modules():
            own = [p for p in module._parameters.values() if p is not None and _is_float(p)]
            found.setdefault(_plain_name(name) or "(itself)", []).extend(own)
        found = {name: group for name, group in found.items() if group}
        tensors = [tensor for group in found.values() for tensor in group]
        for tensor in tensors:
            tensor.grad = None
        # Of DistributedDataParallel the mean over the processes would be another function's.
        alone = getattr(self.model, "no_sync", nullcontext)
        with torch.enable_grad(), alone():
            value = take(self.run())
            if value.requires_grad:
                # A forward that is computed again begins with the buffers that it began with; by
                # reentrant checkpointing, it is for backward() alone.
                with self._forgetting():
                    value.backward()
        factors = {}
        self.without_effect = []
        for name, group in found.items():
            gradients_here = [tensor.grad for tensor in group]
            factor = self._factor(take, group, gradients_here)
            if factor is not None:
                factors[name] = factor
            elif name != INPUT and any(it is not None for it in gradients_here):
                self.without_effect.append(name)
        if not factors:
            raise ValueError("the output depends on no parameter and on no floating-point input")
        return factors

    def _factor(
        self, take: Callable[[Any], Tensor], group: list[Tensor], gradients: list[Tensor | None]
    ) -> float | None:
        """Along half the gradient and half a random direction; None where nothing depends on it."""
        slopes = [
            torch.zeros_like(tensor) if gradient is None else gradient
            for tensor, gradient in zip(group, gradients, strict=True)
        ]
        generator = torch.Generator().manual_seed(self.seed)
        noise = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t) for t in group]
        directions = [a + b for a, b in zip(_unit(slopes), _unit(noise), strict=True)]
        ours = sum((s * d).sum().item() for s, d in zip(slopes, directions, strict=True))
        h = self.step * (1.0 + _norm(group) / math.sqrt(sum(tensor.numel() for tensor in group)))
        for _ in range(3):
            behind, here, ahead = (self._moved(take, group, directions, k * h) for k in (-1, 0, 1))
            floor = 64 * torch.finfo(self.dtype).eps * (abs(ahead) + abs(behind)) / h
            uneven = abs(ahead - 2 * here + behind) / h
            # One side much steeper than the other is a kink, as of a relu: look closer.
            if uneven <= 0.01 * abs(ahead - behind) / h + floor:
                break
            h /= 8
        plain = (ahead - behind) / (2 * h)
        if abs(plain) <= floor:
            return None if abs(ours) <= floor else math.inf
        return ours / plain

    @torch.no_grad()
    def _moved(
        self, take: Callable[[Any], Tensor], group: list[Tensor], directions: list[Tensor], h: float
    ) -> float:
        kept = [tensor.clone() for tensor in group]
        try:
            for tensor, direction in zip(group, directions, strict=True):
                tensor.add_(direction, alpha=h)
            return take(self.run()).item()
        finally:
            for tensor, before in zip(group, kept, strict=True):
                tensor.copy_(before)


def _each_tensor(it: Any, change: Callable[[Tensor], Any]) -> Any:
    """`it` with every tensor changed, in lists, tuples and dicts of any depth."""
    if isinstance(it, Tensor):
        return change(it)
    if type(it) is dict:
        return {name: _each_tensor(part, change) for name, part in it.items()}
    if type(it) in (list, tuple):
        return type(it)(_each_tensor(part, change) for part in it)
    if isinstance(it, tuple) and hasattr(it, "_make"):
        return it._make(_each_tensor(part, change) for part in it)
    return it


def _floats(it: Any) -> list[Tensor]:
    """The floating-point tensors that `_each_tensor` would change."""
    found: list[Tensor] = []
    _each_tensor(it, found.append)
    return [tensor for tensor in found if _is_float(tensor)]


def _plain_name(name: str) -> str:
    """The name of a module without what torch.compile puts around it."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def _is_float(it: Any) -> bool:
    return isinstance(it, Tensor) and it.is_floating_point()


def _norm(tensors: list[Tensor]) -> float:
    return math.sqrt(sum(tensor.detach().double().square().sum().item() for tensor in tensors))


def _unit(tensors: list[Tensor]) -> list[Tensor]:
    norm = _norm(tensors)
    return [tensor.detach() / norm if norm else torch.zeros_like(tensor) for tensor in tensors]


def _name_of(model: nn.Module, features: Any) -> str | None:
    if features is None:
        return "features" if isinstance(getattr(model, "features", None), nn.Module) else None
    for name, module in model.named_modules():
        plain = _plain_name(name)
        if features is module or (isinstance(features, str) and features in (name, plain)):
            return plain
    raise ValueError(f"features: the model has no submodule {features!r}")


def _picker(which: Any) -> Callable[[Any], Any]:
    if callable(which):
        return which

    def pick(result: Any) -> Any:
        if isinstance(which, str) and not isinstance(result, Mapping):
            return getattr(result, which)
        return result[which]

    return pick


def _taker(pick: Callable[[Any], Any], result: Any) -> Callable[[Any], Tensor]:
    """A function from what the model returns to one number: a fixed projection of the output."""
    try:
        first = pick(result)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the chosen output is not there: {error!r}") from error
    if not _is_float(first):
        raise ValueError(f"the chosen output is no floating-point tensor: {type(first).__name__}")
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(first.shape, generator=generator, dtype=first.dtype).to(first.device)
    if first.dim() == 0:
        weights = torch.ones_like(first)
    return lambda result: (pick(result) * weights).sum()
