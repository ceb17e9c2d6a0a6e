"""The measuring processes: one for each way of allocating, whose rows come back line by line.

Imports allocations, cases and memory; each process runs `worker`, its allocator's variables set
beforehand.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import cases, machine, memory
from .allocations import environment

_RESIDENT = (
    ("relu/GUIDED", memory.PROVIDERS),
    ("relu/DECONVNET", ("fused", "idiom")),
    ("tanh/reverse", ("fused", "idiom", "plain")),
    ("gelu/GUIDED", ("fused", "idiom", "plain", "fused+compile", "plain+compile")),
    ("gelu/STRAIGHT_THROUGH", ("fused", "idiom")),
)
_QUICK_RESIDENT = (("relu/GUIDED", ("fused", "idiom", "plain")),)

Row = dict[str, Any]


class Progress:
    """Says on the terminal what has been measured."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.start

    def say(self, text: str) -> None:
        """One line with the seconds since the start."""
        print(f"[{self.seconds:5.0f} s] {text}", flush=True)

    def row(self, row: Row) -> None:
        """The line of a case beside PyTorch's own, and of what was refused."""
        if row["kind"] == "timing" and row["provider"] == "plain" and "speedup" in row:
            self.say(
                f"{row['allocations']}, {row['threads']} thr., {row['case']}, {row['dtype']}, "
                f"{row['elements']} elements: {row['speedup']:.2f} times as fast as plain"
            )
        elif row["kind"] == "said":
            self.say(row["text"])
        elif "refused" in row:
            self.say(f"REFUSED: {row['refused']}")


def _deaf() -> None:
    """An interruption of the terminal is the command's, which ends this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _command() -> list[str]:
    return [sys.executable, "-m", f"{__package__}.worker"]


def measure(settings: Row, allocations: str, cache: str, progress: Progress) -> list[Row]:
    """The rows of one measuring process.

    Raises
    ------
    SystemExit
        The process failed; its message is on the terminal.
    """
    progress.say(f"{allocations} allocations: {len(settings['cases'])} cases")
    told = settings | {"allocations": allocations}
    if allocations != "reused":
        told["kernel_sizes"] = []
    process = subprocess.Popen(
        _command(),
        cwd=machine.where_it_runs(__package__),
        env=environment(allocations) | {"TORCHINDUCTOR_CACHE_DIR": cache},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=_deaf if os.name == "posix" else None,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        try:
            process.stdin.write(json.dumps(told))
            process.stdin.close()
            rows = []
            for line in process.stdout:
                if line.startswith('{"kind"'):
                    row = json.loads(line)
                    progress.row(row)
                    if row["kind"] != "said":
                        rows.append(row)
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        raise SystemExit(f"the measuring process ended with status {process.returncode}")
    return rows


def measure_memory(
    options: argparse.Namespace, dtypes: list[str], cache: str, progress: Progress
) -> tuple[list[Row], list[Row]]:
    """The rows by hooks, for every pair of the tables, and by resident memory."""
    matches = cases.finder(options.filter or "")
    progress.say("memory: bytes kept by the saved-tensor hooks")
    # Every pair takes some twenty seconds; the quick form has two minutes for everything.
    few = options.quick and not options.filter
    every = cases.default_cases(True) if few else cases.all_cases()
    chosen = [case for case in every if matches(case.name)]
    kept = [*memory.hooked(chosen, dtypes), memory.view_row()]
    variables = environment("default") | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
    wanted = [
        (cases.Case(*name.split("/")), provider)
        for name, names in (_QUICK_RESIDENT if options.quick else _RESIDENT)
        for provider in names
        if matches(name)
    ]

    def answered(one: tuple[cases.Case, str]) -> Row:
        case, provider = one
        progress.say(f"memory: {case.name} by {provider}, in a process of its own")
        return memory.in_own_process(case, provider, dtypes[0], 1 << 24, variables)

    # Bytes are counted, not time, so that every processor may take one.
    with ThreadPoolExecutor(machine.usable_processors()) as pool:
        return kept, list(pool.map(answered, wanted))
