"""Which backend serves: a strict choice where one is named, said plainly, never a substitute."""

import copy
import functools
import io
import os
import re
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from expected import BACKENDS, Serving
from threads import together

import pyrevgrad
from pyrevgrad import BackendError, activation, autograd, backends
from pyrevgrad.configuration import configuration
from pyrevgrad.rules import GUIDED

needs_native = pytest.mark.skipif("native" not in BACKENDS, reason="no native library")
RELU = "import torch, pyrevgrad; print(pyrevgrad.relu(torch.tensor([-1.0, 2.0])).tolist())"


def python(code, *arguments, **environment):
    """Run `code` in a fresh interpreter that sees the package as this one does."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("PYREVGRAD_")}
    where = os.path.dirname(os.path.dirname(pyrevgrad.__file__))
    paths = [where, *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.run(
        [sys.executable, *arguments, "-c", code],
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


@needs_native
def test_native_serves_the_cpu_where_nothing_is_asked_for():
    with Serving() as serving:
        activation(torch.ones(3), "relu")
    assert serving.backend == "native"


@pytest.mark.parametrize("name", BACKENDS)
def test_a_block_is_served_by_the_backend_it_names_and_restores(name):
    before = backends.forced()
    with pyrevgrad.backend(name), Serving() as serving:
        assert backends.forced() == name
        activation(torch.ones(3), "relu")
    assert serving.backend == name and backends.forced() == before


def test_blocks_nest_and_end_with_an_exception():
    before = backends.forced()
    with pyrevgrad.backend("reference"):
        with pytest.raises(KeyError), pyrevgrad.backend(BACKENDS[-1]):
            raise KeyError
        assert backends.forced() == "reference"
    assert backends.forced() == before


def test_a_block_may_be_entered_again_nested_and_as_a_decorator():
    before = backends.forced()
    block = pyrevgrad.backend("reference")
    for _ in range(2):
        with block:
            with pyrevgrad.backend(BACKENDS[-1]):
                with block:
                    assert backends.forced() == "reference"
                assert backends.forced() == BACKENDS[-1]
            assert backends.forced() == "reference"
        assert backends.forced() == before
    assert block(backends.forced)() == "reference" and backends.forced() == before


def test_one_block_in_two_threads_ends_for_each_by_itself():
    before = backends.forced()
    block, outer = pyrevgrad.backend("reference"), pyrevgrad.backend(BACKENDS[-1])
    entered, left, found = threading.Event(), threading.Event(), []

    def other():
        with outer:
            with block:
                entered.set()
                assert left.wait(10)
                found.append(backends.forced())
            found.append(backends.forced())

    thread = threading.Thread(target=other)
    with block:
        thread.start()
        assert entered.wait(10)
    left.set()
    thread.join()
    assert found == ["reference", BACKENDS[-1]]
    assert backends.forced() == before and not backends._blocks


# PyTorch's compiler instantiates a Function, which PyTorch deprecates.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_block_inside_compiled_code_ends_there():
    def step(x):
        with pyrevgrad.backend("reference"):
            y = pyrevgrad.relu(x, GUIDED)
        return y * 2

    before = backends.forced()
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert compiled(x).tolist() == [0.0, 4.0] and backends.forced() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("natve", "unknown backend 'natve': did you mean 'native'"),
        ("cuda", "unknown backend 'cuda': choose from native, reference, triton"),
        (None, "unknown backend None"),
    ],
)
def test_an_unknown_backend_is_refused_with_the_close_names(name, message):
    with pytest.raises(ValueError, match=message):
        pyrevgrad.backend(name)  # even where it is not entered, which would do nothing


def test_a_backend_that_is_not_there_is_refused_at_the_door():
    before = backends.forced()
    with pytest.raises(BackendError, match="backend 'triton' was asked for and is not there"):  # noqa: SIM117
        with pyrevgrad.backend("triton"):
            pytest.fail("the block ran")
    assert backends.forced() == before


@needs_native
def test_native_does_not_serve_meta_tensors_and_says_so():
    x = torch.empty(3, device="meta")
    with pyrevgrad.backend("native"):
        with pytest.raises(BackendError, match="does not serve relu on meta tensors"):
            activation(x, "relu")
        with pytest.raises(BackendError, match="does not serve relu on meta tensors"):
            activation(x, "relu", GUIDED, inplace=True)


@needs_native
def test_native_does_not_serve_a_subclass_and_says_so():
    class Tagged(torch.Tensor):
        pass

    with pyrevgrad.backend("native"), pytest.raises(BackendError, match="does not serve Tagged"):
        activation(torch.ones(2).as_subclass(Tagged), "relu")


# Threads. A block holds in all threads, so that those a model starts inside it obey it too.


def test_a_block_holds_in_the_threads_started_inside_it():
    seen = []
    with pyrevgrad.backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.forced()))
        thread.start()
        thread.join()
    assert seen == ["reference"]


def test_blocks_that_overlap_in_two_threads_leave_nothing_behind():
    before = backends.forced()
    inside, leave = threading.Event(), threading.Event()

    def other():
        with pyrevgrad.backend(BACKENDS[-1]):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with pyrevgrad.backend("reference"):
        thread.start()
        assert inside.wait(10)
    leave.set()
    thread.join()
    try:
        assert backends.forced() == before
    finally:
        backends._forced = before


@pytest.mark.parametrize("shared", [True, False])
def test_blocks_of_many_threads_leave_nothing_behind(shared, monkeypatch):
    before = backends.forced()
    monkeypatch.setattr(backends, "_forced", before)
    monkeypatch.setattr(backends, "_blocks", [])
    block = pyrevgrad.backend("reference")

    def enter_and_leave():
        for _ in range(4000):
            with block if shared else pyrevgrad.backend("reference"):
                pass

    together(enter_and_leave, 8, interval=1e-5)
    assert not backends._blocks and backends.forced() == before


# The environment.


def test_the_environment_names_a_backend_that_a_block_overrides():
    code = (
        "import pyrevgrad as p\n"
        "with p.backend('reference'): print(p.backends.forced())\n"
        "print(p.backends.forced())"
    )
    ended = python(code, PYREVGRAD_BACKEND=BACKENDS[-1])
    assert ended.stdout.split() == ["reference", BACKENDS[-1]]


def test_an_unknown_backend_in_the_environment_is_refused():
    ended = python(RELU, PYREVGRAD_BACKEND="natve")
    assert ended.returncode != 0
    assert "unknown backend 'natve': did you mean 'native'" in ended.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYREVGRAD_BACKEND": "triton"},
        {"PYREVGRAD_BACKEND": "native", "PYREVGRAD_DISABLE_NATIVE": "1"},
    ],
    ids=lambda it: it["PYREVGRAD_BACKEND"],
)
def test_a_missing_backend_in_the_environment_is_never_substituted(environment):
    ended = python(RELU, **environment)
    assert ended.returncode != 0 and ended.stdout == ""
    name = environment["PYREVGRAD_BACKEND"]
    assert f"BackendError: backend '{name}' was asked for and is not there" in ended.stderr


# Without the native library.


def test_without_the_library_the_first_call_says_once_what_is_missing_and_how_to_cure_it():
    code = "\n".join([RELU, *["pyrevgrad.gelu(torch.ones(2))"] * 3])
    ended = python(code, "-W", "always", PYREVGRAD_DISABLE_NATIVE="1")
    assert ended.returncode == 0 and ended.stdout.strip() == "[0.0, 2.0]"
    assert ended.stderr.count("RuntimeWarning") == 1
    assert "PYREVGRAD_DISABLE_NATIVE is set" in ended.stderr
    assert re.search(r"[Cc]ure", ended.stderr)


@needs_native
@pytest.mark.parametrize("off", ["0", ""])
def test_library_is_there_where_disabling_it_is_off(off):
    code = "import pyrevgrad; print(pyrevgrad.backends.native() is not None)"
    assert python(code, PYREVGRAD_DISABLE_NATIVE=off).stdout.strip() == "True"


def test_without_the_library_import_and_an_explicit_choice_of_the_reference_are_silent():
    ended = python(RELU, PYREVGRAD_DISABLE_NATIVE="1", PYREVGRAD_BACKEND="reference")
    assert ended.returncode == 0 and ended.stderr == ""


# What it says of itself.


def test_the_configuration_says_what_is_built_and_what_would_run_where():
    stream = io.StringIO()
    pyrevgrad.show_config(stream)
    text = stream.getvalue()
    for part in (pyrevgrad.__version__, torch.__version__, "native", "cpu tensors", "cuda tensors"):
        assert part in text
    cpu = next(line for line in text.splitlines() if line.startswith("cpu tensors"))
    assert cpu.split()[2] == BACKENDS[-1]


def test_the_configuration_names_the_backend_that_was_asked_for():
    stream = io.StringIO()
    with pyrevgrad.backend("reference"):
        pyrevgrad.show_config(stream)
    line = next(li for li in stream.getvalue().splitlines() if li.startswith("asked for"))
    assert "reference" in line
    cpu = next(li for li in stream.getvalue().splitlines() if li.startswith("cpu tensors"))
    assert cpu.split()[2] == "reference"


@pytest.mark.skipif("native" not in BACKENDS, reason="the native library is not built")
def test_the_configuration_names_what_compiled_code_calls_as_kernels_of_ours():
    stream = io.StringIO()
    pyrevgrad.show_config(stream)
    line = next(li for li in stream.getvalue().splitlines() if li.startswith("torch.compile"))
    assert line.endswith(
        "where only a mask of x would do, and of logsigmoid, tanh, tanhshrink, mish "
        "from 16384 elements or of a dynamic size"
    )


def test_the_configuration_says_why_the_library_is_missing():
    code = "import pyrevgrad; pyrevgrad.show_config()"
    text = python(code, PYREVGRAD_DISABLE_NATIVE="1").stdout
    assert "missing: PYREVGRAD_DISABLE_NATIVE is set" in text
    assert re.search(r"cpu tensors +reference", text)


# CUDA tensors, decided without a device: what is asked of a tensor is its kind and its index.


class OnCuda:
    """What `choose` asks of a tensor on cuda:1."""

    is_cpu, is_cuda = False, True
    device = torch.device("cuda", 1)

    def get_device(self):
        return 1


@pytest.fixture
def relu_pair():
    return backends.pairs_of("relu", GUIDED, {}).full


@needs_native
def test_native_serves_a_cuda_tensor_whose_device_runs_its_kernels(monkeypatch, relu_pair):
    asked = []
    monkeypatch.setattr(backends._native, "cuda_problem", lambda index: asked.append(index) or "")
    assert backends.choose(OnCuda(), relu_pair) is backends._native
    with pyrevgrad.backend("native"):
        assert backends.choose(OnCuda(), relu_pair) is backends._native
    assert asked == [1, 1]


@needs_native
def test_device_that_does_not_run_the_kernels_is_named_once_in_a_warning(monkeypatch, relu_pair):
    problem = "Old Card (compute capability 7.5) cannot run what the library holds"
    monkeypatch.setattr(backends._native, "cuda_problem", lambda index: problem)
    backends._say_once.cache_clear()
    with pytest.warns(RuntimeWarning, match="on its reference backend.*: Old Card") as caught:
        assert backends.choose(OnCuda(), relu_pair) is backends.REFERENCE
        assert backends.choose(OnCuda(), relu_pair) is backends.REFERENCE
    assert len(caught) == 1


def test_the_warning_of_the_reference_points_at_the_line_of_the_caller(monkeypatch):
    monkeypatch.setattr(backends, "_native", None)
    monkeypatch.setattr(backends, "_native_missing", "there is none")
    monkeypatch.setattr(autograd, "NODES", None)
    # Slopes of no other test, of which the library holds no program yet.
    layer = pyrevgrad.nn.Activation("leaky_relu", GUIDED, negative_slope=0.0123)
    function = functools.partial(pyrevgrad.leaky_relu, negative_slope=0.0124)
    for call in (torch.nn.Sequential(layer), function):
        backends._say_once.cache_clear()
        with pytest.warns(RuntimeWarning, match="there is none") as caught:
            call(torch.ones(2, requires_grad=True))
        assert [one.filename for one in caught] == [__file__]
    backends._say_once.cache_clear()


@needs_native
def test_named_native_on_a_device_that_does_not_run_it_says_why(monkeypatch, relu_pair):
    monkeypatch.setattr(backends._native, "cuda_problem", lambda index: "the card is too old")
    with (
        pyrevgrad.backend("native"),
        pytest.raises(BackendError, match="does not serve relu on cuda tensors: the card is too"),
    ):
        backends.choose(OnCuda(), relu_pair)


@needs_native
@pytest.mark.parametrize(
    ("problem", "again"),
    [("out of memory (cudaErrorMemoryAllocation)", ""), ("there is no CUDA device", None)],
)
def test_problem_of_a_device_that_may_pass_is_asked_for_again(monkeypatch, problem, again):
    answers = [problem, again]
    asked = SimpleNamespace(default=lambda index: answers.pop(0))
    monkeypatch.setattr(torch.ops.pyrevgrad, "cuda_problem", asked, raising=False)
    native = copy.copy(backends._native)
    native.cuda_missing, native._cuda_problems = "", {}
    monkeypatch.setattr(sys.modules["pyrevgrad.native"], "NODES", None)
    found = [native.cuda_problem(1) for _ in range(3)]
    assert found == [problem] + ([problem] * 2 if again is None else [again] * 2)


@needs_native
@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_torch_without_cuda_is_the_reason_and_the_library_is_not_loaded():
    code = "import sys, pyrevgrad; print('pyrevgrad._native_cuda' in sys.modules)"
    assert python(code).stdout.strip() == "False"
    assert "this torch is built without CUDA" in backends._native.cuda_problem(0)
    assert "this torch is built without CUDA" in configuration()["cuda tensors"]
    with pyrevgrad.backend("native"):
        assert configuration()["cuda tensors"].startswith("none: this torch is built without CUDA")


@needs_native
def test_cuda_library_that_was_not_built_is_named_with_the_builds_reason(monkeypatch, tmp_path):
    from pyrevgrad import native

    report = tmp_path / "report.txt"
    report.write_text("the CUDA kernels need nvcc, and none is on the path. Cure: install it.\n")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(native, "CUDA_BUILD_REPORT", report)
    monkeypatch.setitem(sys.modules, "pyrevgrad._native_cuda", None)
    assert native._load_cuda() == report.read_text().strip()
    report.unlink()
    assert "the library of the CUDA kernels did not load" in native._load_cuda()
    assert "Cure: with nvcc, run `pip install" in native._load_cuda()
