"""The picture of `explain`: the image, the map, and both on each other. Imports matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

DOTS_PER_INCH = 120


def stretched(x: Tensor) -> Tensor:
    """(channels, height, width) of unknown units, its least number at 0 and its most at 1.

    Three channels are colours. Of any others the mean is taken, for four would be drawn as colours
    and their opacity.
    """
    x = x.detach().float()
    x = x if len(x) == 3 else x.mean(0, keepdim=True)
    low, high = x.min(), x.max()
    return (x - low) / (high - low) if high > low else torch.zeros_like(x)


def strength(found: Tensor) -> Tensor:
    """The map as one channel of signed numbers within [-1, 1], its 99th percentile at 1."""
    one = found.detach().float().sum(0)
    # torch.quantile takes no more than 16 million elements, and photos have them.
    sizes = one.abs().flatten()
    size = sizes.kthvalue(1 + round(0.99 * (sizes.numel() - 1))).values
    return (one / size).clamp(-1, 1) if size > 0 else torch.zeros_like(one)


def draw(path: Path, x: Tensor, found: Tensor, title: str) -> None:
    """Write image, map and overlay side by side as a PNG; `x` in [0, 1], of 1 or 3 channels."""
    # The resampling rounds, and may leave [0, 1] by that.
    image, signed = x.clamp(0, 1).squeeze(0).numpy(), strength(found)
    image = image.transpose(1, 2, 0) if image.ndim == 3 else image
    figure = Figure(figsize=(10, 3.9), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    left, middle, right = figure.subplots(1, 3)
    colours: dict[str, Any] = {"vmin": -1, "vmax": 1, "cmap": "RdBu_r"}
    left.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    drawn = middle.imshow(signed.numpy(), interpolation="nearest", **colours)
    right.imshow(_grey(image), cmap="gray", vmin=0, vmax=1.6, interpolation="nearest")
    right.imshow(signed.numpy(), alpha=signed.abs().numpy(), interpolation="nearest", **colours)
    for axes, name in ((left, "image"), (middle, "map"), (right, "map on the image")):
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    bar = figure.colorbar(drawn, ax=[left, middle, right], shrink=0.8)
    bar.set_label("share of the map's 99th percentile")
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white", format="png")


def _grey(image: Any) -> Any:
    return image if image.ndim == 2 else image.mean(2)
