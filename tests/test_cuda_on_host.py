"""The code of the CUDA kernels run on the host: simulated launches under AddressSanitizer.

Compiles tests/cuda_on_host.cpp with the bodies of csrc/cuda, and holds them against the CPU kernels
of the objects in build/objects. It may import the package, grids.py, oracle.py.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from built import not_built
from grids import (
    DTYPES,
    VECTORISED,
    WHOLE,
    grid,
)
from oracle import (
    FORMULAS,
    rule_and_spec,
)
from test_kernels import PARAMETERS, RULE_NAMES

from pyrevgrad import backends

#: More than the largest tile of each dtype, in the order of csrc/cpu/storage.h.
LENGTHS = (4096 + 77, 3001 + 77, 8192 + 77, 8192 + 77)
#: The exhaustive form: every size about a tile, every misalignment, every parameter.
EXHAUSTIVE = bool(os.environ.get("PYREVGRAD_EXHAUSTIVE"))
SANITIZERS = (
    "-fsanitize=address,undefined", "-fno-sanitize=null,object-size", "-fno-sanitize-recover=all",
    "-fno-omit-frame-pointer", "-fno-sanitize-address-use-after-scope",
    "--param", "asan-instrumentation-with-call-threshold=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def simulator(repository) -> Path:
    """The program of tests/cuda_on_host.cpp, built anew only where its sources have changed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    names = ("dispatch", *(f"kernels_{name}" for name in VECTORISED))
    objects = [repository / "build" / "objects" / f"{name}.o" for name in names]
    objects = [path for path in objects if path.is_file()]
    if compiler is None or not objects or backends._native is None:
        not_built("there is no compiler, or the native library was not built in this checkout")
    torch = Path(sys.modules["torch"].__file__).parent
    source = repository / "tests" / "cuda_on_host.cpp"
    portable = repository / "csrc" / "cpu" / "kernels_portable.cpp"
    digest = hashlib.sha256()
    for path in (source, portable, *sorted((repository / "csrc").rglob("*.h")), *objects):
        digest.update(path.read_bytes())
    made = repository / "build" / "cuda_on_host" / digest.hexdigest()[:16]
    if made.is_file():
        return made
    shutil.rmtree(made.parent, ignore_errors=True)
    made.parent.mkdir(parents=True)
    compile_ = (
        compiler, "-std=c++17", "-O1", "-ffp-contract=off", "-isystem", torch / "include",
    )  # fmt: skip
    # With the C library's functions of one float, which the launches call too.
    by_c_library = made.with_suffix(".o")
    command = (*compile_, "-DPYREVGRAD_C_LIBRARY", "-c", portable, "-o", by_c_library)
    subprocess.run(command, check=True)
    command = (
        *compile_, "-g1", *SANITIZERS, source, by_c_library, *objects, f"-L{torch / 'lib'}",
        "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}", "-o", made.with_suffix(".new"),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if "cannot find -lasan" in done.stderr or "libasan" in done.stderr:
        pytest.skip("the compiler has no AddressSanitizer")
    assert done.returncode == 0, done.stderr
    made.with_suffix(".new").rename(made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """The grids of every dtype, repeated to more than a tile."""
    folder = tmp_path_factory.mktemp("grids")
    for code, (dtype, length) in enumerate(zip(DTYPES, LENGTHS, strict=True)):
        length = 16384 + 77 if EXHAUSTIVE else length
        for name, points in zip("xg", grid(dtype, True), strict=True):
            stored = points.repeat(length // len(points) + 1)[:length]
            stored.view(WHOLE[dtype.itemsize]).numpy().tofile(folder / f"{name}.{code}")
    return folder


def programs(names, path: Path) -> int:
    """Write the programs of `names` under every rule, for full and for half types."""
    parameters = [(name, {}) for name in names]
    if EXHAUSTIVE:
        parameters += [(name, given) for name, given in PARAMETERS if name in names]
    rows = []
    for name, given in parameters:
        for rule_name in RULE_NAMES:
            pairs = backends.Pairs(name, rule_and_spec(rule_name)[0], given)
            rows.append([*pairs.full.program.tolist(), 0.0])
            rows.append([*pairs.half.program.tolist(), 1.0])
    np.array(rows).tofile(path)
    return len(rows) // 2


def simulate(simulator: Path, path: Path, data: Path, capability: str) -> list[tuple[int, ...]]:
    """(dtype, programs, launches, elements) of each dtype; the program's own words on failure."""
    environment = {
        **os.environ, "PYREVGRAD_CPU_CAPABILITY": capability, "ASAN_OPTIONS": "detect_leaks=0",
    }  # fmt: skip
    environment.pop("LD_PRELOAD", None)
    done = subprocess.run(
        [str(simulator), str(path), str(data), str(int(EXHAUSTIVE))],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if "names no instruction set of this machine" in done.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert done.returncode == 0, done.stderr
    line = r"dtype (\d): (\d+) programs, (\d+) launches, (\d+) elements equal"
    return [tuple(map(int, numbers)) for numbers in re.findall(line, done.stdout)]


def test_every_launch_gives_the_bits_of_the_portable_cpu_kernels(simulator, data, tmp_path):
    """All pairs, not select-and-scale alone: 0 ulp, since both call the C library on one number."""
    count = programs(FORMULAS, tmp_path / "programs")
    found = simulate(simulator, tmp_path / "programs", data, "portable")
    assert [row[:2] for row in found] == [(code, count) for code in range(len(DTYPES))]
    assert all(launches > 20 * count for _, _, launches, _ in found)


@pytest.mark.parametrize("capability", VECTORISED)
def test_select_and_scale_gives_the_bits_of_every_instruction_set(
    simulator, data, capability, tmp_path
):
    count = programs(("relu", "hardtanh"), tmp_path / "programs")
    found = simulate(simulator, tmp_path / "programs", data, capability)
    assert [row[1] for row in found] == [count] * len(DTYPES)
