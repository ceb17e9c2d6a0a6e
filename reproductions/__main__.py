"""Run the reproductions, write their figures and plots, and say whether they hold.

``python -m reproductions [moons] [digits] [--out FOLDER] [--quick]``. Exit status 1 where a figure
that is promised is not reached.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from . import digits, moons, plots

#: The published figures, which a quick run leaves alone.
RECORD = Path(__file__).parent / "results"
QUICK = Path("out/reproductions")
#: The promised gain in target accuracy for each shift of the digits; None: reported as it is.
GAINS = {"rotated": 0.25, "shifted": 0.10, "blended": None}


def run_moons(quick: bool) -> dict[str, Any]:
    """Both ways over all seeds, side by side."""
    epochs = 2 if quick else moons.EPOCHS
    with tqdm(total=epochs, unit="epoch", desc="moons") as bar:
        curves = moons.train(epochs=epochs, every=1 if quick else 10, after_epoch=bar.update)
    ends = {name: [curve[-1] for curve in curves[name]["target"]] for name in curves}
    means = {name: statistics.mean(values) for name, values in ends.items()}
    held = {
        "mean target accuracy with adaptation >= .92": means["adapted"] >= 0.92,
        "mean target accuracy without <= .85": means["plain"] <= 0.85,
    }
    return {"seeds": list(moons.SEEDS), "epochs": epochs, "target": ends, "mean": means,
            "held": held, "curves": curves}  # fmt: skip


def run_digits(quick: bool) -> dict[str, Any]:
    """Each shift, both ways, over all seeds."""
    epochs = 2 if quick else digits.EPOCHS
    seeds = digits.SEEDS[:1] if quick else digits.SEEDS
    found: dict[str, Any] = {}
    held = {}
    with tqdm(total=len(GAINS) * 2 * len(seeds), unit="training", desc="digits") as bar:
        for shift, promised in GAINS.items():
            curves: dict[str, list[list[float]]] = {"adapted": [], "plain": []}
            for seed in seeds:
                for name in curves:
                    records = digits.train(seed, shift, name == "adapted", epochs)
                    curves[name].append([record["target_accuracy"] for record in records])
                    bar.update()
            ends = {name: [curve[-1] for curve in curves[name]] for name in curves}
            means = {name: statistics.mean(values) for name, values in ends.items()}
            gain = means["adapted"] - means["plain"]
            found[shift] = {"target": ends, "mean": means, "gain": gain, "curves": curves}
            if promised is not None:
                held[f"{shift}: mean gain >= {promised:g}"] = gain >= promised
    return {"seeds": list(seeds), "epochs": epochs, "shifts": found, "held": held}


RUNS: dict[str, Callable[[bool], dict[str, Any]]] = {"moons": run_moons, "digits": run_digits}
DRAWN = {"moons": plots.draw_moons, "digits": plots.draw_digits}


def rounded(value: Any) -> Any:
    """Numbers to four digits, so that the files stay small."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    return [rounded(inner) for inner in value] if isinstance(value, list) else value


def text_of(result: dict[str, Any]) -> str:
    """The result as JSON, each list of numbers on a line of its own."""
    text = json.dumps(rounded(result), indent=1)
    return re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n"


def report(name: str, result: dict[str, Any]) -> str:
    """The figures of one reproduction in a few lines."""
    rows = result["shifts"].items() if name == "digits" else [("", result)]
    lines = []
    for shift, found in rows:
        for way in ("adapted", "plain"):
            values = ", ".join(f"{value:.3f}" for value in found["target"][way])
            title = " ".join(filter(None, [name, shift, way]))
            lines.append(f"{title}: mean target accuracy {found['mean'][way]:.3f} ({values})")
    for promise, kept in result["held"].items():
        lines.append(f"{'held' if kept else 'NOT HELD'}: {promise}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Run what is asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m reproductions", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="moons, digits; all by default")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help=f"default: {RECORD}, under --quick {QUICK}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few epochs: shows that all runs, proves nothing"
    )
    options = parser.parse_args(arguments)
    if options.out is None:
        options.out = QUICK if options.quick else RECORD
    unknown = [name for name in options.names if name not in RUNS]
    if unknown:
        parser.error(f"unknown reproduction {unknown[0]!r}: choose from {', '.join(RUNS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    # The layers are tiny, and threads would wait for each other.
    torch.set_num_threads(1)
    missed = False
    for name in options.names or RUNS:
        start = time.time()
        result = RUNS[name](options.quick)
        result = {"torch": torch.__version__, "machine": platform.machine(), **result}
        (options.out / f"{name}.json").write_text(text_of(result), encoding="utf-8")
        DRAWN[name](options.out / f"{name}.png", result)
        print(report(name, result), f"\n{name} took {time.time() - start:.0f} s", flush=True)
        missed |= not all(result["held"].values())
    return int(missed and not options.quick)


if __name__ == "__main__":
    sys.exit(main())
