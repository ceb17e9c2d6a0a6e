"""``python -m bench.compare BASE``: is the working tree slower than a commit, beyond noise?

Imports contender's names, intervals, versions and records. Both versions are built, and each
answers from a process of its own; a round times base, new, new, base, so that a machine that slows
down slows both. Ratios are paired in the round. ``--new`` takes another commit in the working
tree's place, ``--record NAME`` leaves the table beside the suite's records and on their page.
What is slower or faster is timed once more with processes of its own, and said to be so where that
agrees. Exit status: 0, 1 where a case is slower beyond noise and the margin, 2 where there is
nothing to compare.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import before_after, contender, machine, records, report, versions
from .intervals import CONFIDENCE, NOISY, bootstrap
from .versions import InputError

#: Slower than this is a regression where the whole interval says so.
MARGIN = 0.05
#: An editable install of another version would lend an older one the rooms that it lacks.
START = """
import sys
sys.path.append({root!r})
sys.meta_path[:] = [f for f in sys.meta_path if "__editable__" not in str(f)]
from bench.contender import main
main()
"""
#: Verdicts that name a difference, and are reached twice.
BEYOND = ("slower", "faster")
Row = dict[str, Any]


@dataclass(frozen=True)
class Amount:
    """Pairs of processes, rounds in each, and the seconds that one timing fills."""

    launches: int
    rounds: int
    sample: float


QUICK, FULL = Amount(3, 6, 4e-3), Amount(6, 10, 2e-2)


class Process:
    """A version in a process of its own, asked by lines."""

    def __init__(self, package: Path) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYREVGRAD_")}
        environment |= {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", START.format(root=str(versions.ROOT))]
        self._process = subprocess.Popen(
            command, cwd=package.parent, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.described = self._answer()
        if not Path(self.described["file"]).is_relative_to(package):
            raise RuntimeError(f"{self.described['file']} was imported, not what is in {package}")

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a timed process ended with status {self._process.wait()}")
        return json.loads(line)

    def ask(self, *call: Any) -> Any:
        """What the process answers to a method's name and its arguments."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.stdout.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def launched(packages: dict[str, Path]) -> Iterator[dict[str, Process]]:
    """A process for each package, ended whatever happens."""
    with contextlib.ExitStack() as stack:
        found = {}
        for name, package in packages.items():
            found[name] = Process(package)
            stack.callback(found[name].close)
        yield found


def refusal(base: Row, new: Row) -> str | None:
    """Why a case's times would mean nothing: a version cannot run it, or the results differ."""
    for name, found in (("base", base), ("new", new)):
        if "cannot" in found:
            return f"{name} cannot run it: {found['cannot']}"
    for one, other, tolerance in zip(base["sums"], new["sums"], base["tolerances"], strict=True):
        if len(one) != len(other):
            return "the versions compute results of different sizes"
        for before, after in zip(one, other, strict=True):
            if not abs(before - after) <= tolerance:
                return f"the versions compute different results ({before:.6g} and {after:.6g})"
    return None


def one_round(processes: dict[str, Any], name: str, repetitions: int) -> tuple[float, float]:
    """Seconds a call of base and of new, each the mean of its two places in A B B A."""
    a, b = processes["base"], processes["new"]
    first, second, third, last = (p.ask("run", name, repetitions) for p in (a, b, b, a))
    return (first + last) / 2, (second + third) / 2


def measure(
    packages: dict[str, Path], names: Sequence[str], amount: Amount, launch: Any = launched
) -> tuple[dict[str, Row], dict[str, list[list[tuple[float, float]]]], dict[str, str]]:
    """What the versions are; by case and launch the paired seconds; and why a case has none."""
    times: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in names}
    refused: dict[str, str] = {}
    described: dict[str, Row] = {}
    for number in range(amount.launches):
        with launch(packages) as processes:
            described = {name: process.described for name, process in processes.items()}
            for name in names:
                if name in refused:
                    continue
                reason = refusal(*(processes[p].ask("prepare", name) for p in ("base", "new")))
                if reason:
                    refused[name] = reason
                    continue
                repetitions = processes["base"].ask("calibrate", name, amount.sample)
                one_round(processes, name, repetitions)  # warm; does not count
                rounds = [one_round(processes, name, repetitions) for _ in range(amount.rounds)]
                times[name].append(rounds)
        print(f"pair {number + 1} of {amount.launches} of processes done", file=sys.stderr)
    return described, times, refused


def rows_of(
    times: dict[str, list[list[tuple[float, float]]]], refused: dict[str, str], margin: float
) -> list[Row]:
    """A row for each case: median microseconds, the ratio new ÷ base, its interval, a verdict."""
    rows: list[Row] = []
    for name, launches in times.items():
        if name in refused:
            rows.append({"case": name, "refused": refused[name]})
            continue
        found = bootstrap([[new / base for base, new in rounds] for rounds in launches])
        pairs = [pair for rounds in launches for pair in rounds]
        base, new = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
        rows.append(
            {
                "case": name, "base_s": base, "new_s": new,
                "ratio": found.ratio, "low": found.low, "high": found.high,
                "rounds": [len(rounds) for rounds in launches], "verdict": found.verdict(margin),
            }
        )  # fmt: skip
    return rows


def judged(
    packages: dict[str, Path], names: Sequence[str], amount: Amount, margin: float
) -> tuple[dict[str, Row], list[Row]]:
    """What the versions are, and the rows; what is beyond the margin was so in two measurements.

    Of many cases on a loud machine one is beyond it by chance, and seldom the same one twice.
    """
    described, times, refused = measure(packages, names, amount)
    rows = rows_of(times, refused, margin)
    beyond = {row["case"]: row["verdict"] for row in rows if row.get("verdict") in BEYOND}
    if not beyond:
        return described, rows
    print(f"{len(beyond)} beyond the margin: timed once more", file=sys.stderr)
    _, again, refused_again = measure(packages, list(beyond), amount)
    second = {row["case"]: row for row in rows_of(again, refused_again, margin)}
    together = {name: times[name] + again.get(name, []) for name in times}
    rows = rows_of(together, refused | refused_again, margin)
    for row in rows:
        first = beyond.get(row["case"])
        if first is None or "refused" in row:
            continue
        if second[row["case"]]["verdict"] == first:
            row["verdict"] = first
        elif row["verdict"] in BEYOND:
            row["verdict"] = NOISY
    return described, rows


def table(rows: list[Row], margin: float) -> str:
    """The rows as text, then what they come to."""
    width = max((len(row["case"]) for row in rows), default=4)
    lines = [f"{'case':{width}}  {'base':>10}  {'new':>10}  {'new ÷ base (95 %)':>21}"]
    for row in rows:
        if "refused" in row:
            lines.append(f"{row['case']:{width}}  no time: {row['refused']}")
            continue
        figures = f"{row['ratio']:.3f} ({row['low']:.3f}–{row['high']:.3f})"
        verdict = row["verdict"]
        word = {"same": "", NOISY: f"  {NOISY}"}.get(verdict, f"  {verdict.upper()}")
        times = (f"{row[key] * 1e6:7.1f} µs" for key in ("base_s", "new_s"))
        lines.append(f"{row['case']:{width}}  {'  '.join(times)}  {figures:>21}{word}")
    count = {word: sum(row.get("verdict") == word for row in rows) for word in (*BEYOND, NOISY)}
    lines += [
        "",
        f"{count['slower']} slower and {count['faster']} faster of {len(rows)}, beyond noise and a "
        f"margin of {margin:.0%}: the {CONFIDENCE:.0%} interval lay wholly outside, twice.",
    ]
    if count[NOISY]:
        lines.append(
            f"{count[NOISY]} could not be told: the interval reaches beyond the margin and is "
            "wider, or a second measurement disagreed. Without --quick, or on a quieter machine, "
            "it is narrower."
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description=__doc__)
    add = parser.add_argument
    add("base", metavar="BASE", help="a commit: HEAD~1, a branch, a tag, a hash")
    add("--quick", action="store_true", help="fewer cases and rounds: about a minute of timing")
    add("--filter", metavar="TEXT", default="", help="only the cases whose name holds TEXT")
    add("--margin", type=float, default=MARGIN, metavar="SHARE", help=f"{MARGIN} if not given")
    add("--new", metavar="COMMIT", help="compare this commit, not the working tree")
    add("--record", metavar="NAME", help="keep the table under this name: what was changed")
    records.add_options(parser)
    add("--report", action="store_true", help="print only: 0 for a regression or a bad BASE too")
    return parser


def _chosen(options: argparse.Namespace) -> list[str]:
    """The cases, or InputError that lists them; a filter finds those of the full form too."""
    if not 0 <= options.margin < 10:
        raise InputError(f"a margin is a share such as {MARGIN}, not {options.margin}")
    for quick in dict.fromkeys((options.quick, False)):
        found = [name for name in contender.names(quick) if options.filter in name]
        if found:
            return found
    known = "\n  ".join(contender.names(False))
    raise InputError(f"no case holds {options.filter!r}; there are\n  {known}")


def _capability() -> str:
    """The instruction set of this machine, as the library that is installed chose it; or all.

    Without what is built beside it, which an earlier version may not know by name.
    """
    from pyrevgrad import backends

    native = backends.native()
    return "" if native is None else native.capability.partition("_")[0]


def compared(options: argparse.Namespace) -> Row:
    """Build, time and judge; InputError where there is nothing to compare."""
    names, commit = _chosen(options), versions.commit_of(options.base)
    new = None if options.new is None else versions.commit_of(options.new, said="NEW")
    if options.record is not None:
        before_after.check_name(options.record)
    amount = QUICK if options.quick else FULL
    differs = versions.native_differs(commit, new=new)
    what = versions.said_of_building(differs)
    other = "the working tree" if new is None else new[:10]
    print(f"building {commit[:10]} and {other} ({what})", file=sys.stderr, flush=True)
    start = time.monotonic()
    with versions.both_built(commit, _capability(), new) as packages:
        middle = time.monotonic()
        described, rows = judged(packages, names, amount, options.margin)
    for one in described.values():
        del one["file"]
    seconds = {"building": middle - start, "timing": time.monotonic() - middle}
    uncommitted = new is None and versions.dirty()
    return {
        "base": {"commit": commit, **described["base"]},
        "new": {
            "commit": new or versions.commit_of("HEAD"),
            "dirty": uncommitted,
            **described["new"],
        },
        "margin": options.margin,
        "confidence": CONFIDENCE,
        "seconds": {what: round(spent, 1) for what, spent in seconds.items()},
        "rows": rows,
    }


def _provenance(run: Row) -> str:
    """How long it took, and how loud the machine was."""
    seconds, (start, end) = run["seconds"], run["load"]
    told = (
        f"one thread, {seconds['building']} s of building, {seconds['timing']} s of timing; "
        f"load average {start} at the start and {end} at the end"
    )
    warning = machine.unquiet(start)
    return f"{told}\n{warning}" if warning else told


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print and record; 0, 1 (slower) or 2 (bad input)."""
    options = _parser().parse_args(arguments)
    begun = records.Begun("compare", arguments)
    try:
        found = compared(options)
    except InputError as error:
        print(f"nothing is compared: {error}", file=sys.stderr)
        return 0 if options.report else 2
    for name in ("base", "new"):
        one = found[name]
        tree = " and what is not committed" if one.get("dirty") else ""
        built = ", ".join(str(one[key]) for key in ("native", "autograd") if key in one)
        print(f"{name:4}  {one['commit'][:10]}{tree}: {built}")
    settings = {"quick": options.quick, "filter": options.filter, "threads": 1}
    run = begun.run(settings, found.pop("rows")) | found
    print(_provenance(run) + "\n")
    print(table(run["rows"], run["margin"]))
    if options.record is not None:
        before_after.keep(options.record, run, options)
    elif options.json:
        report.write_json(options.json, run)
    slower = any(row.get("verdict") == "slower" for row in run["rows"])
    return 1 if slower and not options.report else 0


if __name__ == "__main__":
    sys.exit(main())
