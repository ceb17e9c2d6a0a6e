"""The fit of cost against size is right on made-up costs, and layouts are what they are called.

It runs the suite's room of scaling with next to no rounds.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmark suite is in the repository only", allow_module_level=True)
# At the end of the path: the installed package is what is measured, never the checkout.
sys.path.append(str(ROOT))

from bench import scaling  # noqa: E402
from bench.timing import Effort  # noqa: E402

SIZES = [1 << e for e in range(10, 25)]


def test_a_line_is_found_again():
    found = scaling.fit(SIZES, [20e-6 + 0.7e-9 * n for n in SIZES])
    assert found.fixed == pytest.approx(20e-6) and found.each == pytest.approx(0.7e-9)
    assert found.r_squared == pytest.approx(1) and found.worst == pytest.approx(0, abs=1e-9)


def test_noise_of_three_percent_moves_a_line_by_no_more():
    generator = random.Random(3)
    seconds = [(20e-6 + 0.7e-9 * n) * generator.gauss(1, 0.03) for n in SIZES]
    found = scaling.fit(SIZES, seconds)
    assert found.fixed == pytest.approx(20e-6, rel=0.05)
    assert found.each == pytest.approx(0.7e-9, rel=0.05)
    assert found.r_squared > 0.99 and abs(found.worst) < 0.1


def test_fit_is_that_of_weighted_least_squares_by_its_normal_equations():
    generator = random.Random(5)
    seconds = [(1e-5 + 1e-9 * n) * generator.uniform(0.7, 1.4) for n in SIZES]
    n, t = np.array(SIZES, dtype=float), np.array(seconds)
    w = t**-2
    each = (w.sum() * (w * n * t).sum() - (w * n).sum() * (w * t).sum()) / (
        w.sum() * (w * n * n).sum() - (w * n).sum() ** 2
    )
    fixed = ((w * t).sum() - each * (w * n).sum()) / w.sum()
    found = scaling.fit(SIZES, seconds)
    assert found.each == pytest.approx(each, rel=1e-6)
    assert found.fixed == pytest.approx(fixed, rel=1e-6)
    # Of the weighted mean as the other model, which a line can only better.
    residual = (w * (t - fixed - each * n) ** 2).sum()
    about_mean = (w * (t - (w * t).sum() / w.sum()) ** 2).sum()
    assert found.r_squared == pytest.approx(1 - residual / about_mean)


def test_a_cliff_at_one_size_is_the_largest_deviation():
    seconds = [20e-6 + 0.7e-9 * n for n in SIZES]
    seconds[8] *= 2
    found = scaling.fit(SIZES, seconds)
    assert found.worst_at == SIZES[8] and 0.7 < found.worst < 1.1


def test_a_cost_that_grows_faster_than_the_size_is_no_line():
    found = scaling.fit(SIZES, [1e-9 * n**1.5 for n in SIZES])
    assert found.r_squared < 0.9 and abs(found.worst) > 0.5


def test_a_small_size_counts_as_much_as_a_large_one():
    """Unweighted, R² would be 1 to six places whatever a call costs at 2^10."""
    seconds = [20e-6 + 0.7e-9 * n for n in SIZES]
    seconds[0] *= 3
    found = scaling.fit(SIZES, seconds)
    assert found.worst_at == SIZES[0] and found.worst > 1


@pytest.mark.parametrize("sizes", [[1, 2], [1, 1, 2], [5]])
def test_two_sizes_are_no_ground_for_a_line(sizes):
    with pytest.raises(ValueError, match="three sizes or more"):
        scaling.fit(sizes, [1.0] * len(sizes))


def test_a_time_of_zero_is_refused():
    with pytest.raises(ValueError, match="times must be positive"):
        scaling.fit([1, 2, 3], [1.0, 0.0, 1.0])


def test_layouts_have_the_shape_and_the_order_of_memory_that_they_are_named_for():
    made = {name: scaling.laid_out(name, 2, 3, 4, torch.float32) for name in scaling.LAYOUTS}
    assert {tuple(x.shape) for x in made.values()} == {(2, 3, 4, 4)}
    strides = {name: x.stride() for name, x in made.items()}
    assert strides["contiguous"] == (48, 16, 4, 1)
    assert strides["channels_last"] == (48, 1, 12, 3)
    assert strides["transposed"] == (16, 32, 1, 4)
    assert strides["strided slice"] == (96, 32, 8, 2)
    for name, x in made.items():
        inner = scaling._inner(x)
        assert inner.stride() == strides[name] and inner.requires_grad and not inner.is_leaf


def test_an_unknown_layout_lists_the_layouts():
    with pytest.raises(ValueError, match="no layout 'nhwc'; there are contiguous, channels_last"):
        scaling.laid_out("nhwc", 1, 1, 1, torch.float32)


def test_rows_hold_every_size_layout_and_fit_and_the_section_shows_them():
    effort = Effort(0.0, 2, 2, 0.0)
    rows = [*scaling.size_rows([64, 128, 256], effort), *scaling.layout_rows([(2, 3, 4)], effort)]
    count = {kind: sum(row["kind"] == kind for row in rows) for kind in ("size", "fit", "layout")}
    pairs = 2 * len(scaling.CASES)
    assert count == {"size": 3 * pairs, "fit": pairs, "layout": 2 * len(scaling.LAYOUTS)}
    text = scaling.section(rows)
    assert "| ns an element | 2⁶ | 2⁷ | 2⁸ |" in text
    for layout in scaling.LAYOUTS:
        assert f"| 2 × 3 × 4 × 4 | {layout} | " in text
