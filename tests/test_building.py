"""What setup.py tells the compilers and where it puts what: its parts, run without building.

It imports nothing of the package but what the tests of the build share.
"""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from built import output

COMPILERS = [name for name in ("g++", "clang++", "clang++-14") if shutil.which(name)]
#: Prints a 1 for each of these that is as IEEE 754 has it, and not as fast math has it.
ARITHMETIC = """
#include <cstdio>
int main() {
  volatile float nan = __builtin_nanf(""), minus_zero = -0.0f, large = 1e8f, one = 1, five = 5;
  const float n = nan, z = minus_zero, l = large, o = one, f = five;
  const float sum = (l + o) - l, zero = z + 0.0f;
  volatile float tenth = 10;
  bool quotients = true;
  for (int i = 1; i < 99; ++i) quotients = quotients && float(i) / tenth == float(double(i) / 10);
  std::printf("%d%d%d%d%d", n != n, sum == 0, !__builtin_signbit(zero), f / f == 1, quotients);
}
"""


@pytest.fixture
def setup(repository, monkeypatch) -> dict:
    """What setup.py defines, run without setting anything up."""
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    return runpy.run_path(str(repository / "setup.py"))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("g++", "-ccbin g++"),
        ("ccache g++", "-ccbin g++"),
        ("/opt/bin/sccache distcc clang++-19", "-ccbin clang++-19"),
        ("g++ -m64 -std=c++20 -Wl,-O1", "-ccbin g++ -Xcompiler=-m64 -Xcompiler=-Wl\\,-O1"),
    ],
)
def test_nvcc_is_told_of_the_compiler_without_launcher_standard_or_bare_comma(setup, asked, told):
    toolchain = setup["CudaToolchain"].__new__(setup["CudaToolchain"])
    toolchain.compiler, toolchain.objects = asked.split(), Path("objects")
    toolchain.nvcc, toolchain.architectures = "nvcc", ["sm_90"]
    toolchain.make = lambda target, command, contents, what: command
    command = toolchain.compile("csrc/cuda/runtime.cu")
    words = told.split()
    assert command[: len(words) + 2] == ["nvcc", *words, "-O3"]


@pytest.fixture
def toolchain(setup):
    """A maker of a toolchain that has looked for nothing and returns the commands it would run."""

    def make(name: str):
        made = setup[name].__new__(setup[name])
        made.compiler, made.kernels, made.objects = ["c++"], ["portable"], Path("objects")
        made.torch, made.python = Path("torch"), "python"
        made.nvcc, made.architectures = "nvcc", ["sm_90"]
        made.make = lambda target, command, contents, what: command
        return made

    return make


def compile_command(toolchain, name: str) -> list[str]:
    made = toolchain(name)
    if name == "Toolchain":
        return made.compile("csrc/cpu/kernels_portable.cpp")
    made.link = lambda objects, *_: objects[0]
    return made.build("_autograd.so", 1)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ["Toolchain", "NodesToolchain"])
@pytest.mark.parametrize(
    "asked",
    [
        "-Ofast",
        "-O3 -ffast-math -ffinite-math-only -funsafe-math-optimizations",
        "-O3 -fno-trapping-math -fno-signed-zeros -fassociative-math -freciprocal-math",
    ],
)
def test_fast_math_in_cxxflags_changes_no_value(
    toolchain, name, compiler, asked, tmp_path, monkeypatch
):
    source, program = tmp_path / "arithmetic.cpp", tmp_path / "arithmetic"
    source.write_text(ARITHMETIC)
    monkeypatch.setenv("CXXFLAGS", asked)
    _, *flags, _, _ = compile_command(toolchain, name)
    output(compiler, *flags, source, "-o", program)
    assert output(program) == "11111"


@pytest.mark.parametrize("name", ["Toolchain", "NodesToolchain"])
def test_cxxflags_do_not_fuse_products_into_sums(toolchain, name, monkeypatch):
    monkeypatch.setenv("CXXFLAGS", "-ffp-contract=fast -DMINE")
    command = compile_command(toolchain, name)
    fused = [word for word in command if word.startswith("-ffp-contract=")]
    assert fused[-1] == "-ffp-contract=off" and "-DMINE" in command


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("name", ["Toolchain", "CudaToolchain"])
def test_ldflags_with_fast_math_link_nothing_that_flushes_denormals(
    toolchain, name, compiler, tmp_path, monkeypatch
):
    monkeypatch.setenv("LDFLAGS", "-Ofast")
    made = toolchain(name)
    made.objects, made.runtime_folder = tmp_path, lambda: tmp_path
    _, *words = made.link([], "_native.so")
    # What the compiler would run, which it does not look for.
    done = subprocess.run([compiler, *words, "-###"], capture_output=True, text=True)
    assert "-shared" in done.stderr and "crtfastmath" not in done.stderr


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flag", ["-ffast-math", "-ffinite-math-only"])
def test_the_formulas_refuse_a_compiler_with_fast_math(repository, compiler, flag):
    command = [compiler, flag, "-fsyntax-only", "-x", "c++", repository / "csrc" / "scalar.h"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "pyrevgrad's values would be wrong under fast math: compile without it" in done.stderr


def test_nvccflags_neither_fuse_nor_round_otherwise(toolchain, monkeypatch):
    monkeypatch.setenv("NVCCFLAGS", "-fmad=true --ftz=true -prec-div=false -Xcompiler=-Ofast")
    command = toolchain("CudaToolchain").compile("csrc/cuda/runtime.cu")
    last = command[command.index("-Xcompiler=-Ofast") + 1 :]
    assert {"-fmad=false", "-ftz=false", "-prec-div=true", "-prec-sqrt=true"} <= set(last)
    assert any(word.startswith("-Xcompiler=-fno-fast-math,") for word in last)


@pytest.mark.parametrize("variable", ["NVCCFLAGS", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS"])
@pytest.mark.parametrize("word", ["--use_fast_math", "-use_fast_math"])
def test_use_fast_math_which_nvcc_cannot_undo_is_refused(
    setup, toolchain, variable, word, monkeypatch
):
    monkeypatch.setenv(variable, f"-O1 {word}")
    with pytest.raises(setup["NotBuilt"], match=f"{variable} asks for --use_fast_math, with which"):
        toolchain("CudaToolchain").compile("csrc/cuda/runtime.cu")


def test_a_build_removes_the_modules_that_are_gone_and_no_library(repository, tmp_path):
    package = tmp_path / "pyrevgrad"
    gone = [
        package / name for name in ("old.py", "_old.pyi", "kernels/old.py", "older/__init__.py")
    ]
    library = package / "_native.abi3.so"
    for path in (*gone, library):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of another time")
    output(sys.executable, "setup.py", "build_py", "--build-lib", tmp_path, cwd=repository)
    assert [path.name for path in gone if path.exists()] == []
    assert library.read_text() == "of another time"
    kept = ("nn.py", "_named.pyi", "py.typed", "kernels/sweep.py", "bench/__main__.py")
    assert all((package / name).is_file() for name in kept)
