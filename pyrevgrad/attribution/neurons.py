"""Modified gradients of neurons inside a model, with Captum's signatures. Imports the methods."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..swapping.sites import Report
from .methods import Attribution, Deconvolution, GuidedBackprop, is_relu
from .targets import Inputs, Neurons, neurons


class _OfNeuron(Attribution):
    """Captum's neuron methods: one number of a layer's output is explained."""

    _method: type[Any]

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module | str,
        device_ids: Any = None,
        where: Any = is_relu,
    ) -> None:
        self._of_layer = self._method(model, where, layer)

    @property
    def report(self) -> Report | None:
        """What the last call replaced."""
        return self._of_layer.report

    def attribute(
        self,
        inputs: Inputs,
        neuron_selector: Neurons,
        additional_forward_args: Any = None,
        attribute_to_neuron_input: bool = False,
    ) -> Any:
        """The map of the neurons that are selected in each sample.

        Parameters
        ----------
        inputs, additional_forward_args
            As `GuidedBackprop.attribute`.
        neuron_selector : int, tuple of int and slice, or callable
            An index of the layer's output without its samples; where there are slices, the sum of
            all that they take. A callable makes of the output, (n, …), one number for each sample,
            (n,).
        attribute_to_neuron_input : bool
            Select in the layer's input instead of its output.

        Raises
        ------
        TypeError, ValueError
            As `GuidedBackprop.attribute`, or a selector that does not fit.
        """

        def select(value: Any) -> Tensor:
            return neurons(value, neuron_selector)

        return self._of_layer.map_of(
            select, inputs, additional_forward_args, of_input=attribute_to_neuron_input
        )


class NeuronGuidedBackprop(_OfNeuron):
    """`GuidedBackprop` of neurons of a layer, with the signature of Captum's class.

    Parameters
    ----------
    model : torch.nn.Module
    layer : torch.nn.Module or str
    device_ids : ignored
        Captum's; replicas need no list here.
    where : optional
        As `GuidedBackprop`.

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> NeuronGuidedBackprop(model, model[1]).attribute(torch.randn(2, 4), (slice(2, 5),)).shape
    torch.Size([2, 4])
    """

    _method = GuidedBackprop


class NeuronDeconvolution(_OfNeuron):
    """`Deconvolution` of neurons of a layer, as `NeuronGuidedBackprop`."""

    _method = Deconvolution
