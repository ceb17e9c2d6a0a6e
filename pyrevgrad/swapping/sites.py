"""Where a model calls activations, and what became of each: the sites and the report on them.

Imports torch for its version only.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ..rules import Rule


@dataclass(eq=False)
class Site:
    """One place where a model calls an activation; what a predicate of ``where`` is given.

    Attributes
    ----------
    path : str
        The dotted name of the innermost module that makes the call; ``""`` for the model itself.
    aliases : tuple of str
        Every dotted name of that module, where it is registered more than once.
    kind : str
        A name of the activation table, or what PyTorch calls it where no row serves.
    module : torch.nn.Module
        That module.
    params : dict
        The activation's parameters.
    spelling : str
        What is called, such as ``"F.relu"``.
    source : str
        ``file:line`` of the model's innermost call outside of PyTorch, or the layer of PyTorch that
        calls where the model has none, as ``nn.Sequential``; empty until it first runs.
    rectifier : bool
        Whether ``where=None`` takes it.
    rule : Rule or None
        What its backward became; None where it was left.
    reason : str
        Why it was left.
    meant : bool
        Whether it was left although `where` asks for it.
    certain : bool
        Whether what was seen is an activation beyond doubt.
    forward, backward : int
        How often it ran each way; recomputation under checkpointing counts.
    """

    path: str
    kind: str
    module: Any = None
    aliases: tuple[str, ...] = ()
    params: dict[str, float] = field(default_factory=dict)
    spelling: str = ""
    source: str = ""
    rectifier: bool = False
    rule: Rule | None = None
    reason: str = ""
    meant: bool = False
    certain: bool = True
    forward: int = 0
    backward: int = 0

    @property
    def replaced(self) -> bool:
        """Whether its backward is the rule's."""
        return self.rule is not None

    def as_dict(self) -> dict[str, Any]:
        """The site in plain values, for JSON."""
        return {
            "path": self.path,
            "aliases": list(self.aliases),
            "kind": self.kind,
            "params": dict(self.params),
            "spelling": self.spelling,
            "source": self.source,
            "rule": None if self.rule is None else repr(self.rule),
            "reason": self.reason,
            "forward": self.forward,
            "backward": self.backward,
        }

    def __str__(self) -> str:
        place = self.path or "the model itself"
        source = f" ({self.source})" if self.source else ""
        return f"{self.spelling or self.kind} in {place}{source}"


class Report:
    """What a swap found: ``print(report)`` is a table, ``report.save(path)`` leaves JSON.

    Attributes
    ----------
    model : str
        The name of the model's class.
    rule : Rule
    sites : list of Site
        Every activation, in the order of registration, then of the first run.
    """

    def __init__(self, model: str, rule: Any, where: str) -> None:
        self.model, self.rule, self.where = model, rule, where
        self.sites: list[Site] = []

    @property
    def replaced(self) -> list[Site]:
        """The sites whose backward is a rule's, those that never ran included."""
        return [site for site in self.sites if site.replaced]

    @property
    def left(self) -> list[Site]:
        """The sites that were left as they are, each with its reason."""
        return [site for site in self.sites if not site.replaced]

    def as_dict(self) -> dict[str, Any]:
        """The report in plain values, with the versions it was made by."""
        from .. import __version__

        return {
            "pyrevgrad": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "model": self.model,
            "rule": repr(self.rule),
            "where": self.where,
            "replaced": [site.as_dict() for site in self.replaced],
            "left": [site.as_dict() for site in self.left],
        }

    def to_json(self) -> str:
        """`as_dict` as JSON text."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False)

    def save(self, path: str | Path) -> None:
        """Write `to_json` to a file."""
        Path(path).write_text(self.to_json() + "\n", encoding="utf-8")

    def __str__(self) -> str:
        ran = sum(1 for site in self.replaced if site.forward)
        lines = [
            f"{self.rule!r} on {self.model}: {self._counted()} replaced ({ran} ran), "
            f"{len(self.left)} left"
        ]
        if self.replaced:
            head = ("replaced", "kind", "rule", "called as", "source", "forward", "backward")
            rows = [
                (
                    site.path or "(model)", site.kind, repr(site.rule), site.spelling or "–",
                    site.source or "–", str(site.forward), str(site.backward),
                )
                for site in self.replaced
            ]  # fmt: skip
            lines += ["", *table(head, rows)]
        if self.left:
            names = ("left", "kind", "called as", "source", "forward", "reason")
            reasons = [
                (
                    site.path or "(model)", site.kind, site.spelling or "–", site.source or "–",
                    str(site.forward), site.reason,
                )
                for site in self.left
            ]  # fmt: skip
            lines += ["", *table(names, reasons)]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Report: {self._counted()} of {self.model} replaced, {len(self.left)} left>"

    def _counted(self) -> str:
        count = len(self.replaced)
        return f"{count} activation{'s' * (count != 1)}"


def table(head: tuple[str, ...], rows: list[Any]) -> list[str]:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.rjust(width) if cell.isdigit() else cell.ljust(width)
            for cell, width in zip(row, widths, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return [line(head), "  ".join("-" * width for width in widths), *map(line, rows)]
