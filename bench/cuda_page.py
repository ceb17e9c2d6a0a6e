"""The generated page of a run on a CUDA device. Imports tables; works from the rows alone."""

from __future__ import annotations

from typing import Any

from .tables import size_text, table, time_text


def cuda_page(run: dict[str, Any]) -> str:
    """The page of a run on a CUDA device."""
    lines = []
    for row in run["pairs"]:
        ratio, ceiling = row.get("fused_is_faster"), row.get("ceiling")
        time = time_text(row["median_s"]) if "median_s" in row else "–"
        outcome = f"{ratio:.2f}" if ratio else row.get("refused") or row.get("skipped") or "–"
        start = [row["case"], row["provider"], row["dtype"], size_text(row["elements"])]
        lines.append([*start, time, outcome, f"{ceiling:.2f}" if ceiling else "–"])
    kernels = [
        [row["kernel"], row["dtype"], f"{row['bytes_per_element']:g}", f"{row['share']:.1%}",
         f"{row['gigabytes_per_s']:.0f}", f"{row['copy_gigabytes_per_s']:.0f}"]
        for row in run["kernels"]
    ]  # fmt: skip
    host = [
        [row["case"], f"{row['median_s'] * 1e6:.1f}", f"{row['times_relu']:.2f}"]
        for row in run["host"]
    ]
    parts = [
        f"# What a modified backward costs on {run['device']}",
        f"* {run['date']}, `{run['command']}`; torch {run['machine']['torch']}, commit "
        f"{run['machine']['commit'] or 'unknown'}; {run['build']}\n* device time between "
        f"two events, a cold L2 cache, tensors of {run['bytes_per_tensor'] >> 20} MiB, medians; "
        "ratios paired in the round",
        "## Forward and backward: their time ÷ ours",
        table(
            ["case", "provider", "dtype", "elements", "time", "fused is faster", "ceiling"], lines
        ),
        "## Kernels alone",
        table(["kernel", "dtype", "B/element", "of the copy", "GB/s", "copy GB/s"], kernels),
        "## Host time of forward and backward on 16 elements",
        table(["case", "µs", "times F.relu's"], host),
        "## Missed targets",
        "\n".join(f"* {sentence}" for sentence in run["missed"]) or "None.",
    ]
    return "\n\n".join(parts) + "\n"
