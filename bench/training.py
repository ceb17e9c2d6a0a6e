"""Training steps end to end: an adversarial network by each provider, and networks after `convert`.

Imports the networks, the suite's timing, places and memory, and records. The ceiling is what a
ratio would be if activations and the reversal cost nothing. ``python -m bench.training`` leaves its
record beside the suite's own and writes the page anew; ``--quick`` is its short form.
"""

from __future__ import annotations

import argparse
import importlib.util
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from . import answers, ceilings, end_to_end, memory, records, stepping
from .ceilings import COMPILED, IDLE
from .placing import Turns
from .timing import Effort, interleave

Row = dict[str, Any]
#: part: how a network is made, its loss, its cases, its providers with ours first.
PARTS: dict[str, tuple[Any, stepping.Loss, tuple[str, ...], tuple[str, ...]]] = {
    "adversarial": (
        stepping.adversarial,
        stepping.adversarial_loss,
        ("convolutional features", "MLP features", "dense discriminator"),
        ("fused", "idiom", "pytorch-revgrad"),
    ),
    "convert": (
        stepping.convertible,
        stepping.labels_loss,
        ("convolutional network", "MLP"),
        ("converted", "plain"),
    ),
}
#: Steps of the loss curve that all providers must share.
CURVE = 12
#: The floor of the adversarial part: no slower than the fastest other.
FLOOR = 1.0


def _alone(model: nn.Module, name: str) -> Callable[[Tensor], Any]:
    """`model` as a function with code of its own. Compiled forms are kept by code, and every call
    asks them in turn: those of one module's other providers would be asked first."""

    def forward(x: Tensor) -> Any:
        return model(x)

    code = forward.__code__.replace(co_name=f"{forward.__name__} by {name}")
    return types.FunctionType(code, globals(), closure=forward.__closure__)


class Trained:
    """A network, its loss and its optimizer, taken a step at a time."""

    def __init__(self, part: str, case: str, provider: str, quick: bool) -> None:
        make, self.loss, _, _ = PARTS[part]
        plain = provider.removesuffix(COMPILED)
        self.model: nn.Module
        self.model, self.batch = make(case, plain, quick)
        self.optimizer = torch.optim.SGD(self.model.parameters(), 1e-2)
        self.run: Callable[..., Any] = self.model
        if provider != plain:
            from torch import _dynamo
            from torch._inductor import config

            _dynamo.reset()
            config.fallback_random = True  # dropout must draw what it draws uncompiled
            self.run = torch.compile(_alone(self.model, provider))

    def losses(self) -> Tensor:
        """One forward."""
        return self.loss(self.run, self.batch)  # type: ignore[arg-type]

    def step(self) -> float:
        """One step of training; the loss before it."""
        self.optimizer.zero_grad()
        loss = self.losses()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def gradients(self) -> list[Tensor]:
        """Of every parameter, in one order for all providers."""
        torch.manual_seed(1)
        return list(torch.autograd.grad(self.losses(), list(self.model.parameters())))

    def curve(self) -> list[float]:
        """The losses of the first steps."""
        torch.manual_seed(1)
        return [self.step() for _ in range(CURVE)]

    def kept(self) -> int:
        """Bytes that autograd keeps of a forward, by storage, without parameters and inputs."""
        own = [*self.model.parameters(), *self.model.buffers(), *self.batch]
        left_out = {tensor.untyped_storage().data_ptr() for tensor in own}
        found: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = self.losses()
        del loss
        return sum(size for place, size in found.items() if place not in left_out)

    def operations(self) -> int:
        """Operations that a step dispatches, in the profiler's count."""
        with torch.profiler.profile() as profile:
            self.step()
        names = ("aten::", "pyrevgrad::")
        return sum(event.name.startswith(names) for event in profile.events())


def gate(made: dict[str, Trained], case: str, ours: str) -> dict[str, list[float]]:
    """The loss curve of each provider; AssertionError unless gradients and curves are the same."""
    gradients = {name: trained.gradients() for name, trained in made.items()}
    wanted = gradients[ours]
    # One that is 0 but for rounding, as a bias's before a batch norm, is measured by the others.
    least = 1e-2 * max(expected.abs().max().item() for expected in wanted)
    for name, own in gradients.items():
        for expected, found in zip(wanted, own, strict=True):
            error = (found - expected).abs().max() / expected.abs().max().clamp_min(least)
            assert error < 1e-3, f"{case}: {name}'s gradient is {float(error):.1e} from ours"
    curves = {name: trained.curve() for name, trained in made.items()}
    for name, curve in curves.items():
        far = max(abs(a - b) / abs(b) for a, b in zip(curve, curves[ours], strict=True))
        assert far < 1e-2, f"{case}: {name}'s loss curve is {far:.1e} from ours"
    return curves


def peak(part: str, case: str, provider: str, quick: bool) -> int | None:
    """The most bytes in use in a step above those before it, in a process of its own."""
    return answers.peak_of("training", ["--peak", part, case, provider, *["--quick"] * quick])


def _own_peak(part: str, case: str, provider: str, quick: bool) -> int:
    trained = Trained(part, case, provider, quick)
    for _ in range(3):
        trained.step()
    return memory.peak_above(trained.step)


def providers_of(part: str, compiled: bool) -> tuple[list[str], dict[str, str]]:
    """Those that can run here, ours first, and why others cannot."""
    _, _, _, plain = PARTS[part]
    skipped = {}
    if "pytorch-revgrad" in plain and importlib.util.find_spec("pytorch_revgrad") is None:
        skipped["pytorch-revgrad"] = "not installed"
    here = [name for name in plain if name not in skipped]
    if compiled:
        here += [name + COMPILED for name in here]
    else:
        skipped |= {name + COMPILED: "compiled by `python -m bench.training`" for name in here}
    return here, skipped


def compared(part: str, case: str, quick: bool, compiled: bool) -> list[Row]:
    """A row for each provider of a case, and one of the network with nothing between its layers.

    Each network exists twice, made in one order and in the other, and rounds take turns: the one
    that is made first alone loses a hundredth by where it lies.
    """
    names, skipped = providers_of(part, compiled)
    orders = [names, names[::-1]]
    sets = [{name: Trained(part, case, name, quick) for name in order} for order in orders]
    curves, _ = (gate(made, case, names[0]) for made in sets)
    for made in sets:
        made[IDLE] = Trained(part, case, IDLE, quick)
    turns = Turns(sets)
    steps = {name: (lambda name=name: turns.now[name].step()) for name in sets[0]}
    effort = Effort(1.0, 5, 30, 1e-3) if quick else Effort(30.0, 7, 150, 5e-3)
    measured = interleave(steps, effort, before_round=turns.next)
    rows: list[Row] = []
    for name, trained in sets[0].items():
        start = {"part": part, "case": case, "provider": name, "threads": torch.get_num_threads()}
        row = start | ceilings.figures(measured, name, names[0])
        if name != IDLE:
            row |= {
                "operations": trained.operations(),
                "kept_bytes": trained.kept(),
                "peak_bytes": peak(part, case, name, quick),
                "first_loss": curves[name][0],
                "last_loss": curves[name][-1],
                "floor": FLOOR if part == "adversarial" else None,
            }
        rows.append(row)
    return rows + [
        {"part": part, "case": case, "provider": name, "skipped": why}
        for name, why in skipped.items()
    ]


def measure(quick: bool, compiled: Sequence[str] = ("MLP features", "MLP")) -> list[Row]:
    """The rows of every case; those of `compiled` under torch.compile too, which takes a minute.

    The quick form is narrow, and compiles the first of them alone.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return [
            row
            for part, (_, _, cases, _) in PARTS.items()
            for case in cases
            for row in compared(part, case, quick, case in compiled[: 1 if quick else None])
        ]
    finally:
        torch.set_num_threads(before)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and record; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="narrow networks, a minute")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    records.add_options(parser)
    options = parser.parse_args(arguments)
    if options.peak:
        torch.set_num_threads(1)
        print(_own_peak(*options.peak, options.quick))
        return 0
    begun = records.Begun("training", arguments)
    every = [case for _, _, cases, _ in PARTS.values() for case in cases]
    rows = measure(True) if options.quick else measure(False, every)
    run = begun.run({"quick": options.quick, "threads": 1, "steps": CURVE}, rows)
    print(end_to_end.training_section(run))
    records.keep("training", run, options, not options.quick)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
