"""λ and the learning rate over training steps: what a layer or a loop reads and a checkpoint keeps.

Imports PyTorch's scheduler of learning rates and checks of single values.
"""

from __future__ import annotations

import functools
import math
import operator
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from .checks import check_finite, is_whole

__all__ = ["ConstantSchedule", "GaninLearningRate", "GaninSchedule", "LinearSchedule", "Schedule"]


def _check_steps(max_steps: object) -> int:
    if not is_whole(max_steps):
        raise TypeError(f"max_steps must be an int, not {type(max_steps).__name__}")
    steps = operator.index(max_steps)
    if steps < 1:
        raise ValueError(f"max_steps must be >= 1, got {steps}")
    return steps


def _check_ends(low: object, high: object) -> tuple[float, float]:
    ends = check_finite("low", low), check_finite("high", high)
    check_finite("high - low", ends[1] - ends[0])
    return ends


_Function = TypeVar("_Function", bound=Callable[..., None])


_IN_ONE_GRAPH = (
    "pyrevgrad: a number for λ, or a schedule's step, breaks the graph; with fullgraph=True set "
    "layer.scale to a 0-dim tensor"
)


def uncompiled(function: _Function) -> _Function:
    """`function`, which torch.compile leaves to Python: it would trace a graph for each number.

    The compiler is imported by nobody but itself.
    """

    @functools.wraps(function)
    def called(*arguments: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            torch._dynamo.graph_break(msg=_IN_ONE_GRAPH)
            torch.compiler.disable(function)(*arguments)
        else:
            function(*arguments)

    return called  # type: ignore[return-value]


class Schedule:
    """A scale that depends on the number of steps taken. Steps are explicit: call `step()`.

    Parameters
    ----------
    max_steps : int
        Where progress reaches 1; later steps stay there.

    Attributes
    ----------
    value : float
        The scale now.
    steps : int
        How many steps were taken, >= 0. Set, it tells the layers that follow, as `step()` does.
    """

    def __init__(self, max_steps: int) -> None:
        self.max_steps = _check_steps(max_steps)
        self._steps = 0
        self._followers: list[weakref.ref[Any]] = []

    @property
    def steps(self) -> int:
        """How many steps were taken."""
        return self._steps

    @steps.setter
    def steps(self, steps: int) -> None:
        if not is_whole(steps) or operator.index(steps) < 0:
            raise ValueError(f"steps must be an int >= 0, got {steps!r}")
        self._go_to(operator.index(steps))

    @property
    def progress(self) -> float:
        """The share of `max_steps` that is done, from 0 to 1."""
        return min(self.steps / self.max_steps, 1.0)

    @property
    def value(self) -> float:
        """The scale at the current progress."""
        return self.at(self.progress)

    def at(self, progress: float) -> float:
        """The scale at `progress` in [0, 1]."""
        raise NotImplementedError

    def step(self) -> float:
        """Take one step, tell the layers that follow, and return the new value.

        Raises
        ------
        ValueError
            The value is NaN and a layer follows; no step is taken.
        """
        self._go_to(self.steps + 1)
        return self.value

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint must keep: the steps taken."""
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where `state` stopped, and tell the layers that follow.

        Raises
        ------
        ValueError
            `state` is not what `state_dict` returns.
        """
        steps = state.get("steps") if isinstance(state, dict) else None
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 0 or len(state) != 1:
            raise ValueError(f"a schedule's state is {{'steps': n}} with n >= 0, got {state!r}")
        self._go_to(steps)

    def follow(self, layer: Any) -> None:
        """Call ``layer.set_scale(value)`` after each step while ``layer.schedule`` is this one."""
        if all(reference() is not layer for reference in self._followers):
            self._followers.append(weakref.ref(layer))

    @uncompiled
    def _go_to(self, steps: int) -> None:
        """Be at `steps` and tell the layers; stay where that has no value, or none for them."""
        before, self._steps = self._steps, steps
        try:
            self._tell(self.value)
        except BaseException:
            self._steps = before
            raise

    def _tell(self, value: float) -> None:
        layers = [(reference, reference()) for reference in self._followers]
        # A layer that has died, or that follows another schedule by now, is left alone.
        kept = [pair for pair in layers if getattr(pair[1], "schedule", None) is self]
        self._followers = [reference for reference, _ in kept]
        for _, layer in kept:
            assert layer is not None
            layer.set_scale(value)

    def __getstate__(self) -> dict[str, Any]:
        # A copied or unpickled layer follows its own copy of the schedule, and says so itself.
        return {**self.__dict__, "_followers": []}


class GaninSchedule(Schedule):
    """``low + (high − low) · (2 / (1 + exp(−gamma · p)) − 1)`` at progress p = steps / max_steps.

    The λ of Ganin & Lempitsky (2015), section 4, and Ganin et al. (2016), section 5.2.

    Parameters
    ----------
    max_steps : int
    gamma : float
        Steepness, > 0; the papers' 10 if not given.
    low, high : float
        The values at progress 0 and (almost: .9999 of the way with gamma 10) 1.

    Raises
    ------
    TypeError, ValueError
        `max_steps` is no int >= 1, or a number is NaN or out of bounds, or high − low infinite.

    Examples
    --------
    >>> schedule = GaninSchedule(max_steps=10)
    >>> schedule.value
    0.0
    >>> round(schedule.step(), 4)
    0.4621
    """

    def __init__(
        self, max_steps: int, gamma: float = 10.0, low: float = 0.0, high: float = 1.0
    ) -> None:
        super().__init__(max_steps)
        self.gamma = check_finite("gamma", gamma, low=0.0)
        self.low, self.high = _check_ends(low, high)

    def at(self, progress: float) -> float:
        # e^700 is finite, and so far off already that the value is `low`'s mirror image.
        rise = 2.0 / (1.0 + math.exp(min(-self.gamma * progress, 700.0))) - 1.0
        return self.low + (self.high - self.low) * rise

    def __repr__(self) -> str:
        return (
            f"GaninSchedule(max_steps={self.max_steps}, gamma={self.gamma:g}, low={self.low:g}, "
            f"high={self.high:g})"
        )


class LinearSchedule(Schedule):
    """From `low` to `high` in equal steps.

    Examples
    --------
    >>> LinearSchedule(max_steps=4).step()
    0.25
    """

    def __init__(self, max_steps: int, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__(max_steps)
        self.low, self.high = _check_ends(low, high)

    def at(self, progress: float) -> float:
        return self.low + (self.high - self.low) * progress

    def __repr__(self) -> str:
        return f"LinearSchedule(max_steps={self.max_steps}, low={self.low:g}, high={self.high:g})"


class ConstantSchedule(Schedule):
    """The same `value` at every step: for code that takes a schedule, and for comparisons.

    Examples
    --------
    >>> ConstantSchedule(0.5).step()
    0.5
    """

    def __init__(self, value: float = 1.0) -> None:
        super().__init__(max_steps=1)
        self._constant = check_finite("value", value)

    def at(self, progress: float) -> float:
        return self._constant

    def __repr__(self) -> str:
        return f"ConstantSchedule({self._constant:g})"


class GaninLearningRate(LRScheduler):
    """``μ = μ0 / (1 + alpha · p)^beta`` at progress p = steps / max_steps, then constant.

    The learning rate of Ganin & Lempitsky (2015), section 4, and Ganin et al. (2016), section
    5.2.2, there with μ0 = .01 and momentum .9. μ0 is each parameter group's own learning rate.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
    max_steps : int
        Calls of `step()` until p reaches 1; later ones change nothing.
    alpha, beta : float
        Both > 0; the papers' 10 and .75 if not given.
    last_epoch : int
        The steps taken before, as in every scheduler of PyTorch; -1 at a start.

    Raises
    ------
    TypeError, ValueError
        `max_steps` is no int >= 1, or a number is NaN or out of bounds.

    Examples
    --------
    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.01, momentum=0.9)
    >>> rate = GaninLearningRate(optimizer, max_steps=2)
    >>> optimizer.step(); rate.step()
    >>> round(rate.get_last_lr()[0] / 0.01, 4)
    0.2608
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int,
        alpha: float = 10.0,
        beta: float = 0.75,
        last_epoch: int = -1,
    ) -> None:
        self.max_steps = _check_steps(max_steps)
        self.alpha = check_finite("alpha", alpha, low=0.0)
        self.beta = check_finite("beta", beta, low=0.0)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[Any]:
        """The learning rate of each parameter group at the current progress."""
        progress = min(self.last_epoch / self.max_steps, 1.0)
        share = (1.0 + self.alpha * progress) ** -self.beta
        return [rate * share for rate in self.base_lrs]

    def __repr__(self) -> str:
        return (
            f"GaninLearningRate(max_steps={self.max_steps}, alpha={self.alpha:g}, "
            f"beta={self.beta:g})"
        )
