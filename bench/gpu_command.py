"""The suite's command on a CUDA device: the options, the record and the page.

Imports gpu, which measures, and the rooms that write.
"""

from __future__ import annotations

import argparse
from datetime import datetime, timezone
from typing import Any

from pyrevgrad import BackendError

from . import cuda_page, gpu, machine, report
from .cases import Case

Row = dict[str, Any]
#: Options that say how the CPU is measured.
_CPU_ALONE = ("threads", "allocations", "sizes")


def run(options: argparse.Namespace, told: Row, command: str) -> int:
    """Measure the device; 1 where the kernels do not serve it or a provider was refused."""
    ignored = [f"--{name}" for name in _CPU_ALONE if getattr(options, name)]
    if ignored:
        print(f"on a GPU {', '.join(ignored)} say nothing: tensors have {gpu.LARGE >> 20} MiB")
    cases = [Case(*name.split("/")) for name in told["cases"]]
    if not options.filter:
        cases = [case for case in cases if case in (*gpu.RELU_CASES, gpu.DECONVNET)]
    try:
        figures = gpu.on_this_device(
            options.quick,
            cases=tuple(cases),
            dtypes=tuple(options.dtype or gpu.DTYPES),
            without=dict.fromkeys(options.without, "left out by --without"),
        )
    except BackendError as error:
        print(f"--device cuda: {error}")
        return 1
    made = {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": machine.describe(),
        **figures,
    }
    name = machine.folder_name(figures["device"])
    # `make gpu` alone makes the project's record of a device: it runs the tests first.
    folder, path = report.folder_of(options, name, record=False)
    report.write_json(folder / "cuda.json", made)
    for table in ("pairs", "kernels", "host"):
        report.write_csv(folder / f"cuda-{table}.csv", made[table])
    if options.json:
        both = options.device is None
        report.write_json(options.json.with_suffix(".cuda.json") if both else options.json, made)
    path = path.with_name("CUDA.md")
    path.write_text(cuda_page.cuda_page(made), encoding="utf-8")
    for sentence in made["missed"]:
        print(f"missed: {sentence}")
    for row in made["pairs"]:
        if "skipped" in row:
            print(f"skipped: {row['provider']} on {row['case']}: {row['skipped']}")
    print(f"written: {path}")
    return 1 if any("refused" in row for row in made["pairs"]) else 0
