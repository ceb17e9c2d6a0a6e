"""The options of ``python -m pyrevgrad train``. Imports what names the choices."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from . import datasets, networks

#: scikit-learn takes 32 bits, and the moons' two domains twice the seed and a bit.
LAST_SEED = 2**31 - 2
#: What says nothing where the source alone trains.
OF_THE_REVERSAL = ("scale", "schedule", "weight")


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Prints the defaults that say something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False
        return action.help if plain else super()._get_help_string(action)


def parser() -> argparse.ArgumentParser:
    """The options of ``train``."""
    made = argparse.ArgumentParser(
        prog="python -m pyrevgrad train",
        description="Train on a labelled source and an unlabelled target by gradient reversal. "
        "Leaves metrics.csv, curves.png, embedding.png and a checkpoint for each seed.",
        formatter_class=_Defaults,
    )
    add = made.add_argument_group("data: one of --data, or --source with --target").add_argument
    add("--data", choices=("moons", "digits"), help="of scikit-learn, in two domains")
    add("--shift", choices=datasets.SHIFTS, default="rotated", help="of the target digits")
    add("--source", type=Path, help=".npz with x and y")
    add("--target", type=Path, help=".npz with x; its y, if there, is only scored")
    add = made.add_argument_group("method").add_argument
    add("--method", choices=networks.METHODS, default="dann", help="none: the source alone trains")
    add("--scale", type=float, default=1.0, help="λ of the reversal, where its schedule ends")
    add("--schedule", choices=networks.SCHEDULES, default="ganin", help="of λ over the steps")
    add("--weight", type=float, default=1.0, help="of the domain loss, for head and features")
    add = made.add_argument_group("training").add_argument
    add("--epochs", type=int, default=80, help="passes over the source")
    add("--batch-size", type=int, default=32, help="samples of each domain in a step")
    add("--rate", type=float, default=0.1, help="learning rate of SGD with momentum .5")
    add("--patience", type=int, help="epochs without a lower validation loss before it stops")
    add("--seed", type=int, default=0, help="the first seed")
    add("--seeds", type=int, default=1, help="how many")
    add("--device", default="cpu", help="where to train")
    add("--out", type=Path, default=Path("out/train"), help="the folder to write to")
    add("--resume", action="store_true", help="continue from the checkpoints in --out")
    return made


def _settle(reader: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse the options that would do nothing, and give those that were not named their values."""
    named = [name for name in OF_THE_REVERSAL if getattr(options, name) is not None]
    if options.method == "none" and named:
        idle = ", ".join(f"--{name}" for name in named)
        reader.error(f"{idle} with --method none, which trains without a reversal")
    if options.data != "digits" and options.shift is not None:
        reader.error("--shift without --data digits, the only data that it changes")
    for name in ("shift", *OF_THE_REVERSAL):
        if getattr(options, name) is None:
            setattr(options, name, reader.get_default(name))
    if options.method == "none":
        # A λ that rose with the steps would keep a run from going on for more epochs.
        options.schedule = "constant"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line; exits with status 2 if it is wrong."""
    reader = parser()
    unset = argparse.Namespace(**dict.fromkeys(("shift", *OF_THE_REVERSAL)))
    options = reader.parse_args(arguments, unset)
    if (options.data is None) == (options.source is None and options.target is None):
        reader.error("give --data, or --source and --target")
    if options.data is None and (options.source is None or options.target is None):
        reader.error("--source and --target go together")
    _settle(reader, options)
    for name in ("epochs", "batch_size", "seeds"):
        if getattr(options, name) < 1:
            reader.error(f"--{name.replace('_', '-')} must be at least 1")
    if options.patience is not None and options.patience < 1:
        reader.error("--patience must be at least 1")
    if options.seed < 0:
        reader.error("--seed must be at least 0")
    if options.seed + options.seeds - 1 > LAST_SEED:
        reader.error(f"--seed, and the last of --seeds from there, must be at most {LAST_SEED}")
    for name in ("scale", "weight", "rate"):
        value = getattr(options, name)
        if not math.isfinite(value) or value < 0:
            reader.error(f"--{name} must be a finite number >= 0")
    if options.out.exists() and not options.out.is_dir():
        reader.error(f"--out must be a folder, and {options.out} is a file")
    try:
        torch.ones(1, device=options.device).item()
    except (RuntimeError, AssertionError) as error:
        reader.error(
            f"--device {options.device} cannot be trained on: {str(error).splitlines()[0]}"
        )
    return options
