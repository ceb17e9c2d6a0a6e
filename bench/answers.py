"""What other processes of the suite answer: one JSON text on their standard output.

Imports machine. A process of its own where memory, an allocator or an environment is measured.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from . import machine


class FailedError(RuntimeError):
    """A process that ended with a status other than 0; the text is the last line of its errors."""


def of(name: str, words: Iterable[str], environment: Mapping[str, str] = os.environ) -> Any:
    """The answer of ``python -m bench.NAME WORDS``, or FailedError."""
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.{name}", *words],
        cwd=machine.where_it_runs(__package__),
        env=dict(environment),
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise FailedError((done.stderr.strip().splitlines() or ["no message"])[-1])
    return json.loads(done.stdout)


def of_recorder(
    recorder: str, name: str, words: Iterable[str] = (), **variables: str
) -> list[dict[str, Any]]:
    """The rows under one PYREVGRAD_AUTOGRAD, or one that says why it cannot be had here."""
    environment = os.environ | {"PYREVGRAD_AUTOGRAD": recorder, "PYREVGRAD_BACKEND": ""} | variables
    try:
        return of(name, words, environment)
    except FailedError as error:
        if recorder == "c++" and "PYREVGRAD_AUTOGRAD is c++, and" in str(error):
            return [{"recorder": recorder, "skipped": str(error)}]
        raise


def peak_of(name: str, words: Iterable[str]) -> int | None:
    """The bytes that a process answers, what it frees being given back at once, or its peak would
    be that of the allocator's habits; None where it fails, which is said."""
    try:
        return of(name, words, os.environ | {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)})
    except FailedError as error:
        print(f"no peak of {name}: {error}", file=sys.stderr)
        return None
