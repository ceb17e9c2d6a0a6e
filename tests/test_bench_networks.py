"""The benchmark of whole networks: gated, beside a ceiling, recorded and shown on the page."""

from __future__ import annotations

import csv
import json

import pytest
import torch

pytest.importorskip("bench", reason="the benchmark suite is in the repository only")

from bench import end_to_end, networks


def test_networks_are_measured_against_each_other_after_a_gate(tmp_path, capsys, monkeypatch):
    copied, peak = tmp_path / "copy.json", networks.peak
    own = ("fused", "grad-cam")  # a process each takes seconds
    monkeypatch.setattr(networks, "peak", lambda n, p, o: peak(n, p, o) if p in own else None)
    small = ["--batch", "1", "--size", "32", "--width", "4", "--seconds", "0.01"]
    words = [*small, "--networks", "resnet18", "--out", str(tmp_path), "--json", str(copied)]
    assert networks.main(words) == 0
    record = json.loads((tmp_path / "networks.json").read_text(encoding="utf-8"))
    assert record == json.loads(copied.read_text(encoding="utf-8"))
    assert record["machine"]["torch"] == torch.__version__ and record["settings"]["batch"] == 1
    assert record["command"].startswith("python -m bench.networks --batch 1 --size 32")
    rows = {row["provider"]: row for row in record["rows"]}
    assert {*networks.installed(), networks.IDLE} == set(rows) >= {"fused", "plain"}
    assert rows["fused"]["speedup"] is None and rows["plain"]["speedup"] > 0
    assert rows["plain"]["ceiling"] > 0 and 0 < rows["plain"]["shared"] < 1
    with (tmp_path / "networks.csv").open(encoding="utf-8") as stream:
        assert [row["provider"] for row in csv.DictReader(stream)] == list(rows)
    printed = capsys.readouterr().out
    section = end_to_end.networks_section(record)
    assert section in printed and section.count("| resnet18 |") == len(rows)
    assert "no page yet: `make bench` has left no results.json in" in printed


def test_a_small_network_has_no_floor_and_its_own_size(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.SMALL["resnet18-small"], "seconds", 0.01)
    words = ["--networks", "resnet18-small", "--batch", "2", "--out", str(tmp_path)]
    assert networks.main(words) == 0
    record = json.loads((tmp_path / "networks.json").read_text(encoding="utf-8"))
    for row in record["rows"]:
        assert (row["batch"], row["size"], row["width"]) == (1, 32, 8)
        assert row["floor"] is None and row["peak_bytes"] is None
    assert end_to_end.network_verdicts(record["rows"]) == []
    assert "1 image of 32 pixels, 8 channels" in end_to_end.networks_section(record)


def test_the_ceiling_s_network_has_no_activation():
    model = networks.built("resnet18", 4, "cpu")
    idle = networks.without_activations(model)
    assert not any(isinstance(module, torch.nn.ReLU) for module in idle.modules())
    assert sum(isinstance(module, torch.nn.ReLU) for module in model.modules()) == 17


@pytest.mark.parametrize("name", ["vgg16", "resnet18"])
def test_networks_have_the_published_sizes(name):
    model = networks.NETWORKS[name]()
    wanted = {"vgg16": 138_357_544, "resnet18": 11_689_512}[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == wanted


@pytest.mark.filterwarnings("ignore")
def test_a_map_that_is_the_plain_gradient_does_not_pass_the_gate():
    model = networks.built("resnet18", 4, "cpu")
    maps = {name: networks.provider(name, model) for name in networks.installed()}
    x = torch.randn(1, 3, 32, 32)
    networks.gate(maps, x)
    with pytest.raises(AssertionError, match="is the plain gradient"):
        networks.gate({"fused": maps["plain"], "plain": maps["plain"]}, x)
    with pytest.raises(AssertionError, match="other's map is"):
        networks.gate({**maps, "other": maps["plain"]}, x)
