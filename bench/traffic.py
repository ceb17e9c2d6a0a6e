"""The byte-count ceilings: what each provider's kernels must at least read and write.

Imports the tables and cases. Bytes per element, forward and backward together; one read or write
of a tensor counts s, the size of its dtype, wherever it lies. A ratio of two such counts is the
speed-up that memory traffic alone would give. It is no bound where an opponent computes slowly or
waits for page faults, and it counts neither of those, nor the read that a cache makes of a line
before it is written.
"""

from __future__ import annotations

from pyrevgrad.activations import ACTIVATIONS, CONSTANT
from pyrevgrad.pairs import make_pair
from pyrevgrad.rules import plan

from .cases import Case

ITEM_SIZES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}
_TORCH_NAMES = {name: f"torch.{name}" for name in ITEM_SIZES}

#: Activations that PyTorch composes of several operations; their kernels are not counted.
_COMPOSED = ("softsign", "tanhshrink", "relu_squared")


def item_size(dtype: str) -> int:
    """Bytes of one element."""
    return ITEM_SIZES[dtype]


def fused_forward(case: Case, dtype: str) -> float:
    """Read x, write y, and one bit where the plan keeps a mask."""
    keeps = plan(case.activation, case.rule, _TORCH_NAMES[dtype]).keeps
    return 2 * item_size(dtype) + (0.125 if keeps == "mask" else 0)


def fused_backward(case: Case, dtype: str) -> float:
    """Read g and what was kept (nothing, one bit, y or x), write gx; 0 where gx is g itself."""
    row, s = ACTIVATIONS[case.activation], item_size(dtype)
    if make_pair(row, row.resolve({}), case.rule, s == 2).passes_through:
        return 0
    kept = plan(case.activation, case.rule, _TORCH_NAMES[dtype]).bytes_per_element
    return 2 * s + kept


def _plain(activation: str, s: int, cuda: bool) -> float | None:
    """Forward reads x and writes y; backward reads g and the kept x or y and writes gx: 5s."""
    row = ACTIVATIONS[activation]
    if activation == "identity":
        return 2 * s  # a clone forward; backward hands on g
    if activation in _COMPOSED or row.torch_name is None or row.slope_from == CONSTANT:
        return None
    # log_sigmoid on the CPU also writes a buffer forward and reads it backward.
    return 7 * s if activation == "logsigmoid" and not cuda else 5 * s


def _compare(s: int) -> float:
    """``x > 0``: read s, write one byte."""
    return s + 1


def _times_bool(s: int, cuda: bool) -> float:
    """``g * mask``: on the CPU PyTorch first casts the booleans to the dtype of g (read 1, write
    s), then multiplies (read 2s, write s). The profiler shows the cast as ``aten::to``. On a GPU
    one kernel reads both and casts on the way."""
    return 2 * s + 1 if cuda else (1 + s) + 3 * s


def _idiom(case: Case, s: int, cuda: bool) -> float | None:
    plain = _plain(case.activation, s, cuda)
    forward = None if case.activation in _COMPOSED else 2 * s
    gate = _compare(s) + _times_bool(s, cuda)
    own: dict[str, float] = {
        # one more pass over the gradient: read 2s, write s where two tensors meet, 2s in all else
        "reverse": 2 * s,
        "guided_slope": gate,
        "guided_product": 2 * s,
        "rectgrad": 3 * s + gate,
    }
    if case.rule_name in own:
        return None if plain is None else plain + own[case.rule_name]
    # value only forward: the activation's own backward never runs
    alone: dict[str, float] = {
        "GUIDED": 2 * gate,
        "guided_scaled": 2 * gate + 2 * s,
        "DECONVNET": gate,
        "deconvnet_clipped": 2 * s + gate,
        "STRAIGHT_THROUGH": 0,
        "clipped_straight_through": 2 * gate,
    }
    if forward is None or case.rule_name not in alone:
        return None
    return forward + alone[case.rule_name]


def _strongest(case: Case, s: int, cuda: bool) -> float | None:
    """Of the forms that compete the one that moves the least, whichever was the fastest."""
    plain = _plain(case.activation, s, cuda)
    if plain is None:
        return None
    # A kernel that reads g and what was kept and writes gx takes 3s, one more in place 2s; relu,
    # and elu with its like, multiply by the scale in the one kernel (see `strongest`).
    relu = case.activation == "relu"
    scaled = relu or case.activation in ("elu", "celu", "selu")
    return {
        "reverse": plain if scaled else plain + 2 * s,
        "GUIDED": 2 * s + 3 * s + 2 * s,
        "guided_scaled": 2 * s + 3 * s + 2 * s + (0 if relu else 2 * s),
        "DECONVNET": 2 * s + 2 * s,
    }.get(case.rule_name)


def _compiled(case: Case, s: int) -> float | None:
    """Inductor's one kernel each way: read x, write y and a mask of bytes; read g and that."""
    masked = 4 * s + 2
    known = {"reverse": masked, "GUIDED": masked, "guided_scaled": masked, "DECONVNET": 4 * s}
    return known.get(case.rule_name)


def bytes_per_element(provider: str, case: Case, dtype: str, device: str = "cpu") -> float | None:
    """Bytes that `provider` moves for one element, forward and backward; None where not counted.

    Parameters
    ----------
    device : {"cpu", "cuda"}
        PyTorch multiplies by booleans in two kernels on the one, in one on the other.

    Examples
    --------
    >>> case = Case("relu", "guided_scaled")
    >>> bytes_per_element("fused", case, "float32"), bytes_per_element("plain", case, "float32")
    (16.25, 20)
    >>> bytes_per_element("idiom", Case("relu", "GUIDED"), "float32")
    52
    >>> bytes_per_element("idiom", Case("relu", "GUIDED"), "float32", "cuda")
    36
    """
    s, cuda = item_size(dtype), device == "cuda"
    if provider == "fused" or (cuda and provider == "fused-triton"):
        return fused_forward(case, dtype) + fused_backward(case, dtype)
    if provider == "copy":
        return 4 * s  # x copied forward, g copied backward
    counts = {
        "plain": _plain(case.activation, s, cuda),
        "idiom": _idiom(case, s, cuda),
        "eager-best": _strongest(case, s, cuda),
        "idiom+compile": _compiled(case, s),
        # x to y, then g and y to gx
        "best+compile": 5 * s if case.activation == "relu" else None,
    }
    return counts.get(provider)


def ceiling(provider: str, case: Case, dtype: str, device: str = "cpu") -> float | None:
    """The speed-up of ``fused`` over `provider` by bytes alone; None where not counted."""
    theirs = bytes_per_element(provider, case, dtype, device)
    ours = bytes_per_element("fused", case, dtype, device)
    return None if theirs is None or not ours else theirs / ours
