"""Does a map depend on what the model has learned? Randomise layers from the top and compare.

Imports the methods; matplotlib only where a plot is drawn.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ..swapping.leaving import as_found
from ..swapping.sites import table
from .methods import GuidedBackprop, Saliency
from .targets import Inputs, Target, as_tuple, extra_arguments, recording, rows
from .turns import alone

SOURCES = (
    "Adebayo et al. 2018 (arXiv 1810.03292); of the test itself, critical: Yona & Greenfeld 2021 "
    "(2110.14297), Binder et al. 2022 (2211.12486)"
)


@dataclass
class SanityCheck:
    """How much each method's map is still like the trained model's, layer after layer.

    Attributes
    ----------
    layers : list of str
        The modules whose parameters the model uses, by a call of theirs or without one, randomised
        one after the other, and kept so, from the output down.
    cosines : dict of list
        For each method, the mean cosine over samples between its map after each layer and before.
    ranks : dict of list
        The same for Spearman's rank correlation of the absolute maps.
    """

    layers: list[str] = field(default_factory=list)
    cosines: dict[str, list[float]] = field(default_factory=dict)
    ranks: dict[str, list[float]] = field(default_factory=dict)

    def __str__(self) -> str:
        methods = list(self.cosines)
        head = ("randomised down to", *(f"{name}: {of}" for name in methods for of in _MEASURES))
        rows = []
        for i, layer in enumerate(self.layers):
            cells = [layer]
            for name in methods:
                cells += [f"{self.cosines[name][i]:.3f}", f"{self.ranks[name][i]:.3f}"]
            rows.append(tuple(cells))
        last = (
            "1 means that the map is as before, although the layers above were forgotten; 0 that "
            "it has nothing in common with it."
        )
        return "\n".join([*table(head, rows), last, f"Sources: {SOURCES}."])

    def plot(self, path: str | Path) -> None:
        """Draw the rank correlations and write them as a PNG.

        Raises
        ------
        ImportError
            matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError('plot needs matplotlib: pip install "pyrevgrad[demo]"') from error
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot()
        for name, marker in zip(self.ranks, "os^dv", strict=False):
            axes.plot(self.layers, self.ranks[name], marker=marker, label=name)
        axes.axhline(0, color="#bbbbbb", linewidth=1)
        axes.set_ylim(min(-0.1, *(min(values) for values in self.ranks.values())), 1.05)
        axes.set_ylabel("rank correlation with the trained model's map")
        axes.set_xlabel("layers randomised, from the output down to")
        axes.tick_params(axis="x", rotation=45)
        axes.legend(frameon=False)
        axes.set_title("A map that stays near 1 does not show what was learned", loc="left")
        figure.savefig(Path(path), dpi=120, facecolor="white", format="png")


_MEASURES = ("cosine", "rank")


def sanity_check(
    model: nn.Module,
    inputs: Inputs,
    target: Target = None,
    method: Callable[[nn.Module], Any] = GuidedBackprop,
    *,
    additional_forward_args: Any = None,
    seed: int = 0,
) -> SanityCheck:
    """Randomise the model's layers from the top, and report how little the map changes.

    The cascading randomisation of Adebayo et al. 2018 (arXiv 1810.03292, section 3.1): a map that
    explains the model must change when what the model has learned is forgotten. Each parameter is
    drawn anew from the normal distribution of its own mean and standard deviation. The plain
    gradient is shown beside the method, for comparison.

    Parameters
    ----------
    model : torch.nn.Module
        Copied; left as it is.
    inputs : Tensor or tuple of Tensor
    target : optional
        As `GuidedBackprop.attribute`; for an output (n, classes), the predicted classes if not
        given.
    method : callable
        Makes an attribution of a model: a class of this package, or a function.
    additional_forward_args : optional
    seed : int
        Of the new parameters.

    Returns
    -------
    SanityCheck
        ``print`` it, or ``.plot(path)``.

    Raises
    ------
    ValueError
        No layer with parameters ran.
    TypeError
        `method` makes nothing, as an attribution that was made already.
    SwapError
        As the method.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(9, 30), nn.ReLU(), nn.Linear(30, 3))
    >>> check = sanity_check(model, torch.randn(5, 9))
    >>> check.layers
    ['2', '0']
    """
    if not callable(method):
        raise TypeError(
            "method must make an attribution of each model, as a class of pyrevgrad.attribution or "
            f"a function does; got an object of {type(method).__name__}"
        )
    given, extra = as_tuple(inputs), extra_arguments(additional_forward_args)
    with alone(model):
        order, output = _run_order(model, given, extra)
        # A copy that is made in inference mode cannot be recorded.
        with recording():
            changed = copy.deepcopy(model)
    if target is None and output.dim() == 2 and output.shape[1] > 1:
        target = output.argmax(1)
    name = getattr(method, "__name__", type(method).__name__)
    made: dict[str, Callable[[nn.Module], Any]] = {
        name: method,
        "plain gradient": lambda m: SimpleNamespace(
            attribute=partial(Saliency(m).attribute, abs=False)
        ),
    }
    before = {key: _map(one, model, inputs, target, additional_forward_args) for key, one in
              made.items()}  # fmt: skip
    check = SanityCheck(cosines={key: [] for key in made}, ranks={key: [] for key in made})
    modules = dict(changed.named_modules())
    own = torch.Generator().manual_seed(seed)
    for layer in reversed(order):
        _randomise(modules[layer], own)
        check.layers.append(layer or "(model)")
        for key, one in made.items():
            after = _map(one, changed, inputs, target, additional_forward_args)
            check.cosines[key].append(_cosine(before[key], after))
            check.ranks[key].append(_cosine(_ranks(before[key].abs()), _ranks(after.abs())))
    return check


def _map(
    method: Callable[[nn.Module], Any], model: nn.Module, inputs: Any, target: Any, extra: Any
) -> Tensor:
    """The maps of all inputs as one row for each sample, in float64."""
    found = method(model).attribute(inputs, target=target, additional_forward_args=extra)
    parts = found if isinstance(found, tuple) else (found,)
    return torch.cat([rows(part.detach()).double() for part in parts], 1)


class _Uses(TorchFunctionMode):
    """Notes in `order` the modules of which no method runs, when a parameter of theirs is used.

    Such are a MultiheadAttention's out_proj and the members of a ParameterList.
    """

    def __init__(self, order: list[str], owners: dict[int, list[str]]) -> None:
        super().__init__()
        self._order, self._owners = order, owners

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        # To ask for a dtype or a size is no use.
        if any(isinstance(part, Tensor) for part in tree_leaves(result)):
            for part in tree_leaves((args, kwargs)):
                owners = self._owners.get(id(part), ())
                if owners and not any(name in self._order for name in owners):
                    self._order.append(owners[0])
        return result


@contextmanager
def _watched(model: nn.Module, order: list[str]) -> Iterator[None]:
    handles = []
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        for parameter in own:
            owners.setdefault(id(parameter), []).append(name)
        if own:

            def note(*_: Any, name: str = name) -> None:
                if name not in order:
                    order.append(name)

            handles.append(module.register_forward_pre_hook(note))
    try:
        with _Uses(order, owners):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _run_order(model: nn.Module, inputs: Any, extra: Any) -> tuple[list[str], Tensor]:
    """The modules that own parameters in the order in which they are first used, and the output."""
    order: list[str] = []
    with as_found(model), _watched(model, order), torch.no_grad():
        output = model(*(x.clone() for x in inputs), *extra)
    if not order:
        raise ValueError("no layer with parameters ran, so there is nothing to randomise")
    return order, output


def _randomise(module: nn.Module, own: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module._parameters.values():
            if parameter is None:
                continue
            deviation = parameter.std() if parameter.numel() > 1 else parameter.abs().mean()
            drawn = torch.randn(parameter.shape, generator=own, dtype=torch.float64)
            parameter.copy_(parameter.mean() + deviation * drawn.to(parameter))


def _cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a, b, dim=1).mean().item()


def _ranks(rows: Tensor) -> Tensor:
    """Each row's ranks, ties at their mean, about zero: Spearman's correlation is their cosine."""
    below = torch.searchsorted(ordered := rows.sort(1).values, rows)
    through = torch.searchsorted(ordered, rows, right=True)
    ranks = (below + through).double() / 2
    return ranks - ranks.mean(1, keepdim=True)
