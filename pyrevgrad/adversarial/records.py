"""What a training leaves: its history, scores, the error of one that diverged. Imports nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


class DivergedError(RuntimeError):
    """The loss or a weight became NaN or infinite. The last good checkpoint, if any, is kept.

    Attributes
    ----------
    step, epoch : int
        Where, counted from 0; the message counts from 1, as the history does.
    checkpoint : Path or None
        The last good checkpoint.
    """

    def __init__(self, message: str, step: int, epoch: int, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.step, self.epoch, self.checkpoint = step, epoch, checkpoint

    def __reduce__(self) -> Any:
        # Between processes an error is made anew from what it was called with.
        return type(self), (str(self), self.step, self.epoch, self.checkpoint)


@dataclass
class History:
    """What a training did.

    Attributes
    ----------
    epochs : list of dict
        One for each epoch, of numbers by name: ``epoch`` and ``step`` (how many are done), means
        over the epoch's steps of ``loss``, ``label_loss``, ``domain_loss``, ``label_accuracy`` and
        ``domain_accuracy``, then as they stand at its end ``scale`` (λ), ``learning_rate``,
        ``gradient_norm`` (if recorded; the mean over the processes), ``validation_loss`` and
        ``validation_accuracy`` (if there is a validation), and ``NAME_loss`` and ``NAME_accuracy``
        for each of the scores.
    best_epoch : int or None
        The place in `epochs` of the least validation loss.
    stopped_early : bool
        Whether patience ended the training.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False


@dataclass(frozen=True)
class Score:
    """Label loss and accuracy over a data set."""

    loss: float
    accuracy: float
