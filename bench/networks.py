"""Guided backpropagation of whole networks: ours, the peers', the plain gradient, and the ceiling.

Imports pyrevgrad, the peers, the suite's timing and memory, and records. The ceiling is what a
ratio would be if activations cost nothing: the same network is timed without any.
``python -m bench.networks`` leaves its record beside the suite's own and writes the page anew.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyrevgrad.attribution import GuidedBackprop

from . import answers, ceilings, end_to_end, guided_peers, memory, peers, records
from .arguments import count
from .ceilings import IDLE
from .guided_peers import Map
from .timing import Effort, interleave

PROVIDERS = ("fused", "captum", "zennit", "grad-cam", "plain")
#: The commands that measure the project's record: images of 224 pixels, four at a time.
USUAL = {
    "networks": ["vgg16", "resnet18", "resnet18-small"],
    "batch": 4,
    "size": 224,
    "width": 64,
    "device": "cpu",
}
#: Where the price of a call decides, and not the bytes; no floor and no peak is asked of it.
SMALL = {"resnet18-small": {"batch": 1, "size": 32, "width": 8, "seconds": 20.0}}
#: At least so many rounds: a VGG-16 of four images takes seconds.
LEAST = 5
#: What we promise: at least this many times as fast as each.
FLOORS = {"plain": 1.0, "captum": 1.3}
#: Operations that every provider runs alike, in the profiler's words.
SHARED = ("convolution", "mm", "max_pool2d", "avg_pool2d", "batch_norm")
Row = dict[str, Any]


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


NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "vgg16": vgg16,
    "resnet18": resnet18,
    **dict.fromkeys(SMALL, resnet18),
}


def provider(name: str, model: nn.Module) -> Map:
    """The map of output 0 for a batch of images."""
    if name == "fused":
        method = GuidedBackprop(model)
        return lambda x: method.attribute(x, 0)
    if name in guided_peers.MAKERS:
        return guided_peers.MAKERS[name](model)

    def plain(x: Tensor) -> Tensor:
        at = x.detach().requires_grad_()
        # A clone, since the first layer may work in place; every provider makes one.
        return torch.autograd.grad(model(at.clone())[:, 0].sum(), at)[0]

    return plain


def installed() -> list[str]:
    """The providers that can run here."""
    packages = peers.PACKAGES
    return [n for n in PROVIDERS if n not in packages or importlib.util.find_spec(packages[n])]


def built(network: str, width: int, device: str) -> nn.Module:
    """The network with fixed random weights, in eval mode."""
    torch.manual_seed(0)
    return NETWORKS[network](width).eval().to(device)


def without_activations(model: nn.Module) -> nn.Module:
    """A copy in which every ReLU is the identity."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Identity())
    return model


def shared_part(run: Map, x: Tensor) -> float:
    """The part of the profiler's own time that is in `SHARED` operations, 0 to 1."""
    with torch.profiler.profile() as profile:
        run(x)
    found = profile.key_averages()
    every = sum(event.self_cpu_time_total for event in found)
    ours = [e for e in found if e.key.startswith("aten::") and any(n in e.key for n in SHARED)]
    return sum(event.self_cpu_time_total for event in ours) / every


def gate(maps: dict[str, Map], x: Tensor) -> None:
    """AssertionError unless all guided maps are the same, and not the plain gradient."""
    ours, plain = maps["fused"](x), maps["plain"](x)
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
    return answers.peak_of("networks", words)


def _own_peak(network: str, name: str, options: argparse.Namespace) -> int:
    model = built(network, options.width, options.device)
    x = _images(options)
    function = provider(name, model)
    function(x)
    if options.device == "cpu":
        return memory.peak_above(lambda: function(x))
    base = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function(x)
    return torch.cuda.max_memory_allocated() - base


def _images(options: argparse.Namespace) -> Tensor:
    own = torch.Generator().manual_seed(1)
    x = torch.randn(options.batch, 3, options.size, options.size, generator=own)
    return x.to(options.device)


def compared(network: str, options: argparse.Namespace) -> list[Row]:
    """A row for each provider: seconds, ratios, and the peak of memory."""
    small = network in SMALL
    options = argparse.Namespace(**{**vars(options), **SMALL.get(network, {})})
    images = f"{options.batch} image{'s' * (options.batch > 1)}"
    print(f"{network}: {images} of {options.size} pixels", flush=True)
    model, x = built(network, options.width, options.device), _images(options)
    maps = {name: provider(name, model) for name in installed()}
    gate(maps, x)
    share = shared_part(maps["plain"], x) if options.device == "cpu" else None
    maps[IDLE] = provider("plain", without_activations(model))
    wait = torch.cuda.synchronize if options.device != "cpu" else lambda: None
    steps = {name: lambda f=function: (f(x), wait()) for name, function in maps.items()}
    measured = interleave(steps, Effort(options.seconds, LEAST, 50, 0.0))
    rows = []
    for name in maps:
        rows.append(
            {
                "network": network,
                "provider": name,
                "batch": options.batch,
                "size": options.size,
                "width": options.width,
                "threads": options.threads,
                "device": options.device,
                **ceilings.figures(measured, name, "fused"),
                "floor": None if small else FLOORS.get(name),
                "shared": share if name == "plain" else None,
                "peak_bytes": None if small or name == IDLE else peak(network, name, options),
            }
        )
    return rows


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.networks", description=__doc__)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=USUAL["networks"])
    add("--batch", type=count, default=USUAL["batch"], help="images; default: %(default)s")
    add("--size", type=count, default=USUAL["size"], help="pixels; default: %(default)s")
    add("--width", type=count, default=USUAL["width"], help="channels of the first stage")
    add("--device", default=USUAL["device"])
    add("--seconds", type=float, default=240.0, help=f"for each network, {LEAST} rounds aside")
    add("--threads", type=count, default=1)
    add("--peak", choices=PROVIDERS, help=argparse.SUPPRESS)
    records.add_options(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record; returns the exit status."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.peak:
        print(json.dumps(_own_peak(options.networks[0], options.peak, options)))
        return 0
    begun = records.Begun("networks", arguments)
    rows: list[Row] = []
    for network in options.networks:
        rows += compared(network, options)
    packages = peers.PACKAGES
    absent = {name: f"{packages[name]} is not installed" for name in PROVIDERS if name not in
              installed()}  # fmt: skip
    own = ("peak", "out", "json")
    told = {key: value for key, value in vars(options).items() if key not in own}
    run = begun.run(told, rows) | {"left_out": absent}
    whole = all(getattr(options, key) == value for key, value in USUAL.items())
    print(end_to_end.networks_section(run))
    records.keep("networks", run, options, whole)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
