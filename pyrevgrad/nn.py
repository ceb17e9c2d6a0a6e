"""The layers a user builds with. Imports the functions, schedules and rules."""

from __future__ import annotations

import copy
import ctypes
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from . import autograd, backends
from .folding import folded_linear
from .observing import observed
from .rules import EXACT, Rule, check_rule, reverse
from .scaled import Scaled
from .schedules import Schedule


class Activation(Scaled):
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


class GradientReversal(Scaled):
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


class ReversedLinear(GradientReversal):
    """``y = f(x·Wᵀ + b)`` behind a gradient reversal that costs nothing.

    As ``nn.Sequential(GradientReversal(scale), nn.Linear(...), Activation(...))``, with −λ folded
    into the product that makes the gradient of x: ``gx = −λ · g·W``. No kernel runs for the
    reversal, in either direction, and nothing is kept for it, where λ is a number or a schedule. A
    λ set as a tensor (or by a compiled or captured graph, where a number would be frozen) takes one
    kernel, on the smaller of g and W. The gradients of W and b are the plain ones.

    Parameters
    ----------
    in_features, out_features : int
        The sizes of the last dimension of x and y.
    bias : bool
        Whether there is a b. W and b start as in `torch.nn.Linear`.
    scale : float, 0-dim Tensor or Schedule
        λ, as in `GradientReversal`.
    activation : str, optional
        f, a name of the activation table; none if not given.
    rule : Rule
        The backward of f.
    record_norm : bool
        As in `GradientReversal`.
    device, dtype
        Of W and b.
    **params : float
        Parameters of f.

    Raises
    ------
    TypeError, ValueError
        As `GradientReversal`, `torch.nn.Linear` and `Activation`; an x whose last dimension is not
        `in_features`.

    Examples
    --------
    >>> layer = ReversedLinear(2, 1, bias=False, scale=0.5)
    >>> x = torch.ones(1, 2, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> torch.equal(x.grad, -0.5 * layer.weight)
    True
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        scale: float | Tensor | Schedule = 1.0,
        activation: str | None = None,
        rule: Rule = EXACT,
        record_norm: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        **params: Any,
    ) -> None:
        super().__init__(scale, record_norm=record_norm)
        if activation is None and (params or not rule.is_exact):
            raise ValueError("a rule and parameters belong to an activation, and none is named")
        linear = nn.Linear(in_features, out_features, bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.activation = None if activation is None else Activation(activation, rule, **params)
        assert self.scale is not None
        if self.scale.device != self.weight.device:
            self.to(device=self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """y, of shape (…, out_features) for x of shape (…, in_features)."""
        y = self._linear(x)
        return y if self.activation is None else self.activation(y)

    def _linear(self, x: Tensor) -> Tensor:
        nodes = None if self.record_norm else autograd.nodes_for(self._pairs)
        if nodes is not None:
            y = nodes.folded_linear(x, self.weight, self.bias, self.scale)
            if y is not NotImplemented:
                return y
        return self._linear_by_function(x)

    def _linear_by_function(self, x: Tensor) -> Tensor:
        if autograd.cannot_fold(x):
            return nn.functional.linear(super().forward(x), self.weight, self.bias)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"x must have {self.in_features} features in its last dimension, got shape "
                f"{tuple(x.shape)}"
            )
        if not (x.requires_grad and torch.is_grad_enabled()):
            return nn.functional.linear(x, self.weight, self.bias)
        assert self.scale is not None
        autograd.checked(x, self._pairs, self.scale)
        if self.record_norm:
            x = observed(x, self._norm_on(x.device))
        compiling = torch.compiler.is_compiling()
        number = None if compiling else functools.partial(self._number, self.scale)
        return folded_linear(x, self.weight, self.bias, self.scale, number)

    def _number(self, scale: Tensor) -> float | None:
        """λ, if it is known without asking the device and may stand in what runs now."""
        if type(scale) is Tensor and scale.is_cpu and scale.dtype == torch.float64:
            # From memory: no operation, nothing waits, and no write by another way is missed.
            return ctypes.c_double.from_address(scale.data_ptr()).value
        if scale.is_cuda and torch.cuda.is_current_stream_capturing():
            return None
        return self._still_known() if scale is self.scale else None

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._learn()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._learn()

    def _learn(self) -> None:
        """Ask the device for λ once, where a copy or a file has brought another."""
        if self.scale is not None and not self.scale.is_meta:
            self._know(self.scale.item())

    def extra_repr(self) -> str:
        """The sizes, then λ as it is now."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, {super().extra_repr()}"
