"""The layers a user builds with. Imports the functions, schedules and rules."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from . import autograd, backends
from .checks import check_scale
from .observing import observed
from .rules import EXACT, Rule, check_rule, reverse
from .schedules import Schedule


class _Scaled(nn.Module):
    """A module whose scale may be a 0-dim float64 buffer, set only through `set_scale`.

    The buffer keeps its dtype through `.half()`, `.to(dtype)` and their like, and its value through
    `to_empty`. A value written here is mirrored in Python, so that reading it back never waits for
    a device.
    """

    scale: Tensor | None

    def _register_scale(self, value: float | Tensor) -> None:
        number, tensor = check_scale(value)
        if tensor is None:
            buffer = torch.tensor(number, dtype=torch.float64)
        else:
            buffer = tensor.detach().to(dtype=torch.float64, copy=True)
        self.register_buffer("scale", buffer)
        self._known: float | None = number if tensor is None else None

    def set_scale(self, value: float | Tensor) -> None:
        """Write `value`, a number or a 0-dim tensor, into the buffer, in place and without a sync.

        Raises
        ------
        TypeError, ValueError
            Not a number nor a 0-dim floating tensor, or one that requires grad.
        """
        if self.scale is None:
            raise ValueError(
                "this layer's rule has a number for a scale; give the rule a 0-dim tensor to make "
                "it live, or set layer.rule"
            )
        number, tensor = check_scale(value)
        with torch.no_grad():
            self.scale.fill_(number) if tensor is None else self.scale.copy_(tensor)
        self._known = number if tensor is None else None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scale" and "scale" in self.__dict__.get("_buffers", {}):
            if isinstance(value, Schedule):
                raise TypeError(f"{type(self).__name__} takes no schedule; GradientReversal does")
            self.set_scale(value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before, self._buffers["scale"] = self._buffers["scale"], None
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers["scale"] = before
        if before is not None:
            # Only the place of a probe counts: the buffer's dtype and value are not fn's to change.
            probe = fn(torch.zeros((), device=before.device))
            self._buffers["scale"] = self._moved(before, probe)
        return self

    def _moved(self, before: Tensor, probe: Tensor) -> Tensor:
        if probe.device == before.device:
            return before.share_memory_() if probe.is_shared() and not before.is_cuda else before
        dtype = torch.float32 if probe.device.type == "mps" else torch.float64
        if probe.is_meta:
            self._known = before.item()
        if not before.is_meta:
            return before.to(device=probe.device, dtype=dtype)
        known = float("nan") if self._known is None else self._known
        return torch.full((), known, dtype=dtype, device=probe.device)

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        super()._load_from_state_dict(state, prefix, metadata, *rest)
        saved = state.get(prefix + "scale")
        if saved is None or self.scale is None:
            return
        if metadata.get("assign_to_params_buffers", False):
            self._buffers["scale"] = saved.detach().to(dtype=torch.float64, copy=True)
        self._known = None


class Activation(_Scaled):
    """``y = f(x)`` whose backward is `rule`.

    Parameters
    ----------
    name : str
        A name of the activation table.
    rule : Rule
        What the backward does; the ordinary one if not given. A tensor scale is copied into the
        buffer `scale`, a 0-dim float64 tensor that only ``layer.set_scale(...)`` changes.
    inplace : bool
        Overwrite the input.
    **params : float
        The activation's parameters by PyTorch's names.

    Raises
    ------
    TypeError, ValueError
        As `pyrevgrad.activation`.

    Examples
    --------
    >>> from pyrevgrad import reverse
    >>> Activation("leaky_relu", rule=reverse(0.3), negative_slope=0.1)
    Activation('leaky_relu', rule=reverse(0.3), negative_slope=0.1)
    """

    def __init__(
        self, name: str, rule: Rule = EXACT, *, inplace: bool = False, **params: float
    ) -> None:
        super().__init__()
        self._name, self._params = name, dict(params)
        self.inplace = bool(inplace)
        self._set_rule(rule)

    @property
    def name(self) -> str:
        """The activation's name."""
        return self._name

    def _set_rule(self, rule: Rule) -> None:
        pairs = backends.Pairs(self._name, check_rule(rule), self._params)
        self._buffers.pop("scale", None)
        if rule.tensor is None:
            self.register_buffer("scale", None)
        else:
            self._register_scale(rule.tensor)
        self._pairs = pairs.without_tensor()

    @property
    def rule(self) -> Rule:
        """What the backward does; setting it changes the next forward's backward."""
        rule = self._pairs.rule
        return rule if self.scale is None else rule.scaled(self.scale)

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._set_rule(rule)

    def forward(self, x: Tensor) -> Tensor:
        """f(x), fresh storage with the strides of ``torch.empty_like(x)`` unless in place."""
        return autograd.call(x, self._pairs, self.scale, self.inplace)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        parts = [repr(self._name)]
        if not self.rule.is_exact:
            parts.append(f"rule={self.rule!r}")
        if self.inplace:
            parts.append("inplace=True")
        return ", ".join(parts + [f"{key}={value!r}" for key, value in self._params.items()])

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "rule":
            self._set_rule(value)
        else:
            super().__setattr__(name, value)


class GradientReversal(_Scaled):
    """The identity, a view of its input, whose backward is ``gx = −scale · g``.

    Ganin & Lempitsky (2015), section 3.1: between features and a domain head it makes the features
    climb the loss that the head descends. Training or eval mode makes no difference.

    Parameters
    ----------
    scale : float, 0-dim Tensor or Schedule
        λ >= 0 reverses. Kept as the buffer `scale`, a 0-dim float64 tensor that is saved and loaded
        with the model and that no dtype cast touches; a tensor's value is copied. Set it with
        ``layer.scale = 0.3`` or ``layer.set_scale(...)``; a schedule sets it at each ``step()``.
    record_norm : bool
        Whether each backward leaves the 2-norm of the reversed gradient, ``‖−scale · g‖``, in
        `gradient_norm`, at the price of one reduction. Of several forwards in one step, the
        norm is that of the one whose backward ran last.

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
        assert self.scale is not None
        self._norm = torch.full_like(self.scale, math.nan)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scale" and isinstance(value, Schedule):
            name = "schedule"
        super().__setattr__(name, value)
        if name == "schedule" and value is not None:
            value.follow(self)
            self.set_scale(value.value)

    def forward(self, x: Tensor) -> Tensor:
        """`x` as a view."""
        if self.record_norm and isinstance(x, Tensor):
            x = observed(x, self._norm_on(x.device))
        return autograd.call_view(x, self._pairs, self.scale)

    def _norm_on(self, device: torch.device) -> Tensor:
        if self._norm.device != device:
            dtype = torch.float32 if device.type == "mps" else torch.float64
            self._norm = torch.full((), math.nan, dtype=dtype, device=device)
        return self._norm

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        assert self.scale is not None
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
        assert self.scale is not None
        found = {"scale": self.scale.detach().clone()}
        norm = self.gradient_norm
        return found if norm is None else {**found, "gradient_norm": norm.clone()}

    def extra_repr(self) -> str:
        """λ now, and the schedule that sets it."""
        assert self.scale is not None
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
