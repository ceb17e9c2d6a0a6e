"""One version of pyrevgrad, timed on request: settings by lines on stdin, answers on stdout.

Imports torch and whatever pyrevgrad comes first on the path, by its public names alone, since the
other version may be an older one. Started by ``python -m bench.compare``.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], object]
#: (elements, dtype) of what is large enough for its kernels to count.
LARGE = ((1 << 16, "float32"), (1 << 20, "float32"), (1 << 20, "bfloat16"))
#: Elements summed into one number: so few that what is wrong in one of them is not lost.
BLOCK = 64
PAIRS = ("relu/guided", "relu/reverse", "leaky_relu/reverse", "tanh/reverse", "gelu/reverse")
QUICK_PAIRS = ("relu/guided", "gelu/reverse")


def names(quick: bool) -> list[str]:
    """The cases by name; some may be unknown to a version."""
    tiny = ["relu/guided", "relu/reverse", "gelu/reverse"]
    found = [f"{pair}, no grad, 16 float32" for pair in tiny[: 1 if quick else 3]]
    found += [f"{pair}, 16 float32" for pair in tiny]
    found += ["reverse_gradient, 16 float32", "GradientReversal, 16 float32"]
    found += ["ReversedLinear, 16 float32"]
    pairs = QUICK_PAIRS if quick else PAIRS
    found += [f"{pair}, {size} {dtype}" for size, dtype in LARGE for pair in pairs]
    # Results of 32 MiB, which no cache holds.
    found += [] if quick else [f"{pair}, {1 << 23} float32" for pair in QUICK_PAIRS]
    return [*found, "relu/guided, channels_last, 1048576 float32"]


def _tensors(size: int, dtype: str, last: bool) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (16, 64, 32, size // (1 << 15)) if last else (size,)
    x, g = (torch.randn(shape, generator=generator).to(getattr(torch, dtype)) for _ in range(2))
    if last:
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    return x.requires_grad_() * 1, g


def _apply(what: str) -> Callable[[Tensor], Tensor]:
    import pyrevgrad

    if what == "reverse_gradient":
        return lambda x: pyrevgrad.reverse_gradient(x, 0.5)
    if what == "GradientReversal":
        return pyrevgrad.nn.GradientReversal(0.5)
    if what == "ReversedLinear":
        torch.manual_seed(0)
        return pyrevgrad.nn.ReversedLinear(16, 16, scale=0.5)
    activation, rule = what.split("/")
    function = getattr(pyrevgrad, activation)
    chosen = pyrevgrad.GUIDED if rule == "guided" else pyrevgrad.reverse(0.5)
    return lambda x: function(x, chosen)


def step_of(name: str) -> Step:
    """The case as a call that returns what it computed: (y,) or (y, gx)."""
    what, *how, size = name.split(", ")
    elements, dtype = size.split()
    x, g = _tensors(int(elements), dtype, "channels_last" in how)
    apply = _apply(what)
    if "no grad" in how:
        idle = x.detach()
        return lambda: (apply(idle),)

    def step() -> tuple[Tensor, Tensor]:
        y = apply(x)
        return y, torch.autograd.grad(y, x, g)[0]

    return step


def summary(results: Sequence[Tensor]) -> dict[str, Any]:
    """Weighted sums over blocks of each result, and how far a rounding or two may move them.

    The weights change sign, so that roundings add up as a 2-norm does, a block's share of which is
    the measure; the difference of a wrong gate is as large as the element.
    """
    sums, tolerances = [], []
    for result in results:
        flat = result.detach().double().flatten()
        weighted = flat * torch.arange(1, flat.numel() + 1, dtype=torch.float64).sin()
        # A few sums may cancel what differs by chance; the elements of a tiny result do not.
        size = BLOCK if flat.numel() > BLOCK * BLOCK else 1
        missing = -flat.numel() % size
        blocks = torch.nn.functional.pad(weighted, (0, missing)).view(-1, size).sum(1)
        share = float(flat.norm()) / len(blocks) ** 0.5
        sums.append(blocks.tolist())
        tolerances.append(max(8 * torch.finfo(result.dtype).eps, 1e-4) * share + 1e-6)
    return {"sums": sums, "tolerances": tolerances}


class Contender:
    """The cases of this process, made when first asked for."""

    def __init__(self) -> None:
        self._steps: dict[str, Step] = {}

    def prepare(self, name: str) -> dict[str, Any]:
        """What the case computes, in a few numbers; or why this version cannot run it."""
        try:
            step = self._steps[name] = step_of(name)
            results = step()
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            return {"cannot": f"{type(error).__name__}: {first}"}
        return summary(results)

    def calibrate(self, name: str, sample: float) -> int:
        """How many calls fill `sample` seconds."""
        seconds = min(self.run(name, 1) for _ in range(5))
        return max(1, round(sample / max(seconds, 1e-9)))

    def run(self, name: str, repetitions: int) -> float:
        """Seconds a call."""
        step = self._steps[name]
        start = time.perf_counter()
        for _ in range(repetitions):
            step()
        return (time.perf_counter() - start) / repetitions


def describe() -> dict[str, Any]:
    """Which pyrevgrad this is, and what it is built with."""
    import pyrevgrad

    found = {"file": pyrevgrad.__file__, "version": pyrevgrad.__version__}
    try:
        from pyrevgrad.configuration import configuration

        kept = configuration()
        found |= {key: str(kept[key]) for key in ("native", "autograd") if key in kept}
    except ImportError:
        pass  # an older version has no such room
    return found


def main() -> None:
    """Answer each line of stdin, a JSON list of a method's name and its arguments."""
    torch.set_num_threads(1)
    contender = Contender()
    gc.disable()
    print(json.dumps(describe()), flush=True)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(contender, method)(*arguments)), flush=True)
