"""The fit of cost against size is right on made-up costs, and layouts are what they are called.

It runs the suite's rooms of sizes and layouts with next to no rounds.
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

from bench import allocations, gate, layouts, machine, scaling, sizes  # noqa: E402
from bench.timing import Effort  # noqa: E402

SIZES = [1 << e for e in range(10, 25)]


def test_a_line_is_found_again():
    found = sizes.fit(SIZES, [20e-6 + 0.7e-9 * n for n in SIZES])
    assert found.fixed == pytest.approx(20e-6) and found.each == pytest.approx(0.7e-9)
    assert found.r_squared == pytest.approx(1) and found.worst == pytest.approx(0, abs=1e-9)


def test_noise_of_three_percent_moves_a_line_by_no_more():
    generator = random.Random(3)
    seconds = [(20e-6 + 0.7e-9 * n) * generator.gauss(1, 0.03) for n in SIZES]
    found = sizes.fit(SIZES, seconds)
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
    found = sizes.fit(SIZES, seconds)
    assert found.each == pytest.approx(each, rel=1e-6)
    assert found.fixed == pytest.approx(fixed, rel=1e-6)
    # Of the weighted mean as the other model, which a line can only better.
    residual = (w * (t - fixed - each * n) ** 2).sum()
    about_mean = (w * (t - (w * t).sum() / w.sum()) ** 2).sum()
    assert found.r_squared == pytest.approx(1 - residual / about_mean)


def test_a_cliff_at_one_size_is_the_largest_deviation():
    seconds = [20e-6 + 0.7e-9 * n for n in SIZES]
    seconds[8] *= 2
    found = sizes.fit(SIZES, seconds)
    assert found.worst_at == SIZES[8] and 0.7 < found.worst < 1.1


def test_a_cost_that_grows_faster_than_the_size_is_no_line():
    found = sizes.fit(SIZES, [1e-9 * n**1.5 for n in SIZES])
    assert found.r_squared < 0.9 and abs(found.worst) > 0.5


def test_a_small_size_counts_as_much_as_a_large_one():
    """Unweighted, R² would be 1 to six places whatever a call costs at 2^10."""
    seconds = [20e-6 + 0.7e-9 * n for n in SIZES]
    seconds[0] *= 3
    found = sizes.fit(SIZES, seconds)
    assert found.worst_at == SIZES[0] and found.worst > 1


@pytest.mark.parametrize("few", [[1, 2], [1, 1, 2], [5]])
def test_two_sizes_are_no_ground_for_a_line(few):
    with pytest.raises(ValueError, match="three sizes or more"):
        sizes.fit(few, [1.0] * len(few))


def test_a_time_of_zero_is_refused():
    with pytest.raises(ValueError, match="times must be positive"):
        sizes.fit([1, 2, 3], [1.0, 0.0, 1.0])


def test_layouts_have_the_shape_and_the_order_of_memory_that_they_are_named_for():
    made = {name: layouts.laid_out(name, 2, 3, 4, torch.float32) for name in layouts.LAYOUTS}
    assert {tuple(x.shape) for x in made.values()} == {(2, 3, 4, 4)}
    strides = {name: x.stride() for name, x in made.items()}
    assert strides["contiguous"] == (48, 16, 4, 1)
    assert strides["channels_last"] == (48, 1, 12, 3)
    assert strides["transposed"] == (16, 32, 1, 4)
    assert strides["strided slice"] == (96, 32, 8, 2)
    for name, x in made.items():
        inner = layouts._inner(x)
        assert inner.stride() == strides[name] and inner.requires_grad and not inner.is_leaf


def test_an_unknown_layout_lists_the_layouts():
    with pytest.raises(ValueError, match="no layout 'nhwc'; there are contiguous, channels_last"):
        layouts.laid_out("nhwc", 1, 1, 1, torch.float32)


@pytest.fixture(scope="module")
def rows():
    effort = Effort(0.0, 2, 2, 0.0)
    found = [*layouts.rows([(2, 3, 4)], effort)]
    for way in allocations.USUAL:
        found += sizes.rows([64, 128, 256], effort, way)
        found += sizes.rows([64, 128], effort, way, sizes.Caches())
    return found


def test_rows_hold_every_size_state_layout_and_fit(rows):
    count = {kind: sum(row["kind"] == kind for row in rows) for kind in ("size", "fit", "layout")}
    cases, providers = len(sizes.CASES), 3
    assert count["size"] == 2 * (3 + 2) * cases * providers
    assert count["fit"] == 2 * 2 * cases, "ours and plain's, of warm caches in either memory"
    assert count["layout"] == 2 * len(layouts.LAYOUTS)


def test_a_row_says_the_bandwidth_and_its_share_of_a_copys(rows):
    for row in (row for row in rows if row["kind"] == "size"):
        moved = row["bytes_per_element"] * row["elements"]
        assert row["gigabytes_per_s"] == pytest.approx(moved / row["median_s"] / 1e9)
        assert row["share_low"] <= row["share"] <= row["share_high"]
        if row["provider"] == "copy":
            assert row["share"] == 1
    moved = {
        row["provider"]: row["bytes_per_element"]
        for row in rows
        if (row["case"], row.get("dtype")) == ("relu/GUIDED", "bfloat16") and "share" in row
    }
    # Of two bytes x, g and the results; a bit each way; y again.
    assert moved == {"fused": 8.25, "plain": 10, "copy": 8}


def test_the_tables_and_the_page_show_every_state(rows):
    text, page = scaling.section(rows), scaling.summary(rows)
    assert "| ns an element | threads | memory | caches | 2⁶ | 2⁷ | 2⁸ |" in text
    for way in allocations.USUAL:
        for caches in ("warm", "cold"):
            assert f"| relu/GUIDED, float32 | 1 | {way} | {caches} | " in text
            assert f"| relu/GUIDED, float32 | 1 | {way} | {caches} | " in page
    for layout in layouts.LAYOUTS:
        assert f"| 2 × 3 × 4 × 4 | {layout} | " in text
    assert "slower than plain in " in page


def test_rows_of_a_record_that_knows_one_state_are_shown_as_that(rows):
    """Records of earlier versions name neither memory nor caches, nor a share."""
    later = ("allocations", "caches", "gigabytes_per_s", "bytes_per_element")
    few = [
        {key: value for key, value in row.items() if key not in later and "share" not in key}
        for row in rows
        if row.get("allocations", "reused") == "reused" and row.get("caches", "warm") == "warm"
        and row.get("provider") != "copy"
    ]  # fmt: skip
    assert "| relu/GUIDED, float32 | 1 | reused | warm | " in scaling.section(few)
    assert "buffer" not in scaling.summary(few)


def test_a_result_that_is_wrong_at_one_end_has_no_time(monkeypatch):
    honest = sizes.steps

    def wrong(case, x, g):
        def step():
            y, gx = honest(case, x, g)["fused"]()
            gx[-1] += 1
            return y, gx

        return {**honest(case, x, g), "fused": step}

    monkeypatch.setattr(sizes, "steps", wrong)
    with pytest.raises(gate.GateError, match="fused gives a wrong gradient on relu/GUIDED, 10000"):
        list(sizes.rows([10000], Effort(0.0, 2, 2, 0.0), "reused"))


def test_emptying_the_caches_reads_twice_the_largest_of_them():
    assert sizes.Caches()._buffer.nbytes == 2 * machine.last_cache() >= 2 << 20
