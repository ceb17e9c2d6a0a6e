"""The examples of adversarial training: they run, fall, and do what they say."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from pyrevgrad import check_reversal
from pyrevgrad.adversarial import GaninSchedule

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def page(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def dense():
    return page("dense_segmentation")


def test_the_dense_page_runs_and_its_label_loss_falls(dense, capsys):
    dense.main()
    printed = capsys.readouterr().out
    losses = [float(found) for found in re.findall(r"label loss ([\d.]+)", printed)]
    assert len(losses) == 5 and losses[-1] < 0.6 * losses[0]
    assert "scale=0.9999" in printed


def test_the_dense_network_reverses_for_every_pixel(dense):
    draw = torch.Generator().manual_seed(0)
    model = dense.build(GaninSchedule(5))
    batch = (*dense.images(2, 0.0, draw), dense.images(2, 0.5, draw)[0])
    assert check_reversal(model, batch).ok
    assert model.domain_head(model.features(batch[0])).shape == (2, 1, 16, 16)


def test_ignored_pixels_teach_nothing_and_rare_classes_weigh_more(dense):
    draw = torch.Generator().manual_seed(0)
    model = dense.build(GaninSchedule(5))
    source, labels, target = (*dense.images(2, 0.0, draw), dense.images(2, 0.5, draw)[0])
    log = torch.log_softmax(model.label_head(model.features(source)), 1)
    counted = labels != 255
    weight = torch.tensor([0.5, 1.0, 2.0])[labels.clamp_max(2)] * counted
    each = -log.gather(1, labels.clamp_max(2)[:, None])[:, 0]
    wanted = (each * weight).sum() / weight.sum()
    torch.testing.assert_close(model(source, labels, target).label_loss, wanted)


def test_accumulated_and_checkpointed_gradients_are_those_of_the_mean_loss(dense):
    draw = torch.Generator().manual_seed(0)
    model = dense.build(GaninSchedule(5, low=0.3))
    parts = [(*dense.images(2, 0.0, draw), dense.images(2, 0.5, draw)[0]) for _ in range(2)]
    for part in parts:
        (model(*part).loss / 2).backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.features.forward = lambda x: model.features.second(model.features.first(x))
    (sum(model(*part).loss for part in parts) / 2).backward()
    for ours, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


# Lightning.


@pytest.fixture
def lightning_page():
    pytest.importorskip("lightning", reason="PyTorch Lightning is not installed")
    return page("lightning_module")


@pytest.mark.filterwarnings("ignore")
def test_the_lightning_page_trains_logs_and_steps_the_schedule(lightning_page, capsys):
    lightning_page.main()
    printed = capsys.readouterr().out
    assert re.search(r"^gradient_norm 0\.\d+$", printed, re.M)
    assert (
        "scale=0.999909" in printed and float(re.search("^label_loss (.*)", printed, re.M)[1]) < 0.4
    )


@pytest.mark.filterwarnings("ignore")
def test_a_lightning_checkpoint_brings_back_the_scale_and_the_step(lightning_page, tmp_path):
    _, trainer = lightning_page.train(3, folder=tmp_path)
    saved = tmp_path / "saved.ckpt"
    trainer.save_checkpoint(saved)
    module, _ = lightning_page.train(5, folder=tmp_path, resume=saved)
    assert module.network.schedule.steps == 20
    assert module.network.reversal.scale.item() == GaninSchedule(40).at(0.5)
