"""The layer that reverses a gradient. Imports autograd, schedules and the buffer of λ."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import autograd, backends
from .observing import observed
from .rules import reverse
from .scaled import Scaled
from .schedules import Schedule


class GradientReversal(Scaled):
    """The identity, a view of its input, whose backward is ``gx = −scale · g``.

    Ganin & Lempitsky (2015), section 3.2: between features and a domain head it makes the features
    climb the loss that the head descends. Training or eval mode makes no difference.

    Parameters
    ----------
    scale : float, 0-dim Tensor or Schedule
        λ >= 0 reverses. Kept as the buffer `scale`, a 0-dim float64 tensor that is saved and loaded
        with the model and that no dtype cast touches; a tensor's value is copied. Set it with
        ``layer.scale = 0.3`` or ``layer.set_scale(...)``. A schedule sets it at each ``step()``,
        whatever was set by hand in between, until ``layer.schedule = None``.
    record_norm : bool
        Whether each backward leaves the 2-norm of the reversed gradient, ``‖−scale · g‖``, in
        `gradient_norm`, at the price of one reduction. Of several forwards in one step, the
        norm is that of the one whose backward ran last; inside torch.func, in forward mode and
        of a batch of gradients (``is_grads_batched``) none is left.

    Attributes
    ----------
    gradient_norm : Tensor or None
        The norm, a 0-dim float64 tensor on the device of the gradient, NaN before the first
        backward and overwritten by each; None unless `record_norm`. Not saved.

    Raises
    ------
    TypeError, ValueError
        A scale that is none of these.

    Notes
    -----
    Nothing waits for the device: read `scale` and `gradient_norm` (by ``.item()``) when you print,
    not at every step; ``layer.readings()`` copies both to be read later.

    Examples
    --------
    >>> layer = GradientReversal(0.5)
    >>> x = torch.ones(2, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    >>> layer.scale = 2.0
    >>> layer
    GradientReversal(scale=2)
    """

    if TYPE_CHECKING:
        # Never without one, and set by a schedule too.
        @property
        def scale(self) -> Tensor: ...

        @scale.setter
        def scale(self, value: float | Tensor | Schedule) -> None: ...

    def __init__(
        self, scale: float | Tensor | Schedule = 1.0, *, record_norm: bool = False
    ) -> None:
        super().__init__()
        self.schedule: Schedule | None = None
        self.record_norm = bool(record_norm)
        self._pairs = backends.Pairs("identity", reverse(1.0), {})
        if isinstance(scale, Schedule):
            self._register_scale(scale.value)
            self.schedule = scale
        else:
            self._register_scale(scale)
        self._norm = torch.full_like(self.scale, math.nan)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scale" and isinstance(value, Schedule):
            name = "schedule"
        if name == "schedule" and not isinstance(value, Schedule | None):
            raise TypeError(f"schedule must be a Schedule or None, not {type(value).__name__}")
        follows = name == "schedule" and value is not None
        if follows:
            # First, since it may be refused.
            self.set_scale(value.value)
        super().__setattr__(name, value)
        if follows:
            value.follow(self)

    def forward(self, x: Tensor) -> Tensor:
        """`x` as a view."""
        return self._view(x)

    def _view(self, x: Tensor) -> Tensor:
        return autograd.call_view(self._seen(x), self._pairs, self.scale)

    def _seen(self, x: Tensor) -> Tensor:
        """`x`, the norm of whose gradient is recorded where that was asked for."""
        recorded = self.record_norm and isinstance(x, Tensor)
        return observed(x, self._norm_on(x.device)) if recorded else x

    def _norm_on(self, device: torch.device) -> Tensor:
        if self._norm.device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._norm = torch.full((), math.nan, dtype=dtype, device=device)
        return self._norm

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        # Moved now and not at the next forward, which torch.compile may be tracing.
        self._norm_on(self.scale.device)
        return self

    @property
    def gradient_norm(self) -> Tensor | None:
        """The norm of the last reversed gradient, if recorded."""
        return self._norm if self.record_norm else None

    def readings(self) -> dict[str, Tensor]:
        """λ as `scale` and, if recorded, `gradient_norm`: copies on their device, no sync.

        Examples
        --------
        >>> layer = GradientReversal(0.5, record_norm=True)
        >>> x = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> layer(x).backward(torch.tensor([3.0, 4.0]))
        >>> {name: tensor.item() for name, tensor in layer.readings().items()}
        {'scale': 0.5, 'gradient_norm': 2.5}
        """
        found = {"scale": self.scale.detach().clone()}
        norm = self.gradient_norm
        return found if norm is None else {**found, "gradient_norm": norm.clone()}

    def extra_repr(self) -> str:
        """λ now, and the schedule that sets it."""
        parts = ["scale=" + ("meta" if self.scale.is_meta else f"{self.scale.item():.6g}")]
        if self.schedule is not None:
            parts.append(f"schedule={self.schedule!r}")
        return ", ".join(parts + ["record_norm=True"] * self.record_norm)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if self.schedule is not None:
            self.schedule.follow(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> GradientReversal:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__dict__, memo))
        return made
