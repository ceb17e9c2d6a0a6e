"""Reading an image whole, and preparing it for a model. Imports Pillow, numpy and torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from . import ExplainError


class _Unscaled(Exception):
    """Numbers whose black and white nobody knows."""


_BROKEN = (
    *(UnidentifiedImageError, Pillow.DecompressionBombError),
    *(OSError, SyntaxError, ValueError),
)


@dataclass(frozen=True)
class Image:
    """Pixels in [0, 1]: (channels, height, width), one channel or three."""

    pixels: Tensor

    def as_pillow(self) -> Any:
        """For a user's preprocess: 8 bits, or grey floats in [0, 1] where those lose some."""
        array = self.pixels.numpy()
        if len(array) == 1:
            eight = (array[0] * 255).round().astype(np.uint8)
            exact = np.array_equal(eight.astype(np.float32) / 255, array[0])
            return Pillow.fromarray(eight if exact else array[0])
        return Pillow.fromarray((array.transpose(1, 2, 0) * 255).round().astype(np.uint8))


def read(path: Path) -> Image:
    """The image of a file, upright as its EXIF data say; 16-bit greyscale keeps its 16 bits.

    Raises
    ------
    ExplainError
        There is no such file, it is no image that Pillow reads, or its numbers have no known scale.
    """
    if not path.is_file():
        raise ExplainError(f"--image: there is no file {path}")
    try:
        with Pillow.open(path) as opened:
            opened.load()
            return Image(_pixels(ImageOps.exif_transpose(opened)))
    except _Unscaled as error:
        raise ExplainError(f"--image: {path} {error}") from error
    except _BROKEN as error:
        raise ExplainError(f"--image: {path} is broken or no image: {error}") from error


def _pixels(opened: Any) -> Tensor:
    mode = opened.mode
    if mode.startswith("I") or mode == "F":
        array = np.asarray(opened).astype(np.float64)
        most = 65535 if mode.startswith("I") else 1
        if not ((array >= 0) & (array <= most)).all():
            raise _Unscaled(
                f"has numbers from {np.min(array):g} to {np.max(array):g}, and must have them "
                f"within [0, {most}] to be shown; scale them first"
            )
        return torch.from_numpy(array / most).float()[None]
    if mode in ("1", "L"):
        array = np.asarray(opened.convert("L"))[None]
    else:
        array = np.asarray(opened.convert("RGB")).transpose(2, 0, 1)
    return torch.from_numpy(array.astype(np.float32) / 255)


def resized(image: Image, size: int | None, gray: bool) -> Tensor:
    """(channels, size, size) in [0, 1]; three channels unless `gray`."""
    x = image.pixels
    if gray and len(x) == 3:
        x = (x * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    elif not gray and len(x) == 1:
        x = x.expand(3, -1, -1)
    if size is None:
        return x.clone()
    return functional.interpolate(
        x[None], (size, size), mode="bilinear", antialias=True, align_corners=False
    )[0]


def normalised(x: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Tensor:
    """(1, channels, height, width) of what `resized` made.

    Raises
    ------
    ExplainError
        `mean` or `std` has neither one number nor one for each channel, a mean lies outside
        [-1, 1], as one of pixels up to 255 does, or a deviation is 0.
    """
    x = x[None]
    return (x - _per_channel("mean", mean, 0.0, x)) / _per_channel("std", std, 1.0, x)


def _per_channel(name: str, given: tuple[float, ...] | None, default: float, x: Tensor) -> Tensor:
    numbers = (default,) if given is None else given
    channels = x.shape[1]
    if len(numbers) not in (1, channels):
        raise ExplainError(f"--{name} must have 1 or {channels} numbers, got {len(numbers)}")
    if name == "std" and 0 in numbers:
        raise ExplainError("--std must not be 0")
    if name == "mean" and max(map(abs, numbers)) > 1:
        raise ExplainError(
            f"--mean is subtracted from pixels in [0, 1], and {max(numbers, key=abs):g} is not of "
            "their unit: divide --mean and --std by 255 if they are of pixels up to 255"
        )
    return torch.tensor(numbers, dtype=x.dtype).reshape(1, -1, 1, 1)


def a_digit() -> Image:
    """The first image of scikit-learn's digits that the built-in network did not train on."""
    from .digits import held_out

    return Image(held_out()[0][0])
