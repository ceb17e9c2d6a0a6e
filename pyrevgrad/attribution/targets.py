"""What is explained: inputs as leaves of their own, and the outputs that a target selects.

Captum's conventions of targets. Imports torch, numpy and checks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_Numpy = np.ndarray[Any, Any] | np.integer[Any]
Target = int | tuple[int, ...] | Tensor | list[int] | list[tuple[int, ...]] | _Numpy | None
Inputs = Tensor | tuple[Tensor, ...]
Neurons = int | tuple[int | slice, ...] | Callable[[Tensor], Tensor]


def as_tuple(inputs: Any) -> tuple[Tensor, ...]:
    """The inputs as a tuple of real floating tensors; TypeError otherwise."""
    given = inputs if isinstance(inputs, tuple) else (inputs,)
    for part in given:
        if not isinstance(part, Tensor):
            raise TypeError(
                f"inputs must be a tensor or a tuple of tensors, not {type(part).__name__}"
            )
        if not part.is_floating_point():
            raise TypeError(
                f"inputs must be floating point to have a gradient, got {part.dtype}; pass other "
                "arguments of the model as additional_forward_args"
            )
    return given


def extra_arguments(additional: Any) -> tuple[Any, ...]:
    """Captum's additional_forward_args as a tuple."""
    if additional is None:
        return ()
    return additional if isinstance(additional, tuple) else (additional,)


def leaves(inputs: tuple[Tensor, ...], create_graph: bool) -> tuple[Tensor, ...]:
    """What the gradient is taken for: the inputs' values, so that the inputs stay as they are.

    With `create_graph` an input that requires grad stands for itself, for derivatives of the map.
    """
    return tuple(
        x if create_graph and x.requires_grad else values(x).requires_grad_() for x in inputs
    )


def values(x: Tensor) -> Tensor:
    """The values of `x`, for autograd to record: a copy if it was made in inference mode."""
    return x.clone() if x.is_inference() else x.detach()


def rows(x: Tensor) -> Tensor:
    """`x` with one row for each sample, of one number where (n,) is all its shape."""
    return x.flatten(1) if x.dim() > 1 else x.reshape(-1, 1)


@contextmanager
def recording() -> Any:
    """A block in which autograd records, also inside ``no_grad`` and ``inference_mode``."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def selected(output: Any, target: Target) -> Tensor:
    """One number for each sample: the outputs that `target` selects.

    Parameters
    ----------
    output : Tensor
        (n, …).
    target : None, int, tuple of int, Tensor, list of int or list of tuple
        None where each sample has one output. An int or a tuple indexes every sample's output
        alike; a tensor or a list holds one int, or one tuple, for each sample. NumPy's integers
        and arrays are ints and tensors.

    Raises
    ------
    TypeError, ValueError
        Another type; a number or shape of targets that does not fit; an index out of range.
    """
    if not isinstance(output, Tensor):
        raise TypeError(
            f"the model must return one tensor, not {type(output).__name__}: wrap it in a module "
            "whose forward returns the one to explain, as model(x).logits"
        )
    if output.dim() == 0:
        output = output.reshape(1)
    if isinstance(target, np.ndarray | np.generic):
        # A copy, since an array that is read backwards makes no tensor.
        target = torch.as_tensor(target.copy())
    if isinstance(target, Tensor):
        target = _from_tensor(target, len(output))
    if target is None:
        if output.numel() != len(output):
            raise ValueError(
                f"target is needed: each sample has {output[0].numel()} outputs, of shape "
                f"{tuple(output.shape[1:])}"
            )
        return output.reshape(len(output))
    if isinstance(target, bool) or not isinstance(target, int | tuple | list):
        raise TypeError(
            "target must be None, an int, a tuple of ints, a tensor, or a list of ints or tuples, "
            f"not {type(target).__name__}"
        )
    if not isinstance(target, list):
        return _at(output, [target] * len(output))
    if len(target) != len(output):
        raise ValueError(f"there are {len(target)} targets for {len(output)} samples")
    return _at(output, target)


def _from_tensor(target: Tensor, samples: int) -> int | list[int]:
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"a tensor target must hold integers, got {target.dtype}")
    if target.numel() == 1:
        return int(target.item())
    if target.dim() != 1 or len(target) != samples:
        raise ValueError(
            f"a tensor target must have one element or {samples}, one for each sample, got shape "
            f"{tuple(target.shape)}"
        )
    return [int(index) for index in target.tolist()]


def whole(what: str, index: Any) -> int:
    """`index` as an int; TypeError where it is none, with `what` it is of."""
    try:
        if not isinstance(index, bool):
            return operator.index(index)
    except TypeError:
        pass
    raise TypeError(f"{what} must be made of ints, got {index!r}")


def _at(output: Tensor, places: list[Any]) -> Tensor:
    shape = tuple(output.shape[1:])
    given = [place if isinstance(place, tuple) else (place,) for place in places]
    indices = [tuple(whole("target", part) for part in row) for row in given]
    for row in indices:
        shown = row[0] if len(row) == 1 else row
        if len(row) != len(shape):
            cure = "" if shape else "; where inputs is one sample, give inputs.unsqueeze(0)"
            raise ValueError(
                f"target {shown} has {len(row)} indices, and each "
                f"sample's output has the shape {shape}{cure}"
            )
        for index, size in zip(row, shape, strict=True):
            if not -size <= index < size:
                raise ValueError(f"target {shown} is out of range for outputs of shape {shape}")
    sample = torch.arange(len(output), device=output.device)
    columns = [torch.tensor(column, device=output.device) for column in zip(*indices, strict=True)]
    place = (sample, *columns)
    return output[place]


def neurons(value: Tensor, selector: Neurons) -> Tensor:
    """One number for each sample: what `selector` takes of a layer's output, (n, …).

    Parameters
    ----------
    value : Tensor
    selector : int, tuple of int and slice, or callable
        An index without the samples; with slices, the sum of all that they take. A callable makes
        (n,) of `value`.

    Raises
    ------
    TypeError, ValueError
        Another type, an index that does not fit, or a callable that makes something else.
    """
    if callable(selector):
        found = selector(value)
        if not isinstance(found, Tensor) or found.shape != value.shape[:1]:
            made = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"a neuron_selector must make one number for each of {len(value)} samples, "
                f"shape ({len(value)},); it made {made}"
            )
        return found
    if not (isinstance(selector, tuple) and any(isinstance(part, slice) for part in selector)):
        return selected(value, selector)  # type: ignore[arg-type]
    shape = tuple(value.shape[1:])
    if len(selector) > len(shape):
        raise ValueError(
            f"neuron_selector has {len(selector)} indices, and each sample's output has the shape "
            f"{shape}"
        )
    place = (slice(None), *selector)
    try:
        taken = value[place]
        return taken.flatten(1).sum(1)
    except (IndexError, TypeError) as error:
        raise ValueError(f"neuron_selector {selector} does not index {shape}: {error}") from None


def find_layer(model: nn.Module, layer: nn.Module | str) -> nn.Module:
    """A layer of the model, by itself or by its dotted name; ValueError if it has no such one."""
    from ..checks import closest

    modules = dict(model.named_modules())
    if isinstance(layer, str):
        if layer not in modules:
            names = [name for name in modules if name]
            raise ValueError(f"the model has no module named {layer!r}: {closest(layer, names)}")
        return modules[layer]
    if not any(module is layer for module in modules.values()):
        raise ValueError(f"the layer {type(layer).__name__} is not a module of the model")
    return layer


@contextmanager
def kept_output(layer: nn.Module | None, kept: list[Tensor], of_input: bool = False) -> Any:
    """A block in which each run of `layer` leaves its output (or input) in `kept`.

    The model goes on with a copy, since its next layer may work in place.
    """

    def keep(value: Any) -> Any:
        if isinstance(value, tuple) and not value:
            raise TypeError(
                "the layer is called with keyword arguments alone, so its input is none"
            )
        first = value[0] if isinstance(value, tuple) else value
        if not isinstance(first, Tensor):
            raise TypeError("the layer must give one tensor, or a tuple that begins with one")
        kept.append(first)
        copied = first.clone()
        if not isinstance(value, tuple):
            return copied
        # What reads its parts by name asks for a named tuple, or for PyTorch's own kind of them.
        made = getattr(type(value), "_make", type(value))
        return made((copied, *value[1:]))

    if layer is None:
        yield
        return
    if of_input:
        handle = layer.register_forward_pre_hook(lambda _, args: keep(args))
    else:
        handle = layer.register_forward_hook(lambda _, args, output: keep(output))
    try:
        yield
    finally:
        handle.remove()


def last_of(kept: list[Tensor]) -> Tensor:
    """The value of the layer's last run; ValueError if it did not run."""
    if not kept:
        raise ValueError("the layer did not run in the model's forward")
    return kept[-1]


def gradient(
    forward: Callable[..., Any],
    inputs: tuple[Tensor, ...],
    extra: tuple[Any, ...],
    select: Callable[[Any], Tensor],
    create_graph: bool,
) -> tuple[Tensor, ...]:
    """The gradient of the sum of what `select` takes of the outputs, for each input."""
    with recording():
        at = leaves(inputs, create_graph)
        # A clone, since the model's first layer may work in place.
        chosen = select(forward(*(x.clone() for x in at), *extra))
        if chosen.grad_fn is None:
            raise ValueError("the outputs do not depend on the inputs by any gradient")
        found = torch.autograd.grad(chosen.sum(), at, create_graph=create_graph, allow_unused=True)
    if all(part is None for part in found):
        raise ValueError("the target does not depend on any of the inputs")
    return tuple(
        torch.zeros_like(x) if part is None else part for x, part in zip(at, found, strict=True)
    )
