"""Dispatched operations and allocations of one call, forward and backward, by torch's profiler.

Imports pyrevgrad and idioms. The C++ nodes and the Python Functions are counted each in a process
of its own, since a process has one of them: ``python -m bench.dispatches`` prints its own as JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pyrevgrad
from pyrevgrad import nn as layers
from pyrevgrad.rules import RULES, plan

from . import answers, idioms

#: Who records the graph, by what PYREVGRAD_AUTOGRAD is set to.
RECORDERS = {"c++": "C++ nodes", "python": "Python Functions"}
SHAPE = (4, 8, 16, 16)
#: What launches nothing: views, allocations, and those that leave the work to others they call.
IDLE = {
    *("as_strided", "expand", "_reshape_alias", "reshape", "t", "transpose", "view", "view_as"),
    *("detach", "empty", "empty_like", "empty_strided", "new_empty", "resolve_conj"),
    *("_to_copy", "clone", "contiguous", "linear", "matmul", "ones_like", "relu", "to"),
}
Row = dict[str, Any]


def _kernels(events: list[Any]) -> int:
    """How many of the operations compute or copy."""
    count, last = 0, None
    for event in events:
        name = event.name().partition("::")[2]
        # A number that is compared or multiplied with is cast first: one element, no pass.
        number = name == "copy_" and event.shapes()[:1] == [[]]
        # sum calls sum.
        again = last is not None and last.name() == event.name() and _end(last) > event.start_ns()
        count += not (name in IDLE or number or again)
        last = event
    return count


def _end(event: Any) -> int:
    return event.start_ns() + event.duration_ns()


def profiled(run: Callable[[], object]) -> Row:
    """What `run` dispatches, in order, and what it allocates on the CPU; it runs once before.

    Examples
    --------
    >>> import torch
    >>> x = torch.ones(8)
    >>> profiled(lambda: x + x)
    {'operations': ['aten::add'], 'kernels': 1, 'allocations': 1, 'bytes': 32}
    """
    run()
    activity = torch.profiler.ProfilerActivity.CPU
    asked = {"activities": [activity], "profile_memory": True, "record_shapes": True}
    with torch.profiler.profile(**asked) as profile:
        kept = run()
    del kept
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events = list(profile.profiler.kineto_results.events())
    named = [event for event in events if re.match(r"(aten|pyrevgrad)::", event.name())]
    named.sort(key=lambda event: event.start_ns())
    sizes = [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]
    return {
        "operations": [event.name() for event in named],
        "kernels": _kernels(named),
        "allocations": len(sizes),
        "bytes": sum(sizes),
    }


def _inner(how: str) -> tuple[Tensor, Tensor]:
    """x, no leaf but in need of a gradient, and the gradient that arrives."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    if how == "channels_last":
        x, g = (t.contiguous(memory_format=torch.channels_last) for t in (x, g))
    if how == "expanded gradient":
        g = torch.ones(()).expand(SHAPE)
    return x.requires_grad_() * 1, g


def _pair(activation: str, rule: str, scale: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    function = getattr(pyrevgrad, activation)
    chosen = RULES[rule] if scale is None else RULES[rule].scaled(scale)
    return lambda x: function(x, chosen)


def calls() -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """What is counted: a name, what its plan keeps, and the function of x."""
    pairs = (
        ("relu", "STRAIGHT_THROUGH"), ("relu", "DECONVNET"), ("relu", "GUIDED"),
        ("relu", "reverse"), ("tanh", "EXACT"), ("tanh", "reverse"), ("gelu", "reverse"),
    )  # fmt: skip
    made = {
        f"{name}/{rule}": (plan(name, RULES[rule]).keeps, _pair(name, rule)) for name, rule in pairs
    }
    scale = torch.tensor(0.5)
    layer = layers.GradientReversal(0.5)
    made["relu/GUIDED, λ a tensor"] = ("mask", _pair("relu", "GUIDED", scale))
    made["relu/GUIDED, in place"] = (
        "mask", lambda x: pyrevgrad.relu(x.clone(), pyrevgrad.GUIDED, inplace=True)
    )  # fmt: skip
    made["reverse_gradient"] = ("nothing", lambda x: pyrevgrad.reverse_gradient(x, 0.5))
    made["nn.GradientReversal"] = ("nothing", layer)
    return made


def opponents() -> dict[str, tuple[str, Callable[[Tensor], Tensor]]]:
    """Plain PyTorch, and the idioms."""
    made: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {"F.relu": ("output", F.relu)}
    for rule in ("GUIDED", "reverse"):
        apply = idioms.idiom("relu", rule, RULES[rule])
        assert apply is not None
        made[f"idiom of relu/{rule}"] = ("input" if rule == "GUIDED" else "output", apply)
    made["idiom of reverse_gradient"] = ("nothing", lambda x: idioms.Reversal.apply(x, 0.5))
    return made


def _row(recorder: str, name: str, keeps: str, apply: Callable[[Tensor], Tensor]) -> Row:
    x, g = _inner(name.partition(", ")[2])
    with torch.no_grad():
        idle = profiled(lambda: apply(x))
    y = apply(x)
    return {
        "recorder": recorder,
        "call": name,
        "keeps": keeps,
        "no grad": idle,
        "forward": profiled(lambda: apply(x)),
        "backward": profiled(lambda: torch.autograd.grad(y, x, g, retain_graph=True)),
    }


class _IdiomReversal(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return idioms.Reversal.apply(x, 0.5)


def steps() -> dict[str, tuple[nn.Module, nn.Module]]:
    """The domain head of a training step, made in each way of reversing: reversal, then linear."""
    return {
        "no reversal": (nn.Identity(), nn.Linear(32, 8)),
        "idiom": (_IdiomReversal(), nn.Linear(32, 8)),
        "GradientReversal": (layers.GradientReversal(0.5), nn.Linear(32, 8)),
        "ReversedLinear": (nn.Identity(), layers.ReversedLinear(32, 8, scale=0.5)),
    }


def step_row(recorder: str, name: str) -> Row:
    """Forward and backward of features, reversal and domain head; the optimizer's is the same."""
    torch.manual_seed(0)
    features = nn.Sequential(nn.Linear(16, 32), nn.Tanh())
    network = nn.Sequential(features, *steps()[name])
    inputs = torch.randn(64, 16)

    def run() -> None:
        for parameter in network.parameters():
            parameter.grad = None
        network(inputs).sum().backward()

    return {"recorder": recorder, "step": name, **profiled(run)}


def own_rows() -> list[Row]:
    """The rows of this process."""
    recorder = "python" if pyrevgrad.binding.NODES is None else "c++"
    ours = calls()
    for how in ("channels_last", "expanded gradient"):
        ours[f"relu/GUIDED, {how}"] = ours["relu/GUIDED"]
    rows = [_row(recorder, name, *made) for name, made in ours.items()]
    rows += [step_row(recorder, name) for name in ("GradientReversal", "ReversedLinear")]
    if recorder == "python":
        rows += [_row("plain", name, *made) for name, made in opponents().items()]
        rows += [step_row("plain", name) for name in ("no reversal", "idiom")]
    return rows


def measure(quick: bool = False) -> list[Row]:
    """The rows of both recorders; `quick` makes no difference."""
    return [row for one in RECORDERS for row in answers.of_recorder(one, "dispatches")]


def _text(found: Row) -> str:
    return f"{len(found['operations'])} · {found['kernels']} · {found['allocations']}"


#: The calls that the page shows.
_SHOWN = ("F.relu", "relu/GUIDED", "idiom of relu/GUIDED", "relu/reverse", "idiom of relu/reverse",
          "nn.GradientReversal", "idiom of reverse_gradient")  # fmt: skip


def summary(rows: list[Row]) -> str:
    """A few calls as the default recorder makes them, beside plain PyTorch's and the idioms."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.get("call") in _SHOWN:
            found.setdefault(row["call"], row)
    lines = ["| operations · kernels · allocations | no grad | forward | backward |"]
    lines += ["| :-- | --: | --: | --: |"]
    for name in _SHOWN:
        if name in found:
            counts = (_text(found[name][part]) for part in ("no grad", "forward", "backward"))
            lines.append(f"| {' | '.join((name, *counts))} |")
    return "\n".join(lines)


def section(rows: list[Row]) -> str:
    """Two tables of a page: single calls, and a training step."""
    said = {**RECORDERS, "plain": "plain PyTorch"}
    lines = [
        "### Dispatched operations and allocations",
        "",
        "By torch's profiler, operations · kernels · allocations. Every operation counts that the "
        "dispatcher is asked for, those that others call too; a kernel is one that computes or "
        "copies.",
        "",
    ]
    for row in rows:
        if "skipped" in row:
            lines += [f"{said[row['recorder']]}: skipped. {row['skipped']}", ""]
    lines += ["| call | keeps | recorded by | no grad | forward | backward |"]
    lines += ["| :-- | --: | --: | --: | --: | --: |"]
    for row in rows:
        if "call" in row:
            cells = (row["call"], row["keeps"], said[row["recorder"]])
            counts = (_text(row[part]) for part in ("no grad", "forward", "backward"))
            lines.append(f"| {' | '.join((*cells, *counts))} |")
    found = {(r["step"], r["recorder"]): r for r in rows if "step" in r}
    least = next((r for (name, _), r in found.items() if name == "no reversal"), None)
    lines += ["", "A training step's forward and backward: features, reversal, domain head."]
    lines += ["", "| reversal | recorded by | operations | kernels | allocations |"]
    lines += ["| :-- | --: | --: | --: | --: |"]
    for (name, recorder), row in found.items():
        counts = {**row, "operations": len(row["operations"])}
        cells = [name, said[recorder]]
        for what in ("operations", "kernels", "allocations"):
            plain = least and (len(least[what]) if what == "operations" else least[what])
            more = "" if least in (None, row) else f" ({counts[what] - plain:+d})"
            cells.append(f"{counts[what]}{more}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(own_rows()))
