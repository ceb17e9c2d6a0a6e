"""The page's sections of whole networks: guided backpropagation, and steps of training.

Imports tables, targets and ceilings' names; works from the records alone.
"""

from __future__ import annotations

from typing import Any

from . import targets
from .ceilings import COMPILED, IDLE
from .tables import table

Row = dict[str, Any]
NETWORKS_TITLE = "## Guided backpropagation of whole networks"
TRAINING_TITLE = "## Steps of training"
_NETWORKS = """\
The gradient of one output for {what}; one run, interleaved, after a check that all guided maps
agree. *Ours faster*: the provider's time over ours, paired per round. *Ceiling*: its time over that
of the same network without activations, all else as in *plain*{shared}: what any way of computing
them could reach, as far as the quartiles are narrower than what activations cost. The peak is above
the model and its images, each in a process of its own. Floors: no slower than the plain gradient of
the unmodified model, 1.3 times as fast as captum, and the lowest peak; none where one small image
is asked for, of which the price of a call decides."""
_TRAINING = """\
Forward, backward and a step of SGD, {threads}, interleaved, after a check that all providers give
the same gradients and the same loss curve. *Ours faster*: the provider's time over the first row's,
paired per round, compiled over compiled; each network is made twice, in one order and in the other,
and rounds take turns. *Ceiling*: its time over that of the same network without
activations and reversal. *Operations*: what the profiler sees dispatched; *kept*: what autograd
keeps of a forward, each storage counted once; *peak*: in a process of its own; *loss*: before the
first and the {steps}th step. Floors: no slower than the fastest other, and the lowest peak.
*Level*: this run cannot tell the two apart, peaks within the memory that a page or a thread
makes."""


def provenance(run: Row) -> str:
    """When, how and with what a record was made."""
    machine = run["machine"]
    dirty = ", with uncommitted changes" if machine["dirty"] else ""
    versions = {"torch": machine["torch"], **machine["peers"]}
    load = run["load"]
    return (
        f"{run['date']}, commit {machine['commit'] or 'unknown'}{dirty}, `{run['command']}`, "
        f"{run['minutes']:.1f} minutes, load average {load[0]} at the start and {load[1]} at the "
        f"end; {machine['processor']}, {machine['native']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items() if version)
        + "."
    )


def spread(row: Row, key: str) -> str:
    """A ratio with its quartiles, or a dash."""
    if row.get(key) is None:
        return "–"
    return f"{row[key]:.2f} ({row[f'{key}_q1']:.2f}–{row[f'{key}_q3']:.2f})"


def _milliseconds(row: Row) -> str:
    return "{:.4g} ({:.4g}–{:.4g})".format(
        *(row[key] * 1e3 for key in ("median_s", "q1_s", "q3_s"))
    )


def _mebibytes(row: Row, key: str) -> str:
    return "–" if row.get(key) is None else f"{row[key] / 2**20:.1f}"


def _number(row: Row, key: str) -> str:
    return "–" if row.get(key) is None else f"{row[key]:.2f}"


#: Who or what is judged, the standing, and what is said of it.
Judged = tuple[str, str, str]


def _speed_verdict(row: Row, what: str) -> Judged:
    floor = row["floor"] or 1.0
    word = targets.standing(row, "speedup", floor)
    said = spread(row, "speedup")
    if word == targets.LEVEL:
        low, high = row["speedup_low"], row["speedup_high"]
        said += f"; the median's 95 % interval, {low:.3f}–{high:.3f}, holds {floor:g}"
    ceiling = row.get("ceiling")
    if ceiling is not None and word == targets.MISSED and ceiling < floor:
        said += f"; the ceiling, {ceiling:.2f}, is below the floor"
    return what, word, said


def _peak_verdict(rows: list[Row], ours: str) -> list[Judged]:
    peaks = {row["provider"]: row["peak_bytes"] for row in rows if row.get("peak_bytes")}
    others = {name: peak for name, peak in peaks.items() if name != ours}
    if ours not in peaks or not others:
        return []
    lowest = min(others, key=lambda name: others[name])
    less, slack = others[lowest] - peaks[ours], targets.SLACK_BYTES
    word = targets.between(less - slack, less + slack, 0)
    if max(others[lowest], peaks[ours]) < 4 * slack:
        word = targets.TOO_SMALL
    mine, theirs = peaks[ours] / 2**20, others[lowest] / 2**20
    return [("lowest peak memory", word, f"{mine:.1f} MiB against {theirs:.1f} by {lowest}")]


def network_verdicts(rows: list[Row]) -> list[Judged]:
    """For each network, how it stands to the floors, wins and losses alike."""
    found: list[Judged] = []
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        judged = [
            _speed_verdict(row, f"at least {row['floor']:g} × {row['provider']}")
            for row in own
            if row["floor"] is not None
        ]
        judged += _peak_verdict(own, "fused")
        found += [(f"{network}, {what}", word, said) for what, word, said in judged]
    return found


def training_verdicts(rows: list[Row]) -> list[Judged]:
    """For each case, ours beside the fastest other, eager and compiled apart."""
    found: list[Judged] = []
    for case in dict.fromkeys(row["case"] for row in rows):
        own = [row for row in rows if row["case"] == case and "median_s" in row]
        for compiled in (False, True):
            alike = [row for row in own if row["provider"].endswith(COMPILED) is compiled]
            others = [row for row in alike[1:] if row["provider"] != IDLE]
            if not others:
                continue
            best = min(others, key=lambda row: row["speedup"])
            judged = [_speed_verdict(best, f"no slower than the fastest other, {best['provider']}")]
            judged += _peak_verdict(alike, alike[0]["provider"])
            found += [(f"{case}, {what}", word, said) for what, word, said in judged]
    return found


def _lines(found: list[Judged]) -> list[str]:
    return [f"* {what}: {targets.marked(word)}, {said}" for what, word, said in found]


def networks_section(run: Row) -> str:
    """Time, ratio, floor, ceiling and peak of every provider, and the verdicts."""
    rows = run["rows"]
    told = rows[0]
    each = {row["network"]: _images(row) for row in rows}
    what = _images(told) + "".join(
        f" ({network}: {images})" for network, images in each.items() if images != _images(told)
    )
    what += f", on {told['device']}, {_threads(told)}"
    shares = [f"{row['shared']:.0%} of {row['network']}'s" for row in rows if row["shared"]]
    shared = f"; convolutions, products, pools and norms are {' and '.join(shares)} plain gradient"
    lines = [
        [
            row["network"], row["provider"], _milliseconds(row), str(row["runs"]),
            spread(row, "speedup"), _number(row, "floor"), spread(row, "ceiling"),
            _mebibytes(row, "peak_bytes"),
        ]
        for row in rows
    ]  # fmt: skip
    head = ["network", "provider", "ms", "runs", "ours faster", "floor", "ceiling", "peak MiB"]
    absent = [f"* skipped: {name}: {why}" for name, why in run.get("left_out", {}).items()]
    parts = [
        NETWORKS_TITLE,
        provenance(run),
        _NETWORKS.format(what=what, shared=shared if shares else "").replace("\n", " "),
        table(head, lines),
        "\n".join([*_lines(network_verdicts(rows)), *absent]),
    ]
    return "\n\n".join(parts)


def _images(row: Row) -> str:
    return (
        f"{row['batch']} image{'s' * (row['batch'] > 1)} of {row['size']} pixels, "
        f"{row['width']} channels in the first stage"
    )


def _threads(row: Row) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def _training_line(row: Row) -> list[str]:
    losses = "–"
    if row.get("first_loss") is not None:
        losses = f"{row['first_loss']:.3f} → {row['last_loss']:.3f}"
    return [
        row["case"], row["provider"], _milliseconds(row), str(row["runs"]),
        spread(row, "speedup"), _number(row, "ceiling"), str(row.get("operations") or "–"),
        _mebibytes(row, "kept_bytes"), _mebibytes(row, "peak_bytes"), losses,
    ]  # fmt: skip


def training_section(run: Row) -> str:
    """Adversarial networks, then networks after `convert`: figures and verdicts."""
    rows = run["rows"]
    titles = {
        "adversarial": "### A step of an adversarial network",
        "convert": "### Training after `convert`",
    }
    told = {"threads": _threads(run["settings"]), "steps": run["settings"]["steps"]}
    parts = [TRAINING_TITLE, provenance(run), _TRAINING.format(**told).replace("\n", " ")]
    head = ["network", "provider", "ms", "runs", "ours faster", "ceiling"]
    head += ["operations", "kept MiB", "peak MiB", "loss"]
    for part, title in titles.items():
        chosen = [row for row in rows if row["part"] == part]
        if chosen:
            timed = [row for row in chosen if "median_s" in row]
            left = [
                f"* skipped: {row['provider']} on {row['case']}: {row['skipped']}"
                for row in chosen
                if "skipped" in row
            ]
            parts += [title, table(head, map(_training_line, timed))]
            parts.append("\n".join([*_lines(training_verdicts(chosen)), *left]))
    return "\n\n".join(parts)


def absent(title: str, target: str, minutes: str) -> str:
    """What stands in a section's place where this machine's folder holds no record of it."""
    return f"{title}\n\nNot recorded here yet: `make {target}` does it, {minutes}."


def versions_table(compared: list[Row], prefix: str) -> str:
    """A line for each comparison: what was compared, how many cases changed, the two ends."""
    lines = []
    for run in compared:
        rows = [row for row in run["rows"] if "ratio" in row]
        verdicts = [row["verdict"] for row in rows]
        best = min(rows, key=lambda row: row["ratio"], default=None)
        worst = max(rows, key=lambda row: row["ratio"], default=None)
        commits = f"{run['base']['commit'][:9]} → {run['new']['commit'][:9]}"
        lines.append(
            [
                f"[{run['name']}]({prefix}compare-{run['name']}.md)", run["date"][:10], commits,
                *(f"{verdicts.count(word)}/{len(rows)}" for word in ("faster", "slower")),
                *(_interval(row) for row in (best, worst)),
            ]
        )  # fmt: skip
    head = ["change", "date", "base → new", "faster", "slower"]
    return table([*head, "least new ÷ base (95 %)", "most"], lines)


def _interval(row: Row | None) -> str:
    if row is None:
        return "–"
    return f"{row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f}), {row['case']}"
