"""Gradient attributions with Captum's signatures, each on a model that is swapped meanwhile.

Imports the swap, the rules and targets.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..activations import ACTIVATIONS, CUSTOM
from ..rules import DECONVNET, GUIDED, Rule
from ..swapping.holding import Swap
from ..swapping.interception import substitute
from ..swapping.leaving import as_found
from ..swapping.refusals import SwapError, check_model
from ..swapping.selection import is_served_declared
from ..swapping.sites import Report, Site
from ..swapping.sparing import NOT_KEPT
from .targets import (
    Inputs,
    Target,
    as_tuple,
    extra_arguments,
    find_layer,
    gradient,
    kept_output,
    last_of,
    recording,
    rows,
    selected,
    values,
)
from .turns import alone


def is_relu(site: Site) -> bool:
    """The default of ``where``: ReLU in every spelling, those fused into another layer too."""
    return site.kind in ("relu", "fused relu")


def _is_clamp(site: Site) -> bool:
    return site.spelling.partition("(")[0].rstrip("_").endswith(("clamp", "clip"))


class Attribution:
    """A map of each input: what its elements do to the output that a target selects."""

    def attribute(self, *args: Any, **kwargs: Any) -> Any:
        """The map, of the shape of the inputs."""
        raise NotImplementedError


class Saliency(Attribution):
    """The plain gradient (Simonyan, Vedaldi & Zisserman 2013, arXiv 1312.6034), for comparison.

    Parameters
    ----------
    forward_func : torch.nn.Module or callable
        Returns one tensor, (n, …). A module is left as it was found.

    Examples
    --------
    >>> layer = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.constant_(layer.weight, -3.0)
    >>> Saliency(layer).attribute(torch.ones(1, 2)), Saliency(layer).attribute(
    ...     torch.ones(1, 2), abs=False)
    (tensor([[3., 3.]]), tensor([[-3., -3.]]))
    """

    def __init__(self, forward_func: Callable[..., Any]) -> None:
        self.forward_func = forward_func

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        abs: bool = True,
        additional_forward_args: Any = None,
        *,
        create_graph: bool = False,
    ) -> Any:
        """The gradient of the selected outputs, absolute unless ``abs=False``.

        As `GuidedBackprop.attribute`.
        """
        given, extra = as_tuple(inputs), extra_arguments(additional_forward_args)
        function = self.forward_func
        with ExitStack() as held:
            if isinstance(function, nn.Module):
                modules = held.enter_context(alone(function))
                held.enter_context(as_found(function, modules))
            found = gradient(function, given, extra, lambda y: selected(y, target), create_graph)
        found = tuple(part.abs() for part in found) if abs else found
        return found if isinstance(inputs, tuple) else found[0]


class ModifiedGradient(Attribution):
    """The gradient of a model whose activations have the backward of `rule`.

    Parameters
    ----------
    model : torch.nn.Module
        Returns one tensor, (n, …), and chooses nothing by ``type(module) is C``, which does not
        hold meanwhile (`isinstance` does). It is left as it was found: modules, buffers, ``.grad``,
        random state.
    rule : Rule
    where : optional
        As `pyrevgrad.swap`; ReLU in every spelling if not given, and then a model in which other
        rectifiers were left is an error.
    layer : torch.nn.Module or str, optional
        Explain the output of this layer of the model, and not the model's.

    Attributes
    ----------
    report : pyrevgrad.swapping.Report or None
        What the last call replaced.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        where: Any = is_relu,
        layer: nn.Module | str | None = None,
    ) -> None:
        check_model(model)
        self.model, self.rule, self.where = model, rule, where
        self.layer = None if layer is None else find_layer(model, layer)
        self.report: Report | None = None

    def _substitution(self, samples: int) -> Callable[..., Tensor]:
        """What computes an activation for so many samples."""
        return substitute

    @contextmanager
    def _swapped(self, sparing: bool, samples: int) -> Any:
        with alone(self.model) as modules, as_found(self.model, modules):
            taking = self._substitution(samples)
            swap = Swap(self.model, self.rule, self.where, True, taking, sparing)
            self.report = swap.report
            try:
                with swap:
                    yield
            except SwapError:
                # Where nothing was replaced or missed, other rectifiers are why.
                if not any(site.meant for site in swap.report.left):
                    self._check_rectifiers(swap.report)
                raise
            # Those on no path from the outputs have no part in the map.
            self._check_rectifiers(swap.report, reached=True)

    def _check_rectifiers(self, report: Report, reached: bool = False) -> None:
        others = [site for site in report.left if site.rectifier and site.forward]
        if reached:
            others = [site for site in others if site.backward]
        if others and self.where is is_relu:
            listed = "\n".join(f"  {site}" for site in others)
            kinds = ", ".join(sorted({site.kind for site in others}))
            served = any(site.kind in ACTIVATIONS or site.kind in CUSTOM for site in others)
            cure = "where=None to take every rectifier" if served else ""
            if is_served_declared(kinds, self.rule):
                cure = "where=None after pyrevgrad.declare(nn.PReLU, 'leaky_relu') to take them"
            cures = [cure, "where=lambda site: site.kind == 'relu' to leave them plain"]
            if all(map(_is_clamp, others)):
                cures = [f"{cures[1]}, as where a clamp bounds coordinates", cure]
            raise SwapError(
                f"{report.model} has rectifiers other than ReLU ({kinds}), which keep their plain "
                f"gradient:\n{listed}\npass {', or '.join(filter(None, cures))}"
            )

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        *,
        create_graph: bool = False,
    ) -> Any:
        """The modified gradient of the selected outputs with respect to the inputs.

        Parameters
        ----------
        inputs : Tensor or tuple of Tensor
            (n, …), floating point. Their values are used: their ``.grad`` and flags stay.
        target : None, int, tuple of int, Tensor, list of int or list of tuple
            Which output of each sample: see `selected`. With a `layer`, None takes the sum of all
            of the layer's outputs.
        additional_forward_args : optional
            What else the model takes, one value or a tuple.
        create_graph : bool
            Make the map differentiable, with respect to inputs that require grad and parameters.

        Returns
        -------
        Tensor or tuple of Tensor
            As `inputs`. Samples do not mix, so a whole batch is one call.

        Raises
        ------
        TypeError, ValueError
            Inputs that are not floating; a target that does not fit the output.
        SwapError
            No activation was replaced, or a rectifier was left.
        """

        def select(value: Any) -> Tensor:
            if self.layer is not None and target is None:
                return rows(value).sum(1)
            return selected(value, target)

        return self.map_of(select, inputs, additional_forward_args, create_graph)

    def map_of(
        self,
        select: Callable[[Any], Tensor],
        inputs: Inputs,
        additional_forward_args: Any,
        create_graph: bool = False,
        of_input: bool = False,
    ) -> Any:
        """The map of what `select` takes of the output of the model or layer, or of its input.

        The rest as `attribute`.
        """
        given, extra = as_tuple(inputs), extra_arguments(additional_forward_args)
        samples = max((len(part) for part in given if part.dim()), default=1)
        kept: list[Tensor] = []

        def chosen(output: Any) -> Tensor:
            return select(output if self.layer is None else last_of(kept))

        def run(sparing: bool) -> tuple[Tensor, ...]:
            with self._swapped(sparing, samples), kept_output(self.layer, kept, of_input):
                return gradient(self.model, given, extra, chosen, create_graph)

        try:
            found = run(not create_graph)
        except RuntimeError as error:
            if NOT_KEPT not in str(error):
                raise
            # The model asks for gradients of its own parameters in its forward.
            kept.clear()
            found = run(False)
        return found if isinstance(inputs, tuple) else found[0]


class GuidedBackprop(ModifiedGradient):
    """Guided backpropagation (Springenberg et al. 2014, arXiv 1412.6806, section 3.4).

    ``gx = g`` where x > 0 and g > 0, else 0, at every ReLU of the model, in every spelling.

    Parameters
    ----------
    model : torch.nn.Module
    where, layer
        As `ModifiedGradient`. ``where=None`` takes every rectifier.
    rule : Rule
        Another form for activations that are not ReLU, such as ``guided("slope")``.

    Raises
    ------
    ModelError
        The model cannot be swapped.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> method = GuidedBackprop(model)
    >>> method.attribute(torch.randn(2, 4), target=1).shape
    torch.Size([2, 4])
    >>> len(method.report.replaced)
    1
    """

    def __init__(
        self,
        model: nn.Module,
        where: Any = is_relu,
        layer: nn.Module | str | None = None,
        rule: Rule = GUIDED,
    ) -> None:
        super().__init__(model, rule, where, layer)


class Deconvolution(ModifiedGradient):
    """DeconvNet (Zeiler & Fergus 2014, arXiv 1311.2901, section 2.1): ``gx = g`` where g > 0.

    Parameters
    ----------
    model, where, layer
        As `GuidedBackprop`.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> Deconvolution(model).attribute(torch.randn(2, 4), target=[0, 2]).shape
    torch.Size([2, 4])
    """

    def __init__(
        self, model: nn.Module, where: Any = is_relu, layer: nn.Module | str | None = None
    ) -> None:
        super().__init__(model, DECONVNET, where, layer)


class GuidedGradCam(Attribution):
    """Guided Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391, sections 3.1 and 3.2).

    Guided backpropagation times ``relu(Σ_c mean(∂y/∂A_c)·A_c)``, scaled up to the input. A is the
    layer's output, and the gradient ∂y/∂A is the plain one.

    Parameters
    ----------
    model : torch.nn.Module
    layer : torch.nn.Module or str
        The last convolution, usually. Its output is (n, channels, height, width).
    device_ids : ignored
        Captum's; replicas need no list here.
    where : optional
        As `GuidedBackprop`.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | str,
        device_ids: Any = None,
        where: Any = is_relu,
    ) -> None:
        self.guided = GuidedBackprop(model, where)
        self.model, self.layer = model, find_layer(model, layer)

    @property
    def report(self) -> Report | None:
        """What the guided backpropagation of the last call replaced."""
        return self.guided.report

    def attribute(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        interpolate_mode: str = "nearest",
        attribute_to_layer_input: bool = False,
    ) -> Any:
        """As `GuidedBackprop.attribute`; `interpolate_mode` as ``torch.nn.functional.interpolate``.

        Raises
        ------
        ValueError
            Also where the layer's output has no height and width.
        """
        coarse = self.grad_cam(inputs, target, additional_forward_args, attribute_to_layer_input)
        fine = self.guided.attribute(inputs, target, additional_forward_args)
        parts = fine if isinstance(fine, tuple) else (fine,)
        if any(part.dim() != coarse.dim() for part in parts):
            raise ValueError(
                "Guided Grad-CAM needs inputs with channels and places like the layer's output; "
                "pass the others as additional_forward_args"
            )
        found = tuple(
            part * nn.functional.interpolate(coarse, part.shape[2:], mode=interpolate_mode)
            for part in parts
        )
        return found if isinstance(inputs, tuple) else found[0]

    def grad_cam(
        self,
        inputs: Inputs,
        target: Target = None,
        additional_forward_args: Any = None,
        attribute_to_layer_input: bool = False,
    ) -> Tensor:
        """Grad-CAM alone: (n, 1, height, width) of the layer, not negative."""
        given, extra = as_tuple(inputs), extra_arguments(additional_forward_args)
        kept: list[Tensor] = []
        with (
            alone(self.model) as modules,
            as_found(self.model, modules),
            recording(),
            kept_output(self.layer, kept, attribute_to_layer_input),
        ):
            at = [values(x).requires_grad_() for x in given]
            y = selected(self.model(*(x.clone() for x in at), *extra), target)
            layer = last_of(kept)
            if layer.dim() < 3:
                raise ValueError(
                    "Grad-CAM needs a layer whose output has channels and places, got shape "
                    f"{tuple(layer.shape)}"
                )
            (slope,) = torch.autograd.grad(y.sum(), layer)
        places = tuple(range(2, layer.dim()))
        weights = slope.mean(places, keepdim=True)
        return (weights * layer.detach()).sum(1, keepdim=True).relu()
