"""PyTorch's spellings of activations: which function of the table a call computes, on what.

Imports torch, the activation table and layers; knows nothing of swaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..activations import ACTIVATIONS
from .layers import is_relu6

Interval = tuple[float, float]


@dataclass(frozen=True)
class Spelling:
    """One function of PyTorch: what it computes and what it takes after the input.

    `kind` is a name of the activation table, ``"clamp"``, ``"threshold"`` or ``"rrelu"``, which
    depend on their arguments, or a function that no row serves, with the `refusal` that says so.
    """

    kind: str
    names: tuple[str, ...] = ()
    shown: str = ""
    inplace: bool = False
    refusal: str | None = None
    rectifier: bool = False


@dataclass
class Call:
    """One call of an activation: ``f(x)`` with `params`, and how PyTorch computes it.

    `interval` is given for a clamp, whose slope is 1 at its bounds too, where relu's is 0.
    `declared` says that the whole call is a layer's, whose forward `value` is.
    """

    kind: str
    shown: str
    x: Tensor
    params: dict[str, float] = field(default_factory=dict)
    inplace: bool = False
    refusal: str | None = None
    rectifier: bool = False
    value: Callable[[Tensor], Tensor] | None = None
    interval: Interval | None = None
    declared: bool = False


_LEARNED = "its slope is learned, and no row of the activation table has a gradient for it"
_RANDOM = (
    "its slopes are drawn at random in training, and no row of the activation table is; under "
    "model.eval() it is leaky_relu, which is served"
)
_FUSED = (
    "the activation is fused into one operation with other layers and cannot be taken apart; one "
    "that the model calls by itself can be replaced"
)
_GATED = "it multiplies one half of its input by a gate made of the other"
_NO_THRESHOLD = "no row of the activation table is a threshold other than (0, 0)"
#: Rows whose slope is zero. Models round and compare for other ends too, so that only who asks for
#: one has it taken.
STEPS = frozenset(name for name, row in ACTIVATIONS.items() if row.slopes == (0.0,))
#: Why a layer of a kind is left, said before it runs.
OF_LAYERS = {"prelu": _LEARNED, "rrelu": _RANDOM, "threshold": _NO_THRESHOLD, "glu": _GATED}

#: (kind, names of the arguments after the input, where PyTorch has it). A trailing underscore means
#: in place.
_TABLE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("relu", ("inplace",), "F.relu"),
    ("relu", (), "torch.relu torch.relu_ Tensor.relu Tensor.relu_"),
    ("leaky_relu", ("negative_slope", "inplace"), "F.leaky_relu"),
    ("leaky_relu", ("negative_slope",), "F.leaky_relu_ nn.leaky_relu nn.leaky_relu_"),
    ("relu6", ("inplace",), "F.relu6"),
    ("relu6", (), "nn.relu6 nn.relu6_"),
    ("hardtanh", ("min_val", "max_val", "inplace"), "F.hardtanh"),
    ("hardtanh", ("min_val", "max_val"), "F.hardtanh_ nn.hardtanh nn.hardtanh_"),
    ("elu", ("alpha", "inplace"), "F.elu"),
    ("elu", ("alpha", "scale", "input_scale"), "F.elu_ nn.elu nn.elu_"),
    ("selu", ("inplace",), "F.selu"),
    ("selu", (), "torch.selu torch.selu_"),
    ("celu", ("alpha", "inplace"), "F.celu"),
    ("celu", ("alpha",), "torch.celu torch.celu_"),
    ("softplus", ("beta", "threshold"), "F.softplus"),
    ("softsign", (), "F.softsign"),
    ("sigmoid", (), "torch.sigmoid torch.sigmoid_ Tensor.sigmoid Tensor.sigmoid_ special.expit"),
    ("logsigmoid", (), "F.logsigmoid"),
    ("tanh", (), "torch.tanh torch.tanh_ Tensor.tanh Tensor.tanh_"),
    ("tanhshrink", (), "F.tanhshrink"),
    ("hardshrink", ("lambd",), "F.hardshrink torch.hardshrink Tensor.hardshrink"),
    ("softshrink", ("lambd",), "F.softshrink"),
    ("gelu", ("approximate",), "F.gelu nn.gelu_"),
    ("silu", ("inplace",), "F.silu"),
    ("silu", (), "nn.silu nn.silu_"),
    ("mish", ("inplace",), "F.mish"),
    ("mish", (), "nn.mish nn.mish_"),
    ("hardswish", ("inplace",), "F.hardswish"),
    ("hardswish", (), "nn.hardswish nn.hardswish_"),
    ("hardsigmoid", ("inplace",), "F.hardsigmoid"),
    ("hardsigmoid", (), "nn.hardsigmoid nn.hardsigmoid_"),
    ("sign", (), "torch.sign torch.sgn Tensor.sign Tensor.sign_ Tensor.sgn Tensor.sgn_"),
    ("round", ("decimals",), "torch.round torch.round_ Tensor.round Tensor.round_"),
    ("heaviside", ("values",), "torch.heaviside Tensor.heaviside Tensor.heaviside_"),
    ("threshold", ("threshold", "value", "inplace"), "F._threshold"),
    ("threshold", ("threshold", "value"), "torch.threshold torch.threshold_"),
    ("rrelu", ("lower", "upper", "training", "inplace"), "F.rrelu"),
    ("rrelu", ("lower", "upper", "training"), "torch.rrelu torch.rrelu_"),
    ("prelu", ("weight",), "torch.prelu Tensor.prelu"),
    ("glu", ("dim",), "F.glu nn.glu"),
    ("clamp", ("min", "max"), "torch.clamp torch.clamp_ Tensor.clamp Tensor.clamp_"),
    ("clamp", ("min", "max"), "torch.clip torch.clip_ Tensor.clip Tensor.clip_"),
    ("clamp", ("min",), "torch.clamp_min torch.clamp_min_ Tensor.clamp_min Tensor.clamp_min_"),
    ("fused relu", (), "torch.rnn_relu torch.rnn_relu_cell torch.cudnn_convolution_relu"),
    ("fused relu", (), "torch.cudnn_convolution_add_relu torch._addmm_activation"),
    ("fused relu", (), "torch._transformer_encoder_layer_fwd"),
    ("fused tanh", (), "torch.rnn_tanh torch.rnn_tanh_cell torch.lstm torch.lstm_cell"),
    ("fused tanh", (), "torch.gru torch.gru_cell"),
)
_ROOMS = {"F": F, "torch": torch, "Tensor": Tensor, "nn": torch._C._nn, "special": torch.special}
#: How a room is called where that is not by its key.
_SHOWN = {"nn": "torch._C._nn", "special": "torch.special"}
#: What no row serves, and why; whether it is a rectifier, which the swap is meant to reach.
_REFUSALS = {
    "prelu": (_LEARNED, True),
    "glu": (_GATED, False),
    "fused relu": (_FUSED, True),
    "fused tanh": (_FUSED, False),
}
#: Their signature in ATen, where it is not that of the function of the same name.
_ATEN_NAMES = {"gelu": ("approximate",), "log_sigmoid": (), "relu6": (), "_prelu_kernel": ()}


def _spellings() -> dict[Any, Spelling]:
    made: dict[Any, Spelling] = {}
    for kind, names, places in _TABLE:
        refusal, rectifier = _REFUSALS.get(kind, (None, False))
        for place in places.split():
            room, name = place.split(".")
            function = getattr(_ROOMS[room], name, None)
            if function is not None:
                inplace = name.endswith("_")
                bare = name.removeprefix("_") if room == "F" else name
                shown = f"{_SHOWN.get(room, room)}.{bare}"
                made.setdefault(function, Spelling(kind, names, shown, inplace, refusal, rectifier))
    return made


SPELLINGS = _spellings()
#: What the code that calls an activation names; a step's name, as Python's ``round``, says nothing.
NAMES = {s.shown.rpartition(".")[2] for s in SPELLINGS.values() if s.kind not in STEPS}


_OPERATORS = (torch._ops.OpOverload, torch._ops.OpOverloadPacket)


@cache
def _of_operator(name: str) -> Spelling | None:
    """The spelling of ``torch.ops.aten.<name>``, which fx graphs of exporters call."""
    bare = {"log_sigmoid": "logsigmoid", "_prelu_kernel": "prelu"}.get(name, name)
    for spelling in SPELLINGS.values():
        own = spelling.shown.rpartition(".")[2]
        if own == bare and "inplace" not in spelling.names:
            names = _ATEN_NAMES.get(name, spelling.names)
            return replace(spelling, names=names, shown=f"torch.ops.aten.{name}")
    return None


def spelling_of(function: Any) -> Spelling | None:
    """How the table calls `function`, or None if it is no activation."""
    found = SPELLINGS.get(function)
    if found is not None or not isinstance(function, _OPERATORS):
        return found
    if isinstance(function, torch._ops.OpOverload):
        function = function._overloadpacket
    space, _, name = function._qualified_op_name.partition("::")
    return _of_operator(name) if space == "aten" else None


def read(spelling: Spelling, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The call that these arguments make, or None if it is no activation of real numbers."""
    given = dict(kwargs)
    if spelling.kind.startswith("fused"):
        tensors = [part for part in args if isinstance(part, Tensor)]
        if not tensors:
            return None
        return _refused(spelling, tensors[0])
    if args:
        x, *rest = args
        given.update(zip(spelling.names, rest, strict=False))
        strays = len(rest) > len(spelling.names)
    else:
        x = given.pop("input", given.pop("self", None))
        strays = False
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return None
    strange = [name for name in given if name not in spelling.names]
    if strays or strange:
        call = _refused(spelling, x)
        call.refusal = f"it is called with {', '.join(strange) or 'arguments not known here'}="
        return _with_kind(call, given)
    if spelling.refusal is not None:
        return _refused(spelling, x)
    inplace = spelling.inplace or bool(given.pop("inplace", False))
    call = Call(spelling.kind, spelling.shown, x, inplace=inplace)
    return _with_kind(call, given)


def _refused(spelling: Spelling, x: Tensor) -> Call:
    return Call(
        spelling.kind,
        spelling.shown,
        x,
        inplace=spelling.inplace,
        refusal=spelling.refusal,
        rectifier=spelling.rectifier,
    )


def _with_kind(call: Call, given: dict[str, Any]) -> Call | None:
    """`call` with its row, parameters and PyTorch's out-of-place function, from its arguments."""
    special = _SPECIAL.get(call.kind)
    if special is not None:
        return special(call, given)
    if call.kind not in ACTIVATIONS:
        return call
    if call.kind == "gelu" and given.pop("approximate", "none") == "tanh":
        call.kind = "gelu_tanh"
    if call.kind == "elu" and (given.pop("scale", 1), given.pop("input_scale", 1)) != (1, 1):
        call.refusal = "its scale or input_scale is not 1"
    return _resolved(call, given)


def _resolved(call: Call, params: dict[str, Any]) -> Call:
    if call.kind == "hardtanh" and is_relu6(params.get("min_val"), params.get("max_val")):
        call.kind = "relu6"
    row = ACTIVATIONS[call.kind]
    call.params = {p.name: params[p.name] for p in row.parameters if p.name in params}
    call.rectifier = call.rectifier or row.rectifier or _is_clipped_relu(call)
    try:
        row.resolve(call.params)
    except (TypeError, ValueError) as error:
        call.refusal = call.refusal or str(error)
    if call.value is None and call.kind not in ("relu", "leaky_relu"):
        call.value = plain(call.kind, call.params)
    return call


def _is_clipped_relu(call: Call) -> bool:
    return call.kind == "hardtanh" and call.params.get("min_val", -1.0) == 0


def plain(kind: str, params: dict[str, float]) -> Callable[[Tensor], Tensor]:
    """PyTorch's own function of the row `kind`, out of place."""
    row = ACTIVATIONS[kind]
    assert row.torch_name is not None
    function: Any = torch
    for part in row.torch_name.split("."):
        function = getattr(function, part)
    return partial(function, **row.torch_arguments, **params)


def _bound(given: dict[str, Any], name: str, absent: float) -> float | None:
    """A bound of a clamp as a number; None if it is a tensor of many elements."""
    value = given.get(name)
    if value is None:
        return absent
    if isinstance(value, Tensor):
        return value.item() if value.numel() == 1 and not value.requires_grad else None
    return float(value)


def _clamp(call: Call, given: dict[str, Any]) -> Call | None:
    low, high = _bound(given, "min", -math.inf), _bound(given, "max", math.inf)
    if low != 0 or high is None or high <= 0:
        return None
    call.interval = (0.0, high)
    call.shown += "(min=0)" if math.isinf(high) else f"(min=0, max={high:g})"
    if math.isinf(high):
        call.kind, call.value = "relu", partial(torch.clamp, min=0)
        return _resolved(call, {})
    call.kind, call.value = "hardtanh", partial(torch.clamp, min=0, max=high)
    return _resolved(call, {"min_val": 0.0, "max_val": high})


def _threshold(call: Call, given: dict[str, Any]) -> Call:
    call.rectifier = True
    if given.get("threshold") == 0 and given.get("value") == 0:
        call.kind, call.value = "relu", partial(torch.threshold, threshold=0.0, value=0.0)
        return _resolved(call, {})
    call.refusal = _NO_THRESHOLD
    return call


def _step(call: Call, given: dict[str, Any]) -> Call | None:
    # What stops no gradient is no activation: much is rounded that is no model's data.
    if not may_need_gradient(call.x):
        return None
    params = {}
    if given.get("decimals", 0) != 0:
        call.refusal = call.refusal or "its decimals is not 0"
    if call.kind == "heaviside":
        values: Any = given.get("values")
        number = _bound(given, "values", 0.0)
        if number is None or (isinstance(values, Tensor) and values.dim() > call.x.dim()):
            call.refusal = call.refusal or "its values is not one number"
            return call
        params, call.value = {"values": number}, partial(torch.heaviside, values=values)
    return _resolved(call, params)


def may_need_gradient(x: Tensor) -> bool:
    """Whether a gradient may be asked of what is computed of `x`."""
    return (
        (x.requires_grad and torch.is_grad_enabled())
        or torch._C._are_functorch_transforms_active()
        or torch.autograd.forward_ad._current_level >= 0
    )


def _rrelu(call: Call, given: dict[str, Any]) -> Call:
    call.rectifier = True
    if given.get("training", False):
        call.refusal = _RANDOM
        return call
    lower, upper = given.get("lower", 1 / 8), given.get("upper", 1 / 3)
    call.kind = "leaky_relu"
    call.value = partial(F.rrelu, lower=lower, upper=upper, training=False)
    return _resolved(call, {"negative_slope": (lower + upper) / 2})


#: Kinds that are of the table or not by their arguments.
_SPECIAL: dict[str, Callable[[Call, dict[str, Any]], Call | None]] = {
    "clamp": _clamp,
    "threshold": _threshold,
    "rrelu": _rrelu,
    **dict.fromkeys(STEPS, _step),
}
