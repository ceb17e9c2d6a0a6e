"""Labels: which are classes, whether they fit the logits, their cross-entropy and accuracy.

Imports torch alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CrossEntropy(nn.Module):
    """Cross-entropy of classes or probabilities, with a sentence for what does not fit."""

    def __init__(self, ignore_index: int) -> None:
        super().__init__()
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        if labels.shape == logits.shape and not labels.is_floating_point():
            raise ValueError(
                f"labels of the label logits' shape {tuple(labels.shape)} are probabilities to "
                f"cross-entropy, and these are {labels.dtype}: give one-hot labels as floating "
                "point (labels.float()), or classes (labels.argmax(1))"
            )
        if not (are_classes(labels, logits) or labels.shape == logits.shape):
            raise ValueError(
                f"labels of shape {tuple(labels.shape)} do not fit label logits of shape "
                f"{tuple(logits.shape)}: cross-entropy takes integer classes without the class "
                "dimension, or probabilities with it"
            )
        if are_classes(labels, logits) and logits.shape[1] == 1:
            raise ValueError(
                "the label head gives one logit, of which cross-entropy is always 0: give it an "
                "output for each class, or pass a label_loss such as a binary cross-entropy"
            )
        return F.cross_entropy(logits, labels, ignore_index=self.ignore_index)

    def extra_repr(self) -> str:
        return f"ignore_index={self.ignore_index}"


def ignored_by(label_loss: Any) -> int:
    """The label that a loss ignores: of a module, of a partial, or cross-entropy's −100."""
    keywords = getattr(label_loss, "keywords", {})
    found = getattr(label_loss, "ignore_index", keywords.get("ignore_index"))
    return -100 if found is None else int(found)


def check_labels(labels: Tensor, logits: Tensor, ignore_index: int) -> None:
    """ValueError where class labels on the CPU do not fit the logits."""
    if not are_classes(labels, logits):
        return
    if labels.shape[1:] != logits.shape[2:]:
        raise ValueError(
            f"labels of shape {tuple(labels.shape)} do not fit label logits of shape "
            f"{tuple(logits.shape)}"
        )
    if labels.is_cpu and not torch.compiler.is_compiling():
        # One logit tells two classes apart.
        check_range(labels, max(2, logits.shape[1]), ignore_index)


def check_range(labels: Tensor, classes: int, ignore_index: int) -> None:
    """ValueError unless every label is in [0, classes) or is ignored; reads the values."""
    # In a narrow dtype the ignored label may wrap to a class: −100 is 156 in uint8.
    labels = labels.long()
    wrong = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bool(wrong.any()):
        first = labels[wrong][0].item()
        raise ValueError(
            f"label {first} is out of range: the label head tells {classes} classes, 0 to "
            f"{classes - 1} (and {ignore_index} is ignored)"
        )


def are_classes(labels: Tensor, logits: Tensor) -> bool:
    """Whether labels are integers without the class dimension of the logits."""
    whole = not (labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool)
    return whole and logits.dim() == labels.dim() + 1


def kind_of(labels: Tensor, logits: Tensor) -> torch.dtype:
    """The dtype in which a loss takes the labels: int64 of classes, which all integers may be."""
    return torch.long if are_classes(labels, logits) else labels.dtype


@torch.no_grad()
def accuracy(logits: Tensor, labels: Tensor, ignore_index: int = -100) -> Tensor:
    """The share of class labels that are right, a 0-dim tensor; NaN where labels are no classes."""
    if not are_classes(labels, logits):
        return torch.full((), float("nan"), device=logits.device)
    counted = labels != ignore_index
    found = logits[:, 0] > 0 if logits.shape[1] == 1 else logits.argmax(1)
    right = (found == labels) & counted
    return right.sum() / counted.sum()
