"""CONTRIBUTING's way of adding an activation, followed to the letter in a copy of the project.

The text of each step is read from CONTRIBUTING.md; the copy is built and run by other processes.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyrevgrad

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8
pytestmark = pytest.mark.slow
XS = [-6.0, -2.5, -1.0, -0.3, -0.0, 0.0, 0.2, 0.9, 1.7, 4.0]
GS = [-2.0, -0.4, 0.0, 0.7, 1.5]


def blocks():
    """The code of the steps, in order, without the indentation of the list."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.split("## How to add an activation")[1].split("\n## ")[0]
    found = re.findall(r"   ```(?:python|cpp)\n(.*?)   ```\n", section, flags=re.DOTALL)
    return [re.sub(r"^   ", "", block, flags=re.MULTILINE) for block in found]


def insert(path, after, before, block):
    """Put `block` where `before` first comes after `after`."""
    text = path.read_text(encoding="utf-8")
    place = text.index(before, text.index(after))
    path.write_text(text[:place] + block + text[place:], encoding="utf-8")


def add_the_activation(project):
    """The steps of CONTRIBUTING: row, functor, list, reference, what the tests compare with."""
    texts = [block.rstrip("\n") for block in blocks()]
    row, functor, listed, fused, fused_line, reference, oracle, value = texts
    insert(project / "pyrevgrad/activations.py", "_ROWS = (", "\n)", f"\n{row}")
    formulas = project / "csrc/formulas.h"
    insert(formulas, "namespace", "#undef PYREVGRAD_FORMULA", f"{functor}\n\n")
    insert(formulas, "#define PYREVGRAD_ACTIVATIONS(X)", "\n\n", f" \\\n{listed}")
    triton = project / "kernels/formulas.py"
    insert(triton, "import triton", "class Formula(", f"{fused}\n\n\n")
    insert(triton, "FORMULAS: dict[str, Formula] = {", "\n}", f"\n{fused_line}")
    eager = project / "pyrevgrad/reference/formulas.py"
    insert(eager, "FORMULAS: dict[str, Formula] = {", "\n}", f"\n{reference}")
    insert(project / "tests/oracle.py", "\nFORMULAS = {", "\n}", f"\n{oracle}")
    insert(project / "tests/expected.py", "\n_FUNCTIONS = {", "\n}", f"\n{value}")


def run(project, *arguments, **variables):
    """Run Python in the copy, with its package before any installed one."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYREVGRAD_")}
    environment |= {"PYREVGRAD_CUDA": "0"}
    environment |= {"PYTHONPATH": str(project), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=project, env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy with the activation added and its library built, portable kernels alone."""
    try:
        with pyrevgrad.backend("native"):
            pass
    except pyrevgrad.BackendError as reason:
        pytest.skip(str(reason))
    made = tmp_path_factory.mktemp("project") / "pyrevgrad"
    unwanted = shutil.ignore_patterns(
        ".*", "*.so", "*.egg-info", "__pycache__", "build", "dist", "out"
    )
    shutil.copytree(ROOT, made, ignore=unwanted)
    # Where an install puts them, and before an editable install's of the checkout.
    (made / "pyrevgrad" / "kernels").symlink_to(made / "kernels")
    add_the_activation(made)
    built = run(
        made, "setup.py", "build_ext", "--inplace",
        PYREVGRAD_CAPABILITIES="portable", PYREVGRAD_REQUIRE_NATIVE="1", CXXFLAGS="-O0",
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    return made


CALCULATE = """
import json, sys
import torch, pyrevgrad
from pyrevgrad.rules import RULES

xs, gs = json.loads(sys.argv[1])
x = torch.tensor(xs, dtype=torch.float64).repeat_interleave(len(gs)).requires_grad_()
g = torch.tensor(gs, dtype=torch.float64).repeat(len(xs))
found = {"file": pyrevgrad.__file__, "config": pyrevgrad.configuration.configuration()}
for backend in ("native", "reference"):
    with pyrevgrad.backend(backend):
        for name, rule in RULES.items():
            y = pyrevgrad.activation(x, "lisht", rule)
            (gx,) = torch.autograd.grad(y, x, g)
            found[f"{backend} {name}"] = [y.tolist(), gx.tolist()]
        assert torch.equal(pyrevgrad.lisht(x), pyrevgrad.nn.Activation("lisht")(x))
        torch.autograd.gradcheck(pyrevgrad.lisht, x)
        torch.autograd.gradgradcheck(pyrevgrad.lisht, x)
found["plans"] = [pyrevgrad.plan("lisht", rule).keeps for rule in RULES.values()]
found["formula"] = pyrevgrad.reverse(0.5).formula("lisht")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(project):
    """What the copy says of the new activation."""
    ended = run(project, "-c", CALCULATE, json.dumps([XS, GS]))
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    assert Path(answer["file"]).is_relative_to(project)
    return answer


#: The rules written out for LiSHT: gx from x, g, y and the slope s.
EXPECTED = {
    "EXACT": lambda x, g, y, s: s * g,
    "reverse": lambda x, g, y, s: -0.3 * s * g,
    "GUIDED": lambda x, g, y, s: g if x > 0 and g > 0 else 0.0,
    "guided_slope": lambda x, g, y, s: s * g if g > 0 else 0.0,
    "guided_product": lambda x, g, y, s: s * g if s * g > 0 else 0.0,
    "DECONVNET": lambda x, g, y, s: max(g, 0.0),
    "STRAIGHT_THROUGH": lambda x, g, y, s: g,
    "clipped_straight_through": lambda x, g, y, s: g if abs(x) <= 1 else 0.0,
    "rectgrad": lambda x, g, y, s: s * g if y * g > 0.1 else 0.0,
    "guided_scaled": lambda x, g, y, s: -0.5 * g if x > 0 and g > 0 else 0.0,
    "deconvnet_clipped": lambda x, g, y, s: min(max(g, 0.0), 1.0),
}


def test_contributing_has_every_step():
    assert len(blocks()) == STEPS


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("rule", EXPECTED)
def test_new_activation_has_the_value_and_gradient_of_its_formula(found, rule, backend):
    values, gradients = found[f"{backend} {rule}"]
    for (x, g), y, gx in zip([(x, g) for x in XS for g in GS], values, gradients, strict=True):
        t = math.tanh(x)
        assert y == pytest.approx(x * t, rel=1e-12, abs=1e-12)
        slope = t + x * (1 - t * t)
        assert gx == pytest.approx(EXPECTED[rule](x, g, x * t, slope), rel=1e-12, abs=1e-12), (x, g)


def test_new_activation_has_a_plan_and_a_formula(found):
    assert found["plans"] == [
        "input", "input", "mask", "input", "input", "nothing", "nothing", "mask", "input", "mask",
        "nothing",
    ]  # fmt: skip
    assert found["formula"] == "gx = -0.5·(tanh(x) + x·(1 − tanh(x)²))·g"


def test_native_library_serves_the_new_activation(found):
    assert "native lacks" not in found["config"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is missing")
def test_triton_serves_the_new_activation(project):
    code = CALCULATE.replace('("native", "reference")', '("triton",)')
    ended = run(project, "-c", code, json.dumps([XS, GS]), TRITON_INTERPRET="1")
    assert ended.returncode == 0, ended.stderr
    answer = json.loads(ended.stdout)
    for rule, wanted in EXPECTED.items():
        values, gradients = answer[f"triton {rule}"]
        pairs = [(x, g) for x in XS for g in GS]
        for (x, g), y, gx in zip(pairs, values, gradients, strict=True):
            t = math.tanh(x)
            assert y == pytest.approx(x * t, rel=1e-12, abs=1e-12)
            slope = t + x * (1 - t * t)
            assert gx == pytest.approx(wanted(x, g, x * t, slope), rel=1e-12, abs=1e-12)


def test_documentation_gets_its_row(project):
    stale = run(project, "docs/generate.py", "--check")
    assert stale.returncode == 1
    assert "docs/activations.md" in stale.stderr
    assert run(project, "docs/generate.py").returncode == 0
    page = (project / "docs/activations.md").read_text(encoding="utf-8")
    assert "| `lisht` | `x·tanh(x)` | `tanh(x) + x·(1 − tanh(x)²)` | – |" in page
    assert "| `lisht` | input, 2 | input, 2 | input, 4 | input, 8 |" in page
    assert "| `lisht` | NaN; NaN | ∞; NaN | ∞; NaN | 0; 0 | 0; −0 |" in page
    assert run(project, "docs/generate.py", "--check").returncode == 0


def test_tests_hold_for_the_new_activation(project):
    # Only the portable kernels are built here, so instruction sets are not compared.
    chosen = ["-k", "(lisht or oracle_covers) and not instruction_set"]
    chosen += ["tests", "--ignore=tests/test_adding_an_activation.py"]
    ended = run(project, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"\d{3} passed", ended.stdout)


def test_benchmarks_see_the_new_activation(project):
    code = "from bench.cases import all_cases; print(*{case.activation for case in all_cases()})"
    assert "lisht" in run(project, "-c", code).stdout.split()
