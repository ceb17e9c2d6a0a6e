"""What a comparison takes for the same result of two versions, and what for another."""

from __future__ import annotations

import pytest
import torch

import pyrevgrad

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import compare, contender

RESULTS = [
    (size, dtype)
    for size in (16, 1 << 16, 1 << 20)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
]
each_result = pytest.mark.parametrize(("size", "dtype"), RESULTS)


def said_of(one: torch.Tensor, other: torch.Tensor) -> str | None:
    return compare.refusal(contender.summary([one]), contender.summary([other]))


def gradient(size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(3)).to(dtype)


@each_result
def test_a_rounding_or_two_an_element_is_no_other_result(size, dtype):
    gx = gradient(size, dtype)
    signs = torch.randint(-2, 3, (size,), generator=torch.Generator().manual_seed(4))
    rounded = (gx.double() * (1 + signs * torch.finfo(dtype).eps / 2)).to(dtype)
    assert not torch.equal(rounded, gx) and said_of(gx, rounded) is None
    # One version truncates what the other rounds.
    cut = (gx.double() * (1 - torch.finfo(dtype).eps)).to(dtype)
    assert said_of(gx, cut) is None


@each_result
def test_a_half_of_the_gradient_zeroed_is_another_result_at_every_size(size, dtype):
    gx = gradient(size, dtype)
    kept = torch.rand(size, generator=torch.Generator().manual_seed(5)) > 0.5
    assert "different results" in str(said_of(gx, gx * kept))
    assert "different results" in str(said_of(gx * kept, gx))


@each_result
def test_a_wrong_sign_or_amount_of_scale_is_another_result_at_every_size(size, dtype):
    gx = gradient(size, dtype)
    for factor in (-1.0, 0.5, 1.1, 0.0, float("nan")):
        assert "different results" in str(said_of(gx, gx * factor))


@pytest.mark.parametrize(("size", "dtype"), [pair for pair in RESULTS if pair[0] > 16])
def test_a_wrong_gate_in_a_few_per_mille_of_the_places_is_another_result(size, dtype):
    gx, places = gradient(size, dtype), torch.Generator().manual_seed(6)
    gated = gx * (torch.rand(size, generator=places) > 0.003)
    assert 0 < (gated != gx).sum() < 0.005 * size
    assert "different results" in str(said_of(gx, gated))


def test_results_of_other_sizes_are_another_result():
    gx = gradient(1 << 16, torch.float32)
    assert said_of(gx, gx[: 1 << 15]) == "the versions compute results of different sizes"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_rule_is_another_result_in_a_large_case(dtype, monkeypatch):
    guided = contender.Contender().prepare(f"relu/guided, 65536 {dtype}")
    monkeypatch.setattr(pyrevgrad, "GUIDED", pyrevgrad.DECONVNET)
    other = contender.Contender().prepare(f"relu/guided, 65536 {dtype}")
    assert "different results" in str(compare.refusal(guided, other))
