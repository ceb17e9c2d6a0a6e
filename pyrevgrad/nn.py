"""The layers a user builds with. Imports the reversal, the functions and rules."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor, nn

from . import autograd, backends
from .folding import folded_convolution, folded_linear
from .reversal import GradientReversal
from .rules import EXACT, Rule, check_rule
from .scaled import Scaled
from .schedules import Schedule

__all__ = ["Activation", "GradientReversal", "ReversedConv2d", "ReversedLinear"]


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
        The activation's parameters by PyTorch's names. Each is an attribute, which may be set.

    Raises
    ------
    TypeError, ValueError
        As `pyrevgrad.activation`; also where a rule or a parameter is set.

    Examples
    --------
    >>> from pyrevgrad import reverse
    >>> layer = Activation("leaky_relu", rule=reverse(0.3), negative_slope=0.1)
    >>> layer.negative_slope = 0.2
    >>> layer
    Activation('leaky_relu', rule=reverse(0.3), negative_slope=0.2)
    """

    def __init__(
        self, name: str, rule: Rule = EXACT, *, inplace: bool = False, **params: float
    ) -> None:
        super().__init__()
        self._name, self._params = name, dict(params)
        self.inplace = bool(inplace)
        self._set_rule(rule)
        # A custom activation's may be called as what every layer has, which stays that.
        listed = (parameter.name for parameter in self._pairs.full.row.parameters)
        self._settable = tuple(name for name in listed if not hasattr(self, name))
        self._show_params()

    @property
    def name(self) -> str:
        """The activation's name."""
        return self._name

    def _set_rule(self, rule: Rule) -> None:
        pairs = backends.Pairs(self._name, check_rule(rule), self._params)
        if rule.tensor is None:
            self.register_buffer("scale", None)
        else:
            self._register_scale(rule.tensor)
        # The tensor scale is in the buffer.
        self._pairs = pairs.under(pairs.full.rule)

    def _set_param(self, name: str, value: Any) -> None:
        params = {**self._params, name: value}
        self._pairs = backends.Pairs(self._name, self._pairs.rule, params)
        self._params = params
        self._show_params()

    def _show_params(self) -> None:
        """Each parameter as a plain attribute, as PyTorch's layers have it."""
        full = self._pairs.full
        for parameter, number in zip(full.row.parameters, full.numbers, strict=True):
            if parameter.name in self._settable:
                self.__dict__[parameter.name] = number

    @property
    def rule(self) -> Rule:
        """What the backward does; setting it changes the next forward's backward."""
        rule = self._pairs.rule
        return rule if self.scale is None else rule.scaled(self.scale)

    @rule.setter
    def rule(self, rule: Rule) -> None:
        self._set_rule(rule)

    def forward(self, x: Tensor) -> Tensor:
        """f(x), fresh storage laid out as ``torch.empty_like(x)`` unless in place."""
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
        elif name in self.__dict__.get("_settable", ()):
            self._set_param(name, value)
        else:
            super().__setattr__(name, value)


class FoldedReversal(GradientReversal):
    """A layer with weights behind a gradient reversal that is folded into its backward.

    What `ReversedLinear` and `ReversedConv2d` share; no layer by itself.
    """

    weight: Tensor
    bias: Tensor | None

    def _take(
        self, layer: nn.Module, activation: str | None, rule: Rule, params: dict[str, Any]
    ) -> None:
        """The weights of a layer of PyTorch's, and the activation behind them."""
        if activation is None and (params or not rule.is_exact):
            raise ValueError("a rule and parameters belong to an activation, and none is named")
        self.weight = layer.weight  # type: ignore[assignment]
        self.register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        self.activation = None if activation is None else Activation(activation, rule, **params)
        if self.scale.device != self.weight.device:
            self.to(device=self.weight.device)

    def forward(self, x: Tensor) -> Tensor:
        """y, shaped as by the layer of PyTorch's."""
        # A compiler folds by itself.
        compiling = autograd.is_dynamo_compiling()
        y = self._behind_reversal(x) if compiling else self._product(x)
        return y if self.activation is None else self.activation(y)

    def _product(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _behind_reversal(self, x: Tensor) -> Tensor:
        return self._plain(self._view(x))

    def _plain(self, x: Tensor) -> Tensor:
        """y by the layer of PyTorch's."""
        raise NotImplementedError


class ReversedLinear(FoldedReversal):
    """``y = f(x·Wᵀ + b)`` behind a gradient reversal that costs nothing.

    As ``nn.Sequential(GradientReversal(scale), nn.Linear(...), Activation(...))``, with −λ folded
    into the product that makes the gradient of x: ``gx = −λ · g·W``. No kernel runs for the
    reversal, in either direction, and nothing is kept for it, where λ is a number or a schedule. A
    λ that only a device knows (or a captured graph, where a number would be frozen) takes one
    kernel, on the smaller of g and W. Under torch.compile it is a product that the compiler puts
    into the kernel that adds up the features' gradient. The gradients of W and b are the plain
    ones.

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
        linear = nn.Linear(in_features, out_features, bias, device, dtype)
        self.in_features, self.out_features = in_features, out_features
        self._take(linear, activation, rule, params)

    def reset_parameters(self) -> None:
        """Start W and b anew as `torch.nn.Linear` does; λ stays."""
        nn.Linear.reset_parameters(self)  # type: ignore[arg-type]

    def _product(self, x: Tensor) -> Tensor:
        nodes = None if self.record_norm else autograd.nodes_for(self._pairs)
        if nodes is not None:
            y = nodes.folded_linear(x, self.weight, self.bias, self.scale)
            if y is not NotImplemented:
                return y
        return self._by_function(x)

    def _by_function(self, x: Tensor) -> Tensor:
        if autograd.cannot_fold(x):
            return self._behind_reversal(x)
        if x.shape[-1:] != (self.in_features,):
            raise ValueError(
                f"x must have {self.in_features} features in its last dimension, got shape "
                f"{tuple(x.shape)}"
            )
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self._plain(x)
        number = functools.partial(self._number, self.scale)
        return folded_linear(self._seen(x), self.weight, self.bias, self.scale, number)

    def _plain(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)

    def _number(self, scale: Tensor) -> float | None:
        """λ, if it is known without asking the device and may stand in what runs now."""
        plain = type(scale) is Tensor and scale.is_cpu and scale.dim() == 0
        if plain and scale.dtype == torch.float64:
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


#: What a convolution is besides its weights, copied from PyTorch's layer.
_GEOMETRY = (
    *("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups"),
    *("transposed", "output_padding", "padding_mode", "_reversed_padding_repeated_twice"),
)


class ReversedConv2d(FoldedReversal):
    """``y = f(conv(x, W) + b)`` behind a gradient reversal that costs next to nothing.

    As ``nn.Sequential(GradientReversal(scale), nn.Conv2d(...), Activation(...))``, for the domain
    head of a dense prediction, with −λ folded into the backward convolution:
    ``gx = convᵀ(g, −λ·W)``. The reversal is one kernel over W, or over g where that is smaller,
    instead of one over the feature maps; nothing is kept for it. Under torch.compile as
    `ReversedLinear`. The gradients of W and b are the plain ones.

    Parameters
    ----------
    in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode
        As in `torch.nn.Conv2d`, whose weights these are.
    device, dtype
        Of W and b.
    scale : float, 0-dim Tensor or Schedule
        λ, as in `GradientReversal`.
    activation : str, optional
        f, a name of the activation table; none if not given.
    rule : Rule
        The backward of f.
    record_norm : bool
        As in `GradientReversal`.
    **params : float
        Parameters of f.

    Raises
    ------
    TypeError, ValueError
        As `GradientReversal`, `torch.nn.Conv2d` and `Activation`; an x that is not
        (batch, in_channels, height, width) nor (in_channels, height, width).

    Examples
    --------
    >>> layer = ReversedConv2d(2, 1, kernel_size=1, bias=False, scale=0.5)
    >>> x = torch.ones(1, 2, 3, 3, requires_grad=True)
    >>> layer(x).sum().backward()
    >>> torch.equal(x.grad, (-0.5 * layer.weight).expand(1, 2, 3, 3))
    True
    """

    in_channels: int
    padding: str | tuple[int, int]
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: str | int | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        scale: float | Tensor | Schedule = 1.0,
        activation: str | None = None,
        rule: Rule = EXACT,
        record_norm: bool = False,
        **params: Any,
    ) -> None:
        super().__init__(scale, record_norm=record_norm)
        shape = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        layer = nn.Conv2d(*shape, bias, padding_mode, device, dtype)  # type: ignore[arg-type]
        for name in _GEOMETRY:
            setattr(self, name, getattr(layer, name))
        self._take(layer, activation, rule, params)

    def reset_parameters(self) -> None:
        """Start W and b anew as `torch.nn.Conv2d` does; λ stays."""
        nn.Conv2d.reset_parameters(self)  # type: ignore[arg-type]

    def _product(self, x: Tensor) -> Tensor:
        if autograd.cannot_fold(x):
            return self._behind_reversal(x)
        channels = self.in_channels
        if x.dim() not in (3, 4) or x.shape[-3] != channels:
            raise ValueError(
                f"x must be of shape (batch, {channels}, height, width) or ({channels}, height, "
                f"width), got {tuple(x.shape)}"
            )
        if not (x.requires_grad and torch.is_grad_enabled()):
            return self._plain(x)
        x, padding = self._padded(self._seen(x))
        geometry = (self.stride, padding, self.dilation, self.groups)
        if x.dim() == 3:
            return self._folded(x.unsqueeze(0), geometry).squeeze(0)
        return self._folded(x, geometry)

    def _folded(self, x: Tensor, geometry: Any) -> Tensor:
        weight, bias, scale = self.weight, self.bias, self.scale
        assert scale is not None
        nodes = autograd.nodes_for(self._pairs)
        if nodes is not None:
            y = nodes.folded_convolution(x, weight, bias, scale, *self._pairs.handles, geometry)
            if y is not NotImplemented:
                return y
        return folded_convolution(x, weight, bias, scale, geometry)

    def _plain(self, x: Tensor) -> Tensor:
        return nn.Conv2d._conv_forward(self, x, self.weight, self.bias)  # type: ignore[arg-type]

    def _padded(self, x: Tensor) -> tuple[Tensor, Any]:
        """`x` with the margin that a convolution cannot add by itself, and what it adds."""
        margin = self._reversed_padding_repeated_twice
        if self.padding_mode != "zeros":
            return nn.functional.pad(x, margin, mode=self.padding_mode), (0, 0)
        if not isinstance(self.padding, str):
            return x, self.padding
        left, right, top, bottom = margin
        if left == right and top == bottom:
            return x, (top, left)
        return nn.functional.pad(x, margin), (0, 0)

    def extra_repr(self) -> str:
        """PyTorch's convolution, then λ as it is now."""
        return f"{nn.Conv2d.extra_repr(self)}, {GradientReversal.extra_repr(self)}"  # type: ignore[arg-type]
