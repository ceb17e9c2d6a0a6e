"""Every floor of the page counted together, and the losses that its other sections hold.

Imports targets, end_to_end, host and layouts; works from the records alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from . import end_to_end, host, layouts, targets
from .targets import LEVEL, MET, MISSED

Row = dict[str, Any]


def judged(run: Row) -> Row:
    """The record, its floors judged anew from its rows: a verdict is worded as today."""
    return {**run, "targets": targets.judge(run["timings"], run["kernels"])}


def _rows(run: Row, name: str) -> list[Row]:
    return run["sections"].get(name, {}).get("rows", [])


def floors(run: Row, others: dict[str, Row]) -> dict[str, str]:
    """How the records stand to each floor of the page, by what it asks: the worst of its cells.

    Parameters
    ----------
    run : dict
        The record of the whole suite.
    others : dict
        The records of whole networks and of training that are there, by name.
    """
    found: dict[str, list[str]] = {}
    for one in [*judged(run)["targets"], *run["memory_targets"]]:
        found.setdefault(one["target"], []).append(targets.word(one))
    for who, word, _ in host.judged(_rows(run, "host")):
        found[f"host time per call at most {host.GOAL} × F.relu's, {who}"] = [word]
    told = {"networks": end_to_end.network_verdicts, "training": end_to_end.training_verdicts}
    for name, verdicts in told.items():
        for what, word, _ in verdicts(others.get(name, {}).get("rows", [])):
            if word != targets.TOO_SMALL:
                found.setdefault(f"{name}: {what}", []).append(word)
    return {what: targets.worst_of(words) for what, words in found.items()}


def headline(run: Row, others: dict[str, Row]) -> str:
    """How many floors were met, are level and were missed; empty where none is judged."""
    found = floors(run, others)
    if not found:
        return ""
    count = Counter(found.values())
    return (
        f"Of the {len(found)} floors that the project set itself {count[MET]} were met in every "
        f"cell, {count[LEVEL]} are level in some (this run cannot tell them from their floor), and "
        f"{count[MISSED]} were missed in some."
    )


def refused(run: Row) -> list[str]:
    """What the gate refused, each provider and kernel once, with a case for example."""
    found: dict[str, list[str]] = {}
    for row in run["timings"]:
        if "refused" in row:
            found.setdefault(row["provider"], []).append(row["refused"])
    for row in run["kernels"]:
        if "refused" in row:
            found.setdefault(f"kernel {row['kernel']}", []).append(row["refused"])
    return [
        f"**Refused by the gate, with no time: `{name}` in {len(why)} cells ({why[0]}).**"
        for name, why in found.items()
    ]


def _slower(rows: Iterable[Row]) -> str:
    """Of rows with a ratio to plain, above 1 where slower: how many are, beyond noise."""
    words = [targets.between(*(-end for end in host.ends(row)), -1) for row in rows]
    return f"{words.count(MISSED)} of {len(words)}"


def _lost_to(rows: Iterable[Row], key: str) -> list[str]:
    """The opponents and cases of whole networks where ours was slower beyond noise."""
    lost = [
        row for row in rows
        if row.get("speedup") is not None and row["provider"] != end_to_end.IDLE
        and targets.standing(row) == MISSED
    ]  # fmt: skip
    return [f"{row['provider']} on {row[key]} ({row['speedup']:.2f})" for row in lost]


def _lost_compiled(timings: Iterable[Row]) -> str:
    words: dict[str, list[str]] = {}
    for row in timings:
        if "compiled_speedup" in row and row["provider"] != "fused+compile":
            word = targets.standing(row, "compiled_speedup")
            words.setdefault(row["provider"], []).append(word)
    return ", ".join(
        f"{of.count(MISSED)} of {len(of)} cells against {name}" for name, of in words.items()
    )


def _kept_more(resident: Iterable[Row]) -> list[str]:
    """The cases of which ours keeps more than another, called as it is and compiled."""
    kept = {(row["case"], row["provider"]): row["kept"] for row in resident if "kept" in row}
    found = []
    for case, ours in kept:
        if ours not in ("fused", "fused+compile"):
            continue
        compiled = ours != "fused"
        others = {
            provider: size
            for (of, provider), size in kept.items()
            if of == case and provider != ours and provider.endswith("+compile") is compiled
        }
        least = min(others, key=lambda name: others[name], default=None)
        if least and kept[case, ours] - others[least] > targets.SLACK_BYTES:
            sizes = (kept[case, ours] / 2**20, others[least] / 2**20)
            found.append(f"{case} by {ours} ({sizes[0]:.1f} MiB; {least} {sizes[1]:.1f})")
    return found


def other_losses(run: Row, others: dict[str, Row]) -> list[str]:
    """A line for each other section of the page in which ours may lose."""
    lines = []
    compiled = _lost_compiled(run["timings"])
    if compiled:
        lines.append(f"[Under torch.compile](#under-torchcompile): slower in {compiled}")
    more = _kept_more(run["resident"])
    if more:
        lines.append(f"Memory, each row in a process of its own: more is kept of {'; '.join(more)}")
    calls = [row for row in _rows(run, "host") if row.get("provider") == "fused" and "ratio" in row]
    if calls:
        eager = [row for row in calls if row["what"] != "compiled"]
        parts = [
            f"{_slower(row for row in eager if row['recorder'] == recorder)} of {said}"
            for recorder, said in host.RECORDERS.items()
        ]
        parts.append(f"{_slower(r for r in calls if r['what'] == 'compiled')} compiled")
        lines.append(
            "[Host time per call](#host-time-per-call): slower than PyTorch's own in "
            + ", ".join(parts)
        )
    laid = layouts.own(_rows(run, "scaling"))
    if laid:
        lines.append(f"[Layouts](#scaling): slower than PyTorch's own in {_slower(laid)} cells")
    for name, key, title in (("networks", "network", end_to_end.NETWORKS_TITLE),
                             ("training", "case", end_to_end.TRAINING_TITLE)):  # fmt: skip
        if name in others:
            text = title.removeprefix("## ")
            anchor = text.lower().replace(" ", "-")
            lost = "; ".join(_lost_to(others[name]["rows"], key)) or "no opponent"
            lines.append(f"[{text}](#{anchor}): slower than {lost}")
    return [f"* {line}." for line in lines]
