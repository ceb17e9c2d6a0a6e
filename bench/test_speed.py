"""The cases for pytest-benchmark, so that its compare and histogram tools work.

``python -m pytest bench --benchmark-autosave``, then again with ``--benchmark-compare``;
``--benchmark-histogram`` draws, with ``pip install 'pyrevgrad[bench]'``; ``-k`` chooses by case,
provider and size. Small, so that all of it
takes minutes: PYREVGRAD_BENCH_SIZES="1024 16777216" names other sizes. Imports cases and providers.
``python -m bench`` stays the instrument for ratios, since it interleaves what pytest-benchmark
times one after the other.
"""

from __future__ import annotations

import os

import pytest
import torch

from . import gate, machine, providers
from .cases import Case, default_cases
from .providers import Skipped

pytest.importorskip("pytest_benchmark", reason="pip install pytest-benchmark")

SIZES = [int(size) for size in os.environ.get("PYREVGRAD_BENCH_SIZES", "1024 1048576").split()]
# A compilation takes longer than everything else here.
PROVIDERS = tuple(name for name in providers.NAMES if name not in providers.COMPILED)


@pytest.fixture(scope="session", autouse=True)
def described() -> dict[str, object]:
    """What the figures are measured with, once."""
    return machine.describe()


# Other libraries may warn as they like.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.benchmark(max_time=0.1, min_rounds=5, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize("elements", SIZES)
@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("case", default_cases(quick=True), ids=lambda case: case.name)
def test_forward_and_backward(benchmark, described, case: Case, name: str, elements: int) -> None:
    """Forward and backward of one provider in float32, gated by the reference."""
    without = {other: "another test" for other in providers.NAMES if other != name}
    made = providers.build(case, torch.float32, without)
    (provider,) = [provider for provider in made if provider.name == name]
    if isinstance(provider, Skipped):
        pytest.skip(provider.reason)
    x, g = providers.tensors(elements, torch.float32)
    gate.check(provider, case, x, g, gate.expected(case, x, g)[name])
    benchmark.group = f"{case.name} {elements}"
    benchmark.extra_info["threads"] = torch.get_num_threads()
    for key in ("torch", "pyrevgrad", "peers", "processor", "commit", "dirty"):
        benchmark.extra_info[key] = described[key]
    benchmark(provider.step, x, g)
