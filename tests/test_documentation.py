"""The documentation says what is so: generated tables, formulas, docstrings, links, commands."""

import importlib
import inspect
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyrevgrad
from pyrevgrad.activations import ACTIVATIONS
from pyrevgrad.pairs import make_pair
from pyrevgrad.reference import eager
from pyrevgrad.rules import RULES

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
PUBLIC = [
    "activation", "reverse_gradient", "Rule", "reverse", "guided", "rectgrad",
    "clipped_straight_through", "plan", "backend", "show_config", "nn.Activation",
    "nn.GradientReversal", "schedules.GaninSchedule", "swap", "assert_overridden", "convert",
    "attribution.GuidedBackprop", "attribution.Deconvolution", "attribution.RectGrad",
    "attribution.Saliency", "attribution.SmoothGrad", "attribution.jacobian",
    "attribution.sanity_check", *ACTIVATIONS,
    "check_reversal", "compat.RevGrad", "compat.GradientReverseLayer",
    "compat.WarmStartGradientReverseLayer", "schedules.GaninLearningRate",
    "schedules.LinearSchedule", "schedules.ConstantSchedule", "adversarial.DANN",
    "nn.ReversedLinear",
    "adversarial.CDAN", "adversarial.OuterProduct", "adversarial.RandomizedProduct",
    "adversarial.fit", "adversarial.evaluate",
]  # fmt: skip


@pytest.fixture
def generate(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("generate")


@pytest.fixture
def figures(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("figures")


@pytest.mark.parametrize("page", ["README.md", "docs/activations.md", "docs/rules.md"])
def test_generated_tables_are_up_to_date(generate, page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert page in generate.PAGES
    assert generate.filled(text) == text, "run python docs/generate.py"


def test_every_environment_variable_that_is_read_has_its_row():
    files = [*ROOT.glob("pyrevgrad/**/*.py"), *ROOT.glob("csrc/**/*"), ROOT / "setup.py"]
    asked = re.compile(r"""(?:getenv\(|environ\.get\()"(PYREVGRAD_\w+)""")
    read = {name for f in files if f.is_file() for name in asked.findall(f.read_text("utf-8"))}
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    table = page.partition("## Environment variables")[2]
    assert read == set(re.findall(r"`(PYREVGRAD_\w+)`", table)) and len(read) == 10


def test_declarations_of_the_named_functions_are_up_to_date(generate):
    text = (ROOT / generate.STUB).read_text(encoding="utf-8")
    assert generate.declarations() == text, "run python docs/generate.py"


def test_check_names_the_page_that_is_out_of_date(generate, monkeypatch, tmp_path, capsys):
    page = tmp_path / "page.md"
    (tmp_path / generate.STUB).parent.mkdir()
    page.write_text("<!-- special points -->\nold\n<!-- /special points -->\n")
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    monkeypatch.setattr(generate, "PAGES", ("page.md",))
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1
    stale = f"page.md, {generate.STUB}"
    assert f"out of date: {stale}; run python docs/generate.py" in capsys.readouterr().err
    assert "old" in page.read_text()
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0
    assert "`softsign`" in page.read_text()


def test_unknown_section_is_refused(generate):
    with pytest.raises(ValueError, match="no section is called 'nonsense': choose from"):
        generate.filled("<!-- nonsense -->\n<!-- /nonsense -->")


def record(**changes):
    """A benchmark record with one line: 100 µs against 300 and 90."""
    row = {
        "case": "relu/reverse", "dtype": "float32", "threads": 1, "allocations": "fresh",
        "elements": 1 << 20,
    }  # fmt: skip
    return {
        "quick": False,
        "date": "2026-01-02T03:04:05",
        "machine": {"processor": "Abacus 9", "torch": "2.13.0", "commit": None, "dirty": False},
        "timings": [
            {**row, "provider": "fused", "median_s": 1e-4},
            {**row, "provider": "idiom", "speedup": 3.0, "ceiling": 1.7},
            {**row, "provider": "plain", "speedup": 0.9, "ceiling": 1.2},
            {**row, "provider": "eager-best", "refused": "wrong gradient"},
        ],
        **changes,
    }


def test_figures_come_from_the_records_and_losses_are_shown(figures, tmp_path):
    folder = tmp_path / "abacus"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(record()), encoding="utf-8")
    text = figures.text(tmp_path, lambda folder: f"Floors of {folder.name}.")
    assert "Measured on 2026-01-02: Abacus 9, torch 2.13.0, commit unknown." in text
    assert "| reversed relu | 2²⁰ | 100 µs / – | 3.00 / – (1.70) | 0.90 / – (1.20) |" in text
    assert "compiled" not in text, "an opponent that was not timed has no column"
    assert f"Floors of {folder.name}." in text


def test_figures_of_the_newest_record_are_shown_and_the_others_linked(figures, tmp_path):
    for name, date in (("abacus", "2026-01-02"), ("quipu", "2025-12-30")):
        (tmp_path / name).mkdir()
        found = record(date=f"{date}T03:04:05")
        (tmp_path / name / "results.json").write_text(json.dumps(found), encoding="utf-8")
    (tmp_path / "abacus" / "speedup.png").touch()
    text = figures.text(tmp_path, lambda folder: f"Floors of {folder.name}.")
    assert text.count("| reversed relu | 2²⁰ |") == 1
    assert "](bench/results/abacus/speedup.png)" in text
    assert text.startswith("Measured on 2026-01-02: Abacus 9")
    line = "Measured on 2025-12-30: Abacus 9, torch 2.13.0, commit unknown: [its page]"
    assert text.endswith(f"\n\n{line}(bench/results/quipu/README.md).")


def test_whole_networks_are_told_with_their_floor(figures):
    rows = [
        {"network": "vgg", "provider": "fused", "speedup": None, "ceiling": None, "floor": None},
        {"network": "vgg", "provider": "captum", "speedup": 1.1, "ceiling": 1.05, "floor": 1.3},
        {"network": "vgg", "provider": "plain", "speedup": 0.9, "ceiling": None, "floor": None},
        {"network": "vgg", "provider": "zennit", "speedup": 1.2, "ceiling": None, "floor": None},
    ]
    assert figures.networks({"rows": rows}).endswith(
        "networks: vgg 1.10 (1.05) over captum, floor 1.3; vgg 0.90 over PyTorch's own."
    )


def test_without_a_record_no_figure_is_printed(figures, tmp_path):
    text = figures.text(tmp_path, lambda folder: f"Floors of {folder.name}.")
    assert text.startswith("No figures are recorded yet.")
    assert not re.search(r"\d", text)


def found(name):
    place = pyrevgrad
    for part in name.split("."):
        place = getattr(place, part, None)
    return place


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_has_a_docstring_with_an_example(name):
    text = inspect.getdoc(found(name)) or ""
    assert "Examples\n--------\n>>> " in text, f"{name} shows no example that runs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [
        link
        for link in links
        if link and not re.match(r"https?://", link) and not (page.parent / link).exists()
    ]
    assert not missing


def test_every_make_target_that_the_pages_name_exists():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.MULTILINE))
    named = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        named |= set(re.findall(r"^\s*make ([a-z-]+)", text, flags=re.MULTILINE))
        named |= set(re.findall(r"`make (?:\S+=\S+ )?([a-z-]+)`", text))
    assert {"demo", "test"} <= named
    assert named <= targets


def test_no_tracked_file_names_a_path_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listed.returncode:
        pytest.skip("not a git checkout")
    pattern = re.compile(r"(?<![\w.}])/(?:work|root|home|Users|tmp/venv)/\w")
    guilty = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        content = path.read_bytes() if path.is_file() else b""
        if b"\0" not in content and pattern.search(content.decode("utf-8", "replace")):
            guilty.append(name)
    assert not guilty


SPELLED = {
    "·": "*", "−": "-", "²": "**2", "³": "**3", "e⁻ˣ": "exp(-x)", "eˣ": "exp(x)", "e^": "exp",
    "|x|": "abs(x)", "g′": "clamped", "2π": "2*π", "π": "pi",
}  # fmt: skip


def as_python(text):
    """A printed formula as a Python expression: brackets from inside out, then ``c ? a : b``."""
    for mark, spelling in SPELLED.items():
        text = text.replace(mark, spelling)
    text = re.sub(r"√(\d+)", r"sqrt(\1)", text).replace("√", "sqrt")
    held = []

    def hold(match):
        held.append(f"({choice(match.group(1))})")
        return f"§{len(held) - 1}§"

    def choice(flat):
        if " ? " not in flat:
            return flat
        condition, rest = flat.split(" ? ", 1)
        yes, no = rest.split(" : ", 1)
        return f"(({yes}) if ({condition}) else ({choice(no)}))"

    while "(" in text:
        text = re.sub(r"\(([^()]*)\)", hold, text)
    text = choice(text)
    while "§" in text:
        text = re.sub(r"§(\d+)§", lambda match: held[int(match.group(1))], text)
    return text


def evaluated(formula, x, y, g, parameters):
    """The number that a printed formula gives."""
    body, _, definitions = formula.removeprefix("gx = ").partition(", where ")
    names = {name: getattr(math, name) for name in ("exp", "sqrt", "tanh", "log", "erf", "pi")}
    names |= {"clamp": lambda v, low, high: min(max(v, low), high), "x": x, "y": y, "g": g}
    names |= {"s": 1.0507009873554805, "a": 1.6732632423543772, **parameters}
    for definition in re.split(r", (?=\S+ = )", definitions) if definitions else ():
        symbol, text = definition.split(" = ")
        if "…" not in text:
            defined = eval(as_python(text), names)
            if symbol.endswith("(x)"):
                names[symbol.removesuffix("(x)")] = lambda _, defined=defined: defined
            else:
                names[as_python(symbol)] = defined
    return eval(as_python(body), names)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rule", RULES)
def test_printed_formula_gives_the_gradient_of_the_reference(name, rule):
    row = ACTIVATIONS[name]
    numbers = row.resolve({})
    parameters = {p.name: number for p, number in zip(row.parameters, numbers, strict=True)}
    pair = make_pair(row, numbers, RULES[rule], half=False)
    formula = RULES[rule].formula(name)
    kinks = [kink + step for kink in row.kink_values(numbers) for step in (-0.25, 0.0, 0.25)]
    points = [-7.0, -2.3, -0.7, -0.0, 0.0, 0.4, 1.9, 6.5, 25.0, *kinks]
    for x in points:
        for g in (-2.5, -0.0, 0.0, 0.6, 3.0):
            wide_x, wide_g = torch.tensor([x, g], dtype=torch.float64)
            expected = eager.gradient_of_input(wide_g, wide_x, pair, None).item()
            got = evaluated(formula, x, eager.value(wide_x, pair).item(), g, parameters)
            assert got == pytest.approx(expected, rel=1e-9, abs=1e-15), (formula, x, g)


@pytest.mark.parametrize(
    "rule",
    [
        *RULES.values(),
        pyrevgrad.reverse(),
        pyrevgrad.reverse(-2.0),
        pyrevgrad.EXACT.scaled(0.0),
        pyrevgrad.reverse(0.5).clipped(1.0),
        pyrevgrad.guided("product").scaled(3.0).clipped(0.1),
        pyrevgrad.rectgrad(-0.25).scaled(-1.0),
        pyrevgrad.Rule(slope="identity", input_gate=(0.0, 2.0), gradient_gate="product"),
        pyrevgrad.Rule(input_gate="positive", gradient_gate="output", threshold=0.5),
    ],
    ids=repr,
)
def test_a_rule_prints_as_the_expression_that_makes_it(rule):
    assert eval(repr(rule), vars(pyrevgrad)) == rule


def test_a_tensor_scale_prints_without_its_value():
    scale = torch.tensor(2.0)
    assert repr(pyrevgrad.reverse(scale)) == "reverse(<tensor>)"
    assert repr(pyrevgrad.GUIDED.scaled(scale)) == "GUIDED.scaled(<tensor>)"
    assert repr(pyrevgrad.reverse(0.3).scaled(scale)) == "reverse(0.3).scaled(<tensor>)"
    assert pyrevgrad.reverse(scale).formula("relu") == "gx = (x <= 0) ? +0 : -λ·g"


def test_asked_for_help_the_script_of_the_pictures_draws_none(monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    pytest.importorskip("sklearn")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    script = importlib.import_module("draw_swap")
    monkeypatch.setattr(script.digits, "trained_network", lambda: pytest.fail("it trains"))
    monkeypatch.setattr(sys, "argv", ["draw_swap.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0 and "pictures of docs/swap.md" in capsys.readouterr().out
