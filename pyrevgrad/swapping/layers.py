"""Which layers are one activation: PyTorch's own, and those that are declared to be.

Imports the activation table.
"""

from __future__ import annotations

from torch import nn

from ..activations import find

#: The layers of PyTorch that are one activation, by class: its kind.
LAYERS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Hardswish: "hardswish",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.Sigmoid: "sigmoid",
    nn.LogSigmoid: "logsigmoid",
    nn.Tanh: "tanh",
    nn.Tanhshrink: "tanhshrink",
    nn.Hardshrink: "hardshrink",
    nn.Softshrink: "softshrink",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardtanh: "hardtanh",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.Threshold: "threshold",
    nn.GLU: "glu",
}


#: Classes of layers that compute one activation by hand: its name and parameters.
DECLARED: dict[type[nn.Module], tuple[str, dict[str, float]]] = {}
#: Those of other libraries, by their full names: these are not imported here.
_KNOWN = {
    "transformers.activations.NewGELUActivation": "gelu_tanh",
    "transformers.activations.FastGELUActivation": "gelu_tanh",
    "transformers.activations.AccurateGELUActivation": "gelu_tanh",
    "transformers.models.bloom.modeling_bloom.BloomGelu": "gelu_tanh",
    "transformers.activations.QuickGELUActivation": "quick_gelu",
    "open_clip.transformer.QuickGELU": "quick_gelu",
    "clip.model.QuickGELU": "quick_gelu",
    "timm.layers.activations.QuickGELU": "quick_gelu",
    "timm.layers.activations.Swish": "silu",
    "timm.layers.activations.Mish": "mish",
    "timm.layers.activations.HardSwish": "hardswish",
    "timm.layers.activations_me.SwishMe": "silu",
    "timm.layers.activations_me.MishMe": "mish",
    "timm.layers.activations_me.HardSwishMe": "hardswish",
    "efficientnet_pytorch.utils.MemoryEfficientSwish": "silu",
}


def is_relu6(low: object, high: object) -> bool:
    """Whether a hardtanh of these bounds is relu6: in some versions ``nn.ReLU6`` calls it so."""
    return (low, high) == (0, 6)


def declared(module: nn.Module) -> tuple[str, dict[str, float]] | None:
    """What a layer is declared to compute: its activation and parameters, or None."""
    for base in type(module).__mro__:
        if base in DECLARED:
            return DECLARED[base]
        if base in LAYERS or base is nn.Module:
            return None
        known = _KNOWN.get(f"{base.__module__}.{base.__qualname__}")
        if known is not None:
            return known, {}
    return None


def layer_kind(module: nn.Module) -> str | None:
    """The kind of an activation layer or a subclass of one, None for any other module."""
    said = declared(module)
    if said is not None:
        return said[0]
    for base in type(module).__mro__:
        if base in LAYERS:
            kind = LAYERS[base]
            # Each kind is asked for its own: a module is slow to say that it lacks an attribute.
            if kind == "hardtanh":
                bounds = getattr(module, "min_val", None), getattr(module, "max_val", None)
                return "relu6" if is_relu6(*bounds) else kind
            if kind == "gelu" and getattr(module, "approximate", "none") == "tanh":
                return "gelu_tanh"
            if kind == "threshold" and (
                getattr(module, "threshold", None),
                getattr(module, "value", None),
            ) == (0, 0):
                return "relu"
            return "leaky_relu" if kind == "rrelu" and not module.training else kind
    return None


def layer_is_rectifier(kind: str, module: nn.Module) -> bool:
    """Whether an activation layer of this kind is one that the swap is meant to reach."""
    if kind == "hardtanh":
        said = declared(module)
        return (said[1].get("min_val") if said else getattr(module, "min_val", -1.0)) == 0
    if kind in ("prelu", "rrelu", "threshold", "glu"):
        return kind != "glu"
    return find(kind).rectifier
