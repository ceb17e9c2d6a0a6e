"""Write the documentation's tables, from the activation and rule tables and the benchmark records.

Each stands between ``<!-- name -->`` and ``<!-- /name -->``; the benchmarks' pages, and what type
checkers read of the functions made from the activation table, are written as a whole. ``--check``
only compares. Imports the tables, and the suite where a record is; pyrevgrad must be installed or
on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import torch

from pyrevgrad.activations import ACTIVATIONS, MASK, Activation
from pyrevgrad.rules import EXACT, RULES, Plan, Rule, plan

ROOT = Path(__file__).resolve().parent.parent
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}
#: Where each rule was first written down, and what for.
SOURCES = {
    "EXACT": ("the ordinary backward", "–"),
    "reverse": (
        "domain-adversarial training",
        "Ganin & Lempitsky 2015, section 3.2 ([1409.7495](https://arxiv.org/abs/1409.7495))",
    ),
    "GUIDED": (
        "guided backpropagation, Lasagne's form: any activation",
        "Springenberg et al. 2014, section 3.4 ([1412.6806](https://arxiv.org/abs/1412.6806))",
    ),
    "guided_slope": ("guided backpropagation, zennit's form", "as above"),
    "guided_product": ("guided backpropagation, Captum's form", "as above"),
    "DECONVNET": (
        "DeconvNet",
        "Zeiler & Fergus 2014 ([1311.2901](https://arxiv.org/abs/1311.2901))",
    ),
    "STRAIGHT_THROUGH": (
        "training through sign, round, heaviside",
        "Bengio et al. 2013 ([1308.3432](https://arxiv.org/abs/1308.3432))",
    ),
    "clipped_straight_through": (
        "the same, nothing outside an interval",
        "Hubara et al. 2016, equation 4 ([1602.02830](https://arxiv.org/abs/1602.02830))",
    ),
    "rectgrad": (
        "RectGrad: only large contributions",
        "Kim et al. 2019, section 4 ([1902.04893](https://arxiv.org/abs/1902.04893))",
    ),
    "guided_scaled": ("composition: any rule times a number", "–"),
    "deconvnet_clipped": ("composition: any rule on a clamped g", "–"),
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = [list(head), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def code(text: str) -> str:
    """`text` as code that is safe in a table cell."""
    return "`" + text.replace("|", "\\|") + "`"


def bytes_text(found: Plan) -> str:
    """A plan's bytes per element as a reader says it."""
    return {0.0: "0", 0.125: "1/8"}.get(found.bytes_per_element, f"{found.bytes_per_element:g}")


def plan_text(found: Plan) -> str:
    """A plan as one cell: what is kept, and its bytes."""
    return "nothing" if found.keeps == "nothing" else f"{found.keeps}, {bytes_text(found)}"


def number_text(number: float) -> str:
    """A number to four digits, with a real minus sign; −0 keeps it."""
    return f"{number:.4g}".replace("-", "−").replace("nan", "NaN").replace("inf", "∞")


def parameters_text(row: Activation) -> str:
    """The parameters with defaults and bounds."""
    parts = [f"`{p.name}={p.default:g}`, {p.bound}" for p in row.parameters]
    if row.ascending:
        parts[-1] += f", above `{row.parameters[0].name}`"
    return "; ".join(parts) or "–"


def activation_formulas() -> str:
    """Name, f, f', parameters."""
    rows = (
        (code(row.name), code(row.value), code(row.slope), parameters_text(row))
        for row in ACTIVATIONS.values()
    )
    return table(("activation", "y = f(x)", "slope f′(x)", "parameters"), rows)


def kept_by_dtype() -> str:
    """What EXACT keeps, by dtype."""
    rows = (
        (code(name), *(plan_text(plan(name, EXACT, dtype)) for dtype in DTYPES.values()))
        for name in ACTIVATIONS
    )
    return table(("activation", *DTYPES), rows)


def kept_by_rule() -> str:
    """What each rule keeps, in float32: a column for those that keep the same of everything."""
    columns: dict[tuple[str, ...], list[str]] = {}
    for rule in RULES.values():
        kept = tuple(plan_text(plan(name, rule)) for name in ACTIVATIONS)
        columns.setdefault(kept, []).append(code(repr(rule)))
    rows = zip(map(code, ACTIVATIONS), *columns, strict=True)
    return table(("activation", *(", ".join(rules) for rules in columns.values())), rows)


def parameter_exceptions() -> str:
    """Where a parameter's sign decides whether the output is enough."""
    lines = []
    for row in ACTIVATIONS.values():
        if row.output_needs is None:
            continue
        name, strict = row.output_needs.removesuffix(">=0"), not row.output_needs.endswith(">=0")
        condition = f"`{name} {'<= 0' if strict else '< 0'}`"
        which = "rules that read y" if row.slope_from == MASK else "rules that use the slope"
        lines.append(f"* `{row.name}` with {condition}: {which} keep the input instead of y.")
    return "\n".join(lines)


def special_points() -> str:
    """Value and slope at NaN, the infinities and the zeros."""
    rows = (
        (
            code(row.name),
            *(f"{number_text(value)}; {number_text(slope)}" for value, slope in row.points),
        )
        for row in ACTIVATIONS.values()
    )
    return table(("activation", "x = NaN", "+∞", "−∞", "+0", "−0"), rows)


def slope_text(rule: Rule) -> str:
    """The rule's slope for any activation."""
    return "f′(x)" if rule.slope == "exact" else "1"


def gate_text(rule: Rule) -> str:
    """What the rule's formula says it blocks, for any activation."""
    found = re.search(r"gx = \((.*)\) \? \+0 : ", rule.formula())
    return code(found.group(1)) if found else "–"


def rule_properties() -> str:
    """Each rule's slope, gate, scale, use and source."""
    rows = (
        (
            code(repr(rule)), SOURCES[name][0], slope_text(rule), gate_text(rule),
            number_text(rule.scale), SOURCES[name][1],
        )
        for name, rule in RULES.items()
    )  # fmt: skip
    return table(("rule", "for", "slope", "blocks where", "scale", "source"), rows)


def rule_formulas() -> str:
    """The rules written out for three activations."""
    names = ("relu", "silu", "tanh")
    blocks = []
    for name in names:
        rows = ((code(repr(rule)), code(rule.formula(name))) for rule in RULES.values())
        blocks.append(f"### {name}\n\n" + table(("rule", "backward"), rows))
    return "\n\n".join(blocks)


def rules_and_bytes() -> str:
    """The README's table: formulas and bytes."""
    shown = ("relu", "tanh", "gelu")
    rows = (
        (
            code(repr(rule)), code(rule.formula()),
            *(bytes_text(plan(name, rule)) for name in shown),
        )
        for rule in RULES.values()
    )  # fmt: skip
    return table(("rule", "backward", *map(code, shown)), rows)


def speed_figures() -> str:
    """What the benchmarks recorded."""
    # It lies beside this file, which is a place to look in only where this file is run.
    import figures

    def floors(folder: Path) -> str:
        return _records().headline(folder)

    return figures.text(ROOT / "bench" / "results", floors)


def _records() -> ModuleType:
    """The suite's room of that name."""
    # At the end of the path: the tables are those of the package that is installed.
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from bench import records

    return records


SECTIONS: dict[str, Callable[[], str]] = {
    "activation formulas": activation_formulas,
    "kept by dtype": kept_by_dtype,
    "kept by rule": kept_by_rule,
    "parameter exceptions": parameter_exceptions,
    "special points": special_points,
    "rule properties": rule_properties,
    "rule formulas": rule_formulas,
    "rules and bytes": rules_and_bytes,
    "figures": speed_figures,
}
PAGES = ("README.md", "docs/activations.md", "docs/rules.md")
STUB = "pyrevgrad/_named.pyi"


def filled(text: str) -> str:
    """`text` with every marked section generated anew.

    Raises
    ------
    ValueError
        A marker that names no section.
    """

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in SECTIONS:
            raise ValueError(f"no section is called {name!r}: choose from {', '.join(SECTIONS)}")
        return f"<!-- {name} -->\n\n{SECTIONS[name]()}\n\n<!-- /{name} -->"

    return re.sub(r"<!-- ([a-z ]+) -->\n.*?<!-- /\1 -->", fill, text, flags=re.DOTALL)


def benchmark_pages() -> dict[str, str]:
    """The pages made of the benchmarks' records, by their path; none without one."""
    if not any((ROOT / "bench" / "results").glob("*/results.json")):
        return {}
    results = ROOT / "bench" / "results"
    found = _records().project_pages(results, results.parent / "README.md")
    return {path.relative_to(ROOT).as_posix(): text for path, text in found.items()}


def declaration(row: Activation) -> str:
    """The function of one row, as type checkers read it."""
    takes = "x: Tensor, rule: Rule = ..., *, inplace: bool = ..."
    takes += "".join(f", {parameter.name}: float = ..." for parameter in row.parameters)
    line = f"def {row.name}({takes}) -> Tensor: ..."
    # As ruff lays it out.
    return line if len(line) <= 100 else line.replace(takes, f"\n    {takes}\n")


def declarations() -> str:
    """The stub of the functions made from the activation table."""
    head = "# Written by docs/generate.py for type checkers: at run time there is no such module."
    imports = ("from torch import Tensor", "", "from .rules import Rule", "")
    return "\n".join([head, "", *imports, *map(declaration, ACTIVATIONS.values()), ""])


def made_pages() -> dict[str, str]:
    """Every page with what it should say."""
    tables = {page: filled((ROOT / page).read_text(encoding="utf-8")) for page in PAGES}
    return tables | {STUB: declarations()} | benchmark_pages()


def main() -> int:
    """Write the pages; with --check, only say which are out of date."""
    parser = argparse.ArgumentParser(description="Generate the documentation's tables.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if out of date")
    check = parser.parse_args().check
    stale, made = [], made_pages()
    for page, text in made.items():
        path = ROOT / page
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(page)
            if not check:
                path.write_text(text, encoding="utf-8")
    if check and stale:
        print(f"out of date: {', '.join(stale)}; run python docs/generate.py", file=sys.stderr)
        return 1
    print(f"{'written' if stale else 'up to date'}: {', '.join(stale or made)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
