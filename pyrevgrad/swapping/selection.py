"""Which activations a swap takes, and by which rule: the argument ``where``, read and checked.

Imports the activation table, the rules, the tables of layers and calls, and sites.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from ..activations import CUSTOM
from ..checks import closest
from ..nn import Activation
from ..rules import Rule, check_rule
from .calls import STEPS, spelling_of
from .layers import declared, layer_kind
from .sites import Site

#: How a selector met a site: the activation is named by itself, or lies in a place that is named.
ITSELF, INSIDE = "itself", "inside"
NOT_A_RECTIFIER = "not a rectifier"
NOT_SELECTED = "not selected by where"
DECLARED_PRELU = (
    "; this rule asks for no slope, and in attribution, or with the parameters frozen, it is "
    'served after pyrevgrad.declare(nn.PReLU, "leaky_relu")'
)
A_STEP = (
    "a step, which models take for other ends too; where=lambda site: site.kind == {!r} takes it"
)
Selector = Callable[[Site], str | None]


def is_served_declared(kind: str, rule: Rule) -> bool:
    """Whether a layer of this kind is served when declared a leaky_relu: under rules without f'."""
    return kind == "prelu" and rule.slope == "identity" and not rule.custom


def prefixes(path: str) -> list[str]:
    """A dotted name and the names of all that encloses it, innermost first, the model's last."""
    parts = path.split(".") if path else []
    return [".".join(parts[:n]) for n in range(len(parts), -1, -1)]


class Selection:
    """``where``, as a function from a site to its rule or the reason to leave it.

    Parameters
    ----------
    modules : dict
        Every module of the model by each of its dotted names.
    rule : Rule
    where : None, "all", a name, a pattern, a type, a predicate, a sequence or a mapping of these

    Raises
    ------
    TypeError
        `rule` is no rule, or `where` is none of these.
    ValueError
        A name or pattern that no module of the model has.
    """

    def __init__(self, modules: Mapping[str, nn.Module], rule: Rule, where: Any) -> None:
        self._modules, self._rule = modules, check_rule(rule)
        self._choices: list[tuple[Selector, Rule | None]] = []
        self._rest = where is None or isinstance(where, Mapping)
        if isinstance(where, str) and where == "all":
            self._choices = [(_of_all, self._rule)]
        elif isinstance(where, Mapping):
            for key, value in where.items():
                chosen = None if value is None else check_rule(value)
                self._choices.append((self._selector(key), chosen))
        elif where is not None:
            self._choices = [(self._selector(where), self._rule)]

    def _selector(self, where: Any) -> Selector:
        if isinstance(where, str):
            return self._by_name(where)
        if isinstance(where, type):
            return self._by_type(where)
        if isinstance(where, Iterable) and not isinstance(where, nn.Module):
            parts = [self._selector(part) for part in where]
            return lambda site: _first(part(site) for part in parts)
        if isinstance(where, Hashable) and (spelling := spelling_of(where)) is not None:
            raise TypeError(
                f"where: {spelling.shown} is an activation and no predicate of a site; pass "
                f"lambda site: site.kind == {spelling.kind!r}"
            )
        if callable(where) and not isinstance(where, nn.Module):
            return lambda site: ITSELF if where(site) else None
        raise TypeError(
            "where must be None, 'all', a module's dotted name or a pattern of names, a type of "
            "module, a predicate of a site, or a sequence or mapping of these, not "
            f"{type(where).__name__}"
        )

    def _by_type(self, kind: type) -> Selector:
        if not issubclass(kind, nn.Module):
            raise TypeError(f"where: {kind.__name__} is not a type of torch.nn.Module")

        def selector(site: Site) -> str | None:
            if isinstance(site.module, kind) and _is_named(site):
                return ITSELF
            around = (name for path in site.aliases for name in prefixes(path))
            return INSIDE if any(isinstance(self._modules[n], kind) for n in around) else None

        return selector

    def _by_name(self, pattern: str) -> Selector:
        # A name may have the signs of a pattern, as a key of a ModuleDict.
        exact = pattern in self._modules
        if not exact and not any(fnmatchcase(name, pattern) for name in self._modules):
            known = [name for name in self._modules if name]
            raise ValueError(
                f"where: the model has no module named {pattern!r}: {closest(pattern, known)}"
            )

        def selector(site: Site) -> str | None:
            if pattern in site.aliases and _is_named(site):
                return ITSELF
            around = (name for path in site.aliases for name in prefixes(path))
            inside = (name == pattern if exact else fnmatchcase(name, pattern) for name in around)
            return INSIDE if any(inside) else None

        return selector

    def decide(self, site: Site, refusal: str | None) -> None:
        """Write into `site` its rule, or the reason why it is left and whether it is meant."""
        rule, how = self._rule if self._rest else None, INSIDE
        reason = NOT_SELECTED
        for selector, chosen in self._choices:
            met = selector(site)
            if met is not None:
                rule, how = chosen, met
                reason = "left out by where" if chosen is None else ""
                break
        if rule is not None and how == INSIDE and not site.rectifier:
            rule, reason = None, NOT_A_RECTIFIER
        if rule is None:
            site.rule, site.reason, site.meant = None, reason, False
            if reason == NOT_A_RECTIFIER and site.kind in CUSTOM:
                site.reason += ' (make it by custom(..., rectifier=True), or pass where="all")'
            if reason == NOT_A_RECTIFIER and site.kind in STEPS:
                site.reason = A_STEP.format(site.kind)
            if refusal is not None and reason == NOT_A_RECTIFIER:
                site.reason += f"; {refusal}"
            return
        if refusal is not None:
            if is_served_declared(site.kind, rule):
                refusal += DECLARED_PRELU
            site.rule, site.reason, site.meant = None, refusal, True
            return
        site.rule, site.reason, site.meant = rule, "", False


def _is_named(site: Site) -> bool:
    """Whether who names the module of `site` names the activation: PyTorch's, ours, or declared.

    A layer that rounds besides, as a quantised ReLU, is not that rounding.
    """
    if isinstance(site.module, Activation):
        return True
    if site.kind in STEPS:
        return declared(site.module) is not None
    return layer_kind(site.module) is not None


def _of_all(site: Site) -> str:
    return INSIDE if site.kind in STEPS and not _is_named(site) else ITSELF


def _first(answers: Iterable[str | None]) -> str | None:
    found = [answer for answer in answers if answer is not None]
    return ITSELF if ITSELF in found else (found[0] if found else None)


def described(where: Any) -> str:
    """`where` as the report shows it."""
    if isinstance(where, type):
        return where.__name__
    if isinstance(where, Mapping):
        parts = (f"{described(key)}: {value!r}" for key, value in where.items())
        return "{" + ", ".join(parts) + "}"
    if isinstance(where, list | tuple | set | frozenset):
        return "(" + ", ".join(map(described, where)) + ")"
    if callable(where):
        return f"{getattr(where, '__module__', '')}.{getattr(where, '__qualname__', 'predicate')}"
    return repr(where)
