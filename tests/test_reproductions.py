"""The reproductions: their steps are DANN's, their backends agree, their figures hold."""

import importlib
import json
import sys

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

import pyrevgrad
from pyrevgrad.adaptation.datasets import moons as moons_data
from pyrevgrad.adversarial import DANN
from pyrevgrad.nn import Activation


@pytest.fixture
def room(monkeypatch, repository):
    monkeypatch.syspath_prepend(str(repository))
    return lambda name: importlib.import_module(f"reproductions.{name}")


def test_a_step_of_the_moons_is_a_step_of_dann_in_every_run(room):
    moons = room("moons")
    weights = moons.initial([3, 4])
    networks = []
    for run, weight in enumerate((12.0, 0.0)):
        model = DANN(
            torch.nn.Sequential(torch.nn.Linear(2, 15), Activation("sigmoid")),
            torch.nn.Linear(15, 2),
            torch.nn.Linear(15, 1),
            domain_weight=weight,
        ).double()
        layers = (model.features[0], model.label_head, model.domain_head)
        for layer, name in zip(layers, ("features", "label", "domain"), strict=True):
            layer.weight.data = weights[f"{name}.weight"].data[run].T.clone()
            layer.bias.data = weights[f"{name}.bias"].data[run, 0].clone()
        networks.append((model, layers))
    (x, y), (target, _) = moons_data()
    for i in range(20):
        beside = target[[2 * i, 2 * i + 1]]
        moons.step(weights, x[i], y[i], beside, torch.tensor([6.0, 0.0]).double())
        for run, (model, _) in enumerate(networks):
            model.zero_grad()
            model(x[i : i + 1], y[i : i + 1], beside[run : run + 1]).loss.backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.05 * parameter.grad
    for run, (_, layers) in enumerate(networks):
        for layer, name in zip(layers, ("features", "label", "domain"), strict=True):
            torch.testing.assert_close(weights[f"{name}.weight"][run].T, layer.weight)
            torch.testing.assert_close(weights[f"{name}.bias"][run, 0], layer.bias)


def test_the_moons_begin_as_published(room):
    weights = room("moons").initial([0, 1])
    bound = (6 / 17) ** 0.5
    assert bound * 0.9 < weights["features.weight"].abs().max() <= bound
    assert not weights["domain.weight"].any() and not weights["features.bias"].any()
    assert not torch.equal(*weights["label.weight"])


def test_both_backends_give_the_same_curves_of_the_moons_in_float64(room):
    curves = []
    for name in ("reference", "native"):
        try:
            with pyrevgrad.backend(name):
                curves.append(room("moons").train(seeds=(0, 1), epochs=2, every=1))
        except pyrevgrad.BackendError:
            pytest.skip("the native library is not built here")
    assert curves[0] == curves[1]


def test_both_ways_begin_with_the_same_weights(room):
    one, other = (room("digits").network(2, 10, adapted) for adapted in (True, False))
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_quick_run_leaves_figures_and_plots(room, tmp_path, capsys):
    assert room("__main__").main(["moons", "--quick", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "moons adapted: mean target accuracy" in said and "moons took" in said
    assert json.loads((tmp_path / "moons.json").read_text())["seeds"] == [0, 1, 2, 3, 4]
    assert (tmp_path / "moons.png").stat().st_size > 0


def test_a_quick_run_leaves_the_published_record_alone(room, tmp_path, monkeypatch):
    program = room("__main__")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "RECORD", tmp_path / "published")
    assert program.main(["moons", "--quick"]) == 0
    left = {path.name for path in (tmp_path / "out" / "reproductions").iterdir()}
    assert left == {"moons.json", "moons.png"} and not program.RECORD.exists()


def test_a_promise_that_is_missed_is_an_exit_status(room, tmp_path, monkeypatch, capsys):
    short = room("__main__")
    monkeypatch.setattr(short.moons, "EPOCHS", 1)
    assert short.main(["moons", "--out", str(tmp_path)]) == 1
    assert "NOT HELD: mean target accuracy with adaptation >= .92" in capsys.readouterr().out


def test_the_committed_figures_hold_and_their_means_are_those_of_their_seeds(repository):
    folder = repository / "reproductions" / "results"
    moons = json.loads((folder / "moons.json").read_text())
    digits = json.loads((folder / "digits.json").read_text())
    assert len(moons["seeds"]) == len(digits["seeds"]) == 5
    assert all(moons["held"].values()) and all(digits["held"].values())
    for found in (moons, *digits["shifts"].values()):
        for way, values in found["target"].items():
            assert found["mean"][way] == pytest.approx(sum(values) / 5, abs=1e-4)
    assert moons["mean"]["adapted"] >= 0.92 and moons["mean"]["plain"] <= 0.85
    gains = {
        shift: found["mean"]["adapted"] - found["mean"]["plain"]
        for shift, found in digits["shifts"].items()
    }
    assert gains["rotated"] >= 0.25 and gains["shifted"] >= 0.10


def test_an_unknown_reproduction_is_refused(room, capsys):
    with pytest.raises(SystemExit):
        room("__main__").main(["mnist"])
    assert "unknown reproduction 'mnist': choose from moons, digits" in capsys.readouterr().err
    assert "reproductions" in sys.modules
