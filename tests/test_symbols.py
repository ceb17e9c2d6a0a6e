"""The libraries that were built: the symbols they take and offer, the paths they must not hold.

It may import the package, and runs the binutils on its libraries and on the objects.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from built import CUDA_LIBRARY, output, tool

from pyrevgrad import backends, binding

#: Vector mathematics that libtorch_cpu exports beside the stable ABI, and all that we take of it.
SLEEF = {
    f"Sleef_{function}{lanes}_u10"
    for function in ("erf", "exp", "expm1", "log1p", "tanh")
    for lanes in ("d4", "d8")
}
#: Of the limited API of Python 3.10.
PYTHON = {"PyModule_Create2"}
#: The loader's and the linker's own, all weak.
WEAK = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__"}
#: Lies in libtorch_cuda.
STREAM = "aoti_torch_get_current_cuda_stream"
SYSTEM = re.compile(r"@+(GLIBC|GLIBCXX|CXXABI|GCC)_[0-9.]+$")
STABLE = re.compile(r"(aoti_torch|torch)_\w+$")


@pytest.fixture(scope="module")
def library() -> Path:
    """The native library that `import pyrevgrad` loaded."""
    if backends._native is None:
        pytest.skip("the native library is not built here: see `python -m pyrevgrad info`")
    return Path(sys.modules["pyrevgrad._native"].__file__)


def symbols(path: Path, *options: str) -> list[tuple[str, str]]:
    """(kind, name) of every symbol, as nm names them."""
    lines = output(tool("nm"), *options, path).splitlines()
    words = [line.split() for line in lines if line.strip()]
    return [(word[-2], word[-1]) for word in words]


def test_library_takes_only_stable_python_system_and_named_sleef_symbols(library):
    wanted = {name for _, name in symbols(library, "-D", "--undefined-only")}
    stray = {name for name in wanted if not (SYSTEM.search(name) or STABLE.match(name))}
    assert stray - SLEEF - PYTHON - WEAK == set()


def test_library_exports_its_init_function_alone(library):
    exported = {name for _, name in symbols(library, "-D", "--defined-only")}
    assert exported == {"PyInit__native"}


def test_library_names_no_path_to_search_and_only_torch_and_system_libraries(library):
    dynamic = output(tool("readelf"), "-d", library)
    assert not re.search(r"RPATH|RUNPATH", dynamic)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert needed <= {
        *("libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1"),
        *("libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
    }


def paths_in(library: Path, repository: Path) -> list[Path]:
    """The places of the machine that built it whose paths a library holds."""
    content = library.read_bytes()
    places = (repository, Path(torch.__file__).parent, Path(sys.prefix), Path.home())
    return [place for place in places if os.fsencode(f"{place}/") in content]


def test_library_holds_no_path_of_the_machine_that_built_it(library, repository):
    assert paths_in(library, repository) == []


def test_library_is_named_for_every_python_of_the_limited_api(library):
    assert library.name == "_native.abi3.so"


@pytest.fixture(scope="module")
def nodes_library() -> Path:
    """The C++ nodes that `import pyrevgrad` loaded."""
    if binding.NODES is None:
        pytest.skip(f"no C++ nodes: {binding.WHY}")
    return Path(binding.NODES.__file__)


def test_nodes_export_their_init_function_alone_and_hold_no_path(nodes_library, repository):
    exported = {name for _, name in symbols(nodes_library, "-D", "--defined-only")}
    assert exported == {"PyInit__autograd"}
    assert not re.search(r"RPATH|RUNPATH", output(tool("readelf"), "-d", nodes_library))
    assert paths_in(nodes_library, repository) == []


@pytest.fixture(scope="module")
def cuda_library() -> Path:
    if not CUDA_LIBRARY.is_file():
        pytest.skip("the CUDA kernels are not built here: see pyrevgrad/_build_report_cuda.txt")
    return CUDA_LIBRARY


def test_cuda_library_takes_only_stable_python_and_system_symbols(cuda_library):
    wanted = {name for _, name in symbols(cuda_library, "-D", "--undefined-only")}
    stray = {name for name in wanted if not (SYSTEM.search(name) or STABLE.match(name))}
    assert stray - PYTHON - WEAK == set()


def test_cuda_library_asks_for_the_stream_weakly_so_that_it_loads_without_cuda(cuda_library):
    """Of all it takes from torch, this alone lies in libtorch_cuda."""
    undefined = symbols(cuda_library, "-D", "--undefined-only")
    weak = {name for kind, name in undefined if kind == "w" and not SYSTEM.search(name)}
    assert weak - WEAK == {STREAM}
    assert [name for _, name in undefined if "cuda" in name] == [STREAM]


def test_cuda_library_exports_its_init_function_alone(cuda_library):
    exported = {name for _, name in symbols(cuda_library, "-D", "--defined-only")}
    assert exported == {"PyInit__native_cuda"}


def test_cuda_library_needs_libtorch_which_leads_to_the_stream(cuda_library):
    """And no libcudart or libcuda, which a machine without CUDA has not."""
    dynamic = output(tool("readelf"), "-d", cuda_library)
    assert not re.search(r"RPATH|RUNPATH", dynamic)
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert needed <= {
        *("libtorch.so", "libtorch_cpu.so", "libstdc++.so.6", "libgcc_s.so.1"),
        *("libm.so.6", "libc.so.6", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"),
        *("librt.so.1", "libpthread.so.0", "libdl.so.2"),  # parts of libc.so.6 since glibc 2.34
    }


def test_cuda_library_holds_no_path_of_the_machine_that_built_it(cuda_library, repository):
    assert paths_in(cuda_library, repository) == []


PROBLEM = """if True:
    import importlib, torch, pyrevgrad
    importlib.import_module("pyrevgrad._native_cuda")
    print(torch.ops.pyrevgrad.cuda_build.default())
    print(torch.ops.pyrevgrad.cuda_problem.default(0))
"""


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cuda_library_loads_on_a_torch_without_cuda_and_says_what_is_missing(cuda_library):
    build, problem = output(sys.executable, "-c", PROBLEM).splitlines()
    assert re.fullmatch(r"\d+\.\d+(,(sm|compute)_\w+)+", build)
    assert problem == f"this torch is built without CUDA: it has no {STREAM}"


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_stream_symbol_is_taken_from_whatever_library_offers_it(cuda_library, tmp_path):
    """Where another library defines it the weak symbol resolves, and the driver is asked next."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None or torch.cuda.is_available():
        pytest.skip("no compiler, or a machine with a driver")
    offering = tmp_path / "liboffers.so"
    (tmp_path / "offers.cpp").write_text(f'extern "C" int {STREAM}(int, void**) {{ return 1; }}')
    output(compiler, "-shared", "-fPIC", tmp_path / "offers.cpp", "-o", offering)
    environment = {**os.environ, "LD_PRELOAD": str(offering)}
    problem = output(sys.executable, "-c", PROBLEM, env=environment).splitlines()[1]
    assert problem == "no NVIDIA driver is installed; install one"


def test_objects_of_two_instruction_sets_share_no_weak_symbol(objects):
    """The linker keeps one copy of a weak symbol: an AVX-512 copy would crash a lesser machine."""
    weak = {
        path.stem: {name for kind, name in symbols(path, "--defined-only") if kind in "WVu"}
        for path in objects
    }
    shared = {
        (one, other): weak[one] & weak[other]
        for one, other in itertools.combinations(weak, 2)
        if one.startswith("kernels_") or other.startswith("kernels_")
    }
    assert {pair: names for pair, names in shared.items() if names} == {}


def test_object_of_an_instruction_set_offers_its_table_alone(objects):
    for path in objects:
        if path.stem.startswith("kernels_"):
            offered = [name for kind, name in symbols(path, "--defined-only") if kind in "TDBR"]
            assert len(offered) == 1 and path.stem in offered[0], path.name
