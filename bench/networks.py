"""Guided backpropagation of whole networks: ours, captum's, zennit's, and the plain gradient.

Imports pyrevgrad and the suite's timing, memory and machine; captum and zennit where installed.
``python -m bench.networks`` prints a table; ``--out FILE`` leaves the record as JSON.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pyrevgrad.attribution import GuidedBackprop

from . import machine, memory
from .timing import Effort, interleave, paired_ratio

PROVIDERS = ("pyrevgrad", "captum", "zennit", "plain")
#: What we promise: at least this many times as fast as each.
FLOORS = {"plain": 1.0, "captum": 1.3}
Map = Callable[[Tensor], Tensor]


def vgg16(width: int = 64, classes: int = 1000) -> nn.Module:
    """Simonyan & Zisserman 2015, configuration D, with an average over 7 × 7 places."""
    layers: list[nn.Module] = []
    channels = 3
    for repeated, wide in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
        for _ in range(repeated):
            layers += [nn.Conv2d(channels, width * wide, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width * wide
        layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten()]
    hidden = 64 * width
    layers += [nn.Linear(channels * 49, hidden), nn.ReLU(inplace=True)]
    layers += [nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, classes)]
    return nn.Sequential(*layers)


class _Block(nn.Module):
    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(out), nn.BatchNorm2d(out)])
        self.inner, self.outer = nn.ReLU(inplace=True), nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or into != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(into, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = self.norms[1](self.second(self.inner(self.norms[0](self.first(x)))))
        return self.outer(h + self.shortcut(x))


def resnet18(width: int = 64, classes: int = 1000) -> nn.Module:
    """He et al. 2016, table 1, 18 layers; each call of relu a layer of its own."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, 3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    channels = width
    for stage in range(4):
        for block in range(2):
            out = width * 2**stage
            layers.append(_Block(channels, out, 2 if stage and not block else 1))
            channels = out
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)]
    return nn.Sequential(*layers)


NETWORKS: dict[str, Callable[..., nn.Module]] = {"vgg16": vgg16, "resnet18": resnet18}


def provider(name: str, model: nn.Module) -> Map:
    """The map of output 0 for a batch of images."""
    if name == "pyrevgrad":
        method = GuidedBackprop(model)
        return lambda x: method.attribute(x, 0)
    if name == "captum":
        return _captum(model)
    if name == "zennit":
        return _zennit(model)

    def plain(x: Tensor) -> Tensor:
        at = x.detach().requires_grad_()
        # A clone, since the first layer may work in place; every provider makes one.
        return torch.autograd.grad(model(at.clone())[:, 0].sum(), at)[0]

    return plain


def _captum(model: nn.Module) -> Map:
    from captum.attr import GuidedBackprop as Captums

    theirs = Captums(model)

    def run(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return theirs.attribute(x.detach().requires_grad_(), 0)

    return run


def _zennit(model: nn.Module) -> Map:
    from zennit.attribution import Gradient
    from zennit.composites import GuidedBackprop as Zennits

    def run(x: Tensor) -> Tensor:
        with Gradient(model=model, composite=Zennits()) as attributor:
            return attributor(x.detach(), lambda y: torch.eye(y.shape[1]).to(y)[:1].expand_as(y))[1]

    return run


def installed() -> list[str]:
    """The providers that can run here."""
    needs = {"captum": ("captum",), "zennit": ("zennit", "torchvision")}
    return [
        name
        for name in PROVIDERS
        if all(importlib.util.find_spec(package) for package in needs.get(name, ()))
    ]


def built(network: str, width: int, device: str) -> nn.Module:
    """The network with fixed random weights, in eval mode."""
    torch.manual_seed(0)
    return NETWORKS[network](width).eval().to(device)


def gate(maps: dict[str, Map], x: Tensor) -> None:
    """AssertionError unless all guided maps are the same, and not the plain gradient."""
    ours, plain = maps["pyrevgrad"](x), maps["plain"](x)
    size = ours.abs().max().item()
    assert (ours - plain).abs().max().item() > 0.01 * size, "the guided map is the plain gradient"
    for name, function in maps.items():
        if name != "plain":
            error = (function(x) - ours).abs().max().item() / size
            assert error < 1e-3, f"{name}'s map is {error:.1e} from ours"


def peak(network: str, name: str, options: argparse.Namespace) -> int | None:
    """The most bytes in use above what the model and the images take, in a process of its own."""
    words = [
        *("--networks", network, "--batch", str(options.batch), "--size", str(options.size)),
        *("--width", str(options.width), "--device", options.device, "--peak", name),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "bench.networks", *words], capture_output=True, text=True
    )
    return json.loads(done.stdout) if done.returncode == 0 else None


def _own_peak(network: str, name: str, options: argparse.Namespace) -> int:
    model = built(network, options.width, options.device)
    x = _images(options)
    function = provider(name, model)
    function(x)
    if options.device == "cpu":
        memory._settle()
        base = memory._status("VmRSS")
        memory._CLEAR.write_text("5")
        function(x)
        return memory._status("VmHWM") - base
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function(x)
    return torch.cuda.max_memory_allocated() - base


def _images(options: argparse.Namespace) -> Tensor:
    own = torch.Generator().manual_seed(1)
    x = torch.randn(options.batch, 3, options.size, options.size, generator=own)
    return x.to(options.device)


def measure(network: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each provider: seconds, how many times as fast we are, and the peak of memory."""
    model, x = built(network, options.width, options.device), _images(options)
    maps = {name: provider(name, model) for name in installed()}
    gate(maps, x)
    wait = torch.cuda.synchronize if options.device != "cpu" else lambda: None
    steps = {name: lambda f=function: (f(x), wait()) for name, function in maps.items()}
    measured = interleave(steps, Effort(options.seconds, 5, 50, 0.0))
    rows = []
    for name, result in measured.items():
        ratio = paired_ratio(result, measured["pyrevgrad"])
        seconds = result.seconds
        rows.append(
            {
                "network": network,
                "provider": name,
                "median_s": seconds.median,
                "q1_s": seconds.q1,
                "q3_s": seconds.q3,
                "runs": seconds.runs,
                "speedup": None if ratio is None or name == "pyrevgrad" else ratio.median,
                "floor": FLOORS.get(name),
                "peak_bytes": peak(network, name, options),
            }
        )
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    lines = [
        f"{'network':10} {'provider':10} {'ms':>9} {'ours faster':>12} {'floor':>6} {'MiB':>8}"
    ]
    for row in rows:
        speedup = "–" if row["speedup"] is None else f"{row['speedup']:.2f}"
        floor = "–" if row["floor"] is None else f"{row['floor']:.1f}"
        most = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**20:.1f}"
        lines.append(
            f"{row['network']:10} {row['provider']:10} {1e3 * row['median_s']:9.1f} "
            f"{speedup:>12} {floor:>6} {most:>8}"
        )
    return "\n".join(lines)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224, help="pixels; default: %(default)s")
    parser.add_argument("--width", type=int, default=64, help="channels of the first stage")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peak", choices=PROVIDERS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and, with ``--out``, record; returns the exit status."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(_own_peak(options.networks[0], options.peak, options)))
        return 0
    absent = sorted(set(PROVIDERS) - set(installed()))
    rows = [row for network in options.networks for row in measure(network, options)]
    print(table(rows))
    if absent:
        print(f"not installed, so not measured: {', '.join(absent)}")
    if options.out is not None:
        settings = {
            key: value for key, value in vars(options).items() if key not in ("out", "peak")
        }
        record = {"machine": machine.describe(), "settings": settings, "rows": rows}
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
