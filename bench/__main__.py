"""``python -m bench``: runs the measuring processes and writes JSON, CSV, pictures and the page.

Imports every room of the suite; measures nothing itself.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import cases, machine, memory, page, providers, report, targets, traffic
from .timing import Effort

HERE = Path(__file__).resolve().parent
#: What glibc's allocator is told. `fresh` pins the threshold that glibc starts with: every result
#: of 128 KiB or more is mapped anew and its pages fault in. (Left alone, glibc raises the threshold
#: to the largest block freed so far, up to 32 MiB, and a benchmark's loop soon reuses its memory.)
#: `reused`: nothing is mapped by itself and nothing is given back. `default`: glibc left alone.
ALLOCATIONS: dict[str, dict[str, str]] = {
    "fresh": {"MALLOC_MMAP_THRESHOLD_": str(128 << 10)},
    "reused": {
        "MALLOC_MMAP_THRESHOLD_": str(4 << 30),
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(64 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
    },
    "default": {},
}
_USUAL_ALLOCATIONS = ("fresh", "reused")
_RESIDENT = (
    ("relu/GUIDED", ("fused", "idiom", "plain")),
    ("relu/DECONVNET", ("fused", "idiom")),
    ("tanh/reverse", ("fused", "idiom", "plain")),
    ("gelu/GUIDED", ("fused", "idiom", "plain")),
    ("gelu/STRAIGHT_THROUGH", ("fused", "idiom")),
)
_QUICK_RESIDENT = (("relu/GUIDED", ("fused", "idiom", "plain")),)


def _size(text: str) -> int:
    """``2^16``, ``65536``; argparse reports anything else."""
    found = re.fullmatch(r"2\^(\d+)", text)
    number = 1 << int(found.group(1)) if found else int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"a size is at least 1, got {text!r}")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="fewer cases, sizes and rounds: under two minutes")
    add(
        "--filter",
        metavar="REGEX",
        help="only the cases (activation/rule) in which REGEX is found: of the usual ones, or, "
        "where it finds none of them, of all pairs of the tables",
    )
    add("--threads", type=int, nargs="+", metavar="N", help="1 and 2 if not given")
    add("--sizes", type=_size, nargs="+", metavar="N", help="elements: 65536 or 2^16")
    add("--dtype", nargs="+", choices=traffic.ITEM_SIZES, help="float32 and bfloat16 if not given")
    add("--allocations", nargs="+", choices=ALLOCATIONS, help="fresh and reused if not given")
    add("--without", nargs="+", choices=providers.NAMES, default=[], help="leave providers out")
    add("--out", type=Path, metavar="DIR", help="bench/results/<device> if not given")
    add("--json", type=Path, metavar="FILE", help="write the whole run there too")
    return parser


def _compiled(
    chosen: Sequence[cases.Case],
    dtypes: Sequence[str],
    threads: Sequence[int],
    options: argparse.Namespace,
) -> list[list[Any]] | None:
    """The (case, dtype, threads) whose idiom is compiled too: a compilation takes seconds.

    One in the quick form; the cases whose targets speak of it in the full one; all (None) under a
    filter.
    """
    if options.quick:
        return [[chosen[0].name, dtypes[0], threads[0]]]
    if options.filter:
        return None
    return [[case.name, d, threads[0]] for case in cases.RELU_CASES for d in dtypes]


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """What the measuring processes are told, the way of allocating aside."""
    quick = options.quick
    chosen = cases.select(options.filter, quick)
    sizes = options.sizes or [1 << e for e in ((10, 16, 20, 22) if quick else range(10, 25, 2))]
    curved = options.sizes or [1 << e for e in ((10, 20) if quick else (10, 16, 20))]
    kernel = options.sizes or [1 << e for e in ((20, 22) if quick else (16, 18, 20, 22, 24))]
    available = machine.usable_processors()
    threads = options.threads or [n for n in (1, 2) if n <= available]
    dtypes = options.dtype or ["float32", "bfloat16"]
    return {
        "cases": [case.name for case in chosen],
        "filter": options.filter,
        "without": [name for name in options.without if name != "fused"],
        "threads": threads,
        "dtypes": dtypes,
        "sizes": sizes,
        "curved_sizes": curved,
        "kernel_sizes": kernel,
        "computing_sizes": [size for size in kernel if size == 1 << 20],
        # ten times slower than anything else, and no opponent or (compiled) hopeless there
        "largest": {"reference": 1 << (16 if quick else 20), "idiom+compile": 1 << 22},
        "largest_curved": {"reference": 1 << 16},
        "compile": _compiled(chosen, dtypes, threads, options),
        "effort": asdict(Effort(0.15, 3, 41, 5e-4) if quick else Effort(0.3, 5, 61, 2e-3)),
        "curved_effort": asdict(Effort(0.05, 3, 41, 5e-4) if quick else Effort(0.08, 5, 41, 1e-3)),
        "kernel_effort": asdict(Effort(0.05, 5, 41, 5e-4) if quick else Effort(0.1, 7, 61, 1e-3)),
    }


def _environment(allocations: str, cache: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept["TORCHINDUCTOR_CACHE_DIR"] = cache
    return kept | ALLOCATIONS[allocations]


class Progress:
    """Says on the terminal what has been measured."""

    def __init__(self) -> None:
        self.start = time.monotonic()

    def say(self, text: str) -> None:
        """One line with the seconds since the start."""
        print(f"[{time.monotonic() - self.start:5.0f} s] {text}", flush=True)

    def row(self, row: dict[str, Any]) -> None:
        """The line of a kernel, or of a case's fastest opponent."""
        if row["kind"] == "timing" and row["provider"] == "plain" and "speedup" in row:
            self.say(
                f"{row['allocations']}, {row['threads']} thr., {row['case']}, {row['dtype']}, "
                f"{row['elements']} elements: {row['speedup']:.2f} times as fast as plain"
            )
        elif "refused" in row:
            self.say(f"REFUSED: {row['refused']}")


def _measure(
    settings: dict[str, Any], allocations: str, cache: str, progress: Progress
) -> list[dict[str, Any]]:
    """The rows of one measuring process."""
    told = settings | {"allocations": allocations}
    if allocations != "reused":
        told["kernel_sizes"] = []
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.worker"],
        cwd=HERE.parent,
        env=_environment(allocations, cache),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        process.stdin.write(json.dumps(told))
        process.stdin.close()
        rows = []
        for line in process.stdout:
            if line.startswith('{"kind"'):
                rows.append(json.loads(line))
                progress.row(rows[-1])
    if process.returncode != 0:
        raise SystemExit(f"the measuring process ended with status {process.returncode}")
    return rows


def _measure_memory(
    options: argparse.Namespace, dtypes: list[str], progress: Progress
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows by hooks, for every pair of the tables, and by resident memory."""
    matches = re.compile(options.filter or "").search
    progress.say("memory: bytes kept by the saved-tensor hooks")
    chosen = [case for case in cases.all_cases() if matches(case.name)]
    kept = [*memory.hooked(chosen, dtypes), memory.view_row()]
    resident = []
    environment = _environment("default", "") | {"OMP_NUM_THREADS": "1"}
    for name, names in _QUICK_RESIDENT if options.quick else _RESIDENT:
        for provider in names:
            if matches(name):
                progress.say(f"memory: {name} by {provider}, in a process of its own")
                case, elements = cases.Case(*name.split("/")), 1 << 24
                resident.append(
                    memory.in_own_process(case, provider, dtypes[0], elements, environment)
                )
    return kept, resident


def _write(run: dict[str, Any], options: argparse.Namespace) -> Path:
    """Everything of a run; the path of its page."""
    name = machine.device_name(run["machine"]["processor"], run["machine"]["processors"])
    folder = options.out or HERE / "results" / name
    report.write(folder, run)
    if options.json:
        report.write_json(options.json, run)
    try:
        from . import plots

        pictures = plots.draw(folder, run)
    except ImportError as error:
        print(f"no pictures: {error}", file=sys.stderr)
        pictures = []
    own = options.out is None
    path = HERE / "README.md" if own else folder / "README.md"
    path.write_text(page.page(run, pictures, f"results/{name}/" if own else ""), encoding="utf-8")
    return path


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 0 unless a provider was refused by its gate."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options)
    except ValueError as error:
        parser.error(str(error))
    given = sys.argv[1:] if arguments is None else arguments
    progress = Progress()
    load = machine.load_average()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pyrevgrad-bench-") as cache:
        for allocations in options.allocations or _USUAL_ALLOCATIONS:
            rows += _measure(settings, allocations, cache, progress)
    kept, resident = _measure_memory(options, settings["dtypes"], progress)
    described = next(row for row in rows if row["kind"] == "machine")
    found: dict[str, list[dict[str, Any]]] = {"timing": [], "kernel": [], "machine": []}
    for row in rows:
        found[row.pop("kind")].append(row)
    run = {
        "command": shlex.join(["python", "-m", "bench", *given]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "minutes": round((time.monotonic() - progress.start) / 60, 1),
        "quick": options.quick,
        "load": [load, machine.load_average()],
        "machine": described,
        "settings": settings,
        "targets": targets.judge(found["timing"], found["kernel"]),
        "memory_targets": targets.judge_memory(kept, resident),
        "timings": found["timing"],
        "kernels": found["kernel"],
        "kept": kept,
        "resident": resident,
    }
    path = _write(run, options)
    for verdict in [*run["targets"], *run["memory_targets"]]:
        where = f" ({verdict['dtype']}, {verdict['allocations']})" if "dtype" in verdict else ""
        word = "met   " if verdict["met"] == verdict["of"] else "missed"
        print(f"{word} {verdict['met']}/{verdict['of']}  {verdict['target']}{where}")
    print(f"written: {path}")
    return 1 if any("refused" in row for row in run["timings"]) else 0


if __name__ == "__main__":
    sys.exit(main())
