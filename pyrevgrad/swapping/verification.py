"""Proof by numbers that a swap changed the gradients as its rule says, and nothing else.

Imports torch, the reference's formulas, audit and interception.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .. import autograd, backends
from ..reference import eager
from ..rules import EXACT, Rule
from . import audit, interception
from .calls import Call, plain
from .leaving import as_found
from .places import as_they_were
from .refusals import SwapError
from .sites import Site, table
from .stance import uncompiled

if TYPE_CHECKING:
    from .holding import Swap

#: Allowed difference from the formula in float64, relative to its largest number.
TOLERANCES = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 1e-2,
    torch.bfloat16: 5e-2,
}

#: The same between a layer written by hand and the activation that it is declared to be.
HAND_WRITTEN = 1e-4

CHANGED = (
    "verify: the swap changed a value of the model's output, as it does where a model compares "
    "type(module) with a class (a swapped module's is derived from its own: ask isinstance) or "
    "takes gradients in its forward, which are then the rule's"
)
NO_REPETITION = (
    "verify: the model does not repeat itself, by randomness that is not torch's or by what it "
    "keeps besides its buffers: the same call gave other values, so nothing can be proved"
)


@dataclass
class Numbers:
    """What one activation's backward did, over all its calls.

    Attributes
    ----------
    elements : int
        Gradients that it sent back.
    must_differ : int
        Those where the rule and the plain gradient are not the same number.
    differing : int
        Those of them that do differ from the plain gradient.
    largest_error : float
        Largest distance from the rule's formula, relative to the largest gradient.
    """

    site: Site
    elements: int = 0
    must_differ: int = 0
    differing: int = 0
    largest_error: float = 0.0


@dataclass
class Verification:
    """The numbers of `Swap.verify`: `sites`, and their sums."""

    sites: list[Numbers] = field(default_factory=list)
    #: Largest difference between the modified and the plain gradient of the inputs.
    input_difference: float = 0.0

    @property
    def must_differ(self) -> int:
        """Gradients where the rule and the plain gradient are not the same number."""
        return sum(numbers.must_differ for numbers in self.sites)

    @property
    def differing(self) -> int:
        """Those of them that do differ from the plain gradient."""
        return sum(numbers.differing for numbers in self.sites)

    def __str__(self) -> str:
        head = ("activation", "kind", "gradients", "must differ", "differ", "largest error")
        rows = [
            (
                n.site.path or "(model)", n.site.kind, str(n.elements), str(n.must_differ),
                str(n.differing), f"{n.largest_error:.1e}",
            )
            for n in self.sites
        ]  # fmt: skip
        last = f"input gradient: at most {self.input_difference:.3g} from the plain one"
        return "\n".join([*table(head, rows), last])


@dataclass
class _Seen:
    """One call: its site, and what went in, forward and back."""

    call: Call
    site: Site
    x: Tensor
    g: Tensor | None = None
    gx: Tensor | None = None


class Recorder:
    """Stands between the interceptor and the binding, and keeps what each call met."""

    def __init__(self) -> None:
        self.seen: list[_Seen] = []
        #: Those whose gradients cannot be read, under a transform as torch.vmap.
        self.hidden: list[Site] = []

    def substitute(self, call: Call, x: Tensor, site: Site) -> Tensor:
        """The activation with its rule's backward, watched."""
        seen = _Seen(call, site, x.detach().clone())
        self.seen.append(seen)
        assert site.rule is not None
        y = interception.substitute(call, x, site.rule)
        node = _own_node(y.grad_fn)
        if node is None and torch._C._are_functorch_transforms_active():
            self.hidden.append(site)
        if node is not None:
            node.register_hook(lambda into, out: _note(seen, into, out))
        return y


def _note(seen: _Seen, into: Any, out: Any) -> None:
    if out[0] is not None and into[0] is not None:
        # A rule that passes everything returns g itself, which PyTorch may go on to overwrite.
        seen.g, seen.gx = out[0].detach().clone(), into[0].detach().clone()


def _own_node(node: Any) -> Any:
    """The node of our call: `node` itself, or behind the copy and views of an in-place call."""
    waiting = [node]
    for _ in range(8):
        if not waiting:
            return None
        node = waiting.pop(0)
        if node is None:
            continue
        if autograd.recorded_by_us(node):
            return node
        waiting += [parent for parent, _ in reversed(node.next_functions)]
    return None


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_()
    return value


def _gradients(model: nn.Module, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Any]]:
    """The outputs, and the gradients of the inputs and parameters for fixed output gradients."""
    args, kwargs = tree_map(_leaf, (args, kwargs))
    inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.requires_grad]
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    # In place on a leaf that requires grad is an error, and some models begin so.
    given = tree_map(
        lambda t: t * 1 if isinstance(t, Tensor) and t.requires_grad else t, (args, kwargs)
    )
    with torch.enable_grad():
        result = model(*given[0], **given[1])
    found = list(audit.tensors_in(result))
    if not found:
        raise SwapError(
            f"verify: no tensor was found in the {type(result).__name__} that the model returns; "
            "wrap it in a module whose forward returns tensors"
        )
    outputs = [t for t in found if t.grad_fn is not None]
    if not outputs:
        raise SwapError("verify: no output of the model requires grad, so nothing can be proved")
    into = [
        torch.cos(torch.arange(y.numel(), device=y.device)).reshape(y.shape).to(y.dtype)
        for y in outputs
    ]
    # Kept, since a model may keep a bias that it computed once, for the next forward.
    gradients = torch.autograd.grad(
        outputs, inputs + parameters, into, retain_graph=True, allow_unused=True
    )
    return [y.detach() for y in outputs], list(gradients[: len(inputs)])


def verified(swap: Swap, args: Any, kwargs: Any) -> Verification:
    """See `Swap.verify`."""
    swap.recorder = Recorder()
    try:
        with as_found(swap.model):
            outputs, modified = _gradients(swap.model, args, kwargs)
    finally:
        recorder, swap.recorder = swap.recorder, None
    plain_outputs, plain_gradients = _plain_gradients(swap, args, kwargs)
    if not _all_equal(outputs, plain_outputs):
        with as_found(swap.model):
            again, _ = _gradients(swap.model, args, kwargs)
        plain_again, _ = _plain_gradients(swap, args, kwargs)
        repeats = _all_equal(outputs, again) and _all_equal(plain_outputs, plain_again)
        raise SwapError(CHANGED if repeats else NO_REPETITION)
    proof = Verification(_judged(recorder.seen))
    pairs = zip(modified, plain_gradients, strict=True)
    differences = [(a - b).abs().max().item() for a, b in pairs if a is not None and b is not None]
    proof.input_difference = max(differences, default=0.0)
    _conclude(recorder, proof)
    return proof


def _plain_gradients(swap: Swap, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Any]]:
    # As in the swap: what a compiler fuses rounds otherwise.
    with as_found(swap.model), as_they_were(swap.places), uncompiled():
        return _gradients(swap.model, args, kwargs)


def _all_equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(map(_equal, found, expected))


def _equal(found: Tensor, expected: Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    return bool(torch.isclose(found, expected, rtol=0.0, atol=0.0, equal_nan=True).all())


def _conclude(recorder: Recorder, proof: Verification) -> None:
    seen = recorder.seen
    if not any(one.gx is not None for one in seen):
        if recorder.hidden:
            raise SwapError(
                f"verify: {recorder.hidden[0]} runs under a transform of torch.func, where no "
                "gradient can be read, so nothing was proved"
            )
        raise SwapError("verify: no gradient reached an activation that was replaced")
    wrong = [numbers for numbers in proof.sites if numbers.differing < numbers.must_differ]
    if wrong:
        raise SwapError(f"verify: {wrong[0].site} sent back the plain gradient")
    changes = any(not one.site.rule.is_exact for one in seen if one.site.rule is not None)
    if changes and not proof.must_differ:
        if not any(one.g is not None and bool(one.g.any()) for one in seen):
            raise SwapError(
                "verify: no gradient but zero reached an activation that was replaced, as before a "
                "layer of zero weights, so nothing was proved"
            )
        raise SwapError(
            "verify: at these inputs the rule's gradient is the plain one everywhere, so nothing "
            "was proved; give other inputs"
        )


def _judged(seen: list[_Seen]) -> list[Numbers]:
    judged: dict[Site, Numbers] = {}
    for one in seen:
        numbers = judged.setdefault(one.site, Numbers(one.site))
        if one.g is None or one.gx is None:
            continue
        rule = one.site.rule
        assert rule is not None
        g, gx = one.g.double(), one.gx.double()
        expected, ordinary = _formula(one, rule, g), _plain_gradient(one, g)
        if one.call.declared:
            _check_declared(one, g, ordinary)
        size = float(expected.abs().nan_to_num(0, 0, 0).max()) if g.numel() else 1.0
        size = max(size, 1e-30)
        near = TOLERANCES[one.x.dtype] * size
        distances = _distances(gx, expected, one.x.dtype)
        error = float(distances.max()) if distances.numel() else 0.0
        if math.isinf(error):
            at = int(distances.argmax())
            raise SwapError(
                f"verify: {one.site} sent back {gx.flatten()[at]:g} where {rule!r} gives "
                f"{expected.flatten()[at]:g}: {rule.formula(one.call.kind)}"
            )
        must = (expected - ordinary).abs() > 3 * near
        numbers.elements += g.numel()
        numbers.must_differ += int(must.sum())
        numbers.differing += int((must & ((gx - ordinary).abs() > near)).sum())
        numbers.largest_error = max(numbers.largest_error, error / size)
        if error > near:
            raise SwapError(
                f"verify: {one.site} sent back a gradient that is {error / size:.1e} from "
                f"{rule!r}: {rule.formula(one.call.kind)}"
            )
    return list(judged.values())


def _distances(found: Tensor, expected: Tensor, dtype: torch.dtype) -> Tensor:
    """How far apart, as numbers of `dtype`; infinite where one alone is NaN or infinite."""
    limit = torch.finfo(dtype).max
    # A number beyond the dtype's largest is infinite there, and rightly so.
    apart = (found.clamp(-limit, limit) - expected.clamp(-limit, limit)).abs()
    both_nan = found.isnan() & expected.isnan()
    strays = expected.isinf() & (found != expected) | found.isinf() & (expected.abs() < limit / 2)
    apart = apart.masked_fill(apart.isnan() | strays, torch.inf)
    return apart.masked_fill(both_nan, 0.0)


def _check_declared(one: _Seen, g: Tensor, ordinary: Tensor) -> None:
    """SwapError unless a declared layer has the gradient of what it is said to be."""
    said = _formula(one, EXACT, g).detach()
    near = HAND_WRITTEN * float(said.abs().nan_to_num(0, 0, 0).max()) if g.numel() else 0.0
    if bool((_distances(ordinary, said, ordinary.dtype) > near).any()):
        raise SwapError(
            f"verify: {one.site} is declared to be {one.call.kind}, and its own gradient is another"
        )


def _formula(one: _Seen, rule: Rule, g: Tensor) -> Tensor:
    call = one.call
    pairs = backends.pairs_of(call.kind, interception.rule_for(call, rule), call.params)
    return eager.gradient_of_input(g, one.x.double(), pairs.full, pairs.tensor)


def _plain_gradient(one: _Seen, g: Tensor) -> Tensor:
    """PyTorch's own, in float64; the table's for the rows that PyTorch has no function for."""
    call = one.call
    x = one.x.double().requires_grad_()
    if call.value is None and call.kind not in ("relu", "leaky_relu"):
        pair = backends.pairs_of(call.kind, EXACT, call.params).full
        return eager.gradient_of_input(g, x.detach(), pair, None)
    function = call.value or plain(call.kind, call.params)
    with torch.enable_grad():
        return torch.autograd.grad(function(x), x, g)[0]
