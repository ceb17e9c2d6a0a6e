"""What the tests of the build share: a command that must succeed, a tool, a build that may lack."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

import pyrevgrad

#: Is there where nvcc was when the package was built.
CUDA_LIBRARY = Path(pyrevgrad.__file__).with_name("_native_cuda.abi3.so")


def output(*command: object, **options) -> str:
    """What a command that must succeed prints."""
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=900, **options
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} of the binutils is not installed")
    return found


def not_built(reason: str) -> NoReturn:
    """Skip a test of what this checkout has not built, or fail where that is required."""
    if os.environ.get("PYREVGRAD_REQUIRE_NATIVE", "0") != "0":
        pytest.fail(f"PYREVGRAD_REQUIRE_NATIVE is set: {reason}")
    pytest.skip(reason)
