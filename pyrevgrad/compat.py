"""The reversals of two other libraries, by their names: changing the import is the migration.

Same constructor arguments, defaults and values; λ and counters are saved. Imports the layers.
"""

from __future__ import annotations

import ctypes
import math
from typing import Any

import torch
from torch import Tensor, nn

from . import autograd, backends, functional
from .checks import check_finite, check_scale
from .rules import reverse
from .scaled import Scaled
from .schedules import uncompiled

__all__ = ["GradientReverseLayer", "RevGrad", "WarmStartGradientReverseLayer", "revgrad"]

#: Where the layers of these names come from; dalib is what tllib was called before.
_PACKAGES = ("pytorch_revgrad", "tllib", "dalib")


def is_theirs(layer: nn.Module) -> bool:
    """Whether `layer` is a reversal of those libraries, by its name: none of them is imported."""
    return any(
        kind.__name__ in __all__ and kind.__module__.partition(".")[0] in _PACKAGES
        for kind in type(layer).__mro__
    )


class _Migrated(Scaled):
    """A layer that saves its λ, and that loads a file of the other library, which has none."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs = backends.Pairs("identity", reverse(1.0), {})

    def _load_from_state_dict(
        self, state: Any, prefix: str, metadata: Any, strict: bool, missing: Any, *rest: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, metadata, strict, missing, *rest)
        own = {prefix + "scale", prefix + "_extra_state"}
        if own.isdisjoint(state):
            missing[:] = [key for key in missing if key not in own]


class RevGrad(_Migrated):
    """pytorch-revgrad's layer: the identity, a view, whose backward is ``gx = −alpha · g``.

    Unlike there, alpha is saved with the model and moves with it, no cast changes it, and the
    input is not kept alive until backward. A file saved there, which holds no alpha, still loads;
    the alpha given here then stays.

    Parameters
    ----------
    alpha : float or Tensor of one element
        λ, rounded to float32 as there. ``layer._alpha`` reads and sets it, as there;
        ``layer.set_scale(...)`` sets it without rounding.

    Raises
    ------
    TypeError, ValueError
        An alpha that is neither.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> RevGrad(alpha=0.5)(x).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """

    def __init__(self, alpha: float | Tensor = 1.0) -> None:
        super().__init__()
        self._register_scale(_rounded(alpha))

    @property
    def _alpha(self) -> Tensor:
        assert self.scale is not None
        return self.scale

    @_alpha.setter
    def _alpha(self, value: float | Tensor) -> None:
        self.set_scale(_rounded(value))

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_alpha":
            # torch would take a Parameter given here for one of the module's own.
            type(self)._alpha.fset(self, value)  # type: ignore[attr-defined]
        else:
            super().__setattr__(name, value)

    def forward(self, input_: Tensor) -> Tensor:
        """`input_` as a view."""
        return autograd.call_view(input_, self._pairs, self.scale)

    def extra_repr(self) -> str:
        """λ now."""
        return f"alpha={_shown(self._alpha)}"


def revgrad(input_: Tensor, alpha_: float | Tensor) -> Tensor:
    """pytorch-revgrad's function: `input_` as a view, whose backward is ``gx = −alpha_ · g``.

    As `pyrevgrad.reverse_gradient`. Unlike there, `alpha_` may be a number; a tensor has one
    element and does not require grad, and the input is not kept alive until backward.

    Raises
    ------
    TypeError, ValueError
        An alpha_ that is neither.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> revgrad(x, torch.tensor(0.5)).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """
    return functional.reverse_gradient(input_, _without_dimensions(alpha_))


class GradientReverseLayer(nn.Module):
    """The Transfer-Learning-Library's layer: a copy whose backward is ``gx = −coeff · g``.

    A copy, as there, so that an in-place layer may follow; `pyrevgrad.nn.GradientReversal` returns
    a view and spends no time forward. It has no state, here as there.

    Examples
    --------
    >>> x = torch.ones(2, requires_grad=True)
    >>> GradientReverseLayer()(x, 0.5).sum().backward()
    >>> x.grad
    tensor([-0.5000, -0.5000])
    """

    def forward(self, input: Tensor, coeff: float | Tensor = 1.0) -> Tensor:
        """A copy of `input`; `coeff`, a number or a 0-dim tensor on its device, is λ."""
        return functional.activation(input, "identity", reverse(coeff))


class WarmStartGradientReverseLayer(_Migrated):
    """The Transfer-Learning-Library's warm start: a copy whose backward is ``gx = −λ · g``.

    ``λ = 2·(hi − lo) / (1 + exp(−alpha · i / max_iters)) − (hi − lo) + lo`` at step i, as there.
    λ is the one at the time of forward, whatever steps follow before backward.

    With the default alpha of 1 this reaches only .46 of the way at i = max_iters, and goes on
    rising after; the paper's schedule has alpha 10, which is given by ``alpha=10.0``. Unlike there,
    the step is saved with the model, so that a resumed training goes on where it stopped. A file
    saved there, which holds no step, still loads; the step then stays as it is.

    Parameters
    ----------
    alpha : float
        Steepness.
    lo, hi : float
        λ at step 0 and far beyond `max_iters`.
    max_iters : int or float
        > 0.
    auto_step : bool
        Whether each forward is a step; `step()` is one otherwise. Forwards under ``torch.no_grad``
        and in eval mode count as well, as there; so does one that activation checkpointing computes
        again, whose λ is then that of the next step: call `step()` yourself there.

    Raises
    ------
    TypeError, ValueError
        A number that is NaN, infinite or no number; `max_iters` <= 0; a λ that overflows.

    Examples
    --------
    >>> layer = WarmStartGradientReverseLayer(max_iters=1)
    >>> layer.step()
    >>> layer
    WarmStartGradientReverseLayer(alpha=1, lo=0, hi=1, max_iters=1, scale=0.462117, iter_num=1)
    """

    alpha: float
    lo: float
    hi: float
    max_iters: float
    iter_num: int

    def __init__(
        self,
        alpha: float = 1.0,
        lo: float = 0.0,
        hi: float = 1.0,
        max_iters: float = 1000.0,
        auto_step: bool = False,
    ) -> None:
        super().__init__()
        self.auto_step = auto_step
        numbers = {"alpha": alpha, "lo": lo, "hi": hi, "max_iters": max_iters, "iter_num": 0}
        for name, number in numbers.items():
            # Past our own __setattr__, which sets λ from all of them.
            object.__setattr__(self, name, _checked(name, number))
        self._register_scale(self._with())

    def _with(self, **changed: float) -> float:
        """λ with some of the numbers changed."""
        names = ("alpha", "lo", "hi", "max_iters", "iter_num")
        alpha, lo, hi, most, step = [changed.get(name, getattr(self, name)) for name in names]
        span = hi - lo
        rise = math.exp(min(-alpha * step / most, 700.0))
        scale = 2.0 * span / (1.0 + rise) - span + lo
        if not math.isfinite(scale):
            raise ValueError(f"lo={lo:g} and hi={hi:g} are too far apart: the scale overflows")
        return scale

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("alpha", "lo", "hi", "max_iters", "iter_num"):
            number = _checked(name, value)
            self.set_scale(self._with(**{name: number}))
            object.__setattr__(self, name, number)
        else:
            super().__setattr__(name, value)

    @uncompiled
    def step(self) -> None:
        """Increase the step `iter_num` by 1."""
        self.iter_num += 1

    def forward(self, input: Tensor) -> Tensor:
        """A copy of `input`."""
        assert self.scale is not None
        scale = self.scale.clone()
        if self.auto_step:
            self.step()
        return autograd.call(input, self._pairs, scale)

    def get_extra_state(self) -> dict[str, int]:
        """The steps taken, for ``state_dict``."""
        return {"iter_num": self.iter_num}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Continue where `state` stopped."""
        self.iter_num = state["iter_num"]

    def extra_repr(self) -> str:
        """The constructor's arguments, λ now, and the steps taken."""
        assert self.scale is not None
        parts = [f"{name}={getattr(self, name):g}" for name in ("alpha", "lo", "hi", "max_iters")]
        if self.auto_step:
            parts.append("auto_step=True")
        return ", ".join([*parts, f"scale={_shown(self.scale)}", f"iter_num={self.iter_num}"])


def _checked(name: str, value: object) -> float:
    number = check_finite(name, value, low=0.0 if name == "max_iters" else None)
    return int(number) if name == "iter_num" else number


def _shown(scale: Tensor) -> str:
    return "meta" if scale.is_meta else f"{scale.item():.6g}"


def _without_dimensions(alpha: float | Tensor) -> float | Tensor:
    """The other library multiplies by a tensor of any shape; by one number is what is meant."""
    if isinstance(alpha, Tensor) and alpha.dim() > 0 and alpha.numel() == 1:
        return alpha.reshape(())
    return alpha


def _rounded(alpha: float | Tensor) -> float | Tensor:
    """Alpha in float32: the other library multiplies by a float32 tensor."""
    number, tensor = check_scale(_without_dimensions(alpha))
    # A number stays one, which a layer made on the meta device has to know.
    return ctypes.c_float(number).value if tensor is None else tensor.detach().to(torch.float32)
