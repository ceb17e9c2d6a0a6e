"""The reproductions' plots: target accuracy over training, with and without adaptation.

Imports matplotlib, without a display.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

from matplotlib import pyplot

COLOURS = {"adapted": "#1f6fb2", "plain": "#c2571a"}
LABELS = {"adapted": "with gradient reversal", "plain": "without"}


def _draw(axes: Any, curves: dict[str, list[list[float]]], epochs: list[float]) -> None:
    for name, runs in curves.items():
        for run in runs:
            axes.plot(epochs, run, color=COLOURS[name], alpha=0.25, linewidth=0.8)
        mean = [sum(column) / len(column) for column in zip(*runs, strict=True)]
        label = f"{LABELS[name]} ({mean[-1]:.3f})"
        axes.plot(epochs, mean, color=COLOURS[name], linewidth=2, label=label)
    axes.set_ylim(0, 1)
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize=8)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def draw_moons(path: Path, result: dict[str, Any]) -> None:
    """One panel."""
    figure, axes = pyplot.subplots(figsize=(5.5, 3.8))
    curves = {name: result["curves"][name]["target"] for name in ("adapted", "plain")}
    count = len(curves["plain"][0])
    epochs = [result["epochs"] * i / max(1, count - 1) for i in range(count)]
    _draw(axes, curves, epochs)
    axes.set_title(
        f"inter-twinning moons, {len(result['seeds'])} seeds and their mean", fontsize=10
    )
    axes.set_ylabel("target accuracy")
    _save(figure, path)


def draw_digits(path: Path, result: dict[str, Any]) -> None:
    """A panel for each shift."""
    shifts = result["shifts"]
    figure, panels = pyplot.subplots(1, len(shifts), figsize=(3.9 * len(shifts), 3.6), sharey=True)
    for axes, (shift, found) in zip(panels, shifts.items(), strict=True):
        _draw(axes, found["curves"], [1.0 + i for i in range(result["epochs"])])
        axes.set_title(f"digits {shift}, {len(result['seeds'])} seeds and their mean", fontsize=10)
    panels[0].set_ylabel("target accuracy")
    _save(figure, path)
