"""Loss and accuracy of the label head over a data set. Imports the networks and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .batches import Batches, Ordered, domains, parts_of
from .networks import DANN, _are_classes, accuracy, check_labels
from .records import Score


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode and no gradients; afterwards each in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluate(model: DANN, data: Any, batch_size: int = 256) -> Score:
    """Label loss and accuracy of `model` over labelled data, in eval mode.

    Parameters
    ----------
    model : DANN
    data : (x, y), Dataset or DataLoader
    batch_size : int
        Of tensors and datasets; loaders have their own.

    Returns
    -------
    Score
        The loss is the mean of the batches' losses, each weighted by its samples; the accuracy is
        over all labels that are not ignored, NaN where labels are no classes.

    Raises
    ------
    TypeError, ValueError
        Data of another kind or without samples; labels out of range.

    Examples
    --------
    >>> model = DANN(nn.Identity(), nn.Identity(), nn.Linear(2, 1))
    >>> evaluate(model, (torch.eye(2), torch.tensor([0, 0]))).accuracy
    0.5
    """
    (batches,) = domains("data", data, 2, batch_size, None)
    return score(model, batches)


def _all(batches: Batches) -> Iterator[Any]:
    if isinstance(batches, Ordered):
        yield from map(batches.at, range(batches.per_pass))
    else:
        yield from batches.loader


def score(model: DANN, batches: Batches) -> Score:
    """As `evaluate`, of batches that are made already."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kind = torch.float32 if device.type == "mps" else torch.float64
    losses = torch.zeros((), dtype=kind, device=device)
    right, counted = losses.clone(), losses.clone()
    samples, classes = 0, False
    with evaluating(model):
        for batch in _all(batches):
            x, labels = parts_of("data", batch, device)
            logits = model.predict(x)
            check_labels(labels, logits, model.ignore_index)
            labels = labels.to(device)
            losses += model.label_loss(logits, labels) * len(x)
            samples += len(x)
            if _are_classes(labels, logits):
                classes = True
                real = (labels != model.ignore_index).sum()
                counted += real
                # A batch of ignored labels alone has no accuracy, and counts for nothing.
                share_here = accuracy(logits, labels, model.ignore_index).to(kind)
                right += torch.nan_to_num(share_here * real).round()
    if not samples:
        raise ValueError("the data to score has no sample")
    share = (right / counted).item() if classes else float("nan")
    return Score(losses.item() / samples, share)
