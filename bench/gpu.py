"""``python -m bench.gpu FILE``: device times of the CUDA kernels, beside a copy in the same rounds.

Imports cases, kernels, providers, idioms' results through them, and timing's statistics. Every
timing starts with an L2 cache that holds nothing of the step and nothing to be written back, and a
queue that the host has filled ahead, so that what is timed is the device alone; the host's own time
is measured on tiny tensors.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import pyrevgrad
from pyrevgrad import backends, binding, triton_backend

from . import gate, kernels, providers, traffic
from .cases import DECONVNET, QUICK_CURVED, RELU_CASES, Case
from .timing import Measured, figures, paired_ratios

Row = dict[str, Any]
Step = Callable[[], object]
DTYPES = ("bfloat16", "float32")
#: Bytes of one tensor; the targets speak of this size.
LARGE = 256 << 20
ROUNDS = 100
#: What the device is asked for before and after: a clock that fell says why a figure is low.
CLOCKS = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")
#: Opponent to the least speed-up of forward and backward together, device time.
_GUIDED = {"idiom": 2.3, "eager-best": 1.8, "idiom+compile": 1.15, "plain": 1.0}
#: By case: guided relu with a scale, as the idiom is mostly written, and without, which is harder.
SPEEDUPS = {
    "relu/guided_scaled": _GUIDED,
    "relu/GUIDED": _GUIDED,
    "relu/reverse": {"idiom": 1.55, "plain": 1.0},
}
SHARES = {True: 0.95, False: 0.90}
HOST = 2.0


class DeviceTimer:
    """Seconds of the device between two events, the L2 cache filled with other memory before.

    `late` counts the timings in which the device may have waited for the host all the same.
    """

    def __init__(self, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        # Read, never written: lines to be written back would be a part of the step's time.
        self._other = torch.zeros(properties.L2_cache_size, dtype=torch.float32, device=device)
        self._start, self._end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        # The device waits so long while the host enqueues the rest: about a millisecond.
        self._cycles = 2_000_000
        self.late = 0

    def __call__(self, step: Step) -> float:
        for turn in range(4):
            seconds, in_time = self._once(step)
            if in_time:
                return seconds
            # The first time it may have been compiled.
            if turn:
                self._cycles = min(2 * self._cycles, 16_000_000)
        self.late += 1
        return seconds

    def _once(self, step: Step) -> tuple[float, bool]:
        self._other.sum()
        torch.cuda._sleep(self._cycles)
        self._start.record()
        kept = step()
        self._end.record()
        # The device has not begun: whatever it does from here on waits for nobody.
        in_time = not self._start.query()
        self._end.synchronize()
        del kept
        return self._start.elapsed_time(self._end) / 1e3, in_time


def rounds(
    steps: Mapping[str, Step], timer: Callable[[Step], float], count: int
) -> dict[str, Measured]:
    """Every step once a round, in a shuffled order, after three rounds that do not count."""
    generator = random.Random(0)
    samples: dict[str, list[float | None]] = {name: [] for name in steps}
    order = list(steps)
    for number in range(-3, count):
        generator.shuffle(order)
        for name in order:
            seconds = timer(steps[name])
            if number >= 0:
                samples[name].append(seconds)
    return {name: Measured(tuple(found), 1, 0.0) for name, found in samples.items()}


def tensors(nbytes: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """x and g of `nbytes` each."""
    generator = torch.Generator(device=device).manual_seed(0)
    x, g = (
        torch.randn(nbytes // dtype.itemsize, generator=generator, device=device).to(dtype)
        for _ in range(2)
    )
    return x, g


def kernel_rows(
    dtype: str,
    nbytes: int,
    device: torch.device,
    timer: Callable[[Step], float],
    count: int,
    backend: str = "native",
) -> list[Row]:
    """Each kernel's bandwidth as a share of ``copy_``'s in the same rounds, or why it has none."""
    x, g = tensors(nbytes, getattr(torch, dtype), device)
    made = []
    last: Case | None = None
    for kernel in kernels.kernels(None, compute=True):
        if backend == "triton" and not (kernel.selects or kernel.case.activation in QUICK_CURVED):
            continue  # a kernel takes a second to compile
        if kernel.case != last:
            wanted, last = gate.expected(kernel.case, x, g)["fused"], kernel.case
        row: Row = {"backend": backend, "kernel": kernel.name, "dtype": dtype}
        try:
            with pyrevgrad.backend(backend):
                kernels.check(kernel, x, g, wanted)
                steps = kernels.steps(kernel, x, g)
        except gate.GateError as error:
            made.append({**row, "refused": f"{error} of {dtype} by {backend}"})
            continue
        measured = rounds(steps, timer, count)
        row |= kernels.row_of(kernel, dtype, x.numel(), measured["kernel"], measured["copy"])
        row.pop("threads")
        row.pop("faults")
        made.append({**row, "target": SHARES[kernel.selects]})
    return made


def pair_rows(
    dtype: str,
    nbytes: int,
    device: torch.device,
    timer: Callable[[Step], float],
    count: int,
    cases: tuple[Case, ...] = RELU_CASES,
    without: Mapping[str, str] | None = None,
) -> list[Row]:
    """Forward and backward of the cases, ours and each opponent's; or why there is no time."""
    x, g = tensors(nbytes, getattr(torch, dtype), device)
    x = x.requires_grad_() * 1
    made = []
    for case in cases:
        built = providers.build(case, x.dtype, without or {}, device)
        passed, left_out = gate.gated(built, case, x, g)
        steps = {name: (lambda step=p.step: step(x, g)) for name, p in passed.items()}
        measured = rounds(steps, timer, count)
        for name in providers.NAMES:
            row: Row = {
                "case": case.name, "dtype": dtype, "elements": x.numel(), "provider": name,
                "bytes_per_element": traffic.bytes_per_element(name, case, dtype, "cuda"),
                "ceiling": traffic.ceiling(name, case, dtype, "cuda"),
                "target": SPEEDUPS.get(case.name, {}).get(name),
            }  # fmt: skip
            made.append(row | (left_out.get(name) or _timed(name, measured)))
    return made


def _timed(name: str, measured: Mapping[str, Measured]) -> Row:
    own, form = providers.fastest_form(name, measured)
    row: Row = {
        "median_s": own.seconds.median, "q1_s": own.seconds.q1, "q3_s": own.seconds.q3,
        "rounds": own.seconds.runs, **form,
    }  # fmt: skip
    ratios = paired_ratios(own, measured["fused"]) if "fused" in measured else []
    return row | figures("speedup", ratios) if ratios else row


def host_rows(device: torch.device, wait: Step, calls: int = 2000) -> list[Row]:
    """Host microseconds of forward and backward on 16 elements, beside ``F.relu``'s."""
    x = torch.randn(16, device=device).requires_grad_() * 1
    g = torch.randn(16, device=device)
    applies = {
        "F.relu": F.relu,
        "relu/GUIDED": lambda x: pyrevgrad.relu(x, pyrevgrad.GUIDED),
        "relu/reverse": lambda x: pyrevgrad.relu(x, pyrevgrad.reverse(0.3)),
    }
    best: dict[str, list[float]] = {name: [] for name in applies}
    for _ in range(7):
        for name, apply in applies.items():
            wait()
            start = time.perf_counter()
            for _ in range(calls):
                torch.autograd.grad(apply(x), x, g)
            best[name].append((time.perf_counter() - start) / calls)
    usual = sorted(best["F.relu"])[3]
    return [
        {"case": name, "median_s": sorted(found)[3], "times_relu": sorted(found)[3] / usual,
         "target": HOST}
        for name, found in best.items()
    ]  # fmt: skip


def missed(run: Mapping[str, Any]) -> list[str]:
    """The targets that a run did not reach or did not measure, a sentence each."""
    found = [row["refused"] for row in run["kernels"] if "refused" in row]
    found += [
        f"{row['kernel']} {row['dtype']} by {row['backend']}: {row['share']:.3f} of the copy, "
        f"target {row['target']}"
        for row in run["kernels"]
        if "share" in row and row["share"] < row["target"]
    ]
    for row in run["pairs"]:
        what = f"{row['case']} {row['dtype']}"
        if "refused" in row:
            found.append(row["refused"])
        elif row["provider"] == "fused" and "median_s" not in row:
            found.append(f"{what}: no time of ours: {row.get('skipped')}")
        elif row["target"] is not None and "speedup" not in row:
            reason = row.get("skipped", "ours has no time")
            found.append(f"{what}: no ratio to {row['provider']}: {reason}")
        elif row["target"] is not None and row["speedup"] < row["target"]:
            found.append(
                f"{what}: {row['speedup']:.3f} times faster than {row['provider']}, "
                f"target {row['target']}"
            )
    return found + [
        f"host time of {row['case']}: {row['times_relu']:.2f} times F.relu's, target {HOST}"
        for row in run["host"]
        if row["times_relu"] > row["target"]
    ]


def measure(
    device: torch.device,
    timer: Callable[[Step], float],
    wait: Step,
    nbytes: int = LARGE,
    count: int = ROUNDS,
    cases: tuple[Case, ...] = (*RELU_CASES, DECONVNET),
    dtypes: tuple[str, ...] = DTYPES,
    without: Mapping[str, str] | None = None,
    keep: Callable[[dict[str, Any]], object] = lambda run: None,
) -> dict[str, Any]:
    """The whole run; `keep` gets what there is of it after each table, the targets first."""
    run: dict[str, Any] = {"bytes_per_tensor": nbytes, "kernels": [], "pairs": []}
    run["host"] = host_rows(device, wait)
    keep(run)
    for dtype in dtypes:
        run["pairs"] += pair_rows(dtype, nbytes, device, timer, count, cases, without)
        keep(run)
    for dtype in dtypes:
        run["kernels"] += kernel_rows(dtype, nbytes, device, timer, count)
        keep(run)
    run["without_triton"] = triton_backend.load()[1]
    if not run["without_triton"]:
        for dtype in dtypes:
            run["kernels"] += kernel_rows(dtype, nbytes, device, timer, count, "triton")
            keep(run)
    run["missed"] = missed(run)
    return run


def clocks() -> str | None:
    """What nvidia-smi says of CLOCKS, or nothing where it is not there."""
    command = ["nvidia-smi", f"--query-gpu={','.join(CLOCKS)}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def warmed(device: torch.device, seconds: float = 1.0) -> None:
    """Copy for a while: a device that rests has a slow clock."""
    room = torch.zeros(2, 64 << 20, dtype=torch.uint8, device=device)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        room[0].copy_(room[1])
        torch.cuda.synchronize(device)


def describe(device: torch.device) -> dict[str, Any]:
    """The device and what runs on it."""
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "torch_cuda": torch.version.cuda,
        "build": backends.native().cuda_build(),
        "autograd": binding.WHY,
        "traffic": {dtype: traffic.item_size(dtype) for dtype in DTYPES},
    }


def on_this_device(
    quick: bool, keep: Callable[[dict[str, Any]], object] = lambda run: None, **chosen: Any
) -> dict[str, Any]:
    """Describe and measure the current device; `chosen` goes to `measure`.

    Raises
    ------
    BackendError
        The native CUDA kernels do not serve it; the message says why and what cures it.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    with pyrevgrad.backend("native"):
        pyrevgrad.relu(torch.empty(0, device=device))  # or a sentence on why it cannot
    # From here on no backend is named, which compiled code would follow where a user's does not.
    described = describe(device)
    timer = DeviceTimer(device)
    nbytes, count = (16 << 20, 5) if quick else (LARGE, ROUNDS)
    warmed(device)
    before = clocks()
    run = measure(
        device, timer, torch.cuda.synchronize, nbytes, count,
        keep=lambda run: keep({**described, **run}), **chosen,
    )  # fmt: skip
    about = {"late": timer.late, "clocks": [before, clocks()], "rounds": count}
    return {**described, **about, **run}


def main() -> int:
    """Measure on the current device and write one JSON file, anew after each table."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=main.__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--quick", action="store_true", help="smaller tensors, fewer rounds")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.exit(1, "there is no CUDA device; `make bench` measures the CPU\n")

    def keep(run: dict[str, Any]) -> None:
        options.file.write_text(json.dumps(run), encoding="utf-8")
        print(f"{len(run['pairs'])} rows of pairs, {len(run['kernels'])} of kernels", flush=True)

    keep(on_this_device(options.quick, keep))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
