"""The plots of ``train``: curves over epochs, and features before and after in two dimensions.

Imports matplotlib and scikit-learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from ..adversarial import DANN, History
from .datasets import Domains

#: At most so many points of each domain are drawn.
POINTS = 400
#: Up to so many classes have colours that are told apart, and their names in the legend.
MOST_NAMED = 10


def _mean_and_runs(axes: Any, histories: list[History], key: str, label: str) -> None:
    if any(key not in record for history in histories for record in history.epochs):
        return
    runs = [[record[key] for record in history.epochs] for history in histories]
    shortest = min(map(len, runs))
    epochs = range(1, shortest + 1)
    mean = [sum(run[i] for run in runs) / len(runs) for i in range(shortest)]
    (line,) = axes.plot(epochs, mean, label=f"{label} ({mean[-1]:.3f})")
    for run in runs if len(runs) > 1 else []:
        axes.plot(range(1, len(run) + 1), run, color=line.get_color(), alpha=0.3, linewidth=0.8)


#: The curves of each panel, by the history's name.
PANELS = {
    "accuracy": {
        "validation_accuracy": "held-out source",
        "target_accuracy": "target",
        "domain_accuracy": "domain",
    },
    "loss": {"label_loss": "label", "domain_loss": "domain"},
    "reversal": {"scale": "λ", "gradient_norm": "‖reversed gradient‖"},
}


def draw_curves(path: Path, name: str, histories: list[History]) -> None:
    """Accuracies, losses and λ over epochs, as far as recorded; thin lines are single seeds."""
    keys = histories[0].epochs[0]
    panels = {title: curves for title, curves in PANELS.items() if keys.keys() & curves.keys()}
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axes, (title, curves) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for key, label in curves.items():
            _mean_and_runs(axes, histories, key, label)
        if title == "accuracy":
            axes.set_ylim(0, 1.02)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.suptitle(name, fontsize=11)
    figure.savefig(path, dpi=100)


def _projected(model: DANN, source: Tensor, target: Tensor) -> tuple[Any, Any]:
    from sklearn.decomposition import PCA

    model.eval()
    with torch.no_grad():
        found = model.features(torch.cat([source, target])).flatten(1).double().numpy()
    flat = PCA(2).fit_transform(found)
    return flat[: len(source)], flat[len(source) :]


def draw_embedding(path: Path, data: Domains, before: DANN, after: DANN) -> None:
    """Features before and after training, by PCA of both domains together.

    Circles are held-out source and crosses target; colours are classes, named where they are few,
    grey where the target has no labels.
    """
    source, labels = (part[:POINTS] for part in data.held_out)
    target, answers = data.target[:POINTS], None
    if data.target_test is not None:
        target, answers = (part[:POINTS] for part in data.target_test)
    few = data.classes <= MOST_NAMED
    colours = colormaps["tab10" if few else "turbo"].resampled(data.classes)
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    for axes, model, title in zip(
        figure.subplots(1, 2), (before, after), ("before training", "after training"), strict=True
    ):
        of_source, of_target = _projected(model, source, target)
        style = {"s": 14, "linewidths": 0.9}
        axes.scatter(*of_source.T, facecolors="none", edgecolors=colours(labels.numpy()), **style)
        shown = "grey" if answers is None else colours(answers.numpy())
        axes.scatter(*of_target.T, c=shown, marker="x", **style)
        axes.set_title(f"features {title}", fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    marks = [
        Line2D([], [], color="black", marker="o", markerfacecolor="none", linestyle=""),
        Line2D([], [], color="black", marker="x", linestyle=""),
    ]
    names = ["source", "target"]
    if few:
        names += [str(number) for number in range(data.classes)]
        marks += [
            Line2D([], [], color=colours(number), marker="s", linestyle="")
            for number in range(data.classes)
        ]
    figure.legend(
        marks, names, loc="outside lower center", ncols=len(names), fontsize=9,
        columnspacing=1.2, handletextpad=0.2,
    )  # fmt: skip
    figure.suptitle(f"{data.name}: colours are classes", fontsize=11)
    figure.savefig(path, dpi=100)
