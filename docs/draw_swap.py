"""Draws the pictures of docs/swap.md: maps of the built-in digits network, and its sanity check."""

import argparse
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pyrevgrad.attribution import Deconvolution, GuidedBackprop, RectGrad, Saliency, sanity_check
from pyrevgrad.explaining import digits
from pyrevgrad.explaining.pictures import strength

PICTURES = Path(__file__).resolve().parent / "pictures"
METHODS = {
    "plain gradient": lambda model: Saliency(model),
    "GuidedBackprop": GuidedBackprop,
    "Deconvolution": Deconvolution,
    "RectGrad, 80 %": lambda model: RectGrad(model, percentile=80),
}


def draw_maps(model, images, targets):
    """One row per image: itself, and its map under each method."""
    figure = Figure(figsize=(9, 1.85 * len(images)), layout="constrained")
    grid = figure.subplots(len(images), 1 + len(METHODS))
    for column, (name, method) in enumerate([("image", None), *METHODS.items()]):
        for row, image in enumerate(images):
            axes = grid[row, column]
            axes.set_xticks([])
            axes.set_yticks([])
            if method is None:
                axes.imshow(image[0].numpy(), cmap="gray_r")
                axes.set_ylabel(f"output {int(targets[row])}")
            else:
                options = {"abs": False} if name == "plain gradient" else {}
                target = int(targets[row])
                found = method(model).attribute(image[None], target, **options)[0]
                axes.imshow(strength(found).numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
            if row == 0:
                axes.set_title(name, loc="left", fontsize=10)
    figure.savefig(PICTURES / "swap-maps.png", dpi=100, facecolor="white")


def main():
    argparse.ArgumentParser(description="Draw the pictures of docs/swap.md anew.").parse_args()
    torch.set_num_threads(1)
    model = digits.trained_network()
    images, labels = digits.held_out()
    chosen = [int((labels == digit).nonzero()[0]) for digit in (0, 3, 7)]
    with torch.no_grad():
        targets = model(images[chosen]).argmax(1)
    draw_maps(model, images[chosen], targets)
    check = sanity_check(model, images[:200])
    check.plot(PICTURES / "swap-sanity.png")
    print(check)


if __name__ == "__main__":
    main()
