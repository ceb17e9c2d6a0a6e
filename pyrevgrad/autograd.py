"""The one binding of pairs to PyTorch's autograd: save, call, double backward, torch.compile.

Imports backends, binding, inputs, transforms and the reference. A backward runs on its forward's
backend. Where the C++ nodes are there, they record a plain eager call that the native kernels
serve; the Functions below record every other, and say the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import Function

from . import backends
from .backends import BackendError, Pairs, ValueOf
from .binding import NODES
from .inputs import checked, refuse_leaf, refuse_overlap
from .pairs import Pair, floats
from .reference import eager
from .reference.eager import Reversal
from .reference_backend import REFERENCE
from .rules import EXACT
from .transforms import COMPILED, TracingError, exported, exporting, refuse_modified, transformed

_PLAIN_TYPES = (Tensor, torch.nn.Parameter)
# In an operation's error, csrc/memory.h: it sees PyTorch through an interface that tells no reason.
_NO_MEMORY = "torch gave no memory for"
is_dynamo_compiling = torch.compiler.is_dynamo_compiling
_transforms_active = torch._C._are_functorch_transforms_active
_tracing_state = torch._C._get_tracing_state
_forward_ad = torch.autograd.forward_ad
_ORDINARY_VIEW = torch._C._autograd.CreationMeta.DEFAULT


# What a call leaves for its backward beside the saved tensor, as ctx.call: the pair, the tensor
# scale, the backend, and the strides of a mask that is not contiguous. One attribute, since setting
# each costs as much as reading all.


def _first_order(ctx: Any, g: Tensor) -> Tensor:
    """gx by the forward's backend, where no gradient of the gradient is wanted."""
    pair, scale, backend, strides = ctx.call
    if pair.keeps == "nothing" and pair.passes_through and scale is None:
        return g
    if not is_dynamo_compiling() and g.layout is not torch.strided:
        raise TypeError(
            f"a rule's backward takes dense gradients, got one of layout {g.layout}; call "
            ".to_dense() on it"
        )
    kept = None if pair.keeps == "nothing" else ctx.saved_tensors[0]
    return backend.backward(g, kept, pair, scale, strides)


def _is_batched(g: Tensor) -> bool:
    """Whether vmap hands in a whole batch of gradients as one, which only the dispatcher reads."""
    functorch = torch._C._functorch
    return functorch.is_functorch_wrapped_tensor(g) or functorch.is_legacy_batchedtensor(g)


def _any_order(
    g: Tensor, kept: Tensor | None, pair: Pair, scale: Tensor | None, backend: Any, strides: Any
) -> Tensor:
    """gx by the reference, differentiable in g and in x, gates held fixed."""
    if pair.keeps == "mask":
        kept = backend.unpacked(kept, g.shape, strides)
    return REFERENCE.backward(g, kept, pair, scale)


def _gradient(ctx: Any, g: Tensor, edge: bool = False) -> Tensor:
    """gx in a backward; where it is recorded in turn, differentiable."""
    pair, scale, backend, strides = ctx.call
    batched = backend.name == "triton" and _is_batched(g)
    # Where a gradient may have a tangent, the formulas send that along.
    dual = _forward_ad._current_level >= 0
    if not (batched or dual or torch.is_grad_enabled()):
        return _first_order(ctx, g)
    if batched:
        backends.reference_for_batches()
    kept = None if pair.keeps == "nothing" else ctx.saved_tensors[0]
    if edge:
        kept = _Attach.apply(kept, pair)
    return _any_order(g, kept, pair, scale, backend, strides)


class _Call(Function):
    """One kernel each way. What the plan keeps is saved, so that saved-tensor hooks see it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: Pair, scale: Tensor | None, backend: Any) -> Tensor:
        if pair.keeps == "mask":
            y, mask = backend.value_and_mask(x, pair)
            ctx.save_for_backward(mask)
            ctx.call = (pair, scale, backend, None if y.is_contiguous() else y.stride())
            return y
        ctx.call = (pair, scale, backend, None)
        y = backend.value(x, pair)
        if pair.keeps == "input":
            ctx.save_for_backward(x)
        elif pair.keeps == "output":
            ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return _gradient(ctx, g), None, None, None


class _CallWithEdge(Function):
    """As `_Call`, for a rule whose kept output does not lead back to x by f'(x).

    A second output aliases y and stands for x in the graph of a double backward: what arrives
    there is passed to x unchanged. Through y it would meet the rule instead of the derivative.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: Pair, scale: Tensor | None, backend: Any) -> Any:
        ctx.call = (pair, scale, backend, None)
        ctx.set_materialize_grads(False)
        y = backend.value(x, pair)
        edge = y.detach()
        ctx.save_for_backward(edge)
        return y, edge

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, edge: Tensor | None) -> Any:
        gx = None
        if g is not None:
            gx = _gradient(ctx, g, True)
        if edge is not None:
            gx = edge if gx is None else gx + edge
        return gx, None, None, None


class _CallInPlace(Function):
    """As `_Call`, overwriting x. One output, as PyTorch asks where x is a view."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: Pair, scale: Tensor | None, backend: Any) -> Tensor:
        strides = None
        if pair.keeps == "mask":
            ctx.save_for_backward(backend.value_and_mask_(x, pair))
            strides = None if x.is_contiguous() else backend.mask_strides(x)
        else:
            backend.value_(x, pair)
            if pair.keeps == "output":
                ctx.save_for_backward(x)
        ctx.call = (pair, scale, backend, strides)
        ctx.mark_dirty(x)
        return x

    backward = _Call.backward


class _View(Function):
    """The identity as a view of x; the rule applies to g alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pair: Pair, scale: Tensor | None, backend: Any) -> Tensor:
        ctx.call = (pair, scale, backend, None)
        return x.view_as(x)

    backward = _Call.backward


class _Attach(Function):
    """y as a function of x, with slope f'(x), from the edge that aliases y and leads to x."""

    @staticmethod
    def forward(ctx: Any, edge: Tensor, pair: Pair) -> Tensor:
        ctx.pair = pair
        y = edge.view_as(edge)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        (y,) = ctx.saved_tensors
        return eager.derivative_of_output(g, y, ctx.pair), None


def _is_special() -> bool:
    """Whether a compiler, tracer or transform is at work."""
    return (
        is_dynamo_compiling()
        or _transforms_active()
        or _forward_ad._current_level >= 0
        or _tracing_state() is not None
    )


def cannot_fold(x: Any) -> bool:
    """Whether a reversal must stand by itself: for compilers, which fold it themselves, tracers,
    transforms, tensor subclasses, and nested tensors, which the reversal refuses."""
    return type(x) not in _PLAIN_TYPES or x.is_nested or _is_special()


def nodes_for(pairs: Pairs) -> Any:
    """The C++ nodes where they may serve; what they are given decides the rest."""
    if is_dynamo_compiling() or not pairs.handles or not backends.allows_native():
        return None
    return NODES


def _any_order_for_nodes(
    g: Tensor, kept: Tensor | None, pair: Pair, scale: Tensor | None, strides: Any
) -> Tensor:
    return _any_order(g, kept, pair, scale, backends.native(), strides)


if NODES is not None:
    NODES.configure(_any_order_for_nodes, eager.derivative_of_output)


#: What a living swap sets, to see each call of ours in a model; None where no swap lives.
watcher: Callable[..., Any] | None = None


def call(x: Any, pairs: Pairs, scale: Tensor | None, inplace: bool = False) -> Any:
    """y = f(x), recorded with the rule's backward where a gradient can be needed."""
    if watcher is not None:
        return watcher(x, pairs, scale, inplace)
    return call_unwatched(x, pairs, scale, inplace)


def call_unwatched(
    x: Any,
    pairs: Pairs,
    scale: Tensor | None,
    inplace: bool = False,
    value: Callable[[Tensor], Tensor] | None = None,
) -> Any:
    """As `call`; in eager and torch.func, `value` computes f(x) in place of our own kernels."""
    nodes = None if value is not None else nodes_for(pairs)
    if nodes is not None:
        y = (nodes.call_in_place if inplace else nodes.call)(x, *pairs.handles, scale)
        if y is not NotImplemented:
            return y
    if type(x) not in _PLAIN_TYPES or _is_special():
        return _special(x, pairs, scale, inplace, value)
    pair = checked(x, pairs, scale)
    backend = backends.choose(x, pair)
    if value is not None:
        backend = ValueOf(value, backend)
    try:
        if inplace:
            return _in_place(x, pair, scale, backend)
        if not (x.requires_grad and torch.is_grad_enabled()):
            return backend.value(x, pair)
        return _recorded(x, pair, scale, backend)
    except RuntimeError as error:
        if _NO_MEMORY in str(error):
            _ask_again(x)
        raise


def _ask_again(x: Tensor) -> None:
    """Raise PyTorch's own error where there is no memory for a result like `x` and its mask."""
    _ = torch.empty_like(x), torch.empty((x.numel() + 7) // 8, dtype=torch.uint8, device=x.device)


def recorded_by_us(node: Any) -> bool:
    """Whether a node of the graph is that of a call of ours."""
    functions = (_Call, _CallWithEdge, _CallInPlace, _View)
    return node.name() == "ModifiedBackward" or getattr(node, "_forward_cls", None) in functions


def call_view(x: Any, pairs: Pairs, scale: Tensor | None) -> Any:
    """x as a view, recorded with the rule's backward where a gradient can be needed."""
    if is_dynamo_compiling():
        return _compiled_view(x, pairs, scale)
    nodes = nodes_for(pairs)
    if nodes is not None:
        y = nodes.call_view(x, *pairs.handles, scale)
        if y is not NotImplemented:
            return y
    if type(x) not in _PLAIN_TYPES or _is_special():
        return _special(x, pairs, scale, False)
    pair = checked(x, pairs, scale)
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.view_as(x)
    return _View.apply(x, pair, scale, backends.choose(x, pair))


def _recorded(x: Tensor, pair: Pair, scale: Tensor | None, backend: Any) -> Tensor:
    if pair.keeps == "output" and (scale is not None or not pair.exact):
        return _CallWithEdge.apply(x, pair, scale, backend)[0]
    return _Call.apply(x, pair, scale, backend)


def _in_place(x: Tensor, pair: Pair, scale: Tensor | None, backend: Any) -> Tensor:
    name = pair.row.name
    refuse_overlap(x, name)
    if not (x.requires_grad and torch.is_grad_enabled()):
        if x.is_neg():
            return x.copy_(backend.value(x, pair))
        backend.value_(x, pair)
        torch.autograd.graph.increment_version(x)
        return x
    if x._is_view() and torch._C._autograd._get_creation_meta(x) != _ORDINARY_VIEW:
        # PyTorch refuses most of these, but a Function learns it only after it has written.
        x.neg_().neg_()
    base = x._base if x._is_view() and x._base is not None else x
    refuse_leaf((x, base), name)
    modified = not (pair.exact and scale is None)
    copies = pair.keeps == "input" or (pair.keeps == "output" and modified) or x.is_neg()
    # Selective checkpointing runs again what it has not kept, and of an operation that only
    # overwrites there is nothing to keep.
    if copies or torch._C._len_torch_dispatch_stack():
        return x.copy_(_recorded(x.clone(), pair, scale, backend))
    return _CallInPlace.apply(x, pair, scale, backend)


def _special(x: Any, pairs: Pairs, scale: Tensor | None, inplace: bool, value: Any = None) -> Any:
    """Everything but a plain eager tensor: compilers, tracers, transforms, subclasses."""
    if isinstance(x, torch.fx.Proxy):
        return _traced_proxy(x, pairs, scale)
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, not {type(x).__name__}")
    pair = checked(x, pairs, scale)
    source = x
    if inplace:
        refuse_overlap(x, pair.row.name)
        if torch.is_grad_enabled():
            refuse_leaf((x,), pair.row.name)
        # What a pair keeps of x must be what x was. A compiler makes nothing of a copy.
        x = x.clone()
    if exporting():
        y = exported(x, pair, scale)
    elif torch.compiler.is_compiling():
        y = _compiled(x, pair, scale)
    elif _tracing_state() is not None:
        y = exported(x, pair, scale)
    elif _transforms_active() or _forward_ad._current_level >= 0:
        if backends.forced() not in (None, "reference"):
            raise BackendError(
                f"backend {backends.forced()!r} was asked for and does not serve torch.func "
                "transforms or forward-mode gradients; the reference does"
            )
        y = transformed(x, pair, scale, value)
    else:
        backend = backends.reference_for_subclass(x)
        y = _recorded(x, pair, scale, backend if value is None else ValueOf(value, backend))
    return source.copy_(y) if inplace else y


def _inside_transform() -> bool:
    return bool(_transforms_active())


# Asked once, while torch.compile traces: where the trace stands.
_inside_transform._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _refuse_transform() -> None:
    if _inside_transform() or _forward_ad._current_level >= 0:
        raise TracingError(COMPILED)


def _compiled_view(x: Any, pairs: Pairs, scale: Tensor | None) -> Any:
    """As `call_view` where torch.compile traces, in few steps: whether what a trace went through
    still stands is asked again at every call."""
    if not isinstance(x, Tensor) or exporting():
        return _special(x, pairs, scale, False)
    pair = checked(x, pairs, scale)
    _refuse_transform()
    if backends.forced() is not None:
        return _View.apply(x, pair, scale, backends.choose(x, pair))
    number = floats(eager.fitted(pair, x).texts.rule)[-1] if scale is None else -1.0
    return Reversal.apply(x, number, scale)


def _compiled(x: Tensor, pair: Pair, scale: Tensor | None) -> Tensor:
    _refuse_transform()
    backend = backends.choose(x, pair)
    if x.requires_grad and torch.is_grad_enabled():
        if backend is REFERENCE and pair.by_output is not None:
            pair = pair.by_output
        return _Call.apply(x, pair, scale, backend)
    return backend.value(x, pair)


def _traced_proxy(x: Any, pairs: Pairs, scale: Tensor | None) -> Any:
    refuse_modified(pairs.full, scale, "torch.fx.symbolic_trace")
    row = pairs.full.row
    names = [parameter.name for parameter in row.parameters]
    params = dict(zip(names, pairs.full.numbers, strict=True))
    exact = pairs.full.exact and scale is None
    target = _traced_exact if exact else _traced_for_inference
    return x.tracer.create_proxy("call_function", target, (x, row.name), params)


def _traced_exact(x: Tensor, name: str, **params: float) -> Tensor:
    return call(x, backends.pairs_of(name, EXACT, params), None)


def _traced_for_inference(x: Tensor, name: str, **params: float) -> Tensor:
    if x.requires_grad and torch.is_grad_enabled():
        raise TracingError(
            f"this {name} was traced under torch.no_grad() for inference; its rule was not "
            "recorded, so no gradient can be taken through it"
        )
    return _traced_exact(x, name, **params)
