"""Class labels of every integer dtype, in a step and in a score; one-hot labels."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyrevgrad.adversarial import DANN, evaluate, fit

INTEGERS = [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16]


def network(classes=3):
    torch.manual_seed(0)
    return DANN(nn.Linear(5, 6), nn.Linear(6, classes), nn.Linear(6, 1)).double()


def data(n=12, classes=3):
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=draw, dtype=torch.float64)
    return x, torch.arange(n) % classes


@pytest.mark.parametrize("dtype", INTEGERS)
def test_class_labels_may_be_any_integers(dtype):
    x, y = data()
    model = network()
    wanted = F.cross_entropy(model.predict(x), y).item()
    right = (model.predict(x).argmax(1) == y).double().mean().item()
    assert model(x, y.to(dtype), x + 1).label_loss.item() == pytest.approx(wanted)
    score = evaluate(model, (x, y.to(dtype)), batch_size=5)
    assert (score.loss, score.accuracy) == (pytest.approx(wanted), right)


def test_masks_of_bytes_are_trained_on_and_scored():
    torch.manual_seed(0)
    model = DANN(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 1, 1))
    x = torch.randn(4, 3, 5, 5)
    masks = torch.randint(0, 3, (4, 5, 5), dtype=torch.uint8)
    history = fit(model, (x, masks), x, epochs=1, validation=(x, masks), progress=False)
    wanted = F.cross_entropy(model.predict(x), masks.long()).item()
    assert history.epochs[0]["validation_loss"] == pytest.approx(wanted, rel=1e-5)


def test_an_ignored_label_below_zero_is_no_class_of_an_unsigned_dtype():
    """−100 is 156 in uint8."""
    x, _ = data()
    y = torch.full((12,), 156)
    model = network(classes=200)
    wanted = F.cross_entropy(model.predict(x), y).item()
    assert evaluate(model, (x, y.to(torch.uint8))).loss == pytest.approx(wanted)
    for call in (evaluate, lambda m, pair: m(*pair, x)):
        with pytest.raises(ValueError, match="label 156 is out of range"):
            call(network(), (x, y.to(torch.uint8)))


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_one_hot_labels_are_probabilities_and_so_floating_point(dtype):
    x, y = data()
    model, one_hot = network(), F.one_hot(y, 3)
    wanted = F.cross_entropy(model.predict(x), y).item()
    assert evaluate(model, (x, one_hot.double())).loss == pytest.approx(wanted)
    for call in (evaluate, lambda m, pair: m(*pair, x)):
        with pytest.raises(ValueError, match=r"give one-hot labels as floating point \(labels\.f"):
            call(model, (x, one_hot.to(dtype)))
