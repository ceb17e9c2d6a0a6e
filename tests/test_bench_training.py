"""The benchmark of training steps: what may be timed is gated, and what is left out is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
if not (ROOT / "bench").is_dir():
    pytest.skip("the benchmark suite is in the repository only", allow_module_level=True)
sys.path.append(str(ROOT))

from bench import training  # noqa: E402

CASES = [(part, case) for part, (_, _, cases, _) in training.PARTS.items() for case in cases]


def made(part, case):
    names, _ = training.providers_of(part, False)
    return {name: training.Trained(part, case, name, True) for name in names}


@pytest.mark.parametrize(("part", "case"), CASES)
def test_all_providers_train_alike(part, case):
    curves = training.gate(made(part, case), case)
    first, *_, last = next(iter(curves.values()))
    assert last < first


def test_a_reversal_that_does_not_reverse_is_not_timed():
    providers = made("adversarial", "MLP features")
    providers["fused"].model.domain[0].set_scale(0.0)
    with pytest.raises(AssertionError, match=r"eager's gradient is .* from ours"):
        training.gate(providers, "MLP features")


def test_another_loss_curve_is_not_timed():
    providers = made("convert", "MLP")
    providers["plain"].optimizer.param_groups[0]["lr"] = 10.0
    with pytest.raises(AssertionError, match="plain's loss curve is"):
        training.gate(providers, "MLP")


def test_the_reversal_launches_no_operation_of_its_own():
    counts = {n: t.operations() for n, t in made("adversarial", "MLP features").items()}
    assert counts["fused"] < counts["eager"]


def test_converted_networks_keep_less():
    for case in training.PARTS["convert"][2]:
        kept = {name: trained.kept() for name, trained in made("convert", case).items()}
        assert kept["converted"] < 0.75 * kept["plain"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no resident memory here")
def test_a_peak_is_taken_in_a_process_of_its_own():
    assert training.peak("convert", "MLP", "converted", True) > 0


def test_the_section_shows_figures_verdicts_and_what_was_left_out(monkeypatch):
    monkeypatch.setattr(training, "peak", lambda *_: 3 << 20)
    monkeypatch.setattr(training, "Effort", lambda *_: training_effort)
    rows = training.compared("adversarial", "MLP features", True, False)
    text = training.section(rows)
    assert "| MLP features | fused |" in text and "3.00" in text
    assert "eager+compile | skipped: compiled by `python -m bench.training`" in text
    assert "no slower than the fastest other" in text
    assert torch.get_num_threads() == rows[0]["threads"]


training_effort = training.Effort(0.05, 2, 3, 1e-4)
