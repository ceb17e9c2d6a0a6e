"""The benchmark of training steps: what may be timed is gated, and what is left out is named."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import end_to_end, training
from bench.timing import Effort

PROVIDERS = ("fused", "idiom")
CASES = [(part, case) for part, (_, _, cases, _) in training.PARTS.items() for case in cases]


def made(part, case):
    names, _ = training.providers_of(part, False)
    return {name: training.Trained(part, case, name, True) for name in names}


@pytest.mark.parametrize(("part", "case"), CASES)
def test_all_providers_train_alike(part, case):
    providers = made(part, case)
    curves = training.gate(providers, case, next(iter(providers)))
    first, *_, last = next(iter(curves.values()))
    assert last < first


def test_a_reversal_that_does_not_reverse_is_not_timed():
    providers = made("adversarial", "MLP features")
    providers["fused"].model.domain[0].set_scale(0.0)
    with pytest.raises(AssertionError, match=r"idiom's gradient is .* from ours"):
        training.gate(providers, "MLP features", "fused")


def test_another_loss_curve_is_not_timed():
    providers = made("convert", "MLP")
    providers["plain"].optimizer.param_groups[0]["lr"] = 10.0
    with pytest.raises(AssertionError, match="plain's loss curve is"):
        training.gate(providers, "MLP", "converted")


def test_the_reversal_launches_no_operation_of_its_own():
    counts = {n: t.operations() for n, t in made("adversarial", "MLP features").items()}
    assert counts["fused"] < counts["idiom"]


def test_converted_networks_keep_less():
    for case in training.PARTS["convert"][2]:
        kept = {name: trained.kept() for name, trained in made("convert", case).items()}
        assert kept["converted"] < 0.75 * kept["plain"]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no resident memory here")
def test_a_peak_is_taken_in_a_process_of_its_own():
    assert training.peak("convert", "MLP", "converted", True) > 0


def test_the_command_leaves_a_record_that_the_page_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training, "peak", lambda *_: 3 << 20)
    monkeypatch.setattr(training, "Effort", lambda *_: Effort(0.05, 2, 3, 1e-4))
    part = {"adversarial": (*training.PARTS["adversarial"][:2], ("MLP features",), PROVIDERS)}
    monkeypatch.setattr(training, "PARTS", part)
    monkeypatch.setattr(training.measure, "__defaults__", ((),))
    threads = torch.get_num_threads()
    assert training.main(["--quick", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    record = json.loads((tmp_path / "training.json").read_text(encoding="utf-8"))
    text = end_to_end.training_section(record)
    assert text in capsys.readouterr().out
    assert "| MLP features | fused |" in text and " 3.0 |" in text
    assert "skipped: idiom+compile on MLP features: compiled by `python -m bench.training`" in text
    assert "* MLP features, no slower than the fastest other, " in text
    with (tmp_path / "training.csv").open(encoding="utf-8") as stream:
        assert len(list(csv.DictReader(stream))) == len(record["rows"])
    rows = {row["provider"]: row for row in record["rows"]}
    assert rows["idiom"]["ceiling"] > 0 and rows[training.IDLE]["speedup"] > 0


def test_the_ceiling_s_networks_have_nothing_between_their_layers():
    left_out = ("ReLU", "Activation", "_Eager", "ReversedLinear")
    for part, case in CASES:
        idle = training.Trained(part, case, training.IDLE, True).model
        assert not [m for m in idle.modules() if type(m).__name__.endswith(left_out)]
