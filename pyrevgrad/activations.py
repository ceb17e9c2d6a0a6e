"""The activation table: what each function is, what bounds it has, what its backward needs.

Data only; imports checks of single values. Backends, tests, benchmarks and documentation read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real

from .checks import closest

SELU_SCALE = 1.0507009873554804934193349852946
SELU_ALPHA = 1.6732632423543772848170429916717

#: Where backward can read the slope: nowhere (it is constant), one bit, the output, the input.
CONSTANT, MASK, OUTPUT, INPUT = "constant", "mask", "output", "input"

Point = tuple[float, float]


@dataclass(frozen=True)
class Parameter:
    """One number that an activation takes, by its PyTorch name, with its default and bound.

    `bound` is one of ``"any number"``, ``">= 0"``, ``"> 0"`` and ``"not 0"``.
    """

    name: str
    default: float
    bound: str = "any number"

    def check(self, activation: str, value: object) -> float:
        """Return `value` as a float; TypeError if it is no real number, ValueError if outside."""
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(
                f"{activation}: {self.name} must be a number, not {type(value).__name__}"
            )
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        inside = {"any number": True, ">= 0": number >= 0, "> 0": number > 0, "not 0": number != 0}
        if not (math.isfinite(number) and inside[self.bound]):
            bound = "" if self.bound == "any number" else f" and {self.bound}"
            raise ValueError(f"{activation}: {self.name} must be finite{bound}, got {number!r}")
        return number


@dataclass(frozen=True, eq=False)
class Activation:
    """One row: an elementwise function ``y = f(x)``.

    Attributes
    ----------
    name : str
        The public name; also the name of the functor in csrc and of the reference's line.
    value, slope : str
        f(x) and f'(x) as a reader would write them.
    slope_from : str
        The least that backward must keep to know f'(x): ``"constant"`` (nothing), ``"mask"`` (one
        bit: the slope takes two values), ``"output"`` (y) or ``"input"`` (x).
    points : tuple of (value, slope)
        f and f' at NaN, +inf, -inf, +0 and -0 with the default parameters. They are PyTorch's
        wherever its vector and its scalar path agree.
    parameters : tuple of Parameter
        In PyTorch's order.
    ascending : bool
        Whether the first parameter must be below the second.
    slopes : tuple
        ``"constant"``: the slope; ``"mask"``: the slopes where the bit is 1 and where it is 0.
        A string names a parameter.
    flat : str or None
        The region where the slope is exactly 0, which blocks like a gate, as text.
    kinks : tuple
        Where f or f' is not smooth. A string names a parameter, ``"-lambd"`` its negative.
    output_gives_slope : bool
        Whether the output, too, determines the slope of a two-slope row.
    output_needs : str or None
        The parameter that must be positive (``"alpha>=0"``: not negative) for that.
    input_in_half : bool
        Keep the input for half and bfloat16, where the rounded output loses too much.
    torch_name : str or None
        PyTorch's function of the same value and gradient, as an attribute path below ``torch``.
    torch_arguments : mapping
        What that function is given besides the parameters.
    rectifier : bool
        Whether it damps negative inputs and passes large positive ones.
    own_slope : bool
        Whether its slope is given beside f and may be another than its derivative.
    slow_compiled : bool
        Whether torch.compile's code for the CPU computes it more slowly, fused with what is beside
        it, than our kernel standing alone: docs/design.md has figures.
    """

    name: str
    value: str
    slope: str
    slope_from: str
    points: tuple[Point, Point, Point, Point, Point]
    parameters: tuple[Parameter, ...] = ()
    ascending: bool = False
    slopes: tuple[float | str, ...] = ()
    flat: str | None = None
    kinks: tuple[float | str, ...] = ()
    output_gives_slope: bool = False
    output_needs: str | None = None
    input_in_half: bool = False
    torch_name: str | None = None
    torch_arguments: Mapping[str, object] = field(default_factory=dict)
    rectifier: bool = False
    own_slope: bool = False
    slow_compiled: bool = False

    @property
    def selects(self) -> bool:
        """Whether value and gradient only select, scale and add, and so are bit-reproducible."""
        return self.slope_from in (CONSTANT, MASK)

    def resolve(self, given: Mapping[str, object]) -> tuple[float, ...]:
        """The parameters in table order: `given` by name, defaults elsewhere, all checked."""
        names = [parameter.name for parameter in self.parameters]
        for name in given:
            if name not in names:
                known = _ELSEWHERE.get(f"{self.name} {name}") or closest(name, names)
                raise TypeError(f"{self.name} has no parameter {name!r}: {known}")
        numbers = tuple(
            parameter.check(self.name, given.get(parameter.name, parameter.default))
            for parameter in self.parameters
        )
        if self.ascending and numbers[0] >= numbers[1]:
            raise ValueError(
                f"{self.name}: {names[0]} must be below {names[1]}, "
                f"got {numbers[0]!r} and {numbers[1]!r}"
            )
        return numbers

    def number(self, entry: float | str, numbers: tuple[float, ...]) -> float:
        """A table entry as a number: itself, or the parameter that it names."""
        if not isinstance(entry, str):
            return entry
        names = [parameter.name for parameter in self.parameters]
        value = numbers[names.index(entry.removeprefix("-"))]
        return -value if entry.startswith("-") else value

    def slope_values(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The slopes of a constant or two-slope row as numbers."""
        return tuple(self.number(entry, numbers) for entry in self.slopes)

    def kink_values(self, numbers: tuple[float, ...]) -> tuple[float, ...]:
        """The kinks as numbers."""
        return tuple(self.number(entry, numbers) for entry in self.kinks)

    def output_suffices(self, numbers: tuple[float, ...]) -> bool:
        """Whether y alone determines the slope with these parameters."""
        if self.slope_from == INPUT or (self.slope_from == MASK and not self.output_gives_slope):
            return False
        if self.output_needs is None:
            return True
        value = self.number(self.output_needs.removesuffix(">=0"), numbers)
        return value >= 0 if self.output_needs.endswith(">=0") else value > 0


_NAN, _INF = math.nan, math.inf
_ALPHA = Parameter("alpha", 1.0)
_LAMBD = Parameter("lambd", 0.5, ">= 0")
_SELU_SLOPE = SELU_SCALE * SELU_ALPHA
_LOG2 = math.log(2.0)

# The five points of a row: f and f' at NaN, +inf, -inf, +0 and -0.
_ROWS = (
    Activation(
        "identity", "x", "1", CONSTANT,
        ((_NAN, 1.0), (_INF, 1.0), (-_INF, 1.0), (0.0, 1.0), (-0.0, 1.0)),
        slopes=(1.0,),
    ),
    Activation(
        "relu", "max(x, 0)", "x > 0", MASK,
        ((_NAN, 1.0), (_INF, 1.0), (0.0, 0.0), (0.0, 0.0), (-0.0, 0.0)),
        slopes=(1.0, 0.0), flat="x <= 0", kinks=(0.0,), output_gives_slope=True,
        torch_name="relu", rectifier=True,
    ),
    Activation(
        "leaky_relu", "x > 0 ? x : negative_slope·x", "x > 0 ? 1 : negative_slope", MASK,
        ((_NAN, 0.01), (_INF, 1.0), (-_INF, 0.01), (0.0, 0.01), (-0.0, 0.01)),
        parameters=(Parameter("negative_slope", 0.01),),
        slopes=(1.0, "negative_slope"), kinks=(0.0,),
        output_gives_slope=True, output_needs="negative_slope",
        torch_name="nn.functional.leaky_relu", rectifier=True,
    ),
    Activation(
        "relu6", "min(max(x, 0), 6)", "0 < x < 6", MASK,
        ((_NAN, 1.0), (6.0, 0.0), (0.0, 0.0), (0.0, 0.0), (-0.0, 0.0)),
        slopes=(1.0, 0.0), flat="x <= 0 or x >= 6", kinks=(0.0, 6.0), output_gives_slope=True,
        torch_name="nn.functional.relu6", rectifier=True,
    ),
    Activation(
        "hardtanh", "min(max(x, min_val), max_val)", "min_val < x < max_val", MASK,
        ((_NAN, 1.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (-0.0, 1.0)),
        parameters=(Parameter("min_val", -1.0), Parameter("max_val", 1.0)),
        ascending=True, slopes=(1.0, 0.0), flat="x <= min_val or x >= max_val",
        kinks=("min_val", "max_val"), output_gives_slope=True, input_in_half=True,
        torch_name="nn.functional.hardtanh",
    ),
    Activation(
        "relu_squared", "max(x, 0)²", "2·max(x, 0)", INPUT,
        ((_NAN, _NAN), (_INF, _INF), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
        flat="x <= 0", kinks=(0.0,), rectifier=True,
    ),
    Activation(
        "elu", "x > 0 ? x : alpha·(eˣ − 1)", "x > 0 ? 1 : alpha·eˣ", OUTPUT,
        ((_NAN, _NAN), (_INF, 1.0), (-1.0, 0.0), (0.0, 1.0), (-0.0, 1.0)),
        parameters=(_ALPHA,), kinks=(0.0,), output_needs="alpha>=0", input_in_half=True,
        torch_name="nn.functional.elu", rectifier=True,
    ),
    Activation(
        "selu", "s·(x > 0 ? x : a·(eˣ − 1)), s = 1.0507…, a = 1.6733…",
        "s·(x > 0 ? 1 : a·eˣ)", OUTPUT,
        (
            (_NAN, _NAN), (_INF, SELU_SCALE), (-_SELU_SLOPE, 0.0),
            (0.0, _SELU_SLOPE), (-0.0, _SELU_SLOPE),
        ),
        kinks=(0.0,), input_in_half=True, torch_name="nn.functional.selu", rectifier=True,
    ),
    Activation(
        "celu", "x > 0 ? x : alpha·(e^(x/alpha) − 1)", "x > 0 ? 1 : e^(x/alpha)", OUTPUT,
        ((_NAN, _NAN), (_INF, 1.0), (-1.0, 0.0), (0.0, 1.0), (-0.0, 1.0)),
        parameters=(Parameter("alpha", 1.0, "> 0"),), kinks=(0.0,), input_in_half=True,
        torch_name="nn.functional.celu", rectifier=True,
    ),
    Activation(
        "softplus", "beta·x > threshold ? x : log(1 + e^(beta·x)) / beta",
        "beta·x > threshold ? 1 : 1 / (1 + e^(−beta·x))", INPUT,
        ((_NAN, _NAN), (_INF, 1.0), (0.0, 0.0), (_LOG2, 0.5), (_LOG2, 0.5)),
        parameters=(Parameter("beta", 1.0, "> 0"), Parameter("threshold", 20.0)),
        torch_name="nn.functional.softplus", rectifier=True,
    ),
    Activation(
        "softsign", "x / (1 + |x|)", "1 / (1 + |x|)²", OUTPUT,
        ((_NAN, _NAN), (_NAN, _NAN), (_NAN, _NAN), (0.0, 1.0), (-0.0, 1.0)),
        kinks=(0.0,), input_in_half=True, torch_name="nn.functional.softsign",
    ),
    Activation(
        "sigmoid", "1 / (1 + e⁻ˣ)", "y·(1 − y)", OUTPUT,
        ((_NAN, _NAN), (1.0, 0.0), (0.0, 0.0), (0.5, 0.25), (0.5, 0.25)),
        torch_name="sigmoid",
    ),
    Activation(
        "logsigmoid", "−log(1 + e⁻ˣ)", "1 / (1 + eˣ) = 1 − eʸ", OUTPUT,
        ((_NAN, _NAN), (0.0, 0.0), (-_INF, 1.0), (-_LOG2, 0.5), (-_LOG2, 0.5)),
        torch_name="nn.functional.logsigmoid", slow_compiled=True,
    ),
    Activation(
        "tanh", "tanh(x)", "1 − y²", OUTPUT,
        ((_NAN, _NAN), (1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (-0.0, 1.0)),
        torch_name="tanh", slow_compiled=True,
    ),
    Activation(
        "tanhshrink", "x − tanh(x)", "tanh(x)²", INPUT,
        ((_NAN, _NAN), (_INF, 1.0), (-_INF, 1.0), (0.0, 0.0), (0.0, 0.0)),
        torch_name="nn.functional.tanhshrink", slow_compiled=True,
    ),
    Activation(
        "hardshrink", "|x| > lambd ? x : 0", "|x| > lambd", MASK,
        ((_NAN, 1.0), (_INF, 1.0), (-_INF, 1.0), (0.0, 0.0), (0.0, 0.0)),
        parameters=(_LAMBD,), slopes=(1.0, 0.0), flat="|x| <= lambd", kinks=("-lambd", "lambd"),
        output_gives_slope=True, torch_name="nn.functional.hardshrink",
    ),
    Activation(
        "softshrink", "|x| > lambd ? x − sign(x)·lambd : 0", "|x| > lambd", MASK,
        ((_NAN, 1.0), (_INF, 1.0), (-_INF, 1.0), (0.0, 0.0), (0.0, 0.0)),
        parameters=(_LAMBD,), slopes=(1.0, 0.0), flat="|x| <= lambd", kinks=("-lambd", "lambd"),
        torch_name="nn.functional.softshrink",
    ),
    Activation(
        "gelu", "x·Φ(x), Φ(x) = (1 + erf(x/√2)) / 2", "Φ(x) + x·φ(x), φ(x) = e^(−x²/2) / √(2π)",
        INPUT,
        ((_NAN, _NAN), (_INF, _NAN), (_NAN, _NAN), (0.0, 0.5), (-0.0, 0.5)),
        torch_name="nn.functional.gelu", rectifier=True,
    ),
    Activation(
        "gelu_tanh", "x·(1 + t) / 2, t = tanh(√(2/π)·(x + 0.044715·x³))",
        "(1 + t) / 2 + x·(1 − t²)·√(2/π)·(1 + 3·0.044715·x²) / 2", INPUT,
        ((_NAN, _NAN), (_INF, _NAN), (_NAN, _NAN), (0.0, 0.5), (-0.0, 0.5)),
        torch_name="nn.functional.gelu", torch_arguments={"approximate": "tanh"}, rectifier=True,
    ),
    Activation(
        "silu", "x·σ(x), σ(x) = 1 / (1 + e⁻ˣ)", "σ(x)·(1 + x·(1 − σ(x)))", INPUT,
        ((_NAN, _NAN), (_INF, _NAN), (_NAN, _NAN), (0.0, 0.5), (-0.0, 0.5)),
        torch_name="nn.functional.silu", rectifier=True,
    ),
    Activation(
        "quick_gelu", "x·s, s = 1 / (1 + e^(−1.702·x))", "s + 1.702·x·s·(1 − s)", INPUT,
        ((_NAN, _NAN), (_INF, _NAN), (_NAN, _NAN), (0.0, 0.5), (-0.0, 0.5)),
        rectifier=True,
    ),
    Activation(
        "mish", "x·t, t = tanh(log(1 + eˣ))", "t + x·σ(x)·(1 − t²), σ(x) = 1 / (1 + e⁻ˣ)", INPUT,
        ((_NAN, _NAN), (_INF, _NAN), (_NAN, _NAN), (0.0, 0.6), (-0.0, 0.6)),
        torch_name="nn.functional.mish", slow_compiled=True, rectifier=True,
    ),
    Activation(
        "hardswish", "x·min(max(x + 3, 0), 6) / 6", "x <= −3 ? 0 : x >= 3 ? 1 : x/3 + 1/2", INPUT,
        ((_NAN, _NAN), (_INF, 1.0), (_NAN, 0.0), (0.0, 0.5), (-0.0, 0.5)),
        flat="x <= −3", kinks=(-3.0, 3.0), torch_name="nn.functional.hardswish",
        rectifier=True,
    ),
    Activation(
        "hardsigmoid", "min(max(x + 3, 0), 6) / 6", "−3 < x < 3 ? 1/6 : 0", MASK,
        ((_NAN, 0.0), (1.0, 0.0), (0.0, 0.0), (0.5, 1 / 6), (0.5, 1 / 6)),
        slopes=(1 / 6, 0.0), flat="not (−3 < x < 3)", kinks=(-3.0, 3.0),
        torch_name="nn.functional.hardsigmoid",
    ),
    Activation(
        "sign", "x > 0 ? 1 : x < 0 ? −1 : 0", "0", CONSTANT,
        ((0.0, 0.0), (1.0, 0.0), (-1.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
        slopes=(0.0,), kinks=(0.0,), torch_name="sign",
    ),
    Activation(
        "round", "x to the nearest integer, ties to even", "0", CONSTANT,
        ((_NAN, 0.0), (_INF, 0.0), (-_INF, 0.0), (0.0, 0.0), (-0.0, 0.0)),
        slopes=(0.0,), kinks=(-1.5, -0.5, 0.5, 1.5, 2.5), torch_name="round",
    ),
    Activation(
        "heaviside", "x > 0 ? 1 : x = 0 ? values : 0", "0", CONSTANT,
        ((0.0, 0.0), (1.0, 0.0), (0.0, 0.0), (0.0, 0.0), (0.0, 0.0)),
        parameters=(Parameter("values", 0.0),), slopes=(0.0,), kinks=(0.0,),
    ),
)  # fmt: skip

#: Every activation by name, in the order of the documentation's table.
ACTIVATIONS: dict[str, Activation] = {row.name: row for row in _ROWS}

#: What `pyrevgrad.custom` has made, by name.
CUSTOM: dict[str, Activation] = {}


#: Names and parameters that others have for a row of the table, and what is said of them.
_ELSEWHERE = {
    "swish": "PyTorch and this table call it 'silu'",
    "gelu approximate": "the approximation by tanh is 'gelu_tanh'",
}


def find(name: object) -> Activation:
    """The row called `name`.

    Raises
    ------
    TypeError
        `name` is not a string.
    ValueError
        No row has that name; the message lists the close ones.

    Examples
    --------
    >>> find("relu").slope
    'x > 0'
    """
    if not isinstance(name, str):
        raise TypeError(f"an activation is named by a string, not {type(name).__name__}")
    row = ACTIVATIONS.get(name) or CUSTOM.get(name)
    if row is None:
        known = _ELSEWHERE.get(name) or closest(name, [*ACTIVATIONS, *CUSTOM])
        raise ValueError(f"unknown activation {name!r}: {known}")
    return row
