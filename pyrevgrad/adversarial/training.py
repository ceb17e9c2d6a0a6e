"""Training an adversarial network: `fit`. Imports the run beside it, and tqdm only for the bar."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from . import checkpoints
from .continuing import Continuing
from .records import History
from .runs import Run


def fit(
    model: nn.Module,
    source: Any,
    target: Any,
    *,
    epochs: int,
    batch_size: int = 64,
    optimizer: Optimizer | None = None,
    scheduler: Any = None,
    max_grad_norm: float | None = None,
    validation: Any = None,
    patience: int | None = None,
    keep_best: bool = False,
    scores: dict[str, Any] | None = None,
    seed: int = 0,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    after_epoch: Callable[[dict[str, float]], Any] | None = None,
) -> History:
    """Train `model` on labelled source and unlabelled target.

    A step takes one batch of each domain, descends ``losses.loss``, then steps `scheduler` and the
    schedule of λ. An epoch is one pass over the (first) source; shorter domains begin again, and
    longer ones go on in the next epoch. Under ``torch.autocast`` (bfloat16: no loss is scaled) the
    forwards and scores are in mixed precision, and the backward and the optimizer outside of it.

    Parameters
    ----------
    model : DANN, or DistributedDataParallel of one
        Modules stay in the mode, training or eval, that they are in.
    source : (x, y), Dataset or DataLoader, or a list of them
        Inputs with labels; several domains are a list. NumPy's float64 takes the model's dtype.
    target : x, Dataset or DataLoader, or a list of them
        Inputs; labels beside them are not used.
    epochs, batch_size : int
        The batch size is that of each domain and of all processes together; loaders have their own.
        A last batch of one sample is left out of its pass where a batch normalisation in training
        mode may see it alone (in the label head, or in the features where not `together`).
    optimizer : torch.optim.Optimizer, optional
        SGD with learning rate .01 and momentum .9 under `GaninLearningRate`, as in the paper, if
        not given. Its ``step()`` takes no closure. Trainable parameters that it does not hold are
        named in a warning.
    scheduler : scheduler of torch.optim, optional
        Of that optimizer, stepped after every training step without arguments.
    max_grad_norm : float, optional
        The optimizer's gradients are scaled down together where their norm is larger, as by
        `torch.nn.utils.clip_grad_norm_`. Not clipped if not given.
    validation : (x, y), Dataset or DataLoader, optional
        Held-out source, scored after every epoch.
    patience : int, optional
        Stop after so many epochs without a lower validation loss. That loss is the source's: it is
        often least before the features have adapted, so be patient.
    keep_best : bool
        Whether the model ends with the weights of the least validation loss.
    scores : dict of str to (x, y), Dataset or DataLoader, optional
        More labelled data to score after every epoch, ``{"target": (x, y)}``; no part in training.
    seed : int
        The order of the batches, dropout and whatever else draws random numbers. The generators of
        Python, NumPy and torch are as before when fit returns.
    device : torch.device or str, optional
        Where to train; where the model is if not given.
    checkpoint : path, optional
        A file, written after every epoch and its `after_epoch`. Its place is taken only by a whole
        new one.
    resume : bool
        Whether to continue from `checkpoint` if it is there; the result is what one run would have
        given, bit for bit on the CPU. A file that is there is an error otherwise. So is one of
        another training: other options or classes of the network, of its loss (class weights too),
        the optimizer's groups (and the order of their parameters), the scheduler or λ, or other
        data (by shape and by a checksum of at most 4096 elements of each tensor; of datasets by
        their size, of loaders by their samplers and batches too). `epochs` may grow where
        neither the learning rate nor λ follows from it; the default learning rate does. Of a loader
        that stands within a pass, the batches taken are read once more and passed over. That is
        exact where it draws its order when a pass begins, or from a generator that is its own, as
        PyTorch's samplers do; not where samples are changed at random in workers that persist
        (``persistent_workers=True``), whose random states no checkpoint reaches.
    progress : bool, optional
        Whether to show a bar, which needs tqdm; where that is installed, if not given.
    after_epoch : callable, optional
        Called with the record of each epoch. It may set λ or a rate and add numbers to the record,
        and a checkpoint has them.

    Returns
    -------
    History

    Warns
    -----
    UserWarning
        The optimizer leaves out a part; λ is below 0, or its schedule ends there; λ of a Ganin or
        linear schedule would end at less than half of its height, since the run has fewer steps
        than its ``max_steps``.

    Raises
    ------
    DivergedError
        The loss, or at an epoch's end a weight, is NaN or infinite. On the CPU a loss is looked at
        before its backward, so that the weights are those before that step. A gradient that is
        not finite under a finite loss has spoilt them by the time that the next look finds it,
        unless `max_grad_norm` is given, whose norm is looked at before the step.
    ValueError, TypeError
        Labels out of range, a domain or loader without samples, shapes that do not fit, a
        checkpoint of another training or one that could not be read again, `resume` without a
        `checkpoint`, a λ that is infinite, an autocast to float16, gradients turned off; an
        optimizer of none of the model's parameters or whose step needs a closure, a scheduler of
        another optimizer or whose step needs a metric.
    FileExistsError
        A checkpoint is there, and `resume` is not asked for.
    OSError
        A checkpoint could not be written there, found before the training begins.
    ImportError
        ``progress=True`` without tqdm.

    Examples
    --------
    >>> from pyrevgrad.adversarial import DANN
    >>> _ = torch.manual_seed(0)
    >>> x, y = torch.randn(60, 2), torch.arange(60) % 2
    >>> model = DANN(nn.Sequential(nn.Linear(2, 8), nn.Tanh()), nn.Linear(8, 2), nn.Linear(8, 1))
    >>> history = fit(model, (x, y), x + 1, epochs=2, batch_size=20, progress=False)
    >>> [record["step"] for record in history.epochs]
    [3, 6]
    """
    if resume and checkpoint is None:
        raise ValueError("resume=True continues from a checkpoint: name its file by checkpoint=")
    if after_epoch is not None and not callable(after_epoch):
        raise TypeError(
            f"after_epoch is called with the record of an epoch, and {after_epoch!r} is no function"
        )
    run = Run(model, epochs, batch_size, seed, device)
    run.take_data(source, target, validation, scores)
    run.take_optimizer(optimizer, scheduler, max_grad_norm)
    run.take_patience(patience, keep_best)
    saved, there = _checkpoint(run, checkpoint, resume)
    bar = _bar(progress, run)
    with bar, checkpoints.seeded(run.seed + run.processes.rank, run.device):
        if saved is not None and there:
            saved.load()
            bar.update(run.step)
        if run.goes_on():
            run.check_schedule()
        while run.goes_on():
            record = run.epoch(bar)
            bar.set_postfix_str(_shown(record), refresh=False)
            if after_epoch is not None:
                after_epoch(record)
            # Behind it, so that a rate or λ that it set continues.
            if saved is not None:
                saved.save()
    run.finish()
    return run.history


def _checkpoint(run: Run, checkpoint: Any, resume: bool) -> tuple[Continuing | None, bool]:
    """What saves the run, if that is asked for, and whether there is a file to continue from."""
    path = None if checkpoint is None else Path(checkpoint)
    refused = None
    if path is not None and run.processes.rank == 0:
        try:
            checkpoints.check_writable(path)
        except OSError as error:
            refused = error
    if run.processes.any(refused is not None, run.device):
        raise refused or OSError(f"checkpoint {path} cannot be written")
    there = run.processes.any(path is not None and path.exists(), run.device)
    if there and not resume:
        raise FileExistsError(
            f"{path} is there: pass resume=True to continue from it, or another path"
        )
    return None if path is None else Continuing(run, path), there


def _shown(record: dict[str, float]) -> str:
    names = ("label_loss", "domain_loss", "domain_accuracy", "scale", "validation_accuracy")
    return ", ".join(f"{name} {record[name]:.3g}" for name in names if name in record)


class _NoBar:
    """Stands where no bar is asked for or to be had."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, steps: int) -> None: ...

    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...


def _bar(progress: bool | None, run: Run) -> Any:
    """tqdm's bar over all steps, in the first process alone."""
    if (progress is not None and not progress) or run.processes.rank:
        return _NoBar()
    try:
        from tqdm import tqdm
    except ImportError:
        if progress is None:
            return _NoBar()
        raise ImportError(
            'the progress bar needs tqdm: pip install "pyrevgrad[train]", or pass progress=False'
        ) from None
    return tqdm(total=run.steps, unit="step", desc="training", mininterval=0.5)
