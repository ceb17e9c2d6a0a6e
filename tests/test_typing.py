"""What a type checker sees of the package from outside."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import pyrevgrad
from pyrevgrad.activations import ACTIVATIONS

PACKAGE = Path(pyrevgrad.__file__).parent
#: Where an error is wanted stands an ignore, which itself is an error where there is none.
SCRIPT = """
import torch
from torch import Tensor, nn
from typing_extensions import assert_type

import pyrevgrad
from pyrevgrad import GUIDED, adversarial, attribution, functional, swap
from pyrevgrad.nn import Activation, GradientReversal, ReversedConv2d, ReversedLinear
from pyrevgrad.schedules import ConstantSchedule

x = torch.zeros(3, requires_grad=True)
assert_type(pyrevgrad.relu(x, pyrevgrad.GUIDED), Tensor)
assert_type(functional.leaky_relu(x, GUIDED, negative_slope=0.1), Tensor)
assert_type(pyrevgrad.round(x), Tensor)
assert_type(pyrevgrad.reverse_gradient(x, 0.5), Tensor)
assert_type(pyrevgrad.nn.Activation("relu").rule, pyrevgrad.Rule)
model: nn.Module = nn.Sequential(Activation("relu"), GradientReversal(0.5))
with swap(model, GUIDED) as swapped:
    assert_type(len(swapped.report.replaced), int)
pyrevgrad.convert(model)
attribution.GuidedBackprop(model)
network = adversarial.DANN(model, model, model)
for layer in (GradientReversal(0.5), ReversedLinear(3, 4), ReversedConv2d(3, 4, 1), network):
    assert_type(layer.scale, Tensor)
    layer.scale = 0.3
    layer.scale = torch.tensor(0.3)
    layer.scale = ConstantSchedule(1.0)
assert_type(pyrevgrad.nn.Activation("relu").scale, Tensor | None)
network.scale = "0.3"  # type: ignore[assignment]
pyrevgrad.relu(x, "guided")  # type: ignore[arg-type]
pyrevgrad.relu(x, negative_slope=0.1)  # type: ignore[call-arg]
pyrevgrad.no_such_name  # type: ignore[attr-defined]
"""


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is missing")
def test_mypy_sees_the_types_of_the_installed_package(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    # As an installed package, whose types are read for its py.typed alone.
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    environment.pop("MYPYPATH", None)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache", script.name],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_named_function_is_declared_with_its_own_parameters():
    stub = ast.parse((PACKAGE / "_named.pyi").read_text(encoding="utf-8"))
    declared = {
        node.name: [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        for node in stub.body
        if isinstance(node, ast.FunctionDef)
    }
    functions = {name: getattr(pyrevgrad, name) for name in ACTIVATIONS}
    assert declared == {
        name: list(inspect.signature(function).parameters) for name, function in functions.items()
    }
