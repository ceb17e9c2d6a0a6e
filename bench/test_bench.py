"""The cases for pytest-benchmark, so that its compare and histogram tools work.

``python -m pytest bench/test_bench.py --benchmark-autosave``, then ``--benchmark-compare``; ``-k``
chooses by case, provider and size. Imports cases and providers. ``python -m bench`` stays the
instrument for ratios, since it interleaves what pytest-benchmark times one after the other.
"""

from __future__ import annotations

import pytest
import torch

from . import providers
from .cases import Case, default_cases
from .providers import Skipped

pytest.importorskip("pytest_benchmark")

SIZES = (1 << 10, 1 << 20)
# A compilation takes longer than everything else here.
PROVIDERS = tuple(name for name in providers.NAMES if name != "idiom+compile")


@pytest.mark.benchmark(max_time=0.2, min_rounds=5, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("case", default_cases(quick=False), ids=lambda case: case.name)
def test_forward_and_backward(benchmark, case: Case, name: str, elements: int) -> None:
    """Forward and backward of one provider in float32, gated by the reference."""
    without = {other: "another test" for other in providers.NAMES if other != name}
    made = providers.build(case, torch.float32, without)
    provider = next(p for p in made if p.name == name)
    if isinstance(provider, Skipped):
        pytest.skip(provider.reason)
    x, g = providers.tensors(elements, torch.float32)
    providers.check(provider, case, x, g, providers.expected(case, x, g)[name])
    benchmark.group = f"{case.name} {elements}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark(provider.step, x, g)
