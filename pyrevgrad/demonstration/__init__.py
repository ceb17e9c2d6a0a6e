"""The demo: digits with and without GradientReversal, gradient maps under three rules, timings.

May import everything public and the opponents of the bench; matplotlib, scikit-learn and tqdm only
once `main` runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..checks import make_folder, missing

if TYPE_CHECKING:
    import torch

    from .summary import Outcome
    from .timing import Timings

#: What the extra `demo` installs, by the name it is imported under.
NEEDED = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}
NOT_REACHED, NOT_INSTALLED, WRONG, INTERRUPTED = 1, 2, 2, 130
QUICK_VERDICT = "A quick run: the promised gain and the source-only control were not checked."


@dataclass(frozen=True)
class Amount:
    """How much one run does: epochs per training, powers of two to time, rounds of timing."""

    epochs: int
    powers: range
    rounds: int


FULL = Amount(epochs=80, powers=range(10, 23), rounds=21)
QUICK = Amount(epochs=4, powers=range(10, 17, 3), rounds=3)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line of ``python -m pyrevgrad demo``; exits with status 2 if it is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m pyrevgrad demo",
        description="Train on real digits with and without GradientReversal, draw gradient maps "
        "under three rules, time fused against eager, and leave three pictures and a summary.",
    )
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=5, help="how many; default: %(default)s")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="one seed, few epochs and small sizes: shows that everything runs, proves nothing",
    )
    options = parser.parse_args(arguments)
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    if options.out.exists() and not options.out.is_dir():
        parser.error(f"--out must be a folder, and {options.out} is a file")
    return options


def train_all(seeds: list[int], epochs: int) -> tuple[Outcome, torch.nn.Module]:
    """Train both ways for every seed, scoring each training when it is over.

    Also returns the classifier that the first seed trained with the reversal.
    """
    from tqdm import tqdm

    from . import digits, summary, training

    settings = training.Settings(epochs=epochs)
    plain: list[training.Accuracies] = []
    adapted: list[training.Accuracies] = []
    classifiers = []
    with tqdm(
        total=2 * len(seeds) * epochs, unit="epoch", desc="training", mininterval=0.5
    ) as progress:
        for seed in seeds:
            data = digits.load(seed)
            for reversal, scores in ((False, plain), (True, adapted)):
                progress.set_postfix_str(f"seed {seed}, {'with' if reversal else 'no'} reversal")
                trained = training.train(
                    data.source.flat,
                    data.source.labels,
                    data.target.flat,
                    reversal=reversal,
                    seed=seed,
                    settings=settings,
                    after_epoch=progress.update,
                )
                scores.append(training.score(trained, data))
            classifiers.append(trained.classifier)
    outcome = summary.Outcome(seeds, digits.load(seeds[0]), settings, plain, adapted)
    return outcome, classifiers[0]


def time_all(amount: Amount) -> Timings:
    """Time fused against eager over the sizes."""
    from tqdm import tqdm

    from . import timing

    sizes = [2**power for power in amount.powers]
    with tqdm(total=len(sizes), unit="size", desc="timing", mininterval=0.5) as progress:
        return timing.measure(sizes, amount.rounds, progress.update)


def run(options: argparse.Namespace) -> int:
    """Do all of it and leave the four files; returns the exit status."""
    from . import maps, pictures, summary

    start = time.perf_counter()
    amount = QUICK if options.quick else FULL
    seeds = list(range(1 if options.quick else options.seeds))
    outcome, classifier = train_all(seeds, amount.epochs)
    unseen = outcome.digits.target_unseen
    drawn = maps.draw_from(classifier, unseen.images, unseen.labels)
    times = time_all(amount)
    backend = summary.serving_backend()
    pictures.draw_curves(options.out / "curves.png", outcome.digits, outcome.adapted, outcome.plain)
    pictures.draw_maps(options.out / "maps.png", drawn)
    pictures.draw_timings(options.out / "timings.png", times, backend, summary.processor())
    short = None if options.quick else summary.shortfall(outcome)
    verdict = QUICK_VERDICT if options.quick else short or summary.kept(outcome)
    seconds = time.perf_counter() - start
    text = summary.text(outcome, drawn, times, backend, seconds, verdict)
    (options.out / "summary.txt").write_text(text, encoding="utf-8")
    print(text)
    print(f"curves.png, maps.png, timings.png and summary.txt are in {options.out}")
    if short:
        print(short, file=sys.stderr)
    return NOT_REACHED if short else 0


def main(arguments: Sequence[str]) -> int:
    """Run the demo.

    Parameters
    ----------
    arguments : sequence of str
        What follows ``python -m pyrevgrad demo``: ``--out``, ``--seeds``, ``--quick``.

    Returns
    -------
    int
        0; 1 if the promised gain or the control was not reached; 2 if a package is missing or the
        folder cannot be made; 130 after an interrupt.
    """
    options = parse(arguments)
    if absent := missing("demo", NEEDED):
        print(f"The demo {absent}", file=sys.stderr)
        return NOT_INSTALLED
    try:
        make_folder(options.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return WRONG
    import torch

    threads = torch.get_num_threads()
    # The layers are tiny, and two threads on a busy machine spend the time waiting for each other.
    torch.set_num_threads(1)
    try:
        return run(options)
    except KeyboardInterrupt:
        print("interrupted; another run begins anew", file=sys.stderr)
        return INTERRUPTED
    finally:
        torch.set_num_threads(threads)
