"""The data of the demo: handwritten digits, upright and rotated, in four disjoint parts.

May import torch, and scikit-learn inside a function; nothing of ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

#: Counter-clockwise turn of the target digits, in degrees.
ROTATION = 40.0
#: Images in the source, the held-out source and the target; the unseen target takes the rest.
SIZES = (1000, 200, 400)


@dataclass(frozen=True)
class Images:
    """Digits of one part: images (n, 8, 8) in [0, 1], labels (n,), and which images they are."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor

    @property
    def flat(self) -> torch.Tensor:
        """The images as rows of 64 pixels."""
        return self.images.flatten(1)


@dataclass(frozen=True)
class Digits:
    """The four parts. No image is in two of them, so no target image has an upright twin.

    `source` is trained on with its labels and `target` without; accuracies are measured on
    `source_held_out` and `target_unseen`, which no training step sees.
    """

    source: Images
    source_held_out: Images
    target: Images
    target_unseen: Images


def rotate(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Turn each image counter-clockwise about its centre, bilinear, zero outside.

    Parameters
    ----------
    images : torch.Tensor
        (n, height, width), floating point, row 0 at the top.
    degrees : float
        Positive is counter-clockwise as the picture is seen.

    Returns
    -------
    torch.Tensor
        The same shape and dtype. A bilinear mean stays within the range of the input and 0.

    Examples
    --------
    >>> rotate(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), 90).round()
    tensor([[[1., 0.],
             [0., 0.]]])
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # affine_grid maps output to input coordinates, with y pointing down.
    to_input = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]], dtype=images.dtype)
    batch = images[:, None]
    grid = functional.affine_grid(
        to_input.expand(len(images), 2, 3), list(batch.shape), align_corners=False
    )
    return functional.grid_sample(batch, grid, align_corners=False)[:, 0]


def load(seed: int, sizes: tuple[int, int, int] = SIZES, degrees: float = ROTATION) -> Digits:
    """Split scikit-learn's 1797 real digits by `seed` and rotate the two target parts.

    Parameters
    ----------
    seed : int
        Decides which image goes where.
    sizes : tuple of int
        Images in the source, the held-out source and the target.
    degrees : float
        Counter-clockwise turn of the target parts.

    Notes
    -----
    The digits are the test half of the UCI "Optical Recognition of Handwritten Digits" set
    (Alpaydin and Kaynak 1998), 8×8 pixels of 0 to 16, here divided by 16.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32) / 16
    labels = torch.tensor(data.target, dtype=torch.int64)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    parts = order.split([*sizes, len(images) - sum(sizes)])

    def upright(part: torch.Tensor) -> Images:
        return Images(images[part], labels[part], part)

    def turned(part: torch.Tensor) -> Images:
        return Images(rotate(images[part], degrees), labels[part], part)

    return Digits(upright(parts[0]), upright(parts[1]), turned(parts[2]), turned(parts[3]))
