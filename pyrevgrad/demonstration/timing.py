"""Times the fused activations against the eager idioms, forward + backward, on this machine.

May import torch, the public functions and the opponents of the bench; nothing of the demo.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

import pyrevgrad

from ..bench import idioms, strongest

SCALE = 0.5
FUSED_GUIDED, FUSED_REVERSED = "guided relu, fused", "reversed relu, fused"
GUIDED_IDIOM, GUIDED_STRONGEST = "guided relu, eager idiom", "guided relu, strongest eager"
REVERSED_IDIOM, PLAIN = "reversed relu, eager idiom", "plain torch relu"
#: Seconds that one sample of a contestant should take, so that the clock's grain is small.
SAMPLE_SECONDS = 1e-3


def contestants() -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """The forwards to time, by name."""
    guided, reversed_ = pyrevgrad.GUIDED.scaled(SCALE), pyrevgrad.reverse(SCALE)
    return {
        FUSED_GUIDED: lambda x: pyrevgrad.activation(x, "relu", rule=guided),
        GUIDED_IDIOM: idioms.idiom("relu", "guided_scaled", guided),
        GUIDED_STRONGEST: strongest.function("relu", "guided_scaled", guided),
        FUSED_REVERSED: lambda x: pyrevgrad.activation(x, "relu", rule=reversed_),
        REVERSED_IDIOM: idioms.idiom("relu", "reverse", reversed_),
        PLAIN: torch.relu,
    }


@dataclass(frozen=True)
class Timings:
    """Median microseconds of forward + backward, by contestant, one per size."""

    sizes: list[int]
    microseconds: dict[str, list[float]]
    rounds: int
    threads: int

    def ratio(self, slow: str, fast: str) -> list[float]:
        """How many times longer `slow` takes than `fast`, one per size."""
        pairs = zip(self.microseconds[slow], self.microseconds[fast], strict=True)
        return [numerator / denominator for numerator, denominator in pairs]


def forward_and_backward(
    forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, g: torch.Tensor
) -> torch.Tensor:
    """The gradient that `forward` sends to `x`, a non-leaf: a leaf would add a clone."""
    (gradient,) = torch.autograd.grad(forward(x), x, g)
    return gradient


def check_agreement(x: torch.Tensor, g: torch.Tensor) -> None:
    """Raise RuntimeError unless the contestants of one rule send back equal gradients."""
    results = {name: forward_and_backward(call, x, g) for name, call in contestants().items()}
    for fused, eager in (
        (FUSED_GUIDED, GUIDED_IDIOM),
        (FUSED_GUIDED, GUIDED_STRONGEST),
        (FUSED_REVERSED, REVERSED_IDIOM),
    ):
        if not torch.equal(results[fused], results[eager]):
            raise RuntimeError(f"'{fused}' and '{eager}' disagree, so their times mean nothing")


def sample(call: Callable[[], object], repeats: int) -> float:
    """Mean microseconds of `repeats` calls in a row, after one that leaves its own heap behind.

    Without that call a large buffer is fresh or not by what the contestant before freed.
    """
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats * 1e6


def measure(sizes: list[int], rounds: int, after_size: Callable[[], Any] = lambda: None) -> Timings:
    """Medians over interleaved rounds: each round samples every contestant, in shuffled order.

    Every call allocates its results afresh. float32, torch's current number of threads.

    Parameters
    ----------
    sizes : list of int
        Elements.
    rounds : int
        Samples of each contestant at each size.
    after_size : callable
        Called after each size, for a progress bar.

    Raises
    ------
    RuntimeError
        If two contestants that should agree do not.
    """
    medians: dict[str, list[float]] = {name: [] for name in contestants()}
    for size in sizes:
        generator = torch.Generator().manual_seed(size)
        leaf = torch.randn(size, generator=generator).requires_grad_()
        x, g = leaf.view_as(leaf), torch.randn(size, generator=generator)
        check_agreement(x, g)
        calls = {
            name: partial(forward_and_backward, forward, x, g)
            for name, forward in contestants().items()
        }
        repeats = {
            name: max(1, round(SAMPLE_SECONDS * 1e6 / sample(call, 3)))
            for name, call in calls.items()
        }
        samples: dict[str, list[float]] = {name: [] for name in calls}
        order = random.Random(size)
        for _ in range(rounds):
            for name in order.sample(list(calls), len(calls)):
                samples[name].append(sample(calls[name], repeats[name]))
        for name, values in samples.items():
            medians[name].append(statistics.median(values))
        after_size()
    return Timings(list(sizes), medians, rounds, torch.get_num_threads())
