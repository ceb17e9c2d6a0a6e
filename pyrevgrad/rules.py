"""Rules: what a backward does with the incoming gradient, and what it must keep for that.

Data only; imports checks, the tables of activations and custom rules, and rules as text. A rule is
``gx = gate(x, g) ? (scale · slope) · g : +0``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import formula_text
from .activations import CONSTANT, INPUT, MASK, OUTPUT, Activation, find
from .checks import check_number, check_scale, closest
from .custom_rules import check_custom, reads_of, with_parameters

if TYPE_CHECKING:
    import torch

NOTHING = "nothing"
#: What blocks by the incoming gradient: nothing, g <= 0, slope·g <= 0, y·g <= threshold.
GRADIENT_GATES = (None, "gradient", "product", "output")
GUIDED_FORMS = ("input", "slope", "product")
_HALF_TYPES = ("torch.float16", "torch.bfloat16")
_ITEM_SIZES = {"torch.float16": 2, "torch.bfloat16": 2, "torch.float32": 4, "torch.float64": 8}


def _checked_gate(gate: object) -> str | tuple[float, float] | None:
    if gate is None or gate == "positive":
        return gate
    if isinstance(gate, str) or (isinstance(gate, tuple) and len(gate) != 2):
        raise ValueError(f"unknown input gate {gate!r}: choose 'positive' or (low, high)")
    if not isinstance(gate, tuple):
        raise TypeError(f"an input gate is 'positive' or (low, high), not {type(gate).__name__}")
    low, high = (check_number("an input gate's bound", bound) for bound in gate)
    if low > high:
        raise ValueError(f"low must not be above high, got {low!r} and {high!r}")
    return low, high


@dataclass(frozen=True, eq=False, repr=False)
class Rule:
    """What a backward does with the incoming gradient. Frozen; compares and hashes by value.

    ``gx = gate(x, g') ? (scale · slope(x)) · g' : +0.0`` with ``g' = clamp(g, −clip, clip)``.

    Parameters
    ----------
    slope : {"exact", "identity"}
        f'(x), or 1 whatever the activation (straight-through).
    input_gate : None, "positive" or (low, high)
        Blocks where x <= 0, or where x lies outside [low, high]. NaN passes.
    gradient_gate : None, "gradient", "product" or "output"
        Blocks where g <= 0, where slope·g <= 0, or where y·g <= threshold. NaN passes.
    threshold : float
        For ``gradient_gate="output"``.
    clip : float
        Bound on \\|g\\| before anything else; inf for none.
    scale : float
        The factor λ on what passed.
    tensor : torch.Tensor, optional
        A 0-dim tensor that multiplies `scale`, read when backward runs. Compared by identity. The
        repr shows it as ``<tensor>`` and is then no expression; without one it is.
    custom : tuple
        The name and the parameters of what `pyrevgrad.custom_rule` made, which then stands for
        the product slope(x)·g'; empty for none. The repr calls that rule by its name.

    Raises
    ------
    TypeError, ValueError
        For a field outside the above.

    Examples
    --------
    >>> GUIDED.scaled(-0.5)
    GUIDED.scaled(-0.5)
    >>> print(GUIDED.formula("relu"))
    gx = (x <= 0 or g <= 0) ? +0 : g
    """

    slope: str = "exact"
    input_gate: str | tuple[float, float] | None = None
    gradient_gate: str | None = None
    threshold: float = 0.0
    clip: float = math.inf
    scale: float = 1.0
    tensor: torch.Tensor | None = None
    custom: tuple[Any, ...] = ()
    text: str = field(init=False)

    def __post_init__(self) -> None:
        if self.slope not in ("exact", "identity"):
            raise ValueError(f"unknown slope {self.slope!r}: choose from exact, identity")
        if self.gradient_gate not in GRADIENT_GATES:
            known = [gate for gate in GRADIENT_GATES if gate]
            near = closest(self.gradient_gate, known)
            raise ValueError(f"unknown gradient gate {self.gradient_gate!r}: {near}")
        object.__setattr__(self, "input_gate", _checked_gate(self.input_gate))
        # The sum makes 0.0 of -0.0, which blocks the same and prints otherwise.
        object.__setattr__(self, "threshold", check_number("threshold", self.threshold) + 0.0)
        object.__setattr__(self, "clip", check_number("clip", self.clip, low=0.0))
        object.__setattr__(self, "scale", check_number("scale", self.scale))
        object.__setattr__(self, "custom", check_custom(self.custom))
        if self.custom and "slope" not in self.reads:
            object.__setattr__(self, "slope", "identity")
        if self.tensor is not None and check_scale(self.tensor)[1] is None:
            raise TypeError(f"tensor must be a 0-dim tensor, not {type(self.tensor).__name__}")
        gate = self.input_gate
        gate = gate if not isinstance(gate, tuple) else f"{gate[0]!r},{gate[1]!r}"
        numbers = f"{self.threshold!r}|{self.clip!r}|{self.scale!r}"
        text = f"{self.slope}|{gate or ''}|{self.gradient_gate or ''}|{numbers}"
        text = "|".join([text, *(str(part) for part in self.custom)])
        object.__setattr__(self, "text", text)

    def __setstate__(self, state: dict[str, Any]) -> None:
        check_custom(state["custom"])
        self.__dict__.update(state)

    @property
    def structure(self) -> tuple[Any, ...]:
        """Everything but the scale: what decides the kernel and the plan."""
        gates = (self.input_gate, self.gradient_gate, self.threshold)
        return (self.slope, *gates, self.custom, self.clip)

    @property
    def reads(self) -> tuple[str, ...]:
        """What a custom rule reads beside g: some of "slope", "x" and "y"."""
        return reads_of(self.custom)

    @property
    def is_exact(self) -> bool:
        """Whether this is the ordinary backward."""
        plain = self.structure == ("exact", None, None, 0.0, (), math.inf)
        return plain and self.scale == 1.0 and self.tensor is None

    @property
    def is_linear(self) -> bool:
        """Whether gx is linear in g, so that a forward-mode derivative exists."""
        return self.gradient_gate is None and math.isinf(self.clip) and not self.custom

    @classmethod
    def from_text(cls, text: str) -> Rule:
        """The rule whose `text` this is: every field but the tensor.

        torch.compile takes a string for a constant, where it makes changing floats symbolic.
        """
        slope, gate, gradient_gate, threshold, clip, scale, *custom = text.split("|")
        low, _, high = gate.partition(",")
        input_gate = (float(low), float(high)) if high else gate or None
        return cls(
            slope, input_gate, gradient_gate or None, float(threshold), float(clip), float(scale),
            custom=(*custom[:1], *map(float, custom[1:])),
        )  # fmt: skip

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Rule):
            return NotImplemented
        return self.text == other.text and self.tensor is other.tensor

    def __hash__(self) -> int:
        # Not kept: torch.compile, where a rule may be made, cannot hash a tuple before 2.12.
        return hash(self.text)

    def scaled(self, scale: float | torch.Tensor) -> Rule:
        """This rule with its scale multiplied by `scale`, a number or a 0-dim tensor.

        Raises
        ------
        TypeError, ValueError
            See `check_scale`; also for a second tensor, whose product would no longer be live.

        Examples
        --------
        >>> EXACT.scaled(-2.0) == reverse(2.0)
        True
        """
        number, tensor = check_scale(scale)
        if tensor is not None and self.tensor is not None:
            raise ValueError("the rule has a tensor scale already; multiply the tensors yourself")
        return replace(
            self, scale=self.scale * number, tensor=self.tensor if tensor is None else tensor
        )

    def clipped(self, clip: float) -> Rule:
        """This rule on ``clamp(g, −clip, clip)``; the smaller clip holds. ValueError if <= 0.

        Examples
        --------
        >>> DECONVNET.clipped(1.0)
        DECONVNET.clipped(1.0)
        """
        return replace(self, clip=min(self.clip, check_number("clip", clip, low=0.0)))

    def given(self, **parameters: float) -> Rule:
        """This custom rule with other parameters; TypeError for one that it does not take.

        Examples
        --------
        >>> import torch, pyrevgrad
        >>> def to_power(g, k):
        ...     return torch.sign(g) * g.abs() ** k
        >>> pyrevgrad.custom_rule("to_power", to_power, parameters={"k": 0.5}).given(k=2.0)
        to_power.given(k=2.0)
        """
        return replace(self, custom=with_parameters(self.custom, parameters))

    def __repr__(self) -> str:
        return formula_text.name_of(self, _NAMES)

    def formula(self, activation: str | None = None) -> str:
        """The backward as one line of text, for one activation or for any.

        Parameters
        ----------
        activation : str, optional
            A name of the activation table; ``f′(x)`` stands for its slope if not given.

        Raises
        ------
        TypeError, ValueError
            As `pyrevgrad.activation`, for the name.

        Examples
        --------
        >>> print(reverse(0.3).formula("tanh"))
        gx = -0.3·(1 − y²)·g
        >>> print(reverse(0.3).formula())
        gx = -0.3·f′(x)·g
        """
        return formula_text.formula_of(self, None if activation is None else find(activation))


EXACT = Rule()
GUIDED = Rule(slope="identity", input_gate="positive", gradient_gate="gradient")
DECONVNET = Rule(slope="identity", gradient_gate="gradient")
STRAIGHT_THROUGH = Rule(slope="identity")


def reverse(scale: float | torch.Tensor = 1.0) -> Rule:
    """The exact backward times −scale: gradient reversal (Ganin & Lempitsky 2015, section 3.2).

    Parameters
    ----------
    scale : float or 0-dim tensor
        λ of the paper; a tensor is read when backward runs. Below 0 nothing is reversed:
        ``reverse(-1.0)`` is `EXACT`.

    Examples
    --------
    >>> reverse(0.3)
    reverse(0.3)
    """
    number, tensor = check_scale(scale)
    return Rule(scale=-number, tensor=tensor)


def guided(form: str = "input") -> Rule:
    """Guided backpropagation (Springenberg et al. 2014, section 3.4), in one of three forms.

    Parameters
    ----------
    form : {"input", "slope", "product"}
        ``"input"``: g where x > 0 and g > 0 (Lasagne's form, any activation). ``"slope"``:
        f'(x)·g where g > 0 (zennit's). ``"product"``: f'(x)·g where that is > 0 (Captum's).
        One and the same for ReLU.

    Raises
    ------
    ValueError
        An unknown form.

    Examples
    --------
    >>> guided("slope").formula("silu")
    'gx = (g <= 0) ? +0 : σ(x)·(1 + x·(1 − σ(x)))·g, where σ(x) = 1 / (1 + e⁻ˣ)'
    """
    if form not in GUIDED_FORMS:
        raise ValueError(f"unknown form {form!r} of guided: {closest(form, GUIDED_FORMS)}")
    if form == "input":
        return GUIDED
    return Rule(gradient_gate="gradient" if form == "slope" else "product")


def clipped_straight_through(low: float | None = None, high: float | None = None) -> Rule:
    """Straight-through inside [low, high], zero outside (Hubara et al. 2016, equation 4).

    Parameters
    ----------
    low, high : float
        In the unit of x; −1 and 1, as in the paper, if neither is given.

    Raises
    ------
    TypeError
        One bound alone: 0.5 could mean [−0.5, 0.5] as well as [0.5, 1].
    ValueError
        `low` above `high`.

    Examples
    --------
    >>> clipped_straight_through(-1.0, 1.0).formula("sign")
    'gx = (x < -1.0 or x > 1.0) ? +0 : g'
    """
    if low is None and high is None:
        low, high = -1.0, 1.0
    if low is None or high is None:
        raise TypeError("clipped_straight_through takes both bounds, as (-0.5, 0.5), or neither")
    return Rule(slope="identity", input_gate=(low, high))


def rectgrad(threshold: float = 0.0) -> Rule:
    """RectGrad: f'(x)·g where y·g > threshold (Kim et al. 2019, section 4).

    `threshold` has the unit of y·g; the paper takes it as a quantile of y·g in each layer. Below 0
    the paper's formula passes g even where ReLU's output is 0; here its slope of 0 blocks there.

    Examples
    --------
    >>> rectgrad(0.1).formula("relu")
    'gx = (x <= 0 or y·g <= 0.1) ? +0 : g'
    """
    return Rule(gradient_gate="output", threshold=threshold)


_NAMES = {
    EXACT.structure: "EXACT",
    GUIDED.structure: "GUIDED",
    DECONVNET.structure: "DECONVNET",
    STRAIGHT_THROUGH.structure: "STRAIGHT_THROUGH",
    guided("slope").structure: "guided('slope')",
    guided("product").structure: "guided('product')",
}

#: One of each rule by the name of the documentation's table; tests and benchmarks run these.
RULES: dict[str, Rule] = {
    "EXACT": EXACT,
    "reverse": reverse(0.3),
    "GUIDED": GUIDED,
    "guided_slope": guided("slope"),
    "guided_product": guided("product"),
    "DECONVNET": DECONVNET,
    "STRAIGHT_THROUGH": STRAIGHT_THROUGH,
    "clipped_straight_through": clipped_straight_through(-1.0, 1.0),
    "rectgrad": rectgrad(0.1),
    "guided_scaled": GUIDED.scaled(-0.5),
    "deconvnet_clipped": DECONVNET.clipped(1.0),
}


@dataclass(frozen=True)
class Plan:
    """What an (activation, rule, dtype) keeps from forward to backward on the native backend.

    Attributes
    ----------
    keeps : {"nothing", "mask", "output", "input"}
        A mask is one bit per element. The output or input is kept by reference, as PyTorch does.
    bytes_per_element : float
        0, 1/8, or the size of the dtype. A mask's last byte is padded, so n elements keep
        ``ceil(n / 8)`` bytes.
    """

    keeps: str
    bytes_per_element: float


def plan_kind(row: Activation, numbers: tuple[float, ...], rule: Rule, half: bool) -> str:
    """What backward must keep: the decision behind `plan`."""
    if "x" in rule.reads:
        return INPUT
    # A custom rule's y leads to x in a second derivative, and so must tell f'(x).
    reads_output = "y" in rule.reads
    if rule.slope == "identity" and not reads_output:
        if rule.gradient_gate == "output":
            return INPUT if rule.input_gate else OUTPUT
        return MASK if rule.input_gate else NOTHING
    if row.slope_from == CONSTANT and row.slopes == (0.0,) and not rule.custom:
        return NOTHING
    reads_output = reads_output or rule.gradient_gate == "output"
    if reads_output or (row.slope_from == OUTPUT and not rule.input_gate):
        kept_output = row.output_suffices(numbers) and not rule.input_gate
        return OUTPUT if kept_output and not (half and row.input_in_half) else INPUT
    if row.slope_from == CONSTANT:
        return MASK if rule.input_gate else NOTHING
    return MASK if row.slope_from == MASK and not rule.input_gate else INPUT


def plan(activation: str, rule: Rule = EXACT, dtype: Any = None, **params: float) -> Plan:
    """What `activation` under `rule` keeps for backward, and how many bytes per element.

    Parameters
    ----------
    activation : str
        A name of the activation table.
    rule : Rule
    dtype : torch.dtype, optional
        float32 if not given; one of float16, bfloat16, float32, float64.
    **params : float
        The activation's parameters.

    Returns
    -------
    Plan

    Raises
    ------
    TypeError, ValueError
        An unknown activation, parameter, rule or dtype.

    Examples
    --------
    >>> plan("relu", GUIDED)
    Plan(keeps='mask', bytes_per_element=0.125)
    >>> plan("tanh").keeps, plan("gelu").keeps, plan("gelu", DECONVNET).keeps
    ('output', 'input', 'nothing')
    """
    row = find(activation)
    check_rule(rule)
    name = "torch.float32" if dtype is None else str(dtype)
    if name not in _ITEM_SIZES:
        raise TypeError(f"dtype must be one of {', '.join(_ITEM_SIZES)}, got {dtype!r}")
    kind = plan_kind(row, row.resolve(params), rule, name in _HALF_TYPES)
    size = {NOTHING: 0.0, MASK: 0.125}.get(kind, float(_ITEM_SIZES[name]))
    return Plan(kind, size)


_CONSTANTS = ("EXACT", "GUIDED", "DECONVNET", "STRAIGHT_THROUGH")
_MAKERS = (reverse, guided, clipped_straight_through, rectgrad)
#: What names a rule or makes one, here and in the documentation's table.
NAMES = frozenset((*_CONSTANTS, *(maker.__name__ for maker in _MAKERS), *RULES))


def check_rule(rule: object) -> Rule:
    """Return `rule` if it is a Rule; TypeError otherwise."""
    if isinstance(rule, Rule):
        return rule
    hint = ""
    if isinstance(rule, str) and rule.upper() in _CONSTANTS:
        hint = f"; {rule!r} is pyrevgrad.{rule.upper()}"
    elif rule in _MAKERS:
        hint = f"; call {rule.__name__}(...) to make one"
    raise TypeError(
        "rule must be a pyrevgrad.Rule such as GUIDED or reverse(0.3), "
        f"not {type(rule).__name__}{hint}"
    )
