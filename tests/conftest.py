"""What every test shares: fixed seeds, who records a call, the repository's path."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import hypothesis
import numpy
import pytest
import torch
from built import not_built

from pyrevgrad import autograd
from pyrevgrad.binding import NODES

# For the tests of the suite in bench/. At the end of the path: the installed package is what is
# measured, never the checkout.
sys.path.append(str(Path(__file__).resolve().parent.parent))
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")
numpy.set_printoptions(precision=17)


@pytest.fixture(autouse=True)
def seeds():
    """Start every test from the same random state, whatever ran before it."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(params=["c++", "python"] if NODES is not None else ["python"])
def nodes(request, monkeypatch) -> str:
    """Who records a plain eager call: the C++ nodes, where they are built, or the Functions."""
    if request.param == "python":
        monkeypatch.setattr(autograd, "NODES", None)
    return request.param


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def objects(repository) -> list[Path]:
    """The objects that the native library of this checkout was linked of."""
    found = sorted((repository / "build" / "objects").glob("*.o"))
    # Those of the CUDA library are never linked with the others.
    found = [path for path in found if not path.stem.startswith("cuda_")]
    if not found:
        not_built("no objects in build/objects: the library was not built in this checkout")
    return found
