"""A swap while it holds: what it replaced, the strict checks, and putting everything back.

Imports the other rooms of the package.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import autograd
from ..rules import Rule
from . import audit, interception, places, recomputation
from .calls import OF_LAYERS, Call
from .interception import Interceptor
from .layers import declared, layer_is_rectifier, layer_kind
from .places import Place
from .refusals import SwapError, SwapWarning, modules_of
from .seeing import is_quiet, mark, quiet
from .selection import Selection, described
from .sites import Report, Site
from .unseen import Unseen
from .verification import Recorder, Verification, verified

Substitution = Callable[[Call, Tensor, Rule], Tensor]
#: Nodes of the graph that change no number.
_SAME_VALUES = (
    "ToCopyBackward", "ViewBackward", "ReshapeAliasBackward", "ExpandBackward", "AliasBackward",
    "UnsqueezeBackward", "SqueezeBackward",
)  # fmt: skip


class Swap:
    """What `pyrevgrad.swap` returns: a context manager with `report`, `revert` and `verify`.

    Attributes
    ----------
    model : torch.nn.Module
    rule : Rule
    strict : bool or "all"
    report : Report
        What was replaced and what was left; it grows as the model runs.
    """

    def __init__(
        self,
        model: nn.Module,
        rule: Rule,
        where: Any,
        strict: Any,
        substitution: Substitution = interception.substitute,
        sparing: bool = False,
        inputs_alone: bool = False,
    ) -> None:
        if strict not in (True, False, "all"):
            raise ValueError(f"strict must be True, False or 'all', got {strict!r}")
        named = modules_of(model)
        self.model, self.rule, self.strict = model, rule, strict
        self.selection = Selection(named, rule, where)
        self.report = Report(type(model).__name__, rule, described(where))
        self.interceptor = Interceptor(self)
        self._substitution = substitution
        self.recorder: Recorder | None = None
        #: Whether only the gradients of inputs will be asked for; and so that less need be kept.
        self.inputs_alone, self.sparing = inputs_alone or sparing, sparing
        self.live = False
        #: What a call raised, which ended it.
        self._told: str | None = None
        self.calls = self.shadowed = 0
        #: Whether an activation ran with its rule, and not plainly for want of a gradient.
        self.substituted = False
        self._lock = threading.RLock()
        self._holds = 0
        self._sites: dict[Any, Site] = {}
        self._warned: set[Any] = set()
        aliases: dict[nn.Module, list[str]] = {}
        for name, module in named.items():
            aliases.setdefault(module, []).append(name)
        self.places = [
            Place(self, module, tuple(names))
            for module, names in aliases.items()
            if module is model or not places.calls_no_activation(module)
        ]
        self.unseen = Unseen(self, aliases, where)
        self._register_layers()
        self.hold()
        self.live = True
        _set_live(self, True)

    def _register_layers(self) -> None:
        for place in self.places:
            kind = layer_kind(place.module)
            if kind is None:
                continue
            site = Site(place.path, kind, place.module, place.aliases)
            site.spelling = f"nn.{type(place.module).__name__}"
            site.rectifier = layer_is_rectifier(kind, place.module)
            refusal = OF_LAYERS.get(kind)
            said = declared(place.module)
            if said is not None:
                site.params, site.spelling = dict(said[1]), type(place.module).__name__
                refusal = self.refusal_of_declared(place.module)
                place.declared = said
            self.selection.decide(site, refusal)
            self.add((place.path, kind), site)

    def refusal_of_declared(self, module: nn.Module) -> str | None:
        """Why a layer that is declared to be an activation is not taken for one, or None."""
        if self.inputs_alone or not any(p.requires_grad for p in module.parameters()):
            return None
        return (
            "it has parameters, which would get no gradient; freeze them by requires_grad_(False)"
        )

    def add(self, key: Any, site: Site) -> None:
        """List a site under `key`."""
        self._sites[key] = site
        self.report.sites.append(site)

    def lists(self, key: Any) -> bool:
        """Whether a site stands under `key`."""
        return key in self._sites

    # What the interceptor asks and tells.

    def layer_site(self, path: str, kind: str) -> Site | None:
        """The site of the activation layer of that kind that is registered there, if one is."""
        return self._sites.get((path, kind))

    def site(self, key: Any, place: Place, call: Call, source: str) -> Site:
        """The site of a call, made and decided when it is first seen."""
        site = self._sites.get(key)
        if site is not None and site.source:
            return site
        with self._lock:
            site = self._sites.get(key)
            if site is None:
                site = Site(place.path, call.kind, place.module, place.aliases)
                site.spelling = call.shown
                self.add(key, site)
            if not site.source:
                site.source, site.params = source, dict(call.params)
                site.rectifier = call.rectifier
                self.selection.decide(site, call.refusal)
        return site

    def is_parameter(self, x: Tensor) -> bool:
        """Whether `x` is a parameter of the model as it runs, or a cast or another shape of one."""
        node: Any = x.grad_fn
        while node is not None and audit.bare(node.name()) in _SAME_VALUES:
            node = node.next_functions[0][0]
        whole = x._base if x._is_view() and x._base is not None else x
        leaf = whole if node is None else getattr(node, "variable", None)
        if leaf is None or not (leaf.requires_grad or isinstance(leaf, nn.Parameter)):
            return False
        return any(leaf is own for own in self.model.parameters())

    def note_left(self, key: Any, place: Place, call: Call, source: str, reason: str) -> None:
        """List a call that is left whatever `where` says."""
        with self._lock:
            if key not in self._sites:
                site = Site(place.path, call.kind, place.module, place.aliases, dict(call.params))
                site.spelling, site.source, site.reason = call.shown, source, reason
                self.add(key, site)
            self._sites[key].forward += 1

    def note_uncertain(self, key: Any, place: Place, pattern: str, source: str) -> None:
        """List something that looks like an activation, and warn of it once at each line."""
        with self._lock:
            site = self._sites.get(key)
            if site is None:
                site = Site(place.path, pattern, place.module, place.aliases, source=source)
                site.spelling, site.certain = pattern, False
                site.reason = "it looks like an activation, and the swap cannot be sure"
                if type(place.module).__module__.partition(".")[0] != "torch" and place.path:
                    name = type(place.module).__name__
                    site.reason += f"; if {name} is one, say so by pyrevgrad.declare({name}, ...)"
                self.add(key, site)
                # Once for all layers of a class: the report lists each.
                same = type(place.module), pattern, source
                if same not in self._warned:
                    self._warned.add(same)
                    warnings.warn(f"swap left {site}: {site.reason}", SwapWarning, stacklevel=4)
            site.forward += 1

    def note_unserved(self, site: Site, reason: str) -> None:
        """List a call of a replaced site that met a tensor that no row serves."""
        key = (site, reason)
        with self._lock:
            if key not in self._sites:
                other = Site(site.path, site.kind, site.module, site.aliases, dict(site.params))
                other.spelling, other.source, other.reason = site.spelling, site.source, reason
                other.meant = True
                self.add(key, other)
            self._sites[key].forward += 1

    def count_forward(self, site: Site) -> None:
        """One more run forward."""
        with self._lock:
            site.forward += 1

    def count_backward(self, site: Site) -> None:
        """One more run backward."""
        with self._lock:
            site.backward += 1

    def substitute(self, call: Call, x: Tensor, site: Site) -> Tensor:
        """The activation with its rule's backward."""
        assert site.rule is not None
        self.substituted = True
        for other in recomputation.LIVE:
            if other is not self and other.interceptor.thread.places:
                other.shadowed += 1
        if self.recorder is not None:
            return self.recorder.substitute(call, x, site)
        return self._substitution(call, x, site.rule)

    def after_call(self, place: Place, forward: bool, args: Any, kwargs: Any, result: Any) -> None:
        """The checks after the outermost call of a method of a module of the model."""
        self.calls += forward
        self.unseen.left(place, (args, kwargs), result)
        problem = self._problem(forward and place.module is self.model)
        if problem is not None:
            self._restore()
            self._told = problem
            raise SwapError(problem)

    # The strict checks.

    def _problem(self, whole_model: bool) -> str | None:
        if not self.strict:
            return None
        missed = [site for site in self.report.left if site.meant and site.forward]
        if self.strict == "all":
            missed += [site for site in self.report.left if not site.certain]
        if missed:
            listed = "\n".join(f"  {site}: {site.reason}" for site in missed)
            selectable = any(site not in self.unseen.sites for site in missed)
            leave = "leave them out with where={name: None}, or " if selectable else ""
            return (
                f"the swap of {self.report.model} did not reach {len(missed)} "
                f"activation{'s' * (len(missed) > 1)}:\n{listed}\n"
                f"{leave}pass strict=False"
            )
        if whole_model and not self.shadowed and (not self._ran() or self._all_inside_functions()):
            return self._nothing()
        return None

    def _ran(self) -> bool:
        return any(site.forward for site in self.report.replaced)

    def _all_inside_functions(self) -> bool:
        """Whether what ran had no gradient to replace, at the end: a Function may recompute it."""
        return self.unseen.custom and not (self.substituted or self.live)

    def _nothing(self) -> str:
        start = f"the swap replaced no activation of {self.report.model}"
        if not self.calls:
            return f"{start}: no forward of it ran while the swap held"
        if self._ran():
            start += ", each of which ran where no gradient is recorded, as in an autograd.Function"
        left = [site for site in self.report.left if site.forward]
        if not left:
            return (
                f"{start}: its forward calls none that PyTorch has a name for; if a layer of yours "
                "is one, say so by pyrevgrad.declare(Layer, ...)"
            )
        return f"{start}; it left\n" + "\n".join(f"  {site}: {site.reason}" for site in left)

    # Holding and putting back.

    def hold(self) -> None:
        """Announce the modules, once for any number of holders."""
        with self._lock:
            if not self._holds:
                places.announce(self.places)
                recomputation.begin()
            self._holds += 1

    def release(self) -> None:
        """Undo one `hold`."""
        with self._lock:
            self._holds -= 1
            if not self._holds:
                recomputation.end()
                places.silence(self.places)

    def _restore(self) -> bool:
        with self._lock:
            if not self.live:
                return False
            self.live = False
            _set_live(self, False)
            self.release()
            return True

    def revert(self) -> nn.Module:
        """Put everything back, then check; returns the model. Again: does nothing.

        Raises
        ------
        SwapError
            Under `strict`, when nothing was replaced or something was missed.
        """
        if self._restore():
            if self.calls:
                self.unseen.finished()
            problem = self._problem(True)
            if problem is not None:
                raise SwapError(problem)
        return self.model

    def verify(self, *args: Any, **kwargs: Any) -> Verification:
        """Run the model forward and back, and prove by numbers that the rule was applied.

        Each activation's gradient is compared with the rule's formula in float64, and with the
        plain gradient where the two must differ; values are compared with those of the model with
        its own classes, which it has for that time in every thread. Buffers, random state and
        ``.grad`` are left as they were.

        Parameters
        ----------
        *args, **kwargs
            What the model takes.

        Returns
        -------
        Verification
            The numbers; ``print`` shows them as a table.

        Raises
        ------
        SwapError
            A gradient is not the rule's, a value changed, the model does not repeat itself, or
            nothing was proved at these inputs.
        """
        self._check_live()
        return verified(self, args, kwargs)

    def _check_live(self) -> None:
        if not self.live:
            raise SwapError("this swap was reverted already; call pyrevgrad.swap again")

    def __enter__(self) -> Swap:
        self._check_live()
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            self._restore()
        elif self.live or self._told is None:
            self.revert()
        else:
            # Raised where nobody may have heard it: in a thread, or under a try.
            raise SwapError(f"the swap ended before its block did: {self._told}")

    def describe(self, place: Place) -> str:
        """What ``print(model)`` says of the swap at a module."""
        if not self.live:
            return ""
        here = [site for site in self.report.sites if site.path == place.path]
        parts = [
            f"{repr(site.rule) if site.rule else 'left'}"
            if layer_kind(site.module)
            else f"{site.kind}: {repr(site.rule) if site.rule else 'left'}"
            for site in here
        ]
        start = f"swap({self.rule!r})" if place.module is self.model else ""
        return ", ".join([start] * bool(start) + ([f"swapped={'; '.join(parts)}"] if parts else []))

    def __repr__(self) -> str:
        state = "holds" if self.live else "reverted"
        return f"<swap of {self.report.model} by {self.rule!r}, {state}: {self.report!r}>"


_live_lock = threading.Lock()


def _set_live(swap: Swap, live: bool) -> None:
    """List a swap among the living ones of all threads, who share the watcher, or take it out."""
    with _live_lock:
        others = tuple(other for other in recomputation.LIVE if other is not swap)
        recomputation.LIVE = (*others, swap) if live else others
        autograd.watcher = _watch if recomputation.LIVE else None


def _watch(x: Any, pairs: Any, scale: Any, inplace: bool) -> Any:
    """A call of pyrevgrad's own activations, seen by the innermost swap that is at work."""
    eager = not torch.compiler.is_dynamo_compiling()
    if eager and not is_quiet() and isinstance(x, Tensor):
        resumed = interception.resumed_swaps()
        for swap in reversed(recomputation.LIVE if resumed is None else tuple(resumed)):
            thread = swap.interceptor.thread
            if not (thread.active and thread.places):
                continue
            full = pairs.full
            names = [parameter.name for parameter in full.row.parameters]
            params = dict(zip(names, full.numbers, strict=True))
            shown = f"pyrevgrad.{full.row.name}"
            call = Call(full.row.name, shown, x, params, inplace, None, full.row.rectifier)
            y = swap.interceptor.own_call(call, pairs, scale)
            if y is not None:
                return y
    # What a custom activation calls is none of the model's.
    with quiet() if eager else nullcontext():
        y = autograd.call_unwatched(x, pairs, scale, inplace)
    mark(y)
    return y
