"""Host times are of right gradients, in rounds with plain PyTorch's, beside the goal.

It runs the suite's room of host times with next to no rounds.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmark suite is in the repository only", allow_module_level=True)
# At the end of the path: the installed package is what is measured, never the checkout.
sys.path.append(str(ROOT))

from bench import host  # noqa: E402
from bench.timing import Effort  # noqa: E402


@pytest.fixture
def hasty(monkeypatch):
    monkeypatch.setattr(host, "Effort", lambda *_: Effort(0.0, 2, 2, 0.0))
    monkeypatch.setattr(host.torch, "set_num_threads", lambda _: None)


@pytest.mark.parametrize("case", host.CASES)
def test_every_provider_s_gradient_is_the_reference_s(case):
    found = host.applies(case)
    assert set(found) == {"fused", "reference", "idiom", "plain"}
    host.check(found, case)


def test_a_plain_gradient_gets_no_time_under_a_modified_rule():
    found = host.applies("relu/reverse")
    with pytest.raises(AssertionError, match="fused: a wrong gradient on relu/reverse"):
        host.check({**found, "fused": found["plain"]}, "relu/reverse")


def test_every_way_of_calling_is_timed_beside_plain(hasty):
    rows = host.own_rows("python", quick=True)
    keys = {(r["case"], r["what"], r["elements"], r["provider"]) for r in rows}
    assert keys == {
        (case, what, elements, provider)
        for case in host.QUICK_CASES
        for what in ("no grad", "forward", "forward + backward")
        for elements in host.QUICK_SIZES
        for provider in ("fused", "plain")
    }
    assert all(row["ratio"] == 1 for row in rows if row["provider"] == "plain")


def row(recorder: str, provider: str, ratio: float, what: str = host.GOAL_WHAT):
    return {
        "recorder": recorder, "case": "relu/GUIDED", "what": what, "elements": 1024,
        "provider": provider, "median_s": ratio * 1e-5, "q1_s": ratio * 9e-6,
        "q3_s": ratio * 1.1e-5, "ratio": ratio, "ratio_q1": ratio * 0.9, "ratio_q3": ratio * 1.1,
    }  # fmt: skip


def test_section_states_the_goal_and_whether_it_is_met():
    rows = [row("c++", "plain", 1.0), row("c++", "fused", 1.2)]
    rows += [row("python", "plain", 1.0), row("python", "fused", 2.0)]
    text = host.section(rows)
    assert "Goal: forward + backward at 2¹⁰ elements at most 1.5 times F.relu's." in text
    assert "* fused, C++ nodes: met, at worst 1.20 (1.08–1.32) on relu/GUIDED" in text
    assert "* fused, Python Functions: **missed**, at worst 2.00" in text
    cells = "10 µs (9–11) | 12 µs, 1.20 (1.08–1.32) | 20 µs, 2.00 (1.80–2.20) | – | –"
    assert f"| forward + backward | 1024 | {cells} |" in text


def test_without_the_nodes_the_functions_are_shown_and_the_reason_is_said():
    rows = [{"recorder": "c++", "skipped": "none were built"}]
    rows += [row("python", "plain", 1.0), row("python", "fused", 2.0)]
    text = host.section(rows)
    assert "Skipped:  fused, C++ nodes: none were built" in text
    assert "| 10 µs (9–11) | – | 20 µs, 2.00 (1.80–2.20) | – | – |" in text
