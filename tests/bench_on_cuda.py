"""A rehearsal of the device's benchmark, by the device of cuda_device.py: all but the times.

Run by test_nodes_on_cuda.py in a process of its own, which has that device from the start. It may
import the package and its benchmarks.
"""

from __future__ import annotations

import cuda_device
import torch
from cuda_device import on

import pyrevgrad
from bench import gpu, providers
from bench.cases import DECONVNET, RELU_CASES

DEVICE = torch.device("cuda", 0)


def tensors(nbytes, dtype, device):
    assert device == DEVICE
    generator = torch.Generator().manual_seed(0)
    elements = nbytes // dtype.itemsize
    return tuple(on(0, torch.randn(elements, generator=generator).to(dtype)) for _ in range(2))


def timed(step):
    step()
    return 1e-3


def test_every_case_opponent_and_kernel_runs_and_passes_its_gate(monkeypatch):
    cuda_device.install()
    cuda_device.install_more()
    monkeypatch.setattr(gpu, "tensors", tensors)
    kept = []
    with pyrevgrad.backend("native"):
        run = gpu.measure(
            DEVICE, timed, lambda: None, nbytes=1 << 14, count=3,
            without=dict.fromkeys(providers.COMPILED, "a compiler would not know this device"),
            keep=lambda run: kept.append((len(run["pairs"]), len(run["kernels"]))),
        )  # fmt: skip
    rows = run["pairs"]
    assert not [row for row in rows if "refused" in row or "raised" in row.get("skipped", "")]
    timed_by = {(r["case"], r["dtype"], r["provider"]) for r in rows if "speedup" in r}
    for case in (*RELU_CASES, DECONVNET):
        for dtype in gpu.DTYPES:
            for provider in ("fused", "reference", "plain", "copy"):
                assert (case.name, dtype, provider) in timed_by
    assert {row["backend"] for row in run["kernels"]} == {"native"}
    assert kept[0] == (0, 0) and kept == sorted(kept) and kept[-1][1] == len(run["kernels"])
    assert "no CUDA device" in run["without_triton"]
