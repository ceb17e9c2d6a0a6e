"""CUDA tensors with no GPU: tests/nodes_on_cuda.py and its like, whose device is the host's.

Compiles that device against the torch that runs. It may import the package.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pyrevgrad
from pyrevgrad import backends, binding

pytestmark = [
    pytest.mark.skipif(binding.NODES is None, reason=f"no C++ nodes: {binding.WHY}"),
    pytest.mark.skipif(backends.native() is None, reason="no compiled library"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has devices of its own"),
    pytest.mark.skipif(sys.platform == "win32", reason="the device is built by g++"),
]
RUN = "import ctypes, sys; ctypes.CDLL(sys.argv[1]); import pytest; sys.exit(pytest.main(%r))"
OPTIONS = ("-q", "-p", "no:cacheprovider")


@pytest.fixture(scope="module")
def device(repository) -> Path:
    """The library of tests/cuda_device_on_host.cpp, built anew only where something changed."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    source = repository / "tests" / "cuda_device_on_host.cpp"
    folder = Path(torch.__file__).parent
    digest = hashlib.sha256(source.read_bytes() + f"{folder} {torch.__version__}".encode())
    made = repository / "build" / "cuda_device" / f"{digest.hexdigest()[:16]}.so"
    if made.is_file():
        return made
    shutil.rmtree(made.parent, ignore_errors=True)
    made.parent.mkdir(parents=True)
    command = (
        compiler, "-std=c++20", "-O1", "-fPIC", "-shared", "-DNDEBUG",
        "-isystem", folder / "include", source, f"-L{folder / 'lib'}", "-ltorch_cpu", "-lc10",
        f"-Wl,-rpath,{folder / 'lib'}", "-o", made.with_suffix(".new"),
    )  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made.with_suffix(".new").rename(made)
    return made


@pytest.mark.parametrize("file", ["nodes_on_cuda.py", "bench_on_cuda.py"])
def test_what_runs_on_cuda_tensors_runs_on_the_host_s(repository, device, file):
    paths = [str(repository / "tests"), str(Path(pyrevgrad.__file__).parent.parent)]
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYREVGRAD_")}
    ended = subprocess.run(
        [sys.executable, "-c", RUN % [*OPTIONS, f"tests/{file}"], str(device)],
        cwd=repository,
        env={**clean, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr
    assert re.search(r"\d passed", ended.stdout) and "skipped" not in ended.stdout
