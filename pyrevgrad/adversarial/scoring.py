"""Loss and accuracy of the label head over a data set. Imports the networks, labels and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..checks import check_count
from .batches import Batches, Ordered, domains, dtype_of, parts_of
from .labels import accuracy, are_classes, check_labels, kind_of
from .networks import DANN
from .processes import Processes
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
        The loss is the mean of the batches' losses, each weighted by its labels that are not
        ignored (by its samples where labels are no classes); the accuracy is over those labels,
        NaN where they are no classes. Both are NaN where every label is ignored.

    Raises
    ------
    TypeError, ValueError
        Data of another kind or without samples; labels out of range; a batch size below 1.

    Examples
    --------
    >>> model = DANN(nn.Identity(), nn.Identity(), nn.Linear(2, 1))
    >>> evaluate(model, (torch.eye(2), torch.tensor([0, 0]))).accuracy
    0.5
    """
    network = Processes.unwrapped(model) if isinstance(model, nn.Module) else model
    if not isinstance(network, DANN):
        raise TypeError(f"evaluate takes a DANN, not {type(network).__name__}")
    size = check_count("batch_size", batch_size)
    return score(network, to_score("data", data, size, network))


def to_score(name: str, data: Any, batch_size: int, network: DANN) -> Batches:
    """The batches of one labelled data set, in the order given."""
    if isinstance(data, list):
        raise TypeError(
            f"{name} is a list; a score is of one data set: give (x, y), a Dataset or a DataLoader"
        )
    return domains(name, data, 2, batch_size, None, dtype=dtype_of(network))[0]


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
            labels = labels.to(device, kind_of(labels, logits))
            loss = model.label_loss(logits, labels).to(kind)
            samples += len(x)
            weight = torch.full_like(losses, len(x))
            if are_classes(labels, logits):
                classes = True
                weight = (labels != model.ignore_index).sum().to(kind)
                share_here = accuracy(logits, labels, model.ignore_index).to(kind)
                right += torch.nan_to_num(share_here * weight).round()
            # A batch of ignored labels alone has neither, and counts for nothing.
            losses += torch.where(weight > 0, loss * weight, 0.0)
            counted += weight
    if not samples:
        raise ValueError("the data to score has no sample")
    share = (right / counted).item() if classes else float("nan")
    return Score((losses / counted).item(), share)
