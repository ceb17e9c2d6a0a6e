"""The demo's figures in words: the verdict, the summary file, and what machine they come from.

May import torch, the public functions, and the demo's other rooms.
"""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
from dataclasses import dataclass
from pathlib import Path

import pyrevgrad
from pyrevgrad import backends
from pyrevgrad.configuration import configuration

from . import timing
from .digits import ROTATION, Digits
from .maps import Maps
from .training import Accuracies, Settings

#: What the demo promises: points gained on the target, and the control's accuracy.
GAIN_PROMISED, CONTROL_PROMISED = 0.20, 0.95


@dataclass(frozen=True)
class Outcome:
    """All runs of one demo."""

    seeds: list[int]
    digits: Digits
    settings: Settings
    plain: list[Accuracies]
    adapted: list[Accuracies]

    @property
    def control(self) -> float:
        """Mean accuracy of source-only training on held-out source."""
        return statistics.mean(run.source[-1] for run in self.plain)

    @property
    def gains(self) -> list[float]:
        """Accuracy gained on unseen target, per seed."""
        pairs = zip(self.plain, self.adapted, strict=True)
        return [with_it.target[-1] - without.target[-1] for without, with_it in pairs]


def shortfall(outcome: Outcome) -> str | None:
    """The sentence that says which promise was not kept; None if all were."""
    gain = statistics.mean(outcome.gains)
    if outcome.control < CONTROL_PROMISED:
        return (
            f"The source-only control reached {100 * outcome.control:.1f} % on held-out source, "
            f"below the {100 * CONTROL_PROMISED:.0f} % that makes the comparison fair."
        )
    if gain < GAIN_PROMISED:
        return (
            f"GradientReversal gained {100 * gain:.1f} points on the target, "
            f"below the {100 * GAIN_PROMISED:.0f} points that the demo promises."
        )
    return None


def kept(outcome: Outcome) -> str:
    """The sentence that says that the promises were kept."""
    return (
        f"As promised: at least {100 * GAIN_PROMISED:.0f} points gained "
        f"({100 * statistics.mean(outcome.gains):.1f}), and at least "
        f"{100 * CONTROL_PROMISED:.0f} % for source-only training on held-out source "
        f"({100 * outcome.control:.1f} %)."
    )


def processor() -> str:
    """The processor's name, as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def serving_backend() -> str:
    """The backend that serves float32 on the CPU here, and why where it is not the native one."""
    configured = configuration()
    name = backends.forced() or configured["cpu tensors"]
    if name == "native":
        return "native backend"
    reason = "asked for" if backends.forced() else f"native {configured['native']}"
    return f"{name} backend, plain PyTorch ({reason})"


def versions() -> str:
    """Python and the packages that the figures depend on."""
    packages = ("torch", "numpy", "scikit-learn", "matplotlib")
    ours = [f"pyrevgrad {pyrevgrad.__version__}", f"python {platform.python_version()}"]
    return ", ".join(ours + [f"{name} {importlib.metadata.version(name)}" for name in packages])


def spread(values: list[float]) -> str:
    """Mean, and lowest to highest, in percent or points."""
    mean, low, high = (100 * f(values) for f in (statistics.mean, min, max))
    return f"{mean:5.1f}  ({low:.1f} to {high:.1f})"


def accuracy_lines(outcome: Outcome) -> list[str]:
    """The table of last-epoch accuracies."""
    lines = [
        f"{'accuracy, %: mean (lowest to highest seed)':44}{'without reversal':26}with reversal",
    ]
    for name, field in (
        ("target, unseen images", "target"),
        ("target, images trained on without labels", "target_in_training"),
        ("source, held out", "source"),
        ("domain head (50 = cannot tell)", "domain"),
    ):
        plain, adapted = (
            spread([getattr(run, field)[-1] for run in runs])
            for runs in (outcome.plain, outcome.adapted)
        )
        lines.append(f"  {name:42}{plain:26}{adapted}")
    lines.append(f"  gain on unseen target, points: {spread(outcome.gains)}")
    for seed, plain_run, adapted_run in zip(
        outcome.seeds, outcome.plain, outcome.adapted, strict=True
    ):
        lines.append(
            f"    seed {seed}: {100 * plain_run.target[-1]:.1f} -> "
            f"{100 * adapted_run.target[-1]:.1f}"
        )
    return lines


def setting_text(outcome: Outcome) -> str:
    """What was trained on what, and when labels were used."""
    settings, digits = outcome.settings, outcome.digits
    parts = (digits.source, digits.source_held_out, digits.target, digits.target_unseen)
    source, held_out, target, unseen = (len(part.labels) for part in parts)
    return f"""\
scikit-learn's handwritten digits (8x8, real), split anew by each seed: {source} source,
{held_out} held-out source, {target} target and {unseen} unseen target. The target parts are other
images, turned {ROTATION:g} degrees counter-clockwise. MLP 64-128-64-10, domain head 64-128-1;
{settings.epochs} epochs, batches of {settings.batch} + {settings.batch}, SGD at \
{settings.learning_rate:g} annealed as Ganin's, \
momentum {settings.momentum:g}; reversal scale
by Ganin's schedule, gamma {settings.gamma:g}. Both trainings share initial weights, batches and \
steps; without
reversal its scale is 0: the domain head learns and sends nothing back. Last-epoch weights, no
selection. Target labels were used for these figures and pictures alone, after each training.
The settings were chosen beforehand, by held-out source and target accuracy on seeds 100 to 107."""


def timing_lines(times: timing.Timings) -> list[str]:
    """Medians, one line per size."""
    columns = {
        timing.FUSED_GUIDED: ("guided", "fused"),
        timing.GUIDED_IDIOM: ("guided", "idiom"),
        timing.GUIDED_STRONGEST: ("guided", "strongest"),
        timing.FUSED_REVERSED: ("reversed", "fused"),
        timing.REVERSED_IDIOM: ("reversed", "idiom"),
        timing.PLAIN: ("torch", "relu"),
    }
    lines = [
        f"forward + backward of one relu, median microseconds of {times.rounds} "
        "interleaved rounds,",
        f"float32, {times.threads} thread(s), results allocated in every call",
        " " * 12 + "".join(f"{first:>11}" for first, _ in columns.values()),
        f"{'elements':>12}" + "".join(f"{second:>11}" for _, second in columns.values()),
    ]
    for place, size in enumerate(times.sizes):
        values = (f"{times.microseconds[name][place]:11.1f}" for name in columns)
        lines.append(f"{size:12d}" + "".join(values))
    return lines


def text(
    outcome: Outcome,
    maps: Maps,
    times: timing.Timings,
    backend: str,
    seconds: float,
    verdict: str,
) -> str:
    """The whole summary file."""

    def cosines(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.2f}" for name, value in values.items())

    lines = [
        "pyrevgrad demo",
        f"  {versions()}",
        f"  {processor()}; {backend}",
        f"  seeds {', '.join(map(str, outcome.seeds))}; wall time {seconds:.0f} s",
        "",
        setting_text(outcome),
        "",
        *accuracy_lines(outcome),
        "",
        verdict,
        "",
        "input gradients of the predicted class, mean cosine over the unseen target images",
        f"  between map and image:          {cosines(maps.image_cosines)}",
        f"  between maps of two classes:    {cosines(maps.class_cosines)}",
        "",
        *timing_lines(times),
        "",
    ]
    return "\n".join(lines)
