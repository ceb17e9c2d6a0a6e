"""Host time per call on tensors so small that nothing else is left, beside plain PyTorch's.

Imports pyrevgrad, cases, idioms, targets, tables and timing. The C++ nodes and the Python Functions
run each in a process of its own, with a plain call in its rounds. ``python -m bench.host`` prints
the table.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

import pyrevgrad

from . import answers, idioms, targets
from .cases import Case
from .tables import size_text, table, time_text
from .timing import Effort, figures, interleave, paired_ratios

SIZES, QUICK_SIZES = (1, 16, 1 << 10), (16, 1 << 10)
REVERSALS = ("reverse_gradient", "nn.GradientReversal")
CASES = ("relu/GUIDED", "relu/reverse", "tanh/reverse", "gelu/reverse", *REVERSALS)
QUICK_CASES = ("relu/GUIDED", *REVERSALS)
#: A compilation takes ten seconds, and what is left of a call does not depend on the formula.
COMPILED, QUICK_COMPILED = ("relu/GUIDED", "gelu/reverse", "nn.GradientReversal"), ("relu/GUIDED",)
#: At most so many times the forward and backward of F.relu, at 2^10 elements.
GOAL, GOAL_ELEMENTS, GOAL_WHAT = 1.5, 1 << 10, "forward + backward"
WHATS = ("no grad", "forward", GOAL_WHAT, "compiled")
RECORDERS = {"c++": "fused, C++ nodes", "python": "fused, Python Functions"}
Row = dict[str, Any]
Apply = Callable[[Tensor], Tensor]


def _view(x: Tensor) -> Tensor:
    return x.view_as(x)


def applies(name: str) -> dict[str, Apply]:
    """The providers of one case as functions of x; `plain` is PyTorch's ordinary activation."""
    if name in REVERSALS:
        layer = pyrevgrad.nn.GradientReversal(0.5)
        view = name == "reverse_gradient"
        fused = (lambda x: pyrevgrad.reverse_gradient(x, 0.5)) if view else layer
        idiom, plain = (lambda x: idioms.Reversal.apply(x, 0.5)), _view
    else:
        case = Case(*name.split("/"))
        function, rule = getattr(pyrevgrad, case.activation), case.rule
        fused = lambda x: function(x, rule)  # noqa: E731
        idiom = idioms.idiom(case.activation, case.rule_name, rule)
        plain = idioms.plain(case.activation)

    def reference(x: Tensor) -> Tensor:
        with pyrevgrad.backend("reference"):
            return fused(x)

    found = {"fused": fused, "reference": reference, "idiom": idiom, "plain": plain}
    return {name: apply for name, apply in found.items() if apply is not None}


def tensors(elements: int) -> tuple[Tensor, Tensor]:
    """x, no leaf but in need of a gradient, and the gradient that arrives."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(elements, generator=generator) for _ in range(2))
    return x.requires_grad_() * 1, g


def _gradient(apply: Apply, x: Tensor, g: Tensor) -> Tensor:
    return torch.autograd.grad(apply(x), x, g)[0]


def check(found: dict[str, Apply], name: str) -> None:
    """AssertionError unless value and gradient of every provider are the reference's, plain aside.

    A time of a wrong gradient would mean nothing.
    """
    x, g = tensors(64)
    wanted = found["reference"](x), _gradient(found["reference"], x, g)
    for provider, apply in found.items():
        y = apply(x)
        assert torch.allclose(y, wanted[0], atol=1e-6), f"{provider}: a wrong value on {name}"
        if provider != "plain":
            right = torch.allclose(_gradient(apply, x, g), wanted[1], atol=1e-6)
            assert right, f"{provider}: a wrong gradient on {name}"


def _compiled(found: dict[str, Apply]) -> dict[str, Apply]:
    """What is compiled of the providers, each for any size."""
    torch._dynamo.reset()
    kept = {name: apply for name, apply in found.items() if name != "reference"}
    return {name: torch.compile(a, fullgraph=True, dynamic=True) for name, a in kept.items()}


def _steps(found: dict[str, Apply], elements: int) -> dict[str, dict[str, Callable[[], object]]]:
    """By what is timed, a step for each provider."""
    x, g = tensors(elements)
    idle = x.detach()
    return {
        "no grad": {name: (lambda f=apply: f(idle)) for name, apply in found.items()},
        "forward": {name: (lambda f=apply: f(x)) for name, apply in found.items()},
        GOAL_WHAT: {name: (lambda f=apply: _gradient(f, x, g)) for name, apply in found.items()},
    }


def _rows(
    case: str, what: str, elements: int, steps: dict[str, Callable[[], object]], effort: Effort
) -> Iterator[Row]:
    measured = interleave(steps, effort)
    for name, own in measured.items():
        seconds = own.seconds
        yield {
            "case": case, "what": what, "elements": elements, "provider": name,
            "median_s": seconds.median, "q1_s": seconds.q1, "q3_s": seconds.q3,
            "rounds": seconds.runs, "repetitions": own.repetitions,
            **figures("ratio", paired_ratios(own, measured["plain"])),
        }  # fmt: skip


def _compiled_rows(
    case: str, found: dict[str, Apply], sizes: Sequence[int], effort: Effort
) -> Iterator[Row]:
    compiled = _compiled(found)
    x, g = tensors(64)
    for name, apply in list(compiled.items()):
        try:
            right = torch.allclose(_gradient(apply, x, g), _gradient(found[name], x, g), atol=1e-6)
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            yield {
                "case": case, "what": "compiled", "provider": name,
                "skipped": f"torch.compile raised {type(error).__name__}: {first}",
            }  # fmt: skip
            del compiled[name]
            continue
        assert right, f"{name}, compiled: a wrong gradient on {case}"
    for elements in sizes if "plain" in compiled else ():
        steps = _steps(compiled, elements)[GOAL_WHAT]
        yield from _rows(case, "compiled", elements, steps, effort)


def own_rows(recorder: str, quick: bool) -> list[Row]:
    """The rows of this process: every provider beside the C++ nodes, plain alone beside the other.

    Compiled code has the same graph under both, so it is timed once.
    """
    torch.set_num_threads(1)
    effort = Effort(0.05, 7, 41, 3e-4) if quick else Effort(0.15, 9, 41, 5e-4)
    sizes = QUICK_SIZES if quick else SIZES
    rows = []
    for case in QUICK_CASES if quick else CASES:
        found = applies(case)
        check(found, case)
        if recorder == "python":
            found = {name: found[name] for name in ("fused", "plain")}
        for elements in sizes:
            for what, steps in _steps(found, elements).items():
                rows += _rows(case, what, elements, steps, effort)
        if recorder != "python" and case in (QUICK_COMPILED if quick else COMPILED):
            rows += _compiled_rows(case, found, sizes, effort)
    return [{"recorder": recorder, **row} for row in rows]


def measure(quick: bool) -> list[Row]:
    """The rows of both processes."""
    rows: list[Row] = []
    for recorder in RECORDERS:
        words = ["--own", recorder, *["--quick"] * quick]
        rows += answers.of_recorder(recorder, "host", words, OMP_NUM_THREADS="1")
    return rows


def judged(rows: list[Row]) -> list[tuple[str, str, Row]]:
    """By recorder: who, how the relu cases stand to the goal, and the worst of them."""
    found = []
    for recorder, said in RECORDERS.items():
        own = [
            row
            for row in rows
            if row["recorder"] == recorder
            and row.get("provider") == "fused"
            and row["case"].startswith("relu/")
            and (row["what"], row["elements"]) == (GOAL_WHAT, GOAL_ELEMENTS)
        ]
        if own:
            # At most, not at least: the other way round.
            words = [targets.between(*(-end for end in ends(row)), -GOAL) for row in own]
            worst = max(own, key=lambda row: row["ratio"])
            found.append((said, targets.worst_of(words), worst))
    return found


def ends(row: Row) -> tuple[float, float]:
    """The upper and the lower end of the ratio's 95 % interval; the ratio itself without one."""
    return row.get("ratio_high", row["ratio"]), row.get("ratio_low", row["ratio"])


def goal(rows: list[Row]) -> str:
    """How the relu cases stand to the goal, the worst of them first.

    Examples
    --------
    >>> row = {"recorder": "c++", "case": "relu/GUIDED", "what": "forward + backward",
    ...        "provider": "fused", "elements": 1024,
    ...        "ratio": 1.7, "ratio_q1": 1.6, "ratio_q3": 1.8}
    >>> print(goal([row]))
    Goal: forward + backward at 2¹⁰ elements at most 1.5 times F.relu's.
    <BLANKLINE>
    * fused, C++ nodes: **missed**, at worst 1.70 (1.60–1.80) on relu/GUIDED
    """
    lines = [
        f"Goal: {GOAL_WHAT} at {size_text(GOAL_ELEMENTS)} elements at most {GOAL} times F.relu's."
    ]
    for said, word, worst in judged(rows):
        spread = f"{worst['ratio']:.2f} ({worst['ratio_q1']:.2f}–{worst['ratio_q3']:.2f})"
        verdict = targets.marked(word)
        lines += [f"* {said}: {verdict}, at worst {spread} on {worst['case']}"]
    return "\n".join([lines[0], "", *lines[1:]])


def _text(row: Row | None, plain: bool = False) -> str:
    if row is None:
        return "–"
    if plain:
        return f"{time_text(row['median_s'])} ({row['q1_s'] * 1e6:.3g}–{row['q3_s'] * 1e6:.3g})"
    spread = f"{row['ratio']:.2f} ({row['ratio_q1']:.2f}–{row['ratio_q3']:.2f})"
    return f"{time_text(row['median_s'])}, {spread}"


def section(rows: list[Row]) -> str:
    """The section of the page: the goal, then a table of each case."""
    parts = [
        "## Host time per call",
        "Tensors of 1 to 2¹⁰ float32 elements, one thread. *plain*: PyTorch's own activation (a "
        "view for `reverse_gradient`), its median and quartiles; the others: median, then the "
        "ratio to plain paired per round with its quartiles, above 1 where slower than plain. "
        "The Python Functions run in a process of their own, beside a plain call of their own. "
        f"*compiled*: {GOAL_WHAT} under `torch.compile(fullgraph=True)`, plain compiled too.",
        goal(rows),
    ]
    parts += [
        f"Skipped: {row.get('case', '')} {row.get('provider', RECORDERS[row['recorder']])}: "
        f"{row['skipped']}"
        for row in rows
        if "skipped" in row
    ]
    timed = [row for row in rows if "skipped" not in row]
    names = ("plain", "fused", "reference", "idiom")
    for case in dict.fromkeys(row["case"] for row in timed):
        found = {
            (r["what"], r["elements"], r["recorder"], r["provider"]): r
            for r in timed
            if r["case"] == case
        }
        # The plain calls of the second process stand in for the first's where that was skipped.
        first = next(iter(found))[2]
        lines = []
        order = sorted({key[:2] for key in found}, key=lambda key: (WHATS.index(key[0]), key[1]))
        for what, elements in order:
            by_name = [found.get((what, elements, first, name)) for name in names]
            python = found.get((what, elements, "python", "fused"))
            cells = [_text(by_name[0], plain=True), _text(by_name[1] if first == "c++" else None)]
            cells += [_text(python), _text(by_name[2]), _text(by_name[3])]
            lines.append([what, str(elements), *cells])
        head = ["what", "elements", "plain", *RECORDERS.values(), "reference", "idiom"]
        parts.append(f"### {case}\n\n{table(head, lines)}")
    return "\n\n".join(parts)


def summary(rows: list[Row]) -> str:
    """The goal, and a line for each case on 16 elements: what a call costs beside plain's."""
    timed = {
        (r["case"], r["what"], r["recorder"], r["provider"]): r
        for r in rows
        if r.get("elements") == 16
    }
    first = next(iter(timed), ("", "", "c++"))[2]
    keys = (("plain", first), ("fused", "c++"), ("fused", "python"), ("reference", first))
    lines = []
    for case, what in dict.fromkeys(key[:2] for key in timed):
        found = [timed.get((case, what, recorder, name)) for name, recorder in keys]
        idiom = _text(timed.get((case, what, first, "idiom")))
        cells = [_text(found[0], plain=True), *map(_text, found[1:]), idiom]
        if what != "forward":
            lines.append([case, what, *cells])
    head = ["16 elements", "what", "plain", *RECORDERS.values(), "reference", "idiom"]
    said = "*plain*: median and quartiles; the others: median, then the ratio to plain's time, "
    return "\n\n".join(
        ["## Host time per call", goal(rows), f"{said}above 1 where slower.", table(head, lines)]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; or the rows of this process, for `measure`."""
    parser = answers.parser("host", __doc__.split("\n")[0], "fewer cases and rounds")
    parser.add_argument("--own", choices=RECORDERS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.own:
        print(json.dumps(own_rows(options.own, options.quick)))
        return 0
    return answers.show(options, measure, section)


if __name__ == "__main__":
    sys.exit(main())
