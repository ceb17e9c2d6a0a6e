"""``python -m pyrevgrad train``: adapt between two domains, and leave metrics, plots, checkpoints.

Imports the options, datasets and networks beside it; matplotlib and scikit-learn once it runs.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from ..adversarial import DANN, DivergedError, History, fit
from ..checks import make_folder, missing
from . import arrays, datasets, networks
from .datasets import Domains
from .options import parse

#: What the extra `train` installs, by the name it is imported under.
NEEDED = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}
FAILED, WRONG, INTERRUPTED = 1, 2, 130
#: What tells nothing of a domain head that is not trained, behind a reversal that reverses nothing.
UNTRAINED = ("domain_loss", "domain_accuracy", "scale", "gradient_norm")


def load(options: argparse.Namespace, seed: int) -> Domains:
    """The two domains that were asked for."""
    if options.data == "moons":
        return datasets.moons_domains(seed)
    if options.data == "digits":
        return datasets.digits_domains(seed, options.shift)
    return arrays.load(options.source, options.target, seed)


def train(options: argparse.Namespace, data: Domains, seed: int) -> tuple[DANN, DANN, History]:
    """The network before and after training, and its history."""
    steps = options.epochs * -(-len(data.source[0]) // options.batch_size)
    shape = data.target.shape[1:]

    def built() -> DANN:
        schedule = networks.schedule_of(options.schedule, steps, options.scale)
        return networks.build(options.method, shape, data.classes, schedule, options.weight, seed)

    model = built().to(options.device)
    optimizer = torch.optim.SGD(model.parameters(), options.rate, momentum=0.5)
    scores = {} if data.target_test is None else {"target": data.target_test}
    checkpoint = options.out / f"seed-{seed}.pt"
    if options.resume and not checkpoint.exists():
        print(f"no {checkpoint}: seed {seed} starts anew")
    history = fit(
        model, data.source, data.target, epochs=options.epochs, batch_size=options.batch_size,
        optimizer=optimizer, validation=data.held_out, patience=options.patience, scores=scores,
        seed=seed, checkpoint=checkpoint, resume=options.resume,
    )  # fmt: skip
    if options.method == "none":
        for record in history.epochs:
            for name in UNTRAINED:
                del record[name]
    return built(), model.cpu(), history


def write_metrics(path: Path, histories: dict[int, History]) -> None:
    """One row for each seed and epoch."""
    # A run that was continued may have been scored on more than before.
    records = [record for history in histories.values() for record in history.epochs]
    columns = ["seed", *dict.fromkeys(name for record in records for name in record)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for seed, history in histories.items():
            writer.writerows({"seed": seed, **record} for record in history.epochs)


def summary(options: argparse.Namespace, name: str, histories: dict[int, History]) -> str:
    """What was trained and where it ended."""
    ends = [history.epochs[-1] for history in histories.values()]
    lines = [f"{name}, method {options.method}, {len(ends)} seed{'s' * (len(ends) > 1)}"]
    for key, title in (
        ("validation_accuracy", "held-out source accuracy"),
        ("target_accuracy", "target accuracy"),
        ("domain_accuracy", "domain accuracy (.5: they cannot be told apart)"),
    ):
        values = [end[key] for end in ends if key in end]
        if values:
            spread = f" (from {min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
            lines.append(f"{title}: {statistics.mean(values):.3f}{spread}")
    if "target_accuracy" not in ends[0]:
        lines.append("the target has no labels, so its accuracy is not known")
    stopped = [str(seed) for seed, history in histories.items() if history.stopped_early]
    if stopped:
        lines.append(f"stopped early: seed {', '.join(stopped)}")
    return "\n".join(lines)


def run(options: argparse.Namespace) -> int:
    """Train every seed and leave the files."""
    from . import pictures

    histories: dict[int, History] = {}
    diverged: dict[int, DivergedError] = {}
    for seed in range(options.seed, options.seed + options.seeds):
        data = load(options, seed)
        try:
            before, after, history = train(options, data, seed)
        except DivergedError as error:
            diverged[seed] = error
            continue
        if not histories:
            first = data, before, after
        histories[seed] = history
    if histories:
        write_metrics(options.out / "metrics.csv", histories)
        pictures.draw_curves(options.out / "curves.png", first[0].name, list(histories.values()))
        pictures.draw_embedding(options.out / "embedding.png", *first)
        print(summary(options, first[0].name, histories))
        print(f"metrics.csv, curves.png, embedding.png and the checkpoints are in {options.out}")
    for seed, why in diverged.items():
        print(f"seed {seed}: {why}. Try a smaller --rate or --weight.", file=sys.stderr)
    return FAILED if diverged else 0


def main(arguments: Sequence[str]) -> int:
    """Run the command.

    Parameters
    ----------
    arguments : sequence of str
        What follows ``python -m pyrevgrad train``.

    Returns
    -------
    int
        0; 1 if a loss of some seed was not finite; 2 for wrong data, a file in the way, a folder
        that cannot be written to or a missing package; 130 after an interrupt.
    """
    options = parse(arguments)
    if absent := missing("train", NEEDED):
        print(f"train {absent}", file=sys.stderr)
        return WRONG
    threads = torch.get_num_threads()
    # The layers are small, and on a busy machine threads would wait for each other.
    torch.set_num_threads(1)
    try:
        make_folder(options.out)
        return run(options)
    except KeyboardInterrupt:
        print("interrupted: the same command with --resume goes on from there", file=sys.stderr)
        return INTERRUPTED
    except FileExistsError as error:
        print(f"{str(error).split(':')[0]}: pass --resume, or another --out", file=sys.stderr)
        return WRONG
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return WRONG
    finally:
        torch.set_num_threads(threads)
