"""Arrays of one's own, from two .npz files, with a sentence for what is wrong with them.

Imports NumPy, torch, and the datasets' form.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from .datasets import Domains, Labelled

#: The share of the source that validates.
HELD_OUT = 0.2
CHANNELS = (1, 3, 4)
#: More are a mistake, and a label head for them would fill the memory.
MOST_CLASSES = 2**16


class DataError(ValueError):
    """A file or an array that cannot be trained on."""


def load(source: Path, target: Path, seed: int) -> Domains:
    """Two domains from ``.npz`` files with arrays ``x`` and ``y``; the target's ``y`` is optional.

    Features (n, d), or images (n, height, width) or (n, channels, height, width). Both domains are
    made standard by the source's mean and deviation, of each feature or each channel. A fifth of
    the source, chosen by `seed`, is held out. The target's labels are used for the score alone.

    Raises
    ------
    DataError
        A file that is missing or no ``.npz``, a key that is missing, arrays of other shapes or
        kinds, values that are not finite, too few samples, labels that are no classes, or a class
        of the target that the source does not have.

    Warns
    -----
    UserWarning
        Numbers below the greatest label that are no sample's class.
    """
    x, y = _read(source, labelled=True)
    other, answers = _read(target, labelled=False)
    if x.shape[1:] != other.shape[1:]:
        raise DataError(
            f"{source} holds samples of shape {tuple(x.shape[1:])} and {target} of shape "
            f"{tuple(other.shape[1:])}: they must be the same"
        )
    assert y is not None
    classes = int(y.max()) + 1
    if classes < 2:
        raise DataError(f"{source}: y holds one class alone; two are needed at least")
    _check_classes(source, y, target, answers)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    held = max(1, round(len(x) * HELD_OUT))
    mean, deviation = _standard(x[order[held:]])
    x, other = (x - mean) / deviation, (other - mean) / deviation
    for path, made in ((source, x), (target, other)):
        if not bool(made.isfinite().all()):
            raise DataError(
                f"{path}: x, less the source's mean and over its deviation, is beyond float32: "
                "scale both domains down"
            )

    def picked(rows: Tensor) -> Labelled:
        return x[rows], y[rows]

    scored = None if answers is None else (other, answers)
    name = f"{source.stem} to {target.stem}"
    return Domains(name, picked(order[held:]), picked(order[:held]), other, scored, classes)


def _check_classes(source: Path, y: Tensor, target: Path, answers: Tensor | None) -> None:
    """DataError for a class of the target alone; a warning of numbers that no class has."""
    known = y.bincount() > 0
    counts = torch.zeros(0, dtype=torch.long) if answers is None else answers.bincount()
    for label in counts.nonzero().flatten().tolist():
        if label >= len(known) or not known[label]:
            raise DataError(
                f"{target}: class {label} has no sample in the source; the target has "
                f"{int(counts[label])}: number the classes of both alike"
            )
    missing = int((~known).sum())
    if missing:
        first = int((~known).nonzero()[0])
        warnings.warn(
            f"{source}: {missing} of the classes 0 to {len(known) - 1} have no sample, class "
            f"{first} first: number the classes without gaps, or outputs stay untrained",
            UserWarning,
            stacklevel=3,
        )


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    over = [0, 2, 3] if x.dim() == 4 else [0]
    mean, deviation = x.mean(over, keepdim=True), x.std(over, keepdim=True)
    # A feature that never changes in the source stays as it is, minus its value.
    return mean, torch.where(deviation > 0, deviation, 1.0)


def _read(path: Path, labelled: bool) -> tuple[Tensor, Tensor | None]:
    if not path.is_file():
        raise DataError(f"{path} is not there")
    try:
        file = numpy.load(path, allow_pickle=False)
        if isinstance(file, numpy.ndarray):
            raise DataError(f"{path} is a single array; save both by numpy.savez(path, x=, y=)")
        with file:
            names = list(file.files)
            arrays = {name: file[name] for name in ("x", "y") if name in names}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no .npz file that can be read: {error}") from None
    for name in ("x", "y") if labelled else ("x",):
        if name not in arrays:
            raise DataError(f"{path} has no array {name!r}; it has {', '.join(names) or 'none'}")
    x = _inputs(path, arrays["x"])
    return x, _labels(path, arrays["y"], len(x)) if "y" in arrays else None


def _inputs(path: Path, x: numpy.ndarray[Any, Any]) -> Tensor:
    if x.dtype.kind not in "biuf":
        raise DataError(f"{path}: x holds {x.dtype}, and must hold numbers")
    if x.ndim not in (2, 3, 4):
        raise DataError(
            f"{path}: x has shape {x.shape}; it must be features (n, d), or images "
            "(n, height, width) or (n, channels, height, width)"
        )
    if x.ndim == 4 and x.shape[1] not in CHANNELS and x.shape[3] in CHANNELS:
        raise DataError(
            f"{path}: x has shape {x.shape}, with channels last; use x.transpose(0, 3, 1, 2)"
        )
    if len(x) < 2 or 0 in x.shape:
        raise DataError(f"{path}: x has shape {x.shape}, too few samples or empty ones")
    wrong = int((~numpy.isfinite(x)).sum())
    if wrong:
        raise DataError(f"{path}: {wrong} values of x are NaN or infinite")
    with numpy.errstate(over="ignore"):
        made = torch.from_numpy(x.astype("float32"))
    beyond = int((~made.isfinite()).sum())
    if beyond:
        raise DataError(f"{path}: {beyond} values of x are beyond float32: scale x down")
    return made.unsqueeze(1) if made.dim() == 3 else made


def _labels(path: Path, y: numpy.ndarray[Any, Any], samples: int) -> Tensor:
    if y.shape != (samples,):
        raise DataError(f"{path}: y has shape {y.shape} for {samples} samples; it must be (n,)")
    if y.dtype.kind not in "iu":
        raise DataError(f"{path}: y holds {y.dtype}, and must hold integers, classes from 0")
    if int(y.min()) < 0:
        raise DataError(f"{path}: y holds {int(y.min())}, and classes begin at 0")
    if int(y.max()) >= MOST_CLASSES:
        raise DataError(
            f"{path}: y holds {int(y.max())}, and at most {MOST_CLASSES} classes are taken: number "
            "them from 0"
        )
    return torch.from_numpy(y.astype("int64"))
