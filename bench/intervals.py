"""A bootstrap interval of paired ratios, and what may be said of it. Imports numpy alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 4000
CONFIDENCE = 0.95
NOISY = "too noisy to tell"


@dataclass(frozen=True)
class Interval:
    """The median of the paired ratios and its bootstrap interval."""

    ratio: float
    low: float
    high: float

    def verdict(self, margin: float) -> str:
        """``slower`` or ``faster`` where the whole interval is beyond the margin, else ``same``; of
        an interval that reaches beyond the margin and is wider than it, that it cannot tell.

        Examples
        --------
        >>> Interval(1.2, 1.1, 1.3).verdict(0.05), Interval(1.2, 1.04, 1.3).verdict(0.05)
        ('slower', 'too noisy to tell')
        >>> Interval(1, 0.97, 1.03).verdict(0.05), Interval(1.05, 1.04, 1.06).verdict(0.05)
        ('same', 'same')
        >>> Interval(0.8, 0.7, 0.9).verdict(0.05)
        'faster'
        """
        if self.low > 1 + margin:
            return "slower"
        if self.high < 1 / (1 + margin):
            return "faster"
        within = 1 / (1 + margin) <= self.low and self.high <= 1 + margin
        return NOISY if self.high - self.low > margin and not within else "same"


def bootstrap(
    launches: Sequence[Sequence[float]], resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The percentile interval of the median ratio over rounds that lie in launches.

    Rounds of one pair of processes share where their memory lies, so that a launch is drawn first
    and rounds within it: more rounds do not narrow what only more launches can.

    Parameters
    ----------
    launches : sequence of sequences of float
        By launch, a ratio for each round.

    Raises
    ------
    ValueError
        There is no ratio.

    Examples
    --------
    >>> bootstrap([[1.1, 1.1], [1.1]])
    Interval(ratio=1.1, low=1.1, high=1.1)
    """
    filled = [np.asarray(ratios, dtype=np.float64) for ratios in launches if len(ratios)]
    if not filled:
        raise ValueError("no ratios to take an interval of")
    generator = np.random.default_rng(seed)
    lengths = np.array([len(ratios) for ratios in filled])
    padded = np.zeros((len(filled), lengths.max()))
    for place, ratios in enumerate(filled):
        padded[place, : len(ratios)] = ratios
    launch = generator.integers(len(filled), size=(resamples, len(filled), 1))
    drawn = generator.random((resamples, len(filled), lengths.max()))
    medians = np.median(padded[launch, (drawn * lengths[launch]).astype(int)], axis=(1, 2))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, (tail, 100 - tail))
    return Interval(float(np.median(np.concatenate(filled))), float(low), float(high))
