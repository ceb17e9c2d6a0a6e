"""Triton's backend: strict when named, and its kernels under the interpreter in a process apart.

The kernels' tests are in interpreted.py and interpreted_bounds.py: TRITON_INTERPRET must be set
before triton is imported.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyrevgrad
from pyrevgrad import BackendError, backends

ROOT = Path(__file__).resolve().parent.parent
HAS_TRITON = importlib.util.find_spec("triton") is not None
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
RELU = "import torch, pyrevgrad; print(pyrevgrad.relu(torch.tensor([-1.0, 2.0])).tolist())"


def python(*arguments, **environment):
    """Run Python in the checkout, with no choice of backend but the one given."""
    clean = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("PYREVGRAD_", "TRITON_"))
    }
    paths = [str(ROOT / "tests"), str(Path(pyrevgrad.__file__).parent.parent)]
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize(("file", "passed"), [("interpreted", 100), ("interpreted_bounds", 10)])
def test_kernels_hold_under_the_interpreter(file, passed):
    ended = python(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{file}.py",
        TRITON_INTERPRET="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-6000:]
    assert int(re.search(r"(\d+) passed", ended.stdout)[1]) > passed
    assert "skipped" not in ended.stdout


@needs_triton
@no_gpu
def test_without_a_gpu_the_refusal_names_the_device_and_the_interpreter():
    with pytest.raises(BackendError, match="there is no CUDA device"), pyrevgrad.backend("triton"):
        pytest.fail("the block ran")
    ended = python("-c", RELU, PYREVGRAD_BACKEND="triton")
    assert ended.returncode != 0 and ended.stdout == ""
    assert "set TRITON_INTERPRET=1 before Python starts" in ended.stderr


def test_without_triton_the_refusal_says_what_to_install():
    hidden = "import sys; sys.modules['triton'] = None; import importlib.util as u; "
    hidden += "find = u.find_spec; "
    hidden += "u.find_spec = lambda n, *a: None if n == 'triton' else find(n, *a); "
    ended = python("-c", hidden + RELU, PYREVGRAD_BACKEND="triton")
    assert ended.returncode != 0 and ended.stdout == ""
    assert "the package triton is not installed. Cure: `pip install triton`" in ended.stderr
    shown = python("-c", hidden + "import pyrevgrad; pyrevgrad.show_config()").stdout
    assert re.search(r"^triton +not in use: the package triton is not installed", shown, re.M)
    native = backends.native()
    # A build of torch with CUDA runs the CUDA kernels, device or not.
    unserved = native is None or native.cuda_missing
    serving = "reference, as triton is not in use" if unserved else "native; CUDA"
    assert re.search(f"^cuda tensors +{serving}", shown, re.M)


@needs_triton
def test_kernels_that_do_not_load_are_said_with_what_cures_them():
    unloaded = "import sys; sys.modules['pyrevgrad.kernels.backend'] = None; "
    ended = python("-c", unloaded + RELU, PYREVGRAD_BACKEND="triton")
    assert ended.returncode != 0 and ended.stdout == ""
    assert re.search(r"did not load \(.+\)\. Cure: upgrade triton to 3\.6 or newer", ended.stderr)


@needs_triton
def test_named_in_the_environment_it_serves_the_cpu_under_the_interpreter():
    code = f"{RELU}; print(pyrevgrad.backends.choose(torch.ones(2), "
    code += "pyrevgrad.backends.Pairs('relu', pyrevgrad.GUIDED, {}).full).name)"
    ended = python("-c", code, PYREVGRAD_BACKEND="triton", TRITON_INTERPRET="1")
    assert ended.stdout.split("\n")[:2] == ["[0.0, 2.0]", "triton"], ended.stderr


@needs_triton
def test_the_interpreter_does_not_replace_the_native_library_unasked():
    code = "import pyrevgrad; pyrevgrad.show_config()"
    shown = python("-c", code, TRITON_INTERPRET="1").stdout
    unasked = "reference" if backends._native is None else "native"
    assert re.search(rf"^cpu tensors +{unasked}$", shown, re.M)
    assert re.search(r"^triton .*interpreted", shown, re.M)


@needs_triton
def test_an_interpreter_that_comes_too_late_is_refused():
    code = "import os, triton; os.environ['TRITON_INTERPRET'] = '1'; "
    ended = python("-c", code + RELU, PYREVGRAD_BACKEND="triton")
    assert ended.returncode != 0
    assert "TRITON_INTERPRET changed after triton was imported" in ended.stderr


def test_triton_is_imported_only_when_it_is_asked_for():
    code = f"import sys; {RELU}; print('triton' in sys.modules, 'pyrevgrad.kernels' in sys.modules)"
    assert python("-c", code).stdout.split("\n")[1] == "False False"
