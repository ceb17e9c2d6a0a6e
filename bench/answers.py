"""What other processes of the suite answer: one JSON text on their standard output.

Imports machine. A process of its own where memory, an allocator or an environment is measured; and
the command of a section that measures in such processes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from . import machine
from .arguments import file


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
    names, threshold = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"), str(64 << 10)
    try:
        return of(name, words, os.environ | dict.fromkeys(names, threshold))
    except FailedError as error:
        print(f"no peak of {name}: {error}", file=sys.stderr)
        return None


def parser(name: str, description: str, quick: str) -> argparse.ArgumentParser:
    """The options of a section's command; `quick` says what its short form has less of."""
    made = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    made.add_argument("--quick", action="store_true", help=quick)
    made.add_argument("--json", type=file, metavar="FILE", help="write the rows there")
    return made


def show(
    options: argparse.Namespace,
    measure: Callable[[bool], list[dict[str, Any]]],
    section: Callable[[list[dict[str, Any]]], str],
) -> int:
    """Measure, write the rows where asked to, and print the section."""
    rows = measure(options.quick)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    print(section(rows))
    return 0
