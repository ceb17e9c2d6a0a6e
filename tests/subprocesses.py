"""Python code in processes of their own, for what a process settles once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyrevgrad


def in_subprocess(code: str, *arguments: object, **environment: str):
    """Run Python code in a fresh process that sees the package and the tests."""
    root = Path(pyrevgrad.__file__).resolve().parent.parent
    path = os.pathsep.join([str(Path(__file__).parent), str(root)])
    environment = {
        **os.environ, "PYTHONPATH": path, "PYREVGRAD_BACKEND": "native", **environment,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
