"""Is the gradient that reaches the features −λ times the plain one? Measured, for any model.

Imports what measures. The plain gradient is taken by differences of the forward, which no reversal
changes, so that any implementation can be checked, ours or not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from .checks import check_finite
from .measuring import INPUT, STEP, Probe

#: How far, relatively, a measured factor may lie from what is wanted.
CLOSE = {torch.float64: 0.02, torch.float32: 0.1}


class ReversalError(RuntimeError):
    """A reversal does not do what it is for; `report` holds what was measured."""

    def __init__(self, report: ReversalReport) -> None:
        super().__init__(str(report))
        self.report = report


@dataclass(frozen=True)
class ReversalReport:
    """What `check_reversal` measured.

    Attributes
    ----------
    verdict : str
        "reversed" if all is well; else "wrong sign", "doubled sign", "no effect", "wrong place",
        "scale lost", "no gradient", "not proportional" or "not measured".
    sentence : str
        The verdict in words.
    scale : float
        λ of the check.
    factors : dict of str to float
        For each module with parameters, and for the input: the gradient that autograd gives,
        divided by the plain one. −λ where it is reversed, 1 where it is not; infinite where the
        forward is flat though autograd sends a gradient, as before a straight-through step: of
        those nothing is judged.
    """

    verdict: str
    sentence: str
    scale: float
    factors: dict[str, float] = field(repr=False)

    @property
    def ok(self) -> bool:
        """Whether the features get −λ times the plain gradient, and nothing else does."""
        return self.verdict == "reversed"

    def __str__(self) -> str:
        width = max(map(len, self.factors), default=0)
        lines = [f"  {name:<{width}}  {factor:+.4g}" for name, factor in self.factors.items()]
        title = "gradient divided by the plain one:"
        return "\n".join([f"{self.verdict}: {self.sentence}", title, *lines])


def check_reversal(
    model: nn.Module,
    inputs: Any,
    *,
    scale: float | None = None,
    features: str | nn.Module | None = None,
    output: Any = None,
    label: Any = None,
    strict: bool = True,
    dtype: torch.dtype = torch.float64,
) -> ReversalReport:
    """Measure that the gradient reaching the features is −λ times the plain one, or raise.

    Everything runs on a copy of `model` in float64; the model, its random state and its gradients
    stay as they are. For each module with parameters, the gradient by autograd is divided by the
    one by central differences of the forward. It costs three forwards a module.

    Parameters
    ----------
    model : torch.nn.Module
        A reversal layer, or any model that contains a reversal, by a layer, a function or a
        `torch.autograd.Function` of one's own.
    inputs : Tensor, tuple or dict
        What ``model(...)`` takes: one tensor, positional or keyword arguments. Tensors may lie in
        lists, tuples and dicts within.
    scale : float, optional
        λ as the model has it now. If not given, layers of pyrevgrad are set to .5 on the copy, so
        that even a λ of 0 or 1 can be told from no reversal (the sentence names a layer whose own
        λ is 0 now, as where a schedule begins); a model without them is taken to have λ = 1.
    features : str or torch.nn.Module, optional
        The submodule, or its name, whose gradient must be reversed, while that of all else on the
        way stays plain. ``model.features`` if there is one; else some modules must be reversed,
        and some plain.
    output, label : int, str or callable, optional
        Which part of what the model returns comes from the domain head, and which from the label
        head: an index, a key, an attribute, or a function of what is returned. Needed for `output`
        where the model returns several tensors and none is called ``domain_loss``. The label's
        gradient, if it is known which that is, must be plain everywhere.
    strict : bool
        Whether a reversal that fails raises; if not, the report says so.
    dtype : torch.dtype
        float64, or float32 where the model cannot run in float64 (less exact, same verdicts).

    Returns
    -------
    ReversalReport

    Raises
    ------
    ReversalError
        Under `strict`, with a sentence for each way to fail.
    TypeError, ValueError
        A model that is no module or cannot be copied, an output that cannot be chosen, a λ of 0.

    Examples
    --------
    >>> from pyrevgrad.nn import GradientReversal
    >>> model = nn.Sequential(nn.Linear(2, 3), GradientReversal(0.1), nn.Linear(3, 1))
    >>> check_reversal(model, torch.ones(4, 2)).verdict
    'reversed'
    >>> model[1] = nn.Identity()
    >>> check_reversal(model, torch.ones(4, 2), strict=False).verdict
    'no effect'
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"check_reversal takes a torch.nn.Module, not {type(model).__name__}")
    if dtype not in STEP:
        raise ValueError(f"dtype must be torch.float64 or torch.float32, got {dtype}")
    expected = None if scale is None else check_finite("scale", scale)
    if expected == 0:
        raise ValueError("scale is 0: no reversal could be seen; check with another λ")
    # In inference mode nothing could be recorded, on the copy neither.
    with torch.inference_mode(False):
        report = _report(Probe(model, inputs, features, dtype), expected, output, label)
    if strict and not report.ok:
        raise ReversalError(report)
    return report


def _report(probe: Probe, expected: float | None, output: Any, label: Any) -> ReversalReport:
    own = probe.scales() if expected is None else {}
    expected = probe.set_scale() if expected is None else expected
    domain, labels = probe.chosen(output, label)
    verdict, sentence, factors = _measured(probe, domain, labels, expected)
    if verdict != "reversed":
        # On a kink, as of a relu of 0 + 0 in a block that was initialised to zero, differences
        # measure neither of its slopes; and a head that starts at zero sends no gradient back.
        probe.stir()
        verdict, sentence, factors = _measured(probe, domain, labels, expected)
    if verdict == "reversed":
        verdict, sentence = _as_it_stands(sentence, own, expected)
    return ReversalReport(verdict, sentence, expected, factors)


def _as_it_stands(sentence: str, own: dict[str, float], expected: float) -> tuple[str, str]:
    """The verdict and sentence of a reversal that reverses, with what its own λ does now."""
    for name, scale in own.items():
        if scale < 0:
            return "wrong sign", (
                f"the reversal reverses, but λ of {name} is {scale:g}: below 0 it undoes the "
                "reversal; give λ without its sign"
            )
    still = [name for name, scale in own.items() if scale == 0]
    if still:
        # As a schedule begins, so no error.
        sentence += f" (checked at λ = {expected:g}, as λ of {_listed(still)} is 0 now)"
    elif any(scale != expected for scale in own.values()):
        sentence += f" (checked at λ = {expected:g})"
    return "reversed", sentence


def _measured(
    probe: Probe, domain: Any, labels: Any, expected: float
) -> tuple[str, str, dict[str, float]]:
    """The verdict, its sentence and the factors that it is about."""
    judge = _Judge(expected, CLOSE[probe.dtype])
    factors = probe.factors(domain)
    finite = _finite(factors)
    flat = [name for name in factors if name not in finite]
    verdict, sentence = "no gradient", ""
    if finite:
        verdict, sentence = judge.verdict(finite, probe.is_feature, probe.without_effect)
    if flat:
        why = (
            f"the forward is flat in {_listed(flat)}, though autograd sends a gradient there, as "
            "before a straight-through step, which differences cannot measure"
        )
        # Of what is left, which may be the head alone.
        seen = any(probe.is_feature(name) for name in finite)
        if verdict in ("no gradient", "no effect") and not seen:
            verdict, sentence = "not measured", f"{why}: check without that step"
        else:
            sentence = f"{sentence} ({why})"
    if verdict == "reversed" and labels is not None:
        others = _finite(probe.factors(labels))
        turned = judge.not_plain(others)
        if turned:
            verdict, factors = "wrong place", others
            sentence = (
                f"the gradient of the label output is not the plain one in {_listed(turned)}: the "
                "reversal must stand before the domain head alone"
            )
    return verdict, sentence, factors


def _finite(factors: dict[str, float]) -> dict[str, float]:
    return {name: factor for name, factor in factors.items() if not math.isinf(factor)}


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:4])
    return shown + (f" and {len(names) - 4} more" if len(names) > 4 else "")


class _Judge:
    """Turns measured factors into a verdict and its sentence."""

    def __init__(self, scale: float, close: float) -> None:
        self.scale, self.close = scale, close

    def all(self, factors: dict[str, float], wanted: float) -> bool:
        """Whether every factor is `wanted`."""
        return all(self.near(factor, wanted) for factor in factors.values())

    def near(self, factor: float, wanted: float) -> bool:
        """Whether a factor is `wanted` but for the error of measuring it."""
        return math.isclose(factor, wanted, rel_tol=self.close, abs_tol=1e-6)

    def not_plain(self, factors: dict[str, float]) -> list[str]:
        """The names whose gradient is not the plain one."""
        return [name for name, factor in factors.items() if not self.near(factor, 1.0)]

    def verdict(
        self, factors: dict[str, float], is_feature: Any, without_effect: list[str]
    ) -> tuple[str, str]:
        """The verdict over all that the domain output depends on."""
        if list(factors) == [INPUT]:
            return self._of_features(factors, {}, factors)
        modules = {name: factor for name, factor in factors.items() if name != INPUT}
        named = {name: is_feature(name) for name in modules}
        features = {name: factor for name, factor in modules.items() if named[name]}
        if None in named.values():
            # Nobody named the features: what gets the plain gradient is taken for the head.
            turned = self.not_plain(modules)
            if without_effect and not self.not_plain(factors):
                return "no gradient", (
                    f"at these inputs the output does not depend on {_listed(without_effect)}, "
                    "from which a way leads to it, as where every unit on it is off or saturated: "
                    "features there get no gradient, reversed or not; try other inputs"
                )
            features = {name: modules[name] for name in turned} or modules
            if features == modules and self.all(modules, -self.scale):
                return "wrong place", (
                    "every parameter gets the reversed gradient, so that a domain head among them "
                    "climbs its own loss: the reversal must stand between the features and the "
                    "head, not behind it or on the loss (if these are features alone, name them "
                    "by features=)"
                )
        if not features:
            return "no gradient", (
                "with these inputs the output does not depend on the features' parameters: either "
                "no way leads from them to it, or every unit on the way is off"
            )
        head = {name: factor for name, factor in modules.items() if name not in features}
        return self._of_features(features, head, factors)

    def _of_features(
        self, features: dict[str, float], head: dict[str, float], factors: dict[str, float]
    ) -> tuple[str, str]:
        odd = self.not_plain(head)
        if self.all(features, -self.scale) and not odd:
            return "reversed", f"the features get {-self.scale:g} times the plain gradient"
        if odd and (self.all(features, -self.scale) or self.all(features, 1.0)):
            return "wrong place", (
                f"{_listed(odd)} belongs to the domain head and does not get the plain gradient: "
                "the reversal must stand between the features and the head, not in it or behind it"
            )
        if not self.all(features, 1.0):
            return self._of_values(features)
        if features is not factors and self.near(factors.get(INPUT, 1.0), -self.scale):
            return "wrong place", (
                "only the model's input gets the reversed gradient: the reversal stands before "
                "the features, where no parameter feels it"
            )
        also = ", or two reversals do, or one of the wrong sign: give another scale to tell"
        return "no effect", (
            "the features get the plain gradient: nothing on the way to them reverses it"
            + also * self.near(abs(self.scale), 1.0)
        )

    def _of_values(self, features: dict[str, float]) -> tuple[str, str]:
        scale = self.scale
        if self.all(features, 0.0):
            return "no gradient", (
                "no gradient reaches the features, though the output depends on them: look for a "
                "detach(), a torch.no_grad() or a λ of 0 on the way"
            )
        if self.all(features, scale):
            return "wrong sign", (
                f"the features get {scale:+g} times the plain gradient: λ arrives, but its sign "
                "is lost, as by a negative scale or a second negation"
            )
        if self.all(features, scale * scale):
            return "doubled sign", (
                f"the features get {scale * scale:+g} = λ² times the plain gradient: two "
                "reversals stand on the way, and the second undoes the sign of the first"
            )
        if self.all(features, -1.0):
            return "scale lost", (
                f"the features get −1 times the plain gradient, and λ is {scale:g}: it never "
                "arrives"
            )
        plain = [name for name, factor in features.items() if self.near(factor, 1.0)]
        turned = [name for name, factor in features.items() if self.near(factor, -scale)]
        if plain and turned and len(plain) + len(turned) == len(features):
            return "wrong place", (
                f"within the features, {_listed(turned)} gets the reversed gradient and "
                f"{_listed(plain)} the plain one: the reversal stands inside the features"
            )
        return "not proportional", (
            f"the features get neither {-scale:g} times the plain gradient nor the plain one: is "
            "this the output of the domain head alone, or a sum with the label loss? Does every "
            "way from the features to the head pass the reversal once?"
            + self._other_scale(features)
        )

    def _other_scale(self, features: dict[str, float]) -> str:
        """What to do where all features get the same factor, which is another λ perhaps."""
        factor = next(iter(features.values()))
        if not (math.isfinite(factor) and factor and self.all(features, factor)):
            return ""
        return f" All get {factor:+.4g} times it: give scale={abs(factor):.4g} if that is λ"
