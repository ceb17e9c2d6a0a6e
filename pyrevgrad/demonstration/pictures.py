"""The demo's three pictures: drawn without pyplot, so no display and no global state is needed.

May import matplotlib and the demo's other rooms.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from . import timing
from .digits import ROTATION, Digits
from .maps import RULES, Maps
from .training import Accuracies

#: Okabe and Ito's colours, told apart by colour-blind readers; line styles tell them apart too.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#555555"
DOTS_PER_INCH = 120
STYLE: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 3.2,
}


@dataclass(frozen=True)
class Line:
    """How one quantity is drawn: its name, colour and dashes."""

    name: str
    colour: str
    dashes: str = "-"


WITH, WITHOUT = (
    Line("with GradientReversal", BLUE),
    Line("without (source only)", ORANGE, "--"),
)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG."""
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white", format="png")


def heading(figure: Figure, title: str, below: str) -> None:
    """A bold title and a line below it, at the figure's top left."""
    inch = 1 / figure.get_figheight()
    figure.text(0.03, 1 - 0.18 * inch, title, fontsize=16, fontweight="bold", va="top")
    figure.text(0.03, 1 - 0.55 * inch, below, fontsize=11, color=GREY, va="top")


def show_image(axes: Axes, image: torch.Tensor, **options: Any) -> Any:
    """Draw one 8×8 image with hard pixel edges and no ticks."""
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(True)
        spine.set_color("#bbbbbb")
    return axes.imshow(image.numpy(), interpolation="nearest", **options)


def draw_with_band(axes: Axes, curves: list[list[float]], line: Line, label: bool = True) -> float:
    """Mean over seeds as a line, lowest to highest seed as a band; returns the last mean in %."""
    table = 100 * torch.tensor(curves, dtype=torch.float64)
    epochs = range(table.shape[1])
    mean = table.mean(0)
    axes.fill_between(
        epochs, table.amin(0).numpy(), table.amax(0).numpy(), color=line.colour, alpha=0.18, lw=0
    )
    axes.plot(epochs, mean.numpy(), line.dashes, color=line.colour, lw=2, label=line.name)
    if label:
        axes.annotate(
            f"{mean[-1]:.0f} %",
            (len(epochs) - 1, mean[-1].item()),
            (6, 0),
            textcoords="offset points",
            color=line.colour,
            fontweight="bold",
            va="center",
        )
    return mean[-1].item()


def draw_strip(figure: Figure, place: Any, digits: Digits) -> None:
    """Two rows of ten digits: the source, and the rotated target."""
    grid = place.subgridspec(2, 11, width_ratios=[2.3, *[1] * 10], hspace=0.12, wspace=0.08)
    rows = (
        (digits.source, "Source\nupright, labelled"),
        (digits.target, f"Target\nturned {ROTATION:g}°, unlabelled"),
    )
    for row, (part, name) in enumerate(rows):
        words = figure.add_subplot(grid[row, 0])
        words.axis("off")
        words.text(-0.3, 0.5, name, va="center", linespacing=1.4)
        for digit in range(10):
            position = int((part.labels == digit).nonzero()[0])
            axes = figure.add_subplot(grid[row, digit + 1])
            show_image(axes, part.images[position], cmap="gray_r", vmin=0, vmax=1)


def mark_chance(axes: Axes, percent: float) -> None:
    """A dotted line where guessing would be, named at its right end."""
    axes.axhline(percent, color=GREY, lw=1, ls=":")
    axes.annotate(
        "chance",
        (1, percent),
        (-3, -11),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=GREY,
        size=9,
        ha="right",
    )


def draw_curves(
    path: Path, digits: Digits, adapted: list[Accuracies], plain: list[Accuracies]
) -> None:
    """Accuracy over training with and without the reversal, under a strip of the digits.

    Parameters
    ----------
    path : Path
        Where the PNG goes.
    digits : Digits
        Whose images the strip shows.
    adapted, plain : list of Accuracies
        One per seed, with and without the reversal.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 8.2))
        outer = figure.add_gridspec(
            2,
            1,
            height_ratios=[1, 2.4],
            left=0.075,
            right=0.945,
            top=0.885,
            bottom=0.125,
            hspace=0.24,
        )
        draw_strip(figure, outer[0], digits)
        lower = outer[1].subgridspec(1, 2, width_ratios=[1.45, 1], wspace=0.28)
        main, side = figure.add_subplot(lower[0]), figure.add_subplot(lower[1])
        with_reversal = draw_with_band(main, [run.target for run in adapted], WITH)
        source_only = draw_with_band(main, [run.target for run in plain], WITHOUT)
        main.set(title="Accuracy on unseen target digits", ylabel="accuracy (%)", ylim=(0, 100))
        mark_chance(main, 10)
        main.legend(loc="upper left")
        draw_with_band(side, [run.domain for run in adapted], WITH)
        draw_with_band(side, [run.domain for run in plain], WITHOUT)
        mark_chance(side, 50)
        side.set(title="Can the domain head tell target from source?", ylim=(30, 102))
        side.set(ylabel="domain accuracy (%)")
        for axes in (main, side):
            axes.set(xlabel="epochs", xlim=(0, len(adapted[0].target) - 1))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
        heading(
            figure,
            f"Rotated digits read correctly: {source_only:.0f} % source only, "
            f"{with_reversal:.0f} % with GradientReversal",
            "Same network, initial weights, steps and batches. The only difference is "
            "GradientReversal before the domain head.",
        )
        figure.text(0.03, 0.012, caption_of_curves(adapted, plain), fontsize=9, color=GREY)
        save(figure, path)


def caption_of_curves(adapted: list[Accuracies], plain: list[Accuracies]) -> str:
    """What the curves are, the control, and when labels were used."""
    controls = [100 * statistics.mean(run.source[-1] for run in runs) for runs in (plain, adapted)]
    seeds = f"{len(adapted)} seed{'s' if len(adapted) > 1 else ''}"
    return (
        f"Lines: mean of {seeds}; bands: lowest to highest seed. Last-epoch weights; settings "
        "chosen on other seeds. No target label was touched while training:\n"
        "accuracies were computed afterwards from kept weights. Held-out upright digits, last "
        f"epoch: {controls[0]:.1f} % without, {controls[1]:.1f} % with reversal. Real digits, "
        "scikit-learn."
    )


def draw_maps(path: Path, maps: Maps) -> None:
    """Ten digits in two blocks of five rows: the image and its input gradient per rule."""
    names = ["image", *RULES]
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 9.5))
        blocks = figure.add_gridspec(
            1, 2, left=0.06, right=0.985, top=0.885, bottom=0.2, wspace=0.12
        )
        drawn: Any = None
        for block in range(2):
            grid = blocks[block].subgridspec(5, 4, hspace=0.08, wspace=0.06)
            for row in range(5):
                digit = 5 * block + row
                for column, name in enumerate(names):
                    axes = figure.add_subplot(grid[row, column])
                    if row == 0:
                        axes.set_title(name, loc="center")
                    if column == 0:
                        show_image(axes, maps.images[digit], cmap="gray_r", vmin=0, vmax=1)
                        axes.set_ylabel(f"says {int(maps.predicted[digit])}")
                        continue
                    values = maps.gradients[name][digit]
                    values = values / values.abs().max().clamp_min(1e-30)
                    drawn = show_image(axes, values, cmap="RdBu_r", vmin=-1, vmax=1)
        bar = figure.colorbar(
            drawn, cax=figure.add_axes((0.06, 0.165, 0.235, 0.014)), orientation="horizontal"
        )
        bar.set_ticks([-1, 0, 1])
        bar.set_label("gradient ÷ largest magnitude in its map", size=10)
        heading(
            figure,
            "What the classifier sends back to the pixels, under three rules",
            "Gradient of the predicted digit's logit in the input. One set of trained weights; "
            "only the backward of its relus differs.",
        )
        figure.text(0.335, 0.183, caption_of_maps(maps), fontsize=10, va="top", linespacing=1.45)
        save(figure, path)


def caption_of_maps(maps: Maps) -> str:
    """What such maps can and cannot show, with the two cosines measured on these weights."""

    def row(cosines: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in cosines.items()).replace("-", "−")

    return (
        "EXACT is the true gradient: which pixels would change the logit, to first order, and "
        "which way.\nGUIDED and DECONVNET look cleaner, but partly redraw the image whatever is "
        "asked (Nie et al.\n2018), and GUIDED can survive randomised weights (Adebayo et al. "
        "2018): neither is evidence\n"
        "of why a digit was chosen. Measured on all unseen target digits, mean cosine\n"
        f"    between map and image:  {row(maps.image_cosines)}\n"
        f"    between the maps of two classes:  {row(maps.class_cosines)}\n"
        "Rows: the first unseen, turned digit of each class that the classifier gets right."
    )


LINES = {
    timing.GUIDED_IDIOM: Line("guided: eager idiom", ORANGE, "--"),
    timing.GUIDED_STRONGEST: Line("guided: strongest eager", PURPLE, "-."),
    timing.FUSED_GUIDED: Line("guided: pyrevgrad", BLUE),
    timing.REVERSED_IDIOM: Line("reversed: eager idiom", ORANGE, "--"),
    timing.FUSED_REVERSED: Line("reversed: pyrevgrad", BLUE),
    timing.PLAIN: Line("plain torch.relu", GREY, ":"),
}


def draw_times(axes: Axes, times: timing.Timings, names: list[str], title: str) -> None:
    """Microseconds against elements, both logarithmic."""
    for name in names:
        line = LINES[name]
        axes.plot(
            times.sizes,
            times.microseconds[name],
            line.dashes,
            color=line.colour,
            lw=2,
            marker="o",
            ms=3.5,
            label=line.name,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    every = [value for values in times.microseconds.values() for value in values]
    axes.set_ylim(
        10 ** math.floor(math.log10(min(every))), 10 ** math.ceil(math.log10(max(every)) + 0.3)
    )
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set(title=title, xlabel="elements (float32)", ylabel="median time (µs)")
    axes.legend(fontsize=10)


def draw_ratios(axes: Axes, times: timing.Timings) -> None:
    """How many times longer each opponent takes than the fused activation."""
    opponents = (
        (timing.GUIDED_IDIOM, timing.FUSED_GUIDED, Line("guided: eager idiom", ORANGE, "--")),
        (
            timing.GUIDED_STRONGEST,
            timing.FUSED_GUIDED,
            Line("guided: strongest eager", PURPLE, "-."),
        ),
        (timing.REVERSED_IDIOM, timing.FUSED_REVERSED, Line("reversed: eager idiom", GREEN)),
        (
            timing.PLAIN,
            timing.FUSED_GUIDED,
            Line("plain torch.relu, as against\nguided pyrevgrad", GREY, ":"),
        ),
    )
    for slow, fused, line in opponents:
        ratios = times.ratio(slow, fused)
        axes.plot(
            times.sizes,
            ratios,
            line.dashes,
            color=line.colour,
            lw=2,
            marker="o",
            ms=3.5,
            label=line.name,
        )
    axes.axhline(1, color="black", lw=1)
    axes.set_xscale("log", base=2)
    axes.set(
        title="Times longer than pyrevgrad (above 1: pyrevgrad wins)",
        xlabel="elements (float32)",
        ylabel="opponent's time ÷ pyrevgrad's",
    )
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=10, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)


def draw_timings(path: Path, times: timing.Timings, backend: str, device: str) -> None:
    """Times of both rules, and the ratios to every opponent.

    Parameters
    ----------
    path : Path
        Where the PNG goes.
    times : Timings
        From `timing.measure`.
    backend, device : str
        Which backend ran, as `summary.serving_backend` says it, and on what.
    """
    note = "" if backend.startswith("native") else "NOT the compiled kernels but plain PyTorch. "
    with rc_context(STYLE):
        figure = Figure(figsize=(11, 9))
        grid = figure.add_gridspec(
            2, 2, left=0.1, right=0.975, top=0.87, bottom=0.115, hspace=0.34, wspace=0.28
        )
        guided, reversed_ = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        guided_names = [timing.GUIDED_IDIOM, timing.GUIDED_STRONGEST, timing.FUSED_GUIDED]
        reversed_names = [timing.REVERSED_IDIOM, timing.FUSED_REVERSED]
        draw_times(guided, times, [*guided_names, timing.PLAIN], "Guided relu")
        draw_times(reversed_, times, [*reversed_names, timing.PLAIN], "Reversed relu")
        below = grid[1, :].subgridspec(1, 2, width_ratios=[1, 0.37], wspace=0)
        draw_ratios(figure.add_subplot(below[0]), times)
        heading(
            figure,
            f"Forward + backward of one relu on the {backend.split(',')[0]}",
            f"{note}{device}; float32, {times.threads} thread{'s' if times.threads > 1 else ''}, "
            f"median of {times.rounds} interleaved rounds",
        )
        figure.text(
            0.03,
            0.012,
            "Every call allocates its results; torch.autograd.grad on a non-leaf input. "
            "All forms of one rule sent back equal gradients before they were timed.\n"
            "Eager idiom, guided: clamp_min, then g*(x>0)*(g>0)*scale; strongest: "
            "clamp_min, then elu_backward in place, of alpha 0; reversed: relu, then -λ*g.",
            fontsize=9,
            color=GREY,
        )
        save(figure, path)
