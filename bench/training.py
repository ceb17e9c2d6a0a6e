"""Training steps end to end: an adversarial network by each provider, and networks after `convert`.

Imports the networks and the suite's timing and memory. ``python -m bench.training`` prints the
section; ``--quick`` is its short form.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import answers, memory, stepping
from .timing import Effort, interleave, paired_ratio

Row = dict[str, Any]
#: part: how a network is made, its loss, its cases, its providers with ours first.
PARTS: dict[str, tuple[Any, stepping.Loss, tuple[str, ...], tuple[str, ...]]] = {
    "adversarial": (
        stepping.adversarial,
        stepping.adversarial_loss,
        ("convolutional features", "MLP features", "dense discriminator"),
        ("fused", "eager", "pytorch-revgrad"),
    ),
    "convert": (
        stepping.convertible,
        stepping.labels_loss,
        ("convolutional network", "MLP"),
        ("converted", "plain"),
    ),
}
COMPILED = "+compile"
#: Steps of the loss curve that all providers must share.
CURVE = 12


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
            self.run = torch.compile(self.model)

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


def gate(made: dict[str, Trained], case: str) -> dict[str, list[float]]:
    """The loss curve of each provider; AssertionError unless gradients and curves are the same."""
    ours = next(iter(made))
    wanted = made[ours].gradients()
    for name, trained in made.items():
        for expected, found in zip(wanted, trained.gradients(), strict=True):
            error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
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
    """A row for each provider of a case."""
    names, skipped = providers_of(part, compiled)
    made = {name: Trained(part, case, name, quick) for name in names}
    curves = gate(made, case)
    effort = Effort(1.0, 5, 30, 1e-3) if quick else Effort(8.0, 7, 60, 5e-3)
    measured = interleave({name: trained.step for name, trained in made.items()}, effort)
    rows: list[Row] = []
    for name, trained in made.items():
        seconds, ratio = measured[name].seconds, paired_ratio(measured[name], measured[names[0]])
        rows.append(
            {
                "part": part,
                "case": case,
                "provider": name,
                "threads": torch.get_num_threads(),
                "median_s": seconds.median,
                "q1_s": seconds.q1,
                "q3_s": seconds.q3,
                "runs": seconds.runs,
                "speedup": None if ratio is None or name == names[0] else ratio.median,
                "operations": trained.operations(),
                "kept_bytes": trained.kept(),
                "peak_bytes": peak(part, case, name, quick),
                "first_loss": curves[name][0],
                "last_loss": curves[name][-1],
            }
        )
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


def verdicts(rows: list[Row]) -> list[str]:
    """For each adversarial case, whether ours is no slower than the fastest other."""
    lines = []
    for case in dict.fromkeys(row["case"] for row in rows if row["part"] == "adversarial"):
        others = [r for r in rows if r["case"] == case and r.get("speedup") is not None]
        if others:
            best = min(others, key=lambda row: row["speedup"])
            word = "met" if best["speedup"] >= 1 else "missed"
            lines.append(
                f"* {case}: no slower than the fastest other, {best['provider']}: {word} "
                f"({best['speedup']:.2f})"
            )
    return lines


_HEAD = ("network", "provider", "ms", "ours faster", "operations", "kept MiB", "peak MiB", "loss")


def _cells(row: Row) -> tuple[str, ...]:
    if "skipped" in row:
        return (row["case"], row["provider"], f"skipped: {row['skipped']}", *["–"] * 5)
    most, speedup = row["peak_bytes"], row["speedup"]
    return (
        row["case"],
        row["provider"],
        f"{1e3 * row['median_s']:.2f}",
        "–" if speedup is None else f"{speedup:.2f}",
        str(row["operations"]),
        f"{row['kept_bytes'] / 2**20:.2f}",
        "–" if most is None else f"{most / 2**20:.2f}",
        f"{row['first_loss']:.3f} → {row['last_loss']:.3f}",
    )


def section(rows: list[Row]) -> str:
    """The section of the page."""
    if not rows:
        return ""
    titles = {
        "adversarial": "A step of an adversarial network",
        "convert": "Training after `convert`",
    }
    lines = [
        "## Training",
        "",
        "Forward, backward and a step of SGD, on one thread, interleaved, after a check that all "
        "providers give the same gradients and the same loss curve. *Ours faster* is the "
        "provider's time over the first row's, paired per round; *operations* is what the "
        "profiler sees dispatched; *kept* is what autograd keeps of a forward, each storage "
        f"counted once; *loss* is before the first and the {CURVE}th step.",
    ]
    for part, title in titles.items():
        chosen = [row for row in rows if row["part"] == part]
        if chosen:
            lines += ["", f"### {title}", "", "| " + " | ".join(_HEAD) + " |"]
            lines += ["| --- | --- |" + " ---: |" * 6]
            lines += ["| " + " | ".join(_cells(row)) + " |" for row in chosen]
    return "\n".join([*lines, "", *verdicts(rows), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.training", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.peak:
        torch.set_num_threads(1)
        print(_own_peak(*options.peak, options.quick))
        return 0
    every = [case for _, _, cases, _ in PARTS.values() for case in cases]
    rows = measure(True) if options.quick else measure(False, every)
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    print(section(rows))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
