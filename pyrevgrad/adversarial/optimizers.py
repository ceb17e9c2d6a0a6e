"""What `fit` asks of an optimizer and a scheduler, before a step. Imports the schedules of λ."""

from __future__ import annotations

import inspect
import warnings
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ..schedules import Schedule


def check_steps(optimizer: Any, scheduler: Any) -> None:
    """TypeError where there is no step, or one that takes what `fit` does not give."""
    if isinstance(scheduler, Schedule):
        raise TypeError(
            f"scheduler is of the learning rate, and {type(scheduler).__name__} is a schedule of "
            "λ: give it to the network, as scale="
        )
    _check_made("optimizer", optimizer, "step", "zero_grad")
    if scheduler is not None:
        _check_made("scheduler", scheduler, "step")
    needed = _needed(optimizer)
    if needed:
        raise TypeError(
            f"fit calls the optimizer's step() without arguments, and that of "
            f"{type(optimizer).__name__} needs its {needed}: train in a loop of your own"
        )
    needed = _needed(scheduler)
    if needed:
        raise TypeError(
            f"fit steps the scheduler after every training step, and "
            f"{type(scheduler).__name__}.step() needs its {needed}: leave it out and step it in "
            "after_epoch, which gets the record of the epoch"
        )


def _check_made(name: str, given: Any, *methods: str) -> None:
    if isinstance(given, type):
        made = "model.parameters()" if name == "optimizer" else "the optimizer"
        raise TypeError(
            f"{name} is the class {given.__name__}: make one, as {given.__name__}({made}, …)"
        )
    missing = [method for method in methods if not callable(getattr(given, method, None))]
    if missing:
        kind = "an optimizer" if name == "optimizer" else "a scheduler"
        raise TypeError(f"{name} must be {kind} of torch.optim: {given!r} has no {missing[0]}()")


def _needed(stepped: Any) -> str | None:
    """The first argument of its step that has no default, if that can be known."""
    try:
        # Of the class: a scheduler puts a wrapper of its own on an optimizer.
        _, *parameters = inspect.signature(type(stepped).step).parameters.values()
    except (AttributeError, TypeError, ValueError):
        return None
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    bare = [p.name for p in parameters if p.default is p.empty and p.kind not in several]
    return bare[0] if bare else None


def check_parameters(network: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """ValueError where nothing of the network would train, or no rate would follow `scheduler`.

    A warning where a part would not: it may be meant. What is no optimizer of torch may keep its
    parameters elsewhere, and a wrapper shares its groups.

    Raises
    ------
    ValueError
        The optimizer is of other parameters, or the scheduler of another optimizer.
    """
    if not isinstance(optimizer, Optimizer):
        return
    own = getattr(scheduler, "optimizer", optimizer)
    if own is not optimizer and isinstance(own, Optimizer):
        groups = {id(group) for group in optimizer.param_groups}
        if not any(id(group) in groups for group in own.param_groups):
            raise ValueError(
                f"the scheduler is of another optimizer, whose rates it would change: make the "
                f"{type(scheduler).__name__} with the optimizer that is given"
            )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trainable = {name: p for name, p in network.named_parameters() if p.requires_grad}
    left_out = [name for name, p in trainable.items() if id(p) not in held]
    if not left_out:
        return
    if len(left_out) == len(trainable):
        raise ValueError(
            "the optimizer holds none of the model's trainable parameters, so that nothing would "
            "train: make it with model.parameters() of this model, not of a copy"
        )
    warnings.warn(
        f"the optimizer does not hold {_parts(left_out, list(trainable))}, which will not train; "
        "requires_grad_(False) says that this is meant",
        UserWarning,
        stacklevel=4,
    )


def _parts(left_out: list[str], names: list[str]) -> str:
    """Whole parts by their names, else some of their parameters."""
    parts = dict.fromkeys(name.split(".")[0] for name in left_out)
    listed: list[str] = []
    for part in parts:
        inside = [name for name in names if name.split(".")[0] == part]
        missing = [name for name in left_out if name in inside]
        listed += [part] if missing == inside else missing
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return ", ".join(listed[:4]) + more
