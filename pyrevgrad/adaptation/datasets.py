"""Two domains to adapt between: moons, digits, or arrays of one's own.

Imports torch and NumPy, the demo's digits, and scikit-learn inside a function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy
import torch
from torch import Tensor
from torch.nn import functional

from ..checks import closest
from ..demonstration import digits as demo_digits

SHIFTS = ("rotated", "shifted", "blended")

Labelled = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Domains:
    """A labelled source, an unlabelled target, and what is scored.

    Attributes
    ----------
    name : str
    source, held_out : (x, y)
        What is trained on, and what validates.
    target : Tensor
        Inputs without labels, trained on.
    target_test : (x, y) or None
        Target samples with labels, for the score alone.
    classes : int
    """

    name: str
    source: Labelled
    held_out: Labelled
    target: Tensor
    target_test: Labelled | None
    classes: int


def moons(
    samples: int = 150, degrees: float = 35.0, states: tuple[int, int] = (1, 2)
) -> tuple[Labelled, Labelled]:
    """Inter-twinning moons and the same kind of moons rotated counter-clockwise: source and target.

    ``make_moons(samples, noise=.05)`` with a random state each; both minus the source's mean, times
    2; then the target turned about the origin.

    Parameters
    ----------
    samples : int
        Of each domain, both moons together.
    degrees : float
    states : (int, int)
        Random states of source and target.
    """
    from sklearn.datasets import make_moons

    x, y = make_moons(samples, noise=0.05, random_state=states[0])
    other_x, other_y = make_moons(samples, noise=0.05, random_state=states[1])
    centre = x.mean(0)
    angle = math.radians(degrees)
    turn = numpy.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    source = torch.from_numpy((x - centre) * 2), torch.from_numpy(y)
    target = torch.from_numpy((other_x - centre) * 2 @ turn.T), torch.from_numpy(other_y)
    return source, target


def moons_domains(seed: int) -> Domains:
    """Moons with 300 samples each, a third of the source held out and half of the target."""
    (x, y), (other_x, other_y) = moons(300, states=(2 * seed + 1, 2 * seed + 2))
    x, other_x = x.float(), other_x.float()
    return Domains(
        "moons", (x[:200], y[:200]), (x[200:], y[200:]), other_x[:150],
        (other_x[150:], other_y[150:]), 2,
    )  # fmt: skip


def shifted(images: Tensor, right: int, down: int) -> Tensor:
    """Images (n, height, width) moved by whole pixels, zero where nothing comes from."""
    height, width = images.shape[1:]
    wide = functional.pad(images, [abs(right)] * 2 + [abs(down)] * 2)
    top, left = abs(down) - down, abs(right) - right
    return wide[:, top : top + height, left : left + width]


def blended(images: Tensor, seed: int) -> Tensor:
    """``|crop − image|`` with random crops of two photographs, as MNIST-M is made.

    Parameters
    ----------
    images : Tensor
        (n, height, width), in [0, 1].
    seed : int
        Decides on the crops, from scikit-learn's two sample images in grey.
    """
    from sklearn.datasets import load_sample_images

    photographs = [torch.tensor(p, dtype=torch.float32) for p in load_sample_images().images]
    grey = torch.stack(photographs).mean(3) / 255
    height, width = images.shape[1:]
    draw = torch.Generator().manual_seed(seed)
    crops = []
    for _ in images:
        which = int(torch.randint(len(grey), (), generator=draw))
        top = int(torch.randint(grey.shape[1] - height, (), generator=draw))
        left = int(torch.randint(grey.shape[2] - width, (), generator=draw))
        crops.append(grey[which, top : top + height, left : left + width])
    return (torch.stack(crops) - images).abs()


def digits_domains(seed: int, shift: str = "rotated") -> Domains:
    """scikit-learn's digits (8×8, real), and others of them under a shift.

    Parameters
    ----------
    seed : int
        Decides which image goes where; no image is in two parts.
    shift : {"rotated", "shifted", "blended"}
        Turned by 40° counter-clockwise; moved by one pixel to the right and one down; or blended
        with crops of photographs, where adaptation is known not to help.

    Raises
    ------
    ValueError
        Another shift.
    """
    if shift not in SHIFTS:
        raise ValueError(f"unknown shift {shift!r}: {closest(shift, SHIFTS)}")
    parts = demo_digits.load(seed, degrees=demo_digits.ROTATION if shift == "rotated" else 0.0)

    def moved(images: Tensor, part: int) -> Tensor:
        if shift == "shifted":
            images = shifted(images, 1, 1)
        elif shift == "blended":
            images = blended(images, 2 * seed + part)
        return images.flatten(1)

    return Domains(
        f"digits {shift}",
        (parts.source.flat, parts.source.labels),
        (parts.source_held_out.flat, parts.source_held_out.labels),
        moved(parts.target.images, 0),
        (moved(parts.target_unseen.images, 1), parts.target_unseen.labels),
        10,
    )
