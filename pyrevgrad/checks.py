"""Checks of single values and of a folder, each with a sentence. Imports nothing of ours."""

from __future__ import annotations

import difflib
import importlib.util
import math
import operator
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, TypeGuard

if TYPE_CHECKING:
    import torch


def closest(word: object, known: Iterable[str]) -> str:
    """The end of an error message: the names most like `word`, or all of `known`."""
    names = sorted(known)
    folded = {name.casefold(): name for name in names}
    found = difflib.get_close_matches(str(word).casefold(), folded, n=3, cutoff=0.5)
    near = [folded[name] for name in found]
    if near:
        return "did you mean " + " or ".join(repr(name) for name in near) + "?"
    return "choose from " + ", ".join(names) if names else "it takes none"


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value: object) -> TypeGuard[SupportsIndex]:
    """Whether `value` is a whole number, Python's or NumPy's; a bool is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(name: str, number: object, least: int = 1) -> int:
    """`number` if it is an int >= `least`, or ValueError."""
    if not is_whole(number) or operator.index(number) < least:
        raise ValueError(f"{name} must be an int >= {least}, got {number!r}")
    return operator.index(number)


def check_number(what: str, value: object, *, low: float | None = None) -> float:
    """`value` as a float; TypeError unless a real number, ValueError if NaN or not above `low`."""
    if not _is_number(value):
        raise TypeError(f"{what} must be a number, not {type(value).__name__}")
    # By way of its digits: torch.compile then takes a changing number for a constant and compiles
    # again, where it would otherwise make it a symbol that no rule can hold.
    try:
        number = float.fromhex(float(value).hex())  # type: ignore[arg-type]
    except OverflowError:
        raise ValueError(f"{what} is too large for a float") from None
    if math.isnan(number):
        raise ValueError(f"{what} must not be NaN")
    if low is not None and number <= low:
        raise ValueError(f"{what} must be > {low:g}, got {number!r}")
    return number


def check_finite(what: str, value: object, *, low: float | None = None) -> float:
    """As `check_number`, and ValueError where infinite."""
    number = check_number(what, value, low=low)
    if math.isinf(number):
        raise ValueError(f"{what} must be finite, got {number!r}")
    return number


def check_scale(value: object) -> tuple[float, torch.Tensor | None]:
    """Split a scale into (number, 0-dim tensor or None), or raise.

    Raises
    ------
    TypeError
        Neither a number nor a tensor, or a tensor of another dtype than float32, float64, bfloat16
        and float16.
    ValueError
        NaN, a tensor that has dimensions, or one that requires grad.
    """
    if _is_number(value):
        return check_number("scale", value), None
    if not hasattr(value, "requires_grad"):
        cure = "; nn.GradientReversal takes a schedule" if hasattr(value, "state_dict") else ""
        if not cure and getattr(value, "shape", None) == ():
            cure = "; pass scale.item()"
        kind = type(value).__name__
        raise TypeError(f"scale must be a number or a 0-dim tensor, not {kind}{cure}")
    tensor: Any = value
    if tensor.dim() != 0:
        raise ValueError(f"scale must be a 0-dim tensor, got shape {tuple(tensor.shape)}")
    # Floating point of one byte or less is none that a kernel reads.
    if not tensor.is_floating_point() or tensor.element_size() == 1:
        raise TypeError(
            f"a tensor scale must be of float32, float64, bfloat16 or float16, got {tensor.dtype}"
        )
    if tensor.requires_grad:
        raise ValueError(
            "no gradient flows to scale, so a tensor scale must not require grad; pass .detach()"
        )
    return 1.0, tensor


def missing(extra: str, needed: Mapping[str, str]) -> str:
    """What an extra of ours would install and is not there, in a sentence; nothing if all is."""
    absent = [name for module, name in needed.items() if importlib.util.find_spec(module) is None]
    return f'needs {", ".join(absent)}: pip install "pyrevgrad[{extra}]"' if absent else ""


def make_folder(path: Path) -> None:
    """Make the folder that a command writes to; ValueError, with why, where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        dangling = path.is_symlink() and not path.exists()
        why = "it is a link to what is not there" if dangling else error.strerror
        raise ValueError(f"--out {path} cannot be made a folder: {why}") from None
