"""``python -m bench``, ``python -m pyrevgrad bench``: measures, then writes records and the page.

Imports every room of the suite; measures nothing itself.
"""

from __future__ import annotations

import argparse
import re
import shlex
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from . import (
    machine,
    page,
    plots,
    processes,
    providers,
    records,
    report,
    sections,
    targets,
    traffic,
)
from .allocations import ALLOCATIONS, USUAL
from .arguments import count, file, folder, pages_folder
from .settings import again, large
from .settings import settings as settings_of

COMMAND = "python -m bench" if __package__ == "bench" else "python -m pyrevgrad bench"


def _size(text: str) -> int:
    """``2^16``, ``65536``; argparse reports anything else."""
    found = re.fullmatch(r"2\^(\d+)", text)
    try:
        number = 1 << int(found.group(1)) if found else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of elements, such as 65536 or 2^16"
        ) from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"a size is at least 1, got {text!r}")
    if not machine.holds(number):
        raise argparse.ArgumentTypeError(f"{text} elements do not fit this machine's memory")
    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="What a modified backward costs, against what people would use instead.",
    )
    add = parser.add_argument
    opponents = [name for name in providers.NAMES if name != "fused"]
    add("--quick", action="store_true", help="fewer cases, sizes and rounds: under two minutes")
    add(
        "--filter",
        metavar="REGEX",
        help="only the cases (activation/rule) in which REGEX is found, in capitals or not: of the "
        "usual ones, or, where it finds none of them, of all pairs of the tables",
    )
    add("--device", choices=("cpu", "cuda"), help="all that are there if not given")
    add("--threads", type=count, nargs="+", metavar="N", help="1 and 2 if not given")
    add("--sizes", type=_size, nargs="+", metavar="N", help="elements: 65536 or 2^16")
    add("--dtype", nargs="+", choices=traffic.ITEM_SIZES, help="float32 and bfloat16 if not given")
    add("--allocations", nargs="+", choices=ALLOCATIONS, help="fresh and reused")
    add("--without", nargs="+", choices=opponents, default=[], help="leave providers out")
    add("--out", type=pages_folder, metavar="DIR", help="where the records and the page go")
    add("--json", type=file, metavar="FILE", help="write the whole run there too")
    return parser


def _write(run: dict[str, Any], options: argparse.Namespace) -> Path:
    """Everything of a run beside the records of other commands; the path of the page."""
    name = machine.device_name(run["machine"]["processor"], run["machine"]["processors"])
    place, path = report.folder_of(options, name)
    report.write(place, run)
    records.drawn(place, page.PICTURES, lambda: plots.draw(place, run))
    records.write_page(place, path)
    if options.json:
        report.write_json(options.json, run)
    return path


def _say_what_is_missing(timings: list[dict[str, Any]], kernels: list[dict[str, Any]]) -> None:
    """A line for each provider that has no figure at all, and for what was refused."""
    for reason in sorted({row["refused"] for row in kernels if "refused" in row}):
        print(f"refused: {reason}")
    timed = {row["provider"] for row in timings if "median_s" in row}
    for name in providers.NAMES:
        rows = [row for row in timings if row["provider"] == name]
        refused = {row["refused"] for row in rows if "refused" in row}
        for reason in sorted(refused):
            print(f"refused: {name}: {reason}")
        if name not in timed and not refused:
            # A reason that many cases share is told once, the one that speaks of most rows first.
            reasons = [row["skipped"] for row in rows if "skipped" in row]
            for reason in sorted(set(reasons), key=lambda text: -reasons.count(text))[:2]:
                print(f"skipped: {name}: {reason}")


def _run_cpu(options: argparse.Namespace, told: dict[str, Any], command: str) -> int:
    """Measure the CPU and write everything; 1 where a provider was refused or a section failed."""
    part = options.quick or options.filter
    progress = processes.Progress()
    load = machine.load_average()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="pyrevgrad-bench-") as cache:
        for number, allocations in enumerate(options.allocations or USUAL):
            second = options.quick and not options.filter and number
            own = again(told) if second else told
            rows += processes.measure(own, allocations, cache, progress)
        if not (part or options.allocations):
            rows += processes.measure(large(told), "huge", cache, progress)
        kept, resident = processes.measure_memory(options, told["dtypes"], cache, progress)
    more = {} if part else sections.measure(False, progress)
    described = next(row for row in rows if row["kind"] == "machine")
    found: dict[str, list[dict[str, Any]]] = {"timing": [], "kernel": [], "machine": []}
    for row in rows:
        found[row.pop("kind")].append(row)
    run = {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "minutes": round(progress.seconds / 60, 1),
        "quick": options.quick,
        "load": [load, machine.load_average()],
        "machine": described,
        "settings": told,
        "targets": targets.judge(found["timing"], found["kernel"]),
        "memory_targets": targets.judge_memory(kept, resident),
        "timings": found["timing"],
        "kernels": found["kernel"],
        "kept": kept,
        "resident": resident,
        "sections": more,
    }
    path = _write(run, options)
    for verdict in [*run["targets"], *run["memory_targets"]]:
        where = f" ({verdict['dtype']}, {verdict['allocations']})" if "dtype" in verdict else ""
        print(f"{targets.said(verdict):24}  {verdict['target']}{where}")
    _say_what_is_missing(run["timings"], run["kernels"])
    print(f"written: {path}")
    failed = any("error" in section for section in more.values())
    return 1 if failed or any("refused" in row for row in [*run["timings"], *run["kernels"]]) else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite; 0 unless a provider was refused by its gate or a section failed, 130 where it
    was interrupted."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(arguments)
    except KeyboardInterrupt:
        print("interrupted: what was measured is not written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        told = settings_of(options)
        # Where nothing is said, the folder of a machine whose name is not known yet.
        folder(report.folder_of(options, "any")[0].parent)
    except (ValueError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    wrong = machine.two_checkouts()
    if wrong:
        parser.exit(1, f"{wrong}\n")
    there = torch.cuda.is_available()
    if options.device == "cuda" and not there:
        built = f"is built for CUDA {torch.version.cuda}" if torch.version.cuda else "has no CUDA"
        parser.exit(
            1,
            f"--device cuda: torch sees no CUDA device here, and torch {torch.__version__} "
            f"{built}; leave --device out to measure the CPU\n",
        )
    given = sys.argv[1:] if arguments is None else arguments
    command = shlex.join([*COMMAND.split(), *given])
    status = 0
    if options.device != "cuda":
        status = _run_cpu(options, told, command)
    if there and options.device != "cpu":
        from . import gpu_command

        status |= gpu_command.run(options, told, command)
    return status


if __name__ == "__main__":
    sys.exit(main())
