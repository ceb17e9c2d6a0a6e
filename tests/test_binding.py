"""The C++ nodes of autograd: when they serve, when they must not be loaded, what they refuse."""

import gc
import os
import subprocess
import sys
import threading
import weakref

import pytest
import torch

import pyrevgrad
from pyrevgrad import EXACT, GUIDED, autograd, binding, reverse, reverse_gradient

needs_nodes = pytest.mark.skipif(binding.NODES is None, reason=f"no C++ nodes: {binding.WHY}")
#: What this build's record says where its nodes serve.
HERE = f"torch {torch.__version__} and Python {sys.version_info[0]}.{sys.version_info[1]}"
FUNCTIONS = ("_CallBackward", "_CallWithEdgeBackward", "_ViewBackward")


def name_of(y):
    return y.grad_fn.name()


def python(code, **variables):
    """What a fresh Python prints, its errors included."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def x():
    return torch.randn(5, requires_grad=True) * 1.0


@needs_nodes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_nodes_record_a_plain_call_and_a_plain_reversal(x, dtype):
    x = x.to(dtype)
    assert name_of(pyrevgrad.tanh(x, reverse(2.0))) == "ModifiedBackward"
    assert name_of(reverse_gradient(x)) == "ModifiedBackward"
    assert name_of(pyrevgrad.nn.GradientReversal(0.5)(x)) == "ModifiedBackward"
    assert name_of(pyrevgrad.relu(torch.nn.Parameter(x.detach()))) == "ModifiedBackward"


@needs_nodes
def test_nodes_record_an_in_place_call_that_needs_no_copy(x):
    assert name_of(pyrevgrad.relu(x.clone(), GUIDED, inplace=True)) == "ModifiedBackward"
    assert name_of(pyrevgrad.tanh(x.clone(), inplace=True)) == "ModifiedBackward"
    # The others are Python's, which goes through a copy or through what the view is of.
    assert name_of(pyrevgrad.relu(x.clone()[1:], inplace=True)) != "ModifiedBackward"
    assert name_of(pyrevgrad.tanh(x.clone(), reverse(2.0), inplace=True)) != "ModifiedBackward"


@needs_nodes
def test_nodes_leave_another_backend_and_subclasses_to_the_functions(x):
    class Own(torch.Tensor):
        pass

    with pyrevgrad.backend("reference"):
        assert name_of(pyrevgrad.relu(x)) in FUNCTIONS
    assert name_of(pyrevgrad.relu(x.as_subclass(Own))) in FUNCTIONS
    assert name_of(pyrevgrad.relu(torch.view_as_complex(x[:4].view(2, 2)).conj().imag)) in FUNCTIONS


BACKWARD_TWICE = {
    "output": lambda x: pyrevgrad.tanh(x),
    "mask": lambda x: pyrevgrad.relu(x, GUIDED),
    "input": lambda x: pyrevgrad.gelu(x),
    "linear": pyrevgrad.nn.ReversedLinear(4, 4, scale=0.5),
    "convolution": pyrevgrad.nn.ReversedConv2d(1, 1, 1, scale=0.5),
}


@needs_nodes
@pytest.mark.parametrize("kept", BACKWARD_TWICE)
def test_two_threads_that_share_a_graph_get_an_error_of_pytorch_and_no_crash(kept):
    """One releases what the other is about to read. (PyTorch's Functions in Python do crash.)"""
    shape = (1, 2, 2) if kept == "convolution" else (4, 4)
    errors = []

    def run(y, both):
        both.wait()
        try:
            y.sum().backward()
        except RuntimeError as error:
            errors.append(str(error))

    for _ in range(200):
        y = torch.randn(shape, requires_grad=True)
        for _ in range(8):
            y = BACKWARD_TWICE[kept](y)
        both = threading.Barrier(2)
        threads = [threading.Thread(target=run, args=(y, both)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors and all("backward through the graph a second time" in said for said in errors)


@pytest.mark.skipif(pyrevgrad.backends.native() is None, reason="the native library is not built")
@pytest.mark.parametrize(("entry", "code"), [(0, 99), (1, 7), (2, -1), (3, 4)])
def test_an_operation_refuses_a_program_with_a_code_that_does_not_exist(entry, code):
    """Of the activation, of what is kept, of the mask's bit, of the gradient's gate."""
    program = pyrevgrad.backends.Pairs("relu", GUIDED, {}).full.program.clone()
    program[entry] = code
    with pytest.raises(RuntimeError, match=r"no such activation code|a code that does not"):
        torch.ops.pyrevgrad.value(torch.ones(3), program)


@pytest.mark.skipif(pyrevgrad.backends.native() is None, reason="the native library is not built")
def test_an_operation_refuses_to_make_a_mask_of_nothing():
    program = pyrevgrad.backends.Pairs("tanh", GUIDED.scaled(1.0), {}).full.program.clone()
    program[2] = 0
    with pytest.raises(RuntimeError, match="the program has no mask"):
        torch.ops.pyrevgrad.value_and_mask(torch.ones(3), program)


def test_nothing_is_recorded_where_no_gradient_is_needed(x, nodes):
    with torch.no_grad():
        assert pyrevgrad.relu(x, GUIDED).grad_fn is None
        assert reverse_gradient(x).grad_fn is None
    assert not pyrevgrad.relu(x.detach(), GUIDED).requires_grad
    with torch.inference_mode():
        assert pyrevgrad.gelu(torch.ones(3)).is_inference()


def test_an_error_in_a_double_backward_reaches_the_caller(x, nodes, monkeypatch):
    def fails(*_):
        raise ArithmeticError("as asked")

    monkeypatch.setattr(autograd.eager, "gradient_of_input", fails)
    g = torch.ones(5, requires_grad=True)
    y = pyrevgrad.gelu(x, reverse(2.0))
    with pytest.raises(ArithmeticError, match="as asked"):
        torch.autograd.grad(y, x, g, create_graph=True)


@pytest.mark.parametrize("rule", [EXACT, reverse(2.0)])
def test_a_kept_output_that_was_overwritten_is_pytorchs_error(x, nodes, rule):
    y = pyrevgrad.tanh(x, rule)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_reversal_of_a_view_may_not_be_overwritten(x, nodes):
    y = reverse_gradient(x[1:])
    with pytest.raises(RuntimeError, match="is a view"):
        y.mul_(2)


def test_a_graph_frees_its_pair_and_its_tensors(x, nodes):
    scale = torch.tensor(0.5)
    y = pyrevgrad.tanh(x, reverse(scale))
    torch.autograd.grad(y, x, torch.ones(5), create_graph=True)
    alive = weakref.ref(scale)
    del y, scale
    gc.collect()
    assert alive() is None


@needs_nodes
def test_nodes_for_another_torch_are_not_loaded(monkeypatch, tmp_path):
    record = tmp_path / binding.RECORD.name
    record.write_text("torch 2.9.9+other and Python 3.10\n")
    monkeypatch.setattr(binding, "RECORD", record)
    monkeypatch.delenv("PYREVGRAD_AUTOGRAD", raising=False)
    nodes, why = binding._load()
    assert nodes is None
    assert f"are for torch 2.9.9+other and Python 3.10, and this is {HERE}; they take" in why
    monkeypatch.setenv("PYREVGRAD_AUTOGRAD", "c++")
    with pytest.raises(
        ImportError, match=r"PYREVGRAD_AUTOGRAD is c\+\+, and the compiled nodes are"
    ):
        binding._load()


@needs_nodes
def test_nodes_of_another_python_are_named_with_the_cure(monkeypatch, tmp_path):
    """As where a wheel, whose library serves every Python, was built under another."""
    monkeypatch.setattr(binding, "RECORD", tmp_path / binding.RECORD.name)
    monkeypatch.delenv("PYREVGRAD_AUTOGRAD", raising=False)
    other = f"torch {torch.__version__} and Python 3.9"
    (tmp_path / "_autograd.cpython-39-x86_64-linux-gnu.txt").write_text(f"{other}\n")
    (tmp_path / "_autograd.cpython-38-x86_64-linux-gnu.txt").write_text("no compiler. Cure: one\n")
    nodes, why = binding._load()
    assert nodes is None
    assert f"the compiled nodes are for {other}, and this is {HERE}; they take" in why
    assert "Cure: `pip install --no-build-isolation" in why


def test_why_nodes_were_not_built_is_said(monkeypatch, tmp_path):
    record = tmp_path / binding.RECORD.name
    record.write_text("compiling csrc/autograd.cpp failed: error: no.\n")
    monkeypatch.setattr(binding, "RECORD", record)
    monkeypatch.delenv("PYREVGRAD_AUTOGRAD", raising=False)
    assert "compiling csrc/autograd.cpp failed: error: no." in binding._load()[1]
    record.unlink()
    assert "none were built" in binding._load()[1]


def test_python_functions_are_used_where_they_are_asked_for():
    printed = python(
        "import torch, pyrevgrad; x = torch.ones(2, requires_grad=True)\n"
        "print(pyrevgrad.relu(x).grad_fn.name()); pyrevgrad.show_config()",
        PYREVGRAD_AUTOGRAD="python",
    ).stdout
    assert printed.startswith("_CallBackward")
    assert "Python functions (PYREVGRAD_AUTOGRAD is python)" in printed


def test_an_unknown_choice_is_an_error():
    failed = python("import pyrevgrad", PYREVGRAD_AUTOGRAD="rust")
    assert "ValueError: PYREVGRAD_AUTOGRAD is python or c++, not 'rust'" in failed.stderr
